"""The console of `fewshard serve`, as a user starts it: Ray, HAProxy and bundled models."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from fewshard_serve.rayserve.environment import free_ports

pytestmark = pytest.mark.server

START_TIMEOUT_S = 150
MODELS = ("sst2-dense", "sst2-moe", "cifar10-dense")


@pytest.fixture(scope="module")
def served_url(browser, tmp_path_factory):
    (port,) = free_ports(1)
    log = tmp_path_factory.mktemp("console") / "serve.log"
    config = log.with_name("fewshard.yaml")
    models = [f"  - {{name: {name}, path: 'zoo:{name}'}}" for name in MODELS]
    config.write_text("\n".join(["models:", *models, f"server: {{port: {port}, grpc_port: 0}}"]))
    command = [str(Path(sys.executable).with_name("fewshard")), "serve", str(config)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while not _is_ready(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_at, log.read_text()
            time.sleep(0.2)
        yield url
        process.terminate()
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v2/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_a_text_and_an_image_are_compared(served_url, open_page):
    from playwright.sync_api import expect

    expect.set_options(timeout=20_000)
    page = open_page(served_url)
    expect(page.locator(".example").first).to_be_visible()
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"first contentful paint after {paint:.0f} ms")
    assert paint < 1000
    page.fill("#text", "a fine film")
    page.press("#text", "Enter")
    expect(page.locator(".card[data-state=answered]")).to_have_count(2)
    expect(page.locator(".routes li")).to_have_count(3)
    expect(page.locator(".tile").first.locator("strong")).to_have_text(re.compile(r"^[0-9.]*[1-9]"))
    page.get_by_text("Image", exact=True).click()
    page.locator(".picture").first.click()
    expect(page.locator(".card[data-state=answered]")).to_have_count(1)
    weighed = Path(__file__).parents[3] / "serve/fewshard_serve/console"
    assert sum(file.stat().st_size for file in weighed.iterdir()) < 300_000
