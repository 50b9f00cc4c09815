/* SPDX-License-Identifier: MIT
 *
 * ImapConnection: a NetStream and the ImapSession that talks over it: connecting, moving bytes both
 * ways, TLS upgrade, fetching the secret, deadlines. Tells its owner when something happened; knows
 * nothing of other connections. Net thread.
 */
#pragma once

#include "imap/session.h"
#include "mailfs/config.h"
#include "mailfs/stream.h"

typedef struct ImapConnection ImapConnection;

/* Something happened: look at the state, give it work, or free it when it is dead. Never called
 * from within a function of the connection that the owner called, except imap_connection_flush's
 * caller must look at the state itself. */
typedef void (*ImapConnectionFunc) (ImapConnection *connection, gpointer user_data);

/* Begins to connect. Borrows all. tls NULL: clear text. */
ImapConnection *imap_connection_new (const MailConfig *config, MailSecretSource *secrets,
                                     NetTls *tls, ImapConnectionFunc changed, gpointer user_data);
/* Closes at once; what is left is failed with the error. */
void imap_connection_free (ImapConnection *connection);

/* Dead: imap_connection_error. */
gboolean imap_connection_is_dead (const ImapConnection *connection);
gboolean imap_connection_is_ready (const ImapConnection *connection);
const GError *imap_connection_error (const ImapConnection *connection);
/* NULL while connecting. Never NULL once ready. */
ImapSession *imap_connection_session (const ImapConnection *connection);
/* Writes what the session has to say; after submit and the like. */
void imap_connection_flush (ImapConnection *connection);
/* Bytes received so far, inflated. */
guint64 imap_connection_bytes_in (const ImapConnection *connection);
/* For so many ms until now nobody looked: they do not count. */
void imap_connection_excuse (ImapConnection *connection, gint64 late, gint64 now);
void imap_connection_check (ImapConnection *connection, gint64 now);
/* Monotonic milliseconds, those of sleep included: what was under way then is over. */
gint64 imap_now (void);
