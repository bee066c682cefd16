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


def check_bytes(name: str, datatype: str, shape: tuple[int, ...], limits: Limits) -> None:
    """Raise `MalformedRequest` or `TooLarge` unless a tensor is BYTES of shape [N] or [N,1]."""
    if datatype != "BYTES":
        raise MalformedRequest(f"{name} must be BYTES, not {datatype}")
    if shape[1:] not in ((), (1,)):
        raise MalformedRequest(f"{name} must have shape [N] or [N,1], not {list(shape)}")
    check_num_items(shape[0], limits)


def bytes_elements(tensor: Tensor, limits: Limits) -> list[str | bytes]:
    """The elements of a BYTES tensor. Raises as `check_bytes` does."""
    check_bytes(tensor.name, tensor.datatype, tensor.shape, limits)
    elements: list[str | bytes] = tensor.data.ravel().tolist()
    return elements
