"""How many tokens a network takes, and how many words and segments it knows."""

from collections.abc import Iterator
from inspect import Parameter, signature
from typing import Any

from transformers import PreTrainedConfig

_LIMIT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
_POSITION_TABLES = ("position_embeddings", "embed_positions", "position_embedding", "positions_embed", "wpe")


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the part of the configuration that is about texts."""
    try:
        return config.get_text_config()
    except ValueError:  # there are several
        return config


def stated_limit(config: PreTrainedConfig) -> int:
    """Return the number of positions; 0 if the configuration states none."""
    for part in (text_config(config), config):
        for name in _LIMIT_NAMES:
            value = getattr(part, name, None)
            if isinstance(value, int) and value > 0:  # XLNet's says -1
                return value
    return 0


def text_limit(network: Any) -> int:
    """Return the most tokens of one text; 0 if the network has no limit.

    RoBERTa and its relatives number positions from behind the padding id, so their tables hold fewer tokens
    than rows.
    """
    limits = [stated_limit(network.config), *_table_sizes(network)]
    return min((limit for limit in limits if limit > 0), default=0)


def _table_sizes(network: Any) -> Iterator[int]:
    for name, module in network.named_modules():
        table = getattr(module, "weight", None)
        is_of_texts = not any(word in name for word in ("vision", "visual", "image"))
        if not is_of_texts or name.rpartition(".")[2] not in _POSITION_TABLES:
            continue
        if table is None or table.ndim != 2:
            continue
        padding_id, offset = getattr(module, "padding_idx", None), getattr(module, "offset", 0)
        yield len(table) - (int(offset) if padding_id is None or offset else int(padding_id) + 1)


def switching_length(config: PreTrainedConfig) -> int:
    """Return the length above which the network turns positions in another way; 0 if there is none.

    It then does so for all texts of a pass, the short ones too ("longrope").
    """
    part = text_config(config)
    rope = getattr(part, "rope_parameters", None) or {}
    for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if each.get("rope_type") == "longrope":
            found = each.get("original_max_position_embeddings")
            return int(found or getattr(part, "original_max_position_embeddings", 0) or 0)
    return 0


def num_rows(network: Any) -> int:
    """Return the rows of the table of words; 0 if there is no such table."""
    table = word_table(network)
    return 0 if table is None else len(table)


def word_table(network: Any) -> Any:
    """Return the embeddings of the words, [rows, width]; None if there is no such table."""
    try:
        table = network.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    weight = getattr(table, "weight", None)
    return None if weight is None or weight.ndim != 2 else weight


def has_experts(config: PreTrainedConfig) -> bool:
    """Return whether a configuration names experts."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any(getattr(text_config(config), name, 0) for name in names)


def num_types(network: Any) -> int | None:
    """Return the number of segments; 0 if the network takes none, None if it cannot be told."""
    if not takes(network, "token_type_ids"):
        return 0
    for name, module in network.named_modules():
        table = getattr(module, "weight", None)
        if name.rpartition(".")[2] == "token_type_embeddings" and table is not None and table.ndim == 2:
            return len(table)
    return None


def takes(network: Any, argument: str) -> bool:
    """Return whether the network's `forward` has this argument, or any."""
    parameters = signature(network.forward).parameters
    return argument in parameters or any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())
