/* SPDX-License-Identifier: MIT
 *
 * The notifier: one thread that tells the kernel what it must forget. The store reports changes
 * from any thread; they are queued here and told with no lock held and outside any request, because
 * the kernel may take a directory's lock while another request that holds it waits for us. The one
 * exception is a corrected length: that must reach the kernel before the read that found it is
 * answered, and dropping attributes alone takes no lock.
 */
#include "fs/private.h"

#include <string.h>

#define BUSY_DELAY (50 * G_TIME_SPAN_MILLISECOND)

typedef struct
{
  fuse_ino_t ino;    /* of the inode, or of the directory when name is set */
  gboolean contents; /* pages (a directory's listing) too, not only attributes */
  char *name;        /* an entry that is no longer so */
  GArray *uids;      /* of messages of this content id, whose bytes the kernel is to have */
  guint32 content_id;
  gint64 delay; /* µs before it is told */
  gint64 due;   /* monotonic µs, once put off */
} Notice;

struct FsNotify
{
  FsServer *server;
  GAsyncQueue *queue; /* of Notice; one with ino 0 ends the thread */
  GThread *thread;
  gint stopped; /* atomic */
};

static void
notice_free (gpointer data)
{
  Notice *notice = data;

  g_free (notice->name);
  g_clear_pointer (&notice->uids, g_array_unref);
  g_free (notice);
}

/* The kernel answers -ENOENT for what it does not know, which is as well. */
static void
tell (FsServer *server, const Notice *notice)
{
  struct fuse_session *session = server->session;

  if (notice->uids != NULL)
    fs_hand_on_cached (server, notice->content_id, (const guint32 *)notice->uids->data,
                       notice->uids->len);
  else if (notice->name != NULL)
    fuse_lowlevel_notify_inval_entry (session, notice->ino, notice->name, strlen (notice->name));
  else
    fuse_lowlevel_notify_inval_inode (session, notice->ino, notice->contents ? 0 : -1, 0);
}

static gint
compare_due (gconstpointer a, gconstpointer b, gpointer unused)
{
  const Notice *left = a, *right = b;

  return left->due < right->due ? -1 : left->due > right->due;
}

static void
put_off (GQueue *later, Notice *notice, gint64 delay)
{
  notice->due = g_get_monotonic_time () + delay;
  g_queue_insert_sorted (later, notice, compare_due, NULL);
}

/* The next notice that is due. To drop an entry the kernel takes the directory's lock, and nothing
 * wakes us from waiting for it, not even SIGKILL: then the mount would hang for ever with the
 * request that holds it. So while such a request waits for the server, the notice waits too. */
static Notice *
next_notice (FsNotify *notify, GQueue *later)
{
  for (;;)
    {
      Notice *first = g_queue_peek_head (later);
      gint64 wait = first != NULL ? MAX (first->due - g_get_monotonic_time (), 1) : 0;
      Notice *notice = first != NULL ? g_async_queue_timeout_pop (notify->queue, (guint64)wait)
                                     : g_async_queue_pop (notify->queue);

      if (notice == NULL)
        notice = g_queue_pop_head (later);
      else if (notice->delay != 0)
        {
          put_off (later, notice, notice->delay);
          continue;
        }
      if (notice->name == NULL || !fs_dir_is_busy (notify->server, notice->ino))
        return notice;
      put_off (later, notice, BUSY_DELAY);
    }
}

static gpointer
run (gpointer data)
{
  FsNotify *notify = data;
  GQueue later = G_QUEUE_INIT;
  gboolean end = FALSE;

  while (!end)
    {
      Notice *notice = next_notice (notify, &later);

      end = notice->ino == 0 && notice->uids == NULL;
      if (!end)
        tell (notify->server, notice);
      notice_free (notice);
    }
  g_queue_clear_full (&later, notice_free);
  g_atomic_int_set (&notify->stopped, TRUE);
  return NULL;
}

static void
push (FsServer *server, fuse_ino_t ino, gboolean contents, const char *name)
{
  Notice *notice = g_new0 (Notice, 1);

  notice->ino = ino;
  notice->contents = contents;
  notice->name = g_strdup (name);
  g_async_queue_push (server->notify->queue, notice);
}

void
fs_notify_entry (FsServer *server, fuse_ino_t dir, const char *name)
{
  push (server, dir, FALSE, name);
}

static FsNodeKind
dir_of (FsServer *server, const MailMessage *message)
{
  if (!fs_is_maildir (server))
    return FS_NODE_MAILBOX;
  return fs_dir_holds (FS_NODE_NEW, MAIL_LAYOUT_MAILDIR, message) ? FS_NODE_NEW : FS_NODE_CUR;
}

/* The kernel's listing of a directory is out of date, and the next opendir, which may come before
 * the notice, must not let it be kept. Told once until the kernel reads it again. */
static void
drop_listing (FsServer *server, fuse_ino_t dir)
{
  g_mutex_lock (&server->lock);
  gboolean read = g_hash_table_remove (server->seen_generation, &dir);
  g_mutex_unlock (&server->lock);
  if (read)
    push (server, dir, TRUE, NULL);
}

/* With layout=maildir a change of flags is a change of names. */
void
fs_notify_message (FsServer *server, MailMailbox *mailbox, guint32 uid)
{
  g_autofree char *given = mail_mailbox_name_of (mailbox, uid);
  MailMailboxInfoNow info;
  MailMessage message;

  if (!mail_mailbox_find_gone (mailbox, uid, &message))
    return;
  mail_mailbox_info (mailbox, &info);
  g_autofree char *name = fs_message_name (server, info.uidvalidity, &message, given);
  push (server, fs_ino_mailbox (mailbox, dir_of (server, &message)), FALSE, name);
}

static void
message_changed (gpointer user_data, MailMailbox *mailbox, const MailMessage *old,
                 const MailMessage *now, const char *given)
{
  FsServer *server = user_data;
  guint32 content_id = mail_mailbox_content_id (mailbox);
  MailMailboxInfoNow info;

  if (old == NULL)
    {
      /* The directory's own notice says enough, but for a name that was another file's before: what
       * was being written, or the message in whose place it was. */
      if (now != NULL && given != NULL)
        push (server, fs_ino_mailbox (mailbox, dir_of (server, now)), FALSE, given);
      return;
    }
  mail_mailbox_info (mailbox, &info);
  g_autofree char *name = fs_message_name (server, info.uidvalidity, old, given);
  g_autofree char *name_now = now != NULL ? fs_message_name (server, info.uidvalidity, now, given)
                                          : NULL;
  fuse_ino_t dir = fs_ino_mailbox (mailbox, dir_of (server, old));

  if (now != NULL)
    push (server, fs_ino_message (content_id, old->uid), FALSE, NULL);
  if (name_now != NULL && strcmp (name, name_now) == 0)
    return;
  push (server, dir, FALSE, name);
  if (now == NULL)
    return;
  fuse_ino_t dir_now = fs_ino_mailbox (mailbox, dir_of (server, now));
  drop_listing (server, dir);
  drop_listing (server, dir_now);
  if (dir_now != dir)
    push (server, dir_now, FALSE, NULL); /* its time */
}

/* Its pages too: who has it open is to be told that it is stale. */
static void
replaced (gpointer user_data, MailMailbox *mailbox, guint32 content_id, guint32 uidvalidity,
          const MailMessage *old, const char *given)
{
  FsServer *server = user_data;
  g_autofree char *name = fs_message_name (server, uidvalidity, old, given);

  push (server, fs_ino_mailbox (mailbox, dir_of (server, old)), FALSE, name);
  push (server, fs_ino_message (content_id, old->uid), TRUE, NULL);
}

/* A longer message: the kernel must drop the old length before the read that found it is answered.
 * A shorter one: the kernel takes the end from the short answer itself, but only while it has not
 * been told to drop its attributes since it asked; so that waits until the reads under way are
 * answered. */
static void
size_known (gpointer user_data, guint32 content_id, guint32 uid, guint64 claimed, guint64 size)
{
  FsServer *server = user_data;
  fuse_ino_t ino = fs_ino_message (content_id, uid);

  if (size > claimed || server->config->eol == MAIL_EOL_LF)
    {
      if (!g_atomic_int_get (&server->leaving))
        fuse_lowlevel_notify_inval_inode (server->session, ino, -1, 0);
      return;
    }
  Notice *notice = g_new0 (Notice, 1);
  notice->ino = ino;
  notice->delay = G_TIME_SPAN_SECOND;
  g_async_queue_push (server->notify->queue, notice);
}

void
fs_notify_contents (FsServer *server, fuse_ino_t ino)
{
  push (server, ino, TRUE, NULL);
}

static void
walks_on (gpointer user_data, guint32 content_id, const guint32 *uids, guint n)
{
  FsServer *server = user_data;
  Notice *notice = g_new0 (Notice, 1);

  notice->content_id = content_id;
  notice->uids = g_array_sized_new (FALSE, FALSE, sizeof (guint32), n);
  g_array_append_vals (notice->uids, uids, n);
  g_async_queue_push (server->notify->queue, notice);
}

static void
contents_dropped (gpointer user_data, guint32 content_id, guint32 uid)
{
  fs_notify_contents (user_data, fs_ino_message (content_id, uid));
}

static void
directory_changed (gpointer user_data, MailMailbox *mailbox)
{
  FsServer *server = user_data;

  push (server, fs_ino_mailbox (mailbox, FS_NODE_MAILBOX), TRUE, NULL);
  if (fs_is_maildir (server))
    {
      push (server, fs_ino_mailbox (mailbox, FS_NODE_CUR), TRUE, NULL);
      push (server, fs_ino_mailbox (mailbox, FS_NODE_NEW), TRUE, NULL);
    }
}

static void
mailbox_gone (gpointer user_data, guint32 parent_id, guint32 id, const char *leaf)
{
  FsServer *server = user_data;
  fuse_ino_t parent = parent_id == MAIL_ROOT_ID ? FUSE_ROOT_ID : (guint64)parent_id << 32;

  push (server, parent, FALSE, leaf);
}

const MailStoreEvents fs_notify_events = {
  .message = message_changed,
  .size_known = size_known,
  .fetched_ahead = fs_fetched_ahead,
  .walks_on = walks_on,
  .contents_dropped = contents_dropped,
  .directory = directory_changed,
  .mailbox_gone = mailbox_gone,
  .replaced = replaced,
};

FsNotify *
fs_notify_new (FsServer *server)
{
  FsNotify *notify = g_new0 (FsNotify, 1);

  notify->server = server;
  notify->queue = g_async_queue_new_full (notice_free);
  notify->thread = g_thread_new ("notify", run, notify);
  return notify;
}

void
fs_notify_stop (FsNotify *notify)
{
  g_async_queue_push_front (notify->queue, g_new0 (Notice, 1));
}

gboolean
fs_notify_has_stopped (FsNotify *notify)
{
  return g_atomic_int_get (&notify->stopped);
}

void
fs_notify_free (FsNotify *notify)
{
  fs_notify_stop (notify);
  g_thread_join (notify->thread);
  g_async_queue_unref (notify->queue);
  g_free (notify);
}
