"""The pins of requirements.lock fit together: each requirement of each pinned package is met by another pin.

This is what pip's resolver would find. The test reads it from the metadata of the installed packages, without
the network. Extras count: `tritonclient[grpc]` also needs what its extra needs.
"""

import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
OF_TORCH_ALONE = ("cuda-", "nvidia-")
"""Libraries that torch's CUDA build requires and its CPU build does not; the lock serves both."""

Pins = Mapping[str, str]


def read_pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines)}


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [
        Requirement(line)
        for line in (*project["dependencies"], *(line for extra in extras for line in extra))
    ]


def contradictions(pins: Pins, python: str) -> list[str]:
    """Each requirement that no pin meets, with the package that has it, on this system and `python`."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    waiting = [*declared(), *(Requirement(name) for name in pins)]
    seen, unmet = set(), set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in ("", *wanted.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for needed in requirements_of(name, extra, environment):
                if not is_met(needed, pins):
                    unmet.add(f"{name}=={pins[name]}{f'[{extra}]' if extra else ''} needs {needed}")
                else:
                    waiting.append(needed)
    return sorted(unmet)


def requirements_of(name: str, extra: str, environment: dict[str, str]) -> Iterator[Requirement]:
    for line in requires(name) or []:
        needed = Requirement(line)
        if name == "torch" and needed.name.startswith(OF_TORCH_ALONE):
            continue
        if needed.marker is None or needed.marker.evaluate({**environment, "extra": extra}):
            yield needed


def is_met(needed: Requirement, pins: Pins) -> bool:
    pin = pins.get(canonicalize_name(needed.name))
    return pin is not None and needed.specifier.contains(pin, prereleases=True)


def test_what_is_installed_is_what_is_pinned() -> None:
    def installed(name: str) -> str:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            return "nothing"

    pins = read_pins()
    others = {name: installed(name) for name, pin in pins.items() if installed(name) != pin}
    assert others == {}, "run `make setup`"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_pins_meet_every_requirement(python: str) -> None:
    assert contradictions(read_pins(), python) == []


@pytest.mark.parametrize(
    ("changed", "who"),
    [
        ({"protobuf": "7.36.2"}, "tritonclient==2.73.0[grpc] needs protobuf"),
        ({"pydantic-core": "2.49.0"}, "pydantic==2.14.3 needs pydantic-core"),
    ],
)
def test_a_pin_that_contradicts_another_is_named(changed: dict[str, str], who: str) -> None:
    assert any(line.startswith(who) for line in contradictions({**read_pins(), **changed}, "3.11"))


def test_a_package_without_a_pin_is_named() -> None:
    pins = {name: pin for name, pin in read_pins().items() if name != "tzdata"}
    assert any("needs tzdata" in line for line in contradictions(pins, "3.11"))
