# SPDX-License-Identifier: MIT
"""Bursts over a line with 50 ms there and back: few commands, everything seen here at once, and all
of it on the server in the end."""
import os
import signal
import subprocess

import pytest

from support.dovecot import wait_for
from support.mount import SANITIZED
from support.write import Account, Wire, flags, mail, set_flags, sh

pytestmark = pytest.mark.main
MS = 25
FEW = 60  # commands; one round trip each would be hundreds


@pytest.fixture
def wires():
    """Lines that are taken down after the mounts that use them."""
    made = []
    yield made
    for wire in made:
        wire.stop()


@pytest.fixture
def make(wires, mount, dovecot, user, work):
    """An account at the end of a long line, whose folders have so many messages."""
    def build(fill, ms=MS, **options):
        for path, n in fill.items():
            folder = path.split("/") if path != "INBOX" else ()
            dovecot.fill(user, range(n), *folder, new_every=0)
        wires.append(Wire(work, dovecot.imap, ms))
        account = Account(dovecot, user)
        account.daemon = mount(f"imap://{user}@127.0.0.1:{wires[0].port}/", tls_ca=dovecot.certs.ca,
                               refresh=30, **options)
        for path, n in fill.items():
            wait_for("listed", lambda path=path, n=n: len(os.listdir(account.mnt / path)) >= n)
        return account

    return build


class Count:
    """Commands and round trips of its body."""

    def __init__(self, account):
        self.account = account

    def __enter__(self):
        self.before = self.account.daemon.status()
        return self

    def __exit__(self, *_):
        after = self.account.daemon.status()
        self.commands = after["commands"] - self.before["commands"]
        self.trips = after["round_trips"] - self.before["round_trips"]


def test_move(make):
    """Names are kept, also after a remount."""
    account = make({"INBOX": 1000, "Archive": 0})
    archive = account.mnt / "Archive"
    names = sorted(os.listdir(account.inbox))
    truth = sorted(m.sha256 for m in account.see().values())
    with Count(account) as count:
        sh("mv INBOX/*.eml Archive/", account.mnt)
        assert os.listdir(account.inbox) == []
        assert sorted(os.listdir(archive)) == names
        account.sync(archive)
    assert count.commands < FEW
    assert account.see() == {}
    assert sorted(m.sha256 for m in account.see("Archive").values()) == truth
    assert sorted(os.listdir(archive)) == names
    assert account.queue() == [] and account.failed() == {}
    account.daemon.stop()
    account.daemon.start()
    assert sorted(os.listdir(archive)) == names


def test_remove(make):
    account = make({"many": 600})
    many = account.mnt / "many"
    with Count(account) as count:
        sh("rm *.eml", many)
        assert os.listdir(many) == []
        account.sync(many)
    assert count.commands < FEW
    assert account.see("many") == {} and len(account.see("Trash", bodies=False)) == 600


def test_rm_r(make):
    account = make({"Old": 100, "Old/2019": 100, "Old/2020": 100})
    with Count(account) as count:
        sh("rm -r Old", account.mnt)
    assert count.commands < 2 * FEW  # nearly FEW are for the mailboxes, looked into and removed one by one
    assert not {f for f in account.folders() if f.startswith("Old")}
    assert len(account.see("Trash", bodies=False)) == 300


def test_flags(make):
    account = make({"many": 400})
    many = account.mnt / "many"
    with Count(account) as count:
        for i, name in enumerate(sorted(os.listdir(many))):
            set_flags(many / name, f"\\Flagged burst{i % 2}")
            assert flags(many / name) == {"\\Flagged", f"burst{i % 2}"}
        account.sync(many)
    assert count.commands < 2 * FEW
    seen = account.see("many", bodies=False)
    assert [seen[uid].flags for uid in sorted(seen)] == \
        [{"\\Flagged", f"burst{i % 2}"} for i in range(400)]


def test_create(make, work):
    """In the order they were written, with their dates; names kept."""
    account = make({"INBOX": 0})
    source = work / "source"
    source.mkdir()
    for i in range(300):
        (source / f"{i:03d}.eml").write_bytes(mail(f"n{i:03d}"))
        os.utime(source / f"{i:03d}.eml", (900_000_000 + i, 900_000_000 + i))
    with Count(account) as count:
        sh(f"cp -p {source}/*.eml INBOX/", account.mnt)
        names = sorted(os.listdir(account.inbox))
        assert names == [f"{i:03d}.eml" for i in range(300)]
        assert account.words(account.inbox) == [f"n{i:03d}" for i in range(300)]
        account.sync()
    assert count.trips < FEW
    seen = account.see()
    assert [seen[uid].date for uid in sorted(seen)] == [900_000_000 + i for i in range(300)]
    assert account.subjects() == [f"n{i:03d}" for i in range(300)]
    assert sorted(os.listdir(account.inbox)) == names
    account.daemon.stop()
    account.daemon.start()
    assert sorted(os.listdir(account.inbox)) == names
    assert (account.inbox / "123.eml").read_bytes() == mail("n123")


def test_rsync(make, work):
    """Temporary names, renames, dates after the fact: still few, and a second run finds nothing."""
    account = make({"INBOX": 0})
    source = work / "source"
    source.mkdir()
    for i in range(150):
        (source / f"{i:03d}.eml").write_bytes(mail(f"n{i:03d}"))
        os.utime(source / f"{i:03d}.eml", (900_000_000 + i, 900_000_000 + i))
        os.setxattr(source / f"{i:03d}.eml", "user.imap.flags", b"\\Seen word" if i % 2 else b"")
    with Count(account) as count:
        sh(f"rsync -rltX --omit-dir-times {source}/ INBOX/", account.mnt)
        account.sync()
    assert count.trips < FEW
    assert sh(f"rsync -rltXni --omit-dir-times {source}/ INBOX/", account.mnt) == ""
    seen = account.see()
    assert [(seen[u].date, seen[u].flags) for u in sorted(seen)] == \
        [(900_000_000 + i, {"\\Seen", "word"} if i % 2 else set()) for i in range(150)]
    assert account.subjects() == [f"n{i:03d}" for i in range(150)]


def test_copy(make):
    account = make({"INBOX": 200, "Archive": 0})
    with Count(account) as count:
        sh("cp INBOX/*.eml Archive/", account.mnt)
        account.sync(account.mnt / "Archive")
    assert count.commands < FEW
    assert sorted(m.sha256 for m in account.see("Archive").values()) == \
        sorted(m.sha256 for m in account.see().values())


def test_sync_option(make):
    """-o sync: nothing is acknowledged before the server has it."""
    account = make({"INBOX": 30, "Archive": 0}, sync=True)
    names = sorted(os.listdir(account.inbox))
    for i, name in enumerate(names):
        os.rename(account.inbox / name, account.mnt / "Archive" / name)
        if i % 10 == 0:
            assert len(account.see("Archive", bodies=False)) == i + 1
    assert len(account.see("Archive", bodies=False)) == 30


@pytest.mark.parametrize("how", ["unmount", signal.SIGTERM], ids=["unmount", "SIGTERM"])
def test_going_down_drains(make, work, how):
    account = make({"INBOX": 200, "Archive": 0})
    for i in range(50):
        (work / f"{i}.eml").write_bytes(mail(f"n{i}"))
    sh(f"mv INBOX/*.eml Archive/; cp {work}/*.eml INBOX/", account.mnt)
    account.daemon.stop(how=how)
    assert len(account.see("Archive", bodies=False)) == 200 and len(account.see()) == 50


def test_killed(make, work):
    """kill -9 in the middle: the next run finishes it, no message is lost and none is there twice."""
    account = make({"INBOX": 300, "Archive": 0})
    truth = sorted(m.sha256 for m in account.see().values())
    for i in range(50):
        (work / f"{i}.eml").write_bytes(mail(f"n{i}"))
    sh(f"mv INBOX/*.eml Archive/; mkdir New; cp {work}/*.eml New/", account.mnt)
    account.daemon.kill()
    account.daemon.start()
    account.sync(account.mnt)
    wait_for("the queue is empty", lambda: account.queue() == [])
    assert account.see() == {}
    assert sorted(m.sha256 for m in account.see("Archive").values()) == truth
    assert account.subjects("New") == sorted(f"n{i}" for i in range(50))
    assert account.failed() == {}


def test_killed_while_others_list(make):
    """Whatever it was doing for whom, the daemon ends when it is killed, and its mount with it. To drop a name
    the kernel waits for the directory, even in a process that is being killed: were a request holding it that
    nobody will answer any more, both would wait for ever."""
    account = make({"INBOX": 400, "Archive": 0}, ms=0)
    truth = sorted(m.sha256 for m in account.see().values())
    for moved in (30, 60, 90, 120, 150, 180):
        here, there = ("INBOX", "Archive") if moved % 60 else ("Archive", "INBOX")
        scripts = [f"find {here} -name '*.eml' -exec mv -t {there} {{}} +",
                   f"while ls -l {there} {here}; do :; done"]
        running = [subprocess.Popen(["sh", "-c", script], cwd=account.mnt, stdout=subprocess.DEVNULL,
                                    stderr=subprocess.DEVNULL) for script in scripts]
        wait_for("some are moved", lambda: running[0].poll() is not None
                 or len(account.see(there, bodies=False)) >= moved)
        account.daemon.kill()
        for process in running:
            process.wait(20)
        account.daemon.start()
        wait_for("the queue is empty", lambda: account.queue() == [])
    found = [m.sha256 for name in ("INBOX", "Archive") for m in account.see(name).values()]
    assert sorted(found) == truth
