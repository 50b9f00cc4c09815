# SPDX-License-Identifier: MIT
"""layout=maildir: what a Maildir reader expects, and mutt as one."""
import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest

LETTERS = {"\\Draft": "D", "\\Flagged": "F", "\\Answered": "R", "\\Seen": "S", "\\Deleted": "T"}


@pytest.fixture
def setup(mount, dovecot, user):
    dovecot.fill(user, range(40), new_every=0)
    dovecot.fill(user, range(5), "Old Job", "2024")
    with dovecot.client(user) as client:
        client.select().imap.unselect()
        dovecot.fill(user, range(40, 45), new_every=1)
        truth = client.messages()
        validity = client.uidvalidity()
        status = client.status("INBOX")
    return mount(user, layout="maildir"), truth, validity, status


@pytest.mark.main
def test_names(setup):
    daemon, truth, validity, _ = setup
    inbox = daemon.mnt / "INBOX"
    assert sorted(os.listdir(inbox)) == ["cur", "new", "tmp"]
    assert sorted(os.listdir(daemon.mnt / "Old Job" / "2024")) == ["cur", "new", "tmp"]
    seen = {}
    for sub in ("cur", "new"):
        for name in os.listdir(inbox / sub):
            info = r":2,([A-Z]*)" if sub == "cur" else "()"
            match = re.match(rf"^(\d{{10}})\.(\d+),S=(\d+){info}$", name)
            assert match, name
            uid, val, size, letters = match.groups()
            message = truth[int(uid)]
            assert (int(val), int(size)) == (validity, message.size)
            assert letters == "".join(sorted(LETTERS[f] for f in message.flags if f in LETTERS))
            seen[int(uid)] = sub
            if sub == "new":
                assert "\\Seen" not in message.flags
            stat = os.stat(inbox / sub / name)
            assert (stat.st_size, int(stat.st_mtime)) == (message.size, message.date)
    assert set(seen) == set(truth)
    assert os.listdir(inbox / "tmp") == []


def mutt(directory, keys, work, seconds=40, args=("-R",)):
    """Runs mutt in a terminal of its own with keys pushed; returns its exit status."""
    (work / "muttrc").write_text(
        f"set mbox_type=Maildir\nset folder={work}\nset record=''\nset move=no\n"
        "set confirmappend=no\nset delete=yes\nset quit=yes\nset wait_key=no\nset mark_old=no\n"
        "set postponed=''\nset header_cache=''\nset mail_check=0\nset print=yes\nset sleep_time=0\n"
        "set sort=mailbox-order\nset pipe_decode=no\nset pipe_split=no\nset pipe_sep=''\n"
        "unset collapse_unread\nset pager_stop=yes\nunset beep\n")
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe("mutt", ["mutt", "-n", *args, "-F", str(work / "muttrc"), "-f", str(directory),
                            "-e", f"push '{keys}'"],
                   {**os.environ, "TERM": "xterm", "HOME": str(work), "LC_ALL": "C.UTF-8"})
    end = time.monotonic() + seconds
    out = b""
    while time.monotonic() < end:
        if select.select([fd], [], [], 0.2)[0]:
            try:
                data = os.read(fd, 65536)
            except OSError:
                data = b""
            out += data
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            os.close(fd)
            return os.waitstatus_to_exitcode(status), out
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(fd)
    raise AssertionError(f"mutt did not end: {out[-2000:]!r}")


def test_mutt(setup, work, dovecot, user):
    """mutt lists the folder, and what it shows of a message is the message."""
    daemon, truth, _, status = setup
    out = work / "out"
    code, screen = mutt(daemon.mnt / "INBOX",
                        f"<tag-pattern>~A<enter><tag-prefix><pipe-message>cat >> {out}<enter>"
                        f"<exit><exit>", work)
    assert code == 0, screen[-1000:]
    # mutt writes Unix line ends when it pipes
    got = out.read_bytes().replace(b"\r\n", b"\n")
    with dovecot.client(user) as client:
        bodies = [client.body(uid).replace(b"\r\n", b"\n") for uid in truth]
        assert len(got) >= sum(map(len, bodies)) * 9 // 10
        for uid, body in zip(truth, bodies):
            assert body.rstrip(b"\n") in got, uid
        # it was opened read-only: the server saw nothing of it
        assert client.status("INBOX") == status
        now = client.messages("INBOX", bodies=False)
        assert {u: m.flags for u, m in now.items()} == {u: m.flags for u, m in truth.items()}


def test_names_outlast_reading(mount, dovecot, user):
    """With eol=lf the size in a name is another one once the message was read: by the name that was
    listed before, a mail program finds and marks what it has shown."""
    dovecot.fill(user, range(12), new_every=4)
    daemon = mount(user, layout="maildir", eol="lf")
    inbox = daemon.mnt / "INBOX"
    before = [f"{sub}/{name}" for sub in ("cur", "new") for name in os.listdir(inbox / sub)]
    assert len(before) == 12
    for turn in range(2):
        for name in before:
            assert b"\r\n" not in (inbox / name).read_bytes()
        daemon.stop()
        daemon.start()  # the kernel knows nothing of them any more
    name = next(n for n in before if n.endswith(":2,S"))
    os.rename(inbox / name, inbox / name.replace(":2,S", ":2,FS"))
    os.rename(inbox / name.replace(":2,S", ":2,FS"), inbox / name)
    assert (inbox / name).read_bytes()


def test_find_and_rsync(setup):
    daemon, truth, _, _ = setup
    files = subprocess.run(["find", str(daemon.mnt / "INBOX"), "-type", "f"], capture_output=True,
                           text=True, timeout=60).stdout.split("\n")[:-1]
    assert len(files) == len(truth)
    target = daemon.dir / "copy"
    subprocess.run(["rsync", "-a", f"{daemon.mnt}/", f"{target}/"], check=True, timeout=60)
    out = subprocess.run(["rsync", "-ai", f"{daemon.mnt}/", f"{target}/"], check=True, timeout=60,
                         capture_output=True, text=True).stdout
    assert out == ""
