"""Latents -> images through the base model's VAE: z * latents_std / scaling_factor + latents_mean, then decode.

A VAE that gives NaN in half precision is put into float32 once and for all, with a notice; then it is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from sdvq_core.diffusion.base_model import BaseModel
from sdvq_core.diffusion.placement import VAE
from sdvq_core.diffusion.precision import HALVES, dtype_name
from sdvq_core.diffusion.quiet import quiet
from sdvq_core.errors import SdvqError

PREVIEW_CELLS = 32


@torch.no_grad()
def decode(base: BaseModel, latents: Tensor) -> list[Image.Image]:
    """latents [N, C, h, w] -> N images; one at a time, so that an image does not depend on its neighbours."""
    images: list[Image.Image] = []
    with base.placement.using(VAE):
        for row in range(len(latents)):
            images += base.pipe.image_processor.postprocess(_pixels(base, latents[row : row + 1]), output_type="pil")
    return images


def preview(base: BaseModel, denoised: Tensor) -> Image.Image:
    """A small image of the first prediction in denoised [N, C, h, w], which is shrunk to at most 32 x 32 cells."""
    latent = denoised[:1].float()
    longest = max(latent.shape[-2:])
    if longest > PREVIEW_CELLS:
        size = [max(1, side * PREVIEW_CELLS // longest) for side in latent.shape[-2:]]
        latent = torch.nn.functional.interpolate(latent, size=size, mode="area")  # [1, C, h', w']
    return decode(base, latent)[0]


def _pixels(base: BaseModel, latent: Tensor) -> Tensor:
    """[1, C, h, w] -> [1, 3, H, W] in -1..1, finite."""
    vae = base.pipe.vae
    pixels: Tensor = vae.decode(_denormalise(base, latent), return_dict=False)[0]
    if not torch.isfinite(pixels).all() and vae.dtype in HALVES:
        base.notices.append(f"the VAE overflowed in {dtype_name(vae.dtype)}; it computes in fp32 from here on")
        with quiet():  # diffusers warns of a cast that it need not know of
            vae.to(torch.float32)
        pixels = vae.decode(_denormalise(base, latent), return_dict=False)[0]
    if not torch.isfinite(pixels).all():
        raise SdvqError(
            f"the VAE of {base.source.name} gave NaN or infinity in {dtype_name(pixels.dtype)}; its weights are "
            "damaged, or these latents are far from any image: fetch the model again, or try more bits"
        )
    return pixels


def _denormalise(base: BaseModel, latents: Tensor) -> Tensor:
    """What the VAE decodes, from what the UNet denoises; [N, C, h, w] in the VAE's dtype."""
    config = base.pipe.vae.config
    dtype: torch.dtype = base.pipe.vae.dtype
    scaling: float = config.scaling_factor
    values = latents.to(base.device, dtype)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return values / scaling
    return values * _channels(std, values) / scaling + _channels(mean, values)


def _channels(numbers: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(numbers).view(1, -1, 1, 1).to(like.device, like.dtype)  # [1, C, 1, 1]
