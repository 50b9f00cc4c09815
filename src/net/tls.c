/* SPDX-License-Identifier: MIT
 *
 * TLS by OpenSSL: the trust made from the config (NetTls), and the layer over a NetStream. What a
 * certificate must satisfy: a chain to tls_ca or the system store, the host name or address, the
 * dates, the purpose. A matching tls_pin stands in for the chain alone, and only without tls_ca; a
 * pin that does not match refuses in any case. The stream's thread; NetTls is immutable.
 */
#include "mailfs/error.h"
#include "mailfs/log.h"
#include "net/layer.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <unistd.h>

#define PIN_LENGTH 32

struct NetTls
{
  gatomicrefcount count;
  SSL_CTX *context;
  gboolean own_ca;  /* tls_ca was given */
  gboolean has_pin; /* pin is valid */
  guchar pin[PIN_LENGTH];
};

typedef struct
{
  NetStream base;
  NetTls *tls;
  SSL *ssl;
  char *host;
  X509 *refused;       /* what did not verify: OpenSSL keeps no certificate it refused */
  int refused_depth;   /* 0: that very certificate; else one above it */
  GError *inner_error; /* what the layer below said in the BIO callbacks */
  gboolean dead;       /* no more SSL calls: not even a close_notify */
} TlsStream;

/* --- the trust --- */

static int
refuse_passphrase (char *buffer, int size, int writing, void *user_data)
{
  return -1;
}

static const char *
openssl_reason (void)
{
  const char *reason = ERR_reason_error_string (ERR_peek_last_error ());

  return reason != NULL ? reason : "not usable";
}

/* OpenSSL's own message for a file that cannot be opened is no help. */
static gboolean
set_file_error (GError **error, const char *option, const char *file)
{
  if (access (file, R_OK) < 0)
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "%s=%s: %s", option, file,
                 g_strerror (errno));
  else
    g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "%s=%s: %s", option, file, openssl_reason ());
  return FALSE;
}

static gboolean
load_trust (NetTls *tls, const MailConfig *config, GError **error)
{
  const char *ca = config->tls_ca;
  gboolean ok;

  tls->own_ca = ca != NULL;
  if (ca == NULL)
    ok = SSL_CTX_set_default_verify_paths (tls->context);
  else if (g_file_test (ca, G_FILE_TEST_IS_DIR))
    ok = access (ca, R_OK | X_OK) == 0 && SSL_CTX_load_verify_dir (tls->context, ca);
  else
    ok = SSL_CTX_load_verify_file (tls->context, ca);
  if (!ok)
    return set_file_error (error, "tls_ca", ca != NULL ? ca : "system store");
  /* The server's own certificate, or one in the middle, may be what is trusted. */
  if (ca != NULL)
    X509_VERIFY_PARAM_set_flags (SSL_CTX_get0_param (tls->context), X509_V_FLAG_PARTIAL_CHAIN);
  return TRUE;
}

static gboolean
load_client_certificate (NetTls *tls, const MailConfig *config, GError **error)
{
  if (config->tls_cert == NULL)
    return TRUE;
  SSL_CTX_set_default_passwd_cb (tls->context, refuse_passphrase);
  if (SSL_CTX_use_certificate_chain_file (tls->context, config->tls_cert) != 1)
    return set_file_error (error, "tls_cert", config->tls_cert);
  if (SSL_CTX_use_PrivateKey_file (tls->context, config->tls_key, SSL_FILETYPE_PEM) != 1)
    return set_file_error (error, "tls_key", config->tls_key);
  return TRUE;
}

static gboolean
set_pin (NetTls *tls, const MailConfig *config, GError **error)
{
  g_autofree guchar *pin = NULL;
  gsize n;

  if (config->tls_pin == NULL)
    return TRUE;
  pin = g_base64_decode (config->tls_pin, &n);
  if (n != PIN_LENGTH)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_USAGE, "tls_pin=%s is not a SHA-256 in base64",
                   config->tls_pin);
      return FALSE;
    }
  memcpy (tls->pin, pin, n);
  tls->has_pin = TRUE;
  return TRUE;
}

static gboolean
key_digest (X509 *certificate, guchar digest[PIN_LENGTH])
{
  guchar *der = NULL;
  int length = i2d_X509_PUBKEY (X509_get_X509_PUBKEY (certificate), &der);
  guint n = 0;
  gboolean ok = length > 0
                && EVP_Digest (der, (size_t)length, digest, &n, EVP_sha256 (), NULL) == 1;

  OPENSSL_free (der);
  return ok && n == PIN_LENGTH;
}

static gboolean
pin_matches (const NetTls *tls, X509 *certificate)
{
  guchar digest[PIN_LENGTH];

  return certificate != NULL && key_digest (certificate, digest)
         && memcmp (digest, tls->pin, sizeof digest) == 0;
}

static gboolean
is_chain_error (int code)
{
  switch (code)
    {
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_CERT_UNTRUSTED:
      return TRUE;
    default:
      return FALSE;
    }
}

static int
verify (int ok, X509_STORE_CTX *store)
{
  SSL *ssl = X509_STORE_CTX_get_ex_data (store, SSL_get_ex_data_X509_STORE_CTX_idx ());
  TlsStream *self = SSL_get_app_data (ssl);
  X509 *leaf = X509_STORE_CTX_get0_cert (store);

  if (ok)
    return 1;
  if (self->tls->has_pin && !self->tls->own_ca && is_chain_error (X509_STORE_CTX_get_error (store))
      && pin_matches (self->tls, leaf))
    {
      X509_STORE_CTX_set_error (store, X509_V_OK);
      return 1;
    }
  if (self->refused == NULL && leaf != NULL && X509_up_ref (leaf) == 1)
    {
      self->refused = leaf;
      self->refused_depth = X509_STORE_CTX_get_error_depth (store);
    }
  return 0;
}

NetTls *
net_tls_new (const MailConfig *config, GError **error)
{
  g_autoptr (NetTls) tls = g_new0 (NetTls, 1);

  g_atomic_ref_count_init (&tls->count);
  ERR_clear_error ();
  tls->context = SSL_CTX_new (TLS_client_method ());
  if (tls->context == NULL || SSL_CTX_set_min_proto_version (tls->context, TLS1_2_VERSION) != 1)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_TLS, "TLS cannot be set up: %s",
                   openssl_reason ());
      return NULL;
    }
  /* Mail protocols frame their answers, so an end without close_notify is just an end. */
  SSL_CTX_set_options (tls->context, SSL_OP_NO_RENEGOTIATION | SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_mode (tls->context, SSL_MODE_ENABLE_PARTIAL_WRITE
                                      | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
                                      | SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_session_cache_mode (tls->context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_verify (tls->context, SSL_VERIFY_PEER, verify);
  if (!load_trust (tls, config, error) || !load_client_certificate (tls, config, error)
      || !set_pin (tls, config, error))
    return NULL;
  return g_steal_pointer (&tls);
}

NetTls *
net_tls_ref (NetTls *tls)
{
  g_atomic_ref_count_inc (&tls->count);
  return tls;
}

void
net_tls_unref (NetTls *tls)
{
  if (tls == NULL || !g_atomic_ref_count_dec (&tls->count))
    return;
  SSL_CTX_free (tls->context);
  g_free (tls);
}

/* --- the layer below, as OpenSSL sees it --- */

static int
bio_read (BIO *bio, char *buffer, int length)
{
  TlsStream *self = BIO_get_data (bio);
  gssize n;

  BIO_clear_retry_flags (bio);
  g_clear_error (&self->inner_error);
  n = net_stream_read (self->base.inner, buffer, (gsize)length, &self->inner_error);
  if (n < 0 && g_error_matches (self->inner_error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
    BIO_set_retry_read (bio);
  return (int)n;
}

static int
bio_write (BIO *bio, const char *data, int length)
{
  TlsStream *self = BIO_get_data (bio);
  gssize n;

  BIO_clear_retry_flags (bio);
  g_clear_error (&self->inner_error);
  n = net_stream_write (self->base.inner, data, (gsize)length, &self->inner_error);
  if (n < 0 && g_error_matches (self->inner_error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
    BIO_set_retry_write (bio);
  return (int)n;
}

static long
bio_control (BIO *bio, int command, long number, void *pointer)
{
  return command == BIO_CTRL_FLUSH; /* nothing is held */
}

static BIO_METHOD *
bio_method (void)
{
  static gsize once;
  static BIO_METHOD *method;

  if (g_once_init_enter (&once))
    {
      method = BIO_meth_new (BIO_get_new_index () | BIO_TYPE_SOURCE_SINK, "NetStream");
      BIO_meth_set_read (method, bio_read);
      BIO_meth_set_write (method, bio_write);
      BIO_meth_set_ctrl (method, bio_control);
      g_once_init_leave (&once, 1);
    }
  return method;
}

/* --- what went wrong, in one line --- */

static const char *
certificate_names (X509 *certificate, GString *names)
{
  GENERAL_NAMES *list = X509_get_ext_d2i (certificate, NID_subject_alt_name, NULL, NULL);
  char common[256];

  for (int i = 0; i < sk_GENERAL_NAME_num (list) && names->len < 200; i++)
    {
      const GENERAL_NAME *name = sk_GENERAL_NAME_value (list, i);

      if (name->type == GEN_DNS)
        g_string_append_printf (names, "%s%.*s", names->len > 0 ? ", " : "",
                                ASN1_STRING_length (name->d.dNSName),
                                (const char *)ASN1_STRING_get0_data (name->d.dNSName));
    }
  GENERAL_NAMES_free (list);
  if (names->len == 0
      && X509_NAME_get_text_by_NID (X509_get_subject_name (certificate), NID_commonName, common,
                                    sizeof common)
             > 0)
    g_string_append (names, common);
  return names->len > 0 ? names->str : "somebody else";
}

static char *
date_text (const ASN1_TIME *time)
{
  struct tm tm = { 0 };

  if (time == NULL || ASN1_TIME_to_tm (time, &tm) != 1)
    return g_strdup ("an unknown date");
  return g_strdup_printf ("%04d-%02d-%02d", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday);
}

static char *
untrusted_text (const TlsStream *self, X509 *certificate)
{
  guchar digest[PIN_LENGTH];
  g_autofree char *pin = NULL;

  if (self->tls->own_ca || !key_digest (certificate, digest))
    return g_strdup_printf ("the certificate of %s is not signed by what tls_ca= names",
                            self->host);
  if (self->tls->has_pin)
    return g_strdup_printf ("the certificate of %s is not signed by a known authority, and its "
                            "key is not the one of tls_pin=",
                            self->host);
  pin = g_base64_encode (digest, sizeof digest);
  return g_strdup_printf ("the certificate of %s is not signed by a known authority: give "
                          "tls_ca=FILE with what signed it, or tls_pin=%s if that is its key",
                          self->host, pin);
}

static char *
verify_text (const TlsStream *self, long code)
{
  X509 *certificate = self->refused;
  g_autoptr (GString) names = g_string_new (NULL);
  g_autofree char *date = NULL;

  if (certificate == NULL)
    return g_strdup_printf ("%s showed no certificate", self->host);
  if (is_chain_error ((int)code))
    return untrusted_text (self, certificate);
  if (self->refused_depth > 0)
    return g_strdup_printf ("what signed the certificate of %s is refused: %s", self->host,
                            X509_verify_cert_error_string (code));
  switch (code)
    {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      date = date_text (X509_get0_notAfter (certificate));
      return g_strdup_printf ("the certificate of %s expired on %s", self->host, date);
    case X509_V_ERR_CERT_NOT_YET_VALID:
      date = date_text (X509_get0_notBefore (certificate));
      return g_strdup_printf ("the certificate of %s is valid only from %s: is the clock right?",
                              self->host, date);
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
      return g_strdup_printf ("the certificate is for %s, not for %s",
                              certificate_names (certificate, names), self->host);
    case X509_V_ERR_INVALID_PURPOSE:
      return g_strdup_printf ("the certificate of %s is not meant for servers", self->host);
    default:
      return g_strdup_printf ("the certificate of %s is refused: %s", self->host,
                              X509_verify_cert_error_string (code));
    }
}

static char *
handshake_text (const TlsStream *self, unsigned long code)
{
  switch (ERR_GET_REASON (code))
    {
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
      return g_strdup_printf ("%s speaks no TLS 1.2 or later", self->host);
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
      return g_strdup_printf ("%s sent something that is not TLS", self->host);
    default:
      return g_strdup_printf ("TLS with %s failed: %s", self->host, openssl_reason ());
    }
}

/* Sets error for a call that returned rc; the code is G_IO_ERROR_WOULD_BLOCK, or the stream is
   dead. */
static void
set_ssl_error (TlsStream *self, int rc, gboolean handshake, GError **error)
{
  int kind = SSL_get_error (self->ssl, rc);
  long verified = SSL_get_verify_result (self->ssl);
  unsigned long code = ERR_peek_last_error ();
  g_autofree char *text = NULL;
  g_autofree char *safe = NULL;

  if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE)
    {
      net_would_block (error);
      return;
    }
  self->dead = TRUE;
  if (self->inner_error != NULL
      && !g_error_matches (self->inner_error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK))
    {
      g_propagate_error (error, g_steal_pointer (&self->inner_error));
      return;
    }
  if (handshake && (kind == SSL_ERROR_ZERO_RETURN || kind == SSL_ERROR_SYSCALL))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_CONNECTION,
                   "%s closed the connection during the TLS handshake", self->host);
      return;
    }
  text = handshake && verified != X509_V_OK ? verify_text (self, verified)
                                            : handshake_text (self, code);
  safe = mail_log_escape (text, -1, 500); /* names come from the certificate */
  g_set_error_literal (error, MAIL_ERROR, handshake ? MAIL_ERROR_TLS : MAIL_ERROR_PROTOCOL, safe);
}

/* --- the layer --- */

static gssize
tls_read (NetStream *stream, void *buffer, gsize length, GError **error)
{
  TlsStream *self = (TlsStream *)stream;
  int n;

  ERR_clear_error ();
  n = SSL_read (self->ssl, buffer, (int)MIN (length, G_MAXINT));
  if (n > 0)
    return n;
  if (SSL_get_error (self->ssl, n) == SSL_ERROR_ZERO_RETURN)
    return 0;
  set_ssl_error (self, n, FALSE, error);
  return -1;
}

static gssize
tls_write (NetStream *stream, const void *data, gsize length, GError **error)
{
  TlsStream *self = (TlsStream *)stream;
  int n;

  ERR_clear_error ();
  n = SSL_write (self->ssl, data, (int)MIN (length, SSL3_RT_MAX_PLAIN_LENGTH));
  if (n > 0)
    return n;
  set_ssl_error (self, n, FALSE, error);
  return -1;
}

/* SSL_has_pending () would also count part of a record, for which the socket is still needed. */
static gboolean
tls_pending (NetStream *stream)
{
  return SSL_pending (((TlsStream *)stream)->ssl) > 0;
}

static void
tls_close (NetStream *stream)
{
  TlsStream *self = (TlsStream *)stream;

  if (!self->dead && SSL_is_init_finished (self->ssl))
    SSL_shutdown (self->ssl);
  ERR_clear_error ();
  SSL_free (self->ssl);
  X509_free (self->refused);
  net_tls_unref (self->tls);
  g_clear_error (&self->inner_error);
  g_free (self->host);
}

static const NetStreamOps tls_ops = {
  .read = tls_read,
  .write = tls_write,
  .pending = tls_pending,
  .close = tls_close,
};

static gboolean
expect_host (TlsStream *self)
{
  X509_VERIFY_PARAM *param = SSL_get0_param (self->ssl);

  if (g_hostname_is_ip_address (self->host))
    return X509_VERIFY_PARAM_set1_ip_asc (param, self->host) == 1;
  X509_VERIFY_PARAM_set_hostflags (param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  return X509_VERIFY_PARAM_set1_host (param, self->host, 0) == 1
         && SSL_set_tlsext_host_name (self->ssl, self->host) == 1;
}

NetStream *
net_tls_stream_new (NetStream *inner, const char *host, NetTls *tls, GError **error)
{
  TlsStream *self = g_new0 (TlsStream, 1);
  BIO *bio = BIO_new (bio_method ());

  net_stream_init (&self->base, &tls_ops, inner, g_strdup (net_stream_describe (inner)));
  self->tls = net_tls_ref (tls);
  self->host = g_strdup (host);
  /* "host." is the same host, but no certificate says so. */
  if (g_str_has_suffix (self->host, "."))
    self->host[strlen (self->host) - 1] = '\0';
  self->ssl = SSL_new (tls->context);
  if (self->ssl == NULL || bio == NULL)
    g_error ("out of memory for TLS");
  BIO_set_data (bio, self);
  BIO_set_init (bio, 1);
  SSL_set_bio (self->ssl, bio, bio);
  SSL_set_app_data (self->ssl, self);
  SSL_set_connect_state (self->ssl);
  if (expect_host (self))
    return &self->base;
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_TLS, "TLS cannot check the name \"%s\"", host);
  net_stream_free (&self->base);
  return NULL;
}

gboolean
net_tls_stream_handshake (NetStream *stream, GError **error)
{
  TlsStream *self = (TlsStream *)stream;
  int rc;

  ERR_clear_error ();
  rc = SSL_do_handshake (self->ssl);
  if (rc != 1)
    {
      set_ssl_error (self, rc, TRUE, error);
      return FALSE;
    }
  if (self->tls->has_pin && !pin_matches (self->tls, SSL_get0_peer_certificate (self->ssl)))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_TLS,
                   "the key of %s is not the one that tls_pin= names", self->host);
      return FALSE;
    }
  stream->is_tls = TRUE;
  g_free (stream->description);
  stream->description = g_strdup_printf ("%s %s", net_stream_describe (stream->inner),
                                         SSL_get_version (self->ssl));
  return TRUE;
}
