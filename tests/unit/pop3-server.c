/* SPDX-License-Identifier: MIT
 *
 * The server's thread: one session after the other, as a locked maildrop has it.
 */
#include "pop3-server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct
{
  Server *server;
  int fd;
  GString *in, *out;
  GPtrArray *messages; /* of ServerMessage, as at the login, not owned */
  GArray *deleted;     /* of gboolean */
  gboolean utf8;
} Session;

static void
message_free (gpointer data)
{
  ServerMessage *message = data;

  g_free (message->uidl);
  g_free (message->bytes);
  g_free (message);
}

static gboolean
flush (Session *session)
{
  gsize at = 0;

  while (at < session->out->len)
    {
      gssize n = send (session->fd, session->out->str + at, session->out->len - at, MSG_NOSIGNAL);
      if (n <= 0)
        return FALSE;
      at += (gsize)n;
    }
  g_string_truncate (session->out, 0);
  return TRUE;
}

static char *
next_line (Session *session)
{
  char *end, *line;

  while ((end = strstr (session->in->str, "\r\n")) == NULL)
    {
      char buffer[4096];
      gssize n;

      if (!flush (session) || (n = recv (session->fd, buffer, sizeof buffer, 0)) <= 0)
        return NULL;
      g_string_append_len (session->in, buffer, n);
    }
  line = g_strndup (session->in->str, (gsize)(end - session->in->str));
  g_string_erase (session->in, 0, end - session->in->str + 2);
  if (session->server->deaf)
    g_string_truncate (session->in, 0);
  return line;
}

/* Dot-stuffed; n_lines: of the body, -1: all. */
static void
put_message (Session *session, const ServerMessage *message, int n_lines)
{
  gboolean body = FALSE;
  g_auto (GStrv) lines = g_strsplit (message->bytes, "\r\n", -1);

  g_string_append (session->out, "+OK\r\n");
  for (guint i = 0; lines[i] != NULL && (lines[i + 1] != NULL || lines[i][0] != '\0'); i++)
    {
      if (body && n_lines-- == 0)
        break;
      g_string_append_printf (session->out, "%s%s\r\n", lines[i][0] == '.' ? "." : "", lines[i]);
      body = body || lines[i][0] == '\0';
    }
  g_string_append (session->out, ".\r\n");
}

static gboolean
trickle (Session *session)
{
  for (gsize at = 0; at < session->out->len; at++)
    {
      if (send (session->fd, session->out->str + at, 1, MSG_NOSIGNAL) != 1)
        return FALSE;
      g_usleep (100 * 1000);
    }
  return TRUE;
}

static void
remove_deleted (Session *session)
{
  for (guint i = 0; i < session->deleted->len; i++)
    if (g_array_index (session->deleted, gboolean, i))
      g_ptr_array_remove (session->server->messages, session->messages->pdata[i]);
}

static void
put_listing (Session *session, gboolean uidl)
{
  g_string_append (session->out, "+OK\r\n");
  for (guint i = 0; i < session->messages->len; i++)
    {
      const ServerMessage *message = session->messages->pdata[i];
      if (uidl)
        g_string_append_printf (session->out, "%u %s\r\n", i + 1, message->uidl);
      else
        g_string_append_printf (session->out, "%u %zu\r\n", i + 1, strlen (message->bytes));
    }
  g_string_append (session->out, ".\r\n");
}

/* A command about one message. FALSE: the session is over. */
static gboolean
answer_message (Session *session, const char *line)
{
  Server *server = session->server;
  const char *space = strchr (line, ' ');
  guint number = space != NULL ? (guint)atoi (space + 1) : 0;
  const ServerMessage *message;

  if (number == 0 || number > session->messages->len
      || g_array_index (session->deleted, gboolean, number - 1))
    {
      g_string_append (session->out, "-ERR no such message\r\n");
      return TRUE;
    }
  message = session->messages->pdata[number - 1];
  if (g_str_has_prefix (line, "DELE") && server->refuse_dele)
    g_string_append (session->out, "-ERR not allowed\r\n");
  else if (g_str_has_prefix (line, "DELE"))
    {
      g_array_index (session->deleted, gboolean, number - 1) = TRUE;
      g_string_append (session->out, "+OK\r\n");
    }
  else if (g_str_has_prefix (line, "TOP"))
    put_message (session, message, atoi (strrchr (line, ' ')));
  else if (server->needs_utf8 && !session->utf8)
    g_string_append (session->out, "-ERR [UTF8] needs UTF8\r\n");
  else
    {
      flush (session);
      put_message (session, message, -1);
      if (server->silent)
        g_string_truncate (session->out, 0);
      if (server->cut_retr > 0)
        {
          server->cut_retr--;
          g_string_truncate (session->out, session->out->len / 2);
          flush (session);
          return FALSE;
        }
      return !server->trickle || trickle (session);
    }
  return TRUE;
}

static gboolean
answer_login (Session *session)
{
  Server *server = session->server;

  if (server->refuse_login != NULL || server->n_in_use > 0)
    {
      g_string_append_printf (session->out, "-ERR %s\r\n",
                              server->refuse_login != NULL ? server->refuse_login
                                                           : "[IN-USE] locked");
      server->n_in_use -= server->n_in_use > 0;
      flush (session);
      return FALSE;
    }
  server->n_logins++;
  for (guint i = 0; i < server->messages->len; i++)
    g_ptr_array_add (session->messages, server->messages->pdata[i]);
  g_array_set_size (session->deleted, server->messages->len);
  g_string_append (session->out, "+OK\r\n");
  return TRUE;
}

/* Under the lock. FALSE: the session is over. */
static gboolean
answer (Session *session, const char *line)
{
  Server *server = session->server;

  if (strcmp (line, "CAPA") == 0)
    g_string_append_printf (session->out, server->capa != NULL ? "+OK\r\n%s.\r\n" : "-ERR what\r\n",
                            server->capa);
  else if (g_str_has_prefix (line, "USER"))
    g_string_append (session->out, "+OK\r\n");
  else if (g_str_has_prefix (line, "PASS"))
    return answer_login (session);
  else if (strcmp (line, "UTF8") == 0)
    {
      session->utf8 = TRUE;
      g_string_append (session->out, "+OK\r\n");
    }
  else if (strcmp (line, "UIDL") == 0 && server->no_uidl)
    g_string_append (session->out, "-ERR what\r\n");
  else if (strcmp (line, "UIDL") == 0 || strcmp (line, "LIST") == 0)
    put_listing (session, line[0] == 'U');
  else if (strcmp (line, "STAT") == 0)
    g_string_append_printf (session->out, "+OK %u 1\r\n", session->messages->len);
  else if (strcmp (line, "NOOP") == 0)
    g_string_append (session->out, "+OK\r\n");
  else if (strcmp (line, "QUIT") == 0)
    {
      if (server->lose_quit)
        return FALSE;
      remove_deleted (session);
      g_string_append (session->out, "+OK bye\r\n");
      flush (session);
      return FALSE;
    }
  else
    return answer_message (session, line);
  return TRUE;
}

static void
serve (Server *server, int fd)
{
  Session session = { server,
                      fd,
                      g_string_new (NULL),
                      g_string_new ("+OK hi\r\n"),
                      g_ptr_array_new (),
                      g_array_new (FALSE, TRUE, sizeof (gboolean)),
                      FALSE };
  gboolean more = TRUE;

  while (more)
    {
      g_autofree char *line = next_line (&session);
      if (line == NULL)
        break;
      g_mutex_lock (&server->lock);
      g_string_append_printf (server->log, "%s\n", line);
      more = answer (&session, line);
      g_cond_broadcast (&server->changed);
      g_mutex_unlock (&server->lock);
    }
  g_string_free (session.in, TRUE);
  g_string_free (session.out, TRUE);
  g_ptr_array_unref (session.messages);
  g_array_unref (session.deleted);
}

static gpointer
run (gpointer data)
{
  Server *server = data;
  int fd;

  while ((fd = accept (server->listener, NULL, NULL)) >= 0)
    {
      int one = 1;

      setsockopt (fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      g_mutex_lock (&server->lock);
      server->n_connections++;
      server->n_open++;
      server->peer = fd;
      if (server->stop)
        shutdown (fd, SHUT_RDWR);
      g_mutex_unlock (&server->lock);
      serve (server, fd);
      g_mutex_lock (&server->lock);
      server->peer = -1;
      server->n_open--;
      g_cond_broadcast (&server->changed);
      close (fd);
      g_mutex_unlock (&server->lock);
    }
  return NULL;
}

Server *
server_new (void)
{
  Server *server = g_new0 (Server, 1);
  struct sockaddr_in address = { .sin_family = AF_INET,
                                 .sin_addr.s_addr = htonl (INADDR_LOOPBACK) };
  socklen_t length = sizeof address;

  g_mutex_init (&server->lock);
  g_cond_init (&server->changed);
  server->peer = -1;
  server->capa = SERVER_CAPA;
  server->messages = g_ptr_array_new_with_free_func (message_free);
  server->log = g_string_new (NULL);
  server->listener = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  g_assert_cmpint (bind (server->listener, (struct sockaddr *)&address, sizeof address), ==, 0);
  g_assert_cmpint (listen (server->listener, 16), ==, 0);
  getsockname (server->listener, (struct sockaddr *)&address, &length);
  server->port = ntohs (address.sin_port);
  server->thread = g_thread_new ("pop3-server", run, server);
  return server;
}

void
server_free (Server *server)
{
  g_mutex_lock (&server->lock);
  server->stop = TRUE;
  server->trickle = FALSE;
  if (server->peer >= 0)
    shutdown (server->peer, SHUT_RDWR);
  g_mutex_unlock (&server->lock);
  shutdown (server->listener, SHUT_RDWR);
  g_thread_join (server->thread);
  close (server->listener);
  g_ptr_array_unref (server->messages);
  g_string_free (server->log, TRUE);
  g_mutex_clear (&server->lock);
  g_cond_clear (&server->changed);
  g_free (server);
}

void
server_add (Server *server, const char *uidl, const char *bytes)
{
  ServerMessage *message = g_new0 (ServerMessage, 1);

  message->uidl = g_strdup (uidl);
  message->bytes = g_strdup (bytes);
  g_mutex_lock (&server->lock);
  g_ptr_array_add (server->messages, message);
  g_mutex_unlock (&server->lock);
}

char *
server_take_log (Server *server)
{
  char *log;

  g_mutex_lock (&server->lock);
  log = g_strdup (server->log->str);
  g_string_truncate (server->log, 0);
  g_mutex_unlock (&server->lock);
  return log;
}

void
server_wait_closed (Server *server)
{
  gint64 end = g_get_monotonic_time () + 10 * G_USEC_PER_SEC;

  g_mutex_lock (&server->lock);
  while (server->n_open > 0)
    g_assert_true (g_cond_wait_until (&server->changed, &server->lock, end));
  g_mutex_unlock (&server->lock);
}
