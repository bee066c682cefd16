"""Virtual environments of the peers, created from pinned versions and reused until these change."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from fewshard_loadtest.errors import BenchmarkError

DEFAULT_FOLDER = Path("~/.cache/fewshard/peers").expanduser()
_STAMP = "pins.txt"
_WORDS = 400


def pins(name: str) -> list[str]:
    """Exact versions of all packages in a peer's environment, torch first."""
    text = (files("fewshard_loadtest.peers") / "pins" / f"{name}.txt").read_text(encoding="utf-8")
    return text.split()


def versions(name: str, wanted: tuple[str, ...]) -> dict[str, str]:
    """The pinned versions of these packages; packages without a pin are left out."""
    found = dict(pin.split("==") for pin in pins(name))
    return {package: found[package] for package in wanted if package in found}


def environment(name: str, folder: Path) -> Path:
    """The folder of a peer's programs. Installs them if they are missing or the pins have changed.

    Raises BenchmarkError with the end of the installer's output.
    """
    directory, wanted = folder / name, pins(name)
    stamp = directory / _STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8").split() == wanted:
        return directory / "bin"
    if directory.exists() and not (directory / "pyvenv.cfg").is_file():
        raise BenchmarkError(f"{directory} is no virtual environment; move it away or choose another --envs")
    print(f"installing {name} into {directory}", file=sys.stderr, flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(directory)])
    # torch is installed first and alone, so that no package pulls another build. The pins are complete.
    install = [
        str(directory / "bin/python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    _run([*install, wanted[0]])
    _run([*install, "--no-deps", *wanted])
    stamp.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return directory / "bin"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"cannot be installed here: {done.stderr.strip()[-_WORDS:]}")
