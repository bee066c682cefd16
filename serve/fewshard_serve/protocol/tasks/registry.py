"""Finds tasks by name, model or media type; `TASKS` is the only instance."""

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from fewshard_core.values import ModelInfo
from fewshard_serve.errors import ConfigError, UnsupportedMedia
from fewshard_serve.protocol.tasks.base import Task


class TaskRegistry:
    """Tasks by name, in the order of registration."""

    def __init__(self, *tasks: Task) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._listeners: list[Callable[[], None]] = []

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def register(self, task: Task) -> None:
        """Add a task. Raises ValueError if the name is taken."""
        if task.name in self._tasks:
            raise ValueError(f"there is a task {task.name!r} already")
        self._tasks[task.name] = task
        self._notify()

    def unregister(self, name: str) -> None:
        """Remove a task."""
        del self._tasks[name]
        self._notify()

    def follow(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever a task is registered or unregistered."""
        self._listeners.append(changed)

    def get(self, name: str) -> Task:
        """The task of this name. Raises `ConfigError`, which lists the known tasks."""
        found = self._tasks.get(name)
        if found is None:
            raise ConfigError(f"there is no task {name!r}; there are: {', '.join(self._tasks)}")
        return found

    def of(self, info: ModelInfo) -> Task:
        """The task of a model."""
        return self.get(info.task)

    def of_media_type(self, media_type: str) -> Task | None:
        """The task whose items are bodies of this media type; None if there is none."""
        found = (task for task in self if task.media_range and fnmatchcase(media_type, task.media_range))
        return next(found, None)

    def of_file(self, body: bytes) -> Task | None:
        """The task whose items are files that begin like this body; None if there is none."""
        return next((task for task in self if task.signatures and body.startswith(task.signatures)), None)

    def check_takes_texts(self, info: ModelInfo, advice: str) -> None:
        """Raise `UnsupportedMedia`, with this advice, if the model does not classify texts."""
        task = self.of(info)
        if not task.takes_texts:
            raise UnsupportedMedia(f"{info.name} classifies {task.plural}; {advice}")

    def _notify(self) -> None:
        for changed in self._listeners:
            changed()
