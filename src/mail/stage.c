/* SPDX-License-Identifier: MIT
 *
 * Staged files: what users wrote and the server does not have yet, and what stands in a mailbox
 * while a move into it is under way. Objects, the tables by which they are found, their journal
 * rows. What happens to them is in commit.c. Any thread, under changes->lock.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <string.h>
#include <unistd.h>

/* The listed ones of one place. */
typedef struct
{
  GPtrArray *by_id;
  GHashTable *by_name; /* borrows the names */
} Dir;

guint64
mail_staged_key (guint32 content_id, guint32 uid)
{
  return (guint64)content_id << 32 | uid;
}

MailStaged *
mail_staged_new (MailChanges *changes, guint32 id)
{
  MailStaged *staged = g_new0 (MailStaged, 1);

  staged->n_refs = 1;
  staged->changes = changes;
  staged->id = id;
  staged->mtime = G_MININT64;
  staged->fd = -1;
  return staged;
}

MailStaged *
mail_staged_ref (MailStaged *staged)
{
  g_atomic_int_inc (&staged->n_refs);
  return staged;
}

void
mail_staged_unref (MailStaged *staged)
{
  if (!g_atomic_int_dec_and_test (&staged->n_refs))
    return;
  if (staged->fd >= 0)
    close (staged->fd);
  g_clear_pointer (&staged->mailbox, mail_mailbox_unref);
  g_clear_pointer (&staged->source, mail_mailbox_unref);
  g_clear_pointer (&staged->recommit, g_array_unref);
  g_clear_pointer (&staged->numbers, g_array_unref);
  g_free (staged->mailbox_name);
  g_free (staged->source_name);
  g_free (staged->name);
  g_free (staged->keywords);
  g_free (staged->error);
  g_free (staged);
}

/* --- tables ------------------------------------------------------------------------------------
 */

static void
dir_free (gpointer data)
{
  Dir *dir = data;

  g_ptr_array_unref (dir->by_id);
  g_hash_table_unref (dir->by_name);
  g_free (dir);
}

void
mail_stage_init (MailChanges *changes)
{
  changes->staged = g_hash_table_new_full (NULL, NULL, NULL, (GDestroyNotify)mail_staged_unref);
  changes->dirs = g_hash_table_new_full (g_int64_hash, g_int64_equal, g_free, dir_free);
  changes->by_replaced = g_hash_table_new_full (g_int64_hash, g_int64_equal, g_free, NULL);
  changes->by_source = g_hash_table_new_full (g_int64_hash, g_int64_equal, g_free, NULL);
}

static Dir *
find_dir (MailChanges *changes, MailMailbox *mailbox, guint area, gboolean make)
{
  guint64 key = mail_staged_key (mailbox->id, area);
  Dir *dir = g_hash_table_lookup (changes->dirs, &key);

  if (dir != NULL || !make)
    return dir;
  dir = g_new0 (Dir, 1);
  dir->by_id = g_ptr_array_new ();
  dir->by_name = g_hash_table_new (g_str_hash, g_str_equal);
  g_hash_table_insert (changes->dirs, g_memdup2 (&key, sizeof key), dir);
  return dir;
}

/* The first one with an id above `id`. */
static guint
first_above (const Dir *dir, guint32 id)
{
  guint low = 0, high = dir->by_id->len;

  while (low < high)
    {
      guint middle = low + (high - low) / 2;

      if (((MailStaged *)dir->by_id->pdata[middle])->id <= id)
        low = middle + 1;
      else
        high = middle;
    }
  return low;
}

void
mail_staged_list_locked (MailStaged *staged, gboolean listed)
{
  if (staged->listed == listed || (listed && (staged->mailbox == NULL || staged->name == NULL)))
    return;
  Dir *dir = find_dir (staged->changes, staged->mailbox, staged->area, TRUE);
  staged->listed = listed;
  if (listed)
    {
      g_ptr_array_insert (dir->by_id, first_above (dir, staged->id), staged);
      g_hash_table_replace (dir->by_name, staged->name, staged);
      return;
    }
  guint at = first_above (dir, staged->id - 1);
  if (at < dir->by_id->len && dir->by_id->pdata[at] == staged)
    g_ptr_array_remove_index (dir->by_id, at);
  if (g_hash_table_lookup (dir->by_name, staged->name) == staged)
    g_hash_table_remove (dir->by_name, staged->name);
  if (dir->by_id->len == 0)
    {
      guint64 key = mail_staged_key (staged->mailbox->id, staged->area);
      g_hash_table_remove (staged->changes->dirs, &key);
    }
}

void
mail_staged_place_locked (MailStaged *staged, MailMailbox *mailbox, const char *mailbox_name,
                          guint area, const char *name)
{
  gboolean listed = staged->listed;

  mail_staged_list_locked (staged, FALSE);
  if (mailbox != NULL)
    mail_mailbox_ref (mailbox);
  g_clear_pointer (&staged->mailbox, mail_mailbox_unref);
  staged->mailbox = mailbox;
  if (staged->mailbox_name != mailbox_name)
    {
      g_free (staged->mailbox_name);
      staged->mailbox_name = g_strdup (mailbox_name);
    }
  staged->area = area;
  if (staged->name != name)
    {
      g_free (staged->name);
      staged->name = g_strdup (name);
    }
  mail_staged_list_locked (staged, listed);
}

static void
drop_number_locked (MailStaged *staged, guint at)
{
  GHashTable *table = staged->changes->by_replaced;
  guint64 number = g_array_index (staged->numbers, guint64, at);

  if (g_hash_table_lookup (table, &number) == staged)
    g_hash_table_remove (table, &number);
  g_array_remove_index_fast (staged->numbers, at);
}

/* Whoever writes to those messages now writes to another file. */
void
mail_staged_unstand_locked (MailStaged *staged)
{
  while (staged->numbers != NULL && staged->numbers->len > 0)
    drop_number_locked (staged, staged->numbers->len - 1);
}

static gboolean
find_number (const MailStaged *staged, guint64 number, guint *at_out)
{
  for (guint i = 0; staged->numbers != NULL && i < staged->numbers->len; i++)
    if (g_array_index (staged->numbers, guint64, i) == number)
      {
        *at_out = i;
        return TRUE;
      }
  return FALSE;
}

/* The version before may still be open, so that it leads here too. */
void
mail_staged_stand_for_locked (MailStaged *staged, guint32 content_id, guint32 uidvalidity,
                              guint32 uid)
{
  guint64 number = mail_staged_key (content_id, uid);
  guint at;

  staged->replaces_content = content_id;
  staged->replaces_uidvalidity = uidvalidity;
  staged->replaces_uid = uid;
  staged->retired = FALSE;
  staged->in_place = uid != 0;
  if (uid == 0)
    {
      mail_staged_unstand_locked (staged);
      return;
    }
  if (staged->numbers == NULL)
    staged->numbers = g_array_new (FALSE, FALSE, sizeof number);
  if (!find_number (staged, number, &at))
    g_array_append_val (staged->numbers, number);
  g_hash_table_replace (staged->changes->by_replaced, g_memdup2 (&number, sizeof number), staged);
}

GArray *
mail_staged_numbers (MailStaged *staged)
{
  GArray *copy = g_array_new (FALSE, FALSE, sizeof (guint64));

  g_mutex_lock (&staged->changes->lock);
  if (staged->numbers != NULL)
    g_array_append_vals (copy, staged->numbers->data, staged->numbers->len);
  g_mutex_unlock (&staged->changes->lock);
  return copy;
}

void
mail_staged_forget_number (MailStaged *staged, guint64 number)
{
  guint at;

  g_mutex_lock (&staged->changes->lock);
  if (number != mail_staged_key (staged->replaces_content, staged->replaces_uid)
      && find_number (staged, number, &at))
    drop_number_locked (staged, at);
  g_mutex_unlock (&staged->changes->lock);
}

void
mail_staged_moves_locked (MailStaged *staged, guint32 content_id, guint32 uid)
{
  GHashTable *table = staged->changes->by_source;
  guint64 key = mail_staged_key (staged->source_content, staged->source_uid);

  if (GPOINTER_TO_UINT (g_hash_table_lookup (table, &key)) == staged->id)
    g_hash_table_remove (table, &key);
  if (uid == 0)
    return;
  staged->source_content = content_id;
  staged->source_uid = uid;
  key = mail_staged_key (content_id, uid);
  g_hash_table_replace (table, g_memdup2 (&key, sizeof key), GUINT_TO_POINTER (staged->id));
}

/* --- journal -----------------------------------------------------------------------------------
 */

void
mail_staged_journal_locked (MailStaged *staged)
{
  MailJournalStaged row = {
    .id = staged->id,
    .state = staged->dropped ? MAIL_STAGED_DROPPED : staged->state,
    .mailbox = staged->mailbox_name,
    .area = staged->area,
    .name = staged->name,
    .temporary = staged->temporary,
    .mtime = staged->mtime,
    .flags = staged->flags,
    .keywords = staged->keywords,
    .size = staged->size,
    .wire_size = staged->wire_size,
    .replaces_content = staged->replaces_content,
    .replaces_uidvalidity = staged->replaces_uidvalidity,
    .replaces = staged->retired ? 0 : staged->replaces_uid,
    .in_place = staged->in_place,
    .source = staged->source_name,
    .source_uidvalidity = staged->source_uidvalidity,
    .source_uid = staged->source_uid,
    .uidvalidity = staged->uidvalidity,
    .uid = staged->uid,
    .error = staged->error,
    .dirty = staged->dirty
             && (staged->state == MAIL_STAGED_QUEUED || staged->state == MAIL_STAGED_DONE),
  };

  if (staged->placeholder)
    return;
  memcpy (row.digest, staged->digest, sizeof row.digest);
  mail_journal_put_staged (staged->changes->journal, &row);
}

gboolean
mail_staged_save_locked (MailStaged *staged, GError **error)
{
  mail_journal_begin (staged->changes->journal);
  mail_staged_journal_locked (staged);
  return mail_journal_commit (staged->changes->journal, error);
}

/* --- ends ----------------------------------------------------------------------------------------
 */

void
mail_staged_remove_spool_locked (MailStaged *staged)
{
  if (staged->fd >= 0)
    close (staged->fd);
  staged->fd = -1;
  if (staged->has_spool)
    {
      mail_spool_remove (staged->changes, staged->id);
      staged->changes->spool_bytes -= MIN (staged->size, staged->changes->spool_bytes);
    }
  staged->has_spool = FALSE;
}

void
mail_staged_discard_locked (MailStaged *staged, MailStagedState state)
{
  MailChanges *changes = staged->changes;

  mail_staged_list_locked (staged, FALSE);
  staged->state = state;
  /* The row of one that is done goes when the index has its name. */
  if (!staged->placeholder && state != MAIL_STAGED_DONE)
    {
      mail_journal_begin (changes->journal);
      mail_journal_remove_staged (changes->journal, staged->id);
      mail_journal_commit (changes->journal, NULL);
    }
  mail_staged_remove_spool_locked (staged);
  mail_staged_unstand_locked (staged);
  mail_staged_moves_locked (staged, 0, 0);
  g_hash_table_remove (changes->staged,
                       GUINT_TO_POINTER (staged->id)); /* may be the last reference */
}

/* What is to be told once the lock is released. */
typedef struct
{
  MailMailbox *mailbox; /* a reference, or NULL */
  guint32 hidden_content, hidden;
} Failing;

/* keep: what was written to it, as FAILED; else it goes. */
static Failing
fail_locked (MailStaged *staged, const char *reason, gboolean keep)
{
  Failing failing = { 0 };

  mail_staged_list_locked (staged, FALSE);
  if (staged->mailbox != NULL)
    failing.mailbox = mail_mailbox_ref (staged->mailbox);
  if (!staged->in_place && !staged->retired && staged->replaces_uid != 0)
    {
      failing.hidden_content = staged->replaces_content;
      failing.hidden = staged->replaces_uid;
    }
  mail_staged_stand_for_locked (staged, 0, 0, 0);
  staged->change = NULL;
  if (!keep)
    {
      mail_staged_discard_locked (staged, MAIL_STAGED_DROPPED);
      return failing;
    }
  staged->state = MAIL_STAGED_FAILED;
  g_free (staged->error);
  staged->error = mail_log_escape (reason, -1, 500);
  if (staged->fd >= 0)
    close (staged->fd);
  staged->fd = -1;
  mail_staged_save_locked (staged, NULL);
  mail_log_warning ("\"%s\" is not on the server and stays in .mailfs/failed: %s",
                    staged->name != NULL ? staged->name : "a file", staged->error);
  return failing;
}

static void
tell_failed (MailStaged *staged, const Failing *failing, const char *reason)
{
  g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_FAILED, "%s", reason);

  mail_effect_show_again (staged->changes->store, failing->hidden_content, failing->hidden);
  if (failing->mailbox != NULL)
    {
      mail_effect_directory (failing->mailbox);
      mail_mailbox_unref (failing->mailbox);
    }
  mail_staged_no_next (staged, error);
}

void
mail_staged_fail (MailStaged *staged, const char *reason)
{
  MailChanges *changes = staged->changes;

  g_mutex_lock (&changes->lock);
  if (staged->state == MAIL_STAGED_DROPPED)
    {
      g_mutex_unlock (&changes->lock); /* the user was faster */
      return;
    }
  /* A copy on the server holds nothing of the user's: its source is where it was. */
  Failing failing = fail_locked (staged, reason,
                                 !staged->placeholder && !staged->dropped && staged->has_spool);
  g_mutex_unlock (&changes->lock);
  tell_failed (staged, &failing, reason);
}

void
mail_staged_interrupt (MailStaged *staged, const MailMailbox *where, const char *reason)
{
  MailChanges *changes = staged->changes;

  g_mutex_lock (&changes->lock);
  if (staged->state != MAIL_STAGED_LOCAL
      || (where != NULL && (staged->mailbox != where || !staged->temporary)))
    {
      g_mutex_unlock (&changes->lock);
      return;
    }
  /* A write that is under way has made it dirty. */
  gboolean empty = staged->source_name != NULL || (staged->size == 0 && !staged->dirty);
  Failing failing = fail_locked (staged, reason, !empty);
  g_mutex_unlock (&changes->lock);
  tell_failed (staged, &failing, reason);
}

void
mail_staged_no_next (MailStaged *staged, const GError *error)
{
  MailChanges *changes = staged->changes;

  g_mutex_lock (&changes->lock);
  g_autoptr (GArray) waiters = g_steal_pointer (&staged->recommit);
  g_mutex_unlock (&changes->lock);
  for (guint i = 0; waiters != NULL && i < waiters->len; i++)
    {
      const MailChangeWaiter *waiter = &g_array_index (waiters, MailChangeWaiter, i);

      if (waiter->done != NULL)
        waiter->done (error, waiter->user_data);
    }
}

/* Renamed over a message while it was on its way: what brought it takes that one away. */
void
mail_staged_pass_on_locked (MailStaged *staged)
{
  MailChange *change = staged->change;

  if (change == NULL || change->replaces != 0 || staged->in_place || staged->retired)
    return;
  change->replaces_content = staged->replaces_content;
  change->replaces_uidvalidity = staged->replaces_uidvalidity;
  change->replaces = staged->replaces_uid;
}

void
mail_staged_done_locked (MailStaged *staged, guint32 content_id, guint32 uidvalidity, guint32 uid)
{
  MailChanges *changes = staged->changes;

  mail_staged_list_locked (staged, FALSE);
  staged->state = MAIL_STAGED_DONE;
  staged->content_id = content_id;
  staged->uidvalidity = uidvalidity;
  staged->uid = uid;
  mail_staged_pass_on_locked (staged);
  staged->change = NULL;
  mail_staged_moves_locked (staged, 0, 0);
  if (staged->placeholder && !staged->known)
    g_hash_table_remove (changes->staged, GUINT_TO_POINTER (staged->id));
  /* The row stays until the index knows the name: a kill in between must not lose it. */
  if (staged->placeholder)
    return;
  mail_staged_save_locked (staged, NULL);
  g_array_append_val (changes->done_rows, staged->id);
}

/* --- looking up ----------------------------------------------------------------------------------
 */

static MailStaged *
found (MailChanges *changes, MailStaged *staged)
{
  if (staged != NULL)
    mail_staged_ref (staged);
  g_mutex_unlock (&changes->lock);
  return staged;
}

MailStaged *
mail_stage_find (MailStore *store, guint32 id)
{
  g_mutex_lock (&store->changes->lock);
  return found (store->changes,
                g_hash_table_lookup (store->changes->staged, GUINT_TO_POINTER (id)));
}

void
mail_stage_known (MailStore *store, guint32 id)
{
  g_mutex_lock (&store->changes->lock);
  MailStaged *staged = g_hash_table_lookup (store->changes->staged, GUINT_TO_POINTER (id));
  if (staged != NULL)
    staged->known = TRUE;
  g_mutex_unlock (&store->changes->lock);
}

MailStaged *
mail_stage_find_replacement (MailStore *store, guint32 content_id, guint32 uid)
{
  guint64 key = mail_staged_key (content_id, uid);

  g_mutex_lock (&store->changes->lock);
  return found (store->changes, g_hash_table_lookup (store->changes->by_replaced, &key));
}

MailStaged *
mail_stage_lookup (MailStore *store, MailMailbox *mailbox, guint area, const char *name)
{
  g_mutex_lock (&store->changes->lock);
  const Dir *dir = find_dir (store->changes, mailbox, area, FALSE);
  return found (store->changes, dir != NULL ? g_hash_table_lookup (dir->by_name, name) : NULL);
}

MailStaged *
mail_stage_next (MailStore *store, MailMailbox *mailbox, guint area, guint32 id)
{
  MailStaged *staged = NULL;

  g_mutex_lock (&store->changes->lock);
  const Dir *dir = find_dir (store->changes, mailbox, area, FALSE);
  guint at = dir != NULL ? first_above (dir, id) : 0;
  if (dir != NULL && at < dir->by_id->len)
    staged = dir->by_id->pdata[at];
  return found (store->changes, staged);
}

guint
mail_stage_count (MailStore *store, MailMailbox *mailbox)
{
  GHashTableIter iter;
  gpointer key, value;
  guint n = 0;

  g_mutex_lock (&store->changes->lock);
  g_hash_table_iter_init (&iter, store->changes->dirs);
  while (g_hash_table_iter_next (&iter, &key, &value))
    if (*(guint64 *)key >> 32 == mailbox->id)
      n += ((Dir *)value)->by_id->len;
  g_mutex_unlock (&store->changes->lock);
  return n;
}

MailStaged *
mail_stage_next_failed (MailStore *store, guint32 id)
{
  MailStaged *next = NULL;
  GHashTableIter iter;
  gpointer value;

  g_mutex_lock (&store->changes->lock);
  g_hash_table_iter_init (&iter, store->changes->staged);
  while (g_hash_table_iter_next (&iter, NULL, &value))
    {
      MailStaged *staged = value;

      if (staged->state == MAIL_STAGED_FAILED && staged->id > id
          && (next == NULL || staged->id < next->id))
        next = staged;
    }
  return found (store->changes, next);
}

/* What stands in the target of the move that this message is on. */
static MailStaged *
find_moving (MailChanges *changes, guint32 content_id, guint32 uid)
{
  guint64 key = mail_staged_key (content_id, uid);

  g_mutex_lock (&changes->lock);
  gpointer id = g_hash_table_lookup (changes->by_source, &key);
  MailStaged *moving = id != NULL ? g_hash_table_lookup (changes->staged, id) : NULL;
  return found (
      changes,
      moving != NULL && moving->placeholder && moving->state == MAIL_STAGED_QUEUED ? moving : NULL);
}

gboolean
mail_store_follow (MailStore *store, guint32 content_id, guint32 uid, MailMailbox **mailbox_out,
                   guint32 *uid_out, MailStaged **staged_out)
{
  MailMessage message;

  *mailbox_out = NULL;
  *uid_out = uid;
  /* Moved on several times: the last place counts. Until the message is there its placeholder is,
   * and that is looked for first, since where it went is noted before the one takes the other's
   * place. */
  for (guint i = 0; i < 8; i++)
    {
      *staged_out = find_moving (store->changes, content_id, *uid_out);
      MailMailbox *next = *staged_out == NULL ? mail_changes_moved (store, content_id, uid_out)
                                              : NULL;

      if (*staged_out != NULL)
        g_clear_pointer (mailbox_out, mail_mailbox_unref);
      if (next == NULL)
        break;
      g_clear_pointer (mailbox_out, mail_mailbox_unref);
      *mailbox_out = next;
      content_id = mail_mailbox_content_id (next);
      if (mail_mailbox_find (next, *uid_out, &message))
        return TRUE;
    }
  return *mailbox_out != NULL || *staged_out != NULL;
}

void
mail_staged_info (MailStaged *staged, MailStagedInfo *info_out)
{
  MailChanges *changes = staged->changes;

  g_mutex_lock (&changes->lock);
  *info_out = (MailStagedInfo) {
    .id = staged->id,
    .state = staged->dropped ? MAIL_STAGED_DROPPED : staged->state,
    .area = staged->area,
    .size = staged->size,
    .mtime = staged->mtime,
    .flags = staged->flags,
    .keywords = mail_index_keywords_id (changes->store->index, staged->keywords),
    .replaces_uid = staged->in_place ? staged->replaces_uid : 0,
    .replaces_content = staged->in_place ? staged->replaces_content : 0,
    .n_emptied = staged->n_emptied,
    .content_id = staged->content_id,
    .uid = staged->uid,
  };
  g_mutex_unlock (&changes->lock);
  if (info_out->mtime == G_MININT64)
    info_out->mtime = g_get_real_time () / G_USEC_PER_SEC;
}

char *
mail_staged_name (MailStaged *staged)
{
  g_mutex_lock (&staged->changes->lock);
  char *name = g_strdup (staged->name);
  g_mutex_unlock (&staged->changes->lock);
  return name;
}

/* A reference, or NULL: it is in none; gone_out: the server no longer has that one. */
static MailMailbox *
get_place (MailStaged *staged, gboolean *gone_out)
{
  MailChanges *changes = staged->changes;

  g_mutex_lock (&changes->lock);
  MailMailbox *mailbox = staged->mailbox != NULL ? mail_mailbox_ref (staged->mailbox) : NULL;
  g_mutex_unlock (&changes->lock);
  g_rw_lock_reader_lock (&changes->store->tree_lock);
  *gone_out = mailbox != NULL && !mailbox->in_tree;
  g_rw_lock_reader_unlock (&changes->store->tree_lock);
  return mailbox;
}

MailMailbox *
mail_staged_mailbox (MailStaged *staged)
{
  gboolean gone;
  g_autoptr (MailMailbox) mailbox = get_place (staged, &gone);

  return !gone ? g_steal_pointer (&mailbox) : NULL;
}

char *
mail_staged_error (MailStaged *staged)
{
  g_mutex_lock (&staged->changes->lock);
  char *error = g_strdup (staged->error);
  g_mutex_unlock (&staged->changes->lock);
  return error;
}

MailMailbox *
mail_staged_message (MailStaged *staged, guint32 *uid_out)
{
  MailChanges *changes = staged->changes;
  guint32 content_id = 0;

  g_mutex_lock (&changes->lock);
  if (staged->state == MAIL_STAGED_DONE && !staged->has_spool)
    {
      content_id = staged->content_id;
      *uid_out = staged->uid;
    }
  else if (staged->source != NULL && !staged->has_spool)
    {
      content_id = staged->source_content;
      *uid_out = staged->source_uid;
    }
  g_mutex_unlock (&changes->lock);
  return content_id != 0 ? mail_store_contents (changes->store, content_id) : NULL;
}

/* References to all there are. */
static GPtrArray *
get_all (MailChanges *changes)
{
  GPtrArray *all = g_ptr_array_new_with_free_func ((GDestroyNotify)mail_staged_unref);
  GHashTableIter iter;
  gpointer value;

  g_mutex_lock (&changes->lock);
  g_hash_table_iter_init (&iter, changes->staged);
  while (g_hash_table_iter_next (&iter, NULL, &value))
    g_ptr_array_add (all, mail_staged_ref (value));
  g_mutex_unlock (&changes->lock);
  return all;
}

void
mail_stage_give_up_waiting (MailChanges *changes, const GError *error)
{
  g_autoptr (GPtrArray) all = get_all (changes);

  for (guint i = 0; i < all->len; i++)
    mail_staged_no_next (all->pdata[i], error);
}

void
mail_stage_renamed (MailChanges *changes)
{
  g_autoptr (GPtrArray) all = get_all (changes);

  for (guint i = 0; i < all->len; i++)
    {
      MailStaged *staged = all->pdata[i];
      g_autoptr (MailMailbox) mailbox = mail_staged_mailbox (staged);
      g_autofree char *name = mailbox != NULL ? mail_folder_name (mailbox) : NULL;

      g_mutex_lock (&changes->lock);
      if (name != NULL && g_strcmp0 (name, staged->mailbox_name) != 0)
        {
          g_free (staged->mailbox_name);
          staged->mailbox_name = g_steal_pointer (&name);
          mail_staged_save_locked (staged, NULL);
        }
      g_mutex_unlock (&changes->lock);
    }
}

void
mail_stage_mailboxes_gone (MailChanges *changes)
{
  g_autoptr (GPtrArray) all = get_all (changes);

  for (guint i = 0; i < all->len; i++)
    {
      gboolean gone;
      g_autoptr (MailMailbox) where = get_place (all->pdata[i], &gone);

      if (gone)
        mail_staged_interrupt (all->pdata[i], where, "its mailbox no longer exists");
    }
}
