/* SPDX-License-Identifier: MIT
 *
 * The door through which changes of messages come in: what can be known at once is refused at once,
 * the rest is written to the journal, shown to readers and queued. Any thread.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

/* --- life
 * -------------------------------------------------------------------------------------------- */

static void
work (gpointer data, gpointer unused)
{
  ((MailJob *)data)->run (data);
}

static void
error_free (gpointer error)
{
  g_error_free (error);
}

MailChanges *
mail_changes_new (MailStore *store, GError **error)
{
  MailChanges *changes = g_new0 (MailChanges, 1);
  g_autofree char *path = g_build_filename (store->options.dir, "journal.sqlite", NULL);
  gboolean lost = FALSE;
  struct stat st;

  changes->store = store;
  changes->spool_dir = g_build_filename (store->options.dir, "spool", NULL);
  g_mutex_init (&changes->lock);
  mail_stage_init (changes);
  changes->moved = g_hash_table_new_full (g_int64_hash, g_int64_equal, g_free, g_free);
  changes->deferred = g_hash_table_new_full (NULL, NULL, NULL, error_free);
  changes->running = g_ptr_array_new ();
  changes->withdrawn = g_ptr_array_new_with_free_func ((GDestroyNotify)mail_change_free);
  changes->done_rows = g_array_new (FALSE, FALSE, sizeof (guint32));
  changes->worker = g_thread_pool_new (work, NULL, 1, FALSE, NULL);
  store->changes = changes;
  /* Of what is in the spool nothing is known then. */
  gboolean missing = stat (path, &st) < 0 || st.st_size == 0;
  if (mkdir (changes->spool_dir, 0700) < 0 && errno != EEXIST)
    mail_set_errno (error, errno, changes->spool_dir);
  else if ((changes->journal = mail_journal_open (path, store->options.account_key, &lost, error))
               != NULL
           && mail_changes_load (changes, lost || missing, error))
    return changes;
  mail_changes_free (changes);
  store->changes = NULL;
  return NULL;
}

static void
free_queue (MailChanges *changes)
{
  GList *link;

  while ((link = g_queue_pop_head_link (&changes->queue)) != NULL)
    mail_change_free (link->data);
}

void
mail_changes_free (MailChanges *changes)
{
  g_thread_pool_free (changes->worker, FALSE, TRUE);
  if (changes->kick != NULL)
    g_source_destroy (changes->kick);
  g_clear_pointer (&changes->kick, g_source_unref);
  if (changes->kick_soon != NULL)
    g_source_destroy (changes->kick_soon);
  g_clear_pointer (&changes->kick_soon, g_source_unref);
  if (changes->retry != NULL)
    g_source_destroy (changes->retry);
  g_clear_pointer (&changes->retry, g_source_unref);
  free_queue (changes);
  g_ptr_array_unref (changes->withdrawn);
  g_hash_table_unref (changes->dirs);
  g_hash_table_unref (changes->by_replaced);
  g_hash_table_unref (changes->by_source);
  g_hash_table_unref (changes->staged);
  g_hash_table_unref (changes->moved);
  g_hash_table_unref (changes->deferred);
  g_ptr_array_unref (changes->running);
  g_array_unref (changes->done_rows);
  g_clear_pointer (&changes->lost_changes, g_ptr_array_unref);
  g_clear_pointer (&changes->lost_staged, g_ptr_array_unref);
  g_clear_pointer (&changes->journal, mail_journal_close);
  g_mutex_clear (&changes->lock);
  g_free (changes->spool_dir);
  g_free (changes);
}

void
mail_changes_online (MailChanges *changes)
{
  changes->ready = TRUE;
  mail_changes_kick (changes);
}

void
mail_changes_stop (MailChanges *changes, MailDoneFunc done, gpointer user_data)
{
  changes->stopped = done;
  changes->stopped_data = user_data;
  changes->stopping = TRUE;
  changes->giving_up = !changes->ready;
  g_mutex_lock (&changes->lock);
  changes->urgent = TRUE;
  g_mutex_unlock (&changes->lock);
  mail_changes_kick (changes);
}

void
mail_changes_stop_if_idle (MailChanges *changes)
{
  g_autoptr (GError) error = NULL;

  if (changes->stopped == NULL || changes->running->len > 0 || changes->sweeping)
    return;
  g_mutex_lock (&changes->lock);
  guint n = changes->queue.length;
  g_mutex_unlock (&changes->lock);
  if (n > 0 && !changes->giving_up)
    return;
  MailDoneFunc done = g_steal_pointer (&changes->stopped);
  changes->ready = FALSE;
  mail_changes_sweep (changes);
  if (n > 0)
    {
      error = g_error_new (
          MAIL_ERROR, MAIL_ERROR_UNREACHABLE,
          "%u change%s not on the server yet; what is queued is sent at the next mount", n,
          n == 1 ? " is" : "s are");
      mail_changes_give_up_waiting (changes, error);
      mail_changes_fail_drains (changes, error);
      mail_stage_give_up_waiting (changes, error);
    }
  done (error, changes->stopped_data);
}

/* --- what can be known at once
 * ------------------------------------------------------------------------- */

gboolean
mail_changes_allowed (MailMailbox *mailbox, guint caps, const char *rights, GError **error)
{
  MailStore *store = mailbox->store;
  guint have = mail_store_caps (store);

  if (store->options.read_only)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_READ_ONLY, "mounted read-only");
      return FALSE;
    }
  if (store->options.offline)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_UNREACHABLE, "offline");
      return FALSE;
    }
  if (have != 0 && (have & caps) != caps)
    {
      g_set_error (error, MAIL_ERROR,
                   caps == MAIL_CAP_FLAGS ? MAIL_ERROR_UNSUPPORTED : MAIL_ERROR_CANNOT,
                   "the protocol cannot do this");
      return FALSE;
    }
  g_mutex_lock (&mailbox->lock);
  /* A mailbox may be removed and renamed whatever its messages are. */
  gboolean read_only = mailbox->server_read_only && caps != MAIL_CAP_FOLDERS;
  gboolean denied = mailbox->rights != NULL && rights != NULL
                    && strpbrk (mailbox->rights, rights) == NULL;
  g_mutex_unlock (&mailbox->lock);
  if (denied)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_PERMISSION, "the server does not permit this");
  else if (read_only)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_READ_ONLY, "the server has this mailbox read-only");
  return !denied && !read_only;
}

static void
tell (MailDoneFunc done, gpointer user_data, const GError *error)
{
  if (done != NULL)
    done (error, user_data);
}

/* Also: what failed before and nobody was told. Nobody who waits is told by that either. */
static gboolean
may_change (MailMailbox *mailbox, guint caps, const char *rights, MailDoneFunc done,
            gpointer user_data)
{
  g_autoptr (GError) error = NULL;

  if (mail_changes_allowed (mailbox, caps, rights, &error) && done != NULL)
    error = mail_changes_take_deferred (mailbox->store->changes, mailbox);
  if (error == NULL)
    return TRUE;
  tell (done, user_data, error);
  return FALSE;
}

static void
no_such_message (MailDoneFunc done, gpointer user_data)
{
  g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_GONE, "no such message");

  tell (done, user_data, error);
}

/* Together with the row of a file that is done, whose last duty passes to this change. */
static gboolean
journal (MailChanges *changes, MailChange *change, MailStaged *instead, GError **error)
{
  g_mutex_lock (&changes->lock);
  mail_journal_begin (changes->journal);
  mail_change_journal_locked (change);
  if (instead != NULL && instead->state == MAIL_STAGED_DONE
      && instead->replaces_content == change->content_id && instead->replaces_uid == change->uid)
    {
      instead->retired = TRUE;
      mail_staged_journal_locked (instead);
    }
  gboolean good = mail_journal_commit (changes->journal, error);
  g_mutex_unlock (&changes->lock);
  mail_failpoint ("change-journaled");
  return good;
}

/* --- flags
 * --------------------------------------------------------------------------------------------- */

gboolean
mail_keywords_settable (MailMailbox *mailbox, guint8 flags, const char *keywords, GError **error)
{
  g_auto (GStrv) words = g_strsplit (keywords != NULL ? keywords : "", " ", -1);
  gboolean good;

  g_mutex_lock (&mailbox->lock);
  good = (flags & ~mailbox->settable_flags) == 0;
  for (guint i = 0; good && !mailbox->any_keyword && words[i] != NULL; i++)
    good = words[i][0] == '\0'
           || mail_keywords_contains (mailbox->settable_keywords, words[i], strlen (words[i]));
  g_mutex_unlock (&mailbox->lock);
  if (!good)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_UNSUPPORTED,
                 "the mailbox cannot keep one of these flags");
  return good;
}

void
mail_change_flags (MailStore *store, MailMailbox *mailbox, guint32 uid, guint8 flags,
                   const char *keywords, MailDoneFunc done, gpointer user_data)
{
  MailChanges *changes = store->changes;
  g_autofree char *add = NULL, *remove = NULL;
  g_autoptr (GError) error = NULL;
  MailMessage message;

  if (!may_change (mailbox, MAIL_CAP_FLAGS, "wst", done, user_data))
    return;
  if (!mail_mailbox_find (mailbox, uid, &message))
    {
      no_such_message (done, user_data);
      return;
    }
  mail_keywords_difference (mail_store_keywords (store, message.keywords), keywords, &add, &remove);
  guint8 plus = flags & ~message.flags, minus = message.flags & ~flags;
  if (plus == 0 && minus == 0 && add[0] == '\0' && remove[0] == '\0')
    {
      tell (done, user_data, NULL);
      return;
    }
  g_autofree char *both = g_strconcat (add, " ", remove, NULL);
  if (!mail_keywords_settable (mailbox, plus | minus, both, &error))
    {
      tell (done, user_data, error);
      return;
    }
  MailChange *change = mail_change_new (changes, MAIL_CHANGE_FLAGS, mailbox);
  change->uid = uid;
  change->add = plus;
  change->remove = minus;
  change->add_keywords = add[0] != '\0' ? g_steal_pointer (&add) : NULL;
  change->remove_keywords = remove[0] != '\0' ? g_steal_pointer (&remove) : NULL;
  if (!journal (changes, change, NULL, &error))
    {
      mail_change_free (change);
      tell (done, user_data, error);
      return;
    }
  g_mutex_lock (&mailbox->lock);
  mail_pending_add_locked (mailbox, &message, change);
  g_mutex_unlock (&mailbox->lock);
  mail_effect_flags (mailbox, change->content_id, uid);
  mail_changes_add (changes, change, FALSE, done, user_data);
}

void
mail_change_name (MailStore *store, MailMailbox *mailbox, guint32 uid, const char *name)
{
  mail_effect_name (mailbox, mail_mailbox_content_id (mailbox), uid, name);
}

void
mail_change_marks (MailStore *store, MailMailbox *mailbox, guint32 uid, guint8 flags,
                   const char *keywords)
{
  mail_effect_marks (mailbox, mail_mailbox_content_id (mailbox), uid, flags,
                     mail_index_keywords_id (store->index, keywords));
}

void
mail_change_old (MailStore *store, MailMailbox *mailbox, guint32 uid)
{
  mail_effect_old (mailbox, mail_mailbox_content_id (mailbox), uid);
}

/* --- removing
 * ------------------------------------------------------------------------------------------ */

/* What was being written in its place goes with it. */
static void
drop_replacement (MailStore *store, guint32 content_id, guint32 uid)
{
  g_autoptr (MailStaged) staged = mail_stage_find_replacement (store, content_id, uid);
  MailStagedInfo info;

  if (staged == NULL)
    return;
  mail_staged_info (staged, &info);
  if (info.state == MAIL_STAGED_LOCAL || info.state == MAIL_STAGED_QUEUED)
    mail_staged_drop (staged, NULL, NULL);
}

/* A message that is stored here and nowhere else: no server is asked, so there may be none. */
static gboolean
remove_stored (MailStore *store, MailMailbox *mailbox, guint32 uid, MailDoneFunc done,
               gpointer user_data)
{
  guint32 content_id = mail_mailbox_content_id (mailbox);
  g_autoptr (GError) error = NULL;

  if (store->options.read_only || !mail_mover_is_only_here (store, mailbox, uid)
      || !mail_effect_hide_now (mailbox, content_id, uid, NULL))
    return FALSE;
  if (mail_mover_forget (store, mailbox, uid, &error))
    mail_effect_hidden (mailbox, content_id, uid);
  else
    mail_effect_unhide (mailbox, content_id, uid, FALSE);
  tell (done, user_data, error);
  return TRUE;
}

void
mail_change_remove (MailStore *store, MailMailbox *mailbox, guint32 uid, MailDoneFunc done,
                    gpointer user_data)
{
  MailChanges *changes = store->changes;
  g_autoptr (GError) error = NULL;

  if (remove_stored (store, mailbox, uid, done, user_data))
    return;
  if (!may_change (mailbox, 0, "tde", done, user_data))
    return;
  MailChange *change = mail_change_new (changes, MAIL_CHANGE_REMOVE, mailbox);
  change->uid = uid;
  if (!mail_effect_hide_now (mailbox, change->content_id, uid, NULL))
    {
      mail_change_free (change);
      no_such_message (done, user_data);
      return;
    }
  if (!journal (changes, change, NULL, &error))
    {
      mail_effect_unhide (mailbox, change->content_id, uid, FALSE);
      mail_change_free (change);
      tell (done, user_data, error);
      return;
    }
  mail_effect_hidden (mailbox, change->content_id, uid);
  drop_replacement (store, change->content_id, uid);
  mail_changes_add (changes, change, FALSE, done, user_data);
}

void
mail_change_remove_hidden (MailChanges *changes, MailMailbox *mailbox, guint32 content_id,
                           guint32 uidvalidity, guint32 uid, MailStaged *instead)
{
  MailChange *change = mail_change_new (changes, MAIL_CHANGE_REMOVE, mailbox);
  g_autoptr (GError) error = NULL;

  change->content_id = content_id;
  change->uidvalidity = uidvalidity;
  change->uid = uid;
  mail_effect_hold (mailbox, content_id, uid, FALSE);
  if (!journal (changes, change, instead, &error))
    mail_log_warning ("%s", error->message); /* it is sent all the same */
  mail_changes_add (changes, change, FALSE, NULL, NULL);
}

/* --- moving
 * -------------------------------------------------------------------------------------------- */

MailStaged *
mail_change_placeholder (MailChanges *changes, MailChange *change, const MailMessage *message,
                         guint area, const char *name)
{
  MailStaged *staged = mail_staged_new (changes, mail_journal_new_staged_id (changes->journal));

  staged->placeholder = TRUE;
  staged->state = MAIL_STAGED_QUEUED;
  staged->size = message->size;
  staged->mtime = message->internaldate;
  staged->flags = message->flags;
  staged->keywords = g_strdup (mail_store_keywords (changes->store, message->keywords));
  staged->source = mail_mailbox_ref (change->mailbox);
  staged->source_name = g_strdup (change->mailbox_name);
  staged->source_uidvalidity = change->uidvalidity;
  staged->replaces_content = change->replaces_content;
  staged->replaces_uidvalidity = change->replaces_uidvalidity;
  staged->replaces_uid = change->replaces;
  staged->change = change;
  g_mutex_lock (&changes->lock);
  mail_staged_moves_locked (staged, change->content_id, change->uid);
  g_hash_table_insert (changes->staged, GUINT_TO_POINTER (staged->id), mail_staged_ref (staged));
  mail_staged_place_locked (staged, change->target, change->target_name, area, name);
  mail_staged_list_locked (staged, TRUE);
  g_mutex_unlock (&changes->lock);
  return staged;
}

void
mail_change_move (MailStore *store, MailMailbox *mailbox, guint32 uid, MailMailbox *target,
                  guint area, const char *name, guint32 replaces, MailStaged *over,
                  MailDoneFunc done, gpointer user_data)
{
  MailChanges *changes = store->changes;
  g_autoptr (GError) error = NULL;
  MailMessage message;

  if (!may_change (mailbox, MAIL_CAP_FOLDERS | MAIL_CAP_FLAGS, "tde", done, user_data)
      || !may_change (target, MAIL_CAP_FOLDERS | MAIL_CAP_APPEND, "i", done, user_data))
    return;
  MailChange *change = mail_change_new (changes, MAIL_CHANGE_MOVE, mailbox);
  mail_change_set_target (change, target);
  change->uid = uid;
  if (!mail_effect_hide_now (mailbox, change->content_id, uid, &message))
    {
      mail_change_free (change);
      no_such_message (done, user_data);
      return;
    }
  change->replaces_content = mail_mailbox_content_id (target);
  if (replaces != 0 && mail_effect_hide_now (target, change->replaces_content, replaces, NULL))
    {
      change->replaces = replaces;
      change->replaces_uidvalidity = mail_effect_uidvalidity (target);
    }
  change->staged = mail_change_placeholder (changes, change, &message, area, name);
  if (!journal (changes, change, NULL, &error))
    {
      mail_effect_unhide (mailbox, change->content_id, uid, FALSE);
      if (change->replaces != 0)
        mail_effect_unhide (target, change->replaces_content, change->replaces, FALSE);
      g_mutex_lock (&changes->lock);
      change->staged->change = NULL;
      mail_staged_discard_locked (change->staged, MAIL_STAGED_DROPPED);
      g_mutex_unlock (&changes->lock);
      mail_change_free (change);
      tell (done, user_data, error);
      return;
    }
  mail_effect_hidden (mailbox, change->content_id, uid);
  if (change->replaces != 0)
    mail_effect_hidden (target, change->replaces_content, change->replaces);
  mail_effect_directory (target);
  if (over != NULL)
    mail_staged_drop (over, NULL, NULL);
  mail_changes_add (changes, change, FALSE, done, user_data);
}
