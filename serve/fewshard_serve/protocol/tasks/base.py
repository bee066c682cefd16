"""The interface of a task, which tells the protocols how to read one kind of input.

`text` and `image` implement it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin

from fewshard_core.values import Input, ModelInfo
from fewshard_serve.core import Classified
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol import label_tensors
from fewshard_serve.protocol.json_guard import MAX_VALUES
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.oip import RequestedOutput
from fewshard_serve.protocol.options import AnswerOptions
from fewshard_serve.protocol.ranking import ranked_scores
from fewshard_serve.protocol.tensors import Tensor

OTHER_VALUES = 1000
"""More values than a V2 request has besides its items."""


@dataclass(frozen=True, slots=True)
class InputTensor:
    """A V2 input tensor of a task.

    shape: -1 stands for any size.
    use: what the tensor is for.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    use: str


class Task(ABC):
    """One kind of input: its terms, and how each protocol turns a client's data into `Input`s.

    The methods raise `MalformedRequest` for data that the task does not accept, `TooLarge` above a limit, and
    `UnusableItem` for one bad item.
    """

    name: ClassVar[str]
    """The name in `ModelInfo.task` and in the checkpoint's card."""
    plural: ClassVar[str]
    """What its models classify, for use in a sentence: "images"."""
    architecture: ClassVar[str]
    """The part of a transformers class name that identifies its models: "ForImageClassification"."""

    json_types: ClassVar[tuple[Any, ...]]
    """The types of an item in the JSON of `/classify`. Pydantic validates them."""
    json_help: ClassVar[str]
    """How items are sent as JSON; part of the error message for an invalid `inputs`."""
    json_refusal: ClassVar[str]
    """The error message for a JSON item of another task."""
    values_per_item: ClassVar[int] = 8
    """JSON values per item. A body with far more is refused before it is parsed."""

    media_range: ClassVar[str] = ""
    """The Content-Types of a body that is one item: "image/*", "text/csv". Empty if bodies must be JSON."""
    signatures: ClassVar[tuple[bytes, ...]] = ()
    """The first bytes of such bodies, by which they are known if their Content-Type is missing or wrong."""
    file_help: ClassVar[str] = ""
    """How such a body is sent, for use in a sentence."""
    body_refusal: ClassVar[str]
    """The error message for a body of another task's media type; follows the model's name."""

    tensors: ClassVar[tuple[InputTensor, ...]]
    """The V2 input tensors. The metadata names the first, which every request may use."""

    takes_texts: ClassVar[bool] = False
    """Whether items are texts, so that text-only protocols and explanations by words are possible."""

    labels_items: ClassVar[bool] = True
    """Whether the answer to an item is a score for each label. Cascades and shadows compare such answers."""

    @abstractmethod
    def from_json(self, index: int, item: Any, limits: Limits) -> Input:
        """Convert item `index` of a classify request, which has one of `json_types`."""

    @abstractmethod
    def from_tensors(self, inputs: Mapping[str, Tensor], limits: Limits) -> list[Input]:
        """Convert the items of a V2 request. `inputs` is not empty and only has names from `tensors`."""

    def check_tensor(  # noqa: B027  most tasks need not check anything so early
        self, name: str, datatype: str, shape: tuple[int, ...], limits: Limits
    ) -> None:
        """Raise what `from_tensors` would, as far as it is known before the tensor's data is read.

        `name` is one of `tensors`. By default nothing is known.
        """

    def max_tensor_values(self, limits: Limits) -> int:
        """The most values in the JSON of a V2 request. A body with more is refused before it is parsed."""
        if all(tensor.datatype == "BYTES" for tensor in self.tensors):
            return min(MAX_VALUES, OTHER_VALUES + self.values_per_item * limits.max_items)
        return MAX_VALUES

    @abstractmethod
    def from_bytes(self, raw: bytes, limits: Limits) -> Input:
        """Convert a body that is one item: of the task's media range, or a V2 request without JSON."""

    @abstractmethod
    def sample_call(self, url: str) -> str:
        """An example shell command that sends an item to this URL of a `…/classify` endpoint."""

    def check_options(self, options: AnswerOptions) -> None:
        """Raise `MalformedRequest` for an option that means nothing to this task."""
        if options.aggregation is not None or options.ignore_labels is not None:
            raise MalformedRequest(
                f"aggregation and ignore_labels are for models that label tokens; this one classifies "
                f"{self.plural}"
            )

    def predictions(
        self, info: ModelInfo, answer: Classified, options: AnswerOptions
    ) -> list[list[dict[str, Any]]]:
        """What `/classify` says of each item: here its labels, the best first."""
        return ranked_scores(answer.logits, info, options.raw_scores, options.top_k)

    def output_tensors(self, info: ModelInfo) -> list[dict[str, Any]]:
        """Name, data type and shape of each V2 output."""
        return label_tensors.described(info)

    def check_output(self, output: RequestedOutput) -> None:
        """Raise `MalformedRequest` for an option of an output that means nothing to it."""
        label_tensors.check(output)

    def outputs(
        self,
        wanted: Sequence[RequestedOutput],
        info: ModelInfo,
        answer: Classified,
        options: AnswerOptions,
    ) -> list[Tensor]:
        """The V2 outputs that are wanted, all of them among `output_tensors`."""
        return [label_tensors.tensor(output, info, answer.logits) for output in wanted]

    def json_items(self, inputs: Any) -> list[Any]:
        """The items in the value of `inputs`, which is one item or a list of items."""
        return inputs if isinstance(inputs, list) else [inputs]

    def with_routing(self, inputs: Sequence[Input]) -> list[Input]:
        """The inputs with a request to return their routing, if the task's models support it."""
        return list(inputs)

    def from_table(self, cell: str, folder: Path) -> Any:
        """The Python client's input for a cell of a table. Paths in cells are relative to `folder`."""
        return cell

    @cached_property
    def tensor_names(self) -> tuple[str, ...]:
        """The names of `tensors`, each once."""
        return tuple(dict.fromkeys(tensor.name for tensor in self.tensors))

    def described_tensors(self) -> list[dict[str, Any]]:
        """`tensors` as JSON values."""
        return [{**asdict(tensor), "shape": list(tensor.shape)} for tensor in self.tensors]

    def takes_json(self, item: Any) -> bool:
        """Whether an item that pydantic has validated may belong to this task."""
        return isinstance(item, self._python_types)

    @cached_property
    def _python_types(self) -> tuple[type, ...]:
        return tuple(_python_type(kind) for kind in self.json_types)


def _python_type(kind: Any) -> type:
    """The type for `isinstance`: `list` for `Annotated[list[float], …]`."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    python_type: type = get_origin(bare) or bare
    return python_type
