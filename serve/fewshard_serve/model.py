"""What the server asks of a model; the engine and the HTTP layer know no more of it than this."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from fewshard_core.values import ExpertCounts, Input, Item, ModelInfo, ModelOutput
from fewshard_serve.core import Diagnosis, GroupState
from fewshard_serve.errors import NotFound


class Preprocessor(Protocol):
    """Makes items of inputs. It can be pickled, since a model may run in another process."""

    def estimate(self, inputs: Sequence[Input]) -> int: ...

    def items(self, inputs: Sequence[Input], truncate: bool) -> list[Item]: ...


class Model(ABC):
    """One loaded classifier. `prepare` runs on a thread pool, `run` on the threads of the runner: one, if its
    depth is 1."""

    info: ModelInfo
    preparing: Preprocessor
    gpu_uuid = ""
    """Of the one GPU that runs it; "" where there is none, or several."""

    def estimate_tokens(self, inputs: Sequence[Input]) -> int:
        """An upper estimate of the tokens these inputs will cost, without tokenising; cheap."""
        return self.preparing.estimate(inputs)

    def prepare(self, inputs: Sequence[Input], truncate: bool = True) -> list[Item]:
        """Tokenise or decode. Raises `UnusableItem` naming the first input that cannot be used."""
        return self.preparing.items(inputs, truncate)

    @abstractmethod
    def run(self, items: Sequence[Item]) -> ModelOutput:
        """One forward pass over the items, in their order."""

    def expert_counts(self) -> ExpertCounts | None:
        """Routing counts since the model was loaded; None where there are no experts."""
        return None

    def diagnose(self, share: float) -> None:
        """Look more closely at this share of the items from now on, where the model can be looked into."""
        return

    def diagnosis(self) -> Diagnosis | None:
        """What was found so; None where nothing was looked at."""
        return None

    def problem(self) -> str:
        """Why it cannot answer at present; "" where it can. Asked often, from any thread."""
        return ""

    def group(self) -> GroupState | None:
        """The shards that hold it together; None where it is whole."""
        return None

    def place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Plan another placement of its experts, or apply one; may take a minute. Raises `NotFound` where
        the model is not sharded, `MalformedRequest` for what cannot be placed."""
        raise NotFound(f"{self.info.name} is not sharded; give it experts.shards in the configuration")

    def close(self) -> None:
        """Give back what outlives the object: processes, connections."""
        return

    def self_check(self) -> None:
        """Run the checkpoint's golden inputs; raises `NotReady` where an answer is off."""
        return
