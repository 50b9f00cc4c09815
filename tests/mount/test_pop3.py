# SPDX-License-Identifier: MIT
"""A POP3 account as one flat mailbox: what a user sees, against a real Dovecot."""
import errno
import os
import poplib
import random
import re
import signal
import ssl
import subprocess
import time

import pytest

from support import corpus
from support.dovecot import PASSWORD, wait_for
from support.mount import SANITIZED

NAME = re.compile(r"^pop-[0-9a-f]{16}\.eml$")


def login(server, user):
    """A plain client, as a phone or webmail would come."""
    context = ssl.create_default_context(cafile=str(server.certs.ca))
    poplib._MAXLINE = 1 << 20
    client = poplib.POP3_SSL("127.0.0.1", server.pop3s, timeout=30, context=context)
    client.user(user)
    client.pass_(PASSWORD)
    return client


def retrieve(client, number):
    """The bytes of RETR: poplib has taken the line ends and the dots away."""
    _, lines, _ = client.retr(number)
    return b"".join(line + b"\r\n" for line in lines)


def bodies_on(server, user):
    client = login(server, user)
    bodies = [retrieve(client, n + 1) for n in range(client.stat()[0])]
    client.quit()
    return bodies


def read(path):
    with open(path, "rb") as file:
        return file.read()


def mail(inbox):
    """Contents by name."""
    return {name: read(inbox / name) for name in os.listdir(inbox)}


def run(*command, **kw):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=80, **kw)


@pytest.fixture
def pop(mount, dovecot, user):
    """pop(numbers, **options): fills the account and mounts it."""
    def make(numbers=range(30), _server=None, _start=True, **options):
        server = _server or dovecot
        server.fill(user, numbers)
        options.setdefault("tls_ca", server.certs.ca)
        return mount(server.url(user, "pops"), _start=_start, **options)

    return make


# --- reading ----------------------------------------------------------------------------------------


@pytest.mark.main
def test_bytes_are_those_of_retr(pop, dovecot, user):
    daemon = pop(range(60))
    inbox = daemon.mnt / "INBOX"
    assert os.listdir(daemon.mnt) == ["INBOX"]
    names = os.listdir(inbox)
    assert all(NAME.match(name) for name in names) and len(set(names)) == 60
    truth = bodies_on(dovecot, user)
    got = [read(inbox / name) for name in names]
    assert got == truth  # listed in the order of the maildrop
    assert [os.stat(inbox / name).st_size for name in names] == [len(body) for body in truth]


# --- pop3=delete ------------------------------------------------------------------------------------


def on_disk(server, user):
    """What the server has, seen without a login that would be in the way."""
    return [path for sub in ("cur", "new") for path in (server.folder(user) / sub).iterdir()]


def stored(daemon):
    return daemon.counter("stored")


@pytest.mark.main
def test_delete_moves_everything(pop, dovecot, user):
    """All mail is stored here, the server is empty, and nothing else changes for a reader."""
    truth = sorted(bodies_on_after_fill(dovecot, user, range(40)))
    daemon = pop([], pop3="delete")
    inbox = daemon.mnt / "INBOX"
    wait_for("the server is empty", lambda: not on_disk(dovecot, user))
    assert stored(daemon) == 40
    first = mail(inbox)
    assert sorted(first.values()) == truth
    assert {name: os.stat(inbox / name).st_size for name in first} == \
        {name: len(body) for name, body in first.items()}


def bodies_on_after_fill(server, user, numbers):
    server.fill(user, numbers)
    return bodies_on(server, user)


def big(number, seed):
    return corpus.attachment(random.Random(number), number, (30 << 20) * 3 // 4)


@pytest.mark.main
def test_head_of_a_big_message(pop, dovecot, user):
    """Without ranges: TOP brings the start, and only who reads on gets all of it."""
    dovecot.fill(user, [1], make=big)
    daemon = pop([])
    truth, = bodies_on(dovecot, user)
    assert len(truth) > 30 << 20
    name, = os.listdir(daemon.mnt / "INBOX")
    path = daemon.mnt / "INBOX" / name
    before = daemon.counter("bytes_in")
    done = subprocess.run(["head", "-c", "1000", str(path)], capture_output=True, timeout=60)
    assert done.stdout == truth[:1000]
    assert daemon.counter("bytes_in") - before < 1 << 20
    assert 1000 <= int(os.getxattr(path, "user.mailfs.cached")) < 1 << 20
    assert read(path) == truth
    assert os.stat(path).st_size == len(truth)
