/* SPDX-License-Identifier: MIT
 *
 * Who waits for changes: the callers of each, and those who want everything to be answered; errors
 * that nobody was told yet; what .mailfs/queue shows. Any thread, unless a function says otherwise.
 */
#include "mail/change-private.h"

#include <string.h>

typedef struct
{
  MailMailbox *mailbox; /* NULL: all */
  MailDoneFunc done;
  gpointer user_data;
} Drain;

/* --- telling
 * --------------------------------------------------------------------------------------- */

void
mail_outcome_free (gpointer data)
{
  MailOutcome *outcome = data;

  g_clear_pointer (&outcome->waiters, g_array_unref);
  g_clear_error (&outcome->error);
  g_free (outcome);
}

void
mail_outcome_tell (const MailOutcome *outcome)
{
  for (guint i = 0; outcome->waiters != NULL && i < outcome->waiters->len; i++)
    {
      const MailChangeWaiter *waiter = &g_array_index (outcome->waiters, MailChangeWaiter, i);

      waiter->done (outcome->error, waiter->user_data);
    }
}

static gboolean
tell_later (gpointer data)
{
  mail_outcome_tell (data);
  return G_SOURCE_REMOVE;
}

GSource *
mail_changes_idle (MailChanges *changes, GSourceFunc func, gpointer data, GDestroyNotify notify)
{
  GSource *source = g_idle_source_new ();

  g_source_set_priority (source, G_PRIORITY_DEFAULT);
  g_source_set_callback (source, func, data, notify);
  g_source_attach (source, changes->store->net);
  return source;
}

MailOutcome *
mail_change_take_waiters (MailChange *change, const GError *error)
{
  MailOutcome *outcome = g_new0 (MailOutcome, 1);

  outcome->waiters = g_steal_pointer (&change->waiters);
  outcome->error = error != NULL ? g_error_copy (error) : NULL;
  return outcome;
}

void
mail_changes_withdraw_locked (MailChanges *changes, MailChange *change, const GError *error)
{
  g_queue_unlink (&changes->queue, &change->link);
  mail_journal_begin (changes->journal);
  mail_journal_remove_change (changes->journal, change->id);
  mail_journal_commit (changes->journal, NULL);
  if (change->waiters != NULL)
    g_source_unref (mail_changes_idle (
        changes, tell_later, mail_change_take_waiters (change, error), mail_outcome_free));
  /* Freed without the lock: it may hold the last reference to a mailbox or file. */
  g_ptr_array_add (changes->withdrawn, change);
}

GError *
mail_changes_take_deferred (MailChanges *changes, MailMailbox *mailbox)
{
  gpointer key = GUINT_TO_POINTER (mailbox->id);

  g_mutex_lock (&changes->lock);
  GError *error = g_hash_table_lookup (changes->deferred, key);
  if (error != NULL)
    g_hash_table_steal (changes->deferred, key);
  g_mutex_unlock (&changes->lock);
  return error;
}

void
mail_changes_defer (MailChanges *changes, MailMailbox *mailbox, const GError *error)
{
  gpointer key = GUINT_TO_POINTER (mailbox->id);

  g_mutex_lock (&changes->lock);
  if (!g_hash_table_contains (changes->deferred, key))
    g_hash_table_insert (changes->deferred, key, g_error_copy (error));
  g_mutex_unlock (&changes->lock);
}

void
mail_changes_fail_drains (MailChanges *changes, const GError *error)
{
  GQueue drains;
  Drain *drain;

  g_mutex_lock (&changes->lock);
  drains = changes->drains;
  g_queue_init (&changes->drains);
  g_mutex_unlock (&changes->lock);
  while ((drain = g_queue_pop_head (&drains)) != NULL)
    {
      drain->done (error, drain->user_data);
      g_clear_pointer (&drain->mailbox, mail_mailbox_unref);
      g_free (drain);
    }
}

/* --- draining
 * -------------------------------------------------------------------------------------- */

static gboolean
is_drained_locked (MailChanges *changes, const Drain *drain)
{
  for (GList *link = changes->queue.head; link != NULL; link = link->next)
    {
      const MailChange *change = link->data;

      /* Also what came later: a change may leave another one behind, to retire what it replaced. */
      if (drain->mailbox == NULL || change->mailbox == drain->mailbox
          || change->target == drain->mailbox)
        return FALSE;
    }
  return TRUE;
}

static GError *
take_any_deferred (MailChanges *changes)
{
  GHashTableIter iter;
  gpointer value;
  GError *error = NULL;

  g_mutex_lock (&changes->lock);
  g_hash_table_iter_init (&iter, changes->deferred);
  if (g_hash_table_iter_next (&iter, NULL, &value))
    {
      error = value;
      g_hash_table_iter_steal (&iter);
    }
  g_mutex_unlock (&changes->lock);
  return error;
}

void
mail_changes_check_drains (MailChanges *changes)
{
  GQueue ready = G_QUEUE_INIT;
  GList *next;
  Drain *drain;

  g_mutex_lock (&changes->lock);
  for (GList *link = changes->drains.head; link != NULL; link = next)
    {
      next = link->next;
      if (!is_drained_locked (changes, link->data))
        continue;
      g_queue_unlink (&changes->drains, link);
      g_queue_push_tail_link (&ready, link);
    }
  g_mutex_unlock (&changes->lock);
  while ((drain = g_queue_pop_head (&ready)) != NULL)
    {
      g_autoptr (GError) error = drain->mailbox != NULL
                                     ? mail_changes_take_deferred (changes, drain->mailbox)
                                     : take_any_deferred (changes);

      drain->done (error, drain->user_data);
      g_clear_pointer (&drain->mailbox, mail_mailbox_unref);
      g_free (drain);
    }
  mail_changes_stop_if_idle (changes);
}

void
mail_store_drain (MailStore *store, MailMailbox *mailbox, MailDoneFunc done, gpointer user_data)
{
  MailChanges *changes = store->changes;
  Drain *drain = g_new0 (Drain, 1);

  drain->mailbox = mailbox != NULL ? mail_mailbox_ref (mailbox) : NULL;
  drain->done = done;
  drain->user_data = user_data;
  g_mutex_lock (&changes->lock);
  g_queue_push_tail (&changes->drains, drain);
  changes->urgent |= changes->queue.length > 0;
  g_mutex_unlock (&changes->lock);
  mail_changes_kick (changes);
}

const char *
mail_change_verb (const MailChange *change)
{
  static const char *const verbs[] = { "", "flags", "remove", "move", "copy", "append" };

  return verbs[change->kind];
}

static char *
describe (const MailChange *change, MailMailbox *mailbox, MailMailbox *target, const char *name)
{
  g_autofree char *from = mail_mailbox_display_name (mailbox);
  g_autofree char *to = target != NULL ? mail_mailbox_display_name (target) : NULL;
  GString *line = g_string_new (NULL);

  g_string_append_printf (line, "%" G_GUINT64_FORMAT " %s %s", change->id,
                          mail_change_verb (change), from);
  if (change->uid != 0)
    g_string_append_printf (line, "/%u", change->uid);
  else if (name != NULL)
    g_string_append_printf (line, "/%s", name);
  if (to != NULL)
    g_string_append_printf (line, " to %s", to);
  return g_string_free (line, FALSE);
}

GPtrArray *
mail_store_queue_lines (MailStore *store)
{
  MailChanges *changes = store->changes;
  GPtrArray *lines = g_ptr_array_new_with_free_func (g_free);
  g_autoptr (GPtrArray) copies = g_ptr_array_new_with_free_func ((GDestroyNotify)mail_change_free);
  g_autoptr (GPtrArray) names = g_ptr_array_new_with_free_func (g_free);

  g_mutex_lock (&changes->lock);
  for (GList *link = changes->queue.head; link != NULL; link = link->next)
    {
      const MailChange *change = link->data;
      MailChange *copy = g_new0 (MailChange, 1);

      copy->fd = -1;
      copy->id = change->id;
      copy->kind = change->kind;
      copy->uid = change->uid;
      copy->mailbox = mail_mailbox_ref (change->mailbox);
      copy->target = change->target != NULL ? mail_mailbox_ref (change->target) : NULL;
      g_ptr_array_add (copies, copy);
      g_ptr_array_add (names, change->staged != NULL ? g_strdup (change->staged->name) : NULL);
    }
  g_mutex_unlock (&changes->lock);
  for (guint i = 0; i < copies->len; i++)
    {
      const MailChange *copy = copies->pdata[i];

      g_ptr_array_add (lines, describe (copy, copy->mailbox, copy->target, names->pdata[i]));
    }
  return lines;
}

void
mail_changes_count (MailChanges *changes, guint *n_queued_out, guint *n_failed_out)
{
  GHashTableIter iter;
  gpointer staged;

  *n_failed_out = 0;
  g_mutex_lock (&changes->lock);
  *n_queued_out = changes->queue.length;
  g_hash_table_iter_init (&iter, changes->staged);
  while (g_hash_table_iter_next (&iter, NULL, &staged))
    *n_failed_out += ((MailStaged *)staged)->state == MAIL_STAGED_FAILED;
  g_mutex_unlock (&changes->lock);
}
