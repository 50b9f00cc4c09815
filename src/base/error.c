/* SPDX-License-Identifier: MIT
 *
 * The error domain and its one table to errno, both ways. Any thread. Knows nothing of what failed.
 */
#include "mailfs/error.h"

#include <errno.h>
#include <gio/gio.h>

G_DEFINE_QUARK (mail - error - quark, mail_error)

static const int code_errnos[] = {
  [MAIL_ERROR_FAILED] = EIO,
  [MAIL_ERROR_PROTOCOL] = EIO,
  [MAIL_ERROR_CONNECTION] = EHOSTUNREACH,
  [MAIL_ERROR_UNREACHABLE] = EHOSTUNREACH,
  [MAIL_ERROR_TIMED_OUT] = ETIMEDOUT,
  [MAIL_ERROR_INTERRUPTED] = EINTR,
  [MAIL_ERROR_AUTH] = EACCES,
  [MAIL_ERROR_TLS] = EACCES,
  [MAIL_ERROR_PERMISSION] = EACCES,
  [MAIL_ERROR_GONE] = ENOENT,
  [MAIL_ERROR_STALE] = ESTALE,
  [MAIL_ERROR_EXISTS] = EEXIST,
  [MAIL_ERROR_NOT_EMPTY] = ENOTEMPTY,
  [MAIL_ERROR_BUSY] = EBUSY,
  [MAIL_ERROR_OVER_QUOTA] = EDQUOT,
  [MAIL_ERROR_TOO_LARGE] = EFBIG,
  [MAIL_ERROR_CANNOT] = EPERM,
  [MAIL_ERROR_UNSUPPORTED] = ENOTSUP,
  [MAIL_ERROR_READ_ONLY] = EROFS,
  [MAIL_ERROR_INVALID] = EINVAL,
  [MAIL_ERROR_NAME] = ENAMETOOLONG,
  [MAIL_ERROR_NO_SPACE] = ENOSPC,
  [MAIL_ERROR_CORRUPT] = EIO,
  [MAIL_ERROR_USAGE] = EINVAL,
};

/* What GIO reports for sockets and files. CONNECTION_CLOSED is the same code as BROKEN_PIPE. */
static int
io_errno (int code)
{
  switch (code)
    {
    case G_IO_ERROR_CANCELLED:
      return EINTR;
    case G_IO_ERROR_TIMED_OUT:
      return ETIMEDOUT;
    case G_IO_ERROR_HOST_NOT_FOUND:
    case G_IO_ERROR_HOST_UNREACHABLE:
    case G_IO_ERROR_NETWORK_UNREACHABLE:
    case G_IO_ERROR_CONNECTION_REFUSED:
    case G_IO_ERROR_BROKEN_PIPE:
    case G_IO_ERROR_NOT_CONNECTED:
    case G_IO_ERROR_PROXY_FAILED:
      return EHOSTUNREACH;
    case G_IO_ERROR_NOT_FOUND:
      return ENOENT;
    case G_IO_ERROR_EXISTS:
      return EEXIST;
    case G_IO_ERROR_NOT_EMPTY:
      return ENOTEMPTY;
    case G_IO_ERROR_PERMISSION_DENIED:
    case G_IO_ERROR_PROXY_AUTH_FAILED:
      return EACCES;
    case G_IO_ERROR_READ_ONLY:
      return EROFS;
    case G_IO_ERROR_NO_SPACE:
      return ENOSPC;
    case G_IO_ERROR_BUSY:
      return EBUSY;
    case G_IO_ERROR_INVALID_ARGUMENT:
      return EINVAL;
    case G_IO_ERROR_FILENAME_TOO_LONG:
      return ENAMETOOLONG;
    case G_IO_ERROR_NOT_SUPPORTED:
      return ENOTSUP;
    default:
      return EIO;
    }
}

int
mail_error_to_errno (const GError *error)
{
  if (error == NULL)
    return EIO;
  if (error->domain == MAIL_ERROR && error->code >= 0
      && (gsize)error->code < G_N_ELEMENTS (code_errnos))
    return code_errnos[error->code];
  if (error->domain == G_IO_ERROR)
    return io_errno (error->code);
  if (error->domain == G_RESOLVER_ERROR)
    return EHOSTUNREACH;
  return EIO;
}

static MailErrorCode
errno_code (int saved_errno)
{
  /* Two ways to be refused, and the one that is not in the table. */
  if (saved_errno == EACCES)
    return MAIL_ERROR_PERMISSION;
  if (saved_errno == ECONNRESET || saved_errno == EPIPE || saved_errno == ECONNREFUSED
      || saved_errno == ENETUNREACH)
    return MAIL_ERROR_CONNECTION;
  for (gsize i = 0; i < G_N_ELEMENTS (code_errnos); i++)
    if (code_errnos[i] == saved_errno)
      return (MailErrorCode)i;
  return MAIL_ERROR_FAILED;
}

void
mail_set_errno (GError **error, int saved_errno, const char *what)
{
  g_set_error (error, MAIL_ERROR, (int)errno_code (saved_errno), "%s: %s", what,
               g_strerror (saved_errno));
}
