/* SPDX-License-Identifier: MIT
 *
 * Messages that go from one mailbox to another on the server: moves, copies, removals to the trash.
 * An OK proves nothing, a UID in COPYUID does, or finding the message in the target. Without MOVE
 * it is COPY, then the original goes, with a journal entry between, so that a crash can leave two
 * but never none. Net thread.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <string.h>

static void
all_error (MailBatch *batch, const GError *error)
{
  while (batch->items->len > 0)
    mail_batch_error (batch, batch->items->pdata[0], error);
  mail_batch_end (batch);
}

static gboolean
is_copy (const MailBatch *batch)
{
  return batch->kind == MAIL_CHANGE_COPY;
}

static gboolean
has_move (const MailBatch *batch)
{
  return (mail_store_caps (batch->changes->store) & MAIL_CAP_MOVE) != 0;
}

/* --- effects
 * --------------------------------------------------------------------------------------------- */

/* Where a message is that some reader still knows by its old place. */
typedef struct
{
  guint32 content_id, uidvalidity, uid;
} Moved;

static void
remember_move (MailChanges *changes, guint32 content_id, guint32 uid, guint32 new_content,
               guint32 new_uidvalidity, guint32 new_uid)
{
  guint64 key = mail_staged_key (content_id, uid);
  Moved moved = { new_content, new_uidvalidity, new_uid };

  g_mutex_lock (&changes->lock);
  if (g_hash_table_size (changes->moved) >= MAIL_MOVED_MAX)
    g_hash_table_remove_all (changes->moved);
  g_hash_table_replace (changes->moved, g_memdup2 (&key, sizeof key),
                        g_memdup2 (&moved, sizeof moved));
  g_mutex_unlock (&changes->lock);
}

MailMailbox *
mail_changes_moved (MailStore *store, guint32 content_id, guint32 *uid)
{
  guint64 key = mail_staged_key (content_id, *uid);
  guint32 new_content = 0, uidvalidity = 0;

  g_mutex_lock (&store->changes->lock);
  const Moved *moved = g_hash_table_lookup (store->changes->moved, &key);
  if (moved != NULL)
    {
      new_content = moved->content_id;
      uidvalidity = moved->uidvalidity;
      *uid = moved->uid;
    }
  g_mutex_unlock (&store->changes->lock);
  g_autoptr (MailMailbox) mailbox = new_content != 0 ? mail_store_contents (store, new_content)
                                                     : NULL;
  guint32 known = mailbox != NULL ? mail_effect_uidvalidity (mailbox) : 0;
  return known == 0 || known == uidvalidity ? g_steal_pointer (&mailbox) : NULL;
}

/* FALSE: what has these UIDs here by now are other messages. */
static gboolean
is_as_numbered (MailBatch *batch)
{
  return mail_effect_uidvalidity (batch->mailbox) == batch->uidvalidity;
}

/* The server has it as `uid` of the target; copy: and where it was. */
static void
arrive (MailBatch *batch, MailChange *change, gboolean copy, guint32 uidvalidity, guint32 uid)
{
  MailStore *store = batch->changes->store;
  MailMailbox *target = batch->target;
  MailMessage message;

  if (target == NULL || !is_as_numbered (batch)
      || !mail_mailbox_find_gone (batch->mailbox, change->uid, &message))
    {
      if (change->staged != NULL && target != NULL)
        mail_staged_settle_unseen (change->staged, target, uidvalidity, uid);
      return;
    }
  g_autoptr (MailStaged) staged = change->staged != NULL ? mail_staged_ref (change->staged) : NULL;
  guint32 new_content = mail_mailbox_content_id (target);
  guint32 known = mail_effect_uidvalidity (target);
  /* Bytes go along only where it is surely the same: a mailbox that was never listed may be
   * numbered anew by then. */
  if (!change->alike && known == uidvalidity && copy)
    mail_cache_copy (store->cache, change->content_id, change->uid, new_content, uid);
  else if (!change->alike && known == uidvalidity)
    mail_cache_move (store->cache, change->content_id, change->uid, new_content, uid);
  if (!change->alike && !copy && (known == uidvalidity || known == 0))
    remember_move (batch->changes, change->content_id, change->uid, new_content, uidvalidity, uid);
  message.uid = uid;
  message.modseq = 0;
  message.local &= MAIL_LOCAL_EXACT;
  if (staged == NULL)
    mail_effect_insert (target, uidvalidity, &message, NULL, NULL);
  else if (!mail_staged_settle (staged, target, uidvalidity, &message))
    mail_staged_settle_unseen (staged, target, uidvalidity, uid);
}

static void
log_uids (const char *what, const char *mailbox, const MailUidSet *uids, const char *target)
{
  for (guint i = 0; i < uids->len; i += 40)
    {
      GString *text = g_string_new (NULL);

      mail_uid_ranges_format (text, &g_array_index (uids, MailUidRange, i),
                              MIN (40, uids->len - i));
      mail_log_info ("%s %s/%s%s%s", what, mailbox, text->str, target != NULL ? " to " : "",
                     target != NULL ? target : "");
      g_string_free (text, TRUE);
    }
}

void
mail_log_removed (MailBatch *batch, const MailUidSet *uids, const char *target)
{
  log_uids (target != NULL ? "removed, moved" : "removed for good", batch->mailbox_name, uids,
            target);
}

static void
gone (MailBatch *batch, MailChange *change)
{
  g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_GONE, "no such message");

  g_mutex_lock (&batch->mailbox->lock);
  batch->mailbox->tried_at = 0; /* look again soon */
  g_mutex_unlock (&batch->mailbox->lock);
  if (change->kind == MAIL_CHANGE_REMOVE && change->n_tries > 0)
    mail_batch_succeed (batch, change); /* the first try did it */
  else
    mail_batch_fail (batch, change, error);
}

static void
set_step (MailBatch *batch, MailChange *change, MailChangeStep step, guint32 new_uid)
{
  g_mutex_lock (&batch->changes->lock);
  change->step = step;
  change->new_uid = new_uid;
  g_mutex_unlock (&batch->changes->lock);
}

/* What was replaced goes; what waited is told. */
static void
complete (MailBatch *batch, MailChange *change, guint32 uidvalidity, guint32 uid)
{
  arrive (batch, change, is_copy (batch), uidvalidity, uid);
  if (change->replaces != 0)
    mail_change_settled (change);
  mail_batch_succeed (batch, change);
}

/* --- without MOVE: the original goes
 * ---------------------------------------------------------------------- */

/* The server keeps the original: the message is in both places, and that is what is shown and said.
 * The copy is not taken back: who knows whether the original is not marked by now. */
static void
keep_both (MailBatch *batch, MailChange *change, const GError *error)
{
  g_autoptr (GError) both = g_error_new (error->domain, error->code,
                                         "copied to %s, but the original could not be removed: %s",
                                         batch->target_name, error->message);

  arrive (batch, change, TRUE, change->target_uidvalidity, change->new_uid);
  if (change->replaces != 0)
    mail_change_settled (change);
  mail_effect_unhide (change->mailbox, change->content_id, change->uid, TRUE);
  mail_index_flush (batch->changes->store->index);
  mail_batch_half_done (batch, change, both);
}

static void
originals_removed (const GError *error, gpointer data)
{
  MailBatch *batch = data;

  mail_failpoint ("copy-removed");
  if (error != NULL && mail_store_is_network_error (error))
    {
      all_error (batch, error);
      return;
    }
  while (error != NULL && batch->items->len > 0)
    keep_both (batch, batch->items->pdata[0], error);
  while (batch->items->len > 0)
    {
      MailChange *change = batch->items->pdata[0];

      complete (batch, change, change->target_uidvalidity, change->new_uid);
    }
  mail_batch_end (batch);
}

static void
remove_originals (MailBatch *batch)
{
  MailBackend *backend = batch->changes->store->backend;

  mail_uid_set_free (batch->uids);
  batch->uids = mail_uid_set_new ();
  for (guint i = 0; i < batch->items->len; i++)
    {
      guint32 uid = ((MailChange *)batch->items->pdata[i])->uid;
      mail_uid_set_add (batch->uids, uid, uid);
    }
  mail_failpoint ("copy-copied");
  log_uids ("moved", batch->mailbox_name, batch->uids, batch->target_name);
  backend->ops->remove (backend, batch->mailbox_name, batch->uidvalidity,
                        (const MailUidRange *)batch->uids->data, batch->uids->len, NULL,
                        originals_removed, batch);
}

/* Those whose copy is known go on; everything else has been decided. */
static void
copied (MailBatch *batch)
{
  g_autoptr (GError) error = NULL;

  if (batch->items->len == 0)
    mail_batch_end (batch);
  else if (!mail_batch_journal (batch, &error))
    all_error (batch, error);
  else
    remove_originals (batch);
}

/* --- the answer
 * -------------------------------------------------------------------------------------------- */

/* "No such message" to what was sent before: a server may have been at it still while we looked. */
static gboolean
may_be_done (const MailChange *change, const GError *error)
{
  return change->n_tries > 0 && g_error_matches (error, MAIL_ERROR, MAIL_ERROR_GONE);
}

/* Refused: what was not told to be there was not done. The connection lost: look before trying
 * again. A long set goes out as several commands: the earlier ones may have been done all the same.
 */
static void
interrupted (MailBatch *batch, GHashTable *by_uid, guint32 target_uidvalidity, const GError *error)
{
  gboolean two_steps = !is_copy (batch) && !has_move (batch);
  gboolean refused = !mail_store_is_network_error (error)
                     || g_error_matches (error, MAIL_ERROR, MAIL_ERROR_UNREACHABLE)
                     || g_error_matches (error, MAIL_ERROR, MAIL_ERROR_BUSY);
  g_autoptr (GPtrArray) items = g_ptr_array_copy (batch->items, NULL, NULL);

  for (guint i = 0; i < items->len; i++)
    {
      MailChange *change = items->pdata[i];
      guint32 to = GPOINTER_TO_UINT (g_hash_table_lookup (by_uid, GUINT_TO_POINTER (change->uid)));

      if (to != 0)
        change->target_uidvalidity = target_uidvalidity;
      if (to != 0 && two_steps)
        set_step (batch, change, MAIL_STEP_COPIED, to);
      else if (to == 0 && refused && !may_be_done (change, error))
        set_step (batch, change, MAIL_STEP_NEW, 0);
    }
  mail_batch_journal (batch, NULL);
  for (guint i = 0; i < items->len; i++)
    {
      MailChange *change = items->pdata[i];
      guint32 to = GPOINTER_TO_UINT (g_hash_table_lookup (by_uid, GUINT_TO_POINTER (change->uid)));

      if (to != 0 && is_copy (batch))
        complete (batch, change, target_uidvalidity, to);
      else if (to != 0 || may_be_done (change, error))
        {
          change->lost |= refused;
          mail_batch_retry (batch, change, NULL); /* the original is to go, or to be looked for */
        }
    }
  mail_batch_refused (batch, error);
  mail_batch_end (batch);
}

static void
transferred (guint32 target_uidvalidity, const MailUidPair *pairs, guint n_pairs,
             const GError *error, gpointer data)
{
  MailBatch *batch = data;
  gboolean two_steps = !is_copy (batch) && !has_move (batch);
  g_autoptr (GPtrArray) items = g_ptr_array_copy (batch->items, NULL, NULL);

  mail_failpoint (is_copy (batch) || two_steps ? "copy-answered" : "move-answered");
  gboolean silent = n_pairs == 0 && target_uidvalidity == 0;
  g_autoptr (GHashTable) by_uid = g_hash_table_new (NULL, NULL);
  for (guint i = 0; i < n_pairs; i++)
    g_hash_table_insert (by_uid, GUINT_TO_POINTER (pairs[i].from), GUINT_TO_POINTER (pairs[i].to));
  if (error != NULL)
    {
      interrupted (batch, by_uid, target_uidvalidity, error);
      return;
    }
  for (guint i = 0; i < items->len; i++)
    {
      MailChange *change = items->pdata[i];
      guint32 to = GPOINTER_TO_UINT (g_hash_table_lookup (by_uid, GUINT_TO_POINTER (change->uid)));

      change->target_uidvalidity = to != 0 ? target_uidvalidity : change->target_uidvalidity;
      if (to != 0 && two_steps)
        set_step (batch, change, MAIL_STEP_COPIED, to);
      else if (to != 0)
        complete (batch, change, target_uidvalidity, to);
      else if (silent || change->n_tries > 0)
        {
          /* No UIDPLUS, or an earlier try may have done it: look. It stays SENT. */
          change->lost |= silent;
          mail_batch_retry (batch, change, NULL);
        }
      else
        gone (batch, change);
    }
  if (two_steps)
    copied (batch);
  else
    mail_batch_end (batch);
}

static void
send (MailBatch *batch)
{
  MailBackend *backend = batch->changes->store->backend;
  g_autoptr (GError) error = NULL;

  if (batch->mailbox_name == NULL || batch->target_name == NULL)
    {
      error = g_error_new (MAIL_ERROR, MAIL_ERROR_GONE, "the mailbox no longer exists");
      all_error (batch, error);
      return;
    }
  guint32 bound = batch->target != NULL ? mail_effect_bound (batch->target) : 1;
  guint32 uidvalidity = batch->target != NULL ? mail_effect_uidvalidity (batch->target) : 0;
  for (guint i = 0; i < batch->items->len; i++)
    {
      MailChange *change = batch->items->pdata[i];

      g_mutex_lock (&batch->changes->lock);
      /* A try before this one, whose outcome was not seen, may have put it there already. */
      if (change->n_tries == 0 || change->target_uidvalidity != uidvalidity)
        change->bound = bound;
      change->target_uidvalidity = uidvalidity;
      change->step = MAIL_STEP_SENT;
      g_mutex_unlock (&batch->changes->lock);
    }
  if (!mail_batch_journal (batch, &error))
    {
      for (guint i = 0; i < batch->items->len; i++)
        set_step (batch, batch->items->pdata[i], MAIL_STEP_NEW, 0);
      all_error (batch, error);
      return;
    }
  mail_failpoint (is_copy (batch) || !has_move (batch) ? "copy-sent" : "move-sent");
  if (batch->kind == MAIL_CHANGE_REMOVE)
    mail_log_removed (batch, batch->uids, batch->target_name);
  const MailUidRange *ranges = (const MailUidRange *)batch->uids->data;
  if (is_copy (batch) || !has_move (batch))
    backend->ops->copy (backend, batch->mailbox_name, batch->uidvalidity, ranges, batch->uids->len,
                        batch->target_name, transferred, batch);
  else
    backend->ops->move (backend, batch->mailbox_name, batch->uidvalidity, ranges, batch->uids->len,
                        batch->target_name, transferred, batch);
}

/* --- looking whether it was done
 * --------------------------------------------------------------------------- */

/* Where all was numbered anew nobody knows, and the server will refuse what names it. */
static gboolean
still_there (MailBatch *batch, guint32 uid)
{
  if (!is_as_numbered (batch))
    return TRUE;
  g_mutex_lock (&batch->mailbox->lock);
  gboolean there = mail_mailbox_get_locked (batch->mailbox, uid) != NULL;
  g_mutex_unlock (&batch->mailbox->lock);
  return there;
}

/* Not done: once more, unless the server has said OK to it already. */
static void
try_again (MailBatch *batch, MailChange *change)
{
  g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_FAILED,
                                          "the server said OK and did nothing");

  set_step (batch, change, MAIL_STEP_NEW, 0);
  if (change->lost && change->lost_before)
    {
      mail_batch_fail (batch, change, error);
      return;
    }
  change->lost_before = change->lost;
  g_mutex_lock (&batch->changes->lock);
  mail_journal_begin (batch->changes->journal);
  mail_change_journal_locked (change);
  mail_journal_commit (batch->changes->journal, NULL);
  g_mutex_unlock (&batch->changes->lock);
  mail_batch_retry (batch, change, NULL);
}

static void
found (GArray *wanted, const GError *error, gpointer data)
{
  MailBatch *batch = data;
  g_autoptr (GPtrArray) items = g_ptr_array_copy (batch->items, NULL, NULL);
  guint32 uidvalidity = batch->target != NULL ? mail_effect_uidvalidity (batch->target) : 0;

  if (error != NULL)
    {
      all_error (batch, error);
      return;
    }
  for (guint i = 0; i < items->len; i++)
    {
      MailChange *change = items->pdata[i];
      guint32 uid = g_array_index (wanted, MailWanted, i).uid;
      gboolean there = still_there (batch, change->uid);

      change->target_uidvalidity = uidvalidity;
      change->alike = !g_array_index (wanted, MailWanted, i).by_bytes;
      if (uid != 0 && there && !is_copy (batch))
        set_step (batch, change, MAIL_STEP_COPIED, uid); /* the copy is there: the original goes */
      else if (uid != 0)
        complete (batch, change, uidvalidity, uid);
      else if (there)
        try_again (batch, change);
      else
        gone (batch, change);
    }
  copied (batch);
}

static void
digested (GHashTable *digests, const GError *error, gpointer data)
{
  MailBatch *batch = data;
  GArray *wanted = g_array_new (FALSE, TRUE, sizeof (MailWanted));

  if (error != NULL && !g_error_matches (error, MAIL_ERROR, MAIL_ERROR_GONE))
    {
      g_array_unref (wanted);
      all_error (batch, error);
      return;
    }
  g_array_set_clear_func (wanted, mail_wanted_clear);
  for (guint i = 0; i < batch->items->len; i++)
    {
      MailChange *change = batch->items->pdata[i];
      const MailDigest *digest = digests != NULL
                                     ? g_hash_table_lookup (digests, GUINT_TO_POINTER (change->uid))
                                     : NULL;
      MailWanted one = { .uidvalidity = change->target_uidvalidity, .bound = change->bound };
      MailMessage message = { 0 };

      if (is_as_numbered (batch) && mail_mailbox_find_gone (batch->mailbox, change->uid, &message))
        {
          one.size = message.size;
          one.date = message.internaldate;
        }
      if (digest != NULL)
        {
          one.by_bytes = TRUE;
          one.size = digest->size;
          memcpy (one.digest, digest->digest, MAIL_DIGEST_SIZE);
        }
      else if (message.uid == 0 || (!is_copy (batch) && still_there (batch, change->uid)))
        {
          /* Nothing to recognise it by; and an original that cannot be read does not go for what
           * only looks like it. */
          one.by_bytes = TRUE;
          one.bound = G_MAXUINT32;
        }
      g_array_append_val (wanted, one);
    }
  mail_resolve (batch->target, wanted, found, batch);
}

/* The source has been listed: what is still there can be compared byte by byte. */
static void
source_listed (const GError *error, gpointer data)
{
  MailBatch *batch = data;
  g_autoptr (MailUidSet) there = mail_uid_set_new ();
  g_autoptr (GPtrArray) items = g_ptr_array_copy (batch->items, NULL, NULL);
  gboolean two_steps = is_copy (batch) || !has_move (batch);
  g_autoptr (GError) stale = NULL;

  if (error == NULL && !is_as_numbered (batch))
    error = stale = g_error_new (MAIL_ERROR, MAIL_ERROR_STALE, "the mailbox was numbered anew");
  if (error != NULL)
    {
      all_error (batch, error);
      return;
    }
  for (guint i = 0; i < items->len; i++)
    {
      MailChange *change = items->pdata[i];
      gboolean is_there = still_there (batch, change->uid);

      if (is_there && !two_steps)
        try_again (batch, change); /* a MOVE leaves nothing behind: it was not done */
      else if (!is_there && change->kind == MAIL_CHANGE_REMOVE)
        mail_batch_succeed (batch, change);
      else if (is_there && batch->target == NULL)
        try_again (batch, change);
      else if (is_there)
        mail_uid_set_add (there, change->uid, change->uid);
    }
  if (batch->items->len == 0)
    mail_batch_end (batch);
  else if (there->len > 0)
    mail_digest_messages (batch->mailbox, there, digested, batch);
  else
    digested (NULL, NULL, batch);
}

static void
begin (const GError *error, gpointer data)
{
  if (error != NULL)
    all_error (data, error);
  else
    send (data);
}

void
mail_transfer_start (MailBatch *batch)
{
  gboolean known = TRUE;

  if (batch->target != NULL)
    {
      g_mutex_lock (&batch->target->lock);
      known = batch->target->loaded || mail_mailbox_load_locked (batch->target);
      g_mutex_unlock (&batch->target->lock);
    }
  if (batch->step == MAIL_STEP_COPIED)
    remove_originals (batch);
  else if (batch->step == MAIL_STEP_SENT)
    mail_look (batch->mailbox, source_listed, batch);
  else if (known || batch->kind == MAIL_CHANGE_REMOVE)
    send (batch);
  else
    mail_look (batch->target, begin, batch);
}
