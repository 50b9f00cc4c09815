/* SPDX-License-Identifier: MIT
 *
 * SASL: GNU SASL for what it knows, XOAUTH2 and OAUTHBEARER here. Any one thread per object. Knows
 * no protocol and does no I/O.
 */
#include "mailfs/sasl.h"

#include "mailfs/error.h"
#include "mailfs/log.h"

#include <gsasl.h>
#include <string.h>

/* PBKDF2 runs in the net thread: a server must not be able to keep it busy for minutes. */
#define SCRAM_ITERATIONS_MAX 1000000

struct NetSasl
{
  const char *mechanism; /* static */
  Gsasl *context;        /* NULL for the token mechanisms */
  Gsasl_session *session;
  char *first; /* the token mechanisms' initial response, wiped once sent */
  gboolean done, failed;
  char *server_error;
};

static const struct
{
  const char *name;
  gboolean client_first;
} mechanisms[] = {
  { "SCRAM-SHA-256", TRUE }, { "SCRAM-SHA-1", TRUE }, { "PLAIN", TRUE },
  { "LOGIN", FALSE },        { "CRAM-MD5", FALSE },   { "XOAUTH2", TRUE },
  { "OAUTHBEARER", TRUE },   { "EXTERNAL", TRUE },    { "ANONYMOUS", TRUE },
};

/* Under TLS a password in the clear of PLAIN lets the server keep hashes; CRAM-MD5 makes it keep
   the password itself. Without TLS only the challenge counts. */
static const char *const order_tls[] = { "SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN", "LOGIN",
                                         "CRAM-MD5" };
static const char *const order_clear[] = { "SCRAM-SHA-256", "SCRAM-SHA-1", "CRAM-MD5", "PLAIN",
                                           "LOGIN" };

static gboolean
is_offered (const char *const *offered, const char *name)
{
  for (gsize i = 0; offered != NULL && offered[i] != NULL; i++)
    if (g_ascii_strcasecmp (offered[i], name) == 0)
      return TRUE;
  return FALSE;
}

static int
find_mechanism (const char *name)
{
  for (gsize i = 0; i < G_N_ELEMENTS (mechanisms); i++)
    if (g_ascii_strcasecmp (mechanisms[i].name, name) == 0)
      return (int)i;
  return -1;
}

static const char *
choose_wanted (const char *const *offered, const char *wanted, GError **error)
{
  int found = find_mechanism (wanted);
  g_autofree char *list = NULL;
  g_autofree char *text = NULL;

  if (found >= 0 && is_offered (offered, wanted))
    return mechanisms[found].name;
  /* Both protocols have commands of their own for these. */
  if (strcmp (wanted, "login") == 0 || strcmp (wanted, "apop") == 0)
    return NULL;
  list = offered != NULL ? g_strjoinv (" ", (char **)offered) : g_strdup ("");
  text = mail_log_escape (list, -1, 200);
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_AUTH, "the server does not offer auth=%s, but %s",
               wanted, *text != '\0' ? text : "no SASL mechanism at all");
  return NULL;
}

const char *
net_sasl_choose (const char *const *offered, const char *wanted, gboolean tls, gboolean have_user,
                 GError **error)
{
  const char *const *order = tls ? order_tls : order_clear;

  if (wanted != NULL)
    return choose_wanted (offered, wanted, error);
  for (gsize i = 0; have_user && i < G_N_ELEMENTS (order_tls); i++)
    if (is_offered (offered, order[i]))
      return order[i];
  return NULL;
}

static gboolean
set_auth_error (GError **error, const char *mechanism, const char *text)
{
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_AUTH, "%s: %s", mechanism, text);
  return FALSE;
}

/* ',' and '=' have a meaning in the GS2 header (RFC 5801 section 4). */
static void
append_saslname (GString *out, const char *name)
{
  for (const char *p = name; *p != '\0'; p++)
    if (*p == ',')
      g_string_append (out, "=2C");
    else if (*p == '=')
      g_string_append (out, "=3D");
    else
      g_string_append_c (out, *p);
}

/* Allocated at once in its full size, so that no copy of the token is left behind by growing. */
static gboolean
make_token_response (NetSasl *sasl, const char *host, guint16 port, const char *user,
                     const char *token, GError **error)
{
  GString *text;

  if (token == NULL || *token == '\0')
    return set_auth_error (error, sasl->mechanism, "there is no token");
  if (user == NULL || strchr (user, 1) != NULL)
    return set_auth_error (error, sasl->mechanism, "the user name is missing or not usable");
  for (const char *p = token; *p != '\0'; p++)
    if (!g_ascii_isgraph (*p))
      return set_auth_error (error, sasl->mechanism, "what came as token is not one");
  text = g_string_sized_new (3 * strlen (user) + strlen (host) + strlen (token) + 128);
  if (strcmp (sasl->mechanism, "XOAUTH2") == 0)
    g_string_append_printf (text, "user=%s", user);
  else
    {
      g_string_append (text, "n,a=");
      append_saslname (text, user);
      g_string_append_printf (text, ",\001host=%s\001port=%u", host, port);
    }
  g_string_append (text, "\001auth=Bearer ");
  g_string_append (text, token);
  g_string_append (text, "\001\001");
  sasl->first = g_string_free (text, FALSE);
  return TRUE;
}

static gboolean
start_gsasl (NetSasl *sasl, const char *service, const char *host, const char *user,
             const char *secret, GError **error)
{
  gboolean external = strcmp (sasl->mechanism, "EXTERNAL") == 0;
  gboolean anonymous = strcmp (sasl->mechanism, "ANONYMOUS") == 0;
  int rc;

  if (!external && !anonymous && (user == NULL || secret == NULL))
    return set_auth_error (error, sasl->mechanism, "user name or password is missing");
  rc = gsasl_init (&sasl->context);
  if (rc == GSASL_OK)
    rc = gsasl_client_start (sasl->context, sasl->mechanism, &sasl->session);
  if (rc != GSASL_OK)
    return set_auth_error (error, sasl->mechanism, gsasl_strerror (rc));
  gsasl_property_set (sasl->session, GSASL_SERVICE, service);
  gsasl_property_set (sasl->session, GSASL_HOSTNAME, host);
  if (external)
    gsasl_property_set (sasl->session, GSASL_AUTHZID, user != NULL ? user : "");
  else if (anonymous)
    gsasl_property_set (sasl->session, GSASL_ANONYMOUS_TOKEN, "mailfs");
  else
    {
      gsasl_property_set (sasl->session, GSASL_AUTHID, user);
      gsasl_property_set (sasl->session, GSASL_PASSWORD, secret);
    }
  return TRUE;
}

NetSasl *
net_sasl_new (const char *mechanism, const char *service, const char *host, guint16 port,
              const char *user, const char *secret, GError **error)
{
  g_autoptr (NetSasl) sasl = g_new0 (NetSasl, 1);
  int found = find_mechanism (mechanism);
  gboolean ok;

  if (found < 0)
    {
      set_auth_error (error, mechanism, "mailfs does not know this mechanism");
      return NULL;
    }
  sasl->mechanism = mechanisms[found].name;
  if (strcmp (sasl->mechanism, "XOAUTH2") == 0 || strcmp (sasl->mechanism, "OAUTHBEARER") == 0)
    ok = make_token_response (sasl, host, port, user, secret, error);
  else
    ok = start_gsasl (sasl, service, host, user, secret, error);
  return ok ? g_steal_pointer (&sasl) : NULL;
}

void
net_sasl_wipe (char *text)
{
  if (text != NULL)
    explicit_bzero (text, strlen (text));
  g_free (text);
}

void
net_sasl_free (NetSasl *sasl)
{
  if (sasl == NULL)
    return;
  if (sasl->session != NULL)
    {
      /* The library frees its copies without wiping them. */
      const char *kept = gsasl_property_fast (sasl->session, GSASL_PASSWORD);

      if (kept != NULL)
        explicit_bzero ((char *)kept, strlen (kept));
      gsasl_finish (sasl->session);
    }
  if (sasl->context != NULL)
    gsasl_done (sasl->context);
  net_sasl_wipe (sasl->first);
  g_free (sasl->server_error);
  g_free (sasl);
}

const char *
net_sasl_mechanism (NetSasl *sasl)
{
  return sasl->mechanism;
}

gboolean
net_sasl_client_first (NetSasl *sasl)
{
  return mechanisms[find_mechanism (sasl->mechanism)].client_first;
}

static gboolean
is_scram (const NetSasl *sasl)
{
  return g_str_has_prefix (sasl->mechanism, "SCRAM-");
}

/* The iteration count of a SCRAM server-first message ("r=…,s=…,i=4096") is bearable. */
static gboolean
check_iterations (const NetSasl *sasl, const char *challenge, GError **error)
{
  const char *count = is_scram (sasl) ? strstr (challenge, ",i=") : NULL;

  if (count == NULL || g_ascii_strtoull (count + 3, NULL, 10) <= SCRAM_ITERATIONS_MAX)
    return TRUE;
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL, "%s: the server asks for too much work",
               sasl->mechanism);
  return FALSE;
}

/* Decodes strictly; NUL-terminated. */
static char *
decode (const NetSasl *sasl, const char *base64, gsize *length, GError **error)
{
  char *raw = NULL;
  char *copy;

  *length = 0;
  if (*base64 == '\0')
    return g_strdup ("");
  if (gsasl_base64_from (base64, strlen (base64), &raw, length) != GSASL_OK)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL,
                   "%s: the server's challenge is no base64", sasl->mechanism);
      return NULL;
    }
  copy = g_malloc (*length + 1);
  memcpy (copy, raw, *length);
  copy[*length] = '\0';
  gsasl_free (raw);
  return copy;
}

static char *
encode (const char *raw, gsize length)
{
  return length > 0 ? g_base64_encode ((const guchar *)raw, length) : g_strdup ("");
}

/* A challenge after the first response is an error report, which must be answered before the
   server says NO (RFC 7628 section 3.2.3; XOAUTH2 wants an empty line). */
static char *
token_step (NetSasl *sasl, const char *challenge, GError **error)
{
  if (!sasl->done)
    {
      char *response = encode (sasl->first, strlen (sasl->first));

      net_sasl_wipe (g_steal_pointer (&sasl->first));
      sasl->done = TRUE;
      return response;
    }
  if (sasl->server_error != NULL)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL, "%s: the server asks once too often",
                   sasl->mechanism);
      return NULL;
    }
  sasl->server_error = g_strdup (challenge);
  return strcmp (sasl->mechanism, "XOAUTH2") == 0 ? g_strdup ("") : encode ("\001", 1);
}

static char *
gsasl_one_step (NetSasl *sasl, const char *challenge, gsize length, GError **error)
{
  char *raw = NULL;
  gsize n = 0;
  char *response;
  int rc;

  if (sasl->done)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL, "%s: the server asks once too often",
                   sasl->mechanism);
      return NULL;
    }
  if (!check_iterations (sasl, challenge, error))
    return NULL;
  rc = gsasl_step (sasl->session, challenge, length, &raw, &n);
  if (rc != GSASL_OK && rc != GSASL_NEEDS_MORE)
    {
      set_auth_error (error, sasl->mechanism,
                      rc == GSASL_AUTHENTICATION_ERROR && is_scram (sasl)
                          ? "the server could not prove that it knows the password"
                          : gsasl_strerror (rc));
      return NULL;
    }
  sasl->done = rc == GSASL_OK;
  response = encode (raw, n);
  if (raw != NULL)
    explicit_bzero (raw, n);
  gsasl_free (raw);
  return response;
}

char *
net_sasl_step (NetSasl *sasl, const char *challenge_base64, GError **error)
{
  g_autofree char *challenge = NULL;
  char *response;
  gsize length;

  challenge = decode (sasl, challenge_base64 != NULL ? challenge_base64 : "", &length, error);
  if (challenge == NULL || sasl->failed)
    response = NULL;
  else if (sasl->context == NULL)
    response = token_step (sasl, challenge, error);
  else
    response = gsasl_one_step (sasl, challenge, length, error);
  if (response == NULL && sasl->failed && error != NULL && *error == NULL)
    set_auth_error (error, sasl->mechanism, "the exchange has failed before");
  sasl->failed |= response == NULL;
  return response;
}

gboolean
net_sasl_finished_ok (NetSasl *sasl)
{
  return !sasl->failed && sasl->server_error == NULL && (!is_scram (sasl) || sasl->done);
}

const char *
net_sasl_server_error (NetSasl *sasl)
{
  return sasl->server_error;
}
