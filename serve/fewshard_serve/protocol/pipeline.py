"""The protocol of Hugging Face's pipelines, as its inference endpoints and SageMaker containers speak it.

`{"inputs", "parameters"}`, or an image file as the body. A text is answered as in `tei`, an image by one flat
list. The HTTP handlers call it.
"""

from typing import Any

from pydantic_core import to_json

from fewshard_core.values import Input, ModelInfo
from fewshard_serve.core import Classified
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol import tei
from fewshard_serve.protocol.classify import ClassifyOptions
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.ranking import rank, ranked_scores
from fewshard_serve.protocol.tasks import TASKS

TOP_K = 5
"""The labels of an image that its pipeline returns, unless `top_k` says otherwise."""


def parse(body: bytes, limits: Limits) -> tei.PredictRequest:
    """Parse a JSON body. Raises `MalformedRequest`, also for a list of texts, or `TooLarge`."""
    request = tei.parse(body, limits)
    tei.refuse_flat(request)
    return request


def to_inputs(request: tei.PredictRequest, info: ModelInfo, limits: Limits) -> list[Input]:
    """The items of a request, for a model of any task."""
    task = TASKS.of(info)
    if task.takes_texts:
        return tei.to_inputs(request, info, limits)
    if not isinstance(request.inputs, str):
        name = info.name
        raise MalformedRequest(f"{name} takes one item here; send several to /v2/models/{name}/classify")
    task.check_options(request.wished)
    if not task.labels_items and request.parameters and request.parameters.function_to_apply:
        raise MalformedRequest("function_to_apply is for models that label whole items; leave it out")
    return [task.from_json(0, request.inputs, limits)]


def encode(request: tei.PredictRequest, info: ModelInfo, answer: Classified) -> bytes:
    """The labels of each item, the best first; of a model that labels tokens, the entities of one text."""
    if not TASKS.of(info).labels_items:
        return to_json(_entities(request, info, answer))
    if TASKS.of(info).takes_texts:
        return tei.encode(request, info, answer)
    given = request.parameters
    top_k = (given.top_k if given else None) or TOP_K
    return to_json(rank(tei.scores(request, info, answer.logits), info.labels, top_k)[0])


def encode_file(options: ClassifyOptions, info: ModelInfo, answer: Classified) -> bytes:
    """The labels of the one item that was sent as a file."""
    return to_json(ranked_scores(answer.logits, info, options.raw_scores, options.top_k or TOP_K)[0])


def _entities(request: tei.PredictRequest, info: ModelInfo, answer: Classified) -> list[dict[str, Any]]:
    """The entities of the one text, with the keys of transformers' token-classification pipeline."""
    wished = request.wished
    label = "entity" if wished.aggregation == "none" else "entity_group"
    (found,) = TASKS.of(info).predictions(info, answer, wished)
    return [
        {
            label: each["label"],
            "score": each["score"],
            "word": each["text"],
            "start": each["start"],
            "end": each["end"],
        }
        for each in found
    ]
