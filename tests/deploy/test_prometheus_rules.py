"""Rules, alerts and example configurations, checked by Prometheus' own tools."""

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/prometheus"


def tool(name, *arguments):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed (Debian: prometheus, prometheus-alertmanager)")
    done = subprocess.run([name, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts():
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def test_rules_and_configurations_are_valid():
    tool("promtool", "check", "rules", "rules.yml")
    tool("promtool", "check", "config", "prometheus.yml")


def test_the_alertmanager_example_is_valid():
    tool("amtool", "check-config", "alertmanager.yml")


def test_the_alerts_fire_and_are_silent_as_their_tests_say():
    tool("promtool", "test", "rules", "rules_test.yml")


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent():
    seen = defaultdict(set)
    for case in yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]:
        for check in case["alert_rule_test"]:
            seen[check["alertname"]].add(bool(check["exp_alerts"]))
    assert dict(seen) == {name: {True, False} for name in alerts()}


@pytest.mark.parametrize("name", alerts())
def test_every_alert_says_what_is_wrong_and_what_to_do(name):
    rule = alerts()[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor == name.lower()
    assert name in headings


def test_recording_rules_are_used_by_no_other_name():
    """A rule or alert that reads `fewshard:…` reads what another rule records."""
    text = (FOLDER / "rules.yml").read_text()
    recorded = set(re.findall(r"record: (\S+)", text))
    assert set(re.findall(r"fewshard:[a-z_]+:[a-z0-9_]+", text)) == recorded
