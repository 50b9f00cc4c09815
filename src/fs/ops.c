/* SPDX-License-Identifier: MIT
 *
 * The table of FUSE requests, a short function each. What may wait for the server becomes an FsOp.
 *
 * Messages are immutable, so with eol=crlf OPEN is answered ENOSYS: the kernel then never sends
 * OPEN or RELEASE again and keeps its page cache; reads come by inode. With eol=lf a message's
 * length is known only once it is here, so OPEN waits for that, and fstat after it is exact.
 */
#include "fs/private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static FsServer *
server_of (fuse_req_t req)
{
  return fuse_req_userdata (req);
}

static void
op_init (void *userdata, struct fuse_conn_info *conn)
{
  FsServer *server = userdata;

  /* With OPEN answered ENOSYS the kernel would lose an O_TRUNC without a word. */
  conn->want &= ~(unsigned)FUSE_CAP_ATOMIC_O_TRUNC;
  conn->want |= conn->capable
                & (FUSE_CAP_READDIRPLUS | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ASYNC_READ);
  conn->want &= ~(unsigned)(FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_WRITEBACK_CACHE);
  conn->max_background = 64;
  conn->congestion_threshold = 48;
  if (server->ready != NULL)
    server->ready (server->ready_data);
}

static void
op_lookup (fuse_req_t req, fuse_ino_t parent, const char *name)
{
  fs_op_start (req, fs_lookup, parent, name, 0, 0, NULL);
}

static void
forget (FsServer *server, fuse_ino_t ino, guint64 n_lookups)
{
  fs_snapshot_forget (server, ino, n_lookups);
  fs_staged_forget (server, ino, n_lookups);
}

static void
op_forget (fuse_req_t req, fuse_ino_t ino, uint64_t n_lookups)
{
  forget (server_of (req), ino, n_lookups);
  fuse_reply_none (req);
}

static void
op_forget_multi (fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
  for (size_t i = 0; i < count; i++)
    forget (server_of (req), forgets[i].ino, forgets[i].nlookup);
  fuse_reply_none (req);
}

/* The inode of a message whose mailbox is not in memory needs the index first, perhaps the server.
 */
static gboolean
node_ready (FsOp *op, FsNode *node)
{
  GError *error = NULL;

  fs_node_resolve (op->server, op->ino, node);
  return node->kind != FS_NODE_MESSAGE
         || fs_op_check (op, mail_mailbox_known (node->mailbox, fs_op_waiter (op), &error), &error);
}

/* What is being written changes under the kernel's feet, and of what happens to a message it is told
 * by the number of where the message is now. */
static double
attr_timeout (const FsNode *node)
{
  return node->kind == FS_NODE_SNAPSHOT || node->kind == FS_NODE_STAGED
                 || node->ino != node->known_as
             ? 0
             : FS_TIMEOUT;
}

static void
attempt_getattr (FsOp *op)
{
  g_auto (FsNode) node = { 0 };
  struct stat st;

  if (!node_ready (op, &node) || !fs_size_ready (op, &node))
    return;
  int failed = fs_stat_node (op->server, &node, &st);
  if (failed != 0)
    fs_op_fail (op, failed);
  else if (fs_op_take (op))
    fuse_reply_attr (op->req, &st, attr_timeout (&node));
}

static void
op_getattr (fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
  fs_op_start (req, attempt_getattr, ino, NULL, 0, 0, NULL);
}

/* Nothing there, where the kernel expects something: the message is shorter than the server
 * claimed. An empty answer would move the kernel's idea of the end to here and leave a gap of zeros
 * before. */
static void
reply_bytes (FsOp *op, const char *buffer, gsize n)
{
  if (n == 0 && op->offset > 0)
    fs_op_fail (op, EIO);
  else if (fs_op_take (op))
    fuse_reply_buf (op->req, buffer, n);
}

static void
read_message (FsOp *op, MailMailbox *mailbox, guint32 uid, char *buffer)
{
  GError *error = NULL;
  gsize n = 0;

  if (fs_op_check (op,
                   mail_store_read (op->server->store, mailbox, uid, op->offset, buffer, op->size,
                                    &n, fs_op_waiter (op), &error),
                   &error))
    reply_bytes (op, buffer, n);
}

static void
read_staged (FsOp *op, MailStaged *staged, char *buffer)
{
  g_autoptr (GError) error = NULL;
  guint32 uid;
  g_autoptr (MailMailbox) source = mail_staged_message (staged, &uid);

  if (source != NULL)
    {
      read_message (op, source, uid, buffer);
      return;
    }
  gssize n = mail_staged_read (staged, op->offset, buffer, op->size, &error);

  if (n < 0)
    fs_op_fail (op, mail_error_to_errno (error));
  else if (fs_op_take (op))
    fuse_reply_buf (op->req, buffer, n);
}

/* A buffer a thread: reads are at most 1 MiB, and a fresh one each time would be mapped anew. */
static char *
read_buffer (size_t size)
{
  static GPrivate buffer = G_PRIVATE_INIT (g_free);
  static __thread size_t held;

  if (size > held)
    {
      g_private_replace (&buffer, g_malloc (size));
      held = size;
    }
  return g_private_get (&buffer);
}

static void
attempt_read (FsOp *op)
{
  FsServer *server = op->server;
  char *buffer;
  g_auto (FsNode) node = { 0 };

  if (!node_ready (op, &node))
    return;
  if (node.kind == FS_NODE_SNAPSHOT)
    {
      if (fs_op_take (op))
        fs_snapshot_read (server, op->req, op->ino, op->size, op->offset);
      return;
    }
  if (node.kind != FS_NODE_MESSAGE && node.kind != FS_NODE_STAGED)
    {
      fs_op_fail (op, node.kind == FS_NODE_STALE ? ESTALE : EISDIR);
      return;
    }
  buffer = read_buffer (op->size);
  g_autoptr (MailStaged) staged = node.kind == FS_NODE_STAGED
                                      ? mail_staged_ref (node.staged)
                                      : mail_stage_find_replacement (
                                          server->store, (guint32)(node.ino >> 32), node.uid);
  if (staged != NULL)
    read_staged (op, staged, buffer);
  else
    read_message (op, node.mailbox, node.uid, buffer);
}

static void
op_read (fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
  fs_op_start (req, attempt_read, ino, NULL, size, offset, NULL);
}

static void
attempt_open (FsOp *op)
{
  GError *error = NULL;
  g_auto (FsNode) node = { 0 };

  if (!node_ready (op, &node))
    return;
  if (node.kind == FS_NODE_STALE)
    {
      fs_op_fail (op, ESTALE);
      return;
    }
  if (node.kind == FS_NODE_MESSAGE
      && !fs_op_check (op,
                       mail_store_fetch_whole (op->server->store, node.mailbox, node.uid,
                                               fs_op_waiter (op), &error),
                       &error))
    return;
  op->fi.keep_cache = 1;
  if (fs_op_take (op))
    fuse_reply_open (op->req, &op->fi);
}

static void
op_open (fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
  if (server_of (req)->config->eol == MAIL_EOL_CRLF)
    fuse_reply_err (req, ENOSYS);
  else
    fs_op_start (req, attempt_open, ino, NULL, 0, 0, fi);
}

static void
op_opendir (fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
  fs_op_start (req, fs_opendir, ino, NULL, 0, 0, fi);
}

static void
op_readdir (fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
  fs_op_start_readdir (req, fs_readdir, ino, size, offset, fi, FALSE);
}

static void
op_readdirplus (fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset,
                struct fuse_file_info *fi)
{
  fs_op_start_readdir (req, fs_readdir, ino, size, offset, fi, TRUE);
}

static void
op_getxattr (fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
  /* `ls -l` wants two of these of each file, and asks no more where it hears this. (An ENOSYS would
   * end user.* with them.) */
  if (!g_str_has_prefix (name, "user."))
    fuse_reply_err (req, EOPNOTSUPP);
  else
    fs_op_start (req, fs_getxattr, ino, name, size, 0, NULL);
}

static void
op_listxattr (fuse_req_t req, fuse_ino_t ino, size_t size)
{
  fs_op_start (req, fs_listxattr, ino, NULL, size, 0, NULL);
}

static void
attempt_statfs (FsOp *op)
{
  struct statvfs st = { .f_bsize = 4096, .f_frsize = 4096, .f_namemax = FS_NAMES_MAX };
  guint64 used = 0, limit = 0;
  GError *error = NULL;

  if (!fs_op_check (op, mail_store_quota (op->server->store, &used, &limit, fs_op_waiter (op)),
                    &error)
      || !fs_op_take (op))
    return;
  /* Without a quota nobody knows how much fits: as much as anybody will want. */
  if (limit == 0)
    limit = G_GUINT64_CONSTANT (1) << 50, used = 0;
  st.f_blocks = limit / st.f_frsize;
  st.f_bfree = st.f_bavail = limit > used ? (limit - used) / st.f_frsize : 0;
  fuse_reply_statfs (op->req, &st);
}

static void
op_statfs (fuse_req_t req, fuse_ino_t ino)
{
  fs_op_start (req, attempt_statfs, ino, NULL, 0, 0, NULL);
}

static void
op_access (fuse_req_t req, fuse_ino_t ino, int mask)
{
  FsServer *server = server_of (req);
  struct stat st;
  g_auto (FsNode) node = { 0 };

  fs_node_resolve (server, ino, &node);
  int failed = fs_stat_node (server, &node, &st);
  if (failed == 0 && (mask & W_OK) != 0 && (st.st_mode & 0222) == 0)
    failed = EACCES;
  if (failed == 0 && (mask & X_OK) != 0 && (st.st_mode & 0111) == 0)
    failed = EACCES;
  fuse_reply_err (req, failed);
}

static void
op_link (fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
  fuse_reply_err (req, EPERM);
}

static void
op_symlink (fuse_req_t req, const char *link, fuse_ino_t parent, const char *name)
{
  fuse_reply_err (req, EPERM);
}

const struct fuse_lowlevel_ops fs_ops = {
  .init = op_init,
  .lookup = op_lookup,
  .forget = op_forget,
  .forget_multi = op_forget_multi,
  .getattr = op_getattr,
  .open = op_open,
  .read = op_read,
  .flush = fs_flush,
  .fsync = fs_fsync,
  .fsyncdir = fs_fsync,
  .access = op_access,
  .create = fs_create,
  .write = fs_write,
  .setattr = fs_setattr,
  .copy_file_range = fs_copy_file_range,
  .unlink = fs_unlink,
  .rename = fs_rename,
  .mkdir = fs_mkdir,
  .rmdir = fs_rmdir,
  .link = op_link,
  .symlink = op_symlink,
  .mknod = fs_mknod,
  .setxattr = fs_setxattr,
  .removexattr = fs_removexattr,
  .opendir = op_opendir,
  .readdir = op_readdir,
  .readdirplus = op_readdirplus,
  .releasedir = fs_releasedir,
  .getxattr = op_getxattr,
  .listxattr = op_listxattr,
  .statfs = op_statfs,
};
