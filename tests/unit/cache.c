/* SPDX-License-Identifier: MIT
 *
 * What include/mailfs/cache.h promises: every byte given out is right or reported as absent,
 * whatever happened to the disk, the process or the other threads.
 */
#include "mailfs/cache.h"
#include "mailfs/log.h"
#include "scratch.h"

#include <glib/gstdio.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define BIG_BUDGET (G_GUINT64_CONSTANT (1) << 40)
#define DEADLINE (60 * G_USEC_PER_SEC)

typedef struct
{
  char *dir;
  MailCache *cache;
} Fixture;

/* --- helpers
 * ------------------------------------------------------------------------------------------- */

static void
open_cache (Fixture *f, guint64 budget)
{
  GError *error = NULL;

  f->cache = mail_cache_open (f->dir, budget, &error);
  g_assert_no_error (error);
}

static void
reopen (Fixture *f, guint64 budget)
{
  mail_cache_close (f->cache);
  open_cache (f, budget);
}

static void
set_up (Fixture *f, gconstpointer data)
{
  f->dir = scratch_new ("cache");
  open_cache (f, BIG_BUDGET);
}

static void
tear_down (Fixture *f, gconstpointer data)
{
  mail_cache_close (f->cache);
  scratch_free (f->dir);
}

/* The bytes of message uid: different for each message and at each offset. */
static void
fill (guint8 *data, guint32 uid, guint64 offset, gsize length)
{
  for (gsize i = 0; i < length; i++)
    {
      guint64 x = (offset + i) * 0x9e3779b97f4a7c15u + uid * 0xc2b2ae3d27d4eb4fu;
      data[i] = x >> 56 ^ x >> 31;
    }
}

static guint8 *
bytes_of (guint32 uid, guint64 offset, gsize length)
{
  guint8 *data = g_malloc (MAX (length, 1));

  fill (data, uid, offset, length);
  return data;
}

static void
put (MailCacheFile *file, guint32 uid, guint64 offset, gsize length)
{
  g_autofree guint8 *data = bytes_of (uid, offset, length);
  GError *error = NULL;

  mail_cache_file_write (file, offset, data, length, &error);
  g_assert_no_error (error);
}

static void
put_whole (MailCache *cache, guint32 content_id, guint32 uid, gsize length)
{
  g_autoptr (MailCacheFile) file = mail_cache_get (cache, content_id, uid, 0);
  g_autofree guint8 *data = bytes_of (uid, 0, length);
  GError *error = NULL;

  mail_cache_file_write_whole (file, data, length, &error);
  g_assert_no_error (error);
}

static void
assert_bytes (MailCacheFile *file, guint32 uid, guint64 offset, gsize length)
{
  g_autofree guint8 *expected = bytes_of (uid, offset, length);
  g_autofree guint8 *data = g_malloc (length + 1);
  GError *error = NULL;
  gssize n = mail_cache_file_read (file, offset, data, length, &error);

  g_assert_no_error (error);
  g_assert_cmpmem (data, n, expected, length);
}

static void
assert_whole (MailCache *cache, guint32 content_id, guint32 uid, guint32 of_uid, gsize length)
{
  g_autoptr (MailCacheFile) file = mail_cache_peek (cache, content_id, uid, 0);
  guint64 end = 0;

  g_assert_nonnull (file);
  g_assert_true (mail_cache_file_end (file, &end));
  g_assert_cmpuint (end, ==, length);
  g_assert_true (mail_cache_file_has (file, 0, G_MAXUINT64));
  assert_bytes (file, of_uid, 0, length);
}

static gboolean
is_held (MailCache *cache, guint32 content_id, guint32 uid)
{
  g_autoptr (MailCacheFile) file = mail_cache_peek (cache, content_id, uid, 0);

  return file != NULL;
}

/* As g_file_set_contents, which syncs the disk each time. */
static void
set_contents (const char *path, const char *data, gsize length)
{
  FILE *file = fopen (path, "wb");

  g_assert_nonnull (file);
  g_assert_cmpuint (fwrite (data, 1, length, file), ==, length);
  g_assert_cmpint (fclose (file), ==, 0);
}

static char *
path_of (Fixture *f, guint32 content_id, guint32 uid)
{
  return g_strdup_printf ("%s/data/%x/%x/%x", f->dir, content_id, uid >> 10, uid);
}

static guint64
disk_usage (const char *path)
{
  GDir *dir = g_dir_open (path, 0, NULL);
  guint64 sum = 0;
  struct stat st;
  const char *name;

  if (!dir)
    return lstat (path, &st) == 0 ? (guint64)st.st_blocks * 512 : 0;
  while ((name = g_dir_read_name (dir)))
    {
      g_autofree char *child = g_build_filename (path, name, NULL);
      sum += disk_usage (child);
    }
  g_dir_close (dir);
  return sum;
}

/* Waits for the background thread: for the event, with a deadline. */
#define WAIT_FOR(condition)                                                                        \
  do                                                                                               \
    {                                                                                              \
      gint64 until = g_get_monotonic_time () + DEADLINE;                                           \
      while (!(condition) && g_get_monotonic_time () < until)                                      \
        g_usleep (1000);                                                                           \
      g_assert_cmpint (g_get_monotonic_time (), <, until);                                         \
    }                                                                                              \
  while (0)

/* --- whole messages
 * --------------------------------------------------------------------------------------- */

static const struct
{
  const char *name;
  gsize length;
} whole_cases[] = {
  { "empty", 0 },       { "one", 1 },       { "small", 10000 },
  { "block-1", 65535 }, { "block", 65536 }, { "block+1", 65537 },
  { "blocks", 131072 }, { "odd", 200001 },  { "many", 40 * 65536 + 17 },
};

static void
test_whole (Fixture *f, gconstpointer data)
{
  gsize length = whole_cases[GPOINTER_TO_UINT (data)].length;
  g_autofree char *path = path_of (f, 17, 5000);
  struct stat st;

  g_assert_false (is_held (f->cache, 17, 5000));
  put_whole (f->cache, 17, 5000, length);
  assert_whole (f->cache, 17, 5000, 5000, length);
  g_assert_cmpint (stat (path, &st), ==, 0);
  g_assert_cmpuint (st.st_mode & 07777, ==, 0600);
  reopen (f, BIG_BUDGET);
  assert_whole (f->cache, 17, 5000, 5000, length);
  assert_whole (f->cache, 17, 5000, 5000, length);
  /* The same again is no error, from memory and after a remount; nor in pieces. */
  put_whole (f->cache, 17, 5000, length);
  reopen (f, BIG_BUDGET);
  put_whole (f->cache, 17, 5000, length);
  assert_whole (f->cache, 17, 5000, 5000, length);
}

static void
test_reads (Fixture *f, gconstpointer data)
{
  const gsize length = 3 * MAIL_BLOCK_SIZE + 1000;
  g_autoptr (MailCacheFile) file = NULL;
  guint8 byte;

  put_whole (f->cache, 17, 1, length);
  for (guint round = 0; round < 3; round++)
    {
      if (round == 1)
        reopen (f, BIG_BUDGET);
      file = mail_cache_get (f->cache, 17, 1, 0);
      assert_bytes (file, 1, 65530, 12);
      assert_bytes (file, 1, 0, 1);
      assert_bytes (file, 1, length - 1, 1);
      assert_bytes (file, 1, 4096, 2 * MAIL_BLOCK_SIZE);
      g_assert_cmpint (mail_cache_file_read (file, length, &byte, 1, NULL), ==, 0);
      g_assert_cmpint (mail_cache_file_read (file, G_MAXUINT64 - 1, &byte, 1, NULL), ==, 0);
      g_assert_cmpint (mail_cache_file_read (file, 5, &byte, 0, NULL), ==, 0);
      g_clear_pointer (&file, mail_cache_file_unref);
    }
}

static void
test_names (Fixture *f, gconstpointer data)
{
  g_autofree char *plain = g_strdup_printf ("%s/data/ffffffff/3fffff/ffffffff", f->dir);
  g_autofree char *lf = g_strconcat (plain, ".lf", NULL);
  g_autoptr (MailCacheFile) a = mail_cache_get (f->cache, G_MAXUINT32, G_MAXUINT32, 0);
  g_autoptr (MailCacheFile) b = mail_cache_get (f->cache, G_MAXUINT32, G_MAXUINT32, 1);
  g_autoptr (MailCacheFile) c = mail_cache_get (f->cache, G_MAXUINT32, G_MAXUINT32, 1);

  g_assert_true (a != b);
  g_assert_true (b == c);
  g_assert_true (mail_cache_file_write_whole (a, "a", 1, NULL));
  g_assert_true (g_file_test (plain, G_FILE_TEST_EXISTS));
  g_assert_false (g_file_test (lf, G_FILE_TEST_EXISTS));
  g_assert_true (mail_cache_file_write_whole (b, "bb", 2, NULL));
  g_assert_true (g_file_test (lf, G_FILE_TEST_EXISTS));
  g_assert_cmpuint (mail_cache_file_bytes (a), ==, 1);
  g_assert_cmpuint (mail_cache_file_bytes (c), ==, 2);
}

/* --- parts
 * -------------------------------------------------------------------------------------------------
 */

/* Random writes, looks and reopenings, against a plain array. */
static void
test_model (Fixture *f, gconstpointer data)
{
  const gsize size = 5 * MAIL_BLOCK_SIZE + 333;
  g_autofree gboolean *present = g_new0 (gboolean, size);
  MailCacheFile *file = mail_cache_get (f->cache, 17, 9, 0);

  for (guint step = 0; step < 600; step++)
    {
      guint64 offset = g_test_rand_int_range (0, size);
      gsize length = g_test_rand_int_range (1, step % 3 ? 300 : 2 * MAIL_BLOCK_SIZE);
      guint64 start, end, expected = offset;
      g_autofree guint8 *buffer = g_malloc (2 * MAIL_BLOCK_SIZE);
      gboolean all = TRUE, missing;

      length = MIN (length, size - offset);
      if (step % 2)
        {
          put (file, 9, offset, length);
          for (gsize i = 0; i < length; i++)
            present[offset + i] = TRUE;
        }
      if (step % 50 == 49)
        {
          mail_cache_file_unref (file);
          reopen (f, BIG_BUDGET);
          file = mail_cache_get (f->cache, 17, 9, 0);
        }
      offset = g_test_rand_int_range (0, size);
      length = MIN (length, size - offset);
      for (gsize i = 0; i < length; i++)
        all &= present[offset + i];
      g_assert_cmpint (mail_cache_file_has (file, offset, length), ==, all);
      if (all)
        assert_bytes (file, 9, offset, length);
      else
        {
          GError *error = NULL;
          g_assert_cmpint (mail_cache_file_read (file, offset, buffer, length, &error), ==, -1);
          g_assert_error (error, MAIL_ERROR, MAIL_ERROR_GONE);
          g_error_free (error);
        }
      missing = mail_cache_file_missing (file, offset, offset + length, &start, &end);
      g_assert_cmpint (missing, ==, !all);
      if (missing)
        {
          for (expected = offset; present[expected]; expected++)
            ;
          g_assert_cmpuint (start, ==, expected);
          while (expected < offset + length && !present[expected])
            expected++;
          g_assert_cmpuint (end, ==, expected);
        }
    }
  mail_cache_file_unref (file);
}

static void
test_gaps (Fixture *f, gconstpointer data)
{
  g_autoptr (MailCacheFile) file = mail_cache_get (f->cache, 17, 1, 0);
  guint64 start, end;

  g_assert_true (mail_cache_file_missing (file, 0, G_MAXUINT64, &start, &end));
  g_assert_cmpuint (start, ==, 0);
  g_assert_cmpuint (end, ==, G_MAXUINT64);
  put (file, 1, 100, 50);
  put (file, 1, 200000, 70000);
  g_assert_cmpuint (mail_cache_file_bytes (file), ==, 70050);
  g_assert_true (mail_cache_file_missing (file, 120, G_MAXUINT64, &start, &end));
  g_assert_cmpuint (start, ==, 150);
  g_assert_cmpuint (end, ==, 200000);
  g_assert_true (mail_cache_file_has (file, 200000, 70000));
  g_assert_false (mail_cache_file_has (file, 200000, 70001));
  g_assert_true (mail_cache_file_set_end (file, 270000, NULL));
  g_assert_true (mail_cache_file_has (file, 200000, G_MAXUINT64));
  g_assert_false (mail_cache_file_missing (file, 270000, 280000, &start, &end));
  g_assert_true (mail_cache_file_missing (file, 0, G_MAXUINT64, &start, &end));
  put (file, 1, 0, 270000);
  g_assert_false (mail_cache_file_missing (file, 0, G_MAXUINT64, &start, &end));
  assert_bytes (file, 1, 0, 270000);
}

/* A sparse file takes no more room than what it holds. */
static void
test_sparse (Fixture *f, gconstpointer data)
{
  MailCacheFile *file = mail_cache_get (f->cache, 17, 1, 0);

  put (file, 1, 1 << 30, 10);
  g_assert_true (mail_cache_file_set_end (file, (1 << 30) + 100000, NULL));
  mail_cache_file_unref (file);
  g_assert_cmpuint (mail_cache_used (f->cache), <, 100000);
  reopen (f, BIG_BUDGET);
  WAIT_FOR (mail_cache_used (f->cache) > 0);
  g_assert_cmpuint (mail_cache_used (f->cache), <, 100000);
  file = mail_cache_peek (f->cache, 17, 1, 0);
  g_assert_nonnull (file);
  assert_bytes (file, 1, 1 << 30, 10);
  mail_cache_file_unref (file);
}

/* --- contradictions
 * ------------------------------------------------------------------------------------------ */

typedef enum
{
  SAY_SAME,
  SAY_OTHER_BYTE,
  SAY_TOO_LONG,
  SAY_OTHER_END,
  SAY_OTHER_WHOLE,
} Say;

static const struct
{
  const char *name;
  Say say;
  gboolean corrupt;
} contradiction_cases[] = {
  { "same", SAY_SAME, FALSE },
  { "other-byte", SAY_OTHER_BYTE, TRUE },
  { "too-long", SAY_TOO_LONG, TRUE },
  { "other-end", SAY_OTHER_END, TRUE },
  { "other-whole", SAY_OTHER_WHOLE, TRUE },
};

static void
test_contradiction (Fixture *f, gconstpointer data)
{
  const guint i = GPOINTER_TO_UINT (data);
  const gsize length = 100000;
  g_autofree char *path = path_of (f, 17, 1);

  for (guint remount = 0; remount < 2; remount++)
    {
      g_autofree guint8 *bytes = bytes_of (1, 0, length + 1);
      g_autoptr (MailCacheFile) file = NULL;
      g_autoptr (GError) error = NULL;
      gboolean ok = FALSE;

      put_whole (f->cache, 17, 1, length);
      if (remount)
        reopen (f, BIG_BUDGET);
      file = mail_cache_get (f->cache, 17, 1, 0);
      switch (contradiction_cases[i].say)
        {
        case SAY_SAME:
          ok = mail_cache_file_write (file, 500, bytes + 500, 99000, &error);
          break;
        case SAY_OTHER_BYTE:
          bytes[99000] ^= 1;
          ok = mail_cache_file_write (file, 500, bytes + 500, 99000, &error);
          break;
        case SAY_TOO_LONG:
          ok = mail_cache_file_write (file, 500, bytes + 500, length - 499, &error);
          break;
        case SAY_OTHER_END:
          ok = mail_cache_file_set_end (file, length - 1, &error);
          break;
        case SAY_OTHER_WHOLE:
          ok = mail_cache_file_write_whole (file, bytes, length - 1, &error);
          break;
        }
      g_assert_cmpint (ok, ==, !contradiction_cases[i].corrupt);
      g_assert_cmpint (g_file_test (path, G_FILE_TEST_EXISTS), ==, ok);
      if (ok)
        continue;
      g_assert_error (error, MAIL_ERROR, MAIL_ERROR_CORRUPT);
      g_assert_cmpuint (mail_cache_file_bytes (file), ==, 0);
      /* and it can begin again, in the hands of the same holder */
      put (file, 1, 0, length);
      g_assert_true (mail_cache_file_set_end (file, length, NULL));
      assert_whole (f->cache, 17, 1, 1, length);
    }
}

static void
test_end_cuts (Fixture *f, gconstpointer data)
{
  g_autoptr (MailCacheFile) file = mail_cache_get (f->cache, 17, 1, 0);
  guint64 start, end;

  put (file, 1, 0, 3 * MAIL_BLOCK_SIZE);
  g_assert_true (mail_cache_file_set_end (file, MAIL_BLOCK_SIZE + 10, NULL));
  g_assert_cmpuint (mail_cache_file_bytes (file), <=, MAIL_BLOCK_SIZE + 10);
  assert_bytes (file, 1, 0, MAIL_BLOCK_SIZE);
  if (mail_cache_file_missing (file, 0, G_MAXUINT64, &start, &end))
    put (file, 1, start, end - start);
  g_clear_pointer (&file, mail_cache_file_unref);
  reopen (f, BIG_BUDGET);
  assert_whole (f->cache, 17, 1, 1, MAIL_BLOCK_SIZE + 10);
}

/* --- damage on disk
 * --------------------------------------------------------------------------------------------- */

/* Each byte read is right or reported as missing. Returns how many bytes were there. */
static gsize
assert_right_or_absent (Fixture *f, guint32 uid, gsize length)
{
  g_autoptr (MailCacheFile) file = NULL;
  gsize n_read = 0;

  open_cache (f, BIG_BUDGET);
  file = mail_cache_get (f->cache, 17, uid, 0);
  for (gsize at = 0; at < length; at += 50)
    {
      guint8 data[50], expected[50];
      gsize wanted = MIN (50, length - at);
      g_autoptr (GError) error = NULL;
      gssize n = mail_cache_file_read (file, at, data, wanted, &error);

      fill (expected, uid, at, wanted);
      if (n < 0)
        g_assert_true (g_error_matches (error, MAIL_ERROR, MAIL_ERROR_CORRUPT)
                       || g_error_matches (error, MAIL_ERROR, MAIL_ERROR_GONE));
      else
        g_assert_cmpmem (data, n, expected, wanted);
      n_read += MAX (n, 0);
    }
  /* Fetched again, all is well, and stays so. */
  put (file, uid, 0, length);
  g_assert_true (mail_cache_file_set_end (file, length, NULL));
  g_clear_pointer (&file, mail_cache_file_unref);
  reopen (f, BIG_BUDGET);
  assert_whole (f->cache, 17, uid, uid, length);
  mail_cache_close (f->cache);
  f->cache = NULL;
  return n_read;
}

static const struct
{
  const char *name;
  gboolean whole;
} damage_cases[] = { { "whole", TRUE }, { "partial", FALSE } };

/* The file of message 1 as it is on disk after a clean end. */
static char *
make_sample (Fixture *f, gboolean whole, gsize *length_out)
{
  g_autofree char *path = path_of (f, 17, 1);
  MailCacheFile *file;
  char *contents;

  if (whole)
    put_whole (f->cache, 17, 1, 300);
  else
    {
      file = mail_cache_get (f->cache, 17, 1, 0);
      put (file, 1, 0, 100);
      put (file, 1, 150, 100);
      mail_cache_file_unref (file);
    }
  mail_cache_close (f->cache);
  f->cache = NULL;
  g_assert_true (g_file_get_contents (path, &contents, length_out, NULL));
  return contents;
}

static void
test_flipped (Fixture *f, gconstpointer data)
{
  gboolean whole = damage_cases[GPOINTER_TO_UINT (data)].whole;
  g_autofree char *path = path_of (f, 17, 1);
  g_autofree char *sample = NULL;
  gsize length, n_intact = 0;

  sample = make_sample (f, whole, &length);
  for (gsize i = 0; i < length; i++)
    {
      sample[i] ^= 1 << i % 8;
      set_contents (path, sample, length);
      sample[i] ^= 1 << i % 8;
      n_intact += assert_right_or_absent (f, 1, 300) == (whole ? 300 : 200);
    }
  /* Only the hole between the parts may be anything. */
  g_assert_cmpuint (n_intact, ==, whole ? 0 : 50);
  set_contents (path, sample, length);
  g_assert_cmpuint (assert_right_or_absent (f, 1, 300), ==, whole ? 300 : 200);
  open_cache (f, BIG_BUDGET);
}

static void
test_truncated (Fixture *f, gconstpointer data)
{
  gboolean whole = damage_cases[GPOINTER_TO_UINT (data)].whole;
  g_autofree char *path = path_of (f, 17, 1);
  g_autofree char *sample = NULL, *longer = NULL;
  gsize length;

  sample = make_sample (f, whole, &length);
  for (gsize i = 0; i < length; i++)
    {
      set_contents (path, sample, i);
      g_assert_cmpuint (assert_right_or_absent (f, 1, 300), ==, 0);
    }
  longer = g_malloc0 (length + 1);
  memcpy (longer, sample, length);
  set_contents (path, longer, length + 1);
  g_assert_cmpuint (assert_right_or_absent (f, 1, 300), ==, 0);
  open_cache (f, BIG_BUDGET);
}

/* One damaged block of many: only that one is fetched again. */
static void
test_one_block (Fixture *f, gconstpointer data)
{
  const gsize length = 10 * MAIL_BLOCK_SIZE;
  g_autofree char *path = path_of (f, 17, 1);
  g_autofree guint8 *buffer = g_malloc (length);
  g_autoptr (MailCacheFile) file = NULL;
  g_autoptr (GError) error = NULL;
  guint64 start, end;
  int fd;

  put_whole (f->cache, 17, 1, length);
  mail_cache_close (f->cache);
  fd = open (path, O_WRONLY);
  g_assert_cmpint (pwrite (fd, "damage", 6, 3 * MAIL_BLOCK_SIZE + 77), ==, 6);
  close (fd);
  open_cache (f, BIG_BUDGET);
  file = mail_cache_get (f->cache, 17, 1, 0);
  g_assert_cmpint (mail_cache_file_read (file, 0, buffer, length, &error), ==, -1);
  g_assert_error (error, MAIL_ERROR, MAIL_ERROR_CORRUPT);
  g_assert_true (mail_cache_file_missing (file, 0, length, &start, &end));
  g_assert_cmpuint (start, ==, 3 * MAIL_BLOCK_SIZE);
  g_assert_cmpuint (end, ==, 4 * MAIL_BLOCK_SIZE);
  put (file, 1, start, end - start);
  g_clear_pointer (&file, mail_cache_file_unref);
  assert_whole (f->cache, 17, 1, 1, length);
  reopen (f, BIG_BUDGET);
  assert_whole (f->cache, 17, 1, 1, length);
}

/* Another message's file under this name: it knows whose bytes it has. */
static void
test_misnamed (Fixture *f, gconstpointer data)
{
  g_autofree char *a = path_of (f, 17, 1);
  g_autofree char *b = path_of (f, 17, 2);

  put_whole (f->cache, 17, 1, 1000);
  mail_cache_close (f->cache);
  g_assert_cmpint (rename (a, b), ==, 0);
  open_cache (f, BIG_BUDGET);
  g_assert_false (is_held (f->cache, 17, 1));
  g_assert_false (is_held (f->cache, 17, 2));
  g_assert_false (g_file_test (b, G_FILE_TEST_EXISTS));
}

/* Nothing outside is written or read through a link. */
static void
test_links (Fixture *f, gconstpointer data)
{
  g_autofree char *path = path_of (f, 17, 1);
  g_autofree char *parent = g_path_get_dirname (path);
  g_autofree char *outside = g_build_filename (f->dir, "outside", NULL);
  g_autofree char *contents = NULL;

  g_mkdir_with_parents (parent, 0700);
  g_assert_true (g_file_set_contents (outside, "precious", -1, NULL));
  g_assert_cmpint (symlink (outside, path), ==, 0);
  g_assert_false (is_held (f->cache, 17, 1));
  put_whole (f->cache, 17, 1, 1000);
  assert_whole (f->cache, 17, 1, 1, 1000); /* from memory */
  g_assert_true (g_file_get_contents (outside, &contents, NULL, NULL));
  g_assert_cmpstr (contents, ==, "precious");
}

static void
run_in_child (Fixture *f, void (*function) (Fixture *f))
{
  int status;
  pid_t pid;

  mail_cache_close (f->cache);
  f->cache = NULL;
  pid = fork ();
  if (pid == 0)
    {
      open_cache (f, BIG_BUDGET);
      function (f);
      kill (getpid (), SIGKILL);
      pause ();
    }
  g_assert_cmpint (waitpid (pid, &status, 0), ==, pid);
  g_assert_true (WIFSIGNALED (status));
  g_assert_cmpint (WTERMSIG (status), ==, SIGKILL);
  open_cache (f, BIG_BUDGET);
}

static void
write_and_die (Fixture *f)
{
  MailCacheFile *file;

  put_whole (f->cache, 17, 1, 100000);
  file = mail_cache_get (f->cache, 17, 2, 0);
  put (file, 2, 0, 70000);
  g_assert_true (mail_cache_file_set_end (file, 70000, NULL));
  file = mail_cache_get (f->cache, 17, 3, 0);
  put (file, 3, 0, 70000);
}

static void
test_killed (Fixture *f, gconstpointer data)
{
  g_autofree char *path = path_of (f, 17, 3);

  run_in_child (f, write_and_die);
  assert_whole (f->cache, 17, 1, 1, 100000);
  assert_whole (f->cache, 17, 2, 2, 70000);
  g_assert_true (g_file_test (path, G_FILE_TEST_EXISTS));
  g_assert_false (is_held (f->cache, 17, 3));
  g_assert_false (g_file_test (path, G_FILE_TEST_EXISTS));
}

static void
extend_and_die (Fixture *f)
{
  MailCacheFile *file = mail_cache_get (f->cache, 17, 1, 0);

  put (file, 1, 100000, 10);
}

/* A partial file with a footer, opened for writing and never closed: the old footer is no lie. */
static void
test_killed_partial (Fixture *f, gconstpointer data)
{
  MailCacheFile *file = mail_cache_get (f->cache, 17, 1, 0);

  put (file, 1, 0, 1000);
  mail_cache_file_unref (file);
  run_in_child (f, extend_and_die);
  g_assert_false (is_held (f->cache, 17, 1));
}

/* --- use of descriptors, budget
 * ---------------------------------------------------------------------------------- */

static guint
count_fds (void)
{
  GDir *dir = g_dir_open ("/proc/self/fd", 0, NULL);
  guint n = 0;

  while (g_dir_read_name (dir))
    n++;
  g_dir_close (dir);
  return n;
}

static void
test_descriptors (Fixture *f, gconstpointer data)
{
  struct rlimit limit, small;
  guint before;

  getrlimit (RLIMIT_NOFILE, &limit);
  small = limit;
  small.rlim_cur = 256;
  mail_cache_close (f->cache);
  setrlimit (RLIMIT_NOFILE, &small);
  before = count_fds ();
  open_cache (f, BIG_BUDGET);
  for (guint32 uid = 1; uid <= 500; uid++)
    {
      put_whole (f->cache, 17, uid * 1024, 100);
      g_assert_cmpuint (count_fds (), <, before + 128 + 16 + 4); /* files, directories, some more */
    }
  for (guint32 uid = 1; uid <= 500; uid++)
    assert_whole (f->cache, 17, uid * 1024, uid * 1024, 100);
  /* All of them held at once: more than there can be open. They are readable all the same. */
  {
    MailCacheFile *files[500];
    for (guint32 i = 0; i < G_N_ELEMENTS (files); i++)
      {
        files[i] = mail_cache_get (f->cache, 18, i + 1, 0);
        put (files[i], i + 1, 0, 100);
      }
    for (guint32 i = 0; i < 100; i++)
      assert_bytes (files[i], i + 1, 0, 100);
    for (guint32 i = 0; i < G_N_ELEMENTS (files); i++)
      mail_cache_file_unref (files[i]);
  }
  setrlimit (RLIMIT_NOFILE, &limit);
  reopen (f, BIG_BUDGET);
  assert_whole (f->cache, 17, 1024, 1024, 100);
}

static void
test_used (Fixture *f, gconstpointer data)
{
  guint64 used;

  for (guint32 uid = 1; uid <= 200; uid++)
    put_whole (f->cache, 17 + uid % 3, uid * 100, 1000 * uid);
  used = mail_cache_used (f->cache);
  g_assert_cmpuint (used, >=, 200 * 201 / 2 * 1000);
  for (guint round = 0; round < 3; round++)
    {
      guint64 disk;

      reopen (f, BIG_BUDGET);
      WAIT_FOR (mail_cache_used (f->cache) == used);
      for (guint32 uid = 1; uid <= 200; uid++)
        assert_whole (f->cache, 17 + uid % 3, uid * 100, uid * 100, 1000 * uid);
      g_assert_cmpuint (mail_cache_used (f->cache), ==, used);
      disk = disk_usage (f->dir);
      g_assert_cmpuint (disk, <=, used + used / 4);
    }
  for (guint32 uid = 1; uid <= 200; uid++)
    mail_cache_remove (f->cache, 17 + uid % 3, uid * 100);
  g_assert_cmpuint (mail_cache_used (f->cache), ==, 0);
}

/* Partial files with holes of all sizes: counted on disk as they count themselves. */
static void
test_used_partial (Fixture *f, gconstpointer data)
{
  guint64 used;

  for (guint32 uid = 1; uid <= 100; uid++)
    {
      g_autoptr (MailCacheFile) file = mail_cache_get (f->cache, 17, uid, 0);
      for (guint i = 0; i < uid % 7 + 1; i++)
        {
          guint64 offset = g_test_rand_int_range (0, uid * 3000);
          put (file, uid, offset, g_test_rand_int_range (1, 9000));
        }
      if (uid % 3 == 0)
        g_assert_true (mail_cache_file_set_end (file, 1000000, NULL));
    }
  used = mail_cache_used (f->cache);
  for (guint round = 0; round < 2; round++)
    {
      reopen (f, BIG_BUDGET);
      WAIT_FOR (mail_cache_used (f->cache) == used);
      for (guint32 uid = 1; uid <= 100; uid++)
        g_assert_true (is_held (f->cache, 17, uid));
      g_assert_cmpuint (mail_cache_used (f->cache), ==, used);
      g_assert_cmpuint (disk_usage (f->dir), <=, used + used / 4);
    }
  for (guint32 uid = 1; uid <= 100; uid++)
    mail_cache_remove (f->cache, 17, uid);
  g_assert_cmpuint (mail_cache_used (f->cache), ==, 0);
}

static void
test_evict (Fixture *f, gconstpointer data)
{
  const guint64 budget = 2 << 20;
  MailCacheFile *held;

  reopen (f, budget);
  /* Held all the time, and the oldest of all. */
  put_whole (f->cache, 17, 1, 50000);
  held = mail_cache_get (f->cache, 17, 1, 0);
  for (guint32 uid = 2; uid <= 400; uid++)
    {
      put_whole (f->cache, 17, uid * 64, 50000);
      g_assert_cmpuint (mail_cache_used (f->cache), <, budget + (5 << 20));
    }
  WAIT_FOR (mail_cache_used (f->cache) <= budget);
  g_assert_cmpuint (disk_usage (f->dir), <=, budget + budget / 2);
  assert_bytes (held, 1, 0, 50000);
  mail_cache_file_unref (held);
  g_assert_false (is_held (f->cache, 17, 2 * 64));
  assert_whole (f->cache, 17, 400 * 64, 400 * 64, 50000);
  g_assert_cmpuint (mail_counter_get (MAIL_COUNTER_EVICTIONS), >, 0);

  /* After a remount the same by what is on disk, with a smaller budget. */
  reopen (f, budget / 4);
  WAIT_FOR (mail_cache_used (f->cache) > 0 && mail_cache_used (f->cache) <= budget / 4);
  WAIT_FOR (disk_usage (f->dir) <= budget / 2);
}

/* In one directory: the file that was used goes after the one that was not. */
static void
test_evict_order (Fixture *f, gconstpointer data)
{
  struct timespec times[2] = { { .tv_sec = 1000 }, { .tv_sec = 1000 } };
  const guint32 n = 20;

  for (guint32 uid = 1; uid <= n; uid++)
    put_whole (f->cache, 17, uid, 100000);
  mail_cache_close (f->cache);
  for (guint32 uid = 1; uid <= n; uid++)
    {
      g_autofree char *path = path_of (f, 17, uid);
      times[1].tv_sec = 1000 + uid;
      g_assert_cmpint (utimensat (AT_FDCWD, path, times, 0), ==, 0);
    }
  /* Reading renews the time of use, and the next mount sees it. */
  open_cache (f, BIG_BUDGET);
  assert_whole (f->cache, 17, 1, 1, 100000);
  reopen (f, 1000000);
  WAIT_FOR (mail_cache_used (f->cache) > 0 && mail_cache_used (f->cache) <= 1000000);
  assert_whole (f->cache, 17, 1, 1, 100000);
  assert_whole (f->cache, 17, n, n, 100000);
  g_assert_false (is_held (f->cache, 17, 2));
  g_assert_false (is_held (f->cache, 17, n / 2));
}

/* --- remove, move, copy, drop
 * -------------------------------------------------------------------------------------- */

static void
test_remove (Fixture *f, gconstpointer data)
{
  g_autoptr (MailCacheFile) held = NULL;
  g_autofree char *path = path_of (f, 17, 1);

  put_whole (f->cache, 17, 1, 1000);
  put_whole (f->cache, 17, 2, 1000);
  reopen (f, BIG_BUDGET);
  held = mail_cache_get (f->cache, 17, 1, 0);
  mail_cache_remove (f->cache, 17, 1);
  mail_cache_remove (f->cache, 17, 2);
  mail_cache_remove (f->cache, 17, 3);
  g_assert_false (is_held (f->cache, 17, 1));
  g_assert_false (is_held (f->cache, 17, 2));
  g_assert_false (g_file_test (path, G_FILE_TEST_EXISTS));
  assert_bytes (held, 1, 0, 1000); /* open files keep working */
}

static void
test_clear (Fixture *f, gconstpointer data)
{
  g_autoptr (MailCacheFile) file = NULL;
  g_autofree char *path = path_of (f, 17, 1);
  guint64 end;

  put_whole (f->cache, 17, 1, 1000);
  file = mail_cache_get (f->cache, 17, 1, 0);
  mail_cache_file_clear (file);
  g_assert_cmpuint (mail_cache_file_bytes (file), ==, 0);
  g_assert_false (mail_cache_file_end (file, &end));
  g_assert_false (g_file_test (path, G_FILE_TEST_EXISTS));
  g_assert_cmpuint (mail_cache_used (f->cache), ==, 0);
  put (file, 1, 0, 2000);
  g_assert_true (mail_cache_file_set_end (file, 2000, NULL));
  assert_whole (f->cache, 17, 1, 1, 2000);
}

static void
test_move (Fixture *f, gconstpointer data)
{
  g_autoptr (MailCacheFile) held = NULL, partial = NULL;
  guint64 used;

  put_whole (f->cache, 17, 1, 100000);
  partial = mail_cache_get (f->cache, 17, 2, 0);
  put (partial, 2, 1000, 500);
  g_clear_pointer (&partial, mail_cache_file_unref);
  reopen (f, BIG_BUDGET);
  held = mail_cache_get (f->cache, 17, 1, 0);
  WAIT_FOR (mail_cache_used (f->cache) > 0);
  used = mail_cache_used (f->cache);
  mail_cache_move (f->cache, 17, 1, 18, 5000);
  mail_cache_move (f->cache, 17, 2, 18, 5001);
  mail_cache_move (f->cache, 17, 3, 18, 5002);
  g_assert_false (is_held (f->cache, 17, 1));
  g_assert_false (is_held (f->cache, 17, 2));
  g_assert_false (is_held (f->cache, 18, 5002));
  g_assert_cmpuint (mail_cache_used (f->cache), ==, used);
  for (guint round = 0; round < 2; round++)
    {
      assert_whole (f->cache, 18, 5000, 1, 100000);
      partial = mail_cache_peek (f->cache, 18, 5001, 0);
      assert_bytes (partial, 2, 1000, 500);
      g_clear_pointer (&partial, mail_cache_file_unref);
      if (held)
        assert_bytes (held, 1, 0, 100000);
      g_clear_pointer (&held, mail_cache_file_unref);
      reopen (f, BIG_BUDGET);
    }
}

/* Who still holds the old name cannot spoil the new one. */
static void
test_move_held (Fixture *f, gconstpointer data)
{
  g_autoptr (MailCacheFile) held = mail_cache_get (f->cache, 17, 1, 0);

  put (held, 1, 0, 1000);
  mail_cache_move (f->cache, 17, 1, 17, 2);
  put (held, 1, 1000, 1000);
  g_assert_true (mail_cache_file_set_end (held, 2000, NULL));
  assert_bytes (held, 1, 0, 2000);
  mail_cache_file_clear (held);
  g_clear_pointer (&held, mail_cache_file_unref);
  reopen (f, BIG_BUDGET);
  held = mail_cache_peek (f->cache, 17, 2, 0);
  g_assert_nonnull (held);
  g_assert_cmpuint (mail_cache_file_bytes (held), ==, 1000);
  assert_bytes (held, 1, 0, 1000);
}

static void
test_move_onto (Fixture *f, gconstpointer data)
{
  put_whole (f->cache, 17, 1, 1000);
  put_whole (f->cache, 17, 2, 2000);
  /* What the target has whole is what the server gave for it. */
  mail_cache_move (f->cache, 17, 1, 17, 2);
  assert_whole (f->cache, 17, 2, 2, 2000);
  g_assert_false (is_held (f->cache, 17, 1));
  mail_cache_move (f->cache, 17, 2, 17, 2);
  assert_whole (f->cache, 17, 2, 2, 2000);
}

static void
test_copy (Fixture *f, gconstpointer data)
{
  const gsize lengths[] = { 0, 1000, 3000000 };
  MailCacheFile *partial = mail_cache_get (f->cache, 17, 9, 0);

  put (partial, 9, 0, 10);
  mail_cache_file_unref (partial);
  mail_cache_copy (f->cache, 17, 9, 18, 9);
  g_assert_false (is_held (f->cache, 18, 9));
  for (guint i = 0; i < G_N_ELEMENTS (lengths); i++)
    {
      put_whole (f->cache, 17, 1 + i, lengths[i]);
      mail_cache_copy (f->cache, 17, 1 + i, 18, 1 + i);
      mail_cache_copy (f->cache, 17, 1 + i, 17, 1 + i);
    }
  reopen (f, BIG_BUDGET);
  for (guint i = 0; i < G_N_ELEMENTS (lengths); i++)
    {
      assert_whole (f->cache, 17, 1 + i, 1 + i, lengths[i]);
      assert_whole (f->cache, 18, 1 + i, 1 + i, lengths[i]);
    }
}

static void
test_drop (Fixture *f, gconstpointer data)
{
  g_autofree char *trash = g_build_filename (f->dir, "trash", NULL);
  g_autofree char *dropped = g_build_filename (f->dir, "data", "11", NULL);
  g_autofree char *junk = g_build_filename (f->dir, "data", "junk", NULL);
  const guint32 keep[] = { 5, 18, 99 };
  g_autoptr (MailCacheFile) held = NULL;

  for (guint32 uid = 1; uid <= 3000; uid += 500)
    for (guint32 content_id = 17; content_id <= 20; content_id++)
      put_whole (f->cache, content_id, uid, 1000);
  held = mail_cache_get (f->cache, 17, 501, 0);
  mail_cache_drop_contents (f->cache, 17);
  g_assert_false (is_held (f->cache, 17, 1));
  g_assert_false (g_file_test (dropped, G_FILE_TEST_EXISTS));
  assert_bytes (held, 501, 0, 1000);
  put (held, 501, 0, 1000);
  mail_cache_file_clear (held);
  put (held, 501, 5, 10);
  assert_bytes (held, 501, 5, 10);
  g_assert_true (g_file_set_contents (junk, "x", 1, NULL));
  mail_cache_retain_contents (f->cache, keep, G_N_ELEMENTS (keep));
  g_assert_false (g_file_test (junk, G_FILE_TEST_EXISTS));
  g_assert_false (is_held (f->cache, 19, 1));
  assert_whole (f->cache, 18, 1, 1, 1000);
  put_whole (f->cache, 19, 2, 10); /* not meant by what was dropped before */
  WAIT_FOR (rmdir (trash) == 0);
  g_assert_cmpint (g_mkdir (trash, 0700), ==, 0);
  assert_whole (f->cache, 19, 2, 2, 10);
  g_assert_cmpuint (mail_cache_used (f->cache), ==, 6 * 4096 + 4096);
  mail_cache_retain_contents (f->cache, NULL, 0);
  g_assert_cmpuint (mail_cache_used (f->cache), ==, 0);
}

/* --- a disk that cannot be used
 * ------------------------------------------------------------------------------------- */

static void
assert_lives_in_memory (Fixture *f)
{
  const gsize length = 3 << 20;
  g_autoptr (MailCacheFile) huge = NULL;
  guint64 held = 0;

  for (guint32 uid = 1; uid <= 10; uid++)
    {
      put_whole (f->cache, 17, uid, length);
      assert_whole (f->cache, 17, uid, uid, length);
    }
  for (guint32 uid = 1; uid <= 10; uid++)
    {
      g_autoptr (MailCacheFile) file = mail_cache_get (f->cache, 17, uid, 0);
      held += mail_cache_file_bytes (file);
    }
  g_assert_cmpuint (held, <=, 16 << 20);
  g_assert_cmpuint (held, >=, 12 << 20);
  assert_whole (f->cache, 17, 10, 10, length);

  /* One larger than the budget, read as it comes. */
  huge = mail_cache_get (f->cache, 17, 11, 0);
  for (guint64 at = 0; at < 40 << 20; at += 1 << 20)
    {
      put (huge, 11, at, 1 << 20);
      assert_bytes (huge, 11, at, 1 << 20);
    }
  g_assert_cmpuint (mail_cache_file_bytes (huge), <=, 16 << 20);
  g_assert_true (mail_cache_file_set_end (huge, 40 << 20, NULL));
  assert_bytes (huge, 11, 39 << 20, 1 << 20);
}

static void
test_no_disk (Fixture *f, gconstpointer data)
{
  g_autofree char *place = g_build_filename (f->dir, "data", NULL);

  mail_cache_close (f->cache);
  scratch_remove (place);
  g_assert_true (g_file_set_contents (place, "", 0, NULL)); /* no directory can be made here */
  open_cache (f, BIG_BUDGET);
  assert_lives_in_memory (f);
  mail_cache_remove (f->cache, 17, 10);
  mail_cache_move (f->cache, 17, 9, 17, 20);
  mail_cache_drop_contents (f->cache, 17);
  mail_cache_retain_contents (f->cache, NULL, 0);
}

static void
test_full_disk (Fixture *f, gconstpointer data)
{
  g_autofree char *mount_point = g_build_filename (f->dir, "small", NULL);
  Fixture small = { mount_point, NULL };

  g_assert_cmpint (g_mkdir (mount_point, 0700), ==, 0);
  if (mount ("none", mount_point, "tmpfs", 0, "size=1m,mode=0700") < 0)
    {
      g_test_skip ("cannot mount a tmpfs");
      return;
    }
  open_cache (&small, BIG_BUDGET);
  put_whole (small.cache, 16, 1, 500000);
  assert_lives_in_memory (&small);
  assert_whole (small.cache, 16, 1, 1, 500000);
  reopen (&small, BIG_BUDGET);
  assert_whole (small.cache, 16, 1, 1, 500000);
  /* A partial file that finds the disk full in the middle, completed from both sides. */
  {
    g_autoptr (MailCacheFile) file = mail_cache_get (small.cache, 16, 2, 0);
    for (guint64 at = 0; at < 1 << 20; at += 1 << 16)
      put (file, 2, at, 1 << 16);
    g_assert_true (mail_cache_file_set_end (file, 1 << 20, NULL));
    assert_bytes (file, 2, 0, 1 << 20);
  }
  assert_whole (small.cache, 16, 2, 2, 1 << 20);
  mail_cache_close (small.cache);
  umount (mount_point);
}

/* --- threads
 * -----------------------------------------------------------------------------------------------------------
 */

typedef struct
{
  MailCache *cache;
  guint seed;
  gint n_right;
} Worker;

#define N_SHARED 12

static gsize
shared_length (guint32 uid)
{
  return uid * 23456;
}

/* Anything at any time; what is read is right. */
static gpointer
worker_main (gpointer data)
{
  Worker *worker = data;
  GRand *rand = g_rand_new_with_seed (worker->seed);
  g_autofree guint8 *buffer = g_malloc (shared_length (N_SHARED) + 1);
  g_autofree guint8 *expected = g_malloc (shared_length (N_SHARED) + 1);

  for (guint step = 0; step < 3000; step++)
    {
      guint32 uid = g_rand_int_range (rand, 1, N_SHARED + 1);
      gsize length = shared_length (uid);
      guint64 offset = g_rand_int_range (rand, 0, length);
      gsize n_wanted = g_rand_int_range (rand, 1, length - offset + 1);
      g_autoptr (MailCacheFile) file = mail_cache_get (worker->cache, 17, uid * 300, 0);
      guint64 start, end;
      gssize n;

      switch (g_rand_int_range (rand, 0, 24))
        {
        case 0:
          mail_cache_file_clear (file);
          break;
        case 1:
          mail_cache_remove (worker->cache, 17, uid * 300);
          break;
        case 2:
          mail_cache_copy (worker->cache, 17, uid * 300, 18, uid);
          mail_cache_remove (worker->cache, 18, uid);
          break;
        case 3:
        case 4:
          fill (buffer, uid, 0, length);
          mail_cache_file_write_whole (file, buffer, length, NULL);
          break;
        case 5:
          if (mail_cache_file_missing (file, 0, length, &start, &end))
            {
              fill (buffer, uid, start, end - start);
              mail_cache_file_write (file, start, buffer, end - start, NULL);
              mail_cache_file_set_end (file, length, NULL);
            }
          break;
        case 6:
        case 7:
        case 8:
          fill (buffer, uid, offset, n_wanted);
          mail_cache_file_write (file, offset, buffer, n_wanted, NULL);
          break;
        case 9:
          /* Away and back again, as two threads may do at once. */
          mail_cache_move (worker->cache, 17, uid * 300, 19, uid);
          mail_cache_move (worker->cache, 19, uid, 17, uid * 300);
          break;
        default:
          n = mail_cache_file_read (file, offset, buffer, n_wanted, NULL);
          if (n < 0)
            break;
          fill (expected, uid, offset, n_wanted);
          g_assert_cmpmem (buffer, n, expected, n_wanted);
          worker->n_right++;
        }
    }
  g_rand_free (rand);
  return NULL;
}

static const struct
{
  const char *name;
  guint64 budget;
  gboolean no_disk;
  const char *size; /* of a filesystem of its own */
} thread_cases[] = {
  { "evicting", 600000, FALSE, NULL },
  { "roomy", BIG_BUDGET, FALSE, NULL },
  { "no-disk", BIG_BUDGET, TRUE, NULL },
  { "full-disk", BIG_BUDGET, FALSE, "size=400k,mode=0700" },
};

static void
test_threads (Fixture *f, gconstpointer data)
{
  const guint row = GPOINTER_TO_UINT (data);
  g_autofree char *dir = g_build_filename (f->dir, "threads", NULL);
  g_autofree char *place = g_build_filename (dir, "data", NULL);
  Fixture inner = { dir, NULL };
  Worker workers[6] = { 0 };
  GThread *threads[G_N_ELEMENTS (workers)];

  g_assert_cmpint (g_mkdir (dir, 0700), ==, 0);
  if (thread_cases[row].size && mount ("none", dir, "tmpfs", 0, thread_cases[row].size) < 0)
    {
      g_test_skip ("cannot mount a tmpfs");
      return;
    }
  if (thread_cases[row].no_disk)
    set_contents (place, "", 0);
  open_cache (&inner, thread_cases[row].budget);
  for (guint i = 0; i < G_N_ELEMENTS (workers); i++)
    {
      workers[i] = (Worker) { inner.cache, g_test_rand_int (), 0 };
      threads[i] = g_thread_new ("worker", worker_main, &workers[i]);
    }
  for (guint i = 0; i < G_N_ELEMENTS (workers); i++)
    {
      g_thread_join (threads[i]);
      g_assert_cmpint (workers[i].n_right, >, 0);
    }
  /* The accounts are even: what they say is what is there. */
  for (guint32 uid = 1; uid <= N_SHARED; uid++)
    mail_cache_remove (inner.cache, 17, uid * 300);
  g_assert_cmpuint (mail_cache_used (inner.cache), ==, 0);
  mail_cache_close (inner.cache);
  g_assert_cmpuint (disk_usage (dir), ==, 0);
  if (thread_cases[row].size)
    umount (dir);
}

/* A long message is read block by block while it comes. */
static gpointer
stream_main (gpointer data)
{
  g_autoptr (MailCacheFile) file = mail_cache_get (data, 17, 1, 0);

  for (guint64 at = 0; at < 20 << 20; at += 100000)
    put (file, 1, at, MIN (100000, (20 << 20) - at));
  g_assert_true (mail_cache_file_set_end (file, 20 << 20, NULL));
  return NULL;
}

static void
test_stream (Fixture *f, gconstpointer data)
{
  GThread *writer = g_thread_new ("stream", stream_main, f->cache);
  g_autoptr (MailCacheFile) file = mail_cache_get (f->cache, 17, 1, 0);

  for (guint64 at = 0; at < 20 << 20; at += MAIL_BLOCK_SIZE)
    {
      while (!mail_cache_file_has (file, at, MAIL_BLOCK_SIZE))
        g_thread_yield ();
      assert_bytes (file, 1, at, MAIL_BLOCK_SIZE);
    }
  g_thread_join (writer);
  g_assert_true (mail_cache_file_has (file, 0, G_MAXUINT64));
}

#define ADD(path, index, function)                                                                 \
  g_test_add (path, Fixture, GUINT_TO_POINTER (index), set_up, function, tear_down)
#define ADD_CASES(prefix, cases, function)                                                         \
  for (guint i = 0; i < G_N_ELEMENTS (cases); i++)                                                 \
    {                                                                                              \
      g_autofree char *path = g_strconcat (prefix, cases[i].name, NULL);                           \
      ADD (path, i, function);                                                                     \
    }

int
main (int argc, char **argv)
{
  g_test_init (&argc, &argv, NULL);
  mail_log_init (MAIL_LOG_ERROR, FALSE);
  ADD_CASES ("/cache/whole/", whole_cases, test_whole);
  ADD ("/cache/reads", 0, test_reads);
  ADD ("/cache/names", 0, test_names);
  ADD ("/cache/model", 0, test_model);
  ADD ("/cache/gaps", 0, test_gaps);
  ADD ("/cache/sparse", 0, test_sparse);
  ADD_CASES ("/cache/contradiction/", contradiction_cases, test_contradiction);
  ADD ("/cache/end-cuts", 0, test_end_cuts);
  ADD_CASES ("/cache/flipped/", damage_cases, test_flipped);
  ADD_CASES ("/cache/truncated/", damage_cases, test_truncated);
  ADD ("/cache/one-block", 0, test_one_block);
  ADD ("/cache/misnamed", 0, test_misnamed);
  ADD ("/cache/links", 0, test_links);
  ADD ("/cache/killed", 0, test_killed);
  ADD ("/cache/killed-partial", 0, test_killed_partial);
  ADD ("/cache/descriptors", 0, test_descriptors);
  ADD ("/cache/used", 0, test_used);
  ADD ("/cache/used-partial", 0, test_used_partial);
  ADD ("/cache/evict", 0, test_evict);
  ADD ("/cache/evict-order", 0, test_evict_order);
  ADD ("/cache/remove", 0, test_remove);
  ADD ("/cache/clear", 0, test_clear);
  ADD ("/cache/move", 0, test_move);
  ADD ("/cache/move-held", 0, test_move_held);
  ADD ("/cache/move-onto", 0, test_move_onto);
  ADD ("/cache/copy", 0, test_copy);
  ADD ("/cache/drop", 0, test_drop);
  ADD ("/cache/no-disk", 0, test_no_disk);
  ADD ("/cache/full-disk", 0, test_full_disk);
  ADD_CASES ("/cache/threads/", thread_cases, test_threads);
  ADD ("/cache/stream", 0, test_stream);
  return g_test_run ();
}
