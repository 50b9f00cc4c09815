/* SPDX-License-Identifier: MIT
 *
 * Modified UTF-7: names both ways, and wire names that must be refused because they are not the one
 * spelling of anything.
 */
#include "imap/utf7.h"

#include <string.h>

static const struct
{
  const char *name, *utf8, *wire;
} both_ways[] = {
  { "empty", "", "" },
  { "ascii", "INBOX.Sent Items", "INBOX.Sent Items" },
  { "all printable", " !\"#$%'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~",
    " !\"#$%'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~" },
  { "ampersand", "R&D", "R&-D" },
  { "ampersands", "&&", "&-&-" },
  { "ampersand and minus", "&-", "&--" },
  { "rfc3501", "~peter/mail/\345\217\260\345\214\227/\346\227\245\346\234\254\350\252\236",
    "~peter/mail/&U,BTFw-/&ZeVnLIqe-" },
  { "umlaut", "Entw\303\274rfe", "Entw&APw-rfe" },
  { "two umlauts", "\303\244\303\266", "&AOQA9g-" },
  { "three umlauts", "\303\244\303\266\303\274", "&AOQA9gD8-" },
  { "umlaut and ampersand", "\303\244&", "&AOQ-&-" },
  { "umlaut and minus", "\303\244-", "&AOQ--" },
  { "cyrillic",
    "\320\236\321\202\320\277\321\200\320\260\320\262\320\273\320\265\320\275\320\275\321"
    "\213\320\265",
    "&BB4EQgQ,BEAEMAQyBDsENQQ9BD0ESwQ1-" },
  { "surrogates", "\360\237\230\200", "&2D3eAA-" },
  { "surrogates in text", "a\360\237\230\200b", "a&2D3eAA-b" },
  { "last code point", "\364\217\277\277", "&2,,f,w-" },
  { "first beyond the bmp", "\360\220\200\200", "&2ADcAA-" },
  { "around the surrogates", "\355\237\277\356\200\200", "&1,,gAA-" },
  { "control", "a\tb\177", "a&AAk-b&AH8-" },
  { "line end", "a\r\nb", "a&AA0ACg-b" },
};

static const struct
{
  const char *name, *wire;
} refused[] = {
  { "lone ampersand", "&" },
  { "not closed", "&AOQ" },
  { "not closed in text", "a&AOQ b" },
  { "8 bit", "Entw\303\274rfe" },
  { "8 bit inside", "&A\303\274-" },
  { "control", "a\tb" },
  { "line end", "a\r\nb" },
  { "printable encoded", "&AGE-" },
  { "ampersand encoded", "&ACY-" },
  { "space encoded", "&AOQAIA-" },
  { "two runs", "&AOQ-&APY-" },
  { "pad bits", "&AOR-" },
  { "superfluous digit", "&AOQA-" },
  { "one digit", "&A-" },
  { "two digits", "&AA-" },
  { "nul", "&AAA-" },
  { "nul in text", "&AOQAAAD2-" },
  { "slash instead of comma", "&U/BTFw-" },
  { "equals", "&AOQ=-" },
  { "lone high surrogate", "&2D0-" },
  { "lone low surrogate", "&3gA-" },
  { "surrogates swapped", "&3gDYPQ-" },
  { "high and letter", "&2D0A5A-" },
  { "two high", "&2D3YPQ-" },
};

static void
test_both (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autofree char *wire = imap_utf7_encode (both_ways[i].utf8);
  g_autofree char *utf8 = imap_utf7_decode (both_ways[i].wire);

  g_assert_cmpstr (wire, ==, both_ways[i].wire);
  g_assert_cmpstr (utf8, ==, both_ways[i].utf8);
}

static void
test_refused (gconstpointer data)
{
  g_autofree char *utf8 = imap_utf7_decode (data);

  g_assert_cmpstr (utf8, ==, NULL);
}

static void
test_invalid_utf8 (void)
{
  g_assert_null (imap_utf7_encode ("\377"));
  g_assert_null (imap_utf7_encode ("a\303"));
  g_assert_null (imap_utf7_encode ("\355\240\275")); /* a surrogate */
  g_assert_null (imap_utf7_encode ("\300\200"));     /* an overlong NUL */
}

/* Every code point there is, alone and between letters. */
static void
test_all_code_points (void)
{
  for (gunichar c = 1; c <= 0x10ffff; c += c < 0x3000 ? 1 : 61)
    {
      char utf8[16] = "x";
      int n = 1;

      if (!g_unichar_validate (c))
        continue;
      n += g_unichar_to_utf8 (c, utf8 + n);
      memcpy (utf8 + n, "y", 2);
      for (const char *text = utf8; text <= utf8 + 1; text++)
        {
          g_autofree char *wire = imap_utf7_encode (text);
          g_autofree char *again = imap_utf7_decode (wire);

          g_assert_cmpstr (again, ==, text);
          for (const char *at = wire; *at != '\0'; at++)
            g_assert_true (*at >= 0x20 && *at < 0x7f);
        }
    }
}

/* Whatever random bytes decode to, it encodes to the same bytes. */
static void
test_random (void)
{
  static const char alphabet[] = "&-AOQ9gD8,+2/d3e y";
  guint n_decoded = 0;

  for (int i = 0; i < 300000; i++)
    {
      char wire[12];
      int length = g_test_rand_int_range (1, sizeof wire);
      g_autofree char *utf8 = NULL;

      for (int k = 0; k < length; k++)
        wire[k] = alphabet[g_test_rand_int_range (0, sizeof alphabet - 1)];
      wire[length] = '\0';
      utf8 = imap_utf7_decode (wire);
      if (utf8 != NULL)
        {
          g_autofree char *again = imap_utf7_encode (utf8);

          g_assert_cmpstr (again, ==, wire);
          n_decoded++;
        }
    }
  g_assert_cmpuint (n_decoded, >, 100);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (gsize i = 0; i < G_N_ELEMENTS (both_ways); i++)
    {
      g_autofree char *path = g_strdup_printf ("/imap/utf7/%s", both_ways[i].name);

      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_both);
    }
  for (gsize i = 0; i < G_N_ELEMENTS (refused); i++)
    {
      g_autofree char *path = g_strdup_printf ("/imap/utf7/refused/%s", refused[i].name);

      g_test_add_data_func (path, refused[i].wire, test_refused);
    }
  g_test_add_func ("/imap/utf7/invalid utf8", test_invalid_utf8);
  g_test_add_func ("/imap/utf7/code points", test_all_code_points);
  g_test_add_func ("/imap/utf7/random", test_random);
  return g_test_run ();
}
