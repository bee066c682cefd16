"""`fewshard quantize`: what it writes is served in 8 bits, close to fp32, and answers each item alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import fewshard_models
from fewshard_core.formats import FORMATS
from fewshard_kernels import Quantisation
from fewshard_models.card import load_card
from fewshard_models.checkpoint import resolve
from fewshard_models.data import data_dir
from fewshard_models.data.cifar10 import MEAN, STD
from fewshard_models.data.items import Items, read_items
from fewshard_models.errors import CheckpointError, DataError
from fewshard_models.evaluation.quantisation import quantise
from fewshard_models.evaluation.tasks import held_out
from fewshard_models.image import FewshardImageConfig, FewshardImageForImageClassification
from fewshard_models.image_preprocessing import ImagePreprocessing
from fewshard_models.quantised.calibration import RULES, Sample
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification
from fewshard_models.text.observers import signs_of, watched_experts
from small_checkpoints import TEXTS, WORDS, write_text, write_tokenizer

pytestmark = pytest.mark.skipif(
    not FORMATS["int8"].multiplies("cpu"), reason="this CPU cannot multiply 8 bits (VNNI)"
)
MORE_TEXTS = [" ".join(np.random.default_rng(n).choice(WORDS, 2 + n % 12)) for n in range(60)]


@pytest.fixture(autouse=True)
def real_data(monkeypatch, tmp_path, request):
    """The data folder of the slow tests; the others see none, so that nothing is evaluated on it."""
    if request.node.get_closest_marker("data") is None:
        monkeypatch.setenv("FEWSHARD_DATA", str(tmp_path / "no-data"))
        return None
    try:
        return data_dir()
    except DataError as error:
        pytest.skip(str(error))


def texts_file(folder: Path, rows=MORE_TEXTS) -> Path:
    file = folder / "texts.tsv"
    file.write_text("\n".join(["text", *rows]) + "\n", encoding="utf-8")
    return file


def made(source: Path, out: Path, limit=40):
    return quantise(source, out, lambda model: (Items("texts.tsv", MORE_TEXTS, None), None), limit)


def own_checkpoint(directory: Path, **fields) -> Path:
    torch.manual_seed(0)
    config = FewshardTextConfig(
        vocab_size=write_tokenizer(directory),
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.2,
        id2label={0: "ant", 1: "bee", 2: "cow"},
        label2id={"ant": 0, "bee": 1, "cow": 2},
        **{"num_hidden_layers": 2} | fields,
    )
    FewshardTextForSequenceClassification(config).save_pretrained(directory)
    return directory


KINDS = {
    "bert": lambda folder: write_text(folder),
    "roberta": lambda folder: write_text(folder, tf.RobertaConfig),
    "distilbert": lambda folder: write_text(
        folder, tf.DistilBertConfig, dim=32, n_layers=2, n_heads=4, hidden_dim=48
    ),
    "bert, GELU that is not fused": lambda folder: write_text(folder, hidden_act="gelu_new"),
    "narrow embeddings": lambda folder: own_checkpoint(folder, embedding_size=16, pooling="mean"),
    "experts": lambda folder: own_checkpoint(folder, num_experts=4, moe_intermediate_size=24),
    "experts of requests, two each": lambda folder: own_checkpoint(
        folder, num_experts=4, num_experts_per_tok=2, routing="request", moe_layers=[1], norm_topk_prob=True
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_in_8_bits_is_close_and_answers_each_item_alone(kind, tmp_path):
    source, out = KINDS[kind](tmp_path / "source"), tmp_path / "out"
    found = made(source, out)
    exact, coded = fewshard_models.load(source, "cpu", "fp32"), fewshard_models.load(out)
    assert coded.info.dtype == "int8"
    coded.self_check()
    texts = [*TEXTS, *MORE_TEXTS]
    wanted, logits = exact(texts).logits, coded(texts).logits
    spread = wanted.std()
    assert np.abs(logits - wanted).mean() < 0.15 * spread
    assert found.compared.largest_difference > 0
    alone = np.concatenate([coded([text]).logits for text in texts])
    assert np.abs(alone - logits).mean() < 0.02 * spread
    assert (alone.argmax(1) == logits.argmax(1)).mean() > 0.95


def test_weights_are_stored_and_held_in_8_bits(tmp_path):
    source = own_checkpoint(tmp_path / "source", num_experts=2, moe_layers=[1], embedding_size=16)
    made(source, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    large = {name for name, each in load_file(source / "model.safetensors").items() if each.ndim > 1}
    words = "embeddings.weight", "word_projection", "classifier", "pooler", "router", ".b1", ".b2"
    kept = {name for name in large if any(word in name for word in words)}
    assert {name for name, each in stored.items() if each.dtype == torch.int8} == large - kept
    held = fewshard_models.load(tmp_path / "out").network.state_dict()
    assert {name for name, each in held.items() if each.dtype == torch.int8} == large - kept


def test_the_same_checkpoint_runs_dequantised_in_other_formats(tmp_path):
    """As on a GPU, or a CPU without VNNI: its inputs are not rounded then, so it is closer to its source."""
    source, out = write_text(tmp_path / "source"), tmp_path / "out"
    made(source, out)
    wanted = fewshard_models.load(source, "cpu", "fp32")(MORE_TEXTS).logits
    errors = {
        dtype: np.abs(fewshard_models.load(out, "cpu", dtype)(MORE_TEXTS).logits - wanted).mean()
        for dtype in ("fp32", "int8")
    }
    assert 0 < errors["fp32"] < errors["int8"]


def test_a_cpu_without_the_format_dequantises_or_refuses(tmp_path, monkeypatch, caplog):
    source, out = write_text(tmp_path / "source"), tmp_path / "out"
    made(source, out)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    model = fewshard_models.load(out)
    assert model.info.dtype in ("fp32", "bf16")
    model.self_check()  # its golden answers were given in 8 bits
    assert "cannot multiply int8" in caplog.text
    with pytest.raises(CheckpointError, match="cannot multiply int8, which takes a CPU with VNNI"):
        fewshard_models.load(out, dtype="int8")
    with pytest.raises(CheckpointError, match="this CPU cannot multiply 8 bits: it lacks VNNI"):
        made(source, tmp_path / "again")


def test_an_unquantised_checkpoint_is_refused_with_the_command(tmp_path):
    source = write_text(tmp_path / "source")
    with pytest.raises(CheckpointError, match=f"run fewshard quantize {source} --data FILE --out DIR"):
        fewshard_models.load(source, "cpu", "int8")


def test_the_card_says_how_it_was_made_and_what_it_lost(tmp_path):
    source, out = own_checkpoint(tmp_path / "source"), tmp_path / "out"
    wanted = fewshard_models.load(source, "cpu", "fp32")
    labels = wanted(MORE_TEXTS).logits.argmax(axis=1).tolist()
    quantise(source, out, lambda model: (Items("mine.tsv", MORE_TEXTS, labels), None), 20)
    said = load_card(out).extra["quantised"]
    assert (said["format"], said["data"], said["rows"], said["layers"]) == ("int8", "mine.tsv", 20, 8)
    assert said["rule"] in RULES
    compared = said["compared"]
    assert (compared["data"], compared["rows"], compared["calibrated_on"]) == ("mine.tsv", 40, False)
    assert compared["accuracy_fp32"] == 1.0
    assert compared["accuracy"] == pytest.approx(1 - compared["flips"] / 40)
    assert fewshard_models.load(out).info.card["extra"]["quantised"]["data"] == "mine.tsv"


def test_without_other_rows_it_compares_on_those_of_the_calibration_and_says_so(tmp_path):
    found = made(write_text(tmp_path / "source"), tmp_path / "out", limit=500)
    assert (found.rows, found.compared.rows, found.compared.calibrated_on) == (60, 60, True)


def test_experts_that_calibration_never_chose_still_answer(tmp_path):
    source = own_checkpoint(tmp_path / "source", num_experts=16, moe_intermediate_size=8)
    one = Items("one.tsv", ["sun"], None)
    quantise(source, tmp_path / "out", lambda model: (one, None), 1)
    coded = fewshard_models.load(tmp_path / "out")
    assert np.isfinite(coded(MORE_TEXTS).logits).all()


def test_what_observers_see_of_an_8_bit_network_is_in_fractions(tmp_path):
    for name, fields in {"dense": {}, "experts": {"num_experts": 4}}.items():
        source, out = own_checkpoint(tmp_path / name, **fields), tmp_path / f"{name}-out"
        made(source, out)
        networks = [
            fewshard_models.load(path, "cpu", dtype) for path, dtype in ((source, "fp32"), (out, "int8"))
        ]
        ids = [
            networks[0]
            .preprocessor.items([networks[0].preprocessor.to_input(TEXTS[3])], True)[0]
            .features.ids
        ]
        exact, coded = (signs_of(each.network, ids) for each in networks)
        assert np.abs(exact.sparsity - coded.sparsity).max() < 0.15
        with watched_experts(networks[1].network) as chosen:
            networks[1]([TEXTS[3]])
        assert len(chosen) == 2 * (name == "experts")


def test_an_unusable_row_is_left_out_and_a_file_of_them_refused(tmp_path):
    source = write_text(tmp_path / "source")
    given = Items("mixed.tsv", ["sun and rain", "wind \ud800"], None)
    assert quantise(source, tmp_path / "out", lambda model: (given, None), 10).rows == 1
    with pytest.raises(DataError, match=r"mixed\.tsv has no usable rows"):
        quantise(source, tmp_path / "other", lambda model: (given.at([1]), None), 10)
    assert not (tmp_path / "other").exists()


def test_other_architectures_and_directories_that_exist_are_refused(tmp_path):
    source = write_text(tmp_path / "source")
    with pytest.raises(CheckpointError, match="exists already"):
        made(source, source)
    other = write_text(tmp_path / "other", tf.MPNetConfig)
    with pytest.raises(CheckpointError, match=r"MPNetFor.* cannot be quantised: .*dtype auto"):
        made(other, tmp_path / "out")
    made(source, tmp_path / "out")
    with pytest.raises(CheckpointError, match="is quantised already"):
        made(tmp_path / "out", tmp_path / "twice")
    empty = own_checkpoint(tmp_path / "empty", num_hidden_layers=0, pooling="mean")
    with pytest.raises(CheckpointError, match="has no layer to quantise"):
        made(empty, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("layers.0.ffn.up.weight_scale", None, "layers.0.ffn.up.weight"),
        ("layers.0.ffn.up.input_scale", None, "lacks layers.0.ffn.up.input_scale"),
        ("layers.0.ffn.up.input_scale", torch.tensor([0.0]), "must hold numbers above 0"),
        ("layers.0.ffn.up.input_zero_point", torch.tensor([300], dtype=torch.int32), "must lie in 0..255"),
    ],
)
def test_a_damaged_8_bit_checkpoint_is_refused_by_name(name, change, said, tmp_path):
    made(own_checkpoint(tmp_path / "source"), tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors | ({} if change is None else {name: change}), file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=said):
        fewshard_models.load(tmp_path / "out", dtype="int8")


def test_a_format_that_is_not_known_is_refused(tmp_path):
    made(own_checkpoint(tmp_path / "source"), tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    fields = json.loads(file.read_text())
    file.write_text(
        json.dumps(fields | {"quantization_config": {"quant_method": "fewshard", "format": "int3"}})
    )
    with pytest.raises(CheckpointError, match="quantised: fewshard, int3, which Fewshard does not read"):
        fewshard_models.load(tmp_path / "out")


def test_rules_cut_rare_values_or_keep_them():
    sample = Sample()
    sample.add(torch.linspace(-1, 1, 100_000))
    sample.add(torch.tensor([500.0]))
    codes = {name: rule(sample) for name, rule in RULES.items()}
    assert codes["whole range"].scale == pytest.approx(501 / 255, rel=1e-3)
    assert codes["range without tails"].scale == pytest.approx(2 / 255, rel=0.05)
    assert codes["whole range"].zero_point == Quantisation.of_range(-1, 500).zero_point


class TestFiles:
    LABELS = ("ant", "bee")

    def test_labels_are_names_or_numbers_or_none(self, tmp_path):
        file = tmp_path / "a.tsv"
        file.write_text("text\tlabel\nsun\tbee\n\nrain\t0\n")
        assert read_items(file, "text", self.LABELS) == Items("a.tsv", ["sun", "rain"], [1, 0])
        file.write_text("text\nsun\n")
        assert read_items(file, "text", self.LABELS) == Items("a.tsv", ["sun"], None)

    def test_images_are_files_beside_it_or_arrays(self, tmp_path):
        file = tmp_path / "a.tsv"
        file.write_text("file\nb.png\n")
        assert read_items(file, "image", self.LABELS).inputs == [tmp_path / "b.png"]
        np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=[0, 1])
        found = read_items(tmp_path / "a.npz", "image", self.LABELS)
        assert (len(found), found.labels, found.inputs[0].shape) == (2, [0, 1], (4, 4, 3))

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("text\n", "no rows under its header"),
            ("text\tlabel\nsun\tbee\nrain\n", "line 3: expected"),
            ("text\tlabel\nsun\tcow\n", "line 2: no label 'cow'; there are: ant, bee"),
            ("text\tlabel\nsun\t2\n", "line 2: no label '2'"),
        ],
    )
    def test_wrong_lines_are_named(self, content, said, tmp_path):
        file = tmp_path / "a.tsv"
        file.write_text(content)
        with pytest.raises(DataError, match=said):
            read_items(file, "text", self.LABELS)

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"pictures": np.zeros(3)}, "with an array `images`"),
            ({"images": np.zeros((2, 4, 4), np.uint8)}, "images must be uint8"),
            (
                {"images": np.zeros((1, 4, 4, 3), np.uint8), "labels": [7]},
                "labels must be 1 numbers from 0 to 1",
            ),
        ],
    )
    def test_wrong_arrays_are_named(self, arrays, said, tmp_path):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match=said):
            read_items(tmp_path / "a.npz", "image", self.LABELS)

    def test_other_files_are_refused(self, tmp_path):
        with pytest.raises(DataError, match="no file"):
            read_items(tmp_path / "none.tsv", "text", self.LABELS)
        np.savez(tmp_path / "a.npz", images=np.zeros((1, 4, 4, 3), np.uint8))
        with pytest.raises(DataError, match="holds arrays, and the model is of task text"):
            read_items(tmp_path / "a.npz", "text", self.LABELS)
        (tmp_path / "b.tsv").write_bytes(b"text\n\xff\n")
        with pytest.raises(DataError, match="not UTF-8"):
            read_items(tmp_path / "b.tsv", "text", self.LABELS)


def images(count: int, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def cnn(directory: Path) -> Path:
    """A small CNN with norms as after training, some of them negative."""
    torch.manual_seed(1)
    config = FewshardImageConfig(
        stem_channels=8,
        stage_channels=[16, 24],
        block_channels=[16, 8],
        id2label={n: f"c{n}" for n in range(10)},
        label2id={f"c{n}": n for n in range(10)},
    )
    network = FewshardImageForImageClassification(config)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.3, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    block = network.stages[0].block[0].norm
    block.weight.data[::3] *= -1
    block.weight.data[1] = 0
    network.save_pretrained(directory)
    ImagePreprocessing(32, 32, MEAN, STD).save(directory)
    return directory


@pytest.mark.parametrize("count", [1, 5, 33])
def test_a_cnn_in_8_bits_is_close_and_answers_each_image_alone(count, tmp_path):
    source, out = cnn(tmp_path / "source"), tmp_path / "out"
    found = quantise(source, out, lambda model: (Items("images.npz", images(80), None), None), 40)
    assert (found.layers, found.compared.rows) == (7, 40)
    exact, coded = fewshard_models.load(source, "cpu", "fp32"), fewshard_models.load(out)
    assert coded.info.dtype == "int8"
    coded.self_check()
    given = images(count, seed=7)
    wanted, logits = exact(given).logits, coded(given).logits
    assert np.abs(logits - wanted).max() < 0.15 * np.abs(wanted).max()
    alone = np.concatenate([coded([each]).logits for each in given])
    np.testing.assert_allclose(alone, logits, atol=1e-4)
    weights = [each for name, each in coded.network.state_dict().items() if "conv.weight" in name]
    assert {each.dtype for each in weights} == {torch.int8}


REAL = [("sst2-dense", 872), ("sst2-moe", 872), ("cifar10-dense", 10_000), ("cifar10-dst", 10_000)]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "rows"), REAL)
def test_bundled_models_lose_little_and_answer_alone_as_in_batches(name, rows, tmp_path, real_data):
    """All held-out items; alone and in mixed batches the first 400."""
    source, out = resolve(f"zoo:{name}"), tmp_path / name
    files = {
        "text": (real_data / "sst2/train.tsv", real_data / "sst2/dev.tsv"),
        "image": (real_data / "cifar10/train-0.npz", real_data / "cifar10/test.npz"),
    }

    def read(model):
        task, labels = model.info.task, model.info.labels
        data, others = (read_items(file, task, labels) for file in files[task])
        return data, others

    quantise(source, out, read)
    before, after = load_card(source), load_card(out)
    assert after.num_examples == rows
    # Three points in a thousand, and of few rows one standard deviation of as many flips as there are.
    flips = after.extra["quantised"]["compared"]["flips"]
    allowed = 0.003 + flips**0.5 / min(rows, 2000)
    assert before.accuracy - after.accuracy <= allowed
    coded = fewshard_models.load(out)
    given = held_out(coded.info.task, 400).inputs
    together = coded(given).logits
    alone = np.concatenate([coded([each]).logits for each in given])
    margins = np.sort(together, axis=1)[:, -1] - np.sort(together, axis=1)[:, -2]
    is_tie = margins <= 2 * FORMATS["int8"].tolerance
    assert np.abs(alone - together).max() <= FORMATS["int8"].tolerance
    assert ((alone.argmax(1) == together.argmax(1)) | is_tie).all()
    assert (alone.argmax(1) == together.argmax(1)).mean() > 0.99
