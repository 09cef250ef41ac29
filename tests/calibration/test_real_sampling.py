"""Statistics over the real sampler: both guidance halves where there are two, and numbers that compression can use."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import pytest
import torch
from calibration_runs import last
from diffusers import HeunDiscreteScheduler

from sdvq_core.calibration import (
    CalibrationSettings,
    GroupStats,
    Here,
    Trajectory,
    block_groups,
    collect,
    collect_sequential,
)
from sdvq_core.compress import compress
from sdvq_core.diffusion.sampling import sample_batch
from sdvq_core.nn import swap_layer
from sdvq_core.plan import CompressionPlan, vqdm_rules
from sdvq_core.quantizers import make
from sdvq_core.records import BaseInfo
from sdvq_core.statistics import trajectories

CONV, TEXT = "down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
PROMPTS = ("a red frog", "blue", "a frog on blue")


def _trajectories(base, unet, settings):
    return [Trajectory(partial(sample_batch, base, unet, batch), settings.steps) for batch in settings.batches()]


def _settings(guidance: float) -> CalibrationSettings:
    return CalibrationSettings(PROMPTS, steps=2, guidance=guidance, batch=2, rows_per_forward=10**6)


@pytest.mark.parametrize(("guidance", "halves"), [(4.0, 2), (1.0, 1), (0.0, 1)])
def test_both_guidance_halves_are_seen_where_the_sampler_runs_both(tiny_base, tmp_path, guidance, halves):
    settings = _settings(guidance)
    runs = _trajectories(tiny_base, tiny_base.unet, settings)
    info = BaseInfo("tiny", tiny_base.fingerprint)
    stats = last(collect(Here(tiny_base.unet, runs), [CONV, TEXT], settings, tmp_path, info))
    images = 2 * len(PROMPTS) * halves  # steps x prompts x halves
    assert stats[CONV].rows == images * 8 * 8
    assert stats[TEXT].rows % images == 0
    assert stats[CONV].second_moment.shape == (24 * 9, 24 * 9)
    assert stats[TEXT].second_moment.shape == (36, 36)


def test_a_plan_compresses_with_them_and_reports_output_errors(tiny_base, tmp_path):
    settings = _settings(4.0)
    plan = CompressionPlan.resolve(tiny_base.unet, vqdm_rules(make({"name": "rtn"})))
    names = [item.name for item in plan.assignments]
    runs = _trajectories(tiny_base, tiny_base.unet, settings)
    info = BaseInfo("tiny", tiny_base.fingerprint)
    stats = last(collect(Here(tiny_base.unet, runs), names, settings, tmp_path, info))
    errors = [result.record.relative_output_mse for result in compress(tiny_base.unet, plan, stats)]
    assert all(error is not None and 0 < error < 0.1 for error in errors)


def test_groups_are_compressed_one_after_the_other(tiny_base, tmp_path):
    unet, settings = deepcopy(tiny_base.unet), _settings(4.0).after("rtn:bits=2")
    plan = CompressionPlan.resolve(tiny_base.unet, vqdm_rules(make({"name": "rtn", "bits": 2})))
    quantizers = {item.name: item.quantizer for item in plan.assignments}
    groups = block_groups([*quantizers])
    info = BaseInfo("tiny", tiny_base.fingerprint)
    runs = _trajectories(tiny_base, tiny_base.unet, settings)
    before = last(collect(Here(tiny_base.unet, runs), [*quantizers], settings, tmp_path / "a", info))
    done, drift = [], {}
    runs = _trajectories(tiny_base, unet, settings)
    for event in collect_sequential(Here(unet, runs), groups, settings, tmp_path / "b", info):
        if isinstance(event, GroupStats):
            for name in event.layers:
                found, first = event.stats[name].second_moment, before[name].second_moment
                drift[name] = float((found - first).norm() / first.norm())
                weight = tiny_base.unet.get_submodule(name).weight
                swap_layer(unet, name, quantizers[name].quantize(weight, event.stats[name]))
                done.append(name)
    assert sorted(done) == sorted(quantizers)
    assert drift[CONV] < 0.01 < drift["up_blocks.2.resnets.0.conv1"]
    assert torch.isfinite(torch.tensor(list(drift.values()))).all()


def test_a_trajectory_knows_its_calls_where_the_scheduler_looks_twice_at_a_step(tiny_base, monkeypatch):
    heun = HeunDiscreteScheduler.from_config(tiny_base.pipe.scheduler.config)
    monkeypatch.setattr(tiny_base.pipe, "scheduler", heun)
    (run, _) = trajectories(tiny_base, tiny_base.unet, _settings(4.0))
    assert len(list(run.run())) == run.steps == 3
