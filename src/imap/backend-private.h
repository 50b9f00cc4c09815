/* SPDX-License-Identifier: MIT
 *
 * ImapBackend and the operations behind its table, a file for each kind. Each operation is a job: a
 * struct that owns its tasks, puts them into the pool, gathers what comes back, and calls its
 * `done` once. Net thread.
 */
#pragma once

#include "imap/backend.h"
#include "imap/pool.h"
#include "imap/session.h"

/* What was learnt about a mailbox beside its messages. */
typedef struct
{
  gconstpointer listed; /* the list that had it last; only compared */
  gboolean has_delimiter;
  char delimiter;         /* from LIST; 0 for NIL */
  gboolean has_permanent; /* from a SELECT: EXAMINE does not tell what could be set */
  gboolean read_only, any_keyword;
  guint8 permanent_flags;
  char *permanent_keywords;
} ImapMailboxNote;

typedef struct
{
  MailBackend base;
  const MailConfig *config;
  ImapPool *pool;
  GHashTable *notes;      /* wire name -> ImapMailboxNote */
  char delimiter;         /* of the root, from LIST; 0 when not seen */
  gboolean copyuid_seen;  /* the server names what it copied */
  gboolean ranges_broken; /* BODY[]<o.n> is not answered as asked */
} ImapBackend;

static inline ImapBackend *
imap_backend (MailBackend *self)
{
  return (ImapBackend *)self;
}

/* Made when missing. */
ImapMailboxNote *imap_backend_note (ImapBackend *backend, const char *mailbox);
/* Remembers what a SELECT told. */
void imap_backend_note_select (ImapBackend *backend, const ImapSelect *select);

void imap_list (MailBackend *self, gboolean subscribed_only, MailListSink *sink);
void imap_sync (MailBackend *self, const char *mailbox, const MailMailboxStatus *known,
                MailSyncSink *sink);
void imap_fetch (MailBackend *self, const MailFetchRequest *request, MailFetchSink *sink);
void imap_store_flags (MailBackend *self, const char *mailbox, guint32 uidvalidity,
                       const MailUidRange *uids, guint n_uids, guint8 add, const char *add_keywords,
                       guint8 remove, const char *remove_keywords, MailDoneFunc done,
                       gpointer user_data);
void
imap_copy (MailBackend *self, const char *mailbox, guint32 uidvalidity, const MailUidRange *uids,
           guint n_uids, const char *target, MailCopyFunc done, gpointer user_data);
void
imap_move (MailBackend *self, const char *mailbox, guint32 uidvalidity, const MailUidRange *uids,
           guint n_uids, const char *target, MailCopyFunc done, gpointer user_data);
void
imap_remove (MailBackend *self, const char *mailbox, guint32 uidvalidity, const MailUidRange *uids,
             guint n_uids, const char *const *remote_ids, MailDoneFunc done, gpointer user_data);
void imap_append (MailBackend *self, const char *mailbox, const MailAppendItem *items,
                  guint n_items, MailAppendFunc done, gpointer user_data);
char *imap_child_name (MailBackend *self, const char *parent, const char *leaf, GError **error);
void imap_create (MailBackend *self, const char *mailbox, MailDoneFunc done, gpointer user_data);
void imap_rename (MailBackend *self, const char *mailbox, const char *new_name, MailDoneFunc done,
                  gpointer user_data);
void imap_delete (MailBackend *self, const char *mailbox, MailDoneFunc done, gpointer user_data);
void imap_quota (MailBackend *self, MailQuotaFunc done, gpointer user_data);
