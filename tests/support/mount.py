# SPDX-License-Identifier: MIT
"""The daemon under test: start it, wait until it says it is ready, take it down again and look at
everything it must not leave: warnings, sanitizer reports, processes, mounts."""
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import time

from .dovecot import PASSWORD, wait_for

BINARY = os.environ.get("MAILFS_BIN", "")
SANITIZED = bool(os.environ.get("MAILFS_SANITIZED"))

# What no run may say unless the test expects it.
BAD = re.compile(r"^mailfs: (warning|error): |-(CRITICAL|WARNING|ERROR) \*\*|^\*\* |"
                 r"runtime error:|Sanitizer:|: Assertion `")

running = []  # every daemon of this process, for the watchdog


def unescape_mount(field):
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), field)


def is_mounted(path):
    """By the mount table: never touches the file system, which may hang."""
    with open("/proc/self/mountinfo") as table:
        return any(unescape_mount(line.split()[4]) == str(path) for line in table)


def unmount(path, lazy=False):
    for command in (["fusermount3", "-uz" if lazy else "-u", str(path)],
                    ["umount", *(["-l"] if lazy else []), str(path)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (subprocess.TimeoutExpired, FileNotFoundError):
            continue
        if done.returncode == 0:
            return ""
    return done.stderr.strip()


def options_string(options):
    parts = []
    for key, value in options.items():
        if value is None or value is False:
            continue
        text = key if value is True else f"{key}={value}"
        parts.append(text.replace("\\", "\\\\").replace(",", "\\,"))
    return ",".join(parts)


class Mailfs:
    """One daemon on one mount point. Everything it is given lies below `directory`."""

    def __init__(self, directory, source, options=None, env=None, args=("-f",), binary=None):
        self.dir = pathlib.Path(directory)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.mnt = self.dir / "mnt"
        self.mnt.mkdir(exist_ok=True)
        self.source = source
        self.passfile = self.dir / "password"
        if not self.passfile.exists():
            self.passfile.write_text(PASSWORD + "\n")
            self.passfile.chmod(0o600)
        self.options = {"passfile": self.passfile, "cache_dir": self.dir / "cache",
                        "timeout": 20, "refresh": 1, **(options or {})}
        self.args = list(args)
        if os.environ.get("MAILFS_TRACE"):  # look at the protocol of a test that fails
            self.args.append("-v")
        self.binary = binary or BINARY
        self.log_path = self.dir / "log"
        self.reports = self.dir / "sanitizer"
        self.env = {**os.environ, "HOME": str(self.dir), "XDG_CONFIG_HOME": str(self.dir / "config"),
                    "XDG_CACHE_HOME": str(self.dir / "xdg-cache"),
                    "XDG_DATA_HOME": str(self.dir / "data"), "XDG_RUNTIME_DIR": str(self.dir),
                    **(env or {})}
        for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS"):
            self.env[name] = f"{os.environ.get(name, '')}:log_path={self.reports}".lstrip(":")
        self.env["LSAN_OPTIONS"] = f"log_path={self.reports}"
        self.process = None
        self.allowed = []

    def allow(self, *patterns):
        """Log lines that this test expects although they are warnings."""
        self.allowed += [re.compile(p) for p in patterns]
        return self

    def command(self, extra=()):
        options = options_string(self.options)
        return [self.binary, *self.args, *extra, *(["-o", options] if options else []), self.source,
                str(self.mnt)]

    # --- coming up --------------------------------------------------------------------------------

    def start(self, seconds=30):
        """Starts in the foreground and waits for READY=1 (sd_notify)."""
        notify = self.dir / "notify"
        notify.unlink(missing_ok=True)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(notify))
        self.states = []
        self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=open(self.log_path, "ab"),
                                        env={**self.env, "NOTIFY_SOCKET": str(notify)},
                                        start_new_session=True)
        running.append(self)
        end = time.monotonic() + seconds
        while "READY=1" not in self.states:
            if self.process.poll() is not None:
                self.forget()
                raise AssertionError(f"mailfs ended with {self.process.returncode}: {self.log()}")
            if time.monotonic() > end:
                raise AssertionError(f"mailfs not ready after {seconds} s: {self.log()}")
            self.read_states(0.1)
        return self

    def read_states(self, seconds=0):
        while select.select([self.notify], [], [], seconds)[0]:
            self.states += self.notify.recv(65536).decode().split("\n")
            seconds = 0
        return self.states

    def run(self, seconds=60, args=(), stdin=subprocess.DEVNULL):
        """Runs the command to its end, as a shell would: for what fails, and for background."""
        self.args = list(args)
        return subprocess.run(self.command(), stdin=stdin, capture_output=True, text=True,
                              env=self.env, timeout=seconds)

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def pid(self):
        return self.process.pid

    # --- looking at it ----------------------------------------------------------------------------

    def status(self):
        """Counters and words of .mailfs/status."""
        text = (self.mnt / ".mailfs" / "status").read_text()
        out = {}
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            out[name.rstrip(":")] = int(value) if value.strip().isdigit() else value.strip()
        return out

    def counter(self, name):
        return self.status()[name]

    def rss_kib(self):
        text = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text).group(1))

    def alive(self):
        return self.process is not None and self.process.poll() is None

    # --- going down -------------------------------------------------------------------------------

    def forget(self):
        if self in running:
            running.remove(self)
        self.notify.close()

    def kill(self):
        """kill -9: what a crash leaves behind, a dead mount among it."""
        self.process.kill()
        self.process.wait(20)
        self.forget()

    def stop(self, seconds=40, how="unmount", status=0):
        """Unmounts, waits for the end, and checks all that a run must not show."""
        if self.process is None or self not in running:
            self.clean()
            return
        if self.alive():
            if how == "unmount":
                problem = wait_unmounted(self.mnt, 10)
            else:
                problem = ""
                self.process.send_signal(how)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.dump_stacks()
                self.process.kill()
                self.process.wait(20)
                problem = problem or f"did not end within {seconds} s"
        else:
            problem = "had ended before"
        self.forget()
        code = self.process.returncode
        still = is_mounted(self.mnt)
        self.clean()
        assert not problem, f"{problem}; status {code}\n{self.log()[-4000:]}"
        assert not self.sanitizer_reports(), self.sanitizer_reports()
        assert code == status, f"status {code}\n{self.log()[-4000:]}"
        assert not still, "the mount is still there"
        self.check_log()

    def clean(self):
        for _ in range(3):
            if is_mounted(self.mnt):
                unmount(self.mnt, lazy=True)

    def dump_stacks(self):
        """Where a daemon that hangs stands; gdb where there is one."""
        try:
            done = subprocess.run(["gdb", "-p", str(self.pid), "-batch", "-ex",
                                   "thread apply all bt 12"], capture_output=True, text=True,
                                  timeout=60)
            with open(self.log_path, "a") as log:
                log.write(done.stdout)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            pass

    def sanitizer_reports(self):
        return "\n".join(p.read_text(errors="replace")[:6000]
                         for p in sorted(self.dir.glob("sanitizer.*")))

    def bad_lines(self):
        return [line for line in self.log().splitlines()
                if BAD.search(line) and not any(p.search(line) for p in self.allowed)]

    def check_log(self):
        bad = self.bad_lines()
        assert not bad, "unexpected in the log:\n" + "\n".join(bad[:20])


def wait_unmounted(path, seconds):
    """Unmounts; somebody who has only just closed a file may keep it busy for a moment."""
    end = time.monotonic() + seconds
    while True:
        problem = unmount(path)
        if not problem or not is_mounted(path):
            return ""
        if time.monotonic() > end:
            unmount(path, lazy=True)
            return problem
        time.sleep(0.05)


def kill_all_daemons():
    """For the watchdog: whoever waits for one of our mounts is freed by this."""
    for daemon in list(running):
        try:
            os.kill(daemon.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def no_daemon_of(directory):
    """Pids of mailfs processes that name this directory in their arguments."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if argv and argv[0].endswith(b"mailfs") and any(str(directory).encode() in a for a in argv):
            found.append(int(entry.name))
    return found


__all__ = ["Mailfs", "SANITIZED", "BINARY", "wait_for", "is_mounted", "unmount", "no_daemon_of",
           "kill_all_daemons", "options_string"]
