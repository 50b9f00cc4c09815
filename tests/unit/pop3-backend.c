/* SPDX-License-Identifier: MIT
 *
 * The POP3 backend against a server of our own in another thread, over a real socket. The test's
 * thread is the net thread.
 */
#include "pop3-server.h"

#include "mailfs/log.h"
#include "pop3/backend.h"

#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#define MESSAGE_DATE "Mon, 21 Nov 2022 20:44:44 +0100"
#define MESSAGE_SECONDS 1669059884

typedef struct
{
  Server *server;
  MailConfig config;
  char *passfile;
  MailSecretSource *secrets;
  MailBackend *backend;
} Fixture;

static void
set_up (Fixture *f, gconstpointer data)
{
  g_autoptr (GError) error = NULL;
  int fd = g_file_open_tmp ("mailfs-pop3-XXXXXX", &f->passfile, &error);

  g_assert_no_error (error);
  g_assert_cmpint (write (fd, "tanstaaf\n", 9), ==, 9);
  close (fd);
  f->server = server_new ();
  f->config = (MailConfig) { .scheme = MAIL_SCHEME_POP,
                             .user = (char *)"me",
                             .host = (char *)"127.0.0.1",
                             .port = f->server->port,
                             .passfile = f->passfile,
                             .timeout = 2,
                             .connections = 4 };
  f->secrets = mail_secret_source_prepare (&f->config, &error);
  g_assert_no_error (error);
  f->backend = pop3_backend_new (&f->config, f->secrets, NULL);
}

/* --- calls that wait ----------------------------------------------------------------------------
 */

typedef struct
{
  gboolean done;
  GError *error;
} Waiter;

static void
on_done (const GError *error, gpointer user_data)
{
  Waiter *waiter = user_data;

  g_assert_false (waiter->done);
  waiter->done = TRUE;
  waiter->error = error != NULL ? g_error_copy (error) : NULL;
}

static gboolean
on_limit (gpointer user_data)
{
  g_assert_not_reached (); /* waited for too long */
  return G_SOURCE_REMOVE;
}

static void
wait_for (const gboolean *flag)
{
  guint limit = g_timeout_add_seconds (20, on_limit, NULL);

  while (!*flag)
    g_main_context_iteration (NULL, TRUE);
  g_source_remove (limit);
}

/* Never before the function that started it has returned. */
static GError *
wait_done (Waiter *waiter)
{
  g_assert_false (waiter->done);
  wait_for (&waiter->done);
  return waiter->error;
}

static GError *
call_start (Fixture *f)
{
  Waiter waiter = { 0 };

  f->backend->ops->start (f->backend, on_done, &waiter);
  return wait_done (&waiter);
}

static GError *
call_close (Fixture *f)
{
  Waiter waiter = { 0 };

  f->backend->ops->close (f->backend, on_done, &waiter);
  return wait_done (&waiter);
}

static GError *
call_remove (Fixture *f, const char *const *ids)
{
  static const MailUidRange uid = { 1, 1 };
  Waiter waiter = { 0 };

  f->backend->ops->remove (f->backend, "INBOX", 1, &uid, 1, ids, on_done, &waiter);
  return wait_done (&waiter);
}

static void
tear_down (Fixture *f, gconstpointer data)
{
  g_autoptr (GError) error = call_close (f);

  g_assert_no_error (error);
  f->backend->ops->free (f->backend);
  while (g_main_context_iteration (NULL, FALSE))
    ;
  server_free (f->server);
  mail_secret_source_free (f->secrets);
  g_unlink (f->passfile);
  g_free (f->passfile);
}

typedef struct
{
  MailSyncSink sink;
  GString *log; /* "KEY SIZE DATE\n"; date 0: about now */
  GHashTable *known;
  guint n_begun;
  MailSyncResult result;
  Waiter waiter;
} Sync;

static void
sync_begin (MailSyncSink *sink, guint32 uidvalidity, gboolean complete)
{
  g_assert_cmpuint (uidvalidity, ==, 1);
  g_assert_true (complete);
  ((Sync *)sink)->n_begun++;
}

static void
sync_message (MailSyncSink *sink, const MailMessageInfo *info)
{
  gint64 now = g_get_real_time () / G_USEC_PER_SEC;

  g_assert_cmpuint (info->uid, ==, 0);
  g_string_append_printf (((Sync *)sink)->log, "%s %d %d\n", info->remote_id, (int)info->size,
                          info->internaldate > now - 60 ? 0 : (int)info->internaldate);
}

static gboolean
sync_is_known (MailSyncSink *sink, const char *remote_id)
{
  Sync *sync = (Sync *)sink;

  return sync->known != NULL && g_hash_table_contains (sync->known, remote_id);
}

static void
sync_done (MailSyncSink *sink, const MailSyncResult *result, const GError *error)
{
  g_assert_true ((result == NULL) == (error != NULL));
  if (result != NULL)
    ((Sync *)sink)->result = *result;
  on_done (error, &((Sync *)sink)->waiter);
}

/* The log of a listing; known: a key that has its date, or NULL. */
static char *
call_sync (Fixture *f, const char *known, GError **error_out)
{
  Sync sync = { .sink = { .begin = sync_begin,
                          .message = sync_message,
                          .is_known = sync_is_known,
                          .done = sync_done },
                .log = g_string_new (NULL) };
  GError *error;

  if (known != NULL)
    {
      sync.known = g_hash_table_new (g_str_hash, g_str_equal);
      g_hash_table_add (sync.known, (gpointer)known);
    }
  f->backend->ops->sync (f->backend, "INBOX", NULL, &sync.sink);
  error = wait_done (&sync.waiter);
  g_clear_pointer (&sync.known, g_hash_table_unref);
  if (error_out != NULL)
    *error_out = error;
  else
    {
      g_assert_no_error (error);
      g_assert_cmpuint (sync.n_begun, ==, 1);
      g_assert_cmpuint (sync.result.status.uidvalidity, ==, 1);
    }
  return g_string_free (sync.log, FALSE);
}

typedef struct
{
  MailFetchSink sink;
  GString *body; /* of the message that is coming */
  GString *log;  /* "UID [BODY] end|open" or "UID error N", a line each */
  Waiter waiter;
} Fetch;

static void
fetch_data (MailFetchSink *sink, guint32 uid, guint64 offset, const guint8 *data, gsize length)
{
  Fetch *fetch = (Fetch *)sink;

  g_assert_cmpuint (offset, ==, fetch->body->len);
  g_string_append_len (fetch->body, (const char *)data, (gssize)length);
}

static void
fetch_message (MailFetchSink *sink, guint32 uid, guint64 end, gboolean at_end, const GError *error)
{
  Fetch *fetch = (Fetch *)sink;

  if (error != NULL)
    g_string_append_printf (fetch->log, "%u error %d\n", uid, error->code);
  else
    {
      g_assert_cmpuint (end, ==, fetch->body->len);
      g_string_append_printf (fetch->log, "%u [%s] %s\n", uid, fetch->body->str,
                              at_end ? "end" : "open");
    }
  g_string_truncate (fetch->body, 0);
}

static void
fetch_done (MailFetchSink *sink, const GError *error)
{
  on_done (error, &((Fetch *)sink)->waiter);
}

static void
fetch_start_length (Fixture *f, Fetch *fetch, const char *const *ids, MailPart part, guint64 length,
                    MailPriority priority)
{
  const MailUidRange uids = { 1, g_strv_length ((char **)ids) };
  const MailFetchRequest request = { .mailbox = "INBOX",
                                     .uidvalidity = 1,
                                     .uids = &uids,
                                     .n_uids = 1,
                                     .remote_ids = ids,
                                     .part = part,
                                     .length = length,
                                     .priority = priority };

  *fetch = (Fetch) { .sink = { fetch_data, fetch_message, fetch_done },
                     .body = g_string_new (NULL),
                     .log = g_string_new (NULL) };
  f->backend->ops->fetch (f->backend, &request, &fetch->sink);
}

static void
fetch_start (Fixture *f, Fetch *fetch, const char *const *ids, MailPart part, MailPriority priority)
{
  fetch_start_length (f, fetch, ids, part, MAIL_TO_END, priority);
}

static char *
fetch_finish (Fetch *fetch, GError **error_out)
{
  GError *error;

  wait_for (&fetch->waiter.done);
  error = fetch->waiter.error;
  if (error_out != NULL)
    *error_out = error;
  else
    g_assert_no_error (error);
  g_string_free (fetch->body, TRUE);
  return g_string_free (fetch->log, FALSE);
}

static char *
call_fetch (Fixture *f, const char *const *ids, MailPart part, GError **error_out)
{
  Fetch fetch;

  fetch_start (f, &fetch, ids, part, MAIL_PRIORITY_INTERACTIVE);
  return fetch_finish (&fetch, error_out);
}

#define IDS(...) ((const char *const[]) { __VA_ARGS__, NULL })
#define assert_log(call, expected)                                                                 \
  do                                                                                               \
    {                                                                                              \
      g_autofree char *text_ = (call);                                                             \
      g_assert_cmpstr (text_, ==, expected);                                                       \
    }                                                                                              \
  while (0)

static guint
count (const char *log, const char *word)
{
  guint n = 0;

  while ((log = strstr (log, word)) != NULL)
    n++, log++;
  return n;
}

/* --- tests ---------------------------------------------------------------------------------------
 */

static void
test_listing (Fixture *f, gconstpointer data)
{
  g_autofree char *log = NULL;
  GError *error;

  server_add (f->server, "aa", "Received: by x; " MESSAGE_DATE "\r\n\r\nbody\r\n");
  server_add (f->server, "b/b", "A: 1\r\n\r\n.dot\r\n");
  error = call_start (f);
  g_assert_no_error (error);
  g_assert_cmpuint (f->backend->ops->caps (f->backend), ==, MAIL_CAP_REMOTE_IDS);
  assert_log (call_sync (f, NULL, NULL), "aa 57 1669059884\nb/b 14 0\n");
  /* start and the first listing are one session; dates come in one go. */
  g_assert_cmpuint (f->server->n_logins, ==, 1);
  log = server_take_log (f->server);
  g_assert_nonnull (strstr (log, "CAPA\nUIDL\nLIST\nTOP 1 0\nTOP 2 0\n"));
  /* Each further listing looks anew, and asks no date that is known. */
  server_add (f->server, "c", "X: 1\r\n\r\n");
  assert_log (call_sync (f, "aa", NULL), "aa 57 0\nb/b 14 0\nc 8 0\n");
  g_assert_cmpuint (f->server->n_logins, ==, 2);
  g_free (log);
  log = server_take_log (f->server);
  g_assert_null (strstr (log, "TOP 1"));
  g_assert_nonnull (strstr (log, "TOP 2 0\nTOP 3 0\n"));
}

/* Beyond the login: the listing of many messages takes no more than four round trips. */
static void
test_round_trips (Fixture *f, gconstpointer data)
{
  guint64 before;
  GError *error;
  g_autofree char *log = NULL;

  for (guint i = 0; i < 3000; i++)
    {
      g_autofree char *uidl = g_strdup_printf ("uidl-%u", i);
      server_add (f->server, uidl, "Date: " MESSAGE_DATE "\r\n\r\nbody\r\n");
    }
  error = call_start (f);
  g_assert_no_error (error);
  before = mail_counter_get (MAIL_COUNTER_ROUND_TRIPS);
  log = call_sync (f, NULL, NULL);
  g_assert_cmpuint (count (log, "1669059884\n"), ==, 3000);
  g_assert_cmpuint (mail_counter_get (MAIL_COUNTER_ROUND_TRIPS) - before, <=, 3);
}

static void
test_serial (Fixture *f, gconstpointer data)
{
  g_autofree char *log = NULL;

  f->server->capa = SERVER_CAPA_SERIAL;
  f->server->deaf = TRUE;
  server_add (f->server, "a", "Date: " MESSAGE_DATE "\r\n\r\nbody\r\n");
  server_add (f->server, "b", "B: 1\r\n\r\n");
  assert_log (call_sync (f, NULL, NULL), "a 47 0\nb 8 0\n");
  assert_log (call_fetch (f, IDS ("b", "a"), MAIL_PART_RANGE, NULL),
              "1 [B: 1\r\n\r\n] end\n2 [Date: " MESSAGE_DATE "\r\n\r\nbody\r\n] end\n");
  log = server_take_log (f->server);
  g_assert_null (strstr (log, "TOP"));
}

static void
test_no_capa (Fixture *f, gconstpointer data)
{
  f->server->capa = NULL;
  f->server->deaf = data != NULL;
  server_add (f->server, "a", "Date: " MESSAGE_DATE "\r\n\r\nbody\r\n");
  server_add (f->server, "b", "Date: " MESSAGE_DATE "\r\n\r\n");
  assert_log (call_sync (f, NULL, NULL),
              data != NULL ? "a 47 0\nb 41 0\n" : "a 47 1669059884\nb 41 1669059884\n");
}

static void
test_fetch (Fixture *f, gconstpointer data)
{
  server_add (f->server, "a", "A: 1\r\n\r\nbody\r\n");
  server_add (f->server, "b", "B: 1\r\n\r\n.\r\n..two\r\n\r\n");
  assert_log (call_fetch (f, IDS ("b", "gone", "a"), MAIL_PART_RANGE, NULL),
              "2 error 9\n1 [B: 1\r\n\r\n.\r\n..two\r\n\r\n] end\n3 [A: 1\r\n\r\nbody\r\n] end\n");
  assert_log (call_fetch (f, IDS ("b"), MAIL_PART_HEAD, NULL), "1 [B: 1\r\n\r\n] open\n");
  g_assert_cmpuint (f->server->n_logins, ==, 1);
}

/* The start of a message: as many lines as hold about so many bytes, and never its end. */
static void
test_prefix (Fixture *f, gconstpointer data)
{
  Fetch fetch;
  g_autofree char *log = NULL;

  server_add (f->server, "a", "A: 1\r\n\r\none\r\n.two\r\nthree\r\n");
  fetch_start_length (f, &fetch, IDS ("a"), MAIL_PART_HEAD, 61, MAIL_PRIORITY_INTERACTIVE);
  assert_log (fetch_finish (&fetch, NULL), "1 [A: 1\r\n\r\none\r\n.two\r\n] open\n");
  log = server_take_log (f->server);
  g_assert_nonnull (strstr (log, "TOP 1 2\n"));
  g_assert_null (strstr (log, "RETR"));
}

/* Numbers mean something in one session only. */
static void
test_renumbered (Fixture *f, gconstpointer data)
{
  server_add (f->server, "a", "A: 1\r\n\r\n");
  server_add (f->server, "b", "B: 1\r\n\r\n");
  g_free (call_sync (f, NULL, NULL));
  g_mutex_lock (&f->server->lock);
  g_ptr_array_remove_index (f->server->messages, 0);
  g_mutex_unlock (&f->server->lock);
  g_free (call_sync (f, NULL, NULL)); /* a new session */
  assert_log (call_fetch (f, IDS ("b", "a"), MAIL_PART_RANGE, NULL),
              "2 error 9\n1 [B: 1\r\n\r\n] end\n");
}

static void
test_remove (Fixture *f, gconstpointer data)
{
  g_autofree char *log = NULL;

  for (const char *key = "abcd"; *key != '\0'; key++)
    {
      char uidl[2] = { *key, '\0' };
      server_add (f->server, uidl, "A: 1\r\n\r\n");
    }
  g_assert_no_error (call_remove (f, IDS ("b", "gone", "d", "b")));
  log = server_take_log (f->server);
  g_assert_nonnull (strstr (log, "UIDL\nLIST\nDELE 2\nDELE 4\nQUIT\n"));
  assert_log (call_sync (f, NULL, NULL), "a 8 0\nc 8 0\n");
  /* Nothing to do, nothing done. */
  g_free (server_take_log (f->server));
  g_assert_no_error (call_remove (f, IDS ("b")));
  g_free (log);
  log = server_take_log (f->server);
  g_assert_null (strstr (log, "DELE"));
}

static void
test_quit_lost (Fixture *f, gconstpointer data)
{
  GError *error;

  server_add (f->server, "a", "A: 1\r\n\r\n");
  f->server->lose_quit = TRUE;
  error = call_remove (f, IDS ("a"));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_CONNECTION);
  g_error_free (error);
  f->server->lose_quit = FALSE;
  assert_log (call_sync (f, NULL, NULL), "a 8 0\n");
}

static void
test_dele_refused (Fixture *f, gconstpointer data)
{
  GError *error;

  server_add (f->server, "a", "A: 1\r\n\r\n");
  f->server->refuse_dele = TRUE;
  error = call_remove (f, IDS ("a"));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_FAILED);
  g_error_free (error);
}

/* A removal is a phase of its own: what runs is finished first, and QUIT commits nothing else. */
static void
test_remove_between (Fixture *f, gconstpointer data)
{
  static const MailUidRange uid = { 1, 1 };
  g_autoptr (GPtrArray) ids = g_ptr_array_new_with_free_func (g_free);
  g_autofree char *text = NULL, *log = NULL;
  Waiter waiter = { 0 };
  Fetch fetch;

  for (guint i = 0; i < 300; i++)
    {
      g_ptr_array_add (ids, g_strdup_printf ("id-%u", i));
      server_add (f->server, ids->pdata[i], "A: 1\r\n\r\n");
    }
  server_add (f->server, "victim", "A: 1\r\n\r\n");
  g_ptr_array_add (ids, NULL);
  fetch_start (f, &fetch, (const char *const *)ids->pdata, MAIL_PART_RANGE, MAIL_PRIORITY_BULK);
  f->backend->ops->remove (f->backend, "INBOX", 1, &uid, 1, IDS ("victim"), on_done, &waiter);
  g_assert_no_error (wait_done (&waiter));
  text = fetch_finish (&fetch, NULL);
  g_assert_cmpuint (count (text, " end\n"), ==, 300);
  log = server_take_log (f->server);
  g_assert_cmpuint (count (log, "DELE"), ==, 1);
  g_assert_nonnull (strstr (log, "DELE 301\nQUIT\n"));
}

/* The maildrop must not stay locked. */
static void
test_idle_quit (Fixture *f, gconstpointer data)
{
  gboolean quit = FALSE;
  guint limit = g_timeout_add_seconds (20, on_limit, NULL);

  server_add (f->server, "a", "A: 1\r\n\r\n");
  g_free (call_sync (f, NULL, NULL));
  while (!quit)
    {
      g_autofree char *log = NULL;

      g_main_context_iteration (NULL, TRUE); /* the answer to QUIT ends the last one */
      log = server_take_log (f->server);
      quit = g_str_has_suffix (log, "QUIT\n");
    }
  g_source_remove (limit);
  server_wait_closed (f->server);
  g_assert_cmpuint (f->server->n_logins, ==, 1);
}

static void
test_in_use (Fixture *f, gconstpointer data)
{
  GError *error;
  guint n;

  server_add (f->server, "a", "A: 1\r\n\r\n");
  /* For a moment: nobody is told. */
  f->server->n_in_use = 2;
  assert_log (call_sync (f, NULL, NULL), "a 8 0\n");
  /* For long: EBUSY, then no connection for a while. */
  f->server->n_in_use = G_MAXUINT;
  g_free (call_sync (f, NULL, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_BUSY);
  g_clear_error (&error);
  n = f->server->n_connections;
  g_free (call_fetch (f, IDS ("a"), MAIL_PART_RANGE, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_BUSY);
  g_clear_error (&error);
  g_assert_cmpuint (f->server->n_connections, ==, n);
}

static void
test_auth (Fixture *f, gconstpointer data)
{
  GError *error;

  f->server->refuse_login = "[AUTH] wrong password";
  for (guint i = 0; i < 3; i++)
    {
      error = call_start (f);
      g_assert_error (error, MAIL_ERROR, MAIL_ERROR_AUTH);
      g_error_free (error);
    }
  g_assert_cmpuint (f->server->n_connections, ==, 1);
}

static void
test_no_uidl (Fixture *f, gconstpointer data)
{
  GError *error;

  f->server->no_uidl = TRUE;
  error = call_start (f);
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_CANNOT);
  g_assert_nonnull (strstr (error->message, "no UIDL"));
  g_error_free (error);
}

static void
test_cut (Fixture *f, gconstpointer data)
{
  GError *error;

  server_add (f->server, "a", "A: 1\r\n\r\na body of some length\r\n");
  server_add (f->server, "b", "B: 1\r\n\r\n");
  /* Once: the reader sees nothing of it, and no byte twice. */
  f->server->cut_retr = 1;
  assert_log (call_fetch (f, IDS ("a", "b"), MAIL_PART_RANGE, NULL),
              "1 [A: 1\r\n\r\na body of some length\r\n] end\n2 [B: 1\r\n\r\n] end\n");
  f->server->cut_retr = 100;
  g_free (call_fetch (f, IDS ("a"), MAIL_PART_RANGE, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_CONNECTION);
  g_error_free (error);
}

static void
test_refused (Fixture *f, gconstpointer data)
{
  gint64 begin;
  GError *error;

  f->config.port = 1; /* nobody there */
  error = call_start (f);
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_CONNECTION);
  g_error_free (error);
  begin = g_get_monotonic_time ();
  g_free (call_sync (f, NULL, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_UNREACHABLE);
  g_error_free (error);
  g_assert_cmpint (g_get_monotonic_time () - begin, <, G_USEC_PER_SEC / 2);
}

/* A byte now and then is no progress, and nothing at all neither. */
static void
test_deadline (Fixture *f, gconstpointer data)
{
  g_autofree char *body = g_strnfill (3000, 'x');
  g_autofree char *message = g_strconcat ("A: 1\r\n\r\n", body, "\r\n", NULL);
  GError *error;

  server_add (f->server, "a", message);
  f->config.timeout = 1;
  if (data != NULL)
    f->server->trickle = TRUE;
  else
    f->server->silent = TRUE;
  g_free (call_fetch (f, IDS ("a"), MAIL_PART_RANGE, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_TIMED_OUT);
  g_error_free (error);
}

/* Identical messages with one UIDL: rm of the first must not rename the second. */
static void
test_same_uidl (Fixture *f, gconstpointer data)
{
  server_add (f->server, "a", "A: 1\r\n\r\n");
  server_add (f->server, "x", "X: 1\r\n\r\n");
  server_add (f->server, "a", "A: 2\r\n\r\n");
  assert_log (call_sync (f, NULL, NULL), "a 8 0\nx 8 0\na 2 8 0\n");
  assert_log (call_fetch (f, IDS ("a 2", "a"), MAIL_PART_RANGE, NULL),
              "1 [A: 2\r\n\r\n] end\n2 [A: 1\r\n\r\n] end\n");
  g_assert_no_error (call_remove (f, IDS ("a")));
  assert_log (call_sync (f, NULL, NULL), "x 8 0\na 2 8 0\n");
  assert_log (call_fetch (f, IDS ("a 2"), MAIL_PART_RANGE, NULL), "1 [A: 2\r\n\r\n] end\n");
}

static void
test_utf8 (Fixture *f, gconstpointer data)
{
  server_add (f->server, "a", "A: 1\r\n\r\n");
  f->server->needs_utf8 = TRUE;
  assert_log (call_fetch (f, IDS ("a"), MAIL_PART_RANGE, NULL), "1 [A: 1\r\n\r\n] end\n");
  g_assert_cmpuint (f->server->n_logins, ==, 2);
}

static void
test_interactive_first (Fixture *f, gconstpointer data)
{
  g_autofree char *body = g_strnfill (20000, 'x');
  g_autofree char *message = g_strconcat ("A: 1\r\n\r\n", body, "\r\n", NULL);
  g_autoptr (GPtrArray) ids = g_ptr_array_new_with_free_func (g_free);
  Fetch bulk, single;
  GError *error;

  for (guint i = 0; i < 400; i++)
    {
      g_ptr_array_add (ids, g_strdup_printf ("id-%u", i));
      server_add (f->server, ids->pdata[i], message);
    }
  server_add (f->server, "wanted", "A: 1\r\n\r\n");
  g_ptr_array_add (ids, NULL);
  error = call_start (f);
  g_assert_no_error (error);
  fetch_start (f, &bulk, (const char *const *)ids->pdata, MAIL_PART_RANGE, MAIL_PRIORITY_BULK);
  while (count (bulk.log->str, "end\n") < 5)
    g_main_context_iteration (NULL, TRUE);
  fetch_start (f, &single, IDS ("wanted"), MAIL_PART_RANGE, MAIL_PRIORITY_INTERACTIVE);
  assert_log (fetch_finish (&single, NULL), "1 [A: 1\r\n\r\n] end\n");
  g_assert_false (bulk.waiter.done);
  g_free (fetch_finish (&bulk, NULL));
}

static void
test_close_under_way (Fixture *f, gconstpointer data)
{
  Fetch fetch;
  GError *error;

  server_add (f->server, "a", "A: 1\r\n\r\n");
  f->server->silent = TRUE;
  error = call_start (f);
  g_assert_no_error (error);
  fetch_start (f, &fetch, IDS ("a"), MAIL_PART_RANGE, MAIL_PRIORITY_INTERACTIVE);
  for (guint i = 0; i < 5; i++)
    g_main_context_iteration (NULL, FALSE);
  error = call_close (f);
  g_assert_no_error (error);
  g_free (fetch_finish (&fetch, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_CONNECTION);
  g_error_free (error);
}

static void
on_quota (gboolean has_quota, guint64 used, guint64 limit, const GError *error, gpointer user_data)
{
  g_assert_false (has_quota);
  on_done (error, user_data);
}

static void
list_mailbox (MailListSink *sink, const MailMailboxInfo *info)
{
  g_assert_cmpstr (info->name, ==, "INBOX");
}

static void
list_done (MailListSink *sink, const GError *error)
{
  g_assert_no_error (error);
}

static void
test_cannot (Fixture *f, gconstpointer data)
{
  static const MailUidRange uid = { 1, 1 };
  MailListSink list = { list_mailbox, list_done };
  Waiter flags = { 0 }, create = { 0 }, stale = { 0 }, quota = { 0 };

  f->backend->ops->list (f->backend, FALSE, &list);
  f->backend->ops->store_flags (f->backend, "INBOX", 1, &uid, 1, MAIL_FLAG_SEEN, NULL, 0, NULL,
                                on_done, &flags);
  f->backend->ops->create (f->backend, "x", on_done, &create);
  f->backend->ops->remove (f->backend, "INBOX", 7, &uid, 1, IDS ("a"), on_done, &stale);
  f->backend->ops->quota (f->backend, on_quota, &quota);
  wait_for (&quota.done);
  g_assert_error (flags.error, MAIL_ERROR, MAIL_ERROR_UNSUPPORTED);
  g_assert_error (create.error, MAIL_ERROR, MAIL_ERROR_CANNOT);
  g_assert_error (stale.error, MAIL_ERROR, MAIL_ERROR_STALE);
  g_assert_cmpuint (f->server->n_connections, ==, 0);
  g_clear_error (&flags.error);
  g_clear_error (&create.error);
  g_clear_error (&stale.error);
}

int
main (int argc, char **argv)
{
  static const struct
  {
    const char *name;
    void (*test) (Fixture *f, gconstpointer data);
    const char *data;
  } tests[] = {
    { "listing", test_listing },
    { "round-trips", test_round_trips },
    { "serial", test_serial },
    { "no-capa", test_no_capa },
    { "no-capa-deaf", test_no_capa, "deaf" },
    { "fetch", test_fetch },
    { "prefix", test_prefix },
    { "renumbered", test_renumbered },
    { "remove", test_remove },
    { "remove-between", test_remove_between },
    { "quit-lost", test_quit_lost },
    { "dele-refused", test_dele_refused },
    { "idle-quit", test_idle_quit },
    { "in-use", test_in_use },
    { "auth", test_auth },
    { "no-uidl", test_no_uidl },
    { "cut", test_cut },
    { "refused", test_refused },
    { "deadline-silent", test_deadline },
    { "deadline-trickle", test_deadline, "trickle" },
    { "same-uidl", test_same_uidl },
    { "utf8", test_utf8 },
    { "interactive-first", test_interactive_first },
    { "close-under-way", test_close_under_way },
    { "cannot", test_cannot },
  };

  g_test_init (&argc, &argv, NULL);
  mail_log_init (MAIL_LOG_ERROR, FALSE);
  for (guint i = 0; i < G_N_ELEMENTS (tests); i++)
    {
      g_autofree char *path = g_strconcat ("/pop3/backend/", tests[i].name, NULL);
      g_test_add (path, Fixture, tests[i].data, set_up, tests[i].test, tear_down);
    }
  return g_test_run ();
}
