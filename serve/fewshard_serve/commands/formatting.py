"""Formats tables, counts and fractions for the commands."""

from collections.abc import Sequence

UNKNOWN = "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return left-aligned columns, two spaces apart, with the header first."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Return `name  value` lines with aligned values."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def count(value: object) -> str:
    """Format a count with three digits and a unit: 4386178 as `4.39 M`; anything but a number as `-`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return UNKNOWN
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def fraction(value: object) -> str:
    """Format 0.9123 as `91.2 %`, and anything but a number as `-`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return UNKNOWN
    return f"{100 * value:.1f} %"


def text(value: object) -> str:
    """Return the value as text, or `-` for None."""
    return UNKNOWN if value is None else str(value)


def shortened(line: str, width: int) -> str:
    """Return the text on one line of at most `width` characters."""
    flat = " ".join(line.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
