/* SPDX-License-Identifier: MIT
 *
 * FETCH responses: attributes in any order, bodies streamed through the handler as they arrive,
 * everything unknown stepped over by counting parentheses. Also the date-time of INTERNALDATE.
 * Net thread.
 */
#include "imap/response-private.h"

#include <stdio.h>
#include <string.h>

#define MAX_SECTION 1024

enum
{
  STATE_OPEN,      /* the "(" of the response */
  STATE_ATTRIBUTE, /* the name of one, or the last ")" */
  STATE_VALUE,     /* "[", or the value */
  STATE_FLAGS,
  STATE_MODSEQ,
  STATE_MODSEQ_CLOSE,
  STATE_SECTION, /* between the brackets */
  STATE_ORIGIN,  /* "<5>" or the value */
  STATE_BODY,    /* the value of BODY[] or BINARY[] */
  STATE_BYTES,
  STATE_SKIP,
  STATE_END,
};

enum
{
  ATTRIBUTE_UID,
  ATTRIBUTE_FLAGS,
  ATTRIBUTE_INTERNALDATE,
  ATTRIBUTE_SIZE,
  ATTRIBUTE_MODSEQ,
  ATTRIBUTE_BODY,
  ATTRIBUTE_BINARY,
  ATTRIBUTE_UNKNOWN,
};

static gboolean
fail (ImapParser *parser, const char *what, GError **error)
{
  return imap_lexer_fail (&parser->lexer, what, error);
}

void
imap_parser_begin_fetch (ImapParser *parser, guint32 seq)
{
  ImapFetchState *fetch = &parser->fetch;

  fetch->state = STATE_OPEN;
  fetch->data = (ImapFetch) { .seq = seq };
  imap_flag_list_reset (&fetch->flags);
  parser->lexer.mode = IMAP_LEX_SECTION;
  parser->lexer.literals = IMAP_LITERAL_DROP;
  parser->step = imap_parser_step_fetch;
  IMAP_CALL (parser, fetch_begin, seq, parser->user_data);
}

static gboolean
expect_attribute (ImapParser *parser)
{
  parser->fetch.state = STATE_ATTRIBUTE;
  parser->lexer.mode = IMAP_LEX_SECTION;
  parser->lexer.literals = IMAP_LITERAL_DROP;
  return TRUE;
}

static gboolean
read_attribute (ImapParser *parser, const ImapToken *token, GError **error)
{
  static const char *const names[] = { "UID",    "FLAGS", "INTERNALDATE", "RFC822.SIZE",
                                       "MODSEQ", "BODY",  "BINARY" };
  ImapFetchState *fetch = &parser->fetch;

  if (token->type == IMAP_TOKEN_CLOSE)
    {
      fetch->state = STATE_END;
      return TRUE;
    }
  if (token->type != IMAP_TOKEN_ATOM)
    return fail (parser, "a malformed FETCH", error);
  for (fetch->attribute = 0; fetch->attribute < ATTRIBUTE_UNKNOWN; fetch->attribute++)
    if (g_ascii_strcasecmp (token->text, names[fetch->attribute]) == 0)
      break;
  fetch->state = STATE_VALUE;
  if (fetch->attribute == ATTRIBUTE_INTERNALDATE)
    parser->lexer.literals = IMAP_LITERAL_KEEP;
  return TRUE;
}

static gboolean
read_uid (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapFetch *data = &parser->fetch.data;
  guint64 uid;

  if (token->type != IMAP_TOKEN_ATOM
      || !imap_text_to_number (token->text, token->length, &uid, NULL) || uid == 0
      || uid > G_MAXUINT32)
    return fail (parser, "an impossible UID", error);
  if (data->uid != 0 && data->uid != uid)
    return fail (parser, "two UIDs for one message", error);
  data->uid = (guint32)uid;
  data->fields |= IMAP_FETCH_UID;
  return expect_attribute (parser);
}

/* A size that is no number counts as not told; the true one shows when the message is read. */
static gboolean
read_size (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapFetch *data = &parser->fetch.data;
  gboolean too_large;

  if (token->type != IMAP_TOKEN_ATOM && token->type != IMAP_TOKEN_STRING)
    return fail (parser, "a malformed size", error);
  if (imap_text_to_number (token->text, token->length, &data->size, &too_large))
    data->fields |= IMAP_FETCH_SIZE;
  else if (too_large)
    return fail (parser, "an impossible size", error);
  return expect_attribute (parser);
}

static gboolean
read_date (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapFetch *data = &parser->fetch.data;

  if (token->type != IMAP_TOKEN_ATOM && token->type != IMAP_TOKEN_STRING)
    return fail (parser, "a malformed date", error);
  if (token->type == IMAP_TOKEN_STRING && imap_parse_date_time (token->text, &data->internaldate))
    data->fields |= IMAP_FETCH_INTERNALDATE;
  return expect_attribute (parser);
}

static gboolean
begin_skip (ImapParser *parser, const ImapToken *token, GError **error)
{
  switch (token->type)
    {
    case IMAP_TOKEN_ATOM:
    case IMAP_TOKEN_STRING:
      return expect_attribute (parser);
    case IMAP_TOKEN_OPEN:
      parser->fetch.depth = 1;
      parser->fetch.state = STATE_SKIP;
      parser->lexer.mode = IMAP_LEX_DATA;
      return TRUE;
    default:
      return fail (parser, "a malformed FETCH", error);
    }
}

static gboolean
read_value (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapFetchState *fetch = &parser->fetch;

  if (token->type == IMAP_TOKEN_BRACKET_OPEN && !token->spaced
      && fetch->attribute >= ATTRIBUTE_BODY)
    {
      g_string_truncate (fetch->section, 0);
      fetch->depth = 0;
      fetch->state = STATE_SECTION;
      parser->lexer.literals = IMAP_LITERAL_KEEP;
      return TRUE;
    }
  switch (fetch->attribute)
    {
    case ATTRIBUTE_UID:
      return read_uid (parser, token, error);
    case ATTRIBUTE_SIZE:
      return read_size (parser, token, error);
    case ATTRIBUTE_INTERNALDATE:
      return read_date (parser, token, error);
    case ATTRIBUTE_FLAGS:
    case ATTRIBUTE_MODSEQ:
      if (imap_token_is_nil (token))
        return expect_attribute (parser);
      if (token->type != IMAP_TOKEN_OPEN)
        return fail (parser, "a malformed FETCH", error);
      parser->lexer.mode = IMAP_LEX_DATA;
      fetch->state = fetch->attribute == ATTRIBUTE_FLAGS ? STATE_FLAGS : STATE_MODSEQ;
      if (fetch->state == STATE_FLAGS)
        imap_flag_list_reset (&fetch->flags);
      return TRUE;
    default:
      return begin_skip (parser, token, error);
    }
}

static gboolean
read_flag (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapFetchState *fetch = &parser->fetch;

  switch (token->type)
    {
    case IMAP_TOKEN_CLOSE:
      fetch->data.fields |= IMAP_FETCH_FLAGS;
      return expect_attribute (parser);
    case IMAP_TOKEN_ATOM:
    case IMAP_TOKEN_STRING:
      imap_flag_list_add (&fetch->flags, token->text);
      return TRUE;
    default:
      return fail (parser, "malformed flags", error);
    }
}

static gboolean
read_modseq (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapFetch *data = &parser->fetch.data;

  if (token->type != IMAP_TOKEN_ATOM
      || !imap_text_to_number (token->text, token->length, &data->modseq, NULL))
    return fail (parser, "an impossible MODSEQ", error);
  data->fields |= IMAP_FETCH_MODSEQ;
  parser->fetch.state = STATE_MODSEQ_CLOSE;
  return TRUE;
}

/* "1.MIME", "HEADER.FIELDS (DATE FROM)": put together again in one spelling. */
static gboolean
read_section (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapFetchState *fetch = &parser->fetch;
  GString *section = fetch->section;
  const char *text = token->text;

  if (token->type == IMAP_TOKEN_BRACKET_CLOSE && fetch->depth == 0)
    {
      gboolean wanted = fetch->attribute != ATTRIBUTE_UNKNOWN;

      fetch->state = STATE_ORIGIN;
      parser->lexer.literals = wanted ? IMAP_LITERAL_STREAM : IMAP_LITERAL_DROP;
      fetch->body = (ImapBody) { .seq = fetch->data.seq,
                                 .binary = fetch->attribute == ATTRIBUTE_BINARY };
      return TRUE;
    }
  if (token->type == IMAP_TOKEN_OPEN && fetch->depth++ == 0)
    text = "(";
  else if (token->type == IMAP_TOKEN_CLOSE && fetch->depth > 0 && --fetch->depth == 0)
    text = ")";
  else if (token->type != IMAP_TOKEN_ATOM && token->type != IMAP_TOKEN_STRING)
    return fail (parser, "a malformed section", error);
  if (section->len + strlen (text) > MAX_SECTION)
    return fail (parser, "an endless section", error);
  if (section->len > 0 && text[0] != ')' && section->str[section->len - 1] != '(')
    g_string_append_c (section, ' ');
  for (; *text != '\0'; text++)
    g_string_append_c (section, g_ascii_toupper (*text));
  return TRUE;
}

static void
begin_body (ImapParser *parser, guint64 length, gboolean is_nil)
{
  ImapFetchState *fetch = &parser->fetch;

  fetch->data.fields |= IMAP_FETCH_BODY;
  fetch->body.uid = fetch->data.uid;
  fetch->body.section = fetch->section->str;
  fetch->body.length = length;
  fetch->body.is_nil = is_nil;
  IMAP_CALL (parser, body_begin, &fetch->body, parser->user_data);
}

static gboolean
read_body (ImapParser *parser, const ImapToken *token, GError **error)
{
  if (parser->fetch.attribute == ATTRIBUTE_UNKNOWN)
    return begin_skip (parser, token, error);
  switch (token->type)
    {
    case IMAP_TOKEN_LITERAL:
      begin_body (parser, token->size, FALSE);
      parser->fetch.state = STATE_BYTES;
      return TRUE;
    case IMAP_TOKEN_STRING:
      begin_body (parser, token->length, FALSE);
      if (token->length > 0)
        IMAP_CALL (parser, body_data, (const guint8 *)token->text, token->length,
                   parser->user_data);
      break;
    case IMAP_TOKEN_ATOM:
      if (!imap_token_is_nil (token))
        return fail (parser, "a body that is neither string nor NIL", error);
      begin_body (parser, 0, TRUE);
      break;
    default:
      return fail (parser, "a malformed body", error);
    }
  IMAP_CALL (parser, body_end, parser->user_data);
  return expect_attribute (parser);
}

/* "<0>"; some servers repeat the length asked for: "<0.65536>". */
static gboolean
read_origin (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapBody *body = &parser->fetch.body;

  if (token->type != IMAP_TOKEN_ATOM || token->text[0] != '<')
    return read_body (parser, token, error);
  if (token->spaced || token->text[token->length - 1] != '>'
      || !imap_text_to_number (token->text + 1, strcspn (token->text + 1, ".>"), &body->origin,
                               NULL))
    return fail (parser, "a malformed origin", error);
  body->has_origin = TRUE;
  parser->fetch.state = STATE_BODY;
  return TRUE;
}

static gboolean
read_bytes (ImapParser *parser, const ImapToken *token, GError **error)
{
  if (token->type == IMAP_TOKEN_BYTES)
    {
      IMAP_CALL (parser, body_data, (const guint8 *)token->text, token->length, parser->user_data);
      return TRUE;
    }
  IMAP_CALL (parser, body_end, parser->user_data); /* LITERAL_END: nothing else can come */
  return expect_attribute (parser);
}

static gboolean
skip (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapFetchState *fetch = &parser->fetch;

  if (token->type == IMAP_TOKEN_EOL)
    return fail (parser, "a FETCH that does not close", error);
  if (token->type == IMAP_TOKEN_OPEN)
    fetch->depth++;
  else if (token->type == IMAP_TOKEN_CLOSE && --fetch->depth == 0)
    return expect_attribute (parser);
  return TRUE;
}

static gboolean
read_end (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapFetchState *fetch = &parser->fetch;

  if (token->type != IMAP_TOKEN_EOL)
    return fail (parser, "something behind a FETCH", error);
  fetch->data.flags = fetch->flags.flags;
  fetch->data.keywords = imap_flag_list_keywords (&fetch->flags);
  IMAP_CALL (parser, fetch_end, &fetch->data, parser->user_data);
  return imap_parser_end_response (parser);
}

gboolean
imap_parser_step_fetch (ImapParser *parser, const ImapToken *token, GError **error)
{
  switch (parser->fetch.state)
    {
    case STATE_OPEN:
      if (token->type != IMAP_TOKEN_OPEN)
        return fail (parser, "a malformed FETCH", error);
      return expect_attribute (parser);
    case STATE_ATTRIBUTE:
      return read_attribute (parser, token, error);
    case STATE_VALUE:
      return read_value (parser, token, error);
    case STATE_FLAGS:
      return read_flag (parser, token, error);
    case STATE_MODSEQ:
      return read_modseq (parser, token, error);
    case STATE_MODSEQ_CLOSE:
      if (token->type != IMAP_TOKEN_CLOSE)
        return fail (parser, "an impossible MODSEQ", error);
      return expect_attribute (parser);
    case STATE_SECTION:
      return read_section (parser, token, error);
    case STATE_ORIGIN:
      return read_origin (parser, token, error);
    case STATE_BODY:
      return read_body (parser, token, error);
    case STATE_BYTES:
      return read_bytes (parser, token, error);
    case STATE_SKIP:
      return skip (parser, token, error);
    default:
      return read_end (parser, token, error);
    }
}

/* --- date-time --- */

/* Days from 1970-01-01 to a date of the Gregorian calendar, extended both ways. */
static gint64
days_from_date (gint64 year, gint64 month, gint64 day)
{
  gint64 era, year_of_era, day_of_year;

  year -= month <= 2; /* years that start in March, so that a leap day is the last */
  era = (year >= 0 ? year : year - 399) / 400;
  year_of_era = year - era * 400;
  day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
  return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year
         - 719468;
}

static gboolean
is_date (gint64 year, gint64 month, gint64 day)
{
  static const guint8 lengths[] = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
  gboolean leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;

  return day >= 1 && day <= lengths[month - 1] + (month == 2 && leap);
}

/* Exactly n digits. */
static gboolean
take_digits (const char **at, guint n, gint64 *number_out)
{
  gint64 number = 0;

  for (; n > 0; n--, (*at)++)
    {
      if (!g_ascii_isdigit (**at))
        return FALSE;
      number = number * 10 + (**at - '0');
    }
  *number_out = number;
  return TRUE;
}

static gboolean
take_char (const char **at, char c)
{
  if (**at != c)
    return FALSE;
  (*at)++;
  return TRUE;
}

static gboolean
take_month (const char **at, gint64 *month_out)
{
  static const char names[] = "JanFebMarAprMayJunJulAugSepOctNovDec";

  for (int i = 0; i < 12; i++)
    if (g_ascii_strncasecmp (*at, names + 3 * i, 3) == 0)
      {
        *month_out = i + 1;
        *at += 3;
        return TRUE;
      }
  return FALSE;
}

/* "+0200" in seconds. */
static gboolean
take_zone (const char **at, gint64 *zone_out)
{
  gint64 hours, minutes, sign = **at == '-' ? -1 : 1;

  if (!take_char (at, '+') && !take_char (at, '-'))
    return FALSE;
  if (!take_digits (at, 2, &hours) || !take_digits (at, 2, &minutes) || minutes > 59)
    return FALSE;
  *zone_out = sign * (hours * 3600 + minutes * 60);
  return TRUE;
}

gboolean
imap_parse_date_time (const char *text, gint64 *epoch_out)
{
  const char *at = text + strspn (text, " ");
  gint64 day, month, year, hour, minute, second, zone;

  if (!take_digits (&at, g_ascii_isdigit (at[0]) && g_ascii_isdigit (at[1]) ? 2 : 1, &day)
      || !take_char (&at, '-') || !take_month (&at, &month) || !take_char (&at, '-')
      || !take_digits (&at, 4, &year) || !take_char (&at, ' ') || !take_digits (&at, 2, &hour)
      || !take_char (&at, ':') || !take_digits (&at, 2, &minute) || !take_char (&at, ':')
      || !take_digits (&at, 2, &second) || !take_char (&at, ' ') || !take_zone (&at, &zone)
      || *at != '\0')
    return FALSE;
  if (!is_date (year, month, day) || hour > 23 || minute > 59 || second > 60)
    return FALSE;
  *epoch_out = days_from_date (year, month, day) * 86400 + hour * 3600 + minute * 60
               + MIN (second, 59) - zone;
  return TRUE;
}
