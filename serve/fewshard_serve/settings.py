"""What the fields of settings may hold, as annotations; every package's settings classes use it.

pydantic enforces them where a file is read. Nothing here imports pydantic, so that packages without it can
keep their settings beside the code that they are for.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

NO_OTHER_KEYS = {"extra": "forbid"}
"""The `__pydantic_config__` of a settings class."""


class Rules:
    """Adds to pydantic's schema of a type what annotated_types cannot say, as in `Rules(strict=True)`."""

    def __init__(self, **rules: Any) -> None:
        self._rules = rules

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        return {**handler(source), **self._rules}


class WithExponent:
    """Reads "1e-5" as a number, which it is in JSON, in YAML 1.2 and for Helm; for PyYAML it is a string."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        function = {"type": "no-info", "function": _with_exponent}
        return {"type": "function-before", "function": function, "schema": handler(source)}


class Check:
    """Calls a function with the value, which raises `ValueError` for a wrong one and returns it otherwise."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        function = {"type": "no-info", "function": self._function}
        return {"type": "function-after", "function": function, "schema": handler(source)}


def _with_exponent(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


STRICT = Rules(strict=True)
"""Nothing is converted: neither 3.0 nor true is an integer."""
FINITE = Rules(strict=True, allow_inf_nan=False)

Flag = Annotated[bool, STRICT]
Index = Annotated[int, STRICT, Ge(0)]
PositiveInt = Annotated[int, STRICT, Ge(1)]
Positive = Annotated[float, FINITE, Gt(0), WithExponent()]
NonNegative = Annotated[float, FINITE, Ge(0), WithExponent()]
Share = Annotated[float, STRICT, Ge(0), Le(1), WithExponent()]
