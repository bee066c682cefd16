#!/usr/bin/env bash
# perf-analyzer 2.60.0, pip 26.3: where glibc is older than 2.38, pip installs an empty package and exits with 0.
#
# A good engineer expects: a program with wheels for newer systems only is either refused ("no matching distribution") or
# built from its source.
# What happens: the project's first release, 0.1.0, is a placeholder wheel with no program in it, and it is tagged for every
# platform. Debian 12 and Ubuntu 22.04 (glibc 2.36 and 2.35) match none of the newer wheels, so pip goes back to
# it without a word; `pip install "tritonclient[perf-analyzer]"` too. `perf_analyzer` is then "command not found".
# Seen: 0.1.0 with no program for glibc 2.35, 2.60.0 with the program for 2.38. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet pip==26.3
for platform in manylinux_2_35_x86_64 manylinux_2_38_x86_64; do
    "${pip[@]}" download --quiet --no-deps --only-binary=:all: --python-version 3.11 --platform "$platform" \
        --dest "$folder/$platform" "perf-analyzer<=2.60.0"
done
"$folder/venv/bin/python" - "$folder" <<'PROGRAM'
import sys
from pathlib import Path
from zipfile import ZipFile

found = {}
for platform in ("manylinux_2_35_x86_64", "manylinux_2_38_x86_64"):
    (wheel,) = (Path(sys.argv[1]) / platform).glob("*.whl")
    programs = [name for name in ZipFile(wheel).namelist() if name.rpartition("/")[2] == "perf_analyzer"]
    found[platform] = (wheel.name.split("-")[1], bool(programs))
print(f"release and whether it holds the program: {found}")
assert list(found.values()) == [("0.1.0", False), ("2.60.0", True)], "changed: it was 0.1.0 without and 2.60.0 with it"
PROGRAM
