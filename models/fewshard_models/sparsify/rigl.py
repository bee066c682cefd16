"""RigL: sparse training with moving masks, optionally with channels that die.

`Rigl` is an update hook of `recipes/training_loop.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewshard_models.errors import RecipeError
from fewshard_models.sparsify.allocation import (
    check_share,
    choose_widths,
    erdos_renyi_kernel,
    multiples,
    share_out,
    uniform,
)
from fewshard_models.sparsify.channels import (
    Alive,
    groups_of,
    macs_of,
    require_cnn,
    room,
    squared_salience,
    widths_of,
)
from fewshard_models.sparsify.masks import Masks, prunable, top_mask

MAX_DEATHS = 1 / 8
"""Maximum share of a group's living channels that may die in one update."""


@dataclass(frozen=True, slots=True)
class RiglSettings:
    """Settings of RigL.

    density: share of the prunable weights that is kept, constant over all steps.
    distribution: how the weights are distributed over the layers.
    update_every, update_until: steps between updates, and the share of training in which they happen.
    drop_fraction: share of each layer's weights that moves in the first update; cosine-annealed to zero.
    macs_share: for our CNN: share of the dense MACs at which channels stop dying; None for no deaths.
    cut_from, cut_until: share of training at which deaths begin and end.
    round_to: number of channels that die at a time.
    """

    density: float
    distribution: Literal["erk", "uniform"] = "erk"
    update_every: int = 100
    update_until: float = 0.75
    drop_fraction: float = 0.3
    macs_share: float | None = None
    cut_from: float = 0.05
    cut_until: float = 0.5
    round_to: int = 16
    seed: int = 0


class Rigl:
    """Rigging the Lottery (Evci et al. 2020, arXiv:1911.11134), algorithm 1.

    An update drops the weights of smallest magnitude and grows, from zero, those of largest gradient. Dropped
    weights lose their momentum; grown ones start without. Exactly `density` of all weights is kept.

    With dying channels (neuron ablation: Lasby et al. 2024, arXiv:2305.02299; Yin et al. 2023,
    arXiv:2305.19454), the channels of least salience per MAC die first and stay dead: convolution, norm
    weight and norm bias. Growth moves their weights to living channels. Only when the living channels are
    full does the number of weights fall below `density`.
    """

    def __init__(self, model: nn.Module, settings: RiglSettings, total_steps: int) -> None:
        check_share("density", settings.density)
        self.model, self.settings, self.total_steps = model, settings, total_steps
        self.weights = prunable(model)
        self.sizes = {name: weight.numel() for name, weight in self.weights.items()}
        self.promised = round(settings.density * sum(self.sizes.values()))
        self.num_moved = 0
        self.channels = None
        if settings.macs_share is not None:
            self.channels = DyingChannels(model, settings, total_steps)
        self.masks = self._random_masks()
        self.masks.apply(model)

    def before_update(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Between `backward` and the optimizer's step: move the masks when due, then mask the gradients."""
        if self.channels is not None:
            self.channels.observe()
        if self.is_due(step):
            self._move(step)
            for masks in self._all_masks():
                masks.apply(self.model)
                masks.apply_to_state(self.model, optimizer)
        for masks in self._all_masks():
            masks.apply_to_gradients(self.model)

    def is_due(self, step: int) -> bool:
        every, until = self.settings.update_every, self.settings.update_until
        return step > 0 and step % every == 0 and step < until * self.total_steps

    def finish(self, model: nn.Module) -> None:
        """Apply the masks to the trained model, since a moving average retains traces of dropped weights.

        Raises RecipeError if there were too few updates for the channels to reach their budget.
        """
        if self.channels is not None and not self.channels.within_budget():
            raise RecipeError("training ended before the channels reached their budget; update more often")
        for masks in self._all_masks():
            masks.apply(model)

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "masks": self.masks.state_dict(),
            "channels": None if self.channels is None else self.channels.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state. Raises RecipeError if it was made with other settings."""
        if state["settings"] != asdict(self.settings):
            raise RecipeError(f"RigL was begun with {state['settings']}; give another --run-dir")
        self.masks = Masks(state["masks"])
        if self.channels is not None:
            self.channels.load_state_dict(state["channels"])

    def _all_masks(self) -> list[Masks]:
        return [self.masks] if self.channels is None else [self.masks, self.channels.norm_masks]

    def _random_masks(self) -> Masks:
        allot = erdos_renyi_kernel if self.settings.distribution == "erk" else uniform
        densities = allot(
            {name: weight.shape for name, weight in self.weights.items()}, self.settings.density
        )
        wanted = {name: densities[name] * size for name, size in self.sizes.items()}
        counts = share_out(self.promised, self.sizes, wanted)
        generator = torch.Generator().manual_seed(self.settings.seed)
        return Masks(
            {
                name: top_mask(torch.rand(weight.shape, generator=generator), counts[name]).to(weight.device)
                for name, weight in self.weights.items()
            }
        )

    def _move(self, step: int) -> None:
        places = self._places(step)
        counts = self._counts(places)
        progress = step / (self.settings.update_until * self.total_steps)
        fraction = self.settings.drop_fraction / 2 * (1 + math.cos(math.pi * progress))
        moved = {}
        for name, weight in self.weights.items():
            assert weight.grad is not None
            moved[name] = moved_mask(
                weight.detach(), weight.grad, self.masks[name], places[name], counts[name], fraction
            )
        self.num_moved = sum(int((moved[name] & ~self.masks[name]).sum()) for name in moved)
        self.masks = Masks(moved)

    def _places(self, step: int) -> dict[str, Tensor]:
        """Where weights may be non-zero, after the channels that are due have died."""
        everywhere = {name: torch.ones_like(mask) for name, mask in self.masks.tensors.items()}
        if self.channels is None:
            return everywhere
        allowed = self.channels.let_die(step)
        return {name: allowed.get(name, place) for name, place in everywhere.items()}

    def _counts(self, places: dict[str, Tensor]) -> dict[str, int]:
        capacity = {name: int(place.sum()) for name, place in places.items()}
        if self.settings.distribution == "uniform":
            return share_out(self.promised, capacity, capacity)
        return share_out(
            self.promised, capacity, {name: _living_axes(place) for name, place in places.items()}
        )


class DyingChannels:
    """The living channels of the CNN, and the schedule of deaths."""

    def __init__(self, model: nn.Module, settings: RiglSettings, total_steps: int) -> None:
        assert settings.macs_share is not None
        check_share("macs_share", settings.macs_share)
        self.model, self.settings, self.total_steps = require_cnn(model), settings, total_steps
        self.config = self.model.config
        # The stem is a fixed whitening whose filters all matter.
        self.groups = [group for group in groups_of(self.config) if group.name != "stem"]
        self.widths = widths_of(self.config)
        device = self.model.device
        self.alive: Alive = {
            group.name: torch.ones(self.widths[group.name], dtype=torch.bool, device=device)
            for group in self.groups
        }
        self.salience = {name: torch.zeros(len(living), device=device) for name, living in self.alive.items()}
        self.norm_masks = self._norm_masks(room(self.model, self.groups, self.alive))

    def observe(self) -> None:
        for name, value in squared_salience(self.model, self.groups).items():
            self.salience[name] += value

    def budget(self, step: int) -> float:
        """Maximum MACs of living channels at this step: a cubic decay (Zhu & Gupta 2017), fast at first."""
        assert self.settings.macs_share is not None
        begin, end = self.settings.cut_from, self.settings.cut_until
        done = min(1.0, max(0.0, (step / self.total_steps - begin) / (end - begin)))
        share = self.settings.macs_share + (1 - self.settings.macs_share) * (1 - done) ** 3
        return share * macs_of(self.config, self.widths)

    def within_budget(self) -> bool:
        living = {name: int(mask.sum()) for name, mask in self.alive.items()}
        return macs_of(self.config, {**self.widths, **living}) <= self.budget(self.total_steps)

    def let_die(self, step: int) -> dict[str, Tensor]:
        """Kill the channels that are due; returns where weights may still be non-zero.

        A group loses at most an eighth of its living channels at once, or the smallest step. With more, too
        many of the filters that read them would have to start again from nothing.
        """
        salience = {name: self.salience[name][living].tolist() for name, living in self.alive.items()}
        candidates = {name: self._candidates(int(living.sum())) for name, living in self.alive.items()}

        def macs(widths: Mapping[str, int]) -> int:
            return macs_of(self.config, {**self.widths, **widths})

        lowest = macs({name: widths[0] for name, widths in candidates.items()})
        widths = choose_widths(salience, candidates, macs, max(lowest, self.budget(step)), relative=True)
        for name, living in self.alive.items():
            scores = torch.where(living, self.salience[name], -1.0)
            self.alive[name] = top_mask(scores, widths[name])
            self.salience[name].zero_()
        places = room(self.model, self.groups, self.alive)
        self.norm_masks = self._norm_masks(places)
        return places

    def _candidates(self, width: int) -> list[int]:
        """The widths a group of `width` living channels may have after one update, ascending."""
        least = min(width - self.settings.round_to, math.ceil(width * (1 - MAX_DEATHS)))
        return [each for each in multiples(width, self.settings.round_to) if each >= least]

    def state_dict(self) -> dict[str, Any]:
        return {"alive": self.alive, "salience": self.salience}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alive, self.salience = dict(state["alive"]), dict(state["salience"])
        self.norm_masks = self._norm_masks(room(self.model, self.groups, self.alive))

    def _norm_masks(self, places: dict[str, Tensor]) -> Masks:
        return Masks({name: place for name, place in places.items() if place.ndim == 1})


def moved_mask(
    weight: Tensor, gradient: Tensor, mask: Tensor, places: Tensor, count: int, fraction: float
) -> Tensor:
    """A mask of exactly `count` of the `places`.

    All present weights stay except the `fraction` of smallest magnitude; those of largest gradient join.
    """
    present = mask & places
    stay = min(count, round((1 - fraction) * int(present.sum())))
    kept = top_mask(weight.abs().masked_fill(~present, -1.0), stay)
    joining = gradient.abs().masked_fill(kept | ~places, -1.0)
    return kept | top_mask(joining, count - stay)


def _living_axes(place: Tensor) -> float:
    """ERK's weight of a layer, by living channels: out + in [+ kh + kw]."""
    return float(sum(int(place.transpose(0, axis).flatten(1).any(1).sum()) for axis in range(place.ndim)))
