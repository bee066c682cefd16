"""The report's page and its charts, of a load test that is made up."""

import json
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fewshard_loadtest.commands import main
from fewshard_loadtest.report.charts import every_chart, middle_of
from fewshard_loadtest.report.figures import Figures, figures_of
from fewshard_loadtest.report.latency import Point
from fewshard_loadtest.report.output import write_report
from fewshard_loadtest.report.page import page
from fewshard_loadtest.report.svg import HEIGHT, Look, Name, number, scale, spread, svg, write_names
from fewshard_loadtest.results_store import Run

SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Made:
    """A load test's folder, what its report says, and the page."""

    folder: Path
    run: Run
    figures: Figures
    html: str


@pytest.fixture(scope="module")
def made(make_run: Callable[[Path], Run], tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    run = make_run(folder)
    figures = figures_of(run, folder)
    return Made(folder, run, figures, page(figures))


def drawings(html: str) -> dict[str, ET.Element]:
    """Each `<svg>` of a page by its label."""
    found = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    return {root.attrib["aria-label"]: root for root in found}


def words_in(root: ET.Element) -> list[str]:
    return [str(text.text) for text in root.iter(f"{SVG}text")]


def test_the_page_holds_every_chart_as_words_and_lines(made: Made) -> None:
    drawn = drawings(made.html)
    assert set(drawn) == {
        *(
            f"{title} ({task})"
            for title in (
                "Latency against load",
                "Who waits how long at the sustained rate",
                "Accuracy against cost",
            )
            for task in ("text", "image")
        ),
        "Experts of sst2-moe during the run",
        "In the course of time: spike, latency",
        "In the course of time: spike, load",
    }
    curve = words_in(drawn["Latency against load (text)"])
    assert {"sst2-dense", "sst2-moe", "SLO 150 ms", "p99 latency, ms"} <= set(curve)
    assert "cifar10-dst" not in curve
    assert {"100 %", "0.1 %"} <= set(words_in(drawn["Who waits how long at the sustained rate (text)"]))
    assert "USD a million predictions" in words_in(drawn["Accuracy against cost (image)"])
    assert words_in(drawn["Experts of sst2-moe during the run"]) == [
        *("layer 0", "layer 1"),
        *("30", "60", "10", "33", "33", "34"),
    ]


def test_nothing_is_drawn_outside_its_chart(made: Made) -> None:
    for root in drawings(made.html).values():
        width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
        assert words_in(root)
        for text in root.iter(f"{SVG}text"):
            assert 0 <= float(text.attrib["x"]) < width
            assert 0 <= float(text.attrib["y"]) <= height


def test_ids_of_a_page_are_unique_and_lead_somewhere(made: Made) -> None:
    ids = re.findall(r' id="([^"]+)"', made.html)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', made.html)
    assert used
    assert {first or second for first, second in used} <= set(ids)


def test_the_page_fetches_nothing_and_runs_nothing(made: Made) -> None:
    assert "http" not in made.html.replace("http://www.w3.org/2000/svg", "").replace("HTTP 429", "")
    assert "<script" not in made.html
    assert "<metadata" not in made.html


def test_the_same_run_gives_the_same_page(made: Made) -> None:
    assert page(figures_of(made.run, made.folder)) == made.html


def test_what_others_named_is_escaped(made: Made) -> None:
    assert "2 cores of a &lt;CPU&gt;." in made.html
    scenario = {**made.run.scenario, "name": "<b>'&", "models": ["<i>"]}
    partial = replace(made.figures, run=replace(made.run, scenario=scenario, partial="</p><b>"))
    html = page(partial)
    assert "<b>" not in html
    assert "<i>" not in html
    assert "<h1>What a prediction costs: &lt;b&gt;&#39;&amp;</h1>" in html
    assert '<p class="partial">Partial: &lt;/p&gt;&lt;b&gt;.</p>' in html


def test_tables_and_verdicts_stand_on_the_page(made: Made) -> None:
    for title in ("Load and cost", "Table II, measured", "Accuracy by class", "How it was measured"):
        assert f"<h2>{title}</h2>" in made.html
    assert '<p class="verdict">sst2-moe serves 2.0x the load of sst2-dense within 150 ms p99' in made.html
    assert '<tr class="paper"><td>  the paper&#39;s</td><td>91.4 %</td>' in made.html
    assert re.search(r"<tr><td>sst2-dense</td><td>100<br>\[95\.6–104\]</td>", made.html)
    assert "Partial:" not in made.html


def test_charts_without_data_are_left_out(made: Made) -> None:
    bare = [
        replace(model, curve=(), at_slo=None, accuracy=None, experts={}, moments={})
        for model in made.figures.models
    ]
    assert every_chart(replace(made.figures, models=tuple(bare))) == []


def test_twelve_repeats_get_the_interval_of_eleven_degrees_of_freedom(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    """The report's own way from run.json on, in JSON and CSV alike."""
    write_report(make_run(tmp_path, num_repeats=12, models=["sst2-dense"]), tmp_path)
    rate = json.loads((tmp_path / "report.json").read_text())["models"]["sst2-dense"]["saturated"]
    assert len(rate["values"]) == 12
    spread_ = sum((value - rate["mean"]) ** 2 for value in rate["values"]) / 11
    assert rate["high"] - rate["mean"] == pytest.approx(2.200985 * (spread_ / 12) ** 0.5, rel=1e-6)


def test_a_missing_library_is_told_with_the_extra_that_brings_it(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["report", str(made.folder), "--out", str(tmp_path)]) == 2
    assert "jinja2" in (said := capsys.readouterr().err)
    assert "pip install 'fewshard[loadtest]'" in said


def test_a_line_goes_through_the_median_of_rates_that_are_nearly_equal() -> None:
    points = [
        Point(rate, rate, rate, 1.0, p99, 0.0, False)
        for rate, p99 in ((100.0, 5.0), (101.0, 9.0), (102.0, 7.0), (110.0, None), (120.0, 4.0))
    ]
    assert middle_of(points) == [(101.0, 7.0), (120.0, 4.0)]


@pytest.mark.parametrize(
    ("heights", "moved"),
    [
        ([0.5, 0.1], [0.5, 0.1]),
        ([0.5, 0.5], [0.5, 0.4]),
        ([0.0, 0.0, 0.0], [0.2, 0.1, 0.0]),
        ([1.2, 0.97], [1.0, 0.9]),
        ([], []),
    ],
)
def test_names_are_moved_apart_and_stay_beside_the_axes(heights: list[float], moved: list[float]) -> None:
    assert spread(heights, 0.1) == pytest.approx(moved)


def test_fifty_models_look_different() -> None:
    assert len({Look.of(place) for place in range(50)}) == 50


@pytest.mark.parametrize(
    ("value", "text"), [(0.1 + 0.2, "0.3"), (1500.0, "1,500"), (2.5e6, "2.5 M"), (0.0, "0")]
)
def test_ticks_are_written_short(value: float, text: str) -> None:
    assert number(value) == text


def test_a_chart_of_one_point_can_be_drawn_on_both_scales() -> None:
    for is_log in (False, True):

        def draw(axes: object, is_log: bool = is_log) -> None:
            axes.plot([1.0], [3.0], "o")  # type: ignore[attr-defined]
            scale(axes, "x", "a<b", is_log)  # type: ignore[arg-type]
            scale(axes, "y", "y", is_log)  # type: ignore[arg-type]
            write_names(axes, [Name("m&n", 1.0, 3.0, Look.of(0))])  # type: ignore[arg-type]

        root = ET.fromstring(svg('a "title"', draw))
        assert root.attrib["aria-label"] == 'a "title"'
        assert float(root.attrib["height"]) == HEIGHT
        assert {"m&n", "a<b"} <= set(words_in(root))
