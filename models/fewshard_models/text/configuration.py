"""Configuration of our text encoder, stored as a checkpoint's `config.json`."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class FewshardTextConfig(PreTrainedConfig):
    """A post-norm Transformer encoder with a classification head; dense, or MoE if `num_experts` > 0.

    embedding_size: width of the word embeddings if it differs from `hidden_size` (factorised as in ALBERT,
        Lan et al. 2019).
    head_dim: width of an attention head; set when heads were pruned.
    intermediate_size: units of the feed-forward network.
    moe_intermediate_size: units of each expert; `intermediate_size` by default.
    moe_layers: layers with experts; None for all.
    pooling: "cls" or "mean".
    pooler_act: activation of the dense layer before the classifier; None for no such layer.
    routing: whether each token chooses its experts, or each request (item) once per layer for all its tokens.
    sparsity_kind: "static" or "dynamic" if a sparsifier made the network.
    pads_unnumbered: whether the padding id takes no position, as in RoBERTa, of which it was converted.
    """

    model_type = "fewshard_text"

    vocab_size: int = 30522
    embedding_size: int | None = None
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    head_dim: int | None = None
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    pooling: str = "cls"
    pooler_act: str | None = "tanh"
    num_experts: int = 0
    moe_intermediate_size: int | None = None
    moe_layers: list[int] | None = None
    num_experts_per_tok: int = 1
    routing: Literal["token", "request"] = "token"
    norm_topk_prob: bool = False
    expert_dropout_prob: float | int = 0.0
    router_aux_loss_coef: float | int = 0.01
    router_z_loss_coef: float | int = 0.001
    sparsity_kind: str | None = None
    pads_unnumbered: bool = False

    @property
    def expert_size(self) -> int:
        """Units of each expert."""
        return self.moe_intermediate_size or self.intermediate_size

    @property
    def expert_layers(self) -> list[int]:
        """The layers that have experts, in order."""
        if not self.num_experts:
            return []
        return list(range(self.num_hidden_layers)) if self.moe_layers is None else sorted(self.moe_layers)

    @property
    def attention_size(self) -> int:
        """Width of all heads together."""
        return self.num_attention_heads * (self.head_dim or self.hidden_size // self.num_attention_heads)

    def count_macs(self, num_tokens: int) -> int:
        """MACs of one text of `num_tokens` tokens."""
        hidden, heads = self.hidden_size, self.attention_size
        projections = 4 * hidden * heads
        attention = 2 * num_tokens * heads
        num_moe = len(self.expert_layers)
        units = (self.num_hidden_layers - num_moe) * self.intermediate_size
        units += num_moe * self.num_experts_per_tok * self.expert_size
        router = num_moe * hidden * self.num_experts
        per_token = self.num_hidden_layers * (projections + attention) + 2 * hidden * units
        if self.embedding_size not in (None, hidden):
            per_token += self.embedding_size * hidden
        per_item: int = (hidden * hidden if self.pooler_act else 0) + hidden * self.num_labels
        per_item += router * (1 if self.routing == "request" else num_tokens)
        return num_tokens * per_token + per_item

    def describe_input(self, num_tokens: int) -> str:
        """The text whose MACs are counted."""
        return f"{num_tokens} tokens"
