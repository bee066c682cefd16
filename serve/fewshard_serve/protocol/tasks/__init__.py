"""The kinds of input that models classify; every protocol asks `TASKS` what it has to know of one.

To add a task, write one module with a subclass of `Task` and list it here.
"""

from fewshard_serve.protocol.tasks.base import InputTensor, Task
from fewshard_serve.protocol.tasks.image import ImageTask
from fewshard_serve.protocol.tasks.registry import TaskRegistry
from fewshard_serve.protocol.tasks.text import TextTask

__all__ = ["TASKS", "ImageTask", "InputTensor", "Task", "TaskRegistry", "TextTask"]

TASKS = TaskRegistry(TextTask(), ImageTask())
"""In the order in which help texts, the OpenAPI document and the greeting mention them."""
