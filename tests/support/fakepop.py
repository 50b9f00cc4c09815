# SPDX-License-Identifier: MIT
"""A small POP3 server that behaves as told: for what no real server can be made to do. It locks the
maildrop while somebody is logged in, as RFC 1939 wants."""
import socket
import threading

from .dovecot import PASSWORD


class FakePop:
    def __init__(self, messages=()):
        self.lock = threading.Lock()
        self.messages = list(messages)  # (uidl, bytes), the maildrop
        self.removed = []               # (uidl, bytes), by DELE and QUIT
        self.sent = set()               # (uidl, bytes), by RETR, in any session
        self.locked = False
        self.log = []                   # commands, of all sessions
        self.n_logins = self.n_busy = 0
        # What is wrong with it.
        self.has_uidl = True
        self.busy = False               # [IN-USE], whoever comes
        self.hides = False              # what was sent by RETR is not listed the next time
        self.keeps = False              # says +OK to DELE and QUIT, and removes nothing
        self.loses_quit = 0             # so many times: removes, and hangs up without an answer
        self.ignores_quit = 0           # so many times: hangs up and removes nothing
        self.changes_top = False        # TOP sends something else than RETR
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.listener.listen(50)
        threading.Thread(target=self.accept, daemon=True).start()

    def url(self, user="me"):
        return f"pop://{user}@127.0.0.1:{self.port}/"

    def stop(self):
        self.listener.close()

    def uidls(self):
        with self.lock:
            return [uidl for uidl, _ in self.messages]

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=Session(self, connection).run, daemon=True).start()


class Session:
    def __init__(self, server, connection):
        self.server, self.connection = server, connection
        self.deleted, self.sent, self.drop = set(), set(), None

    def run(self):
        try:
            with self.connection, self.connection.makefile("rwb") as self.file:
                try:
                    self.talk()
                finally:  # before it is closed: the client may come again at once
                    if self.drop is not None:
                        with self.server.lock:
                            self.server.locked = False
        except (OSError, ValueError):
            pass

    def talk(self):
        self.say("+OK ready")
        for line in self.file:
            words = line.decode("latin-1").split()
            with self.server.lock:
                self.server.log.append(" ".join(words))
            if not self.answer(words[0].upper(), words[1:]):
                return

    def say(self, *lines):
        self.file.write("".join(line + "\r\n" for line in lines).encode("latin-1"))
        self.file.flush()

    def login(self):
        server = self.server
        with server.lock:
            if server.busy or server.locked:
                server.n_busy += 1
                return "-ERR [IN-USE] somebody else is reading this maildrop"
            server.locked = True
            server.n_logins += 1
            self.drop = list(server.messages)
        return "+OK welcome"

    def answer(self, verb, words):
        server = self.server
        if verb == "CAPA":
            self.say("+OK", "USER", "TOP", "PIPELINING", "RESP-CODES",
                     *(["UIDL"] if server.has_uidl else []), ".")
        elif verb == "USER":
            self.say("+OK")
        elif verb == "PASS":
            self.say(self.login() if words == [PASSWORD] else "-ERR [AUTH] no")
        elif verb == "QUIT":
            return self.quit()
        elif self.drop is None:
            self.say("-ERR log in first")
        elif verb == "UIDL" and not server.has_uidl:
            self.say("-ERR unknown command")
        elif verb in ("UIDL", "LIST"):
            self.say("+OK", *(f"{n + 1} {u if verb == 'UIDL' else len(b)}"
                              for n, (u, b) in enumerate(self.drop)), ".")
        elif verb in ("RETR", "TOP", "DELE"):
            self.message(verb, int(words[0]), int(words[1]) if len(words) > 1 else None)
        else:
            self.say("+OK")
        return True

    def message(self, verb, number, n_lines):
        if number > len(self.drop) or number in self.deleted:
            self.say("-ERR no such message")
            return
        if verb == "DELE":
            self.deleted.add(number)
            self.say("+OK")
            return
        body = self.drop[number - 1][1].decode("latin-1")
        if verb == "RETR":
            self.sent.add(self.drop[number - 1])
            self.server.sent.add(self.drop[number - 1])
        else:
            header, _, rest = body.partition("\r\n\r\n")
            if self.server.changes_top:
                header = header.replace("Subject: ", "Subject: [list] ")
            body = header + "\r\n\r\n" + "".join(rest.splitlines(True)[:n_lines])
        lines = body.removesuffix("\r\n").split("\r\n")
        self.say("+OK", *("." + line if line.startswith(".") else line for line in lines), ".")

    def quit(self):
        server = self.server
        gone = [self.drop[n - 1] for n in self.deleted]
        lost = False
        with server.lock:
            if gone and server.ignores_quit > 0:
                server.ignores_quit -= 1
                return False
            if gone and server.loses_quit > 0:
                server.loses_quit -= 1
                lost = True
            for message in gone if not server.keeps else []:
                server.messages.remove(message)
                server.removed.append(message)
            if server.hides:
                server.messages = [m for m in server.messages if m not in self.sent]
            if self.drop is not None:
                server.locked = False
                self.drop = None
        if not lost:
            self.say("+OK bye")
        return False
