/* SPDX-License-Identifier: MIT
 *
 * Account URLs (RFC 5092, RFC 2384), inside src/config only.
 */
#pragma once

#include "mailfs/config.h"

/* Whether source is meant as a URL at all; what is not is an account name. */
gboolean config_url_looks_like_one (const char *source);

/* Fills url, scheme, user, host, port and mailbox, and auth unless an option has set it already.
 * MAIL_ERROR_USAGE with a text that never repeats what may be a password. */
gboolean config_url_parse (MailConfig *config, const char *text, GError **error);
