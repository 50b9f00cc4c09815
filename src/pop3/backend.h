/* SPDX-License-Identifier: MIT
 *
 * The POP3 backend behind mailfs/backend.h.
 */
#pragma once

#include "mailfs/backend.h"
#include "mailfs/config.h"
#include "mailfs/stream.h"

/* On the net thread. Borrows config and secrets, which outlive it; refs tls (NULL with tls=off).
 * Connects to nothing before start or the first request. */
MailBackend *pop3_backend_new (const MailConfig *config, MailSecretSource *secrets, NetTls *tls);
