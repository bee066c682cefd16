"""How much of its MACs a cut of the small tier's CNN can realise: random widths, each beside the dense CNN.

`python benchmarks/cut_shapes.py`, on a CPU in the dtype that serves, batches of 64 images, random weights;
prints the best and worst R. It wants a quiet machine.
"""

import argparse
import random
import sys
from statistics import median

import torch
from prepared import cast, image_calls

from fewshard_models.bench.measurement import Budget, clock_for, interleaved
from fewshard_models.devices import choose_dtype
from fewshard_models.image import FewshardImageConfig, FewshardImageForImageClassification
from fewshard_models.recipes.cifar10 import dense_config
from fewshard_models.recipes.tiers import SMALL
from fewshard_models.sparsify.channels import macs_of, widths_of, with_widths

BATCH = 64
STEP = 32
LEAST = {"stages.0": 32, "stages.1": 96, "stages.2": 128}
MACS = (0.3, 0.5)
ROUNDS = 15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", type=int, default=110, help="how many to try (110)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    config, rng = dense_config(SMALL), random.Random(options.seed)
    dtype = choose_dtype().name
    dense = network(config, dtype)
    found = []
    for _ in range(options.shapes):
        widths, share = draw(config, rng)
        calls = image_calls(
            {"dense": dense, "cut": network(with_widths(config, widths, None), dtype)}, BATCH, dtype
        )
        seconds = interleaved(calls, clock_for("cpu"), Budget(0.0, ROUNDS, ROUNDS, warmups=3))
        time_share = median(seconds["cut"]) / median(seconds["dense"])
        found.append((share / time_share, share, time_share, widths))
    found.sort(key=lambda one: -one[0])
    print(f"{dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    for title, some in (("best", found[:5]), ("median", found[len(found) // 2 :][:1]), ("worst", found[-1:])):
        for realised, share, time_share, widths in some:
            print(
                f"{title}: R {realised:.2f}, {share:.3f} of the MACs, {time_share:.3f} of the time, {widths}"
            )
    return 0


def draw(config: FewshardImageConfig, rng: random.Random) -> tuple[dict[str, int], float]:
    """Draw widths whose share of the dense network's MACs is within `MACS`. Return both."""
    full = widths_of(config)
    while True:
        widths = {name: rng.randrange(least(name), width + 1, STEP) for name, width in full.items()}
        widths["stem"] = full["stem"]
        share = macs_of(config, widths) / macs_of(config, full)
        if MACS[0] < share < MACS[1]:
            return widths, share


def least(group: str) -> int:
    """Return the fewest channels of a group of layers; the stem does not change."""
    return LEAST.get(group.removesuffix(".block"), 0)


def network(config: FewshardImageConfig, dtype: str) -> FewshardImageForImageClassification:
    """Return a network prepared as in a server."""
    torch.manual_seed(0)
    made = cast(FewshardImageForImageClassification(config).eval(), dtype)
    assert isinstance(made, FewshardImageForImageClassification)
    made.to(memory_format=torch.channels_last).prepare_for_inference()
    return made


if __name__ == "__main__":
    sys.exit(main())
