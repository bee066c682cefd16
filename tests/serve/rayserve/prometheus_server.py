"""A real Prometheus on a free port, for tests that ask what it has scraped."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml

from fewshard_serve.rayserve.environment import free_ports

DEPLOY = Path(__file__).parents[3] / "deploy/prometheus"
START_S = 60


class Prometheus:
    """Scrapes each second as deploy/prometheus/prometheus.yml says, but where that names another server."""

    def __init__(self, folder, scrape):
        if shutil.which("prometheus") is None:
            pytest.skip("prometheus is not installed (Debian: prometheus)")
        config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
        del config["alerting"]
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(DEPLOY / "rules.yml")]
        (job,) = config["scrape_configs"]
        config["scrape_configs"] = [{"job_name": job["job_name"], **scrape}]
        (folder / "prometheus.yml").write_text(json.dumps(config))
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_until(self, query):
        """Until the query has an answer that is not 0."""
        give_up_at = time.monotonic() + START_S
        while time.monotonic() < give_up_at:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if any(value for _, value in self.query(query)):
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.3)
        raise AssertionError(f"nothing for {query}: {self.log.read_text()[-2000:]}")

    def query(self, query):
        """Labels and value of each series of the answer; an error of PromQL fails the test."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=10)
        if answer.status_code == 503:
            return []  # it is starting
        assert answer.status_code == 200, f"{query}: {answer.text}"
        result = answer.json()["data"]["result"]
        if isinstance(result, list) and result and isinstance(result[0], list | float | int):
            return [({}, float(result[1]))]
        return [(one["metric"], float(one["value"][1])) for one in result]

    def value(self, query):
        """The one number that a query answers; 0 where it has no series."""
        found = self.query(query)
        assert len(found) <= 1, f"{query}: {found}"
        return found[0][1] if found else 0.0

    def close(self):
        self.process.terminate()
        self.process.wait(20)
