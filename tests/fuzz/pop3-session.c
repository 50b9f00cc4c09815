/* SPDX-License-Identifier: MIT
 *
 * libFuzzer target for what reads a POP3 server: the first byte says which part, the second how the
 * rest is cut. A session must answer every command exactly once; a message must be the same however
 * it was cut; listings and dates must keep their promises.
 */
#include "pop3/date.h"
#include "pop3/maildrop.h"
#include "pop3/reader.h"
#include "pop3/session.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput (const guint8 *data, gsize size);

static void
require (gboolean holds)
{
  if (!holds)
    abort ();
}

/* Of its own, so that a step beyond is seen; never NULL. */
static gpointer
exact_copy (const guint8 *data, gsize length)
{
  return length > 0 ? g_memdup2 (data, length) : g_malloc (1);
}

/* --- session --- */

static void
on_line (gpointer user_data, const char *line, gsize length)
{
  require (*(int *)user_data == 0);
  require (length == 0 || memchr (line, '\n', length) == NULL);
}

static void
on_data (gpointer user_data, const guint8 *data, gsize length)
{
  require (*(int *)user_data == 0 && length > 0);
}

static void
on_done (gpointer user_data, const char *text, const GError *error)
{
  require (++*(int *)user_data == 1);
  require ((text == NULL) == (error != NULL));
}

static void
drive (Pop3Session *session, int *done, guint *n_sent)
{
  static const Pop3CommandFuncs funcs = { on_line, on_data, on_done };
  gsize length;

  if (pop3_session_state (session) == POP3_STATE_TLS)
    pop3_session_tls_started (session);
  if (pop3_session_state (session) == POP3_STATE_SECRET)
    pop3_session_give_secret (session, "secret");
  if (pop3_session_state (session) == POP3_STATE_READY && *n_sent == 0)
    for (guint verb = 0; verb < POP3_N_VERBS; verb++)
      if (pop3_session_send (session, verb, verb == POP3_VERB_UIDL ? 0 : verb & 3, &funcs,
                             &done[*n_sent]))
        ++*n_sent;
  pop3_session_output (session, &length);
  pop3_session_sent (session, length);
}

static void
fuzz_session (guint8 how, const guint8 *data, gsize size)
{
  static const char *const auths[] = { NULL, "apop", "cram-md5", "scram-sha-256" };
  const Pop3Setup setup = { .tls = (how & 1) != 0,
                            .need_tls = (how & 2) != 0,
                            .user = (how & 4) != 0 ? "user" : NULL,
                            .auth = auths[how >> 6],
                            .utf8 = (how & 8) != 0,
                            .host = "host",
                            .port = 110 };
  gsize piece = (how & 16) != 0 ? 1 : (how & 32) != 0 ? 7 : G_MAXSIZE;
  g_autoptr (Pop3Session) session = pop3_session_new (&setup);
  int done[POP3_N_VERBS] = { 0 };
  guint n_sent = 0;

  for (gsize at = 0; at < size && pop3_session_state (session) != POP3_STATE_ENDED;)
    {
      gsize n = MIN (piece, size - at);
      g_autofree guint8 *copy = g_memdup2 (data + at, n);
      pop3_session_feed (session, copy, n);
      drive (session, done, &n_sent);
      at += n;
    }
  pop3_session_lost (session, NULL);
  require (pop3_session_state (session) == POP3_STATE_ENDED);
  for (guint i = 0; i < n_sent; i++)
    require (done[i] == 1);
}

/* --- a message --- */

/* TRUE when the end was there. */
static gboolean
read_message (const guint8 *data, gsize size, gsize piece, gboolean bare_lines, GByteArray *out)
{
  Pop3Reader reader;
  gboolean end = FALSE;

  pop3_reader_init (&reader);
  reader.bare_lines = bare_lines;
  pop3_reader_begin_data (&reader);
  for (gsize at = 0; at < size && !end; at += MIN (piece, size - at))
    {
      gsize n = MIN (piece, size - at), length;
      const guint8 *bytes;
      Pop3Token token;

      pop3_reader_feed (&reader, data + at, n);
      while ((token = pop3_reader_data (&reader, &bytes, &length)) == POP3_TOKEN_DATA)
        g_byte_array_append (out, bytes, (guint)length);
      end = token == POP3_TOKEN_END;
    }
  pop3_reader_clear (&reader);
  return end;
}

static void
fuzz_message (guint8 how, const guint8 *data, gsize size)
{
  g_autoptr (GByteArray) whole = g_byte_array_new (), pieces = g_byte_array_new ();
  gboolean bare = (how & 1) != 0;
  gboolean end = read_message (data, size, G_MAXSIZE, bare, whole);

  require (end == read_message (data, size, 1 + (how >> 1), bare, pieces));
  require (whole->len == pieces->len);
  require (whole->len == 0 || memcmp (whole->data, pieces->data, whole->len) == 0);
  require (whole->len <= 2 * size);
}

/* --- listing and dates --- */

static void
fuzz_maildrop (guint8 how, const guint8 *data, gsize size)
{
  g_autoptr (Pop3Maildrop) maildrop = pop3_maildrop_new ();
  Pop3Labels *labels = pop3_labels_new ();
  const guint8 *end = data + size;

  for (const guint8 *line = data; line < end;)
    {
      const guint8 *stop = memchr (line, '\n', (gsize)(end - line));
      gsize length = (gsize)((stop != NULL ? stop : end) - line);
      g_autofree char *copy = exact_copy (line, length);

      if (length > 0 && copy[0] == '!')
        pop3_maildrop_add_list (maildrop, copy + 1, length - 1, NULL);
      else
        pop3_maildrop_add_uidl (maildrop, copy, length, NULL);
      line += length + (stop != NULL ? 1 : 0);
    }
  if (pop3_maildrop_finish (maildrop, labels, (how & 1) != 0, NULL))
    for (guint i = 0; i < pop3_maildrop_length (maildrop); i++)
      {
        const Pop3Message *message = pop3_maildrop_get (maildrop, i);
        require (pop3_maildrop_find (maildrop, message->key) == message);
        require (i == 0 || message->number > pop3_maildrop_get (maildrop, i - 1)->number);
        require (strlen (message->key) <= 90);
      }
  pop3_labels_free (labels);
}

static void
fuzz_date (const guint8 *data, gsize size)
{
  g_autofree char *copy = exact_copy (data, size);
  gint64 seconds = 0;

  pop3_date_parse (copy, size, &seconds);
  require (seconds > -G_GINT64_CONSTANT (200000) && seconds < G_GINT64_CONSTANT (253402500000));
  pop3_date_of_header (copy, size, &seconds);
  require (seconds > -G_GINT64_CONSTANT (200000) && seconds < G_GINT64_CONSTANT (253402500000));
}

int
LLVMFuzzerTestOneInput (const guint8 *data, gsize size)
{
  if (size < 2)
    return 0;
  switch (data[0] & 3)
    {
    case 0:
      fuzz_session (data[1], data + 2, size - 2);
      break;
    case 1:
      fuzz_message (data[1], data + 2, size - 2);
      break;
    case 2:
      fuzz_maildrop (data[1], data + 2, size - 2);
      break;
    default:
      fuzz_date (data + 2, size - 2);
      break;
    }
  return 0;
}
