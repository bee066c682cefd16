"""Writes the table: `table2.json` and `table2.md`; called by `fewshard table2`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewshard_models.evaluation.baselines import SYSTEMS
from fewshard_models.evaluation.markdown import as_markdown
from fewshard_models.evaluation.result import Result
from fewshard_models.evaluation.significance import Pairs
from fewshard_models.evaluation.table import Check, Row, build_rows, checks, payers, rivals

TIER_WITH_TARGETS = "small"


@dataclass(frozen=True, slots=True)
class Table:
    """The contents of the files. `checks` is empty for tiers without targets."""

    tier: str
    command: str
    rows: tuple[Row, ...]
    rivals: tuple[str, ...]
    payers: tuple[str, ...]
    checks: tuple[Check, ...]

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write `table2.json` and `table2.md` (`table2-<tier>` for other tiers). Return the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = "table2" if self.tier == TIER_WITH_TARGETS else f"table2-{self.tier}"
        as_json, markdown = folder / f"{stem}.json", folder / f"{stem}.md"
        as_json.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        markdown.write_text(self.as_markdown(), encoding="utf-8")
        return as_json, markdown

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values: shares, milliseconds, bytes. Predictions stay in the result files."""
        return {
            "command": self.command,
            "tier": self.tier,
            "rows": [_row_dict(row) for row in self.rows],
            "rivals": list(self.rivals),
            "payers": list(self.payers),
            "targets": [asdict(check) for check in self.checks],
        }

    def as_markdown(self) -> str:
        text = as_markdown(self.tier, self.rows, self.rivals, self.payers, self.checks)
        return f"{text}\nCommand: `{self.command}`\n"


def make_table(tier: str, command: str, results: Sequence[Result]) -> Table:
    """Build rows, verdicts and targets from the results of a tier."""
    rows = build_rows(results)
    promised = checks(rows) if tier == TIER_WITH_TARGETS else []
    return Table(tier, command, tuple(rows), tuple(rivals(rows)), tuple(payers(rows)), tuple(promised))


def _row_dict(row: Row) -> dict[str, Any]:
    cost = None if row.first is None else row.first.cost
    paper = SYSTEMS[row.system.name].paper
    return {
        "system": row.system.name,
        "kind": row.system.kind,
        "seeds": [result.seed for result in row.results],
        "missing": row.missing,
        "accuracy": None if row.accuracy is None else asdict(row.accuracy),
        "f1": None if row.f1 is None else asdict(row.f1),
        "paper": None if paper is None else asdict(paper),
        "cost": None if cost is None else {**asdict(cost), "macs_counted": cost.macs_counted},
        "flops": None if cost is None or cost.macs_counted is None else 2 * cost.macs_counted,
        "macs_share": row.macs_share,
        "peak_bytes": None if row.first is None else row.first.peak_bytes,
        "speeds": [asdict(speed) for speed in row.speeds],
        "against_dense": _pairs_dict(row.against_dense),
        "against_narrow": _pairs_dict(row.against_narrow),
        "robustness": {name: asdict(figure) for name, figure in row.robustness.items()},
        "artefacts": {str(result.seed): result.weights for result in row.results},
        "recipe": None if row.first is None else row.first.card.get("recipe"),
    }


def _pairs_dict(pairs: Pairs | None) -> dict[str, Any] | None:
    if pairs is None:
        return None
    classes = [{"name": pairs.names[each.label], **asdict(each)} for each in pairs.classes]
    seeds = [asdict(pair) for pair in pairs.pairs]
    return {
        "other": pairs.other,
        "flipped": pairs.flipped,
        "change": pairs.change,
        "seeds": seeds,
        "classes": classes,
    }
