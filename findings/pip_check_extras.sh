#!/usr/bin/env bash
# pip 26.3: `pip check` finds nothing wrong where a requirement of an extra that is in use is broken.
#
# A good engineer expects: after `pip install "tritonclient[grpc]"`, whose extra wants protobuf below 7, an environment
# with protobuf 7 fails `pip check`, as it would for a plain requirement.
# What happens: installed metadata does not record which extras were asked for, so `pip check` evaluates every
# requirement with no extra at all and passes over those. A lock file installed with --no-deps stays contradictory
# unseen; only a resolver run (`pip install --dry-run "tritonclient[grpc]" protobuf==7…`) says so.
# Seen: "No broken requirements found." The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet pip==26.3
"${pip[@]}" install --quiet "tritonclient[grpc]==2.73.0"
"${pip[@]}" install --quiet --no-deps protobuf==7.36.2
wanted=$("$folder/venv/bin/python" -c '
from importlib.metadata import requires
print([line for line in requires("tritonclient") if "protobuf" in line and "grpc" in line][0])')
said=$("${pip[@]}" check)
echo "tritonclient 2.73.0 says: $wanted"
echo "installed: protobuf 7.36.2; pip check says: $said"
[ "$said" = "No broken requirements found." ] || { echo "changed"; exit 1; }
