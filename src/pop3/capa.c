/* SPDX-License-Identifier: MIT
 *
 * CAPA lines, response codes and the greeting's timestamp.
 */
#include "pop3/capa.h"

#include "pop3/session.h"
#include "mailfs/log.h"

#include <string.h>

#define CAPA_LINES_MAX 256
#define MECHANISMS_MAX 64

void
pop3_capa_clear (Pop3Capa *capa)
{
  g_clear_pointer (&capa->mechanisms, g_ptr_array_unref);
  *capa = (Pop3Capa) { 0 };
}

static void
add_mechanisms (Pop3Capa *capa, char **words)
{
  if (capa->mechanisms == NULL)
    capa->mechanisms = g_ptr_array_new_with_free_func (g_free);
  for (guint i = 1; words[i] != NULL && capa->mechanisms->len < MECHANISMS_MAX; i++)
    if (words[i][0] != '\0')
      g_ptr_array_add (capa->mechanisms, g_strdup (words[i]));
}

gboolean
pop3_capa_add (Pop3Capa *capa, const char *line, gsize length)
{
  static const struct
  {
    const char *name;
    guint flag;
  } names[] = {
    { "TOP", POP3_CAP_TOP },   { "UIDL", POP3_CAP_UIDL }, { "PIPELINING", POP3_CAP_PIPELINING },
    { "USER", POP3_CAP_USER }, { "UTF8", POP3_CAP_UTF8 },
  };
  g_autofree char *text = g_strndup (line, length);
  g_auto (GStrv) words = g_strsplit_set (text, " \t", MECHANISMS_MAX + 2);
  guint64 delay;

  if (++capa->n_lines > CAPA_LINES_MAX)
    return FALSE;
  if (words[0] == NULL)
    return TRUE;
  for (guint i = 0; i < G_N_ELEMENTS (names); i++)
    if (g_ascii_strcasecmp (words[0], names[i].name) == 0)
      capa->flags |= names[i].flag;
  if (g_ascii_strcasecmp (words[0], "SASL") == 0)
    add_mechanisms (capa, words);
  if (g_ascii_strcasecmp (words[0], "LOGIN-DELAY") == 0 && words[1] != NULL
      && g_ascii_string_to_unsigned (words[1], 10, 0, G_MAXUINT32, &delay, NULL))
    capa->login_delay = (guint)delay;
  return TRUE;
}

void
pop3_capa_finish (Pop3Capa *capa)
{
  capa->flags |= POP3_CAP_KNOWN;
  if (capa->mechanisms != NULL)
    g_ptr_array_add (capa->mechanisms, NULL);
}

/* Servers without response codes say it in words. */
static gboolean
says (const char *text, const char *const *words)
{
  g_autofree char *lower = g_ascii_strdown (text, -1);

  for (guint i = 0; words[i] != NULL; i++)
    if (strstr (lower, words[i]) != NULL)
      return TRUE;
  return FALSE;
}

GError *
pop3_refusal (const char *command, const char *text, gsize length, MailErrorCode fallback,
              gboolean *auth_out)
{
  static const struct
  {
    const char *name;
    MailErrorCode code;
  } codes[] = {
    { "[IN-USE]", MAIL_ERROR_BUSY },  { "[LOGIN-DELAY]", MAIL_ERROR_BUSY },
    { "[SYS/TEMP", MAIL_ERROR_BUSY }, { "[SYS/PERM", MAIL_ERROR_FAILED },
    { "[AUTH]", MAIL_ERROR_AUTH },    { "[UTF8]", MAIL_ERROR_UNSUPPORTED },
  };
  static const char *const locked[] = {
    "already locked",   "is locked by",    "lock maildrop",  "lock mailbox",    "maildrop lock",
    "maildrop is lock", "mailbox is lock", "mailbox in use", "maildrop in use", NULL
  };
  static const char *const gone[] = { "no such message", "no message",    "expunged",
                                      "been deleted",    "is deleted",    "deleted message",
                                      "does not exist",  "doesn't exist", NULL };
  g_autofree char *copy = g_strndup (text, length);
  g_autofree char *shown = mail_log_escape (text, length, 200);
  MailErrorCode code = fallback;

  g_strstrip (copy);
  for (guint i = 0; i < G_N_ELEMENTS (codes); i++)
    if (g_ascii_strncasecmp (copy, codes[i].name, strlen (codes[i].name)) == 0)
      {
        code = codes[i].code;
        if (auth_out != NULL)
          *auth_out = code == MAIL_ERROR_AUTH;
        return g_error_new (MAIL_ERROR, code, "the server refused %s: %s", command, shown);
      }
  if (fallback == MAIL_ERROR_AUTH && says (copy, locked))
    code = MAIL_ERROR_BUSY;
  else if (fallback == MAIL_ERROR_FAILED && says (copy, gone))
    code = MAIL_ERROR_GONE;
  return g_error_new (MAIL_ERROR, code, "the server refused %s: %s", command, shown);
}

char *
pop3_greeting_timestamp (const char *text, gsize length)
{
  const char *start = memrchr (text, '<', length);
  const char *end = start != NULL ? memchr (start, '>', text + length - start) : NULL;

  if (end == NULL || memchr (start, '@', end - start) == NULL || end - start > 1000)
    return NULL;
  /* A challenge that is no message-id is how APOP's MD5 is attacked (CVE-2007-1558). */
  for (const char *at = start; at < end; at++)
    if (*at <= ' ' || *at >= 0x7f)
      return NULL;
  return g_strndup (start, end - start + 1);
}
