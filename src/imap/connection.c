/* SPDX-License-Identifier: MIT
 *
 * One connection: bytes between a NetStream and an ImapSession. All reading goes through one large
 * buffer, from which the parser hands literals on without copying. Net thread.
 */
#include "imap/connection.h"

#include "mailfs/log.h"

#include <string.h>
#include <time.h>

#define READ_SIZE (256 * 1024)

struct ImapConnection
{
  const MailConfig *config;
  MailSecretSource *secrets;
  NetTls *tls;
  ImapConnectionFunc changed;
  gpointer user_data;

  GCancellable *cancellable;
  NetStream *stream; /* NULL while connecting, and during the TLS upgrade */
  ImapSession *session;
  char *peer;
  guint8 *buffer;
  GError *error; /* why it is dead, before there was a session */
  guint64 bytes_in;
  gint64 deadline; /* of connecting */
  gboolean asked_secret, blocked, freed;
  guint busy; /* in a call back: free waits */
};

gint64
imap_now (void)
{
  struct timespec now;

  clock_gettime (CLOCK_BOOTTIME, &now);
  return (gint64)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

gboolean
imap_connection_is_dead (const ImapConnection *connection)
{
  return connection->error != NULL
         || (connection->session != NULL
             && imap_session_state (connection->session) == IMAP_SESSION_DEAD);
}

gboolean
imap_connection_is_ready (const ImapConnection *connection)
{
  return connection->session != NULL
         && imap_session_state (connection->session) == IMAP_SESSION_READY;
}

const GError *
imap_connection_error (const ImapConnection *connection)
{
  return connection->error != NULL ? connection->error : imap_session_error (connection->session);
}

ImapSession *
imap_connection_session (const ImapConnection *connection)
{
  return connection->session;
}

static void
really_free (ImapConnection *connection)
{
  imap_session_free (connection->session);
  net_stream_free (connection->stream);
  g_object_unref (connection->cancellable);
  g_clear_error (&connection->error);
  g_free (connection->buffer);
  g_free (connection->peer);
  g_free (connection);
}

void
imap_connection_free (ImapConnection *connection)
{
  if (connection == NULL)
    return;
  g_cancellable_cancel (connection->cancellable);
  connection->freed = TRUE;
  if (connection->stream != NULL)
    net_stream_set_ready (connection->stream, NULL, NULL);
  if (connection->busy == 0)
    really_free (connection);
}

/* The owner may free the connection in here; so nothing is touched afterwards but what leave does.
 */
static void
tell (ImapConnection *connection)
{
  if (!connection->freed)
    connection->changed (connection, connection->user_data);
}

static void
leave (ImapConnection *connection)
{
  if (--connection->busy == 0 && connection->freed)
    really_free (connection);
}

static void
fail (ImapConnection *connection, const GError *error)
{
  if (connection->session != NULL)
    imap_session_lost (connection->session, error);
  else if (connection->error == NULL)
    connection->error = g_error_copy (error);
}

/* --- writing ---------------------------------------------------------------------------------- */

static void on_secret (GObject *source, GAsyncResult *result, gpointer user_data);
static void on_tls (NetStream *stream, const GError *error, gpointer user_data);

typedef struct
{
  ImapConnection *connection; /* not to be touched once cancelled */
  GCancellable *cancellable;
} SecretWait;

/* What the session cannot do by itself. */
static void
serve_wishes (ImapConnection *connection)
{
  switch (imap_session_state (connection->session))
    {
    case IMAP_SESSION_WANTS_TLS:
      if (connection->stream == NULL)
        return;
      net_stream_set_ready (connection->stream, NULL, NULL);
      net_start_tls (g_steal_pointer (&connection->stream), connection->config->host,
                     connection->tls, connection->config->timeout * 1000, connection->cancellable,
                     on_tls, connection);
      return;
    case IMAP_SESSION_WANTS_SECRET:
      if (!connection->asked_secret)
        {
          SecretWait *wait = g_new0 (SecretWait, 1);

          wait->connection = connection;
          wait->cancellable = g_object_ref (connection->cancellable);
          connection->asked_secret = TRUE;
          mail_secret_source_get_async (connection->secrets, connection->cancellable, on_secret,
                                        wait);
        }
      return;
    default:
      return;
    }
}

void
imap_connection_flush (ImapConnection *connection)
{
  gboolean wrote = FALSE;

  if (connection->session == NULL || connection->stream == NULL)
    return;
  for (;;)
    {
      g_autoptr (GError) error = NULL;
      gsize length;
      const guint8 *data = imap_session_output (connection->session, &length, imap_now ());
      gssize n;

      if (length == 0)
        break;
      n = net_stream_write (connection->stream, data, length, &error);
      if (n < 0)
        {
          if (!g_error_matches (error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
            fail (connection, error);
          return;
        }
      mail_counter_add (MAIL_COUNTER_BYTES_OUT, (guint64)n);
      imap_session_written (connection->session, (gsize)n, imap_now ());
      wrote = TRUE;
    }
  if (wrote || connection->blocked)
    {
      g_autoptr (GError) error = NULL;

      connection->blocked = !net_stream_flush (connection->stream, &error);
      if (connection->blocked && !g_error_matches (error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
        fail (connection, error);
    }
}

static void on_ready (NetStream *stream, gpointer user_data);

/* pending: what came behind the server's OK. */
static void
begin_deflate (ImapConnection *connection, const guint8 *pending, gsize n_pending)
{
  NetStream *inner = g_steal_pointer (&connection->stream);

  net_stream_set_ready (inner, NULL, NULL);
  connection->stream = net_deflate_new (inner, pending, n_pending);
  net_stream_set_ready (connection->stream, on_ready, connection);
  imap_session_deflate_done (connection->session, imap_now ());
}

/* --- reading ---------------------------------------------------------------------------------- */

static void
on_ready (NetStream *stream, gpointer user_data)
{
  ImapConnection *connection = user_data;

  connection->busy++;
  /* After so much other connections have their turn. */
  for (gsize got = 0; got < READ_SIZE && !connection->freed && connection->stream != NULL;)
    {
      g_autoptr (GError) error = NULL;
      gssize n = net_stream_read (connection->stream, connection->buffer, READ_SIZE, &error);
      gsize taken;

      if (n <= 0)
        {
          if (n == 0 || !g_error_matches (error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
            fail (connection, error);
          break;
        }
      got += (gsize)n;
      mail_counter_add (MAIL_COUNTER_BYTES_IN, (guint64)n);
      connection->bytes_in += (guint64)n;
      taken = imap_session_feed (connection->session, connection->buffer, (gsize)n, imap_now ());
      if (imap_connection_is_dead (connection))
        break;
      if (imap_session_state (connection->session) == IMAP_SESSION_WANTS_DEFLATE)
        begin_deflate (connection, connection->buffer + taken, (gsize)n - taken);
      serve_wishes (connection);
    }
  if (!connection->freed)
    imap_connection_flush (connection);
  tell (connection);
  leave (connection);
}

/* --- connecting ------------------------------------------------------------------------------- */

static void
take_stream (ImapConnection *connection, NetStream *stream)
{
  connection->stream = stream;
  g_free (connection->peer);
  connection->peer = g_strdup (net_stream_describe (stream));
  net_stream_set_ready (stream, on_ready, connection);
}

static void
on_secret (GObject *source, GAsyncResult *result, gpointer user_data)
{
  SecretWait *wait = user_data;
  ImapConnection *connection = wait->connection;
  gboolean gone = g_cancellable_is_cancelled (wait->cancellable);
  g_autoptr (GError) error = NULL;
  g_autoptr (MailSecret) secret = gone ? NULL
                                       : mail_secret_source_get_finish (connection->secrets, result,
                                                                        &error);

  g_object_unref (wait->cancellable);
  g_free (wait);
  if (gone)
    return;
  connection->busy++;
  if (secret != NULL)
    imap_session_set_secret (connection->session, secret->text, imap_now ());
  else
    {
      g_clear_error (&connection->error);
      connection->error = g_error_copy (error);
    }
  if (!imap_connection_is_dead (connection))
    imap_connection_flush (connection);
  tell (connection);
  leave (connection);
}

static void
on_tls (NetStream *stream, const GError *error, gpointer user_data)
{
  ImapConnection *connection = user_data;

  connection->busy++;
  if (stream == NULL)
    {
      g_clear_error (&connection->error);
      connection->error = g_error_copy (error);
    }
  else
    {
      take_stream (connection, stream);
      imap_session_tls_done (connection->session, imap_now ());
      imap_connection_flush (connection);
    }
  tell (connection);
  leave (connection);
}

static void
on_connected (NetStream *stream, const GError *error, gpointer user_data)
{
  ImapConnection *connection = user_data;
  const MailConfig *config = connection->config;
  ImapSessionOptions options = {
    .host = config->host,
    .port = config->port,
    .user = config->user,
    .auth = config->auth,
    .tls = !config->tls                          ? IMAP_TLS_OFF
           : config->scheme == MAIL_SCHEME_IMAPS ? IMAP_TLS_IMPLICIT
                                                 : IMAP_TLS_STARTTLS,
    .timeout_ms = config->timeout * 1000,
  };

  connection->busy++;
  if (stream == NULL)
    connection->error = g_error_copy (error);
  else
    {
      take_stream (connection, stream);
      connection->buffer = g_malloc (READ_SIZE);
      options.peer = config->host;
      connection->session = imap_session_new (&options, imap_now ());
    }
  tell (connection);
  leave (connection);
}

ImapConnection *
imap_connection_new (const MailConfig *config, MailSecretSource *secrets, NetTls *tls,
                     ImapConnectionFunc changed, gpointer user_data)
{
  ImapConnection *connection = g_new0 (ImapConnection, 1);
  guint timeout_ms = config->timeout * 1000;

  connection->config = config;
  connection->secrets = secrets;
  connection->tls = tls;
  connection->changed = changed;
  connection->user_data = user_data;
  connection->cancellable = g_cancellable_new ();
  connection->deadline = imap_now () + timeout_ms;
  if (config->tls && tls == NULL)
    {
      /* Never in clear text by accident. The owner sees it at its next check. */
      g_set_error (&connection->error, MAIL_ERROR, MAIL_ERROR_TLS, "TLS is not set up");
      return connection;
    }
  net_connect (config->host, config->port, config->scheme == MAIL_SCHEME_IMAPS ? tls : NULL,
               timeout_ms, connection->cancellable, on_connected, connection);
  return connection;
}

guint64
imap_connection_bytes_in (const ImapConnection *connection)
{
  return connection->bytes_in;
}

void
imap_connection_excuse (ImapConnection *connection, gint64 late, gint64 now)
{
  connection->deadline = MIN (connection->deadline + late,
                              now + (gint64)connection->config->timeout * 1000);
  if (connection->session != NULL)
    imap_session_excuse (connection->session, late, now);
}

void
imap_connection_check (ImapConnection *connection, gint64 now)
{
  if (connection->session != NULL)
    imap_session_check (connection->session, now);
  else if (connection->error == NULL && now > connection->deadline + 2000)
    connection->error = g_error_new (MAIL_ERROR, MAIL_ERROR_TIMED_OUT,
                                     "%s: no connection within %u s", connection->config->host,
                                     connection->config->timeout);
}
