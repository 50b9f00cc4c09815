/* SPDX-License-Identifier: MIT
 *
 * ImapTrace: what the server says, line by line, for the protocol trace: literals left out, long
 * lines cut, what belongs to the login masked. Net thread.
 */
#pragma once

#include <glib.h>

typedef struct ImapTrace ImapTrace;

/* NULL when there is no trace; every function takes that. peer is borrowed. */
ImapTrace *imap_trace_new (const char *peer);
void imap_trace_free (ImapTrace *trace);
void imap_trace_input (ImapTrace *trace, const char *data, gsize length);
/* line is ours and has no secrets in it. */
void imap_trace_output (ImapTrace *trace, const char *line);
/* From now on (secret not NULL) until NULL: continuations and lines with the secret are masked.
 * Borrowed. */
void imap_trace_mask (ImapTrace *trace, const char *secret);
