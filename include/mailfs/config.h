/* SPDX-License-Identifier: MIT
 *
 * What the user asked for: command line, account file and URL merged into one struct; and the
 * source of the secret. Immutable after mail_config_parse, so any thread may read it.
 */
#pragma once

#include <gio/gio.h>

typedef enum
{
  MAIL_SCHEME_IMAP,  /* 143, STARTTLS */
  MAIL_SCHEME_IMAPS, /* 993 */
  MAIL_SCHEME_POP,   /* 110, STLS */
  MAIL_SCHEME_POPS,  /* 995 */
} MailScheme;

typedef enum
{
  MAIL_LAYOUT_FLAT,
  MAIL_LAYOUT_MAILDIR,
} MailLayout;

typedef enum
{
  MAIL_EOL_CRLF,
  MAIL_EOL_LF,
} MailEol;

typedef enum
{
  MAIL_POP3_KEEP,
  MAIL_POP3_DELETE,
} MailPop3Mode;

typedef struct
{
  char *source;  /* as typed: an account name or a URL */
  char *url;     /* canonical URL without a password; also the file system's source name */
  MailScheme scheme;
  char *user;    /* percent-decoded; NULL for anonymous or external */
  char *host;
  guint16 port;  /* always set */
  char *auth;    /* mechanism in lower case ("scram-sha-256"), or NULL: best offered */
  char *mailbox; /* percent-decoded UTF-8 path from the URL, components divided as the URL has
                    them; NULL: the whole account */

  char *passfile, *passcmd;
  char *account; /* group name in the config file, or NULL */
  gboolean tls;  /* FALSE only by tls=off */
  char *tls_ca, *tls_pin, *tls_cert, *tls_key;

  char *cache_dir;    /* absolute, never NULL */
  char *data_dir;     /* $XDG_DATA_HOME/mailfs, absolute, never NULL */
  guint64 cache_size; /* bytes */
  MailLayout layout;
  MailEol eol;
  guint refresh, timeout; /* seconds */
  guint connections;
  char *trash; /* "auto", "none" or a mailbox path */
  MailPop3Mode pop3;
  gboolean subscribed, offline, sync, read_only;

  gboolean foreground, debug, verbose, help, version;
  gboolean fake; /* mount -f: everything is checked, nothing is mounted */
  char *mountpoint;
  mode_t umask;            /* from umask=, default 077; mode bits cleared in what is shown */
  uid_t uid;               /* from uid=, default the caller's */
  gid_t gid;
  GPtrArray *fuse_options; /* of char *: what goes on to libfuse, one option each */
} MailConfig;

/* Parses argv (mailfs's own, or mount(8)'s helper syntax when argv[0] is mount.mailfs: there -f is
 * fake, -v, -n and -N are ignored, -s ignores unknown options), the config file and the URL.
 * With help or version set nothing else is checked. MAIL_ERROR_USAGE: text fit for stderr, one
 * line, which says what is wrong and what to do. Nothing is read from the password sources. */
MailConfig *mail_config_parse (int argc, char **argv, GError **error);
void mail_config_free (MailConfig *config);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (MailConfig, mail_config_free)

/* A secret wiped when freed. */
typedef struct
{
  char *text; /* never NULL; may be "" */
} MailSecret;
void mail_secret_free (MailSecret *secret);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (MailSecret, mail_secret_free)

/* Where the password comes from, chosen once at start: passfile, passcmd, the terminal,
 * $CREDENTIALS_DIRECTORY/mailfs.password, ~/.netrc. prepare may prompt on the terminal, and checks
 * what can be checked (a group-readable passfile is refused); it must run before going to the
 * background. A prompted password is kept in locked memory; all else is read anew at each login. */
typedef struct MailSecretSource MailSecretSource;
MailSecretSource *mail_secret_source_prepare (const MailConfig *config, GError **error);
void mail_secret_source_free (MailSecretSource *source);

/* Calls done in the thread-default context of the caller, never before returning. Files are read
 * in a thread; passcmd (argv, no shell; killed after config->timeout) is watched from that context.
 * MAIL_ERROR_AUTH when there is no password, MAIL_ERROR_TIMED_OUT when it takes too long. */
void mail_secret_source_get_async (MailSecretSource *source, GCancellable *cancellable,
                                   GAsyncReadyCallback done, gpointer user_data);
MailSecret *mail_secret_source_get_finish (MailSecretSource *source, GAsyncResult *result,
                                           GError **error);
