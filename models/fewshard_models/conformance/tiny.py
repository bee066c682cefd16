"""Tiny configurations and random weights of transformers' architectures. Used by the comparisons."""

from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

LABELS = {"id2label": {0: "ant", 1: "bee", 2: "cow"}, "label2id": {"ant": 0, "bee": 1, "cow": 2}}
NOISE = 0.15
MAX_TOKENS = 64

_NAMES_BY_SIZE: dict[int, str] = {
    32: "hidden_size d_model dim n_embd emb_dim embedding_size word_embed_proj_dim input_embedding_size "
    "output_embedding_size true_hidden_size intra_bottleneck_size d_latents pooler_hidden_size "
    "prediction_head_size out_hidden_size entity_emb_size cross_attention_hidden_size "
    "shape_embed_dim pronunciation_embed_dim image_size input_size dim_model_base",
    64: "intermediate_size d_ff encoder_ffn_dim decoder_ffn_dim ffn_dim ffn_hidden_size d_inner dff "
    "hidden_dim feed_forward_size moe_intermediate_size shared_expert_intermediate_size "
    "max_position_embeddings n_positions max_seq_len num_hash_buckets",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers depth "
    "num_feedforward_networks num_self_attends_per_block num_key_value_heads num_kv_heads "
    "linear_num_key_heads num_experts_per_tok moe_topk n_shared_experts num_random_blocks",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "num_self_attention_heads num_cross_attention_heads index_n_heads linear_num_value_heads rotary_dim "
    "num_experts num_local_experts n_routed_experts index_topk mamba_dt_rank qk_rope_head_dim",
    8: "head_dim d_head d_kv attention_head_size kv_channels v_head_dim linear_key_head_dim "
    "linear_value_head_dim index_head_dim qk_nope_head_dim num_latents attention_window patch_size "
    "mamba_d_state query_pre_attn_scalar",
    16: "q_lora_rank kv_lora_rank sliding_window window_size local_attention entity_vocab_size",
    1: "n_group topk_group first_k_dense_replace",
}
_SIZES = {name: size for size, names in _NAMES_BY_SIZE.items() for name in names.split()}
_TOKENS = {
    "bos_token_id": 0, "cls_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "sep_token_id": 2,
    "mask_token_id": 4, "decoder_start_token_id": 2, "forced_eos_token_id": 2, "pad_index": 1, "unk_index": 3,
    "mask_index": 4, "eod_token_id": 2,
}  # fmt: skip

_LATENT = {"num_key_value_heads": 4, "head_dim": 4}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_BOXES = {"coordinate_size": 6, "shape_size": 4}
SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "big_bird": {"block_size": 4, "num_random_blocks": 1},
    "bigbird_pegasus": {"block_size": 4, "num_random_blocks": 1},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2},
    "deepseek_v3": _LATENT,
    "esmc": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "layoutlmv3": _BOXES,
    "lilt": {"hidden_size": 48},
    "minicpm3": _LATENT,
    "ministral": {"head_dim": 8},
    "mistral4": {"num_key_value_heads": 4, "qk_nope_head_dim": 4},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen3_5": {"text_config": _HYBRID},
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "reformer": {
        "axial_pos_embds_dim": (8, 24),
        "axial_pos_shape": (8, 8),
        "attn_layers": ("local", "lsh"),
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "t5": {"decoder_start_token_id": 1},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "n_mamba_heads": 2,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
    },
    "zamba2": {
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid"],
        "n_mamba_heads": 4,
        "hybrid_layer_ids": [2],
        "chunk_size": 8,
        "adapter_rank": 4,
    },
}
"""Fields of architectures whose sizes depend on one another in their own way."""


def tiny_config(model_type: str, vocabulary: int, **fields: Any) -> PreTrainedConfig:
    """Return a configuration of this type with all sizes reduced, for a tokenizer of `vocabulary` tokens."""
    kind = CONFIG_MAPPING[model_type]
    reduced = _reduced(kind(), vocabulary)
    for changes in (SPECIAL.get(model_type, {}), LABELS, fields):
        reduced = _merged(reduced, changes)
    return kind(**reduced)


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return fields with changes; those of a nested configuration one by one."""
    nested = {name for name, value in changes.items() if name.endswith("_config") and isinstance(value, dict)}
    return {
        **fields,
        **{
            name: _merged(fields.get(name, {}), value) if name in nested else value
            for name, value in changes.items()
        },
    }


def _reduced(config: PreTrainedConfig, vocab_size: int) -> dict[str, Any]:
    """Return the fields of a default configuration that are sizes or token ids, reduced; nested ones too."""
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            found[name] = _reduced(value, vocab_size)
        elif name in _TOKENS:
            found[name] = _TOKENS[name]
        elif name in _SIZES and isinstance(value, int) and not isinstance(value, bool):
            found[name] = _SIZES[name]
        elif name == "vocab_size":
            found[name] = vocab_size
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            found[name] = vocab_size - 1
    return found


def shake(model: Any) -> Any:
    """Add noise to all weights, so that wrong answers differ from right ones. Returns the model."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * NOISE)
    return model.eval()
