"""The formulas of docs/cost.md as pure functions with units in their names. Called by `report`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

HOURS_PER_MONTH = 730.0
SECONDS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6
MILLION = 1e6
MAX_BREAK_EVEN_MACHINES = 1000


def per_million(
    per_hour: float, rate_at_slo: float, utilisation: float = 1.0, num_machines: int = 1
) -> float:
    """Price of a million predictions, in the currency of `per_hour`.

    per_hour: price of one machine for an hour.
    rate_at_slo: predictions per second that all `num_machines` together sustain within the SLO.
    utilisation: mean share of that rate that is in use.
    Raises ValueError unless the rate and the utilisation are above 0.
    """
    _above_zero(rate_at_slo=rate_at_slo, utilisation=utilisation)
    return per_hour * num_machines / (rate_at_slo * utilisation * SECONDS_PER_HOUR) * MILLION


def modelled_joules(cpu_s: float, core_w: float, idle_w: float, seconds: float) -> float:
    """Modelled energy in joules: `core_w` watts per busy core-second plus a constant `idle_w` watts."""
    return cpu_s * core_w + idle_w * seconds


def kwh_per_million(joules_per_prediction: float) -> float:
    """Kilowatt-hours of a million predictions."""
    return joules_per_prediction * MILLION / JOULES_PER_KWH


def carbon_g_per_million(joules_per_prediction: float, carbon_g_per_kwh: float) -> float:
    """Grams of CO2 of a million predictions."""
    return kwh_per_million(joules_per_prediction) * carbon_g_per_kwh


def fleet_machines(wished_rate: float, rate_at_slo: float, headroom: float, spare: int) -> int:
    """Number of machines for `wished_rate` predictions per second.

    rate_at_slo: predictions per second of one machine.
    headroom: extra capacity as a share of the wished rate; 0.3 is 30 %.
    spare: additional machines that may fail (1 is N+1).
    """
    _above_zero(wished_rate=wished_rate, rate_at_slo=rate_at_slo)
    return math.ceil(round(wished_rate * (1 + headroom) / rate_at_slo, 9)) + spare


@dataclass(frozen=True, slots=True)
class Fleet:
    """Machines for a wished rate, and their cost.

    machines: number of machines.
    per_month: their cost in a month of 730 hours, busy or idle.
    per_million: their cost per million predictions that clients request.
    """

    machines: int
    per_month: float
    per_million: float


def fleet(
    wished_rate: float, rate_at_slo: float, per_hour: float, headroom: float = 0.3, spare: int = 1
) -> Fleet:
    """The fleet for `wished_rate` predictions per second; arguments as in `fleet_machines`."""
    machines = fleet_machines(wished_rate, rate_at_slo, headroom, spare)
    cost = per_million(per_hour, wished_rate, 1.0, machines)
    return Fleet(machines, machines * per_hour * HOURS_PER_MONTH, cost)


def break_even_rate(
    rate_a: float,
    per_hour_a: float,
    rate_b: float,
    per_hour_b: float,
    headroom: float = 0.3,
    spare: int = 1,
) -> float | None:
    """The wished rate, in predictions per second, above which B's fleet never costs more than A's.

    Returns 0 if B never costs more, and None if B costs as much or more at every scale.

    Fleets consist of whole machines, so the difference changes in steps; the result is the last rate at
    which A is cheaper. `rate_a` and `rate_b` are those of one machine at the SLO.
    """
    _above_zero(rate_a=rate_a, rate_b=rate_b)
    if per_hour_b / rate_b >= per_hour_a / rate_a:
        return None

    def dearer(wished: float) -> bool:
        cost_b = per_hour_b * fleet_machines(wished, rate_b, headroom, spare)
        return cost_b > per_hour_a * fleet_machines(wished, rate_a, headroom, spare)

    return _last_step(rate_a, rate_b, headroom, dearer)


def _last_step(rate_a: float, rate_b: float, headroom: float, dearer: Callable[[float], bool]) -> float:
    """Upper end of the last interval between two steps in which B costs more; 0 if there is none."""
    ends = sorted(
        {
            count * rate / (1 + headroom)
            for rate in (rate_a, rate_b)
            for count in range(1, MAX_BREAK_EVEN_MACHINES + 1)
        }
    )
    # Keep only steps that both lists cover: beyond the end of the shorter one, some are missing.
    ends = [end for end in ends if end <= MAX_BREAK_EVEN_MACHINES * min(rate_a, rate_b) / (1 + headroom)]
    begins = [0.0, *ends]
    stretches = zip(begins, ends, strict=False)
    return max((end for begin, end in stretches if dearer((begin + end) / 2)), default=0.0)


def break_even_predictions(one_off: float, per_million_a: float, per_million_b: float) -> float | None:
    """Number of predictions after which B has saved `one_off`, its one-off cost; None if B is not cheaper."""
    saved = per_million_a - per_million_b
    return one_off / saved * MILLION if saved > 0 else None


def amdahl(model_speedup: float, overhead_share: float) -> float:
    """Overall speed-up if `overhead_share` of the dense time is outside the model and does not change."""
    _above_zero(model_speedup=model_speedup)
    return 1 / (overhead_share + (1 - overhead_share) / model_speedup)


def realised(speedup: float, macs_dense: float, macs: float) -> float:
    """R, the realised share of the promised saving: speed-up divided by the reduction of MACs."""
    _above_zero(macs_dense=macs_dense, macs=macs)
    return speedup * macs / macs_dense


def _above_zero(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value:g}")
