/* SPDX-License-Identifier: MIT
 *
 * Modified UTF-7 (RFC 3501 5.1.3): how mailbox names travel. Pure functions.
 */
#pragma once

#include <glib.h>

/* The wire form of a mailbox name; NULL when utf8 is not valid UTF-8. */
char *imap_utf7_encode (const char *utf8);

/* The UTF-8 of a wire name, or NULL when the name is not the one canonical encoding of anything:
 * 8-bit bytes, control characters, broken or superfluous base64, lone surrogates, an encoded NUL.
 * Whatever is returned encodes to exactly the same wire name again, so two names never meet in one.
 */
char *imap_utf7_decode (const char *name);
