"""What a user decides about calibration: prompts, timesteps, another model's statistics, memory; in keys and words."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration.calibration_runs import last
from safetensors.torch import load_file, save_file

from sdvq_core import Workbench, presets
from sdvq_core.arms import parse_arm
from sdvq_core.calibration import CalibrationSettings, Here, collect, timestep_weights
from sdvq_core.diffusion.sources import Source
from sdvq_core.engine import Engine
from sdvq_core.errors import ConfigError, LayerError, StoreError
from sdvq_core.jobs import Notice
from sdvq_core.plan import CompressionPlan
from sdvq_core.production import recipe_digest
from sdvq_core.records import BaseInfo, Report
from sdvq_core.statistics import Calibration, gather, prompts_for, settings_for, statistics_key, trajectories
from sdvq_core.store import StatsFolder

PROMPTS = ("a red frog", "a blue frog")
LAYERS = ["down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
SOURCE = Source("tiny", "folder", "/tiny", "tiny", "nano", 4, 4.0, 32)
CHOICES = {
    "default": Calibration(),
    "prompts": Calibration(PROMPTS),
    "early": Calibration(timesteps="early"),
    "late": Calibration(timesteps="late"),
    "numbers": Calibration(timesteps="1,0,0,2"),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts instead of the tier's 64."""
    monkeypatch.setattr(presets, "calibration_prompts", lambda tier: [*PROMPTS])


def test_words_for_timestep_weights():
    assert timestep_weights("uniform", 3) == ()
    assert timestep_weights("early", 3) == pytest.approx((4, 2, 1))
    assert timestep_weights("late", 3) == pytest.approx((1, 2, 4))
    assert timestep_weights("1, 0,2.5", 3) == (1, 0, 2.5)
    for word in ("middle", "", "1,2", "1,2,3,4", "0,0,0", "1,-1,1", "nan,1,1", "1,,1"):
        with pytest.raises(ConfigError, match="timesteps must be uniform, early, late or 3 weights"):
            timestep_weights(word, 3)


@pytest.mark.parametrize("word", ["early", "late", "3,0,1"])
def test_weighted_statistics_are_the_weighted_sum_of_those_of_single_steps(tiny_base, tmp_path, word):
    def moments(weights: tuple[float, ...], folder: str) -> dict[str, torch.Tensor]:
        settings = CalibrationSettings(PROMPTS, 3, 4.0, batch=2, rows_per_forward=10**6, step_weights=weights)
        runs, info = trajectories(tiny_base, tiny_base.unet, settings), BaseInfo("tiny", tiny_base.fingerprint)
        found = last(collect(Here(tiny_base.unet, runs), LAYERS, settings, tmp_path / folder, info))
        return {name: found[name].second_moment for name in LAYERS}

    single = [moments(timestep_weights(one, 3), one) for one in ("1,0,0", "0,1,0", "0,0,1")]
    weights, uniform = timestep_weights(word, 3), moments((), "uniform")
    found = moments(weights, "all")
    for name in LAYERS:
        expected = sum(w * one[name] for w, one in zip(weights, single, strict=True)) / sum(weights)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[name], uniform[name], rtol=1e-2)


def test_every_choice_that_shapes_the_numbers_is_in_the_keys_and_memory_is_not():
    keys = [statistics_key(SOURCE, "f", choice) for choice in CHOICES.values()]
    assert len(set(keys)) == len(keys) - 1, "the user's prompts are the tier's here, and the rest differ"
    assert keys[0] == keys[1]
    assert statistics_key(SOURCE, "f", Calibration(("another",))) not in keys
    assert statistics_key(SOURCE, "f", Calibration(memory=10**6)) == keys[0]
    assert statistics_key(SOURCE, "f", context="plan") not in keys


def test_keys_of_artifacts_follow_for_calibrated_arms_alone(tiny_base):
    def digest(word: str, choice: Calibration) -> str:
        arm = parse_arm(word)
        source = replace(tiny_base.source, steps=4)
        return recipe_digest(source, "f", CompressionPlan.resolve(tiny_base.unet, arm.rules), arm, choice)

    assert digest("gptq", Calibration(timesteps="late")) != digest("gptq", Calibration())
    assert digest("rtn", Calibration(timesteps="late")) == digest("rtn", Calibration())


def test_prompts_are_the_users_or_the_tiers():
    many = tuple(f"prompt {number}" for number in range(50))
    assert settings_for(SOURCE, Calibration(many)).prompts == many
    assert settings_for(SOURCE).prompts == PROMPTS
    assert prompts_for(SOURCE, Calibration(many)) == many


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"memory": 0}, "memory for statistics must be 1 byte or more, got 0"),
        ({"statistics": Path("x"), "prompts": PROMPTS}, "leave out prompts and timesteps"),
        ({"statistics": Path("x"), "timesteps": "early"}, "leave out prompts and timesteps"),
    ],
)
def test_choices_that_contradict_each_other(choice, words):
    with pytest.raises(ConfigError, match=words):
        Calibration(**choice)


def compressed(folder: object, data: Path, calibration: Calibration, word: str = "gptq:bits=3") -> tuple[Report, list]:
    events = list(Workbench(data, "cpu", calibration).compress(str(folder), word))
    assert isinstance(events[-1], Report)
    return events[-1], [event.text for event in events if isinstance(event, Notice)]


def test_the_artifact_says_what_it_was_calibrated_on(tiny_pipeline_folder, tmp_path):
    plain, _ = compressed(tiny_pipeline_folder, tmp_path, Calibration())
    own, _ = compressed(tiny_pipeline_folder, tmp_path, Calibration(("blue",), "early"))
    free, _ = compressed(tiny_pipeline_folder, tmp_path, Calibration(("blue",)), "rtn:bits=3")
    assert plain.recipe == "gptq:bits=3"
    assert own.recipe == "gptq:bits=3 with 1 calibration prompts of the user, timesteps early"
    assert free.recipe == "rtn:bits=3"
    assert plain.artifact != own.artifact
    assert len(list((tmp_path / "statistics").iterdir())) == 2


def test_a_memory_budget_reaches_the_gathering(tiny_pipeline_folder, tmp_path):
    _, notices = compressed(tiny_pipeline_folder, tmp_path, Calibration(memory=100_000))
    assert any("the whole matrix exceeds the memory budget" in text for text in notices)
    with pytest.raises(ConfigError, match=r"the memory budget for statistics must be .* or more"):
        compressed(tiny_pipeline_folder, tmp_path / "other", Calibration(memory=1000))


@pytest.fixture
def fine_tune(tiny_pipeline_folder: Path, tmp_path: Path) -> Path:
    """The tiny pipeline with other weights in its UNet."""
    folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "fine-tune"))
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.fixture
def made(tiny_pipeline_folder: Path, tmp_path: Path) -> Path:
    """Statistics of the tiny pipeline."""
    compressed(tiny_pipeline_folder, tmp_path / "data", Calibration())
    return next((tmp_path / "data" / "statistics").iterdir())


def test_statistics_of_the_original_serve_its_fine_tune_and_say_so(made, fine_tune, tmp_path):
    data = tmp_path / "tuned"
    report, notices = compressed(fine_tune, data, Calibration(statistics=made))
    origin = StatsFolder.open(made, report.base, allow_other_base=True).origin
    assert "borrowed for" in origin
    assert notices == [f"statistics of {origin} are used, from {made}"]
    assert report.recipe == f"gptq:bits=3 with statistics of {origin}"
    assert not (data / "statistics").exists()
    own, _ = compressed(fine_tune, data, Calibration())
    assert own.artifact != report.artifact
    assert own.recipe == "gptq:bits=3"
    assert (data / "statistics").exists()
    again, _ = compressed(fine_tune, data, Calibration(statistics=made))
    assert again.artifact == report.artifact


def test_statistics_that_do_not_fit_are_refused(made, tiny_base, fine_tune, tmp_path):
    with pytest.raises(StoreError, match=r"has no statistics.json"):
        compressed(fine_tune, tmp_path / "x", Calibration(statistics=tmp_path))
    found = StatsFolder.open(made, BaseInfo("tiny", tiny_base.fingerprint))
    with pytest.raises(
        StoreError, match=r"has no statistics of layer .*; pass statistics of a model with the same layers"
    ):
        _gather_from(found.only(LAYERS), tiny_base, tmp_path / "few")
    wrong = found.only([*found])
    wrong.entries = tuple(
        replace(entry, layers=entry.layers[::-1], layout=replace(entry.layout, n=8, span=8, block=8))
        for entry in found.entries
    )
    with pytest.raises(StoreError, match=r"has 8 columns for layer .*, which has"):
        _gather_from(wrong, tiny_base, tmp_path / "narrow")


def _gather_from(found: StatsFolder, base: Any, folder: Path) -> list[object]:
    """Gather from a folder whose manifest lists the entries of `found`."""
    from sdvq_core.store import StatsWriter

    writer = StatsWriter(folder, found.info)
    writer.entries = list(found.entries)
    writer.commit()
    plan = CompressionPlan.resolve(base.unet, parse_arm("gptq").rules)
    return list(gather(base, plan, folder, Calibration(statistics=folder)))


def test_without_the_option_another_models_statistics_are_never_found(made, fine_tune, tiny_pipeline_folder, tmp_path):
    engine = Engine(tmp_path / "data", "cpu")
    keys = [
        statistics_key(SOURCE, engine.shelf.fingerprint(str(folder))) for folder in (fine_tune, tiny_pipeline_folder)
    ]
    assert keys[0] != keys[1]
    with pytest.raises(StoreError, match="or allow those of another base model"):
        StatsFolder.open(made, BaseInfo("fine-tune", engine.shelf.fingerprint(str(fine_tune))))


def test_a_plan_gets_the_statistics_of_its_calibrated_layers_alone(tiny_base, tmp_path):
    """However many layers an earlier plan left statistics of: an artifact never depends on what ran before."""
    all_of_them = CompressionPlan.resolve(tiny_base.unet, parse_arm("gptq").rules)
    few = replace(all_of_them, assignments=all_of_them.assignments[:3])
    list(gather(tiny_base, all_of_them, tmp_path))
    *_, found = gather(tiny_base, few, tmp_path)
    assert set(found) == {item.name for item in few.assignments}
    assert found.digest != StatsFolder.open(found.folder, BaseInfo("tiny", tiny_base.fingerprint)).digest


def test_activations_that_are_not_finite_name_layer_and_timestep(tiny_pipeline_folder, tmp_path):
    """As where a model whose weights are finite overflows in half precision."""
    model, workbench = str(tiny_pipeline_folder), Workbench(tmp_path, "cpu")
    workbench.engine.base(model).unet.down_blocks[0].resnets[0].conv1.bias.data[0] = torch.nan
    with pytest.raises(LayerError, match=r"layer down_blocks.0.resnets.0.conv2: .*at step 1 of 20, timestep \d+"):
        list(workbench.compress(model, "gptq:bits=3"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_what_is_not_finite_in_the_file_is_said_before_the_work(tiny_pipeline_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / "broken"))
    tensors = load_file(folder / WEIGHTS)
    tensors["down_blocks.0.resnets.0.conv1.bias"][0] = torch.nan
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(StoreError, match=r"down_blocks.0.resnets.0.conv1.bias is NaN"):
        compressed(folder, tmp_path / "data", Calibration())
    assert not list((tmp_path / "data").rglob("*.safetensors"))
