"""The page at `/docs` in a real browser: every endpoint is there and can be tried out under its policy."""

import json

import pytest

from fewshard_serve.auth import hash_of
from fewshard_serve.http.routes import ROUTES

CLASSIFY = "#operations-default-post_v2_models_model_classify"


@pytest.fixture(scope="module")
def served(serve, labels_model):
    return serve([labels_model("lengths", 3)])


@pytest.fixture
def expect(browser):
    from playwright.sync_api import expect

    expect.set_options(timeout=20_000)
    return expect


def try_out(page, at, expect):
    """Send the example as it stands; the status that the page shows."""
    block = page.locator(at)
    block.locator(".opblock-summary-control").click()
    block.get_by_text("Try it out").click()
    block.get_by_role("button", name="Execute").click()
    shown = block.locator(".live-responses-table .response .response-col_status")
    expect(shown).to_be_visible()
    return block, shown.inner_text().split()[0]


def test_every_endpoint_is_shown_and_nothing_is_fetched_from_elsewhere(served, open_page, expect):
    page = open_page(f"{served.url}/docs")
    documented = {(route.method, route.path) for route in ROUTES if route.summary}
    expect(page.locator(".opblock")).to_have_count(len(documented))
    shown = page.locator(".opblock-summary").all()
    found = {
        (
            one.locator(".opblock-summary-method").inner_text(),
            one.locator(".opblock-summary-path").inner_text(),
        )
        for one in shown
    }
    assert {(method, path.replace("\u200b", "")) for method, path in found} == documented
    assert all(url.startswith(served.url) for url in page.requested)


def test_an_example_can_be_sent_as_it_stands(served, open_page, expect):
    page = open_page(f"{served.url}/docs")
    block, status = try_out(page, CLASSIFY, expect)
    assert status == "200"
    body = block.locator(".live-responses-table .highlight-code").first.inner_text()
    assert json.loads(body[body.index("{") :])["model"] == "lengths"
    assert page.title() == "Fewshard API", "a label that is HTML is shown, not run"
    _, status = try_out(page, "#operations-default-post_classify", expect)
    assert status == "200", "the model's name is filled in there, too"


def test_a_token_is_sent_once_it_is_given(serve, labels_model, open_page, expect, tmp_path):
    file = tmp_path / "tokens.yaml"
    file.write_text(f"tokens: [{{name: app, sha256: {hash_of('s3cret').hex()}, scopes: [predict]}}]")
    guarded = serve([labels_model("lengths", 3)], tokens_file=str(file))
    page = open_page(f"{guarded.url}/docs")
    page.get_by_role("button", name="Authorize").first.click()
    page.get_by_label("auth-bearer-value").fill("s3cret")
    page.get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close").first.click()
    block = page.locator(CLASSIFY)
    block.locator(".opblock-summary-control").click()
    block.get_by_text("Try it out").click()
    block.get_by_placeholder("model").fill("lengths")
    block.get_by_role("button", name="Execute").click()
    expect(block.locator(".live-responses-table .response .response-col_status")).to_contain_text("200")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_system(served, open_page, expect, scheme):
    page = open_page(f"{served.url}/docs", color_scheme=scheme)
    expect(page.locator(".opblock").first).to_be_visible()
    luminance = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
    )
    assert (max(luminance) < 60) == (scheme == "dark")
