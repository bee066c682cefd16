"""What the protocols have to know of one kind of input; `text` and `image` are such kinds."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin

from fewshard_core.values import Input
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tensors import Tensor


@dataclass(frozen=True, slots=True)
class InputTensor:
    """A V2 tensor that a task takes. A size of -1 may be any; `use` says what the tensor is for."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    use: str


class Task(ABC):
    """One kind of input: its words, and how each protocol makes `Input`s of what a client sent.

    The methods raise `MalformedRequest` for what the task does not take, `TooLarge` above a limit, and
    `UnusableItem` for one bad item.
    """

    name: ClassVar[str]
    """As `ModelInfo.task` and the checkpoint's card have it."""
    plural: ClassVar[str]
    """What its models classify, within a sentence: "images"."""
    architecture: ClassVar[str]
    """The part of a transformers class's name that tells its models: "ForImageClassification"."""

    json_types: ClassVar[tuple[Any, ...]]
    """The types that an item in the JSON of `/classify` may have; pydantic checks them."""
    json_help: ClassVar[str]
    """How items are sent as JSON: a part of the sentence that every unreadable `inputs` is answered with."""
    json_refusal: ClassVar[str]
    """The answer to an item that is JSON of another task."""
    values_per_item: ClassVar[int] = 8
    """Values that the JSON of one item may have: a body of far more is refused before it is parsed."""

    media_range: ClassVar[str] = ""
    """The Content-Types of a body that is one item: "image/*", "text/csv". Empty: bodies are JSON alone."""
    item_noun: ClassVar[str] = "an item"
    """One item that is sent as the body: "an image"."""
    file_help: ClassVar[str] = ""
    """How such a body is sent, within a sentence."""
    body_refusal: ClassVar[str]
    """The answer to a body of another task's media type, after the model's name."""

    tensors: ClassVar[tuple[InputTensor, ...]]
    """The V2 inputs. The first is the one that every request may use, and that the metadata names."""

    takes_texts: ClassVar[bool] = False
    """Whether clients that know texts alone can ask, and words can be left out to explain an answer."""

    @abstractmethod
    def from_json(self, index: int, item: Any, limits: Limits) -> Input:
        """Item `index` of a classify request; `item` has one of `json_types`."""

    @abstractmethod
    def from_tensors(self, inputs: Mapping[str, Tensor], limits: Limits) -> list[Input]:
        """The items of a V2 request. `inputs` is not empty and has names of `tensors` alone."""

    @abstractmethod
    def from_bytes(self, raw: bytes, limits: Limits) -> Input:
        """One item that is a whole body: of the task's media range, or a V2 request without JSON."""

    @abstractmethod
    def sample_call(self, url: str) -> str:
        """A shell command that classifies something at this `…/classify`."""

    def json_items(self, inputs: Any) -> list[Any]:
        """The items of the key `inputs`, which holds one item or a list of them."""
        return inputs if isinstance(inputs, list) else [inputs]

    def with_routing(self, inputs: Sequence[Input]) -> list[Input]:
        """The inputs with the wish to be told their routing, where the task's models can tell it."""
        return list(inputs)

    def from_table(self, cell: str, folder: Path) -> Any:
        """What the Python client sends for a cell of a table of items in `folder`."""
        return cell

    @cached_property
    def tensor_names(self) -> tuple[str, ...]:
        """The names of `tensors`, each once."""
        return tuple(dict.fromkeys(tensor.name for tensor in self.tensors))

    def described_tensors(self) -> list[dict[str, Any]]:
        """`tensors` as JSON has them."""
        return [{**asdict(tensor), "shape": list(tensor.shape)} for tensor in self.tensors]

    def takes_json(self, item: Any) -> bool:
        """Whether an item that pydantic has checked may be one of this task's."""
        return isinstance(item, self._python_types)

    @cached_property
    def _python_types(self) -> tuple[type, ...]:
        return tuple(_python_type(kind) for kind in self.json_types)


def _python_type(kind: Any) -> type:
    """What `isinstance` understands: `list` of `Annotated[list[float], …]`."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    python_type: type = get_origin(bare) or bare
    return python_type
