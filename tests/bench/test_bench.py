"""`bench`: cases take turns, ratios are of medians, every suite runs and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdvq_core.bench import SUITES, BenchResult, bench, markdown
from sdvq_core.bench import decode as decode_room
from sdvq_core.bench import encode as encode_room
from sdvq_core.bench import machine as machine_room
from sdvq_core.bench.checkpoints import RandomModel
from sdvq_core.bench.full import full
from sdvq_core.bench.full_size import skeleton
from sdvq_core.bench.timing import Row, in_turns, rows
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import Progress
from sdvq_core.nn import kind_of


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (decode_room, encode_room):
        monkeypatch.setattr(room, "_SIDE", 64)
    monkeypatch.setattr(encode_room, "_ROUNDS", 1)
    monkeypatch.setattr(machine_room, "_COPY_NBYTES", 1 << 16)
    monkeypatch.setattr(machine_room, "_SIDE", 32)


def test_cases_take_turns_after_one_that_does_not_count() -> None:
    calls: list[str] = []
    seconds = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_what_ran_before_is_not_warmed_up_again() -> None:
    calls: list[str] = []
    assert len(in_turns({"a": lambda: calls.append("a")}, 2, warm=True)["a"]) == len(calls) == 2


def test_ratios_are_of_medians_and_rates_of_work() -> None:
    slow, fast = rows("s", {"slow": [4.0, 1.0, 100.0], "fast": [2.0, 2.0, 1.0]}, "slow", 8.0, "things")
    assert (slow.seconds, slow.ratio, slow.rate) == (4.0, None, 2.0)
    assert (fast.seconds, fast.ratio, fast.rate, fast.against) == (2.0, 2.0, 4.0, "slow")
    assert fast.low <= fast.seconds <= fast.high


@pytest.mark.parametrize("suite", ["decode", "encode"])
def test_a_suite_runs_and_is_told_in_words(small: None, suite: str) -> None:
    *progress, result = bench(suite)
    assert all(isinstance(event, Progress) for event in progress)
    assert isinstance(result, BenchResult)
    assert {row.suite for row in result.rows} == {suite}
    assert any(row.ratio for row in result.rows)
    assert {"processor", "threads", "copy", "gemm", "torch"} <= set(result.machine)
    assert json.loads(json.dumps(result.to_json()))["rows"]
    assert markdown(result).count("\n") == len(result.rows) + 4


def test_rows_are_written_as_they_come(small: None, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    events = bench("decode", out)
    next(events)
    next(events)
    facts, first = map(json.loads, out.read_text("utf-8").splitlines())
    assert "processor" in facts
    assert first["suite"] == "decode"
    *_, result = events
    assert [json.loads(line) for line in out.read_text("utf-8").splitlines()[1:]] == result.to_json()["rows"]
    with pytest.raises(ConfigError, match="cannot be written"):
        list(bench("decode", tmp_path / "nowhere" / "rows.jsonl"))


def test_rows_without_times_are_told_by_their_note() -> None:
    table = markdown(
        BenchResult({}, (Row("s", "size", rate=2.0, unit="MB", ratio=5.0, against="fp16"), Row("s", "x", note="no")))
    )
    assert table.splitlines()[-2:] == ["| s | size |  | 2 MB | 5 × fp16 |  |", "| s | x |  |  |  | no |"]


@pytest.mark.slow
def test_memory_is_told_by_record_and_as_measured() -> None:
    *_, result = bench("memory")
    cases = {row.case: row for row in result.rows}
    record = cases["by record, weights + scratch, rvq:bits=3, streaming"]
    assert record.ratio is not None
    assert record.ratio > 1.5
    assert sum("measured" in case for case in cases) == 3


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["step", "load", "e2e"])
def test_suites_on_nano_run(suite: str) -> None:
    *_, result = bench(suite)
    assert any("streaming" in row.case and row.ratio for row in result.rows)


def test_an_unknown_suite_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=", ".join(SUITES)):
        list(bench("speed"))


def test_the_whole_path_at_full_size(tiny_pipeline_folder: Path) -> None:
    """On a small model here; what the rows promise holds at every size."""
    model = RandomModel(skeleton=tiny_pipeline_folder)
    rows = {row.case: row for row in full(model)}
    compressed = [row for case, row in rows.items() if case.startswith("compress ")]
    layers = sum(kind_of(module) is not None for module in skeleton(model.config("unet")).modules())
    assert [row.note.split(",")[0] for row in compressed] == [f"{layers} layers seen"] * 2
    assert sum(case.startswith("peak memory of compress") for case in rows) == 2
    assert sum(case.startswith("load ") for case in rows) == 5
    assert sum(case.startswith("memory of rvq:bits=3, streaming") for case in rows) == 2
    streaming = next(row for case, row in rows.items() if case.endswith("float32, streaming"))
    assert float(streaming.note.split()[2]) < 1e-4
