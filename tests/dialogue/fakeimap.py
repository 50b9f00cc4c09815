# SPDX-License-Identifier: MIT
"""An IMAP server that misbehaves on demand.

FakeServer serves `mailboxes` correctly (RFC 3501, with whatever extensions `capabilities` names) in a
thread per connection. What is to go wrong is said in three ways:

    server.on("FETCH", handler)       handler(session, tag, args) replaces a command; it may call
                                      session.default(tag, "FETCH", args)
    server.faults.<switch> = ...      cut at a byte, drip slowly, wrong sizes, odd FETCH answers
    server.script = function          function(session) is the whole dialogue of a connection

Everything a client sends is kept in server.received: a password that should never have been sent is
looked for there."""
import base64
import dataclasses
import re
import socket
import ssl
import threading
import time

from support.dovecot import PASSWORD

DATE = "01-Jan-2020 12:00:00 +0000"


@dataclasses.dataclass
class Message:
    uid: int
    body: bytes
    flags: set = dataclasses.field(default_factory=set)
    date: str = DATE
    size: int = None  # what RFC822.SIZE claims, when not the truth
    modseq: int = 1

    @property
    def claimed(self):
        return len(self.body) if self.size is None else self.size


@dataclasses.dataclass
class Mailbox:
    messages: list = dataclasses.field(default_factory=list)
    uidvalidity: int = 1700000000
    uidnext: int = 1
    attributes: str = "\\HasNoChildren"
    modseq: int = 1

    def add(self, body, **kw):
        if isinstance(body, str):
            body = body.encode()
        uid = kw.pop("uid", self.uidnext)
        self.modseq += 1
        self.messages.append(Message(uid, body, modseq=self.modseq, **kw))
        self.uidnext = max(self.uidnext, uid + 1)
        return self.messages[-1]

    def by_uid(self, uid):
        return next((m for m in self.messages if m.uid == uid), None)


@dataclasses.dataclass
class Faults:
    cut_after: int = None      # bytes of all connections together, then the connection is closed
    drip: float = None         # seconds between single bytes
    drip_from: bytes = None    # ... from the first answer that holds this
    silent_from: bytes = None  # from the first answer that holds this nothing more is said
    origin: object = None      # function(asked) -> origin that is answered, or None for no <n>
    ignore_partial: bool = False
    nil_body: bool = False     # BODY[] NIL
    no_fetch: bool = False     # OK without a FETCH response
    order: str = "uid-first"   # or "uid-last", "body-first"
    quoted_body: bool = False


class Closed(Exception):
    pass


class Session:
    """One connection. Its methods named do_X are the server's X."""

    def __init__(self, server, sock):
        self.server, self.sock = server, sock
        self.buffer = b""
        self.tls = False
        self.user = None
        self.mailbox = None
        self.box_name = None
        self.received = b""
        self.qresync = False

    # --- the wire ---------------------------------------------------------------------------------

    def send(self, data):
        if isinstance(data, str):
            data = data.encode()
        faults = self.server.faults
        if faults.silent_from and faults.silent_from in data:
            self.server.silent.add(self)
            at = data.index(faults.silent_from) + len(faults.silent_from)
            self.raw(data[:at])
            return
        if self in self.server.silent:
            return
        with self.server.lock:
            left = None if faults.cut_after is None else faults.cut_after - self.server.sent
            self.server.sent += len(data)
        if left is not None and left < len(data):
            if left > 0:
                self.raw(data[:left])
            self.close()
            raise Closed
        if faults.drip and faults.drip_from and faults.drip_from in data:
            faults.drip_from = None
        if faults.drip and not faults.drip_from:
            for i in range(len(data)):
                self.raw(data[i:i + 1])
                if self.server.stopping.wait(faults.drip):
                    raise Closed
            return
        self.raw(data)

    def raw(self, data):
        try:
            self.sock.sendall(data)
            self.server.transcript.append(data)
        except OSError as error:
            raise Closed from error

    def line(self, data):
        self.send(data.encode() + b"\r\n" if isinstance(data, str) else data + b"\r\n")

    def read(self, n=1 << 16):
        try:
            data = self.sock.recv(n)
        except OSError as error:
            raise Closed from error
        if not data:
            raise Closed
        self.received += data
        with self.server.lock:
            self.server.received += data
        return data

    def read_line(self):
        while b"\r\n" not in self.buffer:
            self.buffer += self.read()
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line

    def read_exact(self, n):
        while len(self.buffer) < n:
            self.buffer += self.read()
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def read_command(self):
        """One command line, its literals put in as quoted strings."""
        line = self.read_line()
        while match := re.search(rb"\{(\d+)(\+?)\}$", line):
            if not match.group(2):
                self.line("+ go on")
            literal = self.read_exact(int(match.group(1)))
            self.literal = literal
            quoted = b'"' + literal.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
            line = line[:match.start()] + quoted + self.read_line()
        return line

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()

    def start_tls(self, cert="good"):
        certs = self.server.certs
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certs.cert(cert), certs.key(cert))
        try:
            self.sock = context.wrap_socket(self.sock, server_side=True)
        except (OSError, ValueError) as error:
            raise Closed from error
        self.tls = True

    # --- the dialogue -----------------------------------------------------------------------------

    def run(self):
        if self.server.implicit_tls:
            self.start_tls(self.server.cert)
        if self.server.script:
            self.server.script(self)
            return
        self.greet()
        self.loop()

    def greet(self):
        self.line(self.server.greeting)

    def loop(self):
        while True:
            line = self.read_command()
            tag, _, rest = line.partition(b" ")
            tag = tag.decode("latin-1")
            verb, _, args = rest.partition(b" ")
            verb = verb.decode("latin-1").upper()
            args = args.decode("utf-8", "surrogateescape")
            if verb == "UID":
                sub, _, args = args.partition(" ")
                verb = "UID " + sub.upper()
            self.server.commands.append((verb, args))
            handler = self.server.handlers.get(verb)
            if handler:
                handler(self, tag, args)
            else:
                self.default(tag, verb, args)

    def default(self, tag, verb, args):
        method = getattr(self, "do_" + verb.replace(" ", "_"), None)
        if method is None:
            self.line(f"{tag} BAD what is {verb}?")
        else:
            method(tag, args)

    def ok(self, tag, text="done"):
        self.line(f"{tag} OK {text}")

    def do_CAPABILITY(self, tag, _):
        self.line("* CAPABILITY " + self.server.capability_line(self))
        self.ok(tag)

    def do_NOOP(self, tag, _):
        if self.mailbox and self.server.announce:
            self.line(f"* {len(self.mailbox.messages)} EXISTS")
        self.ok(tag)

    do_CHECK = do_NOOP

    def do_LOGOUT(self, tag, _):
        self.line("* BYE good bye")
        self.ok(tag)
        self.close()
        raise Closed

    def do_STARTTLS(self, tag, _):
        self.ok(tag, "begin")
        self.start_tls(self.server.cert)

    def do_ID(self, tag, _):
        self.line("* ID NIL")
        self.ok(tag)

    def do_ENABLE(self, tag, args):
        self.qresync = "QRESYNC" in args.upper()
        self.line("* ENABLED " + args)
        self.ok(tag)

    def do_NAMESPACE(self, tag, _):
        self.line(f'* NAMESPACE (("" "{self.server.delimiter}")) NIL NIL')
        self.ok(tag)

    def do_LOGIN(self, tag, args):
        words = split(args)
        self.log_in(tag, words[-1])

    def do_AUTHENTICATE(self, tag, args):
        words = args.split()
        if words[0].upper() not in ("PLAIN", "XOAUTH2", "OAUTHBEARER"):
            self.line(f"{tag} NO no such mechanism")
            return
        if len(words) > 1:
            answer = words[1]
        else:
            self.line("+ ")
            answer = self.read_line().decode()
        if answer == "*":
            self.line(f"{tag} BAD cancelled")
            return
        token = base64.b64decode(answer if answer != "=" else "")
        if words[0].upper() == "PLAIN":
            self.log_in(tag, token.split(b"\0")[-1].decode())
        elif self.server.token.encode() in token:
            self.log_in(tag, self.server.password)
        else:
            self.line("+ " + base64.b64encode(b'{"status":"400"}').decode())
            self.read_line()
            self.line(f"{tag} NO [AUTHENTICATIONFAILED] no")

    def log_in(self, tag, password):
        if password != self.server.password:
            self.line(f"{tag} NO [AUTHENTICATIONFAILED] no")
            return
        self.user = "me"
        self.ok(tag, f"[CAPABILITY {self.server.capability_line(self)}] welcome")

    def list_line(self, kind, name, box):
        delimiter = f'"{self.server.delimiter}"' if self.server.delimiter else "NIL"
        wire = name if isinstance(name, bytes) else quote(name).encode()
        self.line(f"* {kind} ({box.attributes}) {delimiter} ".encode() + wire)

    def do_LIST(self, tag, args):
        if re.match(r'"" ""( |$)', args):
            self.line(f'* LIST (\\Noselect) "{self.server.delimiter}" ""')
            self.ok(tag)
            return
        for name, box in list(self.server.mailboxes.items()):
            self.list_line("LIST", name, box)
            if "STATUS" in args.upper() and "LIST-STATUS" in self.server.capabilities:
                if "\\noselect" not in box.attributes.lower():
                    self.status_line(name, box, args[args.upper().rindex("STATUS"):])
        self.ok(tag)

    def do_LSUB(self, tag, _):
        for name, box in list(self.server.mailboxes.items()):
            self.list_line("LSUB", name, box)
        self.ok(tag)

    def status_line(self, name, box, items):
        values = {"MESSAGES": len(box.messages), "UIDNEXT": box.uidnext, "UIDVALIDITY": box.uidvalidity,
                  "UNSEEN": sum("\\Seen" not in m.flags for m in box.messages), "RECENT": 0,
                  "HIGHESTMODSEQ": box.modseq}
        words = re.findall(r"[A-Z]+", items.upper())
        text = " ".join(f"{w} {values[w]}" for w in words if w in values)
        wire = name if isinstance(name, bytes) else quote(name).encode()
        self.line(b"* STATUS " + wire + f" ({text})".encode())

    def do_STATUS(self, tag, args):
        words = split(args)
        box = self.server.find(words[0])
        if box is None:
            self.line(f"{tag} NO [NONEXISTENT] no such mailbox")
            return
        self.status_line(words[0], box, args[args.rindex("("):])
        self.ok(tag)

    def do_SELECT(self, tag, args, code="READ-WRITE"):
        words = split(args)
        box = self.server.find(words[0])
        self.mailbox = box
        self.box_name = words[0]
        if box is None or "\\noselect" in box.attributes.lower():
            self.mailbox = None
            self.line(f"{tag} NO [NONEXISTENT] no such mailbox")
            return
        self.line("* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft)")
        self.line(f"* OK [PERMANENTFLAGS ({self.server.permanent})] ok")
        self.line(f"* {len(box.messages)} EXISTS")
        self.line("* 0 RECENT")
        if box.uidvalidity is not None:
            self.line(f"* OK [UIDVALIDITY {box.uidvalidity}] ok")
        if self.server.send_uidnext:
            self.line(f"* OK [UIDNEXT {box.uidnext}] ok")
        if "CONDSTORE" in self.server.capabilities:
            self.line(f"* OK [HIGHESTMODSEQ {box.modseq}] ok")
        match = re.search(r"QRESYNC \((\d+) (\d+)", args)
        if match and int(match.group(1)) == box.uidvalidity:
            have = {m.uid for m in box.messages}
            gone = [u for u in range(1, box.uidnext) if u not in have]
            if gone:
                self.line("* VANISHED (EARLIER) " + ",".join(map(str, gone)))
            for i, m in enumerate(box.messages):
                if m.modseq > int(match.group(2)):
                    self.line(f"* {i + 1} FETCH (UID {m.uid} FLAGS ({' '.join(sorted(m.flags))}) "
                              f"MODSEQ ({m.modseq}))")
        self.ok(tag, f"[{code}] selected")

    def do_EXAMINE(self, tag, args):
        self.do_SELECT(tag, args, "READ-ONLY")

    def do_UNSELECT(self, tag, _):
        self.mailbox = None
        self.ok(tag)

    do_CLOSE = do_UNSELECT

    def do_IDLE(self, tag, _):
        self.line("+ idling")
        self.read_line()
        self.ok(tag)

    def do_UID_SEARCH(self, tag, args):
        uids = sorted(m.uid for m in self.mailbox.messages)
        match = re.search(r"UID ([\d,:*]+)", args)
        if match:
            wanted = self.uids(match.group(1))
            uids = [u for u in uids if u in wanted]
        if "RETURN" in args.upper() and "ESEARCH" in self.server.capabilities:
            every = f" ALL {','.join(map(str, uids))}" if uids else ""
            self.line(f'* ESEARCH (TAG "{tag}") UID{every}')
        else:
            self.line("* SEARCH" + "".join(f" {u}" for u in uids))
        self.ok(tag)

    def uids(self, text):
        have = [m.uid for m in self.mailbox.messages]
        last = max(have, default=0)
        out = set()
        for part in text.split(","):
            a, _, b = part.partition(":")
            a = last if a == "*" else int(a)
            b = a if not b else last if b == "*" else int(b)
            out |= {u for u in have if min(a, b) <= u <= max(a, b)}
        return out

    def do_UID_FETCH(self, tag, args):
        if self.mailbox is None:
            self.line(f"{tag} BAD nothing selected")
            return
        sets, _, items = args.partition(" ")
        since = re.search(r"CHANGEDSINCE (\d+)", items.upper())
        wanted = self.uids(sets)
        if not self.server.faults.no_fetch:
            for number, message in enumerate(list(self.mailbox.messages), 1):
                if message.uid in wanted and (not since or message.modseq > int(since.group(1))):
                    self.send(self.fetch_answer(number, message, items, bool(since)))
        if since and "VANISHED" in items.upper():
            have = {m.uid for m in self.mailbox.messages}
            gone = [u for u in range(1, self.mailbox.uidnext) if u not in have]
            if gone:
                self.line("* VANISHED (EARLIER) " + ",".join(map(str, gone)))
        self.ok(tag)

    def fetch_answer(self, number, message, items, modseq):
        faults, upper = self.server.faults, items.upper()
        uid, rest, body = f"UID {message.uid}".encode(), [], []
        if "FLAGS" in upper:
            rest.append(f"FLAGS ({' '.join(sorted(message.flags))})".encode())
        if "INTERNALDATE" in upper:
            rest.append(f'INTERNALDATE "{message.date}"'.encode())
        if "RFC822.SIZE" in upper:
            rest.append(f"RFC822.SIZE {message.claimed}".encode())
        if modseq or "MODSEQ" in upper.replace("CHANGEDSINCE", "").replace("HIGHESTMODSEQ", ""):
            if "CONDSTORE" in self.server.capabilities:
                rest.append(f"MODSEQ ({message.modseq})".encode())
        for section, partial in re.findall(r"BODY(?:\.PEEK)?\[([^\]]*)\](?:<(\d+\.\d+)>)?", upper):
            data = message.body
            if section == "HEADER":
                data = data[:data.index(b"\r\n\r\n") + 4]
            origin = ""
            if partial and not faults.ignore_partial:
                offset, length = map(int, partial.split("."))
                data = data[offset:offset + length]
                origin = f"<{offset}>"
                if faults.origin:
                    answered = faults.origin(offset)
                    origin = "" if answered is None else f"<{answered}>"
            head = f"BODY[{section}]{origin} ".encode()
            if faults.nil_body:
                body.append(head + b"NIL")
            elif faults.quoted_body and not re.search(rb'["\\\r\n]', data):
                body.append(head + b'"' + data + b'"')
            else:
                body.append(head + b"{%d}\r\n" % len(data) + data)
        parts = {"uid-first": [uid, *rest, *body], "uid-last": [*rest, *body, uid],
                 "body-first": [*body, uid, *reversed(rest)]}[faults.order]
        return b"* %d FETCH (" % number + b" ".join(parts) + b")\r\n"

    def do_GETQUOTAROOT(self, tag, args):
        self.line(f"* QUOTAROOT {args}")
        self.ok(tag)

    def do_MYRIGHTS(self, tag, args):
        self.line(f"* MYRIGHTS {args} lrswipkxtea")
        self.ok(tag)


def split(args):
    """Atoms and quoted strings of a command, up to a parenthesis."""
    out = []
    for quoted, atom in re.findall(r'"((?:[^"\\]|\\.)*)"|([^\s"()]+)', args, re.S):
        out.append(re.sub(r"\\(.)", r"\1", quoted) if quoted or not atom else atom)
    return out


def quote(name):
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


class FakeServer:
    def __init__(self, certs=None, implicit_tls=False, cert="good"):
        self.certs, self.implicit_tls, self.cert = certs, implicit_tls, cert
        self.capabilities = ["IMAP4rev1", "AUTH=PLAIN", "SASL-IR", "ID", "UNSELECT", "UIDPLUS"]
        self.starttls = bool(certs) and not implicit_tls
        self.delimiter = "/"
        self.greeting = "* OK ready"
        self.password, self.token = PASSWORD, "token"
        self.mailboxes = {"INBOX": Mailbox()}
        self.faults = Faults()
        self.handlers = {}
        self.script = None
        self.announce = True
        self.send_uidnext = True
        self.permanent = "\\Answered \\Flagged \\Deleted \\Seen \\Draft \\*"
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.silent = set()
        self.received, self.sent = b"", 0
        self.transcript = []
        self.commands = []
        self.sessions = []
        self.problems = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def inbox(self):
        return self.mailboxes["INBOX"]

    def url(self, scheme=None, path=""):
        scheme = scheme or ("imaps" if self.implicit_tls else "imap")
        return f"{scheme}://me@127.0.0.1:{self.port}/{path}"

    def on(self, verb, handler):
        self.handlers[verb] = handler
        return self

    def find(self, name):
        return next((box for key, box in self.mailboxes.items()
                     if key == name or (name.upper() == "INBOX" and key == "INBOX") or
                     (isinstance(key, bytes) and name.encode("utf-8", "surrogateescape") in key)),
                    None)

    def capability_line(self, session):
        words = list(self.capabilities)
        if self.starttls and not session.tls:
            words += ["STARTTLS"]
        return " ".join(words)

    def accept(self):
        while not self.stopping.is_set():
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            session = Session(self, sock)
            self.sessions.append(session)
            threading.Thread(target=self.serve, args=(session,), daemon=True).start()

    def serve(self, session):
        try:
            session.run()
        except Closed:
            pass
        except Exception as error:  # a bug of the server would otherwise be blamed on the client
            if not self.stopping.is_set():
                self.problems.append(repr(error))
        finally:
            if session not in self.silent:
                session.close()

    def drop_all(self):
        """Every connection is lost."""
        for session in list(self.sessions):
            session.close()
        self.sessions.clear()

    def stop(self):
        self.stopping.set()
        self.listener.close()
        self.drop_all()

    def n_commands(self, verb):
        return sum(v == verb for v, _ in self.commands)

    def wait_command(self, verb, n=1, seconds=20):
        end = time.monotonic() + seconds
        while self.n_commands(verb) < n:
            assert time.monotonic() < end, (verb, self.commands[-20:])
            time.sleep(0.01)
