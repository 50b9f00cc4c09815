/* SPDX-License-Identifier: MIT
 *
 * The bottom of a NetStream: a connected socket, non-blocking. The stream's thread.
 */
#include "mailfs/error.h"
#include "net/layer.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

typedef struct
{
  NetStream base;
  GSocketConnection *connection;
} TcpStream;

/* -1, with what errno says about the connection. */
static gssize
fail (NetStream *stream, GError **error)
{
  if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
    net_would_block (error);
  else
    g_set_error (error, MAIL_ERROR,
                 errno == ETIMEDOUT ? MAIL_ERROR_TIMED_OUT : MAIL_ERROR_CONNECTION,
                 "connection to %s lost: %s", stream->description, g_strerror (errno));
  return -1;
}

static gssize
tcp_read (NetStream *stream, void *buffer, gsize length, GError **error)
{
  gssize n = recv (stream->fd, buffer, length, 0);

  return n >= 0 ? n : fail (stream, error);
}

static gssize
tcp_write (NetStream *stream, const void *data, gsize length, GError **error)
{
  gssize n = send (stream->fd, data, length, MSG_NOSIGNAL);

  stream->want_out = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
  return n >= 0 ? n : fail (stream, error);
}

static void
tcp_close (NetStream *stream)
{
  TcpStream *tcp = (TcpStream *)stream;
  const struct linger none = { .l_onoff = 1, .l_linger = 0 };
  int n_unsent = 0;

  /* What the server has not got by now is not to reach it later, when another connection has looked
   * whether it did. */
  if (ioctl (stream->fd, SIOCOUTQ, &n_unsent) == 0 && n_unsent > 0)
    setsockopt (stream->fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
  g_io_stream_close (G_IO_STREAM (tcp->connection), NULL, NULL);
  g_object_unref (tcp->connection);
}

static const NetStreamOps tcp_ops = {
  .read = tcp_read,
  .write = tcp_write,
  .close = tcp_close,
};

static char *
describe (GSocketConnection *connection)
{
  g_autoptr (GSocketAddress) address = g_socket_connection_get_remote_address (connection, NULL);

  if (address != NULL && G_IS_INET_SOCKET_ADDRESS (address))
    return g_socket_connectable_to_string (G_SOCKET_CONNECTABLE (address));
  return g_strdup ("server");
}

NetStream *
net_tcp_new (GSocketConnection *connection, GError **error)
{
  GSocket *socket = g_socket_connection_get_socket (connection);
  TcpStream *tcp;

  /* A proxy reached over TLS: the bytes would have to go through GIO's stream. */
  if (G_IS_TCP_WRAPPER_CONNECTION (connection))
    {
      g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_CONNECTION,
                           "proxies that speak TLS themselves are not supported");
      g_object_unref (connection);
      return NULL;
    }
  g_socket_set_blocking (socket, FALSE);
  g_socket_set_keepalive (socket, TRUE);
  g_socket_set_option (socket, IPPROTO_TCP, TCP_NODELAY, 1, NULL);
  tcp = g_new0 (TcpStream, 1);
  tcp->connection = connection;
  net_stream_init (&tcp->base, &tcp_ops, NULL, describe (connection));
  tcp->base.fd = g_socket_get_fd (socket);
  return &tcp->base;
}
