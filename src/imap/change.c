/* SPDX-License-Identifier: MIT
 *
 * Changes to messages that exist: flags, copies, moves, removal. Always by UID, in a mailbox whose
 * UIDVALIDITY was seen to be the right one, and never by EXPUNGE alone. Flags may be set again
 * after a lost connection; the others are for the caller to look at. Net thread.
 */
#include "imap/backend-private.h"

#include "mailfs/log.h"

#define SET_MAX (IMAP_LINE_MAX - 1500) /* room for a long target name or many keywords */

typedef enum
{
  CHANGE_ADD,
  CHANGE_REMOVE,
  CHANGE_COPY,
  CHANGE_MOVE,
  CHANGE_DELETE, /* +FLAGS \Deleted */
  CHANGE_EXPUNGE,
} ChangeVerb;

typedef struct ChangeJob ChangeJob;

typedef struct
{
  ImapTask task;
  ChangeJob *job;
  ChangeVerb verb;
  guint first, n; /* of the job's ranges */
} ChangeTask;

struct ChangeJob
{
  ImapBackend *backend;
  char *mailbox, *target;
  guint32 uidvalidity;
  MailUidSet *uids;
  guint8 add, remove;
  char *add_keywords, *remove_keywords;
  ChangeVerb verb; /* ADD: flags; DELETE: removal */
  guint n_tasks;
  gboolean retried;
  gboolean strange; /* a COPYUID that makes no sense */
  GError *error;
  guint32 target_uidvalidity;
  GArray *pairs;      /* of MailUidPair */
  MailUidSet *paired; /* their `from` */
  MailDoneFunc done;
  MailCopyFunc copied;
  gpointer user_data;
};

static void change_start (ChangeJob *job);

/* --- commands --------------------------------------------------------------------------------- */

static ImapCommand *
build_store (ChangeTask *task, const char *item, guint8 flags, const char *keywords)
{
  const MailUidRange *ranges = (const MailUidRange *)task->job->uids->data;
  ImapCommand *command = imap_command_new ("UID STORE ");

  imap_command_set (command, ranges + task->first, task->n);
  imap_command_text (command, item);
  imap_command_flags (command, flags, keywords);
  return command;
}

static ImapCommand *
build (ImapTask *base, ImapSession *session, GError **error)
{
  ChangeTask *task = (ChangeTask *)base;
  ChangeJob *job = task->job;
  const MailUidRange *ranges = (const MailUidRange *)job->uids->data;
  guint caps = imap_session_caps (session);
  ImapCommand *command;

  switch (task->verb)
    {
    case CHANGE_ADD:
      return build_store (task, " +FLAGS.SILENT ", job->add, job->add_keywords);
    case CHANGE_REMOVE:
      return build_store (task, " -FLAGS.SILENT ", job->remove, job->remove_keywords);
    case CHANGE_DELETE:
      return build_store (task, " +FLAGS.SILENT ", MAIL_FLAG_DELETED, NULL);
    case CHANGE_EXPUNGE:
      if ((caps & IMAP_CAP_UIDPLUS) == 0)
        return NULL; /* a bare EXPUNGE would take what others have marked */
      command = imap_command_new ("UID EXPUNGE ");
      imap_command_set (command, ranges + task->first, task->n);
      return command;
    case CHANGE_MOVE:
      if ((caps & IMAP_CAP_MOVE) == 0)
        {
          g_set_error (error, MAIL_ERROR, MAIL_ERROR_UNSUPPORTED, "the server cannot MOVE");
          return NULL;
        }
      command = imap_command_new ("UID MOVE ");
      break;
    case CHANGE_COPY:
    default:
      command = imap_command_new ("UID COPY ");
      break;
    }
  imap_command_set (command, ranges + task->first, task->n);
  imap_command_text (command, " ");
  imap_command_astring (command, job->target);
  return command;
}

/* --- answers ---------------------------------------------------------------------------------- */

static void
take_copyuid (ChangeTask *task, const ImapStatus *status)
{
  ChangeJob *job = task->job;
  g_autoptr (GArray) pairs = NULL;

  if (status->code == IMAP_CODE_COPYUID && status->malformed)
    job->strange = TRUE;
  if (status->code != IMAP_CODE_COPYUID || status->malformed)
    return;
  pairs = mail_uid_set_pair (status->from, status->to, 1 << 20);
  job->strange |= pairs == NULL;
  if (pairs == NULL)
    return;
  for (guint i = 0; i < pairs->len; i++)
    {
      const MailUidPair *pair = &g_array_index (pairs, MailUidPair, i);

      /* Of another command, or told twice. */
      if (!mail_uid_set_contains (job->uids, pair->from)
          || mail_uid_set_contains (job->paired, pair->from))
        continue;
      job->target_uidvalidity = status->uidvalidity;
      job->backend->copyuid_seen = TRUE;
      mail_uid_set_add (job->paired, pair->from, pair->from);
      g_array_append_val (job->pairs, *pair);
    }
}

/* MOVE tells COPYUID before it is done (RFC 6851 4.3). */
static void
on_status (const ImapStatus *status, gpointer user_data)
{
  ChangeTask *task = user_data;

  if (task->verb == CHANGE_MOVE)
    take_copyuid (task, status);
}

static const ImapResponseHandler change_handler = { .status = on_status };

static void
job_finish (ChangeJob *job)
{
  if (job->copied != NULL)
    {
      if (job->error == NULL && job->backend->copyuid_seen && !job->strange && job->pairs->len == 0)
        /* OK is not done: a server that names what it copied named nothing. */
        g_set_error (&job->error, MAIL_ERROR, MAIL_ERROR_GONE, "%s: the messages are gone",
                     job->mailbox);
      job->copied (job->target_uidvalidity, (const MailUidPair *)job->pairs->data, job->pairs->len,
                   job->error, job->user_data);
    }
  else
    job->done (job->error, job->user_data);
  g_clear_error (&job->error);
  g_array_unref (job->pairs);
  mail_uid_set_free (job->uids);
  mail_uid_set_free (job->paired);
  g_free (job->mailbox);
  g_free (job->target);
  g_free (job->add_keywords);
  g_free (job->remove_keywords);
  g_free (job);
}

static void
on_done (ImapTask *base, const ImapResult *result)
{
  ChangeTask *task = (ChangeTask *)base;
  ChangeJob *job = task->job;

  imap_backend_note_select (job->backend, task->task.select);
  if (result->error != NULL)
    {
      if (job->error == NULL)
        job->error = g_error_copy (result->error);
    }
  else if (result->status != NULL)
    take_copyuid (task, result->status);
  g_free (task);
  if (--job->n_tasks > 0)
    return;
  if (job->verb == CHANGE_ADD && !job->retried && !imap_pool_is_closed (job->backend->pool)
      && g_error_matches (job->error, MAIL_ERROR, MAIL_ERROR_CONNECTION))
    {
      job->retried = TRUE;
      g_clear_error (&job->error);
      change_start (job);
    }
  else
    job_finish (job);
}

static const ImapTaskOps change_ops = { build, &change_handler, NULL, on_done };

/* --- starting --------------------------------------------------------------------------------- */

static void
add_tasks (ChangeJob *job, ChangeVerb verb, ImapTask **chain)
{
  const MailUidRange *ranges = (const MailUidRange *)job->uids->data;

  while (*chain != NULL)
    chain = &(*chain)->next;
  for (guint i = 0; i < job->uids->len;)
    {
      ChangeTask *task = g_new0 (ChangeTask, 1);

      task->task.ops = &change_ops;
      task->task.mailbox = job->mailbox;
      task->task.uidvalidity = job->uidvalidity;
      task->task.changes = TRUE;
      task->task.access = verb == CHANGE_COPY ? IMAP_ACCESS_READ : IMAP_ACCESS_WRITE;
      task->job = job;
      task->task.owner = job;
      task->task.removes = verb == CHANGE_MOVE || verb == CHANGE_EXPUNGE ? job->uids : NULL;
      task->verb = verb;
      task->first = i;
      task->n = imap_command_fit_ranges (ranges + i, job->uids->len - i, SET_MAX);
      i += task->n;
      task->task.newest = ranges[i - 1].last;
      job->n_tasks++;
      *chain = &task->task;
      chain = &task->task.next;
    }
}

static void
change_start (ChangeJob *job)
{
  ImapTask *chain = NULL;

  switch (job->verb)
    {
    case CHANGE_ADD:
      if (job->add != 0 || job->add_keywords != NULL)
        add_tasks (job, CHANGE_ADD, &chain);
      if (job->remove != 0 || job->remove_keywords != NULL || chain == NULL)
        add_tasks (job, CHANGE_REMOVE, &chain);
      break;
    case CHANGE_DELETE:
      /* Pipelined: UID EXPUNGE takes only what is in its set, which all was to go. */
      add_tasks (job, CHANGE_DELETE, &chain);
      add_tasks (job, CHANGE_EXPUNGE, &chain);
      break;
    default:
      add_tasks (job, job->verb, &chain);
      break;
    }
  imap_pool_submit (job->backend->pool, chain);
}

static ChangeJob *
job_new (MailBackend *self, ChangeVerb verb, const char *mailbox, guint32 uidvalidity,
         const MailUidRange *uids, guint n_uids)
{
  ChangeJob *job = g_new0 (ChangeJob, 1);

  job->backend = imap_backend (self);
  job->verb = verb;
  job->mailbox = g_strdup (mailbox);
  job->uidvalidity = uidvalidity;
  job->uids = mail_uid_set_new ();
  job->paired = mail_uid_set_new ();
  job->pairs = g_array_new (FALSE, FALSE, sizeof (MailUidPair));
  for (guint i = 0; i < n_uids; i++)
    mail_uid_set_add (job->uids, uids[i].first, uids[i].last);
  g_assert (job->uids->len > 0);
  return job;
}

static char *
keywords_dup (const char *keywords)
{
  return keywords != NULL && keywords[0] != '\0' ? g_strdup (keywords) : NULL;
}

void
imap_store_flags (MailBackend *self, const char *mailbox, guint32 uidvalidity,
                  const MailUidRange *uids, guint n_uids, guint8 add, const char *add_keywords,
                  guint8 remove, const char *remove_keywords, MailDoneFunc done, gpointer user_data)
{
  ChangeJob *job = job_new (self, CHANGE_ADD, mailbox, uidvalidity, uids, n_uids);

  job->add = add;
  job->remove = remove;
  job->add_keywords = keywords_dup (add_keywords);
  job->remove_keywords = keywords_dup (remove_keywords);
  job->done = done;
  job->user_data = user_data;
  change_start (job);
}

static void
copy_or_move (MailBackend *self, ChangeVerb verb, const char *mailbox, guint32 uidvalidity,
              const MailUidRange *uids, guint n_uids, const char *target, MailCopyFunc done,
              gpointer user_data)
{
  ChangeJob *job = job_new (self, verb, mailbox, uidvalidity, uids, n_uids);

  job->target = g_strdup (target);
  job->copied = done;
  job->user_data = user_data;
  change_start (job);
}

void
imap_copy (MailBackend *self, const char *mailbox, guint32 uidvalidity, const MailUidRange *uids,
           guint n_uids, const char *target, MailCopyFunc done, gpointer user_data)
{
  copy_or_move (self, CHANGE_COPY, mailbox, uidvalidity, uids, n_uids, target, done, user_data);
}

void
imap_move (MailBackend *self, const char *mailbox, guint32 uidvalidity, const MailUidRange *uids,
           guint n_uids, const char *target, MailCopyFunc done, gpointer user_data)
{
  copy_or_move (self, CHANGE_MOVE, mailbox, uidvalidity, uids, n_uids, target, done, user_data);
}

void
imap_remove (MailBackend *self, const char *mailbox, guint32 uidvalidity, const MailUidRange *uids,
             guint n_uids, const char *const *remote_ids, MailDoneFunc done, gpointer user_data)
{
  ChangeJob *job = job_new (self, CHANGE_DELETE, mailbox, uidvalidity, uids, n_uids);
  g_autofree char *set = mail_uid_set_format (job->uids);

  mail_log_info ("removing UID %s of %s", set, mailbox);
  job->done = done;
  job->user_data = user_data;
  change_start (job);
}
