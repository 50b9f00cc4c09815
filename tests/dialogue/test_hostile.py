# SPDX-License-Identifier: MIT
"""Servers that lie, stall, cut and talk nonsense. For each: the caller gets an errno in time, the
daemon lives and serves what is well, and nothing half fetched passes for whole."""
import errno
import os
import threading
import time

import pytest
from conftest import TIMEOUT, attempt
from support import paths
from support.dovecot import wait_for

BODY = (b"From: a@example.org\r\nTo: b@example.org\r\nSubject: hello\r\n\r\n" +
        b"A line of text that is here to be read.\r\n" * 100)
LARGE = BODY + b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n" * 8000  # 8 blocks
IO_ERRORS = (errno.EIO, errno.ETIMEDOUT, errno.EHOSTUNREACH)


def read(path):
    """To its end, whatever size is claimed; given up where it is far too long."""
    file = os.open(path, os.O_RDONLY)
    try:
        data = b""
        while part := os.read(file, 1 << 17):
            data += part
            if len(data) > 8 << 20:
                break
        return data
    finally:
        os.close(file)


def listing(daemon, folder="INBOX"):
    """Message paths by uid."""
    directory = daemon.mnt / folder
    return {uid: directory / name for uid, name in paths.uids(directory).items()}


def still_well(daemon, server, path, body=BODY):
    """The daemon lives, the good message is read, a listing works."""
    assert daemon.alive()
    wait_for("the good message is read", lambda: attempt(read, path).value == body, 30, 0.1)
    assert attempt(os.listdir, daemon.mnt).code == 0
    assert not daemon.sanitizer_reports(), daemon.sanitizer_reports()


def check_whole_or_not(daemon, path, body):
    """What is called cached is the message, from its first byte to its last."""
    cached = int(os.getxattr(path, "user.mailfs.cached"))
    assert cached <= len(body)
    if cached == len(body):
        assert read(path) == body


@pytest.mark.main
def test_well_behaved(server, fake_mount):
    """The scripted server itself, with nothing wrong: so that what follows means something."""
    for body in (BODY, LARGE):
        server.inbox.add(body)
    daemon = fake_mount()
    found = listing(daemon)
    assert read(found[1]) == BODY and read(found[2]) == LARGE
    assert not daemon.bad_lines()
    for verb, args in server.commands:
        assert "BODY[" not in args, (verb, args)  # only BODY.PEEK[


@pytest.mark.parametrize("capabilities", [
    ["IMAP4rev1"],
    ["IMAP4rev1", "LITERAL+", "CHILDREN"],
    ["IMAP4rev1", "CONDSTORE", "ENABLE"],
    ["IMAP4rev1", "QRESYNC", "CONDSTORE", "ENABLE", "UNSELECT"],
    ["IMAP4rev1", "LIST-EXTENDED", "LIST-STATUS", "SPECIAL-USE", "NAMESPACE"],
    ["IMAP4rev2", "IMAP4rev1", "ESEARCH", "UIDPLUS", "MOVE", "ENABLE", "NAMESPACE", "LIST-STATUS"],
])
def test_few_and_many_capabilities(server, fake_mount, capabilities):
    server.capabilities = capabilities
    for i in range(5):
        server.inbox.add(BODY + b"%d\r\n" % i)
    daemon = fake_mount(refresh=1)
    found = listing(daemon)
    assert read(found[3]) == BODY + b"2\r\n"
    server.inbox.add(BODY + b"new\r\n")
    server.inbox.messages.pop(1)
    wait_for("the change is seen", lambda: sorted(listing(daemon)) == [1, 3, 4, 5, 6], 30)
    assert read(listing(daemon)[6]) == BODY + b"new\r\n"


# --- sizes -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("claim", [0, 1, 100, len(BODY) - 1, len(BODY) + 1, len(BODY) + 100_000,
                                   65536, 1 << 20, (1 << 31) + 5, (1 << 40)])
def test_wrong_size(server, fake_mount, claim):
    """Corrected as soon as it is known; neither cut nor padded."""
    server.inbox.add(BODY, size=claim)
    server.inbox.add(LARGE, size=claim)
    server.inbox.add(BODY)
    daemon = fake_mount()
    found = listing(daemon)
    for uid, body in ((1, BODY), (2, LARGE)):
        outcome = attempt(read, found[uid])
        # the first read may have been promised too little, or fail; it is never padded
        assert outcome.value == body or outcome.code == errno.EIO or \
            claim < len(body) and body.startswith(outcome.value), (outcome, claim)
        wait_for("the size is right", lambda: os.stat(found[uid]).st_size == len(body))
        assert attempt(read, found[uid]).value == body
    still_well(daemon, server, found[3])


@pytest.mark.parametrize("eol, claim", [("crlf", len(BODY) - 30), ("crlf", len(BODY) + 30), ("lf", len(BODY))])
def test_length_that_only_the_cache_knows(server, fake_mount, eol, claim):
    """A run that was killed leaves the message, and of the index what was written by then."""
    server.inbox.add(BODY, size=claim)
    want = BODY if eol == "crlf" else BODY.replace(b"\r\n", b"\n")
    daemon = fake_mount(eol=eol)
    path = listing(daemon)[1]
    daemon.stop()
    index, = daemon.options["cache_dir"].rglob("index.db")
    as_listed = index.read_bytes()
    daemon.start()
    attempt(read, path)
    wait_for("the size is right", lambda: os.stat(path).st_size == len(want))
    daemon.stop()
    index.write_bytes(as_listed)
    daemon.start()
    assert os.stat(path).st_size == claim
    if eol == "lf":
        with open(path, "rb") as file:
            assert os.fstat(file.fileno()).st_size == len(want)
            assert file.read() == want
    attempt(read, path)
    wait_for("the size is right", lambda: os.stat(path).st_size == len(want))
    assert read(path) == want
    assert sum(verb == "UID FETCH" and "BODY" in args.upper() for verb, args in server.commands) == 1


def test_wrong_size_in_a_name(server, fake_mount):
    """Whoever keeps a Maildir's listing while he reads finds the message under the name he has."""
    server.inbox.add(BODY, size=len(BODY) + 23)
    daemon = fake_mount(layout="maildir")
    new = daemon.mnt / "INBOX" / "new"
    name, = os.listdir(new)
    assert name.endswith(f",S={len(BODY) + 23}")
    attempt(read, new / name)
    wait_for("the size is right", lambda: os.stat(new / name).st_size == len(BODY))
    assert attempt(read, new / name).value == BODY
    daemon.stop()
    daemon.start()  # the kernel knows nothing of it any more
    assert attempt(read, new / name).value == BODY
    now, = os.listdir(new)
    assert now.endswith(f",S={len(BODY)}") and read(new / now) == BODY


def test_nonsense_size(server, fake_mount):
    server.inbox.add(BODY, size=18446744073709551615)
    server.inbox.add(BODY)
    daemon = fake_mount()
    outcome = attempt(os.listdir, daemon.mnt / "INBOX")
    if outcome.code == 0 and 2 in paths.uids(daemon.mnt / "INBOX"):
        still_well(daemon, server, listing(daemon)[2])
    else:
        assert outcome.code in (0, *IO_ERRORS)
        assert daemon.alive() and attempt(os.listdir, daemon.mnt).code == 0


# --- what FETCH answers ----------------------------------------------------------------------------

@pytest.mark.parametrize("order", ["uid-first", "uid-last", "body-first"])
def test_attribute_order(server, fake_mount, order):
    server.faults.order = order
    server.inbox.add(BODY)
    server.inbox.add(LARGE)
    daemon = fake_mount()
    found = listing(daemon)
    assert attempt(read, found[1]).value == BODY
    assert attempt(read, found[2]).value == LARGE


@pytest.mark.parametrize("name, origin", [
    ("missing", lambda asked: None),
    ("zero", lambda asked: 0),
    ("one more", lambda asked: asked + 1),
    ("huge", lambda asked: 18446744073709551615),
])
def test_wrong_origin(server, fake_mount, name, origin):
    """Bytes of which the server says they stand elsewhere are never put where they were asked for."""
    server.inbox.add(LARGE)
    server.inbox.add(BODY)
    daemon = fake_mount()
    path = listing(daemon)[1]
    listing(daemon)
    server.faults.origin = origin
    outcome = attempt(read, path)
    assert outcome.value == LARGE or outcome.code in IO_ERRORS, outcome
    if outcome.code:
        check_whole_or_not(daemon, path, LARGE)
    server.faults.origin = None
    still_well(daemon, server, listing(daemon)[2])
    assert server.n_commands("UID FETCH") < 200  # no loop


def test_partial_ignored(server, fake_mount):
    """A server that sends the whole whatever range was asked for."""
    server.faults.ignore_partial = True
    server.inbox.add(LARGE)
    server.inbox.add(BODY)
    daemon = fake_mount()
    found = listing(daemon)
    with open(found[1], "rb") as file:
        outcome = attempt(os.pread, file.fileno(), 1000, 200_000)
    assert outcome.value == LARGE[200_000:201_000] or outcome.code in IO_ERRORS
    outcome = attempt(read, found[1])
    assert outcome.value == LARGE or outcome.code in IO_ERRORS
    still_well(daemon, server, found[2])


@pytest.mark.parametrize("switch", ["nil_body", "no_fetch"])
def test_no_body(server, fake_mount, switch):
    """Never an empty file in the cache."""
    server.inbox.add(BODY)
    server.inbox.add(BODY + b"x")
    daemon = fake_mount()
    found = listing(daemon)
    os.stat(found[1])
    setattr(server.faults, switch, True)
    outcome = attempt(read, found[1])
    assert outcome.code in (errno.ENOENT, errno.ESTALE, errno.EIO), outcome
    setattr(server.faults, switch, False)
    still_well(daemon, server, found[2], BODY + b"x")
    if found[1].exists():
        assert wait_for("and the first", lambda: attempt(read, found[1]).value == BODY, 20, 0.2)


def test_expunge_issued(server, fake_mount):
    server.inbox.add(BODY)
    server.inbox.add(BODY)
    daemon = fake_mount()
    found = listing(daemon)
    server.on("UID FETCH", lambda s, tag, args: s.line(f"{tag} NO [EXPUNGEISSUED] some are gone"))
    outcome = attempt(read, found[1])
    assert outcome.code in (errno.ENOENT, errno.ESTALE, errno.EIO), outcome
    server.handlers.clear()
    still_well(daemon, server, found[2])


def test_two_fetches_differ(server, fake_mount):
    """The message changes between two blocks: no mixture is ever served as the message."""
    first = LARGE
    second = LARGE.replace(b"0123456789", b"9876543210")
    message = server.inbox.add(first)
    server.inbox.add(BODY)
    daemon = fake_mount()
    found = listing(daemon)
    with open(found[1], "rb", buffering=0) as file:
        assert file.read(100) == first[:100]
    message.body = second + b"more at the end\r\n"
    outcome = attempt(read, found[1])
    if outcome.code == 0 and outcome.value not in (first, message.body):
        # the kernel may have kept pages of the first; then it must not be called whole
        assert int(os.getxattr(found[1], "user.mailfs.cached")) < len(message.body)
    still_well(daemon, server, found[2])


def test_unasked_answers(server, fake_mount):
    """FETCH of what nobody asked for, EXPUNGE and FLAGS anywhere: nothing of it is believed."""
    server.inbox.add(BODY)
    server.inbox.add(BODY + b"second\r\n")
    daemon = fake_mount()
    found = listing(daemon)

    def noisy(session, tag, args):
        session.line(b"* 2 FETCH (UID 2 BODY[] {9}\r\nforged!\r\n)")
        session.line("* 1 FETCH (UID 77 FLAGS (\\Seen))")
        session.line("* FLAGS (\\Odd)")
        session.line("* 0 EXPUNGE")
        session.line("* 4294967295 EXPUNGE")
        session.line("* OK [UNKNOWN-CODE (nested (x))] text")
        session.line("* XANYTHING with words")
        session.line("* SEARCH 5 6 7")
        session.line("* LIST () \"/\" forged")
        session.default(tag, "UID FETCH", args)

    server.on("UID FETCH", noisy)
    outcome = attempt(read, found[1])
    assert outcome.value == BODY or outcome.code in IO_ERRORS, outcome
    server.handlers.clear()
    still_well(daemon, server, found[2], BODY + b"second\r\n")
    assert "forged" not in os.listdir(daemon.mnt)


NONSENSE = [
    ("literal too large", b"* 1 FETCH (UID 1 BODY[] {4294967296}\r\nabc"),
    ("literal of 2^64", b"* 1 FETCH (UID 1 BODY[] {18446744073709551616}\r\nabc"),
    ("literal negative", b"* 1 FETCH (UID 1 BODY[] {-1}\r\n)\r\n"),
    ("literal without number", b"* 1 FETCH (UID 1 BODY[] {}\r\n)\r\n"),
    ("huge literal, then silence", b"* 1 FETCH (UID 1 BODY[] {2000000000}\r\nabc"),
    ("parentheses", b"* 1 FETCH " + b"(" * 1_000_000 + b"\r\n"),
    ("closing parentheses", b"* 1 FETCH " + b")" * 1_000_000 + b"\r\n"),
    ("endless line", b"* OK " + b"x" * 3_000_000),
    ("binary", bytes(range(256)) * 40 + b"\r\n"),
    ("NUL", b"* 1 FETCH (UID 1 \0\0\0)\r\n"),
    ("UID 0", b"* 1 FETCH (UID 0 FLAGS ())\r\n"),
    ("UID beyond 32 bits", b"* 1 FETCH (UID 4294967296 FLAGS ())\r\n"),
    ("FETCH 0", b"* 0 FETCH (UID 1 FLAGS ())\r\n"),
    ("unbalanced", b"* 1 FETCH (UID 1 FLAGS (\\Seen\r\n"),
    ("quoted without end", b'* 1 FETCH (UID 1 BODY[] "abc\r\n'),
    ("plus out of nowhere", b"+ come on\r\n"),
    ("unknown tag", b"zzz999 OK done\r\n"),
    ("empty tag", b" OK done\r\n"),
    ("empty line", b"\r\n\r\n\r\n"),
    ("VANISHED of everything", b"* VANISHED 1:4294967295\r\n"),
    ("VANISHED with star", b"* VANISHED 1:*\r\n"),
    ("VANISHED, comma at the end", b"* VANISHED 1,2,\r\n"),
    ("EXISTS of 2^32", b"* 4294967295 EXISTS\r\n"),
    ("BYE", b"* BYE go away\r\n"),
    ("ESC in the text", b"* OK [ALERT] \x1b[31mred\x07\r\n"),
]


@pytest.mark.parametrize("name, junk", NONSENSE, ids=[n for n, _ in NONSENSE])
def test_nonsense_instead_of_a_body(server, fake_mount, name, junk):
    server.inbox.add(BODY)
    server.inbox.add(BODY + b"second\r\n")
    daemon = fake_mount(timeout=TIMEOUT)
    found = listing(daemon)
    first = [True]

    def nonsense(session, tag, args):
        if first[0]:
            session.send(junk)
            # and then silence, on this connection
            server.silent.add(session)
            return
        session.default(tag, "UID FETCH", args)

    server.on("UID FETCH", nonsense)
    outcome = attempt(read, found[1])
    assert outcome.code in (*IO_ERRORS, errno.ENOENT, errno.ESTALE), outcome
    first[0] = False
    server.drop_all()
    still_well(daemon, server, found[2], BODY + b"second\r\n")
    check_whole_or_not(daemon, found[1], BODY) if found[1].exists() else None
    assert daemon.rss_kib() < 400 * 1024
    assert "\x1b" not in daemon.log()


@pytest.mark.parametrize("name, junk", NONSENSE, ids=[n for n, _ in NONSENSE])
def test_nonsense_instead_of_a_listing(server, fake_mount, name, junk):
    server.inbox.add(BODY)
    server.mailboxes["other"] = type(server.inbox)()
    server.mailboxes["other"].add(BODY)
    daemon = fake_mount(timeout=TIMEOUT)
    bad = [True]

    def nonsense(session, tag, args):
        if bad[0] and "BODY" not in args:
            session.send(junk)
            server.silent.add(session)
            return
        session.default(tag, "UID FETCH", args)

    server.on("UID FETCH", nonsense)
    outcome = attempt(os.listdir, daemon.mnt / "other")
    assert outcome.code in IO_ERRORS or outcome.value == [], outcome
    bad[0] = False
    server.drop_all()
    wait_for("the listing comes", lambda: len(attempt(os.listdir, daemon.mnt / "other").value or ())
             == 1, 30, 0.2)
    still_well(daemon, server, listing(daemon, "other")[1])


def test_many_tiny_literals(server, fake_mount):
    """Nothing quadratic: a body in answers of 1 byte each would be, if parsed so."""
    server.inbox.add(BODY)
    server.inbox.add(BODY + b"2")
    daemon = fake_mount(timeout=20)
    found = listing(daemon)

    def tiny(session, tag, args):
        session.send(b"* 1 FETCH (UID 1 X (" + b"{1}\r\nx " * 200_000 + b"))\r\n")
        session.default(tag, "UID FETCH", args)

    server.on("UID FETCH", tiny)
    outcome = attempt(read, found[1])
    assert outcome.value == BODY or outcome.code in IO_ERRORS
    server.handlers.clear()
    server.drop_all()
    still_well(daemon, server, found[2], BODY + b"2")


@pytest.mark.parametrize("verb", ["SELECT", "EXAMINE", "UID FETCH", "NOOP", "LIST", "STATUS"])
@pytest.mark.parametrize("answer", ["{tag} NO no", "{tag} BAD bad", "* BYE bye", "{tag} NO [LIMIT] slow"])
def test_refusals(server, fake_mount, verb, answer):
    """NO, BAD and BYE for every command, while it is mounted."""
    server.inbox.add(BODY)
    server.mailboxes["other"] = type(server.inbox)()
    server.mailboxes["other"].add(BODY)
    daemon = fake_mount()
    inbox = listing(daemon)
    assert attempt(read, inbox[1]).value == BODY

    def refuse(session, tag, _args):
        session.line(answer.format(tag=tag))
        if answer.startswith("* BYE"):
            session.close()

    server.on(verb, refuse)
    server.drop_all()
    outcome = attempt(os.listdir, daemon.mnt / "other")
    assert outcome.code in (0, errno.EACCES, errno.ENOENT, errno.EFBIG, *IO_ERRORS), outcome
    assert read(inbox[1]) == BODY  # cached, whatever the server says; a refusal deletes nothing
    server.handlers.clear()
    wait_for("it is listed again",
             lambda: len(attempt(os.listdir, daemon.mnt / "other").value or ()) == 1, 40, 0.2)
    still_well(daemon, server, listing(daemon, "other")[1])
    assert 1 in listing(daemon)


# --- slow and cut ----------------------------------------------------------------------------------

@pytest.mark.parametrize("where", [b"BODY[]", b"EXISTS", b"FETCH", b"LIST", b"CAPABILITY"])
def test_drip(server, fake_mount, where):
    """One byte now and then is no progress that keeps a caller waiting for ever."""
    server.inbox.add(LARGE)
    server.inbox.add(BODY)
    daemon = fake_mount(timeout=TIMEOUT)
    found = listing(daemon) if where == b"BODY[]" else None
    server.faults.drip_from = where
    server.faults.drip = 0.4
    if found:
        outcome = attempt(read, found[1])
        assert outcome.code == errno.ETIMEDOUT, outcome
    else:
        server.drop_all()
        outcome = attempt(os.listdir, daemon.mnt / "INBOX")
        assert outcome.code in (0, *IO_ERRORS), outcome
    server.faults.drip = None
    server.drop_all()
    wait_for("a listing", lambda: attempt(os.listdir, daemon.mnt / "INBOX").value, 40, 0.2)
    still_well(daemon, server, listing(daemon)[2])


@pytest.mark.parametrize("where", [b"{%d}\r\n" % len(BODY), b"From: a@exa", b"UID 1", b"* 1 FETCH"])
def test_silence_inside_a_body(server, fake_mount, where):
    server.inbox.add(BODY)
    server.inbox.add(BODY + b"2")
    daemon = fake_mount(timeout=TIMEOUT)
    found = listing(daemon)
    server.faults.silent_from = where
    outcome = attempt(read, found[1])
    assert outcome.code == errno.ETIMEDOUT, outcome
    assert int(os.getxattr(found[1], "user.mailfs.cached")) < len(BODY)
    server.faults.silent_from = None
    server.drop_all()
    assert attempt(read, found[2]).value == BODY + b"2"  # at once: the server was never down
    still_well(daemon, server, found[2], BODY + b"2")
    wait_for("and the first", lambda: attempt(read, found[1]).value == BODY, 30, 0.2)


def test_cut_everywhere(server, fake_mount):
    """The connection is cut at byte N of all that a listing and a read transfer, for many N; each
    time the bytes come right in the end, by retry or by the next try."""
    server.inbox.add(BODY)
    server.inbox.add(LARGE)
    daemon = fake_mount()
    found = listing(daemon)
    cuts = 0
    for n in [*range(0, 700, 53), 4100, 66_000, 130_000, 300_000]:
        # everything is forgotten: a new message each time
        message = server.inbox.add(BODY + b"%d\r\n" % n if n < 60_000 else LARGE + b"%d\r\n" % n)
        server.sent, server.faults.cut_after = 0, n
        server.drop_all()
        outcome = attempt(os.listdir, daemon.mnt / "INBOX")
        assert outcome.code in (0, *IO_ERRORS), (n, outcome)
        path = daemon.mnt / "INBOX" / paths.message_name(message.uid, server.inbox.uidvalidity)
        outcome = attempt(read, path)
        cuts += outcome.code != 0
        assert outcome.value == message.body or outcome.code in (errno.ENOENT, *IO_ERRORS), (n, outcome)
        if path.exists():
            check_whole_or_not(daemon, path, message.body)
        server.faults.cut_after = None
        wait_for(f"the message, cut at {n}", lambda: attempt(read, path).value == message.body, 30, 0.05)
    still_well(daemon, server, found[1])
    assert attempt(read, found[2]).value == LARGE


def test_connection_lost_is_retried(server, fake_mount):
    """A read whose connection has gone meanwhile succeeds without the caller noticing."""
    for i in range(5):
        server.inbox.add(BODY + b"%d" % i)
    daemon = fake_mount()
    found = listing(daemon)
    for uid in sorted(found):
        server.drop_all()
        assert attempt(read, found[uid]).value == BODY + b"%d" % (uid - 1)


# --- mailboxes -------------------------------------------------------------------------------------

def test_uidvalidity_changes(server, fake_mount):
    """Old files go, an open one says ESTALE or gives the old bytes, the new ones are right."""
    server.inbox.add(BODY)
    server.inbox.add(LARGE)
    daemon = fake_mount(refresh=1)
    found = listing(daemon)
    assert attempt(read, found[1]).value == BODY
    file = os.open(found[2], os.O_RDONLY)
    try:
        fresh = type(server.inbox)(uidvalidity=server.inbox.uidvalidity + 1)
        fresh.add(BODY + b"other", uid=1)
        server.mailboxes["INBOX"] = fresh  # at once: it may be listed at any moment
        server.drop_all()
        new = daemon.mnt / "INBOX" / paths.message_name(1, server.inbox.uidvalidity)
        wait_for("the new message", new.exists, 30)
        wait_for("the old names are gone", lambda: not found[1].exists(), 30)
        assert attempt(read, new).value == BODY + b"other"
        outcome = attempt(os.pread, file, 100, 300_000)
        assert outcome.code == errno.ESTALE or outcome.value == LARGE[300_000:300_100], outcome
    finally:
        os.close(file)


@pytest.mark.parametrize("validity", [0, None, 4294967296, -1])
def test_odd_uidvalidity(server, fake_mount, validity):
    server.inbox.add(BODY)
    server.mailboxes["odd"] = type(server.inbox)(uidvalidity=validity)
    server.mailboxes["odd"].add(BODY)
    daemon = fake_mount()
    outcome = attempt(os.listdir, daemon.mnt / "odd")
    assert outcome.code in (0, *IO_ERRORS), outcome
    still_well(daemon, server, listing(daemon)[1])


def test_exists_shrinks(server, fake_mount):
    """Fewer messages without a word about which: found out by UIDs, nothing wrong is shown."""
    for i in range(10):
        server.inbox.add(BODY + b"%d" % i)
    daemon = fake_mount(refresh=1)
    found = listing(daemon)
    del server.inbox.messages[2:6]
    wait_for("the listing follows", lambda: sorted(listing(daemon)) == [1, 2, 7, 8, 9, 10], 30)
    for uid in (1, 2, 7, 10):
        assert attempt(read, found[uid]).value == BODY + b"%d" % (uid - 1)


def test_short_listing_deletes_nothing(server, fake_mount):
    """A listing that is refused or breaks off is no proof that anything is gone."""
    for i in range(10):
        server.inbox.add(BODY + b"%d" % i)
    daemon = fake_mount(refresh=1)
    found = listing(daemon)
    assert attempt(read, found[1]).value == BODY + b"0"
    state = ["no"]

    def partly(session, tag, args):
        if "BODY" in args:
            session.default(tag, "UID FETCH", args)
            return
        box = session.mailbox
        session.send(session.fetch_answer(1, box.messages[0], args, False))
        if state[0] == "no":
            session.line(f"{tag} NO [LIMIT] enough")
        else:
            session.close()

    server.on("UID FETCH", partly).on("UID SEARCH", lambda s, tag, a: s.line(f"{tag} NO [LIMIT] no"))
    server.inbox.add(BODY + b"new")
    for state[0] in ("no", "cut"):
        n = server.n_commands("UID FETCH") + server.n_commands("UID SEARCH")
        server.drop_all()
        end = time.monotonic() + 30
        while server.n_commands("UID FETCH") + server.n_commands("UID SEARCH") == n:
            attempt(os.listdir, daemon.mnt / "INBOX")
            assert time.monotonic() < end, "never listed"
        assert set(listing(daemon)) >= set(range(1, 11))
    server.handlers.clear()
    wait_for("the new one", lambda: 11 in listing(daemon), 30)
    assert attempt(read, found[1]).value == BODY + b"0"


HOSTILE_NAMES = [
    b'""', b'"."', b'".."', b'"../../etc/passwd"', b'"/"', b'"/abs"', b'"a//b"', b'"a/"', b'"..//.."',
    b'"tab\there"', b"{7}\r\nnul\0nul", b"{5}\r\na\r\nbc", b'"\xff\xfe"', b'"&AAA"', b'"&AAAA-"', b'"&Jjo!"',
    b'"&2D3-"', b'"&AGE-"', b'"' + b"x" * 300 + b'"', b'"' + b"y" * 10_000 + b'"',
    b'"0000000001.1700000000.eml"', b'".mailfs"', b'".mailfs/status"', b'"inbox"', b'"InBoX/child"',
    b'"orphan/of/nobody"', b'"' + b"/".join([b"d"] * 300) + b'"', b"NIL", b'"a%2Fb"', b'"%"', b'"%41"',
    b'"A"', b'"~user"', b'"*"', b'"\x1b[31m"', b'"\xc3\xbc"', b'"&APw-"', b'"u\xcc\x88"', b'"cur"',
]


def test_hostile_names(server, fake_mount):
    """Each mailbox one name; none escapes the mount, none shadows a message or .mailfs; the good
    one works. Whatever cannot be shown at all is left out with a warning."""
    server.inbox.add(BODY)
    server.mailboxes["good"] = type(server.inbox)()
    server.mailboxes["good"].add(BODY)
    for name in HOSTILE_NAMES:
        server.mailboxes[name] = type(server.inbox)(uidvalidity=5)
    daemon = fake_mount()
    seen = []
    for path, dirs, _ in os.walk(daemon.mnt, followlinks=False):
        assert len(dirs) == len(set(dirs))
        for name in dirs:
            full = os.path.join(path, name)
            assert not os.path.islink(full)
            assert name not in (".", "..", "") and "/" not in name and len(os.fsencode(name)) <= 255
            assert not any(ord(c) < 32 or c == "\x7f" for c in name), name
            assert not paths.MESSAGE.match(name)
            seen.append(os.path.relpath(full, daemon.mnt))
    assert len(seen) == len(set(seen))
    assert "good" in seen and "INBOX" in seen
    assert sum(s.upper() == "INBOX" for s in seen) == 1
    assert int(daemon.status()["bytes_in"]) > 0  # .mailfs/status is ours
    still_well(daemon, server, listing(daemon, "good")[1])
    assert "\x1b" not in daemon.log()


@pytest.mark.parametrize("delimiter, names, want", [
    (".", ["INBOX", "a.b", "x/y"], {"a/b", "x%2Fy"}),
    ("\\\\", ["INBOX", "a\\b"], {"a/b"}),
    ("", ["INBOX", "a/b", "c"], {"a%2Fb", "c"}),
])
def test_delimiters(server, fake_mount, delimiter, names, want):
    server.delimiter = delimiter
    server.mailboxes = {name: type(server.inbox)() for name in names}
    server.inbox.add(BODY)
    daemon = fake_mount()
    for path in want:
        assert attempt(os.listdir, daemon.mnt / path).value == [], path
    still_well(daemon, server, listing(daemon)[1])


@pytest.mark.limit(180)
def test_many_names(server, fake_mount):
    """A hundred thousand mailboxes and a very deep one: answered or refused, not died of."""
    server.inbox.add(BODY)

    def many(session, tag, args):
        session.default(tag, "LIST", args) if args.endswith('""') else None
        if args.endswith('""'):
            return
        session.line('* LIST () "/" INBOX')
        session.send(b"".join(b'* LIST () "/" "m%d"\r\n' % i for i in range(100_000)))
        session.line(b'* LIST () "/" "' + b"/".join([b"n"] * 10_000) + b'"')
        session.ok(tag)

    server.on("LIST", many)
    daemon = fake_mount(timeout=40)
    names = attempt(os.listdir, daemon.mnt)
    assert names.code == 0 and "INBOX" in names.value
    still_well(daemon, server, listing(daemon)[1])


# --- several at once -------------------------------------------------------------------------------

def test_other_operations_go_on(server, fake_mount):
    """While one reader hangs in a literal that never ends, others read and list."""
    server.inbox.add(BODY)
    for i in range(5):
        server.inbox.add(BODY + b"%d" % i)
    daemon = fake_mount(timeout=6)
    found = listing(daemon)

    def hang(session, tag, args):
        if args.split(" ")[0] == "1":
            session.send(b"* 1 FETCH (UID 1 BODY[] {100000}\r\nabc")
            server.silent.add(session)
        else:
            session.default(tag, "UID FETCH", args)

    server.on("UID FETCH", hang)
    stuck = []
    thread = threading.Thread(target=lambda: stuck.append(attempt(read, found[1])))
    thread.start()
    server.wait_command("UID FETCH", 2)
    for uid in range(2, 7):
        assert attempt(read, found[uid]).value == BODY + b"%d" % (uid - 2)
    assert sorted(attempt(os.listdir, daemon.mnt / "INBOX").value) == sorted(p.name for p in found.values())
    thread.join(60)
    assert stuck and stuck[0].code == errno.ETIMEDOUT, stuck


def test_throttled(server, fake_mount):
    """[LIMIT] and too many connections: fewer are used, all is read."""
    for i in range(12):
        server.inbox.add(BODY + b"%d" % i)
    open_now = []

    def limited(session, tag, args):
        if len([s for s in server.sessions if s.user and s.sock.fileno() >= 0]) >= 1 and not session.user:
            session.line(f"{tag} NO [LIMIT] too many connections")
            open_now.append(1)
        else:
            session.default(tag, "AUTHENTICATE", args)

    server.on("AUTHENTICATE", limited)
    daemon = fake_mount(timeout=10)
    found = listing(daemon)
    results = {}
    threads = [threading.Thread(target=lambda u=u: results.__setitem__(u, attempt(read, found[u])))
               for u in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(results[u].value == BODY + b"%d" % (u - 1) for u in found), results
    assert len(open_now) < 50


def test_cache_survives_hostility(server, fake_mount):
    """What was read once is read from the cache after a restart, byte by byte."""
    server.inbox.add(BODY)
    server.inbox.add(LARGE)
    daemon = fake_mount()
    found = listing(daemon)
    assert read(found[1]) == BODY and read(found[2]) == LARGE
    daemon.stop()
    n = sum("BODY" in args for _, args in server.commands)
    daemon.start()
    found = listing(daemon)
    assert read(found[1]) == BODY and read(found[2]) == LARGE
    assert sum("BODY" in args for _, args in server.commands) == n
