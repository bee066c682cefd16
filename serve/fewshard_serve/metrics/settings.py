"""The settings of metrics and costs; the configuration is sent to the replicas with them."""

from dataclasses import dataclass
from typing import Literal

from fewshard_serve.settings import NO_OTHER_KEYS, Flag, Index, NonNegative, PositiveInt


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """How much each replica reports."""

    __pydantic_config__ = NO_OTHER_KEYS

    enabled: Flag = True
    max_series: PositiveInt = 2000
    """The most series of one replica; limits those by label and expert."""
    experts: Literal["each", "shard"] = "each"
    """Whether to report every expert, or only the sums by shard."""
    expert_layers: tuple[Index, ...] | None = None
    """The layers whose experts get series of their own; None for all."""

    @property
    def counts_experts(self) -> bool:
        """Whether each expert gets a series of its own."""
        return self.experts == "each"


@dataclass(frozen=True, slots=True)
class CostSettings:
    """What a replica costs while it computes."""

    __pydantic_config__ = NO_OTHER_KEYS

    usd_per_hour: NonNegative | None = None
    """US dollars per hour; None if unknown."""
    watts: NonNegative | None = None
    """The power that it draws, in watts; None if unknown. A measured energy takes precedence."""
