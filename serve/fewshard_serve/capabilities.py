"""What the server asks of some models beyond classifying; `fewshard_models.classifier.base` has the rest."""

from typing import Any, Protocol, runtime_checkable

from fewshard_serve.core import GroupState


@runtime_checkable
class Grouped(Protocol):
    """A model that several shards may hold together."""

    def group(self) -> GroupState | None:
        """The shards; None where the model is whole."""
        ...


@runtime_checkable
class Placeable(Protocol):
    """A model whose experts can be moved between shards."""

    def place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Plan another placement, or apply one; may take a minute. Raises `MalformedRequest`."""
        ...


@runtime_checkable
class OnOneGpu(Protocol):
    """A model that one GPU of this machine may run."""

    gpu_uuid: str
    """That GPU's; "" where there is none."""
