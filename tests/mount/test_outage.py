# SPDX-License-Identifier: MIT
"""The server stops answering, goes away, comes back; the daemon is killed. Nothing hangs, what is
cached is served, and nobody has to mount again."""
import errno
import os
import signal
import subprocess
import threading
import time

import pytest

from support.dovecot import wait_for
from support.mount import is_mounted

TIMEOUT = 6
# Nothing is asserted about how fast, only that it is nearer to `timeout` than to never.
SOON = 4 * TIMEOUT + 8

DOWN = (errno.ETIMEDOUT, errno.EHOSTUNREACH)
EXPECTED = (r"TLS|time|answer|unreach|connect|lost|down|server|refused|reset|clos",)


def attempt(function, *args):
    """errno and seconds of something that must fail."""
    start = time.monotonic()
    try:
        function(*args)
    except OSError as error:
        return error.errno, time.monotonic() - start
    return 0, time.monotonic() - start


def read(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture
def setup(own_dovecot, user, mount):
    """INBOX is listed and partly cached, "listed" only listed, "other" was never looked at."""
    server = own_dovecot()
    server.fill(user, range(40))
    server.fill(user, range(40, 60), "other")
    server.fill(user, range(60, 80), "listed")
    daemon = mount(server.url(user), tls_ca=server.certs.ca, timeout=TIMEOUT)
    daemon.allow(*EXPECTED)
    inbox = daemon.mnt / "INBOX"
    names = sorted(os.listdir(inbox))
    cached = {name: read(inbox / name) for name in names[:3]}
    listed = sorted((daemon.mnt / "listed").iterdir())
    return server, daemon, inbox, names, cached, listed


@pytest.mark.main
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_server_gone(setup, how):
    server, daemon, inbox, names, cached, listed = setup
    if how == "stop":
        server.freeze()
    else:
        server.stop(signal.SIGKILL)
    code, seconds = attempt(read, listed[10])
    assert code in DOWN and seconds < SOON
    code, seconds = attempt(os.listdir, daemon.mnt / "other")  # never listed
    assert code in DOWN and seconds < SOON
    cached_paths = [inbox / name for name in cached]
    done = subprocess.run(["grep", "-r", "sender", *map(str, sorted(cached_paths)), str(daemon.mnt / "listed")], capture_output=True, timeout=60 * 3)
    assert done.returncode == 2 and b"sender" in done.stdout
    for name, body in cached.items():
        assert read(inbox / name) == body
        assert os.stat(inbox / name).st_size == len(body)
    assert sorted(os.listdir(inbox)) == names
    if how == "stop":
        server.thaw()
    else:
        server.start()
    # the daemon finds out by itself, without a remount
    wait_for("reads work again", lambda: attempt(read, listed[11])[0] == 0, 40, 0.2)
    assert len(os.listdir(daemon.mnt / "other")) == 20
    for path in listed:
        assert len(read(path)) == os.stat(path).st_size


@pytest.mark.parametrize("command", [["cat", "{file}"], ["ls", "-l", "{unlisted}"],
                                     ["grep", "-r", "nothing-like-this", "{folder}"],
                                     ["head", "-c", "10", "{file}"]], ids=lambda c: c[0])
def test_interrupt_frees_at_once(setup, command):
    """Ctrl-C on something that waits for a silent server."""
    server, daemon, inbox, names, _, listed = setup
    daemon.stop()
    daemon.options["timeout"] = 60
    daemon.start()
    assert len(os.listdir(daemon.mnt / "listed")) == 20
    server.freeze()
    argv = [part.format(file=listed[3], unlisted=daemon.mnt / "other", folder=daemon.mnt / "listed")
            for part in command]
    for signum in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        try:
            wait_for("it waits", lambda: waits_in_fuse(process.pid), 20)
            process.send_signal(signum)
            process.wait(20)  # `timeout` is 60
            assert process.returncode == -signum
        finally:
            process.kill()
            process.wait(20)
    server.thaw()
    assert len(read(listed[3])) == os.stat(listed[3]).st_size


def waits_in_fuse(pid):
    """Asleep in a request to the daemon, or for a page that one is to bring."""
    try:
        with open(f"/proc/{pid}/wchan") as wchan:
            where = wchan.read()
    except FileNotFoundError:
        return False
    return "fuse" in where or "request_wait" in where or "folio" in where or "io_schedule" in where


def test_cut_while_reading(setup):
    """Killed in the middle of a scan, started again in the middle of it: correct in the end."""
    server, daemon, inbox, names, _, listed = setup
    with server.client(daemon.source.split("//")[1].split("@")[0]) as client:
        truth = {uid: m.size for uid, m in client.messages("INBOX").items()}
    result = {}

    def scan():
        for name in names:
            while True:
                try:
                    result[name] = len(read(inbox / name))
                    break
                except OSError as error:
                    assert error.errno in DOWN, error
                    time.sleep(0.1)

    thread = threading.Thread(target=scan)
    thread.start()
    for _ in range(3):
        server.stop(signal.SIGKILL)
        server.start()
    thread.join(80)
    assert not thread.is_alive()
    assert {int(n.split(".")[0]): size for n, size in result.items()} == truth


@pytest.mark.main
def test_daemon_killed(mount, dovecot, user):
    """Starts over its own dead mount; what was fetched is still there."""
    dovecot.fill(user, range(30))
    daemon = mount(user)
    inbox = daemon.mnt / "INBOX"
    bodies = {name: read(inbox / name) for name in os.listdir(inbox)}
    moved = daemon.counter("bytes_in")
    assert moved > sum(map(len, bodies.values()))
    stat = {name: os.stat(inbox / name).st_ino for name in bodies}
    daemon.kill()
    assert is_mounted(daemon.mnt)
    assert attempt(os.listdir, daemon.mnt)[0] == errno.ENOTCONN
    daemon.start()
    assert {name: read(inbox / name) for name in os.listdir(inbox)} == bodies
    # a lost tail of the index would cost a listing, which is no number to hold on to; it must fit
    assert {name: os.stat(inbox / name).st_size for name in bodies} == \
        {name: len(body) for name, body in bodies.items()}
    assert set(stat) == set(os.listdir(inbox))


def test_cache_kept_after_kill(mount, dovecot, user):
    """Bodies whose files had been finished (closed, settled) are not fetched a second time."""
    dovecot.fill(user, [1249])  # some megabytes
    daemon = mount(user)
    path = daemon.mnt / "INBOX" / os.listdir(daemon.mnt / "INBOX")[0]
    body = read(path)
    daemon.stop()
    daemon.start()
    daemon.kill()
    daemon.start()
    assert read(path) == body
    assert daemon.counter("bytes_in") < len(body) // 4


def test_second_daemon_refused(mount, user):
    first = mount(user)
    second = mount(user, _start=False, cache_dir=first.options["cache_dir"])
    done = second.run(args=())
    assert done.returncode in (2, 32), done.stderr
    assert "cache" in done.stderr and ("use" in done.stderr or "lock" in done.stderr), done.stderr
    assert not is_mounted(second.mnt)
    assert "INBOX" in os.listdir(first.mnt)


@pytest.mark.main
def test_offline(mount, dovecot, user):
    """Never connects; the cache is what there is."""
    dovecot.fill(user, range(20))
    dovecot.fill(user, range(20, 25), "never read")
    daemon = mount(user)
    inbox = daemon.mnt / "INBOX"
    names = sorted(os.listdir(inbox))
    other = sorted((daemon.mnt / "never read").iterdir())
    bodies = {name: read(inbox / name) for name in names[:10]}
    daemon.stop()
    logins = dovecot.logins(user)
    daemon.options["offline"] = True
    daemon.start()
    assert sorted(os.listdir(inbox)) == names
    for name in names[:10]:
        assert read(inbox / name) == bodies[name]
    assert len(os.listdir(other[0].parent)) == 5
    assert attempt(read, other[0])[0] == errno.EHOSTUNREACH
    assert dovecot.logins(user) == logins


def test_starts_while_server_is_down(setup):
    """A cache that can serve is enough to mount; the server is found later."""
    server, daemon, inbox, names, cached, listed = setup
    daemon.stop()
    server.stop(signal.SIGKILL)
    daemon.start()
    assert sorted(os.listdir(inbox)) == names
    for name, body in cached.items():
        assert read(inbox / name) == body
    assert attempt(read, listed[5])[0] in DOWN
    server.start()
    wait_for("the server is found", lambda: attempt(read, listed[5])[0] == 0, 60, 0.2)
