"""What assets/nano and assets/judge promise: classes, sizes, and that they load with nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPModel, CLIPTokenizer

from sdvq_core.nano.models import SIZES, make_unet
from sdvq_core.nano.scenes import caption, heldout_scenes
from sdvq_core.nano.train_judge import directions, object_texts
from sdvq_core.nano.vocabulary import curated_objects

ASSETS = Path(__file__).resolve().parents[2] / "assets"
NANO, JUDGE = ASSETS / "nano", ASSETS / "judge"
OUTSIDE = ("conv_in", "conv_out", "time_emb", "add_embedding")
LARGEST_FILE = 9_500_000


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    found = StableDiffusionXLPipeline.from_pretrained(NANO)
    found.set_progress_bar_config(disable=True)
    return found


def share_outside(unet: torch.nn.Module) -> float:
    """The share of parameters that VQDM's layer pattern leaves in 16 bits."""
    inside = sum(
        m.weight.numel()
        for name, m in unet.named_modules()
        if isinstance(m, torch.nn.Linear | torch.nn.Conv2d) and not any(word in name for word in OUTSIDE)
    )
    return 1 - inside / sum(p.numel() for p in unet.parameters())


@pytest.mark.parametrize("resolution", sorted(SIZES))
def test_every_size_fits_the_layer_pattern(resolution: int) -> None:
    unet = make_unet(SIZES[resolution])
    assert 10e6 <= sum(p.numel() for p in unet.parameters()) <= 25e6
    assert share_outside(unet) <= 0.04


def test_bundled_unet_is_sdxl_in_small(pipeline: StableDiffusionXLPipeline) -> None:
    unet = pipeline.unet
    assert 10e6 <= sum(p.numel() for p in unet.parameters()) <= 25e6
    assert share_outside(unet) <= 0.04
    assert unet.config.addition_embed_type == "text_time"
    assert unet.config.use_linear_projection
    assert tuple(unet.config.down_block_types) == ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    inner = [m for m in unet.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert all(m.weight.shape[1] % 8 == 0 for m in inner)


def test_files_are_small_and_safe() -> None:
    files = [f for folder in (NANO, JUDGE) for f in folder.rglob("*") if f.is_file()]
    assert max(f.stat().st_size for f in files) <= LARGEST_FILE
    assert sum(f.stat().st_size for f in files if NANO in f.parents) <= 60_000_000
    assert not [f for f in files if f.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_everything_loads_in_float32(pipeline: StableDiffusionXLPipeline) -> None:
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}


def test_two_steps_make_a_picture_that_the_seed_decides(pipeline: StableDiffusionXLPipeline) -> None:
    def sample(seed: int) -> np.ndarray:
        noise = torch.Generator().manual_seed(seed)
        made = pipeline("a frog on a blue background", num_inference_steps=2, generator=noise, output_type="np")
        return made.images[0]

    side = pipeline.vae.config.sample_size
    assert sample(0).shape == (side, side, 3)
    assert np.array_equal(sample(0), sample(0))
    assert not np.array_equal(sample(0), sample(1))


def test_held_out_prompts_are_those_of_the_code() -> None:
    listed = (NANO / "heldout_prompts.txt").read_text(encoding="utf-8").splitlines()
    sidecar = json.loads((NANO / "heldout.json").read_text(encoding="utf-8"))
    objects = curated_objects(len(sidecar["objects"]))
    assert [o.name for o in objects] == sidecar["objects"]
    assert listed == [caption(s, objects) for s in heldout_scenes(objects)]
    assert listed == [row["prompt"] for row in sidecar["prompts"]]


def test_prompts_fit_the_tokenizer(pipeline: StableDiffusionXLPipeline) -> None:
    tokenizer = pipeline.tokenizer
    for line in (NANO / "heldout_prompts.txt").read_text(encoding="utf-8").splitlines():
        ids = tokenizer(line).input_ids
        assert len(ids) <= tokenizer.model_max_length
        assert tokenizer.unk_token_id not in ids[:-1]


def test_judge_loads_and_tells_its_objects_apart() -> None:
    judge = CLIPModel.from_pretrained(JUDGE).eval()
    tokenizer = CLIPTokenizer.from_pretrained(JUDGE)
    texts = object_texts(curated_objects(150))
    ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        features = directions(judge, ids)
    closeness = features @ features.T - 2 * torch.eye(len(texts))
    assert closeness.max() < 0.99


@pytest.mark.slow
def test_loads_in_a_python_that_has_only_diffusers(tmp_path: Path) -> None:
    code = (
        "import sys; from diffusers import StableDiffusionXLPipeline as P;"
        f"p = P.from_pretrained({str(NANO)!r}); p('a dog', num_inference_steps=1).images[0].size;"
        "assert not [m for m in sys.modules if m.startswith('sdvq')]"
    )
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=clean, capture_output=True)
