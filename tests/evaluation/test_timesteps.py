"""The replay keeps the reference's way whatever the arm says; errors are ratios per image."""

from __future__ import annotations

import copy

import pytest
import torch

from sdvq_core.calibration import Trajectory
from sdvq_core.diffusion.sampling import sample_batch
from sdvq_core.distillation import record_lessons
from sdvq_core.evaluation.timesteps import Replay, relative_errors
from sdvq_core.jobs import Sampling


def batch(guidance: float) -> list[Sampling]:
    return [Sampling(prompt, seed, 3, guidance) for seed, prompt in enumerate(("a red frog", ""))]


@pytest.fixture(scope="module")
def louder(tiny_base):
    """A UNet whose output is 1.1 times the original's."""
    unet = copy.deepcopy(tiny_base.unet)
    for parameter in unet.conv_out.parameters():
        parameter.mul_(1.1)
    return unet


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_the_latents_stay_the_references_and_the_error_is_the_arms(tiny_base, louder, guidance):
    samplings = batch(guidance)
    ways = [Trajectory(lambda: sample_batch(tiny_base, tiny_base.unet, samplings), 3)]
    *_, lessons = record_lessons(tiny_base.unet, ways, 2 if guidance > 1 else 1)
    replay = Replay(louder, lessons.outputs, guidance)
    own = [step.latents for step in sample_batch(tiny_base, tiny_base.unet, samplings)]
    replayed = [step.latents for step in sample_batch(tiny_base, replay, samplings)]
    assert all(torch.equal(first, second) for first, second in zip(own, replayed, strict=True))
    torch.testing.assert_close(torch.stack(replay.errors, 1), torch.full((2, 3), 0.01).double(), rtol=1e-3, atol=0)
    assert replay.times == lessons.times.tolist()


def test_relative_errors_are_per_image_and_nothing_by_nothing_is_nothing():
    reference = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    value = torch.tensor([[3.0, 9.0], [0.0, 0.0], [0.0, 1.0]])
    assert relative_errors(reference, value).tolist() == [1.0, 0.0, 0.25]
