/* SPDX-License-Identifier: MIT
 *
 * What happens to a staged file before it is committed: made, read, written, truncated, dated,
 * flagged, declared a copy. Any thread; bytes move without a lock held.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* --- made ----------------------------------------------------------------------------------------
 */

/* With a spool file and a row; 0 where the disk refuses. */
static gboolean
begin_file (MailStaged *staged, GError **error)
{
  MailChanges *changes = staged->changes;

  staged->fd = mail_spool_open (changes, staged->id, TRUE, error);
  if (staged->fd < 0)
    return FALSE;
  staged->has_spool = TRUE;
  if (mail_staged_save_locked (staged, error))
    return TRUE;
  mail_spool_remove (changes, staged->id);
  return FALSE;
}

MailStaged *
mail_stage_create (MailStore *store, MailMailbox *mailbox, guint area, const char *name,
                   gboolean temporary, GError **error)
{
  MailChanges *changes = store->changes;
  g_autofree char *mailbox_name = mail_folder_name (mailbox);

  if (!mail_changes_allowed (mailbox, MAIL_CAP_APPEND, "i", error))
    return NULL;
  GError *deferred = temporary ? NULL : mail_changes_take_deferred (changes, mailbox);
  if (deferred != NULL)
    {
      g_propagate_error (error, deferred);
      return NULL;
    }
  g_autoptr (MailStaged) staged = mail_staged_new (changes,
                                                   mail_journal_new_staged_id (changes->journal));
  staged->temporary = temporary;
  g_mutex_lock (&changes->lock);
  mail_staged_place_locked (staged, mailbox, mailbox_name, area, name);
  gboolean good = begin_file (staged, error);
  if (good)
    {
      g_hash_table_insert (changes->staged, GUINT_TO_POINTER (staged->id),
                           mail_staged_ref (staged));
      mail_staged_list_locked (staged, TRUE);
    }
  g_mutex_unlock (&changes->lock);
  if (!good)
    return NULL;
  mail_effect_directory (mailbox);
  return g_steal_pointer (&staged);
}

MailStaged *
mail_stage_replacement (MailStore *store, MailMailbox *mailbox, guint32 uid, const char *uid_name,
                        GError **error)
{
  MailChanges *changes = store->changes;
  guint32 content_id = mail_mailbox_content_id (mailbox);
  guint32 uidvalidity = mail_effect_uidvalidity (mailbox);
  g_autofree char *mailbox_name = mail_folder_name (mailbox);
  g_autofree char *name = mail_mailbox_name_of (mailbox, uid);
  MailMessage message;

  g_autoptr (MailStaged) staged = mail_stage_find_replacement (store, content_id, uid);
  if (staged != NULL)
    return g_steal_pointer (&staged);
  if (!mail_changes_allowed (mailbox, MAIL_CAP_APPEND, "i", error)
      || !mail_changes_allowed (mailbox, 0, "tde", error))
    return NULL;
  if (!mail_mailbox_find (mailbox, uid, &message))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_GONE, "no such message");
      return NULL;
    }
  staged = mail_staged_new (changes, mail_journal_new_staged_id (changes->journal));
  staged->flags = message.flags;
  staged->keywords = g_strdup (mail_store_keywords (store, message.keywords));
  g_mutex_lock (&changes->lock);
  mail_staged_place_locked (staged, mailbox, mailbox_name, 0, name != NULL ? name : uid_name);
  mail_staged_stand_for_locked (staged, content_id, uidvalidity, uid);
  gboolean good = begin_file (staged, error);
  if (good)
    g_hash_table_insert (changes->staged, GUINT_TO_POINTER (staged->id), mail_staged_ref (staged));
  else
    mail_staged_stand_for_locked (staged, 0, 0, 0);
  g_mutex_unlock (&changes->lock);
  return good ? g_steal_pointer (&staged) : NULL;
}

/* --- bytes ---------------------------------------------------------------------------------------
 */

static gssize
read_message (MailStaged *staged, MailMailbox *mailbox, guint32 uid, guint64 offset, void *buffer,
              gsize length, GError **error)
{
  gsize n = 0;

  switch (mail_store_read (staged->changes->store, mailbox, uid, offset, buffer, length, &n, NULL,
                           error))
    {
    case MAIL_READY:
      return (gssize)n;
    case MAIL_PARKED:
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_UNREACHABLE, "not in the cache");
      return -1;
    default:
      return -1;
    }
}

gssize
mail_staged_read (MailStaged *staged, guint64 offset, void *buffer, gsize length, GError **error)
{
  guint32 uid = 0;
  gssize n;

  g_autoptr (MailMailbox) mailbox = mail_staged_message (staged, &uid);
  if (mailbox != NULL)
    return read_message (staged, mailbox, uid, offset, buffer, length, error);
  g_autofree char *path = mail_spool_path (staged->changes, staged->id, FALSE);
  int fd = open (path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0)
    {
      mail_set_errno (error, errno, path);
      return -1;
    }
  do
    n = pread (fd, buffer, length, (off_t)offset);
  while (n < 0 && errno == EINTR);
  if (n < 0)
    mail_set_errno (error, errno, path);
  close (fd);
  return n;
}

/* A copy that is written to becomes a file of its own; keep: with the bytes it has. */
static gboolean
copy_to_file_locked (MailStaged *staged, gboolean keep, GError **error)
{
  guint64 size = 0;

  if (keep
      && !mail_spool_from_cache (staged->changes, staged->id, staged->source_content,
                                 staged->source_uid, &size, error))
    return FALSE;
  staged->has_spool = TRUE;
  staged->size = size;
  staged->changes->spool_bytes += size;
  g_clear_pointer (&staged->source, mail_mailbox_unref);
  g_clear_pointer (&staged->source_name, g_free);
  staged->source_content = staged->source_uidvalidity = staged->source_uid = 0;
  if (staged->fd < 0)
    staged->fd = mail_spool_open (staged->changes, staged->id, !keep, error);
  /* A row that still says "a copy" would bring back the source's bytes after a kill. */
  return staged->fd >= 0 && mail_staged_save_locked (staged, error);
}

/* Whoever has the file open goes on writing to the message it became: under the name that it has by
 * now, but neither where it was moved nor in the place of one that was removed. No lock held. FALSE
 * with an error: there is none. */
static gboolean
follow_message (MailStaged *staged, GError **error)
{
  MailChanges *changes = staged->changes;
  MailMessage message;

  g_mutex_lock (&changes->lock);
  gboolean done = staged->state == MAIL_STAGED_DONE;
  guint32 content_id = staged->content_id, uid = staged->uid;
  g_mutex_unlock (&changes->lock);
  g_autoptr (MailMailbox) mailbox = done ? mail_store_contents (changes->store, content_id) : NULL;
  if (mailbox == NULL)
    return TRUE;
  if (!mail_mailbox_find (mailbox, uid, &message))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_GONE, "this file can no longer be written");
      return FALSE;
    }
  g_autofree char *name = mail_mailbox_name_of (mailbox, uid);
  g_mutex_lock (&changes->lock);
  if (name != NULL && staged->state == MAIL_STAGED_DONE && !staged->listed)
    {
      g_free (staged->name);
      staged->name = g_steal_pointer (&name);
    }
  g_mutex_unlock (&changes->lock);
  return TRUE;
}

/* The message it became is there already: what is written now takes its place. */
static gboolean
done_to_replacement_locked (MailStaged *staged, gboolean keep, GError **error)
{
  guint64 size = 0;

  /* Before the row says that it is written anew: the message is on the server. */
  if (!keep)
    {
      mail_staged_remove_spool_locked (staged);
      staged->size = 0;
    }
  if (!staged->has_spool && keep
      && !mail_spool_from_cache (staged->changes, staged->id, staged->content_id, staged->uid,
                                 &size, error))
    return FALSE;
  if (!staged->has_spool && keep)
    {
      staged->size = size;
      staged->changes->spool_bytes += size;
    }
  staged->placeholder = FALSE;
  g_clear_pointer (&staged->source, mail_mailbox_unref);
  g_clear_pointer (&staged->source_name, g_free);
  mail_staged_stand_for_locked (staged, staged->content_id, staged->uidvalidity, staged->uid);
  staged->mtime = G_MININT64;
  staged->state = MAIL_STAGED_LOCAL;
  mail_staged_save_locked (staged, NULL);
  return TRUE;
}

/* It is on its way: what was committed goes as it was, and this is the beginning of the next. */
static gboolean
queued_to_writable_locked (MailStaged *staged, gboolean keep, GError **error)
{
  MailChanges *changes = staged->changes;
  MailChange *change = staged->change;

  gboolean sent = change != NULL && (change->running || change->step != MAIL_STEP_NEW);
  /* A copy that is sent as a file has its bytes fetched first. */
  if (staged->placeholder || change == NULL || change->kind != MAIL_CHANGE_APPEND
      || (sent && staged->source != NULL))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_CANNOT, "a message cannot be written into");
      return FALSE;
    }
  if (sent)
    {
      gboolean separate = !staged->dirty;
      staged->dirty = TRUE;
      if (separate)
        mail_staged_save_locked (staged, NULL);
      if (staged->fd >= 0)
        close (staged->fd);
      staged->fd = -1;
      if (!keep)
        {
          mail_spool_remove (changes, staged->id);
          staged->fd = mail_spool_open (changes, staged->id, TRUE, error);
          return staged->fd >= 0;
        }
      return !separate || mail_spool_separate (changes, staged->id, error);
    }
  mail_journal_begin (changes->journal);
  gboolean good = staged->source == NULL || copy_to_file_locked (staged, keep, error);
  if (good)
    {
      staged->change = NULL;
      staged->state = MAIL_STAGED_LOCAL;
      mail_staged_journal_locked (staged);
      mail_changes_withdraw_locked (changes, change, NULL);
    }
  return mail_journal_commit (changes->journal, good ? error : NULL) && good;
}

/* A descriptor of the caller's own, or -1. */
static int
open_for_writing_locked (MailStaged *staged, gboolean keep, GError **error)
{
  gboolean good = TRUE;
  int fd = -1;

  if (staged->state >= MAIL_STAGED_FAILED || staged->dropped)
    {
      g_set_error (error, MAIL_ERROR,
                   staged->state == MAIL_STAGED_FAILED ? MAIL_ERROR_CANNOT : MAIL_ERROR_GONE,
                   "this file can no longer be written");
      return -1;
    }
  if (staged->state == MAIL_STAGED_QUEUED)
    good = queued_to_writable_locked (staged, keep, error);
  else if (staged->state == MAIL_STAGED_DONE)
    good = done_to_replacement_locked (staged, keep, error);
  else if (staged->source != NULL)
    good = copy_to_file_locked (staged, keep, error);
  if (good && staged->fd < 0)
    staged->fd = mail_spool_open (staged->changes, staged->id, !keep || !staged->has_spool, error);
  if (good && staged->fd >= 0)
    {
      staged->has_spool = TRUE;
      fd = fcntl (staged->fd, F_DUPFD_CLOEXEC, 3);
      if (fd < 0)
        mail_set_errno (error, errno, "spool");
    }
  return fd;
}

static void
note_size_locked (MailStaged *staged, guint64 size)
{
  staged->changes->spool_bytes += size;
  staged->changes->spool_bytes -= MIN (staged->size, staged->changes->spool_bytes);
  staged->size = size;
}

gboolean
mail_staged_write (MailStaged *staged, guint64 offset, const void *data, gsize length,
                   GError **error)
{
  MailChanges *changes = staged->changes;
  gsize written = 0;
  int saved = 0;

  if (!follow_message (staged, error))
    return FALSE;
  g_mutex_lock (&changes->lock);
  int fd = open_for_writing_locked (staged, TRUE, error);
  if (fd >= 0)
    staged->dirty = staged->written = TRUE;
  g_mutex_unlock (&changes->lock);
  if (fd < 0)
    return FALSE;
  while (written < length && saved == 0)
    {
      gssize n = pwrite (fd, (const guint8 *)data + written, length - written,
                         (off_t)(offset + written));

      if (n < 0 && errno != EINTR)
        saved = errno;
      else if (n > 0)
        written += n;
    }
  close (fd);
  g_mutex_lock (&changes->lock);
  if (written > 0)
    note_size_locked (staged, MAX (staged->size, offset + written));
  g_mutex_unlock (&changes->lock);
  if (saved != 0)
    mail_set_errno (error, saved, "spool");
  return saved == 0;
}

gboolean
mail_staged_truncate (MailStaged *staged, guint64 size, GError **error)
{
  MailChanges *changes = staged->changes;
  gboolean good = FALSE;

  if (!follow_message (staged, error))
    return FALSE;
  g_mutex_lock (&changes->lock);
  staged->n_emptied += size == 0;
  if (size == staged->size && staged->state != MAIL_STAGED_FAILED)
    {
      g_mutex_unlock (&changes->lock);
      return TRUE;
    }
  int fd = open_for_writing_locked (staged, size > 0, error);
  if (fd >= 0)
    {
      good = ftruncate (fd, (off_t)size) == 0;
      if (!good)
        mail_set_errno (error, errno, "spool");
      else
        {
          staged->dirty = TRUE;
          /* Emptied to be filled, like a new one: a shell's > flushes before it writes. */
          staged->written = size > 0;
          note_size_locked (staged, size);
        }
      close (fd);
    }
  g_mutex_unlock (&changes->lock);
  return good;
}

/* --- date, flags, origin
 * --------------------------------------------------------------------------- */

/* Whether what is sent can still be told apart from what was sent. */
static gboolean
not_sent_locked (const MailStaged *staged)
{
  return staged->state == MAIL_STAGED_LOCAL
         || (staged->state == MAIL_STAGED_QUEUED && staged->change != NULL
             && !staged->change->running && staged->change->step == MAIL_STEP_NEW
             && staged->change->kind == MAIL_CHANGE_APPEND);
}

/* What is still being written when the daemon is killed comes back only as a temporary file. */
static gboolean
outlives_us (const MailStaged *staged)
{
  return staged->state == MAIL_STAGED_QUEUED
         || (staged->state == MAIL_STAGED_LOCAL && staged->temporary);
}

void
mail_staged_set_mtime (MailStaged *staged, gint64 mtime)
{
  g_mutex_lock (&staged->changes->lock);
  if (not_sent_locked (staged))
    {
      staged->mtime = mtime;
      if (outlives_us (staged))
        mail_staged_save_locked (staged, NULL);
    }
  g_mutex_unlock (&staged->changes->lock);
}

gboolean
mail_staged_set_flags (MailStaged *staged, guint8 flags, const char *keywords, GError **error)
{
  MailChanges *changes = staged->changes;
  g_autoptr (MailMailbox) where = mail_staged_mailbox (staged);
  guint32 done_content = 0, done_uid = 0;

  if (where != NULL && !mail_keywords_settable (where, flags, keywords, error))
    return FALSE;
  g_mutex_lock (&changes->lock);
  if (staged->state == MAIL_STAGED_DONE)
    {
      done_content = staged->content_id;
      done_uid = staged->uid;
    }
  staged->flags = flags;
  g_free (staged->keywords);
  staged->keywords = g_strdup (keywords);
  staged->flags_set = TRUE;
  if (outlives_us (staged))
    mail_staged_save_locked (staged, NULL);
  g_mutex_unlock (&changes->lock);
  g_autoptr (MailMailbox) mailbox = done_content != 0
                                        ? mail_store_contents (changes->store, done_content)
                                        : NULL;
  if (mailbox != NULL)
    mail_change_flags (changes->store, mailbox, done_uid, flags, keywords, NULL, NULL);
  return TRUE;
}

gboolean
mail_staged_copy_from (MailStaged *staged, MailMailbox *source, guint32 uid, GError **error)
{
  MailChanges *changes = staged->changes;
  MailMessage message;
  guint32 content_id = mail_mailbox_content_id (source);
  guint32 uidvalidity = mail_effect_uidvalidity (source);
  g_autofree char *name = mail_folder_name (source);
  gboolean good = FALSE;

  if (!mail_mailbox_find (source, uid, &message))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_GONE, "no such message");
      return FALSE;
    }
  g_mutex_lock (&changes->lock);
  /* What waits for its name must have bytes of its own: the message may go meanwhile. */
  if (staged->state != MAIL_STAGED_LOCAL || staged->size > 0 || staged->source != NULL
      || staged->temporary)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_INVALID, "the file is not empty, or temporary");
  else
    {
      if (staged->fd >= 0)
        close (staged->fd);
      staged->fd = -1;
      if (staged->has_spool)
        mail_spool_remove (changes, staged->id);
      staged->has_spool = FALSE;
      staged->source = mail_mailbox_ref (source);
      staged->source_name = g_steal_pointer (&name);
      staged->source_content = content_id;
      staged->source_uidvalidity = uidvalidity;
      staged->source_uid = uid;
      staged->size = message.size;
      if (!staged->flags_set)
        {
          staged->flags = message.flags;
          g_free (staged->keywords);
          staged->keywords = g_strdup (mail_store_keywords (changes->store, message.keywords));
        }
      staged->dirty = staged->written = TRUE;
      good = TRUE;
    }
  g_mutex_unlock (&changes->lock);
  return good;
}
