/* SPDX-License-Identifier: MIT
 *
 * MailMailbox: one directory of the account and, when it holds messages, its sorted array of them
 * in memory. Only data and its invariants; who fills it is sync.c, who places it is tree.c. Any
 * thread, under the mailbox's own lock (messages) and the store's tree lock (place and name).
 */
#include "store-private.h"

#include "mailfs/change.h"

#include <string.h>

MailMailbox *
mail_mailbox_new (MailStore *store, guint32 id, guint32 content_id)
{
  MailMailbox *mailbox = g_new0 (MailMailbox, 1);

  mailbox->n_refs = 1;
  mailbox->store = store;
  mailbox->id = id;
  mailbox->content_id = content_id;
  mailbox->children = g_ptr_array_new ();
  mailbox->child_by_leaf = g_hash_table_new (g_str_hash, g_str_equal);
  mailbox->any_keyword = TRUE;
  mailbox->settable_flags = MAIL_FLAGS_ALL;
  g_mutex_init (&mailbox->lock);
  g_queue_init (&mailbox->sync_waiters);
  return mailbox;
}

MailMailbox *
mail_mailbox_ref (MailMailbox *mailbox)
{
  g_atomic_int_inc (&mailbox->n_refs);
  return mailbox;
}

void
mail_mailbox_unref (MailMailbox *mailbox)
{
  if (!g_atomic_int_dec_and_test (&mailbox->n_refs))
    return;
  mail_mailbox_unload_locked (mailbox);
  g_free (mailbox->name);
  g_free (mailbox->leaf);
  g_free (mailbox->text);
  g_free (mailbox->special_use);
  g_free (mailbox->settable_keywords);
  g_free (mailbox->rights);
  g_ptr_array_unref (mailbox->children);
  g_hash_table_unref (mailbox->child_by_leaf);
  g_mutex_clear (&mailbox->lock);
  g_free (mailbox);
}

/* --- messages ------------------------------------------------------------------------------ */

guint
mail_mailbox_lower_bound_locked (MailMailbox *mailbox, guint32 uid)
{
  guint low = 0, high = mailbox->messages != NULL ? mailbox->messages->len : 0;

  while (low < high)
    {
      guint middle = low + (high - low) / 2;

      if (g_array_index (mailbox->messages, MailMessage, middle).uid < uid)
        low = middle + 1;
      else
        high = middle;
    }
  return low;
}

MailMessage *
mail_mailbox_get_locked (MailMailbox *mailbox, guint32 uid)
{
  guint i = mail_mailbox_lower_bound_locked (mailbox, uid);

  if (mailbox->messages == NULL || i >= mailbox->messages->len)
    return NULL;
  MailMessage *message = &g_array_index (mailbox->messages, MailMessage, i);
  return message->uid == uid ? message : NULL;
}

/* A name belongs to one message; the newest owner wins. */
void
mail_mailbox_set_name_locked (MailMailbox *mailbox, guint32 uid, const char *name)
{
  if (mailbox->name_to_uid == NULL)
    {
      if (name == NULL)
        return;
      mailbox->uid_to_name = g_hash_table_new_full (NULL, NULL, NULL, g_free);
      mailbox->name_to_uid = g_hash_table_new (g_str_hash, g_str_equal);
    }
  const char *old = g_hash_table_lookup (mailbox->uid_to_name, GUINT_TO_POINTER (uid));
  if (old != NULL)
    {
      if (GPOINTER_TO_UINT (g_hash_table_lookup (mailbox->name_to_uid, old)) == uid)
        g_hash_table_remove (mailbox->name_to_uid, old);
      g_hash_table_remove (mailbox->uid_to_name, GUINT_TO_POINTER (uid));
    }
  if (name == NULL)
    return;

  guint32 owner = GPOINTER_TO_UINT (g_hash_table_lookup (mailbox->name_to_uid, name));
  if (owner != 0)
    {
      g_hash_table_remove (mailbox->name_to_uid, name);
      g_hash_table_remove (mailbox->uid_to_name, GUINT_TO_POINTER (owner));
    }
  char *copy = g_strdup (name);
  g_hash_table_insert (mailbox->uid_to_name, GUINT_TO_POINTER (uid), copy);
  g_hash_table_insert (mailbox->name_to_uid, copy, GUINT_TO_POINTER (uid));
}

const char *
mail_mailbox_name_locked (MailMailbox *mailbox, guint32 uid)
{
  return mailbox->uid_to_name != NULL
             ? g_hash_table_lookup (mailbox->uid_to_name, GUINT_TO_POINTER (uid))
             : NULL;
}

/* remote_id NULL: the UID has none any more. */
void
mail_mailbox_set_remote_id_locked (MailMailbox *mailbox, guint32 uid, const char *remote_id)
{
  gpointer key = GUINT_TO_POINTER (uid);

  if (mailbox->remote_to_uid == NULL)
    {
      mailbox->remote_to_uid = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);
      mailbox->uid_to_remote = g_hash_table_new (NULL, NULL);
    }
  char *old = g_hash_table_lookup (mailbox->uid_to_remote, key);
  g_hash_table_remove (mailbox->uid_to_remote, key);
  if (old != NULL)
    g_hash_table_remove (mailbox->remote_to_uid, old);
  if (remote_id == NULL)
    return;
  char *copy = g_strdup (remote_id);
  g_hash_table_insert (mailbox->remote_to_uid, copy, key);
  g_hash_table_insert (mailbox->uid_to_remote, key, copy);
}

const char *
mail_mailbox_remote_id_locked (MailMailbox *mailbox, guint32 uid)
{
  return mailbox->uid_to_remote != NULL
             ? g_hash_table_lookup (mailbox->uid_to_remote, GUINT_TO_POINTER (uid))
             : NULL;
}

/* The message is no longer listed, but a reader may have it open. */
void
mail_mailbox_bury_locked (MailMailbox *mailbox, const MailMessage *message)
{
  if (mailbox->gone == NULL)
    mailbox->gone = g_array_new (FALSE, FALSE, sizeof (MailMessage));
  if (mailbox->gone->len >= MAIL_GONE_MAX)
    g_array_remove_range (mailbox->gone, 0, MAIL_GONE_MAX / 4);
  g_array_append_vals (mailbox->gone, message, 1);
}

gboolean
mail_mailbox_load_locked (MailMailbox *mailbox)
{
  g_autoptr (GError) error = NULL;

  if (mailbox->loaded)
    return TRUE;
  if (mailbox->status.uidvalidity == 0)
    return FALSE;

  mailbox->messages = mail_index_load_messages (mailbox->store->index, mailbox->content_id, &error);
  if (mailbox->messages == NULL)
    {
      /* Corrupt: as if it had never been listed, but for what tells whether the bodies in the cache
       * belong to it. */
      mailbox->status = (MailMailboxStatus) { .uidvalidity = mailbox->status.uidvalidity };
      return FALSE;
    }
  GArray *names = mail_index_load_names (mailbox->store->index, mailbox->content_id, NULL);
  for (guint i = 0; names != NULL && i < names->len; i++)
    {
      MailIndexString *name = &g_array_index (names, MailIndexString, i);
      mail_mailbox_set_name_locked (mailbox, name->uid, name->text);
    }
  g_clear_pointer (&names, g_array_unref);

  GArray *ids = mail_index_load_remote_ids (mailbox->store->index, mailbox->content_id, NULL);
  for (guint i = 0; ids != NULL && i < ids->len; i++)
    {
      MailIndexString *id = &g_array_index (ids, MailIndexString, i);

      mail_mailbox_set_remote_id_locked (mailbox, id->uid, id->text);
    }
  g_clear_pointer (&ids, g_array_unref);
  mailbox->status.n_messages = mailbox->messages->len;
  /* An index that lost its tail does not know what was answered: all flags are asked for once. */
  for (guint i = 0; i < mailbox->messages->len; i++)
    if ((g_array_index (mailbox->messages, MailMessage, i).local & MAIL_LOCAL_ASKED) != 0)
      mailbox->status.highestmodseq = 0;
  mailbox->loaded = TRUE;
  return TRUE;
}

void
mail_mailbox_unload_locked (MailMailbox *mailbox)
{
  g_clear_pointer (&mailbox->messages, g_array_unref);
  g_clear_pointer (&mailbox->gone, g_array_unref);
  g_clear_pointer (&mailbox->name_to_uid, g_hash_table_unref);
  g_clear_pointer (&mailbox->uid_to_name, g_hash_table_unref);
  g_clear_pointer (&mailbox->uid_to_remote, g_hash_table_unref);
  g_clear_pointer (&mailbox->remote_to_uid, g_hash_table_unref);
  g_clear_pointer (&mailbox->inserted, g_hash_table_unref);
  g_clear_pointer (&mailbox->pending_flags, g_hash_table_unref);
  g_clear_pointer (&mailbox->hiding, g_hash_table_unref);
  mailbox->loaded = FALSE;
}

static gboolean
visible (const MailMessage *message)
{
  return (message->local & MAIL_LOCAL_HIDDEN) == 0;
}

gboolean
mail_mailbox_find (MailMailbox *mailbox, guint32 uid, MailMessage *message_out)
{
  g_mutex_lock (&mailbox->lock);
  const MailMessage *message = mail_mailbox_get_locked (mailbox, uid);
  gboolean found = message != NULL && visible (message);
  if (found)
    *message_out = *message;
  g_mutex_unlock (&mailbox->lock);
  return found;
}

gboolean
mail_mailbox_find_gone (MailMailbox *mailbox, guint32 uid, MailMessage *message_out)
{
  g_mutex_lock (&mailbox->lock);
  const MailMessage *message = mail_mailbox_get_locked (mailbox, uid);
  for (guint i = mailbox->gone != NULL ? mailbox->gone->len : 0; message == NULL && i-- > 0;)
    if (g_array_index (mailbox->gone, MailMessage, i).uid == uid)
      message = &g_array_index (mailbox->gone, MailMessage, i);
  if (message != NULL)
    *message_out = *message;
  g_mutex_unlock (&mailbox->lock);
  return message != NULL;
}

guint
mail_mailbox_next (MailMailbox *mailbox, guint32 uid, MailMessage *messages_out, char **names_out,
                   guint n_max)
{
  guint n = 0;

  if (uid == G_MAXUINT32)
    return 0;
  g_mutex_lock (&mailbox->lock);
  guint i = mail_mailbox_lower_bound_locked (mailbox, uid + 1);
  for (; mailbox->messages != NULL && i < mailbox->messages->len && n < n_max; i++)
    {
      const MailMessage *message = &g_array_index (mailbox->messages, MailMessage, i);

      if (!visible (message))
        continue;
      messages_out[n] = *message;
      if (names_out != NULL)
        names_out[n] = g_strdup (mail_mailbox_name_locked (mailbox, message->uid));
      n++;
    }
  g_mutex_unlock (&mailbox->lock);
  return n;
}

char *
mail_mailbox_name_of (MailMailbox *mailbox, guint32 uid)
{
  g_mutex_lock (&mailbox->lock);
  char *name = g_strdup (mail_mailbox_name_locked (mailbox, uid));
  g_mutex_unlock (&mailbox->lock);
  return name;
}

guint32
mail_mailbox_uid_of_name (MailMailbox *mailbox, const char *name)
{
  guint32 uid = 0;

  g_mutex_lock (&mailbox->lock);
  if (mailbox->name_to_uid != NULL)
    uid = GPOINTER_TO_UINT (g_hash_table_lookup (mailbox->name_to_uid, name));
  const MailMessage *message = uid != 0 ? mail_mailbox_get_locked (mailbox, uid) : NULL;
  if (message != NULL && !visible (message))
    uid = 0; /* removed or moved: the name is free */
  g_mutex_unlock (&mailbox->lock);
  return uid;
}

/* Kept in the index. */
static void
set_mtime_locked (MailMailbox *mailbox, gint64 mtime)
{
  if (mailbox->mtime == mtime)
    return;
  g_autofree char *key = g_strdup_printf ("mtime:%u", mailbox->id);
  g_autofree char *value = g_strdup_printf ("%" G_GINT64_FORMAT, mtime);

  mailbox->mtime = mtime;
  mail_index_set_meta (mailbox->store->index, key, value);
}

/* Now is when its entries changed. That what the user wrote arrives is no change to him: a copying
 * tool has set the time by then. */
void
mail_mailbox_touch_locked (MailMailbox *mailbox)
{
  if (mailbox->mtime_given && mail_stage_count (mailbox->store, mailbox) > 0)
    return;
  mailbox->mtime_given = FALSE;
  set_mtime_locked (mailbox, g_get_real_time () / G_USEC_PER_SEC);
}

void
mail_mailbox_set_mtime (MailMailbox *mailbox, gint64 mtime)
{
  g_mutex_lock (&mailbox->lock);
  set_mtime_locked (mailbox, mtime);
  mailbox->mtime_given = TRUE;
  g_mutex_unlock (&mailbox->lock);
}

gboolean
mail_message_size_is_absurd (const MailMessage *message)
{
  return message->size == 0 && (message->local & MAIL_LOCAL_EXACT) == 0;
}

/* --- place in the tree --------------------------------------------------------------------- */

guint32
mail_mailbox_id (MailMailbox *mailbox)
{
  return mailbox->id;
}

guint32
mail_mailbox_content_id (MailMailbox *mailbox)
{
  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  guint32 id = mailbox->content_id;
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  return id;
}

char *
mail_mailbox_leaf (MailMailbox *mailbox)
{
  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  char *leaf = g_strdup (mailbox->leaf);
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  return leaf;
}

gboolean
mail_mailbox_selectable (MailMailbox *mailbox)
{
  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  gboolean yes = mailbox->name != NULL && (mailbox->flags & MAIL_MAILBOX_NO_SELECT) == 0;
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  return yes;
}

MailMailbox *
mail_mailbox_parent (MailMailbox *mailbox)
{
  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  MailMailbox *parent = mailbox->parent != NULL ? mail_mailbox_ref (mailbox->parent) : NULL;
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  return parent;
}

MailMailbox *
mail_mailbox_child (MailMailbox *mailbox, const char *leaf)
{
  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  MailMailbox *child = g_hash_table_lookup (mailbox->child_by_leaf, leaf);
  if (child != NULL)
    mail_mailbox_ref (child);
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  return child;
}

guint
mail_mailbox_child_place_unlocked (const MailMailbox *parent, guint32 id)
{
  guint low = 0, high = parent->children->len;

  while (low < high)
    {
      guint middle = low + (high - low) / 2;

      if (((MailMailbox *)parent->children->pdata[middle])->id < id)
        low = middle + 1;
      else
        high = middle;
    }
  return low;
}

MailMailbox *
mail_mailbox_next_child (MailMailbox *mailbox, guint32 id)
{
  MailMailbox *child = NULL;

  if (id == G_MAXUINT32)
    return NULL;
  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  guint place = mail_mailbox_child_place_unlocked (mailbox, id + 1);
  if (place < mailbox->children->len)
    child = mail_mailbox_ref (mailbox->children->pdata[place]);
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  return child;
}

static gint64
place_of (const MailMailbox *mailbox)
{
  return mail_mailbox_child_place_unlocked (mailbox->parent, mailbox->id);
}

MailMailbox *
mail_mailbox_sibling (MailMailbox *mailbox, gint step)
{
  MailMailbox *sibling = NULL;

  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  if (mailbox->parent != NULL)
    {
      gint64 place = place_of (mailbox) + step;

      if (place >= 0 && place < mailbox->parent->children->len)
        sibling = mail_mailbox_ref (mailbox->parent->children->pdata[place]);
    }
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  return sibling;
}

gint
mail_mailbox_step (MailMailbox *from, MailMailbox *to)
{
  gint64 step = 0;

  g_rw_lock_reader_lock (&from->store->tree_lock);
  if (from->parent != NULL && from->parent == to->parent)
    step = place_of (to) - place_of (from);
  g_rw_lock_reader_unlock (&from->store->tree_lock);
  return step == 1 || step == -1 ? (gint)step : 0;
}

guint
mail_mailbox_n_children (MailMailbox *mailbox)
{
  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  guint n = mailbox->children->len;
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  return n;
}

char *
mail_mailbox_special_use (MailMailbox *mailbox)
{
  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  char *use = g_strdup (mailbox->special_use);
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  return use;
}

static char *
join_up (MailMailbox *mailbox, gboolean decoded)
{
  GString *path = g_string_new (NULL);

  for (; mailbox != NULL && mailbox->parent != NULL; mailbox = mailbox->parent)
    {
      if (path->len > 0)
        g_string_prepend_c (path, '/');
      g_string_prepend (path, decoded ? mailbox->text : mailbox->leaf);
    }
  return g_string_free (path, FALSE);
}

char *
mail_mailbox_path_unlocked (MailMailbox *mailbox)
{
  return join_up (mailbox, FALSE);
}

char *
mail_mailbox_display_name (MailMailbox *mailbox)
{
  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  char *name = join_up (mailbox, TRUE);
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  return name;
}

void
mail_mailbox_fill_index_row (MailMailbox *mailbox, MailIndexMailbox *row)
{
  row->id = mailbox->id;
  row->content_id = mailbox->content_id;
  row->name = mailbox->name;
  row->path = mail_mailbox_path_unlocked (mailbox);
  row->special_use = mailbox->special_use;
  row->flags = mailbox->flags;
  row->status = mailbox->status;
}

void
mail_mailbox_count (MailMailbox *mailbox, guint32 *n_messages_out, guint32 *n_unseen_out)
{
  g_mutex_lock (&mailbox->lock);
  *n_messages_out = mailbox->status.n_messages;
  *n_unseen_out = mailbox->status.n_unseen;
  if (mailbox->loaded)
    *n_messages_out = *n_unseen_out = 0;
  for (guint i = 0; mailbox->loaded && i < mailbox->messages->len; i++)
    {
      const MailMessage *message = &g_array_index (mailbox->messages, MailMessage, i);

      *n_messages_out += visible (message);
      *n_unseen_out += visible (message) && (message->flags & MAIL_FLAG_SEEN) == 0;
    }
  g_mutex_unlock (&mailbox->lock);
}

static gboolean
rights_allow_change (const char *rights)
{
  /* RFC 4314: any of insert, write flags, delete, expunge; s and t, d and c of RFC 2086. */
  return rights == NULL || strpbrk (rights, "wstiedc") != NULL;
}

void
mail_mailbox_info (MailMailbox *mailbox, MailMailboxInfoNow *info_out)
{
  guint caps = mail_store_caps (mailbox->store);

  memset (info_out, 0, sizeof *info_out);
  g_mutex_lock (&mailbox->lock);
  info_out->known = mailbox->loaded;
  info_out->uidvalidity = mailbox->status.uidvalidity;
  info_out->uidnext = mailbox->status.uidnext;
  info_out->mtime = mailbox->mtime;
  info_out->generation = mailbox->generation;
  info_out->flag_changes = mailbox->flag_changes;
  info_out->may_write = !mailbox->store->options.read_only && !mailbox->server_read_only
                        && rights_allow_change (mailbox->rights)
                        && (caps == 0 || (caps & (MAIL_CAP_APPEND | MAIL_CAP_REMOTE_IDS)) != 0);
  g_mutex_unlock (&mailbox->lock);
}
