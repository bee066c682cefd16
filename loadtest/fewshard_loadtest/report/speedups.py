"""Promised and realised speed-ups of a model over the dense one. Called by `figures`."""

from dataclasses import dataclass
from typing import Any, Protocol

from fewshard_loadtest.cost import formulas
from fewshard_loadtest.report.costs import Measured


class Compared(Protocol):
    """The fields needed of either model."""

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
    """Speed-ups over the dense model of the task.

    macs_ratio: MACs relative to the dense model.
    model_speedup, model: speed-up of the model alone, and its R.
    server_speedup, server: speed-up of the server, and its R.
    overhead_share: share of the dense server's time outside the model.
    expected_speedup: the server's speed-up if only that share stayed (Amdahl).
    """

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
    # Share of time in which the model is idle at the saturated dense server.
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
