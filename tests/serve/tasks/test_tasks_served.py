"""Every task by every protocol and a real client of it, held against transformers' own answers.

The table of docs/tasks.md is that of `CELLS`.
"""

from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import transformers as tf
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from huggingface_hub import InferenceClient

from fewshard_serve.client import Client, TextPair
from small_checkpoints import write_text
from task_server import TaskServer
from token_checkpoints import LABELS, LONG, SENTENCES, write_tokens

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TEXTS = ["cold wind and rain", "a very mild day of fog", "storm"]
QUERY, DOCUMENTS = "mild day", ["sun and dew", "hail", "snow or rain or fog", "warm night"]
ONE = {"id2label": {0: "score"}, "label2id": {"score": 0}}
TOLERANCE = 1e-3


class Served:
    """The server, the directories of its models, and what transformers says of them."""

    def __init__(self, folder):
        kinds = {
            "labels": {"problem_type": "multi_label_classification"},
            "reward": {**ONE, "problem_type": "regression"},
            "reranker": ONE,
        }
        self.directories = {name: write_text(folder / name, **fields) for name, fields in kinds.items()}
        self.directories["tokens"] = write_tokens(folder / "tokens")
        scores = sigmoid(self.logits("labels", TEXTS))[:, 0]  # between them, so that not every text has it
        self.thresholds = {"ant": float(scores.min() + scores.max()) / 2}
        self.server = TaskServer(self.directories, labels={"thresholds": self.thresholds})
        self.url, self.grpc = self.server.url, self.server.grpc_address
        self.client = Client(self.url)

    def logits(self, name, texts):
        tokenizer = tf.AutoTokenizer.from_pretrained(self.directories[name])
        network = tf.AutoModelForSequenceClassification.from_pretrained(self.directories[name]).eval()
        with torch.inference_mode():
            pairs = [(text,) if isinstance(text, str) else text for text in texts]
            rows = [network(**tokenizer(*pair, return_tensors="pt")).logits[0].numpy() for pair in pairs]
        assert len(rows) == 1 or np.std(rows, axis=0).max() > TOLERANCE, "all alike: this proves nothing"
        return np.array(rows)

    def entities(self, text, aggregation="simple"):
        stride = {} if aggregation == "none" else {"stride": 5}
        ask = tf.pipeline(
            "token-classification",
            str(self.directories["tokens"]),
            aggregation_strategy=aggregation,
            **stride,
        )
        key = "entity" if aggregation == "none" else "entity_group"
        return [(each[key], each["start"], each["end"], float(each["score"])) for each in ask(text)]

    def post(self, path, **body):
        answer = httpx.post(self.url + path, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def classify(self, name, inputs, **options):
        return self.post(f"/v2/models/{name}/classify", inputs=inputs, **options)

    def triton(self, is_grpc, name, parameters=None, **tensors):
        """The outputs of a V2 request by tritonclient; each tensor is a list of texts."""
        module = triton_grpc if is_grpc else triton_http
        address = self.grpc if is_grpc else self.url.removeprefix("http://")
        inputs = []
        for tensor, texts in tensors.items():
            one = module.InferInput(tensor, [len(texts)], "BYTES")
            one.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object))
            inputs.append(one)
        with module.InferenceServerClient(address) as client:
            described = client.get_model_metadata(name, **({"as_json": True} if is_grpc else {}))
            answer = client.infer(name, inputs, parameters=parameters)
            return {each["name"]: answer.as_numpy(each["name"]) for each in described["outputs"]}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    one = Served(tmp_path_factory.mktemp("tasks"))
    yield one
    one.client.close()
    one.server.close()


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=TOLERANCE)


# several labels


def assigned(served, scores):
    limits = [served.thresholds.get(label, 0.5) for label in ("ant", "bee", "cow")]
    return scores >= np.array(limits)


def labels_by_classify(served):
    body, scores = served.classify("labels", TEXTS), sigmoid(served.logits("labels", TEXTS))
    found = [{each["label"]: each["score"] for each in item} for item in body["predictions"]]
    close([[item[label] for label in ("ant", "bee", "cow")] for item in found], scores)
    expected = [
        [label for label, has in zip(("ant", "bee", "cow"), row, strict=True) if has]
        for row in assigned(served, scores)
    ]
    assert body["assigned"] == expected
    assert len({len(each) for each in expected}) > 1, "all have as many labels: this proves nothing"


def labels_by_client(served):
    found = served.client.classify("labels", TEXTS).predictions
    expected = served.classify("labels", TEXTS)["assigned"]
    assert [list(each.assigned) for each in found] == expected


def labels_by_v2(is_grpc):
    def ask(served):
        scores = sigmoid(served.logits("labels", TEXTS))
        found = served.triton(is_grpc, "labels", text=TEXTS)
        close(found["scores"], scores)
        assert found["assigned"].tolist() == assigned(served, scores).tolist()

    return ask


def labels_by_inference_client(served):
    found = InferenceClient(base_url=f"{served.url}/v2/models/labels").text_classification(TEXTS[0])
    scores = dict(zip(("ant", "bee", "cow"), sigmoid(served.logits("labels", TEXTS[:1]))[0], strict=True))
    close([each.score for each in found], [scores[each.label] for each in found])


# one score


def score_by_classify(served):
    close(served.classify("reward", TEXTS)["scores"], served.logits("reward", TEXTS)[:, 0])


def score_by_client(served):
    found = served.client.classify("reward", TEXTS).predictions
    close([each.score for each in found], served.logits("reward", TEXTS)[:, 0])


def score_by_v2(is_grpc):
    def ask(served):
        close(served.triton(is_grpc, "reward", text=TEXTS)["scores"], served.logits("reward", TEXTS))

    return ask


# ranking


def ranking(served):
    """The places of the documents, the best first, and their scores in this order."""
    logits = served.logits("reranker", [(QUERY, each) for each in DOCUMENTS])[:, 0]
    order = np.argsort(-logits, kind="stable")
    return order.tolist(), sigmoid(logits[order])


def ranking_by_classify(served):
    body = served.classify("reranker", [{"text": QUERY, "text_pair": each} for each in DOCUMENTS])
    scores = np.array([item[0]["score"] for item in body["predictions"]])
    order, expected = ranking(served)
    close(scores[order], expected)


def ranking_by_client(served):
    order, expected = ranking(served)
    found = served.client.rerank("reranker", QUERY, DOCUMENTS)
    assert [each.index for each in found] == order
    close([each.score for each in found], expected)
    scores = served.client.score("reranker", [TextPair(QUERY, each) for each in DOCUMENTS])
    close(np.array(scores)[order], expected)


def ranking_by_v2(is_grpc):
    def ask(served):
        order, expected = ranking(served)
        found = served.triton(is_grpc, "reranker", text=[QUERY] * len(DOCUMENTS), text_pair=DOCUMENTS)
        close(found["scores"][order, 0], expected)

    return ask


def ranking_by_rest(served):
    """As the clients of text-embeddings-inference, Jina, Cohere and vLLM send it."""
    order, expected = ranking(served)
    found = served.post("/rerank?model=reranker", query=QUERY, texts=DOCUMENTS)
    assert [each["index"] for each in found] == order
    close([each["score"] for each in found], expected)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        found = served.post(path, model="reranker", query=QUERY, documents=DOCUMENTS, top_n=2)["results"]
        assert [each["index"] for each in found] == order[:2]
        close([each["relevance_score"] for each in found], expected[:2])
    for path in ("/score", "/v1/score"):
        found = served.post(path, model="reranker", text_1=QUERY, text_2=DOCUMENTS)["data"]
        close(np.array([each["score"] for each in found])[order], expected)


# tokens


def same_entities(found, expected):
    assert [each[:3] for each in found] == [each[:3] for each in expected]
    close([each[3] for each in found], [each[3] for each in expected])


def tokens_by_classify(served):
    for aggregation in ("none", "simple", "first", "average", "max"):
        texts = [SENTENCES[0][:20]] if aggregation == "none" else [*SENTENCES, LONG]
        body = served.classify("tokens", texts, aggregation=aggregation)
        for text, item in zip(texts, body["predictions"], strict=True):
            found = [(each["label"], each["start"], each["end"], each["score"]) for each in item]
            same_entities(found, served.entities(text, aggregation))
            assert all(each["text"] == text[each["start"] : each["end"]] for each in item)


def tokens_by_client(served):
    (found,) = served.client.classify("tokens", LONG, aggregation="max").predictions
    told = [(each.label, each.start, each.end, each.score) for each in found.entities]
    same_entities(told, served.entities(LONG, "max"))


def tokens_by_v2(is_grpc):
    def ask(served):
        texts = [SENTENCES[0], "", LONG]
        found = served.triton(is_grpc, "tokens", {"aggregation": "average"}, text=texts)
        names = ("label", "start", "end", "scores")
        rows = zip(found["item"].tolist(), *(found[name].tolist() for name in names), strict=True)
        told = [[], [], []]
        for item, label, *rest in rows:
            told[item].append((label.decode(), *rest))
        for text, entities in zip(texts, told, strict=True):
            same_entities(entities, served.entities(text, "average") if text else [])

    return ask


def tokens_by_inference_client(served):
    client = InferenceClient(base_url=f"{served.url}/v2/models/tokens")
    found = client.token_classification(LONG, aggregation_strategy="first")
    told = [(each.entity_group, each.start, each.end, each.score) for each in found]
    same_entities(told, served.entities(LONG, "first"))
    assert all(each.word == LONG[each.start : each.end] for each in found)


CLASSIFY, OWN, HTTP, GRPC, HUB, REST = (
    "`/classify` (httpx)",
    "`fewshard_serve.client`",
    "V2 over HTTP (tritonclient)",
    "V2 over gRPC (tritonclient)",
    "`InferenceClient` (huggingface_hub)",
    "its own endpoint (httpx)",
)
COLUMNS = (CLASSIFY, OWN, HTTP, GRPC, HUB, REST)
CELLS = {
    "several labels": {
        CLASSIFY: labels_by_classify,
        OWN: labels_by_client,
        HTTP: labels_by_v2(False),
        GRPC: labels_by_v2(True),
        HUB: labels_by_inference_client,
    },
    "one score": {
        CLASSIFY: score_by_classify,
        OWN: score_by_client,
        HTTP: score_by_v2(False),
        GRPC: score_by_v2(True),
    },
    "ranking": {
        CLASSIFY: ranking_by_classify,
        OWN: ranking_by_client,
        HTTP: ranking_by_v2(False),
        GRPC: ranking_by_v2(True),
        REST: ranking_by_rest,
    },
    "tokens": {
        CLASSIFY: tokens_by_classify,
        OWN: tokens_by_client,
        HTTP: tokens_by_v2(False),
        GRPC: tokens_by_v2(True),
        HUB: tokens_by_inference_client,
    },
}


@pytest.mark.parametrize(
    ("task", "column"), [(task, column) for task, cells in CELLS.items() for column in cells]
)
def test_a_client_gets_what_transformers_says(task, column, served):
    CELLS[task][column](served)


def table():
    rows = [
        [task, *("yes" if column in cells else "" for column in COLUMNS)] for task, cells in CELLS.items()
    ]
    lines = [["", *COLUMNS], ["---"] * (len(COLUMNS) + 1), *rows]
    return "\n".join(
        f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |") for cells in lines
    )


def test_the_documentation_has_the_table():
    assert table() in (Path(__file__).parents[3] / "docs/tasks.md").read_text(encoding="utf-8")


def test_metrics_count_what_has_a_label(served):
    def counted():
        """How often tokens had a label, and all lines of the model."""
        text = served.server.replica.metrics.render().decode()
        lines = [line for line in text.splitlines() if 'model="tokens"' in line]
        labels = [line for line in lines if line.startswith("fewshard_predictions_total")]
        assert {line.split('label="')[1].split('"')[0] for line in labels} == set(LABELS)
        return sum(float(line.split()[-1]) for line in labels), lines

    before, _ = counted()
    usage = served.classify("tokens", SENTENCES[0][:20])["usage"]
    after, lines = counted()
    assert usage["items"] == 1
    assert after - before == usage["tokens"] - 2, "all but the special tokens"
    assert any("requests_total" in line and 'protocol="classify"' in line for line in lines)
    assert any("model_info" in line and 'task="tokens"' in line for line in lines)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v2/models/tokens/classify", {"inputs": "a", "aggregation": "mean"}, 400, "'aggregation'"),
        (
            "/v2/models/labels/classify",
            {"inputs": "a", "aggregation": "max"},
            400,
            "models that label tokens",
        ),
        ("/v2/models/labels/classify", {"inputs": "a", "ignore_labels": []}, 400, "models that label tokens"),
        ("/v2/models/tokens/classify", {"inputs": {"text": "a", "text_pair": "b"}}, 400, "takes strings"),
        ("/v2/models/tokens/classify", {"inputs": LONG, "truncate": False}, 422, "read in windows"),
        ("/v2/models/tokens/predict", {"inputs": "a"}, 415, "classifies the tokens of texts; POST them to"),
        ("/v2/models/tokens/explain", {"inputs": "a"}, 415, "only words of a text can be explained"),
        ("/v2/models/tokens/rerank", {"query": "a", "texts": ["b"]}, 415, "only texts can be ranked"),
        ("/v2/models/labels/rerank", {"query": "a", "texts": ["b"]}, 400, "labels has 3 labels"),
    ],
)
def test_what_a_task_does_not_do_is_refused(path, body, status, message, served):
    answer = httpx.post(served.url + path, json=body)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text


def test_tokens_may_be_chosen(served):
    body = served.classify("tokens", LONG, ignore_labels=["LOC", "O"], top_k=2)["predictions"][0]
    found = [each for each in served.classify("tokens", LONG)["predictions"][0] if each["label"] != "LOC"]
    best = sorted(found, key=lambda each: -each["score"])[:2]
    assert body == sorted(best, key=lambda each: each["start"])
