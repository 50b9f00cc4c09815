/* SPDX-License-Identifier: MIT
 *
 * The notifier: one thread that tells the kernel what it must forget. The store reports changes
 * from any thread; they are queued here and told with no lock held and outside any request, because
 * the kernel may take a directory's lock while another request that holds it waits for us. The one
 * exception is a corrected length: that must reach the kernel before the read that found it is
 * answered, and dropping attributes alone takes no lock.
 */
#include "fs/private.h"

#include <poll.h>
#include <string.h>

#define DIR_DELAY (5 * G_TIME_SPAN_MILLISECOND) /* a burst of changes is one notice */
#define QUIET 2u                                /* ms without a request */
#define NAMES_POLL G_GINT64_CONSTANT (200)      /* µs */
#define MOVED_POLL (3 * G_TIME_SPAN_MILLISECOND)

typedef struct
{
  fuse_ino_t ino;     /* of the inode, or of the directory when name is set */
  gboolean contents;  /* pages (a directory's listing) too, not only attributes */
  gboolean is_dir;    /* told once for all that comes before it is due */
  char *name;         /* an entry that is no longer so */
  MailStaged *staged; /* which replaces a message, and is ended if the kernel knows it no more */
  guint n_emptied;
  GArray *uids; /* of messages of this content id, whose bytes the kernel is to have */
  guint32 content_id;
  gint64 delay; /* µs before it is told */
  gint64 due;   /* monotonic µs: not before */
} Notice;

struct FsNotify
{
  FsServer *server;
  GThread *thread;
  gint stopped; /* atomic */

  GMutex lock;     /* of all below; the server's may be taken while it is held */
  GCond earlier;   /* something is due before the thread looks by itself, or it is to end */
  gint64 looks_at; /* monotonic µs: when it does; 0: it is awake */
  gboolean ends;
  GSequence *others; /* by due: all but names */
  GHashTable *dirs;  /* inodes of directories among them */
  GQueue names;      /* that others took away */
  GQueue moved;      /* names that the kernel took along */
};

static void
notice_free (gpointer data)
{
  Notice *notice = data;

  g_free (notice->name);
  g_clear_pointer (&notice->uids, g_array_unref);
  g_clear_pointer (&notice->staged, mail_staged_unref);
  g_free (notice);
}

static void
free_other (gpointer data, gpointer unused)
{
  notice_free (data);
}

/* The kernel answers -ENOENT for what it does not know, which is as well. */
static void
tell (FsServer *server, const Notice *notice)
{
  struct fuse_session *session = server->session;

  if (notice->uids != NULL)
    fs_hand_on_cached (server, notice->content_id, (const guint32 *)notice->uids->data,
                       notice->uids->len);
  else if (notice->staged != NULL)
    fs_replacement_forget (server, notice->staged, notice->n_emptied);
  else if (notice->name != NULL)
    fuse_lowlevel_notify_inval_entry (session, notice->ino, notice->name, strlen (notice->name));
  else
    fuse_lowlevel_notify_inval_inode (session, notice->ino, notice->contents ? 0 : -1, 0);
}

/* --- what is told next; the lock is held ------------------------------------------------------ */

static gint
compare_due (gconstpointer a, gconstpointer b, gpointer unused)
{
  const Notice *left = a, *right = b;

  return left->due < right->due ? -1 : left->due > right->due;
}

/* No request is in hand and none waits to be taken. */
static gboolean
is_idle (FsServer *server)
{
  struct pollfd fd = { .fd = fuse_session_fd (server->session), .events = POLLIN };

  return !g_atomic_int_get (&server->handling) && poll (&fd, 1, 0) >= 0
         && (fd.revents & POLLIN) == 0 && !g_atomic_int_get (&server->handling);
}

/* To drop an entry the kernel takes the directory's lock, and nothing wakes us from waiting for it,
 * not even SIGKILL: a daemon that is killed then would leave a mount that hangs for ever, with the
 * request that holds the lock and is never answered. So an entry is dropped only while no request
 * holds its directory, parked or in hand. What is left is a request that begins within the
 * microsecond between this look and the notice, and a kill before it is answered. */
static Notice *
take_name (FsServer *server, GQueue *names)
{
  Notice *first = g_queue_peek_head (names);

  if (first == NULL || !is_idle (server))
    return NULL;
  g_queue_pop_head (names);
  if (!fs_dir_is_busy (server, first->ino))
    return first;
  g_queue_push_tail (names, first);
  return NULL;
}

/* Whoever moves one message upon the other would send the next request just now: when he pauses. */
static Notice *
take_moved_name (FsServer *server, GQueue *moved)
{
  const Notice *first = g_queue_peek_head (moved);
  gint64 now = g_get_monotonic_time ();
  guint quiet = (guint)(now / G_TIME_SPAN_MILLISECOND)
                - (guint)g_atomic_int_get (&server->idle_since);

  return first != NULL && first->due <= now && quiet >= QUIET ? take_name (server, moved) : NULL;
}

static Notice *
take_other (FsNotify *notify)
{
  GSequenceIter *first = g_sequence_get_begin_iter (notify->others);
  Notice *notice = !g_sequence_iter_is_end (first) ? g_sequence_get (first) : NULL;

  if (notice == NULL || notice->due > g_get_monotonic_time ())
    return NULL;
  g_sequence_remove (first);
  if (notice->is_dir)
    g_hash_table_remove (notify->dirs, GSIZE_TO_POINTER (notice->ino));
  return notice;
}

/* When one of those that are kept may be told. */
static gint64
time_to_look (FsNotify *notify)
{
  GSequenceIter *first = g_sequence_get_begin_iter (notify->others);
  const Notice *moved = g_queue_peek_head (&notify->moved);
  gint64 now = g_get_monotonic_time (), at = G_MAXINT64;

  if (!g_sequence_iter_is_end (first))
    at = ((Notice *)g_sequence_get (first))->due;
  if (moved != NULL)
    at = MIN (at, MAX (moved->due, now + MOVED_POLL));
  if (notify->names.length > 0)
    at = MIN (at, now + NAMES_POLL);
  return at;
}

/* --- the thread ------------------------------------------------------------------------------- */

/* Waits for one that may be told now; NULL: no more. */
static Notice *
next_notice (FsNotify *notify)
{
  Notice *notice = NULL;

  g_mutex_lock (&notify->lock);
  while (!notify->ends)
    {
      notice = take_other (notify);
      if (notice == NULL)
        notice = take_name (notify->server, &notify->names);
      if (notice == NULL)
        notice = take_moved_name (notify->server, &notify->moved);
      if (notice != NULL)
        break;
      notify->looks_at = time_to_look (notify);
      if (notify->looks_at == G_MAXINT64)
        g_cond_wait (&notify->earlier, &notify->lock);
      else
        g_cond_wait_until (&notify->earlier, &notify->lock, notify->looks_at);
      notify->looks_at = 0;
    }
  g_mutex_unlock (&notify->lock);
  return notice;
}

static gpointer
run (gpointer data)
{
  FsNotify *notify = data;
  Notice *notice;

  while ((notice = next_notice (notify)) != NULL)
    {
      tell (notify->server, notice);
      notice_free (notice);
    }
  g_atomic_int_set (&notify->stopped, TRUE);
  return NULL;
}

/* --- reporting -------------------------------------------------------------------------------- */

/* The thread is woken only for what is due before it looks by itself. */
static void
add (FsServer *server, Notice template)
{
  FsNotify *notify = server->notify;

  template.due = g_get_monotonic_time () + template.delay;
  g_mutex_lock (&notify->lock);
  if (!template.is_dir || g_hash_table_add (notify->dirs, GSIZE_TO_POINTER (template.ino)))
    {
      Notice *notice = g_memdup2 (&template, sizeof template);

      if (notice->name != NULL)
        g_queue_push_tail (notice->delay != 0 ? &notify->moved : &notify->names, notice);
      else
        g_sequence_insert_sorted (notify->others, notice, compare_due, NULL);
      if (notice->due < notify->looks_at)
        g_cond_signal (&notify->earlier);
    }
  g_mutex_unlock (&notify->lock);
}

static void
push (FsServer *server, fuse_ino_t ino, gboolean contents, const char *name)
{
  add (server, (Notice) { .ino = ino, .contents = contents, .name = g_strdup (name) });
}

static void
push_dir (FsServer *server, fuse_ino_t dir)
{
  add (server, (Notice) { .ino = dir, .contents = TRUE, .is_dir = TRUE, .delay = DIR_DELAY });
}

void
fs_notify_entry_later (FsServer *server, fuse_ino_t dir, const char *name)
{
  add (server, (Notice) { .ino = dir, .name = g_strdup (name), .delay = G_TIME_SPAN_SECOND });
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
      /* The directory's own notice says enough, but for a name that was another file's before. */
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
  add (server, (Notice) { .ino = ino, .delay = G_TIME_SPAN_SECOND });
}

void
fs_notify_contents (FsServer *server, fuse_ino_t ino)
{
  push (server, ino, TRUE, NULL);
}

void
fs_notify_replacement (FsServer *server, MailStaged *staged, guint n_emptied)
{
  add (server, (Notice) { .staged = mail_staged_ref (staged), .n_emptied = n_emptied });
}

void
fs_notify_attributes (FsServer *server, fuse_ino_t ino)
{
  push (server, ino, FALSE, NULL);
  add (server, (Notice) { .ino = ino, .delay = G_TIME_SPAN_SECOND });
}

static void
walks_on (gpointer user_data, guint32 content_id, const guint32 *uids, guint n)
{
  FsServer *server = user_data;
  GArray *copy = g_array_sized_new (FALSE, FALSE, sizeof (guint32), n);

  g_array_append_vals (copy, uids, n);
  add (server, (Notice) { .content_id = content_id, .uids = copy });
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

  push_dir (server, fs_ino_mailbox (mailbox, FS_NODE_MAILBOX));
  if (fs_is_maildir (server))
    {
      push_dir (server, fs_ino_mailbox (mailbox, FS_NODE_CUR));
      push_dir (server, fs_ino_mailbox (mailbox, FS_NODE_NEW));
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
  g_mutex_init (&notify->lock);
  g_cond_init (&notify->earlier);
  notify->others = g_sequence_new (NULL);
  notify->dirs = g_hash_table_new (NULL, NULL);
  notify->thread = g_thread_new ("notify", run, notify);
  return notify;
}

void
fs_notify_stop (FsNotify *notify)
{
  g_mutex_lock (&notify->lock);
  notify->ends = TRUE;
  g_cond_signal (&notify->earlier);
  g_mutex_unlock (&notify->lock);
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
  g_sequence_foreach (notify->others, free_other, NULL);
  g_sequence_free (notify->others);
  g_hash_table_unref (notify->dirs);
  g_queue_clear_full (&notify->names, notice_free);
  g_queue_clear_full (&notify->moved, notice_free);
  g_cond_clear (&notify->earlier);
  g_mutex_clear (&notify->lock);
  g_free (notify);
}
