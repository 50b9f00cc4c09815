/* SPDX-License-Identifier: MIT
 *
 * Bringing one mailbox's messages up to date: what the backend reports is gathered on the net
 * thread and merged in one step when it says that it is complete, so that a listing cut short
 * changes nothing. Readers see the old state or the new one.
 */
#include "mail/mover.h"
#include "mail/sync-private.h"

#include "mailfs/log.h"

#include <string.h>

/* Messages and flag changes that one listing may report; a server that goes on and on is lying. */
#define REPORTED_MAX (8u << 20)

/* --- the sink -------------------------------------------------------------------------------- */

static MailMessage
from_info (MailStore *store, const MailMessageInfo *info)
{
  const gint64 date_max = (G_GINT64_CONSTANT (1) << 33) - 1;
  MailMessage message = { 0 };

  message.uid = info->uid;
  message.keywords = mail_index_keywords_id (store->index, info->keywords);
  message.modseq = info->modseq;
  message.size = MIN (info->size, (G_GUINT64_CONSTANT (1) << 40) - 1);
  message.flags = info->flags;
  message.internaldate = CLAMP (info->internaldate, -date_max, date_max);
  return message;
}

/* FALSE: it is thrown away, and the listing with it. */
static gboolean
may_report (MailSync *sync)
{
  sync->too_many |= sync->messages->len + sync->flags->len >= REPORTED_MAX;
  return !sync->too_many;
}

static void
sync_begin (MailSyncSink *sink, guint32 uidvalidity, gboolean complete)
{
  MailSync *sync = (MailSync *)sink;

  sync->begun = TRUE;
  sync->uidvalidity = uidvalidity;
  sync->complete = complete || uidvalidity != sync->known.uidvalidity;
}

static void
sync_message (MailSyncSink *sink, const MailMessageInfo *info)
{
  MailSync *sync = (MailSync *)sink;
  if (!may_report (sync))
    return;
  MailMessage message = from_info (sync->mailbox->store, info);
  if (info->remote_id != NULL)
    {
      if (sync->remote_ids == NULL)
        sync->remote_ids = g_ptr_array_new_with_free_func (g_free);
      g_ptr_array_add (sync->remote_ids, g_strdup (info->remote_id));
    }
  else if (info->uid == 0)
    return;
  g_array_append_val (sync->messages, message);
}

static void
sync_flags (MailSyncSink *sink, const MailMessageInfo *info)
{
  MailSync *sync = (MailSync *)sink;
  if (!may_report (sync))
    return;
  MailMessage message = from_info (sync->mailbox->store, info);
  g_array_append_val (sync->flags, message);
}

static void
sync_vanished (MailSyncSink *sink, guint32 first, guint32 last)
{
  MailSync *sync = (MailSync *)sink;

  mail_uid_set_gather (sync->vanished, first, last, &sync->n_vanished);
}

static void
sync_present (MailSyncSink *sink, guint32 first, guint32 last)
{
  MailSync *sync = (MailSync *)sink;

  sync->has_present = TRUE;
  if (first != 0)
    mail_uid_set_add (sync->present, first, last);
}

static gboolean
sync_is_known (MailSyncSink *sink, const char *remote_id)
{
  MailMailbox *mailbox = ((MailSync *)sink)->mailbox;

  g_mutex_lock (&mailbox->lock);
  gboolean known = mailbox->remote_to_uid != NULL
                   && g_hash_table_contains (mailbox->remote_to_uid, remote_id);
  g_mutex_unlock (&mailbox->lock);
  return known;
}

/* --- start and end --------------------------------------------------------------------------- */

static void
sync_free (MailSync *sync)
{
  mail_mailbox_unref (sync->mailbox);
  g_free (sync->name);
  g_array_unref (sync->messages);
  g_array_unref (sync->flags);
  g_clear_pointer (&sync->remote_ids, g_ptr_array_unref);
  mail_uid_set_free (sync->vanished);
  mail_uid_set_free (sync->present);
  g_free (sync);
}

static void
finish (MailSync *sync, const GError *error)
{
  MailMailbox *mailbox = sync->mailbox;
  GQueue waiters;

  g_mutex_lock (&mailbox->lock);
  /* What is said during a listing that fails may be about that listing: no circles. */
  gboolean again = mailbox->pushed && error == NULL;
  mailbox->pushed = FALSE;
  mailbox->syncing = again;
  mailbox->sync_failed = error != NULL;
  mailbox->tried_at = g_get_monotonic_time ();
  gboolean known = mailbox->loaded || mail_mailbox_load_locked (mailbox);
  waiters = mailbox->sync_waiters;
  g_queue_init (&mailbox->sync_waiters);
  g_mutex_unlock (&mailbox->lock);

  if (error != NULL)
    mail_log_info ("listing \"%s\": %s", sync->name, error->message);
  /* What is known goes on being served while the server is away, but not against its word. */
  mail_store_wake_all (&waiters, known && mail_store_is_network_error (error) ? NULL : error);
  if (error == NULL) /* the server works */
    {
      mail_fetches_answered (mailbox->store->fetches);
      mail_changes_kick (mailbox->store->changes);
    }
  if (again)
    mail_sync_start (mailbox);
  if (g_error_matches (error, MAIL_ERROR, MAIL_ERROR_GONE))
    mail_tree_refresh (mailbox->store);
}

static void
report_to_mover (MailSync *sync)
{
  g_autoptr (GPtrArray) none = g_ptr_array_new ();

  mail_mover_listed (sync->mailbox->store->mover, sync->mailbox,
                     sync->remote_ids != NULL ? sync->remote_ids : none);
}

static void
sync_done (MailSyncSink *sink, const MailSyncResult *result, const GError *error)
{
  MailSync *sync = (MailSync *)sink;
  g_autoptr (GError) endless = NULL;

  if (sync->too_many && error == NULL)
    error = endless = g_error_new (MAIL_ERROR, MAIL_ERROR_TOO_LARGE, "too many messages");
  if (error == NULL && sync->begun)
    mail_sync_merge (sync, result);
  finish (sync, error);
  if (error == NULL && sync->begun && sync->complete && sync->mailbox->store->mover != NULL)
    report_to_mover (sync);
  sync_free (sync);
}

static gboolean
start (gpointer data)
{
  MailSync *sync = data;
  MailBackend *backend = sync->mailbox->store->backend;

  backend->ops->sync (backend, sync->name, &sync->known, &sync->sink);
  return G_SOURCE_REMOVE;
}

void
mail_sync_start (MailMailbox *mailbox)
{
  MailStore *store = mailbox->store;
  MailSync *sync = g_new0 (MailSync, 1);

  sync->sink = (MailSyncSink) { .begin = sync_begin,
                                .message = sync_message,
                                .flags = sync_flags,
                                .vanished = sync_vanished,
                                .present = sync_present,
                                .is_known = sync_is_known,
                                .done = sync_done };
  sync->mailbox = mail_mailbox_ref (mailbox);
  sync->began = g_get_monotonic_time ();
  sync->messages = g_array_new (FALSE, FALSE, sizeof (MailMessage));
  sync->flags = g_array_new (FALSE, FALSE, sizeof (MailMessage));
  sync->vanished = mail_uid_set_new ();
  sync->present = mail_uid_set_new ();

  g_rw_lock_reader_lock (&store->tree_lock);
  g_mutex_lock (&mailbox->lock);
  sync->name = g_strdup (mailbox->name != NULL ? mailbox->name : "");
  sync->content_id = mailbox->content_id;
  sync->number = ++mailbox->sync_started;
  if (mail_mailbox_load_locked (mailbox))
    sync->known = mailbox->status;
  g_mutex_unlock (&mailbox->lock);
  g_rw_lock_reader_unlock (&store->tree_lock);
  mail_store_invoke (store, start, sync);
}

/* --- asking ---------------------------------------------------------------------------------- */

static MailAnswer
park_locked (MailMailbox *mailbox, MailWaiter *waiter, gboolean *start_out)
{
  if (waiter == NULL)
    return MAIL_PARKED;
  waiter->link.data = waiter;
  g_queue_push_tail_link (&mailbox->sync_waiters, &waiter->link);
  *start_out = !mailbox->syncing;
  mailbox->syncing = TRUE;
  return MAIL_PARKED;
}

MailAnswer
mail_mailbox_fresh (MailMailbox *mailbox, guint max_age, MailWaiter *waiter, GError **error)
{
  MailStore *store = mailbox->store;
  gint64 now = g_get_monotonic_time ();
  gint64 age = (max_age != 0 ? max_age : store->options.refresh) * G_TIME_SPAN_SECOND;
  MailAnswer answer = MAIL_READY;
  gboolean start = FALSE;

  if (!mail_mailbox_selectable (mailbox))
    return MAIL_READY;
  g_mutex_lock (&mailbox->lock);
  mailbox->used_at = now;
  gboolean known = mailbox->loaded || mail_mailbox_load_locked (mailbox);
  gboolean asked = (waiter != NULL && mailbox->tried_at >= waiter->since)
                   || (mailbox->tried_at != 0 && now - mailbox->tried_at <= age);
  if (store->options.offline && !known)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_UNREACHABLE, "offline and never listed");
      answer = MAIL_FAILED;
    }
  else if (!store->options.offline && !(known && asked))
    answer = park_locked (mailbox, waiter, &start);
  g_mutex_unlock (&mailbox->lock);
  if (start)
    mail_sync_start (mailbox);
  return answer;
}

MailAnswer
mail_mailbox_known (MailMailbox *mailbox, MailWaiter *waiter, GError **error)
{
  g_mutex_lock (&mailbox->lock);
  mailbox->used_at = g_get_monotonic_time ();
  gboolean known = mailbox->loaded || mail_mailbox_load_locked (mailbox);
  g_mutex_unlock (&mailbox->lock);
  return known ? MAIL_READY : mail_mailbox_fresh (mailbox, 0, waiter, error);
}
