"""No password of a URL is printed, wherever the URL stands and however wrong it is."""

import json

import pytest

from fewshard_core.errors import FewshardError
from fewshard_core.urls import masked

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://user:{SECRET}@host:4318/v1/traces", "http://***@host:4318/v1/traces"),
        (f"redis://:{SECRET}@host", "redis://***@host"),
        (f"https://{SECRET}@huggingface.co/a/b", "https://***@huggingface.co/a/b"),
        (f"http://user:{SECRET}@x@host/", "http://***@host/"),
        (f"http://user:ab/{SECRET}?#@host/path", "http://***@host/path"),
        (f"'http://a:{SECRET}@b' and <rediss://c:{SECRET}@d>", "'http://***@b' and <rediss://***@d>"),
        (json.dumps({"a": f"http://u:{SECRET}@h", "b": "x@y"}), '{"a": "http://***@h", "b": "x@y"}'),
        (f"HTTP+x://U:{SECRET}@[::1]:1/", "HTTP+x://***@[::1]:1/"),
    ],
)
def test_user_information_is_hidden(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize("text", ["", "http://host/path?a=b", "me@example.org", "http://a, b@c", "hf:a/b@v1"])
def test_everything_else_stays(text: str) -> None:
    assert masked(text) == text


def test_many_schemes_take_no_longer_each() -> None:
    """A quadratic scan of this text would take minutes."""
    assert masked("@" + "://" * 500_000).startswith("@://")


def test_every_error_hides_them() -> None:
    assert str(FewshardError(f"no answer of http://u:{SECRET}@h")) == "no answer of http://***@h"
