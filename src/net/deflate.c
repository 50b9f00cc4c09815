/* SPDX-License-Identifier: MIT
 *
 * COMPRESS=DEFLATE (RFC 4978): raw deflate both ways over an inner stream. Reading inflates
 * straight into the caller's buffer, so a bomb costs no memory. The stream's thread.
 */
#include "mailfs/error.h"
#include "net/layer.h"

#include <string.h>
#include <zlib.h>

#define INPUT_SIZE 16384
#define OUTPUT_LIMIT 65536 /* compressed bytes held back before write () would block */
#define CHUNK_MAX 65536    /* plain bytes taken by one write */
#define READS_PER_CALL 16  /* a stream of empty blocks must not keep the thread */

typedef struct
{
  NetStream base;
  z_stream in, out;
  guchar *input; /* INPUT_SIZE, or longer for what was pending at the start */
  GByteArray *output;
  gboolean dirty; /* deflate holds bytes that were not flushed */
  gboolean more;  /* inflate stopped because the buffer was full */
  gboolean ended;
} DeflateStream;

static gboolean
drain (DeflateStream *self, GError **error)
{
  while (self->output->len > 0)
    {
      gssize n = net_stream_write (self->base.inner, self->output->data, self->output->len, error);

      if (n < 0)
        return FALSE;
      g_byte_array_remove_range (self->output, 0, (guint)n);
    }
  return TRUE;
}

static void
compress_into (DeflateStream *self, const void *data, gsize length, int mode)
{
  guchar block[16384];

  self->out.next_in = (Bytef *)data;
  self->out.avail_in = (uInt)length;
  do
    {
      self->out.next_out = block;
      self->out.avail_out = sizeof block;
      deflate (&self->out,
               mode); /* cannot fail on a sane z_stream; Z_BUF_ERROR means nothing to do */
      g_byte_array_append (self->output, block, (guint)(sizeof block - self->out.avail_out));
    }
  while (self->out.avail_out == 0);
}

static gssize
deflate_write (NetStream *stream, const void *data, gsize length, GError **error)
{
  DeflateStream *self = (DeflateStream *)stream;
  gsize taken = MIN (length, CHUNK_MAX);

  if (self->output->len >= OUTPUT_LIMIT && !drain (self, error))
    return -1;
  compress_into (self, data, taken, Z_NO_FLUSH);
  self->dirty = TRUE;
  return (gssize)taken;
}

static gboolean
deflate_flush (NetStream *stream, GError **error)
{
  DeflateStream *self = (DeflateStream *)stream;

  if (self->dirty)
    compress_into (self, NULL, 0, Z_SYNC_FLUSH);
  self->dirty = FALSE;
  return drain (self, error) && net_stream_flush (stream->inner, error);
}

/* Inflates what is there; the number of bytes, 0 if input ran out, -1. */
static gssize
inflate_some (DeflateStream *self, void *buffer, gsize length, GError **error)
{
  int rc;

  self->in.next_out = buffer;
  self->in.avail_out = (uInt)MIN (length, G_MAXINT);
  rc = inflate (&self->in, Z_SYNC_FLUSH);
  self->more = self->in.avail_out == 0;
  if (rc == Z_STREAM_END)
    {
      self->ended = TRUE;
      self->in.avail_in = 0;
    }
  else if (rc != Z_OK && rc != Z_BUF_ERROR)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL, "%s sent broken compressed data",
                   self->base.description);
      return -1;
    }
  return self->in.next_out - (Bytef *)buffer;
}

static gssize
deflate_read (NetStream *stream, void *buffer, gsize length, GError **error)
{
  DeflateStream *self = (DeflateStream *)stream;
  gssize n;

  for (int i = 0; i < READS_PER_CALL; i++)
    {
      if (!self->ended && (self->in.avail_in > 0 || self->more))
        {
          n = inflate_some (self, buffer, length, error);
          if (n != 0)
            return n;
        }
      if (self->ended)
        return 0;
      n = net_stream_read (stream->inner, self->input, INPUT_SIZE, error);
      if (n <= 0)
        return n;
      self->in.next_in = self->input;
      self->in.avail_in = (uInt)n;
    }
  net_would_block (error);
  return -1;
}

static gboolean
deflate_pending (NetStream *stream)
{
  DeflateStream *self = (DeflateStream *)stream;

  return self->in.avail_in > 0 || self->more || self->ended;
}

static void
deflate_close (NetStream *stream)
{
  DeflateStream *self = (DeflateStream *)stream;

  inflateEnd (&self->in);
  deflateEnd (&self->out);
  g_free (self->input);
  g_byte_array_unref (self->output);
}

static const NetStreamOps deflate_ops = {
  .read = deflate_read,
  .write = deflate_write,
  .flush = deflate_flush,
  .pending = deflate_pending,
  .close = deflate_close,
};

NetStream *
net_deflate_new (NetStream *inner, const void *pending, gsize n_pending)
{
  DeflateStream *self = g_new0 (DeflateStream, 1);

  net_stream_init (&self->base, &deflate_ops, inner,
                   g_strconcat (net_stream_describe (inner), " deflate", NULL));
  self->input = g_malloc (MAX (INPUT_SIZE, n_pending));
  self->output = g_byte_array_new ();
  if (n_pending > 0)
    memcpy (self->input, pending, n_pending);
  self->in.next_in = self->input;
  self->in.avail_in = (uInt)n_pending;
  if (inflateInit2 (&self->in, -MAX_WBITS) != Z_OK
      || deflateInit2 (&self->out, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -MAX_WBITS, 8,
                       Z_DEFAULT_STRATEGY)
             != Z_OK)
    g_error ("out of memory for compression");
  return &self->base;
}
