/* SPDX-License-Identifier: MIT
 *
 * What a dialogue test and a fuzz target of the IMAP operations share: a pool of one session,
 * played here, and operations whose sinks write down what they are told. For one including file
 * only.
 */
#pragma once

#include "imap/backend-private.h"
#include "mailfs/log.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PLAYER_TIMEOUT_MS 15000

/* --- the pool --------------------------------------------------------------------------------- */

struct ImapPool
{
  ImapSession *session;
  GQueue chains;
};

static ImapPool *the_pool;

ImapPool *
imap_pool_new (const MailConfig *config, MailSecretSource *secrets, NetTls *tls)
{
  the_pool = g_new0 (ImapPool, 1);
  g_queue_init (&the_pool->chains);
  return the_pool;
}

void
imap_pool_free (ImapPool *pool)
{
  g_free (pool);
}

void
imap_pool_submit (ImapPool *pool, ImapTask *chain)
{
  g_queue_push_tail (&pool->chains, chain);
}

gboolean
imap_pool_is_closed (const ImapPool *pool)
{
  return FALSE;
}

guint
imap_pool_caps (const ImapPool *pool)
{
  return 0;
}

char
imap_pool_delimiter (const ImapPool *pool)
{
  return '/';
}

void
imap_pool_start (ImapPool *pool, MailDoneFunc done, gpointer user_data)
{
}

void
imap_pool_watch (ImapPool *pool, const char *mailbox, MailChangedFunc changed, gpointer user_data)
{
}

void
imap_pool_close (ImapPool *pool, MailDoneFunc done, gpointer user_data)
{
}

char *
imap_pool_describe (ImapPool *pool)
{
  return NULL;
}

/* Gives what was queued to the session, or fails it when there is none. */
static void
pool_turn (ImapPool *pool, gint64 now)
{
  g_autoptr (GError) down = g_error_new (MAIL_ERROR, MAIL_ERROR_UNREACHABLE, "down");
  ImapTask *chain;

  while ((chain = g_queue_pop_head (&pool->chains)) != NULL)
    {
      if (pool->session != NULL && imap_session_state (pool->session) == IMAP_SESSION_READY)
        {
          imap_session_submit (pool->session, chain, now);
          continue;
        }
      while (chain != NULL)
        {
          ImapTask *next = chain->next;
          ImapResult result = { .error = down };

          chain->next = NULL;
          chain->ops->done (chain, &result);
          chain = next;
        }
    }
}

/* --- operations and their log ------------------------------------------------------------------
 */

typedef struct
{
  MailListSink list;
  MailSyncSink sync;
  MailFetchSink fetch;
  GString *log;
  GString *bytes; /* of the message at hand */
  guint64 offset;
  guint32 uid;
  MailUidSet *uids; /* not told yet */
  int fd;
  MailAppendItem items[4];
  guint n_done;
} Op;

typedef struct
{
  MailConfig config;
  MailBackend *backend;
  GString *log;
  Op ops[4];
  guint n_ops;
  gint64 now;
} Player;

#define OP(sink, member) ((Op *)((char *)(sink)-offsetof (Op, member)))

static void
log_done (Op *op, const GError *error)
{
  op->n_done++;
  if (error == NULL)
    g_string_append (op->log, "done\n");
  else
    g_string_append_printf (op->log, "error %d\n", error->code);
}

static void
on_done (const GError *error, gpointer user_data)
{
  log_done (user_data, error);
}

static void
list_mailbox (MailListSink *sink, const MailMailboxInfo *info)
{
  Op *op = OP (sink, list);

  g_string_append_printf (op->log, "box %s =", info->name);
  for (guint i = 0; i < info->n_parts; i++)
    g_string_append_printf (op->log, " %s%s", info->parts[i].raw ? "!" : "", info->parts[i].text);
  g_string_append_printf (op->log, " %x%s%s", info->flags, info->special_use ? " " : "",
                          info->special_use ? info->special_use : "");
  if (info->has_status)
    g_string_append_printf (op->log, " n=%u", info->status.n_messages);
  g_string_append_c (op->log, '\n');
}

static void
list_done (MailListSink *sink, const GError *error)
{
  log_done (OP (sink, list), error);
}

static void
sync_begin (MailSyncSink *sink, guint32 uidvalidity, gboolean complete)
{
  g_string_append_printf (OP (sink, sync)->log, "begin %u %s\n", uidvalidity,
                          complete ? "all" : "changes");
}

static void
sync_message (MailSyncSink *sink, const MailMessageInfo *info)
{
  g_string_append_printf (OP (sink, sync)->log, "message %u %x [%s] %" G_GUINT64_FORMAT "\n",
                          info->uid, info->flags, info->keywords, info->size);
}

static void
sync_flags (MailSyncSink *sink, const MailMessageInfo *info)
{
  g_string_append_printf (OP (sink, sync)->log, "flags %u %x [%s]\n", info->uid, info->flags,
                          info->keywords);
}

static void
sync_vanished (MailSyncSink *sink, guint32 first, guint32 last)
{
  g_assert_true (first >= 1 && first <= last);
  g_string_append_printf (OP (sink, sync)->log, "vanished %u-%u\n", first, last);
}

static void
sync_present (MailSyncSink *sink, guint32 first, guint32 last)
{
  g_string_append_printf (OP (sink, sync)->log, "present %u-%u\n", first, last);
}

static void
sync_done (MailSyncSink *sink, const MailSyncResult *result, const GError *error)
{
  Op *op = OP (sink, sync);

  if (result != NULL)
    g_string_append_printf (op->log, "now %u next=%u n=%u modseq=%" G_GUINT64_FORMAT "%s%s\n",
                            result->status.uidvalidity, result->status.uidnext,
                            result->status.n_messages, result->status.highestmodseq,
                            result->rights != NULL ? " " : "",
                            result->rights != NULL ? result->rights : "");
  log_done (op, error);
}

static void
fetch_data (MailFetchSink *sink, guint32 uid, guint64 offset, const guint8 *data, gsize length)
{
  Op *op = OP (sink, fetch);

  if (op->uid != uid || offset != op->offset + op->bytes->len)
    {
      g_string_truncate (op->bytes, 0);
      op->offset = offset;
      op->uid = uid;
    }
  g_string_append_len (op->bytes, (const char *)data, (gssize)length);
}

static void
fetch_message (MailFetchSink *sink, guint32 uid, guint64 end, gboolean at_end, const GError *error)
{
  Op *op = OP (sink, fetch);

  /* Asked for, and told once. */
  g_assert_true (mail_uid_set_contains (op->uids, uid));
  mail_uid_set_remove (op->uids, uid, uid);
  if (error != NULL)
    g_string_append_printf (op->log, "message %u error %d\n", uid, error->code);
  else
    {
      g_assert_true (end == 0 || op->uid == uid);
      g_assert_cmpuint (end, ==, end == 0 ? 0 : op->offset + op->bytes->len);
      g_string_append_printf (op->log, "message %u %" G_GUINT64_FORMAT " [%s]%s\n", uid, op->offset,
                              end == 0 ? "" : op->bytes->str, at_end ? " end" : "");
    }
  op->uid = 0;
  op->offset = 0;
  g_string_truncate (op->bytes, 0);
}

static void
fetch_done (MailFetchSink *sink, const GError *error)
{
  log_done (OP (sink, fetch), error);
}

static void
on_copied (guint32 target_uidvalidity, const MailUidPair *pairs, guint n_pairs, const GError *error,
           gpointer user_data)
{
  Op *op = user_data;

  g_string_append_printf (op->log, "copied %u", target_uidvalidity);
  for (guint i = 0; i < n_pairs; i++)
    g_string_append_printf (op->log, " %u>%u", pairs[i].from, pairs[i].to);
  g_string_append_c (op->log, '\n');
  log_done (op, error);
}

static void
on_append (guint32 uidvalidity, const guint32 *uids, guint n_known, gboolean maybe,
           const GError *error, gpointer user_data)
{
  Op *op = user_data;

  g_string_append_printf (op->log, "appended %u", uidvalidity);
  for (guint i = 0; i < n_known; i++)
    g_string_append_printf (op->log, " %u", uids[i]);
  g_string_append (op->log, maybe ? " maybe\n" : "\n");
  log_done (op, error);
}

static void
on_quota (gboolean has_quota, guint64 used, guint64 limit, const GError *error, gpointer user_data)
{
  Op *op = user_data;

  g_string_append_printf (op->log, "quota %d %" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT "\n",
                          has_quota, used, limit);
  log_done (op, error);
}

static void
begin_append (Player *p, Op *op, guint n)
{
  op->fd = memfd_create ("message", 0);
  g_assert_cmpint (write (op->fd, "A: b\r\n\r\nc\r\n", 11), ==, 11);
  for (guint i = 0; i < n; i++)
    op->items[i] = (MailAppendItem) { .fd = op->fd, .length = 11, .internaldate = 0 };
  p->backend->ops->append (p->backend, "INBOX", op->items, n, on_append, op);
}

static void
begin_fetch (Player *p, Op *op, char **words)
{
  g_autoptr (MailUidSet) set = mail_uid_set_parse (words[1], -1);
  MailFetchRequest request = {
    .mailbox = "INBOX",
    .uidvalidity = 7,
    .uids = (const MailUidRange *)set->data,
    .n_uids = set->len,
    .offset = words[2] != NULL ? g_ascii_strtoull (words[2], NULL, 10) : 0,
    .length = words[2] != NULL ? g_ascii_strtoull (words[3], NULL, 10) : MAIL_TO_END,
  };

  op->uids = mail_uid_set_copy (set);
  p->backend->ops->fetch (p->backend, &request, &op->fetch);
}

static void
begin_sync (Player *p, Op *op, char **words)
{
  MailMailboxStatus known = { 0 };

  if (words[1] != NULL)
    known = (MailMailboxStatus) {
      .uidvalidity = (guint32)atoi (words[1]),
      .uidnext = (guint32)atoi (words[2]),
      .n_messages = (guint32)atoi (words[3]),
      .highestmodseq = (guint64)atoi (words[4]),
    };
  p->backend->ops->sync (p->backend, "INBOX", &known, &op->sync);
}

static void
begin_op (Player *p, const char *text)
{
  g_auto (GStrv) words = g_strsplit (text, " ", -1);
  Op *op = &p->ops[p->n_ops++];
  MailUidRange uids = { 1, 1 };

  *op = (Op) {
    .list = { list_mailbox, list_done },
    .sync = { sync_begin, sync_message, sync_flags, sync_vanished, sync_present, NULL, sync_done },
    .fetch = { fetch_data, fetch_message, fetch_done },
    .log = p->log,
    .bytes = g_string_new (NULL),
    .fd = -1,
  };
  if (words[0] != NULL && words[1] != NULL)
    {
      g_autoptr (MailUidSet) set = mail_uid_set_parse (words[1], -1);
      if (set != NULL)
        uids = *mail_uid_set_range (set, 0);
    }
  if (strcmp (words[0], "list") == 0)
    p->backend->ops->list (p->backend, FALSE, &op->list);
  else if (strcmp (words[0], "sync") == 0)
    begin_sync (p, op, words);
  else if (strcmp (words[0], "fetch") == 0)
    begin_fetch (p, op, words);
  else if (strcmp (words[0], "flags") == 0)
    p->backend->ops->store_flags (p->backend, "INBOX", 7, &uids, 1, MAIL_FLAG_SEEN, NULL, 0, "Work",
                                  on_done, op);
  else if (strcmp (words[0], "remove") == 0)
    p->backend->ops->remove (p->backend, "INBOX", 7, &uids, 1, NULL, on_done, op);
  else if (strcmp (words[0], "move") == 0)
    p->backend->ops->move (p->backend, "INBOX", 7, &uids, 1, "T", on_copied, op);
  else if (strcmp (words[0], "copy") == 0)
    p->backend->ops->copy (p->backend, "INBOX", 7, &uids, 1, "T", on_copied, op);
  else if (strcmp (words[0], "append") == 0)
    begin_append (p, op, (guint)atoi (words[1]));
  else if (strcmp (words[0], "quota") == 0)
    p->backend->ops->quota (p->backend, on_quota, op);
  else if (strcmp (words[0], "create") == 0)
    p->backend->ops->create (p->backend, "a\"b", on_done, op);
  else if (strcmp (words[0], "rename") == 0)
    p->backend->ops->rename (p->backend, "old", "new", on_done, op);
  else
    g_assert_not_reached ();
}

static void
op_clear (Op *op)
{
  g_string_free (op->bytes, TRUE);
  mail_uid_set_free (op->uids);
  if (op->fd >= 0)
    close (op->fd);
}
