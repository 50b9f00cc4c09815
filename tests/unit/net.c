/* SPDX-License-Identifier: MIT
 *
 * NetStream against a server thread of our own: which certificates are believed, alike for TLS from
 * the first byte and after an upgrade; deadlines, cancellation, back pressure, compression.
 */
#include "mailfs/error.h"
#include "net/layer.h"

#include <glib/gstdio.h>
#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#define DAY 86400

static char *directory;

/* --- certificates --- */

typedef struct
{
  EVP_PKEY *key;
  X509 *certificate;
  char *file; /* certificate and key in PEM */
} Identity;

typedef enum
{
  ID_CA,
  ID_GOOD,
  ID_OTHER_HOST,
  ID_EXPIRED,
  ID_FUTURE,
  ID_CLIENT_ONLY,
  ID_SELF_SIGNED,
  ID_SELF_SIGNED_OTHER,
  ID_NO_ADDRESS,
  ID_WILDCARD,
  ID_OLD_CA,
  ID_UNDER_OLD_CA,
  N_IDENTITIES
} IdentityName;

#define NAMES "DNS:localhost,IP:127.0.0.1"

static const struct
{
  const char *name, *alternative, *usage;
  int from, to; /* days from now */
  gboolean self_signed;
} identity_specs[N_IDENTITIES] = {
  [ID_CA] = { "ca", NULL, NULL, -1, 10, TRUE },
  [ID_GOOD] = { "good", NAMES, "serverAuth", -1, 10, FALSE },
  [ID_OTHER_HOST] = { "other-host", "DNS:other.example,DNS:b.example", "serverAuth", -1, 10 },
  [ID_EXPIRED] = { "expired", NAMES, "serverAuth", -10, -1 },
  [ID_FUTURE] = { "future", NAMES, "serverAuth", 2, 10 },
  [ID_CLIENT_ONLY] = { "client-only", NAMES, "clientAuth", -1, 10 },
  [ID_SELF_SIGNED] = { "self-signed", NAMES, NULL, -1, 10, TRUE },
  [ID_SELF_SIGNED_OTHER] = { "self-signed-other", "DNS:other.example", NULL, -1, 10, TRUE },
  [ID_NO_ADDRESS] = { "no-address", "DNS:localhost", "serverAuth", -1, 10 },
  [ID_WILDCARD] = { "wildcard", "DNS:local*", "serverAuth", -1, 10 },
  [ID_OLD_CA] = { "old-ca", NULL, NULL, -10, -1, TRUE },
  [ID_UNDER_OLD_CA] = { "under-old-ca", NAMES, "serverAuth", -1, 10 },
};

static Identity identities[N_IDENTITIES];

static void
add_extension (X509 *certificate, X509 *issuer, int nid, const char *value)
{
  X509V3_CTX context;
  X509_EXTENSION *extension;

  X509V3_set_ctx (&context, issuer, certificate, NULL, NULL, 0);
  extension = X509V3_EXT_conf_nid (NULL, &context, nid, value);
  g_assert_nonnull (extension);
  X509_add_ext (certificate, extension, -1);
  X509_EXTENSION_free (extension);
}

static void
make_identity (IdentityName which)
{
  static long serial = 1;
  Identity *self = &identities[which];
  gboolean own = identity_specs[which].self_signed;
  gboolean is_ca = which == ID_CA || which == ID_OLD_CA;
  Identity *issuer = own ? self : &identities[which == ID_UNDER_OLD_CA ? ID_OLD_CA : ID_CA];
  X509_NAME *name;
  FILE *file;

  self->key = EVP_EC_gen ("P-256");
  self->certificate = X509_new ();
  X509_set_version (self->certificate, X509_VERSION_3);
  ASN1_INTEGER_set (X509_get_serialNumber (self->certificate), serial++);
  X509_gmtime_adj (X509_getm_notBefore (self->certificate), identity_specs[which].from * DAY);
  X509_gmtime_adj (X509_getm_notAfter (self->certificate), identity_specs[which].to * DAY);
  X509_set_pubkey (self->certificate, self->key);
  name = X509_get_subject_name (self->certificate);
  X509_NAME_add_entry_by_txt (name, "CN", MBSTRING_UTF8, (const guchar *)identity_specs[which].name,
                              -1, -1, 0);
  X509_set_issuer_name (self->certificate, X509_get_subject_name (issuer->certificate));
  if (is_ca)
    add_extension (self->certificate, issuer->certificate, NID_basic_constraints,
                   "critical,CA:TRUE");
  if (identity_specs[which].alternative != NULL)
    add_extension (self->certificate, issuer->certificate, NID_subject_alt_name,
                   identity_specs[which].alternative);
  if (identity_specs[which].usage != NULL)
    add_extension (self->certificate, issuer->certificate, NID_ext_key_usage,
                   identity_specs[which].usage);
  g_assert_cmpint (X509_sign (self->certificate, issuer->key, EVP_sha256 ()), >, 0);

  self->file = g_build_filename (directory, identity_specs[which].name, NULL);
  file = fopen (self->file, "we");
  g_assert_nonnull (file);
  PEM_write_X509 (file, self->certificate);
  PEM_write_PrivateKey (file, self->key, NULL, NULL, 0, NULL, NULL);
  fclose (file);
}

static char *
pin_of (IdentityName which)
{
  guchar *der = NULL, digest[32];
  int length = i2d_PUBKEY (identities[which].key, &der);

  EVP_Digest (der, (size_t)length, digest, NULL, EVP_sha256 (), NULL);
  OPENSSL_free (der);
  return g_base64_encode (digest, sizeof digest);
}

/* --- the server: one connection, echoing --- */

typedef enum
{
  TALK_TLS,
  TALK_TLS_1_1,     /* nothing newer */
  TALK_PLAIN,       /* no TLS at all: a greeting where a ServerHello should be */
  TALK_STALL,       /* never answers the ClientHello */
  TALK_HANG_UP,     /* closes on the ClientHello */
  TALK_CLIENT_CERT, /* wants a certificate signed by ID_CA */
} Talk;

typedef struct
{
  Talk talk;
  IdentityName identity;
  gboolean upgrade;   /* waits for "STARTTLS\r\n" first */
  const char *inject; /* sent along with the OK, in clear */
  gboolean tls;       /* FALSE: echo in clear */
  int listener;
  guint16 port;
  GThread *thread;
  gsize received; /* application bytes after the handshake */
} Server;

static void
write_all (int fd, const void *data, gsize length)
{
  const char *p = data;

  while (length > 0)
    {
      gssize n = send (fd, p, length, MSG_NOSIGNAL);

      if (n <= 0)
        return;
      p += n;
      length -= (gsize)n;
    }
}

static void
drain_fd (int fd)
{
  char buffer[4096];

  while (recv (fd, buffer, sizeof buffer, 0) > 0)
    ;
}

static void
serve_tls (Server *server, int fd)
{
  SSL_CTX *context = SSL_CTX_new (TLS_server_method ());
  SSL *ssl;
  char buffer[16384];
  int n;

  SSL_CTX_use_certificate (context, identities[server->identity].certificate);
  SSL_CTX_use_PrivateKey (context, identities[server->identity].key);
  if (server->talk == TALK_TLS_1_1)
    {
      SSL_CTX_set_cipher_list (context, "DEFAULT@SECLEVEL=0");
      SSL_CTX_set_min_proto_version (context, TLS1_VERSION);
      SSL_CTX_set_max_proto_version (context, TLS1_1_VERSION);
    }
  if (server->talk == TALK_CLIENT_CERT)
    {
      SSL_CTX_load_verify_file (context, identities[ID_CA].file);
      SSL_CTX_set_verify (context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
      /* So that the refusal is part of the handshake, which it is not in TLS 1.3. */
      SSL_CTX_set_max_proto_version (context, TLS1_2_VERSION);
    }
  ssl = SSL_new (context);
  SSL_set_fd (ssl, fd);
  if (SSL_accept (ssl) == 1)
    while ((n = SSL_read (ssl, buffer, sizeof buffer)) > 0)
      {
        server->received += (gsize)n;
        if (SSL_write (ssl, buffer, n) <= 0)
          break;
      }
  SSL_free (ssl);
  SSL_CTX_free (context);
}

static void
serve_plain (Server *server, int fd)
{
  char buffer[16384];
  gssize n;

  while ((n = recv (fd, buffer, sizeof buffer, 0)) > 0)
    {
      server->received += (gsize)n;
      write_all (fd, buffer, (gsize)n);
    }
}

static gpointer
serve (gpointer data)
{
  static const char greeting[] = "* OK this is no TLS\r\n";
  Server *server = data;
  int fd = accept4 (server->listener, NULL, NULL, SOCK_CLOEXEC);
  char line[4096];

  if (fd < 0)
    return NULL;
  if (server->upgrade && recv (fd, line, strlen ("STARTTLS\r\n"), MSG_WAITALL) > 0)
    {
      g_autofree char *answer = g_strconcat ("OK\r\n", server->inject, NULL);
      write_all (fd, answer, strlen (answer));
    }
  if (!server->tls)
    serve_plain (server, fd);
  else if (server->talk == TALK_PLAIN)
    {
      (void)!recv (fd, line, sizeof line, 0);
      write_all (fd, greeting, strlen (greeting));
      drain_fd (fd);
    }
  else if (server->talk == TALK_STALL)
    drain_fd (fd);
  else if (server->talk == TALK_HANG_UP)
    (void)!recv (fd, line, sizeof line, 0);
  else
    {
      /* Closing over unread bytes would be a reset, which can overtake an alert. */
      serve_tls (server, fd);
      shutdown (fd, SHUT_WR);
      drain_fd (fd);
    }
  close (fd);
  return NULL;
}

static void
server_listen (Server *server)
{
  struct sockaddr_in address = { .sin_family = AF_INET };
  socklen_t length = sizeof address;

  address.sin_addr.s_addr = htonl (INADDR_LOOPBACK);
  server->listener = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  g_assert_cmpint (bind (server->listener, (struct sockaddr *)&address, length), ==, 0);
  g_assert_cmpint (listen (server->listener, 1), ==, 0);
  g_assert_cmpint (getsockname (server->listener, (struct sockaddr *)&address, &length), ==, 0);
  server->port = ntohs (address.sin_port);
}

static void
server_start (Server *server)
{
  server_listen (server);
  server->thread = g_thread_new ("server", serve, server);
}

static void
server_stop (Server *server)
{
  shutdown (server->listener, SHUT_RDWR);
  g_thread_join (server->thread);
  close (server->listener);
}

/* --- the client --- */

typedef struct
{
  gboolean called;
  NetStream *stream;
  GError *error;
} Result;

static void
keep_result (NetStream *stream, const GError *error, gpointer user_data)
{
  Result *result = user_data;

  g_assert_false (result->called);
  result->called = TRUE;
  result->stream = stream;
  result->error = error != NULL ? g_error_copy (error) : NULL;
  g_assert_true ((stream == NULL) == (error != NULL));
}

static Result
wait_for (Result *result)
{
  g_assert_false (result->called);
  while (!result->called)
    g_main_context_iteration (NULL, TRUE);
  return *result;
}

static Result
connect_to (const char *host, guint16 port, NetTls *tls, guint timeout_ms)
{
  Result result = { 0 };

  net_connect (host, port, tls, timeout_ms, NULL, keep_result, &result);
  return wait_for (&result);
}

static void
note_ready (NetStream *stream, gpointer user_data)
{
  *(gboolean *)user_data = TRUE;
}

static void
wait_ready (NetStream *stream)
{
  gboolean ready = FALSE;

  net_stream_set_ready (stream, note_ready, &ready);
  while (!ready)
    g_main_context_iteration (NULL, TRUE);
  net_stream_set_ready (stream, NULL, NULL);
}

static gssize
read_wait (NetStream *stream, void *buffer, gsize length, GError **error)
{
  for (;;)
    {
      g_autoptr (GError) problem = NULL;
      gssize n = net_stream_read (stream, buffer, length, &problem);

      g_assert_cmpint (n, <=, length);
      if (n >= 0)
        return n;
      if (!g_error_matches (problem, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
        {
          g_propagate_error (error, g_steal_pointer (&problem));
          return -1;
        }
      wait_ready (stream);
    }
}

static void
read_exactly (NetStream *stream, void *buffer, gsize length)
{
  char *p = buffer;

  while (length > 0)
    {
      g_autoptr (GError) error = NULL;
      gssize n = read_wait (stream, p, length, &error);

      g_assert_no_error (error);
      g_assert_cmpint (n, >, 0);
      p += n;
      length -= (gsize)n;
    }
}

/* Small things only: they fit into the socket's buffer. */
static void
write_small (NetStream *stream, const char *text)
{
  g_autoptr (GError) error = NULL;

  g_assert_cmpint (net_stream_write (stream, text, strlen (text), &error), ==, strlen (text));
  g_assert_no_error (error);
  g_assert_true (net_stream_flush (stream, &error));
  g_assert_no_error (error);
}

/* The whole way: connect, upgrade if asked for. */
static Result
reach (Server *server, const char *host, NetTls *tls, guint timeout_ms)
{
  Result result = connect_to (host, server->port, server->upgrade ? NULL : tls, timeout_ms);
  char ok[4];

  if (!server->upgrade || result.stream == NULL)
    return result;
  g_assert_false (net_stream_is_tls (result.stream));
  write_small (result.stream, "STARTTLS\r\n");
  read_exactly (result.stream, ok, sizeof ok);
  g_assert_cmpmem (ok, sizeof ok, "OK\r\n", 4);
  result.called = FALSE;
  net_start_tls (result.stream, host, tls, timeout_ms, NULL, keep_result, &result);
  return wait_for (&result);
}

#define CHAIN "not signed by a known authority"

static const struct
{
  const char *name;
  IdentityName identity;
  const char *host;
  gboolean ca;
  int pin; /* whose key, or -1 */
  Talk talk;
  MailErrorCode code;
  const char *error; /* NULL: works */
} trust_cases[] = {
  { "good", ID_GOOD, "localhost", TRUE, -1 },
  { "good-dot", ID_GOOD, "localhost.", TRUE, -1 },
  { "good-address", ID_GOOD, "127.0.0.1", TRUE, -1 },
  { "good-pin", ID_GOOD, "localhost", TRUE, ID_GOOD },
  { "good-pin-only", ID_GOOD, "localhost", FALSE, ID_GOOD },
  { "self-signed-pin", ID_SELF_SIGNED, "localhost", FALSE, ID_SELF_SIGNED },

  { "wrong-host", ID_OTHER_HOST, "localhost", TRUE, -1, TALK_TLS, MAIL_ERROR_TLS,
    "the certificate is for other.example, b.example, not for localhost" },
  { "wrong-address", ID_NO_ADDRESS, "127.0.0.1", TRUE, -1, TALK_TLS, MAIL_ERROR_TLS,
    "not for 127.0.0.1" },
  { "partial-wildcard", ID_WILDCARD, "localhost", TRUE, -1, TALK_TLS, MAIL_ERROR_TLS,
    "not for localhost" },
  { "expired", ID_EXPIRED, "localhost", TRUE, -1, TALK_TLS, MAIL_ERROR_TLS,
    "the certificate of localhost expired on " },
  { "future", ID_FUTURE, "localhost", TRUE, -1, TALK_TLS, MAIL_ERROR_TLS, "valid only from" },
  { "wrong-purpose", ID_CLIENT_ONLY, "localhost", TRUE, -1, TALK_TLS, MAIL_ERROR_TLS,
    "not meant for servers" },
  { "self-signed", ID_SELF_SIGNED, "localhost", TRUE, -1, TALK_TLS, MAIL_ERROR_TLS,
    "not signed by what tls_ca= names" },
  { "system-store", ID_GOOD, "localhost", FALSE, -1, TALK_TLS, MAIL_ERROR_TLS, CHAIN },
  { "self-signed-store", ID_SELF_SIGNED, "localhost", FALSE, -1, TALK_TLS, MAIL_ERROR_TLS,
    "or tls_pin=" },
  { "bad-pin", ID_GOOD, "localhost", TRUE, ID_CA, TALK_TLS, MAIL_ERROR_TLS,
    "key of localhost is not the one" },
  { "bad-pin-only", ID_GOOD, "localhost", FALSE, ID_CA, TALK_TLS, MAIL_ERROR_TLS, CHAIN },
  { "pin-with-other-ca", ID_SELF_SIGNED, "localhost", TRUE, ID_SELF_SIGNED, TALK_TLS,
    MAIL_ERROR_TLS, "not signed by what tls_ca= names" },
  { "pin-wrong-host", ID_SELF_SIGNED_OTHER, "localhost", FALSE, ID_SELF_SIGNED_OTHER, TALK_TLS,
    MAIL_ERROR_TLS, "not for localhost" },
  { "pin-expired", ID_EXPIRED, "localhost", FALSE, ID_EXPIRED, TALK_TLS, MAIL_ERROR_TLS,
    "expired on" },
  { "old-version", ID_GOOD, "localhost", TRUE, -1, TALK_TLS_1_1, MAIL_ERROR_TLS,
    "no TLS 1.2 or later" },
  { "no-tls", ID_GOOD, "localhost", TRUE, -1, TALK_PLAIN, MAIL_ERROR_TLS, "not TLS" },
  { "stalled", ID_GOOD, "localhost", TRUE, -1, TALK_STALL, MAIL_ERROR_TIMED_OUT,
    "TLS handshake with localhost was not there" },
  { "hung-up", ID_GOOD, "localhost", TRUE, -1, TALK_HANG_UP, MAIL_ERROR_CONNECTION, "localhost" },
  { "client-certificate", ID_GOOD, "localhost", TRUE, -1, TALK_CLIENT_CERT, MAIL_ERROR_TLS,
    "failed" },
};

static void
check_trust (gsize i, gboolean upgrade)
{
  Server server = { .talk = trust_cases[i].talk,
                    .identity = trust_cases[i].identity,
                    .tls = TRUE,
                    .upgrade = upgrade };
  g_autofree char *pin = trust_cases[i].pin >= 0 ? pin_of ((IdentityName)trust_cases[i].pin) : NULL;
  MailConfig config = { .tls = TRUE,
                        .tls_ca = trust_cases[i].ca ? identities[ID_CA].file : NULL,
                        .tls_pin = pin };
  g_autoptr (GError) error = NULL;
  g_autoptr (NetTls) tls = net_tls_new (&config, &error);
  Result result;
  char echo[6];

  g_assert_no_error (error);
  server_start (&server);
  result = reach (&server, trust_cases[i].host, tls,
                  trust_cases[i].talk == TALK_STALL ? 300 : 10000);
  if (trust_cases[i].error == NULL)
    {
      g_assert_no_error (result.error);
      g_assert_true (net_stream_is_tls (result.stream));
      g_assert_nonnull (strstr (net_stream_describe (result.stream), " TLSv1."));
      write_small (result.stream, "hello\n");
      read_exactly (result.stream, echo, sizeof echo);
      g_assert_cmpmem (echo, sizeof echo, "hello\n", 6);
    }
  else
    {
      g_assert_error (result.error, MAIL_ERROR, (int)trust_cases[i].code);
      if (strstr (result.error->message, trust_cases[i].error) == NULL)
        g_error ("unexpected message: %s", result.error->message);
      g_assert_null (strchr (result.error->message, '\n'));
    }
  net_stream_free (result.stream);
  g_clear_error (&result.error);
  server_stop (&server);
  g_assert_cmpuint (server.received, ==, trust_cases[i].error == NULL ? 6 : 0);
}

static void
test_implicit (gconstpointer data)
{
  check_trust (GPOINTER_TO_SIZE (data), FALSE);
}

static void
test_upgrade (gconstpointer data)
{
  check_trust (GPOINTER_TO_SIZE (data), TRUE);
}

static NetTls *
trusting (void)
{
  MailConfig config = { .tls = TRUE, .tls_ca = identities[ID_CA].file };
  NetTls *tls = net_tls_new (&config, NULL);

  g_assert_nonnull (tls);
  return tls;
}

/* What a man in the middle appends to the OK must never be taken for the server's. */
static void
test_injected (void)
{
  static const char *const injections[] = { "* PREAUTH\r\n", "\x16\x03\x03", "x" };
  g_autoptr (NetTls) tls = trusting ();

  for (gsize i = 0; i < G_N_ELEMENTS (injections); i++)
    {
      Server server = { .identity = ID_GOOD, .tls = TRUE, .upgrade = TRUE };
      Result result;

      server.inject = injections[i];
      server_start (&server);
      result = reach (&server, "localhost", tls, 10000);
      g_assert_error (result.error, MAIL_ERROR, MAIL_ERROR_TLS);
      g_assert_nonnull (strstr (result.error->message, "before TLS began"));
      g_clear_error (&result.error);
      server_stop (&server);
      g_assert_cmpuint (server.received, ==, 0);
    }
}

static void
test_client_certificate (void)
{
  Server server = { .talk = TALK_CLIENT_CERT, .identity = ID_GOOD, .tls = TRUE };
  char *client = identities[ID_CLIENT_ONLY].file;
  MailConfig config = {
    .tls = TRUE, .tls_ca = identities[ID_CA].file, .tls_cert = client, .tls_key = client
  };
  g_autoptr (NetTls) tls = net_tls_new (&config, NULL);
  Result result;
  char echo[2];

  server_start (&server);
  result = reach (&server, "localhost", tls, 10000);
  g_assert_no_error (result.error);
  write_small (result.stream, "hi");
  read_exactly (result.stream, echo, sizeof echo);
  net_stream_free (result.stream);
  server_stop (&server);
}

static void
test_trust_directory (void)
{
  Server server = { .identity = ID_GOOD, .tls = TRUE };
  g_autofree char *hashed = g_build_filename (directory, "hashed", NULL);
  g_autofree char *name = g_strdup_printf ("%08lx.0",
                                           X509_subject_name_hash (identities[ID_CA].certificate));
  g_autofree char *link = g_build_filename (hashed, name, NULL);
  MailConfig config = { .tls = TRUE, .tls_ca = hashed };
  g_autoptr (NetTls) tls = NULL;
  Result result;

  g_assert_cmpint (g_mkdir (hashed, 0700), ==, 0);
  g_assert_cmpint (symlink (identities[ID_CA].file, link), ==, 0);
  tls = net_tls_new (&config, NULL);
  server_start (&server);
  result = reach (&server, "localhost", tls, 10000);
  g_assert_no_error (result.error);
  net_stream_free (result.stream);
  server_stop (&server);
  g_remove (link);
  g_remove (hashed);
}

static void
test_expired_authority (void)
{
  Server server = { .identity = ID_UNDER_OLD_CA, .tls = TRUE };
  MailConfig config = { .tls = TRUE, .tls_ca = identities[ID_OLD_CA].file };
  g_autoptr (NetTls) tls = net_tls_new (&config, NULL);
  Result result;

  server_start (&server);
  result = reach (&server, "localhost", tls, 10000);
  g_assert_error (result.error, MAIL_ERROR, MAIL_ERROR_TLS);
  g_assert_nonnull (strstr (result.error->message, "what signed the certificate of localhost"));
  g_clear_error (&result.error);
  server_stop (&server);
}

/* The server's own certificate as the only thing trusted. */
static void
test_trust_leaf (void)
{
  Server server = { .identity = ID_GOOD, .tls = TRUE };
  MailConfig config = { .tls = TRUE, .tls_ca = identities[ID_GOOD].file };
  g_autoptr (NetTls) tls = net_tls_new (&config, NULL);
  Result result;

  server_start (&server);
  result = reach (&server, "localhost", tls, 10000);
  g_assert_no_error (result.error);
  net_stream_free (result.stream);
  server_stop (&server);
}

static void
expect_refused (MailConfig *config, const char *text)
{
  g_autoptr (GError) error = NULL;

  g_assert_null (net_tls_new (config, &error));
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_USAGE);
  if (strstr (error->message, text) == NULL)
    g_error ("unexpected message: %s", error->message);
}

static void
test_bad_files (void)
{
  g_autofree char *missing = g_build_filename (directory, "missing", NULL);
  g_autofree char *text = g_build_filename (directory, "text", NULL);
  char *good = identities[ID_GOOD].file;

  g_assert_true (g_file_set_contents (text, "no certificate\n", -1, NULL));
  expect_refused (&(MailConfig) { .tls_ca = missing }, "missing: No such file");
  expect_refused (&(MailConfig) { .tls_ca = text }, "tls_ca=");
  expect_refused (&(MailConfig) { .tls_cert = missing, .tls_key = good }, "tls_cert=");
  expect_refused (&(MailConfig) { .tls_cert = text, .tls_key = good }, "tls_cert=");
  expect_refused (&(MailConfig) { .tls_cert = good, .tls_key = missing }, "tls_key=");
  expect_refused (&(MailConfig) { .tls_cert = good, .tls_key = identities[ID_CA].file },
                  "mismatch");
  g_remove (text);
}

static void
test_refused (void)
{
  Server server = { 0 };
  Result result;

  server_start (&server);
  server_stop (&server);
  result = connect_to ("127.0.0.1", server.port, NULL, 10000);
  g_assert_error (result.error, MAIL_ERROR, MAIL_ERROR_CONNECTION);
  g_assert_nonnull (strstr (result.error->message, "cannot connect to 127.0.0.1 port"));
  g_assert_nonnull (strstr (result.error->message, "refused"));
  g_clear_error (&result.error);
}

/* A listener whose queue is full never completes the connection. */
static void
test_connect_deadline (void)
{
  Server server = { 0 };
  struct sockaddr_in address = { .sin_family = AF_INET };
  int fillers[8];
  Result result;

  address.sin_addr.s_addr = htonl (INADDR_LOOPBACK);
  server_listen (&server);
  address.sin_port = htons (server.port);
  for (gsize i = 0; i < G_N_ELEMENTS (fillers); i++)
    {
      fillers[i] = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
      (void)!connect (fillers[i], (struct sockaddr *)&address, sizeof address);
    }
  result = connect_to ("127.0.0.1", server.port, NULL, 300);
  g_assert_error (result.error, MAIL_ERROR, MAIL_ERROR_TIMED_OUT);
  g_clear_error (&result.error);
  for (gsize i = 0; i < G_N_ELEMENTS (fillers); i++)
    close (fillers[i]);
  close (server.listener);
}

static void
never (NetStream *stream, const GError *error, gpointer user_data)
{
  g_error ("called although cancelled");
}

static gboolean
set_flag (gpointer flag)
{
  *(gboolean *)flag = TRUE;
  return G_SOURCE_REMOVE;
}

static void
run_for (guint milliseconds)
{
  gboolean over = FALSE;

  g_timeout_add (milliseconds, set_flag, &over);
  while (!over)
    g_main_context_iteration (NULL, TRUE);
}

/* Cancelled at once, in the handshake, and in the one after an upgrade. */
static void
test_cancel (void)
{
  g_autoptr (NetTls) tls = trusting ();

  for (int stage = 0; stage < 3; stage++)
    {
      Server server = { .talk = TALK_STALL, .tls = TRUE, .upgrade = stage == 2 };
      g_autoptr (GCancellable) cancellable = g_cancellable_new ();

      server_start (&server);
      if (stage == 2)
        {
          Result result = connect_to ("localhost", server.port, NULL, 10000);
          net_start_tls (result.stream, "localhost", tls, 10000, cancellable, never, NULL);
        }
      else
        net_connect ("localhost", server.port, tls, 10000, cancellable, never, NULL);
      if (stage > 0)
        run_for (50);
      g_cancellable_cancel (cancellable);
      run_for (50);
      server_stop (&server);
    }
}

/* --- data --- */

static char *
pattern (gsize length)
{
  char *data = g_malloc (length);
  guint32 state = 1;

  for (gsize i = 0; i < length; i++)
    {
      state = state * 1664525 + 1013904223;
      data[i] = (char)(i % 3 == 0 ? state >> 24 : 'a');
    }
  return data;
}

typedef struct
{
  NetStream *stream;
  const char *out;
  gsize out_left;
  gsize in_left;
  const char *expected;
  gsize read_size;
  gboolean done;
} Echo;

static gboolean
is_blocked (const GError *error)
{
  return g_error_matches (error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK);
}

static void
echo_ready (NetStream *stream, gpointer user_data)
{
  Echo *echo = user_data;
  g_autofree char *buffer = g_malloc (echo->read_size);
  g_autoptr (GError) error = NULL;
  gssize n;

  /* One read a call: that there is more must be noticed without our help. */
  n = net_stream_read (stream, buffer, echo->read_size, &error);
  if (n < 0)
    {
      g_assert_true (is_blocked (error));
      g_clear_error (&error);
    }
  else
    {
      g_assert_cmpint (n, >, 0);
      g_assert_cmpint (n, <=, echo->read_size);
      g_assert_cmpuint (n, <=, echo->in_left);
      g_assert_cmpint (memcmp (buffer, echo->expected, (gsize)n), ==, 0);
      echo->expected += n;
      echo->in_left -= (gsize)n;
    }
  while (echo->out_left > 0
         && (n = net_stream_write (stream, echo->out, echo->out_left, &error)) > 0)
    {
      echo->out += n;
      echo->out_left -= (gsize)n;
    }
  g_assert_true (error == NULL || is_blocked (error));
  g_clear_error (&error);
  if (!net_stream_flush (stream, &error))
    g_assert_true (is_blocked (error));
  echo->done = echo->in_left == 0;
}

static void
check_echo (gboolean use_tls, gboolean deflate, gsize length, gsize read_size)
{
  Server server = { .identity = ID_GOOD, .tls = use_tls };
  g_autoptr (NetTls) tls = use_tls ? trusting () : NULL;
  g_autofree char *data = pattern (length);
  Echo echo = {
    .out = data, .out_left = length, .in_left = length, .expected = data, .read_size = read_size
  };
  Result result;

  server_start (&server);
  result = reach (&server, "localhost", tls, 10000);
  g_assert_no_error (result.error);
  echo.stream = deflate ? net_deflate_new (result.stream, NULL, 0) : result.stream;
  g_assert_cmpint (net_stream_is_tls (echo.stream), ==, use_tls);
  net_stream_set_ready (echo.stream, echo_ready, &echo);
  /* The first write is the owner's. */
  echo_ready (echo.stream, &echo);
  while (!echo.done)
    g_main_context_iteration (NULL, TRUE);
  net_stream_free (echo.stream);
  server_stop (&server);
  if (deflate)
    g_assert_cmpuint (server.received, <, length);
}

static const struct
{
  const char *name;
  gboolean tls, deflate;
  gsize length, read_size;
} echo_cases[] = {
  { "tcp", FALSE, FALSE, 4 << 20, 65536 },
  { "tls", TRUE, FALSE, 4 << 20, 65536 },
  { "tls-small-reads", TRUE, FALSE, 40000, 7 },
  { "deflate", FALSE, TRUE, 4 << 20, 65536 },
  { "tls-deflate", TRUE, TRUE, 4 << 20, 65536 },
  { "tls-deflate-small-reads", TRUE, TRUE, 40000, 7 },
};

static void
test_echo (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);

  check_echo (echo_cases[i].tls, echo_cases[i].deflate, echo_cases[i].length,
              echo_cases[i].read_size);
}

/* A stream over one end of a socket pair; the other end is *peer. */
static NetStream *
pair_stream (int *peer)
{
  int ends[2];
  g_autoptr (GSocket) socket = NULL;
  GSocketConnection *connection;

  g_assert_cmpint (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), ==, 0);
  *peer = ends[1];
  socket = g_socket_new_from_fd (ends[0], NULL);
  connection = g_socket_connection_factory_create_connection (socket);
  return net_tcp_new (connection, NULL);
}

static GByteArray *
compress_bytes (const void *data, gsize length)
{
  z_stream z = { 0 };
  GByteArray *out = g_byte_array_new ();

  deflateInit2 (&z, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  g_byte_array_set_size (out, (guint)deflateBound (&z, length) + 64);
  z.next_in = (Bytef *)data;
  z.avail_in = (uInt)length;
  z.next_out = out->data;
  z.avail_out = out->len;
  g_assert_cmpint (deflate (&z, Z_SYNC_FLUSH), ==, Z_OK);
  g_byte_array_set_size (out, (guint)z.total_out);
  deflateEnd (&z);
  return out;
}

/* The first i bytes were read with the OK, the next j come alone, then the rest. */
static void
test_deflate_split (void)
{
  static const char text[] = "* OK compressed\r\n* 1 EXISTS\r\n* 1 EXISTS\r\na1 OK done\r\n";
  g_autoptr (GByteArray) packed = compress_bytes (text, strlen (text));

  for (guint i = 0; i <= packed->len; i++)
    {
      int peer;
      NetStream *stream = net_deflate_new (pair_stream (&peer), packed->data, i);
      char buffer[sizeof text];
      gsize length = 0;

      for (guint at = i; length < strlen (text);)
        {
          g_autoptr (GError) error = NULL;
          gssize n = net_stream_read (stream, buffer + length, sizeof buffer - length, &error);

          if (n < 0)
            {
              g_assert_true (is_blocked (error));
              g_assert_cmpuint (at, <, packed->len);
              write_all (peer, packed->data + at++, 1);
            }
          else
            length += (gsize)n;
        }
      g_assert_cmpmem (buffer, length, text, strlen (text));
      net_stream_free (stream);
      close (peer);
    }
}

/* 64 MiB of zeros in 64 KiB: read in small pieces, nothing grows. */
static void
test_deflate_bomb (void)
{
  gsize length = 64 << 20, total = 0;
  g_autofree char *zeros = g_malloc0 (length);
  g_autoptr (GByteArray) packed = compress_bytes (zeros, length);
  char buffer[1000];
  int peer;
  NetStream *stream = net_deflate_new (pair_stream (&peer), NULL, 0);

  g_assert_cmpuint (packed->len, <, 100000);
  write_all (peer, packed->data, packed->len);
  shutdown (peer, SHUT_WR);
  for (;;)
    {
      g_autoptr (GError) error = NULL;
      gssize n = read_wait (stream, buffer, sizeof buffer, &error);

      g_assert_no_error (error);
      if (n == 0)
        break;
      total += (gsize)n;
    }
  g_assert_cmpuint (total, ==, length);
  net_stream_free (stream);
  close (peer);
}

/* Sync blocks without a byte in them: each read gives up after a while. */
static void
test_deflate_empty_blocks (void)
{
  g_autofree guchar *blocks = g_malloc (65536);
  g_autoptr (GError) error = NULL;
  char buffer[10];
  int peer;
  NetStream *stream = net_deflate_new (pair_stream (&peer), NULL, 0);

  for (gsize i = 0; i + 5 <= 65536; i += 5)
    memcpy (blocks + i, "\0\0\0\377\377", 5);
  write_all (peer, blocks, 65535);
  g_assert_cmpint (net_stream_read (stream, buffer, sizeof buffer, &error), ==, -1);
  g_assert_true (is_blocked (error));
  net_stream_free (stream);
  close (peer);
}

static void
test_deflate_garbage (void)
{
  g_autoptr (GError) error = NULL;
  char buffer[100];
  int peer;
  NetStream *stream = net_deflate_new (pair_stream (&peer), "\377\377\377\377", 4);

  g_assert_cmpint (net_stream_read (stream, buffer, sizeof buffer, &error), ==, -1);
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL);
  net_stream_free (stream);
  close (peer);
}

/* A vanished peer is an error, not a signal. */
static void
test_broken_pipe (void)
{
  g_autoptr (GError) error = NULL;
  int peer;
  NetStream *stream = pair_stream (&peer);
  char byte;

  close (peer);
  g_assert_cmpint (net_stream_read (stream, &byte, 1, &error), ==, 0);
  g_assert_no_error (error);
  g_assert_cmpint (net_stream_write (stream, "x", 1, &error), ==, -1);
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_CONNECTION);
  net_stream_free (stream);
}

/* A command that was given up on does not reach the server later, when it has been sent again on
 * another connection. What has reached it ends in an orderly way. */
static void
test_given_up (void)
{
  g_autoptr (GError) error = NULL;
  Server server = { 0 };
  gsize sent = 0, came = 0;
  int small = 4096;
  char data[16384] = { 0 };
  gssize n;

  server_listen (&server);
  setsockopt (server.listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  Result result = connect_to ("127.0.0.1", server.port, NULL, 5000);
  g_assert_no_error (result.error);
  int fd = accept (server.listener, NULL, NULL);
  while ((n = net_stream_write (result.stream, data, sizeof data, &error)) > 0)
    sent += (gsize)n;
  g_assert_error (error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK);
  net_stream_free (result.stream);
  while ((n = recv (fd, data, sizeof data, 0)) > 0)
    came += (gsize)n;
  g_assert_cmpint (n, ==, -1);
  g_assert_cmpuint (came, <, sent);
  close (fd);

  result = connect_to ("127.0.0.1", server.port, NULL, 5000);
  g_assert_no_error (result.error);
  fd = accept (server.listener, NULL, NULL);
  write_small (result.stream, "QUIT");
  g_assert_cmpint (recv (fd, data, 4, MSG_WAITALL), ==, 4);
  net_stream_free (result.stream);
  g_assert_cmpint (recv (fd, data, 1, 0), ==, 0);
  close (fd);
  close (server.listener);
}

static void
free_in_ready (NetStream *stream, gpointer user_data)
{
  net_stream_free (stream);
  *(gboolean *)user_data = TRUE;
}

static void
test_free_in_ready (void)
{
  gboolean freed = FALSE;
  int peer;
  NetStream *stream = pair_stream (&peer);

  net_stream_set_ready (stream, free_in_ready, &freed);
  write_all (peer, "x", 1);
  while (!freed)
    g_main_context_iteration (NULL, TRUE);
  close (peer);
}

#define ADD(table, prefix, function)                                                               \
  for (gsize i = 0; i < G_N_ELEMENTS (table); i++)                                                 \
    {                                                                                              \
      g_autofree char *path = g_strconcat (prefix, table[i].name, NULL);                           \
      g_test_add_data_func (path, GSIZE_TO_POINTER (i), function);                                 \
    }

int
main (int argc, char **argv)
{
  int status;

  g_test_init (&argc, &argv, NULL);
  g_setenv ("GIO_USE_PROXY_RESOLVER", "dummy", TRUE);
  directory = g_dir_make_tmp ("mailfs-net-XXXXXX", NULL);
  for (int i = 0; i < N_IDENTITIES; i++)
    make_identity ((IdentityName)i);
  ADD (trust_cases, "/net/implicit/", test_implicit);
  ADD (trust_cases, "/net/upgrade/", test_upgrade);
  ADD (echo_cases, "/net/echo/", test_echo);
  g_test_add_func ("/net/injected", test_injected);
  g_test_add_func ("/net/client-certificate", test_client_certificate);
  g_test_add_func ("/net/trust-directory", test_trust_directory);
  g_test_add_func ("/net/trust-leaf", test_trust_leaf);
  g_test_add_func ("/net/expired-authority", test_expired_authority);
  g_test_add_func ("/net/bad-files", test_bad_files);
  g_test_add_func ("/net/refused", test_refused);
  g_test_add_func ("/net/connect-deadline", test_connect_deadline);
  g_test_add_func ("/net/cancel", test_cancel);
  g_test_add_func ("/net/deflate/split", test_deflate_split);
  g_test_add_func ("/net/deflate/bomb", test_deflate_bomb);
  g_test_add_func ("/net/deflate/empty-blocks", test_deflate_empty_blocks);
  g_test_add_func ("/net/deflate/garbage", test_deflate_garbage);
  g_test_add_func ("/net/broken-pipe", test_broken_pipe);
  g_test_add_func ("/net/given-up", test_given_up);
  g_test_add_func ("/net/free-in-ready", test_free_in_ready);
  status = g_test_run ();
  for (int i = 0; i < N_IDENTITIES; i++)
    {
      g_remove (identities[i].file);
      g_free (identities[i].file);
      X509_free (identities[i].certificate);
      EVP_PKEY_free (identities[i].key);
    }
  g_remove (directory);
  g_free (directory);
  return status;
}
