/* SPDX-License-Identifier: MIT
 *
 * NetStream: a non-blocking byte stream, tcp under tls under deflate, each wrapping the one below.
 * Lives in one thread, the one that runs the GMainContext that was thread-default when it was made
 * (the net thread). Knows no protocol.
 */
#pragma once

#include "mailfs/config.h"

#include <gio/gio.h>

typedef struct NetStream NetStream;

/* Up to length bytes; 0 at end of stream; -1 with G_IO_ERROR_WOULD_BLOCK when there is nothing now,
 * or another error, after which the stream is dead. */
gssize net_stream_read (NetStream *stream, void *buffer, gsize length, GError **error);
/* How many bytes were taken, possibly fewer than length; -1 as for read. After WOULD_BLOCK the next
 * write must begin with the same bytes and be at least as long (a TLS record may be half sent). */
gssize net_stream_write (NetStream *stream, const void *data, gsize length, GError **error);
/* What was written and is still held in a layer (TLS record, deflate block) goes towards the wire.
 * FALSE with G_IO_ERROR_WOULD_BLOCK: call again when ready. */
gboolean net_stream_flush (NetStream *stream, GError **error);

/* ready is called from the main context whenever reading may bring something, and, after a write or
 * flush that would block, when writing may go on. It may free the stream. NULL stops it. */
typedef void (*NetStreamReadyFunc) (NetStream *stream, gpointer user_data);
void net_stream_set_ready (NetStream *stream, NetStreamReadyFunc ready, gpointer user_data);

/* Closes at once, all layers. */
void net_stream_free (NetStream *stream);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (NetStream, net_stream_free)

/* "127.0.0.1:993 TLSv1.3", for logs. */
const char *net_stream_describe (NetStream *stream);
gboolean net_stream_is_tls (NetStream *stream);

/* Trust and client certificate, made once from the config; refuses unreadable files. */
typedef struct NetTls NetTls;
NetTls *net_tls_new (const MailConfig *config, GError **error);
NetTls *net_tls_ref (NetTls *tls);
void net_tls_unref (NetTls *tls);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (NetTls, net_tls_unref)

/* stream is the callee's, or NULL with error set (borrowed). Never called before the start function
 * returned; never called after cancellable was cancelled. */
typedef void (*NetStreamFunc) (NetStream *stream, const GError *error, gpointer user_data);

/* Name look-up, happy eyeballs, proxies by GSocketClient; TCP_NODELAY, keep-alive. With tls the
 * handshake too (host name checked, TLS >= 1.2, pin). The whole within timeout_ms. */
void net_connect (const char *host, guint16 port, NetTls *tls, guint timeout_ms,
                  GCancellable *cancellable, NetStreamFunc done, gpointer user_data);

/* STARTTLS/STLS: takes inner. The caller has made sure that no byte after the server's OK was read
 * into its buffers; bytes waiting in the socket that are no TLS record fail the handshake. */
void net_start_tls (NetStream *inner, const char *host, NetTls *tls, guint timeout_ms,
                    GCancellable *cancellable, NetStreamFunc done, gpointer user_data);

/* COMPRESS=DEFLATE (RFC 4978): raw deflate both ways; takes inner. pending: bytes already read from
 * inner that belong to the compressed stream. */
NetStream *net_deflate_new (NetStream *inner, const void *pending, gsize n_pending);
