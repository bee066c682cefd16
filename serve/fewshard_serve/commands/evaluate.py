"""`fewshard evaluate`: accuracy and F1 of checkpoints on their task's held-out set, and more with --full."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshard_serve.commands import formatting

if TYPE_CHECKING:
    from fewshard_models.evaluation.result import Result


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a checkpoint's accuracy",
        description="Accuracy and F1 on SST-2's dev set or CIFAR-10's test set, read from FEWSHARD_DATA. "
        "With --full: slices, other domain, corruptions, routing, memory and times as the server would run "
        "it; several checkpoints of a task are timed in turns, against the first dense one.",
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", help="zoo:<name> or a checkpoint's directory")
    parser.add_argument("--limit", type=int, help="use the first rows only")
    parser.add_argument("--full", action="store_true", help="everything that can be measured; takes minutes")
    parser.add_argument(
        "--served",
        action="store_true",
        help="write shares of labels and confidence into the card; the server reports its distance from them",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write what was found to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a line for each checkpoint, or with --full a part; returns 0."""
    found = _full(args) if args.full else _accuracies(args)
    if args.served:
        _write_served(args)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def _write_served(args: argparse.Namespace) -> None:
    from fewshard_models.checkpoint import resolve
    from fewshard_models.evaluation.served import write_served
    from fewshard_serve.metrics import CONFIDENCES

    for path in args.paths:
        shares = write_served(resolve(path), CONFIDENCES, args.limit)["labels"]
        print(f"{path}: {', '.join(f'{share:.2%} {label}' for label, share in shares.items())}, on its card")


def _accuracies(args: argparse.Namespace) -> list[dict[str, Any]]:
    from fewshard_models.card import load_card
    from fewshard_models.checkpoint import resolve
    from fewshard_models.evaluation.accuracy import evaluate

    rows, found = [], []
    for path in args.paths:
        directory = resolve(path)
        measured, card = evaluate(directory, args.limit), load_card(directory)
        n, accuracy, f1 = len(measured.labels), measured.accuracy, measured.f1
        on_card = None if card is None else card.accuracy
        shown = formatting.UNKNOWN if on_card is None else f"{on_card:.5f}"
        rows.append([path, measured.dataset, str(n), f"{accuracy:.5f}", f"{f1:.5f}", shown])
        figures = {"n": n, "accuracy": accuracy, "f1": f1, "card_accuracy": on_card}
        found.append({"checkpoint": path, "dataset": measured.dataset, **figures})
    print(formatting.table(["checkpoint", "data", "n", "accuracy", "F1", "card says"], rows))
    return found


def _full(args: argparse.Namespace) -> list[dict[str, Any]]:
    from fewshard_models.checkpoint import resolve
    from fewshard_models.evaluation.comparison import judge_together
    from fewshard_models.evaluation.result import to_dict

    results = judge_together({path: resolve(path) for path in args.paths}, args.limit, _say)
    print("\n\n".join(_described(result) for result in results))
    return [to_dict(result) for result in results]


def _described(result: "Result") -> str:
    """Format all results of one checkpoint as lines."""
    cost = result.cost
    lines = [
        ("checkpoint", result.model),
        (
            "parameters",
            f"{formatting.count(cost.parameters_total)}, active {formatting.count(cost.parameters_active)}",
        ),
        (
            "MACs",
            f"{formatting.count(cost.macs_counted)} (2x: {_doubled(cost.macs_counted)}) at {cost.macs_input}",
        ),
        ("peak memory", f"{formatting.count(result.peak_bytes)}B at a batch of 64, {result.dtype}"),
    ]
    if result.held_out is None:
        lines.append(("accuracy", f"not measured: {result.missing}"))
    else:
        share, n = formatting.fraction(result.held_out.accuracy), len(result.held_out.labels)
        lines.append(("accuracy", f"{share} of {n:,} {result.held_out.dataset}"))
        lines.append(("F1", f"{result.held_out.f1:.4f}"))
    for title, shares in _parts(result):
        lines += [
            (title + name, f"{formatting.fraction(each.accuracy)} of {each.n:,}") for name, each in shares
        ]
    return formatting.pairs([*lines, *_times(result)])


def _parts(result: "Result") -> list[tuple[str, Any]]:
    corruptions = [(name, share) for name, share in result.corruptions.items() if name != "clean"]
    return [
        ("", result.slices.items()),
        ("other domain: ", result.ood.items()),
        ("corrupted: ", corruptions),
    ]


def _times(result: "Result") -> list[tuple[str, str]]:
    lines = []
    for time in result.timings.batches if result.timings else ():
        speedup = "" if time.speedup in (None, 1.0) else f", {time.speedup:.2f}x the dense model's speed"
        text = f"{time.median_ms:.2f} ms (p90 {time.p90_ms:.2f}), {time.items_per_s:,.0f} items/s{speedup}"
        lines.append((f"batch of {time.batch}", text))
    return lines


def _doubled(macs: int | None) -> str:
    return formatting.UNKNOWN if macs is None else formatting.count(2 * macs)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
