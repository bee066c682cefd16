"""The tiny tier's recipes from start to card on made-up data, and their parts."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from fewshard_models.card import load_card
from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.data.cifar10 import load_cifar10
from fewshard_models.data.sst2 import load_sst2
from fewshard_models.errors import DataError, RecipeError
from fewshard_models.evaluation.accuracy import Evaluation, evaluate, routing_margin
from fewshard_models.image import FewshardImageConfig, FewshardImageForImageClassification
from fewshard_models.recipes import registry, sst2, tiers
from fewshard_models.recipes.images import ImageBatches, normalise, shift, whiten
from fewshard_models.recipes.registry import Recipe, train
from fewshard_models.recipes.student import factorise, trim_vocabulary
from fewshard_models.recipes.texts import TextBatches, joined_texts
from fewshard_models.recipes.workspace import Workspace
from fewshard_models.sparsify.moe import cluster


def test_moe_recipe_runs_from_teacher_to_card(data, small_encoder, tmp_path):
    work = Workspace(tmp_path, init=small_encoder, epochs=2)
    card = train("sst2-moe", work, tmp_path / "out")
    dense = load_card(tmp_path / "tiny" / "sst2-dense" / "model")
    assert dense is not None
    assert (card.kind, dense.kind) == ("moe", "dense")
    assert card.macs < 0.6 * dense.macs
    assert card.num_examples == 80
    assert len(card.golden) == 8
    assert load_card(tmp_path / "out") == card
    assert evaluate(tmp_path / "out").accuracy == pytest.approx(card.accuracy, abs=1e-5)
    model = load_checkpoint(tmp_path / "out").model
    assert model.config.num_experts == 4
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_image_recipe_runs_to_its_card_and_goes_on_where_it_stopped(data, tmp_path):
    card = train("cifar10-dense", Workspace(tmp_path, epochs=3), tmp_path / "out")
    assert card.task == "image"
    assert card.num_examples == 60
    again = train("cifar10-dense", Workspace(tmp_path, epochs=3), tmp_path / "again")
    assert [golden.logits for golden in again.golden] == [golden.logits for golden in card.golden]
    with pytest.raises(RecipeError, match="use another --run-dir"):
        train("cifar10-dense", Workspace(tmp_path, epochs=4), tmp_path / "other")


def test_without_an_encoder_the_papers_architectures_are_saved_unmeasured(data, tmp_path, monkeypatch):
    small = {**tiers.BERT_BASE, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    tuning = replace(tiers.PAPER_DENSE, architecture={**small, "intermediate_size": 64})
    moe = replace(tiers.PAPER_MOE, teaching=replace(tiers.PAPER_MOE.teaching, tuning=tuning))
    dense_recipe = Recipe("paper/sst2-dense", "", partial(sst2.train_fine_tuned, tuning))
    moe_recipe = Recipe("paper/sst2-moe", "", partial(sst2.train_student, moe))
    monkeypatch.setattr(registry, "RECIPES", {r.name: r for r in (dense_recipe, moe_recipe)})
    for recipe in (dense_recipe, moe_recipe):
        card = train(recipe.name, Workspace(tmp_path), tmp_path / recipe.model)
        assert card.accuracy is None
        assert card.accuracy_in_words == "not measured: needs pretrained weights"
        assert load_card(tmp_path / recipe.model) == card
    config = load_checkpoint(tmp_path / "sst2-moe").model.config
    assert (config.num_experts, config.expert_size, config.num_hidden_layers) == (21, 2304, 6)


def test_other_settings_or_another_encoder_are_refused(data, small_encoder, tmp_path, monkeypatch):
    train("sst2-narrow", Workspace(tmp_path, init=small_encoder, epochs=1, limit=64), tmp_path / "out")
    other = tmp_path / "other"
    shutil.copytree(small_encoder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.2}))
    before = (tmp_path / "out" / "card.json").read_bytes()
    with pytest.raises(RecipeError, match="begun with other settings: init was"):
        train("sst2-narrow", Workspace(tmp_path, init=other, epochs=1, limit=64), tmp_path / "out")
    student = replace(tiers.TINY_NARROW.student, label_weight=0.5)
    with pytest.raises(RecipeError, match=r"recipe\.student\.label_weight was 0\.2, is 0\.5"):
        sst2.train_student(
            replace(tiers.TINY_NARROW, student=student),
            Workspace(tmp_path / "tiny", init=small_encoder, epochs=1, limit=64),
            tmp_path / "out",
        )
    assert (tmp_path / "out" / "card.json").read_bytes() == before


def test_recipes_say_what_they_lack(data, tmp_path):
    with pytest.raises(RecipeError, match="there are tiny/sst2-dense"):
        train("sst3", Workspace(tmp_path), tmp_path / "out")
    with pytest.raises(RecipeError, match="--init"):
        train("sst2-dense", Workspace(tmp_path), tmp_path / "out")


def test_data_errors_name_file_and_line(tmp_path, monkeypatch):
    monkeypatch.delenv("FEWSHARD_DATA", raising=False)
    with pytest.raises(DataError, match="set FEWSHARD_DATA"):
        load_sst2("dev")
    monkeypatch.setenv("FEWSHARD_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"no file .*dev\.tsv"):
        load_sst2("dev")
    with pytest.raises(DataError, match=r"no test\*\.npz"):
        load_cifar10("test")
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "dev.tsv").write_text('sentence\tlabel\na "good one\t1\nbad row\n')
    with pytest.raises(DataError, match=r"dev\.tsv, line 3"):
        load_sst2("dev")
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10" / "test.npz", images=np.zeros((2, 32, 32, 3), np.uint8), labels=[1, 10])
    with pytest.raises(DataError, match=r"test\.npz, row 1: the label is 10; it lies outside"):
        load_cifar10("test")


def test_f1_is_the_mean_over_classes():
    found = Evaluation("x", predictions=np.array([0, 0, 1, 1, 1]), labels=np.array([0, 1, 1, 1, 0]))
    assert found.accuracy == pytest.approx(0.6)
    assert found.f1 == pytest.approx((0.5 + 2 / 3) / 2)


def test_text_batches_hold_every_row_once_an_epoch_and_repeat():
    ids = [[1] * (1 + row % 5) for row in range(50)]
    batches = TextBatches(ids, list(range(50)), batch_size=4, seed=3)
    first, again, second = (
        [batch.labels.tolist() for batch in batches.epoch(number)] for number in (0, 0, 1)
    )
    assert first == again
    assert first != second
    assert sorted(label for labels in first for label in labels) == list(range(50))
    assert len(first) == batches.steps_per_epoch()
    assert sum(len(set(batch.packed.lengths)) > 1 for batch in batches.epoch(0)) <= 3
    for batch in batches.epoch(0):
        assert list(batch.packed.lengths) == sorted(batch.packed.lengths)
        assert [ids[row] for row in batch.rows] == [[1] * length for length in batch.packed.lengths]


def test_joined_texts_are_two_texts_and_not_long():
    texts = ["a good film", "dull", " ".join(["long"] * 31)]
    joined = joined_texts(texts, 40)
    assert len(joined) == 40
    assert joined == joined_texts(texts, 40)
    assert all(len(text.split()) <= 32 for text in joined)
    assert all(sum(text.startswith(each) for each in texts) == 1 for text in joined)


def test_image_batches_mirror_each_image_every_other_epoch():
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    batches = ImageBatches(images, np.arange(20), batch_size=10, max_shift=0, seed=0)
    plain = normalise(torch.from_numpy(images))
    mirrored = []
    for number in (0, 1):
        flags = np.empty(20, dtype=bool)
        for pixels, labels in batches.epoch(number):
            for image, label in zip(pixels, labels.tolist(), strict=True):
                flags[label] = not torch.equal(image, plain[label])
                assert torch.equal(image.flip(2) if flags[label] else image, plain[label])
        mirrored.append(flags)
    assert (mirrored[0] ^ mirrored[1]).all()
    assert 0 < mirrored[0].sum() < 20


def test_shift_moves_by_at_most_the_limit():
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(40, 1, 8, 8).contiguous()
    moved = shift(image, 2, np.random.default_rng(0))
    centres = {int(value) for value in moved[:, 0, 4, 4]}
    allowed = {8 * y + x for y in range(2, 7) for x in range(2, 7)}
    assert centres <= allowed
    assert len(centres) > 10


def test_whitened_patches_have_unit_covariance():
    torch.manual_seed(0)
    images = torch.randn(64, 3, 16, 16).cumsum(3) / 4
    stem = FewshardImageForImageClassification(FewshardImageConfig()).stem
    with torch.no_grad():
        whiten(stem, images, epsilon=0.0)
        out = (
            torch.nn.functional.conv2d(images, stem.weight, stem.bias)[:, :12].permute(1, 0, 2, 3).flatten(1)
        )
    torch.testing.assert_close(out @ out.T / out.shape[1], torch.eye(12), atol=1e-2, rtol=0)


def test_trimmed_vocabulary_encodes_everything_it_can_spell(small_encoder):
    full = AutoTokenizer.from_pretrained(small_encoder)
    trimmed = trim_vocabulary(full, ["the film is good", "the plot is good"], 70)
    assert len(trimmed.tokenizer) == 70
    assert trimmed.tokenizer.tokenize("the good film") == ["the", "good", "film"]
    assert "[UNK]" not in trimmed.tokenizer.tokenize("dull actor")
    for new, old in enumerate(trimmed.kept.tolist()):
        assert trimmed.tokenizer.convert_ids_to_tokens(new) == full.convert_ids_to_tokens(old)


def test_factors_give_back_a_matrix_of_their_rank():
    torch.manual_seed(0)
    embeddings = torch.randn(50, 6) @ torch.randn(6, 20)
    left, right = factorise(embeddings, torch.randint(0, 100, (50,)), 6)
    torch.testing.assert_close(left @ right.T, embeddings, atol=1e-4, rtol=1e-4)


def test_clusters_are_balanced_and_the_router_finds_them():
    torch.manual_seed(0)
    centres = torch.randn(4, 24) * 3
    points = (centres[:, None] + torch.randn(4, 100, 24) * 0.3 + 5).flatten(0, 1)
    router, owner = cluster(points, 4)
    assert torch.bincount(owner, minlength=4).tolist() == [100] * 4
    assert all(len(owner[100 * group : 100 * group + 100].unique()) == 1 for group in range(4))
    assert (points @ router.T).softmax(-1).max(-1).values.median() > 0.85


def test_routing_margin_is_the_smallest_gap(data, small_encoder, tmp_path):
    from fewshard_models import FewshardTextConfig, FewshardTextForSequenceClassification

    config = FewshardTextConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_experts=2, num_attention_heads=2
    )
    model = FewshardTextForSequenceClassification(config).eval()
    with torch.no_grad():
        model.layers[0].ffn.router.zero_()
    assert routing_margin(model, [1, 2, 3]) == 0.0
    with torch.no_grad():
        model.layers[0].ffn.router[0] = 100 * torch.ones(16)
        model.layers[0].attention_norm.bias.fill_(1.0)
    assert routing_margin(model, [1, 2, 3]) == pytest.approx(1.0, abs=1e-3)


def test_card_that_cannot_be_read_is_said(tmp_path):
    from fewshard_models.errors import CheckpointError

    (tmp_path / "card.json").write_text(json.dumps({"name": "x"}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_card(tmp_path)
