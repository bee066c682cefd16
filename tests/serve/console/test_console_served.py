"""The console of `fewshard serve`, as a user starts it: Ray, HAProxy and bundled models."""

import re
from pathlib import Path

import pytest

from fewshard_models.checkpoint import ZOO

pytestmark = pytest.mark.server

NUM_TEXT_MODELS = len(list(ZOO.glob("sst2-*")))
NUM_IMAGE_MODELS = len(list(ZOO.glob("cifar10-*")))


def test_a_text_and_an_image_are_compared(zoo_url, open_page):
    from playwright.sync_api import expect

    expect.set_options(timeout=20_000)
    page = open_page(zoo_url)
    expect(page.locator(".example").first).to_be_visible()
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"first contentful paint after {paint:.0f} ms")
    assert paint < 1000
    page.fill("#text", "a fine film")
    page.press("#text", "Enter")
    expect(page.locator(".card[data-state=answered]")).to_have_count(NUM_TEXT_MODELS)
    expect(page.locator(".routes li")).to_have_count(3)
    expect(page.locator(".tile").first.locator("strong")).to_have_text(re.compile(r"^[0-9.]*[1-9]"))
    page.get_by_text("Image", exact=True).click()
    page.locator(".picture").first.click()
    expect(page.locator(".card[data-state=answered]")).to_have_count(NUM_IMAGE_MODELS)
    assert min(NUM_TEXT_MODELS, NUM_IMAGE_MODELS) > 1
    weighed = Path(__file__).parents[3] / "serve/fewshard_serve/console"
    assert sum(file.stat().st_size for file in weighed.iterdir()) < 300_000
