"""The task of models that label the tokens of a text, such as named-entity recognition.

A text is answered by its entities: parts of it with a label, a score and a place. V2 requests have the tensor
`text`, BYTES [N] or [N,1]. The output tensors have an element for each entity of all texts, and `item` says
whose it is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fewshard_core.values import ModelInfo
from fewshard_models.classifier.entities import DEFAULT_AGGREGATION, OUTSIDE, Entity, entities_of
from fewshard_serve.core import Classified
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.oip import RequestedOutput
from fewshard_serve.protocol.options import AnswerOptions
from fewshard_serve.protocol.tasks.base import InputTensor
from fewshard_serve.protocol.tasks.text import TextTask
from fewshard_serve.protocol.tensors import Tensor, bytes_tensor


class TokenTask(TextTask):
    name = "tokens"
    plural = "the tokens of texts"
    architecture = "ForTokenClassification"

    json_types = (str,)
    json_help = ""
    json_refusal = "a model that labels tokens takes strings"
    body_refusal = 'labels the tokens of texts; send JSON: {"inputs": "a text"}'

    tensors = (InputTensor("text", "BYTES", (-1,), "the texts"),)
    takes_texts = False
    labels_items = False

    def check_options(self, options: AnswerOptions) -> None:
        """Everything is heard."""

    def predictions(
        self, info: ModelInfo, answer: Classified, options: AnswerOptions
    ) -> list[list[dict[str, Any]]]:
        """The entities of each text in its order; with `top_k` the best so many."""
        return [
            [_described(each, tokens.text) for each in found]
            for tokens, found in zip(answer.tokens, _entities(info, answer, options), strict=True)
        ]

    def output_tensors(self, info: ModelInfo) -> list[dict[str, Any]]:
        kinds = {"item": "INT32", "label": "BYTES", "scores": "FP32", "start": "INT32", "end": "INT32"}
        return [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in kinds.items()]

    def check_output(self, output: RequestedOutput) -> None:
        if output.num_classes:
            raise MalformedRequest("classification is for models that label whole items; leave it out")

    def outputs(
        self,
        wanted: Sequence[RequestedOutput],
        info: ModelInfo,
        answer: Classified,
        options: AnswerOptions,
    ) -> list[Tensor]:
        by_text = _entities(info, answer, options)
        found = [each for entities in by_text for each in entities]
        items = [item for item, entities in enumerate(by_text) for _ in entities]
        values = {
            "item": Tensor("item", "INT32", np.array(items, np.int32)),
            "label": bytes_tensor("label", [each.label for each in found], [len(found)]),
            "scores": Tensor("scores", "FP32", np.array([each.score for each in found], np.float32)),
            "start": Tensor("start", "INT32", np.array([each.start for each in found], np.int32)),
            "end": Tensor("end", "INT32", np.array([each.end for each in found], np.int32)),
        }
        return [values[output.name] for output in wanted]


def _entities(info: ModelInfo, answer: Classified, options: AnswerOptions) -> list[list[Entity]]:
    aggregation = options.aggregation or DEFAULT_AGGREGATION
    ignored = OUTSIDE if options.ignore_labels is None else options.ignore_labels
    return [
        _best(entities_of(each, info.labels, aggregation, ignored, bool(options.raw_scores)), options.top_k)
        for each in answer.tokens
    ]


def _best(found: list[Entity], top_k: int | None) -> list[Entity]:
    if top_k is None or len(found) <= top_k:
        return found
    chosen = sorted(range(len(found)), key=lambda row: -found[row].score)[:top_k]
    return [found[row] for row in sorted(chosen)]


def _described(entity: Entity, text: str) -> dict[str, Any]:
    return {
        "label": entity.label,
        "score": entity.score,
        "text": text[entity.start : entity.end],
        "start": entity.start,
        "end": entity.end,
    }
