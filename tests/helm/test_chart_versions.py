"""Versions are written in the chart, the image and compose too; they agree with the package and the lock."""

import re
from pathlib import Path

import yaml

import fewshard_serve
from chart_render import CHART

ROOT = Path(__file__).parents[2]
VERSION = fewshard_serve.__version__


def test_the_chart_installs_this_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


def test_the_image_and_compose_are_of_this_version():
    assert f"ARG VERSION={VERSION}\n" in (ROOT / "deploy/Dockerfile").read_text()
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    assert compose["services"]["server"]["image"] == f"fewshard:{VERSION}"


def test_ray_and_locust_are_those_of_the_lock():
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
    assert yaml.safe_load((CHART / "values.yaml").read_text())["rayVersion"] == lock["ray"]
    (locust,) = re.findall(r"locustio/locust:(\S+)", (ROOT / "deploy/compose.yaml").read_text())
    assert locust == lock["locust"]
