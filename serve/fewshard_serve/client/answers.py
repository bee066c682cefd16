"""Answers as typed values, from the server's JSON."""

from dataclasses import dataclass
from typing import Any

from fewshard_serve.client.errors import ClientError


@dataclass(frozen=True, slots=True)
class LabelScore:
    """One label of one item."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One item: its labels, the best first. `stage` names the model that spoke, where a cascade was asked."""

    labels: tuple[LabelScore, ...]
    stage: str | None = None

    @property
    def label(self) -> str:
        return self.labels[0].label

    @property
    def score(self) -> float:
        return self.labels[0].score


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer to one request, in the order of its inputs. `raw` is the server's own JSON."""

    model: str
    predictions: tuple[Prediction, ...]
    num_tokens: int
    timings_ms: dict[str, float]
    raw: dict[str, Any]


def classification(answer: dict[str, Any], num_inputs: int) -> Classification:
    """Raises `ClientError` where the JSON is no answer to so many inputs."""
    try:
        stages = answer.get("stages") or [None] * num_inputs
        pairs = zip(answer["predictions"], stages, strict=True)
        predictions = tuple(Prediction(tuple(map(_label_score, each)), stage) for each, stage in pairs)
        if len(predictions) != num_inputs:
            raise ValueError(f"{len(predictions)} predictions for {num_inputs} inputs")
        tokens, timings = answer["usage"]["tokens"], answer.get("timings_ms", {})
        return Classification(answer["model"], predictions, tokens, timings, answer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ClientError(f"the answer is not one of a Fewshard server: {error!r}") from None


def _label_score(entry: dict[str, Any]) -> LabelScore:
    return LabelScore(entry["label"], float(entry["score"]))
