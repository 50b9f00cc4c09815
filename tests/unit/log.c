/* SPDX-License-Identifier: MIT
 *
 * What reaches the terminal: escaped, cut, at the right level; and the counters.
 */
#include "mailfs/log.h"

#include <string.h>
#include <unistd.h>

static const struct
{
  const char *name, *raw;
  gssize length;
  gsize max;
  const char *expected;
} escape_cases[] = {
  { "plain", "* OK [CAPABILITY IMAP4rev1]", -1, 100, "* OK [CAPABILITY IMAP4rev1]" },
  { "empty", "", -1, 100, "" },
  { "escape-sequence", "\033[2Jgone", -1, 100, "\\x1b[2Jgone" },
  { "newline", "a\r\nb", -1, 100, "a\\x0d\\x0ab" },
  { "nul", "a\0b", 3, 100, "a\\x00b" },
  { "delete", "\177", -1, 100, "\\x7f" },
  { "utf8", "Grüße 漢", -1, 100, "Grüße 漢" },
  { "c1", "\302\233", -1, 100, "\\xc2\\x9b" },
  { "bidi", "\342\200\256", -1, 100, "\\xe2\\x80\\xae" },
  { "invalid", "\377a\303", -1, 100, "\\xffa\\xc3" },
  { "overlong", "\300\200", -1, 100, "\\xc0\\x80" },
  { "half-character", "\303\274", 1, 100, "\\xc3" },
  { "fits", "0123456789", -1, 10, "0123456789" },
  { "cut", "0123456789x", -1, 10, "0123456..." },
  { "cut-escape", "0123456\001\001", -1, 10, "0123456..." },
  { "cut-character", "012345\303\274\303\274\303\274", -1, 10, "012345..." },
  { "tiny", "0123456789", -1, 3, "..." },
  { "nothing", "0123456789", -1, 0, "" },
};

static void
test_escape (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autofree char *text = mail_log_escape (escape_cases[i].raw, escape_cases[i].length,
                                           escape_cases[i].max);

  g_assert_cmpstr (text, ==, escape_cases[i].expected);
}

/* What work () writes to stderr. */
static char *
captured (void (*work) (void))
{
  int ends[2], saved = dup (STDERR_FILENO);
  char buffer[8192];
  gssize n;

  g_assert_cmpint (pipe (ends), ==, 0);
  dup2 (ends[1], STDERR_FILENO);
  close (ends[1]);
  work ();
  dup2 (saved, STDERR_FILENO);
  close (saved);
  n = read (ends[0], buffer, sizeof buffer - 1);
  close (ends[0]);
  buffer[MAX (n, 0)] = '\0';
  return g_strdup (buffer);
}

static void
say_all (void)
{
  mail_log_error ("one %d", 1);
  mail_log_warning ("two\n%s", "\033");
  mail_log_info ("three");
  mail_log_trace ("host:143", 'S', "* OK\r\n", -1);
}

static void
test_levels (void)
{
  g_autofree char *quiet = NULL;
  g_autofree char *loud = NULL;

  mail_log_init (MAIL_LOG_WARNING, FALSE);
  g_assert_false (mail_log_enabled (MAIL_LOG_INFO));
  quiet = captured (say_all);
  g_assert_cmpstr (quiet, ==, "mailfs: error: one 1\nmailfs: warning: two\\x0a\\x1b\n");
  mail_log_init (MAIL_LOG_TRACE, FALSE);
  g_assert_true (mail_log_enabled (MAIL_LOG_TRACE));
  loud = captured (say_all);
  g_assert_cmpstr (loud, ==,
                   "mailfs: error: one 1\nmailfs: warning: two\\x0a\\x1b\nmailfs: three\n"
                   "mailfs: host:143 S: * OK\n");
}

static void
say_long (void)
{
  g_autofree char *text = g_strnfill (1 << 20, '%');

  mail_log_error ("%s", text);
}

static void
test_long (void)
{
  g_autofree char *line = captured (say_long);

  g_assert_cmpuint (strlen (line), <=, 1024 + strlen ("mailfs: error: \n"));
  g_assert_true (g_str_has_suffix (line, "%...\n"));
}

static gpointer
count (gpointer data)
{
  for (int i = 0; i < 10000; i++)
    mail_counter_add (MAIL_COUNTER_HITS, 2);
  return NULL;
}

static void
test_counters (void)
{
  GThread *threads[4];

  for (gsize i = 0; i < G_N_ELEMENTS (threads); i++)
    threads[i] = g_thread_new ("count", count, NULL);
  for (gsize i = 0; i < G_N_ELEMENTS (threads); i++)
    g_thread_join (threads[i]);
  g_assert_cmpuint (mail_counter_get (MAIL_COUNTER_HITS), ==, 80000);
  g_assert_cmpuint (mail_counter_get (MAIL_COUNTER_MISSES), ==, 0);
  for (int i = 0; i < MAIL_N_COUNTERS; i++)
    g_assert_nonnull (mail_counter_name ((MailCounter)i));
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (gsize i = 0; i < G_N_ELEMENTS (escape_cases); i++)
    {
      g_autofree char *path = g_strconcat ("/log/escape/", escape_cases[i].name, NULL);
      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_escape);
    }
  g_test_add_func ("/log/levels", test_levels);
  g_test_add_func ("/log/long", test_long);
  g_test_add_func ("/log/counters", test_counters);
  return g_test_run ();
}
