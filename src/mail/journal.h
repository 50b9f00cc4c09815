/* SPDX-License-Identifier: MIT
 *
 * MailJournal: what has been promised and is not known to be done, on disk: changes, and files that
 * users wrote. Its own database, because unlike the index it can not be asked from the server
 * again. Mailboxes are named as the backend names them, messages by UIDVALIDITY and UID. Any
 * thread; one lock inside, which a transaction holds.
 */
#pragma once

#include "mailfs/error.h"

typedef struct MailJournal MailJournal;

#define MAIL_DIGEST_SIZE 32u /* SHA-256 */

/* Strings are borrowed when given and the row's own when loaded. */
typedef struct
{
  guint64 id;
  guint32 kind; /* MailChangeKind */
  guint32 step; /* MailChangeStep */
  guint32 n_tries;
  char *mailbox;
  guint32 uidvalidity, uid;
  char *target;
  guint32 bound; /* UIDs of the target below this are older than the first try */
  guint32 target_uidvalidity;
  guint32 new_uid; /* of the copy, while the original is still to go */
  guint32 staged;  /* row of staged, or the id of a placeholder; 0: none */
  guint32 replaces_content, replaces_uidvalidity, replaces; /* content: the index's number */
  guint32 area; /* with name: where the placeholder of a move stands */
  char *name;
  guint32 add, remove;
  char *add_keywords, *remove_keywords;
} MailJournalChange;

typedef struct
{
  guint32 id;
  guint32 state; /* MailStagedState */
  char *mailbox;
  guint32 area;
  char *name;
  gboolean temporary;
  gint64 mtime; /* G_MININT64: not given */
  guint32 flags;
  char *keywords;
  guint64 size;
  guint64 wire_size; /* with digest: of what was sent */
  guint8 digest[MAIL_DIGEST_SIZE];
  guint32 replaces_content, replaces_uidvalidity, replaces; /* 0: nothing is to go any more */
  gboolean in_place; /* stands for the message it replaces, not beside it */
  char *source;      /* a copy on the server */
  guint32 source_uidvalidity, source_uid;
  guint32 uidvalidity, uid; /* DONE */
  char *error;
  gboolean dirty; /* what is in the spool is not what was sent */
} MailJournalStaged;

/* path: of the database. A damaged one is moved aside (path-N.bad); *lost_out tells, as it does
 * when the database belongs to another account, each time until that is adopted. NULL: the disk
 * refuses. */
MailJournal *
mail_journal_open (const char *path, const char *account_key, gboolean *lost_out, GError **error);
/* What was another account's is done away with: it is this one's from now on. */
void mail_journal_adopt (MailJournal *journal, const char *account_key);
void mail_journal_close (MailJournal *journal);

/* Everything between begin and commit is one transaction; nests. It outlives a kill, and a power
 * cut once sync has returned, which needs no lock. FALSE: nothing of it was written. */
void mail_journal_begin (MailJournal *journal);
gboolean mail_journal_commit (MailJournal *journal, GError **error);
gboolean mail_journal_sync (MailJournal *journal, GError **error);

/* Only inside a transaction; put inserts or replaces by id. */
void mail_journal_put_change (MailJournal *journal, const MailJournalChange *row);
void mail_journal_remove_change (MailJournal *journal, guint64 id);
void mail_journal_put_staged (MailJournal *journal, const MailJournalStaged *row);
void mail_journal_remove_staged (MailJournal *journal, guint32 id);

/* Numbers; those of staged files are never handed out twice, not even by another journal in the
 * same place, provided that floor (the largest one seen on disk) was set. */
guint64 mail_journal_new_change_id (MailJournal *journal);
guint32 mail_journal_new_staged_id (MailJournal *journal);
void mail_journal_set_floor (MailJournal *journal, guint32 floor);

/* All rows by id; GPtrArray that frees its elements. */
GPtrArray *mail_journal_load_changes (MailJournal *journal, GError **error);
GPtrArray *mail_journal_load_staged (MailJournal *journal, GError **error);
