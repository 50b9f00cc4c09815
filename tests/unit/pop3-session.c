/* SPDX-License-Identifier: MIT
 *
 * Pop3Session against written dialogues. Each is played whole, byte by byte, and cut off behind
 * every byte: the first two must give the same, the last must end every command exactly once and
 * never call anything finished that was not.
 */
#include "pop3/session.h"
#include "mailfs/log.h"

#include <string.h>

#define GREETING "+OK hello <1896.697170952@dbc.mtview.ca.us>\r\n"
#define CAPA_PLAIN "+OK\r\nTOP\r\nUIDL\r\nUSER\r\nPIPELINING\r\nRESP-CODES\r\n.\r\n"
#define CAPA_SERIAL "+OK\r\nTOP\r\nUIDL\r\nUSER\r\n.\r\n"
#define CAPA_SASL(mechs) "+OK\r\nUIDL\r\nPIPELINING\r\nSASL " mechs "\r\n.\r\n"
/* user me, secret tanstaaf, without CAPA behind the login */
#define TO_LOGIN                                                                                   \
  "S:" GREETING, "C:CAPA\r\n", "S:" CAPA_PLAIN, "P", "C:USER me\r\n", "S:+OK\r\n",                 \
      "C:PASS tanstaaf\r\n"
#define LOGGED_IN TO_LOGIN, "S:+OK logged in\r\n"
#define CLEAR                                                                                      \
  {                                                                                                \
    .user = "me", .host = "h", .port = 110                                                         \
  }
#define IMPLICIT                                                                                   \
  {                                                                                                \
    .user = "me", .host = "h", .port = 995, .tls = TRUE, .need_tls = TRUE                          \
  }
#define STARTTLS                                                                                   \
  {                                                                                                \
    .user = "me", .host = "h", .port = 110, .need_tls = TRUE                                       \
  }
#define WITH_AUTH(mech)                                                                            \
  {                                                                                                \
    .user = "me", .host = "h", .port = 110, .auth = mech                                           \
  }

#define NO_ERROR (-1)

typedef struct
{
  const char *name;
  Pop3Setup setup;
  const char *commands; /* sent when it is ready */
  /* S: from the server, C: to it, exactly, T: TLS, P: the secret is asked for, E: end of stream.
   * A script that ends early has no E: the session is looked at as it then is. */
  const char *script[20];
  const char *log; /* what the commands had */
  int error;       /* of the session */
  gboolean refused;
} Case;

static const Case cases[] = {
  { "user-pass",
    CLEAR,
    "QUIT",
    { LOGGED_IN, "C:CAPA\r\nQUIT\r\n", "S:" CAPA_PLAIN "+OK bye\r\n" },
    "QUIT ok\n",
    NO_ERROR },
  { "implicit-tls", IMPLICIT, "", { LOGGED_IN, "C:CAPA\r\n" }, "", NO_ERROR },
  { "retr",
    CLEAR,
    "RETR 1;RETR 2",
    { LOGGED_IN, "C:CAPA\r\nRETR 1\r\nRETR 2\r\n",
      "S:" CAPA_PLAIN "+OK 9 octets\r\nA: b\r\n\r\n..c\r\n.\r\n+OK\r\nlast\r\n.\r\n" },
    "RETR 1 ok [A: b\r\n\r\n.c\r\n]\nRETR 2 ok [last\r\n]\n",
    NO_ERROR },
  { "dots",
    CLEAR,
    "RETR 1",
    { LOGGED_IN, "C:CAPA\r\nRETR 1\r\n",
      "S:" CAPA_PLAIN "+OK\r\n...\r\n..\r\n. \r\n.\rx\r\n\r\n.\r.\r\nx.\r\n.\r\n" },
    "RETR 1 ok [..\r\n.\r\n \r\n\rx\r\n\r\n\r.\r\nx.\r\n]\n",
    NO_ERROR },
  { "empty-message",
    CLEAR,
    "RETR 1;NOOP",
    { LOGGED_IN, "C:CAPA\r\nRETR 1\r\nNOOP\r\n", "S:" CAPA_PLAIN "+OK\r\n.\r\n+OK\r\n" },
    "RETR 1 ok []\nNOOP ok\n",
    NO_ERROR },
  /* A mail must not be able to end itself and answer the next command. */
  { "lf-dot-in-mail",
    CLEAR,
    "RETR 1;RETR 2",
    { LOGGED_IN, "C:CAPA\r\nRETR 1\r\nRETR 2\r\n",
      "S:" CAPA_PLAIN "+OK\r\na\n.\r\n+OK\n\r\n\n.\n\r\n.\r\n-ERR gone\r\n" },
    "RETR 1 ok [a\n.\r\n+OK\n\r\n\n.\n\r\n]\nRETR 2 error 0\n",
    NO_ERROR },
  { "lf-server",
    CLEAR,
    "RETR 1;UIDL",
    { "S:+OK hi\n", "C:CAPA\r\n", "S:+OK\nUSER\nPIPELINING\n.\n", "P", "C:USER me\r\n", "S:+OK\n",
      "C:PASS tanstaaf\r\n", "S:+OK\n", "C:CAPA\r\nRETR 1\r\nUIDL\r\n",
      "S:+OK\nPIPELINING\n.\n+OK\nA: b\n\n..c\nd\r\n.\n+OK\n1 x\n.\n" },
    "RETR 1 ok [A: b\r\n\r\n.c\r\nd\r\n]\nUIDL ok (1 x)\n",
    NO_ERROR },
  { "listing",
    CLEAR,
    "UIDL;LIST;TOP 2;STAT;DELE 1;RSET;UIDL 7",
    { LOGGED_IN, "C:CAPA\r\nUIDL\r\nLIST\r\nTOP 2 0\r\nSTAT\r\nDELE 1\r\nRSET\r\nUIDL 7\r\n",
      "S:" CAPA_PLAIN "+OK\r\n1 a\r\n2 b\r\n.\r\n+OK 2\r\n1 10\r\n..odd\r\n.\r\n"
      "+OK\r\nA: b\r\n\r\n.\r\n+OK 2 20\r\n+OK\r\n+OK\r\n-ERR no such message\r\n" },
    "UIDL ok (1 a)(2 b)\nLIST ok (1 10)(.odd)\nTOP 2 ok [A: b\r\n\r\n]\nSTAT ok\nDELE 1 ok\n"
    "RSET ok\nUIDL 7 error 9\n",
    NO_ERROR },
  { "serial",
    CLEAR,
    "UIDL;LIST",
    { "S:" GREETING, "C:CAPA\r\n", "S:" CAPA_SERIAL, "P", "C:USER me\r\n", "S:+OK\r\n",
      "C:PASS tanstaaf\r\n", "S:+OK\r\n", "C:CAPA\r\n", "S:" CAPA_SERIAL, "C:UIDL\r\n",
      "S:+OK\r\n1 a\r\n.\r\n", "C:LIST\r\n", "S:+OK\r\n1 1\r\n.\r\n" },
    "UIDL ok (1 a)\nLIST ok (1 1)\n",
    NO_ERROR },
  { "pipelining-after-login-only",
    CLEAR,
    "UIDL;LIST",
    { "S:" GREETING, "C:CAPA\r\n", "S:" CAPA_SERIAL, "P", "C:USER me\r\n", "S:+OK\r\n",
      "C:PASS tanstaaf\r\n", "S:+OK\r\n", "C:CAPA\r\n", "S:" CAPA_PLAIN, "C:UIDL\r\nLIST\r\n" },
    "",
    NO_ERROR },
  { "no-capa-pipelines",
    CLEAR,
    "UIDL;LIST",
    { "S:" GREETING, "C:CAPA\r\n", "S:-ERR what\r\n", "P", "C:USER me\r\n", "S:+OK\r\n",
      "C:PASS tanstaaf\r\n", "S:+OK\r\n", "C:NOOP\r\nSTAT\r\n", "S:+OK\r\n", "C:NOOP\r\n",
      "S:+OK 2 320\r\n+OK\r\n", "C:UIDL\r\nLIST\r\n" },
    "",
    NO_ERROR },
  { "no-capa-drops-the-second",
    CLEAR,
    "UIDL;LIST",
    { "S:" GREETING, "C:CAPA\r\n", "S:-ERR what\r\n", "P", "C:USER me\r\n", "S:+OK\r\n",
      "C:PASS tanstaaf\r\n", "S:+OK\r\n", "C:NOOP\r\nSTAT\r\n", "S:+OK\r\n", "C:NOOP\r\n",
      "S:+OK\r\n", "C:UIDL\r\n", "S:+OK\r\n.\r\n", "C:LIST\r\n" },
    "UIDL ok\n",
    NO_ERROR },
  { "farewell",
    CLEAR,
    "",
    { LOGGED_IN, "C:CAPA\r\n", "S:" CAPA_PLAIN "-ERR idle\r\n", "E" },
    "",
    MAIL_ERROR_CONNECTION },
  { "quit-lost",
    CLEAR,
    "DELE 1;QUIT",
    { LOGGED_IN, "C:CAPA\r\nDELE 1\r\nQUIT\r\n", "S:" CAPA_PLAIN "+OK\r\n", "E" },
    "DELE 1 ok\nQUIT error 2\n",
    MAIL_ERROR_CONNECTION },
  { "quit-refused",
    CLEAR,
    "DELE 1;QUIT",
    { LOGGED_IN, "C:CAPA\r\nDELE 1\r\nQUIT\r\n", "S:" CAPA_PLAIN "+OK\r\n-ERR not removed\r\n" },
    "DELE 1 ok\nQUIT error 0\n",
    NO_ERROR },
  { "utf8-message",
    CLEAR,
    "RETR 1",
    { LOGGED_IN, "C:CAPA\r\nRETR 1\r\n", "S:" CAPA_PLAIN "-ERR [UTF8] needed\r\n" },
    "RETR 1 error 17\n",
    NO_ERROR },

  /* --- TLS --- */
  { "stls",
    STARTTLS,
    "",
    { "S:+OK hi\r\n", "C:STLS\r\n", "S:+OK go\r\n", "T", "C:CAPA\r\n", "S:" CAPA_PLAIN, "P",
      "C:USER me\r\n" },
    "",
    NO_ERROR },
  { "stls-refused",
    STARTTLS,
    "",
    { "S:+OK hi\r\n", "C:STLS\r\n", "S:-ERR what\r\n", "C:" },
    "",
    MAIL_ERROR_TLS },
  { "stls-nonsense",
    STARTTLS,
    "",
    { "S:+OK hi\r\n", "C:STLS\r\n", "S:BAD\r\n", "C:" },
    "",
    MAIL_ERROR_PROTOCOL },
  { "stls-injected",
    STARTTLS,
    "",
    { "S:+OK hi\r\n", "C:STLS\r\n", "S:+OK go\r\n+OK injected\r\n", "C:" },
    "",
    MAIL_ERROR_TLS },
  { "stls-injected-byte",
    STARTTLS,
    "",
    { "S:+OK hi\r\n", "C:STLS\r\n", "S:+OK go\r\n\026", "C:" },
    "",
    MAIL_ERROR_TLS },
  { "stls-temporary",
    STARTTLS,
    "",
    { "S:+OK hi\r\n", "C:STLS\r\n", "S:-ERR [SYS/TEMP] x\r\n" },
    "",
    MAIL_ERROR_BUSY },
  /* The timestamp came in clear: APOP is not fallen back to. */
  { "stls-forgets-the-greeting",
    STARTTLS,
    "",
    { "S:" GREETING, "C:STLS\r\n", "S:+OK\r\n", "T", "C:CAPA\r\n", "S:+OK\r\nUIDL\r\n.\r\n", "P",
      "C:USER me\r\n" },
    "",
    NO_ERROR },

  /* --- login --- */
  { "apop",
    WITH_AUTH ("apop"),
    "",
    { "S:" GREETING, "C:CAPA\r\n", "S:" CAPA_PLAIN, "P",
      "C:APOP me c4c9334bac560ecc979e58001b3e22fb\r\n", "S:+OK\r\n" },
    "",
    NO_ERROR },
  { "apop-not-by-itself",
    CLEAR,
    "",
    { "S:" GREETING, "C:CAPA\r\n", "S:+OK\r\nUIDL\r\n.\r\n", "C:" },
    "",
    MAIL_ERROR_AUTH },
  { "apop-under-tls",
    IMPLICIT,
    "",
    { "S:" GREETING, "C:CAPA\r\n", "S:+OK\r\nUIDL\r\n.\r\n", "P",
      "C:APOP me c4c9334bac560ecc979e58001b3e22fb\r\n" },
    "",
    NO_ERROR },
  { "apop-not-offered",
    WITH_AUTH ("apop"),
    "",
    { "S:+OK hi\r\n", "C:CAPA\r\n", "S:" CAPA_PLAIN, "C:" },
    "",
    MAIL_ERROR_AUTH },
  { "apop-odd-timestamp",
    WITH_AUTH ("apop"),
    "",
    { "S:+OK <1\x80@x>\r\n", "C:CAPA\r\n", "S:" CAPA_PLAIN, "C:" },
    "",
    MAIL_ERROR_AUTH },
  { "plain",
    IMPLICIT,
    "",
    { "S:+OK\r\n", "C:CAPA\r\n", "S:" CAPA_SASL ("PLAIN LOGIN"), "P",
      "C:AUTH PLAIN AG1lAHRhbnN0YWFm\r\n", "S:+OK\r\n", "C:CAPA\r\n" },
    "",
    NO_ERROR },
  { "plain-refused",
    IMPLICIT,
    "",
    { "S:+OK\r\n", "C:CAPA\r\n", "S:" CAPA_SASL ("PLAIN"), "P", "C:AUTH PLAIN AG1lAHRhbnN0YWFm\r\n",
      "S:-ERR [AUTH] no\r\n", "C:" },
    "",
    MAIL_ERROR_AUTH,
    TRUE },
  { "cram-md5",
    WITH_AUTH ("cram-md5"),
    "",
    { "S:+OK\r\n", "C:CAPA\r\n", "S:" CAPA_SASL ("CRAM-MD5"), "P", "C:AUTH CRAM-MD5\r\n",
      "S:+ PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+\r\n",
      "C:bWUgODVhMmRlYWViNTIwOWIwZjU0ZDQwNzU5ZGFjYzI0YzQ=\r\n", "S:+OK\r\n" },
    "",
    NO_ERROR },
  { "mechanism-not-offered",
    WITH_AUTH ("scram-sha-256"),
    "",
    { "S:+OK\r\n", "C:CAPA\r\n", "S:" CAPA_SASL ("PLAIN"), "C:" },
    "",
    MAIL_ERROR_AUTH },
  { "scram-garbage",
    WITH_AUTH ("scram-sha-1"),
    "",
    { "S:+OK\r\n", "C:CAPA\r\n", "S:" CAPA_SASL ("SCRAM-SHA-1"), "P", "C*", "S:+ !!!!\r\n",
      "C:*\r\n", "S:-ERR cancelled\r\n", "C:" },
    "",
    MAIL_ERROR_PROTOCOL },
  /* A server that does not know the password cannot say OK. */
  { "scram-no-proof",
    WITH_AUTH ("scram-sha-1"),
    "",
    { "S:+OK\r\n", "C:CAPA\r\n", "S:" CAPA_SASL ("SCRAM-SHA-1"), "P", "C*", "S:+OK welcome\r\n",
      "C:" },
    "",
    MAIL_ERROR_AUTH },
  { "user-refused",
    CLEAR,
    "",
    { "S:+OK\r\n", "C:CAPA\r\n", "S:" CAPA_PLAIN, "P", "C:USER me\r\n", "S:-ERR never heard\r\n",
      "C:" },
    "",
    MAIL_ERROR_AUTH },
  { "pass-refused", CLEAR, "", { TO_LOGIN, "S:-ERR wrong\r\n", "C:" }, "", MAIL_ERROR_AUTH },
  { "pass-auth",
    CLEAR,
    "",
    { TO_LOGIN, "S:-ERR [AUTH] wrong\r\n", "C:" },
    "",
    MAIL_ERROR_AUTH,
    TRUE },
  { "in-use", CLEAR, "", { TO_LOGIN, "S:-ERR [IN-USE] locked\r\n", "C:" }, "", MAIL_ERROR_BUSY },
  { "in-use-in-words",
    CLEAR,
    "",
    { TO_LOGIN, "S:-ERR maildrop already locked\r\n", "C:" },
    "",
    MAIL_ERROR_BUSY },
  { "in-use-greeting", CLEAR, "", { "S:-ERR [IN-USE] x\r\n", "C:" }, "", MAIL_ERROR_BUSY },
  { "login-delay",
    CLEAR,
    "",
    { TO_LOGIN, "S:-ERR [LOGIN-DELAY] wait\r\n", "C:" },
    "",
    MAIL_ERROR_BUSY },
  { "sys-temp", CLEAR, "", { TO_LOGIN, "S:-ERR [SYS/TEMP] disk\r\n", "C:" }, "", MAIL_ERROR_BUSY },
  { "sys-perm", CLEAR, "", { TO_LOGIN, "S:-ERR [SYS/PERM] no\r\n", "C:" }, "", MAIL_ERROR_FAILED },

  /* --- nonsense --- */
  { "imap-server", CLEAR, "", { "S:* OK IMAP4rev1\r\n", "C:" }, "", MAIL_ERROR_PROTOCOL },
  { "empty-line", CLEAR, "", { "S:\r\n", "C:" }, "", MAIL_ERROR_PROTOCOL },
  { "okay", CLEAR, "", { "S:+OKAY\r\n", "C:" }, "", MAIL_ERROR_PROTOCOL },
  { "greeting-refused",
    CLEAR,
    "",
    { "S:-ERR go away \x1b[2J\r\n", "C:" },
    "",
    MAIL_ERROR_CONNECTION },
  { "nothing", CLEAR, "", { "E" }, "", MAIL_ERROR_CONNECTION },
  { "unasked",
    CLEAR,
    "",
    { LOGGED_IN, "C:CAPA\r\n", "S:" CAPA_PLAIN "+OK\r\n" },
    "",
    MAIL_ERROR_PROTOCOL },
  { "plus-out-of-nowhere",
    CLEAR,
    "NOOP",
    { LOGGED_IN, "C:CAPA\r\nNOOP\r\n", "S:" CAPA_PLAIN "+ \r\n" },
    "NOOP error 1\n",
    MAIL_ERROR_PROTOCOL },
  { "no-terminator",
    CLEAR,
    "RETR 1;NOOP",
    { LOGGED_IN, "C:CAPA\r\nRETR 1\r\nNOOP\r\n", "S:" CAPA_PLAIN "+OK\r\nA: b\r\n\r\nc\r\n.\r",
      "E" },
    "RETR 1 error 2 [A: b\r\n\r\nc\r\n]\nNOOP error 2\n",
    MAIL_ERROR_CONNECTION },
};

/* --- the player ------------------------------------------------------------------------------- */

typedef struct
{
  Pop3Session *session;
  GString *log;
  GString *output; /* not yet compared */
  guint n_sent, n_done;
  gboolean sent;
} Player;

typedef struct
{
  Player *player;
  char *name;
  GString *body;
} Sent;

static void
on_line (gpointer user_data, const char *line, gsize length)
{
  Sent *sent = user_data;

  g_string_append_printf (sent->body, "(%.*s)", (int)length, line);
}

static void
on_data (gpointer user_data, const guint8 *data, gsize length)
{
  Sent *sent = user_data;

  g_assert_cmpuint (length, >, 0);
  g_string_append_len (sent->body, (const char *)data, (gssize)length);
}

static void
on_done (gpointer user_data, const char *text, const GError *error)
{
  Sent *sent = user_data;
  gboolean message = strncmp (sent->name, "RETR", 4) == 0 || strncmp (sent->name, "TOP", 3) == 0;
  GString *log = sent->player->log;

  sent->player->n_done++;
  g_string_append (log, sent->name);
  if (error != NULL)
    g_string_append_printf (log, " error %d", error->code);
  else
    g_string_append (log, " ok");
  if (message && (error == NULL || sent->body->len > 0))
    g_string_append_printf (log, " [%s]", sent->body->str);
  else if (sent->body->len > 0)
    g_string_append_printf (log, " %s", sent->body->str);
  g_string_append_c (log, '\n');
  g_string_free (sent->body, TRUE);
  g_free (sent->name);
  g_free (sent);
}

static void
send_commands (Player *player, const char *commands)
{
  static const char *const names[] = { "STAT", "LIST", "UIDL", "TOP", "RETR",
                                       "DELE", "RSET", "NOOP", "QUIT" };
  static const Pop3CommandFuncs funcs = { on_line, on_data, on_done };
  g_auto (GStrv) list = g_strsplit (commands, ";", -1);

  for (guint i = 0; list[i] != NULL; i++)
    for (guint verb = 0; verb < G_N_ELEMENTS (names); verb++)
      if (g_str_has_prefix (list[i], names[verb]))
        {
          const char *space = strchr (list[i], ' ');
          Sent *sent = g_new0 (Sent, 1);

          sent->player = player;
          sent->name = g_strdup (list[i]);
          sent->body = g_string_new (NULL);
          player->n_sent++;
          g_assert_true (pop3_session_send (
              player->session, verb, space != NULL ? (guint32)atoi (space + 1) : 0, &funcs, sent));
        }
}

/* What a driver does after everything. */
static void
drive (Player *player, const char *commands)
{
  const guint8 *data;
  gsize length;

  if (pop3_session_state (player->session) == POP3_STATE_READY && !player->sent)
    {
      player->sent = TRUE;
      send_commands (player, commands);
    }
  data = pop3_session_output (player->session, &length);
  g_string_append_len (player->output, (const char *)data, (gssize)length);
  pop3_session_sent (player->session, length);
}

static void
feed (Player *player, const char *commands, const char *bytes, gsize length)
{
  g_autofree char *copy = g_memdup2 (bytes, length); /* so that a read beyond is seen */
  gboolean alive = pop3_session_feed (player->session, copy, length);

  g_assert_cmpint (alive, ==, pop3_session_error (player->session) == NULL);
  drive (player, commands);
}

/* Plays until the server has sent `most` bytes; piece: so many at a time. */
static void
play (Player *player, const Case *c, gsize most, gsize piece)
{
  for (guint i = 0; i < G_N_ELEMENTS (c->script) && c->script[i] != NULL; i++)
    {
      const char *text = c->script[i] + MIN (strlen (c->script[i]), 2);

      switch (c->script[i][0])
        {
        case 'S':
          for (gsize at = 0, length = strlen (text); at < length; at += piece)
            {
              gsize n = MIN (MIN (piece, length - at), most);
              feed (player, c->commands, text + at, n);
              most -= n;
              if (most == 0)
                return;
            }
          break;
        case 'C':
          if (c->script[i][1] == ':')
            g_assert_cmpstr (player->output->str, ==, text);
          g_string_truncate (player->output, 0);
          break;
        case 'T':
          g_assert_cmpint (pop3_session_state (player->session), ==, POP3_STATE_TLS);
          pop3_session_tls_started (player->session);
          drive (player, c->commands);
          break;
        case 'P':
          g_assert_no_error ((GError *)pop3_session_error (player->session));
          g_assert_cmpint (pop3_session_state (player->session), ==, POP3_STATE_SECRET);
          pop3_session_give_secret (player->session, "tanstaaf");
          drive (player, c->commands);
          break;
        case 'E':
          pop3_session_lost (player->session, NULL);
          break;
        default:
          g_assert_not_reached ();
        }
    }
}

static void
start (Player *player, const Case *c)
{
  *player = (Player) { .session = pop3_session_new (&c->setup),
                       .log = g_string_new (NULL),
                       .output = g_string_new (NULL) };
}

static void
stop (Player *player)
{
  pop3_session_lost (player->session, NULL);
  g_assert_cmpuint (player->n_done, ==, player->n_sent);
  pop3_session_free (player->session);
  g_string_free (player->log, TRUE);
  g_string_free (player->output, TRUE);
}

static void
test_case (gconstpointer data)
{
  const Case *c = data;
  gsize total = 0;
  Player player;

  for (guint i = 0; i < G_N_ELEMENTS (c->script) && c->script[i] != NULL; i++)
    total += c->script[i][0] == 'S' ? strlen (c->script[i] + 2) : 0;
  for (gsize piece = 1; piece < 8192; piece = piece < 8 ? piece + 1 : 8192)
    {
      const GError *error;

      start (&player, c);
      play (&player, c, G_MAXSIZE, piece == 7 ? 8192 : piece);
      error = pop3_session_error (player.session);
      g_assert_cmpstr (player.log->str, ==, c->log);
      g_assert_cmpint (error != NULL ? error->code : NO_ERROR, ==, c->error);
      g_assert_cmpint (pop3_session_refused (player.session), ==, c->refused);
      stop (&player);
    }
  for (gsize most = 1; most < total; most++)
    {
      g_autofree char *before = NULL;

      start (&player, c);
      play (&player, c, most, 8192);
      /* What is finished by then is what it would have been. */
      g_assert_true (g_str_has_prefix (c->log, player.log->str)
                     || pop3_session_error (player.session) != NULL);
      before = g_strdup (player.log->str);
      pop3_session_lost (player.session, NULL);
      g_assert_cmpint (pop3_session_state (player.session), ==, POP3_STATE_ENDED);
      g_assert_null (strstr (player.log->str + strlen (before), " ok"));
      stop (&player);
    }
}

/* --- what is easier said in code ---------------------------------------------------------------
 */

static void
test_endless_line (void)
{
  static const Case c = { "", CLEAR, "UIDL", { LOGGED_IN, "C*", "S:" CAPA_PLAIN "+OK\r\n" } };
  g_autofree char *a = g_strnfill (1000, 'a');
  Player player;
  guint n = 0;

  start (&player, &c);
  play (&player, &c, G_MAXSIZE, 8192);
  while (pop3_session_error (player.session) == NULL && n++ < 1000)
    feed (&player, "", a, 1000);
  g_assert_cmpuint (n, <, 20);
  g_assert_error (pop3_session_error (player.session), MAIL_ERROR, MAIL_ERROR_PROTOCOL);
  stop (&player);
}

static void
test_endless_capa (void)
{
  static const Case c = { "", CLEAR, "", { "S:" GREETING "" } };
  Player player;
  guint n = 0;

  start (&player, &c);
  play (&player, &c, G_MAXSIZE, 8192);
  feed (&player, "", "+OK\r\n", 5);
  while (pop3_session_error (player.session) == NULL && n++ < 100000)
    feed (&player, "", "X-MORE\r\n", 8);
  g_assert_cmpuint (n, <, 1000);
  stop (&player);
}

static void
test_endless_challenges (void)
{
  static const Case c = {
    "", WITH_AUTH ("login"), "", { "S:+OK\r\n", "C*", "S:" CAPA_SASL ("LOGIN"), "P" }
  };
  Player player;
  guint n = 0;

  start (&player, &c);
  play (&player, &c, G_MAXSIZE, 8192);
  while (pop3_session_error (player.session) == NULL && n++ < 1000)
    feed (&player, "", "+ VXNlcm5hbWU6\r\n", 16);
  g_assert_cmpuint (n, <, 100);
  stop (&player);
}

static void
test_line_end_in_secret (void)
{
  static const Case c = { "", CLEAR, "", { "S:" GREETING, "C*", "S:" CAPA_PLAIN } };
  Player player;

  start (&player, &c);
  play (&player, &c, G_MAXSIZE, 8192);
  g_assert_cmpint (pop3_session_state (player.session), ==, POP3_STATE_SECRET);
  pop3_session_give_secret (player.session, "a\r\nDELE 1");
  drive (&player, "");
  g_assert_cmpstr (player.output->str, ==, "");
  g_assert_error (pop3_session_error (player.session), MAIL_ERROR, MAIL_ERROR_AUTH);
  stop (&player);
}

/* Answers that come in one piece with the one before, to commands not yet sent. */
static void
test_answered_before (void)
{
  static const Case c[] = {
    { "", STARTTLS, "", { "S:+OK hi\r\n+OK go\r\n", "C:" } },
    { "", CLEAR, "", { "S:+OK hi\r\n+OK\r\n.\r\n", "C:" } },
    { "", CLEAR, "", { TO_LOGIN, "S:+OK\r\n+OK\r\n", "C:" } },
  };

  for (guint i = 0; i < G_N_ELEMENTS (c); i++)
    {
      Player player;

      start (&player, &c[i]);
      play (&player, &c[i], G_MAXSIZE, 8192);
      g_assert_error (pop3_session_error (player.session), MAIL_ERROR, MAIL_ERROR_PROTOCOL);
      stop (&player);
    }
}

/* RFC 6856 section 2: UTF8 before a user name that needs it, and where mail needs it. */
static void
test_utf8 (void)
{
  static const Case c = { "",
                          { .user = "me", .host = "h", .utf8 = TRUE },
                          "",
                          { "S:+OK\r\n", "C*", "S:+OK\r\nUSER\r\nUTF8 USER\r\n.\r\n", "P",
                            "C:UTF8\r\n", "S:-ERR no\r\n", "C:USER me\r\n" } };
  Player player;

  start (&player, &c);
  play (&player, &c, G_MAXSIZE, 8192);
  stop (&player);
}

/* What -v prints. */
static void
test_trace (void)
{
  if (g_test_subprocess ())
    {
      mail_log_init (MAIL_LOG_TRACE, FALSE);
      for (guint i = 0; i < G_N_ELEMENTS (cases); i++)
        {
          Player player;

          start (&player, &cases[i]);
          play (&player, &cases[i], G_MAXSIZE, 8192);
          stop (&player);
        }
      return;
    }
  g_test_trap_subprocess (NULL, 0, 0);
  g_test_trap_assert_passed ();
  g_test_trap_assert_stderr ("*C: PASS ???\n*");
  g_test_trap_assert_stderr ("*C: AUTH PLAIN ???\n*");
  g_test_trap_assert_stderr_unmatched ("*tanstaaf*");
  g_test_trap_assert_stderr_unmatched ("*AG1lAHRhbnN0YWFm*");         /* PLAIN */
  g_test_trap_assert_stderr_unmatched ("*c4c9334bac560ecc979e5800*"); /* APOP */
  g_test_trap_assert_stderr_unmatched ("*bWUgODVhMmRlYWViNTIwOWIw*"); /* CRAM-MD5 */
}

/* The deadline looks at this: a byte now and then is none. */
static void
test_progress (void)
{
  static const Case c = { "", CLEAR, "RETR 1", { LOGGED_IN, "C*", "S:" CAPA_PLAIN "+OK\r\n" } };
  guint64 before;
  Player player;

  start (&player, &c);
  play (&player, &c, G_MAXSIZE, 8192);
  before = pop3_session_progress (player.session);
  for (guint i = 0; i < 4095; i++)
    feed (&player, "", "x", 1);
  g_assert_cmpuint (pop3_session_progress (player.session), ==, before);
  feed (&player, "", "x", 1);
  g_assert_cmpuint (pop3_session_progress (player.session), ==, before + 1);
  stop (&player);
}

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  for (guint i = 0; i < G_N_ELEMENTS (cases); i++)
    {
      g_autofree char *path = g_strconcat ("/pop3/session/", cases[i].name, NULL);
      g_test_add_data_func (path, &cases[i], test_case);
    }
  g_test_add_func ("/pop3/session/endless-line", test_endless_line);
  g_test_add_func ("/pop3/session/endless-capa", test_endless_capa);
  g_test_add_func ("/pop3/session/endless-challenges", test_endless_challenges);
  g_test_add_func ("/pop3/session/line-end-in-secret", test_line_end_in_secret);
  g_test_add_func ("/pop3/session/answered-before", test_answered_before);
  g_test_add_func ("/pop3/session/utf8", test_utf8);
  g_test_add_func ("/pop3/session/trace", test_trace);
  g_test_add_func ("/pop3/session/progress", test_progress);
  return g_test_run ();
}
