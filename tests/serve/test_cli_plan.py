"""`fewshard plan` from options to what it prints and writes, and the mistakes it names."""

import argparse
import json
from dataclasses import asdict

import numpy as np
import pytest

from fewshard_models.errors import ModelsError
from fewshard_models.figures.style import can_draw
from fewshard_models.sharding.placement import read_placement
from fewshard_serve import cli
from fewshard_serve.commands import plan, plan_options
from fewshard_serve.errors import ConfigError
from fewshard_serve.placement.machine import ExpertShape, Machine


def parsed(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    plan.register(parser.add_subparsers())
    return parser.parse_args(["plan", *map(str, arguments)])


def run(*arguments: object) -> None:
    args = parsed(*arguments)
    assert args.run(args) == 0


@pytest.fixture
def loads(tmp_path):
    file = tmp_path / "loads.json"
    file.write_text(json.dumps(np.random.default_rng(0).integers(1, 100, (3, 16)).tolist()))
    return file


def test_it_says_how_heavy_shards_are_and_what_is_worth_it(capsys):
    run("zipf:1.2", "--shards", 4, "--layers", 2, "--experts", 16, "--spare", 4, "--nodes", 2)
    said = capsys.readouterr().out
    for words in (
        "2 layers of 16 experts on 4 shards of 5 slots on 2 nodes",
        "no placement below",
        "verdict",
    ):
        assert words in said
    assert said.count("█") > 4 * 30


def test_a_thousand_shards_are_shown_in_a_screenful(capsys):
    run("uniform", "--shards", 1000, "--layers", 1, "--experts", 250, "--slots", 1)
    said = capsys.readouterr().out
    assert "0-31 " in said
    assert len(said.splitlines()) < 50


def test_a_written_placement_is_planned_from(loads, tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    run(loads, "--shards", 4, "--spare", 4, "--model", "m", "--out", first)
    capsys.readouterr()
    run(loads, "--shards", 4, "--spare", 4, "--model", "m", "--current", first, "--out", second, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["num_moves"], found["moves_bound"]) == (0, 0)
    assert read_placement(second, "m") == read_placement(first, "m")
    assert found["placement"]["slots"] == read_placement(first, "m").slots.tolist()
    assert found["heaviest"] >= found["bound"] >= 1 - 1e-9


@pytest.mark.parametrize("policy", ["contiguous", "round_robin"])
def test_plain_policies(loads, capsys, policy):
    run(loads, "--shards", 4, "--policy", policy, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["policy"] == policy
    assert found["num_copies"] == 0


@pytest.mark.parametrize("ending", ["svg", "png"])
@pytest.mark.parametrize("shards", [4, 100])
def test_pictures(tmp_path, capsys, ending, shards):
    if not can_draw():
        pytest.skip("matplotlib is not installed")
    file = tmp_path / f"shards.{ending}"
    run("zipf", "--shards", shards, "--layers", 2, "--experts", 16, "--slots", 4, "--picture", file)
    assert file.stat().st_size > 5000
    assert str(file) in capsys.readouterr().out


def test_policies_are_compared_over_time(capsys):
    options = ["--shards", 4, "--spare", 4, "--layers", 2, "--experts", 16, "--duration-s", 600]
    run("zipf:1.2", "--simulate", *options, "--mtbf-s", 2000, "--drift", 0.1)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == [
        "policy",
        "contiguous",
        "round_robin",
        "balanced",
        "rebalanced",
    ]
    run("zipf:1.2", "--simulate", *options, "--json", "--shards", 20)
    found = json.loads(capsys.readouterr().out)
    assert [each["policy"] for each in found["outcomes"]] == ["balanced", "rebalanced"]
    assert "4 shards would hold none" in found["refused"][0]


def test_a_trace_is_replayed(tmp_path, capsys):
    file = tmp_path / "trace.json"
    file.write_text(json.dumps([[[1, 2, 3, 4]]] * 7))
    run(file, "--shards", 2, "--simulate", "--json", "--step-s", 5)
    assert {each["duration_s"] for each in json.loads(capsys.readouterr().out)["outcomes"]} == {35.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["uniform", "--shards", 0], "--shards must be above 0"),
        (["uniform", "--shards", 2, "--slots", 0], "--slots must be above 0"),
        (["uniform", "--shards", 2, "--spare", -1], "--spare must not be negative"),
        (["uniform", "--shards", 2, "--memory-gb-s", "nan"], "--memory-gb-s must be above 0"),
        (["zipf:x", "--shards", 2], "zipf:x"),
        (["zipf:-1", "--shards", 2], "from 0 to 10"),
        (["uniform", "--shards", 2, "--out", "x.json"], "need --model"),
        (["uniform", "--shards", 2, "--model", "m", "--current", "x", "--policy", "contiguous"], "balanced"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, message):
    args = parsed(*arguments)
    with pytest.raises(ConfigError, match=message):
        args.run(args)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shards", 3, "--slots", 5], "1 slots are missing"),
        (["--shards", 17, "--policy", "round_robin"], "1 shards would hold none"),
        (["--shards", 6, "--nodes", 4], "do not divide evenly"),
        (["--shards", 4, "--picture", "a.gif"], "a picture's name ends in"),
        (["--shards", 4, "--slots", 1, "--simulate"], "12 slots are missing"),
    ],
)
def test_what_cannot_fit_is_refused(loads, arguments, message):
    args = parsed(loads, *arguments)
    with pytest.raises(ModelsError, match=message):
        args.run(args)


def test_another_models_placement_is_refused(loads, tmp_path):
    file = tmp_path / "placement.json"
    run(loads, "--shards", 4, "--model", "mine", "--out", file)
    args = parsed(loads, "--shards", 4, "--model", "yours", "--current", file)
    with pytest.raises(ModelsError, match="for 'mine', not for 'yours'"):
        args.run(args)


def test_the_exit_codes_are_those_of_other_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "build_parser", lambda _: _Parsed())
    assert cli.main(["uniform", "--shards", "0"]) == 2
    assert cli.main([str(tmp_path / "absent.json"), "--shards", "2"]) == 1
    assert "absent.json" in capsys.readouterr().err


class _Parsed:
    def parse_known_args(self, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
        return parsed(*argv), []


def test_defaults_are_those_of_the_model():
    args = parsed("uniform", "--shards", 2)
    assert asdict(plan_options.shape_of(args)) == asdict(ExpertShape())
    assert asdict(plan_options.machine_of(args)) == asdict(Machine())
