/* SPDX-License-Identifier: MIT
 *
 * The .netrc format as ftp(1) and curl read it: words, optionally in double quotes with backslash
 * escapes; comments from '#' where a keyword could stand; "macdef" up to an empty line. Works in
 * place, so that the password is copied nowhere. Any thread.
 */
#include "config/netrc.h"

#include <string.h>

/* Cuts the next word out of *cursor and moves it behind; NULL at the end. A value may begin with
   '#', so only in front of a keyword is that a comment. */
static char *
next_word (char **cursor, gboolean keyword)
{
  char *p = *cursor;
  char *word, *out;
  gboolean quoted;

  for (;;)
    {
      p += strspn (p, " \t\r\n");
      if (*p != '#' || !keyword)
        break;
      p += strcspn (p, "\n");
    }
  if (*p == '\0')
    return NULL;
  quoted = *p == '"';
  word = out = p += quoted;
  while (*p != '\0' && (quoted ? *p != '"' : strchr (" \t\r\n", *p) == NULL))
    {
      if (quoted && *p == '\\' && p[1] != '\0')
        p++;
      *out++ = *p++;
    }
  *cursor = *p != '\0' ? p + 1 : p;
  *out = '\0';
  return word;
}

/* next_word () has eaten one character behind "macdef NAME"; the body ends at an empty line. */
static void
skip_macro (char **cursor)
{
  char *end;

  next_word (cursor, FALSE);
  end = strstr (*cursor, "\n\n");
  *cursor = end != NULL ? end + 2 : *cursor + strlen (*cursor);
}

char *
config_netrc_find (char *text, const char *host, const char *user)
{
  char *cursor = text;
  char *word;
  gboolean machine_fits = FALSE, login_fits = FALSE;
  char *password = NULL;

  for (;;)
    {
      word = next_word (&cursor, TRUE);
      if (word == NULL || strcmp (word, "machine") == 0 || strcmp (word, "default") == 0)
        {
          char *name;

          if (machine_fits && login_fits && password != NULL)
            return password;
          if (word == NULL)
            return NULL;
          name = *word == 'm' ? next_word (&cursor, FALSE) : NULL;
          machine_fits = *word == 'd' || (name != NULL && g_ascii_strcasecmp (name, host) == 0);
          login_fits = TRUE;
          password = NULL;
        }
      else if (strcmp (word, "login") == 0)
        {
          char *login = next_word (&cursor, FALSE);
          login_fits = user == NULL || g_strcmp0 (login, user) == 0;
        }
      else if (strcmp (word, "password") == 0)
        password = next_word (&cursor, FALSE);
      else if (strcmp (word, "account") == 0)
        next_word (&cursor, FALSE);
      else if (strcmp (word, "macdef") == 0)
        skip_macro (&cursor);
    }
}
