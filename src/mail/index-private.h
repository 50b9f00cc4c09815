/* SPDX-License-Identifier: MIT
 *
 * What the files of MailIndex share: index.c (open, close, reading), index-batch.c (what a batch
 * holds), index-write.c (the writer thread), index-page.c (how messages look on disk), index-ids.c
 * (numbers that are never handed out twice). Nobody else includes this.
 *
 * Locks, in locking order: keywords_lock or read_lock, then queue_lock. All are leaves otherwise.
 * Plain pthread locks instead of GLib's, because thread sanitizers see through them.
 */
#pragma once

#include "mailfs/index.h"

#include <pthread.h>
#include <sqlite3.h>

/* --- pages: up to 128 messages whose UIDs agree in all but the low 7 bits ------------------- */

#define INDEX_PAGE_SHIFT 7
#define INDEX_PAGE_MESSAGES (1u << INDEX_PAGE_SHIFT)
#define INDEX_PAGE_HEADER 8
#define INDEX_MESSAGE_BYTES 29
#define INDEX_PAGE_BYTES (INDEX_PAGE_HEADER + INDEX_PAGE_MESSAGES * INDEX_MESSAGE_BYTES)

/* The row id of the page that holds uid. Sorts by content id, then UID. */
gint64 index_page_id (guint32 content_id, guint32 uid);
/* messages: sorted by UID, all of page id, n <= INDEX_PAGE_MESSAGES. Returns the length. */
gsize index_page_pack (gint64 id, const MailMessage *messages, guint n, guint8 *data_out);
/* messages_out has room for INDEX_PAGE_MESSAGES. FALSE: not what was packed. */
gboolean index_page_unpack (gint64 id, const guint8 *data, gsize length, MailMessage *messages_out,
                            guint *n_out);
/* What guards the rows that are no pages. */
guint32 index_text_crc (guint32 a, guint32 b, const char *text);
guint32 index_mailbox_crc (const MailIndexMailbox *mailbox);

/* --- numbers -------------------------------------------------------------------------------- */

typedef struct
{
  pthread_mutex_t lock;
  int fd;              /* -1: cannot be used */
  guint64 next, limit; /* [next, limit) may be handed out; under lock */
  gboolean warned;
} IndexIds;

/* floor: the smallest number that the database does not know. lost: a database was thrown away. */
void index_ids_open (IndexIds *ids, const char *dir, guint64 floor, gboolean lost);
guint32 index_ids_next (IndexIds *ids);
void index_ids_close (IndexIds *ids);

/* --- batches -------------------------------------------------------------------------------- */

typedef enum
{
  INDEX_OP_PUT_MAILBOX,
  INDEX_OP_REMOVE_MAILBOX,
  INDEX_OP_DROP_CONTENTS,
  INDEX_OP_PUT,
  INDEX_OP_REMOVE,
  INDEX_OP_NAME,
  INDEX_OP_REMOTE_ID,
  INDEX_OP_META,
  INDEX_OP_KEYWORDS,
} IndexOpType;

typedef struct
{
  guint8 type;         /* IndexOpType */
  guint32 id;          /* mailbox, content or keywords id */
  guint32 first, last; /* REMOVE: UIDs; NAME, REMOTE_ID: first is the UID */
  guint start, n;      /* PUT: a range of messages; otherwise start is an index into things */
} IndexOp;

struct MailIndexBatch
{
  GArray *ops;      /* of IndexOp */
  GArray *messages; /* of MailMessage */
  GPtrArray *texts; /* char *, may be NULL; META: key, then value */
  GPtrArray *mailboxes;
};

void index_batch_put_meta (MailIndexBatch *batch, const char *key, const char *value);
void index_batch_put_keywords (MailIndexBatch *batch, guint32 id, const char *keywords);
void index_batch_free (MailIndexBatch *batch);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (MailIndexBatch, index_batch_free)
MailIndexMailbox *index_mailbox_copy (const MailIndexMailbox *mailbox);

/* --- the writer ------------------------------------------------------------------------------ */

typedef enum
{
  INDEX_SQL_BEGIN,
  INDEX_SQL_COMMIT,
  INDEX_SQL_PUT_MAILBOX,
  INDEX_SQL_REMOVE_MAILBOX,
  INDEX_SQL_GET_PAGE,
  INDEX_SQL_PUT_PAGE,
  INDEX_SQL_REMOVE_PAGES,
  INDEX_SQL_PUT_NAME,
  INDEX_SQL_REMOVE_NAMES,
  INDEX_SQL_PUT_REMOTE_ID,
  INDEX_SQL_REMOVE_REMOTE_IDS,
  INDEX_SQL_PUT_META,
  INDEX_SQL_REMOVE_META,
  INDEX_SQL_PUT_KEYWORDS,
  INDEX_N_SQL
} IndexSql;

typedef struct
{
  gint64 id; /* -1: none */
  guint n;
  gboolean dirty, stored; /* stored: there is a row */
  MailMessage messages[INDEX_PAGE_MESSAGES];
} IndexPage;

/* The writer's, nobody else's, between index_writer_start and _stop. */
typedef struct
{
  sqlite3 *db;
  sqlite3_stmt *sql[INDEX_N_SQL];
  IndexPage page; /* the one being changed; written when another one is needed */
  int n_log_pages;
} IndexWriter;

struct MailIndex
{
  char *dir; /* real path */
  char *path;

  IndexIds ids;
  IndexWriter writer;
  pthread_t thread;
  gboolean has_thread;

  pthread_mutex_t queue_lock;
  pthread_cond_t queued; /* something to do */
  pthread_cond_t done;   /* done_sequence moved */
  GQueue batches;        /* under queue_lock, of MailIndexBatch */
  guint64 queued_sequence, done_sequence;
  guint n_flushing;   /* who waits for done */
  gboolean in_a_hurry; /* what is queued is not to wait for more */
  guint n_in_burst;    /* transactions */
  gint64 written_at;   /* monotonic µs */
  gboolean stopping;
  gboolean read_only; /* atomic: nothing is written any more */
  gboolean corrupt;   /* atomic: thrown away at the next open */

  pthread_mutex_t read_lock;
  sqlite3 *read_db;   /* under read_lock */
  gboolean in_memory; /* under read_lock: read_db is the writer's, who takes read_lock to write */

  pthread_mutex_t keywords_lock;
  GHashTable *keyword_ids;  /* text (owned by keyword_texts) -> id */
  GPtrArray *keyword_texts; /* [id - 1], NULL where there is a hole */
  gsize keyword_bytes;
  gboolean keywords_warned;
};

/* Prepares all statements: FALSE when the tables are not ours. */
gboolean index_writer_prepare (IndexWriter *writer);
void index_writer_finish (IndexWriter *writer);
gboolean index_writer_start (MailIndex *index);
void index_writer_stop (MailIndex *index);

/* The disk cannot be written: goes on with a copy in memory of what is in the database. Under
 * read_lock, in the writer's thread or before it runs. */
gboolean index_go_to_memory (MailIndex *index);

/* Puts the database aside so that the next open begins anew. Any thread; works on a full disk. */
void index_mark_corrupt (MailIndex *index);
gboolean index_is_corrupt_code (int code);
