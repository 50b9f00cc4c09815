/* SPDX-License-Identifier: MIT
 *
 * MailBackend: the one door between src/mail and a protocol. Every function and every call back runs
 * on the net thread. A request calls its `done` exactly once, and never before the function that
 * started it has returned. Between start and done the caller keeps everything it passed by pointer
 * alive, unless a function says that it copies.
 *
 * Mailboxes are named by the backend's own string (MailMailboxInfo.name); nobody else looks into it.
 * A command that changes mail carries (mailbox, UIDVALIDITY, UID): when the mailbox has another
 * UIDVALIDITY by then, the request fails with MAIL_ERROR_STALE and nothing is changed.
 */
#pragma once

#include "mailfs/error.h"

typedef struct MailBackend MailBackend;

/* What the server behind a backend can do; complete once the first login has been made. */
typedef enum
{
  MAIL_CAP_FOLDERS = 1 << 0,    /* create, rename, delete mailboxes; move and copy between them */
  MAIL_CAP_FLAGS = 1 << 1,
  MAIL_CAP_RANGES = 1 << 2,     /* parts of a message by offset; without it HEAD or the whole */
  MAIL_CAP_APPEND = 1 << 3,
  MAIL_CAP_EXPUNGE_UID = 1 << 4,/* UIDPLUS: removal of one message alone */
  MAIL_CAP_MOVE = 1 << 5,
  MAIL_CAP_REMOTE_IDS = 1 << 6, /* messages come with an opaque remote_id, UIDs are ours to give */
  MAIL_CAP_QUOTA = 1 << 7,
  MAIL_CAP_PUSH = 1 << 8,       /* watch reports changes by itself */
} MailCaps;

/* RFC 9051 2.3.2. MAIL_FLAG_* are what a message carries; keywords travel beside them. */
typedef enum
{
  MAIL_FLAG_SEEN = 1 << 0,
  MAIL_FLAG_ANSWERED = 1 << 1,
  MAIL_FLAG_FLAGGED = 1 << 2,
  MAIL_FLAG_DELETED = 1 << 3,
  MAIL_FLAG_DRAFT = 1 << 4,
  MAIL_FLAGS_ALL = 0x1f,
} MailFlags;

typedef struct
{
  guint32 first, last; /* inclusive, first <= last, first >= 1 */
} MailUidRange;

/* Sorted, disjoint ranges; kept as ranges, never expanded. */
typedef GArray MailUidSet; /* of MailUidRange */

typedef struct
{
  const char *text;
  gboolean raw; /* text could not be decoded: these are the bytes of the wire */
} MailPathPart;

typedef enum
{
  MAIL_MAILBOX_NO_SELECT = 1 << 0,    /* holds only other mailboxes, or does not exist itself */
  MAIL_MAILBOX_NO_INFERIORS = 1 << 1, /* can hold no other mailboxes */
  MAIL_MAILBOX_SUBSCRIBED = 1 << 2,
  MAIL_MAILBOX_NO_CHILDREN = 1 << 3,  /* known to have none now */
} MailMailboxFlags;

typedef struct
{
  guint32 uidvalidity;   /* 0: unknown */
  guint32 uidnext;       /* 0: unknown */
  guint64 highestmodseq; /* 0: unknown or not supported */
  guint32 n_messages, n_unseen;
} MailMailboxStatus;

typedef struct
{
  const char *name;          /* the backend's identifier, NUL-free */
  const MailPathPart *parts; /* decoded path, from the root down; INBOX is "INBOX" */
  guint n_parts;             /* >= 1 */
  guint flags;               /* MailMailboxFlags */
  const char *special_use;   /* "\\Trash" with canonical capitals, or NULL */
  gboolean has_status;
  MailMailboxStatus status;
} MailMailboxInfo;

typedef struct
{
  guint32 uid; /* 0 with MAIL_CAP_REMOTE_IDS: the store gives one */
  guint8 flags;
  guint64 size;          /* as the server claims it */
  gint64 internaldate;   /* seconds since the epoch, UTC */
  guint64 modseq;        /* 0: not supported */
  const char *keywords;  /* space-separated, sorted, without duplicates; NULL or "" for none */
  const char *remote_id; /* with MAIL_CAP_REMOTE_IDS, else NULL */
} MailMessageInfo;

/* --- list: all mailboxes ------------------------------------------------------------------- */

typedef struct MailListSink MailListSink;
struct MailListSink
{
  void (*mailbox) (MailListSink *sink, const MailMailboxInfo *info);
  /* error NULL: what was reported is the complete list. */
  void (*done) (MailListSink *sink, const GError *error);
};

/* --- sync: bring what is known of one mailbox up to date ---------------------------------- */

typedef struct
{
  MailMailboxStatus status; /* as of the end of this sync; n_unseen not filled in */
  gboolean read_only;       /* the server lets nobody change anything here */
  guint8 settable_flags;    /* PERMANENTFLAGS as MAIL_FLAG_* */
  gboolean any_keyword;     /* PERMANENTFLAGS has \* */
  const char *settable_keywords; /* space-separated, without \*; may be NULL */
  const char *rights;       /* MYRIGHTS (RFC 4314), or NULL where unknown */
} MailSyncResult;

typedef struct MailSyncSink MailSyncSink;
struct MailSyncSink
{
  /* First call. complete: every message will be reported by `message`, what is not is gone once done
   * says no error. Otherwise a difference to `known`. When the UIDVALIDITY differs from the known
   * one, complete is always TRUE. */
  void (*begin) (MailSyncSink *sink, guint32 uidvalidity, gboolean complete);
  void (*message) (MailSyncSink *sink, const MailMessageInfo *info);
  /* Flags, keywords and modseq of info only; a UID that is not known is ignored. */
  void (*flags) (MailSyncSink *sink, const MailMessageInfo *info);
  void (*vanished) (MailSyncSink *sink, guint32 first, guint32 last);
  /* Servers without QRESYNC: the UIDs that exist, in ranges; everything else known that is at or
   * below the last known UIDNEXT is gone once done says no error. Called at all only when the set
   * is reported whole; an empty set is first = last = 0. */
  void (*present) (MailSyncSink *sink, guint32 first, guint32 last);
  /* MAIL_CAP_REMOTE_IDS: whether the store has this message, so that its date need not be asked. */
  gboolean (*is_known) (MailSyncSink *sink, const char *remote_id);
  /* result is NULL with an error; then nothing may be removed for not having been reported. */
  void (*done) (MailSyncSink *sink, const MailSyncResult *result, const GError *error);
};

/* --- fetch --------------------------------------------------------------------------------- */

typedef enum
{
  MAIL_PRIORITY_INTERACTIVE, /* somebody waits for exactly this */
  MAIL_PRIORITY_BULK,        /* read-ahead; bounded chunks, never in the way of the former */
} MailPriority;

typedef enum
{
  MAIL_PART_RANGE, /* `offset` and `length` bytes of the whole message */
  /* The header and empty line, as a prefix of the message (POP3 TOP n 0); with a length, a prefix of
   * about so many bytes, or more, whatever comes cheapest. Never at_end but when the whole came. */
  MAIL_PART_HEAD,
} MailPart;

#define MAIL_TO_END G_MAXUINT64

typedef struct
{
  const char *mailbox; /* copied */
  guint32 uidvalidity;
  const MailUidRange *uids; /* copied; one message, or several with offset 0 */
  guint n_uids;             /* how many ranges */
  const char *const *remote_ids; /* MAIL_CAP_REMOTE_IDS: NULL-terminated, one a UID in order; copied */
  MailPart part;
  guint64 offset, length; /* length MAIL_TO_END: all of it */
  MailPriority priority;
} MailFetchRequest;

typedef struct MailFetchSink MailFetchSink;
struct MailFetchSink
{
  /* Bytes of a message that was asked for, in order from where its range starts; a backend whose
   * server ignores ranges may start at 0 instead, and for a range wholly behind the end it starts
   * before that end. Messages may come in any order, one after the other. data is valid during the
   * call. */
  void (*data) (MailFetchSink *sink, guint32 uid, guint64 offset, const guint8 *data, gsize length);
  /* One message is finished; [offset, end) has been delivered. at_end: `end` is the true length of
   * the message. error: only this message failed (MAIL_ERROR_GONE: it is no longer there). */
  void (*message) (MailFetchSink *sink, guint32 uid, guint64 end, gboolean at_end,
                   const GError *error);
  /* A message that was asked for and never finished by then is gone (error NULL) or failed. */
  void (*done) (MailFetchSink *sink, const GError *error);
};

/* --- changes ------------------------------------------------------------------------------- */

typedef void (*MailDoneFunc) (const GError *error, gpointer user_data);

typedef struct
{
  guint32 from, to;
} MailUidPair;

/* pairs: UIDs of the source and what they are in the target, as far as the server said (COPYUID);
 * a UID of the request that is in no pair was not there. n_pairs 0 with target_uidvalidity 0: the
 * server does not say (no UIDPLUS). Valid during the call. */
typedef void (*MailCopyFunc) (guint32 target_uidvalidity, const MailUidPair *pairs, guint n_pairs,
                              const GError *error, gpointer user_data);

/* One new message. fd is read with pread from 0 to length, wire bytes (CRLF); it stays the caller's. */
typedef struct
{
  int fd;
  guint64 length;
  guint8 flags;
  const char *keywords;
  gint64 internaldate; /* seconds since the epoch */
} MailAppendItem;

/* uids[i] is the UID of item i, 0 where the server did not say (no UIDPLUS). n_known items are
 * known to be stored, in order, even with an error. maybe: with an error, item n_known and those
 * behind it may or may not be stored (MULTIAPPEND; no tagged answer came after literals had been
 * sent): look for each before trying again. */
typedef void (*MailAppendFunc) (guint32 uidvalidity, const guint32 *uids, guint n_known,
                                gboolean maybe, const GError *error, gpointer user_data);

typedef void (*MailQuotaFunc) (gboolean has_quota, guint64 used, guint64 limit, const GError *error,
                               gpointer user_data); /* bytes */

/* mailbox: what changed, or NULL: any. */
typedef void (*MailChangedFunc) (const char *mailbox, gpointer user_data);

typedef struct MailBackendOps
{
  guint (*caps) (MailBackend *self);                  /* MailCaps; 0 before the first login */
  /* Logs in once; done tells how it went. Mount waits for this. */
  void (*start) (MailBackend *self, MailDoneFunc done, gpointer user_data);
  void (*list) (MailBackend *self, gboolean subscribed_only, MailListSink *sink);
  /* known: NULL or uidvalidity 0 when nothing is known. Copied. n_messages counts what is known. */
  void (*sync) (MailBackend *self, const char *mailbox, const MailMailboxStatus *known,
                MailSyncSink *sink);
  void (*fetch) (MailBackend *self, const MailFetchRequest *request, MailFetchSink *sink);

  /* ±FLAGS; add and remove are disjoint; keywords space-separated or NULL; all copied. */
  void (*store_flags) (MailBackend *self, const char *mailbox, guint32 uidvalidity,
                       const MailUidRange *uids, guint n_uids, guint8 add, const char *add_keywords,
                       guint8 remove, const char *remove_keywords, MailDoneFunc done,
                       gpointer user_data);
  /* UID COPY. */
  void (*copy) (MailBackend *self, const char *mailbox, guint32 uidvalidity,
                const MailUidRange *uids, guint n_uids, const char *target, MailCopyFunc done,
                gpointer user_data);
  /* UID MOVE; needs MAIL_CAP_MOVE (the fallback is the store's, it has the journal). */
  void (*move) (MailBackend *self, const char *mailbox, guint32 uidvalidity,
                const MailUidRange *uids, guint n_uids, const char *target, MailCopyFunc done,
                gpointer user_data);
  /* +FLAGS \Deleted, then UID EXPUNGE of these alone; without MAIL_CAP_EXPUNGE_UID only the former.
   * POP3: DELE in a session that has read UIDL, done when QUIT said +OK; remote_ids as in fetch. */
  void (*remove) (MailBackend *self, const char *mailbox, guint32 uidvalidity,
                  const MailUidRange *uids, guint n_uids, const char *const *remote_ids,
                  MailDoneFunc done, gpointer user_data);
  /* items: the caller keeps it until done. */
  void (*append) (MailBackend *self, const char *mailbox, const MailAppendItem *items, guint n_items,
                  MailAppendFunc done, gpointer user_data);

  /* The backend's name for a new mailbox `leaf` (UTF-8) inside parent (NULL: the root); NULL with
   * MAIL_ERROR_INVALID when the server cannot hold it. The result is the caller's. */
  char *(*child_name) (MailBackend *self, const char *parent, const char *leaf, GError **error);
  void (*create) (MailBackend *self, const char *mailbox, MailDoneFunc done, gpointer user_data);
  void (*rename) (MailBackend *self, const char *mailbox, const char *new_name, MailDoneFunc done,
                  gpointer user_data); /* subscriptions follow, children too */
  void (*delete) (MailBackend *self, const char *mailbox, MailDoneFunc done, gpointer user_data);

  void (*quota) (MailBackend *self, MailQuotaFunc done, gpointer user_data);
  /* Replaces the watch: from now on changed is called when the server says something happened
   * (IDLE, NOTIFY). mailbox is the one looked at most recently; NULL: stop. Copied. */
  void (*watch) (MailBackend *self, const char *mailbox, MailChangedFunc changed,
                 gpointer user_data);
  /* Fails everything under way with MAIL_ERROR_CONNECTION, says LOGOUT/QUIT, waits a little. */
  void (*close) (MailBackend *self, MailDoneFunc done, gpointer user_data);
  void (*free) (MailBackend *self);
  /* One line for .mailfs/status: "connected, 2 of 4 connections", "down: connection refused". */
  char *(*describe) (MailBackend *self);
} MailBackendOps;

struct MailBackend
{
  const MailBackendOps *ops;
};
