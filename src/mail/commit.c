/* SPDX-License-Identifier: MIT
 *
 * How a staged file becomes a message: committed, renamed, dropped while it is on its way, and what
 * happens when the server has it. Any thread but where said.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <string.h>
#include <unistd.h>

static void
tell (MailDoneFunc done, gpointer user_data, const GError *error)
{
  if (done != NULL)
    done (error, user_data);
}

/* --- committing
 * ------------------------------------------------------------------------------------ */

/* A copy on the server keeps the date of its source: with another one it is a new message. */
static gboolean
is_plain_copy (MailStaged *staged, MailMailbox *source, guint32 uid, gint64 mtime)
{
  MailMessage message;

  return source != NULL
         && (mtime == G_MININT64 || !mail_mailbox_find_gone (source, uid, &message)
             || message.internaldate == mtime);
}

static gboolean
check_content (MailStaged *staged, GError **error)
{
  int fd = mail_spool_open (staged->changes, staged->id, FALSE, error);

  if (fd < 0)
    return FALSE;
  gboolean good = mail_spool_check (fd, error);
  close (fd);
  return good;
}

/* LOCAL, with content and a name that is not temporary. */
static void
enqueue (MailStaged *staged, gboolean wait, MailDoneFunc done, gpointer user_data)
{
  MailChanges *changes = staged->changes;
  g_autoptr (GError) error = NULL;
  g_autoptr (MailMailbox) mailbox = NULL, source = NULL;

  g_mutex_lock (&changes->lock);
  gboolean bytes = staged->source == NULL;
  if (staged->mailbox != NULL)
    mailbox = mail_mailbox_ref (staged->mailbox);
  if (staged->source != NULL)
    source = mail_mailbox_ref (staged->source);
  guint32 source_uid = staged->source_uid;
  gint64 mtime = staged->mtime;
  g_mutex_unlock (&changes->lock);
  if (mailbox == NULL)
    g_set_error (&error, MAIL_ERROR, MAIL_ERROR_GONE, "its mailbox no longer exists");
  else if (!bytes || check_content (staged, &error))
    mail_changes_allowed (mailbox, MAIL_CAP_APPEND, "i", &error);
  if (error != NULL)
    {
      mail_staged_fail (staged, error->message);
      tell (done, user_data, error);
      return;
    }

  gboolean copy = is_plain_copy (staged, source, source_uid, mtime);
  MailChange *change = mail_change_new (changes, copy ? MAIL_CHANGE_COPY : MAIL_CHANGE_APPEND,
                                        copy ? source : mailbox);
  if (copy)
    mail_change_set_target (change, mailbox);
  g_mutex_lock (&changes->lock);
  if (staged->state != MAIL_STAGED_LOCAL)
    {
      /* Somebody else has committed or removed it meanwhile. */
      g_mutex_unlock (&changes->lock);
      mail_change_free (change);
      mail_staged_commit (staged, wait, done, user_data);
      return;
    }
  change->staged = mail_staged_ref (staged);
  if (copy)
    {
      change->content_id = staged->source_content;
      change->uidvalidity = staged->source_uidvalidity;
      change->uid = staged->source_uid;
    }
  change->replaces_content = staged->replaces_content;
  change->replaces_uidvalidity = staged->replaces_uidvalidity;
  change->replaces = staged->replaces_uid;
  change->in_place = staged->in_place;
  if (staged->mtime == G_MININT64 && !copy)
    staged->mtime = g_get_real_time () / G_USEC_PER_SEC;
  if (staged->fd >= 0)
    close (staged->fd);
  staged->fd = -1;
  staged->state = MAIL_STAGED_QUEUED;
  staged->dirty = FALSE;
  staged->change = change;
  mail_journal_begin (changes->journal);
  mail_staged_journal_locked (staged);
  mail_change_journal_locked (change);
  if (!mail_journal_commit (changes->journal, &error))
    {
      staged->state = MAIL_STAGED_LOCAL;
      staged->dirty = TRUE;
      staged->change = NULL;
      g_mutex_unlock (&changes->lock);
      mail_change_free (change);
      tell (done, user_data, error);
      return;
    }
  g_mutex_unlock (&changes->lock);
  mail_failpoint ("append-journaled");
  mail_changes_add (changes, change, wait, done, user_data);
}

/* What a commit of a LOCAL one is to do. */
typedef enum
{
  NOTHING,
  SEND,
  REFUSE,
} Intent;

static Intent
intent_locked (const MailStaged *staged, gboolean wait)
{
  if (staged->temporary)
    return NOTHING;
  if (staged->size > 0)
    return SEND;
  if (staged->in_place)
    return NOTHING; /* truncated and nothing written: nothing happens */
  return staged->written || wait ? REFUSE : NOTHING;
}

static void
refuse_empty (MailStaged *staged, MailDoneFunc done, gpointer user_data)
{
  g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_INVALID,
                                          "an empty file is not a mail message");

  mail_staged_fail (staged, error->message);
  tell (done, user_data, error);
}

static void
tell_deferred (MailStaged *staged, gboolean wait, MailDoneFunc done, gpointer user_data)
{
  g_autoptr (MailMailbox) mailbox = wait ? mail_staged_mailbox (staged) : NULL;
  g_autoptr (GError) error = mailbox != NULL ? mail_changes_take_deferred (staged->changes, mailbox)
                                             : NULL;

  tell (done, user_data, error);
}

void
mail_staged_commit (MailStaged *staged, gboolean wait, MailDoneFunc done, gpointer user_data)
{
  MailChanges *changes = staged->changes;
  Intent intent = NOTHING;
  g_autoptr (GError) error = NULL;

  g_mutex_lock (&changes->lock);
  if (staged->state == MAIL_STAGED_FAILED)
    g_set_error (&error, MAIL_ERROR, MAIL_ERROR_INVALID, "%s", staged->error);
  else if (staged->state == MAIL_STAGED_LOCAL)
    intent = intent_locked (staged, wait);
  else if (staged->state == MAIL_STAGED_QUEUED && staged->dirty && !staged->dropped)
    {
      /* What is on its way goes first. */
      MailChangeWaiter waiter = { done, user_data };

      if (staged->recommit == NULL)
        staged->recommit = g_array_new (FALSE, FALSE, sizeof (MailChangeWaiter));
      g_array_append_val (staged->recommit, waiter);
      g_mutex_unlock (&changes->lock);
      return;
    }
  else if (staged->state == MAIL_STAGED_QUEUED && wait && staged->change != NULL)
    {
      mail_change_wait_locked (staged->change, done, user_data);
      g_mutex_unlock (&changes->lock);
      return;
    }
  g_mutex_unlock (&changes->lock);

  if (intent == SEND)
    enqueue (staged, wait, done, user_data);
  else if (intent == REFUSE)
    refuse_empty (staged, done, user_data);
  else if (error != NULL)
    tell (done, user_data, error);
  else
    tell_deferred (staged, wait, done, user_data);
}

/* --- renaming
 * -------------------------------------------------------------------------------------- */

/* On its way to another place: one that was not sent yet goes to the new one right away, else it is
 * moved on when it has arrived. */
static void
redirect_locked (MailStaged *staged, MailMailbox *target, const char *target_name)
{
  MailChange *change = staged->change;

  if (change == NULL || change->running || change->step != MAIL_STEP_NEW)
    return;
  MailMailbox **place = change->kind == MAIL_CHANGE_APPEND ? &change->mailbox : &change->target;
  char **name = change->kind == MAIL_CHANGE_APPEND ? &change->mailbox_name : &change->target_name;
  mail_mailbox_ref (target);
  mail_mailbox_unref (*place);
  *place = target;
  g_free (*name);
  *name = g_strdup (target_name);
  if (change->kind == MAIL_CHANGE_APPEND)
    change->uidvalidity = change->content_id = 0;
}

/* Renamed to a temporary name before it was sent: nobody asks to send it any more. */
static void
unqueue_locked (MailStaged *staged)
{
  MailChange *change = staged->change;

  if (change == NULL || change->running || change->step != MAIL_STEP_NEW
      || change->kind == MAIL_CHANGE_MOVE)
    return;
  staged->change = NULL;
  staged->state = MAIL_STAGED_LOCAL;
  mail_changes_withdraw_locked (staged->changes, change, NULL);
}

static void
rename_message (MailStaged *staged, MailMailbox *target, guint area, const char *name,
                guint32 replaces_uid, MailStaged *over, MailDoneFunc done, gpointer user_data)
{
  MailStore *store = staged->changes->store;
  g_autoptr (MailMailbox) mailbox = mail_store_contents (store, staged->content_id);

  if (mailbox == NULL)
    {
      g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_GONE,
                                              "its mailbox no longer exists");
      tell (done, user_data, error);
      return;
    }
  if (mailbox != target)
    {
      mail_change_move (store, mailbox, staged->uid, target, area, name, replaces_uid, over, done,
                        user_data);
      return;
    }
  mail_change_name (store, mailbox, staged->uid, name);
  if (over != NULL && over != staged)
    mail_staged_drop (over, NULL, NULL);
  if (replaces_uid != 0)
    mail_change_remove (store, target, replaces_uid, done, user_data);
  else
    tell (done, user_data, NULL);
}

/* The message whose name it takes disappears with the same step. */
static guint32
take_place_of (MailStaged *staged, MailMailbox *target, guint32 uid, guint32 *content_out)
{
  *content_out = mail_mailbox_content_id (target);
  if (uid == 0 || !mail_effect_hide_now (target, *content_out, uid, NULL))
    return 0;
  return uid;
}

void
mail_staged_rename (MailStaged *staged, MailMailbox *target, guint area, const char *name,
                    gboolean temporary, guint32 replaces_uid, MailStaged *replaces,
                    MailDoneFunc done, gpointer user_data)
{
  MailChanges *changes = staged->changes;
  g_autofree char *target_name = mail_folder_name (target);
  g_autoptr (MailMailbox) old = mail_staged_mailbox (staged);
  g_autoptr (GError) error = NULL;
  guint32 content_id = 0, uidvalidity = mail_effect_uidvalidity (target);
  MailStagedInfo info;

  mail_staged_info (staged, &info);
  if (info.state == MAIL_STAGED_DONE)
    {
      rename_message (staged, target, area, name, replaces_uid, replaces, done, user_data);
      return;
    }
  if (!mail_changes_allowed (target, MAIL_CAP_APPEND, "i", &error))
    {
      tell (done, user_data, error);
      return;
    }
  guint32 hidden = take_place_of (staged, target, replaces_uid, &content_id);

  g_mutex_lock (&changes->lock);
  if (staged->state == MAIL_STAGED_DONE)
    {
      /* The server was faster: now it is a message. */
      g_mutex_unlock (&changes->lock);
      if (hidden != 0)
        mail_effect_unhide (target, content_id, hidden, FALSE);
      rename_message (staged, target, area, name, replaces_uid, replaces, done, user_data);
      return;
    }
  if (staged->dropped || staged->state == MAIL_STAGED_DROPPED)
    {
      g_mutex_unlock (&changes->lock);
      if (hidden != 0)
        mail_effect_unhide (target, content_id, hidden, FALSE);
      g_set_error (&error, MAIL_ERROR, MAIL_ERROR_GONE, "this file was removed");
      tell (done, user_data, error);
      return;
    }
  if (staged->state == MAIL_STAGED_FAILED)
    {
      staged->state = MAIL_STAGED_LOCAL; /* tried once more */
      g_clear_pointer (&staged->error, g_free);
    }
  guint32 second = hidden != 0 && staged->replaces_uid != 0 ? hidden : 0;
  if (hidden != 0 && second == 0)
    {
      staged->replaces_content = content_id;
      staged->replaces_uidvalidity = uidvalidity;
      staged->replaces_uid = hidden;
      staged->retired = FALSE;
      if (staged->change != NULL && !staged->change->running)
        {
          staged->change->replaces_content = content_id;
          staged->change->replaces_uidvalidity = uidvalidity;
          staged->change->replaces = hidden;
        }
    }
  /* A copy that is to be made by the server has no bytes that could wait here. */
  temporary = temporary && staged->source_name == NULL;
  staged->temporary = temporary;
  mail_journal_begin (changes->journal);
  if (staged->state == MAIL_STAGED_QUEUED && old != target)
    redirect_locked (staged, target, target_name);
  mail_staged_place_locked (staged, target, target_name, area, name);
  if (temporary)
    unqueue_locked (staged);
  if (staged->change != NULL)
    mail_change_journal_locked (staged->change);
  mail_staged_journal_locked (staged);
  if (!staged->in_place)
    mail_staged_list_locked (staged, staged->state <= MAIL_STAGED_QUEUED);
  gboolean good = mail_journal_commit (changes->journal, &error);
  gboolean send = good && staged->state == MAIL_STAGED_LOCAL && !temporary && staged->size > 0;
  g_mutex_unlock (&changes->lock);

  if (good && replaces != NULL && replaces != staged)
    mail_staged_drop (replaces, NULL, NULL);
  if (hidden != 0)
    mail_effect_hidden (target, content_id, hidden);
  if (second != 0)
    mail_change_remove_hidden (changes, target, content_id, uidvalidity, second, NULL);
  if (old != NULL && old != target)
    mail_effect_directory (old);
  mail_effect_directory (target);
  if (send)
    enqueue (staged, FALSE, done, user_data);
  else
    tell (done, user_data, error);
}

/* --- dropping
 * -------------------------------------------------------------------------------------- */

/* Not sent yet: nothing will be. A message that was on the way to where it stood goes to the trash
 * from where it was; so does what it was going to replace. */
static void
drop_unsent (MailStaged *staged)
{
  MailChanges *changes = staged->changes;
  g_autoptr (MailMailbox) source = NULL;
  guint32 content_id = 0, uidvalidity = 0, uid = 0;
  guint32 old_content = 0, old_uidvalidity = 0, old = 0;

  g_mutex_lock (&changes->lock);
  MailChange *change = staged->change;
  if (change != NULL && change->kind == MAIL_CHANGE_MOVE)
    {
      source = mail_mailbox_ref (change->mailbox);
      content_id = change->content_id;
      uidvalidity = change->uidvalidity;
      uid = change->uid;
    }
  if (!staged->in_place && !staged->retired)
    {
      old_content = staged->replaces_content;
      old_uidvalidity = staged->replaces_uidvalidity;
      old = staged->replaces_uid;
    }
  mail_journal_begin (changes->journal);
  staged->change = NULL;
  if (change != NULL)
    mail_changes_withdraw_locked (changes, change, NULL);
  mail_staged_discard_locked (staged, MAIL_STAGED_DROPPED);
  mail_journal_commit (changes->journal, NULL);
  g_mutex_unlock (&changes->lock);
  if (source != NULL)
    mail_change_remove_hidden (changes, source, content_id, uidvalidity, uid, NULL);
  g_autoptr (MailMailbox) where = old != 0 ? mail_store_contents (changes->store, old_content)
                                           : NULL;
  if (where != NULL)
    mail_change_remove_hidden (changes, where, old_content, old_uidvalidity, old, NULL);
}

void
mail_staged_drop (MailStaged *staged, MailDoneFunc done, gpointer user_data)
{
  MailChanges *changes = staged->changes;
  g_autoptr (MailMailbox) mailbox = mail_staged_mailbox (staged);
  g_autoptr (MailStaged) kept G_GNUC_UNUSED = mail_staged_ref (staged);
  gboolean under_way = FALSE;

  g_mutex_lock (&changes->lock);
  MailStagedState state = staged->state;
  if (state == MAIL_STAGED_QUEUED && staged->change != NULL
      && (staged->change->running || staged->change->step != MAIL_STEP_NEW))
    {
      under_way = TRUE;
      staged->dropped = TRUE;
      mail_staged_list_locked (staged, FALSE);
      mail_staged_unstand_locked (staged);
      mail_journal_begin (changes->journal);
      mail_staged_journal_locked (staged);
      mail_change_journal_locked (staged->change);
      mail_journal_commit (changes->journal, NULL);
    }
  g_mutex_unlock (&changes->lock);

  if (state == MAIL_STAGED_DONE)
    {
      g_autoptr (MailMailbox) where = mail_store_contents (changes->store, staged->content_id);

      if (where != NULL)
        mail_change_remove (changes->store, where, staged->uid, done, user_data);
      else
        tell (done, user_data, NULL);
      return;
    }
  if (!under_way && state != MAIL_STAGED_DROPPED)
    drop_unsent (staged);
  if (mailbox != NULL)
    mail_effect_directory (mailbox);
  mail_staged_no_next (staged, NULL);
  tell (done, user_data, NULL);
}

void
mail_staged_forget (MailStaged *staged, guint n_emptied)
{
  MailChanges *changes = staged->changes;
  g_autoptr (MailStaged) kept G_GNUC_UNUSED = mail_staged_ref (staged);
  gboolean commit = FALSE, empty = FALSE;

  g_mutex_lock (&changes->lock);
  gboolean anew = staged->n_emptied != n_emptied;
  if (!anew && staged->state == MAIL_STAGED_DONE && !staged->dirty)
    mail_staged_discard_locked (staged, MAIL_STAGED_DONE);
  else if (!anew && staged->state == MAIL_STAGED_LOCAL && !staged->temporary)
    {
      commit = staged->size > 0;
      empty = !commit && !staged->in_place;
      if (!commit && staged->in_place)
        mail_staged_discard_locked (staged, MAIL_STAGED_DROPPED);
    }
  g_mutex_unlock (&changes->lock);
  if (commit)
    enqueue (staged, FALSE, NULL, NULL);
  if (empty)
    refuse_empty (staged, NULL, NULL);
}

/* --- the server has it; net thread
 * ----------------------------------------------------------------- */

/* It was moved on while it was on its way: from here it is a move like any other. FALSE: it has
 * been written again as well, and what has come is not what is wanted there. */
static gboolean
move_on (MailStaged *staged, MailMailbox *mailbox, guint32 uidvalidity, const MailMessage *message)
{
  MailChanges *changes = staged->changes;
  MailChange *change = mail_change_new (changes, MAIL_CHANGE_MOVE, mailbox);
  g_autofree char *source_name = mail_folder_name (mailbox);
  g_autoptr (MailMailbox) target = mail_staged_mailbox (staged);

  change->uidvalidity = uidvalidity;
  change->uid = message->uid;
  if (target != NULL)
    mail_change_set_target (change, target);
  g_mutex_lock (&changes->lock);
  if (staged->dirty)
    {
      g_mutex_unlock (&changes->lock);
      mail_change_free (change);
      return FALSE;
    }
  mail_staged_pass_on_locked (staged);
  if (!staged->in_place)
    staged->replaces_uid = 0;
  change->staged = mail_staged_ref (staged);
  staged->change = change;
  mail_journal_begin (changes->journal);
  if (!staged->placeholder)
    mail_journal_remove_staged (changes->journal, staged->id);
  staged->placeholder = TRUE;
  mail_staged_remove_spool_locked (staged);
  g_clear_pointer (&staged->source, mail_mailbox_unref);
  g_free (staged->source_name);
  staged->source = mail_mailbox_ref (mailbox);
  staged->source_name = g_steal_pointer (&source_name);
  mail_staged_moves_locked (staged, change->content_id, message->uid);
  mail_change_journal_locked (change);
  mail_journal_commit (changes->journal, NULL);
  mail_changes_push_locked (changes, change);
  g_mutex_unlock (&changes->lock);
  mail_changes_kick (changes);
  return TRUE;
}

static void
commit_again (MailStaged *staged, GArray *waiters)
{
  if (staged->orphan)
    mail_staged_fail (staged, "the program that wrote it was interrupted");
  for (guint i = 0; waiters != NULL && i < waiters->len; i++)
    {
      const MailChangeWaiter *waiter = &g_array_index (waiters, MailChangeWaiter, i);

      mail_staged_commit (staged, TRUE, waiter->done, waiter->user_data);
    }
}

/* Written again meanwhile: that is the next version of the message. */
static void
become_next (MailStaged *staged)
{
  MailChanges *changes = staged->changes;
  g_autoptr (GArray) waiters = NULL;

  g_mutex_lock (&changes->lock);
  waiters = g_steal_pointer (&staged->recommit);
  if (staged->state == MAIL_STAGED_DONE) /* else who writes has done so himself a moment ago */
    {
      mail_staged_stand_for_locked (staged, staged->content_id, staged->uidvalidity, staged->uid);
      staged->state = MAIL_STAGED_LOCAL;
      staged->mtime = G_MININT64;
      mail_journal_begin (changes->journal);
      mail_staged_journal_locked (staged);
      mail_journal_commit (changes->journal, NULL);
    }
  g_mutex_unlock (&changes->lock);
  commit_again (staged, waiters);
}

/* What was sent is not on the server, and the bytes have changed since: it is a file that is being
 * written, as before. Net thread. */
void
mail_staged_unsent (MailStaged *staged)
{
  MailChanges *changes = staged->changes;
  g_autoptr (GArray) waiters = NULL;

  g_mutex_lock (&changes->lock);
  staged->state = MAIL_STAGED_LOCAL;
  if (staged->change != NULL)
    staged->change->replaces = 0; /* that one goes when the next version has come */
  staged->change = NULL;
  waiters = g_steal_pointer (&staged->recommit);
  mail_journal_begin (changes->journal);
  mail_staged_journal_locked (staged);
  mail_journal_commit (changes->journal, NULL);
  g_mutex_unlock (&changes->lock);
  commit_again (staged, waiters);
}

static void
settle_flags (MailStaged *staged, MailMailbox *mailbox, const MailMessage *message)
{
  MailChanges *changes = staged->changes;
  MailStore *store = changes->store;

  g_mutex_lock (&changes->lock);
  gboolean set = staged->flags_set;
  guint8 flags = staged->flags;
  g_autofree char *keywords = g_strdup (staged->keywords);
  g_mutex_unlock (&changes->lock);
  if (set
      && (flags != message->flags
          || mail_index_keywords_id (store->index, keywords) != message->keywords))
    mail_change_flags (store, mailbox, message->uid, flags, keywords, NULL, NULL);
}

/* An earlier run was killed between the row that says it is written again and the first new byte:
 * what is here is what was sent. */
static gboolean
is_as_sent (MailStaged *staged)
{
  MailChanges *changes = staged->changes;
  MailWire wire = { .fd = -1 };
  int fd = staged->has_spool ? mail_spool_open (changes, staged->id, FALSE, NULL) : -1;

  if (fd < 0 || !mail_spool_wire (changes, staged->id, fd, &wire, NULL))
    return FALSE;
  close (wire.fd);
  g_free (wire.message_id);
  return wire.size == staged->wire_size
         && memcmp (wire.digest, staged->digest, MAIL_DIGEST_SIZE) == 0;
}

gboolean
mail_staged_settle (MailStaged *staged, MailMailbox *mailbox, guint32 uidvalidity,
                    const MailMessage *message)
{
  MailChanges *changes = staged->changes;
  MailMessage hidden = *message;
  gboolean as_sent = staged->orphan && staged->dirty && is_as_sent (staged);

  g_mutex_lock (&changes->lock);
  staged->dirty &= !as_sent;
  gboolean dropped = staged->dropped;
  gboolean elsewhere = !dropped && staged->mailbox != mailbox;
  g_autofree char *name = g_strdup (staged->name);
  g_mutex_unlock (&changes->lock);

  if (dropped || elsewhere)
    {
      hidden.local |= MAIL_LOCAL_HIDDEN;
      if (!mail_effect_insert (mailbox, uidvalidity, &hidden, NULL, NULL))
        return FALSE;
      guint32 content_id = mail_mailbox_content_id (mailbox);
      mail_effect_hide_now (mailbox, content_id, message->uid, NULL);
      mail_effect_hold (mailbox, content_id, message->uid, FALSE);
      mail_effect_hidden (mailbox, content_id, message->uid);
      if (elsewhere && move_on (staged, mailbox, uidvalidity, message))
        return TRUE;
      mail_change_remove_hidden (changes, mailbox, content_id, uidvalidity, message->uid, NULL);
      if (elsewhere)
        {
          mail_staged_unsent (staged); /* the next version goes where it is now */
          return TRUE;
        }
      g_mutex_lock (&changes->lock);
      mail_staged_pass_on_locked (staged);
      staged->change = NULL;
      mail_staged_discard_locked (staged, MAIL_STAGED_DROPPED);
      g_mutex_unlock (&changes->lock);
      return TRUE;
    }
  if (!mail_effect_insert (mailbox, uidvalidity, message, name, staged))
    return FALSE;
  guint32 content_id = mail_mailbox_content_id (mailbox);
  g_mutex_lock (&changes->lock);
  /* It was, whatever it is by now. */
  gboolean done = staged->uid == message->uid && staged->uidvalidity == uidvalidity
                  && staged->content_id == content_id;
  gboolean dirty = staged->dirty;
  g_mutex_unlock (&changes->lock);
  if (!done) /* the user was faster: once more, as it is now */
    return mail_staged_settle (staged, mailbox, uidvalidity, message);
  if (dirty)
    become_next (staged);
  else
    settle_flags (staged, mailbox, message);
  return TRUE;
}

void
mail_staged_settle_unseen (MailStaged *staged, MailMailbox *mailbox, guint32 uidvalidity,
                           guint32 uid)
{
  MailChanges *changes = staged->changes;

  mail_log_info ("the server has \"%s\" as UID %u of a mailbox that cannot be listed now",
                 staged->name != NULL ? staged->name : "a file", uid);
  guint32 known = mail_effect_uidvalidity (mailbox);
  /* In the mailbox as we know it that UID is another message's. */
  guint32 content_id = known == 0 || known == uidvalidity ? mail_mailbox_content_id (mailbox) : 0;
  g_mutex_lock (&changes->lock);
  mail_staged_done_locked (staged, content_id, uidvalidity, uid);
  g_mutex_unlock (&changes->lock);
  mail_staged_no_next (staged, NULL);
}
