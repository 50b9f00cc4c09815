/* SPDX-License-Identifier: MIT
 *
 * Who fetches which range of which message, and who waits for one: kept a message, under one lock.
 * Only data; nothing is fetched or woken here.
 */
#include "mail/fetch-private.h"

guint64
mail_fetch_key (guint32 content_id, guint32 uid)
{
  return (guint64)content_id << 32 | uid;
}

MailFetches *
mail_fetches_new (MailStore *store)
{
  MailFetches *fetches = g_new0 (MailFetches, 1);

  fetches->store = store;
  fetches->pending = g_hash_table_new (g_int64_hash, g_int64_equal);
  fetches->in_vain = g_hash_table_new_full (g_int64_hash, g_int64_equal, g_free, g_free);
  g_mutex_init (&fetches->lock);
  return fetches;
}

void
mail_fetches_free (MailFetches *fetches)
{
  mail_patience_end (fetches);
  g_hash_table_unref (fetches->pending);
  g_hash_table_unref (fetches->in_vain);
  g_mutex_clear (&fetches->lock);
  g_free (fetches);
}

/* --- claims, under the lock ------------------------------------------------------------------ */

/* Whether a read can be answered: who reads on behind the claimed end must hear of the true one. */
gboolean
mail_claims_has_range (MailCacheFile *file, guint64 size, guint64 offset, guint64 length)
{
  guint64 end;

  return mail_cache_file_has (file, offset, length)
         && (offset + length <= size || mail_cache_file_end (file, &end));
}

MailPending *
mail_claims_get (MailFetches *fetches, guint64 key, MailCacheFile *file, guint64 size)
{
  MailPending *pending = g_hash_table_lookup (fetches->pending, &key);

  if (pending != NULL)
    return pending;
  pending = g_new0 (MailPending, 1);
  pending->key = key;
  pending->size = size;
  pending->file = mail_cache_file_ref (file);
  pending->claims = g_array_new (FALSE, FALSE, sizeof (MailClaim));
  g_hash_table_insert (fetches->pending, &pending->key, pending);
  return pending;
}

/* Frees it when nobody fetches or waits any more. */
void
mail_claims_put (MailFetches *fetches, MailPending *pending)
{
  if (pending->claims->len > 0 || pending->waiters.length > 0)
    return;
  g_hash_table_remove (fetches->pending, &pending->key);
  mail_cache_file_unref (pending->file);
  g_array_unref (pending->claims);
  g_free (pending);
}

/* The first part of [*start, *end) that nobody fetches; FALSE when all of it is claimed. */
gboolean
mail_claims_first_free (const MailPending *pending, guint64 *start, guint64 *end)
{
  gboolean moved = TRUE;

  while (moved && *start < *end)
    {
      moved = FALSE;
      for (guint i = 0; i < pending->claims->len; i++)
        {
          const MailClaim *claim = &g_array_index (pending->claims, MailClaim, i);

          if (claim->start <= *start && *start < claim->end)
            {
              *start = claim->end;
              moved = TRUE;
            }
        }
    }
  for (guint i = 0; i < pending->claims->len; i++)
    {
      const MailClaim *claim = &g_array_index (pending->claims, MailClaim, i);

      if (claim->start > *start && claim->start < *end)
        *end = claim->start;
    }
  return *start < *end;
}

void
mail_claims_add (MailPending *pending, guint64 start, guint64 end)
{
  MailClaim claim = { start, end };

  g_array_append_val (pending->claims, claim);
}

static gboolean
claimed (const MailPending *pending, guint64 start, guint64 end)
{
  return !mail_claims_first_free (pending, &start, &end);
}

void
mail_claims_drop (MailPending *pending, guint64 start, guint64 end)
{
  for (guint i = 0; i < pending->claims->len; i++)
    {
      const MailClaim *claim = &g_array_index (pending->claims, MailClaim, i);

      if (claim->start == start && claim->end == end)
        {
          g_array_remove_index_fast (pending->claims, i);
          return;
        }
    }
}

/* Moves to woken who has what he wants; with over, also who is left without anybody fetching it. */
void
mail_claims_collect (MailPending *pending, gboolean over, GQueue *woken, GQueue *failed)
{
  for (GList *link = pending->waiters.head, *next; link != NULL; link = next)
    {
      const MailWaiter *waiter = link->data;

      next = link->next;
      if (mail_claims_has_range (pending->file, pending->size, waiter->offset, waiter->length))
        {
          g_queue_unlink (&pending->waiters, link);
          g_queue_push_tail_link (woken, link);
        }
      else if (over && !claimed (pending, waiter->offset, waiter->offset + waiter->length))
        {
          g_queue_unlink (&pending->waiters, link);
          g_queue_push_tail_link (failed, link);
        }
    }
}
