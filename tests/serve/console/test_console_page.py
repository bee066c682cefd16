"""The console in a real browser over real models: compare, drop, watch, and every way it can go wrong."""

import base64
import re
import threading

import httpx
import pytest

from fewshard_serve.auth import hash_of
from fewshard_serve.engine.settings import AdmissionSettings, EngineSettings
from fewshard_serve.protocol.limits import Limits

TEXT = "An unexpectedly moving story, told with wit and without a single false note."
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
DROP = """([data, type, name]) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragover", "drop"]) {
    document.getElementById("dropzone").dispatchEvent(
      new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
  }
}"""

PRICES = """fewshard_cost_usd_total{model="sst2-moe"} 0.25
fewshard_energy_joules_total{model="sst2-moe",method="modelled"} 0.01
"""


@pytest.fixture(scope="module")
def zoo(serve, zoo_models):
    return serve(zoo_models, prices=PRICES)


@pytest.fixture
def expect(browser):
    from playwright.sync_api import expect

    expect.set_options(timeout=20_000)
    return expect


def compare(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")


def drop(page, data, kind="image/png", name="cat.png"):
    page.evaluate(DROP, [base64.b64encode(data).decode(), kind, name])


def test_first_paint_weight_and_policy(zoo, open_page, expect):
    page = open_page(zoo.url)
    expect(page.locator("#models tbody tr")).to_have_count(3)
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"first contentful paint after {paint:.0f} ms")
    assert paint < 1000
    assert all(url.startswith(zoo.url) for url in page.requested)
    own = [url for url in dict.fromkeys(page.requested) if re.search(r"/(console/.*)?$|\.(js|css|svg)$", url)]
    weight = sum(len(httpx.get(url).content) for url in own)
    print(f"{weight} bytes in {len(own)} files")
    assert weight < 300_000
    page.evaluate("document.body.insertAdjacentElement('beforeend', document.createElement('p'))")
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>no</b>'")
    page.faults.clear()


def test_texts_are_compared_and_their_tokens_told(zoo, open_page, expect):
    page = open_page(zoo.url)
    expect(page.locator(".example").first).to_be_visible()
    compare(page, TEXT)
    expect(page.locator(".card[data-state=answered]")).to_have_count(2)
    for name in ("sst2-dense", "sst2-moe"):
        card = page.locator(f".card[aria-label={name}]")
        expect(card.locator(".best strong")).to_have_text("positive")
        expect(card.locator(".times")).to_contain_text("round trip")
        expect(card.locator(".stages")).to_contain_text(re.compile("queue.*preprocess.*infer"))
    expect(page.locator("#summary")).to_contain_text("Both models say “positive”")
    expect(page.locator(".mark[data-mark=good]")).to_have_count(1)
    expect(page.locator(".routes li")).to_have_count(3)
    told = httpx.post(
        f"{zoo.url}/v2/models/sst2-moe/classify", json={"inputs": TEXT, "routing": True}
    ).json()["routing"][0]
    first = page.locator(".routes li").first.locator(".token")
    expect(first).to_have_count(len(told["tokens"]))
    shown = [int(each) for each in first.locator("sub").all_text_contents()]
    assert shown == [chosen[0] for chosen in told["experts"][0]]


def test_the_numbers_live(zoo, open_page, expect):
    page = open_page(zoo.url)
    rows = page.locator("#experts-about")
    expect(rows).to_contain_text("sst2-moe")
    expect(page.locator(".heat tbody tr")).to_have_count(3)
    expect(page.locator(".heat tbody tr").first.locator(".cell")).to_have_count(4)
    for _ in range(3):
        compare(page, TEXT)
        expect(page.locator(".card[data-state=answered]")).to_have_count(2)
    throughput = page.locator(".tile").first.locator("strong")
    expect(throughput).to_have_text(re.compile(r"^[0-9.]*[1-9]"))
    expect(page.locator(".tile").nth(1)).to_contain_text("ms median")
    expect(page.locator(".tile").nth(3)).to_contain_text("$0.250since start".replace("since", " since"))
    expect(page.locator("#models tbody tr").nth(1).locator("td").nth(7)).to_contain_text("ms")
    compare(page, TEXT)
    expect(page.locator(".card[aria-label=sst2-moe] .facts")).to_contain_text("$")
    expect(page.locator(".card[aria-label=sst2-moe] .facts")).to_contain_text(
        re.compile(r"Energy a million[0-9.]+ (J|Wh), modelled")
    )
    expect(page.locator(".card[aria-label=sst2-dense] .facts")).to_contain_text("no price set")
    expect(page.locator(".card[aria-label=sst2-dense] .facts")).not_to_contain_text("Energy")


def test_answers_follow_typing_and_models_can_be_left_out(zoo, open_page, expect):
    page = open_page(zoo.url)
    page.get_by_text("As I type").click()
    page.locator("#text").press_sequentially("a fine film")
    expect(page.locator(".card[data-state=answered]")).to_have_count(2)
    page.locator(".chip-box").first.click()
    page.locator("#text").press_sequentially("!")
    expect(page.locator(".card")).to_have_count(1)
    page.fill("#text", "")
    expect(page.locator(".card")).to_have_count(0)


def test_an_image_is_dropped_and_what_is_none_is_refused(zoo, open_page, expect):
    page = open_page(zoo.url)
    expect(page.locator(".example").first).to_be_visible()
    drop(page, PNG)
    expect(page.locator(".card[data-state=answered]")).to_have_count(1)
    expect(page.locator("#preview")).to_be_visible()
    expect(page.locator(".bars li")).to_have_count(5)
    drop(page, b"plain words", "text/plain", "<b>notes.txt")
    expect(page.locator("#summary")).to_have_text("“<b>notes.txt” is not an image.")
    drop(page, b"no picture at all")
    expect(page.locator(".card[data-state=failed]")).to_contain_text("Cannot be used")
    page.locator(".picture").first.click()
    expect(page.locator(".card[data-state=answered]")).to_have_count(1)


def test_an_image_over_the_limit_is_not_sent(serve, zoo_models, open_page, expect):
    page = open_page(serve(zoo_models[2:], limits=Limits(max_body_bytes=50_000)).url)
    expect(page.locator(".picture").first).to_be_visible()
    drop(page, PNG + bytes(60_000))
    expect(page.locator("#summary")).to_contain_text(
        "The image has 58.7 KiB; this server takes at most 48.8 KiB"
    )
    assert not any("classify" in url for url in page.requested)


def test_a_label_of_html_is_shown_and_ten_thousand_labels_fit(serve, labels_model, evil, open_page, expect):
    page = open_page(serve([labels_model("many", 10_000)]).url)
    expect(page.locator("#send")).to_be_enabled()
    compare(page, f"{evil}<script>document.title = 'run'</script>")
    card = page.locator(".card[data-state=answered]")
    expect(card.locator(".best strong")).to_have_text(evil)
    expect(card).to_contain_text("and 9,995 other labels")
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == "Fewshard console"


def test_shards_and_their_experts_are_shown(serve, sharded_model, open_page, expect):
    page = open_page(serve([sharded_model("sharded", 2, "moe")]).url)
    expect(page.locator("#send")).to_be_enabled()
    compare(page, "a")
    expect(page.locator(".shard")).to_have_count(2)
    expect(page.locator(".shard").first).to_contain_text("65 % of the work")
    expect(page.locator(".shard").first.locator("dd").first).to_have_text("012")
    expect(page.locator(".heat .dead")).to_have_count(1)
    expect(page.locator("#experts-body")).to_contain_text(
        "2 of 2 shards at work, generation 3, 4 experts moved"
    )


def test_a_busy_server_says_when_to_come_back(serve, labels_model, open_page, expect):
    model = labels_model("busy", 2)
    settings = EngineSettings(admission=AdmissionSettings(min_items=1, max_items=1))
    server = serve([model], settings=settings)
    page = open_page(server.url)
    expect(page.locator("#send")).to_be_enabled()
    model.gate.clear()
    url, body = f"{server.url}/v2/models/busy/classify", {"inputs": "first"}
    first = threading.Thread(target=lambda: httpx.post(url, json=body, timeout=30))
    first.start()
    assert model.is_running.wait(30)
    compare(page, "second")
    card = page.locator(".card[data-state=failed]")
    expect(card).to_contain_text("Busy")
    expect(card.locator("button")).to_have_text(re.compile(r"Try again in \d+ s"))
    model.gate.set()
    first.join()
    expect(card.locator("button")).to_be_enabled()
    card.locator("button").click()
    expect(page.locator(".card[data-state=answered]")).to_have_count(1)


def test_a_token_is_asked_for_and_kept_in_the_tab_alone(serve, zoo_models, open_page, expect, tmp_path):
    path = tmp_path / "tokens.yaml"
    sha = hash_of("app-secret").hex()
    path.write_text(f"tokens:\n  - {{name: app, sha256: {sha}, scopes: [predict]}}\n")
    page = open_page(serve(zoo_models[:1], tokens_file=str(path)).url)
    dialog = page.locator("#token-dialog")
    expect(dialog).to_be_visible()
    page.fill("#token-value", "wrong")
    page.press("#token-value", "Enter")
    expect(page.locator("#token-wrong")).to_have_text("The server does not know this token.")
    page.fill("#token-value", "app-secret")
    page.press("#token-value", "Enter")
    expect(dialog).to_be_hidden()
    compare(page, TEXT)
    expect(page.locator(".card[data-state=answered]")).to_have_count(1)
    kept = "[JSON.stringify(localStorage), document.cookie, sessionStorage.getItem('fewshard-token')]"
    assert page.evaluate(kept) == ["{}", "", "app-secret"]
    page.get_by_role("button", name="Forget token").click()
    expect(dialog).to_be_visible()
    page.press("#token-value", "Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Give a token")).to_be_visible()


def test_a_server_that_goes_is_missed_and_found_again(serve, labels_model, open_page, expect):
    server = serve([labels_model("m", 2)])
    page = open_page(server.url)
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator("#send")).to_be_enabled()
    server.stop()
    banner = page.locator("#banner")
    expect(banner).to_contain_text(re.compile(r"The server does not answer. Trying again in \d+ s."))
    expect(page.locator("#connection")).to_have_text("server gone")
    compare(page, "a")
    expect(page.locator(".card[data-state=failed]")).to_contain_text("The server is gone")
    server.start()
    expect(page.locator("#connection")).to_have_text("live")
    expect(banner).to_have_text("The server is back.")
    page.locator(".card[data-state=failed] button").click()
    expect(page.locator(".card[data-state=answered]")).to_have_count(1)


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_switched(zoo, open_page, expect, system):
    page = open_page(zoo.url, color_scheme=system)
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(245, 246, 249)", "rgb(14, 17, 23)"
    assert page.evaluate(paper) == (light if system == "light" else dark)
    page.locator("#theme").click()
    assert page.evaluate(paper) == (dark if system == "light" else light)
    page.reload()
    assert page.evaluate(paper) == (dark if system == "light" else light)


def test_a_phone_and_a_keyboard_are_enough(zoo, open_page, expect):
    page = open_page(zoo.url, viewport={"width": 360, "height": 740})
    expect(page.locator(".example").first).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "text":
            break
    page.keyboard.type("a fine film")
    page.keyboard.press("Enter")
    expect(page.locator(".card[data-state=answered]")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    unnamed = """[...document.querySelectorAll("button, input, textarea, select, img")].filter((node) =>
      !(node.getAttribute("aria-label") || node.textContent.trim() || node.labels?.length
        || node.hasAttribute("alt") || node.querySelector("img[alt]"))).map((node) => node.outerHTML)"""
    assert page.evaluate(unnamed) == []
