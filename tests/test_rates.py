"""What a machine did before foretells what it will take; nobody guesses without a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdvq_core.diffusion.sources import find_source
from sdvq_core.jobs import CompareJob, Notice, Progress, Sampling
from sdvq_core.plan import CompressionPlan, vqdm_rules
from sdvq_core.quantizers import parse
from sdvq_core.rates import Rates, Stopwatch, drawing, habits, weights_of
from sdvq_core.workbench import Workbench

GPU = "NVIDIA Of This Test"


def plan(word: str) -> CompressionPlan:
    from sdvq_core.diffusion.base_model import unet_skeleton

    return CompressionPlan.resolve(unet_skeleton(find_source("nano")), vqdm_rules(parse(word)))


def test_nothing_measured_nothing_foretold(tmp_path: Path) -> None:
    rates = Rates(tmp_path, GPU)
    assert rates.compression(plan("rvq:bits=3")) is None
    assert rates.seconds("sample", "anything", 20) is None


def test_a_measurement_scales_with_the_weights_and_is_kept(tmp_path: Path) -> None:
    work = plan("rvq:bits=3")
    Rates(tmp_path, GPU).note_compression(work, 12.0)
    assert Rates(tmp_path, GPU).compression(work) == pytest.approx(12.0)
    assert Rates(tmp_path, "another GPU").compression(work) is None


def test_another_width_is_foretold_from_its_kind_until_it_is_measured(tmp_path: Path) -> None:
    rates, three, two = Rates(tmp_path, GPU), plan("rvq:bits=3"), plan("rvq:bits=2")
    rates.note_compression(three, 10.0)
    assert rates.compression(two) == pytest.approx(10.0 * weights_of(two) / weights_of(three))
    rates.note_compression(two, 4.0)
    assert rates.compression(two) == pytest.approx(4.0)
    assert rates.compression(three) == pytest.approx(10.0)
    assert rates.compression(plan("tcq:bits=3")) is None


def test_the_newest_counts_half(tmp_path: Path) -> None:
    rates = Rates(tmp_path, GPU)
    for seconds in (10.0, 20.0):
        rates.note("sample", "x", 100, seconds)
    assert rates.seconds("sample", "x", 7.5) == pytest.approx(1.0)  # 10 and 5 per second


def test_work_too_short_to_tell_is_not_noted(tmp_path: Path) -> None:
    Rates(tmp_path, GPU).note("sample", "x", 1, 0.01)
    assert list(tmp_path.iterdir()) == []


def test_a_cpu_starts_from_what_was_measured_on_one(tmp_path: Path) -> None:
    work = plan("rvq:bits=3")
    two, one = (Rates(tmp_path, f"x86_64 CPU, {words}").compression(work) for words in ("2 threads", "1 thread"))
    assert two == pytest.approx(weights_of(work) / 3.91e6)
    assert one is None  # nobody has measured that


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', '{"a": NaN}', '{"a": -1}', "\x00"])
def test_a_damaged_file_is_forgotten(content: str, tmp_path: Path) -> None:
    (tmp_path / "rates.json").write_text(content)
    rates = Rates(tmp_path, GPU)
    assert rates.seconds("sample", "a", 1) is None
    rates.note("sample", "a", 10, 1.0)
    assert rates.seconds("sample", "a", 10) == pytest.approx(1.0)


def test_time_goes_to_the_stage_that_ends_in_it() -> None:
    import time

    def run() -> object:
        time.sleep(0.05)
        yield Progress("calibrate", "", 1, 1)
        time.sleep(0.02)
        yield Progress("compress", "", 1, 1)
        time.sleep(0.02)
        yield Progress("compress", "", 2, 2)

    watch = Stopwatch()
    for _ in watch.watch(run()):  # type: ignore[arg-type]
        time.sleep(0.1)  # the caller's time is nobody's
    assert 0.05 <= watch.seconds["calibrate"] < 0.1
    assert 0.04 <= watch.seconds["compress"] < 0.1
    assert watch.whole


def test_a_run_that_went_on_elsewhere_is_not_noted(tmp_path: Path) -> None:
    watch, rates = Stopwatch(), Rates(tmp_path, GPU)
    list(watch.watch([Notice("going on where an earlier run stopped"), Progress("compress", "", 1, 1)]))
    watch.seconds["compress"] = 5.0
    rates.note_run(watch, find_source("nano"), plan("rvq:bits=3"), 0)
    assert rates.compression(plan("rvq:bits=3")) is None


def test_compressing_and_drawing_teach_the_workbench(tmp_path: Path) -> None:
    bench, source = Workbench(tmp_path, "cpu"), find_source("nano")
    (first,) = bench.estimate("nano", "rvq:bits=3").work
    job = CompareJob("nano", ("fp16", "rvq:bits=3"), Sampling("a frog", steps=8))
    list(bench.compare(job))
    rates = bench.engine.rates
    (second,) = bench.estimate("nano", "rvq:bits=2").work
    assert first.seconds is not None
    assert second.seconds is not None
    assert rates.seconds("compress", "any rvq", 1) is not None
    assert rates.seconds("sample", drawing(source, 4.0), 8) is not None
    known = bench.job_seconds(job)
    assert 0 < known < Workbench(tmp_path / "new", "cpu").job_seconds(job)  # loaded, made, and steps are timed
    assert bench.job_seconds(job, job) == pytest.approx(2 * known)
    assert bench.estimate("nano", "rvq:bits=3").seconds == 0.0


def test_models_with_other_habits_do_not_foretell_each_other() -> None:
    nano, turbo = find_source("nano"), find_source("sdxl-turbo")
    assert len({habits(nano), habits(turbo), drawing(nano, 4.0), drawing(nano, 0.0)}) == 4
