"""The example of every public op says what the op does."""

import doctest
import inspect

import pytest

import fewshard_kernels

OPS = [name for name in fewshard_kernels.__all__ if inspect.isfunction(getattr(fewshard_kernels, name))]


@pytest.mark.parametrize("name", OPS)
def test_the_example_of_a_public_op_runs(name: str) -> None:
    op = getattr(fewshard_kernels, name)
    op = inspect.unwrap(op)
    (found,) = doctest.DocTestFinder(recurse=False).find(op, name, globs=dict(op.__globals__))
    assert found.examples, f"{name} has no example in its docstring"
    said: list[str] = []
    result = doctest.DocTestRunner().run(found, out=said.append)
    assert result.failed == 0, "".join(said)
