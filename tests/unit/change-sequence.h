/* SPDX-License-Identifier: MIT
 *
 * A byte string as a history of one account: what a user does through the mount, what other clients
 * do, what goes wrong on the way to the server, and moments at which the daemon is killed. At the
 * end everything is looked at: no message lost, none twice, none of somebody else's touched, and
 * the mount shows what the server has. The same bytes are the same history.
 */
#pragma once

#include <glib.h>

/* Ends the program when a promise was broken. verbose: tells the history on stderr. */
void change_sequence_run (const guint8 *data, gsize size, gboolean verbose);
