"""What the processor is, and how many cores a container's quota leaves."""

import os

import pytest

from fewshard_core.cpu import available_cores, cpu_flags, cpu_name, cpu_quota


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("content", "quota", "cores"),
    [
        ("max 100000", None, 8),
        ("250000 100000", 2.5, 2),
        ("50000 100000", 0.5, 1),
        ("5000000 100000", 50.0, 8),
        ("odd", None, 8),
        ("100000 0", None, 8),
    ],
)
def test_a_quota_of_cgroup_v2_counts(tmp_path, eight_cores, content, quota, cores):
    (tmp_path / "cpu.max").write_text(content)
    assert cpu_quota(tmp_path) == quota
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("written", "quota", "cores"), [("-1", None, 8), ("300000", 3.0, 3)])
def test_a_quota_of_cgroup_v1_counts(tmp_path, eight_cores, folder, written, quota, cores):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "cpu.cfs_quota_us").write_text(f"{written}\n")
    (tmp_path / folder / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == quota
    assert available_cores(tmp_path) == cores


def test_without_cgroups_all_cores_count(tmp_path, eight_cores):
    assert cpu_quota(tmp_path) is None
    assert available_cores(tmp_path) == 8


def test_the_first_processor_names_the_cpu(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor : 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 aes\n\nprocessor : 1\nflags : x\n"
    )
    assert cpu_name(file) == "A CPU"
    assert cpu_flags(file) == ["aes", "avx2", "fpu"]
    assert cpu_flags(tmp_path / "none") == []
    assert cpu_name(tmp_path / "none")
