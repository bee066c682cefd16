"""Writes Prometheus' text format (replicas), and merges the texts of several replicas (the gateway).

https://prometheus.io/docs/instrumenting/exposition_formats (0.0.4), and OpenMetrics 1.0, the only one with
exemplars. We do not use `prometheus_client`, because a scrape must not hold the interpreter for long: it took
50 ms to parse 2,000 series, while merging our own texts takes 1 ms (docs/log.md).
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from fewshard_serve.metrics.definitions import BY_NAME, Exemplar, Family

logger = logging.getLogger(__name__)

_SPECIAL = re.compile(r'[\\"\n]')
_ESCAPED = {"\\": r"\\", '"': r"\"", "\n": r"\n"}


class TextWriter:
    """Collects samples by family. Labels in `extra` are added to samples that lack a label of that name."""

    def __init__(self, extra: Mapping[str, str] | None = None, is_open_metrics: bool = False) -> None:
        self.is_open_metrics = is_open_metrics
        self._extra = dict(extra or {})
        self._lines: dict[str, list[str]] = {}

    def add(self, name: str, labels: Sequence[object], value: float) -> None:
        """One sample of a counter or gauge."""
        self._of(name).append(f"{name}{{{self._labels(BY_NAME[name], labels)}}} {_number(value)}\n")

    def add_histogram(
        self,
        name: str,
        labels: Sequence[object],
        counts: Sequence[int],
        total: float,
        exemplars: Mapping[int, Exemplar] | None = None,
    ) -> None:
        """All samples of one histogram. `counts`: one per bucket (not cumulative), with +Inf at the end."""
        family, lines = BY_NAME[name], self._of(name)
        text = self._labels(family, labels)
        start = f"{name}_bucket{{{text},le=" if text else f"{name}_bucket{{le="
        bounds = [*map(str, family.buckets), "+Inf"]
        for at, (bound, count) in enumerate(zip(bounds, accumulate(counts), strict=True)):
            lines.append(f'{start}"{bound}"}} {count}{self._exemplar((exemplars or {}).get(at))}\n')
        lines.append(f"{name}_sum{{{text}}} {_number(total)}\n")
        lines.append(f"{name}_count{{{text}}} {sum(counts)}\n")

    def text(self) -> bytes:
        """The text, with one HELP and TYPE per family. The sender adds the last line of OpenMetrics."""
        parts = [self._head(BY_NAME[name]) + "".join(lines) for name, lines in self._lines.items()]
        # A name of a checkpoint may hold a lone surrogate, which UTF-8 cannot express.
        return "".join(parts).encode(errors="replace")

    def _of(self, name: str) -> list[str]:
        return self._lines.setdefault(name, [])

    def _labels(self, family: Family, values: Sequence[object]) -> str:
        own = dict(zip(family.labels, map(str, values), strict=True))
        return ",".join(f'{key}="{_escaped(value)}"' for key, value in sorted({**self._extra, **own}.items()))

    def _head(self, family: Family) -> str:
        name = family.name.removesuffix("_total") if self.is_open_metrics else family.name
        return f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n"

    def _exemplar(self, exemplar: Exemplar | None) -> str:
        if exemplar is None or not self.is_open_metrics:
            return ""
        return f' # {{trace_id="{exemplar.trace_id}"}} {_number(exemplar.value)} {exemplar.at:.3f}'


def cluster_text(
    is_up: Mapping[tuple[str, str], bool], wanted: Mapping[str, int], is_open_metrics: bool = False
) -> bytes:
    """The metrics that only the gateway knows.

    is_up: whether each replica, by application and name, answered this scrape.
    wanted: the minimum number of replicas of each application.
    """
    out = TextWriter(is_open_metrics=is_open_metrics)
    for replica, answered in is_up.items():
        out.add("fewshard_replica_up", replica, int(answered))
    for application, count in wanted.items():
        out.add("fewshard_replicas_wanted", [application], count)
    return out.text()


def merge_expositions(parts: Iterable[bytes]) -> bytes:
    """Merge the texts of several replicas, with one HELP and TYPE per family. Labels tell them apart.

    A text that is not in our form is left out and logged, so that one bad replica does not hide the others.
    """
    merged: dict[str, list[str]] = {}
    for number, part in enumerate(parts):
        try:
            families = _families(part)
        except ValueError:
            logger.warning("left out the metrics of one replica (number %d): they cannot be read", number)
            continue
        for head, samples in families:
            merged.setdefault(head, []).append(samples)
    return "".join(head + "".join(samples) for head, samples in merged.items()).encode()


def _families(part: bytes) -> list[tuple[str, str]]:
    """The HELP and TYPE lines of each family, with its samples. Raises ValueError."""
    text = part.decode()
    if text and not (text.startswith("# HELP ") and text.endswith("\n")):
        raise ValueError("no Prometheus text of ours")
    blocks = [f"# HELP {block}" for block in re.split(r"^# HELP ", text, flags=re.MULTILINE)[1:]]
    return [_head_and_samples(block) for block in blocks]


def _head_and_samples(block: str) -> tuple[str, str]:
    help_line, type_line, samples = (*block.split("\n", 2), "")[:3]
    if not type_line.startswith("# TYPE "):
        raise ValueError("a family without its type")
    return f"{help_line}\n{type_line}\n", samples


def _escaped(value: str) -> str:
    return _SPECIAL.sub(lambda match: _ESCAPED[match[0]], value) if _SPECIAL.search(value) else value


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, int) or float(value).is_integer() else repr(float(value))
