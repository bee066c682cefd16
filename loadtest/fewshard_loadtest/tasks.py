"""How items of each task are encoded in requests. Used by `protocols`. Does not import Locust."""

import base64
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fewshard_loadtest.errors import ScenarioError


class Task(ABC):
    """One kind of item.

    tensor, datatype: name and datatype of its V2 input tensor.
    """

    tensor: ClassVar[str]
    datatype: ClassVar[str]

    @abstractmethod
    def json_item(self, item: Any) -> Any:
        """An item in the form that `/classify` accepts."""

    @abstractmethod
    def shape(self, items: Sequence[Any]) -> list[int]:
        """The shape of the V2 tensor that holds the items."""

    @abstractmethod
    def values(self, items: Sequence[Any]) -> list[Any]:
        """The elements of that tensor for JSON, flattened."""

    @abstractmethod
    def raw(self, items: Sequence[Any]) -> bytes:
        """The bytes of that tensor in V2's binary format."""


class TextTask(Task):
    """Task whose items are strings."""

    tensor, datatype = "text", "BYTES"

    def json_item(self, item: str) -> str:
        return item

    def shape(self, items: Sequence[str]) -> list[int]:
        return [len(items)]

    def values(self, items: Sequence[str]) -> list[str]:
        return [*items]

    def raw(self, items: Sequence[str]) -> bytes:
        """Each text, preceded by its length as a little-endian uint32."""
        texts = [item.encode() for item in items]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


class ImageTask(Task):
    """Task whose items are uint8 pixels [height, width, 3], all of one size."""

    tensor, datatype = "image", "UINT8"

    def json_item(self, item: Any) -> str:
        """A PNG file as base64."""
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(item).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    def shape(self, items: Sequence[Any]) -> list[int]:
        return [len(items), *items[0].shape]

    def values(self, items: Sequence[Any]) -> list[int]:
        values: list[int] = np.stack(items).reshape(-1).tolist()
        return values

    def raw(self, items: Sequence[Any]) -> bytes:
        return b"".join(item.tobytes() for item in items)


TASKS: dict[str, Task] = {"text": TextTask(), "image": ImageTask()}


def task_named(name: str) -> Task:
    """The task with this name. Raises `ScenarioError` that lists the known tasks."""
    found = TASKS.get(name)
    if found is None:
        raise ScenarioError(f"nothing can be sent to a model of task {name!r}; there are: {', '.join(TASKS)}")
    return found
