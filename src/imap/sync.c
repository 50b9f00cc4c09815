/* SPDX-License-Identifier: MIT
 *
 * Bringing one mailbox up to date. A fresh EXAMINE, with QRESYNC where it is enabled, tells what
 * happened; what it does not tell is asked for behind it: changed flags by CHANGEDSINCE or all of
 * them, new messages whole, and which UIDs exist when the numbers do not add up. The first listing
 * goes out in the same round trip as the EXAMINE. Only what the server said completely and with OK
 * proves that a message is gone. Net thread.
 */
#include "imap/backend-private.h"

#include "mailfs/log.h"

#include <string.h>

#define LONG_LISTING 2000u /* messages; a shorter one is over sooner than a login */

typedef enum
{
  SYNC_EXAMINE,
  SYNC_RIGHTS,
  SYNC_ALL,     /* everything about every message */
  SYNC_NEW,     /* everything about those from the known UIDNEXT on */
  SYNC_CHANGED, /* flags since the known MODSEQ */
  SYNC_FLAGS,   /* flags of all known ones: shows which exist, too */
  SYNC_SEARCH,  /* which exist */
} SyncKind;

typedef struct SyncJob SyncJob;

typedef struct
{
  ImapTask task;
  SyncJob *job;
  SyncKind kind;
  gboolean qresync; /* EXAMINE was sent with it */
} SyncTask;

struct SyncJob
{
  ImapBackend *backend;
  char *mailbox;
  MailMailboxStatus known;
  MailSyncSink *sink;
  guint n_tasks;
  ImapTask *listing; /* the one behind the EXAMINE; NULL: there is none, or it is over */
  GError *error;
  gboolean retried, without_qresync;

  gboolean begun, complete;
  guint32 uidvalidity; /* of begin */

  MailMailboxStatus status; /* as EXAMINE told */
  gboolean incremental;     /* the EXAMINE itself told what changed */
  gboolean early;           /* it told before it named the UIDVALIDITY: not used */
  guint64 n_vanished;
  MailUidSet *old, *new; /* UIDs reported, below and from the known UIDNEXT on */
  guint n_old, n_new;    /* of gather */
  MailUidSet *existing;  /* SEARCH */
  gboolean asked_flags, asked_all, asked_search, got_search;
  guint32 search_exists;
  guint32 max_uid;
  char *rights;
};

static void sync_start (SyncJob *job);
static void add_task (SyncJob *job, SyncKind kind, ImapTask **chain);

/* --- reporting -------------------------------------------------------------------------------- */

static gboolean
ensure_begun (SyncJob *job, guint32 uidvalidity, gboolean complete)
{
  if (!job->begun)
    {
      job->begun = TRUE;
      job->uidvalidity = uidvalidity;
      job->complete = complete;
      job->sink->begin (job->sink, uidvalidity, complete);
    }
  /* The second attempt after a lost connection must tell the same story. */
  if (job->uidvalidity == uidvalidity && job->complete == complete)
    return TRUE;
  if (job->error == NULL)
    g_set_error (&job->error, MAIL_ERROR, MAIL_ERROR_STALE, "mailbox %s changed its UIDVALIDITY",
                 job->mailbox);
  return FALSE;
}

static void
report_fetch (SyncJob *job, const ImapFetch *fetch, gboolean whole)
{
  MailMessageInfo info = {
    .uid = fetch->uid,
    .flags = fetch->flags,
    .size = fetch->size,
    .internaldate = fetch->internaldate,
    .modseq = fetch->modseq,
    .keywords = fetch->keywords,
  };

  if (whole)
    job->sink->message (job->sink, &info);
  else
    job->sink->flags (job->sink, &info);
}

/* Whether a task's mailbox is the one that was begun. */
static gboolean
is_valid (const SyncTask *task)
{
  return task->job->begun && task->task.select != NULL
         && task->task.select->uidvalidity == task->job->uidvalidity && task->job->error == NULL;
}

static void
on_examine_fetch (SyncTask *task, const ImapFetch *fetch)
{
  SyncJob *job = task->job;

  if (!task->qresync)
    return;
  if (task->task.select->uidvalidity == 0)
    job->early = TRUE;
  if (job->early || task->task.select->uidvalidity != job->known.uidvalidity
      || (fetch->fields & IMAP_FETCH_FLAGS) == 0 || fetch->uid >= job->known.uidnext)
    return;
  if (ensure_begun (job, job->known.uidvalidity, FALSE))
    report_fetch (job, fetch, FALSE);
}

static void
on_fetch_end (const ImapFetch *fetch, gpointer user_data)
{
  SyncTask *task = user_data;
  SyncJob *job = task->job;
  gboolean is_new = fetch->uid >= job->known.uidnext;

  if (fetch->uid == 0)
    return;
  if (task->kind == SYNC_EXAMINE)
    {
      on_examine_fetch (task, fetch);
      return;
    }
  if (!is_valid (task))
    return;
  /* Data of one command may come while another is the oldest: what counts is what is in it. */
  if ((fetch->fields & IMAP_FETCH_SIZE) != 0)
    {
      MailUidSet *seen = is_new || job->complete ? job->new : job->old;

      if (!is_new && !job->complete && !job->asked_all)
        return;
      mail_uid_set_gather (seen, fetch->uid, fetch->uid,
                           seen == job->new ? &job->n_new : &job->n_old);
      job->max_uid = MAX (job->max_uid, fetch->uid);
      report_fetch (job, fetch, TRUE);
    }
  else if ((fetch->fields & IMAP_FETCH_FLAGS) != 0 && (!is_new || job->complete))
    {
      if (job->asked_flags)
        mail_uid_set_gather (job->old, fetch->uid, fetch->uid, &job->n_old);
      report_fetch (job, fetch, FALSE);
    }
}

static void
on_vanished (const MailUidSet *set, gboolean earlier, gpointer user_data)
{
  SyncTask *task = user_data;
  SyncJob *job = task->job;

  /* What goes while we look is told again next time, since the MODSEQ we keep is from before. */
  if (task->kind != SYNC_EXAMINE || !task->qresync || !earlier)
    return;
  if (task->task.select->uidvalidity == 0)
    job->early = TRUE;
  if (job->early || task->task.select->uidvalidity != job->known.uidvalidity
      || !ensure_begun (job, job->known.uidvalidity, FALSE))
    return;
  for (guint i = 0; i < set->len; i++)
    {
      const MailUidRange *range = mail_uid_set_range (set, i);
      guint32 last = MIN (range->last, job->known.uidnext - 1);

      if (range->first > last)
        continue;
      job->n_vanished += (guint64)last - range->first + 1;
      job->sink->vanished (job->sink, range->first, last);
    }
}

static void
on_search (const ImapSearch *search, gpointer user_data)
{
  SyncTask *task = user_data;
  SyncJob *job = task->job;

  if (!job->asked_search || !is_valid (task) || (search->extended && !search->uid))
    return;
  job->got_search = TRUE;
  if (task->task.select != NULL)
    job->search_exists = task->task.select->exists;
  mail_uid_set_add_set (job->existing, search->set);
}

static void
on_my_rights (const char *mailbox, const char *rights, gpointer user_data)
{
  SyncTask *task = user_data;

  g_free (task->job->rights);
  task->job->rights = g_strdup (rights);
}

static const ImapResponseHandler sync_handler = {
  .fetch_end = on_fetch_end,
  .vanished = on_vanished,
  .search = on_search,
  .my_rights = on_my_rights,
};

/* --- commands --------------------------------------------------------------------------------- */

static ImapCommand *
build_examine (SyncTask *task, ImapSession *session)
{
  SyncJob *job = task->job;
  ImapCommand *command = imap_command_new ("EXAMINE ");

  imap_command_astring (command, job->mailbox);
  task->qresync = imap_session_has_qresync (session) && job->known.uidvalidity != 0
                  && job->known.highestmodseq != 0 && job->known.uidnext > 1
                  && !job->without_qresync;
  if (task->qresync)
    {
      imap_command_text (command, " (QRESYNC (");
      imap_command_number (command, job->known.uidvalidity);
      imap_command_text (command, " ");
      imap_command_number (command, job->known.highestmodseq);
      imap_command_text (command, "))");
    }
  else if ((imap_session_caps (session) & IMAP_CAP_CONDSTORE) != 0)
    imap_command_text (command, " (CONDSTORE)");
  return command;
}

static ImapCommand *
build (ImapTask *base, ImapSession *session, GError **error)
{
  SyncTask *task = (SyncTask *)base;
  SyncJob *job = task->job;
  guint caps = imap_session_caps (session);
  ImapCommand *command;

  switch (task->kind)
    {
    case SYNC_EXAMINE:
      return build_examine (task, session);
    case SYNC_RIGHTS:
      if ((caps & IMAP_CAP_ACL) == 0)
        return NULL;
      command = imap_command_new ("MYRIGHTS ");
      imap_command_astring (command, job->mailbox);
      return command;
    case SYNC_SEARCH:
      return imap_command_new ((caps & IMAP_CAP_ESEARCH) != 0 ? "UID SEARCH RETURN (ALL) ALL"
                                                              : "UID SEARCH ALL");
    case SYNC_ALL:
    case SYNC_NEW:
      command = imap_command_new ("UID FETCH ");
      imap_command_number (command, task->kind == SYNC_ALL ? 1 : job->known.uidnext);
      imap_command_text (command, ":* (UID FLAGS INTERNALDATE RFC822.SIZE");
      imap_command_text (command, (caps & IMAP_CAP_CONDSTORE) != 0 ? " MODSEQ)" : ")");
      return command;
    case SYNC_CHANGED:
    case SYNC_FLAGS:
      command = imap_command_new ("UID FETCH 1:");
      imap_command_number (command, job->known.uidnext - 1);
      imap_command_text (command, " (UID FLAGS)");
      if (task->kind == SYNC_CHANGED)
        {
          imap_command_text (command, " (CHANGEDSINCE ");
          imap_command_number (command, job->known.highestmodseq);
          imap_command_text (command, ")");
        }
      return command;
    }
  return NULL;
}

/* --- deciding --------------------------------------------------------------------------------- */

static void
decide_differences (SyncJob *job, gboolean qresync, ImapTask **chain)
{
  const MailMailboxStatus *known = &job->known, *now = &job->status;
  /* A smaller one than before: the server has lost its count, and nothing since can be told by it. */
  gboolean has_modseq = known->highestmodseq != 0 && now->highestmodseq >= known->highestmodseq;

  job->incremental = qresync && has_modseq && !job->early;
  if (known->uidnext > 1 && known->n_messages > 0 && now->n_messages > 0 && !job->incremental)
    {
      if (!has_modseq)
        {
          job->asked_flags = TRUE;
          add_task (job, SYNC_FLAGS, chain);
        }
      else if (known->highestmodseq != now->highestmodseq || job->early)
        add_task (job, SYNC_CHANGED, chain);
    }
  if (now->n_messages > 0 && (now->uidnext == 0 || now->uidnext > known->uidnext))
    add_task (job, SYNC_NEW, chain);
  if (!job->incremental && !job->asked_flags && now->n_messages > 0
      && now->n_messages < known->n_messages)
    {
      job->asked_search = TRUE;
      add_task (job, SYNC_SEARCH, chain);
    }
}

/* By what EXAMINE told. */
static guint
weight_of (const SyncJob *job, SyncKind kind)
{
  guint32 exists = job->status.n_messages, known = MIN (job->known.n_messages, exists);
  guint32 n = kind == SYNC_NEW ? exists - known : exists;

  if (kind != SYNC_ALL && kind != SYNC_NEW && kind != SYNC_FLAGS)
    return 1;
  if (n > LONG_LISTING)
    return IMAP_WEIGHT_LONG;
  return kind == SYNC_ALL ? IMAP_WEIGHT_SHORT : 1;
}

/* EXAMINE said OK. */
static void
on_examined (SyncJob *job, SyncTask *task, ImapSession *session)
{
  const ImapSelect *select = task->task.select;
  gboolean known = job->known.uidvalidity != 0 && job->known.uidvalidity == select->uidvalidity;
  ImapTask *chain = NULL;

  if (select->uidvalidity == 0 || !select->has_exists)
    {
      g_set_error (&job->error, MAIL_ERROR, MAIL_ERROR_PROTOCOL, "%s: the server named no %s",
                   job->mailbox, select->uidvalidity == 0 ? "UIDVALIDITY" : "number of messages");
      return;
    }
  job->status.uidvalidity = select->uidvalidity;
  job->status.uidnext = select->uidnext;
  job->status.n_messages = select->exists;
  job->status.highestmodseq = select->no_modseq ? 0 : select->highestmodseq;
  if (session != NULL && job->listing != NULL && job->listing->select == select)
    imap_session_reweigh (session, job->listing, weight_of (job, SYNC_ALL));
  if (!ensure_begun (job, select->uidvalidity, !known))
    return;
  if (known)
    /* ENABLE may have been refused meanwhile. */
    decide_differences (job, task->qresync && session != NULL && imap_session_has_qresync (session),
                        &chain);
  else if (job->known.uidvalidity != 0 && select->exists > 0)
    add_task (job, SYNC_ALL, &chain);
  if (chain != NULL)
    imap_pool_submit (job->backend->pool, chain);
}

/* UIDs in set that the EXAMINE could know of. */
static guint64
count_below (const MailUidSet *set, guint32 uidnext)
{
  guint64 n = 0;

  for (guint i = 0; i < set->len; i++)
    {
      const MailUidRange *range = mail_uid_set_range (set, i);

      if (uidnext != 0 && range->first >= uidnext)
        break;
      n += (guint64)(uidnext != 0 ? MIN (range->last, uidnext - 1) : range->last) - range->first
           + 1;
    }
  return n;
}

/* Everything asked for came. Whether what is known now adds up to what exists; else what is still
 * to be asked is. TRUE: it is done. */
static gboolean
adds_up (SyncJob *job)
{
  guint64 n_new = count_below (job->new, job->status.uidnext);
  guint64 exists = job->status.n_messages, known = job->known.n_messages;
  ImapTask *chain = NULL;

  if (job->complete || job->asked_all || job->asked_search)
    return TRUE;
  if (job->asked_flags)
    {
      if (mail_uid_set_count (job->old) + n_new >= exists)
        return TRUE;
    }
  else if (exists == 0 || known + n_new == exists
           || (job->incremental && known + n_new > exists
               && known + n_new - exists <= job->n_vanished))
    return TRUE;
  if (known + n_new < exists)
    {
      /* We lack some: only a listing of all can help. */
      job->asked_all = TRUE;
      add_task (job, SYNC_ALL, &chain);
    }
  else
    {
      job->asked_search = TRUE;
      add_task (job, SYNC_SEARCH, &chain);
    }
  imap_pool_submit (job->backend->pool, chain);
  return FALSE;
}

static void
report_present_set (SyncJob *job, const MailUidSet *set)
{
  if (set->len == 0)
    job->sink->present (job->sink, 0, 0);
  for (guint i = 0; i < set->len; i++)
    job->sink->present (job->sink, mail_uid_set_range (set, i)->first,
                        mail_uid_set_range (set, i)->last);
}

/* Which known messages are still there, if that was asked and the answer is whole. */
static void
report_presence (SyncJob *job)
{
  g_autoptr (MailUidSet) all = mail_uid_set_copy (job->old);

  if (job->complete)
    return;
  mail_uid_set_add_set (all, job->new);
  if (job->status.n_messages == 0 && job->new->len == 0)
    {
      if (job->known.n_messages > 0)
        job->sink->present (job->sink, 0, 0);
    }
  else if (job->asked_search)
    {
      if (job->got_search && mail_uid_set_count (job->existing) >= job->search_exists)
        report_present_set (job, job->existing);
      else
        mail_log_warning ("%s: the search came back short; nothing is taken as gone", job->mailbox);
    }
  else if (job->asked_all || job->asked_flags)
    {
      if (mail_uid_set_count (all) >= job->status.n_messages)
        report_present_set (job, all);
      else
        mail_log_warning ("%s: the listing came back short; nothing is taken as gone",
                          job->mailbox);
    }
}

static void
fill_result (SyncJob *job, MailSyncResult *result)
{
  const ImapMailboxNote *note = imap_backend_note (job->backend, job->mailbox);
  guint64 n_late = mail_uid_set_count (job->new) - count_below (job->new, job->status.uidnext);

  result->status = job->status;
  if (job->max_uid < G_MAXUINT32)
    result->status.uidnext = MAX (MAX (job->status.uidnext, job->max_uid + 1),
                                  job->complete ? 1 : job->known.uidnext);
  result->status.n_messages = job->complete ? (guint32)mail_uid_set_count (job->new)
                                            : job->status.n_messages + (guint32)n_late;
  result->rights = job->rights;
  result->settable_flags = MAIL_FLAGS_ALL;
  result->any_keyword = TRUE;
  if (note->has_permanent)
    {
      result->read_only = note->read_only;
      result->settable_flags = note->permanent_flags;
      result->any_keyword = note->any_keyword;
      result->settable_keywords = note->permanent_keywords;
    }
  else if (job->rights != NULL)
    {
      gboolean write = strchr (job->rights, 'w') != NULL;

      result->read_only = strpbrk (job->rights, "swtedci") == NULL;
      result->any_keyword = write;
      result->settable_flags = write ? MAIL_FLAG_ANSWERED | MAIL_FLAG_FLAGGED | MAIL_FLAG_DRAFT : 0;
      if (strchr (job->rights, 's') != NULL)
        result->settable_flags |= MAIL_FLAG_SEEN;
      if (strpbrk (job->rights, "td") != NULL)
        result->settable_flags |= MAIL_FLAG_DELETED;
    }
}

/* --- the job ---------------------------------------------------------------------------------- */

static void
job_reset (SyncJob *job)
{
  g_clear_error (&job->error);
  g_clear_pointer (&job->rights, g_free);
  g_clear_pointer (&job->old, mail_uid_set_free);
  g_clear_pointer (&job->new, mail_uid_set_free);
  g_clear_pointer (&job->existing, mail_uid_set_free);
  job->incremental = job->early = job->asked_flags = job->asked_all = job->asked_search = FALSE;
  job->got_search = FALSE;
  job->n_vanished = 0;
  job->n_old = job->n_new = 0;
  job->max_uid = 0;
}

static void
job_finish (SyncJob *job)
{
  MailSyncResult result = { 0 };

  if (job->error == NULL)
    {
      report_presence (job);
      fill_result (job, &result);
      job->sink->done (job->sink, &result, NULL);
    }
  else
    job->sink->done (job->sink, NULL, job->error);
  job_reset (job);
  g_free (job->mailbox);
  g_free (job);
}

static void
task_failed (SyncJob *job, SyncTask *task, const ImapResult *result)
{
  gboolean answered = result->status != NULL;

  if (task->kind == SYNC_RIGHTS && answered)
    return; /* not being told is no failure */
  if (task->kind == SYNC_ALL && answered && job->begun && job->status.n_messages == 0)
    return; /* 1:* of an empty mailbox */
  if (task->kind == SYNC_EXAMINE && task->qresync && answered
      && result->status->condition == IMAP_BAD)
    {
      job->without_qresync = TRUE;
      if (result->session != NULL)
        imap_session_forget_qresync (result->session);
    }
  if (job->error == NULL)
    job->error = g_error_copy (result->error);
}

static gboolean
may_retry (const SyncJob *job)
{
  if (job->retried || imap_pool_is_closed (job->backend->pool))
    return FALSE;
  return job->without_qresync || g_error_matches (job->error, MAIL_ERROR, MAIL_ERROR_CONNECTION);
}

static void
on_done (ImapTask *base, const ImapResult *result)
{
  SyncTask *task = (SyncTask *)base;
  SyncJob *job = task->job;

  if (base == job->listing)
    job->listing = NULL;
  if (result->error != NULL)
    task_failed (job, task, result);
  else if (task->kind == SYNC_EXAMINE && job->error == NULL)
    on_examined (job, task, result->session);
  else if (task->kind == SYNC_SEARCH && task->task.select != NULL)
    /* Between the numbers and the OK mail may have come and gone: that makes no number short. */
    job->search_exists = job->got_search ? MIN (job->search_exists, task->task.select->exists)
                                         : task->task.select->exists;
  g_free (task);
  if (--job->n_tasks > 0)
    return;
  mail_uid_set_normalize (job->old);
  mail_uid_set_normalize (job->new);
  if (job->error != NULL && may_retry (job))
    {
      job->retried = TRUE;
      sync_start (job);
    }
  else if (job->error != NULL || adds_up (job))
    job_finish (job);
}

static const ImapTaskOps sync_ops = { build, &sync_handler, NULL, on_done };

static void
add_task (SyncJob *job, SyncKind kind, ImapTask **chain)
{
  SyncTask *task = g_new0 (SyncTask, 1);

  task->task.ops = &sync_ops;
  task->task.weight = weight_of (job, kind);
  task->job = job;
  task->kind = kind;
  task->task.owner = job;
  task->task.mailbox = job->mailbox;
  if (kind == SYNC_EXAMINE)
    task->task.selects = TRUE;
  else if (job->begun)
    task->task.uidvalidity = job->uidvalidity;
  job->n_tasks++;
  while (*chain != NULL)
    chain = &(*chain)->next;
  *chain = &task->task;
}

static void
sync_start (SyncJob *job)
{
  ImapTask *chain = NULL;

  job_reset (job);
  job->old = mail_uid_set_new ();
  job->new = mail_uid_set_new ();
  job->existing = mail_uid_set_new ();
  add_task (job, SYNC_EXAMINE, &chain);
  if (job->known.uidvalidity == 0)
    {
      add_task (job, SYNC_ALL, &chain);
      job->listing = chain->next;
      job->listing->weight = IMAP_WEIGHT_LONG; /* till EXAMINE tells */
    }
  add_task (job, SYNC_RIGHTS, &chain);
  imap_pool_submit (job->backend->pool, chain);
}

void
imap_sync (MailBackend *self, const char *mailbox, const MailMailboxStatus *known,
           MailSyncSink *sink)
{
  SyncJob *job = g_new0 (SyncJob, 1);

  job->backend = imap_backend (self);
  job->mailbox = g_strdup (mailbox);
  job->sink = sink;
  if (known != NULL && known->uidvalidity != 0)
    job->known = *known;
  /* Below it nothing is new. */
  job->known.uidnext = MAX (job->known.uidnext, 1);
  sync_start (job);
}
