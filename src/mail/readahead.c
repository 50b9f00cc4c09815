/* SPDX-License-Identifier: MIT
 *
 * The scan detector. `grep -r`, `rsync`, `tar` and `cat *` walk a mailbox in UID order, because
 * names, readdir order and inodes sort alike. Once two messages in a row have been asked for, what
 * follows is fetched ahead in few large requests, more of them sent while others arrive, in a
 * window that grows up to a byte budget while it is used up quickly. A walk that stops costs at
 * most its window. Several walkers are told apart by mailbox and place. Who has come through one
 * mailbox and opens the first message of another is taken to walk on there, and, when the two stand
 * side by side, through those that follow: they are listed and fetched ahead too.
 *
 * A walk in another order (by date, or by names that are digests) shows as misses here and there in
 * one mailbox, one soon after the other. Then what is not here yet is fetched in UID order, in the
 * same kind of window, each one only if there was another miss: sooner or later everything such a
 * walker wants is among it. Any thread, own lock; only ever visible as speed.
 */
#include "store-private.h"

#define N_SCANS 16u
#define SKIP_MAX 32u /* messages a walker may leave out (cached ones, names that do not match) */
#define SKIP_FIRST 4u
/* Of what was handed to the kernel no read comes here: one message in so many is not, to see where
 * the walker is. */
#define PROBE_EVERY 16u
#define NEAR 32u /* messages; more than a walker gets on between being seen and handing on */
#define WALK_AFTER 4u
#define WALK_GAP G_TIME_SPAN_SECOND /* from the last of one mailbox to the first of the next */
#define WALK_ON 128u
#define BEYOND 8u      /* mailboxes that are looked into behind the one where the walker is */
#define LOOK_MAX 2048u /* messages looked at for one request */
#define WINDOW_MIN (1024 * G_GUINT64_CONSTANT (1024))
#define WINDOW_MAX (64 * G_GUINT64_CONSTANT (1024) * 1024)
#define WINDOW_PARTS 8u /* when one of so many is used up, as much is asked for anew */
/* µs; then the window is large enough: on a slow line a larger one is much to have asked for in
 * vain */
#define PART_LASTS (750 * G_TIME_SPAN_MILLISECOND)
#define MESSAGE_COST 4096 /* of any message, however small: a file in the cache */
#define WINDOW_GROWTH 16  /* a scan of thousands should not spend its first second growing */
#define HEAD_MAX (32 * G_GUINT64_CONSTANT (1024)) /* who reads no further wants only the start */
#define N_ROAMS 4u
#define ROAM_AFTER 4u /* misses here and there */
#define ROAM_WINDOW_MAX (16 * G_GUINT64_CONSTANT (1024) * 1024)
#define ROAM_GAP (3 * G_TIME_SPAN_SECOND) /* between two of them */
/* So many times what he has read, times his misses, may be fetched ahead: he may want a few
 * messages only. Where names are digests of the server's ids, who walks by name is seen here, and
 * wants all. */
#define ROAM_SHARE 4u
#define ROAM_SHARE_DIGESTS 16u
#define WHOLE_MAX                                                                                  \
  (4 * G_GUINT64_CONSTANT (1024) * 1024) /* larger ones are read on by themselves                  \
                                          */

typedef struct
{
  guint32 content_id;
  guint32 uid;           /* the walker is here */
  guint32 ahead;         /* everything up to here has been asked for or was there */
  guint run;             /* messages in a row */
  guint64 size, read_to; /* of the message at uid */
  guint64 head_end;      /* how far those who read only the start read */
  guint n_heads;         /* large messages in a row of which only the start was read */
  gboolean full;         /* a message above a block was read past its first block */
  gboolean rewound; /* when that was seen first, what was asked for before was asked for anew */
  guint64 window, ahead_bytes;
  gint64 asked_at; /* when more was last asked for */
  guint n_chosen;
  guint32 named, named_half;  /* of what is in the cache, the last one that the kernel is to have */
  guint32 near_from, near_to; /* he may be reading these just now; near_from: as of this uid */
  gint step;                  /* from mailbox to mailbox: where the next one is, 0: nowhere */
  gint64 used;
} Scan;

/* What is to be asked for of a mailbox. */
typedef struct
{
  MailMailbox *mailbox;
  guint32 content_id;
  GArray *parts; /* of MailFetchPart; NULL: what there is */
} Ask;

/* Somebody reads a mailbox in no order we know. */
typedef struct
{
  Scan scan;        /* what was fetched ahead for him, in UID order */
  guint32 last_uid; /* his last message */
  guint64 read;     /* bytes of his messages */
  guint n_misses;   /* in quick succession */
  guint32 marker;   /* when this one has come, it is time for the next window; 0: none */
  gint64 missed_at;
} Roam;

struct MailReadahead
{
  MailStore *store;
  GMutex lock;
  Scan scans[N_SCANS]; /* under lock, as what follows */
  Roam roams[N_ROAMS];
};

MailReadahead *
mail_readahead_new (MailStore *store)
{
  MailReadahead *readahead = g_new0 (MailReadahead, 1);

  readahead->store = store;
  g_mutex_init (&readahead->lock);
  return readahead;
}

void
mail_readahead_free (MailReadahead *readahead)
{
  g_mutex_clear (&readahead->lock);
  g_free (readahead);
}

guint64
mail_readahead_window (guint64 window, gint64 lasted)
{
  return window * CLAMP (PART_LASTS / MAX (lasted, 1), 1, WINDOW_GROWTH);
}

static guint64
grown (const MailReadahead *readahead, guint64 window, gint64 lasted, guint64 max)
{
  max = MIN (max, readahead->store->options.cache_size / N_SCANS);
  return CLAMP (mail_readahead_window (window, lasted), WINDOW_MIN, MAX (max, WINDOW_MIN));
}

/* How far ahead a message of this size is fetched. */
static guint64
ahead_end (const MailReadahead *readahead, const Scan *scan, guint64 size)
{
  if (!mail_store_has_ranges (readahead->store))
    return size <= WHOLE_MAX ? MAIL_TO_END : 0;
  if (scan->n_heads >= 2 && size > HEAD_MAX)
    return scan->head_end;
  if (size <= MAIL_BLOCK_SIZE || (scan->full && size <= WHOLE_MAX))
    return MAIL_TO_END;
  return MAIL_BLOCK_SIZE;
}

static guint64
cost (guint64 end, guint64 size)
{
  return MIN (end, size) + MESSAGE_COST;
}

/* The scan that this message continues, moved on to it; NULL when it continues none. */
static Scan *
advance (MailReadahead *readahead, MailMailbox *mailbox, guint32 content_id, guint32 uid)
{
  MailMessage between[SKIP_MAX];

  for (guint i = 0; i < N_SCANS; i++)
    {
      Scan *scan = &readahead->scans[i];

      if (scan->content_id != content_id || uid < scan->uid)
        continue;
      if (scan->uid == uid)
        return scan;
      /* Two that are near each other by chance are no scan yet. */
      guint n = mail_mailbox_next (mailbox, scan->uid, between, NULL,
                                   scan->run > 1 ? SKIP_MAX : SKIP_FIRST);
      guint64 passed = 0;
      for (guint k = 0; k < n && between[k].uid <= uid; k++)
        {
          if (between[k].uid <= scan->ahead)
            passed += cost (ahead_end (readahead, scan, between[k].size), between[k].size);
          if (between[k].uid != uid)
            continue;
          if (scan->size > HEAD_MAX)
            {
              gboolean head = scan->read_to <= HEAD_MAX;

              scan->n_heads = head ? scan->n_heads + 1 : 0;
              scan->head_end = head ? MAX (scan->read_to, 16 * 1024) : 0;
            }
          if (scan->size > MAIL_BLOCK_SIZE)
            scan->full = scan->read_to > MAIL_BLOCK_SIZE;
          scan->ahead_bytes = uid < scan->ahead
                                  ? scan->ahead_bytes - MIN (passed, scan->ahead_bytes)
                                  : 0;
          scan->uid = uid;
          scan->run++;
          scan->read_to = 0;
          return scan;
        }
    }
  return NULL;
}

/* The walk that has come to the end of another mailbox and goes on with this message, the first one
 * here; or NULL. step_out: the way he goes from mailbox to mailbox, 0: none that is known. Where a
 * walker is seen may be some messages behind where he is. */
static const Scan *
comes_from (MailReadahead *readahead, MailMailbox *mailbox, guint32 content_id, guint32 uid,
            gint *step_out)
{
  const Scan *latest = &readahead->scans[0];
  MailMessage next[NEAR];

  for (guint i = 1; i < N_SCANS; i++)
    if (readahead->scans[i].used > latest->used)
      latest = &readahead->scans[i];
  if (latest->run < 2 || latest->content_id == content_id
      || g_get_monotonic_time () - latest->used > WALK_GAP
      || mail_mailbox_next (mailbox, 0, next, NULL, 1) == 0 || next[0].uid != uid)
    return NULL;
  g_autoptr (MailMailbox) last = mail_store_contents (readahead->store, latest->content_id);
  if (last == NULL || mail_mailbox_next (last, latest->uid, next, NULL, NEAR) == NEAR)
    return NULL;
  *step_out = mail_mailbox_step (last, mailbox);
  return latest;
}

static Scan *
find_scan (MailReadahead *readahead, guint32 content_id)
{
  for (guint i = 0; i < N_SCANS; i++)
    if (readahead->scans[i].content_id == content_id)
      return &readahead->scans[i];
  return NULL;
}

/* A new one in the place of the oldest, with the manner of `from`, if there is one. */
static Scan *
begin (MailReadahead *readahead, guint32 content_id, guint32 uid, const Scan *from, gint step)
{
  Scan *oldest = &readahead->scans[0];
  Scan scan = { .content_id = content_id,
                .uid = uid,
                .ahead = uid,
                .run = 1,
                .near_from = G_MAXUINT32,
                .step = step };

  if (from != NULL)
    {
      scan.run = 2;
      scan.head_end = from->head_end;
      scan.n_heads = from->n_heads;
      scan.full = from->full;
    }
  for (guint i = 1; i < N_SCANS; i++)
    if (readahead->scans[i].used < oldest->used)
      oldest = &readahead->scans[i];
  *oldest = scan;
  return oldest;
}

/* Appends what is to be fetched next, about `budget` bytes of it. FALSE: there is no more. */
static gboolean
choose (MailReadahead *readahead, Scan *scan, MailMailbox *mailbox, guint64 budget, GArray *parts)
{
  MailMessage next[128];
  guint looked = 0;
  guint64 chosen = 0;
  gboolean more = TRUE;

  scan->ahead = MAX (scan->ahead, scan->uid);
  while (more && chosen < budget && looked < LOOK_MAX)
    {
      guint n = mail_mailbox_next (mailbox, scan->ahead, next, NULL, G_N_ELEMENTS (next));

      for (guint i = 0; i < n && chosen < budget; i++)
        {
          guint64 end = ahead_end (readahead, scan, next[i].size);
          guint64 from = 0, to;
          MailFetchPart part = { .uid = next[i].uid,
                                 .end = end,
                                 .cost = cost (end, next[i].size),
                                 .hand_on = scan->n_chosen % PROBE_EVERY != 0 };

          scan->ahead = next[i].uid;
          looked++;
          g_autoptr (MailCacheFile) file = mail_cache_peek (readahead->store->cache,
                                                            scan->content_id, next[i].uid, 0);
          if (end == 0 || mail_store_is_kept (readahead->store, mailbox, next[i].uid)
              || (file != NULL
                  && !mail_cache_file_missing (file, 0, MIN (end, MAIL_TO_END / 2), &from, &to)))
            continue;
          if (from == MAIL_BLOCK_SIZE && mail_store_has_ranges (readahead->store))
            part.start = from;
          chosen += part.cost;
          scan->n_chosen++;
          g_array_append_val (parts, part);
        }
      more = n == G_N_ELEMENTS (next) || (n > 0 && scan->ahead != next[n - 1].uid);
    }
  scan->ahead_bytes += chosen;
  return more;
}

static void
ask_free (gpointer data)
{
  Ask *ask = data;

  mail_mailbox_unref (ask->mailbox);
  g_clear_pointer (&ask->parts, g_array_unref);
  g_free (ask);
}

static Ask *
add_ask (GQueue *asks, MailMailbox *mailbox, guint32 content_id)
{
  Ask *ask = g_new0 (Ask, 1);

  ask->mailbox = mail_mailbox_ref (mailbox);
  ask->content_id = content_id;
  g_queue_push_tail (asks, ask);
  return ask;
}

/* No lock held. */
static void
send (gpointer data, gpointer fetches)
{
  const Ask *ask = data;

  if (ask->parts != NULL)
    {
      mail_fetches_ahead (fetches, ask->mailbox, ask->content_id,
                          (const MailFetchPart *)ask->parts->data, ask->parts->len);
      return;
    }
  g_mutex_lock (&ask->mailbox->lock);
  gboolean start = !ask->mailbox->loaded && !ask->mailbox->syncing;
  ask->mailbox->syncing |= start;
  g_mutex_unlock (&ask->mailbox->lock);
  if (start)
    mail_sync_start (ask->mailbox);
}

static void
choose_of (MailReadahead *readahead, Scan *scan, MailMailbox *mailbox, guint64 budget, GQueue *asks,
           gboolean *more_out)
{
  Ask *ask = add_ask (asks, mailbox, scan->content_id);

  ask->parts = g_array_new (FALSE, FALSE, sizeof (MailFetchPart));
  *more_out = choose (readahead, scan, mailbox, budget, ask->parts);
}

/* Everything is under way of the mailbox in which the walker is: what he will want of the next
 * ones, about `budget` bytes of it. */
static void
look_beyond (MailReadahead *readahead, const Scan *from, MailMailbox *mailbox, guint64 budget,
             GQueue *asks)
{
  g_autoptr (MailMailbox) next = mail_mailbox_ref (mailbox);
  gboolean more = FALSE;

  for (guint i = 0; i < BEYOND && budget > 0 && !more; i++)
    {
      MailMailbox *following = mail_mailbox_sibling (next, from->step);
      MailMailboxInfoNow info;

      mail_mailbox_unref (next);
      next = following;
      if (next == NULL)
        return;
      if (!mail_mailbox_selectable (next))
        continue;
      guint32 content_id = mail_mailbox_content_id (next);
      mail_mailbox_info (next, &info);
      if (!info.known)
        {
          add_ask (asks, next, content_id);
          continue;
        }
      Scan *scan = find_scan (readahead, content_id);
      if (scan == NULL)
        {
          scan = begin (readahead, content_id, 0, from, from->step);
          scan->window = from->window;
        }
      scan->used = MAX (scan->used, from->used - 1); /* he is not there yet */
      if (scan->ahead_bytes >= budget)
        return;
      choose_of (readahead, scan, next, budget - scan->ahead_bytes, asks, &more);
      budget -= MIN (scan->ahead_bytes, budget);
    }
}

/* The last message that the walker may be at by now. */
static guint32
near_to (Scan *scan, MailMailbox *mailbox)
{
  MailMessage next[NEAR];

  if (scan->near_from != scan->uid)
    {
      guint n = mail_mailbox_next (mailbox, scan->uid, next, NULL, NEAR);

      scan->near_from = scan->uid;
      scan->near_to = n > 0 ? next[n - 1].uid : scan->uid;
    }
  return scan->near_to;
}

gboolean
mail_readahead_is_near (MailReadahead *readahead, MailMailbox *mailbox, guint32 content_id,
                        guint32 uid)
{
  gboolean near = FALSE;

  g_mutex_lock (&readahead->lock);
  for (guint i = 0; i < N_SCANS && !near; i++)
    {
      Scan *scan = &readahead->scans[i];

      near = scan->content_id == content_id && scan->uid <= uid && uid <= near_to (scan, mailbox);
    }
  g_mutex_unlock (&readahead->lock);
  return near;
}

/* Through what is in the cache already: what comes next, when he is half through what was named
 * last. */
static void
choose_cached (Scan *scan, MailMailbox *mailbox, GArray *uids)
{
  MailMessage next[WALK_ON];

  guint32 from = MAX (scan->named, near_to (scan, mailbox));
  guint n = mail_mailbox_next (mailbox, from, next, NULL, WALK_ON);
  for (guint i = 0; i < n; i++)
    if (scan->n_chosen++ % PROBE_EVERY != 0 && next[i].size <= MAIL_BLOCK_SIZE)
      g_array_append_val (uids, next[i].uid);
  if (n > 0)
    {
      scan->named = next[n - 1].uid;
      scan->named_half = next[n / 2].uid;
    }
}

/* NULL: there is none yet, and none is to be made. */
static Roam *
find_roam (MailReadahead *readahead, guint32 content_id, gboolean make)
{
  Roam *oldest = &readahead->roams[0];

  for (guint i = 0; i < N_ROAMS; i++)
    {
      if (readahead->roams[i].scan.content_id == content_id)
        return &readahead->roams[i];
      if (readahead->roams[i].missed_at < oldest->missed_at)
        oldest = &readahead->roams[i];
    }
  if (!make)
    return NULL;
  *oldest = (Roam) { .scan = { .content_id = content_id } };
  return oldest;
}

static void
note_read (Roam *roam, guint32 uid, guint64 size)
{
  if (roam->last_uid == uid)
    return;
  roam->last_uid = uid;
  roam->read += cost (MIN (size, WHOLE_MAX), size);
}

/* A message was missed that no scan had come near. TRUE: more of the mailbox is to be fetched. */
static gboolean
roam (MailReadahead *readahead, Roam *roam, guint32 uid, guint64 size)
{
  gboolean digests = (mail_store_caps (readahead->store) & MAIL_CAP_REMOTE_IDS) != 0;
  guint64 share = (guint64)roam->n_misses * (digests ? ROAM_SHARE_DIGESTS : ROAM_SHARE);
  guint64 most = MIN (roam->read * share, readahead->store->options.cache_size / 2);
  gint64 now = g_get_monotonic_time ();

  if (now - roam->missed_at > ROAM_GAP)
    *roam = (Roam) { .scan = { .content_id = roam->scan.content_id } };
  roam->missed_at = now;
  roam->n_misses += roam->last_uid != uid;
  note_read (roam, uid, size);
  if (roam->n_misses < ROAM_AFTER || roam->scan.ahead_bytes >= most
      || (roam->marker != 0
          && mail_fetches_busy (readahead->store->fetches, roam->scan.content_id, roam->marker)))
    return FALSE;
  roam->scan.window = grown (readahead, roam->scan.window, 0, ROAM_WINDOW_MAX);
  return TRUE;
}

void
mail_readahead_note (MailReadahead *readahead, MailMailbox *mailbox, guint32 content_id,
                     guint32 uid, guint64 size, guint64 offset, guint64 end, gboolean missed)
{
  GQueue asks = G_QUEUE_INIT;
  g_autoptr (GArray) cached = NULL;
  const MailStoreEvents *events = &readahead->store->events;
  gboolean more = TRUE;

  g_mutex_lock (&readahead->lock);
  Scan *scan = advance (readahead, mailbox, content_id, uid);
  gboolean stray = missed && (scan == NULL || scan->run < 2);
  Roam *roaming = find_roam (readahead, content_id, stray);
  if (scan == NULL)
    {
      gint step = 0;
      const Scan *from = comes_from (readahead, mailbox, content_id, uid, &step);

      scan = begin (readahead, content_id, uid, from, step);
    }
  scan->size = size;
  scan->read_to = MAX (scan->read_to, MIN (end, size));
  scan->used = g_get_monotonic_time ();
  scan->full |= scan->read_to > MAIL_BLOCK_SIZE;
  if (scan->full && !scan->rewound)
    {
      /* Of what was asked for so far he will want the rest too. */
      scan->rewound = TRUE;
      scan->ahead = uid;
      scan->ahead_bytes = 0;
    }

  gboolean active = scan->window > 0 && scan->ahead >= uid;
  if (scan->run >= 2 && (missed || active)
      && scan->ahead_bytes <= scan->window - scan->window / WINDOW_PARTS)
    {
      scan->window = grown (readahead, scan->window, scan->used - scan->asked_at, WINDOW_MAX);
      scan->asked_at = scan->used;
      choose_of (readahead, scan, mailbox, scan->window - scan->ahead_bytes, &asks, &more);
      if (!more && scan->step != 0)
        look_beyond (readahead, scan, mailbox, scan->window - MIN (scan->ahead_bytes, scan->window),
                     &asks);
    }
  else if (!missed && !active && scan->run >= WALK_AFTER && uid >= scan->named_half
           && !readahead->store->options.eol_lf && events->walks_on != NULL)
    {
      cached = g_array_new (FALSE, FALSE, sizeof (guint32));
      choose_cached (scan, mailbox, cached);
    }
  else if (stray && roam (readahead, roaming, uid, size))
    {
      choose_of (readahead, &roaming->scan, mailbox, roaming->scan.window, &asks, &more);
      const GArray *parts = ((Ask *)asks.head->data)->parts;
      roaming->marker = parts->len > 0 ? g_array_index (parts, MailFetchPart, parts->len / 2).uid
                                       : 0;
    }
  if (roaming != NULL)
    note_read (roaming, uid, size);
  g_mutex_unlock (&readahead->lock);
  g_queue_foreach (&asks, send, readahead->store->fetches);
  g_queue_clear_full (&asks, ask_free);
  if (cached != NULL && cached->len > 0)
    events->walks_on (readahead->store->events_data, content_id, (const guint32 *)cached->data,
                      cached->len);
}
