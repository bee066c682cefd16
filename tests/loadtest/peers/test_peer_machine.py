"""The folder's name for results of a CPU, from what Linux says about it."""

from pathlib import Path

import pytest

from fewshard_loadtest.peers.machine import cpu_slug

INTEL = "flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16"


@pytest.mark.parametrize(
    ("lines", "slug"),
    [
        (f"model name\t: Intel(R) Xeon(R) Processor\n{INTEL} amx_bf16 amx_tile amx_int8", "intel-xeon-amx"),
        (
            f"model name\t: Intel(R) Xeon(R) Platinum 8488C\n{INTEL} amx_tile",
            "intel-xeon-platinum-8488c-amx",
        ),
        (
            "model name\t: Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz\nflags : avx2",
            "intel-xeon-e5-2686-v4-avx2",
        ),
        (f"model name\t: AMD EPYC Processor\n{INTEL}", "amd-epyc-avx512bf16"),
        (f"model name\t: AMD EPYC 9R14 96-Core Processor\n{INTEL}", "amd-epyc-9r14-avx512bf16"),
        (
            "model name\t: 13th Gen Intel(R) Core(TM) i7-1360P\nflags : avx2 avx_vnni",
            "intel-core-i7-1360p-avxvnni",
        ),
        (
            "model name\t: AMD Ryzen 7 7840U w/ Radeon 780M Graphics\nflags : sse2",
            "amd-ryzen-7-7840u-w-radeon-780m-graphics-plain",
        ),
    ],
)
def test_a_slug_names_the_model_and_its_fastest_instructions(tmp_path: Path, lines: str, slug: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{lines}\n\nprocessor\t: 1\n{lines}\n")
    assert cpu_slug(cpuinfo) == slug


def test_an_arm_cpu_has_a_slug_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\n")
    assert cpu_slug(cpuinfo) == "aarch64-i8mm"
    assert cpu_slug(tmp_path / "absent") == "aarch64-plain"


def test_this_machines_slug_is_a_folders_name() -> None:
    assert cpu_slug().replace("-", "").isalnum()
