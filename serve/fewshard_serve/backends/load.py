"""Loads a checkpoint for a server. Called in the model process, and by tests."""

from collections.abc import Sequence

from fewshard_models.classifier.load import load
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.errors import ModelsError
from fewshard_serve.errors import NotReady


def load_model(
    name: str,
    path: str,
    device: str = "auto",
    dtype: str = "auto",
    threads: Sequence[int] = (),
    engine: str = "auto",
) -> NetworkClassifier:
    """Load the checkpoint at `path` (zoo:<name>, hf:<owner>/<name> or a directory) as model `name`.

    threads: numbers of threads to choose from by measurement; none leaves the number as it is.
    engine: as of `fewshard_models.load`.

    Raises NotReady with the fault of the checkpoint or device, and the remedy.
    """
    try:
        return load(path, device, dtype, name, threads, engine)
    except (ModelsError, ValueError) as error:
        raise NotReady(f"model {name!r} cannot be loaded: {error}") from error
