"""A recipe killed with -9 in any phase and started again ends with the card of an uninterrupted run.

Each run is a process of its own; the test waits until a phase's state is on disk, kills, and starts again.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from fewshard_models.recipes import fit
from fewshard_models.recipes.registry import train
from fewshard_models.recipes.workspace import Workspace
name, run_dir, init = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
update = fit._Run.update
def update_and_save(self, loss):
    update(self, loss)
    self.save()
    print("saved", self.file.parent.name, self.step, flush=True)
fit._Run.update = update_and_save
work = Workspace(run_dir, init=Path(init) if init else None, limit=96, epochs=2)
train(name, work, run_dir / "out")
"""


def start(name: str, run_dir: Path, init: Path | None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, name, str(run_dir), str(init or "")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def card_of(run_dir: Path) -> dict:
    card = json.loads((run_dir / "out" / "card.json").read_text())
    del card["commit"]
    return card


def kill_at(process: subprocess.Popen[str], phase: str, step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[:3] == ["saved", phase, str(step)]:
            # Some time on, so that the kill falls between two saves or into one.
            time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL, f"it ended before {phase}, step {step}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "phases"),
    [
        ("tiny/sst2-moe", ["sst2-teacher-0", "sst2-dense", "sst2-moe"]),
        ("tiny/cifar10-dense", ["cifar10-dense"]),
    ],
)
def test_a_killed_recipe_ends_as_if_it_had_not_been(name, phases, data, small_encoder, tmp_path):
    init = small_encoder if "sst2" in name else None
    whole = start(name, tmp_path / "whole", init)
    whole.communicate()
    assert whole.returncode == 0
    for phase in phases:
        for step in (1, 2):
            kill_at(start(name, tmp_path / "cut", init), phase, step)
    end = start(name, tmp_path / "cut", init)
    end.communicate()
    assert end.returncode == 0
    assert card_of(tmp_path / "cut") == card_of(tmp_path / "whole")
