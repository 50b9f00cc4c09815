/* SPDX-License-Identifier: MIT
 *
 * One listing of a mailbox, between sync.c (what the backend reports, start and end) and merge.c
 * (what becomes of it). Net thread.
 */
#pragma once

#include "mail/store-private.h"

typedef struct
{
  MailSyncSink sink;
  MailMailbox *mailbox;
  char *name;
  guint32 content_id;
  guint number; /* how many listings of this mailbox were begun, with this one */
  MailMailboxStatus known;
  guint32 uidvalidity;
  gboolean begun, complete, has_present;
  GArray *messages;      /* of MailMessage: all of them (complete), else the new ones */
  GPtrArray *remote_ids; /* beside messages with MAIL_CAP_REMOTE_IDS, else NULL */
  gint64 began;          /* monotonic µs */
  GArray *flags;         /* of MailMessage: only flags, keywords, modseq */
  MailUidSet *vanished, *present;
  guint n_vanished; /* of mail_uid_set_gather */
  gboolean too_many;
} MailSync;

/* merge.c: the listing is complete, and becomes what readers see, in one step. */
void mail_sync_merge (MailSync *sync, const MailSyncResult *result);
