"""Data files with something wrong: the error names the file and the line or row."""

import numpy as np
import pytest

from fewshard_models.data.cifar10 import load_cifar10
from fewshard_models.data.ood import load_review_sentences
from fewshard_models.data.sst2 import load_sst2
from fewshard_models.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSHARD_DATA", str(tmp_path))
    for name in ("sst2", "cifar10", "ood"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"good\t1\nno label\n", r"dev\.tsv, line 3: expected `sentence<TAB>0 or 1`"),
        (b"good\t1\nbad\t2\n", r"dev\.tsv, line 3: .*'2'"),
        (b"good\t1\n\nbad\t0\n", r"dev\.tsv, line 3"),
        (b" \t1\n", r"dev\.tsv, line 2"),
        (b"good\t1\tmore\n", r"dev\.tsv, line 2"),
        (b"good\t1\nb\xffd\t0\n", r"dev\.tsv, line 3: not UTF-8"),
        (b"", r"dev\.tsv has no rows"),
    ],
)
def test_bad_rows_of_sst2(folder, body, words):
    (folder / "sst2" / "dev.tsv").write_bytes(b"sentence\tlabel\n" + body)
    with pytest.raises(DataError, match=words):
        load_sst2("dev")


def test_sst2_rows_keep_bare_quotes_and_lose_outer_blanks(folder):
    (folder / "sst2" / "dev.tsv").write_bytes(b'sentence\tlabel\r\na "good one \t1\r\n"bad\t0\r\n')
    assert load_sst2("dev") == (['a "good one', '"bad'], [1, 0])


@pytest.mark.parametrize(
    ("row", "words"), [("good\t1\n", "line 3"), ("good\t7\timdb\n", "line 3"), ("good\t1\t\n", "line 3")]
)
def test_bad_rows_of_review_sentences(folder, row, words):
    (folder / "ood" / "review_sentences.tsv").write_text("sentence\tlabel\tdomain\nfine\t1\tyelp\n" + row)
    with pytest.raises(DataError, match=rf"review_sentences\.tsv, {words}"):
        load_review_sentences()


def test_review_sentences(folder):
    file = folder / "ood" / "review_sentences.tsv"
    with pytest.raises(DataError, match="no file"):
        load_review_sentences()
    file.write_text("sentence\tlabel\tdomain\nFine. \t1\tyelp\nBad!\t0\timdb\n")
    found = load_review_sentences()
    assert (found.texts, found.labels, found.domains) == (["Fine.", "Bad!"], [1, 0], ["yelp", "imdb"])


IMAGES = np.zeros((3, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES, "labels": [0, 9, 10]}, r"row 2: the label is 10"),
        ({"images": IMAGES, "labels": [0, -1, 1]}, r"row 1: the label is -1"),
        ({"images": IMAGES, "labels": [0, 1]}, "3 whole-number labels"),
        ({"images": IMAGES, "labels": [0.0, 1.0, 2.0]}, "whole-number labels, got float64"),
        ({"images": IMAGES[:, :16], "labels": [0, 1, 2]}, r"expected uint8 images \[N, 32, 32, 3\]"),
        ({"images": IMAGES}, "lacks an array"),
    ],
)
def test_bad_arrays_of_cifar10(folder, arrays, words):
    np.savez(folder / "cifar10" / "test.npz", **arrays)
    with pytest.raises(DataError, match=rf"test\.npz.*{words}"):
        load_cifar10("test")


@pytest.mark.parametrize("keep", [0, 40, 0.5])
def test_a_file_cut_short_is_said_to_be_damaged(folder, keep):
    file = folder / "cifar10" / "test.npz"
    np.savez_compressed(file, images=IMAGES, labels=[0, 1, 2])
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=r"test\.npz is damaged"):
        load_cifar10("test")
