/* SPDX-License-Identifier: MIT
 *
 * MailIndex: what we know of the account, on disk: mailboxes, messages, names users gave. SQLite in
 * WAL mode. Writing happens behind, in order, in one writer thread, in large transactions; reading
 * is done by the caller's thread. A lost tail (kill -9) costs another listing, never correctness,
 * because a mailbox's messages and its sync state are written in one transaction.
 * A corrupt or foreign database is detected, thrown away and begun anew (the caller lists again).
 */
#pragma once

#include "mailfs/backend.h"

typedef struct MailIndex MailIndex;

/* 32 bytes a message; sorted by uid in arrays. */
typedef struct
{
  guint32 uid;
  guint32 keywords;         /* id from mail_index_keywords_id; 0: none */
  guint64 modseq;
  guint64 size : 40;        /* bytes on the wire; what the server claimed until MAIL_LOCAL_EXACT */
  guint64 flags : 8;        /* MailFlags */
  guint64 local : 16;       /* MailLocalFlags */
  gint64 internaldate : 34; /* seconds since the epoch, UTC: years 1698 to 2242, clamped */
  guint64 changed : 30;     /* last change of flags or name, seconds since 2020-01-01 UTC; 0: never */
} MailMessage;
G_STATIC_ASSERT (sizeof (MailMessage) == 32);

typedef enum
{
  MAIL_LOCAL_EXACT = 1 << 0, /* size was seen, not only claimed */
  MAIL_LOCAL_OLD = 1 << 1,   /* a Maildir reader moved it from new to cur */
  MAIL_LOCAL_NAMED = 1 << 2, /* has a name given by a user in the name table */
  MAIL_LOCAL_HIDDEN = 1 << 3,/* removed here, still on a server that cannot expunge one message */
  MAIL_LOCAL_ASKED = 1 << 4, /* its flags are as asked for here; the server has not answered yet */
} MailLocalFlags;

typedef struct
{
  guint32 id;         /* the directory; never reused, >= 16 */
  guint32 content_id; /* this UIDVALIDITY's messages; from the same numbers, never reused */
  char *name;         /* the backend's identifier; NULL for a directory that only holds others */
  char *path;         /* escaped path below the mount point, '/' between components; unique */
  char *special_use;  /* or NULL */
  guint flags;        /* MailMailboxFlags */
  MailMailboxStatus status; /* as of the last complete sync; uidvalidity 0: never listed */
} MailIndexMailbox;

/* dir must exist (0700) and be locked by the caller. account_key names what the index is for
 * (host, user, root); a database with another one is thrown away. rebuilt_out (may be NULL): TRUE
 * when there was something that had to be thrown away. */
MailIndex *mail_index_open (const char *dir, const char *account_key, gboolean *rebuilt_out,
                            GError **error);
/* Writes what is queued, then closes. */
void mail_index_close (MailIndex *index);

/* A number never handed out before by this index, not even before a crash. Any thread. */
guint32 mail_index_new_id (MailIndex *index);

/* Small permanent values ("rights of mailbox 17"); NULL value deletes. Queued. get reads what was
 * flushed. The result is the caller's. */
void mail_index_set_meta (MailIndex *index, const char *key, const char *value);
char *mail_index_get_meta (MailIndex *index, const char *key);

/* Keyword sets are interned: a sorted space-separated string <-> a small number. Any thread. The
 * returned string lives as long as the index. Id 0 is "". */
guint32 mail_index_keywords_id (MailIndex *index, const char *keywords);
const char *mail_index_keywords (MailIndex *index, guint32 id);

/* All mailboxes as GPtrArray of MailIndexMailbox, freed with its elements by g_ptr_array_unref. */
GPtrArray *mail_index_load_mailboxes (MailIndex *index, GError **error);
void mail_index_mailbox_free (MailIndexMailbox *mailbox);

/* All load functions wait for what was queued before and so see it.
 * The messages of one content id, sorted by uid. A corrupt page: MAIL_ERROR_CORRUPT; the index is
 * then marked to be thrown away at the next open and the caller lists again. */
GArray *mail_index_load_messages (MailIndex *index, guint32 content_id, GError **error);

typedef struct
{
  guint32 uid;
  char *text;
} MailIndexString;
/* Names users gave, and remote ids (POP3 UIDLs); GArray of MailIndexString with a clear function. */
GArray *mail_index_load_names (MailIndex *index, guint32 content_id, GError **error);
GArray *mail_index_load_remote_ids (MailIndex *index, guint32 content_id, GError **error);

/* A batch is filled by one thread, then queued whole: it becomes one transaction. */
typedef struct MailIndexBatch MailIndexBatch;
MailIndexBatch *mail_index_batch_new (void);
void mail_index_batch_put_mailbox (MailIndexBatch *batch, const MailIndexMailbox *mailbox); /* copies */
void mail_index_batch_remove_mailbox (MailIndexBatch *batch, guint32 id); /* the row only */
void mail_index_batch_drop_contents (MailIndexBatch *batch, guint32 content_id);
/* Insert or replace; copies n messages. */
void mail_index_batch_put (MailIndexBatch *batch, guint32 content_id, const MailMessage *messages,
                           guint n_messages);
/* Messages of these UIDs, with their names and remote ids. */
void mail_index_batch_remove (MailIndexBatch *batch, guint32 content_id, guint32 first, guint32 last);
void mail_index_batch_put_name (MailIndexBatch *batch, guint32 content_id, guint32 uid,
                                const char *name); /* NULL: take it away */
void mail_index_batch_put_remote_id (MailIndexBatch *batch, guint32 content_id, guint32 uid,
                                     const char *remote_id); /* NULL: take it away */
/* Takes batch. Returns at once. When the disk cannot be written, that is logged once and a copy of the
 * index in memory takes its place until the end; the next start finds what was written before. */
void mail_index_queue (MailIndex *index, MailIndexBatch *batch);
/* Waits until all that was queued before is in the database. */
void mail_index_flush (MailIndex *index);
