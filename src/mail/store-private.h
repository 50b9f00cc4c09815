/* SPDX-License-Identifier: MIT
 *
 * What the files of the mail room share among themselves: the structs behind mailfs/store.h.
 * Lock order: store->tree_lock, mailbox->lock, store->fetch_lock; never two mailboxes at once.
 */
#pragma once

#include "mail/keep.h"
#include "mailfs/store.h"
#include "mailfs/uidset.h"

/* Where the messages of a removed file stay findable for readers that have it open. */
#define MAIL_GONE_MAX 4096u

typedef struct MailReadahead MailReadahead;
typedef struct MailFetches MailFetches;
typedef struct MailChanges MailChanges;

/* 2020-01-01, the origin of MailMessage.changed. */
#define MAIL_CHANGED_EPOCH G_GINT64_CONSTANT (1577836800)
typedef struct MailMover MailMover;

struct MailStore
{
  MailStoreOptions options;
  MailNaming naming;
  MailStoreEvents events;
  gpointer events_data;
  GMainContext *net;
  MailBackend *backend; /* net thread */
  MailIndex *index;
  MailCache *cache;
  gboolean stopping;        /* net thread */
  gint caps;                /* MailCaps, atomic: as of the last login, at first of the last run */
  guint32 watched_id;       /* net thread: the mailbox the server pushes changes of, or 0 */
  gboolean list_has_status; /* net thread: the last LIST carried STATUS */

  GRWLock tree_lock;
  MailMailbox *root;
  GHashTable *by_id;      /* guint32 -> MailMailbox, owned; under tree_lock */
  GHashTable *by_content; /* guint32 -> MailMailbox; under tree_lock */
  gint64 listed_at;       /* monotonic µs of the last try, 0: never; under tree_lock */
  gboolean listed;        /* a list is known, from now or from the index; under tree_lock */
  gboolean listing;       /* under tree_lock */
  GQueue list_waiters;    /* MailWaiter links; under tree_lock */
  GQueue relist_waiters, next_relist_waiters; /* of the list under way, of the one after it */
  char *outside_trash;    /* the backend's name of a trash outside of the root; under tree_lock */

  MailFetches *fetches;
  MailReadahead *readahead;
  MailChanges *changes;
  MailKeep *keep;   /* messages that are only here; NULL without options.pop3_dir */
  MailMover *mover; /* beside keep; net thread */

  GMutex state_lock;
  char *state;          /* what the backend said of itself; under state_lock */
  gint64 state_at;      /* monotonic µs; under state_lock */
  GQueue state_waiters; /* MailWaiter links; under state_lock */

  GMutex quota_lock;
  gboolean asking_quota;           /* under quota_lock */
  guint64 quota_used, quota_limit; /* under quota_lock */
  gint64 quota_at;                 /* under quota_lock */
  GQueue quota_waiters;            /* MailWaiter links; under quota_lock */

  GSource *refresh_timer; /* net thread */
};

struct MailMailbox
{
  gint n_refs;
  MailStore *store;
  guint32 id;          /* constant */

  /* Under store->tree_lock. */
  guint32 content_id;
  char *name;          /* the backend's identifier, NULL for a mere parent */
  char *leaf;          /* escaped name in its directory, "" for the root */
  char *text;          /* decoded name */
  char *special_use;
  guint flags;         /* MailMailboxFlags */
  MailMailbox *parent; /* borrowed: a parent outlives its children in the tree */
  GPtrArray *children; /* sorted by id; borrowed, by_id owns */
  GHashTable *child_by_leaf;
  gboolean in_tree;

  GMutex lock;
  gboolean loaded;        /* messages are in memory; under lock, as all below */
  GArray *messages;       /* of MailMessage, sorted by uid */
  GArray *gone;           /* of MailMessage, in order of going, at most MAIL_GONE_MAX */
  GHashTable *name_to_uid, *uid_to_name; /* NULL when no message has a name */
  GHashTable *remote_to_uid, *uid_to_remote; /* NULL without MAIL_CAP_REMOTE_IDS */
  MailMailboxStatus status; /* as of the last complete sync; uidvalidity 0: never listed */
  gint64 synced_at;       /* monotonic µs of the last successful sync, 0: never in this run */
  gint64 tried_at;        /* of the last try */
  gboolean sync_failed;   /* the last try */
  gint64 used_at;         /* somebody looked */
  guint64 generation, flag_changes;
  gint64 mtime;           /* seconds since the epoch */
  gboolean mtime_given;   /* by the user, who may have put things here that are still on their way */
  gboolean server_read_only;
  guint8 settable_flags;
  gboolean any_keyword;
  char *settable_keywords;
  char *rights;           /* MYRIGHTS or NULL */
  gboolean syncing;
  gboolean pushed; /* meanwhile the server said that something happened: once more */
  GQueue sync_waiters;    /* MailWaiter links */
  guint sync_started;     /* how many were begun: the number of the last one */
  guint sync_merged;      /* the number of the last one that succeeded */
  GHashTable *inserted;   /* UIDs a change of ours brought -> sync_started at that time; or NULL */
  GHashTable *pending_flags; /* pending.c's, or NULL */
  GHashTable *hiding;     /* UIDs that changes of ours hid -> 0, or 1 + sync_started at the answer */
};

/* store.c */
void mail_store_invoke (MailStore *store, GSourceFunc func, gpointer data);
void mail_store_wake_all (GQueue *waiters, const GError *error); /* takes the links */
/* The error says that the server cannot be reached now, not that it refused something. */
gboolean mail_store_is_network_error (const GError *error);
gint mail_compare_uint32 (gconstpointer a, gconstpointer b);

/* mailbox.c; the _locked ones want mailbox->lock held */
MailMailbox *mail_mailbox_new (MailStore *store, guint32 id, guint32 content_id);
/* Of the first child with at least this id; the tree's lock is held. */
guint mail_mailbox_child_place_unlocked (const MailMailbox *parent, guint32 id);
/* Takes the tree's lock. A reference to the one so many places behind it, or NULL. */
MailMailbox *mail_mailbox_sibling (MailMailbox *mailbox, gint step);
/* The direction in which `to` stands beside `from`, 1 or -1; 0: it does not. */
gint mail_mailbox_step (MailMailbox *from, MailMailbox *to);
guint mail_mailbox_lower_bound_locked (MailMailbox *mailbox, guint32 uid);
MailMessage *mail_mailbox_get_locked (MailMailbox *mailbox, guint32 uid);
void mail_mailbox_set_name_locked (MailMailbox *mailbox, guint32 uid, const char *name);
const char *mail_mailbox_name_locked (MailMailbox *mailbox, guint32 uid);
void mail_mailbox_set_remote_id_locked (MailMailbox *mailbox, guint32 uid, const char *remote_id);
const char *mail_mailbox_remote_id_locked (MailMailbox *mailbox, guint32 uid);
void mail_mailbox_touch_locked (MailMailbox *mailbox);
void mail_mailbox_bury_locked (MailMailbox *mailbox, const MailMessage *message);
gboolean mail_mailbox_load_locked (MailMailbox *mailbox); /* from the index, if it knows any */
void mail_mailbox_unload_locked (MailMailbox *mailbox);
void mail_mailbox_fill_index_row (MailMailbox *mailbox, MailIndexMailbox *row); /* tree lock + lock */
char *mail_mailbox_path_unlocked (MailMailbox *mailbox); /* tree lock held; escaped path */

/* tree.c */
gboolean mail_tree_load (MailStore *store, GError **error);
void mail_tree_refresh (MailStore *store); /* net thread; starts a LIST unless one runs */
/* waiter is woken when a list begun from now on has been applied, or with the error. Any thread. */
void mail_tree_relist (MailStore *store, MailWaiter *waiter);
/* The server has renamed mailbox, with all below it, to `name`: the same directories, elsewhere. */
void mail_tree_move (MailMailbox *mailbox, MailMailbox *parent, const char *leaf, const char *text,
                     const char *name);
/* The mailbox the backend calls name, at the top, made where no list has named it yet. Before the
 * threads run. Borrowed. */
MailMailbox *mail_tree_ensure (MailStore *store, const char *name);

/* sync.c */
void mail_sync_start (MailMailbox *mailbox); /* any thread; mailbox->syncing was set by the caller */

/* change.c and its like, as the others here need them */
void mail_changes_online (MailChanges *changes);
void mail_changes_resume (MailChanges *changes, gboolean final);
void mail_changes_kick (MailChanges *changes);
/* The server no longer lists some: what waits there to be given its name is kept in failed. */
void mail_stage_mailboxes_gone (MailChanges *changes);
/* Where a message went that is known by its old place: a reference, and *uid; or NULL. */
MailMailbox *mail_changes_moved (MailStore *store, guint32 content_id, guint32 *uid);
/* What the server says in listing `number`, and what it will say. */
void mail_pending_heard_locked (MailMailbox *mailbox, guint32 uid, guint number, guint8 *flags,
                                guint32 *keywords);
/* Sets MAIL_LOCAL_ASKED or takes it away; TRUE: it was otherwise. */
gboolean mail_pending_mark_locked (MailMailbox *mailbox, MailMessage *message);
void mail_pending_prune_locked (MailMailbox *mailbox, guint number);

/* fetch.c */
MailFetches *mail_fetches_new (MailStore *store);
void mail_fetches_free (MailFetches *fetches);
/* The server has answered something: whoever gave up may ask anew. Lock not held. */
void mail_fetches_answered (MailFetches *fetches);
typedef struct
{
  guint32 uid;
  guint64 start, end; /* end MAIL_TO_END: the whole rest */
  guint64 cost;       /* about so many bytes */
  gboolean hand_on;   /* to the kernel when it comes, before anybody asks */
} MailFetchPart;
/* Any thread. Fetches the parts that nobody fetches yet; parts with start 0 and the same end of
 * several messages go out as one request, up to a size behind which others may have to wait. n is
 * bounded by the caller. */
void mail_fetches_ahead (MailFetches *fetches, MailMailbox *mailbox, guint32 content_id,
                         const MailFetchPart *parts, guint n_parts);
gboolean mail_fetches_busy (MailFetches *fetches, guint32 content_id, guint32 uid);
/* Whether a message can be had from its middle on; else it is fetched from its start. */
gboolean mail_store_has_ranges (const MailStore *store);
/* The message is stored here to stay. No lock held. */
gboolean mail_store_is_kept (MailStore *store, MailMailbox *mailbox, guint32 uid);
/* The true length of a message was seen. No lock held. */
void mail_store_learn_size (MailMailbox *mailbox, guint32 content_id, guint32 uid, guint64 size);

/* mover.c, for whoever removes messages; any thread. TRUE: the message is stored here and was not seen on
 * the server in this run: only the local copy is to go. */
gboolean mail_mover_is_only_here (MailStore *store, MailMailbox *mailbox, guint32 uid);
/* The server has it no more: now the local copy goes, if there is one, and the id. */
gboolean mail_mover_forget (MailStore *store, MailMailbox *mailbox, guint32 uid, GError **error);

/* readahead.c */
MailReadahead *mail_readahead_new (MailStore *store);
void mail_readahead_free (MailReadahead *readahead);
/* Any thread: [offset, end) of a message of size bytes is being read; missed: it was not in the
 * cache. May start fetching what comes next. */
void mail_readahead_note (MailReadahead *readahead, MailMailbox *mailbox, guint32 content_id,
                          guint32 uid, guint64 size, guint64 offset, guint64 end, gboolean missed);
/* What is asked for ahead is asked for in windows, a part at a time. The size of the next one, when a
 * part of this one (bytes) lasted so long (µs). */
guint64 mail_readahead_window (guint64 window, gint64 lasted);
/* Any thread: somebody who walks through this mailbox may be reading the message just now. */
gboolean mail_readahead_is_near (MailReadahead *readahead, MailMailbox *mailbox,
                                 guint32 content_id, guint32 uid);
