/* SPDX-License-Identifier: MIT
 *
 * ImapPool: the connections to one account. Tasks go where their mailbox is selected, or where
 * there is least to do; bulk work never takes the last connection when there are several; a server
 * that is down is known to be down, and probed with growing pauses. Net thread.
 */
#pragma once

#include "imap/task.h"
#include "mailfs/config.h"
#include "mailfs/stream.h"

typedef struct ImapPool ImapPool;

/* In the thread-default context. Borrows config and secrets, refs tls (or NULL). */
ImapPool *imap_pool_new (const MailConfig *config, MailSecretSource *secrets, NetTls *tls);
/* Fails what is left. */
void imap_pool_free (ImapPool *pool);

/* Takes a chain of tasks, which go to one connection together. Nothing is done before this returns.
 * While the server is known to be down they fail with the reason. */
void imap_pool_submit (ImapPool *pool, ImapTask *chain);
/* Connects and logs in once. */
void imap_pool_start (ImapPool *pool, MailDoneFunc done, gpointer user_data);
/* mailbox is copied. */
void
imap_pool_watch (ImapPool *pool, const char *mailbox, MailChangedFunc changed, gpointer user_data);
void imap_pool_close (ImapPool *pool, MailDoneFunc done, gpointer user_data);
gboolean imap_pool_is_closed (const ImapPool *pool);
/* As of the last login; 0 before. */
guint imap_pool_caps (const ImapPool *pool);
char imap_pool_delimiter (const ImapPool *pool);
/* Whether the line is taken to be so slow that compression pays; measured while bulk work runs. */
void imap_pool_set_slow_line (ImapPool *pool, gboolean slow);
char *imap_pool_describe (ImapPool *pool);
