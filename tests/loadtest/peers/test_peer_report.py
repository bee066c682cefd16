"""What rounds come to, without any server: medians, refusals, CPU time, the best setting, the tables."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fewshard_loadtest.measure import Plan, Result, Sample, summarise
from fewshard_loadtest.peers import summary
from fewshard_loadtest.peers.catalogue import FEWSHARD, NOTHING, PEERS
from fewshard_loadtest.peers.engines import Trial
from fewshard_loadtest.peers.report import Report
from fewshard_loadtest.peers.rounds import Found, Work, _alternating, _is_graded
from fewshard_loadtest.peers.session import Session, Subject
from fewshard_loadtest.peers.settings import (
    CUT,
    FOR_ONE,
    TUNED,
    Setting,
    Tried,
    best_of,
    chosen,
    grid,
    hastier,
    quickest,
)
from fewshard_loadtest.resource_usage import Memory

OURS = Subject(FEWSHARD, FEWSHARD.shipped)
ECHO = Subject(NOTHING, NOTHING.shipped)
SHIPPED = Subject(PEERS[0], PEERS[0].shipped)
BEST = Subject(PEERS[1], Setting(TUNED, "bf16", 64, 5, 2, 1))


def run(
    users: int, latencies: list[float], cpu_s: float | None = None, errors: tuple[str, ...] = ()
) -> Result:
    """One second with one request for each latency (ms) and error, sent at its beginning."""
    plan = Plan("http://h", "bench", num_users=users, duration_s=1.0)
    samples = [Sample(10.0, latency, None) for latency in latencies]
    samples += [Sample(10.5, 1.0, error) for error in errors]
    return summarise(plan, samples, 10.0, 0.25, cpu_s)


def session(dtype: str | None, pss: tuple[float, ...], *runs: Result, agreeing: float = 1.0) -> Session:
    """One start of a server, its processes of so many MiB."""
    return Session(
        "serve", list(runs), memory=[Memory("a", 9, each) for each in pss], dtype=dtype, agreeing=agreeing
    )


def found() -> Found:
    ours = [
        replace(
            session("bf16", (300.0,), run(1, [4.0] * 10), run(64, [20.0] * 600, 1.5), agreeing=0.98),
            accuracy=0.874,
        ),
        session("bf16", (340.0,), run(1, [6.0] * 10), run(64, [22.0] * 500, 1.5)),
    ]
    for each, batch in zip(ours, (31.6, 32.4), strict=True):
        each.mean_batches[64] = batch
    busy = run(64, [800.0] * 100, 2.0, ("HTTPError: 503 Busy", "reset"))
    sessions = {
        OURS: ours,
        ECHO: [session(None, (100.0,), run(1, [1.0] * 10), run(64, [9.0] * 1000, 0.5))],
        SHIPPED: [session("fp32", (1.0, 2.0), run(1, [110.0] * 9), busy)],
        BEST: [session("bf16", (1.0,), run(1, [12.5] * 80), run(64, [250.0] * 250))],
    }
    tuning = {
        "rayserve": {
            BEST.setting: Tried(240.0, 12.5),
            Setting(TUNED, "bf16", 16, 5, 2, 1): Tried(230.0, None),
        }
    }
    return Found(sessions, tuning, {"BentoML": "cannot be installed here:\n no wheel"})


def row(rows: list[summary.Row], subject: Subject, load: float) -> summary.Row:
    return next(row for row in rows if (row.subject, row.load) == (subject, load))


def test_rows_are_medians_over_rounds_and_sums_of_counts() -> None:
    ours = row(summary.closed_loop(found()), OURS, 64)
    assert (ours.answered_rps, ours.p50_ms, ours.num_requests, ours.num_rounds) == (550.0, 21.0, 1100, 2)
    assert ours.cpu_ms == pytest.approx((1500 / 600 + 1500 / 500) / 2)
    assert row(summary.closed_loop(found()), OURS, 1).cpu_ms is None


def test_refusals_are_told_from_errors() -> None:
    peer = row(summary.closed_loop(found()), SHIPPED, 64)
    assert (peer.refused, peer.failed, peer.num_requests) == (1, 1, 102)


def test_what_comes_after_the_measured_time_is_not_sustained() -> None:
    """A server that falls behind answers all in the end; what counts is what it answered in time."""
    plan = Plan("http://h", "m", duration_s=1.0)
    early, late, before = Sample(10.1, 500, None), Sample(10.9, 500, None), Sample(9.8, 500, None)
    result = summarise(plan, [early, late, before], 10.0, 0.1)
    assert (result.num_requests, result.rps, result.answered_rps) == (2, 2.0, 2.0)
    assert summarise(plan, [early, late], 10.0, 0.1).answered_rps == 1.0


def test_percentiles_are_nearest_rank() -> None:
    result = run(1, [float(n) for n in range(1, 101)])
    assert (result.p50_ms, result.p90_ms, result.p95_ms, result.p99_ms, result.max_ms) == (
        50,
        90,
        95,
        99,
        100,
    )
    assert run(1, [7.0]).p95_ms == 7.0
    assert run(1, []).p95_ms is None


def test_our_cpu_time_is_split_into_model_echo_and_rest() -> None:
    (split,) = summary.cpu_splits(found(), {32: 1.5})
    assert (split.num_users, split.mean_batch, split.echo_ms) == (64, pytest.approx(32.0), 0.5)
    assert split.rest_ms == pytest.approx(2.75 - 1.5 - 0.5)
    assert summary.cpu_splits(found(), {31: 1.5}) == []


def test_ratios_name_the_best_peer_of_each_kind() -> None:
    ratios = {ratio.what: ratio for ratio in summary.ratios(found())}
    shipped, tuned = (ratios[f"requests/s at 64 users, peers {kind}"] for kind in ("as shipped", "tuned"))
    assert (shipped.peer, shipped.ratio) == ("LitServe as shipped", pytest.approx(5.5))
    assert (tuned.peer, tuned.ratio) == ("Ray Serve tuned", pytest.approx(2.2))
    assert ratios["p50 at 1 user"].peer == "Ray Serve tuned"
    assert ratios["p50 at 1 user"].ratio == pytest.approx(12.5 / 5.0)
    assert ratios["p99 at 64 users"].ratio == pytest.approx(250 / 21)


def test_the_report_has_every_subject_and_names_what_is_missing(tmp_path: Path) -> None:
    as_json, as_markdown = Report("fewshard bench server", "a model", found(), {32: 1.5}).write(
        tmp_path / "out"
    )
    text, stored = as_markdown.read_text(), json.loads(as_json.read_text())
    assert "| Fewshard as shipped | 550.0 | 21.0 | 21.0 | 21.0 | 1100 | 0 | 0 | 2.75 | 0.25 |" in text
    assert "| LitServe as shipped | 100.0 | 800.0 | 800.0 | 800.0 | 102 | 1 | 1 | 20.00 | 0.25 |" in text
    assert "| 64 | 32.0 | 2.75 | 1.50 | 0.50 | 0.75 |" in text
    assert "| Fewshard as shipped | its own | bf16 | 98.0 % | 87.40 % | as fp32 | 320 | 2 |" in text
    assert "- BentoML: cannot be installed here: no wheel" in text
    assert "5.50 | >= 5 | met" in text
    assert "2.20 | >= 3 | **missed**" in text
    assert (
        "| Ray Serve | bf16, batches of 64, wait ms 5, threads 2, workers 1 | 240.0 | 12.5 | chosen |" in text
    )
    assert "litserve 0." in text
    assert stored["versions"]["infinity"]["transformers"].startswith("4.")
    assert stored["sessions"][0]["rounds"][1]["closed_loop"][1]["answered_rps"] == 500.0
    assert stored["missing"]["BentoML"]


def test_the_grid_shares_the_cores_and_the_best_counts() -> None:
    settings = grid("bf16", 4, most_workers=2)
    assert {(s.batch, s.threads, s.workers) for s in settings} == {
        (batch, *share) for batch in (16, 64) for share in ((4, 1), (2, 2))
    }
    assert {(s.threads, s.workers) for s in grid("bf16", 4, most_workers=1)} == {(4, 1), (2, 1)}
    assert len(grid("bf16", 1, most_workers=1)) == 2, "one core can be shared in one way only"
    assert all(s.dtype == "bf16" and s.name == TUNED for s in settings)
    tried = [Tried(rate, 1.0) for rate in (1.0, 3.0, 3.0)]
    assert best_of(dict(zip(settings, tried, strict=False))) == settings[1]
    with pytest.raises(ValueError, match="empty"):
        best_of({})


def test_the_grid_cuts_sorted_batches_and_is_short_where_that_is_asked_for() -> None:
    cut = [s for s in grid("int8", 2, most_workers=2, can_cut=True) if s.cut is not None]
    assert [(s.batch, s.cut, s.threads, s.workers) for s in cut] == [(64, CUT, 2, 1), (64, CUT, 1, 2)]
    assert grid("int8", 2, 2, can_cut=True, is_quick=True) == [replace(cut[1], wait_ms=1)]
    assert [s.batch for s in grid("int8", 2, 1, is_quick=True)] == [64, 64]


def test_a_short_wait_is_preferred_unless_it_costs_answers() -> None:
    patient = Setting(TUNED, "bf16", 16, 5, 2, 1)
    hasty = hastier(patient)
    assert hasty is not None
    assert (hasty.wait_ms, hastier(hasty), hastier(replace(patient, wait_ms=None))) == (1, None, None)
    assert chosen({patient: Tried(100, 9), hasty: Tried(98, 5)}) == hasty
    assert chosen({patient: Tried(100, 9), hasty: Tried(90, 5)}) == patient
    assert chosen({patient: Tried(100, 9), replace(hasty, batch=64): Tried(99, 5)}) == patient


def test_the_quickest_for_one_user_has_a_name_of_its_own() -> None:
    patient = Setting(TUNED, "bf16", 16, 5, 2, 1)
    tried = {patient: Tried(100, 9.0), replace(patient, batch=64): Tried(90, 5.0)}
    assert quickest(tried) == replace(patient, batch=64, name=FOR_ONE)
    assert quickest({patient: Tried(1, None)}) is None


def test_only_rivals_of_the_same_accuracy_are_compared() -> None:
    """Within 0.3 points of fp32: 0.8740 is not reached by 0.8705, but by 0.8711."""
    known = replace(found(), of_fp32=0.8740)
    known.sessions[BEST][0] = replace(known.sessions[BEST][0], accuracy=0.8705)
    assert not summary.in_class(known, BEST)
    assert {ratio.peer for ratio in summary.ratios(known)} == {"LitServe as shipped"}
    assert "| 87.05 % | **lower** |" in Report("", "", known).as_markdown()
    known.sessions[BEST][0] = replace(known.sessions[BEST][0], accuracy=0.8711)
    assert summary.in_class(known, BEST)
    assert "Ray Serve tuned" in {ratio.peer for ratio in summary.ratios(known)}


def test_eight_bits_of_ours_are_compared_too_once_they_are_as_right() -> None:
    known = found()
    int8 = Subject(FEWSHARD, Setting("int8", "int8"))
    known.sessions[int8] = [session("int8", (1.0,), run(1, [2.5] * 10), run(64, [9.0] * 1000))]
    ratios = {ratio.what: ratio.ratio for ratio in summary.ratios(known)}
    assert ratios["int8, requests/s at 64 users, peers tuned"] == pytest.approx(4.0)
    assert ratios["int8, p50 at 1 user"] == pytest.approx(5.0)


def test_engines_and_formats_are_listed_with_the_one_that_tunes() -> None:
    trials = [
        Trial("openvino", "fp32", 100.0, 0.874, 1.0),
        Trial("openvino", "bf16", 200.0, 0.873, 0.99),
        Trial("openvino", "int8", 300.0, 0.860, 0.97),
        Trial("openvino", "fp8", error="no such format"),
    ]
    text = Report("", "", replace(found(), trials=trials, of_fp32=0.874)).as_markdown()
    assert "| openvino | bf16 | 200 | 87.30 % | 99.0 % | chosen |" in text
    assert "| openvino | int8 | 300 | 86.00 % | 97.0 % |  |" in text
    assert "| openvino | fp8 | - | - | - | cannot run here |" in text


def test_each_subject_is_graded_once_and_slow_ones_not_in_a_quick_run() -> None:
    quick, full = (Work(1, 1.0, is_quick, 2) for is_quick in (True, False))
    assert [_is_graded(subject, quick, Found()) for subject in (OURS, SHIPPED, BEST)] == [True, False, True]
    assert _is_graded(SHIPPED, full, Found())
    assert not _is_graded(SHIPPED, full, found())


def test_rounds_alternate() -> None:
    assert list(_alternating([OURS, ECHO], 3)) == [OURS, ECHO, ECHO, OURS, OURS, ECHO]
