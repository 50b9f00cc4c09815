/* SPDX-License-Identifier: MIT
 *
 * libFuzzer target for ImapParser. The first two bytes say how the rest is cut; the events of the
 * input fed whole and fed in pieces must be the same, and every promise of response.h that a number
 * can break is checked. Seeds are what a real server said (seeds/imap-response).
 */
#include "imap/response.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput (const guint8 *data, gsize size);

/* What was told, folded into one number; bodies byte by byte, since pieces differ. */
typedef struct
{
  guint64 hash;
  guint64 body_left; /* of the announced length */
  gboolean in_fetch, in_body;
} Events;

static void
require (gboolean holds)
{
  if (!holds)
    abort ();
}

static void
fold (Events *events, const void *data, gsize length)
{
  const guint8 *bytes = data;

  for (gsize i = 0; i < length; i++)
    events->hash = (events->hash ^ bytes[i]) * G_GUINT64_CONSTANT (1099511628211);
}

static void
fold_number (Events *events, guint64 number)
{
  fold (events, &number, sizeof number);
}

static void
fold_text (Events *events, const char *text)
{
  if (text != NULL)
    fold (events, text, strlen (text) + 1);
}

static void
fold_set (Events *events, const MailUidSet *set, gboolean normal)
{
  for (guint i = 0; set != NULL && i < set->len; i++)
    {
      const MailUidRange *range = mail_uid_set_range (set, i);

      require (range->first >= 1 && range->first <= range->last);
      require (!normal || i == 0
               || range->first > (guint64)mail_uid_set_range (set, i - 1)->last + 1);
      fold (events, range, sizeof *range);
    }
}

static void
fold_words (Events *events, const char *const *words)
{
  for (; words != NULL && *words != NULL; words++)
    fold_text (events, *words);
}

static void
on_status (const ImapStatus *s, gpointer data)
{
  require (s->text != NULL && strlen (s->text) <= 1024);
  require (s->code < IMAP_N_CODES && (s->code == IMAP_CODE_NONE) == (s->code_name == NULL));
  if (s->from != NULL)
    require (mail_uid_set_count (s->from) == mail_uid_set_count (s->to));
  fold_number (data, (guint64)s->condition << 32 | s->code);
  fold_text (data, s->tag);
  fold_text (data, s->code_name);
  fold_text (data, s->code_args);
  fold_text (data, s->text);
  fold_number (data, s->number ^ s->uidvalidity ^ (guint64)s->malformed << 40);
  fold_set (data, s->set, s->code == IMAP_CODE_MODIFIED);
  fold_set (data, s->from, FALSE);
  fold_set (data, s->to, FALSE);
  fold_words (data, s->words);
  fold_text (data, s->keywords);
}

static void
on_continuation (const char *text, gpointer data)
{
  fold_text (data, text);
}

static void
on_words (const char *const *words, gpointer data)
{
  fold_words (data, words);
}

static void
on_id (const char *const *strings, guint n, gpointer data)
{
  require (n % 2 == 0);
  for (guint i = 0; i < n; i++)
    fold_text (data, strings[i]);
}

static void
on_namespace (const ImapNamespace *ns, gpointer data)
{
  for (guint i = 0; i < ns->n_personal; i++)
    fold_text (data, ns->personal[i].prefix);
  for (guint i = 0; i < ns->n_others; i++)
    fold_number (data, (guint64)ns->others[i].delimiter);
  for (guint i = 0; i < ns->n_shared; i++)
    fold_text (data, ns->shared[i].prefix);
}

static void
on_list (const ImapList *list, gpointer data)
{
  require (list->name != NULL);
  fold_text (data, list->name);
  fold_text (data, list->special_use);
  fold_number (data, list->flags << 8 | (guint8)list->delimiter);
}

static void
on_mailbox_status (const ImapMailboxStatus *s, gpointer data)
{
  require (s->name != NULL);
  fold_text (data, s->name);
  fold_number (data, s->items);
  fold_number (data, s->size ^ s->highestmodseq);
  fold_number (data, s->messages ^ (guint64)s->uidnext << 32);
}

static void
on_search (const ImapSearch *search, gpointer data)
{
  fold_set (data, search->set, TRUE);
  fold_text (data, search->tag);
  fold_number (data, search->count ^ search->modseq ^ (guint64)search->min << 32 ^ search->max);
}

static void
on_flags (guint8 flags, const char *keywords, gpointer data)
{
  require (keywords != NULL && (flags & ~MAIL_FLAGS_ALL) == 0);
  fold_number (data, flags);
  fold_text (data, keywords);
}

static void
on_number (guint32 n, gpointer data)
{
  fold_number (data, n);
}

static void
on_expunge (guint32 n, gpointer data)
{
  require (n >= 1);
  fold_number (data, n);
}

static void
on_vanished (const MailUidSet *set, gboolean earlier, gpointer data)
{
  require (set->len > 0);
  fold_set (data, set, TRUE);
  fold_number (data, (guint64)earlier);
}

static void
on_quota (const char *root, const ImapQuotaResource *resources, guint n, gpointer data)
{
  fold_text (data, root);
  for (guint i = 0; i < n; i++)
    {
      fold_text (data, resources[i].name);
      fold_number (data, resources[i].usage ^ resources[i].limit);
    }
}

static void
on_quota_root (const char *mailbox, const char *const *roots, gpointer data)
{
  fold_text (data, mailbox);
  fold_words (data, roots);
}

static void
on_my_rights (const char *mailbox, const char *rights, gpointer data)
{
  fold_text (data, mailbox);
  fold_text (data, rights);
}

static void
on_fetch_begin (guint32 seq, gpointer data)
{
  Events *events = data;

  require (seq >= 1 && !events->in_fetch);
  events->in_fetch = TRUE;
  fold_number (events, seq);
}

static void
on_body_begin (const ImapBody *body, gpointer data)
{
  Events *events = data;

  require (events->in_fetch && !events->in_body && body->section != NULL);
  require (!body->is_nil || body->length == 0);
  events->in_body = TRUE;
  events->body_left = body->length;
  fold_text (events, body->section);
  fold_number (events, body->length);
  fold_number (events, body->origin ^ (guint64)body->has_origin << 63 ^ body->uid);
}

static void
on_body_data (const guint8 *bytes, gsize length, gpointer data)
{
  Events *events = data;

  require (events->in_body && length > 0 && length <= events->body_left);
  events->body_left -= length;
  fold (events, bytes, length);
}

static void
on_body_end (gpointer data)
{
  Events *events = data;

  require (events->in_body && events->body_left == 0);
  events->in_body = FALSE;
}

static void
on_fetch_end (const ImapFetch *fetch, gpointer data)
{
  Events *events = data;

  require (events->in_fetch && !events->in_body);
  require ((fetch->uid != 0) == ((fetch->fields & IMAP_FETCH_UID) != 0));
  events->in_fetch = FALSE;
  on_flags (fetch->flags, fetch->keywords, events);
  fold_number (events, fetch->fields ^ (guint64)fetch->uid << 32);
  fold_number (events, (guint64)fetch->internaldate ^ fetch->size ^ fetch->modseq);
}

static const ImapResponseHandler handler = {
  .status = on_status,
  .continuation = on_continuation,
  .capability = on_words,
  .enabled = on_words,
  .id = on_id,
  .namespace = on_namespace,
  .list = on_list,
  .mailbox_status = on_mailbox_status,
  .search = on_search,
  .flags = on_flags,
  .exists = on_number,
  .recent = on_number,
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

/* Small limits, so that they are met. */
static const ImapParserLimits limits = { 2000, 1000, 4000, 64 };

static guint64
events_of (const guint8 *data, gsize size, gsize first, gsize step)
{
  Events events = { .hash = 14695981039346656037u };
  g_autoptr (ImapParser) parser = imap_parser_new (&handler, &events, &limits);

  for (gsize at = 0, n = MIN (first, size); at < size; at += n, n = MIN (step, size - at))
    {
      /* A piece of its own, so that reading behind its end shows. */
      g_autofree guint8 *piece = g_memdup2 (data + at, n);
      g_autoptr (GError) error = NULL;
      gsize consumed;

      if (!imap_parser_feed (parser, piece, n, &consumed, &error))
        {
          require (g_error_matches (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL));
          fold_text (&events, "error");
          break;
        }
      require (consumed == n);
    }
  fold_number (&events, events.body_left);
  return events.hash;
}

int
LLVMFuzzerTestOneInput (const guint8 *data, gsize size)
{
  guint64 whole;

  if (size < 3)
    return 0;
  whole = events_of (data + 2, size - 2, size, size);
  require (whole == events_of (data + 2, size - 2, 1u + data[0], 1u + data[1]));
  require (whole == events_of (data + 2, size - 2, 1, 1));
  return 0;
}
