/* SPDX-License-Identifier: MIT
 *
 * The bytes of staged files: one file each in the account's spool directory, named by our own
 * number. What goes to a server has CRLF line ends; when the user's bytes have not, a second file
 * beside it does. Nothing here is ever evicted. Any thread; who writes one file is serialized by
 * its stage.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE (256 * 1024)
/* RFC 5322 2.1.1 allows 998 in a line; somebody's header is allowed to be worse than that. */
#define HEADER_LOOK 4096

char *
mail_spool_path (MailChanges *changes, guint32 id, gboolean wire)
{
  return g_strdup_printf ("%s/%u%s", changes->spool_dir, id, wire ? ".wire" : "");
}

int
mail_spool_open (MailChanges *changes, guint32 id, gboolean create, GError **error)
{
  g_autofree char *path = mail_spool_path (changes, id, FALSE);
  int fd = open (path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | (create ? O_CREAT | O_TRUNC : 0), 0600);

  if (fd < 0)
    mail_set_errno (error, errno, path);
  return fd;
}

void
mail_spool_remove (MailChanges *changes, guint32 id)
{
  for (guint wire = 0; wire < 2; wire++)
    {
      g_autofree char *path = mail_spool_path (changes, id, wire);

      if (unlink (path) < 0 && errno != ENOENT)
        mail_log_warning ("%s: %s", path, g_strerror (errno));
    }
}

static gboolean
write_all (int fd, const guint8 *data, gsize length, GError **error)
{
  while (length > 0)
    {
      gssize n = write (fd, data, length);

      if (n < 0 && errno == EINTR)
        continue;
      if (n < 0)
        {
          mail_set_errno (error, errno, "spool");
          return FALSE;
        }
      data += n;
      length -= n;
    }
  return TRUE;
}

static gssize
read_at (int fd, guint64 offset, guint8 *buffer, gsize length, GError **error)
{
  gssize n;

  do
    n = pread (fd, buffer, length, (off_t)offset);
  while (n < 0 && errno == EINTR);
  if (n < 0)
    mail_set_errno (error, errno, "spool");
  return n;
}

gboolean
mail_spool_separate (MailChanges *changes, guint32 id, GError **error)
{
  g_autofree char *path = mail_spool_path (changes, id, FALSE);
  g_autofree char *copy = g_strconcat (path, ".new", NULL);
  g_autofree guint8 *buffer = g_malloc (PIECE);
  gssize n = 0;
  int from = mail_spool_open (changes, id, FALSE, error);
  int to = from >= 0 ? open (copy, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600)
                     : -1;
  gboolean good = to >= 0;

  if (from >= 0 && to < 0)
    mail_set_errno (error, errno, copy);
  for (guint64 offset = 0; good; offset += n)
    {
      n = read_at (from, offset, buffer, PIECE, error);
      if (n <= 0)
        break;
      good = write_all (to, buffer, n, error);
    }
  if (good && n == 0 && rename (copy, path) < 0)
    {
      mail_set_errno (error, errno, path);
      good = FALSE;
    }
  if (from >= 0)
    close (from);
  if (to >= 0)
    close (to);
  return good && n == 0;
}

/* --- what may be sent ------------------------------------------------------------------------ */

/* A field name and a colon (RFC 5322 3.6.8), perhaps behind the "From " line of an mbox. */
static gboolean
begins_with_field (const char *text, gsize length)
{
  gsize i = 0;

  if (length > 5
      && (memcmp (text, "From ", 5) == 0 || (length > 6 && memcmp (text, ">From ", 6) == 0)))
    {
      const char *end = memchr (text, '\n', length);

      if (end == NULL)
        return FALSE;
      length -= end + 1 - text;
      text = end + 1;
    }
  while (i < length && text[i] > ' ' && text[i] < 127 && text[i] != ':')
    i++;
  if (i == 0)
    return FALSE;
  while (i < length && (text[i] == ' ' || text[i] == '\t'))
    i++;
  return i < length && text[i] == ':';
}

gboolean
mail_spool_check (int fd, GError **error)
{
  g_autofree guint8 *buffer = g_malloc (PIECE);
  gssize n;

  for (guint64 offset = 0; (n = read_at (fd, offset, buffer, PIECE, error)) > 0; offset += n)
    {
      if (offset == 0 && !begins_with_field ((const char *)buffer, MIN (n, HEADER_LOOK)))
        {
          g_set_error (error, MAIL_ERROR, MAIL_ERROR_INVALID,
                       "not a mail message: it does not begin with a header");
          return FALSE;
        }
      if (memchr (buffer, '\0', n) != NULL)
        {
          g_set_error (error, MAIL_ERROR, MAIL_ERROR_INVALID,
                       "not a mail message: it has NUL bytes");
          return FALSE;
        }
      if (n < PIECE)
        return TRUE;
    }
  return n == 0;
}

/* --- what is sent ---------------------------------------------------------------------------- */

char *
mail_message_id_of (const guint8 *head, gsize length)
{
  const char *line = (const char *)head, *end = line + length;

  while (line < end)
    {
      const char *newline = memchr (line, '\n', end - line);
      const char *stop = newline != NULL ? newline : end;

      if (stop - line <= 1)
        return NULL; /* the header is over */
      if (stop - line > 11 && g_ascii_strncasecmp (line, "Message-ID:", 11) == 0)
        {
          const char *open = memchr (line, '<', end - line);
          const char *shut = open != NULL ? memchr (open, '>', end - open) : NULL;

          return shut != NULL && shut - open < 1000 ? g_strndup (open + 1, shut - open - 1) : NULL;
        }
      line = stop + 1;
    }
  return NULL;
}

char *
mail_spool_message_id (MailChanges *changes, guint32 id)
{
  g_autofree guint8 *head = g_malloc (PIECE);
  int fd = mail_spool_open (changes, id, FALSE, NULL);
  gssize n = fd >= 0 ? read_at (fd, 0, head, PIECE, NULL) : 0;

  if (fd >= 0)
    close (fd);
  return n > 0 ? mail_message_id_of (head, n) : NULL;
}

void
mail_spool_body (MailChanges *changes, guint32 id, guint8 *digest_out)
{
  g_autofree guint8 *buffer = g_malloc (PIECE);
  int fd = mail_spool_open (changes, id, FALSE, NULL);
  MailBodySum body = { 0 };
  guint64 offset = 0;
  gssize n;

  while (fd >= 0 && (n = read_at (fd, offset, buffer, PIECE, NULL)) > 0)
    {
      mail_body_sum_add (&body, buffer, (gsize)n);
      offset += (guint64)n;
    }
  if (fd >= 0)
    close (fd);
  mail_body_sum_end (&body, digest_out);
}

/* Appends with a CR before each bare LF; last is the byte before data. */
static void
append_crlf (GByteArray *out, const guint8 *data, gsize length, guint8 last)
{
  const guint8 *end = data + length;

  while (data < end)
    {
      const guint8 *newline = memchr (data, '\n', end - data);
      const guint8 *stop = newline != NULL ? newline : end;

      g_byte_array_append (out, data, stop - data);
      if (stop > data)
        last = stop[-1];
      if (newline != NULL)
        {
          if (last != '\r')
            g_byte_array_append (out, (const guint8 *)"\r", 1);
          g_byte_array_append (out, newline, 1);
          last = '\n';
        }
      data = newline != NULL ? newline + 1 : end;
    }
}

static gboolean
has_bare_lf (const guint8 *data, gsize length, guint8 last)
{
  const guint8 *at = data;

  while ((at = memchr (at, '\n', length - (at - data))) != NULL)
    {
      if ((at > data ? at[-1] : last) != '\r')
        return TRUE;
      at++;
    }
  return FALSE;
}

typedef struct
{
  MailChanges *changes;
  guint32 id;
  int from, to; /* to: -1 while the bytes need no change */
  GChecksum *sum;
  GByteArray *out;
  guint8 last;
  guint64 offset;
} Conversion;

/* All before this piece was as it should be: it is copied, and from now on pieces are converted. */
static gboolean
begin_copy (Conversion *conversion, GError **error)
{
  g_autofree char *path = mail_spool_path (conversion->changes, conversion->id, TRUE);
  g_autofree guint8 *buffer = g_malloc (PIECE);

  conversion->to = open (path, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (conversion->to < 0)
    {
      mail_set_errno (error, errno, path);
      return FALSE;
    }
  for (guint64 offset = 0; offset < conversion->offset;)
    {
      gssize n = read_at (conversion->from, offset, buffer,
                          MIN (PIECE, conversion->offset - offset), error);

      if (n <= 0 || !write_all (conversion->to, buffer, n, error))
        return FALSE;
      offset += n;
    }
  return TRUE;
}

static gboolean
convert_piece (Conversion *conversion, MailWire *wire, const guint8 *data, gsize n, GError **error)
{
  if (conversion->offset == 0)
    wire->message_id = mail_message_id_of (data, n);
  if (conversion->to < 0 && has_bare_lf (data, n, conversion->last)
      && !begin_copy (conversion, error))
    return FALSE;
  if (conversion->to >= 0)
    {
      g_byte_array_set_size (conversion->out, 0);
      append_crlf (conversion->out, data, n, conversion->last);
      if (!write_all (conversion->to, conversion->out->data, conversion->out->len, error))
        return FALSE;
      g_checksum_update (conversion->sum, conversion->out->data, conversion->out->len);
      wire->size += conversion->out->len;
    }
  else
    {
      g_checksum_update (conversion->sum, data, n);
      wire->size += n;
    }
  conversion->last = data[n - 1];
  conversion->offset += n;
  return TRUE;
}

gboolean
mail_spool_wire (MailChanges *changes, guint32 id, int fd, MailWire *wire_out, GError **error)
{
  Conversion conversion = { .changes = changes, .id = id, .to = -1 };
  g_autofree guint8 *buffer = g_malloc (PIECE);
  gsize digest_length = MAIL_DIGEST_SIZE;
  gboolean good = TRUE;
  gssize n = 0;

  memset (wire_out, 0, sizeof *wire_out);
  wire_out->fd = -1;
  conversion.from = fd;
  conversion.sum = g_checksum_new (G_CHECKSUM_SHA256);
  conversion.out = g_byte_array_new ();
  while (good && (n = read_at (conversion.from, conversion.offset, buffer, PIECE, error)) > 0)
    good = convert_piece (&conversion, wire_out, buffer, n, error);
  good = good && n == 0;
  g_checksum_get_digest (conversion.sum, wire_out->digest, &digest_length);
  g_checksum_free (conversion.sum);
  g_byte_array_unref (conversion.out);
  if (good)
    wire_out->fd = conversion.to >= 0 ? conversion.to : conversion.from;
  else
    g_clear_pointer (&wire_out->message_id, g_free);
  if (conversion.from != wire_out->fd)
    close (conversion.from);
  if (conversion.to >= 0 && conversion.to != wire_out->fd)
    close (conversion.to);
  return good;
}

/* --- to and from the cache ------------------------------------------------------------------- */

/* eol=lf: what readers see has lost the CR of each CRLF. Returns the new length. */
static gsize
to_lf (guint8 *data, gsize length, gboolean *held_cr)
{
  gsize n = 0;

  for (gsize i = 0; i < length; i++)
    {
      guint8 byte = data[i];

      if (byte == '\n' && n > 0 && data[n - 1] == '\r')
        n--;
      data[n++] = byte;
    }
  /* A CR at the end waits for what follows it. */
  *held_cr = n > 0 && data[n - 1] == '\r';
  return n - *held_cr;
}

guint64
mail_spool_to_cache (MailChanges *changes, int wire_fd, guint64 size, guint32 content_id,
                     guint32 uid)
{
  MailStore *store = changes->store;
  gboolean lf = store->options.eol_lf, held_cr = FALSE;
  g_autofree guint8 *buffer = g_malloc (PIECE + 1);
  g_autoptr (MailCacheFile) file = mail_cache_get (store->cache, content_id, uid, 0);
  g_autoptr (GError) error = NULL;
  guint64 read = 0, written = 0;

  while (read < size && error == NULL)
    {
      gsize kept = held_cr;
      if (held_cr)
        buffer[0] = '\r';
      gssize n = read_at (wire_fd, read, buffer + kept, MIN (PIECE, size - read), &error);
      if (n <= 0)
        break;
      read += n;
      gsize length = n + kept;
      held_cr = FALSE;
      if (lf)
        length = to_lf (buffer, length, &held_cr);
      if (read == size && held_cr)
        {
          buffer[length++] = '\r';
          held_cr = FALSE;
        }
      if (written == 0 && read == size)
        {
          mail_cache_file_write_whole (file, buffer, length, &error);
          return length;
        }
      if (mail_cache_file_write (file, written, buffer, length, &error))
        written += length;
    }
  if (read == size && error == NULL)
    mail_cache_file_set_end (file, written, &error);
  if (error != NULL)
    mail_cache_file_clear (file);
  return lf && error == NULL ? written : size;
}

gboolean
mail_spool_from_cache (MailChanges *changes, guint32 id, guint32 content_id, guint32 uid,
                       guint64 *size_out, GError **error)
{
  g_autoptr (MailCacheFile) file = mail_cache_peek (changes->store->cache, content_id, uid, 0);
  g_autofree guint8 *buffer = g_malloc (PIECE);
  guint64 end = 0, offset = 0;
  gboolean good = TRUE;

  if (file == NULL || !mail_cache_file_end (file, &end) || !mail_cache_file_has (file, 0, end))
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_UNREACHABLE, "the message is not in the cache");
      return FALSE;
    }
  int fd = mail_spool_open (changes, id, TRUE, error);
  if (fd < 0)
    return FALSE;
  while (good && offset < end)
    {
      gssize n = mail_cache_file_read (file, offset, buffer, PIECE, error);

      good = n > 0 && write_all (fd, buffer, n, error);
      if (n > 0)
        offset += n;
      else if (n == 0)
        g_set_error (error, MAIL_ERROR, MAIL_ERROR_CORRUPT, "the cached message is too short");
    }
  close (fd);
  *size_out = end;
  return good;
}
