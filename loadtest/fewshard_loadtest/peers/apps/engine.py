"""A text classifier on torch, OpenVINO or ONNX Runtime, as the peers' programs run it, in their environments.

`load` gives what a documentation shows first for settings as shipped, and for tuned ones the best that a
patient owner can assemble: the Rust tokeniser itself, batches sorted by length and cut, threads that wait
passively.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Classify = Callable[[Sequence[str]], list[tuple[str, float]]]
"""The best label of each text, and its probability."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MAX_TOKENS = 512


def load(settings: dict[str, Any]) -> Classify:
    """The classifier of these settings: `model`, `engine`, `dtype`, `threads`, `cut` and `name`."""
    if settings["name"] == "as shipped":
        return _documented(settings)
    return _tuned(settings)


def _documented(settings: dict[str, Any]) -> Classify:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForSequenceClassification.from_pretrained(settings["model"], dtype=torch.float32).eval()

    def classify(texts: Sequence[str]) -> list[tuple[str, float]]:
        encoded = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**encoded).logits
        scores, classes = logits.softmax(-1).max(-1)
        names = [model.config.id2label[index] for index in classes.tolist()]
        return list(zip(names, scores.tolist(), strict=True))

    return classify


def _tuned(settings: dict[str, Any]) -> Classify:
    folder = Path(settings["model"])
    encode = tokeniser(folder)
    logits = ENGINES[settings["engine"]](settings)
    labels = json.loads((folder / "config.json").read_text())["id2label"]
    cut = settings["cut"]

    def classify(texts: Sequence[str]) -> list[tuple[str, float]]:
        rows = encode(texts)
        order = sorted(range(len(rows)), key=lambda place: len(rows[place][0]))
        found: list[tuple[str, float]] = [("", 0.0)] * len(rows)
        for start in range(0, len(order), cut or len(order)):
            places = order[start : start + (cut or len(order))]
            for place, row in zip(places, logits(padded([rows[at] for at in places])), strict=True):
                best = int(row.argmax())
                found[place] = (labels[str(best)], float(1 / np.exp(row - row[best]).sum()))
        return found

    return classify


def tokeniser(folder: Path) -> Callable[[Sequence[str]], list[tuple[list[int], list[int]]]]:
    """Tokens and token types of each text, from the Rust library alone."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)

    def encode(texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        return [(one.ids, one.type_ids) for one in tokenizer.encode_batch_fast(list(texts))]

    return encode


def padded(rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Array]:
    """The three inputs of BERT, int64 [texts, longest]."""
    longest = max(len(ids) for ids, _ in rows)
    inputs = {name: np.zeros((len(rows), longest), np.int64) for name in INPUTS}
    for place, (ids, types) in enumerate(rows):
        inputs["input_ids"][place, : len(ids)] = ids
        inputs["attention_mask"][place, : len(ids)] = 1
        inputs["token_type_ids"][place, : len(ids)] = types
    return inputs


def _torch(settings: dict[str, Any]) -> Callable[[dict[str, Array]], Array]:
    import torch
    from transformers import AutoModelForSequenceClassification

    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    dtype = getattr(torch, settings["torch_dtype"])
    model = AutoModelForSequenceClassification.from_pretrained(settings["model"], dtype=dtype).eval()

    def logits(inputs: dict[str, Array]) -> Array:
        with torch.inference_mode():
            return (
                model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
                .logits.float()
                .numpy()
            )

    return logits


def _openvino(settings: dict[str, Any]) -> Callable[[dict[str, Array]], Array]:
    import openvino

    file = "int8.xml" if settings["dtype"] == "int8" else "fp32.xml"
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    if settings["threads"]:
        config["INFERENCE_NUM_THREADS"] = settings["threads"]
    if settings["dtype"] != "int8":
        config["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[settings["dtype"]]
    model = openvino.Core().compile_model(Path(settings["engines"]) / "openvino" / file, "CPU", config)
    names = {port.any_name for port in model.inputs}
    request = model.create_infer_request()

    def logits(inputs: dict[str, Array]) -> Array:
        given = {name: value for name, value in inputs.items() if name in names}
        return request.infer(given, share_inputs=True)[0]

    return logits


def _onnxruntime(settings: dict[str, Any]) -> Callable[[dict[str, Array]], Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if settings["threads"]:
        options.intra_op_num_threads = settings["threads"]
    file = Path(settings["engines"]) / "onnx" / f"{settings['dtype']}.onnx"
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = {port.name for port in session.get_inputs()}

    def logits(inputs: dict[str, Array]) -> Array:
        return session.run(None, {name: value for name, value in inputs.items() if name in names})[0]

    return logits


ENGINES = {"torch": _torch, "openvino": _openvino, "onnxruntime": _onnxruntime}
