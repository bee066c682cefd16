"""The packed encoder: neighbours do not matter, what stays in fp32, router losses, saving and loading."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from fewshard_kernels import MoeStats
from fewshard_models import FewshardTextConfig, FewshardTextForSequenceClassification
from fewshard_models.checkpoint import save_checkpoint
from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.text import pack
from fewshard_models.text.attention import attention_layout, packed_attention

CPU = torch.device("cpu")


def make_model(num_experts: int = 0, **fields) -> FewshardTextForSequenceClassification:
    torch.manual_seed(1)
    config = FewshardTextConfig(
        **{
            "vocab_size": 100,
            "embedding_size": 16,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 24,
            "max_position_embeddings": 64,
            "num_experts": num_experts,
            "num_labels": 3,
            **fields,
        }
    )
    model = FewshardTextForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def make_items(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(1, 100, (length,), generator=generator).tolist() for length in lengths]


def moe_stats_of(model, items) -> list[MoeStats]:
    with torch.inference_mode():
        return model.forward_packed(pack(items, None, CPU)).moe_stats


def logits_of(model, items):
    with torch.inference_mode():
        return model.forward_packed(pack(items, None, CPU)).logits


@pytest.mark.parametrize(("num_experts", "routing"), [(0, "token"), (4, "token"), (4, "request")])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_item_does_not_depend_on_its_neighbours(num_experts, routing, pooling):
    model = make_model(num_experts, pooling=pooling, routing=routing)
    items = make_items([1, 7, 7, 30, 64, 3, 12, 7])
    together = logits_of(model, items)
    alone = torch.cat([logits_of(model, [item]) for item in items])
    backwards = logits_of(model, items[::-1]).flip(0)
    assert together.std(dim=0).min() > 0.01
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together, backwards, atol=1e-5, rtol=1e-5)


def test_a_request_reads_one_expert_a_layer():
    model, items = make_model(4, routing="request"), make_items([9, 14, 6, 30, 2])
    alone = [moe_stats_of(model, [item]) for item in items]
    for layers in alone:
        assert all((stats.expert_rows > 0).sum() == 1 for stats in layers)
    chosen = {tuple(int(stats.expert_rows.argmax()) for stats in layers) for layers in alone}
    assert len(chosen) > 1
    for index, stats in enumerate(moe_stats_of(model, items)):
        for field, together in stats._asdict().items():
            apart = sum(getattr(layers[index], field) for layers in alone)
            torch.testing.assert_close(together, apart, atol=1e-3, rtol=1e-4)
        assert stats.expert_rows.sum() == 61
        assert stats.expert_probability.sum().item() == pytest.approx(61, abs=1e-3)


def test_request_routing_learns_its_router():
    model = make_model(4, routing="request")
    model.forward_packed(pack(make_items([60, 60]), None, CPU)).logits.sum().backward()
    assert all(layer.ffn.router.grad.abs().sum() > 0 for layer in model.layers)


@pytest.mark.parametrize("num_experts", [0, 4])
def test_padded_interface_equals_packed(num_experts):
    model = make_model(num_experts)
    items = make_items([4, 9, 2])
    input_ids = torch.zeros(3, 9, dtype=torch.int64)
    mask = torch.zeros(3, 9, dtype=torch.int64)
    for row, item in enumerate(items):
        input_ids[row, : len(item)] = torch.tensor(item)
        mask[row, : len(item)] = 1
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids, mask).logits, logits_of(model, items))


def test_segments_change_the_answer():
    model = make_model(type_vocab_size=2)
    with torch.inference_mode():
        first = model.forward_packed(pack([[5, 6, 7]], [[0, 0, 0]], CPU)).logits
        second = model.forward_packed(pack([[5, 6, 7]], [[0, 1, 1]], CPU)).logits
    assert (first - second).abs().max() > 1e-3


def stats_of(rows: list[int], probability: list[float]) -> MoeStats:
    return MoeStats(torch.tensor(rows), torch.tensor(probability), torch.tensor(0.0), torch.tensor(60.0))


def test_router_loss_follows_its_two_equations():
    model = make_model(4, router_aux_loss_coef=1.0, router_z_loss_coef=0.1)
    balanced = stats_of([5, 5, 5, 5], [5.0, 5.0, 5.0, 5.0])
    collapsed = stats_of([20, 0, 0, 0], [20.0, 0.0, 0.0, 0.0])
    assert model.router_loss([balanced]).item() == pytest.approx(1.0 + 0.1 * 60 / 20)
    assert model.router_loss([collapsed]).item() == pytest.approx(4.0 + 0.1 * 60 / 20)
    assert model.router_loss([balanced, collapsed]).item() == pytest.approx(2.5 + 0.1 * 60 / 20)


def test_router_loss_reaches_every_router():
    model = make_model(4)
    model.router_loss(model.forward_packed(pack(make_items([60, 60]), None, CPU)).moe_stats).backward()
    assert all(layer.ffn.router.grad.abs().sum() > 0 for layer in model.layers)


def test_loss_needs_labels_and_adds_router_losses():
    dense, moe = make_model(), make_model(4)
    ids = torch.tensor(make_items([6, 6]))
    labels = torch.tensor([0, 2])
    assert dense(ids).loss is None
    out = moe(ids, labels=labels)
    plain = torch.nn.functional.cross_entropy(out.logits, labels)
    assert out.loss > plain


@pytest.mark.parametrize("num_experts", [0, 4])
def test_saved_and_loaded_by_the_auto_class(num_experts, tmp_path):
    model = make_model(num_experts)
    save_checkpoint(model, tmp_path, torch.float32)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    items = make_items([5, 11])
    torch.testing.assert_close(logits_of(loaded, items), logits_of(model, items), atol=0, rtol=0)


def test_half_precision_keeps_head_and_router_in_fp32(tmp_path):
    model = make_model(4)
    save_checkpoint(model, tmp_path)
    loaded = load_checkpoint(tmp_path, torch.bfloat16).model
    assert loaded.classifier.weight.dtype == torch.float32
    assert loaded.pooler.weight.dtype == torch.float32
    assert loaded.layers[0].ffn.router.dtype == torch.float32
    assert loaded.layers[0].ffn.w1.dtype == torch.bfloat16
    items = make_items([5, 40, 11])
    assert (logits_of(loaded, items) - logits_of(model, items)).abs().max() < 6e-2


@pytest.mark.parametrize(
    "lengths", [[1], [16, 31], [31] * 9, [2, 5, 16, 17, 31, 33, 50, 90, 256], [40, 3, 15, 15, 64, 130]]
)
def test_items_made_longer_attend_to_their_own_rows_alone(lengths):
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths) + 2, 3 * 16)
    with torch.inference_mode():
        together = packed_attention(qkv, attention_layout(lengths, qkv.device), 4)
    assert together.shape == (len(qkv), 16)
    assert torch.equal(together[-2:], torch.zeros(2, 16))
    for item, part, out in zip(lengths, qkv[:-2].split(lengths), together[:-2].split(lengths), strict=True):
        query, key, value = part.view(item, 3, 4, 4).permute(1, 2, 0, 3)
        weights = (query @ key.transpose(1, 2) / 2).softmax(-1)
        torch.testing.assert_close(
            out, (weights @ value).transpose(0, 1).reshape(item, 16), atol=1e-5, rtol=0
        )


def test_items_are_made_longer_where_that_pays():
    lengths = [5] * 40 + [23] * 20 + [33]
    with torch.no_grad():
        layout = attention_layout(lengths, torch.device("cpu"))
        few = attention_layout([5, 23], torch.device("cpu"))
    recorded = attention_layout(lengths, torch.device("cpu"))
    assert [(group.num_items, group.length) for group in layout.groups] == [(40, 16), (20, 32), (1, 33)]
    assert [(group.num_items, group.length) for group in recorded.groups] == [(40, 5), (20, 23), (1, 33)]
    assert recorded.rows is None
    assert few.rows is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_same_where_gradients_are_recorded(dtype):
    torch.manual_seed(0)
    qkv = torch.randn(7, 3 * 16).to(dtype)
    layout, width = (
        attention_layout([2, 2, 3], qkv.device),
        {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype],
    )
    recorded = qkv.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = packed_attention(recorded, layout, 4)
    assert out.dtype == dtype
    torch.testing.assert_close(out, packed_attention(qkv, layout, 4), atol=width, rtol=0)
    out.float().sum().backward()
    assert recorded.grad.abs().sum() > 0
