/* SPDX-License-Identifier: MIT
 *
 * ImapCommand: one IMAP command as pieces of text and literals, built once, sent piece by piece,
 * and sendable again after a reconnect. Knows how to quote and when a literal must wait for the
 * server, nothing of connections. Owned by one thread at a time (the net thread).
 *
 * Nothing adds spaces by itself:
 *   command = imap_command_new ("UID MOVE ");
 *   imap_command_set (command, ranges, n);
 *   imap_command_text (command, " ");
 *   imap_command_astring (command, mailbox);
 *
 * Errors of building (a NUL in a name, a keyword that is no atom) stick to the command and come out
 * of imap_command_check, and again of imap_command_peek, so that nothing half right is ever sent.
 */
#pragma once

#include "mailfs/uidset.h"

typedef struct ImapCommand ImapCommand;

/* How far a command line may grow by sets; RFC 7162 2.1.2 asks servers to take 8192. */
#define IMAP_LINE_MAX 8000

/* text is ours and trusted, without tag: "CAPABILITY", "UID FETCH ". */
ImapCommand *imap_command_new (const char *text);
void imap_command_free (ImapCommand *command); /* NULL is fine; fds stay the caller's */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (ImapCommand, imap_command_free)

/* Verbatim, ours and trusted: never anything from a user or a server. */
void imap_command_text (ImapCommand *command, const char *text);
void imap_command_number (ImapCommand *command, guint64 number);
/* Must be an atom (flag keyword, mechanism name); anything else is MAIL_ERROR_INVALID. */
void imap_command_atom (ImapCommand *command, const char *atom);
/* As a bare word where that is beyond doubt, quoted where possible, else as a literal. string is
 * any text without NUL; the _len form refuses a NUL inside with MAIL_ERROR_INVALID. Mailbox names
 * are given in their wire form. */
void imap_command_astring (ImapCommand *command, const char *string);
void imap_command_astring_len (ImapCommand *command, const char *string, gsize length);
/* Like astring but always a `string`: quoted or literal, never bare (LIST patterns, ID values). */
void imap_command_string (ImapCommand *command, const char *string);
/* NULL: NIL, else as string. */
void imap_command_nstring (ImapCommand *command, const char *string);
/* A secret: as astring, but the trace shows "***" and the bytes are wiped when freed. */
void imap_command_secret (ImapCommand *command, const char *string);
/* Verbatim text that is a secret (base64 of a SASL initial response). */
void imap_command_secret_text (ImapCommand *command, const char *text);
void imap_command_set (ImapCommand *command, const MailUidRange *ranges, guint n_ranges);
/* "(\Seen $Work)"; flags are MAIL_FLAG_*, keywords space-separated or NULL. */
void imap_command_flags (ImapCommand *command, guint8 flags, const char *keywords);
/* A quoted RFC 9051 date-time in UTC; years outside 0001..9999 are brought inside. */
void imap_command_date_time (ImapCommand *command, gint64 epoch);
/* A literal; data is copied. */
void imap_command_literal (ImapCommand *command, const void *data, gsize length);
/* A literal of [offset, offset + length) of fd, read with pread while being sent. fd must stay open
 * until the command is freed. */
void imap_command_literal_fd (ImapCommand *command, int fd, guint64 offset, guint64 length);

/* FALSE with the first error of building. */
gboolean imap_command_check (ImapCommand *command, GError **error);

/* --- sending --- */

typedef enum
{
  IMAP_LITERALS_SYNC,  /* {n}: every literal waits for a continuation */
  IMAP_LITERALS_MINUS, /* LITERAL-: {n+} up to 4096 bytes */
  IMAP_LITERALS_PLUS,  /* LITERAL+: {n+} always */
} ImapLiteralMode;

typedef enum
{
  IMAP_EMIT_DATA,  /* data and length are set */
  IMAP_EMIT_WAIT,  /* a synchronizing literal: nothing more before imap_command_continue */
  IMAP_EMIT_DONE,  /* all of it was taken, CRLF included */
  IMAP_EMIT_ERROR, /* error is set. When anything was taken already the connection must be dropped
                    */
} ImapEmit;

/* (Re)starts at the first byte. tag is copied. */
void imap_command_start (ImapCommand *command, const char *tag, ImapLiteralMode mode);
/* The next bytes to write; the same again until imap_command_advance. Valid until the next call of
 * any function on the command. */
ImapEmit
imap_command_peek (ImapCommand *command, const guint8 **data, gsize *length, GError **error);
/* n bytes of what peek gave were written. */
void imap_command_advance (ImapCommand *command, gsize n);
/* A continuation arrived. FALSE when none was awaited: the server is out of step. */
gboolean imap_command_continue (ImapCommand *command);
gboolean imap_command_is_waiting (ImapCommand *command);
/* How many literals have been taken whole; for APPEND: from n on, item n - 1 may be stored. */
guint imap_command_n_literals_sent (ImapCommand *command);
/* All was taken, the last CRLF included. */
gboolean imap_command_is_sent (ImapCommand *command);
/* About how many bytes it puts on the wire, tag excluded. */
guint64 imap_command_length (ImapCommand *command);

/* For the trace: one line with the tag, secrets as "***", bulky literals as "{1234}". Unescaped
 * (mail_log_trace does that); the caller's. */
char *imap_command_describe (ImapCommand *command);

/* --- sets on lines of bounded length --- */

/* How many of the ranges, from the first on, fit into max_bytes when formatted; at least 1 when
 * there is one. Loop over the ranges with it to split a long set over several commands. */
guint imap_command_fit_ranges (const MailUidRange *ranges, guint n_ranges, gsize max_bytes);
