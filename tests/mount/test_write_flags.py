# SPDX-License-Identifier: MIT
"""Flags: user.imap.flags written on the mount is what other clients see, and nothing else changes."""
import errno
import os
import subprocess
import threading

import pytest

from support import paths
from support.dovecot import wait_for
from support.write import Account, flags, refused, set_flags


@pytest.fixture
def account(mount, dovecot, user):
    dovecot.fill(user, range(12), new_every=0)
    account = Account(dovecot, user, mount(user))
    account.validity = account.client.uidvalidity()
    account.path = lambda uid: account.inbox / paths.message_name(uid, account.validity)
    return account


CASES = [
    ("set one", "\\Flagged", {"\\Flagged"}),
    ("set all", "\\Answered \\Deleted \\Draft \\Flagged \\Seen",
     {"\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen"}),
    ("none", "", set()),
    ("capitals", "\\SEEN \\flagged", {"\\Seen", "\\Flagged"}),
    ("keyword", "$Forwarded work \\Seen", {"$Forwarded", "work", "\\Seen"}),
    ("blanks", "  \\Seen\twork\n", {"\\Seen", "work"}),
    ("recent counts for nothing", "\\Recent \\Seen", {"\\Seen"}),
]


@pytest.mark.main
def test_set_and_replace(account):
    for name, text, want in CASES:
        for uid in (1, 4):
            set_flags(account.path(uid), text)
            assert flags(account.path(uid)) == want, name
            assert paths.xattr(account.path(uid), "user.imap.flags") == " ".join(sorted(want)), name
        account.sync()
        seen = account.see(bodies=False)
        assert {seen[1].flags, seen[4].flags} == {frozenset(want)}, name


def test_remove(account):
    set_flags(account.path(2), "\\Seen work")
    subprocess.run(["setfattr", "-x", "user.imap.flags", account.path(2)], check=True, timeout=20)
    assert flags(account.path(2)) == set()
    account.sync()
    assert account.see()[2].flags == frozenset()
    assert os.listxattr(account.path(2)) == ["user.imap.flags"]


BAD = [("a keyword the wire cannot carry", "a(b"), ("an unknown system flag", "\\Nonsense"),
       ("a control character", "a\x01b"), ("not ASCII", "grün"), ("only a backslash", "\\")]


@pytest.mark.parametrize("text", [t for _, t in BAD], ids=[n for n, _ in BAD])
def test_refused_at_once(account, text):
    before = account.see()[1].flags
    with refused((errno.EINVAL, errno.ENOTSUP)):
        set_flags(account.path(1), text)
    assert flags(account.path(1)) == before == account.see()[1].flags


def test_other_attributes(account):
    path = account.path(1)
    for name, code in (("user.imap.uid", errno.EPERM), ("user.mailfs.cached", errno.EPERM),
                       ("user.other", errno.ENOTSUP)):
        with refused(code):
            os.setxattr(path, name, b"1")
    with refused(errno.ENODATA):
        os.removexattr(path, "user.other")
    with refused(errno.EEXIST):
        os.setxattr(path, "user.imap.flags", b"", os.XATTR_CREATE)
    os.setxattr(path, "user.imap.flags", b"\\Seen", os.XATTR_REPLACE)
    with refused(errno.EPERM):
        os.setxattr(account.inbox, "user.imap.flags", b"\\Seen")


@pytest.mark.main
def test_the_others_flags_stay(account):
    """Only the difference goes out: what another client set in between is not taken away."""
    set_flags(account.path(3), "")
    account.sync()
    account.client.store(3, "+FLAGS", "(others \\Answered)")
    # this side may or may not have heard of it; either way the word it adds is all it changes
    wait_for("it is heard of", lambda: "others" in flags(account.path(3)))
    set_flags(account.path(3), "others \\Answered \\Flagged")
    account.sync()
    assert account.see()[3].flags == {"others", "\\Answered", "\\Flagged"}
    set_flags(account.path(3), "others \\Flagged")
    account.sync()
    assert account.see()[3].flags == {"others", "\\Flagged"}


def test_the_others_see_it_at_once(account):
    """An idling client is told without anybody's asking."""
    with account.server.client(account.user) as other:
        other.select()
        set_flags(account.path(5), "\\Flagged watch")
        account.sync()
        other.ok(other.imap.noop())
        heard = b" ".join(d for d in other.imap.response("FETCH")[1] if d)
        assert b"watch" in heard and b"\\Flagged" in heard


def test_two_mounts(account, mount):
    """Each sees the other's change; changed by both, they agree in the end."""
    second = Account(account.server, account.user, mount(account.user))
    path = lambda a, uid: a.inbox / paths.message_name(uid, account.validity)
    set_flags(path(account, 6), "\\Seen first")
    account.sync()
    wait_for("the second mount sees it", lambda: flags(path(second, 6)) == {"\\Seen", "first"})
    stop = []

    def change(side, word):
        for uid in range(1, 13):
            set_flags(path(side, uid), f"{word} \\Seen")
        stop.append(word)

    threads = [threading.Thread(target=change, args=a) for a in ((account, "one"), (second, "two"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(stop) == ["one", "two"]
    account.sync()
    second.sync()
    truth = {uid: m.flags for uid, m in account.see(bodies=False).items()}
    for side in (account, second):
        wait_for("they agree", lambda side=side:
                 {uid: flags(path(side, uid)) for uid in truth} == truth)
    assert all("\\Seen" in f and f & {"one", "two"} for f in truth.values())


def test_kept_after_remount(account):
    """What was set in a burst and then unmounted is on the server."""
    for uid in range(1, 13):
        set_flags(account.path(uid), "kept \\Draft")
    account.daemon.stop()
    assert {m.flags for m in account.see(bodies=False).values()} == {frozenset(("kept", "\\Draft"))}
    account.daemon.start()
    assert {flags(account.path(uid)) for uid in range(1, 13)} == {frozenset(("kept", "\\Draft"))}


def test_flags_of_a_vanished_message(account):
    path = account.path(7)
    assert flags(path) is not None
    account.client.expunge("7")
    code = None
    try:
        set_flags(path, "\\Seen")
        account.sync()
    except OSError as error:
        code = error.errno
    assert code in (None, errno.ENOENT, errno.ESTALE)
    wait_for("it is gone", lambda: not path.exists())
    account.daemon.allow(r"UID 7|flags|gone|no longer")


def test_ctime_says_so(account):
    before = os.stat(account.path(8))
    set_flags(account.path(8), "ctime")
    after = os.stat(account.path(8))
    assert after.st_ctime_ns >= before.st_ctime_ns and after.st_ctime > after.st_mtime
    assert (after.st_size, after.st_mtime, after.st_ino) == \
        (before.st_size, before.st_mtime, before.st_ino)
