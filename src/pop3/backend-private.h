/* SPDX-License-Identifier: MIT
 *
 * What the three files of the backend share: backend.c (the calls of mailfs/backend.h become
 * requests), schedule.c (when there is a session and what it is for), work.c (what is done in it).
 * Everything on the net thread.
 */
#pragma once

#include "pop3/backend.h"
#include "pop3/connection.h"
#include "pop3/maildrop.h"
#include "pop3/request.h"

#include <gio/gio.h>

typedef enum
{
  POP3_UNKNOWN,
  POP3_YES,
  POP3_NO,
} Pop3Maybe;

/* A command under way for a request. */
typedef struct Pop3Unit Pop3Unit;

typedef struct
{
  MailBackend parent;
  const MailConfig *config;
  MailSecretSource *secrets;
  NetTls *tls;

  /* Requests, oldest first; the one being worked on is not in its queue, fetches are. */
  GQueue instant; /* need no server */
  GQueue starts;
  GQueue syncs;
  GQueue removes;
  GQueue fetches[2]; /* by MailPriority */
  Pop3Request *sync;
  GQueue removing; /* DELE sent, QUIT to be answered */

  Pop3Connection *connection; /* NULL: no session */
  gboolean logged_in;
  gboolean quitting;
  gboolean committing; /* that QUIT removes messages */
  gboolean synced;     /* a listing was made from this session */
  gboolean renew;      /* it must be ended, and another one begun */
  gboolean lost;       /* the one before this was lost */
  gboolean looking;    /* while it is down: nobody waits for what becomes of it */
  gint64 opened_at;    /* when it began to connect, monotonic µs */
  Pop3Labels *labels;
  Pop3Maildrop *reading;  /* UIDL and LIST are coming in */
  Pop3Maildrop *maildrop; /* they are there */
  gboolean have_list;
  GError *reading_error;
  guint n_running;       /* units */
  guint n_filled;        /* how many there were when the window was filled last */
  guint64 bytes_running; /* estimate of what their answers hold */
  Pop3Maybe top;

  /* The running listing: dates of messages nobody knew. */
  GArray *dates; /* of gint64, one a message; DATE_* of work.c */
  guint next_date;
  guint n_dates; /* TOPs under way */

  /* How fast bytes come, for the size of the window. */
  guint64 rate; /* bytes a second */
  guint64 rate_bytes;
  gint64 rate_since; /* monotonic µs; 0: nothing was running */

  gboolean utf8; /* a message could not be had without */
  guint caps;    /* MailCaps, once logged in */
  guint login_delay;
  gint64 login_at; /* the last one */
  gboolean ever_in;
  GError *down;      /* why we do not connect before down_until */
  gint64 down_until; /* G_MAXINT64: never */
  guint n_down;      /* failures in a row */
  gint64 busy_since; /* [IN-USE] again and again; 0: not */
  guint n_busy;
  guint n_lost; /* sessions lost in a row in which nothing was done */

  GSource *run;   /* pending */
  GSource *idle;  /* QUIT when it fires */
  GSource *retry; /* run when it fires */
  gboolean closed;
  MailDoneFunc close_done;
  gpointer close_data;
  GSource *close_limit;
} Pop3Backend;

/* schedule.c */
void pop3_schedule (Pop3Backend *self); /* run soon, from the main loop */
/* The same at once, from a command's function. */
void pop3_schedule_now (Pop3Backend *self);
/* Something was done: the server is well. */
void pop3_schedule_well (Pop3Backend *self);
/* All that waits fails with error, oldest first. */
void pop3_schedule_fail_all (Pop3Backend *self, const GError *error);
void pop3_schedule_close (Pop3Backend *self, MailDoneFunc done, gpointer user_data);
GSource *pop3_schedule_attach (GSource *source, GSourceFunc func, gpointer user_data);
void pop3_schedule_clear (GSource **source);

/* work.c */
/* Logged in: asks for UIDL and LIST. */
void pop3_work_read_maildrop (Pop3Backend *self);
void pop3_work_begin_sync (Pop3Backend *self, Pop3Request *take_request);
/* All of `removes`, then QUIT. */
void pop3_work_begin_remove (Pop3Backend *self);
/* QUIT. */
void pop3_work_quit (Pop3Backend *self);
/* Keeps the window full: interactive fetches, dates, then bulk. draining: only what is begun. */
void pop3_work_fill (Pop3Backend *self, gboolean draining);
/* The session is gone: what was under way waits again, or fails with error (NULL: it was QUIT). */
void pop3_work_lost (Pop3Backend *self, const GError *error);
