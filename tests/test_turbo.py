"""SDXL-Turbo's ways, on nano behind Turbo's scheduler: 1 to 4 steps, no guidance, noise in every step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from turbo_nano import SCHEDULER, make_turbo

from sdvq_core.arms import parse_arm
from sdvq_core.diffusion.base_model import BaseModel, load_base
from sdvq_core.diffusion.decoding import decode
from sdvq_core.diffusion.sampling import sample, sample_batch
from sdvq_core.diffusion.sources import find_source
from sdvq_core.distillation import DistillationSettings
from sdvq_core.jobs import CompareJob, CompareResult, Sampling
from sdvq_core.recipes import Recipe
from sdvq_core.records import Report
from sdvq_core.statistics import calibrated_layers, settings_for, statistics_key
from sdvq_core.summaries import EvaluateJob, EvaluateResult
from sdvq_core.teaching import lessons
from sdvq_core.workbench import Workbench

PROMPT = "a frog on a blue background"
STEPS = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_turbo(tmp_path_factory.mktemp("models") / "nano-turbo"))


@pytest.fixture(scope="module")
def base(turbo: str) -> BaseModel:
    found = load_base(find_source(turbo), "cpu")
    found.pipe.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(tmp_path_factory.mktemp("data"), "cpu")


def one(steps: int, seed: int = 5) -> Sampling:
    return Sampling(PROMPT, seed, steps, 0.0)


def test_the_scheduler_brings_its_habits(turbo: str) -> None:
    source = find_source(turbo)
    assert (source.steps, source.guidance, source.tier) == (2, 0.0, "nano")
    preset = find_source("sdxl-turbo")
    assert (preset.steps, preset.guidance, preset.resolution, preset.batch) == (2, 0.0, 512, 1)


@pytest.mark.parametrize("steps", STEPS)
def test_latents_and_image_equal_the_pipelines_bit_for_bit(base: BaseModel, steps: int) -> None:
    *_, last = sample(base, base.unet, one(steps))
    arguments = {"num_inference_steps": steps, "guidance_scale": 0.0}
    seeds = (torch.Generator("cpu").manual_seed(5) for _ in range(2))
    latents = base.pipe(PROMPT, generator=next(seeds), output_type="latent", **arguments).images
    assert torch.equal(last.latents, latents)
    image = base.pipe(PROMPT, generator=next(seeds), **arguments).images[0]
    assert decode(base, last.latents)[0].tobytes() == image.tobytes()


def test_timesteps_trail_from_the_end(base: BaseModel) -> None:
    scheduler = type(base.pipe.scheduler).from_config(base.pipe.scheduler.config)
    assert base.pipe.scheduler.config.timestep_spacing == SCHEDULER["timestep_spacing"] == "trailing"
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps[0] == 999
        assert len(scheduler.timesteps) == steps


def test_noise_of_every_step_is_drawn_per_image_from_its_own_seed(base: BaseModel) -> None:
    """The third image of a batch is the one that its seed draws alone, and no other."""
    samplings = [one(4, seed) for seed in (5, 6, 7)]
    *_, batch = sample_batch(base, base.unet, samplings)
    for row, sampling in enumerate(samplings):
        *_, alone = sample(base, base.unet, sampling)
        torch.testing.assert_close(batch.latents[row : row + 1], alone.latents, rtol=1e-3, atol=1e-3)
    *_, other = sample(base, base.unet, one(4, 8))
    assert (other.latents - batch.latents[2:]).square().mean() > 0.1


def test_no_guidance_means_one_call_of_the_unet_on_one_image(base: BaseModel) -> None:
    seen: list[tuple[int, ...]] = []
    hook = base.unet.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    try:
        list(sample(base, base.unet, one(3)))
    finally:
        hook.remove()
    assert seen == [(1, 8, 16, 16)] * 3


@pytest.mark.parametrize("steps", STEPS)
def test_compare_draws_every_arm_from_the_same_noise(bench: Workbench, turbo: str, steps: int) -> None:
    job = CompareJob(turbo, ("fp16", "rtn:bits=8", "rtn:bits=2"), one(steps))
    result = list(bench.compare(job))[-1]
    assert isinstance(result, CompareResult)
    reference, fine, coarse = (arm.scores for arm in result.arms)
    assert reference.latent_mse == 0
    assert fine.latent_mse is not None
    assert coarse.latent_mse is not None
    assert 0 < fine.latent_mse < 0.01 < coarse.latent_mse


def test_a_model_that_shares_its_unet_does_not_share_its_samples(bench: Workbench, turbo: str) -> None:
    """nano and nano-turbo have one fingerprint, and draw different images."""
    assert bench.engine.shelf.fingerprint("nano") == bench.engine.shelf.fingerprint(turbo)
    images = []
    for model in ("nano", turbo):
        result = list(bench.compare(CompareJob(model, ("fp16",), one(2))))[-1]
        assert isinstance(result, CompareResult)
        images.append(result.arms[0].image.tobytes())
    assert images[0] != images[1]


@pytest.mark.parametrize("steps", [1, 4])
def test_evaluate_measures_few_steps(bench: Workbench, turbo: str, steps: int) -> None:
    job = EvaluateJob(turbo, ("fp16", "rtn:bits=3"), (PROMPT, "a smiling cat"), one(steps), seeds=2)
    result = list(bench.evaluate(job))[-1]
    assert isinstance(result, EvaluateResult)
    reference, arm = result.arms
    assert arm.timesteps is not None
    assert len(arm.timesteps.times) == len(arm.timesteps.forced) == len(arm.timesteps.free) == steps
    assert arm.timesteps.times[0] == 999
    assert all(0 < error < 2 for error in (*arm.timesteps.forced, *arm.timesteps.free))
    assert reference.measures["latent_mse"].mean == 0 < arm.measures["latent_mse"].mean
    assert result.precision_floor is not None
    assert result.precision_floor.measures["latent_mse"].mean < arm.measures["latent_mse"].mean


@pytest.mark.slow
def test_calibration_follows_the_models_own_few_steps(bench: Workbench, turbo: str) -> None:
    settings = settings_for(find_source(turbo))
    assert (settings.steps, settings.guidance) == (2, 0.0)
    word = "gptq:bits=3"
    report = list(bench.compress(turbo, word))[-1]
    assert isinstance(report, Report)
    calibrated = calibrated_layers(bench.engine.shelf.plan(turbo, parse_arm(word)))
    measured = [layer.name for layer in report.layers if layer.relative_output_mse is not None]
    assert measured == calibrated
    errors = [arm.scores.latent_mse for arm in _result(bench, CompareJob(turbo, ("fp16", word), one(2))).arms]
    assert errors[0] == 0
    assert 0 < errors[1] < 0.5  # type: ignore[operator]


@pytest.mark.slow
def test_statistics_of_the_slow_model_are_not_taken_for_the_fast_ones(bench: Workbench, turbo: str) -> None:
    """nano's UNet is the same, its steps are not: each has its own statistics, and artifacts of them."""
    fingerprint = bench.engine.shelf.fingerprint("nano")
    keys = {statistics_key(find_source(model), fingerprint) for model in ("nano", turbo)}
    assert len(keys) == 2
    assert bench.engine.shelf.cached(turbo, parse_arm("gptq:bits=3")) is not None
    assert bench.engine.shelf.cached("nano", parse_arm("gptq:bits=3")) is None


def test_lessons_hold_one_half_per_image_and_every_step(base: BaseModel) -> None:
    *_, found = lessons(base, pairs=32)
    assert found.steps == base.source.steps == 2
    assert found.halves == 1
    assert found.times.tolist() == [999.0, 499.0]
    assert found.latents.shape == (16, 2, 8, 16, 16)


@pytest.mark.slow
def test_distillation_on_few_steps_lowers_its_loss(
    bench: Workbench, turbo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdvq_core import arms
    from sdvq_core.plan import vqdm_rules
    from sdvq_core.quantizers import parse

    settings = DistillationSettings(updates=30, batch=8, look_every=10, warm_up=2)
    recipe = Recipe("few", "Few", "", tuple(vqdm_rules(parse("rvq:bits=2"))), settings)
    monkeypatch.setattr(arms, "find_recipe", lambda name: recipe)
    report = list(bench.compress(turbo, "@few"))[-1]
    assert isinstance(report, Report)
    losses = [loss for _, loss in report.curve]
    assert len(losses) == 4
    assert min(losses) < 0.8 * losses[0]
    job = CompareJob(turbo, ("fp16", "rvq:bits=2", "@few"), one(2))
    errors = [arm.scores.latent_mse for arm in _result(bench, job).arms]
    assert errors[2] < errors[1]  # type: ignore[operator]


def _result(bench: Workbench, job: CompareJob) -> CompareResult:
    result = list(bench.compare(job))[-1]
    assert isinstance(result, CompareResult)
    return result


def test_a_lone_step_is_enough_for_a_lesson(turbo: str, bench: Workbench) -> None:
    slow = load_base(replace(find_source(turbo), steps=1), "cpu")
    *_, found = lessons(slow, pairs=16)
    assert found.steps == 1
