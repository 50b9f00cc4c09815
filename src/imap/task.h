/* SPDX-License-Identifier: MIT
 *
 * ImapTask: one command on its way to a server, together with where it must run (which mailbox,
 * read only or not) and who takes what comes back. The pool moves tasks to sessions; a session
 * selects the mailbox, builds the command for what this server can do, and reports. ImapSelect:
 * what one SELECT or EXAMINE told about its mailbox. Net thread.
 */
#pragma once

#include "imap/command.h"
#include "imap/response.h"

typedef struct ImapSession ImapSession;
typedef struct ImapTask ImapTask;

typedef enum
{
  IMAP_ACCESS_READ,  /* EXAMINE will do */
  IMAP_ACCESS_WRITE, /* SELECT */
} ImapAccess;

typedef enum
{
  IMAP_SELECT_PENDING,
  IMAP_SELECT_OK,
  IMAP_SELECT_FAILED,
} ImapSelectState;

typedef struct
{
  guint refs;
  char *mailbox; /* wire name */
  ImapAccess access;
  ImapSelectState state;
  GError *error;                        /* with FAILED */
  guint32 uidvalidity, uidnext, exists; /* 0: not told */
  guint32 asked_below;  /* what is below this the server was asked for since; 0: nothing */
  guint32 asking_below; /* and is being asked for just now */
  guint64 highestmodseq;
  gboolean has_exists, no_modseq, read_only;
  gboolean has_permanent, any_keyword; /* PERMANENTFLAGS was told */
  guint8 permanent_flags;
  char *permanent_keywords; /* or NULL */
} ImapSelect;

ImapSelect *imap_select_new (const char *mailbox, ImapAccess access);
ImapSelect *imap_select_ref (ImapSelect *select);
void imap_select_unref (ImapSelect *select); /* NULL is fine */

typedef struct
{
  const ImapStatus *status;   /* the tagged answer; NULL when none came */
  const ImapCommand *command; /* what was built; NULL when it was never sent */
  ImapSession *session;       /* NULL when the connection is gone or none was found */
  /* NULL: the server said OK (or, with status NULL, build decided that there is nothing to do).
   * MAIL_ERROR_CONNECTION: the connection broke under it; a retry may work. */
  const GError *error;
} ImapResult;

typedef struct
{
  /* The command for this session; NULL without error: nothing to do here, done follows at once. */
  ImapCommand *(*build) (ImapTask *task, ImapSession *session, GError **error);
  /* Untagged data while this is the oldest command under way; user_data is the task. Body sections
   * come only if wants_body said so, fetch_end then too; FETCH without a body comes by fetch_end.
   */
  const ImapResponseHandler *handler; /* NULL: nothing */
  gboolean (*wants_body) (ImapTask *task, const ImapBody *body);
  /* Once, last. Frees the task. */
  void (*done) (ImapTask *task, const ImapResult *result);
} ImapTaskOps;

#define IMAP_WEIGHT_SHORT 6 /* a listing that is soon over */
#define IMAP_WEIGHT_LONG 8  /* behind so much others rather wait for a new connection */

struct ImapTask
{
  const ImapTaskOps *ops;
  gconstpointer owner; /* of neighbours with the same owner only the first is told untagged data */
  ImapTask *next;      /* goes to the same session right behind this one */
  const char *mailbox; /* borrowed from the owner; NULL: none needed */
  guint32 uidvalidity; /* expected; 0: any */
  guint32 newest;      /* the highest UID that it names; 0: none */
  ImapAccess access;
  /* It changes something: sent only when the SELECT's answer showed the right UIDVALIDITY, and
   * given back when the connection is lost before a byte of it was sent. Others follow the SELECT
   * at once. */
  gboolean changes;
  gboolean selects;    /* the command is itself the EXAMINE of mailbox */
  gboolean unselected; /* no mailbox may be selected: what STATUS says of that one is old */
  gboolean moved;      /* once taken from behind a command that did not move */
  gboolean bulk;
  gboolean follows;          /* set by the session: not the first of its chain */
  const MailUidSet *removes; /* the owner's: messages that are to go; NULL: none */
  guint weight;              /* how much it keeps a connection busy; 0 counts as 1 */
  ImapSelect *select;        /* set by the session while the task is with it */
  gint64 queued_at;          /* the pool's, monotonic milliseconds */
};

/* A GError for a NO or BAD; the response code decides what kind, or without one, when select says
 * that it answers a SELECT, the text. what says what was tried. */
GError *imap_status_error (const ImapStatus *status, const char *what, gboolean select);
