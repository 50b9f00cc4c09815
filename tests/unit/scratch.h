/* SPDX-License-Identifier: MIT
 *
 * A directory for one test, and its end; a disk that takes no more.
 */
#pragma once

#include <glib/gstdio.h>
#include <signal.h>
#include <sys/resource.h>

/* Empty, nobody else's; the caller's, see scratch_free. */
static inline char *
scratch_new (const char *what)
{
  g_autofree char *template = g_strdup_printf ("mailfs-%s-XXXXXX", what);
  char *dir = g_dir_make_tmp (template, NULL);

  g_assert_nonnull (dir);
  return dir;
}

/* With all that is in it; links are not followed. */
static inline void
scratch_remove (const char *path)
{
  GDir *dir = g_file_test (path, G_FILE_TEST_IS_SYMLINK) ? NULL : g_dir_open (path, 0, NULL);
  const char *name;

  while (dir != NULL && (name = g_dir_read_name (dir)) != NULL)
    {
      g_autofree char *below = g_build_filename (path, name, NULL);

      scratch_remove (below);
    }
  g_clear_pointer (&dir, g_dir_close);
  g_remove (path);
}

static inline void
scratch_free (char *dir)
{
  scratch_remove (dir);
  g_free (dir);
}

/* No file grows beyond so many bytes. What was before, for setrlimit. */
static inline struct rlimit
scratch_limit_files (rlim_t bytes)
{
  struct rlimit before, small;

  signal (SIGXFSZ, SIG_IGN);
  g_assert_cmpint (getrlimit (RLIMIT_FSIZE, &before), ==, 0);
  small = before;
  small.rlim_cur = bytes;
  g_assert_cmpint (setrlimit (RLIMIT_FSIZE, &small), ==, 0);
  return before;
}
