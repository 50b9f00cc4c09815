/* SPDX-License-Identifier: MIT
 *
 * Counting what is on disk, evicting what was used least recently, deleting whole mailboxes: the
 * cache's background thread. Accounting is by directory (CacheBucket): its idle bytes, known once
 * it has been counted, and those of files in hand, which account for themselves. Eviction takes the
 * directory that was used least recently, and in it the files in the order of their use. A writer
 * far ahead of this thread evicts by itself.
 */
#include "cache-private.h"

#include "mailfs/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define TRASH_DEPTH 4
#define FLUSH_SECONDS 5
#define STUCK_SECONDS 1
/* A directory in heavy use is counted when there is a moment of rest; after so many times as it is.
 */
#define MAX_COUNTS 100
#define COUNT_PAUSE 10000 /* microseconds */

void
cache_reclaim_wake_locked (MailCache *cache)
{
  pthread_cond_signal (&cache->work);
}

static gboolean
is_stopping (MailCache *cache)
{
  gboolean stopping;

  pthread_mutex_lock (&cache->lock);
  stopping = cache->stopping;
  pthread_mutex_unlock (&cache->lock);
  return stopping;
}

/* --- directories as lists
 * ------------------------------------------------------------------------------ */

typedef struct
{
  CacheKey key;
  guint64 charge;
  gint64 used_at;
} Entry;

static gboolean
is_dots (const char *name)
{
  return name[0] == '.' && (name[1] == '\0' || (name[1] == '.' && name[2] == '\0'));
}

/* Files of a bucket; NULL when the directory is not there. */
static GArray *
list_bucket (MailCache *cache, guint32 content_id, guint32 number)
{
  char path[2 * CACHE_NAME_BYTES];
  GArray *entries;
  struct dirent *d;
  DIR *dir;

  g_snprintf (path, sizeof path, "%x", content_id);
  int parent_fd = openat (cache->data_fd, path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (parent_fd < 0)
    return NULL;
  g_snprintf (path, sizeof path, "%x", number);
  dir = cache_open_list (parent_fd, path);
  close (parent_fd);
  if (!dir)
    return NULL;
  entries = g_array_new (FALSE, FALSE, sizeof (Entry));
  while ((d = readdir (dir)))
    {
      Entry entry = { .key.content_id = content_id };
      struct stat st;

      if (!cache_parse_name (d->d_name, &entry.key.uid, &entry.key.variant)
          || entry.key.uid >> CACHE_BUCKET_SHIFT != number
          || fstatat (dirfd (dir), d->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0
          || !S_ISREG (st.st_mode))
        continue;
      entry.charge = cache_charge_found (dirfd (dir), d->d_name, &entry.key, &st);
      entry.used_at = (gint64)st.st_mtim.tv_sec * G_USEC_PER_SEC + st.st_mtim.tv_nsec / 1000;
      g_array_append_val (entries, entry);
    }
  closedir (dir);
  return entries;
}

/* --- counting
 * --------------------------------------------------------------------------------------------- */

/* FALSE: files went out of hand meanwhile, once more. */
static gboolean
count_once (MailCache *cache, CacheBucket *bucket, gboolean last_try)
{
  g_autoptr (GArray) entries = NULL;
  guint64 idle = 0;
  gint64 used_at = 0;
  gboolean done;

  pthread_mutex_lock (&cache->lock);
  bucket->touched = FALSE;
  pthread_mutex_unlock (&cache->lock);
  entries = list_bucket (cache, bucket->content_id, bucket->number);

  pthread_mutex_lock (&cache->lock);
  for (guint i = 0; entries && i < entries->len; i++)
    {
      const Entry *entry = &g_array_index (entries, Entry, i);
      const MailCacheFile *file = g_hash_table_lookup (cache->files, &entry->key);

      used_at = MAX (used_at, entry->used_at);
      if (!file || !file->live)
        idle += entry->charge;
    }
  done = bucket->counted || bucket->dropped || !bucket->touched || last_try;
  if (done && !bucket->counted && !bucket->dropped)
    {
      bucket->counted = TRUE;
      bucket->idle = idle;
      bucket->used_at = MAX (bucket->used_at, used_at);
      cache->used += idle;
    }
  pthread_mutex_unlock (&cache->lock);
  return done;
}

void
cache_bucket_queue_locked (MailCache *cache, CacheBucket *bucket)
{
  if (bucket->queued || bucket->dropped)
    return;
  bucket->queued = TRUE;
  g_queue_push_tail (&cache->uncounted, bucket);
  cache_reclaim_wake_locked (cache);
}

/* bucket has one user more while this runs, given back here. */
static void
count_bucket (MailCache *cache, CacheBucket *bucket)
{
  for (guint tries = 1; !count_once (cache, bucket, tries == MAX_COUNTS); tries++)
    if (tries > 3 && !is_stopping (cache))
      g_usleep (COUNT_PAUSE);
  pthread_mutex_lock (&cache->lock);
  cache_bucket_release (bucket);
  pthread_mutex_unlock (&cache->lock);
}

static void
count_content (MailCache *cache, guint32 content_id, const char *name)
{
  DIR *dir = cache_open_list (cache->data_fd, name);
  struct dirent *d;
  guint32 number;

  while (dir && (d = readdir (dir)) && !is_stopping (cache))
    {
      CacheBucket *bucket;

      if (!cache_parse_hex (d->d_name, &number))
        continue;
      pthread_mutex_lock (&cache->lock);
      bucket = cache_bucket_get (cache, content_id, number);
      bucket->n_files++;
      pthread_mutex_unlock (&cache->lock);
      count_bucket (cache, bucket);
    }
  if (dir)
    closedir (dir);
}

static void
count_all (MailCache *cache)
{
  DIR *dir = cache->data_fd < 0 ? NULL : cache_open_list (cache->data_fd, ".");
  struct dirent *d;
  guint32 content_id;
  GHashTableIter iter;
  gpointer data;

  while (dir && (d = readdir (dir)) && !is_stopping (cache))
    if (cache_parse_hex (d->d_name, &content_id))
      count_content (cache, content_id, d->d_name);
  if (dir)
    closedir (dir);
  pthread_mutex_lock (&cache->lock);
  cache->scanned = TRUE;
  /* Directories that were made while we looked, in a race that left them uncounted. */
  g_hash_table_iter_init (&iter, cache->buckets);
  while (g_hash_table_iter_next (&iter, &data, NULL))
    if (!((CacheBucket *)data)->counted)
      cache_bucket_queue_locked (cache, data);
  pthread_mutex_unlock (&cache->lock);
}

/* --- evicting
 * ------------------------------------------------------------------------------------------------
 */

static int
compare_used_at (gconstpointer a, gconstpointer b)
{
  const Entry *x = a, *y = b;

  return x->used_at < y->used_at ? -1 : x->used_at > y->used_at;
}

/* The bucket to take from, with one user more; NULL: nothing left. Under the lock. */
static CacheBucket *
choose_bucket_locked (MailCache *cache)
{
  CacheBucket *best = NULL, *bucket;
  GHashTableIter iter;
  gpointer data;

  g_hash_table_iter_init (&iter, cache->buckets);
  while (g_hash_table_iter_next (&iter, &data, NULL))
    {
      bucket = data;
      if (bucket->counted && bucket->skip != cache->evict_round && bucket->idle + bucket->live > 0
          && (!best || bucket->used_at < best->used_at))
        best = bucket;
    }
  if (best)
    {
      best->n_files++;
      best->skip = cache->evict_round;
    }
  return best;
}

/* FALSE: it is in use. */
static gboolean
evict_file (MailCache *cache, const Entry *entry)
{
  MailCacheFile *file;
  gboolean evicted;

  pthread_mutex_lock (&cache->lock);
  file = g_hash_table_lookup (cache->files, &entry->key);
  if (file && file->refs > 0)
    file = NULL;
  else
    file = cache_file_get_locked (cache, &entry->key);
  pthread_mutex_unlock (&cache->lock);
  if (!file)
    return FALSE;

  pthread_mutex_lock (&file->lock);
  /* Who got it meanwhile keeps it; who gets it from now on waits and finds it empty. */
  pthread_mutex_lock (&cache->lock);
  evicted = file->refs == 1;
  pthread_mutex_unlock (&cache->lock);
  if (evicted && file->loaded)
    cache_file_drop_all (file);
  else if (evicted)
    cache_file_forget (file, entry->charge);
  pthread_mutex_unlock (&file->lock);
  mail_cache_file_unref (file);
  if (evicted)
    mail_counter_add (MAIL_COUNTER_EVICTIONS, 1);
  return evicted;
}

/* An empty directory goes too; who makes a file in it at this moment makes it again. */
static void
remove_empty_dir (MailCache *cache, CacheBucket *bucket)
{
  char path[2 * CACHE_NAME_BYTES];

  g_snprintf (path, sizeof path, "%x/%x", bucket->content_id, bucket->number);
  if (unlinkat (cache->data_fd, path, AT_REMOVEDIR) < 0)
    return;
  cache_dir_invalidate (cache, bucket);
  pthread_mutex_lock (&cache->lock);
  /* Nothing is left of what the count of blocks and of bytes may have differed by. */
  if (bucket->n_files == 1)
    {
      cache->used -= bucket->idle;
      bucket->idle = 0;
    }
  pthread_mutex_unlock (&cache->lock);
}

static void
evict_bucket (MailCache *cache, CacheBucket *bucket, guint64 target)
{
  g_autoptr (GArray) entries = list_bucket (cache, bucket->content_id, bucket->number);
  guint n_left = 0;

  if (!entries)
    return;
  pthread_mutex_lock (&cache->lock);
  for (guint i = 0; i < entries->len; i++)
    {
      Entry *entry = &g_array_index (entries, Entry, i);
      const MailCacheFile *file = g_hash_table_lookup (cache->files, &entry->key);

      if (file)
        entry->used_at = MAX (entry->used_at, file->used_at);
    }
  pthread_mutex_unlock (&cache->lock);
  g_array_sort (entries, compare_used_at);
  for (guint i = 0; i < entries->len; i++)
    if (mail_cache_used (cache) <= target
        || !evict_file (cache, &g_array_index (entries, Entry, i)))
      n_left++;
  if (n_left == 0)
    remove_empty_dir (cache, bucket);
}

/* Under evict_lock. */
static void
evict_down_to (MailCache *cache, guint64 target)
{
  CacheBucket *bucket;

  cache->evict_round++;
  for (;;)
    {
      pthread_mutex_lock (&cache->lock);
      bucket = cache->used > target && !cache->stopping ? choose_bucket_locked (cache) : NULL;
      if (!bucket && cache->used > target)
        {
          cache->stuck_at = cache->used;
          cache->stuck_time = g_get_monotonic_time ();
        }
      pthread_mutex_unlock (&cache->lock);
      if (!bucket)
        return;
      evict_bucket (cache, bucket, target);
      pthread_mutex_lock (&cache->lock);
      cache_bucket_release (bucket);
      pthread_mutex_unlock (&cache->lock);
    }
}

/* Whether it is worth looking again: everything was in use a moment ago. */
static gboolean
is_stuck_locked (MailCache *cache)
{
  return cache->stuck_at > 0 && cache->used <= cache->stuck_at + CACHE_OVERSHOOT
         && g_get_monotonic_time () - cache->stuck_time < STUCK_SECONDS * G_USEC_PER_SEC;
}

void
cache_throttle (MailCache *cache)
{
  gboolean over;

  pthread_mutex_lock (&cache->lock);
  over = cache->used > cache->budget + CACHE_OVERSHOOT && cache->scanned
         && !is_stuck_locked (cache);
  pthread_mutex_unlock (&cache->lock);
  if (!over)
    return;
  pthread_mutex_lock (&cache->evict_lock);
  if (mail_cache_used (cache) > cache->budget)
    evict_down_to (cache, cache->budget);
  pthread_mutex_unlock (&cache->evict_lock);
}

/* --- deleting mailboxes
 * ------------------------------------------------------------------------------------------ */

static void
remove_tree (int parent_fd, const char *name, guint depth)
{
  DIR *dir;
  struct dirent *d;

  if (unlinkat (parent_fd, name, 0) == 0 || errno == ENOENT || depth == 0)
    return;
  dir = cache_open_list (parent_fd, name);
  while (dir && (d = readdir (dir)))
    if (!is_dots (d->d_name))
      remove_tree (dirfd (dir), d->d_name, depth - 1);
  if (dir)
    closedir (dir);
  unlinkat (parent_fd, name, AT_REMOVEDIR);
}

static void
empty_trash (MailCache *cache)
{
  DIR *dir = cache->trash_fd < 0 ? NULL : cache_open_list (cache->trash_fd, ".");
  struct dirent *d;

  while (dir && (d = readdir (dir)) && !is_stopping (cache))
    if (!is_dots (d->d_name))
      remove_tree (cache->trash_fd, d->d_name, TRASH_DEPTH);
  if (dir)
    closedir (dir);
}

static void
throw_away (MailCache *cache, const char *name)
{
  char trash_name[64];

  g_snprintf (trash_name, sizeof trash_name, "%.20s.%08x%08x", name, g_random_int (),
              g_random_int ());
  if (cache->data_fd < 0 || cache->trash_fd < 0
      || (renameat (cache->data_fd, name, cache->trash_fd, trash_name) < 0 && errno == ENOENT))
    return;
  pthread_mutex_lock (&cache->lock);
  cache->has_trash = TRUE;
  cache_reclaim_wake_locked (cache);
  pthread_mutex_unlock (&cache->lock);
}

static void
drop_bucket_locked (MailCache *cache, CacheBucket *bucket)
{
  bucket->dropped = TRUE;
  cache->used -= bucket->idle;
  bucket->idle = 0;
  if (bucket->dir_fd >= 0 && bucket->dir_users == 0)
    {
      close (bucket->dir_fd);
      bucket->dir_fd = -1;
      g_queue_unlink (&cache->dirs, &bucket->dir_link);
    }
  if (bucket->queued)
    g_queue_remove (&cache->uncounted, bucket);
  bucket->queued = FALSE;
}

void
mail_cache_drop_contents (MailCache *cache, guint32 content_id)
{
  g_autoptr (GPtrArray) files = g_ptr_array_new ();
  char name[CACHE_NAME_BYTES];
  GHashTableIter iter;
  gpointer data;

  pthread_mutex_lock (&cache->lock);
  g_hash_table_iter_init (&iter, cache->files);
  while (g_hash_table_iter_next (&iter, NULL, &data))
    if (((MailCacheFile *)data)->key.content_id == content_id)
      g_ptr_array_add (files, data);
  for (guint i = 0; i < files->len; i++)
    {
      cache_file_ref_locked (files->pdata[i]);
      cache_file_detach_locked (files->pdata[i]);
    }
  g_hash_table_iter_init (&iter, cache->buckets);
  while (g_hash_table_iter_next (&iter, &data, NULL))
    {
      CacheBucket *bucket = data;
      if (bucket->content_id != content_id)
        continue;
      g_hash_table_iter_remove (&iter);
      bucket->n_files++;
      drop_bucket_locked (cache, bucket);
      cache_bucket_release (bucket);
    }
  pthread_mutex_unlock (&cache->lock);
  for (guint i = 0; i < files->len; i++)
    mail_cache_file_unref (files->pdata[i]);
  g_snprintf (name, sizeof name, "%x", content_id);
  throw_away (cache, name);
}

static int
compare_ids (const void *a, const void *b)
{
  const guint32 *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

void
mail_cache_retain_contents (MailCache *cache, const guint32 *ids, guint n_ids)
{
  DIR *dir = cache->data_fd < 0 ? NULL : cache_open_list (cache->data_fd, ".");
  struct dirent *d;

  /* Looked at and put aside now, so that no later content can be meant; deleted later. */
  while (dir && (d = readdir (dir)))
    {
      guint32 content_id;

      if (is_dots (d->d_name))
        continue;
      if (!cache_parse_hex (d->d_name, &content_id))
        throw_away (cache, d->d_name);
      else if (n_ids == 0 || !bsearch (&content_id, ids, n_ids, sizeof *ids, compare_ids))
        mail_cache_drop_contents (cache, content_id);
    }
  if (dir)
    closedir (dir);
}

/* --- the thread ------------------------------------------------------------------------------ */

/* Partial files nobody has used for a while get their footers, so that a crash does not lose them.
 */
static void
flush_dirty (MailCache *cache)
{
  g_autoptr (GPtrArray) files = g_ptr_array_new ();
  gint64 before = cache_now () - FLUSH_SECONDS * G_USEC_PER_SEC;
  gboolean more = FALSE;

  pthread_mutex_lock (&cache->lock);
  for (GList *l = cache->unused.head; l; l = l->next)
    {
      MailCacheFile *file = l->data;
      if (file->fd < 0 || file->footer_stored)
        continue;
      if (file->used_at < before)
        g_ptr_array_add (files, file);
      else
        more = TRUE;
    }
  for (guint i = 0; i < files->len; i++)
    cache_file_ref_locked (files->pdata[i]);
  cache->has_dirty = more;
  pthread_mutex_unlock (&cache->lock);
  for (guint i = 0; i < files->len; i++)
    {
      MailCacheFile *file = files->pdata[i];
      pthread_mutex_lock (&file->lock);
      cache_file_flush (file);
      pthread_mutex_unlock (&file->lock);
      mail_cache_file_unref (file);
    }
}

/* Waits for something to do; FALSE: stop. Under the lock. */
static gboolean
wait_for_work (MailCache *cache)
{
  struct timespec until;

  clock_gettime (CLOCK_MONOTONIC, &until);
  until.tv_sec += cache->used > cache->budget ? STUCK_SECONDS : FLUSH_SECONDS;
  while (!cache->stopping && !cache->has_trash && !cache->uncounted.head
         && (cache->used <= cache->budget || is_stuck_locked (cache)))
    {
      if (!cache->has_dirty && cache->used <= cache->budget)
        pthread_cond_wait (&cache->work, &cache->lock);
      else if (pthread_cond_timedwait (&cache->work, &cache->lock, &until) == ETIMEDOUT)
        break;
    }
  return !cache->stopping;
}

static void *
reclaim_main (void *data)
{
  MailCache *cache = data;

  empty_trash (cache);
  count_all (cache);
  pthread_mutex_lock (&cache->lock);
  while (wait_for_work (cache))
    {
      gboolean has_trash = cache->has_trash, has_dirty = cache->has_dirty;
      CacheBucket *bucket = g_queue_pop_head (&cache->uncounted);
      guint64 target = cache->budget - MIN (cache->budget / 16, 64 << 20);

      cache->has_trash = FALSE;
      if (bucket)
        {
          bucket->queued = FALSE;
          bucket->n_files++;
        }
      pthread_mutex_unlock (&cache->lock);
      if (bucket)
        count_bucket (cache, bucket);
      if (has_trash)
        empty_trash (cache);
      if (has_dirty)
        flush_dirty (cache);
      if (mail_cache_used (cache) > cache->budget)
        {
          pthread_mutex_lock (&cache->evict_lock);
          evict_down_to (cache, target);
          pthread_mutex_unlock (&cache->evict_lock);
        }
      pthread_mutex_lock (&cache->lock);
    }
  pthread_mutex_unlock (&cache->lock);
  return NULL;
}

gboolean
cache_reclaim_start (MailCache *cache)
{
  cache->has_thread = pthread_create (&cache->thread, NULL, reclaim_main, cache) == 0;
  return cache->has_thread;
}

void
cache_reclaim_stop (MailCache *cache)
{
  if (!cache->has_thread)
    return;
  pthread_mutex_lock (&cache->lock);
  cache->stopping = TRUE;
  pthread_cond_broadcast (&cache->work);
  pthread_mutex_unlock (&cache->lock);
  pthread_join (cache->thread, NULL);
  cache->has_thread = FALSE;
}
