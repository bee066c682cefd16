"""Schema of a scenario file; docs/load-tests.md lists every key."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fewshard_core.yaml_reader import Section, read_yaml
from fewshard_loadtest.arrivals import Stage, sine, spikes
from fewshard_loadtest.errors import ScenarioError
from fewshard_loadtest.protocols import Protocol

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class ServerPart(Section):
    """The server under test: `url` joins a running one; else one is started with `config` on `port`."""

    url: str | None = None
    config: Path | None = None
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    grpc_port: Annotated[int, Field(ge=1, le=65535)] = 8001
    pid: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.url is not None and self.config is not None:
            raise ValueError("`url` joins a server and `config` starts one; give one of the two")
        return self


class PayloadPart(Section):
    """Payloads by task; each is a name or file for `payloads.load`."""

    text: str = "texts"
    image: str = "images"


class SloPart(Section):
    """Limits within which a rate counts as sustained."""

    p99_ms: Positive = 50.0
    max_errors: Share = 0.001


class PricePart(Section):
    """A machine of the price list, or the user's own price, which takes precedence."""

    machine: str | None = None
    per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    currency: Annotated[str, Field(min_length=1)] | None = None
    machines: Count = 1

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.per_hour is not None and self.currency is None:
            raise ValueError("a `per_hour` of your own needs its `currency`, as in USD")
        if self.per_hour == 0:
            raise ValueError("a `per_hour` of 0 makes everything free; leave `price` out if it is unknown")
        return self


class EnergyPart(Section):
    """Energy model for machines without counters: `idle_w` constantly, plus `core_w` per busy core."""

    core_w: Positive = 10.0
    idle_w: Annotated[float, Field(ge=0)] = 0.0
    carbon_g_per_kwh: Annotated[float, Field(ge=0)] = 445.0
    carbon_source: str = "world mean of 2024, IEA Electricity 2025"


class FleetPart(Section):
    """The fleet to plan: machines for a rate. `one_off`: one-off cost of making the sparse model."""

    rate: Positive = 1000.0
    headroom: Annotated[float, Field(ge=0)] = 0.3
    spare: Annotated[int, Field(ge=0)] = 1
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.7
    one_off: Annotated[float, Field(ge=0)] = 0.0


class _Load(Section):
    """Common fields of all loads.

    items: texts or images per request.
    relative (where present): rates are multiples of the rate that a preceding `search` found for the model.
    """

    duration_s: Positive = 10.0
    items: Count = 1


class Closed(_Load):
    """A closed loop: one run for each number of `users`, who each wait for their response."""

    kind: Literal["closed"]
    users: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 64)


class Open(_Load):
    """An open loop with Poisson arrivals: one run for each rate."""

    kind: Literal["open"]
    rates: Annotated[tuple[Positive, ...], Field(min_length=1)]
    relative: bool = False


class Search(_Load):
    """A bisection for the greatest rate within the SLO, to a relative `precision`."""

    kind: Literal["search"]
    precision: Annotated[float, Field(gt=0, lt=1)] = 0.03
    start: Positive | None = None


class Shaped(_Load):
    """Base class of open loops whose rate changes during the run."""

    relative: bool = False

    def stages(self) -> tuple[Stage, ...]:
        raise NotImplementedError


class Steps(Shaped):
    """Each of `rates` in turn, for equal times."""

    kind: Literal["steps"]
    rates: Annotated[tuple[Positive, ...], Field(min_length=2)]

    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(self.duration_s / len(self.rates), rate) for rate in self.rates)


class Spike(Shaped):
    """Rate `base`, with a `peak` of `spike_s` seconds in every `every_s`."""

    kind: Literal["spike"]
    base: Positive
    peak: Positive
    every_s: Positive = 10.0
    spike_s: Positive = 1.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.spike_s < self.every_s <= self.duration_s:
            raise ValueError("a spike needs spike_s < every_s <= duration_s")
        return self

    def stages(self) -> tuple[Stage, ...]:
        return spikes(self.base, self.peak, self.every_s, self.spike_s, self.duration_s)


class Diurnal(Shaped):
    """From `low` to `high` and back in every `period_s` seconds."""

    kind: Literal["diurnal"]
    low: Positive
    high: Positive
    period_s: Positive = 60.0

    def stages(self) -> tuple[Stage, ...]:
        return sine(self.low, self.high, self.period_s, self.duration_s)


class Soak(Shaped):
    """One rate for a long time; the report looks for drift."""

    kind: Literal["soak"]
    rate: Positive
    duration_s: Positive = 3600.0

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.duration_s, self.rate),)


class Mixed(_Load):
    """Several models at once: `rate` requests/s in total, divided by `shares`."""

    kind: Literal["mixed"]
    rate: Positive
    shares: Annotated[dict[str, Positive], Field(min_length=2)]


Load = Annotated[Closed | Open | Search | Steps | Spike | Diurnal | Soak | Mixed, Field(discriminator="kind")]


class Scenario(Section):
    """A load test. Models of a task are compared with its first dense model."""

    name: Annotated[str, Field(min_length=1)]
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    loads: Annotated[tuple[Load, ...], Field(min_length=1)]
    server: ServerPart = ServerPart()
    protocol: Protocol = "classify"
    payload: PayloadPart = PayloadPart()
    slo: SloPart = SloPart()
    warmup_s: Annotated[float, Field(ge=0)] = 2.0
    repeats: Count = 3
    seed: int = 0
    generators: Count = 1
    calibrate: bool = True
    price: PricePart | None = None
    energy: EnergyPart = EnergyPart()
    fleet: FleetPart = FleetPart()

    @model_validator(mode="after")
    def _loads_fit(self) -> Self:
        if len(set(self.models)) < len(self.models):
            raise ValueError("a model is named twice in `models`")
        has_searched = False
        for load in self.loads:
            has_searched = has_searched or isinstance(load, Search)
            if getattr(load, "relative", False) and not has_searched:
                raise ValueError(f"`relative` rates of {load.kind!r} need a `search` before them")
            if isinstance(load, Mixed) and (unknown := set(load.shares) - set(self.models)):
                raise ValueError(f"`shares` names {sorted(unknown)[0]!r}, which is not among `models`")
        return self

    def about_seconds(self) -> float:
        """Estimated duration in seconds; a search is assumed to need nine steps."""
        seconds = sum(_steps(load) * (load.duration_s + self.warmup_s + 2) for load in self.loads)
        return math.ceil(seconds * self.repeats * len(self.models))


def _steps(load: Load) -> float:
    if isinstance(load, Closed):
        return len(load.users)
    if isinstance(load, Open):
        return len(load.rates)
    return 9 if isinstance(load, Search) else 1


def load_scenario(path: Path, only: Sequence[str] = ()) -> Scenario:
    """The scenario of a file, restricted to the models in `only` if any are named.

    A server `config` is resolved relative to the file. Raises `ScenarioError`.
    """
    scenario = read_yaml(path, ScenarioError).parse(Scenario)
    if unknown := [name for name in only if name not in scenario.models]:
        known = ", ".join(scenario.models)
        raise ScenarioError(f"{path}: {unknown[0]!r} is not among its models; there are: {known}")
    if only:
        scenario = scenario.model_copy(update={"models": tuple(only)})
    if scenario.server.config is not None:
        config = path.parent / scenario.server.config
        if not config.is_file():
            raise ScenarioError(f"{path}: server.config names {config}, and there is no such file")
        server = scenario.server.model_copy(update={"config": config.resolve()})
        scenario = scenario.model_copy(update={"server": server})
    return scenario
