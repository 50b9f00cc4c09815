/* SPDX-License-Identifier: MIT
 *
 * What readers see of changes before and after the server has answered: messages hidden, shown
 * again, flagged, named, and those that arrive in a mailbox because we put them there. In memory at
 * once, in the index behind, told to the kernel by events. Any thread; no lock is held by the
 * caller.
 */
#include "mail/change-private.h"

#include <string.h>

/* What one step changed in a mailbox, told when the lock is gone. */
typedef struct
{
  MailMailbox *mailbox;
  guint32 content_id;
  MailMessage old, now;
  gboolean has_old, has_now;
  gboolean takes_over; /* the name was another message's until now, unknown to the kernel */
  char *name;
} Step;

static guint32
changed_now (void)
{
  return (guint32)(g_get_real_time () / G_USEC_PER_SEC - MAIL_CHANGED_EPOCH);
}

static void
put_message (const Step *step)
{
  MailIndexBatch *batch = mail_index_batch_new ();

  mail_index_batch_put (batch, step->content_id, step->has_now ? &step->now : &step->old, 1);
  mail_index_queue (step->mailbox->store->index, batch);
}

static gboolean
is_visible (const MailMessage *message)
{
  return (message->local & MAIL_LOCAL_HIDDEN) == 0;
}

static void
tell_directory (MailMailbox *mailbox)
{
  if (mailbox->store->events.directory != NULL)
    mailbox->store->events.directory (mailbox->store->events_data, mailbox);
}

static void
tell (Step *step, gboolean entries)
{
  const MailStoreEvents *events = &step->mailbox->store->events;
  gpointer data = step->mailbox->store->events_data;
  gboolean was = step->has_old && is_visible (&step->old);
  gboolean is = step->has_now && is_visible (&step->now);

  if (events->message != NULL && (was || is))
    events->message (data, step->mailbox, was ? &step->old : NULL, is ? &step->now : NULL,
                     was || step->takes_over ? step->name : NULL);
  if (entries)
    tell_directory (step->mailbox);
  g_free (step->name);
}

void
mail_effect_directory (MailMailbox *mailbox)
{
  g_mutex_lock (&mailbox->lock);
  mailbox->generation++;
  mailbox->mtime_given = FALSE;
  mail_mailbox_touch_locked (mailbox);
  g_mutex_unlock (&mailbox->lock);
  tell_directory (mailbox);
}

guint32
mail_effect_uidvalidity (MailMailbox *mailbox)
{
  g_mutex_lock (&mailbox->lock);
  guint32 uidvalidity = mailbox->status.uidvalidity;
  g_mutex_unlock (&mailbox->lock);
  return uidvalidity;
}

guint32
mail_effect_bound (MailMailbox *mailbox)
{
  g_mutex_lock (&mailbox->lock);
  guint32 bound = MAX (mailbox->status.uidnext, 1u);
  if (mailbox->messages != NULL && mailbox->messages->len > 0)
    bound = MAX (
        bound, g_array_index (mailbox->messages, MailMessage, mailbox->messages->len - 1).uid + 1);
  g_mutex_unlock (&mailbox->lock);
  return bound;
}

/* The content id changes only with this lock held (and the tree's). */
static MailMessage *
get_locked (MailMailbox *mailbox, guint32 content_id, guint32 uid)
{
  return mailbox->content_id == content_id ? mail_mailbox_get_locked (mailbox, uid) : NULL;
}

static void
changed_locked (Step *step, const MailMessage *old, const MailMessage *now)
{
  step->old = *old;
  step->now = *now;
  step->has_old = step->has_now = TRUE;
  step->name = g_strdup (mail_mailbox_name_locked (step->mailbox, now->uid));
}

/* What the listing of a mailbox shows: flags only where they are part of names. */
static void
flags_changed_locked (MailMailbox *mailbox)
{
  mailbox->generation++;
  if (mailbox->store->naming.flags_in_names)
    mail_mailbox_touch_locked (mailbox);
}

static void
put_and_tell (Step *step, gboolean entries)
{
  if (!step->has_now)
    return;
  put_message (step);
  tell (step, entries);
}

/* --- hidden ------------------------------------------------------------------------------------
 */

static void
hold_locked (MailMailbox *mailbox, guint32 uid, guint answered)
{
  if (mailbox->hiding == NULL)
    mailbox->hiding = g_hash_table_new (NULL, NULL);
  g_hash_table_insert (mailbox->hiding, GUINT_TO_POINTER (uid), GUINT_TO_POINTER (answered));
}

void
mail_effect_hold (MailMailbox *mailbox, guint32 content_id, guint32 uid, gboolean answered)
{
  g_mutex_lock (&mailbox->lock);
  if (mailbox->content_id == content_id)
    hold_locked (mailbox, uid, answered ? mailbox->sync_started + 1 : 0);
  g_mutex_unlock (&mailbox->lock);
}

gboolean
mail_effect_hide_now (MailMailbox *mailbox, guint32 content_id, guint32 uid, MailMessage *was_out)
{
  gboolean found = FALSE;

  g_mutex_lock (&mailbox->lock);
  MailMessage *message = get_locked (mailbox, content_id, uid);
  if (message != NULL && is_visible (message))
    {
      found = TRUE;
      if (was_out != NULL)
        *was_out = *message;
      message->local |= MAIL_LOCAL_HIDDEN;
      hold_locked (mailbox, uid, 0);
    }
  g_mutex_unlock (&mailbox->lock);
  return found;
}

void
mail_effect_hidden (MailMailbox *mailbox, guint32 content_id, guint32 uid)
{
  Step step = { .mailbox = mailbox, .content_id = content_id };

  g_mutex_lock (&mailbox->lock);
  const MailMessage *message = get_locked (mailbox, content_id, uid);
  if (message != NULL)
    {
      step.now = *message;
      step.has_now = TRUE;
      mailbox->generation++;
      mail_mailbox_touch_locked (mailbox);
    }
  g_mutex_unlock (&mailbox->lock);
  if (!step.has_now)
    return;
  put_message (&step);
  tell_directory (mailbox); /* the name: whoever asked for this has taken it away in the kernel */
}

void
mail_effect_unhide (MailMailbox *mailbox, guint32 content_id, guint32 uid, gboolean heard)
{
  Step step = { .mailbox = mailbox, .content_id = content_id };

  g_mutex_lock (&mailbox->lock);
  MailMessage *message = get_locked (mailbox, content_id, uid);
  /* Also when no listing has brought it yet. */
  if (mailbox->content_id == content_id && mailbox->hiding != NULL)
    g_hash_table_remove (mailbox->hiding, GUINT_TO_POINTER (uid));
  if (message != NULL && !is_visible (message))
    {
      message->local &= ~MAIL_LOCAL_HIDDEN;
      step.now = *message;
      step.has_now = TRUE;
      mailbox->generation++;
      mail_mailbox_touch_locked (mailbox);
    }
  g_mutex_unlock (&mailbox->lock);
  if (heard)
    put_and_tell (&step, TRUE);
}

void
mail_effect_show_again (MailStore *store, guint32 content_id, guint32 uid)
{
  g_autoptr (MailMailbox) mailbox = uid != 0 ? mail_store_contents (store, content_id) : NULL;

  if (mailbox != NULL)
    mail_effect_unhide (mailbox, content_id, uid, TRUE);
}

/* --- flags and names ---------------------------------------------------------------------------
 */

void
mail_effect_flags (MailMailbox *mailbox, guint32 content_id, guint32 uid)
{
  Step step = { .mailbox = mailbox, .content_id = content_id };
  gboolean names = mailbox->store->naming.flags_in_names;
  guint32 keywords;
  guint8 flags;

  g_mutex_lock (&mailbox->lock);
  MailMessage *message = get_locked (mailbox, content_id, uid);
  if (message != NULL && mail_pending_show_locked (mailbox, uid, &flags, &keywords)
      && (message->flags != flags || message->keywords != keywords))
    {
      MailMessage old = *message;
      message->flags = flags;
      message->keywords = keywords;
      message->changed = changed_now ();
      mail_pending_mark_locked (mailbox, message);
      changed_locked (&step, &old, message);
      if (names)
        flags_changed_locked (mailbox);
    }
  g_mutex_unlock (&mailbox->lock);
  put_and_tell (&step, names);
}

void
mail_effect_answered (MailMailbox *mailbox, guint32 content_id, guint32 uid)
{
  Step step = { .mailbox = mailbox, .content_id = content_id };

  g_mutex_lock (&mailbox->lock);
  MailMessage *message = get_locked (mailbox, content_id, uid);
  if (message != NULL && mail_pending_mark_locked (mailbox, message))
    {
      step.now = *message;
      step.has_now = TRUE;
    }
  g_mutex_unlock (&mailbox->lock);
  if (step.has_now)
    put_message (&step);
}

/* The index follows: who had the name before has lost it. Lock held. */
static void
set_name_locked (MailMailbox *mailbox, guint32 content_id, MailMessage *message, const char *name,
                 MailIndexBatch *batch)
{
  guint32 owner = name != NULL && mailbox->name_to_uid != NULL
                      ? GPOINTER_TO_UINT (g_hash_table_lookup (mailbox->name_to_uid, name))
                      : 0;

  if (owner != 0 && owner != message->uid)
    mail_index_batch_put_name (batch, content_id, owner, NULL);
  mail_mailbox_set_name_locked (mailbox, message->uid, name);
  mail_index_batch_put_name (batch, content_id, message->uid, name);
  if (name != NULL)
    message->local |= MAIL_LOCAL_NAMED;
  else
    message->local &= ~MAIL_LOCAL_NAMED;
}

void
mail_effect_name (MailMailbox *mailbox, guint32 content_id, guint32 uid, const char *name)
{
  Step step = { .mailbox = mailbox, .content_id = content_id };
  MailIndexBatch *batch = mail_index_batch_new ();

  g_mutex_lock (&mailbox->lock);
  MailMessage *message = get_locked (mailbox, content_id, uid);
  if (message != NULL)
    {
      step.old = *message;
      set_name_locked (mailbox, content_id, message, name, batch);
      message->changed = changed_now ();
      step.now = *message;
      step.has_old = step.has_now = TRUE;
      step.name = g_strdup (name);
      mail_index_batch_put (batch, content_id, message, 1);
      mailbox->generation++;
      mail_mailbox_touch_locked (mailbox);
    }
  g_mutex_unlock (&mailbox->lock);
  mail_index_queue (mailbox->store->index, batch);
  if (step.has_now)
    tell (&step, TRUE);
}

void
mail_effect_old (MailMailbox *mailbox, guint32 content_id, guint32 uid)
{
  Step step = { .mailbox = mailbox, .content_id = content_id };

  g_mutex_lock (&mailbox->lock);
  MailMessage *message = get_locked (mailbox, content_id, uid);
  if (message != NULL && (message->local & MAIL_LOCAL_OLD) == 0)
    {
      MailMessage old = *message;
      message->local |= MAIL_LOCAL_OLD;
      changed_locked (&step, &old, message);
      flags_changed_locked (mailbox);
    }
  g_mutex_unlock (&mailbox->lock);
  put_and_tell (&step, TRUE);
}

void
mail_effect_marks (MailMailbox *mailbox, guint32 content_id, guint32 uid, guint8 flags,
                   guint32 keywords)
{
  Step step = { .mailbox = mailbox, .content_id = content_id };

  g_mutex_lock (&mailbox->lock);
  MailMessage *message = get_locked (mailbox, content_id, uid);
  if (message != NULL && (message->flags != flags || message->keywords != keywords))
    {
      MailMessage old = *message;
      message->flags = flags;
      message->keywords = keywords;
      message->changed = changed_now ();
      changed_locked (&step, &old, message);
      flags_changed_locked (mailbox);
    }
  g_mutex_unlock (&mailbox->lock);
  put_and_tell (&step, TRUE);
}

/* --- arrivals ------------------------------------------------------------------------------------
 */

/* Lock held. A message that a listing brought before the answer came keeps what the listing said.
 */
static MailMessage *
insert_locked (MailMailbox *mailbox, const MailMessage *message, Step *step)
{
  MailMessage *old = mail_mailbox_get_locked (mailbox, message->uid);

  if (old != NULL)
    {
      step->old = *old;
      step->has_old = TRUE;
      if ((message->local & MAIL_LOCAL_EXACT) != 0 && (old->local & MAIL_LOCAL_EXACT) == 0)
        {
          old->size = message->size;
          old->local |= MAIL_LOCAL_EXACT;
        }
      return old;
    }
  guint at = mail_mailbox_lower_bound_locked (mailbox, message->uid);
  g_array_insert_val (mailbox->messages, at, *message);
  if (mailbox->inserted == NULL)
    mailbox->inserted = g_hash_table_new (NULL, NULL);
  g_hash_table_insert (mailbox->inserted, GUINT_TO_POINTER (message->uid),
                       GUINT_TO_POINTER (mailbox->sync_started));
  return &g_array_index (mailbox->messages, MailMessage, at);
}

gboolean
mail_effect_insert (MailMailbox *mailbox, guint32 uidvalidity, const MailMessage *message,
                    const char *name, MailStaged *staged)
{
  MailChanges *changes = mailbox->store->changes;
  const MailNaming *naming = &mailbox->store->naming;
  Step step = { .mailbox = mailbox };
  MailIndexBatch *batch = mail_index_batch_new ();
  MailMessage *now = NULL;
  g_autofree char *base = name != NULL && naming->message_name != NULL ? naming->message_name (name)
                                                                       : g_strdup (name);

  g_mutex_lock (&mailbox->lock);
  if ((mailbox->loaded || mail_mailbox_load_locked (mailbox))
      && mailbox->status.uidvalidity == uidvalidity)
    {
      step.content_id = mailbox->content_id;
      now = insert_locked (mailbox, message, &step);
      if (base != NULL)
        {
          set_name_locked (mailbox, step.content_id, now, base, batch);
          now->changed = changed_now ();
        }
      if (staged != NULL && naming->old_area != 0 && staged->area == naming->old_area)
        now->local |= MAIL_LOCAL_OLD;
      step.now = *now;
      step.has_now = TRUE;
      step.takes_over = staged != NULL && staged->in_place;
      step.name = g_strdup (mail_mailbox_name_locked (mailbox, message->uid));
      mail_index_batch_put (batch, step.content_id, now, 1);
      mailbox->generation++;
      mail_mailbox_touch_locked (mailbox);
      if (staged != NULL)
        {
          g_mutex_lock (&changes->lock);
          if (!staged->dropped && staged->mailbox == mailbox && g_strcmp0 (staged->name, name) == 0)
            mail_staged_done_locked (staged, step.content_id, uidvalidity, message->uid);
          g_mutex_unlock (&changes->lock);
        }
    }
  g_mutex_unlock (&mailbox->lock);
  mail_index_queue (mailbox->store->index, batch);
  if (now != NULL)
    tell (&step, TRUE);
  return now != NULL;
}
