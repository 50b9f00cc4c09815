/* SPDX-License-Identifier: MIT
 *
 * What the files of src/fs share: the server, resolved inodes, and operations that may wait.
 *
 * Inode numbers (high 32 bits . low 32 bits):
 *   0 . 1                the root directory
 *   0 . 2                .mailfs
 *   0 . 3, 0 . 4         .mailfs/failed, .mailfs/queue
 *   0 . n                snapshots of .mailfs/status and the like, one a look-up, from 16 up
 *   2 . stage id         a file being written, queued or refused
 *   mailbox id . 0       the directory of a mailbox (the root's is 0 . 1)
 *   mailbox id . 1 2 3   its cur, new, tmp with layout=maildir
 *   content id . UID     a message
 * Mailbox and content ids come from one sequence, are never reused and begin at 16, so an inode says
 * by itself what it is, across mounts; a mailbox with a new UIDVALIDITY has a new content id, and
 * the old inodes are stale.
 */
#pragma once

#include "fs/names.h"
#include "fs/server.h"

#include "mailfs/change.h"

#include <fuse_lowlevel.h>

#define FS_INO_DOT_MAILFS 2u
#define FS_INO_FAILED 3u
#define FS_INO_QUEUE 4u
#define FS_INO_SNAPSHOT_FIRST 16u
#define FS_INO_STAGED 2u /* the high half */

/* The kernel keeps answers for so long at most; what changes is told to it at once. Shorter than
 * the time for which the store keeps a mailbox fresh after it was last asked. */
#define FS_TIMEOUT 300.0

typedef struct FsNotify FsNotify;

struct FsServer
{
  const MailConfig *config;
  MailStore *store;
  struct fuse_session *session;
  gboolean mounted;
  int stop_fd; /* readable once the loop is to end */
  FsNotify *notify;
  gint64 started; /* seconds since the epoch */
  void (*ready) (gpointer user_data);
  gpointer ready_data;

  GMutex lock;
  GHashTable *seen_generation; /* directory inode -> generation the kernel read; under lock */
  GHashTable *busy_dirs;       /* directory inode -> requests on it that wait; under lock */
  GHashTable *snapshots;       /* inode -> Snapshot; under lock */
  guint64 next_snapshot;       /* under lock */
  GHashTable *staged_lookups;  /* stage id -> the kernel's lookup count; under lock */
  GHashTable *staged_writers;  /* stage id -> the thread that wrote last; under lock */
  GHashTable *streams; /* open directory -> GHashTable of staged names it has listed; under lock */
  guint64 next_stream; /* under lock */
  GHashTable *vacated; /* inodes (gint64) of messages that left their UID name; under lock */
  GQueue waiting;              /* FsOp links: those that may be parked; under lock */
  GMutex ahead_lock;           /* while the kernel takes bytes; see ahead.c */
  gint handling;   /* atomic: the loop has a request in hand, or may */
  gint idle_since; /* atomic: when it last had, monotonic ms that overflow */
  gint leaving;    /* atomic: nobody answers through the session any more */
  GThread *leaver; /* but this one, while it waits for those that tell the kernel things */
};

/* --- inode.c --------------------------------------------------------------------------------- */

typedef enum
{
  FS_NODE_STALE, /* nothing we know any more */
  FS_NODE_MAILBOX,
  FS_NODE_CUR,
  FS_NODE_NEW,
  FS_NODE_TMP,
  FS_NODE_MESSAGE,
  FS_NODE_STAGED,
  FS_NODE_DOT_MAILFS,
  FS_NODE_FAILED, /* .mailfs/failed */
  FS_NODE_QUEUE,  /* .mailfs/queue */
  FS_NODE_SNAPSHOT,
} FsNodeKind;

typedef struct
{
  FsNodeKind kind;
  fuse_ino_t ino;
  fuse_ino_t known_as; /* by the kernel; another one when it was moved meanwhile */
  MailMailbox *mailbox; /* a reference, for directories of mailboxes and messages */
  guint32 uid;
  MailStaged *staged; /* a reference */
} FsNode;

/* Of a message that was moved: what it is now, node_out->ino that one's. */
void fs_node_resolve (FsServer *server, fuse_ino_t ino, FsNode *node_out);
void fs_node_clear (FsNode *node);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC (FsNode, fs_node_clear)

fuse_ino_t fs_ino_mailbox (MailMailbox *mailbox, FsNodeKind kind);
fuse_ino_t fs_ino_message (guint32 content_id, guint32 uid);
gboolean fs_is_maildir (const FsServer *server);
/* Whether a directory of this kind lists this message (flat: the mailbox; maildir: cur or new). */
gboolean fs_dir_holds (FsNodeKind kind, MailLayout layout, const MailMessage *message);
void fs_stat_dir (FsServer *server, MailMailbox *mailbox, FsNodeKind kind, struct stat *st);
void fs_stat_message (FsServer *server, MailMailbox *mailbox, guint32 content_id,
                      const MailMessage *message, struct stat *st);
/* 0, or the errno. */
int fs_stat_node (FsServer *server, const FsNode *node, struct stat *st);
/* What the message is called in this mount; given: the user's name or NULL. The caller's. */
char *fs_message_name (FsServer *server, guint32 uidvalidity, const MailMessage *message,
                       const char *given);

/* --- ahead.c --------------------------------------------------------------------------------- */

/* As the store's event. */
void fs_fetched_ahead (gpointer server, guint32 content_id, guint32 uid, const guint8 *bytes,
                       gsize length);
/* The notifier's: of those that are in the cache. */
void fs_hand_on_cached (FsServer *server, guint32 content_id, const guint32 *uids, guint n);
/* mail_stage_replacement, after which the kernel is handed no more bytes of the message. */
MailStaged *fs_replace_message (FsServer *server, const FsNode *node, const char *name,
                                GError **error);

/* --- op.c ------------------------------------------------------------------------------------ */

/* A request that may have to wait for the server. `attempt` answers it or parks it; when woken it is
 * attempted again, on the net thread. Whoever wins fs_op_take answers; it is freed with its last
 * reference. */
typedef struct FsOp FsOp;
struct FsOp
{
  MailWaiter waiter;
  gint n_refs, answered;
  GList link; /* in server->waiting; data is NULL while not in it */
  gboolean may_park, interruptible, interrupted_early;
  GThread *arming; /* the thread that is setting the interrupt function; atomic */
  guint n_attempts;
  FsServer *server;
  fuse_req_t req;
  void (*attempt) (FsOp *op);

  fuse_ino_t dirs[2]; /* whose lock the kernel holds meanwhile; 0: none */
  fuse_ino_t ino;
  char *name;   /* look-up, xattr */
  size_t size;  /* read, readdir, xattr */
  off_t offset; /* read, readdir */
  gboolean plus;
  struct fuse_file_info fi;
};

/* For store functions: the waiter, or NULL while the first attempt only tries. */
MailWaiter *fs_op_waiter (FsOp *op);
/* What to do with a store's answer: TRUE go on; FALSE parked or answered with the error's errno. */
gboolean fs_op_check (FsOp *op, MailAnswer answer, GError **error);
/* TRUE exactly once: the caller must now reply. */
gboolean fs_op_take (FsOp *op);
/* No FUSE thread runs any more: who waits is answered now, who is answered later gets none. */
void fs_ops_leave (FsServer *server);
void fs_op_fail (FsOp *op, int error_number);
void fs_op_unref (FsOp *op);
/* Whether a request that holds this directory's lock in the kernel waits for the server. */
gboolean fs_dir_is_busy (FsServer *server, fuse_ino_t dir);
/* For a request that starts a change: hand the result to the change as user_data of fs_change_done,
 * which answers with the errno, or 0. A signal answers EINTR; the change goes on. dir, other_dir: the
 * directories whose entries change, or 0. */
FsOp *fs_change_begin (fuse_req_t req, fuse_ino_t dir, fuse_ino_t other_dir);
void fs_change_done (const GError *error, gpointer op);
/* For a change that is only a part of a request: failures are logged. */
void fs_change_ignore (const GError *error, gpointer unused);
/* Makes an op of the request and attempts it. name may be NULL. */
void fs_op_start (fuse_req_t req, void (*attempt) (FsOp *op), fuse_ino_t ino, const char *name,
                  size_t size, off_t offset, const struct fuse_file_info *fi);
void fs_op_start_readdir (fuse_req_t req, void (*attempt) (FsOp *op), fuse_ino_t ino, size_t size,
                          off_t offset, const struct fuse_file_info *fi, gboolean plus);

/* A length nobody would read is asked of the server first: FALSE while parked or failed. */
gboolean fs_size_ready (FsOp *op, const FsNode *node);

/* --- dir.c ----------------------------------------------------------------------------------- */

void fs_lookup (FsOp *op);
void fs_opendir (FsOp *op);
void fs_releasedir (fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_readdir (FsOp *op);
/* The message a name stands for in a directory of this kind, as far as known. */
gboolean fs_find_by_name (FsServer *server, MailMailbox *mailbox, FsNodeKind kind, const char *name,
                          MailMessage *message_out);
/* A message that somebody renamed to or from the name of its UID. The UID's name stays good for who
 * moved the message in or has mounted anew, but to the one who renames a file away (an editor that
 * makes a backup) the old name must be free. */
void fs_vacate_name (FsServer *server, MailMailbox *mailbox, guint32 uid, gboolean vacated);
/* Whether cur, new or tmp of this mailbox holds nothing. */
gboolean fs_maildir_part_empty (FsServer *server, MailMailbox *mailbox, const char *name);

/* --- write.c --------------------------------------------------------------------------------- */

fuse_ino_t fs_ino_staged (guint32 id);
guint fs_area (FsNodeKind kind); /* a staged file's area is the directory it stands in */
void fs_stat_staged (FsServer *server, MailStaged *staged, struct stat *st);
void fs_staged_remember (FsServer *server, guint32 id); /* one lookup more */
void fs_staged_forget (FsServer *server, fuse_ino_t ino, guint64 n_lookups);
void fs_replacement_forget (FsServer *server, MailStaged *staged, guint n_emptied);
/* A name that stays local: temporary, or anything in tmp. */
gboolean fs_is_local_name (const FsNode *dir, const char *name);
/* The message a staged file has become: FALSE, or a reference and the UID. */
gboolean fs_staged_message (FsServer *server, MailStaged *staged, MailMailbox **mailbox_out,
                            guint32 *uid_out);
void fs_staged_flags_from_name (MailStaged *staged, FsNodeKind kind, const char *name);
void fs_create (fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                struct fuse_file_info *fi);
void fs_mknod (fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t device);
void fs_write (fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t offset,
               struct fuse_file_info *fi);
void fs_setattr (fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                 struct fuse_file_info *fi);
void fs_flush (fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_fsync (fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void fs_copy_file_range (fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
                         struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
                         struct fuse_file_info *fi_out, size_t length, int flags);

/* --- change.c -------------------------------------------------------------------------------- */

void fs_unlink (fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_rename (fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
                const char *new_name, unsigned int flags);
void fs_mkdir (fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void fs_rmdir (fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_setxattr (fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
                  int flags);
void fs_removexattr (fuse_req_t req, fuse_ino_t ino, const char *name);

/* --- ops.c ----------------------------------------------------------------------------------- */

extern const struct fuse_lowlevel_ops fs_ops;

/* --- xattr.c --------------------------------------------------------------------------------- */

void fs_getxattr (FsOp *op);
void fs_listxattr (FsOp *op);

/* --- special.c ------------------------------------------------------------------------------- */

/* Text that is made when it is looked up becomes a file of its own with its own inode, until
 * forgotten. Takes text. */
fuse_ino_t fs_snapshot_new (FsServer *server, char *text);
void fs_snapshot_forget (FsServer *server, fuse_ino_t ino, guint64 n_lookups);
gboolean fs_snapshot_stat (FsServer *server, fuse_ino_t ino, struct stat *st);
/* Replies. */
void fs_snapshot_read (FsServer *server, fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset);
void fs_stat_special_dir (FsServer *server, fuse_ino_t ino, struct stat *st);
/* In .mailfs, .mailfs/failed, .mailfs/queue; answers. */
void fs_special_lookup (FsOp *op, const FsNode *dir);
/* The n-th entry from 0: its name (the caller's) and what stat needs for a listing; NULL at the end. */
char *fs_special_entry (FsServer *server, const FsNode *dir, guint n, struct stat *st);
/* A file in .mailfs/failed; a reference, or NULL. */
MailStaged *fs_failed_lookup (FsServer *server, const char *name);
void fs_reply_entry (FsOp *op, const struct stat *st, double timeout);
void fs_snapshots_free (FsServer *server);

/* --- notify.c -------------------------------------------------------------------------------- */

FsNotify *fs_notify_new (FsServer *server);
/* Its pages. */
void fs_notify_contents (FsServer *server, fuse_ino_t ino);
/* Its attributes; and again a second later, when the kernel has what a request under way said. */
void fs_notify_attributes (FsServer *server, fuse_ino_t ino);
/* The kernel must look this name up anew: after a second, once it asks for nothing. */
void fs_notify_entry_later (FsServer *server, fuse_ino_t dir, const char *name);
/* The same for the name of a message. */
void fs_notify_message (FsServer *server, MailMailbox *mailbox, guint32 uid);
/* The kernel forgot one of the numbers of what replaces a message: if it knows none, it is ended. */
void fs_notify_replacement (FsServer *server, MailStaged *staged, guint n_emptied);
/* Told by the store. */
extern const MailStoreEvents fs_notify_events;
void fs_notify_stop (FsNotify *notify); /* drops what is queued; the thread ends soon */
gboolean fs_notify_has_stopped (FsNotify *notify);
void fs_notify_free (FsNotify *notify); /* stops and joins the thread */
