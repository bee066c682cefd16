"""Small requests at fixed times, each on a new connection and sent once; for the parts of `server_chaos`."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

RATE = 10.0
DEADLINE_S = 10.0
"""The server's own deadline, which every probe also names in its header."""
GRACE_S = 1.0
GIVE_UP_S = 60.0
ADDRESS = "127.0.0.3"
SENTENCE = "a gripping and often funny film"
REFUSALS = frozenset({408, 429, 503})


@dataclass(frozen=True, slots=True)
class Stream:
    """Where probes go. `model`: what the body names, for paths that do not."""

    path: str
    model: str = ""

    @property
    def body(self) -> bytes:
        return json.dumps({"inputs": SENTENCE, **({"model": self.model} if self.model else {})}).encode()


def classify(model: str) -> Stream:
    return Stream(f"/v2/models/{model}/classify")


@dataclass(frozen=True, slots=True)
class Probe:
    """One request.

    stream: the name of its stream.
    sent_at: monotonic seconds.
    seconds: time until the answer or its failure.
    outcome: the status, or what went wrong.
    """

    stream: str
    sent_at: float
    seconds: float
    outcome: int | str


@dataclass(frozen=True, slots=True)
class Seen:
    """What probes found.

    failed: answers that were not a prediction.
    failed_s: of the worst stream, the seconds for which its failed probes stand.
    lost: no answer, or neither a prediction nor a refusal.
    late: ended more than `GRACE_S` after the deadline.
    """

    sent: int
    failed: int
    failed_s: float
    lost: int
    late: int
    slowest_s: float
    p99_ms: float
    outcomes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, probes: Sequence[Probe], rate: float) -> "Seen":
        failed = Counter(one.stream for one in probes if one.outcome != httpx.codes.OK)
        good = (httpx.codes.OK, *REFUSALS)
        times = sorted(one.seconds for one in probes) or [0.0]
        others = Counter(str(one.outcome) for one in probes if one.outcome != httpx.codes.OK)
        return cls(
            len(probes),
            failed.total(),
            round(max(failed.values(), default=0) / rate, 2),
            sum(one.outcome not in good for one in probes),
            sum(one.seconds > DEADLINE_S + GRACE_S for one in probes),
            round(times[-1], 2),
            round(1000 * times[int(0.99 * len(times))], 1),
            dict(others),
        )

    @property
    def told(self) -> str:
        """What came in place of predictions."""
        return ", ".join(f"{count} x {outcome}" for outcome, count in sorted(self.outcomes.items()))


class Probes:
    """Sends `rate` requests a second to each stream within the block; its end waits for their answers.

    streams: by name.
    token: a bearer token; "" for none.
    """

    def __init__(self, url: str, streams: Mapping[str, Stream], rate: float = RATE, token: str = "") -> None:
        self.rate = rate
        self._url, self._streams = url, streams
        self._headers = {"X-Request-Timeout-Ms": str(round(1000 * DEADLINE_S))}
        self._headers |= {"Authorization": f"Bearer {token}"} if token else {}
        self._probes: list[Probe] = []
        self._labels: dict[str, str] = {}
        self._stop = asyncio.Event()

    async def __aenter__(self) -> "Probes":
        # A new connection for each probe: it stands for a caller who has none yet.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        transport = httpx.AsyncHTTPTransport(limits=limits, local_address=ADDRESS)
        self._client = httpx.AsyncClient(transport=transport, timeout=GIVE_UP_S, headers=self._headers)
        self._sending = [asyncio.create_task(self._send(name)) for name in self._streams]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if kind is not None:
            for task in self._sending:
                task.cancel()
        try:
            await asyncio.gather(*self._sending)
        finally:
            await self._client.aclose()

    def seen(self, since: float = 0.0, before: float = float("inf")) -> Seen:
        """Return what became of the probes that were sent from `since` until `before`, in monotonic time."""
        return Seen.of([one for one in self._probes if since <= one.sent_at < before], self.rate)

    def are_well(self, last_s: float) -> bool:
        """Return whether every stream was answered, and none failed, in the last seconds."""
        recent = [one for one in self._probes if one.sent_at + one.seconds > time.monotonic() - last_s]
        well = {one.stream for one in recent} == set(self._streams)
        return well and all(one.outcome == httpx.codes.OK for one in recent)

    async def _send(self, name: str) -> None:
        tasks, due_at = [], time.monotonic()
        while not self._stop.is_set():
            tasks.append(asyncio.create_task(self._one(name, self._streams[name])))
            due_at += 1 / self.rate
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
        await asyncio.gather(*tasks)

    async def _one(self, name: str, stream: Stream) -> None:
        sent_at = time.monotonic()
        try:
            answer = await self._client.post(self._url + stream.path, content=stream.body)
            outcome: int | str = answer.status_code
            if outcome == httpx.codes.OK:
                outcome = self._checked(name, answer.json())
        except (httpx.HTTPError, ValueError) as error:
            outcome = type(error).__name__
        self._probes.append(Probe(name, sent_at, time.monotonic() - sent_at, outcome))

    def _checked(self, name: str, answer: object) -> int | str:
        """The label must be that of the stream's first answer."""
        label = best(answer)
        return int(httpx.codes.OK) if self._labels.setdefault(name, label) == label else "wrong label"


def best(answer: object) -> str:
    """Return the first item's label, in an answer of our own or of text-embeddings-inference."""
    items = answer["predictions"] if isinstance(answer, dict) else answer
    first = items[0][0] if isinstance(items[0], list) else items[0]  # type: ignore[index]
    return str(first["label"])
