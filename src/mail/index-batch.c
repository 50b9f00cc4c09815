/* SPDX-License-Identifier: MIT
 *
 * MailIndexBatch: changes in the order they were made, with copies of what they need. Filled by one
 * thread, then owned by the index. Knows nothing of SQLite.
 */
#include "index-private.h"

MailIndexMailbox *
index_mailbox_copy (const MailIndexMailbox *mailbox)
{
  MailIndexMailbox *copy = g_memdup2 (mailbox, sizeof *mailbox);

  copy->name = g_strdup (mailbox->name);
  copy->path = g_strdup (mailbox->path);
  copy->special_use = g_strdup (mailbox->special_use);
  return copy;
}

void
mail_index_mailbox_free (MailIndexMailbox *mailbox)
{
  if (!mailbox)
    return;
  g_free (mailbox->name);
  g_free (mailbox->path);
  g_free (mailbox->special_use);
  g_free (mailbox);
}

MailIndexBatch *
mail_index_batch_new (void)
{
  MailIndexBatch *batch = g_new0 (MailIndexBatch, 1);

  batch->ops = g_array_new (FALSE, FALSE, sizeof (IndexOp));
  batch->messages = g_array_new (FALSE, FALSE, sizeof (MailMessage));
  batch->texts = g_ptr_array_new_with_free_func (g_free);
  batch->mailboxes = g_ptr_array_new_with_free_func ((GDestroyNotify)mail_index_mailbox_free);
  return batch;
}

void
index_batch_free (MailIndexBatch *batch)
{
  g_array_unref (batch->ops);
  g_array_unref (batch->messages);
  g_ptr_array_unref (batch->texts);
  g_ptr_array_unref (batch->mailboxes);
  g_free (batch);
}

static IndexOp *
last_op (MailIndexBatch *batch)
{
  return batch->ops->len ? &g_array_index (batch->ops, IndexOp, batch->ops->len - 1) : NULL;
}

static void
add_text (MailIndexBatch *batch, IndexOpType type, guint32 id, guint32 uid, const char *text)
{
  IndexOp op = { .type = type, .id = id, .first = uid, .start = batch->texts->len };

  g_ptr_array_add (batch->texts, g_strdup (text));
  g_array_append_val (batch->ops, op);
}

void
mail_index_batch_put_mailbox (MailIndexBatch *batch, const MailIndexMailbox *mailbox)
{
  IndexOp op = { .type = INDEX_OP_PUT_MAILBOX, .id = mailbox->id, .start = batch->mailboxes->len };

  g_ptr_array_add (batch->mailboxes, index_mailbox_copy (mailbox));
  g_array_append_val (batch->ops, op);
}

void
mail_index_batch_remove_mailbox (MailIndexBatch *batch, guint32 id)
{
  IndexOp op = { .type = INDEX_OP_REMOVE_MAILBOX, .id = id };

  g_array_append_val (batch->ops, op);
}

void
mail_index_batch_drop_contents (MailIndexBatch *batch, guint32 content_id)
{
  IndexOp op = { .type = INDEX_OP_DROP_CONTENTS, .id = content_id };

  g_array_append_val (batch->ops, op);
}

void
mail_index_batch_put (MailIndexBatch *batch, guint32 content_id, const MailMessage *messages,
                      guint n_messages)
{
  IndexOp *last = last_op (batch);
  IndexOp op = {
    .type = INDEX_OP_PUT, .id = content_id, .start = batch->messages->len, .n = n_messages
  };

  if (n_messages == 0)
    return;
  g_array_append_vals (batch->messages, messages, n_messages);
  /* A listing comes message by message: one entry for the run of them. */
  if (last && last->type == INDEX_OP_PUT && last->id == content_id)
    last->n += n_messages;
  else
    g_array_append_val (batch->ops, op);
}

void
mail_index_batch_remove (MailIndexBatch *batch, guint32 content_id, guint32 first, guint32 last)
{
  IndexOp *previous = last_op (batch);
  IndexOp op = { .type = INDEX_OP_REMOVE, .id = content_id, .first = first, .last = last };

  if (first > last)
    return;
  if (previous && previous->type == INDEX_OP_REMOVE && previous->id == content_id && first > 0
      && previous->last == first - 1)
    previous->last = last;
  else
    g_array_append_val (batch->ops, op);
}

void
mail_index_batch_put_name (MailIndexBatch *batch, guint32 content_id, guint32 uid, const char *name)
{
  add_text (batch, INDEX_OP_NAME, content_id, uid, name);
}

void
mail_index_batch_put_remote_id (MailIndexBatch *batch, guint32 content_id, guint32 uid,
                                const char *remote_id)
{
  add_text (batch, INDEX_OP_REMOTE_ID, content_id, uid, remote_id);
}

void
index_batch_put_keywords (MailIndexBatch *batch, guint32 id, const char *keywords)
{
  add_text (batch, INDEX_OP_KEYWORDS, id, 0, keywords);
}

void
index_batch_put_meta (MailIndexBatch *batch, const char *key, const char *value)
{
  add_text (batch, INDEX_OP_META, 0, 0, key);
  g_ptr_array_add (batch->texts, g_strdup (value));
}
