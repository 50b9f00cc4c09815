/* SPDX-License-Identifier: MIT
 *
 * MailUidSet: sets of UIDs kept as ranges and never expanded, so that `1:4294967295` costs eight
 * bytes. Two shapes share the type: a normal set is sorted, disjoint and merged, which is what
 * every function here makes and expects unless it says otherwise; a list in wire order is what
 * COPYUID and APPENDUID need, where the n-th UID of one list belongs to the n-th of the other. No
 * I/O, any thread, no locks.
 */
#pragma once

#include "mailfs/backend.h"

MailUidSet *mail_uid_set_new (void);
MailUidSet *mail_uid_set_copy (const MailUidSet *set);
void mail_uid_set_free (MailUidSet *set); /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (MailUidSet, mail_uid_set_free)

/* Element access for a GArray of MailUidRange. */
#define mail_uid_set_range(set, i) (&g_array_index ((set), MailUidRange, (i)))

/* first and last in any order, both >= 1 (0 is ignored). Constant time at the end of the set,
 * otherwise a binary search and one move: to fill a large set in random order use append and
 * normalize. */
void mail_uid_set_add (MailUidSet *set, guint32 first, guint32 last);
void mail_uid_set_add_set (MailUidSet *set, const MailUidSet *other);
/* Puts a range at the end without sorting (merged with the last one when it continues it upwards);
 * the set is a normal one again only after normalize. */
void mail_uid_set_append (MailUidSet *set, guint32 first, guint32 last);
void mail_uid_set_normalize (MailUidSet *set);
/* For UIDs that come one by one in any order, as a server likes: append, and normalize whenever the
 * set has doubled since *n_normal (start with 0), so that neither time nor memory run away. A last
 * normalize makes it a normal set. */
void mail_uid_set_gather (MailUidSet *set, guint32 first, guint32 last, guint *n_normal);

void mail_uid_set_remove (MailUidSet *set, guint32 first, guint32 last);
void mail_uid_set_remove_set (MailUidSet *set, const MailUidSet *other);
/* What is in both; a new set. */
MailUidSet *mail_uid_set_intersect (const MailUidSet *a, const MailUidSet *b);

gboolean mail_uid_set_contains (const MailUidSet *set, guint32 uid);
gboolean mail_uid_set_equal (const MailUidSet *a, const MailUidSet *b);
/* How many UIDs; works for lists in wire order too. */
guint64 mail_uid_set_count (const MailUidSet *set);

/* RFC 9051 sequence-set without `*`: numbers 1..4294967295, ranges in either direction, commas; no
 * spaces, nothing empty (so no trailing comma). NULL for anything else. length -1: NUL-terminated.
 * parse gives a normal set, parse_list keeps the order of the wire (each range turned upwards). */
MailUidSet *mail_uid_set_parse (const char *text, gssize length);
MailUidSet *mail_uid_set_parse_list (const char *text, gssize length);
/* "1:3,7" or "" for an empty set; the caller's. */
char *mail_uid_set_format (const MailUidSet *set);
void mail_uid_ranges_format (GString *out, const MailUidRange *ranges, guint n_ranges);

/* Pairs of two lists in wire order: the n-th UID of `from` became the n-th of `to`. A GArray of
 * MailUidPair (g_array_unref), or NULL when the counts differ or exceed max_pairs. */
GArray *mail_uid_set_pair (const MailUidSet *from, const MailUidSet *to, guint max_pairs);

/* Walks the UIDs one by one:
 *   MailUidIter iter = { .set = set };
 *   for (guint32 uid; (uid = mail_uid_iter_next (&iter)) != 0;) */
typedef struct
{
  const MailUidSet *set;
  guint index;   /* the range we are in */
  guint32 taken; /* how many of it were given out */
} MailUidIter;
guint32 mail_uid_iter_next (MailUidIter *iter); /* 0 at the end */
