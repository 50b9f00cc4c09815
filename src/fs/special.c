/* SPDX-License-Identifier: MIT
 *
 * .mailfs: not listed in the root, readable by name: status, failed, queue. The kernel keeps the
 * pages of a file it has read, and may not send OPEN at all; so each look-up of `status` gets a
 * file of its own with a new inode and what there was to say at that moment.
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
fs_snapshot_new (FsServer *server, char *text)
{
  Snapshot *snapshot = g_new0 (Snapshot, 1);

  snapshot->text = text;
  snapshot->time = g_get_real_time () / G_USEC_PER_SEC;
  snapshot->n_lookups = 1;
  g_mutex_lock (&server->lock);
  if (server->snapshots == NULL)
    {
      server->snapshots = g_hash_table_new_full (g_int64_hash, g_int64_equal, NULL, snapshot_free);
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
fs_stat_special_dir (FsServer *server, fuse_ino_t ino, struct stat *st)
{
  memset (st, 0, sizeof *st);
  st->st_ino = ino;
  /* What was refused may be taken out of failed by its owner. */
  st->st_mode = S_IFDIR | (ino == FS_INO_FAILED ? 0700 : 0500);
  st->st_nlink = ino == FS_INO_DOT_MAILFS ? 4 : 2;
  st->st_uid = server->config->uid;
  st->st_gid = server->config->gid;
  st->st_size = st->st_blksize = 4096;
  st->st_mtim.tv_sec = st->st_atim.tv_sec = st->st_ctim.tv_sec = server->started;
}

/* "12-report.eml": the number keeps two refused files of one name apart. */
static char *
failed_name (MailStaged *staged)
{
  g_autofree char *name = mail_staged_name (staged);
  MailStagedInfo info;

  mail_staged_info (staged, &info);
  char *whole = g_strdup_printf ("%u-%s", info.id, name);
  if (strlen (whole) > FS_NAMES_MAX)
    whole[FS_NAMES_MAX] = '\0';
  return whole;
}

MailStaged *
fs_failed_lookup (FsServer *server, const char *name)
{
  guint64 id = 0;
  g_auto (GStrv) parts = g_strsplit (name, "-", 2);

  if (parts[0] == NULL || !g_ascii_string_to_unsigned (parts[0], 10, 1, G_MAXUINT32, &id, NULL))
    return NULL;
  g_autoptr (MailStaged) staged = mail_stage_next_failed (server->store, (guint32)id - 1);
  if (staged == NULL)
    return NULL;
  g_autofree char *whole = failed_name (staged);
  return strcmp (whole, name) == 0 ? g_steal_pointer (&staged) : NULL;
}

/* A line of the queue begins with its number, which is the file's name. */
static char *
queue_name (const char *line)
{
  return g_strndup (line, strcspn (line, " "));
}

static void
lookup_queue (FsOp *op)
{
  g_autoptr (GPtrArray) lines = mail_store_queue_lines (op->server->store);
  struct stat st;

  for (guint i = 0; i < lines->len; i++)
    {
      g_autofree char *name = queue_name (lines->pdata[i]);

      if (strcmp (name, op->name) != 0)
        continue;
      fs_snapshot_stat (
          op->server, fs_snapshot_new (op->server, g_strconcat (lines->pdata[i], "\n", NULL)), &st);
      fs_reply_entry (op, &st, 0);
      return;
    }
  fs_op_fail (op, ENOENT);
}

static void
lookup_failed (FsOp *op)
{
  g_autoptr (MailStaged) staged = fs_failed_lookup (op->server, op->name);
  struct stat st;

  if (staged == NULL)
    {
      fs_op_fail (op, ENOENT);
      return;
    }
  fs_stat_staged (op->server, staged, &st);
  fs_staged_remember (op->server, (guint32)st.st_ino);
  fs_reply_entry (op, &st, 0);
}

static void
lookup_status (FsOp *op)
{
  GError *error = NULL;
  char *text = NULL;
  struct stat st;

  if (!fs_op_check (op, mail_store_status_text (op->server->store, &text, fs_op_waiter (op)),
                    &error))
    return;
  fs_snapshot_stat (op->server, fs_snapshot_new (op->server, text), &st);
  fs_reply_entry (op, &st, 0);
}

void
fs_special_lookup (FsOp *op, const FsNode *dir)
{
  struct stat st;

  if (dir->kind == FS_NODE_QUEUE)
    lookup_queue (op);
  else if (dir->kind == FS_NODE_FAILED)
    lookup_failed (op);
  else if (strcmp (op->name, "status") == 0)
    lookup_status (op);
  else if (strcmp (op->name, "failed") == 0 || strcmp (op->name, "queue") == 0)
    {
      fs_stat_special_dir (op->server, op->name[0] == 'f' ? FS_INO_FAILED : FS_INO_QUEUE, &st);
      fs_reply_entry (op, &st, FS_TIMEOUT);
    }
  else
    fs_op_fail (op, ENOENT);
}

static char *
nth_failed (FsServer *server, guint n, struct stat *st)
{
  MailStaged *staged = mail_stage_next_failed (server->store, 0);

  for (; staged != NULL; n--)
    {
      MailStaged *next;

      fs_stat_staged (server, staged, st);
      if (n == 0)
        {
          char *name = failed_name (staged);
          mail_staged_unref (staged);
          return name;
        }
      next = mail_stage_next_failed (server->store, (guint32)st->st_ino);
      mail_staged_unref (staged);
      staged = next;
    }
  return NULL;
}

char *
fs_special_entry (FsServer *server, const FsNode *dir, guint n, struct stat *st)
{
  static const char *const top[] = { "status", "failed", "queue" };

  memset (st, 0, sizeof *st);
  if (dir->kind == FS_NODE_FAILED)
    return nth_failed (server, n, st);
  if (dir->kind == FS_NODE_QUEUE)
    {
      g_autoptr (GPtrArray) lines = mail_store_queue_lines (server->store);

      st->st_mode = S_IFREG;
      st->st_ino = FS_INO_SNAPSHOT_FIRST + n;
      return n < lines->len ? queue_name (lines->pdata[n]) : NULL;
    }
  st->st_mode = n == 0 ? S_IFREG : S_IFDIR;
  st->st_ino = n == 0 ? FS_INO_SNAPSHOT_FIRST : FS_INO_DOT_MAILFS + n;
  return n < G_N_ELEMENTS (top) ? g_strdup (top[n]) : NULL;
}

void
fs_snapshots_free (FsServer *server)
{
  g_clear_pointer (&server->snapshots, g_hash_table_unref);
}
