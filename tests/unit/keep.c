/* SPDX-License-Identifier: MIT
 *
 * MailKeep: what is kept is there again after any end of the program, byte for byte, and what is
 * not whole is never shown.
 */
#include "mail/keep.h"
#include "scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct
{
  char *parent, *dir;
} Fixture;

static void
set_up (Fixture *f, gconstpointer data)
{
  f->parent = scratch_new ("keep");
  f->dir = g_build_filename (f->parent, "keep", NULL);
}

static void
tear_down (Fixture *f, gconstpointer data)
{
  scratch_free (f->parent);
  g_free (f->dir);
}

static MailKeep *
open_keep (Fixture *f)
{
  g_autoptr (GError) error = NULL;
  MailKeep *keep = mail_keep_open (f->dir, "me@example.org", TRUE, &error);

  g_assert_no_error (error);
  return keep;
}

/* Names of the messages' files, sorted. */
static GPtrArray *
files (Fixture *f, const char *suffix)
{
  GPtrArray *names = g_ptr_array_new_with_free_func (g_free);
  GDir *dir = g_dir_open (f->dir, 0, NULL);
  const char *name;

  while ((name = g_dir_read_name (dir)) != NULL)
    if (g_str_has_suffix (name, suffix) || g_str_has_prefix (name, suffix))
      g_ptr_array_add (names, g_build_filename (f->dir, name, NULL));
  g_dir_close (dir);
  return names;
}

static MailKeepDraft *
write_draft (MailKeep *keep, const char *id, guint32 uid, const char *bytes)
{
  g_autoptr (GError) error = NULL;
  MailKeepDraft *draft = mail_keep_draft_new (keep, id, 7, uid, -1700000000 + (gint64)uid, TRUE,
                                              &error);
  gsize half = strlen (bytes) / 2;

  g_assert_no_error (error);
  g_assert_true (mail_keep_draft_write (draft, bytes, half, &error));
  g_assert_true (mail_keep_draft_write (draft, bytes + half, strlen (bytes) - half, &error));
  g_assert_true (mail_keep_draft_end (draft, &error));
  return draft;
}

static void
put (MailKeep *keep, const char *id, guint32 uid, const char *bytes)
{
  MailKeepDraft *draft = write_draft (keep, id, uid, bytes);

  mail_keep_settle (keep, &draft, 1);
  g_assert_no_error (mail_keep_draft_error (draft));
  g_assert_false (mail_keep_has (keep, id));
  mail_keep_adopt (keep, draft);
  mail_keep_draft_free (draft);
}

static void
assert_kept (MailKeep *keep, const char *id, guint32 uid, const char *bytes)
{
  g_autoptr (GError) error = NULL;
  g_autofree char *whole = g_malloc0 (strlen (bytes) + 10);
  MailKept kept;

  g_assert_true (mail_keep_get (keep, id, &kept));
  g_assert_cmpstr (kept.id, ==, id);
  g_assert_cmpuint (kept.uidvalidity, ==, 7);
  g_assert_cmpuint (kept.uid, ==, uid);
  g_assert_cmpint (kept.date, ==, -1700000000 + (gint64)uid);
  g_assert_cmpuint (kept.size, ==, strlen (bytes));
  mail_kept_clear (&kept);
  g_assert_cmpint (mail_keep_read (keep, id, 0, whole, strlen (bytes) + 9, &error), ==,
                   strlen (bytes));
  g_assert_cmpstr (whole, ==, bytes);
  g_assert_cmpint (mail_keep_read (keep, id, 1, whole, 2, &error), ==, 2);
  g_assert_cmpint (memcmp (whole, bytes + 1, 2), ==, 0);
  g_assert_cmpint (mail_keep_read (keep, id, strlen (bytes), whole, 2, &error), ==, 0);
  g_assert_no_error (error);
  g_assert_true (mail_keep_verify (keep, id));
}

static const char *const ids[] = {
  "plain",
  "with space 2",
  "100%",
  "../../etc/passwd",
  "id=\"x\"\t;",
  "sha256 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
  "0000000000000000000000000000000000000000000000000000000000000000000000",
};

static void
test_again (Fixture *f, gconstpointer data)
{
  MailKeep *keep = open_keep (f);
  struct stat st;

  for (guint i = 0; i < G_N_ELEMENTS (ids); i++)
    put (keep, ids[i], G_N_ELEMENTS (ids) - i, "A: b\r\n\r\nbody of it\r\n");
  for (guint turn = 0; turn < 2; turn++)
    {
      g_autoptr (GArray) list = mail_keep_list (keep);

      g_assert_cmpuint (mail_keep_length (keep), ==, G_N_ELEMENTS (ids));
      g_assert_cmpuint (list->len, ==, G_N_ELEMENTS (ids));
      for (guint i = 0; i < list->len; i++) /* by UID */
        g_assert_cmpstr (g_array_index (list, MailKept, i).id, ==, ids[list->len - 1 - i]);
      for (guint i = 0; i < G_N_ELEMENTS (ids); i++)
        assert_kept (keep, ids[i], G_N_ELEMENTS (ids) - i, "A: b\r\n\r\nbody of it\r\n");
      mail_keep_close (keep);
      keep = open_keep (f);
    }
  mail_keep_close (keep);
  g_assert_cmpint (g_stat (f->dir, &st), ==, 0);
  g_assert_cmpuint (st.st_mode & 0777, ==, 0700);
  g_autoptr (GPtrArray) names = files (f, ".eml");
  g_assert_cmpuint (names->len, ==, G_N_ELEMENTS (ids));
  for (guint i = 0; i < names->len; i++)
    {
      g_assert_cmpint (g_stat (names->pdata[i], &st), ==, 0);
      g_assert_cmpuint (st.st_mode & 0777, ==, 0600);
    }
}

/* A draft that ends anywhere before it is adopted leaves no file, or one that is whole. */
static void
test_abandoned (Fixture *f, gconstpointer data)
{
  MailKeep *keep = open_keep (f);
  MailKeepDraft *draft = mail_keep_draft_new (keep, "a", 1, 1, 0, TRUE, NULL);

  g_assert_true (mail_keep_draft_write (draft, "abc", 3, NULL));
  mail_keep_draft_free (draft);
  mail_keep_draft_free (write_draft (keep, "a", 1, "body"));
  draft = write_draft (keep, "a", 1, "body");
  mail_keep_settle (keep, &draft, 1);
  mail_keep_draft_free (draft);
  g_assert_false (mail_keep_has (keep, "a"));
  g_autoptr (GPtrArray) names = files (f, ".eml");
  g_autoptr (GPtrArray) temporary = files (f, "tmp-");
  g_assert_cmpuint (names->len + temporary->len, ==, 0);

  /* Killed: what has only a temporary name goes, what has its final one is kept. */
  draft = write_draft (keep, "b", 1, "lost");
  MailKeepDraft *settled = write_draft (keep, "c", 2, "body");
  mail_keep_settle (keep, &settled, 1);
  g_autofree char *copy = g_build_filename (f->parent, "copy", NULL);
  const char *command[] = { "cp", "-a", f->dir, copy, NULL };
  g_assert_true (g_spawn_sync (NULL, (char **)command, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL,
                               NULL, NULL, NULL));
  mail_keep_draft_free (settled);
  mail_keep_draft_free (draft);
  mail_keep_close (keep);
  keep = mail_keep_open (copy, "me", TRUE, NULL);
  g_assert_cmpuint (mail_keep_length (keep), ==, 1);
  assert_kept (keep, "c", 2, "body");
  mail_keep_close (keep);
  g_free (f->dir);
  f->dir = g_strdup (copy);
  g_autoptr (GPtrArray) left = files (f, "tmp-");
  g_assert_cmpuint (left->len, ==, 0);
}

static const struct
{
  const char *name, *from, *to; /* a text of the file, replaced; to NULL: the file is cut there */
} damages[] = {
  { "field", "X-Mailfs-Kept: 1", "X-Mailfs-Kept: 2" },
  { "no-field", "X-Mailfs-Kept: 1", "Subject: nothing" },
  { "id", "id=victim", "id=victxm" },
  { "digest", "sha256=", "sha256=g" },
  { "size", "size=000000000000000000", "size=000000000000000001" },
  { "short", "dy", NULL },
  { "empty", "X", NULL },
  { "cut-in-field", " sha256", NULL },
};

static void
damage (Fixture *f, const char *from, const char *to)
{
  g_autoptr (GPtrArray) names = files (f, ".eml");
  g_autofree char *text = NULL;

  g_assert_cmpuint (names->len, ==, 1);
  g_assert_true (g_file_get_contents (names->pdata[0], &text, NULL, NULL));
  char *at = strstr (text, from);
  g_assert_nonnull (at);
  if (to != NULL)
    memcpy (at, to, strlen (to));
  else
    *at = '\0';
  g_assert_true (g_file_set_contents (names->pdata[0], text, -1, NULL));
}

static void
ignore_log (const char *domain, GLogLevelFlags level, const char *message, gpointer data)
{
}

static void
test_damaged (Fixture *f, gconstpointer data)
{
  const char *const *row = (const char *const *)&damages[GPOINTER_TO_UINT (data)];
  MailKeep *keep = open_keep (f);

  put (keep, "victim", 3, "A: b\r\n\r\nbody");
  mail_keep_close (keep);
  damage (f, row[1], row[2]);
  keep = open_keep (f);
  g_assert_cmpuint (mail_keep_length (keep), ==, 0);
  g_autoptr (GPtrArray) names = files (f, ".eml");
  g_assert_cmpuint (names->len, ==, 1); /* left alone */
  put (keep, "victim", 3, "A: b\r\n\r\nbody");
  assert_kept (keep, "victim", 3, "A: b\r\n\r\nbody");
  mail_keep_close (keep);
}

/* Bytes that rot are no longer what was kept. */
static void
test_rotten (Fixture *f, gconstpointer data)
{
  MailKeep *keep = open_keep (f);

  put (keep, "a", 1, "A: b\r\n\r\nbody");
  damage (f, "body", "bodx");
  g_assert_false (mail_keep_verify (keep, "a"));
  mail_keep_close (keep);
}

static void
test_remove_and_copy (Fixture *f, gconstpointer data)
{
  MailKeep *keep = open_keep (f);
  g_autoptr (GError) error = NULL;
  char byte;

  put (keep, "a", 1, "one body");
  put (keep, "b", 2, "another");
  MailKeepDraft *copy = mail_keep_copy (keep, "a", "a kept-0123", &error);
  g_assert_no_error (error);
  mail_keep_settle (keep, &copy, 1);
  mail_keep_adopt (keep, copy);
  mail_keep_draft_free (copy);
  g_assert_true (mail_keep_remove (keep, "a", &error));
  g_assert_true (mail_keep_remove (keep, "never", &error));
  g_assert_cmpint (mail_keep_read (keep, "a", 0, &byte, 1, &error), ==, -1);
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_GONE);
  g_clear_error (&error);
  g_assert_null (mail_keep_copy (keep, "a", "c", &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_GONE);
  mail_keep_close (keep);
  keep = open_keep (f);
  g_assert_cmpuint (mail_keep_length (keep), ==, 2);
  assert_kept (keep, "a kept-0123", 1, "one body");
  assert_kept (keep, "b", 2, "another");
  mail_keep_close (keep);
}

/* Where a message is, as far as was seen. */
static void
test_elsewhere (Fixture *f, gconstpointer data)
{
  g_autoptr (GHashTable) listed = g_hash_table_new (g_str_hash, g_str_equal);
  MailKeep *keep = open_keep (f);

  put (keep, "a", 1, "one body");
  put (keep, "b", 2, "another");
  g_assert_false (mail_keep_is_only_here (keep, "a")); /* it has only just come */
  g_hash_table_add (listed, (gpointer) "b");
  mail_keep_set_elsewhere (keep, listed);
  g_assert_true (mail_keep_is_only_here (keep, "a"));
  g_assert_false (mail_keep_is_only_here (keep, "b"));
  mail_keep_set_only_here (keep, "b");
  g_assert_true (mail_keep_is_only_here (keep, "b"));
  g_assert_false (mail_keep_is_only_here (keep, "never"));
  mail_keep_close (keep);
}

static void
test_refused (Fixture *f, gconstpointer data)
{
  g_autoptr (GError) error = NULL;
  MailKeep *keep = open_keep (f);
  g_autofree char *link = g_build_filename (f->parent, "link", NULL);

  g_assert_null (mail_keep_open (f->dir, "me", TRUE, &error)); /* locked */
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_FAILED);
  g_clear_error (&error);
  mail_keep_close (keep);
  g_assert_cmpint (symlink (f->dir, link), ==, 0);
  g_assert_null (mail_keep_open (link, "me", TRUE, &error));
  g_clear_error (&error);
  g_assert_cmpint (g_chmod (f->dir, 0750), ==, 0);
  g_assert_null (mail_keep_open (f->dir, "me", TRUE, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_FAILED);
  g_assert_cmpint (g_chmod (f->dir, 0700), ==, 0);
}

/* Without a need for it there is no directory. */
static void
test_lazy (Fixture *f, gconstpointer data)
{
  MailKeep *keep = mail_keep_open (f->dir, "me", FALSE, NULL);

  g_assert_nonnull (keep);
  g_assert_cmpuint (mail_keep_length (keep), ==, 0);
  g_assert_false (g_file_test (f->dir, G_FILE_TEST_EXISTS));
  put (keep, "a", 1, "one body");
  assert_kept (keep, "a", 1, "one body");
  mail_keep_close (keep);
}

int
main (int argc, char **argv)
{
  static const struct
  {
    const char *name;
    void (*test) (Fixture *f, gconstpointer data);
  } tests[] = {
    { "again", test_again },         { "abandoned", test_abandoned },
    { "rotten", test_rotten },       { "remove-and-copy", test_remove_and_copy },
    { "elsewhere", test_elsewhere }, { "refused", test_refused },
    { "lazy", test_lazy },
  };

  g_test_init (&argc, &argv, NULL);
  g_log_set_default_handler (ignore_log, NULL);
  for (guint i = 0; i < G_N_ELEMENTS (tests); i++)
    {
      g_autofree char *path = g_strdup_printf ("/mail/keep/%s", tests[i].name);

      g_test_add (path, Fixture, NULL, set_up, tests[i].test, tear_down);
    }
  for (guint i = 0; i < G_N_ELEMENTS (damages); i++)
    {
      g_autofree char *path = g_strdup_printf ("/mail/keep/damaged/%s", damages[i].name);

      g_test_add (path, Fixture, GUINT_TO_POINTER (i), set_up, test_damaged, tear_down);
    }
  return g_test_run ();
}
