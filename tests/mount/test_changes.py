# SPDX-License-Identifier: MIT
"""What other clients do to the account appears here within `refresh`."""
import errno
import os
import threading
import time

import pytest

from support import paths
from support.dovecot import wait_for

pytestmark = pytest.mark.main


@pytest.fixture
def setup(mount, dovecot, user):
    dovecot.fill(user, range(20), new_every=0)
    daemon = mount(user, refresh=1)
    with dovecot.client(user) as client:
        client.select()
        validity = client.uidvalidity()
        yield daemon, client, daemon.mnt / "INBOX", lambda uid: paths.message_name(uid, validity)


def body(word, lines=3):
    return (f"From: a@example.org\r\nSubject: {word}\r\n\r\n" + f"{word}\r\n" * lines).encode()


def names_in(directory):
    """None while it is not there, or is just being replaced."""
    try:
        return os.listdir(directory)
    except OSError as error:
        assert error.errno in (errno.ENOENT, errno.ESTALE)
        return []


def test_new_mail(setup):
    daemon, client, inbox, name = setup
    before = set(os.listdir(inbox))
    uid = client.append(body("fresh"), when=1234567890)
    wait_for("it is listed", lambda: name(uid) in os.listdir(inbox))
    assert set(os.listdir(inbox)) - before == {name(uid)}
    stat = os.stat(inbox / name(uid))
    assert (stat.st_size, int(stat.st_mtime)) == (len(body("fresh")), 1234567890)
    assert (inbox / name(uid)).read_bytes() == body("fresh")
    assert os.getxattr(inbox, "user.imap.messages") == b"21"


@pytest.mark.parametrize("how", ["append", "expunge", "twice"])
def test_time(setup, how):
    """Who looks at the directory's time only, as mail checkers do, sees that something changed: each time."""
    daemon, client, inbox, name = setup
    os.listdir(inbox)
    for step in range(2 if how == "twice" else 1):
        before = os.stat(inbox).st_mtime
        wait_for("another second", lambda: time.time() >= before + 1)
        n = int(os.getxattr(inbox, "user.imap.messages"))
        if how == "expunge":
            client.expunge("3")
        else:
            client.append(body("fresh"))
        wait_for("it is known", lambda: int(os.getxattr(inbox, "user.imap.messages")) != n)
        wait_for("another time", lambda: os.stat(inbox).st_mtime > before)


def test_looked_up_before_it_came(setup):
    """A negative answer does not stick."""
    daemon, client, inbox, name = setup
    uid = 21
    with pytest.raises(FileNotFoundError):
        os.stat(inbox / name(uid))
    assert client.append(body("late")) == uid
    wait_for("it is there", (inbox / name(uid)).exists)


def test_expunge(setup):
    daemon, client, inbox, name = setup
    for uid in (3, 5, 9):
        os.stat(inbox / name(uid))
    client.expunge("3,5")
    wait_for("they are gone", lambda: not {name(3), name(5)} & set(os.listdir(inbox)))
    for uid in (3, 5):
        wait_for("stat says so", lambda uid=uid: not (inbox / name(uid)).exists())
    assert len(os.listdir(inbox)) == 18
    assert (inbox / name(9)).read_bytes()


def test_flags(setup):
    daemon, client, inbox, name = setup
    path = inbox / name(4)
    before = os.stat(path)
    old = paths.flags_of(path)
    client.store(4, "FLAGS", "(\\Flagged \\Answered custom-word)")
    want = {"\\Flagged", "\\Answered", "custom-word"}
    assert old != want
    wait_for("the flags are seen", lambda: paths.flags_of(path) == want)
    assert paths.xattr(path, "user.imap.flags") == " ".join(sorted(want))
    after = os.stat(path)
    assert (after.st_size, after.st_mtime, after.st_ino) == \
        (before.st_size, before.st_mtime, before.st_ino)
    assert after.st_ctime >= before.st_ctime
    client.store(4, "-FLAGS", "(\\Flagged \\Answered custom-word)")
    wait_for("they are gone again", lambda: paths.flags_of(path) == frozenset())


def test_folders_come_and_go(setup):
    daemon, client, inbox, name = setup
    client.create("Späte Mappe", "tief")
    wait_for("it is listed", lambda: (daemon.mnt / "Späte Mappe" / "tief").is_dir())
    client.append(body("inside"), "Späte Mappe/tief")
    wait_for("so is its mail",
             lambda: len(paths.uids(daemon.mnt / "Späte Mappe" / "tief")) == 1)
    client.delete("Späte Mappe", "tief")
    wait_for("it is gone", lambda: not (daemon.mnt / "Späte Mappe" / "tief").exists())
    assert "INBOX" in os.listdir(daemon.mnt)


def test_open_file_keeps_working(setup):
    """A file that was opened is read to its end although the message is gone."""
    daemon, client, inbox, name = setup
    uid = client.append(body("long", 60000))
    wait_for("it is listed", lambda: name(uid) in os.listdir(inbox))
    with open(inbox / name(uid), "rb") as file:
        whole = file.read()
        client.expunge(str(uid))
        wait_for("it is gone", lambda: name(uid) not in os.listdir(inbox))
        file.seek(0)
        assert file.read() == whole == body("long", 60000)


def test_mailbox_made_anew(setup, dovecot, user):
    """Another UIDVALIDITY: the old files are gone, an open one says so."""
    daemon, client, inbox, name = setup
    client.create("again")
    client.append(body("first", 100000), "again")
    directory = daemon.mnt / "again"
    wait_for("it is there", lambda: directory.is_dir() and len(os.listdir(directory)) == 1)
    old = os.listdir(directory)[0]
    file = os.open(directory / old, os.O_RDONLY)
    try:
        client.imap.unselect()
        client.delete("again")
        client.create("again")
        client.append(body("second"), "again")
        new, = wait_for("the new one", lambda: (names := names_in(directory)) and
                        old not in names and names)
        assert new.split(".")[1] != old.split(".")[1]
        assert (directory / new).read_bytes() == body("second")
        try:
            data = os.pread(file, 10, 1000000)
            assert data == body("first", 100000)[1000000:1000010]
        except OSError as error:
            assert error.errno == errno.ESTALE
    finally:
        os.close(file)


def test_listing_while_mail_comes_and_goes(setup):
    """Each surviving message exactly once in every listing."""
    daemon, client, inbox, name = setup
    stop = threading.Event()
    problems = []

    def look():
        while not stop.is_set():
            names = os.listdir(inbox)
            if len(names) != len(set(names)):
                problems.append("twice")
            missing = {name(uid) for uid in (1, 2, 18, 19)} - set(names)
            if missing:
                problems.append(missing)

    watchers = [threading.Thread(target=look) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    for round in range(15):
        uid = client.append(body(f"round {round}"))
        client.expunge(f"{uid},{round + 3}")
    stop.set()
    for watcher in watchers:
        watcher.join(30)
    assert not problems, problems[:3]
    wait_for("it settles", lambda: len(os.listdir(inbox)) == 5)
