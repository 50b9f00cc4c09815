/* SPDX-License-Identifier: MIT
 *
 * libFuzzer target for changing mail: the input is a history (tests/unit/change-sequence.c): what
 * the user and other clients do, what goes wrong, and when the daemon is killed. Each promise is
 * checked at its end.
 */
#include "../unit/change-sequence.h"
#include "mailfs/log.h"

int LLVMFuzzerTestOneInput (const guint8 *data, gsize size);

int
LLVMFuzzerTestOneInput (const guint8 *data, gsize size)
{
  mail_log_init (MAIL_LOG_ERROR, FALSE);
  if (size >= 4 && size <= 1024)
    change_sequence_run (data, size, FALSE);
  return 0;
}
