/* SPDX-License-Identifier: MIT
 *
 * The life of one IMAP session, what is fed to it, what it is given to do, its deadlines. A task's
 * mailbox is selected by the session itself, in front of the task. Net thread. Knows no socket and
 * no clock.
 */
#include "imap/session-private.h"

#include "mailfs/log.h"

#include <string.h>

void
imap_session_new_parser (ImapSession *session)
{
  imap_parser_free (session->parser);
  session->parser = imap_parser_new (&imap_session_handler, session, NULL);
}

ImapSession *
imap_session_new (const ImapSessionOptions *options, gint64 now)
{
  ImapSession *session = g_new0 (ImapSession, 1);

  session->options = *options;
  /* Large enough not to be moved while there are secrets in it. */
  session->out = g_byte_array_sized_new (IMAP_OUT_HIGH);
  session->mechanisms = g_ptr_array_new_with_free_func (g_free);
  session->now = session->last_input = session->progress_at = now;
  session->login_deadline = now + options->timeout_ms;
  session->alerted_at = G_MININT64 / 2;
  session->under_tls = options->tls == IMAP_TLS_IMPLICIT;
  g_queue_init (&session->waiting);
  g_queue_init (&session->sent);
  session->trace = imap_trace_new (options->peer);
  imap_session_new_parser (session);
  return session;
}

/* It was behind what did not move, and has time left to be tried elsewhere. */
static gboolean
is_late_comer (const ImapSession *session, const ImapEntry *entry)
{
  return g_error_matches (session->error, MAIL_ERROR, MAIL_ERROR_TIMED_OUT) && entry->task != NULL
         && !entry->task->changes
         && session->now - entry->task->queued_at < session->options.timeout_ms * 2 / 3;
}

static void
finish_all (ImapSession *session)
{
  g_autoptr (GError) lost = session->error != NULL
                                ? g_error_copy (session->error)
                                : g_error_new_literal (MAIL_ERROR, MAIL_ERROR_CONNECTION,
                                                       "the connection was closed");
  g_autoptr (GError) behind = g_error_new_literal (MAIL_ERROR, MAIL_ERROR_CONNECTION,
                                                   lost->message);
  ImapEntry *entry;

  session->emitting = NULL;
  session->body_entry = NULL;
  while ((entry = g_queue_pop_head (&session->sent)) != NULL
         || (entry = g_queue_pop_head (&session->waiting)) != NULL)
    imap_entry_finish (session, entry, NULL,
                       entry->error != NULL             ? entry->error
                       : is_late_comer (session, entry) ? behind
                                                        : lost);
}

void
imap_session_free (ImapSession *session)
{
  if (session == NULL)
    return;
  session->state = IMAP_SESSION_DEAD;
  finish_all (session);
  imap_parser_free (session->parser);
  if (session->out->len > 0)
    explicit_bzero (session->out->data, session->out->len);
  g_byte_array_unref (session->out);
  g_ptr_array_unref (session->mechanisms);
  net_sasl_free (session->sasl);
  imap_select_unref (session->planned);
  imap_select_unref (session->current);
  g_clear_error (&session->error);
  g_free (session->changed);
  imap_trace_free (session->trace);
  net_sasl_wipe (session->secret);
  g_free (session);
}

void
imap_session_die_error (ImapSession *session, GError *error)
{
  if (session->state == IMAP_SESSION_DEAD)
    {
      g_error_free (error);
      return;
    }
  session->state = IMAP_SESSION_DEAD;
  session->error = error;
  imap_parser_pause (session->parser);
}

void
imap_session_die (ImapSession *session, int code, const char *format, ...)
{
  g_autofree char *text = NULL;
  va_list args;

  va_start (args, format);
  text = g_strdup_vprintf (format, args);
  va_end (args);
  imap_session_die_error (session, g_error_new_literal (MAIL_ERROR, code, text));
}

/* --- input ------------------------------------------------------------------------------------ */

gsize
imap_session_feed (ImapSession *session, const void *data, gsize length, gint64 now)
{
  g_autoptr (GError) error = NULL;
  gsize consumed = 0;

  if (session->state == IMAP_SESSION_DEAD || length == 0)
    return 0;
  session->now = session->last_input = now;
  session->woken_at = 0;
  session->progress_bytes += length;
  if (session->progress_bytes >= IMAP_PROGRESS_BYTES)
    {
      session->progress_bytes = 0;
      session->progress_at = now;
    }
  imap_trace_input (session->trace, data, length);
  if (!imap_parser_feed (session->parser, data, length, &consumed, &error))
    imap_session_die (session, MAIL_ERROR_PROTOCOL, "%s", error->message);
  else if (session->state == IMAP_SESSION_WANTS_TLS
           && (consumed < length || !imap_parser_is_idle (session->parser)))
    /* CVE-2021-22947 and kin: what came in clear text must not be taken for what TLS protects. */
    imap_session_die (session, MAIL_ERROR_TLS, "bytes were injected behind the STARTTLS answer");
  return consumed;
}

void
imap_session_lost (ImapSession *session, const GError *error)
{
  if (session->state == IMAP_SESSION_LOGOUT || error == NULL)
    imap_session_die (session, MAIL_ERROR_CONNECTION, "the server closed the connection");
  else
    imap_session_die (session, MAIL_ERROR_CONNECTION, "%s", error->message);
}

/* --- tasks ------------------------------------------------------------------------------------ */

static void
on_unselected (ImapSession *session, const ImapStatus *status)
{
  if (status->condition == IMAP_OK)
    g_clear_pointer (&session->current, imap_select_unref);
}

/* Leaves the selected mailbox, without CLOSE, which could expunge. */
static void
unselect (ImapSession *session)
{
  if (session->planned == NULL)
    return;
  if ((session->caps & IMAP_CAP_UNSELECT) != 0)
    {
      g_clear_pointer (&session->planned, imap_select_unref);
      imap_session_push (session, imap_command_new ("UNSELECT"), on_unselected);
    }
  else
    imap_session_push (session, imap_command_new ("NOOP"), NULL);
}

static void
plan (ImapSession *session, ImapSelect *select)
{
  imap_select_unref (session->planned);
  session->planned = imap_select_ref (select);
}

/* The select a task runs in: the planned one if it will do, else a new one in front. */
static ImapSelect *
select_for (ImapSession *session, const ImapTask *task)
{
  ImapSelect *planned = session->planned, *select;
  ImapCommand *command;
  ImapEntry *entry;

  if (planned != NULL && strcmp (planned->mailbox, task->mailbox) == 0
      && planned->access >= task->access)
    return imap_select_ref (planned);
  select = imap_select_new (task->mailbox, task->access);
  command = imap_command_new (task->access == IMAP_ACCESS_WRITE ? "SELECT " : "EXAMINE ");
  imap_command_astring (command, task->mailbox);
  entry = imap_session_push (session, command, NULL);
  entry->select = imap_select_ref (select);
  entry->selects = TRUE;
  plan (session, select);
  return select;
}

static void
submit_one (ImapSession *session, ImapTask *task)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (ImapCommand) command = task->ops->build (task, session, &error);
  ImapResult result = { .session = session };
  ImapEntry *entry;

  if (command != NULL && imap_command_check (command, &error))
    {
      ImapSelect *select = NULL;

      if (task->unselected)
        unselect (session);
      if (task->mailbox != NULL && !task->selects)
        select = select_for (session, task);
      else if (task->selects)
        {
          select = imap_select_new (task->mailbox, task->access);
          plan (session, select);
        }
      entry = imap_session_push (session, g_steal_pointer (&command), NULL);
      imap_session_count_task (session, task, 1);
      entry->task = task;
      entry->select = select;
      entry->selects = task->selects;
      task->select = select;
      return;
    }
  result.error = error;
  task->ops->done (task, &result);
}

void
imap_session_submit (ImapSession *session, ImapTask *chain, gint64 now)
{
  session->now = now;
  for (gboolean follows = FALSE; chain != NULL; follows = TRUE)
    {
      ImapTask *next = chain->next;

      chain->next = NULL;
      chain->follows = follows;
      submit_one (session, chain);
      chain = next;
    }
}

ImapTask *
imap_session_take_unsent (ImapSession *session)
{
  ImapTask *chain = NULL, **tail = &chain;

  for (GList *link = session->waiting.head, *next; link != NULL; link = next)
    {
      ImapEntry *entry = link->data;
      ImapTask *task = entry->task;

      next = link->next;
      if (task == NULL || (chain == NULL && (!task->changes || task->follows)))
        continue; /* what follows a task that was sent is lost with it */
      if (chain != NULL && !task->follows)
        break;
      g_queue_delete_link (&session->waiting, link);
      imap_session_count_task (session, task, -1);
      task->select = NULL;
      imap_entry_free (entry);
      *tail = task;
      tail = &task->next;
    }
  return chain;
}

gint64
imap_session_stalled (const ImapSession *session, gint64 now)
{
  return imap_session_is_quiet (session) ? 0 : now - session->progress_at;
}

/* Whether entry begins a chain that can be asked for elsewhere. */
static gboolean
is_stuck (const ImapSession *session, const ImapEntry *entry)
{
  const ImapTask *task = entry->task;

  return task != NULL && !task->changes && !task->moved && !task->follows && !entry->answered
         && entry != session->sent.head->data && entry != session->body_entry
         && entry != session->emitting;
}

/* The entry's task, taken out. What the server still says to the command is nobody's. */
static ImapTask *
take_task (ImapSession *session, GQueue *queue, GList *link)
{
  ImapEntry *entry = link->data;
  ImapTask *task = g_steal_pointer (&entry->task);

  imap_session_count_task (session, task, -1);
  task->select = NULL;
  task->moved = TRUE;
  if (queue == &session->waiting && !entry->selects)
    {
      g_queue_delete_link (queue, link);
      imap_entry_free (entry);
    }
  return task;
}

ImapTask *
imap_session_take_stuck (ImapSession *session)
{
  GQueue *queues[] = { &session->sent, &session->waiting };
  ImapTask *chain = NULL, **tail = &chain;

  if (session->sent.head == NULL)
    return NULL;
  for (guint i = 0; i < G_N_ELEMENTS (queues); i++)
    for (GList *link = queues[i]->head, *next; link != NULL; link = next)
      {
        const ImapEntry *entry = link->data;

        next = link->next;
        if (entry->task == NULL || (chain == NULL && !is_stuck (session, entry)))
          continue;
        if (chain != NULL && !entry->task->follows)
          return chain;
        *tail = take_task (session, queues[i], link);
        tail = &(*tail)->next;
      }
  return chain;
}

/* --- idling, small commands --------------------------------------------------------------------
 */

gboolean
imap_session_idle (ImapSession *session, const char *mailbox, gint64 now)
{
  ImapTask where = { .mailbox = mailbox, .access = IMAP_ACCESS_READ };
  const ImapSelect *before;
  ImapSelect *select;
  ImapEntry *entry;

  if (session->state != IMAP_SESSION_READY || (session->caps & IMAP_CAP_IDLE) == 0)
    return FALSE;
  if (imap_session_is_idling (session))
    return TRUE;
  session->now = now;
  before = session->planned;
  select = select_for (session, &where);
  if (select != before)
    ((ImapEntry *)g_queue_peek_tail (&session->waiting))->announces = TRUE;
  entry = imap_session_push (session, imap_command_new ("IDLE"), NULL);
  entry->idle = TRUE;
  entry->select = select;
  session->stop_idle = FALSE;
  return TRUE;
}

gboolean
imap_session_is_idling (const ImapSession *session)
{
  if (session->idle == IMAP_IDLE_SENT || session->idle == IMAP_IDLE_ACTIVE)
    return TRUE;
  for (GList *link = session->waiting.head; link != NULL; link = link->next)
    if (((ImapEntry *)link->data)->idle)
      return TRUE;
  return FALSE;
}

void
imap_session_stop_idle (ImapSession *session)
{
  if (imap_session_is_idling (session))
    session->stop_idle = TRUE;
}

void
imap_session_noop (ImapSession *session, gint64 now)
{
  session->now = now;
  imap_session_push (session, imap_command_new ("NOOP"), NULL);
}

static void
on_compress_done (ImapSession *session, const ImapStatus *status)
{
  session->caps &= ~(guint)IMAP_CAP_COMPRESS; /* once is enough */
  if (session->state != IMAP_SESSION_COMPRESSING)
    return;
  session->state = status->condition == IMAP_OK ? IMAP_SESSION_WANTS_DEFLATE : IMAP_SESSION_READY;
  /* What follows the OK is deflated. */
  if (session->state == IMAP_SESSION_WANTS_DEFLATE)
    imap_parser_pause (session->parser);
}

gboolean
imap_session_compress (ImapSession *session, gint64 now)
{
  if (session->state != IMAP_SESSION_READY || (session->caps & IMAP_CAP_COMPRESS) == 0
      || session->n_tasks > 0 || imap_session_is_idling (session))
    return FALSE;
  session->now = now;
  session->state = IMAP_SESSION_COMPRESSING;
  imap_session_push (session, imap_command_new ("COMPRESS DEFLATE"), on_compress_done);
  return TRUE;
}

void
imap_session_deflate_done (ImapSession *session, gint64 now)
{
  session->now = now;
  if (session->state == IMAP_SESSION_WANTS_DEFLATE)
    session->state = IMAP_SESSION_READY;
}

void
imap_session_logout (ImapSession *session, gint64 now)
{
  session->now = now;
  if (session->state == IMAP_SESSION_READY)
    imap_session_push (session, imap_command_new ("LOGOUT"), NULL);
  if (session->state != IMAP_SESSION_DEAD)
    session->state = IMAP_SESSION_LOGOUT;
}

char *
imap_session_take_changed (ImapSession *session)
{
  return g_steal_pointer (&session->changed);
}

/* After a silence (sleep, another network) the connection may be gone without a word. A sign of
 * life is then expected sooner, so that reading can be tried on a new one within the timeout. */
#define SIGN_OF_LIFE_MS 5000

/* --- time ------------------------------------------------------------------------------------- */

/* Whether something under way must not be sent a second time. */
static gboolean
has_changes (const ImapSession *session)
{
  for (GList *link = session->sent.head; link != NULL; link = link->next)
    {
      const ImapTask *task = ((ImapEntry *)link->data)->task;

      if (task != NULL && task->changes)
        return TRUE;
    }
  return FALSE;
}

/* The deadline for any byte at all after a silence; G_MAXINT64: none. */
static gint64
sign_of_life_deadline (const ImapSession *session)
{
  if (session->woken_at == 0 || has_changes (session))
    return G_MAXINT64;
  return session->woken_at + MIN (SIGN_OF_LIFE_MS, session->options.timeout_ms / 3);
}

gint64
imap_session_deadline (const ImapSession *session)
{
  switch (session->state)
    {
    case IMAP_SESSION_DEAD:
    case IMAP_SESSION_WANTS_DEFLATE:
    case IMAP_SESSION_WANTS_SECRET: /* the source of the secret has its own deadline */
      return G_MAXINT64;
    case IMAP_SESSION_READY:
    case IMAP_SESSION_COMPRESSING:
    case IMAP_SESSION_LOGOUT:
      if (imap_session_is_quiet (session) && session->out->len == session->out_taken)
        return G_MAXINT64;
      return MIN (session->progress_at + session->options.timeout_ms,
                  sign_of_life_deadline (session));
    default:
      return session->login_deadline;
    }
}

void
imap_session_excuse (ImapSession *session, gint64 late, gint64 now)
{
  session->login_deadline = MIN (session->login_deadline + late, now + session->options.timeout_ms);
  session->progress_at = MIN (session->progress_at + late, now);
  if (session->woken_at != 0)
    session->woken_at = MIN (session->woken_at + late, now);
}

void
imap_session_check (ImapSession *session, gint64 now)
{
  session->now = now;
  if (now < imap_session_deadline (session))
    return;
  if (session->state == IMAP_SESSION_READY && now >= sign_of_life_deadline (session))
    imap_session_die (session, MAIL_ERROR_CONNECTION, "no sign of life");
  else
    imap_session_die (session, MAIL_ERROR_TIMED_OUT, "no answer within %u s",
                      session->options.timeout_ms / 1000);
}

/* --- what it knows ---------------------------------------------------------------------------- */

ImapSessionState
imap_session_state (const ImapSession *session)
{
  return session->state;
}

const GError *
imap_session_error (const ImapSession *session)
{
  return session->error;
}

guint
imap_session_caps (const ImapSession *session)
{
  return session->caps;
}

gboolean
imap_session_has_qresync (const ImapSession *session)
{
  return session->qresync;
}

void
imap_session_forget_qresync (ImapSession *session)
{
  session->qresync = FALSE;
}

char
imap_session_delimiter (const ImapSession *session)
{
  return session->delimiter;
}

void
imap_session_reweigh (ImapSession *session, ImapTask *task, guint weight)
{
  imap_session_count_task (session, task, -1);
  task->weight = weight;
  imap_session_count_task (session, task, 1);
}

guint
imap_session_n_tasks (const ImapSession *session, guint *n_bulk, guint *weight)
{
  *n_bulk = session->n_bulk;
  *weight = session->weight;
  return session->n_tasks;
}

guint
imap_session_n_done (const ImapSession *session)
{
  return session->n_done;
}

gboolean
imap_session_take_busy (ImapSession *session)
{
  gboolean busy = session->busy;

  session->busy = FALSE;
  return busy;
}

const ImapSelect *
imap_session_planned (const ImapSession *session)
{
  return session->planned;
}

gint64
imap_session_last_input (const ImapSession *session)
{
  return session->last_input;
}

ImapCode
imap_session_refusal_code (const ImapSession *session)
{
  return session->refusal_code;
}
