# SPDX-License-Identifier: MIT
"""Fixtures of all tests that mount: a hard limit for each test, one private Dovecot a worker, and
`mount`, which takes down and looks over whatever it started."""
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from support import dovecot as dovecot_module  # noqa: E402
from support import mount as mount_module  # noqa: E402

LIMIT = 90


def pytest_configure(config):
    if not mount_module.BINARY or not os.access(mount_module.BINARY, os.X_OK):
        raise pytest.UsageError("set MAILFS_BIN to the mailfs binary (scripts/test does)")
    if not os.path.exists("/dev/fuse"):
        raise pytest.UsageError("/dev/fuse is missing")


@pytest.fixture(autouse=True)
def limit(request):
    """No test hangs: SIGALRM raises in the test; should that be stuck in a mount that answers
    nothing, a thread kills the daemons a little later, which frees it."""
    marker = request.node.get_closest_marker("limit")
    seconds = marker.args[0] if marker else LIMIT

    def late(*_):
        raise TimeoutError(f"the test took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    watchdog = threading.Timer(seconds + 5, mount_module.kill_all_daemons)
    watchdog.daemon = True
    watchdog.start()
    yield
    signal.alarm(0)
    watchdog.cancel()
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def run_dir():
    """Short, because sockets live below it, and open to the mail server's own user."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="m.", dir=os.environ.get("MAILFS_RUN", "/tmp")))
    path.chmod(0o755)
    yield path
    if not os.environ.get("KEEP"):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def certs(run_dir):
    return dovecot_module.make_certificates(run_dir / "certs")


@pytest.fixture(scope="session")
def dovecot(run_dir, certs):
    """The server that most tests share; each takes a user of its own."""
    server = dovecot_module.Dovecot(run_dir / "d", certs=certs).start()
    yield server
    server.stop()


@pytest.fixture
def own_dovecot(run_dir, certs, request):
    """A server that a test may stop, kill or freeze; a function that makes it (quota=, acl=)."""
    made = []

    def make(**kw):
        server = dovecot_module.Dovecot(run_dir / f"d{next_number()}", certs=certs, **kw)
        made.append(server)
        return server.start()

    yield make
    for server in made:
        server.stop()
        shutil.rmtree(server.dir, ignore_errors=True)


numbers = iter(range(1, 1 << 30))


def next_number():
    return next(numbers)


@pytest.fixture
def user(request):
    """An account nobody else uses."""
    return f"u{next_number()}"


@pytest.fixture
def work(run_dir):
    """An empty directory for this test."""
    path = run_dir / f"t{next_number()}"
    path.mkdir(mode=0o755)
    yield path
    if not os.environ.get("KEEP"):
        shutil.rmtree(path, ignore_errors=True)


def mounts(directory, dovecot):
    """Generator behind `mount` and `module_mount`."""
    made = []

    def make(source, _start=True, _env=None, _args=("-f",), _binary=None, _dir=None, **options):
        if "://" not in source:
            source = dovecot.url(source)
            options.setdefault("tls_ca", dovecot.certs.ca)
        daemon = mount_module.Mailfs(_dir or directory / f"m{len(made)}", source, options, env=_env,
                                     args=_args, binary=_binary)
        made.append(daemon)
        return daemon.start() if _start else daemon

    yield make
    problems = []
    for daemon in reversed(made):
        try:
            daemon.stop()
            left = mount_module.no_daemon_of(daemon.dir)
            assert not left, f"processes left: {left}"
        except AssertionError as error:
            problems.append(str(error))
    assert not problems, "\n".join(problems)


@pytest.fixture
def mount(work, dovecot):
    """mount(user_or_url, **options) starts a daemon; all are stopped and looked over at the end.
    Keyword arguments beginning with _ go to Mailfs, the others become -o options."""
    yield from mounts(work, dovecot)


@pytest.fixture(scope="module")
def module_mount(run_dir, dovecot):
    """The same for what a whole module reads."""
    path = run_dir / f"mod{next_number()}"
    path.mkdir(mode=0o755)
    yield from mounts(path, dovecot)
    if not os.environ.get("KEEP"):
        shutil.rmtree(path, ignore_errors=True)
