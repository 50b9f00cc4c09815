/* SPDX-License-Identifier: MIT
 *
 * The table of -o options and config file keys, inside src/config only.
 */
#pragma once

#include "mailfs/config.h"

/* Sets what name=value stands for; value is NULL for a bare name. Relative paths are taken from
 * base. known_out is FALSE, without an error, for a name that is not in the table. */
gboolean config_option_apply (MailConfig *config, const char *name, const char *value,
                              const char *base, gboolean *known_out, GError **error);

/* Lower-case name of a mechanism mailfs knows, or NULL; wire is any case. */
const char *config_auth_name (const char *wire);

/* Absolute form of path: "~/" is the home directory, the rest is taken from base. */
char *config_path (const char *path, const char *base);
