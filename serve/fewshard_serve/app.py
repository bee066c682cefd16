"""`fewshard_serve.app:build`, the builder that Ray Serve calls for each application of a Serve configuration.

`fewshard render` writes such configurations; `serve deploy` and KubeRay submit them to a cluster.
"""

from dataclasses import replace
from typing import Any

from fewshard_models import hub
from fewshard_serve.rayserve.deployment_plan import AppSpec, HostSpec
from fewshard_serve.rayserve.serve_config import AppArguments


def build(args: AppArguments) -> Any:
    """The Serve application that `args` names. Runs on the cluster; raises `ConfigError`."""
    from fewshard_serve.rayserve.deployment import host_application
    from fewshard_serve.rayserve.gateway import gateway_application

    apps, access = args.plan()
    if args.is_gateway:
        return gateway_application(apps, access, args.config.server)
    return host_application(_with_commits(args.find(apps)))


def _with_commits(app: AppSpec) -> AppSpec:
    """The application, whose replicas load the commits that models of the Hugging Face Hub have now."""
    if not isinstance(app, HostSpec):
        return app
    models = []
    for model in app.models:
        if model.path.startswith(hub.SCHEME):
            model = replace(model, path=hub.pinned(model.path))
            print(f"fewshard: {model.name} is {model.path}")
        models.append(model)
    return replace(app, models=tuple(models))
