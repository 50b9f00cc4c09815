/* SPDX-License-Identifier: MIT
 *
 * What a POP3 server says about itself: CAPA (RFC 2449) and response codes (RFC 2449 section 8,
 * RFC 3206, RFC 6856). Any thread.
 */
#pragma once

#include "mailfs/error.h"

typedef struct
{
  guint flags;           /* Pop3Caps */
  GPtrArray *mechanisms; /* of char *, NULL-terminated once POP3_CAP_KNOWN; or NULL */
  guint login_delay;     /* seconds */
  guint n_lines;
} Pop3Capa;

void pop3_capa_clear (Pop3Capa *capa);
/* One line of the answer. FALSE: there were too many. */
gboolean pop3_capa_add (Pop3Capa *capa, const char *line, gsize length);
/* The answer is complete. */
void pop3_capa_finish (Pop3Capa *capa);

/* text: behind "-ERR". fallback: the code where the server says nothing more precise.
 * auth_out (may be NULL): it said [AUTH]. */
GError *pop3_refusal (const char *command, const char *text, gsize length, MailErrorCode fallback,
                      gboolean *auth_out);

/* The "<...@...>" of a greeting, which APOP needs (RFC 1939 section 7), or NULL. */
char *pop3_greeting_timestamp (const char *text, gsize length);
