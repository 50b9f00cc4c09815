/* SPDX-License-Identifier: MIT
 *
 * Directories: look-up, opendir, readdir and readdirplus. A directory offset says by itself where
 * to go on (a child mailbox by id, a message by UID), so that a listing that takes long meets every
 * message that stays exactly once, whatever comes and goes meanwhile. FUSE threads and, after a
 * wait, the net thread.
 */
#include "fs/private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <string.h>

/* Directory offsets: what was given out last. The order of the stages is that of the numbers. */
#define OFFSET_DOT 1
#define OFFSET_DOT_DOT 2
#define OFFSET_SUBDIR 3 /* cur, new, tmp: 3, 4, 5 */
#define OFFSET_CHILD (G_GINT64_CONSTANT (1) << 32)
#define OFFSET_STAGED (G_GINT64_CONSTANT (2) << 32)
#define OFFSET_MESSAGE (G_GINT64_CONSTANT (3) << 32)

static const char *const maildir_names[] = { "cur", "new", "tmp" };

/* --- look-up --------------------------------------------------------------------------------- */

void
fs_reply_entry (FsOp *op, const struct stat *st, double timeout)
{
  struct fuse_entry_param entry = { 0 };

  entry.ino = st->st_ino;
  entry.attr = *st;
  entry.attr_timeout = entry.entry_timeout = timeout;
  if (fs_op_take (op))
    fuse_reply_entry (op->req, &entry);
}

static void
reply_mailbox (FsOp *op, MailMailbox *mailbox, FsNodeKind kind)
{
  struct stat st;

  fs_stat_dir (op->server, mailbox, kind, &st);
  fs_reply_entry (op, &st, FS_TIMEOUT);
}

void
fs_vacate_name (FsServer *server, MailMailbox *mailbox, guint32 uid, gboolean vacated)
{
  guint64 ino = fs_ino_message (mail_mailbox_content_id (mailbox), uid);

  g_mutex_lock (&server->lock);
  if (vacated)
    g_hash_table_add (server->vacated, g_memdup2 (&ino, sizeof ino));
  else
    g_hash_table_remove (server->vacated, &ino);
  g_mutex_unlock (&server->lock);
}

static gboolean
has_vacated (FsServer *server, MailMailbox *mailbox, guint32 uid)
{
  guint64 ino = fs_ino_message (mail_mailbox_content_id (mailbox), uid);

  g_mutex_lock (&server->lock);
  gboolean has = g_hash_table_contains (server->vacated, &ino);
  g_mutex_unlock (&server->lock);
  return has;
}

gboolean
fs_find_by_name (FsServer *server, MailMailbox *mailbox, FsNodeKind kind, const char *name,
                 MailMessage *message)
{
  MailMailboxInfoNow info;
  guint32 uid, uidvalidity;
  guint8 flags;
  gboolean forwarded, has_info;

  mail_mailbox_info (mailbox, &info);
  if (fs_is_maildir (server))
    {
      g_autofree char *base = fs_names_maildir_base (name);

      uid = mail_mailbox_uid_of_name (mailbox, base);
      gboolean given = uid != 0;
      if (!given
          && (!fs_names_parse_maildir (name, &uid, &uidvalidity, &flags, &forwarded, &has_info)
              || uidvalidity != info.uidvalidity || has_vacated (server, mailbox, uid)))
        return FALSE;
      if (!mail_mailbox_find (mailbox, uid, message)
          || !fs_dir_holds (kind, MAIL_LAYOUT_MAILDIR, message))
        return FALSE;
      g_autofree char *now = fs_message_name (server, info.uidvalidity, message,
                                              given ? base : NULL);
      /* What was listed with the size that the server claimed is the same with the true one. */
      return strcmp (now, name) == 0 || (!given && fs_names_maildir_differ_in_size (now, name));
    }
  uid = mail_mailbox_uid_of_name (mailbox, name);
  if (uid != 0 && mail_mailbox_find (mailbox, uid, message))
    return TRUE;
  return fs_names_parse_message (name, &uid, &uidvalidity) && uidvalidity == info.uidvalidity
         && mail_mailbox_find (mailbox, uid, message) && !has_vacated (server, mailbox, uid);
}

/* What is being written hides a message of the same name, which it is about to replace. */
static gboolean
try_staged (FsOp *op, const FsNode *dir)
{
  FsServer *server = op->server;
  g_autoptr (MailStaged) staged = mail_stage_lookup (server->store, dir->mailbox,
                                                     fs_area (dir->kind), op->name);
  struct fuse_entry_param entry = { 0 };

  if (staged == NULL)
    return FALSE;
  fs_stat_staged (server, staged, &entry.attr);
  entry.ino = entry.attr.st_ino;
  if (!fs_op_take (op))
    return TRUE;
  fs_staged_remember (server, (guint32)entry.ino);
  if (fuse_reply_entry (op->req, &entry) != 0)
    fs_staged_forget (server, entry.ino, 1);
  return TRUE;
}

/* When a message goes, the kernel is told of the name it is listed under, or knows it. The other,
 * that of its UID or that of a size that was wrong, must not outlive it. */
static gboolean
is_listed_name (FsOp *op, const FsNode *dir, const MailMessage *message)
{
  g_autofree char *given = mail_mailbox_name_of (dir->mailbox, message->uid);
  MailMailboxInfoNow info;

  if (given == NULL && !fs_is_maildir (op->server))
    return TRUE;
  mail_mailbox_info (dir->mailbox, &info);
  g_autofree char *listed = fs_message_name (op->server, info.uidvalidity, message, given);
  return strcmp (op->name, listed) == 0;
}

/* Answers when the message is there; FALSE: it is not. */
static gboolean
try_message (FsOp *op, const FsNode *dir)
{
  guint32 content_id = mail_mailbox_content_id (dir->mailbox);
  MailMessage message;
  struct stat st;

  if (try_staged (op, dir))
    return TRUE;
  if (!fs_find_by_name (op->server, dir->mailbox, dir->kind, op->name, &message))
    return FALSE;
  FsNode node = { .kind = FS_NODE_MESSAGE, .mailbox = dir->mailbox, .uid = message.uid };
  if (!fs_size_ready (op, &node))
    return TRUE;
  mail_mailbox_find (dir->mailbox, message.uid, &message);
  fs_stat_message (op->server, dir->mailbox, content_id, &message, &st);
  fs_reply_entry (op, &st, is_listed_name (op, dir, &message) ? FS_TIMEOUT : 0);
  return TRUE;
}

/* Whether this kind of directory lists messages in this layout. */
static gboolean
lists_messages (const FsServer *server, const FsNode *dir)
{
  if (dir->kind == FS_NODE_MAILBOX)
    return !fs_is_maildir (server) && mail_mailbox_selectable (dir->mailbox);
  return dir->kind == FS_NODE_CUR || dir->kind == FS_NODE_NEW;
}

static void
lookup_message (FsOp *op, const FsNode *dir)
{
  GError *error = NULL;

  if (!lists_messages (op->server, dir))
    {
      if (dir->kind != FS_NODE_TMP || !try_staged (op, dir))
        fs_op_fail (op, ENOENT);
    }
  else if (!fs_op_check (op, mail_mailbox_known (dir->mailbox, fs_op_waiter (op), &error), &error)
           || try_message (op, dir))
    return;
  /* Not in what we know: only a fresh listing proves that it is not there. */
  else if (fs_op_check (op, mail_mailbox_fresh (dir->mailbox, 0, fs_op_waiter (op), &error), &error)
           && !try_message (op, dir))
    fs_op_fail (op, ENOENT);
}

static void
lookup_in_mailbox (FsOp *op, const FsNode *dir)
{
  guint32 uid, uidvalidity;
  GError *error = NULL;

  if (fs_is_maildir (op->server) && mail_mailbox_selectable (dir->mailbox))
    for (guint i = 0; i < G_N_ELEMENTS (maildir_names); i++)
      if (strcmp (op->name, maildir_names[i]) == 0)
        {
          reply_mailbox (op, dir->mailbox, FS_NODE_CUR + i);
          return;
        }

  g_autoptr (MailMailbox) child = mail_mailbox_child (dir->mailbox, op->name);
  if (child != NULL)
    {
      reply_mailbox (op, child, FS_NODE_MAILBOX);
      return;
    }
  /* Names with a leading dot are ours alone, and what is named like a message is no mailbox. */
  if (op->name[0] != '.' && !fs_names_parse_message (op->name, &uid, &uidvalidity))
    {
      if (!fs_op_check (op, mail_store_fresh_tree (op->server->store, fs_op_waiter (op), &error),
                        &error))
        return;
      child = mail_mailbox_child (dir->mailbox, op->name);
      if (child != NULL)
        {
          reply_mailbox (op, child, FS_NODE_MAILBOX);
          return;
        }
    }
  if (op->name[0] == '.' && mail_mailbox_uid_of_name (dir->mailbox, op->name) == 0)
    {
      if (!try_staged (op, dir))
        fs_op_fail (op, ENOENT);
    }
  else
    lookup_message (op, dir);
}

void
fs_lookup (FsOp *op)
{
  g_auto (FsNode) dir = { 0 };
  struct stat st;

  if (strlen (op->name) > FS_NAMES_MAX)
    {
      fs_op_fail (op, ENAMETOOLONG);
      return;
    }
  if (op->ino == FUSE_ROOT_ID && strcmp (op->name, ".mailfs") == 0)
    {
      fs_stat_special_dir (op->server, FS_INO_DOT_MAILFS, &st);
      fs_reply_entry (op, &st, FS_TIMEOUT);
      return;
    }
  fs_node_resolve (op->server, op->ino, &dir);
  switch (dir.kind)
    {
    case FS_NODE_MAILBOX:
      lookup_in_mailbox (op, &dir);
      break;
    case FS_NODE_CUR:
    case FS_NODE_NEW:
    case FS_NODE_TMP:
      lookup_message (op, &dir);
      break;
    case FS_NODE_DOT_MAILFS:
    case FS_NODE_FAILED:
    case FS_NODE_QUEUE:
      fs_special_lookup (op, &dir);
      break;
    default:
      fs_op_fail (op, dir.kind == FS_NODE_STALE ? ESTALE : ENOTDIR);
    }
}

/* --- opendir --------------------------------------------------------------------------------- */

static guint64
dir_generation (const FsNode *dir)
{
  MailMailboxInfoNow info;

  if (dir->mailbox == NULL)
    return 0;
  mail_mailbox_info (dir->mailbox, &info);
  /* Both only grow. Flags are in the names of cur, and say what is in new. */
  if (dir->kind == FS_NODE_CUR || dir->kind == FS_NODE_NEW)
    info.generation += info.flag_changes;
  return info.generation + 1;
}

void
fs_opendir (FsOp *op)
{
  FsServer *server = op->server;
  GError *error = NULL;
  g_auto (FsNode) dir = { 0 };

  fs_node_resolve (server, op->ino, &dir);
  if (dir.kind == FS_NODE_STALE)
    {
      fs_op_fail (op, ESTALE);
      return;
    }
  if (dir.kind == FS_NODE_MAILBOX
      && !fs_op_check (op, mail_store_fresh_tree (server->store, fs_op_waiter (op), &error),
                       &error))
    return;
  if (dir.mailbox != NULL && lists_messages (server, &dir)
      && !fs_op_check (op, mail_mailbox_fresh (dir.mailbox, 0, fs_op_waiter (op), &error), &error))
    return;

  guint64 generation = dir_generation (&dir);
  g_mutex_lock (&server->lock);
  guint64 *seen = g_hash_table_lookup (server->seen_generation, &op->ino);
  op->fi.cache_readdir = dir.mailbox != NULL; /* what .mailfs lists is another thing each time */
  op->fi.keep_cache = seen != NULL && *seen == generation;
  if (seen == NULL)
    {
      seen = g_new (guint64, 2);
      seen[1] = op->ino;
      g_hash_table_insert (server->seen_generation, &seen[1], seen);
    }
  *seen = generation;
  op->fi.fh = ++server->next_stream;
  g_mutex_unlock (&server->lock);
  if (fs_op_take (op))
    fuse_reply_open (op->req, &op->fi);
}

void
fs_releasedir (fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
  FsServer *server = fuse_req_userdata (req);
  guint64 stream = fi->fh;

  g_mutex_lock (&server->lock);
  g_hash_table_remove (server->streams, &stream);
  g_mutex_unlock (&server->lock);
  fuse_reply_err (req, 0);
}

/* --- readdir --------------------------------------------------------------------------------- */

typedef struct
{
  FsOp *op;
  char *buffer;
  size_t used;
} Listing;

/* FALSE: the buffer is full and the entry is not in it. */
static gboolean
add_entry (Listing *listing, const char *name, const struct stat *st, gint64 offset,
           gboolean instant)
{
  FsOp *op = listing->op;
  size_t left = op->size - listing->used, need;

  if (op->plus)
    {
      struct fuse_entry_param entry = { 0 };

      /* A zero inode hands out no lookup: what has another inode each time, or is counted. */
      entry.ino = instant ? st->st_ino : 0;
      entry.attr = *st;
      entry.attr_timeout = entry.entry_timeout = FS_TIMEOUT;
      need = fuse_add_direntry_plus (op->req, listing->buffer + listing->used, left, name, &entry,
                                     offset);
    }
  else
    need = fuse_add_direntry (op->req, listing->buffer + listing->used, left, name, st, offset);
  if (need > left)
    return FALSE;
  listing->used += need;
  return TRUE;
}

static gboolean
add (Listing *listing, const char *name, const struct stat *st, gint64 offset)
{
  return add_entry (listing, name, st, offset, TRUE);
}

static gboolean
add_dots (Listing *listing, const FsNode *dir)
{
  g_autoptr (MailMailbox) parent = dir->kind == FS_NODE_MAILBOX
                                       ? mail_mailbox_parent (dir->mailbox)
                                       : (dir->mailbox != NULL ? mail_mailbox_ref (dir->mailbox)
                                                               : NULL);
  struct stat st = { .st_mode = S_IFDIR, .st_ino = dir->ino };

  if (listing->op->offset < OFFSET_DOT && !add (listing, ".", &st, OFFSET_DOT))
    return FALSE;
  st.st_ino = parent != NULL ? fs_ino_mailbox (parent, FS_NODE_MAILBOX) : FUSE_ROOT_ID;
  return listing->op->offset >= OFFSET_DOT_DOT || add (listing, "..", &st, OFFSET_DOT_DOT);
}

static gboolean
add_subdirs (Listing *listing, const FsNode *dir)
{
  struct stat st;

  for (guint i = 0; i < G_N_ELEMENTS (maildir_names); i++)
    {
      if (listing->op->offset >= OFFSET_SUBDIR + i)
        continue;
      fs_stat_dir (listing->op->server, dir->mailbox, FS_NODE_CUR + i, &st);
      if (!add (listing, maildir_names[i], &st, OFFSET_SUBDIR + i))
        return FALSE;
    }
  return TRUE;
}

static gboolean
add_children (Listing *listing, const FsNode *dir)
{
  guint32 id = listing->op->offset > OFFSET_CHILD ? (guint32)listing->op->offset : 0;
  MailMailbox *child;
  gboolean fits = TRUE;

  while (fits && (child = mail_mailbox_next_child (dir->mailbox, id)) != NULL)
    {
      g_autofree char *leaf = mail_mailbox_leaf (child);
      struct stat st;

      id = mail_mailbox_id (child);
      fs_stat_dir (listing->op->server, child, FS_NODE_MAILBOX, &st);
      fits = add (listing, leaf, &st, OFFSET_CHILD | id);
      mail_mailbox_unref (child);
    }
  return fits;
}

/* What a listing has shown as a staged file may be a message by the time it comes to those: names
 * are remembered for as long as the directory is open. */
static void
note_staged (const FsOp *op, const char *name)
{
  FsServer *server = op->server;
  guint64 stream = op->fi.fh;

  g_mutex_lock (&server->lock);
  GHashTable *names = g_hash_table_lookup (server->streams, &stream);
  if (names == NULL)
    {
      names = g_hash_table_new_full (g_str_hash, g_str_equal, g_free, NULL);
      g_hash_table_insert (server->streams, g_memdup2 (&stream, sizeof stream), names);
    }
  g_hash_table_add (names, g_strdup (name));
  g_mutex_unlock (&server->lock);
}

static gboolean
was_staged (const FsOp *op, const char *name)
{
  FsServer *server = op->server;
  guint64 stream = op->fi.fh;

  g_mutex_lock (&server->lock);
  GHashTable *names = g_hash_table_lookup (server->streams, &stream);
  gboolean was = names != NULL && g_hash_table_contains (names, name);
  g_mutex_unlock (&server->lock);
  return was;
}

static void
begin_stream (const FsOp *op)
{
  guint64 stream = op->fi.fh;

  g_mutex_lock (&op->server->lock);
  g_hash_table_remove (op->server->streams, &stream);
  g_mutex_unlock (&op->server->lock);
}

static gboolean
add_staged (Listing *listing, const FsNode *dir)
{
  FsServer *server = listing->op->server;
  guint32 id = listing->op->offset > OFFSET_STAGED ? (guint32)listing->op->offset : 0;
  MailStaged *staged;
  gboolean fits = TRUE;

  while (fits
         && (staged = mail_stage_next (server->store, dir->mailbox, fs_area (dir->kind), id))
                != NULL)
    {
      g_autofree char *name = mail_staged_name (staged);
      struct stat st;

      fs_stat_staged (server, staged, &st);
      id = (guint32)st.st_ino;
      fits = add_entry (listing, name, &st, OFFSET_STAGED | id, FALSE);
      if (fits)
        note_staged (listing->op, name);
      mail_staged_unref (staged);
    }
  return fits;
}

/* The message of this name is about to be replaced by what is listed already. */
static gboolean
hidden_by_staged (FsServer *server, const FsNode *dir, const char *name)
{
  g_autoptr (MailStaged) staged = mail_stage_lookup (server->store, dir->mailbox,
                                                     fs_area (dir->kind), name);

  return staged != NULL;
}

static void
add_messages (Listing *listing, const FsNode *dir)
{
  FsServer *server = listing->op->server;
  guint32 content_id = mail_mailbox_content_id (dir->mailbox);
  guint32 uid = listing->op->offset > OFFSET_MESSAGE ? (guint32)listing->op->offset : 0;
  MailMessage messages[32];
  char *names[32];
  MailMailboxInfoNow info;
  gboolean fits = TRUE, any_staged = mail_stage_count (server->store, dir->mailbox) > 0;
  guint n;

  mail_mailbox_info (dir->mailbox, &info);
  while (fits
         && (n = mail_mailbox_next (dir->mailbox, uid, messages, names, G_N_ELEMENTS (messages)))
                > 0)
    for (guint i = 0; i < n; i++)
      {
        struct stat st;

        uid = messages[i].uid;
        if (fits && fs_dir_holds (dir->kind, server->config->layout, &messages[i]))
          {
            g_autofree char *name = fs_message_name (server, info.uidvalidity, &messages[i],
                                                     names[i]);

            fs_stat_message (server, dir->mailbox, content_id, &messages[i], &st);
            if (!was_staged (listing->op, name)
                && (!any_staged || !hidden_by_staged (server, dir, name)))
              fits = add_entry (listing, name, &st, OFFSET_MESSAGE | uid,
                                !mail_message_size_is_absurd (&messages[i]));
          }
        g_free (names[i]);
      }
}

static void
fill (Listing *listing, const FsNode *dir)
{
  FsServer *server = listing->op->server;

  if (listing->op->offset == 0)
    begin_stream (listing->op);
  if (!add_dots (listing, dir) || dir->mailbox == NULL)
    return;
  if (dir->kind == FS_NODE_MAILBOX && fs_is_maildir (server)
      && mail_mailbox_selectable (dir->mailbox) && !add_subdirs (listing, dir))
    return;
  if (dir->kind == FS_NODE_MAILBOX && listing->op->offset < OFFSET_STAGED
      && !add_children (listing, dir))
    return;
  if (listing->op->offset < OFFSET_MESSAGE && !add_staged (listing, dir))
    return;
  if (lists_messages (server, dir))
    add_messages (listing, dir);
}

/* .mailfs and below: few entries, whose inodes are others at each look-up. */
static void
fill_special (Listing *listing, const FsNode *dir)
{
  char *name;
  struct stat st = { 0 };
  gboolean fits = add_dots (listing, dir);

  for (guint n = MAX (listing->op->offset, OFFSET_DOT_DOT) - OFFSET_DOT_DOT;
       fits && (name = fs_special_entry (listing->op->server, dir, n, &st)) != NULL; n++)
    {
      fits = add_entry (listing, name, &st, OFFSET_DOT_DOT + n + 1, FALSE);
      g_free (name);
    }
}

gboolean
fs_maildir_part_empty (FsServer *server, MailMailbox *mailbox, const char *name)
{
  FsNodeKind kind = strcmp (name, "cur") == 0   ? FS_NODE_CUR
                    : strcmp (name, "new") == 0 ? FS_NODE_NEW
                                                : FS_NODE_TMP;
  g_autoptr (MailStaged) staged = mail_stage_next (server->store, mailbox, fs_area (kind), 0);
  MailMessage messages[32];
  guint32 uid = 0;
  guint n;

  if (staged != NULL)
    return FALSE;
  while ((n = mail_mailbox_next (mailbox, uid, messages, NULL, G_N_ELEMENTS (messages))) > 0)
    for (guint i = 0; i < n; i++)
      {
        uid = messages[i].uid;
        if (fs_dir_holds (kind, MAIL_LAYOUT_MAILDIR, &messages[i]))
          return FALSE;
      }
  return TRUE;
}

void
fs_readdir (FsOp *op)
{
  GError *error = NULL;
  g_auto (FsNode) dir = { 0 };

  fs_node_resolve (op->server, op->ino, &dir);
  if (dir.kind == FS_NODE_STALE)
    {
      fs_op_fail (op, ESTALE);
      return;
    }
  if (dir.mailbox != NULL && lists_messages (op->server, &dir)
      && !fs_op_check (op, mail_mailbox_known (dir.mailbox, fs_op_waiter (op), &error), &error))
    return;
  if (!fs_op_take (op))
    return;

  Listing listing = { op, g_malloc (op->size), 0 };
  if (dir.mailbox == NULL)
    fill_special (&listing, &dir);
  else
    fill (&listing, &dir);
  fuse_reply_buf (op->req, listing.buffer, listing.used);
  g_free (listing.buffer);
}
