/* SPDX-License-Identifier: MIT
 *
 * ~/.netrc, inside src/config only.
 */
#pragma once

#include "mailfs/config.h"

/* The password for user at host in text (which is cut into words in place), or NULL: the first
 * machine or default entry that fits. It points into text. */
char *config_netrc_find (char *text, const char *host, const char *user);
