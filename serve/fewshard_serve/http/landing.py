"""The page at `/`: which models there are and what each costs, from their cards; called by `gateway`."""

from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from fewshard_serve.http.pages import page
from fewshard_serve.http.service import ModelEntry

_UNKNOWN = "–"
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_COLUMNS = ("Model", "State", "Task", "Kind", "Accuracy", "Parameters", "Active", "MACs an item", "Runs on")
_NUMBERS = range(4, 8)
"""The columns that hold numbers, which line up on the right."""


def landing_page(index: Sequence[ModelEntry], address: str = "localhost:8000") -> str:
    """HTML; `address` is where the browser found us. Whatever comes from it or from a card is escaped."""
    num_ready = sum(entry.state == "READY" for entry in index)
    rows = "".join(map(_row, index))
    return page(
        "Fewshard",
        f"<h1>Models</h1><p class='soft'>{num_ready} of {len(index)} ready. Accuracy, parameters and MACs "
        "(multiply-accumulates of one item) are those of each model's card.</p>"
        f"<div class='scroll'><table><tr>{_cells('th', _COLUMNS)}</tr>{rows}</table></div>"
        f"{_example(index, address)}",
    )


def _row(entry: ModelEntry) -> str:
    info = entry.info
    name, address = escape(entry.name), escape(f"/v2/models/{quote(entry.name)}/config")
    card = info.card if info is not None else {}
    cells = (
        f"<a href='{address}'>{name}</a>",
        _state(entry),
        escape(info.task) if info else _UNKNOWN,
        escape(info.kind) if info else _UNKNOWN,
        _percent(card.get("accuracy")),
        _count(card.get("parameters_total")),
        _count(card.get("parameters_active")),
        _count(card.get("macs")),
        escape(f"{info.device}, {info.dtype}") if info else _UNKNOWN,
    )
    return f"<tr>{_cells('td', cells)}</tr>"


def _cells(tag: str, cells: Sequence[str]) -> str:
    marks = (" class='number'" if column in _NUMBERS else "" for column in range(len(cells)))
    return "".join(f"<{tag}{mark}>{cell}</{tag}>" for mark, cell in zip(marks, cells, strict=True))


def _state(entry: ModelEntry) -> str:
    look = "ready" if entry.state == "READY" else "waiting"
    reason = f"<br><small>{escape(entry.reason)}</small>" if entry.reason else ""
    return f"<span class='{look}'>{escape(entry.state.lower())}</span>{reason}"


def _example(index: Sequence[ModelEntry], address: str) -> str:
    text_model = next((entry for entry in index if entry.info and entry.info.task == "text"), None)
    if text_model is None:
        return ""
    command = f'curl {address}/v2/models/{quote(text_model.name)}/classify -d \'{{"inputs": "a fine film"}}\''
    return f"<h2>Try one</h2><pre>{escape(command)}</pre>"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _percent(value: Any) -> str:
    number = _number(value)
    return _UNKNOWN if number is None else f"{100 * number:.1f} %"


def _count(value: Any) -> str:
    number = _number(value)
    if number is None:
        return _UNKNOWN
    size, unit = next(((size, f" {unit}") for size, unit in _UNITS if number >= size), (1.0, ""))
    return f"{number / size:.3g}{unit}"
