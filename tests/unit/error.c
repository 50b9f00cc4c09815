/* SPDX-License-Identifier: MIT
 *
 * The table from error codes to errno, and back.
 */
#include "mailfs/error.h"

#include <errno.h>
#include <gio/gio.h>

static const struct
{
  const char *name;
  int code;
  int expected;
} code_cases[] = {
  { "failed", MAIL_ERROR_FAILED, EIO },
  { "protocol", MAIL_ERROR_PROTOCOL, EIO },
  { "connection", MAIL_ERROR_CONNECTION, EHOSTUNREACH },
  { "unreachable", MAIL_ERROR_UNREACHABLE, EHOSTUNREACH },
  { "timed-out", MAIL_ERROR_TIMED_OUT, ETIMEDOUT },
  { "interrupted", MAIL_ERROR_INTERRUPTED, EINTR },
  { "auth", MAIL_ERROR_AUTH, EACCES },
  { "tls", MAIL_ERROR_TLS, EACCES },
  { "permission", MAIL_ERROR_PERMISSION, EACCES },
  { "gone", MAIL_ERROR_GONE, ENOENT },
  { "stale", MAIL_ERROR_STALE, ESTALE },
  { "exists", MAIL_ERROR_EXISTS, EEXIST },
  { "not-empty", MAIL_ERROR_NOT_EMPTY, ENOTEMPTY },
  { "busy", MAIL_ERROR_BUSY, EBUSY },
  { "over-quota", MAIL_ERROR_OVER_QUOTA, EDQUOT },
  { "too-large", MAIL_ERROR_TOO_LARGE, EFBIG },
  { "cannot", MAIL_ERROR_CANNOT, EPERM },
  { "unsupported", MAIL_ERROR_UNSUPPORTED, ENOTSUP },
  { "read-only", MAIL_ERROR_READ_ONLY, EROFS },
  { "invalid", MAIL_ERROR_INVALID, EINVAL },
  { "name", MAIL_ERROR_NAME, ENAMETOOLONG },
  { "no-space", MAIL_ERROR_NO_SPACE, ENOSPC },
  { "corrupt", MAIL_ERROR_CORRUPT, EIO },
  { "usage", MAIL_ERROR_USAGE, EINVAL },
  { "beyond", MAIL_ERROR_USAGE + 1, EIO },
  { "negative", -1, EIO },
};

static void
test_code (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autoptr (GError) error = g_error_new_literal (MAIL_ERROR, code_cases[i].code, "x");

  g_assert_cmpint (mail_error_to_errno (error), ==, code_cases[i].expected);
}

/* Every code has a row of its own above: none falls through to the default. */
static void
test_complete (void)
{
  g_assert_cmpuint (G_N_ELEMENTS (code_cases), ==, MAIL_ERROR_USAGE + 3);
}

static void
test_foreign (void)
{
  g_autoptr (GError) cancelled = g_error_new_literal (G_IO_ERROR, G_IO_ERROR_CANCELLED, "x");
  g_autoptr (GError) refused = g_error_new_literal (G_IO_ERROR, G_IO_ERROR_CONNECTION_REFUSED, "x");
  g_autoptr (GError) lookup = g_error_new_literal (G_RESOLVER_ERROR, G_RESOLVER_ERROR_NOT_FOUND,
                                                   "x");
  g_autoptr (GError) key = g_error_new_literal (G_KEY_FILE_ERROR, G_KEY_FILE_ERROR_PARSE, "x");

  g_assert_cmpint (mail_error_to_errno (cancelled), ==, EINTR);
  g_assert_cmpint (mail_error_to_errno (refused), ==, EHOSTUNREACH);
  g_assert_cmpint (mail_error_to_errno (lookup), ==, EHOSTUNREACH);
  g_assert_cmpint (mail_error_to_errno (key), ==, EIO);
  g_assert_cmpint (mail_error_to_errno (NULL), ==, EIO);
}

static const int there_and_back[] = { ENOSPC, EDQUOT, EACCES, EROFS, ENOENT,       EEXIST,
                                      EIO,    EINTR,  EPERM,  EFBIG, ENAMETOOLONG, ETIMEDOUT };

static void
test_set_errno (void)
{
  for (gsize i = 0; i < G_N_ELEMENTS (there_and_back); i++)
    {
      g_autoptr (GError) error = NULL;

      mail_set_errno (&error, there_and_back[i], "cache file 12/34");
      g_assert_true (error->domain == MAIL_ERROR);
      g_assert_cmpint (mail_error_to_errno (error), ==, there_and_back[i]);
      g_assert_true (g_str_has_prefix (error->message, "cache file 12/34: "));
    }
  mail_set_errno (NULL, ENOENT, "nobody listens");
}

static void
test_set_errno_odd (void)
{
  g_autoptr (GError) lost = NULL;
  g_autoptr (GError) odd = NULL;

  mail_set_errno (&lost, ECONNRESET, "socket");
  g_assert_error (lost, MAIL_ERROR, MAIL_ERROR_CONNECTION);
  mail_set_errno (&odd, EXDEV, "rename");
  g_assert_error (odd, MAIL_ERROR, MAIL_ERROR_FAILED);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (gsize i = 0; i < G_N_ELEMENTS (code_cases); i++)
    {
      g_autofree char *path = g_strconcat ("/error/code/", code_cases[i].name, NULL);
      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_code);
    }
  g_test_add_func ("/error/complete", test_complete);
  g_test_add_func ("/error/foreign", test_foreign);
  g_test_add_func ("/error/set-errno", test_set_errno);
  g_test_add_func ("/error/set-errno-odd", test_set_errno_odd);
  return g_test_run ();
}
