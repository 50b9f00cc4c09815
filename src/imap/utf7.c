/* SPDX-License-Identifier: MIT
 *
 * Modified UTF-7: printable ASCII stands for itself, "&-" for '&', anything else is UTF-16 in a
 * base64 of its own between '&' and '-'. Pure functions, any thread. Decoding is made strict by the
 * simplest proof there is: what does not encode back to the same bytes is refused.
 */
#include "imap/utf7.h"

#include <string.h>

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,";

static gboolean
is_direct (gunichar c)
{
  return c >= 0x20 && c <= 0x7e;
}

/* Bits on their way into base64. */
typedef struct
{
  GString *out;
  guint32 bits;
  guint n_bits;
} Encoder;

static void
put_unit (Encoder *encoder, guint16 unit)
{
  encoder->bits = encoder->bits << 16 | unit;
  encoder->n_bits += 16;
  while (encoder->n_bits >= 6)
    {
      encoder->n_bits -= 6;
      g_string_append_c (encoder->out, digits[encoder->bits >> encoder->n_bits & 0x3f]);
    }
}

static void
end_run (Encoder *encoder)
{
  if (encoder->n_bits > 0)
    g_string_append_c (encoder->out, digits[encoder->bits << (6 - encoder->n_bits) & 0x3f]);
  g_string_append_c (encoder->out, '-');
  encoder->bits = encoder->n_bits = 0;
}

char *
imap_utf7_encode (const char *utf8)
{
  Encoder encoder = { 0 };
  gboolean inside = FALSE;

  if (!g_utf8_validate (utf8, -1, NULL))
    return NULL;
  encoder.out = g_string_new (NULL);
  for (const char *at = utf8; *at != '\0'; at = g_utf8_next_char (at))
    {
      gunichar c = g_utf8_get_char (at);

      if (is_direct (c))
        {
          if (inside)
            end_run (&encoder);
          inside = FALSE;
          g_string_append_c (encoder.out, (char)c);
          if (c == '&')
            g_string_append_c (encoder.out, '-');
          continue;
        }
      if (!inside)
        g_string_append_c (encoder.out, '&');
      inside = TRUE;
      if (c >= 0x10000)
        {
          put_unit (&encoder, (guint16)(0xd800 + ((c - 0x10000) >> 10)));
          put_unit (&encoder, (guint16)(0xdc00 + ((c - 0x10000) & 0x3ff)));
        }
      else
        put_unit (&encoder, (guint16)c);
    }
  if (inside)
    end_run (&encoder);
  return g_string_free (encoder.out, FALSE);
}

/* Appends one UTF-16 unit; *high holds the first half of a pair that waits for its second. */
static gboolean
take_unit (GString *out, guint16 unit, guint16 *high)
{
  if (*high != 0)
    {
      if (unit < 0xdc00 || unit > 0xdfff)
        return FALSE;
      g_string_append_unichar (out, 0x10000 + ((gunichar)(*high - 0xd800) << 10) + (unit - 0xdc00));
      *high = 0;
      return TRUE;
    }
  if (unit >= 0xd800 && unit <= 0xdbff)
    {
      *high = unit;
      return TRUE;
    }
  if (unit == 0 || (unit >= 0xdc00 && unit <= 0xdfff))
    return FALSE;
  g_string_append_unichar (out, unit);
  return TRUE;
}

/* at: behind the '&'. Returns where the '-' stands, or NULL. */
static const char *
decode_run (GString *out, const char *at)
{
  guint32 bits = 0;
  guint n_bits = 0;
  guint16 high = 0;

  for (; *at != '-'; at++)
    {
      const char *digit = *at == '\0' ? NULL : strchr (digits, *at);

      if (digit == NULL)
        return NULL;
      bits = bits << 6 | (guint32)(digit - digits);
      n_bits += 6;
      if (n_bits >= 16)
        {
          n_bits -= 16;
          if (!take_unit (out, (guint16)(bits >> n_bits), &high))
            return NULL;
        }
    }
  return high == 0 ? at : NULL;
}

char *
imap_utf7_decode (const char *name)
{
  g_autoptr (GString) out = g_string_new (NULL);
  g_autofree char *again = NULL;

  for (const char *at = name; *at != '\0'; at++)
    {
      if (!is_direct ((guchar)*at))
        return NULL;
      if (*at != '&')
        g_string_append_c (out, *at);
      else if (at[1] == '-')
        {
          g_string_append_c (out, '&');
          at++;
        }
      else if ((at = decode_run (out, at + 1)) == NULL)
        return NULL;
    }
  again = imap_utf7_encode (out->str);
  if (again == NULL || strcmp (again, name) != 0)
    return NULL;
  return g_strdup (out->str);
}
