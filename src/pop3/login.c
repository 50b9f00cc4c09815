/* SPDX-License-Identifier: MIT
 *
 * From the greeting to the login: STLS, CAPA, the choice of a way to log in, and what the server
 * can do afterwards. What was said before TLS is not believed (RFC 2595 section 4): there is no
 * CAPA before STLS, and a server that answers it with anything but +OK gets nothing more.
 */
#include "pop3/session-private.h"

#include "mailfs/log.h"

#include <stdio.h>
#include <string.h>

#define CHALLENGES_MAX 16
/* RFC 5034 section 4: a longer first answer waits for the server's "+". */
#define INITIAL_LINE_MAX 253

static void
fail (Pop3Session *session, MailErrorCode code, const char *text)
{
  pop3_session_fail (session, g_error_new_literal (MAIL_ERROR, code, text));
}

static void
fail_refused (Pop3Session *session, const char *command, const char *text, gsize length,
              MailErrorCode fallback)
{
  gboolean auth = FALSE;
  GError *error = pop3_refusal (command, text, length, fallback, &auth);

  session->refused = auth;
  pop3_session_fail (session, error);
}

static gboolean
auth_is (const Pop3Session *session, const char *name)
{
  return g_strcmp0 (session->setup.auth, name) == 0;
}

static gboolean
needs_secret (const char *mechanism)
{
  return strcmp (mechanism, "EXTERNAL") != 0 && strcmp (mechanism, "ANONYMOUS") != 0;
}

/* NULL without error: USER and PASS, or APOP. */
static const char *
choose_mechanism (Pop3Session *session, GError **error)
{
  const Pop3Setup *setup = &session->setup;
  const char *none[] = { NULL };
  g_autofree char *upper = setup->auth != NULL ? g_ascii_strup (setup->auth, -1) : NULL;
  const char *blind[] = { upper, NULL };
  const char *const *offered = none;

  if (auth_is (session, "apop"))
    return NULL;
  if (session->capa.mechanisms != NULL)
    offered = (const char *const *)session->capa.mechanisms->pdata;
  else if (auth_is (session, "plain") || auth_is (session, "login"))
    return NULL; /* the same secret in the same clothes */
  else if ((session->capa.flags & POP3_CAP_KNOWN) == 0)
    offered = blind; /* no CAPA: what the user asks for by name is tried */
  return net_sasl_choose (offered, setup->auth, session->tls, setup->user != NULL, error);
}

/* Decides how to log in and asks the driver for the secret. */
static void
choose (Pop3Session *session)
{
  g_autoptr (GError) error = NULL;
  gboolean known = (session->capa.flags & POP3_CAP_KNOWN) != 0;
  gboolean has_user = !known || (session->capa.flags & POP3_CAP_USER) != 0;

  session->mechanism = choose_mechanism (session, &error);
  if (error != NULL)
    {
      pop3_session_fail (session, g_steal_pointer (&error));
      return;
    }
  if (session->mechanism != NULL)
    {
      if (needs_secret (session->mechanism))
        session->state = POP3_STATE_SECRET;
      else
        pop3_login_with_secret (session);
      return;
    }
  if (session->setup.user == NULL)
    fail (session, MAIL_ERROR_AUTH, "the server wants a user name and none was given");
  else if (auth_is (session, "apop") && session->timestamp == NULL)
    fail (session, MAIL_ERROR_AUTH, "the server does not offer APOP");
  else if (!has_user && !session->tls && !auth_is (session, "apop"))
    fail (session, MAIL_ERROR_AUTH, "the server offers no way to log in that can be used");
  else
    {
      /* APOP by itself only under TLS, and only where USER is not there. */
      if (auth_is (session, "apop") || (!has_user && session->tls && session->timestamp != NULL))
        session->mechanism = "APOP";
      session->state = POP3_STATE_SECRET;
    }
}

static gboolean
is_ascii (const char *text)
{
  for (; *text != '\0'; text++)
    if ((guchar)*text >= 0x80)
      return FALSE;
  return TRUE;
}

static void
send_user (Pop3Session *session)
{
  g_autofree char *line = g_strconcat ("USER ", session->setup.user, NULL);

  pop3_session_write (session, POP3_VERB_USER, line, NULL);
}

static void
send_pass (Pop3Session *session)
{
  char *line = g_strconcat ("PASS ", session->secret, NULL);

  pop3_session_write (session, POP3_VERB_PASS, line, "PASS ***");
  net_sasl_wipe (line);
}

/* RFC 1939 section 7. */
static void
send_apop (Pop3Session *session)
{
  char *digested = g_strconcat (session->timestamp, session->secret, NULL);
  char *digest = g_compute_checksum_for_string (G_CHECKSUM_MD5, digested, -1);
  char *line = g_strconcat ("APOP ", session->setup.user, " ", digest, NULL);

  pop3_session_write (session, POP3_VERB_APOP, line, "APOP ***");
  net_sasl_wipe (digested);
  net_sasl_wipe (digest);
  net_sasl_wipe (line);
}

static void
send_auth (Pop3Session *session)
{
  const Pop3Setup *setup = &session->setup;
  g_autoptr (GError) error = NULL;
  g_autofree char *shown = g_strconcat ("AUTH ", session->mechanism, " ***", NULL);
  g_autofree char *bare = g_strconcat ("AUTH ", session->mechanism, NULL);

  session->sasl = net_sasl_new (session->mechanism, "pop", setup->host, setup->port, setup->user,
                                session->secret, &error);
  if (session->sasl != NULL && net_sasl_client_first (session->sasl))
    {
      char *initial = net_sasl_step (session->sasl, NULL, &error);
      char *line;

      if (initial != NULL)
        {
          line = g_strconcat (bare, " ", initial[0] != '\0' ? initial : "=", NULL);
          if (strlen (line) <= INITIAL_LINE_MAX)
            pop3_session_write (session, POP3_VERB_AUTH, line, shown);
          else
            {
              /* Kept as the answer to the server's first challenge, which is empty. */
              net_sasl_wipe (session->secret);
              session->secret = g_strdup (initial);
              session->initial_held = TRUE;
              pop3_session_write (session, POP3_VERB_AUTH, bare, NULL);
            }
          net_sasl_wipe (line);
          net_sasl_wipe (initial);
        }
    }
  else if (session->sasl != NULL)
    pop3_session_write (session, POP3_VERB_AUTH, bare, NULL);
  if (error != NULL)
    pop3_session_fail (session, g_steal_pointer (&error));
}

/* UTF8 is done with, or was not needed. */
static void
log_in (Pop3Session *session)
{
  if (session->mechanism == NULL)
    send_user (session);
  else if (strcmp (session->mechanism, "APOP") == 0)
    send_apop (session);
  else
    send_auth (session);
}

void
pop3_login_with_secret (Pop3Session *session)
{
  const char *user = session->setup.user != NULL ? session->setup.user : "";
  const char *secret = session->secret != NULL ? session->secret : "";

  if (strpbrk (user, "\r\n") != NULL || strpbrk (secret, "\r\n") != NULL)
    {
      fail (session, MAIL_ERROR_AUTH, "the user name or the password holds a line end");
      return;
    }
  if ((session->capa.flags & POP3_CAP_UTF8) != 0
      && (session->setup.utf8 || !is_ascii (user) || !is_ascii (secret)))
    pop3_session_write (session, POP3_VERB_UTF8, "UTF8", NULL);
  else
    log_in (session);
}

void
pop3_login_challenge (Pop3Session *session, const char *text, gsize length)
{
  char *answer = NULL;
  g_autofree char *challenge = g_strndup (text, length);

  if (session->sasl_error != NULL || ++session->n_challenges > CHALLENGES_MAX)
    {
      fail (session, MAIL_ERROR_PROTOCOL, "the server's login dialogue has no end");
      return;
    }
  if (session->initial_held)
    {
      answer = g_steal_pointer (&session->secret);
      session->initial_held = FALSE;
    }
  else
    answer = net_sasl_step (session->sasl, challenge, &session->sasl_error);
  pop3_session_write_answer (session, answer != NULL ? answer : "*");
  net_sasl_wipe (answer);
}

/* --- after the login ------------------------------------------------------------------------- */

static void
make_ready (Pop3Session *session)
{
  session->state = POP3_STATE_READY;
}

/* What was offered before the login may change at it (proxies), so CAPA is asked again. A server
 * without CAPA is asked whether it pipelines by sending two commands at once: if the second was
 * dropped, the answer to a third one shows it, because it cannot be taken for STAT's. */
static void
logged_in (Pop3Session *session)
{
  mail_counter_add (MAIL_COUNTER_CONNECTS, 1);
  session->logged_in = TRUE;
  net_sasl_wipe (session->secret);
  session->secret = NULL;
  g_clear_pointer (&session->sasl, net_sasl_free);
  if ((session->capa.flags & POP3_CAP_KNOWN) == 0)
    {
      pop3_session_write (session, POP3_VERB_PROBE_FIRST, "NOOP", NULL);
      pop3_session_write (session, POP3_VERB_PROBE_SECOND, "STAT", NULL);
      return;
    }
  pop3_session_write (session, POP3_VERB_CAPA, "CAPA", NULL);
  if ((session->capa.flags & POP3_CAP_PIPELINING) != 0)
    make_ready (session);
}

static gboolean
is_stat (const char *text, gsize length)
{
  g_autofree char *copy = g_strndup (text, length);
  unsigned messages, octets;

  return sscanf (copy, "%u %u", &messages, &octets) == 2;
}

static void
probe_answer (Pop3Session *session, guint verb, gboolean ok, const char *text, gsize length)
{
  switch (verb)
    {
    case POP3_VERB_PROBE_FIRST:
      pop3_session_write (session, POP3_VERB_PROBE_THIRD, "NOOP", NULL);
      break;
    case POP3_VERB_PROBE_SECOND:
      if (ok && is_stat (text, length))
        break;
      /* This was the third one's answer: the second was dropped. */
      pop3_session_forget_last (session);
      make_ready (session);
      break;
    default:
      session->capa.flags |= POP3_CAP_PIPELINING;
      make_ready (session);
      break;
    }
}

static void
capa_answer (Pop3Session *session, gboolean ok)
{
  if (ok)
    {
      pop3_capa_finish (&session->new_capa);
      pop3_capa_clear (&session->capa);
      session->capa = session->new_capa;
      session->new_capa = (Pop3Capa) { 0 };
    }
  if (!session->logged_in)
    choose (session);
  else if (session->state == POP3_STATE_LOGIN)
    make_ready (session);
}

static void
greeting_answer (Pop3Session *session, gboolean ok, const char *text, gsize length)
{
  if (!ok)
    {
      fail_refused (session, "the connection", text, length, MAIL_ERROR_CONNECTION);
      return;
    }
  session->timestamp = pop3_greeting_timestamp (text, length);
  if (!session->tls && session->setup.need_tls)
    pop3_session_write (session, POP3_VERB_STLS, "STLS", NULL);
  else
    pop3_session_write (session, POP3_VERB_CAPA, "CAPA", NULL);
}

void
pop3_login_after_tls (Pop3Session *session)
{
  pop3_capa_clear (&session->capa);
  /* APOP cannot be had without it, and its digest will travel under TLS. */
  if (!auth_is (session, "apop"))
    g_clear_pointer (&session->timestamp, g_free);
  pop3_session_write (session, POP3_VERB_CAPA, "CAPA", NULL);
}

static void
auth_answer (Pop3Session *session, gboolean ok, const char *text, gsize length)
{
  if (session->sasl_error != NULL)
    pop3_session_fail (session, g_steal_pointer (&session->sasl_error));
  else if (ok && session->sasl != NULL && !net_sasl_finished_ok (session->sasl))
    fail (session, MAIL_ERROR_AUTH, "the server could not prove that it knows the password");
  else if (ok)
    logged_in (session);
  else
    fail_refused (session, "the login", text, length, MAIL_ERROR_AUTH);
}

void
pop3_login_answer (Pop3Session *session, guint verb, gboolean ok, const char *text, gsize length)
{
  switch (verb)
    {
    case POP3_VERB_GREETING:
      greeting_answer (session, ok, text, length);
      break;
    case POP3_VERB_STLS:
      if (ok)
        session->state = POP3_STATE_TLS;
      else
        fail_refused (session, "STLS, so nothing was sent to it", text, length, MAIL_ERROR_TLS);
      break;
    case POP3_VERB_CAPA:
      capa_answer (session, ok);
      break;
    case POP3_VERB_UTF8:
      log_in (session);
      break;
    case POP3_VERB_USER:
      if (ok)
        send_pass (session);
      else
        fail_refused (session, "the user name", text, length, MAIL_ERROR_AUTH);
      break;
    case POP3_VERB_PASS:
    case POP3_VERB_APOP:
    case POP3_VERB_AUTH:
      auth_answer (session, ok, text, length);
      break;
    default:
      probe_answer (session, verb, ok, text, length);
      break;
    }
}
