"""Optional capabilities of models beyond classifying; `fewshard_models.classifier.base` has the interface."""

from typing import Any, Protocol, runtime_checkable

from fewshard_serve.core import GroupState


@runtime_checkable
class Grouped(Protocol):
    """A model that several shards may hold together."""

    def group(self) -> GroupState | None:
        """The state of the shards; None if the model is not sharded."""
        ...


@runtime_checkable
class Placeable(Protocol):
    """A model whose experts can be moved between shards."""

    def place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Plan or apply another placement. It may take a minute. Raises `MalformedRequest`."""
        ...


@runtime_checkable
class OnOneGpu(Protocol):
    """A model that one GPU of this machine may run."""

    gpu_uuid: str
    """The UUID of that GPU; "" if the model does not run on a GPU."""
