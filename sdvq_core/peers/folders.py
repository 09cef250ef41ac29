"""The way users take: a UNet is loaded by diffusers with a `quantization_config`, from a folder of its own."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn


def reloaded(unet: nn.Module, config: Any) -> nn.Module:
    """`unet` as `from_pretrained(folder, quantization_config=config)` gives it; the folder is temporary."""
    with TemporaryDirectory() as folder:
        unet.save_pretrained(folder)  # type: ignore[operator]
        made: nn.Module = type(unet).from_pretrained(  # type: ignore[attr-defined]
            folder, quantization_config=config, dtype=torch.float16
        )
    return made
