/* SPDX-License-Identifier: MIT
 *
 * Bodies. Bytes go from the parser's buffer straight to the sink; a body is taken only when UID,
 * section and origin are what was asked for, and a message is finished only when its literal was
 * whole. A server that puts the UID behind the body has it kept, within bounds, until it is told;
 * one that does not know ranges is asked for the whole message once. Net thread.
 */
#include "imap/backend-private.h"

#include "mailfs/log.h"

#include <string.h>

#define KEEP_MAX (1024 * 1024) /* of a body whose UID is not known yet */
#define HEAD_LENGTH 65536 /* a header comes as a prefix: some servers' HEADER differs from it */
#define PARTIAL_MAX 0x7fffffffu /* longest partial that every server understands */

typedef struct FetchJob FetchJob;

typedef struct
{
  ImapTask task;
  FetchJob *job;
  MailUidSet *uids; /* asked for and not finished */
  gboolean partial;
  guint64 offset, length; /* with partial */
  MailUidSet *whole;      /* to be asked for again from the start, or NULL */
  gboolean second;        /* this is that asking */
  gboolean retried;       /* after a lost connection */

  /* the body at hand */
  guint32 uid; /* 0: not told yet */
  guint64 at;  /* where the next byte belongs */
  guint64 body_length;
  gboolean is_nil, is_whole, streaming, overflow, ended;
  GByteArray *kept; /* while the UID is not known */
} FetchTask;

struct FetchJob
{
  ImapBackend *backend;
  char *mailbox;
  guint32 uidvalidity;
  MailPriority priority;
  guint64 offset, length;
  MailFetchSink *sink;
  MailUidSet *left; /* not finished */
  guint n_tasks;
  GError *error;
};

static void add_tasks (FetchJob *job, const MailUidSet *uids, gboolean second, gboolean retried);

/* --- one message ------------------------------------------------------------------------------ */

static void
finish_message (FetchTask *task, guint32 uid, guint64 end, gboolean at_end, const GError *error)
{
  FetchJob *job = task->job;

  mail_uid_set_remove (task->uids, uid, uid);
  mail_uid_set_remove (job->left, uid, uid);
  job->sink->message (job->sink, uid, end, at_end, error);
}

static void
fail_message (FetchTask *task, guint32 uid, MailErrorCode code, const char *text)
{
  g_autoptr (GError) error = g_error_new (MAIL_ERROR, code, "%s, UID %u: %s", task->job->mailbox,
                                          uid, text);

  finish_message (task, uid, 0, FALSE, error);
}

static void
ask_whole (FetchTask *task, guint32 uid)
{
  if (task->second)
    {
      fail_message (task, uid, MAIL_ERROR_PROTOCOL, "the server sends another part than asked for");
      return;
    }
  if (task->whole == NULL)
    task->whole = mail_uid_set_new ();
  mail_uid_set_add (task->whole, uid, uid);
  mail_uid_set_remove (task->uids, uid, uid);
}

/* --- the body at hand ------------------------------------------------------------------------- */

/* Whether the section starts where we asked, or else at 0; FALSE: it cannot be told, or is wrong.
 */
static gboolean
origin_fits (const FetchTask *task, const ImapBody *body)
{
  if (!task->partial)
    return !body->has_origin || body->origin == 0;
  if (body->has_origin)
    return body->origin == task->offset && body->length <= task->length;
  /* The range was ignored, or answered without saying so, which is the same from 0. */
  return task->offset == 0 || body->length > task->length;
}

static gboolean
wants_body (ImapTask *base, const ImapBody *body)
{
  FetchTask *task = (FetchTask *)base;

  if (body->section[0] != '\0' || body->binary || task->uids->len == 0)
    return FALSE;
  if (body->uid != 0 && !mail_uid_set_contains (task->uids, body->uid))
    return FALSE;
  if (body->is_nil || origin_fits (task, body))
    return TRUE;
  if (body->uid != 0 || mail_uid_set_count (task->uids) == 1)
    {
      /* Could be another task's part that comes early; if ours does not come, ask otherwise. */
      mail_log_info ("%s: wrong origin in a FETCH answer", task->job->backend->config->host);
      task->job->backend->ranges_broken |= !task->second && !body->has_origin;
      ask_whole (task, body->uid != 0 ? body->uid : mail_uid_set_range (task->uids, 0)->first);
    }
  return FALSE;
}

static void
on_body_begin (const ImapBody *body, gpointer user_data)
{
  FetchTask *task = user_data;

  task->uid = body->uid;
  task->body_length = body->length;
  task->is_nil = body->is_nil;
  task->is_whole = !task->partial || (!body->has_origin && body->length > task->length);
  task->at = task->partial && body->has_origin ? task->offset : 0;
  task->ended = task->overflow = task->streaming = FALSE;
  if (task->uid != 0)
    return;
  if (body->length > KEEP_MAX && mail_uid_set_count (task->uids) == 1)
    /* Too much to keep, but it can only be this one; compared when the UID comes. */
    task->streaming = TRUE;
  else if (task->kept == NULL)
    task->kept = g_byte_array_new ();
  else
    g_byte_array_set_size (task->kept, 0);
}

static void
on_body_data (const guint8 *data, gsize length, gpointer user_data)
{
  FetchTask *task = user_data;
  guint32 uid = task->uid;

  if (uid == 0 && !task->streaming)
    {
      if (task->kept->len + length > KEEP_MAX)
        task->overflow = TRUE;
      else
        g_byte_array_append (task->kept, data, (guint)length);
      return;
    }
  if (uid == 0)
    uid = mail_uid_set_range (task->uids, 0)->first;
  task->job->sink->data (task->job->sink, uid, task->at, data, length);
  task->at += length;
}

/* The literal is whole and the UID known. */
static void
body_finished (FetchTask *task, guint32 uid)
{
  if (task->is_nil)
    fail_message (task, uid, MAIL_ERROR_GONE, "no longer there");
  else if (task->partial && !task->is_whole && task->offset > 0 && task->body_length == 0)
    /* Beyond the end: the size we were told is wrong, and only the whole shows the true one. */
    ask_whole (task, uid);
  else
    finish_message (task, uid, task->at,
                    task->is_whole || !task->partial || task->body_length < task->length, NULL);
}

static void
on_body_end (gpointer user_data)
{
  FetchTask *task = user_data;

  task->ended = TRUE;
  if (task->uid == 0)
    return;
  body_finished (task, task->uid);
  task->ended = FALSE;
}

static void
on_fetch_end (const ImapFetch *fetch, gpointer user_data)
{
  FetchTask *task = user_data;
  guint32 uid = fetch->uid, expected;

  if (!task->ended)
    return; /* told with its UID in front */
  task->ended = FALSE;
  expected = task->uids->len > 0 ? mail_uid_set_range (task->uids, 0)->first : 0;
  if (uid == 0 && mail_uid_set_count (task->uids) == 1)
    uid = expected;
  if (task->streaming && uid != expected)
    {
      fail_message (task, expected, MAIL_ERROR_PROTOCOL, "the server sent another message");
      return;
    }
  if (uid == 0 || !mail_uid_set_contains (task->uids, uid))
    return;
  if (task->overflow)
    {
      fail_message (task, uid, MAIL_ERROR_PROTOCOL, "the server names the UID too late");
      return;
    }
  if (!task->streaming && task->kept->len > 0)
    {
      task->job->sink->data (task->job->sink, uid, task->at, task->kept->data, task->kept->len);
      task->at += task->kept->len;
    }
  body_finished (task, uid);
}

static const ImapResponseHandler fetch_handler = {
  .body_begin = on_body_begin,
  .body_data = on_body_data,
  .body_end = on_body_end,
  .fetch_end = on_fetch_end,
};

/* --- commands --------------------------------------------------------------------------------- */

static ImapCommand *
build (ImapTask *base, ImapSession *session, GError **error)
{
  FetchTask *task = (FetchTask *)base;
  FetchJob *job = task->job;
  ImapCommand *command = imap_command_new ("UID FETCH ");
  const MailUidSet *uids = task->uids;

  task->partial = !task->second && !job->backend->ranges_broken
                  && (job->offset > 0 || job->length != MAIL_TO_END);
  task->offset = job->offset;
  task->length = MIN (job->length, PARTIAL_MAX);
  imap_command_set (command, (const MailUidRange *)uids->data, uids->len);
  imap_command_text (command, " (UID BODY.PEEK[]");
  if (task->partial)
    {
      imap_command_text (command, "<");
      imap_command_number (command, task->offset);
      imap_command_text (command, ".");
      imap_command_number (command, task->length);
      imap_command_text (command, ">");
    }
  imap_command_text (command, ")");
  return command;
}

/* --- the job ---------------------------------------------------------------------------------- */

static void
job_finish (FetchJob *job)
{
  job->sink->done (job->sink, job->error);
  g_clear_error (&job->error);
  mail_uid_set_free (job->left);
  g_free (job->mailbox);
  g_free (job);
}

static void
task_free (FetchTask *task)
{
  mail_uid_set_free (task->uids);
  mail_uid_set_free (task->whole);
  if (task->kept != NULL)
    g_byte_array_unref (task->kept);
  g_free (task);
}

static void
on_done (ImapTask *base, const ImapResult *result)
{
  FetchTask *task = (FetchTask *)base;
  FetchJob *job = task->job;

  if (g_error_matches (result->error, MAIL_ERROR, MAIL_ERROR_CONNECTION) && !task->retried
      && !imap_pool_is_closed (job->backend->pool))
    {
      if (task->whole != NULL)
        mail_uid_set_add_set (task->uids, task->whole);
      g_clear_pointer (&task->whole, mail_uid_set_free);
      add_tasks (job, task->uids, task->second, TRUE);
    }
  else if (result->error != NULL)
    {
      if (job->error == NULL)
        job->error = g_error_copy (result->error);
    }
  else if (task->whole != NULL)
    add_tasks (job, task->whole, TRUE, task->retried);
  task_free (task);
  if (--job->n_tasks == 0)
    job_finish (job);
}

static const ImapTaskOps fetch_ops = { build, &fetch_handler, wants_body, on_done };

static void
add_tasks (FetchJob *job, const MailUidSet *uids, gboolean second, gboolean retried)
{
  const MailUidRange *ranges = (const MailUidRange *)uids->data;

  for (guint i = 0; i < uids->len;)
    {
      guint n = imap_command_fit_ranges (ranges + i, uids->len - i, IMAP_LINE_MAX - 200);
      FetchTask *task = g_new0 (FetchTask, 1);

      task->task.ops = &fetch_ops;
      task->task.mailbox = job->mailbox;
      task->task.uidvalidity = job->uidvalidity;
      task->task.bulk = job->priority == MAIL_PRIORITY_BULK;
      task->job = job;
      task->second = second;
      task->retried = retried;
      task->uids = mail_uid_set_new ();
      g_array_append_vals (task->uids, ranges + i, n);
      job->n_tasks++;
      i += n;
      imap_pool_submit (job->backend->pool, &task->task);
    }
}

void
imap_fetch (MailBackend *self, const MailFetchRequest *request, MailFetchSink *sink)
{
  FetchJob *job = g_new0 (FetchJob, 1);
  gboolean head = request->part == MAIL_PART_HEAD;

  job->backend = imap_backend (self);
  job->mailbox = g_strdup (request->mailbox);
  job->uidvalidity = request->uidvalidity;
  job->priority = request->priority;
  job->offset = head ? 0 : request->offset;
  job->length = head ? HEAD_LENGTH : request->length;
  job->sink = sink;
  job->left = mail_uid_set_new ();
  for (guint i = 0; i < request->n_uids; i++)
    mail_uid_set_add (job->left, request->uids[i].first, request->uids[i].last);
  g_assert (job->left->len > 0);
  add_tasks (job, job->left, FALSE, FALSE);
}
