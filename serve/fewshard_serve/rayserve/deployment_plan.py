"""Plans which applications serve which models. The plan is plain values that are sent to replicas."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fewshard_core.formats import AUTO
from fewshard_serve.backends.child_process import OWN_LOADER
from fewshard_serve.canary import CanaryConfig
from fewshard_serve.config import (
    CascadeConfig,
    FewshardConfig,
    ModelConfig,
    ReplicasConfig,
    ServerConfig,
    ShadowConfig,
)
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.errors import StartError
from fewshard_serve.group.settings import ExpertsSettings
from fewshard_serve.http.callers import is_loopback
from fewshard_serve.http.middleware import AccessSettings
from fewshard_serve.http.versions import key_of
from fewshard_serve.metrics import CostSettings, MetricsSettings
from fewshard_serve.rayserve.haproxy_rules import FrontSettings

SHARED_APP = "models"
GATEWAY_APP = "gateway"
MODELS_PREFIX = "/v2/models"
DEFAULT_LOADER = OWN_LOADER

HOST_CPUS = 0.5
GATEWAY_CPUS = 0.1
ANSWER_MARGIN_S = 5.0
"""A replica that has not answered this long after the longest deadline is treated as hung."""
DRAIN_MARGIN_S = 5.0
"""A drain may exceed the longest deadline by this, because answers must also be written."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of a host.

    path: the checkpoint: zoo:<name>, hf:<owner>/<name> or a directory.
    shadow_app: the application that serves its shadow; "" if it has none.
    diagnostics_share: the share of items that are diagnosed.
    stamp: changes when the files of the checkpoint directory change.
    engine: what computes the network; "auto" lets its machine choose.
    thresholds: by label, the score from which an item has it.
    version: which version of the model it is; "" of one that lists none.
    weight: the version's part of the requests that ask for no version.
    canary: the canary of the model, if it has one.
    """

    name: str
    path: str
    device: str
    dtype: str
    settings: EngineSettings
    experts: ExpertsSettings | None = None
    cost: CostSettings = CostSettings()  # noqa: RUF009  it is frozen
    shadow: ShadowConfig | None = None
    shadow_app: str = ""
    diagnostics_share: float = 0.0
    stamp: str = ""
    engine: str = AUTO
    thresholds: Mapping[str, float] = field(default_factory=dict)
    version: str = ""
    weight: float = 0.0
    canary: CanaryConfig | None = None

    @property
    def key(self) -> str:
        """The name under which it is loaded and counted."""
        return key_of(self.name, self.version)


@dataclass(frozen=True, slots=True)
class HostSpec:
    """One Serve application.

    loader: `module:function`, called with name, path, device and dtype.
    num_gpus: GPUs of each replica, or of each shard if a replica has several.
    num_neighbours: processes that share a machine's cores, this one included.
    is_on_one_machine: no process of it runs elsewhere, so none must be reachable from outside.
    must_load: a replica fails to start if one of its models cannot be loaded.
    starts_dir: a directory on its machine in which starts are counted.
    """

    app: str
    route_prefix: str
    models: tuple[ModelSpec, ...]
    replicas: ReplicasConfig = ReplicasConfig()  # noqa: RUF009  it is frozen
    num_gpus: float = 0.0
    num_cpus: float = HOST_CPUS
    num_neighbours: int = 1
    loader: str = DEFAULT_LOADER
    doors: AccessSettings = field(default_factory=AccessSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    is_on_one_machine: bool = False
    must_load: bool = False
    starts_dir: str = ""

    @property
    def min_replicas(self) -> int:
        return self.replicas.min

    @property
    def max_replicas(self) -> int:
        return self.replicas.max

    @property
    def deadline_s(self) -> float:
        return max(model.settings.admission.deadline_s for model in self.models)

    @property
    def drain_timeout_s(self) -> float:
        return self.deadline_s + DRAIN_MARGIN_S

    @property
    def experts(self) -> ExpertsSettings | None:
        """How a replica is split over shards; None if it is one process."""
        return self.models[0].experts

    @property
    def num_shards(self) -> int:
        """Processes of one replica."""
        return 1 if self.experts is None else self.experts.shards

    @property
    def may_use_gpu(self) -> bool:
        return any(model.device != "cpu" for model in self.models)

    @property
    def needs_gpu(self) -> bool:
        return any(model.device == "cuda" for model in self.models)


@dataclass(frozen=True, slots=True)
class CascadeSpec:
    """The Serve application of one cascade. `hosts` serve its stages."""

    config: CascadeConfig
    hosts: tuple[HostSpec, ...]
    doors: AccessSettings = field(default_factory=AccessSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    min_replicas: int = 1
    max_replicas: int = 1
    num_gpus: float = 0.0
    num_cpus: float = GATEWAY_CPUS
    num_shards: int = 1
    experts: None = None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def app(self) -> str:
        return f"cascade-{self.name}"

    @property
    def route_prefix(self) -> str:
        return f"{MODELS_PREFIX}/{self.name}"

    @property
    def models(self) -> tuple["CascadeSpec", ...]:
        """The models that it serves by name: itself."""
        return (self,)

    @property
    def drain_timeout_s(self) -> float:
        return max(host.drain_timeout_s for host in self.hosts)


AppSpec = HostSpec | CascadeSpec
"""An application that serves models under a route prefix."""


def plan_cascades(config: FewshardConfig, hosts: list[HostSpec]) -> list[CascadeSpec]:
    """Return one application for each cascade of the configuration."""
    return [_cascade_spec(cascade, hosts) for cascade in config.cascades]


def _cascade_spec(cascade: CascadeConfig, hosts: list[HostSpec]) -> CascadeSpec:
    def serves_a_stage(host: HostSpec) -> bool:
        return any(model.name in cascade.stages for model in host.models)

    own = tuple(host for host in hosts if serves_a_stage(host))
    doors, metrics = hosts[0].doors, hosts[0].metrics
    return CascadeSpec(cascade, own, doors, metrics)


def plan_hosts(
    config: FewshardConfig,
    loader: str = DEFAULT_LOADER,
    doors: AccessSettings = AccessSettings(),  # noqa: B008  it is frozen
) -> list[HostSpec]:
    """Return the shared host first, if there is one, then the hosts of single models."""
    shared = tuple(
        spec for model in config.models if not model.has_own_host for spec in _model_specs(model, config)
    )
    hosts = [_own_host(model, config, loader) for model in config.models if model.has_own_host]
    if shared:
        hosts.insert(0, HostSpec(SHARED_APP, MODELS_PREFIX, shared, loader=loader))
    return [replace(host, doors=doors, metrics=config.metrics) for host in hosts]


def door_settings(
    config: FewshardConfig,
    log_path: str = "",
    is_behind_haproxy: bool = False,
    launcher_sha256: str = "",
    is_on_cluster: bool = False,
) -> AccessSettings:
    """Return the settings that every replica needs to admit and log requests.

    is_on_cluster: `config` is one application's part, which does not say where the server listens.
    """
    callers, host = config.callers, config.server.host
    if not is_on_cluster:
        callers = replace(callers, hosts=(*callers.hosts, host))
    return AccessSettings(
        tokens_file=config.auth.tokens_file if config.auth else "",
        limits=config.limits,
        logs=config.logging,
        log_path=log_path,
        is_behind_haproxy=is_behind_haproxy,
        tracing=config.tracing,
        cors=config.cors,
        callers=callers,
        # Pages know no token. Where one is asked for, the names are checked only if some are given.
        guards_pages=config.auth is None or bool(config.callers.hosts),
        is_on_loopback=not is_on_cluster and is_loopback(host),
        launcher_sha256=launcher_sha256,
    )


def front_settings(config: FewshardConfig, is_on_cluster: bool = False) -> FrontSettings:
    """Return what HAProxy needs of the configuration.

    is_on_cluster: it listens where Ray Serve says, before it are proxies, and the configuration may change.
    """
    deadlines_s = {model.name: model.admission.deadline_s for model in config.models}
    longest_s = max(deadlines_s.values())
    num_stages = max((len(cascade.stages) for cascade in config.cascades), default=1)
    body_s, answer_s = config.limits.max_body_s, num_stages * longest_s + ANSWER_MARGIN_S
    server = config.server
    if is_on_cluster:
        is_bounded = "max_connections_per_address" in server.model_fields_set
        per_address = server.max_connections_per_address if is_bounded else 0
        proxies = config.callers.trusted_proxies
        return FrontSettings(
            body_s,
            answer_s,
            per_address=per_address,
            trusted_proxies=proxies,
            retried_bytes=config.limits.max_retried_bytes,
        )
    for cascade in config.cascades:
        deadlines_s[cascade.name] = sum(deadlines_s[stage] for stage in cascade.stages)
    return FrontSettings(
        body_s,
        answer_s,
        tuple(deadlines_s.items()),
        _address(server),
        server.tls,
        server.max_connections_per_address,
        config.callers.trusted_proxies,
        config.limits.max_retried_bytes,
    )


def _address(server: ServerConfig) -> str:
    """Return the address to listen on in HAProxy's terms; every one of IPv6 includes those of IPv4."""
    return f"{server.host}:{server.port}{' v4v6' if server.host == '::' else ''}"


def check_front(server: ServerConfig, has_own_haproxy: bool) -> None:
    """Raise `StartError` for a setting of the server that needs an HAProxy of ours, if there is none."""
    needing = {"tls", "max_connections_per_address"} & server.model_fields_set
    if needing and not has_own_haproxy and (server.tls or server.max_connections_per_address):
        raise StartError(
            f"server.{min(needing)} needs the HAProxy that `fewshard serve` starts with a Ray of its own, on "
            "Linux; leave it out, and put a proxy that does it in front"
        )


def _own_host(model: ModelConfig, config: FewshardConfig, loader: str) -> HostSpec:
    prefix, replicas = f"{MODELS_PREFIX}/{model.name}", model.replicas or ReplicasConfig()
    return HostSpec(_app_of(model), prefix, _model_specs(model, config), replicas, loader=loader)


def _app_of(model: ModelConfig) -> str:
    return f"model-{model.name}" if model.has_own_host else SHARED_APP


def _shadow_app(model: ModelConfig, config: FewshardConfig) -> str:
    if model.shadow is None:
        return ""
    (shadow,) = (each for each in config.models if each.name == model.shadow.model)
    return _app_of(shadow)


def _model_specs(model: ModelConfig, config: FewshardConfig) -> tuple[ModelSpec, ...]:
    """Return one entry for each version of the model."""
    spec = _model_spec(model, config)
    return tuple(
        replace(
            spec,
            version=version,
            path=path,
            stamp=_stamp(path),
            weight=model.weights[version],
            canary=model.canary,
        )
        for version, path in model.versions.items()
    ) or (spec,)


def _model_spec(model: ModelConfig, config: FewshardConfig) -> ModelSpec:
    return ModelSpec(
        model.name,
        model.path,
        model.device,
        model.dtype,
        EngineSettings(model.batching, model.admission),
        model.experts,
        model.cost,
        model.shadow,
        _shadow_app(model, config),
        model.diagnostics_share,
        _stamp(model.path),
        model.engine,
        model.thresholds,
    )


def _stamp(path: str) -> str:
    """Return newest modification time, number and total size of a directory's files; "" if it is missing."""
    try:
        files = [file.stat() for file in Path(path).iterdir()]
    except OSError:
        return ""
    newest_ns = max((file.st_mtime_ns for file in files), default=0)
    return f"{newest_ns}:{len(files)}:{sum(file.st_size for file in files)}"
