# SPDX-License-Identifier: MIT
"""What the server refuses, or what happens underneath: the errno of SPEC, and nothing is lost."""
import errno
import os
import stat
import subprocess
import threading

import pytest

from support import dovecot as dovecot_module
from support import paths
from support.dovecot import wait_for
from support.write import Account, error_of, mail, refused, set_flags, sh

GONE = (errno.ENOENT, errno.ESTALE)


@pytest.fixture
def special(run_dir, certs, work):
    """special(extra="", **kw): a Dovecot with further lines in its configuration."""
    made = []

    def make(extra="", **kw):
        server = dovecot_module.Dovecot(work / f"s{len(made)}", certs=certs, **kw)
        with open(server.config, "a") as config:
            config.write(extra)
        made.append(server)
        return server.start()

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def on(special, mount, user):
    """on(server kw…) gives an account with three messages in INBOX and an empty Archive."""
    def make(extra="", options=None, fill=3, **kw):
        server = special(extra, **kw)
        account = Account(server, user)
        account.client.create("Archive")
        for i in range(fill):
            account.client.append(mail(f"m{i}"), when=1_000_000_000 + i)
        account.start = lambda: setattr(account, "daemon", mount(
            server.url(user), tls_ca=server.certs.ca, **(options or {}))) or account
        account.validity = account.client.uidvalidity()
        account.path = lambda uid: account.inbox / paths.message_name(uid, account.validity)
        return account
    return make


# --- read-only --------------------------------------------------------------------------------------


def attempts(account):
    """name -> a change, each of a message or mailbox of its own."""
    archive = account.mnt / "Archive"
    return {
        "unlink": lambda: os.unlink(account.path(1)),
        "rename": lambda: os.rename(account.path(1), archive / "x.eml"),
        "rename here": lambda: os.rename(account.path(1), account.inbox / "x.eml"),
        "create": lambda: open(account.inbox / "n.eml", "xb"),
        "truncate": lambda: os.truncate(account.path(1), 0),
        "open for writing": lambda: open(account.path(1), "r+b"),
        "setxattr": lambda: set_flags(account.path(1), "\\Seen changed"),
        "mkdir": lambda: os.mkdir(account.inbox / "sub"),
        "temporary": lambda: open(account.inbox / ".tmp", "xb"),
    }


@pytest.mark.main
def test_mounted_read_only(dovecot, mount, user):
    with dovecot.client(user) as client:
        client.append(mail("m0"))
        client.create("Archive")
    account = Account(dovecot, user, mount(user, ro=True))
    account.path = lambda uid: account.inbox / account.name(uid)
    before = account.see()
    for name, attempt in attempts(account).items():
        with refused(errno.EROFS):
            attempt()
    for attempt in (lambda: os.rmdir(account.mnt / "Archive"),
                    lambda: os.rename(account.mnt / "Archive", account.mnt / "New")):
        with refused(errno.EROFS):
            attempt()
    assert account.see() == before and account.folders() == {"INBOX", "Archive"}


def test_no_permission(on):
    """A mailbox the ACL has read-only: no write bits, EACCES for everything, nothing is changed."""
    account = on(acl=True)
    maildir = account.server.home(account.user) / "inbox"
    (maildir / "dovecot-acl").write_text("owner lr\n")
    account.start()
    assert len(os.listdir(account.inbox)) == 3
    wait_for("the rights are known",
             lambda: stat.S_IMODE(os.stat(account.inbox).st_mode) == 0o500)
    assert stat.S_IMODE(os.stat(account.path(1)).st_mode) == 0o400
    assert not os.access(account.path(1), os.W_OK) or os.getuid() == 0
    assert stat.S_IMODE(os.stat(account.mnt / "Archive").st_mode) == 0o700
    before = account.see()
    for name, attempt in attempts(account).items():
        code = error_of(attempt)
        if code == 0:
            assert name == "open for writing"  # root may; the first write is refused
            continue
        assert code in (errno.EACCES, errno.EROFS), (name, errno.errorcode[code])
    with refused((errno.EACCES, errno.EROFS, errno.EPERM)):
        with open(account.path(1), "r+b", buffering=0) as file:
            file.write(b"x")
    # what is copied out of it needs no rights on it
    sh(f"cp INBOX/{account.path(1).name} Archive/", account.mnt)
    account.sync(account.mnt / "Archive")
    assert account.see() == before and account.subjects("Archive") == ["m0"]
    assert account.failed() == {}


def test_permission_withdrawn(on):
    """Rights that go while the mount has them: EACCES, and what was written is kept."""
    account = on(acl=True).start()
    account.daemon.allow("permi|Permi|NOPERM|ACL|refused|not on the server|read-only")
    assert len(os.listdir(account.inbox)) == 3
    home = account.server.home(account.user)
    (home / "inbox" / "dovecot-acl").write_text("owner lr\n")
    (home / "mail" / "Archive" / "dovecot-acl").write_text("owner lr\n")
    before = account.see()
    account.server.stop()
    account.server.start()
    account.daemon.allow("time|answer|unreach|connect|lost|down|server|clos")
    wait_for("the server is found again", lambda: error_of(account.path(2).read_bytes) == 0, 40)

    def change():
        os.unlink(account.path(1))
        account.sync()

    with refused((errno.EACCES, errno.EROFS)):
        change()
    wait_for("the message is back", lambda: account.path(1).exists())

    def write():
        with open(account.mnt / "Archive" / "new.eml", "xb") as file:
            file.write(mail("new"))
        account.sync(account.mnt / "Archive")

    with refused((errno.EACCES, errno.EROFS)):
        write()
    assert account.see() == before
    for name in account.failed():
        assert name.endswith("-new.eml")
        assert (account.mnt / ".mailfs" / "failed" / name).read_bytes() == mail("new")


# --- quota -------------------------------------------------------------------------------------------


@pytest.mark.main
def test_quota(on):
    """EDQUOT from close; the file stays in failed; with room it can be moved back in."""
    account = on(quota="60k").start()
    account.daemon.allow("uota|not on the server")
    (account.inbox / "fits.eml").write_bytes(mail("fits"))
    big = mail("big", 20000)
    account.sync()
    fd = os.open(account.inbox / "big.eml", os.O_CREAT | os.O_WRONLY)
    os.write(fd, big)
    with refused(errno.EDQUOT):
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    account.sync()
    assert account.subjects() == ["fits", "m0", "m1", "m2"]
    assert not (account.inbox / "big.eml").exists()
    ((name, reason),) = account.failed().items()
    assert account.daemon.counter("failed") == 1 and account.daemon.counter("queued") == 0
    assert name.endswith("-big.eml") and "uota" in reason
    failed = account.mnt / ".mailfs" / "failed" / name
    assert failed.read_bytes() == big
    with refused((errno.EDQUOT, errno.EPERM)):
        os.rename(failed, account.inbox / "again.eml")
        account.sync()
    (name,) = account.failed()
    os.unlink(account.mnt / ".mailfs" / "failed" / name)
    assert account.failed() == {}


def test_quota_in_a_burst(on, work):
    """Reached half-way: what fitted is there, the rest is in failed, and the user is told."""
    account = on(quota="40k").start()
    account.daemon.allow("uota|not on the server")
    for i in range(40):
        (work / f"{i:02d}.eml").write_bytes(mail(f"q{i:02d}", 500))
    done = sh(f"cp {work}/*.eml INBOX/", account.mnt, check=False)
    code = error_of(account.sync)
    assert done.returncode != 0 or code == errno.EDQUOT, done.stderr
    wait_for("the queue is empty", lambda: account.queue() == [])
    there = [s for s in account.subjects() if s.startswith("q")]
    kept = [account.mnt / ".mailfs" / "failed" / n for n in account.failed()]
    words = sorted(there + [p.read_bytes().split(b"Subject: ")[1][:3].decode() for p in kept])
    assert 3 < len(there) < 35
    # cp stops at no error: each file is somewhere, but for those whose creation was refused
    missing = set(f"q{i:02d}" for i in range(40)) - set(words)
    told = done.stderr.count("uota")
    assert len(words) == len(set(words)) and len(missing) <= told, (missing, done.stderr)


def test_move_over_quota(on):
    """COPY and MOVE within the quota root may fail too: the message is back in its place."""
    account = on(quota="30k", fill=0)
    for i in range(4):
        account.client.append(mail(f"m{i}", 900), "Archive")
    account.start()
    account.daemon.allow("uota|not on the server|copy")
    names = sorted(os.listdir(account.mnt / "Archive"))
    assert len(names) == 4
    with refused(errno.EDQUOT):
        for _ in range(3):
            for name in names:
                copy(account.mnt / "Archive" / name, account.inbox / f"{_}{name}")
        account.sync()
    assert account.subjects("Archive") == ["m0", "m1", "m2", "m3"]


def copy(source, target):
    """What coreutils' cp does, with its error."""
    with open(source, "rb", buffering=0) as a:
        b = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        try:
            while os.copy_file_range(a.fileno(), b, 1 << 30) > 0:
                pass
        finally:
            os.close(b)


# --- underneath ----------------------------------------------------------------------------------------


def test_mailbox_deleted_while_writing(on):
    """The mailbox goes while a file is being written to it: ENOENT, and the file is kept."""
    account = on().start()
    account.daemon.allow("exist|mailbox|not on the server|SERVERBUG")
    path = account.mnt / "Archive" / "late.eml"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(fd, mail("late"))
    account.client.delete("Archive")
    # a server that still has it selected may say no more than that something went wrong
    with refused(GONE + (errno.EIO,)):
        os.close(fd)
    wait_for("the mailbox is gone", lambda: not path.parent.exists())
    ((name, reason),) = account.failed().items()
    assert (account.mnt / ".mailfs" / "failed" / name).read_bytes() == mail("late") and reason
    account.daemon.stop()
    account.daemon.start()
    assert account.failed() == {name: reason}
    # it can be put where there is a place for it
    os.rename(account.mnt / ".mailfs" / "failed" / name, account.inbox / "late.eml")
    account.sync()
    assert account.subjects() == ["late", "m0", "m1", "m2"] and account.failed() == {}


def test_uidvalidity_changed(on):
    """What was meant for a message of the old mailbox touches none of the new one."""
    account = on().start()
    account.daemon.allow("exist|mailbox|UIDVALIDITY|gone|no longer|stale|no such")
    for i in range(3):
        account.client.append(mail(f"old{i}"), "Archive")
    archive = account.mnt / "Archive"
    wait_for("listed", lambda: len(os.listdir(archive)) == 3)
    names = sorted(os.listdir(archive))
    file = os.open(archive / names[0], os.O_RDONLY)
    half = os.open(archive / "half.eml", os.O_CREAT | os.O_WRONLY)
    os.write(half, mail("half"))
    with account.server.client(account.user) as other:
        other.delete("Archive")
        other.create("Archive")
        for i in range(3):
            other.append(mail(f"new{i}"), "Archive")
    # the old names at once, before anybody looked again
    for change in (lambda: os.unlink(archive / names[0]),
                   lambda: set_flags(archive / names[1], "\\Flagged wrong"),
                   lambda: os.rename(archive / names[2], account.inbox / "wrong.eml")):
        code = error_of(change)
        try:
            account.sync(archive)
        except OSError as error:
            code = code or error.errno
        assert code in GONE + (0,), errno.errorcode[code]
    os.close(file)
    error_of(os.close, half)
    error_of(account.sync, archive)
    seen = account.see("Archive")
    assert not any("wrong" in m.flags for m in seen.values())
    subjects = account.subjects("Archive")
    assert [s for s in subjects if s.startswith("new")] == ["new0", "new1", "new2"]
    # what was being written is in the new mailbox or kept
    assert ("half" in subjects) != (len(account.failed()) == 1)
    assert account.subjects("INBOX") == ["m0", "m1", "m2"]
    wait_for("the mount agrees", lambda: account.shown(archive) == subjects)


def test_deleted_messages_of_others(on):
    """Remove, move, replace, rmdir beside somebody else's \\Deleted: theirs stays."""
    account = on()
    for word in ("theirs0", "theirs1"):
        account.client.append(mail(word), flags="(\\Deleted)")
        account.client.append(mail(word), "Archive", flags="(\\Deleted)")
    account.start()
    os.unlink(account.path(1))
    os.rename(account.path(2), account.mnt / "Archive" / "moved.eml")
    sh(f"sed -i s/m2/edited/ {account.path(3).name}", account.inbox)
    (account.inbox / "new.eml").write_bytes(mail("new"))
    os.unlink(account.mnt / "Archive" / "moved.eml")
    with refused(errno.ENOTEMPTY):
        os.rmdir(account.mnt / "Archive")
    account.sync()
    account.sync(account.mnt / "Archive")
    for folder in ("INBOX", "Archive"):
        seen = account.subjects(folder)
        assert {"theirs0", "theirs1"} <= set(seen)
        assert sum("\\Deleted" in m.flags for m in account.see(folder).values()) == 2


# --- servers that cannot ---------------------------------------------------------------------------------

PLAIN = ("IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ NAMESPACE UNSELECT CHILDREN "
         "SPECIAL-USE LIST-EXTENDED")


@pytest.mark.parametrize("missing", ["MOVE", "UIDPLUS MOVE", "everything"])
def test_weak_server(on, missing):
    """Without MOVE, without UIDPLUS too, and with nothing but RFC 3501: the same in the end."""
    capability = {"MOVE": PLAIN + " UIDPLUS MULTIAPPEND", "UIDPLUS MOVE": PLAIN,
                  "everything": "IMAP4rev1"}[missing]
    account = on(f"imap_capability = {capability}\n", fill=12)
    account.client.store(11, "+FLAGS", "(\\Deleted)")
    account.client.imap.unselect()
    account.start()
    archive = account.mnt / "Archive"
    sh(f"mv {account.path(1).name} {account.path(2).name} {account.path(3).name} ../Archive/",
       account.inbox)
    sh(f"rm {account.path(4).name} {account.path(5).name}", account.inbox)
    (account.inbox / "new.eml").write_bytes(mail("new"))
    sh(f"cp {account.path(6).name} ../Archive/copy.eml", account.inbox)
    sh(f"sed -i s/m6/edited/ {account.path(7).name}", account.inbox)
    set_flags(account.path(8), "\\Flagged word")
    account.sync()
    account.sync(archive)
    wait_for("the queue is empty", lambda: account.queue() == [])
    words = sorted(account.words(account.inbox))
    assert words == sorted(["m5", "m7", "m8", "m9", "m10", "m11", "edited", "new"])
    assert account.words(archive) == ["m0", "m1", "m2", "m5"]
    assert account.failed() == {}
    seen = {m.uid: m.flags for m in account.see(bodies=False).values()}
    assert seen[8] == {"\\Flagged", "word"} and seen[11] == {"\\Deleted"}
    if "UIDPLUS" in capability:
        assert sorted(account.subjects()) == words
    else:
        # hidden here and marked there, as nothing else is safe
        gone = set(seen) - {int(os.getxattr(p, "user.imap.uid")) for p in account.inbox.iterdir()}
        assert {1, 2, 3, 4, 5, 7} <= gone and all("\\Deleted" in seen[u] for u in gone)
    assert account.subjects("Archive") == ["m0", "m1", "m2", "m5"]
    # hidden stays hidden, also when looked at anew
    account.daemon.stop()
    account.daemon.start()
    assert sorted(account.words(account.inbox)) == words
    assert account.words(archive) == ["m0", "m1", "m2", "m5"]


def test_server_gone_while_writing(on):
    """Unreachable: an error within timeout, the file is kept; what comes back later is finished."""
    account = on(options={"timeout": 6}).start()
    account.daemon.allow("time|answer|unreach|connect|lost|down|server|refused|clos")
    assert len(os.listdir(account.inbox)) == 3
    account.server.freeze()
    fd = os.open(account.inbox / "patient.eml", os.O_CREAT | os.O_WRONLY)
    os.write(fd, mail("patient"))
    with refused((errno.ETIMEDOUT, errno.EHOSTUNREACH)):
        os.close(fd)
    account.server.thaw()

    def settled():
        return account.queue() == [] and ("patient" in account.subjects()) != bool(account.failed())

    wait_for("it is on the server or in failed", settled, 40, 0.2)
    assert account.subjects().count("patient") <= 1


def test_server_gone_in_a_burst(on, work):
    """The server stops in the middle and comes back: everything arrives, once."""
    account = on(options={"timeout": 6}, fill=60).start()
    account.daemon.allow("time|answer|unreach|connect|lost|down|server|refused|clos")
    assert len(os.listdir(account.inbox)) == 60
    done = threading.Event()

    def disturb():
        account.server.freeze()
        done.wait(1)
        account.server.thaw()

    thread = threading.Thread(target=disturb)
    for i in range(60):
        (work / f"{i}.eml").write_bytes(mail(f"n{i}"))
    moved = subprocess.Popen(["bash", "-c", f"mv INBOX/*.eml Archive/; cp {work}/*.eml INBOX/"],
                             cwd=account.mnt, stderr=subprocess.PIPE)
    thread.start()
    err = moved.communicate(timeout=60)[1].decode()
    done.set()
    thread.join(20)
    wait_for("the queue is empty", lambda: error_of(account.sync) == 0 and account.queue() == [],
             40, 0.2)
    everywhere = account.subjects() + account.subjects("Archive")
    kept = [(account.mnt / ".mailfs" / "failed" / n).read_bytes().split(b"Subject: ")[1]
            .split(b"\r\n")[0].decode() for n in account.failed()]
    refused_ = err.count("cannot") + err.count("error") + err.count("failed")
    missing = {f"m{i}" for i in range(60)} - set(everywhere)
    assert not missing
    lost = {f"n{i}" for i in range(60)} - set(everywhere) - set(kept)
    assert len(lost) <= refused_, (lost, err)
    assert len(everywhere) == len(set(everywhere))
