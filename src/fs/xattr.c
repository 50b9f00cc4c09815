/* SPDX-License-Identifier: MIT
 *
 * Extended attributes. Only user.imap.flags is listed, so that copying tools carry the flags and
 * leave the rest alone; the others are read by name.
 */
#include "fs/private.h"

#include <errno.h>
#include <string.h>

#define FLAGS "user.imap.flags"

/* RFC 9051 date-time, in UTC. */
static char *
internaldate (const MailMessage *message)
{
  static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
  time_t seconds = message->internaldate;
  struct tm tm;

  if (gmtime_r (&seconds, &tm) == NULL)
    return NULL;
  return g_strdup_printf ("%02d-%.3s-%04d %02d:%02d:%02d +0000", tm.tm_mday, months + 3 * tm.tm_mon,
                          tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec);
}

/* The value, or NULL: there is no such attribute. */
static char *
message_value (FsServer *server, const FsNode *node, const MailMessage *message, const char *name)
{
  MailMailboxInfoNow info;

  mail_mailbox_info (node->mailbox, &info);
  if (strcmp (name, FLAGS) == 0)
    return fs_names_flags_text (message->flags,
                                mail_store_keywords (server->store, message->keywords));
  if (strcmp (name, "user.imap.uid") == 0)
    return g_strdup_printf ("%u", message->uid);
  if (strcmp (name, "user.imap.uidvalidity") == 0)
    return g_strdup_printf ("%u", info.uidvalidity);
  if (strcmp (name, "user.imap.modseq") == 0 && message->modseq != 0)
    return g_strdup_printf ("%" G_GUINT64_FORMAT, (guint64)message->modseq);
  if (strcmp (name, "user.imap.internaldate") == 0)
    return internaldate (message);
  if (strcmp (name, "user.mailfs.cached") == 0)
    return g_strdup_printf ("%" G_GUINT64_FORMAT,
                            mail_store_cached_bytes (server->store, node->mailbox, node->uid));
  return NULL;
}

static char *
mailbox_value (const FsNode *node, const char *name)
{
  MailMailboxInfoNow info;
  guint32 n_messages, n_unseen;

  mail_mailbox_info (node->mailbox, &info);
  if (strcmp (name, "user.imap.mailbox") == 0)
    return mail_mailbox_display_name (node->mailbox);
  if (strcmp (name, "user.imap.special-use") == 0)
    return mail_mailbox_special_use (node->mailbox);
  if (!mail_mailbox_selectable (node->mailbox))
    return NULL;
  if (strcmp (name, "user.imap.uidvalidity") == 0)
    return g_strdup_printf ("%u", info.uidvalidity);
  if (strcmp (name, "user.imap.uidnext") == 0)
    return g_strdup_printf ("%u", info.uidnext);
  mail_mailbox_count (node->mailbox, &n_messages, &n_unseen);
  if (strcmp (name, "user.imap.messages") == 0)
    return g_strdup_printf ("%u", n_messages);
  if (strcmp (name, "user.imap.unseen") == 0)
    return g_strdup_printf ("%u", n_unseen);
  return NULL;
}

static char *
staged_value (FsServer *server, const FsNode *node, const char *name)
{
  MailStaged *staged = node->staged;
  MailStagedInfo info;
  MailMessage message;
  FsNode done = { .kind = FS_NODE_MESSAGE };
  g_autoptr (MailMailbox) mailbox = NULL;

  if (fs_staged_message (server, staged, &mailbox, &done.uid)
      && mail_mailbox_find_gone (mailbox, done.uid, &message))
    {
      done.mailbox = mailbox;
      return message_value (server, &done, &message, name);
    }
  mail_staged_info (staged, &info);
  if (strcmp (name, FLAGS) == 0)
    return fs_names_flags_text (info.flags, mail_store_keywords (server->store, info.keywords));
  if (strcmp (name, "user.mailfs.error") == 0)
    return mail_staged_error (staged);
  return NULL;
}

static void
reply_value (FsOp *op, const char *value, size_t length)
{
  if (!fs_op_take (op))
    return;
  if (op->size == 0)
    fuse_reply_xattr (op->req, length);
  else if (op->size < length)
    fuse_reply_err (op->req, ERANGE);
  else
    fuse_reply_buf (op->req, value, length);
}

void
fs_getxattr (FsOp *op)
{
  g_autofree char *value = NULL;
  MailMessage message;
  GError *error = NULL;
  g_auto (FsNode) node = { 0 };

  fs_node_resolve (op->server, op->ino, &node);
  if (node.mailbox != NULL && mail_mailbox_selectable (node.mailbox)
      && !fs_op_check (op, mail_mailbox_known (node.mailbox, fs_op_waiter (op), &error), &error))
    return;
  if (node.kind == FS_NODE_MESSAGE && mail_mailbox_find_gone (node.mailbox, node.uid, &message))
    value = message_value (op->server, &node, &message, op->name);
  else if (node.kind == FS_NODE_STAGED)
    value = staged_value (op->server, &node, op->name);
  else if (node.kind == FS_NODE_MAILBOX)
    value = mailbox_value (&node, op->name);
  if (value == NULL)
    fs_op_fail (op, ENODATA);
  else
    reply_value (op, value, strlen (value));
}

void
fs_listxattr (FsOp *op)
{
  g_auto (FsNode) node = { 0 };
  gboolean message;

  fs_node_resolve (op->server, op->ino, &node);
  message = node.kind == FS_NODE_MESSAGE || node.kind == FS_NODE_STAGED;
  reply_value (op, FLAGS, message ? sizeof FLAGS : 0);
}
