/* SPDX-License-Identifier: MIT
 *
 * Account URLs: imap, imaps (RFC 5092), pop, pops, pop3, pop3s (RFC 2384). Any thread. Error texts
 * name the part that is wrong, never the whole, since what was typed may hold a password.
 */
#include "config/url.h"

#include "config/options.h"
#include "mailfs/error.h"

#include <string.h>

static const struct
{
  const char *name;
  MailScheme scheme;
} schemes[] = {
  { "imap", MAIL_SCHEME_IMAP }, { "imaps", MAIL_SCHEME_IMAPS }, { "pop", MAIL_SCHEME_POP },
  { "pops", MAIL_SCHEME_POPS }, { "pop3", MAIL_SCHEME_POP },    { "pop3s", MAIL_SCHEME_POPS },
};

static const struct
{
  const char *name;
  guint16 port;
} defaults[] = {
  [MAIL_SCHEME_IMAP] = { "imap", 143 },
  [MAIL_SCHEME_IMAPS] = { "imaps", 993 },
  [MAIL_SCHEME_POP] = { "pop", 110 },
  [MAIL_SCHEME_POPS] = { "pops", 995 },
};

gboolean
config_url_looks_like_one (const char *source)
{
  return strstr (source, "://") != NULL;
}

static gboolean
parse_scheme (MailConfig *config, const char *name, GError **error)
{
  for (gsize i = 0; i < G_N_ELEMENTS (schemes); i++)
    if (g_ascii_strcasecmp (schemes[i].name, name) == 0)
      {
        config->scheme = schemes[i].scheme;
        return TRUE;
      }
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
               "URL scheme \"%s\" is none of imaps, imap, pops, pop", name);
  return FALSE;
}

/* A decoded component: valid UTF-8 without control characters, which no server could take. */
static char *
decode (const char *what, const char *text, GError **error)
{
  g_autofree char *decoded = g_uri_unescape_string (text, NULL);

  if (decoded == NULL)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                   "bad %%-escape in the URL's %s: write a percent sign as %%25", what);
      return NULL;
    }
  if (!g_utf8_validate (decoded, -1, NULL))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "the URL's %s is not UTF-8", what);
      return NULL;
    }
  for (const char *p = decoded; *p != '\0'; p = g_utf8_next_char (p))
    if (g_unichar_iscntrl (g_utf8_get_char (p)))
      {
        g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "control character in the URL's %s",
                     what);
        return NULL;
      }
  return g_steal_pointer (&decoded);
}

/* ";AUTH=*" is any mechanism; RFC 2384 writes APOP as "+APOP". */
static gboolean
parse_auth (MailConfig *config, const char *parameter, GError **error)
{
  const char *mechanism = NULL;
  const char *known;

  if (g_ascii_strncasecmp (parameter, "AUTH=", 5) != 0)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                   "the URL's user part has a parameter other than ;AUTH=");
      return FALSE;
    }
  mechanism = parameter + 5;
  if (strcmp (mechanism, "*") == 0)
    return TRUE;
  if (*mechanism == '+')
    mechanism++;
  known = config_auth_name (mechanism);
  if (known == NULL)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                   "the URL's ;AUTH= names no mechanism mailfs knows (see auth= in mailfs(5))");
      return FALSE;
    }
  if (config->auth == NULL)
    config->auth = g_strdup (known);
  return TRUE;
}

static gboolean
parse_user (MailConfig *config, const char *text, GError **error)
{
  g_autofree char *user = g_strdup (text);
  char *parameter = strchr (user, ';');

  if (strchr (user, ':') != NULL)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                   "a password in the URL is refused, since mount tables and ps show it: "
                   "use passfile= or passcmd= (a ':' in the user name is written %%3A)");
      return FALSE;
    }
  if (parameter != NULL)
    {
      *parameter++ = '\0';
      if (!parse_auth (config, parameter, error))
        return FALSE;
    }
  if (*user == '\0')
    return TRUE;
  config->user = decode ("user name", user, error);
  return config->user != NULL;
}

static gboolean
parse_port (MailConfig *config, const char *text, GError **error)
{
  guint64 port;

  config->port = defaults[config->scheme].port;
  if (text == NULL || *text == '\0')
    return TRUE;
  if (!g_ascii_string_to_unsigned (text, 10, 1, G_MAXUINT16, &port, NULL))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                   "the URL's port is not a number from 1 to 65535");
      return FALSE;
    }
  config->port = (guint16)port;
  return TRUE;
}

static gboolean
parse_literal (MailConfig *config, const char *text, GError **error)
{
  const char *close = strchr (text, ']');
  g_autofree char *literal = NULL;
  g_autoptr (GInetAddress) address = NULL;

  if (close == NULL || (close[1] != '\0' && close[1] != ':'))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                   "an IPv6 address in a URL is written [address] or [address]:port");
      return FALSE;
    }
  literal = g_strndup (text + 1, (gsize)(close - text - 1));
  address = g_inet_address_new_from_string (literal);
  if (address == NULL || g_inet_address_get_family (address) != G_SOCKET_FAMILY_IPV6)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "\"%s\" is not an IPv6 address", literal);
      return FALSE;
    }
  config->host = g_inet_address_to_string (address);
  return parse_port (config, close[1] == ':' ? close + 2 : NULL, error);
}

static gboolean
is_host_name (const char *host)
{
  if (*host == '\0' || *host == '.' || *host == '-' || strlen (host) > 253)
    return FALSE;
  for (const char *p = host; *p != '\0'; p++)
    if (!g_ascii_isalnum (*p) && strchr ("-._", *p) == NULL)
      return FALSE;
  return TRUE;
}

static gboolean
parse_host (MailConfig *config, const char *text, GError **error)
{
  g_autofree char *raw = NULL;
  g_autofree char *decoded = NULL;
  g_autofree char *ascii = NULL;
  char *colon;

  if (*text == '[')
    return parse_literal (config, text, error);
  raw = g_strdup (text);
  colon = strchr (raw, ':');
  if (colon != NULL && strchr (colon + 1, ':') != NULL)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                   "an IPv6 address in a URL is written [address] or [address]:port");
      return FALSE;
    }
  if (colon != NULL)
    *colon++ = '\0';
  if (*raw == '\0')
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                   "the URL names no host: write %s://user@host/", defaults[config->scheme].name);
      return FALSE;
    }
  decoded = decode ("host name", raw, error);
  if (decoded == NULL)
    return FALSE;
  ascii = g_hostname_to_ascii (decoded);
  if (ascii == NULL || !is_host_name (ascii))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "\"%s\" is not a host name", decoded);
      return FALSE;
    }
  config->host = g_ascii_strdown (ascii, -1);
  return parse_port (config, colon, error);
}

static gboolean
parse_path (MailConfig *config, const char *path, GError **error)
{
  g_autofree char *encoded = g_strdup (path);
  gsize length = strlen (encoded);

  while (length > 0 && encoded[length - 1] == '/')
    encoded[--length] = '\0';
  if (length == 0)
    return TRUE;
  if (config->scheme == MAIL_SCHEME_POP || config->scheme == MAIL_SCHEME_POPS)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                   "a POP3 server has no mailboxes: the URL must end after the host");
      return FALSE;
    }
  if (strpbrk (encoded, ";?#") != NULL)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                   "the URL must end in a mailbox, not in a message or a search "
                   "(a ';', '?' or '#' in its name is written %%3B, %%3F, %%23)");
      return FALSE;
    }
  config->mailbox = decode ("mailbox", encoded, error);
  return config->mailbox != NULL;
}

static char *
canonical (const MailConfig *config)
{
  GString *url = g_string_new (defaults[config->scheme].name);
  gboolean literal = strchr (config->host, ':') != NULL;

  g_string_append (url, "://");
  if (config->user != NULL)
    {
      g_string_append_uri_escaped (url, config->user, "!$'()*+,&=", FALSE);
      g_string_append_c (url, '@');
    }
  g_string_append_printf (url, literal ? "[%s]" : "%s", config->host);
  if (config->port != defaults[config->scheme].port)
    g_string_append_printf (url, ":%u", config->port);
  g_string_append_c (url, '/');
  if (config->mailbox != NULL)
    g_string_append_uri_escaped (url, config->mailbox, "!$'()*+,&=:@/", FALSE);
  return g_string_free (url, FALSE);
}

gboolean
config_url_parse (MailConfig *config, const char *text, GError **error)
{
  const char *start = strstr (text, "://");
  g_autofree char *scheme = NULL;
  g_autofree char *authority = NULL;
  const char *path, *host;
  char *at;

  if (start == NULL)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE,
                   "a URL looks like imaps://user@host/ or pops://user@host/");
      return FALSE;
    }
  scheme = g_strndup (text, (gsize)(start - text));
  if (!parse_scheme (config, scheme, error))
    return FALSE;

  start += strlen ("://");
  path = strpbrk (start, "/?#");
  authority = path != NULL ? g_strndup (start, (gsize)(path - start)) : g_strdup (start);
  /* The last one: in "me@example.org@host" the user forgot to write %40, and is understood. */
  at = strrchr (authority, '@');
  host = authority;
  if (at != NULL)
    {
      *at = '\0';
      host = at + 1;
      if (!parse_user (config, authority, error))
        return FALSE;
    }
  if (!parse_host (config, host, error))
    return FALSE;
  if (path != NULL && !parse_path (config, *path == '/' ? path + 1 : path, error))
    return FALSE;
  config->url = canonical (config);
  return TRUE;
}
