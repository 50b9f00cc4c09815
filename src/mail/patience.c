/* SPDX-License-Identifier: MIT
 *
 * How long a reader waits: `timeout` from when his operation began or from when anything last
 * moved, however often and on however many connections it is tried meanwhile. Who has lost patience
 * leaves; what he asked for is still fetched, and cached if it comes. Net thread.
 */
#include "mail/fetch-private.h"

#include "mailfs/log.h"

#define LOOK_MS 100
#define LATE_LOOK_MS                                                                               \
  1000 /* then it is we who were slow, and the answer may be waiting to be read */
#define PROGRESS_BYTES 4096 /* fewer are no progress */
#define SAME_READ_MS 1000   /* the kernel asks for the page itself when its read-ahead failed */
#define IN_VAIN_MANY 64     /* then those of long ago are forgotten */

void
mail_patience_moved (MailFetches *fetches, gsize n_bytes)
{
  fetches->moved_bytes += n_bytes;
  if (fetches->moved_bytes < PROGRESS_BYTES)
    return;
  fetches->moved_bytes = 0;
  fetches->moved_at = g_get_monotonic_time ();
}

/* What moves besides messages that are read: one that is sent; and with POP3, where everything
 * comes one after the other, whatever is before them. */
static void
count_other_bytes (MailFetches *fetches)
{
  guint64 out = mail_counter_get (MAIL_COUNTER_BYTES_OUT);
  guint64 in = mail_counter_get (MAIL_COUNTER_BYTES_IN);

  if (out - fetches->bytes_out >= PROGRESS_BYTES
      || (in - fetches->bytes_in >= PROGRESS_BYTES
          && (mail_store_caps (fetches->store) & MAIL_CAP_REMOTE_IDS) != 0))
    mail_patience_moved (fetches, PROGRESS_BYTES);
  fetches->bytes_out = out;
  fetches->bytes_in = in;
}

/* --- who gave up ------------------------------------------------------------------------------ */

static gboolean
is_over (gpointer key, gpointer value, gpointer now)
{
  return *(const gint64 *)now - *(const gint64 *)value > SAME_READ_MS * 1000;
}

void
mail_patience_lost (MailFetches *fetches, guint64 key)
{
  gint64 now = g_get_monotonic_time ();

  if (g_hash_table_size (fetches->in_vain) >= IN_VAIN_MANY)
    g_hash_table_foreach_remove (fetches->in_vain, is_over, &now);
  g_hash_table_replace (fetches->in_vain, g_memdup2 (&key, sizeof key),
                        g_memdup2 (&now, sizeof now));
}

void
mail_fetches_answered (MailFetches *fetches)
{
  g_mutex_lock (&fetches->lock);
  g_hash_table_remove_all (fetches->in_vain);
  g_mutex_unlock (&fetches->lock);
}

static void
set_late (MailFetches *fetches, GError **error)
{
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_TIMED_OUT, "no answer within %u s",
               fetches->store->options.timeout);
}

gboolean
mail_patience_is_lost (MailFetches *fetches, guint64 key, gint64 since, GError **error)
{
  gint64 now = g_get_monotonic_time ();
  const gint64 *when;
  gboolean lost;

  g_mutex_lock (&fetches->lock);
  when = g_hash_table_lookup (fetches->in_vain, &key);
  lost = when != NULL && since > *when && !is_over (NULL, (gpointer)when, &now);
  g_mutex_unlock (&fetches->lock);
  if (lost)
    set_late (fetches, error);
  return lost;
}

/* --- looking ---------------------------------------------------------------------------------- */

/* Lock held. */
static void
collect_late (MailFetches *fetches, MailPending *pending, gint64 before, GQueue *late)
{
  for (GList *link = pending->waiters.head, *next; link != NULL; link = next)
    {
      const MailWaiter *waiter = link->data;

      next = link->next;
      if (MAX (waiter->since, fetches->moved_at) > before)
        continue;
      g_queue_unlink (&pending->waiters, link);
      g_queue_push_tail_link (late, link);
      mail_patience_lost (fetches, pending->key);
    }
}

static gboolean
look (gpointer data)
{
  MailFetches *fetches = data;
  gint64 now = g_get_monotonic_time ();
  gint64 before = now - fetches->store->options.timeout * G_USEC_PER_SEC;
  GQueue late = G_QUEUE_INIT;
  gboolean waiting = FALSE;
  GHashTableIter iter;
  MailPending *pending;

  count_other_bytes (fetches);
  if (now - fetches->looked_at > LATE_LOOK_MS * 1000)
    fetches->moved_at = now;
  fetches->looked_at = now;
  g_mutex_lock (&fetches->lock);
  g_hash_table_iter_init (&iter, fetches->pending);
  while (g_hash_table_iter_next (&iter, NULL, (gpointer *)&pending))
    {
      collect_late (fetches, pending, before, &late);
      waiting |= pending->waiters.length > 0;
    }
  fetches->watched = waiting;
  g_mutex_unlock (&fetches->lock);
  if (!waiting)
    g_clear_pointer (&fetches->patience, g_source_unref);
  if (late.length > 0)
    {
      g_autoptr (GError) error = NULL;

      set_late (fetches, &error);
      mail_store_wake_all (&late, error);
    }
  return waiting ? G_SOURCE_CONTINUE : G_SOURCE_REMOVE;
}

static gboolean
begin (gpointer data)
{
  MailFetches *fetches = data;

  mail_patience_end (fetches);
  fetches->looked_at = g_get_monotonic_time ();
  fetches->bytes_out = mail_counter_get (MAIL_COUNTER_BYTES_OUT);
  fetches->bytes_in = mail_counter_get (MAIL_COUNTER_BYTES_IN);
  fetches->patience = g_timeout_source_new (LOOK_MS);
  g_source_set_callback (fetches->patience, look, fetches, NULL);
  g_source_attach (fetches->patience, fetches->store->net);
  return G_SOURCE_REMOVE;
}

void
mail_patience_begin (MailFetches *fetches)
{
  gboolean first;

  if (fetches->store->options.timeout == 0)
    return;
  g_mutex_lock (&fetches->lock);
  first = !fetches->watched;
  fetches->watched = TRUE;
  g_mutex_unlock (&fetches->lock);
  if (first)
    mail_store_invoke (fetches->store, begin, fetches);
}

void
mail_patience_end (MailFetches *fetches)
{
  if (fetches->patience == NULL)
    return;
  g_source_destroy (fetches->patience);
  g_clear_pointer (&fetches->patience, g_source_unref);
}
