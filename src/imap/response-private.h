/* SPDX-License-Identifier: MIT
 *
 * What the files of ImapParser share: response.c (feeding, dispatch, streamed sets),
 * response-data.c (responses gathered whole, then read), response-status.c (OK, NO, BAD and their
 * codes) and response-fetch.c (FETCH). Nobody else includes this. Net thread.
 */
#pragma once

#include "imap/response.h"
#include "imap/token.h"

/* Bounds of what a message or mailbox may carry as keywords; what is beyond is left out. */
#define IMAP_MAX_KEYWORDS 256
#define IMAP_MAX_KEYWORD_LENGTH 255

/* Flags being gathered; reused from response to response. */
typedef struct
{
  guint8 flags;
  gboolean any_keyword;
  GPtrArray *names; /* keywords as they came */
  GString *joined;
} ImapFlagList;

void imap_flag_list_init (ImapFlagList *list);
void imap_flag_list_clear (ImapFlagList *list);
void imap_flag_list_reset (ImapFlagList *list);
void imap_flag_list_add (ImapFlagList *list, const char *flag);
/* Sorts, drops duplicates; the result is valid until the next reset. */
const char *imap_flag_list_keywords (ImapFlagList *list);

/* One token of a response that is gathered whole. */
typedef struct
{
  ImapTokenType type;
  guint offset, length; /* into ImapParser.bytes, NUL-terminated there */
} ImapItem;

typedef struct
{
  int state;
  int attribute;
  guint depth; /* parentheses inside something skipped, or inside a section */
  GString *section;
  ImapBody body;
  ImapFetch data;
  ImapFlagList flags;
} ImapFetchState;

typedef struct
{
  int state;
  int item;    /* the return item whose value comes next */
  guint depth; /* parentheses inside something skipped */
  gboolean earlier;
  ImapSearch result;
  GString *tag;
  MailUidSet *set;
} ImapSetState;

/* Takes one token; FALSE with error. */
typedef gboolean (*ImapStepFunc) (ImapParser *parser, const ImapToken *token, GError **error);
/* Reads a gathered response. */
typedef gboolean (*ImapReadFunc) (ImapParser *parser, GError **error);

struct ImapParser
{
  const ImapResponseHandler *handler;
  gpointer user_data;
  ImapParserLimits limits;
  ImapLexer lexer;
  ImapStepFunc step;
  gboolean dead, paused, idle;

  GString *tag; /* "" for an untagged response */
  ImapCondition condition;
  guint64 number; /* of "* 12 EXISTS" */
  gboolean number_too_large;
  int numbered; /* which of EXISTS, RECENT, EXPUNGE */

  ImapReadFunc read;
  GArray *items; /* of ImapItem */
  GString *bytes;
  ImapFlagList flags;

  ImapSetState sets;
  ImapFetchState fetch;
};

/* Calls member with the arguments when the handler has it. */
#define IMAP_CALL(parser, member, ...)                                                             \
  G_STMT_START                                                                                     \
  {                                                                                                \
    if ((parser)->handler->member != NULL)                                                         \
      (parser)->handler->member (__VA_ARGS__);                                                     \
  }                                                                                                \
  G_STMT_END

/* response.c: the response is complete. Always TRUE. */
gboolean imap_parser_end_response (ImapParser *parser);
/* Drops what is left of the line, then ends the response. Always TRUE. */
gboolean imap_parser_skip_rest (ImapParser *parser);

/* response-status.c: text is all behind the condition word. */
void imap_parser_report_status (ImapParser *parser, const char *text);

/* response-data.c: how to read the untagged response `name`, or NULL when it is none of these. */
ImapReadFunc imap_parser_find_reader (const char *name);
gboolean imap_parser_step_gather (ImapParser *parser, const ImapToken *token, GError **error);

/* response-fetch.c: from behind the word FETCH. */
void imap_parser_begin_fetch (ImapParser *parser, guint32 seq);
gboolean imap_parser_step_fetch (ImapParser *parser, const ImapToken *token, GError **error);

/* response-set.c: SEARCH, ESEARCH, VANISHED; FALSE when name is none of these. */
gboolean imap_parser_begin_set (ImapParser *parser, const char *name);
