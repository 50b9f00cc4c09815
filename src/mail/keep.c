/* SPDX-License-Identifier: MIT
 *
 * The durable store of messages. A file is called by a digest of the id, never by the server's
 * text, and begins with
 *
 *   X-Mailfs-Kept: 1 uidvalidity=N uid=N date=N size=N sha256=HEX id=ESCAPED
 *
 * of a length that the id alone decides, so that it can be filled in when the rest is known. It is
 * written under a temporary name and renamed once its bytes are on the disk: a file under a final
 * name is whole. One whose length or field does not fit is reported, left alone and not listed.
 */
#include "mail/keep.h"

#include "mailfs/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <gio/gio.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIELD "X-Mailfs-Kept: 1 "
#define FIELD_MAX 990 /* RFC 5322 allows 998 */
#define TEMPORARY "tmp-"
#define SUFFIX ".eml"
#define NAME_SIZE 48

typedef struct
{
  MailKept kept;
  guint field_length;
  gboolean elsewhere; /* the server has it too */
} Entry;

struct MailKeep
{
  char *dir, *what;
  GMutex lock;
  int dir_fd, lock_fd; /* -1: not there yet; under lock, constant once set */
  GHashTable *entries; /* id -> Entry; under lock */
  guint n_drafts;      /* for temporary names; under lock */
};

struct MailKeepDraft
{
  MailKeep *keep;
  MailKept kept;
  guint field_length;
  int fd;
  char temporary[NAME_SIZE]; /* "": no file, or none any more */
  gboolean final;            /* it has its final name, and nobody has adopted it */
  GChecksum *sum;
  GError *error;
};

void
mail_kept_clear (MailKept *kept)
{
  g_clear_pointer (&kept->id, g_free);
}

static void
entry_free (gpointer data)
{
  mail_kept_clear (&((Entry *)data)->kept);
  g_free (data);
}

static void
copy_kept (MailKept *to, const MailKept *from)
{
  *to = *from;
  to->id = g_strdup (from->id);
}

static void
final_name (const char *id, char *name)
{
  g_autofree char *digest = g_compute_checksum_for_string (G_CHECKSUM_SHA256, id, -1);

  g_snprintf (name, NAME_SIZE, "%.32s" SUFFIX, digest);
}

/* --- the field ---------------------------------------------------------------------------------
 */

static char *
format_field (const MailKept *kept)
{
  g_autofree char *id = g_uri_escape_string (kept->id, NULL, FALSE);
  char hex[2 * MAIL_KEEP_DIGEST + 1];

  for (guint i = 0; i < MAIL_KEEP_DIGEST; i++)
    g_snprintf (hex + 2 * i, 3, "%02x", kept->digest[i]);
  return g_strdup_printf (FIELD "uidvalidity=%010u uid=%010u date=%+020" PRId64 " size=%020" PRIu64
                                " sha256=%s id=%s\r\n",
                          kept->uidvalidity, kept->uid, kept->date, kept->size, hex, id);
}

static gboolean
parse_digest (const char *hex, guint8 *digest)
{
  if (strlen (hex) != 2 * MAIL_KEEP_DIGEST)
    return FALSE;
  for (guint i = 0; i < MAIL_KEEP_DIGEST; i++)
    {
      int high = g_ascii_xdigit_value (hex[2 * i]), low = g_ascii_xdigit_value (hex[2 * i + 1]);

      if (high < 0 || low < 0)
        return FALSE;
      digest[i] = (guint8)(high << 4 | low);
    }
  return TRUE;
}

/* text: the start of a file, NUL-terminated. FALSE: this is no kept message. */
static gboolean
parse_field (const char *text, Entry *entry)
{
  MailKept *kept = &entry->kept;
  char hex[2 * MAIL_KEEP_DIGEST + 1];
  const char *end = strstr (text, "\r\n");
  int at = 0;

  if (end == NULL || !g_str_has_prefix (text, FIELD)
      || sscanf (text + strlen (FIELD),
                 "uidvalidity=%" SCNu32 " uid=%" SCNu32 " date=%" SCNd64 " size=%" SCNu64
                 " sha256=%64[0-9a-f] id=%n",
                 &kept->uidvalidity, &kept->uid, &kept->date, &kept->size, hex, &at)
             != 5
      || at == 0 || !parse_digest (hex, kept->digest))
    return FALSE;
  const char *id = text + strlen (FIELD) + at;
  if (id >= end || (kept->id = g_uri_unescape_segment (id, end, NULL)) == NULL)
    return FALSE;
  entry->field_length = (guint)(end + 2 - text);
  return TRUE;
}

/* What the file says of itself, if its length and name agree. */
static gboolean
load_entry (int dir_fd, const char *name, Entry *entry)
{
  char text[FIELD_MAX + 1], expected[NAME_SIZE];
  struct stat st;
  int fd = openat (dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  gboolean good = FALSE;

  memset (entry, 0, sizeof *entry);
  if (fd < 0)
    return FALSE;
  ssize_t n = fstat (fd, &st) == 0 && S_ISREG (st.st_mode) ? pread (fd, text, FIELD_MAX, 0) : -1;
  if (n > 0)
    {
      text[n] = '\0';
      good = parse_field (text, entry)
             && (guint64)st.st_size == entry->field_length + entry->kept.size;
    }
  close (fd);
  if (good)
    {
      final_name (entry->kept.id, expected);
      good = strcmp (name, expected) == 0;
    }
  if (!good)
    mail_kept_clear (&entry->kept);
  return good;
}

/* --- open and close ----------------------------------------------------------------------------
 */

static void
load (MailKeep *keep)
{
  int fd = openat (keep->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *dir = fd >= 0 ? fdopendir (fd) : NULL;
  struct dirent *file;
  guint n_damaged = 0;

  if (dir == NULL)
    {
      if (fd >= 0)
        close (fd);
      return;
    }
  while ((file = readdir (dir)) != NULL)
    {
      Entry *entry;

      if (g_str_has_prefix (file->d_name, TEMPORARY))
        unlinkat (keep->dir_fd, file->d_name, 0); /* never became a message: the server has it */
      if (!g_str_has_suffix (file->d_name, SUFFIX))
        continue;
      entry = g_new0 (Entry, 1);
      if (load_entry (keep->dir_fd, file->d_name, entry))
        {
          g_hash_table_replace (keep->entries, entry->kept.id, entry);
          continue;
        }
      g_free (entry);
      if (n_damaged++ == 0)
        mail_log_warning ("%s/%s is damaged; it is left alone and not listed", keep->dir,
                          file->d_name);
    }
  closedir (dir);
  if (n_damaged > 1)
    mail_log_warning ("%u more messages in %s are damaged", n_damaged - 1, keep->dir);
}

/* For people: whose mail this is. No program needs it. */
static void
leave_note (MailKeep *keep)
{
  g_autofree char *path = g_build_filename (keep->dir, "account", NULL);
  g_autofree char *text = g_strdup_printf ("%s\n", keep->what);

  if (!g_file_test (path, G_FILE_TEST_EXISTS))
    g_file_set_contents_full (path, text, -1, G_FILE_SET_CONTENTS_CONSISTENT, 0600, NULL);
}

/* Lock held, or nobody knows keep yet. */
static gboolean
make_dir_locked (MailKeep *keep, gboolean create, GError **error)
{
  g_autofree char *parent = NULL;
  struct stat st;

  if (keep->dir_fd >= 0)
    return TRUE;
  if (create && g_mkdir_with_parents (keep->dir, 0700) != 0)
    return mail_set_errno (error, errno, keep->dir), FALSE;
  int fd = open (keep->dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0)
    return mail_set_errno (error, errno, keep->dir), FALSE;
  if (fstat (fd, &st) != 0 || st.st_uid != geteuid () || (st.st_mode & 077) != 0)
    {
      close (fd);
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_FAILED,
                   "%s must be a directory of yours that nobody else can enter (chmod 700)",
                   keep->dir);
      return FALSE;
    }
  keep->lock_fd = openat (fd, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (keep->lock_fd < 0 || flock (keep->lock_fd, LOCK_EX | LOCK_NB) != 0)
    {
      g_set_error (error, MAIL_ERROR, MAIL_ERROR_FAILED,
                   "another mailfs uses the local storage of this account (%s); unmount that one",
                   keep->dir);
      close (fd);
      return FALSE;
    }
  /* The directory itself must survive a power cut, as what will be in it. */
  parent = g_path_get_dirname (keep->dir);
  int parent_fd = open (parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (parent_fd >= 0)
    {
      fsync (parent_fd);
      close (parent_fd);
    }
  keep->dir_fd = fd;
  leave_note (keep);
  return TRUE;
}

MailKeep *
mail_keep_open (const char *dir, const char *what, gboolean create, GError **error)
{
  MailKeep *keep = g_new0 (MailKeep, 1);

  keep->dir = g_strdup (dir);
  keep->what = g_strdup (what);
  keep->dir_fd = keep->lock_fd = -1;
  g_mutex_init (&keep->lock);
  keep->entries = g_hash_table_new_full (g_str_hash, g_str_equal, NULL, entry_free);
  if (!create && !g_file_test (dir, G_FILE_TEST_IS_DIR))
    return keep;
  if (!make_dir_locked (keep, create, error))
    {
      mail_keep_close (keep);
      return NULL;
    }
  load (keep);
  return keep;
}

void
mail_keep_close (MailKeep *keep)
{
  if (keep == NULL)
    return;
  if (keep->dir_fd >= 0)
    close (keep->dir_fd);
  if (keep->lock_fd >= 0)
    close (keep->lock_fd);
  g_hash_table_unref (keep->entries);
  g_mutex_clear (&keep->lock);
  g_free (keep->dir);
  g_free (keep->what);
  g_free (keep);
}

/* --- what is kept ------------------------------------------------------------------------------
 */

guint
mail_keep_length (MailKeep *keep)
{
  g_mutex_lock (&keep->lock);
  guint n = g_hash_table_size (keep->entries);
  g_mutex_unlock (&keep->lock);
  return n;
}

gboolean
mail_keep_has (MailKeep *keep, const char *id)
{
  g_mutex_lock (&keep->lock);
  gboolean has = g_hash_table_contains (keep->entries, id);
  g_mutex_unlock (&keep->lock);
  return has;
}

gboolean
mail_keep_is_only_here (MailKeep *keep, const char *id)
{
  g_mutex_lock (&keep->lock);
  const Entry *entry = g_hash_table_lookup (keep->entries, id);
  gboolean only = entry != NULL && !entry->elsewhere;
  g_mutex_unlock (&keep->lock);
  return only;
}

void
mail_keep_set_elsewhere (MailKeep *keep, GHashTable *ids)
{
  GHashTableIter iter;
  gpointer id, entry;

  g_mutex_lock (&keep->lock);
  g_hash_table_iter_init (&iter, keep->entries);
  while (g_hash_table_iter_next (&iter, &id, &entry))
    ((Entry *)entry)->elsewhere = g_hash_table_contains (ids, id);
  g_mutex_unlock (&keep->lock);
}

void
mail_keep_set_only_here (MailKeep *keep, const char *id)
{
  g_mutex_lock (&keep->lock);
  Entry *entry = g_hash_table_lookup (keep->entries, id);
  if (entry != NULL)
    entry->elsewhere = FALSE;
  g_mutex_unlock (&keep->lock);
}

static gboolean
get_entry (MailKeep *keep, const char *id, Entry *copy_out)
{
  g_mutex_lock (&keep->lock);
  const Entry *entry = g_hash_table_lookup (keep->entries, id);
  if (entry != NULL)
    {
      *copy_out = *entry;
      copy_out->kept.id = g_strdup (id);
    }
  g_mutex_unlock (&keep->lock);
  return entry != NULL;
}

gboolean
mail_keep_get (MailKeep *keep, const char *id, MailKept *kept_out)
{
  Entry entry;

  if (!get_entry (keep, id, &entry))
    return FALSE;
  *kept_out = entry.kept;
  return TRUE;
}

static gint
compare_uids (gconstpointer a, gconstpointer b)
{
  const MailKept *left = a, *right = b;

  return left->uid != right->uid ? (left->uid < right->uid ? -1 : 1) : strcmp (left->id, right->id);
}

static void
clear_element (gpointer data)
{
  mail_kept_clear (data);
}

GArray *
mail_keep_list (MailKeep *keep)
{
  GArray *list = g_array_new (FALSE, FALSE, sizeof (MailKept));
  GHashTableIter iter;
  gpointer value;

  g_array_set_clear_func (list, clear_element);
  g_mutex_lock (&keep->lock);
  g_hash_table_iter_init (&iter, keep->entries);
  while (g_hash_table_iter_next (&iter, NULL, &value))
    {
      MailKept kept;

      copy_kept (&kept, &((Entry *)value)->kept);
      g_array_append_val (list, kept);
    }
  g_mutex_unlock (&keep->lock);
  g_array_sort (list, compare_uids);
  return list;
}

gssize
mail_keep_read (MailKeep *keep, const char *id, guint64 offset, void *buffer, gsize length,
                GError **error)
{
  char name[NAME_SIZE];
  Entry entry;
  gsize done = 0;
  ssize_t n = 0;

  if (!get_entry (keep, id, &entry))
    {
      g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_GONE, "the message is not stored here");
      return -1;
    }
  mail_kept_clear (&entry.kept);
  if (offset >= entry.kept.size)
    return 0;
  final_name (id, name);
  int fd = openat (keep->dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0)
    return mail_set_errno (error, errno, keep->dir), -1;
  length = MIN (length, entry.kept.size - offset);
  while (done < length
         && (n = TEMP_FAILURE_RETRY (pread (fd, (char *)buffer + done, length - done,
                                            (off_t)(entry.field_length + offset + done))))
                > 0)
    done += (gsize)n;
  if (n < 0 || done < length)
    mail_set_errno (error, n < 0 ? errno : EIO, keep->dir);
  close (fd);
  return n < 0 || done < length ? -1 : (gssize)done;
}

gboolean
mail_keep_remove (MailKeep *keep, const char *id, GError **error)
{
  char name[NAME_SIZE];
  gboolean removed = TRUE;

  final_name (id, name);
  g_mutex_lock (&keep->lock);
  if (g_hash_table_contains (keep->entries, id))
    {
      removed = unlinkat (keep->dir_fd, name, 0) == 0 || errno == ENOENT;
      if (removed)
        g_hash_table_remove (keep->entries, id);
      else
        mail_set_errno (error, errno, keep->dir);
    }
  g_mutex_unlock (&keep->lock);
  return removed;
}

/* --- drafts ------------------------------------------------------------------------------------
 */

static gboolean
write_all (int fd, const void *data, gsize length, off_t offset)
{
  while (length > 0)
    {
      ssize_t n = TEMP_FAILURE_RETRY (pwrite (fd, data, length, offset));

      if (n <= 0)
        return FALSE;
      data = (const char *)data + n;
      length -= (gsize)n;
      offset += n;
    }
  return TRUE;
}

static gboolean
fail_draft (MailKeepDraft *draft, GError **error)
{
  if (draft->error == NULL)
    mail_set_errno (&draft->error, errno, draft->keep->dir);
  if (error != NULL)
    *error = g_error_copy (draft->error);
  return FALSE;
}

MailKeepDraft *
mail_keep_draft_new (MailKeep *keep, const char *id, guint32 uidvalidity, guint32 uid, gint64 date,
                     gboolean file, GError **error)
{
  MailKeepDraft *draft = g_new0 (MailKeepDraft, 1);
  g_autofree char *field = NULL;

  draft->keep = keep;
  draft->fd = -1;
  draft->kept = (MailKept) {
    .id = g_strdup (id), .uidvalidity = uidvalidity, .uid = uid, .date = date
  };
  draft->sum = g_checksum_new (G_CHECKSUM_SHA256);
  field = format_field (&draft->kept);
  draft->field_length = (guint)strlen (field);
  if (!file)
    return draft;
  g_mutex_lock (&keep->lock);
  gboolean made = make_dir_locked (keep, TRUE, error);
  g_snprintf (draft->temporary, NAME_SIZE, TEMPORARY "%u", keep->n_drafts++);
  g_mutex_unlock (&keep->lock);
  if (made && draft->field_length > FIELD_MAX)
    {
      g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_INVALID, "the server's id is too long");
      made = FALSE;
    }
  if (made)
    draft->fd = openat (keep->dir_fd, draft->temporary,
                        O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (draft->fd >= 0)
    return draft;
  if (made)
    mail_set_errno (error, errno, keep->dir);
  draft->temporary[0] = '\0';
  mail_keep_draft_free (draft);
  return NULL;
}

void
mail_keep_draft_free (MailKeepDraft *draft)
{
  char name[NAME_SIZE];

  if (draft->fd >= 0)
    close (draft->fd);
  if (draft->temporary[0] != '\0')
    unlinkat (draft->keep->dir_fd, draft->temporary, 0);
  if (draft->final)
    {
      final_name (draft->kept.id, name);
      unlinkat (draft->keep->dir_fd, name, 0);
    }
  mail_kept_clear (&draft->kept);
  g_checksum_free (draft->sum);
  g_clear_error (&draft->error);
  g_free (draft);
}

gboolean
mail_keep_draft_write (MailKeepDraft *draft, const void *data, gsize length, GError **error)
{
  if (draft->error != NULL)
    return fail_draft (draft, error);
  g_checksum_update (draft->sum, data, (gssize)length);
  if (draft->fd >= 0
      && !write_all (draft->fd, data, length, (off_t)(draft->field_length + draft->kept.size)))
    return fail_draft (draft, error);
  draft->kept.size += length;
  return TRUE;
}

gboolean
mail_keep_draft_end (MailKeepDraft *draft, GError **error)
{
  gsize n = MAIL_KEEP_DIGEST;
  g_autofree char *field = NULL;

  if (draft->error != NULL)
    return fail_draft (draft, error);
  g_checksum_get_digest (draft->sum, draft->kept.digest, &n);
  field = format_field (&draft->kept);
  if (draft->fd < 0)
    return TRUE;
  mail_failpoint ("keep-write");
  if (!write_all (draft->fd, field, draft->field_length, 0))
    return fail_draft (draft, error);
  close (draft->fd); /* many of them wait to be settled at once */
  draft->fd = -1;
  return TRUE;
}

const MailKept *
mail_keep_draft_kept (const MailKeepDraft *draft)
{
  return &draft->kept;
}

const GError *
mail_keep_draft_error (const MailKeepDraft *draft)
{
  return draft->error;
}

/* To the disk, then to its name. */
static gboolean
place (MailKeepDraft *draft)
{
  int dir_fd = draft->keep->dir_fd;
  char name[NAME_SIZE];

  int fd = openat (dir_fd, draft->temporary, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0)
    return fail_draft (draft, NULL);
  gboolean synced = fsync (fd) == 0;
  if (!synced)
    fail_draft (draft, NULL);
  close (fd);
  mail_failpoint ("keep-synced");
  final_name (draft->kept.id, name);
  if (!synced)
    return FALSE;
  if (renameat (dir_fd, draft->temporary, dir_fd, name) != 0)
    return fail_draft (draft, NULL);
  draft->temporary[0] = '\0';
  draft->final = TRUE;
  mail_failpoint ("keep-renamed");
  return TRUE;
}

static gboolean
same_bytes (int fd, const MailKept *kept, guint field_length)
{
  g_autoptr (GChecksum) sum = g_checksum_new (G_CHECKSUM_SHA256);
  g_autofree guint8 *buffer = g_malloc (65536);
  guint8 digest[MAIL_KEEP_DIGEST];
  gsize length = sizeof digest;
  guint64 size = 0;
  ssize_t n;

  posix_fadvise (fd, 0, 0, POSIX_FADV_DONTNEED); /* from the disk, not from memory */
  while ((n = TEMP_FAILURE_RETRY (pread (fd, buffer, 65536, (off_t)(field_length + size)))) > 0)
    {
      g_checksum_update (sum, buffer, n);
      size += (guint64)n;
    }
  g_checksum_get_digest (sum, digest, &length);
  return n == 0 && size == kept->size && memcmp (digest, kept->digest, sizeof digest) == 0;
}

static void
verify (MailKeepDraft *draft)
{
  char name[NAME_SIZE];
  Entry entry;

  final_name (draft->kept.id, name);
  int fd = openat (draft->keep->dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  gboolean good = fd >= 0 && load_entry (draft->keep->dir_fd, name, &entry);
  if (good)
    {
      good = memcmp (entry.kept.digest, draft->kept.digest, MAIL_KEEP_DIGEST) == 0
             && same_bytes (fd, &draft->kept, entry.field_length);
      mail_kept_clear (&entry.kept);
    }
  if (fd >= 0)
    close (fd);
  if (!good)
    g_set_error (&draft->error, MAIL_ERROR, MAIL_ERROR_CORRUPT,
                 "%s/%s does not read back as it was written", draft->keep->dir, name);
}

void
mail_keep_settle (MailKeep *keep, MailKeepDraft *const *drafts, guint n_drafts)
{
  gboolean any = FALSE;

  for (guint i = 0; i < n_drafts; i++)
    if (drafts[i]->temporary[0] != '\0' && drafts[i]->error == NULL)
      any |= place (drafts[i]);
  if (!any)
    return;
  gboolean synced = fsync (keep->dir_fd) == 0;
  int saved = errno;
  mail_failpoint ("keep-directory");
  for (guint i = 0; i < n_drafts; i++)
    {
      if (!drafts[i]->final || drafts[i]->error != NULL)
        continue;
      if (synced)
        verify (drafts[i]);
      else
        {
          errno = saved;
          fail_draft (drafts[i], NULL);
        }
    }
  mail_failpoint ("keep-verified");
}

void
mail_keep_adopt (MailKeep *keep, MailKeepDraft *draft)
{
  Entry *entry = g_new0 (Entry, 1);

  copy_kept (&entry->kept, &draft->kept);
  entry->field_length = draft->field_length;
  entry->elsewhere = TRUE;
  draft->final = FALSE;
  g_mutex_lock (&keep->lock);
  g_hash_table_replace (keep->entries, entry->kept.id, entry);
  g_mutex_unlock (&keep->lock);
}

MailKeepDraft *
mail_keep_copy (MailKeep *keep, const char *id, const char *new_id, GError **error)
{
  g_autofree guint8 *buffer = g_malloc (65536);
  MailKept kept;
  gssize n = 0;

  if (!mail_keep_get (keep, id, &kept))
    {
      g_set_error_literal (error, MAIL_ERROR, MAIL_ERROR_GONE, "the message is not stored here");
      return NULL;
    }
  MailKeepDraft *draft = mail_keep_draft_new (keep, new_id, kept.uidvalidity, kept.uid, kept.date,
                                              TRUE, error);
  mail_kept_clear (&kept);
  if (draft == NULL)
    return NULL;
  gboolean good = TRUE;
  while (good && (n = mail_keep_read (keep, id, draft->kept.size, buffer, 65536, error)) > 0)
    good = mail_keep_draft_write (draft, buffer, (gsize)n, error);
  if (good && n == 0 && mail_keep_draft_end (draft, error))
    return draft;
  mail_keep_draft_free (draft);
  return NULL;
}

gboolean
mail_keep_verify (MailKeep *keep, const char *id)
{
  char name[NAME_SIZE];
  Entry entry;

  if (!get_entry (keep, id, &entry))
    return FALSE;
  mail_kept_clear (&entry.kept);
  final_name (id, name);
  int fd = openat (keep->dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
  gboolean good = fd >= 0 && same_bytes (fd, &entry.kept, entry.field_length);
  if (fd >= 0)
    close (fd);
  return good;
}
