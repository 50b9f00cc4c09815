/* SPDX-License-Identifier: MIT
 *
 * Pop3Reader. A message's lines end with CRLF and with nothing else: a server that passes a bare LF
 * through must not make "LF . CRLF" inside somebody's mail look like its end, or the mail could
 * answer our next command. Only a server whose own greeting ended with a bare LF gets the other
 * rule.
 */
#include "pop3/reader.h"

#include <string.h>

void
pop3_reader_init (Pop3Reader *reader)
{
  *reader = (Pop3Reader) { .line = g_byte_array_new () };
}

void
pop3_reader_clear (Pop3Reader *reader)
{
  g_clear_pointer (&reader->line, g_byte_array_unref);
}

void
pop3_reader_feed (Pop3Reader *reader, const void *chunk, gsize length)
{
  reader->chunk = chunk;
  reader->length = length;
  reader->position = 0;
}

gboolean
pop3_reader_pending (const Pop3Reader *reader)
{
  return reader->position < reader->length || (reader->line->len > 0 && !reader->line_whole);
}

Pop3Token
pop3_reader_line (Pop3Reader *reader, const char **line_out, gsize *length_out)
{
  const guint8 *start = reader->chunk + reader->position;
  gsize left = reader->length - reader->position;
  const guint8 *end = left > 0 ? memchr (start, '\n', left) : NULL;
  gsize taken = end != NULL ? (gsize)(end - start) : left;

  if (reader->line_whole)
    g_byte_array_set_size (reader->line, 0);
  reader->line_whole = FALSE;
  if (reader->line->len + taken > POP3_LINE_MAX)
    return POP3_TOKEN_TOO_LONG;
  reader->position += taken + (end != NULL ? 1 : 0);
  if (end == NULL)
    {
      if (taken > 0)
        g_byte_array_append (reader->line, start, taken);
      return POP3_TOKEN_NONE;
    }
  *line_out = (const char *)start;
  *length_out = taken;
  if (reader->line->len > 0)
    {
      *length_out += reader->line->len;
      g_byte_array_append (reader->line, start, taken);
      *line_out = (const char *)reader->line->data;
      reader->line_whole = TRUE;
    }
  reader->line_crlf = *length_out > 0 && (*line_out)[*length_out - 1] == '\r';
  if (reader->line_crlf)
    (*length_out)--;
  return POP3_TOKEN_LINE;
}

void
pop3_reader_begin_data (Pop3Reader *reader)
{
  g_byte_array_set_size (reader->line, 0);
  reader->line_whole = FALSE;
  reader->state = POP3_READER_LINE_START;
  reader->after_cr = FALSE;
}

static Pop3Token
give (const guint8 *data, gsize length, const guint8 **data_out, gsize *length_out)
{
  *data_out = data;
  *length_out = length;
  return POP3_TOKEN_DATA;
}

/* The byte after a dot that began a line. TRUE when a token came of it. */
static gboolean
after_dot (Pop3Reader *reader, guint8 byte, Pop3Token *token, const guint8 **data_out,
           gsize *length_out)
{
  if (reader->state == POP3_READER_DOT_CR)
    {
      if (byte == '\n')
        {
          reader->position++;
          *token = POP3_TOKEN_END;
          return TRUE;
        }
      /* A stuffed line that begins with a CR. */
      reader->state = POP3_READER_MIDDLE;
      reader->after_cr = TRUE;
      *token = give ((const guint8 *)"\r", 1, data_out, length_out);
      return TRUE;
    }
  if (byte == '\r')
    {
      reader->position++;
      reader->state = POP3_READER_DOT_CR;
      return FALSE;
    }
  if (byte == '\n' && reader->bare_lines)
    {
      reader->position++;
      *token = POP3_TOKEN_END;
      return TRUE;
    }
  reader->state = POP3_READER_MIDDLE;
  return FALSE;
}

Pop3Token
pop3_reader_data (Pop3Reader *reader, const guint8 **data_out, gsize *length_out)
{
  gsize start = reader->position;
  Pop3Token token;

  while (reader->position < reader->length)
    {
      const guint8 *at = reader->chunk + reader->position;
      gsize left = reader->length - reader->position;
      const guint8 *end;
      gboolean crlf;

      if (reader->state == POP3_READER_LINE_START && *at == '.')
        {
          reader->state = POP3_READER_DOT;
          reader->after_cr = FALSE;
          reader->position++;
          if (at > reader->chunk + start)
            return give (reader->chunk + start, at - (reader->chunk + start), data_out, length_out);
          start = reader->position;
          continue;
        }
      if (reader->state == POP3_READER_DOT || reader->state == POP3_READER_DOT_CR)
        {
          if (after_dot (reader, *at, &token, data_out, length_out))
            return token;
          start = reader->position;
          continue;
        }
      end = memchr (at, '\n', left);
      if (end == NULL)
        {
          reader->state = POP3_READER_MIDDLE;
          reader->after_cr = at[left - 1] == '\r';
          reader->position = reader->length;
          break;
        }
      crlf = end > at ? end[-1] == '\r' : reader->after_cr;
      reader->after_cr = FALSE;
      if (!crlf && reader->bare_lines)
        {
          /* First what stands before the LF, then the line end it should have been. */
          reader->state = POP3_READER_MIDDLE;
          reader->position = end - reader->chunk;
          if (reader->position > start)
            return give (reader->chunk + start, reader->position - start, data_out, length_out);
          reader->position++;
          reader->state = POP3_READER_LINE_START;
          return give ((const guint8 *)"\r\n", 2, data_out, length_out);
        }
      reader->state = crlf ? POP3_READER_LINE_START : POP3_READER_MIDDLE;
      reader->position = end - reader->chunk + 1;
    }
  if (reader->position > start)
    return give (reader->chunk + start, reader->position - start, data_out, length_out);
  return POP3_TOKEN_NONE;
}
