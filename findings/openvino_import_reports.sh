#!/bin/bash
# OpenVINO 2026.4.1: `import openvino` alone, without converting anything, writes a client identifier below the home
# directory and prepares to report the import to a server on the Internet. Nothing asks for consent first: the dialog
# that the telemetry package has is switched off by the importer, and a missing answer counts as yes.
# One would guess that importing a runtime library leaves no trace, and that a package named telemetry asks.
# Seen: $HOME/intel/openvino_ga_cid after the import; nothing of it where `openvino_telemetry` cannot be imported.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 openvino-telemetry==2025.2.0

import_with() { # HOME, what to run first
    mkdir -p "$1"
    env -u CI HOME="$1" timeout 120 "$work/venv/bin/python" -c "$2
import openvino
print(openvino.__version__)"
    find "$1" -type f -printf '  %P\n'
}

echo "import openvino:"
import_with "$work/plain" "" | tee "$work/plain.txt"
echo "the same, with openvino_telemetry hidden:"
import_with "$work/hidden" "import sys; sys.modules['openvino_telemetry'] = None" | tee "$work/hidden.txt"
grep -q 'intel/openvino_ga_cid' "$work/plain.txt"
! grep -q 'intel' "$work/hidden.txt"
"$work/venv/bin/python" - <<'PYTHON'
import inspect
import openvino.tools.ovc.telemetry_utils as utils

source = inspect.getsource(utils.init_ovc_telemetry)
assert "enable_opt_in_dialog=False" in source, source
print("the importer switches the dialog off: enable_opt_in_dialog=False")
PYTHON
echo OK
