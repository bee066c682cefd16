"""Finds tasks by what a request or a model says of them; `TASKS` is the one registry."""

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from fewshard_core.values import ModelInfo
from fewshard_serve.errors import ConfigError, UnsupportedMedia
from fewshard_serve.protocol.tasks.base import Task


class TaskRegistry:
    """Tasks by name, in the order in which they came."""

    def __init__(self, *tasks: Task) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._followers: list[Callable[[], None]] = []

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def register(self, task: Task) -> None:
        """Raises ValueError where another task has the name."""
        if task.name in self._tasks:
            raise ValueError(f"there is a task {task.name!r} already")
        self._tasks[task.name] = task
        self._tell()

    def unregister(self, name: str) -> None:
        """The opposite of `register`."""
        del self._tasks[name]
        self._tell()

    def follow(self, changed: Callable[[], None]) -> None:
        """Calls `changed` whenever a task comes or goes."""
        self._followers.append(changed)

    def get(self, name: str) -> Task:
        """Raises `ConfigError`, which lists the tasks there are."""
        found = self._tasks.get(name)
        if found is None:
            raise ConfigError(f"there is no task {name!r}; there are: {', '.join(self._tasks)}")
        return found

    def of(self, info: ModelInfo) -> Task:
        """The task of a model."""
        return self.get(info.task)

    def of_media_type(self, media_type: str) -> Task | None:
        """The task of which a body of this media type is one item; None of any other type."""
        found = (task for task in self if task.media_range and fnmatchcase(media_type, task.media_range))
        return next(found, None)

    def check_takes_texts(self, info: ModelInfo, advice: str) -> None:
        """Raises `UnsupportedMedia`, with this advice, where the model classifies something but texts."""
        task = self.of(info)
        if not task.takes_texts:
            raise UnsupportedMedia(f"{info.name} classifies {task.plural}; {advice}")

    def _tell(self) -> None:
        for changed in self._followers:
            changed()
