/* SPDX-License-Identifier: MIT
 *
 * The way of a read: from the cache at once, else claim the absent range, join whoever fetches it
 * already, ask the backend, and wake each waiter when its own range is there. Claims and waiters are
 * kept a message, under one lock; bytes arrive on the net thread and go into the cache file first,
 * so that nobody is woken too early. A waiter that left (its request was answered otherwise) stays
 * linked until its range arrives or fails: the bytes still land in the cache.
 */
#include "mail/mover.h"

#include "mailfs/log.h"

#include <string.h>

#define N_WALKS 16u
#define WINDOW_MIN (2 * (guint64)MAIL_BLOCK_SIZE)
#define WINDOW_MAX (1024 * (guint64)MAIL_BLOCK_SIZE) /* 64 MiB */
#define NEAR (16 * (guint64)MAIL_BLOCK_SIZE) /* the kernel reads ahead, and not always in order */

typedef struct
{
  guint64 start, end;
} Claim;

/* A message that somebody fetches or waits for; under fetches->lock. */
typedef struct
{
  guint64 key;
  guint64 size; /* as claimed when this began */
  MailCacheFile *file;
  GQueue waiters; /* MailWaiter links */
  GArray *claims; /* of Claim */
} Pending;

/* Somebody reads a large message from front to back; under fetches->lock. */
typedef struct
{
  guint64 key;
  guint64 next;    /* where the reader goes on if he does */
  guint64 fetched; /* how far has been asked for */
  guint64 window;  /* 0: not known to be a walk */
  gint64 used;
} Walk;

struct MailFetches
{
  MailStore *store;
  GMutex lock;
  GHashTable *pending; /* key (pointer into Pending) -> Pending */
  Walk walks[N_WALKS];
};

/* One request to the backend and where its bytes go; net thread after start. */
typedef struct
{
  MailFetchSink sink;
  MailFetches *fetches;
  MailMailbox *mailbox;
  guint32 content_id;
  guint64 start, end; /* of each message; end MAIL_TO_END: the rest */
  guint64 claim_end;  /* of the claim that goes when the message is done, usually end */
  guint64 true_end;   /* this only looks whether the start is still the same: then that is the end */
  MailPriority priority;
  GArray *uids; /* of guint32, ascending: what has not finished yet */

  guint32 uid; /* the message that is arriving, 0: none */
  MailCacheFile *file;
  GByteArray *small;   /* its bytes from offset 0 while they are few */
  guint64 first_offset; /* where its bytes began */
  guint64 wire_offset;  /* bytes of it seen so far */
  guint64 lf_offset;   /* eol=lf: bytes written */
  gboolean held_cr;    /* eol=lf: a CR whose next byte has not come yet */
  GError *error;       /* this message failed locally; the rest of it is ignored */
} Fetch;

static guint64
make_key (guint32 content_id, guint32 uid)
{
  return (guint64)content_id << 32 | uid;
}

MailFetches *
mail_fetches_new (MailStore *store)
{
  MailFetches *fetches = g_new0 (MailFetches, 1);

  fetches->store = store;
  fetches->pending = g_hash_table_new (g_int64_hash, g_int64_equal);
  g_mutex_init (&fetches->lock);
  return fetches;
}

void
mail_fetches_free (MailFetches *fetches)
{
  g_hash_table_unref (fetches->pending);
  g_mutex_clear (&fetches->lock);
  g_free (fetches);
}

/* --- claims, under the lock ------------------------------------------------------------------ */

/* Whether a read can be answered: who reads on behind the claimed end must hear of the true one. */
static gboolean
has_range (MailCacheFile *file, guint64 size, guint64 offset, guint64 length)
{
  guint64 end;

  return mail_cache_file_has (file, offset, length)
         && (offset + length <= size || mail_cache_file_end (file, &end));
}

static Pending *
get_pending (MailFetches *fetches, guint64 key, MailCacheFile *file, guint64 size)
{
  Pending *pending = g_hash_table_lookup (fetches->pending, &key);

  if (pending != NULL)
    return pending;
  pending = g_new0 (Pending, 1);
  pending->key = key;
  pending->size = size;
  pending->file = mail_cache_file_ref (file);
  pending->claims = g_array_new (FALSE, FALSE, sizeof (Claim));
  g_hash_table_insert (fetches->pending, &pending->key, pending);
  return pending;
}

/* Frees it when nobody fetches or waits any more. */
static void
put_pending (MailFetches *fetches, Pending *pending)
{
  if (pending->claims->len > 0 || pending->waiters.length > 0)
    return;
  g_hash_table_remove (fetches->pending, &pending->key);
  mail_cache_file_unref (pending->file);
  g_array_unref (pending->claims);
  g_free (pending);
}

/* The first part of [*start, *end) that nobody fetches; FALSE when all of it is claimed. */
static gboolean
first_unclaimed (const Pending *pending, guint64 *start, guint64 *end)
{
  gboolean moved = TRUE;

  while (moved && *start < *end)
    {
      moved = FALSE;
      for (guint i = 0; i < pending->claims->len; i++)
        {
          const Claim *claim = &g_array_index (pending->claims, Claim, i);

          if (claim->start <= *start && *start < claim->end)
            {
              *start = claim->end;
              moved = TRUE;
            }
        }
    }
  for (guint i = 0; i < pending->claims->len; i++)
    {
      const Claim *claim = &g_array_index (pending->claims, Claim, i);

      if (claim->start > *start && claim->start < *end)
        *end = claim->start;
    }
  return *start < *end;
}

static void
add_claim (Pending *pending, guint64 start, guint64 end)
{
  Claim claim = { start, end };

  g_array_append_val (pending->claims, claim);
}

static gboolean
claimed (const Pending *pending, guint64 start, guint64 end)
{
  return !first_unclaimed (pending, &start, &end);
}

static void
drop_claim (Pending *pending, guint64 start, guint64 end)
{
  for (guint i = 0; i < pending->claims->len; i++)
    {
      const Claim *claim = &g_array_index (pending->claims, Claim, i);

      if (claim->start == start && claim->end == end)
        {
          g_array_remove_index_fast (pending->claims, i);
          return;
        }
    }
}

/* Moves to woken who has what he wants; with over, also who is left without anybody fetching it. */
static void
collect_waiters (Pending *pending, gboolean over, GQueue *woken, GQueue *failed)
{
  for (GList *link = pending->waiters.head, *next; link != NULL; link = next)
    {
      const MailWaiter *waiter = link->data;

      next = link->next;
      if (has_range (pending->file, pending->size, waiter->offset, waiter->length))
        {
          g_queue_unlink (&pending->waiters, link);
          g_queue_push_tail_link (woken, link);
        }
      else if (over && !claimed (pending, waiter->offset, waiter->offset + waiter->length))
        {
          g_queue_unlink (&pending->waiters, link);
          g_queue_push_tail_link (failed, link);
        }
    }
}

static void check_start (Fetch *fetch, guint32 uid, guint64 end);

/* --- bytes arriving, net thread -------------------------------------------------------------- */

static void
wake_readers (Fetch *fetch)
{
  MailFetches *fetches = fetch->fetches;
  guint64 key = make_key (fetch->content_id, fetch->uid);
  GQueue woken = G_QUEUE_INIT;

  g_mutex_lock (&fetches->lock);
  Pending *pending = g_hash_table_lookup (fetches->pending, &key);
  if (pending != NULL && pending->waiters.length > 0)
    collect_waiters (pending, FALSE, &woken, NULL);
  g_mutex_unlock (&fetches->lock);
  mail_store_wake_all (&woken, NULL);
}

static gint
compare_uid (gconstpointer a, gconstpointer b)
{
  return mail_compare_uint32 (a, b);
}

/* The claim of one message is over, with an error or with everything delivered. */
static void
release (Fetch *fetch, guint32 uid, const GError *error)
{
  MailFetches *fetches = fetch->fetches;
  guint64 key = make_key (fetch->content_id, uid);
  GQueue woken = G_QUEUE_INIT, failed = G_QUEUE_INIT;

  g_mutex_lock (&fetches->lock);
  Pending *pending = g_hash_table_lookup (fetches->pending, &key);
  if (pending != NULL)
    {
      drop_claim (pending, fetch->start, fetch->claim_end);
      collect_waiters (pending, TRUE, &woken, &failed);
      put_pending (fetches, pending);
    }
  g_mutex_unlock (&fetches->lock);
  mail_store_wake_all (&woken, NULL);
  /* Without an error the range turned out to be another one than asked for: they ask again. */
  mail_store_wake_all (&failed, error);
}

static gboolean
take_outstanding (Fetch *fetch, guint32 uid)
{
  guint i;

  if (!g_array_binary_search (fetch->uids, &uid, compare_uid, &i))
    return FALSE;
  g_array_remove_index (fetch->uids, i);
  return TRUE;
}

static void
write_bytes (Fetch *fetch, guint64 offset, const guint8 *data, gsize length)
{
  if (fetch->error == NULL && length > 0)
    mail_cache_file_write (fetch->file, offset, data, length, &fetch->error);
}

/* CRLF becomes LF; a CR at the end of a piece waits for the next one. */
static void
write_lf (Fetch *fetch, const guint8 *data, gsize length)
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
flush_small (Fetch *fetch)
{
  if (fetch->small->len == 0)
    return;
  write_bytes (fetch, 0, fetch->small->data, fetch->small->len);
  g_byte_array_set_size (fetch->small, 0);
}

static void
leave_message (Fetch *fetch)
{
  g_clear_pointer (&fetch->file, mail_cache_file_unref);
  g_clear_error (&fetch->error);
  g_byte_array_set_size (fetch->small, 0);
  fetch->uid = 0;
}

static void
enter_message (Fetch *fetch, guint32 uid, guint64 offset)
{
  leave_message (fetch);
  fetch->uid = uid;
  fetch->file = mail_cache_get (fetch->fetches->store->cache, fetch->content_id, uid, 0);
  fetch->first_offset = fetch->wire_offset = offset;
  fetch->lf_offset = 0;
  fetch->held_cr = FALSE;
  /* Where a byte belongs is known only by counting from the start. */
  if (offset > 0 && fetch->fetches->store->options.eol_lf)
    g_set_error (&fetch->error, MAIL_ERROR, MAIL_ERROR_PROTOCOL, "it does not begin at its start");
}

static void
fetch_data (MailFetchSink *sink, guint32 uid, guint64 offset, const guint8 *data, gsize length)
{
  Fetch *fetch = (Fetch *)sink;
  gboolean lf = fetch->fetches->store->options.eol_lf;

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
  if (offset == fetch->small->len && offset + length <= MAIL_BLOCK_SIZE)
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

static void
write_end (Fetch *fetch, guint64 end)
{
  gboolean lf = fetch->fetches->store->options.eol_lf;

  if (lf && fetch->held_cr)
    {
      write_bytes (fetch, fetch->lf_offset++, (const guint8 *)"\r", 1);
      fetch->held_cr = FALSE;
    }
  if (fetch->error == NULL && fetch->small->len > 0 && fetch->small->len == end)
    mail_cache_file_write_whole (fetch->file, fetch->small->data, end, &fetch->error);
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
  MailMessage *message = mail_mailbox_get_locked (mailbox, uid);
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

static guint64
claimed_size (Fetch *fetch, guint32 uid)
{
  MailMessage message = { 0 };

  return mail_mailbox_find_gone (fetch->mailbox, uid, &message) ? message.size : 0;
}

/* A part that came short says where the message ends, unless the server caps parts: when that is
 * before the claimed end, ask from there on. The backend answers an empty part with the whole message,
 * from offset 0 on, and that is proof. An end behind the claimed one may mean that the parts are of
 * two different messages: the first block must then still be what it was. */
static void
finish_message (Fetch *fetch, guint32 uid, guint64 end, gboolean at_end)
{
  gboolean whole = (fetch->start == 0 && fetch->end == MAIL_TO_END)
                   || fetch->first_offset < fetch->start;
  guint64 claimed = claimed_size (fetch, uid);

  if (at_end && (whole || end == claimed))
    write_end (fetch, end);
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
  Fetch *fetch = (Fetch *)sink;
  guint64 true_end;

  if (!take_outstanding (fetch, uid))
    return;
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
fetch_free (Fetch *fetch)
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
  Fetch *fetch = (Fetch *)sink;
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
  Fetch *fetch = data;
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
      g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_STALE, "the mailbox was replaced");
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
    .part = MAIL_PART_RANGE,
    .offset = fetch->start,
    .length = fetch->end == MAIL_TO_END ? MAIL_TO_END : fetch->end - fetch->start,
    .priority = fetch->priority,
  };
  store->backend->ops->fetch (store->backend, &request, &fetch->sink);
  return G_SOURCE_REMOVE;
}

static Fetch *
fetch_new (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id, guint64 start_offset,
           guint64 end, MailPriority priority)
{
  Fetch *fetch = g_new0 (Fetch, 1);

  fetch->sink = (MailFetchSink){ fetch_data, fetch_message, fetch_done };
  fetch->fetches = fetches;
  fetch->mailbox = mail_mailbox_ref (mailbox);
  fetch->content_id = content_id;
  fetch->start = start_offset;
  fetch->end = fetch->claim_end = end;
  fetch->priority = priority;
  fetch->uids = g_array_new (FALSE, FALSE, sizeof (guint32));
  fetch->small = g_byte_array_new ();
  return fetch;
}

/* Net thread: the first block again; the cache compares. Who waits for the end goes on waiting. */
static void
check_start (Fetch *fetch, guint32 uid, guint64 end)
{
  MailFetches *fetches = fetch->fetches;
  Fetch *check = fetch_new (fetches, fetch->mailbox, fetch->content_id, 0, MAIL_BLOCK_SIZE,
                            MAIL_PRIORITY_INTERACTIVE);

  check->true_end = end;
  check->claim_end = MAIL_TO_END;
  g_array_append_val (check->uids, uid);
  g_mutex_lock (&fetches->lock);
  add_claim (get_pending (fetches, make_key (fetch->content_id, uid), fetch->file, end), 0,
             MAIL_TO_END);
  g_mutex_unlock (&fetches->lock);
  mail_store_invoke (fetches->store, start, check);
}

/* Claims what is absent of [start, end) and queues a request for each piece. Lock held. */
static void
claim_absent (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id, Pending *pending,
              guint64 start_offset, guint64 end, MailPriority priority, GPtrArray *requests)
{
  guint32 uid = (guint32)pending->key;
  guint64 from, to;

  while (start_offset < end
         && mail_cache_file_missing (pending->file, start_offset, end, &from, &to))
    {
      start_offset = to;
      while (first_unclaimed (pending, &from, &to))
        {
          Fetch *fetch = fetch_new (fetches, mailbox, content_id, from, to, priority);

          add_claim (pending, from, to);
          g_array_append_val (fetch->uids, uid);
          g_ptr_array_add (requests, fetch);
          from = to;
          to = start_offset;
        }
    }
}

static void
send_requests (MailFetches *fetches, GPtrArray *requests)
{
  for (guint i = 0; i < requests->len; i++)
    mail_store_invoke (fetches->store, start, requests->pdata[i]);
}

/* Whether this account's messages come by range at all. */
static gboolean
by_range (const MailStore *store, guint64 size)
{
  return !store->options.eol_lf && size > MAIL_BLOCK_SIZE
         && (mail_store_caps ((MailStore *)store) & MAIL_CAP_RANGES) != 0;
}

static Walk *
find_walk (MailFetches *fetches, guint64 key)
{
  Walk *oldest = &fetches->walks[0];

  for (guint i = 0; i < N_WALKS; i++)
    {
      if (fetches->walks[i].key == key)
        return &fetches->walks[i];
      if (fetches->walks[i].used < oldest->used)
        oldest = &fetches->walks[i];
    }
  *oldest = (Walk){ .key = key };
  return oldest;
}

static guint64
window_max (const MailStore *store)
{
  return CLAMP (store->options.cache_size / 4, WINDOW_MIN, WINDOW_MAX);
}

/* Reading on from front to back: keeps a window, doubling, asked for ahead of the reader. Lock held. */
static void
walk_on (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id, Pending *pending,
         guint64 size, guint64 offset, guint64 end, GPtrArray *requests)
{
  Walk *walk = find_walk (fetches, pending->key);
  gboolean near = walk->used != 0 && offset + NEAR >= walk->next && offset <= walk->next + NEAR;

  walk->used = g_get_monotonic_time ();
  /* A second look at the same place, or a read that was overtaken by the next one. */
  if (near && end <= walk->next)
    return;
  if (!near)
    {
      walk->window = 0;
      walk->fetched = walk->next = end;
      return;
    }
  walk->next = end;
  walk->fetched = MAX (walk->fetched, end);
  if (walk->window == 0)
    walk->window = WINDOW_MIN;
  else if (walk->fetched - walk->next > walk->window / 2)
    return;
  else
    walk->window = MIN (walk->window * 2, window_max (fetches->store));
  if (walk->fetched >= size)
    return;
  guint64 to = walk->fetched + walk->window >= size ? size + 1 : walk->fetched + walk->window;
  claim_absent (fetches, mailbox, content_id, pending, walk->fetched, to, MAIL_PRIORITY_BULK,
                requests);
  walk->fetched = to;
}

/* What an interactive read of [offset, end) asks for. */
static void
widen (const MailStore *store, guint64 size, guint64 *offset, guint64 *end)
{
  if (!by_range (store, size))
    {
      *offset = 0;
      *end = MAIL_TO_END;
      return;
    }
  guint64 asked = *end;

  *offset -= *offset % MAIL_BLOCK_SIZE;
  *end += MAIL_BLOCK_SIZE - 1;
  *end -= *end % MAIL_BLOCK_SIZE;
  /* One byte more than there should be, or all there is, shows the true end. */
  if (*end >= size)
    *end = asked > size ? MAIL_TO_END : size + 1;
}

static gboolean
read_cached (MailCacheFile *file, guint64 size, guint64 offset, void *buffer, gsize length,
             gsize *n_out)
{
  gssize n;

  if (!has_range (file, size, offset, length))
    return FALSE;
  n = mail_cache_file_read (file, offset, buffer, length, NULL);
  if (n < 0) /* evicted or damaged in between: as if it had never been there */
    return FALSE;
  *n_out = n;
  return TRUE;
}

/* Parks waiter for [offset, offset + length) unless it has arrived meanwhile. */
static MailAnswer
park (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id, guint32 uid, guint64 size,
      MailCacheFile *file, guint64 offset, guint64 length, MailWaiter *waiter)
{
  g_autoptr (GPtrArray) requests = g_ptr_array_new ();
  guint64 start_offset = offset, end = offset + length;
  MailAnswer answer = MAIL_READY;

  g_mutex_lock (&fetches->lock);
  if (!has_range (file, size, offset, length))
    {
      Pending *pending = get_pending (fetches, make_key (content_id, uid), file, size);

      pending->size = size;
      waiter->offset = offset;
      waiter->length = length;
      waiter->link.data = waiter;
      g_queue_push_tail_link (&pending->waiters, &waiter->link);
      widen (fetches->store, size, &start_offset, &end);
      claim_absent (fetches, mailbox, content_id, pending, start_offset, end,
                    MAIL_PRIORITY_INTERACTIVE, requests);
      answer = MAIL_PARKED;
      if (pending->claims->len == 0)
        {
          /* Never wait for what nobody fetches. */
          g_queue_unlink (&pending->waiters, &waiter->link);
          put_pending (fetches, pending);
          answer = MAIL_FAILED;
        }
    }
  g_mutex_unlock (&fetches->lock);
  send_requests (fetches, requests);
  return answer;
}

static void
note_walk (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id, guint32 uid,
           guint64 size, MailCacheFile *file, guint64 offset, guint64 end)
{
  g_autoptr (GPtrArray) requests = NULL;
  guint64 from, to;

  if (!by_range (fetches->store, size)
      || !mail_cache_file_missing (file, 0, size, &from, &to))
    return;
  requests = g_ptr_array_new ();
  g_mutex_lock (&fetches->lock);
  Pending *pending = get_pending (fetches, make_key (content_id, uid), file, size);
  walk_on (fetches, mailbox, content_id, pending, size, offset, end, requests);
  put_pending (fetches, pending);
  g_mutex_unlock (&fetches->lock);
  send_requests (fetches, requests);
}

static MailAnswer
lookup (MailMailbox *mailbox, guint32 uid, MailMessage *message, GError **error)
{
  if (mail_mailbox_find_gone (mailbox, uid, message))
    return MAIL_READY;
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_GONE, "no such message");
  return MAIL_FAILED;
}

static MailAnswer
not_cached (GError **error)
{
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_UNREACHABLE, "offline and not in the cache");
  return MAIL_FAILED;
}

/* The id of a message that is stored here, or NULL; the caller's. */
static char *
kept_id (MailStore *store, MailMailbox *mailbox, guint32 uid)
{
  g_autofree char *id = NULL;

  if (store->keep == NULL || mail_keep_length (store->keep) == 0)
    return NULL;
  g_mutex_lock (&mailbox->lock);
  id = g_strdup (mail_mailbox_remote_id_locked (mailbox, uid));
  g_mutex_unlock (&mailbox->lock);
  return id != NULL && mail_keep_has (store->keep, id) ? g_steal_pointer (&id) : NULL;
}

gboolean
mail_store_is_kept (MailStore *store, MailMailbox *mailbox, guint32 uid)
{
  g_autofree char *id = kept_id (store, mailbox, uid);

  return id != NULL;
}

/* eol=lf: a stored message goes through the cache, which has the line ends that readers want. */
static gboolean
load_lf (MailStore *store, MailMailbox *mailbox, guint32 uid, const char *id, MailCacheFile *file)
{
  MailKept kept;

  if (!mail_keep_get (store->keep, id, &kept))
    return FALSE;
  mail_kept_clear (&kept);
  g_autofree char *wire = g_malloc (kept.size + 1);
  gssize n = mail_keep_read (store->keep, id, 0, wire, kept.size, NULL);
  gsize length = 0;
  for (gssize i = 0; i < n; i++)
    if (wire[i] != '\r' || i + 1 == n || wire[i + 1] != '\n')
      wire[length++] = wire[i];
  if (n < 0 || !mail_cache_file_write_whole (file, wire, length, NULL))
    return FALSE;
  mail_store_learn_size (mailbox, mail_mailbox_content_id (mailbox), uid, length);
  return TRUE;
}

/* What is stored here is read from there. FALSE: it is not; n_out: bytes, or -1 with error. */
static gboolean
read_kept (MailStore *store, MailMailbox *mailbox, guint32 uid, guint64 offset, void *buffer,
           gsize length, gssize *n_out, GError **error)
{
  g_autofree char *id = kept_id (store, mailbox, uid);
  g_autoptr (GError) failed = NULL;

  if (id == NULL)
    return FALSE;
  if (store->options.eol_lf)
    {
      g_autoptr (MailCacheFile) file
          = mail_cache_get (store->cache, mail_mailbox_content_id (mailbox), uid, 0);

      if (mail_cache_file_has (file, offset, length) || load_lf (store, mailbox, uid, id, file))
        *n_out = mail_cache_file_read (file, offset, buffer, length, &failed);
      else
        *n_out = mail_keep_read (store->keep, id, offset, buffer, length, &failed);
    }
  else
    *n_out = mail_keep_read (store->keep, id, offset, buffer, length, &failed);
  if (*n_out < 0 && g_error_matches (failed, MAIL_ERROR, MAIL_ERROR_GONE))
    return FALSE;
  if (*n_out < 0)
    g_propagate_error (error, g_steal_pointer (&failed));
  return TRUE;
}

/* A message that was moved is still known to some reader by its old place. */
static MailMailbox *
follow (MailStore *store, MailMailbox *mailbox, guint32 *uid)
{
  MailMessage message;

  if (mail_mailbox_find (mailbox, *uid, &message))
    return NULL;
  return mail_changes_moved (store, mail_mailbox_content_id (mailbox), uid);
}

MailAnswer
mail_store_read (MailStore *store, MailMailbox *mailbox, guint32 uid, guint64 offset, void *buffer,
                 gsize length, gsize *n_out, MailWaiter *waiter, GError **error)
{
  g_autoptr (MailMailbox) moved = follow (store, mailbox, &uid);

  if (moved != NULL)
    mailbox = moved;
  guint32 content_id = mail_mailbox_content_id (mailbox);
  MailMessage message;

  gssize n_kept;

  if (lookup (mailbox, uid, &message, error) != MAIL_READY)
    return MAIL_FAILED;
  if (read_kept (store, mailbox, uid, offset, buffer, length, &n_kept, error))
    {
      *n_out = (gsize)MAX (n_kept, 0);
      return n_kept >= 0 ? MAIL_READY : MAIL_FAILED;
    }
  g_autoptr (MailCacheFile) file = mail_cache_get (store->cache, content_id, uid, 0);
  gboolean hit = read_cached (file, message.size, offset, buffer, length, n_out);
  if (!hit && waiter == NULL && !store->options.offline)
    return MAIL_PARKED;
  mail_counter_add (hit ? MAIL_COUNTER_HITS : MAIL_COUNTER_MISSES, 1);

  MailAnswer answer = MAIL_READY;
  if (!hit && !store->options.offline)
    answer = park (store->fetches, mailbox, content_id, uid, message.size, file, offset, length,
                   waiter);
  if (!store->options.offline)
    {
      note_walk (store->fetches, mailbox, content_id, uid, message.size, file, offset,
                 offset + length);
      mail_readahead_note (store->readahead, mailbox, content_id, uid, message.size, offset,
                           offset + length, !hit);
    }
  if (answer == MAIL_PARKED)
    return MAIL_PARKED;
  if (hit || read_cached (file, message.size, offset, buffer, length, n_out))
    return MAIL_READY;
  return not_cached (error);
}

MailAnswer
mail_store_fetch_whole (MailStore *store, MailMailbox *mailbox, guint32 uid, MailWaiter *waiter,
                        GError **error)
{
  g_autoptr (MailMailbox) moved = follow (store, mailbox, &uid);

  if (moved != NULL)
    mailbox = moved;
  guint32 content_id = mail_mailbox_content_id (mailbox);
  MailMessage message;
  guint64 end;

  if (lookup (mailbox, uid, &message, error) != MAIL_READY)
    return MAIL_FAILED;
  g_autoptr (MailCacheFile) file = mail_cache_get (store->cache, content_id, uid, 0);
  if (mail_cache_file_end (file, &end) && mail_cache_file_has (file, 0, end))
    return MAIL_READY;
  g_autofree char *id = kept_id (store, mailbox, uid);
  if (id != NULL && (!store->options.eol_lf || load_lf (store, mailbox, uid, id, file)))
    return MAIL_READY;
  if (store->options.offline)
    return not_cached (error);
  if (waiter == NULL)
    return MAIL_PARKED;
  mail_readahead_note (store->readahead, mailbox, content_id, uid, message.size, 0, message.size,
                       TRUE);
  return park (store->fetches, mailbox, content_id, uid, message.size, file, 0, MAIL_TO_END / 2,
               waiter);
}

guint64
mail_store_cached_bytes (MailStore *store, MailMailbox *mailbox, guint32 uid)
{
  g_autoptr (MailCacheFile) file
      = mail_cache_peek (store->cache, mail_mailbox_content_id (mailbox), uid, 0);
  g_autofree char *id = kept_id (store, mailbox, uid);
  MailKept kept;

  if (id != NULL && mail_keep_get (store->keep, id, &kept))
    {
      mail_kept_clear (&kept);
      return kept.size;
    }
  return file != NULL ? mail_cache_file_bytes (file) : 0;
}

gboolean
mail_fetches_busy (MailFetches *fetches, guint32 content_id, guint32 uid)
{
  guint64 key = make_key (content_id, uid);

  g_mutex_lock (&fetches->lock);
  gboolean busy = g_hash_table_contains (fetches->pending, &key);
  g_mutex_unlock (&fetches->lock);
  return busy;
}

void
mail_fetches_ahead (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id,
                    const MailFetchPart *parts, guint n_parts)
{
  g_autoptr (GPtrArray) requests = g_ptr_array_new ();

  for (guint i = 0; i < n_parts; i++)
    {
      guint64 key = make_key (content_id, parts[i].uid);
      Fetch *fetch = NULL;

      g_autoptr (MailCacheFile) file
          = mail_cache_get (fetches->store->cache, content_id, parts[i].uid, 0);
      g_mutex_lock (&fetches->lock);
      /* What somebody fetches already is left to him. */
      if (!g_hash_table_contains (fetches->pending, &key))
        {
          for (guint r = 0; r < requests->len && fetch == NULL; r++)
            if (((Fetch *)requests->pdata[r])->end == parts[i].end)
              fetch = requests->pdata[r];
          if (fetch == NULL)
            {
              fetch = fetch_new (fetches, mailbox, content_id, parts[i].start, parts[i].end,
                                 MAIL_PRIORITY_BULK);
              g_ptr_array_add (requests, fetch);
            }
          g_array_append_val (fetch->uids, parts[i].uid);
          add_claim (get_pending (fetches, key, file, MAIL_TO_END), parts[i].start, parts[i].end);
        }
      g_mutex_unlock (&fetches->lock);
    }
  send_requests (fetches, requests);
}
