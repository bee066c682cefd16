#!/usr/bin/env bash
# pytest-xdist 3.8.0 with pytest 9.2.0: `--dist loadgroup` keeps no group together, and says nothing.
#
# A good engineer expects: tests marked `xdist_group("one")` run in one worker (that is all the option is for).
# What happens: xdist appends the group to the private attribute `Item._nodeid`; pytest 9.2 no longer reads it,
# so the scheduler sees names without a group and deals the tests out one by one. No warning, no error: a
# session fixture that was to be made once for the group is made once in every worker.
# Seen: two workers for the four tests of one group. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pytest==9.2.0 pytest-xdist==3.8.0
cat >"$folder/test_group.py" <<'TEST'
import os
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(4))
def test_one(number):
    time.sleep(0.5)  # long enough for the other worker to take one
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
TEST
export SEEN="$folder/seen"
"$folder/venv/bin/pytest" -q -p no:cacheprovider -n 2 --dist loadgroup "$folder/test_group.py"
workers=$(sort -u "$SEEN" | wc -l)
echo "pytest 9.2.0, pytest-xdist 3.8.0, loadgroup: the four tests of one group ran in $workers workers"
[ "$workers" -eq 2 ] || { echo "changed: it was 2"; exit 1; }
