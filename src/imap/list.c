/* SPDX-License-Identifier: MIT
 *
 * The list of mailboxes: one LIST with everything the server can add to it, else LIST and LSUB.
 * Names become paths here: divided at the delimiter, decoded from modified UTF-7, raw where that
 * fails. Everything is reported at the end, since STATUS and LSUB may come in any order. Net
 * thread.
 */
#include "imap/backend-private.h"

#include "imap/utf7.h"
#include "mailfs/log.h"

#include <string.h>

#define MAX_NAME 10240
#define MAX_DEPTH 64
#define MAX_NAMES_BYTES (128 * 1024 * 1024) /* of all names together */

typedef struct
{
  char *name; /* in the job's chunk */
  const char *special_use;
  guint flags; /* ImapListFlags */
  char delimiter;
  gboolean listed, has_status;
  MailMailboxStatus status;
} Found;

typedef struct ListJob ListJob;

typedef struct
{
  ImapTask task;
  ListJob *job;
  gboolean lsub;
} ListTask;

struct ListJob
{
  ImapBackend *backend;
  MailListSink *sink;
  gboolean subscribed_only, has_subscribed, retried;
  guint n_tasks;
  GStringChunk *names;
  gsize n_bytes;
  GArray *found;       /* of Found, in the server's order */
  GHashTable *by_name; /* name -> index + 1 */
  GError *error;
};

static void list_start (ListJob *job);

static Found *
found_for (ListJob *job, const char *wire_name)
{
  /* RFC 9051 5.1: INBOX in any case is INBOX. */
  const char *name = g_ascii_strcasecmp (wire_name, "INBOX") == 0 ? "INBOX" : wire_name;
  guint index = GPOINTER_TO_UINT (g_hash_table_lookup (job->by_name, name));
  Found found = { 0 };

  if (index != 0)
    return &g_array_index (job->found, Found, index - 1);
  job->n_bytes += strlen (name) + sizeof (Found) + 32;
  if (job->n_bytes > MAX_NAMES_BYTES)
    {
      if (job->error == NULL)
        g_set_error (&job->error, MAIL_ERROR, MAIL_ERROR_TOO_LARGE, "too many mailboxes");
      return NULL;
    }
  found.name = g_string_chunk_insert (job->names, name);
  g_array_append_val (job->found, found);
  g_hash_table_insert (job->by_name, found.name, GUINT_TO_POINTER (job->found->len));
  return &g_array_index (job->found, Found, job->found->len - 1);
}

static void
on_list (const ImapList *list, gpointer user_data)
{
  ListTask *task = user_data;
  ListJob *job = task->job;
  Found *found;

  if (list->name[0] == '\0')
    return;
  if (strlen (list->name) > MAX_NAME)
    {
      mail_log_warning ("%s: a mailbox with a name of %zu bytes is left out",
                        job->backend->config->host, strlen (list->name));
      return;
    }
  found = found_for (job, list->name);
  if (found == NULL)
    return;
  if (list->lsub)
    {
      /* RFC 3501 6.3.9: \Noselect in LSUB means that only something below is subscribed. */
      if ((list->flags & IMAP_LIST_NOSELECT) == 0)
        found->flags |= IMAP_LIST_SUBSCRIBED;
      if (found->delimiter == 0)
        found->delimiter = list->delimiter;
      return;
    }
  found->listed = TRUE;
  found->flags |= list->flags;
  found->delimiter = list->delimiter;
  if (found->special_use == NULL && list->special_use != NULL)
    found->special_use = g_string_chunk_insert_const (job->names, list->special_use);
}

static void
on_mailbox_status (const ImapMailboxStatus *status, gpointer user_data)
{
  ListTask *task = user_data;
  Found *found = status->items != 0 && strlen (status->name) <= MAX_NAME
                     ? found_for (task->job, status->name)
                     : NULL;
  const guint wanted = IMAP_STATUS_MESSAGES | IMAP_STATUS_UIDNEXT | IMAP_STATUS_UIDVALIDITY;

  if (found == NULL || (status->items & wanted) != wanted)
    return;
  found->has_status = TRUE;
  found->status.n_messages = status->messages;
  found->status.n_unseen = status->unseen;
  found->status.uidnext = status->uidnext;
  found->status.uidvalidity = status->uidvalidity;
  found->status.highestmodseq = status->highestmodseq;
}

static const ImapResponseHandler list_handler = {
  .list = on_list,
  .mailbox_status = on_mailbox_status,
};

/* --- the commands ----------------------------------------------------------------------------- */

static ImapCommand *
build_list (ImapTask *base, ImapSession *session, GError **error)
{
  ListJob *job = ((ListTask *)base)->job;
  guint caps = imap_session_caps (session);
  gboolean extended = (caps & IMAP_CAP_LIST_EXTENDED) != 0;
  ImapCommand *command = imap_command_new ("LIST ");

  job->has_subscribed = extended;
  if (extended && job->subscribed_only)
    imap_command_text (command, "(SUBSCRIBED) ");
  imap_command_text (command, "\"\" \"*\"");
  if (!extended)
    return command;
  imap_command_text (command, " RETURN (SUBSCRIBED CHILDREN");
  if ((caps & IMAP_CAP_SPECIAL_USE) != 0)
    imap_command_text (command, " SPECIAL-USE");
  if ((caps & IMAP_CAP_LIST_STATUS) != 0)
    imap_command_text (command, (caps & IMAP_CAP_CONDSTORE) != 0
                                    ? " STATUS (MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ)"
                                    : " STATUS (MESSAGES UIDNEXT UIDVALIDITY UNSEEN)");
  imap_command_text (command, ")");
  return command;
}

static ImapCommand *
build_lsub (ImapTask *base, ImapSession *session, GError **error)
{
  if ((imap_session_caps (session) & IMAP_CAP_LIST_EXTENDED) != 0)
    return NULL;
  ((ListTask *)base)->job->has_subscribed = TRUE;
  return imap_command_new ("LSUB \"\" \"*\"");
}

/* --- paths ------------------------------------------------------------------------------------ */

/* parts: of MailPathPart, whose texts are freed with it. FALSE: too deep. */
static gboolean
divide (const Found *found, GArray *parts, GPtrArray *texts)
{
  char delimiter[2] = { found->delimiter, '\0' };
  g_auto (GStrv) components = found->delimiter != 0
                                  ? g_strsplit (found->name, delimiter, MAX_DEPTH + 2)
                                  : g_strsplit (found->name, "\n\n", 1);

  for (guint i = 0; components[i] != NULL; i++)
    {
      MailPathPart part = { 0 };
      char *text;

      if (components[i][0] == '\0' && components[i + 1] == NULL && i > 0)
        break; /* "Parent/" is how some servers list what only holds others */
      if (i >= MAX_DEPTH)
        return FALSE;
      text = imap_utf7_decode (components[i]);
      part.raw = text == NULL;
      if (text == NULL)
        text = g_strdup (components[i]);
      else if (i == 0 && g_ascii_strcasecmp (text, "INBOX") == 0)
        {
          g_free (text);
          text = g_strdup ("INBOX");
        }
      g_ptr_array_add (texts, text);
      part.text = text;
      g_array_append_val (parts, part);
    }
  return parts->len > 0;
}

static guint
mailbox_flags (const Found *found)
{
  guint flags = 0;

  if ((found->flags & (IMAP_LIST_NOSELECT | IMAP_LIST_NONEXISTENT)) != 0 || !found->listed)
    flags |= MAIL_MAILBOX_NO_SELECT;
  if ((found->flags & IMAP_LIST_NOINFERIORS) != 0 || found->delimiter == 0)
    flags |= MAIL_MAILBOX_NO_INFERIORS;
  if ((found->flags & IMAP_LIST_SUBSCRIBED) != 0)
    flags |= MAIL_MAILBOX_SUBSCRIBED;
  if ((found->flags & IMAP_LIST_HASNOCHILDREN) != 0)
    flags |= MAIL_MAILBOX_NO_CHILDREN;
  return flags;
}

static void
report_one (ListJob *job, const Found *found, GHashTable *paths)
{
  g_autoptr (GArray) parts = g_array_new (FALSE, FALSE, sizeof (MailPathPart));
  g_autoptr (GPtrArray) texts = g_ptr_array_new_with_free_func (g_free);
  ImapMailboxNote *note;
  MailMailboxInfo info = { .name = found->name };
  GString *path;

  if (!divide (found, parts, texts))
    {
      mail_log_warning ("%s: a mailbox nested deeper than %d is left out",
                        job->backend->config->host, MAX_DEPTH);
      return;
    }
  path = g_string_new (NULL);
  for (guint i = 0; i < parts->len; i++)
    {
      const MailPathPart *part = &g_array_index (parts, MailPathPart, i);
      g_string_append_printf (path, "%c%zu:%s", part->raw ? 'r' : 'd', strlen (part->text),
                              part->text);
    }
  if (!g_hash_table_add (paths, g_string_free (path, FALSE)))
    return; /* another spelling of a mailbox already reported */
  note = imap_backend_note (job->backend, found->name);
  note->has_delimiter = TRUE;
  note->listed = job;
  note->delimiter = found->delimiter;
  if (job->backend->delimiter == 0)
    job->backend->delimiter = found->delimiter;
  info.parts = (const MailPathPart *)parts->data;
  info.n_parts = parts->len;
  info.flags = mailbox_flags (found);
  info.special_use = found->special_use;
  info.has_status = found->has_status && (info.flags & MAIL_MAILBOX_NO_SELECT) == 0;
  info.status = found->status;
  job->sink->mailbox (job->sink, &info);
}

static gboolean
is_unlisted (gpointer key, gpointer value, gpointer user_data)
{
  return ((ImapMailboxNote *)value)->listed != user_data;
}

static void
report (ListJob *job)
{
  g_autoptr (GHashTable) paths = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);

  for (guint i = 0; i < job->found->len; i++)
    {
      const Found *found = &g_array_index (job->found, Found, i);

      /* A subscription of what does not exist, a STATUS of what was not listed. */
      if (!found->listed)
        continue;
      if (job->subscribed_only && (found->flags & IMAP_LIST_SUBSCRIBED) == 0)
        continue;
      report_one (job, found, paths);
    }
  if (!job->subscribed_only)
    g_hash_table_foreach_remove (job->backend->notes, is_unlisted, job);
}

/* --- the job ---------------------------------------------------------------------------------- */

static void
job_reset (ListJob *job)
{
  g_clear_pointer (&job->found, g_array_unref);
  g_clear_pointer (&job->by_name, g_hash_table_unref);
  g_clear_pointer (&job->names, g_string_chunk_free);
  g_clear_error (&job->error);
  job->n_bytes = 0;
}

static void
on_done (ImapTask *base, const ImapResult *result)
{
  ListTask *task = (ListTask *)base;
  ListJob *job = task->job;

  /* Without LSUB all mailboxes count as subscribed to nothing; that is no reason to show none. */
  if (result->error != NULL && job->error == NULL
      && !(task->lsub && result->status != NULL && !job->subscribed_only))
    job->error = g_error_copy (result->error);
  g_free (task);
  if (--job->n_tasks > 0)
    return;
  if (job->error != NULL && !job->retried && !imap_pool_is_closed (job->backend->pool)
      && g_error_matches (job->error, MAIL_ERROR, MAIL_ERROR_CONNECTION))
    {
      job->retried = TRUE;
      list_start (job);
      return;
    }
  if (job->error == NULL)
    report (job);
  job->sink->done (job->sink, job->error);
  job_reset (job);
  g_free (job);
}

static const ImapTaskOps list_ops = { build_list, &list_handler, NULL, on_done };
static const ImapTaskOps lsub_ops = { build_lsub, &list_handler, NULL, on_done };

static void
list_start (ListJob *job)
{
  ListTask *list = g_new0 (ListTask, 1), *lsub = g_new0 (ListTask, 1);

  job_reset (job);
  job->names = g_string_chunk_new (4096);
  job->found = g_array_new (FALSE, TRUE, sizeof (Found));
  job->by_name = g_hash_table_new (g_str_hash, g_str_equal);
  list->task.ops = &list_ops;
  list->task.weight = 2;
  /* RFC 9051 6.3.11; Dovecot goes on telling what the selected mailbox was like. */
  list->task.unselected = TRUE;
  list->task.next = &lsub->task;
  list->job = job;
  list->task.owner = lsub->task.owner = job;
  lsub->task.ops = &lsub_ops;
  lsub->job = job;
  lsub->lsub = TRUE;
  job->n_tasks = 2;
  imap_pool_submit (job->backend->pool, &list->task);
}

void
imap_list (MailBackend *self, gboolean subscribed_only, MailListSink *sink)
{
  ListJob *job = g_new0 (ListJob, 1);

  job->backend = imap_backend (self);
  job->sink = sink;
  job->subscribed_only = subscribed_only;
  list_start (job);
}
