# SPDX-License-Identifier: MIT
"""What a read or a look-up must give while the server loses connections or replaces mailboxes."""
import errno
import os

import pytest

from conftest import attempt
from support import paths
from support.dovecot import wait_for

BODY = (b"From: a@example.org\r\nSubject: hello\r\n\r\n" +
        b"".join(b"line %d of this message\r\n" % i for i in range(2000)))


def read(path):
    with open(path, "rb") as file:
        return file.read()


def path_of(daemon, server, uid):
    return daemon.mnt / "INBOX" / paths.message_name(uid, server.inbox.uidvalidity)


@pytest.mark.parametrize("eol", ["crlf", "lf"])
@pytest.mark.parametrize("cut", [1, 700, len(BODY) - 1])
def test_connection_lost_inside_a_body(server, fake_mount, eol, cut):
    """The retry tells the message from its start again: whole and once, in either form."""
    server.inbox.add(BODY)
    daemon = fake_mount(eol=eol)
    os.listdir(daemon.mnt / "INBOX")
    cuts = []

    def fetch(session, tag, args):
        if "BODY" not in args.upper() or cuts:
            session.default(tag, "UID FETCH", args)
            return
        cuts.append(args)
        answer = session.fetch_answer(1, session.mailbox.messages[0], args, False)
        session.send(answer[:answer.index(BODY[:40]) + cut])
        session.close()

    server.on("UID FETCH", fetch)
    want = BODY if eol == "crlf" else BODY.replace(b"\r\n", b"\n")
    outcome = attempt(read, path_of(daemon, server, 1))
    assert cuts
    assert outcome.value == want, outcome
    assert os.stat(path_of(daemon, server, 1)).st_size == len(want)
