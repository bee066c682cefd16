"""The way of a new user: `fewshard serve`, the call it prints, predict, models, a load test, Ctrl-C.

One server for the whole file, on a small random checkpoint made here. The benchmark's own run is slow.
"""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fewshard_loadtest import Plan, run_recorded
from fewshard_loadtest.samples_file import Recording
from fewshard_serve.rayserve.environment import free_ports

ROOT = Path(__file__).parents[2]
FEWSHARD = [sys.executable, "-c", "import sys; from fewshard_serve.cli import main; sys.exit(main())"]
START_TIMEOUT_S = 240.0
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "gripping", "and", "often", "funny", "film", "bad"]

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


def save_checkpoint(folder: Path) -> None:
    """A two-layer BERT with random weights and a vocabulary of eleven words."""
    import transformers as tf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(
        folder
    )
    config = tf.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    tf.BertForSequenceClassification(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    save_checkpoint(folder / "words")
    (folder / "fewshard.yaml").write_text("models: [{name: words, path: ./words}]\n")
    return folder / "fewshard.yaml"


@dataclass(frozen=True)
class Running:
    """A server that has said it is ready, and what it said."""

    process: subprocess.Popen[str]
    url: str
    greeting: str
    grpc: str


@pytest.fixture(scope="module")
def running(config_file: Path) -> Iterator[Running]:
    (port, grpc_port), log = free_ports(2), config_file.with_name("log")
    with log.open("w") as output:
        process = subprocess.Popen(
            [*FEWSHARD, "serve", "./words", "--port", str(port), "--grpc-port", str(grpc_port)],
            cwd=config_file.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        _wait_for(process, log, "Try it:")
        yield Running(process, f"http://127.0.0.1:{port}", log.read_text(), f"127.0.0.1:{grpc_port}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def _wait_for(process: subprocess.Popen[str], log: Path, words: str) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while words not in log.read_text():
        assert process.poll() is None, f"the server left: {log.read_text()}"
        assert time.monotonic() < give_up_at, f"the server is not ready: {log.read_text()}"
        time.sleep(0.1)


def fewshard(*arguments: str) -> str:
    done = subprocess.run([*FEWSHARD, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_call_it_prints_works_as_it_stands(running: Running) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = next(line for line in running.greeting.splitlines() if line.strip().startswith("curl "))
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert {entry["label"] for entry in answer["predictions"][0]} == {"negative", "positive"}
    assert answer["usage"] == {"items": 1, "tokens": 8}


def test_predict_shows_scores_that_add_up(running: Running) -> None:
    said = fewshard("predict", "words", "a funny film", "bad", "--json", "--url", running.url)
    for labels in json.loads(said)["predictions"]:
        assert sum(entry["score"] for entry in labels) == pytest.approx(1, abs=1e-5)
    assert "positive" in fewshard("predict", "words", "bad", "--url", running.url)


def test_models_lists_it(running: Running) -> None:
    (line,) = fewshard("models", "--url", running.url).splitlines()[1:]
    assert line.split()[:4] == ["words", "READY", "text", "dense"]


@pytest.mark.parametrize(
    ("protocol", "rate"),
    [("classify", None), ("json", None), ("binary", 20.0), ("grpc", None), ("grpc", 20.0)],
)
def test_the_load_generator_gets_good_answers_alone(
    running: Running, tmp_path: Path, protocol: str, rate: float | None
) -> None:
    plan = Plan(
        running.grpc if protocol == "grpc" else running.url,
        "words",
        protocol=protocol,
        num_users=4,
        rate=rate,
        duration_s=1.5,
        warmup_s=0.5,
    )
    result = run_recorded(plan, tmp_path / "a.npz")
    assert result.errors == {}
    assert result.num_requests > 10
    assert set(Recording.load(tmp_path / "a.npz").labels) <= {"negative", "positive"}


def test_a_second_server_on_the_port_is_refused(running: Running, config_file: Path) -> None:
    port = running.url.rpartition(":")[2]
    done = subprocess.run(
        [*FEWSHARD, "serve", str(config_file), "--port", port], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"port {port} is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_sigint_stops_it_cleanly(running: Running) -> None:
    """The last test of the file: the server is gone after it."""
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(120) == 0
    with pytest.raises(AssertionError, match="no server answers"):
        fewshard("models", "--url", running.url)


@pytest.mark.slow
def test_the_benchmark_measures_the_server_and_the_echo(config_file: Path, tmp_path: Path) -> None:
    options = ["--users", "1", "4", "--duration", "2", "--warmup", "0.5", "--port", str(*free_ports(1))]
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks/server.py"),
            str(config_file),
            *options,
            "--out",
            str(tmp_path),
        ],
        check=True,
        capture_output=True,
    )
    report = json.loads((tmp_path / "server.json").read_text())
    runs = {
        name: [(run["plan"]["model"], run["plan"]["num_users"]) for run in runs]
        for name, runs in report["runs"].items()
    }
    assert runs == {"fewshard": [("words", 1), ("words", 4)], "echo": [("echo", 1), ("echo", 4)]}
    assert any(entry["name"].startswith("ray::ServeReplica") for entry in report["memory"]["fewshard"])
    assert (tmp_path / "server.md").read_text().count("\n| fewshard | words |") == 2
