/* SPDX-License-Identifier: MIT
 *
 * ImapLexer: cuts what an IMAP server sends into tokens, from chunks cut anywhere. Private to the
 * parser, which tells it before each token in which mode to read and what to do with a literal.
 * Counts bytes against the limits of one response; never looks at what a token means. Net thread.
 */
#pragma once

#include <glib.h>

typedef enum
{
  IMAP_LEX_START,   /* first token of a line: as DATA, but '+' is a token and a space is an error */
  IMAP_LEX_DATA,    /* atoms, strings, parentheses; brackets are ordinary characters */
  IMAP_LEX_SECTION, /* as DATA, and '[' ']' '{' end an atom */
  IMAP_LEX_SET,     /* as DATA, and ',' is a token, so that a long set comes in small pieces */
  IMAP_LEX_TEXT,    /* the rest of the line, less one leading space, is one token */
  IMAP_LEX_SKIP,    /* drops the rest of the response, with its literals, up to IMAP_TOKEN_EOL */
} ImapLexMode;

typedef enum
{
  IMAP_LITERAL_KEEP,   /* becomes IMAP_TOKEN_STRING, bounded by max_literals */
  IMAP_LITERAL_DROP,   /* becomes an empty IMAP_TOKEN_STRING */
  IMAP_LITERAL_STREAM, /* becomes LITERAL, any number of BYTES, LITERAL_END */
} ImapLiteralUse;

typedef enum
{
  IMAP_TOKEN_NONE,  /* more input is needed */
  IMAP_TOKEN_ERROR, /* error is set; do not go on */
  IMAP_TOKEN_ATOM,  /* numbers and NIL too */
  IMAP_TOKEN_STRING,
  IMAP_TOKEN_OPEN,
  IMAP_TOKEN_CLOSE,
  IMAP_TOKEN_BRACKET_OPEN,
  IMAP_TOKEN_BRACKET_CLOSE,
  IMAP_TOKEN_COMMA,
  IMAP_TOKEN_PLUS,
  IMAP_TOKEN_TEXT, /* and the line end behind it */
  IMAP_TOKEN_EOL,
  IMAP_TOKEN_LITERAL, /* size */
  IMAP_TOKEN_BYTES,
  IMAP_TOKEN_LITERAL_END,
} ImapTokenType;

typedef struct
{
  ImapTokenType type;
  const char *text; /* ATOM, STRING, TEXT: NUL-terminated; BYTES: not. Valid until the next token */
  gsize length;
  guint64 size;    /* LITERAL */
  gboolean spaced; /* a space stood before it */
} ImapToken;

typedef struct
{
  /* The parser's to set. */
  ImapLexMode mode;
  ImapLiteralUse literals;
  gsize max_token;     /* bytes of one atom, string or text */
  guint64 max_text;    /* bytes of one response outside literals */
  guint64 max_kept;    /* bytes of kept literals in one response */
  guint64 max_dropped; /* bytes of dropped literals in one response */

  /* The lexer's own. */
  int state;
  gboolean spaced;
  GString *text;     /* the token being gathered */
  guint64 remaining; /* of the literal at hand, or its size while that is read */
  guint n_digits;
  int tail; /* SKIP: how much of a trailing "{n+}" was seen */
  guint64 used_text;
  guint64 used_kept;
  guint64 used_dropped;
  const char *input, *at, *end; /* the chunk at hand */
} ImapLexer;

void imap_lexer_init (ImapLexer *lexer);
void imap_lexer_clear (ImapLexer *lexer);

/* data is borrowed until the next chunk is given. */
void imap_lexer_give (ImapLexer *lexer, const void *data, gsize length);
/* How many bytes of the chunk have been taken. */
gsize imap_lexer_taken (const ImapLexer *lexer);
/* No byte of an unfinished token was taken. */
gboolean imap_lexer_is_idle (const ImapLexer *lexer);
/* Counts from zero again; mode START, literals KEEP. */
void imap_lexer_begin_response (ImapLexer *lexer);

ImapTokenType imap_lexer_next (ImapLexer *lexer, ImapToken *token, GError **error);

/* Sets MAIL_ERROR_PROTOCOL, "the server sent <what> near <excerpt of the chunk>". Always FALSE. */
gboolean imap_lexer_fail (const ImapLexer *lexer, const char *what, GError **error);

/* What a token says. */
gboolean imap_token_is_nil (const ImapToken *token);
gboolean imap_token_is_atom (const ImapToken *token, const char *name); /* any case */
/* FALSE when it is no plain decimal number or above 2^63 - 1; *too_large_out tells which. */
gboolean
imap_text_to_number (const char *text, gsize length, guint64 *number_out, gboolean *too_large_out);
/* "5" or "5:9" or "9:5", 1..2^32-1. */
gboolean imap_text_to_range (const char *text, gsize length, guint32 *first_out, guint32 *last_out);
