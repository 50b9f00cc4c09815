/* SPDX-License-Identifier: MIT
 *
 * When there is a session and what it is for. A maildrop is locked while a session is open (RFC
 * 1939 section 4) and does not change in it, so there is at most one, it ends as soon as there has
 * been nothing to do for a moment, and a listing begins with a new one. A removal is the last thing
 * done in a session, because QUIT commits it.
 */
#include "pop3/backend-private.h"

#include "mailfs/log.h"

/* So long a session without work is kept, in ms; and where the server wants pauses between logins.
 */
#define IDLE_MS 2000
#define IDLE_DELAYED_MS 10000
/* A session so young shows the maildrop as it is. */
#define FRESH (2 * G_USEC_PER_SEC)
/* So long [IN-USE] is tried again before anybody is told. */
#define BUSY_PATIENCE (5 * G_USEC_PER_SEC)
#define DOWN_MAX_S 30
#define LOOK_AGAIN G_USEC_PER_SEC /* at a server that is down, when somebody asks */
#define BUSY_MAX_S 60
#define AUTH_DOWN_S 60
#define CLOSE_MS 2000

GSource *
pop3_schedule_attach (GSource *source, GSourceFunc func, gpointer user_data)
{
  g_source_set_callback (source, func, user_data, NULL);
  g_source_attach (source, g_main_context_get_thread_default ());
  return source;
}

void
pop3_schedule_clear (GSource **source)
{
  if (*source != NULL)
    g_source_destroy (*source);
  g_clear_pointer (source, g_source_unref);
}

static void
fail_queue (GQueue *queue, const GError *error)
{
  GQueue failing = *queue;
  Pop3Request *request;

  g_queue_init (queue);
  while ((request = g_queue_pop_head (&failing)) != NULL)
    pop3_request_finish (request, error);
}

void
pop3_schedule_fail_all (Pop3Backend *self, const GError *error)
{
  fail_queue (&self->starts, error);
  fail_queue (&self->removes, error);
  fail_queue (&self->fetches[MAIL_PRIORITY_INTERACTIVE], error);
  fail_queue (&self->syncs, error);
  fail_queue (&self->fetches[MAIL_PRIORITY_BULK], error);
}

void
pop3_schedule_well (Pop3Backend *self)
{
  self->n_lost = self->n_down = self->n_busy = 0;
  self->busy_since = 0;
  g_clear_error (&self->down);
}

static gboolean
has_work (Pop3Backend *self)
{
  return self->starts.length > 0 || self->syncs.length > 0 || self->removes.length > 0
         || self->fetches[0].length > 0 || self->fetches[1].length > 0 || self->sync != NULL
         || self->removing.length > 0;
}

/* --- failures --------------------------------------------------------------------------------- */

static gboolean
on_retry (gpointer user_data)
{
  Pop3Backend *self = user_data;

  pop3_schedule_clear (&self->retry);
  pop3_schedule (self);
  return G_SOURCE_REMOVE;
}

static void
retry_in (Pop3Backend *self, guint ms)
{
  pop3_schedule_clear (&self->retry);
  self->retry = pop3_schedule_attach (g_timeout_source_new (ms), on_retry, self);
}

/* Not before seconds (a quarter more or less, G_MAXUINT: never) will we connect again. */
static void
go_down (Pop3Backend *self, const GError *error, guint seconds)
{
  gint64 jitter = g_random_int_range (750, 1250);

  if (self->down == NULL)
    mail_log_info ("%s: %s", self->config->host, error->message);
  g_clear_error (&self->down);
  self->down = g_error_copy (error);
  self->down_until = seconds == G_MAXUINT
                         ? G_MAXINT64
                         : g_get_monotonic_time () + seconds * jitter * (G_USEC_PER_SEC / 1000);
  self->n_down++;
  pop3_schedule_fail_all (self, error);
}

static void
fail_down (Pop3Backend *self)
{
  g_autoptr (GError) error = g_error_copy (self->down);

  if (error->code == MAIL_ERROR_CONNECTION || error->code == MAIL_ERROR_TIMED_OUT
      || error->code == MAIL_ERROR_PROTOCOL || error->code == MAIL_ERROR_FAILED)
    error->code = MAIL_ERROR_UNREACHABLE;
  pop3_schedule_fail_all (self, error);
}

static guint
doubling (guint n, guint first, guint most)
{
  return MIN (most, first << MIN (n, 10));
}

/* [IN-USE]: another program reads its mail, or the server has not yet let go of our last session.
 */
static void
fail_busy (Pop3Backend *self, const GError *error)
{
  gint64 now = g_get_monotonic_time ();
  gint64 patience = MIN (BUSY_PATIENCE, (gint64)self->config->timeout * G_USEC_PER_SEC / 2);

  if (self->busy_since == 0)
    self->busy_since = now;
  if (now - self->busy_since < patience)
    retry_in (self, doubling (self->n_busy++, 100, 1000));
  else
    {
      self->busy_since = self->n_busy = 0;
      go_down (self, error, doubling (self->n_down, 2, BUSY_MAX_S));
    }
}

/* Whether somebody who waits to read came only while it was being tried: he has a right to another
 * try, once. The others are told. */
static gboolean
spare_late_comers (Pop3Backend *self, const GError *error)
{
  GQueue *queue = &self->fetches[MAIL_PRIORITY_INTERACTIVE], later = G_QUEUE_INIT;
  gint64 since = g_get_monotonic_time ()
                 - (gint64)self->config->timeout * G_USEC_PER_SEC * 2 / 3;

  while (queue->length > 0 && ((Pop3Request *)g_queue_peek_tail (queue))->queued_at > since)
    g_queue_push_head (&later, g_queue_pop_tail (queue));
  if (later.length == 0)
    return FALSE;
  pop3_schedule_fail_all (self, error);
  while (later.length > 0)
    g_queue_push_head (queue, g_queue_pop_tail (&later));
  return TRUE;
}

static void
handle_failure (Pop3Backend *self, const GError *error, gboolean was_in, gboolean refused)
{
  switch ((MailErrorCode)error->code)
    {
    case MAIL_ERROR_AUTH:
      /* Trying a wrong password again locks accounts. Where it was right before and the server does
       * not say that it is wrong now, it may only be unwell; and a program may know a new token. */
      go_down (self, error,
               self->ever_in && (!refused || self->config->passcmd != NULL)
                   ? doubling (self->n_down, AUTH_DOWN_S, 16 * AUTH_DOWN_S)
                   : G_MAXUINT);
      break;
    case MAIL_ERROR_BUSY:
      fail_busy (self, error);
      break;
    case MAIL_ERROR_TIMED_OUT:
      if (self->n_down > 0 || !spare_late_comers (self, error))
        {
          go_down (self, error, doubling (self->n_down, 1, DOWN_MAX_S));
          break;
        }
      self->n_down++;
      pop3_schedule (self);
      break;
    case MAIL_ERROR_CONNECTION:
    case MAIL_ERROR_PROTOCOL:
      if (was_in && ++self->n_lost < 2)
        {
          pop3_schedule (self);
          break;
        }
      G_GNUC_FALLTHROUGH;
    default:
      go_down (self, error, doubling (self->n_down, 1, DOWN_MAX_S));
      break;
    }
}

/* --- sessions --------------------------------------------------------------------------------- */

static void
drop_connection (Pop3Backend *self)
{
  g_clear_pointer (&self->connection, pop3_connection_free);
  self->looking = FALSE;
  self->logged_in = self->quitting = self->committing = FALSE;
  self->synced = self->renew = FALSE;
  self->n_running = self->n_filled = 0;
  self->bytes_running = 0;
  pop3_schedule_clear (&self->idle);
}

static void
answer_instant (Pop3Backend *self)
{
  Pop3Request *request;

  while ((request = g_queue_pop_head (&self->instant)) != NULL)
    {
      g_autoptr (GError) error = g_steal_pointer (&request->error);
      pop3_request_finish (request, error);
    }
}

/* The backend may be gone afterwards. */
static gboolean
on_close_end (gpointer user_data)
{
  Pop3Backend *self = user_data;
  MailDoneFunc done = g_steal_pointer (&self->close_done);
  g_autoptr (GError) error = g_error_new_literal (MAIL_ERROR, MAIL_ERROR_CONNECTION,
                                                  "the account is being closed");

  pop3_schedule_clear (&self->close_limit);
  if (self->connection != NULL)
    {
      pop3_session_lost (pop3_connection_session (self->connection), error);
      drop_connection (self);
    }
  pop3_work_lost (self, error);
  answer_instant (self);
  pop3_schedule_fail_all (self, error);
  if (done != NULL)
    done (NULL, self->close_data);
  return G_SOURCE_REMOVE;
}

static void
on_ready (gpointer user_data)
{
  Pop3Backend *self = user_data;

  self->looking = FALSE;
  self->logged_in = self->ever_in = TRUE;
  self->caps = MAIL_CAP_REMOTE_IDS;
  self->login_at = g_get_monotonic_time ();
  self->login_delay = pop3_session_login_delay (pop3_connection_session (self->connection));
  if (self->lost)
    mail_counter_add (MAIL_COUNTER_RECONNECTS, 1);
  self->lost = FALSE;
  pop3_work_read_maildrop (self);
}

static void
on_ended (const GError *error, gpointer user_data)
{
  Pop3Backend *self = user_data;
  gboolean refused = pop3_session_refused (pop3_connection_session (self->connection));
  gboolean was_in = self->logged_in;
  /* Nothing hangs on how a session ends that had nothing to do and nothing to commit. */
  gboolean idle = !has_work (self) || (self->quitting && !self->committing);

  drop_connection (self);
  pop3_work_lost (self, error);
  if (self->closed)
    on_close_end (self);
  else if (error == NULL || (was_in && idle))
    pop3_schedule (self);
  else
    {
      self->lost = was_in;
      handle_failure (self, error, was_in, refused);
    }
}

static void
open_session (Pop3Backend *self)
{
  static const Pop3ConnectionFuncs funcs = { on_ready, on_ended };
  gint64 now = g_get_monotonic_time ();
  gint64 wait = self->login_delay == 0
                    ? 0
                    : self->login_at + (gint64)self->login_delay * G_USEC_PER_SEC - now;

  if (wait > (gint64)self->config->timeout * G_USEC_PER_SEC / 2)
    {
      g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_BUSY,
                                              "the server allows a login only every %u seconds",
                                              self->login_delay);
      pop3_schedule_fail_all (self, error);
      return;
    }
  if (wait > 0)
    {
      retry_in (self, (guint)(wait / 1000) + 1);
      return;
    }
  self->opened_at = now;
  self->connection = pop3_connection_new (self->config, self->secrets, self->tls, self->utf8,
                                          &funcs, self);
}

static gboolean
on_idle (gpointer user_data)
{
  Pop3Backend *self = user_data;

  pop3_schedule_clear (&self->idle);
  pop3_work_quit (self);
  return G_SOURCE_REMOVE;
}

/* A listing shows the maildrop as it was at the login. */
static gboolean
may_sync (Pop3Backend *self, const Pop3Request *request)
{
  return request->queued_at <= self->opened_at
         || (!self->synced && g_get_monotonic_time () - self->login_at <= FRESH);
}

/* There is a session, and its maildrop is known. */
static void
use_session (Pop3Backend *self)
{
  Pop3Request *request;
  gboolean draining;

  if (self->starts.length > 0)
    pop3_schedule_well (self);
  while ((request = g_queue_pop_head (&self->starts)) != NULL)
    pop3_request_finish (request, NULL);
  request = g_queue_peek_head (&self->syncs);
  if (self->sync == NULL && request != NULL && !self->renew && may_sync (self, request))
    pop3_work_begin_sync (self, g_queue_pop_head (&self->syncs));
  draining = self->removes.length > 0 || self->renew
             || (self->syncs.length > 0 && self->sync == NULL);
  if (!has_work (self) && self->n_running == 0)
    {
      if (self->idle == NULL)
        self->idle = pop3_schedule_attach (
            g_timeout_source_new (self->login_delay > 0 ? IDLE_DELAYED_MS : IDLE_MS), on_idle,
            self);
      return;
    }
  pop3_schedule_clear (&self->idle);
  if (!draining || self->sync != NULL)
    pop3_work_fill (self, draining);
  else if (self->n_running > 0)
    return;
  else if (self->removes.length > 0)
    pop3_work_begin_remove (self);
  else
    pop3_work_quit (self);
}

void
pop3_schedule_now (Pop3Backend *self)
{
  if (self->maildrop != NULL && !self->quitting && !self->closed
      && pop3_session_state (pop3_connection_session (self->connection)) == POP3_STATE_READY)
    use_session (self);
}

/* Somebody wants to read now: whether the server is there again is looked at, not too often. */
static gboolean
may_look (const Pop3Backend *self)
{
  return self->fetches[MAIL_PRIORITY_INTERACTIVE].length > 0 && self->down->code != MAIL_ERROR_BUSY
         && self->down->code != MAIL_ERROR_AUTH
         && g_get_monotonic_time () - self->opened_at > LOOK_AGAIN;
}

static gboolean
on_run (gpointer user_data)
{
  Pop3Backend *self = user_data;

  pop3_schedule_clear (&self->run);
  answer_instant (self);
  if (self->closed && self->connection == NULL)
    {
      g_autoptr (GError) error = g_error_new_literal (MAIL_ERROR, MAIL_ERROR_CONNECTION,
                                                      "the account is being closed");
      pop3_schedule_fail_all (self, error);
    }
  else if (self->connection != NULL && self->looking && self->down != NULL)
    fail_down (self);
  else if (self->connection != NULL)
    pop3_schedule_now (self);
  else if (!has_work (self) || self->retry != NULL)
    return G_SOURCE_REMOVE;
  else if (self->down != NULL && g_get_monotonic_time () < self->down_until)
    {
      gboolean look = may_look (self);

      fail_down (self);
      if (look)
        {
          open_session (self);
          self->looking = self->connection != NULL;
        }
    }
  else
    open_session (self);
  return G_SOURCE_REMOVE;
}

void
pop3_schedule (Pop3Backend *self)
{
  /* Not at an idle source's own priority: it would wait until the line is silent. */
  if (self->run == NULL)
    self->run = pop3_schedule_attach (g_timeout_source_new (0), on_run, self);
}

void
pop3_schedule_close (Pop3Backend *self, MailDoneFunc done, gpointer user_data)
{
  gboolean polite = self->connection != NULL && self->maildrop != NULL && self->n_running == 0
                    && self->sync == NULL;

  self->closed = TRUE;
  self->close_done = done;
  self->close_data = user_data;
  pop3_schedule_clear (&self->retry);
  pop3_schedule_clear (&self->idle);
  if (polite && !self->quitting)
    pop3_work_quit (self);
  self->close_limit = pop3_schedule_attach (
      polite ? g_timeout_source_new (CLOSE_MS) : g_idle_source_new (), on_close_end, self);
  pop3_schedule (self);
}
