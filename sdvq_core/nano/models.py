"""The networks of nano: diffusers' and transformers' own classes, small, sized by resolution.

Both sizes have 16x16 latents. What VQDM quantizes must be at least 96 % of the UNet, hence the small time embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

LATENT_CELLS = 16
MAX_TOKENS = 20


@dataclass(frozen=True)
class Size:
    """Everything that depends on the resolution."""

    resolution: int
    vae_channels: tuple[int, ...]
    vae_layers: int
    latent_channels: int
    unet_channels: tuple[int, int, int]
    text_width: int
    judge_patch: int
    judge_width: int
    time_width: int = 128
    time_id_width: int = 8


SIZES = {
    64: Size(64, (32, 64, 96), 1, 8, (64, 128, 192), 128, 8, 128),
    128: Size(128, (32, 64, 128, 128), 1, 16, (128, 192, 256), 160, 16, 192),
}


def make_vae(size: Size) -> AutoencoderKL:
    """The autoencoder: a factor of 2 per level after the first, no attention."""
    levels = len(size.vae_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.vae_channels,
        layers_per_block=size.vae_layers,
        latent_channels=size.latent_channels,
        norm_num_groups=8,
        sample_size=size.resolution,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def make_unet(size: Size) -> UNet2DConditionModel:
    """SDXL's UNet in small: one plain and two cross-attention levels, text and size embedding."""
    return UNet2DConditionModel(
        sample_size=LATENT_CELLS,
        in_channels=size.latent_channels,
        out_channels=size.latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=size.unet_channels,
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=tuple(max(1, c // 32) for c in size.unet_channels),  # diffusers: the number of heads
        cross_attention_dim=2 * size.text_width,
        use_linear_projection=True,
        norm_num_groups=16,
        time_embedding_dim=size.time_width,
        addition_embed_type="text_time",
        addition_time_embed_dim=size.time_id_width,
        projection_class_embeddings_input_dim=6 * size.time_id_width + size.text_width,
    )


def make_text_encoders(size: Size, tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Two CLIP text towers; only the second projects its pooled output."""
    config = text_config(size.text_width, tokenizer)
    return CLIPTextModel(config), CLIPTextModelWithProjection(config)


def text_config(width: int, tokenizer: CLIPTokenizer, layers: int = 3) -> CLIPTextConfig:
    """A small text tower for this tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_judge(size: Size, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A small CLIP: 64 patches, a shallow text tower."""
    vision = {
        "hidden_size": size.judge_width,
        "intermediate_size": 4 * size.judge_width,
        "num_hidden_layers": 5,
        "num_attention_heads": size.judge_width // 32,
        "image_size": size.resolution,
        "patch_size": size.judge_patch,
        "hidden_act": "gelu",
    }
    text = text_config(96, tokenizer, layers=2)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=128))


def make_scheduler() -> EulerDiscreteScheduler:
    """SDXL's noise schedule with velocity targets and trailing steps, so that sampling starts at pure noise."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
