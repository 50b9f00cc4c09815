# SPDX-License-Identifier: MIT
"""What mailfs is measured against: the wire, RAW, mbsync, and the FUSE floor."""

import os
import pathlib
import signal
import socket
import struct
import subprocess
import time

from support.dovecot import PASSWORD
from support.mount import is_mounted, unmount, wait_for


class Wire:
    """delay.c between us and a port: RTT in ms, optionally bytes a second."""

    def __init__(self, binary, directory, target_port, rtt, rate=0):
        self.counters_path = os.path.join(directory, f"wire-{target_port}-{rtt}-{rate}")
        self.process = subprocess.Popen(
            [binary, str(target_port), str(rtt / 2), str(rate), self.counters_path],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def counters(self):
        """Bytes up, bytes down, turns."""
        with open(self.counters_path, "rb") as file:
            return struct.unpack("3Q", file.read(24))

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def raw(port, user, mailbox, command):
    """RAW: one connection, everything sent at once after the greeting, the answer thrown away as fast as
    it comes. Seconds from connect to the tagged OK, and bytes received."""
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(4096)
        connection.sendall(f"A LOGIN {user} {PASSWORD}\r\nB EXAMINE \"{mailbox}\"\r\n"
                           f"C {command}\r\n".encode())
        buffer = memoryview(bytearray(1 << 20))
        tail, total = b"", 0
        while True:
            n = connection.recv_into(buffer)
            if n == 0:
                raise AssertionError(f"RAW: the server hung up after {tail!r}")
            total += n
            tail = (tail + bytes(buffer[max(n - 300, 0):n]))[-300:]
            if tail.endswith(b"\r\n"):
                last = tail[:-2].rsplit(b"\r\n", 1)[-1]
                if last.startswith(b"C OK"):
                    return time.perf_counter() - start, total
                if last[:2] in (b"A ", b"B ", b"C ") and not last[2:].startswith(b"OK"):
                    raise AssertionError(f"RAW: {last!r}")


def raw_move(port, user, target):
    """One UID MOVE of the whole INBOX, without waiting between login, SELECT and it; seconds."""
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(4096)
        connection.sendall(f"A LOGIN {user} {PASSWORD}\r\nB SELECT INBOX\r\n"
                           f"C UID MOVE 1:* \"{target}\"\r\n".encode())
        text = b""
        while b"\r\nC " not in text:
            piece = connection.recv(1 << 20)
            if not piece:
                raise AssertionError(f"RAW: the server hung up after {text[-300:]!r}")
            text = text[-1000:] + piece
        if b"\r\nC OK" not in text:
            raise AssertionError(f"RAW: {text[-300:]!r}")
        return time.perf_counter() - start


MBSYNC = """
IMAPAccount bench
Host 127.0.0.1
Port {port}
User {user}
Pass {password}
SSLType None
AuthMechs LOGIN

IMAPStore far
Account bench

MaildirStore near
Path {directory}/mail/
Inbox {directory}/mail/INBOX
SubFolders Verbatim

Channel pull
Far :far:
Near :near:
Patterns {patterns}
Create Near
Sync Pull
SyncState *
"""


class Mbsync:
    """mbsync pulling into an empty Maildir; run again, it finds nothing to do."""

    def __init__(self, directory, port, user, patterns="INBOX"):
        os.makedirs(os.path.join(directory, "mail"))
        self.config = os.path.join(directory, "mbsyncrc")
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(MBSYNC.format(port=port, user=user, password=PASSWORD, directory=directory,
                                     patterns=patterns))
        self.mail = pathlib.Path(directory) / "mail"

    def run(self):
        start = time.perf_counter()
        done = subprocess.run(["mbsync", "-q", "-c", self.config, "pull"], capture_output=True,
                              text=True, stdin=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise AssertionError(f"mbsync: {done.stderr}")
        return seconds

    def n_messages(self):
        return sum(path.parent.name in ("cur", "new") for path in self.mail.rglob("*"))


MBSYNC_PUSH = """
IMAPAccount bench
Host 127.0.0.1
Port {port}
User {user}
Pass {password}
SSLType None
AuthMechs LOGIN

IMAPStore far
Account bench

MaildirStore near
Path {directory}/mail/
Inbox {directory}/mail/INBOX
SubFolders Verbatim

Channel push
Far :far:{mailbox}
Near :near:INBOX
Create Far
Sync Push
SyncState *
"""


def mbsync_push(directory, port, user, source, mailbox):
    """mbsync pushing the files of a plain directory into a mailbox it makes; seconds."""
    inbox = os.path.join(directory, "mail", "INBOX")
    for name in ("cur", "new", "tmp"):
        os.makedirs(os.path.join(inbox, name))
    for number, name in enumerate(sorted(os.listdir(source))):
        with open(os.path.join(source, name), "rb") as file:
            text = file.read().replace(b"\r\n", b"\n")
        with open(os.path.join(inbox, "cur", f"{number}.bench:2,S"), "wb") as file:
            file.write(text)
    config = os.path.join(directory, "mbsyncrc")
    with open(config, "w", encoding="utf-8") as file:
        file.write(MBSYNC_PUSH.format(port=port, user=user, password=PASSWORD, directory=directory,
                                      mailbox=mailbox))
    start = time.perf_counter()
    done = subprocess.run(["mbsync", "-q", "-c", config, "push"], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise AssertionError(f"mbsync: {done.stderr}")
    return seconds


MPOP = """
account bench
host 127.0.0.1
port {port}
user {user}
password {password}
tls off
auth user
keep on
received_header off
uidls_file {directory}/uidls
delivery maildir {directory}/mail
"""


def mpop(directory, port, user):
    """mpop pulling a maildrop into an empty Maildir; seconds."""
    for name in ("cur", "new", "tmp"):
        os.makedirs(os.path.join(directory, "mail", name))
    config = os.path.join(directory, "mpoprc")
    with open(config, "w", encoding="utf-8") as file:
        file.write(MPOP.format(port=port, user=user, password=PASSWORD, directory=directory))
    os.chmod(config, 0o600)
    start = time.perf_counter()
    done = subprocess.run(["mpop", "-q", "-C", config, "bench"], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise AssertionError(f"mpop: {done.stderr}")
    return seconds


class Floor:
    """floor.c: the same files from memory, mounted anew so that the kernel knows nothing yet."""

    def __init__(self, binary, source, mountpoint):
        os.makedirs(mountpoint, exist_ok=True)
        self.mnt = mountpoint
        self.process = subprocess.Popen([binary, source, mountpoint],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        wait_for("the floor is mounted",
                 lambda: is_mounted(self.mnt) or self.process.poll() is not None, 60)

    def stop(self):
        """How many requests the kernel made."""
        unmount(self.mnt)
        try:
            text, _ = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            unmount(self.mnt, lazy=True)
            self.process.send_signal(signal.SIGKILL)
            text, _ = self.process.communicate()
        return int(text or 0)
