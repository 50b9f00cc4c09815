/* SPDX-License-Identifier: MIT
 *
 * How messages look in the database: pages of up to 128, 29 bytes each, little-endian, with a
 * version and a CRC over everything including the row's own number. A full page fills one leaf of
 * 4 KiB, so a listing of 100,000 messages is 800 rows. Pure functions.
 */
#include "index-private.h"

#include <string.h>
#include <libdeflate.h>

#define PAGE_VERSION 1
#define DATE_BITS 34

gint64
index_page_id (guint32 content_id, guint32 uid)
{
  return (gint64)content_id << (32 - INDEX_PAGE_SHIFT) | uid >> INDEX_PAGE_SHIFT;
}

static guint8 *
put_number (guint8 *p, guint64 value, guint n_bytes)
{
  guint64 le = GUINT64_TO_LE (value);

  memcpy (p, &le, n_bytes);
  return p + n_bytes;
}

static guint64
get_number (const guint8 **p, guint n_bytes)
{
  guint64 le = 0;

  memcpy (&le, *p, n_bytes);
  *p += n_bytes;
  return GUINT64_FROM_LE (le);
}

static guint8 *
pack_message (guint8 *p, const MailMessage *message)
{
  guint64 date = (guint64)message->internaldate & ((G_GUINT64_CONSTANT (1) << DATE_BITS) - 1);

  p = put_number (p, message->uid & (INDEX_PAGE_MESSAGES - 1), 1);
  p = put_number (p, message->keywords, 4);
  p = put_number (p, message->modseq, 8);
  p = put_number (p, message->size, 5);
  p = put_number (p, message->flags, 1);
  p = put_number (p, message->local, 2);
  return put_number (p, date | (guint64)message->changed << DATE_BITS, 8);
}

static const guint8 *
unpack_message (guint32 first_uid, const guint8 *p, MailMessage *message_out)
{
  guint64 times;

  message_out->uid = first_uid | get_number (&p, 1);
  message_out->keywords = get_number (&p, 4);
  message_out->modseq = get_number (&p, 8);
  message_out->size = get_number (&p, 5);
  message_out->flags = get_number (&p, 1);
  message_out->local = get_number (&p, 2);
  times = get_number (&p, 8);
  message_out->internaldate = (gint64)(times << (64 - DATE_BITS)) >> (64 - DATE_BITS);
  message_out->changed = times >> DATE_BITS;
  return p;
}

static guint32
crc_number (guint32 crc, guint64 value)
{
  guint64 le = GUINT64_TO_LE (value);

  return libdeflate_crc32 (crc, (const guint8 *)&le, sizeof le);
}

static guint32
crc_text (guint32 crc, const char *text)
{
  crc = crc_number (crc, text ? strlen (text) : G_MAXUINT64);
  return text ? libdeflate_crc32 (crc, (const guint8 *)text, strlen (text)) : crc;
}

/* The header is version, a zero byte, the count, and the CRC of the rest. */
static guint32
page_crc (gint64 id, const guint8 *data, gsize length)
{
  guint32 crc = libdeflate_crc32 (crc_number (0, id), data, 4);

  return libdeflate_crc32 (crc, data + INDEX_PAGE_HEADER, length - INDEX_PAGE_HEADER);
}

gsize
index_page_pack (gint64 id, const MailMessage *messages, guint n, guint8 *data_out)
{
  guint8 *p = data_out + INDEX_PAGE_HEADER;
  gsize length;

  g_assert (n <= INDEX_PAGE_MESSAGES);
  for (guint i = 0; i < n; i++)
    p = pack_message (p, &messages[i]);
  length = p - data_out;
  p = put_number (data_out, PAGE_VERSION, 2);
  p = put_number (p, n, 2);
  put_number (p, page_crc (id, data_out, length), 4);
  return length;
}

gboolean
index_page_unpack (gint64 id, const guint8 *data, gsize length, MailMessage *messages_out,
                   guint *n_out)
{
  guint32 first_uid = (guint32)(guint64)id << INDEX_PAGE_SHIFT;
  const guint8 *p = data;
  guint n;

  if (length < INDEX_PAGE_HEADER || get_number (&p, 2) != PAGE_VERSION)
    return FALSE;
  n = get_number (&p, 2);
  if (n > INDEX_PAGE_MESSAGES || length != INDEX_PAGE_HEADER + n * INDEX_MESSAGE_BYTES
      || get_number (&p, 4) != page_crc (id, data, length))
    return FALSE;
  for (guint i = 0; i < n; i++)
    {
      p = unpack_message (first_uid, p, &messages_out[i]);
      if (i > 0 && messages_out[i].uid <= messages_out[i - 1].uid)
        return FALSE;
    }
  *n_out = n;
  return TRUE;
}

guint32
index_text_crc (guint32 a, guint32 b, const char *text)
{
  return crc_text (crc_number (0, (guint64)a << 32 | b), text);
}

guint32
index_mailbox_crc (const MailIndexMailbox *mailbox)
{
  const MailMailboxStatus *status = &mailbox->status;
  guint32 crc = crc_number (0, (guint64)mailbox->id << 32 | mailbox->content_id);

  crc = crc_text (crc, mailbox->name);
  crc = crc_text (crc, mailbox->path);
  crc = crc_text (crc, mailbox->special_use);
  crc = crc_number (crc, (guint64)mailbox->flags << 32 | status->uidvalidity);
  crc = crc_number (crc, status->highestmodseq);
  crc = crc_number (crc, (guint64)status->n_messages << 32 | status->n_unseen);
  return crc_number (crc, status->uidnext);
}
