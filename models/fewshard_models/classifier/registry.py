"""Maps the architecture in a config.json to the class that runs it.

A new architecture is one file with a class under `@register`, and its import in `classifier.load`.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from inspect import isabstract
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedConfig

from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.errors import CheckpointError

ClassT = TypeVar("ClassT", bound=type[NetworkClassifier])


class Registry:
    """Classes by architecture name. A name with `*` is a pattern, tried after all full names."""

    def __init__(self) -> None:
        self._classes: dict[str, type[NetworkClassifier]] = {}

    def register(self, *names: str) -> Callable[[ClassT], ClassT]:
        """Return a decorator for the class of these architectures.

        Raises ValueError for a duplicate, TypeError for a class that lacks a method.
        """

        def keep(kind: ClassT) -> ClassT:
            if isabstract(kind):
                raise TypeError(f"{kind.__name__} lacks {', '.join(sorted(kind.__abstractmethods__))}")
            for name in names:
                if name in self._classes:
                    raise ValueError(f"{name} is registered already, for {self._classes[name].__name__}")
                self._classes[name] = kind
            return kind

        return keep

    def find(
        self, names: Sequence[str], config: PreTrainedConfig, directory: Path
    ) -> type[NetworkClassifier]:
        """Return the class for a configuration whose architecture has these names.

        Raises CheckpointError with the registered names.
        """
        # Full names before patterns, and longer patterns before shorter ones.
        for known in sorted(self._classes, key=lambda known: ("*" in known, -len(known))):
            kind = self._classes[known]
            if any(fnmatchcase(name, known) for name in names) and kind.accepts(config):
                return kind
        raise CheckpointError(
            f"{directory} holds {' '.join(names) or 'no architecture'}; "
            f"Fewshard serves {', '.join(self.names)}"
        )

    @property
    def names(self) -> list[str]:
        """The registered names and patterns."""
        return list(self._classes)


CLASSIFIERS = Registry()
register = CLASSIFIERS.register
