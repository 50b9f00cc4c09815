/* SPDX-License-Identifier: MIT
 *
 * A wire of a given length: accepts connections, connects each onward to a target on this machine
 * and hands the bytes over `delay` ms later in either direction, at most `rate` bytes a second. A
 * new connection reaches the target after the three trips of a TCP handshake. Slow start and loss
 * are not played. Counts what passes, in a file of three native 64-bit numbers that may be read at
 * any time: bytes towards the target, bytes from it, and turns (times the client spoke after having
 * heard something, which is at least the number of round trips it waited for).
 *
 * Usage: delay TARGET-PORT DELAY-MS RATE COUNTERS-FILE; prints the port it listens on. RATE 0:
 * none.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define RING_SIZE (64u << 20) /* more than is under way at a gigabyte a second and 50 ms */
#define MAX_CHUNKS 16384u
#define READ_SIZE (256u << 10)

typedef struct
{
  atomic_uint_fast64_t up, down, turns;
} Counters;

typedef struct
{
  int64_t due; /* ns */
  uint32_t length;
} Chunk;

/* One direction of a connection: a thread fills the ring, another empties it when the time comes.
 */
typedef struct
{
  struct Link *link;
  int from, to;
  bool is_up;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  char *ring; /* bytes behind each other, [tail, head) modulo RING_SIZE */
  uint64_t head, tail;
  Chunk chunks[MAX_CHUNKS];
  uint64_t first_chunk, end_chunk;
  bool at_end, broken; /* no more is coming; nobody takes it any more */
} Pipe;

typedef struct Link
{
  Pipe up, down;
  atomic_bool heard; /* the client got something since it last spoke */
} Link;

static int64_t delay_ns, rate;
static uint16_t target_port;
static Counters *counters;

static int64_t
now (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C (1000000000) + t.tv_nsec;
}

static void
sleep_until (int64_t when)
{
  struct timespec t = { .tv_sec = when / 1000000000, .tv_nsec = when % 1000000000 };

  while (clock_nanosleep (CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
    continue;
}

static void *
fill (void *data)
{
  Pipe *pipe = data;

  for (;;)
    {
      pthread_mutex_lock (&pipe->lock);
      while (!pipe->broken
             && (pipe->head - pipe->tail == RING_SIZE
                 || pipe->end_chunk - pipe->first_chunk == MAX_CHUNKS))
        pthread_cond_wait (&pipe->changed, &pipe->lock);
      uint64_t at = pipe->head % RING_SIZE, room = RING_SIZE - (pipe->head - pipe->tail);
      bool broken = pipe->broken;
      pthread_mutex_unlock (&pipe->lock);
      if (room > RING_SIZE - at)
        room = RING_SIZE - at;

      ssize_t n = broken
                      ? 0
                      : recv (pipe->from, pipe->ring + at, room < READ_SIZE ? room : READ_SIZE, 0);
      if (n > 0 && pipe->is_up && atomic_exchange (&pipe->link->heard, false))
        atomic_fetch_add (&counters->turns, 1);

      pthread_mutex_lock (&pipe->lock);
      if (n <= 0)
        pipe->at_end = true;
      else
        {
          pipe->head += (uint64_t)n;
          pipe->chunks[pipe->end_chunk++ % MAX_CHUNKS] = (Chunk) { .due = now () + delay_ns,
                                                                   .length = (uint32_t)n };
        }
      pthread_cond_broadcast (&pipe->changed);
      pthread_mutex_unlock (&pipe->lock);
      if (n <= 0)
        return NULL;
    }
}

static bool
send_all (int fd, const char *data, size_t length)
{
  while (length > 0)
    {
      ssize_t n = send (fd, data, length, MSG_NOSIGNAL);
      if (n <= 0)
        return false;
      data += n;
      length -= (size_t)n;
    }
  return true;
}

static void *
drain (void *data)
{
  Pipe *pipe = data;
  int64_t free_at = 0; /* when the line has finished sending what it was given */

  for (;;)
    {
      pthread_mutex_lock (&pipe->lock);
      while (pipe->first_chunk == pipe->end_chunk && !pipe->at_end)
        pthread_cond_wait (&pipe->changed, &pipe->lock);
      bool finished = pipe->first_chunk == pipe->end_chunk;
      Chunk chunk = pipe->chunks[pipe->first_chunk % MAX_CHUNKS];
      uint64_t at = pipe->tail % RING_SIZE;
      pthread_mutex_unlock (&pipe->lock);
      if (finished)
        break;

      if (rate > 0)
        {
          free_at = free_at > chunk.due ? free_at : chunk.due;
          free_at += chunk.length * INT64_C (1000000000) / rate;
          chunk.due = free_at;
        }
      if (delay_ns > 0 || rate > 0)
        sleep_until (chunk.due);
      bool sent = send_all (pipe->to, pipe->ring + at, chunk.length);
      atomic_fetch_add (pipe->is_up ? &counters->up : &counters->down, chunk.length);
      if (!pipe->is_up)
        atomic_store (&pipe->link->heard, true);

      pthread_mutex_lock (&pipe->lock);
      pipe->tail += chunk.length;
      pipe->first_chunk++;
      pipe->broken = !sent;
      pthread_cond_broadcast (&pipe->changed);
      pthread_mutex_unlock (&pipe->lock);
      if (!sent)
        break;
    }
  shutdown (pipe->to, SHUT_WR);
  shutdown (pipe->from, SHUT_RD);
  return NULL;
}

static bool
pipe_init (Pipe *pipe, Link *link, int from, int to, bool is_up)
{
  *pipe = (Pipe) { .link = link, .from = from, .to = to, .is_up = is_up };
  pthread_mutex_init (&pipe->lock, NULL);
  pthread_cond_init (&pipe->changed, NULL);
  pipe->ring = mmap (NULL, RING_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return pipe->ring != MAP_FAILED;
}

static int
connect_target (void)
{
  struct sockaddr_in address = { .sin_family = AF_INET,
                                 .sin_port = htons (target_port),
                                 .sin_addr.s_addr = htonl (INADDR_LOOPBACK) };
  int fd = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (fd >= 0 && connect (fd, (struct sockaddr *)&address, sizeof address) < 0)
    {
      close (fd);
      return -1;
    }
  return fd;
}

/* Runs one connection, from accept to the end of both directions. */
static void *
run_link (void *data)
{
  int client = (int)(intptr_t)data, one = 1, n_threads = 0;
  Link *link = calloc (1, sizeof *link);
  pthread_t threads[4];

  sleep_until (now () + 3 * delay_ns);
  int server = connect_target ();
  if (link && server >= 0 && pipe_init (&link->up, link, client, server, true)
      && pipe_init (&link->down, link, server, client, false))
    {
      setsockopt (client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      setsockopt (server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      pthread_create (&threads[n_threads++], NULL, fill, &link->up);
      pthread_create (&threads[n_threads++], NULL, drain, &link->up);
      pthread_create (&threads[n_threads++], NULL, fill, &link->down);
      pthread_create (&threads[n_threads++], NULL, drain, &link->down);
      while (n_threads > 0)
        pthread_join (threads[--n_threads], NULL);
      munmap (link->up.ring, RING_SIZE);
      munmap (link->down.ring, RING_SIZE);
    }
  close (client);
  if (server >= 0)
    close (server);
  free (link);
  return NULL;
}

static bool
open_counters (const char *path)
{
  int fd = open (path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

  if (fd < 0 || ftruncate (fd, sizeof *counters) < 0)
    return false;
  counters = mmap (NULL, sizeof *counters, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close (fd);
  return counters != MAP_FAILED;
}

int
main (int argc, char **argv)
{
  struct sockaddr_in address = { .sin_family = AF_INET,
                                 .sin_addr.s_addr = htonl (INADDR_LOOPBACK) };
  socklen_t length = sizeof address;
  int listener = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (argc != 5 || !open_counters (argv[4]))
    {
      fprintf (stderr, "usage: delay TARGET-PORT DELAY-MS RATE COUNTERS-FILE\n");
      return 1;
    }
  target_port = (uint16_t)atoi (argv[1]);
  delay_ns = (int64_t)(atof (argv[2]) * 1e6);
  rate = atoll (argv[3]);
  if (bind (listener, (struct sockaddr *)&address, sizeof address) < 0 || listen (listener, 100) < 0
      || getsockname (listener, (struct sockaddr *)&address, &length) < 0)
    {
      perror ("delay");
      return 1;
    }
  printf ("%u\n", ntohs (address.sin_port));
  fflush (stdout);
  for (;;)
    {
      int client = accept4 (listener, NULL, NULL, SOCK_CLOEXEC);
      pthread_t thread;

      if (client < 0)
        continue;
      if (pthread_create (&thread, NULL, run_link, (void *)(intptr_t)client) == 0)
        pthread_detach (thread);
      else
        close (client);
    }
}
