"""Writes what the comparisons found as a Markdown document. Called by `fewshard conformance`."""

from collections import Counter
from collections.abc import Mapping, Sequence

import transformers

from fewshard_models.conformance.matrix import REFUSED, Conformance

_MEANINGS = {
    "packed": "our own encoder computes it, without padding",
    "padded": "texts of similar length share a pass; a trial at load showed that padding changes no answer",
    "length by length": "only texts of equal length share a pass, because padding changes answers",
    "one by one": "each text has a pass of its own",
    "together": "all images become one size and share a pass",
    "shape by shape": "images of one shape after resizing share a pass",
    REFUSED: "at load, with the reason",
}


def document(found: Mapping[str, Sequence[Conformance]]) -> str:
    """Return the document. `found`: the results by task."""
    parts = [
        "# Architectures\n",
        f"Made by `fewshard conformance --write docs/architectures.md` with transformers "
        f"{transformers.__version__}: a tiny random checkpoint of every architecture of its classification "
        "mappings, whose answers alone, in batches, in pairs, at the limit and beyond it, in 16 bits and for "
        "each problem type are compared with transformers' own for one item at a time. A real checkpoint is "
        "tried in the same way when it is loaded.\n",
    ]
    for task, results in found.items():
        parts += [f"## {task.capitalize()}\n", _counts(results), _table(results)]
    return "\n".join(parts)


def line(each: Conformance) -> str:
    """Return one line for a terminal."""
    told = each.reason or "; ".join(each.faults) or f"off by at most {each.worst:.1e}"
    return f"{each.model_type:24} {each.mode:18} {'FAULT ' if each.faults else ''}{told}"


def _counts(results: Sequence[Conformance]) -> str:
    counts = Counter(each.mode for each in results)
    rows = [f"| {mode} | {counts[mode]} | {meaning} |" for mode, meaning in _MEANINGS.items() if counts[mode]]
    num_served = sum(each.is_served for each in results)
    num_different = sum(bool(each.faults) for each in results)
    told = f"{num_served} of {len(results)} are served; {num_different} of them differ from transformers.\n"
    return "\n".join([told, "| how | number | meaning |", "| --- | --- | --- |", *rows, ""])


def _table(results: Sequence[Conformance]) -> str:
    rows = [
        f"| {each.model_type} | {each.architecture} | {each.mode} | {_told(each)} |"
        for each in sorted(results, key=lambda each: each.model_type)
    ]
    return "\n".join(
        ["| type | architecture | served | differences, or why not |", "| --- | --- | --- | --- |", *rows, ""]
    )


def _told(each: Conformance) -> str:
    told = "; ".join(each.faults) or each.reason
    return told.replace("|", "/").replace("\n", " ")[:300]
