/* SPDX-License-Identifier: MIT
 *
 * The life of the connections: made when needed, kept alive, closed when idle, given up when dead;
 * back-off while the server is down; the watch. Net thread: all of it runs in one GMainContext, and
 * nothing here blocks.
 */
#include "imap/pool-private.h"

#include "mailfs/log.h"

#include <string.h>

#define BACKOFF_FIRST_MS 1000
#define BACKOFF_MAX_MS 15000
#define THROTTLED_MAX_MS 120000
#define KICK_MS 1000        /* a request tries again early, but not more often than this */
#define AUTH_RETRY_MS 30000 /* with passcmd: tokens expire */
#define AUTH_RETRIES 3
#define SETTLED_MS 10000 /* a connection that lived as long was no failure */
#define SAME_CUT_MS 1000 /* what goes within it goes together */
#define PAUSE_MAX_MS 10000
#define LIMIT_MS (5 * 60 * 1000) /* how long a server's limit on connections is believed */
#define CLOSE_IDLE_MS (3 * 60 * 1000)
#define KEEP_ALIVE_MS (4 * 60 * 1000)
#define IDLE_RESTART_MS (28 * 60 * 1000) /* RFC 2177: at least every 29 minutes */
#define IDLE_AFTER_MS 1500
#define CLOSE_WAIT_MS 1000
#define RATE_WINDOW_MS 1000
#define SLOW_LINE 4000000  /* bytes a second: inflating costs less than waiting */
#define STALLED_LINE 10000 /* it says nothing about the line */
#define SLEPT_MS 45000     /* longer than this without a tick: the machine slept */
#define LATE_MS 1000       /* then it is we who were slow: what came meanwhile is read first */
#define TICK_BUSY_MS 100
#define TICK_SOON_MS 500
#define TICK_CALM_MS 15000

static void process (ImapPool *pool);

/* --- telling those who wait ------------------------------------------------------------------- */

static void
fail_chain (ImapTask *chain, const GError *error)
{
  ImapResult result = { .error = error };

  while (chain != NULL)
    {
      ImapTask *next = chain->next;

      chain->next = NULL;
      chain->ops->done (chain, &result);
      chain = next;
    }
}

/* What is queued now; not what is queued by those who are told. */
static void
fail_queue (GQueue *queue, const GError *error)
{
  for (guint n = queue->length; n > 0; n--)
    fail_chain (g_queue_pop_head (queue), error);
}

static void
tell_starting (ImapPool *pool, const GError *error)
{
  g_autoptr (GArray) waiters = pool->starting;

  pool->starting = g_array_new (FALSE, FALSE, sizeof (ImapWaiter));
  for (guint i = 0; i < waiters->len; i++)
    {
      ImapWaiter *waiter = &g_array_index (waiters, ImapWaiter, i);
      waiter->done (error, waiter->user_data);
    }
}

static void
arm (ImapPool *pool, guint ms)
{
  gint64 when = g_get_monotonic_time () + (gint64)ms * 1000;
  gint64 armed = g_source_get_ready_time (pool->tick);

  if (armed < 0 || armed > when)
    {
      pool->due_at = imap_now () + ms;
      g_source_set_ready_time (pool->tick, when);
    }
}

/* --- connections ------------------------------------------------------------------------------ */

static guint
count_ready (const ImapPool *pool)
{
  guint n = 0;

  for (guint i = 0; i < pool->slots->len; i++)
    n += imap_connection_is_ready (((ImapSlot *)pool->slots->pdata[i])->connection);
  return n;
}

static gboolean
is_sticky (const ImapPool *pool)
{
  return pool->down != NULL && pool->next_try == G_MAXINT64;
}

static void
on_connection (ImapConnection *connection, gpointer user_data)
{
  process (((ImapSlot *)user_data)->pool);
}

static void
open_connection (ImapPool *pool)
{
  ImapSlot *slot = g_new0 (ImapSlot, 1);

  slot->pool = pool;
  pool->last_try = slot->begun_at = imap_now ();
  slot->connection = imap_connection_new (pool->config, pool->secrets, pool->tls, on_connection,
                                          slot);
  g_ptr_array_add (pool->slots, slot);
}

static guint
back_off (guint n_failures, guint max)
{
  guint ms = BACKOFF_FIRST_MS << MIN (n_failures, 10);

  ms = MIN (ms, max);
  return ms - ms / 4 + (guint)g_random_int_range (0, (gint)(ms / 2));
}

static void
set_down (ImapPool *pool, const GError *error, gboolean throttled)
{
  gint64 now = imap_now ();

  g_clear_error (&pool->down);
  if (error->domain == MAIL_ERROR && error->code != MAIL_ERROR_CONNECTION
      && error->code != MAIL_ERROR_TIMED_OUT)
    pool->down = g_error_copy (error);
  else
    pool->down = g_error_new_literal (MAIL_ERROR, MAIL_ERROR_UNREACHABLE, error->message);
  if (pool->down->code == MAIL_ERROR_AUTH)
    {
      /* Trying again locks accounts; only a program may have a fresh token next time. */
      if (pool->config->passcmd != NULL && pool->n_refusals < AUTH_RETRIES)
        pool->next_try = now + (AUTH_RETRY_MS << pool->n_refusals);
      else
        pool->next_try = G_MAXINT64;
      pool->n_refusals++;
    }
  else
    pool->next_try = now
                     + back_off (pool->n_failures, throttled || pool->down->code == MAIL_ERROR_BUSY
                                                       ? THROTTLED_MAX_MS
                                                       : BACKOFF_MAX_MS);
  /* Before the first login the caller of start says it. */
  if (pool->n_failures++ == 0 && pool->caps != 0)
    mail_log_warning ("%s: %s", pool->config->host, error->message);
}

static gboolean
has_later (const GQueue *queue, gint64 since)
{
  const ImapTask *last = g_queue_peek_tail ((GQueue *)queue);

  return last != NULL && last->queued_at > since;
}

static void
fail_earlier (GQueue *queue, gint64 since, const GError *error)
{
  GQueue later = G_QUEUE_INIT;

  while (has_later (queue, since))
    g_queue_push_head (&later, g_queue_pop_tail (queue));
  fail_queue (queue, error);
  /* Before what was queued by those who were told. */
  while (later.length > 0)
    g_queue_push_head (queue, g_queue_pop_tail (&later));
}

/* A connection could not be made, or did not live long enough to be of use. */
static void
connect_failed (ImapPool *pool, const GError *error, gboolean throttled, gint64 begun_at)
{
  guint n_ready = count_ready (pool);

  if (n_ready > 0)
    {
      /* The account as such works: the server lets us have no more connections. */
      pool->limit = n_ready;
      pool->limit_at = imap_now ();
      /* A refused password is tried again more rarely: that locks accounts. */
      pool->limit_until = pool->limit_at
                          + (g_error_matches (error, MAIL_ERROR, MAIL_ERROR_AUTH) ? 12 : 1)
                                * LIMIT_MS;
      mail_log_info ("%s: no more than %u connections: %s", pool->config->host, n_ready,
                     error->message);
      return;
    }
  /* Who came while it hung has a right to another one, once. */
  gint64 since = MAX (begun_at, imap_now () - (gint64)pool->config->timeout * 1000 * 2 / 3);
  if (pool->n_failures == 0 && g_error_matches (error, MAIL_ERROR, MAIL_ERROR_TIMED_OUT)
      && has_later (&pool->interactive, since))
    {
      pool->n_failures++;
      pool->lost = TRUE;
      mail_log_warning ("%s: %s", pool->config->host, error->message);
      tell_starting (pool, error);
      fail_earlier (&pool->interactive, since, error);
      fail_queue (&pool->bulk, error);
      return;
    }
  set_down (pool, error, throttled);
  tell_starting (pool, error);
  /* Who waited for this very attempt learns what happened, later ones that it is down. */
  fail_queue (&pool->interactive, error->domain == MAIL_ERROR && error->code == MAIL_ERROR_TIMED_OUT
                                      ? error
                                      : pool->down);
  fail_queue (&pool->bulk, pool->down);
}

static gboolean
is_throttled (ImapCode code)
{
  return code == IMAP_CODE_INUSE || code == IMAP_CODE_LIMIT || code == IMAP_CODE_THROTTLED
         || code == IMAP_CODE_UNAVAILABLE;
}

/* Whether the end of a connection says nothing about the server: it was cut after it had worked, or
 * together with one that had, or once while it was new. Then another is tried at once, and what
 * becomes of that tells. */
static gboolean
was_cut (ImapPool *pool, const ImapSlot *slot, const GError *error)
{
  if (slot->settled)
    return TRUE;
  if (!g_error_matches (error, MAIL_ERROR, MAIL_ERROR_CONNECTION))
    return FALSE;
  if (slot->begun_at < pool->lost_at) /* not the one that was begun because of it */
    return TRUE;
  if (!pool->trusted || imap_connection_session (slot->connection) == NULL)
    return FALSE;
  pool->trusted = FALSE;
  return TRUE;
}

static void
note_loss (ImapPool *pool, const GError *error)
{
  pool->lost = TRUE;
  pool->lost_at = imap_now ();
  /* A new connection that went a moment earlier went for the same reason: that was no limit. */
  if (pool->limit_until != 0 && pool->lost_at - pool->limit_at < SAME_CUT_MS)
    {
      pool->limit = MAX (pool->config->connections, 1);
      pool->limit_until = 0;
    }
  mail_log_info ("%s: connection lost: %s", pool->config->host, error->message);
}

/* The connection is dead: what had not been sent goes back to the queue, the rest is told. */
static void
reap (ImapPool *pool, ImapSlot *slot)
{
  g_autoptr (GError) error = g_error_copy (imap_connection_error (slot->connection));
  ImapSession *session = imap_connection_session (slot->connection);
  GQueue back = G_QUEUE_INIT;
  gboolean cut = was_cut (pool, slot, error), leaving = slot->leaving;
  gint64 begun_at = slot->begun_at;
  gboolean throttled = session != NULL && is_throttled (imap_session_refusal_code (session));
  ImapTask *task;

  if (session != NULL && !pool->closed)
    while ((task = imap_session_take_unsent (session)) != NULL)
      g_queue_push_tail (&back, task);
  while ((task = g_queue_pop_tail (&back)) != NULL)
    g_queue_push_head (&pool->interactive, task);
  imap_connection_free (slot->connection);
  g_free (slot);
  if (pool->closed || leaving)
    return;
  if (cut)
    note_loss (pool, error);
  else
    connect_failed (pool, error, throttled, begun_at);
}

static void
became_ready (ImapPool *pool, ImapSlot *slot)
{
  ImapSession *session = imap_connection_session (slot->connection);
  gboolean was_down = pool->down != NULL;

  slot->was_ready = TRUE;
  slot->ready_at = slot->used_at = slot->kept_at = imap_now ();
  pool->caps = imap_session_caps (session);
  if (was_down)
    mail_log_info ("%s: connected again", pool->config->host);
  if (pool->lost || was_down)
    mail_counter_add (MAIL_COUNTER_RECONNECTS, 1);
  g_clear_error (&pool->down);
  pool->n_refusals = 0;
  if (pool->slow_line)
    imap_session_compress (session, slot->ready_at);
  tell_starting (pool, NULL);
  /* What happened meanwhile was missed. */
  if ((pool->lost || was_down) && pool->watch_changed != NULL)
    pool->watch_changed (NULL, pool->watch_data);
  pool->lost = FALSE;
}

/* What a living session did since the last look. */
static void
look_at_session (ImapPool *pool, ImapSlot *slot, ImapSession *session)
{
  gint64 now = imap_now ();

  if (imap_session_delimiter (session) != 0)
    pool->delimiter = imap_session_delimiter (session);
  if (slot->was_ready && !slot->settled
      && (imap_session_n_done (session) > 0 || now - slot->ready_at > SETTLED_MS))
    {
      slot->settled = TRUE;
      pool->n_failures = 0;
      pool->trusted = TRUE;
    }
  if (imap_session_take_busy (session))
    {
      if (now - pool->pause_until > 6 * PAUSE_MAX_MS)
        pool->n_pauses = 0;
      pool->pause_until = now + back_off (pool->n_pauses++, PAUSE_MAX_MS);
      pool->limit = MAX (pool->limit / 2, 1);
      pool->limit_until = now + LIMIT_MS;
      mail_log_info ("%s: the server is busy; waiting", pool->config->host);
    }
}

/* Looks at every connection after something happened. */
static void
look_at_connections (ImapPool *pool)
{
  for (guint i = 0; i < pool->slots->len;)
    {
      ImapSlot *slot = pool->slots->pdata[i];
      ImapSession *session = imap_connection_session (slot->connection);
      g_autofree char *changed = NULL;

      if (session != NULL && slot->was_ready)
        changed = imap_session_take_changed (session);
      if (session != NULL)
        look_at_session (pool, slot, session);
      if (imap_connection_is_dead (slot->connection))
        {
          g_ptr_array_steal_index (pool->slots, i);
          reap (pool, slot);
        }
      else
        {
          if (!slot->was_ready && imap_connection_is_ready (slot->connection))
            became_ready (pool, slot);
          i++;
        }
      if (changed != NULL && pool->watch_changed != NULL && !pool->closed)
        pool->watch_changed (changed, pool->watch_data);
    }
}

/* --- time ------------------------------------------------------------------------------------- */

/* Those who waited in the queue for `timeout` while nothing at all moved. */
static void
expire_queue (ImapPool *pool, GQueue *queue, gint64 now)
{
  gint64 timeout = (gint64)pool->config->timeout * 1000;
  g_autoptr (GError) error = NULL;

  for (GList *link = queue->head; link != NULL;)
    {
      GList *next = link->next;
      ImapTask *task = link->data;

      if (now - MAX (task->queued_at, MIN (pool->progress_at, task->queued_at + 3 * timeout))
          > timeout)
        {
          if (error == NULL)
            error = g_error_new (MAIL_ERROR, MAIL_ERROR_TIMED_OUT, "%s: no answer within %u s",
                                 pool->config->host, pool->config->timeout);
          g_queue_delete_link (queue, link);
          fail_chain (task, error);
        }
      link = next;
    }
}

/* How fast bytes come while there is always something asked for. */
static void
measure_line (ImapPool *pool, ImapSlot *slot, guint n_bulk, gint64 now)
{
  guint64 bytes = imap_connection_bytes_in (slot->connection);

  if (n_bulk == 0)
    slot->rate_since = 0;
  else if (slot->rate_since == 0)
    {
      slot->rate_since = now;
      slot->rate_bytes = bytes;
    }
  else if (now - slot->rate_since >= RATE_WINDOW_MS)
    {
      guint64 rate = (bytes - slot->rate_bytes) * 1000 / (guint64)(now - slot->rate_since);

      if (rate > STALLED_LINE)
        imap_pool_set_slow_line (pool, rate < SLOW_LINE);
      slot->rate_since = 0;
    }
}

/* An idle connection: IDLE for the watch, NOOP against forgetting, or farewell. TRUE: it wants to
 * be looked at again soon. */
static gboolean
look_after_idle (ImapPool *pool, ImapSlot *slot, gboolean watches, gint64 now)
{
  ImapSession *session = imap_connection_session (slot->connection);

  if (imap_session_is_idling (session))
    {
      const ImapSelect *planned = imap_session_planned (session);

      if (!watches || now - slot->idle_since > IDLE_RESTART_MS || planned == NULL
          || strcmp (planned->mailbox, pool->watch_mailbox) != 0)
        {
          imap_session_stop_idle (session);
          slot->kept_at = now;
          return watches;
        }
      return FALSE;
    }
  if (watches && (imap_session_caps (session) & IMAP_CAP_IDLE) != 0)
    {
      if (now - slot->used_at < IDLE_AFTER_MS)
        return TRUE;
      slot->idle_since = now;
      imap_session_idle (session, pool->watch_mailbox, now);
      return FALSE;
    }
  if (now - slot->used_at > CLOSE_IDLE_MS && count_ready (pool) > 1)
    {
      slot->leaving = TRUE;
      imap_session_logout (session, now);
    }
  else if (now - MAX (slot->kept_at, slot->used_at) > KEEP_ALIVE_MS)
    {
      slot->kept_at = now;
      imap_session_noop (session, now);
    }
  return FALSE;
}

/* The connection that shall wait for changes: the one that does, else one at rest, best where the
 * mailbox is selected already. */
static ImapSlot *
watcher_of (ImapPool *pool)
{
  ImapSlot *best = NULL;

  if (pool->watch_mailbox == NULL)
    return NULL;
  for (guint i = 0; i < pool->slots->len; i++)
    {
      ImapSlot *slot = pool->slots->pdata[i];
      ImapSession *session = imap_connection_session (slot->connection);
      const ImapSelect *planned;
      guint n_bulk, weight;

      if (!imap_connection_is_ready (slot->connection))
        continue;
      if (imap_session_is_idling (session))
        return slot;
      if (imap_session_n_tasks (session, &n_bulk, &weight) > 0)
        continue;
      planned = imap_session_planned (session);
      if (best == NULL || (planned != NULL && strcmp (planned->mailbox, pool->watch_mailbox) == 0))
        best = slot;
    }
  return best;
}

static void
check_connections (ImapPool *pool, gint64 now)
{
  ImapSlot *watcher = watcher_of (pool);
  guint next = TICK_CALM_MS;

  for (guint i = 0; i < pool->slots->len; i++)
    {
      ImapSlot *slot = pool->slots->pdata[i];
      ImapSession *session = imap_connection_session (slot->connection);
      guint n_bulk = 0, weight;

      imap_connection_check (slot->connection, now);
      if (session != NULL && imap_session_last_input (session) == slot->input_at)
        slot->n_still++;
      else
        slot->n_still = 0;
      slot->input_at = session != NULL ? imap_session_last_input (session) : 0;
      if (!imap_connection_is_ready (slot->connection)
          || imap_session_n_tasks (session, &n_bulk, &weight) > 0)
        {
          if (slot->was_ready)
            measure_line (pool, slot, n_bulk, now);
          next = TICK_BUSY_MS;
          continue;
        }
      slot->rate_since = 0;
      if (pool->slow_line && imap_session_compress (session, now))
        next = TICK_BUSY_MS;
      else if (imap_session_deadline (session) != G_MAXINT64
               || look_after_idle (pool, slot, slot == watcher, now))
        next = MIN (next, TICK_SOON_MS);
      imap_connection_flush (slot->connection);
    }
  if (!g_queue_is_empty (&pool->interactive) || !g_queue_is_empty (&pool->bulk) || pool->closed)
    next = TICK_BUSY_MS;
  else if ((pool->down != NULL && !is_sticky (pool)) || (pool->lost && pool->watch_mailbox != NULL))
    next = MIN (next, TICK_SOON_MS);
  arm (pool, next);
}

/* --- the turn --------------------------------------------------------------------------------- */

static void
open_what_is_needed (ImapPool *pool, gint64 now)
{
  guint n_ready = count_ready (pool);
  guint n_connecting = pool->slots->len - n_ready;
  gboolean wanted = pool->starting->len > 0 || !g_queue_is_empty (&pool->interactive)
                    || !g_queue_is_empty (&pool->bulk)
                    || (pool->lost && pool->watch_mailbox != NULL);

  if (pool->limit_until != 0 && now > pool->limit_until)
    {
      pool->limit = MAX (pool->config->connections, 1);
      pool->limit_until = 0;
    }
  if (pool->closed || pool->config->offline)
    return;
  if (pool->down != NULL)
    {
      if (n_connecting == 0 && now >= pool->next_try)
        open_connection (pool);
    }
  else if (n_ready == 0)
    {
      if (wanted && n_connecting == 0)
        open_connection (pool);
    }
  else if (pool->more && n_connecting == 0 && pool->slots->len < pool->limit)
    open_connection (pool);
}

static void
finish_close (ImapPool *pool, gint64 now)
{
  ImapWaiter waiter = pool->closing;

  for (guint i = pool->slots->len; i-- > 0;)
    {
      ImapSlot *slot = pool->slots->pdata[i];

      if (now < pool->close_deadline && imap_connection_session (slot->connection) != NULL)
        continue;
      g_ptr_array_steal_index (pool->slots, i);
      imap_connection_free (slot->connection);
      g_free (slot);
    }
  if (pool->slots->len > 0)
    return;
  pool->closing = (ImapWaiter) { 0 };
  if (waiter.done != NULL)
    waiter.done (NULL, waiter.user_data);
}

static void
process (ImapPool *pool)
{
  gint64 now = imap_now ();

  look_at_connections (pool);
  if (pool->closed || pool->config->offline)
    {
      g_autoptr (GError) error = pool->closed
                                     ? g_error_new (MAIL_ERROR, MAIL_ERROR_CONNECTION,
                                                    "the account was closed")
                                     : g_error_new (MAIL_ERROR, MAIL_ERROR_UNREACHABLE, "offline");

      tell_starting (pool, error);
      fail_queue (&pool->interactive, error);
      fail_queue (&pool->bulk, error);
      if (pool->closed)
        finish_close (pool, now);
      return;
    }
  if (pool->down != NULL)
    {
      fail_queue (&pool->interactive, pool->down);
      fail_queue (&pool->bulk, pool->down);
    }
  else if (now >= pool->pause_until)
    imap_pool_place (pool);
  if (count_ready (pool) > 0)
    tell_starting (pool, NULL);
  open_what_is_needed (pool, now);
  look_at_connections (pool);
}

/* Connections may have died without a word: each is asked for a sign of life. */
static void
wake_up (ImapPool *pool, gint64 now)
{
  for (guint i = 0; i < pool->slots->len; i++)
    {
      ImapSlot *slot = pool->slots->pdata[i];
      ImapSession *session = imap_connection_session (slot->connection);

      if (!imap_connection_is_ready (slot->connection))
        continue;
      if (imap_session_is_idling (session))
        imap_session_stop_idle (session);
      else
        imap_session_noop (session, now);
      imap_connection_flush (slot->connection);
    }
  if (!is_sticky (pool))
    pool->next_try = now;
}

static void
excuse_queue (GQueue *queue, gint64 late, gint64 now)
{
  for (GList *link = queue->head; link != NULL; link = link->next)
    {
      ImapTask *task = link->data;
      task->queued_at = MIN (task->queued_at + late, now);
    }
}

/* Stopped or asleep for so many ms, the daemon has read nothing: for nobody they count. */
static void
excuse (ImapPool *pool, gint64 late, gint64 now)
{
  for (guint i = 0; i < pool->slots->len; i++)
    imap_connection_excuse (((ImapSlot *)pool->slots->pdata[i])->connection, late, now);
  excuse_queue (&pool->interactive, late, now);
  excuse_queue (&pool->bulk, late, now);
}

static gboolean
on_tick (gpointer user_data)
{
  ImapPool *pool = user_data;
  gint64 now = imap_now ();

  g_source_set_ready_time (pool->tick, -1);
  if (now - pool->due_at > LATE_MS)
    excuse (pool, now - pool->due_at, now);
  if (now - pool->ticked_at > SLEPT_MS && pool->ticked_at != 0)
    wake_up (pool, now);
  pool->ticked_at = now;
  check_connections (pool, now);
  expire_queue (pool, &pool->interactive, now);
  expire_queue (pool, &pool->bulk, now);
  process (pool);
  return G_SOURCE_CONTINUE;
}

static gboolean
on_dispatch (gpointer user_data)
{
  ImapPool *pool = user_data;

  g_source_set_ready_time (pool->dispatch, -1);
  process (pool);
  return G_SOURCE_CONTINUE;
}

static gboolean
run_source (GSource *source, GSourceFunc function, gpointer user_data)
{
  return function (user_data);
}

static GSourceFuncs timer_funcs = { .dispatch = run_source };

static GSource *
timer_new (ImapPool *pool, GSourceFunc function)
{
  GSource *source = g_source_new (&timer_funcs, sizeof (GSource));

  g_source_set_callback (source, function, pool, NULL);
  g_source_attach (source, pool->context);
  return source;
}

/* --- the door --------------------------------------------------------------------------------- */

ImapPool *
imap_pool_new (const MailConfig *config, MailSecretSource *secrets, NetTls *tls)
{
  ImapPool *pool = g_new0 (ImapPool, 1);

  pool->config = config;
  pool->secrets = secrets;
  pool->tls = tls != NULL ? net_tls_ref (tls) : NULL;
  pool->context = g_main_context_ref_thread_default ();
  pool->slots = g_ptr_array_new ();
  pool->starting = g_array_new (FALSE, FALSE, sizeof (ImapWaiter));
  pool->limit = MAX (config->connections, 1);
  g_queue_init (&pool->interactive);
  g_queue_init (&pool->bulk);
  pool->tick = timer_new (pool, on_tick);
  pool->dispatch = timer_new (pool, on_dispatch);
  return pool;
}

void
imap_pool_free (ImapPool *pool)
{
  g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_CONNECTION,
                                          "the account was closed");

  if (pool == NULL)
    return;
  pool->closed = TRUE;
  pool->close_deadline = 0;
  pool->watch_changed = NULL;
  pool->closing = (ImapWaiter) { 0 };
  finish_close (pool, 0);
  /* Told tasks may queue others, once each. */
  while (!g_queue_is_empty (&pool->interactive) || !g_queue_is_empty (&pool->bulk))
    {
      fail_queue (&pool->interactive, error);
      fail_queue (&pool->bulk, error);
    }
  tell_starting (pool, error);
  g_source_destroy (pool->tick);
  g_source_unref (pool->tick);
  g_source_destroy (pool->dispatch);
  g_source_unref (pool->dispatch);
  g_ptr_array_unref (pool->slots);
  g_array_unref (pool->starting);
  g_clear_error (&pool->down);
  g_free (pool->watch_mailbox);
  g_clear_pointer (&pool->tls, net_tls_unref);
  g_main_context_unref (pool->context);
  g_free (pool);
}

void
imap_pool_submit (ImapPool *pool, ImapTask *chain)
{
  gint64 now = imap_now ();

  for (ImapTask *task = chain; task != NULL; task = task->next)
    task->queued_at = now;
  g_queue_push_tail (chain->bulk ? &pool->bulk : &pool->interactive, chain);
  /* Somebody wants it now: the probe need not wait for its turn. */
  if (pool->down != NULL && !is_sticky (pool) && !chain->bulk && pool->down->code != MAIL_ERROR_BUSY
      && pool->down->code != MAIL_ERROR_AUTH && now - pool->last_try > KICK_MS)
    pool->next_try = now;
  g_source_set_ready_time (pool->dispatch, 0);
  arm (pool, TICK_BUSY_MS);
}

void
imap_pool_start (ImapPool *pool, MailDoneFunc done, gpointer user_data)
{
  ImapWaiter waiter = { done, user_data };

  g_array_append_val (pool->starting, waiter);
  if (pool->down != NULL)
    {
      g_clear_error (&pool->down);
      pool->n_failures = pool->n_refusals = 0;
    }
  g_source_set_ready_time (pool->dispatch, 0);
  arm (pool, TICK_BUSY_MS);
}

void
imap_pool_watch (ImapPool *pool, const char *mailbox, MailChangedFunc changed, gpointer user_data)
{
  if (g_strcmp0 (pool->watch_mailbox, mailbox) != 0)
    {
      g_free (pool->watch_mailbox);
      pool->watch_mailbox = g_strdup (mailbox);
    }
  pool->watch_changed = mailbox != NULL ? changed : NULL;
  pool->watch_data = user_data;
  arm (pool, TICK_BUSY_MS);
}

void
imap_pool_close (ImapPool *pool, MailDoneFunc done, gpointer user_data)
{
  gint64 now = imap_now ();

  pool->closed = TRUE;
  pool->close_deadline = now + CLOSE_WAIT_MS;
  pool->closing = (ImapWaiter) { done, user_data };
  pool->watch_changed = NULL;
  for (guint i = 0; i < pool->slots->len; i++)
    {
      ImapSlot *slot = pool->slots->pdata[i];
      ImapSession *session = imap_connection_session (slot->connection);
      guint n_bulk, weight;

      if (imap_connection_is_ready (slot->connection)
          && imap_session_n_tasks (session, &n_bulk, &weight) == 0)
        {
          imap_session_logout (session, now);
          imap_connection_flush (slot->connection);
        }
      else if (session != NULL)
        imap_session_lost (session, NULL);
    }
  g_source_set_ready_time (pool->dispatch, 0);
  arm (pool, TICK_BUSY_MS);
}

gboolean
imap_pool_is_closed (const ImapPool *pool)
{
  return pool->closed;
}

guint
imap_pool_caps (const ImapPool *pool)
{
  return pool->caps;
}

char
imap_pool_delimiter (const ImapPool *pool)
{
  return pool->delimiter;
}

void
imap_pool_set_slow_line (ImapPool *pool, gboolean slow)
{
  if (slow && !pool->slow_line)
    pool->slow_at = imap_now ();
  pool->slow_line = slow;
}

char *
imap_pool_describe (ImapPool *pool)
{
  guint n = count_ready (pool);

  if (pool->closed)
    return g_strdup ("closed");
  if (pool->config->offline)
    return g_strdup ("offline");
  if (pool->down != NULL)
    return g_strdup_printf ("down: %s", pool->down->message);
  if (n == 0)
    return g_strdup (pool->slots->len > 0 ? "connecting" : "not connected");
  return g_strdup_printf ("connected, %u of %u connections", n, pool->limit);
}
