"""Our text encoder with a classification head, on packed tokens; dense and MoE share all other layers."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput

from fewshard_kernels import MoeStats, rounded
from fewshard_models.losses import classification_loss
from fewshard_models.text.attention import AttentionLayout, attention_layout, packed_attention
from fewshard_models.text.configuration import FewshardTextConfig
from fewshard_models.text.feed_forward import DenseFeedForward, MoeFeedForward
from fewshard_models.text.layers import Dropout, Linear
from fewshard_models.text.packing import PackedTokens, mean_of_items, pack_padded, with_rows


class PackedOutput(NamedTuple):
    """Outputs of one pass.

    logits: fp32 [num_items, num_labels].
    hidden_states: the embeddings and each layer's output, [T, H] each.
    moe_stats: statistics of each MoE layer, in order.
    """

    logits: Tensor
    hidden_states: list[Tensor]
    moe_stats: list[MoeStats]


class Embeddings(nn.Module):
    def __init__(self, config: FewshardTextConfig) -> None:
        super().__init__()
        embedding_size = config.embedding_size or config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, embedding_size)
        self.word_projection = (
            None
            if embedding_size == config.hidden_size
            else Linear(embedding_size, config.hidden_size, bias=False)
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = (
            nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size else None
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, packed: PackedTokens, num_rows: int) -> Tensor:
        """[num_rows, H]: the tokens' embeddings, then rows of zeros."""
        words = with_rows(self.word_embeddings(packed.input_ids), num_rows)
        if self.word_projection is not None:
            words = self.word_projection(words)
        words = words[: packed.num_tokens]
        embedded = words + self.position_embeddings(packed.position_ids())
        if self.token_type_embeddings is not None:
            types = packed.token_type_ids
            embedded = embedded + self.token_type_embeddings(
                torch.zeros_like(packed.input_ids) if types is None else types
            )
        return with_rows(self.dropout(self.norm(embedded)), num_rows)

    def prepare_for_inference(self) -> None:
        if self.word_projection is not None:
            self.word_projection.pack()


class Attention(nn.Module):
    def __init__(self, config: FewshardTextConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = Linear(config.hidden_size, 3 * config.attention_size)
        self.output = Linear(config.attention_size, config.hidden_size)

    def forward(self, hidden: Tensor, layout: AttentionLayout) -> Tensor:
        out: Tensor = self.output(packed_attention(self.qkv(hidden), layout, self.num_heads))
        return out

    def prepare_for_inference(self) -> None:
        self.qkv.pack()
        self.output.pack()


class EncoderLayer(nn.Module):
    def __init__(self, config: FewshardTextConfig, index: int) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn = MoeFeedForward(config) if index in config.expert_layers else DenseFeedForward(config)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden: Tensor, packed: PackedTokens, layout: AttentionLayout
    ) -> tuple[Tensor, MoeStats | None]:
        hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, layout)))
        out, stats = self.ffn(hidden, packed)
        return self.ffn_norm(hidden + self.dropout(out)), stats


class FewshardTextForSequenceClassification(PreTrainedModel):
    """Classifies a text or a pair. `forward` is transformers' interface; the engine uses `forward_packed`."""

    config_class = FewshardTextConfig
    base_model_prefix = ""
    # The head and the router decide: rounding them to 16 bits costs accuracy and saves nothing.
    _keep_in_fp32_modules_strict = ["classifier", "pooler", "router"]  # noqa: RUF012

    def __init__(self, config: FewshardTextConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            [EncoderLayer(config, index) for index in range(config.num_hidden_layers)]
        )
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if config.pooler_act else None
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MoeFeedForward):
            for parameter in (module.router, module.w1, module.w2):
                nn.init.normal_(parameter, std=self.config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """`input_ids` [N, L] right-padded. Returns logits [N, num_labels] and, given `labels`, the loss
        including the router losses."""
        packed = pack_padded(input_ids, attention_mask, token_type_ids)
        out = self.forward_packed(packed)
        loss = None
        if labels is not None:
            loss = classification_loss(out.logits, labels, self.config) + self.router_loss(out.moe_stats)
        return SequenceClassifierOutput(loss=loss, logits=out.logits)

    def forward_packed(self, packed: PackedTokens) -> PackedOutput:
        """One pass over a packed batch; logits in the order of `packed.lengths`."""
        hidden = self.embeddings(packed, self._num_rows(packed))
        layout = attention_layout(packed.lengths, hidden.device)
        hidden_states, moe_stats = [hidden[: packed.num_tokens]], []
        for layer in self.layers:
            hidden, stats = layer(hidden, packed, layout)
            hidden_states.append(hidden[: packed.num_tokens])
            if stats is not None:
                moe_stats.append(stats)
        return PackedOutput(self._head(self._pool(hidden_states[-1], packed)), hidden_states, moe_stats)

    def _num_rows(self, packed: PackedTokens) -> int:
        """The number of tokens, rounded up if linear layers are packed: oneDNN recompiles each product for a
        row count that it has not seen lately, which can take as long as the whole batch (docs/log.md)."""
        layer = next(iter(self.layers), None)
        uses_packed = isinstance(layer, EncoderLayer) and layer.attention.qkv.usable is not None
        return rounded(packed.num_tokens) if uses_packed else packed.num_tokens

    def prepare_for_inference(self) -> None:
        """Switch to eval mode and, on a CPU, pack linear layers and experts into its fastest layouts.

        Call it after the model is loaded, cast and moved. Packed copies take the linear layers' memory once
        more and up to three times the experts' memory; none is made where plain weights are fastest.
        """
        self.eval()
        for module in self.modules():
            if isinstance(module, Embeddings | Attention | DenseFeedForward | MoeFeedForward):
                module.prepare_for_inference()

    def router_loss(self, moe_stats: list[MoeStats]) -> Tensor | float:
        """Load-balancing loss (Switch Transformer, equation 4) and router z-loss (ST-MoE, equation 5),
        weighted by the config and averaged over the layers."""
        if not moe_stats:
            return 0.0
        losses = []
        for stats in moe_stats:
            tokens = stats.expert_rows.sum() / self.config.num_experts_per_tok
            share = stats.expert_rows / stats.expert_rows.sum()
            balance = self.config.num_experts * (share * stats.expert_probability / tokens).sum()
            z_loss = stats.squared_log_z / tokens
            losses.append(
                self.config.router_aux_loss_coef * balance + self.config.router_z_loss_coef * z_loss
            )
        return torch.stack(losses).mean()

    def _pool(self, hidden: Tensor, packed: PackedTokens) -> Tensor:
        if self.config.pooling == "mean":
            return mean_of_items(hidden, packed)
        lengths = packed.lengths_tensor
        return hidden[lengths.cumsum(0) - lengths].float()

    def _head(self, pooled: Tensor) -> Tensor:
        with torch.autocast(pooled.device.type, enabled=False):
            if self.pooler is not None:
                pooled = ACT2FN[self.config.pooler_act](self.pooler(self.dropout(pooled)))
            return F.linear(self.dropout(pooled), self.classifier.weight, self.classifier.bias)
