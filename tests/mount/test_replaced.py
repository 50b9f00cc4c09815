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
