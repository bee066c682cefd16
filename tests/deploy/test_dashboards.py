"""The dashboards are those of their source, and ask for metrics that there are."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fewshard_serve.metrics import FAMILIES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/grafana"


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build_dashboards", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_dashboards"] = module
    spec.loader.exec_module(module)
    return module


def queries():
    boards = [json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))]
    return [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]


def test_the_files_are_those_of_the_source(build):
    found = {path.name: path.read_text() for path in (FOLDER / "dashboards").iterdir()}
    assert found == build.files(), "run python deploy/grafana/build.py"


def test_panels_lie_side_by_side_and_ids_differ(build):
    for text in build.files().values():
        board = json.loads(text)
        places = [panel["gridPos"] for panel in board["panels"]]
        assert len({(place["x"], place["y"]) for place in places}) == len(places)
        assert all(place["x"] + place["w"] <= 24 for place in places)
        assert len({panel["id"] for panel in board["panels"]}) == len(places)


def test_every_metric_but_a_few_is_on_a_dashboard():
    """And none that does not exist."""
    used = set(re.findall(r"fewshard_[a-z_]+", " ".join(queries())))
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    names = {family.name for family in FAMILIES}
    assert bare <= names
    assert names - bare == set()


def test_every_query_can_be_parsed(tmp_path):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    rules = [
        {"record": f"q:{at}", "expr": one.replace("$model", ".*").replace("$__rate_interval", "1m")}
        for at, one in enumerate(queries())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
