/* SPDX-License-Identifier: MIT
 *
 * What UIDL, LIST and message headers say, lawful and not.
 */
#include "pop3/date.h"
#include "pop3/maildrop.h"

#include <string.h>

#define LONG71 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

/* Lines are divided by '\n'. expected: "NUMBER KEY SIZE", a line each, or NULL: an error. */
static const struct
{
  const char *name, *uidl, *list, *expected;
} maildrops[] = {
  { "empty", "", "", "" },
  { "two", "1 a\n2 b", "1 10\n2 20", "1 a 10\n2 b 20\n" },
  { "order", "2 b\n10 c\n1 a", "1 10\n10 30\n2 20", "1 a 10\n2 b 20\n10 c 30\n" },
  { "slash", "1 ../../etc/passwd", "1 1", "1 ../../etc/passwd 1\n" },
  { "spaces", "  1   a  ", " 1  10 ", "1 a 10\n" },
  { "repeated", "1 a\n2 b\n3 a\n4 a", "1 1\n2 2\n3 3\n4 4", "1 a 1\n2 b 2\n3 a 2 3\n4 a 3 4\n" },
  { "no-list", "1 a", NULL, "1 a 0\n" },
  { "size-text", "1 a", "1 10 octets", "1 a 10\n" },
  { "size-none", "1 a", "1", "1 a 0\n" },
  { "size-word", "1 a", "1 big", "1 a 0\n" },
  { "size-huge", "1 a", "1 99999999999999999999999", "1 a 1099511627775\n" },
  { "no-uidl", "1 ", "1 1", NULL },
  { "no-uidl-at-all", "1", "1 1", NULL },
  { "number-zero", "0 a", "0 1", NULL },
  { "number-max", "4294967295 a", "4294967295 1", NULL },
  { "number-beyond", "4294967296 a", "4294967296 1", NULL },
  { "number-high", "4294967294 a", "4294967294 1", "4294967294 a 1\n" },
  { "number-none", "a", "", NULL },
  { "number-negative", "-1 a", "", NULL },
  { "number-glued", "1a", "", NULL },
  { "number-twice", "1 a\n1 b", "1 1\n1 2", NULL },
  { "more-listed", "1 a", "1 1\n2 2", NULL },
  { "less-listed", "1 a\n2 b", "1 1", NULL },
  { "other-listed", "1 a", "2 1", NULL },
};

static gboolean
read_maildrop (Pop3Maildrop *maildrop, Pop3Labels *labels, const char *uidl, const char *list,
               GError **error)
{
  g_auto (GStrv) uidls = g_strsplit (uidl, "\n", -1);
  g_auto (GStrv) lists = g_strsplit (list != NULL ? list : "", "\n", -1);

  for (guint i = 0; uidls[i] != NULL; i++)
    if (uidl[0] != '\0' && !pop3_maildrop_add_uidl (maildrop, uidls[i], strlen (uidls[i]), error))
      return FALSE;
  for (guint i = 0; lists[i] != NULL; i++)
    if (list != NULL && list[0] != '\0'
        && !pop3_maildrop_add_list (maildrop, lists[i], strlen (lists[i]), error))
      return FALSE;
  return pop3_maildrop_finish (maildrop, labels, list != NULL, error);
}

/* "NUMBER KEY SIZE" lines; NULL with an error. */
static char *
describe (Pop3Labels *labels, const char *uidl, const char *list)
{
  g_autoptr (Pop3Maildrop) maildrop = pop3_maildrop_new ();
  g_autoptr (GError) error = NULL;
  GString *text;

  if (!read_maildrop (maildrop, labels, uidl, list, &error))
    {
      g_assert_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL);
      return NULL;
    }
  text = g_string_new (NULL);
  for (guint i = 0; i < pop3_maildrop_length (maildrop); i++)
    {
      const Pop3Message *message = pop3_maildrop_get (maildrop, i);
      g_assert_true (pop3_maildrop_find (maildrop, message->key) == message);
      g_string_append_printf (text, "%u %s %" G_GUINT64_FORMAT "\n", message->number, message->key,
                              message->size);
    }
  g_assert_null (pop3_maildrop_find (maildrop, "never"));
  return g_string_free (text, FALSE);
}

static void
test_maildrop (gconstpointer data)
{
  guint i = GPOINTER_TO_UINT (data);
  Pop3Labels *labels = pop3_labels_new ();
  g_autofree char *text = describe (labels, maildrops[i].uidl, maildrops[i].list);

  g_assert_cmpstr (text, ==, maildrops[i].expected);
  pop3_labels_free (labels);
}

/* Too long or not printable: a key of our own, the same each time, another for another. */
static void
test_unlawful (void)
{
  static const char *const uidls[] = { "1 " LONG71, "1 " LONG71 "b", "1 a b",
                                       "1 a\x01",   "1 \xc3\xa4",    "1 \x7f" };
  g_autoptr (GHashTable) seen = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);

  for (guint i = 0; i < G_N_ELEMENTS (uidls); i++)
    {
      Pop3Labels *labels = pop3_labels_new ();
      g_autofree char *once = describe (labels, uidls[i], "1 1");
      char *again = describe (labels, uidls[i], "1 1");

      g_assert_cmpstr (once, ==, again);
      g_assert_true (g_str_has_prefix (once, "1 sha256 "));
      g_assert_cmpuint (strlen (once), ==, strlen ("1 sha256  1\n") + 64);
      g_assert_true (g_hash_table_add (seen, again));
      pop3_labels_free (labels);
    }
}

/* The first of two copies removed by us, by others, and both. */
static void
test_labels (void)
{
  Pop3Labels *labels = pop3_labels_new ();
  static const struct
  {
    const char *removed, *uidl, *expected;
  } steps[] = {
    { NULL, "1 a\n2 a\n3 a", "1 a 0\n2 a 2 0\n3 a 3 0\n" },
    { "a", "1 a\n2 a", "1 a 2 0\n2 a 3 0\n" },
    { "a 3", "1 a", "1 a 2 0\n" },
    { NULL, "1 a\n2 a", "1 a 2 0\n2 a 3 0\n" },
    { NULL, "1 a", "1 a 2 0\n" }, /* the last goes when nobody says which */
  };

  for (guint i = 0; i < G_N_ELEMENTS (steps); i++)
    {
      g_autofree char *text = NULL;
      if (steps[i].removed != NULL)
        pop3_labels_removed (labels, steps[i].removed);
      text = describe (labels, steps[i].uidl, NULL);
      g_assert_cmpstr (text, ==, steps[i].expected);
    }
  pop3_labels_free (labels);
}

static gboolean
in_list (const char *key, gpointer user_data)
{
  return g_strv_contains (user_data, key);
}

/* What an earlier run called them, as far as the store still knows. */
static void
test_recall (void)
{
  static const struct
  {
    const char *uidl, *expected;
    const char *known[3];
  } cases[] = {
    { "1 a\n2 b", "a\nb\n", { "a", "b" } },   { "1 a\n2 b", "a\nb\n", { NULL } },
    { "1 a\n2 b", "a 2\nb\n", { "a 2" } },    /* its twin was removed */
    { "1 a\n2 b", "a\nb\n", { "a", "a 2" } }, /* or this one: nobody can tell */
    { "1 a\n2 a", "a\na 2\n", { "a" } },      /* a twin has come */
    { "1 a\n2 a", "a 2\na 3\n", { "a 2" } },  { "1 a\n2 a", "a 2\na 3\n", { "a 2", "a 3" } },
    { "1 a\n2 a", "a 3\na 4\n", { "a 3" } },
  };

  for (guint i = 0; i < G_N_ELEMENTS (cases); i++)
    {
      Pop3Labels *labels = pop3_labels_new ();

      /* The second session of a run goes on as the first began. */
      for (guint session = 0; session < 2; session++)
        {
          g_autoptr (Pop3Maildrop) maildrop = pop3_maildrop_new ();
          g_autoptr (GString) text = g_string_new (NULL);

          g_assert_true (read_maildrop (maildrop, labels, cases[i].uidl, NULL, NULL));
          pop3_maildrop_recall (maildrop, labels, in_list,
                                (gpointer)cases[session == 0 ? i : 0].known);
          for (guint n = 0; n < pop3_maildrop_length (maildrop); n++)
            {
              const Pop3Message *message = pop3_maildrop_get (maildrop, n);

              g_assert_true (pop3_maildrop_find (maildrop, message->key) == message);
              g_string_append_printf (text, "%s\n", message->key);
            }
          g_assert_cmpstr (text->str, ==, cases[i].expected);
        }
      pop3_labels_free (labels);
    }
}

/* A listing without end is cut off. */
static void
test_too_many (void)
{
  g_autoptr (Pop3Maildrop) maildrop = pop3_maildrop_new ();
  g_autoptr (GError) error = NULL;
  guint n = 0;

  while (n < 2000000 && pop3_maildrop_add_uidl (maildrop, "1 a", 3, &error))
    n++;
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL);
}

/* --- dates -------------------------------------------------------------------------------------
 */

#define NONE G_MININT64
#define T 1669059884 /* 2022-11-21 19:44:44 UTC */

static const struct
{
  const char *text;
  gint64 seconds;
} dates[] = {
  { "Mon, 21 Nov 2022 20:44:44 +0100", T },
  { "21 Nov 2022 19:44:44 +0000", T },
  { "Mon, 21 Nov 2022 14:44:44 EST", T },
  { "Mon, 21 Nov 2022 15:44:44 EDT (comment (nested \\) x) )", T },
  { "Mon,21 Nov 2022\r\n\t19:44:44 GMT", T },
  { "Mon, 21 Nov 22 19:44:44 UT", T },
  { "21 (day) Nov (month) 2022 19:44:44 Z", T },
  { "Mon Nov 21 19:44:44 2022", T },
  { "Mon Nov 21 19:44:44 GMT 2022", T },
  { "Mon Nov 21 20:44:44 +0100 2022", T },
  { "21-Nov-2022 19:44:44 +0000", T },
  { "Mon, 21 November 2022 19:44:44.123 -0000", T },
  { "Mon, 21 Nov 2022 20:44:44 +01:00", T },
  { "Mon, 21 Nov 2022 19:44:44", T },
  { "Mon, 21 Nov 2022 19:44:44 K", T },
  { "Mon, 21 Nov 2022 19:44 +0000", T - 44 },
  { "21 Nov 122 19:44:44", T },
  { "1 Jan 1970 00:00:00 +0000", 0 },
  { "29 Feb 2000 00:00:00 +0000", 951782400 },
  { "31 Dec 2016 23:59:60 +0000", 1483228800 },
  { "21 Nov 96 19:44:44 +0000", 848605484 },
  { "19 Jan 2038 03:14:08 +0000", 2147483648 },
  { "31 Dec 9999 23:59:59 +0000", 253402300799 },
  { "", NONE },
  { "yesterday", NONE },
  { "Mon, 32 Nov 2022 19:44:44 +0000", NONE },
  { "Mon, 31 Nov 2022 19:44:44 +0000", NONE },
  { "Mon, 0 Nov 2022 19:44:44 +0000", NONE },
  { "Mon, 21 Foo 2022 19:44:44 +0000", NONE },
  { "Mon, 21 Nov 2022", NONE },
  { "Mon, 21 Nov 2022 25:44:44 +0000", NONE },
  { "Mon, 21 Nov 2022 19:61:44 +0000", NONE },
  { "Mon, 21 Nov 1822 19:44:44 +0000", NONE },
  { "99999999999999999999999999", NONE },
  { "21 Nov 2022 19:", NONE },
  { "((((((((((((((((((((", NONE },
  { ":::::;;;;+++---", NONE },
};

static void
test_dates (void)
{
  for (guint i = 0; i < G_N_ELEMENTS (dates); i++)
    {
      gint64 seconds = NONE;
      gsize length = strlen (dates[i].text);
      g_autofree char *copy = g_memdup2 (dates[i].text, length); /* without a NUL */

      if (!pop3_date_parse (copy, length, &seconds))
        seconds = NONE;
      if (seconds != dates[i].seconds)
        g_test_message ("%s", dates[i].text);
      g_assert_cmpint (seconds, ==, dates[i].seconds);
      /* Cut anywhere, it is read without a step beyond. */
      for (gsize cut = 0; cut < length; cut++)
        {
          g_autofree char *part = g_memdup2 (dates[i].text, cut);
          pop3_date_parse (part, cut, &seconds);
        }
    }
}

#define D1 "Mon, 21 Nov 2022 20:44:44 +0100"
#define D2 "Tue, 22 Nov 2022 20:44:44 +0100"

static const struct
{
  const char *header;
  gint64 seconds;
} headers[] = {
  { "Received: from a by b; " D1 "\r\nReceived: from c by d; " D2 "\r\nDate: " D2 "\r\n\r\n", T },
  { "Received: from a\r\n\tby b (x; y);\r\n\t" D1 "\r\nDate: " D2 "\r\n\r\n", T },
  { "Date: " D2 "\r\nreceived : by b; " D1 "\r\n\r\n", T },
  { "Received: by b\r\nReceived: by b; nonsense\r\nReceived: by c; " D1 "\r\n", T },
  { "Received: by b; never\r\nDate: " D1 "\r\n\r\n", T },
  { "Subject: Date: " D2 "\r\nDate:" D1 "\r\n\r\n", T },
  { "Date: nonsense\r\nDate: " D1 "\r\n\r\n", T },
  { "Resent-Date: " D1 "\r\n\r\nDate: " D1 "\r\n", NONE },
  { "Date: " D1, T },
  { "Date: " D1 "\nX: y\n\n", T },
  { "", NONE },
  { "\r\nDate: " D1, NONE },
  { ":\r\n:::\r\nDate\r\n", NONE },
};

static void
test_headers (void)
{
  for (guint i = 0; i < G_N_ELEMENTS (headers); i++)
    {
      gsize length = strlen (headers[i].header);
      g_autofree char *copy = g_memdup2 (headers[i].header, length);
      gint64 seconds = NONE;

      if (!pop3_date_of_header (copy, length, &seconds))
        seconds = NONE;
      if (seconds != headers[i].seconds)
        g_test_message ("%s", headers[i].header);
      g_assert_cmpint (seconds, ==, headers[i].seconds);
    }
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (guint i = 0; i < G_N_ELEMENTS (maildrops); i++)
    {
      g_autofree char *path = g_strconcat ("/pop3/maildrop/", maildrops[i].name, NULL);
      g_test_add_data_func (path, GUINT_TO_POINTER (i), test_maildrop);
    }
  g_test_add_func ("/pop3/maildrop/unlawful", test_unlawful);
  g_test_add_func ("/pop3/maildrop/labels", test_labels);
  g_test_add_func ("/pop3/maildrop/recall", test_recall);
  g_test_add_func ("/pop3/maildrop/too-many", test_too_many);
  g_test_add_func ("/pop3/date/parse", test_dates);
  g_test_add_func ("/pop3/date/header", test_headers);
  return g_test_run ();
}
