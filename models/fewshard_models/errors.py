"""What can be wrong with a checkpoint, a data file or a recipe.

ModelsError
├── CheckpointError   a directory that is missing, incomplete, damaged or not allowed here
├── DataError         a data file that is missing or has a bad row
├── RecipeError       a recipe that is unknown, or resumed with other settings
├── BenchError        a benchmark that cannot be run here
├── ExchangeError     shards of a group that cannot meet, or one that died or hung while rows travelled
├── NoRoomError       experts that do not fit into the memory a shard has left
└── PlacementError    experts that do not fit the shards, or a placement that is unsound or another model's
"""


class ModelsError(Exception):
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
