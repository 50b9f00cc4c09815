/* SPDX-License-Identifier: MIT
 *
 * ImapCommand: a command as pieces, and the walk over them that yields the bytes of the wire. A
 * literal from a file is read in blocks while it is being sent. Secrets live in blocks of exactly
 * their size, so that no copy stays behind in a grown buffer. Net thread.
 */
#include "imap/command.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 65536
#define MAX_QUOTED 1000        /* longer strings travel as literals */
#define MAX_LITERAL_MINUS 4096 /* RFC 7888 5 */

typedef enum
{
  PIECE_TEXT,
  PIECE_LITERAL,
  PIECE_FILE, /* a literal from fd */
} PieceKind;

typedef struct
{
  PieceKind kind;
  gboolean secret;
  char *data; /* TEXT, LITERAL */
  guint64 length;
  int fd; /* FILE, borrowed */
  guint64 offset;
} Piece;

typedef enum
{
  PHASE_TAG,
  PHASE_HEADER, /* of a literal: "{5}\r\n"; nothing for text */
  PHASE_WAIT,
  PHASE_BODY,
  PHASE_END, /* CRLF */
  PHASE_DONE,
} Phase;

struct ImapCommand
{
  GArray *pieces; /* of Piece */
  GString *text;  /* text being gathered, not yet a piece */
  GError *error;

  /* The walk. */
  char *tag;
  ImapLiteralMode mode;
  Phase phase;
  guint index;      /* of the piece at hand */
  guint64 taken;    /* bytes of this phase that were taken */
  GString *scratch; /* tag, header or line end at hand */
  guint8 *block;    /* BLOCK bytes of a file */
  guint64 block_at; /* where in the literal it starts */
  gsize block_length;
  guint n_literals_sent;
};

static void
clear_piece (gpointer data)
{
  Piece *piece = data;

  if (piece->secret && piece->data != NULL)
    explicit_bzero (piece->data, (gsize)piece->length);
  g_free (piece->data);
}

ImapCommand *
imap_command_new (const char *text)
{
  ImapCommand *command = g_new0 (ImapCommand, 1);

  command->pieces = g_array_new (FALSE, FALSE, sizeof (Piece));
  g_array_set_clear_func (command->pieces, clear_piece);
  command->text = g_string_new (text);
  command->scratch = g_string_new (NULL);
  command->tag = g_strdup ("");
  return command;
}

void
imap_command_free (ImapCommand *command)
{
  if (command == NULL)
    return;
  g_array_unref (command->pieces);
  g_string_free (command->text, TRUE);
  g_string_free (command->scratch, TRUE);
  g_clear_error (&command->error);
  g_free (command->tag);
  g_free (command->block);
  g_free (command);
}

static void
refuse (ImapCommand *command, const char *what)
{
  if (command->error == NULL)
    g_set_error (&command->error, MAIL_ERROR, MAIL_ERROR_INVALID, "%s", what);
}

gboolean
imap_command_check (ImapCommand *command, GError **error)
{
  if (command->error == NULL)
    return TRUE;
  if (error != NULL)
    *error = g_error_copy (command->error);
  return FALSE;
}

/* --- building --- */

static void
flush_text (ImapCommand *command)
{
  Piece piece = { .kind = PIECE_TEXT };

  if (command->text->len == 0)
    return;
  piece.length = command->text->len;
  piece.data = g_strndup (command->text->str, command->text->len);
  g_array_append_val (command->pieces, piece);
  g_string_truncate (command->text, 0);
}

static void
add_piece (ImapCommand *command, Piece piece)
{
  flush_text (command);
  g_array_append_val (command->pieces, piece);
}

void
imap_command_text (ImapCommand *command, const char *text)
{
  g_string_append (command->text, text);
}

void
imap_command_number (ImapCommand *command, guint64 number)
{
  g_string_append_printf (command->text, "%" G_GUINT64_FORMAT, number);
}

void
imap_command_atom (ImapCommand *command, const char *atom)
{
  gboolean ok = atom[0] != '\0';

  for (const char *c = atom; *c != '\0'; c++)
    ok = ok && g_ascii_isgraph (*c) && strchr ("(){%*\"\\]", *c) == NULL;
  if (!ok)
    refuse (command, "not a word that IMAP could hold");
  else
    g_string_append (command->text, atom);
}

typedef enum
{
  FORM_BARE,
  FORM_QUOTED,
  FORM_LITERAL,
} StringForm;

/* Bare only what no server could misread. */
static StringForm
choose_form (const char *string, gsize length)
{
  gboolean bare = length > 0 && length <= 64 && g_ascii_strcasecmp (string, "NIL") != 0;

  if (length > MAX_QUOTED)
    return FORM_LITERAL;
  for (gsize i = 0; i < length; i++)
    {
      if (string[i] < 0x20 || string[i] == 0x7f) /* a negative char is an 8-bit one */
        return FORM_LITERAL;
      bare = bare && (g_ascii_isalnum (string[i]) || strchr ("._-/", string[i]) != NULL);
    }
  return bare ? FORM_BARE : FORM_QUOTED;
}

/* out has room for 2 * length + 2; returns how many bytes were written. */
static gsize
quote (const char *string, gsize length, char *out)
{
  gsize n = 0;

  out[n++] = '"';
  for (gsize i = 0; i < length; i++)
    {
      if (string[i] == '"' || string[i] == '\\')
        out[n++] = '\\';
      out[n++] = string[i];
    }
  out[n++] = '"';
  return n;
}

static void
add_string (ImapCommand *command, const char *string, gsize length, gboolean may_be_bare)
{
  StringForm form = choose_form (string, length);

  if (memchr (string, '\0', length) != NULL)
    {
      refuse (command, "a NUL in a name");
      return;
    }
  if (form == FORM_BARE && may_be_bare)
    g_string_append_len (command->text, string, (gssize)length);
  else if (form == FORM_LITERAL)
    imap_command_literal (command, string, length);
  else
    {
      char quoted[2 * MAX_QUOTED + 2];

      g_string_append_len (command->text, quoted, (gssize)quote (string, length, quoted));
    }
}

void
imap_command_astring_len (ImapCommand *command, const char *string, gsize length)
{
  add_string (command, string, length, TRUE);
}

void
imap_command_astring (ImapCommand *command, const char *string)
{
  add_string (command, string, strlen (string), TRUE);
}

void
imap_command_string (ImapCommand *command, const char *string)
{
  add_string (command, string, strlen (string), FALSE);
}

void
imap_command_nstring (ImapCommand *command, const char *string)
{
  if (string == NULL)
    imap_command_text (command, "NIL");
  else
    imap_command_string (command, string);
}

void
imap_command_secret (ImapCommand *command, const char *string)
{
  gsize length = strlen (string);
  Piece piece = { .kind = PIECE_TEXT, .secret = TRUE };

  if (choose_form (string, length) == FORM_LITERAL)
    {
      piece.kind = PIECE_LITERAL;
      piece.length = length;
      piece.data = g_memdup2 (string, length);
    }
  else
    {
      piece.data = g_malloc (2 * length + 2);
      piece.length = quote (string, length, piece.data);
    }
  add_piece (command, piece);
}

void
imap_command_secret_text (ImapCommand *command, const char *text)
{
  Piece piece = { .kind = PIECE_TEXT, .secret = TRUE, .length = strlen (text) };

  if (strpbrk (text, "\r\n") != NULL)
    {
      refuse (command, "a line end in a secret");
      return;
    }
  piece.data = g_strdup (text);
  add_piece (command, piece);
}

void
imap_command_set (ImapCommand *command, const MailUidRange *ranges, guint n_ranges)
{
  if (n_ranges == 0)
    refuse (command, "an empty set");
  mail_uid_ranges_format (command->text, ranges, n_ranges);
}

void
imap_command_flags (ImapCommand *command, guint8 flags, const char *keywords)
{
  static const struct
  {
    MailFlags flag;
    const char *name;
  } names[] = { { MAIL_FLAG_ANSWERED, "\\Answered" },
                { MAIL_FLAG_DELETED, "\\Deleted" },
                { MAIL_FLAG_DRAFT, "\\Draft" },
                { MAIL_FLAG_FLAGGED, "\\Flagged" },
                { MAIL_FLAG_SEEN, "\\Seen" } };
  g_auto (GStrv) words = g_strsplit (keywords != NULL ? keywords : "", " ", -1);
  const char *space = "";

  imap_command_text (command, "(");
  for (gsize i = 0; i < G_N_ELEMENTS (names); i++)
    if (flags & names[i].flag)
      {
        g_string_append_printf (command->text, "%s%s", space, names[i].name);
        space = " ";
      }
  for (char **word = words; *word != NULL; word++)
    if (**word != '\0')
      {
        imap_command_text (command, space);
        imap_command_atom (command, *word);
        space = " ";
      }
  imap_command_text (command, ")");
}

void
imap_command_date_time (ImapCommand *command, gint64 epoch)
{
  static const char months[][4] = { "Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                    "Jul", "Aug", "Sep", "Oct", "Nov", "Dec" };
  const gint64 earliest = G_GINT64_CONSTANT (-62135596800); /* 0001-01-01 */
  const gint64 latest = G_GINT64_CONSTANT (253402300799);   /* 9999-12-31 23:59:59 */
  g_autoptr (GDateTime) time = g_date_time_new_from_unix_utc (CLAMP (epoch, earliest, latest));

  /* Not g_date_time_format: its month names follow the locale. */
  g_string_append_printf (
      command->text, "\"%02d-%s-%04d %02d:%02d:%02d +0000\"", g_date_time_get_day_of_month (time),
      months[g_date_time_get_month (time) - 1], g_date_time_get_year (time),
      g_date_time_get_hour (time), g_date_time_get_minute (time), g_date_time_get_second (time));
}

void
imap_command_literal (ImapCommand *command, const void *data, gsize length)
{
  Piece piece = { .kind = PIECE_LITERAL, .length = length };

  piece.data = length > 0 ? g_memdup2 (data, length) : NULL;
  add_piece (command, piece);
}

void
imap_command_literal_fd (ImapCommand *command, int fd, guint64 offset, guint64 length)
{
  Piece piece = { .kind = PIECE_FILE, .fd = fd, .offset = offset, .length = length };

  if (offset > G_MAXINT64 || length > G_MAXINT64 - offset)
    refuse (command, "a file range beyond 63 bits");
  else
    add_piece (command, piece);
}

/* --- sending --- */

static const Piece *
piece_at (ImapCommand *command)
{
  return &g_array_index (command->pieces, Piece, command->index);
}

static gboolean
is_synchronizing (const ImapCommand *command, const Piece *piece)
{
  switch (command->mode)
    {
    case IMAP_LITERALS_PLUS:
      return FALSE;
    case IMAP_LITERALS_MINUS:
      return piece->length > MAX_LITERAL_MINUS;
    case IMAP_LITERALS_SYNC:
    default:
      return TRUE;
    }
}

/* What this phase puts on the wire, for the phases whose bytes are in scratch. */
static void
enter_phase (ImapCommand *command, Phase phase)
{
  command->phase = phase;
  command->taken = 0;
  command->block_length = 0;
  g_string_truncate (command->scratch, 0);
  if (phase == PHASE_TAG)
    g_string_append_printf (command->scratch, "%s ", command->tag);
  else if (phase == PHASE_END)
    g_string_append (command->scratch, "\r\n");
  else if (phase == PHASE_HEADER && piece_at (command)->kind != PIECE_TEXT)
    g_string_append_printf (command->scratch, "{%" G_GUINT64_FORMAT "%s}\r\n",
                            piece_at (command)->length,
                            is_synchronizing (command, piece_at (command)) ? "" : "+");
}

static void
enter_piece (ImapCommand *command, guint index)
{
  command->index = index;
  enter_phase (command, index < command->pieces->len ? PHASE_HEADER : PHASE_END);
}

static guint64
phase_length (ImapCommand *command)
{
  return command->phase == PHASE_BODY ? piece_at (command)->length : command->scratch->len;
}

/* Steps over phases that have nothing (more) to give. */
static void
settle (ImapCommand *command)
{
  while (command->phase != PHASE_WAIT && command->phase != PHASE_DONE
         && command->taken >= phase_length (command))
    switch (command->phase)
      {
      case PHASE_TAG:
        enter_piece (command, 0);
        break;
      case PHASE_HEADER:
        enter_phase (command, piece_at (command)->kind != PIECE_TEXT
                                      && is_synchronizing (command, piece_at (command))
                                  ? PHASE_WAIT
                                  : PHASE_BODY);
        break;
      case PHASE_BODY:
        command->n_literals_sent += piece_at (command)->kind != PIECE_TEXT;
        enter_piece (command, command->index + 1);
        break;
      default:
        command->phase = PHASE_DONE;
        break;
      }
}

void
imap_command_start (ImapCommand *command, const char *tag, ImapLiteralMode mode)
{
  flush_text (command);
  g_free (command->tag);
  command->tag = g_strdup (tag);
  command->mode = mode;
  command->n_literals_sent = 0;
  enter_phase (command, PHASE_TAG);
}

/* Makes block hold the bytes from taken on. */
static gboolean
load_block (ImapCommand *command, const Piece *piece, GError **error)
{
  gsize want = (gsize)MIN (BLOCK, piece->length - command->taken);
  gssize got;

  if (command->taken >= command->block_at
      && command->taken < command->block_at + command->block_length)
    return TRUE;
  if (command->block == NULL)
    command->block = g_malloc (BLOCK);
  command->block_length = 0;
  do
    got = pread (piece->fd, command->block, want, (off_t)(piece->offset + command->taken));
  while (got < 0 && errno == EINTR);
  if (got < 0)
    {
      mail_set_errno (error, errno, "reading the message to send");
      return FALSE;
    }
  if (got == 0)
    {
      g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_CORRUPT,
                           "the message to send became shorter while being sent");
      return FALSE;
    }
  command->block_at = command->taken;
  command->block_length = (gsize)got;
  return TRUE;
}

ImapEmit
imap_command_peek (ImapCommand *command, const guint8 **data, gsize *length, GError **error)
{
  const Piece *piece;

  if (!imap_command_check (command, error))
    return IMAP_EMIT_ERROR;
  settle (command);
  if (command->phase == PHASE_DONE)
    return IMAP_EMIT_DONE;
  if (command->phase == PHASE_WAIT)
    return IMAP_EMIT_WAIT;
  if (command->phase != PHASE_BODY)
    {
      *data = (const guint8 *)command->scratch->str + command->taken;
      *length = command->scratch->len - (gsize)command->taken;
      return IMAP_EMIT_DATA;
    }
  piece = piece_at (command);
  if (piece->kind != PIECE_FILE)
    {
      *data = (const guint8 *)piece->data + command->taken;
      *length = (gsize)(piece->length - command->taken);
      return IMAP_EMIT_DATA;
    }
  if (!load_block (command, piece, error))
    return IMAP_EMIT_ERROR;
  *data = command->block + (command->taken - command->block_at);
  *length = (gsize)(command->block_at + command->block_length - command->taken);
  return IMAP_EMIT_DATA;
}

void
imap_command_advance (ImapCommand *command, gsize n)
{
  command->taken += n;
  settle (command);
}

gboolean
imap_command_continue (ImapCommand *command)
{
  if (command->phase != PHASE_WAIT)
    return FALSE;
  enter_phase (command, PHASE_BODY);
  settle (command);
  return TRUE;
}

gboolean
imap_command_is_waiting (ImapCommand *command)
{
  return command->phase == PHASE_WAIT;
}

guint
imap_command_n_literals_sent (ImapCommand *command)
{
  return command->n_literals_sent;
}

gboolean
imap_command_is_sent (ImapCommand *command)
{
  return command->phase == PHASE_DONE;
}

guint64
imap_command_length (ImapCommand *command)
{
  guint64 length = command->text->len + 2;

  for (guint i = 0; i < command->pieces->len; i++)
    {
      const Piece *piece = &g_array_index (command->pieces, Piece, i);

      length += piece->length + (piece->kind != PIECE_TEXT ? 8 : 0);
    }
  return length;
}

char *
imap_command_describe (ImapCommand *command)
{
  GString *out = g_string_new (command->tag);

  g_string_append_c (out, ' ');
  for (guint i = 0; i < command->pieces->len; i++)
    {
      const Piece *piece = &g_array_index (command->pieces, Piece, i);

      if (piece->secret)
        g_string_append (out, "***");
      else if (piece->kind == PIECE_TEXT)
        g_string_append_len (out, piece->data, (gssize)piece->length);
      else
        g_string_append_printf (out, "{%" G_GUINT64_FORMAT "}", piece->length);
    }
  g_string_append_len (out, command->text->str, (gssize)command->text->len);
  return g_string_free (out, FALSE);
}

guint
imap_command_fit_ranges (const MailUidRange *ranges, guint n_ranges, gsize max_bytes)
{
  gsize length = 0;
  guint n;

  for (n = 0; n < n_ranges; n++)
    {
      char text[32];

      length += (gsize)g_snprintf (text, sizeof text, ",%u:%u", ranges[n].first, ranges[n].last);
      if (ranges[n].first == ranges[n].last)
        length -= strlen (strchr (text, ':'));
      if (n > 0 && length > max_bytes + 1) /* the first has no comma */
        break;
    }
  return n;
}
