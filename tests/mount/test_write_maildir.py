# SPDX-License-Identifier: MIT
"""layout=maildir written to: delivery by tmp, new and cur; flags by renaming; mutt and others."""
import errno
import os
import subprocess
import time

import pytest

from support.dovecot import wait_for
from support.write import Account, in_terminal, mail, refused, sh, sha


@pytest.fixture
def account(mount, dovecot, user):
    with dovecot.client(user) as client:
        for i in range(5):
            client.append(mail(f"m{i}"), when=1_000_000_000 + i, flags="(\\Seen)" if i else None)
        client.create("Archive")
    account = Account(dovecot, user, mount(user, layout="maildir"))
    account.cur, account.new, account.tmp = (account.inbox / d for d in ("cur", "new", "tmp"))
    return account


def find(account, word, folder="INBOX"):
    """The one file with this subject."""
    found = [p for sub in ("cur", "new") for p in (account.mnt / folder / sub).iterdir()
             if b"Subject: " + word.encode() + b"\r\n" in p.read_bytes()]
    assert len(found) == 1, found
    return found[0]


def subjects(account, folder="INBOX"):
    return sorted(w for sub in ("cur", "new") for w in account.words(account.mnt / folder / sub))


@pytest.mark.main
@pytest.mark.parametrize("target,flags", [("new", set()), ("cur", set()), ("cur:2,", set()),
                                          ("cur:2,S", {"\\Seen"}),
                                          ("cur:2,DFPRST", {"\\Draft", "\\Flagged", "$Forwarded",
                                                            "\\Answered", "\\Seen", "\\Deleted"})])
def test_delivery(account, target, flags):
    sub, _, info = target.partition(":")
    base = "1700000000.M1P2.host"
    (account.tmp / base).write_bytes(mail("delivered"))
    assert (account.tmp / base).read_bytes() == mail("delivered")
    account.sync(account.tmp)
    assert len(account.see()) == 5
    os.rename(account.tmp / base, account.inbox / sub / (base + (":" + info if info else "")))
    account.sync(account.inbox / sub)
    seen = account.see()
    assert len(seen) == 6 and seen[6].flags == flags
    assert seen[6].sha256 == sha(mail("delivered"))
    assert os.listdir(account.tmp) == []
    path = find(account, "delivered")
    assert path.parent.name == ("cur" if flags else sub if sub == "new" else path.parent.name)
    assert path.read_bytes() == mail("delivered")
    account.daemon.stop()
    account.daemon.start()
    assert find(account, "delivered").read_bytes() == mail("delivered")


def test_delivery_agents(account, work):
    """link and unlink, as classic delivery does it, is refused; what falls back to rename works."""
    (account.tmp / "x").write_bytes(mail("linked"))
    with refused(errno.EPERM):
        os.link(account.tmp / "x", account.new / "x")
    os.rename(account.tmp / "x", account.new / "x")
    account.sync(account.new)
    assert len(account.see()) == 6
    import mailbox
    box = mailbox.Maildir(str(account.inbox), factory=None, create=False)
    try:
        key = box.add(mail("python"))
    except OSError as error:
        key = None
        assert error.errno == errno.EPERM  # it insists on links
    account.sync(account.new)
    assert len(account.see()) == (7 if key else 6)


@pytest.mark.main
def test_flags_by_renaming(account):
    path = find(account, "m0")
    assert path.parent.name == "new"
    seen = account.cur / (path.name + ":2,S")
    os.rename(path, seen)
    account.sync(account.cur)
    assert account.see()[1].flags == {"\\Seen"}
    path = find(account, "m0")
    assert path == seen, (path, seen)
    for letters, want in (("FS", {"\\Flagged", "\\Seen"}), ("RS", {"\\Answered", "\\Seen"}),
                          ("PS", {"$Forwarded", "\\Seen"}), ("", set()), ("T", {"\\Deleted"}),
                          ("DFPRST", {"\\Draft", "\\Flagged", "$Forwarded", "\\Answered", "\\Seen",
                                      "\\Deleted"})):
        base = path.name.partition(":")[0]
        target = account.cur / f"{base}:2,{letters}"
        os.rename(path, target)
        assert target.exists() and (target == path or not path.exists()), letters
        account.sync(account.cur)
        assert account.see()[1].flags == want, letters
        assert target in list(account.cur.iterdir()), letters
        path = target


def test_flags_change_the_time(account):
    """They are in the names: who looks at the time only must see that there is something new."""
    for who, flag in (("here", "F"), ("here again", "D"), ("elsewhere", None)):
        before = os.stat(account.cur).st_mtime
        wait_for("another second", lambda t=before: time.time() >= t + 1)
        name = find(account, "m1").name
        if flag is not None:
            os.rename(account.cur / name, account.cur / (name + flag))
            assert os.stat(account.cur).st_mtime > before, who
            account.sync(account.cur)
        else:
            with account.server.client(account.user) as client:
                client.select("INBOX")
                client.store(2, "+FLAGS", "(\\Answered)")
            wait_for("another name", lambda n=name: n not in os.listdir(account.cur))
            assert find(account, "m1").name != name
            wait_for("another time", lambda t=before: os.stat(account.cur).st_mtime > t)
        assert os.stat(account.cur).st_mtime > before, who


def test_new_to_cur_without_a_flag(account):
    """Only this side knows, and remembers."""
    path = find(account, "m0")
    os.rename(path, account.cur / (path.name + ":2,"))
    assert find(account, "m0").parent.name == "cur"
    account.daemon.stop()
    account.daemon.start()
    assert find(account, "m0").parent.name == "cur"
    assert account.see()[1].flags == set()


def test_keywords_survive(account):
    account.client.store(2, "+FLAGS", "(work)")
    wait_for("seen", lambda: b"work" in os.getxattr(find(account, "m1"), "user.imap.flags"))
    path = find(account, "m1")
    os.rename(path, account.cur / path.name.replace(":2,S", ":2,FS"))
    account.sync(account.cur)
    assert account.see()[2].flags == {"work", "\\Seen", "\\Flagged"}


def test_remove_and_move(account):
    os.unlink(find(account, "m1"))
    path = find(account, "m2")
    os.rename(path, account.mnt / "Archive" / "cur" / path.name)
    path = find(account, "m0")
    os.rename(path, account.mnt / "Archive" / "new" / path.name)
    account.sync(account.cur)
    account.sync(account.new)
    assert account.subjects() == ["m3", "m4"] and account.subjects("Archive") == ["m0", "m2"]
    assert account.subjects("Trash") == ["m1"]
    assert subjects(account) == ["m3", "m4"] and subjects(account, "Archive") == ["m0", "m2"]
    assert find(account, "m2", "Archive").name.endswith(":2,S")


def test_move_with_another_flag(account):
    """A mail program that marks and files in one rename."""
    path = find(account, "m3")
    os.rename(path, account.mnt / "Archive" / "cur" / path.name.replace(":2,S", ":2,RS"))
    account.sync(account.cur)
    account.sync(account.mnt / "Archive" / "cur")
    (message,) = account.see("Archive").values()
    assert message.flags == {"\\Seen", "\\Answered"}
    assert find(account, "m3", "Archive").name.endswith(":2,RS")


def test_folders(account):
    os.mkdir(account.mnt / "Made")
    assert sorted(os.listdir(account.mnt / "Made")) == ["cur", "new", "tmp"]
    assert "Made" in account.folders()
    for sub in ("cur", "new", "tmp"):
        with refused(errno.EEXIST):
            os.mkdir(account.mnt / "Made" / sub)
    (account.mnt / "Made" / "tmp" / "x").write_bytes(mail("x"))
    os.rename(account.mnt / "Made" / "tmp" / "x", account.mnt / "Made" / "new" / "x")
    with refused(errno.ENOTEMPTY):
        os.rmdir(account.mnt / "Made")
    sh("rm -r Made", account.mnt)
    assert "Made" not in account.folders() and not (account.mnt / "Made").exists()
    assert account.subjects("Trash") == ["x"]
    with refused(errno.EPERM):
        open(account.inbox / "not-here", "wb")


def mutt(account, work, keys, folder="INBOX"):
    (work / "muttrc").write_text(
        f"set mbox_type=Maildir\nset folder={account.mnt}\nset record=''\nset move=no\n"
        "set confirmappend=no\nset confirmcreate=no\nset delete=yes\nset quit=yes\n"
        "set wait_key=no\nset mark_old=yes\nset postponed=''\nset header_cache=''\n"
        "set sleep_time=0\nset sort=mailbox-order\nunset beep\nset auto_tag=no\n"
        "set mail_check=0\nset resolve=no\n")
    code, screen = in_terminal(
        ["mutt", "-n", "-F", work / "muttrc", "-f", account.mnt / folder, "-e", f"push '{keys}'"],
        [], work, env={"HOME": str(work)})
    assert code == 0, screen[-1500:]


def search(word):
    return f"<search>~s {word}<enter>"


@pytest.mark.main
def test_mutt(account, work):
    """Flag one, delete one, move one, read one, quit."""
    mutt(account, work, search("m1") + "<flag-message>" + search("m2") + "<delete-message>"
         + search("m3") + "<save-message><kill-line>=Archive<enter>"
         + search("m0") + "<display-message><exit><quit>")
    for directory in (account.cur, account.new, account.mnt / "Archive" / "cur",
                      account.mnt / "Archive" / "new"):
        account.sync(directory)
    assert account.subjects() == ["m0", "m1", "m4"]
    assert account.subjects("Archive") == ["m3"]
    wait_for("the trash has what was deleted and what was copied away", lambda:
             account.subjects("Trash") == ["m2", "m3"] or account.subjects("Trash") == ["m2"])
    seen = account.see()
    assert seen[2].flags == {"\\Seen", "\\Flagged"}
    assert seen[1].flags == {"\\Seen"}
    assert account.failed() == {}
    assert subjects(account) == ["m0", "m1", "m4"] and subjects(account, "Archive") == ["m3"]


def test_mutt_undelete_and_many(account, work):
    """Everything deleted and taken back changes nothing; then all flags cleared."""
    before = account.see()
    mutt(account, work, "<delete-pattern>~A<enter><undelete-pattern>~A<enter><exit>")
    account.sync(account.cur)
    assert {u: m.sha256 for u, m in account.see().items()} == \
        {u: m.sha256 for u, m in before.items()}
    mutt(account, work, "<tag-pattern>~A<enter><tag-prefix><flag-message><quit>")
    account.sync(account.cur)
    account.sync(account.new)
    assert all("\\Flagged" in m.flags for m in account.see().values())


def test_rsync_in(account, work):
    """A Maildir copied in as it is."""
    box = work / "box"
    for sub in ("cur", "new", "tmp"):
        (box / sub).mkdir(parents=True)
    for i in range(20):
        path = box / ("cur" if i % 2 else "new") / (f"17{i:08d}.M{i}.host" + (":2,FS" if i % 2 else ""))
        path.write_bytes(mail(f"r{i}"))
        os.utime(path, (900_000_000 + i, 900_000_000 + i))
    sh(f"rsync -rt --omit-dir-times {box}/ {account.mnt}/Archive/", work)
    account.sync(account.mnt / "Archive" / "cur")
    account.sync(account.mnt / "Archive" / "new")
    seen = account.see("Archive")
    assert account.subjects("Archive") == sorted(f"r{i}" for i in range(20))
    assert sorted((m.date, m.flags) for m in seen.values()) == \
        [(900_000_000 + i, {"\\Flagged", "\\Seen"} if i % 2 else set()) for i in range(20)]
    assert subprocess.run(["find", str(account.mnt / "Archive" / "tmp"), "-type", "f"],
                          capture_output=True, timeout=20).stdout == b""


def test_names_are_kept(account):
    """The part before the colon is the deliverer's, whatever the flags become, also after a remount."""
    base = "1700000000.M1P2.host"
    for sub, info in (("new", ""), ("cur", ":2,S"), ("cur", ":2,")):
        name = f"{base}{len(info)}{info}"
        (account.tmp / name).write_bytes(mail(f"kept{len(info)}"))
        os.rename(account.tmp / name, account.inbox / sub / name)
        os.utime(account.inbox / sub / name)  # as mutt does
        assert name in os.listdir(account.inbox / sub)
    account.sync(account.cur)
    account.sync(account.new)
    os.rename(account.new / f"{base}0", account.cur / f"{base}0:2,FS")
    assert find(account, "kept0") == account.cur / f"{base}0:2,FS"
    path = find(account, "m3")
    os.rename(path, account.mnt / "Archive" / "cur" / path.name)
    os.rename(find(account, "m1"), account.cur / "own.name:2,RS")
    account.sync(account.cur)
    want = {f"{base}0:2,FS", f"{base}4:2,S", f"{base}3:2,", "own.name:2,RS"}
    assert want < set(os.listdir(account.cur))
    account.daemon.stop()
    account.daemon.start()
    assert want < set(os.listdir(account.cur))
    assert os.listdir(account.mnt / "Archive" / "cur") == [path.name]
    assert (account.cur / "own.name:2,RS").read_bytes() == mail("m1")
    assert account.see()[2].flags == {"\\Answered", "\\Seen"}
