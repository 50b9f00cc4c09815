/* SPDX-License-Identifier: MIT
 *
 * Errors below src/fs: one GError domain whose codes say what the caller can do about it. The one
 * table that turns a code into an errno is in src/base/error.c. Any thread.
 */
#pragma once

#include <glib.h>

#define MAIL_ERROR (mail_error_quark ())
GQuark mail_error_quark (void);

typedef enum
{
  MAIL_ERROR_FAILED,      /* EIO: the server said NO and nothing more precise */
  MAIL_ERROR_PROTOCOL,    /* EIO: nonsense from the server; the connection is dropped */
  MAIL_ERROR_CONNECTION,  /* EHOSTUNREACH: the connection broke; a retry may work */
  MAIL_ERROR_UNREACHABLE, /* EHOSTUNREACH: known to be down, or offline and not cached */
  MAIL_ERROR_TIMED_OUT,   /* ETIMEDOUT: no progress within `timeout` */
  MAIL_ERROR_INTERRUPTED, /* EINTR */
  MAIL_ERROR_AUTH,        /* EACCES: login refused; do not try again by yourself */
  MAIL_ERROR_TLS,         /* EACCES: no trusted TLS; no credential was sent */
  MAIL_ERROR_PERMISSION,  /* EACCES: [NOPERM] */
  MAIL_ERROR_GONE,        /* ENOENT: message or mailbox no longer exists */
  MAIL_ERROR_STALE,       /* ESTALE: UIDVALIDITY is another one now */
  MAIL_ERROR_EXISTS,      /* EEXIST: [ALREADYEXISTS] */
  MAIL_ERROR_NOT_EMPTY,   /* ENOTEMPTY */
  MAIL_ERROR_BUSY,        /* EBUSY: [INUSE], [IN-USE] */
  MAIL_ERROR_OVER_QUOTA,  /* EDQUOT: [OVERQUOTA] */
  MAIL_ERROR_TOO_LARGE,   /* EFBIG: [LIMIT], [TOOBIG] */
  MAIL_ERROR_CANNOT,      /* EPERM: [CANNOT], or not possible on this protocol */
  MAIL_ERROR_UNSUPPORTED, /* ENOTSUP: as CANNOT, for xattrs */
  MAIL_ERROR_READ_ONLY,   /* EROFS */
  MAIL_ERROR_INVALID,     /* EINVAL */
  MAIL_ERROR_NAME,        /* ENAMETOOLONG */
  MAIL_ERROR_NO_SPACE,    /* ENOSPC: the cache disk is full */
  MAIL_ERROR_CORRUPT,     /* EIO: local data did not verify; it has been thrown away */
  MAIL_ERROR_USAGE,       /* exit status 1: the command line or the config file */
} MailErrorCode;

/* The errno for error, never 0; EIO for a foreign domain. G_IO_ERROR codes are known too. */
int mail_error_to_errno (const GError *error);

/* Sets error from a system errno; what names the thing ("cache file 12/34"). */
void mail_set_errno (GError **error, int saved_errno, const char *what);
