/* SPDX-License-Identifier: MIT
 *
 * Bytes for the kernel before it asks. What was fetched ahead of somebody who walks through a
 * mailbox goes into the kernel's page cache as it comes, so that his read finds it there instead of
 * waking us. Only of messages as they are on the server: one that is being written anew has its
 * bytes from its writer.
 */
#include "fs/private.h"

#include "mailfs/log.h"

/* Whether the kernel's inode stands for just this message. */
static gboolean
is_plain (FsServer *server, fuse_ino_t ino, guint32 content_id, guint32 uid)
{
  g_auto (FsNode) node = { 0 };

  fs_node_resolve (server, ino, &node);
  if (node.kind != FS_NODE_MESSAGE || node.ino != ino)
    return FALSE;
  g_autoptr (MailStaged) staged = mail_stage_find_replacement (server->store, content_id, uid);
  return staged == NULL;
}

/* FALSE: the kernel does not want it. */
static gboolean
hand_on (FsServer *server, guint32 content_id, guint32 uid, const guint8 *bytes, gsize length)
{
  fuse_ino_t ino = fs_ino_message (content_id, uid);
  struct fuse_bufvec pages = FUSE_BUFVEC_INIT (length);
  gboolean taken;

  pages.buf[0].mem = (void *)bytes;
  g_mutex_lock (&server->ahead_lock);
  taken = !g_atomic_int_get (&server->leaving) && is_plain (server, ino, content_id, uid)
          && fuse_lowlevel_notify_store (server->session, ino, 0, &pages, 0) == 0;
  g_mutex_unlock (&server->ahead_lock);
  mail_counter_add (MAIL_COUNTER_AHEAD, taken);
  return taken;
}

void
fs_fetched_ahead (gpointer server, guint32 content_id, guint32 uid, const guint8 *bytes,
                  gsize length)
{
  hand_on (server, content_id, uid, bytes, length);
}

void
fs_hand_on_cached (FsServer *server, guint32 content_id, const guint32 *uids, guint n)
{
  guint8 bytes[MAIL_BLOCK_SIZE];
  guint n_unknown = 0;

  /* For who looks up one name after the other the kernel does not know the inodes yet. */
  for (guint i = 0; i < n && n_unknown <= n / 4; i++)
    {
      gssize length = mail_store_read_ahead (server->store, content_id, uids[i], bytes,
                                             sizeof bytes);

      if (length > 0 && !hand_on (server, content_id, uids[i], bytes, (gsize)length))
        n_unknown++;
    }
}

/* This runs in a request, and the kernel may take bytes only when another request was answered: not
 * to be waited for. It may then be this message's bytes that it is taking: they are dropped again.
 */
MailStaged *
fs_replace_message (FsServer *server, const FsNode *node, const char *name, GError **error)
{
  gboolean quiet = g_mutex_trylock (&server->ahead_lock);
  MailStaged *staged = mail_stage_replacement (server->store, node->mailbox, node->uid, name,
                                               error);

  if (quiet)
    g_mutex_unlock (&server->ahead_lock);
  else if (staged != NULL)
    fs_notify_contents (server, node->ino);
  return staged;
}
