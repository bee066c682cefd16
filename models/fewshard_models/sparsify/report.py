"""What a sparsifier kept in each layer, as a table and as JSON beside the checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from fewshard_models.counting import count_macs
from fewshard_models.errors import CheckpointError

REPORT_FILE = "sparsity.json"


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer.

    units_before, units: output channels, or rows of a linear layer.
    weights_before, weights: number of weights.
    density: non-zero share of the remaining weights.
    """

    name: str
    units_before: int
    units: int
    weights_before: int
    weights: int
    density: float


@dataclass(frozen=True, slots=True)
class SparsityReport:
    """MACs, parameters and layers before and after; `asked` holds the sparsifier's settings."""

    method: str
    asked: Mapping[str, Any]
    macs_before: int
    macs: int
    parameters_before: int
    parameters: int
    layers: list[LayerReport] = field(default_factory=list)

    @property
    def macs_share(self) -> float:
        return self.macs / self.macs_before

    @property
    def density(self) -> float:
        """The share of the layers' original weights that remain and are non-zero."""
        kept = sum(layer.density * layer.weights for layer in self.layers)
        return kept / sum(layer.weights_before for layer in self.layers)

    def rows(self) -> list[list[str]]:
        """One row per layer and one for the total, with the columns of `HEADER`."""
        lines = [
            [
                layer.name,
                f"{layer.units} of {layer.units_before}",
                f"{layer.weights:,} of {layer.weights_before:,}",
                f"{layer.density:.3f}",
            ]
            for layer in self.layers
        ]
        parameters = f"{self.parameters:,} of {self.parameters_before:,}"
        total = f"MACs {self.macs:,} of {self.macs_before:,} ({self.macs_share:.3f})"
        return [*lines, ["in all", total, parameters, f"{self.density:.3f}"]]

    def save(self, directory: Path) -> None:
        text = json.dumps(asdict(self), indent=1) + "\n"
        (directory / REPORT_FILE).write_text(text, encoding="utf-8")


HEADER = ["layer", "units kept", "weights kept", "density"]


def compare(
    before: PreTrainedModel, after: PreTrainedModel, method: str, asked: Mapping[str, Any]
) -> SparsityReport:
    """What remains of `before` in `after`, layer by layer, for our own architectures."""
    old, new = _layers(before), _layers(after)
    layers = [_layer(name, old[name], new[name]) for name in old if name in new]
    return SparsityReport(
        method,
        dict(asked),
        count_macs(before.config),
        count_macs(after.config),
        sum(parameter.numel() for parameter in before.parameters()),
        sum(parameter.numel() for parameter in after.parameters()),
        layers,
    )


def load_report(directory: Path) -> SparsityReport | None:
    """The saved report, or None if there is none. Raises CheckpointError if it cannot be read."""
    file = directory / REPORT_FILE
    if not file.is_file():
        return None
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        return SparsityReport(**{**fields, "layers": [LayerReport(**layer) for layer in fields["layers"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); delete it or make it anew") from error


def _layers(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: cast(nn.Parameter, module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def _layer(name: str, old: Tensor, new: Tensor) -> LayerReport:
    density = int(new.count_nonzero()) / new.numel()
    return LayerReport(name, old.shape[0], new.shape[0], old.numel(), new.numel(), round(density, 5))
