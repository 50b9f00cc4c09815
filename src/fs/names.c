/* SPDX-License-Identifier: MIT
 *
 * Names: how mailboxes, messages and flags are spelled where the user sees them. Pure functions,
 * any thread. Every mailbox has one name and no two share one; a name once shown stays what it is,
 * so the rules here cannot be changed without moving people's files.
 */
#include "fs/names.h"

#include <stdlib.h>
#include <string.h>

/* A shortened name keeps so much of the whole one: room is left for "%~" and the digest. */
#define SHORT_PREFIX 200
#define DIGEST_DIGITS 16

/* --- small matchers ------------------------------------------------------------------------- */

/* Decimal digits of a 32-bit number: exactly `width` of them, or, width 0, without leading zeros.
 * *text is moved behind them. */
static gboolean
read_number (const char **text, guint width, guint32 *value_out)
{
  const char *p = *text;
  guint64 value = 0;
  guint n = 0;

  for (; g_ascii_isdigit (p[n]) && n <= 10; n++)
    value = value * 10 + (guint64)(p[n] - '0');
  if (n == 0 || n > 10 || value > G_MAXUINT32)
    return FALSE;
  if (width > 0 ? n != width : n > 1 && p[0] == '0')
    return FALSE;
  *text = p + n;
  *value_out = (guint32)value;
  return TRUE;
}

static gsize
count_digits (const char *text)
{
  return strspn (text, "0123456789");
}

static gboolean
has_alnum_tail (const char *text, gsize length)
{
  if (strlen (text) != length)
    return FALSE;
  for (; *text; text++)
    if (!g_ascii_isalnum (*text))
      return FALSE;
  return TRUE;
}

/* Wider than fs_names_parse_message: whatever a user would take for a message. */
static gboolean
looks_like_message (const char *text)
{
  if (g_str_has_prefix (text, "pop-"))
    return strspn (text + 4, "0123456789abcdef") == DIGEST_DIGITS
           && strcmp (text + 4 + DIGEST_DIGITS, ".eml") == 0;

  if (count_digits (text) != 10 || text[10] != '.')
    return FALSE;
  text += 11;
  gsize n = count_digits (text);
  return n > 0 && strcmp (text + n, ".eml") == 0;
}

static gboolean
is_reserved (const char *text, MailLayout layout)
{
  if (layout == MAIL_LAYOUT_MAILDIR
      && (!strcmp (text, "cur") || !strcmp (text, "new") || !strcmp (text, "tmp")))
    return TRUE;
  return text[0] == '.' || looks_like_message (text);
}

static void
append_digest (GString *to, const char *text)
{
  g_autofree char *digest = g_compute_checksum_for_string (G_CHECKSUM_SHA256, text, -1);

  g_string_append_len (to, digest, DIGEST_DIGITS);
}

/* --- mailboxes ------------------------------------------------------------------------------ */

/* How many bytes of valid UTF-8 stand at text; 0: the first byte begins none. */
static gsize
utf8_length (const char *text)
{
  gsize n = (gsize)(g_utf8_skip[(guchar)*text]);

  for (gsize i = 1; i < n; i++)
    if (((guchar)text[i] & 0xc0) != 0x80)
      return 0; /* the NUL at the end included */
  return g_utf8_validate_len (text, n, NULL) ? n : 0;
}

static void
append_escaped (GString *to, guchar byte)
{
  g_string_append_printf (to, "%%%02X", byte);
}

static void
shorten (GString *name)
{
  g_autoptr (GString) tail = g_string_new ("%~");
  gsize cut = 0;

  append_digest (tail, name->str);
  for (gsize next = 0; next <= SHORT_PREFIX;)
    {
      cut = next;
      next += name->str[next] == '%' ? 3 : utf8_length (name->str + next);
    }
  g_string_truncate (name, cut);
  g_string_append_len (name, tail->str, (gssize)tail->len);
}

char *
fs_names_escape_part (const char *text, gboolean raw, MailLayout layout)
{
  GString *name = g_string_sized_new (strlen (text) + 16);
  const char *p = text;

  if (!*text)
    g_string_append_c (name, '%');
  if (is_reserved (text, layout))
    append_escaped (name, (guchar)*p++);
  while (*p)
    {
      guchar byte = (guchar)*p;
      gsize length = byte < 0x80 || raw ? 1 : utf8_length (p);

      if (length > 1)
        g_string_append_len (name, p, (gssize)length);
      else if (byte < 0x20 || byte >= 0x7f || byte == '/' || byte == '%' || (raw && byte == '&'))
        append_escaped (name, byte);
      else
        g_string_append_c (name, (char)byte);
      p += MAX (length, 1);
    }
  if (name->len > FS_NAMES_MAX)
    shorten (name);
  return g_string_free (name, FALSE);
}

/* NULL when a '%' is not followed by two digits, or stands for NUL. */
static char *
decode_percent (const char *name)
{
  g_autoptr (GString) text = g_string_sized_new (strlen (name));

  for (const char *p = name; *p; p++)
    {
      if (*p != '%')
        {
          g_string_append_c (text, *p);
          continue;
        }
      int high = g_ascii_xdigit_value (p[1]);
      int low = high < 0 ? -1 : g_ascii_xdigit_value (p[2]);
      if (low < 0 || (high == 0 && low == 0))
        return NULL;
      g_string_append_c (text, (char)(high << 4 | low));
      p += 2;
    }
  return g_string_free (g_steal_pointer (&text), FALSE);
}

char *
fs_names_unescape_part (const char *name, MailLayout layout, GError **error)
{
  if (strlen (name) > FS_NAMES_MAX)
    {
      g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_NAME, "the mailbox name is too long");
      return NULL;
    }

  g_autofree char *text = decode_percent (name);
  if (text && *text && g_utf8_validate (text, -1, NULL))
    {
      g_autofree char *canonical = fs_names_escape_part (text, FALSE, layout);
      if (strcmp (canonical, name) == 0)
        return g_steal_pointer (&text);
    }
  g_set_error (error, MAIL_ERROR, MAIL_ERROR_INVALID, "no mailbox can be shown as \"%s\"", name);
  return NULL;
}

/* --- messages ------------------------------------------------------------------------------- */

void
fs_names_message (char *buffer, guint32 uid, guint32 uidvalidity)
{
  g_snprintf (buffer, FS_NAMES_MESSAGE_SIZE, "%010u.%u.eml", uid, uidvalidity);
}

/* "UID.UIDVALIDITY", which both layouts begin with. */
static gboolean
read_stem (const char **name, guint32 *uid_out, guint32 *uidvalidity_out)
{
  guint32 uid, uidvalidity;

  if (!read_number (name, 10, &uid) || uid == 0 || *(*name)++ != '.'
      || !read_number (name, 0, &uidvalidity))
    return FALSE;
  if (uid_out)
    *uid_out = uid;
  if (uidvalidity_out)
    *uidvalidity_out = uidvalidity;
  return TRUE;
}

gboolean
fs_names_parse_message (const char *name, guint32 *uid_out, guint32 *uidvalidity_out)
{
  guint32 uid, uidvalidity;

  if (!read_stem (&name, &uid, &uidvalidity) || strcmp (name, ".eml") != 0)
    return FALSE;
  if (uid_out)
    *uid_out = uid;
  if (uidvalidity_out)
    *uidvalidity_out = uidvalidity;
  return TRUE;
}

void
fs_names_pop (char *buffer, const char *remote_id)
{
  g_autoptr (GString) name = g_string_new ("pop-");

  append_digest (name, remote_id);
  g_string_append (name, ".eml");
  g_strlcpy (buffer, name->str, FS_NAMES_MESSAGE_SIZE);
}

static gboolean
has_word (const char *words, const char *word)
{
  gsize length = strlen (word);

  for (const char *p = words; p && *p; p += strspn (p, " "))
    {
      gsize n = strcspn (p, " ");
      if (n == length && g_ascii_strncasecmp (p, word, n) == 0)
        return TRUE;
      p += n;
    }
  return FALSE;
}

/* In ASCII order, as Maildir wants the letters. P is the keyword $Forwarded. */
static const struct
{
  char letter;
  guint8 flag;
} maildir_letters[] = {
  { 'D', MAIL_FLAG_DRAFT },    { 'F', MAIL_FLAG_FLAGGED }, { 'P', 0 },
  { 'R', MAIL_FLAG_ANSWERED }, { 'S', MAIL_FLAG_SEEN },    { 'T', MAIL_FLAG_DELETED },
};

char *
fs_names_maildir (guint32 uid, guint32 uidvalidity, guint64 size, guint8 flags,
                  const char *keywords)
{
  char letters[G_N_ELEMENTS (maildir_letters) + 1];
  guint n = 0;

  for (guint i = 0; i < G_N_ELEMENTS (maildir_letters); i++)
    if (maildir_letters[i].flag ? flags & maildir_letters[i].flag
                                : has_word (keywords, "$Forwarded"))
      letters[n++] = maildir_letters[i].letter;
  letters[n] = '\0';
  return g_strdup_printf ("%010u.%u,S=%" G_GUINT64_FORMAT ":2,%s", uid, uidvalidity, size, letters);
}

gboolean
fs_names_maildir_differ_in_size (const char *name, const char *other)
{
  const char *size = strstr (name, ",S="), *other_size = strstr (other, ",S=");

  if (size == NULL || other_size == NULL || size - name != other_size - other
      || strncmp (name, other, (gsize)(size - name)) != 0)
    return FALSE;
  size += strlen (",S=");
  other_size += strlen (",S=");
  return strcmp (size + count_digits (size), other_size + count_digits (other_size)) == 0;
}

char *
fs_names_maildir_base (const char *name)
{
  const char *info = strstr (name, ":2,");

  return info != NULL && info != name ? g_strndup (name, info - name) : g_strdup (name);
}

void
fs_names_parse_maildir_info (const char *name, guint8 *flags_out, gboolean *forwarded_out,
                             gboolean *has_info_out)
{
  const char *info = strchr (name, ':');
  gboolean forwarded = FALSE;
  guint8 flags = 0;

  if (info && g_str_has_prefix (info, ":2,"))
    for (const char *p = info + 3; *p; p++)
      for (guint i = 0; i < G_N_ELEMENTS (maildir_letters); i++)
        if (*p == maildir_letters[i].letter)
          {
            flags |= maildir_letters[i].flag;
            forwarded |= maildir_letters[i].flag == 0;
          }
  if (flags_out)
    *flags_out = flags;
  if (forwarded_out)
    *forwarded_out = forwarded;
  if (has_info_out)
    *has_info_out = info != NULL;
}

gboolean
fs_names_parse_maildir (const char *name, guint32 *uid_out, guint32 *uidvalidity_out,
                        guint8 *flags_out, gboolean *forwarded_out, gboolean *has_info_out)
{
  guint32 uid, uidvalidity;

  if (!read_stem (&name, &uid, &uidvalidity))
    return FALSE;
  while (name[0] == ',' && (name[1] == 'S' || name[1] == 'W') && name[2] == '=')
    {
      gsize n = count_digits (name + 3);
      if (n == 0)
        return FALSE;
      name += 3 + n;
    }
  if (*name != '\0' && *name != ':')
    return FALSE;
  if (uid_out)
    *uid_out = uid;
  if (uidvalidity_out)
    *uidvalidity_out = uidvalidity;
  fs_names_parse_maildir_info (name, flags_out, forwarded_out, has_info_out);
  return TRUE;
}

/* --- names of files being written ------------------------------------------------------------ */

/* Vim tries whether it may create files here: 4913, then 123 more until one is free. */
static gboolean
is_vim_probe (const char *name)
{
  guint32 number;

  return read_number (&name, 0, &number) && *name == '\0' && number >= 4913
         && (number - 4913) % 123 == 0 && number < 4913 + 100 * 123;
}

gboolean
fs_names_is_temporary (const char *name)
{
  /* .tmp and .part: what many a program calls its unfinished file. Taking a name for temporary that
   * was meant to stay costs the user a rename; the opposite costs a half-written message on the
   * server, therefore these count too. The leading dot covers rsync, .swp, .DS_Store and GIO. */
  static const char *const suffixes[] = { "~", ".swp", ".swx", ".swo", ".part", ".tmp" };

  if (name[0] == '.')
    return TRUE;
  for (guint i = 0; i < G_N_ELEMENTS (suffixes); i++)
    if (g_str_has_suffix (name, suffixes[i]))
      return TRUE;

  gsize length = strlen (name);
  if (length > 1 && name[0] == '#' && name[length - 1] == '#')
    return TRUE; /* Emacs saves by itself */
  if (g_str_has_prefix (name, "sed") && has_alnum_tail (name + 3, 6))
    return TRUE; /* sed -i */
  const char *tail = g_strrstr (name, ".eml.");
  if (tail && tail > name && has_alnum_tail (tail + 5, 6))
    return TRUE; /* mkstemp beside the final name, as GLib and rsync --temp-dir do */
  return is_vim_probe (name);
}

/* --- flags ---------------------------------------------------------------------------------- */

static const struct
{
  const char *word;
  guint8 flag;
} system_flags[] = {
  { "\\Answered", MAIL_FLAG_ANSWERED },
  { "\\Deleted", MAIL_FLAG_DELETED },
  { "\\Draft", MAIL_FLAG_DRAFT },
  { "\\Flagged", MAIL_FLAG_FLAGGED },
  { "\\Recent", 0 },
  { "\\Seen", MAIL_FLAG_SEEN },
};

static int
compare_words (gconstpointer a, gconstpointer b)
{
  return strcmp (*(const char *const *)a, *(const char *const *)b);
}

/* Sorts words and joins them; each word once in any capitals, since IMAP's keywords have none. */
static char *
join_sorted (GPtrArray *words)
{
  g_autoptr (GHashTable) seen = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);
  GString *text = g_string_new (NULL);

  g_ptr_array_sort (words, compare_words);
  for (guint i = 0; i < words->len; i++)
    {
      const char *word = g_ptr_array_index (words, i);
      if (!g_hash_table_add (seen, g_ascii_strdown (word, -1)))
        continue;
      if (text->len > 0)
        g_string_append_c (text, ' ');
      g_string_append (text, word);
    }
  return g_string_free (text, FALSE);
}

char *
fs_names_flags_text (guint8 flags, const char *keywords)
{
  g_auto (GStrv) split = g_strsplit (keywords ? keywords : "", " ", -1);
  g_autoptr (GPtrArray) words = g_ptr_array_new ();

  for (guint i = 0; i < G_N_ELEMENTS (system_flags); i++)
    if (flags & system_flags[i].flag)
      g_ptr_array_add (words, (gpointer)system_flags[i].word);
  for (guint i = 0; split[i]; i++)
    if (*split[i])
      g_ptr_array_add (words, split[i]);
  return join_sorted (words);
}

static gboolean
find_system_flag (const char *word, guint8 *flag_out)
{
  for (guint i = 0; i < G_N_ELEMENTS (system_flags); i++)
    if (g_ascii_strcasecmp (word, system_flags[i].word) == 0)
      {
        *flag_out = system_flags[i].flag;
        return TRUE;
      }
  return FALSE;
}

/* RFC 9051: flag-keyword is an atom. */
static gboolean
is_atom (const char *word)
{
  for (const char *p = word; *p; p++)
    if ((guchar)*p <= 0x20 || (guchar)*p >= 0x7f || strchr ("(){%*\"\\]", *p))
      return FALSE;
  return *word != '\0';
}

gboolean
fs_names_parse_flags (const char *text, gsize length, guint8 *flags_out, char **keywords_out,
                      GError **error)
{
  if (length == 0)
    text = ""; /* may be NULL */
  else if (text[length - 1] == '\0')
    length--; /* setfattr's hexadecimal values and some libraries count it in */
  if (memchr (text, 0, length))
    {
      g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_INVALID, "a NUL byte among the flags");
      return FALSE;
    }

  g_autofree char *copy = g_strndup (text, length);
  g_auto (GStrv) split = g_strsplit_set (copy, " \t\r\n", -1);
  g_autoptr (GPtrArray) words = g_ptr_array_new ();
  guint8 flags = 0;

  for (guint i = 0; split[i]; i++)
    {
      guint8 flag;

      if (!*split[i])
        continue;
      if (find_system_flag (split[i], &flag))
        flags |= flag;
      else if (is_atom (split[i]))
        g_ptr_array_add (words, split[i]);
      else
        {
          g_set_error (error, MAIL_ERROR, MAIL_ERROR_INVALID, "no flag of IMAP: \"%s\"", split[i]);
          return FALSE;
        }
    }
  *flags_out = flags;
  *keywords_out = join_sorted (words);
  return TRUE;
}

char *
fs_names_set_forwarded (const char *keywords, gboolean forwarded)
{
  g_auto (GStrv) words = g_strsplit (keywords != NULL ? keywords : "", " ", -1);
  GString *out = g_string_new (NULL);

  for (guint i = 0; words[i] != NULL; i++)
    if (words[i][0] != '\0' && g_ascii_strcasecmp (words[i], "$Forwarded") != 0)
      g_string_append_printf (out, "%s%s", out->len > 0 ? " " : "", words[i]);
  /* '$' sorts before every letter, so the set stays sorted. */
  if (forwarded)
    g_string_prepend (out, out->len > 0 ? "$Forwarded " : "$Forwarded");
  return g_string_free (out, FALSE);
}
