/* SPDX-License-Identifier: MIT
 *
 * The tree of mailboxes: loaded from the index at start, brought up to date by LIST. Lists arrive
 * on the net thread; looking up is anybody's. Names have been decoded by the backend and are
 * escaped by fs through store->naming; here they are opaque components.
 */
#include "store-private.h"

#include "mailfs/log.h"

#include <string.h>

typedef struct
{
  MailListSink sink;
  MailStore *store;
  GPtrArray *entries; /* of Entry */
} Listing;

typedef struct
{
  char *name;
  char **texts;  /* decoded components below the root of the mount */
  char **leaves; /* the same, escaped */
  guint flags;
  char *special_use;
  gboolean has_status;
  MailMailboxStatus status;
} Entry;

static void
entry_free (Entry *entry)
{
  g_free (entry->name);
  g_strfreev (entry->texts);
  g_strfreev (entry->leaves);
  g_free (entry->special_use);
  g_free (entry);
}

/* --- nodes, under the tree's write lock ------------------------------------------------------ */

static gint
compare_ids (gconstpointer a, gconstpointer b)
{
  const MailMailbox *left = *(MailMailbox *const *)a, *right = *(MailMailbox *const *)b;

  return left->id < right->id ? -1 : left->id > right->id;
}

static MailMailbox *
add_child (MailMailbox *parent, guint32 id, guint32 content_id, const char *leaf, const char *text)
{
  MailStore *store = parent->store;
  MailMailbox *child = mail_mailbox_new (store, id, content_id);

  child->leaf = g_strdup (leaf);
  child->text = g_strdup (text);
  child->parent = parent;
  child->in_tree = TRUE;
  g_hash_table_insert (parent->child_by_leaf, child->leaf, child);
  g_ptr_array_insert (parent->children, (gint)mail_mailbox_child_place_unlocked (parent, child->id),
                      child);
  g_hash_table_insert (store->by_id, GUINT_TO_POINTER (id), child);
  g_hash_table_insert (store->by_content, GUINT_TO_POINTER (content_id), child);
  return child;
}

static MailMailbox *
find_or_add (MailStore *store, char **leaves, char **texts, gboolean *added_out)
{
  MailMailbox *node = store->root;

  for (guint i = 0; leaves[i] != NULL; i++)
    {
      MailMailbox *child = g_hash_table_lookup (node->child_by_leaf, leaves[i]);

      if (child == NULL)
        {
          child = add_child (node, mail_index_new_id (store->index),
                             mail_index_new_id (store->index), leaves[i], texts[i]);
          mail_mailbox_touch_locked (child); /* nobody else knows it yet */
          *added_out = TRUE;
        }
      node = child;
    }
  return node;
}

static void
queue_row (MailMailbox *mailbox, MailIndexBatch *batch)
{
  MailIndexMailbox row;

  g_mutex_lock (&mailbox->lock);
  mail_mailbox_fill_index_row (mailbox, &row);
  g_mutex_unlock (&mailbox->lock);
  mail_index_batch_put_mailbox (batch, &row);
  g_free (row.path);
}

/* --- loading --------------------------------------------------------------------------------- */

static void
load_row (MailStore *store, const MailIndexMailbox *row)
{
  MailMailbox *node = store->root;
  g_auto (GStrv) leaves = g_strsplit (row->path, "/", -1);

  for (guint i = 0; leaves[i] != NULL && row->path[0] != '\0'; i++)
    {
      MailMailbox *child = g_hash_table_lookup (node->child_by_leaf, leaves[i]);
      gboolean last = leaves[i + 1] == NULL;

      if (child == NULL)
        {
          g_autofree char *text = store->naming.parse_mailbox_part (leaves[i], NULL);

          if (!last) /* a parent's row sorts before its children's; this one is lost: look again */
            return;
          child = add_child (node, row->id, row->content_id, leaves[i],
                             text != NULL ? text : leaves[i]);
        }
      node = child;
    }
  node->name = g_strdup (row->name);
  node->special_use = g_strdup (row->special_use);
  node->flags = row->flags;
  node->status = row->status;
  if (node == store->root && row->content_id != 0)
    {
      node->content_id = row->content_id;
      g_hash_table_insert (store->by_content, GUINT_TO_POINTER (row->content_id), node);
    }
}

static gint
compare_paths (gconstpointer a, gconstpointer b)
{
  const MailIndexMailbox *left = *(MailIndexMailbox *const *)a,
                         *right = *(MailIndexMailbox *const *)b;

  return strcmp (left->path, right->path);
}

static void
load_mtime (MailMailbox *mailbox)
{
  g_autofree char *key = g_strdup_printf ("mtime:%u", mailbox->id);
  g_autofree char *value = mail_index_get_meta (mailbox->store->index, key);

  if (value != NULL)
    mailbox->mtime = g_ascii_strtoll (value, NULL, 10);
  else
    mail_mailbox_touch_locked (mailbox);
}

gboolean
mail_tree_load (MailStore *store, GError **error)
{
  g_autoptr (GPtrArray) rows = mail_index_load_mailboxes (store->index, error);
  g_autoptr (GArray) contents = g_array_new (FALSE, FALSE, sizeof (guint32));

  if (rows == NULL)
    return FALSE;
  g_ptr_array_sort (rows, compare_paths);
  for (guint i = 0; i < rows->len; i++)
    load_row (store, rows->pdata[i]);
  store->listed = rows->len > 0;

  GHashTableIter iter;
  gpointer mailbox;
  load_mtime (store->root);
  if (store->root->status.uidvalidity != 0)
    g_array_append_val (contents, store->root->content_id);
  g_hash_table_iter_init (&iter, store->by_id);
  while (g_hash_table_iter_next (&iter, NULL, &mailbox))
    {
      load_mtime (mailbox);
      /* Of one that the index has not seen listed a run that was killed may have left bytes. */
      if (((MailMailbox *)mailbox)->status.uidvalidity != 0)
        g_array_append_val (contents, ((MailMailbox *)mailbox)->content_id);
    }
  g_array_sort (contents, (GCompareFunc)mail_compare_uint32);
  mail_cache_retain_contents (store->cache, (const guint32 *)contents->data, contents->len);
  return TRUE;
}

MailMailbox *
mail_tree_ensure (MailStore *store, const char *name)
{
  g_autofree char *leaf = store->naming.mailbox_part (name, FALSE);
  char *leaves[] = { leaf, NULL }, *texts[] = { (char *)name, NULL };
  gboolean added = FALSE;
  MailMailbox *mailbox = find_or_add (store, leaves, texts, &added);

  if (mailbox->name == NULL)
    mailbox->name = g_strdup (name);
  store->listed = TRUE;
  return mailbox;
}

/* A renamed mailbox keeps its number and its messages. Tree lock held for writing. */
static void
rename_below (MailMailbox *node, const char *old_name, const char *name, MailIndexBatch *batch)
{
  gsize length = strlen (old_name);

  if (node->name != NULL && strncmp (node->name, old_name, length) == 0)
    {
      char *now = g_strconcat (name, node->name + length, NULL);
      g_free (node->name);
      node->name = now;
    }
  queue_row (node, batch);
  for (guint i = 0; i < node->children->len; i++)
    rename_below (node->children->pdata[i], old_name, name, batch);
}

static void touch (MailMailbox *mailbox);

void
mail_tree_move (MailMailbox *mailbox, MailMailbox *parent, const char *leaf, const char *text,
                const char *name)
{
  MailStore *store = mailbox->store;
  MailIndexBatch *batch = mail_index_batch_new ();
  g_autoptr (MailMailbox) old_parent = NULL;

  g_rw_lock_writer_lock (&store->tree_lock);
  MailMailbox *other = g_hash_table_lookup (parent->child_by_leaf, leaf);
  if (mailbox->in_tree && mailbox->parent != NULL && parent->in_tree
      && (other == NULL || other == mailbox))
    {
      g_autofree char *old_name = g_strdup (mailbox->name != NULL ? mailbox->name : name);

      old_parent = mail_mailbox_ref (mailbox->parent);
      g_hash_table_remove (old_parent->child_by_leaf, mailbox->leaf);
      g_ptr_array_remove (old_parent->children, mailbox);
      g_free (mailbox->leaf);
      g_free (mailbox->text);
      mailbox->leaf = g_strdup (leaf);
      mailbox->text = g_strdup (text);
      mailbox->parent = parent;
      g_hash_table_insert (parent->child_by_leaf, mailbox->leaf, mailbox);
      g_ptr_array_add (parent->children, mailbox);
      g_ptr_array_sort (parent->children, compare_ids);
      rename_below (mailbox, old_name, name, batch);
      touch (old_parent);
      touch (parent);
    }
  g_rw_lock_writer_unlock (&store->tree_lock);
  mail_index_queue (store->index, batch);
  if (old_parent == NULL || store->events.directory == NULL)
    return;
  store->events.directory (store->events_data, old_parent);
  store->events.directory (store->events_data, parent);
}

/* --- applying a list ------------------------------------------------------------------------- */

typedef struct
{
  guint32 parent_id, id;
  char *leaf;
} Gone;

static void
gone_clear (gpointer data)
{
  g_free (((Gone *)data)->leaf);
}

/* STATUS in the list says that nothing changed since the last sync: then that was a sync. */
static void
note_status (MailMailbox *mailbox, const MailMailboxStatus *now)
{
  g_mutex_lock (&mailbox->lock);
  const MailMailboxStatus *was = &mailbox->status;
  if (was->uidvalidity != 0 && was->uidvalidity == now->uidvalidity && was->uidnext == now->uidnext
      && was->highestmodseq != 0 && was->highestmodseq == now->highestmodseq
      && was->n_messages == now->n_messages)
    mailbox->synced_at = mailbox->tried_at = g_get_monotonic_time ();
  else if (was->uidvalidity != 0)
    mailbox->synced_at = mailbox->tried_at = 0; /* something did: the next look asks */
  else
    {
      mailbox->status.n_messages = now->n_messages;
      mailbox->status.n_unseen = now->n_unseen;
    }
  g_mutex_unlock (&mailbox->lock);
}

static void
apply_entry (MailStore *store, const Entry *entry, GHashTable *seen, MailIndexBatch *batch,
             GHashTable *changed_dirs)
{
  gboolean added = FALSE;
  MailMailbox *node = find_or_add (store, entry->leaves, entry->texts, &added);

  if (g_hash_table_lookup (seen, node) == GINT_TO_POINTER (2))
    {
      mail_log_warning ("the server lists \"%s\" twice, the second one is left out", entry->name);
      return;
    }
  for (MailMailbox *up = node->parent; up != NULL; up = up->parent)
    {
      if (g_hash_table_lookup (seen, up) == NULL)
        g_hash_table_insert (seen, up, GINT_TO_POINTER (1));
      if (added)
        g_hash_table_add (changed_dirs, up);
    }
  g_hash_table_insert (seen, node, GINT_TO_POINTER (2));

  gboolean same = !added && g_strcmp0 (node->name, entry->name) == 0 && node->flags == entry->flags
                  && g_strcmp0 (node->special_use, entry->special_use) == 0;
  if (!same)
    {
      g_free (node->name);
      g_free (node->special_use);
      node->name = g_strdup (entry->name);
      node->special_use = g_strdup (entry->special_use);
      node->flags = entry->flags;
      if (node == store->root && node->content_id == 0)
        {
          node->content_id = mail_index_new_id (store->index);
          g_hash_table_insert (store->by_content, GUINT_TO_POINTER (node->content_id), node);
        }
    }
  if (entry->has_status)
    note_status (node, &entry->status);
  if (same)
    return;
  /* Parents made on the way need rows too. */
  for (MailMailbox *up = node; up != NULL && (up == node || up->name == NULL); up = up->parent)
    if (up != store->root || up->name != NULL)
      queue_row (up, batch);
}

/* A node goes with all below it; children first. */
static void
remove_node (MailMailbox *node, MailIndexBatch *batch, GArray *gone)
{
  MailStore *store = node->store;

  while (node->children->len > 0)
    remove_node (node->children->pdata[node->children->len - 1], batch, gone);

  Gone entry = { node->parent->id, node->id, g_strdup (node->leaf) };
  g_array_append_val (gone, entry);
  mail_index_batch_remove_mailbox (batch, node->id);
  mail_index_batch_drop_contents (batch, node->content_id);
  mail_cache_drop_contents (store->cache, node->content_id);
  g_hash_table_remove (node->parent->child_by_leaf, node->leaf);
  g_ptr_array_remove_index (node->parent->children,
                            mail_mailbox_child_place_unlocked (node->parent, node->id));
  g_hash_table_remove (store->by_content, GUINT_TO_POINTER (node->content_id));
  node->in_tree = FALSE;
  node->parent = NULL;
  g_hash_table_remove (store->by_id, GUINT_TO_POINTER (node->id)); /* the tree's reference */
}

static void
remove_unseen (MailStore *store, MailMailbox *node, GHashTable *seen, MailIndexBatch *batch,
               GArray *gone, GHashTable *changed_dirs)
{
  for (guint i = node->children->len; i-- > 0;)
    {
      MailMailbox *child = node->children->pdata[i];

      if (g_hash_table_lookup (seen, child) == NULL)
        {
          g_hash_table_add (changed_dirs, node);
          remove_node (child, batch, gone);
          continue;
        }
      if (g_hash_table_lookup (seen, child) == GINT_TO_POINTER (1) && child->name != NULL)
        {
          /* It was a mailbox and is only a parent now. */
          g_clear_pointer (&child->name, g_free);
          queue_row (child, batch);
        }
      remove_unseen (store, child, seen, batch, gone, changed_dirs);
    }
}

static void
touch (MailMailbox *mailbox)
{
  g_mutex_lock (&mailbox->lock);
  mailbox->generation++;
  mail_mailbox_touch_locked (mailbox);
  g_mutex_unlock (&mailbox->lock);
}

/* By name, as programs walk: ids are given, and directories read, in this order. */
static gint
compare_entries (gconstpointer a, gconstpointer b)
{
  char **left = (*(Entry *const *)a)->leaves, **right = (*(Entry *const *)b)->leaves;

  while (*left != NULL && g_strcmp0 (*left, *right) == 0)
    left++, right++;
  return g_strcmp0 (*left, *right);
}

static void
apply (Listing *listing)
{
  MailStore *store = listing->store;
  g_autoptr (GHashTable) seen = g_hash_table_new (NULL, NULL);
  g_autoptr (GHashTable) changed_dirs = g_hash_table_new (NULL, NULL);
  g_autoptr (GArray) gone = g_array_new (FALSE, FALSE, sizeof (Gone));
  g_autoptr (GPtrArray) dirs = g_ptr_array_new_with_free_func ((GDestroyNotify)mail_mailbox_unref);
  MailIndexBatch *batch = mail_index_batch_new ();
  GHashTableIter iter;
  gpointer dir;

  g_array_set_clear_func (gone, gone_clear);
  g_ptr_array_sort (listing->entries, compare_entries);
  g_rw_lock_writer_lock (&store->tree_lock);
  for (guint i = 0; i < listing->entries->len; i++)
    apply_entry (store, listing->entries->pdata[i], seen, batch, changed_dirs);
  /* An account always has an INBOX: an empty list proves nothing. */
  if (listing->entries->len > 0)
    remove_unseen (store, store->root, seen, batch, gone, changed_dirs);
  g_hash_table_iter_init (&iter, changed_dirs);
  while (g_hash_table_iter_next (&iter, &dir, NULL))
    if (((MailMailbox *)dir)->in_tree)
      {
        touch (dir);
        g_ptr_array_add (dirs, mail_mailbox_ref (dir));
      }
  store->listed = TRUE;
  g_rw_lock_writer_unlock (&store->tree_lock);
  store->list_has_status = FALSE;
  for (guint i = 0; i < listing->entries->len; i++)
    store->list_has_status |= ((Entry *)listing->entries->pdata[i])->has_status;
  mail_index_queue (store->index, batch);

  if (gone->len > 0)
    mail_stage_mailboxes_gone (store->changes);
  for (guint i = 0; i < gone->len; i++)
    {
      const Gone *entry = &g_array_index (gone, Gone, i);
      if (store->events.mailbox_gone != NULL)
        store->events.mailbox_gone (store->events_data, entry->parent_id, entry->id, entry->leaf);
    }
  for (guint i = 0; i < dirs->len; i++)
    if (store->events.directory != NULL)
      store->events.directory (store->events_data, dirs->pdata[i]);
}

/* --- listing --------------------------------------------------------------------------------- */

/* The number of leading components that are the root of the mount, or -1 when the mailbox lies
 * elsewhere. The URL's path may be written with the server's delimiter or with '/'. */
static gint
skip_root (const MailStore *store, const MailMailboxInfo *info)
{
  g_autoptr (GString) slash = g_string_new (NULL), dot = g_string_new (NULL);
  const char *root = store->options.root_mailbox;

  if (root == NULL)
    return 0;
  for (guint i = 0; i < info->n_parts; i++)
    {
      g_string_append_printf (slash, "%s%s", i > 0 ? "/" : "", info->parts[i].text);
      g_string_append_printf (dot, "%s%s", i > 0 ? "." : "", info->parts[i].text);
      if (strcmp (slash->str, root) == 0 || strcmp (dot->str, root) == 0
          || (i == 0 && g_ascii_strcasecmp (root, "INBOX") == 0
              && strcmp (slash->str, "INBOX") == 0))
        return i + 1;
    }
  return -1;
}

/* With a mailbox as the root of the mount the trash is usually beside it. */
static void
note_outside_trash (MailStore *store, const MailMailboxInfo *info)
{
  gboolean special = g_strcmp0 (info->special_use, "\\Trash") == 0;
  gboolean usual = info->n_parts == 1 && strcmp (info->parts[0].text, "Trash") == 0;

  if ((!special && !usual) || (info->flags & MAIL_MAILBOX_NO_SELECT) != 0)
    return;
  g_rw_lock_writer_lock (&store->tree_lock);
  if (special || store->outside_trash == NULL)
    {
      g_free (store->outside_trash);
      store->outside_trash = g_strdup (info->name);
    }
  g_rw_lock_writer_unlock (&store->tree_lock);
}

static void
listing_mailbox (MailListSink *sink, const MailMailboxInfo *info)
{
  Listing *listing = (Listing *)sink;
  MailStore *store = listing->store;
  gint skip = skip_root (store, info);

  if (skip < 0)
    {
      note_outside_trash (store, info);
      return;
    }
  guint n = info->n_parts - skip;
  Entry *entry = g_new0 (Entry, 1);
  entry->name = g_strdup (info->name);
  entry->texts = g_new0 (char *, n + 1);
  entry->leaves = g_new0 (char *, n + 1);
  for (guint i = 0; i < n; i++)
    {
      const MailPathPart *part = &info->parts[skip + i];

      entry->texts[i] = g_strdup (part->text);
      entry->leaves[i] = store->naming.mailbox_part (part->text, part->raw);
    }
  entry->flags = info->flags;
  entry->special_use = g_strdup (info->special_use);
  entry->has_status = info->has_status;
  entry->status = info->status;
  g_ptr_array_add (listing->entries, entry);
}

static gboolean start_listing (gpointer data);

static void
listing_done (MailListSink *sink, const GError *error)
{
  Listing *listing = (Listing *)sink;
  MailStore *store = listing->store;
  GQueue waiters = G_QUEUE_INIT, relisted = G_QUEUE_INIT;

  if (error == NULL)
    {
      apply (listing);
      mail_changes_resume (store->changes, TRUE);
    }
  else
    mail_log_info ("listing mailboxes: %s", error->message);

  g_rw_lock_writer_lock (&store->tree_lock);
  relisted = store->relist_waiters;
  store->relist_waiters = store->next_relist_waiters;
  g_queue_init (&store->next_relist_waiters);
  gboolean again = store->relist_waiters.length > 0;
  store->listing = again;
  store->listed_at = g_get_monotonic_time ();
  gboolean known = store->listed;
  waiters = store->list_waiters;
  g_queue_init (&store->list_waiters);
  g_rw_lock_writer_unlock (&store->tree_lock);
  mail_store_wake_all (&waiters, known ? NULL : error);
  mail_store_wake_all (&relisted, error);
  if (again)
    mail_store_invoke (store, start_listing, store);
  g_ptr_array_unref (listing->entries);
  g_free (listing);
}

static gboolean
start_listing (gpointer data)
{
  MailStore *store = data;
  Listing *listing = g_new0 (Listing, 1);

  listing->sink.mailbox = listing_mailbox;
  listing->sink.done = listing_done;
  listing->store = store;
  listing->entries = g_ptr_array_new_with_free_func ((GDestroyNotify)entry_free);
  store->backend->ops->list (store->backend, store->options.subscribed, &listing->sink);
  return G_SOURCE_REMOVE;
}

void
mail_tree_refresh (MailStore *store)
{
  g_rw_lock_writer_lock (&store->tree_lock);
  gboolean start = !store->listing && !store->options.offline;
  store->listing |= start;
  g_rw_lock_writer_unlock (&store->tree_lock);
  if (start)
    mail_store_invoke (store, start_listing, store);
}

void
mail_tree_relist (MailStore *store, MailWaiter *waiter)
{
  g_rw_lock_writer_lock (&store->tree_lock);
  gboolean start = !store->listing;
  waiter->link.data = waiter;
  g_queue_push_tail_link (start ? &store->relist_waiters : &store->next_relist_waiters,
                          &waiter->link);
  store->listing = TRUE;
  g_rw_lock_writer_unlock (&store->tree_lock);
  if (start)
    mail_store_invoke (store, start_listing, store);
}

/* Tree lock held. */
static gboolean
is_fresh (const MailStore *store, const MailWaiter *waiter)
{
  gint64 age = g_get_monotonic_time () - store->listed_at;

  return store->options.offline
         || (store->listed && store->listed_at != 0
             && ((waiter != NULL && store->listed_at >= waiter->since)
                 || age <= store->options.refresh * G_TIME_SPAN_SECOND));
}

MailAnswer
mail_store_fresh_tree (MailStore *store, MailWaiter *waiter, GError **error)
{
  MailAnswer answer = MAIL_PARKED;
  gboolean start = FALSE;

  /* Every opendir and many look-ups come here: no writing for them. */
  g_rw_lock_reader_lock (&store->tree_lock);
  gboolean fresh = is_fresh (store, waiter);
  g_rw_lock_reader_unlock (&store->tree_lock);
  if (fresh)
    return MAIL_READY;
  g_rw_lock_writer_lock (&store->tree_lock);
  if (is_fresh (store, waiter))
    answer = MAIL_READY;
  else if (waiter != NULL)
    {
      waiter->link.data = waiter;
      g_queue_push_tail_link (&store->list_waiters, &waiter->link);
      start = !store->listing;
      store->listing = TRUE;
    }
  g_rw_lock_writer_unlock (&store->tree_lock);
  if (start)
    mail_store_invoke (store, start_listing, store);
  return answer;
}
