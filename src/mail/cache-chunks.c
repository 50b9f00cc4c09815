/* SPDX-License-Identifier: MIT
 *
 * Which bytes of a message are there: a sorted table of chunks with a CRC each, and how it looks at
 * the end of a file. Pure functions on memory; the files are in cache-disk.c and cache-file.c.
 */
#include "cache-private.h"

#include <libdeflate.h>
#include <string.h>
#include <zlib.h>

void
cache_chunks_init (CacheChunks *chunks)
{
  chunks->items = &chunks->single;
  chunks->n = 0;
  chunks->allocated = 1;
  chunks->held = chunks->memory = 0;
}

void
cache_chunks_clear (CacheChunks *chunks)
{
  if (chunks->items != &chunks->single)
    g_free (chunks->items);
  cache_chunks_init (chunks);
}

static guint64
chunk_end (const CacheChunk *chunk)
{
  return chunk->offset + chunk->length;
}

guint64
cache_chunks_end (const CacheChunks *chunks)
{
  return chunks->n > 0 ? chunk_end (&chunks->items[chunks->n - 1]) : 0;
}

guint
cache_chunks_find (const CacheChunks *chunks, guint64 offset)
{
  guint low = 0, high = chunks->n;

  if (offset >= cache_chunks_end (chunks))
    return chunks->n;
  while (low < high)
    {
      guint middle = (low + high) / 2;
      if (chunk_end (&chunks->items[middle]) <= offset)
        low = middle + 1;
      else
        high = middle;
    }
  return low;
}

gboolean
cache_chunks_missing (const CacheChunks *chunks, guint64 offset, guint64 limit, guint64 *start_out,
                      guint64 *end_out)
{
  guint i = cache_chunks_find (chunks, offset);

  while (i < chunks->n && chunks->items[i].offset <= offset && offset < limit)
    offset = chunk_end (&chunks->items[i++]);
  if (offset >= limit)
    return FALSE;
  *start_out = offset;
  *end_out = i < chunks->n ? MIN (limit, chunks->items[i].offset) : limit;
  return TRUE;
}

#define PAGE_BYTES 4096

/* How many pages [offset, end) touches at or behind *next, which moves on. */
static guint64
count_pages (guint64 offset, guint64 end, guint64 *next)
{
  guint64 first = MAX (offset / PAGE_BYTES, *next);
  guint64 stop = (end + PAGE_BYTES - 1) / PAGE_BYTES;

  if (stop <= first)
    return 0;
  *next = stop;
  return stop - first;
}

guint64
cache_chunks_charge (const CacheChunks *chunks, guint64 extent)
{
  guint64 pages = 0, next = 0;
  guint n_stored = 0;

  /* Most files have no holes. */
  if (chunks->held == extent && chunks->memory == 0)
    return count_pages (0, extent + cache_footer_length (chunks->n), &next) * PAGE_BYTES;
  for (guint i = 0; i < chunks->n; i++)
    if (!chunks->items[i].in_memory)
      {
        pages += count_pages (chunks->items[i].offset, chunk_end (&chunks->items[i]), &next);
        n_stored++;
      }
  pages += count_pages (extent, extent + cache_footer_length (n_stored), &next);
  return pages * PAGE_BYTES;
}

static void
grow (CacheChunks *chunks, guint n)
{
  if (n <= chunks->allocated)
    return;
  n = MAX (n, chunks->allocated * 2);
  if (chunks->items == &chunks->single)
    {
      chunks->items = g_new (CacheChunk, n);
      chunks->items[0] = chunks->single;
    }
  else
    chunks->items = g_renew (CacheChunk, chunks->items, n);
  chunks->allocated = n;
}

/* Bytes not yet verified are not joined: the right half would vouch for a damaged left one. */
static gboolean
join (CacheChunk *left, const CacheChunk *right)
{
  if (chunk_end (left) != right->offset || right->offset % MAIL_BLOCK_SIZE == 0 || !left->verified
      || !right->verified || left->in_memory != right->in_memory)
    return FALSE;
  left->crc = crc32_combine (left->crc, right->crc, right->length);
  left->length += right->length;
  left->age = right->age;
  return TRUE;
}

static void
add_chunk (CacheChunks *chunks, const CacheChunk *chunk)
{
  guint i = cache_chunks_find (chunks, chunk->offset);

  chunks->held += chunk->length;
  if (chunk->in_memory)
    chunks->memory += chunk->length;
  if (i > 0 && join (&chunks->items[i - 1], chunk))
    i--;
  else
    {
      grow (chunks, chunks->n + 1);
      memmove (&chunks->items[i + 1], &chunks->items[i], (chunks->n - i) * sizeof (CacheChunk));
      chunks->items[i] = *chunk;
      chunks->n++;
    }
  if (i + 1 < chunks->n && join (&chunks->items[i], &chunks->items[i + 1]))
    {
      chunks->n--;
      memmove (&chunks->items[i + 1], &chunks->items[i + 2],
               (chunks->n - i - 1) * sizeof (CacheChunk));
    }
}

void
cache_chunks_add (CacheChunks *chunks, guint64 offset, const guint8 *data, gsize length,
                  gboolean in_memory, guint32 age)
{
  while (length > 0)
    {
      CacheChunk chunk = { .offset = offset, .age = age, .verified = TRUE, .in_memory = in_memory };

      chunk.length = MIN (length, MAIL_BLOCK_SIZE - offset % MAIL_BLOCK_SIZE);
      chunk.crc = libdeflate_crc32 (0, data, chunk.length);
      add_chunk (chunks, &chunk);
      offset += chunk.length;
      data += chunk.length;
      length -= chunk.length;
    }
}

void
cache_chunks_remove (CacheChunks *chunks, guint index)
{
  chunks->held -= chunks->items[index].length;
  if (chunks->items[index].in_memory)
    chunks->memory -= chunks->items[index].length;
  chunks->n--;
  memmove (&chunks->items[index], &chunks->items[index + 1],
           (chunks->n - index) * sizeof (CacheChunk));
}

void
cache_chunks_copy_disk (CacheChunks *chunks, const CacheChunks *from)
{
  grow (chunks, from->n);
  for (guint i = 0; i < from->n; i++)
    if (!from->items[i].in_memory)
      {
        chunks->items[chunks->n++] = from->items[i];
        chunks->held += from->items[i].length;
      }
}

/* --- footers: n chunks of 16 bytes, then a trailer of 64, all little-endian ----------------------
 */

#define FOOTER_VERSION 1
#define FLAG_END_KNOWN 1

typedef struct
{
  char magic[8];
  guint32 version, flags;
  guint32 content_id, uid, variant, n_chunks;
  guint64 extent, end;
  guint64 zero;
  guint32 trailer_crc; /* of all of this before it */
  guint32 table_crc;   /* of the chunks and trailer_crc */
} Trailer;
G_STATIC_ASSERT (sizeof (Trailer) == CACHE_TRAILER_BYTES);

typedef struct
{
  guint64 offset;
  guint32 length, crc;
} StoredChunk;
G_STATIC_ASSERT (sizeof (StoredChunk) == CACHE_CHUNK_BYTES);

static const char footer_magic[8] = "mailcach";

gsize
cache_footer_length (guint n_chunks)
{
  return (gsize)n_chunks * CACHE_CHUNK_BYTES + CACHE_TRAILER_BYTES;
}

static guint32
trailer_crc (const Trailer *trailer)
{
  return libdeflate_crc32 (0, (const guint8 *)trailer, G_STRUCT_OFFSET (Trailer, trailer_crc));
}

static guint32
table_crc (const guint8 *table, guint n_chunks, const Trailer *trailer)
{
  guint32 crc = libdeflate_crc32 (0, (const guint8 *)&trailer->trailer_crc, 4);

  return libdeflate_crc32 (crc, table, (gsize)n_chunks * CACHE_CHUNK_BYTES);
}

gsize
cache_footer_pack (const CacheKey *key, const CacheFooter *footer, const CacheChunks *chunks,
                   guint8 *data_out)
{
  Trailer trailer = { .version = GUINT32_TO_LE (FOOTER_VERSION) };
  guint n = 0;

  for (guint i = 0; i < chunks->n; i++)
    {
      const CacheChunk *chunk = &chunks->items[i];
      StoredChunk stored = { GUINT64_TO_LE (chunk->offset), GUINT32_TO_LE (chunk->length),
                             GUINT32_TO_LE (chunk->crc) };

      if (!chunk->in_memory)
        memcpy (data_out + (gsize)n++ * CACHE_CHUNK_BYTES, &stored, sizeof stored);
    }
  memcpy (trailer.magic, footer_magic, sizeof trailer.magic);
  trailer.flags = GUINT32_TO_LE (footer->end_known ? FLAG_END_KNOWN : 0);
  trailer.content_id = GUINT32_TO_LE (key->content_id);
  trailer.uid = GUINT32_TO_LE (key->uid);
  trailer.variant = GUINT32_TO_LE (key->variant);
  trailer.n_chunks = GUINT32_TO_LE (n);
  trailer.extent = GUINT64_TO_LE (footer->extent);
  trailer.end = GUINT64_TO_LE (footer->end_known ? footer->end : 0);
  trailer.trailer_crc = GUINT32_TO_LE (trailer_crc (&trailer));
  trailer.table_crc = GUINT32_TO_LE (table_crc (data_out, n, &trailer));
  memcpy (data_out + (gsize)n * CACHE_CHUNK_BYTES, &trailer, sizeof trailer);
  return cache_footer_length (n);
}

gboolean
cache_footer_peek (const CacheKey *key, const guint8 *data, guint64 file_size,
                   CacheFooter *footer_out)
{
  Trailer trailer;

  memcpy (&trailer, data, sizeof trailer);
  if (memcmp (trailer.magic, footer_magic, sizeof trailer.magic) != 0
      || GUINT32_FROM_LE (trailer.version) != FOOTER_VERSION
      || GUINT32_FROM_LE (trailer.trailer_crc) != trailer_crc (&trailer)
      || GUINT32_FROM_LE (trailer.content_id) != key->content_id
      || GUINT32_FROM_LE (trailer.uid) != key->uid
      || GUINT32_FROM_LE (trailer.variant) != key->variant)
    return FALSE;
  footer_out->n_chunks = GUINT32_FROM_LE (trailer.n_chunks);
  footer_out->extent = GUINT64_FROM_LE (trailer.extent);
  footer_out->end = GUINT64_FROM_LE (trailer.end);
  footer_out->end_known = GUINT32_FROM_LE (trailer.flags) & FLAG_END_KNOWN;
  return footer_out->n_chunks <= CACHE_MAX_CHUNKS
         && file_size >= cache_footer_length (footer_out->n_chunks)
         && footer_out->extent == file_size - cache_footer_length (footer_out->n_chunks)
         && (!footer_out->end_known || footer_out->extent <= footer_out->end);
}

gboolean
cache_footer_unpack (const CacheFooter *footer, const guint8 *data, CacheChunks *chunks_out)
{
  Trailer trailer;
  guint64 previous_end = 0;

  memcpy (&trailer, data + (gsize)footer->n_chunks * CACHE_CHUNK_BYTES, sizeof trailer);
  if (GUINT32_FROM_LE (trailer.table_crc) != table_crc (data, footer->n_chunks, &trailer))
    return FALSE;
  grow (chunks_out, footer->n_chunks);
  for (guint i = 0; i < footer->n_chunks; i++)
    {
      StoredChunk stored;
      CacheChunk chunk = { 0 };

      memcpy (&stored, data + (gsize)i * CACHE_CHUNK_BYTES, sizeof stored);
      chunk.offset = GUINT64_FROM_LE (stored.offset);
      chunk.length = GUINT32_FROM_LE (stored.length);
      chunk.crc = GUINT32_FROM_LE (stored.crc);
      if (chunk.offset < previous_end || chunk.length == 0 || chunk.offset > footer->extent
          || chunk.length > footer->extent - chunk.offset
          || chunk.length > MAIL_BLOCK_SIZE - chunk.offset % MAIL_BLOCK_SIZE)
        return FALSE;
      previous_end = chunk.offset + chunk.length;
      chunks_out->items[chunks_out->n++] = chunk;
      chunks_out->held += chunk.length;
    }
  return TRUE;
}
