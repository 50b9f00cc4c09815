/* SPDX-License-Identifier: MIT
 *
 * .mailfs: not listed in the root, readable by name. The kernel keeps the pages of a file it has
 * read, and may not send OPEN at all; so each look-up of `status` gets a file of its own with a new
 * inode and what there was to say at that moment.
 */
#include "fs/private.h"

#include <errno.h>
#include <string.h>

typedef struct
{
  guint64 ino; /* the key */
  char *text;
  gint64 time; /* seconds since the epoch */
  guint64 n_lookups;
} Snapshot;

static void
snapshot_free (gpointer data)
{
  Snapshot *snapshot = data;

  g_free (snapshot->text);
  g_free (snapshot);
}

fuse_ino_t
fs_snapshot_new (FsServer *server)
{
  Snapshot *snapshot = g_new0 (Snapshot, 1);

  snapshot->text = mail_store_status_text (server->store);
  snapshot->time = g_get_real_time () / G_USEC_PER_SEC;
  snapshot->n_lookups = 1;
  g_mutex_lock (&server->lock);
  if (server->snapshots == NULL)
    {
      server->snapshots
          = g_hash_table_new_full (g_int64_hash, g_int64_equal, NULL, snapshot_free);
      server->next_snapshot = FS_INO_SNAPSHOT_FIRST;
    }
  snapshot->ino = server->next_snapshot++;
  g_hash_table_insert (server->snapshots, &snapshot->ino, snapshot);
  fuse_ino_t ino = snapshot->ino;
  g_mutex_unlock (&server->lock);
  return ino;
}

static Snapshot *
find_locked (FsServer *server, fuse_ino_t ino)
{
  guint64 key = ino;

  return server->snapshots != NULL ? g_hash_table_lookup (server->snapshots, &key) : NULL;
}

void
fs_snapshot_forget (FsServer *server, fuse_ino_t ino, guint64 n_lookups)
{
  if (ino >> 32 != 0 || ino < FS_INO_SNAPSHOT_FIRST)
    return;
  g_mutex_lock (&server->lock);
  Snapshot *snapshot = find_locked (server, ino);
  if (snapshot != NULL)
    {
      snapshot->n_lookups -= MIN (n_lookups, snapshot->n_lookups);
      if (snapshot->n_lookups == 0)
        g_hash_table_remove (server->snapshots, &snapshot->ino);
    }
  g_mutex_unlock (&server->lock);
}

gboolean
fs_snapshot_stat (FsServer *server, fuse_ino_t ino, struct stat *st)
{
  memset (st, 0, sizeof *st);
  g_mutex_lock (&server->lock);
  const Snapshot *snapshot = find_locked (server, ino);
  if (snapshot != NULL)
    {
      st->st_ino = ino;
      st->st_mode = S_IFREG | 0400;
      st->st_nlink = 1;
      st->st_uid = server->config->uid;
      st->st_gid = server->config->gid;
      st->st_size = (off_t)strlen (snapshot->text);
      st->st_blocks = 8;
      st->st_blksize = 4096;
      st->st_mtim.tv_sec = st->st_atim.tv_sec = st->st_ctim.tv_sec = snapshot->time;
    }
  g_mutex_unlock (&server->lock);
  return snapshot != NULL;
}

void
fs_snapshot_read (FsServer *server, fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset)
{
  g_autofree char *text = NULL;

  g_mutex_lock (&server->lock);
  const Snapshot *snapshot = find_locked (server, ino);
  text = g_strdup (snapshot != NULL ? snapshot->text : NULL);
  g_mutex_unlock (&server->lock);
  if (text == NULL)
    {
      fuse_reply_err (req, ESTALE);
      return;
    }
  size_t length = strlen (text);
  size_t from = MIN ((size_t)offset, length);
  fuse_reply_buf (req, text + from, MIN (size, length - from));
}

void
fs_stat_dot_mailfs (FsServer *server, struct stat *st)
{
  memset (st, 0, sizeof *st);
  st->st_ino = FS_INO_DOT_MAILFS;
  st->st_mode = S_IFDIR | 0500;
  st->st_nlink = 2;
  st->st_uid = server->config->uid;
  st->st_gid = server->config->gid;
  st->st_size = st->st_blksize = 4096;
  st->st_mtim.tv_sec = st->st_atim.tv_sec = st->st_ctim.tv_sec = server->started;
}

void
fs_snapshots_free (FsServer *server)
{
  g_clear_pointer (&server->snapshots, g_hash_table_unref);
}
