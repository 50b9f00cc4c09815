/* SPDX-License-Identifier: MIT
 *
 * Reading and writing the bytes of one message. On disk while that works, otherwise in memory (an
 * anonymous file, so that offsets are the same). Any thread; each function takes the file's lock.
 * Bytes once verified are read without it: they never change, they only go away, and then the
 * generation says that the read must be looked at again.
 */
#include "cache-private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <libdeflate.h>

gboolean
cache_file_is_empty (const MailCacheFile *file)
{
  return file->chunks.n == 0 && !file->end_known;
}

gboolean
cache_file_is_whole (const MailCacheFile *file)
{
  return file->end_known && file->chunks.held == file->end;
}

CacheFooter
cache_file_footer (const MailCacheFile *file)
{
  return (CacheFooter) { file->end_known, file->end, file->extent, 0 };
}

/* --- accounts ------------------------------------------------------------------------------------
 */

static void
begin_live (MailCacheFile *file)
{
  pthread_mutex_lock (&file->cache->lock);
  if (!file->live && !g_atomic_int_get (&file->detached))
    {
      file->live = TRUE;
      file->charge = 0;
      file->was_counted = file->bucket->counted;
    }
  pthread_mutex_unlock (&file->cache->lock);
}

static void
set_charge (MailCacheFile *file, guint64 charge)
{
  MailCache *cache = file->cache;

  pthread_mutex_lock (&cache->lock);
  if (file->live)
    {
      cache->used += charge - file->charge;
      file->bucket->live += charge - file->charge;
      file->charge = charge;
      if (cache->used > cache->budget)
        cache_reclaim_wake_locked (cache);
    }
  pthread_mutex_unlock (&cache->lock);
}

/* The file was found on disk, where the bucket may have counted it among the idle ones. */
static void
take_from_idle (MailCacheFile *file, guint64 charge)
{
  MailCache *cache = file->cache;

  pthread_mutex_lock (&cache->lock);
  if (file->live && file->was_counted)
    {
      charge = MIN (charge, file->bucket->idle);
      file->bucket->idle -= charge;
      cache->used -= charge;
      file->was_counted = FALSE;
    }
  pthread_mutex_unlock (&cache->lock);
}

void
cache_file_account (MailCacheFile *file)
{
  set_charge (file, file->fd < 0 ? 0 : cache_chunks_charge (&file->chunks, file->extent));
}

static void
add_memory (MailCacheFile *file, gint64 bytes)
{
  MailCache *cache = file->cache;

  pthread_mutex_lock (&cache->lock);
  cache->memory_used += bytes;
  if (bytes > 0)
    {
      if (file->in_memory_files)
        g_queue_unlink (&cache->memory_files, &file->memory_link);
      g_queue_push_tail_link (&cache->memory_files, &file->memory_link);
      file->in_memory_files = TRUE;
    }
  pthread_mutex_unlock (&cache->lock);
}

static void
leave_memory_files (MailCacheFile *file)
{
  pthread_mutex_lock (&file->cache->lock);
  if (file->in_memory_files)
    g_queue_unlink (&file->cache->memory_files, &file->memory_link);
  file->in_memory_files = FALSE;
  pthread_mutex_unlock (&file->cache->lock);
}

/* --- what is on disk
 * ------------------------------------------------------------------------------- */

static void
close_fd (int *fd)
{
  if (*fd >= 0)
    close (*fd);
  *fd = -1;
}

void
cache_file_load (MailCacheFile *file, gboolean create)
{
  CacheFooter footer;
  gboolean made;
  struct stat st;

  if (file->loaded)
    return;
  file->loaded = TRUE;
  if (g_atomic_int_get (&file->detached))
    return;
  begin_live (file);
  file->fd = cache_file_open (file, create, &file->read_only, &made);
  if (file->fd < 0 && create)
    {
      cache_disk_failed (file->cache, errno);
      file->fd = cache_file_open (file, FALSE, &file->read_only, &made);
    }
  if (file->fd < 0 || made)
    return;
  if (fstat (file->fd, &st) < 0)
    {
      close_fd (&file->fd);
      return;
    }
  if (create && st.st_size == 0 && S_ISREG (st.st_mode))
    return;
  if (cache_footer_load (file->fd, &file->key, &st, &footer, &file->chunks))
    {
      file->extent = footer.extent;
      file->end_known = footer.end_known;
      file->end = footer.end;
      file->footer_stored = TRUE;
      file->mtime = st.st_mtime;
      take_from_idle (file, cache_chunks_charge (&file->chunks, file->extent));
      cache_file_account (file);
      return;
    }
  /* Cut off while it was written, or not ours. */
  close_fd (&file->fd);
  cache_file_unlink (file);
  take_from_idle (file, cache_charge_unknown (&st));
}

/* Waits until nobody reads from what is to be closed. The lock is given up meanwhile. */
static void
wait_for_pins (MailCacheFile *file)
{
  while (file->pins > 0)
    pthread_cond_wait (&file->unpinned, &file->lock);
}

static void
drop_chunk (MailCacheFile *file, guint index)
{
  const CacheChunk *chunk = &file->chunks.items[index];

  file->generation++;
  if (chunk->in_memory)
    {
      fallocate (file->memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, chunk->offset,
                 chunk->length);
      add_memory (file, -(gint64)chunk->length);
    }
  cache_chunks_remove (&file->chunks, index);
}

void
cache_file_drop_all (MailCacheFile *file)
{
  int fd = file->fd, memory_fd = file->memory_fd;
  guint64 memory = file->chunks.memory;

  if (memory > 0)
    add_memory (file, -(gint64)memory);
  cache_chunks_clear (&file->chunks);
  file->generation++;
  file->end_known = FALSE;
  file->end = file->extent = 0;
  file->footer_stored = file->read_only = FALSE;
  file->fd = file->memory_fd = -1;
  if (fd >= 0)
    cache_file_unlink (file);
  set_charge (file, 0);
  if (fd >= 0 || memory_fd >= 0)
    wait_for_pins (file);
  close_fd (&fd);
  close_fd (&memory_fd);
}

void
cache_file_forget (MailCacheFile *file, guint64 charge)
{
  file->loaded = TRUE;
  begin_live (file);
  cache_file_unlink (file);
  take_from_idle (file, charge);
}

void
cache_file_flush (MailCacheFile *file)
{
  if (file->fd >= 0 && !file->footer_stored && !g_atomic_int_get (&file->detached)
      && file->chunks.n > 0 && file->chunks.memory == 0)
    cache_footer_store (file);
}

void
cache_file_finish (MailCacheFile *file)
{
  if (file->fd < 0 || g_atomic_int_get (&file->detached))
    return;
  if (!file->footer_stored)
    {
      gboolean has_bytes = file->chunks.held > file->chunks.memory
                           || (file->end_known && file->end == 0);

      if (!has_bytes || !cache_footer_store (file))
        cache_file_drop_all (file);
      else
        cache_file_account (file);
    }
  else if (file->was_read && cache_now () / G_USEC_PER_SEC - file->mtime > CACHE_TOUCH_SECONDS)
    {
      /* The age by which eviction goes after a remount. */
      futimens (file->fd, NULL);
      file->mtime = cache_now () / G_USEC_PER_SEC;
    }
  file->was_read = FALSE;
}

/* Whether bytes can go to disk now. */
static gboolean
open_for_writing (MailCacheFile *file)
{
  gboolean read_only, made;

  if (g_atomic_int_get (&file->detached) || !cache_disk_usable (file->cache))
    return FALSE;
  if (file->fd >= 0)
    return !file->read_only;
  file->fd = cache_file_open (file, TRUE, &read_only, &made);
  if (file->fd < 0)
    cache_disk_failed (file->cache, errno);
  file->footer_stored = file->read_only = FALSE;
  file->extent = 0;
  /* Whatever is there is not known to us and so not wanted. */
  if (file->fd >= 0 && !made && ftruncate (file->fd, 0) < 0)
    close_fd (&file->fd);
  return file->fd >= 0;
}

/* --- questions
 * --------------------------------------------------------------------------------------- */

static guint64
clamp_to_end (const MailCacheFile *file, guint64 offset, guint64 length)
{
  guint64 stop = offset > G_MAXUINT64 - length ? G_MAXUINT64 : offset + length;

  if (file->end_known)
    stop = MIN (stop, file->end);
  return stop;
}

gboolean
mail_cache_file_missing (MailCacheFile *file, guint64 offset, guint64 limit, guint64 *start_out,
                         guint64 *end_out)
{
  guint64 start, end;
  gboolean missing;

  pthread_mutex_lock (&file->lock);
  cache_file_load (file, FALSE);
  if (file->end_known)
    limit = MIN (limit, file->end);
  missing = !cache_file_is_whole (file)
            && cache_chunks_missing (&file->chunks, offset, limit, &start, &end);
  pthread_mutex_unlock (&file->lock);
  if (missing)
    {
      *start_out = start;
      *end_out = end;
    }
  return missing;
}

gboolean
mail_cache_file_has (MailCacheFile *file, guint64 offset, guint64 length)
{
  guint64 start, end, limit;
  limit = offset > G_MAXUINT64 - length ? G_MAXUINT64 : offset + length;

  return !mail_cache_file_missing (file, offset, limit, &start, &end);
}

gboolean
mail_cache_file_end (MailCacheFile *file, guint64 *end_out)
{
  gboolean known;

  pthread_mutex_lock (&file->lock);
  cache_file_load (file, FALSE);
  known = file->end_known;
  if (known)
    *end_out = file->end;
  pthread_mutex_unlock (&file->lock);
  return known;
}

guint64
mail_cache_file_bytes (MailCacheFile *file)
{
  guint64 held;

  pthread_mutex_lock (&file->lock);
  cache_file_load (file, FALSE);
  held = file->chunks.held;
  pthread_mutex_unlock (&file->lock);
  return held;
}

/* --- reading
 * ------------------------------------------------------------------------------------------ */

static int
chunk_fd (const MailCacheFile *file, const CacheChunk *chunk)
{
  return chunk->in_memory ? file->memory_fd : file->fd;
}

/* Reads a chunk whole and looks at its CRC; a wrong one is dropped. */
static gboolean
verify_chunk (MailCacheFile *file, guint index, guint8 *data_out)
{
  CacheChunk *chunk = &file->chunks.items[index];

  if (cache_pread_all (chunk_fd (file, chunk), data_out, chunk->length, chunk->offset)
      && (chunk->verified || libdeflate_crc32 (0, data_out, chunk->length) == chunk->crc))
    {
      chunk->verified = TRUE;
      return TRUE;
    }
  mail_log_warning ("cache file %x/%x: %u bytes at %" G_GUINT64_FORMAT " are damaged; dropped",
                    file->key.content_id, file->key.uid, chunk->length, chunk->offset);
  drop_chunk (file, index);
  /* Rewritten without that chunk; where it cannot be, each reader finds the damage again. */
  cache_footer_strip (file);
  return FALSE;
}

/* Copies [offset, stop), all of it there, verifying on the way. FALSE: a chunk was dropped. */
static gboolean
read_locked (MailCacheFile *file, guint64 offset, guint64 stop, guint8 *buffer)
{
  g_autofree guint8 *scratch = NULL;
  guint64 at = offset;

  for (guint i = cache_chunks_find (&file->chunks, offset); at < stop; i++)
    {
      const CacheChunk *chunk = &file->chunks.items[i];
      gsize skip = at - chunk->offset;
      gsize n = MIN (chunk->length - skip, stop - at);

      if (skip == 0 && n == chunk->length)
        {
          if (!verify_chunk (file, i, buffer))
            return FALSE;
        }
      else
        {
          if (!scratch)
            scratch = g_malloc (MAIL_BLOCK_SIZE);
          if (!verify_chunk (file, i, scratch))
            return FALSE;
          memcpy (buffer, scratch + skip, n);
        }
      buffer += n;
      at += n;
    }
  return TRUE;
}

/* The descriptor that has all of [offset, stop), verified; -1: there is no such one. */
static int
verified_fd (const MailCacheFile *file, guint64 offset, guint64 stop)
{
  guint i = cache_chunks_find (&file->chunks, offset);
  int fd = chunk_fd (file, &file->chunks.items[i]);

  for (; i < file->chunks.n && file->chunks.items[i].offset < stop; i++)
    if (!file->chunks.items[i].verified || chunk_fd (file, &file->chunks.items[i]) != fd)
      return -1;
  return fd;
}

typedef enum
{
  READ_DONE,
  READ_AGAIN,
  READ_DAMAGED,
} ReadResult;

static ReadResult
read_range (MailCacheFile *file, guint64 offset, guint64 stop, void *buffer)
{
  guint generation = file->generation;
  int fd = verified_fd (file, offset, stop);
  gboolean ok;

  if (fd < 0)
    return read_locked (file, offset, stop, buffer) ? READ_DONE : READ_DAMAGED;
  file->pins++;
  pthread_mutex_unlock (&file->lock);
  ok = cache_pread_all (fd, buffer, stop - offset, offset);
  pthread_mutex_lock (&file->lock);
  if (--file->pins == 0)
    pthread_cond_broadcast (&file->unpinned);
  if (file->generation != generation)
    return READ_AGAIN;
  if (ok)
    return READ_DONE;
  /* Verified once, unreadable now: the disk fails. */
  for (guint i = cache_chunks_find (&file->chunks, offset);
       i < file->chunks.n && file->chunks.items[i].offset < stop;)
    drop_chunk (file, i);
  cache_footer_strip (file);
  return READ_DAMAGED;
}

gssize
mail_cache_file_read (MailCacheFile *file, guint64 offset, void *buffer, gsize length,
                      GError **error)
{
  ReadResult result = READ_AGAIN;
  guint64 stop = offset, start, end;

  pthread_mutex_lock (&file->lock);
  cache_file_load (file, FALSE);
  while (result == READ_AGAIN)
    {
      stop = MAX (clamp_to_end (file, offset, length), offset);
      if (stop == offset)
        break;
      if (!cache_file_is_whole (file)
          && cache_chunks_missing (&file->chunks, offset, stop, &start, &end))
        {
          pthread_mutex_unlock (&file->lock);
          g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_GONE, "bytes are not in the cache");
          return -1;
        }
      result = read_range (file, offset, stop, buffer);
    }
  if (result == READ_DAMAGED)
    cache_file_account (file);
  else
    file->was_read = TRUE;
  pthread_mutex_unlock (&file->lock);
  if (result == READ_DAMAGED)
    {
      g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_CORRUPT, "bytes in the cache are damaged");
      return -1;
    }
  return stop - offset;
}

/* --- writing
 * ------------------------------------------------------------------------------------------- */

static void
store_in_memory (MailCacheFile *file, guint64 offset, const guint8 *data, gsize length)
{
  if (file->memory_fd < 0)
    file->memory_fd = memfd_create ("mailfs-cache", MFD_CLOEXEC);
  /* Not even that: then the bytes are not kept, and whoever needs them finds them absent. */
  if (file->memory_fd < 0 || !cache_pwrite_all (file->memory_fd, data, length, offset))
    return;
  cache_chunks_add (&file->chunks, offset, data, length, TRUE,
                    g_atomic_int_add (&file->cache->memory_clock, 1));
  add_memory (file, length);
}

/* A range of which nothing is there. */
static void
store (MailCacheFile *file, guint64 offset, const guint8 *data, gsize length)
{
  if (!open_for_writing (file) || !cache_footer_strip (file))
    {
      store_in_memory (file, offset, data, length);
      return;
    }
  if (!cache_pwrite_all (file->fd, data, length, offset))
    {
      cache_disk_failed (file->cache, errno);
      if (ftruncate (file->fd, file->extent) < 0)
        mail_log_warning ("cache %s: %s", file->cache->dir, g_strerror (errno));
      store_in_memory (file, offset, data, length);
      return;
    }
  cache_disk_worked (file->cache);
  file->extent = MAX (file->extent, offset + length);
  cache_chunks_add (&file->chunks, offset, data, length, FALSE, 0);
}

/* FALSE: what is there is something else. A damaged chunk is dropped, so look again. */
static gboolean
same_as_chunk (MailCacheFile *file, guint index, guint64 offset, const guint8 *data, gsize length,
               guint8 *scratch, gboolean *dropped_out)
{
  const CacheChunk *chunk = &file->chunks.items[index];
  guint64 skip = offset - chunk->offset;

  *dropped_out = !verify_chunk (file, index, scratch);
  return *dropped_out || memcmp (scratch + skip, data, length) == 0;
}

static gboolean
fail_differs (MailCacheFile *file, const char *what, GError **error)
{
  cache_file_drop_all (file);
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_CORRUPT, "%s", what);
  return FALSE;
}

static gboolean
write_locked (MailCacheFile *file, guint64 offset, const guint8 *data, gsize length, GError **error)
{
  g_autofree guint8 *scratch = NULL;

  if (length > G_MAXINT64 - MIN (offset, G_MAXINT64)
      || (file->end_known && length > 0 && offset + length > file->end))
    return fail_differs (file, "the message is longer than it was", error);
  while (length > 0)
    {
      guint i = cache_chunks_find (&file->chunks, offset);
      gsize n = length;
      gboolean dropped;

      if (i < file->chunks.n && file->chunks.items[i].offset <= offset)
        {
          const CacheChunk *chunk = &file->chunks.items[i];

          n = MIN (length, chunk->offset + chunk->length - offset);
          if (!scratch)
            scratch = g_malloc (MAIL_BLOCK_SIZE);
          if (!same_as_chunk (file, i, offset, data, n, scratch, &dropped))
            return fail_differs (file, "the message is not what it was", error);
          if (dropped)
            continue;
        }
      else
        {
          if (i < file->chunks.n)
            n = MIN (length, file->chunks.items[i].offset - offset);
          store (file, offset, data, n);
        }
      offset += n;
      data += n;
      length -= n;
    }
  return TRUE;
}

static gboolean
set_end_locked (MailCacheFile *file, guint64 end, GError **error)
{
  /* With what lies behind the end goes the chunk that crosses it: its CRC covers both halves. */
  guint first = cache_chunks_find (&file->chunks, end);

  if (file->end_known && file->end != end)
    return fail_differs (file, "the message has another length than it had", error);
  if (file->end_known && file->footer_stored)
    return TRUE;
  while (file->chunks.n > first)
    drop_chunk (file, file->chunks.n - 1);
  file->end_known = TRUE;
  file->end = end;
  if ((end > 0 && file->fd < 0) || !open_for_writing (file) || !cache_footer_strip (file))
    return TRUE;
  if (file->extent > end)
    {
      if (ftruncate (file->fd, end) < 0)
        return fail_differs (file, "the cache file cannot be cut", error);
      file->extent = end;
    }
  if (cache_file_is_whole (file) && file->chunks.memory == 0 && !cache_footer_store (file))
    cache_disk_failed (file->cache, errno);
  return TRUE;
}

/* Unlocks, and does what must be done without the lock. */
static void
end_write (MailCacheFile *file)
{
  cache_file_account (file);
  pthread_mutex_unlock (&file->lock);
  cache_trim_memory (file->cache);
  cache_throttle (file->cache);
}

gboolean
mail_cache_file_write (MailCacheFile *file, guint64 offset, const void *data, gsize length,
                       GError **error)
{
  gboolean ok;

  pthread_mutex_lock (&file->lock);
  cache_file_load (file, FALSE);
  ok = write_locked (file, offset, data, length, error);
  end_write (file);
  return ok;
}

gboolean
mail_cache_file_set_end (MailCacheFile *file, guint64 end, GError **error)
{
  gboolean ok;

  pthread_mutex_lock (&file->lock);
  cache_file_load (file, FALSE);
  ok = set_end_locked (file, end, error);
  end_write (file);
  return ok;
}

/* A new file, bytes and footer in one call. FALSE: nothing was done. */
static gboolean
write_new (MailCacheFile *file, const guint8 *data, gsize length)
{
  guint8 short_footer[CACHE_TRAILER_BYTES + 16 * CACHE_CHUNK_BYTES];
  g_autofree guint8 *long_footer = NULL;
  guint8 *footer = short_footer;
  CacheFooter head = { TRUE, length, length, 0 };
  struct iovec parts[2];
  gsize footer_length;

  if (!cache_file_is_empty (file) || !open_for_writing (file) || file->extent > 0)
    return FALSE;
  cache_chunks_add (&file->chunks, 0, data, length, FALSE, 0);
  footer_length = cache_footer_length (file->chunks.n);
  if (footer_length > sizeof short_footer)
    footer = long_footer = g_malloc (footer_length);
  cache_footer_pack (&file->key, &head, &file->chunks, footer);
  parts[0] = (struct iovec) { (void *)data, length };
  parts[1] = (struct iovec) { footer, footer_length };
  if (pwritev (file->fd, parts, 2, 0) != (gssize)(length + footer_length))
    {
      /* Once more, slowly, by the way that knows what to do with errors. */
      cache_chunks_clear (&file->chunks);
      if (ftruncate (file->fd, 0) < 0)
        close_fd (&file->fd);
      return FALSE;
    }
  cache_disk_worked (file->cache);
  file->end_known = TRUE;
  file->end = file->extent = length;
  file->footer_stored = TRUE;
  file->mtime = cache_now () / G_USEC_PER_SEC;
  return TRUE;
}

gboolean
mail_cache_file_write_whole (MailCacheFile *file, const void *data, gsize length, GError **error)
{
  gboolean ok;

  pthread_mutex_lock (&file->lock);
  cache_file_load (file, cache_disk_usable (file->cache));
  ok = write_new (file, data, length)
       || (write_locked (file, 0, data, length, error) && set_end_locked (file, length, error));
  end_write (file);
  return ok;
}

void
mail_cache_file_clear (MailCacheFile *file)
{
  pthread_mutex_lock (&file->lock);
  cache_file_load (file, FALSE);
  cache_file_drop_all (file);
  pthread_mutex_unlock (&file->lock);
}

/* --- memory
 * ---------------------------------------------------------------------------------------------- */

static gboolean
drop_oldest_memory (MailCacheFile *file)
{
  guint oldest = G_MAXUINT;

  for (guint i = 0; i < file->chunks.n; i++)
    {
      const CacheChunk *chunk = &file->chunks.items[i];
      if (chunk->in_memory && (oldest == G_MAXUINT || chunk->age < file->chunks.items[oldest].age))
        oldest = i;
    }
  if (oldest == G_MAXUINT)
    return FALSE;
  drop_chunk (file, oldest);
  return TRUE;
}

static gboolean
over_memory_budget (MailCache *cache)
{
  gboolean over;

  pthread_mutex_lock (&cache->lock);
  over = cache->memory_used > CACHE_MEMORY_BUDGET;
  pthread_mutex_unlock (&cache->lock);
  return over;
}

void
cache_trim_memory (MailCache *cache)
{
  for (;;)
    {
      MailCacheFile *file = NULL;

      pthread_mutex_lock (&cache->lock);
      if (cache->memory_used > CACHE_MEMORY_BUDGET && cache->memory_files.head)
        {
          file = cache->memory_files.head->data;
          cache_file_ref_locked (file);
        }
      pthread_mutex_unlock (&cache->lock);
      if (!file)
        return;

      pthread_mutex_lock (&file->lock);
      while (over_memory_budget (cache))
        if (!drop_oldest_memory (file))
          {
            leave_memory_files (file);
            break;
          }
      pthread_mutex_unlock (&file->lock);
      mail_cache_file_unref (file);
    }
}
