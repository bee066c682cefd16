"""Models and options on the command line: names from paths, keys as options, and what mistakes say."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fewshard_serve.cli import main
from fewshard_serve.commands.config_options import all_options
from fewshard_serve.commands.model_paths import named_models
from fewshard_serve.config import FewshardConfig

Configured = Callable[..., FewshardConfig]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with some checkpoints."""
    for name in (
        "a",
        "b",
        "My Modèle (v2)",
        "stats",
        "run/checkpoint-5",
        "one/model",
        "two/model",
        "***",
        "v1.yaml",
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    (tmp_path / "a/model.safetensors").touch()
    (tmp_path / "current").symlink_to("run/checkpoint-5")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> Configured:
    """Call it with arguments of `fewshard serve`; it returns the configuration that would be served."""
    seen: list[FewshardConfig] = []
    monkeypatch.setattr(
        "fewshard_serve.rayserve.launch.serve_until_signalled",
        lambda config, read_again, **_: seen.append(config) or int(read_again() != config),
    )

    def run(*arguments: str) -> FewshardConfig:
        assert main(["serve", *arguments]) == 0
        return seen[-1]

    return run


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, command: str = "serve") -> str:
    assert main([command, *arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["./a"], ["a"]),
        (["a/", "./b"], ["a", "b"]),
        (["My Modèle (v2)"], ["My-Modele-v2"]),
        (["hf:owner/name.v1", "zoo:sst2-moe"], ["name.v1", "sst2-moe"]),
        (["hf:owner/name@v1.2", "hf:you/other@refs/pr/3"], ["name", "other"]),
        (["hf:me/bert@v1", "hf:you/bert"], ["me-bert", "you-bert"]),
        (["one/model", "two/model", "a"], ["one-model", "two-model", "a"]),
        (["hf:me/bert", "hf:you/bert"], ["me-bert", "you-bert"]),
        (["good=./stats", "a"], ["good", "a"]),
        (["x=hf:me/bert", "y=hf:me/bert"], ["x", "y"]),
        (["x=***"], ["x"]),
        (["current", "../{folder}/b"], ["current", "b"]),
        (["v1.yaml"], ["v1.yaml"]),
    ],
)
def test_names_come_from_the_paths(folder: Path, given: list[str], names: list[str]) -> None:
    models = named_models([each.format(folder=folder.name) for each in given])
    assert [model.name for model in models] == names
    assert all(Path(model.path).is_absolute() for model in models if ":" not in model.path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["nowhere"],
            "no directory 'nowhere'; give a checkpoint's directory, hf:<owner>/<name>, zoo:",
        ),
        (["sst2-moe"], "did you mean the bundled zoo:sst2-moe?"),
        (["google/bert"], "did you mean hf:google/bert?"),
        (["run"], "run holds no config.json, so it is no checkpoint; these are: run/checkpoint-5"),
        (["a/model.safetensors"], "is a file; give the directory that holds it and config.json"),
        (["a/config.json"], "is a file; give the directory that holds it and config.json"),
        (
            ["stats"],
            "is part of the server's URLs and cannot name a model; choose another; name it, as in my",
        ),
        (["***"], "its path gives no name; name it, as in my-model="),
        (["a", "x=b", "x=a"], "x=a: there is a model 'x' already; name this one, as in other="),
        (["a", "./a"], "./a: there is a model"),
        (["b/x=a"], "there is no directory 'b/x=a'"),
        (["x="], "'x=' names no model"),
        (["zoo:nothing"], "no bundled model 'nothing'; the zoo holds: cifar10-dense"),
        (["hf:nothing"], "'hf:nothing' is not of the form hf:<owner>/<name>"),
        (["hf:a/b@"], "'hf:a/b@' is not of the form hf:<owner>/<name>, or hf:<owner>/<name>@<commit, tag"),
        (["a b=a"], "'a b' must begin with a letter or digit"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str], given: list[str], words: str
) -> None:
    said = refusal(capsys, *given)
    assert said.startswith("fewshard: error: ")
    assert words in said


def test_a_directory_may_be_called_as_a_file_of_the_configuration(
    folder: Path, configured: Configured
) -> None:
    assert [one.name for one in configured("./v1.yaml").models] == ["v1.yaml"]


def test_a_link_names_its_model_and_is_followed(folder: Path) -> None:
    """So it can be set to a newer checkpoint: the name stays, and the path shows the change."""
    assert [(one.name, one.path) for one in named_models(["current"])] == [
        ("current", str(folder / "run/checkpoint-5"))
    ]


def test_one_line_serves_models_of_ones_own(folder: Path, configured: Configured) -> None:
    config = configured("./a", "--dtype", "bf16", "--port", "8080", "./b", "--batching.max-items", "8")
    assert [(one.name, one.path, one.dtype) for one in config.models] == [
        ("a", str(folder / "a"), "bf16"),
        ("b", str(folder / "b"), "bf16"),
    ]
    assert {one.batching.max_items for one in config.models} == {8}
    assert config.server.port == 8080


def test_options_win_over_a_file_and_models_stand_beside_it(folder: Path, configured: Configured) -> None:
    (folder / "fewshard.yaml").write_text(
        "models: [{name: m, path: zoo:sst2-moe, batching: {max_items: 4, max_wait_ms: 1}}]\n"
        "limits: {max_items: 9}\n"
    )
    config = configured("fewshard.yaml", "./a", "--batching.max_items", "8", "--limits.max_items=7")
    assert [one.name for one in config.models] == ["m", "a"]
    assert [(one.batching.max_items, one.batching.max_wait_ms) for one in config.models] == [(8, 1), (8, 0)]
    assert config.limits.max_items == 7
    config = configured("fewshard.yaml", "--replicas.max", "3", "--models", "m")
    assert config.models[0].replicas is not None
    assert (config.models[0].replicas.min, config.models[0].replicas.max) == (1, 3)


def test_values_are_yaml_and_paths_are_relative_to_here(folder: Path, configured: Configured) -> None:
    (folder / "tokens.yaml").write_text("tokens: []\n")
    config = configured(
        "--metrics.expert-layers=[0, 2]",
        "--admission.queue-ms=1e3",
        "--logging.requests=true",
        "--auth.tokens-file=tokens.yaml",
        "--experts.shards=2",
        "--experts.placement=placed.json",
        "a",
    )
    assert config.metrics.expert_layers == (0, 2)
    assert config.models[0].admission.queue_ms == 1000
    assert config.logging.requests is True
    assert config.auth is not None
    assert config.auth.tokens_file == str(folder / "tokens.yaml")
    assert config.models[0].experts is not None
    assert config.models[0].experts.placement == str(folder / "placed.json")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "bf61"], "--dtype: input should be 'auto', "),
        (["--batching.max-items", "0"], "--batching.max_items: input should be greater than or equal to 1"),
        (["--batching.max_items", "a: b: c"], "--batching.max_items: 'a: b: c' is not valid YAML"),
        (["--experts.rebalance_s", "1"], "--experts.shards is needed too"),
        (["--replicas.min", "3", "--replicas.max", "2"], "--replicas: max (2) is below min (3)"),
        (["--shadow.model", "b"], "the shadow of 'a' must be another model"),
        (["--dtpye", "fp32"], "unknown option --dtpye; did you mean --dtype?"),
        (["--max-text-bytes=1"], "unknown option --max-text-bytes; did you mean --limits.max_text_bytes?"),
        (["--something"], "unknown option --something; see --help"),
        (["x.yaml", "y.yml"], "x.yaml and y.yml are two configurations; give one"),
        (["x.yaml"], "x.yaml: no such file"),
    ],
)
def test_mistakes_are_told_in_the_terms_of_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    said = refusal(capsys, "a", *arguments)
    assert words in said
    assert said.count("\n") == 1


def test_every_key_is_an_option_of_its_own() -> None:
    names = [name for option in all_options() for name in option.names]
    assert len(names) == len(set(names))
    assert {"--device", "--admission.max_heavy_cost", "--limits.max_body_s", "--tracing.endpoint"} <= set(
        names
    )
    assert not {"--name", "--path", "--models", "--port"} & set(names)


def test_render_and_doctor_take_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "./a", "--dtype", "fp32"]) == 0
    assert f"path: {folder / 'a'}\n        dtype: fp32" in capsys.readouterr().out
    assert main(["doctor", "--json", "./a", "--port", "47999"]) == 0
    findings = {one["topic"]: one for one in json.loads(capsys.readouterr().out)}
    assert findings["model a"]["value"] == "BertForSequenceClassification"
    assert "port 47999" in findings
    assert "--dtpye; did you mean" in refusal(capsys, "--dtpye", command="render")
