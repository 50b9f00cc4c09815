/* SPDX-License-Identifier: MIT
 *
 * The way of a read: from the cache at once, else claim the absent range, join whoever fetches it
 * already, ask the backend, and wait. Who reads a large message from front to back gets a window
 * asked for ahead of him. Any thread.
 */
#include "mail/fetch-private.h"

#include "mailfs/log.h"

#include <string.h>

#define WINDOW_MIN (16 * (guint64)MAIL_BLOCK_SIZE)   /* 1 MiB */
#define WINDOW_MAX (1024 * (guint64)MAIL_BLOCK_SIZE) /* 64 MiB */
#define WINDOW_PARTS 4u /* when one of so many is used up, as much is asked for anew */
#define PREFIX_MAX (2 * (guint64)MAIL_BLOCK_SIZE)   /* what the kernel reads ahead at most */
#define PREFIX_WORTH (8 * (guint64)MAIL_BLOCK_SIZE) /* a smaller message comes whole */
#define CHUNK_MAX (80 * (guint64)MAIL_BLOCK_SIZE)   /* of a command that fetches ahead: 5 MiB */
#define NEAR (16 * (guint64)MAIL_BLOCK_SIZE) /* the kernel reads ahead, and not always in order */

/* Whether this account's messages come by range at all. */
static gboolean
by_range (const MailStore *store, guint64 size)
{
  return size > MAIL_BLOCK_SIZE && mail_store_has_ranges (store);
}

static MailWalk *
find_walk (MailFetches *fetches, guint64 key)
{
  MailWalk *oldest = &fetches->walks[0];

  for (guint i = 0; i < MAIL_N_WALKS; i++)
    {
      if (fetches->walks[i].key == key)
        return &fetches->walks[i];
      if (fetches->walks[i].used < oldest->used)
        oldest = &fetches->walks[i];
    }
  *oldest = (MailWalk) { .key = key };
  return oldest;
}

static guint64
window_max (const MailStore *store)
{
  return CLAMP (store->options.cache_size / 4, WINDOW_MIN, WINDOW_MAX);
}

/* Reading on from front to back: keeps a window, growing, asked for ahead of the reader. Lock
 * held. */
static void
walk_on (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id, MailPending *pending,
         guint64 size, guint64 offset, guint64 end, GPtrArray *requests)
{
  MailWalk *walk = find_walk (fetches, pending->key);
  gboolean near = walk->used != 0 && offset + NEAR >= walk->next && offset <= walk->next + NEAR;

  walk->used = g_get_monotonic_time ();
  /* A second look at the same place, or a read that was overtaken by the next one. */
  if (near && end <= walk->next)
    return;
  if (!near)
    {
      walk->window = WINDOW_MIN;
      walk->asked_at = walk->used;
      walk->fetched = walk->next = end;
      return;
    }
  walk->next = end;
  walk->fetched = MAX (walk->fetched, end);
  if (walk->fetched - walk->next > walk->window - walk->window / WINDOW_PARTS)
    return;
  walk->window = MIN (mail_readahead_window (walk->window, walk->used - walk->asked_at),
                      window_max (fetches->store));
  if (walk->fetched >= size)
    return;
  walk->asked_at = walk->used;
  guint64 to = walk->next + walk->window >= size ? size + 1 : walk->next + walk->window;
  /* In pieces, since others may have to wait behind one. */
  while (walk->fetched < to)
    {
      guint64 stop = MIN (to, walk->fetched + WINDOW_MAX / WINDOW_PARTS);

      mail_fetch_absent (fetches, mailbox, content_id, pending, walk->fetched, stop,
                         MAIL_PRIORITY_BULK, requests);
      walk->fetched = stop;
    }
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

/* Without ranges the start of a large message comes as a head: who reads no further wants no more.
 * Once only, since there may be less in it than was asked for. */
static gboolean
wants_prefix (MailFetches *fetches, MailCacheFile *file, guint64 size, guint64 end)
{
  const MailStore *store = fetches->store;
  guint caps = mail_store_caps (fetches->store);

  return !store->options.eol_lf && (caps & MAIL_CAP_REMOTE_IDS) != 0
         && (caps & MAIL_CAP_RANGES) == 0 && size > PREFIX_WORTH && end <= PREFIX_MAX
         && g_atomic_int_get (&fetches->no_prefixes) == 0 && mail_cache_file_bytes (file) == 0;
}

/* The length is told to the index late: a run that was killed, or a message that was listed while its
 * bytes were here already, leaves a claim there. */
static void
learn_from_cache (MailMailbox *mailbox, guint32 content_id, MailMessage *message,
                  MailCacheFile *file)
{
  guint64 end;

  if ((message->local & MAIL_LOCAL_EXACT) != 0 || !mail_cache_file_end (file, &end))
    return;
  mail_store_learn_size (mailbox, content_id, message->uid, end);
  message->size = end;
}

static gboolean
read_cached (MailCacheFile *file, guint64 size, guint64 offset, void *buffer, gsize length,
             gsize *n_out)
{
  gssize n;

  if (!mail_claims_has_range (file, size, offset, length))
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
  if (!mail_claims_has_range (file, size, offset, length))
    {
      MailPending *pending = mail_claims_get (fetches, mail_fetch_key (content_id, uid), file,
                                              size);

      pending->size = size;
      waiter->offset = offset;
      waiter->length = length;
      waiter->link.data = waiter;
      g_queue_push_tail_link (&pending->waiters, &waiter->link);
      /* What he wants is on its way: then not what is beside it, either. */
      if (mail_claims_first_free (pending, &start_offset, &end))
        {
          start_offset = offset, end = offset + length;
          if (wants_prefix (fetches, file, size, end))
            start_offset = 0, end = PREFIX_MAX;
          else
            widen (fetches->store, size, &start_offset, &end);
          mail_fetch_absent (fetches, mailbox, content_id, pending, start_offset, end,
                             MAIL_PRIORITY_INTERACTIVE, requests);
        }
      answer = MAIL_PARKED;
      if (pending->claims->len == 0)
        {
          /* Never wait for what nobody fetches. */
          g_queue_unlink (&pending->waiters, &waiter->link);
          mail_claims_put (fetches, pending);
          answer = MAIL_FAILED;
        }
    }
  g_mutex_unlock (&fetches->lock);
  mail_fetch_send (fetches, requests);
  if (answer == MAIL_PARKED)
    mail_patience_begin (fetches); /* the waiter may be woken already */
  return answer;
}

static void
note_walk (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id, guint32 uid,
           guint64 size, MailCacheFile *file, guint64 offset, guint64 end)
{
  g_autoptr (GPtrArray) requests = NULL;
  guint64 from, to;

  if (!by_range (fetches->store, size) || !mail_cache_file_missing (file, 0, size, &from, &to))
    return;
  requests = g_ptr_array_new ();
  g_mutex_lock (&fetches->lock);
  MailPending *pending = mail_claims_get (fetches, mail_fetch_key (content_id, uid), file, size);
  walk_on (fetches, mailbox, content_id, pending, size, offset, end, requests);
  mail_claims_put (fetches, pending);
  g_mutex_unlock (&fetches->lock);
  mail_fetch_send (fetches, requests);
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
      g_autoptr (MailCacheFile) file = mail_cache_get (store->cache,
                                                       mail_mailbox_content_id (mailbox), uid, 0);

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
  learn_from_cache (mailbox, content_id, &message, file);
  gboolean hit = read_cached (file, message.size, offset, buffer, length, n_out);
  if (!hit && waiter == NULL && !store->options.offline)
    return MAIL_PARKED;
  if (!hit && waiter != NULL
      && mail_patience_is_lost (store->fetches, mail_fetch_key (content_id, uid), waiter->since,
                                error))
    return MAIL_FAILED;
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

gssize
mail_store_read_ahead (MailStore *store, guint32 content_id, guint32 uid, void *buffer, gsize size)
{
  g_autoptr (MailMailbox) mailbox = mail_store_contents (store, content_id);
  MailMessage message;
  guint64 end;

  if (mailbox == NULL || !mail_mailbox_find (mailbox, uid, &message) || message.size > size
      || mail_readahead_is_near (store->readahead, mailbox, content_id, uid))
    return -1;
  g_autoptr (MailCacheFile) file = mail_cache_peek (store->cache, content_id, uid, 0);
  if (file == NULL || !mail_cache_file_end (file, &end) || end != message.size
      || !mail_cache_file_has (file, 0, end)
      || mail_cache_file_read (file, 0, buffer, end, NULL) != (gssize)end)
    return -1;
  return (gssize)end;
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
  learn_from_cache (mailbox, content_id, &message, file);
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
  g_autoptr (MailCacheFile) file = mail_cache_peek (store->cache, mail_mailbox_content_id (mailbox),
                                                    uid, 0);
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
  guint64 key = mail_fetch_key (content_id, uid);

  g_mutex_lock (&fetches->lock);
  gboolean busy = g_hash_table_contains (fetches->pending, &key);
  g_mutex_unlock (&fetches->lock);
  return busy;
}

gboolean
mail_store_has_ranges (const MailStore *store)
{
  return !store->options.eol_lf
         && (mail_store_caps ((MailStore *)store) & MAIL_CAP_RANGES) != 0;
}

/* The request that this part goes with, or NULL. */
static MailFetch *
find_room (GPtrArray *requests, const MailFetchPart *part)
{
  for (guint i = requests->len; part->start == 0 && i-- > 0;)
    {
      MailFetch *fetch = requests->pdata[i];

      if (fetch->start == 0 && fetch->end == part->end)
        return fetch->cost + part->cost <= CHUNK_MAX ? fetch : NULL;
    }
  return NULL;
}

/* What somebody fetches already is left to him; only where that is the first block of a message of
 * which more is wanted now, the part is what comes behind it. */
static gboolean
leave_claimed (MailFetches *fetches, guint64 key, MailFetchPart *part)
{
  const MailPending *pending = g_hash_table_lookup (fetches->pending, &key);
  guint64 end = part->end;

  if (pending == NULL)
    return TRUE;
  return mail_store_has_ranges (fetches->store)
         && mail_claims_first_free (pending, &part->start, &end) && part->start == MAIL_BLOCK_SIZE
         && end == part->end;
}

void
mail_fetches_ahead (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id,
                    const MailFetchPart *parts, guint n_parts)
{
  g_autoptr (GPtrArray) requests = g_ptr_array_new ();

  for (guint i = 0; i < n_parts; i++)
    {
      MailFetchPart part = parts[i];
      guint64 key = mail_fetch_key (content_id, part.uid);

      g_autoptr (MailCacheFile) file = mail_cache_get (fetches->store->cache, content_id, part.uid,
                                                       0);
      g_mutex_lock (&fetches->lock);
      if (leave_claimed (fetches, key, &part))
        {
          MailFetch *fetch = find_room (requests, &part);
          if (fetch == NULL)
            {
              fetch = mail_fetch_new (fetches, mailbox, content_id, part.start, part.end,
                                      MAIL_PRIORITY_BULK);
              g_ptr_array_add (requests, fetch);
            }
          g_array_append_val (fetch->uids, part.uid);
          fetch->cost += part.cost;
          MailPending *pending = mail_claims_get (fetches, key, file, MAIL_TO_END);
          mail_claims_add (pending, part.start, part.end);
          pending->hand_on = part.hand_on && part.start == 0;
        }
      g_mutex_unlock (&fetches->lock);
    }
  mail_fetch_send (fetches, requests);
}
