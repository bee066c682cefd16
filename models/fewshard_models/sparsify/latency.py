"""Latency tables: measured time of each part of a model at candidate widths, and the predicted time of a
whole model of chosen widths (ZipLM: Frantar & Alistarh 2023, arXiv:2302.04089)."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from fewshard_models.image.modeling import ConvNorm
from fewshard_models.sparsify.allocation import multiples
from fewshard_models.sparsify.channels import Cnn, widths_of
from fewshard_models.text import FewshardTextForSequenceClassification, pack
from fewshard_models.text.attention import attention_layout
from fewshard_models.text.modeling import EncoderLayer

TEXT_TOKENS = 32


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Measured seconds of each part of a model.

    device, dtype: where and in which dtype they were measured.
    batch: items per call.
    rounds: number of interleaved rounds.
    parts: the groups whose widths each part has.
    seconds: `seconds[part][widths]`, medians over the rounds.
    """

    device: str
    dtype: str
    batch: int
    rounds: int
    parts: Mapping[str, tuple[str, ...]]
    seconds: Mapping[str, Mapping[tuple[int, ...], float]]

    def predict(self, widths: Mapping[str, int]) -> float:
        """Predicted seconds per batch for a model of these widths, each of which must have been measured."""
        return sum(
            self.seconds[part][tuple(widths[group] for group in groups)]
            for part, groups in self.parts.items()
        )


def measure_cnn(model: Cnn, dtype: torch.dtype, batch: int, round_to: int, rounds: int = 5) -> LatencyTable:
    """Time each convolution with its norm, pooling and GELU, as served, at every pair of candidate widths.

    Candidates are multiples of `round_to`. The stem and the head are left out: they hardly depend on widths.
    """
    config, full = model.config, widths_of(model.config)
    device = next(model.parameters()).device
    size = config.image_size - 1
    parts: dict[str, tuple[str, ...]] = {}
    calls: dict[tuple[str, tuple[int, ...]], Callable[[], object]] = {}
    before = "stem"
    for index in range(len(config.stage_channels)):
        stage, block = f"stages.{index}", f"stages.{index}.block"
        layers = [(f"{stage}.down", before, stage, size, True)]
        size //= 2
        layers += [(f"{block}.0", stage, block, size, False), (f"{block}.1", block, stage, size, False)]
        for part, reads, writes, extent, pool in layers:
            parts[part] = (reads, writes)
            for wide_in in _candidates(full, reads, round_to):
                for wide_out in _candidates(full, writes, round_to):
                    layer = ConvNorm(config, wide_in, wide_out, pool).eval().to(device, dtype)
                    pixels = torch.randn(batch, wide_in, extent, extent, device=device, dtype=dtype)
                    calls[part, (wide_in, wide_out)] = _call(layer, pixels)
        before = stage
    return _table(device, dtype, batch, rounds, parts, calls)


def measure_text(
    model: FewshardTextForSequenceClassification,
    dtype: torch.dtype,
    batch: int,
    round_to: int,
    rounds: int = 5,
) -> LatencyTable:
    """Time a layer's attention at each number of heads, and its feed-forward network at multiples of
    `round_to` units, for `batch` items of 32 tokens; times the number of layers."""
    from fewshard_models.sparsify.prune import text_config

    config, device = model.config, next(model.parameters()).device
    packed = pack([[1] * TEXT_TOKENS] * batch, None, device)
    layout = attention_layout(packed.lengths, device)
    hidden = torch.randn(batch * TEXT_TOKENS, config.hidden_size, device=device, dtype=dtype)
    calls: dict[tuple[str, tuple[int, ...]], Callable[[], object]] = {}
    for heads in multiples(config.num_attention_heads, 1):
        layer = (
            EncoderLayer(text_config(config, {"heads": heads, "units": round_to}), 0).to(device, dtype).eval()
        )
        calls["attention", (heads,)] = partial(layer.attention, hidden, layout)
    for units in multiples(config.intermediate_size, round_to):
        layer = EncoderLayer(text_config(config, {"heads": 1, "units": units}), 0).to(device, dtype).eval()
        calls["ffn", (units,)] = partial(layer.ffn, hidden, packed)
    parts = {"attention": ("heads",), "ffn": ("units",)}
    return _table(device, dtype, batch, rounds, parts, calls, times=config.num_hidden_layers)


def _candidates(full: Mapping[str, int], group: str, round_to: int) -> list[int]:
    return [full[group]] if group == "stem" else multiples(full[group], round_to)


def _call(layer: ConvNorm, pixels: Tensor) -> Callable[[], object]:
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layer.fuse()
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return lambda: layer(pixels)


def _table(
    device: torch.device,
    dtype: torch.dtype,
    batch: int,
    rounds: int,
    parts: Mapping[str, tuple[str, ...]],
    calls: Mapping[tuple[str, tuple[int, ...]], Callable[[], object]],
    times: int = 1,
) -> LatencyTable:
    taken: dict[tuple[str, tuple[int, ...]], list[float]] = {key: [] for key in calls}
    with torch.inference_mode():
        for call in tqdm(calls.values(), desc="warming up", unit="part"):
            call()
        for _ in tqdm(range(rounds), desc="measuring", unit="round"):
            for key, elapsed in _round(calls.items(), device):
                taken[key].append(elapsed)
    medians: dict[str, dict[tuple[int, ...], float]] = {part: {} for part in parts}
    for (part, widths), values in taken.items():
        medians[part][widths] = times * statistics.median(values)
    return LatencyTable(str(device), str(dtype).removeprefix("torch."), batch, rounds, dict(parts), medians)


def _round(
    calls: Iterable[tuple[tuple[str, tuple[int, ...]], Callable[[], object]]], device: torch.device
) -> Iterable[tuple[tuple[str, tuple[int, ...]], float]]:
    for key, call in calls:
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield key, time.perf_counter() - started
