# SPDX-License-Identifier: MIT
"""One mailbox as the root of the mount; mailboxes and flags that others change under open files and
fresh listings."""
import errno
import os

import pytest

from support import paths
from support.dovecot import wait_for


def test_root_mailbox_keeps_its_cache(mount, dovecot, user):
    """A mount of one mailbox finds its bodies again after a remount."""
    dovecot.fill(user, range(12), "Archive", new_every=0)
    daemon = mount(dovecot.url(user, path="Archive"), tls_ca=dovecot.certs.ca)
    before = {p.name: p.read_bytes() for p in daemon.mnt.iterdir()}
    assert len(before) == 12
    daemon.stop()
    daemon.start()
    assert {p.name: p.read_bytes() for p in daemon.mnt.iterdir()} == before
    assert daemon.counter("misses") == 0


def test_flags_are_names_at_once(mount, dovecot, user):
    """layout=maildir: once the new flags are known, a listing has the new names, although no message
    came or went and the kernel would keep the listing it has."""
    dovecot.fill(user, range(5), new_every=0)
    with dovecot.client(user) as client:
        client.select()
        client.store("1:5", "FLAGS", "(\\Seen)")
        directory = mount(user, layout="maildir", refresh=1).mnt / "INBOX" / "cur"
        file = os.open(next(directory.iterdir()), os.O_RDONLY)
        try:
            for flags, letters in (("\\Flagged \\Seen", "FS"), ("\\Seen", "S")) * 6:
                client.store("1:5", "FLAGS", f"({flags})")
                wait_for("they are known", lambda f=flags:
                         os.getxattr(file, "user.imap.flags") == f.encode(), step=0.001)
                names = os.listdir(directory)
                assert [n.split(":2,")[1] for n in names] == [letters] * 5
                for name in names:
                    os.stat(directory / name)
        finally:
            os.close(file)
