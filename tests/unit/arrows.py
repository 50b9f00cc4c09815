#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The arrows between the rooms run one way.

Reads the #include lines under src/ and include/, fails on an arrow that runs the wrong way, and
compiles each header alone.  Usage: arrows.py SOURCE_ROOT COMPILER...
"""

import pathlib
import re
import subprocess
import sys

# Which room a door in include/mailfs belongs to.
DOORS = {
    "error.h": "base", "log.h": "base",
    "config.h": "config",
    "stream.h": "net", "sasl.h": "net",
    "backend.h": "backend", "uidset.h": "backend",
    "index.h": "mail", "cache.h": "mail", "store.h": "mail", "change.h": "mail",
}

# What a room may look at through the doors, besides itself. backend.h belongs to nobody: there mail
# and the protocols meet. config.h is only data.
MAY = {
    "base": {"backend"},  # for the sets of UIDs, a type of backend.h
    "config": {"base"},
    "net": {"base", "config"},
    "backend": {"base"},
    "imap": {"base", "config", "net", "backend"},
    "pop3": {"base", "config", "net", "backend"},
    "mail": {"base", "config", "backend"},
    "fs": {"base", "config", "backend", "mail"},
    "main": {"base", "config", "net", "backend", "mail"},
}

# Libraries that only these rooms know.
LIBRARIES = {
    re.compile(r"fuse"): {"fs", "main"},
    re.compile(r"sqlite3"): {"mail"},
    re.compile(r"gsasl"): {"net", "imap", "pop3"},
    re.compile(r"openssl/ssl"): {"net"},
    re.compile(r"sys/socket|netinet/|netdb"): {"base", "config", "net", "main"},
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[>"]', re.MULTILINE)


def wrong_arrow(path, quote, target):
    """Why the file at path (relative to the root) may not include target; None if it may.

    A bare name is a header beside the file itself; the compiler sees to it that it exists.
    """
    parts = pathlib.PurePath(path).parts
    if parts[0] == "include":
        room = DOORS.get(parts[-1])
        if room is None:
            return f"DOORS in {__file__} does not say whose door this is"
    else:
        room = "main" if len(parts) == 2 else parts[1]
    if room not in MAY:
        return f"MAY in {__file__} does not know the room {room}"

    if quote == "<":
        for pattern, rooms in LIBRARIES.items():
            if pattern.match(target) and room not in rooms:
                return f"{room} does not know this library"
        return None
    if ".." in target:
        return "headers are named from src/ or include/"
    if "/" not in target:
        return None
    folder, name = target.split("/", 1)
    if folder == "mailfs":
        owner = DOORS.get(name)
        if owner is None:
            return f"DOORS in {__file__} does not say whose door this is"
        return None if owner == room or owner in MAY[room] else f"{room} may not look into {owner}"
    if folder == room or room == "main":
        return None
    return f"{room} may look into {folder} only through a door in include/mailfs"


def check_the_checker():
    """Arrows that must be seen, and others that must not."""
    for path, quote, target, right in [
        ("src/imap/pool.c", '"', "mailfs/stream.h", True),
        ("src/imap/pool.c", '"', "imap/session.h", True),
        ("src/imap/pool.c", '"', "mailfs/backend.h", True),
        ("src/main.c", '"', "imap/backend.h", True),
        ("src/fs/ops.c", "<", "fuse_lowlevel.h", True),
        ("src/fs/ops.c", '"', "mailfs/index.h", True),
        ("include/mailfs/index.h", '"', "mailfs/backend.h", True),
        ("src/imap/pool.c", '"', "mailfs/cache.h", False),
        ("src/pop3/session.c", '"', "mailfs/store.h", False),
        ("src/pop3/session.c", '"', "imap/auth.h", False),
        ("src/mail/store.c", '"', "mailfs/stream.h", False),
        ("src/mail/store.c", '"', "imap/backend.h", False),
        ("src/mail/store.c", '"', "fs/names.h", False),
        ("src/mail/store.c", "<", "fuse_lowlevel.h", False),
        ("src/fs/ops.c", '"', "mailfs/stream.h", False),
        ("src/fs/ops.c", '"', "mail/stage.h", False),
        ("src/fs/ops.c", '"', "pop3/backend.h", False),
        ("src/base/log.c", '"', "mailfs/config.h", False),
        ("src/config/url.c", '"', "mailfs/stream.h", False),
        ("src/imap/session.c", "<", "fuse.h", False),
        ("src/imap/session.c", "<", "sys/socket.h", False),
        ("include/mailfs/backend.h", '"', "mailfs/index.h", False),
        ("include/mailfs/unheard-of.h", '"', "mailfs/error.h", False),
        ("src/fs/ops.c", '"', "../mail/stage.h", False),
        ("src/attic/ops.c", '"', "mailfs/error.h", False),
    ]:
        if (wrong_arrow(path, quote, target) is None) != right:
            sys.exit(f"the checker itself is wrong about {path} including {target}")


def main():
    root = pathlib.Path(sys.argv[1])
    compiler = sys.argv[2:]
    check_the_checker()

    errors = []
    sources = sorted(p for top in ("src", "include") for p in (root / top).rglob("*.[ch]"))
    if not sources:
        errors.append(f"{root}: no sources")
    for source in sources:
        path = source.relative_to(root).as_posix()
        text = source.read_text(encoding="utf-8")
        for match in INCLUDE.finditer(text):
            why = wrong_arrow(path, match[1], match[2])
            if why:
                line = text.count("\n", 0, match.start(1)) + 1
                errors.append(f"{path}:{line}: {match[2]}: {why}")

    flags = subprocess.run(
        ["pkg-config", "--cflags", "gio-2.0", "gio-unix-2.0", "fuse3", "openssl", "sqlite3", "zlib",
         "libdeflate", "libgsasl"], check=True, capture_output=True, text=True).stdout.split()
    for header in (p for p in sources if p.suffix == ".h"):
        name = header.relative_to(root / header.relative_to(root).parts[0]).as_posix()
        result = subprocess.run(
            [*compiler, "-std=gnu11", "-D_GNU_SOURCE", "-DFUSE_USE_VERSION=314", "-Wall", "-Werror",
             f"-I{root}/include", f"-I{root}/src", *flags, "-fsyntax-only", "-x", "c", "-"],
            input=f'#include "{name}"\n', capture_output=True, text=True)
        if result.returncode:
            errors.append(f"{name} does not compile alone:\n{result.stderr}")

    print("\n".join(errors) or f"{len(sources)} files, every arrow runs the right way")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
