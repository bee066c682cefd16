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

from fewshard_models.checkpoint import Checkpoint
from fewshard_models.classifier.load import load, load_checkpoint
from fewshard_models.classifier.packed_text import PackedText
from fewshard_models.classifier.padded_text import PaddedText
from fewshard_models.errors import CheckpointError
from fewshard_models.evaluation.accuracy import GOLDEN_TEXTS, drawn_images, evaluate
from fewshard_models.evaluation.tasks import label_order
from fewshard_models.image_preprocessing import ImagePreprocessing

TEXTS = GOLDEN_TEXTS[:9]
PAIRS = [("a warm film", "it is hard to hate"), ("dull", "two hours of noise, and then some more of it")]


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


@pytest.fixture(scope="module")
def bert(tmp_path_factory, small_encoder):
    """A small BERT, which has token types and runs in our own encoder."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertForSequenceClassification.from_pretrained(small_encoder).save_pretrained(folder)
    AutoTokenizer.from_pretrained(small_encoder).save_pretrained(folder)
    return folder


def test_packed_logits_do_not_depend_on_batches_or_order():
    model = load("zoo:sst2-dense", "cpu", "fp32")
    assert isinstance(model, PackedText)
    whole = model(TEXTS).logits
    pairs = [model(TEXTS[at : at + 2]).logits for at in range(0, len(TEXTS), 2)]
    np.testing.assert_allclose(np.concatenate(pairs), whole, atol=1e-4)
    np.testing.assert_allclose(model(TEXTS[::-1]).logits[::-1], whole, atol=1e-4)
    card = model.checkpoint.card
    assert card is not None
    golden = model([each.input for each in card.golden]).logits
    np.testing.assert_allclose(golden, [each.logits for each in card.golden], atol=1e-3)


def test_padding_changes_no_logits(deberta):
    model = load(deberta, "cpu", "fp32")
    assert isinstance(model, PaddedText)
    alone = np.concatenate([model([text]).logits for text in TEXTS])
    np.testing.assert_allclose(model(TEXTS).logits, alone, atol=1e-4)


def test_checkpoints_of_others_are_evaluated(deberta, vit, data):
    found = evaluate(deberta)
    assert len(found.labels) == 80
    images = evaluate(vit, limit=7)
    assert (images.dataset, len(images.labels)) == ("CIFAR-10 test", 7)


def test_labels_are_matched_by_name(deberta, data):
    model = load(deberta, "cpu", "fp32")
    assert label_order(model.checkpoint, ("negative", "positive")) == [1, 0]
    assert label_order(model.checkpoint, ("bad", "good")) == [0, 1]
    logits = model(TEXTS).logits
    assert (logits[:, [1, 0]].argmax(axis=1) == 1 - logits.argmax(axis=1)).all()


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
            load(target, "cpu", "fp32")


def test_images_are_run_channels_last_and_in_order():
    model = load("zoo:cifar10-dense", "cpu", "fp32")
    images = drawn_images(5)
    pairs = [model(images[at : at + 2]).logits for at in range(0, 5, 2)]
    np.testing.assert_allclose(np.concatenate(pairs), model(np.stack(images)).logits, atol=1e-4)
    assert model.network.stages[0].down.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_our_encoder_and_the_padded_one_agree_on_bert(bert):
    packed = load(bert, "cpu", "fp32")
    assert isinstance(packed, PackedText)
    network = BertForSequenceClassification.from_pretrained(bert).eval()
    padded = PaddedText(Checkpoint(bert, network, "text", None), packed.info)
    inputs = [*TEXTS, *PAIRS]
    np.testing.assert_allclose(packed(inputs).logits, padded(inputs).logits, atol=1e-4)
    assert np.abs(packed(PAIRS).logits - packed([" ".join(pair) for pair in PAIRS]).logits).max() > 1e-4
