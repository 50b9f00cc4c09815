/* SPDX-License-Identifier: MIT
 *
 * The writer thread of MailIndex: takes all batches that are queued within a moment, applies them
 * in order in one transaction, and tells who waits. It alone touches IndexWriter. A page of
 * messages is read, changed and written back when another page is needed, so a listing costs one
 * row per 128 messages however it is cut into batches. When the disk cannot be written any more, a
 * copy in memory takes the place of the database until the end.
 */
#include "index-private.h"

#include "mailfs/log.h"

#include <string.h>
#include <time.h>

#define LOG_PAGES 1000 /* written back when it is that long */
#define GATHER_NS 10000000
#define BURST 16 /* transactions, each within BURST_GAP of the one before */
#define BURST_GAP (100 * G_TIME_SPAN_MILLISECOND)

static const char *const sql_text[INDEX_N_SQL] = {
  [INDEX_SQL_BEGIN] = "BEGIN IMMEDIATE",
  [INDEX_SQL_COMMIT] = "COMMIT",
  [INDEX_SQL_PUT_MAILBOX]
  = ("INSERT OR REPLACE INTO mailboxes (id, content_id, name, path, special_use, flags, "
     "uidvalidity,"
     " uidnext, highestmodseq, n_messages, n_unseen, crc) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"),
  [INDEX_SQL_REMOVE_MAILBOX] = "DELETE FROM mailboxes WHERE id = ?",
  [INDEX_SQL_GET_PAGE] = "SELECT data FROM pages WHERE id = ?",
  [INDEX_SQL_PUT_PAGE] = "INSERT OR REPLACE INTO pages (id, data) VALUES (?,?)",
  [INDEX_SQL_REMOVE_PAGES] = "DELETE FROM pages WHERE id BETWEEN ? AND ?",
  [INDEX_SQL_PUT_NAME]
  = "INSERT OR REPLACE INTO names (content_id, uid, text, crc) VALUES (?,?,?,?)",
  [INDEX_SQL_REMOVE_NAMES] = "DELETE FROM names WHERE content_id = ? AND uid BETWEEN ? AND ?",
  [INDEX_SQL_PUT_REMOTE_ID]
  = "INSERT OR REPLACE INTO remote_ids (content_id, uid, text, crc) VALUES (?,?,?,?)",
  [INDEX_SQL_REMOVE_REMOTE_IDS]
  = "DELETE FROM remote_ids WHERE content_id = ? AND uid BETWEEN ? AND ?",
  [INDEX_SQL_PUT_META] = "INSERT OR REPLACE INTO meta (key, value, crc) VALUES (?,?,?)",
  [INDEX_SQL_REMOVE_META] = "DELETE FROM meta WHERE key = ?",
  [INDEX_SQL_PUT_KEYWORDS] = "INSERT OR REPLACE INTO keywords (id, text, crc) VALUES (?,?,?)",
};

static int
count_log_pages (void *data, sqlite3 *db, const char *name, int n_pages)
{
  ((IndexWriter *)data)->n_log_pages = n_pages;
  return SQLITE_OK;
}

gboolean
index_writer_prepare (IndexWriter *writer)
{
  writer->page.id = -1;
  for (guint i = 0; i < INDEX_N_SQL; i++)
    if (sqlite3_prepare_v3 (writer->db, sql_text[i], -1, SQLITE_PREPARE_PERSISTENT, &writer->sql[i],
                            NULL)
        != SQLITE_OK)
      return FALSE;
  return TRUE;
}

void
index_writer_finish (IndexWriter *writer)
{
  for (guint i = 0; i < INDEX_N_SQL; i++)
    sqlite3_finalize (writer->sql[i]);
  sqlite3_close (writer->db);
  memset (writer, 0, sizeof *writer);
}

static gboolean
run (IndexWriter *writer, IndexSql which)
{
  sqlite3_stmt *sql = writer->sql[which];
  gboolean ok = sqlite3_step (sql) == SQLITE_DONE;

  sqlite3_reset (sql);
  return ok;
}

static void
bind_text (sqlite3_stmt *sql, int column, const char *text)
{
  if (text)
    sqlite3_bind_text (sql, column, text, -1, SQLITE_STATIC);
  else
    sqlite3_bind_null (sql, column);
}

/* --- pages ----------------------------------------------------------------------------------- */

static gboolean
store_page (IndexWriter *writer)
{
  IndexPage *page = &writer->page;
  sqlite3_stmt *sql = writer->sql[INDEX_SQL_PUT_PAGE];
  guint8 data[INDEX_PAGE_BYTES];

  if (!page->dirty)
    return TRUE;
  page->dirty = FALSE;
  if (page->n == 0)
    {
      sql = writer->sql[INDEX_SQL_REMOVE_PAGES];
      sqlite3_bind_int64 (sql, 1, page->id);
      sqlite3_bind_int64 (sql, 2, page->id);
      return !page->stored || run (writer, INDEX_SQL_REMOVE_PAGES);
    }
  sqlite3_bind_int64 (sql, 1, page->id);
  sqlite3_bind_blob (sql, 2, data, index_page_pack (page->id, page->messages, page->n, data),
                     SQLITE_STATIC);
  page->stored = TRUE;
  return run (writer, INDEX_SQL_PUT_PAGE);
}

static gboolean
load_page (MailIndex *index, gint64 id)
{
  IndexPage *page = &index->writer.page;
  sqlite3_stmt *sql = index->writer.sql[INDEX_SQL_GET_PAGE];
  gboolean ok = TRUE;
  int code;

  if (page->id == id)
    return TRUE;
  if (!store_page (&index->writer))
    return FALSE;
  page->id = id;
  page->n = 0;
  sqlite3_bind_int64 (sql, 1, id);
  code = sqlite3_step (sql);
  page->stored = code == SQLITE_ROW;
  if (page->stored
      && !index_page_unpack (id, sqlite3_column_blob (sql, 0), sqlite3_column_bytes (sql, 0),
                             page->messages, &page->n))
    {
      index_mark_corrupt (index);
      ok = FALSE;
    }
  sqlite3_reset (sql);
  if (!ok || (code != SQLITE_ROW && code != SQLITE_DONE))
    page->id = -1;
  return page->id == id;
}

/* The first slot whose UID is not below uid. */
static guint
find_slot (const IndexPage *page, guint32 uid)
{
  guint low = 0, high = page->n;

  if (page->n > 0 && page->messages[page->n - 1].uid < uid)
    return page->n;
  while (low < high)
    {
      guint middle = (low + high) / 2;
      if (page->messages[middle].uid < uid)
        low = middle + 1;
      else
        high = middle;
    }
  return low;
}

static gboolean
put_messages (MailIndex *index, guint32 content_id, const MailMessage *messages, guint n)
{
  IndexPage *page = &index->writer.page;

  for (guint i = 0; i < n; i++)
    {
      guint slot;

      if (!load_page (index, index_page_id (content_id, messages[i].uid)))
        return FALSE;
      slot = find_slot (page, messages[i].uid);
      if (slot == page->n || page->messages[slot].uid != messages[i].uid)
        {
          memmove (&page->messages[slot + 1], &page->messages[slot],
                   (page->n - slot) * sizeof (MailMessage));
          page->n++;
        }
      page->messages[slot] = messages[i];
      page->dirty = TRUE;
    }
  return TRUE;
}

static gboolean
remove_in_page (MailIndex *index, gint64 id, guint32 first, guint32 last)
{
  IndexPage *page = &index->writer.page;
  guint from, to;

  if (!load_page (index, id))
    return FALSE;
  from = find_slot (page, first);
  to = last == G_MAXUINT32 ? page->n : find_slot (page, last + 1);
  if (to > from)
    {
      memmove (&page->messages[from], &page->messages[to], (page->n - to) * sizeof (MailMessage));
      page->n -= to - from;
      page->dirty = TRUE;
    }
  return TRUE;
}

static gboolean
remove_range (IndexWriter *writer, IndexSql which, gint64 a, gint64 b, gint64 c)
{
  sqlite3_stmt *sql = writer->sql[which];

  sqlite3_bind_int64 (sql, 1, a);
  sqlite3_bind_int64 (sql, 2, b);
  if (which != INDEX_SQL_REMOVE_PAGES)
    sqlite3_bind_int64 (sql, 3, c);
  return run (writer, which);
}

static gboolean
remove_texts (IndexWriter *writer, guint32 content_id, guint32 first, guint32 last)
{
  return remove_range (writer, INDEX_SQL_REMOVE_NAMES, content_id, first, last)
         && remove_range (writer, INDEX_SQL_REMOVE_REMOTE_IDS, content_id, first, last);
}

/* A range may be all UIDs there are: only its two ends are looked at, what is between goes at once.
 */
static gboolean
remove_messages (MailIndex *index, guint32 content_id, guint32 first, guint32 last)
{
  IndexWriter *writer = &index->writer;
  gint64 low = index_page_id (content_id, first);
  gint64 high = index_page_id (content_id, last);

  if (!remove_texts (writer, content_id, first, last) || !remove_in_page (index, low, first, last))
    return FALSE;
  if (high == low)
    return TRUE;
  if (!remove_in_page (index, high, first, last))
    return FALSE;
  return high == low + 1 || remove_range (writer, INDEX_SQL_REMOVE_PAGES, low + 1, high - 1, 0);
}

static gboolean
drop_contents (MailIndex *index, guint32 content_id)
{
  IndexWriter *writer = &index->writer;

  if (!store_page (writer))
    return FALSE;
  writer->page.id = -1;
  return remove_texts (writer, content_id, 0, G_MAXUINT32)
         && remove_range (writer, INDEX_SQL_REMOVE_PAGES, index_page_id (content_id, 0),
                          index_page_id (content_id, G_MAXUINT32), 0);
}

/* --- the other rows --------------------------------------------------------------------------- */

static gboolean
put_mailbox (IndexWriter *writer, const MailIndexMailbox *mailbox)
{
  sqlite3_stmt *sql = writer->sql[INDEX_SQL_PUT_MAILBOX];
  const MailMailboxStatus *status = &mailbox->status;
  gboolean ok;

  sqlite3_bind_int64 (sql, 1, mailbox->id);
  sqlite3_bind_int64 (sql, 2, mailbox->content_id);
  bind_text (sql, 3, mailbox->name);
  bind_text (sql, 4, mailbox->path);
  bind_text (sql, 5, mailbox->special_use);
  sqlite3_bind_int64 (sql, 6, mailbox->flags);
  sqlite3_bind_int64 (sql, 7, status->uidvalidity);
  sqlite3_bind_int64 (sql, 8, status->uidnext);
  sqlite3_bind_int64 (sql, 9, (gint64)status->highestmodseq);
  sqlite3_bind_int64 (sql, 10, status->n_messages);
  sqlite3_bind_int64 (sql, 11, status->n_unseen);
  sqlite3_bind_int64 (sql, 12, index_mailbox_crc (mailbox));
  ok = run (writer, INDEX_SQL_PUT_MAILBOX);
  sqlite3_clear_bindings (sql);
  return ok;
}

static gboolean
put_text (IndexWriter *writer, IndexSql put, IndexSql remove, guint32 content_id, guint32 uid,
          const char *text)
{
  sqlite3_stmt *sql = writer->sql[put];

  if (!text)
    return remove_range (writer, remove, content_id, uid, uid);
  sqlite3_bind_int64 (sql, 1, content_id);
  sqlite3_bind_int64 (sql, 2, uid);
  bind_text (sql, 3, text);
  sqlite3_bind_int64 (sql, 4, index_text_crc (content_id, uid, text));
  return run (writer, put);
}

static gboolean
put_meta (IndexWriter *writer, const char *key, const char *value)
{
  IndexSql which = value ? INDEX_SQL_PUT_META : INDEX_SQL_REMOVE_META;
  sqlite3_stmt *sql = writer->sql[which];

  bind_text (sql, 1, key);
  if (value)
    {
      bind_text (sql, 2, value);
      sqlite3_bind_int64 (sql, 3, index_text_crc (index_text_crc (0, 0, key), 0, value));
    }
  return run (writer, which);
}

static gboolean
put_keywords (IndexWriter *writer, guint32 id, const char *text)
{
  sqlite3_stmt *sql = writer->sql[INDEX_SQL_PUT_KEYWORDS];

  sqlite3_bind_int64 (sql, 1, id);
  bind_text (sql, 2, text);
  sqlite3_bind_int64 (sql, 3, index_text_crc (id, 0, text));
  return run (writer, INDEX_SQL_PUT_KEYWORDS);
}

static gboolean
apply_op (MailIndex *index, const MailIndexBatch *batch, const IndexOp *op)
{
  IndexWriter *writer = &index->writer;
  /* For the others start counts something else. */
  gpointer *texts = op->type >= INDEX_OP_NAME ? batch->texts->pdata + op->start : NULL;

  switch ((IndexOpType)op->type)
    {
    case INDEX_OP_PUT_MAILBOX:
      return put_mailbox (writer, g_ptr_array_index (batch->mailboxes, op->start));
    case INDEX_OP_REMOVE_MAILBOX:
      sqlite3_bind_int64 (writer->sql[INDEX_SQL_REMOVE_MAILBOX], 1, op->id);
      return run (writer, INDEX_SQL_REMOVE_MAILBOX);
    case INDEX_OP_DROP_CONTENTS:
      return drop_contents (index, op->id);
    case INDEX_OP_PUT:
      return put_messages (index, op->id, &g_array_index (batch->messages, MailMessage, op->start),
                           op->n);
    case INDEX_OP_REMOVE:
      return remove_messages (index, op->id, op->first, op->last);
    case INDEX_OP_NAME:
      return put_text (writer, INDEX_SQL_PUT_NAME, INDEX_SQL_REMOVE_NAMES, op->id, op->first,
                       texts[0]);
    case INDEX_OP_REMOTE_ID:
      return put_text (writer, INDEX_SQL_PUT_REMOTE_ID, INDEX_SQL_REMOVE_REMOTE_IDS, op->id,
                       op->first, texts[0]);
    case INDEX_OP_META:
      return put_meta (writer, texts[0], texts[1]);
    case INDEX_OP_KEYWORDS:
      return put_keywords (writer, op->id, texts[0]);
    }
  return TRUE;
}

static gboolean
apply_batches (MailIndex *index, GQueue *batches)
{
  IndexWriter *writer = &index->writer;

  if (!run (writer, INDEX_SQL_BEGIN))
    return FALSE;
  for (GList *l = batches->head; l; l = l->next)
    {
      const MailIndexBatch *batch = l->data;
      for (guint i = 0; i < batch->ops->len; i++)
        if (!apply_op (index, batch, &g_array_index (batch->ops, IndexOp, i)))
          return FALSE;
    }
  return store_page (writer) && run (writer, INDEX_SQL_COMMIT);
}

/* --- the thread --------------------------------------------------------------------------------
 */

/* One transaction. In memory there is one connection for all. */
static gboolean
try_batches (MailIndex *index, GQueue *batches, int *code_out)
{
  IndexWriter *writer = &index->writer;
  gboolean in_memory = index->in_memory; /* only this thread changes it */
  gboolean ok;

  if (in_memory)
    pthread_mutex_lock (&index->read_lock);
  ok = apply_batches (index, batches);
  if (!ok)
    {
      *code_out = sqlite3_errcode (writer->db);
      if (!index_is_corrupt_code (*code_out) && !g_atomic_int_get (&index->corrupt))
        mail_log_warning ("%s: %s", index->path, sqlite3_errmsg (writer->db));
      sqlite3_exec (writer->db, "ROLLBACK", NULL, NULL, NULL);
      writer->page.id = -1;
      writer->page.dirty = FALSE;
    }
  if (in_memory)
    pthread_mutex_unlock (&index->read_lock);
  return ok;
}

static void
write_batches (MailIndex *index, GQueue *batches)
{
  gboolean moved;
  int code = SQLITE_OK;

  if (g_atomic_int_get (&index->read_only) || try_batches (index, batches, &code))
    return;
  if (index_is_corrupt_code (code))
    index_mark_corrupt (index);
  if (!g_atomic_int_get (&index->corrupt) && !index->in_memory)
    {
      pthread_mutex_lock (&index->read_lock);
      moved = index_go_to_memory (index);
      pthread_mutex_unlock (&index->read_lock);
      if (moved && try_batches (index, batches, &code))
        return;
    }
  g_atomic_int_set (&index->read_only, TRUE);
}

/* Writing the log back syncs the disk: not while somebody waits for the transaction. */
static void
write_back_log (MailIndex *index)
{
  IndexWriter *writer = &index->writer;

  if (index->in_memory || g_atomic_int_get (&index->read_only) || writer->n_log_pages < LOG_PAGES)
    return;
  writer->n_log_pages = 0;
  sqlite3_wal_checkpoint_v2 (writer->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
}

/* In a burst, waits for more. What comes now and then is written at once: the less a kill can take
 * the better. queue_lock held. */
static void
gather (MailIndex *index)
{
  struct timespec until;
  int timed_out = 0;

  if (index->n_in_burst < BURST)
    return;
  clock_gettime (CLOCK_MONOTONIC, &until);
  until.tv_nsec += GATHER_NS;
  if (until.tv_nsec >= 1000000000)
    {
      until.tv_sec++;
      until.tv_nsec -= 1000000000;
    }
  while (timed_out == 0 && !index->stopping && index->n_flushing == 0 && !index->in_a_hurry)
    timed_out = pthread_cond_timedwait (&index->queued, &index->queue_lock, &until);
}

static void *
writer_main (void *data)
{
  MailIndex *index = data;

  pthread_mutex_lock (&index->queue_lock);
  for (;;)
    {
      if (g_queue_is_empty (&index->batches))
        {
          if (index->stopping)
            break;
          pthread_cond_wait (&index->queued, &index->queue_lock);
          continue;
        }
      gather (index);
      index->in_a_hurry = FALSE;
      GQueue batches = index->batches;
      guint64 sequence = index->queued_sequence;
      g_queue_init (&index->batches);
      pthread_mutex_unlock (&index->queue_lock);

      write_batches (index, &batches);
      pthread_mutex_lock (&index->queue_lock);
      index->done_sequence = sequence;
      gint64 now = g_get_monotonic_time ();
      index->n_in_burst = now - index->written_at < BURST_GAP ? index->n_in_burst + 1 : 0;
      index->written_at = now;
      pthread_cond_broadcast (&index->done);
      pthread_mutex_unlock (&index->queue_lock);

      g_queue_clear_full (&batches, (GDestroyNotify)index_batch_free);
      write_back_log (index);
      pthread_mutex_lock (&index->queue_lock);
    }
  pthread_mutex_unlock (&index->queue_lock);
  return NULL;
}

gboolean
index_writer_start (MailIndex *index)
{
  if (!index->in_memory)
    sqlite3_wal_hook (index->writer.db, count_log_pages, &index->writer);
  index->has_thread = pthread_create (&index->thread, NULL, writer_main, index) == 0;
  return index->has_thread;
}

void
index_writer_stop (MailIndex *index)
{
  if (!index->has_thread)
    return;
  pthread_mutex_lock (&index->queue_lock);
  index->stopping = TRUE;
  pthread_cond_signal (&index->queued);
  pthread_mutex_unlock (&index->queue_lock);
  pthread_join (index->thread, NULL);
  index->has_thread = FALSE;
}

void
mail_index_queue (MailIndex *index, MailIndexBatch *batch)
{
  if (batch->ops->len == 0)
    {
      index_batch_free (batch);
      return;
    }
  pthread_mutex_lock (&index->queue_lock);
  g_queue_push_tail (&index->batches, batch);
  index->queued_sequence++;
  /* What the journal says of a mailbox may soon lean on what is known of it here. */
  index->in_a_hurry |= batch->mailboxes->len > 0;
  if (index->batches.length == 1 || index->in_a_hurry)
    pthread_cond_signal (&index->queued);
  pthread_mutex_unlock (&index->queue_lock);
}

void
mail_index_flush (MailIndex *index)
{
  guint64 sequence;

  pthread_mutex_lock (&index->queue_lock);
  sequence = index->queued_sequence;
  index->n_flushing++;
  pthread_cond_signal (&index->queued);
  while (index->done_sequence < sequence)
    pthread_cond_wait (&index->done, &index->queue_lock);
  index->n_flushing--;
  pthread_mutex_unlock (&index->queue_lock);
}
