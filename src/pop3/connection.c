/* SPDX-License-Identifier: MIT
 *
 * Pop3Connection: moves bytes between a stream and a session and minds the deadline, which is one
 * for everything: config->timeout seconds without a finished answer or 4 KiB of a message, while
 * one is due. Single bytes now and then do not count.
 *
 * Reading and writing happen only from the main loop's own calls (never inside a command's
 * functions), so what ends the connection is told from the bottom of the stack.
 */
#include "pop3/connection.h"

#include "mailfs/log.h"

#define READ_SIZE 65536
/* Blocks read before the rest of the main loop has its turn. */
#define READS_MAX 4

/* A task calls back even when it was cancelled, so it gets this and not the connection. */
typedef struct
{
  MailSecretSource *secrets;
  Pop3Connection *connection; /* NULL: freed meanwhile */
} SecretWait;

struct Pop3Connection
{
  const MailConfig *config;
  MailSecretSource *secrets;
  NetTls *tls; /* may be NULL */
  const Pop3ConnectionFuncs *funcs;
  gpointer user_data;

  Pop3Session *session;
  NetStream *stream; /* NULL while connecting or in a handshake */
  GCancellable *cancellable;
  SecretWait *secret_wait; /* being asked for; frees itself */
  gboolean told_ready, told_end;
  GSource *deadline;
  GSource *flush;   /* pending */
  gboolean waiting; /* an answer was due when progress was looked at last */
  guint64 progress;
  gint64 progress_at; /* monotonic µs */
  gint64 due_at;      /* when the deadline is to be looked at */
};

static void pump (Pop3Connection *connection);

static GSource *
attach (GSource *source, GSourceFunc func, gpointer user_data)
{
  g_source_set_callback (source, func, user_data, NULL);
  g_source_attach (source, g_main_context_get_thread_default ());
  return source;
}

static void
clear_source (GSource **source)
{
  if (*source != NULL)
    g_source_destroy (*source);
  g_clear_pointer (source, g_source_unref);
}

/* The last thing done in a main loop call: the connection may be gone afterwards. */
static void
tell_end (Pop3Connection *connection)
{
  g_autoptr (GError) error = NULL;
  const GError *why = pop3_session_error (connection->session);

  if (connection->told_end)
    return;
  connection->told_end = TRUE;
  if (why != NULL)
    error = g_error_copy (why);
  clear_source (&connection->deadline);
  clear_source (&connection->flush);
  g_cancellable_cancel (connection->cancellable);
  g_clear_pointer (&connection->stream, net_stream_free);
  connection->funcs->ended (error, connection->user_data);
}

static void
lose (Pop3Connection *connection, const GError *error)
{
  g_autoptr (GError) mapped = NULL;

  /* G_IO_ERROR is what the stream says; only the time-out means something else than "broken". */
  if (error != NULL && error->domain != MAIL_ERROR)
    mapped = g_error_new_literal (MAIL_ERROR,
                                  g_error_matches (error, G_IO_ERROR, G_IO_ERROR_TIMED_OUT)
                                      ? MAIL_ERROR_TIMED_OUT
                                      : MAIL_ERROR_CONNECTION,
                                  error->message);
  pop3_session_lost (connection->session, mapped != NULL ? mapped : error);
  tell_end (connection);
}

/* --- deadline -------------------------------------------------------------------------------- */

static gboolean on_deadline (gpointer user_data);

static void
arm_deadline (Pop3Connection *connection, gint64 at)
{
  gint64 left = (at - g_get_monotonic_time ()) / 1000 + 1;

  clear_source (&connection->deadline);
  connection->due_at = at;
  connection->deadline = attach (g_timeout_source_new ((guint)CLAMP (left, 1, G_MAXINT)),
                                 on_deadline, connection);
}

static void
note_progress (Pop3Connection *connection)
{
  guint64 progress = pop3_session_progress (connection->session);

  gboolean waiting = pop3_session_waiting (connection->session);

  if (progress != connection->progress || !waiting || !connection->waiting)
    connection->progress_at = g_get_monotonic_time ();
  connection->progress = progress;
  connection->waiting = waiting;
}

static gboolean
on_deadline (gpointer user_data)
{
  Pop3Connection *connection = user_data;
  gint64 limit = (gint64)connection->config->timeout * G_USEC_PER_SEC;
  gboolean waiting = pop3_session_waiting (connection->session)
                     || pop3_session_state (connection->session) != POP3_STATE_READY;
  gint64 now = g_get_monotonic_time ();

  /* Late: it is we who were slow (stopped, asleep), and what came meanwhile is read first. */
  if (!waiting || now - connection->due_at > G_USEC_PER_SEC)
    connection->progress_at = now;
  if (now < connection->progress_at + limit)
    arm_deadline (connection, connection->progress_at + limit);
  else
    {
      g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_TIMED_OUT,
                                              "the server did not answer in %u seconds",
                                              connection->config->timeout);
      lose (connection, error);
    }
  return G_SOURCE_REMOVE;
}

/* --- bytes ----------------------------------------------------------------------------------- */

/* FALSE: the connection has ended and told so. */
static gboolean
write_output (Pop3Connection *connection)
{
  g_autoptr (GError) error = NULL;
  const guint8 *data;
  gsize length;
  gssize n = 0;

  while ((data = pop3_session_output (connection->session, &length)) && length > 0)
    {
      n = net_stream_write (connection->stream, data, length, &error);
      if (n < 0)
        break;
      mail_counter_add (MAIL_COUNTER_BYTES_OUT, (guint64)n);
      pop3_session_sent (connection->session, (gsize)n);
    }
  if (error == NULL)
    net_stream_flush (connection->stream, &error);
  if (error == NULL || g_error_matches (error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
    return TRUE;
  lose (connection, error);
  return FALSE;
}

/* The same. */
static gboolean
read_input (Pop3Connection *connection)
{
  guint8 buffer[READ_SIZE];

  for (guint n_reads = 0;
       n_reads < READS_MAX && pop3_session_state (connection->session) != POP3_STATE_TLS; n_reads++)
    {
      g_autoptr (GError) error = NULL;
      gssize n = net_stream_read (connection->stream, buffer, sizeof buffer, &error);

      if (n < 0 && g_error_matches (error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
        return TRUE;
      if (n <= 0)
        {
          lose (connection, error);
          return FALSE;
        }
      mail_counter_add (MAIL_COUNTER_BYTES_IN, (guint64)n);
      pop3_session_feed (connection->session, buffer, (gsize)n);
      note_progress (connection);
      if (pop3_session_state (connection->session) == POP3_STATE_ENDED)
        {
          tell_end (connection);
          return FALSE;
        }
      /* The next commands should be on their way before the next block is taken apart. */
      if (pop3_session_state (connection->session) == POP3_STATE_READY
          && !write_output (connection))
        return FALSE;
    }
  return TRUE;
}

static void
on_stream_ready (NetStream *stream, gpointer user_data)
{
  Pop3Connection *connection = user_data;

  if (read_input (connection))
    pump (connection);
}

static gboolean
on_flush (gpointer user_data)
{
  Pop3Connection *connection = user_data;

  clear_source (&connection->flush);
  pump (connection);
  return G_SOURCE_REMOVE;
}

void
pop3_connection_flush (Pop3Connection *connection)
{
  note_progress (connection);
  if (connection->flush == NULL)
    connection->flush = attach (g_timeout_source_new (0), on_flush, connection);
}

/* --- what the session asks for ---------------------------------------------------------------- */

static void
use_stream (Pop3Connection *connection, NetStream *stream)
{
  connection->stream = stream;
  net_stream_set_ready (stream, on_stream_ready, connection);
}

static void
on_tls (NetStream *stream, const GError *error, gpointer user_data)
{
  Pop3Connection *connection = user_data;

  if (stream == NULL)
    {
      lose (connection, error);
      return;
    }
  use_stream (connection, stream);
  pop3_session_tls_started (connection->session);
  pump (connection);
}

static void
on_secret (GObject *object, GAsyncResult *result, gpointer user_data)
{
  g_autofree SecretWait *wait = user_data;
  Pop3Connection *connection = wait->connection;
  g_autoptr (GError) error = NULL;
  g_autoptr (MailSecret) secret = mail_secret_source_get_finish (wait->secrets, result, &error);

  if (connection == NULL)
    return;
  connection->secret_wait = NULL;
  if (pop3_session_state (connection->session) == POP3_STATE_ENDED)
    return;
  if (secret == NULL)
    {
      lose (connection, error);
      return;
    }
  connection->progress_at = g_get_monotonic_time ();
  pop3_session_give_secret (connection->session, secret->text);
  pump (connection);
}

static void
ask_secret (Pop3Connection *connection)
{
  SecretWait *wait = g_new0 (SecretWait, 1);

  wait->secrets = connection->secrets;
  wait->connection = connection;
  connection->secret_wait = wait;
  /* A command that fetches it has its own limit in time; ours begins with its end. */
  connection->progress_at = g_get_monotonic_time () + G_USEC_PER_SEC;
  mail_secret_source_get_async (connection->secrets, connection->cancellable, on_secret, wait);
}

/* Does what the session's state asks for. Only from the main loop; may end with the connection
 * gone. */
static void
pump (Pop3Connection *connection)
{
  if (pop3_session_state (connection->session) == POP3_STATE_ENDED)
    {
      tell_end (connection);
      return;
    }
  if (connection->stream == NULL || !write_output (connection))
    return;
  switch (pop3_session_state (connection->session))
    {
    case POP3_STATE_TLS:
      {
        NetStream *inner = g_steal_pointer (&connection->stream);
        net_stream_set_ready (inner, NULL, NULL);
        connection->progress_at = g_get_monotonic_time ();
        net_start_tls (inner, connection->config->host, connection->tls,
                       connection->config->timeout * 1000, connection->cancellable, on_tls,
                       connection);
        break;
      }
    case POP3_STATE_SECRET:
      if (connection->secret_wait == NULL)
        ask_secret (connection);
      break;
    case POP3_STATE_READY:
      if (!connection->told_ready)
        {
          connection->told_ready = TRUE;
          connection->funcs->ready (connection->user_data);
        }
      break;
    default:
      break;
    }
}

static void
on_connected (NetStream *stream, const GError *error, gpointer user_data)
{
  Pop3Connection *connection = user_data;

  if (stream == NULL)
    {
      lose (connection, error);
      return;
    }
  use_stream (connection, stream);
  connection->progress_at = g_get_monotonic_time ();
  pump (connection);
}

Pop3Connection *
pop3_connection_new (const MailConfig *config, MailSecretSource *secrets, NetTls *tls,
                     gboolean utf8, const Pop3ConnectionFuncs *funcs, gpointer user_data)
{
  Pop3Connection *connection = g_new0 (Pop3Connection, 1);
  gboolean implicit = tls != NULL && config->scheme == MAIL_SCHEME_POPS;
  const Pop3Setup setup = {
    .tls = implicit,
    .need_tls = config->tls,
    .user = config->user,
    .auth = config->auth,
    .host = config->host,
    .port = config->port,
    .utf8 = utf8,
  };

  connection->config = config;
  connection->secrets = secrets;
  connection->tls = tls != NULL ? net_tls_ref (tls) : NULL;
  connection->funcs = funcs;
  connection->user_data = user_data;
  connection->cancellable = g_cancellable_new ();
  connection->session = pop3_session_new (&setup);
  connection->progress_at = g_get_monotonic_time ();
  /* Connecting has a limit of its own, which says better what went wrong; this one is behind it. */
  arm_deadline (connection,
                connection->progress_at + (gint64)(config->timeout + 2) * G_USEC_PER_SEC);
  net_connect (config->host, config->port, implicit ? tls : NULL, config->timeout * 1000,
               connection->cancellable, on_connected, connection);
  return connection;
}

void
pop3_connection_free (Pop3Connection *connection)
{
  if (connection == NULL)
    return;
  g_cancellable_cancel (connection->cancellable);
  if (connection->secret_wait != NULL)
    connection->secret_wait->connection = NULL;
  clear_source (&connection->deadline);
  clear_source (&connection->flush);
  g_clear_pointer (&connection->stream, net_stream_free);
  pop3_session_free (connection->session);
  g_clear_pointer (&connection->tls, net_tls_unref);
  g_object_unref (connection->cancellable);
  g_free (connection);
}

Pop3Session *
pop3_connection_session (Pop3Connection *connection)
{
  return connection->session;
}
