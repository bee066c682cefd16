"""Runs a scenario's loads: every load for every model in turn, in each repeat. Called by `runner`.

Models alternate within each load, and every second repeat runs in reverse order, so that drift of the
machine affects all of them alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewshard_loadtest.arrivals import Stage
from fewshard_loadtest.errors import ServerGone
from fewshard_loadtest.measure import Plan, Result
from fewshard_loadtest.payloads import Payload
from fewshard_loadtest.resource_usage import ResourceMonitor
from fewshard_loadtest.results_store import LoadRun, Run
from fewshard_loadtest.run import run_recorded
from fewshard_loadtest.scenario import Closed, Load, Mixed, Open, Scenario, Search, Shaped
from fewshard_loadtest.search import NEXT_GROWTH, Bisection, keeps
from fewshard_loadtest.server_client import Server

MAX_GENERATOR_CPU = 0.9
MIN_LAG_MS = 5.0
LAG_SHARE_OF_SLO = 0.2
PROBE_USERS = 32
PROBE_S = 3.0
PROBE_SHARE = 0.7

Say = Callable[[str], None]


@dataclass
class ScenarioRunner:
    """Runs one scenario against one server. `run` is saved after each leg, a run of the generator.

    scenario: the scenario.
    server: client of the server.
    run: the results so far.
    folder: folder of the results.
    pid: process ID of the server; 0 if unknown.
    grpc_target: host:port for gRPC.
    tasks: task of each model.
    is_alive: returns whether the server's process still runs.
    say: prints a line for the user.
    """

    scenario: Scenario
    server: Server
    run: Run
    folder: Path
    pid: int
    grpc_target: str
    tasks: dict[str, str]
    is_alive: Callable[[], bool]
    say: Say

    def carry_out(self) -> None:
        """Run all loads. Raises `ServerGone` or KeyboardInterrupt; results so far are saved."""
        for repeat in range(self.scenario.repeats):
            models = self.scenario.models if repeat % 2 == 0 else self.scenario.models[::-1]
            for number, load in enumerate(self.scenario.loads):
                self._apply(repeat, number, load, models)

    def _apply(self, repeat: int, number: int, load: Load, models: Sequence[str]) -> None:
        if isinstance(load, Search):
            self._search(repeat, number, load, models)
            return
        if isinstance(load, Mixed):
            plan = replace(
                self._plan(repeat, models[0], load), mix=tuple(load.shares.items()), rate=load.rate
            )
            self._leg(repeat, number, load.kind, "mixed", plan)
            return
        for step in range(_num_steps(load)):
            for model in models:
                unit = self._unit(repeat, model, number, load)
                shaped = self._shaped(load, step, self._plan(repeat, model, load), unit)
                if shaped is not None:
                    self._leg(repeat, number, load.kind, model, shaped)

    def _unit(self, repeat: int, model: str, place: int, load: Load) -> float | None:
        """The rate that relative rates are multiples of; None if the search found no sustained rate."""
        if not getattr(load, "relative", False):
            return 1.0
        searched = [number for number in self.run.sustained if int(number) < place]
        return self.run.sustained[searched[-1]][model][repeat]

    def _shaped(self, load: Load, step: int, plan: Plan, unit: float | None) -> Plan | None:
        if unit is None:
            return None
        if isinstance(load, Closed):
            return replace(plan, num_users=load.users[step])
        if isinstance(load, Open):
            return replace(plan, rate=unit * load.rates[step])
        assert isinstance(load, Shaped)
        stages = tuple(Stage(stage.seconds, unit * stage.rate) for stage in load.stages())
        return replace(plan, stages=stages, duration_s=sum(stage.seconds for stage in stages))

    def _search(self, repeat: int, number: int, load: Search, models: Sequence[str]) -> None:
        """Search for all models in lockstep: one step of each model in turn."""
        searches = {model: self._bisection(repeat, number, load, model) for model in models}
        # For each failed rate: whether the generator was the bottleneck in every failure.
        limited: dict[tuple[str, float], bool] = {}
        while open_ones := [model for model in models if not searches[model].is_done]:
            for model in open_ones:
                rate = searches[model].next_rate()
                leg = self._leg(
                    repeat, number, load.kind, model, replace(self._plan(repeat, model, load), rate=rate)
                )
                searches[model].tell(rate, bool(leg.is_kept))
                if not leg.is_kept:
                    limited[model, rate] = limited.get((model, rate), True) and leg.is_limited
        for model in models:
            found, failed = searches[model].sustained, searches[model].failed
            if limited.get((model, failed or 0.0)) and model not in self.run.limited:
                self.run.limited.append(model)
            self.run.sustained.setdefault(str(number), {}).setdefault(model, []).append(found)
            self.say(
                f"{model} sustains {'nothing' if found is None else f'{found:.1f} requests/s'} within the SLO"
            )
        self.run.save(self.folder)

    def _bisection(self, repeat: int, number: int, load: Search, model: str) -> Bisection:
        """A search that starts where the last repeat ended, or near the rate of a short closed loop."""
        known = [rate for rate in self.run.sustained.get(str(number), {}).get(model, []) if rate]
        start = load.start
        if known:
            return Bisection(known[-1], load.precision, growth=NEXT_GROWTH)
        if start is None:
            plan = replace(
                self._plan(repeat, model, load),
                num_users=PROBE_USERS,
                duration_s=min(PROBE_S, load.duration_s),
            )
            start = max(
                PROBE_SHARE * self._leg(repeat, number, "probe", model, plan).result.answered_rps, 1.0
            )
        return Bisection(start, load.precision)

    def _plan(self, repeat: int, model: str, load: Load) -> Plan:
        scenario = self.scenario
        is_grpc = scenario.protocol == "grpc"
        return Plan(
            host=self.grpc_target if is_grpc else self.server.url,
            model=model,
            protocol=scenario.protocol,
            payload=getattr(scenario.payload, self.tasks[model]),
            duration_s=load.duration_s,
            warmup_s=scenario.warmup_s,
            num_items=load.items,
            # All models and steps of a repeat get the same arrivals, so that chance favours none. Items
            # continue where the model's last run ended, so that all of them are sent soon.
            seed=scenario.seed + repeat,
            skip=sum(leg.result.num_requests for leg in self.run.legs if leg.model == model),
        )

    def _leg(self, repeat: int, number: int, kind: str, model: str, plan: Plan) -> LoadRun:
        before = {name: self.server.counters_of(name) for name in plan.models}
        place = len(self.run.legs)
        file = self.folder / f"samples/{place:04d}.npz"
        # A closed loop cannot have more generators than users.
        generators = (
            self.scenario.generators if plan.is_open else min(self.scenario.generators, plan.num_users)
        )
        with ResourceMonitor(self.pid) as watch:
            result = run_recorded(plan, file, generators)
        self._check_alive(result)
        leg = LoadRun(
            number=place,
            repeat=repeat,
            kind=kind,
            load=number,
            model=model,
            result=result,
            usage=watch.usage(),
            counters={name: self.server.counters_of(name).since(was) for name, was in before.items()},
            is_limited=self._is_limited(result),
            is_kept=keeps(result, self.scenario.slo.p99_ms, self.scenario.slo.max_errors)
            if plan.rate is not None
            else None,
        )
        self.run.legs.append(leg)
        self.run.save(self.folder)
        self.say(describe(leg))
        return leg

    def _check_alive(self, result: Result) -> None:
        if not self.is_alive():
            raise ServerGone(f"the server died after {len(self.run.legs)} runs; its log says why")
        if result.p50_ms is None and not self.server.is_live():
            raise ServerGone(f"{self.server.url} stopped answering after {len(self.run.legs)} runs")

    def _is_limited(self, result: Result) -> bool:
        """Whether the generator, not the server, was the bottleneck: out of CPU time, or late."""
        late = max(MIN_LAG_MS, LAG_SHARE_OF_SLO * self.scenario.slo.p99_ms)
        return result.generator_cpu > MAX_GENERATOR_CPU or (result.lag_p99_ms or 0.0) > late


def truth_of(payload: Payload) -> dict[str, object]:
    """What the report needs of a payload: name, remark, and true labels as indices into distinct names."""
    names = sorted(set(payload.labels))
    place = {name: number for number, name in enumerate(names)}
    return {
        "name": payload.name,
        "items": len(payload),
        "names": names,
        "labels": [place[label] for label in payload.labels],
        "remark": payload.remark,
    }


def describe(leg: LoadRun) -> str:
    """One line about a run, for the terminal."""
    plan, result = leg.result.plan, leg.result
    load = f"{plan.rate:.1f} requests/s" if plan.rate else f"{plan.num_users} users"
    if plan.stages:
        load = f"{len(plan.stages)} stages"
    p99 = "no answer" if result.p99_ms is None else f"p50 {result.p50_ms:.1f} ms, p99 {result.p99_ms:.1f} ms"
    verdict = "" if leg.is_kept is None else (", kept" if leg.is_kept else ", too much")
    limit = ", the generator was the limit" if leg.is_limited else ""
    failures = f", {result.num_failures} failures" if result.num_failures else ""
    return f"{leg.kind}, {leg.model}, {load}: {result.answered_rps:.1f}/s, {p99}{failures}{verdict}{limit}"


def _num_steps(load: Load) -> int:
    if isinstance(load, Closed):
        return len(load.users)
    return len(load.rates) if isinstance(load, Open) else 1
