"""Peak memory of one model at one batch, measured in a separate process; `assessment` starts it.

In a process that has run other models, freed memory would hide what a model needs.
"""

import json
import subprocess
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_bytes(directory: Path, dtype: str, batch: int) -> int | None:
    """Return the peak above a process that has only loaded the libraries and the batch; None without /proc.

    It includes weights, the copies made for inference, and the memory of the forward pass.
    """
    if not _STATUS.is_file():
        return None
    command = [sys.executable, "-m", "fewshard_models.evaluation.memory", str(directory), dtype, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    found: int = json.loads(done.stdout)
    return found


def _resident(field: str) -> int:
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":")]
    return int(line.split()[1]) * 1024


def main(directory: str, dtype: str, batch: str) -> None:
    """Print the peak in bytes."""
    from fewshard_models.classifier.load import load, task_of
    from fewshard_models.evaluation.tasks import held_out

    inputs = list(held_out(task_of(Path(directory)), int(batch)).inputs)
    before = _resident("VmRSS")
    loaded = load(directory, "cpu", dtype)
    items = loaded.prepare([loaded.preprocessor.to_input(each) for each in inputs])
    # Loading briefly holds both the file and the cast copy. Reset the peak to measure serving.
    _CLEAR_REFS.write_text(_RESET_PEAK)
    for _ in range(2):
        loaded.run(items)
    print(json.dumps(_resident("VmHWM") - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
