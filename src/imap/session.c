/* SPDX-License-Identifier: MIT
 *
 * The pipeline of one IMAP connection: commands wait, are emitted one after the other, and are
 * answered by tag. A task's mailbox is selected by the session itself, in front of the task.
 * Reading tasks follow their EXAMINE at once and fail with it; changing ones wait until the SELECT
 * has shown the UIDVALIDITY they were made for. Net thread. Knows no socket and no clock.
 */
#include "imap/session-private.h"

#include "mailfs/log.h"

#include <string.h>

#define OUT_HIGH (64 * 1024) /* as much is kept ready to be written */
#define PROGRESS_BYTES 4096  /* fewer are no progress */
/* After a silence (sleep, another network) the connection may be gone without a word. A sign of
 * life is then expected sooner, so that reading can be tried on a new one within the timeout. */
#define SILENCE_MS 30000
#define SIGN_OF_LIFE_MS 5000

static void entry_finish (ImapSession *session, ImapEntry *entry, const ImapStatus *status,
                          const GError *error);

static void
entry_free (ImapEntry *entry)
{
  imap_command_free (entry->command);
  imap_select_unref (entry->select);
  g_clear_error (&entry->error);
  g_free (entry);
}

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
  session->out = g_byte_array_sized_new (OUT_HIGH);
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

static void
finish_all (ImapSession *session)
{
  g_autoptr (GError) lost = session->error != NULL
                                ? g_error_copy (session->error)
                                : g_error_new_literal (MAIL_ERROR, MAIL_ERROR_CONNECTION,
                                                       "the connection was closed");
  ImapEntry *entry;

  session->emitting = NULL;
  session->body_entry = NULL;
  while ((entry = g_queue_pop_head (&session->sent)) != NULL
         || (entry = g_queue_pop_head (&session->waiting)) != NULL)
    entry_finish (session, entry, NULL, entry->error != NULL ? entry->error : lost);
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
  imap_session_die_error (session,
                          g_error_new (MAIL_ERROR, code, "%s: %s", session->options.host, text));
}

/* --- input ------------------------------------------------------------------------------------ */

void
imap_session_feed (ImapSession *session, const void *data, gsize length, gint64 now)
{
  g_autoptr (GError) error = NULL;
  gsize consumed = 0;

  if (session->state == IMAP_SESSION_DEAD || length == 0)
    return;
  session->now = session->last_input = now;
  session->woken_at = 0;
  session->progress_bytes += length;
  if (session->progress_bytes >= PROGRESS_BYTES)
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
}

void
imap_session_lost (ImapSession *session, const GError *error)
{
  if (session->state == IMAP_SESSION_LOGOUT || error == NULL)
    imap_session_die (session, MAIL_ERROR_CONNECTION, "the server closed the connection");
  else
    imap_session_die (session, MAIL_ERROR_CONNECTION, "%s", error->message);
}

/* --- output ----------------------------------------------------------------------------------- */

ImapEntry *
imap_session_push (ImapSession *session, ImapCommand *command, ImapInternalDone done)
{
  ImapEntry *entry = g_new0 (ImapEntry, 1);

  entry->command = command;
  entry->done = done;
  g_queue_push_tail (&session->waiting, entry);
  return entry;
}

/* The error with which an entry must not be sent, or NULL. */
static GError *
entry_obstacle (const ImapEntry *entry)
{
  const ImapSelect *select = entry->select;
  const ImapTask *task = entry->task;

  if (select == NULL || entry->selects || select->state == IMAP_SELECT_PENDING)
    return NULL;
  if (select->state == IMAP_SELECT_FAILED)
    return g_error_copy (select->error);
  if (task == NULL)
    return NULL;
  if (task->uidvalidity != 0 && task->uidvalidity != select->uidvalidity)
    return g_error_new (MAIL_ERROR, MAIL_ERROR_STALE, "mailbox %s has another UIDVALIDITY now",
                        select->mailbox);
  if (task->access == IMAP_ACCESS_WRITE && select->read_only)
    return g_error_new (MAIL_ERROR, MAIL_ERROR_READ_ONLY, "mailbox %s is read-only",
                        select->mailbox);
  return NULL;
}

static ImapLiteralMode
literal_mode (const ImapSession *session)
{
  if ((session->caps & IMAP_CAP_LITERAL_PLUS) != 0)
    return IMAP_LITERALS_PLUS;
  if ((session->caps & (IMAP_CAP_LITERAL_MINUS | IMAP_CAP_IMAP4REV2)) != 0)
    return IMAP_LITERALS_MINUS;
  return IMAP_LITERALS_SYNC;
}

/* Whether nothing is under way that the server owes an answer for. */
static gboolean
is_quiet (const ImapSession *session)
{
  const ImapEntry *head = session->sent.head != NULL ? session->sent.head->data : NULL;

  return head == NULL || (head->idle && session->idle == IMAP_IDLE_ACTIVE);
}

/* From rest to waiting for an answer. */
static void
leave_quiet (ImapSession *session)
{
  mail_counter_add (MAIL_COUNTER_ROUND_TRIPS, 1);
  session->progress_at = session->now;
  session->progress_bytes = 0;
  session->woken_at = session->now - session->last_input > SILENCE_MS ? session->now : 0;
}

/* FALSE: nothing can be emitted now. */
static gboolean
entry_begin (ImapSession *session)
{
  ImapEntry *entry = g_queue_peek_head (&session->waiting);
  g_autoptr (GError) obstacle = NULL;
  g_autofree char *line = NULL;

  if (entry == NULL)
    return FALSE;
  obstacle = entry_obstacle (entry);
  if (obstacle != NULL)
    {
      g_queue_pop_head (&session->waiting);
      entry_finish (session, entry, NULL, obstacle);
      return TRUE;
    }
  if (entry->task != NULL && entry->task->changes && entry->select != NULL && !entry->selects
      && entry->select->state == IMAP_SELECT_PENDING)
    return FALSE;
  if (is_quiet (session))
    leave_quiet (session);
  g_queue_pop_head (&session->waiting);
  g_snprintf (entry->tag, sizeof entry->tag, "A%u", ++session->next_tag);
  imap_command_start (entry->command, entry->tag, literal_mode (session));
  g_queue_push_tail (&session->sent, entry);
  session->emitting = entry;
  if (entry->idle)
    session->idle = IMAP_IDLE_SENT;
  mail_counter_add (MAIL_COUNTER_COMMANDS, 1);
  if (session->trace != NULL)
    {
      line = imap_command_describe (entry->command);
      imap_trace_output (session->trace, line);
    }
  return TRUE;
}

static void
emission_done (ImapSession *session)
{
  ImapEntry *entry = session->emitting;

  session->emitting = NULL;
  if (entry->answered)
    {
      g_queue_remove (&session->sent, entry);
      entry_finish (session, entry, NULL, entry->error);
    }
}

/* TRUE while IDLE keeps other commands from being emitted. */
static gboolean
idle_in_the_way (ImapSession *session)
{
  if (session->idle == IMAP_IDLE_ACTIVE
      && (session->stop_idle || !g_queue_is_empty (&session->waiting)))
    {
      g_byte_array_append (session->out, (const guint8 *)"DONE\r\n", 6);
      session->idle = IMAP_IDLE_ENDING;
      session->stop_idle = FALSE;
      leave_quiet (session);
    }
  return session->idle == IMAP_IDLE_SENT || session->idle == IMAP_IDLE_ACTIVE;
}

static void
fill_output (ImapSession *session)
{
  while (session->state != IMAP_SESSION_DEAD && session->out->len - session->out_taken < OUT_HIGH)
    {
      g_autoptr (GError) error = NULL;
      const guint8 *data;
      gsize length;

      if (session->emitting == NULL && (idle_in_the_way (session) || !entry_begin (session)))
        return;
      if (session->emitting == NULL)
        continue; /* one failed without being sent */
      switch (imap_command_peek (session->emitting->command, &data, &length, &error))
        {
        case IMAP_EMIT_DATA:
          g_byte_array_append (session->out, data, (guint)length);
          imap_command_advance (session->emitting->command, length);
          break;
        case IMAP_EMIT_WAIT:
          return;
        case IMAP_EMIT_DONE:
          emission_done (session);
          break;
        case IMAP_EMIT_ERROR:
          /* Part of it may be out: the server would take the next command for the rest. */
          imap_session_die (session, MAIL_ERROR_CONNECTION, "%s", error->message);
          return;
        }
    }
}

const guint8 *
imap_session_output (ImapSession *session, gsize *length, gint64 now)
{
  session->now = now;
  if (session->state != IMAP_SESSION_DEAD && session->state != IMAP_SESSION_WANTS_TLS)
    fill_output (session);
  *length = session->state == IMAP_SESSION_DEAD ? 0 : session->out->len - session->out_taken;
  return session->out->data + session->out_taken;
}

void
imap_session_written (ImapSession *session, gsize n, gint64 now)
{
  g_assert (n <= session->out->len - session->out_taken);
  session->out_taken += n;
  session->progress_bytes += n;
  if (session->progress_bytes >= PROGRESS_BYTES)
    {
      session->progress_bytes = 0;
      session->progress_at = now;
    }
  if (session->out_taken == session->out->len)
    {
      explicit_bzero (session->out->data, session->out->len);
      g_byte_array_set_size (session->out, 0);
      session->out_taken = 0;
    }
}

/* --- answers ---------------------------------------------------------------------------------- */

static void
select_finish (ImapSession *session, ImapSelect *select, const ImapStatus *status,
               const GError *error)
{
  imap_select_unref (session->current);
  session->current = NULL;
  if (error == NULL)
    {
      select->state = IMAP_SELECT_OK;
      if (select->access == IMAP_ACCESS_WRITE && status != NULL)
        select->read_only = status->code == IMAP_CODE_READ_ONLY;
      session->current = imap_select_ref (select);
      return;
    }
  /* RFC 9051 6.3.2: after a failed SELECT no mailbox is selected. */
  select->state = IMAP_SELECT_FAILED;
  g_clear_error (&select->error);
  select->error = g_error_copy (error);
  if (session->planned == select)
    g_clear_pointer (&session->planned, imap_select_unref);
}

/* sign: 1 comes, -1 goes. */
static void
count_task (ImapSession *session, const ImapTask *task, int sign)
{
  session->n_tasks += (guint)sign;
  session->n_bulk += task->bulk ? (guint)sign : 0;
  session->weight += (guint)sign * MAX (task->weight, 1);
}

/* Tells whoever waits for entry, and frees it. It is in no queue any more. status NULL with error
 * NULL: it was not needed. */
static void
entry_finish (ImapSession *session, ImapEntry *entry, const ImapStatus *status, const GError *error)
{
  ImapTask *task = entry->task;

  if (session->body_entry == entry)
    session->body_entry = NULL;
  if (session->emitting == entry)
    session->emitting = NULL;
  if (entry->selects)
    select_finish (session, entry->select, status, error);
  if (entry->announces && error == NULL)
    imap_session_note_change (session);
  if (entry->idle)
    session->idle = IMAP_IDLE_NONE;
  if (task != NULL)
    {
      ImapResult result = {
        .status = status,
        .command = entry->tag[0] != '\0' ? entry->command : NULL,
        .session = session->state != IMAP_SESSION_DEAD ? session : NULL,
        .error = error,
      };
      count_task (session, task, -1);
      session->n_done += status != NULL && error == NULL;
      task->ops->done (task, &result);
    }
  else if (entry->done != NULL && status != NULL && session->state != IMAP_SESSION_DEAD)
    entry->done (session, status);
  entry_free (entry);
}

static GList *
find_by_tag (ImapSession *session, const char *tag)
{
  for (GList *link = session->sent.head; link != NULL; link = link->next)
    {
      ImapEntry *entry = link->data;
      if (!entry->answered && strcmp (entry->tag, tag) == 0)
        return link;
    }
  return NULL;
}

/* The server wants to be left alone for a while (Gmail, Exchange). */
static gboolean
is_busy_code (const ImapStatus *status)
{
  return status->condition != IMAP_OK
         && (status->code == IMAP_CODE_THROTTLED || status->code == IMAP_CODE_UNAVAILABLE
             || strstr (status->text, "authenticated but not connected") != NULL);
}

void
imap_session_answer (ImapSession *session, const ImapStatus *status)
{
  GList *link = find_by_tag (session, status->tag);
  g_autoptr (GError) error = NULL;
  ImapEntry *entry;

  if (link == NULL)
    {
      imap_session_die (session, MAIL_ERROR_PROTOCOL, "an answer with an unknown tag");
      return;
    }
  entry = link->data;
  if (status->condition != IMAP_OK)
    error = imap_status_error (status, entry->selects ? entry->select->mailbox : "command",
                               entry->selects);
  else if (!entry->selects)
    error = entry_obstacle (entry);
  session->progress_at = session->now;
  session->progress_bytes = 0;
  if (is_busy_code (status))
    session->busy = TRUE;
  if (entry->idle && status->condition != IMAP_OK)
    session->caps &= ~(guint)IMAP_CAP_IDLE;
  if (status->condition == IMAP_OK
      && (entry == session->emitting
          || (entry->select != NULL && !entry->selects
              && entry->select->state == IMAP_SELECT_PENDING)))
    {
      imap_session_die (session, MAIL_ERROR_PROTOCOL, "OK to a command it cannot have seen");
      return;
    }
  if (entry == session->emitting && !imap_command_is_waiting (entry->command))
    {
      /* The literal was promised and must follow all the same. */
      entry->answered = TRUE;
      entry->error = g_steal_pointer (&error);
      return;
    }
  g_queue_delete_link (&session->sent, link);
  /* A command that ran in a mailbox which could not be selected: what it says counts for nothing.
   */
  if (entry->select != NULL && !entry->selects && entry->select->state == IMAP_SELECT_FAILED)
    {
      g_clear_error (&error);
      error = g_error_copy (entry->select->error);
    }
  entry_finish (session, entry, status, error);
}

/* --- tasks ------------------------------------------------------------------------------------ */

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

      if (task->mailbox != NULL && !task->selects)
        select = select_for (session, task);
      else if (task->selects)
        {
          select = imap_select_new (task->mailbox, task->access);
          plan (session, select);
        }
      entry = imap_session_push (session, g_steal_pointer (&command), NULL);
      count_task (session, task, 1);
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
      count_task (session, task, -1);
      task->select = NULL;
      entry_free (entry);
      *tail = task;
      tail = &task->next;
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
    case IMAP_SESSION_WANTS_SECRET: /* the source of the secret has its own deadline */
      return G_MAXINT64;
    case IMAP_SESSION_READY:
    case IMAP_SESSION_LOGOUT:
      if (is_quiet (session) && session->out->len == session->out_taken)
        return G_MAXINT64;
      return MIN (session->progress_at + session->options.timeout_ms,
                  sign_of_life_deadline (session));
    default:
      return session->login_deadline;
    }
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
