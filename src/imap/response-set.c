/* SPDX-License-Identifier: MIT
 *
 * Responses that are mostly numbers and may be long: SEARCH, ESEARCH (RFC 4731), VANISHED (RFC
 * 7162). Read number by number into ranges, so that a million of them cost no text and, where they
 * follow each other, no memory. Net thread.
 */
#include "imap/response-private.h"

#include <string.h>

enum
{
  STATE_SEARCH,        /* numbers, or "(" */
  STATE_SEARCH_MODSEQ, /* "(MODSEQ 5)": the word */
  STATE_SEARCH_NUMBER,
  STATE_SEARCH_CLOSE,
  STATE_ESEARCH,      /* "(", "UID", or the name of a return item */
  STATE_ESEARCH_TAG,  /* inside the correlator */
  STATE_ESEARCH_ITEM, /* the name of a return item */
  STATE_ESEARCH_NUMBER,
  STATE_ESEARCH_RANGE,
  STATE_ESEARCH_MORE, /* "," or the next name */
  STATE_ESEARCH_SKIP,
  STATE_VANISHED, /* "(" or a range */
  STATE_VANISHED_EARLIER,
  STATE_VANISHED_RANGE,
  STATE_VANISHED_MORE, /* "," or the end */
};

static gboolean
fail (ImapParser *parser, const char *what, GError **error)
{
  return imap_lexer_fail (&parser->lexer, what, error);
}

/* Keeps the set within its bound: sorting and merging as soon as it is full, which is linear in the
 * long run because at least a quarter must have become free. */
static gboolean
add_range (ImapParser *parser, const ImapToken *token, GError **error)
{
  MailUidSet *set = parser->sets.set;
  guint max = parser->limits.max_ranges;
  guint32 first, last;

  if (token->type != IMAP_TOKEN_ATOM
      || !imap_text_to_range (token->text, token->length, &first, &last))
    return fail (parser, "a malformed set", error);
  mail_uid_set_append (set, first, last);
  if (set->len < max)
    return TRUE;
  mail_uid_set_normalize (set);
  if (set->len > max - max / 4)
    return fail (parser, "too fragmented a set", error);
  return TRUE;
}

static gboolean
read_number (ImapParser *parser, const ImapToken *token, guint64 max, guint64 *number_out,
             GError **error)
{
  if (token->type != IMAP_TOKEN_ATOM
      || !imap_text_to_number (token->text, token->length, number_out, NULL) || *number_out > max)
    return fail (parser, "a malformed number", error);
  return TRUE;
}

static gboolean
end_search (ImapParser *parser)
{
  ImapSearch *result = &parser->sets.result;

  mail_uid_set_normalize (parser->sets.set);
  result->set = parser->sets.set;
  result->tag = parser->sets.tag->len > 0 ? parser->sets.tag->str : NULL;
  IMAP_CALL (parser, search, result, parser->user_data);
  g_array_set_size (parser->sets.set, 0);
  return imap_parser_end_response (parser);
}

static gboolean
step_search (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapSetState *sets = &parser->sets;

  if (token->type == IMAP_TOKEN_EOL && sets->state == STATE_SEARCH)
    return end_search (parser);
  switch (sets->state)
    {
    case STATE_SEARCH:
      if (token->type != IMAP_TOKEN_OPEN)
        return add_range (parser, token, error);
      sets->state = STATE_SEARCH_MODSEQ;
      return TRUE;
    case STATE_SEARCH_MODSEQ:
      if (!imap_token_is_atom (token, "MODSEQ"))
        return fail (parser, "a malformed SEARCH", error);
      sets->state = STATE_SEARCH_NUMBER;
      return TRUE;
    case STATE_SEARCH_NUMBER:
      sets->state = STATE_SEARCH_CLOSE;
      return read_number (parser, token, G_MAXUINT64, &sets->result.modseq, error);
    default:
      if (token->type != IMAP_TOKEN_CLOSE)
        return fail (parser, "a malformed SEARCH", error);
      sets->state = STATE_SEARCH;
      return TRUE;
    }
}

enum
{
  ITEM_MIN,
  ITEM_MAX,
  ITEM_COUNT,
  ITEM_MODSEQ,
  ITEM_ALL,
  ITEM_UNKNOWN,
};

static int
find_item (const char *name)
{
  static const char *const names[] = { "MIN", "MAX", "COUNT", "MODSEQ", "ALL" };
  int item;

  for (item = 0; item < ITEM_UNKNOWN; item++)
    if (g_ascii_strcasecmp (name, names[item]) == 0)
      break;
  return item;
}

static gboolean
read_item_name (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapSetState *sets = &parser->sets;

  if (token->type == IMAP_TOKEN_EOL)
    return end_search (parser);
  if (token->type != IMAP_TOKEN_ATOM)
    return fail (parser, "a malformed ESEARCH", error);
  sets->item = find_item (token->text);
  sets->depth = 0;
  sets->state = sets->item == ITEM_ALL       ? STATE_ESEARCH_RANGE
                : sets->item == ITEM_UNKNOWN ? STATE_ESEARCH_SKIP
                                             : STATE_ESEARCH_NUMBER;
  return TRUE;
}

static gboolean
read_item_number (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapSearch *result = &parser->sets.result;
  gboolean is_modseq = parser->sets.item == ITEM_MODSEQ;
  guint64 number;

  if (!read_number (parser, token, is_modseq ? G_MAXUINT64 : G_MAXUINT32, &number, error))
    return FALSE;
  switch (parser->sets.item)
    {
    case ITEM_MIN:
      result->has_min = TRUE;
      result->min = (guint32)number;
      break;
    case ITEM_MAX:
      result->has_max = TRUE;
      result->max = (guint32)number;
      break;
    case ITEM_COUNT:
      result->has_count = TRUE;
      result->count = (guint32)number;
      break;
    default:
      result->modseq = number;
      break;
    }
  parser->sets.state = STATE_ESEARCH_ITEM;
  return TRUE;
}

/* The value of a return item nobody asked for: one word, a set, or a list. */
static gboolean
skip_item (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapSetState *sets = &parser->sets;

  if (token->type == IMAP_TOKEN_EOL || (token->type == IMAP_TOKEN_CLOSE && sets->depth == 0))
    return fail (parser, "a malformed ESEARCH", error);
  if (token->type == IMAP_TOKEN_OPEN)
    sets->depth++;
  else if (token->type == IMAP_TOKEN_CLOSE)
    sets->depth--;
  if (sets->depth == 0 && token->type != IMAP_TOKEN_COMMA)
    sets->state = STATE_ESEARCH_MORE;
  return TRUE;
}

static gboolean
read_correlator (ImapParser *parser, const ImapToken *token, GError **error)
{
  if (token->type == IMAP_TOKEN_CLOSE)
    {
      parser->sets.state = STATE_ESEARCH;
      return TRUE;
    }
  if (token->type != IMAP_TOKEN_ATOM && token->type != IMAP_TOKEN_STRING)
    return fail (parser, "a malformed ESEARCH", error);
  if (parser->sets.depth++ == 1) /* "TAG", then the tag */
    g_string_append_len (parser->sets.tag, token->text, (gssize)token->length);
  return TRUE;
}

static gboolean
step_esearch (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapSetState *sets = &parser->sets;

  switch (sets->state)
    {
    case STATE_ESEARCH:
      if (token->type == IMAP_TOKEN_OPEN)
        {
          g_string_truncate (sets->tag, 0);
          sets->depth = 0;
          sets->state = STATE_ESEARCH_TAG;
          return TRUE;
        }
      sets->state = STATE_ESEARCH_ITEM;
      if (!imap_token_is_atom (token, "UID"))
        return read_item_name (parser, token, error);
      sets->result.uid = TRUE;
      return TRUE;
    case STATE_ESEARCH_TAG:
      return read_correlator (parser, token, error);
    case STATE_ESEARCH_NUMBER:
      return read_item_number (parser, token, error);
    case STATE_ESEARCH_RANGE:
      sets->result.has_all = TRUE;
      sets->state = STATE_ESEARCH_MORE;
      return add_range (parser, token, error);
    case STATE_ESEARCH_SKIP:
      return skip_item (parser, token, error);
    case STATE_ESEARCH_MORE:
      if (token->type == IMAP_TOKEN_COMMA)
        {
          sets->state = sets->item == ITEM_ALL ? STATE_ESEARCH_RANGE : STATE_ESEARCH_SKIP;
          return TRUE;
        }
      return read_item_name (parser, token, error);
    default:
      return read_item_name (parser, token, error);
    }
}

static gboolean
step_vanished (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapSetState *sets = &parser->sets;

  switch (sets->state)
    {
    case STATE_VANISHED:
      if (token->type == IMAP_TOKEN_OPEN)
        {
          sets->state = STATE_VANISHED_EARLIER;
          return TRUE;
        }
      sets->state = STATE_VANISHED_MORE;
      return add_range (parser, token, error);
    case STATE_VANISHED_EARLIER:
      if (token->type == IMAP_TOKEN_CLOSE)
        sets->state = STATE_VANISHED_RANGE;
      else if (imap_token_is_atom (token, "EARLIER"))
        sets->earlier = TRUE;
      else
        return fail (parser, "a malformed VANISHED", error);
      return TRUE;
    case STATE_VANISHED_RANGE:
      sets->state = STATE_VANISHED_MORE;
      return add_range (parser, token, error);
    default:
      if (token->type == IMAP_TOKEN_COMMA)
        {
          sets->state = STATE_VANISHED_RANGE;
          return TRUE;
        }
      if (token->type != IMAP_TOKEN_EOL)
        return fail (parser, "a malformed VANISHED", error);
      mail_uid_set_normalize (sets->set);
      IMAP_CALL (parser, vanished, sets->set, sets->earlier, parser->user_data);
      g_array_set_size (sets->set, 0);
      return imap_parser_end_response (parser);
    }
}

gboolean
imap_parser_begin_set (ImapParser *parser, const char *name)
{
  static const struct
  {
    const char *name;
    int state;
    ImapStepFunc step;
  } kinds[] = { { "SEARCH", STATE_SEARCH, step_search },
                { "ESEARCH", STATE_ESEARCH, step_esearch },
                { "VANISHED", STATE_VANISHED, step_vanished } };

  for (gsize i = 0; i < G_N_ELEMENTS (kinds); i++)
    {
      if (g_ascii_strcasecmp (name, kinds[i].name) != 0)
        continue;
      parser->sets.state = kinds[i].state;
      parser->sets.earlier = FALSE;
      parser->sets.result = (ImapSearch) { .extended = kinds[i].step == step_esearch };
      g_string_truncate (parser->sets.tag, 0);
      g_array_set_size (parser->sets.set, 0);
      parser->lexer.mode = IMAP_LEX_SET;
      parser->lexer.max_text = parser->limits.max_stream;
      parser->lexer.literals = IMAP_LITERAL_KEEP;
      parser->step = kinds[i].step;
      return TRUE;
    }
  return FALSE;
}
