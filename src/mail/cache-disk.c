/* SPDX-License-Identifier: MIT
 *
 * The cache's directories and the outside of its files: names, opening, footers, and whether the
 * disk can be used at all. Names are made of our own numbers only, and nothing is followed: no link
 * and no path with more than one component. Any thread.
 */
#include "cache-private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *
put_hex (char *p, guint32 value)
{
  int shift = 28;

  while (shift > 0 && (value >> shift & 0xf) == 0)
    shift -= 4;
  for (; shift >= 0; shift -= 4)
    *p++ = "0123456789abcdef"[value >> shift & 0xf];
  *p = '\0';
  return p;
}

void
cache_file_name (const CacheKey *key, char name_out[CACHE_NAME_BYTES])
{
  char *p = put_hex (name_out, key->uid);

  if (key->variant)
    memcpy (p, ".lf", 4);
}

static const char *
get_hex (const char *text, guint32 *value_out)
{
  const char *p = text;
  guint32 value = 0;

  for (; g_ascii_isxdigit (*p) && !g_ascii_isupper (*p) && p - text < 8; p++)
    value = value << 4 | g_ascii_xdigit_value (*p);
  if (p == text || (*text == '0' && p - text > 1))
    return NULL;
  *value_out = value;
  return p;
}

gboolean
cache_parse_hex (const char *text, guint32 *value_out)
{
  const char *rest = get_hex (text, value_out);

  return rest && *rest == '\0';
}

gboolean
cache_parse_name (const char *name, guint32 *uid_out, guint *variant_out)
{
  const char *rest = get_hex (name, uid_out);

  if (!rest)
    return FALSE;
  *variant_out = *rest != '\0';
  return *rest == '\0' || strcmp (rest, ".lf") == 0;
}

gboolean
cache_pread_all (int fd, void *buffer, gsize length, guint64 offset)
{
  while (length > 0)
    {
      gssize n = pread (fd, buffer, length, offset);

      if (n < 0 && errno == EINTR)
        continue;
      if (n <= 0)
        return FALSE;
      buffer = (guint8 *)buffer + n;
      offset += n;
      length -= n;
    }
  return TRUE;
}

gboolean
cache_pwrite_all (int fd, const void *data, gsize length, guint64 offset)
{
  while (length > 0)
    {
      gssize n = pwrite (fd, data, length, offset);

      if (n < 0 && errno == EINTR)
        continue;
      if (n == 0)
        errno = ENOSPC;
      if (n <= 0)
        return FALSE;
      data = (const guint8 *)data + n;
      offset += n;
      length -= n;
    }
  return TRUE;
}

/* --- directories
 * ---------------------------------------------------------------------------------- */

/* *made_out is set when the directory did not exist before. */
static int
open_dir (int parent_fd, guint32 number, gboolean create, gboolean *made_out)
{
  const int flags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
  char name[CACHE_NAME_BYTES];
  int fd;

  put_hex (name, number);
  fd = openat (parent_fd, name, flags);
  if (fd >= 0 || errno != ENOENT || !create)
    return fd;
  if (mkdirat (parent_fd, name, 0700) == 0)
    *made_out = TRUE;
  else if (errno != EEXIST)
    return -1;
  return openat (parent_fd, name, flags);
}

static int
open_bucket (MailCache *cache, const CacheBucket *bucket, gboolean create, gboolean *made_out)
{
  gboolean made_parent = FALSE;
  int parent_fd = open_dir (cache->data_fd, bucket->content_id, create, &made_parent);
  int fd, saved_errno;

  if (parent_fd < 0)
    return -1;
  fd = open_dir (parent_fd, bucket->number, create, made_out);
  saved_errno = errno;
  close (parent_fd);
  errno = saved_errno;
  return fd;
}

static void
close_dir_locked (MailCache *cache, CacheBucket *bucket)
{
  close (bucket->dir_fd);
  bucket->dir_fd = -1;
  g_queue_unlink (&cache->dirs, &bucket->dir_link);
}

static void
keep_dir_locked (MailCache *cache, CacheBucket *bucket, int fd)
{
  GList *next;

  bucket->dir_fd = fd;
  g_queue_push_tail_link (&cache->dirs, &bucket->dir_link);
  for (GList *l = cache->dirs.head; l && cache->dirs.length > cache->max_dirs; l = next)
    {
      CacheBucket *other = l->data;
      next = l->next;
      if (other->dir_users == 0 && other != bucket)
        close_dir_locked (cache, other);
    }
}

DIR *
cache_open_list (int parent_fd, const char *name)
{
  int fd = openat (parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  DIR *dir = fd < 0 ? NULL : fdopendir (fd);

  if (!dir && fd >= 0)
    close (fd);
  return dir;
}

int
cache_dir_acquire (MailCache *cache, CacheBucket *bucket, gboolean create)
{
  gboolean made = FALSE;
  int fd = -1;

  pthread_mutex_lock (&cache->lock);
  if (bucket->dir_fd < 0 && !bucket->dropped)
    {
      pthread_mutex_unlock (&cache->lock);
      fd = open_bucket (cache, bucket, create, &made);
      if (fd < 0)
        return -1;
      pthread_mutex_lock (&cache->lock);
      if (bucket->dir_fd < 0 && !bucket->dropped)
        {
          keep_dir_locked (cache, bucket, fd);
          fd = -1;
          /* What we made ourselves holds nothing that must be counted. */
          if (made && !bucket->touched && !bucket->counted)
            bucket->counted = TRUE;
        }
    }
  if (fd >= 0)
    close (fd);
  fd = bucket->dropped ? -1 : bucket->dir_fd;
  if (fd >= 0)
    {
      bucket->dir_users++;
      if (cache->dirs.tail != &bucket->dir_link)
        {
          g_queue_unlink (&cache->dirs, &bucket->dir_link);
          g_queue_push_tail_link (&cache->dirs, &bucket->dir_link);
        }
    }
  pthread_mutex_unlock (&cache->lock);
  if (fd < 0)
    errno = ENOENT;
  return fd;
}

void
cache_dir_release (MailCache *cache, CacheBucket *bucket)
{
  int saved_errno = errno;

  pthread_mutex_lock (&cache->lock);
  bucket->dir_users--;
  if (bucket->dropped && bucket->dir_users == 0 && bucket->dir_fd >= 0)
    close_dir_locked (cache, bucket);
  pthread_mutex_unlock (&cache->lock);
  errno = saved_errno;
}

void
cache_dir_invalidate (MailCache *cache, CacheBucket *bucket)
{
  pthread_mutex_lock (&cache->lock);
  if (bucket->dir_fd >= 0 && bucket->dir_users == 0)
    close_dir_locked (cache, bucket);
  pthread_mutex_unlock (&cache->lock);
}

/* --- files
 * ------------------------------------------------------------------------------------------ */

static int
open_once (MailCacheFile *file, int create, gboolean *read_only_out)
{
  MailCache *cache = file->cache;
  const int flags = O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;
  char name[CACHE_NAME_BYTES];
  int fd, dir_fd, saved_errno;

  *read_only_out = FALSE;
  dir_fd = cache_dir_acquire (cache, file->bucket, create != 0);
  if (dir_fd < 0)
    return -1;
  cache_file_name (&file->key, name);
  fd = openat (dir_fd, name, O_RDWR | create | flags, 0600);
  if (fd < 0 && create == 0 && (errno == EROFS || errno == EACCES || errno == EPERM))
    {
      fd = openat (dir_fd, name, O_RDONLY | flags);
      *read_only_out = TRUE;
    }
  saved_errno = errno;
  cache_dir_release (cache, file->bucket);
  errno = saved_errno;
  return fd;
}

int
cache_file_open (MailCacheFile *file, gboolean create, gboolean *read_only_out, gboolean *made_out)
{
  gboolean present = cache_file_is_present (file);

  *made_out = FALSE;
  if (!present && !create)
    {
      errno = ENOENT;
      return -1;
    }
  for (guint tries = 0;; tries++)
    {
      int fd = open_once (file, !create ? 0 : present ? O_CREAT : O_CREAT | O_EXCL, read_only_out);

      if (fd >= 0 && create && !present)
        {
          *made_out = TRUE;
          cache_file_set_present (file, TRUE);
        }
      if (fd >= 0 || tries == 8)
        return fd;
      if (errno == EEXIST)
        present = TRUE;
      else if (errno == ENOENT && create && tries < 3)
        cache_dir_invalidate (file->cache, file->bucket); /* eviction removed an empty directory */
      else if ((errno != EMFILE && errno != ENFILE) || !cache_close_oldest (file->cache))
        return -1;
    }
}

void
cache_file_unlink (MailCacheFile *file)
{
  char name[CACHE_NAME_BYTES];
  int dir_fd;

  if (g_atomic_int_get (&file->detached))
    return;
  dir_fd = cache_dir_acquire (file->cache, file->bucket, FALSE);
  if (dir_fd < 0)
    return;
  cache_file_name (&file->key, name);
  if (unlinkat (dir_fd, name, 0) == 0 || errno == ENOENT)
    cache_file_set_present (file, FALSE);
  else
    mail_log_warning ("cache file %x/%s: %s", file->key.content_id, name, g_strerror (errno));
  cache_dir_release (file->cache, file->bucket);
}

/* --- footers
 * ----------------------------------------------------------------------------------------- */

gboolean
cache_footer_load (int fd, const CacheKey *key, const struct stat *st, CacheFooter *footer_out,
                   CacheChunks *chunks_out)
{
  guint8 tail[512]; /* the whole footer of nearly all messages */
  g_autofree guint8 *long_footer = NULL;
  guint64 size = st->st_size;
  gsize n = MIN (size, sizeof tail), length;
  const guint8 *data;

  if (!S_ISREG (st->st_mode) || size < CACHE_TRAILER_BYTES
      || !cache_pread_all (fd, tail, n, size - n)
      || !cache_footer_peek (key, tail + n - CACHE_TRAILER_BYTES, size, footer_out))
    return FALSE;
  length = cache_footer_length (footer_out->n_chunks);
  data = tail + n - MIN (length, n);
  if (length > n)
    {
      data = long_footer = g_malloc (length);
      if (!cache_pread_all (fd, long_footer, length, footer_out->extent))
        return FALSE;
    }
  if (cache_footer_unpack (footer_out, data, chunks_out))
    return TRUE;
  cache_chunks_clear (chunks_out);
  return FALSE;
}

guint64
cache_charge_unknown (const struct stat *st)
{
  guint64 length = ((guint64)st->st_size + 4095) & ~(guint64)4095;
  guint64 blocks = (guint64)st->st_blocks * 512;

  /* Sparse, while parts are missing; 0 on filesystems that do not say. */
  return blocks > 0 && blocks < length ? blocks : length;
}

guint64
cache_charge_found (int dir_fd, const char *name, const CacheKey *key, const struct stat *st)
{
  guint64 charge = cache_charge_unknown (st);
  CacheFooter footer;
  CacheChunks chunks;
  int fd;

  /* Without holes the length says it all; with some the footer knows. */
  if (charge >= (guint64)st->st_size)
    return charge;
  fd = openat (dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    return charge;
  cache_chunks_init (&chunks);
  if (cache_footer_load (fd, key, st, &footer, &chunks))
    charge = cache_chunks_charge (&chunks, footer.extent);
  cache_chunks_clear (&chunks);
  close (fd);
  return charge;
}

gboolean
cache_footer_store (MailCacheFile *file)
{
  CacheFooter footer = cache_file_footer (file);
  g_autofree guint8 *data = NULL;

  if (file->chunks.n > CACHE_MAX_CHUNKS)
    {
      errno = EFBIG;
      return FALSE;
    }
  data = g_malloc (cache_footer_length (file->chunks.n));
  if (!cache_pwrite_all (file->fd, data,
                         cache_footer_pack (&file->key, &footer, &file->chunks, data),
                         file->extent))
    return FALSE;
  file->footer_stored = TRUE;
  file->mtime = cache_now () / G_USEC_PER_SEC;
  return TRUE;
}

gboolean
cache_footer_strip (MailCacheFile *file)
{
  if (file->read_only)
    {
      errno = EROFS;
      return FALSE;
    }
  /* Without a name it may share its bytes with the file they were moved to. */
  if (file->footer_stored && !g_atomic_int_get (&file->detached)
      && ftruncate (file->fd, file->extent) < 0)
    return FALSE;
  file->footer_stored = FALSE;
  return TRUE;
}

/* --- a disk that fails
 * --------------------------------------------------------------------------------- */

static gint
monotonic_seconds (void)
{
  return g_get_monotonic_time () / G_USEC_PER_SEC;
}

gboolean
cache_disk_usable (MailCache *cache)
{
  gint retry_at = g_atomic_int_get (&cache->retry_at);

  return retry_at == 0 || monotonic_seconds () >= retry_at;
}

void
cache_disk_failed (MailCache *cache, int error_number)
{
  /* Too many open files, or no memory: it is us, not the disk. */
  if (error_number == EMFILE || error_number == ENFILE || error_number == ENOMEM)
    return;
  g_atomic_int_set (&cache->retry_at, monotonic_seconds () + CACHE_RETRY_SECONDS);
  if (g_atomic_int_compare_and_exchange (&cache->disk_failing, FALSE, TRUE))
    mail_log_warning ("cache %s: %s; keeping %u MiB of messages in memory", cache->dir,
                      g_strerror (error_number), CACHE_MEMORY_BUDGET >> 20);
}

void
cache_disk_worked (MailCache *cache)
{
  if (g_atomic_int_get (&cache->disk_failing)
      && g_atomic_int_compare_and_exchange (&cache->disk_failing, TRUE, FALSE))
    mail_log_info ("cache %s: can be written again", cache->dir);
}
