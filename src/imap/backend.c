/* SPDX-License-Identifier: MIT
 *
 * The IMAP backend's table and its life. Everything it does is in the files of its operations. Net
 * thread.
 */
#include "imap/backend-private.h"

static void
note_free (gpointer data)
{
  ImapMailboxNote *note = data;

  g_free (note->permanent_keywords);
  g_free (note);
}

ImapMailboxNote *
imap_backend_note (ImapBackend *backend, const char *mailbox)
{
  ImapMailboxNote *note = g_hash_table_lookup (backend->notes, mailbox);

  if (note == NULL)
    {
      note = g_new0 (ImapMailboxNote, 1);
      g_hash_table_insert (backend->notes, g_strdup (mailbox), note);
    }
  return note;
}

void
imap_backend_note_select (ImapBackend *backend, const ImapSelect *select)
{
  ImapMailboxNote *note;

  if (select == NULL || select->state != IMAP_SELECT_OK || select->access != IMAP_ACCESS_WRITE)
    return;
  note = imap_backend_note (backend, select->mailbox);
  note->read_only = select->read_only;
  note->has_permanent = TRUE;
  /* RFC 9051 6.3.2: without PERMANENTFLAGS everything can be set. */
  note->any_keyword = !select->has_permanent || select->any_keyword;
  note->permanent_flags = select->has_permanent ? select->permanent_flags : MAIL_FLAGS_ALL;
  g_free (note->permanent_keywords);
  note->permanent_keywords = g_strdup (select->permanent_keywords);
}

static guint
backend_caps (MailBackend *self)
{
  guint caps = imap_pool_caps (imap_backend (self)->pool);
  guint result = MAIL_CAP_FOLDERS | MAIL_CAP_FLAGS | MAIL_CAP_RANGES | MAIL_CAP_APPEND;

  if (caps == 0)
    return 0;
  if ((caps & IMAP_CAP_UIDPLUS) != 0)
    result |= MAIL_CAP_EXPUNGE_UID;
  if ((caps & IMAP_CAP_MOVE) != 0)
    result |= MAIL_CAP_MOVE;
  if ((caps & IMAP_CAP_QUOTA) != 0)
    result |= MAIL_CAP_QUOTA;
  if ((caps & IMAP_CAP_IDLE) != 0)
    result |= MAIL_CAP_PUSH;
  return result;
}

static void
backend_start (MailBackend *self, MailDoneFunc done, gpointer user_data)
{
  imap_pool_start (imap_backend (self)->pool, done, user_data);
}

static void
backend_watch (MailBackend *self, const char *mailbox, MailChangedFunc changed, gpointer user_data)
{
  imap_pool_watch (imap_backend (self)->pool, mailbox, changed, user_data);
}

static void
backend_close (MailBackend *self, MailDoneFunc done, gpointer user_data)
{
  imap_pool_close (imap_backend (self)->pool, done, user_data);
}

static void
backend_free (MailBackend *self)
{
  ImapBackend *backend = imap_backend (self);

  imap_pool_free (backend->pool);
  g_hash_table_unref (backend->notes);
  g_free (backend);
}

static char *
backend_describe (MailBackend *self)
{
  return imap_pool_describe (imap_backend (self)->pool);
}

static const MailBackendOps imap_backend_ops = {
  .caps = backend_caps,
  .start = backend_start,
  .list = imap_list,
  .sync = imap_sync,
  .fetch = imap_fetch,
  .store_flags = imap_store_flags,
  .copy = imap_copy,
  .move = imap_move,
  .remove = imap_remove,
  .append = imap_append,
  .child_name = imap_child_name,
  .create = imap_create,
  .rename = imap_rename,
  .delete = imap_delete,
  .quota = imap_quota,
  .watch = backend_watch,
  .close = backend_close,
  .free = backend_free,
  .describe = backend_describe,
};

MailBackend *
imap_backend_new (const MailConfig *config, MailSecretSource *secrets, NetTls *tls)
{
  ImapBackend *backend = g_new0 (ImapBackend, 1);

  backend->base.ops = &imap_backend_ops;
  backend->config = config;
  backend->pool = imap_pool_new (config, secrets, tls);
  backend->notes = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, note_free);
  return &backend->base;
}
