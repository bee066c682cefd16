"""fewshard.yaml: what is accepted, and that every mistake is answered with its place and a way out."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from fewshard_serve import config_file
from fewshard_serve.config import FewshardConfig, ModelConfig, json_schema
from fewshard_serve.config_file import bundled_config, load_config, only
from fewshard_serve.errors import ConfigError
from fewshard_serve.group.settings import ExpertsSettings

FULL = """
models:
  - name: sst2-moe
    path: checkpoints/moe
    device: cpu
    dtype: bf16
    replicas: {min: 1, max: 4}
    batching: {max_tokens: 4096, max_items: 64, max_wait_ms: 2.5}
    admission:
      {min_items: 8, max_items: 128, max_tokens: 9000, max_heavy_cost: 70000, queue_ms: 100, deadline_ms: 500}
  - name: other
    path: hf:owner/name
server: {host: 0.0.0.0, port: 9000}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fewshard.yaml"
    path.write_text(text)
    return path


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    return str(caught.value)


def test_every_key_arrives(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, FULL))
    moe, other = config.models
    assert (moe.device, moe.dtype) == ("cpu", "bf16")
    assert moe.replicas is not None
    assert (moe.replicas.min, moe.replicas.max) == (1, 4)
    assert asdict(moe.batching) == {"max_tokens": 4096, "max_items": 64, "max_wait_ms": 2.5}
    assert asdict(moe.admission) == {
        "min_items": 8,
        "max_items": 128,
        "max_tokens": 9000,
        "max_heavy_cost": 70000,
        "queue_ms": 100,
        "deadline_ms": 500,
    }
    assert other.path == "hf:owner/name"
    assert (config.server.host, config.server.port) == ("0.0.0.0", 9000)


def test_defaults() -> None:
    model = ModelConfig(name="m", path="zoo:m")
    assert (model.device, model.dtype, model.replicas) == ("auto", "auto", None)
    assert model.batching.max_wait_ms == 0
    config = FewshardConfig(models=(model,))
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8000)


CASCADE = "{name: auto, stages: [a, b], accept_above: 0.9}"


def cascade_text(cascade: str) -> str:
    return (
        f"models: [{{name: a, path: x}}, {{name: b, path: x}}, {{name: c, path: x}}]\ncascades: [{cascade}]"
    )


def test_a_cascade_has_a_threshold_for_each_stage_but_the_last(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, cascade_text(CASCADE))).cascades[0].thresholds == (0.9,)
    three = "{name: auto, stages: [a, b, c], accept_above: %s}"
    assert load_config(write(tmp_path, cascade_text(three % "0.9"))).cascades[0].thresholds == (0.9, 0.9)
    assert load_config(write(tmp_path, cascade_text(three % "[0.9, 1]"))).cascades[0].thresholds == (0.9, 1)


@pytest.mark.parametrize(
    ("cascade", "expected"),
    [
        ("{name: a, stages: [a, b], accept_above: 0.9}", "two models are named 'a'"),
        ("{name: auto, stages: [a, z], accept_above: 0.9}", "the stage 'z', which is no model"),
        ("{name: auto, stages: [a], accept_above: 0.9}", "stages"),
        ("{name: auto, stages: [a, a], accept_above: 0.9}", "a stage twice"),
        ("{name: auto, stages: [a, b], accept_above: 1.5}", "accept_above"),
        ("{name: auto, stages: [a, b], accept_above: [0.5, 0.5]}", "one for each stage but the last"),
        ("{name: classify, stages: [a, b], accept_above: 0.5}", "part of the server's URLs"),
    ],
)
def test_mistakes_in_a_cascade(tmp_path: Path, cascade: str, expected: str) -> None:
    message = complaint(tmp_path, cascade_text(cascade))
    assert expected in message
    assert "fewshard.yaml" in message


def test_only_some_models_keep_the_cascades_made_of_them(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, cascade_text(CASCADE)))
    assert [model.name for model in only(config, ["auto"]).models] == ["a", "b"]
    assert only(config, ["b", "a"]).cascades == config.cascades
    assert only(config, ["a", "c"]).cascades == ()


def test_a_tokens_file_is_taken_from_the_files_folder_and_read(tmp_path: Path) -> None:
    text = "models: [{name: m, path: x}]\nauth: {tokens_file: sub/tokens.yaml}"
    assert "tokens.yaml: no such file" in complaint(tmp_path, text)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/tokens.yaml").write_text("tokens: []")
    config = load_config(write(tmp_path, text))
    assert config.auth is not None
    assert config.auth.tokens_file == str(tmp_path / "sub/tokens.yaml")


def test_a_relative_directory_is_taken_from_the_files_folder(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "models: [{name: m, path: sub/dir}]"))
    assert config.models[0].path == str(tmp_path / "sub/dir")


def test_an_absolute_directory_stays(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "models: [{name: m, path: /a/b}]")).models[0].path == "/a/b"


def test_max_replicas_follow_min_when_not_given(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "models: [{name: m, path: d, replicas: {min: 3}}]"))
    assert config.models[0].replicas is not None
    assert config.models[0].replicas.max == 3


def test_who_has_a_host_of_its_own(tmp_path: Path) -> None:
    text = """
models:
  - {name: a, path: d}
  - {name: b, path: d, replicas: {}}
  - {name: c, path: d, device: cuda}
"""
    assert [m.has_own_host for m in load_config(write(tmp_path, text)).models] == [False, True, True]


def test_anchors_and_merges_are_understood(tmp_path: Path) -> None:
    text = """
models:
  - &first {name: a, path: d, dtype: fp32}
  - {<<: *first, name: b}
"""
    assert [(m.name, m.dtype) for m in load_config(write(tmp_path, text)).models] == [
        ("a", "fp32"),
        ("b", "fp32"),
    ]


@pytest.mark.parametrize("price", ["1e-05", "2.5e3", "1E2", "0.5"])
def test_numbers_are_read_as_helm_writes_them(tmp_path: Path, price: str) -> None:
    text = f"models: [{{name: a, path: d, cost: {{usd_per_hour: {price}}}}}]"
    (model,) = load_config(write(tmp_path, text)).models
    assert model.cost.usd_per_hour == float(price)


def test_a_shadows_name_stands_for_the_shadow(tmp_path: Path) -> None:
    text = "models: [{name: a, path: d, shadow: b}, {name: b, path: e}]"
    shadow = load_config(write(tmp_path, text)).models[0].shadow
    assert shadow is not None
    assert (shadow.model, shadow.share) == ("b", 0.1)


def test_an_unknown_key_is_refused_with_the_nearest_and_its_line(tmp_path: Path) -> None:
    text = "models:\n  - name: m\n    path: d\n    batchng: {}\n"
    said = complaint(tmp_path, text)
    assert (
        said
        == f"{tmp_path}/fewshard.yaml, line 4: unknown key 'batchng' in models[0]; did you mean 'batching'?"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "models: [{name: m, path: d}]\nsever: {}",
            "line 2: unknown key 'sever' in the file; did you mean 'server'?",
        ),
        (
            "models: [{name: m, path: d, admission: {zzz: 1}}]",
            "in models[0].admission; known keys: min_items, max_items, max_tokens, max_heavy_cost, queue_ms",
        ),
        ("models: [{path: d}]", "models[0] lacks the key 'name'"),
        ("models: [{name: m}]", "models[0] lacks the key 'path'"),
        ("models: []", "models is empty"),
        ("models: {}", "models must be a list"),
        ("models: [3]", "models[0] must be a mapping with the keys name, path"),
        ("", "the file must be a mapping with the keys models"),
        ("- a", "the file must be a mapping with the keys models"),
        (
            "models: [{name: m, path: d, batching: 3}]",
            "models[0].batching must be a mapping with the keys max_tokens",
        ),
        (
            "models: [{name: m, path: d, device: gpu}]",
            "models[0].device: input should be 'auto', 'cpu' or 'cuda'",
        ),
        ("models: [{name: m, path: d, dtype: int4}]", "models[0].dtype: input should be 'auto', 'fp32'"),
        ("models: [{name: m, path: d, replicas: {min: 3, max: 2}}]", "max (2) is below min (3)"),
        (
            "models: [{name: m, path: d, replicas: {min: 0}}]",
            "models[0].replicas.min: input should be greater",
        ),
        ("models: [{name: m, path: d, batching: {max_items: yes}}]", "(given: True)"),
        ("models: [{name: m, path: d, batching: {max_wait_ms: -1}}]", "(given: -1)"),
        ("models: [{name: m, path: d, batching: {max_wait_ms: .inf}}]", "(given: inf)"),
        ("models: [{name: m, path: d, admission: {deadline_ms: 0}}]", "greater than 0"),
        ("models: [{name: m, path: d}]\nserver: {port: 70000}", "less than or equal to 65535"),
        ("models: [{name: m, path: d}, {name: m, path: e}]", "two models are named 'm'"),
        ("models: [{name: m, name: n, path: d}]", "the key 'name' is given twice"),
        ("models: [{name: m, path: 's3:bucket'}]", "none of zoo:<name>, hf:<owner>/<name> and a directory"),
        ("models: [{name: m, path: 'hf:owner'}]", "not of the form hf:<owner>/<name>"),
        ("models: [{name: m, path: 'hf:owner/name@../x'}]", "hf:<owner>/<name>@<commit, tag or branch>"),
        ("models: [{name: m, path: d}]\ncallers: {trusted_proxies: [10.0.0.1/8]}", "has host bits set"),
        (
            "models: [{name: m, path: d}]\ntracing: {endpoint: 'ftp://user:s3cret@host'}",
            "(given: 'ftp://***@host')",
        ),
        ("models: [{name: m, path: 'zoo:'}]", "lacks the name after the colon"),
        ("models: [{name: m, path: 'zoo:nowhere'}]", "no bundled model 'nowhere'; the zoo holds:"),
        ("models: [", "not valid YAML"),
        ("&a [*a]", "an alias that contains itself"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in complaint(tmp_path, text)


@pytest.mark.parametrize(
    "name", ["versions", "Ready", "stats", "a/b", "", ".hidden", "a b", "ü", "-x", "a\n"]
)
def test_names_that_would_break_urls_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        ModelConfig(name=name, path="d")


def test_every_mistake_is_listed_at_once(tmp_path: Path) -> None:
    said = complaint(tmp_path, "models:\n - {name: a, path: d, dtpe: x}\n - {path: d}\n").splitlines()
    assert ["line 2" in said[0], "line 3" in said[1], len(said)] == [True, True, 2]


def test_a_missing_or_unreadable_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"models: [{name: \xff}]")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "latin.yaml")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config_file, "zoo_dir", lambda: tmp_path)
    return tmp_path


def test_the_bundled_config_serves_every_checkpoint_of_the_zoo(zoo: Path) -> None:
    for name in ("b", "a"):
        (zoo / name).mkdir()
        (zoo / name / "config.json").write_text("{}")
    (zoo / "not-a-checkpoint").mkdir()
    assert [(m.name, m.path) for m in bundled_config().models] == [("a", "zoo:a"), ("b", "zoo:b")]


def test_an_empty_zoo_says_what_to_do(zoo: Path) -> None:
    with pytest.raises(ConfigError, match="name your own"):
        bundled_config()


def test_only_keeps_the_named_models_in_their_order() -> None:
    config = FewshardConfig(models=tuple(ModelConfig(name=n, path="d") for n in "abc"))
    assert [m.name for m in only(config, ["c", "a", "c"]).models] == ["c", "a"]
    with pytest.raises(ConfigError, match="no model named 'x' in the configuration; there are: a, b, c"):
        only(config, ["x"])


def test_the_json_schema_knows_every_key() -> None:
    schema = json.loads(json_schema())
    assert set(schema["properties"]) == set(FewshardConfig.model_fields)
    assert set(schema["$defs"]["ModelConfig"]["properties"]) == set(ModelConfig.model_fields)


EXPERTS = "models: [{{name: m, path: zoo:sst2-moe, experts: {{{0}}}}}]"


def test_experts_arrive_as_a_group_takes_them(tmp_path: Path) -> None:
    text = EXPERTS.format("shards: 4, slots_per_shard: 2, max_slots_per_shard: 3, placement: round_robin, "
        "strategy: spread, rebalance_s: 5, exchange_timeout_ms: 250, degraded: true")  # fmt: skip
    model = load_config(write(tmp_path, text)).models[0]
    assert model.has_own_host
    assert model.experts is not None
    assert model.experts == ExpertsSettings(4, 2, 3, "round_robin", "spread", 5.0, 250, True)
    assert model.experts.exchange_timeout_s == 0.25
    assert (model.experts.num_slots(16), model.experts.max_slots(16)) == (2, 3)
    plain = load_config(write(tmp_path, EXPERTS.format("shards: 2"))).models[0].experts
    assert plain is not None
    assert plain == ExpertsSettings(2)
    assert (plain.num_slots(15), plain.max_slots(15)) == (8, 15)


def test_a_placement_file_is_taken_from_the_files_folder(tmp_path: Path) -> None:
    text = EXPERTS.format("shards: 2, placement: plans/mine.json")
    experts = load_config(write(tmp_path, text)).models[0].experts
    assert experts is not None
    assert experts.placement == str(tmp_path / "plans/mine.json")


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ("slots_per_shard: 2", "shards"),
        ("shards: 0", "shards"),
        ("shards: 2, slots: 3", "slots_per_shard"),
        ("shards: 2, slots_per_shard: many", "slots_per_shard"),
        ("shards: 2, placement: best", "'best' is none of balanced, contiguous, round_robin"),
        ("shards: 2, exchange_timeout_ms: 0", "exchange_timeout_ms"),
        ("shards: 2, slots_per_shard: 4, max_slots_per_shard: 2", "below slots_per_shard"),
    ],
)
def test_mistakes_in_experts_are_explained(tmp_path: Path, experts: str, message: str) -> None:
    assert message in complaint(tmp_path, EXPERTS.format(experts))


def test_what_is_given_and_what_is_a_default_are_equal(tmp_path: Path) -> None:
    """An update replaces the models whose configuration differs: a default written out is no difference."""
    short = load_config(write(tmp_path, "models: [{name: a, path: ./a}]"))
    long = "models: [{name: a, path: ./a, admission: {deadline_ms: 10000}}]\nmetrics: {enabled: true}"
    assert load_config(write(tmp_path, long)) == short
    assert load_config(write(tmp_path, long.replace("10000", "9000"))) != short
