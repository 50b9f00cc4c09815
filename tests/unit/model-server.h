/* SPDX-License-Identifier: MIT
 *
 * A mail server in memory, behind the MailBackend table: mailboxes, UIDs, flags, what other clients
 * do at the same time, and everything that can go wrong between a command and its answer. Outlives
 * the stores that use it, and can be copied, so that a killed client can be tried from any moment.
 */
#pragma once

#include "mailfs/uidset.h"

typedef struct
{
  guint32 uid;
  guint8 flags;
  char *keywords;
  gint64 date;
  guint64 modseq;
  GBytes *bytes;
} ModelMessage;

typedef struct
{
  char *name; /* '/' is the delimiter */
  char *special_use;
  guint32 id; /* whatever its name and UIDVALIDITY are */
  guint32 uidvalidity, uidnext;
  guint64 modseq;
  gboolean read_only, gone;
  gboolean no_select;  /* a mere parent by now */
  GPtrArray *messages; /* of ModelMessage, by UID */
  GArray *vanished;    /* pairs of guint64: UID, modseq */
} ModelMailbox;

/* What happens to the next commands that change something, one each; then all is well again. */
typedef enum
{
  MODEL_GOOD,
  MODEL_LOST_BEFORE, /* the connection breaks, nothing was done */
  MODEL_LOST_AFTER,  /* it was done, the answer is lost */
  MODEL_LOST_HALF,   /* half of the messages were done, and of an append the next is in doubt */
  MODEL_DOWN,        /* known to be unreachable: not even sent */
  MODEL_REFUSED,     /* NO */
  MODEL_OVER_QUOTA,
  MODEL_LIE, /* OK, and nothing was done */
  MODEL_N_FAULTS
} ModelFault;

typedef struct
{
  GPtrArray *mailboxes; /* of ModelMailbox */
  GPtrArray *past;      /* of ModelMailbox, as they were when they were numbered anew */
  guint caps;           /* MailCaps */
  guint sync_mode;      /* 0: always whole lists; 1: QRESYNC; 2: CONDSTORE; 3: neither, but UIDs */
  guint32 next_uidvalidity;
  gboolean down;    /* nothing works */
  GArray *faults;   /* of ModelFault, taken from the front */
  GRand *rand;      /* with it, answers take their time; or NULL */
  guint n_commands; /* that change something */
  GPtrArray *log;   /* "move INBOX 1:3 Trash" */
  guint quota;      /* messages in all; 0: no limit */
  const char
      *refuse_token; /* an append of a message with this text is refused, alone or among others */
  gboolean multiappend; /* and with it the whole batch */
  guint rewrite;        /* appended messages get a header line; 2: and a line at the end */
} ModelServer;

ModelServer *model_server_new (guint caps);
ModelServer *model_server_copy (const ModelServer *server);
void model_server_free (ModelServer *server);

ModelMailbox *model_mailbox (ModelServer *server, const char *name); /* or NULL */
ModelMailbox *model_add_mailbox (ModelServer *server, const char *name, const char *special_use);
/* What other clients do. */
ModelMessage *model_deliver (ModelServer *server, const char *mailbox, const char *text,
                             guint8 flags, gint64 date);
ModelMessage *model_find (ModelMailbox *mailbox, guint32 uid);
void
model_set_flags (ModelMailbox *mailbox, ModelMessage *message, guint8 flags, const char *keywords);
void model_expunge (ModelMailbox *mailbox, guint32 uid);
/* Another UIDVALIDITY, as after a mailbox was restored from a backup: the messages in the order of
 * their UIDs, backwards when reversed, the first of them as the rotate-th, numbered from first. */
void model_renumber (ModelServer *server, ModelMailbox *mailbox, guint32 first, gboolean reversed,
                     guint rotate);
/* The mailbox that has this UIDVALIDITY, or had it: as it was then. NULL: none. */
ModelMailbox *model_numbered (ModelServer *server, guint32 uidvalidity);
/* Messages that contain text, in all mailboxes. */
guint model_count (ModelServer *server, const char *text);
guint model_count_in (ModelServer *server, const char *mailbox, const char *text);
void model_fault (ModelServer *server, ModelFault fault);

/* Freed by the store. */
MailBackend *model_backend_new (ModelServer *server, GMainContext *context);
