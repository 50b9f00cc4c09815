/* SPDX-License-Identifier: MIT
 *
 * The queue of pending changes: who is told at once, what goes out together. Anybody adds, the net
 * thread sends. While a batch is under way new changes pile up, so that the next one is larger: no
 * other timing is needed.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <string.h>
#include <unistd.h>

/* A change that follows within this of a good answer belongs to a burst. */
#define BURST_GAP (100 * G_TIME_SPAN_MILLISECOND)
/* What may be acknowledged before the server knows it: then everybody waits again. */
#define BURST_CHANGES 20000u
#define BURST_BYTES (G_GUINT64_CONSTANT (1) << 30)
#define GATHER_MS 3u
#define BATCHES_MAX 3u
#define BATCH_MESSAGES 2500u
#define BATCH_APPENDS 200u
#define BATCH_BYTES (8 * G_GUINT64_CONSTANT (1024) * 1024)

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
  change->fd = -1;
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
  if (change->fd >= 0)
    close (change->fd);
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
    .replaces_content = change->replaces_content,
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

/* --- adding
 * ---------------------------------------------------------------------------------------- */

static gboolean dispatch (gpointer data);

void
mail_changes_kick (MailChanges *changes)
{
  g_mutex_lock (&changes->lock);
  if (changes->kick == NULL)
    changes->kick = mail_changes_idle (changes, dispatch, changes, NULL);
  g_mutex_unlock (&changes->lock);
}

static gboolean
kick_now (gpointer data)
{
  MailChanges *changes = data;

  g_mutex_lock (&changes->lock);
  g_clear_pointer (&changes->kick_soon, g_source_unref);
  g_mutex_unlock (&changes->lock);
  mail_changes_kick (changes);
  return G_SOURCE_REMOVE;
}

/* In a burst, where nobody waits: what comes within a moment goes together. */
static void
kick_soon (MailChanges *changes)
{
  g_mutex_lock (&changes->lock);
  if (changes->kick == NULL && changes->kick_soon == NULL)
    {
      changes->kick_soon = g_timeout_source_new (GATHER_MS);
      g_source_set_callback (changes->kick_soon, kick_now, changes, NULL);
      g_source_attach (changes->kick_soon, changes->store->net);
    }
  g_mutex_unlock (&changes->lock);
}

void
mail_changes_push_locked (MailChanges *changes, MailChange *change)
{
  g_queue_push_tail_link (&changes->queue, &change->link);
}

/* Lock held. */
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
  gboolean behind = is_busy (changes, change); /* a batch at whose end the queue is looked at */
  g_mutex_unlock (&changes->lock);
  if (!burst)
    mail_changes_kick (changes);
  else if (!behind)
    kick_soon (changes);
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
    {
      add_key (keys, 0, change->staged->id);
      if (change->staged->source != NULL)
        add_key (keys, change->staged->source_content, change->staged->source_uid);
    }
  if (change->replaces != 0)
    add_key (keys, change->replaces_content, change->replaces);
}

static gboolean
conflicts (GHashTable *keys, const MailChange *change)
{
  return (change->uid != 0 && has_key (keys, change->content_id, change->uid))
         || (change->staged != NULL
             && (has_key (keys, 0, change->staged->id)
                 || (change->staged->source != NULL
                     && has_key (keys, change->staged->source_content,
                                 change->staged->source_uid))))
         || (change->replaces != 0 && has_key (keys, change->replaces_content, change->replaces));
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
  batch->finished = g_ptr_array_new_with_free_func (mail_outcome_free);
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
  /* From here on who writes gets a file of his own. */
  if (change->kind == MAIL_CHANGE_APPEND && change->step == MAIL_STEP_NEW
      && change->staged->has_spool)
    change->fd = mail_spool_open (batch->changes, change->staged->id, FALSE, NULL);
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
  mail_changes_give_up_waiting (changes, error);
  mail_changes_fail_drains (changes, error);
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
      if (batch != NULL)
        g_ptr_array_add (changes->running, batch);
      g_mutex_unlock (&changes->lock);
      if (batch == NULL)
        break;
      if (changes->retry != NULL)
        g_source_destroy (changes->retry);
      g_clear_pointer (&changes->retry, g_source_unref);
      start (batch);
    }
  g_mutex_lock (&changes->lock);
  withdrawn = changes->withdrawn;
  changes->withdrawn = g_ptr_array_new_with_free_func ((GDestroyNotify)mail_change_free);
  g_mutex_unlock (&changes->lock);
  mail_changes_check_drains (changes);
  return G_SOURCE_REMOVE;
}
