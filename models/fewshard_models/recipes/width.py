"""CNNs of other widths: scaled configurations, and pruning of channels by magnitude. Used by `figures`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewshard_models.counting import count_macs
from fewshard_models.errors import RecipeError
from fewshard_models.image import FewshardImageConfig
from fewshard_models.image import FewshardImageForImageClassification as Cnn

_MULTIPLE = 8


def widened(width: float, base: FewshardImageConfig | None = None) -> FewshardImageConfig:
    """The configuration with all stages scaled by `width`, in multiples of eight channels."""
    base = base or FewshardImageConfig()
    stages, blocks = _scaled(base.stage_channels, width), _scaled(base.block_channels, width)
    return FewshardImageConfig(**{**base.to_dict(), "stage_channels": stages, "block_channels": blocks})


def narrowed(model: Cnn, share: float) -> Cnn:
    """The CNN reduced to its largest filters, with at most `share` of its MACs; not retrained.

    All layers lose the same share of their channels (Li et al. 2017, arXiv:1608.08710). Raises RecipeError
    for a share outside (0, 1), or one that no width reaches.
    """
    if not 0 < share < 1:
        raise RecipeError(f"the share of the MACs to keep is {share}; give one between 0 and 1")
    limit = share * count_macs(model.config)
    for percent in range(99, 0, -1):
        config = widened(percent / 100, model.config)
        if count_macs(config) <= limit:
            return _copied(model, config)
    raise RecipeError(f"no width brings this CNN down to {share} of its MACs; keep more")


def _scaled(channels: Sequence[int], width: float) -> list[int]:
    return [max(_MULTIPLE, round(width * each / _MULTIPLE) * _MULTIPLE) for each in channels]


def _copied(model: Cnn, config: FewshardImageConfig) -> Cnn:
    """A CNN with `config` that holds the strongest channels of `model`."""
    state = dict(model.state_dict())
    taken: Tensor = torch.arange(config.stem_channels)
    for index, (width, inner) in enumerate(zip(config.stage_channels, config.block_channels, strict=True)):
        stage = f"stages.{index}"
        stream = _strongest(state, [f"{stage}.down", f"{stage}.block.1"], width)
        inside = _strongest(state, [f"{stage}.block.0"], inner)
        _take(state, f"{stage}.down", stream, taken)
        _take(state, f"{stage}.block.0", inside, stream)
        _take(state, f"{stage}.block.1", stream, inside)
        taken = stream
    state["classifier.weight"] = state["classifier.weight"][:, taken]
    smaller = Cnn(config)
    smaller.load_state_dict(state)
    smaller.eval()
    return smaller


def _strongest(state: dict[str, Tensor], modules: list[str], count: int) -> Tensor:
    """The `count` channels with the largest filters, summed over the modules that write them, in order."""
    norms = sum((state[f"{module}.conv.weight"].flatten(1).norm(dim=1) for module in modules), torch.zeros(1))
    return norms.topk(count).indices.sort().values


def _take(state: dict[str, Tensor], module: str, outputs: Tensor, inputs: Tensor) -> None:
    state[f"{module}.conv.weight"] = state[f"{module}.conv.weight"][outputs][:, inputs]
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"{module}.norm.{name}"] = state[f"{module}.norm.{name}"][outputs]
