/* SPDX-License-Identifier: MIT
 *
 * NetSasl: the choice of a mechanism, and each exchange against GNU SASL's server side or, for the
 * token mechanisms, against the texts of their specifications.
 */
#include "mailfs/error.h"
#include "mailfs/sasl.h"

#include <gsasl.h>
#include <string.h>

static const struct
{
  const char *name, *offered, *wanted;
  gboolean tls, user;
  const char *expected, *error;
} choose_cases[] = {
  { "scram", "PLAIN SCRAM-SHA-1 SCRAM-SHA-256 LOGIN", NULL, TRUE, TRUE, "SCRAM-SHA-256" },
  { "scram-1", "PLAIN SCRAM-SHA-1 LOGIN", NULL, FALSE, TRUE, "SCRAM-SHA-1" },
  { "case", "plain", NULL, TRUE, TRUE, "PLAIN" },
  { "tls-plain", "CRAM-MD5 LOGIN PLAIN", NULL, TRUE, TRUE, "PLAIN" },
  { "clear-cram", "PLAIN LOGIN CRAM-MD5", NULL, FALSE, TRUE, "CRAM-MD5" },
  { "login", "GSSAPI LOGIN", NULL, TRUE, TRUE, "LOGIN" },
  { "plus", "SCRAM-SHA-256-PLUS", NULL, TRUE, TRUE, NULL },
  { "unknown", "GSSAPI NTLM", NULL, TRUE, TRUE, NULL },
  { "nothing", NULL, NULL, TRUE, TRUE, NULL },
  { "only-wanted", "XOAUTH2 OAUTHBEARER EXTERNAL ANONYMOUS", NULL, TRUE, TRUE, NULL },
  { "no-user", "PLAIN", NULL, TRUE, FALSE, NULL },
  { "wanted", "SCRAM-SHA-256 plain", "plain", TRUE, TRUE, "PLAIN" },
  { "wanted-external", "PLAIN EXTERNAL", "external", TRUE, FALSE, "EXTERNAL" },
  { "wanted-anonymous", "PLAIN ANONYMOUS", "anonymous", TRUE, FALSE, "ANONYMOUS" },
  { "wanted-token", "PLAIN XOAUTH2", "xoauth2", TRUE, TRUE, "XOAUTH2" },
  { "wanted-bearer", "PLAIN OAUTHBEARER", "oauthbearer", TRUE, TRUE, "OAUTHBEARER" },
  { "wanted-missing", "PLAIN LOGIN", "cram-md5", TRUE, TRUE, NULL,
    "does not offer auth=cram-md5, but PLAIN LOGIN" },
  { "wanted-none", NULL, "plain", TRUE, TRUE, NULL, "no SASL mechanism at all" },
  { "wanted-hostile", "\033[2J", "plain", TRUE, TRUE, NULL, "but \\x1b[2J" },
  { "wanted-login", "PLAIN", "login", TRUE, TRUE, NULL },
  { "wanted-apop", "PLAIN", "apop", TRUE, TRUE, NULL },
};

static void
test_choose (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_auto (GStrv) offered = choose_cases[i].offered != NULL
                               ? g_strsplit (choose_cases[i].offered, " ", -1)
                               : NULL;
  g_autoptr (GError) error = NULL;
  const char *chosen = net_sasl_choose ((const char *const *)offered, choose_cases[i].wanted,
                                        choose_cases[i].tls, choose_cases[i].user, &error);

  g_assert_cmpstr (chosen, ==, choose_cases[i].expected);
  if (choose_cases[i].error == NULL)
    g_assert_no_error (error);
  else
    {
      g_assert_error (error, MAIL_ERROR, MAIL_ERROR_AUTH);
      g_assert_nonnull (strstr (error->message, choose_cases[i].error));
    }
}

static int
server_callback (Gsasl *context, Gsasl_session *session, Gsasl_property property)
{
  const char *user, *password, *authzid;

  switch (property)
    {
    case GSASL_PASSWORD:
      return gsasl_property_set (session, GSASL_PASSWORD, "pencil ü");
    case GSASL_VALIDATE_SIMPLE:
      user = gsasl_property_get (session, GSASL_AUTHID);
      password = gsasl_property_fast (session, GSASL_PASSWORD);
      return g_strcmp0 (user, "user@example") == 0 && g_strcmp0 (password, "pencil ü") == 0
                 ? GSASL_OK
                 : GSASL_AUTHENTICATION_ERROR;
    case GSASL_VALIDATE_EXTERNAL:
      authzid = gsasl_property_fast (session, GSASL_AUTHZID);
      return authzid == NULL || *authzid == '\0' || strcmp (authzid, "user@example") == 0
                 ? GSASL_OK
                 : GSASL_AUTHENTICATION_ERROR;
    case GSASL_VALIDATE_ANONYMOUS:
      return GSASL_OK;
    default:
      return GSASL_NO_CALLBACK;
    }
}

typedef struct
{
  gboolean server_ok, proved;
  int rounds;
  char *error;
} Exchange;

/* Runs the exchange to its end, as IMAP without SASL-IR does: an empty challenge first. */
static Exchange
run_exchange (const char *mechanism, const char *user, const char *secret)
{
  Exchange exchange = { 0 };
  g_autoptr (GError) error = NULL;
  g_autoptr (NetSasl) sasl = net_sasl_new (mechanism, "imap", "mail.example", 143, user, secret,
                                           &error);
  Gsasl *context;
  Gsasl_session *session;
  char *challenge = NULL;
  int rc = GSASL_NEEDS_MORE;

  g_assert_no_error (error);
  g_assert_cmpint (gsasl_init (&context), ==, GSASL_OK);
  gsasl_callback_set (context, server_callback);
  g_assert_cmpint (gsasl_server_start (context, mechanism, &session), ==, GSASL_OK);
  gsasl_property_set (session, GSASL_SERVICE, "imap");
  gsasl_property_set (session, GSASL_HOSTNAME, "mail.example");
  if (!net_sasl_client_first (sasl))
    rc = gsasl_step64 (session, NULL, &challenge);
  while (rc == GSASL_NEEDS_MORE || (challenge != NULL && *challenge != '\0'))
    {
      char *response = net_sasl_step (sasl, challenge, &error);

      exchange.rounds++;
      gsasl_free (challenge);
      challenge = NULL;
      if (response == NULL)
        break;
      if (rc == GSASL_NEEDS_MORE)
        rc = gsasl_step64 (session, response, &challenge);
      net_sasl_wipe (response);
    }
  exchange.server_ok = rc == GSASL_OK;
  exchange.proved = net_sasl_finished_ok (sasl);
  exchange.error = error != NULL ? g_strdup (error->message) : NULL;
  gsasl_free (challenge);
  gsasl_finish (session);
  gsasl_done (context);
  return exchange;
}

static const struct
{
  const char *name, *mechanism, *user, *secret;
  gboolean ok;
} exchange_cases[] = {
  { "plain", "PLAIN", "user@example", "pencil ü", TRUE },
  { "plain-wrong", "PLAIN", "user@example", "pen", FALSE },
  { "login", "LOGIN", "user@example", "pencil ü", TRUE },
  { "login-wrong", "LOGIN", "user@example", "pen", FALSE },
  { "cram-md5", "CRAM-MD5", "user@example", "pencil ü", TRUE },
  { "cram-md5-wrong", "CRAM-MD5", "user@example", "pen", FALSE },
  { "scram-sha-1", "SCRAM-SHA-1", "user@example", "pencil ü", TRUE },
  { "scram-sha-1-wrong", "SCRAM-SHA-1", "user@example", "pen", FALSE },
  { "scram-sha-256", "SCRAM-SHA-256", "user,=x", "pencil ü", TRUE },
  { "scram-sha-256-wrong", "SCRAM-SHA-256", "user@example", "pen", FALSE },
  { "external", "EXTERNAL", NULL, NULL, TRUE },
  { "external-user", "EXTERNAL", "user@example", NULL, TRUE },
  { "anonymous", "ANONYMOUS", NULL, NULL, TRUE },
};

static void
test_exchange (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  Exchange exchange = run_exchange (exchange_cases[i].mechanism, exchange_cases[i].user,
                                    exchange_cases[i].secret);

  g_assert_cmpint (exchange.server_ok, ==, exchange_cases[i].ok);
  if (exchange_cases[i].ok)
    {
      g_assert_cmpstr (exchange.error, ==, NULL);
      g_assert_true (exchange.proved);
    }
  else if (g_str_has_prefix (exchange_cases[i].mechanism, "SCRAM"))
    g_assert_false (exchange.proved);
  g_free (exchange.error);
}

static NetSasl *
start (const char *mechanism, const char *secret)
{
  g_autoptr (GError) error = NULL;
  NetSasl *sasl = net_sasl_new (mechanism, "imap", "server.example.com", 143, "user@example.com",
                                secret, &error);

  g_assert_no_error (error);
  return sasl;
}

static char *
step (NetSasl *sasl, const char *challenge, MailErrorCode code)
{
  g_autofree char *base64 = challenge != NULL
                                ? g_base64_encode ((const guchar *)challenge, strlen (challenge))
                                : NULL;
  g_autoptr (GError) error = NULL;
  g_autofree char *response = net_sasl_step (sasl, base64, &error);
  char *text;
  gsize length;

  if (code != MAIL_ERROR_FAILED)
    {
      g_assert_null (response);
      g_assert_error (error, MAIL_ERROR, (int)code);
      return NULL;
    }
  g_assert_no_error (error);
  if (*response == '\0')
    return g_strdup ("");
  text = (char *)g_base64_decode (response, &length);
  text = g_realloc (text, length + 1);
  text[length] = '\0';
  return text;
}

#define OK MAIL_ERROR_FAILED

/* A server that says OK before, or instead of, its signature. */
static void
test_scram_unproved (void)
{
  g_autoptr (NetSasl) sasl = start ("SCRAM-SHA-256", "pencil");
  g_autofree char *first = step (sasl, NULL, OK);
  g_autofree char *nonce = g_strdup (strstr (first, ",r=") + 3);
  g_autofree char *challenge = g_strdup_printf ("r=%sxyz,s=c2FsdA==,i=4096", nonce);
  g_autofree char *final = NULL;

  g_assert_true (g_str_has_prefix (first, "n,,n=user@example.com,r="));
  g_assert_false (net_sasl_finished_ok (sasl));
  final = step (sasl, challenge, OK);
  g_assert_nonnull (strstr (final, ",p="));
  g_assert_false (net_sasl_finished_ok (sasl));
  step (sasl, "v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", MAIL_ERROR_AUTH);
  g_assert_false (net_sasl_finished_ok (sasl));
  step (sasl, "v=", MAIL_ERROR_AUTH);
}

static const struct
{
  const char *name, *challenge; /* %s: our nonce */
  MailErrorCode code;
} scram_cases[] = {
  { "other-nonce", "r=abc,s=c2FsdA==,i=4096", MAIL_ERROR_AUTH },
  { "many-iterations", "r=%sx,s=c2FsdA==,i=4000000000", MAIL_ERROR_PROTOCOL },
  { "endless-iterations", "r=%sx,s=c2FsdA==,i=99999999999999999999999", MAIL_ERROR_PROTOCOL },
  { "no-salt", "r=%sx,i=4096", MAIL_ERROR_AUTH },
  { "no-count", "r=%sx,s=c2FsdA==", MAIL_ERROR_AUTH },
  { "empty", "", MAIL_ERROR_AUTH },
  { "garbage", "\001\002%%", MAIL_ERROR_AUTH },
};

static void
test_scram_hostile (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autoptr (NetSasl) sasl = start ("SCRAM-SHA-1", "pencil");
  g_autofree char *first = step (sasl, NULL, OK);
  g_auto (GStrv) parts = g_strsplit (scram_cases[i].challenge, "%s", 2);
  g_autofree char *challenge = g_strjoinv (strstr (first, ",r=") + 3, parts);

  step (sasl, challenge, scram_cases[i].code);
  g_assert_false (net_sasl_finished_ok (sasl));
}

static void
test_no_base64 (void)
{
  static const char *const mechanisms[] = { "CRAM-MD5", "SCRAM-SHA-256", "XOAUTH2" };

  for (gsize i = 0; i < G_N_ELEMENTS (mechanisms); i++)
    {
      g_autoptr (NetSasl) sasl = start (mechanisms[i], "pencil");
      g_autoptr (GError) error = NULL;

      g_assert_null (net_sasl_step (sasl, "!!!", &error));
      g_assert_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL);
    }
}

static void
test_once_too_often (void)
{
  g_autoptr (NetSasl) sasl = start ("PLAIN", "pencil");

  g_free (step (sasl, "", OK));
  step (sasl, "more?", MAIL_ERROR_PROTOCOL);
}

/* The examples of RFC 7628 section 4.1 and 4.3. */
static void
test_oauthbearer (void)
{
  g_autoptr (NetSasl) sasl = start ("OAUTHBEARER", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==");
  g_autofree char *first = step (sasl, NULL, OK);
  g_autofree char *answer = NULL;

  g_assert_true (net_sasl_client_first (sasl));
  g_assert_cmpstr (first, ==,
                   "n,a=user@example.com,\001host=server.example.com\001port=143\001auth=Bearer "
                   "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\001\001");
  g_assert_true (net_sasl_finished_ok (sasl));
  g_assert_null (net_sasl_server_error (sasl));
  answer = step (sasl, "{\"status\":\"invalid_token\"}", OK);
  g_assert_cmpstr (answer, ==, "\001");
  g_assert_cmpstr (net_sasl_server_error (sasl), ==, "{\"status\":\"invalid_token\"}");
  g_assert_false (net_sasl_finished_ok (sasl));
  step (sasl, "again", MAIL_ERROR_PROTOCOL);
}

static void
test_oauthbearer_name (void)
{
  g_autoptr (NetSasl) sasl = net_sasl_new ("oauthbearer", "pop", "h", 995, "a,b=c", "t", NULL);
  g_autofree char *first = step (sasl, "", OK);

  g_assert_cmpstr (first, ==, "n,a=a=2Cb=3Dc,\001host=h\001port=995\001auth=Bearer t\001\001");
}

static void
test_xoauth2 (void)
{
  g_autoptr (NetSasl) sasl = start ("XOAUTH2", "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg");
  g_autofree char *first = step (sasl, NULL, OK);
  g_autofree char *answer = NULL;

  g_assert_cmpstr (first, ==,
                   "user=user@example.com\001auth=Bearer "
                   "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg\001\001");
  answer = step (sasl, "{\"status\":\"400\"}", OK);
  g_assert_cmpstr (answer, ==, "");
  g_assert_cmpstr (net_sasl_server_error (sasl), ==, "{\"status\":\"400\"}");
}

static const struct
{
  const char *name, *mechanism, *user, *secret;
} refused_cases[] = {
  { "unknown", "DIGEST-MD5", "u", "p" },
  { "plus", "SCRAM-SHA-256-PLUS", "u", "p" },
  { "no-user", "PLAIN", NULL, "p" },
  { "no-password", "PLAIN", "u", NULL },
  { "no-token", "XOAUTH2", "u", "" },
  { "token-line", "XOAUTH2", "u", "a\001b" },
  { "token-space", "OAUTHBEARER", "u", "a b" },
  { "token-user", "XOAUTH2", "u\001", "t" },
};

static void
test_refused (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autoptr (GError) error = NULL;

  g_assert_null (net_sasl_new (refused_cases[i].mechanism, "imap", "h", 143, refused_cases[i].user,
                               refused_cases[i].secret, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_AUTH);
}

#define ADD(table, prefix, function)                                                               \
  for (gsize i = 0; i < G_N_ELEMENTS (table); i++)                                                 \
    {                                                                                              \
      g_autofree char *path = g_strconcat (prefix, table[i].name, NULL);                           \
      g_test_add_data_func (path, GSIZE_TO_POINTER (i), function);                                 \
    }

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  ADD (choose_cases, "/sasl/choose/", test_choose);
  ADD (exchange_cases, "/sasl/exchange/", test_exchange);
  ADD (scram_cases, "/sasl/scram-hostile/", test_scram_hostile);
  ADD (refused_cases, "/sasl/refused/", test_refused);
  g_test_add_func ("/sasl/scram-unproved", test_scram_unproved);
  g_test_add_func ("/sasl/no-base64", test_no_base64);
  g_test_add_func ("/sasl/once-too-often", test_once_too_often);
  g_test_add_func ("/sasl/oauthbearer", test_oauthbearer);
  g_test_add_func ("/sasl/oauthbearer-name", test_oauthbearer_name);
  g_test_add_func ("/sasl/xoauth2", test_xoauth2);
  return g_test_run ();
}
