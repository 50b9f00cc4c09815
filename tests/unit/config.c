/* SPDX-License-Identifier: MIT
 *
 * Command line, options and account file as they come out of mail_config_parse.
 */
#include "mailfs/config.h"
#include "mailfs/error.h"

#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define URL "imaps://me@h/"

static char *directory; /* HOME and current directory of all tests */

/* command is divided at single spaces, with no quoting. */
static MailConfig *
parse (const char *command, GError **error)
{
  g_auto (GStrv) argv = g_strsplit (command, " ", -1);

  return mail_config_parse ((int)g_strv_length (argv), argv, error);
}

static char *
describe (const MailConfig *config)
{
  g_autofree char *fuse = NULL;

  g_ptr_array_add (config->fuse_options, NULL);
  fuse = g_strjoinv (" ", (char **)config->fuse_options->pdata);
  return g_strdup_printf (
      "%s%s%s%s%s%s%s%s%s%sauth=%s tls=%d ca=%s pin=%s cert=%s key=%s cache=%" G_GUINT64_FORMAT
      " layout=%d eol=%d refresh=%u timeout=%u n=%u trash=%s pop3=%d umask=%03o fuse=%s",
      config->foreground ? "f " : "", config->debug ? "d " : "", config->verbose ? "v " : "",
      config->help ? "h " : "", config->version ? "V " : "", config->fake ? "fake " : "",
      config->subscribed ? "subscribed " : "", config->offline ? "offline " : "",
      config->sync ? "sync " : "", config->read_only ? "ro " : "",
      config->auth != NULL ? config->auth : "-", config->tls,
      config->tls_ca != NULL ? config->tls_ca : "-",
      config->tls_pin != NULL ? config->tls_pin : "-",
      config->tls_cert != NULL ? config->tls_cert : "-",
      config->tls_key != NULL ? config->tls_key : "-", config->cache_size, config->layout,
      config->eol, config->refresh, config->timeout, config->connections, config->trash,
      config->pop3, config->umask, fuse);
}

#define PIN "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
#define PIN_HEX "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define PIN_COLONS                                                                                 \
  "E3:B0:C4:42:98:FC:1C:14:9A:FB:F4:C8:99:6F:B9:24:27:AE:41:E4:64:9B:93:4C:A4:95:99:1B:78:52:B8:"  \
  "55"

/* has: a part of the description. error: a part of the message. */
static const struct
{
  const char *name, *command, *has, *error;
} cases[] = {
  { "defaults", "mailfs " URL " m",
    "auth=- tls=1 ca=- pin=- cert=- key=- cache=4294967296 layout=0 eol=0 refresh=30 timeout=15 "
    "n=4 trash=auto pop3=0 umask=077 fuse=" },
  { "switches", "mailfs -f -v " URL " m", "f v auth" },
  { "switches-joined", "mailfs -fv " URL " m", "f v auth" },
  { "switches-behind", "mailfs " URL " m -f", "f auth" },
  { "debug", "mailfs -d " URL " m", "f d auth" },
  { "debug-option", "mailfs -o debug " URL " m", "f d auth" },
  { "long", "mailfs --foreground --verbose " URL " m", "f v auth" },
  { "help", "mailfs -h", "h auth" },
  { "help-among-nonsense", "mailfs --help -x a b c d", "h auth" },
  { "version", "mailfs -V", "V auth" },
  { "dashes", "mailfs -f -- " URL " m", "f auth" },

  { "list", "mailfs -o ro,refresh=60,timeout=5 " URL " m", "ro auth=- tls=1" },
  { "list-joined", "mailfs -oeol=lf " URL " m", "eol=1" },
  { "list-repeated", "mailfs -o refresh=60 -o timeout=5,connections=2 " URL " m",
    "refresh=60 timeout=5 n=2" },
  { "list-empty", "mailfs -o ,,ro,, " URL " m", "ro auth" },
  { "list-last-wins", "mailfs -o refresh=60,refresh=61 " URL " m", "refresh=61" },
  { "list-comma", "mailfs -o trash=a\\,b " URL " m", "trash=a,b pop3" },
  { "list-backslash", "mailfs -o trash=a\\\\b\\c " URL " m", "trash=a\\b\\c pop3" },
  { "list-quoted", "mailfs -o trash=\"a,b\",ro " URL " m", "trash=a,b pop3" },
  { "list-half-quoted", "mailfs -o trash=\"a\"b,ro " URL " m", "trash=\"a\"b pop3" },
  { "rw", "mailfs -o ro,rw " URL " m", "auth=-" },
  { "flag-value", "mailfs -o subscribed=yes,offline=off " URL " m", "subscribed auth" },
  { "flags", "mailfs -o subscribed,offline,sync " URL " m", "subscribed offline sync auth" },
  { "async", "mailfs -o sync,async " URL " m", "auth=-" },
  { "layout", "mailfs -o layout=maildir " URL " m", "layout=1" },
  { "pop3", "mailfs -o pop3=delete pops://me@h/ m", "pop3=1" },
  { "auth", "mailfs -o auth=SCRAM-SHA-1 " URL " m", "auth=scram-sha-1" },
  { "auth-over-url", "mailfs -o auth=plain imaps://me;AUTH=LOGIN@h/ m", "auth=plain" },
  { "external", "mailfs -o auth=external imaps://h/ m", "auth=external" },
  { "size-bytes", "mailfs -o cache_size=1048576 " URL " m", "cache=1048576" },
  { "size-mega", "mailfs -o cache_size=512M " URL " m", "cache=536870912" },
  { "size-lower", "mailfs -o cache_size=2g " URL " m", "cache=2147483648" },
  { "size-tera", "mailfs -o cache_size=1T " URL " m", "cache=1099511627776" },
  { "umask", "mailfs -o umask=022 " URL " m", "umask=022" },
  { "pin", "mailfs -o tls_pin=" PIN " " URL " m", "pin=" PIN " " },
  { "pin-prefix", "mailfs -o tls_pin=sha256//" PIN " " URL " m", "pin=" PIN " " },
  { "pin-hex", "mailfs -o tls_pin=" PIN_HEX " " URL " m", "pin=" PIN " " },
  { "pin-colons", "mailfs -o tls_pin=" PIN_COLONS " " URL " m", "pin=" PIN " " },
  { "key-with-cert", "mailfs -o tls_cert=/c " URL " m", "cert=/c key=/c" },
  { "tls-off", "mailfs -o tls=off imap://me@h/ m", "tls=0" },

  { "fstab",
    "mailfs -o rw,_netdev,nofail,user,users,noauto,auto,defaults,noatime,nosuid,nodev,"
    "comment=x,x-systemd.automount,X-y=z,user=me " URL " m",
    "fuse=" },
  { "forward", "mailfs -o allow_other,default_permissions,max_read=4096,ro " URL " m",
    "fuse=allow_other default_permissions max_read=4096 ro" },
  { "forward-comma", "mailfs -o fsname=a\\,b " URL " m", "fuse=fsname=a\\,b" },
  { "forward-twice", "mailfs -o fsname=a,fsname=b " URL " m", "fuse=fsname=b" },
  { "forward-not", "mailfs -o uid=0,gid=0,umask=077 " URL " m", "fuse=" },

  { "helper", "/sbin/mount.mailfs " URL " m -o rw,ro", "ro auth" },
  { "helper-verbose", "mount.mailfs " URL " m -v -n -o ro", "ro auth" },
  { "helper-fake", "mount.mailfs " URL " m -f", "fake auth" },
  { "helper-sloppy", "mount.mailfs " URL " m -s -o frobnicate,ro", "ro auth" },
  { "helper-namespace", "mount.mailfs " URL " m -N /proc/1/ns/mnt -o ro", "ro auth" },

  { "no-arguments", "mailfs", .error = "usage: mailfs" },
  { "no-mountpoint", "mailfs " URL, .error = "usage: mailfs" },
  { "too-many", "mailfs " URL " a b", .error = "usage: mailfs" },
  { "unknown-switch", "mailfs -x " URL " m", .error = "unknown option -x" },
  { "unknown-long", "mailfs --frob " URL " m", .error = "unknown option --frob" },
  { "unknown-option", "mailfs -o frob=1 " URL " m", .error = "-o frob: unknown option" },
  { "unknown-flag", "mailfs -o Ro " URL " m", .error = "-o Ro: unknown option" },
  { "helper-unknown", "mount.mailfs " URL " m -o frob", .error = "-o frob: unknown option" },
  { "no-list", "mailfs " URL " m -o", .error = "-o needs a value" },
  { "no-value", "mailfs -o passfile " URL " m", .error = "passfile needs a value" },
  { "empty-value", "mailfs -o trash= " URL " m", .error = "trash needs a value" },
  { "no-config", "mailfs -o config " URL " m", .error = "config needs a value" },
  { "rw-value", "mailfs -o rw=1 " URL " m", .error = "rw takes no value" },
  { "flag-nonsense", "mailfs -o ro=maybe " URL " m", .error = "-o ro=maybe: write on or off" },
  { "tls-nonsense", "mailfs -o tls=yes! " URL " m", .error = "write on or off" },
  { "refresh-zero", "mailfs -o refresh=0 " URL " m", .error = "from 1 to 604800" },
  { "timeout-word", "mailfs -o timeout=15s " URL " m", .error = "-o timeout=15s: write a whole" },
  { "timeout-negative", "mailfs -o timeout=-1 " URL " m", .error = "from 1 to 3600" },
  { "connections-many", "mailfs -o connections=33 " URL " m", .error = "from 1 to 32" },
  { "size-small", "mailfs -o cache_size=4 " URL " m", .error = "at least 1M" },
  { "size-overflow", "mailfs -o cache_size=99999999T " URL " m", .error = "write a size" },
  { "size-word", "mailfs -o cache_size=M " URL " m", .error = "write a size" },
  { "size-fraction", "mailfs -o cache_size=1.5G " URL " m", .error = "write a size" },
  { "layout-word", "mailfs -o layout=mbox " URL " m", .error = "write flat or maildir" },
  { "eol-word", "mailfs -o eol=cr " URL " m", .error = "write crlf or lf" },
  { "auth-word", "mailfs -o auth=digest-md5 " URL " m", .error = "mailfs knows plain, login" },
  { "auth-apop", "mailfs -o auth=apop " URL " m", .error = "POP3" },
  { "umask-octal", "mailfs -o umask=888 " URL " m", .error = "octal" },
  { "umask-large", "mailfs -o umask=1777 " URL " m", .error = "octal" },
  { "uid-name", "mailfs -o uid=no-such-user-here " URL " m", .error = "no such user" },
  { "gid-name", "mailfs -o gid=no-such-group-here " URL " m", .error = "no such group" },
  { "pin-short", "mailfs -o tls_pin=abcd " URL " m", .error = "64 hexadecimal" },
  { "pin-long", "mailfs -o tls_pin=" PIN_HEX "00 " URL " m", .error = "64 hexadecimal" },
  { "pin-colon-end", "mailfs -o tls_pin=" PIN_HEX ": " URL " m", .error = "64 hexadecimal" },
  { "tls-off-imaps", "mailfs -o tls=off " URL " m", .error = "write imap://" },
  { "tls-off-pin", "mailfs -o tls=off,tls_pin=" PIN " imap://me@h/ m", .error = "contradicts" },
  { "key-alone", "mailfs -o tls_key=/k " URL " m", .error = "needs tls_cert" },
  { "remount", "mailfs -o remount " URL " m", .error = "unmount it first" },
  { "no-file", "mailfs -o config=/nonexistent/x work m", .error = "config=/nonexistent/x: No such" },
  { "no-file-url", "mailfs -o config=/nonexistent/x " URL " m", .error = "config=/nonexistent/x" },
};

static void
test_case (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autoptr (GError) error = NULL;
  g_autoptr (MailConfig) config = parse (cases[i].command, &error);
  g_autofree char *text = NULL;

  if (cases[i].error != NULL)
    {
      g_assert_null (config);
      g_assert_error (error, MAIL_ERROR, MAIL_ERROR_USAGE);
      if (strstr (error->message, cases[i].error) == NULL)
        g_error ("unexpected message: %s", error->message);
      g_assert_null (strchr (error->message, '\n'));
      return;
    }
  g_assert_no_error (error);
  text = describe (config);
  if (!g_str_has_prefix (text, cases[i].has) && strstr (text, cases[i].has) == NULL)
    g_error ("unexpected: %s", text);
  if (g_str_has_suffix (cases[i].has, "fuse=") || strstr (cases[i].has, "fuse=") != NULL)
    g_assert_true (g_str_has_suffix (text, cases[i].has));
}

static void
test_paths (void)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (MailConfig) config = parse (
      "mailfs -o passfile=~/pw,tls_ca=ca.pem,tls_cert=/var/../c " URL " mnt/", &error);
  g_autofree char *pw = g_build_filename (directory, "pw", NULL);
  g_autofree char *ca = g_build_filename (directory, "ca.pem", NULL);
  g_autofree char *mountpoint = g_build_filename (directory, "mnt", NULL);
  g_autofree char *cache = g_build_filename (directory, ".cache", "mailfs", NULL);
  g_autofree char *data = g_build_filename (directory, ".local", "share", "mailfs", NULL);

  g_assert_no_error (error);
  g_assert_cmpstr (config->passfile, ==, pw);
  g_assert_cmpstr (config->tls_ca, ==, ca);
  g_assert_cmpstr (config->tls_cert, ==, "/c");
  g_assert_cmpstr (config->mountpoint, ==, mountpoint);
  g_assert_cmpstr (config->cache_dir, ==, cache);
  g_assert_cmpstr (config->data_dir, ==, data);
  g_assert_cmpuint (config->uid, ==, getuid ());
}

/* An account file with the text, at the usual place. */
static char *
write_file (const char *text)
{
  g_autofree char *parent = g_build_filename (directory, ".config", "mailfs", NULL);
  char *file = g_build_filename (parent, "config", NULL);

  g_mkdir_with_parents (parent, 0700);
  g_assert_true (
      g_file_set_contents_full (file, text, -1, G_FILE_SET_CONTENTS_CONSISTENT, 0600, NULL));
  return file;
}

static void
test_account (void)
{
  g_autofree char *pw = g_build_filename (directory, ".config", "mailfs", "pw", NULL);
  g_autoptr (GError) error = NULL;
  g_autoptr (MailConfig) config = NULL;

  g_free (write_file ("# mine\n"
                      "[account other]\nurl=imap://x@y/\nbroken=1\n"
                      "[account work]\nurl=imaps://me%40work@mail.work/INBOX\n"
                      "refresh=60\ntimeout=7\nro=true\nlayout=maildir\n"
                      "passcmd=pass show 'mail,work'\npassfile=pw\n"
                      "allow_other=true\ndefault_permissions=false\n"));
  config = parse ("mailfs work m -o timeout=9,rw", &error);

  g_assert_no_error (error);
  g_assert_cmpstr (config->source, ==, "work");
  g_assert_cmpstr (config->account, ==, "work");
  g_assert_cmpstr (config->url, ==, "imaps://me%40work@mail.work/INBOX");
  g_assert_cmpstr (config->mailbox, ==, "INBOX");
  g_assert_cmpuint (config->refresh, ==, 60);
  g_assert_cmpuint (config->timeout, ==, 9);
  g_assert_false (config->read_only);
  g_assert_cmpint (config->layout, ==, MAIL_LAYOUT_MAILDIR);
  g_assert_cmpstr (config->passcmd, ==, "pass show 'mail,work'");
  g_assert_cmpstr (config->passfile, ==, pw);
  g_assert_cmpuint (config->fuse_options->len, ==, 1);
  g_assert_cmpstr (g_ptr_array_index (config->fuse_options, 0), ==, "allow_other");
}

static const struct
{
  const char *name, *text, *error;
} file_cases[] = {
  { "no-account", "[account a]\nurl=x\n[account b]\nurl=x\n", "which knows a, b" },
  { "no-group", "", "add a group [account work]" },
  { "no-url", "[account work]\nro=true\n", "url= is missing" },
  { "unknown-key", "[account work]\nurl=imap://a@b/\nfrob=1\n", "unknown key \"frob\"" },
  { "config-key", "[account work]\nurl=imap://a@b/\nconfig=/x\n", "unknown key \"config\"" },
  { "bad-value", "[account work]\nurl=imap://a@b/\nrefresh=x\n", "[account work]: refresh=x:" },
  { "bad-url", "[account work]\nurl=imap://a:b@c/\n", "[account work]: a password in the URL" },
  { "empty-url", "[account work]\nurl=\n", "a URL looks like" },
  { "syntax", "[account work\nurl=imap://a@b/\n", "config: " },
  { "escape", "[account work]\nurl=imap://a@b/\ntrash=a\\q\n", "config: [account work]: " },
  { "comma-rw", "[account work]\nurl=imap://a@b/\nrw=true\n", "rw takes no value" },
};

static void
test_file (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autofree char *file = write_file (file_cases[i].text);
  g_autoptr (GError) error = NULL;
  g_autoptr (MailConfig) config = parse ("mailfs work m", &error);

  g_assert_null (config);
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_USAGE);
  g_assert_nonnull (strstr (error->message, file));
  if (strstr (error->message, file_cases[i].error) == NULL)
    g_error ("unexpected message: %s", error->message);
  g_assert_null (strchr (error->message, '\n'));
}

static void
test_other_file (void)
{
  g_autoptr (GError) error = NULL;
  g_autoptr (MailConfig) config = NULL;

  g_free (write_file ("[account work]\nurl=imap://a@b/\n"));
  g_assert_true (g_file_set_contents ("else.conf", "[account work]\nurl=imap://c@d/\n", -1, NULL));
  config = parse ("mailfs -o config=else.conf work m", &error);
  g_assert_no_error (error);
  g_assert_cmpstr (config->user, ==, "c");
}

static void
test_writable (void)
{
  if (g_test_subprocess ())
    {
      g_autofree char *file = write_file ("[account work]\nurl=imap://a@b/\n");
      g_autoptr (MailConfig) config = NULL;

      g_assert_cmpint (chmod (file, 0666), ==, 0);
      config = parse ("mailfs work m", NULL);
      g_assert_nonnull (config);
      return;
    }
  g_test_trap_subprocess (NULL, 0, G_TEST_SUBPROCESS_DEFAULT);
  g_test_trap_assert_passed ();
  g_test_trap_assert_stderr ("*can be written by everybody*");
}

static void
remove_tree (const char *path)
{
  g_autoptr (GDir) entries = g_dir_open (path, 0, NULL);
  const char *name;

  while (entries != NULL && (name = g_dir_read_name (entries)) != NULL)
    {
      g_autofree char *child = g_build_filename (path, name, NULL);
      remove_tree (child);
    }
  g_remove (path);
}

int
main (int argc, char **argv)
{
  int status;

  directory = g_dir_make_tmp ("mailfs-config-XXXXXX", NULL);
  g_setenv ("HOME", directory, TRUE);
  g_unsetenv ("XDG_CONFIG_HOME");
  g_unsetenv ("XDG_CACHE_HOME");
  g_unsetenv ("XDG_DATA_HOME");
  g_test_init (&argc, &argv, NULL);
  g_assert_cmpint (g_chdir (directory), ==, 0);
  for (gsize i = 0; i < G_N_ELEMENTS (cases); i++)
    {
      g_autofree char *path = g_strconcat ("/config/command/", cases[i].name, NULL);
      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_case);
    }
  for (gsize i = 0; i < G_N_ELEMENTS (file_cases); i++)
    {
      g_autofree char *path = g_strconcat ("/config/file/", file_cases[i].name, NULL);
      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_file);
    }
  g_test_add_func ("/config/paths", test_paths);
  g_test_add_func ("/config/account", test_account);
  g_test_add_func ("/config/other-file", test_other_file);
  g_test_add_func ("/config/writable", test_writable);
  status = g_test_run ();
  g_assert_cmpint (g_chdir ("/"), ==, 0);
  remove_tree (directory);
  g_free (directory);
  return status;
}
