/* SPDX-License-Identifier: MIT
 *
 * New messages. Several go in one MULTIAPPEND, which stores all or none, in batches of bounded
 * size; else one after the other, since of several in the pipeline a later one could be stored when
 * an earlier was refused. Bytes are read from the caller's fd while they are sent. Never retried
 * here: after a lost connection only a look at the mailbox can tell. Net thread.
 */
#include "imap/backend-private.h"

#include "mailfs/log.h"

#define BATCH_ITEMS 100
#define BATCH_BYTES (8 * 1024 * 1024)

typedef struct
{
  ImapBackend *backend;
  char *mailbox;
  const MailAppendItem *items;
  guint n_items, n_known;
  gboolean one_by_one; /* a batch was refused: find out which */
  gboolean maybe;
  guint32 uidvalidity;
  guint32 *uids;
  MailAppendFunc done;
  gpointer user_data;
} AppendJob;

typedef struct
{
  ImapTask task;
  AppendJob *job;
  guint n; /* items in it, from n_known on */
} AppendTask;

static void append_next (AppendJob *job);

static void
job_finish (AppendJob *job, const GError *error)
{
  job->done (job->uidvalidity, job->uids, job->n_known, job->maybe, error, job->user_data);
  g_free (job->mailbox);
  g_free (job->uids);
  g_free (job);
}

/* How many of the next items go into one command. */
static guint
batch_size (const AppendJob *job, ImapSession *session)
{
  guint64 bytes = 0;
  guint n = 0;

  if (job->one_by_one
      || (imap_session_caps (session) & IMAP_CAP_MULTIAPPEND) == 0
      /* Each literal would wait for its own continuation: no gain. */
      || (imap_session_caps (session) & IMAP_CAP_LITERAL_PLUS) == 0)
    return 1;
  while (job->n_known + n < job->n_items && n < BATCH_ITEMS)
    {
      bytes += job->items[job->n_known + n].length;
      if (n > 0 && bytes > BATCH_BYTES)
        break;
      n++;
    }
  return n;
}

static ImapCommand *
build (ImapTask *base, ImapSession *session, GError **error)
{
  AppendTask *task = (AppendTask *)base;
  AppendJob *job = task->job;
  ImapCommand *command = imap_command_new ("APPEND ");

  imap_command_astring (command, job->mailbox);
  task->n = batch_size (job, session);
  for (guint i = 0; i < task->n; i++)
    {
      const MailAppendItem *item = &job->items[job->n_known + i];

      imap_command_text (command, " ");
      imap_command_flags (command, item->flags, item->keywords);
      imap_command_text (command, " ");
      imap_command_date_time (command, item->internaldate);
      imap_command_text (command, " ");
      imap_command_literal_fd (command, item->fd, 0, item->length);
    }
  return command;
}

static void
take_appenduid (AppendTask *task, const ImapStatus *status)
{
  AppendJob *job = task->job;
  MailUidIter iter = { .set = status->set };

  if (status->code != IMAP_CODE_APPENDUID || status->malformed || status->set == NULL
      || mail_uid_set_count (status->set) != task->n)
    return;
  if (job->uidvalidity != 0 && job->uidvalidity != status->uidvalidity)
    return; /* UIDs of two worlds cannot be told apart by the caller */
  job->uidvalidity = status->uidvalidity;
  for (guint i = 0; i < task->n; i++)
    job->uids[job->n_known + i] = mail_uid_iter_next (&iter);
}

static void
on_done (ImapTask *base, const ImapResult *result)
{
  AppendTask *task = (AppendTask *)base;
  AppendJob *job = task->job;
  const ImapStatus *status = result->status;
  guint n = task->n;

  if (result->error == NULL && status != NULL)
    {
      take_appenduid (task, status);
      job->n_known += n;
      g_free (task);
      if (job->n_known < job->n_items)
        append_next (job);
      else
        job_finish (job, NULL);
      return;
    }
  /* Without an answer: stored or not, once a server could have seen a whole message. The literals
   * of one command and those of the name are not told apart; too careful does no harm. */
  job->maybe = status == NULL && result->command != NULL
               && imap_command_n_literals_sent ((ImapCommand *)result->command) > 0;
  if (status != NULL && n > 1)
    {
      job->one_by_one = TRUE;
      g_free (task);
      append_next (job);
      return;
    }
  job_finish (job, result->error);
  g_free (task);
}

static const ImapTaskOps append_ops = { build, NULL, NULL, on_done };

static void
append_next (AppendJob *job)
{
  AppendTask *task = g_new0 (AppendTask, 1);

  task->task.ops = &append_ops;
  task->task.changes = TRUE;
  task->task.weight = 4;
  task->job = job;
  imap_pool_submit (job->backend->pool, &task->task);
}

void
imap_append (MailBackend *self, const char *mailbox, const MailAppendItem *items, guint n_items,
             MailAppendFunc done, gpointer user_data)
{
  AppendJob *job = g_new0 (AppendJob, 1);

  g_assert (n_items > 0);
  job->backend = imap_backend (self);
  job->mailbox = g_strdup (mailbox);
  job->items = items;
  job->n_items = n_items;
  job->uids = g_new0 (guint32, n_items);
  job->done = done;
  job->user_data = user_data;
  append_next (job);
}
