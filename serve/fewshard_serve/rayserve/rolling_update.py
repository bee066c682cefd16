"""Applies a changed configuration while the server runs, without losing requests; called by `launch`.

Models are changed, added and taken away: by a file that is read again (SIGHUP), or one by one by requests.

A host that does not load its new models never takes over. One that loads them, but cannot answer with them,
is found in the minute after it has taken over, and replaced by its former version.
"""

import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from fewshard_serve.config import FewshardConfig
from fewshard_serve.errors import ConfigError, StartError
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.logs import write_line
from fewshard_serve.rayserve.deployment_plan import AppSpec, HostSpec
from fewshard_serve.rayserve.model_changes import ModelChange
from fewshard_serve.rayserve.plan_changes import (
    Apps,
    check_places,
    merged,
    names_of,
    reverted,
    with_model,
    without,
    without_model,
)
from fewshard_serve.rayserve.serve_deployer import ILL, NOT_THERE, Deployer, ServeDeployer, UpdateFailed
from fewshard_serve.rayserve.signals import StopRequest

POLL_S = 1.0
UPDATE_TIMEOUT_S = 900.0
TRIAL_S = 60.0
"""How long an update is watched after it has taken over."""
ILL_S = 10.0
"""A model that is not ready for so long is ill; shorter, and a replica of it may have been replaced."""
FIXED = ("server", "auth", "limits", "logging", "tracing", "cors", "callers")
"""Parts of the configuration that are read only at the start."""


class Show(Protocol):
    """Tells the gateway what runs from now on."""

    def __call__(self, apps: Sequence[AppSpec], unloaded: Collection[str]) -> None:
        """`unloaded`: models that a request has unloaded."""


def show_nobody(apps: Sequence[AppSpec], unloaded: Collection[str]) -> None:
    """The `Show` where there is no gateway."""


@dataclass
class Trial:
    """An application that has been updated, and is watched.

    before: the applications before the update.
    config: the configuration before it.
    until: when the trial ends, by the monotonic clock.
    ill_since: since when it has not been ready; None while it is.
    """

    before: Apps
    config: FewshardConfig
    until: float = field(default_factory=lambda: time.monotonic() + TRIAL_S)
    ill_since: float | None = None


class Updater:
    """Starts, replaces and ends the applications that a new configuration adds, changes or lacks.

    plan: makes hosts and cascades of a configuration.
    index: returns the state of every model; [] if it is not known. May raise `TimeoutError`.
    """

    def __init__(
        self,
        config: FewshardConfig,
        apps: Sequence[AppSpec],
        plan: Callable[[FewshardConfig], Sequence[AppSpec]],
        deployer: Deployer,
        is_stopping: Callable[[], bool] = lambda: False,
        index: Callable[[], Sequence[ModelEntry]] = tuple,
        show: Show = show_nobody,
    ) -> None:
        self._config, self._plan, self._deployer = config, plan, deployer
        self._apps: Apps = {app.app: app for app in apps}
        self._is_stopping = is_stopping
        self._index = index
        self._show = show
        self._unloaded: set[str] = set()
        self._trials: dict[str, Trial] = {}

    @property
    def is_watching(self) -> bool:
        """Whether an update is on trial."""
        return bool(self._trials)

    @property
    def apps(self) -> list[str]:
        """The names of the applications that should run."""
        return list(self._apps)

    def update(self, config: FewshardConfig) -> list[str]:
        """Apply a configuration, new replicas first. Return the names of the models that this concerns.

        Raises `ConfigError` for changes that need a restart. Raises `UpdateFailed` if a new replica does not
        start; what was before then runs on.
        """
        for part in FIXED:
            if getattr(config, part) != getattr(self._config, part):
                raise ConfigError(f"{part} cannot change while the server runs; restart it")
        return self._apply(config, None, ())

    def load(self, name: str, source: FewshardConfig) -> list[str]:
        """Load one model or cascade as `source` describes it, or again if it has changed.

        Other models stay as they are. Raises as `update` does.
        """
        return self._apply(with_model(self._config, name, source), {name}, self._unloaded - {name})

    def unload(self, name: str) -> list[str]:
        """Unload one model or cascade, and wait until it has answered what it had accepted.

        Raises as `update` does, and `ConfigError` if another one needs it.
        """
        return self._apply(without_model(self._config, name), set(), self._unloaded | {name})

    def look(self) -> None:
        """Take back the updates whose models cannot answer. Raises `UpdateFailed` for the first of them."""
        for app, trial in list(self._trials.items()):
            ailment, now = self._ailment(app), time.monotonic()
            trial.ill_since = (trial.ill_since or now) if ailment else None
            if trial.ill_since is None and now > trial.until:
                del self._trials[app]
            elif trial.ill_since is not None and now - trial.ill_since >= ILL_S:
                del self._trials[app]
                self._go_back(app, trial)
                end = "goes back to what it was" if app in trial.before else "is removed again"
                raise UpdateFailed(f"{app} cannot answer, and {end}: {ailment}")

    def _apply(
        self, config: FewshardConfig, only: Collection[str] | None, unloaded: Collection[str]
    ) -> list[str]:
        try:
            target = merged(self._apps, self._plan(config), only)
        except StartError as error:
            raise ConfigError(str(error)) from None
        check_places(self._apps, target)
        before, leaving = self._apps, names_of(self._apps.values()) - names_of(target.values())
        new = [app for app in target.values() if app is not before.get(app.app)]
        if leaving:  # what is about to go is no reason to call the server not ready
            self._show(without(before, leaving), {*self._unloaded, *unloaded})
        try:
            if new:
                self._deployer.deploy([_strict(app) for app in new])
            for app in new:
                self._await(app.app, "RUNNING")
        except UpdateFailed:
            self._restore(before, [app.app for app in new])
            raise
        former, self._config, self._apps, self._unloaded = self._config, config, target, set(unloaded)
        for app in new:
            earlier = self._trials.get(app.app, Trial(before, former))
            # An update of an update goes back to the last that is known to answer.
            self._trials[app.app] = Trial(earlier.before, earlier.config)
        self._show(list(target.values()), self._unloaded)
        self._end([name for name in before if name not in target])
        return [*dict.fromkeys(model.name for app in new for model in app.models), *sorted(leaving)]

    def _restore(self, apps: Apps, names: Collection[str]) -> None:
        """Have these applications again as they are in `apps`, and no others of these names."""
        with suppress(UpdateFailed):  # it happens as soon as Serve answers
            if there := [apps[name] for name in names if name in apps]:
                self._deployer.deploy(there)
            self._end([name for name in names if name not in apps])
        self._show(list(apps.values()), self._unloaded)

    def _end(self, names: Sequence[str]) -> None:
        for name in names:
            self._trials.pop(name, None)
        if names:
            self._deployer.remove(names)
        for name in names:
            self._await(name, NOT_THERE)

    def _go_back(self, app: str, trial: Trial) -> None:
        """Have one application as it was before its trial."""
        self._config = reverted(self._config, trial.config, names_of([self._apps[app]]))
        others = {name: each for name, each in self._apps.items() if name != app}
        self._apps = {**others, app: trial.before[app]} if app in trial.before else others
        self._restore(self._apps, [app])

    def _ailment(self, app: str) -> str:
        """Return why an application cannot answer; "" if it can, or if that is not known."""
        try:
            entries = self._index()
        except TimeoutError:
            entries = ()
        status, message = self._deployer.state(app)
        names = names_of([self._apps[app]])
        reasons = [entry for entry in entries if entry.name in names and entry.state == "UNAVAILABLE"]
        if reasons:
            return "; ".join(f"{entry.name}: {entry.reason}" for entry in reasons)
        return (message or status) if status in ILL else ""

    def _await(self, app: str, wanted: str) -> None:
        give_up_at = time.monotonic() + UPDATE_TIMEOUT_S
        while not self._is_stopping():
            status, message = self._deployer.state(app)
            if status == wanted:
                return
            if status == "DEPLOY_FAILED" or time.monotonic() > give_up_at:
                left = "stays as it is" if app in self._apps else "is not added"
                raise UpdateFailed(f"{app} cannot be updated, and {left}: {message or status}")
            time.sleep(POLL_S)


def _strict(app: AppSpec) -> AppSpec:
    return replace(app, must_load=True) if isinstance(app, HostSpec) else app


RELOAD_POLL_S = 0.5
LOOK_S = 10.0
TRIAL_LOOK_S = 2.0


class Changes(Protocol):
    """The changes of models that requests ask for."""

    def take(self) -> Sequence[ModelChange]:
        """Return those that have come since the last call."""

    def finish(self, change: ModelChange, why_not: str) -> None:
        """Answer who has asked. `why_not`: "" if the change is made."""


def serve_and_update(
    stop: StopRequest,
    updater: Updater,
    deployer: ServeDeployer,
    read_again: Callable[[], FewshardConfig],
    changes: Changes,
) -> None:
    """Until a stop is requested, apply new configurations and report unhealthy applications."""
    look_at = watch_at = time.monotonic() + LOOK_S
    while not stop.wait(RELOAD_POLL_S):
        if stop.take_reload():
            _say_how(lambda: _named("updated", updater.update(read_again())))
        for change in changes.take():
            changes.finish(change, _say_how(lambda change=change: _make(updater, change, read_again)))  # type: ignore[misc]
        now = time.monotonic()
        if updater.is_watching and now >= watch_at:
            _say_how(updater.look)
            watch_at = now + TRIAL_LOOK_S
        if now >= look_at:
            deployer.tell_what_ails(updater.apps)
            look_at = now + LOOK_S


def _make(updater: Updater, change: ModelChange, read_again: Callable[[], FewshardConfig]) -> str:
    if change.action == "unload":
        updater.unload(change.model)
        return f"unloaded {change.model}"
    return _named("loaded", updater.load(change.model, read_again()))


def _named(done: str, names: Sequence[str]) -> str:
    return f"{done} {', '.join(names)}" if names else "nothing has changed"


def _say_how(work: Callable[[], str | None]) -> str:
    """Print what was done, or why not. Return why not, or ""."""
    try:
        said, why_not = work(), ""
    except (ConfigError, UpdateFailed) as error:
        said, why_not = f"not updated: {error}", str(error)
    if said:
        write_line(f"fewshard: {said}", sys.stderr)
    return why_not
