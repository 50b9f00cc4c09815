# SPDX-License-Identifier: MIT
"""A whole account out and into an empty one: rsync -aX and tar --xattrs find no difference, and
neither does a plain IMAP client."""
import os
import random
import types

import pytest

from support import corpus
from support.dovecot import wait_for
from support.write import Account, sh

pytestmark = [pytest.mark.xdist_group("round"), pytest.mark.limit(300)]

N_MESSAGES = int(os.environ.get("MAILFS_ROUND_MESSAGES", "2000"))
N_FOLDERS = 40
SYSTEM = ["\\Answered", "\\Deleted", "\\Draft", "\\Flagged", "\\Seen"]
KEYWORDS = ["$Forwarded", "$Label1", "$MDNSent", "Junk", "NonJunk", "work", "a.b", "x-custom_1"]
FIRST = 788918400  # 1995-01-01


def small(number, seed):
    """A message of the corpus that is not one of the huge ones."""
    return corpus.message(number if number % 2500 != 1249 else number + 1, seed)


def fill(server, user):
    """By the server's own files, flags beyond those of Maildir by IMAP."""
    rng = random.Random(7)
    leaves = [leaf for leaf in corpus.LEAVES if not leaf.startswith("x" * 100)]
    paths = [()] + corpus.folder_tree(N_FOLDERS - 1, 4, leaves)
    share = N_MESSAGES // (len(paths) - 2)
    for i, path in enumerate(paths):
        n = 0 if i % 20 == 7 else share
        server.fill(user, range(i * share, i * share + n), *path, make=small, new_every=5)
        for j, file in enumerate(sorted((server.folder(user, *path) / "cur").iterdir())):
            when = FIRST + rng.randrange(30 * 365 * 86400) if j else FIRST
            os.utime(file, (when, when))
    with server.client(user) as client:
        for name in client.folders():
            client.select(name)
            count = client.response("EXISTS") if client.status(name)["MESSAGES"] else 0
            for word in (SYSTEM + KEYWORDS) if count else []:
                uids = ",".join(str(u) for u in range(1, count + 1) if rng.random() < .15)
                if uids:
                    client.ok(client.imap.uid("STORE", uids, "+FLAGS.SILENT", f"({word})"))
            client.imap.unselect()


def contents(server, user):
    """{folder: sorted (digest, date, flags)} by IMAP."""
    account = Account(server, user)
    return {name: sorted((m.sha256, m.date, sorted(m.flags)) for m in account.see(name).values())
            for name in account.folders()}


def same(there, truth):
    assert {k for k in there if k != "Trash" or there[k]} == set(truth)
    for name, want in truth.items():
        extra = [m for m in there[name] if m not in want]
        missing = [m for m in want if m not in there[name]]
        assert not extra and not missing and len(there[name]) == len(want), (name, extra, missing)


@pytest.fixture(scope="module")
def source(dovecot, module_mount, run_dir):
    fill(dovecot, "round")
    truth = contents(dovecot, "round")
    assert len(truth) >= N_FOLDERS and sum(map(len, truth.values())) >= N_MESSAGES * 9 // 10
    daemon = module_mount("round")
    return types.SimpleNamespace(mnt=daemon.mnt, dir=daemon.dir, truth=truth)


def test_rsync_out(source):
    sh(f"rsync -aX mnt/ {source.dir}/backup/", source.dir, 200)
    assert sh(f"rsync -aXni mnt/ {source.dir}/backup/", source.dir) == ""


def test_rsync_in(source, dovecot, mount, user):
    backup = source.dir / "backup"
    assert backup.exists(), "test_rsync_out made it"
    target = mount(user)
    sh(f"rsync -aX {backup}/ mnt/", target.dir, 200)
    assert sh(f"rsync -aXni {backup}/ mnt/", target.dir, 100) == ""
    account = Account(dovecot, user, target)
    account.sync(target.mnt)
    wait_for("the queue is empty", lambda: account.queue() == [])
    assert account.failed() == {}
    there = contents(dovecot, user)
    same(there, source.truth)
    assert sh(f"rsync -aXni {backup}/ mnt/", target.dir, 100) == ""
    # a new mount, where only the server's word counts
    target.stop()
    target.start()
    assert sh(f"rsync -aXni {backup}/ mnt/", target.dir, 100) == ""
    # and compared byte by byte
    assert sh(f"rsync -aXnic {backup}/ mnt/", target.dir, 200) == ""


def test_tar(source, dovecot, mount, user):
    target = mount(user)
    sh("tar c --xattrs --xattrs-include='user.imap.*' -C mnt . > all.tar", source.dir, 200)
    sh(f"tar x --xattrs --xattrs-include='user.imap.*' -C mnt -f {source.dir}/all.tar", target.dir,
       200)
    account = Account(dovecot, user, target)
    account.sync(target.mnt)
    wait_for("the queue is empty", lambda: account.queue() == [])
    assert account.failed() == {}
    there = contents(dovecot, user)
    same(there, source.truth)
    out = sh(f"tar d -C mnt -f {source.dir}/all.tar", target.dir, 200, check=False)
    assert out.returncode == 0, out.stdout[:2000] + out.stderr[:2000]
