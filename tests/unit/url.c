/* SPDX-License-Identifier: MIT
 *
 * Account URLs, as mail_config_parse takes them.
 */
#include "mailfs/config.h"
#include "mailfs/error.h"

#include <string.h>

/* error: a part of the message; else what the URL means, mailbox and auth in the end. */
static const struct
{
  const char *name, *url, *canonical;
  MailScheme scheme;
  const char *user, *host;
  guint16 port;
  const char *mailbox, *auth;
  const char *error;
} cases[] = {
  { "imaps", "imaps://me@mail.example.org/", "imaps://me@mail.example.org/", MAIL_SCHEME_IMAPS,
    "me", "mail.example.org", 993 },
  { "imap", "imap://me@h", "imap://me@h/", MAIL_SCHEME_IMAP, "me", "h", 143 },
  { "pop", "pop://me@h/", "pop://me@h/", MAIL_SCHEME_POP, "me", "h", 110 },
  { "pop3", "pop3://me@h/", "pop://me@h/", MAIL_SCHEME_POP, "me", "h", 110 },
  { "pops", "pops://me@h", "pops://me@h/", MAIL_SCHEME_POPS, "me", "h", 995 },
  { "pop3s", "POP3S://me@h", "pops://me@h/", MAIL_SCHEME_POPS, "me", "h", 995 },
  { "port", "imaps://me@h:1993/", "imaps://me@h:1993/", MAIL_SCHEME_IMAPS, "me", "h", 1993 },
  { "default-port", "imaps://me@h:993/", "imaps://me@h/", MAIL_SCHEME_IMAPS, "me", "h", 993 },
  { "empty-port", "imaps://me@h:/", "imaps://me@h/", MAIL_SCHEME_IMAPS, "me", "h", 993 },
  { "upper-host", "imaps://Me@Mail.EXAMPLE.org/", "imaps://Me@mail.example.org/", MAIL_SCHEME_IMAPS,
    "Me", "mail.example.org", 993 },
  { "at-encoded", "imaps://me%40example.org@h/", "imaps://me%40example.org@h/", MAIL_SCHEME_IMAPS,
    "me@example.org", "h", 993 },
  { "at-raw", "imaps://me@example.org@h/", "imaps://me%40example.org@h/", MAIL_SCHEME_IMAPS,
    "me@example.org", "h", 993 },
  { "user-utf8", "imaps://j%C3%BCrgen@h/", "imaps://j%C3%BCrgen@h/", MAIL_SCHEME_IMAPS, "jürgen",
    "h", 993 },
  { "colon-encoded", "imaps://a%3Ab@h/", "imaps://a%3Ab@h/", MAIL_SCHEME_IMAPS, "a:b", "h", 993 },
  { "auth", "imap://me;AUTH=PLAIN@h/", "imap://me@h/", MAIL_SCHEME_IMAP, "me", "h", 143, NULL,
    "plain" },
  { "auth-scram", "imap://me;auth=SCRAM-SHA-256@h/", "imap://me@h/", MAIL_SCHEME_IMAP, "me", "h",
    143, NULL, "scram-sha-256" },
  { "auth-any", "imap://me;AUTH=*@h/", "imap://me@h/", MAIL_SCHEME_IMAP, "me", "h", 143 },
  { "auth-alone", "imap://;AUTH=ANONYMOUS@h/", "imap://h/", MAIL_SCHEME_IMAP, NULL, "h", 143, NULL,
    "anonymous" },
  { "auth-apop", "pop://me;AUTH=+APOP@h/", "pop://me@h/", MAIL_SCHEME_POP, "me", "h", 110, NULL,
    "apop" },
  { "ipv4", "imaps://me@127.0.0.1/", "imaps://me@127.0.0.1/", MAIL_SCHEME_IMAPS, "me", "127.0.0.1",
    993 },
  { "ipv6", "imaps://me@[::1]/", "imaps://me@[::1]/", MAIL_SCHEME_IMAPS, "me", "::1", 993 },
  { "ipv6-port", "imaps://me@[2001:DB8::1]:99/INBOX", "imaps://me@[2001:db8::1]:99/INBOX",
    MAIL_SCHEME_IMAPS, "me", "2001:db8::1", 99, "INBOX" },
  { "idn", "imaps://me@b%C3%BCcher.example/", "imaps://me@xn--bcher-kva.example/",
    MAIL_SCHEME_IMAPS, "me", "xn--bcher-kva.example", 993 },
  { "mailbox", "imaps://me@h/Archive/2024", "imaps://me@h/Archive/2024", MAIL_SCHEME_IMAPS, "me",
    "h", 993, "Archive/2024" },
  { "mailbox-encoded", "imaps://me@h/Old%20Mail/%C3%84%25/", "imaps://me@h/Old%20Mail/%C3%84%25",
    MAIL_SCHEME_IMAPS, "me", "h", 993, "Old Mail/Ä%" },
  { "mailbox-raw", "imaps://me@h/Old Mail/Ä", "imaps://me@h/Old%20Mail/%C3%84", MAIL_SCHEME_IMAPS,
    "me", "h", 993, "Old Mail/Ä" },
  { "mailbox-at", "imaps://me@h/a@b:c", "imaps://me@h/a@b:c", MAIL_SCHEME_IMAPS, "me", "h", 993,
    "a@b:c" },

  { "password", "imaps://me:canary@h/", .error = "password in the URL is refused" },
  { "password-slash", "imaps://me:can/ary@h/", .error = "port is not a number" },
  { "password-empty", "imaps://me:@h/", .error = "password in the URL is refused" },
  { "scheme", "http://me@h/", .error = "\"http\" is none of" },
  { "no-user", "imaps://h/", .error = "names no user" },
  { "empty-user", "imaps://@h/", .error = "names no user" },
  { "no-host", "imaps://me@/", .error = "names no host" },
  { "only-port", "imaps://me@:993/", .error = "names no host" },
  { "bad-host", "imaps://me@a b/", .error = "not a host name" },
  { "bad-host-start", "imaps://me@-x/", .error = "not a host name" },
  { "port-zero", "imaps://me@h:0/", .error = "1 to 65535" },
  { "port-large", "imaps://me@h:65536/", .error = "1 to 65535" },
  { "port-word", "imaps://me@h:imaps/", .error = "1 to 65535" },
  { "port-sign", "imaps://me@h:+1/", .error = "1 to 65535" },
  { "ipv6-bare", "imaps://me@::1/", .error = "[address]" },
  { "ipv6-open", "imaps://me@[::1/", .error = "[address]" },
  { "ipv6-bad", "imaps://me@[::g]/", .error = "not an IPv6 address" },
  { "ipv6-four", "imaps://me@[127.0.0.1]/", .error = "not an IPv6 address" },
  { "ipv6-tail", "imaps://me@[::1]x/", .error = "[address]" },
  { "escape", "imaps://m%4@h/", .error = "bad %-escape in the URL's user name" },
  { "escape-nul", "imaps://me@h/a%00b", .error = "bad %-escape in the URL's mailbox" },
  { "escape-newline", "imaps://me%0D%0Ax@h/", .error = "control character in the URL's user" },
  { "latin1", "imaps://me@h/%E4", .error = "mailbox is not UTF-8" },
  { "auth-unknown", "imap://me;AUTH=GSSAPI@h/", .error = ";AUTH= names no mechanism" },
  { "parameter", "imap://me;X=y@h/", .error = "other than ;AUTH=" },
  { "apop-imap", "imap://me;AUTH=+APOP@h/", .error = "POP3 servers only" },
  { "message", "imap://me@h/INBOX/;UID=20", .error = "not in a message" },
  { "search", "imap://me@h/INBOX?SUBJECT%20x", .error = "not in a message" },
  { "pop-path", "pop://me@h/INBOX", .error = "no mailboxes" },
};

static MailConfig *
parse (const char *url, GError **error)
{
  g_autofree char *copy = g_strdup (url);
  char program[] = "mailfs", mountpoint[] = "/mnt";
  char *argv[] = { program, copy, mountpoint, NULL };

  return mail_config_parse (3, argv, error);
}

static void
test_case (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autoptr (GError) error = NULL;
  g_autoptr (MailConfig) config = parse (cases[i].url, &error);

  if (cases[i].error != NULL)
    {
      g_assert_null (config);
      g_assert_error (error, MAIL_ERROR, MAIL_ERROR_USAGE);
      if (strstr (error->message, cases[i].error) == NULL)
        g_error ("unexpected message: %s", error->message);
      g_assert_null (strchr (error->message, '\n'));
      g_assert_null (strstr (error->message, "can"));
      return;
    }
  g_assert_no_error (error);
  g_assert_cmpstr (config->source, ==, cases[i].url);
  g_assert_cmpstr (config->url, ==, cases[i].canonical);
  g_assert_cmpint (config->scheme, ==, cases[i].scheme);
  g_assert_cmpstr (config->user, ==, cases[i].user);
  g_assert_cmpstr (config->host, ==, cases[i].host);
  g_assert_cmpuint (config->port, ==, cases[i].port);
  g_assert_cmpstr (config->mailbox, ==, cases[i].mailbox);
  g_assert_cmpstr (config->auth, ==, cases[i].auth);
}

/* What mailfs shows in mount tables must mean the same when typed in again. */
static void
test_canonical (gconstpointer data)
{
  gsize i = GPOINTER_TO_SIZE (data);
  g_autoptr (MailConfig) again = NULL;
  g_autoptr (GError) error = NULL;

  if (cases[i].user == NULL)
    return;
  again = parse (cases[i].canonical, &error);
  g_assert_no_error (error);
  g_assert_cmpstr (again->url, ==, cases[i].canonical);
  g_assert_cmpstr (again->user, ==, cases[i].user);
  g_assert_cmpstr (again->mailbox, ==, cases[i].mailbox);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (gsize i = 0; i < G_N_ELEMENTS (cases); i++)
    {
      g_autofree char *path = g_strconcat ("/url/", cases[i].name, NULL);
      g_autofree char *again = g_strconcat ("/url/again/", cases[i].name, NULL);

      g_test_add_data_func (path, GSIZE_TO_POINTER (i), test_case);
      if (cases[i].error == NULL)
        g_test_add_data_func (again, GSIZE_TO_POINTER (i), test_canonical);
    }
  return g_test_run ();
}
