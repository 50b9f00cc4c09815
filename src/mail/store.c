/* SPDX-License-Identifier: MIT
 *
 * MailStore: puts index, cache and backend together, starts and stops them, and keeps what somebody
 * looks at up to date. The only way from other threads to the backend is mail_store_invoke.
 */
#include "mail/change-private.h"
#include "mail/mover.h"

#include "mailfs/log.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A mailbox nobody looked at for so long is no longer kept fresh. */
#define USED_FOR (10 * 60 * G_TIME_SPAN_SECOND)
/* With more mailboxes in use than this, one LIST with STATUS tells which of them changed. */
#define POLL_ONE_BY_ONE 4u
#define QUOTA_AGE (60 * G_TIME_SPAN_SECOND)

/* --- small things the whole room uses -------------------------------------------------------- */

gint
mail_compare_uint32 (gconstpointer a, gconstpointer b)
{
  guint32 left = *(const guint32 *)a, right = *(const guint32 *)b;

  return left < right ? -1 : left > right;
}

void
mail_store_invoke (MailStore *store, GSourceFunc func, gpointer data)
{
  g_main_context_invoke_full (store->net, G_PRIORITY_DEFAULT, func, data, NULL);
}

void
mail_store_wake_all (GQueue *waiters, const GError *error)
{
  GList *link;

  while ((link = g_queue_pop_head_link (waiters)) != NULL)
    {
      MailWaiter *waiter = link->data;

      waiter->wake (waiter, error);
    }
}

gboolean
mail_store_is_network_error (const GError *error)
{
  return g_error_matches (error, MAIL_ERROR, MAIL_ERROR_CONNECTION)
         || g_error_matches (error, MAIL_ERROR, MAIL_ERROR_UNREACHABLE)
         || g_error_matches (error, MAIL_ERROR, MAIL_ERROR_TIMED_OUT)
         || g_error_matches (error, MAIL_ERROR, MAIL_ERROR_BUSY);
}

void
mail_waiter_init (MailWaiter *waiter, void (*wake) (MailWaiter *waiter, const GError *error))
{
  memset (waiter, 0, sizeof *waiter);
  waiter->wake = wake;
  waiter->since = g_get_monotonic_time ();
}

gboolean
mail_store_is_read_only (MailStore *store)
{
  return store->options.read_only;
}

guint
mail_store_caps (MailStore *store)
{
  return (guint)g_atomic_int_get (&store->caps);
}

const char *
mail_store_keywords (MailStore *store, guint32 keywords_id)
{
  return mail_index_keywords (store->index, keywords_id);
}

MailMailbox *
mail_store_mailbox (MailStore *store, guint32 id)
{
  g_rw_lock_reader_lock (&store->tree_lock);
  MailMailbox *mailbox = id == MAIL_ROOT_ID
                             ? store->root
                             : g_hash_table_lookup (store->by_id, GUINT_TO_POINTER (id));
  if (mailbox != NULL)
    mail_mailbox_ref (mailbox);
  g_rw_lock_reader_unlock (&store->tree_lock);
  return mailbox;
}

MailMailbox *
mail_store_contents (MailStore *store, guint32 content_id)
{
  g_rw_lock_reader_lock (&store->tree_lock);
  MailMailbox *mailbox = g_hash_table_lookup (store->by_content, GUINT_TO_POINTER (content_id));
  if (mailbox != NULL)
    mail_mailbox_ref (mailbox);
  g_rw_lock_reader_unlock (&store->tree_lock);
  return mailbox;
}

/* --- keeping fresh what is looked at --------------------------------------------------------- */

typedef enum
{
  POLL_AGED,   /* if it was looked at too long ago */
  POLL_TOLD,   /* if a LIST with STATUS told of a change */
  POLL_PUSHED, /* the server says that something happened */
} PollReason;

static void
poll_mailbox (MailMailbox *mailbox, PollReason reason)
{
  gint64 refresh = mailbox->store->options.refresh * G_TIME_SPAN_SECOND;

  g_mutex_lock (&mailbox->lock);
  gboolean aged = g_get_monotonic_time () - mailbox->tried_at >= refresh;
  gboolean due = reason == POLL_TOLD ? mailbox->tried_at == 0 : aged;
  /* When the last look failed, that look itself may be what the server speaks of: no circles. */
  due |= reason == POLL_PUSHED && !mailbox->sync_failed;
  /* The listing under way may not have it. */
  mailbox->pushed |= reason == POLL_PUSHED && mailbox->syncing;
  due = due && mailbox->loaded && !mailbox->syncing;
  mailbox->syncing |= due;
  g_mutex_unlock (&mailbox->lock);
  if (due)
    mail_sync_start (mailbox);
}

/* The server says that something happened there: look now. */
static void
pushed (const char *name, gpointer data)
{
  MailStore *store = data;
  g_autoptr (MailMailbox) mailbox = NULL;
  GHashTableIter iter;
  gpointer value;

  g_rw_lock_reader_lock (&store->tree_lock);
  g_hash_table_iter_init (&iter, store->by_content);
  while (mailbox == NULL && name != NULL && g_hash_table_iter_next (&iter, NULL, &value))
    if (g_strcmp0 (((MailMailbox *)value)->name, name) == 0)
      mailbox = mail_mailbox_ref (value);
  g_rw_lock_reader_unlock (&store->tree_lock);
  if (mailbox != NULL)
    poll_mailbox (mailbox, POLL_PUSHED);
}

/* Lets the server push changes of the mailbox that was looked at last. */
static void
watch_latest (MailStore *store, GPtrArray *used)
{
  MailMailbox *latest = NULL;

  for (guint i = 0; i < used->len; i++)
    if (latest == NULL || ((MailMailbox *)used->pdata[i])->used_at > latest->used_at)
      latest = used->pdata[i];
  guint32 id = latest != NULL ? latest->id : 0;
  if (id == store->watched_id)
    return;
  store->watched_id = id;
  g_rw_lock_reader_lock (&store->tree_lock);
  g_autofree char *name = latest != NULL ? g_strdup (latest->name) : NULL;
  g_rw_lock_reader_unlock (&store->tree_lock);
  store->backend->ops->watch (store->backend, name, pushed, store);
}

/* As of the last login, which may have come late; known at the next start, should that be without a
 * server. */
static void
note_caps (MailStore *store)
{
  guint caps = store->backend->ops->caps (store->backend);
  g_autofree char *text = g_strdup_printf ("%u", caps);

  if (caps == 0 || caps == mail_store_caps (store))
    return;
  g_atomic_int_set (&store->caps, (gint)caps);
  mail_index_set_meta (store->index, "caps", text);
}

static gboolean
poll_used (gpointer data)
{
  MailStore *store = data;
  g_autoptr (GPtrArray) used = g_ptr_array_new_with_free_func ((GDestroyNotify)mail_mailbox_unref);
  gint64 now = g_get_monotonic_time ();
  GHashTableIter iter;
  gpointer value;

  g_rw_lock_reader_lock (&store->tree_lock);
  g_hash_table_iter_init (&iter, store->by_content);
  while (g_hash_table_iter_next (&iter, NULL, &value))
    {
      MailMailbox *mailbox = value;

      g_mutex_lock (&mailbox->lock);
      if (mailbox->used_at != 0 && now - mailbox->used_at < USED_FOR && mailbox->loaded)
        g_ptr_array_add (used, mail_mailbox_ref (mailbox));
      g_mutex_unlock (&mailbox->lock);
    }
  gboolean list_due = store->listed_at != 0
                      && now - store->listed_at >= store->options.refresh * G_TIME_SPAN_SECOND;
  g_rw_lock_reader_unlock (&store->tree_lock);

  note_caps (store);
  if (store->mover != NULL)
    mail_mover_poll (store->mover);
  /* A list that carries STATUS resets tried_at of exactly the mailboxes that changed. */
  if (used->len > 0 && list_due)
    mail_tree_refresh (store);
  for (guint i = 0; i < used->len; i++)
    poll_mailbox (used->pdata[i],
                  used->len > POLL_ONE_BY_ONE && store->list_has_status ? POLL_TOLD : POLL_AGED);
  watch_latest (store, used);
  return G_SOURCE_CONTINUE;
}

static void
start_timer (MailStore *store)
{
  store->refresh_timer = g_timeout_source_new (MAX (store->options.refresh, 1u) * 1000);
  g_source_set_callback (store->refresh_timer, poll_used, store, NULL);
  g_source_attach (store->refresh_timer, store->net);
}

/* --- quota ----------------------------------------------------------------------------------- */

static void
got_quota (gboolean has_quota, guint64 used, guint64 limit, const GError *error, gpointer data)
{
  MailStore *store = data;
  GQueue waiters;

  g_mutex_lock (&store->quota_lock);
  store->asking_quota = FALSE;
  store->quota_at = g_get_monotonic_time ();
  if (error == NULL)
    {
      store->quota_used = has_quota ? used : 0;
      store->quota_limit = has_quota ? limit : 0;
    }
  waiters = store->quota_waiters;
  g_queue_init (&store->quota_waiters);
  g_mutex_unlock (&store->quota_lock);
  mail_store_wake_all (&waiters, NULL); /* df shows what is known, however the asking went */
}

static gboolean
ask_quota (gpointer data)
{
  MailStore *store = data;

  store->backend->ops->quota (store->backend, got_quota, store);
  return G_SOURCE_REMOVE;
}

MailAnswer
mail_store_quota (MailStore *store, guint64 *used_out, guint64 *limit_out, MailWaiter *waiter)
{
  gint64 now = g_get_monotonic_time ();
  MailAnswer answer = MAIL_READY;
  gboolean ask = FALSE;

  g_mutex_lock (&store->quota_lock);
  *used_out = store->quota_used;
  *limit_out = store->quota_limit;
  if (!store->options.offline && (mail_store_caps (store) & MAIL_CAP_QUOTA) != 0
      && (store->quota_at == 0 || now - store->quota_at > QUOTA_AGE))
    answer = MAIL_PARKED;
  if (answer == MAIL_PARKED && waiter != NULL)
    {
      waiter->link.data = waiter;
      g_queue_push_tail_link (&store->quota_waiters, &waiter->link);
      ask = !store->asking_quota;
      store->asking_quota = TRUE;
    }
  g_mutex_unlock (&store->quota_lock);
  if (ask)
    mail_store_invoke (store, ask_quota, store);
  return answer;
}

/* --- life ------------------------------------------------------------------------------------ */

static gboolean
make_dir (const char *parent, const char *name, char **path_out, GError **error)
{
  *path_out = g_build_filename (parent, name, NULL);
  if (mkdir (*path_out, 0700) == 0 || errno == EEXIST)
    return TRUE;
  mail_set_errno (error, errno, *path_out);
  return FALSE;
}

/* After the tree: what is kept becomes part of it. */
static gboolean
open_keep (MailStore *store, GError **error)
{
  const MailStoreOptions *options = &store->options;

  if (options->pop3_dir == NULL)
    return TRUE;
  store->keep = mail_keep_open (options->pop3_dir, options->account_key,
                                options->pop3_delete && !options->read_only, error);
  if (store->keep == NULL)
    return FALSE;
  store->mover = mail_mover_new (store);
  return TRUE;
}

MailStore *
mail_store_new (const MailStoreOptions *options, GMainContext *net, MailBackend *backend,
                const MailNaming *naming, GError **error)
{
  MailStore *store = g_new0 (MailStore, 1);
  g_autofree char *cache_dir = NULL;

  store->options = *options;
  store->options.dir = g_strdup (options->dir);
  store->options.account_key = g_strdup (options->account_key);
  store->options.root_mailbox = g_strdup (options->root_mailbox);
  store->options.trash = g_strdup (options->trash);
  store->options.pop3_dir = g_strdup (options->pop3_dir);
  store->naming = *naming;
  store->net = g_main_context_ref (net);
  store->backend = backend;
  g_rw_lock_init (&store->tree_lock);
  g_mutex_init (&store->quota_lock);
  g_mutex_init (&store->state_lock);
  g_queue_init (&store->list_waiters);
  g_queue_init (&store->relist_waiters);
  g_queue_init (&store->next_relist_waiters);
  g_queue_init (&store->quota_waiters);
  g_queue_init (&store->state_waiters);
  store->by_id = g_hash_table_new_full (NULL, NULL, NULL, (GDestroyNotify)mail_mailbox_unref);
  store->by_content = g_hash_table_new (NULL, NULL);
  store->root = mail_mailbox_new (store, MAIL_ROOT_ID, 0);
  store->root->leaf = g_strdup ("");
  store->root->text = g_strdup ("");
  store->root->in_tree = TRUE;
  store->fetches = mail_fetches_new (store);
  store->readahead = mail_readahead_new (store);

  if (make_dir (options->dir, "messages", &cache_dir, error)
      && (store->index = mail_index_open (options->dir, options->account_key, NULL, error)) != NULL
      && (store->cache = mail_cache_open (cache_dir, options->cache_size, error)) != NULL
      && mail_tree_load (store, error) && open_keep (store, error)
      && (store->changes = mail_changes_new (store, error)) != NULL)
    return store;
  mail_store_free (store);
  return NULL;
}

void
mail_store_set_events (MailStore *store, const MailStoreEvents *events, gpointer user_data)
{
  store->events = *events;
  store->events_data = user_data;
}

typedef struct
{
  MailStore *store;
  MailWaiter waiter;
  MailDoneFunc done;
  gpointer user_data;
} Starting;

static void
finish_start (Starting *starting, const GError *error)
{
  MailStore *store = starting->store;
  g_autoptr (GError) missing = NULL;

  if (mail_store_is_network_error (error) && store->listed)
    {
      mail_log_info ("%s; working from the cache until it returns", error->message);
      error = NULL;
    }
  if (error == NULL && store->options.root_mailbox != NULL && store->root->name == NULL
      && store->root->children->len == 0)
    {
      g_set_error (&missing, MAIL_ERROR, MAIL_ERROR_GONE, "there is no mailbox \"%s\"",
                   store->options.root_mailbox);
      error = missing;
    }
  if (error == NULL && !store->options.offline)
    {
      start_timer (store);
      mail_changes_online (store->changes);
    }
  if (error == NULL && store->mover != NULL)
    mail_mover_poll (store->mover);
  starting->done (error, starting->user_data);
  g_free (starting);
}

static void
listed (MailWaiter *waiter, const GError *error)
{
  finish_start ((Starting *)((char *)waiter - G_STRUCT_OFFSET (Starting, waiter)), error);
}

static void
logged_in (const GError *error, gpointer data)
{
  Starting *starting = data;

  if (error != NULL)
    {
      finish_start (starting, error);
      return;
    }
  note_caps (starting->store);
  mail_waiter_init (&starting->waiter, listed);
  if (mail_store_fresh_tree (starting->store, &starting->waiter, NULL) == MAIL_READY)
    finish_start (starting, NULL);
}

void
mail_store_start (MailStore *store, MailDoneFunc done, gpointer user_data)
{
  Starting *starting = g_new0 (Starting, 1);
  g_autofree char *caps = mail_index_get_meta (store->index, "caps");

  starting->store = store;
  starting->done = done;
  starting->user_data = user_data;
  /* What the server could do last time holds until it says otherwise. */
  if (caps != NULL)
    g_atomic_int_set (&store->caps, (gint)g_ascii_strtoll (caps, NULL, 10));
  if (!store->options.offline)
    {
      store->backend->ops->start (store->backend, logged_in, starting);
      return;
    }
  if (store->listed)
    {
      finish_start (starting, NULL);
      return;
    }
  g_autoptr (GError) error = g_error_new (MAIL_ERROR, MAIL_ERROR_UNREACHABLE,
                                          "offline, and nothing of this account is in the cache");
  finish_start (starting, error);
}

typedef struct
{
  MailStore *store;
  MailDoneFunc done;
  gpointer user_data;
  GError *left; /* changes that stay queued */
} Stopping;

static void
closed (const GError *error, gpointer data)
{
  Stopping *stopping = data;

  stopping->done (stopping->left != NULL ? stopping->left : error, stopping->user_data);
  g_clear_error (&stopping->left);
  g_free (stopping);
}

static void
drained (const GError *error, gpointer data)
{
  Stopping *stopping = data;
  MailStore *store = stopping->store;

  stopping->left = error != NULL ? g_error_copy (error) : NULL;
  store->stopping = TRUE;
  store->backend->ops->close (store->backend, closed, stopping);
}

void
mail_store_stop (MailStore *store, MailDoneFunc done, gpointer user_data)
{
  if (store->refresh_timer != NULL)
    {
      g_source_destroy (store->refresh_timer);
      g_clear_pointer (&store->refresh_timer, g_source_unref);
    }
  Stopping *stopping = g_new0 (Stopping, 1);
  stopping->store = store;
  stopping->done = done;
  stopping->user_data = user_data;
  mail_changes_stop (store->changes, drained, stopping);
}

/* What left the listing in this run is no longer needed by any reader. */
static void
forget_gone (MailStore *store)
{
  GHashTableIter iter;
  gpointer value;

  g_hash_table_iter_init (&iter, store->by_content);
  while (g_hash_table_iter_next (&iter, NULL, &value))
    {
      MailMailbox *mailbox = value;

      for (guint i = 0; mailbox->gone != NULL && i < mailbox->gone->len; i++)
        mail_cache_remove (store->cache, mailbox->content_id,
                           g_array_index (mailbox->gone, MailMessage, i).uid);
    }
}

void
mail_store_free (MailStore *store)
{
  if (store->cache != NULL)
    forget_gone (store);
  store->backend->ops->free (store->backend);
  g_clear_pointer (&store->changes, mail_changes_free);
  mail_mover_free (store->mover);
  mail_keep_close (store->keep);
  mail_readahead_free (store->readahead);
  mail_fetches_free (store->fetches);
  g_hash_table_unref (store->by_content);
  g_hash_table_unref (store->by_id);
  mail_mailbox_unref (store->root);
  g_clear_pointer (&store->cache, mail_cache_close);
  g_clear_pointer (&store->index, mail_index_close);
  g_rw_lock_clear (&store->tree_lock);
  g_mutex_clear (&store->quota_lock);
  g_mutex_clear (&store->state_lock);
  g_free (store->state);
  g_main_context_unref (store->net);
  g_free (store->options.dir);
  g_free (store->options.account_key);
  g_free (store->options.root_mailbox);
  g_free (store->options.trash);
  g_free (store->options.pop3_dir);
  g_free (store->outside_trash);
  g_free (store);
}

/* --- status ---------------------------------------------------------------------------------- */

static gboolean
describe (gpointer data)
{
  MailStore *store = data;
  char *text = store->backend->ops->describe (store->backend);
  GQueue waiters;

  g_mutex_lock (&store->state_lock);
  g_free (store->state);
  store->state = text;
  store->state_at = g_get_monotonic_time ();
  waiters = store->state_waiters;
  g_queue_init (&store->state_waiters);
  g_mutex_unlock (&store->state_lock);
  mail_store_wake_all (&waiters, NULL);
  return G_SOURCE_REMOVE;
}

/* What the backend says of itself, on the net thread: asked anew each time. */
static char *
describe_backend (MailStore *store, MailWaiter *waiter)
{
  char *text = NULL;

  if (store->options.offline)
    return g_strdup ("offline");
  if (waiter == NULL)
    return NULL;
  g_mutex_lock (&store->state_lock);
  if (store->state != NULL && store->state_at >= waiter->since)
    text = g_strdup (store->state);
  else
    {
      waiter->link.data = waiter;
      g_queue_push_tail_link (&store->state_waiters, &waiter->link);
    }
  g_mutex_unlock (&store->state_lock);
  if (text == NULL)
    mail_store_invoke (store, describe, store);
  return text;
}

MailAnswer
mail_store_status_text (MailStore *store, char **text_out, MailWaiter *waiter)
{
  g_autofree char *state = describe_backend (store, waiter);
  guint n_queued, n_failed;

  if (state == NULL)
    return MAIL_PARKED;
  GString *text = g_string_new (NULL);
  g_string_append_printf (text, "state %s\n", state);
  for (guint i = 0; i < MAIL_N_COUNTERS; i++)
    g_string_append_printf (text, "%s %" G_GUINT64_FORMAT "\n", mail_counter_name (i),
                            mail_counter_get (i));
  g_rw_lock_reader_lock (&store->tree_lock);
  g_string_append_printf (text, "mailboxes %u\n", g_hash_table_size (store->by_content));
  g_rw_lock_reader_unlock (&store->tree_lock);
  if (store->keep != NULL)
    g_string_append_printf (text, "stored %u\n", mail_keep_length (store->keep));
  mail_changes_count (store->changes, &n_queued, &n_failed);
  g_string_append_printf (text, "queued %u\nfailed %u\n", n_queued, n_failed);
  g_string_append_printf (text, "cache_bytes %" G_GUINT64_FORMAT "\n",
                          mail_cache_used (store->cache));
  *text_out = g_string_free (text, FALSE);
  return MAIL_READY;
}
