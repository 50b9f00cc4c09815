# SPDX-License-Identifier: MIT
"""The main ways of changing mail once more, on a second server: Cyrus."""
import hashlib
import os
import subprocess

import pytest

from support import paths
from support.dovecot import wait_for
from support.write import Account, flags, mail, set_flags, sh, sha
from test_cyrus import dovecot  # noqa: F401 the server

pytestmark = [pytest.mark.xdist_group("cyrus"), pytest.mark.limit(300)]


@pytest.fixture
def account(mount, dovecot, request):  # noqa: F811
    """Six messages, of which another client has marked the last for removal; and a mailbox Archive."""
    name = "w" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    account = Account(dovecot, name)
    account.client.create("Archive")
    for i in range(6):
        account.client.append(mail(f"m{i}"), when=1_000_000_000 + i,
                              flags="(\\Seen kw)" if i % 2 else None)
    account.client.select()
    account.client.store(6, "+FLAGS", "(\\Deleted)")
    account.client.ok(account.client.imap.unselect())
    account.daemon = mount(name)
    validity = account.client.uidvalidity()
    account.path = lambda uid: account.inbox / paths.message_name(uid, validity)
    account.archive = account.mnt / "Archive"
    yield account
    assert 6 in account.see(), "a message that another client marked was expunged"


def test_flags(account):
    set_flags(account.path(1), "\\Answered one")
    set_flags(account.path(2), "")
    account.sync()
    seen = account.see()
    assert (seen[1].flags, seen[2].flags) == ({"\\Answered", "one"}, set())
    assert flags(account.path(1)) == {"\\Answered", "one"}


def test_move(account):
    before = os.stat(account.path(2))
    sh(f"mv INBOX/{account.path(2).name} INBOX/{account.path(3).name} Archive/", account.mnt)
    account.sync(account.archive)
    assert account.subjects("Archive") == ["m1", "m2"]
    assert sorted(account.see()) == [1, 4, 5, 6]
    after = os.stat(account.archive / account.path(2).name)
    assert (after.st_size, after.st_mtime) == (before.st_size, before.st_mtime)
    assert flags(account.archive / account.path(2).name) == {"\\Seen", "kw"}


def test_remove(account):
    """To the trash, which is made; and in it for good, that one alone."""
    os.unlink(account.path(1))
    os.unlink(account.path(2))
    account.sync()
    assert account.subjects("Trash") == ["m0", "m1"]
    trash = account.mnt / "Trash"
    wait_for("both are seen", lambda: len(os.listdir(trash)) == 2)
    account.client.select("Trash")
    account.client.store(2, "+FLAGS", "(\\Deleted)")
    account.client.ok(account.client.imap.unselect())
    os.unlink(trash / min(os.listdir(trash)))
    account.sync(trash)
    assert len(account.see("Trash")) == 1


def test_create(account, work):
    """Date and flags come along; what an rsync copied it finds unchanged."""
    source = work / "letters"
    source.mkdir()
    for i in range(40):
        (source / f"{i:02}.eml").write_bytes(mail(f"new{i:02}"))
        os.utime(source / f"{i:02}.eml", (800_000_000 + i, 800_000_000 + i))
    os.setxattr(source / "07.eml", "user.imap.flags", b"\\Flagged seven")
    sh(f"rsync -aX --no-o --no-g {source}/ Archive/", account.mnt)
    account.sync(account.archive)
    there = sorted(account.see("Archive").values(), key=lambda m: m.date)
    assert [(m.sha256, m.date) for m in there] == [(sha(mail(f"new{i:02}")), 800_000_000 + i)
                                                   for i in range(40)]
    assert there[7].flags == {"\\Flagged", "seven"}
    out = sh(f"rsync -aXni --no-o --no-g {source}/ Archive/", account.mnt)
    assert [line for line in out.splitlines() if line.startswith((">f", "<f", "c"))] == []


def test_copy_on_the_server(account):
    body = mail("big", 20_000)
    big = account.path(account.client.append(body, when=1_000_000_007))
    wait_for("it is listed", lambda: big.name in os.listdir(account.inbox))
    before = account.daemon.counter("bytes_in"), account.daemon.counter("bytes_out")
    sh(f"cp --preserve=timestamps INBOX/{big.name} Archive/", account.mnt)
    account.sync(account.archive)
    (copy,) = account.see("Archive").values()
    assert (copy.sha256, copy.date) == (sha(body), 1_000_000_007)
    assert big.exists()
    # much less than the body, and room for a minute of looking for changes
    assert account.daemon.counter("bytes_in") - before[0] < len(body) // 2
    assert account.daemon.counter("bytes_out") - before[1] < len(body) // 2


def test_written_anew(account):
    """As an editor does it: the new one is there before the old one goes to the trash."""
    for how in ("truncated", "renamed over"):
        uid = 1 if how == "truncated" else 2
        want = mail(how.replace(" ", "-"))
        if how == "truncated":
            account.path(uid).write_bytes(want)
        else:
            (account.inbox / ".new").write_bytes(want)
            os.rename(account.inbox / ".new", account.path(uid))
        account.sync()
        assert account.path(uid).read_bytes() == want
        assert sha(want) in {m.sha256 for m in account.see().values()}
        assert uid not in account.see()
    assert account.subjects("Trash") == ["m0", "m1"]
    assert account.failed() == {}


def test_mailboxes(account):
    new = account.mnt / "Grüße" / "日本"
    os.makedirs(new)
    assert "Grüße/日本" in account.folders() or "Grüße.日本" in account.folders()
    (new / "a.eml").write_bytes(mail("inside"))
    account.sync(new)
    os.rename(account.mnt / "Grüße", account.mnt / "Moved")
    assert account.words(account.mnt / "Moved" / "日本") == ["inside"]
    with pytest.raises(OSError):
        os.rmdir(account.mnt / "Moved" / "日本")
    os.unlink(account.mnt / "Moved" / "日本" / "a.eml")
    account.sync(account.mnt / "Moved" / "日本")
    os.rmdir(account.mnt / "Moved" / "日本")
    os.rmdir(account.mnt / "Moved")
    assert not {name for name in account.folders() if name.startswith(("Moved", "Grüße"))}


@pytest.mark.parametrize("how", ["mv", "rsync"])
def test_killed_in_a_burst(account, work, how):
    """Started again, it finishes what was promised: everything once."""
    source = work / "letters"
    source.mkdir()
    for i in range(150):
        (source / f"{i:03}.eml").write_bytes(mail(f"b{i:03}"))
    want = sorted(f"b{i:03}" for i in range(150))
    script = f"rsync -a --no-o --no-g {source}/ Archive/"
    if how == "mv":
        sh(script, account.mnt)
        account.sync(account.archive)
        account.client.create("Second")
        wait_for("it is seen", lambda: (account.mnt / "Second").is_dir())
        script = "mv Archive/*.eml Second/"
    target = "Second" if how == "mv" else "Archive"
    running = subprocess.Popen(["sh", "-c", script], cwd=account.mnt, stderr=subprocess.DEVNULL)
    wait_for("some are on the server", lambda: len(account.see(target, bodies=False)) >= 20)
    account.daemon.kill()
    running.wait(60)
    account.daemon.allow("the program that wrote it was interrupted")
    account.daemon.start()
    sh(script + " || true", account.mnt)  # what was not acknowledged
    account.sync(account.mnt / target)
    assert account.subjects(target) == want
    assert how != "mv" or account.subjects("Archive") == []
    # the file that rsync was at is kept for him, too
    left = account.failed()
    assert len(left) <= (how == "rsync") and all("interrupted" in why for why in left.values())
