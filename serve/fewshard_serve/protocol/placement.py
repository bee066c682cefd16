"""The request and the answer of `POST …/placement`; the HTTP handlers of the replicas use it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.classify import explain
from fewshard_serve.protocol.json_guard import MAX_VALUES, check_structure
from fewshard_serve.protocol.limits import Limits


class PlacementRequest(BaseModel):
    """A placement by name, or as a placement file has it: `model`, `num_experts` and `slots`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    placement: Annotated[str | None, Field(description="contiguous or round_robin")] = None
    model: Annotated[str | None, Field(description="the model that the slots are for")] = None
    num_experts: Annotated[int | None, Field(ge=1)] = None
    slots: Annotated[
        list[list[list[int]]] | None,
        Field(description="by layer, shard and slot: the expert there, -1 where the slot is empty"),
    ] = None
    apply: Annotated[bool | None, Field(description="have it; else it is only planned")] = False


class PlacementChange(BaseModel):
    """What a placement costs, over all replicas, and whether it is in force."""

    moves: Annotated[int, Field(description="experts that some shard has to load")]
    bytes: Annotated[int, Field(description="their weights")]
    applied: bool
    replicas: Annotated[int, Field(description="how many spoke")]


def parse_placement(body: bytes, limits: Limits) -> PlacementRequest:
    """Parse a body. Raises `MalformedRequest`, which suggests a name for an unknown key, or `TooLarge`."""
    check_structure(body, limits.max_json_depth, MAX_VALUES)
    try:
        return PlacementRequest.model_validate_json(body)
    except ValidationError as error:
        if not error.errors()[0]["loc"] and error.errors()[0]["type"] != "json_invalid":
            raise MalformedRequest('the body must be a JSON object: {"placement": "round_robin"}') from None
        raise MalformedRequest(explain(error, PlacementRequest)) from None
