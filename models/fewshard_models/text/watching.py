"""Which experts each token of a packed batch goes to, seen from outside; for callers who ask."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from fewshard_models.text.modeling import FewshardTextForSequenceClassification, MoeFeedForward
from fewshard_models.text.packing import PackedTokens
from fewshard_models.text.routing import choose_experts


@contextmanager
def watched_experts(network: FewshardTextForSequenceClassification) -> Iterator[list[Tensor]]:
    """While inside, each layer with experts that runs adds its choices: int64 [T, top_k], the best first.

    The choice is made a second time beside the layer's own, from the same numbers; so a network that is not
    watched pays nothing.
    """
    chosen: list[Tensor] = []

    def note(layer: MoeFeedForward, inputs: tuple[Tensor, PackedTokens]) -> None:
        hidden, packed = inputs
        hidden = hidden[: packed.num_tokens].to(layer.w1.dtype)
        chosen.append(choose_experts(hidden, packed, layer.router, layer.config)[0].experts)

    layers = [layer for layer in network.modules() if isinstance(layer, MoeFeedForward)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()
