"""A few steps of every stage on drawn shapes: losses fall, states resume, the pipeline reproduces the training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image, ImageDraw
from torch import nn
from transformers import CLIPModel

from sdvq_core.nano.bank import World
from sdvq_core.nano.export import export_judge, export_pipeline, make_pipeline
from sdvq_core.nano.models import SIZES
from sdvq_core.nano.optim import Average, make_optimisers, orthogonalise, rate_at
from sdvq_core.nano.scenes import heldout_scenes
from sdvq_core.nano.sprites import Sprites
from sdvq_core.nano.text import condition
from sdvq_core.nano.tokens import encode_texts, make_tokenizer
from sdvq_core.nano.train_judge import JudgePlan, score_on, train_judge
from sdvq_core.nano.train_unet import TextToImage, UnetPlan, train_unet
from sdvq_core.nano.train_vae import VaePlan, encode, train_vae
from sdvq_core.nano.vocabulary import curated_objects

SIZE = replace(SIZES[64], vae_channels=(16, 16, 32), unet_channels=(32, 32, 64), text_width=32, judge_width=32)
FEW_SECONDS = 8 / 60


def drawn(number: int) -> Image.Image:
    """A shape of its own per number."""
    picture = Image.new("RGBA", (64, 64))
    colour = (40 * number % 256, 90 * number % 256, 170 * number % 256, 255)
    ImageDraw.Draw(picture).regular_polygon((32, 32, 30), 3 + number % 6, fill=colour)
    return picture


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    objects = curated_objects(12)
    tokenizer = make_tokenizer(objects, tmp_path_factory.mktemp("tokenizer"))
    return World(objects, Sprites([drawn(i) for i in range(12)], 64), tokenizer)


def test_orthogonalise_evens_out_singular_values() -> None:
    matrix = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalise(matrix))
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def test_rate_warms_up_and_decays() -> None:
    rates = [rate_at(p / 100, 1.0) for p in range(101)]
    assert rates[0] < rates[1] < rates[2]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)


def test_optimisers_share_out_every_parameter() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(1, 4), nn.Flatten(), nn.Linear(4, 4))
    held = [p for o in make_optimisers(model, 1e-3, muon=True) for g in o.param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len(list(model.parameters()))


def test_average_follows_the_model() -> None:
    model = nn.Linear(2, 2)
    average = Average(model)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for _ in range(200):
        average.update(model)
    assert average.shadow["weight"].mean() == pytest.approx(1.0, abs=0.05)


def test_unknown_words_are_spelt(world: World) -> None:
    tokenizer = world.tokenizer
    pieces = tokenizer.tokenize("a mammoth")
    assert "".join(pieces).replace("</w>", " ").strip() == "a mammoth"
    assert encode_texts(tokenizer, ["a dog"]).shape == (1, tokenizer.model_max_length)


@pytest.mark.slow
def test_mini_training_goes_all_the_way(world: World, tmp_path: Path) -> None:
    vae = train_vae(VaePlan(FEW_SECONDS, batch=4), SIZE, world.objects, world.sprites, tmp_path)
    assert encode(vae, torch.zeros(1, 3, 64, 64)).shape == (1, SIZE.latent_channels, 16, 16)

    judge = train_judge(JudgePlan(FEW_SECONDS, batch=8), SIZE, world, tmp_path)
    shares = score_on(judge, heldout_scenes(world.objects, 24, 4), world)
    assert all(0 <= v <= 1 for v in shares.values())
    export_judge(judge, world.tokenizer, tmp_path / "judge")
    assert CLIPModel.from_pretrained(tmp_path / "judge").dtype == torch.float32

    seen: list[int] = []
    plan = UnetPlan(FEW_SECONDS, batch=4, bank=64, fresh_per_step=2, log_every=1, lanes=2)
    model = train_unet(plan, SIZE, world, vae, tmp_path, lambda _, step: seen.append(step))
    again = train_unet(plan, SIZE, world, vae, tmp_path, lambda _, step: seen.append(step))  # finished: nothing to do
    assert len(seen) == 1
    assert seen[0] >= 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert_pipeline_conditions_as_training(model, vae, world, tmp_path)


def assert_pipeline_conditions_as_training(model: TextToImage, vae: nn.Module, world: World, folder: Path) -> None:
    encoders = (model.text_encoder, model.text_encoder_2)
    pipeline = make_pipeline(vae, model.unet, encoders, world.tokenizer)
    states, negative, pooled, negative_pooled = pipeline.encode_prompt("a dog on a red background", device="cpu")
    with torch.no_grad():
        ours = condition(encoders, encode_texts(world.tokenizer, ["a dog on a red background"]), SIZE)
    assert torch.allclose(states, ours.states)
    assert torch.allclose(pooled, ours.pooled)
    assert not negative.any()
    assert not negative_pooled.any()
    export_pipeline(pipeline, world.objects, folder / "pipeline")
    loaded = StableDiffusionXLPipeline.from_pretrained(folder / "pipeline")
    loaded.set_progress_bar_config(disable=True)
    assert loaded("a dog", num_inference_steps=2).images[0].size == (64, 64)
