/* SPDX-License-Identifier: MIT
 *
 * Which connection gets which task. Work for somebody who waits goes where its mailbox is selected
 * or where the least is under way; bulk work is kept a few commands deep so that the wire never
 * rests, and leaves one connection alone as soon as there are two. Net thread.
 */
#include "imap/pool-private.h"

#include <string.h>

#define MAX_WEIGHT 16      /* pipelined on one connection */
#define STALLED_MS 1000    /* without progress: others go elsewhere */
#define STALLED_TICKS 5    /* in which it said nothing */
#define BULK_DEPTH_ONLY 2  /* commands, where all others must go in between, for good */
#define BULK_DEPTH_SOLE 6  /* where they must until a second connection is made */
#define BULK_DEPTH 16      /* what one connection needs to fill a long wire */
#define DRAIN_MS 5000      /* for so long bulk work waits for a connection to be compressed */
#define BULK_LASTS_MS 1000 /* more was wanted for so long: worth another login */

typedef struct
{
  guint n_tasks, n_bulk, weight;
  gboolean stalled; /* what is under way does not move */
  gboolean match;   /* the mailbox will be selected, with enough rights */
} Load;

static gboolean
is_stalled (const ImapSlot *slot)
{
  return slot->n_still >= STALLED_TICKS
         && imap_session_stalled (imap_connection_session (slot->connection), imap_now ())
                > STALLED_MS;
}

static Load
load_of (const ImapSlot *slot, const ImapTask *task)
{
  ImapSession *session = imap_connection_session (slot->connection);
  const ImapSelect *planned = imap_session_planned (session);
  Load load = { 0 };

  load.n_tasks = imap_session_n_tasks (session, &load.n_bulk, &load.weight);
  load.stalled = is_stalled (slot);
  load.match = planned != NULL && task->mailbox != NULL
               && strcmp (planned->mailbox, task->mailbox) == 0 && planned->access >= task->access;
  return load;
}

static guint
count_ready (const ImapPool *pool, guint *n_with_bulk)
{
  guint n = 0;

  *n_with_bulk = 0;
  for (guint i = 0; i < pool->slots->len; i++)
    {
      ImapSlot *slot = pool->slots->pdata[i];
      guint n_bulk, weight;

      if (!imap_connection_is_ready (slot->connection))
        continue;
      n++;
      imap_session_n_tasks (imap_connection_session (slot->connection), &n_bulk, &weight);
      *n_with_bulk += n_bulk > 0;
    }
  return n;
}

/* What it costs somebody who waits to be put there; smaller is better. */
static guint
interactive_cost (const ImapSlot *slot, const ImapTask *task, const Load *load)
{
  guint cost = load->weight * 4 + load->n_bulk * 64 + (load->stalled ? 1024 : 0);

  if (task->mailbox != NULL && !load->match)
    {
      cost += 2;
      /* A change waits for the SELECT, and everything behind it waits with it. */
      if (task->changes && load->n_tasks > 0)
        cost += 16;
    }
  if (task->unselected && imap_session_planned (imap_connection_session (slot->connection)) != NULL)
    cost += 2;
  if (imap_session_is_idling (imap_connection_session (slot->connection)))
    cost += 1;
  return cost;
}

static ImapSlot *
pick_interactive (ImapPool *pool, const ImapTask *task)
{
  guint n_with_bulk;
  /* Also one that is being opened already. */
  gboolean can_open = pool->slots->len < pool->limit
                      || count_ready (pool, &n_with_bulk) < pool->slots->len;
  guint best_cost = G_MAXUINT;
  ImapSlot *best = NULL;

  for (guint i = 0; i < pool->slots->len; i++)
    {
      ImapSlot *slot = pool->slots->pdata[i];
      Load load;
      guint cost;

      if (!imap_connection_is_ready (slot->connection))
        continue;
      load = load_of (slot, task);
      if (load.weight - load.n_bulk >= (can_open ? IMAP_WEIGHT_LONG : MAX_WEIGHT)
          || (load.stalled && can_open))
        continue;
      cost = interactive_cost (slot, task, &load);
      if (cost < best_cost)
        {
          best_cost = cost;
          best = slot;
        }
    }
  if (best == NULL || best_cost >= 16)
    pool->more = TRUE;
  return best;
}

/* COMPRESS is possible only where nothing is under way. */
static gboolean
is_to_be_compressed (const ImapPool *pool, const ImapSlot *slot)
{
  return pool->slow_line
         && (imap_session_caps (imap_connection_session (slot->connection)) & IMAP_CAP_COMPRESS)
                != 0;
}

static ImapSlot *
pick_bulk (ImapPool *pool, const ImapTask *task)
{
  guint n_with_bulk, n_ready = count_ready (pool, &n_with_bulk);
  guint depth = n_ready > 1 ? BULK_DEPTH : pool->limit > 1 ? BULK_DEPTH_SOLE : BULK_DEPTH_ONLY;
  guint best_cost = G_MAXUINT;
  ImapSlot *best = NULL;

  for (guint i = 0; i < pool->slots->len; i++)
    {
      ImapSlot *slot = pool->slots->pdata[i];
      Load load;
      guint cost;

      if (!imap_connection_is_ready (slot->connection))
        continue;
      load = load_of (slot, task);
      if (load.stalled || load.n_bulk >= depth || load.weight - load.n_bulk >= MAX_WEIGHT
          || (is_to_be_compressed (pool, slot) && imap_now () - pool->slow_at < DRAIN_MS))
        continue;
      if (load.n_bulk == 0 && n_ready > 1 && n_with_bulk + 1 >= n_ready)
        continue; /* the last one is for those who wait */
      cost = load.n_bulk * 4 + (load.weight - load.n_bulk) * 8 + (load.match ? 0 : 6);
      if (cost < best_cost)
        {
          best_cost = cost;
          best = slot;
        }
    }
  if (best == NULL && pool->bulk_since == 0)
    pool->bulk_since = imap_now ();
  if (n_ready == 1 || (best == NULL && imap_now () - pool->bulk_since > BULK_LASTS_MS))
    pool->more = TRUE;
  return best;
}

static void
place_queue (ImapPool *pool, GQueue *queue, ImapSlot *(*pick) (ImapPool *, const ImapTask *))
{
  GList *link = queue->head;

  while (link != NULL)
    {
      GList *next = link->next;
      ImapTask *task = link->data;
      ImapSlot *slot = pick (pool, task);

      if (slot == NULL)
        return; /* all are busy: first come, first served */
      g_queue_delete_link (queue, link);
      slot->used_at = pool->progress_at = imap_now ();
      imap_session_submit (imap_connection_session (slot->connection), task, slot->used_at);
      imap_connection_flush (slot->connection);
      link = next != NULL ? next : queue->head;
    }
}

/* What waits behind a command that does not move is taken back, if there is another way. */
static void
take_back_stuck (ImapPool *pool)
{
  for (guint i = 0; i < pool->slots->len; i++)
    {
      ImapSlot *slot = pool->slots->pdata[i];
      GQueue stuck = G_QUEUE_INIT;
      ImapSession *session;
      ImapTask *task;

      if (!imap_connection_is_ready (slot->connection))
        continue;
      session = imap_connection_session (slot->connection);
      if (!is_stalled (slot))
        continue;
      while ((task = imap_session_take_stuck (session)) != NULL)
        g_queue_push_tail (&stuck, task);
      while ((task = g_queue_pop_tail (&stuck)) != NULL)
        g_queue_push_head (task->bulk ? &pool->bulk : &pool->interactive, task);
    }
}

/* The line is what everybody waits for, and there is much to come. */
static void
compress_what_rests (ImapPool *pool)
{
  for (guint i = 0; i < pool->slots->len; i++)
    {
      ImapSlot *slot = pool->slots->pdata[i];
      ImapSession *session = imap_connection_session (slot->connection);

      if (!imap_connection_is_ready (slot->connection) || !is_to_be_compressed (pool, slot))
        continue;
      if (imap_session_is_idling (session))
        imap_session_stop_idle (session);
      else
        imap_session_compress (session, imap_now ());
      imap_connection_flush (slot->connection);
    }
}

void
imap_pool_place (ImapPool *pool)
{
  pool->more = FALSE;
  if (!g_queue_is_empty (&pool->bulk))
    compress_what_rests (pool);
  if (pool->limit > 1)
    take_back_stuck (pool);
  place_queue (pool, &pool->interactive, pick_interactive);
  place_queue (pool, &pool->bulk, pick_bulk);
  if (g_queue_is_empty (&pool->bulk))
    pool->bulk_since = 0;
}
