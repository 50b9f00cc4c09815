/* SPDX-License-Identifier: MIT
 *
 * Pop3Maildrop and Pop3Labels. Keys made here hold a space, which a lawful UIDL cannot: "sha256
 * HEX" stands for a UIDL that is too long or not printable, "KEY 2" for the second message with
 * KEY.
 */
#include "pop3/maildrop.h"

#include <string.h>

/* More is an attack on our memory, or nothing POP3 was made for. */
#define MESSAGES_MAX (1 << 20)
#define UIDL_MAX 70
#define LABELS_LOST 8 /* twins that may have gone while nobody looked */
#define SIZE_MAX_SHOWN ((G_GUINT64_CONSTANT (1) << 40) - 1)

struct Pop3Labels
{
  GHashTable *by_base;  /* char * -> GArray of guint32, ascending */
  GHashTable *recalled; /* bases that were compared with what is known */
};

typedef struct
{
  guint32 number;
  guint64 size;
} Listed;

struct Pop3Maildrop
{
  GStringChunk *text;
  GArray *messages; /* of Pop3Message */
  GArray *listed;   /* of Listed */
  GHashTable *by_key;
};

Pop3Labels *
pop3_labels_new (void)
{
  Pop3Labels *labels = g_new0 (Pop3Labels, 1);

  labels->by_base = g_hash_table_new_full (g_str_hash, g_str_equal, g_free,
                                           (GDestroyNotify)g_array_unref);
  labels->recalled = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);
  return labels;
}

void
pop3_labels_free (Pop3Labels *labels)
{
  g_hash_table_unref (labels->by_base);
  g_hash_table_unref (labels->recalled);
  g_free (labels);
}

/* Splits "KEY 2" into its base and 2; anything else has label 1. */
static char *
key_base (const char *key, guint32 *label_out)
{
  const char *space = strrchr (key, ' ');
  guint64 label;

  *label_out = 1;
  if (space == NULL || space == key
      || !g_ascii_string_to_unsigned (space + 1, 10, 2, G_MAXUINT32, &label, NULL))
    return g_strdup (key);
  *label_out = (guint32)label;
  return g_strndup (key, space - key);
}

void
pop3_labels_removed (Pop3Labels *labels, const char *key)
{
  guint32 label;
  g_autofree char *base = key_base (key, &label);
  GArray *known = g_hash_table_lookup (labels->by_base, base);

  for (guint i = 0; known != NULL && i < known->len; i++)
    if (g_array_index (known, guint32, i) == label)
      {
        g_array_remove_index (known, i);
        return;
      }
}

/* The labels of n messages that share base. NULL: just one, and it never had company. */
static GArray *
labels_for (Pop3Labels *labels, const char *base, guint n)
{
  GArray *known = g_hash_table_lookup (labels->by_base, base);
  guint32 next = 1;

  if (known == NULL)
    {
      if (n < 2)
        return NULL;
      known = g_array_new (FALSE, FALSE, sizeof (guint32));
      g_hash_table_insert (labels->by_base, g_strdup (base), known);
    }
  if (known->len > n)
    g_array_set_size (known, n);
  if (known->len > 0)
    next = g_array_index (known, guint32, known->len - 1) + 1;
  for (; known->len < n; next++)
    g_array_append_val (known, next);
  return known;
}

Pop3Maildrop *
pop3_maildrop_new (void)
{
  Pop3Maildrop *maildrop = g_new0 (Pop3Maildrop, 1);

  maildrop->text = g_string_chunk_new (16384);
  maildrop->messages = g_array_new (FALSE, FALSE, sizeof (Pop3Message));
  maildrop->listed = g_array_new (FALSE, FALSE, sizeof (Listed));
  maildrop->by_key = g_hash_table_new (g_str_hash, g_str_equal);
  return maildrop;
}

void
pop3_maildrop_free (Pop3Maildrop *maildrop)
{
  if (maildrop == NULL)
    return;
  g_hash_table_unref (maildrop->by_key);
  g_array_unref (maildrop->listed);
  g_array_unref (maildrop->messages);
  g_string_chunk_free (maildrop->text);
  g_free (maildrop);
}

/* A decimal at *text, clamped to max, with the spaces around it taken. */
static gboolean
take_decimal (const char **text, const char *end, guint64 max, guint64 *value_out)
{
  const char *start;
  guint64 value = 0;

  while (*text < end && **text == ' ')
    (*text)++;
  start = *text;
  for (; *text < end && g_ascii_isdigit (**text); (*text)++)
    value = value > max / 10 ? max : MIN (value * 10 + (guint64)(**text - '0'), max);
  *value_out = value;
  if (*text == start || (*text < end && **text != ' '))
    return FALSE;
  while (*text < end && **text == ' ')
    (*text)++;
  return TRUE;
}

static gboolean
take_message_number (const char **text, const char *end, guint n_so_far, guint32 *number_out,
                     GError **error)
{
  guint64 number;

  if (!take_decimal (text, end, G_MAXUINT32, &number) || number == 0 || number == G_MAXUINT32)
    {
      g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL,
                           "the server sent a listing line without a message number");
      return FALSE;
    }
  if (n_so_far >= MESSAGES_MAX)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL, "the server lists more than %d messages",
                   MESSAGES_MAX);
      return FALSE;
    }
  *number_out = (guint32)number;
  return TRUE;
}

gboolean
pop3_maildrop_add_uidl (Pop3Maildrop *maildrop, const char *line, gsize length, GError **error)
{
  const char *end = line + length;
  Pop3Message message = { 0 };
  gboolean lawful;

  if (!take_message_number (&line, end, maildrop->messages->len, &message.number, error))
    return FALSE;
  while (end > line && end[-1] == ' ')
    end--;
  if (end == line)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL, "the server gives message %u no UIDL",
                   message.number);
      return FALSE;
    }
  lawful = end - line <= UIDL_MAX;
  for (const char *at = line; lawful && at < end; at++)
    lawful = *at > ' ' && *at < 0x7f;
  if (lawful)
    message.key = g_string_chunk_insert_len (maildrop->text, line, end - line);
  else
    {
      g_autofree char *hex = g_compute_checksum_for_data (G_CHECKSUM_SHA256, (const guchar *)line,
                                                          end - line);
      g_autofree char *key = g_strconcat ("sha256 ", hex, NULL);
      message.key = g_string_chunk_insert (maildrop->text, key);
    }
  g_array_append_val (maildrop->messages, message);
  return TRUE;
}

gboolean
pop3_maildrop_add_list (Pop3Maildrop *maildrop, const char *line, gsize length, GError **error)
{
  const char *end = line + length;
  Listed listed = { 0 };

  if (!take_message_number (&line, end, maildrop->listed->len, &listed.number, error))
    return FALSE;
  /* A size that is none is as good as a wrong one: it is corrected when the message is known. */
  if (!take_decimal (&line, end, SIZE_MAX_SHOWN, &listed.size))
    listed.size = 0;
  g_array_append_val (maildrop->listed, listed);
  return TRUE;
}

static int
compare_numbers (gconstpointer a, gconstpointer b)
{
  guint32 x = *(const guint32 *)a, y = *(const guint32 *)b;

  return x < y ? -1 : x > y;
}

/* Both arrays are sorted and begin with the number. */
static gboolean
join_sizes (Pop3Maildrop *maildrop, GError **error)
{
  gboolean same = maildrop->listed->len == maildrop->messages->len;

  for (guint i = 0; same && i < maildrop->messages->len; i++)
    {
      Pop3Message *message = &g_array_index (maildrop->messages, Pop3Message, i);
      const Listed *listed = &g_array_index (maildrop->listed, Listed, i);
      same = message->number == listed->number;
      message->size = listed->size;
    }
  if (!same)
    g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL,
                         "the server's UIDL and LIST name different messages");
  return same;
}

/* Messages with one key get labels in maildrop order. */
static void
label_keys (Pop3Maildrop *maildrop, Pop3Labels *labels)
{
  g_autoptr (GHashTable) counts = g_hash_table_new (g_str_hash, g_str_equal);
  g_autoptr (GHashTable) used = g_hash_table_new (g_str_hash, g_str_equal);

  for (guint i = 0; i < maildrop->messages->len; i++)
    {
      gpointer key = (gpointer)g_array_index (maildrop->messages, Pop3Message, i).key;
      guint n = GPOINTER_TO_UINT (g_hash_table_lookup (counts, key));
      g_hash_table_insert (counts, key, GUINT_TO_POINTER (n + 1));
    }
  for (guint i = 0; i < maildrop->messages->len; i++)
    {
      Pop3Message *message = &g_array_index (maildrop->messages, Pop3Message, i);
      gpointer base = (gpointer)message->key;
      guint n = GPOINTER_TO_UINT (g_hash_table_lookup (counts, base));
      guint nth = GPOINTER_TO_UINT (g_hash_table_lookup (used, base));
      GArray *known = labels_for (labels, base, n);
      guint32 label = known != NULL ? g_array_index (known, guint32, nth) : 1;

      g_hash_table_insert (used, base, GUINT_TO_POINTER (nth + 1));
      if (label > 1)
        {
          g_autofree char *key = g_strdup_printf ("%s %u", message->key, label);
          message->key = g_string_chunk_insert (maildrop->text, key);
        }
    }
}

gboolean
pop3_maildrop_finish (Pop3Maildrop *maildrop, Pop3Labels *labels, gboolean have_list,
                      GError **error)
{
  g_array_sort (maildrop->messages, compare_numbers);
  g_array_sort (maildrop->listed, compare_numbers);
  for (guint i = 1; i < maildrop->messages->len; i++)
    if (g_array_index (maildrop->messages, Pop3Message, i).number
        == g_array_index (maildrop->messages, Pop3Message, i - 1).number)
      {
        g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_PROTOCOL,
                             "the server's UIDL names a message twice");
        return FALSE;
      }
  if (have_list && !join_sizes (maildrop, error))
    return FALSE;
  label_keys (maildrop, labels);
  for (guint i = 0; i < maildrop->messages->len; i++)
    {
      Pop3Message *message = &g_array_index (maildrop->messages, Pop3Message, i);
      g_hash_table_insert (maildrop->by_key, (gpointer)message->key, message);
    }
  g_array_set_size (maildrop->listed, 0);
  return TRUE;
}

static char *
make_key (const char *base, guint32 label)
{
  return label > 1 ? g_strdup_printf ("%s %u", base, label) : g_strdup (base);
}

/* The labels of n messages that share base, those that are known first. */
static GArray *
known_labels (const char *base, guint n, gboolean (*is_known) (const char *key, gpointer user_data),
              gpointer user_data)
{
  GArray *known = g_array_new (FALSE, FALSE, sizeof (guint32));
  guint32 next = 1;

  for (guint32 label = 1; label <= n + LABELS_LOST && known->len < n; label++)
    {
      g_autofree char *key = make_key (base, label);

      if (is_known (key, user_data))
        g_array_append_val (known, label);
    }
  if (known->len > 0)
    next = g_array_index (known, guint32, known->len - 1) + 1;
  for (; known->len < n; next++)
    g_array_append_val (known, next);
  return known;
}

void
pop3_maildrop_recall (Pop3Maildrop *maildrop, Pop3Labels *labels,
                      gboolean (*is_known) (const char *key, gpointer user_data),
                      gpointer user_data)
{
  g_autoptr (GHashTable) used = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);

  for (guint i = 0; i < maildrop->messages->len; i++)
    {
      Pop3Message *message = &g_array_index (maildrop->messages, Pop3Message, i);
      guint32 label;
      g_autofree char *base = key_base (message->key, &label);
      GArray *group = g_hash_table_lookup (labels->by_base, base);
      guint nth = GPOINTER_TO_UINT (g_hash_table_lookup (used, base));

      if (nth == 0 && !g_hash_table_contains (labels->recalled, base)
          && (group != NULL || !is_known (message->key, user_data)))
        {
          group = known_labels (base, group != NULL ? group->len : 1, is_known, user_data);
          if (group->len > 1 || g_array_index (group, guint32, 0) != 1)
            g_hash_table_replace (labels->by_base, g_strdup (base), group);
          else
            g_clear_pointer (&group, g_array_unref);
          g_hash_table_add (labels->recalled, g_strdup (base));
        }
      if (group == NULL || nth >= group->len)
        continue;
      g_hash_table_replace (used, g_strdup (base), GUINT_TO_POINTER (nth + 1));
      g_autofree char *key = make_key (base, g_array_index (group, guint32, nth));
      message->key = g_string_chunk_insert (maildrop->text, key);
    }
  g_hash_table_remove_all (maildrop->by_key);
  for (guint i = 0; i < maildrop->messages->len; i++)
    {
      Pop3Message *message = &g_array_index (maildrop->messages, Pop3Message, i);
      g_hash_table_insert (maildrop->by_key, (gpointer)message->key, message);
    }
}

guint
pop3_maildrop_length (const Pop3Maildrop *maildrop)
{
  return maildrop->messages->len;
}

const Pop3Message *
pop3_maildrop_get (const Pop3Maildrop *maildrop, guint index)
{
  return &g_array_index (maildrop->messages, Pop3Message, index);
}

const Pop3Message *
pop3_maildrop_find (const Pop3Maildrop *maildrop, const char *key)
{
  return g_hash_table_lookup (maildrop->by_key, key);
}
