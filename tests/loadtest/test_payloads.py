"""The requests a load test sends; pure values, no Locust (which would patch this process)."""

import json
import math
import random
from pathlib import Path

import pytest

from fewshard_loadtest import payloads
from fewshard_loadtest.arrivals import poisson_arrivals


def test_our_own_sentences_are_many_and_of_mixed_length() -> None:
    texts = payloads.sentences(None)
    lengths = sorted(len(text.split()) for text in texts)
    assert len(texts) == len(set(texts)) == 60
    assert all(text == text.strip() != "" for text in texts)
    assert lengths[0] == 1
    assert lengths[30] < 15
    assert lengths[-1] > 40


def test_sst2_is_read_without_quoting_and_stripped(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2/dev.tsv").write_text(
        'sentence\tlabel\na " bare quote \t1\nsecond\t0\n', encoding="utf-8"
    )
    assert payloads.sentences(tmp_path) == ['a " bare quote', "second"]


def test_classify_sends_one_text_or_a_list() -> None:
    one = payloads.classify_request("m", ["a"])
    assert one.path == "/v2/models/m/classify"
    assert json.loads(one.body) == {"inputs": "a"}
    assert json.loads(payloads.classify_request("m", ["a", "b"]).body) == {"inputs": ["a", "b"]}


def test_infer_is_a_v2_bytes_tensor() -> None:
    request = payloads.infer_request("m", ["a", "é"])
    body = json.loads(request.body)
    assert request.path == "/v2/models/m/infer"
    assert body["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "é"]}]


def test_image_is_a_v2_binary_tensor() -> None:
    images = [bytes([i]) * 3072 for i in (1, 2)]
    request = payloads.image_request("m", images)
    size = int(request.headers["Inference-Header-Content-Length"])
    (tensor,) = json.loads(request.body[:size])["inputs"]
    assert (tensor["datatype"], tensor["shape"]) == ("UINT8", [2, 32, 32, 3])
    assert request.body[size:] == b"".join(images)
    assert tensor["parameters"]["binary_data_size"] == len(request.body) - size


def test_names_are_quoted_in_the_path() -> None:
    assert payloads.classify_request("a/b", ["x"]).path == "/v2/models/a%2Fb/classify"


def test_random_images_differ_and_are_smooth() -> None:
    image = payloads.random_image(random.Random(1))
    assert len(image) == 32 * 32 * 3
    assert image[:3] == image[3:6]
    assert image != payloads.random_image(random.Random(2))


def test_every_sentence_is_sent_and_requests_are_filled_up() -> None:
    requests = payloads.text_requests(payloads.classify_request, "m", 4, 0, None)
    inputs = [json.loads(request.body)["inputs"] for request in requests]
    assert [texts[0] for texts in inputs] == payloads.sentences(None)
    assert {len(texts) for texts in inputs} == {4}


def test_the_same_seed_gives_the_same_requests() -> None:
    made = [payloads.image_requests("m", 1, seed, num_requests=2) for seed in (3, 3, 4)]
    assert made[0] == made[1] != made[2]


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
