# SPDX-License-Identifier: MIT
"""A private Cyrus IMAP server on 127.0.0.1, with the interface of Dovecot in dovecot.py: any user, one
password, mail in a directory of its own.

Its Debian packages conflict with Dovecot's, so they are not installed but unpacked below the
directory of the run and started from there. What differs from Dovecot: a folder is no directory one
could write to, so fill() appends over IMAP; only plain-text mechanisms; one certificate.
"""
import os
import pathlib
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time

from . import corpus
from .dovecot import PASSWORD, free_ports, make_certificates, wait_for
from .imap import Client, encode, quote

PACKAGES = ["cyrus-common", "cyrus-imapd", "cyrus-pop3d", "libical3", "libxapian30"]

IMAPD_CONF = """
configdirectory: {dir}/conf
proc_path: {dir}/proc
mboxname_lockpath: {dir}/lock
partition-default: {dir}/spool
defaultpartition: default
sievedir: {dir}/sieve
idlesocket: {dir}/idle
syslog_prefix: mailfs-test
cyrus_user: {user}
admins: admin
altnamespace: yes
unixhierarchysep: yes
autocreate_quota: 0
imapidlepoll: 1
popminpoll: 0
allowplaintext: yes
sasl_mech_list: PLAIN LOGIN
sasl_pwcheck_method: saslauthd
sasl_saslauthd_path: {dir}/mux
tls_server_cert: {certs}/good.pem
tls_server_key: {certs}/good.key
tls_versions: tls1_2 tls1_3
"""

CYRUS_CONF = """
START {{
  recover cmd="{bin}/ctl_cyrusdb -C {conf} -r"
  idled cmd="{bin}/idled -C {conf}"
}}
SERVICES {{
  imap cmd="{bin}/imapd -C {conf}" listen="127.0.0.1:{imap}" prefork=1
  imaps cmd="{bin}/imapd -C {conf} -s" listen="127.0.0.1:{imaps}" prefork=0
  pop3 cmd="{bin}/pop3d -C {conf}" listen="127.0.0.1:{pop3}" prefork=0
  pop3s cmd="{bin}/pop3d -C {conf} -s" listen="127.0.0.1:{pop3s}" prefork=0
}}
EVENTS {{
}}
"""

MAILDIR_FLAGS = {"D": "\\Draft", "F": "\\Flagged", "R": "\\Answered", "S": "\\Seen", "T": "\\Deleted"}


def unpack(directory):
    """The packages, fetched and unpacked; None where that cannot be done. CYRUS_ROOT names a directory
    where it has been done before."""
    if os.environ.get("CYRUS_ROOT"):
        return pathlib.Path(os.environ["CYRUS_ROOT"])
    root, debs = pathlib.Path(directory) / "root", pathlib.Path(directory) / "debs"
    if (root / "usr/lib/cyrus/bin/master").exists():
        return root
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return None
    debs.mkdir(parents=True, exist_ok=True)

    def apt_get(*command):
        return subprocess.run(["apt-get", "-q", *command], cwd=debs, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    if not apt_get("download", *PACKAGES) and not (
            apt_get("update") and apt_get("download", *PACKAGES)):
        return None
    for deb in debs.glob("*.deb"):
        subprocess.run(["dpkg", "-x", deb, root], check=True)
    shutil.rmtree(debs)
    root.chmod(0o755)
    return root


class Saslauthd(threading.Thread):
    """Answers Cyrus's question whether a password is right: PASSWORD is, for anybody."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        os.chmod(path, 0o666)
        self.listener.listen(100)

    def run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return  # closed
            with connection, connection.makefile("rb") as file:
                try:
                    # user, password, service, realm: each a 16-bit length and the bytes
                    fields = [file.read(struct.unpack("!H", file.read(2))[0]) for _ in range(4)]
                    answer = b"OK" if fields[1] == PASSWORD.encode() else b"NO"
                    connection.sendall(struct.pack("!H", len(answer)) + answer)
                except (OSError, struct.error):
                    pass

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Cyrus:
    name = "cyrus"

    def __init__(self, directory, root, certs=None):
        self.dir = pathlib.Path(directory)
        self.root = pathlib.Path(root)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.dir.chmod(0o755)
        self.certs = certs or make_certificates(self.dir / "certs")
        self.ports = free_ports(4)
        self.imap, self.imaps, self.pop3, self.pop3s = (s.getsockname()[1] for s in self.ports)
        self.user = "nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        self.known = set()
        self.process = None
        for name in ("conf", "conf/db", "conf/socket", "conf/log", "conf/msg", "conf/ptclient",
                     "proc", "lock", "spool", "sieve", "keys"):
            (self.dir / name).mkdir(exist_ok=True)
        for name in ("good.pem", "good.key"):  # the server's user must be able to read its key
            shutil.copy(self.certs.dir / name, self.dir / "keys" / name)
        (self.dir / "imapd.conf").write_text(IMAPD_CONF.format(
            dir=self.dir, user=self.user, certs=self.dir / "keys"))
        (self.dir / "cyrus.conf").write_text(CYRUS_CONF.format(
            bin=self.root / "usr/lib/cyrus/bin", conf=self.dir / "imapd.conf", imap=self.imap,
            imaps=self.imaps, pop3=self.pop3, pop3s=self.pop3s))
        if os.getuid() == 0:
            owner = pwd.getpwnam(self.user)
            corpus.chown_tree(self.dir, owner.pw_uid, owner.pw_gid)

    def start(self):
        (self.dir / "mux").unlink(missing_ok=True)
        self.saslauthd = Saslauthd(self.dir / "mux")
        self.saslauthd.start()
        libraries = self.root / "usr/lib" / self.multiarch()
        self.process = subprocess.Popen(
            [self.root / "usr/lib/cyrus/bin/master", "-C", self.dir / "imapd.conf", "-M",
             self.dir / "cyrus.conf", "-p", self.dir / "master.pid"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(self.dir / "stderr", "wb"),
            env={**os.environ, "LD_LIBRARY_PATH": str(libraries)}, start_new_session=True)
        wait_for("Cyrus answers", self._answers)
        return self

    def multiarch(self):
        return next((self.root / "usr/lib").glob("*/libcyrus.so.0")).parent.name

    def _answers(self):
        if self.process.poll() is not None:
            raise AssertionError("cyrus ended: " + self.log())
        try:
            with socket.create_connection(("127.0.0.1", self.imap), 5) as s:
                return s.recv(4) == b"* OK"
        except OSError:
            return False

    def log(self):
        """Cyrus logs to syslog; this is only what it says on its standard error."""
        path = self.dir / "stderr"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self, how=signal.SIGTERM):
        if not self.process:
            return
        self.signal(signal.SIGCONT)
        if how != signal.SIGKILL and self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                pass
        self.signal(signal.SIGKILL)
        self.process.wait(10)
        self.process = None
        self.saslauthd.close()

    def signal(self, signum):
        """To the master and all its children."""
        try:
            os.killpg(self.process.pid, signum)
        except ProcessLookupError:
            pass

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)

    # --- accounts ---------------------------------------------------------------------------------

    def folder(self, user, *path):
        """Makes a folder if need be; () is INBOX, which the first login makes."""
        if path and (user, path) not in self.known:
            with self.client(user) as client:
                have = set(client.folders())
                for depth in range(1, len(path) + 1):
                    if "/".join(path[:depth]) not in have:
                        client.create(*path[:depth])
            self.known.add((user, path))

    def fill(self, user, numbers, *path, seed=0, make=corpus.message, new_every=7):
        """As corpus.fill, by APPEND: pipelined, since each waits for the disk."""
        self.folder(user, *path)
        name = quote(encode("/".join(path) or "INBOX")).encode()
        numbers = list(numbers)
        with self.client(user) as client:
            connection, file = client.imap.sock, client.imap.file
            for at in range(0, len(numbers), 50):
                for number in numbers[at:at + 50]:
                    connection.sendall(b"X APPEND " + name + self._message(number, seed, make,
                                                                           new_every))
                for number in numbers[at:at + 50]:
                    line = file.readline()
                    while not line.startswith(b"X "):
                        if not line:
                            raise AssertionError("cyrus hung up while being filled")
                        line = file.readline()
                    if not line.startswith(b"X OK"):
                        raise AssertionError(f"message {number}: {line!r}")

    @staticmethod
    def _message(number, seed, make, new_every):
        """Flags, date and literal of message `number`."""
        body = make(number, seed).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        is_new = new_every and number % new_every == new_every - 1
        letters = "" if is_new else corpus.FLAGS[number % len(corpus.FLAGS)]
        flags = " ".join(MAILDIR_FLAGS[letter] for letter in letters)
        date = time.strftime("%d-%b-%Y %H:%M:%S +0000", time.gmtime(corpus.date(number, seed)))
        return f' ({flags}) "{date}" {{{len(body)}+}}\r\n'.encode() + body + b"\r\n"

    def client(self, user):
        return Client("127.0.0.1", self.imap, user, PASSWORD)

    def url(self, user, scheme="imap", host="127.0.0.1", path=""):
        port = {"imap": self.imap, "imaps": self.imaps, "pop": self.pop3, "pops": self.pop3s}[scheme]
        return f"{scheme}://{user}@{host}:{port}/{path}"
