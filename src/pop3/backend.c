/* SPDX-License-Identifier: MIT
 *
 * The POP3 backend: the calls of mailfs/backend.h become requests. What POP3 cannot do (folders,
 * flags, new mail from here) is refused, in the main loop like every other answer.
 */
#include "pop3/backend-private.h"

static Pop3Backend *
backend (MailBackend *base)
{
  return (Pop3Backend *)base;
}

static void
queue (Pop3Backend *self, GQueue *queue, Pop3Request *take_request)
{
  g_queue_push_tail (queue, take_request);
  pop3_schedule (self);
}

static void
refuse (MailBackend *base, Pop3Request *take_request, MailErrorCode code, const char *what)
{
  take_request->error = g_error_new_literal (MAIL_ERROR, code, what);
  queue (backend (base), &backend (base)->instant, take_request);
}

static guint
backend_caps (MailBackend *base)
{
  return backend (base)->caps;
}

static void
backend_start (MailBackend *base, MailDoneFunc done, gpointer user_data)
{
  Pop3Request *request = pop3_request_new (POP3_REQUEST_START);

  request->done = done;
  request->user_data = user_data;
  queue (backend (base), &backend (base)->starts, request);
}

static void
backend_list (MailBackend *base, gboolean subscribed_only, MailListSink *sink)
{
  Pop3Request *request = pop3_request_new (POP3_REQUEST_LIST);

  request->list_sink = sink;
  queue (backend (base), &backend (base)->instant, request);
}

static void
backend_sync (MailBackend *base, const char *mailbox, const MailMailboxStatus *known,
              MailSyncSink *sink)
{
  Pop3Request *request = pop3_request_new (POP3_REQUEST_SYNC);

  request->sync_sink = sink;
  if (g_strcmp0 (mailbox, "INBOX") != 0)
    refuse (base, request, MAIL_ERROR_GONE, "POP3 has no mailbox but INBOX");
  else
    queue (backend (base), &backend (base)->syncs, request);
}

static void
backend_fetch (MailBackend *base, const MailFetchRequest *fetch, MailFetchSink *sink)
{
  Pop3Request *request = pop3_request_new (POP3_REQUEST_FETCH);

  request->fetch_sink = sink;
  if (g_strcmp0 (fetch->mailbox, "INBOX") != 0)
    refuse (base, request, MAIL_ERROR_GONE, "POP3 has no mailbox but INBOX");
  else if (fetch->uidvalidity != POP3_UIDVALIDITY)
    refuse (base, request, MAIL_ERROR_STALE, "this is no UIDVALIDITY of a maildrop");
  else if (!pop3_request_set_items (request, fetch))
    refuse (base, request, MAIL_ERROR_INVALID, "UIDs and remote ids do not match");
  else if (request->n_left == 0)
    queue (backend (base), &backend (base)->instant, request);
  else
    queue (backend (base), &backend (base)->fetches[fetch->priority], request);
}

static void
backend_remove (MailBackend *base, const char *mailbox, guint32 uidvalidity,
                const MailUidRange *uids, guint n_uids, const char *const *remote_ids,
                MailDoneFunc done, gpointer user_data)
{
  Pop3Request *request = pop3_request_new (POP3_REQUEST_REMOVE);

  request->done = done;
  request->user_data = user_data;
  request->remote_ids = g_strdupv ((char **)remote_ids);
  if (g_strcmp0 (mailbox, "INBOX") != 0)
    refuse (base, request, MAIL_ERROR_GONE, "POP3 has no mailbox but INBOX");
  else if (uidvalidity != POP3_UIDVALIDITY)
    refuse (base, request, MAIL_ERROR_STALE, "this is no UIDVALIDITY of a maildrop");
  else if (remote_ids == NULL)
    refuse (base, request, MAIL_ERROR_INVALID, "messages can be removed by their remote id only");
  else
    queue (backend (base), &backend (base)->removes, request);
}

/* --- what POP3 cannot do -----------------------------------------------------------------------
 */

static void
refuse_done (MailBackend *base, MailDoneFunc done, gpointer user_data, MailErrorCode code,
             const char *what)
{
  Pop3Request *request = pop3_request_new (POP3_REQUEST_REFUSED);

  request->done = done;
  request->user_data = user_data;
  refuse (base, request, code, what);
}

static void
backend_store_flags (MailBackend *base, const char *mailbox, guint32 uidvalidity,
                     const MailUidRange *uids, guint n_uids, guint8 add, const char *add_keywords,
                     guint8 remove, const char *remove_keywords, MailDoneFunc done,
                     gpointer user_data)
{
  refuse_done (base, done, user_data, MAIL_ERROR_UNSUPPORTED, "POP3 has no flags");
}

static void
backend_copy (MailBackend *base, const char *mailbox, guint32 uidvalidity, const MailUidRange *uids,
              guint n_uids, const char *target, MailCopyFunc done, gpointer user_data)
{
  Pop3Request *request = pop3_request_new (POP3_REQUEST_REFUSED);

  request->copied = done;
  request->user_data = user_data;
  refuse (base, request, MAIL_ERROR_CANNOT, "POP3 cannot copy or move messages");
}

static void
backend_append (MailBackend *base, const char *mailbox, const MailAppendItem *items, guint n_items,
                MailAppendFunc done, gpointer user_data)
{
  Pop3Request *request = pop3_request_new (POP3_REQUEST_REFUSED);

  request->appended = done;
  request->user_data = user_data;
  refuse (base, request, MAIL_ERROR_CANNOT, "POP3 cannot store messages");
}

static char *
backend_child_name (MailBackend *base, const char *parent, const char *leaf, GError **error)
{
  g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_CANNOT, "POP3 has no mailbox but INBOX");
  return NULL;
}

static void
backend_create (MailBackend *base, const char *mailbox, MailDoneFunc done, gpointer user_data)
{
  refuse_done (base, done, user_data, MAIL_ERROR_CANNOT, "POP3 has no mailbox but INBOX");
}

static void
backend_rename (MailBackend *base, const char *mailbox, const char *new_name, MailDoneFunc done,
                gpointer user_data)
{
  refuse_done (base, done, user_data, MAIL_ERROR_CANNOT, "POP3 has no mailbox but INBOX");
}

static void
backend_delete (MailBackend *base, const char *mailbox, MailDoneFunc done, gpointer user_data)
{
  refuse_done (base, done, user_data, MAIL_ERROR_CANNOT, "POP3 has no mailbox but INBOX");
}

static void
backend_quota (MailBackend *base, MailQuotaFunc done, gpointer user_data)
{
  Pop3Request *request = pop3_request_new (POP3_REQUEST_QUOTA);

  request->quota = done;
  request->user_data = user_data;
  queue (backend (base), &backend (base)->instant, request);
}

/* There is nothing to watch: a POP3 server tells of new mail at a login only. */
static void
backend_watch (MailBackend *base, const char *mailbox, MailChangedFunc changed, gpointer user_data)
{
}

/* --- life --------------------------------------------------------------------------------------
 */

static void
backend_close (MailBackend *base, MailDoneFunc done, gpointer user_data)
{
  pop3_schedule_close (backend (base), done, user_data);
}

static void
backend_free (MailBackend *base)
{
  Pop3Backend *self = backend (base);
  GSource **sources[] = { &self->run, &self->idle, &self->retry, &self->close_limit };

  for (guint i = 0; i < G_N_ELEMENTS (sources); i++)
    pop3_schedule_clear (sources[i]);
  pop3_connection_free (self->connection);
  g_clear_pointer (&self->maildrop, pop3_maildrop_free);
  pop3_labels_free (self->labels);
  g_clear_pointer (&self->tls, net_tls_unref);
  g_clear_error (&self->down);
  g_free (self);
}

static char *
backend_describe (MailBackend *base)
{
  Pop3Backend *self = backend (base);
  gint64 left = (self->down_until - g_get_monotonic_time ()) / G_USEC_PER_SEC;
  g_autofree char *why = self->down != NULL ? g_strescape (self->down->message, NULL) : NULL;

  if (self->connection != NULL && self->maildrop != NULL)
    return g_strdup_printf ("connected, %u messages", pop3_maildrop_length (self->maildrop));
  if (self->connection != NULL)
    return g_strdup ("connecting");
  if (self->down != NULL && self->down_until == G_MAXINT64)
    return g_strdup_printf ("down for good: %s", why);
  if (self->down != NULL && left > 0)
    return g_strdup_printf ("down: %s; will try again in %d s", why, (int)left);
  return g_strdup ("no session (the maildrop is not locked)");
}

static const MailBackendOps ops = {
  .caps = backend_caps,
  .start = backend_start,
  .list = backend_list,
  .sync = backend_sync,
  .fetch = backend_fetch,
  .store_flags = backend_store_flags,
  .copy = backend_copy,
  .move = backend_copy,
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

MailBackend *
pop3_backend_new (const MailConfig *config, MailSecretSource *secrets, NetTls *tls)
{
  Pop3Backend *self = g_new0 (Pop3Backend, 1);

  self->parent.ops = &ops;
  self->config = config;
  self->secrets = secrets;
  self->tls = tls != NULL ? net_tls_ref (tls) : NULL;
  self->labels = pop3_labels_new ();
  self->rate = 1024 * 1024; /* a guess, until it is seen */
  return &self->parent;
}
