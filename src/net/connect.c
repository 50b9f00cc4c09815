/* SPDX-License-Identifier: MIT
 *
 * How a NetStream comes to be: connect, TLS handshake, STARTTLS upgrade, all under one deadline.
 * The thread whose context was thread-default at the start.
 */
#include "mailfs/error.h"
#include "net/layer.h"

#include <sys/socket.h>

typedef struct
{
  char *host;
  guint16 port;
  NetTls *tls;
  guint timeout_ms;
  NetStreamFunc done;
  gpointer user_data;

  GCancellable *cancellable; /* the caller's, or NULL */
  GCancellable *connecting;  /* GSocketClient's */
  GSource *deadline, *cancelled, *kick;
  NetStream *stream; /* from the handshake on */
  gboolean upgrade;  /* STARTTLS */
  gboolean finished; /* waits only for GSocketClient to come back */
  gboolean busy;     /* GSocketClient is at work */
} Attempt;

static void
stop_source (GSource **source)
{
  if (*source != NULL)
    g_source_destroy (*source);
  g_clear_pointer (source, g_source_unref);
}

static void
start_source (GSource **place, GSource *source, GSourceFunc callback, Attempt *attempt)
{
  g_source_set_callback (source, callback, attempt, NULL);
  g_source_attach (source, g_main_context_get_thread_default ());
  *place = source;
}

static void
attempt_free (Attempt *attempt)
{
  g_clear_object (&attempt->cancellable);
  g_clear_object (&attempt->connecting);
  g_clear_pointer (&attempt->tls, net_tls_unref);
  g_free (attempt->host);
  g_free (attempt);
}

/* The one way out. Frees the attempt, unless GSocketClient still holds it; takes error. */
static void
finish (Attempt *attempt, GError *error)
{
  NetStream *stream = g_steal_pointer (&attempt->stream);
  gboolean cancelled = g_cancellable_is_cancelled (attempt->cancellable);
  NetStreamFunc done = attempt->done;
  gpointer user_data = attempt->user_data;

  stop_source (&attempt->deadline);
  stop_source (&attempt->cancelled);
  stop_source (&attempt->kick);
  if (stream != NULL)
    net_stream_set_ready (stream, NULL, NULL);
  if (cancelled || error != NULL)
    g_clear_pointer (&stream, net_stream_free);
  attempt->finished = TRUE;
  if (attempt->busy)
    g_cancellable_cancel (attempt->connecting);
  else
    attempt_free (attempt);
  if (!cancelled)
    done (stream, error, user_data);
  g_clear_error (&error);
}

static void
handshake_step (Attempt *attempt)
{
  GError *error = NULL;

  if (net_tls_stream_handshake (attempt->stream, &error))
    finish (attempt, NULL);
  else if (!g_error_matches (error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
    finish (attempt, error);
  else
    g_clear_error (&error);
}

static void
handshake_ready (NetStream *stream, gpointer user_data)
{
  handshake_step (user_data);
}

/* Before our ClientHello a server has nothing to say: what is there was put there to be read as
   the answer to a command sent under TLS (CVE-2021-22947 and kin). */
static gboolean
is_clean (NetStream *stream)
{
  char byte;

  return recv (stream->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0;
}

static gboolean
begin_handshake (gpointer user_data)
{
  Attempt *attempt = user_data;
  GError *error = NULL;

  stop_source (&attempt->kick);
  if (attempt->upgrade && !is_clean (attempt->stream))
    {
      error = g_error_new (MAIL_ERROR, MAIL_ERROR_TLS,
                           "%s sent more before TLS began: somebody may be in between",
                           attempt->host);
      finish (attempt, error);
      return G_SOURCE_REMOVE;
    }
  attempt->stream = net_tls_stream_new (g_steal_pointer (&attempt->stream), attempt->host,
                                        attempt->tls, &error);
  if (attempt->stream == NULL)
    {
      finish (attempt, error);
      return G_SOURCE_REMOVE;
    }
  net_stream_set_ready (attempt->stream, handshake_ready, attempt);
  handshake_step (attempt);
  return G_SOURCE_REMOVE;
}

static void
connected (GObject *object, GAsyncResult *result, gpointer user_data)
{
  Attempt *attempt = user_data;
  g_autoptr (GError) problem = NULL;
  GError *error = NULL;
  GSocketConnection *connection = g_socket_client_connect_finish (G_SOCKET_CLIENT (object), result,
                                                                  &problem);

  attempt->busy = FALSE;
  if (attempt->finished)
    {
      g_clear_object (&connection);
      attempt_free (attempt);
      return;
    }
  if (connection == NULL)
    {
      error = g_error_new (MAIL_ERROR, MAIL_ERROR_CONNECTION, "cannot connect to %s port %u: %s",
                           attempt->host, attempt->port, problem->message);
      finish (attempt, error);
      return;
    }
  attempt->stream = net_tcp_new (connection, &error);
  if (attempt->stream == NULL || attempt->tls == NULL)
    finish (attempt, error);
  else
    begin_handshake (attempt);
}

static gboolean
deadline_passed (gpointer user_data)
{
  Attempt *attempt = user_data;
  const char *what = attempt->stream != NULL ? "the TLS handshake with" : "the connection to";

  finish (attempt,
          g_error_new (MAIL_ERROR, MAIL_ERROR_TIMED_OUT, "%s %s was not there after %u seconds",
                       what, attempt->host, (attempt->timeout_ms + 999) / 1000));
  return G_SOURCE_REMOVE;
}

static gboolean
attempt_cancelled (GCancellable *cancellable, gpointer user_data)
{
  finish (user_data, NULL);
  return G_SOURCE_REMOVE;
}

static Attempt *
attempt_new (const char *host, guint16 port, NetTls *tls, guint timeout_ms,
             GCancellable *cancellable, NetStreamFunc done, gpointer user_data)
{
  Attempt *attempt = g_new0 (Attempt, 1);

  attempt->host = g_strdup (host);
  attempt->port = port;
  attempt->tls = tls != NULL ? net_tls_ref (tls) : NULL;
  attempt->timeout_ms = timeout_ms;
  attempt->done = done;
  attempt->user_data = user_data;
  start_source (&attempt->deadline, g_timeout_source_new (timeout_ms), deadline_passed, attempt);
  if (cancellable != NULL)
    {
      attempt->cancellable = g_object_ref (cancellable);
      start_source (&attempt->cancelled, g_cancellable_source_new (cancellable),
                    G_SOURCE_FUNC (attempt_cancelled), attempt);
    }
  return attempt;
}

void
net_connect (const char *host, guint16 port, NetTls *tls, guint timeout_ms,
             GCancellable *cancellable, NetStreamFunc done, gpointer user_data)
{
  Attempt *attempt = attempt_new (host, port, tls, timeout_ms, cancellable, done, user_data);
  g_autoptr (GSocketClient) client = g_socket_client_new ();
  g_autoptr (GSocketConnectable) address = g_network_address_new (host, port);

  attempt->connecting = g_cancellable_new ();
  attempt->busy = TRUE;
  g_socket_client_connect_async (client, address, attempt->connecting, connected, attempt);
}

void
net_start_tls (NetStream *inner, const char *host, NetTls *tls, guint timeout_ms,
               GCancellable *cancellable, NetStreamFunc done, gpointer user_data)
{
  Attempt *attempt = attempt_new (host, 0, tls, timeout_ms, cancellable, done, user_data);

  net_stream_set_ready (inner, NULL, NULL);
  attempt->stream = inner;
  attempt->upgrade = TRUE;
  start_source (&attempt->kick, g_idle_source_new (), begin_handshake, attempt);
}
