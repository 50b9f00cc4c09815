/* SPDX-License-Identifier: MIT
 *
 * The player of histories. What the store leaves to threads of its own is done here, in the one
 * thread, when the history says so: a history is the same each time, and a kill finds the index as
 * far behind as it can be. To be linked with --wrap of the functions below.
 */
#include "change-sequence.h"

#include "mail-harness.h"
#include "mail/change-private.h"
#include "mail/index-private.h"

#include <stdio.h>
#include <string.h>

#define DATE G_GINT64_CONSTANT (1000000000)
#define TURNS_MAX 200000u
#define MESSAGES_MAX 64u

/* One text; whatever carries it is the same message. */
typedef struct
{
  gboolean promised; /* somebody was told that it is there */
  gboolean may_go;   /* somebody wanted it gone for good */
  gboolean foreign;  /* another client has marked it \Deleted */
  gboolean handled;  /* it was moved or replaced: two commands, where the server has no MOVE */
  gboolean flagged;  /* the user has set flags of it */
  int instead;       /* this one took its place, and must be there when it is gone; 0: none */
  guint32 home;      /* which mailbox others delivered it to; 0: the user has written it */
  guint copies;      /* how often it may be there */
} Token;

/* What the user has open; once removed, what he writes to it is his affair. */
typedef struct
{
  MailStaged *staged;
  guint token;
} File;

typedef struct
{
  const guint8 *data, *end;
  gboolean verbose;
  Harness *harness;
  GArray *tokens; /* of Token */
  GArray *files;  /* of File: what the user has open */
  guint life;     /* which start of the daemon */
  guint n_waiting;
  gboolean refusing; /* a server that said no, or lied, was part of it */
  gboolean lying;
  gboolean renumbered; /* a mailbox was given another UIDVALIDITY */
  GRand *rand;

  GQueue jobs;     /* of the worker: MailJob */
  GQueue batches;  /* that the index has not been given yet: MailIndexBatch */
  gboolean ending; /* and now is, at once */
  guint moments;   /* until the kill; 0: none */
  Harness *killed;
  GArray *killed_tokens;
} Sequence;

static Sequence *playing;

static const char *const mailboxes[] = { "INBOX", "Archive", "Bin", "New", "New/sub", "Other" };

/* --- in place of the store's threads --------------------------------------------------------- */

void __real_mail_index_queue (MailIndex *index, MailIndexBatch *batch);
void __wrap_mail_index_queue (MailIndex *index, MailIndexBatch *batch);
void __real_mail_index_flush (MailIndex *index);
void __wrap_mail_index_flush (MailIndex *index);
gboolean __real_mail_journal_commit (MailJournal *journal, GError **error);
gboolean __wrap_mail_journal_commit (MailJournal *journal, GError **error);
gboolean __real_g_thread_pool_push (GThreadPool *pool, gpointer data, GError **error);
gboolean __wrap_g_thread_pool_push (GThreadPool *pool, gpointer data, GError **error);
void __wrap_mail_failpoint (const char *name);

static void
give_batches (MailIndex *index, guint n)
{
  MailIndexBatch *batch;

  while (n-- > 0 && (batch = g_queue_pop_head (&playing->batches)) != NULL)
    __real_mail_index_queue (index, batch);
}

void
__wrap_mail_index_queue (MailIndex *index, MailIndexBatch *batch)
{
  g_queue_push_tail (&playing->batches, batch);
  if (playing->ending)
    give_batches (index, G_MAXUINT);
}

void
__wrap_mail_index_flush (MailIndex *index)
{
  give_batches (index, G_MAXUINT);
  __real_mail_index_flush (index);
}

/* The daemon may be killed here. */
static void
moment (void)
{
  Sequence *s = playing;

  if (s->moments == 0 || --s->moments > 0 || s->harness->store == NULL)
    return;
  __real_mail_index_flush (s->harness->store->index);
  s->killed = harness_clone (s->harness);
  s->killed_tokens = g_array_copy (s->tokens);
}

gboolean
__wrap_mail_journal_commit (MailJournal *journal, GError **error)
{
  gboolean good = __real_mail_journal_commit (journal, error);

  moment ();
  return good;
}

void
__wrap_mail_failpoint (const char *name)
{
  moment ();
}

gboolean
__wrap_g_thread_pool_push (GThreadPool *pool, gpointer data, GError **error)
{
  g_queue_push_tail (&playing->jobs, data);
  return TRUE;
}

/* No clock: a try after a pause comes when the history says so, and a burst lasts until then. */
static void
stop_clocks (Sequence *s)
{
  MailStore *store = s->harness->store;

  if (store == NULL)
    return;
  if (store->refresh_timer != NULL)
    g_source_set_ready_time (store->refresh_timer, -1);
  if (store->changes->retry != NULL)
    g_source_set_ready_time (store->changes->retry, g_rand_int_range (s->rand, 0, 4) == 0 ? 0 : -1);
  if (store->changes->good_at != 0)
    store->changes->good_at = g_get_monotonic_time ();
}

static gboolean
turn (gpointer data)
{
  Sequence *s = data;
  MailJob *job = NULL;

  moment ();
  stop_clocks (s);
  if (g_rand_boolean (s->rand) || !g_main_context_iteration (s->harness->context, FALSE))
    job = g_queue_pop_head (&s->jobs);
  if (job != NULL)
    job->run (job);
  return job != NULL || g_main_context_pending (s->harness->context);
}

/* --- what is known of each message ----------------------------------------------------------- */

static void G_GNUC_PRINTF (2, 3) say (Sequence *s, const char *format, ...)
{
  va_list args;

  if (!s->verbose)
    return;
  va_start (args, format);
  vfprintf (stderr, format, args);
  va_end (args);
  fputc ('\n', stderr);
}

static Token *
token_at (Sequence *s, guint token)
{
  return &g_array_index (s->tokens, Token, token);
}

static guint
new_token (Sequence *s)
{
  Token token = { .copies = 1 };

  g_array_append_val (s->tokens, token);
  return s->tokens->len - 1;
}

static char *
token_text (guint token)
{
  g_autofree char *word = g_strdup_printf ("tok%u", token);

  return message_text (word);
}

/* The token of some bytes, or -1. */
static int
token_of (const char *bytes, gsize length)
{
  const char *at = memmem (bytes, length, "text of tok", 11);

  return at != NULL ? (int)g_ascii_strtoull (at + 11, NULL, 10) : -1;
}

static int
token_of_message (const ModelMessage *message)
{
  gsize length;
  const char *bytes = g_bytes_get_data (message->bytes, &length);

  return token_of (bytes, length);
}

static int
token_of_file (MailStaged *staged)
{
  g_autofree char *text = staged->has_spool ? read_staged (staged) : g_strdup ("");

  return token_of (text, strlen (text));
}

/* --- who waits for an answer ----------------------------------------------------------------- */

typedef struct
{
  Sequence *s;
  guint life;
  int token; /* what is there when the answer is good; -1: nothing new */
  const char *what;
  gboolean answered;
} Wait;

static void
answered (const GError *error, gpointer data)
{
  Wait *wait = data;
  Sequence *s = wait->s;

  s->n_waiting--;
  say (s, "    %s: %s", wait->what, error != NULL ? error->message : "good");
  if (wait->life == s->life && error == NULL && wait->token >= 0)
    token_at (s, (guint)wait->token)->promised = TRUE;
  g_free (wait);
}

static Wait *
wait_for (Sequence *s, const char *what, int token)
{
  Wait *wait = g_new0 (Wait, 1);

  wait->s = s;
  wait->life = s->life;
  wait->token = token;
  wait->what = what;
  s->n_waiting++;
  return wait;
}

/* --- life ------------------------------------------------------------------------------------ */

static void
forget_files (Sequence *s)
{
  for (guint i = 0; i < s->files->len; i++)
    mail_staged_unref (g_array_index (s->files, File, i).staged);
  g_array_set_size (s->files, 0);
}

static void
look_at (Sequence *s, const char *name)
{
  g_autoptr (MailMailbox) mailbox = get_mailbox (s->harness, name);

  if (mailbox != NULL)
    look (s->harness, mailbox);
}

static void
begin_life (Sequence *s)
{
  s->harness->turn = turn;
  s->harness->turn_data = s;
  s->life++;
  harness_open (s->harness);
}

static void
end_life (Sequence *s)
{
  forget_files (s);
  s->ending = TRUE;
  give_batches (s->harness->store->index, G_MAXUINT);
  harness_close (s->harness);
  s->ending = FALSE;
  g_assert_cmpuint (s->n_waiting, ==, 0);
  g_assert_cmpuint (s->jobs.length, ==, 0);
  g_assert_cmpuint (s->batches.length, ==, 0);
}

/* The kill has come: what happened since did not happen. */
static void
go_on_killed (Sequence *s)
{
  if (s->killed == NULL)
    return;
  say (s, "  -- killed");
  s->moments = 0;
  s->harness->server->down = TRUE;
  g_array_set_size (s->harness->server->faults, 0);
  s->life++;
  end_life (s);
  harness_free (s->harness);
  s->harness = g_steal_pointer (&s->killed);
  g_array_unref (s->tokens);
  s->tokens = g_steal_pointer (&s->killed_tokens);
  s->harness->server->down = FALSE;
  begin_life (s);
}

static void
turns (Sequence *s, guint n)
{
  while (n-- > 0 && s->killed == NULL)
    turn_once (s->harness);
}

/* Until nothing is under way any more; nobody waits for a clock. */
static void
settle_all (Sequence *s)
{
  for (guint i = 0; s->killed == NULL; i++)
    {
      MailChanges *changes = s->harness->store->changes;

      g_assert_cmpuint (i, <, TURNS_MAX);
      if (turn_once (s->harness))
        continue;
      g_mutex_lock (&changes->lock);
      guint n = changes->queue.length;
      changes->urgent = TRUE;
      g_mutex_unlock (&changes->lock);
      if (n == 0 && s->n_waiting == 0 && changes->running->len == 0 && s->jobs.length == 0
          && s->harness->store->fetches != NULL)
        return;
      mail_changes_kick (changes);
    }
}

/* --- the bytes ------------------------------------------------------------------------------- */

static guint8
next (Sequence *s)
{
  return s->data < s->end ? *s->data++ : 0;
}

static MailMailbox *
next_mailbox (Sequence *s)
{
  return get_mailbox (s->harness, mailboxes[next (s) % G_N_ELEMENTS (mailboxes)]);
}

/* A message the user sees, that no other client has marked; its token, or -1. In a mailbox that was
 * numbered anew he means the one that had the UID when the mount last looked. */
static int
pick (Sequence *s, MailMailbox *mailbox, guint8 which, guint32 *uid_out)
{
  MailMessage messages[MESSAGES_MAX];
  guint n = mailbox != NULL ? mail_mailbox_next (mailbox, 0, messages, NULL, MESSAGES_MAX) : 0;
  ModelMailbox *model = n > 0
                            ? model_numbered (s->harness->server, mail_effect_uidvalidity (mailbox))
                            : NULL;

  if (model == NULL)
    return -1;
  const MailMessage *message = &messages[which % n];
  const ModelMessage *there = model_find (model, message->uid);
  *uid_out = message->uid;
  if (there == NULL || (there->flags & MAIL_FLAG_DELETED) != 0)
    return -1;
  return token_of_message (there);
}

/* What is removed from here is gone for good, not in the trash. */
static gboolean
is_final (Sequence *s, MailMailbox *mailbox)
{
  g_autofree char *name = mail_folder_name (mailbox);

  return strcmp (s->harness->trash, "none") == 0 || g_strcmp0 (name, "Bin") == 0;
}

static void
will_remove (Sequence *s, MailMailbox *mailbox, int token)
{
  Token *known = token_at (s, (guint)token);

  known->may_go |= is_final (s, mailbox);
  known->handled = TRUE;
}

/* What took the place of a message that is gone for good is there. Token 0 never does. */
static void
will_replace (Sequence *s, MailMailbox *mailbox, int token, int by)
{
  Token *known = token_at (s, (guint)token);

  known->handled = TRUE;
  if (!is_final (s, mailbox))
    return;
  known->may_go |= by <= 0 || (known->instead != 0 && known->instead != by);
  known->instead = MAX (by, 0);
}

/* What is being written in its place goes with a message that is removed. */
static void
will_drop_replacement (Sequence *s, MailMailbox *mailbox, guint32 uid)
{
  g_autoptr (MailStaged) staged = mail_stage_find_replacement (
      s->harness->store, mail_mailbox_content_id (mailbox), uid);

  int token = staged != NULL ? token_of_file (staged) : -1;

  if (token >= 0)
    token_at (s, (guint)token)->may_go = token_at (s, (guint)token)->handled = TRUE;
}

static File *
pick_file (Sequence *s)
{
  guint8 which = next (s);

  return s->files->len > 0 ? &g_array_index (s->files, File, which % s->files->len) : NULL;
}

/* --- what users do --------------------------------------------------------------------------- */

static void
user_flags (Sequence *s)
{
  g_autoptr (MailMailbox) mailbox = next_mailbox (s);
  static const guint8 sets[] = { 0, MAIL_FLAG_SEEN, MAIL_FLAG_FLAGGED, MAIL_FLAG_ANSWERED };
  guint32 uid = 0;
  guint8 which = next (s), flags = next (s);
  int token = pick (s, mailbox, which, &uid);

  if (token < 0)
    return;
  say (s, "flags tok%d (%u)", token, uid);
  token_at (s, (guint)token)->flagged = TRUE;
  mail_change_flags (s->harness->store, mailbox, uid, sets[flags % 4],
                     flags & 4 ? "alpha beta" : "", answered, wait_for (s, "flags", -1));
}

static void
user_remove (Sequence *s)
{
  g_autoptr (MailMailbox) mailbox = next_mailbox (s);
  guint32 uid = 0;
  int token = pick (s, mailbox, next (s), &uid);

  if (token < 0)
    return;
  say (s, "remove tok%d (%u)", token, uid);
  will_remove (s, mailbox, token);
  will_drop_replacement (s, mailbox, uid);
  mail_change_remove (s->harness->store, mailbox, uid, answered, wait_for (s, "remove", -1));
}

static void
user_move (Sequence *s)
{
  g_autoptr (MailMailbox) mailbox = next_mailbox (s);
  guint32 uid = 0, replaced_uid = 0;
  int token = pick (s, mailbox, next (s), &uid);
  g_autoptr (MailMailbox) target = next_mailbox (s);
  guint8 which = next (s);
  g_autofree char *name = g_strdup_printf ("moved%u", which % 4);
  int replaced = which >= 128 ? pick (s, target, which & 127, &replaced_uid) : -1;

  if (token < 0 || target == NULL || target == mailbox)
    return;
  say (s, "move tok%d (%u) over tok%d (%u)", token, uid, replaced, replaced_uid);
  token_at (s, (guint)token)->handled = TRUE;
  if (replaced >= 0)
    will_replace (s, target, replaced, token);
  mail_change_move (s->harness->store, mailbox, uid, target, 0, which & 64 ? NULL : name,
                    replaced >= 0 ? replaced_uid : 0, NULL, answered, wait_for (s, "move", -1));
}

static void
add_file (Sequence *s, MailStaged *staged, guint token)
{
  File file = { staged, token };

  g_array_append_val (s->files, file);
}

/* FALSE: it is refused, and what was in it is there still. */
static gboolean
write_token (MailStaged *staged, guint token)
{
  g_autofree char *text = token_text (token);
  g_autoptr (GError) error = NULL;

  if (!mail_staged_truncate (staged, 0, &error))
    return FALSE;
  mail_staged_write (staged, 0, text, strlen (text), &error);
  return TRUE;
}

static void
commit (Sequence *s, const File *file, gboolean wait)
{
  say (s, "commit tok%u", file->token);
  mail_staged_commit (file->staged, wait, answered,
                      wait_for (s, "commit", wait ? (int)file->token : -1));
}

static void
user_create (Sequence *s)
{
  g_autoptr (MailMailbox) mailbox = next_mailbox (s);
  guint8 how = next (s);
  gboolean temporary = (how & 1) != 0;

  if (mailbox == NULL)
    return;
  guint token = new_token (s);
  g_autofree char *name = g_strdup_printf ("%sfile%u", temporary ? "." : "", token);
  MailStaged *staged = mail_stage_create (s->harness->store, mailbox, 0, name, temporary, NULL);
  if (staged == NULL)
    return;
  say (s, "create tok%u%s", token, temporary ? " (temporary)" : "");
  write_token (staged, token);
  add_file (s, staged, token);
  if (!temporary && (how & 2) == 0)
    mail_staged_commit (staged, (how & 4) != 0, answered, wait_for (s, "create", (int)token));
}

static void
user_replace (Sequence *s)
{
  g_autoptr (MailMailbox) mailbox = next_mailbox (s);
  guint32 uid = 0;
  int old = pick (s, mailbox, next (s), &uid);
  guint8 how = next (s);

  if (old < 0)
    return;
  will_drop_replacement (s, mailbox, uid);
  MailStaged *staged = mail_stage_replacement (s->harness->store, mailbox, uid, "uid", NULL);
  if (staged == NULL)
    return;
  guint token = new_token (s);
  say (s, "replace tok%d (%u) by tok%u", old, uid, token);
  for (guint i = 0; i < s->files->len; i++)
    if (g_array_index (s->files, File, i).staged == staged)
      {
        File *same = &g_array_index (s->files, File, i);

        token_at (s, same->token)->may_go = TRUE;
        token_at (s, same->token)->handled = TRUE;
        same->token = token;
      }
  will_replace (s, mailbox, old, (int)token);
  write_token (staged, token);
  add_file (s, staged, token);
  if ((how & 1) == 0)
    mail_staged_commit (staged, (how & 2) != 0, answered, wait_for (s, "replace", (int)token));
}

static void
user_rewrite (Sequence *s)
{
  File *file = pick_file (s);
  guint8 how = next (s);

  if (file == NULL)
    return;
  guint token = new_token (s);
  MailStagedInfo info;
  mail_staged_info (file->staged, &info);
  token_at (s, token)->may_go = info.state == MAIL_STAGED_DROPPED;
  say (s, "rewrite tok%u as tok%u", file->token, token);
  if (!write_token (file->staged, token))
    return; /* a copy that the server is about to make */
  for (guint i = 0; i < s->files->len; i++)
    {
      File *same = &g_array_index (s->files, File, i);

      if (same->staged != file->staged)
        continue;
      token_at (s, same->token)->may_go = TRUE;
      token_at (s, same->token)->handled = TRUE;
      same->token = token;
    }
  if ((how & 1) == 0)
    mail_staged_commit (file->staged, (how & 2) != 0, answered, wait_for (s, "rewrite", -1));
}

static void
user_commit (Sequence *s)
{
  const File *file = pick_file (s);
  guint8 how = next (s);

  if (file != NULL)
    commit (s, file, (how & 1) != 0);
}

static void
user_rename (Sequence *s)
{
  const File *file = pick_file (s);
  g_autoptr (MailMailbox) target = next_mailbox (s);
  guint8 how = next (s);
  guint32 replaced_uid = 0;
  gboolean temporary = (how & 1) != 0 && (how & 4) != 0;
  int replaced = (how & 2) != 0 && !temporary ? pick (s, target, how >> 4, &replaced_uid) : -1;
  g_autofree char *name = g_strdup_printf ("%srenamed%u", temporary ? "." : "", how >> 4);

  if (file == NULL || target == NULL)
    return;
  MailStagedInfo info;
  mail_staged_info (file->staged, &info);
  if (replaced == (int)file->token || info.replaces_uid != 0 || info.state == MAIL_STAGED_DROPPED)
    return;
  say (s, "rename tok%u over tok%d (%u)%s", file->token, replaced, replaced_uid,
       temporary ? " temporary" : "");
  if (replaced >= 0)
    will_replace (s, target, replaced, (int)file->token);
  token_at (s, file->token)->handled = TRUE;
  g_autoptr (MailStaged) other = mail_stage_lookup (s->harness->store, target, 0, name);
  if (other != NULL && other->placeholder)
    return;
  int lost = other != NULL ? token_of_file (other) : -1;
  if (lost >= 0)
    token_at (s, (guint)lost)->may_go = TRUE;
  mail_staged_rename (file->staged, target, 0, name, temporary, replaced >= 0 ? replaced_uid : 0,
                      other != file->staged ? other : NULL, answered, wait_for (s, "rename", -1));
}

static void
user_drop (Sequence *s)
{
  File *file = pick_file (s);

  if (file == NULL)
    return;
  MailStagedInfo info;
  mail_staged_info (file->staged, &info);
  g_autoptr (MailMailbox) mailbox = info.state == MAIL_STAGED_DONE
                                        ? mail_store_contents (s->harness->store, info.content_id)
                                        : NULL;
  if (mailbox != NULL)
    will_drop_replacement (s, mailbox, info.uid);
  say (s, "drop tok%u", file->token);
  token_at (s, file->token)->may_go = TRUE;
  token_at (s, file->token)->handled = TRUE;
  mail_staged_drop (file->staged, answered, wait_for (s, "drop", -1));
}

static void
user_forget (Sequence *s)
{
  const File *file = pick_file (s);

  if (file == NULL)
    return;
  guint at = (guint)(file - (File *)s->files->data);
  g_autoptr (MailStaged) staged = file->staged;
  say (s, "forget tok%u", file->token);
  g_array_remove_index (s->files, at);
  for (guint i = 0; i < s->files->len; i++)
    if (g_array_index (s->files, File, i).staged == staged)
      return;
  mail_staged_forget (staged, staged->n_emptied);
}

static void
user_copy (Sequence *s)
{
  g_autoptr (MailMailbox) mailbox = next_mailbox (s);
  guint32 uid = 0;
  int token = pick (s, mailbox, next (s), &uid);
  g_autoptr (MailMailbox) target = next_mailbox (s);
  guint8 how = next (s);
  g_autofree char *name = g_strdup_printf ("copy%u", s->tokens->len);

  if (token < 0 || target == NULL)
    return;
  MailStaged *staged = mail_stage_create (s->harness->store, target, 0, name, FALSE, NULL);
  if (staged == NULL)
    return;
  say (s, "copy tok%d (%u)", token, uid);
  add_file (s, staged, (guint)token);
  if (!mail_staged_copy_from (staged, mailbox, uid, NULL))
    return;
  token_at (s, (guint)token)->copies++;
  if ((how & 1) != 0)
    mail_staged_set_mtime (staged, DATE + 99); /* another date: a new message */
  mail_staged_commit (staged, FALSE, answered, wait_for (s, "copy", -1));
}

/* What stands where a message is on its way to: dropped, or moved on. */
static void
user_placeholder (Sequence *s)
{
  g_autoptr (MailMailbox) mailbox = next_mailbox (s);
  g_autoptr (MailStaged) staged = mailbox != NULL
                                      ? mail_stage_next (s->harness->store, mailbox, 0, 0)
                                      : NULL;
  g_autoptr (MailMailbox) target = next_mailbox (s);
  guint8 how = next (s);

  if (staged == NULL || target == NULL || !staged->placeholder)
    return;
  guint32 replaced_uid = 0;
  int replaced = (how & 1) == 0 && how >= 192 ? pick (s, target, how >> 1 & 31, &replaced_uid) : -1;
  say (s, "placeholder %u: %s over tok%d (%u)", staged->source_uid,
       how & 1 ? "dropped" : "moved on", replaced, replaced_uid);
  if (replaced >= 0)
    will_remove (s, target, replaced);
  if ((how & 1) == 0)
    mail_staged_rename (staged, target, 0, "moved on", FALSE, replaced >= 0 ? replaced_uid : 0,
                        NULL, answered, wait_for (s, "move on", -1));
  else
    {
      for (guint i = 0; i < s->tokens->len; i++)
        token_at (s, i)->may_go |= is_final (s, mailbox) || is_final (s, staged->source);
      mail_staged_drop (staged, answered, wait_for (s, "drop", -1));
    }
}

static void
user_folder (Sequence *s)
{
  static const char *const leaves[] = { "New", "Other" };
  guint8 what = next (s);
  g_autoptr (MailMailbox) root = mail_store_mailbox (s->harness->store, MAIL_ROOT_ID);
  g_autoptr (MailMailbox) new = get_mailbox (s->harness, "New");
  g_autoptr (MailMailbox) mailbox = get_mailbox (s->harness, mailboxes[3 + (what >> 4) % 3]);
  guint before = s->n_waiting;

  switch (what % 4)
    {
    case 0:
      mail_change_mkdir (s->harness->store, root, leaves[(what >> 2) % 2], answered,
                         wait_for (s, "mkdir", -1));
      break;
    case 1:
      if (new != NULL)
        mail_change_mkdir (s->harness->store, new, "sub", answered, wait_for (s, "mkdir", -1));
      break;
    case 2:
      if (mailbox != NULL)
        mail_change_rmdir (s->harness->store, mailbox, answered, wait_for (s, "rmdir", -1));
      break;
    default:
      if (mailbox != NULL)
        mail_change_rename_mailbox (s->harness->store, mailbox, root, leaves[(what >> 2) % 2],
                                    (what & 8) != 0, answered, wait_for (s, "rename", -1));
      break;
    }
  if (s->n_waiting == before)
    return;
  /* Nobody delivers into a mailbox between the look and its end. */
  say (s, "folder %u", what % 4);
  settle_all (s);
}

/* --- what others do, and what goes wrong ----------------------------------------------------- */

static ModelMailbox *
next_model (Sequence *s)
{
  return model_mailbox (s->harness->server, mailboxes[next (s) % G_N_ELEMENTS (mailboxes)]);
}

static ModelMessage *
pick_model (ModelMailbox *mailbox, guint8 which)
{
  return mailbox != NULL && mailbox->messages->len > 0
             ? mailbox->messages->pdata[which % mailbox->messages->len]
             : NULL;
}

static void
others_deliver (Sequence *s)
{
  const ModelMailbox *mailbox = next_model (s);
  gboolean foreign = next (s) % 8 == 7;

  if (mailbox == NULL)
    return;
  guint token = new_token (s);
  g_autofree char *text = token_text (token);
  say (s, "others deliver tok%u to %s", token, mailbox->name);
  model_deliver (s->harness->server, mailbox->name, text, foreign ? MAIL_FLAG_DELETED : 0, DATE);
  token_at (s, token)->promised = TRUE;
  token_at (s, token)->foreign = foreign;
  token_at (s, token)->home = mailbox->id;
}

static void
others_expunge (Sequence *s)
{
  ModelMailbox *mailbox = next_model (s);
  const ModelMessage *message = pick_model (mailbox, next (s));

  if (message == NULL)
    return;
  int token = token_of_message (message);
  say (s, "others expunge tok%d", token);
  token_at (s, (guint)token)->may_go = TRUE;
  model_expunge (mailbox, message->uid);
}

/* Somebody restores it from a backup: another UIDVALIDITY, and what had a UID may have another one,
 * which may have been that of another message. */
static void
others_renumber (Sequence *s, ModelMailbox *mailbox, guint how)
{
  const guint32 firsts[] = { 1, 1, 2, mailbox->uidnext };

  model_renumber (s->harness->server, mailbox, firsts[how % 4], (how & 4) != 0, how >> 3);
  s->renumbered = TRUE;
  say (s, "others number %s anew", mailbox->name);
  for (guint i = 0; i < mailbox->messages->len; i++)
    {
      const ModelMessage *message = mailbox->messages->pdata[i];

      say (s, "    tok%d is %u", token_of_message (message), message->uid);
    }
}

static void
others_flag (Sequence *s)
{
  ModelMailbox *mailbox = next_model (s);
  guint8 which = next (s);
  ModelMessage *message = pick_model (mailbox, which);

  if (mailbox != NULL && which >= 192)
    {
      others_renumber (s, mailbox, which - 192);
      return;
    }
  if (message == NULL)
    return;
  say (s, "others flag tok%d", token_of_message (message));
  model_set_flags (mailbox, message, message->flags ^ MAIL_FLAG_DRAFT, "theirs");
}

static void
add_fault (Sequence *s)
{
  guint8 byte = next (s);
  ModelFault fault = byte % MODEL_N_FAULTS;

  for (guint i = 0; i < byte / 64; i++)
    model_fault (s->harness->server, MODEL_GOOD);
  say (s, "fault %u", fault);
  model_fault (s->harness->server, fault);
  s->lying |= fault == MODEL_LIE;
  s->refusing |= fault == MODEL_REFUSED || fault == MODEL_OVER_QUOTA || fault == MODEL_LIE;
}

static void
pass_time (Sequence *s)
{
  guint8 n = next (s);

  turns (s, n);
}

static void
write_index (Sequence *s)
{
  give_batches (s->harness->store->index, next (s));
}

static void
look_again (Sequence *s)
{
  const char *name = mailboxes[next (s) % G_N_ELEMENTS (mailboxes)];

  say (s, "look at %s", name);
  look_at (s, name);
}

static void
everything_answered (Sequence *s)
{
  say (s, "settle");
  settle_all (s);
}

static void
arm_kill (Sequence *s)
{
  guint8 n = next (s);

  if (s->killed == NULL)
    s->moments = 1 + n;
  say (s, "kill in %u", s->moments);
}

static void
unmount (Sequence *s)
{
  if (s->killed != NULL)
    return;
  say (s, "unmount");
  s->harness->server->down = FALSE;
  end_life (s);
  begin_life (s);
}

static void
burst_ends (Sequence *s)
{
  MailChanges *changes = s->harness->store->changes;

  g_mutex_lock (&changes->lock);
  changes->good_at = 0;
  g_mutex_unlock (&changes->lock);
}

static void (*const steps[]) (Sequence *) = {
  user_flags,     user_remove,      user_move,           user_create,    user_replace,
  user_rewrite,   user_commit,      user_rename,         user_drop,      user_forget,
  user_copy,      user_placeholder, user_folder,         others_deliver, others_flag,
  add_fault,      others_expunge,   pass_time,           write_index,    look_again,
  arm_kill,       unmount,          everything_answered, burst_ends,     user_move,
  user_remove,    user_replace,     pass_time,           arm_kill,       user_create,
  others_deliver, pass_time,
};

/* --- at the end ------------------------------------------------------------------------------ */

/* Bytes that are kept here: failed, or still being written. */
static void
count_kept (Sequence *s, guint *n)
{
  MailChanges *changes = s->harness->store->changes;
  GHashTableIter iter;
  gpointer value;

  g_hash_table_iter_init (&iter, changes->staged);
  while (g_hash_table_iter_next (&iter, NULL, &value))
    {
      MailStaged *staged = value;

      g_assert_cmpint (staged->state, !=, MAIL_STAGED_QUEUED);
      if (staged->state == MAIL_STAGED_DONE || !staged->has_spool)
        continue;
      int token = token_of_file (staged);
      if (token >= 0)
        n[token]++;
    }
}

/* Without UIDPLUS what we remove is only marked. n_home: those that are where they came to. */
static void
count_model (Sequence *s, const ModelMailbox *mailbox, guint *n, guint *n_home)
{
  for (guint i = 0; i < mailbox->messages->len; i++)
    {
      const ModelMessage *message = mailbox->messages->pdata[i];
      int token = token_of_message (message);

      g_assert_cmpint (token, >=, 0);
      g_assert_cmpint (token, <, (int)s->tokens->len);
      const Token *known = token_at (s, (guint)token);
      gboolean there = (message->flags & MAIL_FLAG_DELETED) == 0 || known->foreign;
      n[token] += there;
      n_home[token] += there && mailbox->id == known->home;
    }
}

/* What the user asked of one message was not done to another one: who has not been named stays
 * where it came to, and has no flags of his. */
static void
check_untouched (Sequence *s, const ModelMailbox *mailbox)
{
  for (guint i = 0; i < mailbox->messages->len; i++)
    {
      const ModelMessage *message = mailbox->messages->pdata[i];
      int token = token_of_message (message);
      const Token *known = token_at (s, (guint)token);

      if (known->home == 0 || known->flagged)
        continue;
      if ((message->flags & (MAIL_FLAG_SEEN | MAIL_FLAG_FLAGGED | MAIL_FLAG_ANSWERED)) != 0
          || strstr (message->keywords, "alpha") != NULL)
        {
          say (s, "tok%d has flags of another one", token);
          g_assert_not_reached ();
        }
    }
}

static void
check_message (Sequence *s, MailMailbox *mailbox, const MailMessage *seen,
               const ModelMessage *message)
{
  gsize length;
  const char *bytes = g_bytes_get_data (message->bytes, &length);
  g_autofree char *text = read_message (s->harness, mailbox, seen->uid);

  g_assert_cmpmem (text, strlen (text), bytes, length);
  if (s->lying)
    return; /* a server that says OK to flags and forgets them is not seen through */
  g_assert_cmpuint (seen->flags, ==, message->flags);
  g_assert_cmpstr (mail_store_keywords (s->harness->store, seen->keywords), ==, message->keywords);
}

/* Whether a file that is still being written has been renamed over this message: it has its name,
 * and the message goes only when the server has the file. */
static gboolean
is_covered (Sequence *s, MailMailbox *mailbox, guint32 uid)
{
  guint32 content_id = mail_mailbox_content_id (mailbox);
  GHashTableIter iter;
  gpointer value;

  g_hash_table_iter_init (&iter, s->harness->store->changes->staged);
  while (g_hash_table_iter_next (&iter, NULL, &value))
    {
      const MailStaged *staged = value;

      if (staged->state == MAIL_STAGED_LOCAL && staged->listed && !staged->in_place
          && staged->replaces_content == content_id && staged->replaces_uid == uid)
        return TRUE;
    }
  return FALSE;
}

/* The mount shows what the server has. */
static void
check_shown (Sequence *s, ModelMailbox *model)
{
  g_autoptr (MailMailbox) mailbox = get_mailbox (s->harness, model->name);
  MailMessage messages[MESSAGES_MAX];
  gboolean expunges = (s->harness->server->caps & MAIL_CAP_EXPUNGE_UID) != 0;
  guint at = 0;

  g_assert_nonnull (mailbox);
  look (s->harness, mailbox);
  guint n = mail_mailbox_next (mailbox, 0, messages, NULL, MESSAGES_MAX);
  g_assert_cmpuint (n, <, MESSAGES_MAX);
  for (guint i = 0; i < n; i++)
    if (model_find (model, messages[i].uid) == NULL)
      {
        say (s, "%u is shown and is not in %s", messages[i].uid, model->name);
        g_assert_not_reached ();
      }
  for (guint i = 0; i < model->messages->len; i++)
    {
      const ModelMessage *message = model->messages->pdata[i];
      gboolean marked = (message->flags & MAIL_FLAG_DELETED) != 0;

      if (at < n && messages[at].uid == message->uid)
        check_message (s, mailbox, &messages[at++], message);
      else if ((!marked || expunges) && !is_covered (s, mailbox, message->uid))
        {
          say (s, "tok%d (%u) of %s is hidden", token_of_message (message), message->uid,
               model->name);
          g_assert_not_reached ();
        }
    }
  g_assert_cmpuint (at, ==, n); /* and nothing else */
}

static gboolean
may_be_gone (Sequence *s, const guint *n, guint token)
{
  for (guint i = 0; i < s->tokens->len; i++)
    {
      const Token *known = token_at (s, token);

      if (known->may_go || known->instead == 0)
        return known->may_go;
      token = (guint)known->instead;
      if (n[token] > 0)
        return TRUE;
    }
  return TRUE;
}

/* Of a mailbox that is numbered anew while the user changes something in it: what he asked of a
 * message may come to nothing, and he is told; a move in two steps leaves both. All else is
 * promised as ever: no message is lost, what he wrote is on the server or in failed, once, and
 * whoever has the old UIDs by now is left alone. */
static void
check (Sequence *s)
{
  g_autofree guint *n = g_new0 (guint, s->tokens->len);
  g_autofree guint *n_home = g_new0 (guint, s->tokens->len);
  ModelServer *server = s->harness->server;
  gboolean two_steps = (server->caps & MAIL_CAP_MOVE) == 0;

  for (guint i = 0; i < server->mailboxes->len; i++)
    check_shown (s, server->mailboxes->pdata[i]);
  for (guint i = 0; i < server->mailboxes->len; i++)
    {
      count_model (s, server->mailboxes->pdata[i], n, n_home);
      check_untouched (s, server->mailboxes->pdata[i]);
    }
  count_kept (s, n);
  for (guint i = 0; i < s->tokens->len; i++)
    {
      const Token *token = token_at (s, i);
      /* Copied, and the original was not to be removed, or has no name any more by which it could
       * be: the user was told. */
      gboolean both = two_steps && (s->refusing || s->renumbered) && token->handled;

      if (token->home != 0 && !token->handled && !token->may_go && n_home[i] == 0)
        {
          say (s, "tok%u was taken away", i);
          g_assert_not_reached ();
        }
      gboolean gone = n[i] == 0 && token->promised && !may_be_gone (s, n, i);

      if (gone || (n[i] > token->copies && !both))
        {
          say (s, "tok%u is there %u times", i, n[i]);
          g_assert_false (gone);
          g_assert_cmpuint (n[i], <=, token->copies);
        }
    }
}

static void
finish (Sequence *s)
{
  ModelServer *server;

  do
    {
      go_on_killed (s);
      server = s->harness->server;
      server->down = FALSE;
      settle_all (s);
      g_array_set_size (server->faults, 0);
      mail_tree_refresh (s->harness->store);
      settle_all (s);
    }
  while (s->killed != NULL);
  s->moments = 0;
  check (s);
  end_life (s);
  begin_life (s);
  settle_all (s);
  check (s);
}

/* The first bytes choose the server and the account. */
static void
start (Sequence *s)
{
  static const guint without[] = { 0, MAIL_CAP_MOVE, MAIL_CAP_EXPUNGE_UID,
                                   MAIL_CAP_MOVE | MAIL_CAP_EXPUNGE_UID };
  guint8 server = next (s), account = next (s);

  s->rand = g_rand_new_with_seed (next (s));
  s->harness = harness_new (ALL_CAPS & ~without[server % 4]);
  s->harness->server->sync_mode = (server >> 2) % 4;
  s->harness->server->rand = g_rand_new_with_seed (server);
  s->harness->trash = (account & 1) != 0 ? "none" : "auto";
  s->harness->sync = (account & 2) != 0;
  model_add_mailbox (s->harness->server, "Archive", NULL);
  model_add_mailbox (s->harness->server, "Bin", "\\Trash");
  for (guint i = 0; i < 5; i++)
    {
      guint token = new_token (s);
      g_autofree char *text = token_text (token);

      model_deliver (s->harness->server, mailboxes[i % 2], text, i == 4 ? MAIL_FLAG_DELETED : 0,
                     DATE + i);
      token_at (s, token)->promised = TRUE;
      token_at (s, token)->foreign = i == 4;
      token_at (s, token)->home = model_mailbox (s->harness->server, mailboxes[i % 2])->id;
    }
  begin_life (s);
  for (guint i = 0; i < 3; i++)
    if ((account >> (2 + i) & 1) == 0)
      look_at (s, mailboxes[i]);
}

void
change_sequence_run (const guint8 *data, gsize size, gboolean verbose)
{
  Sequence s = { .data = data, .end = data + size, .verbose = verbose };

  playing = &s;
  s.tokens = g_array_new (FALSE, FALSE, sizeof (Token));
  s.files = g_array_new (FALSE, FALSE, sizeof (File));
  start (&s);
  while (s.data < s.end && s.tokens->len < MESSAGES_MAX / 2)
    {
      stop_clocks (&s);
      steps[next (&s) % G_N_ELEMENTS (steps)](&s);
      go_on_killed (&s);
    }
  finish (&s);
  end_life (&s);
  harness_free (s.harness);
  g_array_unref (s.tokens);
  g_array_unref (s.files);
  g_rand_free (s.rand);
  playing = NULL;
}
