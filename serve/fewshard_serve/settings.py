"""Annotated types for the fields of settings; the settings classes of every package use them.

Pydantic enforces them when a file is read. This module does not import pydantic, so that packages can define
their settings beside their code without importing it.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

NO_OTHER_KEYS = {"extra": "forbid"}
"""The `__pydantic_config__` of a settings class."""


class Rules:
    """Adds constraints to pydantic's schema that annotated_types lacks, as in `Rules(strict=True)`."""

    def __init__(self, **rules: Any) -> None:
        self._rules = rules

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        return {**handler(source), **self._rules}


class WithExponent:
    """Reads "1e-5" as a number, as JSON, YAML 1.2 and Helm do. PyYAML reads it as a string."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        function = {"type": "no-info", "function": _with_exponent}
        return {"type": "function-before", "function": function, "schema": handler(source)}


class Check:
    """Checks a value with a function that returns the value, or raises `ValueError` if it is wrong."""

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
"""No conversions: neither 3.0 nor true is an integer."""
FINITE = Rules(strict=True, allow_inf_nan=False)

Flag = Annotated[bool, STRICT]
Index = Annotated[int, STRICT, Ge(0)]
PositiveInt = Annotated[int, STRICT, Ge(1)]
Positive = Annotated[float, FINITE, Gt(0), WithExponent()]
NonNegative = Annotated[float, FINITE, Ge(0), WithExponent()]
Share = Annotated[float, STRICT, Ge(0), Le(1), WithExponent()]
