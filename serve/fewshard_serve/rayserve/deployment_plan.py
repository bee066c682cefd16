"""What runs where: the plan of hosts drawn from a configuration, as plain values that travel to replicas."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fewshard_serve.config import CascadeConfig, FewshardConfig, ModelConfig
from fewshard_serve.engine.settings import EngineSettings, Scaling
from fewshard_serve.errors import StartError
from fewshard_serve.group.settings import ExpertsSettings
from fewshard_serve.http.middleware import AccessSettings
from fewshard_serve.logs import LogSettings
from fewshard_serve.metrics import CostSettings, MetricsSettings
from fewshard_serve.rayserve.haproxy import Waits
from fewshard_serve.rayserve.shadow_traffic import ShadowSpec

SHARED_APP = "models"
GATEWAY_APP = "gateway"
MODELS_PREFIX = "/v2/models"
DEFAULT_LOADER = "fewshard_serve.backends.load:load_model"

HOST_CPUS = 0.5
GATEWAY_CPUS = 0.1
ANSWER_MARGIN_S = 5.0
"""A replica that has said nothing for so long after the longest deadline hangs."""
DRAIN_MARGIN_S = 5.0
"""How much longer than the longest deadline a drain may take: the answers have to be written too."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of a host. `stamp` differs where the files of a directory do."""

    name: str
    path: str
    device: str
    dtype: str
    settings: EngineSettings
    experts: ExpertsSettings | None = None
    cost: CostSettings = CostSettings()  # noqa: RUF009  it is frozen
    shadow: ShadowSpec | None = None
    diagnostics_share: float = 0.0
    stamp: str = ""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """One Serve application. `loader` is `module:function`, called with name, path, device and dtype.

    `num_gpus`: of each replica, or of each shard where these are several. `num_neighbours`: processes
    that share the cores of a machine with it, itself included. `is_on_one_machine`: nothing of it
    can be elsewhere, so that its processes need not be reached from outside. `must_load`: a replica does not
    start where one of its models cannot be loaded. `starts_dir`: where its machine counts starts.
    """

    app: str
    route_prefix: str
    models: tuple[ModelSpec, ...]
    min_replicas: int = 1
    max_replicas: int = 1
    num_gpus: float = 0.0
    num_cpus: float = HOST_CPUS
    num_neighbours: int = 1
    loader: str = DEFAULT_LOADER
    doors: AccessSettings = field(default_factory=AccessSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    is_on_one_machine: bool = False
    scaling: Scaling = field(default_factory=Scaling)
    must_load: bool = False
    starts_dir: str = ""

    @property
    def deadline_s(self) -> float:
        return max(model.settings.deadline_s for model in self.models)

    @property
    def drain_timeout_s(self) -> float:
        return self.deadline_s + DRAIN_MARGIN_S

    @property
    def experts(self) -> ExpertsSettings | None:
        """How a replica is spread over shards; None where it is one process."""
        return self.models[0].experts

    @property
    def num_shards(self) -> int:
        """Processes of one replica."""
        return 1 if self.experts is None else self.experts.num_shards

    @property
    def may_use_gpu(self) -> bool:
        return any(model.device != "cpu" for model in self.models)

    @property
    def needs_gpu(self) -> bool:
        return any(model.device == "cuda" for model in self.models)


@dataclass(frozen=True, slots=True)
class CascadeSpec:
    """The Serve application of one cascade, with the hosts of its stages."""

    name: str
    stages: tuple[str, ...]
    accept_above: tuple[float, ...]
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
    def app(self) -> str:
        return f"cascade-{self.name}"

    @property
    def route_prefix(self) -> str:
        return f"{MODELS_PREFIX}/{self.name}"

    @property
    def models(self) -> tuple["CascadeSpec", ...]:
        """What it serves, by name: itself."""
        return (self,)

    @property
    def drain_timeout_s(self) -> float:
        return max(host.drain_timeout_s for host in self.hosts)


AppSpec = HostSpec | CascadeSpec
"""Whatever serves models under a route prefix."""


def plan_cascades(config: FewshardConfig, hosts: list[HostSpec]) -> list[CascadeSpec]:
    """One application for each cascade of the configuration."""
    return [_cascade_spec(cascade, hosts) for cascade in config.cascades]


def _cascade_spec(cascade: CascadeConfig, hosts: list[HostSpec]) -> CascadeSpec:
    def serves_a_stage(host: HostSpec) -> bool:
        return any(model.name in cascade.stages for model in host.models)

    own = tuple(host for host in hosts if serves_a_stage(host))
    doors, metrics = hosts[0].doors, hosts[0].metrics
    return CascadeSpec(cascade.name, cascade.stages, cascade.thresholds, own, doors, metrics)


def plan_hosts(
    config: FewshardConfig,
    loader: str = DEFAULT_LOADER,
    doors: AccessSettings = AccessSettings(),  # noqa: B008  it is frozen
) -> list[HostSpec]:
    """The shared host first, where there is one, then the hosts of single models."""
    shared = tuple(_model_spec(model, config) for model in config.models if not model.has_own_host)
    hosts = [_own_host(model, config, loader) for model in config.models if model.has_own_host]
    if shared:
        hosts.insert(0, HostSpec(SHARED_APP, MODELS_PREFIX, shared, loader=loader))
    return [replace(host, doors=doors, metrics=config.metrics.settings) for host in hosts]


def door_settings(
    config: FewshardConfig, log_path: str = "", is_behind_haproxy: bool = False
) -> AccessSettings:
    """What every replica needs to know to open its doors."""
    return AccessSettings(
        tokens_file=config.auth.tokens_file if config.auth else "",
        limits=config.limits.limits,
        logs=LogSettings(config.logging.format, config.logging.requests, log_path),
        is_behind_haproxy=is_behind_haproxy,
        tracing=None if config.tracing is None else config.tracing.settings,
    )


def haproxy_waits(config: FewshardConfig) -> Waits:
    """How long HAProxy waits for a body, and for an answer before it asks another replica."""
    longest_s = max(model.engine_settings.deadline_s for model in config.models)
    num_stages = max((len(cascade.stages) for cascade in config.cascades), default=1)
    return Waits(config.limits.max_body_s, num_stages * longest_s + ANSWER_MARGIN_S)


def share_gpus(hosts: list[HostSpec], num_gpus: float) -> list[HostSpec]:
    """Give every replica that may use a GPU its share of those there are.

    Raises `StartError` where a model asks for `cuda` and there is none. Fewer GPUs than replicas are shared
    in equal parts, so that nothing waits for a GPU that never comes. Not by shards: each gets a GPU of its
    own, and waits for it.
    """
    if num_gpus == 0:
        for host in hosts:
            if host.needs_gpu and host.num_shards == 1:
                names = ", ".join(model.name for model in host.models)
                raise StartError(f"{names} asks for device cuda, but Ray sees no GPU; use device: auto")
        return [replace(host, num_gpus=1.0) if host.needs_gpu else host for host in hosts]
    whole = sum(host.max_replicas * host.num_shards for host in hosts if _wants_whole_gpus(host))
    wanting = sum(host.max_replicas for host in hosts if host.may_use_gpu and not _wants_whole_gpus(host))
    share = min(1.0, math.floor(100 * max(num_gpus - whole, 0) / max(wanting, 1)) / 100)
    return [replace(host, num_gpus=_gpus_of(host, share)) for host in hosts]


def share_cores(hosts: list[HostSpec], num_nodes: int) -> list[HostSpec]:
    """Tell every host how many processes will compute on its machine, were they spread evenly."""
    num_processes = sum(host.max_replicas * host.num_shards for host in hosts)
    return [replace(host, num_neighbours=-(-num_processes // num_nodes)) for host in hosts]


def reserve_gpus(hosts: Sequence[HostSpec]) -> list[HostSpec]:
    """One GPU for each process of the models that ask for `cuda`, whatever the cluster has at this moment.

    For clusters whose nodes come when they are asked for: there nothing can be shared out beforehand.
    """
    return [replace(host, num_gpus=1.0) if host.needs_gpu else host for host in hosts]


def what_is_missing(host: AppSpec, resources: Mapping[str, float]) -> str:
    """What a cluster of these `resources` ("CPU", "GPU") lacks for this host; "" where it has enough."""
    num_processes = host.min_replicas * host.num_shards
    wanted = {"GPU": host.num_gpus * num_processes, "CPU": host.num_cpus * num_processes}
    lacking = [
        f"{count:g} {what}s, and the cluster has {resources.get(what, 0):g}"
        for what, count in wanted.items()
        if count > resources.get(what, 0)
    ]
    return f"waiting: it needs {' and '.join(lacking)}; add nodes or ask for fewer shards" if lacking else ""


def _wants_whole_gpus(host: HostSpec) -> bool:
    return host.may_use_gpu and host.num_shards > 1


def _gpus_of(host: HostSpec, share: float) -> float:
    if not host.may_use_gpu:
        return host.num_gpus
    return 1.0 if _wants_whole_gpus(host) else share


def num_cpus_wanted(apps: Sequence[AppSpec]) -> int:
    """CPUs, in Ray's counting, without which some replica would never be placed."""
    return math.ceil(GATEWAY_CPUS + sum(app.num_cpus * app.max_replicas * app.num_shards for app in apps))


def _own_host(model: ModelConfig, config: FewshardConfig, loader: str) -> HostSpec:
    counts = (model.replicas.min, model.replicas.max) if model.replicas else (1, 1)
    prefix = f"{MODELS_PREFIX}/{model.name}"
    own = HostSpec(_app_of(model), prefix, (_model_spec(model, config),), *counts, loader=loader)
    return replace(own, scaling=model.replicas.scaling) if model.replicas else own


def _app_of(model: ModelConfig) -> str:
    return f"model-{model.name}" if model.has_own_host else SHARED_APP


def _shadow_spec(model: ModelConfig, config: FewshardConfig) -> ShadowSpec | None:
    if model.shadow is None:
        return None
    (shadow,) = (each for each in config.models if each.name == model.shadow.model)
    return ShadowSpec(shadow.name, model.shadow.share, _app_of(shadow))


def _model_spec(model: ModelConfig, config: FewshardConfig) -> ModelSpec:
    experts = None if model.experts is None else model.experts.settings
    return ModelSpec(
        model.name,
        model.path,
        model.device,
        model.dtype,
        model.engine_settings,
        experts,
        model.cost.settings,
        _shadow_spec(model, config),
        model.diagnostics_share,
        _stamp(model.path),
    )


def _stamp(path: str) -> str:
    """When the files of a directory were last changed, and their size; "" where there is none here."""
    try:
        files = [file.stat() for file in Path(path).iterdir()]
    except OSError:
        return ""
    newest_ns = max((file.st_mtime_ns for file in files), default=0)
    return f"{newest_ns}:{len(files)}:{sum(file.st_size for file in files)}"
