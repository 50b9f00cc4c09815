/* SPDX-License-Identifier: MIT
 *
 * What became of a batch: changes that are done, that are undone because the server refused them,
 * that wait for it to come back. Net thread.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <string.h>
#include <unistd.h>

#define BACKOFF_MAX 60u

/* --- outcomes
 * -------------------------------------------------------------------------------------- */

gboolean
mail_batch_journal (MailBatch *batch, GError **error)
{
  MailChanges *changes = batch->changes;

  g_mutex_lock (&changes->lock);
  mail_journal_begin (changes->journal);
  for (guint i = 0; i < batch->items->len; i++)
    {
      MailChange *change = batch->items->pdata[i];

      mail_change_journal_locked (change);
      if (change->staged != NULL)
        mail_staged_journal_locked (change->staged);
    }
  gboolean good = mail_journal_commit (changes->journal, error);
  g_mutex_unlock (&changes->lock);
  return good;
}

/* Out of the queue; the row goes with the others of the batch. */
static void
finish (MailBatch *batch, MailChange *change, const GError *error)
{
  MailChanges *changes = batch->changes;

  g_mutex_lock (&changes->lock);
  g_queue_unlink (&changes->queue, &change->link);
  g_array_append_val (batch->done_ids, change->id);
  g_ptr_array_add (batch->finished, mail_change_take_waiters (change, error));
  if (change->staged != NULL && change->staged->change == change)
    change->staged->change = NULL;
  g_mutex_unlock (&changes->lock);
  g_ptr_array_remove (batch->items, change);
  mail_change_free (change);
}

/* As it was before anybody asked. */
static void
undo (MailChange *change, const GError *error)
{
  MailMailbox *mailbox = change->mailbox;

  /* It may have been refused because it is not as we think. */
  g_mutex_lock (&mailbox->lock);
  mailbox->tried_at = mailbox->synced_at = 0;
  if (change->kind == MAIL_CHANGE_FLAGS)
    mail_pending_answer_locked (mailbox, change->uid, change->id, FALSE);
  g_mutex_unlock (&mailbox->lock);
  switch (change->kind)
    {
    case MAIL_CHANGE_FLAGS:
      mail_effect_flags (mailbox, change->content_id, change->uid);
      break;
    case MAIL_CHANGE_REMOVE:
      mail_effect_unhide (mailbox, change->content_id, change->uid, TRUE);
      break;
    case MAIL_CHANGE_MOVE:
      mail_effect_unhide (mailbox, change->content_id, change->uid, TRUE);
      mail_effect_show_again (mailbox->store, change->replaces_content, change->replaces);
      break;
    default:
      break;
    }
  if (change->staged != NULL)
    mail_staged_fail (change->staged, error->message);
  /* The index must not remember what was hidden longer than the journal does. */
  mail_index_flush (mailbox->store->index);
}

static void
log_failure (const MailChange *change, const GError *error)
{
  if (change->uid != 0)
    mail_log_warning ("%s of %s/%u: %s", mail_change_verb (change),
                      change->mailbox_name != NULL ? change->mailbox_name : "?", change->uid,
                      error->message);
  else
    mail_log_warning ("%s into %s: %s", mail_change_verb (change),
                      change->mailbox_name != NULL ? change->mailbox_name : "?", error->message);
}

void
mail_batch_succeed (MailBatch *batch, MailChange *change)
{
  batch->n_good++;
  if (change->kind == MAIL_CHANGE_REMOVE || change->kind == MAIL_CHANGE_MOVE)
    mail_effect_hold (change->mailbox, change->content_id, change->uid, TRUE);
  finish (batch, change, NULL);
}

/* Whoever waits hears of it, or the next one who changes something there. */
static void
report (MailBatch *batch, const MailChange *change, const GError *error)
{
  log_failure (change, error);
  /* Reported where the user looks for it: a copy where it was to be, a move at both ends. */
  if (change->waiters == NULL && change->kind != MAIL_CHANGE_COPY)
    mail_changes_defer (batch->changes, change->mailbox, error);
  if (change->waiters == NULL && change->target != NULL)
    mail_changes_defer (batch->changes, change->target, error);
}

void
mail_batch_fail (MailBatch *batch, MailChange *change, const GError *error)
{
  report (batch, change, error);
  undo (change, error);
  finish (batch, change, error);
}

void
mail_batch_half_done (MailBatch *batch, MailChange *change, const GError *error)
{
  report (batch, change, error);
  finish (batch, change, error);
}

/* A file that was written again while it was on its way, and did not arrive. */
static gboolean
is_outdated (MailBatch *batch, const MailChange *change)
{
  g_mutex_lock (&batch->changes->lock);
  gboolean outdated = change->kind == MAIL_CHANGE_APPEND && change->step == MAIL_STEP_NEW
                      && change->staged->dirty;
  g_mutex_unlock (&batch->changes->lock);
  return outdated;
}

void
mail_batch_retry (MailBatch *batch, MailChange *change, const GError *error)
{
  if (error != NULL && batch->network_error == NULL)
    batch->network_error = g_error_copy (error);
  if (is_outdated (batch, change))
    {
      g_autoptr (MailStaged) staged = mail_staged_ref (change->staged);

      finish (batch, change, NULL);
      mail_staged_unsent (staged);
      return;
    }
  g_mutex_lock (&batch->changes->lock);
  if (error != NULL)
    change->n_tries++;
  change->running = FALSE;
  if (change->fd >= 0)
    close (change->fd);
  change->fd = -1;
  g_mutex_unlock (&batch->changes->lock);
  g_ptr_array_remove (batch->items, change);
}

void
mail_batch_error (MailBatch *batch, MailChange *change, const GError *error)
{
  if (mail_store_is_network_error (error) || g_error_matches (error, MAIL_ERROR, MAIL_ERROR_AUTH)
      || g_error_matches (error, MAIL_ERROR, MAIL_ERROR_TLS)
      || g_error_matches (error, MAIL_ERROR, MAIL_ERROR_NO_SPACE))
    mail_batch_retry (batch, change, error);
  else
    mail_batch_fail (batch, change, error);
}

void
mail_batch_refused (MailBatch *batch, const GError *error)
{
  guint half = batch->items->len / 2;

  while (batch->items->len > 0)
    {
      MailChange *change = batch->items->pdata[0];

      if (half == 0 || mail_store_is_network_error (error))
        {
          mail_batch_error (batch, change, error);
          continue;
        }
      change->batch_limit = half;
      mail_batch_retry (batch, change, NULL);
    }
}

/* --- the server is away
 * ---------------------------------------------------------------------------- */

static gboolean
retry_now (gpointer data)
{
  MailChanges *changes = data;

  g_clear_pointer (&changes->retry, g_source_unref);
  mail_changes_kick (changes);
  return G_SOURCE_REMOVE;
}

static void
schedule_retry (MailChanges *changes, guint milliseconds)
{
  if (changes->retry != NULL)
    return;
  changes->retry = g_timeout_source_new (milliseconds);
  g_source_set_callback (changes->retry, retry_now, changes, NULL);
  g_source_attach (changes->retry, changes->store->net);
}

/* Known not to have happened: it can be taken back. Flags and removal for good note no steps; a
 * removal to the trash does, and has none of its tries counted while it is between two of them. */
static gboolean
is_certain (const MailChange *change)
{
  gboolean notes_steps = change->kind != MAIL_CHANGE_FLAGS && change->kind != MAIL_CHANGE_REMOVE;

  return change->step == MAIL_STEP_NEW && (notes_steps || change->n_tries == 0);
}

/* Whoever waits is told. What is known not to have happened is taken back; what may have happened
 * stays in the queue until it is known. */
void
mail_changes_give_up_waiting (MailChanges *changes, const GError *error)
{
  g_autoptr (GPtrArray) back = g_ptr_array_new ();
  g_autoptr (GPtrArray) told = g_ptr_array_new_with_free_func (mail_outcome_free);
  GList *next;

  g_mutex_lock (&changes->lock);
  mail_journal_begin (changes->journal);
  for (GList *link = changes->queue.head; link != NULL; link = next)
    {
      MailChange *change = link->data;

      next = link->next;
      if (change->running || change->waiters == NULL)
        continue;
      g_ptr_array_add (told, mail_change_take_waiters (change, error));
      if (!is_certain (change))
        continue;
      g_queue_unlink (&changes->queue, &change->link);
      mail_journal_remove_change (changes->journal, change->id);
      if (change->staged != NULL)
        change->staged->change = NULL;
      g_ptr_array_add (back, change);
    }
  mail_journal_commit (changes->journal, NULL);
  g_mutex_unlock (&changes->lock);
  for (guint i = 0; i < back->len; i++)
    {
      undo (back->pdata[i], error);
      mail_change_free (back->pdata[i]);
    }
  for (guint i = 0; i < told->len; i++)
    mail_outcome_tell (told->pdata[i]);
}

/* How the look at the server ended. */
static void
looked (const GError *error, gpointer data)
{
  MailChanges *changes = data;

  if (changes->stopped == NULL)
    return; /* what was left was sent meanwhile */
  changes->giving_up = error != NULL;
  g_mutex_lock (&changes->lock);
  changes->urgent = TRUE;
  g_mutex_unlock (&changes->lock);
  mail_changes_kick (changes);
}

static void
note_network_error (MailChanges *changes, const GError *error)
{
  /* A connection that broke may only have been an old one: once more before anybody is told. */
  gboolean quick = changes->backoff == 0
                   && g_error_matches (error, MAIL_ERROR, MAIL_ERROR_CONNECTION);

  g_mutex_lock (&changes->lock);
  changes->server_ok = FALSE;
  g_mutex_unlock (&changes->lock);
  if (quick)
    {
      changes->backoff = 1;
      schedule_retry (changes, 50);
      return;
    }
  if (changes->stopping && !changes->looked && mail_store_is_network_error (error))
    {
      /* Perhaps that is how it was a while ago. What is queued goes now or at the next mount. */
      changes->looked = TRUE;
      changes->store->backend->ops->start (changes->store->backend, looked, changes);
      return;
    }
  mail_log_info ("changes stay queued: %s", error->message);
  changes->backoff = CLAMP (changes->backoff * 2, 1u, BACKOFF_MAX);
  schedule_retry (changes, changes->backoff * 1000);
  mail_changes_give_up_waiting (changes, error);
  mail_changes_fail_drains (changes, error);
  changes->giving_up = changes->stopping;
}

void
mail_batch_end (MailBatch *batch)
{
  MailChanges *changes = batch->changes;
  g_autoptr (GError) error = NULL;

  /* A server that can only mark messages goes on listing them: the index must know better. */
  if ((mail_store_caps (changes->store) & MAIL_CAP_EXPUNGE_UID) == 0 && batch->n_good > 0
      && (batch->kind == MAIL_CHANGE_REMOVE || batch->kind == MAIL_CHANGE_MOVE))
    mail_index_flush (changes->store->index);
  mail_journal_begin (changes->journal);
  for (guint i = 0; i < batch->done_ids->len; i++)
    mail_journal_remove_change (changes->journal, g_array_index (batch->done_ids, guint64, i));
  if (!mail_journal_commit (changes->journal, &error))
    mail_log_warning ("%s", error->message);

  g_mutex_lock (&changes->lock);
  g_ptr_array_remove (changes->running, batch);
  g_mutex_unlock (&changes->lock);
  if (batch->network_error == NULL)
    {
      changes->backoff = 0;
      g_mutex_lock (&changes->lock);
      changes->server_ok = TRUE;
      if (batch->n_good > 0)
        changes->good_at = g_get_monotonic_time ();
      g_mutex_unlock (&changes->lock);
    }
  for (guint i = 0; i < batch->finished->len; i++)
    mail_outcome_tell (batch->finished->pdata[i]);
  if (batch->network_error != NULL)
    note_network_error (changes, batch->network_error);
  mail_changes_sweep (changes);
  mail_changes_kick (changes);

  g_ptr_array_unref (batch->items);
  g_ptr_array_unref (batch->finished);
  g_array_unref (batch->done_ids);
  g_clear_error (&batch->network_error);
  g_clear_pointer (&batch->mailbox, mail_mailbox_unref);
  g_clear_pointer (&batch->target, mail_mailbox_unref);
  g_free (batch->mailbox_name);
  g_free (batch->target_name);
  mail_uid_set_free (batch->uids);
  g_free (batch);
}
