# SPDX-License-Identifier: MIT
"""rm: to the trash or gone for good, and never more than what was named."""
import errno
import os
import re

import pytest

from support import paths
from support.dovecot import wait_for
from support.write import Account, mail, refused, sh, wait_gone


@pytest.fixture
def make(mount, dovecot, user):
    """make(trash=…) gives an account with 12 messages "m0" … "m11", of which another client has
    marked 10 and 11 deleted; fill: how many messages other folders have."""
    def build(n=12, fill=None, **options):
        for path, many in (fill or {}).items():
            dovecot.fill(user, range(many), *path.split("/"), new_every=0)
        with dovecot.client(user) as client:
            for i in range(n):
                client.append(mail(f"m{i}"), when=1_000_000_000 + i)
            if n == 12:
                client.store(10, "+FLAGS", "(\\Deleted)")
                client.store(11, "+FLAGS", "(\\Deleted)")
                client.imap.unselect()
        account = Account(dovecot, user, mount(user, **options))
        account.validity = account.client.uidvalidity()
        account.path = lambda uid: account.inbox / paths.message_name(uid, account.validity)
        return account
    return build


def others_survive(account):
    seen = account.see(bodies=False)
    assert {10, 11} <= set(seen), "what another client marked is not ours to expunge"
    assert all("\\Deleted" in seen[uid].flags for uid in (10, 11))


@pytest.mark.main
def test_to_the_trash(make):
    """There is none at first: it is made, and subscribed."""
    account = make()
    assert "Trash" not in account.folders()
    os.unlink(account.path(3))
    assert not os.path.exists(account.path(3))
    account.sync()
    assert account.subjects("Trash") == ["m2"]
    assert account.see("Trash")[1].date == 1_000_000_002
    assert 3 not in account.see()
    assert account.words(account.mnt / "Trash") == ["m2"]
    assert "Trash" in account.subscribed()
    os.unlink(account.path(4))
    account.sync()
    assert account.subjects("Trash") == ["m2", "m3"]
    others_survive(account)
    assert "UID 3" in account.daemon.log() or "3" in account.daemon.log()


def test_inside_the_trash_is_for_good(make):
    account = make()
    os.unlink(account.path(1))
    account.sync()
    trash = account.mnt / "Trash"
    wait_for("it is there", lambda: trash.is_dir() and len(os.listdir(trash)) == 1)
    account.client.append(mail("other"), "Trash", flags="(\\Deleted)")
    wait_for("both", lambda: len(os.listdir(trash)) == 2)
    os.unlink(trash / min(os.listdir(trash)))
    account.sync(trash)
    assert account.subjects("Trash") == ["other"]
    others_survive(account)


def test_trash_none(make):
    account = make(trash="none")
    for uid in (1, 2, 3, 12):
        os.unlink(account.path(uid))
    account.sync()
    assert set(account.see()) == {4, 5, 6, 7, 8, 9, 10, 11}
    assert account.folders() == {"INBOX"}
    others_survive(account)


def test_trash_named(make):
    """Made where it is not; nested."""
    account = make(trash="Bin/Old")
    os.unlink(account.path(1))
    account.sync()
    assert account.subjects("Bin/Old") == ["m0"]
    assert "Trash" not in account.folders()
    old = account.mnt / "Bin" / "Old"
    wait_for("it is listed", lambda: old.is_dir() and len(os.listdir(old)) == 1)
    os.unlink(old / os.listdir(old)[0])
    account.sync(old)
    assert account.see("Bin/Old") == {}
    others_survive(account)


def test_special_use_by_another_name(own_dovecot, user, mount):
    server = own_dovecot()
    server.folder(user, "Trash")
    with server.client(user) as client:
        client.append(mail("one"))
    account = Account(server, user, mount(server.url(user), tls_ca=server.certs.ca))
    os.unlink(account.inbox / os.listdir(account.inbox)[0])
    account.sync()
    assert account.subjects("Trash") == ["one"]


def test_rm_glob_find_delete(make):
    account = make()
    sh("rm *.eml", account.inbox)
    assert os.listdir(account.inbox) == []
    account.sync()
    assert account.see() == {}
    assert len(account.see("Trash")) == 12
    trash = account.mnt / "Trash"
    wait_for("the trash is listed", lambda: len(os.listdir(trash)) == 12)
    sh("find . -name '*.eml' -delete", trash)
    account.sync(trash)
    assert account.see("Trash") == {}


@pytest.mark.main
def test_rm_r_of_a_mailbox(make):
    account = make(fill={"Old": 40, "Old/2020": 40})
    old = account.mnt / "Old"
    assert len(os.listdir(old)) == 41
    sh("rm -r Old", account.mnt)
    assert not old.exists()
    assert not {f for f in account.folders() if f.startswith("Old")}
    assert len(account.see("Trash")) == 80
    others_survive(account)


def test_rm_r_with_trash_none(make):
    account = make(trash="none", fill={"Old": 40})
    sh("rm -r Old", account.mnt)
    assert account.folders() == {"INBOX"}


def test_new_mail_stops_rm_r(make):
    """What came in the last moment is not deleted with its mailbox."""
    account = make()
    account.client.create("Busy")
    account.client.append(mail("seen"), "Busy")
    busy = account.mnt / "Busy"
    wait_for("it is there", lambda: busy.is_dir() and len(os.listdir(busy)) == 1)
    os.unlink(busy / os.listdir(busy)[0])
    account.client.append(mail("late"), "Busy")
    with refused(errno.ENOTEMPTY):
        os.rmdir(busy)
    assert account.subjects("Busy") == ["late"]


def test_open_file_reads_on(make):
    account = make()
    with open(account.path(5), "rb") as file:
        os.unlink(account.path(5))
        assert file.read() == mail("m4")
        account.sync()
        file.seek(0)
        assert file.read() == mail("m4")


def test_vanished_meanwhile(make):
    """Somebody else was faster: gone is gone."""
    account = make()
    assert os.path.exists(account.path(6))
    account.client.expunge("6")
    account.client.imap.unselect()
    try:
        os.unlink(account.path(6))
        account.sync()
    except OSError as error:
        assert error.errno in (errno.ENOENT, errno.ESTALE)
    wait_gone(account.path(6))
    account.daemon.allow("UID 6|gone|no longer|no such")
    others_survive(account)


@pytest.mark.main
def test_unmounted_right_away(make):
    """The queue is drained before the daemon goes."""
    account = make(n=1, fill={"many": 300})
    many = account.mnt / "many"
    assert len(os.listdir(many)) == 300
    sh("rm *.eml", many)
    account.daemon.stop()
    assert account.see("many") == {} and len(account.see("Trash", bodies=False)) == 300


def test_no_bare_expunge(make, work):
    """The commands themselves: EXPUNGE and CLOSE are never among them."""
    account = make(trash="none", _args=("-f", "-v"))
    for uid in (1, 2, 3):
        os.unlink(account.path(uid))
    account.sync()
    account.daemon.stop()
    log = account.daemon.log()
    assert re.search(r"UID EXPUNGE", log), "the trace shows no UID EXPUNGE"
    assert not re.search(r"\b\w+\d+ (EXPUNGE|CLOSE)\b", log)
    others_survive(account)
