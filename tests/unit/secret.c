/* SPDX-License-Identifier: MIT
 *
 * The sources of the password: files, commands, the terminal, the credential directory, netrc; what
 * each refuses, and which comes first.
 */
#include "config/netrc.h"
#include "mailfs/config.h"
#include "mailfs/error.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <pty.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static char *directory; /* HOME */

static char *
write_file (const char *name, const char *text, gssize length, int mode)
{
  char *path = g_build_filename (directory, name, NULL);

  g_remove (path);
  g_assert_true (g_file_set_contents (path, text, length, NULL));
  g_assert_cmpint (chmod (path, (mode_t)mode), ==, 0);
  return path;
}

static MailConfig
make_config (char *passfile, char *passcmd)
{
  static char host[] = "mail.example", user[] = "me";
  MailConfig config = {
    .host = host, .user = user, .timeout = 10, .passfile = passfile, .passcmd = passcmd
  };

  return config;
}

static void
keep_result (GObject *object, GAsyncResult *result, gpointer user_data)
{
  *(GAsyncResult **)user_data = g_object_ref (result);
}

static MailSecret *
get (MailSecretSource *source, GCancellable *cancellable, GError **error)
{
  g_autoptr (GAsyncResult) result = NULL;

  mail_secret_source_get_async (source, cancellable, keep_result, &result);
  g_assert_null (result);
  while (result == NULL)
    g_main_context_iteration (NULL, TRUE);
  return mail_secret_source_get_finish (source, result, error);
}

/* What the whole way gives: the password, or the message in angle brackets. */
static char *
outcome (const MailConfig *config)
{
  g_autoptr (GError) error = NULL;
  MailSecretSource *source = mail_secret_source_prepare (config, &error);
  g_autoptr (MailSecret) secret = source != NULL ? get (source, NULL, &error) : NULL;
  char *text;

  if (source != NULL)
    mail_secret_source_free (source);
  if (secret == NULL)
    g_assert_nonnull (error);
  else
    g_assert_no_error (error);
  text = secret != NULL ? g_strdup (secret->text) : g_strdup_printf ("<%s>", error->message);
  return text;
}

static void
assert_outcome (const MailConfig *config, const char *expected)
{
  g_autofree char *text = outcome (config);

  if (!g_pattern_match_simple (expected, text))
    g_error ("%s does not match %s", text, expected);
}

static const struct
{
  const char *name, *text;
  gssize length;
  int mode;
  const char *expected; /* a pattern */
} file_cases[] = {
  { "plain", "secret\n", -1, 0600, "secret" },
  { "no-newline", "secret", -1, 0400, "secret" },
  { "crlf", "secret\r\nmore\r\n", -1, 0600, "secret" },
  { "spaces", "  se cret \nx", -1, 0600, "  se cret " },
  { "utf8", "schlüssel\n", -1, 0600, "schlüssel" },
  { "empty", "", -1, 0600, "<passfile *: the first line is empty>" },
  { "empty-line", "\nsecret\n", -1, 0600, "<*the first line is empty>" },
  { "nul", "a\0b\n", 4, 0600, "<*NUL byte>" },
  { "group", "secret\n", -1, 0640, "<passfile */pw is open to group or others: chmod 600 */pw>" },
  { "others", "secret\n", -1, 0604, "<*is open to group or others*>" },
};

static void
test_file (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autofree char *path = write_file ("pw", file_cases[i].text, file_cases[i].length,
                                      file_cases[i].mode);
  MailConfig config = make_config (path, NULL);

  assert_outcome (&config, file_cases[i].expected);
}

static void
test_file_odd (void)
{
  g_autofree char *missing = g_build_filename (directory, "missing", NULL);
  g_autofree char *long_line = g_strnfill (100000, 'x');
  g_autofree char *path = write_file ("long", long_line, -1, 0600);
  MailConfig config = make_config (missing, NULL);

  assert_outcome (&config, "<passfile */missing: No such file or directory>");
  config.passfile = directory;
  assert_outcome (&config, "<*not a regular file>");
  config.passfile = path;
  assert_outcome (&config, "<*too long>");
}

/* A password changed on disk is used at the next login, and one made readable is refused then. */
static void
test_file_anew (void)
{
  g_autofree char *path = write_file ("pw", "one\n", -1, 0600);
  MailConfig config = make_config (path, NULL);
  g_autoptr (GError) error = NULL;
  MailSecretSource *source = mail_secret_source_prepare (&config, &error);
  g_autoptr (MailSecret) first = get (source, NULL, &error);
  g_autoptr (MailSecret) second = NULL;

  g_assert_no_error (error);
  g_free (write_file ("pw", "two\n", -1, 0600));
  second = get (source, NULL, &error);
  g_assert_no_error (error);
  g_assert_cmpstr (first->text, ==, "one");
  g_assert_cmpstr (second->text, ==, "two");
  g_assert_cmpint (chmod (path, 0644), ==, 0);
  g_assert_null (get (source, NULL, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_AUTH);
  mail_secret_source_free (source);
}

static gpointer
feed_fifo (gpointer path)
{
  FILE *file = fopen (path, "we");

  g_assert_nonnull (file);
  fputs ("from fifo\nmore", file);
  fclose (file);
  return NULL;
}

static void
test_fifo (void)
{
  g_autofree char *path = g_build_filename (directory, "fifo", NULL);
  MailConfig config = make_config (path, NULL);
  g_autoptr (GError) error = NULL;
  MailSecretSource *source;
  GThread *thread;

  g_assert_cmpint (mkfifo (path, 0600), ==, 0);
  thread = g_thread_new ("fifo", feed_fifo, path);
  source = mail_secret_source_prepare (&config, &error);
  g_thread_join (thread);
  g_assert_no_error (error);
  for (int i = 0; i < 2; i++)
    {
      g_autoptr (MailSecret) secret = get (source, NULL, &error);
      g_assert_no_error (error);
      g_assert_cmpstr (secret->text, ==, "from fifo");
    }
  mail_secret_source_free (source);
  config.timeout = 1;
  assert_outcome (&config, "<*nothing came within 1 seconds>");
}

static const struct
{
  const char *name, *command, *expected;
} command_cases[] = {
  { "echo", "echo hello", "hello" },
  { "argv", "printf '%s|' 'a b' \"c d\" $HOME", "a b|c d|$HOME|" },
  { "first-line", "printf 'one\\ntwo\\n'", "one" },
  { "no-shell", "echo a; echo b", "a; echo b" },
  { "much-output", "sh -c 'echo first; head -c 300000 /dev/zero'", "first" },
  { "status", "sh -c 'echo x; exit 3'", "<passcmd *sh failed with status 3>" },
  { "signal", "sh -c 'kill -9 $$'", "<passcmd * was killed by signal 9>" },
  { "silent", "true", "<passcmd: the first line is empty>" },
  { "no-program", "no-such-program-here -x",
    "<passcmd: there is no program no-such-program-here>" },
  { "quote", "echo 'a", "<passcmd=echo 'a: *>" },
  { "background", "sh -c 'echo quick; sleep 3 &'", "quick" },
};

static void
test_command (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autofree char *command = g_strdup (command_cases[i].command);
  MailConfig config = make_config (NULL, command);

  assert_outcome (&config, command_cases[i].expected);
}

static void
test_command_timeout (void)
{
  char command[] = "sleep 100";
  MailConfig config = make_config (NULL, command);

  config.timeout = 1;
  assert_outcome (&config, "<passcmd */sleep did not end within 1 seconds>");
}

static gboolean
cancel (gpointer cancellable)
{
  g_cancellable_cancel (cancellable);
  return G_SOURCE_REMOVE;
}

static void
test_command_cancel (void)
{
  char command[] = "sleep 100";
  MailConfig config = make_config (NULL, command);
  g_autoptr (GCancellable) cancellable = g_cancellable_new ();
  g_autoptr (GError) error = NULL;
  MailSecretSource *source = mail_secret_source_prepare (&config, &error);

  g_idle_add (cancel, cancellable);
  g_assert_null (get (source, cancellable, &error));
  g_assert_error (error, G_IO_ERROR, G_IO_ERROR_CANCELLED);
  mail_secret_source_free (source);
}

static void
test_none (void)
{
  char external[] = "external", anonymous[] = "anonymous";
  MailConfig config = make_config (NULL, NULL);

  config.auth = external;
  assert_outcome (&config, "");
  config.auth = anonymous;
  assert_outcome (&config, "");
  config.auth = NULL;
  config.offline = TRUE;
  assert_outcome (&config, "");
}

/* passfile before passcmd before the credential directory before netrc. */
static void
test_order (void)
{
  g_autofree char *path = write_file ("pw", "file\n", -1, 0600);
  g_autofree char *netrc = write_file (".netrc", "machine mail.example login me password net", -1,
                                       0600);
  g_autofree char *credential = write_file ("mailfs.password", "credential\n", -1, 0440);
  char command[] = "echo command";
  MailConfig config = make_config (path, command);

  g_setenv ("CREDENTIALS_DIRECTORY", directory, TRUE);
  assert_outcome (&config, "file");
  config.passfile = NULL;
  assert_outcome (&config, "command");
  config.passcmd = NULL;
  assert_outcome (&config, "credential");
  g_remove (credential);
  assert_outcome (&config, "net");
  g_assert_cmpint (chmod (netrc, 0644), ==, 0);
  assert_outcome (&config, "<no password for me at mail.example: *(netrc * is open to group*>");
  g_free (write_file (".netrc", "machine other login me password net", -1, 0600));
  assert_outcome (&config, "<*has no entry for me at mail.example*>");
  g_remove (netrc);
  assert_outcome (&config, "<no password for me at mail.example: give passfile=*terminal>");
  g_unsetenv ("CREDENTIALS_DIRECTORY");
}

static const struct
{
  const char *name, *text, *expected; /* for me at host */
} netrc_cases[] = {
  { "line", "machine host login me password pw\n", "pw" },
  { "lines", "machine host\n  login me\n  password pw\n", "pw" },
  { "case", "machine HOST login me password pw", "pw" },
  { "other-machine", "machine a login me password 1 machine host login me password 2", "2" },
  { "other-login", "machine host login you password 1 machine host login me password 2", "2" },
  { "login-case", "machine host login ME password 1", NULL },
  { "no-login", "machine host password pw", "pw" },
  { "password-first", "machine host password pw login me", "pw" },
  { "no-password", "machine host login me", NULL },
  { "default", "machine a login me password 1 default login me password 2", "2" },
  { "default-login", "default login anonymous password x", NULL },
  { "quoted", "machine host login me password \"a \\\"b\\\\ c\"\n", "a \"b\\ c" },
  { "hash", "machine host login me password #pw\n", "#pw" },
  { "comment", "# machine host login me password no\nmachine host login me password pw", "pw" },
  { "account", "machine host login me account password password pw", "pw" },
  { "macdef",
    "machine a login me password 1\nmacdef init\nmachine host password no\n\n"
    "machine host login me password pw",
    "pw" },
  { "macdef-end", "macdef init\nmachine host login me password no", NULL },
  { "cut-machine", "machine", NULL },
  { "cut-password", "machine host login me password", NULL },
  { "cut-quote", "machine host login me password \"a", "a" },
  { "empty", "", NULL },
};

static void
test_netrc (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autofree char *text = g_strdup (netrc_cases[i].text);

  g_assert_cmpstr (config_netrc_find (text, "host", "me"), ==, netrc_cases[i].expected);
}

/* Everything that can be read until want turns up, or all until the end if it is NULL. */
static void
read_until (int fd, GString *seen, const char *want)
{
  char buffer[256];

  while (want == NULL || strstr (seen->str, want) == NULL)
    {
      gssize n = read (fd, buffer, sizeof buffer);

      if (n <= 0)
        return;
      g_string_append_len (seen, buffer, n);
    }
}

/* The program with a terminal of its own: runs the way of outcome () and writes it to fd. */
static pid_t
start_on_terminal (int *terminal, int *answer)
{
  MailConfig config = make_config (NULL, NULL);
  int ends[2];
  pid_t pid;

  g_assert_cmpint (pipe (ends), ==, 0);
  pid = forkpty (terminal, NULL, NULL, NULL);
  g_assert_cmpint (pid, >=, 0);
  if (pid == 0)
    {
      g_autofree char *text = NULL;

      signal (SIGINT, SIG_DFL);
      text = outcome (&config);
      (void)!write (ends[1], text, strlen (text));
      _exit (0);
    }
  close (ends[1]);
  *answer = ends[0];
  return pid;
}

static void
test_prompt (void)
{
  g_autoptr (GString) seen = g_string_new (NULL);
  g_autoptr (GString) result = g_string_new (NULL);
  int terminal, answer;
  pid_t pid = start_on_terminal (&terminal, &answer);

  read_until (terminal, seen, "Password for me at mail.example: ");
  g_assert_cmpint (write (terminal, "typed canary\n", 13), ==, 13);
  read_until (answer, result, NULL);
  read_until (terminal, seen, NULL);
  waitpid (pid, NULL, 0);
  g_assert_cmpstr (result->str, ==, "typed canary");
  g_assert_null (strstr (seen->str, "canary"));
  close (terminal);
  close (answer);
}

static void
test_prompt_interrupt (void)
{
  g_autoptr (GString) seen = g_string_new (NULL);
  int terminal, answer, status;
  struct termios mode;
  pid_t pid = start_on_terminal (&terminal, &answer);

  read_until (terminal, seen, "mail.example: ");
  g_assert_cmpint (write (terminal, "abc\003", 4), ==, 4);
  waitpid (pid, &status, 0);
  g_assert_true (WIFSIGNALED (status));
  g_assert_cmpint (WTERMSIG (status), ==, SIGINT);
  g_assert_cmpint (tcgetattr (terminal, &mode), ==, 0);
  g_assert_true ((mode.c_lflag & ECHO) != 0);
  close (terminal);
  close (answer);
}

static void
remove_tree (const char *path)
{
  g_autoptr (GDir) entries = g_dir_open (path, 0, NULL);
  const char *name;

  while (entries != NULL && (name = g_dir_read_name (entries)) != NULL)
    {
      g_autofree char *child = g_build_filename (path, name, NULL);
      g_remove (child);
    }
  g_remove (path);
}

#define ADD(table, prefix, function)                                                               \
  for (gsize i = 0; i < G_N_ELEMENTS (table); i++)                                                 \
    {                                                                                              \
      g_autofree char *path = g_strconcat (prefix, table[i].name, NULL);                           \
      g_test_add_data_func (path, GSIZE_TO_POINTER (i), function);                                 \
    }

int
main (int argc, char **argv)
{
  int null = open ("/dev/null", O_RDONLY | O_CLOEXEC);
  int status;

  /* No test but those of the prompt, which bring their own, has a terminal. */
  dup2 (null, STDIN_FILENO);
  close (null);
  directory = g_dir_make_tmp ("mailfs-secret-XXXXXX", NULL);
  g_setenv ("HOME", directory, TRUE);
  g_unsetenv ("CREDENTIALS_DIRECTORY");
  g_test_init (&argc, &argv, NULL);
  /* First, since they fork. */
  g_test_add_func ("/secret/prompt", test_prompt);
  g_test_add_func ("/secret/prompt-interrupt", test_prompt_interrupt);
  g_test_add_func ("/secret/file-odd", test_file_odd);
  g_test_add_func ("/secret/file-anew", test_file_anew);
  g_test_add_func ("/secret/fifo", test_fifo);
  g_test_add_func ("/secret/command-timeout", test_command_timeout);
  g_test_add_func ("/secret/command-cancel", test_command_cancel);
  g_test_add_func ("/secret/none", test_none);
  g_test_add_func ("/secret/order", test_order);
  ADD (file_cases, "/secret/file/", test_file);
  ADD (command_cases, "/secret/command/", test_command);
  ADD (netrc_cases, "/secret/netrc/", test_netrc);
  status = g_test_run ();
  remove_tree (directory);
  g_free (directory);
  return status;
}
