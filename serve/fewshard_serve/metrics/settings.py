"""What a configuration says of metrics, as plain values that travel to replicas."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """How much a replica reports. `expert_layers`: whose experts are told apart, None for all.

    `counts_experts` false leaves the sums by shard. `max_series` bounds what labels and experts may add.
    """

    is_on: bool = True
    max_series: int = 2000
    counts_experts: bool = True
    expert_layers: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class CostSettings:
    """What a replica costs, in US dollars an hour, and what power it takes computing; None: unknown."""

    usd_per_hour: float | None = None
    watts: float | None = None
