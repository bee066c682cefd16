"""Corruptions: the same for the same arguments, different in each severity, and as strong as they say."""

import numpy as np
import pytest

from fewshard_models.evaluation import corruptions
from fewshard_models.evaluation.accuracy import drawn_images
from fewshard_models.evaluation.corruptions import NOISE_DEVIATIONS, corrupt_images, corrupt_texts

IMAGES = np.stack(drawn_images(6))
TEXTS = ["the film is a gripping and often funny story", "dull", "it never comes together , sadly", ""]


@pytest.mark.parametrize("kind", corruptions.IMAGE_KINDS)
def test_images_change_more_with_each_severity_and_not_from_call_to_call(kind):
    before = IMAGES.copy()
    changes = []
    for severity in corruptions.SEVERITIES:
        found = corrupt_images(IMAGES, kind, severity)
        assert (found.shape, found.dtype) == (IMAGES.shape, np.uint8)
        assert np.array_equal(found, corrupt_images(IMAGES, kind, severity))
        changes.append(np.abs(found.astype(int) - IMAGES).mean())
    assert 0 < changes[0] < changes[1] < changes[2]
    assert np.array_equal(IMAGES, before)


def test_noise_has_its_deviation_and_its_seed():
    grey = np.full((40, 32, 32, 3), 128, dtype=np.uint8)
    for severity, deviation in zip(corruptions.SEVERITIES, NOISE_DEVIATIONS, strict=True):
        noise = corrupt_images(grey, "noise", severity).astype(float) - 128
        assert noise.std() == pytest.approx(deviation, rel=0.03)
        assert noise.mean() == pytest.approx(0, abs=0.2)
    assert not np.array_equal(corrupt_images(grey, "noise", 1), corrupt_images(grey, "noise", 1, seed=1))


def test_blur_and_contrast_keep_a_flat_image_and_the_mean():
    flat = np.full((1, 32, 32, 3), 77, dtype=np.uint8)
    for kind in ("blur", "contrast"):
        assert np.array_equal(corrupt_images(flat, kind, 3), flat)
    weaker = corrupt_images(IMAGES, "contrast", 3).astype(float)
    np.testing.assert_allclose(weaker.mean(axis=(1, 2)), IMAGES.mean(axis=(1, 2)), atol=0.5)
    assert weaker.std() < IMAGES.std()


@pytest.mark.parametrize("kind", corruptions.TEXT_KINDS)
def test_texts_change_the_same_way_whatever_stands_beside_them(kind):
    for severity in corruptions.SEVERITIES:
        found = corrupt_texts(TEXTS, kind, severity)
        assert found == [corrupt_texts([text], kind, severity)[0] for text in TEXTS]
        assert found[0] != TEXTS[0]
        assert found[3] == ""


@pytest.mark.parametrize(("severity", "count"), [(1, 1), (2, 1), (3, 2)])
def test_typos_touch_long_words_alone_one_slip_each(severity, count):
    (found,) = corrupt_texts([TEXTS[0]], "typos", severity)
    pairs = zip(TEXTS[0].split(" "), found.split(" "), strict=True)
    changed = [(old, new) for old, new in pairs if old != new]
    assert len(changed) == count
    for old, new in changed:
        assert len(old) >= 4
        assert old[0] == new[0]
        assert abs(len(old) - len(new)) <= 1


def test_case_changes_nothing_but_case():
    for severity in corruptions.SEVERITIES:
        assert [text.lower() for text in corrupt_texts(TEXTS, "case", severity)] == TEXTS
    assert corrupt_texts(["a b"], "case", 2) == ["A B"]
    assert corrupt_texts(["ab c"], "case", 1) == ["Ab C"]


def test_dropped_words_leave_the_others_in_order():
    text = " ".join(f"w{number}" for number in range(20))
    for severity, left in ((1, 18), (2, 16), (3, 12)):
        words = corrupt_texts([text], "dropped words", severity)[0].split()
        assert len(words) == left
        assert words == sorted(words, key=lambda word: int(word[1:]))
    assert corrupt_texts(["dull"], "dropped words", 3) == ["dull"]


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="no corruption 'fog'"):
        corrupt_images(IMAGES, "fog", 1)
    with pytest.raises(ValueError, match="severity 4"):
        corrupt_texts(TEXTS, "typos", 4)
