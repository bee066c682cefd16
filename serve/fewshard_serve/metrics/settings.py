"""What a configuration says of metrics and of costs; travels to replicas."""

from dataclasses import dataclass
from typing import Literal

from fewshard_serve.settings import NO_OTHER_KEYS, Flag, Index, NonNegative, PositiveInt


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """How much each replica reports."""

    __pydantic_config__ = NO_OTHER_KEYS

    enabled: Flag = True
    max_series: PositiveInt = 2000
    """Bounds what labels and experts may add."""
    experts: Literal["each", "shard"] = "each"
    expert_layers: tuple[Index, ...] | None = None
    """The layers whose experts are told apart; None for all."""

    @property
    def counts_experts(self) -> bool:
        """Whether experts are told apart; else there are only the sums by shard."""
        return self.experts == "each"


@dataclass(frozen=True, slots=True)
class CostSettings:
    """What a replica costs while it computes."""

    __pydantic_config__ = NO_OTHER_KEYS

    usd_per_hour: NonNegative | None = None
    """US dollars an hour; None where it is unknown."""
    watts: NonNegative | None = None
