"""The expert shape and machine figures that the cost model and `fewshard plan` use."""

from dataclasses import dataclass, field
from typing import TypeVar

Number = TypeVar("Number", int, float)


def _number(default: Number, text: str) -> Number:
    """Return a field with its `--help` text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """An expert of `matrices` matrices, each hidden x intermediate, and a batch of `tokens` tokens on one
    GPU."""

    hidden: int = _number(1024, "width of the model")
    intermediate: int = _number(4096, "width of an expert")
    matrices: int = _number(2, "matrices of an expert; 3 where it is gated")
    bytes_per_weight: float = _number(2.0, "2 for bf16")
    top_k: int = _number(2, "experts a token goes to")
    tokens: int = _number(1024, "tokens of one batch on one GPU")

    @property
    def expert_bytes(self) -> float:
        return self.matrices * self.hidden * self.intermediate * self.bytes_per_weight

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.matrices * self.hidden * self.intermediate


@dataclass(frozen=True, slots=True)
class Machine:
    """Speeds and memory of one GPU and its links.

    The defaults are an H200's, from data sheets unless marked as an assumption. The data sheet gives 989
    TFLOP/s in bf16; experts are assumed to reach `compute_tflops`.
    """

    memory_gb_s: float = _number(4800.0, "memory bandwidth, 1e9 bytes/s (H200)")
    link_gb_s: float = _number(450.0, "between GPUs of a node, each way (NVLink 4)")
    network_gb_s: float = _number(50.0, "between nodes, each way, for each GPU (InfiniBand 400 Gb/s)")
    latency_us: float = _number(20.0, "one stage of a collective without bytes; an assumption")
    compute_tflops: float = _number(600.0, "reached in bf16; an assumption")
    memory_gb: float = _number(141.0, "memory of one GPU")
