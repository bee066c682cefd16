"""What can be wrong with a checkpoint, a data file or a recipe; `fewshard_core.errors` draws the tree."""

from fewshard_core.errors import FewshardError


class ModelsError(FewshardError):
    """The base of this package's errors; the message says what is wrong and what to do."""


class CheckpointError(ModelsError):
    pass


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
