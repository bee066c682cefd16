"""Compares the text classifiers of Fewshard with transformers' own, one text at a time without padding."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from fewshard_core.activation import activate
from fewshard_core.formats import FORMATS
from fewshard_models.classifier.limits import takes, text_limit
from fewshard_models.classifier.load import load
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.classifier.tokenizer import TextPreprocessor
from fewshard_models.conformance.matrix import NOT_COMPARED, REFUSED, Conformance
from fewshard_models.conformance.tiny import MAX_TOKENS, shake, tiny_config
from fewshard_models.conformance.words import PAIRS, SHORT, frame_of, num_rows, save_tokenizer, words
from fewshard_models.errors import CheckpointError, UnusableInput

Text = str | tuple[str, str]
Logits = NDArray[np.float32]

ARCHITECTURES: dict[str, str] = dict(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
"""The class of each model type that transformers maps to text classification."""
TOLERANCE = 1e-4
LONG = words(3 * MAX_TOKENS)
BESIDE_LONG = [words(1), *[words(MAX_TOKENS - 6, each) for each in range(9)]]
"""A batch whose padding budget lets the shortest text share the pass of the longest."""


def compare(model_type: str, directory: Path) -> Conformance:
    """Make a checkpoint of this type in an empty directory, and compare all answers."""
    return _Comparison(model_type, directory).result()


def write_checkpoint(directory: Path, model_type: str, **fields: Any) -> None:
    """Write a tiny random checkpoint of a type. `fields`: of its configuration."""
    config = tiny_config(model_type, num_rows(model_type), **fields)
    torch.manual_seed(0)
    network = shake(AutoModelForSequenceClassification.from_config(config))
    network.save_pretrained(directory)
    max_tokens = None if text_limit(network) else MAX_TOKENS
    save_tokenizer(directory, model_type, frame_of(config), getattr(config, "type_vocab_size", 0), max_tokens)


class Reference:
    """transformers' own tokenizer and network, asked for one text at a time. `options`: of the network."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        network = AutoModelForSequenceClassification.from_pretrained(directory, dtype=dtype, **options)
        self._network = network.eval()

    def logits(self, texts: Sequence[Text], max_tokens: int) -> Logits:
        """Return fp32 [len(texts), num_labels]. Raises AssertionError if they cannot show a difference."""
        found = np.concatenate([self._row(text, max_tokens) for text in texts])
        if not np.isfinite(found).all() or (len(found) > 1 and np.std(found, axis=0).max() < 1e-3):
            raise AssertionError("the reference answers alike or not finitely: this proves nothing")
        return found

    def _row(self, text: Text, max_tokens: int) -> Logits:
        pair = text if isinstance(text, tuple) else (text,)
        made = self._tokenizer(*pair, truncation=True, max_length=max_tokens, return_tensors="pt")
        given = {name: value for name, value in made.items() if takes(self._network, name)}
        if "input_ids" not in given:
            given[self._network.main_input_name] = made["input_ids"]
        # BigBird changes itself with the first short text.
        changes = getattr(self._network.config, "attention_type", "") == "block_sparse"
        network = copy.deepcopy(self._network) if changes else self._network
        with torch.inference_mode():
            row: Logits = network(**given).logits.float().numpy()
        return row


class _Comparison:
    def __init__(self, model_type: str, directory: Path) -> None:
        self._type, self._directory = model_type, directory
        self._worst = 0.0

    def result(self) -> Conformance:
        names = self._type, ARCHITECTURES[self._type]
        try:
            self._write()
        except ImportError as error:
            return Conformance(*names, REFUSED, " ".join(str(error).split())[:120])
        except Exception as error:  # noqa: BLE001  the tiny configuration is at fault, so nothing is known
            return Conformance(*names, NOT_COMPARED, faults=(f"{type(error).__name__}: {error}",))
        try:
            model = self._load("fp32")
        except CheckpointError as error:
            told = str(error).replace(str(self._directory), "it").replace(repr(self._directory.name), "it")
            return Conformance(*names, REFUSED, told.splitlines()[0])
        faults = tuple(self._faults(model))
        sharing = getattr(model, "sharing", None)
        return Conformance(*names, sharing.mode if sharing else "packed", "", faults, self._worst)

    def _write(self, **fields: Any) -> None:
        write_checkpoint(self._directory, self._type, **fields)

    def _load(self, dtype: str) -> NetworkClassifier:
        return load(self._directory, device="cpu", dtype=dtype)

    def _faults(self, model: NetworkClassifier) -> Iterator[str]:
        """Yield each case that went wrong."""
        reference = Reference(self._directory)
        cases: dict[str, Callable[[], None]] = {
            "batch of mixed lengths": lambda: self._compare(model, reference, SHORT),
            "beside long texts": lambda: self._compare(model, reference, BESIDE_LONG),
            "pairs": lambda: self._compare(model, reference, [*PAIRS, *SHORT[:3]]),
            "limit": lambda: self._at_the_limit(model, reference),
            "16 bits": self._in_16_bits,
            "no padding id": lambda: self._with_config(pad_token_id=None),
            "another padding id": lambda: self._with_config(pad_token_id=4),
            "multi-label": lambda: self._multi_label(reference),
            "one label": self._one_label,
        }
        for name, case in cases.items():
            try:
                case()
            except Exception as error:  # noqa: BLE001  whatever a network raises is what is looked for
                yield f"{name}: {type(error).__name__}: {str(error)[:200]}"

    def _compare(
        self,
        model: NetworkClassifier,
        reference: Reference,
        texts: Sequence[Text],
        tolerance: float = TOLERANCE,
    ) -> None:
        """Compare the logits of a batch, and of its first text alone; without texts too short for it."""
        texts = [text for text in texts if _num_words(text) >= _min_tokens(model)]
        right = reference.logits(texts, model.info.max_tokens)
        items = model.prepare([model.preprocessor.to_input(text) for text in texts])
        self._check(model.run(items).logits, right, tolerance)
        self._check(model.run(items[:1]).logits, right[:1], tolerance)

    def _check(self, found: Logits, right: Logits, tolerance: float = TOLERANCE) -> None:
        scale = max(1.0, float(np.abs(right).max()))
        worst = float(np.abs(found - right).max()) / scale
        if tolerance == TOLERANCE:
            self._worst = max(self._worst, worst)
        if not worst <= tolerance:
            raise AssertionError(f"off by {worst:.3g}")

    def _at_the_limit(self, model: NetworkClassifier, reference: Reference) -> None:
        """Compare texts and pairs that are cut; longer ones are refused uncut."""
        self._compare(model, reference, [LONG, words(MAX_TOKENS - 8), (words(9), LONG), (LONG, words(40))])
        try:
            model.prepare([model.preprocessor.to_input(words(model.info.max_tokens + 1))], truncate=False)
        except UnusableInput:
            return
        raise AssertionError("a text beyond the limit is not refused")

    def _in_16_bits(self) -> None:
        try:
            model = self._load("bf16")
        except CheckpointError:  # torch lacks an operation in this format
            return
        self._compare(model, Reference(self._directory, torch.bfloat16), SHORT, FORMATS["bf16"].tolerance)

    def _with_config(self, **changed: Any) -> None:
        """Compare a batch with these fields of config.json changed, where transformers can load it at all."""
        with self._edited(**changed):
            try:
                model, reference = self._load("fp32"), Reference(self._directory)
                reference.logits(SHORT[5:7], model.info.max_tokens)
            except (CheckpointError, ValueError):
                return
            self._compare(model, reference, [*SHORT[::2], *BESIDE_LONG[1:4]])

    def _multi_label(self, reference: Reference) -> None:
        with self._edited(problem_type="multi_label_classification"):
            self._scores(self._load("fp32"), reference)

    def _one_label(self) -> None:
        for file in self._directory.glob("*.safetensors*"):
            file.unlink()
        self._write(problem_type="regression", id2label={0: "size"}, label2id={"size": 0})
        self._scores(self._load("fp32"), Reference(self._directory))

    def _scores(self, model: NetworkClassifier, reference: Reference) -> None:
        """Compare the scores of a few texts."""
        right = reference.logits(SHORT[5:8], model.info.max_tokens)
        self._check(model(SHORT[5:8]).scores, activate(right, model.info.problem_type))

    @contextmanager
    def _edited(self, **changed: Any) -> Iterator[None]:
        """Meanwhile config.json has other fields."""
        file = self._directory / "config.json"
        kept = file.read_text(encoding="utf-8")
        file.write_text(json.dumps(_changed(json.loads(kept), changed)), encoding="utf-8")
        try:
            yield
        finally:
            file.write_text(kept, encoding="utf-8")


def _min_tokens(model: NetworkClassifier) -> int:
    assert isinstance(model.preprocessor, TextPreprocessor)
    return model.preprocessor.min_tokens


def _num_words(text: Text) -> int:
    return len((text if isinstance(text, str) else " ".join(text)).split())


def _changed(config: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json with other fields, in its nested parts where they are there."""
    nested = {
        name: _changed(value, changed)
        for name, value in config.items()
        if isinstance(value, dict) and any(field in value for field in changed)
    }
    return {**config, **nested, **changed}
