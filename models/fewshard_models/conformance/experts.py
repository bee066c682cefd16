"""Compares text classifiers with experts: logits with transformers' eager ones, and counts with the tokens.

Architectures are found by program. Each is built tiny, once for every way to route that its configuration
has. What its router does is found out from what it chose.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from fewshard_models.classifier.load import load
from fewshard_models.classifier.padded_text import PaddedText
from fewshard_models.classifier.routed_experts import ExpertLayer, RoutedExperts
from fewshard_models.conformance.text import (
    ARCHITECTURES,
    BESIDE_LONG,
    TOLERANCE,
    Reference,
    write_checkpoint,
)
from fewshard_models.conformance.tiny import tiny_config
from fewshard_models.conformance.words import SHORT, num_rows
from fewshard_models.errors import CheckpointError

NUM_EXPERTS, TOP_K = 16, 2
TEXTS = [*BESIDE_LONG, *SHORT]
NORMALISED = ", normalised"
EAGER: dict[str, Any] = {"experts_implementation": "eager", "attn_implementation": "eager"}
_NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts")
_TOP_KS = ("num_experts_per_tok", "moe_topk")

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ExpertConformance:
    """What is known of one architecture with experts.

    experts: what it has, in words: routed alone, or shared ones beside them.
    gating: how an expert computes.
    router: how experts are chosen and weighted; each way that was tried.
    faults: what differs from transformers, or was not counted as it should.
    refused: the ways that neither transformers nor Fewshard runs.
    """

    model_type: str
    architecture: str
    experts: str
    gating: str
    router: str
    is_counted: bool
    faults: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def architectures_with_experts(model_types: Sequence[str] = tuple(ARCHITECTURES)) -> list[str]:
    """Return those of these types whose networks have expert layers, by building each without weights."""
    return [each for each in model_types if _has_experts(each)]


def _has_experts(model_type: str) -> bool:
    try:
        with torch.device("meta"):
            config = tiny_config(model_type, num_rows(model_type), **_switched_on(model_type))
            network = AutoModelForSequenceClassification.from_config(config)
    except ImportError:  # the architecture needs a library that is not here
        return False
    records = [getattr(each, "_can_record_outputs", None) or {} for each in network.modules()]
    return any("router_logits" in each for each in records) and bool(RoutedExperts(network).layers)


def _switched_on(model_type: str) -> Fields:
    """Return the fields that give an architecture experts which has none by default (Doge)."""
    return {"is_moe": True} if hasattr(tiny_config(model_type, num_rows(model_type)), "is_moe") else {}


def ways(model_type: str) -> dict[str, Fields]:
    """Return the fields of each way to route that this type's configuration has, by name."""
    plain = tiny_config(model_type, num_rows(model_type), **_switched_on(model_type))
    top_k = next(name for name in _TOP_KS if name in vars(plain))
    base: Fields = {
        **_switched_on(model_type),
        **{name: NUM_EXPERTS for name in _NUMBERS if name in vars(plain)},
        top_k: TOP_K,
    }
    ungrouped = {name: 1 for name in ("n_group", "topk_group") if name in vars(plain)}
    found = {"top-2": base, "top-1": {**base, top_k: 1}}
    found["all"] = {**base, **ungrouped, top_k: NUM_EXPERTS}
    if "norm_topk_prob" in vars(plain):
        found["other normalisation"] = {**base, "norm_topk_prob": not plain.norm_topk_prob}
    if ungrouped:
        method = {"topk_method": "group_limited_greedy"} if hasattr(plain, "topk_method") else {}
        found["groups"] = {**base, **method, "n_group": 4, "topk_group": 1}
    return found


def compare(model_type: str) -> ExpertConformance:
    """Build every way of an architecture, and compare all answers and counts."""
    faults: list[str] = []
    refused: list[str] = []
    routers: dict[str, str] = {}
    facts: tuple[str, str] = ("", "")
    is_counted = True
    for name, fields in ways(model_type).items():
        with TemporaryDirectory(prefix="fewshard-") as directory:
            write_checkpoint(Path(directory), model_type, **fields)
            try:
                model = _loaded(Path(directory))
            except CheckpointError as error:
                (refused if _refuses(Path(directory)) else faults).append(f"{name}: {error}")
                continue
            reference = Reference(Path(directory), **EAGER)
            faults += [f"{name}: {each}" for each in _faults(model, reference)]
            is_counted = is_counted and model.expert_counts() is not None
            routers[name] = _router(model)
            facts = facts if any(facts) else (_experts(model), _gating(model.experts.layers[0]))
    return ExpertConformance(
        model_type,
        ARCHITECTURES[model_type],
        *facts,
        _told(routers),
        is_counted,
        tuple(faults),
        tuple(refused),
    )


def _told(routers: Mapping[str, str]) -> str:
    """Return a router in words, from what it did in each way."""
    told = routers.get("top-2", "")
    if routers.get("other normalisation", told) != told:
        told = f"{told.removesuffix(NORMALISED)}{NORMALISED} or not"
    return f"{told}, groups" if "groups" in routers else told


def _loaded(directory: Path) -> PaddedText:
    model: Any = load(directory, device="cpu", dtype="fp32")
    model.self_check()  # from here on, the counts are those of the comparison
    return model  # type: ignore[no-any-return]


def _refuses(directory: Path) -> bool:
    """Return whether transformers cannot run a checkpoint either."""
    try:
        Reference(directory, **EAGER).logits(SHORT[:1], 64)
    except Exception:  # noqa: BLE001  each network raises its own
        return True
    return False


def _faults(model: PaddedText, reference: Reference) -> Iterator[str]:
    """Yield what differs from the reference, in a batch of mixed lengths and alone, and wrong counts."""
    items = model.prepare([model.preprocessor.to_input(text) for text in TEXTS])
    right = reference.logits(TEXTS, model.info.max_tokens)
    output = model.run(items)
    if model.sharing.padding is not None and not output.num_padding_tokens:
        yield "no padding: this proves nothing of it"
    alone = np.concatenate([model.run([item]).logits for item in items])
    for how, found in (("in a batch", output.logits), ("alone", alone)):
        worst = float(np.abs(found - right).max())
        if not worst <= TOLERANCE:
            yield f"{how}, off by {worst:.3g}"
    counts = model.expert_counts()
    if counts is None:
        yield "its experts are not counted"
    elif not (counts.tokens.sum(axis=1) == 2 * counts.top_k * sum(item.num_tokens for item in items)).all():
        yield f"counted {counts.tokens.sum(axis=1).tolist()} tokens"


def _experts(model: PaddedText) -> str:
    """Return whether there are shared experts beside the routed ones, and experts elsewhere."""
    layer = model.experts.layers[0]
    parent = model.network.get_submodule(layer.name.rpartition(".")[0])
    own = type(layer.module).__name__ == "DogeCDMoE"  # its dense network is its shared expert
    has_shared = own or any(name.startswith("shared") for name, _ in parent.named_children())
    in_attention = any("attention" in each.name for each in model.experts.layers)
    return f"routed{' and shared' if has_shared else ''}{', also in attention' if in_attention else ''}"


def _gating(layer: ExpertLayer) -> str:
    if not layer.has_interface:
        return {"JetMoeTopKGating": "gated", "DogeCDMoE": "one unit an expert"}[type(layer.module).__name__]
    module = layer.module
    kind = "gated" if module.has_gate else "plain"
    if hasattr(module, "act_fn"):
        kind += f" {type(module.act_fn).__name__.removesuffix('Activation')}"
    if hasattr(module, "limit"):
        kind += ", clamped"
    if not module.is_concatenated:
        kind += ", interleaved"
    return kind + (", with biases" if module.has_bias else "")


def _router(model: PaddedText) -> str:
    """Return what the first layer's router does, by what it chose for a few texts; "" if that is unknown."""
    layer = model.experts.layers[0]
    if not layer.has_interface or layer.router is None:
        return {"JetMoeTopKGating": "softmax of the chosen", "DogeCDMoE": "product keys"}.get(
            type(layer.module).__name__, ""
        )
    with _recorded(layer) as seen:
        model.run(model.prepare([model.preprocessor.to_input(text) for text in TEXTS[:4]]))
    logits, experts, weights = (torch.cat(each).double() for each in zip(*seen, strict=True))
    return described(logits, experts.long(), weights)


@contextmanager
def _recorded(layer: ExpertLayer) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Within the block, each call of the router appends logits [T, E], experts and weights [T, k]."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(router: Any, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        logits, weights, experts = output
        seen.append((logits, experts, weights))

    assert layer.router is not None
    hook = layer.router.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def described(logits: Tensor, experts: Tensor, weights: Tensor) -> str:
    """Return how these weights [T, k] come from the logits [T, E], in words; "" for one expert a token."""
    num_chosen = experts.shape[1]
    if num_chosen == 1:
        return ""
    shares, sums = weights.log(), weights.sum(dim=1)
    by_name = {"softmax": logits, "sigmoid": torch.nn.functional.logsigmoid(logits)}
    fits = [name for name, scores in by_name.items() if _is_even(shares - scores.gather(1, experts))]
    if not fits:
        return "weights of its own"
    return f"{fits[0]}{NORMALISED if bool((sums - sums[0]).abs().max() < 1e-4) else ''}"


def _is_even(differences: Tensor) -> bool:
    """Return whether each row holds one number."""
    return bool((differences - differences[:, :1]).abs().max() < 1e-3)


def table(found: Sequence[ExpertConformance], sharded: Sequence[str] = ()) -> str:
    """Return the table of the documentation. `sharded`: the model types that run over several shards."""
    return "\n".join(
        [*_HEAD, *(row(each, sharded) for each in sorted(found, key=lambda each: each.model_type))]
    )


def row(each: ExpertConformance, sharded: Sequence[str] = ()) -> str:
    """Return one line of the table."""
    equal, counted, split = (
        "yes" if held else "no" for held in (not each.faults, each.is_counted, each.model_type in sharded)
    )
    cells = (
        each.model_type,
        each.architecture,
        each.experts,
        each.gating,
        each.router,
        equal,
        counted,
        split,
    )
    return f"| {' | '.join(cells)} |"


def replaced(document: str, rows: str) -> str:
    """Return the documentation with this table. Raises ValueError if it has no place for one."""
    before, after = (document.index(mark) for mark in _MARKS)
    return f"{document[: before + len(_MARKS[0])]}\n{rows}\n{document[after:]}"


def table_of(document: str) -> str:
    """Return the documentation's table. Raises ValueError if it has none."""
    before, after = (document.index(mark) for mark in _MARKS)
    return document[before + len(_MARKS[0]) : after].strip()


_MARKS = ("<!-- made by fewshard conformance --experts -->", "<!-- end -->")
_HEAD = (
    "| type | architecture | experts | an expert | router | equals eager | counted | sharded |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)
