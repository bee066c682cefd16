"""A running service, and tritonclient for it."""

import pytest
import tritonclient.grpc as triton

from rpc_service import Running


@pytest.fixture
def running():
    one = Running()
    yield one
    one.close()


@pytest.fixture
def client(running):
    with triton.InferenceServerClient(running.address) as one:
        yield one
