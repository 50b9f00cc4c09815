# SPDX-License-Identifier: MIT
"""kill -9 of the daemon and cuts of the connection at every step of a change: afterwards every message
exists, none is there twice, and nothing of others has gone."""
import errno
import os
import re
import signal
import socket
import subprocess
import threading

import pytest

from support import paths
from support.dovecot import wait_for
from support.write import Account, error_of, mail, sh

BIG = 3000  # lines: a literal that is on the way for more than one packet


def prepare(server, user):
    with server.client(user) as client:
        for i in range(6):
            client.append(mail(f"m{i}"), when=1_000_000_000 + i)
        client.create("Archive")
        client.create("Trash")
        client.append(mail("theirs0"), flags="(\\Deleted)")
        client.append(mail("theirs1"), "Archive", flags="(\\Deleted)")


# name -> script in INBOX; {n}: the name of m<n>; what must be where at the end, as {folder: words}
OPS = {
    "append": "cp -p {work}/new.eml fresh.eml",
    "append two": "cp -p {work}/new.eml fresh.eml; cp -p {work}/new2.eml fresh2.eml",
    "by temporary name": "cp {work}/new.eml .tmp; mv .tmp fresh.eml",
    "move": "mv {0} ../Archive/",
    "move many": "mv {0} {1} {2} {3} ../Archive/",
    "remove": "rm {0}",
    "remove many": "rm {0} {1} {2}",
    "replace": "cat {work}/new.eml > {0}",
    "replace by rename": "cp {work}/new.eml .tmp; mv .tmp {0}",
    "copy": "cp {0} ../Archive/copy.eml",
    "flags": "setfattr -n user.imap.flags -v '\\Flagged word' {0} {1}",
}

APPEND = ["append-journaled", "append-sent", "append-answered", "append-settled"]
POINTS = (
    [(op, p, n) for op in ("append", "by temporary name") for p in APPEND for n in (1,)] +
    [("append two", p, 2) for p in APPEND] +
    [(op, p, 1) for op in ("replace", "replace by rename")
     for p in APPEND + ["replace-stored", "change-journaled", "move-sent", "move-answered"]] +
    [(op, p, 1) for op in ("move", "remove") for p in ("change-journaled", "move-sent",
                                                       "move-answered")] +
    [(op, p, 2) for op in ("move many", "remove many") for p in ("change-journaled", "move-sent",
                                                                 "move-answered")] +
    [("copy", p, 1) for p in ("copy-sent", "copy-answered")] +
    [("flags", p, 1) for p in ("change-journaled", "flags-sent", "flags-answered")])
NO_MOVE = ([(op, p, n) for op, n in (("move", 1), ("move many", 1), ("remove", 1))
            for p in ("copy-sent", "copy-copied", "copy-answered", "copy-removed")])
NO_TRASH = [("remove", p, 1) for p in ("change-journaled", "remove-sent", "remove-answered")] + \
    [("remove many", p, 2) for p in ("change-journaled", "remove-sent", "remove-answered")]


def script(account, op, work):
    (work / "new.eml").write_bytes(mail("new", BIG))
    (work / "new2.eml").write_bytes(mail("new2"))
    for name, when in (("new.eml", 900_000_001), ("new2.eml", 900_000_002)):
        os.utime(work / name, (when, when))
    names = [account.name(uid) for uid in range(1, 7)]
    return OPS[op].format(*names, work=work)


def recovered(account):
    wait_for("the queue is empty", lambda: error_of(account.sync) == 0 and account.queue() == [], 30,
             0.1)


def failed_words(account):
    top = account.mnt / ".mailfs" / "failed"
    return [re.search(rb"Subject: (\S+)", (top / n).read_bytes()).group(1).decode()
            for n in os.listdir(top)]


def check(account, op, trash=True):
    """Every message exists, none twice, none foreign gone."""
    recovered(account)
    where = {f: account.subjects(f) for f in account.folders()}
    inbox, archive, bin_ = where["INBOX"], where["Archive"], where.get("Trash", [])
    everything = inbox + archive + bin_
    assert {"theirs0"} <= set(inbox) and {"theirs1"} <= set(archive)
    for folder in ("INBOX", "Archive"):
        assert sum("\\Deleted" in m.flags for m in account.see(folder, False).values()) == 1
    lost = {f"m{i}" for i in range(6)} - set(everything)
    assert not lost if trash else lost <= {"m0", "m1", "m2"}, where
    twice = [w for w in set(everything) if everything.count(w) > 1]
    assert twice == (["m0"] if op == "copy" and "m0" in archive else []), where
    for folder, words in where.items():
        assert len(words) == len(set(words)), where
    kept = failed_words(account)
    for word in ("new", "new2"):
        assert (everything + kept).count(word) <= 1, (where, kept)
    # what the mount shows is what there is
    for folder in ("INBOX", "Archive"):
        # a server that was away a moment ago may count as down
        wait_for(f"the mount has {where}", lambda folder=folder:
                 account.shown(account.mnt / folder) == where[folder])
    return where, kept


def crash(account, op, point, count, work):
    """The daemon dies at this point of the operation; then it is started anew."""
    line = script(account, op, work)
    account.daemon.stop()
    account.daemon.env["MAILFS_FAILPOINT"] = f"{point}:{count}"
    account.daemon.start()
    assert len(os.listdir(account.inbox)) == 7 and len(os.listdir(account.mnt / "Archive")) == 1
    assert set(account.words(account.inbox)) >= {"m0", "m1", "m2", "m3"}
    done = subprocess.Popen(["bash", "-c", line + "; sync -f ."], cwd=account.inbox,
                            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    account.daemon.process.wait(30)
    assert account.daemon.process.returncode == 137, (account.daemon.process.returncode,
                                                      account.daemon.log()[-2000:])
    done.communicate(timeout=20)
    account.daemon.forget()
    del account.daemon.env["MAILFS_FAILPOINT"]
    account.daemon.allow("interrupted|not on the server|not known|gone|no longer|no such")
    account.daemon.start()


def final(op, point, where, kept):
    """What was acknowledged or journaled is done in the end."""
    inbox, archive, trash = where["INBOX"], where["Archive"], where.get("Trash", [])
    if op in ("append", "by temporary name", "replace", "replace by rename"):
        assert "new" in inbox or "new" in kept
    if op == "append two":
        assert ("new" in inbox or "new" in kept) and ("new2" in inbox or "new2" in kept)
    if op == "move":
        assert "m0" in archive
    if op == "remove":
        assert "m0" in trash or "Trash" not in where or "m0" not in inbox
    if op.startswith("replace") and "new" in inbox and point != "change-journaled":
        assert "m0" in trash


@pytest.mark.parametrize("op,point,count", POINTS,
                         ids=[f"{o}-{p}-{n}" for o, p, n in POINTS])
def test_killed(mount, dovecot, user, work, op, point, count):
    prepare(dovecot, user)
    account = Account(dovecot, user, mount(user))
    crash(account, op, point, count, work)
    where, kept = check(account, op)
    final(op, point, where, kept)


@pytest.fixture(scope="module")
def no_move(run_dir, certs):
    """A server without MOVE."""
    from support import dovecot as dovecot_module
    server = dovecot_module.Dovecot(run_dir / "nomove", certs=certs)
    with open(server.config, "a") as config:
        config.write("imap_capability = IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ "
                     "NAMESPACE UIDPLUS UNSELECT CHILDREN SPECIAL-USE LIST-EXTENDED\n")
    yield server.start()
    server.stop()


@pytest.mark.parametrize("op,point,count", NO_MOVE, ids=[f"{o}-{p}-{n}" for o, p, n in NO_MOVE])
def test_killed_without_move(mount, no_move, user, work, op, point, count):
    prepare(no_move, user)
    account = Account(no_move, user, mount(no_move.url(user), tls_ca=no_move.certs.ca))
    crash(account, op, point, count, work)
    where, kept = check(account, op)
    final(op, point, where, kept)


@pytest.mark.parametrize("op,point,count", NO_TRASH, ids=[f"{o}-{p}-{n}" for o, p, n in NO_TRASH])
def test_killed_without_trash(mount, dovecot, user, work, op, point, count):
    prepare(dovecot, user)
    account = Account(dovecot, user, mount(user, trash="none"))
    crash(account, op, point, count, work)
    where, _ = check(account, op, trash=False)
    assert where["Trash"] == []
    assert {"m3", "m4", "m5"} <= set(where["INBOX"])


# --- the connection is cut ---------------------------------------------------------------------------


class Cutter:
    """Hands bytes on until a pattern has passed in one direction, and so many bytes more; then it cuts
    all connections, once, and goes on as if nothing had been."""

    def __init__(self, port):
        self.target = port
        self.rule = None
        self.lock = threading.Lock()
        self.links = set()
        self.fired = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def arm(self, side, pattern, more):
        with self.lock:
            self.rule = (side, re.compile(pattern, re.S), more)

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            with self.lock:
                self.links |= {client, server}
            for side, a, b in (("C", client, server), ("S", server, client)):
                threading.Thread(target=self.pump, args=(side, a, b), daemon=True).start()

    def pump(self, side, source, target):
        seen = b""
        start = None  # where in `seen` the rule began to count
        try:
            while data := source.recv(4096):
                allowed = len(data)
                with self.lock:
                    rule = self.rule if self.rule and self.rule[0] == side else None
                if rule:
                    before = len(seen)
                    seen += data
                    if start is None:
                        match = rule[1].search(seen)
                        start = match.end() if match else None
                    if start is not None and start + rule[2] <= len(seen):
                        allowed = max(0, start + rule[2] - before)
                        with self.lock:
                            mine, self.rule = self.rule is rule, None
                        if mine:
                            target.sendall(data[:allowed])
                            self.cut()
                            self.fired.set()
                            return
                target.sendall(data)
        except OSError:
            pass
        finally:
            for s in (source, target):
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def cut(self):
        with self.lock:
            links, self.links = self.links, set()
        for s in links:
            try:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            except OSError:
                pass
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def stop(self):
        self.listener.close()
        self.cut()


@pytest.fixture
def cutter(dovecot):
    made = Cutter(dovecot.imap)
    yield made
    made.stop()


COMMAND = {"append": rb"APPEND", "replace": rb"APPEND", "replace by rename": rb"APPEND",
           "move": rb"UID MOVE", "remove": rb"UID MOVE", "copy": rb"UID COPY", "flags": rb"UID STORE",
           "move many": rb"UID MOVE"}
CUTS = ([(op, where, side, pattern, more) for op in ("append", "replace", "replace by rename")
         for where, side, pattern, more in (
             ("before the command", "C", rb"\w+ APPEND", -9),
             ("before the literal", "C", rb" APPEND [^\r]*", 2),
             ("inside the literal", "C", rb" APPEND [^\r]*\r\n", 5000),
             ("before the last line", "C", rb"(?:new\r\n){3000}", 0),
             ("after the literal", "C", rb"(?:new\r\n){3000}", 2),
             ("before the OK", "S", rb"\w+ OK \[APPENDUID", -12),
             ("inside the OK", "S", rb"\w+ OK \[APPENDUID", 4),
             ("after the OK", "S", rb"\[APPENDUID[^\r]*\r\n", 0))] +
        [(op, where, side, pattern, more) for op in ("move", "remove", "copy", "move many")
         for where, side, pattern, more in (
             ("inside the command", "C", COMMAND[op], 2),
             ("after the command", "C", COMMAND[op] + rb"[^\r]*\r\n", 0),
             ("before the answer", "S", rb"\[COPYUID", -8),
             ("inside the answer", "S", rb"\[COPYUID", 4),
             ("after the answer", "S", rb"\[COPYUID[^\r]*\r\n", 0))] +
        [("flags", "after the command", "C", COMMAND["flags"] + rb"[^\r]*\r\n", 0)])


@pytest.mark.parametrize("op,where,side,pattern,more", CUTS, ids=[f"{c[0]}-{c[1]}" for c in CUTS])
def test_cut(mount, dovecot, cutter, user, work, op, where, side, pattern, more):
    prepare(dovecot, user)
    account = Account(dovecot, user)
    account.daemon = mount(f"imap://{user}@127.0.0.1:{cutter.port}/", tls="off")
    account.daemon.allow("lost|connect|clos|reset|gone|no longer|no such|short")
    assert len(os.listdir(account.inbox)) == 7 and len(os.listdir(account.mnt / "Archive")) == 1
    assert set(account.words(account.inbox)) >= {"m0", "m1", "m2", "m3"}
    line = script(account, op, work)
    cutter.arm(side, pattern, more)
    done = subprocess.run(["bash", "-c", line], cwd=account.inbox, capture_output=True, timeout=60)
    assert cutter.fired.wait(20), "the cut never came"
    where_, kept = check(account, op)
    if done.returncode == 0:
        final(op, None, where_, kept)
