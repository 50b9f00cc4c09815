# SPDX-License-Identifier: MIT
"""A private Dovecot on the loopback addresses: any user, one password, mail in a directory of its
own. One instance serves every kind of certificate, each on an address of its own."""
import ctypes
import grp
import itertools
import os
import pathlib
import poplib
import pwd
import re
import signal
import socket
import subprocess
import time

from . import corpus
from .imap import Client, encode
from .tls import Certificates

PASSWORD = "canary-Zq7-9f3e1c-password"

# address -> certificate on it
ADDRESSES = {
    "127.0.0.1": "good",
    "127.0.0.2": "wrong-host",
    "127.0.0.3": "expired",
    "127.0.0.4": "self-signed",
    "127.0.0.5": "wrong-usage",
}

CONFIG = """
protocols = imap pop3
base_dir = {dir}/run
state_dir = {dir}/run
instance_name = {name}
log_path = {dir}/dovecot.log
mail_debug = no
import_environment = MAILFS_RUN
listen = {listen}
auth_mechanisms = plain login cram-md5 scram-sha-1 scram-sha-256
auth_failure_delay = 0
disable_plaintext_auth = no
default_internal_user = {internal}
default_login_user = {login}
default_internal_group = {internal_group}
first_valid_uid = 1
first_valid_gid = 1
default_vsz_limit = 0
mail_max_userip_connections = 2000
default_process_limit = 200
default_client_limit = 1000
mail_fsync = never
maildir_very_dirty_syncs = no
mail_location = maildir:~/mail:LAYOUT=fs:INBOX=~/inbox
mailbox_list_index = {list_index}
mail_plugins = {plugins}
ssl = yes
ssl_cert = <{certs}/good.pem
ssl_key = <{certs}/good.key
ssl_min_protocol = TLSv1.2
ssl_dh =
{locals}
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={dir}/home/%u
}}
namespace inbox {{
  inbox = yes
  separator = /
  mailbox Trash {{
    special_use = \\Trash
  }}
}}
service imap-login {{
{chroot}  service_count = 0
  client_limit = 1000
  process_min_avail = 1
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
  }}
}}
service pop3-login {{
{chroot}  service_count = 0
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = {pop3s}
    ssl = yes
  }}
}}
service anvil {{
{chroot}  # no login waits because of the wrong password in another test
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
{chroot}}}
plugin {{
  acl = vfile
  quota = maildir:User quota
  quota_rule = *:storage={quota}
}}
protocol imap {{
  mail_plugins = {imap_plugins}
}}
protocol pop3 {{
  pop3_lock_session = {pop3_lock}
}}
"""


marks = itertools.count()


def free_ports(n):
    """Sockets on ports that are free, and stay so for as long as they are open: a server that reuses
    addresses may listen there at any time, but nobody else is given one, to listen or to connect from."""
    sockets = []
    for _ in range(n):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", 0))
        sockets.append(s)
    return sockets


def wait_for(what, test, seconds=20, step=0.02):
    """Polls test() until it is true; the value. An event is waited for, never a time."""
    end = time.monotonic() + seconds
    while True:
        value = test()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds} s still not: {what}")
        time.sleep(step)


def end_with_parent():
    """In a child before exec: SIGTERM when the process that started it is gone, however it went."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)


def group_lives(group):
    """Whether a process of this group has files open still: one that has ended and was not waited for has none."""
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it went meanwhile
            continue
        if int(its_group) == group and state not in "ZX":
            return True
    return False


class Dovecot:
    def __init__(self, directory, quota=None, acl=False, list_index=True, certs=None, name="mailfs",
                 pop3_lock=False, compress=False):
        self.dir = pathlib.Path(directory)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.dir.chmod(0o755)
        self.certs = certs or make_certificates(self.dir / "certs")
        self.ports = free_ports(4)
        self.imap, self.imaps, self.pop3, self.pop3s = (s.getsockname()[1] for s in self.ports)
        root = os.getuid() == 0
        me = pwd.getpwuid(os.getuid())
        mail = pwd.getpwnam("nobody") if root else me
        self.owner = (mail.pw_uid, mail.pw_gid)
        (self.dir / "home").mkdir(exist_ok=True)
        os.chown(self.dir / "home", *self.owner)
        plugins = ([] if quota is None else ["quota"]) + (["acl"] if acl else [])
        imap_plugins = plugins + ([] if quota is None else ["imap_quota"]) + \
            (["imap_acl"] if acl else []) + (["imap_zlib"] if compress else [])
        local = "".join(
            f"local {address} {{\n  ssl_cert = <{self.certs.cert(cert)}\n"
            f"  ssl_key = <{self.certs.key(cert)}\n}}\n"
            for address, cert in ADDRESSES.items() if cert != "good")
        self.config = self.dir / "dovecot.conf"
        self.config.write_text(CONFIG.format(
            dir=self.dir, name=name, listen=", ".join(ADDRESSES), certs=self.certs.dir, locals=local,
            password=PASSWORD, uid=self.owner[0], gid=self.owner[1], quota=quota or "0",
            list_index="yes" if list_index else "no", pop3_lock="yes" if pop3_lock else "no",
            internal="dovecot" if root else me.pw_name, login="dovenull" if root else me.pw_name,
            internal_group="dovecot" if root else grp.getgrgid(me.pw_gid).gr_name, chroot="" if root else "  chroot =\n",
            plugins=" ".join(plugins), imap_plugins=" ".join(imap_plugins), imap=self.imap,
            imaps=self.imaps, pop3=self.pop3, pop3s=self.pop3s))
        self.config.chmod(0o644)
        self.process = None

    def start(self):
        binary = "/usr/sbin/dovecot" if os.path.exists("/usr/sbin/dovecot") else "dovecot"
        self.process = subprocess.Popen([binary, "-F", "-c", str(self.config)],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=open(self.dir / "stderr", "wb"),
                                        start_new_session=True, preexec_fn=end_with_parent)
        wait_for("Dovecot answers", self._answers)
        return self

    def _answers(self):
        if self.process.poll() is not None:
            raise AssertionError("dovecot ended: " + (self.dir / "stderr").read_text() +
                                 self.log()[-2000:])
        try:
            with socket.create_connection(("127.0.0.1", self.imap), 5) as s:
                return s.recv(4) == b"* OK"
        except OSError:
            return False

    def log(self):
        path = self.dir / "dovecot.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def logins(self, user):
        """How often this user has come so far. Processes of its own log that, in their order: when a
        login of ours is there, by IMAP and by POP, what was before it is there too."""
        mark = f"mark{next(marks)}"
        with self.client(mark):
            pop = poplib.POP3("127.0.0.1", self.pop3, timeout=60)
            pop.user(mark)
            pop.pass_(PASSWORD)
            pop.quit()
        wait_for("both are logged", lambda: self.log().count(f"user=<{mark}>") >= 2)
        return self.log().count(f"user=<{user}>")

    def stop(self, how=signal.SIGTERM):
        if not self.process:
            return
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            if how == signal.SIGKILL:
                self.signal(how)
            else:
                self.process.send_signal(how)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait(10)
        self.signal(signal.SIGKILL)  # whoever of its children is still there
        # One that is still being killed listens still: "Dovecot is already running?"
        wait_for("all its processes are gone", lambda: not group_lives(self.process.pid))
        self.process = None
        # a master that was killed leaves its pid file; the next start must not mind
        for left in (self.dir / "run").glob("*.pid"):
            left.unlink()

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

    def home(self, user):
        home = self.dir / "home" / user
        if not home.exists():
            home.mkdir()
            for sub in ("", "inbox", "inbox/cur", "inbox/new", "inbox/tmp", "mail"):
                (home / sub).mkdir(exist_ok=True)
                os.chown(home / sub, *self.owner)
        return home

    def folder(self, user, *path):
        """The Maildir of a folder, made if need be; () is INBOX."""
        home = self.home(user)
        if not path:
            return home / "inbox"
        at = home / "mail"
        for part in path:
            at = at / encode(part)
            for sub in ("", "cur", "new", "tmp"):
                (at / sub).mkdir(exist_ok=True)
                os.chown(at / sub, *self.owner)
        return at

    def fill(self, user, numbers, *path, **kw):
        corpus.fill(self.folder(user, *path), numbers, owner=self.owner, **kw)

    def client(self, user):
        return Client("127.0.0.1", self.imap, user, PASSWORD)

    def url(self, user, scheme="imap", host="127.0.0.1", path=""):
        port = {"imap": self.imap, "imaps": self.imaps, "pop": self.pop3, "pops": self.pop3s}[scheme]
        return f"{scheme}://{user}@{host}:{port}/{path}"

    def processes(self, user, service="imap"):
        """Pids of the server's processes that serve this user."""
        text = subprocess.run(["doveadm", "-c", str(self.config), "who", "-1", user],
                              capture_output=True, text=True, timeout=20).stdout
        return [int(m) for m in re.findall(rf"\b{service}\b\s+(\d+)", text)]


def make_certificates(directory):
    certs = Certificates(directory)
    certs.issue("good", "DNS:localhost,IP:127.0.0.1")
    certs.issue("wrong-host", "DNS:wrong.example")
    certs.issue("expired", "IP:127.0.0.3", start="20200101000000Z", end="20210101000000Z")
    certs.self_signed("self-signed", "IP:127.0.0.4")
    certs.issue("wrong-usage", "IP:127.0.0.5", usage="clientAuth")
    certs.issue("client", "email:me@example.com", usage="clientAuth")
    return certs
