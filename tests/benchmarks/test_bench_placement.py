"""The planner's benchmark runs, and its figures are those of the promises."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_short_run_gives_every_figure(tmp_path):
    out = tmp_path / "placement.json"
    command = [sys.executable, ROOT / "benchmarks/placement.py", "--loads", "20", "--drifts", "3"]
    done = subprocess.run(
        [*command, "--scale-layers", "1", "--out", out], capture_output=True, text=True, check=True
    )
    found = json.loads(out.read_text())
    assert found["scratch"]["worse_than_rule"] == 0
    assert 0 <= found["scratch"]["ours"]["median"] < 0.01
    assert [each["worse_than_rule"] for each in found["drift"]] == [0] * 6
    assert all(each["moves_bound"] <= each["moves"] < each["rule_moves"] for each in found["drift"])
    assert "1,024 shards" in done.stdout
