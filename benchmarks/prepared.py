"""What `prepare_for_inference` brings: the small tier's shapes with random weights, plain and prepared.

On a CPU, in the dtype that serves here; every round draws a new batch of texts, as a server meets them (of
SST-2's dev set where FEWSHARD_DATA is set, else of the load test's), and runs all networks in random order.
Prints medians in milliseconds. `python benchmarks/prepared.py`; it wants a quiet machine.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from fewshard_models.bench.measurement import Budget, Call, clock_for, interleaved
from fewshard_models.checkpoint import ZOO
from fewshard_models.counting import count_macs
from fewshard_models.data.sst2 import load_sst2
from fewshard_models.devices import choose_dtype, storage_dtype
from fewshard_models.image import FewshardImageForImageClassification
from fewshard_models.recipes.cifar10 import dense_config
from fewshard_models.recipes.tiers import SMALL
from fewshard_models.sparsify.channels import macs_of, widths_of, with_widths
from fewshard_models.sparsify.prune import narrow_widths
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification, pack
from fewshard_models.text.feed_forward import MoeFeedForward
from fewshard_models.text.inference import tokenize

BATCHES = (64, 8, 1)
SHARES = (1.0, 0.5, 0.4)
TEXTS: dict[str, dict[str, Any]] = {
    "6 layers of 1,536 units": {"num_hidden_layers": 6, "intermediate_size": 1536},
    "3 layers of 1,280": {"num_hidden_layers": 3, "intermediate_size": 1280},
    "3 layers, 4 experts of 768 in the middle": {
        "num_hidden_layers": 3,
        "intermediate_size": 1536,
        "num_experts": 4,
        "moe_intermediate_size": 768,
        "moe_layers": [1],
        "routing": "request",
    },
}
Network = FewshardTextForSequenceClassification | FewshardImageForImageClassification


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="of each batch size (30)")
    options = parser.parse_args()
    dtype = choose_dtype().name
    print(f"{dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    for networks, calls_of in ((texts(dtype), text_calls), (images(dtype), image_calls)):
        print(table(networks, calls_of, options.rounds, dtype))
    return 0


def texts(dtype: str) -> dict[str, list[Network]]:
    """Return each shape with plain and with packed linear layers. Experts are packed in both."""
    made: dict[str, list[Network]] = {}
    for name, shape in TEXTS.items():
        made[name] = []
        for is_prepared in (False, True):
            torch.manual_seed(0)
            config = FewshardTextConfig(hidden_size=384, num_attention_heads=12, pooling="mean", **shape)
            network = cast(FewshardTextForSequenceClassification(config).eval(), dtype)
            for module in network.modules():
                if isinstance(module, MoeFeedForward):
                    module.prepare_for_inference()
            if is_prepared:
                network.prepare_for_inference()
            made[name].append(network)
    return made


def images(dtype: str) -> dict[str, list[Network]]:
    """Return the dense CNN, and narrower ones with a share of its MACs."""
    config = dense_config(SMALL)
    full = widths_of(config)
    made: dict[str, list[Network]] = {}
    for share in SHARES:
        widths = narrow_widths(full, lambda w: macs_of(config, w), share * macs_of(config, full), 16)
        shape = config if share == 1.0 else with_widths(config, widths, None)
        name = f"CNN, {count_macs(shape) / count_macs(config):.2f} of the MACs"
        made[name] = []
        for is_prepared in (False, True):
            torch.manual_seed(0)
            network = cast(FewshardImageForImageClassification(shape).eval(), dtype)
            network = network.to(memory_format=torch.channels_last)
            if is_prepared:
                network.prepare_for_inference()
            made[name].append(network)
    return made


def cast(network: Network, dtype: str) -> Network:
    """Cast as on loading a checkpoint: heads and routers stay fp32."""
    kept = set(network._keep_in_fp32_modules_strict or ())
    for name, parameter in [*network.named_parameters(), *network.named_buffers()]:
        if not kept & set(name.split(".")) and parameter.is_floating_point():
            parameter.data = parameter.data.to(storage_dtype(dtype))
    return network


def text_calls(networks: Mapping[str, Network], batch: int, dtype: str) -> dict[str, Call]:
    """Return the calls. All networks get the same batch in a round."""
    ids = tokenize(AutoTokenizer.from_pretrained(ZOO / "sst2-dense"), sentences())

    def call(network: Network) -> Call:
        def run(number: int) -> object:
            rows = np.random.default_rng(number // len(networks)).choice(len(ids), batch)
            packed = pack(sorted((ids[row] for row in rows), key=len), None, torch.device("cpu"))
            assert isinstance(network, FewshardTextForSequenceClassification)
            with torch.inference_mode():
                return network.forward_packed(packed)

        return run

    return {name: call(network) for name, network in networks.items()}


def image_calls(networks: Mapping[str, Network], batch: int, dtype: str) -> dict[str, Call]:
    """Return the calls, each on exactly `batch` images."""
    pixels = torch.randn(batch, 3, 32, 32, dtype=storage_dtype(dtype)).to(memory_format=torch.channels_last)

    def call(network: Network) -> Call:
        def run(_: int) -> object:
            with torch.inference_mode():
                return network(pixels)

        return run

    return {name: call(network) for name, network in networks.items()}


def sentences() -> list[str]:
    """Return SST-2's dev set, or the load test's sentences."""
    if "FEWSHARD_DATA" in os.environ:
        return list(load_sst2("dev")[0])
    own = Path(__file__).parents[1] / "loadtest" / "fewshard_loadtest" / "sentences.txt"
    return [line for line in own.read_text(encoding="utf-8").splitlines() if line.strip()]


def table(
    networks: Mapping[str, Sequence[Network]],
    calls_of: Callable[..., dict[str, Call]],
    rounds: int,
    dtype: str,
) -> str:
    """Return a row for each shape: plain / prepared at each batch size."""
    every = {f"{name}|{form}": one for name, forms in networks.items() for form, one in enumerate(forms)}
    cells: dict[str, list[str]] = {name: [] for name in networks}
    for batch in BATCHES:
        calls = calls_of(every, batch, dtype)
        seconds = interleaved(calls, clock_for("cpu"), Budget(0.0, rounds, rounds, warmups=3))
        for name in networks:
            plain, prepared = (1e3 * median(seconds[f"{name}|{form}"]) for form in (0, 1))
            cells[name].append(f"{plain:.2f} / {prepared:.2f} ({plain / prepared:.2f}x)")
    head = "| network | " + " | ".join(f"{batch}: plain / prepared, ms" for batch in BATCHES) + " |"
    rows = [f"| {name} | {' | '.join(found)} |" for name, found in cells.items()]
    return "\n".join([head, "| --- |" + " --- |" * len(BATCHES), *rows, ""])


if __name__ == "__main__":
    sys.exit(main())
