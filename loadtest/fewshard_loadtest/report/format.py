"""Number formats of the report, for all tables, charts and sentences."""

_SIGNS = {"USD": "$", "EUR": "€", "GBP": "£"}


def count(value: float | None) -> str:
    """Three significant digits, thousands separators, suffixes M and G: 0.25, 41.5, 1,230, 2.1 M."""
    if value is None:
        return "–"
    for limit, name in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {name}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def milliseconds(value: float | None) -> str:
    """Two decimals below ten, one below a hundred, else none."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def money(value: float | None, currency: str) -> str:
    """An amount with the currency's sign if it has one, else its name."""
    if value is None:
        return "–"
    digits = 4 if abs(value) < 0.1 else 3 if abs(value) < 1 else 2
    text = f"{value:,.{digits}f}"
    return f"{_SIGNS[currency]}{text}" if currency in _SIGNS else f"{text} {currency}"


def interval(low: float | None, high: float | None) -> str:
    """An interval in brackets; empty if there is none."""
    return "" if low is None or high is None else f" [{count(max(low, 0.0))}–{count(high)}]"


def ratio(value: float | None) -> str:
    """A ratio with two decimals."""
    return "–" if value is None else f"{value:.2f}"
