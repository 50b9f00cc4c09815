# SPDX-License-Identifier: MIT
"""Mailboxes: mkdir, rmdir, rename, and their subscriptions."""
import errno
import os

import pytest

from support import corpus, paths
from support.dovecot import wait_for
from support.write import Account, error_of, mail, refused, sh, wait_gone


@pytest.fixture
def account(mount, dovecot, user):
    dovecot.folder(user)
    return Account(dovecot, user, mount(user))


@pytest.mark.main
def test_make_and_remove(account):
    os.mkdir(account.mnt / "Work")
    assert "Work" in account.folders() and "Work" in account.subscribed()
    assert "Work" in os.listdir(account.mnt)
    with refused(errno.EEXIST):
        os.mkdir(account.mnt / "Work")
    sh("mkdir -p Work/2024/January Other/deep/deeper", account.mnt)
    assert {"Work/2024", "Work/2024/January", "Other/deep/deeper"} <= account.folders()
    (account.mnt / "Work" / "2024" / "January" / "x.eml").write_bytes(mail("x"))
    account.sync(account.mnt / "Work" / "2024" / "January")
    assert account.subjects("Work/2024/January") == ["x"]
    for path, code in (("Work/2024/January", errno.ENOTEMPTY), ("Work/2024", errno.ENOTEMPTY),
                       ("Work", errno.ENOTEMPTY), ("INBOX", errno.EPERM)):
        with refused(code):
            os.rmdir(account.mnt / path)
    with refused(errno.ENOENT):
        os.rmdir(account.mnt / "none")
    os.unlink(account.mnt / "Work" / "2024" / "January" / "x.eml")
    sh("rmdir -p Work/2024/January; rmdir -p Other/deep/deeper", account.mnt)
    assert not {f for f in account.folders() if f.startswith(("Work", "Other"))}
    assert not {f for f in account.subscribed() if f.startswith(("Work", "Other"))}
    assert set(os.listdir(account.mnt)) <= {"INBOX", "Trash"}


@pytest.mark.main
def test_any_name(account):
    """Every name a listing may show can be made, and is the one it says."""
    for leaf in corpus.LEAVES:
        if leaf.startswith(".") or leaf in ("...",):
            continue
        shown = leaf.replace("%", "%25")
        if paths.MESSAGE.match(leaf) or leaf.startswith("pop-"):
            continue
        os.mkdir(account.mnt / shown)
        assert shown in os.listdir(account.mnt), leaf
        assert leaf in account.folders(), leaf
        (account.mnt / shown / "m.eml").write_bytes(mail("m"))
        account.sync(account.mnt / shown)
        assert account.subjects(leaf) == ["m"], leaf


def test_escaped_names(account):
    """The spelling of a listing is the spelling of mkdir."""
    for shown, name in (("%2Ehidden", ".hidden"), ("100%25", "100%"),
                        ("a%252Fb", "a%2Fb")):
        os.mkdir(account.mnt / shown)
        assert name in account.folders() and shown in os.listdir(account.mnt), shown
    for bad in ("100%", "a%2gb", "%41", "0000000042.1700000000.eml"):
        with refused((errno.EINVAL, errno.EPERM)):
            os.mkdir(account.mnt / bad)
    with refused(errno.ENAMETOOLONG):
        os.mkdir(account.mnt / ("x" * 256))
    with refused((errno.EINVAL, errno.EPERM, errno.EILSEQ)):
        os.mkdir(os.fsencode(account.mnt) + b"/\xff\xfe")


@pytest.mark.main
def test_rename_tree(account):
    sh("mkdir -p A/B/C", account.mnt)
    for path in ("A", "A/B", "A/B/C"):
        (account.mnt / path / "m.eml").write_bytes(mail(path.replace("/", "-")))
    account.sync(account.mnt / "A" / "B" / "C")
    ino = os.stat(account.mnt / "A" / "B" / "C" / "m.eml").st_ino
    before = account.daemon.counter("bytes_in")
    os.rename(account.mnt / "A", account.mnt / "Z")
    assert {"Z", "Z/B", "Z/B/C"} <= account.folders()
    assert not {f for f in account.folders() | account.subscribed() if f.startswith("A")}
    assert {"Z", "Z/B", "Z/B/C"} <= account.subscribed()
    assert not (account.mnt / "A").exists()
    assert (account.mnt / "Z/B/C/m.eml").read_bytes() == mail("A-B-C")
    assert os.stat(account.mnt / "Z/B/C/m.eml").st_ino == ino
    os.mkdir(account.mnt / "Top")
    os.rename(account.mnt / "Z" / "B", account.mnt / "Top" / "inner")
    assert {"Top/inner", "Top/inner/C", "Z"} <= account.folders()
    assert account.subjects("Top/inner/C") == ["A-B-C"]
    assert (account.mnt / "Top/inner/C/m.eml").read_bytes() == mail("A-B-C")
    account.daemon.stop()
    account.daemon.start()
    assert (account.mnt / "Top/inner/C/m.eml").read_bytes() == mail("A-B-C")


def test_rename_refused(account):
    os.mkdir(account.mnt / "Full")
    (account.mnt / "Full" / "m.eml").write_bytes(mail("m"))
    sh("mkdir Empty Other", account.mnt)
    account.sync(account.mnt / "Full")
    for old, new, code in (("INBOX", "Elsewhere", errno.EPERM), ("Other", "Full", errno.ENOTEMPTY),
                           ("none", "x", errno.ENOENT), ("Other", "Other/inside", errno.EINVAL),
                           ("Other", "INBOX", (errno.EPERM, errno.ENOTEMPTY, errno.EEXIST))):
        with refused(code):
            os.rename(account.mnt / old, account.mnt / new)
    with refused(errno.ENOTDIR):
        os.rename(account.mnt / "Other", account.mnt / "Full" / "m.eml")
    with refused((errno.EISDIR, errno.EPERM)):
        os.rename(account.mnt / "Full" / "m.eml", account.mnt / "Other")
    os.rename(account.mnt / "Other", account.mnt / "Empty")
    assert "Empty" in account.folders() and "Other" not in account.folders()
    assert account.subjects("Full") == ["m"]


def test_special_use_is_protected(own_dovecot, user, mount):
    server = own_dovecot()
    server.folder(user, "Trash")
    account = Account(server, user, mount(server.url(user), tls_ca=server.certs.ca))
    with refused(errno.EPERM):
        os.rmdir(account.mnt / "Trash")
    assert "Trash" in account.folders()


def test_rename_while_changes_are_queued(account):
    """What was written a moment ago into the mailbox arrives, wherever that is now."""
    os.mkdir(account.mnt / "From")
    for i in range(30):
        (account.mnt / "From" / f"{i}.eml").write_bytes(mail(f"q{i}"))
    os.rename(account.mnt / "From", account.mnt / "To")
    for i in range(30, 40):
        (account.mnt / "To" / f"{i}.eml").write_bytes(mail(f"q{i}"))
    account.sync(account.mnt / "To")
    assert account.subjects("To") == sorted(f"q{i}" for i in range(40))
    assert account.words(account.mnt / "To") == sorted(f"q{i}" for i in range(40))


def test_rmdir_with_a_staged_file(account):
    """A temporary file that was never sent counts: it would be lost with its mailbox."""
    os.mkdir(account.mnt / "Draft")
    (account.mnt / "Draft" / ".half").write_bytes(mail("half"))
    with refused(errno.ENOTEMPTY):
        os.rmdir(account.mnt / "Draft")
    os.unlink(account.mnt / "Draft" / ".half")
    os.rmdir(account.mnt / "Draft")
    assert "Draft" not in account.folders()


def test_made_by_another_meanwhile(account):
    """EEXIST although this mount had not heard of it."""
    assert not (account.mnt / "Race").exists()
    account.client.create("Race")
    code = 0
    try:
        os.mkdir(account.mnt / "Race")
    except OSError as error:
        code = error.errno
    assert code == errno.EEXIST
    wait_for("it is listed", lambda: (account.mnt / "Race").is_dir())


def test_dots_stay_local(account):
    """`mkdir .x`: names with a leading dot are not mailboxes."""
    with refused((errno.EINVAL, errno.EPERM)):
        os.mkdir(account.mnt / ".hidden")
    assert account.folders() == {"INBOX"}


def test_noselect_parent(account):
    """A directory that only holds others: nothing can be put in, it can be removed and renamed."""
    account.client.create("Only", "child")
    account.client.delete("Only") if "Only" in account.folders() else None
    wait_for("listed", lambda: (account.mnt / "Only" / "child").is_dir())
    os.rename(account.mnt / "Only" / "child", account.mnt / "Free")
    assert "Free" in account.folders()
    # it may go by itself just now
    assert error_of(os.rmdir, account.mnt / "Only") in (0, errno.ENOENT)
    wait_gone(account.mnt / "Only")
