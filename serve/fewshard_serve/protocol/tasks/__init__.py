"""The tasks (kinds of input) that models classify. All protocols look them up in `TASKS`.

To add a task, write a module with a subclass of `Task` and list it here.
"""

from fewshard_serve.protocol.tasks.base import InputTensor, Task
from fewshard_serve.protocol.tasks.image import ImageTask
from fewshard_serve.protocol.tasks.registry import TaskRegistry
from fewshard_serve.protocol.tasks.text import TextTask
from fewshard_serve.protocol.tasks.tokens import TokenTask

__all__ = ["TASKS", "ImageTask", "InputTensor", "Task", "TaskRegistry", "TextTask", "TokenTask"]

TASKS = TaskRegistry(TextTask(), ImageTask(), TokenTask())
"""The order is that of help texts, the OpenAPI document and the messages at the start."""
