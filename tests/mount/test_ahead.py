# SPDX-License-Identifier: MIT
"""What is fetched ahead of somebody who walks through a mailbox is handed to the kernel before he asks:
fewer requests, the same bytes, and never in the way of somebody who writes."""
import concurrent.futures
import hashlib
import os
import random
import re
import shutil
import threading
import time

import pytest

from support.dovecot import wait_for
from support.write import Account, mail, sh

N = 600


def walk(inbox, names):
    """UID -> sha256, read in order of names."""
    return {int(name.split(".")[0]): hashlib.sha256((inbox / name).read_bytes()).hexdigest()
            for name in names}


def settle(daemon, looks=1):
    """Nothing more is fetched or handed on: so many looks after the first one find it as it was."""
    seen = []

    def still():
        seen.append([daemon.counter(k) for k in ("ahead", "bytes_in")])
        return len(seen) > looks and all(x == seen[-1] for x in seen[-looks - 1:])

    wait_for("nothing more is on its way", still, step=0.1)


def fetches(daemon):
    """Commands for bodies so far; other ones are sent whenever it is time for them. With -v."""
    return daemon.log().count("BODY.PEEK[")


def large(size):
    return lambda number, seed: f"Subject: {number}\n\n".encode() + (b"x" * 76 + b"\n") * (size // 77)


@pytest.mark.main
@pytest.mark.parametrize("options", [{}, {"ro": True}, {"layout": "maildir"}], ids=str)
def test_walk(mount, dovecot, user, options):
    """Cold, and again from the disk cache: most messages are there before they are asked for."""
    dovecot.fill(user, range(N), new_every=0)
    daemon = mount(user, **options)
    inbox = daemon.mnt / "INBOX"
    if "layout" in options:
        inbox = inbox / "cur"
    with dovecot.client(user) as client:
        truth = {uid: m.sha256 for uid, m in client.messages().items()}
    for when in ("cold", "again"):
        names = sorted(os.listdir(inbox), key=lambda name: int(name.split(".")[0]))
        sizes = [os.stat(inbox / name).st_size for name in names]
        small = sum(size <= 65536 for size in sizes)
        reads = sum(size // 131072 + 1 for size in sizes if size > 65536)
        before = daemon.status()
        got = {}
        for at in range(0, len(names), 40):
            got.update(walk(inbox, names[at:at + 40]))
            settle(daemon)
        assert len(got) >= N // 2 and got == {uid: truth[uid] for uid in got}
        assert len(got) == N or "layout" in options
        now = daemon.status()
        asked = sum(now[k] - before[k] for k in ("hits", "misses"))
        assert now["ahead"] - before["ahead"] > small // 2, (when, now)
        assert asked < small // 2 + 3 * reads, (when, asked, small, reads)
        daemon.stop()
        daemon.start()


def test_heads(mount, dovecot, user):
    """Who reads the start of each large message has just those fetched, many at a time."""
    n, size = 80, 200_000
    dovecot.fill(user, range(n), new_every=0, make=large(size))
    daemon = mount(user, refresh=600)  # looking for changes is not counted
    inbox = daemon.mnt / "INBOX"
    names = sorted(os.listdir(inbox))
    commands, moved = daemon.counter("commands"), daemon.counter("bytes_in")
    for name in names:
        with open(inbox / name, "rb", buffering=0) as file:
            assert b"Subject: " in file.read(2048)
    assert daemon.counter("commands") - commands < n // 4
    assert daemon.counter("bytes_in") - moved < n * size // 3


def test_large(mount, dovecot, user):
    """Messages of several blocks are handed to the kernel whole: their readers ask for next to nothing."""
    n, size = 120, 150_000
    dovecot.fill(user, range(n), new_every=0, make=large(size))
    daemon = mount(user, refresh=600)
    inbox = daemon.mnt / "INBOX"
    names = sorted(os.listdir(inbox))
    with dovecot.client(user) as client:
        truth = {uid: m.sha256 for uid, m in client.messages().items()}
    got = walk(inbox, names[:10])
    settle(daemon)
    before = daemon.status()
    for at in range(10, n, 10):
        got.update(walk(inbox, names[at:at + 10]))
        settle(daemon)
    assert got == truth
    now = daemon.status()
    # Each is read in two pieces; the next 32 behind the first ten are too near to be handed on.
    asked = sum(now[k] - before[k] for k in ("hits", "misses"))
    assert asked < 1.2 * n, (asked, now["ahead"])
    assert now["ahead"] > n // 3


def test_rest(mount, dovecot, user):
    """Of large messages only the start is fetched ahead, until he reads one of them to its end: then of those
    that follow, too, before he comes there."""
    make = large(100_000)
    dovecot.fill(user, range(6), new_every=0, make=lambda number, seed:
                 make(number, seed) if number > 1 else mail(str(number)))
    daemon = mount(user, refresh=600)
    inbox = daemon.mnt / "INBOX"
    names = sorted(os.listdir(inbox))

    def cached(name):
        return int(os.getxattr(inbox / name, "user.mailfs.cached"))

    walk(inbox, names[:2])
    wait_for("their start is here", lambda: all(cached(name) == 65536 for name in names[2:]))
    walk(inbox, names[2:3])
    wait_for("they are here", lambda: all(cached(name) == os.stat(inbox / name).st_size
                                          for name in names[2:]))


def test_chunks(mount, dovecot, user):
    """One command brings no more than a few MiB, since others may have to wait behind it."""
    n, size = 300, 200_000
    dovecot.fill(user, range(n), new_every=0, make=large(size))
    daemon = mount(user, _args=("-f", "-v"))
    inbox = daemon.mnt / "INBOX"
    for name in sorted(os.listdir(inbox)):
        assert len((inbox / name).read_bytes()) > size
    log = daemon.log_path.read_text()
    asked = [re.split("[:,]", found) for found in re.findall(r"UID FETCH (\S+) \(UID BODY\.PEEK\[\]\)", log)]
    many = [int(uids[-1]) - int(uids[0]) + 1 for uids in asked if len(uids) > 1]
    assert sum(many) > n // 2 and max(many) * size <= 6 << 20, many


def test_next_mailbox(mount, dovecot, user):
    """Who has walked through one mailbox and opens the first message of the next walks on there; who has not
    is given what he asked for."""
    dovecot.fill(user, range(30), new_every=0)
    dovecot.fill(user, range(100, 130), "Next", new_every=0)
    daemon = mount(user, refresh=600, _args=("-f", "-v"))
    first, following = daemon.mnt / "INBOX", daemon.mnt / "Next"
    names = [sorted(os.listdir(path)) for path in (first, following)]

    def begin():
        (following / names[1][0]).read_bytes()

    def is_here():
        """Whether all of the next mailbox came for one read there."""
        settle(daemon, 5)
        n = fetches(daemon)
        walk(following, names[1])
        return fetches(daemon) == n

    wait_for("he went on at once", lambda: within_a_second(
        daemon, lambda: walk(first, names[0][:-10]), lambda: walk(first, names[0][-10:]), begin))
    assert is_here()
    forget(daemon)
    begin()
    assert not is_here()


def forget(daemon):
    """Everything is to be fetched again."""
    daemon.stop()
    shutil.rmtree(daemon.options["cache_dir"])
    daemon.start()


def within_a_second(daemon, walk_up, walk_to_the_end, begin):
    """Whoever pauses for longer between two mailboxes is not taken to walk on, and a machine may be so busy
    that we do: then, from the start, it has to be done again."""
    walk_up()
    then = time.monotonic()
    walk_to_the_end()
    begin()
    if time.monotonic() - then < 1:
        return True
    forget(daemon)
    return False


def test_tree(mount, dovecot, user):
    """Who walks from mailbox to mailbox finds the next ones listed and fetched; when he leaves one out they are
    left alone."""
    for box in ["a", "b", "c", "d", "e", "f"]:
        dovecot.fill(user, range(30), box, new_every=0)
    daemon = mount(user, refresh=600, _args=("-f", "-v"))

    def names(box):
        return sorted(os.listdir(daemon.mnt / box))

    def cat(box):
        return len(walk(daemon.mnt / box, names(box)))

    def is_here(box):
        n = fetches(daemon)
        assert cat(box) == 30
        return fetches(daemon) == n

    for box in ["a", "c", "f"]:
        assert cat(box) == 30
        settle(daemon, 5)
    assert not is_here("e")
    forget(daemon)
    f, e = names("f"), names("e")
    wait_for("he went on at once", lambda: within_a_second(
        daemon, lambda: walk(daemon.mnt / "f", f[:-10]), lambda: walk(daemon.mnt / "f", f[-10:]),
        lambda: walk(daemon.mnt / "e", e[:1])))
    for at in range(0, 30, 10):
        walk(daemon.mnt / "e", e[at:at + 10])
        settle(daemon, 5)
    assert [box for box in "dcba" if not is_here(box)] == []


@pytest.mark.main
def test_many_walkers(mount, dovecot, user):
    """In order, behind each other, backwards and at random, while others ask for the status: nobody waits
    for anybody who waits for him."""
    n = 1000
    dovecot.fill(user, range(n), new_every=0)
    daemon = mount(user)
    inbox = daemon.mnt / "INBOX"
    with dovecot.client(user) as client:
        truth = {uid: m.sha256 for uid, m in client.messages().items()}
    names = sorted(os.listdir(inbox))
    orders = [names, names[50:] + names[:50], names[::-1], names[::3] + names[1::3] + names[2::3]]
    orders += [random.Random(i).sample(names, n) for i in range(4)]
    over = threading.Event()

    def ask():
        n_asked = 0
        while not over.is_set():
            assert daemon.status()["requests"] > 0
            n_asked += 1
        return n_asked

    with concurrent.futures.ThreadPoolExecutor(len(orders) + 1) as pool:
        asking = pool.submit(ask)
        try:
            walks = [pool.submit(walk, inbox, order) for order in orders]
            for done in walks:
                assert done.result(timeout=90) == truth
        finally:
            over.set()
        assert asking.result(timeout=30) > 0


def test_rewritten_while_walked(mount, dovecot, user):
    """Every tenth message is written anew by one while another reads on: each has in the end what was
    written, and nothing of what it had before."""
    dovecot.fill(user, [5] * N, new_every=0)
    account = Account(dovecot, user, mount(user))
    names = sorted(os.listdir(account.inbox), key=lambda name: int(name.split(".")[0]))
    old = (account.inbox / names[0]).read_bytes()
    new = mail("anew")
    assert len(new) < len(old)
    account.daemon.stop()
    account.daemon.start()  # the kernel has forgotten everything
    sh("ls -l", account.inbox)
    rewritten = names[4::10]
    begun = threading.Event()

    def write():
        begun.wait()
        for name in rewritten:
            (account.inbox / name).write_bytes(new)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for i, name in enumerate(names):
            if i == 8:
                begun.set()
            got = (account.inbox / name).read_bytes()
            if name in rewritten:
                assert got == old or new.startswith(got), (name, got[:200])
            else:
                assert got == old, name
    finally:
        begun.set()
        writer.join()
    for name in rewritten:
        assert (account.inbox / name).read_bytes() == new, name
        with open(account.inbox / name, "rb") as file:
            assert os.fstat(file.fileno()).st_size == len(new)
    account.sync()
    wait_for("everything is on the server", lambda: account.queue() == [])
    assert account.failed() == {}
    for name in rewritten:
        assert (account.inbox / name).read_bytes() == new, name
    account.daemon.stop()
    account.daemon.start()
    for name in names:
        assert (account.inbox / name).read_bytes() == (new if name in rewritten else old), name
