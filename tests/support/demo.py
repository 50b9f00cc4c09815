# SPDX-License-Identifier: MIT
"""demo.py DIRECTORY: a private Dovecot with 200 sample messages for scripts/demo. Prints what the
shell needs to know as NAME='value' lines, then serves until its standard input is closed."""
import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from support.dovecot import PASSWORD, Dovecot  # noqa: E402

FOLDERS = [((), 80), (("Archive",), 0), (("Archive", "2023"), 30), (("Archive", "2024"), 30),
           (("Lists", "R&D"), 20), (("Grüße aus Köln",), 20), (("日本語",), 20)]


def main(directory):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = Dovecot(pathlib.Path(directory) / "dovecot")
    at = 0
    for folder, n in FOLDERS:
        server.folder("me", *folder)
        server.fill("me", range(at, at + n), *folder)
        at += n
    server.start()
    try:
        password = pathlib.Path(directory) / "password"
        password.write_text(PASSWORD + "\n")
        os.chmod(password, 0o600)
        print(f"URL='{server.url('me', 'imaps')}'")
        print(f"CA='{server.certs.ca}'")
        print(f"PASSFILE='{password}'")
        print("READY", flush=True)
        sys.stdin.read()
    finally:
        server.stop()


main(sys.argv[1])
