"""The requests a load test sends; pure values, no Locust (which would patch this process)."""

import math
import random
from pathlib import Path

import numpy as np
import pytest

from fewshard_loadtest import payloads
from fewshard_loadtest.arrivals import Stage, poisson_arrivals, sine, spikes, staged_arrivals
from fewshard_loadtest.errors import ScenarioError


def test_our_own_sentences_are_many_and_of_mixed_length() -> None:
    texts = payloads.own_texts().items
    lengths = sorted(len(text.split()) for text in texts)
    assert len(texts) == len(set(texts)) == 60
    assert all(text == text.strip() != "" for text in texts)
    assert lengths[0] == 1
    assert lengths[30] < 15
    assert lengths[-1] > 40


def test_sst2_is_read_without_quoting_and_stripped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2/dev.tsv").write_text(
        'sentence\tlabel\na " bare quote \t1\nsecond\t0\n', encoding="utf-8"
    )
    monkeypatch.setenv("FEWSHARD_DATA", str(tmp_path))
    payload = payloads.load("sst2")
    assert payload.items == ('a " bare quote', "second")
    assert payload.labels == ("positive", "negative")
    monkeypatch.delenv("FEWSHARD_DATA")
    with pytest.raises(ScenarioError, match="needs FEWSHARD_DATA"):
        payloads.load("sst2")


@pytest.mark.parametrize(
    ("name", "text", "texts", "labels"),
    [
        ("a.txt", "one\ntwo\n", ("one", "two"), ()),
        ("a.csv", 'text,label\n"a, b",x\nc,y\n', ("a, b", "c"), ("x", "y")),
        ("a.tsv", 'sentence\tlabel\na "b\t1\n', ('a "b',), ("1",)),
        ("a.jsonl", '{"text": "é", "label": 1}\n{"text": "b"}\n', ("é", "b"), ()),
        ("a.jsonl", '{"text": "a", "label": 1.0}\n{"text": "b", "label": 0}\n', ("a", "b"), ("1", "0")),
        ("a.csv", "\ufefftext,label\r\nfine,1\r\nbad,0\r\n", ("fine", "bad"), ("1", "0")),
        ("a.csv", 'text,label\n"two\nlines",1\n', ("two\nlines",), ("1",)),
        ("a.CSV", f"text\n{'w1 ' * 70_000}\n", (("w1 " * 70_000).strip(),), ()),
    ],
)
def test_a_file_of_the_users_own(
    tmp_path: Path, name: str, text: str, texts: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    payload = payloads.load(str(tmp_path / name))
    assert (payload.items, payload.labels) == (texts, labels)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "text,label\na,1\n,0\nb,1\n  ,0\n", "2 of 4 rows hold no text .rows 2, 4."),
        ("a.csv", "words\na\n", "1 of 1 rows hold no text .rows 1.; each needs `text` or `sentence`"),
        ("a.jsonl", '{"text": "a"}\nnot json\n[1]\n', "2 of 3 rows hold no text .rows 2, 3."),
        ("a.txt", "", "holds no row"),
        ("a.xls", "a", "there is no payload .*a.xls'; there are: texts, images, sst2, cifar10, a .txt file"),
        ("a.npz", "not a zip", "cannot be read as images"),
        ("a.npz", "", "cannot be read as images"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "1 of 1 rows hold no text"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError, match=words):
        payloads.load(str(tmp_path / name))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".jsonl"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_file_in_another_encoding_is_refused_with_the_remedy(
    tmp_path: Path, suffix: str, encoding: str
) -> None:
    (tmp_path / f"a{suffix}").write_text("text,label\ncafé “fine”,1\n", encoding=encoding)
    with pytest.raises(ScenarioError, match="is not UTF-8; convert it, as `iconv"):
        payloads.load(str(tmp_path / f"a{suffix}"))


def test_a_folder_is_no_payload(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(ScenarioError, match="cannot be read: Is a directory"):
        payloads.load(str(tmp_path / "a.csv"))


def test_rows_without_a_label_are_remarked_on(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,1\nb,\n", encoding="utf-8")
    payload = payloads.load(str(tmp_path / "a.csv"))
    assert (payload.labels, payload.remark) == ((), "1 of its 2 rows have no label")


def test_a_damaged_archive_of_images_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ScenarioError, match="cannot be read as images"):
        payloads.load(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("labels", [[0, 2], [0.5, 1.0], [[0, 1]]])
def test_labels_of_images_must_be_numbers_of_classes(tmp_path: Path, labels: list[object]) -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, classes=np.array([b"cat", b"dog"]))
    with pytest.raises(ScenarioError, match="labels"):
        payloads.load(str(tmp_path / "a.npz"))


def test_images_come_from_a_file_with_their_classes(tmp_path: Path) -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "a.npz", images=images, labels=[1, 0], classes=np.array([b"cat", b"dog"]))
    payload = payloads.load(str(tmp_path / "a.npz"))
    assert payload.labels == ("dog", "cat")
    assert np.array_equal(payload.items, images)
    np.savez(tmp_path / "b.npz", images=images.astype(float))
    with pytest.raises(ScenarioError, match=r"must be uint8 \[N,H,W,3\], not float64"):
        payloads.load(str(tmp_path / "b.npz"))


def test_random_images_differ_and_are_smooth() -> None:
    image = payloads.random_image(random.Random(1))
    assert len(image) == 32 * 32 * 3
    assert image[:3] == image[3:6]
    assert image != payloads.random_image(random.Random(2))


def test_arrivals_are_poisson() -> None:
    schedule = poisson_arrivals(rate=50.0, seed=1)
    times = [next(schedule) for _ in range(20_000)]
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(1 / 50, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.05), "exponential gaps have their mean as deviation"
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.02)


def test_arrivals_follow_their_seed() -> None:
    assert next(poisson_arrivals(1, 1)) == next(poisson_arrivals(1, 1)) != next(poisson_arrivals(1, 2))


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_rate_must_be_positive(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        next(poisson_arrivals(rate, 1))


def test_staged_arrivals_follow_their_rates_and_end() -> None:
    stages = (Stage(100.0, 5.0), Stage(50.0, 0.0), Stage(100.0, 20.0))
    times = [*staged_arrivals(stages, 1)]
    counts = [sum(a <= t < b for t in times) for a, b in ((0, 100), (100, 150), (150, 250))]
    assert counts[0] == pytest.approx(500, abs=90)
    assert counts[1] == 0
    assert counts[2] == pytest.approx(2000, abs=180)
    assert times == sorted(times)
    assert times[-1] < 250


def test_a_day_rises_and_falls() -> None:
    stages = sine(low=10, high=30, period_s=48, duration_s=96)
    rates = [stage.rate for stage in stages]
    assert len(stages) == 96
    assert min(rates) == pytest.approx(10, abs=0.1)
    assert max(rates) == pytest.approx(30, abs=0.1)
    assert sum(rates) / 96 == pytest.approx(20)
    assert rates[0] < rates[12] < rates[24] > rates[36]


def test_spikes_come_at_the_end_of_each_stretch() -> None:
    assert spikes(5, 50, every_s=10, spike_s=2, duration_s=20) == (Stage(8, 5), Stage(2, 50)) * 2
