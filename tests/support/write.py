# SPDX-License-Identifier: MIT
"""What tests of changes share: messages with a word to know them by, an account seen from three
sides (the mount, a plain IMAP client, the programs a user runs), and programs in a terminal."""
import contextlib
import errno
import hashlib
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import time

from . import paths
from .dovecot import end_with_parent, wait_for


def mail(word, lines=3):
    return (f"From: a@example.org\r\nTo: b@example.org\r\nSubject: {word}\r\n"
            f"Message-ID: <{word}@example.org>\r\n\r\n" + f"{word}\r\n" * lines).encode()


def sha(data):
    return hashlib.sha256(data).hexdigest()


def error_of(function, *args, **kw):
    """The errno a call fails with; 0 when it works."""
    try:
        function(*args, **kw)
    except OSError as error:
        return error.errno
    return 0


def refused(code):
    """A context whose body must fail with this errno (or one of these)."""
    return _Refused(code if isinstance(code, tuple) else (code,))


class _Refused(contextlib.AbstractContextManager):
    def __init__(self, codes):
        self.codes = codes

    def __exit__(self, kind, error, _):
        want = " or ".join(errno.errorcode[c] for c in self.codes)
        assert error is not None, f"worked; expected {want}"
        if isinstance(error, OSError):
            assert error.errno in self.codes, f"{error!r}; expected {want}"
            return True
        return False


def sh(script, cwd, seconds=60, check=True, env=None):
    done = subprocess.run(["bash", "-euc", script], cwd=cwd, capture_output=True, text=True,
                          timeout=seconds, stdin=subprocess.DEVNULL,
                          env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})})
    assert not check or done.returncode == 0, \
        f"{script}: {done.returncode}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done if not check else done.stdout


class Account:
    """A user with a mount and a plain client."""

    def __init__(self, server, user, daemon=None):
        self.server, self.user, self.daemon = server, user, daemon
        self.client = server.client(user)

    @property
    def mnt(self):
        return self.daemon.mnt

    @property
    def inbox(self):
        return self.mnt / "INBOX"

    def see(self, name="INBOX", bodies=True):
        """{uid: Message} by IMAP, on a connection that has not looked before."""
        with self.server.client(self.user) as client:
            if not client.status(name)["MESSAGES"]:
                return {}
            seen = client.messages(name, bodies)
        for message in seen.values():
            message.recent = False  # who looks first takes it away
        return seen

    def subjects(self, name="INBOX"):
        """Sorted subjects: the words of mail(), or of the corpus."""
        with self.server.client(self.user) as client:
            if not client.status(name)["MESSAGES"]:
                return []
            client.examine(name)
            parts = client.ok(client.imap.uid("FETCH", "1:*",
                                              "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])"))
        return sorted(p[1].decode().split(":", 1)[1].strip() for p in parts if isinstance(p, tuple))

    def words(self, path):
        """The same, read through the mount: what its files say."""
        return sorted(re.search(rb"Subject: (.*?)\r?\n", p.read_bytes()).group(1).decode()
                      for p in pathlib.Path(path).iterdir() if p.is_file())

    def shown(self, path):
        """The same while somebody else changes it: the error, when a name goes before it is read."""
        try:
            return self.words(path)
        except OSError as error:
            return error

    def folders(self):
        with self.server.client(self.user) as client:
            return set(client.folders())

    def subscribed(self):
        from .imap import decode
        with self.server.client(self.user) as client:
            found = set()
            for line in client.ok(client.imap.lsub('""', '"*"')):
                head = b" ".join(line) if isinstance(line, tuple) else line
                if head:
                    found.add(decode(re.sub(rb'^.*?\) ("[^"]*"|NIL) ', b"", head)
                                     .strip(b'"').decode()))
            return found

    def name(self, uid, mailbox="INBOX"):
        with self.server.client(self.user) as client:
            return paths.message_name(uid, client.uidvalidity(mailbox))

    def failed(self):
        """{name: reason} of .mailfs/failed."""
        top = self.mnt / ".mailfs" / "failed"
        return {n: os.getxattr(top / n, "user.mailfs.error").decode() for n in os.listdir(top)}

    def queue(self):
        top = self.mnt / ".mailfs" / "queue"
        return os.listdir(top)

    def sync(self, path=None):
        """fsync of a directory: everything queued there has been answered."""
        fd = os.open(path or self.inbox, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def mutations(self):
        """Commands sent so far."""
        return self.daemon.counter("commands")


class Wire:
    """A line with a round trip of 2 * ms to a port of this machine."""

    def __init__(self, work, port, ms):
        build = os.environ.get("MAILFS_BUILD")
        assert build, "scripts/test sets MAILFS_BUILD"
        self.process = subprocess.Popen(
            [f"{build}/tests/bench/delay", str(port), str(ms), "0", str(work / "wire")],
            stdout=subprocess.PIPE, preexec_fn=end_with_parent)
        self.port = int(self.process.stdout.readline())

    def stop(self):
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()


def flags(path):
    return paths.flags_of(path)


def set_flags(path, text):
    os.setxattr(path, "user.imap.flags", text.encode())


def wait_gone(path):
    wait_for(f"{path} is gone", lambda: not os.path.lexists(path))


def in_terminal(argv, keys, cwd, env=None, seconds=40, start=None):
    """Runs a full-screen program; keys: strings, each sent once the screen has shown `start` or its
    own prompt (a tuple: (what must be on the screen first, keys)). Its status and all it wrote."""
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execvpe(argv[0], list(map(str, argv)),
                   {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", "LINES": "24",
                    "COLUMNS": "80", **(env or {})})
    end = time.monotonic() + seconds
    out, seen, waiting = b"", 0, list(keys)
    try:
        while time.monotonic() < end:
            if select.select([fd], [], [], 0.05)[0]:
                try:
                    out += os.read(fd, 65536)
                except OSError:
                    pass
            if waiting:
                want, text = waiting[0] if isinstance(waiting[0], tuple) else (None, waiting[0])
                if want is None and out or want is not None and want.encode() in out[seen:]:
                    seen = len(out)
                    waiting.pop(0)
                    os.write(fd, text.encode())
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                pid = 0
                return os.waitstatus_to_exitcode(status), out
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(fd)
    raise AssertionError(f"{argv[0]} did not end; waits for {waiting}: {out[-1500:]!r}")
