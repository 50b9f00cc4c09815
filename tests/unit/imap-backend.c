/* SPDX-License-Identifier: MIT
 *
 * The IMAP backend against a Dovecot of its own on a loopback port: list, sync, fetch, every
 * change, lost and stalled connections. Skipped only where there is no Dovecot.
 */
#include "imap/backend-private.h"
#include "imap/pool-private.h"
#include "mailfs/log.h"
#include "mailfs/uidset.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PASSWORD "canary-5b1d-password"
#define DEADLINE_S 30
#define LIMITED "IMAP4rev1 LITERAL+ IDLE" /* and two connections */

typedef struct
{
  char *dir;
  guint16 port;
  GPid pid;
  MailConfig *config;
  MailSecretSource *secrets;
  MailBackend *backend;
  gboolean waiting, late; /* of run_until */
} Fixture;

static char *dovecot;

/* --- the server ------------------------------------------------------------------------------- */

static const char config_template[]
    = "protocols = imap\n"
      "base_dir = %1$s/run\nstate_dir = %1$s/run\nlog_path = %1$s/dovecot.log\n"
      "listen = 127.0.0.1\ndisable_plaintext_auth = no\nssl = no\n"
      "auth_mechanisms = plain login cram-md5 scram-sha-1 scram-sha-256\n"
      "auth_failure_delay = 0\nmail_plugins = zlib\n"
      "protocol imap {\n mail_plugins = zlib imap_zlib\n}\n"
      "default_internal_user = %2$s\ndefault_login_user = %3$s\ndefault_internal_group = %4$s\n"
      "first_valid_uid = 0\nfirst_valid_gid = 0\ndefault_vsz_limit = 0\n"
      "mail_location = maildir:~/mail:LAYOUT=fs:INBOX=~/inbox\n"
      "mail_max_userip_connections = %9$u\nmail_fsync = never\n"
      "passdb {\n driver = static\n args = password=" PASSWORD "\n}\n"
      "userdb {\n driver = static\n args = uid=%5$u gid=%6$u home=%1$s/home/%%u\n}\n"
      "namespace inbox {\n inbox = yes\n separator = /\n"
      " mailbox Trash {\n  special_use = \\Trash\n }\n}\n"
      "service imap-login {\n chroot =\n inet_listener imap {\n  port = %7$u\n }\n"
      " inet_listener imaps {\n  port = 0\n }\n}\n"
      "service anvil {\n chroot =\n}\nservice stats {\n chroot =\n}\n"
      "imap_capability = %8$s\n";

static guint16
free_port (void)
{
  g_autoptr (GSocketListener) listener = g_socket_listener_new ();
  guint16 port = g_socket_listener_add_any_inet_port (listener, NULL, NULL);

  g_socket_listener_close (listener);
  return port;
}

static void
end_with_parent (gpointer data)
{
  prctl (PR_SET_PDEATHSIG, SIGTERM);
}

static void
start_dovecot (Fixture *f)
{
  g_autofree char *conf = g_build_filename (f->dir, "dovecot.conf", NULL);
  const char *argv[] = { dovecot, "-F", "-c", conf, NULL };
  g_autoptr (GError) error = NULL;

  g_spawn_async (NULL, (char **)argv, NULL,
                 G_SPAWN_DO_NOT_REAP_CHILD | G_SPAWN_STDOUT_TO_DEV_NULL
                     | G_SPAWN_STDERR_TO_DEV_NULL,
                 end_with_parent, NULL, &f->pid, &error);
  g_assert_no_error (error);
  for (guint i = 0; i < 1000; i++)
    {
      g_autoptr (GSocketClient) client = g_socket_client_new ();
      g_autoptr (GSocketConnection) c = g_socket_client_connect_to_host (client, "127.0.0.1",
                                                                         f->port, NULL, NULL);

      if (c != NULL)
        return;
      g_usleep (20000);
    }
  g_error ("dovecot does not answer");
}

static void
stop_dovecot (Fixture *f)
{
  if (f->pid == 0)
    return;
  kill (f->pid, SIGTERM);
  waitpid (f->pid, NULL, 0);
  g_spawn_close_pid (f->pid);
  f->pid = 0;
}

static void
setup_server (Fixture *f, const char *capability)
{
  gboolean root = getuid () == 0;
  struct passwd *me = getpwuid (getuid ());
  struct group *group = getgrgid (getgid ());
  g_autofree char *conf = NULL, *text = NULL, *home = NULL, *name = g_strdup (me->pw_name);
  uid_t uid = root ? 65534 : getuid ();
  gid_t gid = root ? 65534 : getgid ();

  f->dir = g_dir_make_tmp ("mailfs-imap-XXXXXX", NULL);
  g_chmod (f->dir, 0755);
  home = g_build_filename (f->dir, "home", NULL);
  g_mkdir (home, 0755);
  if (root)
    g_assert_cmpint (chown (home, uid, gid), ==, 0);
  f->port = free_port ();
  conf = g_build_filename (f->dir, "dovecot.conf", NULL);
  text = g_strdup_printf (config_template, f->dir, root ? "dovecot" : name,
                          root ? "dovenull" : name, root ? "dovecot" : group->gr_name, (guint)uid,
                          (guint)gid, f->port, capability,
                          strcmp (capability, LIMITED) == 0 ? 2 : 100);
  g_assert_true (g_file_set_contents (conf, text, -1, NULL));
  start_dovecot (f);
}

/* --- the loop --------------------------------------------------------------------------------- */

static gboolean
on_late (gpointer user_data)
{
  ((Fixture *)user_data)->late = TRUE;
  return G_SOURCE_REMOVE;
}

static void
run_until (Fixture *f, const gboolean *done)
{
  guint id = g_timeout_add_seconds (DEADLINE_S, on_late, f);

  f->late = FALSE;
  while (!*done && !f->late)
    g_main_context_iteration (NULL, TRUE);
  g_assert_true (*done);
  g_source_remove (id);
}

typedef struct
{
  gboolean done;
  GError *error;
} Answer;

static void
on_answer (const GError *error, gpointer user_data)
{
  Answer *answer = user_data;

  g_assert_false (answer->done);
  answer->done = TRUE;
  answer->error = error != NULL ? g_error_copy (error) : NULL;
}

static void
wait_ok (Fixture *f, Answer *answer)
{
  run_until (f, &answer->done);
  g_assert_no_error (answer->error);
  answer->done = FALSE;
}

static void
wait_error (Fixture *f, Answer *answer, int code)
{
  run_until (f, &answer->done);
  g_assert_error (answer->error, MAIL_ERROR, code);
  g_clear_error (&answer->error);
  answer->done = FALSE;
}

static void
setup_client (Fixture *f, const char *password, const char *more)
{
  g_autofree char *passfile = g_build_filename (f->dir, "password", NULL);
  g_autofree char *mountpoint = g_build_filename (f->dir, "mnt", NULL);
  g_autofree char *cache = g_build_filename (f->dir, "cache", NULL);
  g_autofree char *url = g_strdup_printf ("imap://test@127.0.0.1:%u/", f->port);
  g_autofree char *options = g_strdup_printf ("tls=off,passfile=%s,cache_dir=%s%s%s", passfile,
                                              cache, more != NULL ? "," : "",
                                              more != NULL ? more : "");
  char *argv[] = { (char *)"mailfs", (char *)"-o", options, url, mountpoint, NULL };
  g_autoptr (GError) error = NULL;

  g_mkdir (mountpoint, 0700);
  g_assert_true (
      g_file_set_contents_full (passfile, password, -1, G_FILE_SET_CONTENTS_NONE, 0600, NULL));
  f->config = mail_config_parse (5, argv, &error);
  g_assert_no_error (error);
  f->secrets = mail_secret_source_prepare (f->config, &error);
  g_assert_no_error (error);
  f->backend = imap_backend_new (f->config, f->secrets, NULL);
}

static void
start_client (Fixture *f)
{
  Answer answer = { 0 };

  f->backend->ops->start (f->backend, on_answer, &answer);
  g_assert_false (answer.done);
  wait_ok (f, &answer);
}

static void
stop_client (Fixture *f)
{
  Answer answer = { 0 };

  f->backend->ops->close (f->backend, on_answer, &answer);
  wait_ok (f, &answer);
  f->backend->ops->free (f->backend);
  mail_secret_source_free (f->secrets);
  mail_config_free (f->config);
}

/* data of a test: what imap_capability is set to, "" for Dovecot's own. */
static void
setup (Fixture *f, gconstpointer data)
{
  setup_server (f, data);
  setup_client (f, PASSWORD "\n", "connections=3");
  start_client (f);
}

static void
teardown (Fixture *f, gconstpointer data)
{
  g_autofree char *command = NULL;

  stop_client (f);
  stop_dovecot (f);
  command = g_strdup_printf ("rm -rf '%s'", f->dir);
  g_assert_cmpint (system (command), ==, 0);
  g_free (f->dir);
}

/* --- sinks ------------------------------------------------------------------------------------ */

typedef struct
{
  MailListSink sink;
  Answer answer;
  GString *text; /* a line a mailbox: name|part/part|flags|use|messages */
} List;

static void
list_mailbox (MailListSink *sink, const MailMailboxInfo *info)
{
  List *list = (List *)sink;

  g_string_append_printf (list->text, "%s|", info->name);
  for (guint i = 0; i < info->n_parts; i++)
    g_string_append_printf (list->text, "%s%s%s", i > 0 ? "/" : "", info->parts[i].raw ? "!" : "",
                            info->parts[i].text);
  g_string_append_printf (list->text, "|%s%s|%s|", info->flags & MAIL_MAILBOX_NO_SELECT ? "n" : "",
                          info->flags & MAIL_MAILBOX_SUBSCRIBED ? "s" : "",
                          info->special_use != NULL ? info->special_use : "");
  if (info->has_status)
    g_string_append_printf (list->text, "%u", info->status.n_messages);
  g_string_append_c (list->text, '\n');
}

static void
list_done (MailListSink *sink, const GError *error)
{
  on_answer (error, &((List *)sink)->answer);
}

static char *
do_list (Fixture *f, gboolean subscribed)
{
  List list = { { list_mailbox, list_done }, { 0 }, g_string_new (NULL) };

  f->backend->ops->list (f->backend, subscribed, &list.sink);
  g_assert_false (list.answer.done);
  wait_ok (f, &list.answer);
  return g_string_free (list.text, FALSE);
}

typedef struct
{
  MailSyncSink sink;
  Answer answer;
  gboolean begun, complete, told_present;
  GString *messages, *flags; /* "uid:flags:keywords:size;" */
  MailUidSet *vanished, *present;
  MailMailboxStatus status;
  gboolean read_only;
} Sync;

static void
sync_begin (MailSyncSink *sink, guint32 uidvalidity, gboolean complete)
{
  Sync *sync = (Sync *)sink;

  g_assert_false (sync->begun);
  sync->begun = TRUE;
  sync->complete = complete;
}

static void
sync_message (MailSyncSink *sink, const MailMessageInfo *info)
{
  g_string_append_printf (((Sync *)sink)->messages,
                          "%u:%x:%s:%" G_GUINT64_FORMAT ":%" G_GINT64_FORMAT ";", info->uid,
                          info->flags, info->keywords, info->size, info->internaldate);
}

static void
sync_flags (MailSyncSink *sink, const MailMessageInfo *info)
{
  g_string_append_printf (((Sync *)sink)->flags, "%u:%x:%s;", info->uid, info->flags,
                          info->keywords);
}

static void
sync_vanished (MailSyncSink *sink, guint32 first, guint32 last)
{
  mail_uid_set_add (((Sync *)sink)->vanished, first, last);
}

static void
sync_present (MailSyncSink *sink, guint32 first, guint32 last)
{
  ((Sync *)sink)->told_present = TRUE;
  mail_uid_set_add (((Sync *)sink)->present, first, last);
}

static void
sync_done (MailSyncSink *sink, const MailSyncResult *result, const GError *error)
{
  Sync *sync = (Sync *)sink;

  g_assert_true ((result == NULL) == (error != NULL));
  if (result != NULL)
    {
      g_assert_true (sync->begun);
      sync->status = result->status;
      sync->read_only = result->read_only;
    }
  on_answer (error, &sync->answer);
}

static void
sync_init (Sync *sync)
{
  *sync = (Sync) {
    .sink = { sync_begin, sync_message, sync_flags, sync_vanished, sync_present, NULL, sync_done },
    .messages = g_string_new (NULL),
    .flags = g_string_new (NULL),
    .vanished = mail_uid_set_new (),
    .present = mail_uid_set_new (),
  };
}

static void
sync_clear (Sync *sync)
{
  g_string_free (sync->messages, TRUE);
  g_string_free (sync->flags, TRUE);
  mail_uid_set_free (sync->vanished);
  mail_uid_set_free (sync->present);
}

static void
do_sync (Fixture *f, const char *mailbox, const MailMailboxStatus *known, Sync *sync)
{
  sync_init (sync);
  f->backend->ops->sync (f->backend, mailbox, known, &sync->sink);
  g_assert_false (sync->answer.done);
  wait_ok (f, &sync->answer);
}

typedef struct
{
  MailFetchSink sink;
  Answer answer;
  GString *messages; /* "uid:end:at_end:code;" */
  GByteArray *bytes;
  guint64 offset; /* of bytes */
  guint32 uid;
} Fetch;

static void
fetch_data (MailFetchSink *sink, guint32 uid, guint64 offset, const guint8 *data, gsize length)
{
  Fetch *fetch = (Fetch *)sink;

  if (fetch->uid != uid)
    {
      g_byte_array_set_size (fetch->bytes, 0);
      fetch->uid = uid;
      fetch->offset = offset;
    }
  g_assert_cmpuint (fetch->offset + fetch->bytes->len, ==, offset);
  g_byte_array_append (fetch->bytes, data, (guint)length);
}

static void
fetch_message (MailFetchSink *sink, guint32 uid, guint64 end, gboolean at_end, const GError *error)
{
  Fetch *fetch = (Fetch *)sink;

  g_string_append_printf (fetch->messages, "%u:%" G_GUINT64_FORMAT ":%d:%d;", uid, end, at_end,
                          error != NULL ? error->code : -1);
}

static void
fetch_done (MailFetchSink *sink, const GError *error)
{
  on_answer (error, &((Fetch *)sink)->answer);
}

static void
start_fetch (Fixture *f, Fetch *fetch, const char *mailbox, guint32 uidvalidity, guint32 first,
             guint32 last, guint64 offset, guint64 length)
{
  MailUidRange range = { first, last };
  MailFetchRequest request = {
    .mailbox = mailbox,
    .uidvalidity = uidvalidity,
    .uids = &range,
    .n_uids = 1,
    .part = MAIL_PART_RANGE,
    .offset = offset,
    .length = length,
    .priority = first == last ? MAIL_PRIORITY_INTERACTIVE : MAIL_PRIORITY_BULK,
  };

  *fetch = (Fetch) {
    .sink = { fetch_data, fetch_message, fetch_done },
    .messages = g_string_new (NULL),
    .bytes = g_byte_array_new (),
  };
  f->backend->ops->fetch (f->backend, &request, &fetch->sink);
  g_assert_false (fetch->answer.done);
}

static void
fetch_clear (Fetch *fetch)
{
  g_string_free (fetch->messages, TRUE);
  g_byte_array_unref (fetch->bytes);
  g_clear_error (&fetch->answer.error);
}

static void
do_fetch (Fixture *f, Fetch *fetch, const char *mailbox, guint32 uidvalidity, guint32 first,
          guint32 last, guint64 offset, guint64 length)
{
  start_fetch (f, fetch, mailbox, uidvalidity, first, last, offset, length);
  wait_ok (f, &fetch->answer);
}

typedef struct
{
  Answer answer;
  guint32 uidvalidity, uids[64];
  guint n_known;
  gboolean maybe;
} Append;

static guint n_append_items;

static void
on_append (guint32 uidvalidity, const guint32 *uids, guint n_known, gboolean maybe,
           const GError *error, gpointer user_data)
{
  Append *append = user_data;

  append->uidvalidity = uidvalidity;
  append->n_known = n_known;
  append->maybe = maybe;
  memcpy (append->uids, uids, sizeof (guint32) * n_append_items);
  on_answer (error, &append->answer);
}

static char *
message_text (guint i)
{
  return g_strdup_printf ("From: a@example.org\r\nSubject: message %u\r\n\r\nText of %u\r\n", i, i);
}

static int
temp_file (const char *bytes, gsize length)
{
  g_autofree char *name = NULL;
  int fd = g_file_open_tmp ("mailfs-append-XXXXXX", &name, NULL);

  g_unlink (name);
  g_assert_cmpint (write (fd, bytes, length), ==, (gssize)length);
  return fd;
}

/* Appends n small messages, the first number being `first`. */
static void
do_append (Fixture *f, const char *mailbox, guint first, guint n, Append *append)
{
  MailAppendItem items[64] = { 0 };

  *append = (Append) { 0 };
  n_append_items = n;
  for (guint i = 0; i < n; i++)
    {
      g_autofree char *text = message_text (first + i);

      items[i].fd = temp_file (text, strlen (text));
      items[i].length = strlen (text);
      items[i].flags = i % 2 ? MAIL_FLAG_SEEN : 0;
      items[i].keywords = i == 0 ? "$Work" : NULL;
      items[i].internaldate = 800000000 + first + i;
    }
  f->backend->ops->append (f->backend, mailbox, items, n, on_append, append);
  wait_ok (f, &append->answer);
  for (guint i = 0; i < n; i++)
    close (items[i].fd);
}

typedef struct
{
  Answer answer;
  guint32 uidvalidity;
  GString *pairs;
} Copied;

static void
on_copied (guint32 target_uidvalidity, const MailUidPair *pairs, guint n_pairs, const GError *error,
           gpointer user_data)
{
  Copied *copied = user_data;

  copied->uidvalidity = target_uidvalidity;
  for (guint i = 0; i < n_pairs; i++)
    g_string_append_printf (copied->pairs, "%u>%u;", pairs[i].from, pairs[i].to);
  on_answer (error, &copied->answer);
}

static void
do_create (Fixture *f, const char *mailbox)
{
  Answer answer = { 0 };

  f->backend->ops->create (f->backend, mailbox, on_answer, &answer);
  wait_ok (f, &answer);
}

/* --- tests ------------------------------------------------------------------------------------ */

static void
test_list (Fixture *f, gconstpointer data)
{
  g_autoptr (GError) error = NULL;
  Fixture other = { .dir = f->dir, .port = f->port };
  g_autofree char *all = NULL, *subscribed = NULL;
  Answer answer = { 0 };
  Append append;
  Sync sync;
  g_autofree char *child = NULL, *bad = NULL;

  do_create (f, "Archive");
  /* What is told of a mailbox that is selected here and changed elsewhere is new all the same. */
  do_append (f, "Archive", 1, 1, &append);
  do_sync (f, "Archive", NULL, &sync);
  sync_clear (&sync);
  setup_client (&other, PASSWORD "\n", NULL);
  other.backend->ops->remove (other.backend, "Archive", append.uidvalidity,
                              &(MailUidRange) { 1, 1 }, 1, NULL, on_answer, &answer);
  wait_ok (&other, &answer);
  stop_client (&other);
  all = do_list (f, FALSE);
  if (strstr (all, "Archive|Archive|s||1") != NULL)
    g_error ("an old number: %s", all);
  g_free (all);
  all = do_list (f, FALSE);
  g_assert_nonnull (strstr (all, "INBOX|INBOX|"));
  g_assert_nonnull (strstr (all, "Archive|Archive|s||"));
  child = f->backend->ops->child_name (f->backend, "Archive", "Größe & 日本", &error);
  g_assert_no_error (error);
  g_assert_cmpstr (child, ==, "Archive/Gr&APYA3w-e &- &ZeVnLA-");
  do_create (f, child);
  g_free (all);
  all = do_list (f, FALSE);
  g_assert_nonnull (strstr (all, "|Archive/Größe & 日本|s||"));
  bad = f->backend->ops->child_name (f->backend, NULL, "a/b", &error);
  g_assert_null (bad);
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_INVALID);
  subscribed = do_list (f, TRUE);
  g_assert_null (strstr (subscribed, "INBOX|"));
  g_assert_nonnull (strstr (subscribed, "Archive|Archive|s||"));
}

static void
test_sync (Fixture *f, gconstpointer data)
{
  gboolean expunges = (f->backend->ops->caps (f->backend) & MAIL_CAP_EXPUNGE_UID) != 0;
  MailMailboxStatus known;
  Append append;
  Answer answer = { 0 };
  Sync sync;

  do_sync (f, "INBOX", NULL, &sync);
  g_assert_true (sync.complete);
  g_assert_cmpstr (sync.messages->str, ==, "");
  g_assert_cmpuint (sync.status.uidnext, ==, 1);
  known = sync.status;
  sync_clear (&sync);

  /* New ones. */
  do_append (f, "INBOX", 1, 3, &append);
  g_assert_cmpuint (append.n_known, ==, 3);
  do_sync (f, "INBOX", &known, &sync);
  g_assert_false (sync.complete);
  g_assert_cmpstr (sync.messages->str, ==,
                   "1:0:$Work:54:800000001;2:1::54:800000002;3:0::54:800000003;");
  g_assert_cmpuint (sync.status.uidnext, ==, 4);
  g_assert_cmpuint (sync.status.n_messages, ==, 3);
  known = sync.status;
  sync_clear (&sync);

  /* All from nothing. */
  do_sync (f, "INBOX", NULL, &sync);
  g_assert_true (sync.complete);
  g_assert_cmpstr (sync.messages->str, ==,
                   "1:0:$Work:54:800000001;2:1::54:800000002;3:0::54:800000003;");
  sync_clear (&sync);

  /* Nothing. */
  do_sync (f, "INBOX", &known, &sync);
  g_assert_cmpstr (sync.messages->str, ==, "");
  g_assert_cmpuint (sync.vanished->len, ==, 0);
  if (sync.told_present)
    g_assert_cmpuint (mail_uid_set_count (sync.present), ==, 3);
  known = sync.status;
  sync_clear (&sync);

  /* A flag, a removal, a new one. */
  f->backend->ops->store_flags (f->backend, "INBOX", known.uidvalidity, &(MailUidRange) { 2, 2 }, 1,
                                MAIL_FLAG_FLAGGED, "zeal", MAIL_FLAG_SEEN, NULL, on_answer,
                                &answer);
  wait_ok (f, &answer);
  f->backend->ops->remove (f->backend, "INBOX", known.uidvalidity, &(MailUidRange) { 1, 1 }, 1,
                           NULL, on_answer, &answer);
  wait_ok (f, &answer);
  do_append (f, "INBOX", 4, 1, &append);
  do_sync (f, "INBOX", &known, &sync);
  g_assert_false (sync.complete);
  g_assert_cmpstr (sync.messages->str, ==, "4:0:$Work:54:800000004;");
  g_assert_nonnull (strstr (sync.flags->str, "2:4:zeal;"));
  if (sync.told_present)
    {
      g_autofree char *set = mail_uid_set_format (sync.present);
      g_assert_cmpstr (set, ==, expunges ? "2:4" : "1:4");
    }
  else
    {
      g_assert_true (mail_uid_set_contains (sync.vanished, 1));
      g_assert_cmpuint (mail_uid_set_count (sync.vanished), ==, 1);
    }
  g_assert_cmpuint (sync.status.n_messages, ==, expunges ? 3 : 4);
  known = sync.status;
  sync_clear (&sync);

  /* Another UIDVALIDITY. */
  known.uidvalidity++;
  do_sync (f, "INBOX", &known, &sync);
  g_assert_true (sync.complete);
  g_assert_cmpuint (sync.status.n_messages, ==, expunges ? 3 : 4);
  sync_clear (&sync);

  /* What is not there. */
  sync_init (&sync);
  f->backend->ops->sync (f->backend, "Nowhere", NULL, &sync.sink);
  wait_error (f, &sync.answer, MAIL_ERROR_GONE);
  sync_clear (&sync);
}

static void
test_many (Fixture *f, gconstpointer data)
{
  static Sync syncs[40];

  for (guint i = 0; i < G_N_ELEMENTS (syncs); i++)
    {
      g_autofree char *name = g_strdup_printf ("box %u", i);
      Append append;

      do_create (f, name);
      do_append (f, name, i, 1, &append);
    }
  for (guint i = 0; i < G_N_ELEMENTS (syncs); i++)
    {
      g_autofree char *name = g_strdup_printf ("box %u", i);

      sync_init (&syncs[i]);
      f->backend->ops->sync (f->backend, name, NULL, &syncs[i].sink);
    }
  for (guint i = 0; i < G_N_ELEMENTS (syncs); i++)
    {
      g_autofree char *date = g_strdup_printf (":%u;", 800000000 + i);

      wait_ok (f, &syncs[i].answer);
      g_assert_nonnull (strstr (syncs[i].messages->str, date));
      g_assert_cmpuint (syncs[i].status.n_messages, ==, 1);
      sync_clear (&syncs[i]);
    }
}

static void
test_fetch (Fixture *f, gconstpointer data)
{
  g_autofree char *text = message_text (2);
  g_autoptr (GString) large = g_string_new ("Subject: large\r\n\r\n");
  MailAppendItem item = { 0 };
  guint64 in = mail_counter_get (MAIL_COUNTER_BYTES_IN);
  Append append;
  Fetch fetch;
  guint32 v;

  do_append (f, "INBOX", 1, 10, &append);
  v = append.uidvalidity;
  do_fetch (f, &fetch, "INBOX", v, 2, 2, 0, MAIL_TO_END);
  g_assert_cmpstr (fetch.messages->str, ==, "2:54:1:-1;");
  g_assert_cmpmem (fetch.bytes->data, fetch.bytes->len, text, strlen (text));
  fetch_clear (&fetch);
  do_fetch (f, &fetch, "INBOX", v, 2, 2, 10, 20);
  g_assert_cmpstr (fetch.messages->str, ==, "2:30:0:-1;");
  g_assert_cmpuint (fetch.offset, ==, 10);
  g_assert_cmpmem (fetch.bytes->data, fetch.bytes->len, text + 10, 20);
  fetch_clear (&fetch);
  do_fetch (f, &fetch, "INBOX", v, 2, 2, 50, 20);
  g_assert_cmpstr (fetch.messages->str, ==, "2:54:1:-1;");
  fetch_clear (&fetch);
  /* Beyond the end: the true length is found all the same. */
  do_fetch (f, &fetch, "INBOX", v, 2, 2, 100, 20);
  g_assert_cmpstr (fetch.messages->str, ==, "2:54:1:-1;");
  g_assert_cmpuint (fetch.offset, ==, 53);
  fetch_clear (&fetch);
  do_fetch (f, &fetch, "INBOX", v, 9, 12, 0, MAIL_TO_END);
  g_assert_cmpstr (fetch.messages->str, ==, "9:54:1:-1;10:56:1:-1;");
  fetch_clear (&fetch);
  /* Not there: done without error, and no word of it. */
  do_fetch (f, &fetch, "INBOX", v, 99, 99, 0, MAIL_TO_END);
  g_assert_cmpstr (fetch.messages->str, ==, "");
  fetch_clear (&fetch);
  start_fetch (f, &fetch, "INBOX", v + 1, 2, 2, 0, MAIL_TO_END);
  wait_error (f, &fetch.answer, MAIL_ERROR_STALE);
  fetch_clear (&fetch);
  start_fetch (f, &fetch, "Nowhere", v, 2, 2, 0, MAIL_TO_END);
  wait_error (f, &fetch.answer, MAIL_ERROR_GONE);
  fetch_clear (&fetch);

  while (large->len < 3 * 1024 * 1024)
    g_string_append_printf (large, "line %" G_GSIZE_FORMAT " of a large message\r\n", large->len);
  item.fd = temp_file (large->str, large->len);
  item.length = large->len;
  n_append_items = 1;
  append = (Append) { 0 };
  f->backend->ops->append (f->backend, "INBOX", &item, 1, on_append, &append);
  wait_ok (f, &append.answer);
  close (item.fd);
  do_fetch (f, &fetch, "INBOX", v, append.uids[0], append.uids[0], 0, MAIL_TO_END);
  g_assert_cmpmem (fetch.bytes->data, fetch.bytes->len, large->str, large->len);
  fetch_clear (&fetch);
  in = mail_counter_get (MAIL_COUNTER_BYTES_IN);
  do_fetch (f, &fetch, "INBOX", v, append.uids[0], append.uids[0], 1000000, 65536);
  g_assert_cmpmem (fetch.bytes->data, fetch.bytes->len, large->str + 1000000, 65536);
  g_assert_cmpuint (mail_counter_get (MAIL_COUNTER_BYTES_IN) - in, <, 70000);
  fetch_clear (&fetch);
}

static void
test_changes (Fixture *f, gconstpointer data)
{
  guint caps = f->backend->ops->caps (f->backend);
  Copied copied = { .pairs = g_string_new (NULL) };
  g_autofree char *all = NULL;
  Answer answer = { 0 };
  Append append;
  Sync sync;
  guint32 v;

  do_create (f, "Target");
  do_append (f, "INBOX", 1, 6, &append);
  v = append.uidvalidity;
  f->backend->ops->copy (f->backend, "INBOX", v, &(MailUidRange) { 1, 2 }, 1, "Target", on_copied,
                         &copied);
  wait_ok (f, &copied.answer);
  if ((caps & MAIL_CAP_EXPUNGE_UID) != 0)
    g_assert_cmpstr (copied.pairs->str, ==, "1>1;2>2;");
  g_string_truncate (copied.pairs, 0);
  f->backend->ops->copy (f->backend, "INBOX", v + 1, &(MailUidRange) { 1, 2 }, 1, "Target",
                         on_copied, &copied);
  wait_error (f, &copied.answer, MAIL_ERROR_STALE);
  f->backend->ops->copy (f->backend, "INBOX", v, &(MailUidRange) { 1, 2 }, 1, "Nowhere", on_copied,
                         &copied);
  wait_error (f, &copied.answer, MAIL_ERROR_GONE);
  if ((caps & MAIL_CAP_MOVE) != 0)
    {
      f->backend->ops->move (f->backend, "INBOX", v, &(MailUidRange) { 3, 4 }, 1, "Target",
                             on_copied, &copied);
      wait_ok (f, &copied.answer);
      g_assert_cmpstr (copied.pairs->str, ==, "3>3;4>4;");
      g_string_truncate (copied.pairs, 0);
      /* Again: they are gone, whatever OK says. */
      f->backend->ops->move (f->backend, "INBOX", v, &(MailUidRange) { 3, 4 }, 1, "Target",
                             on_copied, &copied);
      wait_error (f, &copied.answer, MAIL_ERROR_GONE);
    }
  /* Another client's \Deleted survives our removal. */
  f->backend->ops->store_flags (f->backend, "INBOX", v, &(MailUidRange) { 5, 5 }, 1,
                                MAIL_FLAG_DELETED, NULL, 0, NULL, on_answer, &answer);
  wait_ok (f, &answer);
  f->backend->ops->remove (f->backend, "INBOX", v, &(MailUidRange) { 6, 6 }, 1, NULL, on_answer,
                           &answer);
  wait_ok (f, &answer);
  do_sync (f, "INBOX", NULL, &sync);
  g_assert_nonnull (strstr (sync.messages->str, "5:8:"));
  if ((caps & MAIL_CAP_EXPUNGE_UID) != 0)
    g_assert_null (strstr (sync.messages->str, "6:"));
  else
    g_assert_nonnull (strstr (sync.messages->str, "6:9:"));
  sync_clear (&sync);

  /* A wrong UIDVALIDITY changes nothing. */
  f->backend->ops->remove (f->backend, "INBOX", v + 1, &(MailUidRange) { 1, 9 }, 1, NULL, on_answer,
                           &answer);
  wait_error (f, &answer, MAIL_ERROR_STALE);
  do_sync (f, "INBOX", NULL, &sync);
  g_assert_nonnull (strstr (sync.messages->str, "1:0:"));
  sync_clear (&sync);

  /* The tree. */
  do_create (f, "Target/below");
  f->backend->ops->create (f->backend, "Target", on_answer, &answer);
  wait_error (f, &answer, MAIL_ERROR_EXISTS);
  f->backend->ops->rename (f->backend, "Target", "Moved", on_answer, &answer);
  wait_ok (f, &answer);
  all = do_list (f, TRUE);
  g_assert_nonnull (strstr (all, "Moved/below|Moved/below|s"));
  g_assert_nonnull (strstr (all, "Moved|Moved|s"));
  g_assert_null (strstr (all, "Target"));
  f->backend->ops->delete (f->backend, "Moved/below", on_answer, &answer);
  wait_ok (f, &answer);
  f->backend->ops->delete (f->backend, "Moved/below", on_answer, &answer);
  wait_error (f, &answer, MAIL_ERROR_GONE);
  g_free (all);
  all = do_list (f, TRUE);
  g_assert_null (strstr (all, "below"));
  g_string_free (copied.pairs, TRUE);
}

typedef struct
{
  gboolean changed;
} Watch;

static void
on_changed (const char *mailbox, gpointer user_data)
{
  ((Watch *)user_data)->changed = TRUE;
}

static void
test_watch (Fixture *f, gconstpointer data)
{
  Fixture other = { .dir = f->dir, .port = f->port };
  Watch watch = { 0 };
  Append append;
  Fetch fetch;

  do_append (f, "INBOX", 1, 1, &append);
  f->backend->ops->watch (f->backend, "INBOX", on_changed, &watch);
  setup_client (&other, PASSWORD "\n", NULL);
  for (guint i = 0; i < 3; i++)
    {
      Append more;

      watch.changed = FALSE;
      /* A message of somebody else, told by IDLE; then work goes on at once. */
      do_append (&other, "INBOX", 2 + i, 1, &more);
      run_until (f, &watch.changed);
      do_fetch (f, &fetch, "INBOX", append.uidvalidity, more.uids[0], more.uids[0], 0, MAIL_TO_END);
      fetch_clear (&fetch);
    }
  stop_client (&other);
}

static void
test_lost (Fixture *f, gconstpointer data)
{
  g_autofree char *state = NULL;
  Append append;
  Fetch fetch;

  do_append (f, "INBOX", 1, 2, &append);
  stop_dovecot (f);
  start_dovecot (f);
  /* The connection is gone, but that is nobody's business. */
  do_fetch (f, &fetch, "INBOX", append.uidvalidity, 2, 2, 0, MAIL_TO_END);
  g_assert_cmpstr (fetch.messages->str, ==, "2:54:1:-1;");
  fetch_clear (&fetch);
  stop_dovecot (f);
  /* The server's children outlive it by a moment. */
  for (gboolean ok = TRUE; ok; fetch_clear (&fetch))
    {
      start_fetch (f, &fetch, "INBOX", append.uidvalidity, 2, 2, 0, MAIL_TO_END);
      run_until (f, &fetch.answer.done);
      ok = fetch.answer.error == NULL;
    }
  start_fetch (f, &fetch, "INBOX", append.uidvalidity, 2, 2, 0, MAIL_TO_END);
  wait_error (f, &fetch.answer, MAIL_ERROR_UNREACHABLE);
  fetch_clear (&fetch);
  state = f->backend->ops->describe (f->backend);
  g_assert_true (g_str_has_prefix (state, "down: "));
  start_dovecot (f);
  for (;;)
    {
      gboolean ok;

      start_fetch (f, &fetch, "INBOX", append.uidvalidity, 2, 2, 0, MAIL_TO_END);
      run_until (f, &fetch.answer.done);
      ok = fetch.answer.error == NULL;
      if (!ok)
        g_assert_error (fetch.answer.error, MAIL_ERROR, MAIL_ERROR_UNREACHABLE);
      fetch_clear (&fetch);
      if (ok)
        break;
      g_usleep (50000);
      while (g_main_context_iteration (NULL, FALSE))
        ;
    }
}

/* The server's processes are stopped: they take bytes and say nothing. */
static void
signal_children (Fixture *f, int number)
{
  g_autofree char *command = g_strdup_printf ("pkill -%d -P %d", number, (int)f->pid);

  g_assert_cmpint (system (command), ==, 0);
}

static void
test_stalled (Fixture *f, gconstpointer data)
{
  Append append;
  Fetch fetch;
  gint64 begun;

  stop_client (f);
  setup_client (f, PASSWORD "\n", "timeout=2");
  do_append (f, "INBOX", 1, 2, &append);
  signal_children (f, SIGSTOP);
  begun = g_get_monotonic_time ();
  start_fetch (f, &fetch, "INBOX", append.uidvalidity, 2, 2, 0, MAIL_TO_END);
  wait_error (f, &fetch.answer, MAIL_ERROR_TIMED_OUT);
  fetch_clear (&fetch);
  g_assert_cmpint (g_get_monotonic_time () - begun, <, 4 * G_USEC_PER_SEC);
  signal_children (f, SIGCONT);
  do_fetch (f, &fetch, "INBOX", append.uidvalidity, 2, 2, 0, MAIL_TO_END);
  g_assert_cmpstr (fetch.messages->str, ==, "2:54:1:-1;");
  fetch_clear (&fetch);
}

static void
sync_many (Fixture *f, Sync *syncs, guint n)
{
  for (guint i = 0; i < n; i++)
    {
      g_autofree char *name = g_strdup_printf ("box %u", i);

      sync_init (&syncs[i]);
      f->backend->ops->sync (f->backend, name, NULL, &syncs[i].sink);
    }
  for (guint i = 0; i < n; i++)
    {
      if (!syncs[i].answer.done)
        run_until (f, &syncs[i].answer.done);
      g_assert_no_error (syncs[i].answer.error);
      sync_clear (&syncs[i]);
    }
}

/* The server lets a user have two connections; more are wanted. What there is to do may be done
 * before the second has logged in, and a third is wanted only while there is more. */
static void
test_limited (Fixture *f, gconstpointer data)
{
  gint64 deadline = g_get_monotonic_time () + DEADLINE_S * G_USEC_PER_SEC;
  Sync syncs[30];
  Append append;

  for (guint i = 0; i < G_N_ELEMENTS (syncs); i++)
    {
      g_autofree char *name = g_strdup_printf ("box %u", i);

      do_create (f, name);
    }
  do_append (f, "box 1", 1, 1, &append);
  for (gboolean learnt = FALSE; !learnt;)
    {
      g_autofree char *state = NULL;

      sync_many (f, syncs, G_N_ELEMENTS (syncs));
      state = f->backend->ops->describe (f->backend);
      learnt = strcmp (state, "connected, 2 of 2 connections") == 0;
      g_assert_cmpint (g_get_monotonic_time (), <, deadline);
    }
}

/* Like a line that was found to be slow: all goes through deflate, and shrinks. */
static void
test_compress (Fixture *f, gconstpointer data)
{
  g_autoptr (GString) large = g_string_new ("Subject: large\r\n\r\n");
  MailAppendItem item = { 0 };
  Append append;
  Fetch fetch;

  imap_pool_set_slow_line (((ImapBackend *)f->backend)->pool, TRUE);
  while (large->len < 1024 * 1024)
    g_string_append_printf (large, "line %" G_GSIZE_FORMAT " of a large message\r\n", large->len);
  item.fd = temp_file (large->str, large->len);
  item.length = large->len;
  for (guint i = 0; i < 3; i++)
    {
      n_append_items = 1;
      append = (Append) { 0 };
      f->backend->ops->append (f->backend, "INBOX", &item, 1, on_append, &append);
      wait_ok (f, &append.answer);
      do_fetch (f, &fetch, "INBOX", append.uidvalidity, append.uids[0], append.uids[0], 0,
                MAIL_TO_END);
      g_assert_cmpmem (fetch.bytes->data, fetch.bytes->len, large->str, large->len);
      fetch_clear (&fetch);
      /* At rest the first connection, too, is turned to it. */
      g_usleep (300000);
      while (g_main_context_iteration (NULL, FALSE))
        ;
    }
  close (item.fd);
}

/* The line is found to be slow in the middle of a scan: its rest is compressed. */
static void
test_compress_meanwhile (Fixture *f, gconstpointer data)
{
  ImapPool *pool = ((ImapBackend *)f->backend)->pool;
  Fetch fetches[60];
  Append append;

  do_append (f, "INBOX", 1, 12, &append);
  for (guint i = 0; i < G_N_ELEMENTS (fetches); i++)
    start_fetch (f, &fetches[i], "INBOX", append.uidvalidity, 2, 12, 0, MAIL_TO_END);
  wait_ok (f, &fetches[0].answer);
  imap_pool_set_slow_line (pool, TRUE);
  for (guint i = 1; i < G_N_ELEMENTS (fetches); i++)
    wait_ok (f, &fetches[i].answer);
  for (guint i = 0; i < pool->slots->len; i++)
    {
      const ImapSlot *slot = pool->slots->pdata[i];
      ImapSession *session = imap_connection_session (slot->connection);

      if (imap_connection_is_ready (slot->connection))
        g_assert_false (imap_session_caps (session) & IMAP_CAP_COMPRESS);
    }
  for (guint i = G_N_ELEMENTS (fetches); i-- > 0;)
    {
      g_assert_cmpstr (fetches[i].messages->str, ==, fetches[0].messages->str);
      g_assert_cmpmem (fetches[i].bytes->data, fetches[i].bytes->len, fetches[0].bytes->data,
                       fetches[0].bytes->len);
      fetch_clear (&fetches[i]);
    }
}

static void
test_refused (Fixture *f, gconstpointer data)
{
  Answer answer = { 0 };
  guint64 connects;
  Fetch fetch;

  stop_client (f);
  setup_client (f, "wrong\n", NULL);
  f->backend->ops->start (f->backend, on_answer, &answer);
  wait_error (f, &answer, MAIL_ERROR_AUTH);
  connects = mail_counter_get (MAIL_COUNTER_COMMANDS);
  start_fetch (f, &fetch, "INBOX", 1, 2, 2, 0, MAIL_TO_END);
  wait_error (f, &fetch.answer, MAIL_ERROR_AUTH);
  fetch_clear (&fetch);
  g_assert_cmpuint (mail_counter_get (MAIL_COUNTER_COMMANDS), ==, connects);
}

static void
test_bulk (Fixture *f, gconstpointer data)
{
  static Fetch bulk[20];
  Append append;
  Fetch single;

  do_append (f, "INBOX", 1, 40, &append);
  for (guint i = 0; i < G_N_ELEMENTS (bulk); i++)
    start_fetch (f, &bulk[i], "INBOX", append.uidvalidity, 1 + 2 * i, 2 + 2 * i, 0, MAIL_TO_END);
  do_fetch (f, &single, "INBOX", append.uidvalidity, 40, 40, 0, MAIL_TO_END);
  g_assert_false (bulk[19].answer.done);
  fetch_clear (&single);
  for (guint i = 0; i < G_N_ELEMENTS (bulk); i++)
    {
      if (!bulk[i].answer.done)
        run_until (f, &bulk[i].answer.done);
      g_assert_no_error (bulk[i].answer.error);
      g_assert_cmpuint (bulk[i].uid, ==, 2 + 2 * i);
      fetch_clear (&bulk[i]);
    }
}

static void
test_quota (Fixture *f, gconstpointer data)
{
  g_assert_cmpuint (f->backend->ops->caps (f->backend) & MAIL_CAP_QUOTA, ==, 0);
}

/* What Dovecot is made to offer: the three ways of syncing, and hardly anything at all. */
static const struct
{
  const char *name, *capability;
} servers[] = {
  { "qresync", "" },
  { "condstore", "IMAP4rev1 LITERAL+ SASL-IR ID ENABLE CONDSTORE UIDPLUS ESEARCH MOVE MULTIAPPEND "
                 "NAMESPACE IDLE" },
  { "plain", "IMAP4rev1" },
};

int
main (int argc, char **argv)
{
  g_autofree char *path = g_strdup_printf ("%s:/usr/sbin:/usr/local/sbin", g_getenv ("PATH"));

  g_setenv ("PATH", path, TRUE);
  g_setenv ("XDG_CONFIG_HOME", "/nonexistent", TRUE);
  g_test_init (&argc, &argv, NULL);
  dovecot = g_find_program_in_path ("dovecot");
  if (dovecot == NULL)
    {
      g_print ("1..0 # SKIP no dovecot\n");
      return 0;
    }
  mail_log_init (g_getenv ("MAILFS_TEST_TRACE") != NULL ? MAIL_LOG_TRACE : MAIL_LOG_ERROR, FALSE);
  for (guint i = 0; i < G_N_ELEMENTS (servers); i++)
    {
      const struct
      {
        const char *name;
        void (*test) (Fixture *f, gconstpointer data);
      } tests[] = {
        { "list", test_list },   { "sync", test_sync },       { "many", test_many },
        { "fetch", test_fetch }, { "changes", test_changes }, { "bulk", test_bulk },
      };

      for (guint j = 0; j < G_N_ELEMENTS (tests); j++)
        {
          g_autofree char *name = g_strdup_printf ("/imap/backend/%s/%s", servers[i].name,
                                                   tests[j].name);
          g_test_add (name, Fixture, servers[i].capability, setup, tests[j].test, teardown);
        }
    }
  g_test_add ("/imap/backend/watch", Fixture, "", setup, test_watch, teardown);
  g_test_add ("/imap/backend/lost", Fixture, "", setup, test_lost, teardown);
  g_test_add ("/imap/backend/stalled", Fixture, "", setup, test_stalled, teardown);
  g_test_add ("/imap/backend/compress", Fixture, "", setup, test_compress, teardown);
  g_test_add ("/imap/backend/compress-meanwhile", Fixture, "", setup, test_compress_meanwhile,
              teardown);
  g_test_add ("/imap/backend/limited", Fixture, LIMITED, setup, test_limited, teardown);
  g_test_add ("/imap/backend/refused", Fixture, "", setup, test_refused, teardown);
  g_test_add ("/imap/backend/quota", Fixture, "", setup, test_quota, teardown);
  return g_test_run ();
}
