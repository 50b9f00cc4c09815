/* SPDX-License-Identifier: MIT
 *
 * What src/mail/journal.h promises: a row comes back as it was written, a transaction is whole or
 * absent whenever the daemon dies, numbers of staged files are never handed out twice, and a
 * database that cannot be used is put aside as it is.
 */
#include "mail/journal.h"
#include "mailfs/log.h"
#include "scratch.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <sqlite3.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define ACCOUNT "me@example.org"

typedef struct
{
  char *dir, *path;
  MailJournal *journal;
  sqlite3 *db; /* the journal's own connection, while it is open */
  gboolean lost;
} Fixture;

static sqlite3 *connection; /* the one that was opened last */

static int
note_connection (sqlite3 *db, char **message, const struct sqlite3_api_routines *api)
{
  connection = db;
  return SQLITE_OK;
}

/* --- helpers -------------------------------------------------------------------------------------
 */

static void
open_journal (Fixture *f)
{
  g_autoptr (GError) error = NULL;

  f->journal = mail_journal_open (f->path, ACCOUNT, &f->lost, &error);
  g_assert_no_error (error);
  g_assert_nonnull (f->journal);
  f->db = connection;
}

static void
close_journal (Fixture *f)
{
  g_clear_pointer (&f->journal, mail_journal_close);
}

static void
reopen (Fixture *f)
{
  close_journal (f);
  open_journal (f);
}

static void
set_up (Fixture *f, gconstpointer data)
{
  f->dir = scratch_new ("journal");
  f->path = g_build_filename (f->dir, "journal.sqlite", NULL);
  open_journal (f);
  g_assert_false (f->lost);
}

static void
tear_down (Fixture *f, gconstpointer data)
{
  close_journal (f);
  scratch_free (f->dir);
  g_free (f->path);
}

static GPtrArray *
load_changes (Fixture *f)
{
  g_autoptr (GError) error = NULL;
  GPtrArray *rows = mail_journal_load_changes (f->journal, &error);

  g_assert_no_error (error);
  return rows;
}

static GPtrArray *
load_staged (Fixture *f)
{
  g_autoptr (GError) error = NULL;
  GPtrArray *rows = mail_journal_load_staged (f->journal, &error);

  g_assert_no_error (error);
  return rows;
}

static void
commit (Fixture *f)
{
  g_autoptr (GError) error = NULL;

  g_assert_true (mail_journal_commit (f->journal, &error));
  g_assert_no_error (error);
}

static void
put_change (Fixture *f, guint64 id, const char *name)
{
  const MailJournalChange row = { .id = id, .kind = 3, .name = (char *)name };

  mail_journal_begin (f->journal);
  mail_journal_put_change (f->journal, &row);
  commit (f);
}

static void
put_staged (Fixture *f, guint32 id, const char *name)
{
  const MailJournalStaged row = { .id = id, .name = (char *)name };

  mail_journal_begin (f->journal);
  mail_journal_put_staged (f->journal, &row);
  commit (f);
}

/* Ids of both kinds: "1 2 | 7". */
static char *
list_ids (Fixture *f)
{
  g_autoptr (GPtrArray) changes = load_changes (f), staged = load_staged (f);
  GString *list = g_string_new (NULL);

  for (guint i = 0; i < changes->len; i++)
    g_string_append_printf (list, "%" G_GUINT64_FORMAT " ",
                            ((MailJournalChange *)changes->pdata[i])->id);
  g_string_append_c (list, '|');
  for (guint i = 0; i < staged->len; i++)
    g_string_append_printf (list, " %u", ((MailJournalStaged *)staged->pdata[i])->id);
  return g_string_free (list, FALSE);
}

static void
assert_ids (Fixture *f, const char *expected)
{
  g_autofree char *list = list_ids (f);

  g_assert_cmpstr (list, ==, expected);
}

static void
run_sql (const char *path, const char *text)
{
  sqlite3 *db = NULL;

  g_assert_cmpint (sqlite3_open (path, &db), ==, SQLITE_OK);
  g_assert_cmpint (sqlite3_exec (db, text, NULL, NULL, NULL), ==, SQLITE_OK);
  sqlite3_close (db);
}

/* What is on disk now, as after a kill, in a place of its own. */
static void
copy_killed (Fixture *f, Fixture *killed)
{
  static const char *const suffixes[] = { "", "-wal" };

  *killed = (Fixture) { 0 };
  killed->dir = scratch_new ("journal");
  killed->path = g_build_filename (killed->dir, "journal.sqlite", NULL);
  for (guint i = 0; i < G_N_ELEMENTS (suffixes); i++)
    {
      g_autofree char *from = g_strconcat (f->path, suffixes[i], NULL);
      g_autofree char *to = g_strconcat (killed->path, suffixes[i], NULL);
      g_autofree char *data = NULL;
      gsize length;

      if (g_file_get_contents (from, &data, &length, NULL))
        g_assert_true (g_file_set_contents (to, data, (gssize)length, NULL));
    }
}

static void
assert_killed (Fixture *f, const char *expected)
{
  Fixture killed;

  copy_killed (f, &killed);
  open_journal (&killed);
  g_assert_false (killed.lost);
  assert_ids (&killed, expected);
  tear_down (&killed, NULL);
}

/* --- rows ----------------------------------------------------------------------------------------
 */

typedef enum
{
  NUMBER,
  LONG,   /* 63 bits: SQLite has no more */
  SIGNED, /* 64 bits */
  TRUTH,
  TEXT,
  DIGEST,
} Type;

typedef struct
{
  const char *name;
  Type type;
  gsize offset;
} Field;

#define CHANGE(type, field) #field, type, G_STRUCT_OFFSET(MailJournalChange, field)
#define STAGED(type, field) #field, type, G_STRUCT_OFFSET(MailJournalStaged, field)

/* All but the id. */
static const Field change_fields[] = {
  { CHANGE (NUMBER, kind) },
  { CHANGE (NUMBER, step) },
  { CHANGE (NUMBER, n_tries) },
  { CHANGE (TEXT, mailbox) },
  { CHANGE (NUMBER, uidvalidity) },
  { CHANGE (NUMBER, uid) },
  { CHANGE (TEXT, target) },
  { CHANGE (NUMBER, bound) },
  { CHANGE (NUMBER, target_uidvalidity) },
  { CHANGE (NUMBER, new_uid) },
  { CHANGE (NUMBER, staged) },
  { CHANGE (NUMBER, replaces_content) },
  { CHANGE (NUMBER, replaces_uidvalidity) },
  { CHANGE (NUMBER, replaces) },
  { CHANGE (NUMBER, area) },
  { CHANGE (TEXT, name) },
  { CHANGE (NUMBER, add) },
  { CHANGE (NUMBER, remove) },
  { CHANGE (TEXT, add_keywords) },
  { CHANGE (TEXT, remove_keywords) },
};

static const Field staged_fields[] = {
  { STAGED (NUMBER, state) },
  { STAGED (TEXT, mailbox) },
  { STAGED (NUMBER, area) },
  { STAGED (TEXT, name) },
  { STAGED (TRUTH, temporary) },
  { STAGED (SIGNED, mtime) },
  { STAGED (NUMBER, flags) },
  { STAGED (TEXT, keywords) },
  { STAGED (LONG, size) },
  { STAGED (LONG, wire_size) },
  { STAGED (DIGEST, digest) },
  { STAGED (NUMBER, replaces_content) },
  { STAGED (NUMBER, replaces_uidvalidity) },
  { STAGED (NUMBER, replaces) },
  { STAGED (TRUTH, in_place) },
  { STAGED (TEXT, source) },
  { STAGED (NUMBER, source_uidvalidity) },
  { STAGED (NUMBER, source_uid) },
  { STAGED (NUMBER, uidvalidity) },
  { STAGED (NUMBER, uid) },
  { STAGED (TEXT, error) },
  { STAGED (TRUTH, dirty) },
};

static const struct
{
  const char *name;
  gboolean change;
  const Field *fields;
  guint n_fields;
  gsize size;
} kinds[] = {
  { "change", TRUE, change_fields, G_N_ELEMENTS (change_fields), sizeof (MailJournalChange) },
  { "staged", FALSE, staged_fields, G_N_ELEMENTS (staged_fields), sizeof (MailJournalStaged) },
};

/* Texts that a database, a protocol or a file system might take for something else. */
static char *const texts[] = {
  (char *)"",
  (char *)"INBOX",
  (char *)"O'Neill; DROP TABLE changes; --",
  (char *)"Gel\xc3\xb6scht/\xe2\x82\xac",
  (char *)"\xff\xfe not UTF-8 \x80",
  (char *)"line\r\nline\ttab\x01\x7f",
  (char *)"1234",
  (char *)"$Label1 work \\Recent %s %n ?1 :a",
};

/* How values are chosen for the fields of a row. */
typedef enum
{
  EMPTY,
  DISTINCT, /* another one in each field */
  LARGEST,
  SMALLEST, /* the date before the epoch */
  LONG_TEXT,
  N_FILLS
} Fill;
static const char *const fill_names[] = { "empty", "distinct", "largest", "smallest", "long-text" };

static char *long_text;

static void
set_field (gpointer row, const Field *field, Fill fill, guint i)
{
  guint8 *at = (guint8 *)row + field->offset;

  switch (field->type)
    {
    case NUMBER:
      *(guint32 *)at = fill == LARGEST ? G_MAXUINT32 : fill == SMALLEST ? 0 : 1000 + i;
      break;
    case LONG:
      *(guint64 *)at = fill == LARGEST    ? G_MAXINT64
                       : fill == SMALLEST ? 0
                                          : G_GUINT64_CONSTANT (1) << 40 | i;
      break;
    case SIGNED:
      *(gint64 *)at = fill == LARGEST    ? G_MAXINT64
                      : fill == SMALLEST ? G_MININT64
                                         : -G_GINT64_CONSTANT (5000000000) - i;
      break;
    case TRUTH:
      *(gboolean *)at = fill != SMALLEST && i % 2 == 0;
      break;
    case TEXT:
      *(char **)at = fill == LONG_TEXT  ? long_text
                     : fill == SMALLEST ? texts[0]
                                        : texts[i % G_N_ELEMENTS (texts)];
      break;
    case DIGEST:
      for (guint n = 0; n < MAIL_DIGEST_SIZE; n++)
        at[n] = fill == LARGEST ? 0xff : fill == SMALLEST ? 0 : (guint8)(i + 7 * n);
      break;
    }
}

static void
assert_same (gconstpointer one, gconstpointer other, const Field *field)
{
  const guint8 *a = (const guint8 *)one + field->offset, *b = (const guint8 *)other + field->offset;

  switch (field->type)
    {
    case NUMBER:
      g_assert_cmpuint (*(const guint32 *)a, ==, *(const guint32 *)b);
      break;
    case LONG:
    case SIGNED:
      g_assert_cmpint (*(const gint64 *)a, ==, *(const gint64 *)b);
      break;
    case TRUTH:
      g_assert_cmpint (*(const gboolean *)a, ==, *(const gboolean *)b);
      break;
    case TEXT:
      g_assert_cmpstr (*(char *const *)a, ==, *(char *const *)b);
      break;
    case DIGEST:
      g_assert_cmpmem (a, MAIL_DIGEST_SIZE, b, MAIL_DIGEST_SIZE);
      break;
    }
}

static gpointer
new_row (guint kind, guint64 id)
{
  gpointer row = g_malloc0 (kinds[kind].size);

  if (kinds[kind].change)
    ((MailJournalChange *)row)->id = id;
  else
    ((MailJournalStaged *)row)->id = (guint32)id;
  return row;
}

static void
put_row (Fixture *f, guint kind, gconstpointer row)
{
  mail_journal_begin (f->journal);
  if (kinds[kind].change)
    mail_journal_put_change (f->journal, row);
  else
    mail_journal_put_staged (f->journal, row);
  commit (f);
}

/* The n-th one is this, now and after the next start. */
static void
assert_row (Fixture *f, guint kind, guint at, gconstpointer expected)
{
  for (guint turn = 0; turn < 2; turn++)
    {
      g_autoptr (GPtrArray) rows = kinds[kind].change ? load_changes (f) : load_staged (f);

      g_assert_cmpuint (rows->len, >, at);
      gconstpointer row = rows->pdata[at];
      if (kinds[kind].change)
        g_assert_cmpuint (((const MailJournalChange *)row)->id, ==,
                          ((const MailJournalChange *)expected)->id);
      else
        g_assert_cmpuint (((const MailJournalStaged *)row)->id, ==,
                          ((const MailJournalStaged *)expected)->id);
      for (guint i = 0; i < kinds[kind].n_fields; i++)
        assert_same (row, expected, &kinds[kind].fields[i]);
      reopen (f);
      g_assert_false (f->lost);
    }
}

static gpointer
filled_row (guint kind, guint64 id, Fill fill)
{
  gpointer row = new_row (kind, id);

  for (guint i = 0; fill != EMPTY && i < kinds[kind].n_fields; i++)
    set_field (row, &kinds[kind].fields[i], fill, i);
  return row;
}

static void
test_row (Fixture *f, gconstpointer data)
{
  guint kind = GPOINTER_TO_UINT (data) / N_FILLS, fill = GPOINTER_TO_UINT (data) % N_FILLS;
  guint64 largest_id = kinds[kind].change ? G_MAXINT64 - 1 : G_MAXUINT32;
  g_autofree gpointer row = filled_row (kind, fill == LARGEST ? largest_id : 5, fill);

  put_row (f, kind, row);
  assert_row (f, kind, 0, row);
}

/* Each field alone: no other one is touched by it, whatever the texts. */
static void
test_fields (Fixture *f, gconstpointer data)
{
  guint kind = GPOINTER_TO_UINT (data), n = 0;
  g_autoptr (GPtrArray) rows = g_ptr_array_new_with_free_func (g_free);

  for (guint i = 0; i < kinds[kind].n_fields; i++)
    for (guint value = 0; value < G_N_ELEMENTS (texts); value++)
      {
        gpointer row = new_row (kind, ++n);

        set_field (row, &kinds[kind].fields[i], DISTINCT, value);
        put_row (f, kind, row);
        g_ptr_array_add (rows, row);
      }
  g_autoptr (GPtrArray) loaded = kinds[kind].change ? load_changes (f) : load_staged (f);
  g_assert_cmpuint (loaded->len, ==, n);
  for (guint row = 0; row < n; row++)
    for (guint i = 0; i < kinds[kind].n_fields; i++)
      assert_same (loaded->pdata[row], rows->pdata[row], &kinds[kind].fields[i]);
}

/* Nothing stays of what was there; the neighbours do. */
static void
test_replaced (Fixture *f, gconstpointer data)
{
  guint kind = GPOINTER_TO_UINT (data);
  g_autofree gpointer before = filled_row (kind, 4, DISTINCT),
                      full = filled_row (kind, 5, DISTINCT);
  g_autofree gpointer after = filled_row (kind, 6, DISTINCT), empty = filled_row (kind, 5, EMPTY);

  put_row (f, kind, after);
  put_row (f, kind, full);
  put_row (f, kind, before);
  assert_row (f, kind, 1, full);
  put_row (f, kind, empty);
  assert_row (f, kind, 1, empty);
  put_row (f, kind, full);
  assert_row (f, kind, 1, full);
  assert_row (f, kind, 0, before);
  assert_row (f, kind, 2, after);
  assert_ids (f, kinds[kind].change ? "4 5 6 |" : "| 4 5 6");
}

/* Of the kind that is meant, with that id, and one that is not there is no trouble. */
static void
test_removed (Fixture *f, gconstpointer data)
{
  for (guint i = 1; i <= 4; i++)
    {
      put_change (f, i, "change");
      put_staged (f, i, "file");
    }
  mail_journal_begin (f->journal);
  mail_journal_remove_change (f->journal, 2);
  mail_journal_remove_staged (f->journal, 3);
  mail_journal_remove_staged (f->journal, 99);
  assert_ids (f, "1 3 4 | 1 2 4"); /* who is inside sees it */
  commit (f);
  assert_ids (f, "1 3 4 | 1 2 4");
  reopen (f);
  assert_ids (f, "1 3 4 | 1 2 4");
  put_change (f, 2, "again");
  assert_ids (f, "1 2 3 4 | 1 2 4");
}

/* --- transactions --------------------------------------------------------------------------------
 */

static void
test_nested (Fixture *f, gconstpointer data)
{
  const MailJournalChange change = { .id = 7 };
  const MailJournalStaged staged = { .id = 8 };

  put_change (f, 1, "first");
  mail_journal_begin (f->journal);
  mail_journal_put_change (f->journal, &change);
  mail_journal_begin (f->journal);
  mail_journal_remove_change (f->journal, 1);
  mail_journal_begin (f->journal);
  mail_journal_put_staged (f->journal, &staged);
  assert_killed (f, "1 |");
  commit (f);
  assert_killed (f, "1 |");
  commit (f);
  assert_killed (f, "1 |");
  commit (f);
  assert_killed (f, "7 | 8");
  /* And the next one begins anew. */
  put_change (f, 9, "next");
  assert_killed (f, "7 9 | 8");
}

/* More than SQLite keeps in memory, so that some of it is in the log before the end. */
static void
put_much (Fixture *f)
{
  for (guint i = 0; i < 60; i++)
    {
      const MailJournalChange row = { .id = 100 + i, .name = long_text };

      mail_journal_put_change (f->journal, &row);
    }
}

static void
die_in_the_middle (Fixture *f)
{
  mail_journal_begin (f->journal);
  mail_journal_remove_change (f->journal, 1);
  put_much (f);
}

static void
die_inside (Fixture *f)
{
  die_in_the_middle (f);
  mail_journal_begin (f->journal);
  mail_journal_remove_staged (f->journal, 1);
  mail_journal_commit (f->journal, NULL);
}

static void
die_at_the_end (Fixture *f)
{
  die_inside (f);
  mail_journal_remove_change (f->journal, 2);
  for (guint i = 0; i < 60; i++)
    mail_journal_remove_change (f->journal, 100 + i);
  mail_journal_commit (f->journal, NULL);
}

static const struct
{
  const char *name;
  void (*act) (Fixture *f);
  const char *expected;
} deaths[] = {
  { "in-the-middle", die_in_the_middle, "1 2 | 1" },
  { "inside", die_inside, "1 2 | 1" },
  { "at-the-end", die_at_the_end, "|" },
};

static void
test_killed (Fixture *f, gconstpointer data)
{
  guint row = GPOINTER_TO_UINT (data);
  int status;

  put_change (f, 1, "one");
  put_change (f, 2, "two");
  put_staged (f, 1, "file");
  close_journal (f);
  pid_t pid = fork ();
  if (pid == 0)
    {
      open_journal (f);
      deaths[row].act (f);
      _exit (17);
    }
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  g_assert_true (WIFEXITED (status) && WEXITSTATUS (status) == 17);
  open_journal (f);
  g_assert_false (f->lost);
  assert_ids (f, deaths[row].expected);
  put_change (f, 3, "goes on");
  reopen (f);
  g_assert_false (f->lost);
}

/* A log that ends anywhere holds the transactions that are whole, from the first on. */
static void
test_torn (Fixture *f, gconstpointer data)
{
  g_autofree char *log = g_strconcat (f->path, "-wal", NULL);
  const guint n = 12;
  guint last = 0;
  GStatBuf st;

  reopen (f); /* the log of how it was made is written back */
  for (guint i = 1; i <= n; i++)
    {
      mail_journal_begin (f->journal);
      const MailJournalChange change = { .id = i };
      const MailJournalStaged staged = { .id = i, .name = (char *)"file" };
      mail_journal_put_change (f->journal, &change);
      mail_journal_put_staged (f->journal, &staged);
      commit (f);
    }
  g_assert_cmpint (g_stat (log, &st), ==, 0);
  for (off_t length = 0; length <= st.st_size; length += 1777)
    {
      g_autoptr (GPtrArray) changes = NULL, staged = NULL;
      Fixture killed;

      copy_killed (f, &killed);
      g_autofree char *copy = g_strconcat (killed.path, "-wal", NULL);
      g_assert_cmpint (truncate (copy, length), ==, 0);
      open_journal (&killed);
      g_assert_false (killed.lost);
      changes = load_changes (&killed);
      staged = load_staged (&killed);
      g_assert_cmpuint (changes->len, ==, staged->len);
      g_assert_cmpuint (changes->len, >=, last);
      last = changes->len;
      for (guint i = 0; i < last; i++)
        g_assert_cmpuint (((MailJournalChange *)changes->pdata[i])->id, ==, i + 1);
      tear_down (&killed, NULL);
    }
  g_assert_cmpuint (last, >=, n - 1);
}

/* Killed while it was being made: that is nothing to complain of, for nothing was in it. */
static void
test_torn_new (Fixture *f, gconstpointer data)
{
  g_autofree char *log = g_strconcat (f->path, "-wal", NULL);
  GStatBuf st;

  g_assert_cmpint (g_stat (log, &st), ==, 0);
  for (off_t length = 0; length <= st.st_size; length += 1777)
    {
      Fixture killed;

      copy_killed (f, &killed);
      g_autofree char *copy = g_strconcat (killed.path, "-wal", NULL);
      g_assert_cmpint (truncate (copy, length), ==, 0);
      open_journal (&killed);
      g_assert_false (killed.lost);
      tear_down (&killed, NULL);
    }
}

static void
test_sync (Fixture *f, gconstpointer data)
{
  g_autofree char *log = g_strconcat (f->path, "-wal", NULL);
  g_autoptr (GError) error = NULL;

  put_change (f, 1, "x");
  g_assert_true (mail_journal_sync (f->journal, &error));
  reopen (f);
  g_assert_true (mail_journal_sync (f->journal, &error));
  /* Without a log everything is in the file. */
  g_assert_cmpint (g_unlink (log), ==, 0);
  g_assert_true (mail_journal_sync (f->journal, &error));
  /* Somebody else's file is not taken for ours. */
  g_assert_cmpint (symlink (f->path, log), ==, 0);
  g_assert_false (mail_journal_sync (f->journal, &error));
  g_assert_nonnull (error);
  g_assert_cmpint (g_unlink (log), ==, 0);
}

/* --- numbers -------------------------------------------------------------------------------------
 */

typedef enum
{
  KEEP_ROWS,
  NO_ROWS,
  REMOVE_ROWS,
  DIE,    /* the numbers of a killed daemon */
  DAMAGE, /* another database in the same place, and the largest number seen on disk */
} Numbers;

static const struct
{
  const char *name;
  Numbers how;
} numbers[] = {
  { "kept", KEEP_ROWS }, { "never-put", NO_ROWS }, { "removed", REMOVE_ROWS },
  { "killed", DIE },     { "damaged", DAMAGE },
};

static guint32
take_numbers (Fixture *f, GHashTable *seen, gboolean put)
{
  guint32 id = 0;

  for (guint i = 0; i < 300; i++)
    {
      id = mail_journal_new_staged_id (f->journal);
      g_assert_cmpuint (id, >, 0);
      g_assert_true (g_hash_table_add (seen, GUINT_TO_POINTER (id)));
    }
  if (put)
    put_staged (f, id, "the last one");
  return id;
}

static void
test_staged_numbers (Fixture *f, gconstpointer data)
{
  Numbers how = numbers[GPOINTER_TO_UINT (data)].how;
  g_autoptr (GHashTable) seen = g_hash_table_new (NULL, NULL);

  for (guint round = 0; round < 5; round++)
    {
      guint32 last = take_numbers (f, seen, how != NO_ROWS);

      if (how == REMOVE_ROWS)
        {
          mail_journal_begin (f->journal);
          mail_journal_remove_staged (f->journal, last);
          commit (f);
          assert_ids (f, "|");
        }
      if (how == DIE)
        {
          Fixture killed;

          copy_killed (f, &killed);
          tear_down (f, NULL);
          *f = killed;
          open_journal (f);
          continue;
        }
      close_journal (f);
      if (how == DAMAGE)
        g_assert_true (g_file_set_contents (f->path, "no database at all", -1, NULL));
      open_journal (f);
      g_assert_cmpint (f->lost, ==, how == DAMAGE);
      if (how == DAMAGE)
        mail_journal_set_floor (f->journal, last);
    }
}

/* A floor is a lower limit, not the next number, and lasts as long as what follows from it. */
static void
test_floor (Fixture *f, gconstpointer data)
{
  mail_journal_set_floor (f->journal, 5000);
  mail_journal_set_floor (f->journal, 7); /* is lower: nothing */
  g_assert_cmpuint (mail_journal_new_staged_id (f->journal), ==, 5001);
  g_assert_cmpuint (mail_journal_new_staged_id (f->journal), ==, 5002);
  mail_journal_set_floor (f->journal, 5001);
  g_assert_cmpuint (mail_journal_new_staged_id (f->journal), ==, 5003);
  reopen (f);
  g_assert_cmpuint (mail_journal_new_staged_id (f->journal), >, 5003);
  /* What a row has is taken, whoever put it there. */
  put_staged (f, 90000, "x");
  reopen (f);
  g_assert_cmpuint (mail_journal_new_staged_id (f->journal), >, 90000);
}

/* Of changes: not twice while it is open, and never that of one that is still to be done. */
static void
test_change_numbers (Fixture *f, gconstpointer data)
{
  guint64 last = 0;

  for (guint i = 0; i < 600; i++)
    {
      guint64 id = mail_journal_new_change_id (f->journal);

      g_assert_cmpuint (id, >, last);
      last = id;
      put_change (f, id, "x");
      mail_journal_begin (f->journal);
      mail_journal_remove_change (f->journal, id);
      commit (f);
    }
  put_change (f, last, "x");
  put_change (f, 3, "old");
  reopen (f);
  g_assert_cmpuint (mail_journal_new_change_id (f->journal), >, last);
  put_change (f, G_MAXUINT32 + G_GUINT64_CONSTANT (7), "x");
  reopen (f);
  g_assert_cmpuint (mail_journal_new_change_id (f->journal), ==,
                    G_MAXUINT32 + G_GUINT64_CONSTANT (8));
}

/* --- damage --------------------------------------------------------------------------------------
 */

typedef enum
{
  DAMAGE_NOTHING,
  DAMAGE_GARBAGE,
  DAMAGE_SHORT,
  DAMAGE_HALF,
  DAMAGE_PAGE,
  DAMAGE_LAST_PAGE,
  DAMAGE_SQL,
} Damage;

typedef enum
{
  FINE,
  LOST,  /* and put aside */
  OTHER, /* another account's: its rows are still there for who cares */
} Found;

static const struct
{
  const char *name;
  Damage damage;
  const char *sql;
  Found found;
} damages[] = {
  { "none", DAMAGE_NOTHING, NULL, FINE },
  { "garbage", DAMAGE_GARBAGE, NULL, LOST },
  { "short", DAMAGE_SHORT, NULL, LOST },
  { "half", DAMAGE_HALF, NULL, LOST },
  { "page", DAMAGE_PAGE, NULL, LOST },
  { "last-page", DAMAGE_LAST_PAGE, NULL, LOST },
  { "other-application", DAMAGE_SQL, "PRAGMA application_id = 7", LOST },
  { "no-application", DAMAGE_SQL, "PRAGMA application_id = 0", LOST },
  { "newer", DAMAGE_SQL, "PRAGMA user_version = 4", LOST },
  { "older", DAMAGE_SQL, "PRAGMA user_version = 2", LOST },
  { "no-changes", DAMAGE_SQL, "DROP TABLE changes", LOST },
  { "no-staged", DAMAGE_SQL, "DROP TABLE staged", LOST },
  { "no-about", DAMAGE_SQL, "DROP TABLE about", LOST },
  { "somebody-elses", DAMAGE_SQL,
    "DROP TABLE about; DROP TABLE changes; DROP TABLE staged;"
    "CREATE TABLE moz_cookies (a); INSERT INTO moz_cookies VALUES (1)",
    LOST },
  { "other-account", DAMAGE_SQL, "UPDATE about SET value = 'you' WHERE key = 'account'", OTHER },
  { "no-account", DAMAGE_SQL, "DELETE FROM about", FINE },
};

static void
write_at (const char *path, const char *text, off_t offset)
{
  int fd = open (path, O_WRONLY | O_CLOEXEC);

  g_assert_cmpint (pwrite (fd, text, strlen (text), offset), ==, (gssize)strlen (text));
  close (fd);
}

static void
damage (const char *path, guint row)
{
  GStatBuf st;

  g_assert_cmpint (g_stat (path, &st), ==, 0);
  switch (damages[row].damage)
    {
    case DAMAGE_NOTHING:
      break;
    case DAMAGE_GARBAGE:
      g_assert_true (g_file_set_contents (path, "this is not the file you want", -1, NULL));
      break;
    case DAMAGE_SHORT:
      g_assert_cmpint (truncate (path, 50), ==, 0);
      break;
    case DAMAGE_HALF:
      g_assert_cmpint (truncate (path, st.st_size / 2), ==, 0);
      break;
    case DAMAGE_PAGE:
      write_at (path, "damage damage damage", 2 * 4096);
      break;
    case DAMAGE_LAST_PAGE: /* of a long text: counting rows does not come by there */
      write_at (path, "damage damage damage", st.st_size - 4096);
      break;
    case DAMAGE_SQL:
      run_sql (path, damages[row].sql);
      break;
    }
}

static void
assert_contents (const char *path, const char *suffix, GBytes *expected)
{
  g_autofree char *file = g_strconcat (path, suffix, NULL);
  g_autofree char *data = NULL;
  gsize length;

  g_assert_cmpint (g_file_test (file, G_FILE_TEST_EXISTS), ==, expected != NULL);
  if (expected == NULL)
    return;
  g_assert_true (g_file_get_contents (file, &data, &length, NULL));
  g_assert_cmpmem (data, length, g_bytes_get_data (expected, NULL), g_bytes_get_size (expected));
}

static GBytes *
contents (const char *path)
{
  char *data = NULL;
  gsize length;

  g_assert_true (g_file_get_contents (path, &data, &length, NULL));
  return g_bytes_new_take (data, length);
}

/* Twice: what was put aside first stays as it is. */
static void
test_damaged (Fixture *f, gconstpointer data)
{
  const guint row = GPOINTER_TO_UINT (data);
  gboolean lost = damages[row].found == LOST;
  g_autoptr (GBytes) first = NULL, second = NULL;

  for (guint round = 0; round < 2; round++)
    {
      put_change (f, 5, "change");
      put_staged (f, 6, long_text);
      close_journal (f);
      damage (f->path, row);
      g_autoptr (GBytes) bytes = contents (f->path);
      open_journal (f);
      g_assert_cmpint (f->lost, ==, damages[row].found != FINE);
      assert_ids (f, lost ? "|" : "5 | 6");
      if (lost)
        *(round == 0 ? &first : &second) = g_steal_pointer (&bytes);
      assert_contents (f->path, "-1.bad", first);
      assert_contents (f->path, "-2.bad", second);
      mail_journal_adopt (f->journal, ACCOUNT);
      reopen (f); /* a good one from now on */
      g_assert_false (f->lost);
    }
}

static gboolean
is_in (const char *path, const char *suffix, const char *text)
{
  g_autofree char *file = g_strconcat (path, suffix, NULL);
  g_autofree char *data = NULL;
  gsize length = 0;

  return g_file_get_contents (file, &data, &length, NULL)
         && memmem (data, length, text, strlen (text)) != NULL;
}

static const struct
{
  const char *name, *text;
  off_t offset;
} log_cases[] = {
  { "header", "not SQLite format", 0 },
  { "page", "damage damage damage", 4096 },
  { "other-page", "damage damage damage", 2 * 4096 },
};

/* Damage that comes with a log that was not written back: what is in the log is kept too. */
static void
test_damaged_killed (Fixture *f, gconstpointer data)
{
  guint row = GPOINTER_TO_UINT (data);
  Fixture killed;

  put_change (f, 5, "written back");
  reopen (f);
  put_change (f, 6, "only in the log");
  put_staged (f, 7, "in the log as well");
  copy_killed (f, &killed);
  g_assert_true (is_in (killed.path, "-wal", "only in the log"));
  g_assert_false (is_in (killed.path, "", "only in the log"));
  write_at (killed.path, log_cases[row].text, log_cases[row].offset);
  open_journal (&killed);
  g_assert_cmpint (killed.lost, ==, is_in (killed.path, "-1.bad", ""));
  if (killed.lost)
    {
      assert_ids (&killed, "|");
      for (guint i = 0; i < 2; i++)
        {
          const char *text = i == 0 ? "only in the log" : "in the log as well";
          g_assert_true (is_in (killed.path, "-1.bad", text)
                         || is_in (killed.path, "-1.bad-wal", text));
        }
    }
  put_change (&killed, 9, "goes on");
  reopen (&killed);
  g_assert_false (killed.lost);
  tear_down (&killed, NULL);
}

/* A database of no bytes with a log beside it is not a new one. */
static void
test_emptied (Fixture *f, gconstpointer data)
{
  Fixture killed;

  reopen (f);
  put_change (f, 6, "only in the log");
  copy_killed (f, &killed);
  g_assert_cmpint (truncate (killed.path, 0), ==, 0);
  open_journal (&killed);
  g_assert_true (killed.lost);
  g_assert_true (is_in (killed.path, "-1.bad", "only in the log")
                 || is_in (killed.path, "-1.bad-wal", "only in the log"));
  tear_down (&killed, NULL);
}

/* Another account's rows are still that before whoever is told has done away with them. */
static void
test_foreign_killed (Fixture *f, gconstpointer data)
{
  put_change (f, 5, "remove it");
  close_journal (f);
  run_sql (f->path, "UPDATE about SET value = 'you' WHERE key = 'account'");
  open_journal (f);
  g_assert_true (f->lost);
  reopen (f);
  assert_ids (f, "5 |");
  g_assert_true (f->lost);
}

/* One bit: put aside as it is, or opened; then what is read is rows or an error. FALSE: it was not
 * opened at all, and is as it was. */
static gboolean
open_flipped (Fixture *f, GBytes *bad, guint *n_lost)
{
  gsize length;
  const char *bytes = g_bytes_get_data (bad, &length);
  g_autofree char *aside = g_strconcat (f->path, "-1.bad", NULL);
  g_autoptr (GError) error = NULL, unread = NULL;

  g_assert_true (g_file_set_contents (f->path, bytes, (gssize)length, NULL));
  f->journal = mail_journal_open (f->path, ACCOUNT, &f->lost, &error);
  if (f->journal == NULL)
    {
      g_assert_error (error, MAIL_ERROR, MAIL_ERROR_FAILED);
      g_assert_false (f->lost);
      assert_contents (f->path, "", bad);
      return FALSE;
    }
  g_autoptr (GPtrArray) changes = mail_journal_load_changes (f->journal, NULL);
  g_autoptr (GPtrArray) staged = mail_journal_load_staged (f->journal, &unread);
  g_assert_true (staged != NULL || unread != NULL);
  close_journal (f);
  if (f->lost)
    {
      assert_contents (f->path, "-1.bad", bad);
      g_assert_cmpuint (changes->len + staged->len, ==, 0);
      g_assert_cmpint (g_unlink (aside), ==, 0);
      ++*n_lost;
    }
  return TRUE;
}

static void
test_flipped (Fixture *f, gconstpointer strict)
{
  guint n_lost = 0, n_refused = 0;

  for (guint i = 1; i <= 20; i++)
    {
      put_change (f, i, "a name that is not too short");
      put_staged (f, i, "a name that is not too short");
    }
  close_journal (f);
  g_autoptr (GBytes) good = contents (f->path);
  gsize length;
  const char *bytes = g_bytes_get_data (good, &length);
  for (gsize at = 0; at < length; at += at < 100 ? 1 : 37)
    {
      char *bad = g_memdup2 (bytes, length);

      bad[at] ^= 1 << at % 8;
      g_autoptr (GBytes) flipped = g_bytes_new_take (bad, length);
      if (!open_flipped (f, flipped, &n_lost))
        {
          g_test_message ("refused with a flipped bit at %" G_GSIZE_FORMAT, at);
          n_refused++;
        }
    }
  g_assert_cmpuint (n_lost, >, 20);
  g_assert_cmpuint (n_refused, <, strict != NULL ? 1 : n_lost);
}

/* --- what is not opened --------------------------------------------------------------------------
 */

static void
assert_refused (Fixture *f)
{
  g_autoptr (GError) error = NULL;
  gboolean lost = TRUE;

  g_assert_null (mail_journal_open (f->path, ACCOUNT, &lost, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_FAILED);
  g_assert_false (lost);
  assert_contents (f->path, "-1.bad", NULL);
}

static void
test_link (Fixture *f, gconstpointer data)
{
  g_autofree char *outside = g_build_filename (f->dir, "outside", NULL);
  g_autofree char *target = NULL;

  put_change (f, 1, "x");
  close_journal (f);
  g_assert_cmpint (g_rename (f->path, outside), ==, 0);
  g_autoptr (GBytes) bytes = contents (outside);
  g_assert_cmpint (symlink ("outside", f->path), ==, 0);
  assert_refused (f);
  assert_contents (outside, "", bytes);
  target = g_file_read_link (f->path, NULL);
  g_assert_cmpstr (target, ==, "outside");
  /* Nor is a file made where one points to. */
  g_assert_cmpint (g_unlink (outside), ==, 0);
  assert_refused (f);
  assert_contents (outside, "", NULL);
}

static void
test_directory (Fixture *f, gconstpointer data)
{
  close_journal (f);
  g_assert_cmpint (g_unlink (f->path), ==, 0);
  g_assert_cmpint (g_mkdir (f->path, 0700), ==, 0);
  assert_refused (f);
  g_assert_true (g_file_test (f->path, G_FILE_TEST_IS_DIR));
}

/* Somebody has it open: that is no damage. */
static void
test_in_use (Fixture *f, gconstpointer data)
{
  put_change (f, 1, "x");
  assert_refused (f);
  put_change (f, 2, "x");
  reopen (f);
  g_assert_false (f->lost);
  assert_ids (f, "1 2 |");
}

/* Mail is nobody else's. */
static void
test_modes (Fixture *f, gconstpointer data)
{
  const char *name;
  guint n = 0;

  close_journal (f);
  g_unlink (f->path);
  mode_t mask = umask (022);
  open_journal (f);
  g_assert_cmpuint (umask (mask), ==, 022);
  put_change (f, 1, "x");
  GDir *dir = g_dir_open (f->dir, 0, NULL);
  while ((name = g_dir_read_name (dir)) != NULL)
    {
      g_autofree char *path = g_build_filename (f->dir, name, NULL);
      GStatBuf st;

      g_assert_cmpint (g_stat (path, &st), ==, 0);
      g_assert_cmpuint (st.st_mode & 07777, ==, 0600);
      n++;
    }
  g_dir_close (dir);
  g_assert_cmpuint (n, >=, 2);
}

/* --- a full disk ---------------------------------------------------------------------------------
 */

static void
limit_pages (Fixture *f, const char *n)
{
  g_autofree char *text = g_strconcat ("PRAGMA max_page_count=", n, NULL);

  g_assert_cmpint (sqlite3_exec (f->db, text, NULL, NULL, NULL), ==, SQLITE_OK);
}

static void
put_large (Fixture *f, guint64 id)
{
  g_autofree char *name = g_strnfill (3000000, 'y');
  const MailJournalChange row = { .id = id, .name = name };

  mail_journal_put_change (f->journal, &row);
}

static void
fail_to_put (Fixture *f, int code)
{
  g_autoptr (GError) error = NULL;

  mail_journal_begin (f->journal);
  mail_journal_remove_change (f->journal, 1);
  put_large (f, 7);
  g_assert_false (mail_journal_commit (f->journal, &error));
  g_assert_error (error, MAIL_ERROR, code);
  assert_ids (f, "1 | 2");
  assert_killed (f, "1 | 2");
}

static void
test_no_space (Fixture *f, gconstpointer data)
{
  put_change (f, 1, "x");
  put_staged (f, 2, "x");
  limit_pages (f, "20");
  for (guint i = 0; i < 3; i++)
    fail_to_put (f, MAIL_ERROR_NO_SPACE);
  put_change (f, 1, "something small");
  limit_pages (f, "1000000");
  put_change (f, 3, "all of it");
  assert_killed (f, "1 3 | 2");
}

/* Inside, nobody is told; the outermost one is. */
static void
test_no_space_nested (Fixture *f, gconstpointer data)
{
  g_autoptr (GError) error = NULL;

  put_change (f, 1, "x");
  put_staged (f, 2, "x");
  limit_pages (f, "20");
  mail_journal_begin (f->journal);
  mail_journal_remove_change (f->journal, 1);
  mail_journal_begin (f->journal);
  put_large (f, 7);
  mail_journal_commit (f->journal, NULL);
  g_assert_false (mail_journal_commit (f->journal, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_NO_SPACE);
  assert_ids (f, "1 | 2");
  limit_pages (f, "1000000");
  put_change (f, 3, "goes on");
  assert_killed (f, "1 3 | 2");
}

/* A row that is refused by itself takes the others of its transaction with it. */
static void
test_refused_row (Fixture *f, gconstpointer data)
{
  g_autoptr (GError) error = NULL;

  put_change (f, 1, "x");
  put_staged (f, 2, "x");
  g_assert_cmpint (sqlite3_exec (f->db,
                                 "CREATE TEMP TRIGGER no BEFORE INSERT ON changes WHEN new.id = 7 "
                                 "BEGIN SELECT RAISE (FAIL, 'no'); END",
                                 NULL, NULL, NULL),
                   ==, SQLITE_OK);
  for (guint64 id = 6; id <= 8; id++)
    {
      const MailJournalChange row = { .id = id };

      mail_journal_begin (f->journal);
      mail_journal_remove_staged (f->journal, 2);
      mail_journal_put_change (f->journal, &row);
      mail_journal_put_change (f->journal, &(MailJournalChange) { .id = 7 });
      mail_journal_put_change (f->journal, &(MailJournalChange) { .id = 9 });
      g_assert_false (mail_journal_commit (f->journal, &error));
      g_assert_error (error, MAIL_ERROR, MAIL_ERROR_FAILED);
      g_clear_error (&error);
      assert_ids (f, "1 | 2");
      assert_killed (f, "1 | 2");
    }
  put_change (f, 3, "goes on");
  assert_killed (f, "1 3 | 2");
}

/* Files that may not grow are an error of the disk. */
static void
test_no_growth (Fixture *f, gconstpointer data)
{
  put_change (f, 1, "x");
  put_staged (f, 2, "x");
  struct rlimit limit = scratch_limit_files (200000);
  mail_journal_begin (f->journal);
  mail_journal_remove_change (f->journal, 1);
  put_large (f, 7);
  g_autoptr (GError) error = NULL;
  gboolean good = mail_journal_commit (f->journal, &error);
  setrlimit (RLIMIT_FSIZE, &limit);
  g_assert_false (good);
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_FAILED);
  assert_ids (f, "1 | 2");
  put_change (f, 3, "goes on");
  assert_killed (f, "1 3 | 2");
}

/* What follows a failure in the same transaction is not written either. */
static void
test_no_space_then (Fixture *f, gconstpointer data)
{
  g_autoptr (GError) error = NULL;

  put_change (f, 1, "x");
  put_staged (f, 2, "x");
  limit_pages (f, "20");
  mail_journal_begin (f->journal);
  put_large (f, 7);
  mail_journal_remove_change (f->journal, 1);
  g_assert_false (mail_journal_commit (f->journal, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_NO_SPACE);
  assert_ids (f, "1 | 2");
}

/* --- threads -------------------------------------------------------------------------------------
 */

#define N_THREADS 4u
#define N_ROWS 300u

typedef struct
{
  Fixture *f;
  guint32 ids[N_ROWS];
} Worker;

static gint n_ready;

/* Both rows of a pair are there, or none of them. */
static gpointer
work (gpointer data)
{
  Worker *worker = data;

  g_atomic_int_inc (&n_ready); /* all at once */
  while (g_atomic_int_get (&n_ready) < (gint)N_THREADS)
    g_thread_yield ();
  for (guint i = 0; i < N_ROWS; i++)
    {
      guint32 id = worker->ids[i] = mail_journal_new_staged_id (worker->f->journal);
      const MailJournalChange change = { .id = mail_journal_new_change_id (worker->f->journal),
                                         .staged = id };
      const MailJournalStaged staged = { .id = id };

      mail_journal_begin (worker->f->journal);
      mail_journal_put_change (worker->f->journal, &change);
      mail_journal_put_staged (worker->f->journal, &staged);
      if (!mail_journal_commit (worker->f->journal, NULL))
        return worker;
    }
  return NULL;
}

static void
test_threads (Fixture *f, gconstpointer data)
{
  g_autoptr (GHashTable) seen = g_hash_table_new (NULL, NULL);
  GThread *threads[N_THREADS];
  Worker workers[N_THREADS];

  for (guint i = 0; i < N_THREADS; i++)
    {
      workers[i].f = f;
      threads[i] = g_thread_new ("worker", work, &workers[i]);
    }
  for (guint i = 0; i < N_THREADS; i++)
    {
      g_assert_null (g_thread_join (threads[i]));
      for (guint j = 0; j < N_ROWS; j++)
        g_assert_true (g_hash_table_add (seen, GUINT_TO_POINTER (workers[i].ids[j])));
    }
  reopen (f);
  g_autoptr (GPtrArray) changes = load_changes (f), staged = load_staged (f);
  g_assert_cmpuint (changes->len, ==, N_THREADS * N_ROWS);
  g_assert_cmpuint (staged->len, ==, N_THREADS * N_ROWS);
  for (guint i = 0; i < changes->len; i++)
    g_assert_true (g_hash_table_remove (
        seen, GUINT_TO_POINTER (((MailJournalChange *)changes->pdata[i])->staged)));
}

/* --- main ----------------------------------------------------------------------------------------
 */

#define ADD(path, i, function)                                                                     \
  g_test_add (path, Fixture, GUINT_TO_POINTER (i), set_up, function, tear_down)
#define ADD_CASES(prefix, cases, function)                                                         \
  for (guint i = 0; i < G_N_ELEMENTS (cases); i++)                                                 \
    {                                                                                              \
      g_autofree char *path = g_strconcat (prefix, cases[i].name, NULL);                           \
      ADD (path, i, function);                                                                     \
    }

static void
add_rows (void)
{
  for (guint kind = 0; kind < G_N_ELEMENTS (kinds); kind++)
    for (guint fill = 0; fill < N_FILLS; fill++)
      {
        g_autofree char *path = g_strdup_printf ("/journal/row/%s/%s", kinds[kind].name,
                                                 fill_names[fill]);

        ADD (path, kind * N_FILLS + fill, test_row);
      }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  mail_log_init (MAIL_LOG_ERROR, FALSE);
  sqlite3_auto_extension ((void (*) (void))note_connection);
  long_text = g_strnfill (50000, 'x');
  add_rows ();
  ADD_CASES ("/journal/fields/", kinds, test_fields);
  ADD_CASES ("/journal/replaced/", kinds, test_replaced);
  ADD ("/journal/removed", 0, test_removed);
  ADD ("/journal/nested", 0, test_nested);
  ADD_CASES ("/journal/killed/", deaths, test_killed);
  ADD ("/journal/torn", 0, test_torn);
  ADD ("/journal/sync", 0, test_sync);
  ADD_CASES ("/journal/numbers/", numbers, test_staged_numbers);
  ADD ("/journal/floor", 0, test_floor);
  ADD ("/journal/change-numbers", 0, test_change_numbers);
  ADD_CASES ("/journal/damaged/", damages, test_damaged);
  ADD_CASES ("/journal/damaged-killed/", log_cases, test_damaged_killed);
  ADD ("/journal/flipped", 0, test_flipped);
  ADD ("/journal/link", 0, test_link);
  ADD ("/journal/directory", 0, test_directory);
  ADD ("/journal/in-use", 0, test_in_use);
  ADD ("/journal/modes", 0, test_modes);
  ADD ("/journal/no-space", 0, test_no_space);
  ADD ("/journal/no-space-nested", 0, test_no_space_nested);
  ADD ("/journal/refused-row", 0, test_refused_row);
  ADD ("/journal/no-growth", 0, test_no_growth);
  ADD ("/journal/torn-new", 0, test_torn_new);
  ADD ("/journal/foreign-killed", 0, test_foreign_killed);
  ADD ("/journal/emptied", 0, test_emptied);
  ADD ("/journal/flipped-strict", 1, test_flipped);
  ADD ("/journal/no-space-then", 0, test_no_space_then);
  ADD ("/journal/threads", 0, test_threads);
  int result = g_test_run ();
  g_free (long_text);
  return result;
}
