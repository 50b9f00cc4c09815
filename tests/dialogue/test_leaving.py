# SPDX-License-Identifier: MIT
"""The daemon is told to stop while requests wait for a server that is silent."""
import os
import signal
import subprocess
import threading

import pytest

from support import paths
from support.dovecot import wait_for
from support.mount import is_mounted, no_daemon_of

BODY = b"From: a@example.org\r\nSubject: hello\r\n\r\nhello\r\n"


def read(path):
    with open(path, "rb") as file:
        return file.read()


def waiting(function, *args):
    """A thread that is in a call which waits, and how that ended."""
    result = []

    def run():
        try:
            result.append(function(*args))
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, result


@pytest.mark.parametrize("verb", ["UID FETCH", "LIST", "EXAMINE"])
def test_requests_that_wait(server, fake_mount, verb):
    """SIGTERM: all of them end, and so does the daemon, long before `timeout`."""
    server.inbox.add(BODY)
    server.mailboxes["other"] = type(server.inbox)()
    daemon = fake_mount(timeout=60, refresh=1, connections=2)
    path = daemon.mnt / "INBOX" / paths.message_name(1, server.inbox.uidvalidity)
    os.stat(path)
    n = server.n_commands(verb)
    server.on(verb, lambda session, tag, args: None)
    calls = [waiting(read, path), waiting(os.listdir, daemon.mnt / "other"),
             waiting(os.stat, daemon.mnt / "nothing"), waiting(os.stat, daemon.mnt / "INBOX" / "x")]
    server.wait_command(verb, n + 1)
    daemon.stop(how=signal.SIGTERM, seconds=30)
    for thread, result in calls:
        thread.join(20)
        assert result


def test_while_a_directory_is_invalidated(server, fake_mount):
    """A notice to the kernel waits for a directory that an unlink holds, which waits for us."""
    for i in range(20):
        server.inbox.add(BODY + b"%d" % i)
    daemon = fake_mount(timeout=8, refresh=1, trash="none")
    daemon.allow("not everything reached the server")
    inbox = daemon.mnt / "INBOX"
    names = sorted(os.listdir(inbox))
    for name in names:
        os.stat(inbox / name)
    file = os.open(inbox, os.O_RDONLY)
    try:
        for verb in ("UID STORE", "UID EXPUNGE"):
            server.on(verb, lambda session, tag, args: None)
        calls = [waiting(os.unlink, inbox / names[19])]
        server.wait_command("UID STORE")
        del server.inbox.messages[:10]
        wait_for("the loss is known", lambda: int(os.getxattr(file, "user.imap.messages")) < 11)
        calls.append(waiting(os.stat, inbox / "something else"))
    finally:
        os.close(file)
    daemon.stop(how=signal.SIGTERM, seconds=60, status=2)
    for thread, result in calls:
        thread.join(20)
        assert result


def test_server_is_back_before_the_end(server, fake_mount):
    """That it was away is known and remembered; when it is told to stop the daemon looks again."""
    message = server.inbox.add(BODY)
    daemon = fake_mount(refresh=600)
    daemon.allow("unreach|connection|closed")
    path = daemon.mnt / "INBOX" / paths.message_name(1, server.inbox.uidvalidity)
    os.stat(path)

    def cut(session, tag, args):
        server.script = lambda session: session.close()  # from now on every connection
        server.drop_all()

    def store(session, tag, args):
        message.flags.add("\\Flagged")
        session.line(f"* 1 FETCH (UID 1 FLAGS ({' '.join(sorted(message.flags))}))")
        session.ok(tag)

    server.on("UID STORE", cut)
    with pytest.raises(OSError):
        os.setxattr(path, "user.imap.flags", b"\\Flagged")
    assert len(os.listdir(daemon.mnt / ".mailfs" / "queue")) == 1
    assert daemon.counter("queued") == 1 and daemon.counter("failed") == 0
    assert message.flags == set()
    server.on("UID STORE", store)
    server.script = None
    daemon.stop()
    assert message.flags == {"\\Flagged"}


@pytest.mark.parametrize("args", [("-f",), ()], ids=["foreground", "background"])
def test_interrupted_while_starting(server, fake_mount, args):
    """Ctrl-C on the command ends it while the server is silent, and nothing is mounted later."""
    server.inbox.add(BODY)
    go_on = threading.Event()

    def script(session):
        go_on.wait(30)
        session.greet()
        session.loop()

    server.script = script
    daemon = fake_mount(_start=False, timeout=60)
    daemon.args = list(args)
    process = subprocess.Popen(daemon.command(), env=daemon.env, stderr=subprocess.DEVNULL,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        wait_for("it connects", lambda: server.sessions)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
    finally:
        process.kill()
        go_on.set()
    wait_for("no daemon is left", lambda: not no_daemon_of(daemon.dir))
    assert not is_mounted(daemon.mnt)
