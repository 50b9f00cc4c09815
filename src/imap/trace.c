/* SPDX-License-Identifier: MIT
 *
 * The server's side of the protocol trace, cut into lines. Net thread. Knows no session.
 */
#include "imap/trace.h"

#include "mailfs/log.h"

#include <string.h>

#define LINE_MAX_BYTES 400
#define TAIL_MAX 32 /* "{18446744073709551615+}\r\n" and more */

struct ImapTrace
{
  const char *peer, *secret;
  GString *line;       /* the beginning */
  char tail[TAIL_MAX]; /* the last bytes of the line, also of an endless one */
  gsize n_tail;
  guint64 skip; /* bytes of a literal still to come */
};

ImapTrace *
imap_trace_new (const char *peer)
{
  ImapTrace *trace;

  if (!mail_log_enabled (MAIL_LOG_TRACE))
    return NULL;
  trace = g_new0 (ImapTrace, 1);
  trace->peer = peer;
  trace->line = g_string_new (NULL);
  return trace;
}

void
imap_trace_free (ImapTrace *trace)
{
  if (trace == NULL)
    return;
  g_string_free (trace->line, TRUE);
  g_free (trace);
}

void
imap_trace_mask (ImapTrace *trace, const char *secret)
{
  if (trace != NULL)
    trace->secret = secret;
}

void
imap_trace_output (ImapTrace *trace, const char *line)
{
  if (trace != NULL)
    mail_log_trace (trace->peer, 'C', line, -1);
}

static void
remember_tail (ImapTrace *trace, const char *data, gsize length)
{
  gsize keep;

  if (length >= TAIL_MAX)
    {
      memcpy (trace->tail, data + length - TAIL_MAX, TAIL_MAX);
      trace->n_tail = TAIL_MAX;
      return;
    }
  keep = MIN (trace->n_tail, TAIL_MAX - length);
  memmove (trace->tail, trace->tail + trace->n_tail - keep, keep);
  memcpy (trace->tail + keep, data, length);
  trace->n_tail = keep + length;
}

/* A line that ends in {n} is followed by n bytes that are not shown. */
static guint64
literal_length (const ImapTrace *trace)
{
  gsize end = trace->n_tail, start;

  while (end > 0 && strchr ("\r\n", trace->tail[end - 1]) != NULL)
    end--;
  if (end < 3 || trace->tail[end - 1] != '}')
    return 0;
  end--;
  if (trace->tail[end - 1] == '+')
    end--;
  for (start = end; start > 0 && g_ascii_isdigit (trace->tail[start - 1]);)
    start--;
  if (start == end || start == 0 || trace->tail[start - 1] != '{')
    return 0;
  return g_ascii_strtoull (trace->tail + start, NULL, 10);
}

static void
line_end (ImapTrace *trace)
{
  GString *line = trace->line;

  while (line->len > 0 && strchr ("\r\n", line->str[line->len - 1]) != NULL)
    g_string_truncate (line, line->len - 1);
  if (trace->secret != NULL && line->str[0] == '+')
    g_string_assign (line, "+ ***");
  else if (trace->secret != NULL && trace->secret[0] != '\0'
           && strstr (line->str, trace->secret) != NULL)
    g_string_assign (line, "***");
  mail_log_trace (trace->peer, 'S', line->str, (gssize)line->len);
  trace->skip = literal_length (trace);
  g_string_truncate (line, 0);
  trace->n_tail = 0;
}

void
imap_trace_input (ImapTrace *trace, const char *data, gsize length)
{
  while (trace != NULL && length > 0)
    {
      const char *newline;
      gsize n;

      if (trace->skip > 0)
        {
          n = (gsize)MIN (trace->skip, length);
          trace->skip -= n;
          data += n;
          length -= n;
          continue;
        }
      newline = memchr (data, '\n', length);
      n = newline != NULL ? (gsize)(newline - data) + 1 : length;
      g_string_append_len (
          trace->line, data,
          (gssize)MIN (n, LINE_MAX_BYTES - MIN (trace->line->len, LINE_MAX_BYTES)));
      remember_tail (trace, data, n);
      data += n;
      length -= n;
      if (newline != NULL)
        line_end (trace);
    }
}
