"""The UNet configuration of SDXL base 1.0 and SDXL-Turbo; keys that are absent keep diffusers' defaults.

It serves single-file checkpoints, which carry no configuration, and estimates before anything is downloaded.
"""

from __future__ import annotations

from typing import Any

SDXL_WIDTH, REFINER_WIDTH = 320, 384  # channels of the first convolution


def sdxl_unet_config(cells: int) -> dict[str, Any]:
    """SDXL's UNet, 2,567,463,684 parameters; cells: width of the latent (128 for base, 64 for Turbo)."""
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": cells,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }


def refiner_unet_config() -> dict[str, Any]:
    """The UNet of SDXL's refiner: wider, shallower, one text encoder."""
    return {
        **sdxl_unet_config(128),
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [384, 768, 1536, 1536],
        "transformer_layers_per_block": 4,
        "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    }
