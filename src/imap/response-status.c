/* SPDX-License-Identifier: MIT
 *
 * Status responses: OK, NO, BAD, PREAUTH, BYE and the code in brackets (RFC 9051 7.1, RFC 4315,
 * 4551, 5530, 7162 and others). The line is looked at whole, since what stands in it is text for
 * people and need not balance. A code that makes no sense is reported as malformed, not as an
 * error: the condition still counts. Net thread.
 */
#include "imap/response-private.h"

#include <string.h>

#define MAX_SHOWN 1024
#define MAX_CODE_NAME 40

typedef enum
{
  ARGS_NONE,
  ARGS_NUMBER,    /* 63 bits */
  ARGS_NUMBER_32, /* 32 bits */
  ARGS_SET,
  ARGS_APPENDUID,
  ARGS_COPYUID,
  ARGS_FLAGS,
  ARGS_WORDS,
} ArgsKind;

static const struct
{
  const char *name;
  ImapCode code;
  ArgsKind args;
} codes[] = {
  { "ALERT", IMAP_CODE_ALERT, ARGS_NONE },
  { "ALREADYEXISTS", IMAP_CODE_ALREADYEXISTS, ARGS_NONE },
  { "APPENDUID", IMAP_CODE_APPENDUID, ARGS_APPENDUID },
  { "AUTHENTICATIONFAILED", IMAP_CODE_AUTHENTICATIONFAILED, ARGS_NONE },
  { "AUTHORIZATIONFAILED", IMAP_CODE_AUTHORIZATIONFAILED, ARGS_NONE },
  { "BADCHARSET", IMAP_CODE_BADCHARSET, ARGS_NONE },
  { "CANNOT", IMAP_CODE_CANNOT, ARGS_NONE },
  { "CAPABILITY", IMAP_CODE_CAPABILITY, ARGS_WORDS },
  { "CLIENTBUG", IMAP_CODE_CLIENTBUG, ARGS_NONE },
  { "CLOSED", IMAP_CODE_CLOSED, ARGS_NONE },
  { "COMPRESSIONACTIVE", IMAP_CODE_COMPRESSIONACTIVE, ARGS_NONE },
  { "CONTACTADMIN", IMAP_CODE_CONTACTADMIN, ARGS_NONE },
  { "COPYUID", IMAP_CODE_COPYUID, ARGS_COPYUID },
  { "CORRUPTION", IMAP_CODE_CORRUPTION, ARGS_NONE },
  { "EXPIRED", IMAP_CODE_EXPIRED, ARGS_NONE },
  { "EXPUNGEISSUED", IMAP_CODE_EXPUNGEISSUED, ARGS_NONE },
  { "HASCHILDREN", IMAP_CODE_HASCHILDREN, ARGS_NONE },
  { "HIGHESTMODSEQ", IMAP_CODE_HIGHESTMODSEQ, ARGS_NUMBER },
  { "INUSE", IMAP_CODE_INUSE, ARGS_NONE },
  { "LIMIT", IMAP_CODE_LIMIT, ARGS_NONE },
  { "MODIFIED", IMAP_CODE_MODIFIED, ARGS_SET },
  { "NOMODSEQ", IMAP_CODE_NOMODSEQ, ARGS_NONE },
  { "NONEXISTENT", IMAP_CODE_NONEXISTENT, ARGS_NONE },
  { "NOPERM", IMAP_CODE_NOPERM, ARGS_NONE },
  { "NOTSAVED", IMAP_CODE_NOTSAVED, ARGS_NONE },
  { "OVERQUOTA", IMAP_CODE_OVERQUOTA, ARGS_NONE },
  { "PARSE", IMAP_CODE_PARSE, ARGS_NONE },
  { "PERMANENTFLAGS", IMAP_CODE_PERMANENTFLAGS, ARGS_FLAGS },
  { "PRIVACYREQUIRED", IMAP_CODE_PRIVACYREQUIRED, ARGS_NONE },
  { "READ-ONLY", IMAP_CODE_READ_ONLY, ARGS_NONE },
  { "READ-WRITE", IMAP_CODE_READ_WRITE, ARGS_NONE },
  { "REFERRAL", IMAP_CODE_REFERRAL, ARGS_NONE },
  { "SERVERBUG", IMAP_CODE_SERVERBUG, ARGS_NONE },
  { "THROTTLED", IMAP_CODE_THROTTLED, ARGS_NONE },
  { "TOOBIG", IMAP_CODE_TOOBIG, ARGS_NONE },
  { "TRYCREATE", IMAP_CODE_TRYCREATE, ARGS_NONE },
  { "UIDNEXT", IMAP_CODE_UIDNEXT, ARGS_NUMBER_32 },
  { "UIDNOTSTICKY", IMAP_CODE_UIDNOTSTICKY, ARGS_NONE },
  { "UIDVALIDITY", IMAP_CODE_UIDVALIDITY, ARGS_NUMBER_32 },
  { "UNAVAILABLE", IMAP_CODE_UNAVAILABLE, ARGS_NONE },
  { "UNKNOWN-CTE", IMAP_CODE_UNKNOWN_CTE, ARGS_NONE },
  { "UNSEEN", IMAP_CODE_UNSEEN, ARGS_NUMBER_32 },
};

/* What a status owns while it is reported. */
typedef struct
{
  MailUidSet *set, *from, *to;
  char **words;
} StatusData;

static void
status_data_clear (StatusData *data)
{
  mail_uid_set_free (data->set);
  mail_uid_set_free (data->from);
  mail_uid_set_free (data->to);
  g_strfreev (data->words);
}

/* A word, and *at behind it and its spaces; NULL at the end. */
static char *
next_word (const char **at)
{
  const char *from = *at;
  gsize length = strcspn (from, " ");

  *at = from + length;
  *at += strspn (*at, " ");
  return length > 0 ? g_strndup (from, length) : NULL;
}

static gboolean
read_number (const char *args, guint64 max, guint64 *number_out)
{
  const char *at = args;
  g_autofree char *word = next_word (&at);

  return word != NULL && imap_text_to_number (word, strlen (word), number_out, NULL)
         && *number_out <= max;
}

static gboolean
read_set (const char **at, MailUidSet **set_out)
{
  g_autofree char *word = next_word (at);

  *set_out = word != NULL ? mail_uid_set_parse_list (word, -1) : NULL;
  return *set_out != NULL;
}

static gboolean
read_append_uid (const char *args, ImapStatus *status, StatusData *data)
{
  const char *at = args;
  guint64 validity;

  if (!read_number (args, G_MAXUINT32, &validity) || validity == 0)
    return FALSE;
  g_free (next_word (&at));
  if (status->code == IMAP_CODE_APPENDUID)
    {
      if (!read_set (&at, &data->set))
        return FALSE;
    }
  else if (!read_set (&at, &data->from) || !read_set (&at, &data->to)
           || mail_uid_set_count (data->from) != mail_uid_set_count (data->to))
    return FALSE;
  status->uidvalidity = (guint32)validity;
  return TRUE;
}

static gboolean
read_flags (ImapParser *parser, const char *args, ImapStatus *status)
{
  g_autofree char *inside = NULL;
  const char *at, *end = strrchr (args, ')');
  char *word;

  if (args[0] != '(' || end == NULL)
    return FALSE;
  inside = g_strndup (args + 1, (gsize)(end - args - 1));
  at = inside + strspn (inside, " ");
  imap_flag_list_reset (&parser->flags);
  while ((word = next_word (&at)) != NULL)
    {
      imap_flag_list_add (&parser->flags, word);
      g_free (word);
    }
  status->flags = parser->flags.flags;
  status->any_keyword = parser->flags.any_keyword;
  status->keywords = imap_flag_list_keywords (&parser->flags);
  return TRUE;
}

static gboolean
read_words (const char *args, StatusData *data)
{
  g_autofree char *capitals = g_ascii_strup (args, -1);
  g_autoptr (GPtrArray) words = g_ptr_array_new_with_free_func (g_free);
  const char *at = capitals + strspn (capitals, " ");
  char *word;

  while ((word = next_word (&at)) != NULL)
    g_ptr_array_add (words, word);
  g_ptr_array_add (words, NULL);
  data->words = (char **)g_ptr_array_free (g_steal_pointer (&words), FALSE);
  return TRUE;
}

static gboolean
read_args (ImapParser *parser, ArgsKind kind, const char *args, ImapStatus *status,
           StatusData *data)
{
  const char *at = args;

  switch (kind)
    {
    case ARGS_NUMBER:
      return read_number (args, G_MAXUINT64, &status->number);
    case ARGS_NUMBER_32:
      return read_number (args, G_MAXUINT32, &status->number);
    case ARGS_SET:
      if (!read_set (&at, &data->set))
        return FALSE;
      mail_uid_set_normalize (data->set);
      return TRUE;
    case ARGS_APPENDUID:
    case ARGS_COPYUID:
      return read_append_uid (args, status, data);
    case ARGS_FLAGS:
      return read_flags (parser, args, status);
    case ARGS_WORDS:
      return read_words (args, data);
    case ARGS_NONE:
    default:
      return TRUE;
    }
}

/* The ']' that ends a code whose '[' is text[0]; one inside parentheses belongs to a keyword,
 * unless they never close. NULL when there is none. */
static const char *
find_code_end (const char *text)
{
  const char *first = NULL;
  gsize depth = 0;

  for (const char *at = text; *at != '\0'; at++)
    {
      if (*at == '(')
        depth++;
      else if (*at == ')' && depth > 0)
        depth--;
      else if (*at == ']' && depth == 0)
        return at;
      else if (*at == ']' && first == NULL)
        first = at;
    }
  return first;
}

static char *
cut (const char *text)
{
  return g_strndup (text, MIN (strlen (text), MAX_SHOWN));
}

/* end: the closing bracket. name_out and args_out are what the caller keeps while reporting. */
static void
read_code (ImapParser *parser, const char *text, const char *end, ImapStatus *status,
           StatusData *data, char **name_out, char **args_out)
{
  g_autofree char *code = g_strndup (text + 1, (gsize)(end - text - 1));
  const char *at = code + strspn (code, " ");
  g_autofree char *word = next_word (&at);
  g_autofree char *name = g_ascii_strup (word != NULL ? word : "", -1);

  status->code = IMAP_CODE_OTHER;
  for (gsize i = 0; i < G_N_ELEMENTS (codes); i++)
    {
      if (strcmp (name, codes[i].name) != 0)
        continue;
      status->code = codes[i].code;
      if (read_args (parser, codes[i].args, at, status, data))
        break;
      status->malformed = TRUE;
      status->number = 0;
      status->uidvalidity = 0;
      status_data_clear (data);
      *data = (StatusData) { 0 };
      break;
    }
  /* Names of unknown codes find their way into messages for people. */
  for (char *c = name; *c != '\0'; c++)
    if (!g_ascii_isgraph (*c))
      *c = '?';
  *name_out = g_strndup (name, MAX_CODE_NAME);
  *args_out = cut (at);
}

void
imap_parser_report_status (ImapParser *parser, const char *text)
{
  const char *end = text[0] == '[' ? find_code_end (text) : NULL;
  g_autofree char *name = NULL, *args = NULL, *shown = NULL;
  StatusData data = { 0 };
  ImapStatus status = { .condition = parser->condition };

  if (end != NULL)
    {
      read_code (parser, text, end, &status, &data, &name, &args);
      text = end + 1;
    }
  shown = cut (text + strspn (text, " "));
  status.tag = parser->tag->len > 0 ? parser->tag->str : NULL;
  status.code_name = name;
  status.code_args = args;
  status.text = shown;
  status.set = data.set;
  status.from = data.from;
  status.to = data.to;
  status.words = (const char *const *)data.words;
  IMAP_CALL (parser, status, &status, parser->user_data);
  status_data_clear (&data);
}
