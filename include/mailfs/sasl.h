/* SPDX-License-Identifier: MIT
 *
 * NetSasl: one authentication exchange, sans-I/O: challenges in, responses out, both base64 as they
 * stand on an IMAP or POP3 line. The mechanisms are GNU SASL's, XOAUTH2 and OAUTHBEARER (RFC 7628)
 * our own. Knows no protocol. One object is used by one thread at a time.
 */
#pragma once

#include <glib.h>

typedef struct NetSasl NetSasl;

/* The best mechanism among offered (NULL-terminated wire names, any case), as a static upper-case
 * wire name: SCRAM-SHA-256, SCRAM-SHA-1, then under tls PLAIN, LOGIN, CRAM-MD5, in clear text
 * CRAM-MD5, PLAIN, LOGIN. wanted (MailConfig.auth, lower case, or NULL) is obeyed: MAIL_ERROR_AUTH
 * if it is not offered. XOAUTH2, OAUTHBEARER, EXTERNAL and ANONYMOUS are only used when wanted.
 * have_user: whether there is a user name; without one nothing is chosen by itself.
 * NULL without an error when nothing usable is offered, or when wanted is "login" or "apop" and not
 * offered: the caller falls back to LOGIN, USER/PASS or APOP, or refuses. */
const char *net_sasl_choose (const char *const *offered, const char *wanted, gboolean tls,
                             gboolean have_user, GError **error);

/* mechanism: a name net_sasl_choose returned. service: "imap" or "pop". user and secret may be NULL
 * for EXTERNAL (user is then an authorization identity) and ANONYMOUS; else they are copied.
 * MAIL_ERROR_AUTH if something is missing. */
NetSasl *net_sasl_new (const char *mechanism, const char *service, const char *host, guint16 port,
                       const char *user, const char *secret, GError **error);

/* Wipes what it holds. */
void net_sasl_free (NetSasl *sasl);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (NetSasl, net_sasl_free)

const char *net_sasl_mechanism (NetSasl *sasl);

/* Whether the client speaks first: the response to NULL can then go with the command itself (IMAP
 * SASL-IR, POP3 AUTH), where an empty one is written "=", or be the answer to an empty challenge. */
gboolean net_sasl_client_first (NetSasl *sasl);

/* The answer to a challenge, base64, "" if empty; free it with net_sasl_wipe. challenge is the
 * base64 text after "+ ", or NULL to begin. When client_first is TRUE and the initial response did
 * not go with the command, answer the server's first (empty) challenge by step (NULL).
 * MAIL_ERROR_AUTH or MAIL_ERROR_PROTOCOL: the exchange is over, cancel it with "*". */
char *net_sasl_step (NetSasl *sasl, const char *challenge_base64, GError **error);

/* To be asked when the server says OK: FALSE if the mechanism owes a proof that did not come (the
 * server's signature in SCRAM): the server does not know the password, do not trust it. */
gboolean net_sasl_finished_ok (NetSasl *sasl);

/* What XOAUTH2 or OAUTHBEARER said went wrong (JSON, unescaped server text), or NULL. */
const char *net_sasl_server_error (NetSasl *sasl);

/* Wipes and frees a response; NULL is fine. */
void net_sasl_wipe (char *text);
