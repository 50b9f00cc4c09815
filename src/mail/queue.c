/* SPDX-License-Identifier: MIT
 *
 * The queue of pending changes: who waits for the server and who is told at once, what goes out
 * together, what happens when the server is away. Anybody adds, the net thread sends. While a batch
 * is under way new changes pile up, so that the next one is larger: no other timing is needed.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <string.h>

/* A change that follows within this of a good answer belongs to a burst. */
#define BURST_GAP (100 * G_TIME_SPAN_MILLISECOND)
/* What may be acknowledged before the server knows it: then everybody waits again. */
#define BURST_CHANGES 20000u
#define BURST_BYTES (G_GUINT64_CONSTANT (1) << 30)
#define BATCHES_MAX 3u
#define BATCH_MESSAGES 1000u
#define BATCH_APPENDS 200u
#define BATCH_BYTES (8 * G_GUINT64_CONSTANT (1024) * 1024)
#define BACKOFF_MAX 60u

typedef struct
{
  MailMailbox *mailbox; /* NULL: all */
  guint64 upto;
  MailDoneFunc done;
  gpointer user_data;
} Drain;

typedef struct
{
  GArray *waiters;
  GError *error;
} Outcome;

/* --- changes
 * --------------------------------------------------------------------------------------- */

MailChange *
mail_change_new (MailChanges *changes, MailChangeKind kind, MailMailbox *mailbox)
{
  MailChange *change = g_new0 (MailChange, 1);

  change->id = mail_journal_new_change_id (changes->journal);
  change->kind = kind;
  change->mailbox = mail_mailbox_ref (mailbox);
  change->mailbox_name = mail_folder_name (mailbox);
  change->content_id = mail_mailbox_content_id (mailbox);
  change->uidvalidity = mail_effect_uidvalidity (mailbox);
  change->link.data = change;
  return change;
}

void
mail_change_set_target (MailChange *change, MailMailbox *target)
{
  change->target = mail_mailbox_ref (target);
  change->target_name = mail_folder_name (target);
}

void
mail_change_free (MailChange *change)
{
  g_clear_pointer (&change->mailbox, mail_mailbox_unref);
  g_clear_pointer (&change->target, mail_mailbox_unref);
  g_clear_pointer (&change->staged, mail_staged_unref);
  g_clear_pointer (&change->waiters, g_array_unref);
  g_free (change->mailbox_name);
  g_free (change->target_name);
  g_free (change->add_keywords);
  g_free (change->remove_keywords);
  g_free (change->sent_keywords);
  g_free (change);
}

void
mail_change_journal_locked (MailChange *change)
{
  MailStaged *staged = change->staged;
  MailJournalChange row = {
    .id = change->id,
    .kind = change->kind,
    .step = change->step,
    .n_tries = change->n_tries,
    .mailbox = change->mailbox_name,
    .uidvalidity = change->uidvalidity,
    .uid = change->uid,
    .target = change->target_name,
    .bound = change->bound,
    .target_uidvalidity = change->target_uidvalidity,
    .new_uid = change->new_uid,
    .staged = staged != NULL ? staged->id : 0,
    .replaces_uidvalidity = change->replaces_uidvalidity,
    .replaces = change->replaces,
    .add = change->add,
    .remove = change->remove,
    .add_keywords = change->add_keywords,
    .remove_keywords = change->remove_keywords,
  };

  if (staged != NULL && staged->placeholder)
    {
      row.name = staged->name;
      row.area = staged->dropped ? MAIL_AREA_DROPPED : staged->area;
    }
  mail_journal_put_change (
      staged != NULL ? staged->changes->journal : change->mailbox->store->changes->journal, &row);
}

void
mail_change_wait_locked (MailChange *change, MailDoneFunc done, gpointer user_data)
{
  MailChangeWaiter waiter = { done, user_data };

  if (done == NULL)
    return;
  if (change->waiters == NULL)
    change->waiters = g_array_new (FALSE, FALSE, sizeof (MailChangeWaiter));
  g_array_append_val (change->waiters, waiter);
}

/* --- telling
 * --------------------------------------------------------------------------------------- */

static void
outcome_free (gpointer data)
{
  Outcome *outcome = data;

  g_clear_pointer (&outcome->waiters, g_array_unref);
  g_clear_error (&outcome->error);
  g_free (outcome);
}

static void
tell_outcome (const Outcome *outcome)
{
  for (guint i = 0; outcome->waiters != NULL && i < outcome->waiters->len; i++)
    {
      const MailChangeWaiter *waiter = &g_array_index (outcome->waiters, MailChangeWaiter, i);

      waiter->done (outcome->error, waiter->user_data);
    }
}

static gboolean
tell_later (gpointer data)
{
  tell_outcome (data);
  return G_SOURCE_REMOVE;
}

static GSource *
attach_idle (MailChanges *changes, GSourceFunc func, gpointer data, GDestroyNotify notify)
{
  GSource *source = g_idle_source_new ();

  g_source_set_priority (source, G_PRIORITY_DEFAULT);
  g_source_set_callback (source, func, data, notify);
  g_source_attach (source, changes->store->net);
  return source;
}

static Outcome *
take_waiters (MailChange *change, const GError *error)
{
  Outcome *outcome = g_new0 (Outcome, 1);

  outcome->waiters = g_steal_pointer (&change->waiters);
  outcome->error = error != NULL ? g_error_copy (error) : NULL;
  return outcome;
}

void
mail_changes_withdraw_locked (MailChanges *changes, MailChange *change, const GError *error)
{
  g_queue_unlink (&changes->queue, &change->link);
  mail_journal_begin (changes->journal);
  mail_journal_remove_change (changes->journal, change->id);
  mail_journal_commit (changes->journal, NULL);
  if (change->waiters != NULL)
    g_source_unref (attach_idle (changes, tell_later, take_waiters (change, error), outcome_free));
  /* Freed without the lock: it may hold the last reference to a mailbox or file. */
  g_ptr_array_add (changes->withdrawn, change);
}

GError *
mail_changes_take_deferred (MailChanges *changes, MailMailbox *mailbox)
{
  gpointer key = GUINT_TO_POINTER (mailbox->id);

  g_mutex_lock (&changes->lock);
  GError *error = g_hash_table_lookup (changes->deferred, key);
  if (error != NULL)
    g_hash_table_steal (changes->deferred, key);
  g_mutex_unlock (&changes->lock);
  return error;
}

static void
defer_error (MailChanges *changes, MailMailbox *mailbox, const GError *error)
{
  gpointer key = GUINT_TO_POINTER (mailbox->id);

  g_mutex_lock (&changes->lock);
  if (!g_hash_table_contains (changes->deferred, key))
    g_hash_table_insert (changes->deferred, key, g_error_copy (error));
  g_mutex_unlock (&changes->lock);
}

/* --- adding
 * ---------------------------------------------------------------------------------------- */

static gboolean dispatch (gpointer data);
static void give_up_waiting (MailChanges *changes, const GError *error);
static void fail_drains (MailChanges *changes, const GError *error);

void
mail_changes_kick (MailChanges *changes)
{
  g_mutex_lock (&changes->lock);
  if (changes->kick == NULL)
    changes->kick = attach_idle (changes, dispatch, changes, NULL);
  g_mutex_unlock (&changes->lock);
}

void
mail_changes_push_locked (MailChanges *changes, MailChange *change)
{
  g_queue_push_tail_link (&changes->queue, &change->link);
}

void
mail_changes_add (MailChanges *changes, MailChange *change, gboolean wait, MailDoneFunc done,
                  gpointer user_data)
{
  gint64 now = g_get_monotonic_time ();

  g_mutex_lock (&changes->lock);
  gboolean burst = !changes->store->options.sync && !wait && changes->server_ok
                   && (now - changes->good_at < BURST_GAP || changes->queue.length > 0)
                   && changes->queue.length < BURST_CHANGES && changes->spool_bytes < BURST_BYTES;
  if (burst)
    changes->good_at = now;
  else
    {
      mail_change_wait_locked (change, done, user_data);
      changes->urgent |= done != NULL;
    }
  mail_changes_push_locked (changes, change);
  g_mutex_unlock (&changes->lock);
  mail_changes_kick (changes);
  if (burst && done != NULL)
    done (NULL, user_data);
}

/* --- choosing what goes next; the lock is held
 * ----------------------------------------------------- */

static void
add_key (GHashTable *keys, guint32 high, guint32 low)
{
  guint64 key = mail_staged_key (high, low);

  g_hash_table_add (keys, g_memdup2 (&key, sizeof key));
}

static gboolean
has_key (GHashTable *keys, guint32 high, guint32 low)
{
  guint64 key = mail_staged_key (high, low);

  return g_hash_table_contains (keys, &key);
}

/* What must keep its order: changes of one message, and of one file. */
static void
add_keys (GHashTable *keys, const MailChange *change)
{
  if (change->uid != 0)
    add_key (keys, change->content_id, change->uid);
  if (change->staged != NULL)
    add_key (keys, 0, change->staged->id);
  if (change->replaces != 0)
    add_key (keys, change->replaces_content, change->replaces);
}

static gboolean
conflicts (GHashTable *keys, const MailChange *change)
{
  return (change->uid != 0 && has_key (keys, change->content_id, change->uid))
         || (change->staged != NULL && has_key (keys, 0, change->staged->id))
         || (change->replaces != 0 && has_key (keys, change->replaces_content, change->replaces));
}

gboolean
mail_batch_is_running (MailBatch *batch, MailMailbox *mailbox)
{
  for (guint i = 0; i < batch->changes->running->len; i++)
    {
      const MailBatch *other = batch->changes->running->pdata[i];

      if (other != batch && mailbox != NULL
          && (other->mailbox == mailbox || other->target == mailbox))
        return TRUE;
    }
  return FALSE;
}

static gboolean
is_busy (MailChanges *changes, const MailChange *change)
{
  for (guint i = 0; i < changes->running->len; i++)
    {
      const MailBatch *batch = changes->running->pdata[i];

      if (batch->mailbox == change->mailbox || batch->target == change->mailbox
          || (change->target != NULL
              && (batch->mailbox == change->target || batch->target == change->target)))
        return TRUE;
    }
  return FALSE;
}

static guint64
append_bytes (const MailChange *change)
{
  return change->kind == MAIL_CHANGE_APPEND ? change->staged->size : 0;
}

static gboolean
goes_with (const MailBatch *batch, const MailChange *change, guint64 bytes)
{
  const MailChange *first = batch->items->pdata[0];
  guint limit = change->kind == MAIL_CHANGE_APPEND ? BATCH_APPENDS : BATCH_MESSAGES;

  for (guint i = 0; i < 2; i++)
    {
      const MailChange *which = i == 0 ? first : change;

      if (which->batch_limit != 0)
        limit = MIN (limit, which->batch_limit);
    }
  return batch->items->len < limit && change->kind == first->kind
         && change->mailbox == first->mailbox && change->target == first->target
         && change->step == first->step && change->uidvalidity == first->uidvalidity
         && change->add == first->add && change->remove == first->remove
         && g_strcmp0 (change->add_keywords, first->add_keywords) == 0
         && g_strcmp0 (change->remove_keywords, first->remove_keywords) == 0
         && bytes + append_bytes (change) <= BATCH_BYTES;
}

static MailBatch *
batch_new (MailChanges *changes, const MailChange *first)
{
  MailBatch *batch = g_new0 (MailBatch, 1);

  batch->changes = changes;
  batch->kind = first->kind;
  batch->step = first->step;
  batch->items = g_ptr_array_new ();
  batch->finished = g_ptr_array_new_with_free_func (outcome_free);
  batch->done_ids = g_array_new (FALSE, FALSE, sizeof (guint64));
  batch->mailbox = mail_mailbox_ref (first->mailbox);
  batch->target = first->target != NULL ? mail_mailbox_ref (first->target) : NULL;
  batch->content_id = first->content_id;
  batch->uidvalidity = first->uidvalidity;
  batch->uids = mail_uid_set_new ();
  return batch;
}

static void
take (MailBatch *batch, MailChange *change)
{
  change->running = TRUE;
  g_ptr_array_add (batch->items, change);
  if (change->uid != 0)
    mail_uid_set_add (batch->uids, change->uid, change->uid);
}

static MailBatch *
next_batch (MailChanges *changes)
{
  g_autoptr (GHashTable) keys = g_hash_table_new_full (g_int64_hash, g_int64_equal, g_free, NULL);
  MailBatch *batch = NULL;
  guint64 bytes = 0;

  for (GList *link = changes->queue.head; link != NULL; link = link->next)
    {
      MailChange *change = link->data;
      gboolean may = !change->running && !conflicts (keys, change);

      if (may && batch == NULL && !is_busy (changes, change))
        batch = batch_new (changes, change);
      else if (!may || batch == NULL || !goes_with (batch, change, bytes))
        {
          add_keys (keys, change);
          continue;
        }
      take (batch, change);
      bytes += append_bytes (change);
      add_keys (keys, change);
    }
  return batch;
}

static void
start (MailBatch *batch)
{
  batch->mailbox_name = mail_folder_name (batch->mailbox);
  if (batch->target != NULL)
    batch->target_name = mail_folder_name (batch->target);
  switch (batch->kind)
    {
    case MAIL_CHANGE_APPEND:
      mail_append_start (batch);
      break;
    case MAIL_CHANGE_MOVE:
    case MAIL_CHANGE_COPY:
      mail_transfer_start (batch);
      break;
    default:
      mail_alter_start (batch);
      break;
    }
}

/* Nothing can be sent in this run, or not yet. */
static void
refuse_all (MailChanges *changes)
{
  g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_UNREACHABLE,
                                          "the server cannot be reached");

  mail_changes_check_drains (changes);
  give_up_waiting (changes, error);
  fail_drains (changes, error);
}

static gboolean
dispatch (gpointer data)
{
  MailChanges *changes = data;
  g_autoptr (GPtrArray) withdrawn = NULL;

  g_mutex_lock (&changes->lock);
  g_clear_pointer (&changes->kick, g_source_unref);
  g_mutex_unlock (&changes->lock);
  if (!changes->ready)
    refuse_all (changes);
  while (changes->ready && !changes->giving_up && changes->running->len < BATCHES_MAX)
    {
      g_mutex_lock (&changes->lock);
      gboolean wait = changes->retry != NULL && !changes->urgent;
      changes->urgent = FALSE;
      MailBatch *batch = wait ? NULL : next_batch (changes);
      g_mutex_unlock (&changes->lock);
      if (batch == NULL)
        break;
      if (changes->retry != NULL)
        g_source_destroy (changes->retry);
      g_clear_pointer (&changes->retry, g_source_unref);
      g_ptr_array_add (changes->running, batch);
      start (batch);
    }
  g_mutex_lock (&changes->lock);
  withdrawn = changes->withdrawn;
  changes->withdrawn = g_ptr_array_new_with_free_func ((GDestroyNotify)mail_change_free);
  g_mutex_unlock (&changes->lock);
  mail_changes_check_drains (changes);
  return G_SOURCE_REMOVE;
}

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
  g_ptr_array_add (batch->finished, take_waiters (change, error));
  if (change->staged != NULL && change->staged->change == change)
    change->staged->change = NULL;
  g_mutex_unlock (&changes->lock);
  g_ptr_array_remove (batch->items, change);
  mail_change_free (change);
}

static const char *
verb (const MailChange *change)
{
  static const char *const verbs[] = { "", "flags", "remove", "move", "copy", "append" };

  return verbs[change->kind];
}

/* As it was before anybody asked. */
static void
undo (MailChange *change, const GError *error)
{
  MailMailbox *mailbox = change->mailbox;

  switch (change->kind)
    {
    case MAIL_CHANGE_FLAGS:
      g_mutex_lock (&mailbox->lock);
      mail_pending_answer_locked (mailbox, change->uid, change->id, FALSE);
      mailbox->tried_at = mailbox->synced_at = 0;
      g_mutex_unlock (&mailbox->lock);
      mail_effect_flags (mailbox, change->content_id, change->uid);
      break;
    case MAIL_CHANGE_REMOVE:
      mail_effect_unhide (mailbox, change->content_id, change->uid, TRUE);
      break;
    case MAIL_CHANGE_MOVE:
      mail_effect_unhide (mailbox, change->content_id, change->uid, TRUE);
      if (change->target != NULL && change->replaces != 0)
        mail_effect_unhide (change->target, change->replaces_content, change->replaces, TRUE);
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
    mail_log_warning ("%s of %s/%u: %s", verb (change),
                      change->mailbox_name != NULL ? change->mailbox_name : "?", change->uid,
                      error->message);
  else
    mail_log_warning ("%s into %s: %s", verb (change),
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

void
mail_batch_fail (MailBatch *batch, MailChange *change, const GError *error)
{
  log_failure (change, error);
  if (change->waiters == NULL)
    defer_error (batch->changes, change->mailbox, error);
  undo (change, error);
  finish (batch, change, error);
}

void
mail_batch_retry (MailBatch *batch, MailChange *change, const GError *error)
{
  if (error != NULL && batch->network_error == NULL)
    batch->network_error = g_error_copy (error);
  g_mutex_lock (&batch->changes->lock);
  if (error != NULL)
    change->n_tries++;
  change->running = FALSE;
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

/* Known not to have happened: it can be taken back. */
static gboolean
is_certain (const MailChange *change)
{
  if (change->kind == MAIL_CHANGE_FLAGS || change->kind == MAIL_CHANGE_REMOVE)
    return change->n_tries == 0;
  return change->step == MAIL_STEP_NEW;
}

/* Whoever waits is told. What is known not to have happened is taken back; what may have happened
 * stays in the queue until it is known. */
static void
give_up_waiting (MailChanges *changes, const GError *error)
{
  g_autoptr (GPtrArray) back = g_ptr_array_new ();
  g_autoptr (GPtrArray) told = g_ptr_array_new_with_free_func (outcome_free);
  GList *next;

  g_mutex_lock (&changes->lock);
  mail_journal_begin (changes->journal);
  for (GList *link = changes->queue.head; link != NULL; link = next)
    {
      MailChange *change = link->data;

      next = link->next;
      if (change->running || change->waiters == NULL)
        continue;
      g_ptr_array_add (told, take_waiters (change, error));
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
    tell_outcome (told->pdata[i]);
}

static void
fail_drains (MailChanges *changes, const GError *error)
{
  GQueue drains;
  Drain *drain;

  g_mutex_lock (&changes->lock);
  drains = changes->drains;
  g_queue_init (&changes->drains);
  g_mutex_unlock (&changes->lock);
  while ((drain = g_queue_pop_head (&drains)) != NULL)
    {
      drain->done (error, drain->user_data);
      g_clear_pointer (&drain->mailbox, mail_mailbox_unref);
      g_free (drain);
    }
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
  mail_log_info ("changes stay queued: %s", error->message);
  changes->backoff = CLAMP (changes->backoff * 2, 1u, BACKOFF_MAX);
  schedule_retry (changes, changes->backoff * 1000);
  give_up_waiting (changes, error);
  fail_drains (changes, error);
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

  g_ptr_array_remove (changes->running, batch);
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
    tell_outcome (batch->finished->pdata[i]);
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

/* --- draining
 * -------------------------------------------------------------------------------------- */

static gboolean
is_drained_locked (MailChanges *changes, const Drain *drain)
{
  for (GList *link = changes->queue.head; link != NULL; link = link->next)
    {
      const MailChange *change = link->data;

      if (change->id <= drain->upto
          && (drain->mailbox == NULL || change->mailbox == drain->mailbox
              || change->target == drain->mailbox))
        return FALSE;
    }
  return TRUE;
}

static GError *
take_any_deferred (MailChanges *changes)
{
  GHashTableIter iter;
  gpointer value;
  GError *error = NULL;

  g_mutex_lock (&changes->lock);
  g_hash_table_iter_init (&iter, changes->deferred);
  if (g_hash_table_iter_next (&iter, NULL, &value))
    {
      error = value;
      g_hash_table_iter_steal (&iter);
    }
  g_mutex_unlock (&changes->lock);
  return error;
}

void
mail_changes_check_drains (MailChanges *changes)
{
  GQueue ready = G_QUEUE_INIT;
  GList *next;
  Drain *drain;

  g_mutex_lock (&changes->lock);
  for (GList *link = changes->drains.head; link != NULL; link = next)
    {
      next = link->next;
      if (!is_drained_locked (changes, link->data))
        continue;
      g_queue_unlink (&changes->drains, link);
      g_queue_push_tail_link (&ready, link);
    }
  g_mutex_unlock (&changes->lock);
  while ((drain = g_queue_pop_head (&ready)) != NULL)
    {
      g_autoptr (GError) error = drain->mailbox != NULL
                                     ? mail_changes_take_deferred (changes, drain->mailbox)
                                     : take_any_deferred (changes);

      drain->done (error, drain->user_data);
      g_clear_pointer (&drain->mailbox, mail_mailbox_unref);
      g_free (drain);
    }
  mail_changes_stop_if_idle (changes);
}

void
mail_store_drain (MailStore *store, MailMailbox *mailbox, MailDoneFunc done, gpointer user_data)
{
  MailChanges *changes = store->changes;
  Drain *drain = g_new0 (Drain, 1);

  drain->mailbox = mailbox != NULL ? mail_mailbox_ref (mailbox) : NULL;
  drain->done = done;
  drain->user_data = user_data;
  g_mutex_lock (&changes->lock);
  drain->upto = changes->queue.tail != NULL ? ((MailChange *)changes->queue.tail->data)->id : 0;
  g_queue_push_tail (&changes->drains, drain);
  changes->urgent |= changes->queue.length > 0;
  g_mutex_unlock (&changes->lock);
  mail_changes_kick (changes);
}

static char *
describe (const MailChange *change, MailMailbox *mailbox, MailMailbox *target, const char *name)
{
  g_autofree char *from = mail_mailbox_display_name (mailbox);
  g_autofree char *to = target != NULL ? mail_mailbox_display_name (target) : NULL;
  GString *line = g_string_new (NULL);

  g_string_append_printf (line, "%" G_GUINT64_FORMAT " %s %s", change->id, verb (change), from);
  if (change->uid != 0)
    g_string_append_printf (line, "/%u", change->uid);
  else if (name != NULL)
    g_string_append_printf (line, "/%s", name);
  if (to != NULL)
    g_string_append_printf (line, " to %s", to);
  return g_string_free (line, FALSE);
}

GPtrArray *
mail_store_queue_lines (MailStore *store)
{
  MailChanges *changes = store->changes;
  GPtrArray *lines = g_ptr_array_new_with_free_func (g_free);
  g_autoptr (GPtrArray) copies = g_ptr_array_new_with_free_func ((GDestroyNotify)mail_change_free);
  g_autoptr (GPtrArray) names = g_ptr_array_new_with_free_func (g_free);

  g_mutex_lock (&changes->lock);
  for (GList *link = changes->queue.head; link != NULL; link = link->next)
    {
      const MailChange *change = link->data;
      MailChange *copy = g_new0 (MailChange, 1);

      copy->id = change->id;
      copy->kind = change->kind;
      copy->uid = change->uid;
      copy->mailbox = mail_mailbox_ref (change->mailbox);
      copy->target = change->target != NULL ? mail_mailbox_ref (change->target) : NULL;
      g_ptr_array_add (copies, copy);
      g_ptr_array_add (names, change->staged != NULL ? g_strdup (change->staged->name) : NULL);
    }
  g_mutex_unlock (&changes->lock);
  for (guint i = 0; i < copies->len; i++)
    {
      const MailChange *copy = copies->pdata[i];

      g_ptr_array_add (lines, describe (copy, copy->mailbox, copy->target, names->pdata[i]));
    }
  return lines;
}
