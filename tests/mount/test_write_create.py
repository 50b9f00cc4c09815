# SPDX-License-Identifier: MIT
"""Files that become messages: cp, >, install, tar, rsync, dd, and what is refused."""
import errno
import os
import stat
import subprocess

import pytest

from support import paths
from support.dovecot import wait_for
from support.write import Account, flags, mail, refused, set_flags, sh, sha


@pytest.fixture
def account(mount, dovecot, user):
    with dovecot.client(user) as client:
        client.append(mail("old"), when=1_000_000_000)
    account = Account(dovecot, user, mount(user))
    account.validity = account.client.uidvalidity()
    account.path = lambda uid: account.inbox / paths.message_name(uid, account.validity)
    return account


@pytest.fixture
def letter(work):
    path = work / "letter.eml"
    path.write_bytes(mail("letter", 50))
    os.utime(path, (800_000_000, 800_000_000))
    return path


WAYS = [
    ("cp", "cp {file} new.eml", None),
    ("cp -p", "cp -p {file} new.eml", 800_000_000),
    ("cp -a", "cp -a {file} new.eml", 800_000_000),
    ("redirect", "cat {file} > new.eml", None),
    ("tee", "tee new.eml < {file} > /dev/null", None),
    ("install", "install -m 600 {file} new.eml", None),
    ("install -p", "install -p -m 600 {file} new.eml", 800_000_000),
    ("dd", "dd if={file} of=new.eml bs=100 status=none", None),
    ("dd fsync", "dd if={file} of=new.eml bs=100 conv=fsync status=none", None),
    ("rsync", "rsync {file} new.eml", None),
    ("rsync -a", "rsync -a {file} new.eml", 800_000_000),
    ("rsync --inplace", "rsync -a --inplace {file} new.eml", None),
    ("tar", "tar c -C {dir} --transform s/letter/new/ letter.eml | tar x", 800_000_000),
    ("mv", "cp -p {file} {dir}/other; mv {dir}/other new.eml", 800_000_000),
    ("touch and fill", "touch new.eml; cat {file} >> new.eml", None),
    ("temporary name", "cat {file} > .new.tmp; mv .new.tmp new.eml", None),
    ("part", "cat {file} > new.eml.part; mv new.eml.part new.eml", None),
    ("other name first", "cat {file} > first.eml; mv first.eml new.eml", None),
]


@pytest.mark.main
@pytest.mark.parametrize("script,date", [w[1:] for w in WAYS], ids=[w[0] for w in WAYS])
def test_ways(account, letter, script, date):
    sh(script.format(file=letter, dir=letter.parent), account.inbox)
    new = account.inbox / "new.eml"
    assert new.read_bytes() == letter.read_bytes()
    assert set(os.listdir(account.inbox)) == {"new.eml", account.path(1).name}
    account.sync()
    seen = account.see()
    assert sorted(m.sha256 for m in seen.values()) == sorted(
        [sha(mail("old")), sha(letter.read_bytes())])
    uid = max(seen)
    if date:
        assert seen[uid].date == date and int(os.stat(new).st_mtime) == date
    assert account.path(uid).read_bytes() == letter.read_bytes()
    assert set(os.listdir(account.inbox)) == {"new.eml", account.path(1).name}
    assert account.failed() == {} and account.queue() == []


@pytest.mark.parametrize("name", ["new.eml", "old.eml"])
def test_read_half_written(account, letter, name):
    """Somebody reads and closes what another program is still writing: that is no commit."""
    whole = letter.read_bytes()
    if name == "old.eml":
        os.rename(account.path(1), account.inbox / name)
    with open(account.inbox / name, "wb", buffering=0) as writer:
        writer.write(whole[:len(whole) // 2])
        sh(f"cat {name} > /dev/null; wc -c {name}; tail -n 1 {name}", account.inbox)
        account.sync()
        assert [m.sha256 for m in account.see().values()] == [sha(mail("old"))]
        assert account.failed() == {} and account.queue() == []
        writer.write(whole[len(whole) // 2:])
    assert (account.inbox / name).read_bytes() == whole
    account.sync()
    kept = [sha(mail("old"))] if name == "new.eml" else []
    assert sorted(m.sha256 for m in account.see().values()) == sorted(kept + [sha(whole)])
    assert account.failed() == {}


def test_written_by_a_child(account, letter):
    """Written by a program that ends, closed by its parent, whose turn it never was to write."""
    sh(f"exec 3> new.eml; head -n 20 {letter} >&3; tail -n +21 {letter} >&3; exec 3>&-",
       account.inbox)
    account.sync()
    seen = sorted(m.sha256 for m in account.see().values())
    assert seen == sorted([sha(mail("old")), sha(letter.read_bytes())])


def test_line_ends(account):
    """Bare LF becomes CRLF on the way out; a message is read back as it was written or as it is."""
    text = mail("unix", 20).replace(b"\r\n", b"\n")
    (account.inbox / "unix.eml").write_bytes(text)
    account.sync()
    stored = account.client.body(2)
    assert stored == mail("unix", 20)
    fresh = (account.inbox / "unix.eml")
    wait_for("what is read is what is stored", lambda: os.stat(fresh).st_size in
             (len(stored), len(text)))
    account.daemon.stop()
    account.daemon.start()
    assert fresh.read_bytes() == stored and os.stat(fresh).st_size == len(stored)


def test_eol_lf(mount, dovecot, user):
    """With eol=lf what is written is what is read, and the server has CRLF."""
    account = Account(dovecot, user, mount(user, eol="lf"))
    text = mail("unix", 20).replace(b"\r\n", b"\n")
    (account.inbox / "unix.eml").write_bytes(text)
    account.sync()
    assert (account.inbox / "unix.eml").read_bytes() == text
    assert os.stat(account.inbox / "unix.eml").st_size == len(text)
    assert account.client.body(1) == mail("unix", 20)


REFUSED = [("NUL", b"Subject: a\r\n\r\na\0b\r\n"), ("no header", b"just some text\r\nand more\r\n"),
           ("binary", bytes(range(256)) * 10), ("blank first", b"\r\n\r\nbody\r\n")]


@pytest.mark.parametrize("data", [d for _, d in REFUSED], ids=[n for n, _ in REFUSED])
def test_refused(account, data):
    """EINVAL from close; the bytes stay where they can be read, with the reason."""
    account.daemon.allow("refused|header|NUL|empty")
    before = account.see()
    fd = os.open(account.inbox / "bad.eml", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    os.write(fd, data)
    with refused(errno.EINVAL):
        os.close(fd)
    assert not (account.inbox / "bad.eml").exists()
    ((name, reason),) = account.failed().items()
    assert name.endswith("-bad.eml") and reason
    path = account.mnt / ".mailfs" / "failed" / name
    assert path.read_bytes() == data
    account.sync()
    assert account.see() == before
    account.daemon.stop()
    account.daemon.start()
    assert path.read_bytes() == data
    assert os.getxattr(path, "user.mailfs.error").decode() == reason
    os.unlink(path)
    assert account.failed() == {}
    account.daemon.stop()
    account.daemon.start()
    assert account.failed() == {}


def test_refused_is_repaired(account, work):
    """Taken out of failed, mended, put back."""
    account.daemon.allow("refused|header")
    sh("echo no header here > bad.eml || true", account.inbox)
    (name,) = account.failed()
    sh(f"(printf 'Subject: mended\\r\\n\\r\\n'; cat {account.mnt}/.mailfs/failed/{name}) "
       f"> good.eml", account.inbox)
    account.sync()
    assert account.subjects() == ["mended", "old"]


def test_empty_file(account):
    """`touch` makes a file to be filled; one that nobody fills is no message."""
    account.daemon.allow("empty|refused")
    path = account.inbox / "empty.eml"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    with refused(errno.EINVAL):
        os.fsync(fd)
    os.close(fd)
    assert len(account.see()) == 1
    assert not path.exists()
    assert any(n.endswith("-empty.eml") for n in account.failed())


def test_into_a_message(account):
    """Messages are immutable."""
    path, body = account.path(1), mail("old")
    for flag, code in ((os.O_WRONLY, errno.EPERM), (os.O_RDWR, errno.EPERM),
                       (os.O_WRONLY | os.O_APPEND, errno.EPERM)):
        fd = os.open(path, flag)
        try:
            with refused(code):
                os.write(fd, b"X")
            with refused(code):
                os.pwrite(fd, b"X", 20)
            with refused(code):
                os.ftruncate(fd, 10)
            with refused(code):
                os.ftruncate(fd, 100000)
        finally:
            os.close(fd)
    with refused(errno.EPERM):
        with open(path, "ab") as file:
            file.write(b"more")
    assert path.read_bytes() == body and account.client.body(1) == body


def test_unsupported(account):
    path = account.path(1)
    for call in (lambda: os.link(path, account.inbox / "hard"),
                 lambda: os.symlink("x", account.inbox / "soft"),
                 lambda: os.mkfifo(account.inbox / "fifo"),
                 lambda: os.mknod(account.inbox / "node", 0o600 | stat.S_IFSOCK)):
        with refused(errno.EPERM):
            call()
    os.chmod(path, 0o644)
    os.chown(path, os.getuid(), os.getgid())
    os.chown(path, os.getuid(), -1)
    os.utime(path, (5, 5))
    with refused(errno.EPERM):
        os.chown(path, 12345, -1)
    assert os.stat(path).st_mtime == 1_000_000_000
    assert os.listdir(account.inbox) == [path.name]


def test_not_in_the_root(account):
    """There is no mailbox to put it in."""
    with refused((errno.EPERM, errno.EACCES)):
        open(account.mnt / "letter.eml", "wb")
    with refused((errno.EPERM, errno.EACCES)):
        os.rename(account.path(1), account.mnt / "letter.eml")
    with refused((errno.EPERM, errno.EACCES)):
        open(account.mnt / ".mailfs" / "letter.eml", "wb")
    assert account.path(1).exists()


@pytest.mark.main
def test_fsync_means_stored(account):
    fd = os.open(account.inbox / "durable.eml", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(fd, mail("durable"))
        os.fsync(fd)
        assert account.subjects() == ["durable", "old"]
        os.fsync(fd)
    finally:
        os.close(fd)
    account.sync()
    assert account.subjects() == ["durable", "old"], "a clean flush costs nothing"


def test_written_again_after_fsync(account):
    """A file that is written on is appended anew, the older copy retired."""
    fd = os.open(account.inbox / "growing.eml", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(fd, mail("first"))
        os.fsync(fd)
        os.write(fd, b"and more\r\n")
    finally:
        os.close(fd)
    account.sync()
    assert (account.inbox / "growing.eml").read_bytes() == mail("first") + b"and more\r\n"
    assert sorted(m.sha256 for m in account.see().values()) == sorted(
        [sha(mail("old")), sha(mail("first") + b"and more\r\n")])
    wait_for("the older copy is in the trash", lambda: account.subjects("Trash") == ["first"])


def test_flags_before_it_is_sent(account, work):
    """setfattr on a file that is still being written; cp --preserve=xattr."""
    path = account.inbox / ".hidden.tmp"
    path.write_bytes(mail("flagged"))
    set_flags(path, "\\Flagged early")
    os.utime(path, (900_000_000, 900_000_000))
    assert flags(path) == {"\\Flagged", "early"}
    assert len(account.see()) == 1
    os.rename(path, account.inbox / "flagged.eml")
    account.sync()
    message = account.see()[2]
    assert (message.flags, message.date) == ({"\\Flagged", "early"}, 900_000_000)
    # flags given after the close of a file that is sent already
    (account.inbox / "later.eml").write_bytes(mail("later"))
    set_flags(account.inbox / "later.eml", "\\Seen late")
    account.sync()
    assert account.see()[3].flags == {"\\Seen", "late"}
    outside = work / "outside.eml"
    outside.write_bytes(mail("outside"))
    os.setxattr(outside, "user.imap.flags", b"\\Answered out")
    sh(f"cp --preserve=xattr,timestamps {outside} INBOX/", account.mnt)
    account.sync()
    assert account.see()[max(account.see())].flags == {"\\Answered", "out"}


def test_temporary_names_stay_local(account):
    names = [".dot", "backup~", ".x.eml.swp", "4913", ".goutputstream-ABCDEF", "x.part", ".DS_Store",
             ".letter.eml.aB3xYz"]
    for name in names:
        (account.inbox / name).write_bytes(mail("local"))
        assert (account.inbox / name).read_bytes() == mail("local")
    assert set(names) < set(os.listdir(account.inbox))
    account.sync()
    assert account.subjects() == ["old"]
    account.daemon.stop()
    account.daemon.start()
    assert set(names) < set(os.listdir(account.inbox))
    assert (account.inbox / ".dot").read_bytes() == mail("local")
    for name in names:
        os.unlink(account.inbox / name)
    assert os.listdir(account.inbox) == [account.path(1).name]
    assert account.subjects() == ["old"] and account.failed() == {}


def test_removed_while_written(account):
    fd = os.open(account.inbox / "short.eml", os.O_CREAT | os.O_RDWR)
    os.write(fd, mail("short"))
    os.unlink(account.inbox / "short.eml")
    os.lseek(fd, 0, 0)
    os.close(fd)
    account.sync()
    assert account.subjects() == ["old"] and account.failed() == {}


def test_read_what_is_being_written(account):
    with open(account.inbox / "w.eml", "w+b", buffering=0) as file:
        file.write(mail("one", 1000))
        assert os.stat(account.inbox / "w.eml").st_size == len(mail("one", 1000))
        file.seek(0)
        assert file.read() == mail("one", 1000)
        file.seek(0)
        file.write(b"FROM")
        file.truncate(len(mail("one", 1000)) - 5)
    want = (b"FROM" + mail("one", 1000)[4:])[:-5]
    assert (account.inbox / "w.eml").read_bytes() == want
    account.sync()
    assert sorted(m.size for m in account.see().values())[1] in (len(want), len(want) + 2)


def test_two_of_a_name(account):
    with refused(errno.EEXIST):
        os.open(account.path(1), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    (account.inbox / "a.eml").write_bytes(mail("a"))
    with refused(errno.EEXIST):
        os.open(account.inbox / "a.eml", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    (account.inbox / "a.eml").write_bytes(mail("b"))
    account.sync()
    assert account.words(account.inbox) == ["b", "old"]
    assert account.subjects() == ["b", "old"]
    assert os.listdir(account.inbox).count("a.eml") == 1


def test_big(account, work):
    """Several megabytes go out and come back the same; nothing is read back over the wire."""
    data = b"Subject: big\r\n\r\n" + b"".join(b"%060d\r\n" % i for i in range(150_000))
    (work / "big").write_bytes(data)
    before = account.daemon.counter("bytes_in")
    sh(f"cp {work}/big INBOX/big.eml", account.mnt)
    account.sync()
    assert sha((account.inbox / "big.eml").read_bytes()) == sha(data)
    assert account.daemon.counter("bytes_in") - before < len(data) // 10
    assert max(m.size for m in account.see().values()) == len(data)


@pytest.mark.main
def test_unmount_drains(account, work):
    for i in range(100):
        (work / f"{i:03d}.eml").write_bytes(mail(f"n{i:03d}"))
    sh(f"cp {work}/*.eml INBOX/", account.mnt)
    account.daemon.stop()
    assert len(account.see()) == 101


def test_second_client_sees_it(account):
    with account.server.client(account.user) as other:
        other.select()
        (account.inbox / "seen.eml").write_bytes(mail("seen"))
        account.sync()
        other.ok(other.imap.noop())
        assert other.imap.response("EXISTS")[1][-1] == b"2"


def test_mmap_and_sendfile(account, work):
    """Other ways bytes come in."""
    import mmap
    (work / "file").write_bytes(mail("sent", 5000))
    with open(work / "file", "rb") as source, open(account.inbox / "sf.eml", "wb") as target:
        size = os.fstat(source.fileno()).st_size
        done = 0
        while done < size:
            done += os.sendfile(target.fileno(), source.fileno(), done, size - done)
    with open(account.inbox / "mm.eml", "w+b") as file:
        body = mail("mapped", 5000)
        file.truncate(len(body))
        with mmap.mmap(file.fileno(), len(body)) as map_:
            map_[:] = body
            map_.flush()
    account.sync()
    assert account.subjects() == ["mapped", "old", "sent"]
    assert (account.inbox / "sf.eml").read_bytes() == mail("sent", 5000)
    assert (account.inbox / "mm.eml").read_bytes() == mail("mapped", 5000)


def test_written_anew_while_read(account):
    """The old version goes and the new one comes at any moment, and the kernel says late what it
    forgot: the writer never finds that there is none, and is never refused."""
    path = account.inbox / "again.eml"
    path.write_bytes(mail("first"))
    reader = subprocess.Popen(["sh", "-c", f"while :; do read line <'{path}'; done"],
                              stderr=subprocess.DEVNULL)
    try:
        for i in range(300):
            path.write_bytes(mail(f"version {i}"))
    finally:
        reader.kill()
        reader.wait(20)
    account.sync()
    assert account.subjects() == ["old", "version 299"]
