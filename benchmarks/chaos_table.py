"""The rows that `server_chaos` and `shard_kills` find, kept after each one as JSON and as Markdown."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fewshard_loadtest.peers.machine import machine, markdown_table

VERDICTS = {True: "met", False: "missed", None: "not run"}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the table.

    title, target: of its rows.
    figures: the names of its columns.
    """

    title: str
    target: str
    figures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was done to a server.

    figures: what was seen, by the names of the part's columns.
    met: whether the target was; None: it was not run, and `remark` says why.
    """

    part: str
    what: str
    figures: dict[str, Any]
    met: bool | None
    remark: str = ""
    version: str = ""
    form: dict[str, Any] = field(default_factory=dict)


class Table:
    """The table in a folder. Rows of earlier runs stay until their part is run again.

    form: how large this run is; every row says so.
    resume: rows of this form that are there already are not run again.
    name: of its files, without their suffix.
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, Part],
        form: dict[str, Any],
        chosen: list[str],
        resume: bool,
        name: str = "chaos",
    ) -> None:
        self.folder, self._parts, self._form, self.is_resumed = folder, parts, form, resume
        self.machine = machine()
        self._file = folder / f"{name}.json"
        self.rows = self._kept()
        if not resume:
            self.rows = [row for row in self.rows if row.part not in chosen]

    def has(self, part: str, what: str) -> bool:
        return any((row.part, row.what, row.form) == (part, what, self._form) for row in self.rows)

    def add(self, part: str, what: str, figures: dict[str, Any], met: bool | None, remark: str = "") -> Row:
        """Add a row, in place of one for the same thing, and write the files."""
        row = Row(part, what, figures, met, remark, self.machine["commit"], self._form)
        places = {(each.part, each.what): number for number, each in enumerate(self.rows)}
        place = places.get((part, what), len(self.rows))
        self.rows[place : place + 1] = [row]
        self.write()
        return row

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = {"machine": self.machine, "rows": [asdict(row) for row in self.rows]}
        self._file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        self._file.with_suffix(".md").write_text(self.as_markdown() + "\n", encoding="utf-8")

    def as_markdown(self) -> str:
        """Return a summary, and a table for each part that has rows."""
        summary, tables = [], []
        for name, part in self._parts.items():
            rows = [row for row in self.rows if row.part == name]
            if not rows:
                continue
            num_run = sum(row.met is not None for row in rows)
            met = f"{sum(row.met is True for row in rows)} of {num_run}"
            summary.append([name, part.target, met])
            lines = [
                [
                    row.what,
                    *(_cell(row.figures.get(key)) for key in part.figures),
                    VERDICTS[row.met],
                    row.remark,
                ]
                for row in rows
            ]
            header = ("", *part.figures, "target", "")
            tables.append(
                f"## {name}: {part.title}\n\nTarget: {part.target}.\n\n{markdown_table(header, lines)}"
            )
        head = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        return "\n\n".join(
            [f"# Chaos\n\n{head}", markdown_table(("part", "target", "met"), summary), *tables]
        )

    def _kept(self) -> list[Row]:
        if not self._file.exists():
            return []
        return [Row(**row) for row in json.loads(self._file.read_text(encoding="utf-8"))["rows"]]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value).replace("|", "/")
