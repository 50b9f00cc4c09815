/* SPDX-License-Identifier: MIT
 *
 * ImapParser: feeding, and finding out which response a line is. Each kind of response has a step
 * function that takes one token at a time, so that there is no difference between a response that
 * came whole and one that came byte by byte. Net thread; no session state, no I/O.
 */
#include "imap/response-private.h"

#include "mailfs/log.h"

#include <string.h>

#define MAX_TAG 100

enum
{
  NUMBERED_EXISTS,
  NUMBERED_RECENT,
  NUMBERED_EXPUNGE,
};

static const ImapParserLimits default_limits = {
  .max_text = 1 << 20,
  .max_literals = 1 << 20,
  .max_stream = 64 << 20,
  .max_ranges = 1 << 20,
};

static gboolean step_start (ImapParser *parser, const ImapToken *token, GError **error);

ImapParser *
imap_parser_new (const ImapResponseHandler *handler, gpointer user_data,
                 const ImapParserLimits *limits)
{
  ImapParser *parser = g_new0 (ImapParser, 1);

  parser->handler = handler;
  parser->user_data = user_data;
  parser->limits = limits != NULL ? *limits : default_limits;
  parser->tag = g_string_new (NULL);
  parser->items = g_array_new (FALSE, FALSE, sizeof (ImapItem));
  parser->bytes = g_string_new (NULL);
  parser->sets.tag = g_string_new (NULL);
  parser->sets.set = mail_uid_set_new ();
  parser->fetch.section = g_string_new (NULL);
  imap_flag_list_init (&parser->flags);
  imap_flag_list_init (&parser->fetch.flags);
  imap_lexer_init (&parser->lexer);
  imap_parser_end_response (parser);
  return parser;
}

void
imap_parser_free (ImapParser *parser)
{
  if (parser == NULL)
    return;
  g_string_free (parser->tag, TRUE);
  g_array_unref (parser->items);
  g_string_free (parser->bytes, TRUE);
  g_string_free (parser->sets.tag, TRUE);
  mail_uid_set_free (parser->sets.set);
  g_string_free (parser->fetch.section, TRUE);
  imap_flag_list_clear (&parser->flags);
  imap_flag_list_clear (&parser->fetch.flags);
  imap_lexer_clear (&parser->lexer);
  g_free (parser);
}

gboolean
imap_parser_end_response (ImapParser *parser)
{
  imap_lexer_begin_response (&parser->lexer);
  parser->lexer.max_token = parser->limits.max_text;
  parser->lexer.max_text = parser->limits.max_text;
  parser->lexer.max_kept = parser->limits.max_literals;
  parser->lexer.max_dropped = parser->limits.max_stream;
  parser->step = step_start;
  parser->idle = TRUE;
  return TRUE;
}

static gboolean
step_skip (ImapParser *parser, const ImapToken *token, GError **error)
{
  return imap_parser_end_response (parser); /* the only token of this mode is the line end */
}

gboolean
imap_parser_skip_rest (ImapParser *parser)
{
  parser->lexer.mode = IMAP_LEX_SKIP;
  parser->lexer.max_text = parser->limits.max_stream;
  parser->step = step_skip;
  return TRUE;
}

static gboolean
step_status (ImapParser *parser, const ImapToken *token, GError **error)
{
  imap_parser_report_status (parser, token->text);
  return imap_parser_end_response (parser);
}

/* OK, NO, BAD (and, untagged, PREAUTH and BYE): what follows is text for people, with a code. */
static gboolean
begin_status (ImapParser *parser, const ImapToken *token)
{
  static const struct
  {
    const char *name;
    ImapCondition condition;
  } conditions[] = { { "OK", IMAP_OK },
                     { "NO", IMAP_NO },
                     { "BAD", IMAP_BAD },
                     { "PREAUTH", IMAP_PREAUTH },
                     { "BYE", IMAP_BYE } };

  for (gsize i = 0; i < G_N_ELEMENTS (conditions); i++)
    if (imap_token_is_atom (token, conditions[i].name))
      {
        if (parser->tag->len > 0 && conditions[i].condition > IMAP_BAD)
          return FALSE;
        parser->condition = conditions[i].condition;
        parser->lexer.mode = IMAP_LEX_TEXT;
        parser->step = step_status;
        return TRUE;
      }
  return FALSE;
}

static gboolean
step_tagged (ImapParser *parser, const ImapToken *token, GError **error)
{
  if (!begin_status (parser, token))
    return imap_lexer_fail (&parser->lexer, "neither OK, NO nor BAD behind a tag", error);
  return TRUE;
}

static gboolean
step_continuation (ImapParser *parser, const ImapToken *token, GError **error)
{
  IMAP_CALL (parser, continuation, token->text, parser->user_data);
  return imap_parser_end_response (parser);
}

/* The line end behind EXISTS, RECENT, EXPUNGE; whatever else stood there was dropped. */
static gboolean
step_numbered_end (ImapParser *parser, const ImapToken *token, GError **error)
{
  guint32 number = (guint32)parser->number;

  switch (parser->numbered)
    {
    case NUMBERED_EXISTS:
      IMAP_CALL (parser, exists, number, parser->user_data);
      break;
    case NUMBERED_RECENT:
      IMAP_CALL (parser, recent, number, parser->user_data);
      break;
    default:
      IMAP_CALL (parser, expunge, number, parser->user_data);
      break;
    }
  return imap_parser_end_response (parser);
}

static gboolean
step_numbered (ImapParser *parser, const ImapToken *token, GError **error)
{
  gboolean is_fetch = imap_token_is_atom (token, "FETCH");
  gboolean is_expunge = imap_token_is_atom (token, "EXPUNGE");
  gboolean is_exists = imap_token_is_atom (token, "EXISTS");

  if (token->type != IMAP_TOKEN_ATOM)
    return imap_lexer_fail (&parser->lexer, "a number without a word", error);
  if (!is_fetch && !is_expunge && !is_exists && !imap_token_is_atom (token, "RECENT"))
    return imap_parser_skip_rest (parser);
  if (parser->number_too_large || parser->number > G_MAXUINT32
      || (parser->number == 0 && (is_fetch || is_expunge)))
    return imap_lexer_fail (&parser->lexer, "an impossible message number", error);
  if (is_fetch)
    {
      imap_parser_begin_fetch (parser, (guint32)parser->number);
      return TRUE;
    }
  parser->numbered = is_exists ? NUMBERED_EXISTS : is_expunge ? NUMBERED_EXPUNGE : NUMBERED_RECENT;
  imap_parser_skip_rest (parser);
  parser->step = step_numbered_end;
  return TRUE;
}

static gboolean
step_untagged (ImapParser *parser, const ImapToken *token, GError **error)
{
  if (token->type != IMAP_TOKEN_ATOM)
    return imap_lexer_fail (&parser->lexer, "a response without a name", error);
  parser->lexer.mode = IMAP_LEX_DATA;
  if (imap_text_to_number (token->text, token->length, &parser->number, &parser->number_too_large)
      || parser->number_too_large)
    {
      parser->step = step_numbered;
      return TRUE;
    }
  if (begin_status (parser, token) || imap_parser_begin_set (parser, token->text))
    return TRUE;
  parser->read = imap_parser_find_reader (token->text);
  if (parser->read == NULL)
    return imap_parser_skip_rest (parser);
  g_array_set_size (parser->items, 0);
  g_string_truncate (parser->bytes, 0);
  parser->step = imap_parser_step_gather;
  return TRUE;
}

static gboolean
step_start (ImapParser *parser, const ImapToken *token, GError **error)
{
  g_string_truncate (parser->tag, 0);
  parser->lexer.mode = IMAP_LEX_DATA;
  if (token->type == IMAP_TOKEN_PLUS)
    {
      parser->lexer.mode = IMAP_LEX_TEXT;
      parser->step = step_continuation;
      return TRUE;
    }
  if (token->type != IMAP_TOKEN_ATOM || token->length > MAX_TAG)
    return imap_lexer_fail (&parser->lexer, "a line that starts like none", error);
  if (strcmp (token->text, "*") == 0)
    {
      parser->step = step_untagged;
      return TRUE;
    }
  g_string_append_len (parser->tag, token->text, (gssize)token->length);
  parser->step = step_tagged;
  return TRUE;
}

static gboolean
take_tokens (ImapParser *parser, GError **error)
{
  while (!parser->paused || !parser->idle)
    {
      ImapToken token;
      ImapTokenType type = imap_lexer_next (&parser->lexer, &token, error);

      if (type == IMAP_TOKEN_NONE)
        return TRUE;
      if (type == IMAP_TOKEN_ERROR)
        return FALSE;
      parser->idle = FALSE;
      if (!parser->step (parser, &token, error))
        return FALSE;
    }
  return TRUE;
}

gboolean
imap_parser_feed (ImapParser *parser, const void *data, gsize length, gsize *consumed_out,
                  GError **error)
{
  gboolean ok;

  if (consumed_out != NULL)
    *consumed_out = 0;
  if (parser->dead)
    {
      g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL,
                           "the server has sent nonsense before");
      return FALSE;
    }
  if (length == 0)
    return TRUE;
  parser->paused = FALSE;
  imap_lexer_give (&parser->lexer, data, length);
  ok = take_tokens (parser, error);
  parser->dead = !ok;
  if (consumed_out != NULL)
    *consumed_out = imap_lexer_taken (&parser->lexer);
  return ok;
}

void
imap_parser_pause (ImapParser *parser)
{
  parser->paused = TRUE;
}

gboolean
imap_parser_is_idle (const ImapParser *parser)
{
  return parser->idle && imap_lexer_is_idle (&parser->lexer) && !parser->dead;
}
