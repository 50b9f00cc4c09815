/* SPDX-License-Identifier: MIT
 *
 * What a layer of NetStream is made of, inside src/net only. One GSource of the outermost layer
 * polls the socket of the innermost; a layer that holds input which needs no socket says so.
 */
#pragma once

#include "mailfs/stream.h"

typedef struct
{
  gssize (*read) (NetStream *stream, void *buffer, gsize length, GError **error);
  gssize (*write) (NetStream *stream, const void *data, gsize length, GError **error);
  gboolean (*flush) (NetStream *stream, GError **error); /* NULL: just the layer below */
  gboolean (*pending) (NetStream *stream); /* a read would give something without the socket */
  void (*close) (NetStream *stream);       /* frees the layer's own; inner follows by itself */
} NetStreamOps;

struct NetStream
{
  const NetStreamOps *ops;
  NetStream *inner; /* owned; NULL at the bottom */
  char *description;
  gboolean is_tls;

  int fd;            /* bottom only */
  gboolean want_out; /* bottom only: the last send would have blocked */

  GMainContext *context;
  GSource *source; /* outermost only */
  NetStreamReadyFunc ready;
  gpointer ready_data;
};

/* Fills the common part; takes inner and description. */
void
net_stream_init (NetStream *stream, const NetStreamOps *ops, NetStream *inner, char *description);

/* FALSE, with error set to G_IO_ERROR_WOULD_BLOCK. */
gboolean net_would_block (GError **error);

/* Takes the connection; non-blocking from now on. */
NetStream *net_tcp_new (GSocketConnection *connection, GError **error);

/* The client side of TLS over inner, which it takes even if it fails. No byte moves yet. */
NetStream *net_tls_stream_new (NetStream *inner, const char *host, NetTls *tls, GError **error);
/* TRUE when done and everything was verified; FALSE with G_IO_ERROR_WOULD_BLOCK to be called again
 * when ready, or with what went wrong. */
gboolean net_tls_stream_handshake (NetStream *stream, GError **error);
