"""Calls to one replica: what Ray Serve and gRPC raise becomes an error that says what happened."""

import asyncio

import grpc
import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError

from fewshard_serve.errors import InternalError, TooLarge
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.rayserve.environment import cluster_environment
from fewshard_serve.rayserve.handles import INNER_MESSAGE, ask_one


class Method:
    """A handle's method whose call raises."""

    def __init__(self, error):
        self._error = error

    def remote(self, *_):
        async def answer():
            raise self._error

        return answer()


class Handle:
    def __init__(self, error):
        self.classify = Method(error)


def ask(error):
    asyncio.run(ask_one(Handle(error), "classify", "m"))


def rpc_error(status, details):
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


def test_a_message_that_does_not_fit_is_too_large():
    details = "SERVER: Received message larger than max (5242880 vs. 4194304)"
    with pytest.raises(TooLarge, match=rf"5242880 vs. 4194304.*{INNER_MESSAGE}"):
        ask(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, details))


def test_an_error_of_the_replicas_own_code_is_internal():
    with pytest.raises(InternalError, match="the server's log has the reason"):
        ask(RayTaskError("classify", "a traceback", ValueError("secret")).as_instanceof_cause())


@pytest.mark.parametrize(
    "error",
    [
        rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many pings"),
        rpc_error(grpc.StatusCode.CANCELLED, "cancelled"),
        ActorUnavailableError("Actor is unavailable.", b"x" * 16),
    ],
)
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)):
        ask(error)


def test_a_hop_inside_is_no_narrower_than_the_door():
    """Items may take more room there than in the body: half floats are held as floats."""
    assert int(cluster_environment()[INNER_MESSAGE]) > 16 * Limits().max_body_bytes
