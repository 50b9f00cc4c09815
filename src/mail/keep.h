/* SPDX-License-Identifier: MIT
 *
 * MailKeep: messages whose only copy is here, on disk to stay. One file a message in a directory
 * that is no cache: nothing in it is ever thrown away but by the user's rm. A file is the message
 * itself behind one more header field, which says by which id the server knew it, when it came, how
 * long it is and its SHA-256; so the directory needs no index, and any mail program can read the
 * files.
 *
 * Writing is a draft, which becomes a kept message in three steps (write, settle, adopt), between
 * any of which the program may die. Any thread; locks inside, but for a draft, which one thread
 * uses at a time. Knows no server; what is brought here and when is mover.c.
 */
#pragma once

#include "mailfs/error.h"

#define MAIL_KEEP_DIGEST 32

typedef struct MailKeep MailKeep;
typedef struct MailKeepDraft MailKeepDraft;

typedef struct
{
  char *id;                 /* the server's, opaque */
  guint32 uidvalidity, uid; /* what it was called when it came: a wish, should the index be lost */
  gint64 date;              /* as shown first, seconds since the epoch */
  guint64 size;             /* bytes of the message */
  guint8 digest[MAIL_KEEP_DIGEST];
} MailKept;
void mail_kept_clear (MailKept *kept);

/* create: make dir now; without it a directory that is not there is made with the first draft. what
 * names the account, for people who look into it. NULL: it cannot be used, or another program does.
 */
MailKeep *mail_keep_open (const char *dir, const char *what, gboolean create, GError **error);
void mail_keep_close (MailKeep *keep); /* NULL is fine */

guint mail_keep_length (MailKeep *keep);
gboolean mail_keep_has (MailKeep *keep, const char *id);
/* Kept, and the server was not seen to have it too. */
gboolean mail_keep_is_only_here (MailKeep *keep, const char *id);
/* The server has these and no others of what is kept; a set of char *. */
void mail_keep_set_elsewhere (MailKeep *keep, GHashTable *ids);
/* The server no longer has this one. */
void mail_keep_set_only_here (MailKeep *keep, const char *id);
/* A copy; FALSE when it is not kept. */
gboolean mail_keep_get (MailKeep *keep, const char *id, MailKept *kept_out);
/* All, in order of uid: GArray of MailKept, freed with its elements by g_array_unref. */
GArray *mail_keep_list (MailKeep *keep);
/* Fewer than length only at the end. -1 with MAIL_ERROR_GONE: not kept (any more). */
gssize mail_keep_read (MailKeep *keep, const char *id, guint64 offset, void *buffer, gsize length,
                       GError **error);
/* The local copy goes. TRUE also when there was none. */
gboolean mail_keep_remove (MailKeep *keep, const char *id, GError **error);

/* A draft of a message; file FALSE: its bytes are only counted and digested. */
MailKeepDraft *mail_keep_draft_new (MailKeep *keep, const char *id, guint32 uidvalidity,
                                    guint32 uid, gint64 date, gboolean file, GError **error);
void mail_keep_draft_free (MailKeepDraft *draft); /* what was not adopted leaves nothing behind */
gboolean
mail_keep_draft_write (MailKeepDraft *draft, const void *data, gsize length, GError **error);
/* All bytes are there. */
gboolean mail_keep_draft_end (MailKeepDraft *draft, GError **error);
const MailKept *mail_keep_draft_kept (const MailKeepDraft *draft); /* size and digest after end */
/* Blocking: on the disk under its final name, the directory too, and read back. A draft that failed
 * has its error set and is not to be adopted. */
void mail_keep_settle (MailKeep *keep, MailKeepDraft *const *drafts, guint n_drafts);
const GError *mail_keep_draft_error (const MailKeepDraft *draft);
/* Settled without an error: from now on it is kept, and the server has it too. */
void mail_keep_adopt (MailKeep *keep, MailKeepDraft *draft);
/* Blocking: a draft, ended, of the kept message id under another id; NULL when it cannot be read.
 */
MailKeepDraft *mail_keep_copy (MailKeep *keep, const char *id, const char *new_id, GError **error);
/* Blocking: whether its bytes are still what they were when it was kept. */
gboolean mail_keep_verify (MailKeep *keep, const char *id);

/* failpoint.c: for tests, dies at a named place (MAILFS_FAILPOINT=name:count). */
void mail_failpoint (const char *name);
