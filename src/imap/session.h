/* SPDX-License-Identifier: MIT
 *
 * ImapSession: one connection's IMAP state, from the greeting to BYE: STARTTLS, login,
 * capabilities, tags, the pipeline, the selected mailbox. Sans-I/O: bytes, events and the time go
 * in, bytes and a state come out; it knows no socket, clock or file. The owner feeds it, asks for
 * its state afterwards, and writes what it has to say. Net thread. Times are monotonic
 * milliseconds.
 */
#pragma once

#include "imap/task.h"

typedef enum
{
  IMAP_CAP_IMAP4REV1 = 1 << 0,
  IMAP_CAP_IMAP4REV2 = 1 << 1,
  IMAP_CAP_STARTTLS = 1 << 2,
  IMAP_CAP_LOGINDISABLED = 1 << 3,
  IMAP_CAP_SASL_IR = 1 << 4,
  IMAP_CAP_LITERAL_PLUS = 1 << 5,
  IMAP_CAP_LITERAL_MINUS = 1 << 6,
  IMAP_CAP_ID = 1 << 7,
  IMAP_CAP_ENABLE = 1 << 8,
  IMAP_CAP_NAMESPACE = 1 << 9,
  IMAP_CAP_CONDSTORE = 1 << 10,
  IMAP_CAP_QRESYNC = 1 << 11,
  IMAP_CAP_UIDPLUS = 1 << 12,
  IMAP_CAP_MOVE = 1 << 13,
  IMAP_CAP_UNSELECT = 1 << 14,
  IMAP_CAP_IDLE = 1 << 15,
  IMAP_CAP_ESEARCH = 1 << 16,
  IMAP_CAP_LIST_EXTENDED = 1 << 17,
  IMAP_CAP_LIST_STATUS = 1 << 18,
  IMAP_CAP_SPECIAL_USE = 1 << 19,
  IMAP_CAP_QUOTA = 1 << 20,
  IMAP_CAP_ACL = 1 << 21,
  IMAP_CAP_MULTIAPPEND = 1 << 22,
  IMAP_CAP_COMPRESS = 1 << 23,
} ImapCaps;

typedef enum
{
  IMAP_TLS_OFF,
  IMAP_TLS_STARTTLS,
  IMAP_TLS_IMPLICIT, /* the stream is under TLS before the first byte */
} ImapTlsMode;

typedef struct
{
  const char *host; /* all borrowed, outlive the session */
  guint16 port;
  const char *user; /* or NULL */
  const char *auth; /* as MailConfig.auth */
  ImapTlsMode tls;
  const char *peer; /* for the trace */
  guint timeout_ms; /* without progress, and for the whole login */
} ImapSessionOptions;

typedef enum
{
  IMAP_SESSION_GREETING,
  IMAP_SESSION_LOGIN,        /* commands before and of the login are under way */
  IMAP_SESSION_WANTS_TLS,    /* STARTTLS was accepted: upgrade, then imap_session_tls_done */
  IMAP_SESSION_WANTS_SECRET, /* imap_session_set_secret */
  IMAP_SESSION_READY,
  IMAP_SESSION_COMPRESSING,   /* COMPRESS was asked for */
  IMAP_SESSION_WANTS_DEFLATE, /* it was accepted: wrap the stream, then imap_session_deflate_done */
  IMAP_SESSION_LOGOUT,
  IMAP_SESSION_DEAD, /* imap_session_error says why; close the connection, then shut_down */
} ImapSessionState;

ImapSession *imap_session_new (const ImapSessionOptions *options, gint64 now);
/* Fails what is left with the session's error, or MAIL_ERROR_CONNECTION. */
void imap_session_free (ImapSession *session);

/* Takes bytes from the server; tasks are told on the way. When the state is WANTS_TLS,
 * WANTS_DEFLATE or DEAD afterwards nothing more may be fed. How many were taken: fewer than length
 * only with WANTS_DEFLATE (the rest is deflated already) or DEAD. */
gsize imap_session_feed (ImapSession *session, const void *data, gsize length, gint64 now);
/* The connection ended. error NULL: end of stream. The state is DEAD then. */
void imap_session_lost (ImapSession *session, const GError *error);

/* What wants to be written; empty (length 0) when there is nothing now. Valid until the next call.
 */
const guint8 *imap_session_output (ImapSession *session, gsize *length, gint64 now);
void imap_session_written (ImapSession *session, gsize n, gint64 now);

ImapSessionState imap_session_state (const ImapSession *session);
const GError *imap_session_error (const ImapSession *session); /* with DEAD */
void imap_session_tls_done (ImapSession *session, gint64 now);
/* The secret is used at once and not kept. */
void imap_session_set_secret (ImapSession *session, const char *secret, gint64 now);

/* Takes the chain; READY only. Tasks may be done (failed) before this returns. */
void imap_session_submit (ImapSession *session, ImapTask *chain, gint64 now);
/* A chain of changing tasks of which not a byte was sent, to be queued elsewhere after the
 * connection was lost: nothing has happened to them. In order; NULL when there are no more. */
ImapTask *imap_session_take_unsent (ImapSession *session);

/* Waits for changes in mailbox (EXAMINE and IDLE) while there is nothing else to do; the next
 * submit ends it. FALSE: the server cannot. */
gboolean imap_session_idle (ImapSession *session, const char *mailbox, gint64 now);
gboolean imap_session_is_idling (const ImapSession *session);
void imap_session_stop_idle (ImapSession *session);
void imap_session_noop (ImapSession *session, gint64 now);
/* Asks for COMPRESS=DEFLATE (RFC 4978) on a session at rest; READY again afterwards, one way or the
 * other. FALSE: not possible, or done already. */
gboolean imap_session_compress (ImapSession *session, gint64 now);
void imap_session_deflate_done (ImapSession *session, gint64 now);
void imap_session_logout (ImapSession *session, gint64 now);

/* The mailbox for which something unasked came since the last call, or NULL. */
char *imap_session_take_changed (ImapSession *session);

/* When the owner must call imap_session_check, or G_MAXINT64. */
gint64 imap_session_deadline (const ImapSession *session);
/* For so many ms until now nobody looked: they do not count. */
void imap_session_excuse (ImapSession *session, gint64 late, gint64 now);
/* Kills the session (DEAD, MAIL_ERROR_TIMED_OUT) when the deadline has passed. */
void imap_session_check (ImapSession *session, gint64 now);

/* --- for the pool and the builders of commands --- */

guint imap_session_caps (const ImapSession *session);           /* ImapCaps */
gboolean imap_session_has_qresync (const ImapSession *session); /* enabled, not only offered */
void imap_session_forget_qresync (ImapSession *session);        /* it did not do what it promised */
/* The first personal namespace's delimiter; 0 when not told. */
char imap_session_delimiter (const ImapSession *session);
/* Tasks (not the session's own commands) it holds; of these bulk ones; sum of their weights. */
guint imap_session_n_tasks (const ImapSession *session, guint *n_bulk, guint *weight);
/* The task is with this session. */
void imap_session_reweigh (ImapSession *session, ImapTask *task, guint weight);
/* How many tasks were answered with OK. */
guint imap_session_n_done (const ImapSession *session);
/* Whether since the last call the server said that it wants to be left alone. */
gboolean imap_session_take_busy (ImapSession *session);
/* For how many milliseconds what is under way has made no progress; 0 at rest. */
gint64 imap_session_stalled (const ImapSession *session, gint64 now);
/* A chain of tasks that change nothing and wait behind a command that does not move, to be put
 * elsewhere; each only once. NULL when there are no more. */
ImapTask *imap_session_take_stuck (ImapSession *session);
/* The mailbox that is selected once everything queued is done, or NULL. */
const ImapSelect *imap_session_planned (const ImapSession *session);
gint64 imap_session_last_input (const ImapSession *session);
/* The code of the refused login, or of the BYE. */
ImapCode imap_session_refusal_code (const ImapSession *session);
