/* SPDX-License-Identifier: MIT
 *
 * Pop3Reader: bytes of a POP3 connection into lines and dot-unstuffed message bytes, however they
 * were cut on the way (RFC 1939 section 3). Borrows each chunk until the next one; copies only a
 * line that straddles two. Any thread; knows nothing of commands.
 */
#pragma once

#include <glib.h>

/* RFC 2449 says 512 octets; SASL challenges may be far longer, nothing else has a reason to. */
#define POP3_LINE_MAX 16384

typedef enum
{
  POP3_TOKEN_NONE,     /* the chunk is used up */
  POP3_TOKEN_LINE,     /* a whole line, without its end */
  POP3_TOKEN_DATA,     /* a piece of a message */
  POP3_TOKEN_END,      /* the lone dot */
  POP3_TOKEN_TOO_LONG, /* a line above POP3_LINE_MAX; the reader is of no use any more */
} Pop3Token;

typedef enum
{
  POP3_READER_LINE_START,
  POP3_READER_MIDDLE,
  POP3_READER_DOT,    /* a dot at the start of a line, held back */
  POP3_READER_DOT_CR, /* dot and CR, held back */
} Pop3ReaderState;

typedef struct
{
  const guint8 *chunk; /* borrowed */
  gsize length, position;
  GByteArray *line;    /* the start of a line whose end has not come */
  gboolean line_whole; /* line was handed out, nothing in it is pending */
  gboolean line_crlf;  /* the last line ended with CRLF */
  gboolean bare_lines; /* the server ends lines by LF alone: so do messages, and CR is added */
  gboolean after_cr;
  Pop3ReaderState state;
} Pop3Reader;

void pop3_reader_init (Pop3Reader *reader);
void pop3_reader_clear (Pop3Reader *reader);

/* chunk must stay until pop3_reader_feed or pop3_reader_clear is called again. The previous one
 * must be used up. */
void pop3_reader_feed (Pop3Reader *reader, const void *chunk, gsize length);

/* Whether bytes are left that nobody has taken. */
gboolean pop3_reader_pending (const Pop3Reader *reader);

/* LINE, NONE or TOO_LONG. line_out is NUL-terminated only by chance; valid until the next call. */
Pop3Token pop3_reader_line (Pop3Reader *reader, const char **line_out, gsize *length_out);

/* Begins a message; then DATA, END or NONE, any number of times until END. */
void pop3_reader_begin_data (Pop3Reader *reader);
Pop3Token pop3_reader_data (Pop3Reader *reader, const guint8 **data_out, gsize *length_out);
