# SPDX-License-Identifier: MIT
"""Mail to measure with: the same bytes in every run, made as Dovecot Maildirs.

A message file holds CRLF lines and has its size in its name, so that the server neither converts
nor counts.
"""

import base64
import math
import os
import random
import re

EPOCH = 1262304000  # 2010-01-01
WORDS = ("the of and to mail in is that for with invoice meeting as on please be at report by this "
         "order draft from project have schedule budget we not review attached are you I it question "
         "release Monday server or customer will thanks table update version your Grüße für schön").split()

_random = random.Random(1)
_TEXT = []
while len(_TEXT) < 200000:
    _TEXT.append(" ".join(_random.choices(WORDS, k=11)))
_TEXT = "\r\n".join(_TEXT).encode()
_BINARY = base64.encodebytes(_random.randbytes(6 << 20)).replace(b"\n", b"\r\n")


def message(number, size):
    """Message `number`, of exactly `size` bytes (at least about 700): text, or with an attachment."""
    pick = random.Random(number)
    host = f"mx{pick.randrange(40)}.example.org"
    boundary = f"=_{number:08x}" if size > 20000 else None
    head = [
        f"Return-Path: <sender{pick.randrange(500)}@example.org>",
        f"Received: from {host} (192.0.2.{pick.randrange(255)}) by mail.example.net with ESMTPS",
        f"\tid {pick.getrandbits(60):015x}; Tue, 5 Jan 2010 08:00:00 +0000",
        f"Date: Tue, 5 Jan 2010 {pick.randrange(24):02}:{pick.randrange(60):02}:00 +0000",
        f"From: Sender {pick.randrange(500)} <sender{pick.randrange(500)}@example.org>",
        "To: me@example.net",
        f"Subject: {' '.join(pick.choices(WORDS[:40], k=6))}",
        f"Message-ID: <{number}.{pick.getrandbits(80):020x}@{host}>",
        f"DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=s1; b={pick.getrandbits(700):0175x}",
        "MIME-Version: 1.0",
        f"Content-Type: multipart/mixed; boundary=\"{boundary}\"" if boundary
        else "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit", "", ""]
    parts = ["\r\n".join(head).encode()]
    tail = b"\r\n"
    if boundary:
        at = pick.randrange(len(_TEXT) - 2000)
        parts.append(f"--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n".encode()
                     + _TEXT[at:at + 1500].decode("utf-8", "ignore").encode()
                     + f"\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n"
                       "Content-Transfer-Encoding: base64\r\n\r\n".encode())
        tail = f"\r\n--{boundary}--\r\n".encode()
    left = max(size - sum(map(len, parts)) - len(tail), 0)
    source = _BINARY if boundary else _TEXT
    while left > 0:
        # From the start of a line, so that the lines are whole but for the last.
        at = source.index(b"\n", pick.randrange(max(len(source) - left, 1) if left < len(source) // 2
                                                else len(source) // 2)) + 1
        piece = source[at:at + left]
        parts.append(piece)
        left -= len(piece)
    return b"".join(parts) + tail


def realistic_sizes(n, seed=2):
    """Median 3 KB, mean 10 KB, a tail of hundreds of KB."""
    pick = random.Random(seed)
    sigma = math.sqrt(2 * math.log(10 / 3))
    return [min(max(int(pick.lognormvariate(math.log(3000), sigma)), 800), 900000)
            for _ in range(n)]


def fill(maildir, sizes, owner):
    """One message a size into an empty Maildir; the total in bytes."""
    total = 0
    for number, size in enumerate(sizes, 1):
        data = message(number, size)
        total += len(data)
        date = EPOCH + number * 3600
        path = os.path.join(maildir, "cur",
                            f"{date}.M{number:06}.bench,S={len(data)},W={len(data)}:2,S")
        with open(path, "wb") as out:
            out.write(data)
        os.utime(path, (date, date))
        os.chown(path, *owner)
    return total


def plain_copy(maildir, directory):
    """A directory of hard links to the same files, under the names mailfs gives them, once the server
    has numbered them; UIDVALIDITY."""
    os.makedirs(directory)
    with open(os.path.join(maildir, "dovecot-uidlist"), encoding="utf-8") as uidlist:
        uidvalidity = int(re.search(r" V(\d+)", uidlist.readline())[1])
        uids = {name: int(line.split(" ", 1)[0])
                for line in uidlist for name in [line.rstrip("\n").split(" :", 1)[1].split(":")[0]]}
    for name in os.listdir(os.path.join(maildir, "cur")):
        os.link(os.path.join(maildir, "cur", name),
                os.path.join(directory, f"{uids[name.split(':')[0]]:010}.{uidvalidity}.eml"))
    return uidvalidity
