#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How fast: mailfs on a private Dovecot, beside mbsync and mpop, and beside three floors.

RAW    one connection that streams the same data to nowhere
LOCAL  the same tool on a plain directory with the same files
FUSE   the same tool on a FUSE daemon that has the files in memory

Prints a table of medians and goals, writes every sample to bench.csv and a picture to bench.svg.
Everything else is made below one directory in /dev/shm; see scripts/bench.
"""

import argparse
import contextlib
import csv
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import corpus  # noqa: E402
import peers  # noqa: E402
import picture  # noqa: E402
from support.dovecot import Dovecot  # noqa: E402
from support.mount import Mailfs  # noqa: E402

TOOL_LIMIT = 600  # seconds; far beyond what anything here may take
BLOCK = 65536

HEADERS = """
import os, sys
directory, size = sys.argv[1], int(sys.argv[2])
for name in sorted(os.listdir(directory)):
    fd = os.open(os.path.join(directory, name), os.O_RDONLY)
    os.read(fd, size)
    os.close(fd)
"""

TOOLS = {
    "rsync -a": ["rsync", "-a", "{dir}/", "{copy}/"],
    "grep -r": ["sh", "-c", "! grep -r nowhere-to-be-found '{dir}'"],
    "tar c": ["sh", "-c", "tar -C '{dir}' -c . | cat > /dev/null"],
    "cat *": ["sh", "-c", "cd '{dir}' && cat * > /dev/null"],
    "ls -l": ["sh", "-c", "ls -l '{dir}' > /dev/null"],
    "header scan": [sys.executable, "-c", HEADERS, "{dir}", "2048"],
}


def run_tool(name, directory, copy=""):
    """Seconds."""
    command = [part.replace("{dir}", str(directory)).replace("{copy}", str(copy))
               for part in TOOLS[name]]
    start = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=TOOL_LIMIT, env={**os.environ, "LC_ALL": "C"})
    seconds = time.perf_counter() - start
    if done.returncode:
        raise AssertionError(f"{name} of {directory}: status {done.returncode} {done.stderr[:500]}")
    return seconds


class Mount:
    """A mounted account and what its daemon counted since it was made or last asked."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.inbox = daemon.mnt / "INBOX"
        self.seconds = 0.0
        self.before = {}

    def counted(self):
        now = {k: v for k, v in self.daemon.status().items() if isinstance(v, int)}
        difference = {k: v - self.before.get(k, 0) for k, v in now.items()}
        self.before = now
        return difference


class Bench:
    def __init__(self, args, directory):
        self.args = args
        self.dir = pathlib.Path(directory)
        self.samples = []  # dicts, as they go into the CSV
        self.table = []    # (work, rtt, measured, bound, unit, remark)
        self.peak_kib = 0
        self.trouble = []
        self.wires = {}
        self.numbers = iter(range(1 << 30))
        self.local = {}
        self.server = Dovecot(self.dir / "d").start()

    def close(self):
        for wire in self.wires.values():
            wire.stop()
        self.server.stop()

    # --- the stage ------------------------------------------------------------------------------

    def path(self, name):
        return self.dir / f"{name}{next(self.numbers)}"

    def binary(self, name):
        return str(pathlib.Path(self.args.build) / name)

    def port(self, rtt, scheme="imap"):
        port = {"imap": self.server.imap, "pop": self.server.pop3}[scheme]
        if rtt == 0:
            return port
        if (scheme, rtt) not in self.wires:
            self.wires[scheme, rtt] = peers.Wire(self.binary("tests/bench/delay"), self.dir, port,
                                                 rtt)
        return self.wires[scheme, rtt].port

    def account(self, user, sizes, **mailboxes):
        """INBOX of these sizes, and other mailboxes; numbered by the server, with a LOCAL copy."""
        for name, some in {"INBOX": sizes, **mailboxes}.items():
            maildir = self.server.folder(user, *([] if name == "INBOX" else [name]))
            corpus.fill(maildir, some, self.server.owner)
            peers.raw(self.server.imap, user, name, "NOOP")
            corpus.plain_copy(maildir, self.dir / "local" / user / name)
        self.local[user] = self.dir / "local" / user / "INBOX"

    @contextlib.contextmanager
    def mount(self, user, rtt, cache=None, scheme="imap", port=None, **options):
        """A daemon of its own, with an empty cache unless one is given; port: of another server."""
        at = self.path("m")
        options = {"tls": "off", "refresh": 30, "timeout": 60,
                   "cache_dir": cache or at / "cache", **options}
        daemon = Mailfs(at, f"{scheme}://{user}@127.0.0.1:{port or self.port(rtt, scheme)}/", options,
                        binary=self.binary("src/mailfs"))
        mounted = Mount(daemon)
        start = time.perf_counter()
        daemon.start()
        mounted.seconds = time.perf_counter() - start
        try:
            yield mounted
        finally:
            with contextlib.suppress(OSError):
                peak = re.search(r"VmHWM:\s+(\d+)",
                                 pathlib.Path(f"/proc/{daemon.pid}/status").read_text())
                self.peak_kib = max(self.peak_kib, int(peak[1]))
            try:
                daemon.stop()
            except AssertionError as error:
                self.trouble.append(f"{user}, RTT {rtt}: {error}")
                self.say(self.trouble[-1])
                os.makedirs(self.args.output, exist_ok=True)
                shutil.copy(daemon.log_path, os.path.join(self.args.output, f"{at.name}.log"))
            shutil.rmtree(at, ignore_errors=True)

    # --- samples --------------------------------------------------------------------------------

    def add(self, work, rtt, who, seconds, **counted):
        keep = {k: counted[k] for k in ("bytes_in", "round_trips", "requests", "commands")
                if k in counted}
        self.samples.append({"work": work, "rtt": rtt, "who": who, "seconds": round(seconds, 6),
                             **keep})
        self.say(f"  {work}, RTT {rtt}, {who}: {seconds:.3f} s {keep or ''}")

    def median(self, work, rtt, who, field="seconds"):
        values = [s[field] for s in self.samples
                  if (s["work"], s["rtt"], s["who"]) == (work, rtt, who) and field in s]
        return statistics.median(values) if values else None

    def goal(self, work, rtt, measured, bound, unit="s", remark=""):
        self.table.append((work, rtt, measured, bound, unit, remark))

    def say(self, text):
        if self.args.verbose:
            print(text, file=sys.stderr, flush=True)

    # --- floors ---------------------------------------------------------------------------------

    def measure_local(self, user, tools):
        for _ in range(self.args.runs):
            for tool in tools:
                copy = self.path("copy")
                self.add(tool, 0, f"LOCAL {user}", run_tool(tool, self.local[user], copy))
                if tool == "rsync -a":
                    self.add("second rsync -a", 0, f"LOCAL {user}",
                             run_tool(tool, self.local[user], copy))
                shutil.rmtree(copy, ignore_errors=True)

    def measure_fuse(self, user, tools):
        for _ in range(self.args.runs):
            for tool in tools:
                floor = peers.Floor(self.binary("tests/bench/floor"), str(self.local[user]),
                                    str(self.path("floor")))
                copy = self.path("copy")
                try:
                    seconds = run_tool(tool, floor.mnt, copy)
                finally:
                    requests = floor.stop()
                self.add(tool, 0, f"FUSE {user}", seconds, requests=requests)
                shutil.rmtree(copy, ignore_errors=True)

    def measure_raw(self, user, rtt, what, command, runs=None):
        for _ in range(runs or self.args.runs):
            seconds, n = peers.raw(self.port(rtt), user, "INBOX", command)
            self.add(what, rtt, f"RAW {user}", seconds, bytes_in=n)

    def measure_mbsync(self, user, rtt, runs=None):
        for _ in range(runs or self.args.runs):
            directory = self.path("mbsync")
            mbsync = peers.Mbsync(str(directory), self.port(rtt), user)
            self.add("pull", rtt, f"mbsync {user}", mbsync.run())
            if mbsync.n_messages() != len(os.listdir(self.local[user])):
                raise AssertionError(f"mbsync pulled {mbsync.n_messages()} messages")
            self.add("second pull", rtt, f"mbsync {user}", mbsync.run())
            shutil.rmtree(directory)

    # --- works ----------------------------------------------------------------------------------

    def one_tool(self, user, rtt, tool, scheme="imap"):
        """A tool on a cold mount."""
        who = f"mailfs {user}" if scheme == "imap" else f"mailfs {scheme} {user}"
        with self.mount(user, rtt, scheme=scheme) as mounted:
            copy = self.path("copy")
            mounted.counted()
            seconds = run_tool(tool, mounted.inbox, copy)
            self.add(tool, rtt, who, seconds, **mounted.counted())
            self.add(f"mount, {tool}", rtt, who, mounted.seconds + seconds)
            shutil.rmtree(copy, ignore_errors=True)

    def rsync_and_after(self, user, rtt):
        """Cold rsync, again with nothing changed, warm greps, and grep after a remount."""
        cache, copy, who = self.path("cache"), self.path("copy"), f"mailfs {user}"
        with self.mount(user, rtt, cache) as mounted:
            mounted.counted()
            seconds = run_tool("rsync -a", mounted.inbox, copy)
            self.add("rsync -a", rtt, who, seconds, **mounted.counted())
            self.add("mount, rsync -a", rtt, who, mounted.seconds + seconds)
            done = subprocess.run(["diff", "-rq", copy, self.local[user]], capture_output=True,
                                  text=True)
            if done.returncode:
                raise AssertionError(f"the copy differs: {done.stdout[:500]}")
            mounted.counted()
            seconds = run_tool("rsync -a", mounted.inbox, copy)
            self.add("second rsync -a", rtt, who, seconds, **mounted.counted())
            run_tool("grep -r", mounted.inbox)
            mounted.counted()
            seconds = run_tool("grep -r", mounted.inbox)
            self.add("warm grep -r, rw", rtt, who, seconds, **mounted.counted())
        shutil.rmtree(copy)
        with self.mount(user, rtt, cache, ro=True) as mounted:
            mounted.counted()
            seconds = run_tool("grep -r", mounted.inbox)
            self.add("grep -r after a remount", rtt, who, seconds, **mounted.counted())
            seconds = run_tool("grep -r", mounted.inbox)
            self.add("warm grep -r, ro", rtt, who, seconds, **mounted.counted())
        shutil.rmtree(cache)

    def scans(self):
        """The 10,000-message mailbox: cold, again, warm, from the disk cache."""
        user, tools = "big", ["rsync -a", "grep -r", "tar c", "cat *"]
        self.measure_local(user, tools)
        self.measure_fuse(user, ["grep -r", "rsync -a"])
        for rtt in self.args.rtt:
            self.measure_raw(user, rtt, "whole", "UID FETCH 1:* BODY.PEEK[]")
            self.measure_mbsync(user, rtt)
            for _ in range(self.args.runs):
                self.rsync_and_after(user, rtt)
                for tool in tools[1:]:
                    self.one_tool(user, rtt, tool)
            self.scan_goals(user, rtt, tools)

    def scan_goals(self, user, rtt, tools):
        whole = self.median("whole", rtt, f"RAW {user}")

        def local(tool):
            return self.median(tool, 0, f"LOCAL {user}")

        def ours(work, field="seconds"):
            return self.median(work, rtt, f"mailfs {user}", field)

        for tool in tools:
            self.goal(f"cold {tool}", rtt, ours(tool), 1.5 * (whole + local(tool)),
                      remark=f"RAW {whole:.2f} LOCAL {local(tool):.2f}; {ours(tool, 'round_trips')} "
                             f"round trips, {ours(tool, 'requests')} requests")
        pull = self.median("pull", rtt, f"mbsync {user}")
        self.goal("mount, cold rsync -a / mbsync", rtt, ours("mount, rsync -a"), pull / 3,
                  remark=f"mbsync {pull:.2f}")
        self.goal("second rsync -a", rtt, ours("second rsync -a"),
                  2 * local("second rsync -a") + 3 * rtt / 1000,
                  remark=f"{ours('second rsync -a', 'round_trips')} round trips; mbsync "
                         f"{self.median('second pull', rtt, f'mbsync {user}'):.2f}")
        self.goal("warm grep -r, ro", rtt, ours("warm grep -r, ro"), 1.2 * local("grep -r"),
                  remark=f"{ours('warm grep -r, ro', 'requests')} requests")
        self.goal("warm grep -r, rw", rtt, ours("warm grep -r, rw"), 2 * local("grep -r"),
                  remark=f"{ours('warm grep -r, rw', 'requests')} requests")
        fuse = self.median("grep -r", 0, f"FUSE {user}")
        self.goal("grep -r after a remount", rtt, ours("grep -r after a remount"), 1.3 * fuse,
                  remark=f"FUSE {fuse:.2f}; {ours('grep -r after a remount', 'requests')} requests, "
                         f"{ours('grep -r after a remount', 'round_trips')} round trips")

    def tree(self):
        """grep -r through many small mailboxes, beside mbsync pulling them."""
        user, n_boxes = "many", 40 // (4 if self.args.quick else 1)
        sizes = corpus.realistic_sizes(50)
        self.account(user, sizes, **{f"box{i}": sizes for i in range(n_boxes)})
        for rtt in self.args.rtt:
            for _ in range(self.args.runs):
                directory = self.path("mbsync")
                mbsync = peers.Mbsync(str(directory), self.port(rtt), user, patterns="*")
                self.add("pull of many", rtt, "mbsync", mbsync.run())
                if mbsync.n_messages() != 50 * (n_boxes + 1):
                    raise AssertionError(f"mbsync pulled {mbsync.n_messages()} messages")
                shutil.rmtree(directory)
                with self.mount(user, rtt) as mounted:
                    mounted.counted()
                    self.add("grep -r of many", rtt, "mailfs",
                             run_tool("grep -r", mounted.daemon.mnt), **mounted.counted())
            self.goal(f"cold grep -r of {n_boxes + 1} mailboxes", rtt,
                      self.median("grep -r of many", rtt, "mailfs"),
                      self.median("pull of many", rtt, "mbsync"),
                      remark="bound: mbsync pulling them; "
                      f"{self.median('grep -r of many', rtt, 'mailfs', 'round_trips')} round trips")

    def header_scan(self):
        """The first 2 KB of each message: of usual ones, and where bodies are big."""
        for rtt in self.args.rtt:
            for user in ("big", "fat"):
                self.measure_raw(user, rtt, "heads", "UID FETCH 1:* BODY.PEEK[]<0.2048>")
                for _ in range(self.args.runs):
                    self.one_tool(user, rtt, "header scan")
                heads = self.median("heads", rtt, f"RAW {user}")
                ours = self.median("header scan", rtt, f"mailfs {user}")
                moved = self.median("header scan", rtt, f"mailfs {user}", "bytes_in")
                self.goal(f"cold header scan, {user}", rtt, ours, 2 * heads, remark=f"RAW {heads:.2f}")
                if user == "fat":
                    total = sum(f.stat().st_size for f in os.scandir(self.local[user]))
                    self.goal("bytes of it", rtt, moved / 1e6, total / 4e6, "MB",
                              f"of {total / 1e6:.0f}")

    def listing(self):
        """ls -l of a huge mailbox, first and after a remount."""
        user, who = "huge", "mailfs huge"
        self.measure_local(user, ["ls -l"])
        self.measure_fuse(user, ["ls -l"])
        fuse = self.median("ls -l", 0, f"FUSE {user}")
        local = self.median("ls -l", 0, f"LOCAL {user}")
        for rtt in self.args.rtt:
            self.measure_raw(user, rtt, "list",
                             "UID FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE)")
            for _ in range(self.args.runs):
                cache = self.path("cache")
                for work in ("ls -l", "ls -l after a remount"):
                    with self.mount(user, rtt, cache) as mounted:
                        mounted.counted()
                        seconds = run_tool("ls -l", mounted.inbox)
                        self.add(work, rtt, who, seconds, **mounted.counted())
                shutil.rmtree(cache)
            raw = self.median("list", rtt, f"RAW {user}")
            again = "ls -l after a remount"
            self.goal("ls -l of the huge one", rtt, self.median("ls -l", rtt, who),
                      1.3 * raw + local, remark=f"RAW {raw:.2f} LOCAL {local:.2f} "
                      f"FUSE {fuse:.2f}; {self.median('ls -l', rtt, who, 'requests')} requests")
            self.goal(again, rtt, self.median(again, rtt, who), 2 * local + 4 * rtt / 1000,
                      remark=f"{self.median(again, rtt, who, 'bytes_in')} bytes, "
                      f"{self.median(again, rtt, who, 'round_trips')} round trips")

    def single(self):
        """One small message: from cold start to first byte, then another on the warm connection."""
        names = sorted(os.listdir(self.local["big"]))
        for rtt in self.args.rtt:
            for run in range(self.args.runs):
                with self.mount("big", rtt) as mounted:
                    start = time.perf_counter()
                    with open(mounted.inbox / names[-1 - run], "rb") as file:
                        file.read(1)
                    seconds = time.perf_counter() - start
                    self.add("cold start to first byte", rtt, "mailfs big",
                             mounted.seconds + seconds, **mounted.counted())
                    start = time.perf_counter()
                    (mounted.inbox / names[100 + run]).read_bytes()
                    seconds = time.perf_counter() - start
                    self.add("one uncached message", rtt, "mailfs big", seconds, **mounted.counted())
            for work, bound in (("cold start to first byte", 5), ("one uncached message", 1)):
                self.goal(work, rtt, self.median(work, rtt, "mailfs big", "round_trips"), bound,
                          "round trips", f"{self.median(work, rtt, 'mailfs big') * 1000:.0f} ms")

    def large(self):
        """One message of 200 MB: cat, head, and a seek into the middle."""
        user, who = "one", "mailfs one"
        name = os.listdir(self.local[user])[0]
        size = (self.local[user] / name).stat().st_size
        for rtt in self.args.rtt:
            self.measure_raw(user, rtt, "whole", "UID FETCH 1:* BODY.PEEK[]")
            for _ in range(self.args.runs):
                self.one_tool(user, rtt, "cat *")
                with self.mount(user, rtt) as mounted:
                    os.stat(mounted.inbox / name)
                    mounted.counted()
                    subprocess.run(["head", "-c", "1000", mounted.inbox / name], check=True,
                                   stdout=subprocess.DEVNULL, timeout=TOOL_LIMIT)
                    self.add("head -c 1000", rtt, who, 0, **mounted.counted())
                    with open(mounted.inbox / name, "rb") as file:
                        file.seek(size // 2)
                        file.read(1000)
                    self.add("seek", rtt, who, 0, **mounted.counted())
            raw, ours = (self.median(w, rtt, u) for w, u in (("whole", f"RAW {user}"), ("cat *", who)))
            self.goal("cat of 200 MB", rtt, ours, raw / 0.8,
                      remark=f"{size / ours / 1e6:.0f} MB/s, RAW {size / raw / 1e6:.0f}")
            self.goal("head -c 1000 of it", rtt,
                      self.median("head -c 1000", rtt, who, "bytes_in") / BLOCK, 2.1, "blocks")
            self.goal("seek into its middle", rtt, self.median("seek", rtt, who, "round_trips"), 2,
                      "round trips")

    def beside_bulk(self):
        """Single reads in another mailbox while a bulk scan runs: the 99th percentile."""
        for rtt in self.args.rtt:
            latencies = []
            for _ in range(self.args.runs):
                with self.mount("big", rtt) as mounted:
                    other = mounted.daemon.mnt / "Other"
                    names = sorted(os.listdir(other))
                    bulk = threading.Thread(target=run_tool, args=("grep -r", mounted.inbox))
                    bulk.start()
                    for name in names:
                        if not bulk.is_alive():
                            break
                        start = time.perf_counter()
                        (other / name).read_bytes()
                        latencies.append(time.perf_counter() - start)
                        time.sleep(0.005)  # one reader at leisure, no second bulk
                    bulk.join()
            latencies.sort()
            p99 = latencies[int(len(latencies) * 0.99)]
            self.add("single read beside a scan, p99", rtt, "mailfs big", p99)
            raw = self.median("whole", rtt, "RAW big") or 1
            total = sum(f.stat().st_size for f in os.scandir(self.local["big"]))
            chunk = raw * (1 << 20) / total
            self.goal("single read beside a scan, p99", rtt, p99 * 1000, 3 * rtt + chunk * 1000, "ms",
                      f"median {statistics.median(latencies) * 1000:.0f}, {len(latencies)} reads; "
                      "bound: 3 RTT and 1 MiB at RAW's speed")

    def slow_line(self):
        """A line of 4 Mbit/s and 50 ms that is the bottleneck: a server that offers COMPRESS, beside one that
        does not."""
        rate, rtt, n = 500_000, 50, 1000 // (10 if self.args.quick else 1)
        sizes = corpus.realistic_sizes(n)
        for who in ("plain", "compress"):
            server = Dovecot(self.dir / who, compress=who == "compress").start()
            wire = None
            try:
                total = corpus.fill(server.folder("slow"), sizes, server.owner)
                wire = peers.Wire(self.binary("tests/bench/delay"), self.dir, server.imap, rtt, rate)
                for _ in range(self.args.runs):
                    directory = self.path("mbsync")
                    mbsync = peers.Mbsync(str(directory), wire.port, "slow")
                    self.add("slow line", rtt, f"mbsync {who}", mbsync.run())
                    shutil.rmtree(directory)
                    with self.mount("slow", rtt, port=wire.port) as mounted:
                        copy = self.path("copy")
                        before = wire.counters()[1]
                        seconds = run_tool("rsync -a", mounted.inbox, copy)
                        self.add("slow line", rtt, f"mailfs {who}", mounted.seconds + seconds,
                                 bytes_in=wire.counters()[1] - before)
                        if sum(f.stat().st_size for f in os.scandir(copy)) != total:
                            raise AssertionError("the copy is not whole")
                        shutil.rmtree(copy)
            finally:
                if wire is not None:
                    wire.stop()
                server.stop()
        plain, ours = (self.median("slow line", rtt, f"mailfs {who}") for who in ("plain", "compress"))
        self.goal(f"mount, rsync -a of {total / 1e6:.0f} MB over 4 Mbit/s", rtt, plain, 1.1 * total / rate,
                  remark="bound: the line's time and a tenth; mbsync "
                         f"{self.median('slow line', rtt, 'mbsync plain'):.2f}")
        self.goal("with COMPRESS", rtt, ours, plain,
                  remark=f"{self.median('slow line', rtt, 'mailfs compress', 'bytes_in') / 1e6:.1f} MB; "
                         f"bound: without; mbsync {self.median('slow line', rtt, 'mbsync compress'):.2f}")

    def pop3(self):
        """The maildrop beside mpop."""
        who, n = "mailfs pop big", len(os.listdir(self.local["big"]))
        for rtt in self.args.rtt:
            for _ in range(self.args.runs):
                directory = self.path("mpop")
                seconds = peers.mpop(str(directory), self.port(rtt, "pop"), "big")
                self.add("pull", rtt, "mpop big", seconds)
                if len(os.listdir(directory / "mail/new")) != n:
                    raise AssertionError("mpop did not pull everything")
                shutil.rmtree(directory)
                for tool in ("ls -l", "rsync -a", "grep -r"):
                    self.one_tool("big", rtt, tool, "pop")
            pull = self.median("pull", rtt, "mpop big")
            self.goal("POP3: mount, cold rsync -a / mpop", rtt,
                      self.median("mount, rsync -a", rtt, who), pull / 2, remark=f"mpop {pull:.2f}; "
                      f"{self.median('rsync -a', rtt, who, 'round_trips')} round trips")
            self.goal("POP3: ls -l", rtt, self.median("ls -l", rtt, who, "round_trips"), 4,
                      "round trips", f"{self.median('ls -l', rtt, who):.2f} s")

    def n_messages(self, user, mailbox):
        with self.server.client(user) as client:
            return len(client.messages(mailbox, bodies=False))

    def moving(self):
        """mv of a whole mailbox into another, till the server has done it."""
        n = 5000 // (10 if self.args.quick else 1)
        for rtt in self.args.rtt:
            for _ in range(self.args.runs):
                for who in ("RAW", "mailfs"):
                    user = self.path("mv").name
                    self.account(user, [3000] * n, Archive=[])
                    if who == "RAW":
                        self.add("mv", rtt, "RAW", peers.raw_move(self.port(rtt), user, "Archive"))
                    else:
                        with self.mount(user, rtt) as mounted:
                            os.listdir(mounted.inbox)
                            mounted.counted()
                            start = time.perf_counter()
                            subprocess.run(["sh", "-c", "find INBOX -name '*.eml' -print0 | "
                                            "xargs -0 mv -t Archive"], cwd=mounted.daemon.mnt,
                                           check=True, timeout=TOOL_LIMIT)
                            told = time.perf_counter() - start
                            self.drained(mounted.inbox)
                            self.add("mv", rtt, "mailfs", time.perf_counter() - start,
                                     **mounted.counted())
                            self.add("mv, till the prompt", rtt, "mailfs", told)
                    if (self.n_messages(user, "INBOX"), self.n_messages(user, "Archive")) != (0, n):
                        raise AssertionError(f"{who} did not move everything")
            raw = self.median("mv", rtt, "RAW")
            self.goal(f"mv of {n}", rtt, self.median("mv", rtt, "mailfs"), 2 * raw,
                      remark=f"RAW UID MOVE {raw:.2f}; prompt after "
                      f"{self.median('mv, till the prompt', rtt, 'mailfs'):.2f}; "
                      f"{self.median('mv', rtt, 'mailfs', 'commands')} commands")

    def pushing(self):
        """rsync of a directory into a mailbox, till the server has it, beside mbsync."""
        n = 2000 // (10 if self.args.quick else 1)
        user = "push"
        self.account(user, corpus.realistic_sizes(n))
        for rtt in self.args.rtt:
            for _ in range(self.args.runs):
                directory, box = self.path("pushed"), self.path("Box").name
                self.add("push", rtt, "mbsync", peers.mbsync_push(
                    str(directory), self.port(rtt), user, self.local[user], box))
                if self.n_messages(user, box) != n:
                    raise AssertionError("mbsync did not push everything")
                shutil.rmtree(directory)
                with self.mount(user, rtt) as mounted:
                    box = mounted.daemon.mnt / self.path("Box").name
                    os.mkdir(box)
                    mounted.counted()
                    start = time.perf_counter()
                    subprocess.run(["rsync", "-a", "--no-o", "--no-g",
                                    f"{self.local[user]}/", f"{box}/"], check=True,
                                   stdin=subprocess.DEVNULL, timeout=TOOL_LIMIT)
                    told = time.perf_counter() - start
                    self.drained(box)
                    self.add("push", rtt, "mailfs", time.perf_counter() - start,
                             **mounted.counted())
                    self.add("push, till the prompt", rtt, "mailfs", told)
                if self.n_messages(user, box.name) != n:
                    raise AssertionError("mailfs did not push everything")
            mbsync = self.median("push", rtt, "mbsync")
            self.goal(f"rsync of {n} into the mount", rtt, self.median("push", rtt, "mailfs"),
                      2 * mbsync, remark=f"mbsync {mbsync:.2f}; prompt after "
                      f"{self.median('push, till the prompt', rtt, 'mailfs'):.2f}; "
                      f"{self.median('push', rtt, 'mailfs', 'commands')} commands")

    @staticmethod
    def drained(directory):
        """fsync of a directory waits for what is queued in it."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def by_size(self):
        """Cost against size: messages of 2 KB, RTT 0."""
        series = {"mailfs": [], "mbsync": [], "RAW + LOCAL": []}
        for n in self.args.sizes:
            user = f"n{n}"
            self.account(user, [2000] * n)
            runs = max(1, min(self.args.runs, 30000 // n))
            self.measure_raw(user, 0, "whole", "UID FETCH 1:* BODY.PEEK[]", runs)
            self.measure_mbsync(user, 0, runs)
            for _ in range(runs):
                self.one_tool(user, 0, "rsync -a")
                copy = self.path("copy")
                self.add("rsync -a", 0, f"LOCAL {user}",
                         run_tool("rsync -a", self.local[user], copy))
                shutil.rmtree(copy)
            series["mailfs"].append((n, self.median("rsync -a", 0, f"mailfs {user}")))
            series["mbsync"].append((n, self.median("pull", 0, f"mbsync {user}")))
            series["RAW + LOCAL"].append((n, self.median("whole", 0, f"RAW {user}")
                                          + self.median("rsync -a", 0, f"LOCAL {user}")))
        ours = series["mailfs"]
        per_message = [seconds / n * 1e6 for n, seconds in ours]
        self.goal("cost a message, largest mailbox", 0, per_message[-1], 1.3 * per_message[0], "us",
                  ", ".join(f"{n}: {us:.0f}" for (n, _), us in zip(ours, per_message)))
        return picture.chart("Cold rsync -a, RTT 0", "messages of 2 KB", "seconds", series, log=True)

    def by_rtt(self):
        """Cost against round-trip time, the big mailbox."""
        series = {"mailfs": [], "mbsync": [], "RAW + LOCAL": []}
        if self.median("rsync -a", 0, "LOCAL big") is None:
            self.measure_local("big", ["rsync -a"])
        local = self.median("rsync -a", 0, "LOCAL big")
        for rtt in self.args.curve:
            if self.median("rsync -a", rtt, "mailfs big") is None:
                self.measure_raw("big", rtt, "whole", "UID FETCH 1:* BODY.PEEK[]", 1)
                self.measure_mbsync("big", rtt, 1)
                self.one_tool("big", rtt, "rsync -a")
            series["mailfs"].append((rtt, self.median("mount, rsync -a", rtt, "mailfs big")))
            series["mbsync"].append((rtt, self.median("pull", rtt, "mbsync big")))
            series["RAW + LOCAL"].append((rtt, self.median("whole", rtt, "RAW big") + local))
        return picture.chart(f"mount, cold rsync -a of {len(os.listdir(self.local['big']))} messages",
                             "round-trip time, ms", "seconds", series, log=False)

    def system_calls(self):
        """How many the daemon makes in a cold rsync, a message."""
        if not shutil.which("strace"):
            return
        n = len(os.listdir(self.local["big"]))
        with self.mount("big", 0) as mounted:
            summary, copy = self.path("strace"), self.path("copy")
            tracer = subprocess.Popen(["strace", "-f", "-c", "-o", summary, "-p",
                                       str(mounted.daemon.pid)], stderr=subprocess.PIPE, text=True)
            tracer.stderr.readline()  # attached
            run_tool("rsync -a", mounted.inbox, copy)
            tracer.send_signal(signal.SIGINT)
            tracer.communicate()
            shutil.rmtree(copy)
        calls = {line.split()[-1]: int(line.split()[3])
                 for line in summary.read_text().splitlines() if re.match(r"\s*\d+\.\d+\s", line)}
        total = calls.pop("total")
        most = sorted(calls.items(), key=lambda c: -c[1])[:6]
        self.goal("system calls a message, cold rsync", 0, total / n, None, "",
                  ", ".join(f"{name} {count / n:.1f}" for name, count in most))

    # --- the whole ------------------------------------------------------------------------------

    def run(self):
        scale = 10 if self.args.quick else 1
        self.say("making mail")
        self.account("big", corpus.realistic_sizes(10000 // scale), Other=[3000] * 400)
        self.account("huge", [2000] * (100000 // scale))
        self.account("fat", [400000] * (300 // scale))
        self.account("one", [(200 << 20) // scale])
        charts = []
        for section in (self.scans, self.tree, self.header_scan, self.listing, self.single, self.large,
                        self.slow_line, self.beside_bulk, self.moving, self.pushing, self.pop3, self.by_size,
                        self.by_rtt, self.system_calls):
            if self.args.only and section.__name__ not in self.args.only:
                continue
            self.say(section.__name__)
            try:
                chart = section()
            except Exception as error:  # the others are still worth measuring
                self.trouble.append(f"{section.__name__}: {type(error).__name__}: {error}")
                self.say(self.trouble[-1])
                continue
            if chart:
                charts.append(chart)
        self.goal("daemon memory, peak", "", self.peak_kib / 1024, 64, "MiB")
        self.report(charts)

    def report(self, charts):
        out = pathlib.Path(self.args.output)
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "bench.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["work", "rtt", "who", "seconds", "bytes_in", "round_trips",
                                           "requests", "commands"])
            writer.writeheader()
            writer.writerows(self.samples)
        if charts:
            picture.write(out / "bench.svg", charts)
        lines = [f"{'work':<36} {'RTT':>4} {'mailfs':>10} {'goal':>10} {'':<12} {'ratio':>5}"]
        for work, rtt, measured, bound, unit, remark in self.table:
            if bound is None:
                lines.append(f"{work:<36} {rtt:>4} {measured:>10.1f} {'':>10} {unit:<12} {'':>5}       "
                             f"{remark}")
                continue
            verdict = "met" if measured <= bound else "MISSED"
            lines.append(f"{work:<36} {rtt:>4} {measured:>10.3f} {bound:>10.3f} {unit:<12} "
                         f"{measured / bound:>5.2f} {verdict:<6} {remark}")
        text = "\n".join(lines + [f"trouble: {t}" for t in self.trouble])
        print(text)
        (out / "bench.txt").write_text(text + "\n", encoding="utf-8")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True, help="build directory with mailfs, floor, delay")
    parser.add_argument("--output", required=True, help="directory for the results")
    parser.add_argument("--dir", help="an empty directory to work in (one of its own in /dev/shm)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the mail, one run")
    parser.add_argument("--runs", type=int, help="runs of each measurement (5)")
    parser.add_argument("--rtt", type=int, nargs="+", default=[0, 50], help="round-trip times, ms")
    parser.add_argument("--only", nargs="+", help="sections: scans header_scan listing …")
    parser.add_argument("--verbose", action="store_true", help="each sample as it comes")
    args = parser.parse_args()
    args.runs = args.runs or (1 if args.quick else 5)
    args.sizes = [300, 1000, 3000] if args.quick else [1000, 3000, 10000, 30000, 100000]
    args.curve = [0, 20, 50] if args.quick else [0, 10, 20, 50, 100, 200]
    return args


def main():
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = args.dir or tempfile.mkdtemp(prefix="mailfs-bench-", dir="/dev/shm")
    os.chmod(directory, 0o755)
    try:
        bench = Bench(args, directory)
        try:
            bench.run()
        finally:
            bench.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if bench.trouble else 0


if __name__ == "__main__":
    sys.exit(main())
