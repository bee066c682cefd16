"""Any checkpoint as a function from inputs to logits: packed, padded and images; label orders and errors."""

import shutil

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from fewshard_models.checkpoint import ZOO
from fewshard_models.classifier import PackedText, PaddedText, classifier
from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.errors import CheckpointError
from fewshard_models.evaluation.accuracy import GOLDEN_TEXTS, drawn_images, evaluate
from fewshard_models.evaluation.tasks import label_order
from fewshard_models.image.preprocessing import ImagePreprocessing

TEXTS = GOLDEN_TEXTS[:9]


@pytest.fixture(scope="module")
def deberta(tmp_path_factory, small_encoder):
    """A text classifier that is not ours and cannot be converted."""
    folder = tmp_path_factory.mktemp("deberta")
    tokenizer = AutoTokenizer.from_pretrained(small_encoder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        type_vocab_size=0,
        pad_token_id=0,
        id2label={0: "POSITIVE", 1: "NEGATIVE"},
        label2id={"POSITIVE": 0, "NEGATIVE": 1},
    )
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """An image classifier that is not ours."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        num_labels=10,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ImagePreprocessing(32, 32, (0.5,) * 3, (0.5,) * 3).save(folder)
    return folder


def test_packed_logits_do_not_depend_on_batches_or_order():
    model = classifier(load_checkpoint(ZOO / "sst2-dense"))
    assert isinstance(model, PackedText)
    whole = model.logits(TEXTS)
    np.testing.assert_allclose(model.logits(TEXTS, batch_size=2), whole, atol=1e-4)
    np.testing.assert_allclose(model.logits(TEXTS[::-1])[::-1], whole, atol=1e-4)
    card = load_checkpoint(ZOO / "sst2-dense").card
    assert card is not None
    golden = model.logits([each.input for each in card.golden])
    np.testing.assert_allclose(golden, [each.logits for each in card.golden], atol=1e-3)


def test_padding_changes_no_logits(deberta):
    model = classifier(load_checkpoint(deberta))
    assert isinstance(model, PaddedText)
    alone = np.concatenate([model.logits([text]) for text in TEXTS])
    np.testing.assert_allclose(model.logits(TEXTS), alone, atol=1e-4)


def test_checkpoints_of_others_are_evaluated(deberta, vit, data):
    found = evaluate(deberta)
    assert len(found.labels) == 80
    images = evaluate(vit, limit=7)
    assert (images.dataset, len(images.labels)) == ("CIFAR-10 test", 7)


def test_labels_are_matched_by_name(deberta, data):
    checkpoint = load_checkpoint(deberta)
    assert label_order(checkpoint, ("negative", "positive")) == [1, 0]
    assert label_order(checkpoint, ("bad", "good")) == [0, 1]
    flipped = classifier(checkpoint).logits(TEXTS)[:, [1, 0]].argmax(axis=1)
    assert (flipped == 1 - classifier(checkpoint).logits(TEXTS).argmax(axis=1)).all()


def test_another_number_of_labels_is_refused(deberta):
    with pytest.raises(CheckpointError, match="tells 2 classes apart, the data has 3"):
        label_order(load_checkpoint(deberta), ("a", "b", "c"))


def test_a_checkpoint_without_tokenizer_or_preprocessor_is_said(deberta, vit, tmp_path):
    for source, name in ((deberta, "tokenizer"), (vit, "preprocessor_config")):
        target = tmp_path / name
        shutil.copytree(source, target)
        for file in [*target.glob("tokenizer*"), *target.glob("preprocessor*")]:
            file.unlink()
        with pytest.raises(CheckpointError, match=name):
            classifier(load_checkpoint(target))


def test_images_are_run_channels_last_and_in_order():
    model = classifier(load_checkpoint(ZOO / "cifar10-dense"))
    images = drawn_images(5)
    np.testing.assert_allclose(model.logits(images, batch_size=2), model.logits(np.stack(images)), atol=1e-4)
    assert model.model.stages[0].down.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_our_encoder_and_the_padded_one_agree_on_bert(small_encoder, tmp_path):
    torch.manual_seed(0)
    BertForSequenceClassification.from_pretrained(small_encoder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(small_encoder).save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    packed = classifier(checkpoint)
    assert isinstance(packed, PackedText)
    padded = PaddedText(checkpoint)
    padded.model = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    np.testing.assert_allclose(packed.logits(TEXTS), padded.logits(TEXTS), atol=1e-4)
