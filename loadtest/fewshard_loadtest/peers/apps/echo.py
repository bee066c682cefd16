"""An application that does nothing, deployed as a Fewshard host is; benchmarks measure it for comparison.

It reads each body and gives one fixed answer: what remains is what Ray Serve and HAProxy cost.
"""

import argparse
import sys
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fewshard_serve.config import ServerConfig
from fewshard_serve.rayserve.cluster import ray_cluster
from fewshard_serve.rayserve.environment import prepare_environment
from fewshard_serve.rayserve.preflight import check_port
from fewshard_serve.rayserve.signals import StopRequest, listen, stop_request

Message = MutableMapping[str, Any]

ANSWER = b'{"model":"echo","predictions":[[{"label":"positive","score":1.0}]],"usage":{"items":1,"tokens":1}}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]


async def echo_app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Send the same response for every path, after reading the whole body."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


def main() -> int:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8123)
    server = ServerConfig(port=parser.parse_args().port, grpc_port=0)
    check_port(server)
    with tempfile.TemporaryDirectory(prefix="echo-", dir="/tmp", ignore_cleanup_errors=True) as work_dir:
        prepare_environment(work_dir)
        with stop_request() as stop, ray_cluster(None, num_cpus_wanted=1):
            listen(stop)
            _serve(server, stop)
    return 0


def _serve(server: ServerConfig, stop: StopRequest) -> None:
    from ray import serve

    class Echo:
        async def __serve_build_asgi_app__(self) -> Any:
            return echo_app

    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": server.host, "port": server.port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    deployment = serve.deployment(
        name="echo", max_ongoing_requests=100_000, ray_actor_options={"num_cpus": 0.5}
    )
    serve.run(deployment(serve.ingress()(Echo)).bind(), name="echo", route_prefix="/")
    stop.wait()


if __name__ == "__main__":
    sys.exit(main())
