"""Do quiet units tell another domain? AUROC of signs from inside text models: SST-2 dev, review sentences.

`python benchmarks/ood_signal.py` needs FEWSHARD_DATA; half a minute a model. The largest probability
(Hendrycks, Gimpel 2017) and the text's length stand beside: a sign that beats neither is of no use. Texts
of equal length are compared too, since length alone may tell the sets apart. `--json FILE` keeps the numbers.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fewshard_core.values import TextInput
from fewshard_models.checkpoint import resolve
from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.classifier.tokenizer import TextPreprocessor
from fewshard_models.data.ood import load_review_sentences
from fewshard_models.data.sst2 import load_sst2
from fewshard_models.evaluation.metrics import Values, auroc_with_interval
from fewshard_models.text.observers import ActivationStats, signs_of

BATCH = 64


def numbers_of(path: str, texts: list[str]) -> dict[str, Values]:
    """Return each signal of every text. Larger values should mean outside texts."""
    checkpoint = load_checkpoint(resolve(path))
    checkpoint.model.eval()
    config = checkpoint.model.config
    tokenizing = TextPreprocessor(checkpoint.directory, config.max_position_embeddings)
    ids = [item.features.ids for item in tokenizing.items([TextInput(text) for text in texts], truncate=True)]
    parts = [signs_of(checkpoint.model, ids[at : at + BATCH]) for at in range(0, len(ids), BATCH)]
    return {**named(parts), "number of tokens": np.array([float(len(each)) for each in ids])}


def named(parts: list[ActivationStats]) -> dict[str, Values]:
    logits = np.concatenate([part.logits for part in parts]).astype(np.float64)
    sparsity = np.concatenate([part.sparsity for part in parts]).astype(np.float64)
    entropy = np.concatenate([part.entropy for part in parts]).astype(np.float64)
    best = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    found = {"largest probability, low": -best}
    for layer in range(sparsity.shape[1]):
        found[f"units near zero, layer {layer}"] = sparsity[:, layer]
    for layer in range(entropy.shape[1]):
        found[f"router's entropy, layer {layer}"] = entropy[:, layer]
    return found


def compare(inside: dict[str, Values], outside: dict[str, Values], rows: Any) -> dict[str, dict[str, float]]:
    return {
        name: asdict(auroc_with_interval(inside[name][rows[0]], outside[name][rows[1]])) for name in inside
    }


def same_lengths(inside: Values, outside: Values, seed: int = 0) -> tuple[Any, Any]:
    """Return equally many texts of each length from both sets."""
    rng = np.random.default_rng(seed)
    chosen: tuple[list[int], list[int]] = ([], [])
    for length in np.intersect1d(inside, outside):
        first, second = (np.flatnonzero(each == length) for each in (inside, outside))
        count = min(len(first), len(second))
        chosen[0].extend(rng.choice(first, count, replace=False))
        chosen[1].extend(rng.choice(second, count, replace=False))
    return np.array(chosen[0]), np.array(chosen[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["zoo:sst2-dense", "zoo:sst2-moe"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    reviews = load_review_sentences()
    found: dict[str, Any] = {}
    for model in options.models:
        inside, outside = numbers_of(model, load_sst2("dev")[0]), numbers_of(model, reviews.texts)
        domains = np.array(reviews.domains)
        everything = np.arange(len(inside["number of tokens"]))
        sets = {"all": (everything, np.arange(len(domains)))}
        sets |= {domain: (everything, np.flatnonzero(domains == domain)) for domain in sorted(set(domains))}
        sets["all, of equal lengths"] = same_lengths(inside["number of tokens"], outside["number of tokens"])
        found[model] = {name: compare(inside, outside, rows) for name, rows in sets.items()}
        print_table(model, found[model], {name: [len(each) for each in rows] for name, rows in sets.items()})
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def print_table(model: str, found: dict[str, Any], sizes: dict[str, list[int]]) -> None:
    print(f"\n{model}\n| sign | {' | '.join(f'{name} ({a} v {b})' for name, (a, b) in sizes.items())} |")
    print("| --- |" + " --- |" * len(found))
    for sign in next(iter(found.values())):
        cells = [
            f"{one[sign]['value']:.3f} ({one[sign]['low']:.3f}-{one[sign]['high']:.3f})"
            for one in found.values()
        ]
        print(f"| {sign} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
