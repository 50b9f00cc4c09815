/* SPDX-License-Identifier: MIT
 *
 * A MailStore in front of a ModelServer. One thread runs everything but what the store's own
 * threads do; the loop is turned by hand, with a deadline.
 */
#include "mail-harness.h"
#include "scratch.h"

#include "mailfs/log.h"

#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#define DEADLINE (20 * G_TIME_SPAN_SECOND)

/* --- naming: none is needed ---------------------------------------------------------------------
 */

static char *
mailbox_part (const char *text, gboolean raw)
{
  return g_strdup (text);
}

static char *
parse_mailbox_part (const char *name, GError **error)
{
  return g_strdup (name);
}

static char *
remote_name (const char *remote_id)
{
  return g_strdup (remote_id);
}

/* --- life ---------------------------------------------------------------------------------------
 */

static char *
make_dir (void)
{
  const char *base = g_file_test ("/dev/shm", G_FILE_TEST_IS_DIR) ? "/dev/shm" : g_get_tmp_dir ();
  char *dir = g_build_filename (base, "mailfs-change-XXXXXX", NULL);

  g_assert_nonnull (g_mkdtemp_full (dir, 0700));
  return dir;
}

Harness *
harness_new (guint caps)
{
  Harness *harness = g_new0 (Harness, 1);

  harness->dir = make_dir ();
  harness->server = model_server_new (caps);
  harness->context = g_main_context_new ();
  harness->trash = "auto";
  return harness;
}

gboolean
turn_once (Harness *harness)
{
  if (harness->turn != NULL)
    return harness->turn (harness->turn_data);
  return g_main_context_iteration (harness->context, FALSE);
}

static void
run (Harness *harness, const gboolean *until)
{
  gint64 deadline = g_get_monotonic_time () + DEADLINE;

  while (!*until)
    {
      if (!turn_once (harness))
        g_usleep (200);
      g_assert_cmpint (g_get_monotonic_time (), <, deadline);
    }
}

void
harness_open (Harness *harness)
{
  static const MailNaming naming = { mailbox_part, parse_mailbox_part, remote_name };
  g_autoptr (GError) error = NULL;
  Told started = { 0 };
  MailStoreOptions options = { .dir = harness->dir,
                               .account_key = (char *)"model",
                               .root_mailbox = (char *)harness->root,
                               .cache_size = 1 << 24,
                               .refresh = 0,
                               .eol_lf = harness->eol_lf,
                               .sync = harness->sync,
                               .trash = (char *)harness->trash };

  harness->store = mail_store_new (&options, harness->context,
                                   model_backend_new (harness->server, harness->context), &naming,
                                   &error);
  g_assert_no_error (error);
  mail_store_start (harness->store, told, &started);
  wait_told (harness, &started);
  told_clear (&started);
}

gboolean
harness_close (Harness *harness)
{
  Told stopped = { 0 };

  mail_store_stop (harness->store, told, &stopped);
  wait_told (harness, &stopped);
  gboolean clean = stopped.error == NULL;
  told_clear (&stopped);
  turn_loop (harness, 20);
  mail_store_free (harness->store);
  harness->store = NULL;
  return clean;
}

void
harness_free (Harness *harness)
{
  if (harness->store != NULL)
    harness_close (harness);
  model_server_free (harness->server);
  g_main_context_unref (harness->context);
  scratch_free (harness->dir);
  g_free (harness);
}

static void
copy_tree (const char *from, const char *to)
{
  GDir *dir = g_dir_open (from, 0, NULL);
  const char *name;

  g_mkdir (to, 0700);
  while (dir != NULL && (name = g_dir_read_name (dir)) != NULL)
    {
      g_autofree char *one = g_build_filename (from, name, NULL);
      g_autofree char *other = g_build_filename (to, name, NULL);
      g_autofree char *data = NULL;
      gsize length;

      if (g_file_test (one, G_FILE_TEST_IS_DIR))
        copy_tree (one, other);
      else if (!g_str_has_suffix (name, "-shm") && g_file_get_contents (one, &data, &length, NULL))
        g_file_set_contents_full (other, data, (gssize)length, G_FILE_SET_CONTENTS_CONSISTENT, 0600,
                                  NULL);
    }
  if (dir != NULL)
    g_dir_close (dir);
}

Harness *
harness_clone (const Harness *harness)
{
  Harness *clone = g_memdup2 (harness, sizeof *harness);

  clone->dir = make_dir ();
  copy_tree (harness->dir, clone->dir);
  clone->server = model_server_copy (harness->server);
  clone->context = g_main_context_new ();
  clone->store = NULL;
  return clone;
}

/* --- waiting ------------------------------------------------------------------------------------
 */

void
told (const GError *error, gpointer data)
{
  Told *what = data;

  g_assert_false (what->called);
  what->called = TRUE;
  what->error = error != NULL ? g_error_copy (error) : NULL;
}

void
told_clear (Told *what)
{
  g_clear_error (&what->error);
  what->called = FALSE;
}

void
wait_told (Harness *harness, Told *what)
{
  run (harness, &what->called);
}

void
wait_good (Harness *harness, Told *what)
{
  wait_told (harness, what);
  g_assert_no_error (what->error);
  told_clear (what);
}

int
wait_code (Harness *harness, Told *what)
{
  wait_told (harness, what);
  int code = what->error != NULL ? what->error->code : -1;
  told_clear (what);
  return code;
}

void
turn_loop (Harness *harness, guint times)
{
  for (guint i = 0; i < times; i++)
    turn_once (harness);
}

guint
n_pending (Harness *harness)
{
  g_autoptr (GPtrArray) lines = mail_store_queue_lines (harness->store);

  return lines->len;
}

void
settle (Harness *harness)
{
  gint64 deadline = g_get_monotonic_time () + DEADLINE;

  do
    {
      Told drained = { 0 };

      mail_store_drain (harness->store, NULL, told, &drained);
      wait_told (harness, &drained);
      told_clear (&drained);
      g_assert_cmpint (g_get_monotonic_time (), <, deadline);
    }
  while (n_pending (harness) > 0);
  turn_loop (harness, 20);
}

/* --- mailboxes and messages ----------------------------------------------------------------------
 */

MailMailbox *
get_mailbox (Harness *harness, const char *path)
{
  g_auto (GStrv) parts = g_strsplit (path, "/", -1);
  MailMailbox *mailbox = mail_store_mailbox (harness->store, MAIL_ROOT_ID);

  for (guint i = 0; parts[i] != NULL && mailbox != NULL; i++)
    {
      MailMailbox *child = mail_mailbox_child (mailbox, parts[i]);

      mail_mailbox_unref (mailbox);
      mailbox = child;
    }
  return mailbox;
}

typedef struct
{
  MailWaiter waiter;
  gboolean woken;
} Looking;

static void
woken (MailWaiter *waiter, const GError *error)
{
  ((Looking *)waiter)->woken = TRUE;
}

void
look (Harness *harness, MailMailbox *mailbox)
{
  Looking looking = { 0 };

  g_usleep (2);
  mail_waiter_init (&looking.waiter, woken);
  if (mail_mailbox_fresh (mailbox, 0, &looking.waiter, NULL) == MAIL_PARKED)
    run (harness, &looking.woken);
}

guint
n_listed (MailMailbox *mailbox)
{
  guint32 n, unseen;

  mail_mailbox_count (mailbox, &n, &unseen);
  return n;
}

guint32
first_uid (MailMailbox *mailbox)
{
  MailMessage message;

  return mail_mailbox_next (mailbox, 0, &message, NULL, 1) == 1 ? message.uid : 0;
}

char *
message_text (const char *token)
{
  return g_strdup_printf ("From: a@example.org\r\nSubject: %s\r\n\r\ntext of %s\r\n", token, token);
}

MailStaged *
write_file (Harness *harness, MailMailbox *mailbox, const char *name, const char *text)
{
  g_autoptr (GError) error = NULL;
  MailStaged *staged = mail_stage_create (harness->store, mailbox, 0, name, FALSE, &error);

  g_assert_no_error (error);
  mail_staged_write (staged, 0, text, strlen (text), &error);
  g_assert_no_error (error);
  return staged;
}

char *
read_staged (MailStaged *staged)
{
  char *buffer = g_malloc0 (65536);
  g_autoptr (GError) error = NULL;

  mail_staged_read (staged, 0, buffer, 65535, &error);
  g_assert_no_error (error);
  return buffer;
}

char *
read_message (Harness *harness, MailMailbox *mailbox, guint32 uid)
{
  char *buffer = g_malloc0 (65536);

  for (;;)
    {
      Looking looking = { 0 };
      g_autoptr (GError) error = NULL;
      gsize n = 0;

      mail_waiter_init (&looking.waiter, woken);
      MailAnswer answer = mail_store_read (harness->store, mailbox, uid, 0, buffer, 65535, &n,
                                           &looking.waiter, &error);
      g_assert_no_error (error);
      if (answer == MAIL_READY)
        {
          buffer[n] = '\0';
          return buffer;
        }
      run (harness, &looking.woken);
    }
}

guint
n_alive (Harness *harness, const char *mailbox, const char *text)
{
  const ModelMailbox *model = model_mailbox (harness->server, mailbox);
  guint n = 0;

  for (guint i = 0; model != NULL && i < model->messages->len; i++)
    {
      const ModelMessage *message = model->messages->pdata[i];
      gsize length;
      const char *bytes = g_bytes_get_data (message->bytes, &length);

      n += (message->flags & MAIL_FLAG_DELETED) == 0
           && memmem (bytes, length, text, strlen (text)) != NULL;
    }
  return n;
}

guint
n_failed (Harness *harness, const char *text)
{
  guint32 id = 0;
  guint n = 0;

  for (;;)
    {
      g_autoptr (MailStaged) staged = mail_stage_next_failed (harness->store, id);
      MailStagedInfo info;

      if (staged == NULL)
        return n;
      mail_staged_info (staged, &info);
      id = info.id;
      g_autofree char *content = read_staged (staged);
      n += strstr (content, text) != NULL;
    }
}
