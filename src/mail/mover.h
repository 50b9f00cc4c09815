/* SPDX-License-Identifier: MIT
 *
 * MailMover: brings messages from a server that knows them by ids of its own (MAIL_CAP_REMOTE_IDS)
 * into the MailKeep. With pop3_delete all of them, after each listing, removing them from the
 * server when they are safe; without it only those that the server hides once they were read. Kept
 * messages stay in the listing whatever the server says. Net thread, unless a function says
 * otherwise.
 */
#pragma once

#include "mail/store-private.h"

/* Makes what is kept part of the mailbox, in memory and in the index. Before the threads run. */
MailMover *mail_mover_new (MailStore *store);
void mail_mover_free (MailMover *mover); /* NULL is fine */
/* Every `refresh`: the mailbox is looked at although nobody reads it, where its mail is to be
 * moved. */
void mail_mover_poll (MailMover *mover);

/* A complete listing is being merged: mailbox->lock is held. Kept messages it does not know get a
 * UID and are known from now on. */
void mail_mover_seed_locked (MailMover *mover, MailMailbox *mailbox, MailIndexBatch *batch);
/* The ids of messages that this listing does not report and that stay all the same: a set of char
 * *, the caller's. reported: a set too. began: when the listing was asked for, monotonic µs. */
GHashTable *mail_mover_retain_locked (MailMover *mover, MailMailbox *mailbox, GHashTable *reported,
                                      gint64 began);
/* It has been merged; reported in its order. No lock held. */
void mail_mover_listed (MailMover *mover, MailMailbox *mailbox, GPtrArray *reported);
/* The server sent a message whole. */
void mail_mover_fetched (MailMover *mover, MailMailbox *mailbox, guint32 content_id, guint32 uid);
