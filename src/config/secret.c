/* SPDX-License-Identifier: MIT
 *
 * Where the password comes from, and the memory it lives in. prepare runs in the main thread before
 * the daemon goes to the background and starts no thread; get runs in the net thread: files are
 * read in a worker, passcmd is watched from the main context. Knows no protocol.
 */
#include "config/secret.h"

#include "config/netrc.h"
#include "mailfs/error.h"

#include <errno.h>
#include <fcntl.h>
#include <gio/gunixinputstream.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#define LOCKED_HEADER 16 /* keeps what is handed out aligned */

typedef enum
{
  SOURCE_NONE, /* the mechanism needs none, or nobody will log in */
  SOURCE_KEPT, /* from the prompt or a fifo, which cannot be read again */
  SOURCE_PASSFILE,
  SOURCE_CREDENTIAL,
  SOURCE_NETRC,
  SOURCE_COMMAND,
} SourceKind;

struct MailSecretSource
{
  SourceKind kind;
  char *path;
  char **argv;
  char *host, *user;
  guint timeout; /* seconds */
  MailSecret *kept;
};

/* Locking may be refused (RLIMIT_MEMLOCK); a password that could be swapped is better than none. */
void *
config_locked_alloc (gsize size)
{
  gsize total = size + LOCKED_HEADER;
  char *region = mmap (NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  if (region == MAP_FAILED)
    g_error ("out of memory for a secret");
  (void)mlock (region, total);
  (void)madvise (region, total, MADV_DONTDUMP);
  memcpy (region, &total, sizeof total);
  return region + LOCKED_HEADER;
}

void
config_locked_free (void *memory)
{
  char *region = memory;
  gsize total;

  if (region == NULL)
    return;
  region -= LOCKED_HEADER;
  memcpy (&total, region, sizeof total);
  explicit_bzero (region, total);
  munmap (region, total);
}

void
config_locked_clear (char **memory)
{
  config_locked_free (*memory);
}

#define LOCKED __attribute__ ((cleanup (config_locked_clear)))

MailSecret *
config_secret_new (const char *text, gsize length)
{
  MailSecret *secret = g_new (MailSecret, 1);

  secret->text = config_locked_alloc (length + 1);
  memcpy (secret->text, text, length);
  secret->text[length] = '\0';
  return secret;
}

void
mail_secret_free (MailSecret *secret)
{
  if (secret == NULL)
    return;
  config_locked_free (secret->text);
  g_free (secret);
}

int
config_open_private (const char *path, const char *what, gboolean allow_fifo, GError **error)
{
  int fd = open (path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  struct stat status;

  if (fd < 0 || fstat (fd, &status) < 0)
    {
      int saved_errno = errno;
      g_autofree char *name = g_strdup_printf ("%s %s", what, path);

      if (fd >= 0)
        close (fd);
      mail_set_errno (error, saved_errno, name);
      return -1;
    }
  if (!S_ISREG (status.st_mode) && !(allow_fifo && S_ISFIFO (status.st_mode)))
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_AUTH, "%s %s is not a regular file", what, path);
  else if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_AUTH,
                 "%s %s is open to group or others: chmod 600 %s", what, path, path);
  else
    return fd;
  close (fd);
  return -1;
}

/* Reads until the end, a newline (with line_only) or size bytes; a fifo is waited for up to
   timeout seconds. The number of bytes, or -1. */
static gssize
read_some (int fd, char *buffer, gsize size, gboolean line_only, guint timeout, const char *path,
           GError **error)
{
  gint64 deadline = g_get_monotonic_time () + (gint64)timeout * G_USEC_PER_SEC;
  gsize length = 0;

  while (length < size && !(line_only && memchr (buffer, '\n', length) != NULL))
    {
      struct pollfd waiting = { fd, POLLIN, 0 };
      gint64 left = deadline - g_get_monotonic_time ();
      int ready = poll (&waiting, 1, left > 0 ? (int)(left / 1000) : 0);
      gssize n;

      if (ready == 0)
        {
          g_set_error (error, MAIL_ERROR, MAIL_ERROR_TIMED_OUT,
                       "%s: nothing came within %u seconds", path, timeout);
          return -1;
        }
      n = ready < 0 ? -1 : read (fd, buffer + length, size - length);
      if (n == 0)
        break;
      if (n > 0)
        length += (gsize)n;
      else if (errno != EINTR && errno != EAGAIN)
        {
          mail_set_errno (error, errno, path);
          return -1;
        }
    }
  return (gssize)length;
}

/* The first line of text. what names the source in errors. */
static MailSecret *
first_line (const char *text, gsize length, const char *what, GError **error)
{
  const char *newline = memchr (text, '\n', length);
  gsize n = newline != NULL ? (gsize)(newline - text) : length;

  if (newline == NULL && length >= CONFIG_SECRET_MAX)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_AUTH, "%s: the first line is too long", what);
  else if (memchr (text, '\0', n) != NULL)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_AUTH, "%s: the first line has a NUL byte", what);
  else
    {
      if (n > 0 && text[n - 1] == '\r')
        n--;
      if (n > 0)
        return config_secret_new (text, n);
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_AUTH, "%s: the first line is empty", what);
    }
  return NULL;
}

/* passfile or credential. The credential directory is systemd's business, modes included. */
static MailSecret *
read_file (const MailSecretSource *source, GError **error)
{
  gboolean credential = source->kind == SOURCE_CREDENTIAL;
  LOCKED char *buffer = config_locked_alloc (CONFIG_SECRET_MAX);
  g_autofree char *what = g_strdup_printf ("%s %s", credential ? "credential" : "passfile",
                                           source->path);
  gssize n;
  int fd;

  if (credential)
    {
      fd = open (source->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
      if (fd < 0)
        mail_set_errno (error, errno, what);
    }
  else
    fd = config_open_private (source->path, "passfile", TRUE, error);
  if (fd < 0)
    return NULL;
  n = read_some (fd, buffer, CONFIG_SECRET_MAX, TRUE, source->timeout, what, error);
  close (fd);
  return n < 0 ? NULL : first_line (buffer, (gsize)n, what, error);
}

static MailSecret *
read_netrc (const MailSecretSource *source, GError **error)
{
  LOCKED char *buffer = config_locked_alloc (CONFIG_SECRET_MAX + 1);
  int fd = config_open_private (source->path, "netrc", FALSE, error);
  const char *password;
  gssize n;

  if (fd < 0)
    return NULL;
  n = read_some (fd, buffer, CONFIG_SECRET_MAX, FALSE, source->timeout, source->path, error);
  close (fd);
  if (n < 0)
    return NULL;
  buffer[n] = '\0';
  password = config_netrc_find (buffer, source->host, source->user);
  if (password != NULL)
    return config_secret_new (password, strlen (password));
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_AUTH, "%s has no entry for %s at %s", source->path,
               source->user, source->host);
  return NULL;
}

static volatile sig_atomic_t prompt_signal;

static void
note_signal (int signal_number)
{
  prompt_signal = signal_number;
}

/* Reads a line from the terminal fd; the number of bytes, or -1. Bytewise, since the rest of what
   was typed is for somebody else. Signals come in only while waiting, or one between the look at
   prompt_signal and the read would leave us there. */
static gssize
read_terminal_line (int fd, const sigset_t *waiting_mask, char *buffer, gsize size)
{
  gsize length = 0;

  for (;;)
    {
      struct pollfd waiting = { fd, POLLIN, 0 };
      int ready = ppoll (&waiting, 1, NULL, waiting_mask);
      gssize n;
      char c;

      if (prompt_signal != 0)
        return -1;
      if (ready < 0)
        {
          if (errno == EINTR)
            continue;
          return -1;
        }
      n = read (fd, &c, 1);
      if (n < 0)
        return -1;
      if (n == 0 || c == '\n' || c == '\r')
        return (gssize)length;
      if (length < size)
        buffer[length++] = c;
    }
}

/* Prompts and reads with echo off. The prompt comes last: what is typed once it shows must not be
   flushed away. */
static gssize
read_quietly (int fd, const char *prompt, const sigset_t *waiting_mask, char *buffer, gsize size)
{
  struct termios before, quiet;
  gssize length = -1;

  if (tcgetattr (fd, &before) < 0)
    return -1;
  quiet = before;
  quiet.c_lflag &= ~(tcflag_t)(ECHO | ECHONL);
  quiet.c_lflag |= ICANON | ISIG;
  if (tcsetattr (fd, TCSAFLUSH, &quiet) < 0)
    return -1;
  if (write (fd, prompt, strlen (prompt)) > 0)
    length = read_terminal_line (fd, waiting_mask, buffer, size);
  tcsetattr (fd, TCSAFLUSH, &before);
  (void)!write (fd, "\n", 1);
  return length;
}

/* What interrupts is delivered once the terminal is as it was. */
static MailSecret *
ask (int fd, const char *user, const char *host, GError **error)
{
  static const int signals[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP };
  LOCKED char *buffer = config_locked_alloc (CONFIG_SECRET_MAX);
  g_autofree char *prompt = g_strdup_printf ("Password for %s at %s: ", user, host);
  struct sigaction action = { .sa_handler = note_signal }, saved[G_N_ELEMENTS (signals)];
  sigset_t blocked, before;
  gssize length;

  prompt_signal = 0;
  sigemptyset (&blocked);
  for (gsize i = 0; i < G_N_ELEMENTS (signals); i++)
    sigaddset (&blocked, signals[i]);
  pthread_sigmask (SIG_BLOCK, &blocked, &before);
  for (gsize i = 0; i < G_N_ELEMENTS (signals); i++)
    sigaction (signals[i], &action, &saved[i]);
  length = read_quietly (fd, prompt, &before, buffer, CONFIG_SECRET_MAX);
  for (gsize i = 0; i < G_N_ELEMENTS (signals); i++)
    sigaction (signals[i], &saved[i], NULL);
  if (prompt_signal != 0)
    raise (prompt_signal);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  if (length > 0)
    return config_secret_new (buffer, (gsize)length);
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_AUTH, "no password was given for %s at %s", user,
               host);
  return NULL;
}

static gboolean
prepare_passfile (MailSecretSource *source, const MailConfig *config, GError **error)
{
  int fd = config_open_private (config->passfile, "passfile", TRUE, error);
  struct stat status;

  if (fd < 0)
    return FALSE;
  source->kind = SOURCE_PASSFILE;
  source->path = g_strdup (config->passfile);
  if (fstat (fd, &status) == 0 && S_ISFIFO (status.st_mode))
    {
      /* Before the other end is closed: a writer that saw its reader go would give up. */
      source->kept = read_file (source, error);
      source->kind = SOURCE_KEPT;
    }
  close (fd);
  return source->kind != SOURCE_KEPT || source->kept != NULL;
}

static gboolean
prepare_command (MailSecretSource *source, const MailConfig *config, GError **error)
{
  g_autoptr (GError) problem = NULL;
  g_autofree char *program = NULL;

  if (!g_shell_parse_argv (config->passcmd, NULL, &source->argv, &problem))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "passcmd=%s: %s", config->passcmd,
                   problem->message);
      return FALSE;
    }
  source->kind = SOURCE_COMMAND;
  program = g_find_program_in_path (source->argv[0]);
  if (program != NULL)
    {
      /* The daemon's working directory will be another one. */
      g_free (source->argv[0]);
      source->argv[0] = g_canonicalize_filename (program, NULL);
      return TRUE;
    }
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "passcmd: there is no program %s",
               source->argv[0]);
  return FALSE;
}

/* FALSE without an error: there is no terminal to ask on. */
static gboolean
prepare_prompt (MailSecretSource *source, GError **error)
{
  int fd = isatty (STDIN_FILENO) ? open ("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY) : -1;

  if (fd < 0)
    return FALSE;
  source->kind = SOURCE_KEPT;
  source->kept = ask (fd, source->user, source->host, error);
  close (fd);
  return source->kept != NULL;
}

/* The two places other programs leave passwords in. */
static gboolean
prepare_found (MailSecretSource *source, GError **error)
{
  const char *directory = g_getenv ("CREDENTIALS_DIRECTORY");
  g_autoptr (GError) problem = NULL;
  g_autoptr (MailSecret) probe = NULL;

  if (directory != NULL && *directory != '\0')
    {
      source->path = g_build_filename (directory, "mailfs.password", NULL);
      source->kind = SOURCE_CREDENTIAL;
      if (g_file_test (source->path, G_FILE_TEST_EXISTS))
        return TRUE;
      g_clear_pointer (&source->path, g_free);
    }
  source->path = g_build_filename (g_get_home_dir (), ".netrc", NULL);
  source->kind = SOURCE_NETRC;
  if (g_file_test (source->path, G_FILE_TEST_EXISTS))
    {
      probe = read_netrc (source, &problem);
      if (probe != NULL)
        return TRUE;
    }
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_AUTH,
               "no password for %s at %s: give passfile= or passcmd=, or run on a terminal%s%s%s",
               source->user, source->host, problem != NULL ? " (" : "",
               problem != NULL ? problem->message : "", problem != NULL ? ")" : "");
  return FALSE;
}

static void
source_clear (gpointer data)
{
  MailSecretSource *source = data;

  g_free (source->path);
  g_strfreev (source->argv);
  g_free (source->host);
  g_free (source->user);
  mail_secret_free (source->kept);
}

/* A worker may still be reading for a source that is being freed, hence the count. */
void
mail_secret_source_free (MailSecretSource *source)
{
  if (source != NULL)
    g_atomic_rc_box_release_full (source, source_clear);
}

MailSecretSource *
mail_secret_source_prepare (const MailConfig *config, GError **error)
{
  MailSecretSource *source = g_atomic_rc_box_new0 (MailSecretSource);
  g_autoptr (GError) problem = NULL;
  gboolean ok = TRUE;

  source->kind = SOURCE_NONE;
  source->host = g_strdup (config->host);
  source->user = g_strdup (config->user);
  source->timeout = config->timeout;
  if (config->offline || g_strcmp0 (config->auth, "anonymous") == 0
      || g_strcmp0 (config->auth, "external") == 0)
    ;
  else if (config->passfile != NULL)
    ok = prepare_passfile (source, config, &problem);
  else if (config->passcmd != NULL)
    ok = prepare_command (source, config, &problem);
  else
    {
      ok = prepare_prompt (source, &problem);
      if (!ok && problem == NULL)
        ok = prepare_found (source, &problem);
    }
  if (ok)
    return source;
  g_propagate_error (error, g_steal_pointer (&problem));
  mail_secret_source_free (source);
  return NULL;
}

/* A passcmd that runs. Owned by its task; lives in the context of the caller. */
typedef struct
{
  MailSecretSource *source; /* a count */
  GSubprocess *child;
  GPollableInputStream *out;
  GSource *readable, *timer, *cancelled;
  char *buffer; /* locked */
  gsize length;
  gboolean timed_out;
} CommandRun;

static void
stop_source (GSource **source)
{
  if (*source != NULL)
    g_source_destroy (*source);
  g_clear_pointer (source, g_source_unref);
}

static void
command_run_free (gpointer data)
{
  CommandRun *run = data;

  stop_source (&run->readable);
  stop_source (&run->timer);
  stop_source (&run->cancelled);
  g_clear_object (&run->child);
  config_locked_free (run->buffer);
  mail_secret_source_free (run->source);
  g_free (run);
}

/* Keeps the first line, lets the rest go by so that the program is not stuck. FALSE: no more. */
static gboolean
take_output (CommandRun *run)
{
  for (;;)
    {
      char rest[512];
      gboolean full = run->length >= CONFIG_SECRET_MAX
                      || memchr (run->buffer, '\n', run->length) != NULL;
      g_autoptr (GError) error = NULL;
      gssize n = g_pollable_input_stream_read_nonblocking (
          run->out, full ? rest : run->buffer + run->length,
          full ? sizeof rest : CONFIG_SECRET_MAX - run->length, NULL, &error);

      explicit_bzero (rest, sizeof rest);
      if (n <= 0)
        return g_error_matches (error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK);
      if (!full)
        run->length += (gsize)n;
    }
}

static gboolean
command_readable (GObject *stream, gpointer user_data)
{
  CommandRun *run = user_data;

  return take_output (run) ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

static gboolean
command_timed_out (gpointer user_data)
{
  CommandRun *run = user_data;

  run->timed_out = TRUE;
  g_subprocess_force_exit (run->child);
  return G_SOURCE_REMOVE;
}

static gboolean
command_cancelled (GCancellable *cancellable, gpointer user_data)
{
  CommandRun *run = user_data;

  g_subprocess_force_exit (run->child);
  return G_SOURCE_REMOVE;
}

static void
command_exited (GObject *object, GAsyncResult *result, gpointer user_data)
{
  g_autoptr (GTask) task = user_data;
  CommandRun *run = g_task_get_task_data (task);
  GError *error = NULL;
  MailSecret *secret = NULL;

  g_subprocess_wait_finish (run->child, result, NULL);
  take_output (run);
  if (g_task_return_error_if_cancelled (task))
    ;
  else if (run->timed_out)
    g_task_return_new_error (task, MAIL_ERROR, MAIL_ERROR_TIMED_OUT,
                             "passcmd %s did not end within %u seconds", run->source->argv[0],
                             run->source->timeout);
  else if (g_subprocess_get_if_signaled (run->child))
    g_task_return_new_error (task, MAIL_ERROR, MAIL_ERROR_AUTH,
                             "passcmd %s was killed by signal %d", run->source->argv[0],
                             g_subprocess_get_term_sig (run->child));
  else if (g_subprocess_get_exit_status (run->child) != 0)
    g_task_return_new_error (task, MAIL_ERROR, MAIL_ERROR_AUTH, "passcmd %s failed with status %d",
                             run->source->argv[0], g_subprocess_get_exit_status (run->child));
  else if ((secret = first_line (run->buffer, run->length, "passcmd", &error)) != NULL)
    g_task_return_pointer (task, secret, (GDestroyNotify)mail_secret_free);
  else
    g_task_return_error (task, error);
  /* The task outlives this for as long as its caller wants; what watches must not. */
  stop_source (&run->readable);
  stop_source (&run->timer);
  stop_source (&run->cancelled);
}

static void
watch (GSource **place, GSource *source, GSourceFunc callback, CommandRun *run)
{
  g_source_set_callback (source, callback, run, NULL);
  g_source_attach (source, g_main_context_get_thread_default ());
  *place = source;
}

static void
start_command (GTask *task, CommandRun *run)
{
  GCancellable *cancellable = g_task_get_cancellable (task);
  g_autoptr (GError) error = NULL;

  run->child = g_subprocess_newv ((const char *const *)run->source->argv,
                                  G_SUBPROCESS_FLAGS_STDOUT_PIPE, &error);
  if (run->child == NULL)
    {
      g_task_return_new_error (task, MAIL_ERROR, MAIL_ERROR_AUTH, "passcmd: %s", error->message);
      return;
    }
  run->buffer = config_locked_alloc (CONFIG_SECRET_MAX);
  run->out = G_POLLABLE_INPUT_STREAM (g_subprocess_get_stdout_pipe (run->child));
  watch (&run->readable, g_pollable_input_stream_create_source (run->out, NULL),
         G_SOURCE_FUNC (command_readable), run);
  watch (&run->timer, g_timeout_source_new_seconds (run->source->timeout), command_timed_out, run);
  if (cancellable != NULL)
    watch (&run->cancelled, g_cancellable_source_new (cancellable),
           G_SOURCE_FUNC (command_cancelled), run);
  g_subprocess_wait_async (run->child, NULL, command_exited, g_object_ref (task));
}

static void
read_in_thread (GTask *task, gpointer object, gpointer task_data, GCancellable *cancellable)
{
  CommandRun *run = task_data;
  GError *error = NULL;
  MailSecret *secret = run->source->kind == SOURCE_NETRC ? read_netrc (run->source, &error)
                                                         : read_file (run->source, &error);

  if (secret != NULL)
    g_task_return_pointer (task, secret, (GDestroyNotify)mail_secret_free);
  else
    g_task_return_error (task, error);
}

void
mail_secret_source_get_async (MailSecretSource *source, GCancellable *cancellable,
                              GAsyncReadyCallback done, gpointer user_data)
{
  g_autoptr (GTask) task = g_task_new (NULL, cancellable, done, user_data);
  CommandRun *run = g_new0 (CommandRun, 1);
  const char *kept = source->kept != NULL ? source->kept->text : "";

  run->source = g_atomic_rc_box_acquire (source);
  g_task_set_task_data (task, run, command_run_free);
  g_task_set_source_tag (task, mail_secret_source_get_async);
  switch (source->kind)
    {
    case SOURCE_NONE:
    case SOURCE_KEPT:
      g_task_return_pointer (task, config_secret_new (kept, strlen (kept)),
                             (GDestroyNotify)mail_secret_free);
      break;
    case SOURCE_COMMAND:
      start_command (task, run);
      break;
    case SOURCE_PASSFILE:
    case SOURCE_CREDENTIAL:
    case SOURCE_NETRC:
    default:
      g_task_run_in_thread (task, read_in_thread);
      break;
    }
}

MailSecret *
mail_secret_source_get_finish (MailSecretSource *source, GAsyncResult *result, GError **error)
{
  return g_task_propagate_pointer (G_TASK (result), error);
}
