"""A load test's folder: `run.json` and one samples file per run. `sweep` writes it, `report` reads it."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fewshard_loadtest.errors import ScenarioError
from fewshard_loadtest.measure import Result
from fewshard_loadtest.resource_usage import Usage
from fewshard_loadtest.samples_file import Recording
from fewshard_loadtest.server_client import Counters

RUN_FILE = "run.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class LoadRun:
    """One run of the generator: one model (or a mix) under one load.

    number: index of the run, which names its samples file.
    repeat: index of the repeat.
    kind, load: kind and index of the load in the scenario.
    model: name of the model, or `mixed`.
    result: what the generator measured.
    usage: the server's resource usage.
    counters: the server's own counters by model, over the whole run with its warm-up.
    is_limited: whether the generator, not the server, was the bottleneck.
    is_kept: whether the run stayed within the SLO; None unless it is an open loop at one rate.
    """

    number: int
    repeat: int
    kind: str
    load: int
    model: str
    result: Result
    usage: Usage
    counters: dict[str, Counters]
    is_limited: bool = False
    is_kept: bool | None = None

    @property
    def samples_name(self) -> str:
        return f"samples/{self.number:04d}.npz"

    @property
    def rate(self) -> float | None:
        """Intended requests per second of a constant open loop, else None."""
        return self.result.plan.rate


@dataclass
class Run:
    """All measurements of a load test.

    scenario: the scenario's fields.
    command: the command line that ran it.
    machine: description of the machine.
    server: URL of the server, and whether it was started here.
    models: configuration of each model as reported by the server.
    truth: payload name and true labels by task.
    legs: the runs so far.
    sustained: requests/s by search (its index among the loads, as text) and model, one entry per repeat.
    limited: models for which the generator was the bottleneck.
    generator_ceiling: responses per second of one generator against a fixed response.
    partial: why the test ended early, or None.
    """

    scenario: dict[str, Any]
    command: str
    machine: dict[str, str]
    server: dict[str, Any] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    truth: dict[str, dict[str, Any]] = field(default_factory=dict)
    legs: list[LoadRun] = field(default_factory=list)
    sustained: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    limited: list[str] = field(default_factory=list)
    generator_ceiling: float | None = None
    partial: str | None = None

    @property
    def has_unmet_slo(self) -> bool:
        """Whether a search found no rate within the SLO for some model."""
        found = [rates for models in self.sustained.values() for rates in models.values()]
        return any(None in rates for rates in found)

    def save(self, folder: Path) -> None:
        """Write `run.json` atomically, so that readers never see an incomplete file."""
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"{RUN_FILE}.new"
        draft.write_text(json.dumps({"format": FORMAT, **asdict(self)}), encoding="utf-8")
        os.replace(draft, folder / RUN_FILE)

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """The test in `folder`. Raises `ScenarioError` if the folder holds no load test."""
        try:
            fields = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ScenarioError(f"{folder} holds no load test: no readable {RUN_FILE} in it") from None
        if fields.pop("format", None) != FORMAT:
            raise ScenarioError(
                f"{folder / RUN_FILE} was written by another version; run the load test again"
            )
        legs = [_leg(leg) for leg in fields.pop("legs")]
        return cls(**fields, legs=legs)

    def recordings(self, folder: Path, legs: list[LoadRun]) -> Iterator[Recording]:
        """The raw samples of some runs; runs without a samples file are skipped."""
        for leg in legs:
            if (folder / leg.samples_name).is_file():
                yield Recording.load(folder / leg.samples_name)


def _leg(fields: dict[str, Any]) -> LoadRun:
    return LoadRun(
        **{
            **fields,
            "result": Result.from_dict(fields["result"]),
            "usage": Usage(**fields["usage"]),
            "counters": {name: Counters(**counters) for name, counters in fields["counters"].items()},
        }
    )
