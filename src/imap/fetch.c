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

typedef enum
{
  FETCH_PART,  /* as the caller wants it */
  FETCH_WHOLE, /* from the start to the end, after the part was answered with another */
  FETCH_SIZE,  /* of what came empty */
  FETCH_END,   /* the last byte by that size, when it was asked beyond the end */
} FetchKind;

typedef struct
{
  ImapTask task;
  FetchJob *job;
  MailUidSet *uids; /* asked for and not finished */
  gboolean partial;
  guint64 offset, length; /* with partial */
  MailUidSet *whole;      /* to be asked for again from the start, or NULL */
  MailUidSet *strange;    /* came with another origin, or NULL: asked whole if nothing else comes */
  MailUidSet *empty;      /* came without a byte, or NULL: asked for their size */
  MailUidSet *shorter;    /* by that size end before what was asked for, or NULL */
  FetchKind kind;
  gboolean unmarked; /* a part came without its origin */
  gboolean retried;  /* after a lost connection */

  /* the body at hand */
  guint32 uid; /* 0: not told yet */
  guint64 at;  /* where the next byte belongs */
  guint64 body_length;
  gboolean is_nil, is_whole, overflow, ended;
  GByteArray *kept; /* while the UID is not known */
} FetchTask;

struct FetchJob
{
  ImapBackend *backend;
  char *mailbox;
  guint32 uidvalidity;
  MailPriority priority;
  guint64 offset, length;
  guint64 size; /* with FETCH_END: as claimed */
  MailFetchSink *sink;
  MailUidSet *left; /* not finished */
  guint n_tasks;
  GError *error;
};

static void
add_tasks (FetchJob *job, const MailUidSet *uids, FetchKind kind, gboolean retried, gboolean newer);

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

/* uid is not finished, but no longer expected from this command. */
static void
put_off (FetchTask *task, MailUidSet **set, guint32 uid)
{
  if (*set == NULL)
    *set = mail_uid_set_new ();
  mail_uid_set_add (*set, uid, uid);
  mail_uid_set_remove (task->uids, uid, uid);
}

static void
ask_whole (FetchTask *task, guint32 uid)
{
  if (task->kind == FETCH_WHOLE)
    {
      fail_message (task, uid, MAIL_ERROR_PROTOCOL, "the server sends another part than asked for");
      return;
    }
  put_off (task, &task->whole, uid);
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
  /* Perhaps another task's part that comes early; if ours does not come, ask otherwise. */
  if (body->uid != 0)
    {
      if (task->strange == NULL)
        task->strange = mail_uid_set_new ();
      mail_uid_set_add (task->strange, body->uid, body->uid);
      task->unmarked |= !body->has_origin;
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
  task->ended = task->overflow = FALSE;
  if (task->uid != 0)
    return;
  if (task->kept == NULL)
    task->kept = g_byte_array_new ();
  g_byte_array_set_size (task->kept, 0);
}

static void
on_body_data (const guint8 *data, gsize length, gpointer user_data)
{
  FetchTask *task = user_data;

  if (task->uid == 0)
    {
      if (task->kept->len + length > KEEP_MAX)
        task->overflow = TRUE;
      else
        g_byte_array_append (task->kept, data, (guint)length);
      return;
    }
  task->job->sink->data (task->job->sink, task->uid, task->at, data, length);
  task->at += length;
}

/* The literal is whole and the UID known. */
static void
body_finished (FetchTask *task, guint32 uid)
{
  if (task->is_nil)
    fail_message (task, uid, MAIL_ERROR_GONE, "no longer there");
  else if (task->kind == FETCH_END && task->body_length != 1)
    ask_whole (task, uid);
  else if (task->body_length == 0)
    /* Beyond the end; or empty, which no message is, unless its size says so too. */
    put_off (task, &task->empty, uid);
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
  guint32 uid = fetch->uid;

  if (!task->ended)
    return; /* told with its UID in front */
  task->ended = FALSE;
  if (uid == 0 || !mail_uid_set_contains (task->uids, uid))
    return;
  if (task->overflow)
    {
      fail_message (task, uid, MAIL_ERROR_PROTOCOL, "the server names the UID too late");
      return;
    }
  if (task->kept->len > 0)
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

  task->partial = task->kind == FETCH_PART && !job->backend->ranges_broken
                  && (job->offset > 0 || job->length != MAIL_TO_END);
  task->offset = job->offset;
  task->length = MIN (job->length, PARTIAL_MAX);
  if (task->kind == FETCH_END)
    {
      task->partial = TRUE;
      task->offset = job->size - 1;
      task->length = 2;
    }
  imap_command_set (command, (const MailUidRange *)uids->data, uids->len);
  if (task->kind == FETCH_SIZE)
    {
      imap_command_text (command, " (UID RFC822.SIZE)");
      return command;
    }
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
  mail_uid_set_free (task->strange);
  mail_uid_set_free (task->empty);
  mail_uid_set_free (task->shorter);
  if (task->kept != NULL)
    g_byte_array_unref (task->kept);
  g_free (task);
}

/* Nothing came of what arrived after this connection's SELECT: it may not know of it yet. Nearly
 * always it does, so that it is not asked for news first. */
static gboolean
may_be_newer (const FetchTask *task)
{
  const ImapSelect *select = task->task.select;

  return task->task.newest == 0 && task->strange == NULL && task->uids->len > 0 && select != NULL
         && select->uidnext != 0
         && mail_uid_set_range (task->uids, task->uids->len - 1)->last >= select->uidnext;
}

/* The command was answered with OK: what is to be asked in another way. */
static void
ask_again (FetchTask *task)
{
  FetchJob *job = task->job;

  if (task->strange != NULL)
    {
      g_autoptr (MailUidSet) strange = mail_uid_set_intersect (task->strange, task->uids);

      if (strange->len > 0 && task->kind == FETCH_PART)
        {
          mail_log_info ("%s: parts of messages come with a wrong origin",
                         job->backend->config->host);
          job->backend->ranges_broken |= task->unmarked;
        }
      for (MailUidIter iter = { .set = strange };;)
        {
          guint32 uid = mail_uid_iter_next (&iter);

          if (uid == 0)
            break;
          ask_whole (task, uid);
        }
    }
  if (task->whole != NULL)
    add_tasks (job, task->whole, FETCH_WHOLE, task->retried, FALSE);
  if (task->empty != NULL)
    add_tasks (job, task->empty, FETCH_SIZE, task->retried, FALSE);
  if (task->shorter != NULL)
    add_tasks (job, task->shorter, FETCH_END, task->retried, FALSE);
  if (may_be_newer (task))
    add_tasks (job, task->uids, task->kind, task->retried, TRUE);
}

/* The connection was lost: all that is not finished once more. */
static void
ask_on_another (FetchTask *task)
{
  if (task->whole != NULL)
    mail_uid_set_add_set (task->uids, task->whole);
  if (task->empty != NULL)
    mail_uid_set_add_set (task->uids, task->empty);
  if (task->shorter != NULL)
    mail_uid_set_add_set (task->uids, task->shorter);
  add_tasks (task->job, task->uids, task->kind, TRUE, task->task.newest != 0);
}

static void
on_done (ImapTask *base, const ImapResult *result)
{
  FetchTask *task = (FetchTask *)base;
  FetchJob *job = task->job;

  if (g_error_matches (result->error, MAIL_ERROR, MAIL_ERROR_CONNECTION) && !task->retried
      && !imap_pool_is_closed (job->backend->pool))
    ask_on_another (task);
  else if (result->error == NULL)
    ask_again (task);
  else if (job->error == NULL)
    job->error = g_error_copy (result->error);
  task_free (task);
  if (--job->n_tasks == 0)
    job_finish (job);
}

/* The size of a message whose body came empty. */
static void
on_size (const ImapFetch *fetch, gpointer user_data)
{
  FetchTask *task = user_data;

  if ((fetch->fields & IMAP_FETCH_SIZE) == 0 || !mail_uid_set_contains (task->uids, fetch->uid))
    return;
  if (task->job->offset > 0)
    {
      /* It is shorter than what was asked for. The caller wants its true length. */
      task->job->size = fetch->size;
      if (fetch->size > 0 && fetch->size <= task->job->offset)
        put_off (task, &task->shorter, fetch->uid);
      else
        ask_whole (task, fetch->uid);
    }
  else if (fetch->size == 0)
    finish_message (task, fetch->uid, 0, TRUE, NULL);
  else
    fail_message (task, fetch->uid, MAIL_ERROR_GONE, "no longer there");
}

static const ImapResponseHandler size_handler = { .fetch_end = on_size };

static const ImapTaskOps size_ops = { build, &size_handler, NULL, on_done };
static const ImapTaskOps fetch_ops = { build, &fetch_handler, wants_body, on_done };

static void
add_tasks (FetchJob *job, const MailUidSet *uids, FetchKind kind, gboolean retried, gboolean newer)
{
  const MailUidRange *ranges = (const MailUidRange *)uids->data;

  for (guint i = 0; i < uids->len;)
    {
      guint n = imap_command_fit_ranges (ranges + i, uids->len - i, IMAP_LINE_MAX - 200);
      FetchTask *task = g_new0 (FetchTask, 1);

      task->task.ops = kind == FETCH_SIZE ? &size_ops : &fetch_ops;
      task->task.mailbox = job->mailbox;
      task->task.uidvalidity = job->uidvalidity;
      task->task.bulk = job->priority == MAIL_PRIORITY_BULK;
      task->job = job;
      task->kind = kind;
      task->retried = retried;
      task->uids = mail_uid_set_new ();
      g_array_append_vals (task->uids, ranges + i, n);
      job->n_tasks++;
      i += n;
      task->task.newest = newer ? ranges[i - 1].last : 0;
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
  add_tasks (job, job->left, FETCH_PART, FALSE, FALSE);
}
