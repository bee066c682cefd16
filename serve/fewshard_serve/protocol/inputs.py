"""Checks of the number of items and of BYTES tensors, shared by the protocols and tasks."""

from fewshard_serve.errors import MalformedRequest, TooLarge
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tensors import Tensor


def check_num_items(num_items: int, limits: Limits) -> None:
    """Raise `TooLarge` above `max_items`, `MalformedRequest` for no items."""
    if num_items > limits.max_items:
        raise TooLarge(
            f"the request has {num_items} items, at most {limits.max_items} are taken (max_items); split it"
        )
    if num_items == 0:
        raise MalformedRequest("the request has no items; send at least one")


def bytes_elements(tensor: Tensor, limits: Limits) -> list[str | bytes]:
    """The elements of a BYTES tensor of shape [N] or [N,1]. Raises `MalformedRequest` or `TooLarge`."""
    if tensor.datatype != "BYTES":
        raise MalformedRequest(f"{tensor.name} must be BYTES, not {tensor.datatype}")
    if tensor.shape[1:] not in ((), (1,)):
        raise MalformedRequest(f"{tensor.name} must have shape [N] or [N,1], not {list(tensor.shape)}")
    check_num_items(tensor.shape[0], limits)
    elements: list[str | bytes] = tensor.data.ravel().tolist()
    return elements
