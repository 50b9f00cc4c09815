/* SPDX-License-Identifier: MIT
 *
 * The pipeline of one IMAP connection: commands wait, are emitted one after the other, and are
 * answered by tag. Reading tasks follow their EXAMINE at once and fail with it; changing ones wait
 * until the SELECT has shown the UIDVALIDITY they were made for. Net thread. Knows no socket.
 */
#include "imap/session-private.h"

#include "mailfs/log.h"

#include <string.h>

void
imap_entry_free (ImapEntry *entry)
{
  imap_command_free (entry->command);
  imap_select_unref (entry->select);
  g_clear_error (&entry->error);
  g_free (entry);
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

gboolean
imap_session_is_quiet (const ImapSession *session)
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
  session->woken_at = session->now - session->last_input > IMAP_SILENCE_MS ? session->now : 0;
}

/* What came after the SELECT, by another connection of ours even, a server may tell, and know
 * itself, only when it is asked for news (RFC 3501 section 5.2): a command that names it would be
 * answered OK and do nothing. */
static gboolean
names_newer (const ImapEntry *entry)
{
  const ImapSelect *select = entry->select;

  return entry->task != NULL && select != NULL && !entry->selects && select->state == IMAP_SELECT_OK
         && select->uidnext != 0
         && entry->task->newest >= MAX (select->uidnext, select->asked_below);
}

static void
on_news (ImapSession *session, const ImapStatus *status)
{
  ImapSelect *select = session->current;

  if (select == NULL)
    return;
  select->asked_below = MAX (select->asked_below, select->asking_below);
  select->asking_below = 0;
}

/* What is sent before the answer is there may be done before it, too. */
static void
ask_for_newer (ImapSession *session, const ImapEntry *entry)
{
  ImapEntry *noop = g_new0 (ImapEntry, 1);

  noop->command = imap_command_new ("NOOP");
  noop->done = on_news;
  entry->select->asking_below = entry->task->newest + 1;
  g_queue_push_head (&session->waiting, noop);
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
      imap_entry_finish (session, entry, NULL, obstacle);
      return TRUE;
    }
  if (entry->task != NULL && entry->task->changes && entry->select != NULL && !entry->selects
      && entry->select->state == IMAP_SELECT_PENDING)
    return FALSE;
  if (names_newer (entry))
    {
      if (entry->select->asking_below != 0)
        return FALSE;
      ask_for_newer (session, entry);
      return TRUE;
    }
  if (imap_session_is_quiet (session))
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
      imap_entry_finish (session, entry, NULL, entry->error);
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
  while (session->state != IMAP_SESSION_DEAD
         && session->out->len - session->out_taken < IMAP_OUT_HIGH)
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
  if (session->state != IMAP_SESSION_DEAD && session->state != IMAP_SESSION_WANTS_TLS
      && session->state != IMAP_SESSION_WANTS_DEFLATE)
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
  if (session->progress_bytes >= IMAP_PROGRESS_BYTES)
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

void
imap_session_count_task (ImapSession *session, const ImapTask *task, int sign)
{
  session->n_tasks += (guint)sign;
  session->n_bulk += task->bulk ? (guint)sign : 0;
  session->weight += (guint)sign * MAX (task->weight, 1);
}

void
imap_entry_finish (ImapSession *session, ImapEntry *entry, const ImapStatus *status,
                   const GError *error)
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
      imap_session_count_task (session, task, -1);
      session->n_done += status != NULL && error == NULL;
      task->ops->done (task, &result);
    }
  else if (entry->done != NULL && status != NULL && session->state != IMAP_SESSION_DEAD)
    entry->done (session, status);
  imap_entry_free (entry);
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
  imap_entry_finish (session, entry, status, error);
}
