/* SPDX-License-Identifier: MIT
 *
 * What tasks share: the record of a selected mailbox, and the one table from response codes to what
 * the caller can do. Net thread. Knows no session.
 */
#include "imap/task.h"

#include "mailfs/log.h"

#include <string.h>

ImapSelect *
imap_select_new (const char *mailbox, ImapAccess access)
{
  ImapSelect *select = g_new0 (ImapSelect, 1);

  select->refs = 1;
  select->mailbox = g_strdup (mailbox);
  select->access = access;
  return select;
}

ImapSelect *
imap_select_ref (ImapSelect *select)
{
  select->refs++;
  return select;
}

void
imap_select_unref (ImapSelect *select)
{
  if (select == NULL || --select->refs > 0)
    return;
  g_clear_error (&select->error);
  g_free (select->permanent_keywords);
  g_free (select->mailbox);
  g_free (select);
}

static const struct
{
  ImapCode code;
  MailErrorCode error;
} code_errors[] = {
  { IMAP_CODE_ALREADYEXISTS, MAIL_ERROR_EXISTS },
  { IMAP_CODE_AUTHENTICATIONFAILED, MAIL_ERROR_AUTH },
  { IMAP_CODE_AUTHORIZATIONFAILED, MAIL_ERROR_AUTH },
  { IMAP_CODE_CANNOT, MAIL_ERROR_CANNOT },
  { IMAP_CODE_EXPIRED, MAIL_ERROR_AUTH },
  { IMAP_CODE_EXPUNGEISSUED, MAIL_ERROR_GONE },
  { IMAP_CODE_HASCHILDREN, MAIL_ERROR_NOT_EMPTY },
  { IMAP_CODE_INUSE, MAIL_ERROR_BUSY },
  { IMAP_CODE_LIMIT, MAIL_ERROR_TOO_LARGE },
  { IMAP_CODE_NONEXISTENT, MAIL_ERROR_GONE },
  { IMAP_CODE_NOPERM, MAIL_ERROR_PERMISSION },
  { IMAP_CODE_OVERQUOTA, MAIL_ERROR_OVER_QUOTA },
  { IMAP_CODE_PRIVACYREQUIRED, MAIL_ERROR_TLS },
  { IMAP_CODE_THROTTLED, MAIL_ERROR_BUSY },
  { IMAP_CODE_TOOBIG, MAIL_ERROR_TOO_LARGE },
  { IMAP_CODE_TRYCREATE, MAIL_ERROR_GONE },
  { IMAP_CODE_UNAVAILABLE, MAIL_ERROR_UNREACHABLE },
};

/* Dovecot, Courier and others name no code when a mailbox cannot be selected. */
static gboolean
sounds_nonexistent (const char *text)
{
  static const char *const signs[] = { "exist", "unknown mailbox", "no such", "not found",
                                       "unable to open this mailbox" };
  g_autofree char *lower = g_ascii_strdown (text, -1);

  for (guint i = 0; i < G_N_ELEMENTS (signs); i++)
    if (strstr (lower, signs[i]) != NULL)
      return TRUE;
  return FALSE;
}

GError *
imap_status_error (const ImapStatus *status, const char *what, gboolean select)
{
  g_autofree char *text = mail_log_escape (status->text, -1, 300);
  MailErrorCode code = MAIL_ERROR_FAILED;

  for (guint i = 0; i < G_N_ELEMENTS (code_errors); i++)
    if (code_errors[i].code == status->code)
      code = code_errors[i].error;
  if (select && status->condition == IMAP_NO && status->code == IMAP_CODE_NONE
      && sounds_nonexistent (status->text))
    code = MAIL_ERROR_GONE;
  return g_error_new (MAIL_ERROR, code, "%s: the server says %s%s%s%s%s", what,
                      status->condition == IMAP_BAD ? "BAD" : "NO",
                      status->code_name != NULL ? " [" : "",
                      status->code_name != NULL ? status->code_name : "",
                      status->code_name != NULL ? "] " : " ", text);
}
