# SPDX-License-Identifier: MIT
"""Keywords that a mailbox does not allow: once that is known, refused at once, and nothing of it
reaches the server."""
import errno
import os

import pytest

from conftest import attempt
from support import paths
from support.dovecot import wait_for

FLAGS = "user.imap.flags"
MAIL = b"From: a@example.org\r\nSubject: hello\r\n\r\nhello\r\n"


@pytest.mark.parametrize("what", ["message", "new file"])
def test_keyword_not_allowed(server, fake_mount, what):
    server.permanent = "\\Seen \\Flagged known"
    server.inbox.add(MAIL)
    stored = []

    def store(session, tag, args):
        stored.append(args)
        session.ok(tag)

    server.on("UID STORE", store)
    daemon = fake_mount(refresh=1)
    inbox = daemon.mnt / "INBOX"
    assert len(os.listdir(inbox)) == 1
    path = message = inbox / paths.message_name(1, server.inbox.uidvalidity)
    # Only a SELECT tells what can be kept, not the EXAMINE of a listing: the first change learns it.
    os.setxattr(message, FLAGS, b"\\Seen known")
    wait_for("the mailbox is known to keep one keyword",
             lambda: os.listdir(inbox) and attempt(os.setxattr, message, FLAGS, b"unknown").code
             == errno.ENOTSUP)
    if what == "new file":
        path = inbox / ".new.tmp"
        path.write_bytes(MAIL)
        os.setxattr(path, FLAGS, b"\\Seen known")
    before = os.getxattr(path, FLAGS)
    file = os.open(inbox, os.O_RDONLY)
    os.fsync(file)  # what was asked for before it was known has been answered
    os.close(file)
    stored.clear()
    for text in (b"unknown", b"known unknown", b"\\Draft"):
        assert attempt(os.setxattr, path, FLAGS, text).code == errno.ENOTSUP, text
    assert os.getxattr(path, FLAGS) == before
    assert stored == []
