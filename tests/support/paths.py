# SPDX-License-Identifier: MIT
"""How what the server has is found again in a mount, and back."""
import os
import re

MESSAGE = re.compile(r"^(\d{10})\.(\d+)\.eml$")


def unescape(name):
    """%XX back to bytes: what SPEC promises to be reversible."""
    return re.sub(rb"%([0-9A-Fa-f]{2})", lambda m: bytes([int(m.group(1), 16)]),
                  os.fsencode(name)).decode()


def message_name(uid, uidvalidity):
    return f"{uid:010d}.{uidvalidity}.eml"


def folders(mnt):
    """{mailbox name with '/': directory} for every directory of the mount but the root."""
    out = {}
    for path, dirs, _ in os.walk(mnt):
        for name in dirs:
            full = os.path.join(path, name)
            rel = os.path.relpath(full, mnt).split("/")
            out["/".join(unescape(part) for part in rel)] = full
    return out


def uids(directory):
    """{uid: file name} of one directory's messages."""
    out = {}
    for name in os.listdir(directory):
        match = MESSAGE.match(name)
        if match:
            out[int(match.group(1))] = name
    return out


def xattr(path, name):
    return os.getxattr(path, name).decode()


def flags_of(path):
    return frozenset(xattr(path, "user.imap.flags").split())
