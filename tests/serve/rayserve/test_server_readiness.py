"""A model that answers nobody is not ready, everywhere a real server tells, until it answers again."""

import httpx
import pytest
import tritonclient.grpc as triton

pytestmark = [pytest.mark.server, pytest.mark.slow]

WAYS = ("crash", "nan", "die", "hang")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ill")


@pytest.fixture(scope="module")
def server(start_server, folder):
    models = [{"name": way, "path": str(folder / way), "replicas": {"min": 1}} for way in WAYS]
    return start_server([*models, {"name": "well", "path": "dense"}]).wait_until_ready()


def answers(server, way):
    """What the server tells of the model, in each place."""
    index = httpx.post(f"{server.url}/v2/repository/index", timeout=10).json()
    with triton.InferenceServerClient(f"127.0.0.1:{server.config['server']['grpc_port']}") as client:
        grpc = client.is_model_ready(way)
    return (
        httpx.get(f"{server.url}/v2/models/{way}/ready", timeout=20).status_code,
        httpx.get(f"{server.url}/v2/health/ready", timeout=20).status_code,
        next(entry["state"] for entry in index if entry["name"] == way),
        grpc,
        server.metric("fewshard_model_ready", model=way),
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_answers_nobody_is_not_ready(server, folder, until, way):
    until(lambda: answers(server, way) == (200, 200, "READY", True, 1))
    (folder / way).write_text(way)
    with pytest.raises((httpx.TimeoutException, AssertionError)):
        assert server.classify(way, "1", timeout_s=0.5).status_code == 200
    until(lambda: answers(server, way) == (503, 503, "UNAVAILABLE", False, 0))
    assert server.classify("well", "1").status_code == 200
    (folder / way).unlink()
    until(lambda: answers(server, way) == (200, 200, "READY", True, 1))
    until(lambda: server.classify(way, "1").status_code == 200)
