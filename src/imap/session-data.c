/* SPDX-License-Identifier: MIT
 *
 * Where untagged data goes: to the record of the selected mailbox, to the tasks under way, or to
 * nobody, in which case it is news about the mailbox. Tasks are told more than they asked for and
 * take what they know to be theirs; a body goes only to the one that asked for exactly it. Net
 * thread.
 */
#include "imap/session-private.h"

#include "mailfs/log.h"

#include <string.h>

#define ALERT_EVERY_MS 60000

static ImapEntry *
head_entry (const ImapSession *session)
{
  return session->sent.head != NULL ? session->sent.head->data : NULL;
}

/* Whether the entry's task may believe what comes now. */
static gboolean
may_take (const ImapEntry *entry)
{
  const ImapTask *task = entry->task;

  if (entry->answered || task == NULL || task->ops->handler == NULL)
    return FALSE;
  /* What comes from a mailbox that could not be selected comes from another one. */
  return entry->select == NULL || entry->selects
         || (entry->select->state == IMAP_SELECT_OK
             && (task->uidvalidity == 0 || task->uidvalidity == entry->select->uidvalidity));
}

/* The next task that may take untagged data, from link on. Dovecot sends a tagged answer late, when
 * data of the next commands is out already, so that data is offered to all that are under way; but
 * what stands behind a SELECT cannot have been answered yet. */
static ImapTask *
next_taker (const ImapSession *session, GList **link, gconstpointer *owner)
{
  while (session->state != IMAP_SESSION_DEAD && *link != NULL)
    {
      ImapEntry *entry = (*link)->data;

      if (entry->selects && *link != session->sent.head)
        break;
      *link = entry->selects ? NULL : (*link)->next;
      if (!may_take (entry) || (*owner != NULL && entry->task->owner == *owner))
        continue;
      *owner = entry->task->owner;
      return entry->task;
    }
  *link = NULL;
  return NULL;
}

#define FORWARD(session, member, ...)                                                              \
  G_STMT_START                                                                                     \
  {                                                                                                \
    GList *forward_link = (session)->sent.head;                                                    \
    gconstpointer forward_owner = NULL;                                                            \
    ImapTask *forward_task;                                                                        \
    while ((forward_task = next_taker ((session), &forward_link, &forward_owner)) != NULL)         \
      if (forward_task->ops->handler->member != NULL)                                              \
        forward_task->ops->handler->member (__VA_ARGS__, forward_task);                            \
  }                                                                                                \
  G_STMT_END

/* The mailbox data is about: the one being selected by the oldest command, or the selected one. */
static ImapSelect *
data_select (const ImapSession *session, gboolean *pending)
{
  const ImapEntry *entry = head_entry (session);

  *pending = entry != NULL && entry->selects;
  return *pending ? entry->select : session->current;
}

void
imap_session_note_change (ImapSession *session)
{
  if (session->current == NULL || session->state != IMAP_SESSION_READY)
    return;
  if (g_strcmp0 (session->changed, session->current->mailbox) == 0)
    return;
  g_free (session->changed);
  session->changed = g_strdup (session->current->mailbox);
}

/* --- status ----------------------------------------------------------------------------------- */

static void
on_select_code (ImapSession *session, const ImapStatus *status)
{
  gboolean pending;
  ImapSelect *select = data_select (session, &pending);

  if (select == NULL || status->malformed)
    return;
  switch (status->code)
    {
    case IMAP_CODE_UIDVALIDITY:
      /* In mid-session: tasks compare with it when they are done. */
      if (!pending && select->uidvalidity != status->number)
        imap_session_note_change (session);
      select->uidvalidity = status->number <= G_MAXUINT32 ? (guint32)status->number : 0;
      break;
    case IMAP_CODE_UIDNEXT:
      select->uidnext = status->number <= G_MAXUINT32 ? (guint32)status->number : 0;
      break;
    case IMAP_CODE_HIGHESTMODSEQ:
      select->highestmodseq = status->number;
      break;
    case IMAP_CODE_NOMODSEQ:
      select->no_modseq = TRUE;
      break;
    case IMAP_CODE_PERMANENTFLAGS:
      select->has_permanent = TRUE;
      select->any_keyword = status->any_keyword;
      select->permanent_flags = status->flags;
      g_free (select->permanent_keywords);
      select->permanent_keywords = g_strdup (status->keywords);
      break;
    case IMAP_CODE_READ_ONLY:
      if (!pending && select->access == IMAP_ACCESS_WRITE)
        select->read_only = TRUE;
      break;
    case IMAP_CODE_CLOSED:
      /* RFC 7162 3.2.11: all before this was about the mailbox left behind. */
      if (pending)
        {
          select->exists = 0;
          select->has_exists = FALSE;
        }
      break;
    default:
      break;
    }
}

static void
on_bye (ImapSession *session, const ImapStatus *status)
{
  g_autofree char *text = mail_log_escape (status->text, -1, 300);

  session->refusal_code = status->code;
  if (session->state == IMAP_SESSION_LOGOUT)
    imap_session_die (session, MAIL_ERROR_CONNECTION, "logged out");
  else
    imap_session_die (session, MAIL_ERROR_CONNECTION, "the server says BYE: %s", text);
}

static void
on_status (const ImapStatus *status, gpointer user_data)
{
  ImapSession *session = user_data;

  if (session->state == IMAP_SESSION_DEAD)
    return;
  if (!session->got_greeting)
    {
      imap_session_greeting (session, status);
      return;
    }
  if (status->code == IMAP_CODE_ALERT && session->now - session->alerted_at >= ALERT_EVERY_MS)
    {
      g_autofree char *text = mail_log_escape (status->text, -1, 300);
      session->alerted_at = session->now;
      mail_log_warning ("%s: the server alerts: %s", session->options.host, text);
    }
  if (status->tag != NULL)
    {
      if (status->code == IMAP_CODE_CAPABILITY && status->condition == IMAP_OK
          && !status->malformed)
        imap_session_set_capabilities (session, status->words);
      imap_session_answer (session, status);
      return;
    }
  switch (status->condition)
    {
    case IMAP_BYE:
      on_bye (session, status);
      return;
    case IMAP_PREAUTH:
      imap_session_die (session, MAIL_ERROR_PROTOCOL, "PREAUTH in the middle");
      return;
    default:
      break;
    }
  if (status->code == IMAP_CODE_CAPABILITY && !status->malformed)
    imap_session_set_capabilities (session, status->words);
  on_select_code (session, status);
  FORWARD (session, status, status);
}

static void
on_continuation (const char *text, gpointer user_data)
{
  ImapSession *session = user_data;
  ImapEntry *head = head_entry (session);

  if (session->state == IMAP_SESSION_DEAD)
    return;
  if (session->emitting != NULL && imap_command_continue (session->emitting->command))
    return;
  if (head != NULL && head->idle && session->idle == IMAP_IDLE_SENT)
    session->idle = IMAP_IDLE_ACTIVE;
  else if (session->sasl != NULL && head != NULL)
    imap_session_auth_continue (session, text);
  else
    imap_session_die (session, MAIL_ERROR_PROTOCOL, "a continuation nobody waits for");
}

static void
on_capability (const char *const *words, gpointer user_data)
{
  imap_session_set_capabilities (user_data, words);
}

static void
on_enabled (const char *const *words, gpointer user_data)
{
  ImapSession *session = user_data;

  for (; *words != NULL; words++)
    if (strcmp (*words, "QRESYNC") == 0 && session->state == IMAP_SESSION_READY)
      session->qresync_enabled = TRUE;
}

static void
on_namespace (const ImapNamespace *ns, gpointer user_data)
{
  ImapSession *session = user_data;

  if (ns->n_personal > 0 && session->state == IMAP_SESSION_READY)
    session->delimiter = ns->personal[0].delimiter;
  FORWARD (session, namespace, ns);
}

/* --- the mailbox ------------------------------------------------------------------------------ */

static void
on_exists (guint32 n, gpointer user_data)
{
  ImapSession *session = user_data;
  gboolean pending;
  ImapSelect *select = data_select (session, &pending);

  if (select == NULL)
    return;
  if (!pending && select->exists != n)
    imap_session_note_change (session);
  select->exists = n;
  select->has_exists = TRUE;
  FORWARD (session, exists, n);
}

static void
on_expunge (guint32 seq, gpointer user_data)
{
  ImapSession *session = user_data;
  gboolean pending;
  ImapSelect *select = data_select (session, &pending);

  if (select == NULL || pending)
    return;
  if (select->exists > 0)
    select->exists--;
  imap_session_note_change (session);
  FORWARD (session, expunge, seq);
}

/* Whether a command under way was to remove them all: that they go is no news. */
static gboolean
are_removed (const ImapSession *session, const MailUidSet *set)
{
  for (const GList *link = session->sent.head; link != NULL; link = link->next)
    {
      const ImapEntry *entry = link->data;
      g_autoptr (MailUidSet) removed = NULL;

      if (entry->select != session->current || entry->task == NULL || entry->task->removes == NULL)
        continue;
      removed = mail_uid_set_intersect (set, entry->task->removes);
      if (mail_uid_set_equal (removed, set))
        return TRUE;
    }
  return FALSE;
}

static void
on_vanished (const MailUidSet *set, gboolean earlier, gpointer user_data)
{
  ImapSession *session = user_data;
  gboolean pending;
  ImapSelect *select = data_select (session, &pending);

  if (select == NULL)
    return;
  if (!earlier && !pending)
    {
      guint64 n = mail_uid_set_count (set);
      select->exists -= (guint32)MIN (n, select->exists);
      if (!are_removed (session, set))
        imap_session_note_change (session);
    }
  FORWARD (session, vanished, set, earlier);
}

static void
on_flags (guint8 flags, const char *keywords, gpointer user_data)
{
  FORWARD ((ImapSession *)user_data, flags, flags, keywords);
}

static void
on_list (const ImapList *list, gpointer user_data)
{
  FORWARD ((ImapSession *)user_data, list, list);
}

static void
on_mailbox_status (const ImapMailboxStatus *status, gpointer user_data)
{
  FORWARD ((ImapSession *)user_data, mailbox_status, status);
}

static void
on_search (const ImapSearch *search, gpointer user_data)
{
  FORWARD ((ImapSession *)user_data, search, search);
}

static void
on_quota (const char *root, const ImapQuotaResource *resources, guint n, gpointer user_data)
{
  FORWARD ((ImapSession *)user_data, quota, root, resources, n);
}

static void
on_quota_root (const char *mailbox, const char *const *roots, gpointer user_data)
{
  FORWARD ((ImapSession *)user_data, quota_root, mailbox, roots);
}

static void
on_my_rights (const char *mailbox, const char *rights, gpointer user_data)
{
  FORWARD ((ImapSession *)user_data, my_rights, mailbox, rights);
}

/* --- FETCH ------------------------------------------------------------------------------------ */

static gboolean
entry_wants (const ImapEntry *entry, const ImapBody *body)
{
  const ImapTask *task = entry->task;

  if (task == NULL || entry->answered || task->ops->wants_body == NULL)
    return FALSE;
  if (entry->select == NULL || entry->select->state != IMAP_SELECT_OK
      || (task->uidvalidity != 0 && task->uidvalidity != entry->select->uidvalidity))
    return FALSE;
  return task->ops->wants_body (entry->task, body);
}

static void
on_fetch_begin (guint32 seq, gpointer user_data)
{
  ImapSession *session = user_data;

  session->body_entry = NULL;
  session->body_skipped = session->body_seen = FALSE;
}

static void
on_body_begin (const ImapBody *body, gpointer user_data)
{
  ImapSession *session = user_data;

  session->body_seen = TRUE;
  session->body_skipped = TRUE;
  if (session->state == IMAP_SESSION_DEAD)
    return;
  if (session->body_entry != NULL)
    {
      /* A second section in one response belongs to the same task or to nobody. */
      session->body_skipped = !entry_wants (session->body_entry, body);
    }
  else
    for (GList *link = session->sent.head; link != NULL; link = link->next)
      {
        ImapEntry *entry = link->data;

        if (entry->selects)
          break; /* what stands behind it cannot have been answered yet */
        if (!entry_wants (entry, body))
          continue;
        session->body_entry = entry;
        session->body_skipped = FALSE;
        break;
      }
  if (!session->body_skipped)
    session->body_entry->task->ops->handler->body_begin (body, session->body_entry->task);
}

static void
on_body_data (const guint8 *data, gsize length, gpointer user_data)
{
  ImapSession *session = user_data;

  if (session->body_entry != NULL && !session->body_skipped)
    session->body_entry->task->ops->handler->body_data (data, length, session->body_entry->task);
}

static void
on_body_end (gpointer user_data)
{
  ImapSession *session = user_data;

  if (session->body_entry != NULL && !session->body_skipped)
    session->body_entry->task->ops->handler->body_end (session->body_entry->task);
  session->body_skipped = TRUE;
}

static void
on_fetch_end (const ImapFetch *fetch, gpointer user_data)
{
  ImapSession *session = user_data;
  ImapEntry *entry = session->body_entry;
  gconstpointer owner = NULL;
  gboolean taken = FALSE;
  ImapTask *task;

  session->body_entry = NULL;
  if (session->state == IMAP_SESSION_DEAD)
    return;
  if (entry != NULL)
    {
      entry->task->ops->handler->fetch_end (fetch, entry->task);
      return;
    }
  if (session->body_seen)
    return; /* nobody asked for it */
  for (GList *link = session->sent.head; (task = next_taker (session, &link, &owner)) != NULL;)
    if (task->ops->handler->fetch_end != NULL && task->ops->wants_body == NULL)
      {
        task->ops->handler->fetch_end (fetch, task);
        taken = TRUE;
      }
  if (!taken && (fetch->fields & IMAP_FETCH_FLAGS) != 0)
    imap_session_note_change (session);
}

const ImapResponseHandler imap_session_handler = {
  .status = on_status,
  .continuation = on_continuation,
  .capability = on_capability,
  .enabled = on_enabled,
  .namespace = on_namespace,
  .list = on_list,
  .mailbox_status = on_mailbox_status,
  .search = on_search,
  .flags = on_flags,
  .exists = on_exists,
  .expunge = on_expunge,
  .vanished = on_vanished,
  .quota = on_quota,
  .quota_root = on_quota_root,
  .my_rights = on_my_rights,
  .fetch_begin = on_fetch_begin,
  .body_begin = on_body_begin,
  .body_data = on_body_data,
  .body_end = on_body_end,
  .fetch_end = on_fetch_end,
};
