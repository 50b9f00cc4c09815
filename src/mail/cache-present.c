/* SPDX-License-Identifier: MIT
 *
 * Which messages have a file on disk: a bit each in their directory, which is listed once, so that
 * a walk over thousands of absent messages does not ask the disk for every one. Nobody else writes
 * here while the account's lock is held; should a bit be wrong all the same, opening finds out.
 */
#include "cache-private.h"

#include <dirent.h>
#include <errno.h>

#define WORD_BITS 64
#define BUCKET_UIDS (1u << CACHE_BUCKET_SHIFT)
#define BUCKET_WORDS (BUCKET_UIDS * CACHE_VARIANTS / WORD_BITS)

static guint
bit_of (guint32 uid, guint variant)
{
  return uid % BUCKET_UIDS * CACHE_VARIANTS + variant;
}

static void
set_bit (guint64 *bits, guint bit, gboolean on)
{
  guint64 mask = G_GUINT64_CONSTANT (1) << bit % WORD_BITS;

  bits[bit / WORD_BITS] = on ? bits[bit / WORD_BITS] | mask : bits[bit / WORD_BITS] & ~mask;
}

/* NULL: it cannot be listed now. */
static guint64 *
list (MailCache *cache, CacheBucket *bucket)
{
  int dir_fd = cache_dir_acquire (cache, bucket, FALSE);
  const struct dirent *entry;
  guint variant;
  guint32 uid;

  if (dir_fd < 0)
    return errno == ENOENT ? g_new0 (guint64, BUCKET_WORDS) : NULL;
  DIR *dir = cache_open_list (dir_fd, ".");
  cache_dir_release (cache, bucket);
  if (dir == NULL)
    return NULL;
  guint64 *bits = g_new0 (guint64, BUCKET_WORDS);
  while ((entry = readdir (dir)) != NULL)
    if (cache_parse_name (entry->d_name, &uid, &variant))
      set_bit (bits, bit_of (uid, variant), TRUE);
  closedir (dir);
  return bits;
}

gboolean
cache_file_is_present (MailCacheFile *file)
{
  MailCache *cache = file->cache;
  CacheBucket *bucket = file->bucket;
  guint bit = bit_of (file->key.uid, file->key.variant);
  guint64 *bits = NULL;

  pthread_mutex_lock (&cache->lock);
  if (bucket->present == NULL)
    {
      pthread_mutex_unlock (&cache->lock);
      bits = list (cache, bucket);
      pthread_mutex_lock (&cache->lock);
      /* Whoever was first has followed what happened since. */
      if (bucket->present == NULL)
        bucket->present = g_steal_pointer (&bits);
    }
  gboolean present = bucket->present == NULL
                     || bucket->present[bit / WORD_BITS] >> bit % WORD_BITS & 1;
  pthread_mutex_unlock (&cache->lock);
  g_free (bits);
  return present;
}

void
cache_file_set_present (MailCacheFile *file, gboolean present)
{
  pthread_mutex_lock (&file->cache->lock);
  if (file->bucket->present != NULL)
    set_bit (file->bucket->present, bit_of (file->key.uid, file->key.variant), present);
  pthread_mutex_unlock (&file->cache->lock);
}
