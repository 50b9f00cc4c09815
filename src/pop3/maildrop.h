/* SPDX-License-Identifier: MIT
 *
 * Pop3Maildrop: what one session's UIDL and LIST said: message numbers, sizes and keys. A key is
 * what the rest of the program knows a message by: its UIDL, made fit where a server breaks the
 * rules (RFC 1939 section 7). Numbers mean nothing outside the session they came from.
 */
#pragma once

#include "mailfs/error.h"

typedef struct Pop3Maildrop Pop3Maildrop;

/* Which of several messages with one and the same UIDL is which, beyond one session: identical
 * copies may share one, and a removed first copy must not make the second take its name. */
typedef struct Pop3Labels Pop3Labels;
Pop3Labels *pop3_labels_new (void);
void pop3_labels_free (Pop3Labels *labels);
/* This key is known to have been removed by us. */
void pop3_labels_removed (Pop3Labels *labels, const char *key);

typedef struct
{
  guint32 number;
  guint64 size; /* octets as LIST says, 0: unknown */
  const char *key;
} Pop3Message;

Pop3Maildrop *pop3_maildrop_new (void);
void pop3_maildrop_free (Pop3Maildrop *maildrop);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (Pop3Maildrop, pop3_maildrop_free)

/* One line of the answer; MAIL_ERROR_PROTOCOL for nonsense. */
gboolean
pop3_maildrop_add_uidl (Pop3Maildrop *maildrop, const char *line, gsize length, GError **error);
gboolean
pop3_maildrop_add_list (Pop3Maildrop *maildrop, const char *line, gsize length, GError **error);
/* Both answers are there (have_list: LIST was not refused). MAIL_ERROR_PROTOCOL when they do not
 * name the same messages: such a listing proves nothing about what is gone. */
gboolean pop3_maildrop_finish (Pop3Maildrop *maildrop, Pop3Labels *labels, gboolean have_list,
                               GError **error);

/* After finish: labels are as good as what is known from earlier runs. With "KEY 2" known and KEY
 * not, a lone KEY is the second one, whose twin went while nobody looked. Once for each UIDL. */
void pop3_maildrop_recall (Pop3Maildrop *maildrop, Pop3Labels *labels,
                           gboolean (*is_known) (const char *key, gpointer user_data),
                           gpointer user_data);

/* After finish, in maildrop order. */
guint pop3_maildrop_length (const Pop3Maildrop *maildrop);
const Pop3Message *pop3_maildrop_get (const Pop3Maildrop *maildrop, guint index);
const Pop3Message *pop3_maildrop_find (const Pop3Maildrop *maildrop, const char *key);
