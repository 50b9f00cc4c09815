/* SPDX-License-Identifier: MIT
 *
 * ImapParser: turns bytes from an IMAP server into typed responses (RFC 3501, 9051 and the
 * extensions we ask for). Sans-I/O: fed with chunks cut anywhere, it calls an ImapResponseHandler.
 * It keeps no session state: it does not know what was asked, which mailbox is selected, or who is
 * logged in.
 *
 * Bodies are streamed, everything else is bounded (ImapParserLimits); nothing is recursive, nothing
 * is sized by a number the server named. The first violation gives MAIL_ERROR_PROTOCOL with a short
 * escaped excerpt, and the parser is dead from then on.
 *
 * Owned by one thread (net). All pointers given to a handler are valid during that call only.
 */
#pragma once

#include "mailfs/uidset.h"

typedef struct ImapParser ImapParser;

/* --- status responses: tagged and untagged OK, NO, BAD, and PREAUTH, BYE --- */

typedef enum
{
  IMAP_OK,
  IMAP_NO,
  IMAP_BAD,
  IMAP_PREAUTH,
  IMAP_BYE,
} ImapCondition;

/* Which fields of ImapStatus a code fills in stands beside it; none: just the code. */
typedef enum
{
  IMAP_CODE_NONE,
  IMAP_CODE_OTHER, /* code_name and code_args only */
  IMAP_CODE_ALERT,
  IMAP_CODE_ALREADYEXISTS,
  IMAP_CODE_APPENDUID, /* uidvalidity, set (wire order) */
  IMAP_CODE_AUTHENTICATIONFAILED,
  IMAP_CODE_AUTHORIZATIONFAILED,
  IMAP_CODE_BADCHARSET,
  IMAP_CODE_CANNOT,
  IMAP_CODE_CAPABILITY, /* words */
  IMAP_CODE_CLIENTBUG,
  IMAP_CODE_CLOSED,
  IMAP_CODE_COMPRESSIONACTIVE,
  IMAP_CODE_CONTACTADMIN,
  IMAP_CODE_COPYUID, /* uidvalidity, from, to (wire order, same count) */
  IMAP_CODE_CORRUPTION,
  IMAP_CODE_EXPIRED,
  IMAP_CODE_EXPUNGEISSUED,
  IMAP_CODE_HASCHILDREN,
  IMAP_CODE_HIGHESTMODSEQ, /* number */
  IMAP_CODE_INUSE,
  IMAP_CODE_LIMIT,
  IMAP_CODE_MODIFIED, /* set */
  IMAP_CODE_NOMODSEQ,
  IMAP_CODE_NONEXISTENT,
  IMAP_CODE_NOPERM,
  IMAP_CODE_NOTSAVED,
  IMAP_CODE_OVERQUOTA,
  IMAP_CODE_PARSE,
  IMAP_CODE_PERMANENTFLAGS, /* flags, keywords, any_keyword */
  IMAP_CODE_PRIVACYREQUIRED,
  IMAP_CODE_READ_ONLY,
  IMAP_CODE_READ_WRITE,
  IMAP_CODE_REFERRAL, /* code_args; never followed */
  IMAP_CODE_SERVERBUG,
  IMAP_CODE_THROTTLED,
  IMAP_CODE_TOOBIG,
  IMAP_CODE_TRYCREATE,
  IMAP_CODE_UIDNEXT, /* number */
  IMAP_CODE_UIDNOTSTICKY,
  IMAP_CODE_UIDVALIDITY, /* number; 0 when the server said 0 */
  IMAP_CODE_UNAVAILABLE,
  IMAP_CODE_UNKNOWN_CTE,
  IMAP_CODE_UNSEEN, /* number */
  IMAP_N_CODES
} ImapCode;

typedef struct
{
  const char *tag; /* NULL: untagged */
  ImapCondition condition;
  ImapCode code;
  const char *code_name; /* in capitals, printable ASCII, cut at 40 bytes; NULL without a code */
  const char *code_args; /* as sent, cut at 1 KiB; "" for none; NULL without a code */
  const char
      *text; /* human text, cut at 1 KiB, bytes as sent (escape before showing); never NULL */
  /* The code is a known one, but what follows it makes no sense (a bad set, COPYUID with sets of
   * different size, no number): code is set and all fields below are empty. */
  gboolean malformed;
  guint64 number;
  guint32 uidvalidity;
  const MailUidSet *set, *from, *to;
  const char *const *words; /* in capitals, NULL-terminated */
  guint8 flags;
  const char *keywords;
  gboolean any_keyword; /* \* */
} ImapStatus;

/* --- mailbox data --- */

typedef enum
{
  IMAP_LIST_NOSELECT = 1 << 0,
  IMAP_LIST_NONEXISTENT = 1 << 1,
  IMAP_LIST_NOINFERIORS = 1 << 2,
  IMAP_LIST_HASCHILDREN = 1 << 3,
  IMAP_LIST_HASNOCHILDREN = 1 << 4,
  IMAP_LIST_SUBSCRIBED = 1 << 5,
  IMAP_LIST_REMOTE = 1 << 6,
  IMAP_LIST_MARKED = 1 << 7,
  IMAP_LIST_UNMARKED = 1 << 8,
} ImapListFlags;

typedef struct
{
  gboolean lsub;           /* LSUB instead of LIST */
  guint flags;             /* ImapListFlags */
  const char *special_use; /* "\\Trash" with canonical capitals, or NULL */
  char delimiter;          /* 0 for NIL */
  const char *name;        /* bytes of the wire, may be "" or undecodable; NUL-free */
} ImapList;

typedef enum
{
  IMAP_STATUS_MESSAGES = 1 << 0,
  IMAP_STATUS_UIDNEXT = 1 << 1,
  IMAP_STATUS_UIDVALIDITY = 1 << 2,
  IMAP_STATUS_UNSEEN = 1 << 3,
  IMAP_STATUS_HIGHESTMODSEQ = 1 << 4,
  IMAP_STATUS_DELETED = 1 << 5,
  IMAP_STATUS_SIZE = 1 << 6,
  IMAP_STATUS_RECENT = 1 << 7,
} ImapStatusItems;

typedef struct
{
  const char *name;
  guint items; /* ImapStatusItems: which of these the server told */
  guint32 messages, uidnext, uidvalidity, unseen, deleted, recent;
  guint64 highestmodseq, size;
} ImapMailboxStatus;

typedef struct
{
  gboolean extended;     /* ESEARCH */
  const char *tag;       /* ESEARCH correlator, or NULL */
  gboolean uid;          /* ESEARCH said UID; SEARCH does not tell */
  const MailUidSet *set; /* normal; empty when there was no ALL. Numbers for a search without UID */
  gboolean has_all, has_count, has_min, has_max;
  guint32 count, min, max;
  guint64 modseq; /* 0: not told */
} ImapSearch;

typedef struct
{
  const char *prefix; /* wire bytes */
  char delimiter;     /* 0 for NIL */
} ImapNamespaceItem;

typedef struct
{
  const ImapNamespaceItem *personal, *others, *shared;
  guint n_personal, n_others, n_shared; /* 0 for NIL */
} ImapNamespace;

typedef struct
{
  const char *name; /* "STORAGE" (units of 1024 bytes), "MESSAGE", in capitals */
  guint64 usage, limit;
} ImapQuotaResource;

/* --- FETCH --- */

typedef enum
{
  IMAP_FETCH_UID = 1 << 0,
  IMAP_FETCH_FLAGS = 1 << 1,
  IMAP_FETCH_INTERNALDATE = 1 << 2, /* was there and made sense */
  IMAP_FETCH_SIZE = 1 << 3,
  IMAP_FETCH_MODSEQ = 1 << 4,
  IMAP_FETCH_BODY = 1 << 5, /* at least one body section was reported */
} ImapFetchFields;

typedef struct
{
  guint32 seq;          /* >= 1 */
  guint fields;         /* ImapFetchFields: what was in this response */
  guint32 uid;          /* 0: not told */
  guint8 flags;         /* MAIL_FLAG_* */
  const char *keywords; /* space-separated, sorted, unique; "" for none. Never NULL */
  gint64 internaldate;  /* seconds since the epoch */
  guint64 size, modseq;
} ImapFetch;

typedef struct
{
  guint32 seq;
  guint32 uid;         /* 0: not told yet; a server may put UID behind the body */
  const char *section; /* what stood in BODY[...], in capitals: "", "HEADER", "1.MIME" */
  gboolean binary;     /* BINARY[...] */
  gboolean has_origin; /* BODY[...]<origin> */
  gboolean is_nil;     /* BODY[...] NIL: there is no such thing; length 0 */
  guint64 origin;
  guint64 length; /* as announced: do not allocate by it. Data comes to exactly this, or the
                   * connection ends before */
} ImapBody;

/* --- handler --- */

/* Every member may be NULL. A call must not free the parser or feed it; it may pause it. */
typedef struct
{
  void (*status) (const ImapStatus *status, gpointer user_data);
  /* `+`: text is what follows the space, cut nowhere below max_text; "" for none. */
  void (*continuation) (const char *text, gpointer user_data);
  void (*capability) (const char *const *words, gpointer user_data); /* in capitals */
  void (*enabled) (const char *const *words, gpointer user_data);    /* in capitals */
  /* key, value, key, value; n strings, a value may be NULL. */
  void (*id) (const char *const *strings, guint n, gpointer user_data);
  void (*namespace) (const ImapNamespace *ns, gpointer user_data);
  void (*list) (const ImapList *list, gpointer user_data);
  void (*mailbox_status) (const ImapMailboxStatus *status, gpointer user_data);
  void (*search) (const ImapSearch *search, gpointer user_data);
  void (*flags) (guint8 flags, const char *keywords, gpointer user_data); /* * FLAGS */
  void (*exists) (guint32 n, gpointer user_data);
  void (*recent) (guint32 n, gpointer user_data);
  void (*expunge) (guint32 seq, gpointer user_data); /* >= 1 */
  void (*vanished) (const MailUidSet *set, gboolean earlier, gpointer user_data);
  void (*quota) (const char *root, const ImapQuotaResource *resources, guint n, gpointer user_data);
  void (*quota_root) (const char *mailbox, const char *const *roots, gpointer user_data);
  void (*my_rights) (const char *mailbox, const char *rights, gpointer user_data);

  /* A FETCH response: fetch_begin, then for each body section body_begin, body_data*, body_end, and
   * fetch_end with everything that was not a body. When the connection ends in between, the closing
   * calls never come. */
  void (*fetch_begin) (guint32 seq, gpointer user_data);
  void (*body_begin) (const ImapBody *body, gpointer user_data);
  void (*body_data) (const guint8 *data, gsize length, gpointer user_data);
  void (*body_end) (gpointer user_data);
  void (*fetch_end) (const ImapFetch *fetch, gpointer user_data);
} ImapResponseHandler;

/* --- parser --- */

typedef struct
{
  gsize max_text;     /* bytes of one response outside literals; default 1 MiB */
  gsize max_literals; /* bytes of all literals kept in one response (not bodies); default 1 MiB */
  guint64 max_stream; /* bytes of SEARCH, ESEARCH, VANISHED and of skipped responses and literals,
                       * which are not kept; default 64 MiB */
  guint max_ranges;   /* ranges in one set; default 1 Mi (8 MiB of memory) */
} ImapParserLimits;

/* handler is borrowed and must outlive the parser. limits NULL: the defaults. */
ImapParser *imap_parser_new (const ImapResponseHandler *handler, gpointer user_data,
                             const ImapParserLimits *limits);
void imap_parser_free (ImapParser *parser); /* NULL is fine */
G_DEFINE_AUTOPTR_CLEANUP_FUNC (ImapParser, imap_parser_free)

/* Takes length bytes and calls the handler for what they complete. FALSE with MAIL_ERROR_PROTOCOL;
 * every later call fails alike. consumed_out (may be NULL) is less than length only after an error
 * or when a handler paused the parser: the rest is still the caller's, to be fed again, thrown at
 * an inflater, or taken as an attack after STARTTLS. */
gboolean imap_parser_feed (ImapParser *parser, const void *data, gsize length, gsize *consumed_out,
                           GError **error);
/* From inside a handler: imap_parser_feed returns once the response at hand is complete (right
 * after its line end). Holds for that one feed. */
void imap_parser_pause (ImapParser *parser);
/* Between two responses: no byte of an unfinished one was taken. */
gboolean imap_parser_is_idle (const ImapParser *parser);

/* RFC 9051 date-time without the quotes ("17-Jul-1996 02:44:25 -0700", day also " 7" or "7").
 * FALSE for garbage. */
gboolean imap_parse_date_time (const char *text, gint64 *epoch_out);
