/* SPDX-License-Identifier: MIT
 *
 * When a message arrived, from its header: POP3 tells no date. Any thread.
 */
#pragma once

#include <glib.h>

/* A date as RFC 5322 writes it, or nearly: obsolete zones, comments, years of two digits, missing
 * seconds or weekday, asctime order. Seconds since the epoch. FALSE for what is no date. */
gboolean pop3_date_parse (const char *text, gsize length, gint64 *seconds_out);

/* The date of the topmost Received field that has one, else of Date. header may be cut anywhere. */
gboolean pop3_date_of_header (const char *header, gsize length, gint64 *seconds_out);
