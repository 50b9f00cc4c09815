/* SPDX-License-Identifier: MIT
 *
 * Flags that were changed here and are on their way: kept beside what the server last said, so that
 * a listing that arrives meanwhile neither hides them nor is lost, and so that a refused change can
 * be taken back. A change that was answered is kept until a listing begun after the answer has been
 * merged. Under the mailbox's lock.
 */
#include "mail/change-private.h"

#include <string.h>

typedef struct
{
  guint64 change;
  guint8 add, remove;
  char *add_keywords, *remove_keywords;
  gboolean answered;
  guint answered_at; /* how many listings had been begun by then */
} Delta;

typedef struct
{
  guint8 flags; /* as the server has them */
  guint32 keywords;
  GArray *deltas;
} Pending;

static void
delta_clear (gpointer data)
{
  g_free (((Delta *)data)->add_keywords);
  g_free (((Delta *)data)->remove_keywords);
}

static void
pending_free (gpointer data)
{
  g_array_unref (((Pending *)data)->deltas);
  g_free (data);
}

/* --- keywords: sets of atoms without regard to capitals (RFC 9051 2.3.2) ---------------------- */

gboolean
mail_keywords_contains (const char *keywords, const char *keyword, gsize length)
{
  while (keywords != NULL && *keywords != '\0')
    {
      gsize n = strcspn (keywords, " ");

      if (n == length && g_ascii_strncasecmp (keywords, keyword, n) == 0)
        return TRUE;
      keywords += n + strspn (keywords + n, " ");
    }
  return FALSE;
}

static gint
compare_words (gconstpointer a, gconstpointer b)
{
  return strcmp (*(const char *const *)a, *(const char *const *)b);
}

/* The words of one that are not in other. */
static char *
without (const char *one, const char *other)
{
  g_auto (GStrv) words = g_strsplit (one != NULL ? one : "", " ", -1);
  GString *left = g_string_new (NULL);

  for (guint i = 0; words[i] != NULL; i++)
    if (words[i][0] != '\0' && !mail_keywords_contains (other, words[i], strlen (words[i]))
        && !mail_keywords_contains (left->str, words[i], strlen (words[i])))
      g_string_append_printf (left, "%s%s", left->len > 0 ? " " : "", words[i]);
  return g_string_free (left, FALSE);
}

void
mail_keywords_difference (const char *old, const char *now, char **add_out, char **remove_out)
{
  *add_out = without (now, old);
  *remove_out = without (old, now);
}

char *
mail_keywords_apply (const char *keywords, const char *add, const char *remove)
{
  g_autofree char *kept = without (keywords, remove);
  g_autofree char *more = without (add, kept);
  g_autofree char *both = g_strconcat (kept, " ", more, NULL);
  g_auto (GStrv) words = g_strsplit (g_strstrip (both), " ", -1);

  qsort (words, g_strv_length (words), sizeof *words, compare_words);
  return g_strjoinv (" ", words);
}

/* --- what is pending ---------------------------------------------------------------------------
 */

static void
apply (MailMailbox *mailbox, const Delta *delta, guint8 *flags, guint32 *keywords)
{
  MailIndex *index = mailbox->store->index;

  *flags = (*flags | delta->add) & ~delta->remove;
  if (delta->add_keywords == NULL && delta->remove_keywords == NULL)
    return;
  g_autofree char *now = mail_keywords_apply (mail_index_keywords (index, *keywords),
                                              delta->add_keywords, delta->remove_keywords);
  *keywords = mail_index_keywords_id (index, now);
}

void
mail_pending_add_locked (MailMailbox *mailbox, const MailMessage *message, const MailChange *change)
{
  Delta delta = { .change = change->id,
                  .add = change->add,
                  .remove = change->remove,
                  .add_keywords = g_strdup (change->add_keywords),
                  .remove_keywords = g_strdup (change->remove_keywords) };

  if (mailbox->pending_flags == NULL)
    mailbox->pending_flags = g_hash_table_new_full (NULL, NULL, NULL, pending_free);
  gpointer key = GUINT_TO_POINTER (message->uid);
  Pending *pending = g_hash_table_lookup (mailbox->pending_flags, key);
  if (pending == NULL)
    {
      pending = g_new0 (Pending, 1);
      pending->flags = message->flags;
      pending->keywords = message->keywords;
      pending->deltas = g_array_new (FALSE, FALSE, sizeof (Delta));
      g_array_set_clear_func (pending->deltas, delta_clear);
      g_hash_table_insert (mailbox->pending_flags, key, pending);
    }
  g_array_append_val (pending->deltas, delta);
}

void
mail_pending_answer_locked (MailMailbox *mailbox, guint32 uid, guint64 change, gboolean done)
{
  Pending *pending = mailbox->pending_flags != NULL
                         ? g_hash_table_lookup (mailbox->pending_flags, GUINT_TO_POINTER (uid))
                         : NULL;

  for (guint i = 0; pending != NULL && i < pending->deltas->len; i++)
    {
      Delta *delta = &g_array_index (pending->deltas, Delta, i);

      if (delta->change != change)
        continue;
      delta->answered = done;
      delta->answered_at = mailbox->sync_started;
      if (!done)
        g_array_remove_index (pending->deltas, i);
      return;
    }
}

gboolean
mail_pending_show_locked (MailMailbox *mailbox, guint32 uid, guint8 *flags_out,
                          guint32 *keywords_out)
{
  Pending *pending = mailbox->pending_flags != NULL
                         ? g_hash_table_lookup (mailbox->pending_flags, GUINT_TO_POINTER (uid))
                         : NULL;

  if (pending == NULL)
    return FALSE;
  *flags_out = pending->flags;
  *keywords_out = pending->keywords;
  for (guint i = 0; i < pending->deltas->len; i++)
    apply (mailbox, &g_array_index (pending->deltas, Delta, i), flags_out, keywords_out);
  return TRUE;
}

gboolean
mail_pending_mark_locked (MailMailbox *mailbox, MailMessage *message)
{
  const Pending *pending = mailbox->pending_flags != NULL
                               ? g_hash_table_lookup (mailbox->pending_flags,
                                                      GUINT_TO_POINTER (message->uid))
                               : NULL;
  guint local = message->local & ~MAIL_LOCAL_ASKED;

  for (guint i = 0; pending != NULL && i < pending->deltas->len; i++)
    if (!g_array_index (pending->deltas, Delta, i).answered)
      local |= MAIL_LOCAL_ASKED;
  if (message->local == local)
    return FALSE;
  message->local = local;
  return TRUE;
}

void
mail_pending_heard_locked (MailMailbox *mailbox, guint32 uid, guint number, guint8 *flags,
                           guint32 *keywords)
{
  Pending *pending = mailbox->pending_flags != NULL
                         ? g_hash_table_lookup (mailbox->pending_flags, GUINT_TO_POINTER (uid))
                         : NULL;

  if (pending == NULL)
    return;
  pending->flags = *flags;
  pending->keywords = *keywords;
  /* Of a listing begun after the answer what it says is the truth. */
  for (guint i = pending->deltas->len; i-- > 0;)
    {
      const Delta *delta = &g_array_index (pending->deltas, Delta, i);

      if (delta->answered && delta->answered_at < number)
        g_array_remove_index (pending->deltas, i);
    }
  mail_pending_show_locked (mailbox, uid, flags, keywords);
}

void
mail_pending_prune_locked (MailMailbox *mailbox, guint number)
{
  GHashTableIter iter;
  gpointer value;

  if (mailbox->pending_flags == NULL)
    return;
  g_hash_table_iter_init (&iter, mailbox->pending_flags);
  while (g_hash_table_iter_next (&iter, NULL, &value))
    {
      Pending *pending = value;

      for (guint i = 0; i < pending->deltas->len;)
        {
          const Delta *delta = &g_array_index (pending->deltas, Delta, i);

          if (!delta->answered || delta->answered_at >= number)
            {
              i++;
              continue;
            }
          apply (mailbox, delta, &pending->flags, &pending->keywords);
          g_array_remove_index (pending->deltas, i);
        }
      if (pending->deltas->len == 0)
        g_hash_table_iter_remove (&iter);
    }
}
