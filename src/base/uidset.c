/* SPDX-License-Identifier: MIT
 *
 * MailUidSet: ranges of UIDs, sorted and merged, or in wire order where two lists belong together.
 * Never expands a range. No I/O, no locks, any thread.
 */
#include "mailfs/uidset.h"

#include <string.h>

MailUidSet *
mail_uid_set_new (void)
{
  return g_array_new (FALSE, FALSE, sizeof (MailUidRange));
}

MailUidSet *
mail_uid_set_copy (const MailUidSet *set)
{
  MailUidSet *copy = g_array_sized_new (FALSE, FALSE, sizeof (MailUidRange), set->len);

  if (set->len > 0)
    g_array_append_vals (copy, set->data, set->len);
  return copy;
}

void
mail_uid_set_free (MailUidSet *set)
{
  if (set != NULL)
    g_array_unref (set);
}

/* The first range whose end is at or behind uid; set->len when there is none. */
static guint
find_range (const MailUidSet *set, guint32 uid)
{
  guint low = 0, high = set->len;

  while (low < high)
    {
      guint middle = low + (high - low) / 2;

      if (mail_uid_set_range (set, middle)->last < uid)
        low = middle + 1;
      else
        high = middle;
    }
  return low;
}

static gboolean
order_range (guint32 *first, guint32 *last)
{
  if (*first == 0 || *last == 0)
    return FALSE;
  if (*first > *last)
    {
      guint32 swap = *first;

      *first = *last;
      *last = swap;
    }
  return TRUE;
}

void
mail_uid_set_add (MailUidSet *set, guint32 first, guint32 last)
{
  guint begin, end;

  if (!order_range (&first, &last))
    return;
  /* Everything that overlaps or touches [first, last] melts into one range. */
  begin = find_range (set, first > 1 ? first - 1 : 1);
  for (end = begin; end < set->len; end++)
    {
      const MailUidRange *range = mail_uid_set_range (set, end);

      if (last != G_MAXUINT32 && range->first > last + 1)
        break;
      first = MIN (first, range->first);
      last = MAX (last, range->last);
    }
  if (begin == end)
    {
      MailUidRange range = { first, last };

      g_array_insert_val (set, begin, range);
      return;
    }
  *mail_uid_set_range (set, begin) = (MailUidRange) { first, last };
  if (end - begin > 1)
    g_array_remove_range (set, begin + 1, end - begin - 1);
}

void
mail_uid_set_add_set (MailUidSet *set, const MailUidSet *other)
{
  if (other->len == 0)
    return;
  g_array_append_vals (set, other->data, other->len);
  mail_uid_set_normalize (set);
}

void
mail_uid_set_append (MailUidSet *set, guint32 first, guint32 last)
{
  if (!order_range (&first, &last))
    return;
  if (set->len > 0)
    {
      MailUidRange *tail = mail_uid_set_range (set, set->len - 1);

      if (tail->last != G_MAXUINT32 && first == tail->last + 1)
        {
          tail->last = last;
          return;
        }
    }
  g_array_append_val (set, ((MailUidRange) { first, last }));
}

static int
compare_ranges (gconstpointer a, gconstpointer b)
{
  const MailUidRange *x = a, *y = b;

  return (x->first > y->first) - (x->first < y->first);
}

static gboolean
is_normal (const MailUidSet *set)
{
  for (guint i = 1; i < set->len; i++)
    {
      const MailUidRange *before = mail_uid_set_range (set, i - 1);

      if (before->last == G_MAXUINT32 || mail_uid_set_range (set, i)->first <= before->last + 1)
        return FALSE;
    }
  return TRUE;
}

void
mail_uid_set_normalize (MailUidSet *set)
{
  guint kept = 0;

  if (is_normal (set))
    return;
  g_array_sort (set, compare_ranges);
  for (guint i = 1; i < set->len; i++)
    {
      const MailUidRange *range = mail_uid_set_range (set, i);
      MailUidRange *tail = mail_uid_set_range (set, kept);

      if (tail->last == G_MAXUINT32 || range->first <= tail->last + 1)
        tail->last = MAX (tail->last, range->last);
      else
        *mail_uid_set_range (set, ++kept) = *range;
    }
  g_array_set_size (set, kept + 1);
}

void
mail_uid_set_gather (MailUidSet *set, guint32 first, guint32 last, guint *n_normal)
{
  mail_uid_set_append (set, first, last);
  if (set->len <= *n_normal * 2 + 1024)
    return;
  mail_uid_set_normalize (set);
  *n_normal = set->len;
}

void
mail_uid_set_remove (MailUidSet *set, guint32 first, guint32 last)
{
  guint begin, end;

  if (!order_range (&first, &last))
    return;
  begin = find_range (set, first);
  if (begin < set->len && mail_uid_set_range (set, begin)->first < first)
    {
      MailUidRange *range = mail_uid_set_range (set, begin);
      MailUidRange tail = { 0, range->last };

      range->last = first - 1;
      begin++;
      if (tail.last > last) /* a hole inside one range */
        {
          tail.first = last + 1;
          g_array_insert_val (set, begin, tail);
          return;
        }
    }
  for (end = begin; end < set->len && mail_uid_set_range (set, end)->last <= last; end++)
    ;
  if (end < set->len && mail_uid_set_range (set, end)->first <= last)
    mail_uid_set_range (set, end)->first = last + 1;
  if (end > begin)
    g_array_remove_range (set, begin, end - begin);
}

void
mail_uid_set_remove_set (MailUidSet *set, const MailUidSet *other)
{
  g_autoptr (MailUidSet) rest = mail_uid_set_new ();
  guint j = 0;

  for (guint i = 0; i < set->len; i++)
    {
      const MailUidRange *range = mail_uid_set_range (set, i);
      guint64 from = range->first; /* 64 bits: may step past the last UID */

      while (j < other->len && mail_uid_set_range (other, j)->last < from)
        j++;
      for (guint k = j; k < other->len && from <= range->last; k++)
        {
          const MailUidRange *hole = mail_uid_set_range (other, k);

          if (hole->first > range->last)
            break;
          if (hole->first > from)
            g_array_append_val (rest, ((MailUidRange) { (guint32)from, hole->first - 1 }));
          from = (guint64)hole->last + 1;
          j = k;
        }
      if (from <= range->last)
        g_array_append_val (rest, ((MailUidRange) { (guint32)from, range->last }));
    }
  g_array_set_size (set, 0);
  if (rest->len > 0)
    g_array_append_vals (set, rest->data, rest->len);
}

MailUidSet *
mail_uid_set_intersect (const MailUidSet *a, const MailUidSet *b)
{
  MailUidSet *both = mail_uid_set_new ();
  guint i = 0, j = 0;

  while (i < a->len && j < b->len)
    {
      const MailUidRange *x = mail_uid_set_range (a, i), *y = mail_uid_set_range (b, j);
      MailUidRange common = { MAX (x->first, y->first), MIN (x->last, y->last) };

      if (common.first <= common.last)
        g_array_append_val (both, common);
      if (x->last < y->last)
        i++;
      else
        j++;
    }
  return both;
}

gboolean
mail_uid_set_contains (const MailUidSet *set, guint32 uid)
{
  guint index;

  if (uid == 0)
    return FALSE;
  index = find_range (set, uid);
  return index < set->len && mail_uid_set_range (set, index)->first <= uid;
}

gboolean
mail_uid_set_equal (const MailUidSet *a, const MailUidSet *b)
{
  return a->len == b->len
         && (a->len == 0 || memcmp (a->data, b->data, a->len * sizeof (MailUidRange)) == 0);
}

guint64
mail_uid_set_count (const MailUidSet *set)
{
  guint64 count = 0;

  for (guint i = 0; i < set->len; i++)
    {
      const MailUidRange *range = mail_uid_set_range (set, i);

      count += (guint64)range->last - range->first + 1;
    }
  return count;
}

/* A number 1..2^32-1 at *at; moves *at behind it. 0 for none. */
static guint32
parse_number (const char **at, const char *end)
{
  guint64 number = 0;

  while (*at < end && **at >= '0' && **at <= '9')
    {
      number = number * 10 + (guint64)(**at - '0');
      if (number > G_MAXUINT32)
        return 0;
      (*at)++;
    }
  return (guint32)number;
}

MailUidSet *
mail_uid_set_parse_list (const char *text, gssize length)
{
  g_autoptr (MailUidSet) set = mail_uid_set_new ();
  const char *at = text, *end = text + (length < 0 ? strlen (text) : (gsize)length);

  for (;;)
    {
      guint32 first = parse_number (&at, end), last = first;

      if (first != 0 && at < end && *at == ':')
        {
          at++;
          last = parse_number (&at, end);
        }
      if (first == 0 || last == 0)
        return NULL;
      mail_uid_set_append (set, first, last);
      if (at == end)
        return g_steal_pointer (&set);
      if (*at++ != ',')
        return NULL;
    }
}

MailUidSet *
mail_uid_set_parse (const char *text, gssize length)
{
  MailUidSet *set = mail_uid_set_parse_list (text, length);

  if (set != NULL)
    mail_uid_set_normalize (set);
  return set;
}

void
mail_uid_ranges_format (GString *out, const MailUidRange *ranges, guint n_ranges)
{
  for (guint i = 0; i < n_ranges; i++)
    {
      if (i > 0)
        g_string_append_c (out, ',');
      g_string_append_printf (out, "%u", ranges[i].first);
      if (ranges[i].last != ranges[i].first)
        g_string_append_printf (out, ":%u", ranges[i].last);
    }
}

char *
mail_uid_set_format (const MailUidSet *set)
{
  GString *out = g_string_new (NULL);

  mail_uid_ranges_format (out, (const MailUidRange *)(gconstpointer)set->data, set->len);
  return g_string_free (out, FALSE);
}

GArray *
mail_uid_set_pair (const MailUidSet *from, const MailUidSet *to, guint max_pairs)
{
  MailUidIter sources = { .set = from }, targets = { .set = to };
  guint64 count = mail_uid_set_count (from);
  GArray *pairs;

  if (count > max_pairs || count != mail_uid_set_count (to))
    return NULL;
  pairs = g_array_sized_new (FALSE, FALSE, sizeof (MailUidPair), (guint)count);
  for (guint64 i = 0; i < count; i++)
    {
      MailUidPair pair = { mail_uid_iter_next (&sources), mail_uid_iter_next (&targets) };

      g_array_append_val (pairs, pair);
    }
  return pairs;
}

guint32
mail_uid_iter_next (MailUidIter *iter)
{
  const MailUidRange *range;
  guint32 uid;

  if (iter->index >= iter->set->len)
    return 0;
  range = mail_uid_set_range (iter->set, iter->index);
  uid = range->first + iter->taken;
  if (uid == range->last)
    {
      iter->index++;
      iter->taken = 0;
    }
  else
    iter->taken++;
  return uid;
}
