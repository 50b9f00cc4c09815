# SPDX-License-Identifier: MIT
"""A scripted server for each test, and a mount on it."""
import errno
import pathlib
import sys
import threading
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from fakeimap import FakeServer  # noqa: E402

TIMEOUT = 4
# How long anything may take that ends by itself: several steps, a slow machine, sanitizers.
LIMIT = 60


@pytest.fixture
def fake():
    """A function that makes a FakeServer; its own mistakes fail the test."""
    made = []

    def make(**kw):
        server = FakeServer(**kw)
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()
    problems = [p for server in made for p in server.problems]
    assert not problems, problems


@pytest.fixture
def server(fake):
    """Clear text: most of what is tried here has nothing to do with TLS."""
    return fake()


@pytest.fixture
def fake_mount(mount, server):
    """Mounts `server`; log lines about its misbehaviour are expected. Where it is silent the timeout
    should be TIMEOUT, where it answers a slow machine must not run into one."""
    def make(_start=True, **options):
        options = {"tls": "off", "timeout": 20, **options}
        daemon = mount(server.url(), _start=False, **options)
        daemon.allow(r"mailfs: (warning|error): ")
        return daemon.start() if _start else daemon
    return make


class Outcome:
    def __init__(self, value, code, seconds):
        self.value, self.code, self.seconds = value, code, seconds

    def __repr__(self):
        name = errno.errorcode.get(self.code, "ok")
        shown = repr(self.value)
        return f"<{name} after {self.seconds:.1f} s: {shown[:80]}>"


def attempt(function, *args):
    """What a call gives or which errno it fails with; that it ends at all is checked here."""
    result = []

    def run():
        start = time.monotonic()
        try:
            result.append(Outcome(function(*args), 0, time.monotonic() - start))
        except OSError as error:
            result.append(Outcome(None, error.errno, time.monotonic() - start))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert result, f"{function.__name__} still hangs after {LIMIT} s"
    return result[0]
