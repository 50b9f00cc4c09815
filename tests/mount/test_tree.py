# SPDX-License-Identifier: MIT
"""A whole account, 10,000 messages in 200 folders: everything a mount shows equals what a plain IMAP
client fetches, and the server does not notice that it was read."""
import hashlib
import os
import random
import re
import subprocess
import types

import pytest

from support import corpus, paths

pytestmark = [pytest.mark.xdist_group("tree"), pytest.mark.limit(300)]

N_MESSAGES = int(os.environ.get("MAILFS_TREE_MESSAGES", "10000"))
BIG = 30 << 20  # one attachment that makes its message larger than this


def sh(script, cwd, seconds=200, check=True):
    done = subprocess.run(["bash", "-euc", script], cwd=cwd, capture_output=True, text=True,
                          timeout=seconds, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert not check or done.returncode == 0, f"{script}: {done.returncode}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def account(dovecot, module_mount):
    user = "tree"
    folders = [()] + corpus.folder_tree(200, 5)
    share = N_MESSAGES // (2 * len(folders))
    at = 0
    for i, folder in enumerate(folders):
        n = N_MESSAGES // 2 - share * (len(folders) - 1) if i == 0 else share
        n += N_MESSAGES // 2 if i == 1 else 0
        n = 0 if i % 20 == 19 else n  # some are empty
        dovecot.fill(user, range(at, at + n), *folder, new_every=0)
        at += n
    dovecot.fill(user, [10 ** 6], "Archive", seed=1, new_every=0,
                 make=lambda number, seed: corpus.attachment(random.Random(seed), number,
                                                             BIG * 3 // 4))
    with dovecot.client(user) as client:
        # a first look by somebody else takes \Recent away; what arrives later has it again
        names = sorted(client.folders())
        for name in names:
            client.select(name)
        client.imap.unselect()
        dovecot.fill(user, range(10 ** 6 + 1, 10 ** 6 + 8), new_every=1)
        dovecot.fill(user, range(10 ** 6 + 10, 10 ** 6 + 14), "Archive", new_every=1)
        before = {name: client.status(name) for name in names}
        truth = {name: client.messages(name) for name in names}
        validity = {name: before[name]["UIDVALIDITY"] for name in names}
    daemon = module_mount(user)
    return types.SimpleNamespace(user=user, mnt=daemon.mnt, daemon=daemon, names=names, truth=truth,
                                 before=before, validity=validity, dirs=paths.folders(daemon.mnt),
                                 copy=daemon.dir / "copy")


def each_message(account):
    for name in account.names:
        directory = account.dirs[name]
        for uid, message in account.truth[name].items():
            yield os.path.join(directory, paths.message_name(uid, account.validity[name])), message


def total(names, account):
    """Bytes of all messages of these folders."""
    return sum(m.size for name in names for m in account.truth[name].values())


def test_every_folder_once(account):
    """Names come back from their escaped spelling; nothing else stands in the tree."""
    assert set(account.dirs) >= set(account.names)
    # what is not selectable can only be a parent of something that is
    for extra in set(account.dirs) - set(account.names):
        assert any(name.startswith(extra + "/") for name in account.names), extra
    assert len(account.names) >= 200


def test_lists_equal(account):
    for name in account.names:
        assert set(paths.uids(account.dirs[name])) == set(account.truth[name]), name


def test_sizes_and_dates_before_any_body(account):
    """stat is exact without fetching."""
    before = account.daemon.counter("bytes_in")
    wrong = []
    for path, message in each_message(account):
        st = os.stat(path)
        if (st.st_size, int(st.st_mtime), int(st.st_atime)) != \
                (message.size, message.date, message.date):
            wrong.append((path, st.st_size, message))
    assert not wrong, wrong[:5]
    # looking for changes in all those folders costs some, each second
    assert account.daemon.counter("bytes_in") - before < total(account.names, account) // 20


def test_modes_and_flags(account):
    for name in account.names[::7]:
        directory = account.dirs[name]
        assert os.stat(directory).st_mode & 0o777 == 0o700
        for uid, message in list(account.truth[name].items())[:20]:
            path = os.path.join(directory, paths.message_name(uid, account.validity[name]))
            assert os.stat(path).st_mode & 0o777 == 0o600
            assert paths.flags_of(path) == message.flags, path
            assert os.listxattr(path) == ["user.imap.flags"]
            assert paths.xattr(path, "user.imap.uid") == str(uid)
            assert paths.xattr(path, "user.imap.uidvalidity") == str(account.validity[name])


def test_directory_xattrs(account):
    for name in account.names[::11]:
        directory, status = account.dirs[name], account.before[name]
        for key in ("uidvalidity", "uidnext", "messages", "unseen"):
            assert paths.xattr(directory, f"user.imap.{key}") == str(status[key.upper()]), name


def test_every_byte(account):
    wrong = []
    for path, message in each_message(account):
        with open(path, "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() != message.sha256:
                wrong.append(path)
    assert not wrong, (len(wrong), wrong[:5])


def test_server_did_not_notice(account, dovecot):
    """\\Seen, \\Recent, keywords: all as before."""
    with dovecot.client(account.user) as client:
        for name in account.names:
            assert client.status(name) == account.before[name], name
            now = client.messages(name, bodies=False)
            assert {u: (m.flags, m.recent) for u, m in now.items()} == \
                {u: (m.flags, m.recent) for u, m in account.truth[name].items()}, name


def test_rsync_twice(account):
    target = account.daemon.dir / "rsync"
    sh(f"rsync -a --exclude=/.mailfs mnt/ {target}/", account.daemon.dir)
    out = sh(f"rsync -a -i --stats mnt/ {target}/", account.daemon.dir)
    assert re.search(r"Number of regular files transferred: 0\n", out), out[:2000]
    assert not re.search(r"^[<>ch.*]\S{10} ", out, re.M), out[:2000]
    out = sh(f"rsync -a -n -c -i mnt/ {target}/", account.daemon.dir)
    assert out == ""
    account.copy = target


def test_diff_and_md5sum(account):
    sh("diff -r mnt rsync", account.daemon.dir)
    sh("(cd rsync; find . -type f -print0 | sort -z | xargs -0 md5sum) > sums; "
       "cd mnt; md5sum --quiet -c ../sums", account.daemon.dir)


def test_tar(account):
    sh("mkdir -p tar; tar c -C mnt . | tar x -C tar; diff -r mnt tar; tar d -C mnt -f "
       "<(tar c -C mnt .)", account.daemon.dir)
    out = sh("rsync -a -n -i --omit-dir-times mnt/ tar/", account.daemon.dir)
    assert out == ""


def test_cp_and_find(account):
    """On one folder that has a bit of everything."""
    folder = account.dirs["Old Job"]
    sh(f"rm -rf cp; cp -a {quoted(folder)} cp; diff -r {quoted(folder)} cp", account.daemon.dir)
    truth = account.truth["INBOX"]
    inbox = account.dirs["INBOX"]
    found = sh("find . -size +40k -type f | wc -l", inbox)
    assert int(found) == sum(-(-m.size // 1024) > 40 for m in truth.values())
    middle = sorted(m.date for m in truth.values())[len(truth) // 2]
    found = sh(f"find . -type f -newermt @{middle} | wc -l", inbox)
    assert int(found) == sum(m.date > middle for m in truth.values())
    total = sh("cat *.eml | wc -c", inbox)
    assert int(total) == sum(m.size for m in truth.values())
    last = sh("wc -c *.eml | tail -n 1", inbox)
    assert int(last.split()[0]) == sum(m.size for m in truth.values())


def test_grep(account, dovecot):
    with dovecot.client(account.user) as client:
        client.examine("INBOX")
        uids = {int(u) for u in client.ok(client.imap.uid("SEARCH", "TEXT", "sender42@"))[0].split()}
    found = sh("grep -rlI sender42@ . || true; grep -rl sender42@ . ", account.dirs["INBOX"])
    assert {int(os.path.basename(line).split(".")[0]) for line in found.splitlines()} == uids


def test_order_is_arrival(account):
    """Name order, readdir order, inode order and UID order are one."""
    with os.scandir(account.dirs["INBOX"]) as entries:
        seen = [(e.name, e.inode()) for e in entries if e.name.endswith(".eml")]
    assert seen == sorted(seen)
    assert [i for _, i in seen] == sorted(i for _, i in seen)
    assert os.stat(os.path.join(account.dirs["INBOX"], seen[0][0])).st_ino == seen[0][1]


def test_remount_is_the_same(account):
    """Inodes, names and cached bodies survive; the second time costs no bodies."""
    inbox = account.dirs["INBOX"]
    before = sorted((e.name, e.inode()) for e in os.scandir(inbox))
    account.daemon.stop()
    account.daemon.start()
    assert sorted((e.name, e.inode()) for e in os.scandir(inbox)) == before
    first = account.daemon.counter("bytes_in")
    sh("cat *.eml > /dev/null", inbox)
    assert account.daemon.counter("bytes_in") - first < total(["INBOX"], account) // 20


def quoted(path):
    return "'" + str(path).replace("'", "'\\''") + "'"
