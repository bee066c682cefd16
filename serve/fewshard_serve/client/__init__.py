"""The Python client of a running server: `Client`, and `AsyncClient` with the same methods to await.

    with Client("http://127.0.0.1:8000") as client:
        answer = client.classify("sst2-moe", ["a fine film", "two hours I want back"])
        print(answer.predictions[0].label, answer.predictions[0].score)

Of the server's dependencies, it needs only httpx.
"""

from fewshard_serve.client.client import AsyncClient, Client
from fewshard_serve.client.messages import (
    DEFAULT_URL,
    TOKEN_VARIABLE,
    Classification,
    ClientError,
    Entity,
    Image,
    Input,
    LabelScore,
    Prediction,
    Ranked,
    TextPair,
)
from fewshard_serve.client.retry import Retry

__all__ = [
    "DEFAULT_URL",
    "TOKEN_VARIABLE",
    "AsyncClient",
    "Classification",
    "Client",
    "ClientError",
    "Entity",
    "Image",
    "Input",
    "LabelScore",
    "Prediction",
    "Ranked",
    "Retry",
    "TextPair",
]
