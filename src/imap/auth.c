/* SPDX-License-Identifier: MIT
 *
 * From the greeting to READY: capabilities, STARTTLS, the login, and what is asked right after it.
 * No credential goes out on a connection without verified TLS, unless the user said tls=off. What
 * the server said before TLS, and its capabilities from before the login, are forgotten. Net
 * thread.
 */
#include "imap/session-private.h"

#include "mailfs/log.h"

#include <string.h>

#define MAX_SASL_STEPS 20 /* a server that asks for ever */

static void before_login (ImapSession *session);
static void after_login (ImapSession *session);

/* --- capabilities ----------------------------------------------------------------------------- */

static const struct
{
  const char *word;
  guint caps;
} cap_words[] = {
  { "ACL", IMAP_CAP_ACL },
  { "COMPRESS=DEFLATE", IMAP_CAP_COMPRESS },
  { "CONDSTORE", IMAP_CAP_CONDSTORE },
  { "ENABLE", IMAP_CAP_ENABLE },
  { "ESEARCH", IMAP_CAP_ESEARCH },
  { "ID", IMAP_CAP_ID },
  { "IDLE", IMAP_CAP_IDLE },
  { "IMAP4REV1", IMAP_CAP_IMAP4REV1 },
  /* RFC 9051 Appendix E: what became part of the base. */
  { "IMAP4REV2", IMAP_CAP_IMAP4REV2 | IMAP_CAP_ENABLE | IMAP_CAP_ESEARCH | IMAP_CAP_IDLE
                     | IMAP_CAP_LITERAL_MINUS | IMAP_CAP_LIST_EXTENDED | IMAP_CAP_LIST_STATUS
                     | IMAP_CAP_MOVE | IMAP_CAP_NAMESPACE | IMAP_CAP_SASL_IR | IMAP_CAP_SPECIAL_USE
                     | IMAP_CAP_UIDPLUS | IMAP_CAP_UNSELECT },
  { "LIST-EXTENDED", IMAP_CAP_LIST_EXTENDED },
  { "LIST-STATUS", IMAP_CAP_LIST_STATUS },
  { "LITERAL+", IMAP_CAP_LITERAL_PLUS },
  { "LITERAL-", IMAP_CAP_LITERAL_MINUS },
  { "LOGINDISABLED", IMAP_CAP_LOGINDISABLED },
  { "MOVE", IMAP_CAP_MOVE },
  { "MULTIAPPEND", IMAP_CAP_MULTIAPPEND },
  { "NAMESPACE", IMAP_CAP_NAMESPACE },
  { "QRESYNC", IMAP_CAP_QRESYNC | IMAP_CAP_CONDSTORE },
  { "QUOTA", IMAP_CAP_QUOTA },
  { "SASL-IR", IMAP_CAP_SASL_IR },
  { "SPECIAL-USE", IMAP_CAP_SPECIAL_USE },
  { "STARTTLS", IMAP_CAP_STARTTLS },
  { "UIDPLUS", IMAP_CAP_UIDPLUS },
  { "UNSELECT", IMAP_CAP_UNSELECT },
};

void
imap_session_set_capabilities (ImapSession *session, const char *const *words)
{
  if (session->state == IMAP_SESSION_DEAD)
    return;
  session->caps = 0;
  session->caps_known = TRUE;
  g_ptr_array_set_size (session->mechanisms, 0);
  for (; *words != NULL; words++)
    {
      if (g_str_has_prefix (*words, "AUTH=") && session->mechanisms->len < 64)
        g_ptr_array_add (session->mechanisms, g_strdup (*words + 5));
      for (guint i = 0; i < G_N_ELEMENTS (cap_words); i++)
        if (strcmp (*words, cap_words[i].word) == 0)
          session->caps |= cap_words[i].caps;
    }
}

static void
forget_capabilities (ImapSession *session)
{
  session->caps = 0;
  session->caps_known = FALSE;
  g_ptr_array_set_size (session->mechanisms, 0);
}

static gboolean
failed (ImapSession *session, const ImapStatus *status, const char *what)
{
  if (status->condition == IMAP_OK)
    return FALSE;
  imap_session_die_error (session, imap_status_error (status, what, FALSE));
  return TRUE;
}

static void
on_capability_done (ImapSession *session, const ImapStatus *status)
{
  if (failed (session, status, "CAPABILITY"))
    return;
  if (!session->caps_known)
    imap_session_die (session, MAIL_ERROR_PROTOCOL, "no answer to CAPABILITY");
  else
    before_login (session);
}

static void
ask_capabilities (ImapSession *session)
{
  imap_session_push (session, imap_command_new ("CAPABILITY"), on_capability_done);
}

/* --- greeting and STARTTLS -------------------------------------------------------------------- */

static void
on_starttls_done (ImapSession *session, const ImapStatus *status)
{
  if (status->condition != IMAP_OK)
    {
      imap_session_die (session, MAIL_ERROR_TLS, "the server refuses STARTTLS");
      return;
    }
  session->state = IMAP_SESSION_WANTS_TLS;
  imap_parser_pause (session->parser);
}

void
imap_session_tls_done (ImapSession *session, gint64 now)
{
  if (session->state != IMAP_SESSION_WANTS_TLS)
    return;
  session->now = now;
  session->state = IMAP_SESSION_LOGIN;
  session->under_tls = TRUE;
  forget_capabilities (session);
  session->delimiter = 0;
  session->qresync = session->qresync_enabled = FALSE;
  imap_session_new_parser (session);
  ask_capabilities (session);
}

void
imap_session_greeting (ImapSession *session, const ImapStatus *status)
{
  g_autofree char *text = mail_log_escape (status->text, -1, 300);

  session->got_greeting = TRUE;
  session->refusal_code = status->code;
  session->state = IMAP_SESSION_LOGIN;
  if (status->tag != NULL || (status->condition != IMAP_OK && status->condition != IMAP_PREAUTH))
    {
      imap_session_die (
          session, status->condition == IMAP_BYE ? MAIL_ERROR_UNREACHABLE : MAIL_ERROR_PROTOCOL,
          "the server greets with: %s", text);
      return;
    }
  session->preauth = status->condition == IMAP_PREAUTH;
  if (session->preauth && session->options.tls == IMAP_TLS_STARTTLS)
    {
      /* RFC 8314 5.1 and CVE-2020-12398: STARTTLS is not possible any more. */
      imap_session_die (session, MAIL_ERROR_TLS, "PREAUTH before TLS");
      return;
    }
  if (status->code == IMAP_CODE_CAPABILITY && !status->malformed)
    imap_session_set_capabilities (session, status->words);
  if (session->preauth)
    after_login (session);
  else if (session->caps_known)
    before_login (session);
  else
    ask_capabilities (session);
}

/* --- login ------------------------------------------------------------------------------------ */

/* Why the login failed, for the user and the log. A server that echoes what we sent is not quoted.
 */
static void
login_refused (ImapSession *session, const ImapStatus *status)
{
  g_autoptr (GError) error = imap_status_error (status, "login", FALSE);
  const char *reason = session->sasl != NULL ? net_sasl_server_error (session->sasl) : NULL;
  g_autofree char *why = reason != NULL ? mail_log_escape (reason, -1, 200) : NULL;
  gboolean echoed = status->condition == IMAP_BAD
                    || (session->secret != NULL && session->secret[0] != '\0'
                        && strstr (status->text, session->secret) != NULL);
  int code = error->code;

  session->refusal_code = status->code;
  if (code != MAIL_ERROR_BUSY && code != MAIL_ERROR_UNREACHABLE && code != MAIL_ERROR_TOO_LARGE
      && code != MAIL_ERROR_TLS)
    code = MAIL_ERROR_AUTH;
  imap_session_die (session, code, "%s%s%s",
                    echoed ? "the server refuses the login" : error->message,
                    why != NULL ? " " : "", why != NULL ? why : "");
}

static void
forget_secret (ImapSession *session)
{
  imap_trace_mask (session->trace, NULL);
  g_clear_pointer (&session->secret, net_sasl_wipe);
  g_clear_pointer (&session->sasl, net_sasl_free);
}

static void
on_login_done (ImapSession *session, const ImapStatus *status)
{
  if (status->condition != IMAP_OK)
    login_refused (session, status);
  else if (session->sasl != NULL
           && (session->sasl_cancelled || !net_sasl_finished_ok (session->sasl)))
    imap_session_die (session, MAIL_ERROR_AUTH,
                      "the server did not prove that it knows the password; not trusted");
  forget_secret (session);
  if (session->state == IMAP_SESSION_DEAD)
    return;
  /* Proxies change the capabilities at login without a word: what was told before is worth nothing
   * unless this very answer tells it anew. */
  if (status->code != IMAP_CODE_CAPABILITY || status->malformed)
    forget_capabilities (session);
  after_login (session);
}

void
imap_session_auth_continue (ImapSession *session, const char *text)
{
  g_autoptr (GError) error = NULL;
  char *response = NULL;

  if (session->sasl_cancelled)
    {
      imap_session_die (session, MAIL_ERROR_PROTOCOL, "a challenge after the exchange was over");
      return;
    }
  if (++session->n_sasl_steps > MAX_SASL_STEPS)
    g_set_error (&error, MAIL_ERROR, MAIL_ERROR_PROTOCOL, "an endless exchange");
  else if (net_sasl_client_first (session->sasl) && !session->sasl_initial_sent)
    {
      session->sasl_initial_sent = TRUE;
      response = net_sasl_step (session->sasl, NULL, &error);
    }
  else
    response = net_sasl_step (session->sasl, text, &error);
  if (response == NULL)
    {
      mail_log_warning ("%s: %s: %s", session->options.host, net_sasl_mechanism (session->sasl),
                        error != NULL ? error->message : "failed");
      session->sasl_cancelled = TRUE;
    }
  imap_trace_output (session->trace, response != NULL ? "***" : "*");
  if (response != NULL)
    g_byte_array_append (session->out, (const guint8 *)response, (guint)strlen (response));
  else
    g_byte_array_append (session->out, (const guint8 *)"*", 1);
  g_byte_array_append (session->out, (const guint8 *)"\r\n", 2);
  net_sasl_wipe (response);
}

static void
start_sasl (ImapSession *session, const char *secret)
{
  const ImapSessionOptions *o = &session->options;
  g_autoptr (ImapCommand) command = NULL;
  g_autoptr (GError) error = NULL;

  session->sasl = net_sasl_new (session->mechanism, "imap", o->host, o->port, o->user, secret,
                                &error);
  if (session->sasl == NULL)
    {
      imap_session_die_error (session, g_steal_pointer (&error));
      return;
    }
  command = imap_command_new ("AUTHENTICATE ");
  imap_command_atom (command, session->mechanism);
  if (net_sasl_client_first (session->sasl) && (session->caps & IMAP_CAP_SASL_IR) != 0)
    {
      char *initial = net_sasl_step (session->sasl, NULL, &error);

      if (initial == NULL)
        {
          imap_session_die_error (session, g_steal_pointer (&error));
          return;
        }
      session->sasl_initial_sent = TRUE;
      imap_command_text (command, " ");
      imap_command_secret_text (command, initial[0] != '\0' ? initial : "=");
      net_sasl_wipe (initial);
    }
  imap_session_push (session, g_steal_pointer (&command), on_login_done);
}

void
imap_session_set_secret (ImapSession *session, const char *secret, gint64 now)
{
  g_autoptr (ImapCommand) command = NULL;
  g_autoptr (GError) error = NULL;

  if (session->state != IMAP_SESSION_WANTS_SECRET)
    return;
  session->now = now;
  session->state = IMAP_SESSION_LOGIN;
  session->login_deadline = now + session->options.timeout_ms;
  session->secret = g_strdup (secret != NULL ? secret : "");
  imap_trace_mask (session->trace, session->secret);
  if (session->mechanism != NULL)
    {
      start_sasl (session, secret);
      return;
    }
  command = imap_command_new ("LOGIN ");
  imap_command_secret (command, session->options.user);
  imap_command_text (command, " ");
  imap_command_secret (command, secret != NULL ? secret : "");
  if (!imap_command_check (command, &error))
    imap_session_die (session, MAIL_ERROR_AUTH, "%s", error->message);
  else
    imap_session_push (session, g_steal_pointer (&command), on_login_done);
}

static void
choose_mechanism (ImapSession *session)
{
  const ImapSessionOptions *o = &session->options;
  g_autoptr (GError) error = NULL;

  g_ptr_array_add (session->mechanisms, NULL);
  session->mechanism = net_sasl_choose ((const char *const *)session->mechanisms->pdata, o->auth,
                                        session->under_tls, o->user != NULL, &error);
  g_ptr_array_set_size (session->mechanisms, (int)session->mechanisms->len - 1);
  if (error != NULL)
    imap_session_die (session, MAIL_ERROR_AUTH, "%s", error->message);
  else if (session->mechanism == NULL && (session->caps & IMAP_CAP_LOGINDISABLED) != 0)
    imap_session_die (session, MAIL_ERROR_AUTH,
                      "the server offers no way to log in that can be used here");
  else if (session->mechanism == NULL && o->user == NULL)
    imap_session_die (session, MAIL_ERROR_AUTH, "no user name");
  else
    session->state = IMAP_SESSION_WANTS_SECRET;
  if (session->state == IMAP_SESSION_WANTS_SECRET && session->mechanism != NULL
      && (strcmp (session->mechanism, "EXTERNAL") == 0
          || strcmp (session->mechanism, "ANONYMOUS") == 0))
    imap_session_set_secret (session, NULL, session->now);
}

/* The capabilities are known; TLS comes first. */
static void
before_login (ImapSession *session)
{
  if (session->options.tls == IMAP_TLS_STARTTLS && !session->under_tls)
    {
      if ((session->caps & IMAP_CAP_STARTTLS) == 0)
        imap_session_die (session, MAIL_ERROR_TLS, "the server does not offer STARTTLS");
      else
        imap_session_push (session, imap_command_new ("STARTTLS"), on_starttls_done);
      return;
    }
  choose_mechanism (session);
}

/* --- after the login -------------------------------------------------------------------------- */

static void
on_enable_done (ImapSession *session, const ImapStatus *status)
{
  if (status->condition != IMAP_OK || !session->qresync_enabled)
    session->qresync = FALSE;
}

/* What the server can do is known: these go out together with the first tasks. */
static void
become_ready (ImapSession *session)
{
  session->state = IMAP_SESSION_READY;
  session->progress_at = session->now;
  if ((session->caps & IMAP_CAP_ENABLE) != 0 && (session->caps & IMAP_CAP_QRESYNC) != 0)
    {
      /* Taken as granted for what follows in the same pipeline; a refusal takes it back. */
      session->qresync = TRUE;
      imap_session_push (session, imap_command_new ("ENABLE QRESYNC"), on_enable_done);
    }
  if ((session->caps & IMAP_CAP_ID) != 0)
    imap_session_push (
        session, imap_command_new ("ID (\"name\" \"mailfs\" \"version\" \"" MAILFS_VERSION "\")"),
        NULL);
  if ((session->caps & IMAP_CAP_NAMESPACE) != 0)
    imap_session_push (session, imap_command_new ("NAMESPACE"), NULL);
}

static void
on_final_capability_done (ImapSession *session, const ImapStatus *status)
{
  if (failed (session, status, "CAPABILITY"))
    return;
  become_ready (session);
}

static void
after_login (ImapSession *session)
{
  mail_counter_add (MAIL_COUNTER_CONNECTS, 1);
  if (session->caps_known)
    become_ready (session);
  else
    imap_session_push (session, imap_command_new ("CAPABILITY"), on_final_capability_done);
}
