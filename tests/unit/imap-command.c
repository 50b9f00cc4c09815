/* SPDX-License-Identifier: MIT
 *
 * ImapCommand: what goes onto the wire, where it stops for the server, and what the trace may show.
 */
#include "imap/command.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* All bytes of the command, taken `step` at a time; "<wait>" where a continuation was needed. NULL
 * on an error. */
static char *
wire_of (ImapCommand *command, ImapLiteralMode mode, gsize step)
{
  g_autoptr (GString) out = g_string_new (NULL);
  g_autoptr (GError) error = NULL;
  const guint8 *data;
  gsize length;

  imap_command_start (command, "A7", mode);
  for (;;)
    switch (imap_command_peek (command, &data, &length, &error))
      {
      case IMAP_EMIT_DATA:
        g_assert_cmpuint (length, >, 0);
        g_assert_false (imap_command_is_sent (command));
        length = MIN (length, step);
        g_string_append_len (out, (const char *)data, (gssize)length);
        imap_command_advance (command, length);
        break;
      case IMAP_EMIT_WAIT:
        g_assert_true (imap_command_is_waiting (command));
        g_string_append (out, "<wait>");
        g_assert_true (imap_command_continue (command));
        g_assert_false (imap_command_is_waiting (command));
        break;
      case IMAP_EMIT_DONE:
        g_assert_true (imap_command_is_sent (command));
        g_assert_false (imap_command_continue (command));
        return g_string_free (g_steal_pointer (&out), FALSE);
      default:
        g_assert_nonnull (error);
        return NULL;
      }
}

/* Takes command. */
static void
check_wire (ImapCommand *command, const char *sync, const char *plus)
{
  for (gsize step = 1; step < 20; step += 6)
    {
      g_autofree char *waiting = wire_of (command, IMAP_LITERALS_SYNC, step);
      g_autofree char *flowing = wire_of (command, IMAP_LITERALS_PLUS, step);

      g_assert_cmpstr (waiting, ==, sync);
      g_assert_cmpstr (flowing, ==, plus);
    }
  imap_command_free (command);
}

static const struct
{
  const char *name, *text, *wire;
} astring_cases[] = {
  { "atom", "INBOX", "A7 SELECT INBOX\r\n" },
  { "path", "a/b-c_d.e", "A7 SELECT a/b-c_d.e\r\n" },
  { "empty", "", "A7 SELECT \"\"\r\n" },
  { "space", "Old Job", "A7 SELECT \"Old Job\"\r\n" },
  { "quote", "a\"b\\c", "A7 SELECT \"a\\\"b\\\\c\"\r\n" },
  { "nil", "nil", "A7 SELECT \"nil\"\r\n" },
  { "wildcards", "a%b*", "A7 SELECT \"a%b*\"\r\n" },
  { "utf7", "Entw&APw-rfe", "A7 SELECT \"Entw&APw-rfe\"\r\n" },
  { "looks like a literal", "{3}", "A7 SELECT \"{3}\"\r\n" },
  { "brackets", "[Gmail]/All", "A7 SELECT \"[Gmail]/All\"\r\n" },
  { "line end", "a\r\nb", "A7 SELECT {4}\r\n<wait>a\r\nb\r\n" },
  { "injection", "x\r\nA8 DELETE INBOX", "A7 SELECT {18}\r\n<wait>x\r\nA8 DELETE INBOX\r\n" },
  { "control", "a\033b", "A7 SELECT {3}\r\n<wait>a\033b\r\n" },
  { "8 bit", "\303\244", "A7 SELECT {2}\r\n<wait>\303\244\r\n" },
};

static void
test_astring (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_auto (GStrv) halves = g_strsplit (astring_cases[i].wire, "}\r\n<wait>", 2);
  g_autofree char *plus = g_strjoinv ("+}\r\n", halves);
  ImapCommand *command = imap_command_new ("SELECT ");

  imap_command_astring (command, astring_cases[i].text);
  check_wire (command, astring_cases[i].wire, plus);
}

static void
test_long_string (void)
{
  g_autofree char *name = g_strnfill (1001, 'x');
  g_autofree char *want = g_strdup_printf ("A7 SELECT {1001}\r\n<wait>%s\r\n", name);
  g_autofree char *quotes = g_strnfill (1000, '"');
  g_autoptr (ImapCommand) command = imap_command_new ("SELECT ");
  g_autoptr (ImapCommand) quoted = imap_command_new ("SELECT ");
  g_autofree char *wire = NULL;
  g_autofree char *quoted_wire = NULL;

  imap_command_astring (command, name);
  wire = wire_of (command, IMAP_LITERALS_SYNC, 10000);
  g_assert_cmpstr (wire, ==, want);
  imap_command_astring (quoted, quotes);
  quoted_wire = wire_of (quoted, IMAP_LITERALS_SYNC, 10000);
  g_assert_cmpuint (strlen (quoted_wire), ==, strlen ("A7 SELECT ") + 2002 + 2);
}

static void
test_pieces (void)
{
  ImapCommand *command = imap_command_new ("UID STORE ");
  const MailUidRange ranges[] = { { 1, 3 }, { 9, 9 }, { 5, G_MAXUINT32 } };

  imap_command_set (command, ranges, 3);
  imap_command_text (command, " +FLAGS.SILENT ");
  imap_command_flags (command, MAIL_FLAG_SEEN | MAIL_FLAG_DELETED, "$Work  later");
  check_wire (command,
              "A7 UID STORE 1:3,9,5:4294967295 +FLAGS.SILENT (\\Deleted \\Seen $Work later)\r\n",
              "A7 UID STORE 1:3,9,5:4294967295 +FLAGS.SILENT (\\Deleted \\Seen $Work later)\r\n");

  command = imap_command_new ("ID (");
  imap_command_string (command, "name");
  imap_command_text (command, " ");
  imap_command_nstring (command, "mailfs");
  imap_command_text (command, " ");
  imap_command_nstring (command, NULL);
  imap_command_text (command, ") ");
  imap_command_number (command, G_MAXUINT64);
  imap_command_text (command, " ");
  imap_command_flags (command, 0, NULL);
  check_wire (command, "A7 ID (\"name\" \"mailfs\" NIL) 18446744073709551615 ()\r\n",
              "A7 ID (\"name\" \"mailfs\" NIL) 18446744073709551615 ()\r\n");
}

static const struct
{
  gint64 epoch;
  const char *text;
} date_cases[] = {
  { 0, "01-Jan-1970 00:00:00 +0000" },          { 837596665, "17-Jul-1996 09:44:25 +0000" },
  { -1, "31-Dec-1969 23:59:59 +0000" },         { 4102444800, "01-Jan-2100 00:00:00 +0000" },
  { G_MAXINT64, "31-Dec-9999 23:59:59 +0000" }, { G_MININT64, "01-Jan-0001 00:00:00 +0000" },
};

static void
test_dates (void)
{
  for (gsize i = 0; i < G_N_ELEMENTS (date_cases); i++)
    {
      g_autofree char *want = g_strdup_printf ("A7 X \"%s\"\r\n", date_cases[i].text);
      ImapCommand *command = imap_command_new ("X ");

      imap_command_date_time (command, date_cases[i].epoch);
      check_wire (command, want, want);
    }
}

static const struct
{
  const char *name;
  gboolean is_atom;
  const char *text;
} refused_cases[] = {
  { "empty", TRUE, "" },
  { "space", TRUE, "a b" },
  { "line end", TRUE, "a\r\nb" },
  { "parenthesis", TRUE, "a)" },
  { "quote", TRUE, "a\"" },
  { "brace", TRUE, "{3}" },
  { "star", TRUE, "*" },
  { "backslash", TRUE, "\\Seen" },
  { "bracket", TRUE, "a]" },
  { "8 bit", TRUE, "\303\244" },
  { "keyword", FALSE, "ok \\Recent" },
  { "keyword line end", FALSE, "ok\r\nA8" },
};

static void
test_refused (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autoptr (ImapCommand) command = imap_command_new ("X ");
  g_autoptr (GError) error = NULL;

  if (refused_cases[i].is_atom)
    imap_command_atom (command, refused_cases[i].text);
  else
    imap_command_flags (command, 0, refused_cases[i].text);
  imap_command_text (command, " more");
  g_assert_false (imap_command_check (command, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_INVALID);
  g_assert_null (wire_of (command, IMAP_LITERALS_PLUS, 100));
}

static void
test_refused_others (void)
{
  for (int i = 0; i < 4; i++)
    {
      g_autoptr (ImapCommand) command = imap_command_new ("X ");

      g_assert_true (imap_command_check (command, NULL));
      if (i == 0)
        imap_command_astring_len (command, "a\0b", 3);
      else if (i == 1)
        imap_command_set (command, NULL, 0);
      else if (i == 2)
        imap_command_secret_text (command, "a\r\nb");
      else
        imap_command_literal_fd (command, 0, G_MAXUINT64, 1);
      g_assert_false (imap_command_check (command, NULL));
      g_assert_null (wire_of (command, IMAP_LITERALS_PLUS, 100));
    }
}

/* --- literals --- */

static int
make_file (const char *data, gsize length)
{
  g_autofree char *path = g_build_filename (g_get_tmp_dir (), "imap-command-XXXXXX", NULL);
  int fd = g_mkstemp (path);

  g_assert_cmpint (fd, >=, 0);
  g_assert_cmpint (unlink (path), ==, 0);
  g_assert_cmpint (write (fd, data, length), ==, length);
  return fd;
}

static void
test_literals (void)
{
  int fd = make_file ("0123456789", 10);
  ImapCommand *command = imap_command_new ("APPEND x ");

  imap_command_literal_fd (command, fd, 2, 5);
  imap_command_text (command, " ");
  imap_command_literal (command, "a\0", 0);
  imap_command_literal_fd (command, fd, 10, 0);
  check_wire (command, "A7 APPEND x {5}\r\n<wait>23456 {0}\r\n<wait>{0}\r\n<wait>\r\n",
              "A7 APPEND x {5+}\r\n23456 {0+}\r\n{0+}\r\n\r\n");
  close (fd);
}

/* Larger than the block in which files are read. */
static void
test_large_file (void)
{
  g_autofree char *data = g_malloc (200001);
  g_autofree char *wire = NULL;
  g_autoptr (ImapCommand) command = imap_command_new ("APPEND x ");
  int fd;

  for (int i = 0; i < 200001; i++)
    data[i] = (char)('a' + i % 23);
  fd = make_file (data, 200001);
  imap_command_literal_fd (command, fd, 1, 200000);
  wire = wire_of (command, IMAP_LITERALS_PLUS, 1000);
  g_assert_true (g_str_has_prefix (wire, "A7 APPEND x {200000+}\r\n"));
  g_assert_cmpmem (wire + strlen ("A7 APPEND x {200000+}\r\n"), 200000, data + 1, 200000);
  g_assert_true (g_str_has_suffix (wire, "\r\n"));
  g_assert_cmpuint (imap_command_n_literals_sent (command), ==, 1);
  close (fd);
}

/* LITERAL- lets only small ones go without asking. */
static void
test_literal_minus (void)
{
  g_autofree char *data = g_strnfill (4097, 'x');
  g_autofree char *wire = NULL;
  g_autoptr (ImapCommand) command = imap_command_new ("X ");

  imap_command_literal (command, data, 4096);
  imap_command_text (command, " ");
  imap_command_literal (command, data, 4097);
  wire = wire_of (command, IMAP_LITERALS_MINUS, 100000);
  g_assert_true (g_str_has_prefix (wire, "A7 X {4096+}\r\nx"));
  g_assert_nonnull (strstr (wire, "x {4097}\r\n<wait>x"));
}

static void
test_file_errors (void)
{
  const guint8 *bytes;
  gsize length;
  int fd = make_file ("0123", 4);
  g_autoptr (ImapCommand) shrunk = imap_command_new ("APPEND x ");
  g_autoptr (ImapCommand) closed = imap_command_new ("APPEND x ");
  g_autoptr (GError) error = NULL;

  imap_command_literal_fd (shrunk, fd, 0, 5);
  g_assert_null (wire_of (shrunk, IMAP_LITERALS_PLUS, 100));
  g_assert_false (imap_command_is_sent (shrunk));
  g_assert_cmpuint (imap_command_n_literals_sent (shrunk), ==, 0);
  g_assert_cmpint (imap_command_peek (shrunk, &bytes, &length, &error), ==, IMAP_EMIT_ERROR);
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_CORRUPT);
  close (fd);
  imap_command_literal_fd (closed, -1, 0, 5);
  g_assert_null (wire_of (closed, IMAP_LITERALS_PLUS, 100));
}

/* How many literals the server may have, at each byte of a MULTIAPPEND. */
static void
test_progress (void)
{
  g_autoptr (ImapCommand) command = imap_command_new ("APPEND x ");
  const guint8 *data;
  gsize length;
  GString *seen = g_string_new (NULL);

  imap_command_literal (command, "ab", 2);
  imap_command_text (command, " ");
  imap_command_literal (command, "cd", 2);
  imap_command_start (command, "A1", IMAP_LITERALS_PLUS);
  g_assert_false (imap_command_continue (command));
  while (imap_command_peek (command, &data, &length, NULL) == IMAP_EMIT_DATA)
    {
      g_string_append_c (seen, (char)*data);
      imap_command_advance (command, 1);
    }
  g_assert_cmpstr (seen->str, ==, "A1 APPEND x {2+}\r\nab {2+}\r\ncd\r\n");
  g_assert_cmpuint (imap_command_n_literals_sent (command), ==, 2);
  imap_command_start (command, "A2", IMAP_LITERALS_SYNC);
  g_assert_cmpuint (imap_command_n_literals_sent (command), ==, 0);
  while (imap_command_peek (command, &data, &length, NULL) == IMAP_EMIT_DATA)
    imap_command_advance (command, length);
  g_assert_true (imap_command_is_waiting (command));
  g_assert_true (imap_command_continue (command));
  g_assert_cmpint (imap_command_peek (command, &data, &length, NULL), ==, IMAP_EMIT_DATA);
  imap_command_advance (command, 1);
  g_assert_cmpuint (imap_command_n_literals_sent (command), ==, 0);
  imap_command_advance (command, 1);
  g_assert_cmpuint (imap_command_n_literals_sent (command), ==, 1);
  g_string_free (seen, TRUE);
}

/* --- secrets --- */

static void
test_secrets (void)
{
  g_autoptr (ImapCommand) command = imap_command_new ("LOGIN ");
  g_autoptr (ImapCommand) literal = imap_command_new ("LOGIN me ");
  g_autoptr (ImapCommand) initial = imap_command_new ("AUTHENTICATE PLAIN ");
  g_autofree char *wire = NULL, *shown = NULL, *literal_wire = NULL, *literal_shown = NULL;
  g_autofree char *initial_wire = NULL, *initial_shown = NULL;

  imap_command_astring (command, "me");
  imap_command_text (command, " ");
  imap_command_secret (command, "hunter\"2");
  wire = wire_of (command, IMAP_LITERALS_SYNC, 100);
  shown = imap_command_describe (command);
  g_assert_cmpstr (wire, ==, "A7 LOGIN me \"hunter\\\"2\"\r\n");
  g_assert_cmpstr (shown, ==, "A7 LOGIN me ***");

  imap_command_secret (literal, "p\303\244ss");
  literal_wire = wire_of (literal, IMAP_LITERALS_SYNC, 100);
  literal_shown = imap_command_describe (literal);
  g_assert_cmpstr (literal_wire, ==, "A7 LOGIN me {5}\r\n<wait>p\303\244ss\r\n");
  g_assert_cmpstr (literal_shown, ==, "A7 LOGIN me ***");

  imap_command_secret_text (initial, "AG1lAHB3");
  initial_wire = wire_of (initial, IMAP_LITERALS_SYNC, 100);
  initial_shown = imap_command_describe (initial);
  g_assert_cmpstr (initial_wire, ==, "A7 AUTHENTICATE PLAIN AG1lAHB3\r\n");
  g_assert_cmpstr (initial_shown, ==, "A7 AUTHENTICATE PLAIN ***");
}

static void
test_describe (void)
{
  g_autoptr (ImapCommand) command = imap_command_new ("APPEND x ");
  g_autofree char *shown = NULL;

  imap_command_literal (command, "content", 7);
  imap_command_text (command, " end");
  imap_command_start (command, "A9", IMAP_LITERALS_SYNC);
  shown = imap_command_describe (command);
  g_assert_cmpstr (shown, ==, "A9 APPEND x {7} end");
  g_assert_cmpuint (imap_command_length (command), >=, strlen ("APPEND x {7}\r\ncontent end\r\n"));
}

/* --- splitting --- */

static void
test_fit (void)
{
  MailUidRange ranges[3000];
  guint at = 0, n_lines = 0;

  for (guint i = 0; i < G_N_ELEMENTS (ranges); i++)
    ranges[i] = (MailUidRange) { i * 1000000 + 1, i * 1000000 + 1 + i % 2 };
  g_assert_cmpuint (imap_command_fit_ranges (ranges, 0, 100), ==, 0);
  g_assert_cmpuint (imap_command_fit_ranges (ranges, 3, 0), ==, 1);
  while (at < G_N_ELEMENTS (ranges))
    {
      guint left = (guint)G_N_ELEMENTS (ranges) - at;
      guint n = imap_command_fit_ranges (ranges + at, left, IMAP_LINE_MAX);
      g_autoptr (GString) text = g_string_new (NULL);

      g_assert_cmpuint (n, >, 0);
      mail_uid_ranges_format (text, ranges + at, n);
      g_assert_cmpuint (text->len, <=, IMAP_LINE_MAX);
      if (n < left) /* and one more would not have fit */
        {
          g_string_truncate (text, 0);
          mail_uid_ranges_format (text, ranges + at, n + 1);
          g_assert_cmpuint (text->len, >, IMAP_LINE_MAX);
        }
      at += n;
      n_lines++;
    }
  g_assert_cmpuint (n_lines, >, 3);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (gsize i = 0; i < G_N_ELEMENTS (astring_cases); i++)
    {
      g_autofree char *path = g_strdup_printf ("/imap/command/astring/%s", astring_cases[i].name);

      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_astring);
    }
  for (gsize i = 0; i < G_N_ELEMENTS (refused_cases); i++)
    {
      g_autofree char *path = g_strdup_printf ("/imap/command/refused/%s", refused_cases[i].name);

      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_refused);
    }
  g_test_add_func ("/imap/command/refused others", test_refused_others);
  g_test_add_func ("/imap/command/long string", test_long_string);
  g_test_add_func ("/imap/command/pieces", test_pieces);
  g_test_add_func ("/imap/command/dates", test_dates);
  g_test_add_func ("/imap/command/literals", test_literals);
  g_test_add_func ("/imap/command/large file", test_large_file);
  g_test_add_func ("/imap/command/literal minus", test_literal_minus);
  g_test_add_func ("/imap/command/file errors", test_file_errors);
  g_test_add_func ("/imap/command/progress", test_progress);
  g_test_add_func ("/imap/command/secrets", test_secrets);
  g_test_add_func ("/imap/command/describe", test_describe);
  g_test_add_func ("/imap/command/fit", test_fit);
  return g_test_run ();
}
