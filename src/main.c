/* SPDX-License-Identifier: MIT
 *
 * mailfs: start order, choice of backend, tear-down; the only file that knows everybody. The main
 * thread serves FUSE; one other owns all connections. In the background, the process the user
 * started stays until the mount answers, and passes on what went wrong otherwise.
 */
#include "mailfs/config.h"
#include "mailfs/error.h"
#include "mailfs/log.h"
#include "mailfs/store.h"
#include "mailfs/stream.h"

#include "fs/server.h"
#include "imap/backend.h"
#include "pop3/backend.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* mount(8), EXIT STATUS */
#define EXIT_USAGE 1
#define EXIT_SYSTEM 2
#define EXIT_MOUNT 32

#define FILES_WANTED 8192

typedef struct
{
  MailConfig *config;
  MailSecretSource *secrets;
  NetTls *tls;
  char *account_dir;
  int lock_fd;
  int report_fd; /* to the waiting parent, or -1 */

  GMainContext *net_context;
  GMainLoop *net_loop;
  GThread *net_thread;
  MailBackend *backend;
  MailStore *store;
  FsServer *server;

  GMutex lock;
  GCond cond;
  gboolean finished; /* the step waited for; under lock */
  GError *error;     /* how it went; under lock */
} Program;

/* --- privileges and signals ------------------------------------------------------------------ */

static void
protect_process (void)
{
  const struct rlimit no_core = { 0, 0 };
  struct rlimit files;

  umask (077);
  signal (SIGPIPE, SIG_IGN);
  signal (SIGXFSZ, SIG_IGN); /* ulimit -f: an error like a full disk */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  /* Passwords pass through this memory. The leak checker needs to look at it, though. */
  prctl (PR_SET_DUMPABLE, 0);
#endif
  setrlimit (RLIMIT_CORE, &no_core);
  /* The cache keeps a share of what is allowed open. */
  if (getrlimit (RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < FILES_WANTED)
    {
      files.rlim_cur = MIN (files.rlim_max, FILES_WANTED);
      setrlimit (RLIMIT_NOFILE, &files);
    }
}

/* Only the main thread is to be interrupted: every thread made later inherits the mask. */
static void
mask_signals (int how)
{
  sigset_t set;

  sigemptyset (&set);
  sigaddset (&set, SIGINT);
  sigaddset (&set, SIGTERM);
  sigaddset (&set, SIGHUP);
  sigaddset (&set, SIGQUIT);
  pthread_sigmask (how, &set, NULL);
}

static FsServer *stopping_server; /* for the handler */

static void
on_signal (int number)
{
  if (stopping_server != NULL)
    fs_server_stop (stopping_server);
}

static void
catch_signals (FsServer *server)
{
  struct sigaction action = { .sa_handler = on_signal };

  stopping_server = server;
  sigaction (SIGINT, &action, NULL);
  sigaction (SIGTERM, &action, NULL);
  sigaction (SIGHUP, &action, NULL);
  mask_signals (SIG_UNBLOCK);
}

/* --- telling whoever started us -------------------------------------------------------------- */

/* sd_notify(3) without its library: a datagram to $NOTIFY_SOCKET. */
static void
tell_systemd (const char *state)
{
  const char *path = g_getenv ("NOTIFY_SOCKET");
  struct sockaddr_un address = { .sun_family = AF_UNIX };

  if (path == NULL || (path[0] != '/' && path[0] != '@')
      || strlen (path) >= sizeof address.sun_path)
    return;
  memcpy (address.sun_path, path, strlen (path));
  if (path[0] == '@')
    address.sun_path[0] = '\0';
  int fd = socket (AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return;
  if (sendto (fd, state, strlen (state), MSG_NOSIGNAL, (struct sockaddr *)&address,
              offsetof (struct sockaddr_un, sun_path) + strlen (path))
      < 0)
    mail_log_warning ("cannot notify the service manager: %s", g_strerror (errno));
  close (fd);
}

static void
use_background (void)
{
  int null = open ("/dev/null", O_RDWR | O_CLOEXEC);

  if (chdir ("/") != 0)
    mail_log_warning ("cannot change to /: %s", g_strerror (errno));
  for (int fd = 0; fd <= 2 && null >= 0; fd++)
    dup2 (null, fd);
  if (null > 2)
    close (null);
}

/* The exit status goes to the waiting parent; text for the user has gone to stderr already. */
static void
report (Program *program, unsigned char status)
{
  if (program->report_fd < 0)
    return;
  if (write (program->report_fd, &status, 1) != 1)
    mail_log_warning ("the starting process has gone");
  close (program->report_fd);
  program->report_fd = -1;
}

/* The user did not wait for the mount, so he does not expect one. */
static gboolean
starter_is_gone (const Program *program)
{
  struct pollfd fd = { .fd = program->report_fd };

  return program->report_fd >= 0 && poll (&fd, 1, 0) > 0 && (fd.revents & POLLERR) != 0;
}

/* INIT has come: the mount answers. On a FUSE thread. */
static void
mount_answers (gpointer data)
{
  Program *program = data;
  g_autofree char *state = g_strdup_printf ("READY=1\nMAINPID=%d\nSTATUS=mounted %s on %s\n",
                                            (int)getpid (), program->config->url,
                                            program->config->mountpoint);

  if (!program->config->foreground)
    {
      mail_log_init (program->config->verbose ? MAIL_LOG_TRACE : MAIL_LOG_INFO, TRUE);
      use_background ();
    }
  report (program, 0);
  tell_systemd (state);
}

/* Returns in the child; the parent leaves with what the child reports. */
static gboolean
go_to_background (Program *program, GError **error)
{
  unsigned char status = EXIT_SYSTEM;
  int fds[2];

  if (pipe2 (fds, O_CLOEXEC) != 0)
    return mail_set_errno (error, errno, "pipe"), FALSE;
  pid_t pid = fork ();
  if (pid < 0)
    return mail_set_errno (error, errno, "fork"), FALSE;
  if (pid > 0)
    {
      close (fds[1]);
      if (TEMP_FAILURE_RETRY (read (fds[0], &status, 1)) != 1)
        fprintf (stderr, "mailfs: the daemon died while starting\n");
      _exit (status);
    }
  close (fds[0]);
  program->report_fd = fds[1];
  setsid ();
  return TRUE;
}

/* --- the account's directory ----------------------------------------------------------------- */

static gboolean
own_dir (const char *path, GError **error)
{
  struct stat st;

  if (g_mkdir_with_parents (path, 0700) != 0)
    return mail_set_errno (error, errno, path), FALSE;
  if (lstat (path, &st) != 0)
    return mail_set_errno (error, errno, path), FALSE;
  if (!S_ISDIR (st.st_mode) || st.st_uid != geteuid () || (st.st_mode & 077) != 0)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_FAILED,
                   "cache directory %s must be a directory of yours that nobody else can enter "
                   "(chmod 700)",
                   path);
      return FALSE;
    }
  return TRUE;
}

/* What makes two mounts different accounts as far as the cache goes. */
static char *
account_key (const MailConfig *config)
{
  gboolean pop = config->scheme == MAIL_SCHEME_POP || config->scheme == MAIL_SCHEME_POPS;

  return g_strdup_printf ("%s %s@%s:%u/%s %s %s%s", pop ? "pop3" : "imap",
                          config->user != NULL ? config->user : "", config->host, config->port,
                          config->mailbox != NULL ? config->mailbox : "",
                          config->layout == MAIL_LAYOUT_MAILDIR ? "maildir" : "flat",
                          config->eol == MAIL_EOL_LF ? "lf" : "crlf",
                          config->subscribed ? " subscribed" : "");
}

/* Where mail is stored that only we have: the same place however the account is mounted. */
static char *
pop3_dir (const MailConfig *config)
{
  gboolean usual = config->port == (config->scheme == MAIL_SCHEME_POPS ? 995 : 110);
  g_autofree char *port = usual ? g_strdup ("") : g_strdup_printf (":%u", config->port);
  g_autofree char *key = g_strdup_printf ("%s@%s%s", config->user != NULL ? config->user : "",
                                          config->host, port);
  g_autofree char *digest = g_compute_checksum_for_string (G_CHECKSUM_SHA256, key, -1);

  return g_strdup_printf ("%s/%.16s", config->data_dir, digest);
}

static gboolean
lock_account (Program *program, GError **error)
{
  const MailConfig *config = program->config;
  g_autofree char *key = account_key (config);
  g_autofree char *digest = g_compute_checksum_for_string (G_CHECKSUM_SHA256, key, -1);
  g_autofree char *lock = NULL;

  program->account_dir = g_strdup_printf ("%s/%.16s", config->cache_dir, digest);
  lock = g_build_filename (program->account_dir, "lock", NULL);
  if (!own_dir (config->cache_dir, error) || !own_dir (program->account_dir, error))
    return FALSE;
  program->lock_fd = open (lock, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (program->lock_fd < 0)
    return mail_set_errno (error, errno, lock), FALSE;
  if (flock (program->lock_fd, LOCK_EX | LOCK_NB) == 0)
    return TRUE;
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_FAILED,
               "another mailfs uses the cache of this account (%s); unmount that one, or give this "
               "mount its own with -o cache_dir=DIR",
               program->account_dir);
  return FALSE;
}

/* --- the net thread -------------------------------------------------------------------------- */

static gpointer
run_net (gpointer data)
{
  Program *program = data;

  g_main_context_push_thread_default (program->net_context);
  g_main_loop_run (program->net_loop);
  g_main_context_pop_thread_default (program->net_context);
  return NULL;
}

static void
finished (const GError *error, gpointer data)
{
  Program *program = data;

  g_mutex_lock (&program->lock);
  program->finished = TRUE;
  program->error = error != NULL ? g_error_copy (error) : NULL;
  g_cond_signal (&program->cond);
  g_mutex_unlock (&program->lock);
}

/* Runs step on the net thread and waits until `finished` was called. */
static gboolean
net_step (Program *program, GSourceFunc step, GError **error)
{
  program->finished = FALSE;
  g_main_context_invoke (program->net_context, step, program);
  g_mutex_lock (&program->lock);
  while (!program->finished)
    g_cond_wait (&program->cond, &program->lock);
  g_mutex_unlock (&program->lock);
  if (program->error == NULL)
    return TRUE;
  g_propagate_error (error, g_steal_pointer (&program->error));
  return FALSE;
}

static gboolean
make_store (gpointer data)
{
  Program *program = data;
  const MailConfig *config = program->config;
  gboolean pop = config->scheme == MAIL_SCHEME_POP || config->scheme == MAIL_SCHEME_POPS;
  g_autofree char *key = account_key (config);
  g_autoptr (GError) error = NULL;
  MailStoreOptions options = {
    .dir = program->account_dir,
    .account_key = key,
    .root_mailbox = config->mailbox,
    .cache_size = config->cache_size,
    .refresh = config->refresh,
    .timeout = config->timeout,
    .eol_lf = config->eol == MAIL_EOL_LF,
    .subscribed = config->subscribed,
    .offline = config->offline,
    .read_only = config->read_only,
    .sync = config->sync,
    .trash = config->trash,
  };

  if (pop)
    {
      options.pop3_dir = pop3_dir (config);
      options.pop3_delete = config->pop3 == MAIL_POP3_DELETE;
    }
  program->backend = pop ? pop3_backend_new (config, program->secrets, program->tls)
                         : imap_backend_new (config, program->secrets, program->tls);
  program->store = mail_store_new (&options, program->net_context, program->backend,
                                   fs_naming (config->layout), &error);
  g_free (options.pop3_dir);
  if (program->store == NULL)
    finished (error, program);
  else
    mail_store_start (program->store, finished, program);
  return G_SOURCE_REMOVE;
}

/* Whatever the net thread was doing has been done. */
static gboolean
pass (gpointer data)
{
  finished (NULL, data);
  return G_SOURCE_REMOVE;
}

static gboolean
stop_store (gpointer data)
{
  Program *program = data;

  mail_store_stop (program->store, finished, program);
  return G_SOURCE_REMOVE;
}

static gboolean
free_store (gpointer data)
{
  Program *program = data;

  mail_store_free (program->store);
  finished (NULL, program);
  return G_SOURCE_REMOVE;
}

/* --- start and end --------------------------------------------------------------------------- */

static gboolean
prepare (Program *program, GError **error)
{
  MailConfig *config = program->config;

  if (config->tls && (program->tls = net_tls_new (config, error)) == NULL)
    return FALSE;
  if (!config->offline && (program->secrets = mail_secret_source_prepare (config, error)) == NULL)
    return FALSE;
  return lock_account (program, error);
}

static gboolean
bring_up (Program *program, GError **error)
{
  program->net_context = g_main_context_new ();
  program->net_loop = g_main_loop_new (program->net_context, FALSE);
  program->net_thread = g_thread_new ("net", run_net, program);
  /* Whoever tires of waiting for the server may end us as any program: there is no mount yet. */
  mask_signals (SIG_UNBLOCK);
  gboolean made = net_step (program, make_store, error);
  mask_signals (SIG_BLOCK);
  if (!made)
    {
      /* Which server: the one thing a line about a failed login must not leave out. */
      g_prefix_error (error, "%s: ", program->config->url);
      return FALSE;
    }
  program->server = fs_server_new (program->config, program->store, error);
  if (program->server == NULL)
    return FALSE;
  fs_server_set_ready (program->server, mount_answers, program);
  if (starter_is_gone (program))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_INTERRUPTED, "interrupted");
      return FALSE;
    }
  return fs_server_mount (program->server, error);
}

static int
tear_down (Program *program, int status)
{
  g_autoptr (GError) error = NULL;

  stopping_server = NULL;
  if (program->server != NULL)
    {
      fs_server_leave (program->server);
      net_step (program, pass, NULL);
      fs_server_unmount (program->server);
    }
  if (program->store != NULL && !net_step (program, stop_store, &error))
    {
      mail_log_error ("not everything reached the server: %s", error->message);
      status = status != 0 ? status : EXIT_SYSTEM;
    }
  g_clear_pointer (&program->server, fs_server_free);
  if (program->store != NULL)
    net_step (program, free_store, NULL);
  if (program->net_thread != NULL)
    {
      g_main_loop_quit (program->net_loop);
      g_thread_join (program->net_thread);
      g_main_loop_unref (program->net_loop);
      g_main_context_unref (program->net_context);
    }
  g_clear_pointer (&program->tls, net_tls_unref);
  g_clear_pointer (&program->secrets, mail_secret_source_free);
  if (program->lock_fd >= 0)
    close (program->lock_fd);
  g_free (program->account_dir);
  g_clear_pointer (&program->config, mail_config_free);
  return status;
}

static int
fail (Program *program, const GError *error, int status)
{
  fprintf (stderr, "mailfs: %s\n", error->message);
  if (g_error_matches (error, MAIL_ERROR, MAIL_ERROR_USAGE))
    status = EXIT_USAGE;
  report (program, status);
  return tear_down (program, status);
}

static void
print_help (void)
{
  printf ("usage: mailfs [options] SOURCE MOUNTPOINT\n"
          "\n"
          "SOURCE is imaps://user@host/, imap://…, pops://…, pop://…, or the name of an account\n"
          "in the config file.\n"
          "\n"
          "    -f             stay in the foreground\n"
          "    -d             FUSE debug output (implies -f)\n"
          "    -v             protocol trace, secrets redacted\n"
          "    -o OPTION,…    mount options, see mailfs(5)\n"
          "    -h, -V         this help, the version\n"
          "\n"
          "fusermount3 -u MOUNTPOINT unmounts. See mailfs(1), mailfs(5), mailfs(8).\n");
}

int
main (int argc, char **argv)
{
  Program program = { .lock_fd = -1, .report_fd = -1 };
  g_autoptr (GError) error = NULL;

  setlocale (LC_ALL, "");
  protect_process ();
  program.config = mail_config_parse (argc, argv, &error);
  if (program.config == NULL)
    return fail (&program, error, EXIT_USAGE);
  if (program.config->help || program.config->version)
    {
      if (program.config->help)
        print_help ();
      else
        printf ("mailfs %s\n", MAILFS_VERSION);
      mail_config_free (program.config);
      return 0;
    }
  mail_log_init (program.config->verbose      ? MAIL_LOG_TRACE
                 : program.config->foreground ? MAIL_LOG_INFO
                                              : MAIL_LOG_WARNING,
                 FALSE);
  if (!prepare (&program, &error))
    return fail (&program, error, EXIT_MOUNT);
  if (program.config->fake)
    return tear_down (&program, 0);
  if (!program.config->foreground && !go_to_background (&program, &error))
    return fail (&program, error, EXIT_SYSTEM);

  mask_signals (SIG_BLOCK);
  if (!bring_up (&program, &error))
    return fail (&program, error, EXIT_MOUNT);
  catch_signals (program.server);
  gboolean served = fs_server_run (program.server);
  tell_systemd ("STOPPING=1\n");
  return tear_down (&program, served ? 0 : EXIT_SYSTEM);
}
