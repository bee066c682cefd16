"""The image's and compose's files, as far as they can be checked without a Docker daemon.

`deploy/build.sh` builds the image and asks it for a prediction.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fewshard_serve.config_file import load_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
TOOLS = Path(sys.executable).parent


def test_hadolint_has_no_complaint():
    done = subprocess.run(
        [TOOLS / "hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_as_a_numeric_user_and_holds_what_probes_call():
    text = (DEPLOY / "Dockerfile").read_text()
    (user,) = re.findall(r"^USER (.*)$", text, re.MULTILINE)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert "no-install-recommends bash ca-certificates grep wget" in text
    assert "ARG BASE=" in text


def test_the_image_gets_every_room_and_no_more():
    """What .dockerignore lets through is what the wheel is made of."""
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    rooms = {"core", "kernels", "models", "serve", "loadtest"}
    assert let_through == rooms | {"LICENSE", "README.md", "pyproject.toml", "requirements.lock"}


def compose_check(path):
    command = [TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_compose_fits_its_schema(tmp_path):
    assert compose_check(DEPLOY / "compose.yaml").returncode == 0
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DEPLOY / "compose.yaml").read_text().replace("shm_size", "shmsize"))
    assert "shmsize" in compose_check(wrong).stdout


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_services_are_bound_to_the_loopback_and_hold_no_privileges(name):
    service = COMPOSE["services"][name]
    for port in service["ports"]:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)
        assert not port.endswith((":8265", ":10001"))
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


def test_what_compose_mounts_is_there():
    mounts = [mount for service in COMPOSE["services"].values() for mount in service.get("volumes", ())]
    here = {mount.split(":")[0] for mount in mounts if mount.startswith(".")}
    assert len(here) >= 6
    assert {path for path in here if not (DEPLOY / path).exists()} == set()


def test_what_compose_serves_can_be_loaded():
    assert load_config(DEPLOY / "compose/fewshard.yaml").models
    assert COMPOSE["services"]["server"]["shm_size"] == "1gb"


def test_prometheus_takes_its_configuration(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(
        [promtool, "check", "config", "--syntax-only", DEPLOY / "compose/prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_scrapes_the_server_once():
    config = yaml.safe_load((DEPLOY / "compose/prometheus.yml").read_text())
    targets = [
        one for job in config["scrape_configs"] for part in job["static_configs"] for one in part["targets"]
    ]
    assert targets == ["server:8000"]
    assert "server" in COMPOSE["services"]
