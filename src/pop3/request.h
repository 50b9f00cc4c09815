/* SPDX-License-Identifier: MIT
 *
 * Pop3Request: one call of the backend, from its start to its done. Net thread.
 */
#pragma once

#include "mailfs/backend.h"

/* There is one maildrop, and what tells its messages apart never changes its meaning. */
#define POP3_UIDVALIDITY 1

typedef enum
{
  POP3_REQUEST_START,
  POP3_REQUEST_SYNC,
  POP3_REQUEST_FETCH,
  POP3_REQUEST_REMOVE,
  /* These need no server. */
  POP3_REQUEST_LIST,
  POP3_REQUEST_QUOTA,
  POP3_REQUEST_REFUSED, /* `error` says why */
} Pop3RequestKind;

typedef enum
{
  POP3_ITEM_WAITING,
  POP3_ITEM_RUNNING,
  POP3_ITEM_FINISHED,
} Pop3ItemState;

/* One message of a fetch. */
typedef struct
{
  guint32 uid;
  Pop3ItemState state;
  const char *remote_id; /* the request's */
  guint64 delivered;     /* bytes given to the sink, over all tries */
} Pop3Item;

typedef struct
{
  Pop3RequestKind kind;
  gint64 queued_at; /* monotonic µs */
  guint n_lost;     /* sessions lost under it since something of it was done */
  GError *error;    /* REFUSED; REMOVE: what went wrong so far */

  /* One of these, with done. */
  MailListSink *list_sink;
  MailSyncSink *sync_sink;
  MailFetchSink *fetch_sink;
  MailDoneFunc done;
  MailCopyFunc copied;
  MailAppendFunc appended;
  MailQuotaFunc quota;
  gpointer user_data;

  MailPart part;  /* FETCH */
  guint64 length; /* FETCH of a head: about so many bytes; 0: the header */
  MailPriority priority;
  GArray *items;     /* of Pop3Item */
  guint next;        /* items before it do not wait */
  guint n_left;      /* items not finished */
  char **remote_ids; /* FETCH, REMOVE */
  gboolean begun;    /* SYNC: the sink had its begin */
  guint n_messages;  /* SYNC: how many it had */
} Pop3Request;

Pop3Request *pop3_request_new (Pop3RequestKind kind);
/* Takes the items from a fetch as the store asks for it; FALSE when UIDs and remote ids do not
 * match. */
gboolean pop3_request_set_items (Pop3Request *request, const MailFetchRequest *fetch);
/* Calls done, then frees. error NULL: it went well (LIST and QUOTA say what there is). */
void pop3_request_finish (Pop3Request *request, const GError *error);
