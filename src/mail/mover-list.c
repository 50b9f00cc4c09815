/* SPDX-License-Identifier: MIT
 *
 * What a listing means for messages that are kept: they stay in it, a server that hides mail once
 * it was read is found out, and what it still has is to be moved. And what the user's rm means for
 * them.
 */
#include "mail/mover-private.h"

#include "mailfs/log.h"

/* A session may be so much older than the listing made from it. */
#define SESSION_SLACK (3 * G_TIME_SPAN_SECOND)
#define FETCHED_MAX 4096u

MailMoverState *
mail_mover_state (MailMover *mover, const char *id)
{
  return mover->states != NULL ? g_hash_table_lookup (mover->states, id) : NULL;
}

/* A UID for a kept message that the index does not know: its old one if nobody has it. */
static guint32
give_uid (MailMailbox *mailbox, const MailKept *kept)
{
  guint32 next = MAX (mailbox->status.uidnext, 1u), uid = kept->uid;

  if (uid == 0 || uid == G_MAXUINT32 || mail_mailbox_get_locked (mailbox, uid) != NULL
      || mail_mailbox_remote_id_locked (mailbox, uid) != NULL)
    uid = next;
  mailbox->status.uidnext = MAX (next, uid + 1);
  return uid;
}

void
mail_mover_seed_locked (MailMover *mover, MailMailbox *mailbox, MailIndexBatch *batch)
{
  MailStore *store = mailbox->store;
  g_autoptr (GArray) list = mail_keep_list (store->keep);

  for (guint i = 0; i < list->len; i++)
    {
      const MailKept *kept = &g_array_index (list, MailKept, i);
      guint32 uid = mailbox->remote_to_uid != NULL
                        ? GPOINTER_TO_UINT (g_hash_table_lookup (mailbox->remote_to_uid, kept->id))
                        : 0;

      if (uid != 0 && mail_mailbox_get_locked (mailbox, uid) != NULL)
        continue;
      if (mailbox->messages == NULL)
        mailbox->messages = g_array_new (FALSE, FALSE, sizeof (MailMessage));
      if (mailbox->status.uidvalidity == 0)
        mailbox->status.uidvalidity = kept->uidvalidity;
      mailbox->loaded = TRUE;
      MailMessage message = { .uid = uid != 0 ? uid : give_uid (mailbox, kept),
                              .size = kept->size,
                              .internaldate = kept->date,
                              .local = store->options.eol_lf ? 0 : MAIL_LOCAL_EXACT };
      g_autofree char *name = store->naming.remote_name (kept->id);

      g_array_insert_val (mailbox->messages, mail_mailbox_lower_bound_locked (mailbox, message.uid),
                          message);
      mail_mailbox_set_remote_id_locked (mailbox, message.uid, kept->id);
      mail_mailbox_set_name_locked (mailbox, message.uid, name);
      mail_index_batch_put (batch, mailbox->content_id, &message, 1);
      mail_index_batch_put_remote_id (batch, mailbox->content_id, message.uid, kept->id);
      mail_index_batch_put_name (batch, mailbox->content_id, message.uid, name);
    }
}

/* Nobody here has removed it. The lock is held. */
static gboolean
is_visible (MailMailbox *mailbox, guint32 uid)
{
  const MailMessage *message = mail_mailbox_get_locked (mailbox, uid);

  return message != NULL && (message->local & MAIL_LOCAL_HIDDEN) == 0;
}

/* A server that hides mail once it was read has dropped everything we read; if only some of it is
 * missing, somebody removed that. What was read a moment ago may still be listed, and proves
 * nothing. */
static void
pin_hidden (MailMover *mover, MailMailbox *mailbox, GHashTable *reported, gint64 began)
{
  GHashTableIter iter;
  gpointer key, value;
  gboolean hides = TRUE;

  g_hash_table_iter_init (&iter, mover->fetched);
  while (hides && g_hash_table_iter_next (&iter, &key, &value))
    hides = ((MailMoverFetched *)value)->at > began - SESSION_SLACK
            || !g_hash_table_contains (reported, key);
  g_hash_table_iter_init (&iter, mover->fetched);
  while (g_hash_table_iter_next (&iter, &key, &value))
    {
      const MailMoverFetched *fetched = value;
      gboolean gone = !g_hash_table_contains (reported, key);

      if (gone && hides && is_visible (mailbox, fetched->uid)
          && !mail_keep_has (mover->store->keep, key))
        g_hash_table_replace (mover->pinned, g_strdup (key), GUINT_TO_POINTER (fetched->uid));
      if (gone || fetched->at <= began - SESSION_SLACK)
        g_hash_table_iter_remove (&iter);
    }
}

GHashTable *
mail_mover_retain_locked (MailMover *mover, MailMailbox *mailbox, GHashTable *reported,
                          gint64 began)
{
  GHashTable *retained = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);
  g_autoptr (GArray) list = mail_keep_list (mover->store->keep);
  GHashTableIter iter;
  gpointer key;

  pin_hidden (mover, mailbox, reported, began);
  for (guint i = 0; i < list->len; i++)
    {
      const char *id = g_array_index (list, MailKept, i).id;

      if (!g_hash_table_contains (reported, id))
        g_hash_table_add (retained, g_strdup (id));
    }
  g_hash_table_iter_init (&iter, mover->pinned);
  while (g_hash_table_iter_next (&iter, &key, NULL))
    if (!g_hash_table_contains (reported, key))
      g_hash_table_add (retained, g_strdup (key));
  return retained;
}

void
mail_mover_listed (MailMover *mover, MailMailbox *mailbox, GPtrArray *reported)
{
  GHashTable *states = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, g_free);

  if (mover->mailbox == NULL)
    mover->mailbox = mail_mailbox_ref (mailbox);
  g_clear_pointer (&mover->todo, g_ptr_array_unref);
  mover->todo = g_ptr_array_new_full (reported->len, g_free);
  mover->next = 0;
  for (guint i = 0; i < reported->len; i++)
    {
      const char *id = reported->pdata[i];
      const MailMoverState *old = mail_mover_state (mover, id);
      MailMoverState *state = g_new0 (MailMoverState, 1);

      if (old != NULL)
        *state = *old;
      state->removed = FALSE; /* it is still, or again, there */
      g_hash_table_replace (states, g_strdup (id), state);
      g_ptr_array_add (mover->todo, g_strdup (id));
    }
  g_clear_pointer (&mover->states, g_hash_table_unref);
  mover->states = states;
  mail_keep_set_elsewhere (mover->store->keep, states);
  if (!mover->running)
    mail_mover_next_round (mover);
}

void
mail_mover_fetched (MailMover *mover, MailMailbox *mailbox, guint32 content_id, guint32 uid)
{
  g_autofree char *id = NULL;

  if (g_hash_table_size (mover->fetched) >= FETCHED_MAX)
    return;
  g_mutex_lock (&mailbox->lock);
  id = g_strdup (mail_mailbox_remote_id_locked (mailbox, uid));
  g_mutex_unlock (&mailbox->lock);
  if (id == NULL)
    return;
  MailMoverFetched *fetched = g_new (MailMoverFetched, 1);
  *fetched = (MailMoverFetched) { g_get_monotonic_time (), uid };
  g_hash_table_replace (mover->fetched, g_steal_pointer (&id), fetched);
}

/* --- removal by the user ------------------------------------------------------------------- */

static char *
id_of (MailMailbox *mailbox, guint32 uid)
{
  g_mutex_lock (&mailbox->lock);
  char *id = g_strdup (mail_mailbox_remote_id_locked (mailbox, uid));
  g_mutex_unlock (&mailbox->lock);
  return id;
}

gboolean
mail_mover_is_only_here (MailStore *store, MailMailbox *mailbox, guint32 uid)
{
  g_autofree char *id = store->keep != NULL ? id_of (mailbox, uid) : NULL;

  return id != NULL && mail_keep_is_only_here (store->keep, id);
}

gboolean
mail_mover_forget (MailStore *store, MailMailbox *mailbox, guint32 uid, GError **error)
{
  g_autofree char *id = store->keep != NULL ? id_of (mailbox, uid) : NULL;

  if (id == NULL)
    return TRUE;
  if (mail_keep_has (store->keep, id))
    {
      mail_log_info ("removing the stored message %u", uid);
      if (!mail_keep_remove (store->keep, id, error))
        return FALSE;
    }
  /* Should the server list the id again, that is another message, or a removal that was none. */
  MailIndexBatch *batch = mail_index_batch_new ();
  g_mutex_lock (&mailbox->lock);
  mail_mailbox_set_remote_id_locked (mailbox, uid, NULL);
  g_mutex_unlock (&mailbox->lock);
  mail_index_batch_put_remote_id (batch, mail_mailbox_content_id (mailbox), uid, NULL);
  mail_index_queue (store->index, batch);
  return TRUE;
}
