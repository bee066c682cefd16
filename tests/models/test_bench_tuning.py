"""Tuning for a benchmark's grid: which layers, and where the measured tiles go. No GPU is needed here."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fewshard_kernels.moe_ffn import tiles
from fewshard_models.bench import session
from fewshard_models.bench.grid import Point, Shape

GRID = [Point(Shape(384, 1536), "bf16", 8), Point(Shape(384, 1536), "bf16", 2048)]


def test_a_layer_is_tuned_once_for_each_bucket() -> None:
    gated = Point(Shape(64, 32, gated=True), "bf16", 16, num_experts=4, top_k=2)
    found = session.layers([*GRID, replace(GRID[0], routing="zipf"), gated], (9, 0))
    assert [(shape.hidden, shape.gated, sorted(buckets)) for shape, buckets in found.items()] == [
        (384, False, [1, 256]),
        (64, True, [8]),
    ]


def test_measured_tiles_are_used_and_written_as_they_are_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = pytest.importorskip("fewshard_kernels.moe_ffn.triton.tune", reason="triton is not installed")
    measured = tiles.Tiles(32, tiles.GemmTile(64, 32, 1, 4, 2), tiles.GemmTile(32, 32, 1, 4, 2))

    def fake(shape: tiles.LayerShape, buckets: list[int], _device: torch.device) -> list[dict[str, Any]]:
        return [{**tiles.to_row(shape, bucket, measured), "milliseconds": 0.5} for bucket in buckets]

    monkeypatch.setattr(tune, "tune", fake)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    try:
        path = session.tune(GRID, "cuda", tmp_path, lambda _line: None)
        (shape,) = session.layers(GRID, (9, 0))
        assert tiles.choose_tiles(shape, 256) == measured
        rows = dict(tiles.from_row(row) for row in json.loads(path.read_text())["rows"])
        assert rows[shape, 1] == rows[shape, 256] == measured
    finally:
        tiles.use_tiles({})
