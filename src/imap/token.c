/* SPDX-License-Identifier: MIT
 *
 * ImapLexer: an incremental lexer for what IMAP servers send. Every byte is looked at once; runs of
 * ordinary bytes are copied as runs. Nothing is allocated by a size the server named. It is lenient
 * where servers are known to be (8-bit bytes, bare LF, more than one space) and strict where
 * leniency could lose the line structure (NUL, CR or LF inside quotes, odd literals). Net thread.
 */
#include "imap/token.h"

#include "mailfs/error.h"
#include "mailfs/log.h"

#include <string.h>

enum
{
  STATE_BETWEEN,
  STATE_CR, /* between tokens; LF must follow */
  STATE_ATOM,
  STATE_TILDE, /* "~": a literal8 or an atom */
  STATE_QUOTED,
  STATE_ESCAPE,
  STATE_SIZE, /* digits of a literal */
  STATE_SIZE_PLUS,
  STATE_SIZE_CR,
  STATE_SIZE_LF,
  STATE_KEEP,
  STATE_DROP,
  STATE_STREAM,
  STATE_TEXT,
  STATE_TEXT_CR,
  STATE_SKIP,
  STATE_SKIP_LITERAL,
};

enum
{
  TAIL_NONE,
  TAIL_SIZE,   /* "{" and digits */
  TAIL_PLUS,   /* "{n+" */
  TAIL_CLOSED, /* "{n}" */
  TAIL_CR,     /* "{n}\r" */
};

void
imap_lexer_init (ImapLexer *lexer)
{
  memset (lexer, 0, sizeof *lexer);
  lexer->text = g_string_new (NULL);
}

void
imap_lexer_clear (ImapLexer *lexer)
{
  if (lexer->text != NULL)
    g_string_free (lexer->text, TRUE);
  lexer->text = NULL;
}

void
imap_lexer_give (ImapLexer *lexer, const void *data, gsize length)
{
  lexer->input = lexer->at = data;
  lexer->end = lexer->input + length;
}

gsize
imap_lexer_taken (const ImapLexer *lexer)
{
  return (gsize)(lexer->at - lexer->input);
}

gboolean
imap_lexer_is_idle (const ImapLexer *lexer)
{
  return lexer->state == STATE_BETWEEN;
}

void
imap_lexer_begin_response (ImapLexer *lexer)
{
  lexer->mode = IMAP_LEX_START;
  lexer->literals = IMAP_LITERAL_KEEP;
  lexer->used_text = lexer->used_kept = lexer->used_dropped = 0;
  lexer->spaced = FALSE;
}

gboolean
imap_lexer_fail (const ImapLexer *lexer, const char *what, GError **error)
{
  const char *from = lexer->at - MIN (40, lexer->at - lexer->input);
  const char *to = lexer->at + MIN (20, lexer->end - lexer->at);
  g_autofree char *excerpt = mail_log_escape (from, to - from, 200);

  g_set_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL, "the server sent %s near \"%s\"", what,
               excerpt);
  return FALSE;
}

static ImapTokenType
fail (ImapLexer *lexer, const char *what, GError **error)
{
  imap_lexer_fail (lexer, what, error);
  return IMAP_TOKEN_ERROR;
}

/* Hands out what was gathered and is between tokens again. */
static ImapTokenType
finish (ImapLexer *lexer, ImapToken *token, ImapTokenType type)
{
  token->text = lexer->text->str;
  token->length = lexer->text->len;
  lexer->state = STATE_BETWEEN;
  return type;
}

static gboolean
ends_atom (const ImapLexer *lexer, char c)
{
  switch (c)
    {
    case ' ':
    case '\r':
    case '\n':
    case '\0':
    case '(':
    case ')':
      return TRUE;
    case '[':
    case ']':
    case '{':
      return lexer->mode == IMAP_LEX_SECTION;
    case ',':
      return lexer->mode == IMAP_LEX_SET;
    default:
      return FALSE;
    }
}

static ImapTokenType
read_atom (ImapLexer *lexer, ImapToken *token, GError **error)
{
  const char *from = lexer->at;

  while (lexer->at < lexer->end && !ends_atom (lexer, *lexer->at))
    lexer->at++;
  g_string_append_len (lexer->text, from, lexer->at - from);
  if (lexer->text->len > lexer->max_token)
    return fail (lexer, "an endless word", error);
  return lexer->at < lexer->end ? finish (lexer, token, IMAP_TOKEN_ATOM) : IMAP_TOKEN_NONE;
}

static ImapTokenType
read_quoted (ImapLexer *lexer, ImapToken *token, GError **error)
{
  while (lexer->at < lexer->end)
    {
      const char *from = lexer->at;

      if (lexer->state == STATE_ESCAPE)
        {
          if (*from == '\r' || *from == '\n' || *from == '\0')
            return fail (lexer, "a line end inside quotes", error);
          g_string_append_c (lexer->text, *lexer->at++);
          lexer->state = STATE_QUOTED;
          continue;
        }
      while (lexer->at < lexer->end && strchr ("\"\\\r\n", *lexer->at) == NULL)
        lexer->at++; /* strchr stops at NUL too */
      g_string_append_len (lexer->text, from, lexer->at - from);
      if (lexer->text->len > lexer->max_token)
        return fail (lexer, "an endless string", error);
      if (lexer->at == lexer->end)
        return IMAP_TOKEN_NONE;
      if (*lexer->at == '"')
        {
          lexer->at++;
          return finish (lexer, token, IMAP_TOKEN_STRING);
        }
      if (*lexer->at != '\\')
        return fail (lexer, "a line end or NUL inside quotes", error);
      lexer->at++;
      lexer->state = STATE_ESCAPE;
    }
  return IMAP_TOKEN_NONE;
}

/* One digit more in lexer->remaining; FALSE above 2^63 - 1. */
static gboolean
add_digit (ImapLexer *lexer, char c)
{
  guint64 digit = (guint64)(c - '0');

  if (lexer->remaining > (G_MAXINT64 - digit) / 10)
    return FALSE;
  lexer->remaining = lexer->remaining * 10 + digit;
  lexer->n_digits++;
  return TRUE;
}

/* Its header "{n}" CRLF was read. */
static ImapTokenType
begin_literal (ImapLexer *lexer, ImapToken *token, GError **error)
{
  switch (lexer->literals)
    {
    case IMAP_LITERAL_STREAM:
      lexer->state = STATE_STREAM;
      token->size = lexer->remaining;
      return IMAP_TOKEN_LITERAL;
    case IMAP_LITERAL_DROP:
      if (lexer->remaining > lexer->max_dropped - lexer->used_dropped)
        return fail (lexer, "too large a literal", error);
      lexer->used_dropped += lexer->remaining;
      lexer->state = STATE_DROP;
      return IMAP_TOKEN_NONE;
    case IMAP_LITERAL_KEEP:
    default:
      if (lexer->remaining > lexer->max_kept - lexer->used_kept)
        return fail (lexer, "too large a literal", error);
      lexer->used_kept += lexer->remaining;
      lexer->state = STATE_KEEP;
      return IMAP_TOKEN_NONE;
    }
}

/* "{n}", "{n+}" and CRLF; a bare LF is taken as a line end here as everywhere. */
static ImapTokenType
read_size (ImapLexer *lexer, ImapToken *token, GError **error)
{
  while (lexer->at < lexer->end)
    {
      char c = *lexer->at++;

      if (lexer->state == STATE_SIZE && g_ascii_isdigit (c))
        {
          if (!add_digit (lexer, c))
            return fail (lexer, "a literal beyond 63 bits", error);
        }
      else if (lexer->state == STATE_SIZE && c == '+' && lexer->n_digits > 0)
        lexer->state = STATE_SIZE_PLUS;
      else if (lexer->state <= STATE_SIZE_PLUS && c == '}' && lexer->n_digits > 0)
        lexer->state = STATE_SIZE_CR;
      else if (lexer->state == STATE_SIZE_CR && c == '\r')
        lexer->state = STATE_SIZE_LF;
      else if (lexer->state >= STATE_SIZE_CR && c == '\n')
        return begin_literal (lexer, token, error);
      else
        return fail (lexer, "a malformed literal", error);
    }
  return IMAP_TOKEN_NONE;
}

/* How much of the literal is in this chunk. */
static gsize
literal_slice (ImapLexer *lexer)
{
  gsize slice = (gsize)(lexer->end - lexer->at);

  slice = (gsize)MIN ((guint64)slice, lexer->remaining);
  lexer->remaining -= slice;
  lexer->at += slice;
  lexer->used_text -= slice; /* taken back: the caller counts everything as text */
  return slice;
}

static ImapTokenType
read_literal (ImapLexer *lexer, ImapToken *token)
{
  gsize slice;

  if (lexer->state == STATE_STREAM)
    {
      if (lexer->remaining == 0)
        {
          lexer->state = STATE_BETWEEN;
          return IMAP_TOKEN_LITERAL_END;
        }
      if (lexer->at == lexer->end)
        return IMAP_TOKEN_NONE;
      token->text = lexer->at;
      token->length = literal_slice (lexer);
      return IMAP_TOKEN_BYTES;
    }
  slice = literal_slice (lexer);
  if (lexer->state == STATE_KEEP)
    g_string_append_len (lexer->text, lexer->at - slice, (gssize)slice);
  return lexer->remaining == 0 ? finish (lexer, token, IMAP_TOKEN_STRING) : IMAP_TOKEN_NONE;
}

static ImapTokenType
read_text (ImapLexer *lexer, ImapToken *token, GError **error)
{
  while (lexer->at < lexer->end)
    {
      const char *from = lexer->at;

      if (lexer->state == STATE_TEXT_CR && *from != '\n')
        {
          g_string_append_c (lexer->text, '\r'); /* a stray one */
          lexer->state = STATE_TEXT;
        }
      while (lexer->at < lexer->end && strchr ("\r\n", *lexer->at) == NULL)
        lexer->at++;
      g_string_append_len (lexer->text, from, lexer->at - from);
      if (lexer->text->len > lexer->max_token)
        return fail (lexer, "an endless line", error);
      if (lexer->at == lexer->end)
        return IMAP_TOKEN_NONE;
      if (*lexer->at == '\0')
        return fail (lexer, "a NUL in text", error);
      if (*lexer->at++ == '\n')
        return finish (lexer, token, IMAP_TOKEN_TEXT);
      lexer->state = STATE_TEXT_CR;
    }
  return IMAP_TOKEN_NONE;
}

/* Follows "{n}" or "{n+}" at the end of a line, the only thing that matters while skipping: whether
 * quotes and parentheses match does not. */
static void
follow_tail (ImapLexer *lexer, char c)
{
  if (c == '{')
    {
      lexer->tail = TAIL_SIZE;
      lexer->remaining = 0;
      lexer->n_digits = 0;
    }
  else if (lexer->tail == TAIL_SIZE && g_ascii_isdigit (c) && add_digit (lexer, c))
    ;
  else if (lexer->tail == TAIL_SIZE && c == '+' && lexer->n_digits > 0)
    lexer->tail = TAIL_PLUS;
  else if ((lexer->tail == TAIL_SIZE || lexer->tail == TAIL_PLUS) && c == '}'
           && lexer->n_digits > 0)
    lexer->tail = TAIL_CLOSED;
  else if (lexer->tail == TAIL_CLOSED && c == '\r')
    lexer->tail = TAIL_CR;
  else
    lexer->tail = TAIL_NONE;
}

static ImapTokenType
read_skip (ImapLexer *lexer, ImapToken *token, GError **error)
{
  while (lexer->at < lexer->end)
    {
      if (lexer->state == STATE_SKIP_LITERAL)
        {
          literal_slice (lexer);
          if (lexer->remaining > 0)
            return IMAP_TOKEN_NONE;
          lexer->state = STATE_SKIP;
          lexer->tail = TAIL_NONE;
          continue;
        }
      if (*lexer->at == '\n')
        {
          lexer->at++;
          if (lexer->tail < TAIL_CLOSED)
            return finish (lexer, token, IMAP_TOKEN_EOL);
          if (lexer->remaining > lexer->max_dropped - lexer->used_dropped)
            return fail (lexer, "too large a literal", error);
          lexer->used_dropped += lexer->remaining;
          lexer->state = STATE_SKIP_LITERAL;
          continue;
        }
      follow_tail (lexer, *lexer->at++);
    }
  return IMAP_TOKEN_NONE;
}

static ImapTokenType
begin_size (ImapLexer *lexer)
{
  lexer->remaining = 0;
  lexer->n_digits = 0;
  lexer->state = STATE_SIZE;
  return IMAP_TOKEN_NONE;
}

/* The byte that decides what the next token is. */
static ImapTokenType
begin_token (ImapLexer *lexer, ImapToken *token, GError **error)
{
  char c = *lexer->at;

  if (lexer->mode == IMAP_LEX_TEXT)
    {
      lexer->at += c == ' ';
      lexer->state = STATE_TEXT;
      return IMAP_TOKEN_NONE;
    }
  if (lexer->mode == IMAP_LEX_SKIP)
    {
      lexer->state = STATE_SKIP;
      lexer->tail = TAIL_NONE;
      return IMAP_TOKEN_NONE;
    }
  if (c == '\0')
    return fail (lexer, "a NUL", error);
  if (lexer->mode == IMAP_LEX_START && c == ' ')
    return fail (lexer, "a line without a tag", error);
  lexer->at++;
  switch (c)
    {
    case ' ':
      lexer->spaced = TRUE;
      return IMAP_TOKEN_NONE;
    case '\r':
      lexer->state = STATE_CR;
      return IMAP_TOKEN_NONE;
    case '\n':
      return IMAP_TOKEN_EOL;
    case '(':
      return IMAP_TOKEN_OPEN;
    case ')':
      return IMAP_TOKEN_CLOSE;
    case '"':
      lexer->state = STATE_QUOTED;
      return IMAP_TOKEN_NONE;
    case '{':
      return begin_size (lexer);
    case '~':
      lexer->state = STATE_TILDE;
      return IMAP_TOKEN_NONE;
    default:
      break;
    }
  if (c == '[' && lexer->mode == IMAP_LEX_SECTION)
    return IMAP_TOKEN_BRACKET_OPEN;
  if (c == ']' && lexer->mode == IMAP_LEX_SECTION)
    return IMAP_TOKEN_BRACKET_CLOSE;
  if (c == ',' && lexer->mode == IMAP_LEX_SET)
    return IMAP_TOKEN_COMMA;
  if (c == '+' && lexer->mode == IMAP_LEX_START)
    return IMAP_TOKEN_PLUS;
  lexer->at--;
  lexer->state = STATE_ATOM;
  return IMAP_TOKEN_NONE;
}

/* One move of the state machine: a token, or NONE after at least one byte or change of state. */
static ImapTokenType
advance (ImapLexer *lexer, ImapToken *token, GError **error)
{
  switch (lexer->state)
    {
    case STATE_BETWEEN:
      g_string_truncate (lexer->text, 0);
      return begin_token (lexer, token, error);
    case STATE_CR:
      if (*lexer->at != '\n')
        return fail (lexer, "a CR without LF", error);
      lexer->at++;
      lexer->state = STATE_BETWEEN;
      return IMAP_TOKEN_EOL;
    case STATE_TILDE:
      if (*lexer->at == '{')
        {
          lexer->at++;
          return begin_size (lexer);
        }
      g_string_append_c (lexer->text, '~');
      lexer->state = STATE_ATOM;
      return IMAP_TOKEN_NONE;
    case STATE_ATOM:
      return read_atom (lexer, token, error);
    case STATE_QUOTED:
    case STATE_ESCAPE:
      return read_quoted (lexer, token, error);
    case STATE_TEXT:
    case STATE_TEXT_CR:
      return read_text (lexer, token, error);
    case STATE_SKIP:
    case STATE_SKIP_LITERAL:
      return read_skip (lexer, token, error);
    case STATE_KEEP:
    case STATE_DROP:
    case STATE_STREAM:
      return read_literal (lexer, token);
    default:
      return read_size (lexer, token, error);
    }
}

/* An empty literal ends without any byte of it. */
static gboolean
can_advance (const ImapLexer *lexer)
{
  return lexer->at < lexer->end
         || (lexer->remaining == 0
             && (lexer->state == STATE_KEEP || lexer->state == STATE_DROP
                 || lexer->state == STATE_STREAM));
}

ImapTokenType
imap_lexer_next (ImapLexer *lexer, ImapToken *token, GError **error)
{
  const char *from = lexer->at;
  ImapTokenType type = IMAP_TOKEN_NONE;

  token->text = "";
  token->length = 0;
  while (type == IMAP_TOKEN_NONE && can_advance (lexer))
    type = advance (lexer, token, error);
  if (type == IMAP_TOKEN_ERROR)
    return type;
  lexer->used_text += (guint64)(lexer->at - from);
  if (lexer->used_text > lexer->max_text)
    return fail (lexer, "an endless response", error);
  token->type = type;
  token->spaced = lexer->spaced;
  if (type != IMAP_TOKEN_NONE)
    lexer->spaced = FALSE;
  return type;
}

gboolean
imap_token_is_atom (const ImapToken *token, const char *name)
{
  return token->type == IMAP_TOKEN_ATOM && g_ascii_strcasecmp (token->text, name) == 0;
}

gboolean
imap_token_is_nil (const ImapToken *token)
{
  return imap_token_is_atom (token, "NIL");
}

gboolean
imap_text_to_number (const char *text, gsize length, guint64 *number_out, gboolean *too_large_out)
{
  guint64 number = 0;

  if (too_large_out != NULL)
    *too_large_out = FALSE;
  if (length == 0)
    return FALSE;
  for (gsize i = 0; i < length; i++)
    if (!g_ascii_isdigit (text[i]))
      return FALSE;
  for (gsize i = 0; i < length; i++)
    {
      guint64 digit = (guint64)(text[i] - '0');

      if (number > (G_MAXINT64 - digit) / 10)
        {
          if (too_large_out != NULL)
            *too_large_out = TRUE;
          return FALSE;
        }
      number = number * 10 + digit;
    }
  *number_out = number;
  return TRUE;
}

gboolean
imap_text_to_range (const char *text, gsize length, guint32 *first_out, guint32 *last_out)
{
  const char *colon = memchr (text, ':', length);
  gsize first_length = colon != NULL ? (gsize)(colon - text) : length;
  guint64 first, last;

  if (!imap_text_to_number (text, first_length, &first, NULL))
    return FALSE;
  last = first;
  if (colon != NULL && !imap_text_to_number (colon + 1, length - first_length - 1, &last, NULL))
    return FALSE;
  if (first == 0 || last == 0 || first > G_MAXUINT32 || last > G_MAXUINT32)
    return FALSE;
  *first_out = (guint32)first;
  *last_out = (guint32)last;
  return TRUE;
}
