"""The judge: pre-processing equal to transformers' own, scores that are cosines of pairs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sdvq_core.diffusion.base_model import BaseModel
from sdvq_core.errors import ConfigError, ModelError
from sdvq_core.metrics.alignment import Aligner, to_pixels

RNG = np.random.default_rng(0)
IMAGES = [Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]
PROMPTS = ["a red frog", "a blue frog", ""]


@pytest.fixture(scope="module")
def judge_folder(tiny_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_base.pipe.tokenizer
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**common, **special, "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    vision = {**common, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judge")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 32}
    CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def aligner(judge_folder: Path) -> Aligner:
    return Aligner.load(judge_folder, "cpu")


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (100, 37), (37, 100), (20, 31)])
def test_pixels_equal_transformers_own(size: tuple[int, int]) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(to_pixels(image, processor.to_dict()), expected, rtol=1e-5, atol=1e-5)


def test_pixels_with_old_and_exact_settings() -> None:
    """Early CLIP folders write sizes as plain numbers; some settings resize to a fixed height and width."""
    image = IMAGES[0].resize((48, 40))
    old = to_pixels(image, {"size": 24, "crop_size": 24})
    assert torch.equal(old, to_pixels(image, {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}))
    exact = to_pixels(image, {"size": {"height": 16, "width": 20}, "do_center_crop": False})
    assert exact.shape == (3, 16, 20)


def test_scores_equal_the_models_own_logits(aligner: Aligner) -> None:
    tokens = aligner.tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt")
    pixels = torch.stack([to_pixels(image, aligner.preprocessing) for image in IMAGES])
    with torch.no_grad():
        output = aligner.model(pixel_values=pixels, **tokens)
    cosines = output.logits_per_image / aligner.model.logit_scale.exp()
    torch.testing.assert_close(torch.tensor(aligner.score(IMAGES, PROMPTS)), cosines.diagonal())


def test_scores_are_cosines_and_ignore_the_batch(aligner: Aligner) -> None:
    scores = aligner.score(IMAGES * 20, PROMPTS * 20)
    assert all(-1 <= score <= 1 for score in scores)
    assert scores == pytest.approx(aligner.score(IMAGES, PROMPTS) * 20, abs=1e-5)


def test_long_prompts_and_other_sizes_are_taken(aligner: Aligner) -> None:
    assert len(aligner.score([IMAGES[0].resize((90, 50))], ["a red frog " * 30])) == 1


def test_nothing_scores_nothing(aligner: Aligner) -> None:
    assert aligner.score([], []) == []


def test_images_and_prompts_come_in_pairs(aligner: Aligner) -> None:
    with pytest.raises(ConfigError, match="got 3 images, 1 prompts"):
        aligner.score(IMAGES, ["a"])


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        Aligner.load(tmp_path)


@pytest.mark.parametrize("damage", ["model.safetensors", "preprocessor_config.json"])
def test_a_damaged_judge_is_refused(judge_folder: Path, tmp_path: Path, damage: str) -> None:
    copy = Path(shutil.copytree(judge_folder, tmp_path / "copy"))
    (copy / damage).write_bytes((copy / damage).read_bytes()[:50])
    with pytest.raises(ModelError, match="cannot be loaded as a CLIPModel"):
        Aligner.load(copy)


def test_loading_is_silent(judge_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Aligner.load(judge_folder)
    assert capfd.readouterr() == ("", "")
