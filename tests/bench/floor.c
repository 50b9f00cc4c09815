/* SPDX-License-Identifier: MIT
 *
 * The floor: what FUSE itself costs at best. Reads a directory and its subdirectories into memory
 * and serves them read-only, the way that asks the kernel to ask as little as it can: READDIRPLUS,
 * everything cached for a day, OPEN and FLUSH answered ENOSYS so that they never come again.
 * Counts the requests, and writes the number to standard output when unmounted.
 *
 * Usage: floor DIRECTORY MOUNTPOINT, in the foreground.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LONG_TIME 86400.0

typedef struct
{
  char *name;
  char *bytes; /* NULL: a directory */
  struct stat stat;
  size_t parent, first, n; /* of a directory: its entries are nodes[first .. first + n) */
} Node;

static Node *nodes; /* nodes[1] is the root; the index is the inode number */
static size_t n_nodes, n_allocated;
static atomic_ulong n_requests;

static void
fail (const char *what)
{
  perror (what);
  exit (2);
}

static int
not_hidden (const struct dirent *entry)
{
  return entry->d_name[0] != '.';
}

/* Gives directory `at` its entries, in order of name, and then those theirs. */
static void
load (size_t at, const char *path)
{
  struct dirent **entries;
  int n = scandir (path, &entries, not_hidden, alphasort);

  if (n < 0 || chdir (path) < 0)
    fail (path);
  if (n_nodes + (size_t)n > n_allocated)
    nodes = realloc (nodes, (n_allocated = 2 * (n_nodes + (size_t)n)) * sizeof *nodes);
  nodes[at].first = n_nodes;
  nodes[at].n = (size_t)n;
  n_nodes += (size_t)n;
  for (int i = 0; i < n; i++)
    {
      size_t number = nodes[at].first + (size_t)i;
      Node *node = &nodes[number];
      *node = (Node) { .name = strdup (entries[i]->d_name), .parent = at };
      free (entries[i]);
      if (stat (node->name, &node->stat) < 0)
        fail (node->name);
      node->stat.st_ino = number;
      if (S_ISDIR (node->stat.st_mode))
        {
          load (number, nodes[number].name);
          continue;
        }
      int fd = open (node->name, O_RDONLY);
      node->bytes = malloc ((size_t)node->stat.st_size + 1);
      if (!node->bytes || read (fd, node->bytes, (size_t)node->stat.st_size) != node->stat.st_size)
        fail (node->name);
      close (fd);
    }
  free (entries);
  if (at != FUSE_ROOT_ID && chdir ("..") < 0)
    fail ("..");
}

static struct fuse_entry_param
entry_of (size_t number)
{
  return (struct fuse_entry_param) {
    .ino = number, .attr = nodes[number].stat, .attr_timeout = LONG_TIME, .entry_timeout = LONG_TIME
  };
}

static int
compare_name (const void *name, const void *node)
{
  return strcmp (name, ((const Node *)node)->name);
}

static void
do_init (void *data, struct fuse_conn_info *connection)
{
  connection->want |= connection->capable & (FUSE_CAP_READDIRPLUS | FUSE_CAP_NO_OPENDIR_SUPPORT);
  connection->want &= ~(unsigned)FUSE_CAP_READDIRPLUS_AUTO;
}

static void
do_lookup (fuse_req_t request, fuse_ino_t parent, const char *name)
{
  Node *directory = &nodes[parent];
  Node *found = bsearch (name, nodes + directory->first, directory->n, sizeof *nodes, compare_name);
  struct fuse_entry_param entry = { .entry_timeout = LONG_TIME };

  n_requests++;
  if (found)
    entry = entry_of ((size_t)(found - nodes));
  fuse_reply_entry (request, &entry);
}

static void
do_getattr (fuse_req_t request, fuse_ino_t number, struct fuse_file_info *info)
{
  n_requests++;
  fuse_reply_attr (request, &nodes[number].stat, LONG_TIME);
}

static void
do_open (fuse_req_t request, fuse_ino_t number, struct fuse_file_info *info)
{
  n_requests++;
  fuse_reply_err (request, ENOSYS); /* the kernel keeps its pages and does not ask again */
}

static void
do_flush (fuse_req_t request, fuse_ino_t number, struct fuse_file_info *info)
{
  n_requests++;
  fuse_reply_err (request, ENOSYS);
}

static void
do_opendir (fuse_req_t request, fuse_ino_t number, struct fuse_file_info *info)
{
  n_requests++;
  info->cache_readdir = info->keep_cache = 1;
  fuse_reply_open (request, info);
}

static void
do_read (fuse_req_t request, fuse_ino_t number, size_t size, off_t offset,
         struct fuse_file_info *info)
{
  off_t left = nodes[number].stat.st_size - offset;

  n_requests++;
  if (left < 0)
    left = 0;
  fuse_reply_buf (request, nodes[number].bytes + offset, (size_t)left < size ? (size_t)left : size);
}

static void
do_readdirplus (fuse_req_t request, fuse_ino_t number, size_t size, off_t offset,
                struct fuse_file_info *info)
{
  Node *directory = &nodes[number];
  char *buffer = malloc (size);
  size_t used = 0;

  n_requests++;
  for (size_t i = (size_t)offset; i < directory->n + 2; i++)
    {
      /* "." and ".." carry no inode number, so that the kernel does not count a lookup of them. */
      struct fuse_entry_param entry = { .attr.st_mode = S_IFDIR, .attr.st_ino = number };
      const char *name = i == 0 ? "." : "..";
      if (i >= 2)
        {
          entry = entry_of (directory->first + i - 2);
          name = nodes[entry.ino].name;
        }
      size_t n = fuse_add_direntry_plus (request, buffer + used, size - used, name, &entry,
                                         (off_t)i + 1);
      if (n > size - used)
        break;
      used += n;
    }
  fuse_reply_buf (request, buffer, used);
  free (buffer);
}

static const struct fuse_lowlevel_ops operations = {
  .init = do_init,
  .lookup = do_lookup,
  .getattr = do_getattr,
  .open = do_open,
  .flush = do_flush,
  .read = do_read,
  .opendir = do_opendir,
  .readdirplus = do_readdirplus,
};

int
main (int argc, char **argv)
{
  char options[] = "-oro,fsname=floor,subtype=floor";
  char *fuse_argv[] = { argv[0], options, NULL };
  struct fuse_args args = FUSE_ARGS_INIT (2, fuse_argv);
  char *mountpoint = argc == 3 ? realpath (argv[2], NULL) : NULL;

  if (!mountpoint)
    {
      fprintf (stderr, "usage: floor DIRECTORY MOUNTPOINT\n");
      return 1;
    }
  n_nodes = FUSE_ROOT_ID + 1;
  nodes = calloc (n_allocated = n_nodes, sizeof *nodes);
  if (stat (argv[1], &nodes[FUSE_ROOT_ID].stat) < 0)
    fail (argv[1]);
  nodes[FUSE_ROOT_ID].stat.st_ino = FUSE_ROOT_ID;
  load (FUSE_ROOT_ID, argv[1]);

  struct fuse_session *session = fuse_session_new (&args, &operations, sizeof operations, NULL);
  if (!session || fuse_set_signal_handlers (session) < 0
      || fuse_session_mount (session, mountpoint) < 0)
    return 2;
  int status = fuse_session_loop_mt (session, NULL);
  fuse_session_unmount (session);
  fuse_session_destroy (session);
  printf ("%lu\n", n_requests);
  return status ? 2 : 0;
}
