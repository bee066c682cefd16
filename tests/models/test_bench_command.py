"""`fewshard bench kernels`: its options, and both files of a run on one small point."""

from pathlib import Path

import pytest
import torch

from fewshard_models.bench import grid, kernels
from fewshard_models.bench.kernels import Setup
from fewshard_models.bench.measurement import Budget

cli = pytest.importorskip("fewshard_serve.cli", reason="the command belongs to the server")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--peer", "megablocks=/tmp"], "not scattermoe=PATH or vllm=PATH"),
        (["--peer", "vllm"], "not scattermoe=PATH or vllm=PATH"),
        (["--quick", "--full"], "not allowed with argument"),
        (["--dtype", "int8"], "invalid choice"),
    ],
)
def test_wrong_options_are_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "kernels", *options])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_a_run_writes_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fewshard_models.bench.measurement._PRODUCT_SIZE", {"cpu": 128})
    monkeypatch.setattr(kernels, "last_level_cache_bytes", lambda _device: 2**20)
    monkeypatch.setattr(grid, "SHAPES", (grid.Shape(16, 32),))
    monkeypatch.setattr(kernels, "Setup", lambda device, peers: Setup(device, Budget(0, 2, 2, 1), peers, 2))
    options = ["--quick", "--device", "cpu", "--dtype", "fp32", "--out", str(tmp_path), "--peer", "vllm=."]
    assert cli.main(["bench", "kernels", *options]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(tmp_path / "kernels.json"), str(tmp_path / "kernels.md")]
    assert "[4/4] 16x32 fp32, 8 experts, top-1, uniform, 1024 tokens" in err
    assert "- vllm is left out: needs a GPU." in (tmp_path / "kernels.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "kernels", "--device", "cuda", "--out", str(tmp_path)]) != 0
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_tiles_are_tuned_on_a_gpu_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "kernels", "--tune", "--device", "cpu", "--out", str(tmp_path)]) != 0
    assert "--tune needs --device cuda" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
