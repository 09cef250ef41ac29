"""Distances between two images of one size, on 8-bit RGB.

psnr = 10 log10(255^2 / MSE) in dB. ssim = mean of (2 m n + c1) (2 s + c2) / ((m^2 + n^2 + c1) (u + v + c2)) with local
means m, n, variances u, v and covariance s under an 11 x 11 Gaussian window of sigma 1.5, mirrored at the borders,
c1 = (0.01 * 255)^2, c2 = (0.03 * 255)^2 (Wang et al. 2004; torchmetrics' numbers without its seconds of import).
lpips: Zhang et al. 2018, AlexNet; needs torchvision and AlexNet's weights on this machine.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sdvq_core.errors import ConfigError
from sdvq_core.metrics.weights import relative_mse

__all__ = ["lpips", "psnr", "relative_mse", "ssim"]

log = logging.getLogger(__name__)

WHITE = 255.0
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
ALEXNET_FILES = "alexnet-*.pth"
SMALLEST_LPIPS_SIDE = 64


def psnr(reference: Image.Image, image: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB; infinite for identical images."""
    first, second = _pair(reference, image)
    mse = float((first.double() - second.double()).square().mean())
    return 10 * math.log10(WHITE**2 / mse) if mse else math.inf


def ssim(reference: Image.Image, image: Image.Image) -> float:
    """Structural similarity, 1 for identical images."""
    first, second = _pair(reference, image)
    if min(first.shape[-2:]) < SSIM_WINDOW:
        raise ConfigError(f"ssim needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {reference.size}")
    m, n = _blur(first), _blur(second)  # [1, 3, H, W] each
    u, v = _blur(first * first) - m * m, _blur(second * second) - n * n
    s = _blur(first * second) - m * n
    c1, c2 = (0.01 * WHITE) ** 2, (0.03 * WHITE) ** 2
    return float(((2 * m * n + c1) * (2 * s + c2) / ((m * m + n * n + c1) * (u + v + c2))).mean())


def lpips(reference: Image.Image, image: Image.Image) -> float | None:
    """Learned perceptual distance, 0 for identical images; None where its weights are not on this machine."""
    first, second = _pair(reference, image)
    network = _lpips_network()
    if network is None:
        return None
    with torch.no_grad():
        return float(network(_enlarged(first) / WHITE, _enlarged(second) / WHITE, normalize=True).mean())


@cache
def _lpips_network() -> nn.Module | None:
    """The network, loaded once; nothing is ever downloaded."""
    weights = Path(torch.hub.get_dir()) / "checkpoints"
    if find_spec("torchvision") is None or not any(weights.glob(ALEXNET_FILES)):
        log.warning("LPIPS is left out: it needs torchvision and AlexNet's weights (%s in %s)", ALEXNET_FILES, weights)
        return None
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    network: nn.Module = _NoTrainLpips(net="alex")
    return network.eval()


def _enlarged(pixels: Tensor) -> Tensor:
    """pixels [1, 3, H, W], repeated to the smallest size that AlexNet's five stages take."""
    factor = -(-SMALLEST_LPIPS_SIDE // min(pixels.shape[-2:]))
    return pixels.repeat_interleave(factor, -1).repeat_interleave(factor, -2)  # [1, 3, H * factor, W * factor]


def _blur(pixels: Tensor) -> Tensor:
    """Gaussian means of pixels [1, 3, H, W]."""
    distance = torch.arange(SSIM_WINDOW, dtype=pixels.dtype) - SSIM_WINDOW // 2
    window = torch.exp(-(distance**2) / (2 * SSIM_SIGMA**2))
    column = (window / window.sum()).view(1, 1, -1, 1).expand(3, 1, -1, 1)
    padded = nn.functional.pad(pixels, (SSIM_WINDOW // 2,) * 4, mode="reflect")
    return nn.functional.conv2d(nn.functional.conv2d(padded, column, groups=3), column.mT, groups=3)  # [1, 3, H, W]


def _pair(reference: Image.Image, image: Image.Image) -> tuple[Tensor, Tensor]:
    if reference.size != image.size:
        raise ConfigError(f"images must have one size, got {reference.size} and {image.size} (width, height)")
    return _pixels(reference), _pixels(image)


def _pixels(image: Image.Image) -> Tensor:
    """[1, 3, H, W], float32 in 0..255."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()  # [1, 3, H, W]
