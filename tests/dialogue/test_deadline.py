# SPDX-License-Identifier: MIT
"""One operation, one deadline: `timeout` counts from when it began, whatever is tried meanwhile."""
import errno
import os
import signal
import threading
import time

import pytest

from conftest import attempt
from fakeimap import Mailbox
from support import paths
from support.dovecot import wait_for

BODY = b"From: a@example.org\r\nSubject: hello\r\n\r\n" + b"text\r\n" * 50
TIMEOUT = 8


def read(path):
    with open(path, "rb") as file:
        return file.read()


def message(daemon, server, uid):
    return daemon.mnt / "INBOX" / paths.message_name(uid, server.inbox.uidvalidity)


def only_fetch_stalls(server):
    """A connection on which a body is asked for says nothing more; new ones are welcome."""
    def fetch(session, tag, args):
        if "BODY" in args.upper():
            while session.read():
                pass
        session.default(tag, "UID FETCH", args)

    server.on("UID FETCH", fetch)


@pytest.mark.parametrize("connections", [1, 4])
def test_one_reader(server, fake_mount, connections):
    """Tried again or not, by us and by the kernel, whose read-ahead comes first."""
    for _ in range(2):
        server.inbox.add(BODY)
    daemon = fake_mount(timeout=TIMEOUT, connections=connections)
    os.listdir(daemon.mnt / "INBOX")
    only_fetch_stalls(server)
    for uid in (1, 2):
        outcome = attempt(read, message(daemon, server, uid))
        assert outcome.code == errno.ETIMEDOUT, outcome
        assert outcome.seconds < 2 * TIMEOUT, outcome


@pytest.mark.parametrize("connections", [1, 4])
def test_late_comers(server, fake_mount, connections):
    """Who comes while another one waits already is tried elsewhere, in what time is left."""
    for _ in range(8):
        server.inbox.add(BODY)
    daemon = fake_mount(timeout=TIMEOUT, connections=connections)
    os.listdir(daemon.mnt / "INBOX")
    only_fetch_stalls(server)
    outcomes = []
    threads = [threading.Thread(target=lambda u=uid: outcomes.append(attempt(read, message(daemon, server, u))))
               for uid in (1, 2, 3)]
    for thread in threads:
        thread.start()
        time.sleep(TIMEOUT / 2)
    for thread in threads:
        thread.join()
    assert [o.code for o in outcomes] == [errno.ETIMEDOUT] * 3, outcomes
    assert max(o.seconds for o in outcomes) < 2 * TIMEOUT, outcomes


def test_slow_but_moving(server, fake_mount):
    """Longer than `timeout` in all, but never that long without a block: it is read to its end."""
    body = BODY + b"0123456789abcdef" * 8192
    server.inbox.add(body)
    daemon = fake_mount(timeout=5)
    os.listdir(daemon.mnt / "INBOX")

    def fetch(session, tag, args):
        if "BODY" not in args.upper():
            session.default(tag, "UID FETCH", args)
            return
        answer = session.fetch_answer(1, server.inbox.messages[0], args, False)
        for i in range(0, len(answer), 16384):
            session.send(answer[i:i + 16384])
            server.stopping.wait(1)
        session.ok(tag)

    server.on("UID FETCH", fetch)
    start = time.monotonic()
    outcome = attempt(read, message(daemon, server, 1))
    assert outcome.value == body, outcome
    assert time.monotonic() - start > 5


def test_served_again(server, fake_mount):
    """A reader who gave up leaves nothing behind that keeps the next one from being served."""
    server.inbox.add(BODY)
    daemon = fake_mount(timeout=2)
    os.listdir(daemon.mnt / "INBOX")
    only_fetch_stalls(server)
    path = message(daemon, server, 1)
    assert attempt(read, path).code == errno.ETIMEDOUT
    server.handlers.clear()
    server.drop_all()
    wait_for("it is read", lambda: attempt(read, path).value == BODY, 30, 0.1)


def test_read_again_after_another(server, fake_mount):
    """Who gave up and asks again at once is served once the server has answered anybody meanwhile."""
    for _ in range(2):
        server.inbox.add(BODY)
    daemon = fake_mount(timeout=3, connections=4)
    os.listdir(daemon.mnt / "INBOX")

    def first_stalls(session, tag, args):
        if "BODY" in args.upper() and args.startswith("1 "):
            while session.read():
                pass
        session.default(tag, "UID FETCH", args)

    server.on("UID FETCH", first_stalls)
    assert attempt(read, message(daemon, server, 1)).code == errno.ETIMEDOUT
    server.handlers.clear()
    assert attempt(read, message(daemon, server, 2)).value == BODY
    outcome = attempt(read, message(daemon, server, 1))
    assert outcome.value == BODY, outcome


def test_a_listing_is_an_answer(server, fake_mount):
    """As above, when it was a directory that the server was asked for."""
    server.inbox.add(BODY)
    server.mailboxes["Other"] = Mailbox()
    daemon = fake_mount(timeout=3, connections=4)
    os.listdir(daemon.mnt / "INBOX")
    only_fetch_stalls(server)
    assert attempt(read, message(daemon, server, 1)).code == errno.ETIMEDOUT
    server.handlers.clear()
    assert os.listdir(daemon.mnt / "Other") == []
    outcome = attempt(read, message(daemon, server, 1))
    assert outcome.value == BODY, outcome


def test_asleep(server, fake_mount):
    """The daemon is stopped, or the machine asleep, for longer than `timeout`; the answer has come meanwhile."""
    server.inbox.add(BODY)
    daemon = fake_mount(timeout=3)
    os.listdir(daemon.mnt / "INBOX")
    asked, stopped = threading.Event(), threading.Event()

    def fetch(session, tag, args):
        if "BODY" in args.upper():
            asked.set()
            stopped.wait(20)
        session.default(tag, "UID FETCH", args)

    server.on("UID FETCH", fetch)
    outcomes = []
    reader = threading.Thread(target=lambda: outcomes.append(attempt(read, message(daemon, server, 1))))
    reader.start()
    try:
        assert asked.wait(20)
        os.kill(daemon.pid, signal.SIGSTOP)
        stopped.set()
        time.sleep(3 + 2)  # longer than `timeout`
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
        reader.join()
    assert outcomes[0].value == BODY, outcomes


def test_came_while_an_attempt_hung(server, fake_mount):
    """Who comes while a connection is being made that hangs is not told with those who waited for it from its
    start: for him another one is made."""
    for _ in range(2):
        server.inbox.add(BODY)
    daemon = fake_mount(timeout=6, connections=1)
    os.listdir(daemon.mnt / "INBOX")
    hung = threading.Event()

    def hang(session):
        server.script = None
        hung.set()
        server.stopping.wait(60)

    server.script = hang
    server.drop_all()
    outcomes = {}
    readers = [threading.Thread(target=lambda u=uid: outcomes.update({u: attempt(read, message(daemon, server, u))}))
               for uid in (1, 2)]
    readers[0].start()
    assert hung.wait(20)
    time.sleep(3)  # half of `timeout`
    readers[1].start()
    for reader in readers:
        reader.join()
    assert outcomes[1].code == errno.ETIMEDOUT, outcomes
    assert outcomes[2].value == BODY, outcomes
