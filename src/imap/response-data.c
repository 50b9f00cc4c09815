/* SPDX-License-Identifier: MIT
 *
 * Responses that are gathered whole, because they are bounded and short, and then read: CAPABILITY,
 * ENABLED, ID, NAMESPACE, LIST, LSUB, STATUS, FLAGS, QUOTA, QUOTAROOT, MYRIGHTS. Also the lists of
 * flags that several responses carry. Net thread.
 */
#include "imap/response-private.h"

#include "mailfs/log.h"

#include <string.h>

#define MAX_ITEMS 65536

/* --- flags --- */

static const struct
{
  const char *name;
  MailFlags flag;
} system_flags[] = {
  { "\\Seen", MAIL_FLAG_SEEN },       { "\\Answered", MAIL_FLAG_ANSWERED },
  { "\\Flagged", MAIL_FLAG_FLAGGED }, { "\\Deleted", MAIL_FLAG_DELETED },
  { "\\Draft", MAIL_FLAG_DRAFT },
};

void
imap_flag_list_init (ImapFlagList *list)
{
  list->names = g_ptr_array_new_with_free_func (g_free);
  list->joined = g_string_new (NULL);
}

void
imap_flag_list_clear (ImapFlagList *list)
{
  g_ptr_array_unref (list->names);
  g_string_free (list->joined, TRUE);
}

void
imap_flag_list_reset (ImapFlagList *list)
{
  list->flags = 0;
  list->any_keyword = FALSE;
  g_ptr_array_set_size (list->names, 0);
}

static gboolean
is_keyword (const char *name)
{
  gsize length = strlen (name);

  if (length == 0 || length > IMAP_MAX_KEYWORD_LENGTH)
    return FALSE;
  for (gsize i = 0; i < length; i++)
    if (!g_ascii_isgraph (name[i]))
      return FALSE;
  return TRUE;
}

/* \Recent and system flags we do not know are left out: nobody can set them. */
void
imap_flag_list_add (ImapFlagList *list, const char *flag)
{
  if (flag[0] == '\\')
    {
      for (gsize i = 0; i < G_N_ELEMENTS (system_flags); i++)
        if (g_ascii_strcasecmp (flag, system_flags[i].name) == 0)
          list->flags |= system_flags[i].flag;
      if (strcmp (flag, "\\*") == 0)
        list->any_keyword = TRUE;
    }
  else if (is_keyword (flag) && list->names->len < IMAP_MAX_KEYWORDS)
    g_ptr_array_add (list->names, g_strdup (flag));
}

static int
compare_names (gconstpointer a, gconstpointer b)
{
  return strcmp (*(const char *const *)a, *(const char *const *)b);
}

const char *
imap_flag_list_keywords (ImapFlagList *list)
{
  const char *before = NULL;

  g_string_truncate (list->joined, 0);
  g_ptr_array_sort (list->names, compare_names);
  for (guint i = 0; i < list->names->len; i++)
    {
      const char *name = g_ptr_array_index (list->names, i);

      if (before != NULL && strcmp (before, name) == 0)
        continue;
      if (before != NULL)
        g_string_append_c (list->joined, ' ');
      g_string_append (list->joined, name);
      before = name;
    }
  return list->joined->str;
}

/* --- reading what was gathered --- */

/* Walks over the items of a gathered response. */
typedef struct
{
  ImapParser *parser;
  guint at;
} Cursor;

static const ImapItem *
peek (const Cursor *cursor)
{
  GArray *items = cursor->parser->items;

  return cursor->at < items->len ? &g_array_index (items, ImapItem, cursor->at) : NULL;
}

static gboolean
take (Cursor *cursor, ImapTokenType type)
{
  const ImapItem *item = peek (cursor);

  if (item == NULL || item->type != type)
    return FALSE;
  cursor->at++;
  return TRUE;
}

/* An atom or string; NULL (and no move) for anything else. */
static const char *
take_text (Cursor *cursor)
{
  const ImapItem *item = peek (cursor);

  if (item == NULL || (item->type != IMAP_TOKEN_ATOM && item->type != IMAP_TOKEN_STRING))
    return NULL;
  cursor->at++;
  return cursor->parser->bytes->str + item->offset;
}

/* A string, or NIL as NULL. FALSE for anything else. */
static gboolean
take_nstring (Cursor *cursor, const char **text_out)
{
  const ImapItem *item = peek (cursor);
  const char *text = take_text (cursor);

  *text_out = text;
  if (text == NULL)
    return FALSE;
  if (item->type == IMAP_TOKEN_ATOM && g_ascii_strcasecmp (text, "NIL") == 0)
    *text_out = NULL;
  return TRUE;
}

/* Steps over one value, nested as deep as it may be. */
static gboolean
skip_value (Cursor *cursor)
{
  gsize depth = 0;

  do
    {
      const ImapItem *item = peek (cursor);

      if (item == NULL)
        return FALSE;
      if (item->type == IMAP_TOKEN_OPEN)
        depth++;
      else if (item->type == IMAP_TOKEN_CLOSE && depth-- == 0)
        return FALSE;
      cursor->at++;
    }
  while (depth > 0);
  return TRUE;
}

static gboolean
malformed (ImapParser *parser, const char *what, GError **error)
{
  return imap_lexer_fail (&parser->lexer, what, error);
}

gboolean
imap_parser_step_gather (ImapParser *parser, const ImapToken *token, GError **error)
{
  ImapItem item = { token->type, (guint)parser->bytes->len, (guint)token->length };

  if (token->type == IMAP_TOKEN_EOL)
    return parser->read (parser, error) && imap_parser_end_response (parser);
  if (parser->items->len >= MAX_ITEMS)
    return malformed (parser, "too many words in one response", error);
  if (token->type == IMAP_TOKEN_ATOM || token->type == IMAP_TOKEN_STRING)
    {
      g_string_append_len (parser->bytes, token->text, (gssize)token->length);
      g_string_append_c (parser->bytes, '\0');
    }
  g_array_append_val (parser->items, item);
  return TRUE;
}

/* All that is left as an array of words, ended by NULL; the strings stay the parser's. */
static GPtrArray *
take_words (Cursor *cursor, gboolean capitals)
{
  GPtrArray *words = g_ptr_array_new ();

  while (peek (cursor) != NULL)
    {
      char *word = (char *)take_text (cursor);

      if (word == NULL)
        {
          cursor->at++; /* a parenthesis has no business here */
          continue;
        }
      if (capitals)
        for (char *c = word; *c != '\0'; c++)
          *c = g_ascii_toupper (*c);
      g_ptr_array_add (words, word);
    }
  g_ptr_array_add (words, NULL);
  return words;
}

static gboolean
read_capability (ImapParser *parser, GError **error)
{
  Cursor cursor = { parser, 0 };
  g_autoptr (GPtrArray) words = take_words (&cursor, TRUE);

  IMAP_CALL (parser, capability, (const char *const *)words->pdata, parser->user_data);
  return TRUE;
}

static gboolean
read_enabled (ImapParser *parser, GError **error)
{
  Cursor cursor = { parser, 0 };
  g_autoptr (GPtrArray) words = take_words (&cursor, TRUE);

  IMAP_CALL (parser, enabled, (const char *const *)words->pdata, parser->user_data);
  return TRUE;
}

static gboolean
read_id (ImapParser *parser, GError **error)
{
  Cursor cursor = { parser, 0 };
  g_autoptr (GPtrArray) strings = g_ptr_array_new ();

  if (take (&cursor, IMAP_TOKEN_OPEN))
    while (!take (&cursor, IMAP_TOKEN_CLOSE))
      {
        const char *text;

        if (!take_nstring (&cursor, &text))
          return malformed (parser, "a malformed ID", error);
        g_ptr_array_add (strings, (gpointer)text);
      }
  IMAP_CALL (parser, id, (const char *const *)strings->pdata, strings->len & ~1u,
             parser->user_data);
  return TRUE;
}

/* A hierarchy delimiter: one character, or NIL (an empty string is taken for that). */
static gboolean
take_delimiter (Cursor *cursor, char *delimiter_out)
{
  const char *text;

  if (!take_nstring (cursor, &text) || (text != NULL && strlen (text) > 1))
    return FALSE;
  *delimiter_out = text != NULL ? text[0] : '\0';
  return TRUE;
}

static gboolean
take_namespaces (Cursor *cursor, GArray *out)
{
  const char *nil;

  if (!take (cursor, IMAP_TOKEN_OPEN))
    return take_nstring (cursor, &nil) && nil == NULL;
  while (!take (cursor, IMAP_TOKEN_CLOSE))
    {
      ImapNamespaceItem item = { 0 };

      if (!take (cursor, IMAP_TOKEN_OPEN) || (item.prefix = take_text (cursor)) == NULL
          || !take_delimiter (cursor, &item.delimiter))
        return FALSE;
      while (!take (cursor, IMAP_TOKEN_CLOSE)) /* extensions */
        if (!skip_value (cursor))
          return FALSE;
      g_array_append_val (out, item);
    }
  return TRUE;
}

static gboolean
read_namespace (ImapParser *parser, GError **error)
{
  Cursor cursor = { parser, 0 };
  GArray *kinds[3];
  gboolean ok = TRUE;

  for (guint i = 0; i < 3; i++)
    {
      kinds[i] = g_array_new (FALSE, FALSE, sizeof (ImapNamespaceItem));
      ok = ok && take_namespaces (&cursor, kinds[i]);
    }
  if (ok)
    {
      ImapNamespace ns = {
        .personal = (const ImapNamespaceItem *)(gconstpointer)kinds[0]->data,
        .others = (const ImapNamespaceItem *)(gconstpointer)kinds[1]->data,
        .shared = (const ImapNamespaceItem *)(gconstpointer)kinds[2]->data,
        .n_personal = kinds[0]->len,
        .n_others = kinds[1]->len,
        .n_shared = kinds[2]->len,
      };

      IMAP_CALL (parser, namespace, &ns, parser->user_data);
    }
  for (guint i = 0; i < 3; i++)
    g_array_unref (kinds[i]);
  return ok || malformed (parser, "a malformed NAMESPACE", error);
}

static const struct
{
  const char *name;
  ImapListFlags flag;
} list_flags[] = {
  { "\\Noselect", IMAP_LIST_NOSELECT },
  { "\\NonExistent", IMAP_LIST_NONEXISTENT },
  { "\\Noinferiors", IMAP_LIST_NOINFERIORS },
  { "\\HasChildren", IMAP_LIST_HASCHILDREN },
  { "\\HasNoChildren", IMAP_LIST_HASNOCHILDREN },
  { "\\Subscribed", IMAP_LIST_SUBSCRIBED },
  { "\\Remote", IMAP_LIST_REMOTE },
  { "\\Marked", IMAP_LIST_MARKED },
  { "\\Unmarked", IMAP_LIST_UNMARKED },
};

/* Cyrus sends these in small letters. */
static const char *const special_uses[] = { "\\All",  "\\Archive", "\\Drafts", "\\Flagged",
                                            "\\Junk", "\\Sent",    "\\Trash",  "\\Important" };

static void
add_list_attribute (ImapList *list, const char *name)
{
  for (gsize i = 0; i < G_N_ELEMENTS (list_flags); i++)
    if (g_ascii_strcasecmp (name, list_flags[i].name) == 0)
      list->flags |= list_flags[i].flag;
  for (gsize i = 0; i < G_N_ELEMENTS (special_uses); i++)
    if (list->special_use == NULL && g_ascii_strcasecmp (name, special_uses[i]) == 0)
      list->special_use = special_uses[i];
}

/* A mailbox name with a NUL cannot be asked for: nothing a backend could do with it. */
static gboolean
is_usable_name (Cursor *cursor)
{
  const ImapItem *item = peek (cursor);

  return item == NULL
         || memchr (cursor->parser->bytes->str + item->offset, '\0', item->length) == NULL;
}

static gboolean
read_list_as (ImapParser *parser, gboolean lsub, GError **error)
{
  Cursor cursor = { parser, 0 };
  ImapList list = { .lsub = lsub };
  gboolean usable;

  if (!take (&cursor, IMAP_TOKEN_OPEN))
    return malformed (parser, "a malformed LIST", error);
  while (!take (&cursor, IMAP_TOKEN_CLOSE))
    {
      const char *name = take_text (&cursor);

      if (name == NULL)
        return malformed (parser, "malformed attributes of a mailbox", error);
      add_list_attribute (&list, name);
    }
  if (!take_delimiter (&cursor, &list.delimiter))
    return malformed (parser, "a malformed hierarchy delimiter", error);
  usable = is_usable_name (&cursor);
  if ((list.name = take_text (&cursor)) == NULL)
    return malformed (parser, "a LIST without a name", error);
  if (usable)
    IMAP_CALL (parser, list, &list, parser->user_data);
  else
    mail_log_warning ("the server lists a mailbox with a NUL in its name; left out");
  return TRUE; /* CHILDINFO, OLDNAME and the like may follow */
}

static gboolean
read_list (ImapParser *parser, GError **error)
{
  return read_list_as (parser, FALSE, error);
}

static gboolean
read_lsub (ImapParser *parser, GError **error)
{
  return read_list_as (parser, TRUE, error);
}

/* What does not make sense is left out: an item that was not told. */
static void
set_status_item (ImapMailboxStatus *status, const char *name, const char *value)
{
  static const char *const names[] = { "MESSAGES",      "UIDNEXT", "UIDVALIDITY", "UNSEEN",
                                       "HIGHESTMODSEQ", "DELETED", "SIZE",        "RECENT" };
  guint32 *small[] = { &status->messages,
                       &status->uidnext,
                       &status->uidvalidity,
                       &status->unseen,
                       NULL,
                       &status->deleted,
                       NULL,
                       &status->recent };
  guint64 number;

  if (!imap_text_to_number (value, strlen (value), &number, NULL))
    return;
  for (guint i = 0; i < G_N_ELEMENTS (names); i++)
    {
      if (g_ascii_strcasecmp (name, names[i]) != 0)
        continue;
      if (small[i] != NULL && number > G_MAXUINT32)
        return;
      if (small[i] != NULL)
        *small[i] = (guint32)number;
      else if ((1u << i) == IMAP_STATUS_SIZE)
        status->size = number;
      else
        status->highestmodseq = number;
      status->items |= 1u << i;
    }
}

static gboolean
read_status (ImapParser *parser, GError **error)
{
  Cursor cursor = { parser, 0 };
  ImapMailboxStatus status = { 0 };
  gboolean usable = is_usable_name (&cursor);

  if ((status.name = take_text (&cursor)) == NULL || !take (&cursor, IMAP_TOKEN_OPEN))
    return malformed (parser, "a malformed STATUS", error);
  while (!take (&cursor, IMAP_TOKEN_CLOSE))
    {
      const char *name = take_text (&cursor);
      const char *value = take_text (&cursor);

      if (name == NULL || (value == NULL && !skip_value (&cursor)))
        return malformed (parser, "a malformed STATUS", error);
      if (value != NULL)
        set_status_item (&status, name, value);
    }
  if (usable)
    IMAP_CALL (parser, mailbox_status, &status, parser->user_data);
  return TRUE;
}

static gboolean
read_flags (ImapParser *parser, GError **error)
{
  Cursor cursor = { parser, 0 };

  if (!take (&cursor, IMAP_TOKEN_OPEN))
    return malformed (parser, "malformed FLAGS", error);
  imap_flag_list_reset (&parser->flags);
  while (!take (&cursor, IMAP_TOKEN_CLOSE))
    {
      const char *flag = take_text (&cursor);

      if (flag == NULL)
        return malformed (parser, "malformed FLAGS", error);
      imap_flag_list_add (&parser->flags, flag);
    }
  IMAP_CALL (parser, flags, parser->flags.flags, imap_flag_list_keywords (&parser->flags),
             parser->user_data);
  return TRUE;
}

static gboolean
read_quota (ImapParser *parser, GError **error)
{
  Cursor cursor = { parser, 0 };
  g_autoptr (GArray) resources = g_array_new (FALSE, FALSE, sizeof (ImapQuotaResource));
  const char *root = take_text (&cursor);

  if (root == NULL || !take (&cursor, IMAP_TOKEN_OPEN))
    return malformed (parser, "a malformed QUOTA", error);
  while (!take (&cursor, IMAP_TOKEN_CLOSE))
    {
      const char *name = take_text (&cursor);
      const char *usage = take_text (&cursor);
      const char *limit = take_text (&cursor);
      ImapQuotaResource resource = { .name = name };

      if (limit == NULL)
        return malformed (parser, "a malformed QUOTA", error);
      for (char *c = (char *)name; *c != '\0'; c++)
        *c = g_ascii_toupper (*c);
      if (imap_text_to_number (usage, strlen (usage), &resource.usage, NULL)
          && imap_text_to_number (limit, strlen (limit), &resource.limit, NULL))
        g_array_append_val (resources, resource);
    }
  IMAP_CALL (parser, quota, root, (const ImapQuotaResource *)(gconstpointer)resources->data,
             resources->len, parser->user_data);
  return TRUE;
}

static gboolean
read_quota_root (ImapParser *parser, GError **error)
{
  Cursor cursor = { parser, 0 };
  const char *mailbox = take_text (&cursor);
  g_autoptr (GPtrArray) roots = take_words (&cursor, FALSE);

  if (mailbox == NULL)
    return malformed (parser, "a malformed QUOTAROOT", error);
  IMAP_CALL (parser, quota_root, mailbox, (const char *const *)roots->pdata, parser->user_data);
  return TRUE;
}

static gboolean
read_my_rights (ImapParser *parser, GError **error)
{
  Cursor cursor = { parser, 0 };
  const char *mailbox = take_text (&cursor);
  const char *rights = take_text (&cursor);

  if (mailbox == NULL || rights == NULL)
    return malformed (parser, "malformed MYRIGHTS", error);
  IMAP_CALL (parser, my_rights, mailbox, rights, parser->user_data);
  return TRUE;
}

ImapReadFunc
imap_parser_find_reader (const char *name)
{
  static const struct
  {
    const char *name;
    ImapReadFunc read;
  } readers[] = {
    { "CAPABILITY", read_capability }, { "ENABLED", read_enabled },    { "ID", read_id },
    { "NAMESPACE", read_namespace },   { "LIST", read_list },          { "LSUB", read_lsub },
    { "STATUS", read_status },         { "FLAGS", read_flags },        { "QUOTA", read_quota },
    { "QUOTAROOT", read_quota_root },  { "MYRIGHTS", read_my_rights },
  };

  for (gsize i = 0; i < G_N_ELEMENTS (readers); i++)
    if (g_ascii_strcasecmp (name, readers[i].name) == 0)
      return readers[i].read;
  return NULL;
}
