# SPDX-License-Identifier: MIT
"""Certificates, pins and versions on both kinds of TLS. What a refused server must never see, a
credential, is looked for at the scripted server (tests/dialogue) and in Dovecot's log here."""
import os
import re

import pytest

from support.dovecot import wait_for
from support.mount import Mailfs, is_mounted


def url(dovecot, user, scheme, host):
    return dovecot.url(user, scheme, host)


def refused(work, dovecot, user, source, word, **options):
    daemon = Mailfs(work, source, {"tls_ca": dovecot.certs.ca, **options})
    done = daemon.run(args=())
    assert done.returncode == 32, done.stderr
    assert re.search(word, done.stderr, re.I), done.stderr
    assert not is_mounted(daemon.mnt)
    assert dovecot.logins(user) == 0
    assert not daemon.sanitizer_reports(), daemon.sanitizer_reports()


@pytest.mark.main
@pytest.mark.parametrize("scheme", ["imap", "imaps", "pop", "pops"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_good(mount, dovecot, user, scheme, host):
    daemon = mount(url(dovecot, user, scheme, host), tls_ca=dovecot.certs.ca)
    assert "INBOX" in os.listdir(daemon.mnt)
    # written by another process than that which let us in
    wait_for("the log says so", lambda: re.search(rf"user=<{user}>.*TLS", dovecot.log()))


@pytest.mark.parametrize("scheme", ["imap", "imaps", "pop", "pops"])
@pytest.mark.parametrize("host, word", [
    ("127.0.0.2", "not for 127"),
    ("127.0.0.3", "expired"),
    ("127.0.0.4", "not signed|self.signed"),
    ("127.0.0.5", "purpose|usage|certificate"),
])
def test_bad_certificates(work, dovecot, user, scheme, host, word):
    refused(work, dovecot, user, url(dovecot, user, scheme, host), word)


@pytest.mark.parametrize("scheme", ["imap", "imaps", "pop", "pops"])
def test_unknown_authority(work, dovecot, user, scheme):
    """The system's store does not know our authority."""
    refused(work, dovecot, user, url(dovecot, user, scheme, "127.0.0.1"), "certificate|issuer|trust",
            tls_ca=None)


@pytest.mark.parametrize("scheme", ["imap", "imaps", "pop", "pops"])
def test_pin(mount, work, dovecot, user, scheme):
    good = dovecot.certs.pin("good")
    daemon = mount(url(dovecot, user, scheme, "127.0.0.1"), tls_ca=dovecot.certs.ca, tls_pin=good)
    assert "INBOX" in os.listdir(daemon.mnt)
    other = work / "other"
    other.mkdir()
    refused(other, dovecot, user + "x", url(dovecot, user + "x", scheme, "127.0.0.1"), "pin",
            tls_pin=dovecot.certs.pin("expired"))


def test_tls_off(mount, dovecot, user):
    daemon = mount(url(dovecot, user, "imap", "127.0.0.1"), tls="off")
    assert "INBOX" in os.listdir(daemon.mnt)
