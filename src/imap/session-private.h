/* SPDX-License-Identifier: MIT
 *
 * Shared by session.c (life and tasks), pipeline.c (commands and answers), session-data.c (untagged
 * data) and auth.c (the way from the greeting to READY). Nobody else looks inside. Net thread.
 */
#pragma once

#include "imap/session.h"
#include "imap/trace.h"
#include "mailfs/sasl.h"

typedef void (*ImapInternalDone) (ImapSession *session, const ImapStatus *status);

/* One command in the pipeline. */
typedef struct
{
  ImapTask *task;        /* NULL: the session's own */
  ImapInternalDone done; /* the session's own commands; may be NULL */
  ImapCommand *command;
  ImapSelect *select; /* the mailbox it runs in, or NULL */
  gboolean selects;   /* the command is the SELECT or EXAMINE of select */
  gboolean idle;
  gboolean announces; /* a SELECT for IDLE: what happened before it was missed */
  gboolean answered;  /* NO came while its literal was still being sent */
  GError *error;      /* what done will say, with answered */
  char tag[12];
} ImapEntry;

typedef enum
{
  IMAP_IDLE_NONE,
  IMAP_IDLE_SENT, /* waiting for + */
  IMAP_IDLE_ACTIVE,
  IMAP_IDLE_ENDING, /* DONE was sent */
} ImapIdleState;

struct ImapSession
{
  ImapSessionOptions options;
  ImapSessionState state;
  GError *error; /* with DEAD */
  gint64 now;    /* of the call under way */

  ImapParser *parser;
  GByteArray *out;
  gsize out_taken;     /* of out, already written */
  GQueue waiting;      /* of ImapEntry: not a byte emitted */
  GQueue sent;         /* of ImapEntry: emitted or being emitted, in order */
  ImapEntry *emitting; /* the last of sent, while not all of it is in out */
  guint next_tag;

  guint caps;
  gboolean caps_known;
  GPtrArray *mechanisms;             /* of char *, AUTH= */
  gboolean qresync, qresync_enabled; /* taken as granted; the server said so */
  char delimiter;

  /* login */
  gboolean got_greeting, preauth, under_tls;
  ImapCode refusal_code;
  const char *mechanism; /* chosen; NULL: the LOGIN command */
  NetSasl *sasl;
  char *secret; /* until the login is answered, so that its echo can be masked */
  gboolean sasl_initial_sent, sasl_cancelled;
  guint n_sasl_steps;
  gint64 login_deadline;

  ImapSelect *planned;   /* selected once all that is queued is done, or NULL */
  ImapSelect *current;   /* selected now, or NULL */
  ImapEntry *body_entry; /* that takes the FETCH response at hand */
  gboolean body_skipped, body_seen;

  ImapIdleState idle;
  gboolean stop_idle;
  char *changed;

  gint64 last_input, progress_at;
  gint64 woken_at; /* the first command after a long silence, until the server says anything */
  gsize progress_bytes;
  ImapTrace *trace;              /* or NULL */
  guint n_tasks, n_bulk, weight; /* in the queues */
  guint n_done;
  gboolean busy;
  gint64 alerted_at;
};

extern const ImapResponseHandler imap_session_handler;

#define IMAP_OUT_HIGH (64 * 1024) /* as much is kept ready to be written */
#define IMAP_PROGRESS_BYTES 4096  /* fewer are no progress */
#define IMAP_SILENCE_MS 30000     /* after it the connection is suspected to be gone */

/* pipeline.c */
/* Tells whoever waits for entry, and frees it. It is in no queue any more. status NULL: no answer
 * came, or it was not needed. */
void imap_entry_finish (ImapSession *session, ImapEntry *entry, const ImapStatus *status,
                        const GError *error);
void imap_entry_free (ImapEntry *entry);
/* sign: 1 comes, -1 goes. */
void imap_session_count_task (ImapSession *session, const ImapTask *task, int sign);
/* Whether nothing is under way that the server owes an answer for. */
gboolean imap_session_is_quiet (const ImapSession *session);
/* Takes command. */
ImapEntry *imap_session_push (ImapSession *session, ImapCommand *command, ImapInternalDone done);
void imap_session_answer (ImapSession *session, const ImapStatus *status);

/* session.c */
void
imap_session_die (ImapSession *session, int code, const char *format, ...) G_GNUC_PRINTF (3, 4);
void imap_session_die_error (ImapSession *session, GError *error); /* takes error */
void imap_session_new_parser (ImapSession *session);

/* session-data.c */
void imap_session_note_change (ImapSession *session);

/* auth.c */
void imap_session_greeting (ImapSession *session, const ImapStatus *status);
void imap_session_set_capabilities (ImapSession *session, const char *const *words);
void imap_session_auth_continue (ImapSession *session, const char *text);
