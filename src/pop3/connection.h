/* SPDX-License-Identifier: MIT
 *
 * Pop3Connection: a Pop3Session on a NetStream: connecting, TLS, the secret, deadlines. Net thread.
 */
#pragma once

#include "pop3/session.h"

#include "mailfs/config.h"
#include "mailfs/stream.h"

typedef struct Pop3Connection Pop3Connection;

typedef struct
{
  /* Logged in. Once, not before pop3_connection_new returned. */
  void (*ready) (gpointer user_data);
  /* It has ended, after QUIT (error NULL) or because of error; all commands have had their done.
   * Once, the last call; the connection may be freed in it. */
  void (*ended) (const GError *error, gpointer user_data);
} Pop3ConnectionFuncs;

/* Starts to connect and log in. Borrows config and secrets; tls NULL: clear text. */
Pop3Connection *
pop3_connection_new (const MailConfig *config, MailSecretSource *secrets, NetTls *tls,
                     gboolean utf8, const Pop3ConnectionFuncs *funcs, gpointer user_data);
/* Closes at once, without a further call of any kind. Not to be called from a command's functions.
 */
void pop3_connection_free (Pop3Connection *connection);

/* For its state, capabilities and pop3_session_send; owned by the connection. */
Pop3Session *pop3_connection_session (Pop3Connection *connection);
/* After sending: brings the session's output on its way. May be called from a command's functions.
 */
void pop3_connection_flush (Pop3Connection *connection);
