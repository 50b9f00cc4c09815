/* SPDX-License-Identifier: MIT
 *
 * Pop3Session: commands out, answers in. POP3 answers carry no tags, so everything rests on their
 * order: what comes unasked, or does not look like an answer, ends the session.
 */
#include "pop3/session-private.h"

#include "mailfs/log.h"

#include <string.h>

/* How many bytes of a message count as progress. */
#define PROGRESS_BYTES 4096

static const char *const verb_names[] = {
  [POP3_VERB_STAT] = "STAT",         [POP3_VERB_LIST] = "LIST",
  [POP3_VERB_UIDL] = "UIDL",         [POP3_VERB_TOP] = "TOP",
  [POP3_VERB_RETR] = "RETR",         [POP3_VERB_DELE] = "DELE",
  [POP3_VERB_RSET] = "RSET",         [POP3_VERB_NOOP] = "NOOP",
  [POP3_VERB_QUIT] = "QUIT",         [POP3_VERB_GREETING] = "the connection",
  [POP3_VERB_STLS] = "STLS",         [POP3_VERB_CAPA] = "CAPA",
  [POP3_VERB_UTF8] = "UTF8",         [POP3_VERB_USER] = "the user name",
  [POP3_VERB_PASS] = "the login",    [POP3_VERB_APOP] = "the login",
  [POP3_VERB_AUTH] = "the login",    [POP3_VERB_PROBE_FIRST] = "NOOP",
  [POP3_VERB_PROBE_SECOND] = "STAT", [POP3_VERB_PROBE_THIRD] = "NOOP",
};

static void
command_free (gpointer data)
{
  Pop3Command *command = data;

  g_free (command->text);
  g_free (command);
}

Pop3Session *
pop3_session_new (const Pop3Setup *setup)
{
  Pop3Session *session = g_new0 (Pop3Session, 1);
  Pop3Command *greeting = g_new0 (Pop3Command, 1);

  session->setup = *setup;
  session->setup.user = g_strdup (setup->user);
  session->setup.auth = g_strdup (setup->auth);
  session->setup.host = g_strdup (setup->host);
  session->tls = setup->tls;
  session->output = g_byte_array_sized_new (4096);
  pop3_reader_init (&session->reader);
  g_queue_init (&session->waiting);
  g_queue_init (&session->sent);
  greeting->verb = POP3_VERB_GREETING;
  g_queue_push_tail (&session->sent, greeting);
  return session;
}

static void
forget_secret (Pop3Session *session)
{
  net_sasl_wipe (session->secret);
  session->secret = NULL;
  g_clear_pointer (&session->sasl, net_sasl_free);
}

void
pop3_session_free (Pop3Session *session)
{
  if (session == NULL)
    return;
  forget_secret (session);
  explicit_bzero (session->output->data, session->output->len);
  g_byte_array_unref (session->output);
  pop3_reader_clear (&session->reader);
  g_queue_clear_full (&session->waiting, command_free);
  g_queue_clear_full (&session->sent, command_free);
  pop3_capa_clear (&session->capa);
  pop3_capa_clear (&session->new_capa);
  g_free (session->timestamp);
  g_clear_error (&session->error);
  g_clear_error (&session->sasl_error);
  g_free ((char *)session->setup.user);
  g_free ((char *)session->setup.auth);
  g_free ((char *)session->setup.host);
  g_free (session);
}

Pop3State
pop3_session_state (const Pop3Session *session)
{
  return session->state;
}

const GError *
pop3_session_error (const Pop3Session *session)
{
  return session->error;
}

gboolean
pop3_session_refused (const Pop3Session *session)
{
  return session->refused;
}

guint
pop3_session_caps (const Pop3Session *session)
{
  return session->capa.flags;
}

guint
pop3_session_login_delay (const Pop3Session *session)
{
  return session->capa.login_delay;
}

gboolean
pop3_session_waiting (const Pop3Session *session)
{
  return session->sent.length > 0 && session->state != POP3_STATE_ENDED;
}

guint64
pop3_session_progress (const Pop3Session *session)
{
  return session->progress;
}

/* Ends the session and answers all that is under way; error NULL: without one it was a good end. */
static void
end (Pop3Session *session, const GError *error)
{
  g_autoptr (GError) ended = NULL;
  GQueue queues[2] = { session->sent, session->waiting };

  session->state = POP3_STATE_ENDED;
  g_queue_init (&session->sent);
  g_queue_init (&session->waiting);
  forget_secret (session);
  if (error == NULL)
    ended = g_error_new_literal (MAIL_ERROR, MAIL_ERROR_CONNECTION, "the session was ended");
  for (guint i = 0; i < 2; i++)
    {
      Pop3Command *command;
      while ((command = g_queue_pop_head (&queues[i])) != NULL)
        {
          if (command->funcs != NULL)
            command->funcs->done (command->user_data, NULL, error != NULL ? error : ended);
          command_free (command);
        }
    }
}

void
pop3_session_fail (Pop3Session *session, GError *take_error)
{
  if (session->state == POP3_STATE_ENDED)
    {
      g_error_free (take_error);
      return;
    }
  session->error = take_error;
  end (session, session->error);
}

static void
fail_protocol (Pop3Session *session, const char *what)
{
  pop3_session_fail (session, g_error_new_literal (MAIL_ERROR, MAIL_ERROR_PROTOCOL, what));
}

/* --- out ------------------------------------------------------------------------------------- */

static void
trace (Pop3Session *session, char direction, const char *text, gssize length)
{
  if (mail_log_enabled (MAIL_LOG_TRACE))
    mail_log_trace (session->setup.host, direction, text, length);
}

static void
append_line (Pop3Session *session, const char *line)
{
  g_byte_array_append (session->output, (const guint8 *)line, strlen (line));
  g_byte_array_append (session->output, (const guint8 *)"\r\n", 2);
}

static void
put (Pop3Session *session, Pop3Command *command, const char *line, const char *shown)
{
  if (g_queue_is_empty (&session->sent))
    mail_counter_add (MAIL_COUNTER_ROUND_TRIPS, 1);
  mail_counter_add (MAIL_COUNTER_COMMANDS, 1);
  append_line (session, line);
  trace (session, 'C', shown != NULL ? shown : line, -1);
  g_queue_push_tail (&session->sent, command);
}

void
pop3_session_write (Pop3Session *session, guint verb, const char *line, const char *shown)
{
  Pop3Command *command = g_new0 (Pop3Command, 1);

  command->verb = verb;
  put (session, command, line, shown);
}

void
pop3_session_write_answer (Pop3Session *session, const char *line)
{
  mail_counter_add (MAIL_COUNTER_ROUND_TRIPS, 1);
  append_line (session, line);
  trace (session, 'C', "***", -1);
}

void
pop3_session_forget_last (Pop3Session *session)
{
  command_free (g_queue_pop_tail (&session->sent));
}

/* Sends what may be sent: without PIPELINING nothing while an answer is due, and nothing behind
 * QUIT. */
static void
pump (Pop3Session *session)
{
  Pop3Command *command;

  while (session->state == POP3_STATE_READY
         && (command = g_queue_peek_head (&session->waiting)) != NULL)
    {
      const Pop3Command *last = g_queue_peek_tail (&session->sent);
      char line[32];

      if (last != NULL
          && ((session->capa.flags & POP3_CAP_PIPELINING) == 0 || last->verb == POP3_VERB_QUIT))
        return;
      g_queue_pop_head (&session->waiting);
      if (command->verb == POP3_VERB_TOP)
        g_snprintf (line, sizeof line, "TOP %u %u", command->number, command->n_lines);
      else if (command->number != 0)
        g_snprintf (line, sizeof line, "%s %u", verb_names[command->verb], command->number);
      else
        g_strlcpy (line, verb_names[command->verb], sizeof line);
      put (session, command, line, NULL);
    }
}

static gboolean
send_command (Pop3Session *session, Pop3Verb verb, guint32 number, guint32 n_lines,
              const Pop3CommandFuncs *funcs, gpointer user_data)
{
  Pop3Command *command;

  if (session->state != POP3_STATE_READY)
    return FALSE;
  command = g_new0 (Pop3Command, 1);
  command->verb = verb;
  command->number = number;
  command->n_lines = n_lines;
  command->funcs = funcs;
  command->user_data = user_data;
  g_queue_push_tail (&session->waiting, command);
  pump (session);
  return TRUE;
}

gboolean
pop3_session_send (Pop3Session *session, Pop3Verb verb, guint32 number,
                   const Pop3CommandFuncs *funcs, gpointer user_data)
{
  return send_command (session, verb, number, 0, funcs, user_data);
}

gboolean
pop3_session_send_top (Pop3Session *session, guint32 number, guint32 n_lines,
                       const Pop3CommandFuncs *funcs, gpointer user_data)
{
  return send_command (session, POP3_VERB_TOP, number, n_lines, funcs, user_data);
}

const guint8 *
pop3_session_output (const Pop3Session *session, gsize *length_out)
{
  *length_out = session->output->len;
  return session->output->data;
}

void
pop3_session_sent (Pop3Session *session, gsize length)
{
  guint left = session->output->len - length;

  memmove (session->output->data, session->output->data + length, left);
  explicit_bzero (session->output->data + left, length);
  g_byte_array_set_size (session->output, left);
}

void
pop3_session_tls_started (Pop3Session *session)
{
  g_return_if_fail (session->state == POP3_STATE_TLS);
  session->tls = TRUE;
  session->state = POP3_STATE_LOGIN;
  pop3_login_after_tls (session);
}

void
pop3_session_give_secret (Pop3Session *session, const char *secret)
{
  if (session->state != POP3_STATE_SECRET)
    return;
  session->secret = g_strdup (secret);
  session->state = POP3_STATE_LOGIN;
  pop3_login_with_secret (session);
}

/* --- in -------------------------------------------------------------------------------------- */

/* The first of sent has its answer. Takes nothing; text is borrowed. */
static void
finish (Pop3Session *session, gboolean ok, const char *text, gsize length)
{
  Pop3Command *command = g_queue_pop_head (&session->sent);
  g_autoptr (GError) error = NULL;

  session->in_body = FALSE;
  session->progress++;
  if (ok && !session->logged_in && command->verb != POP3_VERB_STLS
      && pop3_reader_pending (&session->reader))
    fail_protocol (session, "the server answered what was not asked");
  else if (command->funcs == NULL)
    pop3_login_answer (session, command->verb, ok, text, length);
  else
    {
      g_autofree char *copy = ok ? g_strndup (text, length) : NULL;
      if (!ok)
        error = pop3_refusal (verb_names[command->verb], text, length, MAIL_ERROR_FAILED, NULL);
      command->funcs->done (command->user_data, copy, error);
      if (command->verb == POP3_VERB_QUIT && session->state != POP3_STATE_ENDED)
        end (session, NULL);
    }
  command_free (command);
  pump (session);
}

static gboolean
is_multi_line (const Pop3Command *command)
{
  switch (command->verb)
    {
    case POP3_VERB_CAPA:
    case POP3_VERB_RETR:
    case POP3_VERB_TOP:
      return TRUE;
    case POP3_VERB_LIST:
    case POP3_VERB_UIDL:
      return command->number == 0;
    default:
      return FALSE;
    }
}

static gboolean
starts_with (const char *line, gsize length, const char *word)
{
  gsize n = strlen (word);

  return length >= n && g_ascii_strncasecmp (line, word, n) == 0
         && (length == n || line[n] == ' ' || line[n] == '\t');
}

/* Nobody asked: a server that has had enough says so before it closes, all else is nonsense. */
static void
handle_unasked (Pop3Session *session, const char *line, gsize length)
{
  g_autofree char *shown = mail_log_escape (line, length, 200);
  gboolean farewell = starts_with (line, length, "-ERR");

  pop3_session_fail (session, g_error_new (MAIL_ERROR,
                                           farewell ? MAIL_ERROR_CONNECTION : MAIL_ERROR_PROTOCOL,
                                           farewell ? "the server ended the session: %s"
                                                    : "the server answered what was not asked: %s",
                                           shown));
}

static void
handle_status (Pop3Session *session, const char *line, gsize length)
{
  Pop3Command *command = g_queue_peek_head (&session->sent);
  gboolean ok = starts_with (line, length, "+OK");
  gsize skip;

  if (command == NULL)
    {
      trace (session, 'S', line, length);
      handle_unasked (session, line, length);
      return;
    }
  if (command->verb == POP3_VERB_AUTH && !ok && length > 0 && line[0] == '+')
    {
      trace (session, 'S', "+ ***", -1);
      skip = length > 1 && line[1] == ' ' ? 2 : 1; /* some write no space */
      pop3_login_challenge (session, line + skip, length - skip);
      return;
    }
  trace (session, 'S', line, length);
  if (command->verb == POP3_VERB_GREETING)
    session->reader.bare_lines = !session->reader.line_crlf;
  if (!ok && !starts_with (line, length, "-ERR"))
    {
      fail_protocol (session, command->verb == POP3_VERB_GREETING
                                  ? "this is not a POP3 server"
                                  : "the server's answer is neither +OK nor -ERR");
      return;
    }
  skip = MIN (length, ok ? 4 : 5);
  if (ok && is_multi_line (command))
    {
      command->text = g_strndup (line + skip, length - skip);
      session->in_body = TRUE;
      pop3_reader_begin_data (&session->reader);
    }
  else
    finish (session, ok, line + skip, length - skip);
}

/* A line of CAPA, LIST or UIDL. */
static void
handle_listing_line (Pop3Session *session, const char *line, gsize length)
{
  Pop3Command *command = g_queue_peek_head (&session->sent);

  session->progress += command->n_octets / PROGRESS_BYTES
                       != (command->n_octets + length + 2) / PROGRESS_BYTES;
  command->n_octets += length + 2;
  trace (session, 'S', line, length);
  if (length == 1 && line[0] == '.')
    {
      g_autofree char *text = g_steal_pointer (&command->text);
      finish (session, TRUE, text, strlen (text));
      return;
    }
  if (length > 0 && line[0] == '.')
    line++, length--;
  if (command->verb == POP3_VERB_CAPA)
    {
      if (!pop3_capa_add (&session->new_capa, line, length))
        fail_protocol (session, "the server's list of capabilities has no end");
    }
  else if (command->funcs->line != NULL)
    command->funcs->line (command->user_data, line, length);
}

static gboolean
step_line (Pop3Session *session)
{
  const char *line;
  gsize length;

  switch (pop3_reader_line (&session->reader, &line, &length))
    {
    case POP3_TOKEN_LINE:
      if (session->in_body)
        handle_listing_line (session, line, length);
      else
        handle_status (session, line, length);
      return TRUE;
    case POP3_TOKEN_TOO_LONG:
      fail_protocol (session, "the server sent a line without end");
      return FALSE;
    default:
      return FALSE;
    }
}

static gboolean
step_data (Pop3Session *session)
{
  Pop3Command *command = g_queue_peek_head (&session->sent);
  const guint8 *data;
  gsize length;

  switch (pop3_reader_data (&session->reader, &data, &length))
    {
    case POP3_TOKEN_DATA:
      session->progress += (command->n_octets + length) / PROGRESS_BYTES
                           - command->n_octets / PROGRESS_BYTES;
      command->n_octets += length;
      if (command->funcs->data != NULL)
        command->funcs->data (command->user_data, data, length);
      return TRUE;
    case POP3_TOKEN_END:
      {
        g_autofree char *text = g_steal_pointer (&command->text);
        finish (session, TRUE, text, strlen (text));
        return TRUE;
      }
    default:
      return FALSE;
    }
}

gboolean
pop3_session_feed (Pop3Session *session, const void *data, gsize length)
{
  gboolean more = TRUE;

  pop3_reader_feed (&session->reader, data, length);
  while (more && session->state != POP3_STATE_ENDED)
    {
      const Pop3Command *command = g_queue_peek_head (&session->sent);

      if (session->state == POP3_STATE_TLS)
        {
          /* RFC 2595 section 4; whatever follows the +OK in clear was put there by somebody else.
           */
          if (pop3_reader_pending (&session->reader))
            pop3_session_fail (session,
                               g_error_new_literal (MAIL_ERROR, MAIL_ERROR_TLS,
                                                    "the server sent bytes between STLS and TLS"));
          break;
        }
      if (session->in_body && (command->verb == POP3_VERB_RETR || command->verb == POP3_VERB_TOP))
        more = step_data (session);
      else
        more = step_line (session);
    }
  pop3_reader_feed (&session->reader, NULL, 0);
  return session->error == NULL;
}

void
pop3_session_lost (Pop3Session *session, const GError *error)
{
  if (session->state == POP3_STATE_ENDED)
    return;
  pop3_session_fail (session, error != NULL
                                  ? g_error_copy (error)
                                  : g_error_new_literal (MAIL_ERROR, MAIL_ERROR_CONNECTION,
                                                         "the server closed the connection"));
}
