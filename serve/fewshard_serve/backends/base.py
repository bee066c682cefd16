"""What the engine asks of a model; the engine and the HTTP layer know no more of it than this."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from fewshard_serve.core import ExpertCounts, Input, Item, ModelInfo, ModelOutput


class Model(ABC):
    """One loaded classifier. `prepare` runs on a thread pool, `run` on the runner's thread alone."""

    info: ModelInfo

    @abstractmethod
    def estimate_tokens(self, inputs: Sequence[Input]) -> int:
        """An upper estimate of the tokens these inputs will cost, without tokenising; cheap."""

    @abstractmethod
    def prepare(self, inputs: Sequence[Input], truncate: bool = True) -> list[Item]:
        """Tokenise or decode. Raises `UnusableItem` naming the first input that cannot be used."""

    @abstractmethod
    def run(self, items: Sequence[Item]) -> ModelOutput:
        """One forward pass over the items, in their order."""

    def expert_counts(self) -> ExpertCounts | None:
        """Routing counts since the model was loaded; None where there are no experts."""
        return None

    def self_check(self) -> None:
        """Run the checkpoint's golden inputs; raises `NotReady` where an answer is off."""
        return
