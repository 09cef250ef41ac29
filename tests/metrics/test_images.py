"""Image distances against their definitions and against torchmetrics."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from sdvq_core.errors import ConfigError
from sdvq_core.metrics import images
from sdvq_core.metrics.images import lpips, psnr, ssim

RNG = np.random.default_rng(0)
Measure = Callable[[Image.Image, Image.Image], float | None]


def picture(width: int = 40, height: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def noisy(pixels: np.ndarray, spread: float) -> Image.Image:
    values = pixels + RNG.normal(0, spread, pixels.shape)
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double()


PIXELS = picture()
ORIGINAL = Image.fromarray(PIXELS)


def test_identical_images() -> None:
    assert psnr(ORIGINAL, ORIGINAL) == math.inf
    assert ssim(ORIGINAL, ORIGINAL) == pytest.approx(1)


def test_psnr_of_one_grey_level_is_48_decibels() -> None:
    dark, light = (Image.new("RGB", (16, 16), (level,) * 3) for level in (100, 101))
    assert psnr(dark, light) == pytest.approx(20 * math.log10(255))


@pytest.mark.parametrize("spread", [2, 20, 80])
def test_they_equal_torchmetrics(spread: float) -> None:
    other = noisy(PIXELS, spread)
    first, second = tensor(ORIGINAL), tensor(other)
    assert psnr(ORIGINAL, other) == pytest.approx(float(peak_signal_noise_ratio(second, first, data_range=255.0)), 1e-6)
    reference = float(structural_similarity_index_measure(second, first, data_range=255.0))
    assert ssim(ORIGINAL, other) == pytest.approx(reference, abs=5e-5)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_more_noise_is_worse(measure: Measure) -> None:
    values = [measure(ORIGINAL, noisy(PIXELS, spread)) for spread in (1, 5, 25, 125)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_they_are_symmetric(measure: Measure) -> None:
    other = noisy(PIXELS, 30)
    assert measure(ORIGINAL, other) == pytest.approx(measure(other, ORIGINAL))


@pytest.mark.parametrize("measure", [psnr, ssim, lpips])
def test_sizes_must_agree(measure: Measure) -> None:
    with pytest.raises(ConfigError, match="one size"):
        measure(ORIGINAL, ORIGINAL.resize((8, 8)))


def test_transparency_is_ignored() -> None:
    assert psnr(ORIGINAL, ORIGINAL.convert("RGBA")) == math.inf


def test_ssim_needs_room_for_its_window() -> None:
    small = Image.new("RGB", (10, 40))
    with pytest.raises(ConfigError, match="at least 11 x 11"):
        ssim(small, small)


def test_lpips_without_weights_says_so_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(images, "find_spec", lambda _: None)
    images._lpips_network.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert lpips(ORIGINAL, ORIGINAL) is None
        assert lpips(ORIGINAL, ORIGINAL) is None
    assert len(caplog.records) == 1
    images._lpips_network.cache_clear()


def test_lpips_averages_what_its_network_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(torch.nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor, normalize: bool) -> torch.Tensor:
            assert normalize
            assert min(first.shape[-2:]) >= 64
            return (first - second).abs().amax((1, 2, 3))

    monkeypatch.setattr(images, "_lpips_network", Network)
    black, white = (Image.new("RGB", (40, 32), colour) for colour in ("black", "white"))
    assert lpips(black, white) == 1
