/* SPDX-License-Identifier: MIT
 *
 * What include/mailfs/index.h promises: what was queued is there after a remount, batches are whole
 * or absent, numbers are never handed out twice, and a database that cannot be trusted is noticed.
 */
#include "mailfs/index.h"
#include "mailfs/log.h"
#include "scratch.h"

#include <glib/gstdio.h>

#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct
{
  char *dir, *path;
  MailIndex *index;
  gboolean rebuilt;
} Fixture;

/* --- helpers
 * ------------------------------------------------------------------------------------------- */

static void
open_index (Fixture *f)
{
  GError *error = NULL;

  f->index = mail_index_open (f->dir, "me@example.org", &f->rebuilt, &error);
  g_assert_no_error (error);
}

static void
close_index (Fixture *f)
{
  g_clear_pointer (&f->index, mail_index_close);
}

static void
reopen (Fixture *f)
{
  close_index (f);
  open_index (f);
}

static void
set_up (Fixture *f, gconstpointer data)
{
  f->dir = scratch_new ("index");
  f->path = g_build_filename (f->dir, "index.db", NULL);
  open_index (f);
  g_assert_false (f->rebuilt);
}

static void
tear_down (Fixture *f, gconstpointer data)
{
  close_index (f);
  scratch_free (f->dir);
  g_free (f->path);
}

static GArray *
load (Fixture *f, guint32 content_id)
{
  GError *error = NULL;
  GArray *messages = mail_index_load_messages (f->index, content_id, &error);

  g_assert_no_error (error);
  return messages;
}

static guint
count (Fixture *f, guint32 content_id)
{
  g_autoptr (GArray) messages = load (f, content_id);

  return messages->len;
}

static void
put_messages (Fixture *f, guint32 content_id, guint32 first, guint32 n)
{
  MailIndexBatch *batch = mail_index_batch_new ();

  for (guint32 i = 0; i < n; i++)
    {
      const MailMessage message = { .uid = first + i, .size = 100 + i };
      mail_index_batch_put (batch, content_id, &message, 1);
    }
  mail_index_queue (f->index, batch);
}

static void
put_mailbox (Fixture *f, guint32 id, guint32 content_id, guint32 n_messages)
{
  MailIndexBatch *batch = mail_index_batch_new ();
  const MailIndexMailbox mailbox = { .id = id,
                                     .content_id = content_id,
                                     .name = (char *)"INBOX",
                                     .path = (char *)"INBOX",
                                     .status = { .uidvalidity = 1, .n_messages = n_messages } };

  mail_index_batch_put_mailbox (batch, &mailbox);
  mail_index_queue (f->index, batch);
}

static void
assert_same_message (const MailMessage *a, const MailMessage *b)
{
  g_assert_cmpuint (a->uid, ==, b->uid);
  g_assert_cmpuint (a->keywords, ==, b->keywords);
  g_assert_cmpuint (a->modseq, ==, b->modseq);
  g_assert_cmpuint (a->size, ==, b->size);
  g_assert_cmpuint (a->flags, ==, b->flags);
  g_assert_cmpuint (a->local, ==, b->local);
  g_assert_cmpint (a->internaldate, ==, b->internaldate);
  g_assert_cmpuint (a->changed, ==, b->changed);
}

/* --- messages
 * ------------------------------------------------------------------------------------------- */

static const MailMessage extremes[] = {
  { .uid = 1 },
  { .uid = 2, .keywords = G_MAXUINT32 },
  { .uid = 127, .modseq = G_MAXUINT64 },
  { .uid = 128, .size = (G_GUINT64_CONSTANT (1) << 40) - 1 },
  { .uid = 129, .flags = 0xff },
  { .uid = 255, .local = 0xffff },
  { .uid = 256, .internaldate = -(G_GINT64_CONSTANT (1) << 33) },
  { .uid = 257, .internaldate = (G_GINT64_CONSTANT (1) << 33) - 1 },
  { .uid = 1000, .internaldate = -1, .changed = (1u << 30) - 1 },
  { .uid = 1u << 31,
    .keywords = 1,
    .modseq = 2,
    .size = 3,
    .flags = 4,
    .local = 5,
    .internaldate = 6,
    .changed = 7 },
  { .uid = G_MAXUINT32, .changed = 1 },
};

static void
test_extremes (Fixture *f, gconstpointer data)
{
  const guint32 content_ids[] = { 16, 17, G_MAXUINT32 };

  for (guint i = 0; i < G_N_ELEMENTS (content_ids); i++)
    {
      MailIndexBatch *batch = mail_index_batch_new ();
      mail_index_batch_put (batch, content_ids[i], extremes, G_N_ELEMENTS (extremes));
      mail_index_queue (f->index, batch);
    }
  for (guint round = 0; round < 2; round++)
    {
      for (guint i = 0; i < G_N_ELEMENTS (content_ids); i++)
        {
          g_autoptr (GArray) messages = load (f, content_ids[i]);
          g_assert_cmpuint (messages->len, ==, G_N_ELEMENTS (extremes));
          for (guint j = 0; j < messages->len; j++)
            assert_same_message (&g_array_index (messages, MailMessage, j), &extremes[j]);
        }
      g_assert_cmpuint (count (f, 18), ==, 0);
      reopen (f);
      g_assert_false (f->rebuilt);
    }
}

/* Puts, replacements and removals of ranges in random order, against a plain array. */
static void
test_model (Fixture *f, gconstpointer data)
{
  const guint n_uids = 2000;
  g_autofree MailMessage *model = g_new0 (MailMessage, n_uids);
  MailIndexBatch *batch = mail_index_batch_new ();

  for (guint step = 1; step <= 3000; step++)
    {
      guint32 uid = g_test_rand_int_range (1, n_uids);
      guint32 length = g_test_rand_int_range (0, step % 10 ? 5 : 700);
      guint32 last = MIN (uid + length, n_uids - 1);

      if (g_test_rand_int_range (0, 5) == 0)
        {
          mail_index_batch_remove (batch, 16, uid, last);
          for (guint32 i = uid; i <= last; i++)
            model[i].uid = 0;
        }
      else
        for (guint32 i = uid; i <= last; i++)
          {
            model[i] = (MailMessage) { .uid = i, .size = step, .modseq = step * 7 };
            mail_index_batch_put (batch, 16, &model[i], 1);
          }
      if (step % 20 == 0)
        {
          mail_index_queue (f->index, batch);
          batch = mail_index_batch_new ();
        }
      if (step % 500 == 0)
        {
          g_autoptr (GArray) messages = NULL;
          guint j = 0;

          if (step % 1000 == 0)
            reopen (f);
          messages = load (f, 16);
          for (guint32 i = 0; i < n_uids; i++)
            if (model[i].uid)
              {
                g_assert_cmpuint (j, <, messages->len);
                assert_same_message (&g_array_index (messages, MailMessage, j++), &model[i]);
              }
          g_assert_cmpuint (j, ==, messages->len);
        }
    }
  mail_index_queue (f->index, batch);
}

static const struct
{
  const char *name;
  guint32 first, last;
  guint n_left; /* of 1 to 1000 */
} remove_cases[] = {
  { "all", 1, G_MAXUINT32, 0 },        { "zero", 0, 0, 1000 },
  { "everything", 0, G_MAXUINT32, 0 }, { "one", 500, 500, 999 },
  { "page", 128, 255, 872 },           { "page-edges", 127, 256, 870 },
  { "tail", 900, G_MAXUINT32, 899 },   { "behind", 1001, G_MAXUINT32, 1000 },
  { "backwards", 20, 10, 1000 },       { "two-pages", 200, 300, 899 },
};

static void
test_remove (Fixture *f, gconstpointer data)
{
  const guint i = GPOINTER_TO_UINT (data);
  MailIndexBatch *batch = mail_index_batch_new ();

  put_messages (f, 16, 1, 1000);
  put_messages (f, 15, G_MAXUINT32 - 200, 100);
  put_messages (f, 17, 1, 100);
  mail_index_batch_remove (batch, 16, remove_cases[i].first, remove_cases[i].last);
  mail_index_queue (f->index, batch);
  g_assert_cmpuint (count (f, 16), ==, remove_cases[i].n_left);
  g_assert_cmpuint (count (f, 15), ==, 100);
  g_assert_cmpuint (count (f, 17), ==, 100);
}

/* --- everything else
 * ---------------------------------------------------------------------------------------- */

static void
assert_same_mailbox (const MailIndexMailbox *a, const MailIndexMailbox *b)
{
  g_assert_cmpuint (a->id, ==, b->id);
  g_assert_cmpuint (a->content_id, ==, b->content_id);
  g_assert_cmpstr (a->name, ==, b->name);
  g_assert_cmpstr (a->path, ==, b->path);
  g_assert_cmpstr (a->special_use, ==, b->special_use);
  g_assert_cmpuint (a->flags, ==, b->flags);
  g_assert_cmpuint (a->status.uidvalidity, ==, b->status.uidvalidity);
  g_assert_cmpuint (a->status.uidnext, ==, b->status.uidnext);
  g_assert_cmpuint (a->status.highestmodseq, ==, b->status.highestmodseq);
  g_assert_cmpuint (a->status.n_messages, ==, b->status.n_messages);
  g_assert_cmpuint (a->status.n_unseen, ==, b->status.n_unseen);
}

static void
test_mailboxes (Fixture *f, gconstpointer data)
{
  MailIndexMailbox mailboxes[] = {
    { .id = 16,
      .content_id = 17,
      .name = (char *)"INBOX",
      .path = (char *)"INBOX",
      .special_use = (char *)"\\Inbox",
      .flags = MAIL_MAILBOX_SUBSCRIBED,
      .status = { 1, 2, 3, 4, 5 } },
    { .id = 18, .path = (char *)"a/\xff\xfe b%2f", .name = NULL, .flags = G_MAXUINT32 },
    { .id = G_MAXUINT32,
      .content_id = G_MAXUINT32,
      .name = (char *)"",
      .path = (char *)"x",
      .special_use = (char *)"",
      .status = { G_MAXUINT32, G_MAXUINT32, G_MAXUINT64, G_MAXUINT32, G_MAXUINT32 } },
  };
  MailIndexBatch *batch = mail_index_batch_new ();
  g_autoptr (GPtrArray) loaded = NULL;

  mail_index_batch_remove_mailbox (batch, 99);
  for (guint i = 0; i < G_N_ELEMENTS (mailboxes); i++)
    mail_index_batch_put_mailbox (batch, &mailboxes[i]);
  mail_index_queue (f->index, batch);
  reopen (f);
  loaded = mail_index_load_mailboxes (f->index, NULL);
  g_assert_cmpuint (loaded->len, ==, G_N_ELEMENTS (mailboxes));
  for (guint i = 0; i < loaded->len; i++)
    assert_same_mailbox (loaded->pdata[i], &mailboxes[i]);
  g_clear_pointer (&loaded, g_ptr_array_unref);

  /* Two swap their paths; one goes. */
  batch = mail_index_batch_new ();
  mailboxes[0].path = (char *)"x";
  mailboxes[2].path = (char *)"INBOX";
  mail_index_batch_put_mailbox (batch, &mailboxes[0]);
  mail_index_batch_put_mailbox (batch, &mailboxes[2]);
  mail_index_batch_remove_mailbox (batch, 18);
  mail_index_queue (f->index, batch);
  loaded = mail_index_load_mailboxes (f->index, NULL);
  g_assert_cmpuint (loaded->len, ==, 2);
  assert_same_mailbox (loaded->pdata[0], &mailboxes[0]);
  assert_same_mailbox (loaded->pdata[1], &mailboxes[2]);
}

static void
assert_strings (GArray *strings, const char *expected)
{
  g_autoptr (GString) text = g_string_new (NULL);

  g_assert_nonnull (strings);
  for (guint i = 0; i < strings->len; i++)
    {
      const MailIndexString *string = &g_array_index (strings, MailIndexString, i);
      g_string_append_printf (text, "%u=%s ", string->uid, string->text);
    }
  g_assert_cmpstr (text->str, ==, expected);
  g_array_unref (strings);
}

static void
test_texts (Fixture *f, gconstpointer data)
{
  MailIndexBatch *batch = mail_index_batch_new ();

  mail_index_batch_put_name (batch, 16, G_MAXUINT32, "last");
  mail_index_batch_put_name (batch, 16, 5, "five");
  mail_index_batch_put_name (batch, 16, 6, "six");
  mail_index_batch_put_name (batch, 17, 5, "other");
  mail_index_batch_put_remote_id (batch, 16, 5, "uidl-5");
  mail_index_batch_put_remote_id (batch, 16, 7, "uidl-7");
  mail_index_queue (f->index, batch);
  reopen (f);
  assert_strings (mail_index_load_names (f->index, 16, NULL), "5=five 6=six 4294967295=last ");
  assert_strings (mail_index_load_remote_ids (f->index, 16, NULL), "5=uidl-5 7=uidl-7 ");
  batch = mail_index_batch_new ();
  mail_index_batch_put_name (batch, 16, 5, "\xff new");
  mail_index_batch_put_name (batch, 16, 6, NULL);
  mail_index_batch_put_name (batch, 16, 99, NULL);
  mail_index_batch_remove (batch, 16, 7, 8);
  mail_index_queue (f->index, batch);
  assert_strings (mail_index_load_names (f->index, 16, NULL), "5=\xff new 4294967295=last ");
  assert_strings (mail_index_load_remote_ids (f->index, 16, NULL), "5=uidl-5 ");
  batch = mail_index_batch_new ();
  mail_index_batch_drop_contents (batch, 16);
  mail_index_queue (f->index, batch);
  assert_strings (mail_index_load_names (f->index, 16, NULL), "");
  assert_strings (mail_index_load_remote_ids (f->index, 16, NULL), "");
  assert_strings (mail_index_load_names (f->index, 17, NULL), "5=other ");
}

static void
test_drop (Fixture *f, gconstpointer data)
{
  MailIndexBatch *batch = mail_index_batch_new ();
  const MailMessage message = { .uid = 3 };

  put_messages (f, 16, 1, 1000);
  put_messages (f, 17, 1, 1000);
  mail_index_batch_drop_contents (batch, 16);
  mail_index_batch_put (batch, 16, &message, 1);
  mail_index_queue (f->index, batch);
  g_assert_cmpuint (count (f, 16), ==, 1);
  g_assert_cmpuint (count (f, 17), ==, 1000);
}

static void
test_meta (Fixture *f, gconstpointer data)
{
  g_autofree char *value = NULL;

  g_assert_null (mail_index_get_meta (f->index, "a"));
  mail_index_set_meta (f->index, "a", "1");
  mail_index_set_meta (f->index, "a", "2");
  mail_index_set_meta (f->index, "b", "");
  mail_index_set_meta (f->index, "c", "3");
  mail_index_set_meta (f->index, "c", NULL);
  mail_index_flush (f->index);
  value = mail_index_get_meta (f->index, "a");
  g_assert_cmpstr (value, ==, "2");
  g_free (value);
  reopen (f);
  value = mail_index_get_meta (f->index, "b");
  g_assert_cmpstr (value, ==, "");
  g_assert_null (mail_index_get_meta (f->index, "c"));
}

static void
test_keywords (Fixture *f, gconstpointer data)
{
  guint32 a, b;

  g_assert_cmpuint (mail_index_keywords_id (f->index, ""), ==, 0);
  g_assert_cmpuint (mail_index_keywords_id (f->index, NULL), ==, 0);
  g_assert_cmpstr (mail_index_keywords (f->index, 0), ==, "");
  g_assert_cmpstr (mail_index_keywords (f->index, 12345), ==, "");
  a = mail_index_keywords_id (f->index, "$Forwarded Work");
  b = mail_index_keywords_id (f->index, "Work");
  g_assert_cmpuint (a, !=, b);
  g_assert_cmpuint (a, !=, 0);
  g_assert_cmpuint (b, !=, 0);
  for (guint round = 0; round < 2; round++)
    {
      g_assert_cmpuint (mail_index_keywords_id (f->index, "$Forwarded Work"), ==, a);
      g_assert_cmpuint (mail_index_keywords_id (f->index, "Work"), ==, b);
      g_assert_cmpstr (mail_index_keywords (f->index, a), ==, "$Forwarded Work");
      g_assert_cmpstr (mail_index_keywords (f->index, b), ==, "Work");
      reopen (f);
    }
  g_assert_cmpuint (mail_index_keywords_id (f->index, "new"), >, MAX (a, b));
}

/* --- numbers
 * ---------------------------------------------------------------------------------------------- */

static void
run_in_child (Fixture *f, void (*function) (Fixture *f))
{
  int status;
  pid_t pid;

  close_index (f);
  pid = fork ();
  if (pid == 0)
    {
      open_index (f);
      function (f);
      kill (getpid (), SIGKILL);
      pause ();
    }
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  g_assert_true (WIFSIGNALED (status));
  g_assert_cmpint (WTERMSIG (status), ==, SIGKILL);
}

static void
tell_ids (Fixture *f)
{
  g_autofree char *path = g_build_filename (f->dir, "told", NULL);
  int fd = open (path, O_WRONLY | O_CREAT | O_APPEND, 0600);

  for (guint i = 0; i < 300; i++)
    {
      guint32 id = mail_index_new_id (f->index);
      g_assert_cmpint (write (fd, &id, sizeof id), ==, sizeof id);
    }
  close (fd);
}

typedef enum
{
  LOSE_NOTHING,
  LOSE_DATABASE,
  LOSE_GARBLED,
  LOSE_IDS,
  LOSE_IDS_GARBLED,
} Lose;

static const struct
{
  const char *name;
  Lose lose;
} id_cases[] = {
  { "kept", LOSE_NOTHING }, { "database-lost", LOSE_DATABASE },  { "garbled", LOSE_GARBLED },
  { "ids-lost", LOSE_IDS }, { "ids-garbled", LOSE_IDS_GARBLED },
};

static void
test_ids (Fixture *f, gconstpointer data)
{
  Lose lose = id_cases[GPOINTER_TO_UINT (data)].lose;
  g_autofree char *told = g_build_filename (f->dir, "told", NULL);
  g_autofree char *ids_path = g_build_filename (f->dir, "index.ids", NULL);
  g_autoptr (GHashTable) seen = g_hash_table_new (NULL, NULL);
  g_autofree char *contents = NULL;
  gsize length;

  for (guint round = 0; round < 3; round++)
    {
      run_in_child (f, tell_ids); /* and dies */
      open_index (f);
      tell_ids (f); /* and ends well */
      put_mailbox (f, mail_index_new_id (f->index), mail_index_new_id (f->index), 0);
      close_index (f);
      switch (lose)
        {
        case LOSE_NOTHING:
          break;
        case LOSE_DATABASE:
          g_assert_cmpint (g_unlink (f->path), ==, 0);
          break;
        case LOSE_GARBLED:
          g_assert_true (g_file_set_contents (f->path, "no database at all", -1, NULL));
          break;
        case LOSE_IDS:
          g_assert_cmpint (g_unlink (ids_path), ==, 0);
          break;
        case LOSE_IDS_GARBLED:
          g_assert_true (g_file_set_contents (ids_path, "mailids1xxxxxxxxxxxxxxxx", -1, NULL));
          break;
        }
    }
  g_assert_true (g_file_get_contents (told, &contents, &length, NULL));
  g_assert_cmpuint (length, ==, 6 * 300 * 4);
  for (gsize i = 0; i < length; i += 4)
    {
      guint32 id;
      memcpy (&id, contents + i, 4);
      g_assert_cmpuint (id, >=, 16);
      g_assert_true (g_hash_table_add (seen, GUINT_TO_POINTER (id)));
    }
}

/* --- damage
 * --------------------------------------------------------------------------------------------------
 */

static void
run_sql (Fixture *f, const char *text)
{
  sqlite3 *db = NULL;

  g_assert_cmpint (sqlite3_open (f->path, &db), ==, SQLITE_OK);
  g_assert_cmpint (sqlite3_exec (db, text, NULL, NULL, NULL), ==, SQLITE_OK);
  sqlite3_close (db);
}

typedef enum
{
  DAMAGE_NONE,
  DAMAGE_EMPTY,
  DAMAGE_GARBAGE,
  DAMAGE_SHORT,
  DAMAGE_HALF,
  DAMAGE_DIRECTORY,
  DAMAGE_LINK,
  DAMAGE_SQL,
} Damage;

static const struct
{
  const char *name;
  Damage damage;
  const char *sql;
  gboolean rebuilt;
} damage_cases[] = {
  { "none", DAMAGE_NONE, NULL, FALSE },
  { "empty", DAMAGE_EMPTY, NULL, FALSE },
  { "garbage", DAMAGE_GARBAGE, NULL, TRUE },
  { "short", DAMAGE_SHORT, NULL, TRUE },
  { "directory", DAMAGE_DIRECTORY, NULL, TRUE },
  { "link", DAMAGE_LINK, NULL, TRUE },
  { "other-application", DAMAGE_SQL, "PRAGMA application_id = 7", TRUE },
  { "newer", DAMAGE_SQL, "PRAGMA user_version = 1000", TRUE },
  { "older", DAMAGE_SQL, "PRAGMA user_version = 0", TRUE },
  { "other-account", DAMAGE_SQL, "UPDATE about SET value = 'you'", TRUE },
  { "no-account", DAMAGE_SQL, "DELETE FROM about", TRUE },
  { "no-table", DAMAGE_SQL, "DROP TABLE pages", TRUE },
  { "other-column", DAMAGE_SQL, "ALTER TABLE names RENAME COLUMN text TO name", TRUE },
  { "keywords", DAMAGE_SQL, "UPDATE keywords SET text = 'Other'", TRUE },
};

static void
fill_index (Fixture *f)
{
  mail_index_keywords_id (f->index, "Work");
  put_messages (f, 16, 1, 1000);
  put_mailbox (f, 17, 16, 1000);
}

static void
test_damage (Fixture *f, gconstpointer data)
{
  const guint i = GPOINTER_TO_UINT (data);
  g_autofree char *outside = g_build_filename (f->dir, "outside", NULL);
  g_autofree char *contents = NULL;
  g_autoptr (GPtrArray) mailboxes = NULL;

  fill_index (f);
  close_index (f);
  switch (damage_cases[i].damage)
    {
    case DAMAGE_NONE:
      break;
    case DAMAGE_EMPTY:
      g_assert_cmpint (truncate (f->path, 0), ==, 0);
      break;
    case DAMAGE_GARBAGE:
      g_assert_true (g_file_set_contents (f->path, "this is not the file you want", -1, NULL));
      break;
    case DAMAGE_SHORT:
      g_assert_cmpint (truncate (f->path, 50), ==, 0);
      break;
    case DAMAGE_HALF:
      g_assert_cmpint (truncate (f->path, 3 * 4096), ==, 0);
      break;
    case DAMAGE_DIRECTORY:
      g_assert_cmpint (g_unlink (f->path), ==, 0);
      g_assert_cmpint (g_mkdir (f->path, 0700), ==, 0);
      break;
    case DAMAGE_LINK:
      g_assert_cmpint (g_unlink (f->path), ==, 0);
      g_assert_true (g_file_set_contents (outside, "precious", -1, NULL));
      g_assert_cmpint (symlink (outside, f->path), ==, 0);
      break;
    case DAMAGE_SQL:
      run_sql (f, damage_cases[i].sql);
      break;
    }
  open_index (f);
  g_assert_cmpint (f->rebuilt, ==, damage_cases[i].rebuilt);
  mailboxes = mail_index_load_mailboxes (f->index, NULL);
  g_assert_cmpuint (mailboxes->len, ==, damage_cases[i].damage == DAMAGE_NONE ? 1 : 0);
  /* A good index again, this time and the next. */
  fill_index (f);
  reopen (f);
  g_assert_false (f->rebuilt);
  g_assert_cmpuint (count (f, 16), ==, 1000);
  if (g_file_get_contents (outside, &contents, NULL, NULL))
    g_assert_cmpstr (contents, ==, "precious");
}

/* A row that is not what was written: the caller is told, and the next open begins anew. */
static const struct
{
  const char *name, *sql;
} row_cases[] = {
  { "page", "UPDATE pages SET data = zeroblob(length(data)) WHERE id % 5 = 3" },
  { "page-moved", "UPDATE pages SET id = id + 100 WHERE id % 5 = 3" },
  { "page-type", "UPDATE pages SET data = 17 WHERE id % 5 = 3" },
  { "page-null", "UPDATE pages SET data = NULL" },
  { "mailbox", "UPDATE mailboxes SET content_id = 18" },
  { "mailbox-null", "UPDATE mailboxes SET path = NULL" },
};

static void
test_damaged_row (Fixture *f, gconstpointer data)
{
  const guint i = GPOINTER_TO_UINT (data);
  g_autoptr (GPtrArray) mailboxes = NULL;
  g_autoptr (GArray) messages = NULL;
  g_autoptr (GError) error = NULL;

  fill_index (f);
  close_index (f);
  run_sql (f, row_cases[i].sql);
  open_index (f);
  g_assert_false (f->rebuilt);
  mailboxes = mail_index_load_mailboxes (f->index, &error);
  if (mailboxes)
    messages = mail_index_load_messages (f->index, 16, &error);
  g_assert_null (messages);
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_CORRUPT);
  fill_index (f); /* is lost, and no trouble */
  mail_index_flush (f->index);
  reopen (f);
  g_assert_true (f->rebuilt);
  g_assert_cmpuint (count (f, 16), ==, 0);
}

/* The writer meets a damaged page before any reader does. */
static void
test_damaged_write (Fixture *f, gconstpointer data)
{
  fill_index (f);
  close_index (f);
  run_sql (f, row_cases[0].sql);
  open_index (f);
  put_messages (f, 16, 1, 1000);
  reopen (f);
  g_assert_true (f->rebuilt);
}

/* One bit anywhere: the same messages or an error, and never a crash. */
static void
test_flipped (Fixture *f, gconstpointer data)
{
  g_autofree char *contents = NULL;
  gsize length, step;
  guint n_noticed = 0;

  fill_index (f);
  close_index (f);
  g_assert_true (g_file_get_contents (f->path, &contents, &length, NULL));
  step = length / 500;
  for (gsize at = 0; at < length; at += step)
    {
      g_autoptr (GPtrArray) mailboxes = NULL;
      g_autoptr (GArray) messages = NULL;
      FILE *file = fopen (f->path, "wb");

      contents[at] ^= 1 << at % 8;
      g_assert_cmpuint (fwrite (contents, 1, length, file), ==, length);
      fclose (file);
      contents[at] ^= 1 << at % 8;
      open_index (f);
      if (!f->rebuilt)
        mailboxes = mail_index_load_mailboxes (f->index, NULL);
      if (mailboxes)
        messages = mail_index_load_messages (f->index, 16, NULL);
      n_noticed += messages == NULL;
      for (guint i = 0; messages && i < messages->len; i++)
        {
          const MailMessage expected = { .uid = i + 1, .size = 100 + i };
          assert_same_message (&g_array_index (messages, MailMessage, i), &expected);
        }
      if (messages)
        {
          g_assert_cmpuint (messages->len, ==, 1000);
          g_assert_cmpuint (mailboxes->len, ==, 1);
        }
      close_index (f);
    }
  g_assert_cmpuint (n_noticed, >, 150);
}

/* --- crashes
 * ----------------------------------------------------------------------------------------------------
 */

static void
fill_and_die (Fixture *f)
{
  fill_index (f);
  mail_index_flush (f->index);
}

static void
test_killed (Fixture *f, gconstpointer data)
{
  run_in_child (f, fill_and_die);
  open_index (f);
  g_assert_false (f->rebuilt);
  g_assert_cmpuint (count (f, 16), ==, 1000);
}

static void
queue_and_die (Fixture *f)
{
  for (guint32 i = 1; i <= 300; i++)
    {
      MailIndexBatch *batch = mail_index_batch_new ();
      const MailIndexMailbox mailbox = {
        .id = 16, .content_id = 17, .path = (char *)"x", .status.n_messages = i * 10
      };

      for (guint32 j = 0; j < 10; j++)
        {
          const MailMessage message = { .uid = i * 1000 + j };
          mail_index_batch_put (batch, 17, &message, 1);
        }
      mail_index_batch_put_mailbox (batch, &mailbox);
      mail_index_queue (f->index, batch);
    }
}

/* Killed at some moment: messages and the state they belong to are from the same batch. */
static void
test_killed_tail (Fixture *f, gconstpointer data)
{
  for (guint round = 0; round < 10; round++)
    {
      g_autoptr (GPtrArray) mailboxes = NULL;
      guint expected = 0;

      g_unlink (f->path);
      run_in_child (f, queue_and_die);
      open_index (f);
      g_assert_false (f->rebuilt);
      mailboxes = mail_index_load_mailboxes (f->index, NULL);
      if (mailboxes->len)
        expected = ((MailIndexMailbox *)mailboxes->pdata[0])->status.n_messages;
      g_assert_cmpuint (count (f, 17), ==, expected);
    }
}

/* A log that was not written back is looked over at the next open. */
static void
test_killed_damaged (Fixture *f, gconstpointer data)
{
  int fd;

  fill_index (f);
  run_in_child (f, fill_and_die);
  fd = open (f->path, O_WRONLY);
  for (guint i = 1; i < 8; i++)
    g_assert_cmpint (pwrite (fd, "damage damage damage", 20, i * 4096), ==, 20);
  close (fd);
  open_index (f);
  fill_index (f);
  reopen (f);
  g_assert_cmpuint (count (f, 16), ==, f->rebuilt ? 0 : 1000);
}

/* --- a disk that cannot be written
 * --------------------------------------------------------------------------------- */

static void
assert_works_without_disk (Fixture *f, guint32 content_id)
{
  put_messages (f, content_id, 1, 50000);
  g_assert_cmpuint (count (f, content_id), ==, 50000);
  g_assert_cmpuint (count (f, 16), ==, 1000);
  mail_index_set_meta (f->index, "key", "value");
  mail_index_flush (f->index);
  {
    g_autofree char *value = mail_index_get_meta (f->index, "key");
    g_assert_cmpstr (value, ==, "value");
  }
  g_assert_cmpuint (mail_index_keywords_id (f->index, "Work"), ==, 1);
  g_assert_cmpuint (mail_index_new_id (f->index), >, 0);
}

static void
test_full_disk (Fixture *f, gconstpointer data)
{
  fill_index (f);
  mail_index_flush (f->index);
  struct rlimit limit = scratch_limit_files (200000);
  assert_works_without_disk (f, 18);
  close_index (f);
  setrlimit (RLIMIT_FSIZE, &limit);
  /* Nothing half written. */
  open_index (f);
  g_assert_false (f->rebuilt);
  g_assert_cmpuint (count (f, 16), ==, 1000);
  g_assert_cmpuint (count (f, 18), ==, 0);
}

static void
test_read_only_disk (Fixture *f, gconstpointer data)
{
  g_autofree char *mount_point = g_build_filename (f->dir, "mnt", NULL);
  g_autofree char *path = g_build_filename (mount_point, "index.db", NULL);
  Fixture inner = { mount_point, path, NULL, FALSE };

  g_assert_cmpint (g_mkdir (mount_point, 0700), ==, 0);
  if (mount ("none", mount_point, "tmpfs", 0, "size=4m,mode=0700") < 0)
    {
      g_test_skip ("cannot mount a tmpfs");
      return;
    }
  open_index (&inner);
  fill_index (&inner);
  close_index (&inner);
  g_assert_cmpint (mount ("none", mount_point, "tmpfs", MS_REMOUNT | MS_RDONLY, ""), ==, 0);
  open_index (&inner);
  assert_works_without_disk (&inner, 18);
  close_index (&inner);
  umount (mount_point);
}

/* --- threads
 * ------------------------------------------------------------------------------------------------------------
 */

typedef struct
{
  Fixture *f;
  guint32 number;
  guint32 ids[1000], keywords[50];
} Worker;

static gpointer
worker_main (gpointer data)
{
  Worker *worker = data;

  for (guint32 i = 0; i < 200; i++)
    {
      put_messages (worker->f, 100 + worker->number, 1 + i * 10, 10);
      if (i % 20 == 19)
        g_assert_cmpuint (count (worker->f, 100 + worker->number), ==, i * 10 + 10);
    }
  for (guint i = 0; i < G_N_ELEMENTS (worker->ids); i++)
    worker->ids[i] = mail_index_new_id (worker->f->index);
  for (guint i = 0; i < G_N_ELEMENTS (worker->keywords); i++)
    {
      g_autofree char *text = g_strdup_printf ("Key%u", i);
      worker->keywords[i] = mail_index_keywords_id (worker->f->index, text);
      g_assert_cmpstr (mail_index_keywords (worker->f->index, worker->keywords[i]), ==, text);
    }
  mail_index_flush (worker->f->index);
  return NULL;
}

static void
test_threads (Fixture *f, gconstpointer data)
{
  g_autofree Worker *workers = g_new0 (Worker, 6);
  g_autoptr (GHashTable) seen = g_hash_table_new (NULL, NULL);
  GThread *threads[6];

  for (guint i = 0; i < G_N_ELEMENTS (threads); i++)
    {
      workers[i] = (Worker) { .f = f, .number = i };
      threads[i] = g_thread_new ("worker", worker_main, &workers[i]);
    }
  for (guint i = 0; i < G_N_ELEMENTS (threads); i++)
    {
      g_thread_join (threads[i]);
      for (guint j = 0; j < G_N_ELEMENTS (workers[i].ids); j++)
        g_assert_true (g_hash_table_add (seen, GUINT_TO_POINTER (workers[i].ids[j])));
      g_assert_cmpmem (workers[i].keywords, sizeof workers[i].keywords, workers[0].keywords,
                       sizeof workers[0].keywords);
    }
  reopen (f);
  for (guint i = 0; i < G_N_ELEMENTS (threads); i++)
    g_assert_cmpuint (count (f, 100 + i), ==, 2000);
}

static void
test_modes (Fixture *f, gconstpointer data)
{
  GDir *dir;
  const char *name;

  fill_index (f);
  mail_index_flush (f->index);
  dir = g_dir_open (f->dir, 0, NULL);
  while ((name = g_dir_read_name (dir)))
    {
      g_autofree char *path = g_build_filename (f->dir, name, NULL);
      struct stat st;
      g_assert_cmpint (stat (path, &st), ==, 0);
      g_assert_cmpuint (st.st_mode & 07777, ==, 0600);
    }
  g_dir_close (dir);
}

#define ADD(path, i, function)                                                                     \
  g_test_add (path, Fixture, GUINT_TO_POINTER (i), set_up, function, tear_down)
#define ADD_CASES(prefix, cases, function)                                                         \
  for (guint i = 0; i < G_N_ELEMENTS (cases); i++)                                                 \
    {                                                                                              \
      g_autofree char *path = g_strconcat (prefix, cases[i].name, NULL);                           \
      ADD (path, i, function);                                                                     \
    }

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  mail_log_init (MAIL_LOG_ERROR, FALSE);
  ADD ("/index/extremes", 0, test_extremes);
  ADD ("/index/model", 0, test_model);
  ADD_CASES ("/index/remove/", remove_cases, test_remove);
  ADD ("/index/mailboxes", 0, test_mailboxes);
  ADD ("/index/texts", 0, test_texts);
  ADD ("/index/drop", 0, test_drop);
  ADD ("/index/meta", 0, test_meta);
  ADD ("/index/keywords", 0, test_keywords);
  ADD_CASES ("/index/ids/", id_cases, test_ids);
  ADD_CASES ("/index/damage/", damage_cases, test_damage);
  ADD_CASES ("/index/damaged-row/", row_cases, test_damaged_row);
  ADD ("/index/damaged-write", 0, test_damaged_write);
  ADD ("/index/flipped", 0, test_flipped);
  ADD ("/index/killed", 0, test_killed);
  ADD ("/index/killed-tail", 0, test_killed_tail);
  ADD ("/index/killed-damaged", 0, test_killed_damaged);
  ADD ("/index/full-disk", 0, test_full_disk);
  ADD ("/index/read-only-disk", 0, test_read_only_disk);
  ADD ("/index/threads", 0, test_threads);
  ADD ("/index/modes", 0, test_modes);
  return g_test_run ();
}
