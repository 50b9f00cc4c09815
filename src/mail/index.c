/* SPDX-License-Identifier: MIT
 *
 * MailIndex: opening, checking and closing the database, and reading it. Reading happens in the
 * caller's thread on a connection of its own, so it never waits for a transaction of the writer
 * (index-write.c). What cannot be trusted is put aside, never repaired: everything here can be
 * asked from the server again, except the numbers, which index-ids.c keeps.
 */
#include "index-private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define APPLICATION_ID 0x6d61696c /* "mail" */
#define SCHEMA_VERSION 1
#define SMALL_DATABASE (16u << 20)
/* Keyword sets are what senders of mail and other clients make them: bounded. */
#define MAX_KEYWORD_SETS 1000000
#define MAX_KEYWORD_BYTES (16 << 20)

#define N_TABLES 7
static const char schema[]
    = "BEGIN;"
      "CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;"
      "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT, crc INTEGER) WITHOUT ROWID;"
      "CREATE TABLE mailboxes (id INTEGER PRIMARY KEY, content_id INTEGER, name TEXT, path TEXT,"
      " special_use TEXT, flags INTEGER, uidvalidity INTEGER, uidnext INTEGER,"
      " highestmodseq INTEGER, n_messages INTEGER, n_unseen INTEGER, crc INTEGER);"
      "CREATE TABLE pages (id INTEGER PRIMARY KEY, data BLOB);"
      "CREATE TABLE keywords (id INTEGER PRIMARY KEY, text TEXT, crc INTEGER);"
      "CREATE TABLE names (content_id INTEGER, uid INTEGER, text TEXT, crc INTEGER,"
      " PRIMARY KEY (content_id, uid)) WITHOUT ROWID;"
      "CREATE TABLE remote_ids (content_id INTEGER, uid INTEGER, text TEXT, crc INTEGER,"
      " PRIMARY KEY (content_id, uid)) WITHOUT ROWID;";

gboolean
index_is_corrupt_code (int code)
{
  code &= 0xff;
  return code == SQLITE_CORRUPT || code == SQLITE_NOTADB;
}

static void
set_sqlite_error (GError **error, int code, const char *what, const char *text)
{
  MailErrorCode mail_code = MAIL_ERROR_FAILED;

  if (index_is_corrupt_code (code))
    mail_code = MAIL_ERROR_CORRUPT;
  else if ((code & 0xff) == SQLITE_FULL)
    mail_code = MAIL_ERROR_NO_SPACE;
  else if ((code & 0xff) == SQLITE_READONLY)
    mail_code = MAIL_ERROR_READ_ONLY;
  else if ((code & 0xff) == SQLITE_PERM || (code & 0xff) == SQLITE_AUTH)
    mail_code = MAIL_ERROR_PERMISSION;
  g_set_error (error, MAIL_ERROR, mail_code, "%s: %s", what, text);
}

static char *
beside (MailIndex *index, const char *suffix)
{
  return g_strconcat (index->path, suffix, NULL);
}

/* --- throwing away ------------------------------------------------------------------------------
 */

void
index_mark_corrupt (MailIndex *index)
{
  g_autofree char *bad = NULL;

  g_atomic_int_set (&index->read_only, TRUE);
  if (!g_atomic_int_compare_and_exchange (&index->corrupt, FALSE, TRUE))
    return;
  mail_log_warning ("%s is damaged; mailboxes are listed again", index->path);
  bad = beside (index, ".bad");
  if (rename (index->path, bad) < 0)
    mail_log_warning ("%s: %s", bad, g_strerror (errno));
}

/* Whether there was anything. */
static gboolean
discard (MailIndex *index)
{
  static const char *const suffixes[] = { "", "-wal", "-shm", "-journal", ".bad" };
  gboolean found = FALSE;

  for (guint i = 0; i < G_N_ELEMENTS (suffixes); i++)
    {
      g_autofree char *path = beside (index, suffixes[i]);
      struct stat st;

      if (lstat (path, &st) < 0)
        continue;
      found |= i == 0 || i == G_N_ELEMENTS (suffixes) - 1;
      /* Something else than a file in our place: out of the way, not deleted. */
      if (S_ISDIR (st.st_mode))
        {
          g_autofree char *away = g_strconcat (path, ".away", NULL);
          if (rmdir (path) < 0 && rename (path, away) < 0)
            mail_log_warning ("%s: %s", path, g_strerror (errno));
        }
      else if (unlink (path) < 0)
        mail_log_warning ("%s: %s", path, g_strerror (errno));
    }
  return found;
}

static guint64
file_size (MailIndex *index, const char *suffix)
{
  g_autofree char *path = beside (index, suffix);
  struct stat st;

  return lstat (path, &st) == 0 ? st.st_size : 0;
}

/* --- small questions ----------------------------------------------------------------------------
 */

/* -1 with *code_out when there is no row. */
static gint64
query_number (sqlite3 *db, const char *text, int *code_out)
{
  sqlite3_stmt *sql = NULL;
  gint64 number = -1;
  int code = sqlite3_prepare_v2 (db, text, -1, &sql, NULL);

  if (code == SQLITE_OK)
    code = sqlite3_step (sql);
  if (code == SQLITE_ROW)
    {
      number = sqlite3_column_int64 (sql, 0);
      code = SQLITE_OK;
    }
  sqlite3_finalize (sql);
  *code_out = code;
  return number;
}

static char *
query_text (sqlite3 *db, const char *text, int *code_out)
{
  sqlite3_stmt *sql = NULL;
  char *result = NULL;
  int code = sqlite3_prepare_v2 (db, text, -1, &sql, NULL);

  if (code == SQLITE_OK)
    code = sqlite3_step (sql);
  if (code == SQLITE_ROW)
    {
      result = g_strdup ((const char *)sqlite3_column_text (sql, 0));
      code = SQLITE_OK;
    }
  sqlite3_finalize (sql);
  *code_out = code;
  return result;
}

static int
exec (sqlite3 *db, const char *text)
{
  return sqlite3_exec (db, text, NULL, NULL, NULL);
}

/* --- opening -------------------------------------------------------------------------------------
 */

static int
create_tables (sqlite3 *db, const char *account_key)
{
  g_autofree char *numbers = g_strdup_printf (
      "PRAGMA application_id = %d; PRAGMA user_version = %d;", APPLICATION_ID, SCHEMA_VERSION);
  char *about = sqlite3_mprintf ("INSERT INTO about VALUES ('account', %Q); COMMIT", account_key);
  int code = exec (db, schema);

  if (code == SQLITE_OK)
    code = exec (db, numbers);
  if (code == SQLITE_OK)
    code = exec (db, about);
  sqlite3_free (about);
  return code;
}

/* Whether the tables are the ones we make, to the letter. */
static gboolean
has_our_tables (sqlite3 *db, int *code_out)
{
  char *text = sqlite3_mprintf ("SELECT count(*) = %d AND count(*) = sum(instr(%Q, sql || ';') > 0)"
                                " FROM sqlite_schema WHERE sql IS NOT NULL",
                                N_TABLES, schema);
  gint64 answer = query_number (db, text, code_out);

  sqlite3_free (text);
  return answer == 1;
}

/* SQLITE_NOTADB for anything that is not the database of this account. */
static int
check_tables (sqlite3 *db, const char *account_key, gboolean thorough)
{
  g_autofree char *account = NULL;
  int code;
  gint64 application, version, n_tables;

  application = query_number (db, "PRAGMA application_id", &code);
  if (code != SQLITE_OK)
    return code;
  version = query_number (db, "PRAGMA user_version", &code);
  if (code != SQLITE_OK)
    return code;
  n_tables = query_number (db, "SELECT count(*) FROM sqlite_schema", &code);
  if (code != SQLITE_OK)
    return code;
  if (application == 0 && version == 0 && n_tables == 0)
    return create_tables (db, account_key);
  if (application != APPLICATION_ID || version != SCHEMA_VERSION || !has_our_tables (db, &code))
    return code == SQLITE_OK ? SQLITE_NOTADB : code;
  if (thorough)
    {
      g_autofree char *answer = query_text (db, "PRAGMA quick_check(1)", &code);
      if (code != SQLITE_OK || g_strcmp0 (answer, "ok") != 0)
        return code == SQLITE_OK ? SQLITE_CORRUPT : code;
    }
  account = query_text (db, "SELECT value FROM about WHERE key = 'account'", &code);
  return g_strcmp0 (account, account_key) == 0 ? SQLITE_OK : SQLITE_NOTADB;
}

/* A half megabyte is enough for the pages that are changed again and again. */
static int
configure (sqlite3 *db, gboolean writer)
{
  if (!db)
    return SQLITE_NOMEM;
  sqlite3_extended_result_codes (db, 1);
  sqlite3_busy_timeout (db, 10000);
  exec (db, "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0;"
            "PRAGMA temp_store = MEMORY; PRAGMA cache_size = -512");
  if (!writer)
    return exec (db, "PRAGMA query_only = ON");
  return exec (db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
                   "PRAGMA journal_size_limit = 4194304; PRAGMA wal_autocheckpoint = 0");
}

static int
load_keywords (MailIndex *index)
{
  sqlite3_stmt *sql = NULL;
  int code = sqlite3_prepare_v2 (index->read_db, "SELECT id, text, crc FROM keywords ORDER BY id",
                                 -1, &sql, NULL);

  while (code == SQLITE_OK && (code = sqlite3_step (sql)) == SQLITE_ROW)
    {
      gint64 id = sqlite3_column_int64 (sql, 0);
      const char *text = (const char *)sqlite3_column_text (sql, 1);

      if (id < 1 || id > MAX_KEYWORD_SETS || !text
          || index_text_crc (id, 0, text) != (guint32)sqlite3_column_int64 (sql, 2))
        {
          code = SQLITE_CORRUPT;
          break;
        }
      if (id > index->keyword_texts->len)
        g_ptr_array_set_size (index->keyword_texts, id);
      index->keyword_texts->pdata[id - 1] = g_strdup (text);
      g_hash_table_insert (index->keyword_ids, index->keyword_texts->pdata[id - 1],
                           GUINT_TO_POINTER (id));
      index->keyword_bytes += strlen (text) + 1;
      code = SQLITE_OK;
    }
  sqlite3_finalize (sql);
  return code == SQLITE_DONE ? SQLITE_OK : code;
}

static int
open_database (MailIndex *index, const char *account_key, char **text_out)
{
  /* Looking over all of a small one takes milliseconds; a large one only after a crash. */
  gboolean thorough = file_size (index, "-wal") > 0 || file_size (index, "") <= SMALL_DATABASE;
  const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_NOFOLLOW;
  sqlite3 *failed;
  int code, fd;

  /* SQLite gives its files the mode of the database: make it before SQLite does. */
  fd = open (index->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (fd < 0)
    {
      *text_out = g_strdup (g_strerror (errno));
      return errno == ENOSPC || errno == EDQUOT  ? SQLITE_FULL
             : errno == EROFS                    ? SQLITE_READONLY
             : errno == EACCES                   ? SQLITE_PERM
             : errno == ELOOP || errno == EISDIR ? SQLITE_NOTADB
                                                 : SQLITE_CANTOPEN;
    }
  close (fd);

  failed = NULL;
  code = sqlite3_open_v2 (index->path, &index->writer.db, flags, NULL);
  if (code == SQLITE_OK)
    code = configure (index->writer.db, TRUE);
  if (code == SQLITE_OK)
    code = check_tables (index->writer.db, account_key, thorough);
  if (code == SQLITE_OK && !index_writer_prepare (&index->writer))
    code = (sqlite3_errcode (index->writer.db) & 0xff) == SQLITE_ERROR
               ? SQLITE_NOTADB /* the tables have another form */
               : sqlite3_errcode (index->writer.db);
  if (code != SQLITE_OK)
    failed = index->writer.db;
  if (code == SQLITE_OK)
    {
      code = sqlite3_open_v2 (index->path, &index->read_db, flags, NULL);
      if (code == SQLITE_OK)
        code = configure (index->read_db, FALSE);
      if (code == SQLITE_OK)
        code = load_keywords (index);
      if (code != SQLITE_OK)
        failed = index->read_db;
    }
  if (code != SQLITE_OK)
    *text_out = g_strdup (failed && sqlite3_errcode (failed) != SQLITE_OK ? sqlite3_errmsg (failed)
                                                                          : sqlite3_errstr (code));
  return code;
}

static void
close_database (MailIndex *index)
{
  /* The last to close writes the log back and removes it, which is the mark of a clean end. */
  if (!index->in_memory)
    sqlite3_close (index->read_db);
  index->read_db = NULL;
  index->in_memory = FALSE;
  index_writer_finish (&index->writer);
}

static void
forget_keywords (MailIndex *index)
{
  g_hash_table_remove_all (index->keyword_ids);
  g_ptr_array_set_size (index->keyword_texts, 0);
  index->keyword_bytes = 0;
}

static gboolean
copy_database (sqlite3 *from, sqlite3 *to)
{
  sqlite3_backup *backup = sqlite3_backup_init (to, "main", from, "main");

  if (backup)
    sqlite3_backup_step (backup, -1);
  return backup && sqlite3_backup_finish (backup) == SQLITE_OK;
}

gboolean
index_go_to_memory (MailIndex *index)
{
  IndexWriter writer = { 0 };

  if (sqlite3_open_v2 (":memory:", &writer.db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL)
          != SQLITE_OK
      || !copy_database (index->read_db, writer.db)
      || sqlite3_exec (writer.db, "PRAGMA temp_store = MEMORY", NULL, NULL, NULL) != SQLITE_OK
      || !index_writer_prepare (&writer))
    {
      mail_log_warning ("%s: nothing is written there any more", index->path);
      index_writer_finish (&writer);
      return FALSE;
    }
  mail_log_warning ("%s: going on in memory", index->path);
  close_database (index);
  index->writer = writer;
  index->read_db = writer.db;
  index->in_memory = TRUE;
  return TRUE;
}

/* A disk that cannot be written from the start: what is there is read, as long as its log is empty
 * (without the log it may be half of a change). */
static gboolean
open_in_memory (MailIndex *index, const char *account_key)
{
  g_autofree char *escaped = g_uri_escape_string (index->path, "/", FALSE);
  g_autofree char *uri = g_strdup_printf ("file:%s?immutable=1", escaped);
  const int flags = SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_URI;

  close_database (index);
  forget_keywords (index);
  if (file_size (index, "") > 0 && file_size (index, "-wal") == 0
      && sqlite3_open_v2 (uri, &index->read_db, flags, NULL) == SQLITE_OK
      && check_tables (index->read_db, account_key, FALSE) == SQLITE_OK
      && load_keywords (index) == SQLITE_OK && index_go_to_memory (index))
    return TRUE;
  close_database (index);
  forget_keywords (index);
  return sqlite3_open_v2 (":memory:", &index->read_db, SQLITE_OPEN_READWRITE, NULL) == SQLITE_OK
         && create_tables (index->read_db, account_key) == SQLITE_OK && index_go_to_memory (index);
}

static guint64
smallest_free_id (MailIndex *index)
{
  int code;
  /* Passing numbers (index-ids.c) do not count; page rows are content id << 25. */
  gint64 largest = query_number (
      index->read_db,
      "SELECT max(coalesce((SELECT max(id) FROM mailboxes WHERE id < 0xe0000000), 0),"
      " coalesce((SELECT max(content_id) FROM mailboxes WHERE content_id < 0xe0000000), 0),"
      " coalesce((SELECT max(id) >> 25 FROM pages WHERE id < 0xe0000000 << 25), 0))",
      &code);

  return MAX (largest, 0) + 1;
}

static void
free_index (MailIndex *index)
{
  close_database (index);
  forget_keywords (index);
  pthread_mutex_destroy (&index->queue_lock);
  pthread_mutex_destroy (&index->read_lock);
  pthread_mutex_destroy (&index->keywords_lock);
  pthread_cond_destroy (&index->queued);
  pthread_cond_destroy (&index->done);
  g_hash_table_unref (index->keyword_ids);
  g_ptr_array_unref (index->keyword_texts);
  free (index->dir);
  g_free (index->path);
  g_free (index);
}

static MailIndex *
new_index (char *real_dir)
{
  MailIndex *index = g_new0 (MailIndex, 1);
  pthread_condattr_t monotonic;

  index->dir = real_dir;
  index->path = g_build_filename (real_dir, "index.db", NULL);
  pthread_mutex_init (&index->queue_lock, NULL);
  pthread_mutex_init (&index->read_lock, NULL);
  pthread_mutex_init (&index->keywords_lock, NULL);
  pthread_condattr_init (&monotonic);
  pthread_condattr_setclock (&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init (&index->queued, &monotonic);
  pthread_condattr_destroy (&monotonic);
  pthread_cond_init (&index->done, NULL);
  g_queue_init (&index->batches);
  index->keyword_ids = g_hash_table_new (g_str_hash, g_str_equal);
  index->keyword_texts = g_ptr_array_new_with_free_func (g_free);
  return index;
}

MailIndex *
mail_index_open (const char *dir, const char *account_key, gboolean *rebuilt_out, GError **error)
{
  char *real_dir = realpath (dir, NULL);
  g_autofree char *text = NULL;
  MailIndex *index;
  gboolean rebuilt;
  int code;

  if (!real_dir)
    return mail_set_errno (error, errno, dir), NULL;
  index = new_index (real_dir);
  rebuilt = file_size (index, ".bad") > 0 && discard (index);
  code = open_database (index, account_key, &text);
  if (index_is_corrupt_code (code))
    {
      mail_log_warning ("%s cannot be used (%s); begun anew", index->path, text);
      close_database (index);
      forget_keywords (index);
      rebuilt |= discard (index);
      g_clear_pointer (&text, g_free);
      code = open_database (index, account_key, &text);
    }
  if (code != SQLITE_OK)
    mail_log_warning ("%s: %s", index->path, text);
  if (code != SQLITE_OK && !open_in_memory (index, account_key))
    {
      set_sqlite_error (error, code, index->path, text);
      free_index (index);
      return NULL;
    }
  index_ids_open (&index->ids, index->dir, smallest_free_id (index), rebuilt);
  if (!index_writer_start (index))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_FAILED, "%s: no thread to write", index->path);
      index_ids_close (&index->ids);
      free_index (index);
      return NULL;
    }
  if (rebuilt_out)
    *rebuilt_out = rebuilt;
  return index;
}

void
mail_index_close (MailIndex *index)
{
  if (!index)
    return;
  index_writer_stop (index);
  index_ids_close (&index->ids);
  free_index (index);
}

guint32
mail_index_new_id (MailIndex *index)
{
  return index_ids_next (&index->ids);
}

/* --- keywords and meta --------------------------------------------------------------------------
 */

guint32
mail_index_keywords_id (MailIndex *index, const char *keywords)
{
  guint32 id;

  if (!keywords || !*keywords)
    return 0;
  pthread_mutex_lock (&index->keywords_lock);
  id = GPOINTER_TO_UINT (g_hash_table_lookup (index->keyword_ids, keywords));
  if (id == 0 && index->keyword_texts->len < MAX_KEYWORD_SETS
      && index->keyword_bytes < MAX_KEYWORD_BYTES)
    {
      MailIndexBatch *batch = mail_index_batch_new ();
      char *text = g_strdup (keywords);

      g_ptr_array_add (index->keyword_texts, text);
      id = index->keyword_texts->len;
      index->keyword_bytes += strlen (text) + 1;
      g_hash_table_insert (index->keyword_ids, text, GUINT_TO_POINTER (id));
      /* Queued before anybody can queue a message that has this number. */
      index_batch_put_keywords (batch, id, text);
      mail_index_queue (index, batch);
    }
  else if (id == 0 && !index->keywords_warned)
    {
      index->keywords_warned = TRUE;
      mail_log_warning ("index: too many different sets of keywords; the rest is not shown");
    }
  pthread_mutex_unlock (&index->keywords_lock);
  return id;
}

const char *
mail_index_keywords (MailIndex *index, guint32 id)
{
  const char *text = NULL;

  if (id == 0)
    return "";
  pthread_mutex_lock (&index->keywords_lock);
  if (id <= index->keyword_texts->len)
    text = index->keyword_texts->pdata[id - 1];
  pthread_mutex_unlock (&index->keywords_lock);
  return text ? text : "";
}

void
mail_index_set_meta (MailIndex *index, const char *key, const char *value)
{
  MailIndexBatch *batch = mail_index_batch_new ();

  index_batch_put_meta (batch, key, value);
  mail_index_queue (index, batch);
}

char *
mail_index_get_meta (MailIndex *index, const char *key)
{
  sqlite3_stmt *sql = NULL;
  char *value = NULL;

  pthread_mutex_lock (&index->read_lock);
  if (!g_atomic_int_get (&index->corrupt)
      && sqlite3_prepare_v2 (index->read_db, "SELECT value, crc FROM meta WHERE key = ?", -1, &sql,
                             NULL)
             == SQLITE_OK)
    {
      sqlite3_bind_text (sql, 1, key, -1, SQLITE_STATIC);
      if (sqlite3_step (sql) == SQLITE_ROW)
        value = g_strdup ((const char *)sqlite3_column_text (sql, 0));
      if (value
          && index_text_crc (index_text_crc (0, 0, key), 0, value)
                 != (guint32)sqlite3_column_int64 (sql, 1))
        {
          g_clear_pointer (&value, g_free);
          index_mark_corrupt (index);
        }
    }
  sqlite3_finalize (sql);
  pthread_mutex_unlock (&index->read_lock);
  return value;
}

/* --- loading
 * -------------------------------------------------------------------------------------- */

/* What a row adds to result; FALSE: the row is damaged. */
typedef gboolean (*RowFunc) (sqlite3_stmt *sql, guint32 content_id, gpointer result);

/* Sees everything that was queued before. text may have two parameters: first, last. */
static gboolean
load_rows (MailIndex *index, const char *text, guint32 content_id, gint64 first, gint64 last,
           RowFunc row, gpointer result, GError **error)
{
  sqlite3_stmt *sql = NULL;
  int code;

  mail_index_flush (index);
  pthread_mutex_lock (&index->read_lock);
  code = g_atomic_int_get (&index->corrupt)
             ? SQLITE_CORRUPT
             : sqlite3_prepare_v2 (index->read_db, text, -1, &sql, NULL);
  if (code == SQLITE_OK)
    {
      sqlite3_bind_int64 (sql, 1, first);
      sqlite3_bind_int64 (sql, 2, last);
      while ((code = sqlite3_step (sql)) == SQLITE_ROW)
        if (!row (sql, content_id, result))
          {
            code = SQLITE_CORRUPT;
            break;
          }
    }
  if (index_is_corrupt_code (code))
    index_mark_corrupt (index);
  if (code != SQLITE_DONE)
    set_sqlite_error (error, code, index->path, sqlite3_errstr (code));
  sqlite3_finalize (sql);
  pthread_mutex_unlock (&index->read_lock);
  return code == SQLITE_DONE;
}

static gboolean
mailbox_row (sqlite3_stmt *sql, guint32 content_id, gpointer result)
{
  MailIndexMailbox *mailbox = g_new0 (MailIndexMailbox, 1);
  MailMailboxStatus *status = &mailbox->status;

  g_ptr_array_add (result, mailbox);
  mailbox->id = sqlite3_column_int64 (sql, 0);
  mailbox->content_id = sqlite3_column_int64 (sql, 1);
  mailbox->name = g_strdup ((const char *)sqlite3_column_text (sql, 2));
  mailbox->path = g_strdup ((const char *)sqlite3_column_text (sql, 3));
  mailbox->special_use = g_strdup ((const char *)sqlite3_column_text (sql, 4));
  mailbox->flags = sqlite3_column_int64 (sql, 5);
  status->uidvalidity = sqlite3_column_int64 (sql, 6);
  status->uidnext = sqlite3_column_int64 (sql, 7);
  status->highestmodseq = sqlite3_column_int64 (sql, 8);
  status->n_messages = sqlite3_column_int64 (sql, 9);
  status->n_unseen = sqlite3_column_int64 (sql, 10);
  return index_mailbox_crc (mailbox) == (guint32)sqlite3_column_int64 (sql, 11);
}

GPtrArray *
mail_index_load_mailboxes (MailIndex *index, GError **error)
{
  g_autoptr (GPtrArray) mailboxes = g_ptr_array_new_with_free_func (
      (GDestroyNotify)mail_index_mailbox_free);

  if (!load_rows (index,
                  "SELECT id, content_id, name, path, special_use, flags, uidvalidity, uidnext,"
                  " highestmodseq, n_messages, n_unseen, crc FROM mailboxes ORDER BY id",
                  0, 0, 0, mailbox_row, mailboxes, error))
    return NULL;
  return g_steal_pointer (&mailboxes);
}

static gboolean
page_row (sqlite3_stmt *sql, guint32 content_id, gpointer result)
{
  GArray *messages = result;
  guint n, old = messages->len;

  /* Unpacked in place: room for a full page, then cut to what there was. */
  g_array_set_size (messages, old + INDEX_PAGE_MESSAGES);
  if (!index_page_unpack (sqlite3_column_int64 (sql, 0), sqlite3_column_blob (sql, 1),
                          sqlite3_column_bytes (sql, 1),
                          &g_array_index (messages, MailMessage, old), &n))
    return FALSE;
  g_array_set_size (messages, old + n);
  return TRUE;
}

GArray *
mail_index_load_messages (MailIndex *index, guint32 content_id, GError **error)
{
  g_autoptr (GArray) messages = g_array_new (FALSE, FALSE, sizeof (MailMessage));

  if (!load_rows (index, "SELECT id, data FROM pages WHERE id BETWEEN ? AND ? ORDER BY id",
                  content_id, index_page_id (content_id, 0),
                  index_page_id (content_id, G_MAXUINT32), page_row, messages, error))
    return NULL;
  return g_steal_pointer (&messages);
}

static gboolean
text_row (sqlite3_stmt *sql, guint32 content_id, gpointer result)
{
  MailIndexString string = { .uid = sqlite3_column_int64 (sql, 0),
                             .text = g_strdup ((const char *)sqlite3_column_text (sql, 1)) };

  g_array_append_val ((GArray *)result, string);
  return string.text
         && index_text_crc (content_id, string.uid, string.text)
                == (guint32)sqlite3_column_int64 (sql, 2);
}

static void
clear_string (gpointer data)
{
  g_clear_pointer (&((MailIndexString *)data)->text, g_free);
}

static GArray *
load_texts (MailIndex *index, const char *text, guint32 content_id, GError **error)
{
  g_autoptr (GArray) strings = g_array_new (FALSE, FALSE, sizeof (MailIndexString));

  g_array_set_clear_func (strings, clear_string);
  if (!load_rows (index, text, content_id, content_id, content_id, text_row, strings, error))
    return NULL;
  return g_steal_pointer (&strings);
}

GArray *
mail_index_load_names (MailIndex *index, guint32 content_id, GError **error)
{
  return load_texts (
      index, "SELECT uid, text, crc FROM names WHERE content_id BETWEEN ? AND ? ORDER BY uid",
      content_id, error);
}

GArray *
mail_index_load_remote_ids (MailIndex *index, guint32 content_id, GError **error)
{
  return load_texts (
      index, "SELECT uid, text, crc FROM remote_ids WHERE content_id BETWEEN ? AND ? ORDER BY uid",
      content_id, error);
}
