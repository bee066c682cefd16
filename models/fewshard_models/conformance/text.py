"""Compares the text classifiers of Fewshard with transformers' own, one text at a time without padding."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from fewshard_core.activation import activate
from fewshard_core.formats import FORMATS
from fewshard_models.classifier.limits import takes
from fewshard_models.classifier.load import load
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.conformance.matrix import REFUSED, Conformance
from fewshard_models.conformance.tiny import MAX_TOKENS, shake, tiny_config
from fewshard_models.conformance.words import PAIRS, SHORT, VOCAB_SIZE, frame_of, save_tokenizer, words
from fewshard_models.errors import CheckpointError, UnusableInput

Text = str | tuple[str, str]
Logits = NDArray[np.float32]

ARCHITECTURES: dict[str, str] = dict(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
"""The class of each model type that transformers maps to text classification."""
TOLERANCE = 1e-4
LONG = words(3 * MAX_TOKENS)
BESIDE_LONG = [words(1), *[words(MAX_TOKENS - 6, each) for each in range(12)]]
"""A batch whose padding budget lets the shortest text share the pass of the longest."""


def compare(model_type: str, directory: Path) -> Conformance:
    """Make a checkpoint of this type in an empty directory, and compare all answers."""
    return _Comparison(model_type, directory).result()


class _Comparison:
    def __init__(self, model_type: str, directory: Path) -> None:
        self._type, self._directory = model_type, directory
        self._worst = 0.0

    def result(self) -> Conformance:
        names = self._type, ARCHITECTURES[self._type]
        try:
            self._write()
            model = self._load("fp32")
        except CheckpointError as error:
            return Conformance(*names, REFUSED, str(error).replace(f"{self._directory}", "it"))
        faults = tuple(self._faults(model))
        sharing = getattr(model, "sharing", None)
        return Conformance(*names, sharing.mode if sharing else "packed", "", faults, self._worst)

    def _write(self, **fields: Any) -> None:
        config = tiny_config(self._type, VOCAB_SIZE, **fields)
        torch.manual_seed(0)
        shake(AutoModelForSequenceClassification.from_config(config)).save_pretrained(self._directory)
        save_tokenizer(self._directory, self._type, frame_of(config), getattr(config, "type_vocab_size", 0))

    def _load(self, dtype: str) -> NetworkClassifier:
        model = load(self._directory, device="cpu", dtype=dtype)
        model.self_check()
        return model

    def _faults(self, model: NetworkClassifier) -> Iterator[str]:
        """Yield each case that went wrong."""
        cases: dict[str, Callable[[], None]] = {
            "batch of mixed lengths": lambda: self._compare(model, SHORT),
            "beside long texts": lambda: self._compare(model, BESIDE_LONG),
            "pairs": lambda: self._compare(model, [*PAIRS, *SHORT[:3]]),
            "limit": lambda: self._at_the_limit(model),
            "16 bits": self._in_16_bits,
            "no padding id": self._without_padding_id,
            "another padding id": self._with_another_padding_id,
            "multi-label": lambda: self._problem("multi_label_classification"),
            "one label": lambda: self._problem("regression", id2label={0: "size"}, label2id={"size": 0}),
        }
        for name, case in cases.items():
            try:
                case()
            except Exception as error:  # noqa: BLE001  whatever a network raises is what is looked for
                yield f"{name}: {type(error).__name__}: {str(error)[:200]}"

    def _compare(self, model: NetworkClassifier, texts: Sequence[Text], tolerance: float = TOLERANCE) -> None:
        """Compare the logits of a batch, and of its first text alone."""
        right = self._reference(texts, model)
        items = model.prepare([model.preprocessor.to_input(text) for text in texts])
        found = model.run(items).logits
        self._check(found, right, tolerance)
        self._check(model.run(items[:1]).logits, right[:1], tolerance)

    def _check(self, found: Logits, right: Logits, tolerance: float) -> None:
        scale = max(1.0, float(np.abs(right).max()))
        worst = float(np.abs(found - right).max()) / scale
        if tolerance == TOLERANCE:
            self._worst = max(self._worst, worst)
        if not worst <= tolerance:
            raise AssertionError(f"off by {worst:.3g}")

    def _reference(self, texts: Sequence[Text], model: NetworkClassifier) -> Logits:
        """Return the logits of transformers' own model, one text at a time."""
        tokenizer = AutoTokenizer.from_pretrained(self._directory)
        network = AutoModelForSequenceClassification.from_pretrained(self._directory, dtype=model.dtype).eval()
        rows = []
        for text in texts:
            first, second = text if isinstance(text, tuple) else (text, None)
            limit = model.info.max_tokens
            made = tokenizer(first, second, truncation=True, max_length=limit, return_tensors="pt")
            given = {name: value for name, value in made.items() if takes(network, name)}
            given = given if "input_ids" in given else {network.main_input_name: made["input_ids"], **given}
            with torch.inference_mode():
                rows.append(network(**given).logits[0].float().numpy())
        found = np.array(rows, dtype=np.float32)
        if not np.isfinite(found).all() or (len(rows) > 1 and np.std(found, axis=0).max() < 1e-3):
            raise AssertionError("the reference answers alike or not finitely: this proves nothing")
        return found

    def _at_the_limit(self, model: NetworkClassifier) -> None:
        """Compare texts and pairs that are cut, and those of just the limit; longer ones are refused uncut."""
        self._compare(model, [LONG, words(MAX_TOKENS - 8), (words(9), LONG), (LONG, words(40)), words(4)])
        try:
            model.prepare([model.preprocessor.to_input(words(model.info.max_tokens + 1))], truncate=False)
        except UnusableInput:
            return
        raise AssertionError("a text beyond the limit is not refused")

    def _in_16_bits(self) -> None:
        self._compare(self._load("bf16"), SHORT, FORMATS["bf16"].tolerance)

    def _without_padding_id(self) -> None:
        """Decoders are often saved so. Some networks cannot be made without one."""
        self._with_config(pad_token_id=None)

    def _with_another_padding_id(self) -> None:
        self._with_config(pad_token_id=4)

    def _with_config(self, **changed: Any) -> None:
        """Compare a batch with these fields of config.json changed; what is refused is right."""
        file = self._directory / "config.json"
        kept = file.read_text(encoding="utf-8")
        try:
            file.write_text(json.dumps(_changed(json.loads(kept), changed)), encoding="utf-8")
            self._compare(self._load("fp32"), [*SHORT, *BESIDE_LONG[:3]])
        except CheckpointError:
            return
        finally:
            file.write_text(kept, encoding="utf-8")

    def _problem(self, problem_type: Any, **fields: Any) -> None:
        """Compare logits and scores of another problem type."""
        for file in self._directory.glob("*.safetensors"):
            file.unlink()
        self._write(problem_type=problem_type, **fields)
        model = self._load("fp32")
        self._compare(model, SHORT[:4])
        right = self._reference(SHORT[:4], model)
        found = model(SHORT[:4])
        self._check(found.scores, activate(right, problem_type), TOLERANCE)


def _changed(config: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json with other fields, in its nested parts where they are there."""
    nested = {
        name: _changed(value, changed)
        for name, value in config.items()
        if isinstance(value, dict) and any(field in value for field in changed)
    }
    return {**config, **nested, **{name: value for name, value in changed.items() if name in config}}
