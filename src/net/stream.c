/* SPDX-License-Identifier: MIT
 *
 * NetStream: the dispatch through the layers and the one GSource that tells the owner when to go
 * on. The thread of the stream's context.
 */
#include "net/layer.h"

typedef struct
{
  GSource source;
  NetStream *stream; /* lives longer than the source's attachment */
  GPollFD poll;
} ReadySource;

static NetStream *
bottom (NetStream *stream)
{
  while (stream->inner != NULL)
    stream = stream->inner;
  return stream;
}

static gboolean
is_pending (NetStream *stream)
{
  for (; stream != NULL; stream = stream->inner)
    if (stream->ops->pending != NULL && stream->ops->pending (stream))
      return TRUE;
  return FALSE;
}

static gboolean
ready_prepare (GSource *source, int *timeout)
{
  ReadySource *self = (ReadySource *)source;

  *timeout = -1;
  self->poll.events = G_IO_IN | (bottom (self->stream)->want_out ? G_IO_OUT : 0);
  return is_pending (self->stream);
}

static gboolean
ready_check (GSource *source)
{
  ReadySource *self = (ReadySource *)source;

  return self->poll.revents != 0 || is_pending (self->stream);
}

static gboolean
ready_dispatch (GSource *source, GSourceFunc callback, gpointer user_data)
{
  ReadySource *self = (ReadySource *)source;
  NetStream *stream = self->stream;

  /* Once: an owner with nothing to write is not called over and over. */
  if (self->poll.revents & G_IO_OUT)
    bottom (stream)->want_out = FALSE;
  stream->ready (stream, stream->ready_data);
  return G_SOURCE_CONTINUE;
}

static GSourceFuncs ready_funcs = { ready_prepare, ready_check, ready_dispatch, NULL, NULL, NULL };

static void
stop_ready (NetStream *stream)
{
  if (stream->source == NULL)
    return;
  g_source_destroy (stream->source);
  g_clear_pointer (&stream->source, g_source_unref);
}

void
net_stream_set_ready (NetStream *stream, NetStreamReadyFunc ready, gpointer user_data)
{
  stream->ready = ready;
  stream->ready_data = user_data;
  if (ready == NULL)
    stop_ready (stream);
  else if (stream->source == NULL)
    {
      ReadySource *self;

      stream->source = g_source_new (&ready_funcs, sizeof (ReadySource));
      self = (ReadySource *)stream->source;
      self->stream = stream;
      self->poll.fd = bottom (stream)->fd;
      self->poll.events = G_IO_IN;
      g_source_add_poll (stream->source, &self->poll);
      g_source_set_name (stream->source, "NetStream");
      g_source_attach (stream->source, stream->context);
    }
}

void
net_stream_init (NetStream *stream, const NetStreamOps *ops, NetStream *inner, char *description)
{
  stream->ops = ops;
  stream->inner = inner;
  stream->description = description;
  stream->fd = -1;
  stream->is_tls = inner != NULL && inner->is_tls;
  stream->context = g_main_context_ref_thread_default ();
  if (inner != NULL)
    net_stream_set_ready (inner, NULL, NULL);
}

gboolean
net_would_block (GError **error)
{
  g_set_error_literal (error, G_IO_ERROR, G_IO_ERROR_WOULD_BLOCK, "would block");
  return FALSE;
}

gssize
net_stream_read (NetStream *stream, void *buffer, gsize length, GError **error)
{
  return stream->ops->read (stream, buffer, length, error);
}

gssize
net_stream_write (NetStream *stream, const void *data, gsize length, GError **error)
{
  return length == 0 ? 0 : stream->ops->write (stream, data, length, error);
}

gboolean
net_stream_flush (NetStream *stream, GError **error)
{
  if (stream->ops->flush != NULL)
    return stream->ops->flush (stream, error);
  return stream->inner == NULL || net_stream_flush (stream->inner, error);
}

void
net_stream_free (NetStream *stream)
{
  while (stream != NULL)
    {
      NetStream *inner = stream->inner;

      stop_ready (stream);
      stream->ops->close (stream);
      g_main_context_unref (stream->context);
      g_free (stream->description);
      g_free (stream);
      stream = inner;
    }
}

const char *
net_stream_describe (NetStream *stream)
{
  return stream->description;
}

gboolean
net_stream_is_tls (NetStream *stream)
{
  return stream->is_tls;
}
