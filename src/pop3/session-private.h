/* SPDX-License-Identifier: MIT
 *
 * What session.c (commands and answers) and login.c (from greeting to login) share.
 */
#pragma once

#include "pop3/capa.h"
#include "pop3/reader.h"
#include "pop3/session.h"

#include "mailfs/sasl.h"

/* Commands the session sends by itself, behind the public ones. */
enum
{
  POP3_VERB_GREETING = POP3_N_VERBS, /* what the server says first is an answer too */
  POP3_VERB_STLS,
  POP3_VERB_CAPA,
  POP3_VERB_UTF8,
  POP3_VERB_USER,
  POP3_VERB_PASS,
  POP3_VERB_APOP,
  POP3_VERB_AUTH,
  POP3_VERB_PROBE_FIRST, /* NOOP, STAT, NOOP: does a server without CAPA pipeline? */
  POP3_VERB_PROBE_SECOND,
  POP3_VERB_PROBE_THIRD,
};

typedef struct
{
  guint verb;
  guint32 number;
  guint32 n_lines; /* TOP */
  const Pop3CommandFuncs *funcs; /* NULL: the session's own */
  gpointer user_data;
  char *text;       /* what stood behind +OK, while the lines after it come */
  guint64 n_octets; /* of the message so far */
} Pop3Command;

struct Pop3Session
{
  Pop3Setup setup; /* its strings are ours */
  Pop3State state;
  gboolean tls; /* now */
  GError *error;

  Pop3Reader reader;
  GByteArray *output;
  GQueue waiting;   /* of Pop3Command, not yet in output */
  GQueue sent;      /* of Pop3Command, in the order of their answers */
  gboolean in_body; /* the first of sent said +OK and its lines are coming */
  guint64 progress;

  Pop3Capa capa;
  Pop3Capa new_capa; /* while the lines of CAPA come */
  gboolean logged_in;
  gboolean refused; /* [AUTH] */
  char *timestamp;  /* of the greeting */
  const char *mechanism;
  char *secret;          /* from give_secret to the end of the login */
  gboolean initial_held; /* secret is the first answer of sasl, for which there was no room */
  NetSasl *sasl;
  GError *sasl_error; /* the exchange was cancelled for this */
  guint n_challenges;
};

/* session.c */
void pop3_session_fail (Pop3Session *session, GError *take_error);
/* line without its end; shown instead of it in the trace, or NULL. Queues the answer as verb's. */
void pop3_session_write (Pop3Session *session, guint verb, const char *line, const char *shown);
/* A line that is no command: the next step of AUTH. */
void pop3_session_write_answer (Pop3Session *session, const char *line);
/* The command sent last will not be answered. */
void pop3_session_forget_last (Pop3Session *session);

/* login.c: an answer to one of the session's own commands. */
void
pop3_login_answer (Pop3Session *session, guint verb, gboolean ok, const char *text, gsize length);
/* A "+ " line during AUTH. */
void pop3_login_challenge (Pop3Session *session, const char *text, gsize length);
void pop3_login_after_tls (Pop3Session *session);
void pop3_login_with_secret (Pop3Session *session);
