"""Order of one generator's requests: shuffled rounds over the whole payload."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from fewshard_loadtest.adapters import DIALECTS
from fewshard_loadtest.measure import Plan
from fewshard_loadtest.payloads import Payload, load
from fewshard_loadtest.protocols import PROTOCOLS, Request


class RequestSampler:
    """An endless sequence of requests.

    Every item is sent once before any is repeated, in an order that depends on the seed. With several
    models, each request goes to a random one according to their shares. Requests are built once and cached.
    """

    def __init__(self, plan: Plan, payload: Payload) -> None:
        self._plan = plan
        self._payload = payload
        self._made: dict[tuple[str, int], Request] = {}
        self._rng = random.Random(plan.seed)
        # Every model gets the same items in the same order, so that responses can be compared in pairs.
        self._rounds = {
            model: islice(_rounds(len(payload), f"{plan.seed}"), plan.skip % len(payload), None)
            for model in plan.models
        }
        self._models = plan.models
        self._shares = [share for _, share in plan.mix] or [1.0]

    def draw(self) -> Request:
        """The next request."""
        model = self._rng.choices(self._models, self._shares)[0]
        return self._request(model, next(self._rounds[model]))

    def _request(self, model: str, item: int) -> Request:
        made = self._made.get((model, item))
        if made is None:
            made = self._made[model, item] = self._make(model, item)
        return made

    def _make(self, model: str, item: int) -> Request:
        plan, payload = self._plan, self._payload
        others = random.Random(f"{plan.seed}/{item}").choices(range(len(payload)), k=plan.num_items - 1)
        places = [item, *others]
        if plan.dialect == "fewshard":
            request = PROTOCOLS[plan.protocol].body(model, payload, places)
        else:
            request = DIALECTS[plan.dialect].request(model, payload.at(places))
        return replace(request, item=item, model=model)


def deck_of(plan: Plan) -> RequestSampler:
    """The sampler for a plan, with its payload loaded. Raises `ScenarioError` if that is not available."""
    return RequestSampler(plan, load(plan.payload, plan.seed))


def _rounds(num_items: int, seed: str) -> Iterator[int]:
    rng = random.Random(seed)
    while True:
        yield from _shuffled(range(num_items), rng)


def _shuffled(places: Sequence[int], rng: random.Random) -> list[int]:
    order = [*places]
    rng.shuffle(order)
    return order
