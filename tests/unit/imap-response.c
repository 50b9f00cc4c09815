/* SPDX-License-Identifier: MIT
 *
 * ImapParser: what a server sends, and the events that must come of it, as one line each. Every row
 * is fed whole, in two pieces cut at every byte, and byte by byte, always with the same events.
 */
#include "imap/response.h"

#include <string.h>

/* --- a handler that writes down what it is told --- */

typedef struct
{
  GString *log;
  GString *body;
  ImapParser *parser;
  gboolean pause;  /* at every status */
  guint64 n_bytes; /* of bodies; kept instead of them when count_only */
  gboolean count_only;
} Recorder;

static void
put_set (Recorder *r, const char *name, const MailUidSet *set)
{
  g_autofree char *text = set != NULL ? mail_uid_set_format (set) : NULL;

  if (text != NULL)
    g_string_append_printf (r->log, " %s=%s", name, text);
}

static void
put_words (Recorder *r, const char *const *words)
{
  for (; words != NULL && *words != NULL; words++)
    g_string_append_printf (r->log, " <%s>", *words);
}

static void
put_flags (Recorder *r, guint8 flags, const char *keywords)
{
  static const char letters[] = "SAFDT";

  g_string_append (r->log, " flags=");
  for (guint i = 0; i < 5; i++)
    if (flags & 1 << i)
      g_string_append_c (r->log, letters[i]);
  g_string_append_printf (r->log, ",%s", keywords);
}

static void
on_status (const ImapStatus *status, gpointer data)
{
  static const char *const conditions[] = { "OK", "NO", "BAD", "PREAUTH", "BYE" };
  Recorder *r = data;

  g_string_append_printf (r->log, "%s %s", status->tag != NULL ? status->tag : "*",
                          conditions[status->condition]);
  if (status->code != IMAP_CODE_NONE)
    g_string_append_printf (r->log, " [%s%s%s]%s", status->code_name,
                            *status->code_args != '\0' ? " " : "", status->code_args,
                            status->code == IMAP_CODE_OTHER ? "?" : "");
  if (status->malformed)
    g_string_append (r->log, " malformed");
  if (status->number != 0)
    g_string_append_printf (r->log, " n=%" G_GUINT64_FORMAT, status->number);
  if (status->uidvalidity != 0)
    g_string_append_printf (r->log, " v=%u", status->uidvalidity);
  put_set (r, "set", status->set);
  put_set (r, "from", status->from);
  put_set (r, "to", status->to);
  put_words (r, status->words);
  if (status->keywords != NULL)
    put_flags (r, status->flags, status->keywords);
  if (status->any_keyword)
    g_string_append (r->log, " any");
  g_string_append_printf (r->log, " '%s'\n", status->text);
  if (r->pause)
    imap_parser_pause (r->parser);
}

static void
on_continuation (const char *text, gpointer data)
{
  g_string_append_printf (((Recorder *)data)->log, "+ '%s'\n", text);
}

static void
on_capability (const char *const *words, gpointer data)
{
  g_string_append (((Recorder *)data)->log, "capability");
  put_words (data, words);
  g_string_append_c (((Recorder *)data)->log, '\n');
}

static void
on_enabled (const char *const *words, gpointer data)
{
  g_string_append (((Recorder *)data)->log, "enabled");
  put_words (data, words);
  g_string_append_c (((Recorder *)data)->log, '\n');
}

static void
on_id (const char *const *strings, guint n, gpointer data)
{
  Recorder *r = data;

  g_string_append (r->log, "id");
  for (guint i = 0; i < n; i++)
    g_string_append_printf (r->log, " %s", strings[i] != NULL ? strings[i] : "-");
  g_string_append_c (r->log, '\n');
}

static void
put_namespaces (Recorder *r, const ImapNamespaceItem *items, guint n)
{
  g_string_append_c (r->log, ' ');
  for (guint i = 0; i < n; i++)
    g_string_append_printf (r->log, "<%s>%c", items[i].prefix,
                            items[i].delimiter != 0 ? items[i].delimiter : '-');
  if (n == 0)
    g_string_append_c (r->log, '0');
}

static void
on_namespace (const ImapNamespace *ns, gpointer data)
{
  Recorder *r = data;

  g_string_append (r->log, "namespace");
  put_namespaces (r, ns->personal, ns->n_personal);
  put_namespaces (r, ns->others, ns->n_others);
  put_namespaces (r, ns->shared, ns->n_shared);
  g_string_append_c (r->log, '\n');
}

static void
on_list (const ImapList *list, gpointer data)
{
  Recorder *r = data;

  g_string_append_printf (r->log, "%s %x %s %c <%s>\n", list->lsub ? "lsub" : "list", list->flags,
                          list->special_use != NULL ? list->special_use : "-",
                          list->delimiter != 0 ? list->delimiter : '0', list->name);
}

static void
on_mailbox_status (const ImapMailboxStatus *s, gpointer data)
{
  g_string_append_printf (((Recorder *)data)->log,
                          "status <%s> %x m=%u n=%u v=%u u=%u d=%u h=%" G_GUINT64_FORMAT
                          " s=%" G_GUINT64_FORMAT "\n",
                          s->name, s->items, s->messages, s->uidnext, s->uidvalidity, s->unseen,
                          s->deleted, s->highestmodseq, s->size);
}

static void
on_search (const ImapSearch *search, gpointer data)
{
  Recorder *r = data;

  g_string_append_printf (r->log, "%s", search->extended ? "esearch" : "search");
  if (search->tag != NULL)
    g_string_append_printf (r->log, " tag=%s", search->tag);
  if (search->uid)
    g_string_append (r->log, " uid");
  put_set (r, "set", search->set);
  if (search->has_count)
    g_string_append_printf (r->log, " count=%u", search->count);
  if (search->has_min)
    g_string_append_printf (r->log, " min=%u", search->min);
  if (search->has_max)
    g_string_append_printf (r->log, " max=%u", search->max);
  if (search->modseq != 0)
    g_string_append_printf (r->log, " modseq=%" G_GUINT64_FORMAT, search->modseq);
  g_string_append (r->log, search->has_all ? " all\n" : "\n");
}

static void
on_flags (guint8 flags, const char *keywords, gpointer data)
{
  g_string_append (((Recorder *)data)->log, "flags");
  put_flags (data, flags, keywords);
  g_string_append_c (((Recorder *)data)->log, '\n');
}

static void
on_exists (guint32 n, gpointer data)
{
  g_string_append_printf (((Recorder *)data)->log, "exists %u\n", n);
}

static void
on_recent (guint32 n, gpointer data)
{
  g_string_append_printf (((Recorder *)data)->log, "recent %u\n", n);
}

static void
on_expunge (guint32 n, gpointer data)
{
  g_string_append_printf (((Recorder *)data)->log, "expunge %u\n", n);
}

static void
on_vanished (const MailUidSet *set, gboolean earlier, gpointer data)
{
  Recorder *r = data;

  g_string_append_printf (r->log, "vanished%s", earlier ? " earlier" : "");
  put_set (r, "set", set);
  g_string_append_c (r->log, '\n');
}

static void
on_quota (const char *root, const ImapQuotaResource *resources, guint n, gpointer data)
{
  Recorder *r = data;

  g_string_append_printf (r->log, "quota <%s>", root);
  for (guint i = 0; i < n; i++)
    g_string_append_printf (r->log, " %s=%" G_GUINT64_FORMAT "/%" G_GUINT64_FORMAT,
                            resources[i].name, resources[i].usage, resources[i].limit);
  g_string_append_c (r->log, '\n');
}

static void
on_quota_root (const char *mailbox, const char *const *roots, gpointer data)
{
  g_string_append_printf (((Recorder *)data)->log, "quotaroot <%s> :", mailbox);
  put_words (data, roots);
  g_string_append_c (((Recorder *)data)->log, '\n');
}

static void
on_my_rights (const char *mailbox, const char *rights, gpointer data)
{
  g_string_append_printf (((Recorder *)data)->log, "rights <%s> %s\n", mailbox, rights);
}

static void
on_fetch_begin (guint32 seq, gpointer data)
{
  g_string_append_printf (((Recorder *)data)->log, "fetch %u\n", seq);
}

static void
on_body_begin (const ImapBody *body, gpointer data)
{
  Recorder *r = data;

  g_string_append_printf (r->log, "  %s %u/%u [%s]", body->binary ? "binary" : "body", body->seq,
                          body->uid, body->section);
  if (body->has_origin)
    g_string_append_printf (r->log, "<%" G_GUINT64_FORMAT ">", body->origin);
  g_string_append_printf (r->log, " %" G_GUINT64_FORMAT "%s:", body->length,
                          body->is_nil ? " nil" : "");
  g_string_truncate (r->body, 0);
}

static void
on_body_data (const guint8 *data, gsize length, gpointer user_data)
{
  Recorder *r = user_data;

  g_assert_cmpuint (length, >, 0);
  r->n_bytes += length;
  if (!r->count_only)
    g_string_append_len (r->body, (const char *)data, (gssize)length);
}

static void
on_body_end (gpointer data)
{
  Recorder *r = data;
  g_autofree char *shown = g_strescape (r->body->str, NULL);

  g_string_append_printf (r->log, " '%s'\n", shown);
  g_string_truncate (r->body, 0);
}

static void
on_fetch_end (const ImapFetch *fetch, gpointer data)
{
  Recorder *r = data;

  g_string_append_printf (r->log, "  end %u uid=%u %x", fetch->seq, fetch->uid, fetch->fields);
  if (fetch->fields & IMAP_FETCH_FLAGS)
    put_flags (r, fetch->flags, fetch->keywords);
  if (fetch->fields & IMAP_FETCH_INTERNALDATE)
    g_string_append_printf (r->log, " date=%" G_GINT64_FORMAT, fetch->internaldate);
  if (fetch->fields & IMAP_FETCH_SIZE)
    g_string_append_printf (r->log, " size=%" G_GUINT64_FORMAT, fetch->size);
  if (fetch->fields & IMAP_FETCH_MODSEQ)
    g_string_append_printf (r->log, " modseq=%" G_GUINT64_FORMAT, fetch->modseq);
  g_string_append_c (r->log, '\n');
}

static const ImapResponseHandler handler = {
  .status = on_status,
  .continuation = on_continuation,
  .capability = on_capability,
  .enabled = on_enabled,
  .id = on_id,
  .namespace = on_namespace,
  .list = on_list,
  .mailbox_status = on_mailbox_status,
  .search = on_search,
  .flags = on_flags,
  .exists = on_exists,
  .recent = on_recent,
  .expunge = on_expunge,
  .vanished = on_vanished,
  .quota = on_quota,
  .quota_root = on_quota_root,
  .my_rights = on_my_rights,
  .fetch_begin = on_fetch_begin,
  .body_begin = on_body_begin,
  .body_data = on_body_data,
  .body_end = on_body_end,
  .fetch_end = on_fetch_end,
};

static void
recorder_init (Recorder *r)
{
  *r = (Recorder) { .log = g_string_new (NULL), .body = g_string_new (NULL) };
  r->parser = imap_parser_new (&handler, r, NULL);
}

static char *
recorder_finish (Recorder *r)
{
  if (r->body->len > 0)
    g_string_append_printf (r->log, " '%s' cut\n", r->body->str);
  imap_parser_free (r->parser);
  g_string_free (r->body, TRUE);
  return g_string_free (r->log, FALSE);
}

/* FALSE, and "ERROR" in the log, once the parser has given up. */
static gboolean
feed (Recorder *r, const char *data, gsize length)
{
  g_autoptr (GError) error = NULL;
  gsize consumed;

  if (imap_parser_feed (r->parser, data, length, &consumed, &error))
    {
      g_assert_no_error (error);
      g_assert_cmpuint (consumed, ==, length);
      return TRUE;
    }
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL);
  g_assert_cmpuint (strlen (error->message), <, 400);
  for (const char *c = error->message; *c != '\0'; c++)
    g_assert_true (g_ascii_isprint (*c));
  g_clear_error (&error);
  g_assert_false (imap_parser_feed (r->parser, "* OK\r\n", 6, NULL, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL);
  g_string_append (r->log, "ERROR\n");
  return FALSE;
}

/* The events of input cut into pieces of `step` bytes, the first one `first` long. */
static char *
events_of (const char *input, gsize length, gsize first, gsize step)
{
  Recorder r;
  gsize at = MIN (first, length);

  recorder_init (&r);
  if (at == 0 || feed (&r, input, at))
    while (at < length)
      {
        gsize n = MIN (step, length - at);

        if (!feed (&r, input + at, n))
          break;
        at += n;
      }
  return recorder_finish (&r);
}

/* --- the table --- */

#define IN(text) text, sizeof text - 1

static const struct
{
  const char *name, *input;
  gsize length;
  const char *events;
} cases[] = {
#include "imap-response-cases.h"
};

static void
test_case (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  const char *input = cases[i].input;
  gsize length = cases[i].length;
  g_autofree char *whole = events_of (input, length, length, 1);
  g_autofree char *bytes = events_of (input, length, 1, 1);

  g_assert_cmpstr (whole, ==, cases[i].events);
  g_assert_cmpstr (bytes, ==, cases[i].events);
  for (gsize cut = 1; cut < length; cut++)
    {
      g_autofree char *events = events_of (input, length, cut, length);

      g_assert_cmpstr (events, ==, cases[i].events);
    }
}

/* --- what does not fit into a table --- */

/* Repeats unit n times between head and tail and gives the events, fed in blocks of 64 KiB. */
static char *
events_of_repeated (const char *head, const char *unit, guint n, const char *tail)
{
  g_autoptr (GString) input = g_string_new (head);

  for (guint i = 0; i < n; i++)
    g_string_append (input, unit);
  g_string_append (input, tail);
  return events_of (input->str, input->len, 65536, 65536);
}

static const struct
{
  const char *name, *head, *unit;
  guint n;
  const char *tail, *events;
} repeated_cases[] = {
  { "parentheses skipped", "* XFOO ", "(", 1000000, "\r\n* 1 EXISTS\r\n", "exists 1\n" },
  { "parentheses in fetch", "* 1 FETCH (BODYSTRUCTURE ", "(", 1000000, "\r\n", "fetch 1\nERROR\n" },
  { "parentheses closed in fetch", "* 1 FETCH (X ", "()", 500000, " UID 5)\r\n",
    "fetch 1\nERROR\n" },
  { "parentheses in list", "* LIST ", "(", 1000000, "\r\n", "ERROR\n" },
  { "parentheses in code", "* OK [X ", "(", 1000000, "] x\r\n* 1 EXISTS\r\n", NULL },
  { "closing parentheses", "* 1 FETCH (X (", ")", 1000000, "\r\n", "fetch 1\nERROR\n" },
  { "tiny literals skipped", "* XFOO", " {1}\r\nx", 1000000, "\r\n* 1 EXISTS\r\n", "exists 1\n" },
  { "tiny literals in fetch", "* 1 FETCH (X (", "{0}\r\n ", 1000000, "))\r\n", "fetch 1\nERROR\n" },
  { "tiny literals in list", "* LIST (", "{1}\r\nx ", 1000000, ") NIL x\r\n", "ERROR\n" },
  { "endless word", "* LIST () NIL ", "xxxxxxxx", 1000000, "\r\n", "ERROR\n" },
  { "endless string", "* LIST () NIL \"", "xxxxxxxx", 1000000, "\"\r\n", "ERROR\n" },
  { "endless text", "* OK ", "xxxxxxxx", 1000000, "\r\n", "ERROR\n" },
  { "endless tag", "", "xxxxxxxx", 1000, " OK\r\n", "ERROR\n" },
  { "endless spaces", "* LIST ", "        ", 1000000, "\r\n", "ERROR\n" },
  { "endless continuation", "+ ", "xxxxxxxx", 1000000, "\r\n", "ERROR\n" },
  { "endless flags", "* 1 FETCH (FLAGS (", "aaaaaaa ", 1000000, "))\r\n", "fetch 1\nERROR\n" },
  { "endless section", "* 1 FETCH (BODY[HEADER.FIELDS (", "aaaaaaa ", 1000, ")] NIL)\r\n",
    "fetch 1\nERROR\n" },
  { "endless line skipped", "* XFOO ", "xxxxxxxx", 9000000, "\r\n", "ERROR\n" },
  { "endless capabilities", "* CAPABILITY ", "A ", 100000, "\r\n", "ERROR\n" },
  { "a million equal uids", "* SEARCH", " 7", 1000000, "\r\n", "search set=7\n" },
  { "a million vanished", "* VANISHED 1", ",1:4294967295", 1000000, "\r\n",
    "vanished set=1:4294967295\n" },
};

static void
test_repeated (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autofree char *events = events_of_repeated (repeated_cases[i].head, repeated_cases[i].unit,
                                                repeated_cases[i].n, repeated_cases[i].tail);

  if (repeated_cases[i].events != NULL)
    g_assert_cmpstr (events, ==, repeated_cases[i].events);
  else
    g_assert_true (g_str_has_suffix (events, "exists 1\n"));
  g_assert_cmpuint (strlen (events), <, 4096);
}

/* Numbers downwards, with holes: the worst order for a sorted set. */
static void
test_search_unsorted (void)
{
  g_autoptr (GString) input = g_string_new ("* SEARCH");
  g_autofree char *events = NULL;

  for (guint i = 400000; i > 0; i--)
    g_string_append_printf (input, " %u", i * 2);
  g_string_append (input, "\r\n");
  events = events_of (input->str, input->len, 65536, 65536);
  g_assert_true (g_str_has_prefix (events, "search set=2,4,6,8,"));
  g_assert_true (g_str_has_suffix (events, ",799998,800000\n"));
}

/* More single numbers than ranges may be kept. */
static void
test_search_too_fragmented (void)
{
  const ImapParserLimits limits = { 1 << 20, 1 << 20, 64 << 20, 1000 };
  g_autoptr (GString) input = g_string_new ("* SEARCH");
  g_autoptr (GError) error = NULL;
  Recorder r;

  recorder_init (&r);
  imap_parser_free (r.parser);
  r.parser = imap_parser_new (&handler, &r, &limits);
  for (guint i = 0; i < 2000; i++)
    g_string_append_printf (input, " %u", i % 2 == 0 ? 1 + 2 * (i % 400) : 5);
  g_string_append (input, "\r\n");
  g_assert_true (imap_parser_feed (r.parser, input->str, input->len, NULL, &error));
  g_string_assign (input, "* SEARCH");
  for (guint i = 0; i < 2000; i++)
    g_string_append_printf (input, " %u", 1 + 2 * i);
  g_string_append (input, "\r\n");
  g_assert_false (imap_parser_feed (r.parser, input->str, input->len, NULL, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL);
  g_free (recorder_finish (&r));
}

/* A literal of 8 EiB is announced and a little of it comes: nothing is allocated for it. */
static void
test_huge_literal (void)
{
  static const char head[] = "* 1 FETCH (UID 7 BODY[] {9223372036854775807}\r\n";
  g_autofree char *block = g_malloc0 (1 << 20);
  Recorder r;

  recorder_init (&r);
  r.count_only = TRUE;
  g_assert_true (feed (&r, head, strlen (head)));
  for (guint i = 0; i < 100; i++)
    g_assert_true (feed (&r, block, 1 << 20));
  g_assert_cmpuint (r.n_bytes, ==, 100 << 20);
  g_assert_cmpstr (r.log->str, ==, "fetch 1\n  body 1/7 [] 9223372036854775807:");
  g_assert_false (imap_parser_is_idle (r.parser));
  g_free (recorder_finish (&r));
}

/* Bytes behind the response at which the handler paused stay the caller's. */
static void
test_pause (void)
{
  static const char input[] = "A1 OK go\r\nA2 OK injected\r\n* 1 EXISTS\r\n";
  g_autofree char *events = NULL;
  gsize consumed;
  Recorder r;

  recorder_init (&r);
  r.pause = TRUE;
  g_assert_true (imap_parser_feed (r.parser, input, strlen (input), &consumed, NULL));
  g_assert_cmpuint (consumed, ==, strlen ("A1 OK go\r\n"));
  g_assert_true (imap_parser_is_idle (r.parser));
  g_assert_true (
      imap_parser_feed (r.parser, input + consumed, strlen (input) - consumed, &consumed, NULL));
  g_assert_cmpuint (consumed, ==, strlen ("A2 OK injected\r\n"));
  events = recorder_finish (&r);
  g_assert_cmpstr (events, ==, "A1 OK 'go'\nA2 OK 'injected'\n");
}

static void
test_idle (void)
{
  static const char input[] = "* 1 EXISTS\r\n* 2 FETCH (BODY[] {3}\r\nabc)\r\nA OK\r\n+ x\r\n";
  Recorder r;

  recorder_init (&r);
  g_assert_true (imap_parser_is_idle (r.parser));
  for (const char *c = input; *c != '\0'; c++)
    {
      g_assert_true (feed (&r, c, 1));
      g_assert_cmpint (imap_parser_is_idle (r.parser), ==, *c == '\n' && c[1] != 'a');
    }
  g_free (recorder_finish (&r));
}

/* Nothing set in the handler: the same bytes, no event, no crash. */
static void
test_no_handler (void)
{
  static const ImapResponseHandler nothing = { 0 };

  for (gsize i = 0; i < G_N_ELEMENTS (cases); i++)
    {
      g_autoptr (ImapParser) parser = imap_parser_new (&nothing, NULL, NULL);

      imap_parser_feed (parser, cases[i].input, cases[i].length, NULL, NULL);
    }
}

static const struct
{
  const char *text;
  gint64 epoch;
} dates[] = {
  { "17-Jul-1996 02:44:25 -0700", 837596665 },
  { " 1-Jan-1970 00:00:00 +0000", 0 },
  { "1-Jan-1970 00:00:00 +0000", 0 },
  { "01-Jan-1970 01:00:00 +0100", 0 },
  { "31-Dec-1969 23:59:59 +0000", -1 },
  { "29-Feb-2000 12:00:00 +0000", 951825600 },
  { "29-Feb-2024 23:59:60 +0000", 1709251199 },
  { "19-Jan-2038 03:14:08 +0000", 2147483648 },
  { "31-Dec-9999 23:59:59 +0000", 253402300799 },
  { "01-jan-1970 00:00:00 -0030", 1800 },
  { "29-Feb-2023 00:00:00 +0000", G_MININT64 },
  { "29-Feb-1900 00:00:00 +0000", G_MININT64 },
  { "32-Jan-2000 00:00:00 +0000", G_MININT64 },
  { "00-Jan-2000 00:00:00 +0000", G_MININT64 },
  { "01-Foo-2000 00:00:00 +0000", G_MININT64 },
  { "01-Jan-2000 24:00:00 +0000", G_MININT64 },
  { "01-Jan-2000 00:60:00 +0000", G_MININT64 },
  { "01-Jan-2000 00:00:00", G_MININT64 },
  { "01-Jan-2000 00:00:00 +000", G_MININT64 },
  { "01-Jan-2000 00:00:00 +0000x", G_MININT64 },
  { "01-Jan-99 00:00:00 +0000", G_MININT64 },
  { "", G_MININT64 },
  { "-", G_MININT64 },
  { "1", G_MININT64 },
  { "01-Ja", G_MININT64 },
};

static void
test_dates (void)
{
  for (gsize i = 0; i < G_N_ELEMENTS (dates); i++)
    {
      gint64 epoch = G_MININT64;

      g_test_message ("%s", dates[i].text);
      g_assert_cmpint (imap_parse_date_time (dates[i].text, &epoch), ==,
                       dates[i].epoch != G_MININT64);
      g_assert_cmpint (epoch, ==, dates[i].epoch);
    }
}

static void
add_cases (void)
{
  for (gsize i = 0; i < G_N_ELEMENTS (cases); i++)
    {
      g_autofree char *path = g_strdup_printf ("/imap/response/%s", cases[i].name);

      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_case);
    }
  for (gsize i = 0; i < G_N_ELEMENTS (repeated_cases); i++)
    {
      g_autofree char *path = g_strdup_printf ("/imap/hostile/%s", repeated_cases[i].name);

      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_repeated);
    }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  add_cases ();
  g_test_add_func ("/imap/hostile/search unsorted", test_search_unsorted);
  g_test_add_func ("/imap/hostile/search too fragmented", test_search_too_fragmented);
  g_test_add_func ("/imap/hostile/huge literal", test_huge_literal);
  g_test_add_func ("/imap/parser/pause", test_pause);
  g_test_add_func ("/imap/parser/idle", test_idle);
  g_test_add_func ("/imap/parser/no handler", test_no_handler);
  g_test_add_func ("/imap/parser/dates", test_dates);
  return g_test_run ();
}
