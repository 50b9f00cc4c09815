/* SPDX-License-Identifier: MIT
 *
 * Secrets in locked memory and the readers of secret files, inside src/config only.
 */
#pragma once

#include "mailfs/config.h"

/* The longest line that is taken for a password or token. */
#define CONFIG_SECRET_MAX 65536

/* A copy of length bytes, in pages that are neither swapped nor dumped. */
MailSecret *config_secret_new (const char *text, gsize length);

/* Like malloc, but locked and not dumped; wiped by config_locked_free. */
void *config_locked_alloc (gsize size);
void config_locked_free (void *memory);
void config_locked_clear (char **memory); /* for g_auto-like use by __attribute__ ((cleanup)) */

/* Opens a file only its owner may read: fails if group or others can, or if it is neither a regular
 * file nor, with allow_fifo, a fifo. what names it in errors. The fd is non-blocking. -1 on error.
 */
int config_open_private (const char *path, const char *what, gboolean allow_fifo, GError **error);
