/* SPDX-License-Identifier: MIT
 *
 * MailStore: the account as src/fs sees it, and its only door: a tree of mailboxes, their messages,
 * the bytes of a message. It joins backend, index, cache and stage.
 *
 * Functions that may need the server come in one form: they answer at once when they can, else they
 * park the waiter and return MAIL_PARKED; the waiter is then woken exactly once, on the net thread,
 * and the caller asks again (or gives up with the error). With waiter NULL they only try: MAIL_PARKED
 * then means "not without the server" and nothing was started. Any thread may call; nothing blocks on
 * the network. Lock order: tree, mailbox, fetches, cache file. No lock is held while a waiter is woken,
 * an event is delivered or a backend is called.
 */
#pragma once

#include "mailfs/backend.h"
#include "mailfs/cache.h"
#include "mailfs/index.h"

typedef struct MailStore MailStore;
typedef struct MailMailbox MailMailbox; /* a directory; reference counted */

typedef struct
{
  char *dir; /* the account's cache directory, locked by the caller */
  char *account_key;
  char *root_mailbox; /* decoded path of the mailbox that is the root of the mount, or NULL */
  guint64 cache_size; /* bytes */
  guint refresh;      /* seconds */
  guint timeout;      /* seconds a reader waits while nothing comes; 0: for ever */
  gboolean eol_lf, subscribed, offline, read_only, sync;
  char *trash;        /* "auto", "none" or an escaped mailbox path */
  char *pop3_dir;     /* POP3: the durable directory for messages that are only here, else NULL */
  gboolean pop3_delete; /* all messages move there; else only those the server hides */
} MailStoreOptions;

/* How names look is fs's business; the store calls these. Results are the caller's. */
typedef struct
{
  char *(*mailbox_part) (const char *text, gboolean raw);
  char *(*parse_mailbox_part) (const char *name, GError **error);
  char *(*remote_name) (const char *remote_id);
  /* What a message goes on being called that was written or moved here under this file name. NULL:
   * just that. */
  char *(*message_name) (const char *name);
  /* A staged file's area whose files a mail reader knows already (MAIL_LOCAL_OLD); 0: none. */
  guint old_area;
  gboolean flags_in_names; /* a change of flags is a change of a directory's entries */
} MailNaming;

/* What the kernel must be told. Net thread, or a thread that calls into the store; no locks held.
 * What the kernel did itself when it was asked to, with names, it is not told.
 * message: old and now are NULL when it came or went; name is the user's name for it, or NULL, and
 * NULL too for what came under a name that was no other file's. */
typedef struct
{
  void (*message) (gpointer user_data, MailMailbox *mailbox, const MailMessage *old,
                   const MailMessage *now, const char *name);
  /* The server's claim was wrong. Before any reader is answered. */
  void (*size_known) (gpointer user_data, guint32 content_id, guint32 uid, guint64 claimed,
                      guint64 size);
  /* A message that was fetched ahead of a reader is here, whole and as long as claimed. Net thread. */
  void (*fetched_ahead) (gpointer user_data, guint32 content_id, guint32 uid, const guint8 *bytes,
                         gsize length);
  /* Somebody walks through what is in the cache and will want these next. In a read. */
  void (*walks_on) (gpointer user_data, guint32 content_id, const guint32 *uids, guint n);
  /* What was served of this message is not to be trusted any more. */
  void (*contents_dropped) (gpointer user_data, guint32 content_id, guint32 uid);
  void (*directory) (gpointer user_data, MailMailbox *mailbox); /* its entries changed */
  void (*mailbox_gone) (gpointer user_data, guint32 parent_id, guint32 id, const char *leaf);
  /* The mailbox has another UIDVALIDITY; this was a message of the old one. */
  void (*replaced) (gpointer user_data, MailMailbox *mailbox, guint32 content_id,
                    guint32 uidvalidity, const MailMessage *old, const char *name);
} MailStoreEvents;

typedef struct MailWaiter MailWaiter;
struct MailWaiter
{
  void (*wake) (MailWaiter *waiter, const GError *error);
  GList link;   /* the store's while parked */
  gint64 since; /* monotonic µs when the operation began: news from later than this are fresh */
  guint64 offset, length;
  guint n_in_vain; /* how often the message came whole, and this part of it could not be kept */
};

typedef enum
{
  MAIL_READY,
  MAIL_PARKED,
  MAIL_FAILED, /* error is set */
} MailAnswer;

/* The net context must not run yet, or this must be called on it. Takes backend. */
MailStore *mail_store_new (const MailStoreOptions *options, GMainContext *net, MailBackend *backend,
                           const MailNaming *naming, GError **error);
void mail_store_set_events (MailStore *store, const MailStoreEvents *events, gpointer user_data);
/* Net thread. Logs in (unless offline) and lists; done runs once. With an error that is about the
 * network while something is known already, the store works from what it has and error is NULL. */
void mail_store_start (MailStore *store, MailDoneFunc done, gpointer user_data);
/* Net thread. Sends what is queued, then closes the backend; done runs once; error: something stays
 * in the spool. */
void mail_store_stop (MailStore *store, MailDoneFunc done, gpointer user_data);
/* After stop; no other thread may be in the store any more. */
void mail_store_free (MailStore *store);
/* Starts `waiter` off: sets since, clears the rest. */
void mail_waiter_init (MailWaiter *waiter, void (*wake) (MailWaiter *waiter, const GError *error));
gboolean mail_store_is_read_only (MailStore *store);
guint mail_store_caps (MailStore *store);
const char *mail_store_keywords (MailStore *store, guint32 keywords_id);
/* "name value" lines for .mailfs/status; the caller's. */
MailAnswer mail_store_status_text (MailStore *store, char **text_out, MailWaiter *waiter);

/* --- tree ---------------------------------------------------------------------------------- */

#define MAIL_ROOT_ID 1u

MailMailbox *mail_mailbox_ref (MailMailbox *mailbox);
void mail_mailbox_unref (MailMailbox *mailbox);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (MailMailbox, mail_mailbox_unref)

/* By directory id (MAIL_ROOT_ID is the root) or by content id; NULL when it is gone. */
MailMailbox *mail_store_mailbox (MailStore *store, guint32 id);
MailMailbox *mail_store_contents (MailStore *store, guint32 content_id);
/* The list of mailboxes is at most `refresh` old, or as good as it gets now. */
MailAnswer mail_store_fresh_tree (MailStore *store, MailWaiter *waiter, GError **error);
MailMailbox *mail_mailbox_child (MailMailbox *mailbox, const char *leaf);
/* The child with the smallest id above `id`; 0 to begin. */
MailMailbox *mail_mailbox_next_child (MailMailbox *mailbox, guint32 id);
guint mail_mailbox_n_children (MailMailbox *mailbox);
MailMailbox *mail_mailbox_parent (MailMailbox *mailbox); /* NULL for the root */

guint32 mail_mailbox_id (MailMailbox *mailbox);
guint32 mail_mailbox_content_id (MailMailbox *mailbox);
char *mail_mailbox_leaf (MailMailbox *mailbox); /* escaped; "" for the root; the caller's */
/* Holds messages at all (not \Noselect, not a mere parent). */
gboolean mail_mailbox_selectable (MailMailbox *mailbox);

typedef struct
{
  guint32 uidvalidity, uidnext;
  gint64 mtime;        /* seconds since the epoch: last time a message or child came or went */
  guint64 generation;  /* another number whenever the entries have changed */
  guint64 flag_changes; /* another number whenever a listing has changed flags */
  gboolean may_write;  /* anything at all can be changed here */
  gboolean known;      /* has been listed at least once, messages are loaded */
} MailMailboxInfoNow;
/* The time of the directory as the user wants it, until its entries change. Local. */
void mail_mailbox_set_mtime (MailMailbox *mailbox, gint64 mtime);
void mail_mailbox_info (MailMailbox *mailbox, MailMailboxInfoNow *info_out);
/* Messages listed, and those of them without \\Seen; linear in the size of the mailbox. */
void mail_mailbox_count (MailMailbox *mailbox, guint32 *n_messages_out, guint32 *n_unseen_out);
/* Decoded path ("Archive/2024") and special use ("\\Trash" or NULL); the caller's. */
char *mail_mailbox_display_name (MailMailbox *mailbox);
char *mail_mailbox_special_use (MailMailbox *mailbox);

/* --- messages ------------------------------------------------------------------------------ */

/* The listing is known, and at most max_age seconds old (0: `refresh`) or as good as it gets. */
MailAnswer mail_mailbox_fresh (MailMailbox *mailbox, guint max_age, MailWaiter *waiter,
                               GError **error);
/* A listing is in memory, however old; starts nothing when it is. */
MailAnswer mail_mailbox_known (MailMailbox *mailbox, MailWaiter *waiter, GError **error);
gboolean mail_mailbox_find (MailMailbox *mailbox, guint32 uid, MailMessage *message_out);
/* As find, and also messages removed a while ago that an open file may still want. */
gboolean mail_mailbox_find_gone (MailMailbox *mailbox, guint32 uid, MailMessage *message_out);
/* Fills in up to n_max messages with UIDs above uid, in order; returns how many. names_out gets the
 * users' names (caller's) or NULL each; may be NULL. */
guint mail_mailbox_next (MailMailbox *mailbox, guint32 uid, MailMessage *messages_out,
                         char **names_out, guint n_max);
/* Seconds since the epoch: the last change of flags or name, else the INTERNALDATE. */
gint64 mail_message_changed (const MailMessage *message);
/* A name given by a user (POP3: the name of the remote id) and back; caller's; NULL without one. */
char *mail_mailbox_name_of (MailMailbox *mailbox, guint32 uid);
guint32 mail_mailbox_uid_of_name (MailMailbox *mailbox, const char *name);

/* --- reading ------------------------------------------------------------------------------- */

/* Up to length bytes; fewer only at the end of the message. length at most 1 MiB. */
MailAnswer mail_store_read (MailStore *store, MailMailbox *mailbox, guint32 uid, guint64 offset,
                            void *buffer, gsize length, gsize *n_out, MailWaiter *waiter,
                            GError **error);
/* For walks_on. All of a message that is in the cache and as long as the server claims: its length;
 * -1 when it is not, or longer than size, or the walker may be reading it himself by now. */
gssize mail_store_read_ahead (MailStore *store, guint32 content_id, guint32 uid, void *buffer,
                              gsize size);
/* The whole message is held and its length exact (eol=lf at open). */
MailAnswer mail_store_fetch_whole (MailStore *store, MailMailbox *mailbox, guint32 uid,
                                   MailWaiter *waiter, GError **error);
/* Whether the length the server claims is one that no message has, so that nobody would ever read: it
 * must be fetched before anybody is told. */
gboolean mail_message_size_is_absurd (const MailMessage *message);
guint64 mail_store_cached_bytes (MailStore *store, MailMailbox *mailbox, guint32 uid);

/* used and limit in bytes, at most a minute old; limit 0: there is none. */
MailAnswer mail_store_quota (MailStore *store, guint64 *used_out, guint64 *limit_out,
                             MailWaiter *waiter);
