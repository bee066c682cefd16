"""The kernel benchmark as JSON and as Markdown."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from fewshard_core.cpu import cpu_name
from fewshard_models.bench.baselines import OURS
from fewshard_models.bench.kernels import TOLERANCES, Measured, Row
from fewshard_models.bench.targets import Check, checks

_MIB = 2**20
_ROW = ("peer", "median ms", "p90 ms", "x ours", "of roofline", "activation", "error", "launches", "peak MiB")
NOTES = " ".join(
    (
        "Times in milliseconds. Every round runs each peer once, in an order drawn anew; the medians",
        "are over rounds, after two that do not count. Each call takes the next copy of the weights, and the",
        "routing is renamed to other experts once all copies have been used, so that a call does not find",
        "its weights in the cache. Nobody routes: all are given the same routing. No biases. `x ours` is",
        "the peer's median over ours: above 1, ours is faster. `of roofline`: the larger of operations",
        "over the measured peak and least bytes over the measured copy bandwidth, as a share of the",
        "median. The peak is that of a product in the weights' dtype: who computes bf16 weights in fp32,",
        "where that is faster, may pass it. Above 100 % with few tokens, the weights came from a cache",
        "after all. `activation`: the time of the activation as an op of its own, as a share of the",
        "median; ours applies it inside the product. `error`: the norm of y - y64 over that of y64,",
        "against float64 over up to 256 rows. The dense FFN computes something else, on as many",
        "operations: it is a yardstick.",
    )
)


@dataclass(frozen=True, slots=True)
class Report:
    """The results of one run, and the command that ran it."""

    command: str
    measured: Measured

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write `kernels.json` and `kernels.md` to `folder`; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        as_json, as_markdown = folder / "kernels.json", folder / "kernels.md"
        as_json.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        as_markdown.write_text(self.as_markdown(), encoding="utf-8")
        return as_json, as_markdown

    def as_dict(self) -> dict[str, Any]:
        """The results for JSON, in seconds, bytes and FLOP/s."""
        return {
            "command": self.command,
            "machine": machine(self.measured.device),
            "device": self.measured.device,
            "last_level_cache_bytes": self.measured.cache_bytes,
            "copies_of_weights": self.measured.copies,
            "rooflines": {dtype: asdict(each) for dtype, each in self.measured.rooflines.items()},
            "tolerances": TOLERANCES,
            "targets": [_target_dict(check) for check in checks(self.measured.rows)],
            "rows": [_row_dict(row) for row in self.measured.rows],
        }

    def as_markdown(self) -> str:
        """The machine, the targets, and a table for each layer."""
        about = ", ".join(f"{key} {value}" for key, value in machine(self.measured.device).items())
        parts = [
            "# Kernel benchmark",
            f"{about}.",
            f"Command: `{self.command}`",
            _limits(self.measured),
            NOTES,
        ]
        found = checks(self.measured.rows) if self.measured.device == "cpu" else []
        if found:
            parts += ["## CPU targets", _summary(found), _targets_table(found)]
        parts += ["## Every peer", *_tables(self.measured.rows)]
        return "\n\n".join(parts) + "\n"


def machine(device: str) -> dict[str, str]:
    """Date, commit, hardware and versions."""
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        **gpu,
        "cpu": cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("fewshard", "torch", "transformers", "triton")},
    }


def _commit() -> str:
    """The commit of the running package; with a plus sign if its files have changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _point_dict(row: Row) -> dict[str, Any]:
    point = row.point
    hidden, width, gated = point.shape
    layer = {"hidden": hidden, "width": width, "gated": gated, "activation": point.activation}
    batch = {"experts": point.num_experts, "top_k": point.top_k, "routing": point.routing}
    return {**layer, "dtype": point.dtype, **batch, "tokens": point.num_tokens}


def _row_dict(row: Row) -> dict[str, Any]:
    figures = {key: value for key, value in asdict(row).items() if key != "point"}
    return {**_point_dict(row), **figures}


def _target_dict(check: Check) -> dict[str, Any]:
    compared = {"best_of_three": check.best_of_three, "gain": check.gain, "times_dense": check.times_dense}
    return {**_point_dict(check.ours), **compared, "target": check.target, "met": check.met}


def _limits(measured: Measured) -> str:
    rates = [
        f"{dtype} {each.flop_per_s / 1e9:,.0f} GFLOP/s, copies {each.bytes_per_s / 1e9:.1f} GB/s"
        for dtype, each in measured.rooflines.items()
    ]
    copies = "; ".join(f"{layer}: {number}" for layer, number in measured.copies.items())
    cache = f"last-level cache {measured.cache_bytes / _MIB:.0f} MiB"
    return f"Measured limits: {'; '.join(rates)}; {cache}. Copies of the weights: {copies}."


def _summary(found: Sequence[Check]) -> str:
    lines = []
    for dtype in dict.fromkeys(check.point.dtype for check in found):
        verdicts = [check.met for check in found if check.point.dtype == dtype]
        lines.append(f"- {dtype}: {sum(verdicts)} of {len(verdicts)} met")
    return "\n".join(lines)


def _targets_table(found: Sequence[Check]) -> str:
    header = ("shape", "dtype", "tokens", "ours ms", "best of three", "gain", "of dense", "activation")
    return markdown_table((*header, "target", "verdict"), [_target_cells(check) for check in found])


def _target_cells(check: Check) -> tuple[str, ...]:
    point = check.point
    times = (_milliseconds(check.ours_s), check.best_of_three.removeprefix("transformers "))
    ratios = (f"{check.gain:.2f}x", f"{check.times_dense:.2f}x", _percent(check.ours.activation_share))
    verdict = (check.target, "met" if check.met else "**missed**")
    return (str(point.shape), point.dtype, str(point.num_tokens), *times, *ratios, *verdict)


def _tables(rows: Sequence[Row]) -> list[str]:
    parts = []
    for point, peers in groupby(rows, key=lambda row: row.point):
        taken = list(peers)
        parts += [f"### {point}", markdown_table(_ROW, [_cells(row) for row in taken if not row.skipped])]
        parts += [f"- {row.peer} is left out: {row.skipped}." for row in taken if row.skipped]
    return parts


def _cells(row: Row) -> tuple[str, ...]:
    name = f"**{row.peer}**" if row.peer == OURS else row.peer
    ratio = "-" if row.times_ours is None else f"{row.times_ours:.2f}"
    shares = (_percent(row.roofline_share), _percent(row.activation_share))
    error = "-" if row.error is None else f"{row.error:.1e}"
    memory = "-" if row.peak_bytes is None else f"{row.peak_bytes / _MIB:.1f}"
    launches = "-" if row.launches is None else str(row.launches)
    return (
        name,
        _milliseconds(row.median_s),
        _milliseconds(row.p90_s),
        ratio,
        *shares,
        error,
        launches,
        memory,
    )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells must not contain a vertical bar."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
