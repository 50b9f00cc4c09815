# SPDX-License-Identifier: MIT
"""mv: one message, many, thousands; names, bodies and inodes go along."""
import errno
import os
import shutil
import threading

import pytest

from support import paths
from support.dovecot import wait_for
from support.write import Account, flags, mail, refused, set_flags, sh, sha


@pytest.fixture
def make(mount, dovecot, user):
    """An account with `n` messages in INBOX and two empty mailboxes, Archive and Second."""
    def build(n=6, **options):
        dovecot.folder(user, "Archive")
        dovecot.folder(user, "Second")
        if n <= 20:
            with dovecot.client(user) as client:
                for i in range(n):
                    client.append(mail(f"m{i}"), when=1_000_000_000 + i,
                                  flags="(\\Seen kw)" if i % 2 else None)
        else:
            dovecot.fill(user, range(n), new_every=0)
        account = Account(dovecot, user, mount(user, **options))
        account.validity = account.client.uidvalidity()
        account.path = lambda uid: account.inbox / paths.message_name(uid, account.validity)
        account.archive = account.mnt / "Archive"
        return account
    return build


@pytest.mark.main
def test_one(make):
    account = make()
    body, before = account.path(2).read_bytes(), os.stat(account.path(2))
    sh(f"mv INBOX/{account.path(2).name} Archive/", account.mnt)
    assert not account.path(2).exists()
    moved = account.archive / account.path(2).name
    assert moved.read_bytes() == body
    account.sync(account.archive)
    assert sorted(account.see()) == [1, 3, 4, 5, 6]
    (message,) = account.see("Archive").values()
    assert (message.date, message.flags) == (1_000_000_001, {"\\Seen", "kw"})
    after = os.stat(moved)
    assert (after.st_size, after.st_mtime) == (before.st_size, before.st_mtime)
    assert flags(moved) == {"\\Seen", "kw"}
    # its own name resolves too
    own = account.archive / account.name(message.uid, "Archive")
    assert own.read_bytes() == body
    assert os.listdir(account.archive) == [account.path(2).name]


def test_copied_at_once(make):
    """By a connection that looked into that mailbox before the message came there by another one."""
    account = make(n=60, refresh=600)
    names = sorted(os.listdir(account.inbox))
    sh("cat INBOX/* | wc -c", account.mnt)  # fetched ahead: that makes a second connection
    wait_for("a second connection", lambda: len(account.server.processes(account.user)) > 1)
    for i, name in enumerate(names[:8]):
        os.rename(account.inbox / name, account.archive / name)
        account.sync(account.archive)
        shutil.copyfile(account.archive / name, account.mnt / "Second" / name)
        account.sync(account.mnt / "Second")
        assert len(account.see("Second")) == i + 1
    assert sorted(os.listdir(account.mnt / "Second")) == names[:8]


def test_inode_stays(make):
    """For as long as somebody has it open, the message is the same file, wherever it is."""
    account = make()
    name = account.path(1).name
    before = os.stat(account.path(1)).st_ino
    with open(account.path(1), "rb") as file:
        os.rename(account.path(1), account.archive / name)
        assert os.fstat(file.fileno()).st_ino == before
        account.sync(account.archive)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.fstat(file.fileno()).st_ino == before
        assert file.read() == mail("m0")


def test_mv_then_cp(make):
    """cp compares the file that it opened with the one it had looked at."""
    account = make(n=60)
    names = sorted(os.listdir(account.inbox))
    for i in range(0, 60, 4):
        sh(f"mv {' '.join('INBOX/' + n for n in names[i:i + 4])} Archive/ && "
           f"cp Archive/{names[i]} Second/", account.mnt)
    account.sync(account.mnt / "Second")
    assert len(account.see("Second")) == 15 and len(account.see("Archive")) == 60


def test_body_comes_along(make):
    """What was here is not fetched again."""
    account = make(n=30, refresh=600)  # what looking for changes costs is not counted
    bodies = {name: (account.inbox / name).read_bytes() for name in os.listdir(account.inbox)}
    before = account.daemon.counter("bytes_in")
    sh("mv INBOX/*.eml Archive/", account.mnt)
    account.sync(account.archive)
    assert {n: (account.archive / n).read_bytes() for n in os.listdir(account.archive)} == bodies
    moved = account.daemon.counter("bytes_in") - before
    assert moved < 30_000 + sum(map(len, bodies.values())) // 10, moved


def test_sync_waits_each_time(make):
    account = make(sync=True)
    for uid in (1, 2, 3):
        os.rename(account.path(uid), account.archive / account.path(uid).name)
        assert uid not in account.see()
    assert account.subjects("Archive") == ["m0", "m1", "m2"]


def test_rename_within_a_mailbox(make):
    """Nothing on the server; after a remount still so called, and its UID name resolves too. For who
    moved it away the old name is free, as editors that make backups expect."""
    account = make()
    before = account.client.status("INBOX")
    ino = os.stat(account.path(1)).st_ino
    os.rename(account.path(1), account.inbox / "letter from home.eml")
    assert "letter from home.eml" in os.listdir(account.inbox)
    assert account.path(1).name not in os.listdir(account.inbox)
    assert os.stat(account.inbox / "letter from home.eml").st_ino == ino
    assert not account.path(1).exists()
    os.rename(account.inbox / "letter from home.eml", account.inbox / "second name")
    assert not (account.inbox / "letter from home.eml").exists()
    account.daemon.stop()
    account.daemon.start()
    assert (account.inbox / "second name").read_bytes() == mail("m0")
    assert account.path(1).read_bytes() == mail("m0")
    assert os.stat(account.inbox / "second name").st_ino == ino
    assert account.client.status("INBOX") == before
    # two names of one file: to rename one to the other does nothing, as with hard links
    os.rename(account.inbox / "second name", account.path(1))
    assert "second name" in os.listdir(account.inbox)
    assert len(account.see()) == 6


def test_over_another(make):
    """The one that was there goes to the trash, once the new one is in its place."""
    account = make()
    target = account.archive / "same.eml"
    os.rename(account.path(1), target)
    os.rename(account.path(2), target)
    assert target.read_bytes() == mail("m1")
    account.sync(account.archive)
    account.sync()
    assert account.subjects("Archive") == ["m1"] and account.subjects("Trash") == ["m0"]
    os.rename(account.path(3), account.path(4))
    account.sync()
    assert account.path(4).read_bytes() == mail("m2")
    assert account.subjects() == ["m2", "m4", "m5"]
    wait_for("the trash has both", lambda: account.subjects("Trash") == ["m0", "m3"])


def test_no_replace(make):
    """mv -n leaves what is there."""
    account = make()
    sh(f"mv {account.path(1)} Archive/x.eml; mv -n {account.path(2)} Archive/x.eml || true",
       account.mnt)
    account.sync(account.archive)
    assert account.subjects("Archive") == ["m0"] and 2 in account.see()


def test_back_and_forth(make):
    """Moved on before the server has answered."""
    account = make()
    name = account.path(1).name
    for _ in range(5):
        os.rename(account.inbox / name, account.archive / name)
        assert (account.archive / name).read_bytes() == mail("m0")
        os.rename(account.archive / name, account.inbox / name)
        assert (account.inbox / name).read_bytes() == mail("m0")
    account.sync()
    assert account.subjects() == [f"m{i}" for i in range(6)] and account.see("Archive") == {}
    assert sorted(account.words(account.inbox)) == [f"m{i}" for i in range(6)]


def test_flags_and_remove_while_moving(make):
    """What is done to a file that is on its way is done to the message."""
    account = make(n=20)
    for uid in range(1, 21):
        os.rename(account.path(uid), account.archive / f"{uid}.eml")
    set_flags(account.archive / "7.eml", "\\Flagged moved")
    os.unlink(account.archive / "8.eml")
    os.rename(account.archive / "9.eml", account.archive / "nine.eml")
    account.sync(account.archive)
    account.sync()
    names = {f"{uid}.eml" for uid in range(1, 21)} - {"8.eml", "9.eml"} | {"nine.eml"}
    assert set(os.listdir(account.archive)) == names
    assert (account.archive / "nine.eml").read_bytes() == mail("m8")
    wait_for("the trash has one", lambda: account.subjects("Trash") == ["m7"])
    seen = {m.sha256: m.flags for m in account.see("Archive").values()}
    assert len(seen) == 19
    assert seen[sha(mail("m6"))] == {"\\Flagged", "moved"}
    assert flags(account.archive / "7.eml") == {"\\Flagged", "moved"}


def test_target_vanished(make):
    """The mailbox is deleted underneath: the message is back where it was."""
    account = make()
    assert os.listdir(account.archive) == []
    account.daemon.allow("Archive|mailbox|exist")
    account.client.delete("Archive")
    code = 0
    try:
        os.rename(account.path(1), account.archive / "x.eml")
        account.sync()
    except OSError as error:
        code = error.errno
    assert code in (errno.ENOENT, errno.ESTALE, errno.EPERM), errno.errorcode.get(code)
    wait_for("it is back", lambda: account.path(1).exists())
    assert 1 in account.see() and account.path(1).read_bytes() == mail("m0")


def test_source_vanished(make):
    """Somebody expunged it: OK to a MOVE of nothing is no success."""
    account = make()
    assert account.path(1).exists()
    account.client.expunge("1")
    account.client.imap.unselect()
    code = 0
    try:
        os.rename(account.path(1), account.archive / "x.eml")
        account.sync(account.archive)
        account.sync()
    except OSError as error:
        code = error.errno
    assert code in (errno.ENOENT, errno.ESTALE), code
    wait_for("it is nowhere", lambda: not account.path(1).exists()
             and not (account.archive / "x.eml").exists())
    account.daemon.allow("UID 1|gone|no longer|no such")


def test_two_mounts_move_the_same(make, mount):
    """No message is lost, and both mounts say where each is. (That a server lets two sessions at the
    same moment move one message, and has it twice then, is not in a client's hands.)"""
    account = make(n=12)
    other = Account(account.server, account.user, mount(account.user))
    assert len(os.listdir(other.inbox)) == len(os.listdir(account.inbox)) == 12
    account.daemon.allow("gone|no longer|no such|UID")
    other.daemon.allow("gone|no longer|no such|UID")

    def move(side, target):
        for uid in range(1, 13):
            name = side.inbox / account.path(uid).name
            # An error may be that of an earlier one, which the next change reports: then this one was not done.
            while name.exists():
                try:
                    os.rename(name, side.mnt / target / f"{uid}.eml")
                except OSError as error:
                    assert error.errno in (errno.ENOENT, errno.ESTALE)
        try:
            side.sync(side.mnt / target)
        except OSError as error:
            assert error.errno in (errno.ENOENT, errno.ESTALE)

    threads = [threading.Thread(target=move, args=a) for a in ((account, "Archive"),
                                                               (other, "Second"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    words = lambda: (account.subjects("Archive"), account.subjects("Second"), account.subjects())
    archive, second, left = words()
    assert left == [] and set(archive + second) == {f"m{i}" for i in range(12)}
    for side in (account, other):
        wait_for("the mounts agree", lambda side=side:
                 [side.shown(side.mnt / d) for d in ("Archive", "Second")] == [archive, second])


def test_odd_names(make):
    account = make(n=12)
    odd = ["Grüße ☂.eml", "with space", "quote\"'s", "-dash", "back\\slash", "a" * 255,
           "0000000009.1234567890.eml", "percent%41", "x\ty", "(paren)*?"]
    for uid, name in enumerate(odd, 1):
        os.rename(account.path(uid), account.archive / name)
    assert set(os.listdir(account.archive)) == set(odd)
    with refused(errno.ENAMETOOLONG):
        os.rename(account.path(11), account.archive / ("a" * 256))
    account.sync(account.archive)
    account.daemon.stop()
    account.daemon.start()
    assert set(os.listdir(account.archive)) == set(odd)
    for uid, name in enumerate(odd, 1):
        assert (account.archive / name).read_bytes() == mail(f"m{uid - 1}"), name


@pytest.mark.main
def test_copy_on_the_server(make):
    """cp between mailboxes of the mount moves no body."""
    account = make(n=1)
    account.client.append(mail("big", 600_000))
    wait_for("it is listed", lambda: len(os.listdir(account.inbox)) == 2)
    big = max(account.inbox.iterdir(), key=lambda p: p.stat().st_size)
    size = big.stat().st_size
    assert size > 2 << 20
    before = account.daemon.status()
    sh(f"cp -p INBOX/{big.name} Archive/copy.eml", account.mnt)
    account.sync(account.archive)
    after = account.daemon.status()
    assert after["bytes_in"] - before["bytes_in"] < 100_000
    assert after["bytes_out"] - before["bytes_out"] < 100_000
    assert os.stat(account.archive / "copy.eml").st_size == size
    truth = max(account.see().values(), key=lambda m: m.size)
    (copy,) = account.see("Archive").values()
    assert (copy.sha256, copy.date, copy.flags) == (truth.sha256, truth.date, truth.flags)
    assert (account.archive / "copy.eml").read_bytes() == big.read_bytes()


def test_copy_with_another_date_or_flags(make):
    account = make()
    sh(f"cp INBOX/{account.path(1).name} Archive/now.eml", account.mnt)
    account.sync(account.archive)
    (copy,) = account.see("Archive").values()
    assert copy.size == len(mail("m0"))
    sh(f"cp INBOX/{account.path(2).name} Archive/old.eml; touch -d @915148800 Archive/old.eml",
       account.mnt)
    account.sync(account.archive)
    assert account.subjects("Archive") == ["m0", "m1"]
    sh("cp -a INBOX/*.eml Archive/", account.mnt)
    account.sync(account.archive)
    assert account.subjects("Archive") == sorted(["m0", "m1"] + [f"m{i}" for i in range(6)])
    by_date = {m.date: m.flags for m in account.see("Archive").values()}
    for i in range(6):
        assert by_date[1_000_000_000 + i] == ({"\\Seen", "kw"} if i % 2 else set()), i


def test_trash_of_a_file_manager(make):
    """gio trash needs a trash on the same file system; refusing is right, losing is not."""
    account = make()
    done = sh(f"gio trash INBOX/{account.path(1).name}", account.mnt, check=False)
    account.sync()
    if done.returncode != 0:
        assert account.subjects() == [f"m{i}" for i in range(6)]
    else:
        everywhere = [w for f in account.folders() for w in account.subjects(f)]
        assert sorted(everywhere) == [f"m{i}" for i in range(6)]


def test_out_of_the_mount_and_back(make, work):
    """mv to another file system is copy and unlink."""
    account = make()
    sh(f"mv INBOX/*.eml {work}/", account.mnt)
    account.sync()
    assert account.see() == {}
    assert len(list(work.glob("*.eml"))) == 6
    sh(f"mv {work}/*.eml Archive/", account.mnt)
    account.sync(account.archive)
    assert account.subjects("Archive") == [f"m{i}" for i in range(6)]
    assert sorted(m.date for m in account.see("Archive").values()) == \
        [1_000_000_000 + i for i in range(6)]
