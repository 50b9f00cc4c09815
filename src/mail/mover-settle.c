/* SPDX-License-Identifier: MIT
 *
 * A round of the mover and the disk, in a thread of its own: what came is written, synced and read
 * back; what is kept already is compared with what the server has under that id.
 */
#include "mail/mover-private.h"

#include <string.h>

/* The bytes of a message the server hides are in the cache. */
static void
fill_from_cache (MailMoverRound *round, MailMoverItem *item)
{
  g_autoptr (MailCacheFile) file = mail_cache_peek (round->store->cache, round->content_id,
                                                    item->uid, 0);
  g_autofree guint8 *buffer = g_malloc (MAIL_BLOCK_SIZE), *crlf = NULL;
  gboolean lf = round->store->options.eol_lf, good = TRUE;
  guint64 end, offset = 0;
  gssize n = 0;

  if (file == NULL || !mail_cache_file_end (file, &end))
    return;
  crlf = lf ? g_malloc (2 * MAIL_BLOCK_SIZE) : NULL;
  while (good && offset < end
         && (n = mail_cache_file_read (file, offset, buffer, MAIL_BLOCK_SIZE, NULL)) > 0)
    {
      gsize length = 0;

      for (gssize i = 0; lf && i < n; i++)
        {
          if (buffer[i] == '\n')
            crlf[length++] = '\r';
          crlf[length++] = buffer[i];
        }
      offset += (guint64)n;
      good = mail_keep_draft_write (item->draft, lf ? crlf : buffer, lf ? length : (gsize)n, NULL);
    }
  item->whole = good && offset == end && mail_keep_draft_end (item->draft, NULL);
}

static void
compare (MailMoverRound *round, MailMoverItem *item)
{
  const MailKept *news = mail_keep_draft_kept (item->draft);
  g_autofree char *new_id = NULL;
  MailKept kept;

  if (!mail_keep_get (round->keep, news->id, &kept))
    return;
  gboolean same = kept.size == news->size
                  && memcmp (kept.digest, news->digest, MAIL_KEEP_DIGEST) == 0;
  if (same)
    {
      item->good = mail_keep_verify (round->keep, news->id);
      item->damaged = !item->good;
    }
  else
    {
      new_id = g_strdup_printf ("%s kept-%02x%02x%02x%02x%02x%02x", news->id, kept.digest[0],
                                kept.digest[1], kept.digest[2], kept.digest[3], kept.digest[4],
                                kept.digest[5]);
      item->aside = mail_keep_copy (round->keep, news->id, new_id, NULL);
    }
  mail_kept_clear (&kept);
}

/* From the thread back to the mover, which may be gone by then. */
typedef struct
{
  MailMoverRound *round;
} Message;

static void
message_free (gpointer data)
{
  g_clear_pointer (&((Message *)data)->round, mail_mover_round_free);
  g_free (data);
}

static gboolean
on_net (gpointer data)
{
  MailMoverRound *round = ((Message *)data)->round;

  if (round->mover == NULL)
    return G_SOURCE_REMOVE;
  ((Message *)data)->round = NULL;
  mail_mover_settled (round);
  return G_SOURCE_REMOVE;
}

gpointer
mail_mover_settle (gpointer data)
{
  MailMoverRound *round = data;
  g_autoptr (GPtrArray) drafts = g_ptr_array_new ();

  for (guint i = 0; i < round->items->len; i++)
    {
      MailMoverItem *item = &g_array_index (round->items, MailMoverItem, i);

      if (round->pin)
        fill_from_cache (round, item);
      if (item->whole && item->compare)
        compare (round, item);
      if (item->whole && !item->compare)
        g_ptr_array_add (drafts, item->draft);
      if (item->aside != NULL)
        g_ptr_array_add (drafts, item->aside);
    }
  mail_keep_settle (round->keep, (MailKeepDraft *const *)drafts->pdata, drafts->len);
  for (guint i = 0; i < round->items->len; i++)
    {
      MailMoverItem *item = &g_array_index (round->items, MailMoverItem, i);

      if (item->aside != NULL && mail_keep_draft_error (item->aside) != NULL)
        g_clear_pointer (&item->aside, mail_keep_draft_free);
    }
  Message *message = g_new (Message, 1);
  message->round = round;
  g_main_context_invoke_full (round->store->net, G_PRIORITY_DEFAULT, on_net, message, message_free);
  return NULL;
}
