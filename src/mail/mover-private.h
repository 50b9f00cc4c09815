/* SPDX-License-Identifier: MIT
 *
 * What the files of the mover share: mover.c (rounds: fetch, adopt, remove from the server),
 * mover-settle.c (the thread that waits for the disk), mover-list.c (what a listing means for what
 * is kept, and what the user removes). Net thread but for the settling.
 */
#pragma once

#include "mail/keep.h"
#include "mail/mover.h"

/* What the last listing showed and what we did about it. */
typedef struct
{
  gboolean removed; /* the server said that it removed it */
  guint n_removals;
} MailMoverState;

/* A message that was sent to us whole since the last listings. */
typedef struct
{
  gint64 at; /* monotonic µs */
  guint32 uid;
} MailMoverFetched;

typedef struct
{
  guint32 uid;
  MailKeepDraft *draft;
  MailKeepDraft *aside; /* the other message that is kept under this id, under another */
  gboolean compare;     /* the id is kept: these bytes are only looked at */
  gboolean whole;       /* all of it came */
  gboolean good;        /* what the server has is kept */
  gboolean damaged;     /* what is kept is not what it was */
} MailMoverItem;

typedef struct
{
  MailFetchSink sink;
  MailMover *mover; /* NULL: it is gone */
  MailStore *store;
  MailKeep *keep;
  MailMailbox *mailbox;
  char *name;
  guint32 content_id, uidvalidity;
  GArray *items;     /* of Item, by uid */
  GPtrArray *remove; /* ids */
  MailUidSet *uids;  /* of remove */
  gboolean pin;      /* from the cache, and nothing is removed */
} MailMoverRound;

struct MailMover
{
  MailStore *store;
  MailMailbox *mailbox; /* the one there is, once known */
  GHashTable
      *states;      /* id -> MailMoverState: what the last listing showed; NULL before the first */
  GPtrArray *todo;  /* ids of the last listing in its order, or NULL */
  guint next;       /* in todo */
  gboolean running; /* a round, or the pause before one */
  GSource *pause;
  GThread *thread;       /* settles a round */
  MailMoverRound *round; /* which it works on */
  GHashTable *fetched;   /* id -> MailMoverFetched */
  GHashTable *pinned;    /* id -> uid: hidden by the server, not kept yet */
  gboolean told_refusal, told_failure;
};

/* mover-list.c: NULL when the last listing did not have it. */
MailMoverState *mail_mover_state (MailMover *mover, const char *id);

/* mover.c: goes on with what is to be done, unless that is nothing. */
void mail_mover_next_round (MailMover *mover);

/* mover-settle.c, a thread's function: what came is on the disk; then settled, on the net thread.
 * The round is mover->round's until then; when the mover goes first, settled finds it without one.
 */
gpointer mail_mover_settle (gpointer round);
/* mover.c */
void mail_mover_settled (MailMoverRound *round);
void mail_mover_round_free (MailMoverRound *round);
