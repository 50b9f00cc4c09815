# SPDX-License-Identifier: MIT
"""Mail to test with: the same seed gives the same bytes. Messages as files of a Maildir, because
that is the fastest way into Dovecot; there INTERNALDATE is the file's mtime."""
import base64
import os
import pathlib
import random

CHARSETS = {
    "us-ascii": "The quick brown fox jumps over the lazy dog",
    "utf-8": "Grüße aus Köln, 日本語, Ελληνικά, \U0001f40c",
    "iso-8859-1": "Déjà vu à Zürich, señor",
    "iso-8859-2": "Příliš žluťoučký kůň",
    "iso-8859-15": "Preis: 5 € für Käse",
    "windows-1251": "Съешь же ещё этих мягких булок",
    "koi8-r": "Съешь же ещё этих мягких булок",
    "windows-1252": "“Quotes” – and dashes…",
    "iso-2022-jp": "日本語のメール",
    "euc-jp": "日本語のメール",
    "shift_jis": "日本語のメール",
    "gb18030": "我们的邮件",
    "big5": "我們的郵件",
    "euc-kr": "한국어 메일",
    "iso-8859-8": "שלום עולם",
    "iso-8859-6": "مرحبا بالعالم",
}
WORDS = ("meeting report invoice lunch train weather kernel mailbox budget draft holiday review "
         "server garden music ticket contract bicycle concert recipe").split()
EPOCH = 946684800  # 2000-01-01
SPAN = 24 * 365 * 86400


def text(rng, n_lines):
    return "\n".join(" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) for _ in range(n_lines))


def header(rng, number, subject, extra=""):
    return (f"Return-Path: <sender{number % 97}@example.org>\n"
            f"Received: from mx.example.org by mail.example.com; Mon, 1 Jan 2001 00:00:00 +0000\n"
            f"From: Sender {number % 97} <sender{number % 97}@example.org>\n"
            f"To: me@example.com\nSubject: {subject}\n"
            f"Date: Mon, 1 Jan 2001 00:00:00 +0000\n"
            f"Message-ID: <{number}.{rng.getrandbits(64):x}@example.org>\nMIME-Version: 1.0\n"
            f"{extra}").encode()


def plain(rng, number):
    return header(rng, number, text(rng, 1), "Content-Type: text/plain\n") + b"\n" + \
        text(rng, rng.randint(1, 80)).encode() + b"\n"


def charset(rng, number):
    name = rng.choice(list(CHARSETS))
    body = (CHARSETS[name] + "\n") * rng.randint(1, 40)
    head = header(rng, number, f"=?{name}?B?"
                  f"{base64.b64encode(CHARSETS[name].encode(name)).decode()}?=",
                  f"Content-Type: text/plain; charset={name}\nContent-Transfer-Encoding: 8bit\n")
    return head + b"\n" + body.encode(name)


def raw_eight_bit(rng, number):
    """Bytes that are no charset at all, in the header too; no NUL, CR or LF."""
    junk = bytes(rng.choice(range(128, 256)) for _ in range(200))
    return header(rng, number, "raw") + b"X-Junk: " + junk + b"\n\n" + junk + b"\n"


def long_lines(rng, number):
    return header(rng, number, "long line") + b"\n" + (b"x" * rng.randint(2000, 120000)) + b"\nend\n"


def attachment(rng, number, size):
    boundary = f"=-{number}-boundary"
    data = rng.randbytes(size)
    return header(rng, number, "attachment",
                  f'Content-Type: multipart/mixed; boundary="{boundary}"\n') + (
        f"\n--{boundary}\nContent-Type: text/plain\n\n{text(rng, 5)}\n--{boundary}\n"
        f"Content-Type: application/octet-stream; name=data.bin\n"
        f"Content-Transfer-Encoding: base64\n\n").encode() + \
        base64.encodebytes(data) + f"\n--{boundary}--\n".encode()


def alternative(rng, number):
    boundary = f"=-{number}-alt"
    body = text(rng, rng.randint(2, 60))
    return header(rng, number, "alternative",
                  f'Content-Type: multipart/alternative; boundary="{boundary}"\n') + (
        f"\n--{boundary}\nContent-Type: text/plain\n\n{body}\n--{boundary}\n"
        f"Content-Type: text/html\n\n<p>{body}</p>\n--{boundary}--\n").encode()


def forwarded(rng, number):
    return header(rng, number, "Fwd", "Content-Type: message/rfc822\n") + b"\n" + \
        plain(rng, number + 1)


def header_only(rng, number):
    return header(rng, number, "nothing inside") + b"\n"


def no_final_newline(rng, number):
    return plain(rng, number).rstrip(b"\n")


def crlf(rng, number):
    return plain(rng, number).replace(b"\n", b"\r\n")


KINDS = [(plain, 44), (charset, 16), (alternative, 14), (crlf, 6), (raw_eight_bit, 3),
         (long_lines, 2), (forwarded, 3), (header_only, 2), (no_final_newline, 2)]


def message(number, seed=0):
    """Message `number` of a corpus: bytes as they lie in a Maildir."""
    rng = random.Random(seed * 1000003 + number)
    if number % 2500 == 1249:
        return attachment(rng, number, rng.randint(2 << 20, 6 << 20))
    if number % 12 == 5:
        return attachment(rng, number, int(2 ** rng.uniform(9, 17)))
    kind = rng.choices([k for k, _ in KINDS], [w for _, w in KINDS])[0]
    return kind(rng, number)


def date(number, seed=0):
    """Dates over 24 years, not in the order of arrival."""
    return EPOCH + random.Random(seed * 7919 + number).randrange(SPAN)


FLAGS = ["", "S", "RS", "FS", "S", "S", "F", "T", "DS", ""]


def fill(maildir, numbers, seed=0, make=message, owner=None, new_every=7):
    """Writes messages into a Maildir folder; every new_every-th (0: none) stands in new, unseen."""
    maildir = pathlib.Path(maildir)
    for sub in ("cur", "new", "tmp"):
        (maildir / sub).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        base = f"{EPOCH + number}.M{number:07d}P1.test"
        is_new = new_every and number % new_every == new_every - 1
        path = maildir / ("new" if is_new else "cur") / (
            base if is_new else f"{base}:2,{FLAGS[number % len(FLAGS)]}")
        path.write_bytes(make(number, seed))
        when = date(number, seed)
        os.utime(path, (when, when))
    if owner:
        chown_tree(maildir, *owner)


def chown_tree(top, uid, gid):
    for path, dirs, files in os.walk(top):
        os.chown(path, uid, gid)
        for name in files:
            os.chown(os.path.join(path, name), uid, gid, follow_symlinks=False)


# --- folders ---------------------------------------------------------------------------------------

LEAVES = ["Archive", "Old Job", "R&D", "Grüße", "日本語", "100%", "a%2Fb", "Ünïcödé & more",
          "0000000042.1700000000.eml", "pop-0123456789abcdef.eml", "ends with dot.", " leading space",
          "quote\"s", "back\\slash", "star*", "brace{3}", "(paren)", "tilde~", ".hidden", "..dots", "comma,semi;",
          "ligature ﬁ", "emoji \U0001f40c", "Ελληνικά", "русский", "עברית", "x" * 120, "-dash",
          "#hash", "$dollar", "new mail", "CUR", "NIL", "\\Seen", "&amp;", "a&b&c", "&-", "2024",
          "..."]


def folder_tree(n=200, depth=5, leaves=None):
    """n folder paths (tuples of names), nested `depth` deep, parents before children."""
    leaves = leaves or LEAVES
    paths = [(leaf,) for leaf in leaves]
    chain = ("Deep",)
    paths.append(chain)
    for level in range(2, depth + 1):
        chain = chain + (leaves[level * 5 % len(leaves)],)
        paths.append(chain)
    number, parents = 0, [p for p in paths if len(p) < depth]
    while len(paths) < n:
        parent = parents[number * 13 % len(parents)]
        path = parent + (f"{leaves[number * 7 % len(leaves)][:40]} {number}",)
        number += 1
        paths.append(path)
        if len(path) < depth:
            parents.append(path)
    return paths[:n]
