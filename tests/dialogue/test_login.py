# SPDX-License-Identifier: MIT
"""From the greeting to the login: no credential without verified TLS, and a clear end in time."""
import base64
import os
import re
import ssl
import subprocess
import time

import pytest
from support.dovecot import PASSWORD
from support.mount import Mailfs, is_mounted

SECRETS = [PASSWORD.encode(), base64.b64encode(b"\0me\0" + PASSWORD.encode())]


def refused(work, server, dovecot, word="", **options):
    """Does not mount, in time, status 32, and the server never saw a credential."""
    daemon = Mailfs(work, server.url(), {"tls_ca": dovecot.certs.ca, "timeout": 2, **options})
    start = time.monotonic()
    done = daemon.run(args=(), seconds=60)
    assert done.returncode == 32, (done.returncode, done.stderr)
    assert time.monotonic() - start < 30
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and re.search(word, lines[0], re.I), done.stderr
    assert "\x1b" not in done.stderr
    for secret in SECRETS:
        assert secret not in server.received
    assert b"LOGIN" not in server.received.upper().replace(b"LOGINDISABLED", b"")
    assert b"AUTHENTICATE" not in server.received.upper()
    assert not is_mounted(daemon.mnt)
    assert not daemon.sanitizer_reports(), daemon.sanitizer_reports()
    return done.stderr


@pytest.fixture
def tls(fake, dovecot):
    """STARTTLS offered, certificate good."""
    return fake(certs=dovecot.certs)


@pytest.mark.main
def test_starttls_works(tls, mount, dovecot):
    tls.inbox.add("Subject: x\r\n\r\nbody\r\n")
    daemon = mount(tls.url(), tls_ca=dovecot.certs.ca)
    assert len(os.listdir(daemon.mnt / "INBOX")) == 1
    # one that was begun a moment ago may not be that far
    assert all(session.tls for session in tls.sessions if session.user)
    assert any(session.user for session in tls.sessions)
    before = tls.received.index(b"STARTTLS")
    assert b"AUTHENTICATE" not in tls.received[:before] and b"LOGIN" not in tls.received[:before]


def test_starttls_not_offered(tls, work, dovecot):
    tls.starttls = False
    refused(work, tls, dovecot, "STARTTLS|TLS", timeout=20)


@pytest.mark.parametrize("answer", ["{tag} NO not now", "{tag} BAD what", "* BYE", "{tag} OK"])
def test_starttls_refused(tls, work, dovecot, answer):
    """(An OK that no handshake follows among them.)"""
    def handler(session, tag, _args):
        session.line(answer.format(tag=tag))
        tls.silent.add(session)
    tls.on("STARTTLS", handler)
    refused(work, tls, dovecot)


@pytest.mark.parametrize("injected", [b"* PREAUTH hello\r\n", b"* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n",
                                      b"a", b"\r\n", b"* OK [ALERT] x\r\n" * 100])
def test_bytes_injected_after_starttls(tls, work, dovecot, injected):
    """CVE-2021-22947 and kin: whatever follows the OK in clear ends the connection."""
    def handler(session, tag, _args):
        session.send(f"{tag} OK begin\r\n".encode() + injected)
        session.start_tls("good")
    tls.on("STARTTLS", handler)
    refused(work, tls, dovecot)


def test_capabilities_before_tls_are_forgotten(tls, mount, dovecot):
    """What was said in clear text counts for nothing afterwards."""
    tls.inbox.add("Subject: x\r\n\r\nbody\r\n")
    asked = []

    def capability(session, tag, _args):
        asked.append(session.tls)
        words = "AUTH=PLAIN SASL-IR" if session.tls else "STARTTLS AUTH=X-EVIL LITERAL+ QRESYNC"
        session.line("* CAPABILITY IMAP4rev1 " + words)
        session.ok(tag)

    tls.on("CAPABILITY", capability)
    tls.greeting = "* OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=X-EVIL QRESYNC LITERAL+] hi"
    tls.capabilities = ["IMAP4rev1", "AUTH=PLAIN", "SASL-IR"]
    daemon = mount(tls.url(), tls_ca=dovecot.certs.ca)
    assert len(os.listdir(daemon.mnt / "INBOX")) == 1
    assert True in asked
    assert b"X-EVIL" not in tls.received


@pytest.mark.parametrize("greeting", ["* PREAUTH welcome", "* BYE closed", "* NO no", "OK hello", "", "* OK",
                                      "220 smtp.example.org ESMTP", "+OK pop3", "\x1b[2J* OK hi",
                                      "* OK " + "x" * 200_000], ids=lambda g: repr(g[:12]))
def test_greetings(tls, work, dovecot, greeting):
    """PREAUTH before TLS is dropped; and everything that is no greeting. ("* OK" is one: there the
    server says nothing more.)"""
    def script(session):
        session.line(greeting)
        if greeting.lstrip().startswith("* OK"):
            tls.silent.add(session)
        while True:
            session.read()
    tls.script = script
    refused(work, tls, dovecot)


def test_stalled_handshake(fake, work, dovecot):
    """Implicit TLS against something that accepts and is silent."""
    server = fake()

    def script(session):
        while True:
            session.read()
    server.script = script
    daemon = Mailfs(work, server.url("imaps"), {"tls_ca": dovecot.certs.ca, "timeout": 2})
    start = time.monotonic()
    done = daemon.run(args=(), seconds=60)
    assert done.returncode == 32 and time.monotonic() - start < 30, done.stderr


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("cert", ["wrong-host", "expired", "self-signed", "wrong-usage"])
def test_bad_certificate_no_credential(fake, work, dovecot, cert, implicit):
    server = fake(certs=dovecot.certs, implicit_tls=implicit, cert=cert)
    refused(work, server, dovecot, "certificate|TLS", timeout=20)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_tls(fake, work, dovecot):
    """TLS 1.1 and older is refused (by whichever side notices first)."""
    server = fake(certs=dovecot.certs)

    def script(session):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.load_cert_chain(dovecot.certs.cert("good"), dovecot.certs.key("good"))
        try:
            session.sock = context.wrap_socket(session.sock, server_side=True)
            session.greet()
            session.loop()
        except OSError:
            session.close()
    server.script = script
    daemon = Mailfs(work, server.url("imaps"), {"tls_ca": dovecot.certs.ca, "timeout": 3})
    done = daemon.run(args=(), seconds=60)
    assert done.returncode == 32, done.stderr
    assert all(secret not in server.received for secret in SECRETS)


def test_login_disabled(server, work):
    """LOGINDISABLED and no mechanism: nothing is tried."""
    server.capabilities = ["IMAP4rev1", "LOGINDISABLED"]
    daemon = Mailfs(work, server.url(), {"tls": "off", "timeout": 2})
    done = daemon.run(args=(), seconds=60)
    assert done.returncode == 32 and done.stderr.strip()
    assert all(secret not in server.received for secret in SECRETS)


@pytest.mark.parametrize("capabilities", [["IMAP4rev1"], ["IMAP4rev1", "AUTH=PLAIN"],
                                          ["IMAP4rev1", "AUTH=PLAIN", "SASL-IR"],
                                          ["IMAP4rev1", "AUTH=X-UNKNOWN"]])
def test_ways_to_log_in(server, mount, capabilities):
    """LOGIN where no mechanism is offered; PLAIN with and without an initial response."""
    server.capabilities = capabilities
    daemon = mount(server.url(), tls="off")
    assert os.listdir(daemon.mnt) == ["INBOX"]


@pytest.mark.parametrize("mech", ["xoauth2", "oauthbearer"])
def test_oauth(server, mount, work, mech):
    server.capabilities = ["IMAP4rev1", "SASL-IR", f"AUTH={mech.upper()}"]
    server.token = "tok-4711-secret"
    script = work / "token"
    script.write_text("#!/bin/sh\necho tok-4711-secret\n")
    script.chmod(0o700)
    daemon = mount(server.url(), tls="off", auth=mech, passfile=None, passcmd=script,
                   _args=("-f", "-v"))
    assert os.listdir(daemon.mnt) == ["INBOX"]
    daemon.stop()
    assert "tok-4711-secret" not in daemon.log()
    token = next(args.split()[1] for verb, args in server.commands if verb == "AUTHENTICATE")
    assert token not in daemon.log()


@pytest.mark.parametrize("mech", ["xoauth2", "oauthbearer"])
def test_oauth_refused(server, work, mech):
    server.capabilities = ["IMAP4rev1", "SASL-IR", f"AUTH={mech.upper()}"]
    server.token = "another"
    daemon = Mailfs(work, server.url(), {"tls": "off", "timeout": 2, "auth": mech})
    done = daemon.run(args=(), seconds=60)
    assert done.returncode == 32 and done.stderr.strip()
    assert PASSWORD not in done.stderr


def test_referral_is_ignored(server, work, fake):
    """NO [REFERRAL] sends nobody anywhere."""
    other = fake()
    server.on("AUTHENTICATE", lambda s, tag, a:
              s.line(f"{tag} NO [REFERRAL imap://me@127.0.0.1:{other.port}/] go there"))
    daemon = Mailfs(work, server.url(), {"tls": "off", "timeout": 2})
    done = daemon.run(args=(), seconds=60)
    assert done.returncode == 32
    assert not other.received


def test_password_with_odd_characters(server, mount):
    """Quotes, backslashes, 8-bit and spaces in a password arrive as they are, by LOGIN too."""
    password = 'a "quoted\\" pässwörd {5} %s'
    server.password = password
    server.capabilities = ["IMAP4rev1"]
    daemon = mount(server.url(), _start=False, tls="off")
    daemon.passfile.write_text(password + "\n")
    daemon.start()
    assert os.listdir(daemon.mnt) == ["INBOX"]


def test_no_storm_after_wrong_password(server, work):
    daemon = Mailfs(work, server.url(), {"tls": "off", "timeout": 3})
    daemon.passfile.write_text("wrong\n")
    done = subprocess.run(daemon.command()[:1] + daemon.command()[2:], capture_output=True, text=True,
                          timeout=60, stdin=subprocess.DEVNULL, env=daemon.env)
    assert done.returncode == 32
    assert server.n_commands("AUTHENTICATE") + server.n_commands("LOGIN") <= 2
