/* SPDX-License-Identifier: MIT
 *
 * The FUSE session: mount options, mounting over a dead mount of our own, the loop.
 */
#include "fs/private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define SPIN 100 /* µs */

static struct fuse_session *
make_session (FsServer *server)
{
  const MailConfig *config = server->config;
  struct fuse_args args = FUSE_ARGS_INIT (0, NULL);
  gboolean named = FALSE;

  fuse_opt_add_arg (&args, "mailfs");
  for (guint i = 0; i < config->fuse_options->len; i++)
    {
      const char *option = config->fuse_options->pdata[i];

      named |= g_str_has_prefix (option, "fsname=");
      fuse_opt_add_arg (&args, "-o");
      fuse_opt_add_arg (&args, option);
    }
  if (!named)
    {
      /* libfuse splits at commas unless they are escaped. */
      g_auto (GStrv) parts = g_strsplit (config->url, ",", -1);
      g_autofree char *escaped = g_strjoinv ("\\,", parts);
      g_autofree char *option = g_strconcat ("-ofsname=", escaped, NULL);

      fuse_opt_add_arg (&args, option);
    }
  fuse_opt_add_arg (&args, "-osubtype=mailfs");
  if (config->debug)
    fuse_opt_add_arg (&args, "-d");
  struct fuse_session *session = fuse_session_new (&args, &fs_ops, sizeof fs_ops, server);
  fuse_opt_free_args (&args);
  return session;
}

FsServer *
fs_server_new (const MailConfig *config, MailStore *store, GError **error)
{
  FsServer *server = g_new0 (FsServer, 1);

  server->config = config;
  server->store = store;
  server->started = g_get_real_time () / G_USEC_PER_SEC;
  server->stop_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  g_mutex_init (&server->lock);
  g_mutex_init (&server->ahead_lock);
  server->busy_dirs = g_hash_table_new (NULL, NULL);
  g_queue_init (&server->waiting);
  server->staged_lookups = g_hash_table_new (NULL, NULL);
  server->staged_writers = g_hash_table_new (NULL, NULL);
  server->vacated = g_hash_table_new_full (g_int64_hash, g_int64_equal, g_free, NULL);
  server->streams = g_hash_table_new_full (g_int64_hash, g_int64_equal, g_free,
                                           (GDestroyNotify)g_hash_table_unref);
  server->seen_generation = g_hash_table_new_full (g_int64_hash, g_int64_equal, NULL, g_free);
  server->session = make_session (server);
  if (server->session == NULL)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "libfuse refuses the mount options");
      fs_server_free (server);
      return NULL;
    }
  return server;
}

static gboolean
is_dead (const char *path)
{
  struct stat st;

  return stat (path, &st) != 0 && errno == ENOTCONN;
}

/* A daemon that was killed leaves a mount that answers nothing but ENOTCONN. The kernel may still
 * know what stat of its root said, but not whether it holds a file that nobody ever asked for. */
static void
clear_dead_mount (const char *mountpoint)
{
  g_autofree char *unheard = g_strdup_printf ("%s/.mailfs-%d", mountpoint, (int)getpid ());

  if (!is_dead (mountpoint) && !is_dead (unheard))
    return;
  const char *argv[] = { "fusermount3", "-u", "-z", mountpoint, NULL };
  if (g_spawn_sync (NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL,
                    NULL))
    mail_log_info ("cleared a dead mount at %s", mountpoint);
}

gboolean
fs_server_mount (FsServer *server, GError **error)
{
  const char *mountpoint = server->config->mountpoint;
  struct stat st, parent;
  g_autofree char *up = g_build_filename (mountpoint, "..", NULL);

  clear_dead_mount (mountpoint);
  if (stat (mountpoint, &st) != 0)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_FAILED, "mount point %s: %s", mountpoint,
                 g_strerror (errno));
  else if (!S_ISDIR (st.st_mode))
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_FAILED, "mount point %s: not a directory",
                 mountpoint);
  else if (stat (up, &parent) == 0 && st.st_dev != parent.st_dev)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_FAILED,
                 "mount point %s: busy, something is mounted there already", mountpoint);
  else if (fuse_session_mount (server->session, mountpoint) != 0)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_FAILED, "mount point %s: cannot mount (see above)",
                 mountpoint);
  else
    server->mounted = TRUE;
  if (!server->mounted)
    return FALSE;
  server->notify = fs_notify_new (server);
  mail_store_set_events (server->store, &fs_notify_events, server);
  return TRUE;
}

void
fs_server_set_ready (FsServer *server, void (*ready) (gpointer user_data), gpointer user_data)
{
  server->ready = ready;
  server->ready_data = user_data;
}

/* One thread takes every request: none waits for the server, and what may wait for the disk is read
 * ahead by others. While requests come one upon the other it looks for the next one a moment longer
 * before it sleeps, since being woken takes longer than most answers. */
gboolean
fs_server_run (FsServer *server)
{
  int fd = fuse_session_fd (server->session), n = 0;
  gboolean may_spin = g_get_num_processors () > 1, brisk = FALSE;
  struct pollfd fds[] = { { .fd = fd, .events = POLLIN },
                          { .fd = server->stop_fd, .events = POLLIN } };
  gint64 idle_since = g_get_monotonic_time ();
  struct fuse_buf buffer = { 0 };

  fcntl (fd, F_SETFL, fcntl (fd, F_GETFL) | O_NONBLOCK);
  while (!fuse_session_exited (server->session))
    {
      g_atomic_int_set (&server->handling, TRUE);
      n = fuse_session_receive_buf (server->session, &buffer);
      g_atomic_int_set (&server->handling, n > 0);
      if (n > 0)
        {
          brisk = may_spin && g_get_monotonic_time () - idle_since < SPIN;
          fuse_session_process_buf (server->session, &buffer);
          idle_since = g_get_monotonic_time ();
          g_atomic_int_set (&server->idle_since, (gint)(idle_since / G_TIME_SPAN_MILLISECOND));
        }
      else if (n == -EAGAIN && brisk && g_get_monotonic_time () - idle_since < SPIN)
        sched_yield (); /* whoever has work goes first */
      else if (n == -EAGAIN)
        poll (fds, G_N_ELEMENTS (fds), -1);
      else if (n != -EINTR)
        break;
    }
  g_atomic_int_set (&server->handling, FALSE);
  free (buffer.mem);
  return n >= 0 || n == -EAGAIN || n == -EINTR;
}

void
fs_server_stop (FsServer *server)
{
  int saved_errno = errno;

  fuse_session_exit (server->session);
  eventfd_write (server->stop_fd, 1);
  errno = saved_errno;
}

/* Nobody tells the kernel anything any more. */
static gboolean
is_silent (FsServer *server)
{
  if (!fs_notify_has_stopped (server->notify) || !g_mutex_trylock (&server->ahead_lock))
    return FALSE;
  g_mutex_unlock (&server->ahead_lock);
  return TRUE;
}

/* Who does may wait for a directory or a page that the kernel holds while it asks us for something
 * there: what still comes is answered, until all are through. */
static void
serve_until_silent (FsServer *server)
{
  struct pollfd fd = { .fd = fuse_session_fd (server->session), .events = POLLIN };
  struct fuse_buf buffer = { 0 };

  while (!is_silent (server))
    {
      /* Of a session that was told to exit the request would be read and thrown away. */
      fuse_session_reset (server->session);
      int n = poll (&fd, 1, 10) > 0 ? fuse_session_receive_buf (server->session, &buffer) : -EAGAIN;

      if (n > 0)
        fuse_session_process_buf (server->session, &buffer);
      else if (n != -EAGAIN && n != -EINTR)
        break; /* unmounted, which frees the notifier too */
    }
  free (buffer.mem);
}

void
fs_server_leave (FsServer *server)
{
  if (!server->mounted)
    return;
  /* Not the other way round: when a parked request is answered its directory is free, and the next
   * one there may meet a name that is being dropped. */
  fs_notify_stop (server->notify);
  fs_ops_leave (server);
  serve_until_silent (server);
}

void
fs_server_unmount (FsServer *server)
{
  if (!server->mounted)
    return;
  server->mounted = FALSE;
  fuse_session_unmount (server->session);
}

/* The store has stopped: nobody reports changes any more. */
void
fs_server_free (FsServer *server)
{
  static const MailStoreEvents none = { 0 };

  fs_server_unmount (server);
  mail_store_set_events (server->store, &none, NULL);
  g_clear_pointer (&server->notify, fs_notify_free);
  g_clear_pointer (&server->session, fuse_session_destroy);
  fs_snapshots_free (server);
  g_clear_pointer (&server->busy_dirs, g_hash_table_unref);
  g_clear_pointer (&server->staged_lookups, g_hash_table_unref);
  g_clear_pointer (&server->staged_writers, g_hash_table_unref);
  g_clear_pointer (&server->vacated, g_hash_table_unref);
  g_clear_pointer (&server->streams, g_hash_table_unref);
  g_clear_pointer (&server->seen_generation, g_hash_table_unref);
  close (server->stop_fd);
  g_mutex_clear (&server->ahead_lock);
  g_mutex_clear (&server->lock);
  g_free (server);
}
