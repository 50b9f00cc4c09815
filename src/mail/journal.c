/* SPDX-License-Identifier: MIT
 *
 * MailJournal: one SQLite database in WAL mode. A commit is in the file when it returns, which is
 * all that a killed daemon needs; what must outlive a power cut asks for a durable one. Rows are
 * small and few, so each change of one writes it whole. Any thread.
 */
#include "mail/journal.h"

#include "mailfs/log.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define APPLICATION_ID 1835691893 /* "mjou" */
#define SCHEMA_VERSION 3
#define APPLICATION_ID_TEXT G_STRINGIFY (APPLICATION_ID)
#define SCHEMA_VERSION_TEXT G_STRINGIFY (SCHEMA_VERSION)
/* Ids are reserved in blocks, so that a file that is made does not cost two writes. */
#define ID_BLOCK 256u

struct MailJournal
{
  GRecMutex lock;
  sqlite3 *db;
  char *path;
  guint depth; /* of begin; under lock, as all below */
  int failed;  /* SQLite's code of the first failure in this transaction */
  sqlite3_stmt *begin, *commit;
  sqlite3_stmt *put_change, *remove_change, *put_staged, *remove_staged, *put_about;
  guint64 next_change;
  guint32 next_staged, staged_limit;
};

static const char schema[]
    = "BEGIN;"
      "CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;"
      "CREATE TABLE changes (id INTEGER PRIMARY KEY, kind INTEGER, step INTEGER, n_tries INTEGER,"
      " mailbox TEXT, uidvalidity INTEGER, uid INTEGER, target TEXT, bound INTEGER,"
      " target_uidvalidity INTEGER, new_uid INTEGER, staged INTEGER, replaces_content INTEGER,"
      " replaces_uidvalidity INTEGER, replaces INTEGER, area INTEGER, name TEXT, add_flags "
      "INTEGER, remove_flags INTEGER,"
      " add_keywords TEXT, remove_keywords TEXT);"
      "CREATE TABLE staged (id INTEGER PRIMARY KEY, state INTEGER, mailbox TEXT, area INTEGER,"
      " name TEXT, temporary INTEGER, mtime INTEGER, flags INTEGER, keywords TEXT, size INTEGER,"
      " wire_size INTEGER, digest BLOB, replaces_content INTEGER, replaces_uidvalidity INTEGER,"
      " replaces INTEGER, in_place INTEGER, source TEXT, source_uidvalidity INTEGER, source_uid "
      "INTEGER,"
      " uidvalidity INTEGER, uid INTEGER, error TEXT, dirty INTEGER);"
      "PRAGMA application_id=" APPLICATION_ID_TEXT ";"
      "PRAGMA user_version=" SCHEMA_VERSION_TEXT ";"
      "COMMIT";

static void
set_error (MailJournal *journal, int code, GError **error)
{
  g_set_error (error, MAIL_ERROR,
               (code & 0xff) == SQLITE_FULL ? MAIL_ERROR_NO_SPACE : MAIL_ERROR_FAILED,
               "the journal %s: %s", journal->path, sqlite3_errstr (code));
}

/* --- opening --------------------------------------------------------------------------------- */

static gint64
get_number (sqlite3 *db, const char *sql)
{
  sqlite3_stmt *stmt = NULL;
  gint64 value = -1;

  if (sqlite3_prepare_v2 (db, sql, -1, &stmt, NULL) == SQLITE_OK
      && sqlite3_step (stmt) == SQLITE_ROW)
    value = sqlite3_column_int64 (stmt, 0);
  sqlite3_finalize (stmt);
  return value;
}

static char *
get_text (sqlite3 *db, const char *sql)
{
  sqlite3_stmt *stmt = NULL;
  char *value = NULL;

  if (sqlite3_prepare_v2 (db, sql, -1, &stmt, NULL) == SQLITE_OK
      && sqlite3_step (stmt) == SQLITE_ROW)
    value = g_strdup ((const char *)sqlite3_column_text (stmt, 0));
  sqlite3_finalize (stmt);
  return value;
}

/* Once. The first failure of a transaction is kept; what comes after it is not done, for SQLite may
 * have taken the transaction back by itself. */
static void
finish (MailJournal *journal, sqlite3_stmt *stmt)
{
  if (journal->failed != SQLITE_OK)
    return;
  int code = sqlite3_step (stmt);
  if (code != SQLITE_DONE)
    journal->failed = code;
  sqlite3_reset (stmt);
}

static void
set_about (MailJournal *journal, const char *key, const char *value)
{
  sqlite3_bind_text (journal->put_about, 1, key, -1, SQLITE_STATIC);
  sqlite3_bind_text (journal->put_about, 2, value, -1, SQLITE_STATIC);
  finish (journal, journal->put_about);
}

static gboolean
is_sound (sqlite3 *db)
{
  g_autofree char *check = get_text (db, "PRAGMA quick_check(1)");

  return g_strcmp0 (check, "ok") == 0 && get_number (db, "PRAGMA application_id") == APPLICATION_ID
         && get_number (db, "PRAGMA user_version") == SCHEMA_VERSION
         && get_number (db, "SELECT COUNT(*) FROM about") >= 0
         && get_number (db, "SELECT COUNT(*) FROM changes") >= 0
         && get_number (db, "SELECT COUNT(*) FROM staged") >= 0;
}

/* SQLITE_OK, or why not; SQLITE_CORRUPT for whatever is not a journal of ours. */
static int
open_database (MailJournal *journal)
{
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX
              | SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_EXRESCODE;
  int code = sqlite3_open_v2 (journal->path, &journal->db, flags, NULL);

  if (code == SQLITE_OK)
    code = sqlite3_exec (journal->db,
                         "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL;"
                         "PRAGMA synchronous=NORMAL",
                         NULL, NULL, NULL);
  if (code == SQLITE_OK && get_number (journal->db, "SELECT COUNT(*) FROM sqlite_master") == 0)
    code = sqlite3_exec (journal->db, schema, NULL, NULL, NULL);
  else if (code == SQLITE_OK && !is_sound (journal->db))
    code = SQLITE_CORRUPT;
  /* Some damage, as of the schema's format, is only an error to SQLite. */
  return code == SQLITE_NOTADB || code == SQLITE_ERROR ? SQLITE_CORRUPT : code;
}

/* SQLite would take an empty file for a new database, and throw the log away. */
static gboolean
is_log_alone (const MailJournal *journal)
{
  g_autofree char *log = g_strconcat (journal->path, "-wal", NULL);
  struct stat st;

  if (lstat (journal->path, &st) == 0 ? st.st_size > 0 || !S_ISREG (st.st_mode) : errno != ENOENT)
    return FALSE;
  return lstat (log, &st) == 0 && st.st_size > 0;
}

/* It may hold the only word on what was under way: kept for whoever wants to look into it. */
static void
move_aside (MailJournal *journal)
{
  static const char *const suffixes[] = { "", "-wal", "-shm" };
  g_autofree char *away = NULL;

  for (guint n = 1; n < 1000; n++)
    {
      g_free (away);
      away = g_strdup_printf ("%s-%u.bad", journal->path, n);
      if (access (away, F_OK) < 0)
        break;
    }
  mail_log_error ("the journal %s cannot be used and is kept as %s; what was being written is in "
                  ".mailfs/failed",
                  journal->path, away);
  for (guint i = 0; i < G_N_ELEMENTS (suffixes); i++)
    {
      g_autofree char *from = g_strconcat (journal->path, suffixes[i], NULL);
      g_autofree char *to = g_strconcat (away, suffixes[i], NULL);

      if (rename (from, to) < 0 && errno != ENOENT)
        mail_log_error ("%s: %s", from, g_strerror (errno));
    }
}

static gboolean
prepare (MailJournal *journal)
{
  const struct
  {
    sqlite3_stmt **stmt;
    const char *sql;
  } all[] = {
    { &journal->begin, "BEGIN" },
    { &journal->commit, "COMMIT" },
    { &journal->put_change, "INSERT OR REPLACE INTO changes VALUES "
                            "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)" },
    { &journal->remove_change, "DELETE FROM changes WHERE id=?" },
    { &journal->put_staged, "INSERT OR REPLACE INTO staged VALUES "
                            "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)" },
    { &journal->remove_staged, "DELETE FROM staged WHERE id=?" },
    { &journal->put_about, "INSERT OR REPLACE INTO about VALUES (?,?)" },
  };

  for (guint i = 0; i < G_N_ELEMENTS (all); i++)
    if (sqlite3_prepare_v3 (journal->db, all[i].sql, -1, SQLITE_PREPARE_PERSISTENT, all[i].stmt,
                            NULL)
        != SQLITE_OK)
      return FALSE;
  return TRUE;
}

static void
load_numbers (MailJournal *journal)
{
  g_autofree char *reserved = get_text (journal->db, "SELECT value FROM about WHERE key='staged'");
  guint64 next = reserved != NULL ? g_ascii_strtoull (reserved, NULL, 10) : 0;

  journal->next_change = MAX (get_number (journal->db, "SELECT MAX(id) FROM changes"), 0) + 1;
  next = MAX (next, (guint64)MAX (get_number (journal->db, "SELECT MAX(id) FROM staged"), 0) + 1);
  journal->next_staged = journal->staged_limit = (guint32)MIN (next, G_MAXUINT32 - ID_BLOCK);
}

MailJournal *
mail_journal_open (const char *path, const char *account_key, gboolean *lost_out, GError **error)
{
  MailJournal *journal = g_new0 (MailJournal, 1);
  mode_t mask = umask (077);

  *lost_out = FALSE;
  journal->path = g_strdup (path);
  g_rec_mutex_init (&journal->lock);
  if (is_log_alone (journal))
    {
      move_aside (journal);
      *lost_out = TRUE;
    }
  int code = open_database (journal);
  if ((code & 0xff) == SQLITE_CORRUPT)
    {
      sqlite3_close (g_steal_pointer (&journal->db));
      move_aside (journal);
      *lost_out = TRUE;
      code = open_database (journal);
    }
  umask (mask);
  if (code == SQLITE_OK && !prepare (journal))
    code = sqlite3_extended_errcode (journal->db);
  if (code != SQLITE_OK)
    {
      set_error (journal, code, error);
      mail_journal_close (journal);
      return NULL;
    }
  load_numbers (journal);

  g_autofree char *owner = get_text (journal->db, "SELECT value FROM about WHERE key='account'");
  if (owner == NULL)
    mail_journal_adopt (journal, account_key);
  else
    *lost_out |= strcmp (owner, account_key) != 0;
  return journal;
}

void
mail_journal_adopt (MailJournal *journal, const char *account_key)
{
  mail_journal_begin (journal);
  set_about (journal, "account", account_key);
  mail_journal_commit (journal, NULL);
}

void
mail_journal_close (MailJournal *journal)
{
  sqlite3_finalize (journal->begin);
  sqlite3_finalize (journal->commit);
  sqlite3_finalize (journal->put_change);
  sqlite3_finalize (journal->remove_change);
  sqlite3_finalize (journal->put_staged);
  sqlite3_finalize (journal->remove_staged);
  sqlite3_finalize (journal->put_about);
  sqlite3_close (journal->db);
  g_rec_mutex_clear (&journal->lock);
  g_free (journal->path);
  g_free (journal);
}

/* --- transactions ---------------------------------------------------------------------------- */

void
mail_journal_begin (MailJournal *journal)
{
  g_rec_mutex_lock (&journal->lock);
  if (journal->depth++ > 0)
    return;
  journal->failed = SQLITE_OK;
  finish (journal, journal->begin);
}

gboolean
mail_journal_commit (MailJournal *journal, GError **error)
{
  gboolean good = TRUE;

  if (--journal->depth == 0)
    {
      finish (journal, journal->commit);
      if (journal->failed != SQLITE_OK)
        {
          sqlite3_exec (journal->db, "ROLLBACK", NULL, NULL, NULL);
          set_error (journal, journal->failed, error);
          good = FALSE;
        }
    }
  g_rec_mutex_unlock (&journal->lock);
  return good;
}

gboolean
mail_journal_sync (MailJournal *journal, GError **error)
{
  g_autofree char *path = g_strconcat (journal->path, "-wal", NULL);
  int fd = open (path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

  /* What was committed is in the log, or a checkpoint has moved and synced it already. */
  if (fd < 0 && errno == ENOENT)
    return TRUE;
  gboolean good = fd >= 0 && fdatasync (fd) == 0;
  if (!good)
    mail_set_errno (error, errno, path);
  if (fd >= 0)
    close (fd);
  return good;
}

/* --- rows ------------------------------------------------------------------------------------ */

static void
finish_row (MailJournal *journal, sqlite3_stmt *stmt)
{
  finish (journal, stmt);
  sqlite3_clear_bindings (stmt);
}

static void
bind_text (sqlite3_stmt *stmt, int i, const char *text)
{
  if (text != NULL)
    sqlite3_bind_text (stmt, i, text, -1, SQLITE_STATIC);
  else
    sqlite3_bind_null (stmt, i);
}

void
mail_journal_put_change (MailJournal *journal, const MailJournalChange *row)
{
  sqlite3_stmt *stmt = journal->put_change;
  int i = 1;

  sqlite3_bind_int64 (stmt, i++, (gint64)row->id);
  sqlite3_bind_int64 (stmt, i++, row->kind);
  sqlite3_bind_int64 (stmt, i++, row->step);
  sqlite3_bind_int64 (stmt, i++, row->n_tries);
  bind_text (stmt, i++, row->mailbox);
  sqlite3_bind_int64 (stmt, i++, row->uidvalidity);
  sqlite3_bind_int64 (stmt, i++, row->uid);
  bind_text (stmt, i++, row->target);
  sqlite3_bind_int64 (stmt, i++, row->bound);
  sqlite3_bind_int64 (stmt, i++, row->target_uidvalidity);
  sqlite3_bind_int64 (stmt, i++, row->new_uid);
  sqlite3_bind_int64 (stmt, i++, row->staged);
  sqlite3_bind_int64 (stmt, i++, row->replaces_content);
  sqlite3_bind_int64 (stmt, i++, row->replaces_uidvalidity);
  sqlite3_bind_int64 (stmt, i++, row->replaces);
  sqlite3_bind_int64 (stmt, i++, row->area);
  bind_text (stmt, i++, row->name);
  sqlite3_bind_int64 (stmt, i++, row->add);
  sqlite3_bind_int64 (stmt, i++, row->remove);
  bind_text (stmt, i++, row->add_keywords);
  bind_text (stmt, i++, row->remove_keywords);
  finish_row (journal, stmt);
}

void
mail_journal_remove_change (MailJournal *journal, guint64 id)
{
  sqlite3_bind_int64 (journal->remove_change, 1, (gint64)id);
  finish_row (journal, journal->remove_change);
}

void
mail_journal_put_staged (MailJournal *journal, const MailJournalStaged *row)
{
  sqlite3_stmt *stmt = journal->put_staged;
  int i = 1;

  sqlite3_bind_int64 (stmt, i++, row->id);
  sqlite3_bind_int64 (stmt, i++, row->state);
  bind_text (stmt, i++, row->mailbox);
  sqlite3_bind_int64 (stmt, i++, row->area);
  bind_text (stmt, i++, row->name);
  sqlite3_bind_int64 (stmt, i++, row->temporary);
  sqlite3_bind_int64 (stmt, i++, row->mtime);
  sqlite3_bind_int64 (stmt, i++, row->flags);
  bind_text (stmt, i++, row->keywords);
  sqlite3_bind_int64 (stmt, i++, (gint64)row->size);
  sqlite3_bind_int64 (stmt, i++, (gint64)row->wire_size);
  sqlite3_bind_blob (stmt, i++, row->digest, MAIL_DIGEST_SIZE, SQLITE_STATIC);
  sqlite3_bind_int64 (stmt, i++, row->replaces_content);
  sqlite3_bind_int64 (stmt, i++, row->replaces_uidvalidity);
  sqlite3_bind_int64 (stmt, i++, row->replaces);
  sqlite3_bind_int64 (stmt, i++, row->in_place);
  bind_text (stmt, i++, row->source);
  sqlite3_bind_int64 (stmt, i++, row->source_uidvalidity);
  sqlite3_bind_int64 (stmt, i++, row->source_uid);
  sqlite3_bind_int64 (stmt, i++, row->uidvalidity);
  sqlite3_bind_int64 (stmt, i++, row->uid);
  bind_text (stmt, i++, row->error);
  sqlite3_bind_int64 (stmt, i++, row->dirty);
  finish_row (journal, stmt);
}

void
mail_journal_remove_staged (MailJournal *journal, guint32 id)
{
  sqlite3_bind_int64 (journal->remove_staged, 1, id);
  finish_row (journal, journal->remove_staged);
}

/* --- numbers --------------------------------------------------------------------------------- */

guint64
mail_journal_new_change_id (MailJournal *journal)
{
  g_rec_mutex_lock (&journal->lock);
  guint64 id = journal->next_change++;
  g_rec_mutex_unlock (&journal->lock);
  return id;
}

guint32
mail_journal_new_staged_id (MailJournal *journal)
{
  g_rec_mutex_lock (&journal->lock);
  guint32 id = journal->next_staged++;
  if (id >= journal->staged_limit)
    {
      g_autofree char *text = NULL;

      journal->staged_limit = id + ID_BLOCK;
      text = g_strdup_printf ("%u", journal->staged_limit);
      mail_journal_begin (journal);
      set_about (journal, "staged", text);
      mail_journal_commit (journal, NULL);
    }
  g_rec_mutex_unlock (&journal->lock);
  return id;
}

void
mail_journal_set_floor (MailJournal *journal, guint32 floor)
{
  g_rec_mutex_lock (&journal->lock);
  if (journal->next_staged <= floor && floor < G_MAXUINT32 - ID_BLOCK)
    journal->next_staged = journal->staged_limit = floor + 1;
  g_rec_mutex_unlock (&journal->lock);
}

/* --- loading --------------------------------------------------------------------------------- */

static void
change_row_free (gpointer data)
{
  MailJournalChange *row = data;

  g_free (row->mailbox);
  g_free (row->target);
  g_free (row->name);
  g_free (row->add_keywords);
  g_free (row->remove_keywords);
  g_free (row);
}

static void
staged_row_free (gpointer data)
{
  MailJournalStaged *row = data;

  g_free (row->mailbox);
  g_free (row->name);
  g_free (row->keywords);
  g_free (row->source);
  g_free (row->error);
  g_free (row);
}

static guint32
column (sqlite3_stmt *stmt, int i)
{
  return (guint32)CLAMP (sqlite3_column_int64 (stmt, i), 0, G_MAXUINT32);
}

static guint64
column_size (sqlite3_stmt *stmt, int i)
{
  return (guint64)MAX (sqlite3_column_int64 (stmt, i), 0);
}

static char *
column_text (sqlite3_stmt *stmt, int i)
{
  return g_strdup ((const char *)sqlite3_column_text (stmt, i));
}

static gpointer
read_change (sqlite3_stmt *stmt)
{
  MailJournalChange *row = g_new0 (MailJournalChange, 1);
  int i = 0;

  row->id = (guint64)sqlite3_column_int64 (stmt, i++);
  row->kind = column (stmt, i++);
  row->step = column (stmt, i++);
  row->n_tries = column (stmt, i++);
  row->mailbox = column_text (stmt, i++);
  row->uidvalidity = column (stmt, i++);
  row->uid = column (stmt, i++);
  row->target = column_text (stmt, i++);
  row->bound = column (stmt, i++);
  row->target_uidvalidity = column (stmt, i++);
  row->new_uid = column (stmt, i++);
  row->staged = column (stmt, i++);
  row->replaces_content = column (stmt, i++);
  row->replaces_uidvalidity = column (stmt, i++);
  row->replaces = column (stmt, i++);
  row->area = column (stmt, i++);
  row->name = column_text (stmt, i++);
  row->add = column (stmt, i++);
  row->remove = column (stmt, i++);
  row->add_keywords = column_text (stmt, i++);
  row->remove_keywords = column_text (stmt, i++);
  return row;
}

static gpointer
read_staged (sqlite3_stmt *stmt)
{
  MailJournalStaged *row = g_new0 (MailJournalStaged, 1);
  int i = 0;

  row->id = column (stmt, i++);
  row->state = column (stmt, i++);
  row->mailbox = column_text (stmt, i++);
  row->area = column (stmt, i++);
  row->name = column_text (stmt, i++);
  row->temporary = column (stmt, i++) != 0;
  row->mtime = sqlite3_column_int64 (stmt, i++);
  row->flags = column (stmt, i++);
  row->keywords = column_text (stmt, i++);
  row->size = column_size (stmt, i++);
  row->wire_size = column_size (stmt, i++);
  const void *digest = sqlite3_column_blob (stmt, i);
  if (digest != NULL && sqlite3_column_bytes (stmt, i) == MAIL_DIGEST_SIZE)
    memcpy (row->digest, digest, MAIL_DIGEST_SIZE);
  i++;
  row->replaces_content = column (stmt, i++);
  row->replaces_uidvalidity = column (stmt, i++);
  row->replaces = column (stmt, i++);
  row->in_place = column (stmt, i++) != 0;
  row->source = column_text (stmt, i++);
  row->source_uidvalidity = column (stmt, i++);
  row->source_uid = column (stmt, i++);
  row->uidvalidity = column (stmt, i++);
  row->uid = column (stmt, i++);
  row->error = column_text (stmt, i++);
  row->dirty = column (stmt, i++) != 0;
  return row;
}

static GPtrArray *
load (MailJournal *journal, const char *sql, gpointer (*read) (sqlite3_stmt *),
      GDestroyNotify free_row, GError **error)
{
  g_autoptr (GPtrArray) rows = g_ptr_array_new_with_free_func (free_row);
  sqlite3_stmt *stmt = NULL;

  g_rec_mutex_lock (&journal->lock);
  int code = sqlite3_prepare_v2 (journal->db, sql, -1, &stmt, NULL);
  while (code == SQLITE_OK || code == SQLITE_ROW)
    {
      code = sqlite3_step (stmt);
      if (code == SQLITE_ROW)
        g_ptr_array_add (rows, read (stmt));
    }
  sqlite3_finalize (stmt);
  g_rec_mutex_unlock (&journal->lock);
  if (code == SQLITE_DONE)
    return g_steal_pointer (&rows);
  set_error (journal, code, error);
  return NULL;
}

GPtrArray *
mail_journal_load_changes (MailJournal *journal, GError **error)
{
  return load (journal, "SELECT * FROM changes ORDER BY id", read_change, change_row_free, error);
}

GPtrArray *
mail_journal_load_staged (MailJournal *journal, GError **error)
{
  return load (journal, "SELECT * FROM staged ORDER BY id", read_staged, staged_row_free, error);
}
