"""One step of a group: how items are divided among shards, and how each shard's part is sent. Used by
`leader`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fewshard_core.values import TokenIds
from fewshard_models.sharding.shard import ShardOutput
from fewshard_models.text import PackedTokens
from fewshard_serve.group.epoch import Epoch
from fewshard_serve.group.transport import Frame


@dataclass(frozen=True, slots=True)
class Part:
    """What one shard computes in a step.

    num_rows: the most tokens that any shard has in this step.
    lengths: tokens of each item.
    tokens: int32 [T], the token ids of the items end to end; with segments [2 T], ids then types.
    """

    step: int
    generation: int
    num_rows: int
    lengths: tuple[int, ...]
    tokens: NDArray[np.int32]

    @classmethod
    def of(cls, step: int, generation: int, num_rows: int, items: Sequence[TokenIds]) -> "Part":
        flat = [token for item in items for token in item.ids]
        flat += [kind for item in items for kind in item.types or ()]
        return cls(
            step, generation, num_rows, tuple(len(item.ids) for item in items), np.array(flat, np.int32)
        )

    def to_frame(self) -> Frame:
        fields = {"step": self.step, "generation": self.generation, "num_rows": self.num_rows}
        return Frame("step", {**fields, "lengths": self.lengths}, self.tokens.tobytes())

    @classmethod
    def from_frame(cls, frame: Frame) -> "Part":
        fields = frame.fields
        tokens = np.frombuffer(frame.body, np.int32)
        return cls(fields["step"], fields["generation"], fields["num_rows"], tuple(fields["lengths"]), tokens)

    def packed(self, device: torch.device) -> PackedTokens:
        tokens = torch.from_numpy(self.tokens.astype(np.int64)).to(device)
        length = sum(self.lengths)
        has_types = len(tokens) > length
        return PackedTokens(tokens[:length], self.lengths, tokens[length:] if has_types else None)


@dataclass(frozen=True, slots=True)
class PartResult:
    """What one shard computed in a step. All but `computed` concern the shard's own tokens.

    logits: fp32 [num_items, num_labels].
    tokens: int64 [num_layers, num_experts], tokens routed to each expert.
    probability: fp32 [num_layers, num_experts].
    entropy: fp32 [num_layers].
    computed: int64 [num_layers], the choices its experts computed for all shards.
    seconds: duration of the pass.
    """

    logits: NDArray[np.float32]
    tokens: NDArray[np.int64]
    probability: NDArray[np.float32]
    entropy: NDArray[np.float32]
    computed: NDArray[np.int64]
    seconds: float

    @classmethod
    def of(cls, out: ShardOutput, seconds: float) -> "PartResult":
        stats = out.moe_stats
        return cls(
            out.logits.cpu().numpy(),
            torch.stack([layer.expert_rows for layer in stats]).cpu().numpy(),
            torch.stack([layer.expert_probability for layer in stats]).cpu().numpy(),
            torch.stack([layer.entropy for layer in stats]).cpu().numpy(),
            out.num_computed.numpy(),
            seconds,
        )

    def to_frame(self, step: int) -> Frame:
        shapes = {"items": self.logits.shape, "experts": self.tokens.shape}
        arrays = (self.tokens, self.computed, self.logits, self.probability, self.entropy)
        body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        return Frame("result", {"step": step, "seconds": self.seconds, **shapes}, body)

    @classmethod
    def from_frame(cls, frame: Frame) -> "PartResult":
        (num_items, num_labels), (layers, experts) = frame.fields["items"], frame.fields["experts"]
        num_wide = layers * experts + layers
        wide = np.frombuffer(frame.body, np.int64, num_wide)
        narrow = np.frombuffer(frame.body, np.float32, offset=8 * num_wide)
        logits, probability, entropy = np.split(
            narrow, [num_items * num_labels, num_items * num_labels + layers * experts]
        )
        return cls(
            logits.reshape(num_items, num_labels),
            wide[: layers * experts].reshape(layers, experts),
            probability.reshape(layers, experts),
            entropy,
            wide[layers * experts :],
            frame.fields["seconds"],
        )


def deal(lengths: Sequence[int], num_shards: int) -> list[list[int]]:
    """Return the indices of the items for each of `num_shards` shards.

    The longest item is assigned first, each to the shard with the fewest tokens so far. Each shard's items
    are ordered from short to long, so that items of equal length share an attention call.
    """
    hands: list[list[int]] = [[] for _ in range(num_shards)]
    loads = [0] * num_shards
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        least = loads.index(min(loads))
        hands[least].append(item)
        loads[least] += lengths[item]
    return [hand[::-1] for hand in hands]


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The result of a step.

    logits: fp32 [num_items, num_labels], in the order of the items.
    tokens, probability, entropy: summed over shards, shaped as in `PartResult`.
    computed: int64 [num_layers, num_shards].
    is_degraded: some experts were missing.
    overhead_s: duration of the step beyond the slowest shard's pass.
    """

    logits: NDArray[np.float32]
    tokens: NDArray[np.int64]
    probability: NDArray[np.float32]
    entropy: NDArray[np.float32]
    computed: NDArray[np.int64]
    is_degraded: bool
    overhead_s: float = 0.0


def joined(
    epoch: Epoch, num_shards: int, hands: Sequence[Sequence[int]], results: Sequence[PartResult]
) -> StepOutput:
    """Combine the results of the shards. `hands` and `results` are in the order of ranks."""
    order = [index for hand in hands for index in hand]
    logits = np.empty((len(order), results[0].logits.shape[1]), np.float32)
    logits[order] = np.concatenate([result.logits for result in results])
    tokens = np.sum([result.tokens for result in results], axis=0)
    computed = np.zeros((tokens.shape[0], num_shards), np.int64)
    for shard, result in zip(epoch.live, results, strict=True):
        computed[:, shard] = result.computed
    return StepOutput(
        logits,
        tokens,
        probability=np.sum([result.probability for result in results], axis=0),
        entropy=np.sum([result.entropy for result in results], axis=0),
        computed=computed,
        is_degraded=not epoch.is_complete,
    )
