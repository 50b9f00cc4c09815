/* SPDX-License-Identifier: MIT
 *
 * Staged files on their way to the server. Before a byte is sent their wire form, its digest and
 * the place from which new UIDs count are on disk; afterwards the answer says what became of each,
 * or it is looked up: a message is never sent twice without looking, and its spool goes only when
 * the server is known to hold it. Net thread; the disk work is done by the worker.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* From here on syncing the file system once is cheaper than each file. */
#define SYNC_ALONE_MAX 4u
/* A cache that cannot keep what was fetched. */
#define GATHER_TRIES 3u

typedef struct
{
  MailJob job;
  MailBatch *batch;
  MailWire *wires;
  GError **errors; /* of making each */
  MailAppendItem *items;
  guint n;
  GError *error; /* of the journal */
} Work;

static void
work_free (Work *work)
{
  for (guint i = 0; i < work->n; i++)
    {
      if (work->wires[i].fd >= 0)
        close (work->wires[i].fd);
      g_free (work->wires[i].message_id);
      g_clear_error (&work->errors[i]);
    }
  g_clear_error (&work->error);
  g_free (work->wires);
  g_free (work->errors);
  g_free (work->items);
  g_free (work);
}

static void
all_error (MailBatch *batch, const GError *error)
{
  while (batch->items->len > 0)
    mail_batch_error (batch, batch->items->pdata[0], error);
  mail_batch_end (batch);
}

/* --- when the server has it
 * ---------------------------------------------------------------------------- */

/* Its mailbox was numbered anew: who it is by now is not known, and none goes in its stead. */
static void
leave_replaced (MailChange *change)
{
  MailMailbox *mailbox = change->target != NULL ? change->target : change->mailbox;
  g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_STALE,
                                          "the message %u that was replaced stays: its mailbox was "
                                          "numbered anew",
                                          change->replaces);

  mail_log_warning ("%s", error->message);
  mail_changes_defer (mailbox->store->changes, mailbox, error);
}

/* The message whose place it took goes only now. */
static void
retire_replaced (MailChange *change)
{
  MailChanges *changes = change->mailbox->store->changes;
  guint32 content_id = change->replaces_content, uid = change->replaces;
  /* Where that one is: the file may have been renamed on to another mailbox. */
  g_autoptr (MailMailbox) mailbox = uid != 0 ? mail_store_contents (changes->store, content_id)
                                             : NULL;

  if (uid == 0 || (change->in_place && change->staged->dropped))
    return;
  if (mailbox == NULL)
    {
      leave_replaced (change);
      return;
    }
  mail_failpoint ("replace-stored");
  gboolean visible = mail_effect_hide_now (mailbox, content_id, uid, NULL);
  if (!visible && change->in_place)
    return; /* the user has moved or removed it meanwhile */
  /* In the journal before the index hears of it: a kill in between must not hide it for good. */
  mail_change_remove_hidden (changes, mailbox, content_id, change->replaces_uidvalidity, uid,
                             change->staged);
  if (visible)
    mail_effect_hidden (mailbox, content_id, uid);
}

void
mail_change_settled (MailChange *change)
{
  retire_replaced (change);
}

static MailMessage
as_stored (MailChange *change, guint32 uid, guint64 size)
{
  MailStaged *staged = change->staged;
  MailChanges *changes = staged->changes;
  MailMessage message = { .uid = uid, .size = size, .local = MAIL_LOCAL_EXACT };

  g_mutex_lock (&changes->lock);
  message.flags = change->sent_flags;
  message.keywords = mail_index_keywords_id (changes->store->index, change->sent_keywords);
  message.internaldate = staged->mtime != G_MININT64 ? staged->mtime : 0;
  g_mutex_unlock (&changes->lock);
  return message;
}

/* TRUE when nothing more is to be done with it. */
static gboolean
settle (MailBatch *batch, MailChange *change, guint32 uidvalidity, guint32 uid, int fd,
        guint64 size)
{
  MailChanges *changes = batch->changes;
  MailMailbox *mailbox = change->mailbox;
  g_autoptr (MailStaged) staged = mail_staged_ref (change->staged);

  if (mail_effect_uidvalidity (mailbox) != uidvalidity)
    return FALSE;
  if (fd >= 0)
    size = mail_spool_to_cache (changes, fd, size, mail_mailbox_content_id (mailbox), uid);
  MailMessage message = as_stored (change, uid, size);
  /* The server changed its bytes: how many there are the listing says, or who reads them. */
  if (fd < 0)
    message.local &= ~MAIL_LOCAL_EXACT;
  if (!mail_staged_settle (staged, mailbox, uidvalidity, &message))
    return FALSE;
  retire_replaced (change);
  mail_failpoint ("append-settled");
  mail_batch_succeed (batch, change);
  g_autofree char *wire = mail_spool_path (changes, staged->id, TRUE);
  unlink (wire);
  g_mutex_lock (&changes->lock);
  if (staged->orphan && staged->state == MAIL_STAGED_DONE)
    mail_staged_remove_spool_locked (staged);
  g_mutex_unlock (&changes->lock);
  return TRUE;
}

/* --- the answer
 * ------------------------------------------------------------------------------------------ */

static void
set_step (MailChange *change, MailChangeStep step, guint32 new_uid)
{
  MailChanges *changes = change->mailbox->store->changes;

  g_mutex_lock (&changes->lock);
  change->step = step;
  change->new_uid = new_uid;
  mail_journal_begin (changes->journal);
  mail_change_journal_locked (change);
  mail_journal_commit (changes->journal, NULL);
  g_mutex_unlock (&changes->lock);
}

static void
appended (guint32 uidvalidity, const guint32 *uids, guint n_known, gboolean maybe,
          const GError *error, gpointer data)
{
  Work *work = data;
  MailBatch *batch = work->batch;
  g_autoptr (GPtrArray) sent = g_ptr_array_copy (batch->items, NULL, NULL);
  guint32 highest = 0;

  mail_failpoint ("append-answered");
  for (guint i = 0; i < sent->len; i++)
    {
      MailChange *change = sent->pdata[i];

      if (i < n_known)
        {
          highest = MAX (highest, uids[i]);
          if (uids[i] != 0 && change->replaces == 0
              && settle (batch, change, uidvalidity, uids[i], work->wires[i].fd,
                         work->wires[i].size))
            continue;
          /* Where it is, and whether it is there at all, a listing will tell. */
          change->target_uidvalidity = uids[i] != 0 ? uidvalidity : change->target_uidvalidity;
          set_step (change, MAIL_STEP_STORED, uids[i]);
          mail_batch_retry (batch, change, NULL);
        }
      else if (maybe)
        {
          /* One command may have brought them all. Those before are known, and have lower UIDs. */
          change->bound = MAX (change->bound, highest + 1);
          set_step (change, MAIL_STEP_SENT, 0);
          mail_batch_retry (batch, change, error);
        }
      else
        set_step (change, MAIL_STEP_NEW, 0);
    }
  if (error != NULL)
    mail_batch_refused (batch, error);
  while (batch->items->len > 0) /* no error, and yet not known: as if it had not been sent */
    mail_batch_retry (batch, batch->items->pdata[0], NULL);
  work_free (work);
  mail_batch_end (batch);
}

/* --- before
 * ---------------------------------------------------------------------------------------------- */

static gboolean
send (gpointer data)
{
  Work *work = data;
  MailBatch *batch = work->batch;
  MailStore *store = batch->changes->store;
  g_autoptr (GPtrArray) items = g_ptr_array_copy (batch->items, NULL, NULL);
  guint kept = 0;

  for (guint i = 0; i < items->len; i++)
    if (work->errors[i] != NULL)
      {
        set_step (items->pdata[i], MAIL_STEP_NEW, 0);
        mail_batch_error (batch, items->pdata[i], work->errors[i]);
      }
    else
      {
        MailWire wire = work->wires[kept];

        work->wires[kept] = work->wires[i];
        work->wires[i] = wire;
        work->items[kept++] = work->items[i];
      }
  if (work->error != NULL || kept == 0 || batch->mailbox_name == NULL)
    {
      g_autoptr (GError) gone = g_error_new (MAIL_ERROR, MAIL_ERROR_GONE,
                                             "its mailbox no longer exists");
      g_autoptr (GError) error = g_error_copy (work->error != NULL ? work->error : gone);

      for (guint i = 0; i < batch->items->len; i++)
        set_step (batch->items->pdata[i], MAIL_STEP_NEW, 0);
      work_free (work);
      all_error (batch, error);
      return G_SOURCE_REMOVE;
    }
  mail_failpoint ("append-sent");
  for (guint i = 0; i < kept; i++)
    work->items[i].fd = work->wires[i].fd;
  store->backend->ops->append (store->backend, batch->mailbox_name, work->items, kept, appended,
                               work);
  return G_SOURCE_REMOVE;
}

/* On disk: the wires, and that they are about to be sent. */
static gboolean
sync_wires (Work *work, GError **error)
{
  for (guint i = 0; i < work->n; i++)
    {
      if (work->wires[i].fd < 0)
        continue;
      if (work->n > SYNC_ALONE_MAX)
        return syncfs (work->wires[i].fd) == 0 || (mail_set_errno (error, errno, "spool"), FALSE);
      if (fdatasync (work->wires[i].fd) < 0)
        {
          mail_set_errno (error, errno, "spool");
          return FALSE;
        }
    }
  return TRUE;
}

/* Worker. The items are running: only the files are anybody else's, and those are kept apart. */
static void
make_wires (gpointer data)
{
  Work *work = data;
  MailBatch *batch = work->batch;
  MailChanges *changes = batch->changes;

  for (guint i = 0; i < work->n; i++)
    {
      MailChange *change = batch->items->pdata[i];
      MailStaged *staged = change->staged;

      int fd = change->fd >= 0 ? change->fd
                               : mail_spool_open (changes, staged->id, FALSE, &work->errors[i]);

      change->fd = -1;
      if (fd < 0 || !mail_spool_wire (changes, staged->id, fd, &work->wires[i], &work->errors[i]))
        continue;
      g_mutex_lock (&changes->lock);
      staged->wire_size = work->wires[i].size;
      memcpy (staged->digest, work->wires[i].digest, MAIL_DIGEST_SIZE);
      change->step = MAIL_STEP_SENT;
      change->sent_flags = staged->flags;
      g_free (change->sent_keywords);
      change->sent_keywords = g_strdup (staged->keywords);
      work->items[i] = (MailAppendItem) { .length = work->wires[i].size,
                                          .flags = staged->flags,
                                          .keywords = change->sent_keywords,
                                          .internaldate = staged->mtime };
      g_mutex_unlock (&changes->lock);
    }
  if (sync_wires (work, &work->error) && mail_batch_journal (batch, &work->error))
    mail_journal_sync (changes->journal, &work->error);
  mail_store_invoke (changes->store, send, work);
}

static void
prepare (MailBatch *batch)
{
  Work *work = g_new0 (Work, 1);

  work->job.run = make_wires;
  work->batch = batch;
  work->n = batch->items->len;
  work->wires = g_new0 (MailWire, work->n);
  work->errors = g_new0 (GError *, work->n);
  work->items = g_new0 (MailAppendItem, work->n);
  for (guint i = 0; i < work->n; i++)
    {
      MailChange *change = batch->items->pdata[i];

      work->wires[i].fd = -1;
      change->bound = batch->bound;
      change->target_uidvalidity = batch->target_uidvalidity;
    }
  g_thread_pool_push (batch->changes->worker, work, NULL);
}

/* --- copies that became files: their bytes first
 * ------------------------------------------------------- */

typedef struct
{
  MailWaiter waiter;
  MailBatch *batch;
  guint at;
  guint n_tries; /* for this one */
} Gather;

static void gather (Gather *state);

static void
gathered (MailWaiter *waiter, const GError *error)
{
  Gather *state = (Gather *)((char *)waiter - G_STRUCT_OFFSET (Gather, waiter));

  if (error != NULL)
    {
      mail_batch_error (state->batch, state->batch->items->pdata[state->at], error);
      state->n_tries = 0;
    }
  gather (state);
}

static gboolean
fill_spool (MailChange *change, GError **error)
{
  MailStaged *staged = change->staged;
  MailChanges *changes = staged->changes;
  guint32 content_id = staged->source_content, uid = staged->source_uid;
  g_autoptr (MailMailbox) moved = mail_changes_moved (changes->store, content_id, &uid);
  guint64 size = 0;

  if (moved != NULL)
    content_id = mail_mailbox_content_id (moved);
  if (!mail_spool_from_cache (changes, staged->id, content_id, uid, &size, error))
    return FALSE;
  g_mutex_lock (&changes->lock);
  staged->has_spool = TRUE;
  staged->size = size;
  changes->spool_bytes += size;
  change->fd = mail_spool_open (changes, staged->id, FALSE, NULL); /* as when it is taken */
  g_clear_pointer (&staged->source, mail_mailbox_unref);
  g_clear_pointer (&staged->source_name, g_free);
  mail_journal_begin (changes->journal);
  mail_staged_journal_locked (staged);
  mail_journal_commit (changes->journal, NULL);
  g_mutex_unlock (&changes->lock);
  return TRUE;
}

static void
gather (Gather *state)
{
  MailBatch *batch = state->batch;

  while (state->at < batch->items->len)
    {
      MailChange *change = batch->items->pdata[state->at];
      MailStaged *staged = change->staged;
      g_autoptr (GError) error = NULL;
      MailAnswer answer;

      if (staged->source == NULL)
        {
          state->at++;
          state->n_tries = 0;
          continue;
        }
      if (mail_effect_uidvalidity (staged->source) != staged->source_uidvalidity)
        {
          error = g_error_new (MAIL_ERROR, MAIL_ERROR_STALE,
                               "the mailbox it is copied from was numbered anew");
          mail_batch_error (batch, change, error);
          continue;
        }
      mail_waiter_init (&state->waiter, gathered);
      answer = mail_store_fetch_whole (batch->changes->store, staged->source, staged->source_uid,
                                       state->n_tries < GATHER_TRIES ? &state->waiter : NULL,
                                       &error);
      if (answer == MAIL_PARKED && state->n_tries++ < GATHER_TRIES)
        return;
      if (answer == MAIL_PARKED)
        g_set_error (&error, MAIL_ERROR, MAIL_ERROR_FAILED, "its bytes cannot be kept here");
      if (answer == MAIL_READY && fill_spool (change, &error))
        continue;
      mail_batch_error (batch, change, error);
    }
  g_free (state);
  if (batch->items->len > 0)
    prepare (batch);
  else
    mail_batch_end (batch);
}

/* --- looking for what may be there
 * --------------------------------------------------------------------- */

static void
found (GArray *wanted, const GError *error, gpointer data)
{
  MailBatch *batch = data;
  g_autoptr (GPtrArray) items = g_ptr_array_copy (batch->items, NULL, NULL);
  guint32 uidvalidity = mail_effect_uidvalidity (batch->mailbox);

  if (error != NULL)
    {
      all_error (batch, error);
      return;
    }
  for (guint i = 0; i < items->len; i++)
    {
      MailChange *change = items->pdata[i];
      const MailWanted *one = &g_array_index (wanted, MailWanted, i);
      guint32 uid = one->uid;
      g_autofree char *path = mail_spool_path (batch->changes, change->staged->id, TRUE);
      int fd = -1;

      if (uid != 0)
        {
          if (access (path, F_OK) < 0 && !change->staged->dirty)
            {
              g_free (path);
              path = mail_spool_path (batch->changes, change->staged->id, FALSE);
            }
          fd = one->changed ? -1 : open (path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
          if (fd >= 0 && (guint64)lseek (fd, 0, SEEK_END) != change->staged->wire_size)
            {
              close (fd);
              fd = -1;
            }
          if (!settle (batch, change, uidvalidity, uid, fd, change->staged->wire_size))
            {
              mail_staged_settle_unseen (change->staged, change->mailbox, uidvalidity, uid);
              retire_replaced (change);
              mail_batch_succeed (batch, change);
            }
          if (fd >= 0)
            close (fd);
        }
      else if (change->step == MAIL_STEP_STORED
               && (change->lost || (one->others && one->message_id == NULL)))
        {
          /* What cannot be told from what others deliver is not sent again. */
          g_autoptr (GError) lost = g_error_new_literal (
              MAIL_ERROR, MAIL_ERROR_FAILED,
              change->lost ? "the server accepted the message twice and has it not"
                           : "the server accepted the message and has none that is like it");

          mail_batch_fail (batch, change, lost);
        }
      else
        {
          change->lost |= change->step == MAIL_STEP_STORED;
          set_step (change, MAIL_STEP_NEW, 0);
          mail_batch_retry (batch, change, NULL);
        }
    }
  mail_batch_end (batch);
}

static void
find (MailBatch *batch)
{
  GArray *wanted = g_array_new (FALSE, TRUE, sizeof (MailWanted));

  g_array_set_clear_func (wanted, mail_wanted_clear);
  for (guint i = 0; i < batch->items->len; i++)
    {
      MailChange *change = batch->items->pdata[i];
      MailWanted one = { .by_bytes = TRUE,
                         .size = change->staged->wire_size,
                         .uidvalidity = change->target_uidvalidity,
                         .bound = change->bound,
                         .uid = change->new_uid };

      memcpy (one.digest, change->staged->digest, MAIL_DIGEST_SIZE);
      /* The server has said that it stored it, perhaps with a header of its own. */
      one.stored = change->step == MAIL_STEP_STORED;
      if (one.stored)
        one.message_id = mail_spool_message_id (batch->changes, change->staged->id);
      if (one.stored && one.message_id == NULL)
        mail_spool_body (batch->changes, change->staged->id, one.body);
      g_array_append_val (wanted, one);
    }
  mail_resolve (batch->mailbox, wanted, found, batch);
}

static void
begin (const GError *error, gpointer data)
{
  MailBatch *batch = data;

  if (error != NULL)
    {
      all_error (batch, error);
      return;
    }
  batch->bound = mail_effect_bound (batch->mailbox);
  batch->target_uidvalidity = mail_effect_uidvalidity (batch->mailbox);
  Gather *state = g_new0 (Gather, 1);
  state->batch = batch;
  gather (state);
}

void
mail_append_start (MailBatch *batch)
{
  g_mutex_lock (&batch->mailbox->lock);
  gboolean known = batch->mailbox->loaded || mail_mailbox_load_locked (batch->mailbox);
  g_mutex_unlock (&batch->mailbox->lock);
  if (batch->step != MAIL_STEP_NEW)
    find (batch);
  else if (known)
    begin (NULL, batch);
  else
    mail_look (batch->mailbox, begin, batch);
}
