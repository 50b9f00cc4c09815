/* SPDX-License-Identifier: MIT
 *
 * Names: how mailboxes, messages and flags are spelled where the user sees them, both ways. Pure
 * functions, any thread; nothing here knows the store, the index or FUSE.
 */
#pragma once

#include "mailfs/backend.h"
#include "mailfs/config.h"

#define FS_NAMES_MAX 255         /* bytes in one component */
#define FS_NAMES_MESSAGE_SIZE 64 /* buffer for a message name, the NUL included */

/* --- mailboxes ------------------------------------------------------------------------------ */

/* The file name of one component of a mailbox path; never empty, never longer than FS_NAMES_MAX,
 * without '/', a leading dot or the look of a message. raw: text could not be decoded, it is bytes
 * of the wire and shown in ASCII. Two different components never get one name, provided that raw
 * ones hold '&' or a byte above 0x7f (else there was nothing to decode), except that a name too
 * long to be shown is told apart by 64 bits of a digest. */
char *fs_names_escape_part (const char *text, gboolean raw, MailLayout layout);

/* The other way, for a mailbox somebody wants to make: UTF-8, never empty. MAIL_ERROR_INVALID for a
 * name that no new mailbox would be shown under (not canonical, not UTF-8, shortened);
 * MAIL_ERROR_NAME for more than FS_NAMES_MAX bytes. */
char *fs_names_unescape_part (const char *name, MailLayout layout, GError **error);

/* --- messages ------------------------------------------------------------------------------- */

/* layout=flat: "0000000042.1700000000.eml". buffer holds FS_NAMES_MESSAGE_SIZE bytes. */
void fs_names_message (char *buffer, guint32 uid, guint32 uidvalidity);
/* Only what fs_names_message writes is a message name, to the byte. uid is never 0. */
gboolean fs_names_parse_message (const char *name, guint32 *uid_out, guint32 *uidvalidity_out);

/* POP3: "pop-0123456789abcdef.eml", a digest of the UIDL. buffer as above. */
void fs_names_pop (char *buffer, const char *remote_id);

/* layout=maildir: "0000000042.1700000000,S=1234:2,FS". keywords: space-separated, may be NULL;
 * $Forwarded is the letter P. */
char *fs_names_maildir (guint32 uid, guint32 uidvalidity, guint64 size, guint8 flags,
                        const char *keywords);
/* Whether two of these names differ in nothing but the size, which both have. */
gboolean fs_names_maildir_differ_in_size (const char *name, const char *other);
/* Any ",S=" and ",W=" fields, any info or none (":2," and letters, of which unknown ones count for
 * nothing). has_info: there was a ':' part, as names in cur/ have. Every _out may be NULL. */
gboolean
fs_names_parse_maildir (const char *name, guint32 *uid_out, guint32 *uidvalidity_out,
                        guint8 *flags_out, gboolean *forwarded_out, gboolean *has_info_out);
/* A name without its info: what a message keeps when its flags change. The caller's. */
char *fs_names_maildir_base (const char *name);
/* The same for the info alone, of a name that somebody gave ("1699.M5P3.host:2,S"). */
void fs_names_parse_maildir_info (const char *name, guint8 *flags_out, gboolean *forwarded_out,
                                  gboolean *has_info_out);

/* A name that programs use while they write, before they rename to the final one: it stays local.
 */
gboolean fs_names_is_temporary (const char *name);

/* --- flags ---------------------------------------------------------------------------------- */

/* The text of user.imap.flags, words sorted bytewise: "$Forwarded \Answered \Seen work". */
char *fs_names_flags_text (guint8 flags, const char *keywords);
/* length bytes of text, not NUL-terminated; white space separates, a NUL at the end is allowed.
 * System flags in any capitals; \Recent counts for nothing. keywords_out: sorted, each once (in any
 * capitals), space-separated, "" for none, the caller's. MAIL_ERROR_INVALID. */
gboolean fs_names_parse_flags (const char *text, gsize length, guint8 *flags_out,
                               char **keywords_out, GError **error);

/* keywords (may be NULL) with or without $Forwarded, which is the P of a Maildir name. */
char *fs_names_set_forwarded (const char *keywords, gboolean forwarded);
