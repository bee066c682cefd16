"""Reads a checkpoint's config.json; what would be answered wrongly, or cost without bound, is refused.

transformers overlooks unknown names and contradictions, and allocates what the file asks for. `checkpoint`
calls it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from transformers import AutoConfig, PreTrainedConfig

from fewshard_core.values import ProblemType
from fewshard_models.errors import CheckpointError

MAX_BYTES = 16 * 2**20
_MAX_LIST = 4096
_COUNTS = (
    (re.compile(r"(?:^|_)(?:layers?|blocks|depths?|stages|groups)$"), 1024),
    (re.compile(r"(?:^|_)(?:experts|heads?)$"), 65536),
    (re.compile(r"(?:^|_)(?:labels|classes)$"), 2**20),
    (
        re.compile(
            r"(?:^|_)(?:size|sizes|positions?|embeddings|dim|dims|channels|tokens|(?<!model_max_)length|len|ctx)$"
        ),
        2**28,
    ),
)
"""Names of counts, and the largest number that is believed: Python objects are made for layers and labels."""
_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half a character, which JSON can write and UTF-8 cannot."""
_CHANGES_WEIGHTS = ("transformers_weights", "fusion_config")
"""Keys by which transformers takes other files or other arithmetic than those of the checkpoint."""

_SCORE_TYPES = {"Identity": "regression", "Sigmoid": None}
"""The problem type of a network with one output, by the function that its score goes through."""


def load_config(directory: Path) -> PreTrainedConfig:
    """Read the directory's config.json. Raises CheckpointError if it is missing or damaged."""
    file = directory / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{directory} has no config.json; it is not a Hugging Face checkpoint")
    if file.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{file} has more than {MAX_BYTES:,} bytes; it is not a configuration")
    try:
        fields = json.loads(file.read_bytes())
        if not isinstance(fields, dict):
            raise ValueError("it is not a JSON object")
        _require_sane(fields)
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        config.id2label = _names(config.id2label)
        config.problem_type = _problem_type(config)
        _require_positions(config)
    # transformers raises many kinds of errors; each means that this file is at fault
    except Exception as error:
        raise CheckpointError(f"{file} cannot be used: {error}") from error
    return config


def _require_sane(fields: dict[str, Any]) -> None:
    """Raise ValueError, with what to do, for a configuration that must not reach transformers."""
    for key, value in _leaves(fields):
        limit = next((limit for pattern, limit in _COUNTS if pattern.search(key)), None)
        if limit is not None and isinstance(value, int | float) and not -1 <= value <= limit:
            raise ValueError(f"{key} is {value}; it must be a number up to {limit:,}")
    architectures = fields.get("architectures")
    if architectures is not None and not _is_list_of_names(architectures):
        raise ValueError(
            'architectures must be a list of one class name, as ["BertForSequenceClassification"]'
        )
    if keys := [key for key in _CHANGES_WEIGHTS if fields.get(key)]:
        raise ValueError(f"{keys[0]} is not supported; delete it, and name the weights model.safetensors")
    stated = fields.get("problem_type")
    if stated is not None and stated not in get_args(ProblemType):
        raise ValueError(
            f"problem_type is {stated!r}; it must be one of {', '.join(get_args(ProblemType))}, or null"
        )
    labels = fields.get("id2label")
    if not isinstance(fields.get("quantization_config") or {}, dict):
        raise ValueError("quantization_config must be an object with a quant_method")
    if labels is not None and not isinstance(labels, dict):
        raise ValueError(
            'id2label must be an object from numbers to names, as {"0": "negative", "1": "positive"}'
        )


def _require_positions(config: PreTrainedConfig) -> None:
    """Raise ValueError for relative positions of BERT and its relatives, which transformers 5 overlooks."""
    stated = getattr(config, "position_embedding_type", None)
    is_known = "position_embedding_type" in type(config).__dataclass_fields__
    if stated not in (None, "absolute") and (not is_known or "relative" in str(stated)):
        raise ValueError(
            f"position_embedding_type is {stated!r}, which transformers 5 does not compute for "
            f"{config.model_type}: it would be overlooked; serve a checkpoint with absolute positions"
        )


def _problem_type(config: PreTrainedConfig) -> str | None:
    """Return the problem type: as stated, or a regression if sentence-transformers has one score unchanged.

    Its cross-encoders name the function of their score beside the type, which knows none but these two.

    Raises ValueError for another function.
    """
    stated: str | None = config.problem_type
    section = getattr(config, "sentence_transformers", None)
    named = section.get("activation_fn") if isinstance(section, dict) else None
    named = named or getattr(config, "sbert_ce_default_activation_function", None)
    if stated is not None or named is None or config.num_labels != 1:
        return stated
    function = str(named).rpartition(".")[2]
    if function not in _SCORE_TYPES:
        raise ValueError(
            f"the score goes through {named}, which is not computed here; state {' or '.join(_SCORE_TYPES)} "
            "as activation_fn of sentence_transformers"
        )
    return _SCORE_TYPES[function]


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _leaves(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each key with its value, of objects inside and of the elements of lists, too."""
    left: list[tuple[str, Any]] = list(fields.items())
    while left:
        key, value = left.pop()
        match value:
            case dict() if key not in ("id2label", "label2id"):
                left += value.items()
            case list():
                if len(value) > _MAX_LIST and not isinstance(value[0], str):
                    raise ValueError(f"{key} is a list of {len(value):,}, more than {_MAX_LIST:,}")
                left += [(key, each) for each in value]
            case _:
                yield key, value


def _names(labels: dict[int, Any] | None) -> dict[int, str] | None:
    """Return the labels in the order of the network's outputs, as strings.

    A number is written as in JSON. null is no name, so the label gets transformers' default.

    Raises ValueError if a number between is not named, or a name is a list or an object.
    """
    if labels is None:
        return None
    if missing := [number for number in range(len(labels)) if number not in labels]:
        raise ValueError(
            f"id2label has {len(labels)} names but none for {missing[0]}; name the numbers from 0 to "
            f"{len(labels) - 1}"
        )
    return {number: _name(number, labels[number]) for number in range(len(labels))}


def _name(number: int, name: Any) -> str:
    match name:
        case None:
            return f"LABEL_{number}"
        case str() if not _SURROGATE.search(name):
            return name
        case bool() | int() | float():
            return json.dumps(name)
    raise ValueError(
        f"id2label names {number} {json.dumps(name):.60}; a name is a string of whole characters"
    )
