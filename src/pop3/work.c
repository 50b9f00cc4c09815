/* SPDX-License-Identifier: MIT
 *
 * What is done inside one session: reading the maildrop, dates for a listing, messages, removal.
 * Each command under way is a unit that knows whom it is for. Answers come in the order of
 * commands, so one unit at a time receives data.
 *
 * The window: without PIPELINING one command; with it as many as keep the line busy for about a
 * quarter of a second, so that a reader who comes meanwhile does not wait longer than that.
 */
#include "pop3/backend-private.h"

#include "pop3/date.h"
#include "mailfs/log.h"

#include <string.h>

#define WINDOW_UNITS 4096
#define WINDOW_MIN (64 * 1024)
#define WINDOW_MAX (8 * 1024 * 1024)
#define WINDOW_DATES (2 * 1024 * 1024) /* a first listing should not crawl */
#define RATE_INTERVAL (50 * 1000)
#define UNKNOWN_SIZE 16384 /* what a message may take whose size was not listed */
#define HEADER_SIZE 2048   /* what TOP may take */
#define HEADER_MAX 65536   /* of which so much is looked at */
#define LINE_LENGTH 60     /* of a body, with its end, as a rule at least */
#define HEAD_LENGTH_MAX (1024 * 1024)

/* Values of dates that are no dates. */
#define DATE_KNOWN G_MININT64 /* the store has this message and its date */
#define DATE_WANTED (G_MININT64 + 1)
#define DATE_NONE (G_MININT64 + 2) /* the header told none, or was not to be had */

struct Pop3Unit
{
  Pop3Backend *self;
  guint64 estimate;
  /* For a fetch. */
  Pop3Request *request; /* NULL: it is gone */
  guint item;
  guint64 position;   /* bytes of the message so far */
  guint64 listed;     /* size */
  gboolean top;       /* the message comes by TOP: never whole */
  gboolean head_only; /* and what follows the header is cut off */
  guint head_match;   /* of CRLF CRLF; 4: the header is over */
  /* For a date. */
  guint index;
  GByteArray *header;
};

static void
unit_end (Pop3Unit *unit)
{
  Pop3Backend *self = unit->self;

  self->n_running--;
  self->bytes_running -= unit->estimate;
  if (self->n_running == 0)
    self->rate_since = 0;
  if (unit->header != NULL)
    g_byte_array_unref (unit->header);
  g_free (unit);
  /* Before the window is empty, or the line would be: and not after each answer. */
  if (self->n_running * 2 <= self->n_filled)
    pop3_schedule_now (self);
}

/* n_lines: of TOP. */
static Pop3Unit *
unit_begin (Pop3Backend *self, Pop3Verb verb, guint32 number, guint32 n_lines, guint64 estimate,
            const Pop3CommandFuncs *funcs)
{
  Pop3Session *session = pop3_connection_session (self->connection);
  Pop3Unit *unit = g_new0 (Pop3Unit, 1);

  unit->self = self;
  unit->estimate = estimate;
  if (verb == POP3_VERB_TOP ? !pop3_session_send_top (session, number, n_lines, funcs, unit)
                            : !pop3_session_send (session, verb, number, funcs, unit))
    {
      g_free (unit);
      return NULL;
    }
  self->n_running++;
  self->bytes_running += estimate;
  if (self->rate_since == 0)
    {
      self->rate_since = g_get_monotonic_time ();
      self->rate_bytes = 0;
    }
  return unit;
}

static void
count_bytes (Pop3Backend *self, gsize length)
{
  gint64 now;

  self->rate_bytes += length;
  if (self->rate_bytes < 16384)
    return;
  now = g_get_monotonic_time ();
  if (now - self->rate_since < RATE_INTERVAL)
    return;
  self->rate = (self->rate + self->rate_bytes * G_USEC_PER_SEC / (guint64)(now - self->rate_since))
               / 2;
  self->rate_bytes = 0;
  self->rate_since = now;
}

static gboolean
window_open (Pop3Backend *self, guint64 at_least)
{
  guint caps = pop3_session_caps (pop3_connection_session (self->connection));

  if (self->n_running == 0)
    return TRUE;
  if ((caps & POP3_CAP_PIPELINING) == 0 || self->n_running >= WINDOW_UNITS)
    return FALSE;
  return self->bytes_running < CLAMP (self->rate / 4, at_least, WINDOW_MAX);
}

/* --- the maildrop ----------------------------------------------------------------------------- */

/* Nonsense in a listing: this session is of no use, nor may it go on for ever. */
static void
give_up (Pop3Backend *self, GError *take_error)
{
  pop3_session_lost (pop3_connection_session (self->connection), take_error);
  g_error_free (take_error);
}

static void
uidl_line (gpointer user_data, const char *line, gsize length)
{
  Pop3Backend *self = user_data;
  GError *error = NULL;

  if (self->reading != NULL && !pop3_maildrop_add_uidl (self->reading, line, length, &error))
    give_up (self, error);
}

static void
list_line (gpointer user_data, const char *line, gsize length)
{
  Pop3Backend *self = user_data;
  GError *error = NULL;

  if (self->reading != NULL && !pop3_maildrop_add_list (self->reading, line, length, &error))
    give_up (self, error);
}

static void
uidl_done (gpointer user_data, const char *text, const GError *error)
{
  Pop3Backend *self = user_data;

  if (error == NULL
      || pop3_session_state (pop3_connection_session (self->connection)) == POP3_STATE_ENDED)
    return;
  if (error->code == MAIL_ERROR_BUSY)
    self->reading_error = g_error_copy (error);
  else
    self->reading_error = g_error_new (
        MAIL_ERROR, MAIL_ERROR_CANNOT,
        "the server has no UIDL, so its messages cannot be told apart from one session to the "
        "next; it cannot be mounted (%s)",
        error->message);
}

static void
list_done (gpointer user_data, const char *text, const GError *error)
{
  Pop3Backend *self = user_data;
  Pop3Session *session = pop3_connection_session (self->connection);
  g_autoptr (Pop3Maildrop) maildrop = g_steal_pointer (&self->reading);
  GError *failed = g_steal_pointer (&self->reading_error);

  if (pop3_session_state (session) == POP3_STATE_ENDED)
    g_clear_error (&failed);
  else if (failed != NULL || !pop3_maildrop_finish (maildrop, self->labels, error == NULL, &failed))
    give_up (self, failed);
  else
    {
      self->maildrop = g_steal_pointer (&maildrop);
      pop3_schedule (self);
    }
}

void
pop3_work_read_maildrop (Pop3Backend *self)
{
  static const Pop3CommandFuncs uidl = { uidl_line, NULL, uidl_done };
  static const Pop3CommandFuncs list = { list_line, NULL, list_done };
  Pop3Session *session = pop3_connection_session (self->connection);

  self->reading = pop3_maildrop_new ();
  pop3_session_send (session, POP3_VERB_UIDL, 0, &uidl, self);
  pop3_session_send (session, POP3_VERB_LIST, 0, &list, self);
  pop3_connection_flush (self->connection);
}

/* --- listing ---------------------------------------------------------------------------------- */

static void
top_data (gpointer user_data, const guint8 *data, gsize length)
{
  Pop3Unit *unit = user_data;

  count_bytes (unit->self, length);
  if (unit->header->len < HEADER_MAX)
    g_byte_array_append (unit->header, data,
                         (guint)MIN (length, (gsize)(HEADER_MAX - unit->header->len)));
}

static void
top_done (gpointer user_data, const char *text, const GError *error)
{
  Pop3Unit *unit = user_data;
  Pop3Backend *self = unit->self;
  gboolean lost = pop3_session_state (pop3_connection_session (self->connection))
                  == POP3_STATE_ENDED;

  if (!lost && self->dates != NULL)
    {
      gint64 *date = &g_array_index (self->dates, gint64, unit->index);
      if (self->top == POP3_UNKNOWN)
        self->top = error == NULL ? POP3_YES : POP3_NO;
      if (error != NULL
          || !pop3_date_of_header ((const char *)unit->header->data, unit->header->len, date))
        *date = DATE_NONE;
      self->n_dates--;
    }
  unit_end (unit);
}

static gboolean
is_known (const char *key, gpointer user_data)
{
  MailSyncSink *sink = user_data;

  return sink->is_known (sink, key);
}

void
pop3_work_begin_sync (Pop3Backend *self, Pop3Request *take_request)
{
  guint n = pop3_maildrop_length (self->maildrop);
  MailSyncSink *sink = take_request->sync_sink;

  self->sync = take_request;
  self->synced = TRUE;
  if (!take_request->begun)
    sink->begin (sink, POP3_UIDVALIDITY, TRUE);
  take_request->begun = TRUE;
  pop3_maildrop_recall (self->maildrop, self->labels, is_known, sink);
  self->dates = g_array_sized_new (FALSE, FALSE, sizeof (gint64), n);
  self->next_date = 0;
  self->n_dates = 0;
  for (guint i = 0; i < n; i++)
    {
      const Pop3Message *message = pop3_maildrop_get (self->maildrop, i);
      gint64 date = sink->is_known (sink, message->key) ? DATE_KNOWN : DATE_WANTED;
      g_array_append_val (self->dates, date);
    }
}

/* All dates are there. */
static void
finish_sync (Pop3Backend *self)
{
  Pop3Request *request = g_steal_pointer (&self->sync);
  MailSyncSink *sink = request->sync_sink;
  g_autoptr (GArray) dates = g_steal_pointer (&self->dates);
  gint64 now = g_get_real_time () / G_USEC_PER_SEC;

  for (guint i = 0; i < dates->len; i++)
    {
      const Pop3Message *message = pop3_maildrop_get (self->maildrop, i);
      gint64 date = g_array_index (dates, gint64, i);
      MailMessageInfo info = {
        .size = message->size,
        .internaldate = date > DATE_NONE ? date : now,
        .remote_id = message->key,
      };
      sink->message (sink, &info);
    }
  request->n_messages = dates->len;
  pop3_schedule_well (self);
  pop3_schedule (self);
  pop3_request_finish (request, NULL);
}

/* A server whose CAPA did not say is asked once whether it knows TOP. Without pipelining a date
 * would cost a round trip each: then the time at which a message was first seen has to do. */
static gboolean
may_ask_dates (Pop3Backend *self)
{
  guint caps = pop3_session_caps (pop3_connection_session (self->connection));

  if (self->top == POP3_UNKNOWN && (caps & POP3_CAP_KNOWN) != 0)
    self->top = (caps & POP3_CAP_TOP) != 0 ? POP3_YES : POP3_NO;
  return self->top != POP3_NO && (caps & POP3_CAP_PIPELINING) != 0;
}

static void
fill_dates (Pop3Backend *self)
{
  static const Pop3CommandFuncs funcs = { NULL, top_data, top_done };
  gboolean may = may_ask_dates (self);

  for (; self->next_date < self->dates->len; self->next_date++)
    {
      gint64 *date = &g_array_index (self->dates, gint64, self->next_date);
      Pop3Unit *unit;

      if (*date == DATE_KNOWN)
        continue;
      if (!may)
        {
          *date = DATE_NONE;
          continue;
        }
      if (!window_open (self, WINDOW_DATES) || (self->top == POP3_UNKNOWN && self->n_dates > 0))
        return;
      unit = unit_begin (self, POP3_VERB_TOP,
                         pop3_maildrop_get (self->maildrop, self->next_date)->number, 0,
                         HEADER_SIZE, &funcs);
      if (unit == NULL)
        return;
      unit->index = self->next_date;
      unit->header = g_byte_array_new ();
      self->n_dates++;
    }
  if (self->n_dates == 0)
    finish_sync (self);
}

/* --- messages --------------------------------------------------------------------------------- */

/* How much of data belongs to the header and the empty line behind it. */
static gsize
header_part (Pop3Unit *unit, const guint8 *data, gsize length)
{
  static const char end[] = "\r\n\r\n";
  gsize n;

  for (n = 0; n < length && unit->head_match < 4; n++)
    {
      if (data[n] == end[unit->head_match])
        unit->head_match++;
      else
        unit->head_match = data[n] == '\r' ? 1 : 0;
    }
  return n;
}

static void
fetch_data (gpointer user_data, const guint8 *data, gsize length)
{
  Pop3Unit *unit = user_data;
  Pop3Item *item;
  guint64 skip;

  count_bytes (unit->self, length);
  if (unit->request == NULL)
    return;
  item = &g_array_index (unit->request->items, Pop3Item, unit->item);
  if (unit->head_only)
    length = header_part (unit, data, length);
  /* What an earlier try has delivered before its connection broke. */
  skip = item->delivered > unit->position ? item->delivered - unit->position : 0;
  unit->position += length;
  if (skip >= length)
    return;
  item->delivered = unit->position;
  unit->request->fetch_sink->data (unit->request->fetch_sink, item->uid,
                                   unit->position - length + skip, data + skip, length - skip);
}

/* Ends one message of a fetch, and with the last one the fetch. */
static void
finish_item (Pop3Backend *self, Pop3Request *request, guint index, guint64 length, gboolean at_end,
             const GError *error)
{
  Pop3Item *item = &g_array_index (request->items, Pop3Item, index);

  item->state = POP3_ITEM_FINISHED;
  request->n_left--;
  request->n_lost = 0;
  request->fetch_sink->message (request->fetch_sink, item->uid, length, at_end, error);
  if (request->n_left > 0)
    return;
  g_queue_remove (&self->fetches[request->priority], request);
  pop3_request_finish (request, NULL);
  pop3_schedule (self);
}

static void
fetch_done (gpointer user_data, const char *text, const GError *error)
{
  Pop3Unit *unit = user_data;
  Pop3Backend *self = unit->self;
  Pop3Request *request = unit->request;
  g_autoptr (GError) empty = NULL;

  /* With the session lost the item waits again: pop3_work_lost sees to it. */
  if (request == NULL
      || pop3_session_state (pop3_connection_session (self->connection)) == POP3_STATE_ENDED)
    {
      unit_end (unit);
      return;
    }
  pop3_schedule_well (self);
  if (error != NULL && error->code == MAIL_ERROR_UNSUPPORTED && !self->utf8)
    {
      /* RFC 6856: again, in a session that takes UTF-8 in headers. */
      self->utf8 = TRUE;
      self->renew = TRUE;
      g_array_index (request->items, Pop3Item, unit->item).state = POP3_ITEM_WAITING;
      request->next = 0;
    }
  else if (error != NULL && unit->top
           && (pop3_session_caps (pop3_connection_session (self->connection)) & POP3_CAP_TOP) == 0)
    {
      /* It was worth a try; the whole message holds the header too. */
      self->top = POP3_NO;
      g_array_index (request->items, Pop3Item, unit->item).state = POP3_ITEM_WAITING;
      request->next = 0;
    }
  else
    {
      if (error == NULL && unit->position == 0 && (unit->listed > 0 || unit->top))
        empty = g_error_new_literal (MAIL_ERROR, MAIL_ERROR_FAILED,
                                     "the server sent an empty message");
      finish_item (self, request, unit->item, unit->position, error == NULL && !unit->top,
                   error != NULL ? error : empty);
    }
  unit_end (unit);
}

/* Starts what the window has room for. FALSE: it is full. */
static gboolean
fill_fetch (Pop3Backend *self, Pop3Request *request)
{
  static const Pop3CommandFuncs funcs = { NULL, fetch_data, fetch_done };
  gboolean head = request->part == MAIL_PART_HEAD && self->top != POP3_NO;
  guint64 length = head && request->length != MAIL_TO_END ? MIN (request->length, HEAD_LENGTH_MAX)
                                                          : 0;

  for (; request->next < request->items->len; request->next++)
    {
      Pop3Item *item = &g_array_index (request->items, Pop3Item, request->next);
      const Pop3Message *message;
      guint64 size;
      Pop3Unit *unit;

      if (item->state != POP3_ITEM_WAITING)
        continue;
      if (!window_open (self, WINDOW_MIN))
        return FALSE;
      message = pop3_maildrop_find (self->maildrop, item->remote_id);
      if (message == NULL)
        {
          g_autoptr (GError) gone = g_error_new_literal (
              MAIL_ERROR, MAIL_ERROR_GONE, "the message is no longer in the maildrop");
          gboolean last = request->n_left == 1;
          finish_item (self, request, request->next, 0, FALSE, gone);
          if (last)
            return TRUE;
          continue;
        }
      size = message->size > 0 ? message->size : UNKNOWN_SIZE;
      unit = unit_begin (self, head ? POP3_VERB_TOP : POP3_VERB_RETR, message->number,
                         (guint32)((length + LINE_LENGTH - 1) / LINE_LENGTH),
                         head ? HEADER_SIZE + length : size, &funcs);
      if (unit == NULL)
        return FALSE;
      unit->request = request;
      unit->item = request->next;
      unit->listed = message->size;
      unit->top = head;
      unit->head_only = head && length == 0;
      unit->head_match = 2; /* a message may begin with the empty line */
      item->state = POP3_ITEM_RUNNING;
    }
  return TRUE;
}

void
pop3_work_fill (Pop3Backend *self, gboolean draining)
{
  gboolean room = TRUE;

  may_ask_dates (self);
  for (guint priority = 0; priority < 2 && room; priority++)
    {
      for (GList *link = self->fetches[priority].head; link != NULL && room && !draining;)
        {
          GList *next = link->next;
          room = fill_fetch (self, link->data);
          link = next;
        }
      if (priority == MAIL_PRIORITY_INTERACTIVE && self->sync != NULL)
        fill_dates (self);
    }
  self->n_filled = self->n_running;
  pop3_connection_flush (self->connection);
}

/* --- removal, and the end of a session -------------------------------------------------------- */

static void
dele_done (gpointer user_data, const char *text, const GError *error)
{
  Pop3Request *request = user_data;

  if (error != NULL && error->code != MAIL_ERROR_GONE && request->error == NULL)
    request->error = g_error_copy (error);
}

static void
end_remove (Pop3Backend *self, Pop3Request *request)
{
  g_autoptr (GError) error = g_steal_pointer (&request->error);

  for (guint i = 0; error == NULL && request->remote_ids[i] != NULL; i++)
    pop3_labels_removed (self->labels, request->remote_ids[i]);
  pop3_request_finish (request, error);
}

/* RFC 1939 section 6: only now are messages removed, and only if this is +OK. */
static void
quit_done (gpointer user_data, const char *text, const GError *error)
{
  Pop3Backend *self = user_data;
  gboolean lost = pop3_session_state (pop3_connection_session (self->connection))
                  == POP3_STATE_ENDED;
  Pop3Request *request;

  if (error == NULL)
    pop3_schedule_well (self);
  while ((request = g_queue_pop_head (&self->removing)) != NULL)
    {
      if (error != NULL)
        g_clear_error (&request->error);
      if (error != NULL)
        request->error = g_error_new (MAIL_ERROR, lost ? MAIL_ERROR_CONNECTION : MAIL_ERROR_FAILED,
                                      lost ? "it is not known whether the message was removed: %s"
                                           : "not removed: %s",
                                      error->message);
      end_remove (self, request);
    }
}

void
pop3_work_quit (Pop3Backend *self)
{
  static const Pop3CommandFuncs quit = { NULL, NULL, quit_done };

  self->quitting = TRUE;
  pop3_session_send (pop3_connection_session (self->connection), POP3_VERB_QUIT, 0, &quit, self);
  pop3_connection_flush (self->connection);
}

void
pop3_work_begin_remove (Pop3Backend *self)
{
  static const Pop3CommandFuncs dele = { NULL, NULL, dele_done };
  Pop3Session *session = pop3_connection_session (self->connection);
  g_autoptr (GHashTable) sent = g_hash_table_new (NULL, NULL);
  Pop3Request *request;

  while ((request = g_queue_pop_head (&self->removes)) != NULL)
    {
      g_queue_push_tail (&self->removing, request);
      for (guint i = 0; request->remote_ids[i] != NULL; i++)
        {
          const Pop3Message *message = pop3_maildrop_find (self->maildrop, request->remote_ids[i]);
          /* What is not there is gone already. */
          if (message == NULL || !g_hash_table_add (sent, (gpointer)message))
            continue;
          mail_log_info ("removing message %s from the server", message->key);
          pop3_session_send (session, POP3_VERB_DELE, message->number, &dele, request);
        }
    }
  if (g_hash_table_size (sent) > 0)
    {
      self->committing = TRUE;
      pop3_work_quit (self);
      return;
    }
  pop3_schedule_well (self);
  while ((request = g_queue_pop_head (&self->removing)) != NULL)
    end_remove (self, request);
  pop3_schedule (self);
}

/* --- loss ------------------------------------------------------------------------------------- */

/* TRUE: it may wait for another session. */
static gboolean
survives (Pop3Request *request, const GError *error)
{
  return error == NULL || (error->code == MAIL_ERROR_CONNECTION && ++request->n_lost < 2);
}

static void
lose_fetch (Pop3Backend *self, Pop3Request *request, const GError *error)
{
  gboolean running = FALSE;

  for (guint i = 0; i < request->next; i++)
    {
      Pop3Item *item = &g_array_index (request->items, Pop3Item, i);
      if (item->state == POP3_ITEM_RUNNING)
        {
          item->state = POP3_ITEM_WAITING;
          running = TRUE;
        }
    }
  request->next = 0;
  if (!running || survives (request, error))
    return;
  g_queue_remove (&self->fetches[request->priority], request);
  pop3_request_finish (request, error);
}

void
pop3_work_lost (Pop3Backend *self, const GError *error)
{
  g_clear_pointer (&self->dates, g_array_unref);
  g_clear_pointer (&self->reading, pop3_maildrop_free);
  g_clear_pointer (&self->maildrop, pop3_maildrop_free);
  g_clear_error (&self->reading_error);
  self->top = POP3_UNKNOWN;
  self->rate_since = 0;
  for (guint priority = 0; priority < 2; priority++)
    for (GList *link = self->fetches[priority].head; link != NULL;)
      {
        GList *next = link->next;
        lose_fetch (self, link->data, error);
        link = next;
      }
  if (self->sync != NULL)
    {
      Pop3Request *request = g_steal_pointer (&self->sync);
      if (survives (request, error))
        g_queue_push_head (&self->syncs, request);
      else
        pop3_request_finish (request, error);
    }
}
