"""Models that label tokens answer as transformers' token-classification pipeline does, long texts too."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import transformers as tf

import fewshard_models
from fewshard_core.values import TextInput, TokenLabels, Window
from fewshard_models.classifier.entities import AGGREGATIONS, Entity, entities_of
from fewshard_models.errors import CheckpointError, UnusableInput
from small_checkpoints import change_config
from token_checkpoints import FAMILIES, LABELS, LONG, MAX_TOKENS, SENTENCES, write_tokens

OVERLAP = (MAX_TOKENS - 2) // 4


class Pair:
    """Our model, and the pipeline over the same directory."""

    def __init__(self, directory):
        self.directory = directory
        self.model = fewshard_models.load(directory, device="cpu", dtype="fp32")
        self.tokenizer = tf.AutoTokenizer.from_pretrained(directory)
        self.network = tf.AutoModelForTokenClassification.from_pretrained(directory).eval()

    def pipeline(self, text, aggregation, **options):
        asked = {"aggregation_strategy": aggregation, **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ask = tf.pipeline("token-classification", model=self.network, tokenizer=self.tokenizer, **asked)
            found = ask(text)
        name = "entity" if aggregation == "none" else "entity_group"
        return [(each[name], each["start"], each["end"], float(each["score"])) for each in found]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    return Pair(write_tokens(tmp_path_factory.mktemp(request.param), request.param))


def same(ours, theirs):
    assert [(each.label, each.start, each.end) for each in ours] == [each[:3] for each in theirs]
    np.testing.assert_allclose([each.score for each in ours], [each[3] for each in theirs], atol=1e-3)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_texts_of_one_window_are_labelled_as_by_the_pipeline(pair, aggregation):
    texts = [text for text in SENTENCES if len(pair.tokenizer(text)["input_ids"]) <= MAX_TOKENS]
    texts += [text[:20] for text in SENTENCES] + ["", " ", "x"]
    ours = pair.model.entities(texts, aggregation)
    theirs = [pair.pipeline(text, aggregation) for text in texts]
    for found, expected in zip(ours, theirs, strict=True):
        same(found, expected)
    labels = {each[0] for found in theirs for each in found}
    assert len(labels) > 1, "all is labelled alike: this proves nothing"


@pytest.mark.parametrize("aggregation", [each for each in AGGREGATIONS if each != "none"])
def test_long_texts_are_read_in_windows_as_by_the_pipeline(pair, aggregation):
    for text in (LONG, *SENTENCES):
        (found,) = pair.model.entities([text], aggregation)
        same(found, pair.pipeline(text, aggregation, stride=OVERLAP))
    assert max(each.end for each in found) > 0
    (item,) = pair.model.prepare([TextInput(LONG)])
    assert len(item.tokens.windows) > 3
    assert all(len(ids.ids) <= MAX_TOKENS for ids in item.features)


def test_each_token_of_a_long_text_is_told_once(pair):
    (found,) = pair.model.entities([LONG], "none", ignore_labels=())
    places = [(each.start, each.end) for each in found]
    assert places == sorted(set(places))
    whole = pair.tokenizer(LONG, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert set(places) == set(whole)
    assert places[-1][1] == len(LONG)


def test_what_is_left_out_can_be_chosen(pair):
    for ignored in ((), ("PER", "O"), ("LOC",)):
        (found,) = pair.model.entities([SENTENCES[3]], "simple", ignored)
        same(found, pair.pipeline(SENTENCES[3], "simple", ignore_labels=list(ignored), stride=OVERLAP))


def test_neighbours_in_a_batch_change_nothing(pair):
    texts = [*SENTENCES, LONG, "x"]
    together = pair.model.entities(texts, "average")
    for text, found in zip(texts, together, strict=True):
        (alone,) = pair.model.entities([text], "average")
        same(found, [(each.label, each.start, each.end, each.score) for each in alone])


def test_the_model_says_what_it_is(pair):
    assert (pair.model.info.task, pair.model.info.labels) == ("tokens", tuple(LABELS))
    assert pair.model.info.architecture.endswith("ForTokenClassification")
    with pytest.raises(TypeError, match="labels tokens; ask entities"):
        pair.model(["x"])


def test_the_preprocessor_works_without_torch(pair, tmp_path):
    stored = tmp_path / "preprocessor"
    stored.write_bytes(pickle.dumps(pair.model.preprocessor))
    script = (
        "import pickle, sys, pathlib\n"
        "from fewshard_core.values import TextInput\n"
        "preprocessor = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "(item,) = preprocessor.items([TextInput(sys.argv[2])], True)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "print([window.starts.tolist() for window in item.tokens.windows])\n"
    )
    told = subprocess.run([sys.executable, "-c", script, stored, LONG], capture_output=True, text=True)
    (item,) = pair.model.prepare([TextInput(LONG)])
    assert told.stdout == f"{[window.starts.tolist() for window in item.tokens.windows]}\n", told.stderr


def test_what_it_cannot_label_is_unusable(pair):
    with pytest.raises(UnusableInput, match="item 1: this model labels the tokens of one text"):
        pair.model.prepare([TextInput("a"), TextInput("a", "b")])
    with pytest.raises(
        UnusableInput, match=f"over the model's {MAX_TOKENS} tokens; shorten it, or set trunc"
    ):
        pair.model.prepare([TextInput("a"), TextInput(LONG)], truncate=False)
    with pytest.raises(UnusableInput, match="half of a character"):
        pair.model.prepare([TextInput("\ud800")])


def test_a_head_that_does_not_fit_is_refused(tmp_path):
    write_tokens(tmp_path)
    change_config(tmp_path, id2label={"0": "O", "1": "X"}, label2id={"O": 0, "X": 1})
    with pytest.raises(CheckpointError):
        fewshard_models.load(tmp_path, device="cpu", dtype="fp32")


def test_a_tokenizer_in_python_tells_no_places(tmp_path):
    tf.CanineTokenizer().save_pretrained(tmp_path)
    config = tf.CanineConfig(num_labels=2, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    tf.CanineForTokenClassification(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not tell where in a text its tokens are"):
        fewshard_models.load(tmp_path, device="cpu", dtype="fp32")


def window(*places, continues=()):
    starts, ends = zip(*places, strict=True)
    rows = np.arange(len(places))
    parts = [number in continues for number in range(len(places))]
    return Window(rows, np.array(starts), np.array(ends), np.array(parts))


def test_of_overlapping_entities_the_longest_is_kept():
    """Two windows see "New York City": the first its end cut off, the second all of it."""
    first, second = window((0, 3), (4, 8)), window((4, 8), (9, 13))
    logits = np.full((4, 5), -9, np.float32)
    logits[0, 0] = logits[1, 3] = logits[2, 3] = logits[3, 4] = 9
    tokens = TokenLabels("New York City", (first, second), (2, 2), logits)
    assert [(each.label, each.start, each.end) for each in entities_of(tokens, LABELS)] == [("LOC", 4, 13)]
    raw = entities_of(tokens, LABELS, "none", is_raw=True)
    assert raw == [Entity("B-LOC", 9.0, 4, 8), Entity("I-LOC", 9.0, 9, 13)]
