/* SPDX-License-Identifier: MIT
 *
 * Pop3Session: one POP3 connection without the connection (RFC 1939, 2449, 2595, 3206, 5034, 6856).
 * Bytes of the server go in by feed, bytes for it come out of output; it knows no socket, no clock
 * and no file, so a test can cut a transcript anywhere. One thread at a time (the net thread).
 *
 * From greeting to login it walks by itself; in between the driver is told by the state to bring up
 * TLS or to fetch the secret. Nothing secret is put into output before TLS is up, unless the setup
 * says that none is wanted.
 */
#pragma once

#include "mailfs/error.h"

typedef struct Pop3Session Pop3Session;

/* All strings are copied. */
typedef struct
{
  gboolean tls;      /* the connection has been under TLS from its first byte */
  gboolean need_tls; /* else STLS, or no login */
  const char *user;  /* NULL for external and anonymous */
  const char *auth;  /* MailConfig.auth */
  const char *host;
  guint16 port;
  gboolean utf8; /* ask for UTF-8 mail (RFC 6856), which some messages cannot be had without */
} Pop3Setup;

typedef enum
{
  POP3_STATE_LOGIN,  /* feed it, send its output */
  POP3_STATE_TLS,    /* output is sent: do the handshake, read nothing before, then tls_started */
  POP3_STATE_SECRET, /* get the secret, then give_secret */
  POP3_STATE_READY,  /* logged in: commands may be sent */
  POP3_STATE_ENDED,  /* QUIT was answered, or pop3_session_error says what went wrong */
} Pop3State;

typedef enum
{
  POP3_CAP_TOP = 1 << 0,
  POP3_CAP_UIDL = 1 << 1,
  POP3_CAP_PIPELINING = 1 << 2,
  POP3_CAP_USER = 1 << 3,
  POP3_CAP_UTF8 = 1 << 4,
  POP3_CAP_KNOWN = 1 << 5, /* the server answered CAPA: what is not here is not there */
} Pop3Caps;

typedef enum
{
  POP3_VERB_STAT,
  POP3_VERB_LIST, /* number 0: all */
  POP3_VERB_UIDL, /* the same */
  POP3_VERB_TOP,  /* number; no line of the body but by pop3_session_send_top */
  POP3_VERB_RETR,
  POP3_VERB_DELE,
  POP3_VERB_RSET,
  POP3_VERB_NOOP,
  POP3_VERB_QUIT,
  POP3_N_VERBS
} Pop3Verb;

/* What becomes of a command. None of these may free the session; all may send more, or give it up
 * by pop3_session_lost. */
typedef struct
{
  /* LIST and UIDL: each line. May be NULL. */
  void (*line) (gpointer user_data, const char *line, gsize length);
  /* TOP and RETR: the message, dot-unstuffed, in pieces. May be NULL. */
  void (*data) (gpointer user_data, const guint8 *data, gsize length);
  /* Exactly once, not before pop3_session_send returned. text: what stood behind "+OK ", not
   * NUL-free. error: this command was refused (-ERR) or the session broke; MAIL_ERROR_GONE: no such
   * message; MAIL_ERROR_BUSY: try again later; MAIL_ERROR_UNSUPPORTED: needs setup.utf8. */
  void (*done) (gpointer user_data, const char *text, const GError *error);
} Pop3CommandFuncs;

Pop3Session *pop3_session_new (const Pop3Setup *setup);
/* Wipes what it holds; commands under way are forgotten without a call. */
void pop3_session_free (Pop3Session *session);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Pop3Session, pop3_session_free)

Pop3State pop3_session_state (const Pop3Session *session);
/* Why it ended; NULL while it lives and after QUIT. */
const GError *pop3_session_error (const Pop3Session *session);
/* The login was refused for the credentials themselves ([AUTH]), not for the moment. */
gboolean pop3_session_refused (const Pop3Session *session);

/* FALSE: the session has ended with an error, and its commands with it. */
gboolean pop3_session_feed (Pop3Session *session, const void *data, gsize length);
/* The server closed, or the connection broke with error (NULL: it closed). */
void pop3_session_lost (Pop3Session *session, const GError *error);

/* What is to be sent; pop3_session_sent takes length bytes of it away, and wipes them. */
const guint8 *pop3_session_output (const Pop3Session *session, gsize *length_out);
void pop3_session_sent (Pop3Session *session, gsize length);

void pop3_session_tls_started (Pop3Session *session);
void pop3_session_give_secret (Pop3Session *session, const char *secret);

/* FALSE when the session has ended or is not ready: then done will not be called. Commands go out
 * at once with PIPELINING, else one after the other. */
gboolean pop3_session_send (Pop3Session *session, Pop3Verb verb, guint32 number,
                            const Pop3CommandFuncs *funcs, gpointer user_data);

/* TOP with the first n_lines of the body. */
gboolean pop3_session_send_top (Pop3Session *session, guint32 number, guint32 n_lines,
                                const Pop3CommandFuncs *funcs, gpointer user_data);

guint pop3_session_caps (const Pop3Session *session);
/* Seconds the server wants between logins (RFC 2449 section 6.5). */
guint pop3_session_login_delay (const Pop3Session *session);
/* Whether an answer is being waited for. */
gboolean pop3_session_waiting (const Pop3Session *session);
/* Grows with every finished answer and every 4 KiB of a message: what a deadline looks at. */
guint64 pop3_session_progress (const Pop3Session *session);
