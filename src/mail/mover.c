/* SPDX-License-Identifier: MIT
 *
 * From the server into the local storage, in rounds: fetch what is not kept yet, write it, settle
 * it in a thread (that is where the disk is waited for), and only then remove it from the server.
 * Then a pause, in which the maildrop is free for others, and the next round.
 *
 * A message is removed only if its bytes were compared with what is kept just before. So neither a
 * crash in between, nor a server that calls another message by an id it has used before, can cost a
 * message: that one is told apart by its bytes, and the older one of the name steps aside. For the
 * same reason one that is listed again after its removal is fetched again.
 */
#include "mail/mover-private.h"

#include "mailfs/log.h"

#include <string.h>

#define ROUND_MESSAGES 500u
#define ROUND_BYTES (64 * G_GUINT64_CONSTANT (1024) * 1024)
#define PAUSE_MS 1000
#define REMOVALS_MAX 3u /* told so often, a server will not remove it */

/* --- rounds --------------------------------------------------------------------------------------
 */

static void
item_clear (gpointer data)
{
  g_clear_pointer (&((MailMoverItem *)data)->draft, mail_keep_draft_free);
  g_clear_pointer (&((MailMoverItem *)data)->aside, mail_keep_draft_free);
}

static MailMoverRound *
round_new (MailMover *mover)
{
  MailStore *store = mover->store;
  MailMoverRound *round = g_new0 (MailMoverRound, 1);

  round->mover = mover;
  round->store = store;
  round->keep = store->keep;
  round->mailbox = mail_mailbox_ref (mover->mailbox);
  round->items = g_array_new (FALSE, FALSE, sizeof (MailMoverItem));
  g_array_set_clear_func (round->items, item_clear);
  round->remove = g_ptr_array_new_with_free_func (g_free);
  round->uids = mail_uid_set_new ();
  g_rw_lock_reader_lock (&store->tree_lock);
  round->name = g_strdup (round->mailbox->name);
  round->content_id = round->mailbox->content_id;
  g_rw_lock_reader_unlock (&store->tree_lock);
  g_mutex_lock (&round->mailbox->lock);
  round->uidvalidity = round->mailbox->status.uidvalidity;
  g_mutex_unlock (&round->mailbox->lock);
  return round;
}

/* Nothing of it belongs to the store any more. */
static void
round_clear (MailMoverRound *round)
{
  g_array_set_size (round->items, 0);
  g_clear_pointer (&round->mailbox, mail_mailbox_unref);
  round->mover = NULL;
}

void
mail_mover_round_free (MailMoverRound *round)
{
  round_clear (round);
  g_array_unref (round->items);
  g_ptr_array_unref (round->remove);
  mail_uid_set_free (round->uids);
  g_free (round->name);
  g_free (round);
}

static gboolean
on_pause_over (gpointer data)
{
  MailMover *mover = data;

  g_clear_pointer (&mover->pause, g_source_unref);
  mail_mover_next_round (mover);
  return G_SOURCE_REMOVE;
}

/* The maildrop is free meanwhile. */
static void
pause_then_go_on (MailMover *mover)
{
  mover->pause = g_timeout_source_new (PAUSE_MS);
  g_source_set_callback (mover->pause, on_pause_over, mover, NULL);
  g_source_attach (mover->pause, mover->store->net);
}

/* The message called id, if it is listed and nobody has removed it. */
static gboolean
find_listed (MailMailbox *mailbox, const char *id, MailMessage *message_out)
{
  g_mutex_lock (&mailbox->lock);
  guint32 uid = mailbox->remote_to_uid != NULL
                    ? GPOINTER_TO_UINT (g_hash_table_lookup (mailbox->remote_to_uid, id))
                    : 0;
  g_mutex_unlock (&mailbox->lock);
  return uid != 0 && mail_mailbox_find (mailbox, uid, message_out);
}

/* --- removal from the server ---------------------------------------------------------------------
 */

static void
look_again (MailMailbox *mailbox)
{
  g_mutex_lock (&mailbox->lock);
  gboolean start = !mailbox->syncing;
  mailbox->syncing = TRUE;
  g_mutex_unlock (&mailbox->lock);
  if (start)
    mail_sync_start (mailbox);
}

static void
removed (const GError *error, gpointer data)
{
  MailMoverRound *round = data;
  MailMover *mover = round->mover;

  mail_failpoint ("keep-removed");
  for (guint i = 0; error == NULL && i < round->remove->len; i++)
    {
      MailMoverState *state = mail_mover_state (mover, round->remove->pdata[i]);

      mail_keep_set_only_here (round->keep, round->remove->pdata[i]);
      if (state != NULL)
        state->removed = TRUE;
    }
  if (error != NULL && !mover->store->stopping)
    {
      /* Whether they are gone only another listing tells. */
      mail_log_info ("removing %u stored messages from the server: %s", round->remove->len,
                     error->message);
      if (!mail_store_is_network_error (error) || error->code == MAIL_ERROR_CONNECTION)
        look_again (round->mailbox);
      g_clear_pointer (&mover->todo, g_ptr_array_unref);
    }
  mail_mover_round_free (round);
  if (mover->store->stopping)
    mover->running = FALSE;
  else
    pause_then_go_on (mover);
}

static void
remove_from_server (MailMoverRound *round)
{
  MailMover *mover = round->mover;
  MailBackend *backend = mover->store->backend;

  if (round->remove->len == 0 || mover->store->stopping)
    {
      gboolean more = mover->todo != NULL && mover->next < mover->todo->len;

      mail_mover_round_free (round);
      mover->running = FALSE;
      if (more && !mover->store->stopping)
        {
          mover->running = TRUE;
          pause_then_go_on (mover);
        }
      return;
    }
  for (guint i = 0; i < round->remove->len; i++)
    mail_mover_state (mover, round->remove->pdata[i])->n_removals++;
  mail_log_info ("removing %u messages from the server, which are stored here", round->remove->len);
  g_ptr_array_add (round->remove, NULL);
  g_ptr_array_set_size (round->remove, (gint)round->remove->len - 1); /* NULL-terminated */
  backend->ops->remove (backend, round->name, round->uidvalidity,
                        (const MailUidRange *)round->uids->data, round->uids->len,
                        (const char *const *)round->remove->pdata, removed, round);
}

/* --- a round is on the disk ---------------------------------------------------------------- */

/* Another message has this id now: the kept one goes on under another name. */
static void
step_aside (MailMoverRound *round, MailMoverItem *item)
{
  MailMailbox *mailbox = round->mailbox;
  MailStore *store = mailbox->store;
  const char *id = mail_keep_draft_kept (item->draft)->id;
  const char *new_id = mail_keep_draft_kept (item->aside)->id;
  g_autofree char *name = store->naming.remote_name (new_id), *old_name = NULL;
  MailIndexBatch *batch = mail_index_batch_new ();
  MailMessage message = { 0 };

  mail_log_info ("the server uses an id again; the stored message of that id stays");
  mail_keep_adopt (round->keep, item->aside);
  mail_keep_set_only_here (round->keep, new_id);
  g_mutex_lock (&mailbox->lock);
  const MailMessage *known = mail_mailbox_get_locked (mailbox, item->uid);
  if (known != NULL && g_strcmp0 (mail_mailbox_remote_id_locked (mailbox, item->uid), id) == 0)
    {
      message = *known;
      old_name = g_strdup (mail_mailbox_name_locked (mailbox, item->uid));
      mail_mailbox_set_remote_id_locked (mailbox, item->uid, new_id);
      mail_index_batch_put_remote_id (batch, round->content_id, item->uid, new_id);
      mail_mailbox_set_name_locked (mailbox, item->uid, name);
      mail_index_batch_put_name (batch, round->content_id, item->uid, name);
      mailbox->generation++;
      mail_mailbox_touch_locked (mailbox);
    }
  g_mutex_unlock (&mailbox->lock);
  mail_index_queue (store->index, batch);
  mail_keep_remove (round->keep, id, NULL);
  if (message.uid == 0)
    return;
  if (store->events.message != NULL)
    store->events.message (store->events_data, mailbox, &message, NULL, old_name);
  if (store->events.directory != NULL)
    store->events.directory (store->events_data, mailbox);
}

/* A draft is on the disk: unless the user has removed the message meanwhile, it is kept. */
static void
adopt (MailMoverRound *round, MailMoverItem *item)
{
  MailMessage message;

  if (!mail_mailbox_find (round->mailbox, item->uid, &message))
    return;
  mail_keep_adopt (round->keep, item->draft);
  if (round->pin)
    mail_keep_set_only_here (round->keep, mail_keep_draft_kept (item->draft)->id);
  item->good = TRUE;
  if (!round->store->options.eol_lf)
    mail_store_learn_size (round->mailbox, round->content_id, item->uid,
                           mail_keep_draft_kept (item->draft)->size);
}

/* TRUE: the listing no longer says what there is. */
static gboolean
finish_item (MailMoverRound *round, MailMoverItem *item)
{
  MailMover *mover = round->mover;
  const char *id = mail_keep_draft_kept (item->draft)->id;
  const GError *error = mail_keep_draft_error (item->draft);

  if (round->pin)
    g_hash_table_remove (mover->pinned, id);
  if (error != NULL && !mover->told_failure)
    {
      mail_log_warning ("messages cannot be stored and stay on the server: %s", error->message);
      mover->told_failure = TRUE;
    }
  if (!item->whole || error != NULL)
    return FALSE;
  if (item->damaged)
    {
      mail_log_warning ("a stored message is damaged; it is fetched again");
      mail_keep_remove (round->keep, id, NULL);
      return TRUE;
    }
  if (item->aside != NULL)
    {
      step_aside (round, item);
      return TRUE;
    }
  if (!item->compare)
    adopt (round, item);
  MailMoverState *state = mail_mover_state (mover, id);
  if (item->good && !round->pin && state != NULL)
    {
      g_ptr_array_add (round->remove, g_strdup (id));
      mail_uid_set_add (round->uids, item->uid, item->uid);
    }
  return FALSE;
}

void
mail_mover_settled (MailMoverRound *round)
{
  MailMover *mover = round->mover;
  gboolean look = FALSE;

  g_clear_pointer (&mover->thread, g_thread_join);
  mover->round = NULL;
  for (guint i = 0; i < round->items->len; i++)
    look |= finish_item (round, &g_array_index (round->items, MailMoverItem, i));
  if (look)
    look_again (round->mailbox);
  remove_from_server (round);
}

static void
start_settling (MailMoverRound *round)
{
  round->mover->round = round;
  round->mover->thread = g_thread_new ("keep", mail_mover_settle, round);
}

/* --- fetching ------------------------------------------------------------------------------ */

static MailMoverItem *
find_item (MailMoverRound *round, guint32 uid)
{
  guint low = 0, high = round->items->len;

  while (low < high)
    {
      guint middle = low + (high - low) / 2;
      MailMoverItem *item = &g_array_index (round->items, MailMoverItem, middle);

      if (item->uid == uid)
        return item;
      if (item->uid < uid)
        low = middle + 1;
      else
        high = middle;
    }
  return NULL;
}

static void
fetch_data (MailFetchSink *sink, guint32 uid, guint64 offset, const guint8 *data, gsize length)
{
  MailMoverItem *item = find_item ((MailMoverRound *)sink, uid);

  /* What does not follow on leaves the draft too short, and then it is not whole. */
  if (item != NULL && !item->whole && offset == mail_keep_draft_kept (item->draft)->size)
    mail_keep_draft_write (item->draft, data, length, NULL);
}

static void
fetch_message (MailFetchSink *sink, guint32 uid, guint64 end, gboolean at_end, const GError *error)
{
  MailMoverItem *item = find_item ((MailMoverRound *)sink, uid);

  if (item == NULL || item->whole || error != NULL || !at_end || end == 0
      || mail_keep_draft_kept (item->draft)->size != end)
    return;
  item->whole = mail_keep_draft_end (item->draft, NULL);
}

static void
fetch_done (MailFetchSink *sink, const GError *error)
{
  MailMoverRound *round = (MailMoverRound *)sink;
  MailMover *mover = round->mover;

  if (error != NULL)
    {
      /* What came is put away; the rest waits for the next listing. */
      mail_log_info ("storing messages: %s", error->message);
      g_clear_pointer (&mover->todo, g_ptr_array_unref);
    }
  if (!mover->store->stopping)
    {
      start_settling (round);
      return;
    }
  mail_mover_round_free (round);
  mover->running = FALSE;
}

static void
start_fetching (MailMoverRound *round)
{
  MailBackend *backend = round->store->backend;
  g_autoptr (MailUidSet) uids = mail_uid_set_new ();
  g_autoptr (GPtrArray) ids = g_ptr_array_new ();

  for (guint i = 0; i < round->items->len; i++)
    {
      MailMoverItem *item = &g_array_index (round->items, MailMoverItem, i);

      mail_uid_set_add (uids, item->uid, item->uid);
      g_ptr_array_add (ids, mail_keep_draft_kept (item->draft)->id);
    }
  g_ptr_array_add (ids, NULL);
  round->sink = (MailFetchSink) { fetch_data, fetch_message, fetch_done };
  MailFetchRequest request = {
    .mailbox = round->name,
    .uidvalidity = round->uidvalidity,
    .uids = (const MailUidRange *)uids->data,
    .n_uids = uids->len,
    .remote_ids = (const char *const *)ids->pdata,
    .part = MAIL_PART_RANGE,
    .length = MAIL_TO_END,
    .priority = MAIL_PRIORITY_BULK,
  };
  backend->ops->fetch (backend, &request, &round->sink);
}

/* --- what is to be done next --------------------------------------------------------------- */

static gint
compare_items (gconstpointer a, gconstpointer b)
{
  guint32 left = ((const MailMoverItem *)a)->uid, right = ((const MailMoverItem *)b)->uid;

  return left < right ? -1 : left > right;
}

/* FALSE: there can be no draft, so there is no use in going on. */
static gboolean
add_item (MailMoverRound *round, const char *id, const MailMessage *message)
{
  MailMover *mover = round->mover;
  g_autoptr (GError) error = NULL;
  MailMoverItem item = { .uid = message->uid, .compare = mail_keep_has (round->keep, id) };

  item.draft = mail_keep_draft_new (round->keep, id, round->uidvalidity, message->uid,
                                    message->internaldate, !item.compare, &error);
  if (item.draft != NULL)
    {
      g_array_append_val (round->items, item);
      return TRUE;
    }
  if (!mover->told_failure)
    mail_log_warning ("messages cannot be stored and stay on the server: %s", error->message);
  mover->told_failure = TRUE;
  return FALSE;
}

/* A message of the listing: to be removed, to be fetched, or nothing. */
static gboolean
add_listed (MailMoverRound *round, const char *id, guint64 *bytes)
{
  MailMover *mover = round->mover;
  MailMoverState *state = mail_mover_state (mover, id);
  MailMessage message;

  if (state == NULL || state->removed || !find_listed (round->mailbox, id, &message))
    return TRUE;
  if (state->n_removals >= REMOVALS_MAX)
    {
      if (!mover->told_refusal)
        mail_log_warning ("the server does not remove messages although it says so; they are "
                          "stored here all the same");
      mover->told_refusal = TRUE;
      return TRUE;
    }
  *bytes += message.size;
  return add_item (round, id, &message);
}

/* What the server hides. */
static void
next_pins (MailMover *mover)
{
  MailMoverRound *round = round_new (mover);
  GHashTableIter iter;
  gpointer id;
  gboolean good = TRUE;

  round->pin = TRUE;
  g_hash_table_iter_init (&iter, mover->pinned);
  while (good && round->items->len < ROUND_MESSAGES && g_hash_table_iter_next (&iter, &id, NULL))
    {
      MailMessage message;

      if (find_listed (round->mailbox, id, &message))
        good = add_item (round, id, &message);
      else
        g_hash_table_iter_remove (&iter);
    }
  if (!good)
    g_hash_table_remove_all (mover->pinned);
  g_array_sort (round->items, compare_items);
  mover->running = round->items->len > 0;
  if (mover->running)
    start_settling (round);
  else
    mail_mover_round_free (round);
}

void
mail_mover_next_round (MailMover *mover)
{
  const MailStoreOptions *options = &mover->store->options;
  guint64 bytes = 0;

  mover->running = FALSE;
  if (mover->store->stopping || mover->mailbox == NULL)
    return;
  if (g_hash_table_size (mover->pinned) > 0)
    {
      next_pins (mover);
      return;
    }
  if (!options->pop3_delete || options->read_only || mover->todo == NULL)
    return;
  MailMoverRound *round = round_new (mover);
  while (mover->next < mover->todo->len && bytes < ROUND_BYTES
         && round->items->len + round->remove->len < ROUND_MESSAGES)
    if (!add_listed (round, mover->todo->pdata[mover->next++], &bytes))
      mover->next = mover->todo->len;
  g_array_sort (round->items, compare_items);
  mover->running = round->items->len + round->remove->len > 0;
  if (round->items->len > 0)
    start_fetching (round);
  else if (mover->running)
    remove_from_server (round);
  else
    mail_mover_round_free (round);
}

/* --- life ---------------------------------------------------------------------------------- */

MailMover *
mail_mover_new (MailStore *store)
{
  MailMover *mover = g_new0 (MailMover, 1);
  MailIndexBatch *batch = mail_index_batch_new ();
  MailIndexMailbox row;

  mover->store = store;
  mover->fetched = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, g_free);
  mover->pinned = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);
  if (mail_keep_length (store->keep) > 0)
    {
      /* An account whose messages have ids of the server's has this one mailbox. */
      MailMailbox *mailbox = mail_tree_ensure (store, "INBOX");

      g_mutex_lock (&mailbox->lock);
      mail_mailbox_load_locked (mailbox);
      mail_mover_seed_locked (mover, mailbox, batch);
      g_mutex_unlock (&mailbox->lock);
      mail_mailbox_fill_index_row (mailbox, &row);
      mail_index_batch_put_mailbox (batch, &row);
      g_free (row.path);
      mover->mailbox = mail_mailbox_ref (mailbox);
    }
  mail_index_queue (store->index, batch);
  return mover;
}

void
mail_mover_poll (MailMover *mover)
{
  MailStore *store = mover->store;
  GHashTableIter iter;
  gpointer value;
  g_autoptr (MailMailbox) mailbox = NULL;

  if (!store->options.pop3_delete || store->options.read_only || store->options.offline)
    return;
  g_rw_lock_reader_lock (&store->tree_lock);
  g_hash_table_iter_init (&iter, store->by_content);
  while (mailbox == NULL && g_hash_table_iter_next (&iter, NULL, &value))
    if (((MailMailbox *)value)->name != NULL)
      mailbox = mail_mailbox_ref (value);
  g_rw_lock_reader_unlock (&store->tree_lock);
  if (mailbox == NULL)
    return;
  g_mutex_lock (&mailbox->lock);
  mailbox->used_at = g_get_monotonic_time (); /* nobody needs to look for mail to be stored */
  gboolean first = mailbox->synced_at == 0;
  g_mutex_unlock (&mailbox->lock);
  if (first)
    look_again (mailbox);
}

void
mail_mover_free (MailMover *mover)
{
  if (mover == NULL)
    return;
  if (mover->pause != NULL)
    g_source_destroy (mover->pause);
  g_clear_pointer (&mover->pause, g_source_unref);
  if (mover->thread != NULL)
    {
      g_thread_join (mover->thread);
      round_clear (mover->round);
    }
  g_clear_pointer (&mover->todo, g_ptr_array_unref);
  g_clear_pointer (&mover->states, g_hash_table_unref);
  g_hash_table_unref (mover->fetched);
  g_hash_table_unref (mover->pinned);
  g_clear_pointer (&mover->mailbox, mail_mailbox_unref);
  g_free (mover);
}
