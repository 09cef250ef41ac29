"""In which arithmetic a pipeline computes: float16 on a GPU, float32 where there is none, or what the user asks for.

SDXL's VAE overflows in float16 (`force_upcast` in its config): where a pipeline is in half precision, it is not.
"""

from __future__ import annotations

from typing import Any

import torch

from sdvq_core.errors import ConfigError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
DTYPE_CHOICES = ("auto", *DTYPES)
HALVES = (torch.float16, torch.bfloat16)


def check_dtype(name: str) -> str:
    """`name`, if it is one that can be asked for."""
    if name not in DTYPE_CHOICES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPE_CHOICES)}, got {name!r}")
    return name


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that auto, fp16, bf16 or fp32 means on `device`; ConfigError where the device does not have it."""
    on_gpu = device.type == "cuda"
    if check_dtype(name) == "auto":
        return torch.float16 if on_gpu else torch.float32
    if name == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(f"{torch.cuda.get_device_name(device)} does not compute in bf16; use fp16, fp32 or auto")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The user's word for `dtype`."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def unusual(name: str, device: torch.device) -> str:
    """The word for what the user chose, where that is not what the device has by default; else ""."""
    chosen = pick_dtype(name, device)
    return "" if chosen == pick_dtype("auto", device) else dtype_name(chosen)


def guard_vae(vae: Any) -> None:
    """Put a VAE that overflows in half precision into float32."""
    if vae.dtype in HALVES and vae.config.force_upcast:
        vae.to(torch.float32)
