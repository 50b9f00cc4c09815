/* SPDX-License-Identifier: MIT
 *
 * ImapLexer: the tokens of each mode, fed whole, in two pieces cut anywhere, and byte by byte.
 */
#include "imap/token.h"

#include "mailfs/error.h"

#include <string.h>

#define IN(text) text, sizeof text - 1

/* tokens: a word as it is, "x" a string, ... ; "." is a space before the next token. */
static const struct
{
  const char *name;
  ImapLexMode mode;
  ImapLiteralUse literals;
  const char *input;
  gsize length;
  const char *tokens;
} cases[] = {
  { "words", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("a  12 NIL \\Seen a[b]{c\r\n"),
    "a .12 .NIL .\\Seen .a[b]{c EOL" },
  { "lists", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("(a(b) )\n"), "( a ( b ) .) EOL" },
  { "quoted", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("\"a b\" \"\"\"\\\"\\\\x\"\r\n"),
    "\"a b\" .\"\" \"\"\\x\" EOL" },
  { "8 bit", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("\303\244 \"\377\"\r\n"),
    "\303\244 .\"\377\" EOL" },
  { "literals kept", IMAP_LEX_DATA, IMAP_LITERAL_KEEP,
    IN ("{3}\r\na\r\n{0}\r\n{1+}\r\nx~{2}\r\nyz)\r\n"), "\"a\r\n\" \"\" \"x\" \"yz\" ) EOL" },
  { "literals dropped", IMAP_LEX_DATA, IMAP_LITERAL_DROP, IN ("{3}\r\n)))({0}\r\n\r\n"),
    "\"\" ( \"\" EOL" },
  { "literals streamed", IMAP_LEX_DATA, IMAP_LITERAL_STREAM, IN ("{3}\r\n)))({0}\r\n\r\n"),
    "LITERAL:3 ))) END ( LITERAL:0 END EOL" },
  { "leading zeros", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("{0000000000000000000000002}\r\nab\r\n"),
    "\"ab\" EOL" },
  { "tilde", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("~ ~a ~~\r\n"), "~ .~a .~~ EOL" },
  { "brackets", IMAP_LEX_SECTION, IMAP_LITERAL_KEEP, IN ("BODY[1 (A)]<0>{1}\r\nx\r\n"),
    "BODY [ 1 .( A ) ] <0> \"x\" EOL" },
  { "commas", IMAP_LEX_SET, IMAP_LITERAL_KEEP, IN ("1:2,3, 4[\r\n"), "1:2 , 3 , .4[ EOL" },
  { "start", IMAP_LEX_START, IMAP_LITERAL_KEEP, IN ("++*\r\n"), "PLUS PLUS * EOL" },
  { "start with a space", IMAP_LEX_START, IMAP_LITERAL_KEEP, IN (" *\r\n"), "ERROR" },
  { "text", IMAP_LEX_TEXT, IMAP_LITERAL_KEEP, IN ("  (a) \"{3}\r\nb\r\n"),
    "TEXT< (a) \"{3}> TEXT<b>" },
  { "text with CR", IMAP_LEX_TEXT, IMAP_LITERAL_KEEP, IN ("a\rb\r\r\n\n"), "TEXT<a\rb\r> TEXT<>" },
  { "text with NUL", IMAP_LEX_TEXT, IMAP_LITERAL_KEEP, IN ("a\0b\r\n"), "ERROR" },
  { "skip", IMAP_LEX_SKIP, IMAP_LITERAL_KEEP, IN ("\"( {4}\r\n\r\n\r\n {1+}\r\n\nx\r\n\n"),
    "EOL EOL" },
  { "skip without literal", IMAP_LEX_SKIP, IMAP_LITERAL_KEEP, IN ("{4}x\r\n{x}\n{1{\n{+}\n{1+2}\n"),
    "EOL EOL EOL EOL EOL" },
  { "skip nested header", IMAP_LEX_SKIP, IMAP_LITERAL_KEEP, IN ("{9{2}\r\n\n\n\n"), "EOL" },
  { "NUL", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("a\0"), "a ERROR" },
  { "CR", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("a\rb\n"), "a ERROR" },
  { "quoted NUL", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("\"\0\""), "ERROR" },
  { "quoted escaped NUL", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("\"\\\0\""), "ERROR" },
  { "quoted CR", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("\"a\r"), "ERROR" },
  { "quoted LF", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("\"a\n"), "ERROR" },
  { "literal of 63 bits", IMAP_LEX_DATA, IMAP_LITERAL_STREAM, IN ("{9223372036854775807}\r\n"),
    "LITERAL:9223372036854775807" },
  { "literal of 64 bits", IMAP_LEX_DATA, IMAP_LITERAL_STREAM, IN ("{9223372036854775808}"),
    "ERROR" },
  { "literal without number", IMAP_LEX_DATA, IMAP_LITERAL_STREAM, IN ("{}"), "ERROR" },
  { "literal negative", IMAP_LEX_DATA, IMAP_LITERAL_STREAM, IN ("{-1}"), "ERROR" },
  { "literal space", IMAP_LEX_DATA, IMAP_LITERAL_STREAM, IN ("{ 1}"), "ERROR" },
  { "literal plus plus", IMAP_LEX_DATA, IMAP_LITERAL_STREAM, IN ("{1++}"), "ERROR" },
  { "literal and text", IMAP_LEX_DATA, IMAP_LITERAL_STREAM, IN ("{1}x"), "ERROR" },
  { "token too long", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    "ERROR" },
  { "string too long", IMAP_LEX_DATA, IMAP_LITERAL_KEEP,
    IN ("\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\""), "ERROR" },
  { "literal too long", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("{33}\r\n"), "ERROR" },
  { "literals too long", IMAP_LEX_DATA, IMAP_LITERAL_KEEP, IN ("{2}\r\nab{31}\r\n"),
    "\"ab\" ERROR" },
  { "dropped too long", IMAP_LEX_DATA, IMAP_LITERAL_DROP, IN ("{65}\r\n"), "ERROR" },
  { "skipped too long", IMAP_LEX_SKIP, IMAP_LITERAL_DROP, IN ("{65}\r\n"), "ERROR" },
  { "spaces too long", IMAP_LEX_DATA, IMAP_LITERAL_KEEP,
    IN ("a                                                                                 "
        "                                                                             "),
    "a ERROR" },
};

static void
put (GString *out, const ImapToken *token)
{
  static const char *const names[] = { "?", "ERROR", "?", "?",   "(", ")", "[",  "]",
                                       ",", "PLUS",  "?", "EOL", "?", "?", "END" };

  if (token->type == IMAP_TOKEN_BYTES && g_str_has_suffix (out->str, "\001"))
    {
      g_string_truncate (out, out->len - 1); /* goes on with the bytes before */
      g_string_append_len (out, token->text, (gssize)token->length);
      g_string_append_c (out, '\001');
      return;
    }
  if (g_str_has_suffix (out->str, "\001"))
    g_string_truncate (out, out->len - 1);
  if (out->len > 0)
    g_string_append_c (out, ' ');
  if (token->spaced)
    g_string_append_c (out, '.');
  if (token->type == IMAP_TOKEN_ATOM)
    g_string_append (out, token->text);
  else if (token->type == IMAP_TOKEN_STRING)
    g_string_append_printf (out, "\"%s\"", token->text);
  else if (token->type == IMAP_TOKEN_TEXT)
    g_string_append_printf (out, "TEXT<%s>", token->text);
  else if (token->type == IMAP_TOKEN_LITERAL)
    g_string_append_printf (out, "LITERAL:%" G_GUINT64_FORMAT, token->size);
  else if (token->type == IMAP_TOKEN_BYTES)
    {
      g_string_append_len (out, token->text, (gssize)token->length);
      g_string_append_c (out, '\001');
    }
  else
    g_string_append (out, names[token->type]);
}

/* FALSE after an error. */
static gboolean
feed (ImapLexer *lexer, GString *out, const char *input, gsize length)
{
  g_autoptr (GError) error = NULL;
  ImapToken token;

  imap_lexer_give (lexer, input, length);
  for (;;)
    switch (imap_lexer_next (lexer, &token, &error))
      {
      case IMAP_TOKEN_NONE:
        g_assert_cmpuint (imap_lexer_taken (lexer), ==, length);
        return TRUE;
      case IMAP_TOKEN_ERROR:
        g_assert_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL);
        token = (ImapToken) { .type = IMAP_TOKEN_ERROR };
        put (out, &token);
        return FALSE;
      default:
        put (out, &token);
        break;
      }
}

static char *
tokens_of (gsize i, gsize first, gsize step)
{
  GString *out = g_string_new (NULL);
  gsize length = cases[i].length;
  ImapLexer lexer;

  imap_lexer_init (&lexer);
  imap_lexer_begin_response (&lexer);
  lexer.mode = cases[i].mode;
  lexer.literals = cases[i].literals;
  lexer.max_token = lexer.max_kept = 32;
  lexer.max_dropped = 64;
  lexer.max_text = 128;
  for (gsize at = 0, n = first; at < length; at += n, n = MIN (step, length - at))
    if (!feed (&lexer, out, cases[i].input + at, n))
      break;
  imap_lexer_clear (&lexer);
  return g_string_free (out, FALSE);
}

static void
test_case (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  gsize length = cases[i].length;
  g_autofree char *bytes = tokens_of (i, 1, 1);

  g_assert_cmpstr (bytes, ==, cases[i].tokens);
  for (gsize cut = 1; cut <= length; cut++)
    {
      g_autofree char *tokens = tokens_of (i, cut, length);

      g_assert_cmpstr (tokens, ==, cases[i].tokens);
    }
}

static void
test_numbers (void)
{
  guint64 number;
  guint32 first, last;
  gboolean too_large;

  g_assert_true (imap_text_to_number ("9223372036854775807", 19, &number, &too_large));
  g_assert_cmpuint (number, ==, G_MAXINT64);
  g_assert_false (imap_text_to_number ("9223372036854775808", 19, &number, &too_large));
  g_assert_true (too_large);
  g_assert_false (imap_text_to_number ("99999999999999999999999x", 24, &number, &too_large));
  g_assert_false (too_large);
  g_assert_false (imap_text_to_number ("", 0, &number, &too_large));
  g_assert_true (imap_text_to_range ("4294967295:1", 12, &first, &last));
  g_assert_cmpuint (first, ==, G_MAXUINT32);
  g_assert_cmpuint (last, ==, 1);
  for (const char *const *bad = (const char *const[]) { "", ":", "1:", ":1", "0", "1:0", "1:*", "*",
                                                        "4294967296", "1:2:3", "-1", NULL };
       *bad != NULL; bad++)
    g_assert_false (imap_text_to_range (*bad, strlen (*bad), &first, &last));
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (gsize i = 0; i < G_N_ELEMENTS (cases); i++)
    {
      g_autofree char *path = g_strdup_printf ("/imap/token/%s", cases[i].name);

      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_case);
    }
  g_test_add_func ("/imap/token/numbers", test_numbers);
  return g_test_run ();
}
