"""Shares of experts by slice, against counting each text alone."""

import numpy as np
import pytest
import torch

from fewshard_models.evaluation.slices import most_unlike, routing_shares
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification, pack


@pytest.mark.parametrize("moe_layers", [None, [1]])
def test_shares_are_those_of_the_expert_layers(moe_layers):
    torch.manual_seed(0)
    config = FewshardTextConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=8,
        num_experts=4,
        moe_layers=moe_layers,
        initializer_range=0.5,
    )
    model = FewshardTextForSequenceClassification(config).eval()
    texts = [torch.randint(50, (length,)).tolist() for length in (3, 9, 5, 4)]
    shares = routing_shares(model, texts, {"all": [0, 1, 2, 3], "short": [0, 3]})
    counts = np.zeros((len(config.expert_layers), 4))
    with torch.inference_mode():
        for row in (0, 3):
            stats = model.forward_packed(pack([texts[row]], None, torch.device("cpu"))).moe_stats
            counts += np.stack([layer.expert_rows.numpy() for layer in stats])
    np.testing.assert_allclose(shares["short"], counts / counts.sum(1, keepdims=True))
    assert shares["all"].shape == counts.shape


def test_the_most_unlike_slice_is_named_with_the_share_that_moves():
    whole = np.array([[0.5, 0.5], [0.2, 0.8]])
    shares = {"same": whole, "other": np.array([[0.5, 0.5], [0.6, 0.4]])}
    assert most_unlike(shares, whole) == ("other", pytest.approx(0.4))
