"""The number formats a network may be served in; `dtype` of `fewshard.yaml` names one of them.

To add a format, add one entry: configuration, loading, the golden check, kernels and benchmarks read this
registry. torch is imported only to find out what a device supports.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How weights are held and multiplied.

    name: its name in configurations, cards and reports.
    storage, compute: the torch dtypes of the weights and of the products, by name.
    tolerance: the largest difference from an fp32 logit that the golden check accepts.
    kernel_tolerance: the largest difference of an op's result, relative to the largest value.
    multiplies: whether a device ("cpu" or "cuda") of this machine can multiply in this format.
    prepare: changes a network that was loaded in `storage`, in place; None if casting is enough.
    is_stored: whether only checkpoints that hold their weights in this format are served in it.
    """

    name: str
    storage: str
    compute: str
    tolerance: float
    kernel_tolerance: float
    multiplies: Callable[[str], bool]
    prepare: Callable[[Any], None] | None = None
    is_stored: bool = False

    @property
    def is_cast(self) -> bool:
        """Whether any checkpoint can be served in it, by casting its weights to `storage`."""
        return self.prepare is None and not self.is_stored


class FormatRegistry:
    """Number formats by name, in the order in which they are listed to users."""

    def __init__(self, *formats: NumberFormat) -> None:
        self._formats: dict[str, NumberFormat] = {}
        for each in formats:
            self.register(each)

    def register(self, number_format: NumberFormat) -> NumberFormat:
        """Add a format and return it. Raises ValueError if the name is taken or reserved."""
        if number_format.name in self._formats or number_format.name == AUTO:
            raise ValueError(f"there is a number format {number_format.name!r} already")
        self._formats[number_format.name] = number_format
        return number_format

    def remove(self, name: str) -> None:
        """Remove a format; for tests, and for extensions that unload."""
        del self._formats[name]

    def __getitem__(self, name: str) -> NumberFormat:
        """The format of this name. Raises ValueError, which lists the known names."""
        try:
            return self._formats[name]
        except KeyError:
            raise ValueError(
                f"there is no number format {name!r}; there are {', '.join(self.names)}"
            ) from None

    def __iter__(self) -> Iterator[NumberFormat]:
        return iter(self._formats.values())

    @property
    def names(self) -> tuple[str, ...]:
        """All names, as `dtype` accepts them."""
        return tuple(self._formats)

    def of_storage(self, dtype: object) -> NumberFormat:
        """The first format whose weights have this torch dtype. Raises ValueError if there is none."""
        word = str(dtype).removeprefix("torch.")
        for each in self._formats.values():
            if each.storage == word:
                return each
        raise ValueError(f"no number format holds its weights in {word}")


def _has_fp32(device: str) -> bool:
    return True


def _has_bf16(device: str) -> bool:
    import torch

    if device == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cuda.get_device_capability() >= (8, 0))


def _has_fp16(device: str) -> bool:
    import torch

    return device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def _has_int8(device: str) -> bool:
    import torch

    # Without VNNI, oneDNN adds pairs of products in 16 bits, which overflow and are cut.
    found = torch.cpu.get_capabilities() if torch.backends.mkldnn.is_available() else {}
    return device == "cpu" and bool(found.get("avx512_vnni") or found.get("avx_vnni"))


FORMATS = FormatRegistry(
    NumberFormat("fp32", "float32", "float32", 1e-4, 1e-5, _has_fp32),
    NumberFormat("bf16", "bfloat16", "bfloat16", 6e-2, 2e-2, _has_bf16),
    NumberFormat("fp16", "float16", "float16", 2e-2, 3e-3, _has_fp16),
    # Golden logits of an 8-bit checkpoint are its own: this allows for the rounding between its layers.
    NumberFormat("int8", "float32", "int8", 0.25, 2e-2, _has_int8, is_stored=True),
)
