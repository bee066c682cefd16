"""Errors of checkpoints, data files and recipes; `fewshard_core.errors` draws the tree."""

from fewshard_core.errors import FewshardError


class ModelsError(FewshardError):
    """Base class of this package's errors; the message says what is wrong and what to do."""


class CheckpointError(ModelsError):
    pass


class UnusableInput(ModelsError):
    """`index`: the input's place, from 0. `reason`: why it cannot be classified and what to do."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"item {index}: {reason}")
        self.index = index
        self.reason = reason


class NotFiniteError(ModelsError):
    """The network's numbers for one input are not finite; says where."""


class SettingError(ModelsError):
    """An environment variable has a value that means nothing."""


class DataError(ModelsError):
    pass


class RecipeError(ModelsError):
    pass


class BenchError(ModelsError):
    pass


class ExchangeError(ModelsError):
    pass


class NoRoomError(ModelsError):
    pass


class PlacementError(ModelsError):
    pass
