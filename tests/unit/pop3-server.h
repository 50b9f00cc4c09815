/* SPDX-License-Identifier: MIT
 *
 * A small POP3 server in a thread of its own, with a maildrop and a knob for each way in which
 * servers misbehave. Knobs and maildrop are changed under its lock.
 */
#pragma once

#include <glib.h>

typedef struct
{
  char *uidl;
  char *bytes; /* as stored: CRLF, not stuffed */
} ServerMessage;

typedef struct
{
  GMutex lock;
  GCond changed;
  int listener;
  guint16 port;
  GThread *thread;
  gboolean stop;
  int peer; /* fd of the session, or -1 */

  GPtrArray *messages; /* of ServerMessage */
  GString *log;        /* commands, one a line, over all sessions */
  guint n_connections, n_logins, n_open;

  /* Knobs. */
  const char *capa; /* its lines; NULL: -ERR */
  gboolean deaf;    /* drops what came behind the command it reads: no pipelining */
  gboolean no_uidl;
  guint n_in_use;           /* so many logins are refused */
  const char *refuse_login; /* -ERR with this */
  int cut_retr;             /* so many more RETR are cut in the middle */
  gboolean lose_quit;       /* QUIT closes without an answer and without removal */
  gboolean refuse_dele;
  gboolean needs_utf8; /* RETR without UTF8 is refused */
  gboolean trickle;    /* RETR sends a byte now and then */
  gboolean silent;     /* no answer to RETR */
} Server;

Server *server_new (void);
void server_free (Server *server);
void server_add (Server *server, const char *uidl, const char *bytes);
/* The commands so far; forgets them. */
char *server_take_log (Server *server);
/* Waits until no session is open. */
void server_wait_closed (Server *server);

#define SERVER_CAPA "TOP\r\nUIDL\r\nUSER\r\nPIPELINING\r\nRESP-CODES\r\nUTF8\r\n"
#define SERVER_CAPA_SERIAL "TOP\r\nUIDL\r\nUSER\r\nRESP-CODES\r\n"
