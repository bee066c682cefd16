"""Environments, launches and sessions of peers; a small HTTP server stands for one that must answer."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fewshard_loadtest.errors import BenchmarkError
from fewshard_loadtest.peers import __main__ as command
from fewshard_loadtest.peers import catalogue, environments
from fewshard_loadtest.peers.catalogue import FEWSHARD, PEERS, peers
from fewshard_loadtest.peers.checkpoint import Expected, check_labels
from fewshard_loadtest.peers.engines import Trial
from fewshard_loadtest.peers.launch import SETTINGS_VARIABLE, Launch, Server
from fewshard_loadtest.peers.machine import cpu_slug
from fewshard_loadtest.peers.rounds import Found, _try, ours
from fewshard_loadtest.peers.session import Load, Place, Subject, measure
from fewshard_loadtest.peers.settings import SHIPPED, TUNED, Setting

PEER = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
        self.answer(json.dumps({"label": "long" if len(text) > 20 else "short", "score": 1.0}).encode())

    def answer(self, body):
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)

    def log_message(self, *args):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
PROGRAMS = ("engine.py", "rayserve_app.py")
EXPECTED = [Expected("a short one", "short", 1.0), Expected("one of more than twenty letters", "long", 1.0)]


def launch(setting: Setting, tmp_path: Path) -> Launch:
    return Launch(Path("/envs/bin"), Path("/a/model"), 8123, tmp_path, setting, Path("/a/model/exports"))


def fake_peer(tmp_path: Path) -> Server:
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    return Server(
        name="litserve",
        title="Fake",
        dialect="litserve",
        ready="/health",
        command=lambda launch: [sys.executable, str(script), str(launch.port)],
        shipped=Setting(SHIPPED),
        note="",
        packages=("torch",),
    )


def place(tmp_path: Path, expected: list[Expected], port: int) -> Place:
    return Place({}, tmp_path / "model", expected, port, tmp_path)


@pytest.mark.parametrize("server", PEERS, ids=lambda server: server.name)
def test_pins_are_exact_with_torch_first_and_the_report_finds_its_versions(server: Server) -> None:
    pins = environments.pins(server.environment_name)
    assert pins[0] == "torch==2.13.0"
    assert all(pin.count("==") == 1 for pin in pins)
    assert len({pin.split("==")[0].lower() for pin in pins}) == len(pins)
    assert set(environments.versions(server.environment_name, server.packages)) == set(server.packages)
    major = "4." if server.name == "infinity" else "5."
    versions = environments.versions(server.environment_name, ("transformers",))
    assert versions["transformers"].startswith(major)


def test_an_environment_that_is_there_is_used_until_its_pins_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(environments, "_run", ran.append)
    (tmp_path / "infinity").mkdir()
    (tmp_path / "infinity/pyvenv.cfg").touch()
    assert environments.environment("infinity", tmp_path) == tmp_path / "infinity/bin"
    assert [command[1:3] for command in ran] == [["-m", "venv"], ["-m", "pip"], ["-m", "pip"]]
    assert ran[1][-1] == "torch==2.13.0", "first and alone"
    assert "--no-deps" in ran[2]
    environments.environment("infinity", tmp_path)
    assert len(ran) == 3
    (tmp_path / "infinity/pins.txt").write_text("torch==2.12.0\n")
    environments.environment("infinity", tmp_path)
    assert len(ran) == 6


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bentoml").mkdir()
    (tmp_path / "bentoml/thesis.txt").write_text("precious")
    with pytest.raises(BenchmarkError, match="choose another --envs"):
        environments.environment("bentoml", tmp_path)
    assert (tmp_path / "bentoml/thesis.txt").read_text() == "precious"


def test_an_installer_that_fails_says_why() -> None:
    with pytest.raises(BenchmarkError, match="cannot be installed here: no such wheel"):
        environments._run([sys.executable, "-c", "import sys; sys.exit('no such wheel')"])


def test_servers_do_not_inherit_what_would_change_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("OMP_NUM_THREADS", "RAY_ADDRESS", "PYTHONPATH", "KEPT"):
        monkeypatch.setenv(key, "7")
    (lit,) = peers(["litserve"])
    shipped = lit.environment(launch(lit.shipped, tmp_path))
    assert {"OMP_NUM_THREADS", "RAY_ADDRESS", "PYTHONPATH"} & set(shipped) == set()
    assert (shipped["KEPT"], shipped["DO_NOT_TRACK"], shipped["CI"]) == ("7", "1", "true")
    told = json.loads(shipped[SETTINGS_VARIABLE])
    assert (told["model"], told["dtype"], told["batch"], told["threads"]) == ("/a/model", "fp32", 8, None)
    ours = FEWSHARD.environment(launch(FEWSHARD.shipped, tmp_path))
    assert (ours["PYTHONPATH"], "OMP_NUM_THREADS" in ours) == ("7", False)
    tuned = lit.environment(launch(Setting(TUNED, "bf16", 16, 5, 2, 1), tmp_path))
    assert (tuned["OMP_NUM_THREADS"], tuned["OMP_WAIT_POLICY"]) == ("2", "PASSIVE")
    assert "OMP_WAIT_POLICY" not in shipped
    (over,) = peers(["litserve-openvino"])
    told = json.loads(over.environment(launch(over.shipped, tmp_path))[SETTINGS_VARIABLE])
    assert (told["engine"], told["engines"]) == ("openvino", "/a/model/exports")


@pytest.mark.parametrize(("dtype", "width"), [("fp32", 32), ("bf16", 16), ("fp16", 16)])
def test_programs_of_peers_are_told_torchs_name_of_the_dtype(tmp_path: Path, dtype: str, width: int) -> None:
    torch = pytest.importorskip("torch")
    (lit,) = peers(["litserve"])
    told = json.loads(lit.environment(launch(Setting(TUNED, dtype), tmp_path))[SETTINGS_VARIABLE])
    assert torch.finfo(getattr(torch, told["torch_dtype"])).bits == width
    programs = [Path(catalogue.__file__).parent / f"apps/{name}" for name in PROGRAMS]
    assert all('["torch_dtype"])' in program.read_text() for program in programs)


def test_infinity_is_told_by_its_own_options(tmp_path: Path) -> None:
    (infinity,) = peers(["infinity"])
    assert "--dtype" not in infinity.command(launch(infinity.shipped, tmp_path))
    tuned = " ".join(infinity.command(launch(Setting(TUNED, "bf16", 16), tmp_path)))
    assert "--batch-size 16 --dtype bfloat16" in tuned


def test_ours_serves_the_checkpoint_in_the_dtype_of_the_setting(tmp_path: Path) -> None:
    command = FEWSHARD.command(launch(Setting("fp32", "fp32"), tmp_path))
    (model,) = json.loads(Path(command[2]).read_text())["models"]
    assert (model["path"], model["dtype"], model["device"]) == ("/a/model", "fp32", "cpu")
    FEWSHARD.command(launch(FEWSHARD.shipped, tmp_path))
    assert json.loads(Path(command[2]).read_text())["models"][0]["dtype"] == "auto"


def test_our_int8_row_serves_the_quantised_directory(tmp_path: Path) -> None:
    here = replace(place(tmp_path, [], 1), int8=tmp_path / "eight")
    subjects = {
        subject.setting.name: subject for subject in ours(here, Found(trials=[Trial("torch", "bf16")]))
    }
    assert list(subjects) == [SHIPPED, "fp32", "bf16", "int8"]
    models = {name: here.launch(subject).model for name, subject in subjects.items()}
    assert models == {name: tmp_path / ("eight" if name == "int8" else "model") for name in subjects}
    failed = Found(trials=[Trial("torch", "bf16", error="no such instruction")])
    assert [s.setting.name for s in ours(replace(here, int8=None), failed)] == [SHIPPED, "fp32"]


def test_labels_must_be_those_of_the_checkpoint() -> None:
    expected = [Expected(str(n), "a", 1.0) for n in range(20)]
    assert check_labels(expected, ["a"] * 20, is_exact=True) == 1.0
    assert check_labels(expected, ["b", *["a"] * 19], is_exact=False) == 0.95
    with pytest.raises(BenchmarkError, match="1 of 20 labels, first for '0'"):
        check_labels(expected, ["b", *["a"] * 19], is_exact=True)
    with pytest.raises(BenchmarkError, match="3 of 20"):
        check_labels(expected, ["b", "b", "b", *["a"] * 17], is_exact=False)
    tie = [Expected("tie", "a", 1e-6), *expected[1:]]
    assert check_labels(tie, ["b", *["a"] * 19], is_exact=True) == 0.95


def test_a_session_checks_loads_and_weighs(
    tmp_path: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEWSHARD_DATA", raising=False)
    server = fake_peer(tmp_path)
    load = Load(users=(1, 2), shares=(0.2,), duration_s=0.5, warmup_s=0.1)
    session = measure(Subject(server, server.shipped), place(tmp_path, EXPECTED, unused_port), load)
    assert (session.agreeing, session.accuracy) == (1.0, None)
    assert [run.plan.num_users for run in session.closed_loop] == [1, 2]
    assert all(run.num_failures == 0 < run.num_requests for run in session.closed_loop)
    assert all(run.server_cpu_s is not None for run in session.closed_loop)
    capacity = max(run.answered_rps for run in session.closed_loop)
    assert session.open_loop[0.2].plan.rate == pytest.approx(0.2 * capacity, abs=0.01)
    assert sum(entry.pss_mib for entry in session.memory) > 1


def test_the_accuracy_is_that_of_every_text_over_http(tmp_path: Path, unused_port: int) -> None:
    server = fake_peer(tmp_path)
    true = [replace(one, truth="short") for one in EXPECTED * 40]
    load, here = Load((1,), (), 0.2, 0.0), place(tmp_path, true, unused_port)
    assert measure(Subject(server, server.shipped), here, load, is_graded=True).accuracy == 0.5


def test_a_peer_that_answers_wrongly_is_left_out_with_the_reason(tmp_path: Path, unused_port: int) -> None:
    server, found = fake_peer(tmp_path), Found()
    wrong = [Expected("a short one", "long", 1.0)]
    load = Load((1,), (), 0.2, 0.0)
    assert _try(Subject(server, server.shipped), place(tmp_path, wrong, unused_port), load, found) is None
    assert "answers wrongly: 1 of 1 labels" in found.missing["Fake as shipped"]


def test_a_forced_format_of_ours_that_fails_is_left_out_and_the_defaults_are_not(
    tmp_path: Path, unused_port: int
) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such format')"]
    server = replace(FEWSHARD, command=lambda launch: command)
    here, load, found = place(tmp_path, EXPECTED, unused_port), Load((1,), (), 0.2, 0.0), Found()
    assert _try(Subject(server, Setting("int8", "int8")), here, load, found) is None
    assert "left with code 1" in found.missing["Fewshard int8"]
    with pytest.raises(BenchmarkError, match="left with code 1"):
        _try(Subject(server, server.shipped), here, load, found)


def test_a_peer_that_speaks_otherwise_is_left_out_with_the_reason(tmp_path: Path, unused_port: int) -> None:
    server, found = replace(fake_peer(tmp_path), dialect="infinity"), Found()
    subject, load = Subject(server, server.shipped), Load((1,), (), 0.2, 0.0)
    assert _try(subject, place(tmp_path, EXPECTED, unused_port), load, found) is None
    assert "does not answer as it should" in found.missing["Fake as shipped"]


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = command.parse(["--users", "1,8", "--open", "", "--peers", "infinity,bentoml"])
    assert (options.users, options.open, options.peers) == ((1, 8), (), ["infinity", "bentoml"])
    assert command.parse(["--peers", "none"]).peers == []
    assert command.parse([]).users == (1, 8, 64, 256)
    assert command.parse([]).out == Path("docs/results/cpu") / cpu_slug()
    quick = command.parse(["--quick", "--rounds", "2"])
    assert (quick.users, quick.open, quick.rounds, quick.quick) == ((1, 64), (), 2, True)
    for wrong, says in (
        (["--peers", "triton"], "there are: litserve, rayserve, bentoml, infinity, mosec, litserve-openvino"),
        (["--users", "0"], "above 0"),
        (["--make-model", "x"], "needs --model"),
        (["--int8", "x"], "--int8 needs --model"),
        (["--int8", "nowhere", "--model", "x"], "`fewshard quantize` makes one"),
    ):
        with pytest.raises(SystemExit):
            command.parse(wrong)
        assert says in capsys.readouterr().err


def test_the_fewshard_command_hands_its_options_on() -> None:
    code = "import sys; from fewshard_serve.cli import main; sys.exit(main())"
    run = [sys.executable, "-c", code, "bench", "server"]
    shown = subprocess.run([*run, "--help"], capture_output=True, text=True, check=True).stdout
    assert "usage: fewshard bench server" in shown
    wrong = subprocess.run([*run, "--users", "x"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "--users" in wrong.stderr
