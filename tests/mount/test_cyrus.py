# SPDX-License-Identifier: MIT
"""The reading suite of test_tree.py once more, on a second server: Cyrus."""
import pytest

import test_tree
from support import corpus, cyrus
from test_tree import *  # noqa: F401,F403 its tests and its account, with the server below

pytestmark = [pytest.mark.xdist_group("cyrus"), pytest.mark.limit(300)]

REFUSED = set('%"\\{};')  # in names of mailboxes, by this server


@pytest.fixture(scope="module")
def dovecot(run_dir, certs):
    """Stands in for Dovecot. Being filled by APPEND takes time: fewer messages."""
    root = cyrus.unpack(run_dir)
    if root is None:
        pytest.skip("cyrus-imapd cannot be fetched or unpacked here")
    server = cyrus.Cyrus(run_dir / "c", root, certs=certs).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_tree, "N_MESSAGES", min(test_tree.N_MESSAGES, 2000))
        patch.setattr(corpus, "LEAVES", [x for x in corpus.LEAVES if not REFUSED & set(x)])
        yield server
    server.stop()


@pytest.fixture
def user(request):
    return "u" + request.node.name.replace("_", "")[:40]


def test_mail_of_another_client(dovecot, user, mount):
    """Arrives, changes its flags, and goes, while mounted; an open file keeps its bytes."""
    dovecot.fill(user, range(3), new_every=0)
    daemon = mount(user)
    inbox = daemon.mnt / "INBOX"
    with dovecot.client(user) as client:
        validity = client.uidvalidity()
        first = inbox / test_tree.paths.message_name(1, validity)
        with open(first, "rb") as file:
            whole = file.read()
            assert test_tree.hashlib.sha256(whole).hexdigest() == client.messages()[1].sha256
            new = client.append(b"Subject: new\r\n\r\nhere\r\n")
            client.store(2, "+FLAGS", "(\\Flagged work)")
            client.expunge("1")
            cyrus.wait_for("the new one is listed, the old one is not", lambda: set(
                test_tree.paths.uids(inbox)) == {2, 3, new})
            file.seek(0)
            assert file.read() == whole
        second = inbox / test_tree.paths.message_name(2, validity)
        cyrus.wait_for("the flags are seen", lambda: {"\\Flagged", "work"} <= set(
            test_tree.paths.flags_of(second)))
    cyrus.wait_for("its name is dropped too", lambda: not first.exists())
