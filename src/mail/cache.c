/* SPDX-License-Identifier: MIT
 *
 * MailCache: the table of files in hand, and what concerns more than one file: opening and closing
 * the cache, removing, moving and copying messages. Files nobody holds stay open in the order of
 * their use, up to a limit; the one closed first gets its footer then. Any thread.
 */
#include "cache-private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

gint64
cache_now (void)
{
  struct timespec now;

  clock_gettime (CLOCK_REALTIME_COARSE, &now);
  return (gint64)now.tv_sec * G_USEC_PER_SEC + now.tv_nsec / 1000;
}

/* --- tables
 * ------------------------------------------------------------------------------------------ */

static guint
key_hash (gconstpointer data)
{
  const CacheKey *key = data;

  return (key->uid * 2 + key->variant) * 2654435761u ^ key->content_id * 40503u;
}

static gboolean
key_equal (gconstpointer a, gconstpointer b)
{
  const CacheKey *x = a, *y = b;

  return x->uid == y->uid && x->content_id == y->content_id && x->variant == y->variant;
}

static guint
bucket_hash (gconstpointer data)
{
  const CacheBucket *bucket = data;

  return bucket->number * 2654435761u ^ bucket->content_id * 40503u;
}

static gboolean
bucket_equal (gconstpointer a, gconstpointer b)
{
  const CacheBucket *x = a, *y = b;

  return x->content_id == y->content_id && x->number == y->number;
}

CacheBucket *
cache_bucket_get (MailCache *cache, guint32 content_id, guint32 number)
{
  CacheBucket wanted = { .content_id = content_id, .number = number };
  CacheBucket *bucket = g_hash_table_lookup (cache->buckets, &wanted);

  if (!bucket)
    {
      bucket = g_new0 (CacheBucket, 1);
      bucket->content_id = content_id;
      bucket->number = number;
      bucket->dir_fd = -1;
      bucket->dir_link.data = bucket;
      g_hash_table_add (cache->buckets, bucket);
    }
  return bucket;
}

void
cache_bucket_free (CacheBucket *bucket)
{
  g_free (bucket->present);
  g_free (bucket);
}

void
cache_bucket_release (CacheBucket *bucket)
{
  bucket->n_files--;
  if (bucket->dropped && bucket->n_files == 0)
    cache_bucket_free (bucket);
}

static MailCacheFile *
new_file (MailCache *cache, const CacheKey *key)
{
  MailCacheFile *file = g_new0 (MailCacheFile, 1);

  file->cache = cache;
  file->key = *key;
  file->bucket = cache_bucket_get (cache, key->content_id, key->uid >> CACHE_BUCKET_SHIFT);
  file->bucket->n_files++;
  file->unused_link.data = file;
  file->memory_link.data = file;
  file->fd = file->memory_fd = -1;
  pthread_mutex_init (&file->lock, NULL);
  pthread_cond_init (&file->unpinned, NULL);
  cache_chunks_init (&file->chunks);
  g_hash_table_insert (cache->files, &file->key, file);
  return file;
}

void
cache_file_ref_locked (MailCacheFile *file)
{
  if (file->in_unused)
    g_queue_unlink (&file->cache->unused, &file->unused_link);
  file->in_unused = FALSE;
  file->refs++;
}

MailCacheFile *
cache_file_get_locked (MailCache *cache, const CacheKey *key)
{
  MailCacheFile *file = g_hash_table_lookup (cache->files, key);

  if (!file)
    file = new_file (cache, key);
  cache_file_ref_locked (file);
  return file;
}

/* Takes the file out of the accounts: what it has on disk is idle now, or gone with its name. */
static void
end_live (MailCacheFile *file, gboolean keeps_name)
{
  MailCache *cache = file->cache;
  CacheBucket *bucket = file->bucket;

  if (!file->live)
    return;
  file->live = FALSE;
  bucket->live -= file->charge;
  if (keeps_name && bucket->counted)
    bucket->idle += file->charge;
  else
    cache->used -= file->charge;
  bucket->touched = TRUE;
  if (!bucket->counted && cache->scanned)
    cache_bucket_queue_locked (cache, bucket);
}

void
cache_file_detach_locked (MailCacheFile *file)
{
  if (g_atomic_int_get (&file->detached))
    return;
  g_hash_table_remove (file->cache->files, &file->key);
  end_live (file, FALSE);
  g_atomic_int_set (&file->detached, TRUE);
}

/* The last reference is gone: nobody may find the file any more, in no list either. */
static void
retire_locked (MailCacheFile *file)
{
  MailCache *cache = file->cache;

  if (!g_atomic_int_get (&file->detached))
    {
      g_hash_table_remove (cache->files, &file->key);
      end_live (file, TRUE);
    }
  cache->memory_used -= file->chunks.memory;
  if (file->in_memory_files)
    g_queue_unlink (&cache->memory_files, &file->memory_link);
  cache_bucket_release (file->bucket);
}

static void
free_file (MailCacheFile *file)
{
  if (file->fd >= 0)
    close (file->fd);
  if (file->memory_fd >= 0)
    close (file->memory_fd);
  cache_chunks_clear (&file->chunks);
  pthread_cond_destroy (&file->unpinned);
  pthread_mutex_destroy (&file->lock);
  g_free (file);
}

/* With refs 0 and the cache's lock: what is on disk is complete without us. */
static gboolean
can_go (const MailCacheFile *file)
{
  return file->fd < 0 || file->footer_stored;
}

static gboolean
wants_touch (const MailCacheFile *file)
{
  return file->was_read && file->fd >= 0
         && file->used_at / G_USEC_PER_SEC - file->mtime > CACHE_TOUCH_SECONDS;
}

gboolean
cache_close_oldest (MailCache *cache)
{
  MailCacheFile *file;

  pthread_mutex_lock (&cache->lock);
  if (!cache->unused.head)
    {
      pthread_mutex_unlock (&cache->lock);
      return FALSE;
    }
  file = cache->unused.head->data;
  if (can_go (file) && !wants_touch (file))
    {
      g_queue_unlink (&cache->unused, &file->unused_link);
      retire_locked (file);
      pthread_mutex_unlock (&cache->lock);
      free_file (file);
      return TRUE;
    }
  /* It must stay in the table while its footer is written, so that nobody opens it half done. The
   * lock is not waited for: this may run with another file's lock. */
  cache_file_ref_locked (file);
  pthread_mutex_unlock (&cache->lock);
  if (pthread_mutex_trylock (&file->lock) == 0)
    {
      cache_file_finish (file);
      pthread_mutex_unlock (&file->lock);
    }
  pthread_mutex_lock (&cache->lock);
  if (--file->refs == 0 && (g_atomic_int_get (&file->detached) || can_go (file)))
    retire_locked (file);
  else
    {
      if (file->refs == 0)
        {
          g_queue_push_tail_link (&cache->unused, &file->unused_link);
          file->in_unused = TRUE;
        }
      file = NULL;
    }
  pthread_mutex_unlock (&cache->lock);
  if (file)
    free_file (file);
  return TRUE;
}

MailCacheFile *
mail_cache_get (MailCache *cache, guint32 content_id, guint32 uid, guint variant)
{
  const CacheKey key = { content_id, uid, variant != 0 };
  MailCacheFile *file;

  pthread_mutex_lock (&cache->lock);
  file = cache_file_get_locked (cache, &key);
  file->used_at = file->bucket->used_at = cache_now ();
  pthread_mutex_unlock (&cache->lock);
  return file;
}

MailCacheFile *
mail_cache_peek (MailCache *cache, guint32 content_id, guint32 uid, guint variant)
{
  g_autoptr (MailCacheFile) file = mail_cache_get (cache, content_id, uid, variant);
  gboolean empty;

  pthread_mutex_lock (&file->lock);
  cache_file_load (file, FALSE);
  empty = cache_file_is_empty (file);
  pthread_mutex_unlock (&file->lock);
  return empty ? NULL : g_steal_pointer (&file);
}

MailCacheFile *
mail_cache_file_ref (MailCacheFile *file)
{
  pthread_mutex_lock (&file->cache->lock);
  cache_file_ref_locked (file);
  pthread_mutex_unlock (&file->cache->lock);
  return file;
}

void
mail_cache_file_unref (MailCacheFile *file)
{
  MailCache *cache = file->cache;
  gboolean crowded;

  pthread_mutex_lock (&cache->lock);
  if (--file->refs > 0)
    {
      pthread_mutex_unlock (&cache->lock);
      return;
    }
  if (g_atomic_int_get (&file->detached) || (file->fd < 0 && file->memory_fd < 0))
    {
      retire_locked (file);
      pthread_mutex_unlock (&cache->lock);
      free_file (file);
      return;
    }
  g_queue_push_tail_link (&cache->unused, &file->unused_link);
  file->in_unused = TRUE;
  if (!can_go (file) && !cache->has_dirty)
    {
      cache->has_dirty = TRUE;
      cache_reclaim_wake_locked (cache);
    }
  crowded = cache->unused.length > cache->max_unused;
  pthread_mutex_unlock (&cache->lock);
  if (crowded)
    cache_close_oldest (cache);
}

guint64
mail_cache_used (MailCache *cache)
{
  guint64 used;

  pthread_mutex_lock (&cache->lock);
  used = cache->used;
  pthread_mutex_unlock (&cache->lock);
  return used;
}

/* --- opening and closing
 * --------------------------------------------------------------------------------- */

static int
open_sub_dir (int dir_fd, const char *name)
{
  if (mkdirat (dir_fd, name, 0700) < 0 && errno != EEXIST && errno != EROFS)
    return -1;
  return openat (dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static void
free_cache (MailCache *cache)
{
  if (cache->data_fd >= 0)
    close (cache->data_fd);
  if (cache->trash_fd >= 0)
    close (cache->trash_fd);
  g_hash_table_unref (cache->files);
  g_hash_table_unref (cache->buckets);
  g_queue_clear (&cache->uncounted);
  pthread_mutex_destroy (&cache->lock);
  pthread_mutex_destroy (&cache->evict_lock);
  pthread_cond_destroy (&cache->work);
  g_free (cache->dir);
  g_free (cache);
}

static MailCache *
new_cache (const char *dir, guint64 budget)
{
  MailCache *cache = g_new0 (MailCache, 1);
  pthread_condattr_t monotonic;
  struct rlimit limit = { .rlim_cur = 1024 };

  getrlimit (RLIMIT_NOFILE, &limit);
  cache->dir = g_strdup (dir);
  cache->budget = budget;
  cache->max_unused = CLAMP (limit.rlim_cur / 2, 16, 4096);
  cache->max_dirs = CLAMP (limit.rlim_cur / 16, 8, 64);
  cache->data_fd = cache->trash_fd = -1;
  cache->files = g_hash_table_new (key_hash, key_equal);
  cache->buckets = g_hash_table_new (bucket_hash, bucket_equal);
  pthread_mutex_init (&cache->lock, NULL);
  pthread_mutex_init (&cache->evict_lock, NULL);
  pthread_condattr_init (&monotonic);
  pthread_condattr_setclock (&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init (&cache->work, &monotonic);
  pthread_condattr_destroy (&monotonic);
  return cache;
}

MailCache *
mail_cache_open (const char *dir, guint64 budget, GError **error)
{
  MailCache *cache;
  int dir_fd = open (dir, O_PATH | O_DIRECTORY | O_CLOEXEC);

  if (dir_fd < 0)
    return mail_set_errno (error, errno, dir), NULL;
  cache = new_cache (dir, budget);
  cache->data_fd = open_sub_dir (dir_fd, "data");
  if (cache->data_fd >= 0)
    cache->trash_fd = open_sub_dir (dir_fd, "trash");
  /* A full disk that was never used before: messages stay in memory. */
  if (cache->data_fd < 0 || cache->trash_fd < 0)
    cache_disk_failed (cache, errno);
  close (dir_fd);
  if (!cache_reclaim_start (cache))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_FAILED, "%s: no thread for the cache", dir);
      free_cache (cache);
      return NULL;
    }
  return cache;
}

void
mail_cache_close (MailCache *cache)
{
  GHashTableIter iter;
  gpointer bucket;

  if (!cache)
    return;
  cache_reclaim_stop (cache);
  while (cache_close_oldest (cache))
    ;
  if (g_hash_table_size (cache->files) > 0)
    {
      /* Somebody's mistake; their references must not become wild pointers. */
      mail_log_warning ("cache %s: %u files still in use", cache->dir,
                        g_hash_table_size (cache->files));
      return;
    }
  g_hash_table_iter_init (&iter, cache->buckets);
  while (g_hash_table_iter_next (&iter, &bucket, NULL))
    {
      if (((CacheBucket *)bucket)->dir_fd >= 0)
        close (((CacheBucket *)bucket)->dir_fd);
      cache_bucket_free (bucket);
    }
  free_cache (cache);
}

/* --- one message
 * --------------------------------------------------------------------------------------------- */

/* No name any more; the bytes stay for those who hold the file. Under the file's lock. */
static void
remove_name (MailCacheFile *file)
{
  cache_file_load (file, FALSE);
  if (file->fd >= 0)
    cache_file_unlink (file);
  pthread_mutex_lock (&file->cache->lock);
  cache_file_detach_locked (file);
  pthread_mutex_unlock (&file->cache->lock);
}

void
mail_cache_remove (MailCache *cache, guint32 content_id, guint32 uid)
{
  for (guint variant = 0; variant < CACHE_VARIANTS; variant++)
    {
      g_autoptr (MailCacheFile) file = mail_cache_get (cache, content_id, uid, variant);

      pthread_mutex_lock (&file->lock);
      remove_name (file);
      pthread_mutex_unlock (&file->lock);
    }
}

static gboolean
rename_on_disk (MailCacheFile *from, MailCacheFile *to)
{
  char name[CACHE_NAME_BYTES], new_name[CACHE_NAME_BYTES];
  int dir_fd, new_dir_fd;
  gboolean ok = FALSE;

  cache_file_name (&from->key, name);
  cache_file_name (&to->key, new_name);
  dir_fd = cache_dir_acquire (from->cache, from->bucket, FALSE);
  if (dir_fd < 0)
    return FALSE;
  new_dir_fd = cache_dir_acquire (to->cache, to->bucket, TRUE);
  if (new_dir_fd >= 0)
    {
      ok = renameat (dir_fd, name, new_dir_fd, new_name) == 0;
      if (ok)
        {
          cache_file_set_present (from, FALSE);
          cache_file_set_present (to, TRUE);
        }
      cache_dir_release (to->cache, to->bucket);
    }
  cache_dir_release (from->cache, from->bucket);
  return ok;
}

/* Gives to what from has on disk. from goes on reading the same bytes, without a name. */
static void
take_bytes (MailCacheFile *from, MailCacheFile *to)
{
  int fd;

  if (!rename_on_disk (from, to))
    return;
  fd = fcntl (from->fd, F_DUPFD_CLOEXEC, 0);
  if (fd < 0)
    {
      cache_file_unlink (to);
      return;
    }
  to->fd = fd;
  to->read_only = from->read_only;
  to->extent = from->extent;
  to->end_known = from->end_known;
  to->end = from->end;
  cache_chunks_clear (&to->chunks);
  cache_chunks_copy_disk (&to->chunks, &from->chunks);
  /* The footer names the message: the old one is no good. A partial file gets its own later. */
  to->footer_stored = from->footer_stored;
  if (!cache_footer_strip (to) || (cache_file_is_whole (to) && !cache_footer_store (to)))
    cache_file_drop_all (to);
  cache_file_account (to);
}

/* Whether it is worth replacing what to has. An empty message is whole without a byte. */
static gboolean
has_more_on_disk (const MailCacheFile *from, const MailCacheFile *to)
{
  guint64 on_disk = from->chunks.held - from->chunks.memory;

  if (from->fd < 0 || cache_file_is_whole (to))
    return FALSE;
  return on_disk > to->chunks.held || (cache_file_is_whole (from) && from->end == 0);
}

/* Both locks, in the order that everybody takes them. */
static void
lock_two (MailCacheFile *a, MailCacheFile *b)
{
  pthread_mutex_lock (a < b ? &a->lock : &b->lock);
  pthread_mutex_lock (a < b ? &b->lock : &a->lock);
}

void
mail_cache_move (MailCache *cache, guint32 content_id, guint32 uid, guint32 new_content_id,
                 guint32 new_uid)
{
  if (content_id == new_content_id && uid == new_uid)
    return;
  for (guint variant = 0; variant < CACHE_VARIANTS; variant++)
    {
      g_autoptr (MailCacheFile) from = mail_cache_peek (cache, content_id, uid, variant);
      g_autoptr (MailCacheFile) to = NULL;

      if (!from)
        continue;
      to = mail_cache_get (cache, new_content_id, new_uid, variant);
      lock_two (from, to);
      cache_file_load (to, FALSE);
      if (has_more_on_disk (from, to))
        {
          cache_file_drop_all (to);
          take_bytes (from, to);
        }
      remove_name (from);
      pthread_mutex_unlock (&from->lock);
      pthread_mutex_unlock (&to->lock);
    }
}

static gboolean
copy_bytes (MailCacheFile *from, MailCacheFile *to, guint64 end)
{
  const gsize piece = 1 << 20;
  g_autofree guint8 *data = g_malloc (MIN (piece, MAX (end, 1)));

  if (end <= piece)
    return mail_cache_file_read (from, 0, data, end, NULL) == (gssize)end
           && mail_cache_file_write_whole (to, data, end, NULL);
  for (guint64 at = 0; at < end; at += piece)
    {
      gssize n = mail_cache_file_read (from, at, data, piece, NULL);
      if (n <= 0 || !mail_cache_file_write (to, at, data, n, NULL))
        return FALSE;
    }
  return mail_cache_file_set_end (to, end, NULL);
}

void
mail_cache_copy (MailCache *cache, guint32 content_id, guint32 uid, guint32 new_content_id,
                 guint32 new_uid)
{
  if (content_id == new_content_id && uid == new_uid)
    return;
  for (guint variant = 0; variant < CACHE_VARIANTS; variant++)
    {
      g_autoptr (MailCacheFile) from = mail_cache_peek (cache, content_id, uid, variant);
      g_autoptr (MailCacheFile) to = NULL;
      guint64 end;

      if (!from || !mail_cache_file_end (from, &end) || !mail_cache_file_has (from, 0, end))
        continue;
      to = mail_cache_get (cache, new_content_id, new_uid, variant);
      copy_bytes (from, to, end);
    }
}
