# SPDX-License-Identifier: MIT
"""What a read or a look-up must give while the server loses connections or replaces mailboxes."""
import concurrent.futures
import errno
import os
import threading

import pytest

from conftest import attempt
from fakeimap import Mailbox
from support import paths
from support.dovecot import wait_for

BODY = (b"From: a@example.org\r\nSubject: hello\r\n\r\n" +
        b"".join(b"line %d of this message\r\n" % i for i in range(2000)))


def read(path):
    with open(path, "rb") as file:
        return file.read()


def path_of(daemon, server, uid):
    return daemon.mnt / "INBOX" / paths.message_name(uid, server.inbox.uidvalidity)


@pytest.mark.parametrize("eol", ["crlf", "lf"])
@pytest.mark.parametrize("body, cut", [(BODY, 1), (BODY, 700), (BODY, len(BODY) - 1), (BODY * 5, 3 * len(BODY))],
                         ids=["start", "700", "end", "blocks"])
def test_connection_lost_inside_a_body(server, fake_mount, eol, body, cut):
    """The retry tells the message from its start again: whole and once, in either form."""
    server.inbox.add(body)
    daemon = fake_mount(eol=eol)
    os.listdir(daemon.mnt / "INBOX")
    cuts = []

    def fetch(session, tag, args):
        if "BODY" not in args.upper() or cuts:
            session.default(tag, "UID FETCH", args)
            return
        cuts.append(args)
        answer = session.fetch_answer(1, session.mailbox.messages[0], args, False)
        session.send(answer[:answer.index(BODY[:40]) + cut])
        session.close()

    server.on("UID FETCH", fetch)
    want = body if eol == "crlf" else body.replace(b"\r\n", b"\n")
    outcome = attempt(read, path_of(daemon, server, 1))
    assert cuts
    assert outcome.value == want, outcome
    assert os.stat(path_of(daemon, server, 1)).st_size == len(want)


def read_all(daemon, server, uids):
    """In parallel, so that there are several connections; what each gave."""
    with concurrent.futures.ThreadPoolExecutor(len(uids)) as pool:
        return list(pool.map(lambda uid: attempt(read, path_of(daemon, server, uid)), uids))


@pytest.mark.parametrize("connections", [1, 4])
def test_all_connections_cut(server, fake_mount, connections):
    """Again and again, some of them used for long, some new, some still logging in: the server is
    there, and so nobody who reads hears of it."""
    for i in range(64):
        server.inbox.add(BODY + b"%d" % i)
    daemon = fake_mount(timeout=20, connections=connections)
    os.listdir(daemon.mnt / "INBOX")
    order = [1 + i * 23 % 64 for i in range(64)]  # nothing is read ahead
    for first in range(0, 64, 4):
        uids = order[first:first + 4]
        outcomes = read_all(daemon, server, uids)
        assert [o.value for o in outcomes] == [BODY + b"%d" % (uid - 1) for uid in uids], outcomes
        server.drop_all()


def test_every_new_connection_is_cut(server, fake_mount):
    """After the cut nobody is let in any more: that is a server that is down, asked now and then."""
    server.inbox.add(BODY)
    daemon = fake_mount(timeout=20)
    os.listdir(daemon.mnt / "INBOX")
    server.script = lambda session: session.close()
    server.drop_all()
    for _ in range(3):
        assert attempt(read, path_of(daemon, server, 1)).code == errno.EHOSTUNREACH
    server.stopping.wait(3)
    assert len(server.sessions) < 20
    server.script = None
    wait_for("it is read", lambda: attempt(read, path_of(daemon, server, 1)).value == BODY, 40, 0.2)


@pytest.mark.parametrize("verb", ["AUTHENTICATE", "CAPABILITY", "ID", "EXAMINE"])
def test_new_connection_cut_with_the_old(server, fake_mount, verb):
    """One that is not of use yet goes with the one that was: that is one cut, not a server that is
    down."""
    server.inbox.add(BODY)
    server.inbox.add(BODY + b"2")
    server.mailboxes["other"] = type(server.inbox)()
    daemon = fake_mount(timeout=20, connections=2)
    os.listdir(daemon.mnt / "INBOX")
    server.wait_command("NAMESPACE" if "NAMESPACE" in server.capabilities else "ID")
    cuts = []

    def cut(session, tag, args):
        if cuts or session is server.sessions[0]:
            session.default(tag, verb, args)
        else:
            cuts.append(verb)
            server.drop_all()

    def hold(session, tag, args):
        """The first connection is busy, and so there is a second one."""
        if "BODY" in args.upper() and not cuts:
            wait_for("the cut", lambda: cuts)
        session.default(tag, "UID FETCH", args)

    server.on("UID FETCH", hold)
    server.on(verb, cut)
    outcomes = read_all(daemon, server, [1, 2])
    assert [o.value for o in outcomes] == [BODY, BODY + b"2"], (outcomes, cuts)


@pytest.mark.parametrize("layout", ["flat", "maildir"])
def test_replaced_mailbox_is_forgotten(server, fake_mount, layout):
    """Another UIDVALIDITY: names that were looked up and pages that were read are gone too."""
    for i in range(3):
        server.inbox.add(BODY + b"%d" % i, flags={"\\Seen"})
    daemon = fake_mount(refresh=1, layout=layout)
    directory = daemon.mnt / "INBOX" / ("cur" if layout == "maildir" else "")
    old = sorted(directory.iterdir())
    assert [read(p) for p in old[:2]] == [BODY + b"%d" % i for i in range(2)]
    os.stat(old[2])
    file = os.open(old[1], os.O_RDONLY)
    try:
        new = type(server.inbox)(uidvalidity=server.inbox.uidvalidity + 1)
        new.add(b"Subject: new\r\n\r\nother\r\n", uid=1, flags={"\\Seen"})
        server.mailboxes["INBOX"] = new  # at once: it may be listed at any moment
        server.drop_all()
        wait_for("the new listing", lambda: not set(os.listdir(directory)) & {p.name for p in old})
        for path in old:
            wait_for("the old name is gone", lambda p=path: attempt(os.stat, p).code == errno.ENOENT)
        wait_for("the open file is stale",
                 lambda: attempt(os.pread, file, 10, 0).code == errno.ESTALE)
        assert [read(p) for p in directory.iterdir()] == [b"Subject: new\r\n\r\nother\r\n"]
    finally:
        os.close(file)


def test_new_mail_between_the_old(server, fake_mount):
    """No server may do that; some do. The listing stays sorted, everything is found."""
    server.capabilities += ["CONDSTORE"]
    for uid in (2, 4, 6, 8):
        server.inbox.add(BODY + b"%d" % uid, uid=uid)
    daemon = fake_mount(refresh=1)
    assert len(os.listdir(daemon.mnt / "INBOX")) == 4
    for uid in (7, 3, 1, 5, 12, 10):
        server.inbox.add(BODY + b"%d" % uid, uid=uid)
    want = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]
    names = [paths.message_name(uid, server.inbox.uidvalidity) for uid in want]
    wait_for("all of it", lambda: os.listdir(daemon.mnt / "INBOX") == names)
    for uid in want:
        assert attempt(read, path_of(daemon, server, uid)).value == BODY + b"%d" % uid


def test_failing_listings_are_no_news(server, fake_mount):
    """What the server says during a listing that fails is no reason to begin the next at once."""
    server.inbox.add(BODY)
    daemon = fake_mount(refresh=1)
    os.listdir(daemon.mnt / "INBOX")
    server.wait_command("EXAMINE", 3)

    def examine(session, tag, args):
        session.line("* OK [UIDVALIDITY 0] no")
        session.line(f"{tag} OK [READ-ONLY] examined")
        session.line(f"* {len(server.commands)} EXISTS")

    server.on("EXAMINE", examine)
    n, m = server.n_commands("EXAMINE"), server.n_commands("LIST")
    server.wait_command("LIST", m + 4)  # four times `refresh`
    assert server.n_commands("EXAMINE") - n < 20


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("connections", [2, 4])
def test_read_beside_a_long_listing(server, fake_mount, connections, known):
    """A listing of thousands that goes on and on, of a mailbox never seen or of what came since: who reads a
    message in another one meanwhile does not stand behind it on the only connection."""
    server.inbox.add(BODY)
    big = server.mailboxes["Big"] = Mailbox()
    daemon = fake_mount(connections=connections)
    name = daemon.mnt / "INBOX" / os.listdir(daemon.mnt / "INBOX")[0]
    begun, enough, ended = threading.Event(), threading.Event(), threading.Event()

    def fetch(session, tag, args):
        sets, _, items = args.partition(" ")
        if session.mailbox is not big or not sets.endswith(":*"):
            session.default(tag, "UID FETCH", args)
            return
        begun.set()
        for number, message in enumerate(big.messages, 1):
            if message.uid >= int(sets.split(":")[0]):
                session.send(session.fetch_answer(number, message, items, False))
            if number > 1000:
                enough.wait(0.1)
        ended.set()
        session.ok(tag)

    if known:
        big.add("Subject: old\r\n\r\n")
        assert len(os.listdir(daemon.mnt / "Big")) == 1
    for i in range(2500):
        big.add(f"Subject: {i}\r\n\r\n")
    server.on("UID FETCH", fetch)

    def look():
        while not begun.is_set():
            attempt(os.listdir, daemon.mnt / "Big")
            enough.wait(0.1)

    listing = threading.Thread(target=look)
    listing.start()
    try:
        wait_for("the listing has begun", begun.is_set)
        outcome = attempt(name.read_bytes)
        assert not ended.is_set()
        assert outcome.value == BODY, outcome
    finally:
        enough.set()
        listing.join()
    wait_for("all are listed", lambda: len(os.listdir(daemon.mnt / "Big")) == 2500 + known)


def test_pushed_during_a_listing(server, fake_mount):
    """Mail that comes while a mailbox is listed, too late for that listing: the server says so
    once, and the mail is there long before the next refresh."""
    refresh = 24
    server.capabilities += ["IDLE"]
    server.inbox.add(BODY)
    daemon = fake_mount(refresh=refresh)
    os.listdir(daemon.mnt / "INBOX")
    pushed = []

    def fetch(session, tag, args):
        if pushed or "BODY" in args:
            session.default(tag, "UID FETCH", args)
            return
        session.send(session.fetch_answer(1, server.inbox.messages[0], args, False))
        pushed.append(server.inbox.add(BODY + b"new"))
        session.line("* 2 EXISTS")
        server.stopping.wait(1)  # and the listing is not over yet
        session.ok(tag)

    server.on("UID FETCH", fetch)
    wait_for("the second listing", lambda: pushed, 2 * refresh)
    wait_for("the mail", lambda: len(os.listdir(daemon.mnt / "INBOX")) == 2, refresh * 2 / 3)


def test_fetched_ahead_slowly(server, fake_mount):
    """Who wants the start of a large message that is being fetched ahead has it before its end is here."""
    large = BODY + b"".join(b"%07d of many more lines\r\n" % i for i in range(24000))
    assert 600_000 < len(large) < 1 << 20
    for uid in range(1, 41):
        server.inbox.add(large if uid == 24 else large[:100_000 + uid])
    daemon = fake_mount(connections=1, timeout=60)
    os.listdir(daemon.mnt / "INBOX")
    begun, enough, ended = threading.Event(), threading.Event(), threading.Event()

    def fetch(session, tag, args):
        if "BODY" not in args.upper():
            session.default(tag, "UID FETCH", args)
            return
        sets, _, items = args.partition(" ")
        for part in sets.split(","):
            first, _, last = part.partition(":")
            for uid in range(int(first), int(last or first) + 1):
                answer = session.fetch_answer(uid, server.inbox.messages[uid - 1], items, False)
                at = 0
                if uid == 24 and len(answer) > len(large):
                    for at, until in ((0, 200_000), (200_000, 210_000), (210_000, 220_000)):
                        session.send(answer[at:until])
                        enough.wait(0.3)
                    at = until
                    begun.set()
                    enough.wait(20)
                    ended.set()
                session.send(answer[at:])
        session.ok(tag)

    server.on("UID FETCH", fetch)
    try:
        for uid in range(1, 24):
            if not begun.is_set():
                assert read(path_of(daemon, server, uid)) == large[:100_000 + uid]
        wait_for("it comes ahead", begun.is_set)
        with open(path_of(daemon, server, 24), "rb", buffering=0) as file:
            assert file.read(4096) == large[:4096]
        assert not ended.is_set()
    finally:
        enough.set()
    assert read(path_of(daemon, server, 24)) == large
