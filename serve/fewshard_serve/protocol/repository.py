"""The requests that load and unload models, in Triton's form; the handlers of HTTP and of gRPC use it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from collections.abc import Mapping
from typing import Any, Literal

from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.json_guard import nearest, quoted, read_json
from fewshard_serve.protocol.limits import Limits

Action = Literal["load", "unload"]


def check_body(action: Action, body: bytes, limits: Limits) -> None:
    """Raise `MalformedRequest` for a body that says what would not be heard."""
    asked = read_json(body, limits.max_json_depth) if body.strip() else {}
    parameters = asked.get("parameters") if isinstance(asked, dict) else None
    is_known = isinstance(asked, dict) and asked.keys() <= {"parameters"}
    if not is_known or not isinstance(parameters, dict | None):
        raise MalformedRequest('the body must be empty or {"parameters": {}}')
    check_parameters(action, parameters or {})


def check_parameters(action: Action, parameters: Mapping[str, Any]) -> None:
    """Raise `MalformedRequest` for a parameter that would not be heard. A null or false one asks nothing."""
    for name, value in parameters.items():
        if value is None or value is False:
            continue
        if action == "load" and (name == "config" or name.startswith("file:")):
            raise MalformedRequest(
                f"{quoted(name)} is not taken: the server's configuration describes its models; add the "
                "model there, then load it by name"
            )
        if action == "unload" and name == "unload_dependents":
            raise MalformedRequest("unload_dependents is not offered; unload each model by its name")
        raise MalformedRequest(f"{quoted(name)} is no parameter of it; {nearest(name, _KNOWN[action])}")


_KNOWN = {"load": ("config",), "unload": ("unload_dependents",)}
