/* SPDX-License-Identifier: MIT
 *
 * A MailStore on a directory of its own, in front of a ModelServer, in one thread: what the tests
 * and the fuzzer of changes have in common.
 */
#pragma once

#include "mailfs/change.h"
#include "model-server.h"

#define ALL_CAPS                                                                                   \
  (MAIL_CAP_FOLDERS | MAIL_CAP_FLAGS | MAIL_CAP_RANGES | MAIL_CAP_APPEND | MAIL_CAP_EXPUNGE_UID    \
   | MAIL_CAP_MOVE)

typedef struct
{
  char *dir;
  ModelServer *server;
  GMainContext *context;
  MailStore *store; /* while open */
  gboolean eol_lf, sync;
  const char *trash, *root;
  gboolean (*turn) (gpointer turn_data); /* how the loop is turned once; NULL: just so */
  gpointer turn_data;
} Harness;

/* What a done was told. */
typedef struct
{
  gboolean called;
  GError *error;
} Told;

Harness *harness_new (guint caps);
void harness_open (Harness *harness);
/* As umount does; TRUE when nothing stayed in the queue. */
gboolean harness_close (Harness *harness);
void harness_free (Harness *harness);
/* As if the daemon had been killed just now: what is on disk, and the server. Not open. */
Harness *harness_clone (const Harness *harness);

void told (const GError *error, gpointer data); /* a MailDoneFunc; data is a Told */
void told_clear (Told *told);
/* Runs the loop until it was told. */
void wait_told (Harness *harness, Told *told);
/* No error expected. */
void wait_good (Harness *harness, Told *told);
/* The code of the error, or -1. */
int wait_code (Harness *harness, Told *told);
gboolean turn_once (Harness *harness); /* FALSE: there was nothing to do */
void turn_loop (Harness *harness, guint times);
/* Until nothing is pending any more, through whatever errors. */
void settle (Harness *harness);
guint n_pending (Harness *harness);

MailMailbox *get_mailbox (Harness *harness, const char *path);
/* A listing from now. */
void look (Harness *harness, MailMailbox *mailbox);
guint n_listed (MailMailbox *mailbox);
guint32 first_uid (MailMailbox *mailbox);

/* A whole message with this text in it; the caller's. */
char *message_text (const char *token);
/* A file with it, written, not committed. */
MailStaged *write_file (Harness *harness, MailMailbox *mailbox, const char *name, const char *text);
char *read_staged (MailStaged *staged);
char *read_message (Harness *harness, MailMailbox *mailbox, guint32 uid);
/* Of a mailbox of the server, the messages with text in them; without UIDPLUS one that was removed
 * is only marked, and does not count. */
guint n_alive (Harness *harness, const char *mailbox, const char *text);
/* Of files that failed, those with text in them. */
guint n_failed (Harness *harness, const char *text);
