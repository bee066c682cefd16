"""What `fewshard doctor --measure` times: whether a sparse path beats the dense one here, and why."""

from collections.abc import Iterator
from itertools import product

# One layer of a BERT-base-sized encoder, and a tenth of its blocks kept: where sparsity has its best chance.
SIZES = (768, 3072)
BLOCK_SHARE = 0.1
BATCHES = (1, 64, 1024)


def decisions() -> Iterator[tuple[str, str, str]]:
    """What was compared, what will run, and why; takes some seconds."""
    yield from sparse_linears()
    yield experts()


def sparse_linears() -> list[tuple[str, str, str]]:
    """The gate's decisions on a 2:4 and a block-sparse linear layer."""
    import torch

    from fewshard_kernels.gate import Gate
    from fewshard_kernels.sparse_linear import pack_sparse, sparse_linear
    from fewshard_models.devices import DTYPES, choose_device, choose_dtype

    device = choose_device().name
    dtype = DTYPES[choose_dtype(device=device).name]
    gate, generator = Gate(), torch.Generator().manual_seed(0)
    dense = torch.randn(SIZES, generator=generator)
    blocks = torch.rand(SIZES[0] // 32, SIZES[1] // 32, generator=generator) < BLOCK_SHARE
    kept = {
        "2:4": torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(SIZES[0], SIZES[1] // 4),
        "block": blocks.float().repeat_interleave(32, 0).repeat_interleave(32, 1),
    }
    packed = [pack_sparse((dense * mask).to(device, dtype), pattern) for pattern, mask in kept.items()]
    with torch.inference_mode():
        for weight, num_rows in product(packed, BATCHES):
            sparse_linear(torch.ones(num_rows, SIZES[1], device=device, dtype=dtype), weight, gate=gate)
    return gate.explain()


def experts() -> tuple[str, str, str]:
    """How eight experts of the usual size are multiplied on the CPU, by the timings of `pack_experts`."""
    import torch

    from fewshard_kernels import pack_experts
    from fewshard_models.devices import DTYPES, choose_dtype

    name = choose_dtype(device="cpu").name
    w1, w2 = (torch.randn(8, *shape).to(DTYPES[name]) for shape in ((1536, 384), (384, 1536)))
    packed = pack_experts(w1, None, w2, None)
    alone, together = packed.choice.alone, packed.choice.together
    reason = ", ".join(f"{1e6 * alone.at(rows):.0f} us alone at {rows} rows" for rows in (1, 32, 512))
    if together is not None:
        reason += "; " + ", ".join(f"{1e6 * together.at(rows):.0f} us of neighbours" for rows in (1, 32, 512))
    return f"moe_ffn 8 x 384x1536 {name} on cpu", packed.describe(), f"an expert takes {reason}"
