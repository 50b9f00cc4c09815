# SPDX-License-Identifier: MIT
"""What is shown when one store of ours knows what another one has lost: the index its last seconds, the cache
a part of a message, the server its count of changes or its last messages."""
import contextlib
import errno
import os
import shutil
import sqlite3
import threading

import pytest

from conftest import attempt
from fakeimap import Mailbox
from support.dovecot import wait_for
from support.fakepop import FakePop

BODY = b"From: a@example.org\r\nSubject: %d\r\n\r\n"
LARGE = [BODY % i + b"".join(b"%06d of the lines of %d\r\n" % (line, i) for line in range(9000)) for i in range(3)]


def read(path):
    with open(path, "rb") as file:
        return file.read()


def contents(daemon):
    """All of INBOX, by the order of names."""
    inbox = daemon.mnt / "INBOX"
    return [read(inbox / name) for name in sorted(os.listdir(inbox))]


def flags(daemon):
    inbox = daemon.mnt / "INBOX"
    return [os.getxattr(inbox / name, "user.imap.flags").decode() for name in sorted(os.listdir(inbox))]


def index_of(daemon):
    found, = daemon.options["cache_dir"].rglob("index.db")
    return found


def keep_index(daemon):
    """A copy of the index as it is now."""
    copy = daemon.dir / "index.copy"
    with contextlib.closing(sqlite3.connect(index_of(daemon))) as db, \
            contextlib.closing(sqlite3.connect(copy)) as to:
        db.backup(to)
    return copy


def put_back(daemon, copy):
    index = index_of(daemon)
    for suffix in ("-wal", "-shm"):
        index.with_name(index.name + suffix).unlink(missing_ok=True)
    shutil.copy(copy, index)


@pytest.fixture
def pop(mount):
    """A scripted maildrop and a mount of it."""
    servers = []

    def make(messages, **options):
        servers.append(FakePop(messages))
        daemon = mount(servers[0].url(), tls="off", **options)
        daemon.allow(r"mailfs: (warning|error): ")
        return servers[0], daemon

    yield make
    for server in servers:
        server.stop()


@pytest.mark.parametrize("place", ["first", "third", "last"])
@pytest.mark.parametrize("eol", ["crlf", "lf"])
@pytest.mark.parametrize("protocol", ["imap", "pop"])
def test_damaged_in_the_cache(server, fake_mount, pop, protocol, eol, place):
    """One block of each message is no longer what it was: it is fetched again, in whatever way there is."""
    if protocol == "pop":
        _, daemon = pop([(f"u{i}", body) for i, body in enumerate(LARGE)], eol=eol)
    else:
        for body in LARGE:
            server.inbox.add(body)
        daemon = fake_mount(eol=eol)
    want = sorted(body if eol == "crlf" else body.replace(b"\r\n", b"\n") for body in LARGE)
    assert sorted(contents(daemon)) == want
    daemon.stop()
    at = {"first": 100, "third": 150_000, "last": len(want[0]) - 500}[place]
    damaged = list(daemon.options["cache_dir"].rglob("data/*/*/*"))
    assert len(damaged) == len(LARGE)
    for path in damaged:
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(bytes(100))
    daemon.start()
    assert sorted(contents(daemon)) == want


def test_number_given_again(pop):
    """POP3, where numbers are ours: the index that lost its end gives one again, and not what the cache has by it."""
    message = lambda word: (BODY + b"%s\r\n") % (0, word * 20)
    server, daemon = pop([("u-a", message(b"a")), ("u-b", message(b"b"))])
    assert len(contents(daemon)) == 2
    daemon.stop()
    copy = keep_index(daemon)
    server.messages.append(("u-d", message(b"d")))
    daemon.start()
    assert message(b"d") in contents(daemon)
    daemon.stop()
    put_back(daemon, copy)
    server.messages[-1] = ("u-e", message(b"e"))
    daemon.start()
    assert sorted(contents(daemon)) == [message(b"a"), message(b"b"), message(b"e")]


@pytest.mark.parametrize("more", [["CONDSTORE"], ["CONDSTORE", "ENABLE", "QRESYNC"]], ids=["condstore", "qresync"])
def test_refused_flag(server, fake_mount, more):
    """Flags that were asked for are in the index, that they were refused is not."""
    server.capabilities += more
    for i in range(2):
        server.inbox.add(BODY % i)
    daemon = fake_mount(refresh=1)
    assert flags(daemon) == ["", ""]
    path = sorted((daemon.mnt / "INBOX").iterdir())[0]
    asked, answer = threading.Event(), threading.Event()

    def store(session, tag, args):
        asked.set()
        answer.wait(20)
        session.line(f"{tag} NO [NOPERM] you may not")

    server.on("UID STORE", store)
    outcomes = []
    writer = threading.Thread(target=lambda: outcomes.append(
        attempt(os.setxattr, path, "user.imap.flags", b"\\Flagged wrong")))
    writer.start()
    assert asked.wait(20)

    def as_asked():
        copy = keep_index(daemon)
        with contextlib.closing(sqlite3.connect(copy)) as db:
            return copy if db.execute("SELECT 1 FROM keywords WHERE text='wrong'").fetchall() else None

    copy = wait_for("the index has it", as_asked)
    answer.set()
    writer.join()
    assert outcomes[0].code == errno.EACCES
    wait_for("taken back", lambda: flags(daemon) == ["", ""])
    daemon.kill()
    daemon.clean()
    put_back(daemon, copy)
    daemon.start()
    wait_for("as the server has it", lambda: flags(daemon) == ["", ""])


def test_flag_that_was_answered(server, fake_mount):
    """It is as the server has it: nothing needs to be asked about it in the next run."""
    server.capabilities += ["CONDSTORE", "ENABLE", "QRESYNC"]
    for i in range(5):
        server.inbox.add(BODY % i)
    daemon = fake_mount(refresh=600)

    def store(session, tag, args):
        message = server.inbox.messages[0]
        message.flags.add("\\Flagged")
        server.inbox.modseq += 1
        message.modseq = server.inbox.modseq
        session.line(f"* 1 FETCH (UID {message.uid} MODSEQ ({message.modseq}) FLAGS (\\Flagged))")
        session.ok(tag)

    server.on("UID STORE", store)
    path = sorted((daemon.mnt / "INBOX").iterdir())[0]
    os.setxattr(path, "user.imap.flags", b"\\Flagged")
    daemon.stop()
    server.commands.clear()
    daemon.start()
    assert flags(daemon) == ["\\Flagged", "", "", "", ""]
    listings = [args for verb, args in server.commands if verb == "UID FETCH" and "FLAGS" in args]
    assert not [args for args in listings if "CHANGEDSINCE" not in args], listings


@pytest.mark.parametrize("eol", ["crlf", "lf"])
@pytest.mark.parametrize("read_meanwhile", [False, True])
def test_changed_by_the_server(server, fake_mount, eol, read_meanwhile):
    """It puts a line before what is appended, and does not say which UID it has: what is shown has that line."""
    server.capabilities.remove("UIDPLUS")
    server.inbox.add(BODY % 1)
    line = b"X-Scanned: by a very proud program\r\n"
    looking, go_on = threading.Event(), threading.Event()

    def append(session, tag, args):
        server.inbox.add(line + session.literal)
        session.ok(tag)

    def fetch(session, tag, args):
        if "BODY" in args.upper() and read_meanwhile and not looking.is_set() and len(server.inbox.messages) > 1:
            looking.set()
            go_on.wait(20)
        session.default(tag, "UID FETCH", args)

    server.on("APPEND", append).on("UID FETCH", fetch)
    daemon = fake_mount(eol=eol, refresh=1)
    inbox = daemon.mnt / "INBOX"
    assert len(os.listdir(inbox)) == 1
    writer = threading.Thread(target=attempt, args=((inbox / "new.eml").write_bytes, BODY % 2 + b"text\r\n"))
    writer.start()
    try:
        if read_meanwhile:
            assert looking.wait(20)
            for name in os.listdir(inbox):
                attempt(read, inbox / name)
    finally:
        go_on.set()
        writer.join()
    want = line + BODY % 2 + b"text\r\n"
    want = want if eol == "crlf" else want.replace(b"\r\n", b"\n")
    wait_for("it is as the server has it", lambda: want in contents(daemon))
    path, = (p for p in inbox.iterdir() if read(p) == want)
    assert os.stat(path).st_size == len(want)


@pytest.mark.parametrize("more", [["CONDSTORE"], ["CONDSTORE", "ENABLE", "QRESYNC"]], ids=["condstore", "qresync"])
def test_count_of_changes_lost(server, fake_mount, more):
    """The server's HIGHESTMODSEQ begins anew: what changed meanwhile cannot be asked for by it."""
    server.capabilities += more
    for i in range(4):
        server.inbox.add(BODY % i)
    server.inbox.modseq = 40
    daemon = fake_mount(refresh=1)
    assert flags(daemon) == [""] * 4
    daemon.stop()
    server.inbox.messages[1].flags.add("\\Flagged")
    server.inbox.messages[2].flags.add("\\Seen")
    server.inbox.modseq = 3
    for message in server.inbox.messages:
        message.modseq = 3
    daemon.start()
    wait_for("as the server has it", lambda: flags(daemon) == ["", "\\Flagged", "\\Seen", ""])


@pytest.mark.parametrize("stopped", [False, True])
def test_mailbox_put_back(server, fake_mount, stopped):
    """From yesterday's copy: UIDs that have been are given to other messages, under the same UIDVALIDITY."""
    server.capabilities += ["CONDSTORE", "ENABLE", "QRESYNC"]
    for i in range(4):
        server.inbox.add(BODY % i + b"old\r\n")
    daemon = fake_mount(refresh=1)
    assert len(contents(daemon)) == 4
    daemon.stop()
    del server.inbox.messages[2:]
    server.inbox.uidnext = 3
    server.inbox.modseq = 3
    daemon.start()
    wait_for("two of them", lambda: len(os.listdir(daemon.mnt / "INBOX")) == 2)
    if stopped:
        daemon.stop()
    new = [BODY % i + b"new\r\n" for i in (7, 8)]
    for body in new:
        server.inbox.add(body)
    if stopped:
        daemon.start()
    wait_for("four again", lambda: len(os.listdir(daemon.mnt / "INBOX")) == 4)
    assert contents(daemon)[2:] == new


def test_mailbox_of_a_change_is_gone(server, fake_mount):
    """Killed with a change of it in the queue, started when somebody has deleted it: the rest is as it was."""
    server.inbox.add(BODY % 1)
    work = server.mailboxes["Work"] = Mailbox()
    work.add(BODY % 2)
    daemon = fake_mount(timeout=3)
    path, = (daemon.mnt / "Work").iterdir()
    asked = threading.Event()

    def store(session, tag, args):
        asked.set()
        while session.read():
            pass

    server.on("UID STORE", store)
    writer = threading.Thread(target=attempt, args=(os.setxattr, path, "user.imap.flags", b"\\Flagged"))
    writer.start()
    assert asked.wait(20)
    daemon.kill()
    writer.join()
    daemon.clean()
    server.handlers.clear()
    del server.mailboxes["Work"]
    for _ in range(2):
        daemon.start()
        wait_for("it is gone", lambda: sorted(n for n in os.listdir(daemon.mnt)) == ["INBOX"])
        wait_for("so is its change", lambda: os.listdir(daemon.mnt / ".mailfs" / "queue") == [])
        assert contents(daemon) == [BODY % 1]
        daemon.stop()
