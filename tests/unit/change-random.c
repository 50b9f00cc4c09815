/* SPDX-License-Identifier: MIT
 *
 * Histories of changes and kills from pseudo-random bytes: always the same ones. With file names,
 * those instead, told step by step: what the fuzzer found.
 */
#include "change-sequence.h"
#include "mailfs/log.h"

#include <stdlib.h>

#define N_SEEDS 30u
#define N_BYTES 160u

static void
test_seeds (gconstpointer data)
{
  for (guint i = 0; i < N_SEEDS; i++)
    {
      g_autoptr (GRand) rand = g_rand_new_with_seed (GPOINTER_TO_UINT (data) * 1000 + i);
      guint8 bytes[N_BYTES];

      for (guint k = 0; k < N_BYTES; k++)
        bytes[k] = (guint8)g_rand_int (rand);
      bytes[0] = (guint8)(bytes[0] & ~3u) | (guint8)GPOINTER_TO_UINT (data); /* the server */
      g_test_message ("seed %u", i);
      change_sequence_run (bytes, sizeof bytes, g_test_verbose ());
    }
}

int
main (int argc, char **argv)
{
  static const char *const servers[] = { "all", "no-move", "no-uidplus", "neither" };

  g_test_init (&argc, &argv, NULL);
  if (!g_test_verbose ())
    mail_log_init (MAIL_LOG_ERROR, FALSE);
  for (int i = 1; i < argc; i++)
    {
      g_autofree char *bytes = NULL;
      gsize length;

      g_assert_true (g_file_get_contents (argv[i], &bytes, &length, NULL));
      change_sequence_run ((const guint8 *)bytes, length, TRUE);
    }
  for (guint i = 0; i < G_N_ELEMENTS (servers); i++)
    {
      g_autofree char *path = g_strdup_printf ("/change-random/%s", servers[i]);
      g_test_add_data_func (path, GUINT_TO_POINTER (i), test_seeds);
    }
  return argc > 1 ? 0 : g_test_run ();
}
