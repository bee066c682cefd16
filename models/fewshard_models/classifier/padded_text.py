"""Runs any text classifier of transformers: padded where that changes no answer, else length by length."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshard_core.formats import FORMATS
from fewshard_core.values import Item, ModelInfo, ModelOutput, TokenIds
from fewshard_models.checkpoint import Checkpoint
from fewshard_models.classifier.expert_faults import where_not_finite
from fewshard_models.classifier.limits import (
    num_rows,
    num_types,
    switching_length,
    takes,
    text_config,
    text_limit,
)
from fewshard_models.classifier.network import TextClassifier
from fewshard_models.classifier.padding import Padding, Sharing, Trial, candidates, groups
from fewshard_models.classifier.probe import affordable
from fewshard_models.classifier.registry import register
from fewshard_models.classifier.routed_experts import Chosen, RoutedExperts, own_rows
from fewshard_models.classifier.routing_totals import RoutingTotals, fill_routing
from fewshard_models.classifier.tokenizer import TextPreprocessor
from fewshard_models.errors import CheckpointError, NotFiniteError

logger = logging.getLogger(__name__)

MAX_PADDED_TOKENS = 16384
"""The most tokens, padding included, of one forward pass."""
MAX_PADDING = 1.15
"""The most tokens that a batch computes, relative to the tokens of its texts."""
NO_TOKEN = -1
_KNOWN_INPUTS = {"input_ids", "inputs", "attention_mask", "token_type_ids", "special_tokens_mask"}


@register("*ForSequenceClassification")
class PaddedText(TextClassifier):
    """Splits a batch into passes.

    sharing: which texts may share one; found by trial, with this network and its tokenizer.
    """

    can_compile = True
    preprocessor_class: ClassVar[type[TextPreprocessor]] = TextPreprocessor

    def __init__(self, checkpoint: Checkpoint, info: ModelInfo) -> None:
        super().__init__(checkpoint, info)
        self._rows = num_rows(self.network)
        self.experts = RoutedExperts(self.network)
        self.preprocessor: TextPreprocessor = self.preprocessor_class(
            checkpoint.directory,
            text_limit(self.network),
            num_rows=self._rows,
            num_types=num_types(self.network),
        )
        kind = info.kind if checkpoint.card else "moe" if self.experts.layers else "dense"
        self.info = replace(info, kind=kind, max_tokens=self.preprocessor.max_tokens)
        self._check_inputs()
        self._takes_mask = takes(self.network, "attention_mask")
        self._ids_name = "input_ids" if takes(self.network, "input_ids") else self.network.main_input_name
        self._end_id = getattr(self.network.config, "eos_token_id", None)
        self._switching_length = switching_length(self.network.config)
        self._sparse = [each for each in self.network.modules() if _switches_for_good(each)]
        self._let_equal_lengths_share()
        self.sharing = self._try()
        self.routing = self._try_counting()
        self.preprocessor.has_experts = self.routing is not None

    @property
    def depends_on_length(self) -> bool:
        """Whether the network computes a long text in another way than a short one."""
        return bool(self._sparse or self._switching_length)

    def _check_inputs(self) -> None:
        """Raise CheckpointError if the tokenizer makes an input of the network that is not passed here."""
        for name in self.preprocessor.input_names():
            if name not in _KNOWN_INPUTS and takes(self.network, name):
                raise CheckpointError(
                    f"{self.checkpoint.directory} holds {self.info.architecture}, whose tokenizer makes "
                    f"{name} besides token ids; Fewshard serves networks of token ids alone"
                )

    def _let_equal_lengths_share(self) -> None:
        """Give a network without padding id one that is no token.

        Decoders refuse to run two texts at once without one. With it, each text's last token is taken, as
        when it is alone.
        """
        config = text_config(self.network.config)
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = NO_TOKEN

    def _try(self) -> Sharing:
        number_format, pad = FORMATS[self.info.dtype], self.preprocessor.pad_token_id
        try:
            items = self._probe_items()
            long = affordable(items, self.info.device, self.network)[-1].features
            trial = Trial(self.network, self._answers, number_format, items[0].features, long)
        except Exception as error:  # a network that does not fit its files may raise anything
            raise CheckpointError(
                f"{self.checkpoint.directory} cannot answer an ordinary text: {type(error).__name__}: {error}"
            ) from error
        if self._sparse:  # the blocks that a text attends to depend on the length of its pass
            return trial.sharing([])
        return trial.sharing(candidates(self.network.config, pad, self.preprocessor.padding_side, self._rows))

    def _try_counting(self) -> RoutingTotals | None:
        """Return empty totals; None if there are no experts, or a trial shows that they cannot be counted."""
        if not self.experts.layers:
            return None
        word, _, line, *_ = self.preprocessor.items(self.preprocessor.probe_inputs(), True)
        items = [line] if self.sharing.padding is None else [word, line]
        _, chosen = self._routed_pass([item.features for item in items], self.sharing.padding)
        if problem := self.experts.uncounted(chosen, sum(item.num_tokens for item in items)):
            logger.warning("model %r: its experts are not counted: %s", self.info.name, problem)
            return None
        num_experts, top_k = self.experts.layers[0].num_experts, chosen[0].experts.shape[1]
        return RoutingTotals(len(chosen), num_experts, top_k, self.device)

    def _probe_items(self) -> list[Item]:
        """Return the probe's items, once it is known how short they may be."""
        word, _, line, *_ = items = self.preprocessor.items(self.preprocessor.probe_inputs(), True)
        if self._can_answer(word.features):
            return items
        shorter = (
            _shortened(line.features, number) for number in range(word.num_tokens + 1, line.num_tokens)
        )
        answered = next((each for each in shorter if self._can_answer(each)), line.features)
        self._pass([answered], None)  # raises where the length is not the reason
        self.preprocessor.min_tokens = len(answered.ids)
        return self.preprocessor.items(self.preprocessor.probe_inputs(), True)

    def _answers(
        self, features: Sequence[TokenIds], padding: Padding | None
    ) -> Sequence[NDArray[np.float32]]:
        """Return all that one pass says of each text: here its logits [num_labels]."""
        return list(self._pass(features, padding))

    def _can_answer(self, features: TokenIds) -> bool:
        try:
            self._pass([features], None)
        except Exception:  # noqa: BLE001  as in `_try`
            return False
        return True

    def run(self, items: Sequence[Item]) -> ModelOutput:
        """Run as few passes as the padding budget allows.

        Raises NotFiniteError for an item alone whose logits are not finite, if the network has experts.
        """
        rows: list[int] = []
        found: list[NDArray[np.float32]] = []
        num_padded = 0
        for part in self._parts(items):
            features = [items[row].features for row in part]
            found.append(self._counted_pass([items[row] for row in part]))
            num_padded += len(part) * max(len(each.ids) for each in features)
            rows += part
        logits = np.concatenate(found)
        logits[rows] = logits.copy()
        if len(items) == 1 and self.experts.layers and not np.isfinite(logits).all():
            where = where_not_finite(self.experts.layers, lambda: self._pass([items[0].features], None))
            raise NotFiniteError(
                f"the network's numbers for this item are not finite, first {where}; if other texts are "
                "answered it needs a wider number format (dtype fp32), else its weights are damaged"
            )
        return ModelOutput(logits, num_padded - sum(item.num_tokens for item in items))

    def _parts(self, items: Sequence[Item]) -> Iterator[list[int]]:
        """Yield the rows of each pass."""
        order = sorted(range(len(items)), key=lambda row: (self._kind(items[row]), items[row].num_tokens))
        for kind, group in groupby(order, key=lambda row: self._kind(items[row])):
            rows = list(group)
            for part in self._split(rows, [items[row].num_tokens for row in rows], kind):
                longest = items[part[-1]].num_tokens
                at_once = max(1, MAX_PADDED_TOKENS // longest) if self.sharing.is_batched else 1
                yield from (part[start : start + at_once] for start in range(0, len(part), at_once))

    def _split(
        self, rows: list[int], lengths: list[int], kind: tuple[int, bool, bool]
    ) -> Iterator[list[int]]:
        can_pad = self.sharing.padding is not None and not kind[-1]
        start = 0
        for count in groups(lengths, MAX_PADDING if can_pad else 1.0):
            yield rows[start : start + count]
            start += count

    def _kind(self, item: Item) -> tuple[int, bool, bool]:
        """Return what the texts of a pass must have in common.

        Encoder-decoders require equally many end tokens. Some networks turn positions in another way once a
        text of the pass is long. A text that holds the padding token itself is not padded with it.
        """
        ids, padding = item.features.ids, self.sharing.padding
        ends = ids.count(self._end_id) if self.network.config.is_encoder_decoder else 0
        is_turned = 0 < self._switching_length < len(ids)
        return ends, is_turned, padding is not None and padding.token_id in ids

    def _counted_pass(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """Return fp32 logits as `_pass` does, having counted the experts."""
        features = [item.features for item in items]
        logits, chosen = self._routed_pass(features, self.sharing.padding)
        if self.routing is not None:
            self.routing.add([layer.stats for layer in chosen])
            if any(wanted := [item.routing for item in items]):
                fill_routing(wanted, [len(each.ids) for each in features], [each.experts for each in chosen])
        return logits

    def _pass(self, features: Sequence[TokenIds], padding: Padding | None) -> NDArray[np.float32]:
        """Return fp32 logits [len(features), num_labels]."""
        return self._routed_pass(features, padding)[0]

    def _routed_pass(
        self, features: Sequence[TokenIds], padding: Padding | None
    ) -> tuple[NDArray[np.float32], list[Chosen]]:
        """Return fp32 logits [len(features), num_labels], and what each layer with experts chose."""
        lengths = [len(item.ids) for item in features]
        length = max(lengths)
        fill, side = (0, "right") if padding is None else (padding.token_id, padding.side)
        inputs: dict[str, Any] = {
            self._ids_name: self._stack([item.ids for item in features], length, fill, side)
        }
        if self._takes_mask:
            inputs["attention_mask"] = self._stack([[1] * each for each in lengths], length, 0, side)
        if features[0].types is not None:
            inputs["token_type_ids"] = self._stack([item.types or [] for item in features], length, 0, side)
        for module in self._sparse:
            module.set_attention_type("block_sparse")
        own = own_rows(lengths, length, side) if self.experts.layers else None
        with (
            torch.inference_mode(),
            self.experts.watched(None if own is None else own.to(self.device)) as chosen,
        ):
            logits: Tensor = self.forward(**inputs).logits
        return logits.float().cpu().numpy(), chosen

    def _stack(self, rows: list[list[int]], length: int, fill: int, side: str) -> Tensor:
        empty = [[fill] * (length - len(row)) for row in rows]
        filled = [gap + row if side == "left" else row + gap for row, gap in zip(rows, empty, strict=True)]
        return torch.tensor(filled, device=self.device)


def _switches_for_good(module: Any) -> bool:
    """Return whether a module attends to blocks, until a short text makes it attend to everything.

    BigBird never switches back, so a long text would get another answer after a short one.
    """
    config = getattr(module, "config", None)
    is_sparse = getattr(config, "attention_type", "") == "block_sparse"
    return is_sparse and hasattr(module, "set_attention_type") and hasattr(module, "attention_type")


def _shortened(features: TokenIds, num_tokens: int) -> TokenIds:
    """Return the first tokens of a text and its last one, which may be the token that ends it."""
    ids, types = features.ids, features.types
    return TokenIds(
        [*ids[: num_tokens - 1], ids[-1]], None if types is None else [*types[: num_tokens - 1], types[-1]]
    )
