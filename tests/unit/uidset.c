/* SPDX-License-Identifier: MIT
 *
 * MailUidSet: parsing, and every operation against a plain array of booleans.
 */
#include "mailfs/uidset.h"

#include <string.h>

static const struct
{
  const char *name, *text, *normal, *list;
} parse_cases[] = {
  { "one", "5", "5", "5" },
  { "range", "5:7", "5:7", "5:7" },
  { "backwards", "7:5", "5:7", "5:7" },
  { "order", "9,3,4,1:2", "1:4,9", "9,3:4,1:2" },
  { "overlap", "1:5,3:9,9,10", "1:10", "1:5,3:9,9:10" },
  { "all", "1:4294967295", "1:4294967295", "1:4294967295" },
  { "all twice", "1:4294967295,4294967295,1", "1:4294967295", "1:4294967295,4294967295,1" },
  { "end", "4294967294,4294967295", "4294967294:4294967295", "4294967294:4294967295" },
  { "leading zero", "007", "7", "7" },
  { "empty", "", NULL, NULL },
  { "zero", "0", NULL, NULL },
  { "zero in range", "0:5", NULL, NULL },
  { "star", "*", NULL, NULL },
  { "to star", "1:*", NULL, NULL },
  { "trailing comma", "1,2,", NULL, NULL },
  { "leading comma", ",1", NULL, NULL },
  { "two commas", "1,,2", NULL, NULL },
  { "open range", "1:", NULL, NULL },
  { "headless range", ":1", NULL, NULL },
  { "range of ranges", "1:2:3", NULL, NULL },
  { "33 bits", "4294967296", NULL, NULL },
  { "65 bits", "18446744073709551617", NULL, NULL },
  { "negative", "-1", NULL, NULL },
  { "plus", "+1", NULL, NULL },
  { "space", "1 2", NULL, NULL },
  { "word", "x", NULL, NULL },
};

static void
check_text (MailUidSet *set, const char *want)
{
  g_autofree char *text = set != NULL ? mail_uid_set_format (set) : NULL;

  g_assert_cmpstr (text, ==, want);
  mail_uid_set_free (set);
}

static void
test_parse (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);

  check_text (mail_uid_set_parse (parse_cases[i].text, -1), parse_cases[i].normal);
  check_text (mail_uid_set_parse_list (parse_cases[i].text, -1), parse_cases[i].list);
}

static void
test_parse_length (void)
{
  check_text (mail_uid_set_parse ("12,34", 4), "3,12");
  check_text (mail_uid_set_parse ("12,34", 2), "12");
  check_text (mail_uid_set_parse ("12,34", 0), NULL);
}

/* --- against an array of booleans; UIDs 1..LAST --- */

#define LAST 40

static void
check_model (const MailUidSet *set, const gboolean *model)
{
  guint64 count = 0;
  MailUidIter iter = { .set = set };

  for (guint32 uid = 1; uid <= LAST; uid++)
    {
      g_assert_cmpint (mail_uid_set_contains (set, uid), ==, model[uid]);
      if (!model[uid])
        continue;
      count++;
      g_assert_cmpuint (mail_uid_iter_next (&iter), ==, uid);
    }
  g_assert_cmpuint (mail_uid_iter_next (&iter), ==, 0);
  g_assert_cmpuint (mail_uid_set_count (set), ==, count);
  g_assert_false (mail_uid_set_contains (set, 0));
  for (guint i = 0; i < set->len; i++)
    {
      const MailUidRange *range = mail_uid_set_range (set, i);

      g_assert_cmpuint (range->first, <=, range->last);
      if (i > 0) /* disjoint, and nothing that could be one range is two */
        g_assert_cmpuint (range->first, >, mail_uid_set_range (set, i - 1)->last + 1);
    }
}

static void
random_change (MailUidSet *set, gboolean *model)
{
  guint32 first = (guint32)g_test_rand_int_range (1, LAST + 1);
  guint32 last = (guint32)g_test_rand_int_range ((gint32)first, (gint32)MIN (first + 6, LAST) + 1);
  gboolean add = g_test_rand_bit ();

  if (add && g_test_rand_bit ())
    mail_uid_set_add (set, last, first);
  else if (add)
    {
      mail_uid_set_append (set, first, last);
      mail_uid_set_normalize (set);
    }
  else
    mail_uid_set_remove (set, first, last);
  for (guint32 uid = first; uid <= last; uid++)
    model[uid] = add;
}

static void
test_changes (void)
{
  for (int round = 0; round < 200; round++)
    {
      g_autoptr (MailUidSet) set = mail_uid_set_new ();
      gboolean model[LAST + 1] = { FALSE };

      for (int i = 0; i < 40; i++)
        {
          random_change (set, model);
          check_model (set, model);
        }
    }
}

static void
test_two_sets (void)
{
  for (int round = 0; round < 1000; round++)
    {
      g_autoptr (MailUidSet) a = mail_uid_set_new ();
      g_autoptr (MailUidSet) b = mail_uid_set_new ();
      g_autoptr (MailUidSet) sum = NULL, rest = NULL, both = NULL;
      gboolean model_a[LAST + 1] = { FALSE }, model_b[LAST + 1] = { FALSE };
      gboolean model_sum[LAST + 1], model_rest[LAST + 1], model_both[LAST + 1];

      for (int i = 0; i < 12; i++)
        {
          random_change (a, model_a);
          random_change (b, model_b);
        }
      for (int uid = 0; uid <= LAST; uid++)
        {
          model_sum[uid] = model_a[uid] || model_b[uid];
          model_rest[uid] = model_a[uid] && !model_b[uid];
          model_both[uid] = model_a[uid] && model_b[uid];
        }
      sum = mail_uid_set_copy (a);
      mail_uid_set_add_set (sum, b);
      check_model (sum, model_sum);
      rest = mail_uid_set_copy (a);
      mail_uid_set_remove_set (rest, b);
      check_model (rest, model_rest);
      both = mail_uid_set_intersect (a, b);
      check_model (both, model_both);
      g_assert_cmpint (mail_uid_set_equal (a, b), ==,
                       memcmp (model_a, model_b, sizeof model_a) == 0);
    }
}

static void
test_edges (void)
{
  g_autoptr (MailUidSet) set = mail_uid_set_new ();
  g_autoptr (MailUidSet) all = mail_uid_set_parse ("1:4294967295", -1);
  g_autofree char *text = NULL;

  mail_uid_set_add (set, 0, 5);
  mail_uid_set_add (set, 5, 0);
  mail_uid_set_append (set, 0, 0);
  mail_uid_set_remove (set, 0, 5);
  g_assert_cmpuint (set->len, ==, 0);
  g_assert_cmpuint (mail_uid_set_count (all), ==, G_MAXUINT32);
  mail_uid_set_add (set, G_MAXUINT32, G_MAXUINT32);
  mail_uid_set_add (set, 1, 1);
  mail_uid_set_append (set, 1, G_MAXUINT32);
  mail_uid_set_normalize (set);
  g_assert_true (mail_uid_set_equal (set, all));
  mail_uid_set_remove (set, 2, G_MAXUINT32 - 1);
  text = mail_uid_set_format (set);
  g_assert_cmpstr (text, ==, "1,4294967295");
  mail_uid_set_remove_set (set, all);
  g_assert_cmpuint (set->len, ==, 0);
  mail_uid_set_add_set (set, all);
  mail_uid_set_remove (set, 1, G_MAXUINT32);
  g_assert_cmpuint (set->len, ==, 0);
}

/* The worst order for a sorted array, and one UID again and again: neither slow nor large. */
static void
test_gather (void)
{
  g_autoptr (MailUidSet) set = mail_uid_set_new ();
  g_autoptr (MailUidSet) same = mail_uid_set_new ();
  guint n_normal = 0, n_same = 0;

  for (guint32 uid = 2000000; uid > 0; uid -= 2)
    mail_uid_set_gather (set, uid, uid, &n_normal);
  mail_uid_set_normalize (set);
  g_assert_cmpuint (set->len, ==, 1000000);
  g_assert_cmpuint (mail_uid_set_count (set), ==, 1000000);
  for (guint i = 0; i < 1000000; i++)
    {
      mail_uid_set_gather (same, 1 + i % 3 * 2, 1 + i % 3 * 2, &n_same);
      g_assert_cmpuint (same->len, <=, 1100);
    }
  mail_uid_set_normalize (same);
  g_assert_cmpuint (same->len, ==, 3);
}

static const struct
{
  const char *name, *from, *to;
  guint max;
  const char *pairs;
} pair_cases[] = {
  { "rfc4315", "304,319:320", "3956:3958", 100, "304>3956 319>3957 320>3958 " },
  { "wire order", "9,3", "10:11", 100, "9>10 3>11 " },
  { "exactly max", "1:3", "7:9", 3, "1>7 2>8 3>9 " },
  { "above max", "1:4", "7:10", 3, NULL },
  { "unequal", "1:3", "7:8", 100, NULL },
  { "everything", "1:4294967295", "1:4294967295", 100000, NULL },
};

static void
test_pairs (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autoptr (MailUidSet) from = mail_uid_set_parse_list (pair_cases[i].from, -1);
  g_autoptr (MailUidSet) to = mail_uid_set_parse_list (pair_cases[i].to, -1);
  g_autoptr (GArray) pairs = mail_uid_set_pair (from, to, pair_cases[i].max);
  g_autoptr (GString) text = g_string_new (NULL);

  for (guint k = 0; pairs != NULL && k < pairs->len; k++)
    g_string_append_printf (text, "%u>%u ", g_array_index (pairs, MailUidPair, k).from,
                            g_array_index (pairs, MailUidPair, k).to);
  g_assert_cmpstr (pairs != NULL ? text->str : NULL, ==, pair_cases[i].pairs);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (gsize i = 0; i < G_N_ELEMENTS (parse_cases); i++)
    {
      g_autofree char *path = g_strdup_printf ("/uidset/parse/%s", parse_cases[i].name);

      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_parse);
    }
  for (gsize i = 0; i < G_N_ELEMENTS (pair_cases); i++)
    {
      g_autofree char *path = g_strdup_printf ("/uidset/pair/%s", pair_cases[i].name);

      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_pairs);
    }
  g_test_add_func ("/uidset/parse length", test_parse_length);
  g_test_add_func ("/uidset/changes", test_changes);
  g_test_add_func ("/uidset/two sets", test_two_sets);
  g_test_add_func ("/uidset/edges", test_edges);
  g_test_add_func ("/uidset/gather", test_gather);
  return g_test_run ();
}
