/* SPDX-License-Identifier: MIT
 *
 * What the files of MailCache share: cache.c (files in hand, open and close, remove, move, copy),
 * cache-file.c (reading and writing one file), cache-disk.c (directories, opening, footers),
 * cache-chunks.c (which bytes are there), cache-present.c (which files are there), cache-reclaim.c (counting, evicting, deleting, the
 * background thread). Nobody else includes this.
 *
 * Locks, in locking order: evict_lock, a file's lock (two only in mail_cache_move, the lower
 * address first), the cache's lock. The cache's lock is never held during I/O. A file's lock is
 * held during its own writes and during reads that must verify, not during reads of verified bytes:
 * those pin the file, and whoever closes its descriptors waits for the pins. Plain pthread locks
 * instead of GLib's, because thread sanitizers see through them.
 */
#pragma once

#include "mailfs/cache.h"

#include <dirent.h>
#include <pthread.h>
#include <sys/stat.h>

#define CACHE_MEMORY_BUDGET (16u << 20)
#define CACHE_RETRY_SECONDS 60     /* how long a failed disk is left alone */
#define CACHE_TOUCH_SECONDS 60     /* how old an mtime may be before a use renews it */
#define CACHE_OVERSHOOT (4u << 20) /* over the budget by this much a writer evicts by itself */
#define CACHE_BUCKET_SHIFT 10      /* UIDs of one directory agree in all but the low 10 bits */
#define CACHE_VARIANTS 2

/* --- chunks: which bytes are there ------------------------------------------------------------ */

typedef struct
{
  guint64 offset;
  guint32 length; /* >= 1; never crosses a multiple of MAIL_BLOCK_SIZE */
  guint32 crc;
  guint32 age;      /* in memory: larger is younger */
  guint8 verified;  /* the CRC has been seen to be right, or the bytes were written by us */
  guint8 in_memory; /* in memory_fd, not in fd */
} CacheChunk;

typedef struct
{
  CacheChunk *items; /* sorted, disjoint; points to `single` while one is enough */
  guint n, allocated;
  CacheChunk single;
  guint64 held;   /* sum of lengths */
  guint64 memory; /* of those in memory */
} CacheChunks;

void cache_chunks_init (CacheChunks *chunks);
void cache_chunks_clear (CacheChunks *chunks);
/* The first chunk that ends behind offset; chunks->n if none. */
guint cache_chunks_find (const CacheChunks *chunks, guint64 offset);
gboolean cache_chunks_missing (const CacheChunks *chunks, guint64 offset, guint64 limit,
                               guint64 *start_out, guint64 *end_out);
/* Adds bytes that are not there yet, as chunks that cross no block, joined to their neighbours. */
void cache_chunks_add (CacheChunks *chunks, guint64 offset, const guint8 *data, gsize length,
                       gboolean in_memory, guint32 age);
void cache_chunks_remove (CacheChunks *chunks, guint index);
/* Those of from that are on disk, into an empty table. */
void cache_chunks_copy_disk (CacheChunks *chunks, const CacheChunks *from);
guint64 cache_chunks_end (const CacheChunks *chunks);
/* What a file with these chunks and its footer at extent takes on disk, in whole pages: the same
 * number for an open file and for one that is found, or the accounts would drift. */
guint64 cache_chunks_charge (const CacheChunks *chunks, guint64 extent);

/* --- footers ------------------------------------------------------------------------------------
 */

typedef struct
{
  guint32 content_id, uid;
  guint variant;
} CacheKey;

typedef struct
{
  gboolean end_known;
  guint64 end;
  guint64 extent; /* where the footer begins */
  guint n_chunks;
} CacheFooter;

#define CACHE_TRAILER_BYTES 64
#define CACHE_CHUNK_BYTES 16
#define CACHE_MAX_CHUNKS (1u << 20)

gsize cache_footer_length (guint n_chunks);
/* The footer of all chunks that are not in memory; data_out has room for chunks->n of them. */
gsize cache_footer_pack (const CacheKey *key, const CacheFooter *footer, const CacheChunks *chunks,
                         guint8 *data_out);
/* trailer: the last CACHE_TRAILER_BYTES of a file of file_size bytes. */
gboolean cache_footer_peek (const CacheKey *key, const guint8 *trailer, guint64 file_size,
                            CacheFooter *footer_out);
/* data: the whole footer, as long as cache_footer_length says. */
gboolean
cache_footer_unpack (const CacheFooter *footer, const guint8 *data, CacheChunks *chunks_out);

/* --- the cache -----------------------------------------------------------------------------------
 */

/* One directory of files; accounting is by these. Under the cache's lock. */
typedef struct
{
  guint32 content_id, number;
  guint n_files;    /* objects that point here */
  gboolean counted; /* idle is known */
  gboolean touched; /* a file went out of hand while it was not counted */
  gboolean dropped; /* no longer in the table; freed by the last user */
  gboolean queued;  /* in uncounted */
  guint64 idle;     /* bytes of files that no live object accounts for */
  guint64 live;     /* bytes of files that one does */
  gint64 used_at;   /* microseconds since the epoch */
  guint skip;       /* eviction found nothing here in this round */
  guint64 *present; /* a bit a file that is on disk; NULL: nobody has looked */
  int dir_fd;       /* -1: not open */
  guint dir_users;
  GList dir_link; /* in dirs while dir_fd is open */
} CacheBucket;

struct MailCache
{
  char *dir;
  int data_fd, trash_fd;
  guint64 budget;
  guint max_unused, max_dirs;

  pthread_mutex_t lock;
  GHashTable *files;   /* CacheKey -> MailCacheFile */
  GHashTable *buckets; /* CacheBucket -> itself */
  GQueue unused;       /* files without references, least recently used first */
  GQueue dirs;         /* buckets with an open descriptor, least recently used first */
  guint64 used;
  guint64 memory_used;
  GQueue memory_files; /* least recently written first */
  guint32 memory_clock;
  guint64 stuck_at; /* eviction could not get below this */
  gint64 stuck_time;
  gboolean stopping, has_trash, has_dirty;
  gboolean scanned; /* the first count is complete */
  GQueue uncounted; /* buckets to count again */
  pthread_cond_t work;

  gint retry_at;     /* atomic: monotonic seconds; the disk is left alone until then */
  gint disk_failing; /* atomic: warned about */

  pthread_mutex_t evict_lock;
  guint evict_round; /* under evict_lock */
  pthread_t thread;
  gboolean has_thread;
};

struct MailCacheFile
{
  MailCache *cache;
  CacheKey key; /* never changes */

  /* under the cache's lock */
  guint refs;
  CacheBucket *bucket;
  GList unused_link, memory_link;
  gboolean in_unused, in_memory_files;
  gboolean live;        /* the bucket's accounts leave this file to `charge` */
  gboolean was_counted; /* the bucket's idle bytes held it when it went live */
  guint64 charge;
  gint64 used_at;

  gint detached; /* atomic: has no name any more, on disk or in the tables */

  pthread_mutex_t lock;
  pthread_cond_t unpinned;
  /* under lock; or, with refs 0, under the cache's lock */
  guint pins;       /* readers inside pread */
  guint generation; /* bytes were taken away */
  gboolean loaded;  /* what is on disk is known */
  gboolean read_only, footer_stored, was_read;
  int fd, memory_fd;
  gint64 mtime; /* seconds */
  gboolean end_known;
  guint64 end;
  guint64 extent; /* length of the data part of the file on disk */
  CacheChunks chunks;
};

gint64 cache_now (void); /* coarse; microseconds since the epoch */

/* --- cache.c: under the cache's lock */
CacheBucket *cache_bucket_get (MailCache *cache, guint32 content_id, guint32 number);
void cache_bucket_free (CacheBucket *bucket);
void cache_bucket_release (CacheBucket *bucket); /* frees a dropped one without users */
/* Takes or makes the object; refs is one more. */
MailCacheFile *cache_file_get_locked (MailCache *cache, const CacheKey *key);
void cache_file_ref_locked (MailCacheFile *file);
/* Out of the tables and the accounts; the bytes stay for who holds the file. */
void cache_file_detach_locked (MailCacheFile *file);
/* Closes the unused file that has waited longest: FALSE when there was none. Takes the lock. */
gboolean cache_close_oldest (MailCache *cache);

/* --- cache-file.c: under the file's lock */
void cache_file_load (MailCacheFile *file, gboolean create);
void cache_file_drop_all (MailCacheFile *file);
/* Makes what is on disk complete in itself, or removes it: the file is to be closed. */
void cache_file_finish (MailCacheFile *file);
/* The same for one that stays open, as far as it works. */
void cache_file_flush (MailCacheFile *file);
gboolean cache_file_is_empty (const MailCacheFile *file);
gboolean cache_file_is_whole (const MailCacheFile *file);
CacheFooter cache_file_footer (const MailCacheFile *file);
/* Tells the accounts what the file holds now. */
void cache_file_account (MailCacheFile *file);
/* As drop_all for a file that was never looked at, of which `charge` bytes are accounted. */
void cache_file_forget (MailCacheFile *file, guint64 charge);
/* Drops memory until it is in the budget. No lock held. */
void cache_trim_memory (MailCache *cache);

/* --- cache-disk.c */
#define CACHE_NAME_BYTES 16
/* name_out: the file in its directory. */
void cache_file_name (const CacheKey *key, char name_out[CACHE_NAME_BYTES]);
gboolean cache_parse_name (const char *name, guint32 *uid_out, guint *variant_out);
gboolean cache_parse_hex (const char *text, guint32 *value_out);
/* A directory to be read; name is one component. NULL with errno. */
DIR *cache_open_list (int parent_fd, const char *name);
/* A descriptor of the bucket's directory, to be released; -1 with errno. Takes the cache's lock. */
int cache_dir_acquire (MailCache *cache, CacheBucket *bucket, gboolean create);
void cache_dir_release (MailCache *cache, CacheBucket *bucket);
/* The directory is gone: the next acquire opens it anew. */
void cache_dir_invalidate (MailCache *cache, CacheBucket *bucket);
/* Opens the file; -1 with errno. made_out: there was none before. Under the file's lock. */
int cache_file_open (MailCacheFile *file, gboolean create, gboolean *read_only_out,
                     gboolean *made_out);
void cache_file_unlink (MailCacheFile *file);
gboolean cache_pread_all (int fd, void *buffer, gsize length, guint64 offset);
gboolean cache_pwrite_all (int fd, const void *data, gsize length, guint64 offset);
/* The footer of a file, with what fstat says; FALSE: not usable. chunks_out is initialized. */
gboolean cache_footer_load (int fd, const CacheKey *key, const struct stat *st,
                            CacheFooter *footer_out, CacheChunks *chunks_out);
/* What a file is counted as that nobody has looked into. */
guint64 cache_charge_unknown (const struct stat *st);
/* What the file name in dir_fd is counted as. */
guint64
cache_charge_found (int dir_fd, const char *name, const CacheKey *key, const struct stat *st);
gboolean cache_footer_store (MailCacheFile *file);
/* Makes an open file writable: takes the footer away. */
gboolean cache_footer_strip (MailCacheFile *file);
gboolean cache_disk_usable (MailCache *cache);
void cache_disk_failed (MailCache *cache, int error_number);
void cache_disk_worked (MailCache *cache);

/* --- cache-present.c */
/* FALSE: there is no such file on disk. Takes the cache's lock; lists the directory the first time. */
gboolean cache_file_is_present (MailCacheFile *file);
void cache_file_set_present (MailCacheFile *file, gboolean present);

/* --- cache-reclaim.c */
/* When far over the budget, evicts in this thread. No lock held. */
void cache_throttle (MailCache *cache);
gboolean cache_reclaim_start (MailCache *cache);
void cache_reclaim_stop (MailCache *cache);
void cache_reclaim_wake_locked (MailCache *cache);
/* To be counted by the background thread. */
void cache_bucket_queue_locked (MailCache *cache, CacheBucket *bucket);
