/* SPDX-License-Identifier: MIT
 *
 * What the files behind mailfs/change.h share: staged files (stage.c, stage-write.c, commit.c,
 * spool.c), pending changes and who sends them when (queue.c, batch.c, drain.c), what each kind
 * says to the server (append.c, transfer.c, alter.c), how doubt is resolved (resolve.c), mailboxes
 * (folder.c), what readers see meanwhile (effect.c, pending.c), and the start after a crash
 * (recover.c). Nobody else includes this.
 *
 * Lock order: store->tree_lock, mailbox->lock, changes->lock, the journal's. No lock is held while
 * a backend, an event or a done is called.
 */
#pragma once

#include "mail/journal.h"
#include "mail/store-private.h"
#include "mailfs/change.h"

typedef struct MailChange MailChange;
typedef struct MailBatch MailBatch;

/* In a journal row: the placeholder was removed while its message was on the way. */
/* Readers that know a message by the place it was moved from: so many are remembered. */
#define MAIL_MOVED_MAX 65536u
#define MAIL_AREA_DROPPED G_MAXUINT32

/* Numbers are in the journal: never give one another meaning. */
typedef enum
{
  MAIL_CHANGE_FLAGS = 1,
  MAIL_CHANGE_REMOVE = 2,
  MAIL_CHANGE_MOVE = 3,
  MAIL_CHANGE_COPY = 4,
  MAIL_CHANGE_APPEND = 5,
} MailChangeKind;

typedef enum
{
  MAIL_STEP_NEW = 0,    /* not sent, or known not to have been done */
  MAIL_STEP_SENT = 1,   /* may have been done: look before sending it again */
  MAIL_STEP_COPIED = 2, /* a move without MOVE: the copy is in the target, the original is to go */
  MAIL_STEP_STORED = 3, /* an append the server said OK to without saying which UID */
} MailChangeStep;

typedef struct
{
  MailDoneFunc done;
  gpointer user_data;
} MailChangeWaiter;

/* One change of one message. In changes->queue from when it is journaled until it is answered.
 * While running only the net thread touches it, else changes->lock protects it. */
struct MailChange
{
  guint64 id;
  MailChangeKind kind;
  MailMailbox *mailbox; /* of the message; APPEND: where it goes */
  guint32 content_id, uidvalidity, uid;
  MailMailbox *target;              /* MOVE, COPY */
  char *mailbox_name, *target_name; /* the backend's, as of when it was asked for */
  MailStaged *staged; /* APPEND and COPY: the file; MOVE: what stands in the target meanwhile */
  guint32 replaces_content, replaces; /* a message of the target that goes once this is done */
  guint32 replaces_uidvalidity;
  gboolean in_place; /* it is listed until then, else it has been hidden since */
  guint8 add, remove;
  char *add_keywords, *remove_keywords;
  MailChangeStep step;
  guint32 bound, target_uidvalidity, new_uid;
  guint n_tries;
  gboolean lost, lost_before; /* the server said OK, and had nothing */
  gboolean alike;             /* new_uid was found by size and date: it may be another's */
  guint8 sent_flags;          /* APPEND: with what it was sent */
  char *sent_keywords;
  guint batch_limit; /* a batch with it failed as a whole: smaller ones find out why; 0: none */
  gboolean running;
  GArray *waiters; /* of MailChangeWaiter, or NULL */
  int fd; /* APPEND, running: the bytes that were committed, whatever is written now; -1 */
  GList link; /* in changes->queue */
};

/* A file that is not a message yet; all under changes->lock but what is constant. */
struct MailStaged
{
  gint n_refs;
  MailChanges *changes; /* constant */
  guint32 id;           /* constant */
  MailStagedState state;
  MailMailbox *mailbox; /* where it is, or is to be; NULL: only the name of a mailbox is left */
  char *mailbox_name;   /* the backend's */
  guint area;
  char *name; /* NULL: to be called by its UID */
  gboolean temporary;
  gboolean listed;      /* is in the directory's tables */
  gboolean in_place;    /* stands for the message it replaces: that one is listed, not this */
  gboolean placeholder; /* of a move: no file, no row of its own */
  gboolean known;       /* to the kernel */
  gboolean dirty;       /* written since it was committed */
  gboolean written;     /* bytes were given at all */
  guint n_emptied;
  gboolean has_spool;
  gboolean orphan;  /* of an earlier run: no kernel knows its inode */
  gboolean dropped; /* the user removed it while it was on its way */
  gboolean flags_set;
  guint64 size;
  gint64 mtime; /* G_MININT64: not given */
  guint8 flags;
  char *keywords;
  guint32 replaces_content, replaces_uid, replaces_uidvalidity;
  GArray *numbers;     /* guint64 keys of by_replaced that lead here; or NULL */
  gboolean retired;    /* that one goes already, by a change of its own */
  MailMailbox *source; /* of a copy or move */
  char *source_name;
  guint32 source_content, source_uidvalidity, source_uid;
  guint64 wire_size;
  guint8 digest[MAIL_DIGEST_SIZE];
  guint32 content_id, uid, uidvalidity; /* DONE */
  char *error;
  MailChange *change; /* what sends it, while QUEUED; borrowed */
  GArray *recommit;   /* of MailChangeWaiter: written and committed again while it was on its way */
  int fd;             /* the spool while it is written; -1 */
};

struct MailChanges
{
  MailStore *store;
  MailJournal *journal;
  char *spool_dir;
  GThreadPool *worker; /* one thread: what touches the disk for long */

  GMutex lock;
  GHashTable *staged;      /* id -> MailStaged, a reference */
  GHashTable *dirs;        /* mailbox id and area -> GPtrArray of listed MailStaged by id */
  GHashTable *by_replaced; /* content and UID -> MailStaged that stands for it */
  GHashTable *by_source;   /* content and UID -> id of the MailStaged that it moves to */
  GHashTable *moved;       /* content and UID -> where the message is now */
  GQueue queue;            /* MailChange links by id */
  GQueue drains;
  GHashTable *deferred; /* directory id -> GError that nobody was told yet */
  guint64 spool_bytes;
  GArray *done_rows; /* of guint32: staged rows that wait for the index to be written */
  GPtrArray *lost_changes, *lost_staged; /* rows whose mailbox is not known yet */
  GPtrArray *withdrawn;                  /* MailChanges to be freed without the lock */
  gboolean urgent;                       /* somebody waits: try now, whatever the back-off says */
  gint64 good_at;     /* monotonic µs: last answer or acknowledgement without an error */
  gboolean server_ok; /* the last answer came */
  GSource *kick;      /* the dispatcher is about to run */
  GSource *kick_soon; /* in a moment */

  /* Net thread. */
  GPtrArray *running; /* of MailBatch; only the net thread changes it, under lock */
  gboolean ready;     /* logged in, listed */
  guint backoff;      /* seconds; 0: the server works */
  GSource *retry;
  MailDoneFunc stopped;
  gpointer stopped_data;
  gboolean stopping, looked, giving_up, sweeping; /* looked: at the server, once while stopping */
};

/* What the worker does; the first member of what is pushed to it. */
typedef struct
{
  void (*run) (gpointer job);
} MailJob;

/* Changes of one kind that go out together; net thread. */
struct MailBatch
{
  MailChanges *changes;
  MailChangeKind kind;
  MailChangeStep step;
  GPtrArray *items; /* of MailChange, in order */
  MailMailbox *mailbox, *target;
  char *mailbox_name, *target_name; /* the backend's, as of when it began */
  guint32 content_id, uidvalidity, target_uidvalidity, bound;
  MailUidSet *uids;
  gpointer work;       /* the kind's own */
  GPtrArray *finished; /* who is to be told */
  GArray *done_ids;    /* of guint64: rows to remove */
  guint n_good;
  GError *network_error;
};

/* --- failpoint.c: for tests, dies at a named place (MAILFS_FAILPOINT=name:count) ---------------
 */

void mail_failpoint (const char *name);

/* --- change.c ----------------------------------------------------------------------------------
 */

/* Net thread or before it runs. NULL: the disk refuses. */
MailChanges *mail_changes_new (MailStore *store, GError **error);
void mail_changes_free (MailChanges *changes);

/* Net thread. Everything is sent, or it is known that it cannot be now; then done. */
void mail_changes_stop (MailChanges *changes, MailDoneFunc done, gpointer user_data);
void mail_changes_stop_if_idle (MailChanges *changes);
/* How many .mailfs/queue and .mailfs/failed list. Any thread. */
void mail_changes_count (MailChanges *changes, guint *n_queued_out, guint *n_failed_out);

/* Whether mail may be changed here at all now; rights: any of these letters of RFC 4314, or NULL.
 */
gboolean
mail_changes_allowed (MailMailbox *mailbox, guint caps, const char *rights, GError **error);

/* What stands in the target while a move is under way; a reference, and the table has one. */
MailStaged *mail_change_placeholder (MailChanges *changes, MailChange *change,
                                     const MailMessage *message, guint area, const char *name);

/* --- queue.c -----------------------------------------------------------------------------------
 */

MailChange *mail_change_new (MailChanges *changes, MailChangeKind kind, MailMailbox *mailbox);
void mail_change_free (MailChange *change);
void mail_change_set_target (MailChange *change, MailMailbox *target);
/* To the trash, or gone: a message that is hidden already. Nobody waits. instead: the file that took
 * its place, which from now on is no longer the one to see to that, or NULL. */
void mail_change_remove_hidden (MailChanges *changes, MailMailbox *mailbox, guint32 content_id,
                                guint32 uidvalidity, guint32 uid, MailStaged *instead);
void mail_change_journal_locked (MailChange *change); /* inside a journal transaction */
/* Takes change, whose row is in the journal. done is called before it returns in a burst. */
void mail_changes_add (MailChanges *changes, MailChange *change, gboolean wait, MailDoneFunc done,
                       gpointer user_data);
void mail_changes_push_locked (MailChanges *changes, MailChange *change); /* without a waiter */
void mail_change_wait_locked (MailChange *change, MailDoneFunc done, gpointer user_data);
/* It never was sent and is not to be: out of the queue and the journal; its waiters are told error
 * (on the net thread, later). Undoes nothing. */
void mail_changes_withdraw_locked (MailChanges *changes, MailChange *change, const GError *error);
void mail_changes_check_drains (MailChanges *changes); /* net thread */
GError *mail_changes_take_deferred (MailChanges *changes, MailMailbox *mailbox);

/* --- drain.c -----------------------------------------------------------------------------------
 */

/* Who waits for a change, and what he is to be told. */
typedef struct
{
  GArray *waiters;
  GError *error;
} MailOutcome;
MailOutcome *mail_change_take_waiters (MailChange *change, const GError *error);
void mail_outcome_tell (const MailOutcome *outcome); /* no lock held */
void mail_outcome_free (gpointer outcome);
/* Runs on the net thread, never before this returns; a reference. */
GSource *
mail_changes_idle (MailChanges *changes, GSourceFunc func, gpointer data, GDestroyNotify notify);
void mail_changes_defer (MailChanges *changes, MailMailbox *mailbox, const GError *error);
void mail_changes_fail_drains (MailChanges *changes, const GError *error);
const char *mail_change_verb (const MailChange *change);

/* --- batch.c -----------------------------------------------------------------------------------
 */

/* Whoever waits is told. What is known not to have happened is taken back; what may have happened
 * stays in the queue until it is known. */
void mail_changes_give_up_waiting (MailChanges *changes, const GError *error);
/* What became of an item; net thread. fail: refused for good, undone. retry: it stays queued. */
void mail_batch_succeed (MailBatch *batch, MailChange *change);
void mail_batch_fail (MailBatch *batch, MailChange *change, const GError *error);
/* Reported as fail is, and nothing is taken back: what was done stays done. */
void mail_batch_half_done (MailBatch *batch, MailChange *change, const GError *error);
void mail_batch_retry (MailBatch *batch, MailChange *change, const GError *error);
/* fail or retry, as the error says. */
void mail_batch_error (MailBatch *batch, MailChange *change, const GError *error);
/* Every item has been given one of the above; frees the batch. */
void mail_batch_end (MailBatch *batch);
/* Journals all items as they are now. */
gboolean mail_batch_journal (MailBatch *batch, GError **error);
/* All items were refused together: one alone is to blame for itself, of several smaller batches
 * tell which. */
void mail_batch_refused (MailBatch *batch, const GError *error);

/* --- what the kinds say to the server; net thread -----------------------------------------------
 */

void mail_append_start (MailBatch *batch);
void mail_transfer_start (MailBatch *batch);   /* MOVE, COPY, and REMOVE to the trash */
void mail_change_settled (MailChange *change); /* what it replaced goes */
void mail_log_removed (MailBatch *batch, const MailUidSet *uids, const char *target);
void mail_alter_start (MailBatch *batch); /* FLAGS, REMOVE */

/* --- resolve.c: net thread ----------------------------------------------------------------------
 */

/* Lists mailbox by a sync that begins from now on; done on the net thread. */
void mail_look (MailMailbox *mailbox, MailDoneFunc done, gpointer user_data);

/* A message that is to be recognised in a mailbox. */
typedef struct
{
  gboolean by_bytes; /* digest and size, else size and date */
  guint64 size;
  gint64 date;
  guint8 digest[MAIL_DIGEST_SIZE];
  gboolean stored;  /* with by_bytes: the server said that it has it, perhaps with other bytes */
  char *message_id; /* then what counts; or NULL, and the body does */
  guint8 body[MAIL_DIGEST_SIZE];
  gboolean changed; /* result: found, and its bytes are others */
  gboolean others;  /* result: nothing was found, and yet something unknown has come since */
  guint32 uidvalidity,
      bound;   /* its UID is at least bound, while the mailbox has this UIDVALIDITY */
  guint32 uid; /* known: only this one is verified; result: what was found, 0: nothing */
} MailWanted;
void mail_wanted_clear (gpointer wanted);

typedef void (*MailResolvedFunc) (GArray *wanted, const GError *error, gpointer user_data);
/* Looks, then fills in uid of each of `wanted` (MailWanted), which it takes. */
void mail_resolve (MailMailbox *mailbox, GArray *wanted, MailResolvedFunc done, gpointer user_data);

/* Digests of whole messages: GHashTable uid -> MailDigest; a UID that is gone has none. */
typedef struct
{
  guint64 size;
  guint8 digest[MAIL_DIGEST_SIZE];
  char *message_id;
  guint8 body[MAIL_DIGEST_SIZE]; /* of what follows the header, without CRs */
} MailDigest;
typedef void (*MailDigestsFunc) (GHashTable *digests, const GError *error, gpointer user_data);
void mail_digest_messages (MailMailbox *mailbox, const MailUidSet *uids, MailDigestsFunc done,
                           gpointer user_data);
/* Digest of a body that comes in pieces, with its header before it; an empty one gives zeros. */
typedef struct
{
  GChecksum *sum;
  guint newlines; /* in a row; two end the header */
  gboolean any;
} MailBodySum;
void mail_body_sum_add (MailBodySum *body, const guint8 *data, gsize length);
void mail_body_sum_end (MailBodySum *body, guint8 *digest_out); /* and ready for another */
char *mail_message_id_of (const guint8 *head, gsize length); /* without brackets, or NULL */

/* --- effect.c: what readers see. No lock held, unless _locked -----------------------------------
 */

/* Marks in memory only, under the mailbox's lock: FALSE when there is no such visible message. */
gboolean
mail_effect_hide_now (MailMailbox *mailbox, guint32 content_id, guint32 uid, MailMessage *was_out);
/* Index and events of the above, once it is journaled. */
void mail_effect_hidden (MailMailbox *mailbox, guint32 content_id, guint32 uid);
/* Whatever listings say, it stays hidden until its change has been answered, and a listing begun
 * after that decides. */
void mail_effect_hold (MailMailbox *mailbox, guint32 content_id, guint32 uid, gboolean answered);
/* Visible again. */
void mail_effect_unhide (MailMailbox *mailbox, guint32 content_id, guint32 uid, gboolean tell);
/* The same, told, wherever these contents are now; uid 0: nothing. */
void mail_effect_show_again (MailStore *store, guint32 content_id, guint32 uid);
/* In the index its flags are no longer only asked for. */
void mail_effect_answered (MailMailbox *mailbox, guint32 content_id, guint32 uid);
/* The flags of a message are to be shown anew after its pending changes differ. */
void mail_effect_flags (MailMailbox *mailbox, guint32 content_id, guint32 uid);
void mail_effect_name (MailMailbox *mailbox, guint32 content_id, guint32 uid, const char *name);
void mail_effect_old (MailMailbox *mailbox, guint32 content_id, guint32 uid);
/* Flags that no server knows of. */
void mail_effect_marks (MailMailbox *mailbox, guint32 content_id, guint32 uid, guint8 flags,
                        guint32 keywords);
/* A message the server told us it has now: listed, named, and in the same step `staged` (or NULL)
 * is DONE, unless it was removed or renamed a moment ago. FALSE: the mailbox is not in memory or is another by now, it must be looked at first. */
gboolean mail_effect_insert (MailMailbox *mailbox, guint32 uidvalidity, const MailMessage *message,
                             const char *name, MailStaged *staged);
void mail_effect_directory (MailMailbox *mailbox); /* its entries changed */
guint32 mail_effect_uidvalidity (MailMailbox *mailbox);
/* UIDs the server has not given out yet are at least this, as far as we know. */
guint32 mail_effect_bound (MailMailbox *mailbox);

/* --- pending.c: flags that were changed here and are on their way; the mailbox's lock is held ---
 */

void mail_pending_add_locked (MailMailbox *mailbox, const MailMessage *message,
                              const MailChange *change);
void mail_pending_answer_locked (MailMailbox *mailbox, guint32 uid, guint64 change, gboolean done);
/* Of flags as the server has them, what they will be. */
gboolean mail_pending_show_locked (MailMailbox *mailbox, guint32 uid, guint8 *flags_out,
                                   guint32 *keywords_out);
/* Whether these can be set where the mailbox's PERMANENTFLAGS are what they are. */
gboolean mail_keywords_settable (MailMailbox *mailbox, guint8 flags, const char *keywords,
                                 GError **error);
char *mail_keywords_apply (const char *keywords, const char *add, const char *remove);
void mail_keywords_difference (const char *old, const char *now, char **add_out, char **remove_out);
gboolean mail_keywords_contains (const char *keywords, const char *keyword, gsize length);

/* --- stage.c
 * -------------------------------------------------------------------------------------- */

MailStaged *mail_staged_new (MailChanges *changes, guint32 id);
void mail_stage_init (MailChanges *changes);
void mail_staged_place_locked (MailStaged *staged, MailMailbox *mailbox, const char *mailbox_name,
                               guint area, const char *name);
void mail_staged_list_locked (MailStaged *staged, gboolean listed);
void mail_staged_stand_for_locked (MailStaged *staged, guint32 content_id, guint32 uidvalidity,
                                   guint32 uid);
void mail_staged_unstand_locked (MailStaged *staged);
/* It stands where this message is being moved to; uid 0: no more. */
void mail_staged_moves_locked (MailStaged *staged, guint32 content_id, guint32 uid);
void mail_staged_journal_locked (MailStaged *staged); /* inside a journal transaction */
/* The same, in a transaction of its own or within another. */
gboolean mail_staged_save_locked (MailStaged *staged, GError **error);
/* Mailboxes have other names now: so have those of our rows. */
void mail_stage_renamed (MailChanges *changes);
/* FAILED, with its reason; the journal too. */
void mail_staged_fail (MailStaged *staged, const char *reason);
/* Nobody writes on what is LOCAL: the same when it has bytes of its own, else it goes. where: only
 * while it waits there for its name. No lock held. */
void mail_staged_interrupt (MailStaged *staged, const MailMailbox *where, const char *reason);
/* Who waits for a next version of it hears that none will come. No lock held. */
void mail_staged_no_next (MailStaged *staged, const GError *error);
void mail_stage_give_up_waiting (MailChanges *changes, const GError *error); /* all of them */
/* Out of everything: tables, journal, spool. */
void mail_staged_discard_locked (MailStaged *staged, MailStagedState state);
void mail_staged_remove_spool_locked (MailStaged *staged);
void mail_staged_pass_on_locked (MailStaged *staged); /* before its change is another one, or none */
void
mail_staged_done_locked (MailStaged *staged, guint32 content_id, guint32 uidvalidity, guint32 uid);
guint64 mail_staged_key (guint32 content_id, guint32 uid);

/* --- commit.c
 * ------------------------------------------------------------------------------------- */

/* The server now has it as this message of mailbox: it is listed, and whatever the user did to it
 * meanwhile is made to happen. FALSE: the mailbox must be looked at first. Net thread. */
gboolean mail_staged_settle (MailStaged *staged, MailMailbox *mailbox, guint32 uidvalidity,
                             const MailMessage *message);
void mail_staged_unsent (MailStaged *staged);
/* As settle, for a message that cannot be listed now. */
void mail_staged_settle_unseen (MailStaged *staged, MailMailbox *mailbox, guint32 uidvalidity,
                                guint32 uid);

/* --- spool.c: the bytes. Any thread
 * ---------------------------------------------------------------- */

char *mail_spool_path (MailChanges *changes, guint32 id, gboolean wire);
int mail_spool_open (MailChanges *changes, guint32 id, gboolean create, GError **error);
void mail_spool_remove (MailChanges *changes, guint32 id);
/* As mail_body_sum_end has it; zeros when it cannot be read. */
void mail_spool_body (MailChanges *changes, guint32 id, guint8 *digest_out);
/* Whoever has the old file open keeps it; from now on the name is a copy. */
gboolean mail_spool_separate (MailChanges *changes, guint32 id, GError **error);
/* SAFETY 7: MAIL_ERROR_INVALID with the reason. */
gboolean mail_spool_check (int fd, GError **error);

typedef struct
{
  int fd; /* wire bytes; the caller's */
  guint64 size;
  guint8 digest[MAIL_DIGEST_SIZE];
  char *message_id;
} MailWire;
/* What is sent: with CRLF line ends. Takes fd, the spool file. */
gboolean mail_spool_wire (MailChanges *changes, guint32 id, int fd, MailWire *wire_out,
                          GError **error);
char *mail_spool_message_id (MailChanges *changes, guint32 id);
/* Bytes of the wire become those of the message's cache file. Returns the size as it is read. */
guint64 mail_spool_to_cache (MailChanges *changes, int wire_fd, guint64 size, guint32 content_id,
                             guint32 uid);
/* A whole message in the cache becomes the spool. */
gboolean mail_spool_from_cache (MailChanges *changes, guint32 id, guint32 content_id, guint32 uid,
                                guint64 *size_out, GError **error);

/* --- folder.c -----------------------------------------------------------------------------------
 */

/* Where a message of mailbox goes that is removed. MAIL_TRASH_MAKE: name_out does not exist yet. */
typedef enum
{
  MAIL_TRASH_EXPUNGE,
  MAIL_TRASH_MOVE,
  MAIL_TRASH_MAKE,
} MailTrash;
/* target_out: a reference, NULL when it lies outside of the mount; name_out: the caller's. */
MailTrash mail_trash_of (MailMailbox *mailbox, MailMailbox **target_out, char **name_out);
/* Creates, lists again, then done. Net thread. */
void
mail_folder_make (MailChanges *changes, const char *name, MailDoneFunc done, gpointer user_data);
/* The backend's name; NULL when the mailbox is no longer there; the caller's. */
char *mail_folder_name (MailMailbox *mailbox);

/* --- recover.c ----------------------------------------------------------------------------------
 */

/* Rows of the last run whose mailboxes are known become changes and staged files; final: the list
 * of mailboxes is the server's, what cannot be found is gone. */
gboolean mail_changes_load (MailChanges *changes, gboolean lost, GError **error);
/* Rows of files that are done leave the journal when the index is known to be written. */
void mail_changes_sweep (MailChanges *changes);
