# SPDX-License-Identifier: MIT
"""mount(8), installation, and where the password must never be."""
import base64
import errno
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess

import pytest

from support.dovecot import PASSWORD, wait_for
from support.mount import SANITIZED, is_mounted, no_daemon_of

CANARY = PASSWORD.encode()


@pytest.fixture(scope="module")
def installed(run_dir):
    """meson install into a directory of its own."""
    build = os.environ.get("MAILFS_BUILD")
    assert build, "scripts/test sets MAILFS_BUILD"
    target = run_dir / "installed"
    subprocess.run(["meson", "install", "-C", build, "--no-rebuild", "--destdir", str(target)],
                   check=True, capture_output=True, timeout=120)
    return target


def test_installed_files(installed):
    files = {str(p.relative_to(installed)) for p in installed.rglob("*")
             if p.is_symlink() or p.is_file()}
    for want in ("bin/mailfs", "sbin/mount.mailfs", "man/man1/mailfs.1", "man/man8/mailfs.8"):
        assert any(want in name for name in files), (want, files)


@pytest.fixture
def helper(installed, work):
    """A mount namespace in which mount(8) finds the helper: /usr/sbin gets an overlay in it, the
    real one stays as it is."""
    if os.getuid() != 0:
        pytest.skip("needs root")
    link = installed / "sbin" / "mount.mailfs"
    binary = next(p for p in installed.rglob("bin/mailfs"))
    script = work / "in-namespace"
    bin_dir = work / "sbin"
    shutil.copytree("/usr/sbin", bin_dir, symlinks=True)
    (bin_dir / "mount.mailfs").symlink_to(binary)
    (bin_dir / "mailfs").symlink_to(binary)
    script.write_text(f"""#!/bin/bash
set -eu
# the mounts of other tests must not live on in here
awk '$3 == "fuse.mailfs" {{ print $2 }}' /proc/mounts | while read -r other; do
  umount -l "$other" || true
done
mount --bind {bin_dir} /usr/sbin
[ -L /sbin ] || mount --bind {bin_dir} /sbin
"$@"
""")
    script.chmod(0o755)
    assert os.readlink(link).endswith("mailfs")
    return script


def in_namespace(helper, script, cwd, env, seconds=60):
    # what is a chroot has no root mount whose propagation could be changed; nothing is shared there
    with open("/proc/self/mountinfo") as table:
        propagation = "private" if " shared:" in table.read() else "unchanged"
    return subprocess.run(["unshare", "--mount", "--propagation", propagation, str(helper), "bash",
                           "-euc", script], cwd=cwd, capture_output=True, text=True, timeout=seconds,
                          env={**env, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:"
                                              "/sbin:/bin"}, stdin=subprocess.DEVNULL)


@pytest.mark.main
@pytest.mark.parametrize("kind", ["mailfs", "fuse.mailfs"])
@pytest.mark.parametrize("fstab", [False, True])
def test_mount_8(mount, helper, dovecot, user, kind, fstab):
    dovecot.fill(user, range(3))
    daemon = mount(user, _start=False)
    options = ",".join(f"{k}={v}" for k, v in daemon.options.items())
    script = f"mount -t {kind} -o {options} {daemon.source} {daemon.mnt}"
    if fstab:
        table = daemon.dir / "fstab"
        table.write_text(f"{daemon.source} {daemon.mnt} {kind} {options},_netdev,nofail,noauto,user 0 0\n")
        script = f"mount -T {table} {daemon.mnt}"
    done = in_namespace(helper, f"{script}; ls {daemon.mnt}/INBOX; cat {daemon.mnt}/INBOX/* | wc -c; "
                        f"grep -c ' {daemon.mnt} fuse.mailfs' /proc/mounts; umount {daemon.mnt}",
                        daemon.dir, daemon.env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert len([x for x in lines if x.endswith(".eml")]) == 3 and lines[-1] == "1"
    wait_for("the daemon is gone", lambda: not no_daemon_of(daemon.dir), 30)
    assert not daemon.sanitizer_reports(), daemon.sanitizer_reports()


def test_mount_8_status(mount, helper, dovecot, user):
    """mount(8) hands on what went wrong."""
    daemon = mount(user, _start=False)
    daemon.passfile.write_text("wrong\n")
    options = ",".join(f"{k}={v}" for k, v in daemon.options.items())
    done = in_namespace(helper, f"mount -t mailfs -o {options} {daemon.source} {daemon.mnt}",
                        daemon.dir, daemon.env)
    assert done.returncode == 32, (done.returncode, done.stderr)
    assert "mailfs" in done.stderr


def files_below(*tops):
    for top in tops:
        for path, _, names in os.walk(top):
            for name in names:
                yield pathlib.Path(path) / name


@pytest.mark.main
@pytest.mark.parametrize("mech", ["plain", "login", "scram-sha-256", None])
def test_password_is_nowhere(mount, dovecot, user, mech, work):
    """Not in argv, environ, the -v trace, the cache, .mailfs/status or a core."""
    dovecot.fill(user, range(5))
    daemon = mount(user, _args=("-f", "-v"), auth=mech)
    for name in os.listdir(daemon.mnt / "INBOX"):
        (daemon.mnt / "INBOX" / name).read_bytes()
    proc = pathlib.Path(f"/proc/{daemon.pid}")
    assert CANARY not in (proc / "cmdline").read_bytes()
    assert CANARY not in (proc / "environ").read_bytes()
    assert CANARY not in (daemon.mnt / ".mailfs" / "status").read_bytes()
    daemon.stop()
    log = daemon.log_path.read_bytes()
    assert b"LOGIN" in log or b"AUTHENTICATE" in log, "no trace was written"
    assert CANARY not in log
    for secret in (CANARY, base64.b64encode(b"\0" + user.encode() + b"\0" + CANARY),
                   base64.b64encode(CANARY)):
        for path in files_below(daemon.dir):
            if path != daemon.passfile and path.is_file():
                assert secret.rstrip(b"=") not in path.read_bytes(), path


def test_file_size_limit(mount, dovecot, user):
    """A file that may not grow any more (ulimit -f) is an error of that file, not the end of the
    mount."""
    dovecot.fill(user, [1, 2, 1249, 3])  # the one has some megabytes
    daemon = mount(user).allow("File too large", "disk I/O error", "going on in memory")
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (256 << 10, 256 << 10))
    with dovecot.client(user) as client:
        bodies = [client.body(uid) for uid in range(1, 5)]
    for path in sorted((daemon.mnt / "INBOX").iterdir()):
        want = bodies[int(path.name[:10]) - 1]
        try:
            assert path.read_bytes() == want
        except OSError as error:
            assert error.errno == errno.EIO and len(want) > 256 << 10
    assert daemon.alive()


def test_no_core(mount, user, work):
    """A crash leaves no memory behind for others to read."""
    daemon = mount(user)
    limits = pathlib.Path(f"/proc/{daemon.pid}/limits").read_text()
    assert re.search(r"^Max core file size\s+0\s+0\s", limits, re.M), limits
    os.kill(daemon.pid, signal.SIGSEGV if not SANITIZED else signal.SIGKILL)
    daemon.process.wait(30)
    daemon.forget()
    assert not list(daemon.dir.glob("core*")) and not list(pathlib.Path.cwd().glob("core*"))


@pytest.mark.main
def test_cache_is_private(mount, dovecot, user):
    dovecot.fill(user, range(5))
    daemon = mount(user)
    for name in os.listdir(daemon.mnt / "INBOX"):
        (daemon.mnt / "INBOX" / name).read_bytes()
    top = daemon.options["cache_dir"]
    for path, dirs, names in os.walk(top):
        assert os.stat(path).st_mode & 0o077 == 0, path
        for name in names:
            assert os.lstat(os.path.join(path, name)).st_mode & 0o177 == 0, (path, name)


def test_somebody_elses_cache_is_refused(mount, user, work):
    cache = work / "shared-cache"
    cache.mkdir(mode=0o755)
    cache.chmod(0o777)
    if os.getuid() == 0:
        os.chown(cache, 12345, 12345)
    daemon = mount(user, _start=False, cache_dir=cache)
    done = daemon.run(args=())
    assert done.returncode in (1, 2, 32), (done.returncode, done.stderr)
    assert str(cache) in done.stderr
    assert not is_mounted(daemon.mnt)


def test_mount_is_private(mount, user):
    """Owner only, nosuid, nodev."""
    daemon = mount(user)
    with open("/proc/mounts") as table:
        line = next(line for line in table if f" {daemon.mnt} " in line)
    device, _, kind, options = line.split()[:4]
    assert kind == "fuse.mailfs"
    assert {"nosuid", "nodev"} <= set(options.split(","))
    assert "allow_other" not in options
    assert PASSWORD not in line


def test_no_retry_storm(own_dovecot, mount, user):
    """The password stops working while mounted: EACCES, and the server is left in peace."""
    server = own_dovecot()
    server.fill(user, range(10))
    server.fill(user, range(10, 15), "other")
    daemon = mount(server.url(user), tls_ca=server.certs.ca, timeout=5)
    daemon.allow("password|log.?in|auth|connect|lost|clos|server")
    inbox = daemon.mnt / "INBOX"
    names = sorted(os.listdir(inbox))
    cached = (inbox / names[0]).read_bytes()
    fresh = sorted((daemon.mnt / "other").iterdir())
    daemon.passfile.write_text("changed\n")
    server.stop()
    server.start()

    def reads():
        errors = set()
        for path in fresh:
            try:
                path.read_bytes()
            except OSError as error:
                errors.add(error.errno)
        return errors

    # unreachable at first, until it has been found that the server is back and refuses us
    wait_for("the login is refused", lambda: reads() == {errno.EACCES}, 60, 0.05)
    for _ in range(50):
        assert reads() == {errno.EACCES}
    assert (inbox / names[0]).read_bytes() == cached
    failures = server.log().count("auth failed") + server.log().count("Authentication failed")
    assert failures <= 6, failures
