/* SPDX-License-Identifier: MIT
 *
 * One log line at a time, to stderr or syslog, and the counters. Any thread: each line is one
 * write, the counters are atomic. Knows nothing of protocols; what is secret was redacted before.
 */
#include "mailfs/log.h"

#include <string.h>
#include <syslog.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024

static gint log_level = MAIL_LOG_INFO; /* atomic */
static gint log_to_syslog;             /* atomic */

static const char *const level_words[] = {
  [MAIL_LOG_ERROR] = "error: ",
  [MAIL_LOG_WARNING] = "warning: ",
  [MAIL_LOG_INFO] = "",
  [MAIL_LOG_TRACE] = "",
};

static const int level_priorities[] = {
  [MAIL_LOG_ERROR] = LOG_ERR,
  [MAIL_LOG_WARNING] = LOG_WARNING,
  [MAIL_LOG_INFO] = LOG_INFO,
  [MAIL_LOG_TRACE] = LOG_DEBUG,
};

/* What libraries say by g_warning () would be lost once stderr is gone. */
static void
log_foreign (const char *domain, GLogLevelFlags flags, const char *message, gpointer user_data)
{
  if (flags & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL))
    mail_log (MAIL_LOG_ERROR, "%s: %s", domain != NULL ? domain : "", message);
  else if (flags & (G_LOG_LEVEL_WARNING | G_LOG_LEVEL_MESSAGE))
    mail_log (MAIL_LOG_WARNING, "%s: %s", domain != NULL ? domain : "", message);
}

void
mail_log_init (MailLogLevel level, gboolean to_syslog)
{
  g_atomic_int_set (&log_level, (gint)level);
  if (to_syslog && !g_atomic_int_get (&log_to_syslog))
    {
      openlog ("mailfs", LOG_PID, LOG_DAEMON);
      g_log_set_default_handler (log_foreign, NULL);
    }
  else if (!to_syslog && g_atomic_int_get (&log_to_syslog))
    {
      g_log_set_default_handler (g_log_default_handler, NULL);
      closelog ();
    }
  g_atomic_int_set (&log_to_syslog, to_syslog);
}

gboolean
mail_log_enabled (MailLogLevel level)
{
  return (gint)level <= g_atomic_int_get (&log_level);
}

static void
emit (MailLogLevel level, const char *text)
{
  if (g_atomic_int_get (&log_to_syslog))
    syslog (level_priorities[level], "%s%s", level_words[level], text);
  else
    {
      g_autofree char *line = g_strdup_printf ("mailfs: %s%s\n", level_words[level], text);
      gssize written = write (STDERR_FILENO, line, strlen (line));
      (void)written; /* a stderr that is gone is nobody's business */
    }
}

void
mail_log (MailLogLevel level, const char *format, ...)
{
  g_autofree char *raw = NULL;
  g_autofree char *text = NULL;
  va_list arguments;

  if (!mail_log_enabled (level))
    return;
  va_start (arguments, format);
  raw = g_strdup_vprintf (format, arguments);
  va_end (arguments);
  text = mail_log_escape (raw, -1, LINE_MAX_BYTES);
  emit (level, text);
}

void
mail_log_trace (const char *peer, char direction, const char *data, gssize length)
{
  g_autofree char *text = NULL;
  g_autofree char *line = NULL;

  if (!mail_log_enabled (MAIL_LOG_TRACE))
    return;
  if (length < 0)
    length = (gssize)strlen (data);
  while (length > 0 && (data[length - 1] == '\n' || data[length - 1] == '\r'))
    length--;
  text = mail_log_escape (data, length, LINE_MAX_BYTES);
  line = g_strdup_printf ("%s %c: %s", peer != NULL ? peer : "-", direction, text);
  emit (MAIL_LOG_TRACE, line);
}

/* The length of the valid, printable UTF-8 character at p, or 0. Format characters (bidi overrides,
   zero-width) do not count as printable: they make a terminal lie. */
static gsize
printable_length (const char *p, const char *end)
{
  gunichar c;

  if ((guchar)*p < 0x80)
    return *p >= 0x20 && *p != 0x7f ? 1 : 0;
  c = g_utf8_get_char_validated (p, end - p);
  if (c == (gunichar)-1 || c == (gunichar)-2 || !g_unichar_isprint (c))
    return 0;
  return (gsize)g_unichar_to_utf8 (c, NULL);
}

char *
mail_log_escape (const char *data, gssize length, gsize max)
{
  static const char dots[] = "...";
  GString *text = g_string_new (NULL);
  const char *end = data + (length < 0 ? (gssize)strlen (data) : length);
  gsize room = max > strlen (dots) ? max - strlen (dots) : 0;
  gsize cut = 0; /* the longest length at a character's end that leaves room for the dots */

  for (const char *p = data; p < end && text->len <= max;)
    {
      gsize n = printable_length (p, end);

      if (n > 0)
        g_string_append_len (text, p, (gssize)n);
      else
        g_string_append_printf (text, "\\x%02x", (guchar)*p);
      p += n > 0 ? n : 1;
      if (text->len <= room)
        cut = text->len;
    }
  if (text->len > max)
    {
      g_string_truncate (text, cut);
      g_string_append_len (text, dots, (gssize)MIN (strlen (dots), max));
    }
  return g_string_free (text, FALSE);
}

static guint64 counters[MAIL_N_COUNTERS]; /* atomic */

static const char *const counter_names[MAIL_N_COUNTERS] = {
  [MAIL_COUNTER_REQUESTS] = "requests",
  [MAIL_COUNTER_HITS] = "hits",
  [MAIL_COUNTER_MISSES] = "misses",
  [MAIL_COUNTER_BYTES_IN] = "bytes_in",
  [MAIL_COUNTER_BYTES_OUT] = "bytes_out",
  [MAIL_COUNTER_COMMANDS] = "commands",
  [MAIL_COUNTER_ROUND_TRIPS] = "round_trips",
  [MAIL_COUNTER_CONNECTS] = "connects",
  [MAIL_COUNTER_RECONNECTS] = "reconnects",
  [MAIL_COUNTER_EVICTIONS] = "evictions",
  [MAIL_COUNTER_AHEAD] = "ahead",
};

void
mail_counter_add (MailCounter counter, guint64 n)
{
  __atomic_fetch_add (&counters[counter], n, __ATOMIC_RELAXED);
}

guint64
mail_counter_get (MailCounter counter)
{
  return __atomic_load_n (&counters[counter], __ATOMIC_RELAXED);
}

const char *
mail_counter_name (MailCounter counter)
{
  return counter_names[counter];
}
