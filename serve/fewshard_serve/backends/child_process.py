"""The process that holds a host's models. It executes the calls of `process.ModelProcess` in the replica.

`ModelProcess` starts it and calls `main` with one end of a socket pair. It ends when the other end is closed.
"""

import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, cast

from fewshard_core.formats import AUTO
from fewshard_core.values import Diagnosis, ExpertCounts, ModelInfo
from fewshard_models.classifier.base import (
    ChecksItself,
    Classifier,
    CountsExperts,
    Preprocessor,
    Probeable,
    Probed,
)
from fewshard_models.classifier.overlap import SharedLock
from fewshard_models.errors import ModelsError
from fewshard_serve.backends.packing import Packed, pack_counts, pack_output, unpack_items
from fewshard_serve.capabilities import Grouped
from fewshard_serve.core import GroupState
from fewshard_serve.errors import DeadlineExceeded, InternalError, NotReady
from fewshard_serve.memory import give_back_freed

logger = logging.getLogger(__name__)

LATE = "the deadline passed while another batch ran; send fewer items or allow more time"
OWN_LOADER = "fewshard_serve.backends.load:load_model"
"""Loads checkpoints. Other loaders are of tests and of users, and import what they like."""


@dataclass(frozen=True, slots=True)
class Loading:
    """How to load a model.

    loader: `module:function`, called with name, path, device and dtype, and with `threads` and `engine` if
        they are given.
    diagnostics_share: the share of items to diagnose, for `Probeable.diagnose`.
    threads: numbers of threads that the loader chooses from.
    engine: what computes the network; "auto" lets the loader choose.
    """

    loader: str
    name: str
    path: str
    device: str
    dtype: str
    diagnostics_share: float = 0.0
    threads: tuple[int, ...] = ()
    engine: str = AUTO

    @property
    def choices(self) -> dict[str, Any]:
        """The loader's further arguments."""
        given: dict[str, Any] = {"threads": self.threads} if self.threads else {}
        return given if self.engine == AUTO else {**given, "engine": self.engine}


@dataclass(frozen=True, slots=True)
class Seen:
    """Counters and diagnoses of a model up to now."""

    expert_counts: ExpertCounts | None
    diagnosis: Diagnosis | None
    group: GroupState | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the replica needs to know of a model in this process."""

    info: ModelInfo
    preprocessor: Preprocessor
    seen: Seen
    gpu_uuid: str


class Passed(NamedTuple):
    """The result of a forward pass, as it is sent.

    output: of `pack_output`.
    counts: of `pack_counts`, after the pass.
    diagnosis, group: those of `Seen`; None if they have not changed since they were sent.
    experts: for each item, the experts of its tokens; None unless requested.
    """

    output: Packed
    counts: Packed | None
    diagnosis: Diagnosis | None
    group: GroupState | None
    experts: list[Any] | None


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a forward pass before it is sent."""

    watched: "_Watched"
    output: Packed
    experts: list[Any] | None


@dataclass(frozen=True, slots=True)
class Failed:
    error: Exception


def find_loader(path: str) -> Callable[..., Classifier]:
    """Return the function named `module:function`, with all that it imports."""
    if path == OWN_LOADER:
        from fewshard_models.lazy_compiler import import_networks

        import_networks()
    module, _, name = path.partition(":")
    return cast(Callable[..., Classifier], getattr(import_module(module), name))


class Child:
    """The models by name. Each public method is a call that the replica may make.

    Passes may overlap, up to a model's number of streams; every other call is alone.
    Settings of torch are applied only once a loader has imported it, because importing torch takes seconds.

    num_streams: the most that a model has; as many threads may call.
    """

    def __init__(self) -> None:
        self.num_streams = 1
        self._models: dict[str, _Watched] = {}
        self._torch_settings: ExitStack | None = None
        self._calls = SharedLock()
        self._own = threading.local()
        """The number of threads that the calling thread has set."""

    def load(self, loading: Loading) -> Loaded:
        """Load a model and check its golden inputs."""
        with self._calls.exclusive():
            return self._load(loading)

    def _load(self, loading: Loading) -> Loaded:
        load = find_loader(loading.loader)
        self._flush_subnormals()  # before torch starts threads, which inherit the setting
        model = load(loading.name, loading.path, loading.device, loading.dtype, **loading.choices)
        self._flush_subnormals()
        self._own.num_threads = 0  # the loader may have changed it
        self._use_threads(model.info.execution.num_threads)
        _check(model)
        if isinstance(model, Probeable):
            model.diagnose(loading.diagnostics_share)
        watched = self._models[loading.name] = _Watched(model)
        self.num_streams = max(self.num_streams, model.info.execution.num_streams)
        if "torch" in sys.modules:
            from fewshard_models.allocator import keep_freed_memory

            keep_freed_memory()
        return Loaded(model.info, model.preprocessor, watched.seen(), _gpu_uuid(model.info))

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function that is named `module:function`, where torch is set up as for a server's models."""
        with self._calls.exclusive():
            found: Callable[..., Any] = find_loader(function)
            return found(*arguments)

    def run(self, name: str, packed: Packed, give_up_at: float = float("inf")) -> Ran:
        """Run the items of `pack_items`, unless the pass before them lasted longer than anybody waits."""
        watched, items = self._models[name], unpack_items(packed)
        with self._calls.shared(), watched.streams:
            if time.monotonic() >= give_up_at:
                raise DeadlineExceeded(LATE)
            self._use_threads(watched.model.info.execution.num_threads)
            output = watched.model.run(items)
        wants = any(item.routing for item in items)
        experts = [item.routing and item.routing.experts for item in items] if wants else None
        return Ran(watched, pack_output(output), experts)

    def _use_threads(self, number: int) -> None:
        """Compute with so many threads from now on; 0 leaves them as they are. A change takes about 1 us."""
        if number and number != getattr(self._own, "num_threads", 0):
            import torch

            torch.set_num_threads(number)
            self._own.num_threads = number

    def _flush_subnormals(self) -> None:
        if "torch" in sys.modules and self._torch_settings is None:
            from fewshard_models.devices import subnormals_flushed

            self._torch_settings = ExitStack()  # for the life of the process
            self._torch_settings.enter_context(subnormals_flushed())


def _check(model: Classifier) -> None:
    if not isinstance(model, ChecksItself):
        return
    try:
        model.self_check()
    except ModelsError as error:
        raise NotReady(str(error)) from error


class _Watched:
    """A model with what can be seen of it. Its passes hold `streams`.

    Its capabilities are looked up once: checking an object against three protocols takes 20 to 40 us, and
    every forward pass asks.
    """

    def __init__(self, model: Classifier) -> None:
        self.model = model
        self.streams = threading.Semaphore(model.info.execution.num_streams)
        self._expert_counts = model.expert_counts if isinstance(model, CountsExperts) else None
        self._diagnosis = model.diagnosis if isinstance(model, Probed) else None
        self._group = model.group if isinstance(model, Grouped) else None
        self._sent: Seen | None = None

    def seen(self) -> Seen:
        return Seen(
            self._expert_counts() if self._expert_counts else None,
            self._diagnosis() if self._diagnosis else None,
            self._group() if self._group else None,
        )

    def news(self) -> tuple[Packed | None, Diagnosis | None, GroupState | None]:
        """Return the counts, and what else has changed since the last call."""
        seen, before = self.seen(), self._sent
        self._sent = seen
        if before is None:
            return pack_counts(seen.expert_counts), seen.diagnosis, seen.group
        has_looked = seen.diagnosis and (
            before.diagnosis is None or seen.diagnosis.num_items != before.diagnosis.num_items
        )
        return (
            pack_counts(seen.expert_counts),
            seen.diagnosis if has_looked else None,
            seen.group if seen.group != before.group else None,
        )


def _gpu_uuid(info: ModelInfo) -> str:
    """Return the UUID of the model's GPU; "" if it uses none."""
    if info.device == "cpu":
        return ""
    import torch

    return str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else ""


def answer(child: Child, asked: tuple[str, tuple[Any, ...]]) -> Any:
    """Return the method's result, or `Failed`. Never raises."""
    name, arguments = asked
    try:
        return getattr(child, name)(*arguments)
    except Exception as error:  # noqa: BLE001  a model may raise anything, and the process must survive it
        # Tracebacks are not pickled, but notes are, and logging prints them with the error.
        error.add_note(f"In the process of the models:\n{traceback.format_exc()}")
        return Failed(_picklable(error))


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  not every error survives pickling
        return InternalError(f"{type(error).__name__}: {error}")
    return error


def end_with_stdin() -> None:
    """Exit when whoever started this process closes stdin, even if a pass never ends."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    # A terminal sends Ctrl-C to every process. This one must end with the replica, not before.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hide_scipy()
    threading.Thread(target=end_with_stdin, daemon=True).start()
    answer_all(Connection(int(sys.argv[1])), Child())


def hide_scipy() -> None:
    """Make scipy look absent in this process, before transformers is imported.

    Where scipy is installed (the load test's report uses it), transformers loads it for the losses of object
    detection: 0.6 s and 37 MB in each process. No classifier needs it.
    """
    sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]


def send(connection: Connection, value: Any) -> None:
    """Send a value. `Connection.send` builds a pickler of its own class for each one, which takes longer."""
    connection.send_bytes(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))


def receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())


def answer_all(connection: Connection, child: Child) -> None:
    """Answer the calls that arrive, each with its number, until the connection closes.

    A thread for each stream receives a call, answers it and takes the next one.
    """
    give_back_freed()
    receiving, sending = threading.Lock(), threading.Lock()
    threads = [threading.current_thread()]

    def work() -> None:
        while True:
            try:
                with receiving:
                    number, asked = receive(connection)
                answered = answer(child, asked)
                with sending:
                    if isinstance(answered, Ran):  # counted here, so that counts are sent as they grow
                        answered = Passed(answered.output, *answered.watched.news(), answered.experts)
                    send(connection, (number, answered))
            except (EOFError, OSError):
                return
            while threading.current_thread() is threads[0] and len(threads) < child.num_streams:
                threads.append(threading.Thread(target=work, name=f"stream-{len(threads)}", daemon=True))
                threads[-1].start()

    work()
