"""The evaluation as a whole, on a tiny model: truths about arms and floors, and runs that are stopped and taken up."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from sdvq_core import Workbench
from sdvq_core.diffusion import sources
from sdvq_core.errors import ConfigError
from sdvq_core.evaluation import samples
from sdvq_core.jobs import Progress, Sampling
from sdvq_core.metrics.images import psnr
from sdvq_core.store.samples import SampleStore
from sdvq_core.summaries import EvaluateJob, EvaluateResult

SAMPLING = Sampling("", seed=3, steps=3, guidance=3.0)
ARMS = ("fp16", "rtn:bits=4", "rvq:bits=2,beam=2")
PROMPTS = ("a red frog", "a blue frog", "frog on a red frog")


@pytest.fixture(scope="module")
def model(tiny_pipeline_folder: Path) -> str:
    return str(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def job(model) -> EvaluateJob:
    return EvaluateJob(model, ARMS, PROMPTS, SAMPLING, seeds=2)


@pytest.fixture(scope="module")
def events(job, data) -> list:
    return list(Workbench(data, "cpu").evaluate(job))


@pytest.fixture(scope="module")
def result(events) -> EvaluateResult:
    return events[-1]


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setitem(sources._BATCH, "nano", 2)


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Every batch that is drawn from now on, not taken from the disk."""
    found, original = [], samples._drawn
    monkeypatch.setattr(samples, "_drawn", lambda *words: found.append(words[2]) or original(*words))
    return found


def timeless(result: EvaluateResult) -> dict:
    found = result.to_json()
    for arm in (*found["arms"], found["other_seed"], found["fp32"]):
        del arm["seconds"]
    return found


def median_error(arm) -> float:
    return arm.measures["latent_mse"].median


def test_compression_stands_between_the_noise_floors(result):
    fp16, rtn, rvq = result.arms
    assert median_error(fp16) == 0 < median_error(result.precision_floor) < median_error(rtn) < median_error(rvq)
    assert median_error(rvq) < median_error(result.noise_floor)
    assert result.noise_floor.fork_rate == 1
    assert result.precision_floor.fork_rate == 0
    assert result.precision_floor.label == "fp16 rounding of every layer"


def test_the_median_stands_within_its_own_interval(result):
    for arm in (*result.arms, *result.floors):
        low, high = arm.latent_interval
        assert low <= median_error(arm) <= high


def test_sets_are_nearer_to_the_reference_the_nearer_their_images(result):
    fp16, rtn, rvq = result.arms
    assert fp16.frechet == pytest.approx(0, abs=1e-6)
    assert fp16.cmmd == pytest.approx(0, abs=1e-9)
    assert result.precision_floor.cmmd < rtn.cmmd < rvq.cmmd


def test_progress_runs_once_from_nothing_to_all(events):
    drawing = [event for event in events if isinstance(event, Progress) and event.stage == "sample"]
    done = [event.done for event in drawing]
    assert done == sorted(done)
    assert {event.total for event in drawing} == {done[-1]}
    assert (drawing[0].done, drawing[0].seconds_left) == (0, None)
    assert all(event.seconds_left is not None for event in drawing[1:])
    assert drawing[-1].seconds_left == 0


def test_worst_and_median_pair_are_what_they_say(result):
    for arm in (*result.arms[1:], *result.floors):
        worst, median = arm.pairs
        assert (worst.rank, median.rank) == ("worst", "median")
        assert worst.psnr < median.psnr
        assert worst.psnr <= arm.measures["psnr"].low
        assert all(psnr(pair.reference, pair.image) == pair.psnr for pair in arm.pairs)
        assert all(pair.prompt in PROMPTS for pair in arm.pairs)
    assert result.arms[0].pairs == ()


def test_step_errors_end_where_the_images_do(result, job):
    for arm in (*result.arms[1:], result.precision_floor):
        steps = arm.timesteps
        assert steps.n == len(PROMPTS), "the first seed of each prompt"
        assert len(steps.times) == len(steps.forced) == len(steps.free) == job.sampling.steps
        assert list(steps.times) == sorted(steps.times, reverse=True)
        assert min(steps.forced) > 0
    rtn, rvq = result.arms[1:]
    assert all(fine < coarse for fine, coarse in zip(rtn.timesteps.forced, rvq.timesteps.forced, strict=True))


def test_a_second_run_draws_nothing_and_says_the_same(result, job, data, drawn):
    again = list(Workbench(data, "cpu").evaluate(job))[-1]
    assert drawn == []
    assert again.to_json() == result.to_json(), "seconds are those of the first run"


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(job, tmp_path, small_batches, drawn):
    whole = list(Workbench(tmp_path / "whole", "cpu").evaluate(job))[-1]
    needed = len(drawn)
    running = Workbench(tmp_path / "parts", "cpu").evaluate(job)
    while len(drawn) < needed + 9:  # in the middle of the floors
        next(running)
    running.close()
    parts = list(Workbench(tmp_path / "parts", "cpu").evaluate(job))[-1]
    assert timeless(parts) == timeless(whole)
    assert len(drawn) - needed == needed, "no batch is drawn twice"


@pytest.mark.parametrize("harm", [lambda data: data[:-9], lambda data: b"", lambda data: data[:-1] + b"x"])
def test_damaged_samples_are_drawn_again(result, job, data, drawn, harm):
    for path in (data / "evaluations").rglob("*.safetensors"):
        path.write_bytes(harm(path.read_bytes()))
    again = list(Workbench(data, "cpu").evaluate(job))[-1]
    assert drawn
    assert timeless(again) == timeless(result)


def test_another_seed_or_step_count_is_another_evaluation(job, data, drawn):
    for changed in ({"seed": 4}, {"steps": 2}, {"guidance": 1.0}):
        other = replace(job, arms=ARMS[:2], sampling=replace(SAMPLING, **changed))
        count = len(drawn)
        found = list(Workbench(data, "cpu").evaluate(other))[-1]
        assert len(drawn) > count
        assert found.arms[1].timesteps.forced[0] > 0


def test_a_new_arm_leaves_the_others_alone(result, job, data, drawn):
    found = list(Workbench(data, "cpu").evaluate(replace(job, arms=(*ARMS, "rtn:bits=8"))))[-1]
    assert len(drawn) == 2, "three traced images, and three more"
    assert [arm.arm for arm in found.arms] == [*ARMS, "rtn:bits=8"]
    assert timeless(found)["arms"][:3] == timeless(result)["arms"]


def test_the_same_arm_twice_is_at_no_distance(model, data):
    job = EvaluateJob(model, ("rtn:bits=4", "rtn:bits=4", "fp16"), PROMPTS, SAMPLING)
    first, second, fp16 = list(Workbench(data, "cpu").evaluate(job))[-1].arms
    assert median_error(first) == median_error(second) == 0 < median_error(fp16)
    assert second.timesteps.forced == second.timesteps.free == (0.0,) * SAMPLING.steps
    assert second.pairs == ()


def test_one_prompt_is_enough(model, data):
    found = list(Workbench(data, "cpu").evaluate(EvaluateJob(model, ARMS[:2], ("",), SAMPLING)))[-1]
    assert found.arms[1].frechet is None
    assert found.arms[1].measures["psnr"].low == found.arms[1].measures["psnr"].mean
    assert [pair.rank for pair in found.arms[1].pairs] == ["worst"]


def test_traces_of_another_job_are_not_taken_for_this_one_s(model, tmp_path, small_batches):
    """Batches that were traced under another first seed are untraced here, whatever else their files hold."""
    bench, prompts = Workbench(tmp_path, "cpu"), PROMPTS[:2]
    list(bench.evaluate(EvaluateJob(model, ("fp16", "rtn"), prompts, replace(SAMPLING, seed=5))))
    *_, found = bench.evaluate(EvaluateJob(model, ("fp16", "rtn", "nf4"), prompts, SAMPLING, seeds=2))
    assert [arm.timesteps.n for arm in found.arms[1:]] == [2, 2]


def test_seeds_are_averaged_within_a_prompt_first(job, result):
    assert [sampling.seed for sampling in job.samplings] == [3, 4, 5, 6, 7, 8]
    assert [sampling.prompt for sampling in job.samplings] == [*PROMPTS, *PROMPTS]
    assert result.to_json()["n"] == 3
    assert result.to_json()["seeds"] == 2


def test_scores_over_seeds(job):
    from sdvq_core.evaluation.scoring import Judge

    judge = Judge(job, None, None, (), None)
    found = judge._spread([1.0, 2.0, 6.0, 3.0, 4.0, 6.0])
    assert (found.mean, found.median) == (statistics.fmean([2, 3, 6]), 3)
    assert judge._spread([1.0, 2.0, math.inf, 3.0, 4.0, 6.0]) is None


@pytest.mark.parametrize("seeds", [0, -1, 65, 1.5, True])
def test_seeds_must_be_a_few(model, seeds):
    with pytest.raises(ConfigError, match="seeds must be a whole number from 1 to 64"):
        EvaluateJob(model, ARMS, PROMPTS, SAMPLING, seeds=seeds)


def test_a_wrong_arm_is_refused_before_any_work(model, data, drawn):
    with pytest.raises(ConfigError):
        list(Workbench(data, "cpu").evaluate(EvaluateJob(model, ("fp16", "rtn:bits=99"), PROMPTS, SAMPLING)))
    assert drawn == []


def test_a_damaged_artifact_is_compressed_again(result, job, data, drawn):
    for path in (data / "artifacts").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    found = list(Workbench(data, "cpu").evaluate(replace(job, sampling=replace(SAMPLING, seed=50))))[-1]
    assert drawn
    assert median_error(found.arms[1]) < median_error(found.arms[2])


def test_the_mode_is_that_of_the_drawing_and_no_sample_depends_on_it(model, tmp_path, drawn, small_batches):
    job = EvaluateJob(model, ARMS[:2], PROMPTS, SAMPLING)
    first = list(Workbench(tmp_path, "cpu", mode="streaming").evaluate(job))[-1]
    assert [arm.mode for arm in first.arms] == ["resident", "streaming"]
    assert {floor.mode for floor in first.floors} == {"resident"}
    count = len(drawn)
    again = list(Workbench(tmp_path, "cpu", mode="resident").evaluate(job))[-1]
    assert len(drawn) == count, "the samples are the same ones"
    assert again.to_json() == first.to_json(), "what took those seconds was streaming"
    more = replace(job, prompts=(*PROMPTS[:2], "a red frog on a blue frog"))
    mixed = list(Workbench(tmp_path, "cpu", mode="resident").evaluate(more))[-1]
    assert mixed.arms[1].mode == "resident and streaming"
    assert EvaluateResult.from_json(mixed.to_json()).arms[1].mode == "resident and streaming"


def test_samples_of_earlier_versions_have_no_mode(model, tmp_path, monkeypatch):
    job = EvaluateJob(model, ARMS[:2], PROMPTS[:1], SAMPLING)
    put = SampleStore.put
    monkeypatch.setattr(SampleStore, "put", lambda store, *words: put(store, *words[:4]))
    found = list(Workbench(tmp_path, "cpu").evaluate(job))[-1]
    list(Workbench(tmp_path, "cpu").evaluate(job))
    assert found.arms[1].mode == "resident", "just drawn"
    assert list(Workbench(tmp_path, "cpu").evaluate(job))[-1].arms[1].mode is None


def test_running_out_of_memory_is_a_warning(model, tmp_path, monkeypatch, caplog):
    job = EvaluateJob(model, ARMS[:2], PROMPTS[:1], SAMPLING)
    monkeypatch.setattr("sdvq_core.nn.layers.QuantizedLayer.decoded", _fail_while_resident)
    found = list(Workbench(tmp_path, "cpu", mode="resident").evaluate(job))[-1]
    assert found.arms[1].mode == "streaming"
    assert [record.message for record in caplog.records if "rtn:bits=4: memory ran out" in record.message]


def _fail_while_resident(layer, dtype):
    if layer.mode == "resident":
        raise MemoryError
    return layer.quantized.dequantize(dtype)
