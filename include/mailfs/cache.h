/* SPDX-License-Identifier: MIT
 *
 * MailCache: message bytes on disk, one file a message, named by our own numbers only. A file holds
 * the bytes at their own offsets (sparse while parts are missing) and behind them a footer: which
 * chunks are there, a CRC of each, the true length if known. A file without a valid footer (kill -9,
 * power cut) is thrown away when met; a chunk whose CRC is wrong is dropped and reported as absent,
 * never served. Nothing here syncs the disk. Over the byte budget the least recently used go first;
 * files in use stay readable. When the disk is full or read-only, bytes are kept in a small memory
 * budget instead, so that reads still work. Knows no network. Any thread; locks inside.
 */
#pragma once

#include "mailfs/error.h"

#define MAIL_BLOCK_SIZE 65536u

typedef struct MailCache MailCache;
typedef struct MailCacheFile MailCacheFile; /* reference counted */

/* dir exists, 0700, ours and locked by the caller. Makes what it needs inside. What is there is
 * counted in the background. budget in bytes. */
MailCache *mail_cache_open (const char *dir, guint64 budget, GError **error);
/* Writes the footers of open files. All file references must have been given back. */
void mail_cache_close (MailCache *cache);

/* The file of one message, opened or made. Never fails: with a disk that cannot be used it lives in
 * memory. The same message gives the same object while anybody holds it; a few hundred unused ones
 * stay open. variant 0: bytes as on the wire; 1: with LF line ends. */
MailCacheFile *mail_cache_get (MailCache *cache, guint32 content_id, guint32 uid, guint variant);
/* As mail_cache_get, but NULL when nothing of this message is held. */
MailCacheFile *mail_cache_peek (MailCache *cache, guint32 content_id, guint32 uid, guint variant);
MailCacheFile *mail_cache_file_ref (MailCacheFile *file);
void mail_cache_file_unref (MailCacheFile *file);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (MailCacheFile, mail_cache_file_unref)

/* Whether [offset, offset + length) is there, what lies beyond a known end not counting. */
gboolean mail_cache_file_has (MailCacheFile *file, guint64 offset, guint64 length);
/* The first absent range at or behind offset and before limit: TRUE and [*start, *end). */
gboolean mail_cache_file_missing (MailCacheFile *file, guint64 offset, guint64 limit,
                                  guint64 *start_out, guint64 *end_out);
/* The true length if known. */
gboolean mail_cache_file_end (MailCacheFile *file, guint64 *end_out);
guint64 mail_cache_file_bytes (MailCacheFile *file); /* held */

/* Verified bytes; fewer than length only at the known end. -1 with MAIL_ERROR_CORRUPT (dropped, fetch
 * again) or MAIL_ERROR_GONE (absent, perhaps evicted meanwhile). */
gssize mail_cache_file_read (MailCacheFile *file, guint64 offset, void *buffer, gsize length,
                             GError **error);

/* Adds bytes. Those already there are compared: different ones drop the whole file and give
 * MAIL_ERROR_CORRUPT (the server sent two versions of one message). A full disk is no error. */
gboolean mail_cache_file_write (MailCacheFile *file, guint64 offset, const void *data, gsize length,
                                GError **error);
/* The true length is known; chunks behind it are dropped. When everything up to it is there the file
 * is whole, and its footer is written now. A second, different end: MAIL_ERROR_CORRUPT, dropped. */
gboolean mail_cache_file_set_end (MailCacheFile *file, guint64 end, GError **error);
/* One write for a whole message: as write + set_end on a new file, in a single system call pair. */
gboolean mail_cache_file_write_whole (MailCacheFile *file, const void *data, gsize length,
                                      GError **error);
/* Drops all bytes, on disk too; holders stay valid and see an empty file. */
void mail_cache_file_clear (MailCacheFile *file);

/* Takes the message out, on disk too. Who holds its file goes on reading what was there. */
void mail_cache_remove (MailCache *cache, guint32 content_id, guint32 uid);
/* A whole mailbox, as remove; returns at once, deletes in the background. */
void mail_cache_drop_contents (MailCache *cache, guint32 content_id);
/* Removes directories of contents that are not in the sorted array ids (guint32). What is there at the
 * time of the call is meant, never a content made later; deleted in the background. */
void mail_cache_retain_contents (MailCache *cache, const guint32 *ids, guint n_ids);
/* The message moved: its bytes are now those of another one. No error when nothing was held. A target
 * that is whole keeps its own. Who holds the old file goes on reading. */
void mail_cache_move (MailCache *cache, guint32 content_id, guint32 uid, guint32 new_content_id,
                      guint32 new_uid);
/* As move, but both have them (hard link or copy of a whole file; partial ones are not copied). */
void mail_cache_copy (MailCache *cache, guint32 content_id, guint32 uid, guint32 new_content_id,
                      guint32 new_uid);

guint64 mail_cache_used (MailCache *cache); /* bytes on disk, as counted so far */
