/* SPDX-License-Identifier: MIT
 *
 * Somebody gives a mailbox another UIDVALIDITY while changes of ours are on their way, so that what
 * they name is another message by then: queued, sent, done and not answered, or while the daemon
 * was dead. A change that was acknowledged may come to nothing, and that is reported; no other
 * message is touched, none is lost, and what was written arrives or is in .mailfs/failed.
 */
#include "mail-harness.h"
#include "mail/change-private.h"
#include "mailfs/log.h"

#include <string.h>

#define DATE G_GINT64_CONSTANT (1000000000)
#define TURNS_MAX 22u

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

/* All of them of "mine", the second message of INBOX; "over" is the second one of Archive. */
typedef enum
{
  FLAGS,
  REMOVE,
  MOVE,
  MOVE_OVER,
  COPY,
  COPY_DATED,
  APPEND,
  REPLACE,
  RENAME_OVER,
  N_KINDS
} Kind;
static const char *const kinds[] = { "flags",      "remove", "move",    "move-over",  "copy",
                                     "copy-dated", "append", "replace", "rename-over" };

static const struct
{
  const char *name;
  ModelFault fault;
} faults[] = {
  { "answered", MODEL_GOOD },
  { "lost-before", MODEL_LOST_BEFORE },
  { "lost-after", MODEL_LOST_AFTER },
  { "down", MODEL_DOWN },
};

static void
deliver (Harness *harness, const char *mailbox, const char *token)
{
  g_autofree char *text = message_text (token);

  model_deliver (harness->server, mailbox, text, 0, DATE + (gint64)strlen (token));
}

/* Listed, and in a burst: what is asked for next is acknowledged at once. */
static Harness *
start (guint without)
{
  static const char *const tokens[] = { "one", "mine", "third", "warm" };
  Harness *harness = harness_new (ALL_CAPS & ~without);
  Told warm = { 0 };

  model_add_mailbox (harness->server, "Archive", NULL);
  model_add_mailbox (harness->server, "Bin", "\\Trash");
  for (guint i = 0; i < G_N_ELEMENTS (tokens); i++)
    deliver (harness, "INBOX", tokens[i]);
  deliver (harness, "Archive", "other");
  deliver (harness, "Archive", "over");
  harness_open (harness);
  g_autoptr (MailMailbox) inbox = get_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = get_mailbox (harness, "Archive");
  look (harness, inbox);
  look (harness, archive);
  mail_change_flags (harness->store, inbox, 4, MAIL_FLAG_ANSWERED, "", told, &warm);
  wait_good (harness, &warm);
  return harness;
}

static void
change (Harness *harness, Kind kind, Told *done)
{
  MailStore *store = harness->store;
  g_autoptr (MailMailbox) inbox = get_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = get_mailbox (harness, "Archive");
  g_autofree char *text = message_text ("written");
  g_autoptr (MailStaged) staged = NULL;
  g_autoptr (GError) error = NULL;

  switch (kind)
    {
    case FLAGS:
      mail_change_flags (store, inbox, 2, MAIL_FLAG_FLAGGED, "kept", told, done);
      break;
    case REMOVE:
      mail_change_remove (store, inbox, 2, told, done);
      break;
    case MOVE:
    case MOVE_OVER:
      mail_change_move (store, inbox, 2, archive, 0, "x", kind == MOVE ? 0 : 2, NULL, told, done);
      break;
    case COPY:
    case COPY_DATED:
      staged = mail_stage_create (store, archive, 0, "x", FALSE, &error);
      g_assert_no_error (error);
      g_assert_true (mail_staged_copy_from (staged, inbox, 2, NULL));
      if (kind == COPY_DATED)
        mail_staged_set_mtime (staged, DATE + 99);
      mail_staged_commit (staged, FALSE, told, done);
      break;
    case APPEND:
      staged = write_file (harness, archive, "x", text);
      mail_staged_commit (staged, FALSE, told, done);
      break;
    case REPLACE:
      staged = mail_stage_replacement (store, inbox, 2, "x", &error);
      g_assert_no_error (error);
      g_assert_true (mail_staged_write (staged, 0, text, strlen (text), NULL));
      mail_staged_commit (staged, FALSE, told, done);
      break;
    default:
      staged = mail_stage_create (store, archive, 0, ".x", TRUE, &error);
      g_assert_no_error (error);
      g_assert_true (mail_staged_write (staged, 0, text, strlen (text), NULL));
      mail_staged_rename (staged, archive, 0, "x", FALSE, 2, NULL, told, done);
      break;
    }
}

/* --- what must be so at the end ----------------------------------------------------------------
 */

/* Those of this token, and of no longer one. */
static guint
n_alive_of (Harness *harness, const char *name, const char *token)
{
  g_autofree char *text = g_strdup_printf ("text of %s\r", token);

  return n_alive (harness, name, text);
}

static guint
n_everywhere (Harness *harness, const char *token)
{
  return n_alive_of (harness, "INBOX", token) + n_alive_of (harness, "Archive", token)
         + n_alive_of (harness, "Bin", token);
}

/* Nobody has named it: it is where it was, as it was. */
static void
check_untouched (Harness *harness, const char *name, const char *token)
{
  g_autofree char *text = g_strdup_printf ("text of %s\r", token);
  const ModelMailbox *mailbox = model_mailbox (harness->server, name);

  g_assert_cmpuint (n_everywhere (harness, token), ==, 1);
  g_assert_cmpuint (n_alive_of (harness, name, token), ==, 1);
  for (guint i = 0; i < mailbox->messages->len; i++)
    {
      const ModelMessage *message = mailbox->messages->pdata[i];
      gsize length;
      const char *bytes = g_bytes_get_data (message->bytes, &length);

      if (memmem (bytes, length, text, strlen (text)) == NULL)
        continue;
      g_assert_cmpuint (message->flags, ==, 0);
      g_assert_cmpstr (message->keywords, ==, "");
    }
}

/* Readers see what the server has, and the bytes that belong to each. */
static void
check_shown (Harness *harness, const char *name)
{
  g_autoptr (MailMailbox) mailbox = get_mailbox (harness, name);
  ModelMailbox *model = model_mailbox (harness->server, name);
  MailMessage messages[32];

  look (harness, mailbox);
  guint n = mail_mailbox_next (mailbox, 0, messages, NULL, G_N_ELEMENTS (messages));
  g_assert_cmpuint (mail_stage_count (harness->store, mailbox), ==, 0);
  g_assert_cmpuint (n, <=, model->messages->len);
  if ((harness->server->caps & MAIL_CAP_EXPUNGE_UID) != 0)
    g_assert_cmpuint (n, ==, model->messages->len);
  for (guint i = 0; i < n; i++)
    {
      const ModelMessage *message = model_find (model, messages[i].uid);

      g_assert_nonnull (message);
      gsize length;
      const char *bytes = g_bytes_get_data (message->bytes, &length);
      g_autofree char *text = read_message (harness, mailbox, messages[i].uid);
      g_assert_cmpmem (text, strlen (text), bytes, length);
      g_assert_cmpuint (messages[i].flags, ==, message->flags);
      g_assert_cmpint (messages[i].internaldate, ==, message->date);
    }
}

static void
check (Harness *harness, Kind kind)
{
  gboolean two_steps = (harness->server->caps & MAIL_CAP_MOVE) == 0;
  gboolean writes = kind == APPEND || kind == REPLACE || kind == RENAME_OVER;
  guint mine = n_everywhere (harness, "mine"), over = n_everywhere (harness, "over");

  check_untouched (harness, "INBOX", "one");
  check_untouched (harness, "INBOX", "third");
  check_untouched (harness, "Archive", "other");
  g_assert_cmpuint (n_alive_of (harness, "INBOX", "warm"), ==, 1);
  g_assert_cmpuint (mine, >=, 1);
  g_assert_cmpuint (mine, <=, two_steps || kind == COPY || kind == COPY_DATED ? 2 : 1);
  g_assert_cmpuint (over, >=, 1);
  g_assert_cmpuint (over, <=, two_steps ? 2 : 1);
  if (kind == COPY || kind == COPY_DATED || kind == FLAGS || kind == APPEND)
    g_assert_cmpuint (n_alive_of (harness, "INBOX", "mine"), ==, 1);
  g_assert_cmpuint (n_everywhere (harness, "written") + n_failed (harness, "text of written"), ==,
                    writes);
  check_shown (harness, "INBOX");
  check_shown (harness, "Archive");
  check_shown (harness, "Bin");
}

/* --- at any moment -------------------------------------------------------------------------------
 */

/* The second one of INBOX is "one" now, and that of Archive "other". */
static void
renumber (Harness *harness, guint which)
{
  if (which % 3 != 0)
    model_renumber (harness->server, model_mailbox (harness->server, "INBOX"), 1, FALSE, 1);
  if (which % 3 != 1)
    model_renumber (harness->server, model_mailbox (harness->server, "Archive"), 1, TRUE, 0);
}

static void
look_at (Harness *harness, const char *name)
{
  g_autoptr (MailMailbox) mailbox = get_mailbox (harness, name);

  look (harness, mailbox);
}

typedef struct
{
  Kind kind;
  guint server, fault;
  gboolean killed;
} Row;

static void
test_moments (gconstpointer data)
{
  const Row *row = data;

  for (guint turns = row->server % 2; turns < TURNS_MAX; turns += row->killed ? 5 : 2)
    {
      Harness *harness = start (servers[row->server].without);
      Told done = { 0 };

      harness->server->rand = g_rand_new_with_seed (turns / 3);
      model_fault (harness->server, faults[row->fault].fault);
      change (harness, row->kind, &done);
      for (guint i = 0; i < turns; i++)
        if (!turn_once (harness))
          g_usleep (300);
      if (row->killed)
        {
          mail_index_flush (harness->store->index); /* the listings are known there */
          Harness *killed = harness_clone (harness);

          g_array_set_size (harness->server->faults, 0);
          settle (harness);
          wait_told (harness, &done);
          harness_free (harness);
          harness = killed;
          g_array_set_size (harness->server->faults, 0);
        }
      renumber (harness, turns);
      if (row->killed)
        harness_open (harness);
      if (turns % 4 > 1) /* readers hear of it first */
        {
          look_at (harness, "INBOX");
          look_at (harness, "Archive");
        }
      settle (harness);
      if (!row->killed)
        wait_told (harness, &done);
      told_clear (&done);
      check (harness, row->kind);
      g_assert_true (harness_close (harness));
      harness_open (harness);
      settle (harness);
      check (harness, row->kind);
      harness_free (harness);
    }
}

/* --- who is told
 * ----------------------------------------------------------------------------------
 */

/* It was acknowledged before the server was asked: the next one who does something there hears. */
static void
test_told (gconstpointer data)
{
  Kind kind = GPOINTER_TO_UINT (data);
  Harness *harness = start (0);
  Told done = { 0 }, drained = { 0 };

  change (harness, kind, &done);
  g_assert_true (done.called);
  wait_good (harness, &done);
  renumber (harness, 2);
  mail_store_drain (harness->store, NULL, told, &drained);
  g_assert_cmpint (wait_code (harness, &drained), ==, kind == APPEND ? -1 : MAIL_ERROR_STALE);
  check (harness, kind);
  harness_free (harness);
}

/* Whoever waits for the answer is told himself. */
static void
test_waiting (gconstpointer data)
{
  Kind kind = GPOINTER_TO_UINT (data);
  Harness *harness = start (0);
  MailChanges *changes = harness->store->changes;
  Told done = { 0 };

  g_mutex_lock (&changes->lock);
  changes->good_at = 0;
  g_mutex_unlock (&changes->lock);
  change (harness, kind, &done);
  g_assert_false (done.called);
  renumber (harness, 2);
  g_assert_cmpint (wait_code (harness, &done), ==, MAIL_ERROR_STALE);
  settle (harness);
  check (harness, kind);
  harness_free (harness);
}

/* Sent, and perhaps done: nothing has that UID any more, which does not mean that it was removed.
 */
static void
test_no_such_uid (void)
{
  Harness *harness = start (0);
  guint n_commands = harness->server->n_commands;
  Told done = { 0 }, drained = { 0 };

  model_fault (harness->server, MODEL_LOST_BEFORE);
  change (harness, REMOVE, &done);
  while (harness->server->n_commands == n_commands)
    if (!turn_once (harness))
      g_usleep (200);
  model_renumber (harness->server, model_mailbox (harness->server, "INBOX"), 10, FALSE, 0);
  do
    {
      told_clear (&drained);
      mail_store_drain (harness->store, NULL, told, &drained);
      wait_told (harness, &drained);
    }
  while (n_pending (harness) > 0);
  g_assert_error (drained.error, MAIL_ERROR, MAIL_ERROR_STALE);
  told_clear (&drained);
  told_clear (&done);
  check (harness, REMOVE);
  harness_free (harness);
}

/* --- what readers and writers of a file see ------------------------------------------------------
 */

/* What it was a copy of has no name any more: not what has its UID is read instead. */
static void
test_source (void)
{
  Harness *harness = start (0);
  g_autoptr (MailMailbox) inbox = get_mailbox (harness, "INBOX");
  g_autoptr (MailStaged) staged = mail_stage_create (harness->store, inbox, 0, "copy", FALSE, NULL);
  char buffer[256];
  guint32 uid = 0;

  g_assert_true (mail_staged_copy_from (staged, inbox, 2, NULL));
  g_autoptr (MailMailbox) source = mail_staged_message (staged, &uid);
  g_assert_true (source == inbox);
  g_assert_cmpuint (uid, ==, 2);
  renumber (harness, 1);
  look (harness, inbox);
  g_autoptr (MailMailbox) now = mail_staged_message (staged, &uid);
  g_assert_null (now);
  g_assert_cmpint (mail_staged_read (staged, 0, buffer, sizeof buffer, NULL), <, 0);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&source, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);
}

static const MailBackendOps *real_ops;
static MailCopyFunc copied;
static gpointer copied_data;
static guint32 copied_uidvalidity;
static MailUidPair copied_pair;

static void
hold_answer (guint32 uidvalidity, const MailUidPair *pairs, guint n_pairs, const GError *error,
             gpointer data)
{
  g_assert_no_error (error);
  g_assert_cmpuint (n_pairs, ==, 1);
  copied_uidvalidity = uidvalidity;
  copied_pair = pairs[0];
}

static void
copy_slowly (MailBackend *self, const char *mailbox, guint32 uidvalidity, const MailUidRange *uids,
             guint n_uids, const char *target, MailCopyFunc done, gpointer user_data)
{
  self->ops = real_ops;
  copied = done;
  copied_data = user_data;
  real_ops->copy (self, mailbox, uidvalidity, uids, n_uids, target, hold_answer, NULL);
}

/* When the answer comes its source is listed under other numbers: what has its UID there says
 * nothing of the copy. */
static void
test_answered_late (void)
{
  Harness *harness = start (0);
  MailBackend *backend = harness->store->backend;
  g_autoptr (MailMailbox) inbox = get_mailbox (harness, "INBOX");
  MailBackendOps ops = *backend->ops;
  Told done = { 0 };

  real_ops = backend->ops;
  ops.copy = copy_slowly;
  backend->ops = &ops;
  change (harness, COPY, &done);
  copied_uidvalidity = 0;
  while (copied_uidvalidity == 0)
    if (!turn_once (harness))
      g_usleep (200);
  renumber (harness, 1);
  look (harness, inbox);
  g_autofree char *text = read_message (harness, inbox, 2); /* and now its size is certain */
  g_assert_nonnull (strstr (text, "text of one"));
  copied (copied_uidvalidity, &copied_pair, 1, NULL, copied_data);
  settle (harness);
  told_clear (&done);
  check (harness, COPY);
  g_assert_cmpuint (n_alive_of (harness, "Archive", "mine"), ==, 1);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  harness_free (harness);
}

/* What an earlier run cached of a mailbox that the index does not know: nobody knows what it is of.
 */
static void
test_first_listing (void)
{
  Harness *harness = start (0);
  g_autoptr (MailMailbox) other = get_mailbox (harness, "Bin");
  static const char foreign[] = "Subject: foreign\r\n\r\nof another numbering\r\n";

  const ModelMessage *message = model_deliver (harness->server, "Bin",
                                               "Subject: own\r\n\r\nown\r\n", 0, DATE);
  g_autoptr (MailCacheFile) file = mail_cache_get (
      harness->store->cache, mail_mailbox_content_id (other), message->uid, 0);
  g_assert_true (
      mail_cache_file_write_whole (file, (const guint8 *)foreign, strlen (foreign), NULL));
  g_clear_pointer (&file, mail_cache_file_unref);
  g_clear_pointer (&other, mail_mailbox_unref);
  harness_close (harness);
  harness_open (harness);
  other = get_mailbox (harness, "Bin");
  look (harness, other);
  g_autofree char *text = read_message (harness, other, message->uid);
  g_assert_cmpstr (text, ==, "Subject: own\r\n\r\nown\r\n");
  g_clear_pointer (&other, mail_mailbox_unref);
  harness_free (harness);
}

/* The server has put it into a mailbox that we know by other numbers: whoever has it open does not
 * hold what has that UID here. */
static void
test_unseen (void)
{
  Harness *harness = start (0);
  g_autoptr (MailMailbox) inbox = get_mailbox (harness, "INBOX");
  g_autoptr (MailMailbox) archive = get_mailbox (harness, "Archive");
  g_autoptr (MailStaged) staged = mail_stage_create (harness->store, archive, 0, "x", FALSE, NULL);
  MailStagedInfo info;
  Told done = { 0 };

  g_assert_true (mail_staged_copy_from (staged, inbox, 2, NULL));
  renumber (harness, 0);
  mail_staged_commit (staged, TRUE, told, &done);
  wait_good (harness, &done);
  mail_staged_info (staged, &info);
  g_assert_cmpint (info.state, ==, MAIL_STAGED_DONE);
  g_autoptr (MailMailbox) where = mail_store_contents (harness->store, info.content_id);
  g_assert_null (where);
  check (harness, COPY);
  g_clear_pointer (&inbox, mail_mailbox_unref);
  g_clear_pointer (&archive, mail_mailbox_unref);
  g_clear_pointer (&staged, mail_staged_unref);
  harness_free (harness);
}

int
main (int argc, char **argv)
{
  static Row rows[N_KINDS * G_N_ELEMENTS (servers) * G_N_ELEMENTS (faults) * 2];
  guint n = 0;

  g_test_init (&argc, &argv, NULL);
  mail_log_init (MAIL_LOG_ERROR, FALSE);
  g_test_add_func ("/renumbered/source", test_source);
  g_test_add_func ("/renumbered/unseen", test_unseen);
  g_test_add_func ("/renumbered/first-listing", test_first_listing);
  g_test_add_func ("/renumbered/no-such-uid", test_no_such_uid);
  g_test_add_func ("/renumbered/answered-late", test_answered_late);
  for (guint kind = 0; kind < N_KINDS; kind++)
    {
      g_autofree char *told_path = g_strconcat ("/renumbered/told/", kinds[kind], NULL);
      g_autofree char *waiting_path = g_strconcat ("/renumbered/waiting/", kinds[kind], NULL);

      g_test_add_data_func (told_path, GUINT_TO_POINTER (kind), test_told);
      if (kind < COPY_DATED)
        g_test_add_data_func (waiting_path, GUINT_TO_POINTER (kind), test_waiting);
      for (guint server = 0; server < G_N_ELEMENTS (servers); server++)
        for (guint fault = 0; fault < G_N_ELEMENTS (faults); fault++)
          for (guint killed = 0; killed < 2; killed++)
            {
              g_autofree char *path = g_strconcat (
                  killed ? "/renumbered/killed/" : "/renumbered/moments/", kinds[kind], "/",
                  servers[server].name, "/", faults[fault].name, NULL);

              rows[n] = (Row) { kind, server, fault, killed };
              g_test_add_data_func (path, &rows[n++], test_moments);
            }
    }
  return g_test_run ();
}
