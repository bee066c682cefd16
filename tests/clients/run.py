"""Asks a server by real clients, in environments of their own, and prints what came of it; `make clients`.

The environments are made once below `.clients`, from the exact versions in the requirements files beside this
one. The checks are in `checks`. With FEWSHARD_URL and FEWSHARD_GRPC (host:port) a running server is asked in
place of a new one; it must serve sst2-dense and cifar10-dense of the zoo in fp32.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fewshard_serve.rayserve.environment import free_ports

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("FEWSHARD_CLIENTS", HERE.parents[1] / ".clients"))
CHECKS = {
    "triton_clients.py": "clients",
    "kserve_clients.py": "clients",
    "other_clients.py": "clients",
    "mlserver_clients.py": "mlserver",
}
"""The environment of each file of checks. MLServer's requirements contradict those of the others."""
PERF, PERF_OLD = "perf", "perf-old-glibc"
"""perf_analyzer needs glibc 2.38 since it is published by itself; before, tritonclient had it."""
START_S, CHECKS_S = 600, 900


def environment(name: str) -> Path:
    """The virtual environment of requirements-<name>.txt, made if it is missing or of other versions."""
    folder, wanted = FOLDER / name, (HERE / f"requirements-{name}.txt").read_text()
    made_of = folder / "made-of.txt"
    if not made_of.exists() or made_of.read_text() != wanted:
        print(f"making {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "-r", HERE / f"requirements-{name}.txt"], check=True)
        made_of.write_text(wanted)
    return folder


def perf_analyzer() -> dict[str, str]:
    """The variable that leads to a perf_analyzer which runs here."""
    if platform.libc_ver() >= ("glibc", "2.38"):
        return {"PERF_ANALYZER": str(environment(PERF) / "bin/perf_analyzer")}
    folder = environment(PERF_OLD)
    libraries = [*{str(path.parent) for path in folder.rglob("libcudart.so.*")}, *_libb64(folder)]
    script = folder / "perf_analyzer.sh"
    script.write_text(
        f'#!/bin/sh\nLD_LIBRARY_PATH={":".join(libraries)} exec {folder}/bin/perf_analyzer "$@"\n'
    )
    script.chmod(0o755)
    return {"PERF_ANALYZER": str(script)}


def _libb64(folder: Path) -> Iterator[str]:
    """The folder of libb64 from Debian's package, which need not be installed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return
    if not list(folder.rglob("libb64.so.*")):
        subprocess.run(["apt-get", "download", "-qq", "libb64-0d"], cwd=folder, check=False)
        for package in folder.glob("libb64*.deb"):
            subprocess.run(["dpkg", "-x", package, folder / "libb64"], check=True)
    yield from {str(path.parent) for path in folder.rglob("libb64.so.*")}


@contextmanager
def server() -> Iterator[dict[str, str]]:
    """The addresses of a running server, as variables."""
    if "FEWSHARD_URL" in os.environ:
        yield {name: os.environ[name] for name in ("FEWSHARD_URL", "FEWSHARD_GRPC")}
        return
    port, grpc_port = free_ports(2)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "fewshard.yaml")
        # No answer depends on how fast this machine is.
        patient = "dtype: fp32, admission: {deadline_ms: 120000}"
        models = [f"  - {{name: {n}, path: 'zoo:{n}', {patient}}}" for n in ("sst2-dense", "cifar10-dense")]
        ports = f"server: {{port: {port}, grpc_port: {grpc_port}}}"
        config.write_text(
            "\n".join(["models:", *models, ports, "cors: {origins: [https://app.example]}", ""])
        )
        command = [str(Path(sys.executable).with_name("fewshard")), "serve", str(config)]
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            _wait(process, port, Path(folder, "log"))
            yield {"FEWSHARD_URL": f"127.0.0.1:{port}", "FEWSHARD_GRPC": f"127.0.0.1:{grpc_port}"}
        finally:
            process.terminate()
            process.wait(60)


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    give_up_at = time.monotonic() + START_S
    while time.monotonic() < give_up_at and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"the server did not start:\n{log.read_text()}")


def results(file: str, python: Path, variables: dict[str, str]) -> Iterator[dict[str, str]]:
    """What came of the checks in one file."""
    command = [python, HERE / "checks" / file]
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command,
        env=own | variables,
        capture_output=True,
        text=True,
        timeout=CHECKS_S,
        check=False,
    )
    yield from (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    if done.returncode:
        told = done.stderr.strip().splitlines()[-1:]
        yield {"client": file, "asked": "its checks", "result": " ".join(told), "is_right": False}  # type: ignore[dict-item]


def main() -> int:
    """Print the table. Return 1 if any client was not served right."""
    folders = {name: environment(name) for name in dict.fromkeys(CHECKS.values())}
    variables = perf_analyzer()
    with server() as addresses:
        rows = [
            row
            for file, name in CHECKS.items()
            for row in results(file, folders[name] / "bin/python", variables | addresses)
        ]
    print("| client | asked | result |\n| --- | --- | --- |")
    for row in rows:
        mark = "" if row["is_right"] else "**WRONG** "
        print(f"| {row['client']} | {row['asked']} | {mark}{row['result'].replace('|', '/')} |")
    wrong = sum(not row["is_right"] for row in rows)
    print(f"\n{len(rows)} checks, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
