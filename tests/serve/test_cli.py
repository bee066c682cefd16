"""The `fewshard` command: its parser, its errors and exit codes, and what it must not import.

Commands that speak to a server are in test_cli_client.py; what they print of files is in test_cli_inspect.py.
"""

import argparse
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from fewshard_core.errors import FewshardError
from fewshard_serve import cli
from fewshard_serve.commands import doctor, serve
from fewshard_serve.config import FewshardConfig, ModelConfig, ServerConfig
from fewshard_serve.errors import ConfigError, StartError
from fewshard_serve.protocol.tasks.text import SAMPLE_TEXT

HEAVY = ("torch", "ray", "transformers", "triton", "locust")
COMMANDS = sorted({point.name for point in entry_points(group=cli.ENTRY_POINT_GROUP)})


HELP = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]


def loaded_by(*lines: list[str]) -> list[tuple[int, list[str]]]:
    """Each line's exit code and the heavy packages imported after it; one fresh interpreter for all."""
    code = f"""
import json, sys
from fewshard_serve.cli import main
found = []
for line in {list(lines)!r}:
    try:
        status = main(line)
    except SystemExit as stop:
        status = stop.code
    found.append([status, [name for name in {HEAVY!r} if name in sys.modules]])
print("\\n" + json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [(status, loaded) for status, loaded in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def helped() -> list[tuple[int, list[str]]]:
    return loaded_by(*HELP)


def test_the_servers_own_commands_are_registered() -> None:
    assert {"serve", "predict", "models", "inspect", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("number", range(len(HELP)), ids=[" ".join(line) for line in HELP])
def test_help_imports_nothing_heavy(helped: list[tuple[int, list[str]]], number: int) -> None:
    assert helped[number] == (0, [])


def test_the_probe_for_heavy_imports_works() -> None:
    ((status, loaded),) = loaded_by(["doctor", "--json"])
    assert status == 0
    assert "torch" in loaded


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group=cli.ENTRY_POINT_GROUP)


def failing_with(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(_args: argparse.Namespace) -> int:
        raise error

    return run


@pytest.fixture
def main_raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Run `main` with one command that raises the given error."""

    def run(error: BaseException) -> int:
        parser = argparse.ArgumentParser()
        parser.set_defaults(run=failing_with(error))
        monkeypatch.setattr(cli, "build_parser", lambda _commands: parser)
        return cli.main([])

    return run


@pytest.mark.parametrize(
    ("error", "status"),
    [(ConfigError("bad file"), 2), (StartError("port in use"), 1), (FewshardError("other"), 1)],
)
def test_an_error_on_purpose_is_one_line_and_a_code(
    main_raising: Callable[[BaseException], int],
    capsys: pytest.CaptureFixture[str],
    error: FewshardError,
    status: int,
) -> None:
    assert main_raising(error) == status
    assert capsys.readouterr().err == f"fewshard: error: {error}\n"


def test_debug_shows_the_traceback(
    main_raising: Callable[[BaseException], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSHARD_DEBUG", "1")
    with pytest.raises(StartError):
        main_raising(StartError("x"))


def test_a_bug_keeps_its_traceback(main_raising: Callable[[BaseException], int]) -> None:
    with pytest.raises(ZeroDivisionError):
        main_raising(ZeroDivisionError())


def test_interrupt_has_its_code(main_raising: Callable[[BaseException], int]) -> None:
    assert main_raising(KeyboardInterrupt()) == 130


def test_no_command_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2


def test_a_command_that_cannot_be_loaded_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    good = entry("models", "fewshard_serve.commands.models:register")
    parser = cli.build_parser([entry("ghost", "no_such_package.commands:register"), good])
    assert parser.parse_args(["models"]).url == "http://127.0.0.1:8000"
    assert "the command 'ghost' cannot be loaded" in capsys.readouterr().err


def parsed(*arguments: str) -> argparse.Namespace:
    commands = entry_points(group=cli.ENTRY_POINT_GROUP)
    return cli.build_parser(commands).parse_args(["serve", *arguments])


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "fewshard.yaml"
    path.write_text("models: [{name: a, path: x}, {name: b, path: y}]\nserver: {host: 0.0.0.0, port: 9000}\n")
    return str(path)


def test_serve_takes_the_file_as_it_is(config_file: str) -> None:
    config = serve.configured(parsed(config_file))
    assert ([m.name for m in config.models], config.server.port) == (["a", "b"], 9000)


def test_serve_options_win_over_the_file(config_file: str) -> None:
    config = serve.configured(parsed(config_file, "--models", "b,", "--port", "9100", "--host", "::1"))
    assert [m.name for m in config.models] == ["b"]
    assert (config.server.host, config.server.port) == ("::1", 9100)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--port", "0"], "--port"),
        (["--models", "c"], "no model named 'c'"),
        (["--models", ","], "no model is named"),
    ],
)
def test_serve_refuses_unusable_options(config_file: str, arguments: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        serve.configured(parsed(config_file, *arguments))


def config_of(paths: dict[str, str], host: str = "127.0.0.1") -> FewshardConfig:
    models = tuple(ModelConfig(name=name, path=path) for name, path in paths.items())
    return FewshardConfig(models=models, server=ServerConfig(host=host))


def checkpoint(folder: Path, task: str) -> str:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "card.json").write_text(json.dumps({"task": task}))
    return str(folder)


def test_the_greeting_names_every_model_and_a_call_of_a_text_model(tmp_path: Path) -> None:
    paths = {"pixels": checkpoint(tmp_path / "i", "image"), "words": checkpoint(tmp_path / "t", "text")}
    lines = [line.strip() for line in serve.greeting(config_of(paths)).splitlines()]
    assert "http://127.0.0.1:8000/v2/models/pixels" in lines
    call = next(line for line in lines if line.startswith("curl "))
    assert call.startswith("curl http://127.0.0.1:8000/v2/models/words/classify ")
    assert json.loads(call.split("-d '")[1].rstrip("'")) == {"inputs": SAMPLE_TEXT}


def test_the_greeting_of_image_models_alone_posts_a_file(tmp_path: Path) -> None:
    said = serve.greeting(config_of({"pixels": checkpoint(tmp_path / "i", "image")}))
    assert "pixels/classify -H 'Content-Type: image/png' --data-binary @image.png" in said


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("a.example", "http://a.example:8000"),
    ],
)
def test_the_url_can_be_pasted(host: str, expected: str) -> None:
    assert serve.base_url(config_of({"m": "x"}, host)) == expected


def test_doctor_reads_the_features_of_the_first_processor(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu avx2 amx_bf16 sse\nprocessor : 1\nflags\t\t: avx512f\n")
    assert doctor.cpu_features(cpuinfo) == ["avx2", "amx_bf16"]
    assert doctor.cpu_features(tmp_path / "none") == []


def test_doctor_tells_a_taken_port_from_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = ServerConfig(port=taken.getsockname()[1], grpc_port=0)
        assert doctor.port_finding(server).value == "not free"
    assert doctor.port_finding(server).value == "free"


def test_doctor_covers_what_decides_a_path() -> None:
    topics = {finding.topic for finding in doctor.examine()}
    decisions = {"device: auto", "dtype: auto on cpu", "moe_ffn on cpu"}
    assert {"CPU features", "torch", "triton", "HAProxy", "port 8000", *decisions} <= topics


def test_doctor_times_how_experts_are_multiplied(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--measure", "--json"]) == 0
    found = {line["topic"]: line for line in json.loads(capsys.readouterr().out)}
    (layer,) = (topic for topic in found if topic.startswith("moe_ffn 8 x"))
    assert "us alone at 32 rows" in found[layer]["reason"]


def test_doctor_shows_how_fast_a_model_runs_in_which_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEWSHARD_MEASURE", "1")
    monkeypatch.setenv("FEWSHARD_CACHE", str(tmp_path))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "bert"}')
    given = ["doctor", "zoo:cifar10-narrow", f"m={tmp_path}/m"]
    assert cli.main([*given, "--json"]) == 0
    found = {line["topic"]: line for line in json.loads(capsys.readouterr().out)}
    format_ = found["auto: cifar10-narrow, format"]
    names = [each["name"] for each in format_["candidates"]]
    assert format_["value"] in names
    assert "fp32" in names
    assert found["auto: m"]["value"] == "not measured"
    assert found["auto: m"]["reason"]
    assert found["CPU features"]["candidates"] == []
    assert cli.main(given) == 0
    told = capsys.readouterr().out
    if len(names) > 1:  # alone, it is not timed
        table = told.split("auto: cifar10-narrow, format, items/s\n")[1].split("\n\n")[0]
        assert "batch of 8" in table
        assert sum(line.endswith("chosen") for line in table.splitlines()) == 1
    assert any(tmp_path.glob("tuning/*.json"))


def test_doctor_measures_no_model_where_that_is_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "zoo:cifar10-narrow", "--json"]) == 0
    assert "auto: cifar10-narrow" not in capsys.readouterr().out
