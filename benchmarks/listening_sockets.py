"""Every socket on which a server listens: whose it is, at which address, and what it asks for; see --help.

Starts `fewshard serve` on 127.0.0.1 and on 0.0.0.0, without and with tokens, and asks each socket for
something without a token, over HTTP and over gRPC. Prints a table (docs/security.md has one), with --out also
as JSON. Exits with 1 where something beyond the service's two ports answers other machines without a token.

The servers on 0.0.0.0 are in reach of the network meanwhile. As root, in a network of its own:

    unshare --net sh -c 'ip link set lo up; python benchmarks/listening_sockets.py'
"""

import argparse
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx

from fewshard_serve.auth import hash_of, new_token
from fewshard_serve.rayserve.environment import free_ports

FEWSHARD = [sys.executable, "-c", "import sys; from fewshard_serve.cli import main; sys.exit(main())"]
READY = "Fewshard serves"
START_TIMEOUT_S, STOP_TIMEOUT_S, ASK_TIMEOUT_S = 240.0, 60.0, 3.0
HTTP_PATHS = ("/metrics", "/v2/models/sst2-moe", "/api/v0/nodes", "/-/routes", "/")
GRPC_METHODS = (
    "/inference.GRPCInferenceService/ServerMetadata",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.serve.ASGIService/HandleRequest",
)
PROCESSES = {
    "/haproxy": "HAProxy",
    "gcs_server": "Ray's GCS",
    "raylet": "raylet",
    "ray::ServeController": "Serve's controller",
    "ray::HAProxyManager": "Serve's HAProxy manager",
    "ray::ProxyActor": "Serve's fallback proxy",
    "ray::ServeReplica:gateway": "the gateway",
    "ray::ServeReplica": "a replica",
    "child_process": "the models' process",
    "runtime_env": "Ray's agents",
    "dashboard": "Ray's agents",
    "monitor": "Ray's monitor",
    "fewshard_serve.cli": "the launcher",
}
"""Names of processes, by a part of the command line; the first that fits."""
SETUPS: dict[str, tuple[str, bool]] = {
    "127.0.0.1": ("127.0.0.1", False),
    "127.0.0.1, tokens": ("127.0.0.1", True),
    "0.0.0.0": ("0.0.0.0", False),
    "0.0.0.0, tokens": ("0.0.0.0", True),
}


@dataclass(frozen=True, slots=True)
class Listening:
    """One socket.

    port: 0 for a Unix socket, whose address is its path.
    is_local: other machines cannot reach it.
    answer: what it says to who has no token.
    """

    process: str
    kind: str
    address: str
    port: int
    is_local: bool
    answer: str = ""


def session_of(pid: int) -> list[int]:
    """Return the ids of the living processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(session) == pid and state != "Z":
            found.append(int(entry.name))
    return found


def process_name(pid: int) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return next((name for part, name in PROCESSES.items() if part in command), command[:60])


def listening(pids: list[int]) -> list[Listening]:
    """Return every listening TCP and Unix socket, and every unconnected UDP socket, of these processes."""
    owners: dict[str, int] = {}
    for pid in sorted(pids, reverse=True):  # children inherit sockets: the eldest owns them
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                owners[os.readlink(link).removeprefix("socket:[").rstrip("]")] = pid
            except OSError:
                continue
    found = [*_internet(owners), *_unix(owners)]
    return sorted(found, key=lambda one: (one.is_local, one.process, one.kind, one.address))


def _internet(owners: dict[str, int]) -> Iterator[Listening]:
    for name, wanted in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        family = socket.AF_INET6 if name.endswith("6") else socket.AF_INET
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == wanted and fields[9] in owners:
                packed, _, port = fields[1].partition(":")
                words = [bytes.fromhex(packed[i : i + 8])[::-1] for i in range(0, len(packed), 8)]
                address = socket.inet_ntop(family, b"".join(words)).removeprefix("::ffff:")
                is_local = address == "::1" or address.startswith("127.")
                process = process_name(owners[fields[9]])
                yield Listening(process, name.rstrip("6").upper(), address, int(port, 16), is_local)


def _unix(owners: dict[str, int]) -> Iterator[Listening]:
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        _, _, _, flags, _, _, inode, *path = line.split()
        if int(flags, 16) & 0x10000 and inode in owners:
            yield Listening(process_name(owners[inode]), "Unix", " ".join(path), 0, True)


def asked(one: Listening) -> str:
    """Return what a socket says to somebody without any token."""
    if one.kind == "UDP":
        return "sends only"
    if one.kind == "Unix":
        return _modes(Path(one.address))
    host = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(one.address, one.address)
    return _over_http(f"http://{host}:{one.port}") or _over_grpc(f"{host}:{one.port}")


def _modes(path: Path) -> str:
    """Return the narrowest mode of the folders above a socket."""
    modes = [stat.S_IMODE(each.stat().st_mode) & 0o777 for each in path.parents if each.exists()]
    return f"in a folder of mode {min(modes, key=lambda mode: mode & 0o077):04o}"


def _over_http(url: str) -> str:
    answers = []
    for path in HTTP_PATHS:
        try:
            answers.append(httpx.get(url + path, timeout=ASK_TIMEOUT_S).status_code)
        except httpx.RemoteProtocolError:
            return ""
        except httpx.HTTPError as error:
            return f"{type(error).__name__}"
    if 200 in answers[:-1]:
        return "nothing (HTTP)"
    return "a token (HTTP 401)" if 401 in answers else f"HTTP {', '.join(map(str, sorted(set(answers))))}"


def _over_grpc(target: str) -> str:
    codes = set()
    with grpc.insecure_channel(target) as channel:
        for method in GRPC_METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=ASK_TIMEOUT_S)
                codes.add("OK")
            except grpc.RpcError as error:
                codes.add(error.code().name)
    if "OK" in codes:
        return "nothing (gRPC)"
    if "UNAUTHENTICATED" in codes:
        return "a token (gRPC UNAUTHENTICATED)"
    return f"gRPC {', '.join(sorted(codes))}"


@contextmanager
def server(host: str, has_tokens: bool, folder: Path) -> Iterator[tuple[int, int, int]]:
    """Run a server with one model. Yields its session and its two ports."""
    (port, grpc_port), log = free_ports(2), folder / "log"
    command = [
        *FEWSHARD,
        "serve",
        "zoo:sst2-moe",
        "--host",
        host,
        "--port",
        str(port),
        "--grpc-port",
        str(grpc_port),
    ]
    if has_tokens:
        tokens = folder / "tokens.yaml"
        tokens.write_text(f"tokens: [{{name: nobody, sha256: {hash_of(new_token()).hex()}}}]\n")
        command += ["--auth.tokens_file", str(tokens)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while READY not in log.read_text():
            if process.poll() is not None or time.monotonic() > give_up_at:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        yield process.pid, port, grpc_port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_TIMEOUT_S)


def examine(host: str, has_tokens: bool) -> list[Listening]:
    """Start a server and return its sockets with their answers. The service's own are named so."""
    with (
        tempfile.TemporaryDirectory() as folder,
        server(host, has_tokens, Path(folder)) as (pid, port, grpc_port),
    ):
        found = []
        for one in listening(session_of(pid)):
            own = {port: "the service", grpc_port: "the service, gRPC"}.get(one.port)
            process = one.process if own is None else f"{one.process}: {own}"
            found.append(Listening(process, one.kind, one.address, one.port, one.is_local, asked(one)))
        return found


def is_open_to_others(one: Listening) -> bool:
    """Whether a socket that is not the service's answers other machines without a token."""
    return not (one.is_local or "the service" in one.process or "token" in one.answer or one.kind == "UDP")


def table(found: dict[str, list[Listening]]) -> str:
    """Return one row for each kind of socket, with the numbers of each setup."""
    rows: dict[tuple[str, str, str, str], Counter[str]] = {}
    for setup, sockets in found.items():
        for one in sockets:
            address = "a file" if one.kind == "Unix" else one.address
            rows.setdefault((one.process, one.kind, address, one.answer), Counter())[setup] += 1
    lines = [
        f"| process | kind | address | asks for | {' | '.join(found)} |",
        "| --- " * (4 + len(found)) + "|",
    ]
    for row, counts in rows.items():
        lines.append(f"| {' | '.join(row)} | {' | '.join(str(counts[setup] or '') for setup in found)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--setups", default=";".join(SETUPS), help="of these, separated by ; (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    args = parser.parse_args()
    found = {setup: examine(*SETUPS[setup]) for setup in args.setups.split(";")}
    print(table(found))
    if args.out:
        as_json: dict[str, Any] = {
            setup: [asdict(one) for one in sockets] for setup, sockets in found.items()
        }
        args.out.write_text(json.dumps(as_json, indent=2) + "\n")
    wrong = [one for sockets in found.values() for one in sockets if is_open_to_others(one)]
    for one in wrong:
        print(
            f"open to other machines: {one.process} {one.address}:{one.port} asks for {one.answer}",
            file=sys.stderr,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
