"""How the tests are shared out among workers: a file stays together, and all real servers have one worker."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
WORKER = """
import os, time, pytest
@pytest.mark.parametrize("number", range(4))
{mark}
def test_it(number):
    time.sleep(0.05)
    with open(os.environ["SEEN"], "a") as file:
        print(__name__, os.environ["PYTEST_XDIST_WORKER"], os.environ["OMP_NUM_THREADS"], file=file)
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """File, worker and threads of each test, in their order; of files a to d, b and d have servers."""
    folder = tmp_path_factory.mktemp("workers")
    shutil.copy(TESTS / "conftest.py", folder)
    for name in "abcd":
        mark = "@pytest.mark.server" if name in "bd" else ""
        (folder / f"test_{name}.py").write_text(WORKER.format(mark=mark))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = server: x\n")
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:schemathesis"],
        cwd=folder,
        env={**keep, "SEEN": str(folder / "seen")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return [line.split() for line in (folder / "seen").read_text().splitlines()]


def test_each_file_has_one_worker(seen: list[list[str]]) -> None:
    assert len(seen) == 16
    assert len({(file, worker) for file, worker, _ in seen}) == 4


def test_those_with_servers_come_first_and_one_after_the_other(seen: list[list[str]]) -> None:
    (worker,) = {worker for file, worker, _ in seen if file[-1] in "bd"}
    assert [file[-1] for file, at, _ in seen if at == worker][:8] == list("bbbbdddd")
    assert {file[-1] for file, at, _ in seen if at != worker} == set("ac")


def test_a_worker_has_one_thread(seen: list[list[str]]) -> None:
    assert {threads for *_, threads in seen} == {"1"}
