/* SPDX-License-Identifier: MIT
 *
 * Staged files by themselves: their bytes against a model of them, their names, their rows, what is
 * on disk of them and what is not any more; and what is made of the bytes for the wire and for the
 * cache, wherever the pieces they are read in end. What happens on the way to the server is in
 * change.c.
 */
#include "mail-harness.h"
#include "scratch.h"
#include "mail/change-private.h"
#include "mailfs/log.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#define PIECE (256u * 1024u) /* as spool.c reads */
#define DATE G_GINT64_CONSTANT (1000000000)

typedef struct
{
  Harness *harness;
  MailChanges *changes;
  MailMailbox *inbox, *archive;
  guint64 others; /* bytes in the spool that are not those a test looks at */
} Fixture;

/* --- helpers -------------------------------------------------------------------------------------
 */

static void
open_all (Fixture *f)
{
  harness_open (f->harness);
  f->changes = f->harness->store->changes;
  f->inbox = get_mailbox (f->harness, "INBOX");
  f->archive = get_mailbox (f->harness, "Archive");
  look (f->harness, f->inbox);
  look (f->harness, f->archive);
}

static void
set_up (Fixture *f, gconstpointer data)
{
  f->harness = harness_new (ALL_CAPS);
  model_add_mailbox (f->harness->server, "Archive", NULL);
  model_add_mailbox (f->harness->server, "Bin", "\\Trash");
  open_all (f);
}

static void
set_up_lf (Fixture *f, gconstpointer data)
{
  f->harness = harness_new (ALL_CAPS);
  f->harness->eol_lf = TRUE;
  model_add_mailbox (f->harness->server, "Archive", NULL);
  open_all (f);
}

static void
let_go (Fixture *f)
{
  g_clear_pointer (&f->inbox, mail_mailbox_unref);
  g_clear_pointer (&f->archive, mail_mailbox_unref);
}

static void
tear_down (Fixture *f, gconstpointer data)
{
  let_go (f);
  harness_free (f->harness);
}

/* As if the daemon had been killed now, and started again. */
static void
kill_and_open (Fixture *f)
{
  Harness *killed = harness_clone (f->harness);

  tear_down (f, NULL);
  f->harness = killed;
  open_all (f);
}

static MailStaged *
create (Fixture *f, MailMailbox *mailbox, guint area, const char *name, gboolean temporary)
{
  g_autoptr (GError) error = NULL;
  MailStaged *staged = mail_stage_create (f->harness->store, mailbox, area, name, temporary,
                                          &error);

  g_assert_no_error (error);
  return staged;
}

static MailStaged *
lookup (Fixture *f, MailMailbox *mailbox, guint area, const char *name)
{
  return mail_stage_lookup (f->harness->store, mailbox, area, name);
}

static gboolean
is_there (Fixture *f, MailMailbox *mailbox, guint area, const char *name)
{
  g_autoptr (MailStaged) staged = lookup (f, mailbox, area, name);

  return staged != NULL;
}

static void
put (MailStaged *staged, guint64 offset, const char *text)
{
  g_autoptr (GError) error = NULL;

  g_assert_true (mail_staged_write (staged, offset, text, strlen (text), &error));
  g_assert_no_error (error);
}

static MailStagedInfo
info_of (MailStaged *staged)
{
  MailStagedInfo info;

  mail_staged_info (staged, &info);
  return info;
}

static gboolean
has_file (Fixture *f, guint32 id, gboolean wire)
{
  g_autofree char *path = mail_spool_path (f->changes, id, wire);

  return g_file_test (path, G_FILE_TEST_EXISTS);
}

/* Its row; NULL: there is none. The array owns it. */
static const MailJournalStaged *
row_of (GPtrArray *rows, guint32 id)
{
  for (guint i = 0; i < rows->len; i++)
    if (((MailJournalStaged *)rows->pdata[i])->id == id)
      return rows->pdata[i];
  return NULL;
}

static gboolean
has_row (Fixture *f, guint32 id)
{
  g_autoptr (GPtrArray) rows = mail_journal_load_staged (f->changes->journal, NULL);

  return row_of (rows, id) != NULL;
}

/* Nothing is left of it, and nothing was sent. */
static void
assert_gone (Fixture *f, MailStaged *staged, MailMailbox *mailbox, const char *name)
{
  guint32 id = info_of (staged).id;
  g_autoptr (MailStaged) found = mail_stage_find (f->harness->store, id);
  g_autoptr (GError) error = NULL;

  g_assert_null (found);
  g_assert_false (is_there (f, mailbox, 0, name));
  g_assert_false (has_file (f, id, FALSE));
  g_assert_false (has_file (f, id, TRUE));
  g_assert_false (has_row (f, id));
  g_assert_cmpint (info_of (staged).state, ==, MAIL_STAGED_DROPPED);
  g_assert_false (mail_staged_write (staged, 0, "x", 1, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_GONE);
  g_assert_false (has_file (f, id, FALSE));
}

/* --- bytes ---------------------------------------------------------------------------------------
 */

static const struct
{
  const char *name, *steps; /* wOFFSET:TEXT and tSIZE */
} byte_cases[] = {
  { "nothing", "" },
  { "once", "w0:abc" },
  { "twice", "w0:abc w3:def" },
  { "nothing-written", "w0:" },
  { "over", "w0:abcdef w2:XY" },
  { "over-the-end", "w0:abcdef w4:XYZ" },
  { "hole", "w10:abc" },
  { "hole-far", "w0:a w300000:abc" },
  { "backwards", "w5:fgh w0:abcde" },
  { "shorter", "w0:abcdef t3" },
  { "shorter-then-more", "w0:abcdef t3 w3:XYZ12" },
  { "longer", "w0:abc t9" },
  { "longer-then-in-it", "w0:abc t9 w6:x" },
  { "only-longer", "t7" },
  { "to-nothing", "w0:abcdef t0" },
  { "zeros-not-what-was", "w0:abcdef t2 t6" },
  { "zeros-not-what-was-either", "w0:abcdef t0 w4:x" },
  { "same-size", "w0:abc t3 w3:d" },
  { "many", "w0:abcdef t2 w9:xyz t11 w1:0 t0 w2:q t30 t4" },
};

static void
apply (MailStaged *staged, GByteArray *model, const char *step)
{
  g_autoptr (GError) error = NULL;
  char *end = NULL;
  guint at = (guint)g_ascii_strtoull (step + 1, &end, 10), old = model->len;
  gsize length = *step == 'w' ? strlen (end + 1) : 0;

  if (*step == 't')
    mail_staged_truncate (staged, at, &error);
  else
    mail_staged_write (staged, at, end + 1, length, &error);
  g_assert_no_error (error);
  if (*step == 't' || at + length > old)
    g_byte_array_set_size (model, at + length);
  if (model->len > old)
    memset (model->data + old, 0, model->len - old);
  if (length > 0)
    memcpy (model->data + at, end + 1, length);
}

static void
assert_bytes (Fixture *f, MailStaged *staged, const GByteArray *model)
{
  g_autofree char *path = mail_spool_path (f->changes, staged->id, FALSE);
  g_autofree guint8 *buffer = g_malloc (model->len + 10);
  g_autofree char *data = NULL;
  gsize length;

  g_assert_cmpuint (info_of (staged).size, ==, model->len);
  g_assert_cmpuint (f->changes->spool_bytes, ==, f->others + model->len);
  for (gsize at = 0; at <= model->len + 1u; at += 1 + model->len / 5)
    {
      gsize left = at < model->len ? model->len - at : 0;

      g_assert_cmpint (mail_staged_read (staged, at, buffer, model->len + 10, NULL), ==, left);
      if (left > 0)
        g_assert_cmpmem (buffer, left, model->data + at, left);
    }
  g_assert_true (g_file_get_contents (path, &data, &length, NULL));
  if (length > 0)
    g_assert_cmpmem (data, length, model->data, model->len);
  g_assert_cmpuint (length, ==, model->len);
}

static void
test_bytes (Fixture *f, gconstpointer data)
{
  g_autoptr (GByteArray) model = g_byte_array_new ();
  g_auto (GStrv) steps = g_strsplit (byte_cases[GPOINTER_TO_UINT (data)].steps, " ", -1);
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, ".t", TRUE);

  assert_bytes (f, staged, model);
  for (guint i = 0; steps[i] != NULL; i++)
    {
      apply (staged, model, steps[i]);
      assert_bytes (f, staged, model);
    }
  /* Another run finds what was written. */
  g_clear_pointer (&staged, mail_staged_unref);
  kill_and_open (f);
  staged = lookup (f, f->inbox, 0, ".t");
  g_assert_nonnull (staged);
  assert_bytes (f, staged, model);
}

static void
test_random_bytes (Fixture *f, gconstpointer data)
{
  g_autoptr (GRand) rand = g_rand_new_with_seed (1);
  g_autoptr (GByteArray) model = g_byte_array_new ();
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, ".t", TRUE);

  for (guint i = 0; i < 300; i++)
    {
      guint at = (guint)g_rand_int_range (rand, 0, 2000);
      g_autofree char *text = g_strnfill ((gsize)g_rand_int_range (rand, 1, 900), 'a' + i % 26);
      g_autofree char *step = g_rand_int_range (rand, 0, 3) == 0
                                  ? g_strdup_printf ("t%u", at)
                                  : g_strdup_printf ("w%u:%s", at, text);

      apply (staged, model, step);
      assert_bytes (f, staged, model);
    }
}

/* A file may not grow: what fits is there, the error says why, and the file goes on. */
static void
test_too_large (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, ".t", TRUE);
  g_autoptr (GByteArray) model = g_byte_array_new ();
  g_autofree char *text = g_strnfill (200, 'x');
  g_autoptr (GError) error = NULL;

  apply (staged, model, "w0:abc");
  struct rlimit limit = scratch_limit_files (100);
  gboolean good = mail_staged_write (staged, 0, text, 200, &error);
  setrlimit (RLIMIT_FSIZE, &limit);
  g_assert_false (good);
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_TOO_LARGE);
  text[100] = '\0';
  g_byte_array_set_size (model, 0);
  g_byte_array_append (model, (const guint8 *)text, 100);
  assert_bytes (f, staged, model);
  apply (staged, model, "w100:more");
  assert_bytes (f, staged, model);
}

/* The same where nothing of it fits, and beyond what there is. */
static void
test_none_fits (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, ".t", TRUE);
  g_autoptr (GByteArray) model = g_byte_array_new ();

  apply (staged, model, "w0:abc");
  struct rlimit limit = scratch_limit_files (100);
  gboolean good = mail_staged_write (staged, 5000, "x", 1, NULL);
  setrlimit (RLIMIT_FSIZE, &limit);
  g_assert_false (good);
  assert_bytes (f, staged, model);
}

/* A file of nothing is no message, wherever the write that failed was to go. */
static void
test_none_fits_sent (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, "x", FALSE);
  Told done = { 0 };

  struct rlimit limit = scratch_limit_files (100);
  gboolean good = mail_staged_write (staged, 5000, "x", 1, NULL);
  setrlimit (RLIMIT_FSIZE, &limit);
  g_assert_false (good);
  mail_staged_commit (staged, FALSE, told, &done);
  wait_told (f->harness, &done);
  told_clear (&done);
  g_assert_cmpuint (model_mailbox (f->harness->server, "INBOX")->messages->len, ==, 0);
}

/* --- names ---------------------------------------------------------------------------------------
 */

static void
test_tables (Fixture *f, gconstpointer data)
{
  MailMailbox *mailboxes[] = { f->inbox, f->archive };
  MailStaged *all[2][2][5];

  for (guint i = 0; i < 5; i++)
    for (guint m = 0; m < 2; m++)
      for (guint area = 0; area < 2; area++)
        {
          g_autofree char *name = g_strdup_printf (".file%u", i);

          g_assert_false (is_there (f, mailboxes[m], area, name));
          all[m][area][i] = create (f, mailboxes[m], area, name, TRUE);
          g_assert_cmpuint (info_of (all[m][area][i]).area, ==, area);
        }
  for (guint m = 0; m < 2; m++)
    {
      g_assert_cmpuint (mail_stage_count (f->harness->store, mailboxes[m]), ==, 10);
      for (guint area = 0; area < 3; area++)
        {
          guint32 id = 0;

          for (guint i = 0; i < (area < 2 ? 5 : 0); i++)
            {
              MailStaged *expected = all[m][area][i];
              g_autofree char *name = mail_staged_name (expected);
              g_autoptr (MailMailbox) mailbox = mail_staged_mailbox (expected);
              g_autoptr (MailStaged) next = mail_stage_next (f->harness->store, mailboxes[m], area,
                                                             id);
              g_autoptr (MailStaged) named = lookup (f, mailboxes[m], area, name);

              g_assert_true (mailbox == mailboxes[m]);
              g_assert_true (next == expected);
              g_assert_true (named == expected);
              id = info_of (next).id;
              g_autoptr (MailStaged) found = mail_stage_find (f->harness->store, id);
              g_assert_true (found == expected);
            }
          g_assert_null (mail_stage_next (f->harness->store, mailboxes[m], area, id));
        }
    }
  g_assert_false (is_there (f, f->inbox, 0, ".File0"));
  g_assert_null (mail_stage_find (f->harness->store, 999999));
  for (guint i = 0; i < 20; i++)
    {
      MailStaged *staged = (&all[0][0][0])[i];

      mail_staged_drop (staged, NULL, NULL);
      g_assert_cmpuint (mail_stage_count (f->harness->store, f->inbox), ==, i < 10 ? 9 - i : 0);
      mail_staged_unref (staged);
    }
  g_assert_cmpuint (g_hash_table_size (f->changes->dirs), ==, 0);
  g_assert_cmpuint (g_hash_table_size (f->changes->staged), ==, 0);
}

typedef enum
{
  OVER_NOTHING,
  OVER_FILE,
  OVER_ITSELF,
} Over;

static const struct
{
  const char *name;
  gboolean elsewhere;
  guint area;
  const char *to;
  gboolean temporary;
  Over over;
} rename_cases[] = {
  { "name", FALSE, 0, ".b", TRUE, OVER_NOTHING },
  { "area", FALSE, 1, ".a", TRUE, OVER_NOTHING },
  { "elsewhere", TRUE, 0, ".a", TRUE, OVER_NOTHING },
  { "elsewhere-name-area", TRUE, 2, ".b", TRUE, OVER_NOTHING },
  { "over", FALSE, 0, ".b", TRUE, OVER_FILE },
  { "over-area", FALSE, 1, ".a", TRUE, OVER_FILE },
  { "over-elsewhere", TRUE, 0, ".a", TRUE, OVER_FILE },
  { "over-itself", FALSE, 0, ".a", TRUE, OVER_ITSELF },
  { "final", FALSE, 0, "b", FALSE, OVER_NOTHING },
  { "final-elsewhere", TRUE, 1, "b", FALSE, OVER_NOTHING },
  { "final-over", FALSE, 0, "b", FALSE, OVER_FILE },
  { "final-over-elsewhere", TRUE, 0, "b", FALSE, OVER_FILE },
};

static void
assert_renamed (Fixture *f, guint row, guint32 id)
{
  MailMailbox *target = rename_cases[row].elsewhere ? f->archive : f->inbox;
  g_autoptr (MailStaged) staged = lookup (f, target, rename_cases[row].area, rename_cases[row].to);
  g_autoptr (GPtrArray) rows = mail_journal_load_staged (f->changes->journal, NULL);
  const MailJournalStaged *saved = row_of (rows, id);

  g_assert_nonnull (staged);
  g_assert_cmpuint (info_of (staged).id, ==, id);
  g_autofree char *text = read_staged (staged);
  g_assert_cmpstr (text, ==, "Subject: a\r\n\r\nmoved\r\n");
  g_assert_cmpuint (mail_stage_count (f->harness->store, f->inbox), ==,
                    !rename_cases[row].elsewhere);
  g_assert_cmpuint (mail_stage_count (f->harness->store, f->archive), ==,
                    rename_cases[row].elsewhere);
  g_assert_cmpuint (f->changes->spool_bytes, ==, strlen (text));
  g_assert_nonnull (saved);
  g_assert_cmpuint (rows->len, ==, 1);
  g_assert_cmpstr (saved->mailbox, ==, rename_cases[row].elsewhere ? "Archive" : "INBOX");
  g_assert_cmpstr (saved->name, ==, rename_cases[row].to);
  g_assert_cmpuint (saved->area, ==, rename_cases[row].area);
  g_assert_true (saved->temporary);
  g_assert_cmpuint (f->harness->server->n_commands, ==, 0);
}

static void
test_rename (Fixture *f, gconstpointer data)
{
  guint row = GPOINTER_TO_UINT (data), area = rename_cases[row].area;
  const char *to = rename_cases[row].to, *place = rename_cases[row].elsewhere ? "Archive" : "INBOX";
  MailMailbox *target = rename_cases[row].elsewhere ? f->archive : f->inbox;
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, ".a", TRUE);
  g_autoptr (MailStaged) over = NULL;
  Told done = { 0 };

  put (staged, 0, "Subject: a\r\n\r\nmoved\r\n");
  if (rename_cases[row].over == OVER_FILE)
    {
      over = create (f, target, area, to, rename_cases[row].temporary);
      put (over, 0, "Subject: b\r\n\r\nwas there\r\n");
    }
  else if (rename_cases[row].over == OVER_ITSELF)
    over = mail_staged_ref (staged);
  mail_staged_rename (staged, target, area, to, rename_cases[row].temporary, 0, over, told, &done);
  wait_good (f->harness, &done);
  g_assert_cmpint (is_there (f, f->inbox, 0, ".a"), ==, rename_cases[row].over == OVER_ITSELF);
  if (rename_cases[row].temporary)
    {
      guint32 id = info_of (staged).id;

      if (rename_cases[row].over == OVER_FILE)
        g_assert_cmpint (info_of (over).state, ==, MAIL_STAGED_DROPPED);
      assert_renamed (f, row, id);
      g_clear_pointer (&staged, mail_staged_unref);
      g_clear_pointer (&over, mail_staged_unref);
      kill_and_open (f);
      assert_renamed (f, row, id);
      return;
    }
  g_assert_cmpuint (f->harness->server->n_commands, ==, 1);
  g_assert_cmpuint (model_count_in (f->harness->server, place, "moved"), ==, 1);
  g_assert_cmpuint (model_count (f->harness->server, "was there"), ==, 0);
  g_assert_cmpuint (mail_mailbox_uid_of_name (target, to), ==, 1);
  if (over != NULL)
    assert_gone (f, over, target, ".none");
}

/* A name that is not temporary any more, or is now: what counts is the one it has. */
static void
test_turned (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) final = create (f, f->inbox, 0, ".a", TRUE);
  g_autoptr (MailStaged) temporary = create (f, f->inbox, 0, "b", FALSE);
  Told done = { 0 };

  mail_staged_rename (final, f->inbox, 0, "a", FALSE, 0, NULL, told, &done);
  wait_good (f->harness, &done);
  put (temporary, 0, "Subject: b\r\n\r\n");
  mail_staged_rename (temporary, f->inbox, 0, ".b", TRUE, 0, NULL, told, &done);
  wait_good (f->harness, &done);
  put (final, 0, "Subject: a\r\n\r\n");
  mail_staged_forget (temporary, temporary->n_emptied);
  mail_staged_forget (final, final->n_emptied);
  settle (f->harness);
  g_assert_cmpuint (model_count_in (f->harness->server, "INBOX", "Subject: a"), ==, 1);
  g_assert_cmpuint (model_count (f->harness->server, "Subject: b"), ==, 0);
  g_assert_true (is_there (f, f->inbox, 0, ".b"));
}

/* Committed, and not sent yet. */
typedef enum
{
  LEAVE,
  TO_TEMPORARY,
  TO_ARCHIVE,
  DROP,
  REWRITE,
  EMPTY,
  COVER,
  FLAG,
} Act;

static const struct
{
  const char *name;
  Act act;
  guint n_inbox, n_archive; /* that have come */
} queued_cases[] = {
  { "left", LEAVE, 1, 0 },        { "to-temporary", TO_TEMPORARY, 0, 0 },
  { "moved", TO_ARCHIVE, 0, 1 },  { "dropped", DROP, 0, 0 },
  { "rewritten", REWRITE, 1, 0 }, { "emptied", EMPTY, 0, 0 },
  { "covered", COVER, 0, 0 },     { "flagged", FLAG, 1, 0 },
};

static void
act_on (Fixture *f, MailStaged *staged, Act act)
{
  g_autoptr (MailStaged) other = NULL;
  g_autoptr (GPtrArray) rows = NULL;

  switch (act)
    {
    case LEAVE:
      break;
    case TO_TEMPORARY:
      mail_staged_rename (staged, f->inbox, 0, ".x", TRUE, 0, NULL, NULL, NULL);
      break;
    case TO_ARCHIVE:
      mail_staged_rename (staged, f->archive, 0, "y", FALSE, 0, NULL, NULL, NULL);
      break;
    case DROP:
      mail_staged_drop (staged, NULL, NULL);
      break;
    case REWRITE:
      put (staged, 9, "anew\r\n\r\n");
      g_assert_cmpint (info_of (staged).state, ==, MAIL_STAGED_LOCAL);
      mail_staged_commit (staged, FALSE, NULL, NULL);
      break;
    case EMPTY:
      g_assert_true (mail_staged_truncate (staged, 0, NULL));
      break;
    case COVER:
      other = create (f, f->inbox, 0, ".other", TRUE);
      put (other, 0, "Subject: other\r\n\r\n");
      mail_staged_rename (other, f->inbox, 0, "x", FALSE, 0, staged, NULL, NULL);
      break;
    case FLAG:
      g_assert_true (mail_staged_set_flags (staged, MAIL_FLAG_FLAGGED, "work", NULL));
      rows = mail_journal_load_staged (f->changes->journal, NULL);
      g_assert_cmpuint (row_of (rows, staged->id)->flags, ==, MAIL_FLAG_FLAGGED);
      g_assert_cmpstr (row_of (rows, staged->id)->keywords, ==, "work");
      mail_staged_set_mtime (staged, DATE + 9);
      g_clear_pointer (&rows, g_ptr_array_unref);
      rows = mail_journal_load_staged (f->changes->journal, NULL);
      g_assert_cmpint (row_of (rows, staged->id)->mtime, ==, DATE + 9);
      break;
    }
}

static void
test_queued (Fixture *f, gconstpointer data)
{
  guint row = GPOINTER_TO_UINT (data);
  Act act = queued_cases[row].act;
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, "x", FALSE);
  Told done = { 0 };

  put (staged, 0, "Subject: it is\r\n\r\n");
  mail_staged_commit (staged, FALSE, told, &done);
  g_assert_cmpint (info_of (staged).state, ==, MAIL_STAGED_QUEUED);
  act_on (f, staged, act);
  wait_good (f->harness, &done); /* whoever waited is not forgotten */
  settle (f->harness);
  const char *text = act == REWRITE ? "Subject: anew\r\n\r\n\r\n" : "Subject: it is\r\n\r\n";
  g_assert_cmpuint (model_count_in (f->harness->server, "INBOX", text), ==,
                    queued_cases[row].n_inbox);
  g_assert_cmpuint (model_count_in (f->harness->server, "Archive", text), ==,
                    queued_cases[row].n_archive);
  g_assert_cmpuint (f->harness->server->n_commands, ==,
                    queued_cases[row].n_inbox + queued_cases[row].n_archive + (act == COVER));
  g_assert_cmpuint (n_pending (f->harness), ==, 0);
  if (act == FLAG)
    {
      const ModelMessage *message = model_find (model_mailbox (f->harness->server, "INBOX"), 1);

      g_assert_cmpuint (message->flags, ==, MAIL_FLAG_FLAGGED);
      g_assert_cmpstr (message->keywords, ==, "work");
      g_assert_cmpint (message->date, ==, DATE + 9);
    }
  if (act == DROP || act == COVER)
    assert_gone (f, staged, f->archive, "x");
}

/* Written and committed again while it is on its way, then removed: who waits for the next version
 * hears that none will come. */
static void
test_next_dropped (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, "x", FALSE);
  Told first = { 0 }, next = { 0 };

  put (staged, 0, "Subject: it is\r\n\r\n");
  mail_staged_commit (staged, FALSE, told, &first);
  while (!staged->change->running)
    turn_once (f->harness);
  put (staged, 9, "anew\r\n\r\n");
  mail_staged_commit (staged, TRUE, told, &next);
  g_assert_false (next.called);
  mail_staged_drop (staged, NULL, NULL);
  g_assert_true (next.called);
  wait_good (f->harness, &next);
  wait_good (f->harness, &first);
  settle (f->harness);
  g_assert_cmpuint (model_count (f->harness->server, "Subject: anew"), ==, 0);
  g_assert_cmpuint (model_count_in (f->harness->server, "INBOX", "Subject: it is"), ==, 0);
  assert_gone (f, staged, f->inbox, "x");
}

/* --- the mailbox ---------------------------------------------------------------------------------
 */

static guint
n_in_spool (Fixture *f)
{
  GDir *dir = g_dir_open (f->changes->spool_dir, 0, NULL);
  guint n = 0;

  while (g_dir_read_name (dir) != NULL)
    n++;
  g_dir_close (dir);
  return n;
}

static void
assert_not_created (Fixture *f, int code)
{
  g_autoptr (GPtrArray) rows = mail_journal_load_staged (f->changes->journal, NULL);
  g_autoptr (GError) error = NULL;

  g_assert_null (mail_stage_create (f->harness->store, f->archive, 0, ".t", TRUE, &error));
  g_assert_error (error, MAIL_ERROR, code);
  g_assert_cmpuint (rows->len, ==, 0);
  g_assert_false (is_there (f, f->archive, 0, ".t"));
  g_assert_cmpuint (mail_stage_count (f->harness->store, f->archive), ==, 0);
  g_assert_cmpuint (g_hash_table_size (f->changes->staged), ==, 0);
}

static void
test_not_created (Fixture *f, gconstpointer data)
{
  g_autofree char *away = g_strconcat (f->changes->spool_dir, ".away", NULL);

  g_assert_cmpint (g_rename (f->changes->spool_dir, away), ==, 0);
  assert_not_created (f, MAIL_ERROR_GONE);
  g_assert_cmpint (g_rename (away, f->changes->spool_dir), ==, 0);
  model_mailbox (f->harness->server, "Archive")->read_only = TRUE;
  look (f->harness, f->archive);
  assert_not_created (f, MAIL_ERROR_READ_ONLY);
  g_assert_cmpuint (n_in_spool (f), ==, 0);
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, ".t", TRUE);
  g_assert_cmpuint (info_of (staged).size, ==, 0);
  g_assert_cmpuint (n_in_spool (f), ==, 1);
}

/* The files in it go along, in the journal too. */
static void
test_mailbox_renamed (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) staged = create (f, f->archive, 0, ".t", TRUE);
  g_autoptr (MailMailbox) root = mail_store_mailbox (f->harness->store, MAIL_ROOT_ID);
  g_autoptr (GPtrArray) rows = NULL;
  Told done = { 0 };

  put (staged, 0, "Subject: it is\r\n\r\n");
  mail_change_rename_mailbox (f->harness->store, f->archive, root, "Other", FALSE, told, &done);
  wait_good (f->harness, &done);
  rows = mail_journal_load_staged (f->changes->journal, NULL);
  g_assert_cmpuint (rows->len, ==, 1);
  g_assert_cmpstr (row_of (rows, staged->id)->mailbox, ==, "Other");
  g_assert_true (is_there (f, f->archive, 0, ".t"));
  mail_staged_rename (staged, f->archive, 0, "t", FALSE, 0, NULL, told, &done);
  wait_good (f->harness, &done);
  g_assert_cmpuint (model_count_in (f->harness->server, "Other", "Subject: it is"), ==, 1);
}

/* Somebody has removed it while the daemon was not there: what was written is kept, and goes where
 * the user moves it. */
static void
test_mailbox_gone (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) staged = create (f, f->archive, 0, ".t", TRUE);
  g_autoptr (MailStaged) empty = create (f, f->archive, 0, ".e", TRUE);
  Told done = { 0 };

  put (staged, 0, "Subject: it is\r\n\r\n");
  g_clear_pointer (&staged, mail_staged_unref);
  g_clear_pointer (&empty, mail_staged_unref);
  Harness *killed = harness_clone (f->harness);
  tear_down (f, NULL);
  f->harness = killed;
  g_ptr_array_remove (killed->server->mailboxes, model_mailbox (killed->server, "Archive"));
  harness_open (killed);
  f->changes = killed->store->changes;
  f->inbox = get_mailbox (killed, "INBOX");
  look (killed, f->inbox);
  g_assert_cmpuint (n_failed (killed, "Subject: it is"), ==, 1);
  g_assert_cmpuint (n_failed (killed, ""), ==, 1);
  g_assert_cmpuint (n_in_spool (f), ==, 1);
  staged = mail_stage_next_failed (killed->store, 0);
  g_assert_null (mail_staged_mailbox (staged));
  g_autoptr (GError) error = NULL;
  g_assert_false (mail_staged_write (staged, 0, "x", 1, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_CANNOT);
  mail_staged_rename (staged, f->inbox, 0, "saved", FALSE, 0, NULL, told, &done);
  wait_good (killed, &done);
  g_assert_cmpuint (model_count_in (killed->server, "INBOX", "Subject: it is"), ==, 1);
  g_assert_cmpuint (n_failed (killed, ""), ==, 0);
  g_assert_cmpuint (mail_mailbox_uid_of_name (f->inbox, "saved"), ==, 1);
}

/* --- ends ----------------------------------------------------------------------------------------
 */

static const struct
{
  const char *name, *text;
  gboolean temporary, flush;
} drop_cases[] = {
  { "empty", NULL, FALSE, FALSE },
  { "empty-temporary", NULL, TRUE, FALSE },
  { "flushed", NULL, FALSE, TRUE },
  { "written", "Subject: x\r\n\r\n", FALSE, FALSE },
  { "written-temporary", "Subject: x\r\n\r\n", TRUE, TRUE },
  { "hole", "", TRUE, FALSE },
};

static void
test_drop (Fixture *f, gconstpointer data)
{
  guint row = GPOINTER_TO_UINT (data);
  g_autoptr (MailStaged) other = create (f, f->inbox, 0, ".other", TRUE);
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, "x", drop_cases[row].temporary);
  Told done = { 0 };

  put (other, 0, "1234");
  if (drop_cases[row].text != NULL && drop_cases[row].text[0] != '\0')
    put (staged, 0, drop_cases[row].text);
  else if (drop_cases[row].text != NULL)
    g_assert_true (mail_staged_truncate (staged, 5000, NULL));
  if (drop_cases[row].flush)
    {
      mail_staged_commit (staged, FALSE, told, &done);
      wait_good (f->harness, &done);
    }
  for (guint i = 0; i < 2; i++) /* twice is no trouble */
    {
      mail_staged_drop (staged, told, &done);
      wait_good (f->harness, &done);
      assert_gone (f, staged, f->inbox, "x");
      g_assert_cmpuint (f->changes->spool_bytes, ==, 4);
      g_assert_cmpuint (mail_stage_count (f->harness->store, f->inbox), ==, 1);
    }
  g_clear_pointer (&staged, mail_staged_unref);
  g_clear_pointer (&other, mail_staged_unref);
  kill_and_open (f);
  g_assert_false (is_there (f, f->inbox, 0, "x"));
  g_assert_true (is_there (f, f->inbox, 0, ".other"));
  g_assert_cmpuint (f->harness->server->n_commands, ==, 0);
}

/* One that nobody knows any more. */
typedef enum
{
  STAYS,
  FAILS,
  GOES,
  SENT,
} Forgotten;

static const struct
{
  const char *name, *text;
  gboolean temporary, replacement;
  Forgotten then;
} forget_cases[] = {
  { "temporary", "Subject: x\r\n\r\n", TRUE, FALSE, STAYS },
  { "temporary-empty", "", TRUE, FALSE, STAYS },
  { "empty", "", FALSE, FALSE, FAILS },
  { "written", "Subject: x\r\n\r\n", FALSE, FALSE, SENT },
  { "replacement", "Subject: x\r\n\r\n", FALSE, TRUE, SENT },
  { "replacement-empty", "", FALSE, TRUE, GOES },
};

static void
test_forget (Fixture *f, gconstpointer data)
{
  guint row = GPOINTER_TO_UINT (data);
  guint32 content_id = mail_mailbox_content_id (f->inbox);
  g_autoptr (MailStaged) staged = NULL;
  guint n_sent = 0;

  if (forget_cases[row].replacement)
    {
      model_deliver (f->harness->server, "INBOX", "Subject: old\r\n\r\n", 0, DATE);
      look (f->harness, f->inbox);
      staged = mail_stage_replacement (f->harness->store, f->inbox, 1, "x", NULL);
      g_autoptr (MailStaged) same = mail_stage_replacement (f->harness->store, f->inbox, 1, "x",
                                                            NULL);
      g_assert_true (same == staged);
      g_assert_cmpuint (info_of (staged).replaces_uid, ==, 1);
      g_assert_cmpuint (mail_stage_count (f->harness->store, f->inbox), ==, 0);
    }
  else
    staged = create (f, f->inbox, 0, "x", forget_cases[row].temporary);
  guint32 id = info_of (staged).id;
  put (staged, 0, forget_cases[row].text);
  mail_staged_forget (staged, staged->n_emptied);
  settle (f->harness);
  n_sent = model_count (f->harness->server, "Subject: x");
  g_assert_cmpuint (n_sent, ==, forget_cases[row].then == SENT);
  g_assert_cmpuint (n_failed (f->harness, ""), ==, forget_cases[row].then == FAILS);
  g_assert_cmpint (is_there (f, f->inbox, 0, "x"), ==, forget_cases[row].then == STAYS);
  if (forget_cases[row].then == GOES)
    assert_gone (f, staged, f->inbox, "x");
  if (forget_cases[row].then == SENT)
    {
      /* Now it is a message; and the file is forgotten once more. */
      g_assert_true (has_file (f, id, FALSE));
      mail_staged_forget (staged, staged->n_emptied);
      g_assert_false (has_file (f, id, FALSE));
      g_assert_cmpuint (f->changes->spool_bytes, ==, 0);
      g_assert_null (mail_stage_find (f->harness->store, id));
      g_autofree char *text = read_staged (staged); /* of the message */
      g_assert_cmpstr (text, ==, forget_cases[row].text);
    }
  g_autoptr (MailStaged) replacement = mail_stage_find_replacement (f->harness->store, content_id,
                                                                    1);
  g_assert_null (replacement);
}

/* The kernel's word that it forgot an inode comes late: somebody emptied the file again since. */
static void
test_forget_emptied (Fixture *f, gconstpointer unused)
{
  model_deliver (f->harness->server, "INBOX", "Subject: old\r\n\r\n", 0, DATE);
  look (f->harness, f->inbox);
  g_autoptr (MailStaged) staged = mail_stage_replacement (f->harness->store, f->inbox, 1, "x",
                                                          NULL);
  guint before = info_of (staged).n_emptied;

  g_assert_true (mail_staged_truncate (staged, 0, NULL));
  mail_staged_forget (staged, before);
  put (staged, 0, "Subject: x\r\n\r\n"); /* asserts that it can be written */
  mail_staged_forget (staged, info_of (staged).n_emptied);
  settle (f->harness);
  g_assert_cmpuint (model_count (f->harness->server, "Subject: x"), ==, 1);
}

/* Written anew, sent, and written anew once more: who has one of the versions open writes to it. */
static void
test_numbers (Fixture *f, gconstpointer unused)
{
  guint32 content_id = mail_mailbox_content_id (f->inbox);
  Told done = { 0 };

  model_deliver (f->harness->server, "INBOX", "Subject: old\r\n\r\n", 0, DATE);
  look (f->harness, f->inbox);
  g_autoptr (MailStaged) staged = mail_stage_replacement (f->harness->store, f->inbox, 1, "x",
                                                          NULL);
  put (staged, 0, "Subject: x\r\n\r\n");
  mail_staged_commit (staged, FALSE, told, &done);
  wait_good (f->harness, &done);
  settle (f->harness);
  g_assert_cmpuint (info_of (staged).uid, ==, 2);
  g_assert_true (mail_staged_truncate (staged, 0, NULL));
  for (guint32 uid = 1; uid <= 2; uid++)
    {
      g_autoptr (MailStaged) found = mail_stage_find_replacement (f->harness->store, content_id,
                                                                  uid);
      g_assert_true (found == staged);
      mail_staged_forget_number (staged, mail_staged_key (content_id, uid));
      g_autoptr (GArray) left = mail_staged_numbers (staged);
      g_assert_cmpuint (left->len, ==, 1);
      g_assert_cmpuint (g_array_index (left, guint64, 0), ==, mail_staged_key (content_id, 2));
    }
  mail_staged_forget (staged, staged->n_emptied);
  g_assert_null (mail_stage_find_replacement (f->harness->store, content_id, 2));
}

/* What lies in the spool at the start and is known to no row. */
static const struct
{
  const char *name;
  gboolean stays;
} stray_cases[] = {
  { "7000", FALSE },        { "7001.wire", FALSE }, { "7002.new", FALSE },
  { "7003.wire.x", FALSE }, { "README", TRUE },     { "4294967295", TRUE },
};

enum
{
  KEPT, /* NULL */
  GARBLED,
  EMPTIED,
  MISSING,
};

static void
test_strays (Fixture *f, gconstpointer lost)
{
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, ".t", TRUE);
  guint32 id = info_of (staged).id;

  put (staged, 0, "Subject: known\r\n\r\n");
  g_clear_pointer (&staged, mail_staged_unref);
  let_go (f);
  harness_close (f->harness);
  g_autofree char *spool = g_build_filename (f->harness->dir, "spool", NULL);
  for (guint i = 0; i < G_N_ELEMENTS (stray_cases); i++)
    {
      g_autofree char *path = g_build_filename (spool, stray_cases[i].name, NULL);
      g_assert_true (g_file_set_contents (path, "Subject: stray\r\n\r\n", -1, NULL));
    }
  g_autofree char *journal = g_build_filename (f->harness->dir, "journal.sqlite", NULL);
  if (GPOINTER_TO_UINT (lost) == GARBLED)
    g_assert_true (g_file_set_contents (journal, "no journal at all", -1, NULL));
  else if (GPOINTER_TO_UINT (lost) == EMPTIED)
    g_assert_cmpint (truncate (journal, 0), ==, 0);
  else if (GPOINTER_TO_UINT (lost) == MISSING)
    g_assert_cmpint (g_unlink (journal), ==, 0);
  open_all (f);
  for (guint i = 0; i < G_N_ELEMENTS (stray_cases); i++)
    {
      g_autofree char *path = g_build_filename (spool, stray_cases[i].name, NULL);
      g_assert_cmpint (g_file_test (path, G_FILE_TEST_EXISTS), ==,
                       stray_cases[i].stays || (lost != NULL && i == 0));
    }
  /* Without a journal each of them may be somebody's mail. */
  g_assert_true (has_file (f, id, FALSE));
  g_assert_cmpint (is_there (f, f->inbox, 0, ".t"), ==, lost == NULL);
  g_assert_cmpuint (n_failed (f->harness, "Subject: known"), ==, lost != NULL);
  g_assert_cmpuint (n_failed (f->harness, "Subject: stray"), ==, lost != NULL);
  g_assert_cmpuint (f->changes->spool_bytes, ==, lost != NULL ? 36 : 18);
  /* No number is given out again. */
  staged = create (f, f->inbox, 0, ".new", TRUE);
  g_assert_cmpuint (info_of (staged).id, >, 7003);
}

/* What is no longer there is not counted, and nothing is taken off twice. */
static void
test_accounts (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) other = create (f, f->inbox, 0, ".other", TRUE);
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, "x", FALSE);
  g_autofree char *body = g_strnfill (1000, 'x');
  Told done = { 0 };

  put (other, 0, body);
  put (staged, 0, "Subject: x\r\n\r\n");
  mail_staged_commit (staged, FALSE, told, &done);
  wait_good (f->harness, &done);
  g_assert_cmpuint (f->changes->spool_bytes, ==, 1014);
  g_assert_true (mail_staged_truncate (staged, 0, NULL)); /* by whom it is still open */
  g_assert_cmpuint (f->changes->spool_bytes, ==, 1000);
  put (staged, 0, "Subject: y\r\n\r\n");
  g_assert_cmpuint (f->changes->spool_bytes, ==, 1014);
}

/* --- copies --------------------------------------------------------------------------------------
 */

static MailStaged *
copy_message (Fixture *f, const char *text, gboolean fetched)
{
  MailStaged *staged = create (f, f->archive, 0, "copy", FALSE);
  g_autoptr (GError) error = NULL;

  guint32 uid = model_deliver (f->harness->server, "INBOX", text, MAIL_FLAG_SEEN, DATE)->uid;
  look (f->harness, f->inbox);
  if (fetched)
    g_free (read_message (f->harness, f->inbox, uid));
  g_assert_true (mail_staged_copy_from (staged, f->inbox, uid, &error));
  g_assert_no_error (error);
  g_assert_cmpuint (info_of (staged).size, ==, strlen (text));
  g_assert_cmpuint (info_of (staged).flags, ==, MAIL_FLAG_SEEN);
  g_assert_cmpuint (f->changes->spool_bytes, ==, f->others);
  g_assert_false (has_file (f, info_of (staged).id, FALSE));
  return staged;
}

static const char copied[] = "Subject: copied\r\n\r\nbody\r\n";

static const struct
{
  const char *name, *step, *expected; /* NULL: not possible, its bytes are not here */
  gboolean fetched;
} copy_cases[] = {
  { "written", "w9:C", "Subject: Copied\r\n\r\nbody\r\n", TRUE },
  { "longer", "w25:x", "Subject: copied\r\n\r\nbody\r\nx", TRUE },
  { "cut", "t10", "Subject: c", TRUE },
  { "emptied", "t0", "", TRUE },
  { "emptied-not-fetched", "t0", "", FALSE },
  { "not-fetched", "w0:x", NULL, FALSE },
};

static void
test_copy (Fixture *f, gconstpointer data)
{
  guint row = GPOINTER_TO_UINT (data);
  const char *expected = copy_cases[row].expected, *step = copy_cases[row].step;
  g_autoptr (MailStaged) other = create (f, f->inbox, 0, ".other", TRUE);

  put (other, 0, "some bytes of another file, more than those of the message");
  f->others = info_of (other).size;
  g_autoptr (MailStaged) staged = copy_message (f, copied, copy_cases[row].fetched);
  g_autoptr (GError) error = NULL;
  guint32 uid = 0;

  g_autoptr (MailMailbox) source = mail_staged_message (staged, &uid);
  g_assert_true (source == f->inbox);
  g_assert_cmpuint (uid, ==, 1);
  if (expected == NULL)
    {
      g_assert_false (mail_staged_write (staged, 0, "x", 1, &error));
      g_assert_error (error, MAIL_ERROR, MAIL_ERROR_UNREACHABLE);
      g_assert_cmpuint (info_of (staged).size, ==, strlen (copied));
      g_assert_cmpuint (f->changes->spool_bytes, ==, f->others);
      return;
    }
  g_autoptr (GByteArray) model = g_byte_array_new ();
  g_byte_array_append (model, (const guint8 *)copied, strlen (copied));
  apply (staged, model, step);
  assert_bytes (f, staged, model);
  g_assert_cmpmem (model->data, model->len, expected, strlen (expected));
  g_assert_null (mail_staged_message (staged, &uid));
  mail_staged_drop (staged, NULL, NULL);
  assert_gone (f, staged, f->archive, "copy");
  g_assert_cmpuint (f->changes->spool_bytes, ==, f->others);
}

static void
test_copy_refused (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) twice = copy_message (f, copied, FALSE);
  g_autoptr (MailStaged) staged = create (f, f->archive, 0, ".x", TRUE);
  g_autoptr (GError) error = NULL;

  g_assert_false (mail_staged_copy_from (twice, f->inbox, 1, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_INVALID);
  g_clear_error (&error);
  g_assert_false (mail_staged_copy_from (staged, f->inbox, 99, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_GONE);
  g_clear_error (&error);
  put (staged, 0, "x");
  g_assert_false (mail_staged_copy_from (staged, f->inbox, 1, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_INVALID);
  g_autofree char *text = read_staged (staged);
  g_assert_cmpstr (text, ==, "x");
}

/* With a date of its own it is sent as a file. Written over before that: nothing of the source is
 * left in it, and none of its bytes are needed. */
static void
test_copy_written_over (Fixture *f, gconstpointer fetched)
{
  static const char text[] = "Subject: n\r\n\r\nn\r\n";
  g_autoptr (MailStaged) staged = copy_message (f, copied, fetched != NULL);
  Told renamed = { 0 }, done = { 0 };

  mail_staged_set_mtime (staged, DATE + 1);
  mail_staged_rename (staged, f->archive, 0, "renamed", FALSE, 0, NULL, told, &renamed);
  g_assert_cmpint (info_of (staged).state, ==, MAIL_STAGED_QUEUED);
  g_assert_true (mail_staged_truncate (staged, 0, NULL));
  put (staged, 0, text);
  g_autofree char *written = read_staged (staged);
  g_assert_cmpstr (written, ==, text);
  mail_staged_commit (staged, TRUE, told, &done);
  wait_good (f->harness, &done);
  settle (f->harness);
  told_clear (&renamed);
  const ModelMailbox *archive = model_mailbox (f->harness->server, "Archive");
  g_assert_cmpuint (archive->messages->len, ==, 1);
  gsize length;
  const char *bytes = g_bytes_get_data (((ModelMessage *)archive->messages->pdata[0])->bytes,
                                        &length);
  g_assert_cmpmem (bytes, length, text, strlen (text));
}

/* It has no bytes that could wait: whatever it is renamed to, it is sent. */
static void
test_copy_renamed (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) staged = copy_message (f, copied, FALSE);
  Told renamed = { 0 }, removed = { 0 };

  mail_staged_rename (staged, f->archive, 0, ".copy", TRUE, 0, NULL, told, &renamed);
  mail_change_remove (f->harness->store, f->inbox, 1, told, &removed);
  wait_good (f->harness, &renamed);
  wait_good (f->harness, &removed);
  g_assert_cmpuint (model_count_in (f->harness->server, "Archive", "Subject: copied"), ==, 1);
  g_assert_cmpuint (mail_mailbox_uid_of_name (f->archive, ".copy"), ==, 1);
}

/* Its writer never came to its end, and it has nothing that is not in its source. */
static void
test_copy_killed (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) staged = copy_message (f, copied, FALSE);

  g_clear_pointer (&staged, mail_staged_unref);
  kill_and_open (f);
  g_assert_null (lookup (f, f->archive, 0, "copy"));
  g_assert_null (mail_stage_next_failed (f->harness->store, 0));
  g_assert_cmpuint (n_in_spool (f), ==, 0);
}

/* A temporary file outlives the daemon, with what it was told to be. */
static void
test_dated_killed (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, ".t", TRUE);

  put (staged, 0, copied);
  mail_staged_set_mtime (staged, DATE);
  g_assert_true (mail_staged_set_flags (staged, MAIL_FLAG_SEEN, "", NULL));
  g_clear_pointer (&staged, mail_staged_unref);
  kill_and_open (f);
  staged = lookup (f, f->inbox, 0, ".t");
  g_assert_nonnull (staged);
  g_assert_cmpint (info_of (staged).mtime, ==, DATE);
  g_assert_cmpuint (info_of (staged).flags, ==, MAIL_FLAG_SEEN);
}

/* Who still holds one that was dropped cannot bring it back. */
static void
test_rename_dropped (Fixture *f, gconstpointer data)
{
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, ".t", TRUE);
  Told done = { 0 };

  g_autoptr (MailStaged) over = create (f, f->archive, 0, ".u", TRUE);
  put (over, 0, "x");
  put (staged, 0, copied);
  mail_staged_drop (staged, NULL, NULL);
  mail_staged_rename (staged, f->archive, 0, ".u", TRUE, 0, over, told, &done);
  wait_told (f->harness, &done);
  g_assert_nonnull (done.error);
  told_clear (&done);
  g_autoptr (MailStaged) there = lookup (f, f->archive, 0, ".u");
  g_assert_true (there == over);
  g_assert_cmpuint (info_of (over).size, ==, 1);
  g_assert_cmpint (info_of (staged).state, ==, MAIL_STAGED_DROPPED);
}

/* --- what is sent --------------------------------------------------------------------------------
 */

static const struct
{
  const char *name, *text, *wire, *lf;
} wire_cases[] = {
  { "empty", "", "", "" },
  { "crlf", "A: b\r\n\r\nx\r\n", "A: b\r\n\r\nx\r\n", "A: b\n\nx\n" },
  { "lf", "A: b\n\nx\n", "A: b\r\n\r\nx\r\n", "A: b\n\nx\n" },
  { "mixed", "A: b\r\n\nx\r\ny\n", "A: b\r\n\r\nx\r\ny\r\n", "A: b\n\nx\ny\n" },
  { "no-end", "A: b\n\nx", "A: b\r\n\r\nx", "A: b\n\nx" },
  { "lf-only", "\n\n\n", "\r\n\r\n\r\n", "\n\n\n" },
  { "lf-first", "\nabc", "\r\nabc", "\nabc" },
  { "cr-only", "\r\r\r", "\r\r\r", "\r\r\r" },
  { "lone-cr", "a\rb\r\rc\n", "a\rb\r\rc\r\n", "a\rb\r\rc\n" },
  { "cr-at-end", "abc\r", "abc\r", "abc\r" },
  { "cr-crlf", "a\r\r\nb\r\r\r\n", "a\r\r\nb\r\r\r\n", "a\r\nb\r\r\n" },
  { "lf-cr", "a\n\r\n\rb", "a\r\n\r\n\rb", "a\n\n\rb" },
};

static GByteArray *
spool_bytes_of (int fd)
{
  GByteArray *bytes = g_byte_array_new ();
  g_autofree guint8 *buffer = g_malloc (PIECE);
  gssize n;

  while ((n = pread (fd, buffer, PIECE, (off_t)bytes->len)) > 0)
    g_byte_array_append (bytes, buffer, (guint)n);
  g_assert_cmpint (n, ==, 0);
  return bytes;
}

static int
make_spool (Fixture *f, guint32 id, const char *data, gsize length)
{
  g_autoptr (GError) error = NULL;
  int fd = mail_spool_open (f->changes, id, TRUE, &error);

  g_assert_no_error (error);
  g_assert_cmpint (write (fd, data, length), ==, (gssize)length);
  return fd;
}

static void
assert_digest (const guint8 *digest, gconstpointer data, gsize length)
{
  g_autoptr (GChecksum) sum = g_checksum_new (G_CHECKSUM_SHA256);
  guint8 expected[MAIL_DIGEST_SIZE];
  gsize size = sizeof expected;

  g_checksum_update (sum, data, (gssize)length);
  g_checksum_get_digest (sum, expected, &size);
  g_assert_cmpmem (digest, MAIL_DIGEST_SIZE, expected, size);
}

static void
assert_wire (Fixture *f, const GString *text, const GString *expected)
{
  const guint32 id = 7000;
  g_autoptr (GError) error = NULL;
  MailWire wire;

  g_assert_true (
      mail_spool_wire (f->changes, id, make_spool (f, id, text->str, text->len), &wire, &error));
  g_assert_no_error (error);
  g_autoptr (GByteArray) sent = spool_bytes_of (wire.fd);
  g_assert_cmpuint (wire.size, ==, sent->len);
  g_assert_cmpuint (sent->len, ==, expected->len);
  if (sent->len > 0)
    g_assert_cmpmem (sent->data, sent->len, expected->str, expected->len);
  assert_digest (wire.digest, sent->data, sent->len);
  g_assert_null (wire.message_id);
  /* The user's bytes are what they were; another file only where they are not what is sent. */
  g_assert_cmpint (has_file (f, id, TRUE), ==, !g_string_equal (text, expected));
  int fd = mail_spool_open (f->changes, id, FALSE, NULL);
  g_autoptr (GByteArray) kept = spool_bytes_of (fd);
  g_assert_cmpuint (kept->len, ==, text->len);
  if (kept->len > 0)
    g_assert_cmpmem (kept->data, kept->len, text->str, text->len);
  close (fd);
  close (wire.fd);
  mail_spool_remove (f->changes, id);
  g_assert_false (has_file (f, id, FALSE) || has_file (f, id, TRUE));
}

/* The text so that each of its bytes once is the first of a piece; before: what is far in front. */
static void
test_wire (Fixture *f, gconstpointer data)
{
  static const char *const before[] = { "", "\n", "\r\n" };
  static const char *const wire_before[] = { "", "\r\n", "\r\n" };
  guint row = GPOINTER_TO_UINT (data);
  const char *text = wire_cases[row].text, *wire = wire_cases[row].wire;
  g_autoptr (GString) plain = g_string_new (text), plain_wire = g_string_new (wire);

  assert_wire (f, plain, plain_wire);
  for (guint kind = 0; kind < G_N_ELEMENTS (before); kind++)
    for (gsize at = 0; at <= strlen (text); at++)
      {
        g_autofree char *filling = g_strnfill (PIECE - at - strlen (before[kind]), 'x');
        g_autoptr (GString) in = g_string_new (before[kind]);
        g_autoptr (GString) out = g_string_new (wire_before[kind]);

        g_string_append_printf (in, "%s%s", filling, text);
        g_string_append_printf (out, "%s%s", filling, wire);
        assert_wire (f, in, out);
      }
}

/* As the server has it, into the cache as it is read, and from there into a spool again. */
static void
assert_cached (Fixture *f, const GString *wire, const GString *expected, guint32 uid)
{
  const guint32 content_id = 77, id = 7000;
  g_autoptr (GError) error = NULL;
  guint64 size = 0;
  int fd = make_spool (f, id, wire->str, wire->len);

  g_assert_cmpuint (mail_spool_to_cache (f->changes, fd, wire->len, content_id, uid), ==,
                    expected->len);
  close (fd);
  g_assert_true (mail_spool_from_cache (f->changes, id + 1, content_id, uid, &size, &error));
  g_assert_no_error (error);
  fd = mail_spool_open (f->changes, id + 1, FALSE, &error);
  g_autoptr (GByteArray) read = spool_bytes_of (fd);
  close (fd);
  g_assert_cmpuint (size, ==, expected->len);
  g_assert_cmpuint (read->len, ==, expected->len);
  if (read->len > 0)
    g_assert_cmpmem (read->data, read->len, expected->str, expected->len);
  mail_cache_remove (f->harness->store->cache, content_id, uid);
  g_assert_false (mail_spool_from_cache (f->changes, id + 1, content_id, uid, &size, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_UNREACHABLE);
}

static void
test_cache (Fixture *f, gconstpointer data)
{
  guint row = GPOINTER_TO_UINT (data);
  const char *wire = wire_cases[row].wire;
  const char *read = f->harness->eol_lf ? wire_cases[row].lf : wire;
  g_autoptr (GString) plain = g_string_new (wire), plain_read = g_string_new (read);
  guint32 uid = 1;

  assert_cached (f, plain, plain_read, uid++);
  /* A CR that waits makes the next piece one longer, hence two of them. */
  for (guint pieces = 1; pieces <= 2; pieces++)
    for (gsize at = 0; at <= strlen (wire) + 1; at++)
      {
        g_autofree char *filling = g_strnfill (pieces * PIECE - at, 'x');
        g_autoptr (GString) in = g_string_new (filling), out = g_string_new (filling);

        filling[10] = '\0';
        g_string_append_printf (in, "%s%s", wire, filling);
        g_string_append_printf (out, "%s%s", read, filling);
        assert_cached (f, in, out, uid++);
      }
}

/* Written, sent and read again. */
static void
test_round (Fixture *f, gconstpointer data)
{
  guint row = GPOINTER_TO_UINT (data);
  g_autofree char *text = g_strconcat ("Subject: x\n", wire_cases[row].text, NULL);
  g_autofree char *wire = g_strconcat ("Subject: x\r\n", wire_cases[row].wire, NULL);
  g_autofree char *lf = g_strconcat ("Subject: x\n", wire_cases[row].lf, NULL);
  g_autoptr (MailStaged) staged = create (f, f->inbox, 0, "x", FALSE);
  Told done = { 0 };
  MailMessage message;

  put (staged, 0, text);
  mail_staged_commit (staged, FALSE, told, &done);
  wait_good (f->harness, &done);
  gsize length;
  const ModelMessage *sent = model_find (model_mailbox (f->harness->server, "INBOX"), 1);
  const char *bytes = g_bytes_get_data (sent->bytes, &length);
  g_assert_cmpmem (bytes, length, wire, strlen (wire));
  assert_digest (staged->digest, bytes, length);
  g_assert_cmpuint (staged->wire_size, ==, length);
  g_autofree char *written = read_staged (staged); /* who wrote it sees what he wrote */
  g_assert_cmpstr (written, ==, text);
  mail_staged_forget (staged, staged->n_emptied);
  g_autofree char *read = read_message (f->harness, f->inbox, 1);
  g_assert_cmpstr (read, ==, f->harness->eol_lf ? lf : wire);
  g_assert_true (mail_mailbox_find (f->inbox, 1, &message));
  g_assert_cmpuint (message.size, ==, strlen (read));
}

static void
test_separate (Fixture *f, gconstpointer data)
{
  const guint32 id = 7000;
  g_autoptr (GString) text = g_string_new (NULL);

  for (guint i = 0; i < 100000; i++)
    g_string_append_printf (text, "%u\r\n", i);
  int old = make_spool (f, id, text->str, text->len);
  g_assert_true (mail_spool_separate (f->changes, id, NULL));
  int fd = mail_spool_open (f->changes, id, FALSE, NULL);
  g_assert_cmpint (pwrite (fd, "new", 3, 0), ==, 3);
  g_autoptr (GByteArray) before = spool_bytes_of (old), after = spool_bytes_of (fd);
  g_assert_cmpmem (before->data, before->len, text->str, text->len);
  memcpy (text->str, "new", 3);
  g_assert_cmpmem (after->data, after->len, text->str, text->len);
  g_autofree char *copy = g_strdup_printf ("%s/%u.new", f->changes->spool_dir, id);
  g_assert_false (g_file_test (copy, G_FILE_TEST_EXISTS));
  close (old);
  close (fd);
  g_assert_false (mail_spool_separate (f->changes, id + 1, NULL)); /* is not there */
}

static const struct
{
  const char *name, *head, *expected;
} id_cases[] = {
  { "plain", "A: b\r\nMessage-ID: <a@b>\r\n\r\n", "a@b" },
  { "first", "Message-ID: <a@b>\n\n", "a@b" },
  { "other-case", "message-id:<a@b>\n\n", "a@b" },
  { "folded", "Message-ID:\r\n <a@b>\r\n\r\n", "a@b" },
  { "none", "A: b\r\n\r\n", NULL },
  { "in-the-body", "A: b\r\n\r\nMessage-ID: <a@b>\r\n", NULL },
  { "in-the-body-lf", "A: b\n\nMessage-ID: <a@b>\n", NULL },
  { "not-shut", "Message-ID: <a@b\r\n\r\n", NULL },
  { "similar", "X-Message-ID: <c@d>\r\nMessage-IDs: <e@f>\r\nMessage-ID: <a@b>\r\n\r\n", "a@b" },
  { "empty", "", NULL },
};

static void
test_message_id (Fixture *f, gconstpointer data)
{
  const char *head = id_cases[GPOINTER_TO_UINT (data)].head;
  const char *expected = id_cases[GPOINTER_TO_UINT (data)].expected;
  g_autofree char *id = mail_message_id_of ((const guint8 *)head, strlen (head));
  MailWire wire = { .fd = -1 };

  g_assert_cmpstr (id, ==, expected);
  int fd = make_spool (f, 7000, head, strlen (head));
  g_assert_true (mail_spool_wire (f->changes, 7000, fd, &wire, NULL));
  g_assert_cmpstr (wire.message_id, ==, expected);
  g_free (wire.message_id);
  close (wire.fd);
  g_autofree char *kept = mail_spool_message_id (f->changes, 7000);
  g_assert_cmpstr (kept, ==, expected);
}

/* --- main ----------------------------------------------------------------------------------------
 */

#define ADD(path, i, function)                                                                     \
  g_test_add (path, Fixture, GUINT_TO_POINTER (i), set_up, function, tear_down)
#define ADD_CASES_IN(prefix, cases, before, function)                                              \
  for (guint i = 0; i < G_N_ELEMENTS (cases); i++)                                                 \
    {                                                                                              \
      g_autofree char *path = g_strconcat (prefix, cases[i].name, NULL);                           \
      g_test_add (path, Fixture, GUINT_TO_POINTER (i), before, function, tear_down);               \
    }
#define ADD_CASES(prefix, cases, function) ADD_CASES_IN (prefix, cases, set_up, function)

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  if (!g_test_verbose ())
    mail_log_init (MAIL_LOG_ERROR, FALSE);
  ADD_CASES ("/stage/bytes/", byte_cases, test_bytes);
  ADD ("/stage/random-bytes", 0, test_random_bytes);
  ADD ("/stage/too-large", 0, test_too_large);
  ADD ("/stage/tables", 0, test_tables);
  ADD_CASES ("/stage/rename/", rename_cases, test_rename);
  ADD ("/stage/turned", 0, test_turned);
  ADD_CASES ("/stage/queued/", queued_cases, test_queued);
  ADD ("/stage/next-dropped", 0, test_next_dropped);
  ADD ("/stage/not-created", 0, test_not_created);
  ADD ("/stage/mailbox-renamed", 0, test_mailbox_renamed);
  ADD ("/stage/mailbox-gone", 0, test_mailbox_gone);
  ADD_CASES ("/stage/drop/", drop_cases, test_drop);
  ADD_CASES ("/stage/forget/", forget_cases, test_forget);
  ADD ("/stage/forget/emptied-since", 0, test_forget_emptied);
  ADD ("/stage/numbers", 0, test_numbers);
  ADD ("/stage/strays/journal-kept", KEPT, test_strays);
  ADD ("/stage/strays/journal-garbled", GARBLED, test_strays);
  ADD_CASES ("/stage/copy/", copy_cases, test_copy);
  ADD ("/stage/copy-refused", 0, test_copy_refused);
  ADD_CASES ("/stage/wire/", wire_cases, test_wire);
  ADD_CASES ("/stage/cache/crlf/", wire_cases, test_cache);
  ADD_CASES_IN ("/stage/cache/lf/", wire_cases, set_up_lf, test_cache);
  ADD_CASES ("/stage/round/crlf/", wire_cases, test_round);
  ADD_CASES_IN ("/stage/round/lf/", wire_cases, set_up_lf, test_round);
  ADD ("/stage/separate", 0, test_separate);
  ADD_CASES ("/stage/message-id/", id_cases, test_message_id);
  ADD ("/stage/none-fits", 0, test_none_fits);
  ADD ("/stage/none-fits-sent", 0, test_none_fits_sent);
  ADD ("/stage/journal-emptied", EMPTIED, test_strays);
  ADD ("/stage/journal-missing", MISSING, test_strays);
  ADD ("/stage/accounts", 0, test_accounts);
  ADD ("/stage/copy-killed", 0, test_copy_killed);
  g_test_add ("/stage/copy/written-over", Fixture, NULL, set_up, test_copy_written_over, tear_down);
  g_test_add ("/stage/copy/written-over-fetched", Fixture, "", set_up, test_copy_written_over,
              tear_down);
  ADD ("/stage/copy-renamed", 0, test_copy_renamed);
  ADD ("/stage/dated-killed", 0, test_dated_killed);
  ADD ("/stage/rename-dropped", 0, test_rename_dropped);
  return g_test_run ();
}
