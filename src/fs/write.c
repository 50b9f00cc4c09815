/* SPDX-License-Identifier: MIT
 *
 * What users write: create, write, truncate, flush, fsync, copy_file_range. A file being written is
 * a MailStaged; it becomes a message when it is flushed under a final name. The kernel never tells
 * us of a RELEASE (see ops.c), so a staged file lives by its inode: lookups counted here, FLUSH
 * commits, FORGET ends it. FUSE threads; `done` functions run on the net thread or at once.
 */
#include "fs/private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* --- who writes ------------------------------------------------------------------------------ */

static void
note_writer (FsServer *server, MailStaged *staged, pid_t writer)
{
  MailStagedInfo info;

  mail_staged_info (staged, &info);
  g_mutex_lock (&server->lock);
  g_hash_table_insert (server->staged_writers, GUINT_TO_POINTER (info.id),
                       GINT_TO_POINTER (writer));
  g_mutex_unlock (&server->lock);
}

static void
forget_writer (FsServer *server, MailStaged *staged)
{
  MailStagedInfo info;

  mail_staged_info (staged, &info);
  g_mutex_lock (&server->lock);
  g_hash_table_remove (server->staged_writers, GUINT_TO_POINTER (info.id));
  g_mutex_unlock (&server->lock);
}

/* A FLUSH comes from everybody who closes the file, also who only read it. Whoever writes still
 * lives and is another program: his own close, at the latest at his end, will be the commit. */
static gboolean
is_written_by_other (FsServer *server, MailStaged *staged, pid_t closer)
{
  MailStagedInfo info;
  char same[64], alive[32];

  mail_staged_info (staged, &info);
  g_mutex_lock (&server->lock);
  int writer = GPOINTER_TO_INT (
      g_hash_table_lookup (server->staged_writers, GUINT_TO_POINTER (info.id)));
  g_mutex_unlock (&server->lock);
  if (writer == 0 || closer == 0 || writer == closer)
    return FALSE;
  g_snprintf (same, sizeof same, "/proc/%d/task/%d", (int)closer, writer);
  g_snprintf (alive, sizeof alive, "/proc/%d", writer);
  return access (same, F_OK) < 0 && access (alive, F_OK) == 0;
}

/* --- lookup counts of staged files ----------------------------------------------------------- */

void
fs_staged_remember (FsServer *server, guint32 id)
{
  g_mutex_lock (&server->lock);
  gpointer count = g_hash_table_lookup (server->staged_lookups, GUINT_TO_POINTER (id));
  g_hash_table_insert (server->staged_lookups, GUINT_TO_POINTER (id),
                       GUINT_TO_POINTER (GPOINTER_TO_UINT (count) + 1));
  g_mutex_unlock (&server->lock);
  if (count == NULL)
    mail_stage_known (server->store, id);
}

/* TRUE: that was the last of them. */
static gboolean
count_forgotten (FsServer *server, guint32 id, guint64 n_lookups)
{
  g_mutex_lock (&server->lock);
  guint64 count = GPOINTER_TO_UINT (
      g_hash_table_lookup (server->staged_lookups, GUINT_TO_POINTER (id)));
  gboolean last = count <= n_lookups;
  if (last)
    g_hash_table_remove (server->staged_lookups, GUINT_TO_POINTER (id));
  else
    g_hash_table_insert (server->staged_lookups, GUINT_TO_POINTER (id),
                         GUINT_TO_POINTER (count - n_lookups));
  g_mutex_unlock (&server->lock);
  return last;
}

void
fs_staged_forget (FsServer *server, fuse_ino_t ino, guint64 n_lookups)
{
  g_autoptr (MailStaged) staged = NULL;
  MailStagedInfo info;

  if (ino >> 32 != FS_INO_STAGED)
    staged = mail_stage_find_replacement (server->store, (guint32)(ino >> 32), (guint32)ino);
  else if (count_forgotten (server, (guint32)ino, n_lookups))
    staged = mail_stage_find (server->store, (guint32)ino);
  if (staged == NULL)
    return;
  mail_staged_info (staged, &info);
  g_autoptr (GArray) numbers = mail_staged_numbers (staged);
  if (numbers->len > 0)
    {
      fs_notify_replacement (server, staged, info.n_emptied);
      return;
    }
  forget_writer (server, staged);
  mail_staged_forget (staged, info.n_emptied);
}

/* The kernel may know a file that is written anew by the numbers of several messages, whose
 * look-ups are not counted, and by its own. It says late what it forgot, perhaps after it has
 * looked again: so it is asked for each. Notifier thread; the kernel answers at once. */
void
fs_replacement_forget (FsServer *server, MailStaged *staged, guint n_emptied)
{
  g_autoptr (GArray) numbers = mail_staged_numbers (staged);
  MailStagedInfo info;

  mail_staged_info (staged, &info);
  g_mutex_lock (&server->lock);
  gboolean known = g_hash_table_contains (server->staged_lookups, GUINT_TO_POINTER (info.id));
  g_mutex_unlock (&server->lock);
  for (guint i = 0; i < numbers->len; i++)
    {
      fuse_ino_t message = g_array_index (numbers, guint64, i);

      if (fuse_lowlevel_notify_inval_inode (server->session, message, -1, 0) == -ENOENT)
        mail_staged_forget_number (staged, message);
      else
        known = TRUE;
    }
  if (known)
    return;
  forget_writer (server, staged);
  mail_staged_forget (staged, n_emptied);
  /* Who looked again meanwhile was told the length of what has just gone. */
  for (guint i = 0; i < numbers->len; i++)
    fs_notify_attributes (server, g_array_index (numbers, guint64, i));
}

fuse_ino_t
fs_ino_staged (guint32 id)
{
  return (guint64)FS_INO_STAGED << 32 | id;
}

guint
fs_area (FsNodeKind kind)
{
  return kind - FS_NODE_MAILBOX;
}

void
fs_stat_staged (FsServer *server, MailStaged *staged, struct stat *st)
{
  MailStagedInfo info;

  mail_staged_info (staged, &info);
  memset (st, 0, sizeof *st);
  st->st_ino = fs_ino_staged (info.id);
  st->st_mode = (S_IFREG | 0666) & ~server->config->umask;
  st->st_nlink = 1;
  st->st_uid = server->config->uid;
  st->st_gid = server->config->gid;
  st->st_blksize = 4096;
  st->st_size = (off_t)info.size;
  st->st_blocks = (st->st_size + 511) / 512;
  st->st_mtim.tv_sec = st->st_atim.tv_sec = st->st_ctim.tv_sec = info.mtime;
}

/* The staged file behind an inode: itself, or what replaces a truncated message. NULL: neither. */
static MailStaged *
staged_of (FsServer *server, const FsNode *node)
{
  if (node->kind == FS_NODE_STAGED)
    return mail_staged_ref (node->staged);
  if (node->kind == FS_NODE_MESSAGE)
    return mail_stage_find_replacement (server->store, (guint32)(node->ino >> 32), node->uid);
  return NULL;
}

gboolean
fs_staged_message (FsServer *server, MailStaged *staged, MailMailbox **mailbox_out,
                   guint32 *uid_out)
{
  MailStagedInfo info;

  mail_staged_info (staged, &info);
  *uid_out = info.uid;
  *mailbox_out = info.state == MAIL_STAGED_DONE
                     ? mail_store_contents (server->store, info.content_id)
                     : NULL;
  return *mailbox_out != NULL;
}

/* --- create and write ------------------------------------------------------------------------ */

/* 0, or why nothing can be made in this directory. */
static int
check_target (FsServer *server, const FsNode *dir, const char *name)
{
  MailMailboxInfoNow info;

  if (strlen (name) > FS_NAMES_MAX)
    return ENAMETOOLONG;
  if (dir->kind == FS_NODE_STALE)
    return ESTALE;
  if (dir->mailbox == NULL || (dir->kind == FS_NODE_MAILBOX && fs_is_maildir (server))
      || !mail_mailbox_selectable (dir->mailbox))
    return EPERM;
  mail_mailbox_info (dir->mailbox, &info);
  return info.may_write ? 0 : EACCES;
}

gboolean
fs_is_local_name (const FsNode *dir, const char *name)
{
  return dir->kind == FS_NODE_TMP || fs_names_is_temporary (name);
}

/* A file delivered into cur carries its flags in its name. */
void
fs_staged_flags_from_name (MailStaged *staged, FsNodeKind kind, const char *name)
{
  gboolean forwarded = FALSE, has_info = FALSE;
  guint8 flags = 0;

  if (kind != FS_NODE_CUR)
    return;
  fs_names_parse_maildir_info (name, &flags, &forwarded, &has_info);
  if (has_info && !mail_staged_set_flags (staged, flags, forwarded ? "$Forwarded" : NULL, NULL))
    mail_staged_set_flags (staged, flags, NULL, NULL);
}

/* NULL: answered with an error. */
static MailStaged *
make_file (fuse_req_t req, fuse_ino_t parent, const char *name, struct fuse_entry_param *entry)
{
  FsServer *server = fuse_req_userdata (req);
  g_autoptr (GError) error = NULL;
  g_auto (FsNode) dir = { 0 };

  memset (entry, 0, sizeof *entry);
  fs_node_resolve (server, parent, &dir);
  int refused = check_target (server, &dir, name);
  if (refused != 0)
    {
      fuse_reply_err (req, refused);
      return NULL;
    }
  MailStaged *staged = mail_stage_create (server->store, dir.mailbox, fs_area (dir.kind), name,
                                          fs_is_local_name (&dir, name), &error);
  if (staged == NULL)
    {
      fuse_reply_err (req, mail_error_to_errno (error));
      return NULL;
    }
  fs_staged_flags_from_name (staged, dir.kind, name);
  fs_stat_staged (server, staged, &entry->attr);
  entry->ino = entry->attr.st_ino;
  fs_staged_remember (server, (guint32)entry->ino);
  return staged;
}

void
fs_create (fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
           struct fuse_file_info *fi)
{
  struct fuse_entry_param entry;
  g_autoptr (MailStaged) staged = make_file (req, parent, name, &entry);

  if (staged != NULL && fuse_reply_create (req, &entry, fi) != 0)
    fs_staged_forget (fuse_req_userdata (req), entry.ino, 1);
}

/* tar makes its files so, to give them their attributes before their bytes. */
void
fs_mknod (fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t device)
{
  struct fuse_entry_param entry;

  if (!S_ISREG (mode))
    {
      fuse_reply_err (req, EPERM);
      return;
    }
  g_autoptr (MailStaged) staged = make_file (req, parent, name, &entry);
  if (staged != NULL && fuse_reply_entry (req, &entry) != 0)
    fs_staged_forget (fuse_req_userdata (req), entry.ino, 1);
}

/* What has gone just now: told so, the kernel looks for it again by name. */
static int
stale_when_gone (const GError *error)
{
  return g_error_matches (error, MAIL_ERROR, MAIL_ERROR_GONE) ? ESTALE
                                                              : mail_error_to_errno (error);
}

void
fs_write (fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t offset,
          struct fuse_file_info *fi)
{
  FsServer *server = fuse_req_userdata (req);
  g_autoptr (GError) error = NULL;
  g_auto (FsNode) node = { 0 };

  fs_node_resolve (server, ino, &node);
  g_autoptr (MailStaged) staged = staged_of (server, &node);
  if (staged == NULL)
    fuse_reply_err (req, node.kind == FS_NODE_STALE ? ESTALE : EPERM);
  else if (!mail_staged_write (staged, offset, data, size, &error))
    fuse_reply_err (req, stale_when_gone (error));
  else
    {
      note_writer (server, staged, fuse_req_ctx (req)->pid);
      fuse_reply_write (req, size);
    }
}

/* --- setattr --------------------------------------------------------------------------------- */

/* What the kernel knows by this number was moved, into the trash perhaps, when another version took
 * its place. */
static gboolean
was_moved (FsServer *server, const FsNode *node)
{
  g_autoptr (MailStaged) anew = mail_stage_find_replacement (
      server->store, (guint32)(node->known_as >> 32), (guint32)node->known_as);

  return node->ino != node->known_as && anew == NULL;
}

/* 0, or the errno. */
static int
set_size (FsServer *server, const FsNode *node, off_t size)
{
  g_autoptr (MailStaged) staged = staged_of (server, node);
  g_autoptr (GError) error = NULL;
  MailMessage message;

  if (was_moved (server, node))
    return ESTALE; /* the kernel looks again, by name */
  if (staged == NULL && node->kind != FS_NODE_MESSAGE)
    return EISDIR;
  if (staged == NULL && size == 0)
    {
      MailMailboxInfoNow info;
      char name[FS_NAMES_MESSAGE_SIZE];

      mail_mailbox_info (node->mailbox, &info);
      fs_names_message (name, node->uid, info.uidvalidity);
      staged = fs_replace_message (server, node, fs_is_maildir (server) ? NULL : name, &error);
      return staged != NULL ? 0 : stale_when_gone (error);
    }
  if (staged == NULL)
    return mail_mailbox_find (node->mailbox, node->uid, &message) && message.size == (guint64)size
               ? 0
               : EPERM;
  return mail_staged_truncate (staged, size, &error) ? 0 : stale_when_gone (error);
}

static int
set_owner (const FsServer *server, const struct stat *attr, int to_set)
{
  if ((to_set & FUSE_SET_ATTR_UID) != 0 && attr->st_uid != server->config->uid)
    return EPERM;
  return (to_set & FUSE_SET_ATTR_GID) != 0 && attr->st_gid != server->config->gid ? EPERM : 0;
}

void
fs_setattr (fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
            struct fuse_file_info *fi)
{
  FsServer *server = fuse_req_userdata (req);
  int failed;
  struct stat st;
  g_auto (FsNode) node = { 0 };

  fs_node_resolve (server, ino, &node);
  failed = node.kind == FS_NODE_STALE ? ESTALE : set_owner (server, attr, to_set);
  if (failed == 0 && (to_set & FUSE_SET_ATTR_SIZE) != 0)
    failed = set_size (server, &node, attr->st_size);
  if (failed == 0 && (to_set & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)) != 0)
    {
      g_autoptr (MailStaged) staged = staged_of (server, &node);

      gint64 mtime = (to_set & FUSE_SET_ATTR_MTIME_NOW) != 0 ? g_get_real_time () / G_USEC_PER_SEC
                                                             : attr->st_mtim.tv_sec;

      if (staged != NULL)
        mail_staged_set_mtime (staged, mtime);
      else if (node.kind == FS_NODE_MAILBOX)
        mail_mailbox_set_mtime (node.mailbox, mtime);
    }
  /* chmod, and times of what is a message already, are accepted without effect. */
  if (failed == 0)
    failed = fs_stat_node (server, &node, &st);
  if (failed == ENOENT) /* expunged by others while this was done to it */
    {
      fs_node_clear (&node);
      fs_node_resolve (server, ino, &node);
      failed = fs_stat_node (server, &node, &st);
    }
  /* By name the kernel looks again, and finds nothing or makes a new file. */
  if (failed == ENOENT)
    failed = ESTALE;
  if (failed != 0)
    fuse_reply_err (req, failed);
  else
    fuse_reply_attr (req, &st, 0);
}

/* --- flush and fsync ------------------------------------------------------------------------- */

static gboolean
is_failed (MailStaged *staged)
{
  MailStagedInfo info;

  mail_staged_info (staged, &info);
  return info.state == MAIL_STAGED_FAILED;
}

/* Truncated, and nothing written so far: should nobody have it open any more, the kernel forgets it
 * on this notice, and the message is as it was. */
static void
show_again_if_empty (FsServer *server, MailStaged *staged)
{
  MailStagedInfo info;

  mail_staged_info (staged, &info);
  if (info.state != MAIL_STAGED_LOCAL || info.size > 0 || info.replaces_uid == 0)
    return;
  g_autoptr (MailMailbox) mailbox = mail_store_contents (server->store, info.replaces_content);
  if (mailbox != NULL)
    fs_notify_message (server, mailbox, info.replaces_uid);
}

static void
commit (fuse_req_t req, fuse_ino_t ino, gboolean wait)
{
  FsServer *server = fuse_req_userdata (req);
  g_auto (FsNode) node = { 0 };

  fs_node_resolve (server, ino, &node);
  g_autoptr (MailStaged) staged = staged_of (server, &node);
  if (staged != NULL)
    show_again_if_empty (server, staged);
  /* Whoever wrote what was refused has been told; readers of .mailfs/failed close without an error.
   */
  if (staged != NULL && !wait
      && (is_failed (staged) || is_written_by_other (server, staged, fuse_req_ctx (req)->pid)))
    fuse_reply_err (req, 0);
  else if (staged != NULL)
    mail_staged_commit (staged, wait, fs_change_done, fs_change_begin (req, 0, 0));
  else if (wait && node.mailbox != NULL)
    mail_store_drain (server->store, node.mailbox, fs_change_done, fs_change_begin (req, 0, 0));
  else
    fuse_reply_err (req, 0);
}

void
fs_flush (fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
  FsServer *server = fuse_req_userdata (req);

  /* On a read-only mount nothing can be waiting to be reported: never ask again. */
  if (server->config->read_only)
    fuse_reply_err (req, ENOSYS);
  else
    commit (req, ino, FALSE);
}

void
fs_fsync (fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
  commit (req, ino, TRUE);
}

/* --- copy_file_range ------------------------------------------------------------------------- */

void
fs_copy_file_range (fuse_req_t req, fuse_ino_t ino_in, off_t off_in, struct fuse_file_info *fi_in,
                    fuse_ino_t ino_out, off_t off_out, struct fuse_file_info *fi_out, size_t length,
                    int flags)
{
  FsServer *server = fuse_req_userdata (req);
  MailMessage message;
  g_auto (FsNode) in = { 0 };
  g_auto (FsNode) out = { 0 };

  fs_node_resolve (server, ino_in, &in);
  fs_node_resolve (server, ino_out, &out);
  gboolean found = in.kind == FS_NODE_MESSAGE && out.kind == FS_NODE_STAGED
                   && mail_mailbox_find (in.mailbox, in.uid, &message);
  if (found && (guint64)off_in >= message.size)
    fuse_reply_write (req, 0);
  /* Anything but a whole message onto an empty file is copied by the caller, byte by byte. */
  else if (!found || off_in != 0 || off_out != 0 || length < message.size
           || message.size > G_MAXINT32
           || !mail_staged_copy_from (out.staged, in.mailbox, in.uid, NULL))
    fuse_reply_err (req, EOPNOTSUPP);
  else
    fuse_reply_write (req, message.size);
}
