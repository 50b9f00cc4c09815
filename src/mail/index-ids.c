/* SPDX-License-Identifier: MIT
 *
 * Numbers for mailboxes and contents that are never handed out twice. They come from blocks; the
 * end of a block is synced to a small file of its own before any number of it is used, because
 * inode numbers and cache file names depend on it, the database's tail may be lost in a crash, and
 * the whole database may be thrown away. Any thread.
 */
#include "index-private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include <libdeflate.h>

#define FIRST_ID 16
#define BLOCK_IDS 256
/* Handed out without the file are numbers from here on, which no block ever reaches. */
#define VOLATILE_IDS 0xe0000000u
/* 2020-01-01: seconds since then rise faster than blocks can be used up by remounting. */
#define EPOCH_2020 1577836800

typedef struct
{
  char magic[8];
  guint64 limit; /* little-endian; no number at or above it was handed out */
  guint32 crc;   /* of what is before it */
  guint32 zero;
} IdsFile;
G_STATIC_ASSERT (sizeof (IdsFile) == 24);

static const char ids_magic[8] = "mailids1";

static gboolean
read_limit (int fd, guint64 *limit_out)
{
  IdsFile file;

  if (pread (fd, &file, sizeof file, 0) != sizeof file
      || memcmp (file.magic, ids_magic, sizeof file.magic) != 0
      || GUINT32_FROM_LE (file.crc)
             != libdeflate_crc32 (0, (const guint8 *)&file, G_STRUCT_OFFSET (IdsFile, crc)))
    return FALSE;
  *limit_out = GUINT64_FROM_LE (file.limit);
  return *limit_out <= VOLATILE_IDS;
}

static gboolean
write_limit (int fd, guint64 limit, gboolean sync)
{
  IdsFile file = { .limit = GUINT64_TO_LE (limit) };
  gssize n;

  memcpy (file.magic, ids_magic, sizeof file.magic);
  file.crc = GUINT32_TO_LE (
      libdeflate_crc32 (0, (const guint8 *)&file, G_STRUCT_OFFSET (IdsFile, crc)));
  n = pwrite (fd, &file, sizeof file, 0);
  if (n >= 0 && n != sizeof file)
    errno = ENOSPC;
  return n == sizeof file && (!sync || fdatasync (fd) == 0);
}

static void
sync_dir (const char *dir)
{
  int fd = open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  if (fd < 0)
    return;
  fsync (fd);
  close (fd);
}

void
index_ids_open (IndexIds *ids, const char *dir, guint64 floor, gboolean lost)
{
  g_autofree char *path = g_build_filename (dir, "index.ids", NULL);
  gboolean existed = access (path, F_OK) == 0;
  guint64 limit = FIRST_ID;

  pthread_mutex_init (&ids->lock, NULL);
  ids->fd = open (path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (ids->fd < 0)
    mail_log_warning ("%s: %s", path, g_strerror (errno));
  else if (!existed)
    sync_dir (dir);
  /* Without the file we know neither what the tail of the database nor what a lost one used. */
  if (ids->fd < 0 || !read_limit (ids->fd, &limit))
    {
      if (existed || lost)
        limit = MAX (g_get_real_time () / G_USEC_PER_SEC - EPOCH_2020, FIRST_ID);
      else if (floor > FIRST_ID)
        limit = floor + 64 * BLOCK_IDS;
    }
  ids->next = ids->limit = CLAMP (MAX (limit, floor), FIRST_ID, VOLATILE_IDS);
}

static void
reserve_block (IndexIds *ids)
{
  guint64 limit = MIN (ids->limit + BLOCK_IDS, VOLATILE_IDS);

  if (ids->fd >= 0 && limit > ids->limit && write_limit (ids->fd, limit, TRUE))
    {
      ids->limit = limit;
      return;
    }
  if (!ids->warned)
    mail_log_warning ("index: cannot reserve mailbox numbers: %s; using passing ones",
                      ids->fd < 0 ? "no file" : g_strerror (errno));
  ids->warned = TRUE;
  close (ids->fd);
  ids->fd = -1;
  ids->next = VOLATILE_IDS + g_random_int_range (0, 0x10000000);
  ids->limit = G_MAXUINT32;
}

guint32
index_ids_next (IndexIds *ids)
{
  guint32 id;

  pthread_mutex_lock (&ids->lock);
  if (ids->next >= ids->limit)
    reserve_block (ids);
  id = ids->next++;
  pthread_mutex_unlock (&ids->lock);
  return id;
}

void
index_ids_close (IndexIds *ids)
{
  /* Gives back the rest of the block; not synced, a lost write leaves the higher limit. */
  if (ids->fd >= 0)
    {
      if (ids->next < ids->limit)
        write_limit (ids->fd, ids->next, FALSE);
      close (ids->fd);
    }
  pthread_mutex_destroy (&ids->lock);
}
