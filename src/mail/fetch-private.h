/* SPDX-License-Identifier: MIT
 *
 * Reading a message, between claims.c (who fetches and waits for what), fetch.c (requests and the
 * bytes that arrive) and read.c (what is asked for).
 */
#pragma once

#include "mail/store-private.h"

#define MAIL_N_WALKS 16u

typedef struct
{
  guint64 start, end;
} MailClaim;

/* A message that somebody fetches or waits for; under fetches->lock. */
typedef struct
{
  guint64 key;
  guint64 size; /* as claimed when this began */
  MailCacheFile *file;
  GQueue waiters; /* MailWaiter links */
  GArray *claims; /* of MailClaim */
  gboolean hand_on; /* to the kernel, should it come before a reader does */
} MailPending;

/* Somebody reads a large message from front to back; under fetches->lock. */
typedef struct
{
  guint64 key;
  guint64 next;    /* where the reader goes on if he does */
  guint64 fetched; /* how far has been asked for */
  guint64 window;  /* 0: not known to be a walk */
  gint64 asked_at; /* when more was last asked for */
  gint64 used;
} MailWalk;

struct MailFetches
{
  MailStore *store;
  GMutex lock;
  GHashTable *pending; /* key (pointer into MailPending) -> MailPending */
  MailWalk walks[MAIL_N_WALKS];
  gint no_prefixes; /* atomic: this server's heads are not the start of its messages */

  GHashTable *in_vain; /* key (owned gint64) -> gint64, when a reader of it gave up; under lock */
  gboolean watched;  /* patience runs, or is about to; under lock */
  GSource *patience; /* net thread, as all below; looks at who waits for how long */
  gint64 looked_at;  /* monotonic µs, its last look */
  gint64 moved_at;   /* when something last moved that somebody waits for */
  guint64 moved_bytes, bytes_out, bytes_in; /* since then; counters as of the last look */
};

/* One request to the backend and where its bytes go; net thread after start. */
typedef struct
{
  MailFetchSink sink;
  MailFetches *fetches;
  MailMailbox *mailbox;
  guint32 content_id;
  guint64 start, end; /* of each message; end MAIL_TO_END: the rest */
  guint64 claim_end;  /* of the claim that goes when the message is done, usually end */
  guint64 true_end; /* this only looks whether the start is still the same: then that is the end */
  MailPriority priority;
  gint64 asked_at; /* monotonic µs */
  GArray *uids; /* of guint32, ascending: what has not finished yet */
  guint64 cost; /* about so many bytes were asked for ahead */

  guint32 uid; /* the message that is arriving, 0: none */
  MailCacheFile *file;
  GByteArray *small;    /* its bytes from offset 0 while they are few, or come quickly */
  gint64 begun_at;      /* monotonic µs: its first byte came */
  guint64 first_offset; /* where its bytes began */
  guint64 wire_offset;  /* bytes of it seen so far */
  guint64 lf_offset;    /* eol=lf: bytes written */
  gboolean held_cr;     /* eol=lf: a CR whose next byte has not come yet */
  GError *error;        /* this message failed locally; the rest of it is ignored */
} MailFetch;

guint64 mail_fetch_key (guint32 content_id, guint32 uid);

/* --- claims.c; the lock of fetches held, except for has_range ------------------------------- */

/* Whether a read can be answered: who reads on behind the claimed end must hear of the true one. */
gboolean mail_claims_has_range (MailCacheFile *file, guint64 size, guint64 offset, guint64 length);
/* The entry of a message, made when nobody wants it yet; put frees it when nobody does any more. */
MailPending *mail_claims_get (MailFetches *fetches, guint64 key, MailCacheFile *file, guint64 size);
void mail_claims_put (MailFetches *fetches, MailPending *pending);
/* The first part of [*start, *end) that nobody fetches; FALSE when all of it is claimed. */
gboolean mail_claims_first_free (const MailPending *pending, guint64 *start, guint64 *end);
void mail_claims_add (MailPending *pending, guint64 start, guint64 end);
void mail_claims_drop (MailPending *pending, guint64 start, guint64 end);
/* Moves to woken who has what he wants; with over, to failed who is left without anybody fetching
 * it. */
void mail_claims_collect (MailPending *pending, gboolean over, GQueue *woken, GQueue *failed);

/* --- fetch.c --------------------------------------------------------------------------------- */

MailFetch *mail_fetch_new (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id,
                           guint64 start_offset, guint64 end, MailPriority priority);
/* Claims what is absent of [start, end) and adds a request for each piece. Lock held. */
void mail_fetch_absent (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id,
                        MailPending *pending, guint64 start_offset, guint64 end,
                        MailPriority priority, GPtrArray *requests);
/* Any thread, lock not held: off to the net thread. */
void mail_fetch_send (MailFetches *fetches, GPtrArray *requests);

/* --- patience.c ------------------------------------------------------------------------------ */

/* Somebody waits now. Any thread, lock not held. */
void mail_patience_begin (MailFetches *fetches);
/* So many bytes came of what was asked for. Net thread. */
void mail_patience_moved (MailFetches *fetches, gsize n_bytes);
/* A reader of this message gave up just now. Lock held. */
void mail_patience_lost (MailFetches *fetches, guint64 key);
/* Whether a reader did a moment ago: then who begins since then reads the same again. Lock not held. */
gboolean mail_patience_is_lost (MailFetches *fetches, guint64 key, gint64 since, GError **error);
/* Net thread, before fetches is freed. */
void mail_patience_end (MailFetches *fetches);
