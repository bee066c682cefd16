"""Runs one HAProxy for Ray Serve, and starts it again when it dies or hangs. A program of its own.

For each configuration that it writes, Ray Serve starts a process with `-db -f FILE`. It knows the process by
its number, which must also be in the answers of the admin socket. When it dies, it is missed after half a
minute. So this program is that process, and HAProxy runs below it:

- the *front*, whose number Serve knows, starts the keeper again if that dies or is stopped;
- the *keeper* runs HAProxy with an edited copy of FILE, and answers on the admin socket in its place;
- HAProxy serves on, whatever becomes of these two.

Start: HAProxy takes over the listeners of its predecessor, if there is one. Once it answers, the predecessor
finishes its requests.

End: with SIGUSR1 HAProxy finishes its requests first. It ends at once with SIGTERM, and when its owner has
ended: the launcher that wrote the settings, or the raylet above this process on a cluster. When the front has
ended, the admin socket is closed, so that Serve starts another one; without one HAProxy ends in two minutes.

`haproxy` writes the settings, with the edits of `haproxy_rules`. This program imports the standard library
alone and runs without site packages, so that it is small and starts in milliseconds.
"""

import json
import os
import re
import resource
import select
import signal
import socket
import sys
import time
from typing import Any

POLL_S = 0.1
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""Each buffer is mapped by itself, so that it goes back to the system. Otherwise the memory of thousands of
connections with half a body stays for ever."""
PULSE_S = 1.0
"""How often HAProxy is asked whether it answers, and how long it may take."""
MAX_MISSED = 3
"""Answers in a row that HAProxy may miss. One is missed after the machine was suspended, too."""
START_TIMEOUT_S = 20.0
ORPHAN_S = 120.0
"""How long HAProxy serves on without a front. Ray Serve needs half a minute to start another one."""
MAX_CONNECTIONS = 16_384
OTHER_FILES = 200
"""Files that HAProxy has open besides two for each connection: listeners, checks, threads."""
LOG_TARGET = "RAY_SERVE_HAPROXY_LOG_TARGET"
INFO = b"show info\n"
_SERVES = "\nbackend http-"


def max_connections() -> int:
    """Return how many connections the limit of open files allows, at most `MAX_CONNECTIONS`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, (hard - OTHER_FILES) // 2))


class Edit:
    """Changes the configuration that Ray Serve has written.

    settings: what `haproxy.write_settings` has written.
    folder: of the Unix sockets. A new HAProxy takes over those of the last one by their names.
    """

    def __init__(self, settings: dict[str, Any], folder: str) -> None:
        self._settings = settings
        self._limit = max_connections()
        self._sends_large = False
        self._names = {
            "@ADMIN@": f"{folder}/haproxy.sock",
            "@WAITING@": f"{folder}/waiting.sock",
            "@LARGE@": f"{folder}/large.sock",
            "@PER_ADDRESS@": str(min(settings["per_address"], self._limit // 2)),
            "@FALLBACK@": "",
        }

    def edited(self, text: str) -> str:
        """Return the whole configuration with all changes."""
        lines: list[str] = []
        section = ""
        for line in text.splitlines():
            if line.strip() and not line[0].isspace():
                lines += self._end_of(section, lines)
                section = " ".join(line.split()[:2])
                lines += [line, *self._added(section)]
            else:
                lines += self._changed(line, section)
        lines += [*self._end_of(section, lines), *self._added("end")]
        for name, value in self._names.items():
            lines = [line.replace(name, value) for line in lines]
        return "\n".join(lines) + "\n"

    def _added(self, section: str) -> list[str]:
        kind = "backend http" if section.startswith("backend http-") else section
        lines = self._settings["added"].get(kind, ())
        return [line.replace("@BACKEND@", section.removeprefix("backend ")) for line in lines]

    def _end_of(self, section: str, lines: list[str]) -> list[str]:
        """Give a backend a last resort, if Serve has given it none."""
        if not section.startswith("backend http-") or lines[-1].endswith("backup"):
            return []
        return ["    server nobody unix@@WAITING@ check backup"]

    def _changed(self, line: str, section: str) -> list[str]:
        """Return the line as it should be; none if it should not be there."""
        words = line.split()
        match [section, *words]:
            case [_, "errorfile", *_] | [_, "option", "splice-request" | "splice-response"]:
                return []
            case ["global", "log", *_] | ["defaults", "option", "httplog"] if LOG_TARGET not in os.environ:
                return []
            case ["global", "maxconn", _]:
                return [f"    maxconn {self._limit}"]
            case ["global", "stats", "socket", _, *more]:
                return [f"    stats socket @ADMIN@ {' '.join(more)}"]
            case ["frontend prometheus" | "listen stats", "bind", address]:
                return [f"    bind 127.0.0.1:{address.rpartition(':')[2]}"]
            case ["frontend http_frontend", "bind", address]:
                bound, how = self._settings["bind"] or address, self._settings["bind_options"]
                outer = f"    bind {bound} {how}".rstrip()
                return [outer, "    bind unix@@LARGE@ accept-proxy name inner proto h1"]
            case ["frontend http_frontend", "use_backend" | "default_backend", *_] if not self._sends_large:
                self._sends_large = True
                return ["    use_backend fewshard-large if is_large !{ so_name inner }", line]
            case ["backend default_backend", "http-request", "return", "status", "404", *_]:
                return ["    http-request return status 503 default-errorfiles"]
            case [_, "server", name, address, "check", "backup"] if section.startswith("backend http-"):
                self._names["@FALLBACK@"] = f"    server fallback {address}"
                return [f"    server {name} unix@@WAITING@ check backup"]
            case ["defaults", *_]:
                return [f"    {self._settings['instead'].get(line.strip(), line.strip())}"]
        return [line]


class Process:
    """Another process, which may have ended while its number has gone to a new one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._started = _started(_stat(pid))

    @property
    def state(self) -> str:
        """The letter of its state as in /proc; "" if it has ended."""
        fields = _stat(self.pid)
        return fields[0] if fields and _started(fields) == self._started and fields[0] not in "ZX" else ""

    def signal(self, number: int) -> None:
        if self.state:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def end(self) -> None:
        """Kill it, and wait until it has ended."""
        self.signal(signal.SIGKILL)
        while self.state:
            time.sleep(0.005)

    @property
    def age(self) -> int:
        """Greater for younger processes."""
        return self._started


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; [] if the process has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _started(fields: list[str]) -> int:
    return int(fields[19]) if fields else 0


def _owner(launcher: int | None) -> Process | None:
    """Return the launcher, else the raylet above this process, else None."""
    if launcher is not None:
        return Process(launcher)
    pid = os.getppid()
    while pid > 1:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            if file.read().strip() == "raylet":
                return Process(pid)
        pid = int(_stat(pid)[1])
    return None


def _found(file: str) -> tuple[list[Process], list[Process]]:
    """Return the other fronts and keepers of FILE, and the HAProxies, which have a copy of it."""
    keepers, proxies = [], []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in (os.getpid(), os.getppid()):
            continue
        try:
            with open(f"/proc/{name}/cmdline", encoding="utf-8", errors="replace") as command:
                words = command.read().split("\0")
        except OSError:  # it has ended
            continue
        if file in words:
            keepers.append(Process(int(name)))
        elif any(word.startswith(f"{file}.") for word in words):
            proxies.append(Process(int(name)))
    return keepers, proxies


def ask(path: str, command: bytes) -> bytes:
    """Return the answer of an admin socket; b"" if there is none within `PULSE_S`."""
    give_up_at, parts = time.monotonic() + PULSE_S, []
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PULSE_S)
            connection.connect(path)
            connection.sendall(command)
            while part := connection.recv(65536):
                parts.append(part)
                connection.settimeout(max(0.001, give_up_at - time.monotonic()))
    except OSError:
        return b""
    return b"".join(parts)


class Keeper:
    """Runs one HAProxy.

    settings: what `haproxy.write_settings` has written.
    args: the arguments with which Ray Serve has called the front.
    owner: HAProxy ends with it.
    """

    def __init__(self, settings: dict[str, Any], args: list[str], owner: Process | None) -> None:
        self._file = args[args.index("-f") + 1]
        self._folder = os.path.dirname(self._file)
        self._front, self._owner = os.getppid(), owner
        self._admin = f"{self._folder}/haproxy.sock"
        self._copy = f"{self._file}.{self._front}"
        text = _read(self._file)
        (self._public,) = re.findall(r"^ *stats socket (\S+)", text, re.MULTILINE)
        edited = self._former(text) or Edit(settings, self._folder).edited(text)
        with open(self._copy, "w", encoding="utf-8") as file:
            file.write(edited)
        self._command = [settings["binary"], "-dS", "-db", "-f", self._copy]
        self._command += ["-dR"] if "-dR" in args else []
        self._child = 0
        self._stops = False

    def _former(self, text: str) -> str:
        """Return the copy of a predecessor that serves applications, if `text` has none; "" otherwise.

        The first HAProxy of a new manager has none, and would refuse everything until the next one comes.
        """
        if _SERVES in text or not ask(self._admin, INFO):
            return ""
        copies = sorted(self._copies(), key=os.path.getmtime)
        return next((found for path in reversed(copies) if _SERVES in (found := _read(path))), "")

    def run(self) -> int:
        """Keep HAProxy running until it is asked to stop. Return the exit code."""
        signal.signal(signal.SIGUSR1, self._stop)
        signal.signal(signal.SIGTERM, self._stop)
        keepers, proxies = _found(self._file)
        takes_over = bool(proxies) and bool(ask(self._admin, INFO))
        if not takes_over:
            for proxy in proxies:  # dead or stopped, with the ports in hand
                proxy.end()
        code = self._start("-x", self._admin) if takes_over else self._start()
        if code is not None:
            return code  # the predecessor serves on
        for each in (*keepers, *proxies):  # a keeper first, so that it starts no other HAProxy
            each.signal(signal.SIGKILL if each.state == "T" else signal.SIGUSR1)
        for path in self._copies():  # HAProxy has read its own
            os.unlink(path)
        with self._listener() as listener:
            return self._keep(listener)

    def _keep(self, listener: socket.socket) -> int:
        num_missed, ask_at, ends_at = 0, time.monotonic() + PULSE_S, float("inf")
        while True:
            self._answer_next(listener)
            if os.getppid() != self._front and ends_at == float("inf"):
                listener.close()
                ends_at = time.monotonic() + ORPHAN_S
            if time.monotonic() > ends_at or (self._owner is not None and not self._owner.state):
                self._end_all()
                return 0
            code = self._code()
            if time.monotonic() > ask_at and code is None and not self._stops:
                num_missed = 0 if ask(self._admin, INFO) else num_missed + 1
                ask_at = time.monotonic() + PULSE_S
                if num_missed == MAX_MISSED:
                    code, num_missed = self._kill(), 0
            while code is not None:
                if self._stops:
                    return max(code, 0)
                code = self._start()

    def _start(self, *more: str) -> int | None:
        """Start HAProxy. Return None once it answers, or its exit code."""
        environment = {**os.environ, **GIVES_BACK}
        self._child = os.posix_spawn(self._command[0], [*self._command, *more], environment)
        give_up_at, wait_s = time.monotonic() + START_TIMEOUT_S, 0.005
        while time.monotonic() < give_up_at:
            time.sleep(wait_s)
            if b"\nPid: %d\n" % self._child in ask(self._admin, INFO):
                return None
            if (code := self._code()) is not None:
                time.sleep(POLL_S)  # before another try
                return code or 1
            wait_s = min(2 * wait_s, POLL_S)
        return self._kill()

    def _code(self) -> int | None:
        """Return the exit code of HAProxy, None if it runs. A stopped one is killed."""
        pid, status = os.waitpid(self._child, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            return None
        return self._kill() if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)

    def _kill(self) -> int:
        os.kill(self._child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])

    def _stop(self, number: int, _: object) -> None:
        self._stops = True
        if self._child:
            Process(self._child).signal(signal.SIGKILL if number == signal.SIGTERM else number)

    def _end_all(self) -> None:
        for proxy in _found(self._file)[1]:
            proxy.end()

    def _listener(self) -> socket.socket:
        """Listen on the path where Ray Serve expects HAProxy's admin socket."""
        listener, path = socket.socket(socket.AF_UNIX), f"{self._public}.{os.getpid()}"
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(16)
        os.rename(path, self._public)
        return listener

    def _answer_next(self, listener: socket.socket) -> None:
        """Answer one call of Ray Serve as HAProxy does, but with the front's number. Wait for it `POLL_S`."""
        if listener.fileno() < 0:
            time.sleep(POLL_S)
            return
        if not select.select([listener], [], [], POLL_S)[0]:
            return
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PULSE_S)
            try:
                answer = ask(self._admin, connection.recv(4096))
                connection.sendall(re.sub(rb"\nPid: \d+\n", b"\nPid: %d\n" % self._front, answer, count=1))
            except OSError:
                return

    def _copies(self) -> list[str]:
        """Return the copies of FILE that others have made."""
        names = (name for name in os.listdir(self._folder) if name.rpartition(".")[2].isdigit())
        paths = (os.path.join(self._folder, name) for name in names)
        return [path for path in paths if path.startswith(f"{self._file}.") and path != self._copy]


def main(path: str, *args: str) -> int:
    """Be the front, whose number Ray Serve knows. Return the exit code."""
    with open(path, encoding="utf-8") as file:
        settings = json.load(file)
    os.setpgid(0, 0)  # Ray ends the process group of an actor that has died
    owner, keeper = _owner(settings["launcher"]), 0

    def forward(number: int, _: object) -> None:
        if keeper:
            Process(keeper).signal(number)

    signal.signal(signal.SIGUSR1, forward)
    signal.signal(signal.SIGTERM, forward)
    while True:
        keeper = os.fork()
        if keeper == 0:
            os._exit(Keeper(settings, list(args), owner).run())
        _, status = os.waitpid(keeper, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(keeper, signal.SIGKILL)
            os.waitpid(keeper, 0)
        elif os.WIFEXITED(status):
            return os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
