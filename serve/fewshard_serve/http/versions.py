"""Several versions of one model under one name: which of them answers a request.

`rayserve.replica` builds a `VersionedModel` for each model that lists versions. A `Version` shows one of
them under the common name.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fewshard_core.values import ModelInfo
from fewshard_serve.core import Caller, Classified, PredictionRequest
from fewshard_serve.http.request import Request
from fewshard_serve.http.service import HostContext, ServedModel, find_model, no_version
from fewshard_serve.protocol.stats import ModelStatistics, merge

SPLIT_HEADER = b"x-split-key"
AT = "@"
"""Between name and version in the key of a version: in metrics, in logs, and between processes."""


def key_of(name: str, version: str) -> str:
    """Return the key of a version; that of a model that lists none, whose `version` is empty, is its name."""
    return f"{name}{AT}{version}" if version else name


class CanaryHook(Protocol):
    """A canary, as the versions that take part in it see it."""

    async def classify(self, version: "Version", request: PredictionRequest) -> Classified:
        """Answer a request that falls to this version."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model, under the model's name.

    served: the version as it is loaded, under its key.
    canary: answers in its place while it takes part in one.
    """

    served: ServedModel
    name: str
    version: str
    canary: "CanaryHook | None" = None

    @property
    def info(self) -> ModelInfo:
        return replace(self.served.info, name=self.name, version=self.version)

    @property
    def ready(self) -> bool:
        return self.served.ready

    @property
    def not_ready_reason(self) -> str:
        return self.served.not_ready_reason

    @property
    def stats(self) -> ModelStatistics:
        return self.served.stats

    @property
    def room(self) -> None:
        """None: HAProxy, which does not know which version a request will reach, refuses nothing itself."""

    def check_room(self, caller: Caller) -> None:
        self.served.check_room(caller)

    async def classify(self, request: PredictionRequest) -> Classified:
        if self.canary is not None:
            return await self.canary.classify(replace(self, canary=None), request)
        return replace(await self.served.classify(request), version=self.version)

    def experts(self) -> dict[str, Any] | None:
        return self.served.experts()


class VersionedModel:
    """The versions of one model. Without a version in the request, the weights decide which one answers.

    weights: of versions, in their order; a version of weight 0 answers only who asks for it.
    """

    room = None

    def __init__(self, name: str, versions: Mapping[str, Version], weights: Mapping[str, float]) -> None:
        self.versions = versions
        self._name = name
        self._weights = {version: weight for version, weight in weights.items() if weight > 0}
        self._random = random.Random()
        self._canary: dict[str, Version] = {}
        self._old = self._new = ""

    @property
    def answering(self) -> list[str]:
        """The versions that answer requests without a version."""
        return list(self._weights)

    def begin_canary(self, canary: CanaryHook, old: str, new: str) -> None:
        """Have these two versions answer by way of `canary`, which calls `shift`."""
        self._old, self._new = old, new
        self._canary = {name: replace(self.versions[name], canary=canary) for name in (old, new)}

    def shift(self, weight: float) -> None:
        """Give the canary's new version this part of the requests, from 0 to 1, and its old one the rest."""
        weights = {self._old: 1 - weight, self._new: weight}
        self._weights = {version: weights[version] for version in self.versions if weights.get(version)}

    @property
    def main(self) -> Version:
        """The version that describes the model: the one with the largest weight."""
        return self.versions[max(self._weights, key=lambda version: self._weights[version])]

    @property
    def info(self) -> ModelInfo:
        return self.main.info

    @property
    def not_ready_reason(self) -> str:
        own = [self._old] if len(self._weights) > 1 and self._old else list(self._weights)
        reasons = {version: self.versions[version].not_ready_reason for version in own}
        return "; ".join(f"version {version}: {reason}" for version, reason in reasons.items() if reason)

    @property
    def ready(self) -> bool:
        return not self.not_ready_reason

    @property
    def stats(self) -> ModelStatistics:
        """The sum of the versions' statistics, as a new object."""
        return merge([version.stats for version in self.versions.values()])

    def version(self, version: str) -> Version:
        """Return one version. Raises `NotFound`, which lists those there are."""
        found = self.versions.get(version)
        if found is None:
            raise no_version(self._name, version, list(self.versions))
        return found

    def choose(self, split_key: str) -> Version:
        """Return the version that answers: always the same one for a key, any one where the key is empty."""
        point = _fraction(self._name, split_key) if split_key else self._random.random()
        name = choice(self._weights, point)
        if not self._canary:
            return self.versions[name]
        # A new version that is not ready keeps nobody from an answer.
        return self._canary[name if self.versions[name].ready else self._old]

    def check_room(self, caller: Caller) -> None:
        self.main.check_room(caller)

    async def classify(self, request: PredictionRequest) -> Classified:
        return await self.choose(request.split_key).classify(request)

    def experts(self) -> dict[str, Any] | None:
        return self.main.experts()


def choice(weights: Mapping[str, float], point: float) -> str:
    """Return the version at `point`, a number in [0, 1), where each has a part as large as its weight.

    If a later version's weight grows at the cost of an earlier one, whoever it answers it goes on to answer.
    """
    left = point * sum(weights.values())
    for version, weight in weights.items():
        left -= weight
        if left < 0:
            return version
    return list(weights)[-1]


def _fraction(name: str, key: str) -> float:
    """Return a number in [0, 1) that the key determines. Another model's is independent of it."""
    digest = hashlib.blake2b(f"{name}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def find_host_model(host: HostContext, request: Request) -> ServedModel:
    """The model in the request's path, or its version. Raises `UnknownModel`, or `NotFound`."""
    parameters = request.parameters
    model = find_model(host.service.models(), parameters["model"])
    request.model_name = name = model.info.name
    version = parameters.get("version")
    if version is None:
        return model
    if isinstance(model, VersionedModel):
        return model.version(version)
    if version != model.info.version:
        raise no_version(name, version, [model.info.version])
    return model


def answering(model: ServedModel, request: Request) -> ServedModel:
    """The version that answers a prediction, where the path names none."""
    if isinstance(model, VersionedModel):
        return model.choose(split_key(request))
    return model


def split_key(request: Request) -> str:
    """What keeps the requests of, say, one user together."""
    return request.header(SPLIT_HEADER) or ""


def service_key(host: HostContext, model: ServedModel) -> str:
    """The key by which `HostService` knows a model that was found; it is the main version's."""
    info = model.info
    key = key_of(info.name, info.version)
    return key if key in host.service.models() else info.name


def version_names(model: ServedModel) -> list[str]:
    return list(model.versions) if isinstance(model, VersionedModel) else [model.info.version]


def why_not_together(infos: Sequence[ModelInfo]) -> str:
    """Return why these versions cannot share requests; "" if they can."""
    first = infos[0]
    for other in infos[1:]:
        pair = f"the versions {first.version!r} and {other.version!r}"
        if other.labels != first.labels:
            return f"{pair} have different labels, or the same in another order; a split needs equal ones"
        if (other.task, other.problem_type) != (first.task, first.problem_type):
            return f"{pair} are of different kinds: {first.problem_type} and {other.problem_type}"
    return ""
