# SPDX-License-Identifier: MIT
"""Reading in all the ways programs read, and how little of it goes over the wire."""
import concurrent.futures
import errno
import hashlib
import os
import random
import subprocess

import pytest

from support import corpus, paths
from support.dovecot import wait_for
from support.mount import SANITIZED

BLOCK = 64 * 1024


def big(number, seed):
    return corpus.attachment(random.Random(number), number, (30 << 20) * 3 // 4)


@pytest.fixture
def big_message(mount, dovecot, user):
    dovecot.fill(user, [1], make=big, new_every=0)
    daemon = mount(user, refresh=600)  # what looking for changes costs is not counted
    path = daemon.mnt / "INBOX" / os.listdir(daemon.mnt / "INBOX")[0]
    with dovecot.client(user) as client:
        whole = client.body(1)
    assert len(whole) > 30 << 20
    return daemon, path, whole


@pytest.mark.main
def test_head_moves_two_blocks(big_message):
    daemon, path, whole = big_message
    assert os.stat(path).st_size == len(whole)
    before = daemon.counter("bytes_in")
    out = subprocess.run(["head", "-c", "100", str(path)], capture_output=True, timeout=60).stdout
    assert out == whole[:100]
    moved = daemon.counter("bytes_in") - before
    assert moved <= 2 * BLOCK + 4096, moved
    assert int(os.getxattr(path, "user.mailfs.cached")) <= 2 * BLOCK


def test_random_access(big_message):
    daemon, path, whole = big_message
    rng = random.Random(1)
    before = daemon.counter("bytes_in")
    with open(path, "rb", buffering=0) as file:
        for _ in range(40):
            offset = rng.randrange(len(whole))
            n = rng.choice([1, 100, 4096, 70000])
            assert os.pread(file.fileno(), n, offset) == whole[offset:offset + n]
        assert os.pread(file.fileno(), 100, len(whole)) == b""
        assert os.pread(file.fileno(), 100, len(whole) - 10) == whole[-10:]
        assert daemon.counter("bytes_in") - before < len(whole) // 2
        file.seek(0)
        assert hashlib.sha256(file.read()).digest() == hashlib.sha256(whole).digest()
    assert int(os.getxattr(path, "user.mailfs.cached")) == len(whole)
    assert daemon.counter("bytes_in") - before < len(whole) * 5 // 4


def test_mmap(big_message):
    import mmap
    daemon, path, whole = big_message
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as map_:
        assert map_[20_000_000:20_000_100] == whole[20_000_000:20_000_100]
        assert map_[-50:] == whole[-50:]


@pytest.mark.parametrize("same", [True, False])
def test_thousand_readers(mount, dovecot, user, same):
    """One file: each block comes once. A thousand files: all right, and ls answers meanwhile."""
    n = 1000
    dovecot.fill(user, [1249] if same else range(n), new_every=0)
    daemon = mount(user, timeout=60)
    inbox = daemon.mnt / "INBOX"
    names = sorted(os.listdir(inbox))
    with dovecot.client(user) as client:
        truth = {uid: m.sha256 for uid, m in client.messages().items()}
    sizes = sum(os.stat(inbox / name).st_size for name in names)
    before = daemon.counter("bytes_in")

    def digest(i):
        name = names[i % len(names)]
        with open(inbox / name, "rb") as file:
            return int(name.split(".")[0]), hashlib.sha256(file.read()).hexdigest()

    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        futures = [pool.submit(digest, i) for i in range(n)]
        assert sorted(os.listdir(inbox)) == names
        for future in futures:
            uid, sha = future.result()
            assert truth[uid] == sha
    assert daemon.counter("bytes_in") - before < sizes * 11 // 10 + 100_000 + 600 * len(names)


@pytest.mark.main
def test_eol_lf(mount, dovecot, user):
    """Unix line ends; size and bytes agree once opened, for every kind of mail."""
    dovecot.fill(user, range(200), new_every=0)
    daemon = mount(user, eol="lf")
    inbox = daemon.mnt / "INBOX"
    with dovecot.client(user) as client:
        validity = client.uidvalidity()
        for uid in client.messages("INBOX", bodies=False):
            want = client.body(uid).replace(b"\r\n", b"\n")
            path = inbox / paths.message_name(uid, validity)
            with open(path, "rb") as file:
                assert os.fstat(file.fileno()).st_size == len(want)
                assert file.read() == want, path
            assert os.stat(path).st_size == len(want)
    done = subprocess.run(f"wc -c < <(cat {inbox}/*); grep -lP '\\r$' {inbox}/* | wc -l", shell=True,
                          executable="/bin/bash", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0


def test_empty_mailbox_and_message_names(mount, dovecot, user):
    dovecot.folder(user, "empty")
    daemon = mount(user)
    assert os.listdir(daemon.mnt / "empty") == []
    for wrong in ("0000000001.1.eml", "x", "0000000001", ".hidden", "a" * 255):
        with pytest.raises(FileNotFoundError):
            os.stat(daemon.mnt / "INBOX" / wrong)
    with pytest.raises(OSError) as error:
        os.stat(daemon.mnt / "INBOX" / ("a" * 256))
    assert error.value.errno == errno.ENAMETOOLONG


NAMES = [  # IMAP name, the directory it must be
    ("plain", "plain"),
    ("with space", "with space"),
    ("R&D", "R&D"),
    ("Grüße", "Grüße"),
    ("日本語", "日本語"),
    ("100%", "100%25"),
    ("a%2Fb", "a%252Fb"),
    (".hidden", "%2Ehidden"),
    ("...", "%2E.."),
]


@pytest.mark.main
def test_names(mount, dovecot, user):
    for name, _ in NAMES:
        with dovecot.client(user) as client:
            client.create(name)
    with dovecot.client(user) as client:
        client.create("0000000042.1700000000.eml")
        client.create("pop-0123456789abcdef.eml")
        want = set(client.folders())
    daemon = mount(user)
    entries = set(os.listdir(daemon.mnt))
    assert {d for _, d in NAMES} <= entries
    assert {paths.unescape(e) for e in entries} == want
    assert "0000000042.1700000000.eml" not in entries
    for name, directory in NAMES:
        assert os.listdir(daemon.mnt / directory) == []
    for wrong in ("100%", ".hidden", "plain%", "%70lain"):
        assert not os.path.exists(daemon.mnt / wrong), wrong


@pytest.mark.plain_only
@pytest.mark.limit(240)
@pytest.mark.xdist_group("huge")
def test_hundred_thousand(mount, dovecot, user):
    """Lists, stats and greps a sample, within 64 MiB."""
    assert not SANITIZED
    n = 100_000
    dovecot.fill(user, range(n), new_every=0, make=lambda number, seed:
                 f"From: s{number % 97}@example.org\nSubject: {number}\n\nbody {number}\n".encode())
    with dovecot.client(user) as client:
        client.select()
        truth = client.messages("INBOX", bodies=False)
        validity = client.response("UIDVALIDITY")
    assert len(truth) == n
    daemon = mount(user, timeout=60)
    inbox = daemon.mnt / "INBOX"
    assert set(paths.uids(inbox)) == set(truth)
    out = subprocess.run(["ls", "-l", str(inbox)], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0 and len(out.stdout.splitlines()) == n + 1
    for uid in random.Random(3).sample(sorted(truth), 500):
        stat = os.stat(inbox / paths.message_name(uid, validity))
        assert (stat.st_size, int(stat.st_mtime)) == (truth[uid].size, truth[uid].date)
    sample = [paths.message_name(uid, validity) for uid in range(50_000, 52_000)]
    found = subprocess.run(["xargs", "grep", "-l", "^From: s42@"], cwd=inbox, text=True,
                           input="\n".join(sample), capture_output=True, timeout=120).stdout.split()
    assert len(found) in (20, 21)
    rss = daemon.rss_kib()
    print(f"resident: {rss} KiB")
    assert rss < 64 * 1024, rss
    daemon.stop()
    daemon.start()
    before = daemon.counter("bytes_in")
    assert len(os.listdir(inbox)) == n
    assert daemon.counter("bytes_in") - before < 100_000
    assert daemon.rss_kib() < 64 * 1024


def test_ro(mount, dovecot, user):
    dovecot.fill(user, range(2), new_every=0)
    daemon = mount(user, ro=True)
    inbox = daemon.mnt / "INBOX"
    path = inbox / os.listdir(inbox)[0]
    assert path.read_bytes()
    for change in (lambda: os.unlink(path), lambda: os.mkdir(daemon.mnt / "new"),
                   lambda: open(inbox / "new.eml", "w"), lambda: open(path, "r+"),
                   lambda: os.rename(path, inbox / "other"),
                   lambda: os.setxattr(path, "user.imap.flags", b"\\Seen"),
                   lambda: os.chmod(path, 0o640)):
        with pytest.raises(OSError) as error:
            change()
        assert error.value.errno == errno.EROFS


def test_df_shows_quota(own_dovecot, mount, user):
    server = own_dovecot(quota="10M")
    server.fill(user, range(100), new_every=0)
    with server.client(user) as client:
        client.select()
    daemon = mount(server.url(user), tls_ca=server.certs.ca)
    os.listdir(daemon.mnt / "INBOX")
    stat = os.statvfs(daemon.mnt)
    assert stat.f_blocks * stat.f_frsize == 10 << 20
    assert 0 < stat.f_bavail * stat.f_frsize < 10 << 20
    out = subprocess.run(["df", str(daemon.mnt)], capture_output=True, text=True, timeout=30)
    assert out.returncode == 0 and "%" in out.stdout


def test_df_without_quota(mount, user):
    daemon = mount(user)
    stat = os.statvfs(daemon.mnt)
    assert stat.f_namemax == 255


def test_status_is_not_listed(mount, user):
    daemon = mount(user)
    assert ".mailfs" not in os.listdir(daemon.mnt)
    status = daemon.status()
    for name in ("requests", "hits", "bytes_in", "round_trips", "reconnects"):
        assert isinstance(status[name], int), status
    assert status["bytes_in"] > 0


def test_xattrs(mount, dovecot, user):
    dovecot.fill(user, [0], new_every=0)
    daemon = mount(user)
    path = daemon.mnt / "INBOX" / os.listdir(daemon.mnt / "INBOX")[0]
    assert os.listxattr(path) == ["user.imap.flags"]
    assert paths.xattr(path, "user.mailfs.cached") == "0"
    size = len(path.read_bytes())
    assert paths.xattr(path, "user.mailfs.cached") == str(size)
    assert int(paths.xattr(path, "user.imap.modseq")) > 0
    assert paths.xattr(path, "user.imap.internaldate")
    for missing in ("user.imap.nothing", "user.x", "user.imap.uidnext"):
        with pytest.raises(OSError) as error:
            os.getxattr(path, missing)
        assert error.value.errno == errno.ENODATA
    # what ls -l asks: told so, it does not ask of the next file again
    for never in ("security.selinux", "system.posix_acl_access", "security.capability"):
        with pytest.raises(OSError) as error:
            os.getxattr(path, never)
        assert error.value.errno == errno.ENOTSUP
    assert paths.xattr(daemon.mnt / "INBOX", "user.imap.mailbox") == "INBOX"
    out = subprocess.run(["getfattr", "-d", "-m", "-", str(path)], capture_output=True, text=True,
                         timeout=30).stdout
    assert "user.imap.flags" in out and "user.imap.uid" not in out


def test_cache_budget(mount, dovecot, user):
    """The cache keeps to its budget, and what went is fetched again."""
    dovecot.fill(user, range(300), new_every=0, make=lambda number, seed:
                 corpus.attachment(random.Random(number), number, 40_000))
    daemon = mount(user, cache_size="2M")
    inbox = daemon.mnt / "INBOX"
    names = sorted(os.listdir(inbox))
    first = {name: hashlib.sha256((inbox / name).read_bytes()).digest() for name in names}

    def used():
        return int(subprocess.run(["du", "-sk", str(daemon.options["cache_dir"])], capture_output=True,
                                  text=True, timeout=30).stdout.split()[0])

    # by a thread that may be behind
    wait_for("something was evicted", lambda: daemon.counter("evictions") > 0)
    wait_for("no more than the budget is used", lambda: used() < 2 * 2048 + 1024)
    subprocess.run("echo 2 > /proc/sys/vm/drop_caches", shell=True, capture_output=True, timeout=30)
    assert {name: hashlib.sha256((inbox / name).read_bytes()).digest() for name in names} == first


def test_corrupt_cache(mount, dovecot, user):
    """Damaged files and a damaged index are noticed, thrown away and fetched again."""
    dovecot.fill(user, range(60), new_every=0)
    daemon = mount(user)
    inbox = daemon.mnt / "INBOX"
    first = {name: (inbox / name).read_bytes() for name in os.listdir(inbox)}
    daemon.stop()
    rng = random.Random(5)
    damaged = 0
    for path, _, files in os.walk(daemon.options["cache_dir"]):
        for name in files:
            full = os.path.join(path, name)
            size = os.path.getsize(full)
            if size < 100:
                continue
            with open(full, "r+b") as file:
                for _ in range(8):
                    file.seek(rng.randrange(size))
                    file.write(rng.randbytes(8))
            damaged += 1
    assert damaged > 20
    daemon.allow("cache|index|corrupt|damaged|thrown|database|malformed")
    daemon.start()
    assert {name: (inbox / name).read_bytes() for name in os.listdir(inbox)} == first
