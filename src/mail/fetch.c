/* SPDX-License-Identifier: MIT
 *
 * Requests for message bytes and what becomes of the answers. Bytes arrive on the net thread and go
 * into the cache file first, then each waiter is woken whose own range is there. A waiter that left
 * (its request was answered otherwise) stays linked until its range arrives or fails: the bytes
 * still land in the cache.
 */
#include "mail/fetch-private.h"
#include "mail/mover.h"

#include "mailfs/log.h"

#include <string.h>

#define HAND_ON_MAX (1024 * G_GUINT64_CONSTANT (1024)) /* larger ones are read in pieces */
/* So are those that take longer to come: whoever joins is to have what is here. */
#define HAND_ON_LASTS (100 * G_TIME_SPAN_MILLISECOND)
#define IN_VAIN_MAX 2u /* so often a message comes whole for one reader */

static void check_start (MailFetch *fetch, guint32 uid, guint64 end);

/* --- bytes arriving, net thread -------------------------------------------------------------- */

static void
wake_readers (MailFetch *fetch)
{
  MailFetches *fetches = fetch->fetches;
  guint64 key = mail_fetch_key (fetch->content_id, fetch->uid);
  GQueue woken = G_QUEUE_INIT;

  g_mutex_lock (&fetches->lock);
  MailPending *pending = g_hash_table_lookup (fetches->pending, &key);
  if (pending != NULL && pending->waiters.length > 0)
    mail_claims_collect (pending, FALSE, &woken, NULL);
  g_mutex_unlock (&fetches->lock);
  mail_store_wake_all (&woken, NULL);
}

static gint
compare_uid (gconstpointer a, gconstpointer b)
{
  return mail_compare_uint32 (a, b);
}

/* What was asked before he came is not his answer: whoever joined later asks himself. */
static void
spare_late_comers (const MailFetch *fetch, GQueue *failed, GQueue *woken)
{
  for (GList *link = failed->head, *next; link != NULL; link = next)
    {
      const MailWaiter *waiter = link->data;

      next = link->next;
      if (waiter->since <= fetch->asked_at)
        continue;
      g_queue_unlink (failed, link);
      g_queue_push_tail_link (woken, link);
    }
}

/* Without ranges there is no other way than to ask for all of it again, once: the disk may be full. */
static void
refuse_what_is_not_kept (const MailFetch *fetch, GQueue *failed, GQueue *refused)
{
  if (mail_store_has_ranges (fetch->mailbox->store) || fetch->end != MAIL_TO_END)
    return;
  for (GList *link = failed->head, *next; link != NULL; link = next)
    {
      MailWaiter *waiter = link->data;

      next = link->next;
      if (++waiter->n_in_vain < IN_VAIN_MAX)
        continue;
      g_queue_unlink (failed, link);
      g_queue_push_tail_link (refused, link);
    }
}

/* The claim of one message is over, with an error or with everything delivered. */
static void
release (MailFetch *fetch, guint32 uid, const GError *error)
{
  MailFetches *fetches = fetch->fetches;
  guint64 key = mail_fetch_key (fetch->content_id, uid);
  GQueue woken = G_QUEUE_INIT, failed = G_QUEUE_INIT, refused = G_QUEUE_INIT;
  g_autoptr (GError) not_kept = NULL;

  g_mutex_lock (&fetches->lock);
  MailPending *pending = g_hash_table_lookup (fetches->pending, &key);
  if (pending != NULL)
    {
      mail_claims_drop (pending, fetch->start, fetch->claim_end);
      mail_claims_collect (pending, TRUE, &woken, &failed);
      if (mail_store_is_network_error (error))
        spare_late_comers (fetch, &failed, &woken);
      else if (error == NULL)
        refuse_what_is_not_kept (fetch, &failed, &refused);
      if (failed.length > 0 && g_error_matches (error, MAIL_ERROR, MAIL_ERROR_TIMED_OUT))
        mail_patience_lost (fetches, key);
      mail_claims_put (fetches, pending);
    }
  g_mutex_unlock (&fetches->lock);
  if (error == NULL)
    mail_fetches_answered (fetches);
  mail_store_wake_all (&woken, NULL);
  /* Without an error the range turned out to be another one than asked for: they ask again. */
  mail_store_wake_all (&failed, error);
  if (refused.length > 0)
    {
      g_set_error (&not_kept, MAIL_ERROR, MAIL_ERROR_FAILED, "there is no room to keep it");
      mail_store_wake_all (&refused, not_kept);
    }
}

static gboolean
take_outstanding (MailFetch *fetch, guint32 uid)
{
  guint i;

  if (!g_array_binary_search (fetch->uids, &uid, compare_uid, &i))
    return FALSE;
  g_array_remove_index (fetch->uids, i);
  return TRUE;
}

static void
write_bytes (MailFetch *fetch, guint64 offset, const guint8 *data, gsize length)
{
  if (fetch->error == NULL && length > 0)
    mail_cache_file_write (fetch->file, offset, data, length, &fetch->error);
}

/* CRLF becomes LF; a CR at the end of a piece waits for the next one. */
static void
write_lf (MailFetch *fetch, const guint8 *data, gsize length)
{
  g_autofree guint8 *out = g_malloc (length + 1);
  gsize n = 0;

  for (gsize i = 0; i < length; i++)
    {
      if (fetch->held_cr && data[i] != '\n')
        out[n++] = '\r';
      fetch->held_cr = data[i] == '\r';
      if (!fetch->held_cr)
        out[n++] = data[i];
    }
  write_bytes (fetch, fetch->lf_offset, out, n);
  fetch->lf_offset += n;
}

static void
flush_small (MailFetch *fetch)
{
  if (fetch->small->len == 0)
    return;
  write_bytes (fetch, 0, fetch->small->data, fetch->small->len);
  g_byte_array_set_size (fetch->small, 0);
}

static void
leave_message (MailFetch *fetch)
{
  g_clear_pointer (&fetch->file, mail_cache_file_unref);
  g_clear_error (&fetch->error);
  g_byte_array_set_size (fetch->small, 0);
  fetch->uid = 0;
}

static void
enter_message (MailFetch *fetch, guint32 uid, guint64 offset)
{
  leave_message (fetch);
  fetch->uid = uid;
  fetch->file = mail_cache_get (fetch->fetches->store->cache, fetch->content_id, uid, 0);
  fetch->begun_at = g_get_monotonic_time ();
  fetch->first_offset = fetch->wire_offset = offset;
  fetch->lf_offset = 0;
  fetch->held_cr = FALSE;
  /* Where a byte belongs is known only by counting from the start. */
  if (offset > 0 && fetch->fetches->store->options.eol_lf)
    g_set_error (&fetch->error, MAIL_ERROR, MAIL_ERROR_PROTOCOL, "it does not begin at its start");
}

/* Nobody waits for it, and the kernel is to have it. */
static gboolean
is_ahead (MailFetch *fetch)
{
  MailFetches *fetches = fetch->fetches;
  guint64 key = mail_fetch_key (fetch->content_id, fetch->uid);

  g_mutex_lock (&fetches->lock);
  const MailPending *pending = g_hash_table_lookup (fetches->pending, &key);
  gboolean ahead = pending != NULL && pending->hand_on && pending->waiters.length == 0;
  g_mutex_unlock (&fetches->lock);
  return ahead;
}

static void
fetch_data (MailFetchSink *sink, guint32 uid, guint64 offset, const guint8 *data, gsize length)
{
  MailFetch *fetch = (MailFetch *)sink;
  gboolean lf = fetch->fetches->store->options.eol_lf;

  mail_patience_moved (fetch->fetches, length);
  /* After a lost connection a message is told again from its start. */
  if (fetch->uid != uid || (lf && offset != fetch->wire_offset))
    enter_message (fetch, uid, offset);
  if (lf)
    {
      write_lf (fetch, data, length);
      fetch->wire_offset += length;
      wake_readers (fetch);
      return;
    }
  if (offset == fetch->small->len
      && (offset + length <= MAIL_BLOCK_SIZE
          || (offset + length <= HAND_ON_MAX && is_ahead (fetch)
              && g_get_monotonic_time () - fetch->begun_at < HAND_ON_LASTS)))
    {
      g_byte_array_append (fetch->small, data, length);
      fetch->wire_offset = offset + length;
      return;
    }
  flush_small (fetch);
  write_bytes (fetch, offset, data, length);
  fetch->wire_offset = offset + length;
  wake_readers (fetch);
}

/* It is in the cache now, and whole: a reader that comes meanwhile is answered from there. He must
 * not be reading it already: the kernel would have to wait for that, and the net thread with it. */
static void
hand_on (MailFetch *fetch)
{
  const MailStore *store = fetch->fetches->store;

  if (is_ahead (fetch) && store->events.fetched_ahead != NULL
      && !mail_readahead_is_near (store->readahead, fetch->mailbox, fetch->content_id, fetch->uid))
    store->events.fetched_ahead (store->events_data, fetch->content_id, fetch->uid,
                                 fetch->small->data, fetch->small->len);
}

/* The size is told before the end is known in the cache: who reads it from there is answered at
 * once, and must find the true length when he reads on. */
static void
write_end (MailFetch *fetch, guint64 end, guint64 claimed)
{
  gboolean lf = fetch->fetches->store->options.eol_lf;

  if (lf && fetch->held_cr)
    {
      write_bytes (fetch, fetch->lf_offset++, (const guint8 *)"\r", 1);
      fetch->held_cr = FALSE;
    }
  if (fetch->error == NULL)
    mail_store_learn_size (fetch->mailbox, fetch->content_id, fetch->uid,
                           lf ? fetch->lf_offset : end);
  if (fetch->error == NULL && fetch->small->len > 0 && fetch->small->len == end)
    {
      if (mail_cache_file_write_whole (fetch->file, fetch->small->data, end, &fetch->error)
          && end == claimed)
        hand_on (fetch);
    }
  else
    {
      flush_small (fetch);
      if (fetch->error == NULL)
        mail_cache_file_set_end (fetch->file, lf ? fetch->lf_offset : end, &fetch->error);
    }
  g_byte_array_set_size (fetch->small, 0);
}

/* The true length is known: what the server claimed is corrected before any reader is answered. */
void
mail_store_learn_size (MailMailbox *mailbox, guint32 content_id, guint32 uid, guint64 size)
{
  MailStore *store = mailbox->store;
  MailMessage copy;
  guint64 claimed = 0;
  gboolean wrong = FALSE;

  g_mutex_lock (&mailbox->lock);
  /* With another UIDVALIDITY meanwhile this UID is another message. */
  MailMessage *message = mailbox->content_id == content_id ? mail_mailbox_get_locked (mailbox, uid)
                                                           : NULL;
  if (message != NULL && (message->size != size || !(message->local & MAIL_LOCAL_EXACT)))
    {
      claimed = message->size;
      wrong = claimed != size;
      message->size = size;
      message->local |= MAIL_LOCAL_EXACT;
      copy = *message;
    }
  g_mutex_unlock (&mailbox->lock);
  if (!wrong)
    return;

  MailIndexBatch *batch = mail_index_batch_new ();
  mail_index_batch_put (batch, content_id, &copy, 1);
  mail_index_queue (store->index, batch);
  if (store->events.size_known != NULL)
    store->events.size_known (store->events_data, content_id, uid, claimed, size);
}

/* Less than the whole, from a server that has no ranges. */
static gboolean
is_head (const MailFetch *fetch)
{
  return fetch->end != MAIL_TO_END
         && (mail_store_caps (fetch->mailbox->store) & MAIL_CAP_REMOTE_IDS) != 0;
}

static guint64
claimed_size (MailFetch *fetch, guint32 uid)
{
  MailMessage message = { 0 };

  return mail_mailbox_find_gone (fetch->mailbox, uid, &message) ? message.size : 0;
}

/* A part that came short says where the message ends, unless the server caps parts: when that is
 * before the claimed end, ask from there on. The backend answers an empty part with the whole
 * message, from offset 0 on, and that is proof. An end behind the claimed one may mean that the
 * parts are of two different messages: the first block must then still be what it was. */
static void
finish_message (MailFetch *fetch, guint32 uid, guint64 end, gboolean at_end)
{
  gboolean whole = (fetch->start == 0 && (fetch->end == MAIL_TO_END || is_head (fetch)))
                   || fetch->first_offset < fetch->start;
  guint64 claimed = claimed_size (fetch, uid);

  if (at_end && (whole || end == claimed))
    write_end (fetch, end, claimed);
  else
    flush_small (fetch);
  if (fetch->true_end != 0 && fetch->error == NULL)
    mail_cache_file_set_end (fetch->file, fetch->true_end, &fetch->error);
  else if (at_end && !whole && end > claimed && fetch->error == NULL)
    check_start (fetch, uid, end);
}

static void
fetch_message (MailFetchSink *sink, guint32 uid, guint64 end, gboolean at_end, const GError *error)
{
  MailFetch *fetch = (MailFetch *)sink;
  guint64 true_end;

  if (!take_outstanding (fetch, uid))
    return;
  if (error == NULL)
    mail_patience_moved (fetch->fetches, MAIL_BLOCK_SIZE);
  if (fetch->uid != uid)
    enter_message (fetch, uid, end);
  if (error == NULL)
    finish_message (fetch, uid, end, at_end);
  else
    g_byte_array_set_size (fetch->small, 0); /* half a message, perhaps of another one */
  if (error == NULL && fetch->error == NULL && mail_cache_file_end (fetch->file, &true_end))
    {
      mail_store_learn_size (fetch->mailbox, fetch->content_id, uid, true_end);
      if (fetch->mailbox->store->mover != NULL)
        mail_mover_fetched (fetch->mailbox->store->mover, fetch->mailbox, fetch->content_id, uid);
    }
  if (g_error_matches (fetch->error, MAIL_ERROR, MAIL_ERROR_CORRUPT)
      && (mail_store_caps (fetch->mailbox->store) & MAIL_CAP_REMOTE_IDS) != 0
      && g_atomic_int_compare_and_exchange (&fetch->fetches->no_prefixes, FALSE, TRUE))
    {
      /* A head that is not the start of the message: never again, and whoever waits asks for the
       * whole. */
      mail_log_info ("the server changes messages when it sends their start only");
      g_clear_error (&fetch->error);
      if (fetch->fetches->store->events.contents_dropped != NULL)
        fetch->fetches->store->events.contents_dropped (fetch->fetches->store->events_data,
                                                        fetch->content_id, uid);
    }
  if (fetch->error != NULL && error == NULL)
    {
      mail_log_warning ("message %u: %s", uid, fetch->error->message);
      if (fetch->fetches->store->events.contents_dropped != NULL)
        fetch->fetches->store->events.contents_dropped (fetch->fetches->store->events_data,
                                                        fetch->content_id, uid);
    }
  g_autoptr (GError) own = g_steal_pointer (&fetch->error);
  leave_message (fetch);
  release (fetch, uid, error != NULL ? error : own);
}

static void
fetch_free (MailFetch *fetch)
{
  leave_message (fetch);
  g_byte_array_unref (fetch->small);
  g_array_unref (fetch->uids);
  mail_mailbox_unref (fetch->mailbox);
  g_free (fetch);
}

static void
fetch_done (MailFetchSink *sink, const GError *error)
{
  MailFetch *fetch = (MailFetch *)sink;
  g_autoptr (GError) gone = NULL;

  leave_message (fetch);
  if (error == NULL)
    g_set_error (&gone, MAIL_ERROR, MAIL_ERROR_GONE, "the server no longer has this message");
  for (guint i = 0; i < fetch->uids->len; i++)
    release (fetch, g_array_index (fetch->uids, guint32, i), error != NULL ? error : gone);

  /* It is listed but not there, or not the mailbox we know: look again soon. */
  if (g_error_matches (error, MAIL_ERROR, MAIL_ERROR_STALE)
      || (error == NULL && fetch->uids->len > 0))
    {
      g_mutex_lock (&fetch->mailbox->lock);
      gboolean start = !fetch->mailbox->syncing;
      fetch->mailbox->syncing = TRUE;
      g_mutex_unlock (&fetch->mailbox->lock);
      if (start)
        mail_sync_start (fetch->mailbox);
    }
  fetch_free (fetch);
}

/* --- asking ---------------------------------------------------------------------------------- */

static char **
remote_ids_of (MailMailbox *mailbox, const GArray *uids)
{
  char **ids = g_new0 (char *, uids->len + 1);

  g_mutex_lock (&mailbox->lock);
  for (guint i = 0; i < uids->len; i++)
    {
      const char *id = mail_mailbox_remote_id_locked (mailbox, g_array_index (uids, guint32, i));
      ids[i] = g_strdup (id != NULL ? id : "");
    }
  g_mutex_unlock (&mailbox->lock);
  return ids;
}

static gboolean
start (gpointer data)
{
  MailFetch *fetch = data;
  MailMailbox *mailbox = fetch->mailbox;
  MailStore *store = mailbox->store;
  g_autoptr (MailUidSet) set = mail_uid_set_new ();
  g_autofree char *name = NULL;
  g_auto (GStrv) ids = NULL;

  for (guint i = 0; i < fetch->uids->len; i++)
    {
      guint32 uid = g_array_index (fetch->uids, guint32, i);
      mail_uid_set_add (set, uid, uid);
    }
  g_rw_lock_reader_lock (&store->tree_lock);
  name = g_strdup (mailbox->name != NULL ? mailbox->name : "");
  gboolean current = mailbox->content_id == fetch->content_id;
  g_rw_lock_reader_unlock (&store->tree_lock);
  g_mutex_lock (&mailbox->lock);
  guint32 uidvalidity = mailbox->status.uidvalidity;
  g_mutex_unlock (&mailbox->lock);
  if (!current || store->stopping)
    {
      g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_STALE,
                                              "the mailbox was replaced");
      for (guint i = 0; i < fetch->uids->len; i++)
        release (fetch, g_array_index (fetch->uids, guint32, i), error);
      fetch_free (fetch);
      return G_SOURCE_REMOVE;
    }
  if ((mail_store_caps (store) & MAIL_CAP_REMOTE_IDS) != 0)
    ids = remote_ids_of (mailbox, fetch->uids);
  MailFetchRequest request = {
    .mailbox = name,
    .uidvalidity = uidvalidity,
    .uids = (const MailUidRange *)set->data,
    .n_uids = set->len,
    .remote_ids = (const char *const *)ids,
    .part = is_head (fetch) ? MAIL_PART_HEAD : MAIL_PART_RANGE,
    .offset = fetch->start,
    .length = fetch->end == MAIL_TO_END ? MAIL_TO_END : fetch->end - fetch->start,
    .priority = fetch->priority,
  };
  store->backend->ops->fetch (store->backend, &request, &fetch->sink);
  return G_SOURCE_REMOVE;
}

MailFetch *
mail_fetch_new (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id,
                guint64 start_offset, guint64 end, MailPriority priority)
{
  MailFetch *fetch = g_new0 (MailFetch, 1);

  fetch->sink = (MailFetchSink) { fetch_data, fetch_message, fetch_done };
  fetch->fetches = fetches;
  fetch->mailbox = mail_mailbox_ref (mailbox);
  fetch->content_id = content_id;
  fetch->start = start_offset;
  fetch->end = fetch->claim_end = end;
  fetch->priority = priority;
  fetch->asked_at = g_get_monotonic_time ();
  fetch->uids = g_array_new (FALSE, FALSE, sizeof (guint32));
  fetch->small = g_byte_array_new ();
  return fetch;
}

/* Net thread: the first block again; the cache compares. Who waits for the end goes on waiting. */
static void
check_start (MailFetch *fetch, guint32 uid, guint64 end)
{
  MailFetches *fetches = fetch->fetches;
  MailFetch *check = mail_fetch_new (fetches, fetch->mailbox, fetch->content_id, 0, MAIL_BLOCK_SIZE,
                                     MAIL_PRIORITY_INTERACTIVE);

  check->true_end = end;
  check->claim_end = MAIL_TO_END;
  g_array_append_val (check->uids, uid);
  g_mutex_lock (&fetches->lock);
  mail_claims_add (
      mail_claims_get (fetches, mail_fetch_key (fetch->content_id, uid), fetch->file, end), 0,
      MAIL_TO_END);
  g_mutex_unlock (&fetches->lock);
  mail_store_invoke (fetches->store, start, check);
}

/* Claims what is absent of [start, end) and queues a request for each piece. Lock held. */
void
mail_fetch_absent (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id,
                   MailPending *pending, guint64 start_offset, guint64 end, MailPriority priority,
                   GPtrArray *requests)
{
  guint32 uid = (guint32)pending->key;
  guint64 from, to;

  while (start_offset < end
         && mail_cache_file_missing (pending->file, start_offset, end, &from, &to))
    {
      start_offset = to;
      /* What is missing between other bytes, or before a known end, comes with all the rest. */
      if (!mail_store_has_ranges (fetches->store) && end == MAIL_TO_END)
        from = 0, to = start_offset = end;
      while (mail_claims_first_free (pending, &from, &to))
        {
          MailFetch *fetch = mail_fetch_new (fetches, mailbox, content_id, from, to, priority);

          mail_claims_add (pending, from, to);
          g_array_append_val (fetch->uids, uid);
          g_ptr_array_add (requests, fetch);
          from = to;
          to = start_offset;
        }
    }
}

void
mail_fetch_send (MailFetches *fetches, GPtrArray *requests)
{
  for (guint i = 0; i < requests->len; i++)
    mail_store_invoke (fetches->store, start, requests->pdata[i]);
}
