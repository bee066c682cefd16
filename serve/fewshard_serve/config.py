"""What `fewshard.yaml` may say. The commands read it, `rayserve` acts on it.

Every key here does something today. An unknown key is an error that names the nearest known one.
"""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from fewshard_serve.auth import read_tokens
from fewshard_serve.engine.settings import EngineSettings, Scaling
from fewshard_serve.errors import ConfigError
from fewshard_serve.group.settings import ExpertsSettings
from fewshard_serve.http.middleware import TracingSettings
from fewshard_serve.metrics import CostSettings, MetricsSettings
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.yaml_reader import Location, YamlFile, explain, read_yaml

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"


PLACEMENTS = ("balanced", "contiguous", "round_robin")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _usable_in_urls(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f"{name!r} must begin with a letter or digit and hold only these, '.', '_' and '-'")
    from fewshard_serve.http.routes import reserved_names  # its handlers; not needed by whoever reads no file

    if name.lower() in reserved_names():
        raise ValueError(f"{name!r} is part of the server's URLs and cannot name a model; choose another")
    return name


def _known_scheme(path: str) -> str:
    scheme, colon, rest = path.partition(":")
    if colon and scheme not in ("zoo", "hf"):
        raise ValueError(f"{path!r} is none of zoo:<name>, hf:<owner>/<name> and a directory")
    if colon and not rest:
        raise ValueError(f"{path!r} lacks the name after the colon")
    if scheme == "hf" and colon and rest.count("/") != 1:
        raise ValueError(f"{path!r} is not of the form hf:<owner>/<name>")
    return path


def _known_placement(placement: str) -> str:
    if placement not in PLACEMENTS and not placement.endswith(".json"):
        raise ValueError(f"{placement!r} is none of {', '.join(PLACEMENTS)} and a placement file (….json)")
    return placement


def _with_exponent(value: object) -> object:
    """1e-5 is a number in JSON, YAML 1.2 and what Helm writes; PyYAML reads YAML 1.1, and a string."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


ModelName = Annotated[str, Field(max_length=128), AfterValidator(_usable_in_urls)]
CheckpointPath = Annotated[str, Field(min_length=1), AfterValidator(_known_scheme)]
WithExponent = BeforeValidator(_with_exponent)
Confidence = Annotated[float, Field(strict=True, ge=0, le=1), WithExponent]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), WithExponent]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), WithExponent]
WaitMs = Annotated[float, Field(strict=True, ge=0, le=60_000), WithExponent]
ExchangeMs = Annotated[float, Field(strict=True, ge=100, le=30_000), WithExponent]
PositiveInt = Annotated[int, Field(ge=1, strict=True)]


class ReplicasConfig(_Section):
    """How many copies of the model run; fewer at rest, more under load."""

    min: PositiveInt = 1
    max: PositiveInt = 1
    target_items: Positive = 64.0
    scale_up_s: NonNegative = 5.0
    scale_down_s: NonNegative = 60.0

    @property
    def scaling(self) -> Scaling:
        """The same in the form that hosts take."""
        return Scaling(self.target_items, self.scale_up_s, self.scale_down_s)

    @model_validator(mode="before")
    @classmethod
    def _max_follows_min(cls, value: Any) -> Any:
        if isinstance(value, dict) and "min" in value and "max" not in value:
            return {**value, "max": value["min"]}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> "ReplicasConfig":
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class BatchingConfig(_Section):
    """What one forward pass may hold, and how long a batch that is not full may wait for more.

    Without `max_tokens` a batch has as many as suit the device.
    """

    max_tokens: PositiveInt | None = None
    max_items: PositiveInt = 512
    max_wait_ms: WaitMs = 0.0


class AdmissionConfig(_Section):
    """What each replica accepts before it answers 429, and how long a request may take."""

    min_items: PositiveInt = 32
    max_items: PositiveInt = 2048
    max_tokens: PositiveInt = 262_144
    queue_ms: Positive = 2500.0
    deadline_ms: Positive = 10_000.0


class ExpertsConfig(_Section):
    """How the experts of one MoE model are spread over several processes or GPUs."""

    shards: PositiveInt
    slots_per_shard: PositiveInt | Literal["auto"] = "auto"
    max_slots_per_shard: PositiveInt | Literal["auto"] = "auto"
    placement: Annotated[str, AfterValidator(_known_placement)] = "balanced"
    strategy: Literal["pack", "spread"] = "pack"
    rebalance_s: NonNegative = 60.0
    exchange_timeout_ms: ExchangeMs = 3000.0
    degraded: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _slots_ordered(self) -> "ExpertsConfig":
        least, most = self.slots_per_shard, self.max_slots_per_shard
        if least != "auto" and most != "auto" and most < least:
            raise ValueError(f"max_slots_per_shard ({most}) is below slots_per_shard ({least})")
        return self

    @property
    def settings(self) -> ExpertsSettings:
        """The same in the form a group takes."""
        return ExpertsSettings(
            num_shards=self.shards,
            slots_per_shard=None if self.slots_per_shard == "auto" else self.slots_per_shard,
            max_slots_per_shard=None if self.max_slots_per_shard == "auto" else self.max_slots_per_shard,
            placement=self.placement,
            strategy=self.strategy,
            rebalance_s=self.rebalance_s,
            allows_degraded=self.degraded,
            timeout_s=self.exchange_timeout_ms / 1000,
        )


class CostConfig(_Section):
    """What a replica costs while it computes."""

    usd_per_hour: NonNegative | None = None
    watts: NonNegative | None = None

    @property
    def settings(self) -> CostSettings:
        """The same in the form the metrics take."""
        return CostSettings(self.usd_per_hour, self.watts)


class ShadowConfig(_Section):
    """A second model that is asked the same, compared, and never returned."""

    model: ModelName
    share: Confidence = 0.1


def _shadow_from_name(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


# A model's name alone stands for that model with the default share; JSON schemas say so too.
Shadow = Annotated[
    ShadowConfig | None,
    BeforeValidator(_shadow_from_name, json_schema_input_type=ShadowConfig | ModelName | None),
]


class ModelConfig(_Section):
    """One model to serve."""

    name: ModelName
    path: CheckpointPath
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    replicas: ReplicasConfig | None = None
    batching: BatchingConfig = BatchingConfig()
    admission: AdmissionConfig = AdmissionConfig()
    experts: ExpertsConfig | None = None
    cost: CostConfig = CostConfig()
    shadow: Shadow = None
    diagnostics_share: Confidence = 0.0

    @property
    def engine_settings(self) -> EngineSettings:
        """The limits in the form the engine takes."""
        return EngineSettings(
            max_tokens=self.batching.max_tokens or 0,
            max_items=self.batching.max_items,
            max_wait_ms=self.batching.max_wait_ms,
            admission_min_items=self.admission.min_items,
            admission_max_items=self.admission.max_items,
            admission_max_tokens=self.admission.max_tokens,
            queue_ms=self.admission.queue_ms,
            deadline_ms=self.admission.deadline_ms,
        )

    @property
    def has_own_host(self) -> bool:
        """Whether the model asks for processes of its own instead of a place in the shared host."""
        return self.replicas is not None or self.experts is not None or self.device == "cuda"


class CascadeConfig(_Section):
    """Several models as one: each is asked only for items of which those before it were not sure."""

    name: ModelName
    stages: Annotated[tuple[ModelName, ...], Field(min_length=2)]
    accept_above: Confidence | tuple[Confidence, ...]

    @model_validator(mode="after")
    def _fits(self) -> "CascadeConfig":
        if len(self.thresholds) != len(self.stages) - 1:
            raise ValueError(
                f"accept_above must be one number, or one for each stage but the last: {len(self.stages) - 1}"
            )
        if len(set(self.stages)) < len(self.stages):
            raise ValueError("a model is a stage twice; name each once")
        return self

    @property
    def thresholds(self) -> tuple[float, ...]:
        """One for each stage but the last."""
        if isinstance(self.accept_above, tuple):
            return self.accept_above
        return (self.accept_above,) * (len(self.stages) - 1)


class ServerConfig(_Section):
    """Where the server listens."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] = 8000
    grpc_port: Annotated[int, Field(strict=True, ge=0, le=65535)] = 8001

    @model_validator(mode="after")
    def _ports_differ(self) -> "ServerConfig":
        if self.port == self.grpc_port:
            raise ValueError(f"port and grpc_port are both {self.port}; choose two")
        return self


class AuthConfig(_Section):
    """Who may come in."""

    tokens_file: Annotated[str, Field(min_length=1)]


class LimitsConfig(_Section):
    """How much one request may hold, and how long it may take to arrive."""

    max_body_bytes: PositiveInt = 32 * 2**20
    max_items: PositiveInt = 4096
    max_text_bytes: PositiveInt = 1_000_000
    max_json_depth: Annotated[int, Field(strict=True, ge=4, le=200)] = 32
    max_image_pixels: PositiveInt = 25_000_000
    max_body_s: Positive = 30.0

    @property
    def limits(self) -> Limits:
        """The same in the form that the protocols take."""
        return Limits(**self.model_dump())


class LoggingConfig(_Section):
    """What is written down, and how."""

    format: Literal["text", "json"] = "text"
    requests: bool = False


class MetricsConfig(_Section):
    """How much each replica reports."""

    enabled: Annotated[bool, Field(strict=True)] = True
    max_series: PositiveInt = 2000
    experts: Literal["each", "shard"] = "each"
    expert_layers: tuple[Annotated[int, Field(ge=0, strict=True)], ...] | None = None

    @property
    def settings(self) -> MetricsSettings:
        """The same in the form the metrics take."""
        return MetricsSettings(self.enabled, self.max_series, self.experts == "each", self.expert_layers)


class TracingConfig(_Section):
    """OpenTelemetry traces of requests; none without this section."""

    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
    share: Confidence = 0.01

    @property
    def settings(self) -> TracingSettings:
        """The same in the form the doors take."""
        return TracingSettings(self.endpoint, self.share)


class FewshardConfig(_Section):
    """The whole of `fewshard.yaml`."""

    models: tuple[ModelConfig, ...]
    cascades: tuple[CascadeConfig, ...] = ()
    server: ServerConfig = ServerConfig()
    auth: AuthConfig | None = None
    limits: LimitsConfig = LimitsConfig()
    logging: LoggingConfig = LoggingConfig()
    metrics: MetricsConfig = MetricsConfig()
    tracing: TracingConfig | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> "FewshardConfig":
        if not self.models:
            raise ValueError("models is empty; name at least one model")
        names = [*(model.name for model in self.models), *(cascade.name for cascade in self.cascades)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two models are named {', '.join(map(repr, twice))}; every name must be its own"
            )
        return self

    @model_validator(mode="after")
    def _stages_are_models(self) -> "FewshardConfig":
        names = [model.name for model in self.models]
        for cascade in self.cascades:
            for stage in cascade.stages:
                if stage not in names:
                    raise ValueError(
                        f"the cascade {cascade.name!r} has the stage {stage!r}, which is no model; "
                        f"there are: {', '.join(names)}"
                    )
        return self

    @model_validator(mode="after")
    def _shadows_are_models(self) -> "FewshardConfig":
        by_name = {model.name: model for model in self.models}
        for model in self.models:
            if model.shadow is None:
                continue
            shadow = by_name.get(model.shadow.model)
            if shadow is None or shadow is model:
                raise ValueError(
                    f"the shadow of {model.name!r} must be another model; there are: {', '.join(by_name)}"
                )
            if shadow.shadow is not None:
                raise ValueError(f"{shadow.name!r} is a shadow and must have none itself")
        return self

    def only(self, names: list[str]) -> "FewshardConfig":
        """The same with these models alone, in this order, and the cascades that are made of them.

        A cascade's name stands for its stages. Raises `ConfigError` for an unknown name.
        """
        by_name = {model.name: model for model in self.models}
        stages = {cascade.name: cascade.stages for cascade in self.cascades}
        wanted: list[str] = []
        for name in names:
            if name not in by_name and name not in stages:
                there = ", ".join([*by_name, *stages])
                raise ConfigError(f"no model named {name!r} in the configuration; there are: {there}")
            wanted += stages.get(name, (name,))
        if not names:
            raise ConfigError(f"no model is named; there are: {', '.join(by_name)}")
        cascades = tuple(each for each in self.cascades if set(each.stages) <= set(wanted))
        models = tuple(_shadowed_by(by_name[name], wanted) for name in dict.fromkeys(wanted))
        return self.model_copy(update={"models": models, "cascades": cascades})

    def with_server(
        self, host: str | None = None, port: int | None = None, grpc_port: int | None = None
    ) -> "FewshardConfig":
        """The same with another address; None keeps what is configured. Raises `ConfigError`."""
        asked = {"host": host, "port": port, "grpc_port": grpc_port}
        given = {key: value for key, value in asked.items() if value is not None}
        try:
            server = ServerConfig(**{**self.server.model_dump(), **given})
        except ValidationError as error:
            raise ConfigError(
                "; ".join(f"{_option(e['loc'])}{e['msg'].lower()}" for e in error.errors())
            ) from None
        return self.model_copy(update={"server": server})


def _shadowed_by(model: ModelConfig, names: list[str]) -> ModelConfig:
    """Without its shadow where that is not among the names."""
    if model.shadow is None or model.shadow.model in names:
        return model
    return model.model_copy(update={"shadow": None})


def _option(at: Location) -> str:
    return f"--{str(at[0]).replace('_', '-')}: " if at else ""


def zoo_dir() -> Path:
    """The folder of the bundled checkpoints, found without importing torch, as the package would."""
    spec = find_spec("fewshard_models")
    assert spec is not None, "fewshard_models is part of this distribution"
    assert spec.submodule_search_locations is not None, "fewshard_models is a package"
    return Path(next(iter(spec.submodule_search_locations))) / "zoo"


def zoo_names() -> list[str]:
    """The bundled checkpoints' names, sorted."""
    return sorted(config.parent.name for config in zoo_dir().glob("*/config.json"))


def bundled_config() -> FewshardConfig:
    """Every bundled model with the default settings; raises `ConfigError` where there is none."""
    names = zoo_names()
    if not names:
        raise ConfigError(
            f"this installation bundles no models ({zoo_dir()} is empty); "
            "name your own in a fewshard.yaml and run `fewshard serve fewshard.yaml`"
        )
    return FewshardConfig(models=tuple(ModelConfig(name=name, path=f"zoo:{name}") for name in names))


def load_config(path: str | Path) -> FewshardConfig:
    """Read `fewshard.yaml`. A relative directory in `path:` is taken from the file's own folder.

    Raises `ConfigError` with the file, the line where it is known, what is wrong and what to do.
    """
    file = read_yaml(Path(path))
    try:
        config = FewshardConfig.model_validate(file.data)
    except ValidationError as error:
        raise ConfigError(explain(file, error, FewshardConfig)) from None
    return _resolve(config, file)


def json_schema() -> str:
    """The JSON schema of `fewshard.yaml`, for editors."""
    return json.dumps(FewshardConfig.model_json_schema(), indent=2)


def _resolve(config: FewshardConfig, file: YamlFile) -> FewshardConfig:
    models = tuple(_resolve_model(model, file, ("models", i)) for i, model in enumerate(config.models))
    return config.model_copy(update={"models": models, "auth": _resolve_auth(config.auth, file)})


def _resolve_auth(auth: AuthConfig | None, file: YamlFile) -> AuthConfig | None:
    """With the path in full, of a file that was read once: a server that lets nobody in is of no use."""
    if auth is None:
        return None
    path = (file.path.parent / Path(auth.tokens_file).expanduser()).resolve()
    read_tokens(path)
    return AuthConfig(tokens_file=str(path))


def _resolve_model(model: ModelConfig, file: YamlFile, at: Location) -> ModelConfig:
    scheme, colon, name = model.path.partition(":")
    if scheme == "zoo" and name not in zoo_names():
        there = ", ".join(zoo_names()) or "none"
        raise ConfigError(file.message((*at, "path"), f"no bundled model {name!r}; the zoo holds: {there}"))
    model = model.model_copy(update={"experts": _resolve_experts(model.experts, file)})
    if colon:
        return model
    return model.model_copy(update={"path": _beside(file, model.path)})


def _resolve_experts(experts: ExpertsConfig | None, file: YamlFile) -> ExpertsConfig | None:
    if experts is None or experts.placement in PLACEMENTS:
        return experts
    return experts.model_copy(update={"placement": _beside(file, experts.placement)})


def _beside(file: YamlFile, path: str) -> str:
    """A relative path is taken from the file's own folder."""
    return str((file.path.parent / Path(path).expanduser()).resolve())
