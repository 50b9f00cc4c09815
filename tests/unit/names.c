/* SPDX-License-Identifier: MIT
 *
 * Names: tables of both ways, then random names, which must never meet and always come back.
 */
#include "fs/names.h"

#include <string.h>

#define FLAT MAIL_LAYOUT_FLAT
#define MAILDIR MAIL_LAYOUT_MAILDIR

/* Adds one test for each row of a table, so that a failure has a name. */
#define ADD_ROWS(path, table, function)                                                            \
  for (guint i = 0; i < G_N_ELEMENTS (table); i++)                                                 \
    {                                                                                              \
      g_autofree char *name = g_strdup_printf ("/names/" path "/%s", table[i].label);              \
      g_test_add_data_func (name, &table[i], function);                                            \
    }

/* --- mailboxes ------------------------------------------------------------------------------ */

typedef struct
{
  const char *label, *text;
  gboolean raw;
  MailLayout layout;
  const char *name;
} EscapeCase;

static const EscapeCase escape_cases[] = {
  { "plain", "INBOX", FALSE, FLAT, "INBOX" },
  { "space", "Old Job", FALSE, FLAT, "Old Job" },
  { "umlaut", "Entwürfe", FALSE, FLAT, "Entwürfe" },
  { "cjk", "台北", FALSE, FLAT, "台北" },
  { "emoji", "📬", FALSE, FLAT, "📬" },
  { "ampersand", "A&B", FALSE, FLAT, "A&B" },
  { "slash", "a/b", FALSE, FLAT, "a%2Fb" },
  { "percent", "100%", FALSE, FLAT, "100%25" },
  { "percent-escape", "%2F", FALSE, FLAT, "%252F" },
  { "control", "a\x01\x1f\x7f\n", FALSE, FLAT, "a%01%1F%7F%0A" },
  { "dot", ".", FALSE, FLAT, "%2E" },
  { "dotdot", "..", FALSE, FLAT, "%2E." },
  { "hidden", ".mailfs", FALSE, FLAT, "%2Emailfs" },
  { "inner-dot", "a.b.", FALSE, FLAT, "a.b." },
  { "empty", "", FALSE, FLAT, "%" },
  { "message", "0000000042.1700000000.eml", FALSE, FLAT, "%30000000042.1700000000.eml" },
  { "message-zeros", "0000000000.00.eml", FALSE, FLAT, "%30000000000.00.eml" },
  { "message-huge", "9999999999.99999999999.eml", FALSE, FLAT, "%39999999999.99999999999.eml" },
  { "message-short", "000000042.1700000000.eml", FALSE, FLAT, "000000042.1700000000.eml" },
  { "message-tail", "0000000042.1700000000.emlx", FALSE, FLAT, "0000000042.1700000000.emlx" },
  { "message-bare", "0000000042..eml", FALSE, FLAT, "0000000042..eml" },
  { "pop", "pop-0123456789abcdef.eml", FALSE, FLAT, "%70op-0123456789abcdef.eml" },
  { "pop-capitals", "pop-0123456789ABCDEF.eml", FALSE, FLAT, "pop-0123456789ABCDEF.eml" },
  { "cur", "cur", FALSE, MAILDIR, "%63ur" },
  { "new", "new", FALSE, MAILDIR, "%6Eew" },
  { "tmp", "tmp", FALSE, MAILDIR, "%74mp" },
  { "cur-flat", "cur", FALSE, FLAT, "cur" },
  { "curl", "curl", FALSE, MAILDIR, "curl" },
  { "raw", "&bad", TRUE, FLAT, "%26bad" },
  { "raw-utf8", "ü&", TRUE, FLAT, "%C3%BC%26" },
  { "latin1", "M\xfcll", FALSE, FLAT, "M%FCll" },
  { "overlong", "\xc0\xaf", FALSE, FLAT, "%C0%AF" },
  { "surrogate", "\xed\xa0\x80", FALSE, FLAT, "%ED%A0%80" },
  { "cut", "a\xe5\x8f", FALSE, FLAT, "a%E5%8F" },
  { "cut-then-more", "\xe5\x8f!\xe5", FALSE, FLAT, "%E5%8F!%E5" },
  { "five-bytes", "\xf8\x88\x80\x80\x80", FALSE, FLAT, "%F8%88%80%80%80" },
};

static void
test_escape (gconstpointer data)
{
  const EscapeCase *row = data;
  g_autofree char *name = fs_names_escape_part (row->text, row->raw, row->layout);

  g_assert_cmpstr (name, ==, row->name);

  /* What a new mailbox may be called comes back; what only a server makes does not. */
  g_autoptr (GError) error = NULL;
  g_autofree char *text = fs_names_unescape_part (name, row->layout, &error);
  if (*row->text && !row->raw && g_utf8_validate (row->text, -1, NULL))
    {
      g_assert_no_error (error);
      g_assert_cmpstr (text, ==, row->text);
    }
  else
    g_assert_error (error, MAIL_ERROR, MAIL_ERROR_INVALID);
}

static const struct
{
  const char *label, *name;
  MailLayout layout;
} unescape_bad_cases[] = {
  { "empty", "", FLAT },
  { "lone-percent", "%", FLAT },
  { "cut", "a%2", FLAT },
  { "no-digits", "a%zz", FLAT },
  { "lower-case", "a%2fb", FLAT },
  { "nul", "a%00b", FLAT },
  { "needless", "%41", FLAT },
  { "needless-umlaut", "%C3%BC", FLAT },
  { "shortened", "abc%~0123456789abcdef", FLAT },
  { "dot", ".", FLAT },
  { "hidden", ".git", FLAT },
  { "message", "0000000042.1700000000.eml", FLAT },
  { "cur", "cur", MAILDIR },
  { "reserved-elsewhere", "%63ur", FLAT },
  { "latin1", "M\xfcll", FLAT },
  { "control", "a\tb", FLAT },
};

static void
test_unescape_bad (gconstpointer data)
{
  const typeof (unescape_bad_cases[0]) *row = data;
  g_autoptr (GError) error = NULL;

  g_assert_null (fs_names_unescape_part (row->name, row->layout, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_INVALID);
}

static char *
repeat (const char *text, guint n)
{
  GString *result = g_string_new (NULL);

  while (n-- > 0)
    g_string_append (result, text);
  return g_string_free (result, FALSE);
}

/* unit repeated so often is longer than a file name may be: shortened, valid, still unlike others.
 */
static void
test_long (gconstpointer data)
{
  const char *unit = data;
  g_autofree char *one = repeat (unit, 260), *two = repeat (unit, 261);
  g_autofree char *one_name = fs_names_escape_part (one, FALSE, FLAT);
  g_autofree char *two_name = fs_names_escape_part (two, FALSE, FLAT);
  g_autoptr (GError) error = NULL;

  g_assert_cmpuint (strlen (one_name), <=, FS_NAMES_MAX);
  g_assert_cmpuint (strlen (one_name), >, 200);
  g_assert_true (g_utf8_validate (one_name, -1, NULL));
  g_assert_nonnull (strstr (one_name, "%~"));
  g_assert_cmpuint (strlen (strstr (one_name, "%~")), ==, 2 + 16);
  g_assert_cmpstr (one_name, !=, two_name);
  /* Cut between two escapes, not inside one. */
  for (const char *p = one_name; (p = strchr (p, '%')) && p[1] != '~'; p += 3)
    g_assert_true (g_ascii_isxdigit (p[1]) && g_ascii_isxdigit (p[2]));
  g_assert_null (fs_names_unescape_part (one_name, FLAT, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_INVALID);
}

static void
test_longest (void)
{
  g_autofree char *fits = repeat ("x", 255), *over = repeat ("x", 256);
  g_autofree char *name = fs_names_escape_part (fits, FALSE, FLAT);
  g_autoptr (GError) error = NULL;

  g_assert_cmpstr (name, ==, fits);
  g_autofree char *text = fs_names_unescape_part (fits, FLAT, &error);
  g_assert_cmpstr (text, ==, fits);
  g_assert_null (fs_names_unescape_part (over, FLAT, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_NAME);
}

/* A component of pieces that mean something to the escaping, so that collisions would show. */
static char *
random_text (gboolean raw)
{
  static const char *const pieces[] = {
    "%",
    "%2",
    "%25",
    "2E",
    ".",
    "..",
    "/",
    "&",
    "~",
    "%~",
    "a",
    "B",
    "0",
    "ü",
    "\xc3",
    "\xbc",
    "台",
    "\xff",
    "\x01",
    "\x7f",
    " ",
    "cur",
    "new",
    "tmp",
    ".eml",
    "0000000042",
    "17",
    "pop-",
    "0123456789abcdef",
    "x",
  };
  GString *text = g_string_new (NULL);

  for (gint n = g_test_rand_int_range (0, g_test_rand_int_range (1, 100) == 1 ? 200 : 5); n > 0;
       n--)
    g_string_append (text, pieces[g_test_rand_int_range (0, G_N_ELEMENTS (pieces))]);
  if (raw)
    g_string_append (text, "&"); /* raw without anything undecodable does not exist */
  else
    {
      g_autofree char *bytes = g_string_free (text, FALSE);
      text = g_string_new (NULL);
      g_autofree char *valid = g_utf8_make_valid (bytes, -1);
      g_string_append (text, valid);
    }
  return g_string_free (text, FALSE);
}

static void
check_random_name (const char *name)
{
  guint32 uid, uidvalidity;

  g_assert_cmpuint (strlen (name), >, 0);
  g_assert_cmpuint (strlen (name), <=, FS_NAMES_MAX);
  g_assert_true (g_utf8_validate (name, -1, NULL));
  g_assert_null (strchr (name, '/'));
  g_assert_cmpint (name[0], !=, '.');
  g_assert_false (fs_names_parse_message (name, &uid, &uidvalidity));
  for (const char *p = name; *p; p++)
    g_assert_true ((guchar)*p >= 0x20 && *p != 0x7f);
}

static void
test_injective (gconstpointer data)
{
  MailLayout layout = GPOINTER_TO_INT (data);
  g_autoptr (GHashTable) by_name = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, g_free);

  for (guint i = 0; i < 100000; i++)
    {
      gboolean raw = g_test_rand_bit ();
      g_autofree char *text = random_text (raw);
      g_autofree char *name = fs_names_escape_part (text, raw, layout);
      g_autofree char *key = g_strconcat (raw ? "r" : "t", text, NULL);
      const char *other = g_hash_table_lookup (by_name, name);

      check_random_name (name);
      if (other)
        g_assert_cmpstr (key, ==, other);
      else
        g_hash_table_insert (by_name, g_strdup (name), g_strdup (key));

      if (!raw && *text && !strstr (name, "%~"))
        {
          g_autofree char *back = fs_names_unescape_part (name, layout, NULL);
          g_assert_cmpstr (back, ==, text);
        }
    }
}

/* Whatever unescapes gives its own name again, and nothing else gives that name. */
static void
test_canonical (void)
{
  for (guint i = 0; i < 100000; i++)
    {
      g_autofree char *name = random_text (FALSE);
      g_autofree char *text = fs_names_unescape_part (name, FLAT, NULL);
      if (!text)
        continue;
      g_autofree char *again = fs_names_escape_part (text, FALSE, FLAT);
      g_assert_cmpstr (again, ==, name);
    }
}

/* --- messages ------------------------------------------------------------------------------- */

static const struct
{
  const char *label, *name;
  gboolean ok;
  guint32 uid, uidvalidity;
} message_cases[] = {
  { "usual", "0000000042.1700000000.eml", TRUE, 42, 1700000000 },
  { "largest", "4294967295.4294967295.eml", TRUE, G_MAXUINT32, G_MAXUINT32 },
  { "uidvalidity-zero", "0000000001.0.eml", TRUE, 1, 0 },
  { "uid-zero", "0000000000.17.eml", FALSE },
  { "uid-overflow", "4294967296.17.eml", FALSE },
  { "uidvalidity-overflow", "0000000042.4294967296.eml", FALSE },
  { "uidvalidity-huge", "0000000042.99999999999999999999999999.eml", FALSE },
  { "nine-digits", "000000042.17.eml", FALSE },
  { "eleven-digits", "00000000042.17.eml", FALSE },
  { "leading-zero", "0000000042.017.eml", FALSE },
  { "two-zeros", "0000000042.00.eml", FALSE },
  { "no-uidvalidity", "0000000042..eml", FALSE },
  { "sign", "+000000042.17.eml", FALSE },
  { "space", " 000000042.17.eml", FALSE },
  { "capitals", "0000000042.17.EML", FALSE },
  { "tail", "0000000042.17.eml~", FALSE },
  { "no-suffix", "0000000042.17", FALSE },
  { "empty", "", FALSE },
};

static void
test_message (gconstpointer data)
{
  const typeof (message_cases[0]) *row = data;
  guint32 uid = 7, uidvalidity = 7;
  char buffer[FS_NAMES_MESSAGE_SIZE];

  g_assert_cmpint (fs_names_parse_message (row->name, &uid, &uidvalidity), ==, row->ok);
  if (!row->ok)
    {
      g_assert_cmpuint (uid, ==, 7); /* untouched */
      g_assert_cmpuint (uidvalidity, ==, 7);
      return;
    }
  g_assert_cmpuint (uid, ==, row->uid);
  g_assert_cmpuint (uidvalidity, ==, row->uidvalidity);
  fs_names_message (buffer, uid, uidvalidity);
  g_assert_cmpstr (buffer, ==, row->name);
}

static void
test_pop (void)
{
  char one[FS_NAMES_MESSAGE_SIZE], two[FS_NAMES_MESSAGE_SIZE];

  fs_names_pop (one, "abc"); /* SHA-256 of "abc" begins ba7816bf8f01cfea */
  g_assert_cmpstr (one, ==, "pop-ba7816bf8f01cfea.eml");
  fs_names_pop (two, "abd");
  g_assert_cmpstr (one, !=, two);
}

static const struct
{
  const char *label;
  guint8 flags;
  const char *keywords, *info;
} maildir_make_cases[] = {
  { "none", 0, NULL, "" },
  { "seen", MAIL_FLAG_SEEN, "", "S" },
  { "all", MAIL_FLAGS_ALL, "$Forwarded", "DFPRST" },
  { "forwarded-among", 0, "$Junk $forwarded work", "P" },
  { "forwarded-not", 0, "$ForwardedTo x$Forwarded", "" },
};

static void
test_maildir_make (gconstpointer data)
{
  const typeof (maildir_make_cases[0]) *row = data;
  g_autofree char *expected = g_strdup_printf ("0000000042.1700000000,S=1234:2,%s", row->info);
  g_autofree char *name = fs_names_maildir (42, 1700000000, 1234, row->flags, row->keywords);
  guint32 uid, uidvalidity;
  gboolean forwarded, has_info;
  guint8 flags;

  g_assert_cmpstr (name, ==, expected);
  g_assert_true (fs_names_parse_maildir (name, &uid, &uidvalidity, &flags, &forwarded, &has_info));
  g_assert_cmpuint (uid, ==, 42);
  g_assert_cmpuint (uidvalidity, ==, 1700000000);
  g_assert_cmpuint (flags, ==, row->flags);
  g_assert_cmpint (forwarded, ==, strchr (row->info, 'P') != NULL);
  g_assert_true (has_info);
}

static const struct
{
  const char *label, *name, *other;
  gboolean differ;
} maildir_size_cases[] = {
  { "size", "0000000042.17,S=99:2,S", "0000000042.17,S=1:2,S", TRUE },
  { "size-in-new", "0000000042.17,S=99", "0000000042.17,S=1", TRUE },
  { "flags", "0000000042.17,S=99:2,S", "0000000042.17,S=1:2,", FALSE },
  { "info", "0000000042.17,S=99", "0000000042.17,S=1:2,", FALSE },
  { "uid", "0000000042.17,S=99:2,S", "0000000043.17,S=1:2,S", FALSE },
  { "uidvalidity", "0000000042.17,S=99:2,S", "0000000042.179,S=1:2,S", FALSE },
  { "no-size", "0000000042.17,S=99:2,S", "0000000042.17:2,S", FALSE },
  { "wire-size", "0000000042.17,S=99:2,S", "0000000042.17,S=1,W=2:2,S", FALSE },
};

static void
test_maildir_size (gconstpointer data)
{
  const typeof (maildir_size_cases[0]) *row = data;

  g_assert_cmpint (fs_names_maildir_differ_in_size (row->name, row->other), ==, row->differ);
  g_assert_cmpint (fs_names_maildir_differ_in_size (row->other, row->name), ==, row->differ);
}

static const struct
{
  const char *label, *name;
  gboolean ok;
  guint8 flags;
  gboolean forwarded, has_info;
} maildir_parse_cases[] = {
  { "stem", "0000000042.17", TRUE, 0, FALSE, FALSE },
  { "size", "0000000042.17,S=99", TRUE, 0, FALSE, FALSE },
  { "size-and-wire-size", "0000000042.17,S=99,W=100:2,S", TRUE, MAIL_FLAG_SEEN, FALSE, TRUE },
  { "no-size", "0000000042.17:2,RS", TRUE, MAIL_FLAG_ANSWERED | MAIL_FLAG_SEEN, FALSE, TRUE },
  { "other-order", "0000000042.17,S=1:2,SFD", TRUE,
    MAIL_FLAG_SEEN | MAIL_FLAG_FLAGGED | MAIL_FLAG_DRAFT, FALSE, TRUE },
  { "unknown-letters", "0000000042.17,S=1:2,PSabZ", TRUE, MAIL_FLAG_SEEN, TRUE, TRUE },
  { "experimental-info", "0000000042.17,S=1:1,S", TRUE, 0, FALSE, TRUE },
  { "bare-colon", "0000000042.17,S=1:", TRUE, 0, FALSE, TRUE },
  { "empty-info", "0000000042.17,S=1:2,", TRUE, 0, FALSE, TRUE },
  { "huge-size", "0000000042.17,S=99999999999999999999999:2,", TRUE, 0, FALSE, TRUE },
  { "size-without-number", "0000000042.17,S=:2,S", FALSE },
  { "other-field", "0000000042.17,X=1:2,S", FALSE },
  { "flat", "0000000042.17.eml", FALSE },
  { "delivery", "1700000000.M1P2.host:2,S", FALSE },
  { "short-uid", "42.17,S=1:2,S", FALSE },
  { "uid-zero", "0000000000.17,S=1:2,S", FALSE },
  { "empty", "", FALSE },
};

static void
test_maildir_parse (gconstpointer data)
{
  const typeof (maildir_parse_cases[0]) *row = data;
  gboolean forwarded, has_info;
  guint32 uid, uidvalidity;
  guint8 flags;

  g_assert_cmpint (
      fs_names_parse_maildir (row->name, &uid, &uidvalidity, &flags, &forwarded, &has_info), ==,
      row->ok);
  g_assert_cmpint (fs_names_parse_maildir (row->name, NULL, NULL, NULL, NULL, NULL), ==, row->ok);
  if (!row->ok)
    return;
  g_assert_cmpuint (uid, ==, 42);
  g_assert_cmpuint (uidvalidity, ==, 17);
  g_assert_cmpuint (flags, ==, row->flags);
  g_assert_cmpint (forwarded, ==, row->forwarded);
  g_assert_cmpint (has_info, ==, row->has_info);
}

static void
test_maildir_info (void)
{
  gboolean forwarded, has_info;
  guint8 flags;

  fs_names_parse_maildir_info ("1700000000.M1P2.host:2,PRS", &flags, &forwarded, &has_info);
  g_assert_cmpuint (flags, ==, MAIL_FLAG_ANSWERED | MAIL_FLAG_SEEN);
  g_assert_true (forwarded && has_info);
  fs_names_parse_maildir_info ("1700000000.M1P2.host", &flags, &forwarded, &has_info);
  g_assert_cmpuint (flags, ==, 0);
  g_assert_false (forwarded || has_info);
}

static const struct
{
  const char *label, *name;
  gboolean temporary;
} temporary_cases[] = {
  { "rsync", ".0000000042.17.eml.Ab3xYz", TRUE },
  { "dot", ".hidden", TRUE },
  { "vim-swap", ".mail.eml.swp", TRUE },
  { "swap", "mail.swp", TRUE },
  { "swx", "mail.swx", TRUE },
  { "swo", "mail.swo", TRUE },
  { "backup", "mail.eml~", TRUE },
  { "vim-probe", "4913", TRUE },
  { "vim-probe-second", "5036", TRUE },
  { "number", "4914", FALSE },
  { "number-before", "4790", FALSE },
  { "number-zero", "04913", FALSE },
  { "gio", ".goutputstream-X1Y2Z3", TRUE },
  { "part", "mail.eml.part", TRUE },
  { "tmp", "mail.tmp", TRUE },
  { "finder", ".DS_Store", TRUE },
  { "sed", "sedAb3xYz", TRUE },
  { "sed-longer", "sedAb3xYz1", FALSE },
  { "sed-other", "sedAb3x-z", FALSE },
  { "emacs", "#mail.eml#", TRUE },
  { "hash", "#", FALSE },
  { "mkstemp", "mail.eml.Ab3xYz", TRUE },
  { "mkstemp-longer", "mail.eml.Ab3xYz7", FALSE },
  { "eml", "mail.eml", FALSE },
  { "message", "0000000042.17.eml", FALSE },
  { "maildir", "0000000042.17,S=1:2,S", FALSE },
  { "partly", "part", FALSE },
  { "words", "tmp", FALSE },
};

static void
test_temporary (gconstpointer data)
{
  const typeof (temporary_cases[0]) *row = data;

  g_assert_cmpint (fs_names_is_temporary (row->name), ==, row->temporary);
}

/* --- flags ---------------------------------------------------------------------------------- */

static const struct
{
  const char *label;
  guint8 flags;
  const char *keywords, *text;
} flags_text_cases[] = {
  { "none", 0, NULL, "" },
  { "one", MAIL_FLAG_SEEN, "", "\\Seen" },
  { "all", MAIL_FLAGS_ALL, NULL, "\\Answered \\Deleted \\Draft \\Flagged \\Seen" },
  { "keywords", MAIL_FLAG_SEEN | MAIL_FLAG_ANSWERED, "$Forwarded Work work2",
    "$Forwarded Work \\Answered \\Seen work2" },
};

static void
test_flags_text (gconstpointer data)
{
  const typeof (flags_text_cases[0]) *row = data;
  g_autofree char *text = fs_names_flags_text (row->flags, row->keywords);
  g_autofree char *keywords = NULL;
  g_autoptr (GError) error = NULL;
  guint8 flags;

  g_assert_cmpstr (text, ==, row->text);
  g_assert_true (fs_names_parse_flags (text, strlen (text), &flags, &keywords, &error));
  g_assert_no_error (error);
  g_assert_cmpuint (flags, ==, row->flags);
  g_assert_cmpstr (keywords, ==, row->keywords ? row->keywords : "");
}

#define TEXT(string) string, sizeof (string) - 1

static const struct
{
  const char *label, *text;
  gsize length;
  gboolean ok;
  guint8 flags;
  const char *keywords;
} flags_parse_cases[] = {
  { "empty", TEXT (""), TRUE, 0, "" },
  { "blank", TEXT (" \t\n"), TRUE, 0, "" },
  { "capitals", TEXT ("\\SEEN \\flagged"), TRUE, MAIL_FLAG_SEEN | MAIL_FLAG_FLAGGED, "" },
  { "recent", TEXT ("\\Recent \\Seen"), TRUE, MAIL_FLAG_SEEN, "" },
  { "newline", TEXT ("\\Seen\n"), TRUE, MAIL_FLAG_SEEN, "" },
  { "nul-at-end", TEXT ("\\Seen\0"), TRUE, MAIL_FLAG_SEEN, "" },
  { "sorted", TEXT ("work  $Junk Alpha"), TRUE, 0, "$Junk Alpha work" },
  { "twice", TEXT ("work Work work"), TRUE, 0, "Work" },
  { "nul-inside", TEXT ("\\Seen\0\\Draft"), FALSE },
  { "unknown-system", TEXT ("\\Sent"), FALSE },
  { "star", TEXT ("\\*"), FALSE },
  { "backslash-inside", TEXT ("a\\b"), FALSE },
  { "quote", TEXT ("a\"b"), FALSE },
  { "parenthesis", TEXT ("(work)"), FALSE },
  { "bracket", TEXT ("work]"), FALSE },
  { "brace", TEXT ("{3}"), FALSE },
  { "percent", TEXT ("50%"), FALSE },
  { "control", TEXT ("a\x01"), FALSE },
  { "eight-bit", TEXT ("wörk"), FALSE },
};

static void
test_flags_parse (gconstpointer data)
{
  const typeof (flags_parse_cases[0]) *row = data;
  /* Without a NUL behind it, so that reading too far is seen. */
  g_autofree char *text = g_memdup2 (row->text, row->length);
  g_autofree char *keywords = NULL;
  g_autoptr (GError) error = NULL;
  guint8 flags = 0;

  g_assert_cmpint (fs_names_parse_flags (text, row->length, &flags, &keywords, &error), ==,
                   row->ok);
  if (row->ok)
    {
      g_assert_no_error (error);
      g_assert_cmpuint (flags, ==, row->flags);
      g_assert_cmpstr (keywords, ==, row->keywords);
    }
  else
    {
      g_assert_error (error, MAIL_ERROR, MAIL_ERROR_INVALID);
      g_assert_null (keywords);
    }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  ADD_ROWS ("escape", escape_cases, test_escape);
  ADD_ROWS ("unescape-bad", unescape_bad_cases, test_unescape_bad);
  g_test_add_data_func ("/names/long/ascii", "x", test_long);
  g_test_add_data_func ("/names/long/umlaut", "ü", test_long);
  g_test_add_data_func ("/names/long/cjk", "台", test_long);
  g_test_add_data_func ("/names/long/escapes", "%", test_long);
  g_test_add_data_func ("/names/long/mixed", "a/台", test_long);
  g_test_add_func ("/names/longest", test_longest);
  g_test_add_data_func ("/names/injective/flat", GINT_TO_POINTER (FLAT), test_injective);
  g_test_add_data_func ("/names/injective/maildir", GINT_TO_POINTER (MAILDIR), test_injective);
  g_test_add_func ("/names/canonical", test_canonical);
  ADD_ROWS ("message", message_cases, test_message);
  g_test_add_func ("/names/pop", test_pop);
  ADD_ROWS ("maildir-make", maildir_make_cases, test_maildir_make);
  ADD_ROWS ("maildir-size", maildir_size_cases, test_maildir_size);
  ADD_ROWS ("maildir-parse", maildir_parse_cases, test_maildir_parse);
  g_test_add_func ("/names/maildir-info", test_maildir_info);
  ADD_ROWS ("temporary", temporary_cases, test_temporary);
  ADD_ROWS ("flags-text", flags_text_cases, test_flags_text);
  ADD_ROWS ("flags-parse", flags_parse_cases, test_flags_parse);
  return g_test_run ();
}
