/* SPDX-License-Identifier: MIT
 *
 * Shared by pool.c (life of connections, back-off, watch) and dispatch.c (which task goes where).
 * Net thread.
 */
#pragma once

#include "imap/connection.h"
#include "imap/pool.h"

typedef struct
{
  ImapPool *pool;
  ImapConnection *connection;
  gboolean was_ready, leaving; /* LOGOUT was our wish */
  gboolean settled;            /* it did something useful, or lived for a while */
  gint64 begun_at, ready_at;
  gint64 used_at;    /* last given a task, or became ready */
  gint64 kept_at;    /* last NOOP */
  gint64 idle_since; /* IDLE was begun */
  gint64 input_at;   /* the session's last input, as of the last tick */
  guint n_still;     /* ticks without any since then; ours count, since we may be what is slow */
  gint64 rate_since; /* bulk work has kept it busy since then; 0: it has not */
  guint64 rate_bytes;
} ImapSlot;

typedef struct
{
  MailDoneFunc done;
  gpointer user_data;
} ImapWaiter;

struct ImapPool
{
  const MailConfig *config;
  MailSecretSource *secrets;
  NetTls *tls;
  GMainContext *context;
  GSource *tick;     /* armed by ready time */
  GSource *dispatch; /* armed while something is to be placed */

  GPtrArray *slots;             /* of ImapSlot; owned */
  GQueue interactive, bulk;     /* of ImapTask: chains */
  guint limit;                  /* connections: config, or what the server let us have */
  gint64 limit_at, limit_until; /* learnt; believed until then */
  gboolean slow_line;           /* worth compressing */
  gint64 slow_at;               /* since then */
  gint64 ticked_at, due_at;
  gint64 progress_at; /* something was placed or answered */
  gint64 bulk_since;  /* there was always more bulk work than had room since then; 0: there is not */

  GError *down; /* known to be down; what requests are told */
  gint64 next_try, last_try;
  guint n_failures, n_refusals;
  gint64 pause_until; /* the server asked for it: nothing is placed */
  guint n_pauses;
  gboolean lost;    /* a connection that had been ready was lost */
  gint64 lost_at;   /* the last one; 0: none */
  gboolean trusted; /* one has worked, and none was cut since that had done nothing yet */
  gboolean more;    /* dispatch would like another connection */

  GArray *starting; /* of ImapWaiter */
  guint caps;
  char delimiter;

  char *watch_mailbox;
  MailChangedFunc watch_changed;
  gpointer watch_data;

  gboolean closed;
  gint64 close_deadline;
  ImapWaiter closing; /* done NULL: nobody waits */
};

/* dispatch.c: places what can be placed; sets pool->more. */
void imap_pool_place (ImapPool *pool);
