/* SPDX-License-Identifier: MIT
 *
 * Changes to the tree of mailboxes, with subscriptions kept in step, and the quota. Subscribing is
 * a courtesy: when it fails the change itself still counts. Net thread.
 */
#include "imap/backend-private.h"

#include "imap/utf7.h"
#include "mailfs/log.h"

#include <string.h>

#define MAX_SUBSCRIBED 10000 /* in a tree that is renamed */

/* --- names ------------------------------------------------------------------------------------ */

/* The delimiter below mailbox (NULL: at the root); 0 when there is none. */
static char
delimiter_of (ImapBackend *backend, const char *mailbox)
{
  const ImapMailboxNote *note = mailbox != NULL ? g_hash_table_lookup (backend->notes, mailbox)
                                                : NULL;

  if (note != NULL && note->has_delimiter)
    return note->delimiter;
  return backend->delimiter != 0 ? backend->delimiter : imap_pool_delimiter (backend->pool);
}

char *
imap_child_name (MailBackend *self, const char *parent, const char *leaf, GError **error)
{
  char delimiter = delimiter_of (imap_backend (self), parent);
  g_autofree char *wire = imap_utf7_encode (leaf);

  if (wire == NULL || leaf[0] == '\0' || (delimiter != 0 && strchr (leaf, delimiter) != NULL)
      || strpbrk (leaf, "\r\n") != NULL)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_INVALID,
                   "the server cannot hold a mailbox of this name");
      return NULL;
    }
  if (parent == NULL)
    return g_steal_pointer (&wire);
  if (delimiter == 0)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_INVALID,
                   "the server has no mailboxes inside others");
      return NULL;
    }
  return g_strdup_printf ("%s%c%s", parent, delimiter, wire);
}

/* --- a row of commands ------------------------------------------------------------------------ */

typedef struct FolderJob FolderJob;

typedef enum
{
  FOLDER_CREATE,
  FOLDER_DELETE,
  FOLDER_RENAME,
  FOLDER_SUBSCRIBE,
  FOLDER_UNSUBSCRIBE,
  FOLDER_LSUB, /* name is a pattern */
  FOLDER_QUOTA,
} FolderVerb;

typedef struct
{
  ImapTask task;
  FolderJob *job;
  FolderVerb verb;
  char *name, *other;
} FolderTask;

struct FolderJob
{
  ImapBackend *backend;
  char *mailbox, *new_name;
  FolderVerb verb;
  guint n_tasks, step;
  gboolean retried;
  GError *error;
  GPtrArray *subscribed; /* of char *: the tree's, before a rename */
  gboolean has_quota;
  guint64 used, limit;
  MailDoneFunc done;
  MailQuotaFunc told;
  gpointer user_data;
};

static void folder_step (FolderJob *job);

static ImapCommand *
build (ImapTask *base, ImapSession *session, GError **error)
{
  static const char *const words[] = {
    [FOLDER_CREATE] = "CREATE ",           [FOLDER_DELETE] = "DELETE ",
    [FOLDER_RENAME] = "RENAME ",           [FOLDER_SUBSCRIBE] = "SUBSCRIBE ",
    [FOLDER_UNSUBSCRIBE] = "UNSUBSCRIBE ", [FOLDER_LSUB] = "LSUB \"\" ",
    [FOLDER_QUOTA] = "GETQUOTAROOT ",
  };
  FolderTask *task = (FolderTask *)base;
  ImapCommand *command;

  if (task->verb == FOLDER_QUOTA && (imap_session_caps (session) & IMAP_CAP_QUOTA) == 0)
    return NULL;
  command = imap_command_new (words[task->verb]);
  if (task->verb == FOLDER_LSUB)
    imap_command_string (command, task->name);
  else
    imap_command_astring (command, task->name);
  if (task->other != NULL)
    {
      imap_command_text (command, " ");
      imap_command_astring (command, task->other);
    }
  return command;
}

static void
on_list (const ImapList *list, gpointer user_data)
{
  FolderTask *task = user_data;
  FolderJob *job = task->job;
  gsize length = strlen (job->mailbox);
  const char *rest = list->name + length;

  /* The pattern matches more than the tree. */
  if (task->verb == FOLDER_LSUB && list->lsub && (list->flags & IMAP_LIST_NOSELECT) == 0
      && strncmp (list->name, job->mailbox, length) == 0
      && (rest[0] == '\0' || (list->delimiter != 0 && rest[0] == list->delimiter))
      && job->subscribed->len < MAX_SUBSCRIBED)
    g_ptr_array_add (job->subscribed, g_strdup (list->name));
}

static void
on_quota (const char *root, const ImapQuotaResource *resources, guint n, gpointer user_data)
{
  FolderJob *job = ((FolderTask *)user_data)->job;

  for (guint i = 0; i < n; i++)
    {
      guint64 used = MIN (resources[i].usage, G_MAXUINT64 >> 10) << 10;
      guint64 limit = MIN (resources[i].limit, G_MAXUINT64 >> 10) << 10;

      /* Of several roots the one with the least room decides. */
      if (strcmp (resources[i].name, "STORAGE") != 0
          || (job->has_quota
              && limit - MIN (used, limit) >= job->limit - MIN (job->used, job->limit)))
        continue;
      job->has_quota = TRUE;
      job->used = used;
      job->limit = limit;
    }
}

static const ImapResponseHandler folder_handler = { .list = on_list, .quota = on_quota };

static void
job_finish (FolderJob *job)
{
  if (job->told != NULL)
    job->told (job->has_quota && job->error == NULL, job->used, job->limit, job->error,
               job->user_data);
  else
    job->done (job->error, job->user_data);
  g_clear_error (&job->error);
  if (job->subscribed != NULL)
    g_ptr_array_unref (job->subscribed);
  g_free (job->mailbox);
  g_free (job->new_name);
  g_free (job);
}

static void
on_done (ImapTask *base, const ImapResult *result)
{
  FolderTask *task = (FolderTask *)base;
  FolderJob *job = task->job;
  gboolean counts = task->verb == job->verb;

  if (result->error != NULL && counts && job->error == NULL)
    job->error = g_error_copy (result->error);
  else if (result->error != NULL)
    mail_log_info ("%s: %s", task->name, result->error->message);
  g_free (task->name);
  g_free (task->other);
  g_free (task);
  if (--job->n_tasks == 0)
    folder_step (job);
}

static const ImapTaskOps folder_ops = { build, &folder_handler, NULL, on_done };

static void
add_task (FolderJob *job, FolderVerb verb, const char *name, const char *other, ImapTask ***tail)
{
  FolderTask *task = g_new0 (FolderTask, 1);

  task->task.ops = &folder_ops;
  task->task.changes = verb != FOLDER_LSUB && verb != FOLDER_QUOTA;
  task->job = job;
  task->verb = verb;
  task->name = g_strdup (name);
  task->other = g_strdup (other);
  job->n_tasks++;
  **tail = &task->task;
  *tail = &task->task.next;
}

/* --- what follows what ------------------------------------------------------------------------ */

static void
move_subscriptions (FolderJob *job, ImapTask ***tail)
{
  gsize length = strlen (job->mailbox);

  for (guint i = 0; i < job->subscribed->len; i++)
    {
      const char *old = job->subscribed->pdata[i];
      g_autofree char *new = g_strconcat (job->new_name, old + length, NULL);

      add_task (job, FOLDER_SUBSCRIBE, new, NULL, tail);
      add_task (job, FOLDER_UNSUBSCRIBE, old, NULL, tail);
    }
}

static void
rename_step (FolderJob *job, ImapTask ***tail)
{
  if (job->step == 1)
    {
      g_autofree char *pattern = g_strconcat (job->mailbox, "*", NULL);
      add_task (job, FOLDER_LSUB, pattern, NULL, tail);
    }
  else if (job->step == 2)
    add_task (job, FOLDER_RENAME, job->mailbox, job->new_name, tail);
  else if (job->step == 3)
    move_subscriptions (job, tail);
}

/* Called at the start and whenever all tasks of a step are done. */
static void
folder_step (FolderJob *job)
{
  ImapTask *chain = NULL, **tail = &chain;

  if (job->error != NULL && job->verb == FOLDER_QUOTA && !job->retried
      && !imap_pool_is_closed (job->backend->pool)
      && g_error_matches (job->error, MAIL_ERROR, MAIL_ERROR_CONNECTION))
    {
      job->retried = TRUE;
      job->step = 0;
      g_clear_error (&job->error);
    }
  job->step++;
  if (job->error == NULL)
    switch (job->verb)
      {
      case FOLDER_CREATE:
        /* Two trips: another client's mailbox of this name is not ours to subscribe to. */
        if (job->step <= 2)
          add_task (job, job->step == 1 ? FOLDER_CREATE : FOLDER_SUBSCRIBE, job->mailbox, NULL,
                    &tail);
        break;
      case FOLDER_DELETE:
        if (job->step <= 2)
          add_task (job, job->step == 1 ? FOLDER_DELETE : FOLDER_UNSUBSCRIBE, job->mailbox, NULL,
                    &tail);
        break;
      case FOLDER_RENAME:
        rename_step (job, &tail);
        break;
      case FOLDER_QUOTA:
        if (job->step == 1)
          add_task (job, FOLDER_QUOTA, "INBOX", NULL, &tail);
        break;
      default:
        break;
      }
  if (chain != NULL)
    imap_pool_submit (job->backend->pool, chain);
  else
    job_finish (job);
}

static FolderJob *
job_new (MailBackend *self, FolderVerb verb, const char *mailbox, MailDoneFunc done,
         gpointer user_data)
{
  FolderJob *job = g_new0 (FolderJob, 1);

  job->backend = imap_backend (self);
  job->verb = verb;
  job->mailbox = g_strdup (mailbox);
  job->done = done;
  job->user_data = user_data;
  return job;
}

void
imap_create (MailBackend *self, const char *mailbox, MailDoneFunc done, gpointer user_data)
{
  folder_step (job_new (self, FOLDER_CREATE, mailbox, done, user_data));
}

void
imap_delete (MailBackend *self, const char *mailbox, MailDoneFunc done, gpointer user_data)
{
  folder_step (job_new (self, FOLDER_DELETE, mailbox, done, user_data));
}

void
imap_rename (MailBackend *self, const char *mailbox, const char *new_name, MailDoneFunc done,
             gpointer user_data)
{
  FolderJob *job = job_new (self, FOLDER_RENAME, mailbox, done, user_data);

  job->new_name = g_strdup (new_name);
  job->subscribed = g_ptr_array_new_with_free_func (g_free);
  folder_step (job);
}

void
imap_quota (MailBackend *self, MailQuotaFunc done, gpointer user_data)
{
  FolderJob *job = job_new (self, FOLDER_QUOTA, "INBOX", NULL, user_data);

  job->told = done;
  folder_step (job);
}
