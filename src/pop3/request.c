/* SPDX-License-Identifier: MIT
 *
 * Pop3Request.
 */
#include "pop3/request.h"

Pop3Request *
pop3_request_new (Pop3RequestKind kind)
{
  Pop3Request *request = g_new0 (Pop3Request, 1);

  request->kind = kind;
  request->queued_at = g_get_monotonic_time ();
  return request;
}

static void
request_free (Pop3Request *request)
{
  g_clear_error (&request->error);
  g_clear_pointer (&request->items, g_array_unref);
  g_strfreev (request->remote_ids);
  g_free (request);
}

gboolean
pop3_request_set_items (Pop3Request *request, const MailFetchRequest *fetch)
{
  guint n = 0;

  request->part = fetch->part;
  request->length = fetch->length;
  request->priority = fetch->priority;
  request->remote_ids = g_strdupv ((char **)fetch->remote_ids);
  request->items = g_array_new (FALSE, TRUE, sizeof (Pop3Item));
  if (request->remote_ids == NULL)
    return FALSE;
  for (guint i = 0; i < fetch->n_uids; i++)
    for (guint64 uid = fetch->uids[i].first; uid <= fetch->uids[i].last; uid++)
      {
        Pop3Item item = { .uid = (guint32)uid, .remote_id = request->remote_ids[n] };
        if (item.remote_id == NULL)
          return FALSE;
        g_array_append_val (request->items, item);
        n++;
      }
  request->n_left = n;
  return request->remote_ids[n] == NULL;
}

static void
finish_list (Pop3Request *request, const GError *error)
{
  static const MailPathPart part = { .text = "INBOX" };
  static const MailMailboxInfo inbox = {
    .name = "INBOX",
    .parts = &part,
    .n_parts = 1,
    .flags = MAIL_MAILBOX_NO_INFERIORS | MAIL_MAILBOX_NO_CHILDREN | MAIL_MAILBOX_SUBSCRIBED,
  };

  if (error == NULL)
    request->list_sink->mailbox (request->list_sink, &inbox);
  request->list_sink->done (request->list_sink, error);
}

static void
finish_sync (Pop3Request *request, const GError *error)
{
  const MailSyncResult result = {
    .status = { .uidvalidity = POP3_UIDVALIDITY, .n_messages = request->n_messages },
  };

  request->sync_sink->done (request->sync_sink, error == NULL ? &result : NULL, error);
}

void
pop3_request_finish (Pop3Request *request, const GError *error)
{
  if (request->list_sink != NULL)
    finish_list (request, error);
  else if (request->sync_sink != NULL)
    finish_sync (request, error);
  else if (request->fetch_sink != NULL)
    request->fetch_sink->done (request->fetch_sink, error);
  else if (request->copied != NULL)
    request->copied (0, NULL, 0, error, request->user_data);
  else if (request->appended != NULL)
    request->appended (0, NULL, 0, FALSE, error, request->user_data);
  else if (request->quota != NULL)
    request->quota (FALSE, 0, 0, error, request->user_data);
  else
    request->done (error, request->user_data);
  request_free (request);
}
