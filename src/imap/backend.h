/* SPDX-License-Identifier: MIT
 *
 * The IMAP backend behind mailfs/backend.h: pool, sessions and what they need.
 */
#pragma once

#include "mailfs/backend.h"
#include "mailfs/config.h"
#include "mailfs/stream.h"

/* On the net thread. Borrows config and secrets, which outlive it; refs tls (NULL with tls=off).
 * Connects to nothing before start or the first request. */
MailBackend *imap_backend_new (const MailConfig *config, MailSecretSource *secrets, NetTls *tls);
