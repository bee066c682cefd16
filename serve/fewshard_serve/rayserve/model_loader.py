"""Loads the models of a host independently of each other. `Replica` calls it in a thread."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from fewshard_core.activation import THRESHOLD
from fewshard_core.urls import masked
from fewshard_core.values import ModelInfo
from fewshard_models.classifier.base import Classifier
from fewshard_serve.backends.child_process import Loading
from fewshard_serve.backends.process import ModelProcess
from fewshard_serve.cpu_threads import threads_to_measure
from fewshard_serve.errors import ServeError, StartError
from fewshard_serve.protocol.json_guard import nearest
from fewshard_serve.rayserve.deployment_plan import DEFAULT_LOADER, HostSpec, ModelSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """A model that cannot be served, and the reason."""

    name: str
    reason: str

    @property
    def info(self) -> ModelInfo:
        """A description that holds only the model's name."""
        return ModelInfo(
            name=self.name,
            task="text",
            kind="unavailable",
            labels=(),
            problem_type="single_label_classification",
            architecture="",
            dtype="",
            device="",
            max_tokens=0,
        )


def load_models(spec: HostSpec, process: ModelProcess | None) -> list[Classifier | LoadFailure]:
    """Load every model in order and check its golden inputs. A failure affects only its own model."""
    return [_load_one(partial(_load, spec, model, process), model) for model in spec.models]


def _load(host: HostSpec, spec: ModelSpec, process: ModelProcess | None) -> Classifier:
    if process is not None:
        threads = threads_to_measure(host.num_neighbours) if host.loader == DEFAULT_LOADER else ()
        loading = Loading(
            host.loader,
            spec.key,
            spec.path,
            spec.device,
            spec.dtype,
            spec.diagnostics_share,
            threads,
            spec.engine,
        )
        return process.load(loading)
    from fewshard_serve.rayserve.shard_actors import load_with_shards

    return load_with_shards(spec, host.num_gpus, host.is_on_one_machine)


def _load_one(load: Callable[[], Classifier], spec: ModelSpec) -> Classifier | LoadFailure:
    started_at = time.monotonic()
    try:
        model = load()
        model.info = with_thresholds(model.info, spec.thresholds)
    except ServeError as error:
        logger.error("%s: %s", spec.key, error)
        return LoadFailure(spec.key, str(error))
    except Exception as error:  # one bad checkpoint must not prevent the other models from loading
        logger.exception("%s cannot be loaded", spec.key)
        return LoadFailure(spec.key, masked(f"{type(error).__name__}: {error}"))
    logger.info("%s loaded in %.1f s: %s", spec.key, time.monotonic() - started_at, _execution(model.info))
    return model


def with_thresholds(info: ModelInfo, thresholds: Mapping[str, float]) -> ModelInfo:
    """Return the description with the thresholds by label. Labels without one have `THRESHOLD`.

    Raises `StartError` for a label that the model does not have, and for labels that exclude each other.
    """
    if not thresholds:
        return info
    if unknown := [label for label in thresholds if label not in info.labels]:
        raise StartError(
            f"thresholds names the label {unknown[0]!r}, which {info.name!r} does not have; "
            f"{nearest(unknown[0], info.labels)}"
        )
    if not info.has_independent_labels:
        raise StartError(
            f"thresholds are for labels that stand for themselves, and {info.name!r} is {info.problem_type} "
            f"with {len(info.labels)} labels; leave thresholds out"
        )
    return replace(info, thresholds=tuple(thresholds.get(label, THRESHOLD) for label in info.labels))


def _execution(info: ModelInfo) -> str:
    """Return how a model runs, and why: `bf16 (measured: …), 2 streams of 1 threads (measured: …)`."""
    how, told = info.execution, info.dtype
    if how.dtype_reason:
        told += f" ({how.dtype_reason})"
    if not how.num_threads:
        return told
    streams = f"{how.num_streams} streams of " if how.num_streams > 1 else ""
    return f"{told}, {streams}{how.num_threads} threads ({how.threads_reason})"
