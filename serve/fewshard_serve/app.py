"""`fewshard_serve.app:build`, the builder that Ray Serve calls for each application of a Serve configuration.

`fewshard render` writes such configurations; `serve deploy` and KubeRay submit them to a cluster.
"""

from typing import Any

from fewshard_serve.rayserve.serve_config import AppArguments


def build(args: AppArguments) -> Any:
    """The Serve application that `args` names. Runs on the cluster; raises `ConfigError`."""
    from fewshard_serve.rayserve.deployment import host_application
    from fewshard_serve.rayserve.gateway import gateway_application

    apps, access = args.plan()
    if args.is_gateway:
        return gateway_application(apps, access, args.config.server)
    return host_application(args.find(apps))
