# SPDX-License-Identifier: MIT
"""A plain IMAP client, written on imaplib and nothing of ours: it says what is true."""
import base64
import calendar
import dataclasses
import hashlib
import imaplib
import re
import time

imaplib._MAXLINE = 1 << 26  # flags of 100,000 messages come on long lines


def encode(name):
    """Modified UTF-7 (RFC 3501 5.1.3)."""
    out, pending = [], ""

    def flush():
        nonlocal pending
        if pending:
            b64 = base64.b64encode(pending.encode("utf-16-be")).decode().rstrip("=")
            out.append("&" + b64.replace("/", ",") + "-")
            pending = ""

    for char in name:
        if 0x20 <= ord(char) <= 0x7e:
            flush()
            out.append("&-" if char == "&" else char)
        else:
            pending += char
    flush()
    return "".join(out)


def decode(name):
    def one(match):
        if not match.group(1):
            return "&"
        b64 = match.group(1).replace(",", "/")
        return base64.b64decode(b64 + "=" * (-len(b64) % 4)).decode("utf-16-be")
    return re.sub("&([^-]*)-", one, name)


def quote(name):
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclasses.dataclass
class Message:
    uid: int
    size: int
    date: int
    flags: frozenset
    sha256: str = ""
    recent: bool = False


class Client:
    def __init__(self, host, port, user, password):
        self.imap = imaplib.IMAP4(host, port, timeout=60)
        self.ok(self.imap.login(user, password))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.imap.logout()
        except (imaplib.IMAP4.error, OSError):
            pass

    @staticmethod
    def ok(answer):
        assert answer[0] == "OK", answer
        return answer[1]

    def run(self, *command):
        """An untagged-answer-free command such as CREATE."""
        return self.ok(self.imap._simple_command(*command))

    def create(self, *path):
        self.run("CREATE", quote(encode("/".join(path))))

    def delete(self, *path):
        self.run("DELETE", quote(encode("/".join(path))))

    def folders(self):
        """Decoded names, separated by '/', of what can be selected."""
        names = []
        for line in self.ok(self.imap.list('""', '"*"')):
            literal = isinstance(line, tuple)
            head = line[0] if literal else line
            if head is None:
                continue
            match = re.match(rb'\(([^)]*)\) (?:"(?:[^"\\]|\\.)*"|NIL) (.*)$', head, re.S)
            name = line[1] if literal else match.group(2)
            if not literal and name.startswith(b'"'):
                name = re.sub(rb"\\(.)", rb"\1", name[1:-1])
            if b"\\noselect" not in match.group(1).lower():
                names.append(decode(name.decode()))
        return names

    def examine(self, name="INBOX"):
        self.ok(self.imap.select(quote(encode(name)), readonly=True))
        return self

    def select(self, name="INBOX"):
        self.ok(self.imap.select(quote(encode(name))))
        return self

    def response(self, code):
        return int(self.imap.response(code)[1][0])

    def uidvalidity(self, name="INBOX"):
        self.examine(name)
        return self.response("UIDVALIDITY")

    def status(self, name, items="(MESSAGES RECENT UNSEEN UIDNEXT UIDVALIDITY)"):
        data = self.ok(self.imap.status(quote(encode(name)), items))[0]
        inner = re.search(rb"\(([^()]*)\)\s*$", data).group(1).split()
        return {inner[i].decode(): int(inner[i + 1]) for i in range(0, len(inner), 2)}

    def messages(self, name="INBOX", bodies=True, uids="1:*"):
        """{uid: Message} as the server has them; the mailbox is examined, nothing is marked."""
        self.examine(name)
        out = {}
        items = "(UID FLAGS INTERNALDATE RFC822.SIZE" + (" BODY.PEEK[])" if bodies else ")")
        for part in self.ok(self.imap.uid("FETCH", uids, items)):
            if part is None:
                continue
            head = part[0] if isinstance(part, tuple) else part
            if not isinstance(part, tuple) and b"UID" not in head:
                continue
            uid = int(re.search(rb"\bUID (\d+)", head).group(1))
            flags = re.search(rb"FLAGS \(([^)]*)\)", head).group(1).decode().split()
            out[uid] = Message(
                uid=uid, size=int(re.search(rb"RFC822.SIZE (\d+)", head).group(1)),
                date=internaldate(head), recent="\\Recent" in flags,
                flags=frozenset(f for f in flags if f != "\\Recent"),
                sha256=hashlib.sha256(part[1]).hexdigest() if bodies else "")
        return out

    def body(self, uid, name="INBOX"):
        self.examine(name)
        for part in self.ok(self.imap.uid("FETCH", str(uid), "(BODY.PEEK[])")):
            if isinstance(part, tuple):
                return part[1]
        return None

    def append(self, body, name="INBOX", flags=None, when=None):
        stamp = imaplib.Time2Internaldate(when if when is not None else time.time())
        data = self.ok(self.imap.append(quote(encode(name)), flags, stamp, body))
        return int(re.search(rb"APPENDUID \d+ (\d+)", data[0]).group(1))

    def store(self, uid, change, flags, name="INBOX"):
        self.select(name)
        self.ok(self.imap.uid("STORE", str(uid), change, flags))

    def expunge(self, uids, name="INBOX"):
        self.select(name)
        self.ok(self.imap.uid("STORE", uids, "+FLAGS", "(\\Deleted)"))
        self.ok(self.imap.uid("EXPUNGE", uids))


def internaldate(head):
    text = re.search(rb'INTERNALDATE "([^"]*)"', head).group(1).decode().strip()
    day, month, year, hour, minute, second, sign, zh, zm = re.match(
        r"(\d+)-(\w+)-(\d+) (\d+):(\d+):(\d+) ([+-])(\d\d)(\d\d)", text).groups()
    months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
    seconds = calendar.timegm((int(year), months.index(month) + 1, int(day), int(hour), int(minute),
                               int(second)))
    offset = (int(zh) * 60 + int(zm)) * 60
    return seconds - offset if sign == "+" else seconds + offset
