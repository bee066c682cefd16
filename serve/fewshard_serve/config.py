"""The schema of `fewshard.yaml`; `config_file` reads the file, and `rayserve` deploys what it describes.

A section that only one package uses is a settings class of that package. Every key has an effect.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from fewshard_core.formats import AUTO, FORMATS
from fewshard_core.yaml_reader import Section
from fewshard_models import hub
from fewshard_models.errors import ModelsError
from fewshard_serve.canary import CanaryConfig, as_text
from fewshard_serve.engine.settings import AdmissionSettings, BatchingSettings
from fewshard_serve.group.settings import ExpertsSettings
from fewshard_serve.http.callers import CallersSettings
from fewshard_serve.http.cors import CorsSettings
from fewshard_serve.http.middleware import TracingSettings
from fewshard_serve.logs import LogSettings
from fewshard_serve.metrics import CostSettings, MetricsSettings
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.settings import NonNegative, Positive, PositiveInt, Share

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"


class _WithSettings(Section):
    """Remembers which keys of its settings classes were given; pydantic does so only for its own models."""

    _given: dict[str, frozenset[str]] = PrivateAttr({})

    @model_validator(mode="wrap")
    @classmethod
    def _note_given(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        section = handler(value)
        if isinstance(value, Mapping):
            parts = {key: part for key, part in value.items() if isinstance(part, Mapping)}
            section._given = {key: frozenset(part) for key, part in parts.items()}
        return section

    def __eq__(self, other: object) -> bool:
        """Configurations with equal values are equal, whether the values were given or are defaults."""
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = Section.__hash__

    @model_serializer(mode="wrap")
    def _leave_out_unset(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        whole: dict[str, Any] = handler(self)
        if info.exclude_unset:
            for name, given in self._given.items():
                if is_dataclass(getattr(self, name)) and name in whole:
                    whole[name] = {key: value for key, value in whole[name].items() if key in given}
        return whole


def _usable_in_urls(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(f"{name!r} must begin with a letter or digit and hold only these, '.', '_' and '-'")
    from fewshard_serve.http.routes import reserved_names  # a costly import that only reading a file needs

    if name.lower() in reserved_names():
        raise ValueError(f"{name!r} is part of the server's URLs and cannot name a model; choose another")
    return name


def _known_format(name: object) -> str:
    known = (AUTO, *FORMATS.names)
    if not isinstance(name, str) or name not in known:
        *others, last = map(repr, known)
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})
    return name


def _known_scheme(path: str) -> str:
    scheme, colon, rest = path.partition(":")
    if colon and scheme not in ("zoo", "hf"):
        raise ValueError(f"{path!r} is none of zoo:<name>, hf:<owner>/<name> and a directory")
    if colon and not rest:
        raise ValueError(f"{path!r} lacks the name after the colon")
    if scheme == "hf" and colon:
        try:
            hub.parse(path)
        except ModelsError as error:
            raise ValueError(str(error)) from None
    return path


ModelName = Annotated[str, Field(max_length=128), AfterValidator(_usable_in_urls)]
FormatName = Annotated[
    str, PlainValidator(_known_format), WithJsonSchema({"type": "string", "enum": [AUTO, *FORMATS.names]})
]
CheckpointPath = Annotated[str, Field(min_length=1), AfterValidator(_known_scheme)]


VersionName = Annotated[str, Field(max_length=64, pattern=f"^{NAME_PATTERN}$"), BeforeValidator(as_text)]


class ReplicasConfig(Section):
    """How many copies of the model run; fewer at rest, more under load."""

    min: PositiveInt = 1
    max: PositiveInt = 1
    target_items: Positive = 64.0
    scale_up_s: NonNegative = 5.0
    scale_down_s: NonNegative = 60.0

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


class ShadowConfig(Section):
    """A second model that is asked the same, compared, and never returned."""

    model: ModelName
    share: Share = 0.1


def _shadow_from_name(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


# A plain model name means that model with the default share; the JSON schema includes this form.
Shadow = Annotated[
    ShadowConfig | None,
    BeforeValidator(_shadow_from_name, json_schema_input_type=ShadowConfig | ModelName | None),
]


def _path_or_versions(schema: dict[str, Any]) -> None:
    """Say in the JSON schema that `versions` may stand in place of `path`."""
    schema["required"].remove("path")
    schema["anyOf"] = [{"required": ["path"]}, {"required": ["versions"]}]


class ModelConfig(_WithSettings):
    """One model to serve."""

    model_config = ConfigDict(json_schema_extra=_path_or_versions)

    name: ModelName
    path: CheckpointPath
    versions: dict[VersionName, CheckpointPath] = Field(default={})
    split: dict[VersionName, NonNegative] = Field(default={})
    canary: CanaryConfig | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: FormatName = AUTO
    engine: Literal["auto", "torch", "openvino"] = "auto"
    replicas: ReplicasConfig | None = None
    batching: BatchingSettings = BatchingSettings()
    admission: AdmissionSettings = AdmissionSettings()
    experts: ExpertsSettings | None = None
    cost: CostSettings = CostSettings()
    shadow: Shadow = None
    diagnostics_share: Share = 0.0
    thresholds: dict[str, Share] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _last_version_without_path(cls, value: Any) -> Any:
        versions = value.get("versions") if isinstance(value, dict) else None
        if isinstance(versions, dict) and versions and "path" not in value:
            canary = value.get("canary")
            new = str(canary.get("to")) if isinstance(canary, dict) else None
            old = [path for version, path in versions.items() if str(version) != new]
            return {**value, "path": (old or list(versions.values()))[-1]}
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> "ModelConfig":
        there = ", ".join(self.versions) or "none"
        if self.versions and self.path not in self.versions.values():
            raise ValueError(f"path must be that of a version, or be left out; there are: {there}")
        for version in self.split:
            if version not in self.versions:
                raise ValueError(f"split has {version!r}, which is no version; there are: {there}")
        if self.split and not any(self.split.values()):
            raise ValueError("every weight of split is 0; give one version more")
        if self.canary is not None:
            self._check_canary(self.canary, there)
        if self.versions and self.experts is not None:
            raise ValueError(
                "a model whose experts are spread over shards has one version; leave versions out"
            )
        return self

    def _check_canary(self, canary: CanaryConfig, there: str) -> None:
        if canary.to not in self.versions:
            raise ValueError(f"canary.to is {canary.to!r}, which is no version; there are: {there}")
        if self.split:
            raise ValueError("a canary shifts the requests itself; leave out split, or canary")
        if self.weights[canary.to]:
            raise ValueError(
                f"canary.to is the version that answers already; name another in path than {canary.to!r}"
            )
        if self.replicas is not None and self.replicas.max > 1:
            raise ValueError("a canary compares in one replica; set replicas.max to 1, or leave canary out")

    @property
    def weights(self) -> dict[str, float]:
        """How much of the requests without a version each version gets; all of them go to that of `path`."""
        if self.split:
            return {version: self.split.get(version, 0.0) for version in self.versions}
        (*_, last) = [version for version, path in self.versions.items() if path == self.path]
        return {version: float(version == last) for version in self.versions}

    @model_validator(mode="after")
    def _has_an_engine(self) -> "ModelConfig":
        if self.engine == "openvino" and (self.experts is not None or self.device == "cuda"):
            part = "spread over shards" if self.experts is not None else "on a GPU"
            raise ValueError(
                f"engine openvino computes a whole model on a CPU, not one {part}; leave engine out"
            )
        return self

    @property
    def has_own_host(self) -> bool:
        """Whether the model needs replicas of its own instead of a place in the shared replica."""
        return self.replicas is not None or self.experts is not None or self.device == "cuda"


class CascadeConfig(Section):
    """Several models as one: each is asked only for items of which those before it were not sure."""

    name: ModelName
    stages: Annotated[tuple[ModelName, ...], Field(min_length=2)]
    accept_above: Share | tuple[Share, ...]

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
        """One threshold for each stage except the last."""
        if isinstance(self.accept_above, tuple):
            return self.accept_above
        return (self.accept_above,) * (len(self.stages) - 1)


class TlsConfig(Section):
    """The certificate with which the server speaks HTTPS, and gRPC over TLS."""

    certificate: Annotated[str, Field(min_length=1)]
    key: Annotated[str, Field(min_length=1)]


class ServerConfig(Section):
    """Where the server listens."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] = 8000
    grpc_port: Annotated[int, Field(strict=True, ge=0, le=65535)] = 8001
    max_connections_per_address: Annotated[int, Field(strict=True, ge=0)] = 4096
    tls: TlsConfig | None = None

    @model_validator(mode="after")
    def _ports_differ(self) -> "ServerConfig":
        if self.port == self.grpc_port:
            raise ValueError(f"port and grpc_port are both {self.port}; choose two")
        return self


class AuthConfig(Section):
    """Who may come in."""

    tokens_file: Annotated[str, Field(min_length=1)]


class FewshardConfig(_WithSettings):
    """The whole of `fewshard.yaml`."""

    models: tuple[ModelConfig, ...]
    cascades: tuple[CascadeConfig, ...] = ()
    server: ServerConfig = ServerConfig()
    auth: AuthConfig | None = None
    limits: Limits = Limits()
    logging: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings | None = None
    cors: CorsSettings | None = None
    callers: CallersSettings = CallersSettings()

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


def json_schema() -> str:
    """The JSON schema of `fewshard.yaml`, for editors."""
    return json.dumps(FewshardConfig.model_json_schema(), indent=2)
