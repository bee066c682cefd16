"""The choice of tiles: sound for any layer, and the shipped table readable."""

from itertools import product

import pytest
import torch

from fewshard_kernels.moe_ffn import tiles as module
from fewshard_kernels.moe_ffn.tiles import (
    MAX_BUCKET,
    GemmTile,
    LayerShape,
    Tiles,
    choose_tiles,
    from_row,
    heuristic_tiles,
    measured_tiles,
    rows_bucket,
    shared_bytes,
    shared_limit,
    to_row,
)

SHAPE = LayerShape((9, 0), torch.bfloat16, 768, 3072, 8, 1, False)
BUCKETS = [1 << power for power in range(MAX_BUCKET.bit_length())]


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (10, 0), (12, 0), (13, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tiles_fit_every_device_and_layer(capability: tuple[int, int], dtype: torch.dtype) -> None:
    sizes = [(1, 1), (20, 12), (100, 600), (384, 1536), (768, 3072), (4096, 14336)]
    for (hidden, width), experts, gated, bucket in product(sizes, (1, 8, 512), (False, True), BUCKETS):
        shape = LayerShape(capability, dtype, hidden, width, experts, 2, gated)
        tiles = heuristic_tiles(shape, bucket)
        for tile, products in ((tiles.first, 2 if gated else 1), (tiles.second, 1)):
            assert shared_bytes(shape, tiles.block_m, tile, products) <= shared_limit(capability)
            assert tile.num_stages >= 2
            for size in (tiles.block_m, tile.block_n, tile.block_k):
                assert size >= 16
                assert size & (size - 1) == 0


@pytest.mark.parametrize(("tokens", "bucket"), [(0, 1), (1, 1), (8, 1), (9, 2), (100, 16), (10**6, 1024)])
def test_bucket_is_rows_an_expert_as_a_power_of_two(tokens: int, bucket: int) -> None:
    assert rows_bucket(tokens, SHAPE) == bucket


def test_more_rows_get_taller_tiles() -> None:
    heights = [heuristic_tiles(SHAPE, bucket).block_m for bucket in BUCKETS]
    assert heights == sorted(heights)
    assert (heights[0], heights[-1]) == (16, 128)


def test_few_rows_still_give_every_multiprocessor_a_program() -> None:
    tiles = heuristic_tiles(SHAPE, 16)
    assert 8 * (3072 // tiles.first.block_n) >= 132
    assert 8 * (768 // tiles.second.block_n) >= 132


def test_measured_tiles_come_before_the_heuristic() -> None:
    measured = Tiles(32, GemmTile(64, 32, 1, 4, 2), GemmTile(32, 32, 1, 4, 2))
    key, tiles = from_row(to_row(SHAPE, 4, measured))
    assert (key, tiles) == ((SHAPE, 4), measured)
    module.use_tiles({key: tiles})
    try:
        assert choose_tiles(SHAPE, 4) == measured
        assert choose_tiles(SHAPE, 8) == heuristic_tiles(SHAPE, 8)
    finally:
        module.use_tiles({})
    assert choose_tiles(SHAPE, 4) == heuristic_tiles(SHAPE, 4)


def test_the_shipped_table_is_readable_and_fits() -> None:
    for (shape, bucket), tiles in measured_tiles().items():
        assert bucket in BUCKETS
        for tile, products in ((tiles.first, 2 if shape.gated else 1), (tiles.second, 1)):
            assert shared_bytes(shape, tiles.block_m, tile, products) <= shared_limit(shape.capability)


def test_candidates_for_tuning_fit_and_hold_the_heuristics_choice() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from fewshard_kernels.moe_ffn.triton.tune import candidates

    tiles = heuristic_tiles(SHAPE, 256)
    found = list(candidates(SHAPE, tiles.block_m, second=False))
    assert tiles.first in found
    assert len(found) == len(set(found))
    assert all(shared_bytes(SHAPE, tiles.block_m, tile, 1) <= shared_limit((9, 0)) for tile in found)
