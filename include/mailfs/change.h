/* SPDX-License-Identifier: MIT
 *
 * Changing mail: what src/fs asks for, what src/mail journals, stages and sends. Any thread.
 *
 * Every change takes effect for local readers at once and is journaled before anything is sent. `done`
 * is called exactly once, with no lock held: normally when the server has answered, on the net thread;
 * in a burst (the change before was answered or acknowledged a moment ago and more follow at once)
 * when it is journaled, possibly before the function returns. After done said no error, a failure that
 * comes later puts things back where they were, is logged, and is reported once by the next change or
 * mail_store_drain in that mailbox. With MailStoreOptions.sync nothing is ever a burst.
 *
 * Errors known at once (read-only, no such mailbox, rights) come through done as well, and change
 * nothing. Messages are named by mailbox and UID; names that look like a message's are fs's business.
 */
#pragma once

#include "mailfs/store.h"

/* A file that is not (yet) a message of the server: being written, queued, or refused. Reference
 * counted; the spool file and its journal row live until the server is known to hold the message,
 * or the user removes it, whatever happens to the references. */
typedef struct MailStaged MailStaged;

/* --- messages that are there ----------------------------------------------------------------- */

/* The message is to have exactly these flags and keywords (space-separated). The difference goes out
 * as ±FLAGS. MAIL_ERROR_UNSUPPORTED: the mailbox cannot keep one of them (PERMANENTFLAGS). */
void mail_change_flags (MailStore *store, MailMailbox *mailbox, guint32 uid, guint8 flags,
                        const char *keywords, MailDoneFunc done, gpointer user_data);
/* An account without MAIL_CAP_FLAGS: what a Maildir reader marks is kept here only, at once. */
void mail_change_marks (MailStore *store, MailMailbox *mailbox, guint32 uid, guint8 flags,
                        const char *keywords);
/* Names are ours alone and stay local. NULL: back to the UID name. At once. */
void mail_change_name (MailStore *store, MailMailbox *mailbox, guint32 uid, const char *name);
/* A Maildir reader moved it from new to cur without setting a flag. Local, at once. */
void mail_change_old (MailStore *store, MailMailbox *mailbox, guint32 uid);
/* rm: to the trash, or gone for good inside the trash and with trash=none. POP3: DELE. */
void mail_change_remove (MailStore *store, MailMailbox *mailbox, guint32 uid, MailDoneFunc done,
                         gpointer user_data);
/* mv to another mailbox, named `name` there (NULL: by its UID; it is then not seen in target before
 * the server has answered). While the move is under way target lists a staged file of that name in
 * area, whose bytes are the message's (mail_staged_message). replaces: a message of target that had
 * that name is hidden at once and goes to the trash once the move is known to be done; 0: none. over: a staged file
 * that had that name, dropped once the move is accepted; or NULL. */
void mail_change_move (MailStore *store, MailMailbox *mailbox, guint32 uid, MailMailbox *target,
                       guint area, const char *name, guint32 replaces, MailStaged *over,
                       MailDoneFunc done, gpointer user_data);

/* A message that readers still know by the place it was moved from: TRUE and where it is now, or, while
 * the move is under way, the staged file it is meanwhile. What is found is the caller's. */
gboolean mail_store_follow (MailStore *store, guint32 content_id, guint32 uid,
                            MailMailbox **mailbox_out, guint32 *uid_out, MailStaged **staged_out);

/* --- staged files: what users write ---------------------------------------------------------- */

typedef enum
{
  MAIL_STAGED_LOCAL,  /* open, or under a temporary name: nobody asked to send it yet */
  MAIL_STAGED_QUEUED, /* committed; on its way */
  MAIL_STAGED_DONE,   /* the server has it: see content_id and uid */
  MAIL_STAGED_FAILED, /* refused for good: listed in .mailfs/failed only */
  MAIL_STAGED_DROPPED /* removed by the user */
} MailStagedState;

typedef struct
{
  guint32 id; /* never reused; the low half of its inode */
  MailStagedState state;
  guint area;      /* fs's tag for where in the mailbox's directory it stands (cur, new, tmp) */
  guint64 size;    /* bytes as read back */
  gint64 mtime;    /* seconds since the epoch */
  guint8 flags;
  guint32 keywords;     /* id, see mail_store_keywords */
  guint32 replaces_uid; /* the message whose place it takes (truncated and written anew), or 0 */
  guint32 replaces_content;
  guint n_emptied; /* how often it was truncated to nothing */
  guint32 content_id, uid; /* once DONE */
} MailStagedInfo;

/* An empty file `name` in mailbox; it is journaled. temporary: as fs's names have it; such a file is
 * sent only after a rename to a name that is not. MAIL_ERROR_NO_SPACE, PERMISSION, READ_ONLY … */
MailStaged *mail_stage_create (MailStore *store, MailMailbox *mailbox, guint area, const char *name,
                               gboolean temporary, GError **error);
/* The message was truncated to nothing: what is now written to its inode goes here. When something is
 * written and committed, the new message takes its name and the old one goes to the trash; when
 * nothing is, nothing happens. The message stays listed until then, this one never is. uid_name: what
 * the message is called when it has no name of its own, or NULL. The same one again while it exists. */
MailStaged *mail_stage_replacement (MailStore *store, MailMailbox *mailbox, guint32 uid,
                                    const char *uid_name, GError **error);
MailStaged *mail_stage_find_replacement (MailStore *store, guint32 content_id, guint32 uid); /* or NULL */

MailStaged *mail_staged_ref (MailStaged *staged);
void mail_staged_unref (MailStaged *staged);
G_DEFINE_AUTOPTR_CLEANUP_FUNC (MailStaged, mail_staged_unref)

/* By id: any state but DROPPED, as long as somebody may ask (DONE ones until the mount ends). */
MailStaged *mail_stage_find (MailStore *store, guint32 id);
/* The kernel has been given its inode: it is kept until mail_staged_forget. What only stood for a
 * message on the move and nobody knows goes with the end of the move. */
void mail_stage_known (MailStore *store, guint32 id);
/* LOCAL and QUEUED ones in a mailbox: by name within area; and in order of id, above `id`. A QUEUED
 * one disappears from here in the same step in which its message appears in the listing: who looks
 * here first and at the messages afterwards never misses it. */
MailStaged *mail_stage_lookup (MailStore *store, MailMailbox *mailbox, guint area, const char *name);
MailStaged *mail_stage_next (MailStore *store, MailMailbox *mailbox, guint area, guint32 id);
guint mail_stage_count (MailStore *store, MailMailbox *mailbox); /* for rmdir: not empty */
MailStaged *mail_stage_next_failed (MailStore *store, guint32 id);

void mail_staged_info (MailStaged *staged, MailStagedInfo *info_out);
char *mail_staged_name (MailStaged *staged);         /* the caller's */
MailMailbox *mail_staged_mailbox (MailStaged *staged); /* a reference; NULL when it is gone */
char *mail_staged_error (MailStaged *staged);        /* why it FAILED, one line; the caller's */
/* The message whose bytes these are: the source of a copy or move that is under way, or, of a DONE one
 * that has been forgotten, itself. NULL: mail_staged_read has them. A reference. */
MailMailbox *mail_staged_message (MailStaged *staged, guint32 *uid_out);

/* Bytes. DONE ones read what was written too. write and truncate: LOCAL only after that a QUEUED or
 * DONE one becomes dirty again (it is then appended anew and the older copy retired). */
gssize mail_staged_read (MailStaged *staged, guint64 offset, void *buffer, gsize length,
                         GError **error);
gboolean mail_staged_write (MailStaged *staged, guint64 offset, const void *data, gsize length,
                            GError **error);
gboolean mail_staged_truncate (MailStaged *staged, guint64 size, GError **error);
/* Date and flags it will be appended with. On a QUEUED one not sent yet they still count; on a DONE
 * one flags become mail_change_flags, a date is ignored. MAIL_ERROR_UNSUPPORTED: as there. */
void mail_staged_set_mtime (MailStaged *staged, gint64 mtime);
gboolean mail_staged_set_flags (MailStaged *staged, guint8 flags, const char *keywords,
                                GError **error);
/* copy_file_range of a whole message onto an empty staged file: no bytes cross the wire; committed as
 * UID COPY, unless it is written to, or given a date or flags other than the source's, later: then it
 * becomes a normal one (its bytes are fetched first). MAIL_ERROR_INVALID: not empty. */
gboolean mail_staged_copy_from (MailStaged *staged, MailMailbox *source, guint32 uid,
                                GError **error);

/* flush, fsync. Nothing dirty, or a temporary name: done at once without an error. An empty file, one
 * with NUL bytes or without a header: MAIL_ERROR_INVALID, and it goes to failed. wait: fsync, never
 * acknowledged early. An empty file that nothing was ever written to is left alone unless wait. */
void mail_staged_commit (MailStaged *staged, gboolean wait, MailDoneFunc done, gpointer user_data);
/* rename, also into another mailbox or area. A name that is not temporary commits it when it has
 * content. replaces_uid: a message of that name in target, retired after the new one is verified;
 * replaces: a staged file of that name, dropped. */
void mail_staged_rename (MailStaged *staged, MailMailbox *target, guint area, const char *name,
                         gboolean temporary, guint32 replaces_uid, MailStaged *replaces,
                         MailDoneFunc done, gpointer user_data);
/* unlink; one that is on its way is removed from the server as soon as it is there. */
void mail_staged_drop (MailStaged *staged, MailDoneFunc done, gpointer user_data);
/* The messages by whose inodes it can be written, each content id << 32 | UID: the one it replaces, and
 * earlier versions that somebody may still have open. The caller's. */
GArray *mail_staged_numbers (MailStaged *staged);
/* The kernel does not know that one any more; the message it replaces now stays. */
void mail_staged_forget_number (MailStaged *staged, guint64 number);
/* The kernel forgot its inode: an empty one nobody will write to any more goes to failed, and one that
 * stands for a message is dropped. Nothing happens if it was emptied since its n_emptied was asked for:
 * whoever did that is going to write. */
void mail_staged_forget (MailStaged *staged, guint n_emptied);

/* --- mailboxes; never a burst ---------------------------------------------------------------- */

/* leaf: the file name as the user wrote it. MAIL_ERROR_EXISTS, INVALID, CANNOT … */
void mail_change_mkdir (MailStore *store, MailMailbox *parent, const char *leaf, MailDoneFunc done,
                        gpointer user_data);
/* DELETE, only after a fresh look shows no message and no child: MAIL_ERROR_NOT_EMPTY. Never INBOX nor
 * special-use ones: MAIL_ERROR_CANNOT. */
void mail_change_rmdir (MailStore *store, MailMailbox *mailbox, MailDoneFunc done,
                        gpointer user_data);
/* RENAME of the tree; an empty directory that is in the way is removed first when replace_empty. */
void mail_change_rename_mailbox (MailStore *store, MailMailbox *mailbox, MailMailbox *new_parent,
                                 const char *leaf, gboolean replace_empty, MailDoneFunc done,
                                 gpointer user_data);

/* --- the queue ------------------------------------------------------------------------------- */

/* fsync of a directory, unmount: when everything queued for mailbox (NULL: at all) has been answered;
 * the error of what failed since the last report. */
void mail_store_drain (MailStore *store, MailMailbox *mailbox, MailDoneFunc done,
                       gpointer user_data);
/* One line for each pending change, oldest first, for .mailfs/queue: "12 move INBOX/42 to Archive".
 * The caller's (GPtrArray of char *). */
GPtrArray *mail_store_queue_lines (MailStore *store);
