/* SPDX-License-Identifier: MIT
 *
 * Places where a test makes the program die as if it had been killed: MAILFS_FAILPOINT=name:count
 * ends it without a word at the count-th passage. Any thread.
 */
#include "mail/keep.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void
mail_failpoint (const char *name)
{
  static gint passages;
  const char *wanted = g_getenv ("MAILFS_FAILPOINT");
  const char *colon = wanted != NULL ? strchr (wanted, ':') : NULL;

  if (colon == NULL || strlen (name) != (gsize)(colon - wanted)
      || strncmp (name, wanted, colon - wanted) != 0)
    return;
  if (g_atomic_int_add (&passages, 1) + 1 >= atoi (colon + 1))
    _exit (137);
}
