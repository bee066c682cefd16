"""Requires that a checkpoint's weights are those of the network in its config.json.

transformers fills what is missing with random numbers and leaves what it does not know unread, with a
warning. `checkpoint` and `sharding` call it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fewshard_models.errors import CheckpointError
from fewshard_models.weight_files import StoredTensor

_OF_ONE_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(.+)$")
"""A tensor of one expert: layer, number and part. transformers merges those of a layer when it loads them."""
_SPARE_WEIGHTS = 2**24
_SPARE_BUFFERS = 2**28
_HARMLESS = re.compile(
    r"(?:^|\.)pooler\."  # summary of the first token that this class's head does not use
    r"|^(?:\w+\.)?(?:cls|lm_head|lm_loss|pred_layer|predictions|sop_classifier|mlm_head|qa_outputs)\."
    r"|^(?:lm|mask|discriminator|generator)_(?:predictions|lm_head)\.|^vocab_(?:transform|layer_norm|projector)\."
    r"|^decoder\.(?:weight|bias)$"  # ModernBERT's head of words
    r"|(?:^|\.)mask_token$|(?:^|\.)final_logits_bias$"  # heads and tokens of pretraining
    r"|^(?:loss|loss_fct|loss_fn|criterion)\."  # class weights of the training loss
    # Tables that the network computes itself.
    r"|(?:^|\.)(?:inv_freq|cos_cached|sin_cached|masked_bias|_float_tensor|version)$"
)
"""Tensors with fractions that may stay unread: heads of other tasks, and tables. They change no answer."""


def require_plausible(directory: Path, network: nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """Require, before any memory is taken, that the files can hold the weights of this network.

    network: on the meta device. Raises CheckpointError.
    """
    held = sum(tensor.size for tensor in stored.values())
    wanted = sum(parameter.numel() for parameter in network.parameters())
    # Eight numbers of 4 bits may share an int32; tied weights are stored once.
    if wanted > 8 * held + _SPARE_WEIGHTS or sum(map(_numel, network.buffers())) > held + _SPARE_BUFFERS:
        raise CheckpointError(
            f"{directory}/config.json describes {wanted:,} weights and the files hold {held:,} numbers; the "
            "two do not belong together: copy the checkpoint again, whole"
        )


def require_experts(directory: Path, network: nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """Require that the experts in the files are those of the network, each whole and all alike.

    network: on the meta device. Raises CheckpointError that names the tensor.
    """
    for name, module in network.named_modules():
        top_k, number = getattr(module, "top_k", None), getattr(module, "num_experts", None)
        if isinstance(top_k, int) and isinstance(number, int) and top_k > number:
            raise CheckpointError(
                f"{directory}/config.json says {top_k} experts a token, and there are {number} in {name}; "
                "correct num_experts_per_tok, or the number of experts"
            )
    layers: list[Any] = [each for each in network.modules() if hasattr(each, "_is_expert_parallel")]
    numbers: set[int] = {each.num_experts for each in layers}
    for layer, parts in _parts_of_experts(stored).items():
        held = set().union(*parts.values())
        for part, shapes in parts.items():
            if lacking := sorted(held - shapes.keys()):
                raise CheckpointError(
                    f"{directory} lacks {layer}.{lacking[0]}.{part}, which other experts have; "
                    "copy it again, whole"
                )
            usual = Counter(shapes.values()).most_common(1)[0][0]
            if odd := [expert for expert, shape in sorted(shapes.items()) if shape != usual]:
                raise CheckpointError(
                    f"{layer}.{odd[0]}.{part} in {directory} is {list(shapes[odd[0]])}, and other experts' "
                    f"are {list(usual)}; copy the checkpoint again, whole"
                )
        if len(numbers) == 1 and held != set(range(*numbers)):
            raise CheckpointError(
                f"{directory} holds {len(held)} experts in {layer}, numbered {min(held)} to {max(held)}, and "
                f"config.json says {max(numbers)}; correct the number, or copy the checkpoint again, whole"
            )


def _parts_of_experts(stored: Mapping[str, StoredTensor]) -> dict[str, dict[str, dict[int, tuple[int, ...]]]]:
    """Return the shapes of tensors that are stored expert by expert: by layer, part and expert."""
    found: dict[str, dict[str, dict[int, tuple[int, ...]]]] = {}
    for name, tensor in stored.items():
        if (named := _OF_ONE_EXPERT.search(name)) and named[3].endswith(("weight", "bias")):
            found.setdefault(named[1], {}).setdefault(named[3], {})[int(named[2])] = tensor.shape
    return found


def _numel(tensor: Any) -> int:
    return int(tensor.numel())


def require_agreement(
    directory: Path, network: Any, names: Mapping[str, StoredTensor], found: Mapping[str, Any]
) -> None:
    """Require that the network read every tensor, in its shape and kind of number, and lacks none.

    names: the tensors that it was given.
    found: transformers' loading info.

    Raises CheckpointError that names the tensors.
    """
    require_complete(directory, sorted(found["missing_keys"]))
    _require_shapes(directory, found["mismatched_keys"])
    _require_one_each(directory, names, set(network.state_dict()), network.base_model_prefix)
    require_read(directory, found["unexpected_keys"], names)
    _require_fractions(directory, network, names)


def _require_fractions(directory: Path, network: Any, names: Mapping[str, StoredTensor]) -> None:
    """Refuse whole numbers where the network has fractions: quantised weights whose scales are unknown."""
    fractions = {name for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    whole = [name for name, tensor in names.items() if not tensor.is_floating]
    integers = sorted(
        name
        for name in whole
        if {name, f"{network.base_model_prefix}.{name}"} & fractions or _OF_ONE_EXPERT.search(name)
    )
    if integers:
        raise CheckpointError(
            f"{directory} stores {_some(integers)} as {names[integers[0]].dtype}, where the network has "
            "fractions, and config.json has no quantization_config that says how; save the model unquantised"
        )


def require_complete(directory: Path, missing: Sequence[str]) -> None:
    """Raise CheckpointError, naming them, if weights are missing."""
    if missing:
        raise CheckpointError(
            f"{directory} lacks weights of the right shape for {_some(missing)}; is it a classifier's "
            "checkpoint, copied whole?"
        )


def require_read(
    directory: Path, unread: Iterable[str], stored: Mapping[str, StoredTensor] | None = None
) -> None:
    """Raise CheckpointError, naming them, if tensors were not read and could have changed answers."""
    left = sorted(
        name
        for name in unread
        # Whole numbers are positions, counters and masks; quantised weights would be missing elsewhere.
        if not _HARMLESS.search(name) and (not stored or name not in stored or stored[name].is_floating)
    )
    if left:
        raise CheckpointError(
            f"{directory} holds weights that its network does not read: {_some(left)}; the class in "
            "config.json is not theirs, or they are left over: then save the model again, with "
            "model.save_pretrained(directory)"
        )


def _require_shapes(directory: Path, mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    wrong = [
        f"{name} is {list(stored)}, the network's {list(wanted)}"
        for name, stored, wanted in sorted(mismatched, key=str)
    ]
    if wrong:
        raise CheckpointError(
            f"{directory} has weights whose shapes are not those of its config.json: {_some(wrong)}; correct "
            "vocab_size, id2label (one name an output), numbers of experts and the sizes of layers, or save "
            "the model again: heads cut in place need sizes that say so"
        )


def _require_one_each(directory: Path, names: Iterable[str], own: set[str], base_model_prefix: str) -> None:
    """Refuse two tensors for one weight: which of them transformers takes depends on their order."""
    given: dict[str, str] = {}
    for name in names:
        short = name.removeprefix(f"{base_model_prefix}.")
        short = re.sub(
            r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", short)
        )
        if short in given and not {name, given[short]} <= own:
            raise CheckpointError(
                f"{directory} holds {given[short]} and {name}, which are one weight of its network; "
                "delete one"
            )
        given[short] = name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
