"""Block after block in the real path: what later blocks are calibrated on, keys, progress, and whether it pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from orders import an_order

from sdvq_core import presets
from sdvq_core.arms import Arm, parse_arm
from sdvq_core.calibration import block_groups
from sdvq_core.compress import Compression, LayerResult
from sdvq_core.crew import Threads
from sdvq_core.diffusion.sampling import sample_batch
from sdvq_core.encoding import ModuleWeights
from sdvq_core.engine import Engine
from sdvq_core.errors import ConfigError
from sdvq_core.integrations.loading import load_artifact
from sdvq_core.jobs import Progress, Sampling
from sdvq_core.metrics.weights import relative_mse
from sdvq_core.plan import CompressionPlan
from sdvq_core.production import produce, recipe_digest
from sdvq_core.recipes import find_recipe
from sdvq_core.sequential import compress_sequentially
from sdvq_core.statistics import Calibration, gather
from sdvq_core.store import Artifact, write_artifact

WORD = "gptq:bits=2"
PROMPTS = ["a red frog", "a blue frog", "blue", "a frog on red"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four prompts instead of the tier's 64."""
    monkeypatch.setattr(presets, "calibration_prompts", lambda tier: [*PROMPTS])


@pytest.fixture
def arm() -> Arm:
    return replace(parse_arm(WORD), sequential=True)


@pytest.fixture
def plan(tiny_base: Any, arm: Arm) -> CompressionPlan:
    return CompressionPlan.resolve(tiny_base.unet, arm.rules)


def a_run(base, plan):
    return Compression(plan, ModuleWeights(base.unet), base.device)


def test_the_first_group_is_calibrated_as_ever_and_later_ones_on_what_came_before(tiny_base, plan, tmp_path):
    before = [tensor.clone() for tensor in tiny_base.unet.state_dict().values()]
    *_, plain = gather(tiny_base, plan, tmp_path)
    *events, found = compress_sequentially(tiny_base, a_run(tiny_base, plan), tmp_path)
    groups = list(block_groups([item.name for item in plan.assignments]).values())
    assert set(found) == set(plain) == {name for names in groups for name in names}
    drift = [
        max(
            float((found[n].second_moment - plain[n].second_moment).norm() / plain[n].second_moment.norm())
            for n in names
        )
        for names in groups
    ]
    assert drift[0] == 0
    assert min(drift[1:]) > 0.01
    results = [event for event in events if isinstance(event, LayerResult)]
    assert [result.record.name for result in results] == [name for names in groups for name in names]
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_base.unet.state_dict().values(), strict=True))


def test_each_layer_is_what_its_own_statistics_make_of_the_original_weight(tiny_base, plan, tmp_path):
    *events, found = compress_sequentially(tiny_base, a_run(tiny_base, plan), tmp_path)
    results = {event.record.name: event for event in events if isinstance(event, LayerResult)}
    for item in plan.assignments[::7]:
        weight = tiny_base.unet.get_submodule(item.name).weight.detach()
        (again,) = Threads(1).run(
            lambda task: task[0].quantize(*task[1:]), [(item.quantizer, weight, found[item.name])]
        )
        assert torch.equal(again.dequantize(), results[item.name].tensor.dequantize())


def test_progress_never_goes_back_and_the_time_left_covers_all_groups(tiny_base, plan, tmp_path):
    events = [e for e in compress_sequentially(tiny_base, a_run(tiny_base, plan), tmp_path) if isinstance(e, Progress)]
    for stage in ("calibrate", "compress"):
        shares = [event.done / event.total for event in events if event.stage == stage]
        assert shares == sorted(shares)
        assert shares[-1] == 1
    gathering = [event for event in events if event.stage == "calibrate"]
    assert gathering[-1].seconds_left == pytest.approx(0)
    assert gathering[len(gathering) // 2].seconds_left > 0
    assert gathering[0].text.startswith("down_blocks.0 (1 of 7): ")


def test_a_run_that_was_stopped_goes_on_with_the_groups_it_has(tiny_base, plan, tmp_path):
    run = compress_sequentially(tiny_base, a_run(tiny_base, plan), tmp_path)
    for event in run:
        if isinstance(event, Progress) and event.text.startswith("mid_block"):
            break
    run.close()
    *events, found = compress_sequentially(tiny_base, a_run(tiny_base, plan), tmp_path)
    texts = [event.text for event in events if isinstance(event, Progress) and event.stage == "calibrate"]
    assert texts[0].startswith("mid_block")
    *_, whole = compress_sequentially(tiny_base, a_run(tiny_base, plan), tmp_path / "again")
    assert found.digest == whole.digest


def test_only_the_layers_of_a_plan_that_ask_are_calibrated(tiny_base, tmp_path):
    """A group without any, and a mixed one, are compressed in their turn all the same."""
    rules = (*parse_arm("gptq").rules, *(replace(r, pattern="down_blocks*") for r in parse_arm("rtn").rules[:1]))
    plan = CompressionPlan.resolve(tiny_base.unet, rules)
    *events, found = compress_sequentially(tiny_base, a_run(tiny_base, plan), tmp_path)
    assert sum(isinstance(event, LayerResult) for event in events) == len(plan.assignments)
    assert not any(name.startswith("down_blocks") for name in found)
    *_, plain = gather(tiny_base, plan, tmp_path)
    assert set(found) == set(plain)
    assert found.digest != plain.digest


def test_the_mode_is_in_the_key_of_calibrated_arms(tiny_base, arm, plan):
    def digest(one: Arm, of: CompressionPlan) -> str:
        return recipe_digest(tiny_base.source, "f", of, one)

    assert digest(arm, plan) != digest(replace(arm, sequential=False), plan)
    free = parse_arm("rtn")
    of = CompressionPlan.resolve(tiny_base.unet, free.rules)
    assert digest(free, of) == digest(replace(free, sequential=True), of)


def test_a_recipe_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipeline_folder: Path):
    (tmp_path / "recipes").mkdir()
    file, rules = tmp_path / "recipes" / "mine.yaml", f"rules: [{{pattern: '*', quantizer: '{WORD}'}}]\n"
    file.write_text(rules + "sequential: true\n")
    monkeypatch.setattr("sdvq_core.arms.find_recipe", lambda name: find_recipe(name, tmp_path))
    assert parse_arm("@mine").sequential
    engine, model = Engine(tmp_path / "data", "cpu"), str(tiny_pipeline_folder)
    *events, folder = engine.compress(model, parse_arm("@mine"))
    assert any("(7 of 7)" in event.text for event in events)
    assert {event.arm for event in events if isinstance(event, Progress)} == {"@mine"}
    assert list(engine.compress(model, parse_arm("@mine"))) == [folder]
    file.write_text(rules)
    assert engine.shelf.cached(model, parse_arm("@mine")) is None
    for bad in ("sequential: 1", "sequential: 'yes please'", "sequential: [true]"):
        file.write_text(rules + bad + "\n")
        with pytest.raises(ConfigError, match=r"mine.yaml: sequential must be true or false"):
            find_recipe("mine", tmp_path)


def test_borrowed_statistics_and_block_after_block_exclude_each_other(tiny_base, plan, tmp_path):
    with pytest.raises(ConfigError, match="leave out the folder"):
        list(compress_sequentially(tiny_base, a_run(tiny_base, plan), tmp_path, Calibration(statistics=tmp_path)))


def test_it_is_a_small_change_of_the_final_error_either_way(tiny_base, arm, plan, tmp_path):
    """Latents of 16 images that nothing was calibrated on, of a model with random weights.

    Measured ratios, sequential to plain: `gptq` at 2, 3 and 4 bits 1.07, 1.01, 1.01; `aq` at 2 and 3 bits 0.85, 1.01.
    """
    errors = []
    for sequential in (False, True):
        folder = tmp_path / str(sequential)
        *_, artifact = produce(an_order(tiny_base, plan, replace(arm, sequential=sequential), folder / "data"))
        assert isinstance(artifact, Artifact)
        write_artifact(folder / "out", artifact)
        errors.append(latent_error(tiny_base, load_artifact(folder / "out", tiny_base.device, tiny_base.dtype)))
    assert 0.75 * errors[0] < errors[1] < 1.25 * errors[0]


def latent_error(base: Any, unet: Any) -> float:
    samplings = [Sampling("a red frog", 1000 + seed, 20, 4.0) for seed in range(16)]
    finals = []
    for model in (base.unet, unet):
        for step in sample_batch(base, model, samplings):
            last = step.latents
        finals.append(last)
    return relative_mse(*finals)
