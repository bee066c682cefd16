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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx

from fewshard_serve.auth import hash_of, new_token

FEWSHARD = [sys.executable, "-c", "import sys; from fewshard_serve.cli import main; sys.exit(main())"]
READY = "Fewshard serves"
START_TIMEOUT_S, STOP_TIMEOUT_S, ASK_TIMEOUT_S = 240.0, 60.0, 3.0
HTTP_PATHS = ("/metrics", "/v2/models/sst2-moe", "/stats", "/api/v0/nodes", "/-/routes")
GRPC_METHODS = (
    "/inference.GRPCInferenceService/ServerMetadata",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.RuntimeEnvService/GetOrCreateRuntimeEnv",
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
        return _who_may_connect(Path(one.address))
    host = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(one.address, one.address)
    return _over_http(f"http://{host}:{one.port}") or _over_grpc(f"{host}:{one.port}")


def _who_may_connect(path: Path) -> str:
    """Return who reaches a socket: others, if they may write to it and enter its folders."""
    # HAProxy renames its socket once it listens, so that the file may have another name.
    may_write = not path.exists() or path.stat().st_mode & stat.S_IWOTH
    may_enter = all(each.stat().st_mode & stat.S_IXOTH for each in path.parents)
    return "nothing" if may_write and may_enter else "the server's own user"


def _over_http(url: str) -> str:
    """Return "" for a socket that does not speak HTTP."""
    answers = {}
    for path in HTTP_PATHS:
        try:
            answers[path] = httpx.get(url + path, timeout=ASK_TIMEOUT_S).status_code
        except httpx.RemoteProtocolError:
            return ""
        except httpx.HTTPError as error:
            return type(error).__name__
    open_paths = [path for path, status in answers.items() if status == 200]
    if 401 in answers.values():
        return "a token (HTTP)" + (f", but nothing for {' and '.join(open_paths)}" if open_paths else "")
    return "nothing (HTTP)" if open_paths else f"HTTP {', '.join(map(str, sorted({*answers.values()})))}"


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
        return "a token (gRPC)"
    return f"gRPC {', '.join(sorted(codes))}"


@contextmanager
def server(host: str, has_tokens: bool, ports: tuple[int, int], folder: Path) -> Iterator[int]:
    """Run a server with one model. Yields its session."""
    (port, grpc_port), log = ports, folder / "log"
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
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_TIMEOUT_S)


def examine(host: str, has_tokens: bool, ports: tuple[int, int]) -> list[Listening]:
    """Start a server and return its sockets with their answers. The service's own are named so."""
    own = dict(zip(ports, ("the service", "the service, gRPC"), strict=True))
    found = []
    with tempfile.TemporaryDirectory() as folder, server(host, has_tokens, ports, Path(folder)) as session:
        for one in listening(session_of(session)):
            process = f"{one.process}: {own[one.port]}" if one.port in own else one.process
            found.append(replace(one, process=process, answer=asked(one)))
    return found


def is_open_to_others(one: Listening) -> bool:
    """Whether a socket that is not the service's answers other machines without a token."""
    is_meant = one.is_local or one.kind == "UDP" or "the service" in one.process
    return not is_meant and ("token" not in one.answer or "nothing" in one.answer)


def _is_inside(address: str) -> bool:
    return address in ("127.0.0.1", "::1", "a file")


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
    for row, counts in sorted(rows.items(), key=lambda row: (_is_inside(row[0][2]), row[0])):
        lines.append(f"| {' | '.join(row)} | {' | '.join(str(counts[setup] or '') for setup in found)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--setups", default=";".join(SETUPS), help="of these, separated by ; (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=21_800, help="and the next for gRPC (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    args = parser.parse_args()
    found = {setup: examine(*SETUPS[setup], (args.port, args.port + 1)) for setup in args.setups.split(";")}
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
