/* SPDX-License-Identifier: MIT
 *
 * Mailboxes made, removed and renamed, and which of them is the trash. None of it is ever queued:
 * the caller waits. Net thread but where said.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <string.h>

/* --- names
 * ------------------------------------------------------------------------------------------- */

char *
mail_folder_name (MailMailbox *mailbox)
{
  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  char *name = mailbox->in_tree ? g_strdup (mailbox->name) : NULL;
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  return name;
}

/* Also for a mere parent, which the server does not list. NULL with an error, or for the root of
 * the account. */
static char *
name_of (MailMailbox *mailbox, GError **error)
{
  MailBackend *backend = mailbox->store->backend;
  char *name = mail_folder_name (mailbox);

  if (name != NULL)
    return name;
  g_autoptr (MailMailbox) parent = mail_mailbox_parent (mailbox);
  if (parent == NULL)
    return NULL;
  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  g_autofree char *text = g_strdup (mailbox->text);
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  g_autoptr (GError) failed = NULL;
  g_autofree char *parent_name = name_of (parent, &failed);
  if (failed == NULL)
    return backend->ops->child_name (backend, parent_name, text, error);
  g_propagate_error (error, g_steal_pointer (&failed));
  return NULL;
}

static char *
child_name (MailMailbox *parent, const char *text, GError **error)
{
  MailBackend *backend = parent->store->backend;
  g_autoptr (GError) failed = NULL;
  g_autofree char *parent_name = name_of (parent, &failed);

  if (failed == NULL)
    return backend->ops->child_name (backend, parent_name, text, error);
  g_propagate_error (error, g_steal_pointer (&failed));
  return NULL;
}

/* --- trash
 * ------------------------------------------------------------------------------------------- */

/* Tree lock held, as below. */
static gboolean
is_at_or_below (MailMailbox *mailbox, MailMailbox *top)
{
  for (; mailbox != NULL; mailbox = mailbox->parent)
    if (mailbox == top)
      return TRUE;
  return FALSE;
}

static gboolean
can_hold (const MailMailbox *mailbox)
{
  return mailbox != NULL && mailbox->name != NULL && (mailbox->flags & MAIL_MAILBOX_NO_SELECT) == 0;
}

static MailMailbox *
walk (MailMailbox *root, const char *path)
{
  g_auto (GStrv) parts = g_strsplit (path, "/", -1);
  MailMailbox *node = root;

  for (guint i = 0; parts[i] != NULL && node != NULL; i++)
    if (parts[i][0] != '\0')
      node = g_hash_table_lookup (node->child_by_leaf, parts[i]);
  return node;
}

static MailMailbox *
find_trash (MailStore *store)
{
  static const char *const usual[] = { "Trash", "Deleted Items", "Deleted Messages", "INBOX/Trash",
                                       "[Gmail]/Trash" };
  GHashTableIter iter;
  gpointer value;

  g_hash_table_iter_init (&iter, store->by_id);
  while (g_hash_table_iter_next (&iter, NULL, &value))
    if (can_hold (value) && g_strcmp0 (((MailMailbox *)value)->special_use, "\\Trash") == 0)
      return value;
  for (guint i = 0; i < G_N_ELEMENTS (usual); i++)
    {
      MailMailbox *node = walk (store->root, usual[i]);
      if (can_hold (node))
        return node;
    }
  return NULL;
}

/* The name under which trash=NAME is made. */
static char *
named_trash (MailStore *store)
{
  g_auto (GStrv) parts = g_strsplit (store->options.trash, "/", -1);
  MailBackend *backend = store->backend;
  g_autofree char *name = name_of (store->root, NULL);

  for (guint i = 0; parts[i] != NULL; i++)
    {
      g_autofree char *text = NULL;

      if (parts[i][0] == '\0')
        continue;
      text = store->naming.parse_mailbox_part (parts[i], NULL);
      char *next = backend->ops->child_name (backend, name, text != NULL ? text : parts[i], NULL);
      g_free (name);
      name = next;
      if (name == NULL)
        return NULL;
    }
  return g_steal_pointer (&name);
}

MailTrash
mail_trash_of (MailMailbox *mailbox, MailMailbox **target_out, char **name_out)
{
  MailStore *store = mailbox->store;
  const char *option = store->options.trash != NULL ? store->options.trash : "auto";
  gboolean automatic = strcmp (option, "auto") == 0;
  MailTrash what = MAIL_TRASH_MAKE;

  *target_out = NULL;
  *name_out = NULL;
  if (strcmp (option, "none") == 0 || (mail_store_caps (store) & MAIL_CAP_FOLDERS) == 0)
    return MAIL_TRASH_EXPUNGE;
  g_rw_lock_reader_lock (&store->tree_lock);
  MailMailbox *trash = automatic ? find_trash (store) : walk (store->root, option);
  if (trash != NULL && !can_hold (trash))
    trash = NULL;
  if (trash != NULL && is_at_or_below (mailbox, trash))
    what = MAIL_TRASH_EXPUNGE;
  else if (trash != NULL)
    {
      what = MAIL_TRASH_MOVE;
      *target_out = mail_mailbox_ref (trash);
      *name_out = g_strdup (trash->name);
    }
  else if (automatic && store->outside_trash != NULL)
    {
      what = g_strcmp0 (mailbox->name, store->outside_trash) == 0 ? MAIL_TRASH_EXPUNGE
                                                                  : MAIL_TRASH_MOVE;
      *name_out = g_strdup (store->outside_trash);
    }
  g_rw_lock_reader_unlock (&store->tree_lock);
  if (what == MAIL_TRASH_MAKE)
    *name_out = automatic ? store->backend->ops->child_name (store->backend, NULL, "Trash", NULL)
                          : named_trash (store);
  return what;
}

/* --- making
 * ------------------------------------------------------------------------------------------ */

/* One operation on mailboxes from its start to its answer. */
typedef struct
{
  MailWaiter waiter;
  MailChanges *changes;
  MailMailbox *mailbox, *parent; /* parent: where it goes or is made */
  MailMailbox *in_the_way;
  char *leaf, *name, *text;
  gboolean replace_empty;
  void (*next) (gpointer folder);
  MailDoneFunc done;
  gpointer user_data;
} Folder;

static void
folder_end (Folder *folder, const GError *error)
{
  if (folder->done != NULL)
    folder->done (error, folder->user_data);
  g_clear_pointer (&folder->mailbox, mail_mailbox_unref);
  g_clear_pointer (&folder->parent, mail_mailbox_unref);
  g_clear_pointer (&folder->in_the_way, mail_mailbox_unref);
  g_free (folder->leaf);
  g_free (folder->name);
  g_free (folder->text);
  g_free (folder);
}

static void
folder_fail (Folder *folder, MailErrorCode code, const char *text)
{
  g_autoptr (GError) error = g_error_new_literal (MAIL_ERROR, code, text);

  folder_end (folder, error);
}

static void
relisted (MailWaiter *waiter, const GError *error)
{
  Folder *folder = (Folder *)((char *)waiter - G_STRUCT_OFFSET (Folder, waiter));

  if (error == NULL && folder->next != NULL)
    folder->next (folder);
  else
    folder_end (folder, folder->next != NULL ? error : NULL);
}

/* Lists all mailboxes anew, then next; without a next that is the end, whatever the list was. */
static void
relist (Folder *folder, void (*next) (gpointer folder))
{
  folder->next = next;
  mail_waiter_init (&folder->waiter, relisted);
  mail_tree_relist (folder->changes->store, &folder->waiter);
}

static void
made (const GError *error, gpointer data)
{
  Folder *folder = data;

  /* Somebody else was faster: what is wanted is there. */
  if (error != NULL
      && !(folder->leaf == NULL && g_error_matches (error, MAIL_ERROR, MAIL_ERROR_EXISTS)))
    folder_end (folder, error);
  else
    relist (folder, NULL);
}

static void
make (Folder *folder)
{
  MailBackend *backend = folder->changes->store->backend;

  mail_log_info ("creating mailbox %s", folder->name);
  backend->ops->create (backend, folder->name, made, folder);
}

void
mail_folder_make (MailChanges *changes, const char *name, MailDoneFunc done, gpointer user_data)
{
  Folder *folder = g_new0 (Folder, 1);

  folder->changes = changes;
  folder->name = g_strdup (name);
  folder->done = done;
  folder->user_data = user_data;
  make (folder);
}

static gboolean
mkdir_on_net (gpointer data)
{
  Folder *folder = data;
  g_autoptr (GError) error = NULL;
  g_autoptr (MailMailbox) there = mail_mailbox_child (folder->parent, folder->leaf);

  if (there != NULL)
    folder_fail (folder, MAIL_ERROR_EXISTS, "there is such a mailbox already");
  else if ((folder->name = child_name (folder->parent, folder->text, &error)) == NULL)
    folder_end (folder, error);
  else
    make (folder);
  return G_SOURCE_REMOVE;
}

static Folder *
folder_new (MailStore *store, MailMailbox *mailbox, MailMailbox *parent, const char *leaf,
            MailDoneFunc done, gpointer user_data)
{
  Folder *folder = g_new0 (Folder, 1);

  folder->changes = store->changes;
  folder->mailbox = mailbox != NULL ? mail_mailbox_ref (mailbox) : NULL;
  folder->parent = parent != NULL ? mail_mailbox_ref (parent) : NULL;
  folder->leaf = g_strdup (leaf);
  folder->done = done;
  folder->user_data = user_data;
  return folder;
}

/* Whether anything of the kind can be done at all; ends the folder when not. Any thread. */
static gboolean
folder_allowed (Folder *folder, MailMailbox *mailbox, const char *rights)
{
  g_autoptr (GError) error = NULL;

  if (mail_changes_allowed (mailbox, MAIL_CAP_FOLDERS, rights, &error))
    return TRUE;
  folder_end (folder, error);
  return FALSE;
}

void
mail_change_mkdir (MailStore *store, MailMailbox *parent, const char *leaf, MailDoneFunc done,
                   gpointer user_data)
{
  Folder *folder = folder_new (store, NULL, parent, leaf, done, user_data);
  g_autoptr (GError) error = NULL;

  if (!folder_allowed (folder, parent, "kc"))
    return;
  folder->text = store->naming.parse_mailbox_part (leaf, &error);
  if (folder->text == NULL)
    folder_end (folder, error);
  else
    mail_store_invoke (store, mkdir_on_net, folder);
}

/* --- removing
 * ---------------------------------------------------------------------------------------- */

/* INBOX is never removed or renamed, nor what the server has a use for. */
static gboolean
is_protected (MailMailbox *mailbox)
{
  g_rw_lock_reader_lock (&mailbox->store->tree_lock);
  gboolean inbox = mailbox->parent == NULL
                   || (g_ascii_strcasecmp (mailbox->text, "INBOX") == 0
                       && mailbox->parent->parent == NULL
                       && mailbox->store->options.root_mailbox == NULL)
                   || (mailbox->name != NULL && g_ascii_strcasecmp (mailbox->name, "INBOX") == 0);
  gboolean special = mailbox->special_use != NULL;
  g_rw_lock_reader_unlock (&mailbox->store->tree_lock);
  return inbox || special;
}

/* What the user has removed himself does not stand in the way, even where the server keeps it
 * hidden. */
static guint
n_messages (MailMailbox *mailbox)
{
  guint32 n, n_unseen;

  mail_mailbox_count (mailbox, &n, &n_unseen);
  return n;
}

static void rename_now (Folder *folder);

static void
deleted (const GError *error, gpointer data)
{
  Folder *folder = data;

  if (error != NULL)
    folder_end (folder, error);
  else if (folder->in_the_way != NULL)
    rename_now (folder);
  else
    relist (folder, NULL);
}

/* Everything has been looked at. */
static void delete (gpointer data)
{
  Folder *folder = data;
  MailStore *store = folder->changes->store;
  MailMailbox *mailbox = folder->in_the_way != NULL ? folder->in_the_way : folder->mailbox;
  g_autofree char *name = mail_folder_name (mailbox);

  if (name == NULL)
    folder_fail (folder, MAIL_ERROR_GONE, "there is no such mailbox");
  else if (mail_mailbox_n_children (mailbox) > 0 || mail_stage_count (store, mailbox) > 0
           || (mail_mailbox_selectable (mailbox) && n_messages (mailbox) > 0))
    folder_fail (folder, MAIL_ERROR_NOT_EMPTY, "the mailbox is not empty");
  else
    {
      mail_log_info ("deleting mailbox %s, which is empty", name);
      store->backend->ops->delete (store->backend, name, deleted, folder);
    }
}

static void
looked_inside (const GError *error, gpointer data)
{
  if (error != NULL)
    folder_end (data, error);
  else
    delete (data);
}

/* The mailboxes have just been listed: one with others below may be one that cannot be opened. */
static void
look_inside (gpointer data)
{
  Folder *folder = data;
  MailMailbox *mailbox = folder->in_the_way != NULL ? folder->in_the_way : folder->mailbox;

  if (mail_mailbox_n_children (mailbox) == 0 && mail_mailbox_selectable (mailbox))
    mail_look (mailbox, looked_inside, folder);
  else
    delete (folder);
}

static void
list_below (const GError *error, gpointer data)
{
  if (error != NULL)
    folder_end (data, error);
  else
    relist (data, look_inside);
}

void
mail_change_rmdir (MailStore *store, MailMailbox *mailbox, MailDoneFunc done, gpointer user_data)
{
  Folder *folder = folder_new (store, mailbox, NULL, NULL, done, user_data);

  if (!folder_allowed (folder, mailbox, "xcd"))
    return;
  if (is_protected (mailbox))
    folder_fail (folder, MAIL_ERROR_CANNOT, "this mailbox is never removed");
  else if (mail_mailbox_n_children (mailbox) > 0)
    folder_fail (folder, MAIL_ERROR_NOT_EMPTY, "the mailbox is not empty");
  else
    mail_store_drain (store, mailbox, list_below, folder);
}

/* --- renaming
 * ---------------------------------------------------------------------------------------- */

static void
renamed (const GError *error, gpointer data)
{
  Folder *folder = data;
  MailChanges *changes = folder->changes;

  if (error != NULL)
    {
      folder_end (folder, error);
      return;
    }
  mail_tree_move (folder->mailbox, folder->parent, folder->leaf, folder->text, folder->name);
  mail_stage_renamed (changes);
  relist (folder, NULL);
}

static void
rename_now (Folder *folder)
{
  MailStore *store = folder->changes->store;
  g_autoptr (GError) error = NULL;
  g_autofree char *old_name = name_of (folder->mailbox, NULL);

  folder->name = child_name (folder->parent, folder->text, &error);
  if (old_name == NULL)
    folder_fail (folder, MAIL_ERROR_GONE, "there is no such mailbox");
  else if (folder->name == NULL)
    folder_end (folder, error);
  else
    {
      mail_log_info ("renaming mailbox %s to %s", old_name, folder->name);
      store->backend->ops->rename (store->backend, old_name, folder->name, renamed, folder);
    }
}

static void
drained (const GError *error, gpointer data)
{
  Folder *folder = data;

  if (error != NULL)
    folder_end (folder, error);
  else if (folder->in_the_way != NULL)
    list_below (NULL, folder);
  else
    rename_now (folder);
}

void
mail_change_rename_mailbox (MailStore *store, MailMailbox *mailbox, MailMailbox *new_parent,
                            const char *leaf, gboolean replace_empty, MailDoneFunc done,
                            gpointer user_data)
{
  Folder *folder = folder_new (store, mailbox, new_parent, leaf, done, user_data);
  g_autoptr (GError) error = NULL;

  if (!folder_allowed (folder, mailbox, "xcd") || !folder_allowed (folder, new_parent, "kc"))
    return;
  folder->text = store->naming.parse_mailbox_part (leaf, &error);
  folder->in_the_way = mail_mailbox_child (new_parent, leaf);
  g_rw_lock_reader_lock (&store->tree_lock);
  gboolean inside = is_at_or_below (new_parent, mailbox);
  g_rw_lock_reader_unlock (&store->tree_lock);
  if (folder->text == NULL)
    folder_end (folder, error);
  else if (is_protected (mailbox)
           || (folder->in_the_way != NULL && is_protected (folder->in_the_way)))
    folder_fail (folder, MAIL_ERROR_CANNOT, "this mailbox is never renamed");
  else if (inside)
    folder_fail (folder, MAIL_ERROR_INVALID, "a mailbox cannot be moved into itself");
  else if (folder->in_the_way == mailbox)
    folder_end (folder, NULL);
  else if (folder->in_the_way != NULL && !replace_empty)
    folder_fail (folder, MAIL_ERROR_EXISTS, "there is such a mailbox already");
  else
    mail_store_drain (store, NULL, drained, folder);
}
