"""Promised and realised speed-ups of a model against the dense one; `figures` asks for them."""

from dataclasses import dataclass
from typing import Any, Protocol

from fewshard_loadtest.cost import formulas
from fewshard_loadtest.report.costs import Measured


class Compared(Protocol):
    """What is needed of either model."""

    @property
    def card(self) -> dict[str, Any]: ...
    @property
    def infer_ms(self) -> float | None: ...
    @property
    def sustained(self) -> Measured | None: ...
    @property
    def saturated(self) -> Measured | None: ...


@dataclass(frozen=True, slots=True)
class Realised:
    """R against the dense model of the task, in the model alone and at the server, and what explains the
    difference: the share of the dense server's time that is not in the model. `expected`: the server's
    speed-up if only that share stayed (Amdahl)."""

    macs_ratio: float
    model_speedup: float | None
    model: float | None
    server_speedup: float | None
    server: float | None
    overhead_share: float | None
    expected_speedup: float | None


def realised_of(model: Compared, dense: Compared) -> Realised | None:
    macs, macs_dense = model.card.get("macs"), dense.card.get("macs")
    if not macs or not macs_dense:
        return None
    in_model = dense.infer_ms / model.infer_ms if dense.infer_ms and model.infer_ms else None
    at_server = _ratio(model.sustained, dense.sustained) or _ratio(model.saturated, dense.saturated)
    # Of a second of the saturated dense server, the share in which the model did not run.
    busy = dense.saturated or dense.sustained
    share = 1 - min(busy.mean * dense.infer_ms / 1000, 1.0) if busy and dense.infer_ms else None
    return Realised(
        macs_ratio=macs / macs_dense,
        model_speedup=in_model,
        model=None if in_model is None else formulas.realised(in_model, macs_dense, macs),
        server_speedup=at_server,
        server=None if at_server is None else formulas.realised(at_server, macs_dense, macs),
        overhead_share=share,
        expected_speedup=None if share is None or in_model is None else formulas.amdahl(in_model, share),
    )


def _ratio(this: Measured | None, other: Measured | None) -> float | None:
    return this.mean / other.mean if this and other and other.mean else None
