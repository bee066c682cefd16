"""Thresholds, against every cascade tried one by one; and the command, against a made-up server."""

import argparse
import json

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshard_serve.calibration import Outcomes, choose, curve, evaluate, standard_error
from fewshard_serve.commands import calibrate
from fewshard_serve.errors import ConfigError


def outcomes_of(confidence, is_right, costs):
    return Outcomes(np.array(confidence, float), np.array(is_right, bool), np.array(costs, float))


FOUR = outcomes_of(
    [[0.9, 0.8, 0.7, 0.6], [0.9, 0.9, 0.9, 0.9]],
    [[1, 1, 0, 0], [1, 0, 1, 1]],
    [1, 10],
)
"""Accepting the two of which the first stage is surest is right four times, at 6 an item."""


@pytest.mark.parametrize(
    ("accept_above", "accuracy", "cost", "share"),
    [(0.0, 0.5, 1, 1.0), (0.75, 1.0, 6, 0.5), (0.8, 1.0, 6, 0.5), (1.0, 0.75, 11, 0.0)],
)
def test_one_cascade(accept_above, accuracy, cost, share):
    point = evaluate(FOUR, [accept_above])
    assert (point.accuracy, point.cost) == (accuracy, cost)
    assert point.shares == (share, 1 - share)


def test_the_curve_rises_and_holds_the_best():
    assert [(point.accuracy, point.cost) for point in curve(FOUR)] == [(0.5, 1), (0.75, 3.5), (1.0, 6)]


def test_the_choice_is_the_cheapest_that_is_good_enough():
    assert choose(FOUR).point.cost == 3.5, "as accurate as the last stage alone"
    assert choose(FOUR, within=0.25).point.cost == 1
    assert choose(FOUR, accuracy=0.9).point.accept_above == (0.75,)
    assert choose(FOUR, accuracy=1.01) is None


def random_outcomes(seed, num_stages=2, num_items=60):
    """A stage that is surer is more often right, and later stages more often than earlier."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 1, (num_stages, num_items)).round(2)
    skill = np.linspace(0.0, 0.1, num_stages)[:, None]
    is_right = rng.uniform(size=confidence.shape) < confidence + skill
    return Outcomes(confidence, is_right, np.geomspace(1, 10, num_stages))


@given(st.integers(0, 10_000), st.floats(0, 0.2))
@settings(max_examples=40, deadline=None)
def test_no_threshold_does_better(seed, within):
    outcomes = random_outcomes(seed)
    choice = choose(outcomes, within=within)
    assert choice is not None, "never accepting is always as good as the last stage"
    assert choice.point.accuracy >= choice.wished - 1e-9
    for threshold in np.linspace(0, 1, 101):
        other = evaluate(outcomes, [threshold])
        assert other.accuracy < choice.wished - 1e-9 or other.cost >= choice.point.cost - 1e-9


@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_any_number_of_stages(num_stages):
    outcomes = random_outcomes(7, num_stages, 300)
    choice = choose(outcomes, within=0.01)
    assert len(choice.point.accept_above) == num_stages - 1
    assert choice.point.cost < outcomes.costs.sum()
    assert sum(choice.point.shares) == pytest.approx(1)


def test_held_out_accuracy_is_not_flattered():
    """On pure noise the choice looks better than it is; the folds tell."""
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.5, 1, (2, 200))
    noise = Outcomes(confidence, rng.uniform(size=(2, 200)) < 0.7, np.array([1.0, 10.0]))
    best = max(point.accuracy for point in curve(noise))
    choice = choose(noise, accuracy=best)
    assert choice.held_out[0] < choice.point.accuracy


def test_standard_error():
    assert standard_error(0.89, 872) == pytest.approx(0.0106, abs=1e-4)


LABELS = ["negative", "positive"]


class Server:
    """`cheap` is sure of short texts alone and wrong where they say so; `dear` is always right."""

    def __init__(self, **configs):
        self.configs = {
            name: {
                "labels": LABELS,
                "task": "text",
                "problem_type": "single_label_classification",
                "card": {"macs": m},
            }
            for name, m in (("cheap", 10), ("dear", 100))
        }
        for name, changed in configs.items():
            self.configs[name] |= changed
        self.num_asked = 0

    def __call__(self, request):
        name = request.url.path.split("/")[3]
        if request.method == "GET":
            return httpx.Response(200, json=self.configs[name])
        texts = json.loads(request.content)["inputs"]
        self.num_asked += len(texts)
        predictions = [self.labels(name, text) for text in texts]
        usage = {"items": len(texts), "tokens": 1}
        return httpx.Response(200, json={"model": name, "predictions": predictions, "usage": usage})

    def labels(self, name, text):
        is_positive = "good" in text
        if name == "cheap" and "tricky" in text:
            is_positive = not is_positive
        score = 0.99 if name == "dear" or "tricky" not in text else 0.6
        ordered = LABELS[::-1] if is_positive else LABELS
        return [{"label": label, "score": s} for label, s in zip(ordered, (score, 1 - score), strict=True)]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "dev.tsv"
    rows = [f"a good film {n}\t1" for n in range(30)] + [f"a bad film {n}\tnegative" for n in range(30)]
    rows += [f"a tricky good film {n}\tpositive" for n in range(20)]
    path.write_text("\n".join(["sentence\tlabel", *rows, ""]))
    return path


@pytest.fixture
def command(monkeypatch):
    def run(server, *arguments):
        transport = httpx.MockTransport(server)
        real = calibrate.Client
        monkeypatch.setattr(calibrate, "Client", lambda url, **more: real(url, transport=transport, **more))
        parser = argparse.ArgumentParser()
        calibrate.register(parser.add_subparsers())
        args = parser.parse_args(["calibrate", *map(str, arguments)])
        return args.run(args)

    return run


def test_the_command_finds_what_is_there_to_find(command, data, tmp_path, capsys):
    """A quarter goes on: 10 + 100/4 of 100."""
    server, curve_file = Server(), tmp_path / "curve.json"
    assert command(server, "cheap", "dear", "--data", data, "--json", curve_file) == 0
    out = capsys.readouterr().out
    assert server.num_asked == 160
    assert "80 items; dear alone: 1.0000" in out
    assert "accuracy 1.0000 at 35.0 % of the cost" in out
    assert "  - {name: auto, stages: [cheap, dear], accept_above: 0.795}" in out
    written = json.loads(curve_file.read_text())
    assert written["choice"]["point"]["shares"] == [0.75, 0.25]
    assert [point["cost"] for point in written["curve"]] == [10.0, 35.0]


def test_a_wish_that_cannot_be_met_is_said(command, data, capsys):
    assert command(Server(), "cheap", "dear", "--data", data, "--accuracy", "1.5") == 1
    assert "no thresholds reach" in capsys.readouterr().out


def test_costs_may_be_given(command, data, capsys):
    command(Server(), "cheap", "dear", "--data", data, "--costs", "1,2")
    assert "at 75.0 % of the cost" in capsys.readouterr().out


def test_the_curve_can_be_drawn(command, data, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "curve.png"
    command(Server(), "cheap", "dear", "--data", data, "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "configs", "expected"),
    [
        (["cheap"], {}, "2 to 4 different stages"),
        (["cheap", "cheap"], {}, "different stages"),
        (["cheap", "dear", "--costs", "1"], {}, "2 numbers"),
        (["cheap", "dear", "--costs", "1,x"], {}, "commas"),
        (["cheap", "dear"], {"cheap": {"card": {}}}, "--costs"),
        (["cheap", "dear"], {"cheap": {"labels": ["a", "b"]}}, "different labels"),
        (["cheap", "dear"], {"cheap": {"problem_type": "regression"}}, "does not choose one label"),
    ],
)
def test_mistakes_are_named(command, data, arguments, configs, expected):
    with pytest.raises(ConfigError, match=expected):
        command(Server(**configs), *arguments, "--data", data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("head\nno tab", "line 2: expected"),
        ("head\na\tb\t1", "line 2: expected"),
        ("head\nfine\t1\n\nodd\t7", "line 4: no label '7'; there are: negative, positive"),
        ("head\n", "no rows"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, expected):
    path = tmp_path / "x.tsv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        calibrate.read_rows(path, LABELS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        calibrate.read_rows(tmp_path / "none.tsv", LABELS)
