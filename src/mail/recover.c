/* SPDX-License-Identifier: MIT
 *
 * What an earlier run left in the journal: put back as it was, so that it goes on, or, where that
 * cannot be, kept where the user finds it. Before the net thread runs, or on it.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- loading
 * ------------------------------------------------------------------------------------------- */

static guint64
spool_size (MailChanges *changes, guint32 id)
{
  g_autofree char *path = mail_spool_path (changes, id, FALSE);
  struct stat st;

  return lstat (path, &st) == 0 ? (guint64)st.st_size : 0;
}

static gboolean
has_row (MailChanges *changes, guint32 id)
{
  for (guint i = 0; i < changes->lost_staged->len; i++)
    if (((MailJournalStaged *)changes->lost_staged->pdata[i])->id == id)
      return TRUE;
  return FALSE;
}

static MailStaged *
make_failed (MailChanges *changes, guint32 id, const char *name, const char *reason)
{
  g_autoptr (MailStaged) staged = mail_staged_new (changes, id);

  staged->name = g_strdup (name);
  staged->has_spool = TRUE;
  staged->size = spool_size (changes, id);
  changes->spool_bytes += staged->size;
  g_hash_table_insert (changes->staged, GUINT_TO_POINTER (id), mail_staged_ref (staged));
  mail_staged_fail (staged, reason);
  return staged;
}

/* Files without a row: leftovers, unless the journal was lost, for then they are somebody's mail.
 */
static void
scan_spool (MailChanges *changes, gboolean lost)
{
  GDir *dir = g_dir_open (changes->spool_dir, 0, NULL);
  const char *name;

  while (dir != NULL && (name = g_dir_read_name (dir)) != NULL)
    {
      char *end = NULL;
      guint64 id = g_ascii_strtoull (name, &end, 10);
      g_autofree char *path = g_build_filename (changes->spool_dir, name, NULL);

      if (id == 0 || id >= G_MAXUINT32)
        continue;
      mail_journal_set_floor (changes->journal, (guint32)id);
      if (*end != '\0')
        unlink (path); /* a wire form or half a copy: made again */
      else if (!has_row (changes, (guint32)id) && lost && spool_size (changes, (guint32)id) > 0)
        make_failed (changes, (guint32)id, name, "the journal that knew where it belongs was lost");
      else if (!has_row (changes, (guint32)id))
        unlink (path);
    }
  if (dir != NULL)
    g_dir_close (dir);
}

/* They were meant for somebody else's server. */
static void
fail_foreign (MailChanges *changes)
{
  for (guint i = 0; i < changes->lost_staged->len; i++)
    {
      MailJournalStaged *row = changes->lost_staged->pdata[i];

      if (row->state != MAIL_STAGED_DONE && row->state != MAIL_STAGED_DROPPED
          && spool_size (changes, row->id) > 0)
        make_failed (changes, row->id, row->name, "it was written for another account");
    }
  mail_journal_begin (changes->journal);
  for (guint i = 0; i < changes->lost_changes->len; i++)
    mail_journal_remove_change (changes->journal,
                                ((MailJournalChange *)changes->lost_changes->pdata[i])->id);
  /* Not before: killed in between, they are somebody else's still. */
  mail_journal_adopt (changes->journal, changes->store->options.account_key);
  mail_journal_commit (changes->journal, NULL);
  g_ptr_array_set_size (changes->lost_staged, 0);
  g_ptr_array_set_size (changes->lost_changes, 0);
}

gboolean
mail_changes_load (MailChanges *changes, gboolean lost, GError **error)
{
  changes->lost_staged = mail_journal_load_staged (changes->journal, error);
  changes->lost_changes = changes->lost_staged != NULL
                              ? mail_journal_load_changes (changes->journal, error)
                              : NULL;
  if (changes->lost_changes == NULL)
    return FALSE;
  scan_spool (changes, lost);
  if (lost)
    fail_foreign (changes);
  mail_changes_resume (changes, FALSE);
  return TRUE;
}

/* --- files
 * --------------------------------------------------------------------------------------------- */

static MailMailbox *
find_mailbox (MailStore *store, const char *name)
{
  MailMailbox *found = NULL;
  GHashTableIter iter;
  gpointer value;

  if (name == NULL)
    return NULL;
  g_rw_lock_reader_lock (&store->tree_lock);
  g_hash_table_iter_init (&iter, store->by_content);
  while (found == NULL && g_hash_table_iter_next (&iter, NULL, &value))
    if (g_strcmp0 (((MailMailbox *)value)->name, name) == 0)
      found = mail_mailbox_ref (value);
  g_rw_lock_reader_unlock (&store->tree_lock);
  return found;
}

/* The mailbox in memory, and its UIDVALIDITY; 0: unknown. */
static guint32
load_mailbox (MailMailbox *mailbox)
{
  g_mutex_lock (&mailbox->lock);
  mail_mailbox_load_locked (mailbox);
  guint32 uidvalidity = mailbox->status.uidvalidity;
  g_mutex_unlock (&mailbox->lock);
  return uidvalidity;
}

static void
fill_from_row (MailStaged *staged, const MailJournalStaged *row)
{
  staged->orphan = TRUE;
  staged->state = row->state == MAIL_STAGED_DROPPED ? MAIL_STAGED_QUEUED : row->state;
  staged->dropped = row->state == MAIL_STAGED_DROPPED;
  staged->temporary = row->temporary;
  staged->mtime = row->mtime;
  staged->flags = row->flags;
  staged->keywords = g_strdup (row->keywords);
  staged->flags_set = TRUE;
  staged->written = TRUE;
  staged->dirty = row->dirty;
  staged->has_spool = row->source == NULL;
  staged->size = staged->has_spool ? spool_size (staged->changes, row->id) : row->size;
  staged->wire_size = row->wire_size;
  memcpy (staged->digest, row->digest, MAIL_DIGEST_SIZE);
  staged->source_name = g_strdup (row->source);
  staged->source_uidvalidity = row->source_uidvalidity;
  staged->source_uid = row->source_uid;
  staged->error = g_strdup (row->error);
}

/* Where the message is whose place is taken: not always where the file is now. NULL: it is gone, or
 * none is to go. */
static MailMailbox *
find_replaced (MailChanges *changes, guint32 content_id, guint32 uidvalidity, guint32 uid)
{
  g_autoptr (MailMailbox) mailbox = uid != 0 ? mail_store_contents (changes->store, content_id)
                                             : NULL;

  return mailbox != NULL && load_mailbox (mailbox) == uidvalidity ? g_steal_pointer (&mailbox)
                                                                  : NULL;
}

static void
hide_again (MailMailbox *mailbox, guint32 content_id, guint32 uid)
{
  mail_effect_hold (mailbox, content_id, uid, FALSE);
  if (mail_effect_hide_now (mailbox, content_id, uid, NULL))
    mail_effect_hidden (mailbox, content_id, uid);
}

/* The kill came before the message that it replaces was on its way to the trash. */
static void
retire_now (MailChanges *changes, const MailJournalStaged *row)
{
  guint32 content_id = row->replaces_content;
  g_autoptr (MailMailbox) mailbox = find_replaced (changes, content_id, row->replaces_uidvalidity,
                                                   row->replaces);
  MailMessage message = { 0 };

  if (mailbox == NULL)
    return;
  if (row->in_place && mail_mailbox_find_gone (mailbox, row->replaces, &message)
      && !mail_mailbox_find (mailbox, row->replaces, &message))
    return; /* the user has moved or removed it meanwhile */
  mail_change_remove_hidden (changes, mailbox, content_id, row->replaces_uidvalidity, row->replaces,
                             NULL);
  hide_again (mailbox, content_id, row->replaces);
}

/* The index may not even have heard of the message: then the name waits for it. */
static void
name_again (MailMailbox *mailbox, guint32 uid, const char *file_name)
{
  MailStore *store = mailbox->store;
  guint32 content_id = mail_mailbox_content_id (mailbox);
  g_autofree char *name = store->naming.message_name != NULL
                              ? store->naming.message_name (file_name)
                              : g_strdup (file_name);

  g_mutex_lock (&mailbox->lock);
  gboolean there = mail_mailbox_get_locked (mailbox, uid) != NULL;
  if (!there)
    {
      MailIndexBatch *batch = mail_index_batch_new ();

      mail_mailbox_set_name_locked (mailbox, uid, name);
      mail_index_batch_put_name (batch, content_id, uid, name);
      mail_index_queue (store->index, batch);
    }
  g_mutex_unlock (&mailbox->lock);
  if (there)
    mail_effect_name (mailbox, content_id, uid, name);
}

/* It is on the server; the name it was given may not have reached the index. What was written to it
 * since then is not. */
static void
restore_done (MailChanges *changes, MailMailbox *mailbox, const MailJournalStaged *row)
{
  retire_now (changes, row);
  if (mailbox != NULL && row->name != NULL && row->uid != 0
      && load_mailbox (mailbox) == row->uidvalidity)
    name_again (mailbox, row->uid, row->name);
  mail_index_flush (changes->store->index);
  if (row->dirty && spool_size (changes, row->id) > 0)
    {
      make_failed (changes, row->id, row->name, "the program that wrote it was interrupted");
      return;
    }
  mail_journal_begin (changes->journal);
  mail_journal_remove_staged (changes->journal, row->id);
  mail_journal_commit (changes->journal, NULL);
  mail_spool_remove (changes, row->id);
}

/* A copy that is to become a file: where its source is, when that is still what it was. */
static gboolean
find_source (MailStaged *staged)
{
  MailChanges *changes = staged->changes;
  g_autoptr (MailMailbox) source = find_mailbox (changes->store, staged->source_name);
  guint32 uidvalidity = source != NULL ? load_mailbox (source) : 0;

  if (source == NULL || (uidvalidity != 0 && uidvalidity != staged->source_uidvalidity))
    return FALSE;
  guint32 content_id = mail_mailbox_content_id (source);
  g_mutex_lock (&changes->lock);
  staged->source_content = content_id;
  g_clear_pointer (&staged->source, mail_mailbox_unref);
  staged->source = g_steal_pointer (&source);
  g_mutex_unlock (&changes->lock);
  return TRUE;
}

/* Who wrote it never came to its end. */
static void
restore_local (MailStaged *staged)
{
  if (!staged->temporary || staged->mailbox == NULL)
    {
      mail_staged_interrupt (staged, NULL, "the program that wrote it was interrupted");
      return;
    }
  g_mutex_lock (&staged->changes->lock);
  mail_staged_list_locked (staged, TRUE);
  g_mutex_unlock (&staged->changes->lock);
}

/* TRUE when the row needs no more attention. */
static gboolean
restore_staged (MailChanges *changes, const MailJournalStaged *row, gboolean final)
{
  g_autoptr (MailMailbox) mailbox = find_mailbox (changes->store, row->mailbox);

  if (mailbox == NULL && !final && row->state != MAIL_STAGED_FAILED)
    return FALSE;
  if (row->state == MAIL_STAGED_DONE)
    {
      restore_done (changes, mailbox, row);
      return TRUE;
    }
  g_autoptr (MailStaged) staged = mail_staged_new (changes, row->id);
  fill_from_row (staged, row);
  g_mutex_lock (&changes->lock);
  g_hash_table_insert (changes->staged, GUINT_TO_POINTER (row->id), mail_staged_ref (staged));
  changes->spool_bytes += staged->has_spool ? staged->size : 0;
  mail_staged_place_locked (staged, mailbox, row->mailbox, row->area, row->name);
  g_mutex_unlock (&changes->lock);
  g_autoptr (MailMailbox) replaced = find_replaced (changes, row->replaces_content,
                                                    row->replaces_uidvalidity, row->replaces);
  if (replaced != NULL)
    {
      g_mutex_lock (&changes->lock);
      if (row->in_place)
        mail_staged_stand_for_locked (staged, row->replaces_content, row->replaces_uidvalidity,
                                      row->replaces);
      staged->replaces_content = row->replaces_content;
      staged->replaces_uidvalidity = row->replaces_uidvalidity;
      staged->replaces_uid = row->replaces;
      g_mutex_unlock (&changes->lock);
      if (!row->in_place && row->state != MAIL_STAGED_FAILED)
        hide_again (replaced, row->replaces_content, row->replaces);
    }
  if (staged->state == MAIL_STAGED_LOCAL)
    restore_local (staged);
  else if (staged->state == MAIL_STAGED_QUEUED && mailbox == NULL)
    mail_staged_fail (staged, "its mailbox no longer exists");
  return TRUE;
}

/* --- changes
 * ------------------------------------------------------------------------------------------- */

static void
forget_change (MailChanges *changes, const MailJournalChange *row, const char *reason)
{
  g_mutex_lock (&changes->lock);
  MailStaged *staged = g_hash_table_lookup (changes->staged, GUINT_TO_POINTER (row->staged));
  if (staged != NULL)
    mail_staged_ref (staged);
  mail_journal_begin (changes->journal);
  mail_journal_remove_change (changes->journal, row->id);
  mail_journal_commit (changes->journal, NULL);
  g_mutex_unlock (&changes->lock);
  if (reason != NULL && staged != NULL && staged->state == MAIL_STAGED_QUEUED)
    mail_staged_fail (staged, reason);
  else if (reason != NULL)
    mail_log_warning ("a change of %s/%u from an earlier run was given up: %s",
                      row->mailbox != NULL ? row->mailbox : "?", row->uid, reason);
  if (staged != NULL)
    mail_staged_unref (staged);
}

static MailChange *
from_row (MailChanges *changes, const MailJournalChange *row, MailMailbox *mailbox,
          MailMailbox *target)
{
  MailChange *change = mail_change_new (changes, row->kind, mailbox);

  change->id = row->id;
  change->step = row->step;
  /* What may have been sent was tried: the server may be at it still. */
  change->n_tries = row->step == MAIL_STEP_SENT ? MAX (row->n_tries, 1) : row->n_tries;
  if (row->kind != MAIL_CHANGE_APPEND)
    change->uidvalidity = row->uidvalidity;
  change->uid = row->uid;
  change->bound = row->bound;
  change->target_uidvalidity = row->target_uidvalidity;
  change->new_uid = row->new_uid;
  change->add = row->add;
  change->remove = row->remove;
  change->add_keywords = g_strdup (row->add_keywords);
  change->remove_keywords = g_strdup (row->remove_keywords);
  g_autoptr (MailMailbox) replaced = find_replaced (changes, row->replaces_content,
                                                    row->replaces_uidvalidity, row->replaces);
  if (replaced != NULL)
    {
      change->replaces = row->replaces;
      change->replaces_uidvalidity = row->replaces_uidvalidity;
      change->replaces_content = row->replaces_content;
    }
  if (target != NULL)
    mail_change_set_target (change, target);
  return change;
}

/* What readers saw before is what they see again. */
static void
show_again (MailChanges *changes, MailChange *change, const MailJournalChange *row)
{
  MailMailbox *mailbox = change->mailbox;
  MailMessage message = { .uid = change->uid };

  if (change->kind == MAIL_CHANGE_FLAGS && mail_mailbox_find_gone (mailbox, change->uid, &message))
    {
      g_mutex_lock (&mailbox->lock);
      mail_pending_add_locked (mailbox, &message, change);
      g_mutex_unlock (&mailbox->lock);
      mail_effect_flags (mailbox, change->content_id, change->uid);
    }
  if (change->kind != MAIL_CHANGE_REMOVE && change->kind != MAIL_CHANGE_MOVE)
    return;
  hide_again (mailbox, change->content_id, change->uid);
  if (change->kind != MAIL_CHANGE_MOVE)
    return;
  g_autoptr (MailMailbox) replaced = find_replaced (changes, change->replaces_content,
                                                    change->replaces_uidvalidity, change->replaces);
  if (replaced != NULL)
    hide_again (replaced, change->replaces_content, change->replaces);
  mail_mailbox_find_gone (mailbox, change->uid, &message);
  gboolean dropped = row->area == MAIL_AREA_DROPPED;
  change->staged = mail_change_placeholder (changes, change, &message, dropped ? 0 : row->area,
                                            row->name);
  g_mutex_lock (&changes->lock);
  change->staged->orphan = TRUE;
  if (dropped)
    {
      change->staged->dropped = TRUE;
      mail_staged_list_locked (change->staged, FALSE);
    }
  g_mutex_unlock (&changes->lock);
}

static gboolean
attach_file (MailChanges *changes, MailChange *change, guint32 id)
{
  g_autoptr (MailStaged) staged = mail_stage_find (changes->store, id);
  gboolean good = FALSE;

  /* What was to be sent has been written over, and who did so never came to its end. */
  if (staged != NULL && staged->dirty && change->step == MAIL_STEP_NEW)
    mail_staged_fail (staged, "the program that wrote it was interrupted");
  else if (staged != NULL && staged->source_name != NULL && !find_source (staged))
    mail_staged_fail (staged, "what it was a copy of is no longer there");
  g_mutex_lock (&changes->lock);
  if (staged != NULL && staged->state == MAIL_STAGED_QUEUED)
    {
      good = TRUE;
      change->staged = mail_staged_ref (staged);
      staged->change = change;
      change->in_place = staged->in_place;
      /* As it was sent: what the search for it goes by. */
      change->sent_flags = staged->flags;
      change->sent_keywords = g_strdup (staged->keywords);
      if (!staged->dropped && !staged->in_place)
        mail_staged_list_locked (staged, TRUE);
    }
  g_mutex_unlock (&changes->lock);
  return good;
}

/* Its file has been committed once more: it was answered, only this row had not gone yet. */
static gboolean
is_superseded (MailChanges *changes, const MailJournalChange *row)
{
  for (guint i = 0; i < changes->lost_changes->len; i++)
    {
      const MailJournalChange *other = changes->lost_changes->pdata[i];

      if (other->kind == MAIL_CHANGE_APPEND && other->staged == row->staged && other->id > row->id)
        return TRUE;
    }
  return FALSE;
}

static gboolean
restore_change (MailChanges *changes, const MailJournalChange *row, gboolean final)
{
  MailStore *store = changes->store;
  g_autoptr (MailMailbox) mailbox = find_mailbox (store, row->mailbox);
  g_autoptr (MailMailbox) target = find_mailbox (store, row->target);
  gboolean file = row->kind == MAIL_CHANGE_APPEND || row->kind == MAIL_CHANGE_COPY;
  gboolean whole = mailbox != NULL && (row->target == NULL || target != NULL);

  if (row->kind < MAIL_CHANGE_FLAGS || row->kind > MAIL_CHANGE_APPEND)
    {
      forget_change (changes, row, "it is of a kind this version does not know");
      return TRUE;
    }
  if (file && is_superseded (changes, row))
    {
      forget_change (changes, row, NULL);
      return TRUE;
    }
  if (!whole && !final)
    return FALSE;
  if (!whole)
    {
      forget_change (changes, row, "its mailbox no longer exists");
      return TRUE;
    }
  guint32 uidvalidity = load_mailbox (mailbox);
  if (target != NULL)
    load_mailbox (target);
  if (row->uid != 0 && uidvalidity != 0 && uidvalidity != row->uidvalidity)
    {
      forget_change (changes, row, "the mailbox was numbered anew");
      return TRUE;
    }
  MailChange *change = from_row (changes, row, mailbox, target);
  if (file && !attach_file (changes, change, row->staged))
    {
      mail_change_free (change);
      forget_change (changes, row, NULL); /* it was done, only this row had not gone yet */
      return TRUE;
    }
  if (!file)
    show_again (changes, change, row);
  g_mutex_lock (&changes->lock);
  mail_changes_push_locked (changes, change);
  g_mutex_unlock (&changes->lock);
  return TRUE;
}

/* A file that was on its way, and no change that sends it: it was committed, and the rest was lost.
 */
static void
fail_unattached (MailChanges *changes)
{
  g_autoptr (GPtrArray) stray = g_ptr_array_new_with_free_func ((GDestroyNotify)mail_staged_unref);
  GHashTableIter iter;
  gpointer value;

  g_mutex_lock (&changes->lock);
  g_hash_table_iter_init (&iter, changes->staged);
  while (g_hash_table_iter_next (&iter, NULL, &value))
    if (((MailStaged *)value)->state == MAIL_STAGED_QUEUED && ((MailStaged *)value)->change == NULL)
      g_ptr_array_add (stray, mail_staged_ref (value));
  g_mutex_unlock (&changes->lock);
  for (guint i = 0; i < stray->len; i++)
    mail_staged_fail (stray->pdata[i], "the journal does not say what was to become of it");
}

void
mail_changes_resume (MailChanges *changes, gboolean final)
{
  if (changes->lost_staged->len == 0 && changes->lost_changes->len == 0)
    return;
  for (guint i = 0; i < changes->lost_staged->len;)
    if (restore_staged (changes, changes->lost_staged->pdata[i], final))
      g_ptr_array_remove_index (changes->lost_staged, i);
    else
      i++;
  for (guint i = 0; i < changes->lost_changes->len;)
    if (restore_change (changes, changes->lost_changes->pdata[i], final))
      g_ptr_array_remove_index (changes->lost_changes, i);
    else
      i++;
  if (changes->lost_changes->len == 0)
    fail_unattached (changes);
}

/* --- sweeping
 * ------------------------------------------------------------------------------------------ */

typedef struct
{
  MailJob job;
  MailChanges *changes;
  GArray *ids;
} Sweep;

static gboolean
swept (gpointer data)
{
  MailChanges *changes = data;

  changes->sweeping = FALSE;
  mail_changes_sweep (changes);
  mail_changes_stop_if_idle (changes);
  return G_SOURCE_REMOVE;
}

static void
remove_rows (MailChanges *changes, const GArray *ids)
{
  g_mutex_lock (&changes->lock);
  mail_journal_begin (changes->journal);
  for (guint i = 0; i < ids->len; i++)
    {
      guint32 id = g_array_index (ids, guint32, i);
      const MailStaged *staged = g_hash_table_lookup (changes->staged, GUINT_TO_POINTER (id));

      if (staged == NULL || staged->state == MAIL_STAGED_DONE)
        mail_journal_remove_staged (changes->journal, id);
    }
  mail_journal_commit (changes->journal, NULL);
  g_mutex_unlock (&changes->lock);
}

static void
sweep (gpointer data)
{
  Sweep *work = data;
  MailChanges *changes = work->changes;

  mail_index_flush (changes->store->index);
  remove_rows (changes, work->ids);
  g_array_unref (work->ids);
  g_free (work);
  mail_store_invoke (changes->store, swept, changes);
}

void
mail_changes_sweep (MailChanges *changes)
{
  if (changes->sweeping)
    return;
  g_mutex_lock (&changes->lock);
  g_autoptr (GArray) ids = changes->done_rows;
  changes->done_rows = g_array_new (FALSE, FALSE, sizeof (guint32));
  g_mutex_unlock (&changes->lock);
  if (ids->len == 0)
    return;
  if (changes->stopping)
    {
      mail_index_flush (changes->store->index);
      remove_rows (changes, ids);
      return;
    }
  Sweep *work = g_new0 (Sweep, 1);
  work->job.run = sweep;
  work->changes = changes;
  work->ids = g_steal_pointer (&ids);
  changes->sweeping = TRUE;
  g_thread_pool_push (changes->worker, work, NULL);
}
