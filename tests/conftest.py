"""Fixtures for every room: a tiny pipeline of the SDXL architecture with random weights, and no network."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin make tiny models 10x slower on busy cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if TYPE_CHECKING:
    from sdvq_core.diffusion.base_model import BaseModel

# diffusers' schedulers hand torch tensors to numpy; this is theirs to mend.
THIRD_PARTY = r"ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers\..*"
# transformers imports hqq where it is installed, and that imports a part of torch that torch itself deprecates.
OPTIONAL = r"ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
TINY_TOKENS = 12
WORDS = ("a", "red", "frog", "on", "blue")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", THIRD_PARTY)
    config.addinivalue_line("filterwarnings", OPTIONAL)


@pytest.fixture(scope="session", autouse=True)
def data_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests compute is kept apart from what the user has computed."""
    os.environ["SDVQ_DATA"] = str(tmp_path_factory.mktemp("data-of-the-tests"))


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder: SDXL's classes, random float16 weights, 32 x 32 images from 4 x 8 x 8 latents.

    Widths 24, 40, 72 and a text width of 36 are no multiples of 64 or 32; prompts hold 10 tokens.
    """
    import torch
    from diffusers import StableDiffusionXLPipeline

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    parts = {"unet": _unet(), "vae": _vae(), "scheduler": _scheduler(), **_text_encoders(tokenizer)}
    pipe = StableDiffusionXLPipeline(**parts, tokenizer=tokenizer, tokenizer_2=tokenizer, add_watermarker=False)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipe.to(dtype=torch.float16, silence_dtype_warnings=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tiny_pipeline_folder: Path) -> BaseModel:
    """The tiny pipeline, loaded on the CPU in float32; do not change its weights."""
    from sdvq_core.diffusion.base_model import load_base
    from sdvq_core.diffusion.sources import find_source

    base = load_base(find_source(str(tiny_pipeline_folder)), "cpu")
    base.pipe.set_progress_bar_config(disable=True)
    return base


def _tokenizer() -> Any:
    """A CLIP tokenizer of letters, digits and a few whole words."""
    from transformers import CLIPTokenizer

    letters = [*string.ascii_lowercase, *string.digits, ",", "."]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
    merges = list(dict.fromkeys(merges))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TINY_TOKENS)


def _text_encoders(tokenizer: Any) -> dict[str, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def config(width: int) -> Any:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TINY_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    return {"text_encoder": CLIPTextModel(config(20)), "text_encoder_2": CLIPTextModelWithProjection(config(16))}


def _unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(24, 40, 72),
        layers_per_block=1,
        attention_head_dim=(3, 5, 9),
        cross_attention_dim=36,
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=32,
        scaling_factor=0.5,
        latents_mean=(0.1, -0.2, 0.3, 0.0),
        latents_std=(1.5, 0.5, 1.0, 2.0),
    )


def _scheduler() -> Any:
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection that is tried fails the test."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was used"))
