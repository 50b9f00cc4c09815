/* SPDX-License-Identifier: MIT
 *
 * What the files of src/fs share: the server, resolved inodes, and operations that may wait.
 *
 * Inode numbers (high 32 bits . low 32 bits):
 *   0 . 1                the root directory
 *   0 . 2                .mailfs
 *   0 . n                snapshots of .mailfs/status, one a look-up, from 16 up
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

#include <fuse_lowlevel.h>

#define FS_INO_DOT_MAILFS 2u
#define FS_INO_SNAPSHOT_FIRST 16u

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
  FsNotify *notify;
  gint64 started; /* seconds since the epoch */
  void (*ready) (gpointer user_data);
  gpointer ready_data;

  GMutex lock;
  GHashTable *seen_generation; /* directory inode -> generation the kernel read; under lock */
  GHashTable *snapshots;       /* inode -> Snapshot; under lock */
  guint64 next_snapshot;       /* under lock */
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
  FS_NODE_DOT_MAILFS,
  FS_NODE_SNAPSHOT,
} FsNodeKind;

typedef struct
{
  FsNodeKind kind;
  fuse_ino_t ino;
  MailMailbox *mailbox; /* a reference, for the first five */
  guint32 uid;
} FsNode;

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
/* What the message is called in this mount; given: the user's name or NULL. The caller's. */
char *fs_message_name (FsServer *server, guint32 uidvalidity, const MailMessage *message,
                       const char *given);

/* --- op.c ------------------------------------------------------------------------------------ */

/* A request that may have to wait for the server. `attempt` answers it or parks it; when woken it is
 * attempted again, on the net thread. Whoever wins fs_op_take answers; it is freed with its last
 * reference. */
typedef struct FsOp FsOp;
struct FsOp
{
  MailWaiter waiter;
  gint n_refs, answered;
  gboolean may_park, interruptible, interrupted_early;
  GThread *arming; /* the thread that is setting the interrupt function; atomic */
  guint n_attempts;
  FsServer *server;
  fuse_req_t req;
  void (*attempt) (FsOp *op);

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
void fs_op_fail (FsOp *op, int error_number);
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
void fs_readdir (FsOp *op);

/* --- ops.c ----------------------------------------------------------------------------------- */

extern const struct fuse_lowlevel_ops fs_ops;

/* --- xattr.c --------------------------------------------------------------------------------- */

void fs_getxattr (FsOp *op);
void fs_listxattr (FsOp *op);

/* --- special.c ------------------------------------------------------------------------------- */

/* .mailfs/status: what it says now becomes a file of its own with its own inode, until forgotten. */
fuse_ino_t fs_snapshot_new (FsServer *server);
void fs_snapshot_forget (FsServer *server, fuse_ino_t ino, guint64 n_lookups);
gboolean fs_snapshot_stat (FsServer *server, fuse_ino_t ino, struct stat *st);
/* Replies. */
void fs_snapshot_read (FsServer *server, fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset);
void fs_stat_dot_mailfs (FsServer *server, struct stat *st);
void fs_snapshots_free (FsServer *server);

/* --- notify.c -------------------------------------------------------------------------------- */

FsNotify *fs_notify_new (FsServer *server);
/* Told by the store. */
extern const MailStoreEvents fs_notify_events;
void fs_notify_free (FsNotify *notify); /* drops what is queued, joins the thread */
