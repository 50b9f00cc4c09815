/* SPDX-License-Identifier: MIT
 *
 * Changes that name a message and need nothing to be found afterwards: flags, and removals. Both
 * may be said twice without harm. Net thread.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

static void
all_error (MailBatch *batch, const GError *error)
{
  while (batch->items->len > 0)
    mail_batch_error (batch, batch->items->pdata[0], error);
  mail_batch_end (batch);
}

/* --- flags
 * ------------------------------------------------------------------------------------------- */

static void
flags_stored (const GError *error, gpointer data)
{
  MailBatch *batch = data;

  mail_failpoint ("flags-answered");
  if (error != NULL)
    mail_batch_refused (batch, error);
  while (batch->items->len > 0)
    {
      MailChange *change = batch->items->pdata[0];
      MailMailbox *mailbox = change->mailbox;

      g_mutex_lock (&mailbox->lock);
      mail_pending_answer_locked (mailbox, change->uid, change->id, TRUE);
      g_mutex_unlock (&mailbox->lock);
      mail_effect_answered (mailbox, change->content_id, change->uid);
      mail_batch_succeed (batch, change);
    }
  mail_batch_end (batch);
}

static void
store_flags (MailBatch *batch)
{
  const MailChange *first = batch->items->pdata[0];
  MailBackend *backend = batch->changes->store->backend;

  mail_failpoint ("flags-sent");
  backend->ops->store_flags (backend, batch->mailbox_name, batch->uidvalidity,
                             (const MailUidRange *)batch->uids->data, batch->uids->len, first->add,
                             first->add_keywords, first->remove, first->remove_keywords,
                             flags_stored, batch);
}

/* --- removals
 * ---------------------------------------------------------------------------------------- */

static void
removed (const GError *error, gpointer data)
{
  MailBatch *batch = data;

  mail_failpoint ("remove-answered");
  if (error != NULL)
    mail_batch_refused (batch, error);
  while (batch->items->len > 0)
    {
      const MailChange *change = batch->items->pdata[0];
      g_autoptr (GError) failed = NULL;

      /* The server has it no more; now the copy that is stored here may go. */
      if (!mail_mover_forget (batch->changes->store, batch->mailbox, change->uid, &failed))
        mail_log_warning ("message %u stays stored here: %s", change->uid, failed->message);
      mail_batch_succeed (batch, batch->items->pdata[0]);
    }
  mail_batch_end (batch);
}

static char **
remote_ids (MailBatch *batch)
{
  char **ids = NULL;
  MailUidIter iter = { .set = batch->uids };
  guint n = 0;

  if ((mail_store_caps (batch->changes->store) & MAIL_CAP_REMOTE_IDS) == 0)
    return NULL;
  ids = g_new0 (char *, mail_uid_set_count (batch->uids) + 1);
  g_mutex_lock (&batch->mailbox->lock);
  for (guint32 uid; (uid = mail_uid_iter_next (&iter)) != 0;)
    {
      const char *id = mail_mailbox_remote_id_locked (batch->mailbox, uid);

      ids[n++] = g_strdup (id != NULL ? id : "");
    }
  g_mutex_unlock (&batch->mailbox->lock);
  return ids;
}

static void
expunge (MailBatch *batch)
{
  MailBackend *backend = batch->changes->store->backend;
  g_auto (GStrv) ids = remote_ids (batch);

  mail_failpoint ("remove-sent");
  mail_log_removed (batch, batch->uids, NULL);
  backend->ops->remove (backend, batch->mailbox_name, batch->uidvalidity,
                        (const MailUidRange *)batch->uids->data, batch->uids->len,
                        (const char *const *)ids, removed, batch);
}

static void remove_messages (MailBatch *batch, gboolean made);

static void
trash_made (const GError *error, gpointer data)
{
  if (error != NULL)
    all_error (data, error);
  else
    remove_messages (data, TRUE);
}

static void
remove_messages (MailBatch *batch, gboolean made)
{
  g_autofree char *name = NULL;

  g_clear_pointer (&batch->target, mail_mailbox_unref);
  switch (mail_trash_of (batch->mailbox, &batch->target, &name))
    {
    case MAIL_TRASH_EXPUNGE:
      expunge (batch);
      return;
    case MAIL_TRASH_MOVE:
      g_free (batch->target_name);
      batch->target_name = g_steal_pointer (&name);
      mail_transfer_start (batch);
      return;
    case MAIL_TRASH_MAKE:
      break;
    }
  if (!made && name != NULL)
    {
      mail_folder_make (batch->changes, name, trash_made, batch);
      return;
    }
  g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_FAILED,
                                          "there is no trash mailbox and none can be made");
  all_error (batch, error);
}

void
mail_alter_start (MailBatch *batch)
{
  if (batch->mailbox_name == NULL)
    {
      g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_GONE,
                                              "the mailbox no longer exists");

      all_error (batch, error);
    }
  else if (batch->kind == MAIL_CHANGE_FLAGS)
    store_flags (batch);
  else
    remove_messages (batch, FALSE);
}
