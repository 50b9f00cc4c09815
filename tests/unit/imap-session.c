/* SPDX-License-Identifier: MIT
 *
 * The IMAP session and the operations on it against written dialogues; the pool is played by this
 * file. Each dialogue is played whole, byte by byte, and cut off behind every byte of the server:
 * the first two must give the same, the last must end every operation exactly once and never call
 * anything finished that was not.
 */
#include "imap-player.h"

#include <string.h>

#define NO_ERROR (-1)
#define TIMEOUT_MS PLAYER_TIMEOUT_MS

typedef struct
{
  const char *name;
  const char *caps; /* told with the greeting; NULL: the script has its own greeting */
  const char *ops;  /* begun when it is ready */
  /* S: from the server, C: to it, exactly, T: TLS, P: the secret is asked for, E: end of stream,
   * W: that many milliseconds pass. */
  const char *script[24];
  const char *log; /* what the operations told */
  int error;       /* of the session */
  ImapTlsMode tls;
  const char *auth;
} Case;

/* --- playing ---------------------------------------------------------------------------------- */

/* One step of work without new bytes from the server. */
static void
turn (Player *p, const Case *c)
{
  if (p->n_ops == 0 && c->ops[0] != '\0'
      && imap_session_state (the_pool->session) == IMAP_SESSION_READY)
    {
      g_auto (GStrv) ops = g_strsplit (c->ops, ";", -1);

      for (guint i = 0; ops[i] != NULL; i++)
        begin_op (p, ops[i]);
    }
  pool_turn (the_pool, p->now);
}

static void
expect (Player *p, const Case *c, const char *wire)
{
  g_autoptr (GString) got = g_string_new (NULL);

  for (;;)
    {
      const guint8 *data;
      gsize length;

      turn (p, c);
      data = imap_session_output (the_pool->session, &length, p->now);
      if (length == 0)
        break;
      g_string_append_len (got, (const char *)data, (gssize)length);
      imap_session_written (the_pool->session, length, p->now);
    }
  g_assert_cmpstr (got->str, ==, wire);
}

static void
feed (Player *p, const Case *c, const char *bytes, gsize length, gboolean slowly)
{
  for (gsize i = 0; i < length; i += slowly ? 1 : length)
    {
      ImapSessionState state = imap_session_state (the_pool->session);

      if (state == IMAP_SESSION_DEAD || state == IMAP_SESSION_WANTS_TLS)
        {
          /* A real stream would have given these bytes to nobody; seen here only byte by byte. */
          g_assert_true (slowly);
          return;
        }
      imap_session_feed (the_pool->session, bytes + i, slowly ? 1 : length, p->now);
      turn (p, c);
    }
}

/* Plays the script. cut: the stream ends after that many bytes of the server; G_MAXSIZE: as the
 * script says. */
static char *
play (const Case *c, gboolean slowly, gsize cut, gboolean *was_cut)
{
  ImapSessionOptions options = {
    .host = "h",
    .port = 143,
    .user = "me",
    .auth = c->auth,
    .tls = c->tls,
    .peer = "h",
    .timeout_ms = TIMEOUT_MS,
  };
  g_autofree char *greeting = c->caps != NULL ? g_strdup_printf (
                                  "* PREAUTH [CAPABILITY IMAP4rev1 %s] hello\r\n", c->caps)
                                              : NULL;
  Player p = { .log = g_string_new (NULL), .now = 1000 };
  const GError *error;
  gsize n = 0;

  p.config.host = (char *)"h";
  p.config.timeout = TIMEOUT_MS / 1000;
  p.backend = imap_backend_new (&p.config, NULL, NULL);
  the_pool->session = imap_session_new (&options, p.now);
  *was_cut = FALSE;
  for (guint i = 0; !*was_cut && (i == 0 || c->script[i - 1] != NULL); i++)
    {
      const char *line = i == 0 ? greeting : c->script[i - 1];

      if (line == NULL)
        continue;
      if (i == 0 || line[0] == 'S')
        {
          const char *bytes = i == 0 ? line : line + 2;
          gsize length = MIN (strlen (bytes), cut - n);

          n += length;
          *was_cut = length < strlen (bytes);
          if (length > 0)
            feed (&p, c, bytes, length, slowly);
          if (*was_cut)
            imap_session_lost (the_pool->session, NULL);
        }
      else if (line[0] == 'C')
        expect (&p, c, line + 2);
      else if (line[0] == 'T')
        {
          g_assert_cmpint (imap_session_state (the_pool->session), ==, IMAP_SESSION_WANTS_TLS);
          imap_session_tls_done (the_pool->session, p.now);
        }
      else if (line[0] == 'P')
        {
          g_assert_cmpint (imap_session_state (the_pool->session), ==, IMAP_SESSION_WANTS_SECRET);
          imap_session_set_secret (the_pool->session, "tanstaaf", p.now);
        }
      else if (line[0] == 'E')
        imap_session_lost (the_pool->session, NULL);
      else if (line[0] == 'W')
        {
          p.now += atoi (line + 2);
          imap_session_check (the_pool->session, p.now);
        }
    }
  turn (&p, c);
  error = imap_session_error (the_pool->session);
  if (!*was_cut)
    g_assert_cmpint (error != NULL ? error->code : NO_ERROR, ==, c->error);
  imap_session_free (g_steal_pointer (&the_pool->session));
  pool_turn (the_pool, p.now);
  for (guint i = 0; i < p.n_ops; i++)
    {
      g_assert_cmpuint (p.ops[i].n_done, ==, 1);
      op_clear (&p.ops[i]);
    }
  p.backend->ops->free (p.backend);
  return g_string_free (p.log, FALSE);
}

/* Every line but the last of what a cut dialogue told was told by the whole one, too. */
static void
check_cut (const char *log, const char *whole)
{
  g_auto (GStrv) lines = g_strsplit (log, "\n", -1);

  for (guint i = 0; lines[i] != NULL; i++)
    {
      if (g_str_has_prefix (lines[i], "error ") || lines[i][0] == '\0'
          || g_str_has_prefix (lines[i], "appended ") || g_str_has_prefix (lines[i], "copied ")
          || g_str_has_prefix (lines[i], "quota "))
        continue;
      if (strstr (whole, lines[i]) == NULL)
        g_error ("\"%s\" was told by a cut dialogue only", lines[i]);
    }
}

static void
run_case (gconstpointer data)
{
  const Case *c = data;
  gboolean was_cut;
  g_autofree char *fast = play (c, FALSE, G_MAXSIZE, &was_cut);
  g_autofree char *slow = play (c, TRUE, G_MAXSIZE, &was_cut);

  g_assert_cmpstr (fast, ==, c->log);
  g_assert_cmpstr (slow, ==, c->log);
  for (gsize cut = 0;; cut++)
    {
      g_autofree char *log = play (c, FALSE, cut, &was_cut);

      if (!was_cut)
        break;
      check_cut (log, c->log);
    }
}

/* --- dialogues -------------------------------------------------------------------------------- */

#define EXAMINED                                                                                   \
  "* 3 EXISTS\r\n* OK [UIDVALIDITY 7] ok\r\n* OK [UIDNEXT 10] ok\r\nA1 OK [READ-ONLY] done\r\n"
#define SELECTED                                                                                   \
  "* 3 EXISTS\r\n* OK [UIDVALIDITY 7] ok\r\n* OK [UIDNEXT 10] ok\r\nA1 OK [READ-WRITE] done\r\n"
#define FETCH5 "C:A1 EXAMINE INBOX\r\nA2 UID FETCH 5 (UID BODY.PEEK[])\r\n"
#define LISTED "A1 EXAMINE INBOX\r\nA2 UID FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE)\r\n"
#define DATE "INTERNALDATE \"17-Jul-1996 02:44:25 -0700\""

static const Case cases[] = {
  /* greeting, TLS, login */
  { "bye", NULL, "", { "S:* BYE [UNAVAILABLE] later\r\n" }, "", MAIL_ERROR_UNREACHABLE },
  { "greeting-no", NULL, "", { "S:* NO way\r\n" }, "", MAIL_ERROR_PROTOCOL },
  { "greeting-tagged", NULL, "", { "S:A1 OK hi\r\n" }, "", MAIL_ERROR_PROTOCOL },
  { "pop3-greeting", NULL, "", { "S:+OK hello\r\n" }, "", MAIL_ERROR_PROTOCOL },
  { "starttls",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] hi\r\n", "C:A1 STARTTLS\r\n",
      "S:A1 OK go\r\n", "C:", "T", "C:A2 CAPABILITY\r\n",
      "S:* CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR\r\nA2 OK\r\n", "P",
      "C:A3 AUTHENTICATE PLAIN AG1lAHRhbnN0YWFm\r\n", "S:A3 OK [CAPABILITY IMAP4rev1] in\r\n",
      "C:" },
    "",
    NO_ERROR,
    IMAP_TLS_STARTTLS },
  { "starttls-asked-for",
    NULL,
    "",
    { "S:* OK hi\r\n", "C:A1 CAPABILITY\r\n", "S:* CAPABILITY IMAP4rev1 STARTTLS\r\nA1 OK\r\n",
      "C:A2 STARTTLS\r\n" },
    "",
    NO_ERROR,
    IMAP_TLS_STARTTLS },
  { "starttls-missing",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\r\n", "C:" },
    "",
    MAIL_ERROR_TLS,
    IMAP_TLS_STARTTLS },
  { "starttls-no",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1 STARTTLS] hi\r\n", "C:A1 STARTTLS\r\n", "S:A1 NO\r\n", "C:" },
    "",
    MAIL_ERROR_TLS,
    IMAP_TLS_STARTTLS },
  { "preauth-before-tls",
    NULL,
    "sync",
    { "S:* PREAUTH [CAPABILITY IMAP4rev1] hi\r\n", "C:" },
    "",
    MAIL_ERROR_TLS,
    IMAP_TLS_STARTTLS },
  { "login-disabled",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1 LOGINDISABLED] hi\r\n", "C:" },
    "",
    MAIL_ERROR_AUTH },
  { "login-command",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1] hi\r\n", "P", "C:A1 LOGIN \"me\" \"tanstaaf\"\r\n",
      "S:A1 OK in\r\n", "C:A2 CAPABILITY\r\n", "S:* CAPABILITY IMAP4rev1 ID\r\nA2 OK\r\n",
      "C:A3 ID (\"name\" \"mailfs\" \"version\" \"" MAILFS_VERSION "\")\r\n" },
    "",
    NO_ERROR },
  { "login-refused",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1] hi\r\n", "P", "C:A1 LOGIN \"me\" \"tanstaaf\"\r\n",
      "S:A1 NO [AUTHENTICATIONFAILED] tanstaaf is wrong\r\n", "C:" },
    "",
    MAIL_ERROR_AUTH },
  { "login-unavailable",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1] hi\r\n", "P", "C:A1 LOGIN \"me\" \"tanstaaf\"\r\n",
      "S:A1 NO [UNAVAILABLE] later\r\n" },
    "",
    MAIL_ERROR_UNREACHABLE },
  { "plain-without-ir",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\r\n", "P", "C:A1 AUTHENTICATE PLAIN\r\n",
      "S:+ \r\n", "C:AG1lAHRhbnN0YWFm\r\n", "S:A1 OK [CAPABILITY IMAP4rev1] in\r\n", "C:" },
    "",
    NO_ERROR },
  { "exchange-plus-without-space",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\r\n", "P", "C:A1 AUTHENTICATE PLAIN\r\n",
      "S:+\r\n", "C:AG1lAHRhbnN0YWFm\r\n", "S:A1 OK [CAPABILITY IMAP4rev1] in\r\n" },
    "",
    NO_ERROR },
  { "cram-md5",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=CRAM-MD5] hi\r\n", "P",
      "C:A1 AUTHENTICATE CRAM-MD5\r\n", "S:+ PDE4OTYuNjk3MTcwOTUyQHg+\r\n",
      "C:bWUgNjZmNTNjZTg5ODA2MzdkYzAzM2ZiMzYxYzc5NjFhZjk=\r\n",
      "S:A1 OK [CAPABILITY IMAP4rev1] in\r\n" },
    "",
    NO_ERROR },
  { "scram-without-proof",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1 AUTH=SCRAM-SHA-1] hi\r\n", "P",
      "C:A1 AUTHENTICATE SCRAM-SHA-1\r\n", "S:A1 OK [CAPABILITY IMAP4rev1] trust me\r\n", "C:" },
    "",
    MAIL_ERROR_AUTH },
  { "endless-challenge",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\r\n", "P", "C:A1 AUTHENTICATE PLAIN\r\n",
      "S:+ \r\n", "C:AG1lAHRhbnN0YWFm\r\n", "S:+ bW9yZQ==\r\n", "C:*\r\n", "S:+ bW9yZQ==\r\n" },
    "",
    MAIL_ERROR_PROTOCOL },
  { "login-stalls",
    NULL,
    "",
    { "S:* OK [CAPABILITY IMAP4rev1] hi\r\n", "P", "C:A1 LOGIN \"me\" \"tanstaaf\"\r\n", "W:14000",
      "S:* OK a\r\n", "W:2000" },
    "",
    MAIL_ERROR_TIMED_OUT },

  /* listing */
  { "first-listing",
    "",
    "sync",
    { "C:" LISTED,
      "S:" EXAMINED "* 1 FETCH (UID 5 FLAGS (\\Seen Work) " DATE " RFC822.SIZE 100)\r\n"
      "* 2 FETCH (FLAGS () RFC822.SIZE 0 UID 6 " DATE ")\r\n"
      "* 3 FETCH (UID 9 FLAGS () " DATE " RFC822.SIZE 300)\r\nA2 OK\r\n" },
    "begin 7 all\nmessage 5 1 [Work] 100\nmessage 6 0 [] 0\nmessage 9 0 [] 300\n"
    "now 7 next=10 n=3 modseq=0\ndone\n",
    NO_ERROR },
  { "empty-mailbox-bad",
    "",
    "sync",
    { "C:" LISTED, "S:* 0 EXISTS\r\n* OK [UIDVALIDITY 7]\r\nA1 OK\r\nA2 BAD no messages\r\n" },
    "begin 7 all\nnow 7 next=1 n=0 modseq=0\ndone\n",
    NO_ERROR },
  { "listing-no",
    "",
    "sync",
    { "C:" LISTED, "S:" EXAMINED "* 1 FETCH (UID 5 FLAGS () " DATE " RFC822.SIZE 1)\r\n"
                   "A2 NO [LIMIT] enough\r\n" },
    "begin 7 all\nmessage 5 0 [] 1\nerror 15\n",
    NO_ERROR },
  { "no-uidvalidity",
    "",
    "sync",
    { "C:" LISTED,
      "S:* 1 EXISTS\r\nA1 OK\r\n* 1 FETCH (UID 5 FLAGS () RFC822.SIZE 1)\r\nA2 OK\r\n" },
    "error 1\n",
    NO_ERROR },
  { "uidvalidity-0",
    "",
    "sync",
    { "C:" LISTED, "S:* 1 EXISTS\r\n* OK [UIDVALIDITY 0]\r\nA1 OK\r\nA2 OK\r\n" },
    "error 1\n",
    NO_ERROR },
  { "examine-fails",
    "",
    "sync",
    { "C:" LISTED,
      "S:A1 NO Mailbox does not exist\r\n* 1 FETCH (UID 5 FLAGS () RFC822.SIZE 1)\r\nA2 OK\r\n" },
    "error 9\n",
    NO_ERROR },
  { "ok-before-examined",
    "",
    "sync",
    { "C:" LISTED, "S:* 1 EXISTS\r\nA2 OK\r\n" },
    "error 1\n",
    MAIL_ERROR_PROTOCOL },
  { "rights",
    "ACL",
    "sync",
    { "C:" LISTED "A3 MYRIGHTS INBOX\r\n", "S:* 0 EXISTS\r\n* OK [UIDVALIDITY 7]\r\nA1 OK\r\nA2 "
                                           "OK\r\n* MYRIGHTS INBOX lr\r\nA3 OK\r\n" },
    "begin 7 all\nnow 7 next=1 n=0 modseq=0 lr\ndone\n",
    NO_ERROR },
  { "uidvalidity-changed",
    "",
    "sync 6 10 3 0",
    { "C:A1 EXAMINE INBOX\r\n", "S:" EXAMINED,
      "C:A2 UID FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE)\r\n",
      "S:* 1 FETCH (UID 2 FLAGS () RFC822.SIZE 1)\r\nA2 OK\r\n" },
    "begin 7 all\nmessage 2 0 [] 1\nnow 7 next=10 n=1 modseq=0\ndone\n",
    NO_ERROR },

  /* what changed, without CONDSTORE */
  { "plain-nothing-new",
    "",
    "sync 7 10 3 0",
    { "C:A1 EXAMINE INBOX\r\n", "S:" EXAMINED, "C:A2 UID FETCH 1:9 (UID FLAGS)\r\n",
      "S:* 1 FETCH (UID 5 FLAGS ())\r\n* 2 FETCH (UID 6 FLAGS (\\Seen))\r\n"
      "* 3 FETCH (UID 9 FLAGS ())\r\nA2 OK\r\n" },
    "begin 7 changes\nflags 5 0 []\nflags 6 1 []\nflags 9 0 []\npresent 5-6\npresent 9-9\n"
    "now 7 next=10 n=3 modseq=0\ndone\n",
    NO_ERROR },
  { "plain-short",
    "",
    "sync 7 10 3 0",
    { "C:A1 EXAMINE INBOX\r\n", "S:" EXAMINED, "C:A2 UID FETCH 1:9 (UID FLAGS)\r\n",
      "S:* 1 FETCH (UID 5 FLAGS ())\r\nA2 OK\r\n", "C:A3 UID SEARCH ALL\r\n",
      "S:* SEARCH 5\r\nA3 OK\r\n" },
    "begin 7 changes\nflags 5 0 []\nnow 7 next=10 n=3 modseq=0\ndone\n",
    NO_ERROR },
  { "plain-all-gone",
    "",
    "sync 7 10 3 0",
    { "C:A1 EXAMINE INBOX\r\n",
      "S:* 0 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n* OK [UIDNEXT 10]\r\nA1 OK\r\n", "C:" },
    "begin 7 changes\npresent 0-0\nnow 7 next=10 n=0 modseq=0\ndone\n",
    NO_ERROR },
  { "no-uidnext",
    "",
    "sync 7 10 1 0",
    { "C:A1 EXAMINE INBOX\r\n", "S:* 2 EXISTS\r\n* OK [UIDVALIDITY 7]\r\nA1 OK\r\n",
      "C:A2 UID FETCH 1:9 (UID FLAGS)\r\n"
      "A3 UID FETCH 10:* (UID FLAGS INTERNALDATE RFC822.SIZE)\r\n",
      "S:* 1 FETCH (UID 9 FLAGS ())\r\n* 2 FETCH (UID 12 FLAGS () RFC822.SIZE 5)\r\n"
      "A2 OK\r\nA3 OK\r\n" },
    "begin 7 changes\nflags 9 0 []\nmessage 12 0 [] 5\npresent 9-9\npresent 12-12\n"
    "now 7 next=13 n=2 modseq=0\ndone\n",
    NO_ERROR },
  { "n-star-gives-the-last",
    "",
    "sync 7 10 0 0",
    { "C:A1 EXAMINE INBOX\r\n", "S:* 1 EXISTS\r\n* OK [UIDVALIDITY 7]\r\nA1 OK\r\n",
      "C:A2 UID FETCH 10:* (UID FLAGS INTERNALDATE RFC822.SIZE)\r\n",
      "S:* 1 FETCH (UID 9 FLAGS () RFC822.SIZE 5)\r\nA2 OK\r\n",
      "C:A3 UID FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE)\r\n",
      "S:* 1 FETCH (UID 9 FLAGS () RFC822.SIZE 5)\r\nA3 OK\r\n" },
    "begin 7 changes\nmessage 9 0 [] 5\npresent 9-9\nnow 7 next=10 n=1 modseq=0\ndone\n",
    NO_ERROR },

  /* CONDSTORE */
  { "condstore-nothing-new",
    "CONDSTORE",
    "sync 7 10 3 40",
    { "C:A1 EXAMINE INBOX (CONDSTORE)\r\n",
      "S:* 3 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n* OK [UIDNEXT 10]\r\n* OK [HIGHESTMODSEQ 40]\r\n"
      "A1 OK\r\n",
      "C:" },
    "begin 7 changes\nnow 7 next=10 n=3 modseq=40\ndone\n",
    NO_ERROR },
  { "condstore-changes",
    "CONDSTORE ESEARCH",
    "sync 7 10 3 40",
    { "C:A1 EXAMINE INBOX (CONDSTORE)\r\n",
      "S:* 3 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n* OK [UIDNEXT 11]\r\n* OK [HIGHESTMODSEQ 44]\r\n"
      "A1 OK\r\n",
      "C:A2 UID FETCH 1:9 (UID FLAGS) (CHANGEDSINCE 40)\r\n"
      "A3 UID FETCH 10:* (UID FLAGS INTERNALDATE RFC822.SIZE MODSEQ)\r\n",
      "S:* 1 FETCH (UID 5 MODSEQ (43) FLAGS (\\Seen))\r\nA2 OK\r\n"
      "* 3 FETCH (UID 10 MODSEQ (44) FLAGS () RFC822.SIZE 5)\r\nA3 OK\r\n",
      "C:A4 UID SEARCH RETURN (ALL) ALL\r\n",
      "S:* ESEARCH (TAG \"A4\") UID ALL 5,9:10\r\nA4 OK\r\n" },
    "begin 7 changes\nflags 5 1 []\nmessage 10 0 [] 5\npresent 5-5\npresent 9-10\n"
    "now 7 next=11 n=3 modseq=44\ndone\n",
    NO_ERROR },
  { "condstore-nomodseq",
    "CONDSTORE",
    "sync 7 10 1 40",
    { "C:A1 EXAMINE INBOX (CONDSTORE)\r\n",
      "S:* 1 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n* OK [UIDNEXT 10]\r\n* OK [NOMODSEQ]\r\nA1 OK\r\n",
      "C:A2 UID FETCH 1:9 (UID FLAGS)\r\n", "S:* 1 FETCH (UID 5 FLAGS (\\Seen))\r\nA2 OK\r\n" },
    "begin 7 changes\nflags 5 1 []\npresent 5-5\nnow 7 next=10 n=1 modseq=0\ndone\n",
    NO_ERROR },
  { "search-says-nothing",
    "CONDSTORE",
    "sync 7 10 3 40",
    { "C:A1 EXAMINE INBOX (CONDSTORE)\r\n",
      "S:* 2 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n* OK [UIDNEXT 10]\r\n* OK [HIGHESTMODSEQ 40]\r\n"
      "A1 OK\r\n",
      "C:A2 UID SEARCH ALL\r\n", "S:A2 OK\r\n" },
    "begin 7 changes\nnow 7 next=10 n=2 modseq=40\ndone\n",
    NO_ERROR },
  { "search-cut-short",
    "CONDSTORE",
    "sync 7 10 3 40",
    { "C:A1 EXAMINE INBOX (CONDSTORE)\r\n",
      "S:* 2 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n* OK [UIDNEXT 10]\r\n* OK [HIGHESTMODSEQ 40]\r\n"
      "A1 OK\r\n",
      "C:A2 UID SEARCH ALL\r\n", "S:* SEARCH 5\r\nA2 NO [LIMIT] enough\r\n" },
    "begin 7 changes\nerror 15\n",
    NO_ERROR },

  /* QRESYNC */
  { "qresync",
    "QRESYNC ENABLE",
    "sync 7 10 5 40",
    { "C:A1 ENABLE QRESYNC\r\nA2 EXAMINE INBOX (QRESYNC (7 40))\r\n",
      "S:* ENABLED QRESYNC\r\nA1 OK\r\n* 4 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n* OK [UIDNEXT 11]\r\n"
      "* OK [HIGHESTMODSEQ 44]\r\n* VANISHED (EARLIER) 1:4,8\r\n"
      "* 1 FETCH (UID 5 FLAGS (\\Seen) MODSEQ (43))\r\n* 4 FETCH (UID 10 FLAGS () MODSEQ (44))\r\n"
      "A2 OK\r\n",
      "C:A3 UID FETCH 10:* (UID FLAGS INTERNALDATE RFC822.SIZE MODSEQ)\r\n",
      "S:* 4 FETCH (UID 10 FLAGS () RFC822.SIZE 5 MODSEQ (44))\r\nA3 OK\r\n" },
    "begin 7 changes\nvanished 1-4\nvanished 8-8\nflags 5 1 []\nmessage 10 0 [] 5\n"
    "now 7 next=11 n=4 modseq=44\ndone\n",
    NO_ERROR },
  { "qresync-does-not-add-up",
    "QRESYNC ENABLE ESEARCH",
    "sync 7 10 5 40",
    { "C:A1 ENABLE QRESYNC\r\nA2 EXAMINE INBOX (QRESYNC (7 40))\r\n",
      "S:* ENABLED QRESYNC\r\nA1 OK\r\n* 4 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n* OK [UIDNEXT 10]\r\n"
      "* OK [HIGHESTMODSEQ 44]\r\nA2 OK\r\n",
      "C:A3 UID SEARCH RETURN (ALL) ALL\r\n", "S:* ESEARCH (TAG \"A3\") UID ALL 5:8\r\nA3 OK\r\n" },
    "begin 7 changes\npresent 5-8\nnow 7 next=10 n=4 modseq=44\ndone\n",
    NO_ERROR },
  { "qresync-refused",
    "QRESYNC ENABLE",
    "sync 7 10 1 40",
    { "C:A1 ENABLE QRESYNC\r\nA2 EXAMINE INBOX (QRESYNC (7 40))\r\n",
      "S:A1 NO no\r\nA2 BAD what\r\n", "C:A3 EXAMINE INBOX (CONDSTORE)\r\n",
      "S:* 1 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n* OK [UIDNEXT 10]\r\n* OK [HIGHESTMODSEQ 40]\r\n"
      "A3 OK\r\n" },
    "begin 7 changes\nnow 7 next=10 n=1 modseq=40\ndone\n",
    NO_ERROR },
  { "qresync-told-too-early",
    "QRESYNC ENABLE",
    "sync 7 10 1 40",
    { "C:A1 ENABLE QRESYNC\r\nA2 EXAMINE INBOX (QRESYNC (7 40))\r\n",
      "S:* ENABLED QRESYNC\r\nA1 OK\r\n* VANISHED (EARLIER) 1:4294967295\r\n* 1 EXISTS\r\n"
      "* OK [UIDVALIDITY 7]\r\n* OK [UIDNEXT 10]\r\n* OK [HIGHESTMODSEQ 44]\r\nA2 OK\r\n",
      "C:A3 UID FETCH 1:9 (UID FLAGS) (CHANGEDSINCE 40)\r\n", "S:A3 OK\r\n" },
    "begin 7 changes\nnow 7 next=10 n=1 modseq=44\ndone\n",
    NO_ERROR },
  { "vanished-nobody-enabled",
    "",
    "sync 7 10 1 40",
    { "C:A1 EXAMINE INBOX\r\n",
      "S:* 1 EXISTS\r\n* OK [UIDVALIDITY 7]\r\n* OK [UIDNEXT 10]\r\n* VANISHED (EARLIER) 1:9\r\n"
      "A1 OK\r\n",
      "C:A2 UID FETCH 1:9 (UID FLAGS)\r\n", "S:* 1 FETCH (UID 5 FLAGS ())\r\nA2 OK\r\n" },
    "begin 7 changes\nflags 5 0 []\npresent 5-5\nnow 7 next=10 n=1 modseq=0\ndone\n",
    NO_ERROR },

  /* bodies */
  { "whole",
    "",
    "fetch 5",
    { FETCH5, "S:" EXAMINED "* 1 FETCH (UID 5 BODY[] {4}\r\nabcd)\r\nA2 OK\r\n" },
    "message 5 0 [abcd] end\ndone\n",
    NO_ERROR },
  { "uid-behind-the-body",
    "",
    "fetch 5",
    { FETCH5, "S:" EXAMINED "* 1 FETCH (BODY[] {4}\r\nabcd UID 5)\r\nA2 OK\r\n" },
    "message 5 0 [abcd] end\ndone\n",
    NO_ERROR },
  { "no-uid-at-all",
    "",
    "fetch 5",
    { FETCH5, "S:" EXAMINED "* 1 FETCH (BODY[] {4}\r\nabcd)\r\nA2 OK\r\n" },
    "done\n",
    NO_ERROR },
  { "quoted-body",
    "",
    "fetch 5",
    { FETCH5, "S:" EXAMINED "* 1 FETCH (UID 5 BODY[] \"ab\\\"d\")\r\nA2 OK\r\n" },
    "message 5 0 [ab\"d] end\ndone\n",
    NO_ERROR },
  { "nil-body",
    "",
    "fetch 5",
    { FETCH5, "S:" EXAMINED "* 1 FETCH (UID 5 BODY[] NIL)\r\nA2 OK\r\n" },
    "message 5 error 9\ndone\n",
    NO_ERROR },
  { "empty-body",
    "",
    "fetch 5",
    { FETCH5, "S:" EXAMINED "* 1 FETCH (UID 5 BODY[] {0}\r\n)\r\nA2 OK\r\n",
      "C:A3 UID FETCH 5 (UID RFC822.SIZE)\r\n", "S:* 1 FETCH (UID 5 RFC822.SIZE 70)\r\nA3 OK\r\n" },
    "message 5 error 9\ndone\n",
    NO_ERROR },
  { "empty-message",
    "",
    "fetch 5",
    { FETCH5, "S:" EXAMINED "* 1 FETCH (UID 5 BODY[] \"\")\r\nA2 OK\r\n",
      "C:A3 UID FETCH 5 (UID RFC822.SIZE)\r\n", "S:* 1 FETCH (UID 5 RFC822.SIZE 0)\r\nA3 OK\r\n" },
    "message 5 0 [] end\ndone\n",
    NO_ERROR },
  { "ok-without-data", "", "fetch 5", { FETCH5, "S:" EXAMINED "A2 OK\r\n" }, "done\n", NO_ERROR },
  /* It came after the SELECT: the server is to look, and to have looked, before it is asked again.
   */
  { "newer-than-the-select",
    "",
    "fetch 12",
    { "C:A1 EXAMINE INBOX\r\nA2 UID FETCH 12 (UID BODY.PEEK[])\r\n", "S:" EXAMINED "A2 OK\r\n",
      "C:A3 NOOP\r\n", "S:* 4 EXISTS\r\nA3 OK\r\n", "C:A4 UID FETCH 12 (UID BODY.PEEK[])\r\n",
      "S:* 4 FETCH (UID 12 BODY[] {4}\r\nabcd)\r\nA4 OK\r\n" },
    "message 12 0 [abcd] end\ndone\n",
    NO_ERROR },
  { "newer-and-gone",
    "",
    "fetch 12",
    { "C:A1 EXAMINE INBOX\r\nA2 UID FETCH 12 (UID BODY.PEEK[])\r\n", "S:" EXAMINED "A2 OK\r\n",
      "C:A3 NOOP\r\n", "S:A3 OK\r\n", "C:A4 UID FETCH 12 (UID BODY.PEEK[])\r\n", "S:A4 OK\r\n",
      "C:" },
    "done\n",
    NO_ERROR },
  { "copy-of-a-newer-one",
    "UIDPLUS",
    "copy 12",
    { "C:A1 EXAMINE INBOX\r\n", "S:" EXAMINED, "C:A2 NOOP\r\n", "S:* 4 EXISTS\r\nA2 OK\r\n",
      "C:A3 UID COPY 12 T\r\n", "S:A3 OK [COPYUID 8 12 3] done\r\n" },
    "copied 8 12>3\ndone\n",
    NO_ERROR },
  { "expungeissued",
    "",
    "fetch 5",
    { FETCH5, "S:" EXAMINED "A2 NO [EXPUNGEISSUED] gone\r\n" },
    "error 9\n",
    NO_ERROR },
  { "what-nobody-asked",
    "",
    "fetch 5",
    { FETCH5,
      "S:" EXAMINED "* 2 FETCH (UID 6 BODY[] {1}\r\nx)\r\n"
      "* 1 FETCH (UID 5 BODY[HEADER] {1}\r\nx)\r\n* 1 FETCH (UID 5 BODY[] {1}\r\ny)\r\n"
      "* 1 FETCH (UID 5 BODY[] {1}\r\nz)\r\n* 7 EXPUNGE\r\n* 9 FETCH (FLAGS ())\r\nA2 OK\r\n" },
    "message 5 0 [y] end\ndone\n",
    NO_ERROR },
  { "body-before-examined",
    "",
    "fetch 5",
    { FETCH5, "S:* 1 FETCH (UID 5 BODY[] {1}\r\nx)\r\n" EXAMINED "A2 OK\r\n" },
    "done\n",
    NO_ERROR },
  { "stale",
    "",
    "fetch 5",
    { FETCH5, "S:* 3 EXISTS\r\n* OK [UIDVALIDITY 8]\r\nA1 OK\r\n"
              "* 1 FETCH (UID 5 BODY[] {1}\r\nx)\r\nA2 OK\r\n" },
    "error 10\n",
    NO_ERROR },
  { "stale-in-the-middle",
    "",
    "fetch 5",
    { FETCH5,
      "S:" EXAMINED "* OK [UIDVALIDITY 8]\r\n* 1 FETCH (UID 5 BODY[] {1}\r\nx)\r\nA2 OK\r\n" },
    "error 10\n",
    NO_ERROR },
  { "several",
    "",
    "fetch 5:7,9",
    { "C:A1 EXAMINE INBOX\r\nA2 UID FETCH 5:7,9 (UID BODY.PEEK[])\r\n",
      "S:" EXAMINED
      "* 3 FETCH (UID 9 BODY[] {1}\r\nx)\r\n* 1 FETCH (BODY[] {1}\r\ny UID 5)\r\nA2 OK\r\n" },
    "message 9 0 [x] end\nmessage 5 0 [y] end\ndone\n",
    NO_ERROR },
  { "two-readers",
    "",
    "fetch 5;fetch 5 2 2",
    { FETCH5 "A3 UID FETCH 5 (UID BODY.PEEK[]<2.2>)\r\n",
      "S:" EXAMINED
      "* 1 FETCH (UID 5 BODY[]<2> {2}\r\ncd)\r\n* 1 FETCH (UID 5 BODY[] {4}\r\nabcd)\r\n"
      "A2 OK\r\nA3 OK\r\n" },
    "message 5 2 [cd]\nmessage 5 0 [abcd] end\ndone\ndone\n",
    NO_ERROR },
  { "range",
    "",
    "fetch 5 2 4",
    { "C:A1 EXAMINE INBOX\r\nA2 UID FETCH 5 (UID BODY.PEEK[]<2.4>)\r\n",
      "S:" EXAMINED "* 1 FETCH (UID 5 BODY[]<2> {4}\r\ncdef)\r\nA2 OK\r\n" },
    "message 5 2 [cdef]\ndone\n",
    NO_ERROR },
  { "range-at-the-end",
    "",
    "fetch 5 2 4",
    { "C:A1 EXAMINE INBOX\r\nA2 UID FETCH 5 (UID BODY.PEEK[]<2.4>)\r\n",
      "S:" EXAMINED "* 1 FETCH (UID 5 BODY[]<2> {2}\r\ncd)\r\nA2 OK\r\n" },
    "message 5 2 [cd] end\ndone\n",
    NO_ERROR },
  { "range-beyond-the-end",
    "",
    "fetch 5 9 4",
    { "C:A1 EXAMINE INBOX\r\nA2 UID FETCH 5 (UID BODY.PEEK[]<9.4>)\r\n",
      "S:" EXAMINED "* 1 FETCH (UID 5 BODY[]<9> \"\")\r\nA2 OK\r\n",
      "C:A3 UID FETCH 5 (UID RFC822.SIZE)\r\n", "S:* 1 FETCH (UID 5 RFC822.SIZE 4)\r\nA3 OK\r\n",
      "C:A4 UID FETCH 5 (UID BODY.PEEK[]<3.2>)\r\n",
      "S:* 1 FETCH (UID 5 BODY[]<3> {1}\r\nd)\r\nA4 OK\r\n" },
    "message 5 3 [d] end\ndone\n",
    NO_ERROR },
  { "range-beyond-the-end-of-a-liar",
    "",
    "fetch 5 9 4",
    { "C:A1 EXAMINE INBOX\r\nA2 UID FETCH 5 (UID BODY.PEEK[]<9.4>)\r\n",
      "S:" EXAMINED "* 1 FETCH (UID 5 BODY[]<9> \"\")\r\nA2 OK\r\n",
      "C:A3 UID FETCH 5 (UID RFC822.SIZE)\r\n", "S:* 1 FETCH (UID 5 RFC822.SIZE 6)\r\nA3 OK\r\n",
      "C:A4 UID FETCH 5 (UID BODY.PEEK[]<5.2>)\r\n",
      "S:* 1 FETCH (UID 5 BODY[]<5> {0}\r\n)\r\nA4 OK\r\n",
      "C:A5 UID FETCH 5 (UID BODY.PEEK[])\r\n",
      "S:* 1 FETCH (UID 5 BODY[] {4}\r\nabcd)\r\nA5 OK\r\n" },
    "message 5 0 [abcd] end\ndone\n",
    NO_ERROR },
  { "range-ignored",
    "",
    "fetch 5 2 2",
    { "C:A1 EXAMINE INBOX\r\nA2 UID FETCH 5 (UID BODY.PEEK[]<2.2>)\r\n",
      "S:" EXAMINED "* 1 FETCH (UID 5 BODY[] {6}\r\nabcdef)\r\nA2 OK\r\n" },
    "message 5 0 [abcdef] end\ndone\n",
    NO_ERROR },
  { "range-without-origin",
    "",
    "fetch 5 2 2",
    { "C:A1 EXAMINE INBOX\r\nA2 UID FETCH 5 (UID BODY.PEEK[]<2.2>)\r\n",
      "S:" EXAMINED "* 1 FETCH (UID 5 BODY[] {2}\r\ncd)\r\nA2 OK\r\n",
      "C:A3 UID FETCH 5 (UID BODY.PEEK[])\r\n",
      "S:* 1 FETCH (UID 5 BODY[] {4}\r\nabcd)\r\nA3 OK\r\n" },
    "message 5 0 [abcd] end\ndone\n",
    NO_ERROR },
  { "wrong-origin",
    "",
    "fetch 5 2 2",
    { "C:A1 EXAMINE INBOX\r\nA2 UID FETCH 5 (UID BODY.PEEK[]<2.2>)\r\n",
      "S:" EXAMINED "* 1 FETCH (UID 5 BODY[]<3> {2}\r\nde)\r\nA2 OK\r\n",
      "C:A3 UID FETCH 5 (UID BODY.PEEK[])\r\n",
      "S:* 1 FETCH (UID 5 BODY[]<3> {2}\r\nde)\r\nA3 OK\r\n" },
    "message 5 error 1\ndone\n",
    NO_ERROR },
  { "stalls-in-the-body",
    "",
    "fetch 5",
    { FETCH5, "S:" EXAMINED "* 1 FETCH (UID 5 BODY[] {4294967295}\r\nab", "W:9000", "S:c",
      "W:7000" },
    "error 4\n",
    MAIL_ERROR_TIMED_OUT },
  { "literal-too-large",
    "",
    "fetch 5",
    { FETCH5, "S:" EXAMINED "* 1 FETCH (UID 5 BODY[] {18446744073709551616}\r\nab" },
    "error 1\n",
    MAIL_ERROR_PROTOCOL },

  /* the pipeline */
  { "unknown-tag", "", "fetch 5", { FETCH5, "S:B7 OK\r\n" }, "error 1\n", MAIL_ERROR_PROTOCOL },
  { "reused-tag",
    "",
    "fetch 5",
    { FETCH5, "S:" EXAMINED "A1 OK\r\n" },
    "error 1\n",
    MAIL_ERROR_PROTOCOL },
  { "plus-out-of-nowhere",
    "",
    "fetch 5",
    { FETCH5, "S:+ go on\r\n" },
    "error 1\n",
    MAIL_ERROR_PROTOCOL },
  { "bye-in-the-middle",
    "",
    "fetch 5",
    { FETCH5, "S:* BYE [UNAVAILABLE] maintenance\r\n" },
    "error 3\n",
    MAIL_ERROR_CONNECTION },
  { "preauth-in-the-middle",
    "",
    "fetch 5",
    { FETCH5, "S:* PREAUTH hm\r\n" },
    "error 1\n",
    MAIL_ERROR_PROTOCOL },
  { "no-progress", "", "fetch 5", { FETCH5, "W:15000" }, "error 4\n", MAIL_ERROR_TIMED_OUT },

  /* changes */
  { "flags",
    "",
    "flags 5",
    { "C:A1 SELECT INBOX\r\n", "S:" SELECTED,
      "C:A2 UID STORE 5 +FLAGS.SILENT (\\Seen)\r\nA3 UID STORE 5 -FLAGS.SILENT (Work)\r\n",
      "S:A2 OK\r\nA3 NO [NOPERM] no\r\n" },
    "error 8\n",
    NO_ERROR },
  { "change-stale",
    "",
    "remove 5",
    { "C:A1 SELECT INBOX\r\n", "S:* 3 EXISTS\r\n* OK [UIDVALIDITY 8]\r\nA1 OK\r\n", "C:" },
    "error 10\n",
    NO_ERROR },
  { "change-without-uidvalidity",
    "",
    "copy 5",
    { "C:A1 EXAMINE INBOX\r\n", "S:* 3 EXISTS\r\nA1 OK\r\n", "C:" },
    "copied 0\nerror 10\n",
    NO_ERROR },
  { "change-read-only",
    "UIDPLUS",
    "remove 5",
    { "C:A1 SELECT INBOX\r\n", "S:* 3 EXISTS\r\n* OK [UIDVALIDITY 7]\r\nA1 OK [READ-ONLY]\r\n",
      "C:" },
    "error 18\n",
    NO_ERROR },
  { "remove",
    "UIDPLUS",
    "remove 5:6",
    { "C:A1 SELECT INBOX\r\n", "S:" SELECTED,
      "C:A2 UID STORE 5:6 +FLAGS.SILENT (\\Deleted)\r\nA3 UID EXPUNGE 5:6\r\n",
      "S:A2 OK\r\n* 1 EXPUNGE\r\n* 1 EXPUNGE\r\nA3 OK\r\n" },
    "done\n",
    NO_ERROR },
  { "remove-without-uidplus",
    "",
    "remove 5",
    { "C:A1 SELECT INBOX\r\n", "S:" SELECTED, "C:A2 UID STORE 5 +FLAGS.SILENT (\\Deleted)\r\n",
      "S:A2 OK\r\n", "C:" },
    "done\n",
    NO_ERROR },
  { "move",
    "MOVE UIDPLUS",
    "move 5:6",
    { "C:A1 SELECT INBOX\r\n", "S:" SELECTED, "C:A2 UID MOVE 5:6 T\r\n",
      "S:* OK [COPYUID 3 6,5,8 20:22]\r\n* VANISHED 5:6\r\nA2 OK\r\n" },
    "copied 3 6>20 5>21\ndone\n",
    NO_ERROR },
  { "copyuid-unequal",
    "MOVE UIDPLUS",
    "move 5:6",
    { "C:A1 SELECT INBOX\r\n", "S:" SELECTED, "C:A2 UID MOVE 5:6 T\r\n",
      "S:* OK [COPYUID 3 5:6 1:4294967295]\r\nA2 OK\r\n" },
    "copied 0\ndone\n",
    NO_ERROR },
  { "move-without-move", "", "move 5", { "C:" }, "copied 0\nerror 17\n", NO_ERROR },
  { "append",
    "LITERAL+ UIDPLUS",
    "append 1",
    { "C:A1 APPEND INBOX () \"01-Jan-1970 00:00:00 +0000\" {11+}\r\nA: b\r\n\r\nc\r\n\r\n",
      "S:A1 OK [APPENDUID 7 12]\r\n" },
    "appended 7 12\ndone\n",
    NO_ERROR },
  { "append-waits",
    "",
    "append 1",
    { "C:A1 APPEND INBOX () \"01-Jan-1970 00:00:00 +0000\" {11}\r\n", "S:+ go\r\n",
      "C:A: b\r\n\r\nc\r\n\r\n", "S:A1 OK\r\n" },
    "appended 0 0\ndone\n",
    NO_ERROR },
  { "append-refused",
    "",
    "append 1",
    { "C:A1 APPEND INBOX () \"01-Jan-1970 00:00:00 +0000\" {11}\r\n", "S:A1 NO [OVERQUOTA]\r\n" },
    "appended 0\nerror 14\n",
    NO_ERROR },
  { "append-ok-too-early",
    "",
    "append 1",
    { "C:A1 APPEND INBOX () \"01-Jan-1970 00:00:00 +0000\" {11}\r\n", "S:A1 OK\r\n" },
    "appended 0\nerror 1\n",
    MAIL_ERROR_PROTOCOL },
  { "append-lost",
    "LITERAL+",
    "append 1",
    { "C:A1 APPEND INBOX () \"01-Jan-1970 00:00:00 +0000\" {11+}\r\nA: b\r\n\r\nc\r\n\r\n", "E" },
    "appended 0 maybe\nerror 2\n",
    MAIL_ERROR_CONNECTION },
  { "append-many",
    "LITERAL+ MULTIAPPEND UIDPLUS",
    "append 2",
    { "C:A1 APPEND INBOX () \"01-Jan-1970 00:00:00 +0000\" {11+}\r\nA: b\r\n\r\nc\r\n () "
      "\"01-Jan-1970 00:00:00 +0000\" {11+}\r\nA: b\r\n\r\nc\r\n\r\n",
      "S:A1 NO [TOOBIG] one of them\r\n",
      "C:A2 APPEND INBOX () \"01-Jan-1970 00:00:00 +0000\" {11+}\r\nA: b\r\n\r\nc\r\n\r\n",
      "S:A2 OK [APPENDUID 7 12]\r\n",
      "C:A3 APPEND INBOX () \"01-Jan-1970 00:00:00 +0000\" {11+}\r\nA: b\r\n\r\nc\r\n\r\n",
      "S:A3 NO [TOOBIG] this\r\n" },
    "appended 7 12\nerror 15\n",
    NO_ERROR },
  { "create",
    "",
    "create",
    { "C:A1 CREATE \"a\\\"b\"\r\n", "S:A1 OK\r\n", "C:A2 SUBSCRIBE \"a\\\"b\"\r\n",
      "S:A2 NO never mind\r\n" },
    "done\n",
    NO_ERROR },
  { "create-exists",
    "",
    "create",
    { "C:A1 CREATE \"a\\\"b\"\r\n", "S:A1 NO [ALREADYEXISTS]\r\n", "C:" },
    "error 11\n",
    NO_ERROR },
  { "rename",
    "",
    "rename",
    { "C:A1 LSUB \"\" \"old*\"\r\n",
      "S:* LSUB () \"/\" old\r\n* LSUB () \"/\" older\r\n* LSUB () \"/\" old/x\r\nA1 OK\r\n",
      "C:A2 RENAME old new\r\n", "S:A2 OK\r\n",
      "C:A3 SUBSCRIBE new\r\nA4 UNSUBSCRIBE old\r\nA5 SUBSCRIBE new/x\r\nA6 UNSUBSCRIBE old/x\r\n",
      "S:A3 OK\r\nA4 OK\r\nA5 OK\r\nA6 OK\r\n" },
    "done\n",
    NO_ERROR },
  { "quota",
    "QUOTA",
    "quota",
    { "C:A1 GETQUOTAROOT INBOX\r\n",
      "S:* QUOTAROOT INBOX \"\"\r\n* QUOTA \"\" (STORAGE 10 100 MESSAGE 1 2)\r\nA1 OK\r\n" },
    "quota 1 10240 102400\ndone\n",
    NO_ERROR },

  /* the list */
  { "list-extended",
    "LIST-EXTENDED LIST-STATUS SPECIAL-USE",
    "list",
    { "C:A1 LIST \"\" \"*\" RETURN (SUBSCRIBED CHILDREN SPECIAL-USE STATUS (MESSAGES UIDNEXT "
      "UIDVALIDITY UNSEEN))\r\n",
      "S:* LIST (\\Subscribed \\HasNoChildren) \"/\" inbox\r\n"
      "* STATUS INBOX (MESSAGES 3 UIDNEXT 4 UIDVALIDITY 5 UNSEEN 0)\r\n"
      "* LIST (\\NoSelect) \"/\" \"a b/\"\r\n* LIST (\\trash) \"/\" T&APw-\r\n"
      "* LIST () \"/\" bad&-&\r\n* LIST () NIL flat/x\r\n* LIST () \"/\" T&APw-\r\nA1 OK\r\n" },
    "box INBOX = INBOX c n=3\nbox a b/ = a b 1\nbox T&APw- = T\xc3\xbc 0 \\Trash\n"
    "box bad&-& = !bad&-& 0\nbox flat/x = flat/x 2\ndone\n",
    NO_ERROR },
  { "list-lsub",
    "",
    "list",
    { "C:A1 LIST \"\" \"*\"\r\nA2 LSUB \"\" \"*\"\r\n",
      "S:* LIST () \".\" a/b.c\r\nA1 OK\r\n* LSUB () \".\" a/b.c\r\n* LSUB () \".\" gone\r\nA2 "
      "OK\r\n" },
    "box a/b.c = a/b c 4\ndone\n",
    NO_ERROR },
  { "list-cut-off",
    "",
    "list",
    { "C:A1 LIST \"\" \"*\"\r\nA2 LSUB \"\" \"*\"\r\n",
      "S:* LIST () \"/\" a\r\nA1 NO\r\nA2 OK\r\n" },
    "error 0\n",
    NO_ERROR },
};

/* --- what needs no dialogue ---------------------------------------------------------------------
 */

static ImapSession *
start_session (ImapTlsMode tls)
{
  ImapSessionOptions options = {
    .host = "h", .port = 143, .user = "me", .tls = tls, .timeout_ms = TIMEOUT_MS
  };

  return imap_session_new (&options, 0);
}

static void
say (ImapSession *session, const char *text)
{
  imap_session_feed (session, text, strlen (text), 0);
}

/* Whatever comes behind STARTTLS's OK in clear text ends it. */
static void
test_injection (void)
{
  static const char *const injected[] = { "* CAPABILITY IMAP4rev1\r\n", "A2 OK\r\n", "x", "\r\n" };

  for (guint i = 0; i < G_N_ELEMENTS (injected); i++)
    {
      ImapSession *session = start_session (IMAP_TLS_STARTTLS);
      g_autofree char *answer = g_strconcat ("A1 OK go\r\n", injected[i], NULL);
      gsize length;

      say (session, "* OK [CAPABILITY IMAP4rev1 STARTTLS] hi\r\n");
      imap_session_output (session, &length, 0);
      imap_session_written (session, length, 0);
      say (session, answer);
      g_assert_error (imap_session_error (session), MAIL_ERROR, MAIL_ERROR_TLS);
      imap_session_free (session);
    }
}

/* IDLE: begun behind EXAMINE, ended by work, and work waits for its +. */
static void
test_idle (void)
{
  ImapSession *session = start_session (IMAP_TLS_OFF);
  g_autofree char *changed = NULL;
  gsize length;
  const guint8 *out;

  say (session, "* PREAUTH [CAPABILITY IMAP4rev1 IDLE] hi\r\n");
  g_assert_true (imap_session_idle (session, "INBOX", 0));
  out = imap_session_output (session, &length, 0);
  g_assert_cmpmem (out, length, "A1 EXAMINE INBOX\r\nA2 IDLE\r\n", 27);
  imap_session_written (session, length, 0);
  say (session, "* 3 EXISTS\r\n* OK [UIDVALIDITY 7]\r\nA1 OK\r\n");
  changed = imap_session_take_changed (session);
  g_assert_cmpstr (changed, ==, "INBOX");
  imap_session_noop (session, 0);
  imap_session_output (session, &length, 0);
  g_assert_cmpuint (length, ==, 0);
  g_assert_cmpint (imap_session_deadline (session), ==, TIMEOUT_MS);
  say (session, "+ idling\r\n");
  g_assert_true (imap_session_is_idling (session));
  out = imap_session_output (session, &length, 0);
  g_assert_cmpmem (out, length, "DONE\r\nA3 NOOP\r\n", 15);
  imap_session_written (session, length, 0);
  g_assert_null (imap_session_take_changed (session));
  say (session, "* 4 EXISTS\r\nA2 OK\r\nA3 OK\r\n");
  g_free (changed);
  changed = imap_session_take_changed (session);
  g_assert_cmpstr (changed, ==, "INBOX");
  g_assert_false (imap_session_is_idling (session));
  g_assert_cmpint (imap_session_deadline (session), ==, G_MAXINT64);
  /* At rest in IDLE nothing is owed. */
  g_assert_true (imap_session_idle (session, "INBOX", 0));
  imap_session_output (session, &length, 0);
  imap_session_written (session, length, 0);
  say (session, "+\r\n");
  g_assert_cmpint (imap_session_deadline (session), ==, G_MAXINT64);
  imap_session_free (session);
}

typedef struct
{
  ImapTask task;
  int error; /* of done; NO_ERROR */
  gboolean done;
} Plain;

static ImapCommand *
plain_build (ImapTask *task, ImapSession *session, GError **error)
{
  return imap_command_new ("UID FETCH 1 (UID BODY.PEEK[])");
}

static gboolean
plain_wants (ImapTask *task, const ImapBody *body)
{
  return FALSE;
}

static void
plain_done (ImapTask *task, const ImapResult *result)
{
  ((Plain *)task)->done = TRUE;
  ((Plain *)task)->error = result->error != NULL ? result->error->code : NO_ERROR;
}

static const struct
{
  const char *name, *said;
  gboolean is_news;
} vanished_cases[] = {
  { "what-was-asked-for", "* VANISHED 5:7\r\nA2 OK\r\n", FALSE },
  { "a-part-of-it", "* VANISHED 6\r\n* VANISHED 5\r\nA2 OK\r\n", FALSE },
  { "another-one-with-it", "* VANISHED 5:8\r\nA2 OK\r\n", TRUE },
  { "another-one", "* VANISHED 5:7\r\n* VANISHED 9\r\nA2 OK\r\n", TRUE },
  { "after-the-answer", "A2 OK\r\n* VANISHED 5:7\r\n", TRUE },
  { "a-new-one", "* VANISHED 5:7\r\n* 1 EXISTS\r\nA2 OK\r\n", TRUE },
};

/* A command that removes messages says that they go, which is no news about the mailbox; all else
 * is. */
static void
test_vanished (gconstpointer data)
{
  static const ImapResponseHandler handler = { 0 };
  static const ImapTaskOps ops = { plain_build, &handler, NULL, plain_done };
  guint row = GPOINTER_TO_UINT (data);
  g_autoptr (MailUidSet) removes = mail_uid_set_new ();
  Plain move = { .task = { .ops = &ops,
                           .mailbox = "INBOX",
                           .access = IMAP_ACCESS_WRITE,
                           .changes = TRUE,
                           .removes = removes } };
  ImapSession *session = start_session (IMAP_TLS_OFF);
  gsize length;

  mail_uid_set_add (removes, 5, 7);
  say (session, "* PREAUTH [CAPABILITY IMAP4rev1] hi\r\n");
  imap_session_submit (session, &move.task, 0);
  imap_session_output (session, &length, 0);
  imap_session_written (session, length, 0);
  say (session, "* 3 EXISTS\r\n* OK [UIDVALIDITY 7]\r\nA1 OK\r\n");
  imap_session_output (session, &length, 0);
  imap_session_written (session, length, 0);
  g_free (imap_session_take_changed (session));
  say (session, vanished_cases[row].said);
  g_autofree char *changed = imap_session_take_changed (session);
  g_assert_cmpstr (changed, ==, vanished_cases[row].is_news ? "INBOX" : NULL);
  g_assert_true (move.done);
  g_assert_cmpint (move.error, ==, NO_ERROR);
  imap_session_free (session);
}

/* What waits behind a command that does not move can be taken elsewhere, once; whoever came late is
 * not told that his time is over when the others' is. */
static void
test_stuck (void)
{
  static const ImapResponseHandler handler = { 0 };
  static const ImapTaskOps ops = { plain_build, &handler, plain_wants, plain_done };
  Plain tasks[4] = { 0 };
  ImapSession *session = start_session (IMAP_TLS_OFF);
  guint n_bulk, weight;
  gsize length;

  say (session, "* PREAUTH [CAPABILITY IMAP4rev1] hi\r\n");
  for (guint i = 0; i < G_N_ELEMENTS (tasks); i++)
    {
      tasks[i].task.ops = &ops;
      tasks[i].task.queued_at = i < 3 ? 0 : TIMEOUT_MS - 1000;
      tasks[i].task.moved = i == 2;
    }
  for (guint i = 0; i < 3; i++)
    imap_session_submit (session, &tasks[i].task, 0);
  imap_session_output (session, &length, 0);
  imap_session_written (session, length, 0);
  g_assert_cmpint (imap_session_stalled (session, 1500), ==, 1500);
  g_assert_true (imap_session_take_stuck (session) == &tasks[1].task);
  g_assert_null (imap_session_take_stuck (session));
  g_assert_cmpuint (imap_session_n_tasks (session, &n_bulk, &weight), ==, 2);
  imap_session_submit (session, &tasks[3].task, TIMEOUT_MS - 1000);
  imap_session_check (session, TIMEOUT_MS);
  imap_session_free (session);
  g_assert_true (tasks[0].done && !tasks[1].done && tasks[2].done && tasks[3].done);
  g_assert_cmpint (tasks[0].error, ==, MAIL_ERROR_TIMED_OUT);
  g_assert_cmpint (tasks[2].error, ==, MAIL_ERROR_TIMED_OUT);
  g_assert_cmpint (tasks[3].error, ==, MAIL_ERROR_CONNECTION);
}

/* After a long silence a dead connection is given up sooner, so that reading can go elsewhere; what
 * changes something waits for its answer. */
static void
test_silence (void)
{
  ImapSession *session = start_session (IMAP_TLS_OFF);
  gsize length;

  say (session, "* PREAUTH [CAPABILITY IMAP4rev1] hi\r\n");
  imap_session_noop (session, 1000);
  imap_session_output (session, &length, 1000);
  imap_session_written (session, length, 1000);
  g_assert_cmpint (imap_session_deadline (session), ==, 1000 + TIMEOUT_MS);
  imap_session_feed (session, "A1 OK\r\n", 7, 2000);
  imap_session_noop (session, 60000);
  imap_session_output (session, &length, 60000);
  imap_session_written (session, length, 60000);
  g_assert_cmpint (imap_session_deadline (session), ==, 65000);
  imap_session_feed (session, "* OK", 4, 61000);
  g_assert_cmpint (imap_session_deadline (session), ==, 60000 + TIMEOUT_MS);
  imap_session_feed (session, " here\r\nA2 OK\r\n", 14, 62000);
  imap_session_noop (session, 200000);
  imap_session_output (session, &length, 200000);
  imap_session_check (session, 205000);
  g_assert_error (imap_session_error (session), MAIL_ERROR, MAIL_ERROR_CONNECTION);
  imap_session_free (session);
}

/* One byte every ten seconds is no progress. */
static void
test_trickle (void)
{
  ImapSession *session = start_session (IMAP_TLS_OFF);
  gsize length;
  gint64 now = 0;

  say (session, "* PREAUTH [CAPABILITY IMAP4rev1] hi\r\n");
  imap_session_noop (session, now);
  imap_session_output (session, &length, now);
  imap_session_written (session, length, now);
  while (imap_session_state (session) != IMAP_SESSION_DEAD && now < 100000)
    {
      imap_session_feed (session, "*", now == 0 ? 1 : 0, now);
      imap_session_feed (session, " ", 1, now);
      now += 10000;
      imap_session_check (session, now);
    }
  g_assert_cmpint (now, <=, 20000);
  imap_session_free (session);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  mail_log_init (g_getenv ("MAILFS_TEST_TRACE") != NULL ? MAIL_LOG_TRACE : MAIL_LOG_ERROR, FALSE);
  for (guint i = 0; i < G_N_ELEMENTS (cases); i++)
    {
      g_autofree char *name = g_strconcat ("/imap/session/", cases[i].name, NULL);
      g_test_add_data_func (name, &cases[i], run_case);
    }
  g_test_add_func ("/imap/session/injection", test_injection);
  g_test_add_func ("/imap/session/idle", test_idle);
  for (guint i = 0; i < G_N_ELEMENTS (vanished_cases); i++)
    {
      g_autofree char *path = g_strconcat ("/imap/session/vanished/", vanished_cases[i].name, NULL);
      g_test_add_data_func (path, GUINT_TO_POINTER (i), test_vanished);
    }
  g_test_add_func ("/imap/session/stuck", test_stuck);
  g_test_add_func ("/imap/session/silence", test_silence);
  g_test_add_func ("/imap/session/trickle", test_trickle);
  return g_test_run ();
}
