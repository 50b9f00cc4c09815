/* SPDX-License-Identifier: MIT
 *
 * Looking before doing something again: whether a message that may have been stored or moved is
 * there. A fresh listing, then candidates by UID and size, then their bytes. Net thread.
 */
#include "mail/change-private.h"

#include "mailfs/log.h"

#include <string.h>

/* Servers whose sizes are wrong: so many more of the newest messages are compared. */
#define OTHER_SIZES_MAX 16u
#define HEAD_KEPT 65536u
/* A mailbox that is numbered anew between a listing and what is fetched after it. */
#define NUMBERED_TRIES 3u

/* --- a listing from now on
 * --------------------------------------------------------------------------- */

typedef struct
{
  MailWaiter waiter;
  MailMailbox *mailbox;
  guint wanted; /* a listing with this number or a later one */
  MailDoneFunc done;
  gpointer user_data;
} Look;

static void looked (MailWaiter *waiter, const GError *error);

static void
ask (Look *look)
{
  MailMailbox *mailbox = look->mailbox;

  mail_waiter_init (&look->waiter, looked);
  g_mutex_lock (&mailbox->lock);
  look->waiter.link.data = &look->waiter;
  g_queue_push_tail_link (&mailbox->sync_waiters, &look->waiter.link);
  gboolean start = !mailbox->syncing;
  mailbox->syncing = TRUE;
  g_mutex_unlock (&mailbox->lock);
  if (start)
    mail_sync_start (mailbox);
}

static void
looked (MailWaiter *waiter, const GError *error)
{
  Look *look = (Look *)((char *)waiter - G_STRUCT_OFFSET (Look, waiter));
  MailMailbox *mailbox = look->mailbox;
  g_autoptr (GError) failed = NULL;

  g_mutex_lock (&mailbox->lock);
  gboolean good = mailbox->sync_merged >= look->wanted;
  gboolean tried = mailbox->sync_started >= look->wanted;
  g_mutex_unlock (&mailbox->lock);
  if (!good && !tried && error == NULL)
    {
      ask (look); /* that was an earlier one that we joined */
      return;
    }
  /* What is known goes on being served when listing fails: for us that is a failure. */
  if (!good && error == NULL)
    failed = g_error_new (MAIL_ERROR, MAIL_ERROR_UNREACHABLE, "the mailbox cannot be listed now");
  look->done (good ? NULL : error != NULL ? error : failed, look->user_data);
  mail_mailbox_unref (look->mailbox);
  g_free (look);
}

void
mail_look (MailMailbox *mailbox, MailDoneFunc done, gpointer user_data)
{
  Look *look = g_new0 (Look, 1);

  look->mailbox = mail_mailbox_ref (mailbox);
  look->done = done;
  look->user_data = user_data;
  g_mutex_lock (&mailbox->lock);
  look->wanted = mailbox->sync_started + 1;
  g_mutex_unlock (&mailbox->lock);
  ask (look);
}

/* --- digests of bodies
 * --------------------------------------------------------------------------------- */

void
mail_body_sum_add (MailBodySum *body, const guint8 *data, gsize length)
{
  const guint8 *end = data + length;

  if (body->sum == NULL)
    body->sum = g_checksum_new (G_CHECKSUM_SHA256);
  for (; data < end && body->newlines < 2; data++)
    if (*data == '\n')
      body->newlines++;
    else if (*data != '\r')
      body->newlines = 0;
  while (data < end)
    {
      const guint8 *cr = memchr (data, '\r', (gsize)(end - data));
      gsize n = (gsize)((cr != NULL ? cr : end) - data);

      g_checksum_update (body->sum, data, (gssize)n);
      body->any |= n > 0;
      data += n + (cr != NULL);
    }
}

void
mail_body_sum_end (MailBodySum *body, guint8 *digest_out)
{
  gsize length = MAIL_DIGEST_SIZE;

  memset (digest_out, 0, MAIL_DIGEST_SIZE);
  if (body->any)
    g_checksum_get_digest (body->sum, digest_out, &length);
  g_clear_pointer (&body->sum, g_checksum_free);
  memset (body, 0, sizeof *body);
}

/* --- digests of whole messages
 * ----------------------------------------------------------------------- */

typedef struct
{
  MailFetchSink sink;
  GHashTable *digests;
  MailDigestsFunc done;
  gpointer user_data;
  guint32 uid;
  GChecksum *sum;
  GByteArray *head;
  MailBodySum body;
  guint64 offset;
} Digesting;

static void
digest_data (MailFetchSink *sink, guint32 uid, guint64 offset, const guint8 *data, gsize length)
{
  Digesting *digesting = (Digesting *)sink;

  if (digesting->uid != uid)
    {
      digesting->uid = uid;
      digesting->offset = 0;
      g_checksum_reset (digesting->sum);
      g_byte_array_set_size (digesting->head, 0);
      guint8 unused[MAIL_DIGEST_SIZE];
      mail_body_sum_end (&digesting->body, unused);
    }
  if (offset != digesting->offset)
    return; /* the size will not match */
  digesting->offset += length;
  g_checksum_update (digesting->sum, data, length);
  mail_body_sum_add (&digesting->body, data, length);
  if (digesting->head->len < HEAD_KEPT)
    g_byte_array_append (digesting->head, data, MIN (length, HEAD_KEPT - digesting->head->len));
}

static void
digest_message (MailFetchSink *sink, guint32 uid, guint64 end, gboolean at_end, const GError *error)
{
  Digesting *digesting = (Digesting *)sink;
  gsize length = MAIL_DIGEST_SIZE;

  if (error == NULL && digesting->uid == uid && digesting->offset == end && at_end)
    {
      MailDigest *digest = g_new0 (MailDigest, 1);

      digest->size = end;
      g_checksum_get_digest (digesting->sum, digest->digest, &length);
      mail_body_sum_end (&digesting->body, digest->body);
      digest->message_id = mail_message_id_of (digesting->head->data, digesting->head->len);
      g_hash_table_insert (digesting->digests, GUINT_TO_POINTER (uid), digest);
    }
  digesting->uid = 0;
}

static void
digest_done (MailFetchSink *sink, const GError *error)
{
  Digesting *digesting = (Digesting *)sink;

  digesting->done (digesting->digests, error, digesting->user_data);
  g_hash_table_unref (digesting->digests);
  g_checksum_free (digesting->sum);
  g_clear_pointer (&digesting->body.sum, g_checksum_free);
  g_byte_array_unref (digesting->head);
  g_free (digesting);
}

static void
digest_free (gpointer data)
{
  g_free (((MailDigest *)data)->message_id);
  g_free (data);
}

void
mail_digest_messages (MailMailbox *mailbox, const MailUidSet *uids, MailDigestsFunc done,
                      gpointer user_data)
{
  MailBackend *backend = mailbox->store->backend;
  g_autofree char *name = mail_folder_name (mailbox);
  Digesting *digesting = g_new0 (Digesting, 1);

  digesting->sink = (MailFetchSink) { digest_data, digest_message, digest_done };
  digesting->digests = g_hash_table_new_full (NULL, NULL, NULL, digest_free);
  digesting->done = done;
  digesting->user_data = user_data;
  digesting->sum = g_checksum_new (G_CHECKSUM_SHA256);
  digesting->head = g_byte_array_new ();
  MailFetchRequest request = {
    .mailbox = name != NULL ? name : "",
    .uidvalidity = mail_effect_uidvalidity (mailbox),
    .uids = (const MailUidRange *)uids->data,
    .n_uids = uids->len,
    .part = MAIL_PART_RANGE,
    .offset = 0,
    .length = MAIL_TO_END,
    .priority = MAIL_PRIORITY_BULK,
  };
  backend->ops->fetch (backend, &request, &digesting->sink);
}

/* --- finding
 * ----------------------------------------------------------------------------------------- */

typedef struct
{
  MailMailbox *mailbox;
  GArray *wanted;
  GArray *candidates;  /* of MailMessage, by UID */
  GHashTable *taken;   /* UIDs that are somebody's already */
  guint32 uidvalidity; /* of the candidates */
  guint n_tries;
  MailResolvedFunc done;
  gpointer user_data;
} Resolving;

void
mail_wanted_clear (gpointer wanted)
{
  g_free (((MailWanted *)wanted)->message_id);
}

static void
resolved (Resolving *resolving, const GError *error)
{
  if (error != NULL)
    for (guint i = 0; i < resolving->wanted->len; i++)
      g_array_index (resolving->wanted, MailWanted, i).uid = 0;
  resolving->done (resolving->wanted, error, resolving->user_data);
  g_array_unref (resolving->wanted);
  g_array_unref (resolving->candidates);
  g_hash_table_unref (resolving->taken);
  mail_mailbox_unref (resolving->mailbox);
  g_free (resolving);
}

static gboolean
may_be (const MailWanted *wanted, const MailMessage *message)
{
  return wanted->uid != 0 ? message->uid == wanted->uid : message->uid >= wanted->bound;
}

static gboolean
take (Resolving *resolving, MailWanted *wanted, guint32 uid)
{
  if (!g_hash_table_add (resolving->taken, GUINT_TO_POINTER (uid)))
    return FALSE;
  wanted->uid = uid;
  return TRUE;
}

static gboolean
is_taken (Resolving *resolving, guint32 uid)
{
  return g_hash_table_contains (resolving->taken, GUINT_TO_POINTER (uid));
}

static gboolean
same_bytes (const MailWanted *wanted, const MailDigest *digest)
{
  return digest->size == wanted->size
         && memcmp (digest->digest, wanted->digest, MAIL_DIGEST_SIZE) == 0;
}

/* What counts first, and what when the server has changed the bytes: the UID it gave, the
 * Message-ID, the body. */
static gboolean
is_like (const MailWanted *wanted, const MailMessage *message, const MailDigest *digest, guint pass)
{
  static const guint8 no_body[MAIL_DIGEST_SIZE];

  if (pass == 0)
    return same_bytes (wanted, digest);
  if (!wanted->stored)
    return FALSE;
  if (wanted->uid != 0)
    return message->uid == wanted->uid;
  if (wanted->message_id != NULL)
    return g_strcmp0 (wanted->message_id, digest->message_id) == 0;
  return memcmp (wanted->body, digest->body, MAIL_DIGEST_SIZE) == 0
         && memcmp (wanted->body, no_body, MAIL_DIGEST_SIZE) != 0;
}

/* The n-th message sent became the n-th that arrived: both in order. */
static guint32
match (Resolving *resolving, MailWanted *wanted, GHashTable *digests)
{
  const GArray *candidates = resolving->candidates;

  for (guint pass = 0; pass < 2; pass++)
    for (guint i = 0; i < candidates->len; i++)
      {
        const MailMessage *message = &g_array_index (candidates, MailMessage, i);
        const MailDigest *digest = g_hash_table_lookup (digests, GUINT_TO_POINTER (message->uid));

        if (!may_be (wanted, message) || is_taken (resolving, message->uid) || digest == NULL)
          continue;
        if (is_like (wanted, message, digest, pass))
          {
            wanted->changed = pass > 0;
            return message->uid;
          }
        wanted->others = TRUE;
      }
  return 0;
}

static void listed (const GError *error, gpointer data);

/* TRUE when the UIDs of the candidates are no longer theirs: then all of it is done once more. */
static gboolean
begin_again (Resolving *resolving, const GError *error)
{
  g_autoptr (GError) stale = NULL;

  if (!g_error_matches (error, MAIL_ERROR, MAIL_ERROR_STALE)
      && mail_effect_uidvalidity (resolving->mailbox) == resolving->uidvalidity)
    return FALSE;
  if (resolving->n_tries++ < NUMBERED_TRIES)
    {
      g_array_set_size (resolving->candidates, 0);
      g_hash_table_remove_all (resolving->taken);
      mail_look (resolving->mailbox, listed, resolving);
      return TRUE;
    }
  stale = g_error_new (MAIL_ERROR, MAIL_ERROR_STALE, "the mailbox is numbered anew all the time");
  resolved (resolving, stale);
  return TRUE;
}

static void
match_by_date (Resolving *resolving, MailWanted *wanted)
{
  for (guint i = 0; i < resolving->candidates->len; i++)
    {
      const MailMessage *message = &g_array_index (resolving->candidates, MailMessage, i);

      if (may_be (wanted, message) && message->size == wanted->size
          && message->internaldate == wanted->date && take (resolving, wanted, message->uid))
        return;
    }
  wanted->uid = 0;
}

/* Last: what one is known to be by its bytes, another one only looks like. */
static void
match_all_by_date (Resolving *resolving)
{
  for (guint i = 0; i < resolving->wanted->len; i++)
    if (!g_array_index (resolving->wanted, MailWanted, i).by_bytes)
      match_by_date (resolving, &g_array_index (resolving->wanted, MailWanted, i));
}

static void
compared (GHashTable *digests, const GError *error, gpointer data)
{
  Resolving *resolving = data;

  if (begin_again (resolving, error))
    return;
  for (guint i = 0; error == NULL && i < resolving->wanted->len; i++)
    {
      MailWanted *wanted = &g_array_index (resolving->wanted, MailWanted, i);

      if (!wanted->by_bytes)
        continue;
      guint32 uid = match (resolving, wanted, digests);
      wanted->uid = 0;
      if (uid != 0)
        take (resolving, wanted, uid);
    }
  if (error == NULL)
    match_all_by_date (resolving);
  resolved (resolving, error);
}

/* Those of the right size, and some of the newest of another. */
static void
choose (Resolving *resolving, MailUidSet *uids)
{
  guint others = 0;

  for (guint i = resolving->candidates->len; i-- > 0;)
    {
      const MailMessage *message = &g_array_index (resolving->candidates, MailMessage, i);
      gboolean right = FALSE, other = FALSE;

      for (guint k = 0; k < resolving->wanted->len; k++)
        {
          const MailWanted *wanted = &g_array_index (resolving->wanted, MailWanted, k);

          if (!wanted->by_bytes || !may_be (wanted, message))
            continue;
          right |= message->size == wanted->size || wanted->uid != 0;
          other = TRUE;
        }
      if (right || (other && others++ < OTHER_SIZES_MAX))
        mail_uid_set_add (uids, message->uid, message->uid);
    }
}

static void
listed (const GError *error, gpointer data)
{
  Resolving *resolving = data;
  MailMailbox *mailbox = resolving->mailbox;
  g_autoptr (MailUidSet) uids = mail_uid_set_new ();

  if (error != NULL)
    {
      resolved (resolving, error);
      return;
    }
  g_mutex_lock (&mailbox->lock);
  resolving->uidvalidity = mailbox->status.uidvalidity;
  for (guint i = 0; i < resolving->wanted->len; i++)
    {
      MailWanted *wanted = &g_array_index (resolving->wanted, MailWanted, i);

      wanted->changed = wanted->others = FALSE;
      if (wanted->uidvalidity != resolving->uidvalidity)
        wanted->bound = wanted->uid = 0; /* numbered anew */
    }
  for (guint i = 0; mailbox->messages != NULL && i < mailbox->messages->len; i++)
    {
      const MailMessage *message = &g_array_index (mailbox->messages, MailMessage, i);
      gboolean may = FALSE;

      for (guint k = 0; k < resolving->wanted->len && !may; k++)
        may = may_be (&g_array_index (resolving->wanted, MailWanted, k), message);
      if (may)
        g_array_append_val (resolving->candidates, *message);
    }
  g_mutex_unlock (&mailbox->lock);

  choose (resolving, uids);
  if (uids->len > 0)
    {
      mail_digest_messages (mailbox, uids, compared, resolving);
      return;
    }
  for (guint i = 0; i < resolving->wanted->len; i++)
    if (g_array_index (resolving->wanted, MailWanted, i).by_bytes)
      g_array_index (resolving->wanted, MailWanted, i).uid = 0;
  match_all_by_date (resolving);
  resolved (resolving, NULL);
}

void
mail_resolve (MailMailbox *mailbox, GArray *wanted, MailResolvedFunc done, gpointer user_data)
{
  Resolving *resolving = g_new0 (Resolving, 1);

  resolving->mailbox = mail_mailbox_ref (mailbox);
  resolving->wanted = wanted;
  resolving->candidates = g_array_new (FALSE, FALSE, sizeof (MailMessage));
  resolving->taken = g_hash_table_new (NULL, NULL);
  resolving->done = done;
  resolving->user_data = user_data;
  mail_look (mailbox, listed, resolving);
}
