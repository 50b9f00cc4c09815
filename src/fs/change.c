/* SPDX-License-Identifier: MIT
 *
 * Requests that change what is there: unlink, rename, mkdir, rmdir, setxattr. Each finds what the
 * names stand for, asks the store, and answers when the store says so. FUSE threads; `done`
 * functions run on the net thread or at once.
 */
#include "fs/private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>

#define FLAGS "user.imap.flags"

/* --- what a name stands for ------------------------------------------------------------------ */

typedef struct
{
  MailStaged *staged;
  MailMailbox *child;
  gboolean is_message;
  MailMessage message;
} Target;

static void
target_clear (Target *target)
{
  g_clear_pointer (&target->staged, mail_staged_unref);
  g_clear_pointer (&target->child, mail_mailbox_unref);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (Target, target_clear)

/* FALSE: nothing. The kernel has looked the name up a moment ago, so what is known is enough. */
static gboolean
find_target (FsServer *server, const FsNode *dir, const char *name, Target *target)
{
  memset (target, 0, sizeof *target);
  if (dir->kind == FS_NODE_FAILED)
    return (target->staged = fs_failed_lookup (server, name)) != NULL;
  if (dir->mailbox == NULL)
    return FALSE;
  if (dir->kind == FS_NODE_MAILBOX
      && (target->child = mail_mailbox_child (dir->mailbox, name)) != NULL)
    return TRUE;
  target->staged = mail_stage_lookup (server->store, dir->mailbox, fs_area (dir->kind), name);
  if (target->staged != NULL)
    return TRUE;
  target->is_message = fs_find_by_name (server, dir->mailbox, dir->kind, name, &target->message);
  return target->is_message;
}

/* --- unlink ---------------------------------------------------------------------------------- */

void
fs_unlink (fuse_req_t req, fuse_ino_t parent, const char *name)
{
  FsServer *server = fuse_req_userdata (req);
  g_auto (FsNode) dir = { 0 };
  g_auto (Target) target = { 0 };

  fs_node_resolve (server, parent, &dir);
  if (dir.kind == FS_NODE_STALE)
    fuse_reply_err (req, ESTALE);
  else if (!find_target (server, &dir, name, &target))
    fuse_reply_err (req, dir.mailbox != NULL || dir.kind == FS_NODE_FAILED ? ENOENT : EPERM);
  else if (target.child != NULL)
    fuse_reply_err (req, EISDIR);
  else if (target.staged != NULL)
    mail_staged_drop (target.staged, fs_change_done, fs_change_begin (req, parent, 0));
  else
    mail_change_remove (server->store, dir.mailbox, target.message.uid, fs_change_done,
                        fs_change_begin (req, parent, 0));
}

/* --- rename ---------------------------------------------------------------------------------- */

typedef struct
{
  FsServer *server;
  fuse_req_t req;
  FsNode from, to;
  const char *name, *new_name;
  Target source, target;
} Rename;

/* Maildir: a new name is new flags. */
static void
flag_by_name (Rename *rename, MailDoneFunc done, gpointer user_data)
{
  MailStore *store = rename->server->store;
  const MailMessage *message = &rename->source.message;
  guint8 flags = 0;
  gboolean forwarded = FALSE, has_info = FALSE;

  fs_names_parse_maildir_info (rename->new_name, &flags, &forwarded, &has_info);
  g_autofree char *keywords = fs_names_set_forwarded (
      mail_store_keywords (store, message->keywords), forwarded);
  guint caps = mail_store_caps (store);
  if (caps == 0 || (caps & MAIL_CAP_FLAGS) != 0)
    {
      mail_change_flags (store, rename->from.mailbox, message->uid, flags, keywords, done,
                         user_data);
      return;
    }
  mail_change_marks (store, rename->from.mailbox, message->uid, flags, keywords);
  done (NULL, user_data);
}

/* Whether this is what the message is called by its UID. */
static gboolean
is_uid_name (const Rename *rename, const char *name)
{
  guint32 uid = 0, uidvalidity = 0;
  MailMailboxInfoNow info;

  mail_mailbox_info (rename->to.mailbox, &info);
  if (fs_is_maildir (rename->server))
    fs_names_parse_maildir (name, &uid, &uidvalidity, NULL, NULL, NULL);
  else
    fs_names_parse_message (name, &uid, &uidvalidity);
  return uidvalidity == info.uidvalidity && uid == rename->source.message.uid;
}

static void
rename_here (Rename *rename)
{
  MailMailbox *mailbox = rename->to.mailbox;
  guint32 uid = rename->source.message.uid;
  gboolean home = is_uid_name (rename, rename->new_name);
  g_autofree char *base = fs_is_maildir (rename->server) ? fs_names_maildir_base (rename->new_name)
                                                         : g_strdup (rename->new_name);
  g_autofree char *old = fs_is_maildir (rename->server) ? fs_names_maildir_base (rename->name)
                                                        : g_strdup (rename->name);

  if (strcmp (base, old) == 0)
    return;
  mail_change_name (rename->server->store, mailbox, uid, home ? NULL : base);
  if (home || is_uid_name (rename, rename->name))
    fs_vacate_name (rename->server, mailbox, uid, !home);
}

static void
rename_message (Rename *rename, FsOp *op)
{
  MailStore *store = rename->server->store;
  guint32 uid = rename->source.message.uid;
  guint32 replaces = rename->target.is_message ? rename->target.message.uid : 0;
  gboolean maildir = fs_is_maildir (rename->server);

  if (mail_mailbox_id (rename->from.mailbox) != mail_mailbox_id (rename->to.mailbox))
    {
      if (maildir && rename->to.kind == FS_NODE_CUR)
        flag_by_name (rename, fs_change_ignore, NULL);
      mail_change_move (store, rename->from.mailbox, uid, rename->to.mailbox,
                        fs_area (rename->to.kind), rename->new_name, replaces,
                        rename->target.staged, fs_change_done, op);
      /* The kernel takes the old inode along to the new name; there it is another. That one will
       * do for the burst that this may be a part of. */
      fs_notify_entry_later (rename->server, rename->to.ino, rename->new_name);
      return;
    }
  rename_here (rename);
  if (rename->target.staged != NULL)
    mail_staged_drop (rename->target.staged, fs_change_ignore, NULL);
  if (replaces != 0 && replaces != uid)
    mail_change_remove (store, rename->to.mailbox, replaces,
                        maildir ? fs_change_ignore : fs_change_done, maildir ? NULL : op);
  if (maildir)
    {
      /* From new to cur without a flag: it was seen by a reader, which only we know. */
      if (rename->to.kind == FS_NODE_CUR)
        mail_change_old (store, rename->to.mailbox, uid);
      flag_by_name (rename, fs_change_done, op);
    }
  else if (replaces == 0 || replaces == uid)
    fs_change_done (NULL, op);
}

static void
rename_staged (Rename *rename, FsOp *op)
{
  fs_staged_flags_from_name (rename->source.staged, rename->to.kind, rename->new_name);
  mail_staged_rename (rename->source.staged, rename->to.mailbox, fs_area (rename->to.kind),
                      rename->new_name, fs_is_local_name (&rename->to, rename->new_name),
                      rename->target.is_message ? rename->target.message.uid : 0,
                      rename->target.staged, fs_change_done, op);
}

/* 0, or why this rename cannot be. */
static int
check_rename (Rename *rename, unsigned int flags)
{
  MailMailboxInfoNow info;
  gboolean source = find_target (rename->server, &rename->from, rename->name, &rename->source);
  gboolean target = find_target (rename->server, &rename->to, rename->new_name, &rename->target);

  if (rename->from.kind == FS_NODE_STALE || rename->to.kind == FS_NODE_STALE)
    return ESTALE;
  if (!source)
    return ENOENT;
  /* What was refused may be tried again, in another place too. */
  if ((rename->from.mailbox == NULL && rename->from.kind != FS_NODE_FAILED)
      || rename->to.mailbox == NULL)
    return EPERM;
  if (strlen (rename->new_name) > FS_NAMES_MAX)
    return ENAMETOOLONG;
  if ((flags & ~RENAME_NOREPLACE) != 0)
    return EINVAL;
  if ((flags & RENAME_NOREPLACE) != 0 && target)
    return EEXIST;
  mail_mailbox_info (rename->to.mailbox, &info);
  if (!info.may_write)
    return EACCES;
  if (rename->source.child != NULL)
    return rename->to.kind != FS_NODE_MAILBOX       ? EPERM
           : target && rename->target.child == NULL ? ENOTDIR
                                                    : 0;
  if (rename->target.child != NULL)
    return EISDIR;
  if (rename->to.kind == FS_NODE_MAILBOX
      && (fs_is_maildir (rename->server) || !mail_mailbox_selectable (rename->to.mailbox)))
    return EPERM;
  /* A message of the server cannot be put back among what is not finished. */
  return rename->to.kind == FS_NODE_TMP && rename->source.staged == NULL ? EPERM : 0;
}

void
fs_rename (fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
           const char *new_name, unsigned int flags)
{
  Rename rename = { .server = fuse_req_userdata (req), .req = req };

  rename.name = name;
  rename.new_name = new_name;
  fs_node_resolve (rename.server, parent, &rename.from);
  fs_node_resolve (rename.server, new_parent, &rename.to);
  int refused = check_rename (&rename, flags);
  if (refused != 0)
    fuse_reply_err (req, refused);
  else if (rename.source.child != NULL)
    mail_change_rename_mailbox (rename.server->store, rename.source.child, rename.to.mailbox,
                                new_name, rename.target.child != NULL, fs_change_done,
                                fs_change_begin (req, parent, new_parent));
  else if (rename.source.staged != NULL)
    rename_staged (&rename, fs_change_begin (req, parent, new_parent));
  else
    rename_message (&rename, fs_change_begin (req, parent, new_parent));
  target_clear (&rename.source);
  target_clear (&rename.target);
  fs_node_clear (&rename.from);
  fs_node_clear (&rename.to);
}

/* --- directories ----------------------------------------------------------------------------- */

/* The new directory is in the tree: answered like a look-up. */
static void
made (const GError *error, gpointer data)
{
  FsOp *op = data;
  struct fuse_entry_param entry = { .attr_timeout = FS_TIMEOUT, .entry_timeout = FS_TIMEOUT };
  g_auto (FsNode) parent = { 0 };

  fs_node_resolve (op->server, op->ino, &parent);
  g_autoptr (MailMailbox) child = error == NULL && parent.kind == FS_NODE_MAILBOX
                                      ? mail_mailbox_child (parent.mailbox, op->name)
                                      : NULL;
  if (child == NULL)
    {
      g_autoptr (GError) lost = g_error_new (MAIL_ERROR, MAIL_ERROR_FAILED,
                                             "the new mailbox is not in the server's list");
      fs_change_done (error != NULL ? error : lost, op);
      return;
    }
  fs_stat_dir (op->server, child, FS_NODE_MAILBOX, &entry.attr);
  entry.ino = entry.attr.st_ino;
  if (fs_op_take (op))
    fuse_reply_entry (op->req, &entry);
  fs_op_unref (op);
}

void
fs_mkdir (fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
  FsServer *server = fuse_req_userdata (req);
  g_auto (FsNode) dir = { 0 };

  fs_node_resolve (server, parent, &dir);
  if (strlen (name) > FS_NAMES_MAX)
    fuse_reply_err (req, ENAMETOOLONG);
  else if (dir.kind != FS_NODE_MAILBOX)
    fuse_reply_err (req, dir.kind == FS_NODE_STALE ? ESTALE : EPERM);
  else
    {
      FsOp *op = fs_change_begin (req, parent, 0);

      op->ino = parent;
      op->name = g_strdup (name);
      mail_change_mkdir (server->store, dir.mailbox, name, made, op);
    }
}

void
fs_rmdir (fuse_req_t req, fuse_ino_t parent, const char *name)
{
  FsServer *server = fuse_req_userdata (req);
  g_auto (FsNode) dir = { 0 };

  fs_node_resolve (server, parent, &dir);
  g_autoptr (MailMailbox) child = dir.kind == FS_NODE_MAILBOX
                                      ? mail_mailbox_child (dir.mailbox, name)
                                      : NULL;
  if (child != NULL)
    mail_change_rmdir (server->store, child, fs_change_done, fs_change_begin (req, parent, 0));
  /* cur, new and tmp come and go with their mailbox: `rm -r` removes them first. */
  else if (dir.kind == FS_NODE_MAILBOX && fs_is_maildir (server)
           && (strcmp (name, "cur") == 0 || strcmp (name, "new") == 0 || strcmp (name, "tmp") == 0))
    fuse_reply_err (req, fs_maildir_part_empty (server, dir.mailbox, name) ? 0 : ENOTEMPTY);
  else
    fuse_reply_err (req, dir.kind == FS_NODE_STALE ? ESTALE : dir.mailbox == NULL ? EPERM : ENOENT);
}

/* --- flags ----------------------------------------------------------------------------------- */

static void
set_flags (fuse_req_t req, fuse_ino_t ino, const char *value, size_t size)
{
  FsServer *server = fuse_req_userdata (req);
  g_autofree char *keywords = NULL;
  g_autoptr (MailMailbox) message = NULL;
  g_autoptr (GError) error = NULL;
  guint8 flags;
  guint32 uid;
  g_auto (FsNode) node = { 0 };

  fs_node_resolve (server, ino, &node);
  if (node.kind == FS_NODE_STALE)
    fuse_reply_err (req, ESTALE);
  else if (node.kind != FS_NODE_MESSAGE && node.kind != FS_NODE_STAGED)
    fuse_reply_err (req, EPERM);
  else if (!fs_names_parse_flags (value, size, &flags, &keywords, &error))
    fuse_reply_err (req, mail_error_to_errno (error));
  else if (node.kind == FS_NODE_MESSAGE)
    mail_change_flags (server->store, node.mailbox, node.uid, flags, keywords, fs_change_done,
                       fs_change_begin (req, 0, 0));
  else if (fs_staged_message (server, node.staged, &message, &uid))
    mail_change_flags (server->store, message, uid, flags, keywords, fs_change_done,
                       fs_change_begin (req, 0, 0));
  else
    fuse_reply_err (req, mail_staged_set_flags (node.staged, flags, keywords, &error)
                             ? 0
                             : mail_error_to_errno (error));
}

void
fs_setxattr (fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
             int flags)
{
  if (strcmp (name, FLAGS) != 0)
    fuse_reply_err (req,
                    g_str_has_prefix (name, "user.imap.") || g_str_has_prefix (name, "user.mailfs.")
                        ? EPERM
                        : ENOTSUP);
  else if ((flags & XATTR_CREATE) != 0)
    fuse_reply_err (req, EEXIST); /* every message has its flags, if none are set */
  else
    set_flags (req, ino, value, size);
}

void
fs_removexattr (fuse_req_t req, fuse_ino_t ino, const char *name)
{
  if (strcmp (name, FLAGS) == 0)
    set_flags (req, ino, "", 0);
  else
    fuse_reply_err (req, ENODATA);
}
