"""Every kernel with every tile the heuristic ships, compiled ahead of time for GPUs that need not be here.

Each launch is recorded instead of run, and its kernel compiled from the recorded arguments. What a compiler
can tell is checked: shared memory in bounds, tensor cores used, 16-byte copies, registers not spilled. Each
(tile, product) in bf16 is compiled for sm_90, the hungriest for the others; the rest are slow tests.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fewshard_kernels.moe_ffn.options import ExpertWeights, LayerNormWeights, MoeOptions, Routing  # noqa: E402
from fewshard_kernels.moe_ffn.tiles import (  # noqa: E402
    MAX_BUCKET,
    GemmTile,
    LayerShape,
    Tiles,
    choose_tiles,
    shared_limit,
)
from fewshard_kernels.moe_ffn.triton import experts, route  # noqa: E402

BINARIES = Path(triton.__file__).parent / "backends/nvidia/bin"
TENSOR_CORES = ("wgmma.mma_async", "mma.sync", "tcgen05.mma")
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}
# Sixteen registers, which the widest tile lacks while it computes its activation: once, after the loop.
MAX_STACK_BYTES = 64
# hidden, width, gated
LAYERS = [(384, 1536, False), (768, 3072, False), (1024, 4096, False), (2048, 1408, True)]
BUCKETS = [1 << power for power in range(MAX_BUCKET.bit_length())]


class Product(NamedTuple):
    """One product of a layer, as representative of all that share its tile, dtype and kind."""

    shape: LayerShape
    tiles: Tiles
    second: bool

    @property
    def tile(self) -> GemmTile:
        return self.tiles.second if self.second else self.tiles.first

    @property
    def kind(self) -> tuple[Any, ...]:
        return (
            self.shape.dtype,
            self.tiles.block_m,
            self.tile,
            self.second,
            self.shape.gated and not self.second,
        )

    def __str__(self) -> str:
        name = "second" if self.second else "gated" if self.shape.gated else "first"
        tile, dtype = self.tile, str(self.shape.dtype).removeprefix("torch.")
        return (
            f"sm{self.shape.capability[0]}0-{dtype}-{name}-{self.tiles.block_m}x{tile.block_n}x{tile.block_k}"
        )


class Launch(NamedTuple):
    kernel: Any
    arguments: dict[str, Any]


def _products(capability: tuple[int, int], dtype: torch.dtype) -> list[Product]:
    found: dict[tuple[Any, ...], Product] = {}
    for (hidden, width, gated), num_experts, bucket in product(LAYERS, (8, 16, 64), BUCKETS):
        shape = LayerShape(capability, dtype, hidden, width, num_experts, 1, gated)
        for second in (False, True):
            candidate = Product(shape, choose_tiles(shape, bucket), second)
            found.setdefault(candidate.kind, candidate)
    return list(found.values())


def _hungriest(cases: list[Product]) -> set[Product]:
    """Of each kind of product, the one with the largest tile: memory and registers are short there."""
    largest: dict[tuple[bool, bool], Product] = {}
    for case in sorted(cases, key=lambda case: (case.tiles.block_m, case.tile.block_n)):
        largest[case.second, case.shape.gated and not case.second] = case
    return set(largest.values())


def _cases() -> Iterator[Any]:
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    for capability, dtype in product([(9, 0), (8, 0), (10, 0)], dtypes):
        cases = _products(capability, dtype)
        chosen = set(cases) if (capability, dtype) == ((9, 0), torch.bfloat16) else _hungriest(cases)
        if dtype == torch.float16:  # the same instructions as bf16, but for the type
            chosen = {case for case in chosen if capability == (9, 0) and case.second}
        if dtype == torch.float32 and capability != (9, 0):
            chosen = set()
        for case in cases:
            yield pytest.param(case, id=str(case), marks=() if case in chosen else pytest.mark.slow)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What is launched from now on; nothing is run."""
    recorded: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert 0 < grid[0] < 2**31
            return lambda **arguments: recorded.append(Launch(self.kernel, arguments))

    for module, name in [
        (route, "route_kernel"),
        (route, "group_kernel"),
        (experts, "expert_gemm_kernel"),
        (experts, "combine_kernel"),
    ]:
        monkeypatch.setattr(module, name, Recorder(getattr(module, name)))
    return recorded


def _compile(launch: Launch, capability: tuple[int, int]) -> Any:
    """Compile a launch as Triton would on that GPU, given pointers and sizes that are multiples of 16."""
    arguments = dict(launch.arguments)
    options = {name: arguments.pop(name) for name in ("num_warps", "num_stages") if name in arguments}
    signature, constants, aligned = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        value = arguments.pop(parameter.name)
        signature[parameter.name] = _type(parameter, value)
        if signature[parameter.name] == "constexpr":
            constants[(place,)] = value
        elif isinstance(value, Tensor) or (not parameter.do_not_specialize and value % 16 == 0):
            aligned[(place,)] = [["tt.divisibility", 16]]
    assert not arguments, "the launch names arguments that the kernel does not have"
    major, minor = capability
    if major >= 10 and not (BINARIES / "ptxas-blackwell").exists():
        pytest.skip(f"triton {triton.__version__} brings no ptxas that knows sm_{major}{minor}")
    source = ASTSource(launch.kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 10 * major + minor, 32), options=options)


def _type(parameter: Any, value: Any) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if parameter.is_constexpr or value is None or (value == 1 and not parameter.do_not_specialize):
        return "constexpr"
    return "fp32" if isinstance(value, float) else "i32"


def _stack_bytes(compiled: Any, folder: Path) -> int:
    """Bytes of stack per thread: what did not fit in registers."""
    file = folder / "kernel.cubin"
    file.write_bytes(compiled.asm["cubin"])
    command = [BINARIES / "cuobjdump", "--dump-resource-usage", file]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return max(int(size) for size in re.findall(r"STACK:(\d+)", usage))


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _routed(num_tokens: int, top_k: int, num_tiles: int) -> route.Routed:
    pairs = _meta(num_tokens, top_k, dtype=torch.int32)
    tiles = _meta(3, num_tiles, dtype=torch.int32)
    return route.Routed(_meta(num_tokens, top_k), pairs, pairs.flatten(), tiles, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", list(_cases()))
def test_products_compile(case: Product, launches: list[Launch], tmp_path: Path) -> None:
    shape, tiles, second = case
    rows = 2 * shape.width if shape.gated else shape.width
    weights = ExpertWeights(
        _meta(shape.num_experts, rows, shape.hidden, dtype=shape.dtype),
        _meta(shape.num_experts, rows, dtype=shape.dtype),
        _meta(shape.num_experts, shape.hidden, shape.width, dtype=shape.dtype),
        _meta(shape.num_experts, shape.hidden, dtype=shape.dtype),
    )
    x = _meta(1024, shape.hidden, dtype=shape.dtype)
    options = MoeOptions(activation="silu" if shape.gated else "gelu", gated=shape.gated)
    experts.multiply_rows(x, weights, _routed(1024, 1, 80), options, tiles)
    compiled = _compile(launches[second], shape.capability)
    assert compiled.metadata.shared <= shared_limit(shape.capability)
    ptx = compiled.asm["ptx"]
    if shape.dtype != torch.float32:  # fp32 is promised fp32, which no tensor core multiplies
        assert any(instruction in ptx for instruction in TENSOR_CORES)
    if shape.dtype != torch.float32 and tiles.block_m >= 64 and shape.capability == (9, 0):
        assert "wgmma.mma_async" in ptx
    copies = set(re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", ptx))
    assert copies == {"0x10"}, "rows and weights are copied 16 bytes at a time"
    assert _stack_bytes(compiled, tmp_path) <= MAX_STACK_BYTES


ROUTES = [(32, 8, 1), (1024, 8, 1), (4096, 64, 6), (65536, 16, 2), (65536, 256, 8)]


@pytest.mark.parametrize(
    ("capability", "tokens", "num_experts", "top_k", "dtype"),
    [((9, 0), *sizes, torch.bfloat16) for sizes in ROUTES]
    + [
        ((9, 0), 1024, 8, 1, torch.float32),
        ((8, 6), 1024, 256, 1, torch.bfloat16),
        ((10, 0), 1024, 8, 1, torch.bfloat16),
    ],
)
def test_routing_compiles(
    capability: tuple[int, int],
    tokens: int,
    num_experts: int,
    top_k: int,
    dtype: torch.dtype,
    launches: list[Launch],
    tmp_path: Path,
) -> None:
    x, router = _meta(tokens, 768, dtype=dtype), _meta(num_experts, 768)
    route.route_rows(x, router, num_experts, MoeOptions(top_k=top_k), 64)
    assert len(launches) == (1 if tokens <= route.SINGLE_BLOCK_TOKENS else 2)
    for launch in launches:
        compiled = _compile(launch, capability)
        assert compiled.metadata.shared <= shared_limit(capability)
        assert _stack_bytes(compiled, tmp_path) <= MAX_STACK_BYTES
        if launch is launches[0] and dtype != torch.float32:
            assert any(instruction in compiled.asm["ptx"] for instruction in TENSOR_CORES)


def test_given_routing_with_a_mask_compiles(launches: list[Launch]) -> None:
    given = Routing(_meta(1024, 2), _meta(1024, 2, dtype=torch.int64))
    mask = _meta(8, dtype=torch.bool)
    route.route_rows(_meta(1024, 768), given, 8, MoeOptions(top_k=2, expert_mask=mask), 64)
    for launch in launches:
        _compile(launch, (9, 0))


@pytest.mark.parametrize(("hidden", "partial"), [(384, False), (1024, True), (16384, False)])
def test_combine_compiles(hidden: int, partial: bool, launches: list[Launch]) -> None:
    residual = _meta(1024, hidden, dtype=torch.bfloat16)
    norm = LayerNormWeights(_meta(hidden), _meta(hidden), 1e-12)
    options = MoeOptions(top_k=2, residual=residual, norm=norm)
    experts.combine(_meta(2048, hidden, dtype=torch.bfloat16), _routed(1024, 2, 40), options, partial)
    _compile(launches[0], (9, 0))
