/* SPDX-License-Identifier: MIT
 *
 * The server in memory. A request waits some turns of the main loop, has its effect, waits some
 * more, and is answered. One thread.
 */
#include "model-server.h"

#include <glib-object.h>

#include <string.h>
#include <unistd.h>

/* --- the account ------------------------------------------------------------------------------ */

static void
message_free (gpointer data)
{
  ModelMessage *message = data;

  g_free (message->keywords);
  g_bytes_unref (message->bytes);
  g_free (message);
}

static void
mailbox_free (gpointer data)
{
  ModelMailbox *mailbox = data;

  g_free (mailbox->name);
  g_free (mailbox->special_use);
  g_ptr_array_unref (mailbox->messages);
  g_array_unref (mailbox->vanished);
  g_free (mailbox);
}

ModelServer *
model_server_new (guint caps)
{
  ModelServer *server = g_new0 (ModelServer, 1);

  server->caps = caps;
  server->mailboxes = g_ptr_array_new_with_free_func (mailbox_free);
  server->past = g_ptr_array_new_with_free_func (mailbox_free);
  server->faults = g_array_new (FALSE, FALSE, sizeof (ModelFault));
  server->log = g_ptr_array_new_with_free_func (g_free);
  server->next_uidvalidity = 1000;
  model_add_mailbox (server, "INBOX", NULL);
  return server;
}

void
model_server_free (ModelServer *server)
{
  g_ptr_array_unref (server->mailboxes);
  g_ptr_array_unref (server->past);
  g_array_unref (server->faults);
  g_ptr_array_unref (server->log);
  if (server->rand != NULL)
    g_rand_free (server->rand);
  g_free (server);
}

static ModelMessage *
message_copy (const ModelMessage *message)
{
  ModelMessage *copy = g_memdup2 (message, sizeof *message);

  copy->keywords = g_strdup (message->keywords);
  g_bytes_ref (copy->bytes);
  return copy;
}

static ModelMailbox *
mailbox_copy (const ModelMailbox *mailbox)
{
  ModelMailbox *copy = g_memdup2 (mailbox, sizeof *mailbox);

  copy->name = g_strdup (mailbox->name);
  copy->special_use = g_strdup (mailbox->special_use);
  copy->vanished = g_array_copy (mailbox->vanished);
  copy->messages = g_ptr_array_new_with_free_func (message_free);
  for (guint i = 0; i < mailbox->messages->len; i++)
    g_ptr_array_add (copy->messages, message_copy (mailbox->messages->pdata[i]));
  return copy;
}

static GPtrArray *
mailboxes_copy (const GPtrArray *mailboxes)
{
  GPtrArray *copies = g_ptr_array_new_with_free_func (mailbox_free);

  for (guint i = 0; i < mailboxes->len; i++)
    g_ptr_array_add (copies, mailbox_copy (mailboxes->pdata[i]));
  return copies;
}

ModelServer *
model_server_copy (const ModelServer *server)
{
  ModelServer *copy = g_memdup2 (server, sizeof *server);

  copy->rand = server->rand != NULL ? g_rand_copy (server->rand) : NULL;
  copy->faults = g_array_copy (server->faults);
  copy->log = g_ptr_array_new_with_free_func (g_free);
  copy->mailboxes = mailboxes_copy (server->mailboxes);
  copy->past = mailboxes_copy (server->past);
  return copy;
}

ModelMailbox *
model_mailbox (ModelServer *server, const char *name)
{
  for (guint i = 0; i < server->mailboxes->len; i++)
    {
      ModelMailbox *mailbox = server->mailboxes->pdata[i];
      if (strcmp (mailbox->name, name) == 0)
        return mailbox;
    }
  return NULL;
}

ModelMailbox *
model_add_mailbox (ModelServer *server, const char *name, const char *special_use)
{
  ModelMailbox *mailbox = g_new0 (ModelMailbox, 1);

  mailbox->name = g_strdup (name);
  mailbox->special_use = g_strdup (special_use);
  mailbox->id = mailbox->uidvalidity = server->next_uidvalidity++;
  mailbox->uidnext = 1;
  mailbox->modseq = 1;
  mailbox->messages = g_ptr_array_new_with_free_func (message_free);
  mailbox->vanished = g_array_new (FALSE, FALSE, 2 * sizeof (guint64));
  g_ptr_array_add (server->mailboxes, mailbox);
  return mailbox;
}

static ModelMessage *
add_message (ModelMailbox *mailbox, GBytes *bytes, guint8 flags, const char *keywords, gint64 date)
{
  ModelMessage *message = g_new0 (ModelMessage, 1);

  message->uid = mailbox->uidnext++;
  message->flags = flags;
  message->keywords = g_strdup (keywords != NULL ? keywords : "");
  message->date = date;
  message->modseq = ++mailbox->modseq;
  message->bytes = g_bytes_ref (bytes);
  g_ptr_array_add (mailbox->messages, message);
  return message;
}

ModelMessage *
model_deliver (ModelServer *server, const char *name, const char *text, guint8 flags, gint64 date)
{
  g_autoptr (GBytes) bytes = g_bytes_new (text, strlen (text));

  return add_message (model_mailbox (server, name), bytes, flags, NULL, date);
}

ModelMessage *
model_find (ModelMailbox *mailbox, guint32 uid)
{
  for (guint i = 0; i < mailbox->messages->len; i++)
    if (((ModelMessage *)mailbox->messages->pdata[i])->uid == uid)
      return mailbox->messages->pdata[i];
  return NULL;
}

void
model_set_flags (ModelMailbox *mailbox, ModelMessage *message, guint8 flags, const char *keywords)
{
  if (message->flags == flags && g_strcmp0 (message->keywords, keywords) == 0)
    return; /* as servers do: no new MODSEQ */
  message->flags = flags;
  g_free (message->keywords);
  message->keywords = g_strdup (keywords);
  message->modseq = ++mailbox->modseq;
}

void
model_expunge (ModelMailbox *mailbox, guint32 uid)
{
  ModelMessage *message = model_find (mailbox, uid);
  guint64 entry[2] = { uid, 0 };

  if (message == NULL)
    return;
  entry[1] = ++mailbox->modseq;
  g_array_append_vals (mailbox->vanished, entry, 1);
  g_ptr_array_remove (mailbox->messages, message);
}

void
model_renumber (ModelServer *server, ModelMailbox *mailbox, guint32 first, gboolean reversed,
                guint rotate)
{
  guint n = mailbox->messages->len;
  g_autofree gpointer *messages = g_memdup2 (mailbox->messages->pdata, n * sizeof (gpointer));

  g_ptr_array_add (server->past, mailbox_copy (mailbox));
  mailbox->uidvalidity = server->next_uidvalidity++;
  mailbox->modseq = 1;
  for (guint i = 0; i < n; i++)
    {
      ModelMessage *message = messages[reversed ? n - 1 - i : i];
      guint at = (i + rotate) % n;

      message->uid = first + at;
      message->modseq = ++mailbox->modseq;
      mailbox->messages->pdata[at] = message;
    }
  mailbox->uidnext = first + n;
  g_array_set_size (mailbox->vanished, 0);
}

ModelMailbox *
model_numbered (ModelServer *server, guint32 uidvalidity)
{
  const GPtrArray *all[] = { server->mailboxes, server->past };

  for (guint i = 0; i < G_N_ELEMENTS (all); i++)
    for (guint k = 0; k < all[i]->len; k++)
      if (((ModelMailbox *)all[i]->pdata[k])->uidvalidity == uidvalidity)
        return all[i]->pdata[k];
  return NULL;
}

static gboolean
has_text (const ModelMessage *message, const char *text)
{
  gsize length;
  const char *data = g_bytes_get_data (message->bytes, &length);

  return memmem (data, length, text, strlen (text)) != NULL;
}

guint
model_count_in (ModelServer *server, const char *name, const char *text)
{
  ModelMailbox *mailbox = model_mailbox (server, name);
  guint n = 0;

  for (guint i = 0; mailbox != NULL && i < mailbox->messages->len; i++)
    n += has_text (mailbox->messages->pdata[i], text);
  return n;
}

guint
model_count (ModelServer *server, const char *text)
{
  guint n = 0;

  for (guint i = 0; i < server->mailboxes->len; i++)
    n += model_count_in (server, ((ModelMailbox *)server->mailboxes->pdata[i])->name, text);
  return n;
}

void
model_fault (ModelServer *server, ModelFault fault)
{
  g_array_append_val (server->faults, fault);
}

/* --- requests ----------------------------------------------------------------------------------
 */

typedef enum
{
  START,
  LIST,
  SYNC,
  FETCH,
  FLAGS,
  COPY,
  MOVE,
  REMOVE,
  APPEND,
  CREATE,
  RENAME,
  DELETE,
  QUOTA,
  CLOSE,
} Kind;

typedef struct
{
  MailBackend base;
  ModelServer *server;
  GMainContext *context;
  GPtrArray *requests; /* of Request, in order */
  GSource *source;
} Backend;

typedef struct
{
  Backend *backend;
  Kind kind;
  guint before, after; /* turns of the main loop until the effect, and until the answer */
  gboolean effective;
  char *mailbox, *target;
  guint32 uidvalidity;
  GArray *uids; /* of MailUidRange */
  guint8 add, remove;
  char *add_keywords, *remove_keywords;
  MailMailboxStatus known;
  const MailAppendItem *items;
  guint n_items;
  guint64 offset, length;
  gpointer sink;
  GCallback done;
  gpointer user_data;
  /* What it came to. */
  GError *error;
  GArray *pairs; /* of MailUidPair */
  GArray *new_uids;
  gboolean maybe;
  guint32 target_uidvalidity;
  ModelMailbox *snapshot; /* of a sync or fetch, as of the effect */
} Request;

static void
request_free (Request *request)
{
  g_free (request->mailbox);
  g_free (request->target);
  g_clear_pointer (&request->uids, g_array_unref);
  g_clear_pointer (&request->pairs, g_array_unref);
  g_clear_pointer (&request->new_uids, g_array_unref);
  g_free (request->add_keywords);
  g_free (request->remove_keywords);
  g_clear_error (&request->error);
  if (request->snapshot != NULL)
    mailbox_free (request->snapshot);
  g_free (request);
}

static gboolean
is_wanted (const Request *request, guint32 uid)
{
  for (guint i = 0; i < request->uids->len; i++)
    {
      const MailUidRange *range = &g_array_index (request->uids, MailUidRange, i);
      if (range->first <= uid && uid <= range->last)
        return TRUE;
    }
  return FALSE;
}

static GPtrArray *
wanted_messages (const Request *request, ModelMailbox *mailbox)
{
  GPtrArray *wanted = g_ptr_array_new ();

  for (guint i = 0; i < mailbox->messages->len; i++)
    if (is_wanted (request, ((ModelMessage *)mailbox->messages->pdata[i])->uid))
      g_ptr_array_add (wanted, mailbox->messages->pdata[i]);
  return wanted;
}

/* --- effects ------------------------------------------------------------------------------------
 */

static gboolean
has_word (const char *words, const char *word, gsize length)
{
  for (const char *at = words; (at = strstr (at, word)) != NULL; at += length)
    if ((at == words || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
      return TRUE;
  return FALSE;
}

static char *
change_words (const char *words, const char *add, const char *remove)
{
  g_auto (GStrv) old = g_strsplit (words, " ", -1), more = g_strsplit (add ? add : "", " ", -1);
  g_autoptr (GPtrArray) now = g_ptr_array_new ();

  for (guint i = 0; old[i] != NULL; i++)
    if (*old[i] != '\0' && (remove == NULL || !has_word (remove, old[i], strlen (old[i]))))
      g_ptr_array_add (now, old[i]);
  for (guint i = 0; more[i] != NULL; i++)
    if (*more[i] != '\0' && !has_word (words, more[i], strlen (more[i])))
      g_ptr_array_add (now, more[i]);
  for (guint i = 0; i < now->len; i++)
    for (guint k = i + 1; k < now->len; k++)
      if (strcmp (now->pdata[i], now->pdata[k]) > 0)
        {
          gpointer swap = now->pdata[i];
          now->pdata[i] = now->pdata[k];
          now->pdata[k] = swap;
        }
  g_ptr_array_add (now, NULL);
  return g_strjoinv (" ", (char **)now->pdata);
}

static void
fail (Request *request, int code, const char *text)
{
  if (request->error == NULL)
    request->error = g_error_new_literal (MAIL_ERROR, code, text);
}

static ModelMailbox *
open_mailbox (Request *request)
{
  ModelMailbox *mailbox = model_mailbox (request->backend->server, request->mailbox);

  if (mailbox == NULL || mailbox->no_select)
    fail (request, MAIL_ERROR_GONE, "no such mailbox");
  else if (request->uidvalidity != 0 && mailbox->uidvalidity != request->uidvalidity)
    fail (request, MAIL_ERROR_STALE, "another UIDVALIDITY");
  else if (mailbox->read_only && request->kind >= FLAGS)
    fail (request, MAIL_ERROR_PERMISSION, "read-only");
  else
    return mailbox;
  return NULL;
}

static guint
n_all (ModelServer *server)
{
  guint n = 0;

  for (guint i = 0; i < server->mailboxes->len; i++)
    n += ((ModelMailbox *)server->mailboxes->pdata[i])->messages->len;
  return n;
}

static gboolean
uidplus (const ModelServer *server)
{
  return (server->caps & MAIL_CAP_EXPUNGE_UID) != 0;
}

static void
do_flags (Request *request, guint limit)
{
  ModelMailbox *mailbox = open_mailbox (request);

  if (mailbox == NULL)
    return;
  g_autoptr (GPtrArray) messages = wanted_messages (request, mailbox);
  for (guint i = 0; i < MIN (messages->len, limit); i++)
    {
      ModelMessage *message = messages->pdata[i];
      g_autofree char *keywords = change_words (message->keywords, request->add_keywords,
                                                request->remove_keywords);

      model_set_flags (mailbox, message, (message->flags | request->add) & ~request->remove,
                       keywords);
    }
}

static void
do_transfer (Request *request, guint limit)
{
  ModelServer *server = request->backend->server;
  ModelMailbox *mailbox = open_mailbox (request);
  ModelMailbox *target = model_mailbox (server, request->target);

  if (mailbox == NULL)
    return;
  if (target == NULL)
    {
      fail (request, MAIL_ERROR_GONE, "no such mailbox to go to");
      return;
    }
  if (target->read_only)
    {
      fail (request, MAIL_ERROR_PERMISSION, "read-only");
      return;
    }
  g_autoptr (GPtrArray) messages = wanted_messages (request, mailbox);
  if (request->kind == COPY && server->quota != 0 && n_all (server) + messages->len > server->quota)
    {
      fail (request, MAIL_ERROR_OVER_QUOTA, "over quota");
      return;
    }
  if (uidplus (server) && messages->len == 0)
    {
      fail (request, MAIL_ERROR_GONE, "the messages are gone");
      return;
    }
  for (guint i = 0; i < MIN (messages->len, limit); i++)
    {
      ModelMessage *message = messages->pdata[i];
      guint32 uid = message->uid;
      ModelMessage *copy = add_message (target, message->bytes, message->flags, message->keywords,
                                        message->date);
      MailUidPair pair = { uid, copy->uid };

      if (request->kind == MOVE)
        model_expunge (mailbox, uid);
      if (uidplus (server))
        g_array_append_val (request->pairs, pair);
    }
  request->target_uidvalidity = uidplus (server) ? target->uidvalidity : 0;
}

static void
do_remove (Request *request, guint limit)
{
  ModelMailbox *mailbox = open_mailbox (request);

  if (mailbox == NULL)
    return;
  g_autoptr (GPtrArray) messages = wanted_messages (request, mailbox);
  for (guint i = 0; i < MIN (messages->len, limit); i++)
    {
      ModelMessage *message = messages->pdata[i];

      if (uidplus (request->backend->server))
        model_expunge (mailbox, message->uid);
      else
        {
          g_autofree char *keywords = g_strdup (message->keywords);
          model_set_flags (mailbox, message, message->flags | MAIL_FLAG_DELETED, keywords);
        }
    }
}

static gboolean
is_refused (ModelServer *server, GBytes *bytes)
{
  gsize length;
  const char *data = g_bytes_get_data (bytes, &length);

  return server->refuse_token != NULL
         && memmem (data, length, server->refuse_token, strlen (server->refuse_token)) != NULL;
}

static GBytes *
read_item (const MailAppendItem *item)
{
  char *data = g_malloc (item->length + 1);

  g_assert_cmpint (pread (item->fd, data, item->length, 0), ==, (gssize)item->length);
  return g_bytes_new_take (data, item->length);
}

static ModelMessage *
add_rewritten (ModelMailbox *mailbox, GBytes *bytes, const MailAppendItem *item, guint how)
{
  GByteArray *changed = g_byte_array_new ();

  g_byte_array_append (changed, (const guint8 *)"X-Scanned: yes\r\n", 16);
  g_byte_array_append (changed, g_bytes_get_data (bytes, NULL), (guint)g_bytes_get_size (bytes));
  if (how == 2)
    g_byte_array_append (changed, (const guint8 *)"no virus found\r\n", 16);
  g_autoptr (GBytes) stored = g_byte_array_free_to_bytes (changed);
  return add_message (mailbox, stored, item->flags, item->keywords, item->internaldate);
}

static void
do_append (Request *request, guint limit, gboolean lie)
{
  ModelServer *server = request->backend->server;
  ModelMailbox *mailbox = open_mailbox (request);

  if (mailbox == NULL)
    return;
  for (guint i = 0; server->multiappend && i < request->n_items; i++)
    {
      g_autoptr (GBytes) bytes = read_item (&request->items[i]);
      if (is_refused (server, bytes))
        {
          fail (request, MAIL_ERROR_TOO_LARGE, "refused with all the others");
          return;
        }
    }
  for (guint i = 0; i < MIN (request->n_items, limit); i++)
    {
      const MailAppendItem *item = &request->items[i];
      g_autoptr (GBytes) bytes = read_item (item);
      guint32 uid = 0;

      if (is_refused (server, bytes))
        {
          fail (request, MAIL_ERROR_TOO_LARGE, "refused");
          return;
        }
      if (server->quota != 0 && n_all (server) + 1 > server->quota)
        {
          fail (request, MAIL_ERROR_OVER_QUOTA, "over quota");
          return;
        }
      if (!lie && server->rewrite > 0)
        uid = add_rewritten (mailbox, bytes, item, server->rewrite)->uid;
      else if (!lie)
        uid = add_message (mailbox, bytes, item->flags, item->keywords, item->internaldate)->uid;
      if (!uidplus (server))
        uid = 0;
      g_array_append_val (request->new_uids, uid);
    }
  request->target_uidvalidity = uidplus (server) ? mailbox->uidvalidity : 0;
}

static void
do_folder (Request *request)
{
  ModelServer *server = request->backend->server;
  ModelMailbox *mailbox = model_mailbox (server, request->mailbox);
  gsize length = strlen (request->mailbox);

  if (request->kind == CREATE && mailbox != NULL)
    fail (request, MAIL_ERROR_EXISTS, "exists");
  else if (request->kind == CREATE)
    model_add_mailbox (server, request->mailbox, NULL);
  else if (mailbox == NULL)
    fail (request, MAIL_ERROR_GONE, "no such mailbox");
  else if (request->kind == DELETE)
    g_ptr_array_remove (server->mailboxes, mailbox);
  else
    for (guint i = 0; i < server->mailboxes->len; i++)
      {
        ModelMailbox *other = server->mailboxes->pdata[i];

        if (other == mailbox
            || (strncmp (other->name, request->mailbox, length) == 0 && other->name[length] == '/'))
          {
            char *name = g_strconcat (request->target, other->name + length, NULL);
            g_free (other->name);
            other->name = name;
          }
      }
}

static void
snapshot (Request *request)
{
  const ModelMailbox *mailbox = open_mailbox (request);

  if (mailbox != NULL)
    request->snapshot = mailbox_copy (mailbox);
}

static const char *const names[] = { "start", "list",   "sync",   "fetch",  "flags",  "copy",
                                     "move",  "remove", "append", "create", "rename", "delete" };

static void
log_command (Request *request)
{
  ModelServer *server = request->backend->server;
  GString *line = g_string_new (names[request->kind]);

  g_string_append_printf (line, " %s", request->mailbox);
  if (request->uids->len > 0)
    {
      g_string_append_c (line, ' ');
      mail_uid_ranges_format (line, (const MailUidRange *)request->uids->data, request->uids->len);
    }
  if (request->kind == APPEND)
    g_string_append_printf (line, " %u", request->n_items);
  if (request->target != NULL)
    g_string_append_printf (line, " %s", request->target);
  server->n_commands++;
  g_ptr_array_add (server->log, g_string_free (line, FALSE));
}

static void
act (Request *request, guint limit, gboolean lie)
{
  switch (request->kind)
    {
    case FLAGS:
      if (!lie)
        do_flags (request, limit);
      break;
    case COPY:
    case MOVE:
      if (!lie)
        do_transfer (request, limit);
      break;
    case REMOVE:
      if (!lie)
        do_remove (request, limit);
      break;
    case APPEND:
      do_append (request, limit, lie);
      break;
    default:
      do_folder (request);
      break;
    }
}

static guint
n_messages (const Request *request)
{
  guint n = request->n_items;

  for (guint i = 0; i < request->uids->len; i++)
    n += g_array_index (request->uids, MailUidRange, i).last
         - g_array_index (request->uids, MailUidRange, i).first + 1;
  return n;
}

static void
change (Request *request)
{
  ModelServer *server = request->backend->server;
  ModelFault fault = MODEL_GOOD;

  if (server->faults->len > 0)
    {
      fault = g_array_index (server->faults, ModelFault, 0);
      g_array_remove_index (server->faults, 0);
    }
  if (fault != MODEL_DOWN)
    log_command (request);
  switch (fault)
    {
    case MODEL_LOST_BEFORE:
      fail (request, MAIL_ERROR_CONNECTION, "connection lost");
      return;
    case MODEL_DOWN:
      fail (request, MAIL_ERROR_UNREACHABLE, "server down");
      return;
    case MODEL_REFUSED:
      fail (request, MAIL_ERROR_FAILED, "NO");
      return;
    case MODEL_OVER_QUOTA:
      fail (request, MAIL_ERROR_OVER_QUOTA, "NO [OVERQUOTA]");
      return;
    case MODEL_LOST_AFTER:
    case MODEL_LOST_HALF:
      act (request, fault == MODEL_LOST_HALF ? n_messages (request) / 2 : G_MAXUINT, FALSE);
      if (request->error != NULL)
        return;
      /* The answers before the last one came; that one did not. */
      request->maybe = request->new_uids->len > 0;
      if (request->maybe)
        g_array_set_size (request->new_uids, request->new_uids->len - 1);
      g_array_set_size (request->pairs, 0);
      fail (request, MAIL_ERROR_CONNECTION, "connection lost");
      return;
    default:
      act (request, G_MAXUINT, fault == MODEL_LIE);
      return;
    }
}

static void
effect (Request *request)
{
  if (request->backend->server->down && request->kind != CLOSE)
    fail (request, MAIL_ERROR_UNREACHABLE, "server down");
  else if (request->kind == SYNC || request->kind == FETCH)
    snapshot (request);
  else if (request->kind >= FLAGS && request->kind <= DELETE)
    change (request);
}

/* --- answers ------------------------------------------------------------------------------------
 */

static void
answer_list (Request *request)
{
  MailListSink *sink = request->sink;
  ModelServer *server = request->backend->server;

  for (guint i = 0; request->error == NULL && i < server->mailboxes->len; i++)
    {
      const ModelMailbox *mailbox = server->mailboxes->pdata[i];
      g_auto (GStrv) parts = g_strsplit (mailbox->name, "/", -1);
      MailPathPart texts[16];
      MailMailboxInfo info = { .name = mailbox->name,
                               .parts = texts,
                               .n_parts = g_strv_length (parts),
                               .flags = mailbox->no_select ? MAIL_MAILBOX_NO_SELECT : 0,
                               .special_use = mailbox->special_use };

      for (guint k = 0; k < info.n_parts; k++)
        texts[k] = (MailPathPart) { parts[k], FALSE };
      sink->mailbox (sink, &info);
    }
  sink->done (sink, request->error);
}

static MailMessageInfo
info_of (const ModelServer *server, const ModelMessage *message)
{
  return (MailMessageInfo) { .uid = message->uid,
                             .flags = message->flags,
                             .size = g_bytes_get_size (message->bytes),
                             .internaldate = message->date,
                             .modseq = server->sync_mode != 0 ? message->modseq : 0,
                             .keywords = message->keywords };
}

static void
answer_sync (Request *request)
{
  MailSyncSink *sink = request->sink;
  ModelServer *server = request->backend->server;
  const ModelMailbox *mailbox = request->snapshot;

  if (request->error != NULL)
    {
      sink->done (sink, NULL, request->error);
      return;
    }
  gboolean complete = server->sync_mode == 0 || request->known.uidvalidity != mailbox->uidvalidity
                      || request->known.highestmodseq == 0;
  sink->begin (sink, mailbox->uidvalidity, complete);
  for (guint i = 0; i < mailbox->messages->len; i++)
    {
      const ModelMessage *message = mailbox->messages->pdata[i];
      MailMessageInfo info = info_of (server, message);

      if (complete || message->uid >= request->known.uidnext)
        sink->message (sink, &info);
      else if (message->modseq > request->known.highestmodseq || server->sync_mode == 3)
        sink->flags (sink, &info);
      if (!complete && server->sync_mode != 1)
        sink->present (sink, message->uid, message->uid);
    }
  if (!complete && server->sync_mode != 1)
    sink->present (sink, 0, 0);
  for (guint i = 0; !complete && server->sync_mode == 1 && i < mailbox->vanished->len; i++)
    {
      const guint64 *entry = (const guint64 *)mailbox->vanished->data + 2 * i;
      if (entry[1] > request->known.highestmodseq)
        sink->vanished (sink, (guint32)entry[0], (guint32)entry[0]);
    }
  MailSyncResult result = { .status = { .uidvalidity = mailbox->uidvalidity,
                                        .uidnext = mailbox->uidnext,
                                        .highestmodseq = server->sync_mode != 0 ? mailbox->modseq
                                                                                : 0,
                                        .n_messages = mailbox->messages->len },
                            .read_only = mailbox->read_only,
                            .settable_flags = MAIL_FLAGS_ALL,
                            .any_keyword = TRUE };
  sink->done (sink, &result, NULL);
}

static void
answer_fetch (Request *request)
{
  MailFetchSink *sink = request->sink;

  for (guint i = 0; request->error == NULL && i < request->snapshot->messages->len; i++)
    {
      const ModelMessage *message = request->snapshot->messages->pdata[i];
      gsize length;
      const guint8 *data = g_bytes_get_data (message->bytes, &length);

      if (!is_wanted (request, message->uid))
        continue;
      guint64 offset = MIN (request->offset, length);
      guint64 n = MIN (request->length, length - offset);
      sink->data (sink, message->uid, offset, data + offset, n);
      sink->message (sink, message->uid, offset + n, offset + n == length, NULL);
    }
  sink->done (sink, request->error);
}

static void
answer (Request *request)
{
  switch (request->kind)
    {
    case LIST:
      answer_list (request);
      break;
    case SYNC:
      answer_sync (request);
      break;
    case FETCH:
      answer_fetch (request);
      break;
    case COPY:
    case MOVE:
      ((MailCopyFunc)request->done) (request->error == NULL ? request->target_uidvalidity : 0,
                                     (const MailUidPair *)request->pairs->data, request->pairs->len,
                                     request->error, request->user_data);
      break;
    case APPEND:
      ((MailAppendFunc)request->done) (
          request->target_uidvalidity, (const guint32 *)request->new_uids->data,
          request->new_uids->len, request->maybe, request->error, request->user_data);
      break;
    case QUOTA:
      ((MailQuotaFunc)request->done) (FALSE, 0, 0, request->error, request->user_data);
      break;
    default:
      ((MailDoneFunc)request->done) (request->error, request->user_data);
      break;
    }
}

/* One turn: requests have their effects and their answers in order, but overtake one another when
 * they wait for different numbers of turns. */
static gboolean
turn (gpointer data)
{
  Backend *backend = data;

  for (guint i = 0; i < backend->requests->len;)
    {
      Request *request = backend->requests->pdata[i];

      if (!request->effective)
        {
          if (request->before-- > 0)
            {
              i++;
              continue;
            }
          effect (request);
          request->effective = TRUE;
        }
      if (request->after-- > 0)
        {
          i++;
          continue;
        }
      g_ptr_array_remove_index (backend->requests, i);
      answer (request);
      request_free (request);
    }
  if (backend->requests->len > 0)
    return G_SOURCE_CONTINUE;
  g_clear_pointer (&backend->source, g_source_unref);
  return G_SOURCE_REMOVE;
}

static Request *
ask (MailBackend *self, Kind kind, const char *mailbox, GCallback done, gpointer user_data)
{
  Backend *backend = (Backend *)self;
  Request *request = g_new0 (Request, 1);
  GRand *rand = backend->server->rand;

  request->backend = backend;
  request->kind = kind;
  request->mailbox = g_strdup (mailbox);
  request->done = done;
  request->user_data = user_data;
  request->uids = g_array_new (FALSE, FALSE, sizeof (MailUidRange));
  request->pairs = g_array_new (FALSE, FALSE, sizeof (MailUidPair));
  request->new_uids = g_array_new (FALSE, FALSE, sizeof (guint32));
  if (rand != NULL)
    {
      request->before = (guint)g_rand_int_range (rand, 0, 4);
      request->after = (guint)g_rand_int_range (rand, 0, 4);
    }
  g_ptr_array_add (backend->requests, request);
  if (backend->source == NULL)
    {
      backend->source = g_idle_source_new ();
      g_source_set_priority (backend->source, G_PRIORITY_DEFAULT);
      g_source_set_callback (backend->source, turn, backend, NULL);
      g_source_attach (backend->source, backend->context);
    }
  return request;
}

/* --- the table ----------------------------------------------------------------------------------
 */

static guint
backend_caps (MailBackend *self)
{
  return ((Backend *)self)->server->caps;
}

static void
backend_start (MailBackend *self, MailDoneFunc done, gpointer user_data)
{
  ask (self, START, NULL, G_CALLBACK (done), user_data);
}

static void
backend_list (MailBackend *self, gboolean subscribed_only, MailListSink *sink)
{
  ask (self, LIST, NULL, NULL, NULL)->sink = sink;
}

static void
backend_sync (MailBackend *self, const char *mailbox, const MailMailboxStatus *known,
              MailSyncSink *sink)
{
  Request *request = ask (self, SYNC, mailbox, NULL, NULL);

  request->sink = sink;
  if (known != NULL)
    request->known = *known;
}

static void
backend_fetch (MailBackend *self, const MailFetchRequest *fetch, MailFetchSink *sink)
{
  Request *request = ask (self, FETCH, fetch->mailbox, NULL, NULL);

  request->uidvalidity = fetch->uidvalidity;
  g_array_append_vals (request->uids, fetch->uids, fetch->n_uids);
  request->offset = fetch->offset;
  request->length = fetch->length;
  request->sink = sink;
}

static void
backend_store_flags (MailBackend *self, const char *mailbox, guint32 uidvalidity,
                     const MailUidRange *uids, guint n_uids, guint8 add, const char *add_keywords,
                     guint8 remove, const char *remove_keywords, MailDoneFunc done,
                     gpointer user_data)
{
  Request *request = ask (self, FLAGS, mailbox, G_CALLBACK (done), user_data);

  request->uidvalidity = uidvalidity;
  g_array_append_vals (request->uids, uids, n_uids);
  request->add = add;
  request->remove = remove;
  request->add_keywords = g_strdup (add_keywords);
  request->remove_keywords = g_strdup (remove_keywords);
}

static Request *
transfer (MailBackend *self, Kind kind, const char *mailbox, guint32 uidvalidity,
          const MailUidRange *uids, guint n_uids, const char *target, GCallback done,
          gpointer user_data)
{
  Request *request = ask (self, kind, mailbox, done, user_data);

  request->uidvalidity = uidvalidity;
  g_array_append_vals (request->uids, uids, n_uids);
  request->target = g_strdup (target);
  return request;
}

static void
backend_copy (MailBackend *self, const char *mailbox, guint32 uidvalidity, const MailUidRange *uids,
              guint n_uids, const char *target, MailCopyFunc done, gpointer user_data)
{
  transfer (self, COPY, mailbox, uidvalidity, uids, n_uids, target, G_CALLBACK (done), user_data);
}

static void
backend_move (MailBackend *self, const char *mailbox, guint32 uidvalidity, const MailUidRange *uids,
              guint n_uids, const char *target, MailCopyFunc done, gpointer user_data)
{
  g_assert_true ((backend_caps (self) & MAIL_CAP_MOVE) != 0);
  transfer (self, MOVE, mailbox, uidvalidity, uids, n_uids, target, G_CALLBACK (done), user_data);
}

static void
backend_remove (MailBackend *self, const char *mailbox, guint32 uidvalidity,
                const MailUidRange *uids, guint n_uids, const char *const *remote_ids,
                MailDoneFunc done, gpointer user_data)
{
  transfer (self, REMOVE, mailbox, uidvalidity, uids, n_uids, NULL, G_CALLBACK (done), user_data);
}

static void
backend_append (MailBackend *self, const char *mailbox, const MailAppendItem *items, guint n_items,
                MailAppendFunc done, gpointer user_data)
{
  Request *request = ask (self, APPEND, mailbox, G_CALLBACK (done), user_data);

  request->items = items;
  request->n_items = n_items;
}

static char *
backend_child_name (MailBackend *self, const char *parent, const char *leaf, GError **error)
{
  return parent != NULL ? g_strconcat (parent, "/", leaf, NULL) : g_strdup (leaf);
}

static void
backend_create (MailBackend *self, const char *mailbox, MailDoneFunc done, gpointer user_data)
{
  ask (self, CREATE, mailbox, G_CALLBACK (done), user_data);
}

static void
backend_rename (MailBackend *self, const char *mailbox, const char *new_name, MailDoneFunc done,
                gpointer user_data)
{
  ask (self, RENAME, mailbox, G_CALLBACK (done), user_data)->target = g_strdup (new_name);
}

static void
backend_delete (MailBackend *self, const char *mailbox, MailDoneFunc done, gpointer user_data)
{
  ask (self, DELETE, mailbox, G_CALLBACK (done), user_data);
}

static void
backend_quota (MailBackend *self, MailQuotaFunc done, gpointer user_data)
{
  ask (self, QUOTA, NULL, G_CALLBACK (done), user_data);
}

static void
backend_watch (MailBackend *self, const char *mailbox, MailChangedFunc changed, gpointer user_data)
{
}

static void
backend_close (MailBackend *self, MailDoneFunc done, gpointer user_data)
{
  Request *request = ask (self, CLOSE, NULL, G_CALLBACK (done), user_data);

  request->before = request->after = 12; /* after everything that is under way */
}

static void
backend_free (MailBackend *self)
{
  Backend *backend = (Backend *)self;

  if (backend->source != NULL)
    {
      g_source_destroy (backend->source);
      g_source_unref (backend->source);
    }
  for (guint i = 0; i < backend->requests->len; i++)
    request_free (backend->requests->pdata[i]);
  g_ptr_array_unref (backend->requests);
  g_free (backend);
}

static char *
backend_describe (MailBackend *self)
{
  return g_strdup ("a model");
}

MailBackend *
model_backend_new (ModelServer *server, GMainContext *context)
{
  static const MailBackendOps ops = {
    .caps = backend_caps,
    .start = backend_start,
    .list = backend_list,
    .sync = backend_sync,
    .fetch = backend_fetch,
    .store_flags = backend_store_flags,
    .copy = backend_copy,
    .move = backend_move,
    .remove = backend_remove,
    .append = backend_append,
    .child_name = backend_child_name,
    .create = backend_create,
    .rename = backend_rename,
    .delete = backend_delete,
    .quota = backend_quota,
    .watch = backend_watch,
    .close = backend_close,
    .free = backend_free,
    .describe = backend_describe,
  };
  Backend *backend = g_new0 (Backend, 1);

  backend->base.ops = &ops;
  backend->server = server;
  backend->context = context;
  backend->requests = g_ptr_array_new ();
  return &backend->base;
}
