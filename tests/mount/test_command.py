# SPDX-License-Identifier: MIT
"""What the command says and returns when it cannot mount, and how it comes up when it can."""
import contextlib
import os
import re
import signal
import socket
import subprocess
import threading

import pytest

from support import paths
from support.dovecot import PASSWORD, free_ports, wait_for
from support.mount import Mailfs, is_mounted, no_daemon_of, unmount, wait_unmounted

USAGE, SYSTEM, MOUNT = 1, 2, 32


def fails(daemon, status, *words):
    """One line on stderr, the status, nothing left mounted or running, the password not shown."""
    done = daemon.run(args=())
    text = done.stderr
    assert done.returncode in (status if isinstance(status, tuple) else (status,)), text
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("mailfs: "), text
    for word in words:
        assert re.search(word, text, re.I), (word, text)
    assert done.stdout == ""
    assert PASSWORD not in text
    assert not is_mounted(daemon.mnt)
    assert not no_daemon_of(daemon.dir)
    assert not daemon.sanitizer_reports(), daemon.sanitizer_reports()
    return text


@pytest.fixture
def command(work, dovecot):
    """A Mailfs that is not started; one that mounts although it should not is taken down."""
    made = []

    def make(source, **options):
        options.setdefault("timeout", 20)
        made.append(Mailfs(work, source, {"tls_ca": dovecot.certs.ca, **options}))
        return made[-1]

    yield make
    for daemon in made:
        daemon.clean()


def test_wrong_password(command, dovecot, user):
    daemon = command(dovecot.url(user))
    daemon.passfile.write_text("not the password\n")
    fails(daemon, MOUNT, "password|log.?in|authenti")
    assert dovecot.logins(user) <= 2, dovecot.log()[-2000:]


def test_refused_connection(command, user):
    with free_ports(1)[0] as held:
        port = held.getsockname()[1]
        fails(command(f"imaps://{user}@127.0.0.1:{port}/"), MOUNT, "refused",
              rf"127\.0\.0\.1|{port}")


def test_unknown_host(command, user):
    fails(command(f"imaps://{user}@no-such-host.invalid/"), MOUNT, r"no-such-host\.invalid")


def test_silent_server(command, user):
    """Somebody listens and says nothing: gives up by itself."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        fails(command(f"imaps://{user}@127.0.0.1:{port}/", timeout=2), MOUNT, "time|answer|seconds")
        fails(command(f"imap://{user}@127.0.0.1:{port}/", timeout=2), MOUNT, "time|answer|seconds")


def test_passfile(command, dovecot, user):
    daemon = command(dovecot.url(user))
    daemon.passfile.chmod(0o640)
    fails(daemon, (USAGE, MOUNT), str(daemon.passfile), "group|others|readable|chmod|0?600")
    daemon.passfile.chmod(0o604)
    fails(daemon, (USAGE, MOUNT), str(daemon.passfile))
    daemon.passfile.unlink()
    fails(daemon, (USAGE, MOUNT), str(daemon.passfile), "no such file|not found|missing")


def test_no_password_source(command, dovecot, user):
    daemon = command(dovecot.url(user), passfile=None)
    text = fails(daemon, MOUNT, "password")
    assert re.search("passfile|passcmd|netrc", text)


@pytest.mark.parametrize("options, word", [
    ({"nonsense": "1"}, "nonsense"),
    ({"nonsense": True}, "nonsense"),
    ({"layout": "spiral"}, "layout"),
    ({"eol": "cr"}, "eol"),
    ({"timeout": "soon"}, "timeout"),
    ({"timeout": "-1"}, "timeout"),
    ({"connections": "0"}, "connections"),
    ({"cache_size": "big"}, "cache_size"),
    ({"tls": "maybe"}, "tls"),
    ({"auth": "rot13"}, "auth|rot13"),
    ({"tls_ca": "/nonexistent/ca.pem"}, "tls_ca|ca.pem"),
])
def test_bad_options(command, dovecot, user, options, word):
    status = (USAGE, MOUNT) if "nonexistent" in str(options) else USAGE
    fails(command(dovecot.url(user), **options), status, word)


@pytest.mark.parametrize("source, word", [
    ("imap://me:secret@127.0.0.1/", "password"),
    ("http://127.0.0.1/", "http|URL|scheme"),
    ("imap://", "host|URL"),
    ("imap://me@127.0.0.1:99999/", "port"),
    ("no-such-account", "no-such-account"),
])
def test_bad_sources(command, source, word):
    text = fails(command(source), USAGE, word)
    assert "secret" not in text


def test_missing_config(command):
    fails(command("home", config="/nonexistent/config"), USAGE, "/nonexistent/config")


def test_mount_point(command, dovecot, user, work):
    daemon = command(dovecot.url(user))
    daemon.mnt.rmdir()
    fails(daemon, (USAGE, MOUNT), str(daemon.mnt), "no such|not exist|missing|mkdir")
    daemon.mnt.write_text("a file")
    fails(daemon, (USAGE, MOUNT), str(daemon.mnt), "not a directory")


def test_mount_point_busy(mount, user):
    first = mount(user)
    second = mount(user, _start=False, cache_dir=first.dir / "other-cache")
    second.mnt = first.mnt
    done = second.run(args=())
    assert done.returncode in (USAGE, MOUNT), done.stderr
    assert re.search("busy|already|mounted", done.stderr), done.stderr
    assert is_mounted(first.mnt)
    assert "INBOX" in os.listdir(first.mnt)
    second.mnt = second.dir / "mnt"


def test_too_few_arguments(work):
    for argv in ([], ["imap://me@127.0.0.1/"], ["-o"], ["--bogus", "a", "b"], ["a", "b", "c"]):
        done = subprocess.run([Mailfs(work, "x").binary, *argv], capture_output=True, text=True,
                              timeout=30, stdin=subprocess.DEVNULL)
        assert done.returncode == USAGE, (argv, done.stderr)
        assert done.stderr.strip()


def test_help_and_version(work):
    for flag, word in (("-h", "SOURCE"), ("--help", "SOURCE"), ("-V", "mailfs"), ("--version", "mailfs")):
        done = subprocess.run([Mailfs(work, "x").binary, flag], capture_output=True, text=True,
                              timeout=30)
        assert done.returncode == 0 and word in done.stdout, (flag, done)


@pytest.mark.main
def test_background(command, dovecot, user):
    """0 only once the mount answers; the daemon goes with the mount."""
    dovecot.fill(user, range(3))
    daemon = command(dovecot.url(user))
    done = daemon.run(args=())
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert is_mounted(daemon.mnt)
    assert len(paths.uids(daemon.mnt / "INBOX")) == 3
    assert len(no_daemon_of(daemon.dir)) == 1
    assert wait_unmounted(daemon.mnt, 10) == ""
    wait_for("the daemon is gone", lambda: not no_daemon_of(daemon.dir), 30)
    assert not daemon.sanitizer_reports(), daemon.sanitizer_reports()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount(mount, user, signum):
    daemon = mount(user)
    os.listdir(daemon.mnt / "INBOX")
    daemon.stop(how=signum)


def test_sd_notify(mount, user):
    daemon = mount(user)
    assert any(s.startswith("STATUS=") and len(s) > 8 for s in daemon.read_states(1)), daemon.states


def test_config_account(mount, user, dovecot, work):
    """An account by its name; what -o says wins over the file."""
    config = work / "config"
    config.write_text(f"[account home]\nurl={dovecot.url(user)}\ntls_ca={dovecot.certs.ca}\n"
                      f"refresh=77\neol=lf\n")
    config.chmod(0o600)
    dovecot.fill(user, range(2))
    daemon = mount(user, _start=False, config=config, tls_ca=None)
    daemon.source = "home"
    daemon.start()
    assert len(os.listdir(daemon.mnt / "INBOX")) == 2
    with open(next(os.scandir(daemon.mnt / "INBOX")).path, "rb") as file:
        assert b"\r\n" not in file.read()


def test_passcmd(mount, user, dovecot, work):
    """An argv, no shell, run anew for each login; its first line is the password."""
    script = work / "pass"
    script.write_text(f"#!/bin/sh\necho run >> {work}/runs\nprintf '%s\\nsecond line\\n' '{PASSWORD}'\n")
    script.chmod(0o700)
    daemon = mount(user, passfile=None, passcmd=f"{script} 'one argument' $(touch {work}/shell)")
    assert os.listdir(daemon.mnt) == ["INBOX"]
    assert (work / "runs").exists() and not (work / "shell").exists()


def test_passcmd_fails(command, dovecot, user):
    fails(command(dovecot.url(user), passfile=None, passcmd="/bin/false"), MOUNT, "passcmd|/bin/false")


def test_credentials_directory(mount, user, work):
    credentials = work / "credentials"
    credentials.mkdir()
    (credentials / "mailfs.password").write_text(PASSWORD + "\n")
    (credentials / "mailfs.password").chmod(0o400)
    daemon = mount(user, _env={"CREDENTIALS_DIRECTORY": str(credentials)}, passfile=None)
    assert "INBOX" in os.listdir(daemon.mnt)


def test_netrc(mount, user):
    daemon = mount(user, _start=False, passfile=None)
    netrc = daemon.dir / ".netrc"
    netrc.write_text(f"machine other login x password y\n"
                     f"machine 127.0.0.1 login {user} password {PASSWORD}\n")
    netrc.chmod(0o600)
    daemon.start()
    assert "INBOX" in os.listdir(daemon.mnt)


def test_prompt(command, dovecot, user):
    """On a terminal the password is asked for and not echoed."""
    import pty
    daemon = command(dovecot.url(user), passfile=None)
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(daemon.binary, daemon.command()[:1] + daemon.command()[2:], daemon.env)
    seen = b""
    sent = False
    while True:
        try:
            data = os.read(fd, 4096)
        except OSError:
            break
        if not data:
            break
        seen += data
        if not sent and b"assword" in seen:
            os.write(fd, PASSWORD.encode() + b"\n")
            sent = True
    _, status = os.waitpid(pid, 0)
    os.close(fd)
    try:
        assert sent and os.waitstatus_to_exitcode(status) == 0, seen
        assert PASSWORD.encode() not in seen
        assert "INBOX" in os.listdir(daemon.mnt)
    finally:
        unmount(daemon.mnt)
    wait_for("the daemon is gone", lambda: not no_daemon_of(daemon.dir), 30)


@pytest.mark.parametrize("mech", ["plain", "login", "cram-md5", "scram-sha-1", "scram-sha-256"])
def test_mechanisms(mount, user, dovecot, mech):
    daemon = mount(user, auth=mech)
    assert "INBOX" in os.listdir(daemon.mnt)
    # written by another process than that which let us in
    wait_for("the log says so", lambda: re.search(rf"user=<{user}>, method={mech}", dovecot.log(), re.I))


def test_mailbox_in_url(mount, user, dovecot):
    """A mailbox in the URL is the root of the mount."""
    dovecot.fill(user, range(4), "Old Job", "2024")
    dovecot.fill(user, range(2), "Old Job")
    daemon = mount(dovecot.url(user, path="Old%20Job"), tls_ca=dovecot.certs.ca)
    assert len(paths.uids(daemon.mnt)) == 2
    assert len(paths.uids(daemon.mnt / "2024")) == 4
    assert "INBOX" not in os.listdir(daemon.mnt)


def test_subscribed(mount, user, dovecot):
    for name in ("wanted", "unwanted"):
        dovecot.folder(user, name)
    with dovecot.client(user) as client:
        client.run("SUBSCRIBE", "wanted")
    daemon = mount(user, subscribed=True)
    names = os.listdir(daemon.mnt)
    assert "wanted" in names and "unwanted" not in names


def test_subscribed_leaves_other_changes(mount, user, own_dovecot):
    """What is queued for a mailbox that only the other kind of mount shows waits for that one."""
    server = own_dovecot()
    server.fill(user, range(1), "unwanted")
    daemon = mount(server.url(user), tls_ca=server.certs.ca, timeout=5)
    daemon.allow(".")
    path, = (daemon.mnt / "unwanted").iterdir()
    server.freeze()

    def flag():
        with contextlib.suppress(OSError):
            os.setxattr(path, "user.imap.flags", b"\\Flagged")

    writer = threading.Thread(target=flag)
    writer.start()
    wait_for("it is queued", lambda: os.listdir(daemon.mnt / ".mailfs" / "queue"))
    daemon.kill()
    writer.join()
    daemon.clean()
    server.thaw()
    with server.client(user) as client:
        client.run("SUBSCRIBE", "INBOX")
    daemon.options["subscribed"] = True
    daemon.start()
    assert os.listdir(daemon.mnt) == ["INBOX"]
    daemon.stop()
    del daemon.options["subscribed"]
    daemon.start()
    with server.client(user) as client:
        wait_for("it is done", lambda: "\\Flagged" in client.messages("unwanted")[1].flags)


def test_fstab_words_are_ignored(mount, user):
    daemon = mount(user, _netdev=True, nofail=True, user=True, noauto=True, rw=True, nosuid=True,
                   nodev=True, noexec=True, noatime=True, **{"x-systemd.automount": True})
    assert "INBOX" in os.listdir(daemon.mnt)
