"""Any sequence- or image-classification directory that transformers loads from safetensors also serves.

Small random checkpoints of nine families are made here; answers must equal transformers' own pipeline.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from fewshard_core.activation import activate
from fewshard_core.values import PixelArray, TextInput
from fewshard_models.classifier.packed_text import PackedText
from fewshard_models.classifier.padded_text import PaddedText
from fewshard_models.errors import UnusableInput
from fewshard_serve.backends.load import load_model
from fewshard_serve.errors import NotReady

WORDS = [
    "the",
    "a",
    "film",
    "movie",
    "is",
    "was",
    "not",
    "very",
    "good",
    "bad",
    "dull",
    "bright",
    "and",
    "but",
    "with",
    "without",
    "plot",
    "actor",
    "story",
    "of",
    "in",
]
TEXTS = [
    "the film is good",
    "a dull story without plot",
    "bad",
    "the actor is bright and the movie is not bad " * 3,
]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LABELS = {"id2label": {0: "red", 1: "green", 2: "blue"}, "label2id": {"red": 0, "green": 1, "blue": 2}}
GROUPED = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64}

TEXT_FAMILIES = {
    "bert": (tf.BertConfig, {**SMALL, "max_position_embeddings": 64}, PackedText),
    "distilbert": (
        tf.DistilBertConfig,
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
        PackedText,
    ),
    "roberta": (
        tf.RobertaConfig,
        {**SMALL, "max_position_embeddings": 66, "type_vocab_size": 1},
        PackedText,
    ),
    "deberta-v2": (
        tf.DebertaV2Config,
        {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 64},
        PaddedText,
    ),
    "modernbert": (tf.ModernBertConfig, {**SMALL, "max_position_embeddings": 64}, PaddedText),
    "mixtral": (tf.MixtralConfig, {**GROUPED, "num_local_experts": 4}, PaddedText),
    "qwen2-moe": (
        tf.Qwen2MoeConfig,
        {
            **GROUPED,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24,
        },
        PaddedText,
    ),
}


def make_tokenizer(directory: Path) -> int:
    """A small WordPiece tokenizer with BERT's special tokens; returns its vocabulary's size."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    ).save_pretrained(directory)
    return len(pieces)


def make_text_checkpoint(family: str, directory: Path, **fields) -> Path:
    config_class, sizes, _ = TEXT_FAMILIES[family]
    vocab_size = make_tokenizer(directory)
    # RoBERTa counts positions from its padding id, which a small vocabulary must not collide with.
    pad = 1 if family == "roberta" else 0
    config = config_class(**{"vocab_size": vocab_size, "pad_token_id": pad, **LABELS, **sizes, **fields})
    torch.manual_seed(7)
    model = tf.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # The usual 0.02 would leave all logits near zero, where errors hide.
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(directory)
    return directory


def pipeline_scores(directory: Path, inputs: list) -> np.ndarray:
    """transformers' own answers, one input at a time, in label order."""
    pipe = tf.pipeline("text-classification", model=str(directory), top_k=None, dtype=torch.float32)
    order = list(pipe.model.config.id2label.values())
    rows = [{found["label"]: found["score"] for found in pipe([item])[0]} for item in inputs]
    return np.array([[row[label] for label in order] for row in rows])


def served_scores(model, inputs: list[TextInput]) -> np.ndarray:
    logits = model.run(model.prepare(inputs)).logits
    return activate(logits, model.info.problem_type)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_text_family_answers_as_its_pipeline(family, tmp_path):
    directory = make_text_checkpoint(family, tmp_path)
    model = load_model("m", str(directory), "cpu", "fp32")
    assert isinstance(model, TEXT_FAMILIES[family][2])
    assert model.info.labels == ("red", "green", "blue")
    expected = pipeline_scores(directory, TEXTS)
    assert expected.std(axis=0).max() > 1e-3, (
        "the checkpoint answers everything alike, so the test proves nothing"
    )
    np.testing.assert_allclose(served_scores(model, [TextInput(text) for text in TEXTS]), expected, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2"])
def test_pairs_answer_as_the_pipeline(family, tmp_path):
    directory = make_text_checkpoint(family, tmp_path)
    model = load_model("m", str(directory), "cpu", "fp32")
    pairs = [("the film is good", "a dull story"), ("bad", "not very bad")]
    expected = pipeline_scores(directory, [{"text": a, "text_pair": b} for a, b in pairs])
    np.testing.assert_allclose(served_scores(model, [TextInput(a, b) for a, b in pairs]), expected, atol=1e-4)


@pytest.mark.parametrize(
    "problem_type", ["regression", "multi_label_classification", "single_label_classification"]
)
def test_activation_follows_the_problem_type(problem_type, tmp_path):
    directory = make_text_checkpoint("bert", tmp_path, problem_type=problem_type)
    model = load_model("m", str(directory), "cpu", "fp32")
    expected = pipeline_scores(directory, TEXTS)
    np.testing.assert_allclose(served_scores(model, [TextInput(text) for text in TEXTS]), expected, atol=1e-4)


def test_decoder_without_padding_token_still_serves_batches(tmp_path):
    directory = make_text_checkpoint("mixtral", tmp_path, pad_token_id=None)
    model = load_model("m", str(directory), "cpu", "fp32")
    together = served_scores(model, [TextInput(text) for text in TEXTS])
    alone = np.concatenate([served_scores(model, [TextInput(text)]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_image_family_answers_as_its_pipeline(family, tmp_path):
    torch.manual_seed(3)
    if family == "resnet":
        config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **LABELS)
    else:
        config = tf.ViTConfig(**SMALL, image_size=32, patch_size=8, **LABELS)
    model = tf.AutoModelForImageClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    tf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)

    from PIL import Image

    images = [np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), dtype=np.uint8) for i in range(4)]
    pipe = tf.pipeline("image-classification", model=str(tmp_path), dtype=torch.float32)
    expected = []
    for image in images:
        found = {row["label"]: row["score"] for row in pipe(Image.fromarray(image), top_k=3)}
        expected.append([found[label] for label in ("red", "green", "blue")])
    served = load_model("m", str(tmp_path), "cpu", "fp32")
    logits = served.run(served.prepare([PixelArray(image) for image in images])).logits
    scores = activate(logits, served.info.problem_type)
    assert np.std(expected, axis=0).max() > 1e-4
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_items_that_cannot_be_used_are_named(tmp_path):
    model = load_model("m", str(make_text_checkpoint("bert", tmp_path)), "cpu", "fp32")
    with pytest.raises(UnusableInput, match="item 1: this model classifies text"):
        model.prepare([TextInput("good"), PixelArray(np.zeros((4, 4, 3), np.uint8))])
    with pytest.raises(UnusableInput, match="item 1: 102 tokens, over the model's 64"):
        model.prepare([TextInput("good"), TextInput("good " * 100)], truncate=False)
    assert model.prepare([TextInput("good " * 100)])[0].num_tokens == 64
    assert model.prepare([TextInput("")])[0].num_tokens == 2


class TestBadCheckpoints:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        return make_text_checkpoint("bert", tmp_path)

    def refused(self, path: Path | str) -> str:
        with pytest.raises(NotReady) as caught:
            load_model("m", str(path), "cpu", "fp32")
        return str(caught.value)

    def test_missing_directory(self, tmp_path):
        assert "no checkpoint directory" in self.refused(tmp_path / "nowhere")

    def test_unknown_zoo_name(self):
        assert "the bundled zoo has no 'nothing'" in self.refused("zoo:nothing")

    def test_no_config(self, directory):
        (directory / "config.json").unlink()
        assert "no config.json" in self.refused(directory)

    def test_broken_config(self, directory):
        (directory / "config.json").write_text("{")
        assert "config.json cannot be used" in self.refused(directory)

    def test_truncated_weights(self, directory):
        weights = directory / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        assert "is damaged" in self.refused(directory)

    def test_no_weights(self, directory):
        (directory / "model.safetensors").unlink()
        assert "has no model.safetensors" in self.refused(directory)

    def test_pickle_weights(self, directory):
        (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
        assert "pickle weights only" in self.refused(directory)

    def test_missing_classifier(self, directory):
        from safetensors.torch import load_file, save_file

        weights = load_file(directory / "model.safetensors")
        save_file(
            {key: w for key, w in weights.items() if "classifier" not in key}, directory / "model.safetensors"
        )
        assert "lacks weights" in self.refused(directory)

    def test_not_a_classifier(self, directory):
        tf.BertModel(tf.BertConfig(**SMALL)).save_pretrained(directory)
        assert "Fewshard serves" in self.refused(directory)

    def test_no_tokenizer(self, directory):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (directory / name).unlink()
        assert "no usable tokenizer" in self.refused(directory)

    def test_cuda_where_there_is_none(self, directory):
        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
        with pytest.raises(NotReady, match="torch sees no CUDA device"):
            load_model("m", str(directory), "cuda", "fp32")
