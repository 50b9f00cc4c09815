/* SPDX-License-Identifier: MIT
 *
 * What a complete listing reported and what is known of the mailbox become one: the messages in
 * memory, the rows of the index, and what the kernel is told. Readers see the old state or the new
 * one. Net thread. Knows no backend.
 */
#include "mail/mover.h"
#include "mail/sync-private.h"

#include "mailfs/log.h"

#include <string.h>

typedef struct
{
  MailMessage old, now;
  gboolean has_old, has_now;
  guint32 content_id, uidvalidity; /* another UIDVALIDITY: what it was in; else 0 */
  char *name;
} Event;

static void
event_clear (gpointer data)
{
  g_free (((Event *)data)->name);
}

static guint32
changed_now (void)
{
  return (guint32)(g_get_real_time () / G_USEC_PER_SEC - MAIL_CHANGED_EPOCH);
}

gint64
mail_message_changed (const MailMessage *message)
{
  return message->changed != 0 ? MAIL_CHANGED_EPOCH + (gint64)message->changed
                               : message->internaldate;
}

/* --- merging, under the tree's write lock and the mailbox's lock --------------------------- */

typedef struct
{
  MailSync *sync;
  MailMailbox *mailbox;
  MailIndexBatch *batch;
  GArray *changed; /* of MailMessage: rows to write */
  GArray *events;  /* of Event */
  gboolean silent; /* the first listing: nobody can know any of it yet */
  gboolean entries_changed, flags_changed;
} Merge;

static void
add_event (Merge *merge, const MailMessage *old, const MailMessage *now)
{
  guint32 uid = old != NULL ? old->uid : now->uid;
  Event event = { 0 };

  if (merge->silent)
    return;
  if (old != NULL)
    event.old = *old, event.has_old = TRUE;
  if (now != NULL)
    event.now = *now, event.has_now = TRUE;
  event.name = g_strdup (mail_mailbox_name_locked (merge->mailbox, uid));
  g_array_append_val (merge->events, event);
}

static void
lose (Merge *merge, const MailMessage *old)
{
  if ((old->local & MAIL_LOCAL_HIDDEN) == 0)
    add_event (merge, old, NULL);
  merge->entries_changed = TRUE;
  mail_mailbox_bury_locked (merge->mailbox, old);
  mail_index_batch_remove (merge->batch, merge->sync->content_id, old->uid, old->uid);
  if (mail_mailbox_name_locked (merge->mailbox, old->uid) != NULL)
    {
      mail_mailbox_set_name_locked (merge->mailbox, old->uid, NULL);
      mail_index_batch_put_name (merge->batch, merge->sync->content_id, old->uid, NULL);
    }
  if (mail_mailbox_remote_id_locked (merge->mailbox, old->uid) != NULL)
    {
      mail_mailbox_set_remote_id_locked (merge->mailbox, old->uid, NULL);
      mail_index_batch_put_remote_id (merge->batch, merge->sync->content_id, old->uid, NULL);
    }
}

/* What the server says of flags replaces ours, but for changes of ours that it has not answered
 * yet; size and date of a known message stay. A server that has no flags says nothing of them: then
 * ours, which a mail program may have set, stay too. */
static void
update (Merge *merge, MailMessage *old, const MailMessage *said)
{
  MailMessage heard = *said;
  const MailMessage *news = &heard;
  guint8 flags = said->flags;
  guint32 keywords = said->keywords;

  MailMessage before = *old;

  if (merge->sync->remote_ids != NULL)
    return;
  mail_pending_heard_locked (merge->mailbox, old->uid, merge->sync->number, &flags, &keywords);
  heard.flags = flags;
  heard.keywords = keywords;
  if (!mail_pending_mark_locked (merge->mailbox, old) && old->flags == news->flags
      && old->keywords == news->keywords && (news->modseq == 0 || old->modseq == news->modseq))
    return;
  if (old->flags != news->flags || old->keywords != news->keywords)
    {
      old->changed = changed_now ();
      merge->flags_changed = TRUE;
    }
  old->flags = news->flags;
  old->keywords = news->keywords;
  if (news->modseq != 0)
    old->modseq = news->modseq;
  g_array_append_val (merge->changed, *old);
  if ((old->local & MAIL_LOCAL_HIDDEN) == 0)
    add_event (merge, &before, old);
}

/* New to us. Perhaps not to a change of an earlier run that removes it. */
static void
arrive (Merge *merge, MailMessage *message)
{
  GHashTable *hiding = merge->mailbox->hiding;

  /* No new one has such a number, but where a server was put back: not with old bytes. */
  if (message->uid < merge->sync->known.uidnext && merge->sync->remote_ids == NULL
      && merge->sync->known.uidvalidity == merge->sync->uidvalidity)
    mail_cache_remove (merge->mailbox->store->cache, merge->sync->content_id, message->uid);
  if (hiding != NULL && g_hash_table_contains (hiding, GUINT_TO_POINTER (message->uid)))
    message->local |= MAIL_LOCAL_HIDDEN;
  else
    add_event (merge, NULL, message);
  merge->entries_changed = TRUE;
  g_array_append_val (merge->changed, *message);
}

static gint
compare_uids (gconstpointer a, gconstpointer b)
{
  guint32 left = ((const MailMessage *)a)->uid, right = ((const MailMessage *)b)->uid;

  return left < right ? -1 : left > right;
}

static void
sort_unique (GArray *messages)
{
  guint kept = 0, sorted = 1;

  while (sorted < messages->len
         && g_array_index (messages, MailMessage, sorted - 1).uid
                < g_array_index (messages, MailMessage, sorted).uid)
    sorted++;
  if (sorted >= messages->len)
    return;
  g_array_sort (messages, compare_uids);
  for (guint i = 0; i < messages->len; i++)
    {
      const MailMessage *message = &g_array_index (messages, MailMessage, i);

      if (kept > 0 && g_array_index (messages, MailMessage, kept - 1).uid == message->uid)
        kept--; /* reported twice: the later word counts */
      g_array_index (messages, MailMessage, kept++) = *message;
    }
  g_array_set_size (messages, kept);
}

/* Messages that came by a change of ours after this listing was begun: it may not have them yet. */
static void
keep_inserted (Merge *merge)
{
  MailMailbox *mailbox = merge->mailbox;
  GArray *now = merge->sync->messages;
  guint n_known = now->len;
  GHashTableIter iter;
  gpointer uid, number;

  if (mailbox->inserted == NULL || !merge->sync->complete)
    return;
  g_hash_table_iter_init (&iter, mailbox->inserted);
  while (g_hash_table_iter_next (&iter, &uid, &number))
    {
      const MailMessage *ours = mail_mailbox_get_locked (mailbox, GPOINTER_TO_UINT (uid));
      gboolean there = FALSE;

      for (guint i = n_known; i-- > 0 && !there;)
        {
          guint32 listed = g_array_index (now, MailMessage, i).uid;

          if (listed < GPOINTER_TO_UINT (uid))
            break;
          there = listed == GPOINTER_TO_UINT (uid);
        }
      if (ours != NULL && !there && GPOINTER_TO_UINT (number) >= merge->sync->number)
        {
          MailMessage copy = *ours;
          g_array_append_val (now, copy);
        }
    }
  if (now->len > n_known)
    sort_unique (now);
}

/* Whether a change of ours that takes it away has not been answered yet, or was so after this
 * listing had begun. */
static gboolean
is_held (const Merge *merge, guint32 uid)
{
  GHashTable *hiding = merge->mailbox->hiding;
  gpointer answered = NULL;

  return hiding != NULL
         && g_hash_table_lookup_extended (hiding, GUINT_TO_POINTER (uid), NULL, &answered)
         && (answered == NULL || GPOINTER_TO_UINT (answered) > merge->sync->number);
}

/* Removed here, and yet there is no word in a listing begun after the answer that it has gone or is
 * marked: the server did not do it, another client took it back, or a kill came between our
 * journal, which knows nothing of it any more, and the index. It is shown again. */
static void
bring_back (Merge *merge)
{
  GArray *messages = merge->mailbox->messages;

  for (guint i = 0; i < messages->len; i++)
    {
      MailMessage *message = &g_array_index (messages, MailMessage, i);

      if ((message->local & MAIL_LOCAL_HIDDEN) == 0 || (message->flags & MAIL_FLAG_DELETED) != 0
          || is_held (merge, message->uid))
        continue;
      message->local &= ~MAIL_LOCAL_HIDDEN;
      merge->entries_changed = TRUE;
      add_event (merge, NULL, message);
      g_array_append_val (merge->changed, *message);
    }
}

/* What is gone and was to go needs no word any more: its UID is never given again. */
static void
prune_hiding (Merge *merge)
{
  MailMailbox *mailbox = merge->mailbox;
  GHashTableIter iter;
  gpointer uid;

  if (mailbox->hiding == NULL)
    return;
  g_hash_table_iter_init (&iter, mailbox->hiding);
  while (g_hash_table_iter_next (&iter, &uid, NULL))
    if (!is_held (merge, GPOINTER_TO_UINT (uid))
        && mail_mailbox_get_locked (mailbox, GPOINTER_TO_UINT (uid)) == NULL)
      g_hash_table_iter_remove (&iter);
}

static void
prune (Merge *merge)
{
  MailMailbox *mailbox = merge->mailbox;
  GHashTableIter iter;
  gpointer number;

  mail_pending_prune_locked (mailbox, merge->sync->number);
  prune_hiding (merge);
  mailbox->sync_merged = merge->sync->number;
  if (mailbox->inserted == NULL)
    return;
  g_hash_table_iter_init (&iter, mailbox->inserted);
  while (g_hash_table_iter_next (&iter, NULL, &number))
    if (GPOINTER_TO_UINT (number) < merge->sync->number)
      g_hash_table_iter_remove (&iter);
}

/* The whole list: walk old and new side by side. */
static void
merge_complete (Merge *merge)
{
  MailMailbox *mailbox = merge->mailbox;
  GArray *old = mailbox->messages, *now = merge->sync->messages;
  guint o = 0;

  if (merge->silent && (old == NULL || old->len == 0) && mailbox->hiding == NULL)
    {
      /* The first listing: all of it is new, and there may be millions. */
      merge->entries_changed = TRUE;
      g_array_unref (merge->changed);
      merge->changed = g_array_ref (now);
    }
  for (guint n = 0; n < now->len && merge->changed != now; n++)
    {
      MailMessage *message = &g_array_index (now, MailMessage, n);

      for (; old != NULL && o < old->len && g_array_index (old, MailMessage, o).uid < message->uid;
           o++)
        lose (merge, &g_array_index (old, MailMessage, o));
      if (old != NULL && o < old->len && g_array_index (old, MailMessage, o).uid == message->uid)
        {
          MailMessage *same = &g_array_index (old, MailMessage, o++);

          update (merge, same, message);
          *message = *same;
          continue;
        }
      arrive (merge, message);
    }
  for (; old != NULL && o < old->len; o++)
    lose (merge, &g_array_index (old, MailMessage, o));
  g_clear_pointer (&mailbox->messages, g_array_unref);
  mailbox->messages = g_array_ref (now);
}

static gboolean
is_gone (const MailSync *sync, guint32 uid)
{
  if (mail_uid_set_contains (sync->vanished, uid))
    return TRUE;
  return sync->has_present && uid < sync->known.uidnext
         && !mail_uid_set_contains (sync->present, uid);
}

/* A listing of what has changed has every message that is new since the one before. One of these
 * that we put there, and that another client took away before this one was begun, is nowhere in it:
 * the server counts fewer than we know of. */
static void
lose_unlisted (Merge *merge, guint n_exist)
{
  MailMailbox *mailbox = merge->mailbox;
  const MailSync *sync = merge->sync;
  guint i = mail_mailbox_lower_bound_locked (mailbox, MAX (sync->known.uidnext, 1u));

  while (i < mailbox->messages->len && mailbox->messages->len > n_exist)
    {
      const MailMessage *message = &g_array_index (mailbox->messages, MailMessage, i);
      gpointer number = mailbox->inserted != NULL ? g_hash_table_lookup (
                            mailbox->inserted, GUINT_TO_POINTER (message->uid))
                                                  : NULL;

      if (GPOINTER_TO_UINT (number) >= sync->number
          || g_array_binary_search (sync->messages, message, compare_uids, NULL))
        {
          i++;
          continue;
        }
      lose (merge, message);
      g_array_remove_index (mailbox->messages, i);
    }
}

static void
merge_difference (Merge *merge, guint n_exist)
{
  MailSync *sync = merge->sync;
  MailMailbox *mailbox = merge->mailbox;
  g_autoptr (GArray) arrived = g_array_new (FALSE, FALSE, sizeof (MailMessage));
  guint kept = 0;

  for (guint i = 0; i < sync->flags->len; i++)
    {
      const MailMessage *news = &g_array_index (sync->flags, MailMessage, i);
      MailMessage *old = mail_mailbox_get_locked (mailbox, news->uid);

      if (old != NULL && !is_gone (sync, news->uid))
        update (merge, old, news);
    }

  if (sync->vanished->len > 0 || sync->has_present)
    {
      for (guint i = 0; i < mailbox->messages->len; i++)
        {
          MailMessage *message = &g_array_index (mailbox->messages, MailMessage, i);

          if (is_gone (sync, message->uid))
            lose (merge, message);
          else
            g_array_index (mailbox->messages, MailMessage, kept++) = *message;
        }
      g_array_set_size (mailbox->messages, kept);
    }

  for (guint i = 0; i < sync->messages->len; i++)
    {
      MailMessage *message = &g_array_index (sync->messages, MailMessage, i);
      MailMessage *old = mail_mailbox_get_locked (mailbox, message->uid);

      if (old != NULL)
        {
          update (merge, old, message);
          continue;
        }
      arrive (merge, message);
      g_array_append_vals (arrived, message, 1);
    }
  /* Behind the others nearly always; a server that puts them between them makes us sort, once. */
  g_array_append_vals (mailbox->messages, arrived->data, arrived->len);
  sort_unique (mailbox->messages);
  lose_unlisted (merge, n_exist);
}

/* Gives each remote id its UID: the old one, or the next. Names follow from the remote id. */
static void
assign_uids (Merge *merge)
{
  MailSync *sync = merge->sync;
  MailMailbox *mailbox = merge->mailbox;
  guint32 next = MAX (mailbox->status.uidnext, 1u);

  if (sync->remote_ids == NULL)
    return;
  for (guint i = 0; i < sync->messages->len && i < sync->remote_ids->len; i++)
    {
      MailMessage *message = &g_array_index (sync->messages, MailMessage, i);
      const char *id = sync->remote_ids->pdata[i];
      gpointer uid = mailbox->remote_to_uid != NULL
                         ? g_hash_table_lookup (mailbox->remote_to_uid, id)
                         : NULL;

      if (uid != NULL)
        {
          message->uid = GPOINTER_TO_UINT (uid);
          continue;
        }
      message->uid = next++;
      /* An index that lost its tail gives numbers again: what the cache has by this one is of another
       * message. */
      mail_cache_remove (mailbox->store->cache, sync->content_id, message->uid);
      mail_mailbox_set_remote_id_locked (mailbox, message->uid, id);
      mail_index_batch_put_remote_id (merge->batch, sync->content_id, message->uid, id);
      g_autofree char *name = mailbox->store->naming.remote_name (id);
      mail_mailbox_set_name_locked (mailbox, message->uid, name);
      mail_index_batch_put_name (merge->batch, sync->content_id, message->uid, name);
    }
  mailbox->status.uidnext = next;
}

/* What is stored here stays listed, whatever the server still has. */
static void
retain_kept (Merge *merge)
{
  MailSync *sync = merge->sync;
  MailMailbox *mailbox = merge->mailbox;
  g_autoptr (GHashTable) reported = g_hash_table_new (g_str_hash, g_str_equal);
  g_autoptr (GHashTable) retained = NULL;
  GHashTableIter iter;
  gpointer id;

  for (guint i = 0; sync->remote_ids != NULL && i < sync->remote_ids->len; i++)
    g_hash_table_add (reported, sync->remote_ids->pdata[i]);
  retained = mail_mover_retain_locked (mailbox->store->mover, mailbox, reported, sync->began);
  g_hash_table_iter_init (&iter, retained);
  while (g_hash_table_iter_next (&iter, &id, NULL))
    {
      gpointer uid = mailbox->remote_to_uid != NULL
                         ? g_hash_table_lookup (mailbox->remote_to_uid, id)
                         : NULL;
      const MailMessage *message = uid != NULL
                                       ? mail_mailbox_get_locked (mailbox, GPOINTER_TO_UINT (uid))
                                       : NULL;

      if (message != NULL)
        g_array_append_vals (sync->messages, message, 1);
    }
}

/* Another UIDVALIDITY: these are other messages, even where the numbers are the same. Tree lock. */
static void
replace_contents (Merge *merge)
{
  MailMailbox *mailbox = merge->mailbox;
  MailStore *store = mailbox->store;

  mail_log_info ("mailbox \"%s\" has a new UIDVALIDITY, its cache is dropped", mailbox->name);
  for (guint i = 0; mailbox->messages != NULL && i < mailbox->messages->len; i++)
    {
      add_event (merge, &g_array_index (mailbox->messages, MailMessage, i), NULL);
      Event *event = &g_array_index (merge->events, Event, merge->events->len - 1);
      event->content_id = mailbox->content_id;
      event->uidvalidity = mailbox->status.uidvalidity;
    }
  mail_index_batch_drop_contents (merge->batch, mailbox->content_id);
  mail_cache_drop_contents (store->cache, mailbox->content_id);
  g_hash_table_remove (store->by_content, GUINT_TO_POINTER (mailbox->content_id));
  mail_mailbox_unload_locked (mailbox);
  mailbox->content_id = mail_index_new_id (store->index);
  g_hash_table_insert (store->by_content, GUINT_TO_POINTER (mailbox->content_id), mailbox);
  memset (&mailbox->status, 0, sizeof mailbox->status);
  merge->sync->content_id = mailbox->content_id;
  merge->entries_changed = TRUE;
}

/* A directory's time is when it was first seen, so that a listing does not change it under a
 * copying tool, and from then on the last time at which we saw its entries change. */
static void
touch (Merge *merge, gboolean first)
{
  MailMailbox *mailbox = merge->mailbox;

  mailbox->generation++;
  if (!first)
    mail_mailbox_touch_locked (mailbox);
}

static void
remember_result (MailMailbox *mailbox, const MailSyncResult *result, gboolean own_uids)
{
  guint32 uidnext = mailbox->status.uidnext;
  guint n = mailbox->messages->len;

  mailbox->status = result->status;
  if (own_uids)
    mailbox->status.uidnext = uidnext;
  else if (mailbox->status.uidnext == 0 && n > 0) /* Courier does not say */
    mailbox->status.uidnext = g_array_index (mailbox->messages, MailMessage, n - 1).uid + 1;
  mailbox->status.n_messages = n;
  mailbox->status.n_unseen = 0;
  for (guint i = 0; i < n; i++)
    mailbox->status.n_unseen += (g_array_index (mailbox->messages, MailMessage, i).flags
                                 & MAIL_FLAG_SEEN)
                                == 0;
  mailbox->server_read_only = result->read_only;
  mailbox->settable_flags = result->settable_flags;
  mailbox->any_keyword = result->any_keyword;
  g_free (mailbox->settable_keywords);
  mailbox->settable_keywords = g_strdup (result->settable_keywords);
  g_free (mailbox->rights);
  mailbox->rights = g_strdup (result->rights);
  mailbox->synced_at = mailbox->tried_at = g_get_monotonic_time ();
}

static void
merge_locked (Merge *merge, const MailSyncResult *result)
{
  MailSync *sync = merge->sync;
  MailMailbox *mailbox = merge->mailbox;
  gboolean first = mailbox->status.uidvalidity == 0;
  gboolean keeps = mailbox->store->keep != NULL && sync->complete;
  guint64 modseq = mailbox->status.highestmodseq;

  merge->silent = first && !mailbox->loaded;
  if (!first && mailbox->status.uidvalidity != sync->uidvalidity)
    replace_contents (merge);
  if (mailbox->messages == NULL)
    mailbox->messages = g_array_new (FALSE, FALSE, sizeof (MailMessage));
  mailbox->loaded = TRUE;

  if (keeps)
    mail_mover_seed_locked (mailbox->store->mover, mailbox, merge->batch);
  assign_uids (merge);
  if (keeps)
    retain_kept (merge);
  sort_unique (sync->messages);
  keep_inserted (merge);
  if (sync->complete)
    merge_complete (merge);
  else
    merge_difference (merge, result->status.n_messages);
  if (merge->changed != mailbox->messages)
    bring_back (merge);

  prune (merge);
  remember_result (mailbox, result,
                   sync->remote_ids != NULL
                       || (mail_store_caps (mailbox->store) & MAIL_CAP_REMOTE_IDS));
  if (first || merge->entries_changed)
    touch (merge, first);
  else if (merge->flags_changed && mailbox->store->naming.flags_in_names)
    mail_mailbox_touch_locked (mailbox);
  mailbox->flag_changes += merge->changed->len > 0;
  if (first || merge->entries_changed || merge->changed->len > 0
      || modseq != mailbox->status.highestmodseq)
    {
      MailIndexMailbox row;

      mail_mailbox_fill_index_row (mailbox, &row);
      mail_index_batch_put_mailbox (merge->batch, &row);
      g_free (row.path);
      mail_index_batch_put (merge->batch, sync->content_id,
                            (const MailMessage *)merge->changed->data, merge->changed->len);
    }
}

static void
deliver_events (Merge *merge)
{
  MailStore *store = merge->mailbox->store;

  for (guint i = 0; i < merge->events->len; i++)
    {
      const Event *event = &g_array_index (merge->events, Event, i);

      if (event->content_id != 0 && store->events.replaced != NULL)
        store->events.replaced (store->events_data, merge->mailbox, event->content_id,
                                event->uidvalidity, &event->old, event->name);
      else if (event->content_id == 0 && store->events.message != NULL)
        store->events.message (store->events_data, merge->mailbox,
                               event->has_old ? &event->old : NULL,
                               event->has_now ? &event->now : NULL, event->name);
    }
  if (merge->entries_changed && store->events.directory != NULL)
    store->events.directory (store->events_data, merge->mailbox);
}

void
mail_sync_merge (MailSync *sync, const MailSyncResult *result)
{
  MailMailbox *mailbox = sync->mailbox;
  MailStore *store = mailbox->store;
  Merge merge = { .sync = sync, .mailbox = mailbox };

  merge.batch = mail_index_batch_new ();
  merge.changed = g_array_new (FALSE, FALSE, sizeof (MailMessage));
  merge.events = g_array_new (FALSE, FALSE, sizeof (Event));
  g_array_set_clear_func (merge.events, event_clear);

  mail_uid_set_normalize (sync->vanished);
  g_mutex_lock (&mailbox->lock);
  guint32 uidvalidity = mailbox->status.uidvalidity;
  g_mutex_unlock (&mailbox->lock);
  /* Only this thread gives it another one. Then the tree changes; else nobody needs to wait. */
  gboolean replaces = uidvalidity != 0 && uidvalidity != sync->uidvalidity;
  if (replaces)
    g_rw_lock_writer_lock (&store->tree_lock);
  else
    g_rw_lock_reader_lock (&store->tree_lock);
  g_mutex_lock (&mailbox->lock);
  gboolean current = mailbox->in_tree && mailbox->content_id == sync->content_id;
  if (current)
    merge_locked (&merge, result);
  g_mutex_unlock (&mailbox->lock);
  if (replaces)
    g_rw_lock_writer_unlock (&store->tree_lock);
  else
    g_rw_lock_reader_unlock (&store->tree_lock);

  mail_index_queue (store->index, merge.batch);
  deliver_events (&merge);
  g_array_unref (merge.changed);
  g_array_unref (merge.events);
}
