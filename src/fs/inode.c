/* SPDX-License-Identifier: MIT
 *
 * From inode numbers to what they stand for, and what stat says of it. Any thread; keeps nothing.
 */
#include "fs/private.h"

#include <errno.h>
#include <string.h>

gboolean
fs_is_maildir (const FsServer *server)
{
  return server->config->layout == MAIL_LAYOUT_MAILDIR;
}

void
fs_node_clear (FsNode *node)
{
  g_clear_pointer (&node->mailbox, mail_mailbox_unref);
  g_clear_pointer (&node->staged, mail_staged_unref);
}

/* A message that was moved, or truncated and written anew, goes on under the inode by which the
 * kernel knows it. */
static void
follow (FsServer *server, guint32 content_id, FsNode *node)
{
  MailMailbox *mailbox;
  MailStaged *staged;
  MailMessage message;
  guint32 uid;

  if (mail_mailbox_find (node->mailbox, node->uid, &message))
    return;
  mailbox = NULL;
  staged = mail_stage_find_replacement (server->store, content_id, node->uid);
  if (staged == NULL
      && !mail_store_follow (server->store, content_id, node->uid, &mailbox, &uid, &staged))
    return;
  g_clear_pointer (&node->mailbox, mail_mailbox_unref);
  if (staged != NULL)
    {
      MailStagedInfo info;

      mail_staged_info (staged, &info);
      node->kind = FS_NODE_STAGED;
      node->staged = staged;
      node->ino = fs_ino_staged (info.id);
      node->uid = 0;
    }
  else
    {
      node->mailbox = mailbox;
      node->uid = uid;
      node->ino = fs_ino_message (mail_mailbox_content_id (mailbox), uid);
    }
}

void
fs_node_resolve (FsServer *server, fuse_ino_t ino, FsNode *node)
{
  guint32 high = (guint32)(ino >> 32), low = (guint32)ino;

  memset (node, 0, sizeof *node);
  node->ino = node->known_as = ino;
  if (ino == FUSE_ROOT_ID)
    high = MAIL_ROOT_ID, low = 0;
  if (high == 0)
    {
      node->kind = ino == FS_INO_DOT_MAILFS ? FS_NODE_DOT_MAILFS
                   : ino == FS_INO_FAILED   ? FS_NODE_FAILED
                   : ino == FS_INO_QUEUE    ? FS_NODE_QUEUE
                                            : FS_NODE_SNAPSHOT;
      return;
    }
  if (high == FS_INO_STAGED)
    {
      node->staged = mail_stage_find (server->store, low);
      node->kind = node->staged != NULL ? FS_NODE_STAGED : FS_NODE_STALE;
      return;
    }
  node->mailbox = mail_store_mailbox (server->store, high);
  if (node->mailbox != NULL)
    {
      node->kind = low == 0   ? FS_NODE_MAILBOX
                   : low == 1 ? FS_NODE_CUR
                   : low == 2 ? FS_NODE_NEW
                              : FS_NODE_TMP;
      return;
    }
  node->mailbox = mail_store_contents (server->store, high);
  node->uid = low;
  node->kind = node->mailbox != NULL ? FS_NODE_MESSAGE : FS_NODE_STALE;
  if (node->kind == FS_NODE_MESSAGE)
    follow (server, high, node);
}

fuse_ino_t
fs_ino_mailbox (MailMailbox *mailbox, FsNodeKind kind)
{
  guint64 id = mail_mailbox_id (mailbox);

  if (id == MAIL_ROOT_ID && kind == FS_NODE_MAILBOX)
    return FUSE_ROOT_ID;
  return id << 32 | (guint64)(kind - FS_NODE_MAILBOX);
}

fuse_ino_t
fs_ino_message (guint32 content_id, guint32 uid)
{
  return (guint64)content_id << 32 | uid;
}

/* Maildir: mail that nobody has seen or marked, and no reader has moved on, stands in new. */
gboolean
fs_dir_holds (FsNodeKind kind, MailLayout layout, const MailMessage *message)
{
  gboolean is_new = message->flags == 0 && (message->local & MAIL_LOCAL_OLD) == 0;

  if (layout == MAIL_LAYOUT_FLAT)
    return kind == FS_NODE_MAILBOX;
  return kind == (is_new ? FS_NODE_NEW : FS_NODE_CUR);
}

static void
stat_common (const FsServer *server, struct stat *st, mode_t mode)
{
  memset (st, 0, sizeof *st);
  st->st_mode = mode & ~server->config->umask;
  st->st_uid = server->config->uid;
  st->st_gid = server->config->gid;
  st->st_blksize = 4096;
}

void
fs_stat_dir (FsServer *server, MailMailbox *mailbox, FsNodeKind kind, struct stat *st)
{
  gboolean maildir = fs_is_maildir (server) && mail_mailbox_selectable (mailbox);
  MailMailboxInfoNow info;

  mail_mailbox_info (mailbox, &info);
  stat_common (server, st, S_IFDIR | (info.may_write ? 0777 : 0555));
  st->st_ino = fs_ino_mailbox (mailbox, kind);
  st->st_nlink = 2;
  if (kind == FS_NODE_MAILBOX)
    st->st_nlink += mail_mailbox_n_children (mailbox) + (maildir ? 3 : 0);
  st->st_size = 4096;
  st->st_blocks = 8;
  st->st_mtim.tv_sec = info.mtime;
  st->st_atim = st->st_ctim = st->st_mtim;
}

void
fs_stat_message (FsServer *server, MailMailbox *mailbox, guint32 content_id,
                 const MailMessage *message, struct stat *st)
{
  MailMailboxInfoNow info;

  mail_mailbox_info (mailbox, &info);
  stat_common (server, st, S_IFREG | (info.may_write ? 0666 : 0444));
  st->st_ino = fs_ino_message (content_id, message->uid);
  st->st_nlink = 1;
  st->st_size = (off_t)message->size;
  st->st_mtim.tv_sec = message->internaldate;
  st->st_ctim.tv_sec = mail_message_changed (message);

  /* Truncated and being written anew: it shows what will take its place. */
  g_autoptr (MailStaged) replacement = mail_stage_find_replacement (server->store, content_id,
                                                                    message->uid);
  if (replacement != NULL)
    {
      MailStagedInfo staged;

      mail_staged_info (replacement, &staged);
      st->st_size = (off_t)staged.size;
      st->st_mtim.tv_sec = st->st_ctim.tv_sec = staged.mtime;
    }
  st->st_atim = st->st_mtim;
  st->st_blocks = (st->st_size + 511) / 512;
}

static int
stat_what_it_is (FsServer *server, const FsNode *node, struct stat *st)
{
  MailMessage message;

  switch (node->kind)
    {
    case FS_NODE_MAILBOX:
    case FS_NODE_CUR:
    case FS_NODE_NEW:
    case FS_NODE_TMP:
      fs_stat_dir (server, node->mailbox, node->kind, st);
      return 0;
    case FS_NODE_DOT_MAILFS:
    case FS_NODE_FAILED:
    case FS_NODE_QUEUE:
      fs_stat_special_dir (server, node->ino, st);
      return 0;
    case FS_NODE_SNAPSHOT:
      return fs_snapshot_stat (server, node->ino, st) ? 0 : ENOENT;
    case FS_NODE_STAGED:
      fs_stat_staged (server, node->staged, st);
      return 0;
    case FS_NODE_MESSAGE:
      if (!mail_mailbox_find_gone (node->mailbox, node->uid, &message))
        return ENOENT;
      fs_stat_message (server, node->mailbox, (guint32)(node->ino >> 32), &message, st);
      return 0;
    default:
      return ESTALE;
    }
}

/* The number stays what it was for as long as the kernel knows the file by it: who compares it
 * before and after he opens a file, as cp does, would take a change for another file. */
int
fs_stat_node (FsServer *server, const FsNode *node, struct stat *st)
{
  int failed = stat_what_it_is (server, node, st);

  st->st_ino = node->known_as;
  return failed;
}

char *
fs_message_name (FsServer *server, guint32 uidvalidity, const MailMessage *message,
                 const char *given)
{
  char name[FS_NAMES_MESSAGE_SIZE];

  if (fs_is_maildir (server))
    {
      g_autofree char *own = fs_names_maildir (
          message->uid, uidvalidity, message->size, message->flags,
          mail_store_keywords (server->store, message->keywords));
      gboolean is_new = fs_dir_holds (FS_NODE_NEW, MAIL_LAYOUT_MAILDIR, message);
      const char *info = strchr (own, ':');

      /* POP3: it is the store that names messages, by their UIDL, which says nothing here. */
      if (given != NULL && info != NULL && server->config->scheme != MAIL_SCHEME_POP
          && server->config->scheme != MAIL_SCHEME_POPS
          && strlen (given) + strlen (info) <= FS_NAMES_MAX)
        {
          char *named = g_strconcat (given, info, NULL);

          g_free (own);
          own = named;
        }
      /* What stands in new has no info. */
      if (is_new && strrchr (own, ':') != NULL)
        *strrchr (own, ':') = '\0';
      return g_steal_pointer (&own);
    }
  if (given != NULL)
    return g_strdup (given);
  fs_names_message (name, message->uid, uidvalidity);
  return g_strdup (name);
}

gboolean
fs_size_ready (FsOp *op, const FsNode *node)
{
  MailMessage message;
  GError *error = NULL;

  if (node->kind != FS_NODE_MESSAGE || op->server->config->offline
      || !mail_mailbox_find (node->mailbox, node->uid, &message)
      || !mail_message_size_is_absurd (&message))
    return TRUE;
  return fs_op_check (op,
                      mail_store_fetch_whole (op->server->store, node->mailbox, node->uid,
                                              fs_op_waiter (op), &error),
                      &error);
}

/* --- the names the store asks for ------------------------------------------------------------ */

static char *
flat_part (const char *text, gboolean raw)
{
  return fs_names_escape_part (text, raw, MAIL_LAYOUT_FLAT);
}

static char *
maildir_part (const char *text, gboolean raw)
{
  return fs_names_escape_part (text, raw, MAIL_LAYOUT_MAILDIR);
}

static char *
parse_flat_part (const char *name, GError **error)
{
  return fs_names_unescape_part (name, MAIL_LAYOUT_FLAT, error);
}

static char *
parse_maildir_part (const char *name, GError **error)
{
  return fs_names_unescape_part (name, MAIL_LAYOUT_MAILDIR, error);
}

static char *
remote_name (const char *remote_id)
{
  char name[FS_NAMES_MESSAGE_SIZE];

  fs_names_pop (name, remote_id);
  return g_strdup (name);
}

const MailNaming *
fs_naming (MailLayout layout)
{
  static const MailNaming flat = { flat_part, parse_flat_part, remote_name, NULL, 0, FALSE };
  static const MailNaming maildir = { maildir_part,
                                      parse_maildir_part,
                                      remote_name,
                                      fs_names_maildir_base,
                                      FS_NODE_CUR - FS_NODE_MAILBOX,
                                      TRUE };

  return layout == MAIL_LAYOUT_MAILDIR ? &maildir : &flat;
}
