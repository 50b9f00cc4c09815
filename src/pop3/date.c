/* SPDX-License-Identifier: MIT
 *
 * Dates in mail headers. Everything here was written by strangers: words in any order are taken for
 * what they look like, and what does not add up to a date is none.
 */
#include "pop3/date.h"

#include <string.h>

/* Longer values are no dates. */
#define DATE_MAX 256

typedef struct
{
  int day, month, year, hour, minute, second;
  int zone; /* minutes east */
  gboolean has_time, has_zone;
} Date;

static const char months[] = "janfebmaraprmayjunjulaugsepoctnovdec";

static const struct
{
  const char *name;
  int minutes;
} zones[] = {
  { "est", -300 }, { "edt", -240 }, { "cst", -360 }, { "cdt", -300 }, { "mst", -420 },
  { "mdt", -360 }, { "pst", -480 }, { "pdt", -420 }, { "cet", 60 },   { "cest", 120 },
  { "met", 60 },   { "mest", 120 }, { "bst", 60 },   { "jst", 540 },
};

/* Comments nest and may quote their parentheses (RFC 5322 section 3.2.2); line ends are space. */
static gsize
without_comments (const char *text, gsize length, char *out, gsize size)
{
  gsize n = 0;
  guint depth = 0;

  for (gsize i = 0; i < length; i++)
    {
      char c = text[i];
      if (c == '\\' && depth > 0)
        i++;
      else if (c == '(')
        depth++;
      else if (c == ')' && depth > 0)
        depth--;
      else if (depth == 0)
        {
          if (n + 2 > size)
            break;
          out[n++] = g_ascii_isspace (c) || c == ',' ? ' ' : g_ascii_tolower (c);
        }
    }
  out[n] = '\0';
  return n;
}

/* At most max digits at *text; the number of digits read. */
static int
digits (const char **text, int max, int *value_out)
{
  int n = 0, value = 0;

  for (; g_ascii_isdigit (**text) && n < max; n++)
    value = value * 10 + *(*text)++ - '0';
  *value_out = value;
  return n;
}

/* "20:44", "20:44:44", "20:44:44.123" behind an hour. */
static gboolean
take_time (const char **text, int hour, Date *date)
{
  int ignored;

  date->hour = hour;
  date->second = 0;
  (*text)++;
  if (digits (text, 2, &date->minute) == 0)
    return FALSE;
  if (**text == ':')
    {
      (*text)++;
      if (digits (text, 2, &date->second) == 0)
        return FALSE;
    }
  if (**text == '.' && g_ascii_isdigit ((*text)[1]))
    {
      (*text)++;
      digits (text, 9, &ignored);
    }
  date->has_time = TRUE;
  return TRUE;
}

static gboolean
take_number (const char **text, Date *date)
{
  int value, n = digits (text, 8, &value);

  if (**text == ':' && n <= 2 && !date->has_time)
    return take_time (text, value, date);
  if (n <= 2 && date->day == 0)
    date->day = value;
  else if (date->year != 0)
    return TRUE;
  else if (n == 4)
    date->year = value;
  else if (n == 3)
    date->year = value + 1900; /* RFC 5322 section 4.3 */
  else if (n == 2 && date->month != 0)
    date->year = value < 50 ? value + 2000 : value + 1900;
  else
    return FALSE;
  return TRUE;
}

static void
take_word (const char **text, Date *date)
{
  const char *start = *text;
  gsize length;

  while (g_ascii_isalpha (**text))
    (*text)++;
  length = *text - start;
  if (date->month == 0 && length >= 3)
    for (int month = 0; month < 12; month++)
      if (strncmp (start, months + 3 * month, 3) == 0)
        {
          date->month = month + 1;
          return;
        }
  if (!date->has_time || date->has_zone)
    return;
  for (guint i = 0; i < G_N_ELEMENTS (zones); i++)
    if (strlen (zones[i].name) == length && strncmp (start, zones[i].name, length) == 0)
      {
        date->zone = zones[i].minutes;
        date->has_zone = TRUE;
      }
}

/* "+0100", "+01:00"; after a time only, because "21-11-2026" is written too. */
static void
take_zone (const char **text, Date *date)
{
  int sign = **text == '-' ? -1 : 1, hours, minutes;
  const char *at = *text + 1;

  (*text)++;
  if (!date->has_time || date->has_zone || digits (&at, 2, &hours) != 2)
    return;
  if (*at == ':')
    at++;
  if (digits (&at, 2, &minutes) != 2 || hours > 24 || minutes > 59)
    return;
  date->zone = sign * (hours * 60 + minutes);
  date->has_zone = TRUE;
  *text = at;
}

static gboolean
date_to_seconds (const Date *date, gint64 *seconds_out)
{
  static const int month_days[] = { 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
  gint64 y = date->year, era, day_of_era;
  int m = date->month, year_of_era, day_of_year;

  if (m < 1 || m > 12 || date->day < 1 || date->day > month_days[m - 1] || !date->has_time
      || y < 1970 || y > 9999 || date->hour > 24 || date->minute > 59 || date->second > 60)
    return FALSE;
  /* Days since 1970-01-01 in the Gregorian calendar, years beginning in March. */
  y -= m <= 2;
  era = y / 400;
  year_of_era = (int)(y - era * 400);
  day_of_year = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + date->day - 1;
  day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
  *seconds_out = (era * 146097 + day_of_era - 719468) * 86400 + date->hour * 3600
                 + (date->minute - date->zone) * 60 + date->second;
  return TRUE;
}

gboolean
pop3_date_parse (const char *text, gsize length, gint64 *seconds_out)
{
  char plain[DATE_MAX];
  const char *at = plain;
  Date date = { 0 };

  without_comments (text, length, plain, sizeof plain);
  while (*at != '\0')
    {
      if (g_ascii_isdigit (*at))
        {
          if (!take_number (&at, &date))
            return FALSE;
        }
      else if (g_ascii_isalpha (*at))
        take_word (&at, &date);
      else if (*at == '+' || *at == '-')
        take_zone (&at, &date);
      else
        at++;
    }
  return date_to_seconds (&date, seconds_out);
}

/* The field at the start of header, folded lines included; its length. */
static gsize
field_length (const char *header, gsize length)
{
  gsize n = 0;

  for (;;)
    {
      const char *end = memchr (header + n, '\n', length - n);
      if (end == NULL)
        return length;
      n = end - header + 1;
      if (n == length || (header[n] != ' ' && header[n] != '\t'))
        return n;
    }
}

static gboolean
field_is (const char *field, gsize length, const char *name)
{
  gsize n = strlen (name);

  if (length <= n || g_ascii_strncasecmp (field, name, n) != 0)
    return FALSE;
  while (n < length && (field[n] == ' ' || field[n] == '\t'))
    n++;
  return n < length && field[n] == ':';
}

gboolean
pop3_date_of_header (const char *header, gsize length, gint64 *seconds_out)
{
  gboolean have_date = FALSE;
  gsize n;

  for (gsize at = 0; at < length && header[at] != '\r' && header[at] != '\n'; at += n)
    {
      const char *field = header + at, *value;

      n = field_length (field, length - at);
      if (field_is (field, n, "Received"))
        {
          value = memrchr (field, ';', n);
          if (value != NULL && pop3_date_parse (value + 1, field + n - value - 1, seconds_out))
            return TRUE;
        }
      else if (!have_date && field_is (field, n, "Date"))
        {
          value = memchr (field, ':', n);
          have_date = pop3_date_parse (value + 1, field + n - value - 1, seconds_out);
        }
    }
  return have_date;
}
