# SPDX-License-Identifier: MIT
"""Editors on a message, each with its own way of saving: the new text is stored, the old message is in
the trash, and nothing else is left behind."""
import errno
import os

import pytest

from support import paths
from support.dovecot import wait_for
from support.write import Account, in_terminal, mail, refused, sh, sha


@pytest.fixture(params=["uid", "named"])
def account(mount, dovecot, user, request):
    """A message called by its UID, or by a name it was given."""
    with dovecot.client(user) as client:
        client.append(mail("first"), flags="(\\Flagged kw)", when=1_000_000_000)
        client.append(mail("other"), when=1_000_000_001)
    account = Account(dovecot, user, mount(user))
    account.path = account.inbox / account.name(1)
    if request.param == "named":
        os.rename(account.path, account.inbox / "letter.eml")
        account.path = account.inbox / "letter.eml"
    return account


def check(account, want, flags):
    account.sync()
    assert account.path.read_bytes() == want, account.path.read_bytes()[:300]
    wait_for("the old one has gone", lambda: len(account.see()) == 2)
    assert sorted(m.sha256 for m in account.see().values()) == sorted([sha(want),
                                                                       sha(mail("other"))])
    assert account.subjects("Trash") == ["first"]
    assert len(os.listdir(account.inbox)) == 2
    assert account.failed() == {} and account.queue() == []
    # it keeps its name, also after a remount; and its flags, if it is still the same file
    now = account.see()[max(account.see())].flags
    assert now == flags or now == {"\\Flagged", "kw"}  # some editors carry them over themselves
    account.daemon.stop()
    account.daemon.start()
    assert account.path.name in os.listdir(account.inbox)
    assert account.path.read_bytes() == want


EDITED = mail("first").replace(b"Subject: first", b"Subject: edited")


@pytest.mark.main
@pytest.mark.parametrize("backupcopy", ["yes", "no", "auto"])
@pytest.mark.parametrize("options", ["nobackup writebackup", "nobackup nowritebackup", "noswapfile"])
def test_vim(account, work, backupcopy, options):
    code, screen = in_terminal(
        ["vim", "-N", "-u", "NONE", "-i", "NONE", "-c", f"set backupcopy={backupcopy} {options}",
         "-c", "%s/^Subject: first/Subject: edited/", "-c", "wq", account.path], [], work)
    assert code == 0, screen[-1000:]
    check(account, EDITED, {"\\Flagged", "kw"} if backupcopy == "yes" or "nowrite" in options
          else set())


def test_nano(account, work):
    code, screen = in_terminal(
        ["nano", "-I", "-N", account.path],
        [("first", "X-Edited: yes\r"), "\x0f", ("File Name to Write", "\r"), ("Wrote", "\x18")],
        work)
    assert code == 0, screen[-1000:]
    # nano writes the line ends it found; the new line has one too
    assert b"X-Edited: yes" in account.path.read_bytes()
    account.sync()
    wait_for("one is in the trash", lambda: account.subjects("Trash") == ["first"])
    assert len(account.see()) == 2 and account.failed() == {}


OTHERS = [
    ("sed -i", "sed -i s/^Subject:.first/Subject:\\ edited/ {file}"),
    ("sed -i~", "sed -i~ s/^Subject:.first/Subject:\\ edited/ {file}; rm {file}~"),
    ("sed -i.bak", "sed -i.bak s/^Subject:.first/Subject:\\ edited/ {file}; rm {file}.bak"),
    ("perl -i", "perl -i -pe s/^Subject:.first/Subject:\\ edited/ {file}"),
    ("cat", "sed s/^Subject:.first/Subject:\\ edited/ {file} > /tmp/$$; cat /tmp/$$ > {file}; rm /tmp/$$"),
    ("cp", "sed s/^Subject:.first/Subject:\\ edited/ {file} > /tmp/$$; cp /tmp/$$ {file}; rm /tmp/$$"),
    ("mv", "sed s/^Subject:.first/Subject:\\ edited/ {file} > /tmp/$$; mv /tmp/$$ {file}"),
    ("rename over", "sed s/^Subject:.first/Subject:\\ edited/ {file} > .tmp; mv .tmp {file}"),
    ("gedit", "sed s/^Subject:.first/Subject:\\ edited/ {file} > .goutputstream-ABCDEF; "
              "mv .goutputstream-ABCDEF {file}"),
    ("backup then rename", "sed s/^Subject:.first/Subject:\\ edited/ {file} > new.tmp~; "
                           "mv {file} {file}~; mv new.tmp~ {file}; rm {file}~"),
    ("dd", "sed s/^Subject:.first/Subject:\\ edited/ {file} > /tmp/$$; "
           "dd if=/tmp/$$ of={file} conv=fsync status=none; rm /tmp/$$"),
]


@pytest.mark.parametrize("script", [s for _, s in OTHERS], ids=[n for n, _ in OTHERS])
def test_others(account, script):
    sh(script.format(file=account.path.name), account.inbox)
    account.sync()
    assert account.path.read_bytes() == EDITED
    wait_for("the old one has gone", lambda: len(account.see()) == 2)
    assert account.subjects() == ["edited", "other"] and account.subjects("Trash") == ["first"]
    assert len(os.listdir(account.inbox)) == 2
    assert account.failed() == {} and account.queue() == []
    account.daemon.stop()
    account.daemon.start()
    assert account.path.read_bytes() == EDITED


def test_truncated_and_nothing_written(account):
    """If nothing was written, nothing happens."""
    before = account.see()
    with open(account.path, "wb"):
        pass
    account.sync()
    wait_for("the message is as it was", lambda: account.path.read_bytes() == mail("first"))
    assert account.see() == before and account.failed() == {}
    os.truncate(account.path, 0)
    account.sync()
    wait_for("the message is as it was", lambda: account.path.read_bytes() == mail("first"))
    assert account.see() == before


def test_replaced_by_nonsense(account):
    """What the server must not get replaces nothing."""
    account.daemon.allow("header|refused")
    before = account.see()
    fd = os.open(account.path, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"no header in here\n")
    with refused(errno.EINVAL):
        os.close(fd)
    account.sync()
    assert account.see() == before
    wait_for("the message is as it was", lambda: account.path.read_bytes() == mail("first"))
    (name,) = account.failed()
    assert (account.mnt / ".mailfs" / "failed" / name).read_bytes() == b"no header in here\n"


def test_reader_of_the_old_one(account):
    """Whoever had the message open reads it to its end."""
    with open(account.path, "rb", buffering=0) as file:
        assert file.read(10) == mail("first")[:10]
        sh(f"sed -i s/^Subject:.first/Subject:\\ edited/ '{account.path.name}'", account.inbox)
        account.sync()
        assert file.read() == mail("first")[10:]
    assert account.path.read_bytes() == EDITED


def test_edited_twice(account, work):
    for word in ("second", "third"):
        sh(f"sed -i 's/^Subject: .*/Subject: {word}\\r/' '{account.path.name}'", account.inbox)
    account.sync()
    wait_for("only the last is left", lambda: account.subjects() == ["other", "third"])
    assert account.subjects("Trash") == ["first", "second"]


def test_changed_by_another_meanwhile(account):
    """The message was expunged elsewhere while it was being edited: the new text is stored all the same."""
    fd = os.open(account.path, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, EDITED)
    account.client.expunge("1")
    account.client.imap.unselect()
    account.daemon.allow("UID 1|gone|no longer|no such")
    os.close(fd)
    try:
        account.sync()
    except OSError as error:
        assert error.errno in (errno.ENOENT, errno.ESTALE)
    wait_for("the new one is there", lambda: account.subjects() == ["edited", "other"])
    wait_for("once", lambda: account.shown(account.inbox) == ["edited", "other"])
    assert paths.flags_of(account.path) is not None


@pytest.mark.parametrize("versions", [1, 2])
@pytest.mark.parametrize("way", ["removed", "renamed", "moved", "expunged"])
def test_written_on(account, way, versions):
    """A file that is open has become a message, which goes away: what is written after that does not bring it
    back. Where it only has another name by now, it goes there."""
    os.mkdir(account.mnt / "Far")
    fd = os.open(account.path, os.O_WRONLY | os.O_TRUNC)
    for i in range(versions):
        os.pwrite(fd, mail(f"v{i}", 2 + i), 0)
        os.close(os.dup(fd))
        account.sync()
    assert account.subjects() == ["other", f"v{versions - 1}"]
    if way == "removed":
        os.unlink(account.path)
    elif way == "expunged":
        account.client.expunge(str(max(account.see(bodies=False))))
        account.client.imap.unselect()
        wait_for("it is gone", lambda: account.shown(account.inbox) == ["other"])
    else:
        os.rename(account.path, account.inbox / "new.eml" if way == "renamed" else account.mnt / "Far" / "m")
    account.sync()
    if way == "renamed":
        os.pwrite(fd, mail("again", 5), 0)
        os.close(fd)
        account.sync()
        assert account.subjects() == ["again", "other"]
        assert (account.inbox / "new.eml").read_bytes() == mail("again", 5)
    else:
        with refused(errno.ESTALE):
            os.pwrite(fd, mail("again", 5), 0)
        os.close(fd)
        account.sync()
        assert account.subjects() == ["other"]
    assert not account.path.exists()


def test_emptied_after_two_versions(account):
    """Truncated and closed without a byte: the message is as it was, also for whom the kernel still knows by
    the number of an earlier version."""
    for name in ("one", "two"):
        account.path.write_bytes(mail(name))
        assert account.path.read_bytes() == mail(name)
    account.sync()
    os.close(os.open(account.path, os.O_WRONLY | os.O_TRUNC))
    wait_for("the message is as it was", lambda: account.path.read_bytes() == mail("two"))
    assert account.path.stat().st_size == len(mail("two"))
    assert account.subjects() == ["other", "two"]
