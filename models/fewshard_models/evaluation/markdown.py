"""The table as Markdown; called by `report`."""

from collections.abc import Sequence

import numpy as np

from fewshard_models.bench.report import markdown_table
from fewshard_models.evaluation.result import Result
from fewshard_models.evaluation.significance import Pairs
from fewshard_models.evaluation.slices import most_unlike
from fewshard_models.evaluation.table import Check, Figure, Row, Speed
from fewshard_models.evaluation.timing import BATCHES

_NONE = "-"
_MIB = 2**20
NOTES = """\
Accuracy is of the dtype the server uses here, one pass, no test-time augmentation; `±` is one
standard error: over seeds where there are several (n), else of drawing the test items. "paper" is
Table II of the founding paper, measured on another machine with models many times larger: its
figures are there to be read beside ours, not to be beaten by them. What the paper calls FLOPs are
MACs; both are printed here, MACs and 2xMACs. Accuracy, parameters, MACs, times and R of a row
belong to one artefact, named by the SHA-256 of its weights in the result files."""
SPEED_NOTES = """\
Milliseconds are medians of one forward pass, from prepared items to logits, in a run that takes the
models of a task in turns, round after round, on the same items (texts: sentences of the SST-2 dev
set at their real lengths). Speed-up and R are against the dense model of that same run, engine,
dtype and batch. **R** = speed-up / MAC reduction: at 1 all of the saving is realised, below 1 a
part of it. Peak memory: batch of 64, weights included, above the loaded libraries."""
PAY_NOTES = """\
Flips: items that get another label than from the dense model of the same seed. McNemar: exact test
on the items that only one of the two has right, a p for each seed. Classes that lose over twice the
average loss are named with their change in points (Hooker et al. 2020)."""
ROBUST_NOTES = """\
Percent right. Other domain: 3,000 review sentences (Kotzias et al. 2015). Corruptions are computed
here, three severities of each kind, and are no published benchmark; "clean" is the same items as
they are, "all" the mean of the kinds."""


def as_markdown(
    tier: str, rows: Sequence[Row], rivals: Sequence[str], payers: Sequence[str], checks: Sequence[Check]
) -> str:
    parts = [f"# Table II, measured: the {tier} tier", NOTES, figures_table(rows)]
    parts += ["## Time and memory", SPEED_NOTES, _speed_table(rows)]
    parts += ["## Sparse beside dense", PAY_NOTES, _pairs_table(rows), _bullets(payers)]
    parts += ["## Each sparse system against its narrow rival", _bullets(rivals)]
    if checks:
        parts += ["## Targets", _targets_table(checks)]
    parts += ["## Other domain and corruptions", ROBUST_NOTES, *_robustness_tables(rows)]
    parts += ["## Slices", *_slice_tables(rows), *_routing(rows)]
    parts += ["## Where it was measured", _machines(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def figures_table(rows: Sequence[Row]) -> str:
    header = ("system", "n", "accuracy %", "paper", "F1", "paper", "parameters, active", "paper")
    more = ("MACs", "2xMACs", "paper's FLOPs", "ms, batch 1", "paper")
    return markdown_table((*header, *more), [_figures(row) for row in rows])


def _figures(row: Row) -> tuple[str, ...]:
    paper = row.system.paper
    accuracy = row.missing or percent(row.accuracy)
    f1 = _NONE if row.f1 is None else f"{row.f1.mean:.3f}"
    cost = None if row.first is None else row.first.cost
    macs = None if cost is None else cost.macs_counted
    params = _NONE if cost is None else f"{short(cost.parameters_total)}, {short(cost.parameters_active)}"
    if cost is not None and cost.is_masked:
        params = f"{short(cost.parameters_total)}, of which {short(cost.parameters_nonzero)} not zero"
    speed = row.speed(1)
    ours = (accuracy, f1, params, short(macs), short(2 * macs if macs else None), _ms(speed))
    theirs = ("",) * 5
    if paper is not None:
        cells = (f"{paper.accuracy}", f"{paper.f1:.3f}", short(paper.parameters))
        theirs = (*cells, short(paper.macs), f"{paper.ms:g}")
    name = f"`{row.system.name}`: {row.system.title}"
    first = (name, str(len(row.results)), ours[0], theirs[0], ours[1], theirs[1], ours[2], theirs[2])
    return (*first, ours[3], ours[4], theirs[3], ours[5], theirs[4])


def _speed_table(rows: Sequence[Row]) -> str:
    header = ["system", "MACs of dense"]
    for batch in BATCHES:
        header += [f"batch {batch}: ms", "speed-up", "R"]
    return markdown_table([*header, "items/s at 64", "peak MiB"], [_speeds(row) for row in rows])


def _speeds(row: Row) -> list[str]:
    cells = [f"`{row.system.name}`", _plain(row.macs_share, ".2f")]
    for batch in BATCHES:
        speed = row.speed(batch)
        if speed is None:
            cells += [_NONE] * 3
        else:
            cells += [_ms(speed), _plain(speed.speedup, ".2f"), _plain(speed.realised, ".2f")]
    last = row.speed(BATCHES[-1])
    peak = row.first.peak_bytes if row.first else None
    memory = _NONE if peak is None else f"{peak / _MIB:.0f}"
    return [*cells, _NONE if last is None else f"{last.items_per_s:,.0f}", memory]


def _pairs_table(rows: Sequence[Row]) -> str:
    header = ("system", "points", "flips %", "gained / lost", "McNemar p", "classes that pay too much")
    pairs = [(row.system.name, row.against_dense) for row in rows if row.system.dense]
    return markdown_table(header, [_pair_cells(name, each) for name, each in pairs])


def _pair_cells(name: str, pairs: Pairs | None) -> tuple[str, ...]:
    if pairs is None:
        return (f"`{name}`", *(_NONE,) * 5)
    counts = ", ".join(f"{pair.mcnemar.gained} / {pair.mcnemar.lost}" for pair in pairs.pairs)
    ps = ", ".join(f"{pair.mcnemar.p:.2g}" for pair in pairs.pairs)
    change = f"{100 * pairs.change:+.2f}"
    return (
        f"`{name}`",
        change,
        f"{100 * pairs.flipped:.1f}",
        counts,
        ps,
        ", ".join(pairs.warnings) or "none",
    )


def _targets_table(checks: Sequence[Check]) -> str:
    words = {True: "met", False: "**missed**", None: "not measured"}
    cells = [(f"`{check.system}`", check.promise, check.found, words[check.met]) for check in checks]
    return markdown_table(("system", "target", "found", "verdict"), cells)


def _robustness_tables(rows: Sequence[Row]) -> list[str]:
    """Return one table for each task, because kinds of corruption differ."""
    tables = []
    for prefix in ("sst2", "cifar10"):
        own = [row for row in rows if row.system.name.startswith(prefix) and row.robustness]
        names = list(dict.fromkeys(name for row in own for name in row.robustness))
        titles = {"ood": "other domain", "corrupted": "all"}
        header = ["system", *(titles.get(name, name) for name in names)]
        cells = [
            [f"`{row.system.name}`", *(percent(row.robustness.get(name), 1) for name in names)] for row in own
        ]
        tables += [markdown_table(header, cells)] if own else []
    return tables


def _slice_tables(rows: Sequence[Row]) -> list[str]:
    """Return one table for each task: percent right by slice, mean over seeds."""
    tables = []
    for prefix in ("sst2", "cifar10"):
        own = [row for row in rows if row.system.name.startswith(prefix) and row.accuracy]
        names = list(dict.fromkeys(name for row in own for result in row.results for name in result.slices))
        header = ["slice", "n", *(f"`{row.system.name}`" for row in own)]
        cells = [[name, *_slice_cells(name, own)] for name in names]
        tables += [markdown_table(header, cells)] if own else []
    return tables


def _slice_cells(name: str, rows: Sequence[Row]) -> list[str]:
    found = [[result.slices[name] for result in row.results if name in result.slices] for row in rows]
    counts = {share.n for shares in found for share in shares}
    means = [
        _NONE if not shares else f"{100 * sum(share.accuracy for share in shares) / len(shares):.1f}"
        for shares in found
    ]
    return [", ".join(map(str, sorted(counts))), *means]


def _routing(rows: Sequence[Row]) -> list[str]:
    """Return the routing of each MoE's lowest seed. The result files have the others."""
    results = [row.first for row in rows if row.first is not None and row.first.routing]
    return [] if not results else ["## Routing", *(_routing_table(result) for result in results)]


def _routing_table(result: Result) -> str:
    """Return one line for each layer of each slice."""
    num_experts = len(result.routing["all"][0])
    header = ["slice", "expert layer", *(f"expert {number}" for number in range(num_experts))]
    cells = [
        [name, str(layer), *(f"{100 * share:.0f} %" for share in shares)]
        for name, layers in result.routing.items()
        for layer, shares in enumerate(layers)
    ]
    shares = {name: np.array(layers) for name, layers in result.routing.items()}
    unlike, distance = most_unlike(shares, shares["all"])
    text = (
        f"Share of the tokens by expert, `{result.model}`, seed {result.seed}. Most unlike the whole: "
        f"{unlike}, {100 * distance:.0f} % of whose tokens go to other experts in one layer."
    )
    return f"{text}\n\n{markdown_table(header, cells)}"


def _machines(rows: Sequence[Row]) -> str:
    abouts = [result.timings.machine for row in rows for result in row.results if result.timings]
    abouts += [result.machine for row in rows for result in row.results]
    keys = ("cpu", "gpu", "cores", "threads", "torch", "fewshard")
    lines = dict.fromkeys(
        ", ".join(f"{key} {about[key]}" for key in keys if key in about) for about in abouts
    )
    dates = sorted(about["date"] for about in abouts)
    commits = ", ".join(dict.fromkeys(about["commit"] for about in abouts))
    if not dates:
        return "Nothing has been measured yet."
    dtypes = ", ".join(dict.fromkeys(result.dtype for row in rows for result in row.results))
    return _bullets([*lines, f"{dates[0]} to {dates[-1]}, commits {commits}, weights served as {dtypes}"])


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def percent(figure: Figure | None, digits: int = 2) -> str:
    """Format as 91.20 ± 0.31. With one seed, the error is that of drawing the items."""
    if figure is None:
        return _NONE
    error = "" if figure.error is None else f" ± {100 * figure.error:.{digits}f}"
    return f"{100 * figure.mean:.{digits}f}{error}"


def short(value: float | None) -> str:
    """Format 4583682 as 4.58 M."""
    if value is None:
        return _NONE
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def _ms(speed: Speed | None) -> str:
    return _NONE if speed is None else f"{speed.ms:.2f}"


def _plain(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)
