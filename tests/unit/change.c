/* SPDX-License-Identifier: MIT
 *
 * Changes from the door to a server and back: what each does, what is acknowledged when, what
 * happens when the server refuses, lies or goes away in any moment, and what a killed daemon finds
 * when it starts again. No message is lost, none is there twice, none of somebody else's is
 * touched.
 */
#include "mail-harness.h"
#include "mail/change-private.h"
#include "mailfs/log.h"

#include <string.h>

#define DATE G_GINT64_CONSTANT (1000000000)

/* Capabilities under which everything must work. */
static const struct
{
  const char *name;
  guint without;
} servers[] = {
  { "all", 0 },
  { "no-move", MAIL_CAP_MOVE },
  { "no-uidplus", MAIL_CAP_EXPUNGE_UID },
  { "neither", MAIL_CAP_MOVE | MAIL_CAP_EXPUNGE_UID },
};

static Harness *
start (guint without, guint sync_mode)
{
  Harness *harness = harness_new (ALL_CAPS & ~without);

  harness->server->sync_mode = sync_mode;
  model_add_mailbox (harness->server, "Archive", NULL);
  model_add_mailbox (harness->server, "Bin", "\\Trash");
  harness_open (harness);
  return harness;
}

static guint32
deliver (Harness *harness, const char *mailbox, const char *token)
{
  g_autofree char *text = message_text (token);

  return model_deliver (harness->server, mailbox, text, 0, DATE)->uid;
}

static MailMailbox *
open_mailbox (Harness *harness, const char *name)
{
  MailMailbox *mailbox = get_mailbox (harness, name);

  g_assert_nonnull (mailbox);
  look (harness, mailbox);
  mail_index_flush (harness->store->index); /* so that it is known after a kill, too */
  return mailbox;
}

/* --- append --------------------------------------------------------------------------------------
 */

static void
test_append (gconstpointer data)
{
  Harness *harness = start (servers[GPOINTER_TO_UINT (data)].without, 0);
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "letter.eml",
                                              "Subject: one\nTo: b\n\nline\nline\n");
  g_autoptr (MailStaged) found = mail_stage_lookup (harness->store, inbox, 0, "letter.eml");
  Told done = { 0 };
  MailStagedInfo info;

  g_assert_true (found == staged);
  mail_staged_set_mtime (staged, DATE + 5);
  mail_staged_set_flags (staged, MAIL_FLAG_SEEN | MAIL_FLAG_FLAGGED, "alpha work", NULL);
  mail_staged_commit (staged, FALSE, told, &done);
  g_assert_false (done.called); /* the first one waits for the server */
  wait_good (harness, &done);

  ModelMailbox *model = model_mailbox (harness->server, "INBOX");
  g_assert_cmpuint (model->messages->len, ==, 1);
  const ModelMessage *message = model->messages->pdata[0];
  static const char wire[] = "Subject: one\r\nTo: b\r\n\r\nline\r\nline\r\n";
  g_assert_cmpmem (g_bytes_get_data (message->bytes, NULL), g_bytes_get_size (message->bytes), wire,
                   strlen (wire));
  g_assert_cmpuint (message->flags, ==, MAIL_FLAG_SEEN | MAIL_FLAG_FLAGGED);
  g_assert_cmpstr (message->keywords, ==, "alpha work");
  g_assert_cmpint (message->date, ==, DATE + 5);

  /* In the listing, under its name, and no longer staged. */
  g_assert_cmpuint (mail_stage_count (harness->store, inbox), ==, 0);
  g_assert_cmpuint (mail_mailbox_uid_of_name (inbox, "letter.eml"), ==, message->uid);
  mail_staged_info (staged, &info);
  g_assert_cmpint (info.state, ==, MAIL_STAGED_DONE);
  g_assert_cmpuint (info.uid, ==, message->uid);
  g_assert_cmpuint (info.content_id, ==, mail_mailbox_content_id (inbox));
  g_autofree char *written = read_staged (staged);
  g_assert_cmpstr (written, ==, "Subject: one\nTo: b\n\nline\nline\n");
  MailMessage listed;
  g_assert_true (mail_mailbox_find (inbox, message->uid, &listed));
  g_assert_cmpuint (listed.size, ==, strlen (wire));
  g_assert_cmpint (listed.internaldate, ==, DATE + 5);
  g_assert_cmpuint (listed.flags, ==, MAIL_FLAG_SEEN | MAIL_FLAG_FLAGGED);
  g_autofree char *read = read_message (harness, inbox, message->uid);
  g_assert_cmpstr (read, ==, wire);

  /* A listing, and a new mount, change nothing of that. */
  look (harness, inbox);
  g_assert_cmpuint (mail_mailbox_uid_of_name (inbox, "letter.eml"), ==, message->uid);
  g_assert_cmpuint (n_listed (inbox), ==, 1);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  g_clear_pointer (&found, mail_staged_unref);
  g_assert_true (harness_close (harness));
  harness_open (harness);
  inbox = open_mailbox (harness, "INBOX");
  g_assert_cmpuint (mail_mailbox_uid_of_name (inbox, "letter.eml"), ==, 1);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  harness_free (harness);
}

/* What is no message is refused, and kept. */
static const struct
{
  const char *name, *text;
  gsize length;
} bad_files[] = {
  { "no-header", "just some text\n\nmore\n", 0 },
  { "nul", "Subject: x\n\na\0b\n", 16 },
  { "empty-line-first", "\nSubject: x\n\n", 0 },
  { "no-colon", "Subject\n\ntext\n", 0 },
};

static void
test_refused (gconstpointer data)
{
  guint row = GPOINTER_TO_UINT (data);
  Harness *harness = start (0, 0);
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  gsize length = bad_files[row].length != 0 ? bad_files[row].length : strlen (bad_files[row].text);
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "bad", "");
  Told done = { 0 };

  g_assert_true (mail_staged_write (staged, 0, bad_files[row].text, length, NULL));
  mail_staged_commit (staged, FALSE, told, &done);
  g_assert_cmpint (wait_code (harness, &done), ==, MAIL_ERROR_INVALID);
  g_assert_cmpuint (n_failed (harness, ""), ==, 1);
  g_assert_cmpuint (mail_stage_count (harness->store, inbox), ==, 0);
  g_autofree char *reason = mail_staged_error (staged);
  g_assert_nonnull (reason);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_close (harness);
  harness_open (harness);
  g_assert_cmpuint (n_failed (harness, ""), ==, 1);
  g_autoptr (MailStaged) again = mail_stage_next_failed (harness->store, 0);
  g_autofree char *name = mail_staged_name (again);
  g_assert_cmpstr (name, ==, "bad");
  mail_staged_drop (again, told, &done);
  wait_good (harness, &done);
  g_clear_pointer (&again, mail_staged_unref);
  g_assert_cmpuint (n_failed (harness, ""), ==, 0);
  harness_free (harness);
}

static void
test_empty (void)
{
  Harness *harness = start (0, 0);
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "x", "");
  g_autoptr (MailStaged) other = mail_stage_create (harness->store, inbox, 0, "y", FALSE, NULL);
  Told done = { 0 };

  /* A shell's > flushes before it writes. */
  mail_staged_commit (other, FALSE, told, &done);
  wait_good (harness, &done);
  g_assert_cmpuint (mail_stage_count (harness->store, inbox), ==, 2);
  mail_staged_commit (other, TRUE, told, &done);
  g_assert_cmpint (wait_code (harness, &done), ==, MAIL_ERROR_INVALID);
  mail_staged_forget (staged, staged->n_emptied);
  g_assert_cmpuint (n_failed (harness, ""), ==, 2);
  g_assert_cmpuint (harness->server->n_commands, ==, 0);
  harness_free (harness);
}

/* Written once more before it was sent, by a shell: truncated, flushed, and only then written. */
static void
test_emptied (void)
{
  Harness *harness = start (0, 0);
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autofree char *first = message_text ("first"), *second = message_text ("second");
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "x", first);
  Told sent = { 0 }, emptied = { 0 }, done = { 0 };

  mail_staged_commit (staged, FALSE, told, &sent);
  g_assert_true (mail_staged_truncate (staged, 0, NULL));
  mail_staged_commit (staged, FALSE, told, &emptied);
  wait_good (harness, &emptied);
  g_assert_true (mail_staged_write (staged, 0, second, strlen (second), NULL));
  mail_staged_commit (staged, FALSE, told, &done);
  wait_good (harness, &done);
  g_assert_cmpuint (model_count (harness->server, "text of first"), ==, 0);
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of second"), ==, 1);
  g_assert_cmpuint (n_failed (harness, ""), ==, 0);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);
}

static void
test_temporary (void)
{
  Harness *harness = start (0, 0);
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autofree char *text = message_text ("tempo");
  g_autoptr (MailStaged) staged = mail_stage_create (harness->store, inbox, 0, ".letter.Xa3", TRUE,
                                                     NULL);
  Told done = { 0 };

  g_assert_true (mail_staged_write (staged, 0, text, strlen (text), NULL));
  mail_staged_commit (staged, FALSE, told, &done);
  wait_good (harness, &done);
  g_assert_cmpuint (harness->server->n_commands, ==, 0);
  mail_staged_rename (staged, inbox, 0, "letter", FALSE, 0, NULL, told, &done);
  wait_good (harness, &done);
  g_assert_cmpuint (model_count (harness->server, "text of tempo"), ==, 1);
  g_assert_cmpuint (mail_mailbox_uid_of_name (inbox, "letter"), ==, 1);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);
}

/* A temporary file outlives the daemon; one that was being written under its own name is not known
 * to be whole. */
static void
test_interrupted (void)
{
  Harness *harness = start (0, 0);
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autofree char *one = message_text ("uno"), *two = message_text ("due");
  g_autoptr (MailStaged) temporary = mail_stage_create (harness->store, inbox, 0, ".t", TRUE, NULL);
  g_autoptr (MailStaged) open = write_file (harness, inbox, "half", two);
  Told done = { 0 };

  mail_staged_write (temporary, 0, one, strlen (one), NULL);
  Harness *killed = harness_clone (harness);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&temporary, mail_staged_unref);
  g_clear_pointer (&open, mail_staged_unref);
  harness_free (harness);

  harness_open (killed);
  inbox = open_mailbox (killed, "INBOX");
  g_assert_cmpuint (n_failed (killed, "text of due"), ==, 1);
  temporary = mail_stage_lookup (killed->store, inbox, 0, ".t");
  g_assert_nonnull (temporary);
  mail_staged_rename (temporary, inbox, 0, "whole", FALSE, 0, NULL, told, &done);
  wait_good (killed, &done);
  g_assert_cmpuint (model_count (killed->server, "text of uno"), ==, 1);
  g_assert_cmpuint (model_count (killed->server, "text of due"), ==, 0);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&temporary, mail_staged_unref);
  harness_free (killed);
}

/* --- faults --------------------------------------------------------------------------------------
 */

typedef enum
{
  DO_APPEND,
  DO_MOVE,
  DO_REMOVE,
  DO_COPY,
  DO_FLAGS,
  DO_REPLACE,
  N_DO
} Do;
static const char *const do_names[] = { "append", "move", "remove", "copy", "flags", "replace" };
static const char *const fault_names[] = { "good", "lost-before", "lost-after", "lost-half",
                                           "down", "refused",     "over-quota", "lie" };

#define N_ITEMS 6u

/* Begins N_ITEMS changes of a kind; the first is waited for, so that the others are a burst. */
static void
begin_changes (Harness *harness, Do what, Told *tolds, gboolean warm)
{
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = open_mailbox (harness, "Archive");
  Told first = { 0 };

  if (warm)
    {
      mail_change_flags (harness->store, inbox, 1, MAIL_FLAG_ANSWERED, "", told, &first);
      wait_good (harness, &first);
    }
  for (guint i = 0; i < N_ITEMS; i++)
    {
      guint32 uid = i + 2;
      g_autofree char *name = g_strdup_printf ("file%u", i);
      g_autofree char *token = g_strdup_printf ("new%u", i);
      g_autofree char *text = message_text (token);
      g_autoptr (MailStaged) staged = NULL;
      g_autoptr (GError) error = NULL;

      switch (what)
        {
        case DO_APPEND:
          staged = write_file (harness, archive, name, text);
          mail_staged_commit (staged, FALSE, told, &tolds[i]);
          break;
        case DO_MOVE:
          mail_change_move (harness->store, inbox, uid, archive, 0, name, 0, NULL, told, &tolds[i]);
          break;
        case DO_REMOVE:
          mail_change_remove (harness->store, inbox, uid, told, &tolds[i]);
          break;
        case DO_COPY:
          staged = mail_stage_create (harness->store, archive, 0, name, FALSE, &error);
          g_assert_no_error (error);
          mail_staged_copy_from (staged, inbox, uid, &error);
          g_assert_no_error (error);
          mail_staged_commit (staged, FALSE, told, &tolds[i]);
          break;
        case DO_FLAGS:
          mail_change_flags (harness->store, inbox, uid, MAIL_FLAG_FLAGGED, "kept", told,
                             &tolds[i]);
          break;
        default:
          staged = mail_stage_replacement (harness->store, inbox, uid, name, &error);
          g_assert_no_error (error);
          mail_staged_write (staged, 0, text, strlen (text), &error);
          g_assert_no_error (error);
          mail_staged_commit (staged, FALSE, told, &tolds[i]);
          break;
        }
    }
}

static void
fill (Harness *harness)
{
  for (guint i = 0; i <= N_ITEMS; i++)
    {
      g_autofree char *token = g_strdup_printf ("old%u", i);
      deliver (harness, "INBOX", token);
    }
  /* Another client has marked this one, and nobody may expunge it for that. */
  ModelMessage *foreign = model_deliver (harness->server, "INBOX", "X: foreign\r\n\r\n",
                                         MAIL_FLAG_DELETED, DATE);
  g_assert_cmpuint (foreign->uid, ==, N_ITEMS + 2);
  foreign = model_deliver (harness->server, "Archive", "X: foreign\r\n\r\n", MAIL_FLAG_DELETED,
                           DATE);
  g_assert_nonnull (foreign);
}

static guint
n_deleted (Harness *harness, const char *mailbox)
{
  ModelMailbox *model = model_mailbox (harness->server, mailbox);
  guint n = 0;

  for (guint i = 0; i < model->messages->len; i++)
    n += (((ModelMessage *)model->messages->pdata[i])->flags & MAIL_FLAG_DELETED) != 0;
  return n;
}

/* Once, or, where two commands make a move and the second was refused, twice: the user was told. */
static void
check_place (Harness *harness, guint here, guint there, gboolean good, gboolean told_later)
{
  gboolean two_steps = (harness->server->caps & MAIL_CAP_MOVE) == 0;

  g_assert_cmpuint (here + there, >=, 1);
  g_assert_cmpuint (here + there, <=, two_steps && (!good || told_later) ? 2 : 1);
  g_assert_cmpuint (there, >=, good);
}

/* Where each message is when everything has been answered; good: the user knows of no error. */
static void
check_changes (Harness *harness, Do what, guint i, gboolean good)
{
  g_autofree char *old = g_strdup_printf ("text of old%u\r", i + 1);
  g_autofree char *new = g_strdup_printf ("text of new%u\r", i);
  guint inbox = n_alive (harness, "INBOX", old), archive = n_alive (harness, "Archive", old);
  guint trash = n_alive (harness, "Bin", old);
  const ModelMessage *message = model_find (model_mailbox (harness->server, "INBOX"), i + 2);

  switch (what)
    {
    case DO_APPEND:
      g_assert_cmpuint (inbox, ==, 1);
      g_assert_cmpuint (model_count (harness->server, new) + n_failed (harness, new), ==, 1);
      g_assert_cmpuint (model_count (harness->server, new), >=, good);
      break;
    case DO_MOVE:
      check_place (harness, inbox, archive, good, FALSE);
      break;
    case DO_REMOVE:
      check_place (harness, inbox, trash, good, FALSE);
      break;
    case DO_COPY:
      g_assert_cmpuint (inbox, ==, 1);
      g_assert_cmpuint (archive, <=, 1);
      g_assert_cmpuint (archive, >=, good);
      break;
    case DO_FLAGS:
      g_assert_cmpuint (inbox, ==, 1);
      if (good)
        {
          g_assert_cmpuint (message->flags, ==, MAIL_FLAG_FLAGGED);
          g_assert_cmpstr (message->keywords, ==, "kept");
        }
      break;
    default:
      check_place (harness, inbox, trash, FALSE, TRUE);
      g_assert_cmpuint (model_count (harness->server, new) + n_failed (harness, new), ==, 1);
      g_assert_cmpuint (model_count (harness->server, new), >=, trash);
      break;
    }
}

static void
check_all (Harness *harness, Do what, const gboolean *good)
{
  static const char *const mailboxes[] = { "INBOX", "Archive", "Bin" };

  g_assert_cmpuint (model_count (harness->server, "X: foreign"), ==, 2);
  for (guint i = 0; i < N_ITEMS; i++)
    check_changes (harness, what, i, good[i]);
  /* What readers see is what the server has, but for what is only marked. */
  for (guint i = 0; i < G_N_ELEMENTS (mailboxes); i++)
    {
      g_autoptr (MailMailbox) mailbox = open_mailbox (harness, mailboxes[i]);
      ModelMailbox *model = model_mailbox (harness->server, mailboxes[i]);
      guint n = model->messages->len;

      if ((harness->server->caps & MAIL_CAP_EXPUNGE_UID) == 0 && i == 0)
        n -= n_deleted (harness, mailboxes[i]) - 1;
      g_assert_cmpuint (n_listed (mailbox), ==, n);
      g_assert_cmpuint (mail_stage_count (harness->store, mailbox), ==, 0);
    }
}

typedef struct
{
  Do what;
  ModelFault fault;
  guint server, sync_mode, skip;
} Case;

/* One fault, at the skip-th command that changes something, in every kind of burst. */
static void
test_fault (gconstpointer data)
{
  const Case *row = data;
  Harness *harness = start (servers[row->server].without, row->sync_mode);
  Told tolds[N_ITEMS] = { 0 };
  gboolean good[N_ITEMS];

  fill (harness);
  harness->server->rand = g_rand_new_with_seed (row->skip + 7);
  begin_changes (harness, row->what, tolds, FALSE);
  for (guint i = 0; i < row->skip; i++)
    model_fault (harness->server, MODEL_GOOD);
  model_fault (harness->server, row->fault);
  for (guint i = 0; i < N_ITEMS; i++)
    {
      wait_told (harness, &tolds[i]);
      good[i] = tolds[i].error == NULL;
      told_clear (&tolds[i]);
    }
  /* A server that says OK and does nothing is only found out where something should have come. */
  if (row->fault == MODEL_LIE && (row->what == DO_FLAGS || servers[row->server].without != 0))
    memset (good, 0, sizeof good);
  settle (harness);
  check_all (harness, row->what, good);
  harness_free (harness);
}

/* Killed at any moment: after the next start everything that was acknowledged happens. */
static void
test_killed (gconstpointer data)
{
  const Case *row = data;

  for (guint turns = 0; turns < 40; turns += row->what == DO_REPLACE ? 1 : 2)
    {
      Harness *harness = start (servers[row->server].without, row->sync_mode);
      Told tolds[N_ITEMS] = { 0 };
      gboolean good[N_ITEMS], none[N_ITEMS] = { FALSE };

      fill (harness);
      harness->server->rand = g_rand_new_with_seed (turns + 1);
      begin_changes (harness, row->what, tolds, TRUE);
      for (guint i = 0; i < turns; i++)
        {
          /* Work of the store's own threads in between counts as turns too. */
          if (!g_main_context_iteration (harness->context, FALSE))
            g_usleep (300);
        }
      for (guint i = 0; i < N_ITEMS; i++)
        good[i] = tolds[i].called && tolds[i].error == NULL;
      Harness *killed = harness_clone (harness);
      settle (harness);
      for (guint i = 0; i < N_ITEMS; i++)
        {
          wait_told (harness, &tolds[i]);
          g_assert_no_error (tolds[i].error);
        }
      check_all (harness, row->what, none);
      harness_free (harness);

      harness_open (killed);
      settle (killed);
      check_all (killed, row->what, good);
      g_assert_true (harness_close (killed));
      harness_free (killed);
    }
}

/* --- answers in parts
 * ------------------------------------------------------------------------------
 */

/* Between the store and the server: the next command of several messages is answered otherwise. */
static const MailBackendOps *real_ops;
static MailBackendOps other_ops;

typedef struct
{
  MailCopyFunc copied;
  MailAppendFunc appended;
  gpointer user_data;
} Between;

static Between *
between (MailBackend *self, gpointer user_data)
{
  Between *state = g_new0 (Between, 1);

  self->ops = real_ops;
  state->user_data = user_data;
  return state;
}

/* The second of two commands was refused. */
static void
half_copied (guint32 uidvalidity, const MailUidPair *pairs, guint n_pairs, const GError *error,
             gpointer data)
{
  g_autofree Between *state = data;
  g_autoptr (GError) refused = g_error_new (MAIL_ERROR, MAIL_ERROR_OVER_QUOTA, "NO [OVERQUOTA]");

  g_assert_no_error (error);
  g_assert_cmpuint (n_pairs, ==, N_ITEMS / 2);
  state->copied (uidvalidity, pairs, n_pairs, refused, state->user_data);
}

static void
copy_half (MailBackend *self, const char *mailbox, guint32 uidvalidity, const MailUidRange *uids,
           guint n_uids, const char *target, MailCopyFunc done, gpointer user_data)
{
  MailUidRange half = { uids[0].first, uids[0].first + N_ITEMS / 2 - 1 };
  Between *state = between (self, user_data);

  g_assert_cmpuint (n_uids, ==, 1);
  g_assert_cmpuint (uids[0].last - uids[0].first + 1, ==, N_ITEMS);
  state->copied = done;
  real_ops->copy (self, mailbox, uidvalidity, &half, 1, target, half_copied, state);
}

/* One command stored them all, and its answer was lost. */
static void
all_in_doubt (guint32 uidvalidity, const guint32 *uids, guint n_known, gboolean maybe,
              const GError *error, gpointer data)
{
  g_autofree Between *state = data;
  g_autoptr (GError) lost = g_error_new (MAIL_ERROR, MAIL_ERROR_CONNECTION, "connection lost");

  g_assert_no_error (error);
  g_assert_cmpuint (n_known, ==, N_ITEMS);
  state->appended (0, uids, 0, TRUE, lost, state->user_data);
}

static void
append_in_doubt (MailBackend *self, const char *mailbox, const MailAppendItem *items, guint n_items,
                 MailAppendFunc done, gpointer user_data)
{
  Between *state = between (self, user_data);

  state->appended = done;
  real_ops->append (self, mailbox, items, n_items, all_in_doubt, state);
}

/* What was done by then is not done again. */
static void
test_parts (gconstpointer data)
{
  Do what = GPOINTER_TO_UINT (data);
  Harness *harness = start (MAIL_CAP_MOVE, 0);
  MailBackend *backend = harness->store->backend;
  Told tolds[N_ITEMS] = { 0 };
  gboolean good[N_ITEMS];

  fill (harness);
  begin_changes (harness, what, tolds, TRUE);
  real_ops = backend->ops;
  other_ops = *real_ops;
  other_ops.copy = copy_half;
  other_ops.append = append_in_doubt;
  backend->ops = &other_ops;
  for (guint i = 0; i < N_ITEMS; i++)
    {
      wait_good (harness, &tolds[i]);
      good[i] = TRUE;
    }
  settle (harness);
  g_assert_true (backend->ops == real_ops);
  check_all (harness, what, good);
  harness_free (harness);
}

static Harness *renaming;
static MailStaged *renamed_file;

/* It takes the place of the first message just when it is being sent. */
static void
append_renaming (MailBackend *self, const char *mailbox, const MailAppendItem *items, guint n_items,
                 MailAppendFunc done, gpointer user_data)
{
  g_autoptr (MailMailbox) inbox = get_mailbox (renaming, "INBOX");
  Told told_rename = { 0 };

  self->ops = real_ops;
  mail_staged_rename (renamed_file, inbox, 0, "first", FALSE, 1, NULL, told, &told_rename);
  g_assert_true (told_rename.called);
  g_assert_no_error (told_rename.error);
  real_ops->append (self, mailbox, items, n_items, done, user_data);
}

static void
test_renamed_under_way (void)
{
  Harness *harness = start (0, 0);
  MailBackend *backend = harness->store->backend;
  Told done = { 0 };

  deliver (harness, "INBOX", "old");
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autofree char *text = message_text ("new");
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "second", text);
  renaming = harness;
  renamed_file = staged;
  real_ops = backend->ops;
  other_ops = *real_ops;
  other_ops.append = append_renaming;
  backend->ops = &other_ops;
  mail_staged_commit (staged, FALSE, told, &done);
  wait_good (harness, &done);
  settle (harness);
  g_assert_cmpuint (model_count_in (harness->server, "INBOX", "text of new"), ==, 1);
  g_assert_cmpuint (model_count_in (harness->server, "INBOX", "text of old"), ==, 0);
  g_assert_cmpuint (model_count_in (harness->server, "Bin", "text of old"), ==, 1);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);
}

/* Written again while it is on its way, removed, and closed only then: nobody waits for what will
 * never come. */
static void
test_removed_then_closed (void)
{
  Harness *harness = start (0, 0);
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autofree char *text = message_text ("new");
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "first", text);
  Told first = { 0 }, removed = { 0 }, closed = { 0 };

  mail_staged_commit (staged, FALSE, told, &first);
  for (guint i = 0; i < 100 && !staged->change->running; i++)
    turn_loop (harness, 1);
  g_assert_true (mail_staged_write (staged, 0, text, strlen (text), NULL));
  mail_staged_drop (staged, told, &removed);
  mail_staged_commit (staged, FALSE, told, &closed);
  wait_good (harness, &closed);
  wait_good (harness, &removed);
  settle (harness);
  wait_good (harness, &first);
  g_assert_cmpuint (n_listed (inbox), ==, 0);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);
}

/* In the moment in which the message is put into the listing, the user renames what it was. */
static char *
name_renaming (const char *name)
{
  Told told_rename = { 0 };

  renaming->store->naming.message_name = NULL;
  g_autoptr (MailMailbox) archive = get_mailbox (renaming, "Archive");
  mail_staged_rename (renamed_file, archive, 0, "second", FALSE, 0, NULL, told, &told_rename);
  g_assert_true (told_rename.called);
  g_assert_no_error (told_rename.error);
  return g_strdup (name);
}

/* In the moment of a rename, when the file in the way is dropped, the server's answer comes. */
static void
directory_answering (gpointer data, MailMailbox *mailbox)
{
  MailStoreEvents none = { 0 };

  mail_store_set_events (renaming->store, &none, NULL);
  settle (renaming);
  g_assert_cmpint (renamed_file->state, ==, MAIL_STAGED_DONE);
}

/* A rename and the answer meet: whoever is first, the file is where it was renamed to. */
static void
test_renamed_answered (gconstpointer answer_first)
{
  static const MailStoreEvents answering = { .directory = directory_answering };
  Harness *harness = start (0, 0);
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = open_mailbox (harness, "Archive");
  g_autofree char *text = message_text ("new");
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "first", text);
  g_autoptr (MailStaged) other = write_file (harness, archive, "second", text);
  Told done = { 0 }, then = { 0 };

  renaming = harness;
  renamed_file = staged;
  mail_staged_commit (staged, FALSE, told, &done);
  if (answer_first == NULL)
    harness->store->naming.message_name = name_renaming;
  else
    {
      mail_store_set_events (harness->store, &answering, NULL);
      mail_staged_rename (staged, archive, 0, "second", FALSE, 0, other, told, &then);
      wait_good (harness, &then);
    }
  wait_good (harness, &done);
  settle (harness);
  g_assert_cmpuint (model_count_in (harness->server, "INBOX", "text of new"), ==, 0);
  g_assert_cmpuint (model_count_in (harness->server, "Archive", "text of new"), ==, 1);
  g_assert_cmpuint (mail_mailbox_uid_of_name (archive, "second"), ==, 1);
  g_assert_cmpuint (n_listed (inbox), ==, 0);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&archive, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  g_clear_pointer (&other, mail_staged_unref);
  harness_free (harness);
}

/* Renamed over a message, then on to another mailbox, whose messages have the same numbers; and
 * then perhaps killed, when all that is known is in the journal. */
static void
test_renamed_twice (gconstpointer killed)
{
  Harness *harness = start (0, 0);
  Told first = { 0 }, second = { 0 };

  model_mailbox (harness->server, "Archive")->uidvalidity
      = model_mailbox (harness->server, "INBOX")->uidvalidity;
  deliver (harness, "INBOX", "old");
  deliver (harness, "Archive", "foreign");
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = open_mailbox (harness, "Archive");
  g_autofree char *text = message_text ("new");
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "second", text);
  mail_staged_rename (staged, inbox, 0, "first", FALSE, 1, NULL, told, &first);
  mail_staged_rename (staged, archive, 0, "first", FALSE, 0, NULL, told, &second);
  Harness *clone = harness_clone (harness);
  wait_good (harness, &first);
  wait_good (harness, &second);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&archive, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  if (killed != NULL)
    {
      harness_free (harness);
      harness = g_steal_pointer (&clone);
      harness_open (harness);
    }
  settle (harness);
  g_assert_cmpuint (model_count_in (harness->server, "Archive", "text of foreign"), ==, 1);
  g_assert_cmpuint (model_count_in (harness->server, "Archive", "text of new"), ==, 1);
  g_assert_cmpuint (model_count_in (harness->server, "Bin", "text of old"), ==, 1);
  archive = open_mailbox (harness, "Archive");
  g_assert_cmpuint (n_listed (archive), ==, 2);
  g_clear_pointer (&archive, mail_mailbox_unref);
  harness_free (harness);
  g_clear_pointer (&clone, harness_free);
}

/* --- servers that do otherwise, users that do it in another order --------------------------------
 */

static const struct
{
  const char *name, *header;
  guint without, rewrite;
  gboolean replaces, good;
} rewrites[] = {
  { "message-id", "Message-ID: <1@example.org>\r\n", MAIL_CAP_EXPUNGE_UID, 2, FALSE, TRUE },
  { "body", "", MAIL_CAP_EXPUNGE_UID, 1, FALSE, TRUE },
  { "nothing-like-it", "", MAIL_CAP_EXPUNGE_UID, 2, FALSE, FALSE },
  { "uid", "", 0, 2, TRUE, TRUE },
};

/* The server stores other bytes than it was given: the message is there once, and not sent again.
 */
static void
test_rewritten (gconstpointer data)
{
  guint row = GPOINTER_TO_UINT (data);
  Harness *harness = start (rewrites[row].without, 0);
  g_autofree char *plain = message_text ("new");
  g_autofree char *text = g_strconcat (rewrites[row].header, plain, NULL);
  Told done = { 0 };

  harness->server->rewrite = rewrites[row].rewrite;
  deliver (harness, "INBOX", "old");
  MailMailbox *inbox = open_mailbox (harness, "INBOX");
  MailStaged *staged = rewrites[row].replaces
                           ? mail_stage_replacement (harness->store, inbox, 1, "old", NULL)
                           : mail_stage_create (harness->store, inbox, 0, "x", FALSE, NULL);
  g_assert_true (mail_staged_write (staged, 0, text, strlen (text), NULL));
  mail_staged_commit (staged, FALSE, told, &done);
  g_assert_cmpint (wait_code (harness, &done), ==, rewrites[row].good ? -1 : MAIL_ERROR_FAILED);
  settle (harness);
  g_assert_cmpuint (model_count (harness->server, "text of new"), ==, 1);
  g_assert_cmpuint (n_failed (harness, "text of new"), ==, !rewrites[row].good);
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of old"), ==, !rewrites[row].replaces);
  if (rewrites[row].good)
    {
      g_autofree char *read = read_message (harness, inbox, 2);
      g_assert_nonnull (strstr (read, "X-Scanned: yes"));
    }
  mail_staged_unref (staged);
  mail_mailbox_unref (inbox);
  harness_free (harness);
}

/* Without MOVE: copied, and the original is not to be removed. Both are shown, and it is said. */
static void
test_both (gconstpointer data)
{
  Harness *harness = start (MAIL_CAP_MOVE | GPOINTER_TO_UINT (data), 0);
  Told done = { 0 };

  deliver (harness, "INBOX", "old");
  deliver (harness, "Archive", "there");
  MailMailbox *inbox = open_mailbox (harness, "INBOX");
  MailMailbox *archive = open_mailbox (harness, "Archive");
  model_fault (harness->server, MODEL_GOOD);
  model_fault (harness->server, MODEL_REFUSED);
  mail_change_move (harness->store, inbox, 1, archive, 0, "moved", 0, NULL, told, &done);
  wait_told (harness, &done);
  g_assert_error (done.error, MAIL_ERROR, MAIL_ERROR_FAILED);
  g_assert_nonnull (strstr (done.error->message, "copied"));
  told_clear (&done);
  for (guint i = 0; i < 2; i++)
    {
      g_assert_cmpuint (n_listed (inbox), ==, 1);
      g_assert_cmpuint (n_listed (archive), ==, 2);
      g_assert_cmpuint (mail_mailbox_uid_of_name (archive, "moved"), ==, 2);
      look (harness, inbox);
      look (harness, archive);
    }
  mail_mailbox_unref (inbox);
  mail_mailbox_unref (archive);
  harness_free (harness);
}

/* A server that does not say what moved messages became: two of one size and date are moved by two
 * clients, and whatever is taken for ours, what is read there is what is there. */
static void
test_alike (void)
{
  Harness *harness = start (MAIL_CAP_EXPUNGE_UID, 0);
  Told done = { 0 };

  deliver (harness, "INBOX", "one");
  MailMailbox *inbox = open_mailbox (harness, "INBOX");
  MailMailbox *archive = open_mailbox (harness, "Archive");
  g_autofree char *ours G_GNUC_UNUSED = read_message (harness, inbox, 1);
  deliver (harness, "Archive", "two");
  mail_change_move (harness->store, inbox, 1, archive, 0, "x", 0, NULL, told, &done);
  wait_good (harness, &done);
  look (harness, archive);
  g_autofree char *first = read_message (harness, archive, 1);
  g_autofree char *second = read_message (harness, archive, 2);
  g_assert_nonnull (strstr (first, "text of two"));
  g_assert_nonnull (strstr (second, "text of one"));
  mail_mailbox_unref (inbox);
  mail_mailbox_unref (archive);
  harness_free (harness);
}

/* The server refuses what is about a message that another client has removed: it is shown again for
 * now, and whoever looks next has the mailbox asked for. */
static void
test_refused_looks_again (void)
{
  Harness *harness = start (0, 0);
  Told moved = { 0 }, removed = { 0 };

  deliver (harness, "INBOX", "one");
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = open_mailbox (harness, "Archive");
  for (guint i = 0; i < 2; i++)
    {
      look (harness, inbox);
      g_assert_cmpint (inbox->synced_at, >, 0);
      model_fault (harness->server, MODEL_REFUSED);
      if (i == 0)
        mail_change_move (harness->store, inbox, 1, archive, 0, "x", 0, NULL, told, &moved);
      else
        mail_change_remove (harness->store, inbox, 1, told, &removed);
      g_assert_cmpint (wait_code (harness, i == 0 ? &moved : &removed), !=, -1);
      g_assert_cmpuint (n_listed (inbox), ==, 1);
      g_assert_cmpint (inbox->synced_at, ==, 0);
      g_assert_cmpint (inbox->tried_at, ==, 0);
    }
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&archive, mail_mailbox_unref);
  harness_free (harness);
}

/* A message moved over a file that is being written: that one goes only when the move is accepted.
 */
static void
test_moved_over (void)
{
  Harness *harness = start (0, 0);
  Told done = { 0 };

  deliver (harness, "INBOX", "old");
  MailMailbox *inbox = open_mailbox (harness, "INBOX");
  MailMailbox *archive = open_mailbox (harness, "Archive");
  MailStaged *staged = write_file (harness, archive, "x", "Subject: half\n");
  archive->server_read_only = TRUE;
  mail_change_move (harness->store, inbox, 1, archive, 0, "x", 0, staged, told, &done);
  g_assert_cmpint (wait_code (harness, &done), ==, MAIL_ERROR_READ_ONLY);
  g_autoptr (MailStaged) found = mail_stage_lookup (harness->store, archive, 0, "x");
  g_assert_true (found == staged);
  archive->server_read_only = FALSE;
  mail_change_move (harness->store, inbox, 1, archive, 0, "x", 0, staged, told, &done);
  wait_good (harness, &done);
  g_assert_cmpuint (mail_stage_count (harness->store, archive), ==, 0);
  g_assert_cmpuint (mail_mailbox_uid_of_name (archive, "x"), ==, 1);
  /* Nor does what stood there while the move was under way stay for ever. */
  g_clear_pointer (&found, mail_staged_unref);
  g_assert_cmpuint (g_hash_table_size (harness->store->changes->staged), ==, 0);
  mail_staged_unref (staged);
  mail_mailbox_unref (inbox);
  mail_mailbox_unref (archive);
  harness_free (harness);
}

/* Known to the kernel: what stood there stays until it is forgotten. */
static void
test_placeholder (void)
{
  Harness *harness = start (0, 0);
  Told done = { 0 };
  MailStagedInfo info;

  deliver (harness, "INBOX", "old");
  MailMailbox *inbox = open_mailbox (harness, "INBOX");
  MailMailbox *archive = open_mailbox (harness, "Archive");
  mail_change_move (harness->store, inbox, 1, archive, 0, "x", 0, NULL, told, &done);
  MailStaged *staged = mail_stage_lookup (harness->store, archive, 0, "x");
  mail_staged_info (staged, &info);
  mail_stage_known (harness->store, info.id);
  wait_good (harness, &done);
  g_autoptr (MailStaged) found = mail_stage_find (harness->store, info.id);
  g_assert_true (found == staged);
  mail_staged_forget (staged, staged->n_emptied);
  g_assert_cmpuint (g_hash_table_size (harness->store->changes->staged), ==, 0);
  mail_staged_unref (staged);
  mail_mailbox_unref (inbox);
  mail_mailbox_unref (archive);
  harness_free (harness);
}

/* What the mailbox cannot keep is refused before anything is written. */
static void
test_keyword_of_file (void)
{
  Harness *harness = start (0, 0);
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "x", "Subject: a\n\n");
  g_autoptr (GError) error = NULL;
  MailStagedInfo info;

  inbox->any_keyword = FALSE;
  inbox->settable_keywords = g_strdup ("alpha");
  g_assert_false (mail_staged_set_flags (staged, MAIL_FLAG_SEEN, "alpha beta", &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_UNSUPPORTED);
  mail_staged_info (staged, &info);
  g_assert_cmpuint (info.flags, ==, 0);
  g_assert_true (mail_staged_set_flags (staged, MAIL_FLAG_SEEN, "alpha", NULL));
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);
}

/* Another client has made a mailbox below, and this one can no longer be opened. */
static void
test_rmdir_child (void)
{
  Harness *harness = start (0, 0);
  Told done = { 0 };
  ModelMailbox *model = model_add_mailbox (harness->server, "Top", NULL);

  mail_tree_refresh (harness->store);
  turn_loop (harness, 20);
  g_autoptr (MailMailbox) top = open_mailbox (harness, "Top");
  model_add_mailbox (harness->server, "Top/below", NULL);
  model->no_select = TRUE;
  mail_change_rmdir (harness->store, top, told, &done);
  g_assert_cmpint (wait_code (harness, &done), ==, MAIL_ERROR_NOT_EMPTY);
  g_assert_nonnull (model_mailbox (harness->server, "Top/below"));
  g_assert_cmpuint (harness->server->n_commands, ==, 0);
  g_clear_pointer (&top, mail_mailbox_unref);
  harness_free (harness);
}

/* --- what is shown is what there is --------------------------------------------------------------
 */

/* Appended by us, and another client takes it away before it was ever listed. */
static void
see_expunged (Harness *harness, MailMailbox *inbox)
{
  g_autofree char *text = message_text ("ours");
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "letter", text);
  Told done = { 0 };

  mail_staged_commit (staged, FALSE, told, &done);
  wait_good (harness, &done);
  g_assert_cmpuint (n_listed (inbox), ==, 2);
  model_expunge (model_mailbox (harness->server, "INBOX"), 2);
}

/* The server says that it removed the message, and did not. */
static void
see_lie (Harness *harness, MailMailbox *inbox)
{
  Told done = { 0 };

  model_fault (harness->server, MODEL_LIE);
  mail_change_remove (harness->store, inbox, 1, told, &done);
  wait_good (harness, &done);
  g_assert_cmpuint (n_listed (inbox), ==, 0);
}

/* The index has it hidden, and no change that the journal knows of wants that: the daemon was
 * killed between the one and the other. */
static void
see_hidden (Harness *harness, MailMailbox *inbox)
{
  g_assert_true (mail_effect_hide_now (inbox, mail_mailbox_content_id (inbox), 1, NULL));
  mail_effect_hidden (inbox, mail_mailbox_content_id (inbox), 1);
  mail_index_flush (harness->store->index);
}

static const struct
{
  const char *name;
  void (*act) (Harness *harness, MailMailbox *inbox);
  gboolean killed; /* what is seen counts only in the next run */
} sights[] = {
  { "expunged-by-others", see_expunged, FALSE },
  { "removal-was-a-lie", see_lie, FALSE },
  { "hidden-for-nothing", see_hidden, TRUE },
};

/* However a server tells what has changed: the one message is there, in this run and the next. */
static void
test_shown (gconstpointer data)
{
  guint row = GPOINTER_TO_UINT (data) / 4;
  Harness *harness = harness_new (ALL_CAPS);

  harness->server->sync_mode = GPOINTER_TO_UINT (data) % 4;
  harness->trash = "none";
  harness_open (harness);
  deliver (harness, "INBOX", "old");
  MailMailbox *inbox = open_mailbox (harness, "INBOX");
  sights[row].act (harness, inbox);
  Harness *killed = harness_clone (harness);
  look (harness, inbox);
  g_assert_cmpuint (n_listed (inbox), ==, sights[row].killed ? 0 : 1);
  g_assert_cmpuint (first_uid (inbox), ==, sights[row].killed ? 0 : 1);
  mail_mailbox_unref (inbox);
  harness_free (harness);

  harness_open (killed);
  settle (killed);
  inbox = open_mailbox (killed, "INBOX");
  g_assert_cmpuint (n_listed (inbox), ==, 1);
  g_assert_cmpuint (first_uid (inbox), ==, 1);
  mail_mailbox_unref (inbox);
  harness_free (killed);
}

/* After a kill something is held back of which no listing has told yet, and then is not to go after
 * all: the listing that brings it shows it. */
static void
test_shown_when_it_comes (void)
{
  Harness *harness = start (0, 0);
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  guint32 content_id = mail_mailbox_content_id (inbox);

  guint32 uid = deliver (harness, "INBOX", "late");
  mail_effect_hold (inbox, content_id, uid, FALSE);
  mail_effect_show_again (harness->store, content_id, uid);
  look (harness, inbox);
  g_assert_cmpuint (n_listed (inbox), ==, 1);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  harness_free (harness);
}

/* --- killed, and what was replaced ---------------------------------------------------------------
 */

static Harness *to_clone, *cloned;
static const char *acting_at; /* here the user does something */
static void (*acting) (void);

/* Linked in the place of mail_failpoint. */
void __wrap_mail_failpoint (const char *name);
void
__wrap_mail_failpoint (const char *name)
{
  if (g_strcmp0 (acting_at, name) == 0)
    {
      acting_at = NULL;
      acting ();
    }
  if (to_clone != NULL && cloned == NULL && strcmp (name, "replace-stored") == 0)
    cloned = harness_clone (to_clone);
}

static Harness *late;
static const char *late_target;

static void
server_was_slow (void)
{
  g_autofree char *text = message_text ("old");

  model_deliver (late->server, late_target, text, 0, DATE);
  model_expunge (model_mailbox (late->server, "INBOX"), 1);
}

static void
act_at_next (void)
{
  cloned = harness_clone (late);
  acting = server_was_slow;
  acting_at = "move-sent";
}

/* The connection breaks or the daemon is killed, and the server does what it was told only after we
 * have looked: what is said once more finds nothing, and all is well. */
static void
test_done_late (gconstpointer data)
{
  gboolean removed = GPOINTER_TO_UINT (data) % 2 != 0, killed = GPOINTER_TO_UINT (data) > 1;
  Harness *harness = start (0, 0);
  Told done = { 0 };

  deliver (harness, "INBOX", "old");
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = open_mailbox (harness, "Archive");
  model_fault (harness->server, MODEL_LOST_BEFORE);
  late = harness;
  late_target = removed ? "Bin" : "Archive";
  acting = act_at_next;
  acting_at = "move-sent";
  if (removed)
    mail_change_remove (harness->store, inbox, 1, told, &done);
  else
    mail_change_move (harness->store, inbox, 1, archive, 0, "x", 0, NULL, told, &done);
  wait_good (harness, &done);
  g_assert_null (acting_at);
  Harness *clone = g_steal_pointer (&cloned);
  if (killed)
    {
      g_clear_pointer (&inbox, mail_mailbox_unref);
      g_clear_pointer (&archive, mail_mailbox_unref);
      harness_free (harness);
      harness = late = g_steal_pointer (&clone);
      g_array_set_size (harness->server->faults, 0);
      acting = server_was_slow;
      acting_at = "move-sent";
      harness_open (harness);
      settle (harness);
      g_assert_null (acting_at);
      inbox = open_mailbox (harness, "INBOX");
      archive = open_mailbox (harness, "Archive");
    }
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of old"), ==, 0);
  g_assert_cmpuint (n_alive (harness, late_target, "text of old"), ==, 1);
  g_assert_cmpuint (n_listed (inbox), ==, 0);
  if (!removed)
    g_assert_cmpuint (mail_mailbox_uid_of_name (archive, "x"), ==, 1);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&archive, mail_mailbox_unref);
  g_clear_pointer (&clone, harness_free);
  harness_free (harness);
}

/* The new message is stored, the daemon is killed before the old one is on its way to the trash. */
static void
test_replaced_killed (gconstpointer data)
{
  gboolean in_place = GPOINTER_TO_UINT (data) % 2 == 0;
  Harness *harness = start (servers[GPOINTER_TO_UINT (data) / 2].without, 0);
  g_autofree char *text = message_text ("new");
  Told done = { 0 };

  deliver (harness, "INBOX", "old");
  MailMailbox *inbox = open_mailbox (harness, "INBOX");
  MailStaged *staged = in_place ? mail_stage_replacement (harness->store, inbox, 1, "old", NULL)
                                : mail_stage_create (harness->store, inbox, 0, ".new", TRUE, NULL);
  g_assert_true (mail_staged_write (staged, 0, text, strlen (text), NULL));
  mail_index_flush (harness->store->index);
  to_clone = harness;
  if (in_place)
    mail_staged_commit (staged, FALSE, told, &done);
  else
    mail_staged_rename (staged, inbox, 0, "old", FALSE, 1, NULL, told, &done);
  wait_good (harness, &done);
  to_clone = NULL;
  mail_staged_unref (staged);
  mail_mailbox_unref (inbox);
  harness_free (harness);

  harness = g_steal_pointer (&cloned);
  g_assert_nonnull (harness);
  harness_open (harness);
  settle (harness);
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of new"), ==, 1);
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of old"), ==, 0);
  g_assert_cmpuint (n_alive (harness, "Bin", "text of old"), ==, 1);
  inbox = open_mailbox (harness, "INBOX");
  g_assert_cmpuint (n_listed (inbox), ==, 1);
  g_assert_cmpuint (mail_mailbox_uid_of_name (inbox, "old"), ==, first_uid (inbox));
  mail_mailbox_unref (inbox);
  harness_free (harness);
}

/* --- renamed and written when the answer comes ---------------------------------------------------
 */

static Told acted;

static void
rename_over (void)
{
  Told renamed = { 0 };

  g_autoptr (MailMailbox) inbox = get_mailbox (renaming, "INBOX");
  mail_staged_rename (renamed_file, inbox, 0, "first", FALSE, 1, NULL, told, &renamed);
  g_assert_true (renamed.called);
  g_assert_no_error (renamed.error);
}

static void
write_next (void)
{
  g_autofree char *next = message_text ("next");

  g_assert_true (mail_staged_truncate (renamed_file, 0, NULL));
  g_assert_true (mail_staged_write (renamed_file, 0, next, strlen (next), NULL));
}

static void
rename_and_write (void)
{
  rename_over ();
  write_next ();
}

static void
write_and_commit (void)
{
  write_next ();
  mail_staged_commit (renamed_file, TRUE, told, &acted);
}

/* A message that is on its way, moved or copied, is renamed over another one: that one goes. */
static void
test_covered (gconstpointer copy)
{
  Harness *harness = start (0, 0);
  Told done = { 0 };

  deliver (harness, "INBOX", "old");
  deliver (harness, "Archive", "new");
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = open_mailbox (harness, "Archive");
  g_autoptr (MailStaged) staged = NULL;
  if (copy != NULL)
    {
      staged = mail_stage_create (harness->store, inbox, 0, "x", FALSE, NULL);
      g_assert_true (mail_staged_copy_from (staged, archive, 1, NULL));
      mail_staged_commit (staged, FALSE, told, &done);
    }
  else
    {
      mail_change_move (harness->store, archive, 1, inbox, 0, "x", 0, NULL, told, &done);
      staged = mail_stage_lookup (harness->store, inbox, 0, "x");
    }
  renaming = harness;
  renamed_file = staged;
  acting = rename_over;
  acting_at = copy != NULL ? "copy-answered" : "move-answered";
  wait_good (harness, &done);
  settle (harness);
  g_assert_null (acting_at);
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of new"), ==, 1);
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of old"), ==, 0);
  g_assert_cmpuint (n_alive (harness, "Bin", "text of old"), ==, 1);
  look (harness, inbox);
  g_assert_cmpuint (n_listed (inbox), ==, 1);
  g_assert_cmpuint (mail_mailbox_uid_of_name (inbox, "first"), ==, first_uid (inbox));
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&archive, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);
}

/* Renamed over a message of another mailbox while it is on its way, and written again: that one
 * stays until the server has what takes its place. */
static void
test_covered_elsewhere (void)
{
  Harness *harness = start (0, 0);
  g_autofree char *text = message_text ("new");
  Told done = { 0 }, then = { 0 }, last = { 0 };

  harness->trash = "none";
  harness_close (harness);
  harness_open (harness);
  deliver (harness, "INBOX", "old");
  deliver (harness, "INBOX", "other");
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = open_mailbox (harness, "Archive");
  g_autoptr (MailStaged) staged = write_file (harness, archive, "x", text);
  renaming = harness;
  renamed_file = staged;
  acting = rename_and_write;
  acting_at = "append-answered";
  mail_staged_commit (staged, FALSE, told, &done);
  wait_good (harness, &done);
  settle (harness);
  g_assert_null (acting_at);
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of old"), ==, 1);
  g_assert_cmpuint (n_listed (inbox), ==, 1);
  mail_staged_commit (staged, TRUE, told, &then);
  wait_good (harness, &then);
  settle (harness);
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of next"), ==, 1);
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of old"), ==, 0);
  g_assert_cmpuint (n_alive (harness, "Archive", "text of new"), ==, 0);
  /* And nothing is left to be complained of. */
  mail_change_remove (harness->store, inbox, 2, told, &last);
  wait_good (harness, &last);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&archive, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);
}

static char *
name_writing (const char *name)
{
  renaming->store->naming.message_name = NULL;
  write_and_commit ();
  return g_strdup (name);
}

static void
directory_writing (gpointer data, MailMailbox *mailbox)
{
  MailStoreEvents none = { 0 };

  mail_store_set_events (renaming->store, &none, NULL);
  write_and_commit ();
}

static void
move_on_writing (void)
{
  static const MailStoreEvents writing = { .directory = directory_writing };
  Told renamed = { 0 };

  g_autoptr (MailMailbox) archive = get_mailbox (renaming, "Archive");
  mail_staged_rename (renamed_file, archive, 0, "first", FALSE, 0, NULL, told, &renamed);
  g_assert_no_error (renamed.error);
  mail_store_set_events (renaming->store, &writing, NULL);
}

/* In the moment in which the message is put into the listing, the user writes the file anew: that
 * is not lost, and who waits for it hears of it. */
static void
test_written_answered (gconstpointer moved)
{
  Harness *harness = start (0, 0);
  const char *where = moved != NULL ? "Archive" : "INBOX";
  g_autofree char *text = message_text ("new");
  Told done = { 0 };

  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = open_mailbox (harness, "Archive");
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "x", text);
  renaming = harness;
  renamed_file = staged;
  acted = (Told) { 0 };
  mail_staged_commit (staged, FALSE, told, &done);
  acting = move_on_writing;
  acting_at = moved != NULL ? "append-answered" : NULL;
  if (moved == NULL)
    harness->store->naming.message_name = name_writing;
  wait_good (harness, &done);
  settle (harness);
  g_assert_true (acted.called);
  g_assert_no_error (acted.error);
  g_assert_cmpuint (n_alive (harness, where, "text of next"), ==, 1);
  g_assert_cmpuint (n_alive (harness, where, "text of new"), ==, 0);
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of new"), ==, 0);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&archive, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);
}

static void
directory_cloning (gpointer data, MailMailbox *mailbox)
{
  MailStoreEvents none = { 0 };

  mail_store_set_events (renaming->store, &none, NULL);
  cloned = harness_clone (renaming);
}

static void
rename_write_and_die (void)
{
  static const MailStoreEvents dying = { .directory = directory_cloning };

  rename_and_write ();
  mail_store_set_events (renaming->store, &dying, NULL);
}

/* Killed when the file has just become a message: what was written to it meanwhile is kept. */
static void
test_written_killed (void)
{
  Harness *harness = start (0, 0);
  g_autofree char *text = message_text ("new");
  Told done = { 0 };

  deliver (harness, "INBOX", "old");
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "x", text);
  renaming = harness;
  renamed_file = staged;
  acting = rename_write_and_die;
  acting_at = "append-answered";
  mail_staged_commit (staged, FALSE, told, &done);
  wait_good (harness, &done);
  settle (harness);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);

  harness = g_steal_pointer (&cloned);
  g_assert_nonnull (harness);
  harness_open (harness);
  settle (harness);
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of new"), ==, 1);
  g_assert_cmpuint (n_alive (harness, "INBOX", "text of old"), ==, 0);
  g_assert_cmpuint (model_count (harness->server, "text of next"), ==, 0);
  g_assert_cmpuint (n_failed (harness, "text of next"), ==, 1);
  harness_close (harness);
  harness_open (harness);
  g_assert_cmpuint (n_failed (harness, "text of next"), ==, 1);
  harness_free (harness);
}

static void
clone_now (void)
{
  cloned = harness_clone (renaming);
}

static void
write_commit_and_die (void)
{
  write_and_commit ();
  acting = clone_now;
  acting_at = "append-journaled";
}

static void
rename_write_commit_and_die (void)
{
  rename_over ();
  write_commit_and_die ();
}

/* Killed when the next version has just been committed, and what was sent before is still in the
 * journal: it is not taken for the next version. */
static void
test_next_killed (gconstpointer elsewhere)
{
  Harness *harness = start (0, 0);
  g_autofree char *text = message_text ("news");
  Told done = { 0 };

  deliver (harness, "INBOX", "old");
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = open_mailbox (harness, "Archive");
  g_autoptr (MailStaged) staged = write_file (harness, archive, "x", text);
  renaming = harness;
  renamed_file = staged;
  acted = (Told) { 0 };
  mail_staged_commit (staged, FALSE, told, &done);
  acting = elsewhere != NULL ? rename_write_commit_and_die : write_commit_and_die;
  acting_at = "append-answered";
  wait_good (harness, &done);
  settle (harness);
  g_assert_null (acting_at);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&archive, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);

  harness = g_steal_pointer (&cloned);
  const char *where = elsewhere != NULL ? "INBOX" : "Archive";
  harness_open (harness);
  settle (harness);
  g_assert_cmpuint (n_alive (harness, where, "text of next"), ==, 1);
  g_assert_cmpuint (model_count (harness->server, "text of next"), ==, 1);
  g_assert_cmpuint (n_alive (harness, "Archive", "text of news"), ==, 0);
  g_autoptr (MailMailbox) mailbox = open_mailbox (harness, where);
  g_autofree char *read = read_message (harness, mailbox, first_uid (mailbox));
  g_assert_nonnull (strstr (read, "text of next"));
  g_clear_pointer (&mailbox, mail_mailbox_unref);
  harness_free (harness);
}

/* --- written over while it waits ---------------------------------------------------------------
 */

static GMutex gate;

static void
pass_gate (gpointer job)
{
  g_mutex_lock (&gate);
  g_mutex_unlock (&gate);
}

/* A copy with a date of its own is sent as a file. While its bytes are fetched it cannot be
 * written; as soon as they are here it can, and what is sent is what was committed. */
static void
test_copied_and_written (void)
{
  Harness *harness = start (0, 0);
  g_autofree char *two = message_text ("due");
  Told done = { 0 }, again = { 0 };

  deliver (harness, "INBOX", "uno");
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = open_mailbox (harness, "Archive");
  g_autoptr (MailStaged) staged = mail_stage_create (harness->store, archive, 0, "x", FALSE, NULL);
  g_assert_true (mail_staged_copy_from (staged, inbox, 1, NULL));
  mail_staged_set_mtime (staged, DATE + 1);
  MailJob job = { pass_gate };
  g_mutex_lock (&gate);
  g_thread_pool_push (harness->store->changes->worker, &job, NULL);
  mail_staged_commit (staged, FALSE, told, &done);
  for (guint i = 0; i < 1000 && !staged->change->running; i++)
    turn_loop (harness, 1);
  g_assert_nonnull (staged->source);
  g_assert_false (mail_staged_truncate (staged, 0, NULL));
  for (guint i = 0; i < 10000 && staged->source != NULL; i++)
    if (!turn_once (harness))
      g_usleep (200);
  g_assert_null (staged->source);
  g_assert_true (mail_staged_truncate (staged, 0, NULL));
  g_assert_true (mail_staged_write (staged, 0, two, strlen (two), NULL));
  g_mutex_unlock (&gate);
  mail_staged_commit (staged, TRUE, told, &again);
  wait_good (harness, &done);
  wait_good (harness, &again);
  settle (harness);
  g_assert_cmpuint (n_alive (harness, "Archive", "text of due"), ==, 1);
  g_assert_cmpuint (n_alive (harness, "Bin", "text of uno"), ==, 1); /* the version before */
  g_assert_cmpuint (model_count (harness->server, "text of due"), ==, 1);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&archive, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);
}

/* A file that was committed is begun anew before it has been sent, and then all ends: what there is
 * of it is no message yet, and is kept once. */
static void
test_overwritten (void)
{
  Harness *harness = start (0, 0);
  g_autoptr (MailMailbox) inbox = open_mailbox (harness, "INBOX");
  g_autofree char *one = message_text ("uno"), *two = message_text ("due");
  g_autoptr (MailStaged) staged = write_file (harness, inbox, "letter", one);
  Told done = { 0 };

  /* Taken into a batch, not yet noted as sent: the worker does not come to that. */
  MailJob job = { pass_gate };
  g_mutex_lock (&gate);
  g_thread_pool_push (harness->store->changes->worker, &job, NULL);
  mail_staged_commit (staged, FALSE, told, &done);
  for (guint i = 0; i < 100 && !staged->change->running; i++)
    turn_loop (harness, 1);
  g_assert_cmpint (staged->change->step, ==, MAIL_STEP_NEW);
  g_assert_true (mail_staged_truncate (staged, 0, NULL));
  g_assert_true (mail_staged_write (staged, 0, two, strlen (two), NULL));
  Harness *killed = harness_clone (harness);
  g_mutex_unlock (&gate);
  settle (harness);
  wait_good (harness, &done);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);

  harness_open (killed);
  settle (killed);
  g_assert_cmpuint (model_count (killed->server, "text of due"), ==, 0);
  g_assert_cmpuint (n_failed (killed, "text of due"), ==, 1);
  harness_free (killed);
}

int
main (int argc, char **argv)
{
  static Case cases[N_DO * MODEL_N_FAULTS * G_N_ELEMENTS (servers) * 3];
  guint n = 0;

  g_test_init (&argc, &argv, NULL);
  if (!g_test_verbose ())
    mail_log_init (MAIL_LOG_ERROR, FALSE);
  for (guint i = 0; i < G_N_ELEMENTS (servers); i++)
    {
      g_autofree char *path = g_strdup_printf ("/change/append/%s", servers[i].name);
      g_test_add_data_func (path, GUINT_TO_POINTER (i), test_append);
    }
  for (guint i = 0; i < G_N_ELEMENTS (bad_files); i++)
    {
      g_autofree char *path = g_strdup_printf ("/change/refused/%s", bad_files[i].name);
      g_test_add_data_func (path, GUINT_TO_POINTER (i), test_refused);
    }
  g_test_add_func ("/change/empty", test_empty);
  g_test_add_func ("/change/emptied", test_emptied);
  g_test_add_func ("/change/temporary", test_temporary);
  g_test_add_func ("/change/interrupted", test_interrupted);
  g_test_add_func ("/change/renamed/under-way", test_renamed_under_way);
  g_test_add_func ("/change/removed-then-closed", test_removed_then_closed);
  g_test_add_data_func ("/change/renamed/then-answered", NULL, test_renamed_answered);
  g_test_add_data_func ("/change/renamed/when-answered", "", test_renamed_answered);
  g_test_add_data_func ("/change/renamed/twice", NULL, test_renamed_twice);
  g_test_add_data_func ("/change/renamed/twice-killed", "", test_renamed_twice);
  for (guint i = 0; i < 2 * G_N_ELEMENTS (servers); i++)
    {
      g_autofree char *path = g_strdup_printf ("/change/replaced-killed/%s/%s",
                                               i % 2 == 0 ? "in-place" : "renamed",
                                               servers[i / 2].name);
      g_test_add_data_func (path, GUINT_TO_POINTER (i), test_replaced_killed);
    }
  g_test_add_func ("/change/shown/when-it-comes", test_shown_when_it_comes);
  g_test_add_data_func ("/change/covered/move", NULL, test_covered);
  g_test_add_data_func ("/change/covered/copy", "", test_covered);
  g_test_add_func ("/change/covered/elsewhere", test_covered_elsewhere);
  g_test_add_data_func ("/change/written/when-listed", NULL, test_written_answered);
  g_test_add_data_func ("/change/written/when-moved-on", "", test_written_answered);
  g_test_add_func ("/change/written/killed", test_written_killed);
  g_test_add_data_func ("/change/written/next-killed", NULL, test_next_killed);
  g_test_add_data_func ("/change/written/next-killed-elsewhere", "", test_next_killed);
  g_test_add_func ("/change/overwritten", test_overwritten);
  for (guint i = 0; i < G_N_ELEMENTS (rewrites); i++)
    {
      g_autofree char *path = g_strdup_printf ("/change/rewritten/%s", rewrites[i].name);
      g_test_add_data_func (path, GUINT_TO_POINTER (i), test_rewritten);
    }
  g_test_add_func ("/change/copied-and-written", test_copied_and_written);
  g_test_add_data_func ("/change/both/uidplus", NULL, test_both);
  g_test_add_data_func ("/change/both/neither", GUINT_TO_POINTER (MAIL_CAP_EXPUNGE_UID), test_both);
  g_test_add_func ("/change/alike", test_alike);
  g_test_add_func ("/change/refused-looks-again", test_refused_looks_again);
  g_test_add_func ("/change/moved-over", test_moved_over);
  g_test_add_data_func ("/change/done-late/move", GUINT_TO_POINTER (0), test_done_late);
  g_test_add_data_func ("/change/done-late/remove", GUINT_TO_POINTER (1), test_done_late);
  g_test_add_data_func ("/change/done-late/move-killed", GUINT_TO_POINTER (2), test_done_late);
  g_test_add_data_func ("/change/done-late/remove-killed", GUINT_TO_POINTER (3), test_done_late);
  g_test_add_func ("/change/placeholder", test_placeholder);
  g_test_add_func ("/change/keyword-of-file", test_keyword_of_file);
  g_test_add_func ("/change/rmdir-child", test_rmdir_child);
  for (guint i = 0; i < 4 * G_N_ELEMENTS (sights); i++)
    {
      g_autofree char *path = g_strdup_printf ("/change/shown/%s/%u", sights[i / 4].name, i % 4);
      g_test_add_data_func (path, GUINT_TO_POINTER (i), test_shown);
    }
  g_test_add_data_func ("/change/parts/copy", GUINT_TO_POINTER (DO_COPY), test_parts);
  g_test_add_data_func ("/change/parts/move", GUINT_TO_POINTER (DO_MOVE), test_parts);
  g_test_add_data_func ("/change/parts/append", GUINT_TO_POINTER (DO_APPEND), test_parts);
  for (guint what = 0; what < N_DO; what++)
    for (guint server = 0; server < G_N_ELEMENTS (servers); server++)
      {
        for (guint fault = 0; fault < MODEL_N_FAULTS; fault++)
          for (guint skip = 0; skip < 3; skip++)
            {
              g_autofree char *path = g_strdup_printf ("/change/fault/%s/%s/%s/%u", do_names[what],
                                                       servers[server].name, fault_names[fault],
                                                       skip);

              cases[n] = (Case) { what, fault, server, fault == MODEL_LIE ? 0 : (server + skip) % 4,
                                  skip };
              g_test_add_data_func (path, &cases[n++], test_fault);
            }
        g_autofree char *path = g_strdup_printf ("/change/killed/%s/%s", do_names[what],
                                                 servers[server].name);
        g_test_add_data_func (path, &cases[n - 3 * (MODEL_N_FAULTS - server)], test_killed);
      }
  return g_test_run ();
}
