/* SPDX-License-Identifier: MIT
 *
 * libFuzzer target for ImapSession and the operations on it: the input is what the server says. The
 * first byte chooses the server's capabilities, the second the operations, the third how the rest
 * is cut. Whatever comes, each operation ends exactly once, no message is finished that was not
 * asked for or not whole, and nothing is told out of bounds. Seeds are dialogues
 * (seeds/imap-session).
 */
#include "../unit/imap-player.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput (const guint8 *data, gsize size);

static const char *const caps[] = {
  "",
  "CONDSTORE ESEARCH ACL",
  "QRESYNC ENABLE ESEARCH LITERAL+ UIDPLUS MOVE UNSELECT",
  "IMAP4rev2 LITERAL+ MULTIAPPEND QUOTA ACL",
};

static const char *const operations[] = {
  "sync",
  "sync 7 10 3 40",
  "fetch 5",
  "fetch 5:9,12;fetch 5 2 4",
  "fetch 5 100 50;sync",
  "list",
  "flags 5:6",
  "remove 5;sync",
  "move 5:6;fetch 5",
  "copy 5",
  "append 1",
  "append 3",
  "quota;create",
  "rename;list",
  "sync;sync 7 10 3 40",
};

static void
take_output (gint64 now)
{
  gsize length;

  imap_session_output (the_pool->session, &length, now);
  imap_session_written (the_pool->session, length, now);
}

static void
play (Player *p, const guint8 *data, gsize size)
{
  gsize step = 1 + data[2] % 64;

  for (gsize at = 3; at < size; at += step)
    {
      if (imap_session_state (the_pool->session) == IMAP_SESSION_DEAD)
        return;
      imap_session_feed (the_pool->session, data + at, MIN (step, size - at), p->now);
      pool_turn (the_pool, p->now);
      take_output (p->now);
      g_free (imap_session_take_changed (the_pool->session));
      p->now += 10;
    }
}

int
LLVMFuzzerTestOneInput (const guint8 *data, gsize size)
{
  ImapSessionOptions options = {
    .host = "h", .port = 143, .user = "me", .timeout_ms = PLAYER_TIMEOUT_MS
  };
  Player p = { .log = g_string_new (NULL), .now = 1000 };
  g_autofree char *greeting = NULL;
  g_auto (GStrv) ops = NULL;

  if (size < 3)
    {
      g_string_free (p.log, TRUE);
      return 0;
    }
  mail_log_init (MAIL_LOG_ERROR, FALSE);
  greeting = g_strdup_printf ("* PREAUTH [CAPABILITY IMAP4rev1 %s] hello\r\n",
                              caps[data[0] % G_N_ELEMENTS (caps)]);
  ops = g_strsplit (operations[data[1] % G_N_ELEMENTS (operations)], ";", -1);
  p.config.host = (char *)"h";
  p.config.timeout = PLAYER_TIMEOUT_MS / 1000;
  p.backend = imap_backend_new (&p.config, NULL, NULL);
  the_pool->session = imap_session_new (&options, p.now);
  imap_session_feed (the_pool->session, greeting, strlen (greeting), p.now);
  for (guint i = 0; ops[i] != NULL; i++)
    begin_op (&p, ops[i]);
  pool_turn (the_pool, p.now);
  take_output (p.now);
  play (&p, data, size);
  imap_session_free (g_steal_pointer (&the_pool->session));
  pool_turn (the_pool, p.now);
  for (guint i = 0; i < p.n_ops; i++)
    {
      if (p.ops[i].n_done != 1)
        abort ();
      op_clear (&p.ops[i]);
    }
  p.backend->ops->free (p.backend);
  g_string_free (p.log, TRUE);
  return 0;
}
