/* SPDX-License-Identifier: MIT
 *
 * Log and counters. A line goes to stderr while in the foreground, to syslog afterwards. Control
 * characters are escaped and a line is cut at 1 KiB, so that no server text reaches a terminal raw.
 * Any thread.
 */
#pragma once

#include <glib.h>

typedef enum
{
  MAIL_LOG_ERROR,
  MAIL_LOG_WARNING,
  MAIL_LOG_INFO,
  MAIL_LOG_TRACE, /* protocol trace, only with -v */
} MailLogLevel;

/* Messages above level are dropped. syslog: TRUE once in the background. */
void mail_log_init (MailLogLevel level, gboolean to_syslog);
gboolean mail_log_enabled (MailLogLevel level);
void mail_log (MailLogLevel level, const char *format, ...) G_GNUC_PRINTF (2, 3);
#define mail_log_error(...) mail_log (MAIL_LOG_ERROR, __VA_ARGS__)
#define mail_log_warning(...) mail_log (MAIL_LOG_WARNING, __VA_ARGS__)
#define mail_log_info(...) mail_log (MAIL_LOG_INFO, __VA_ARGS__)

/* A protocol trace line, direction 'C' or 'S'. The caller has already redacted secrets. */
void mail_log_trace (const char *peer, char direction, const char *data, gssize length);

/* A printable copy of server text: control and invalid bytes as \xNN, cut at max bytes with "...". */
char *mail_log_escape (const char *data, gssize length, gsize max);

typedef enum
{
  MAIL_COUNTER_REQUESTS,    /* FUSE requests answered */
  MAIL_COUNTER_HITS,        /* reads answered from the cache */
  MAIL_COUNTER_MISSES,      /* reads that needed the server */
  MAIL_COUNTER_BYTES_IN,    /* bytes received from the server, after TLS and inflate */
  MAIL_COUNTER_BYTES_OUT,   /* bytes sent to the server, before TLS and deflate */
  MAIL_COUNTER_COMMANDS,    /* protocol commands sent */
  MAIL_COUNTER_ROUND_TRIPS, /* times a connection went from idle to waiting for an answer */
  MAIL_COUNTER_CONNECTS,    /* connections that reached login */
  MAIL_COUNTER_RECONNECTS,  /* connections made again after one was lost */
  MAIL_COUNTER_EVICTIONS,   /* cache files removed for the budget */
  MAIL_COUNTER_AHEAD,       /* messages that the kernel was handed before it asked */
  MAIL_N_COUNTERS
} MailCounter;

void mail_counter_add (MailCounter counter, guint64 n);
guint64 mail_counter_get (MailCounter counter);
const char *mail_counter_name (MailCounter counter); /* "requests", "hits", "bytes_in" … */
