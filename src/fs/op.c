/* SPDX-License-Identifier: MIT
 *
 * Operations that may wait. The first attempt, on the FUSE thread, only tries, so that what the
 * index or the cache can answer costs nothing extra. When it cannot, the request gets an interrupt
 * function and is attempted again with leave to park; then the thread is free. Each request is
 * answered exactly once, by whoever wins fs_op_take: the attempt, an error, or a signal.
 */
#include "fs/private.h"

#include "mailfs/log.h"

#include <errno.h>
#include <string.h>

/* Woken this often without having what it wants, the server must be playing games. */
#define ATTEMPTS_MAX 64u
#define ELSEWHERE_MS 20u /* until a message is looked for again that is being moved */

static FsOp *
op_ref (FsOp *op)
{
  g_atomic_int_inc (&op->n_refs);
  return op;
}

void
fs_op_unref (FsOp *op)
{
  if (!g_atomic_int_dec_and_test (&op->n_refs))
    return;
  if (op->link.data != NULL)
    {
      g_mutex_lock (&op->server->lock);
      g_queue_unlink (&op->server->waiting, &op->link);
      g_mutex_unlock (&op->server->lock);
    }
  g_free (op->name);
  g_free (op);
}

/* The kernel holds the lock of these directories until the request is answered. */
static void
count_dirs (FsOp *op, gint change)
{
  FsServer *server = op->server;

  if (op->dirs[0] == 0)
    return;
  g_mutex_lock (&server->lock);
  for (guint i = 0; i < G_N_ELEMENTS (op->dirs) && op->dirs[i] != 0; i++)
    {
      gpointer key = GSIZE_TO_POINTER (op->dirs[i]);
      gint n = GPOINTER_TO_INT (g_hash_table_lookup (server->busy_dirs, key)) + change;

      if (n > 0)
        g_hash_table_insert (server->busy_dirs, key, GINT_TO_POINTER (n));
      else
        g_hash_table_remove (server->busy_dirs, key);
    }
  g_mutex_unlock (&server->lock);
}

gboolean
fs_dir_is_busy (FsServer *server, fuse_ino_t dir)
{
  g_mutex_lock (&server->lock);
  gboolean busy = g_hash_table_contains (server->busy_dirs, GSIZE_TO_POINTER (dir));
  g_mutex_unlock (&server->lock);
  return busy;
}

static gboolean
take (FsOp *op)
{
  if (!g_atomic_int_compare_and_exchange (&op->answered, FALSE, TRUE))
    return FALSE;
  if (op->interruptible)
    count_dirs (op, -1);
  /* Waits for an interrupt function that is running; it will find the request taken. */
  if (op->interruptible)
    fuse_req_interrupt_func (op->req, NULL, NULL);
  mail_counter_add (MAIL_COUNTER_REQUESTS, 1);
  return TRUE;
}

gboolean
fs_op_take (FsOp *op)
{
  if (!take (op))
    return FALSE;
  if (!g_atomic_int_get (&op->server->leaving) || op->server->leaver == g_thread_self ())
    return TRUE;
  fuse_reply_none (op->req);
  return FALSE;
}

/* A reference to an op in the list, unless it is just being freed. Lock held. */
static gboolean
ref_waiting (FsOp *op)
{
  gint n;

  do
    if ((n = g_atomic_int_get (&op->n_refs)) == 0)
      return FALSE;
  while (!g_atomic_int_compare_and_exchange (&op->n_refs, n, n + 1));
  return TRUE;
}

void
fs_ops_leave (FsServer *server)
{
  g_autoptr (GPtrArray) ops = g_ptr_array_new_with_free_func ((GDestroyNotify)fs_op_unref);

  g_mutex_lock (&server->lock);
  server->leaver = g_thread_self ();
  g_atomic_int_set (&server->leaving, TRUE);
  for (GList *link = server->waiting.head; link != NULL; link = link->next)
    if (ref_waiting (link->data))
      g_ptr_array_add (ops, link->data);
  g_mutex_unlock (&server->lock);
  for (guint i = 0; i < ops->len; i++)
    if (take (ops->pdata[i]))
      fuse_reply_err (((FsOp *)ops->pdata[i])->req, ENOTCONN);
}

void
fs_op_fail (FsOp *op, int error_number)
{
  if (fs_op_take (op))
    fuse_reply_err (op->req, error_number);
}

/* libfuse holds the request's lock here, so this must not clear the interrupt function itself. On
 * the way of a FUSE_INTERRUPT it also holds a reference, so the reply may come from here; when it
 * calls us while the function is being set, because the signal came earlier, it does not. */
static void
interrupted (fuse_req_t req, void *data)
{
  FsOp *op = data;

  if (g_atomic_pointer_get (&op->arming) == g_thread_self ())
    op->interrupted_early = TRUE;
  else if (g_atomic_int_compare_and_exchange (&op->answered, FALSE, TRUE))
    {
      count_dirs (op, -1);
      fuse_reply_err (req, EINTR);
    }
}

/* Asked for where it was, while the server moved it: it is to be asked for where it is now. */
static gboolean
is_elsewhere (const FsOp *op, const GError *error)
{
  g_auto (FsNode) node = { 0 };

  if (!g_error_matches (error, MAIL_ERROR, MAIL_ERROR_GONE) || op->n_attempts >= ATTEMPTS_MAX)
    return FALSE;
  fs_node_resolve (op->server, op->ino, &node);
  return node.ino != node.known_as || node.kind == FS_NODE_STAGED;
}

static gboolean
attempt_again (gpointer data)
{
  FsOp *op = data;

  if (!g_atomic_int_get (&op->answered))
    op->attempt (op);
  return G_SOURCE_REMOVE;
}

/* Net thread. Takes the reference. */
static void
attempt_later (FsOp *op)
{
  g_autoptr (GSource) source = g_timeout_source_new (ELSEWHERE_MS);

  op->n_attempts++;
  g_source_set_callback (source, attempt_again, op, (GDestroyNotify)fs_op_unref);
  g_source_attach (source, g_main_context_get_thread_default ());
}

static void
woken (MailWaiter *waiter, const GError *error)
{
  FsOp *op = (FsOp *)waiter;

  if (!g_atomic_int_get (&op->answered))
    {
      if (error != NULL && is_elsewhere (op, error))
        {
          attempt_later (op);
          return;
        }
      if (error != NULL)
        fs_op_fail (op, mail_error_to_errno (error));
      else if (++op->n_attempts > ATTEMPTS_MAX)
        fs_op_fail (op, EIO);
      else
        op->attempt (op);
    }
  fs_op_unref (op);
}

MailWaiter *
fs_op_waiter (FsOp *op)
{
  if (!op->may_park)
    return NULL;
  op_ref (op); /* the store's, given back by fs_op_check or when woken */
  return &op->waiter;
}

gboolean
fs_op_check (FsOp *op, MailAnswer answer, GError **error)
{
  if (answer == MAIL_PARKED)
    return FALSE; /* with leave to park the op may be gone already */
  if (op->may_park)
    fs_op_unref (op);
  if (answer == MAIL_READY)
    return TRUE;
  fs_op_fail (op, mail_error_to_errno (*error));
  g_clear_error (error);
  return FALSE;
}

/* From here on a signal answers the request; it may be answered when this returns. */
static void
arm (FsOp *op)
{
  op->interruptible = TRUE;
  count_dirs (op, 1);
  op->link.data = op;
  g_mutex_lock (&op->server->lock);
  g_queue_push_tail_link (&op->server->waiting, &op->link);
  gboolean leaving = g_atomic_int_get (&op->server->leaving);
  g_mutex_unlock (&op->server->lock);
  if (leaving && take (op))
    fuse_reply_err (op->req, ENOTCONN);
  if (leaving)
    return;
  g_atomic_pointer_set (&op->arming, g_thread_self ());
  fuse_req_interrupt_func (op->req, interrupted, op);
  g_atomic_pointer_set (&op->arming, NULL);
  if (op->interrupted_early)
    fs_op_fail (op, EINTR);
}

static void
start (FsOp *op)
{
  op->n_refs = 1;
  op->server = fuse_req_userdata (op->req);
  op->dirs[0] = op->attempt == fs_lookup || op->attempt == fs_readdir ? op->ino : 0;
  mail_waiter_init (&op->waiter, woken);
  op->attempt (op);
  if (!op->answered)
    {
      op->may_park = TRUE;
      arm (op);
      if (!g_atomic_int_get (&op->answered))
        op->attempt (op);
    }
  fs_op_unref (op);
}

FsOp *
fs_change_begin (fuse_req_t req, fuse_ino_t dir, fuse_ino_t other_dir)
{
  FsOp *op = g_new0 (FsOp, 1);

  op->req = req;
  op->dirs[0] = dir;
  op->dirs[1] = other_dir != dir ? other_dir : 0;
  op->n_refs = 1; /* fs_change_done's */
  op->server = fuse_req_userdata (req);
  arm (op);
  return op;
}

void
fs_change_done (const GError *error, gpointer data)
{
  FsOp *op = data;

  fs_op_fail (op, error != NULL ? mail_error_to_errno (error) : 0);
  fs_op_unref (op);
}

void
fs_change_ignore (const GError *error, gpointer unused)
{
  if (error != NULL)
    mail_log_warning ("%s", error->message);
}

void
fs_op_start (fuse_req_t req, void (*attempt) (FsOp *op), fuse_ino_t ino, const char *name,
             size_t size, off_t offset, const struct fuse_file_info *fi)
{
  FsOp *op = g_new0 (FsOp, 1);

  op->req = req;
  op->attempt = attempt;
  op->ino = ino;
  op->name = g_strdup (name);
  op->size = size;
  op->offset = offset;
  if (fi != NULL)
    op->fi = *fi;
  start (op);
}

void
fs_op_start_readdir (fuse_req_t req, void (*attempt) (FsOp *op), fuse_ino_t ino, size_t size,
                     off_t offset, const struct fuse_file_info *fi, gboolean plus)
{
  FsOp *op = g_new0 (FsOp, 1);

  op->req = req;
  op->attempt = attempt;
  op->ino = ino;
  op->size = size;
  op->offset = offset;
  op->fi = *fi;
  op->plus = plus;
  start (op);
}
