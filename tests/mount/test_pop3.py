# SPDX-License-Identifier: MIT
"""A POP3 account as one flat mailbox: what a user sees, against a real Dovecot."""
import contextlib
import errno
import os
import poplib
import random
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time

import pytest

from support import corpus, cyrus as cyrus_module
from support.dovecot import PASSWORD, wait_for
from support.fakepop import FakePop
from support.mount import is_mounted
from test_maildir import mutt

NAME = re.compile(r"^pop-[0-9a-f]{16}\.eml$")


def login(server, user):
    """A plain client, as a phone or webmail would come."""
    context = ssl.create_default_context(cafile=str(server.certs.ca))
    poplib._MAXLINE = 1 << 20
    client = poplib.POP3_SSL("127.0.0.1", server.pop3s, timeout=30, context=context)
    client.user(user)
    client.pass_(PASSWORD)
    return client


def retrieve(client, number):
    """The bytes of RETR: poplib has taken the line ends and the dots away."""
    _, lines, _ = client.retr(number)
    return b"".join(line + b"\r\n" for line in lines)


def bodies_on(server, user):
    client = login(server, user)
    bodies = [retrieve(client, n + 1) for n in range(client.stat()[0])]
    client.quit()
    return bodies


def read(path):
    with open(path, "rb") as file:
        return file.read()


def mail(inbox):
    """Contents by name."""
    return {name: read(inbox / name) for name in os.listdir(inbox)}


def contents(inbox):
    """Those in order, while mail comes and goes; nothing, when one of them could not be read."""
    try:
        return sorted(mail(inbox).values())
    except OSError:
        return []


def run(*command, **kw):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=80, **kw)


@pytest.fixture
def pop(mount, dovecot, user):
    """pop(numbers, **options): fills the account and mounts it."""
    def make(numbers=range(30), _server=None, **options):
        server = _server or dovecot
        server.fill(user, numbers)
        options.setdefault("tls_ca", server.certs.ca)
        return mount(server.url(user, "pops"), **options)

    return make


@pytest.fixture
def fake(mount):
    """fake(messages, **options): a scripted server, and the account on it mounted."""
    made = []

    def make(messages, _start=True, **options):
        server = FakePop(messages)
        made.append(server)
        return server, mount(server.url(), _start=_start, tls="off", **options)

    yield make
    for server in made:
        server.stop()


def message(n, more=""):
    return (f"Received: by mx; Tue, 1 Nov 2022 10:00:{n % 60:02} +0000\r\nFrom: a{n}@example.org\r\n"
            f"Subject: number {n}\r\n\r\nbody {n} {more}\r\n").encode()


def drop(n):
    return [(f"id{i}", message(i)) for i in range(n)]


def on_disk(server, user):
    """What the server has, seen without a login that would be in the way."""
    return [path for sub in ("cur", "new") for path in (server.folder(user) / sub).iterdir()]


def attributes(inbox):
    return {name: (os.stat(inbox / name).st_ino, os.stat(inbox / name).st_mtime,
                   os.stat(inbox / name).st_size) for name in os.listdir(inbox)}


# --- reading ----------------------------------------------------------------------------------------


@pytest.mark.main
def test_bytes_are_those_of_retr(pop, dovecot, user):
    daemon = pop(range(60))
    inbox = daemon.mnt / "INBOX"
    assert os.listdir(daemon.mnt) == ["INBOX"]
    names = os.listdir(inbox)
    assert all(NAME.match(name) for name in names) and len(set(names)) == 60
    truth = bodies_on(dovecot, user)
    assert [read(inbox / name) for name in names] == truth  # listed in the order of the maildrop
    assert [os.stat(inbox / name).st_size for name in names] == [len(body) for body in truth]


@pytest.mark.main
def test_remount_keeps_everything(pop, dovecot, user):
    """Names, inodes, times and sizes are the same in each session and after each mount."""
    daemon = pop(range(40))
    inbox = daemon.mnt / "INBOX"
    content = mail(inbox)
    order, before = os.listdir(inbox), attributes(inbox)
    dovecot.fill(user, range(40, 45))
    wait_for("new mail is seen", lambda: len(os.listdir(inbox)) == 45)
    assert {name: value for name, value in attributes(inbox).items() if name in before} == before
    assert os.listdir(inbox)[:40] == order
    before = attributes(inbox)
    for how in (daemon.stop, daemon.kill):
        how()
        daemon.start()
        assert attributes(inbox) == before
        assert {name: read(inbox / name) for name in content} == content
        wait_for("another listing", lambda: daemon.counter("connects") > 1)
        assert attributes(inbox) == before


@pytest.mark.main
def test_rsync_twice(pop, dovecot, user, work):
    # Dovecot's LIST counts mail without a last line end two bytes short; only reading shows that.
    dovecot.fill(user, range(300), make=lambda *of: corpus.message(*of).removesuffix(b"\n") + b"\n")
    daemon = pop([], refresh=600)  # listing it anew is not counted
    for turn in range(2):
        done = run("rsync", "-ai", f"{daemon.mnt}/", f"{work}/copy/")
        assert done.returncode == 0, done.stderr
        copied = [line for line in done.stdout.splitlines() if line.startswith(">f")]
        assert len(copied) == (300, 0)[turn]
    assert mail(work / "copy" / "INBOX") == mail(daemon.mnt / "INBOX")
    daemon.stop()
    daemon.start()
    done = run("rsync", "-ai", f"{daemon.mnt}/", f"{work}/copy/")
    assert done.stdout == "" and daemon.counter("bytes_in") < 200_000


@pytest.mark.main
@pytest.mark.parametrize("walk", ["grep -rc sender .", "cat * | wc -c", "ls -t | xargs cat | wc -c"])
def test_walks_are_pipelined(pop, walk):
    """In whatever order a program walks: far fewer round trips than messages."""
    daemon = pop(range(400), refresh=600)  # listing it anew is not counted
    before = daemon.counter("round_trips")
    done = run("sh", "-c", walk, cwd=daemon.mnt / "INBOX")
    assert done.returncode == 0 and done.stdout
    assert daemon.counter("round_trips") - before < 100


def test_grep(pop, dovecot, user):
    daemon = pop(range(100))
    truth = bodies_on(dovecot, user)
    done = run("grep", "-rl", "bicycle", daemon.mnt)
    assert len(done.stdout.splitlines()) == sum(b"bicycle" in body for body in truth) > 0


def big(number, seed):
    return corpus.attachment(random.Random(number), number, (30 << 20) * 3 // 4)


@pytest.mark.main
def test_head_of_a_big_message(pop, dovecot, user):
    """Without ranges: TOP brings the start, and only who reads on gets all of it."""
    dovecot.fill(user, [1], make=big)
    daemon = pop([])
    truth, = bodies_on(dovecot, user)
    assert len(truth) > 30 << 20
    name, = os.listdir(daemon.mnt / "INBOX")
    path = daemon.mnt / "INBOX" / name
    before = daemon.counter("bytes_in")
    done = subprocess.run(["head", "-c", "1000", str(path)], capture_output=True, timeout=60)
    assert done.stdout == truth[:1000]
    assert daemon.counter("bytes_in") - before < 1 << 20
    assert 1000 <= int(os.getxattr(path, "user.mailfs.cached")) < 1 << 20
    assert read(path) == truth
    assert os.stat(path).st_size == len(truth)


def test_top_is_not_trusted(fake):
    """A server whose TOP shows something else: what is read in the end is one message, RETR's."""
    body = message(1) + b"0123456789abcdef\r\n" * 60_000
    server, daemon = fake([("a", body), ("b", body + b"more\r\n")])
    server.changes_top = True
    inbox = daemon.mnt / "INBOX"
    for name, whole in zip(os.listdir(inbox), (body, body + b"more\r\n")):
        with open(inbox / name, "rb") as file:
            file.read(100)
        wait_for("the whole message", lambda: read(inbox / name) == whole)
        assert os.stat(inbox / name).st_size == len(whole)


def test_maildir_marks_stay_here(pop, work):
    """layout=maildir: a mail program may mark mail; POP3 has no place for that but this one."""
    daemon = pop(range(5), layout="maildir")
    inbox = daemon.mnt / "INBOX"
    assert sorted(os.listdir(inbox)) == ["cur", "new", "tmp"]
    names = os.listdir(inbox / "new")
    assert len(names) == 5
    assert all(re.match(r"^\d{10}\.\d+,S=\d+$", name) for name in names)
    assert mail(inbox / "new").keys() == set(names)


# --- the account is shared ----------------------------------------------------------------------------


@pytest.mark.main
def test_others_are_not_locked_out(own_dovecot, pop, user):
    """The maildrop is locked while a session lasts: so each is short, whatever is done here."""
    server = own_dovecot(pop3_lock=True)
    daemon = pop(range(300), _server=server)
    inbox = daemon.mnt / "INBOX"
    stop, waits = threading.Event(), []

    def phone():
        """Comes again and again, and tries until it is let in."""
        while not stop.is_set():
            begun = time.monotonic()
            while True:
                try:
                    login(server, user).quit()
                    break
                except poplib.error_proto as error:
                    assert b"IN-USE" in error.args[0] or b"lock" in error.args[0].lower(), error
                    time.sleep(0.1)
            waits.append(time.monotonic() - begun)
            time.sleep(0.2)

    thread = threading.Thread(target=phone)
    thread.start()
    try:
        for name in os.listdir(inbox)[::3]:
            while True:
                try:
                    assert read(inbox / name)
                    break
                except OSError as error:  # the phone is in
                    assert error.errno == errno.EBUSY
        wait_for("it was let in again and again", lambda: len(waits) > 5, 60)  # beside `refresh`
    finally:
        stop.set()
        thread.join(40)
    assert not thread.is_alive()


@pytest.mark.main
def test_in_use(fake):
    """Somebody else holds the lock: what is known is served, what is not gives EBUSY, and later all
    is well again."""
    server, daemon = fake(drop(10))
    inbox = daemon.mnt / "INBOX"
    names = os.listdir(inbox)
    first = {name: read(inbox / name) for name in names[:1]}
    daemon.stop()  # a kill may come before the listing is on disk
    server.busy = True
    daemon.start()  # from the cache
    assert os.listdir(inbox) == names
    assert read(inbox / names[0]) == first[names[0]]
    with pytest.raises(OSError) as error:
        read(inbox / names[9])
    assert error.value.errno == errno.EBUSY
    server.busy = False
    wait_for("it works again", lambda: attempt(read, inbox / names[9]) == 0, 60, 0.2)


def attempt(function, *args):
    try:
        function(*args)
    except OSError as error:
        return error.errno
    return 0


def test_in_use_at_the_first_mount(fake):
    server, daemon = fake(drop(1), _start=False)
    server.busy = True
    done = daemon.run()
    assert done.returncode == 32 and "in use" in done.stderr.lower().replace("-", " "), done.stderr
    assert not is_mounted(daemon.mnt)


@pytest.mark.main
def test_no_uidl(fake):
    server, daemon = fake(drop(1), _start=False)
    server.has_uidl = False
    done = daemon.run()
    assert done.returncode == 32 and "UIDL" in done.stderr, done.stderr
    assert not is_mounted(daemon.mnt)


def test_twins(fake):
    """One UIDL for two messages: each keeps its name when the other goes, also over a remount."""
    server, daemon = fake([("same", message(1)), ("same", message(2)), ("c", message(3))])
    inbox = daemon.mnt / "INBOX"
    content = mail(inbox)
    assert sorted(content.values()) == [message(1), message(2), message(3)]
    daemon.stop()
    daemon.start()
    assert mail(inbox) == content


# --- changes ------------------------------------------------------------------------------------------


@pytest.mark.main
def test_rm_is_dele(pop, dovecot, user):
    daemon = pop(range(30))
    inbox = daemon.mnt / "INBOX"
    content = mail(inbox)
    names = os.listdir(inbox)
    os.unlink(inbox / names[3])
    assert bodies_on(dovecot, user) == [content[n] for n in names if n != names[3]]
    done = run("rm", *names[10:20], cwd=inbox)
    assert done.returncode == 0, done.stderr
    left = [n for n in names[:10] + names[20:] if n != names[3]]
    assert os.listdir(inbox) == left
    wait_for("the server has removed them", lambda: len(on_disk(dovecot, user)) == 19)
    daemon.stop()
    daemon.start()
    assert os.listdir(inbox) == left and mail(inbox) == {n: content[n] for n in left}
    assert bodies_on(dovecot, user) == [content[n] for n in left]


@pytest.mark.main
def test_rm_whose_quit_is_lost(fake):
    """Nobody knows what became of it until the next listing: it is then gone, or there again."""
    for fault in ("loses_quit", "ignores_quit"):
        server, daemon = fake(drop(6))
        inbox = daemon.mnt / "INBOX"
        names = os.listdir(inbox)
        setattr(server, fault, 1)
        attempt(os.unlink, inbox / names[2])
        wait_for("server and listing agree", lambda: len(server.uidls()) == len(os.listdir(inbox)))
        assert len(server.uidls()) in (5, 6)
        wait_for("the others are there",  # while it may go after all
                 lambda: {message(i) for i in (0, 1, 3, 4, 5)} <= set(contents(inbox)))


def test_rm_of_a_twin(fake):
    server, daemon = fake([("same", message(1)), ("same", message(2)), ("c", message(3))])
    inbox = daemon.mnt / "INBOX"
    content = mail(inbox)
    first = next(name for name, body in content.items() if body == message(1))
    os.unlink(inbox / first)
    assert server.removed == [("same", message(1))]
    for _ in range(2):
        assert mail(inbox) == {n: b for n, b in content.items() if n != first}
        daemon.stop()
        daemon.start()


@pytest.mark.main
def test_rm_of_stored_mail(fake):
    """The local copy goes: with a server that has it no more, with one that is away, and offline."""
    server, daemon = fake(drop(6), pop3="delete")
    inbox = daemon.mnt / "INBOX"
    wait_for("the server is empty", lambda: not server.uidls())
    names = os.listdir(inbox)
    os.unlink(inbox / names[0])
    assert stored(daemon) == 5
    server.busy = True
    os.unlink(inbox / names[1])
    daemon.stop()
    daemon.options["offline"] = True
    daemon.start()
    assert os.listdir(inbox) == names[2:]
    os.unlink(inbox / names[2])
    assert stored(daemon) == 3
    daemon.stop()
    server.busy = False
    daemon.options["offline"] = False
    shutil.rmtree(daemon.options["cache_dir"])
    daemon.start()
    wait_for("a listing", lambda: server.log.count("UIDL") > 2)
    assert os.listdir(inbox) == names[3:] and len(bodies_stored(daemon)) == 3


def test_rm_while_it_is_moved(fake):
    """What is removed while it is being stored does not come back."""
    server, daemon = fake(drop(200), pop3="delete")
    inbox = daemon.mnt / "INBOX"
    names = os.listdir(inbox)
    for name in names[::2]:
        os.unlink(inbox / name)
    wait_for("the server is empty", lambda: not server.uidls(), 60)
    wait_for("a listing", lambda: stored(daemon) == 100)
    assert os.listdir(inbox) == names[1::2]
    daemon.stop()
    daemon.start()
    assert os.listdir(inbox) == names[1::2]


@pytest.mark.main
def test_what_pop3_cannot_do(pop, work):
    daemon = pop(range(3))
    inbox = daemon.mnt / "INBOX"
    path = inbox / os.listdir(inbox)[0]
    content = mail(inbox)
    (work / "new.eml").write_bytes(message(1))

    def write(to):
        with open(to, "wb") as file:
            file.write(message(1))

    for function, *args in [(os.mkdir, daemon.mnt / "folder"), (os.mkdir, inbox / "folder"),
                            (os.rmdir, inbox), (os.rename, inbox, daemon.mnt / "other"),
                            (os.rename, path, daemon.mnt / path.name), (write, inbox / "new.eml"),
                            (write, daemon.mnt / "new.eml"), (write, path),
                            (os.truncate, path, 0), (os.link, path, inbox / "link"),
                            (os.symlink, path, inbox / "link")]:
        assert attempt(function, *args) == errno.EPERM, (function, args)
    for value in (b"\\Seen", b"work"):
        assert attempt(os.setxattr, path, "user.imap.flags", value) == errno.ENOTSUP
    done = run("cp", work / "new.eml", inbox)
    assert done.returncode != 0 and "not permitted" in done.stderr
    assert mail(inbox) == content and os.listdir(daemon.mnt) == ["INBOX"]
    assert daemon.status() and not (daemon.mnt / ".mailfs" / "failed").exists() or \
        not os.listdir(daemon.mnt / ".mailfs" / "failed")


@pytest.mark.main
def test_mutt(pop, dovecot, user, work):
    """Reads, marks (kept here only) and deletes."""
    daemon = pop(range(8), layout="maildir")
    inbox = daemon.mnt / "INBOX"
    truth = bodies_on(dovecot, user)
    out = work / "out"
    code, screen = mutt(inbox, f"<pipe-message>cat > {out}<enter><flag-message><last-entry>"
                        "<delete-message><sync-mailbox><exit>", work, args=())
    assert code == 0, screen[-1000:]
    wait_for("the last one is gone", lambda: len(on_disk(dovecot, user)) == 7)
    assert bodies_on(dovecot, user) == truth[:-1]
    assert truth[0].replace(b"\r\n", b"\n").rstrip(b"\n") in out.read_bytes().replace(b"\r\n", b"\n")
    marked = [name for name in os.listdir(inbox / "cur") if "F" in name.partition(":2,")[2]]
    assert len(marked) == 1
    wait_for("another listing", lambda: daemon.counter("connects") > 2)
    assert marked[0] in os.listdir(inbox / "cur")
    daemon.stop()
    daemon.start()
    assert marked[0] in os.listdir(inbox / "cur")


# --- offline --------------------------------------------------------------------------------------------


@pytest.mark.main
def test_offline(pop, dovecot, user):
    daemon = pop(range(20))
    inbox = daemon.mnt / "INBOX"
    names, before = os.listdir(inbox), attributes(inbox)
    cached = {name: read(inbox / name) for name in names[:10]}
    daemon.stop()
    logins = dovecot.logins(user)
    daemon.options["offline"] = True
    daemon.start()
    assert os.listdir(inbox) == names and attributes(inbox).keys() == before.keys()
    assert {name: read(inbox / name) for name in cached} == cached
    assert dovecot.logins(user) == logins
    if set(cached) != set(names):
        missing = [name for name in names if not int(os.getxattr(inbox / name, "user.mailfs.cached"))]
        assert all(attempt(read, inbox / name) == errno.EHOSTUNREACH for name in missing)


# --- pop3=delete ------------------------------------------------------------------------------------------


def stored(daemon):
    return daemon.counter("stored")


def store_dir(daemon):
    """Where the account's mail is stored."""
    directory, = (daemon.dir / "data" / "mailfs").iterdir()
    return directory


@pytest.mark.main
@pytest.mark.parametrize("eol", ["crlf", "lf"])
def test_delete_moves_everything(pop, dovecot, user, eol):
    """All mail is stored here, the server is empty, and nothing else changes for a reader: not the
    name, not the time, not with an empty cache, and not without a network."""
    dovecot.fill(user, range(40))
    truth = bodies_on(dovecot, user)
    if eol == "lf":
        truth = [body.replace(b"\r\n", b"\n") for body in truth]
    kept = pop([], eol=eol)
    before = attributes(kept.mnt / "INBOX")
    kept.stop()
    kept.options["pop3"] = "delete"
    daemon = kept.start()
    inbox = daemon.mnt / "INBOX"
    wait_for("the server is empty", lambda: not on_disk(dovecot, user))
    wait_for("the listing without them", lambda: "removed" not in daemon.log()[-50:])
    assert stored(daemon) == 40
    assert [read(inbox / name) for name in os.listdir(inbox)] == truth
    after = attributes(inbox)
    assert {n: v[:2] for n, v in after.items()} == {n: v[:2] for n, v in before.items()}
    assert [after[name][2] for name in os.listdir(inbox)] == [len(body) for body in truth]
    for path in store_dir(daemon).glob("*.eml"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert store_dir(daemon).stat().st_mode & 0o777 == 0o700
    daemon.stop()
    shutil.rmtree(daemon.options["cache_dir"])
    dovecot.fill(user, range(50, 52))
    daemon.start()
    wait_for("new mail is stored too", lambda: stored(daemon) == 42)
    wait_for("the server is empty", lambda: not on_disk(dovecot, user))
    assert [read(inbox / name) for name in os.listdir(inbox)][:40] == truth
    assert {n: v[1:] for n, v in attributes(inbox).items() if n in after} == \
        {n: v[1:] for n, v in after.items()}
    daemon.stop()
    shutil.rmtree(daemon.options["cache_dir"])
    daemon.options["offline"] = True
    daemon.start()
    assert [read(inbox / name) for name in os.listdir(inbox)][:40] == truth
    assert len(os.listdir(inbox)) == 42


@pytest.mark.main
def test_stored_mail_stays_listed_in_keep_mode(fake):
    server, daemon = fake(drop(5), pop3="delete")
    inbox = daemon.mnt / "INBOX"
    wait_for("the server is empty", lambda: not server.uidls())
    content = mail(inbox)
    daemon.stop()
    daemon.options["pop3"] = "keep"
    server.messages += [("new", message(99))]
    daemon.start()
    assert mail(inbox) == {**content, **{n: b for n, b in mail(inbox).items() if b == message(99)}}
    assert len(os.listdir(inbox)) == 6
    assert server.uidls() == ["new"]


def test_read_only_moves_nothing(fake):
    server, daemon = fake(drop(5), pop3="delete", ro=True)
    assert len(mail(daemon.mnt / "INBOX")) == 5
    wait_for("a few listings", lambda: server.n_logins > 2)
    assert len(server.uidls()) == 5 and stored(daemon) == 0


POINTS = ["keep-write", "keep-synced", "keep-renamed", "keep-directory", "keep-verified",
          "keep-removed"]


@pytest.mark.main
@pytest.mark.parametrize("point", POINTS)
def test_killed_while_moving(fake, point):
    """Wherever it dies: each message is on the server, or stored, or both; and in the end stored once."""
    truth = sorted(body for _, body in drop(12))
    server, daemon = fake(drop(12), pop3="delete", _start=False)
    for count in (1, 2, 7):
        daemon.env["MAILFS_FAILPOINT"] = f"{point}:{count}"
        with contextlib.suppress(AssertionError):  # it died before it was ready
            daemon.start()
        wait_for("it dies, or all is moved", lambda: not daemon.alive() or not server.uidls())
        n = server.n_logins
        wait_for("it dies, or comes again", lambda: not daemon.alive() or server.n_logins > n)
        if daemon in running_daemons():
            daemon.kill()
        left = [body for _, body in server.messages]
        assert set(left) | set(bodies_stored(daemon)) == set(truth)
    del daemon.env["MAILFS_FAILPOINT"]
    wait_for("the server has noticed", lambda: not server.locked)
    daemon.start()
    wait_for("the server is empty", lambda: not server.uidls())
    assert sorted(mail(daemon.mnt / "INBOX").values()) == truth
    assert sorted(bodies_stored(daemon)) == truth


def running_daemons():
    from support import mount as module
    return module.running


def bodies_stored(daemon):
    """The messages in the store, as any program can read them: behind one more header field."""
    out = []
    for path in store_dir(daemon).glob("*.eml"):
        field, _, body = path.read_bytes().partition(b"\r\n")
        match = re.match(rb"X-Mailfs-Kept: 1 .* size=(\d+) sha256=[0-9a-f]{64} id=", field)
        assert match and int(match.group(1)) == len(body)
        out.append(body)
    return out


@pytest.mark.main
def test_lost_quit(fake):
    """Whether the server has removed them only the next listing tells."""
    for fault in ("loses_quit", "ignores_quit"):
        server, daemon = fake(drop(8), pop3="delete", _start=False)
        setattr(server, fault, 1)
        daemon.start()
        wait_for("the server is empty", lambda: not server.uidls())
        assert sorted(mail(daemon.mnt / "INBOX").values()) == sorted(b for _, b in drop(8))
        assert [line for line in server.log if line.startswith("DELE")]


def test_server_that_removes_nothing(fake):
    """It is told a few times, not for ever; everything is listed once."""
    server, daemon = fake(drop(4), pop3="delete", _start=False)
    server.keeps = True
    daemon.allow("does not remove")
    daemon.start()
    wait_for("it is given up", lambda: "does not remove" in daemon.log(), 40)
    assert server.log.count("DELE 1") == 3
    assert len(os.listdir(daemon.mnt / "INBOX")) == 4


@pytest.mark.main
def test_an_id_used_again(fake):
    """Some servers begin anew with their ids: the message stored under one stays, and the new one is
    stored too before it goes."""
    server, daemon = fake([("1", message(1))], pop3="delete")
    inbox = daemon.mnt / "INBOX"
    wait_for("the server is empty", lambda: not server.uidls())
    wait_for("a listing without it", lambda: server.log.count("UIDL") > 3, 40)
    for n in (2, 3):
        with server.lock:
            server.messages.append(("1", message(n)))
        wait_for("the server is empty", lambda: not server.uidls(), 40)
        assert sorted(bodies_stored(daemon)) == [message(i + 1) for i in range(n)]
        wait_for("all are listed", lambda: contents(inbox) == [message(i + 1) for i in range(n)])
    content = mail(inbox)
    daemon.stop()
    daemon.start()
    assert mail(inbox) == content


def test_damaged_store(fake):
    """A file that was cut is not shown as a message; what the server still has is stored anew."""
    server, daemon = fake(drop(3), pop3="delete")
    wait_for("the server is empty", lambda: not server.uidls())
    daemon.stop()
    path = sorted(store_dir(daemon).glob("*.eml"))[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    daemon.allow("is damaged")
    daemon.start()
    assert stored(daemon) == 2 and "damaged" in daemon.log()
    assert path.read_bytes() == whole[:-5]
    daemon.stop()
    body = whole.partition(b"\r\n")[2]
    server.messages.append((next(u for u, b in drop(3) if b == body), body))
    daemon.start()
    wait_for("it is stored again", lambda: stored(daemon) == 3)
    assert sorted(bodies_stored(daemon)) == sorted(b for _, b in drop(3))


def test_disk_full(fake):
    """What cannot be stored stays on the server."""
    server, daemon = fake(drop(3), pop3="delete", _start=False)
    daemon.allow("cannot be stored")
    directory = daemon.dir / "data" / "mailfs"
    directory.mkdir(parents=True, mode=0o700)
    done = run("mount", "-t", "tmpfs", "-o", "size=8k,mode=700", "none", directory)
    if done.returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        server.messages = [(f"id{i}", message(i, "x" * 60_000)) for i in range(3)]
        daemon.start()
        wait_for("it is told", lambda: "cannot be stored" in daemon.log())
        assert len(server.uidls()) == 3 and not server.removed
        assert len(mail(daemon.mnt / "INBOX")) == 3
        daemon.stop()
    finally:
        run("umount", directory)


@pytest.mark.main
def test_second_mount_refused(fake, mount):
    """Two programs on one store would each think that it has it alone."""
    server, daemon = fake(drop(2), pop3="delete")
    other = mount(server.url(), _start=False, tls="off", pop3="delete")
    other.env["XDG_DATA_HOME"] = daemon.env["XDG_DATA_HOME"]
    done = other.run()
    assert done.returncode == 32 and "local storage" in done.stderr, done.stderr


# --- servers that hide mail ---------------------------------------------------------------------------------


@pytest.mark.main
def test_hidden_mail_is_pinned(fake):
    """Gmail's way: what was sent by RETR is not listed again. Then it is stored here, and stays."""
    server, daemon = fake(drop(10))
    server.hides = True
    inbox = daemon.mnt / "INBOX"
    names = os.listdir(inbox)
    chosen = {name: read(inbox / name) for name in names[:2]}
    wait_for("they are hidden", lambda: len(server.uidls()) < 10, 30)
    wait_for("all are that were sent, and stored", lambda: not server.sent & set(server.messages) and
             stored(daemon) >= 10 - len(server.uidls()), 30)
    assert os.listdir(inbox) == names
    daemon.stop()
    shutil.rmtree(daemon.options["cache_dir"])
    daemon.start()
    assert sorted(os.listdir(inbox)) == sorted(names)
    assert {name: read(inbox / name) for name in chosen} == chosen


def test_mail_removed_elsewhere_is_gone(fake):
    """Only a server that drops all that was read hides it; some of it missing was removed by somebody."""
    server, daemon = fake(drop(6))
    inbox = daemon.mnt / "INBOX"
    content = mail(inbox)
    wait_for("the session ends", lambda: "QUIT" in server.log)
    time.sleep(3.5)  # a listing may be of a session so much older
    with server.lock:
        del server.messages[2]
    wait_for("it is gone", lambda: len(os.listdir(inbox)) == 5)
    assert set(os.listdir(inbox)) < set(content) and stored(daemon) == 0


# --- another real server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cyrus(run_dir, certs):
    root = cyrus_module.unpack(run_dir)
    if root is None:
        pytest.skip("the packages of Cyrus cannot be had")
    server = cyrus_module.Cyrus(run_dir / "cp", root, certs=certs).start()
    yield server
    server.stop()


@pytest.mark.xdist_group("cyrus")
@pytest.mark.limit(300)
@pytest.mark.parametrize("scheme", ["pop", "pops"])
def test_cyrus(cyrus, mount, user, work, scheme):
    """The whole way on Cyrus, which locks the maildrop and hides the order of its UIDLs."""
    cyrus.fill(user, range(60))
    daemon = mount(cyrus.url(user, scheme), tls_ca=cyrus.certs.ca)
    inbox = daemon.mnt / "INBOX"
    names = os.listdir(inbox)
    content = mail(inbox)
    assert len(names) == 60 and all(NAME.match(name) for name in names)
    before = attributes(inbox)
    daemon.stop()
    assert [content[name] for name in names] == bodies_on(cyrus, user)
    daemon.start()
    assert attributes(inbox) == before and mail(inbox) == content
    os.unlink(inbox / names[7])
    assert os.listdir(inbox) == names[:7] + names[8:]
    done = run("rsync", "-ai", f"{inbox}/", f"{work}/copy/")
    assert done.returncode == 0, done.stderr
    assert run("rsync", "-ai", f"{inbox}/", f"{work}/copy/").stdout == ""
    daemon.stop()
    assert bodies_on(cyrus, user) == [content[n] for n in names if n != names[7]]
    daemon.options["pop3"] = "delete"
    daemon.start()
    wait_for("all is stored", lambda: stored(daemon) == 59)
    wait_for("the server is told", lambda: "removing 59 messages" in daemon.log())
    with cyrus.client(user) as client:  # it says so before it does
        wait_for("the server has none", lambda: client.status("INBOX")["MESSAGES"] == 0)
    daemon.stop()
    assert bodies_on(cyrus, user) == []
    shutil.rmtree(daemon.options["cache_dir"])
    daemon.start()
    assert {n: v[1:] for n, v in attributes(inbox).items()} == \
        {n: v[1:] for n, v in before.items() if n != names[7]}
    assert mail(inbox) == {n: b for n, b in content.items() if n != names[7]}


def test_whoever_asks_has_it_looked_for(own_dovecot, user, mount):
    """After a long outage the server is not asked for half a minute: but it is when somebody wants to read."""
    server = own_dovecot()
    server.fill(user, range(3))
    daemon = mount(server.url(user, "pop"), tls="off", timeout=5, refresh=600)
    daemon.allow(".")
    path = next((daemon.mnt / "INBOX").iterdir())
    server.stop(signal.SIGKILL)
    end = time.monotonic() + 9  # it is waited 1 s, then 2, 4, 8
    while time.monotonic() < end:
        with pytest.raises(OSError):
            path.read_bytes()
        time.sleep(0.3)
    logins = lambda: server.log().count(f"user=<{user}>, method")
    before = logins()
    server.start()
    time.sleep(1.2)  # looked for once a second
    with contextlib.suppress(OSError):
        path.read_bytes()
    wait_for("it has been found", lambda: logins() > before)

    def is_read():
        with contextlib.suppress(OSError):
            return path.read_bytes()

    wait_for("it is read", is_read, 40)
