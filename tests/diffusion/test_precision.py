"""fp16, bf16, fp32; and what becomes of a NaN: the part that made it is named, no image is drawn."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sdvq_core.diffusion.base_model import BaseModel, load_base
from sdvq_core.diffusion.decoding import decode
from sdvq_core.diffusion.precision import guard_vae, pick_dtype, unusual
from sdvq_core.diffusion.sampling import sample, start_noise
from sdvq_core.diffusion.sources import find_source
from sdvq_core.errors import ConfigError, SdvqError
from sdvq_core.jobs import Sampling

SAMPLING = Sampling("a red frog", seed=7, steps=2, guidance=5.0)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def half_base(tiny_pipeline_folder: Path) -> BaseModel:
    return load_base(find_source(str(tiny_pipeline_folder)), "cpu", dtype="fp16")


def final(base: BaseModel) -> Tensor:
    return list(sample(base, base.unet, SAMPLING))[-1].latents


def poison(base: BaseModel, part: str) -> BaseModel:
    """A copy of `base` in which every number of `part` is NaN."""
    pipe = copy.copy(base.pipe)
    broken = copy.deepcopy(getattr(pipe, part))
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(torch.nan)
    setattr(pipe, part, broken)
    return replace(base, pipe=pipe)


def test_auto_is_half_precision_on_a_gpu_only() -> None:
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("auto", CUDA) == torch.float16
    assert [pick_dtype(word, CPU) for word in ("fp16", "bf16", "fp32")] == [
        torch.float16,
        torch.bfloat16,
        torch.float32,
    ]
    assert (unusual("fp32", CPU), unusual("auto", CPU), unusual("bf16", CPU)) == ("", "", "bf16")
    with pytest.raises(ConfigError, match="auto, fp16, bf16, fp32, got 'int8'"):
        pick_dtype("int8", CPU)


def test_a_gpu_without_bf16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    with pytest.raises(ConfigError, match="Old GPU does not compute in bf16; use fp16, fp32 or auto"):
        pick_dtype("bf16", CUDA)


def test_half_precision_loads_without_other_libraries_warnings(
    tiny_pipeline_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load_base(find_source(str(tiny_pipeline_folder)), "cpu", dtype="fp16")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("dtype", "least"), [("fp16", 30.0), ("bf16", 15.0)])
def test_half_precision_draws_nearly_the_same(
    tiny_base: BaseModel, tiny_pipeline_folder: Path, dtype: str, least: float
) -> None:
    base = load_base(find_source(str(tiny_pipeline_folder)), "cpu", dtype=dtype)
    assert base.unet.dtype == base.dtype == pick_dtype(dtype, CPU)
    assert any("fp16 more slowly" in notice for notice in base.notices) == (dtype == "fp16")
    found, exact = final(base), final(tiny_base)
    assert found.dtype == torch.float32
    noise = float((found - exact).square().mean() / exact.square().mean())
    assert 0 < noise < 10 ** (-least / 10)
    assert decode(base, found)[0].size == (32, 32)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("text_encoder", r"the text encoder \(text_encoder\) of .* gave NaN"),
        ("text_encoder_2", r"the text encoder \(text_encoder_2\) of .* gave NaN"),
        ("unet", r"the UNet \(UNet2DConditionModel\) gave NaN"),
        ("vae", r"the VAE of .* gave NaN or infinity in fp32"),
    ],
)
def test_the_part_that_gives_nan_is_named(tiny_base: BaseModel, part: str, words: str) -> None:
    base = poison(tiny_base, part)
    with pytest.raises(SdvqError, match=words):
        decode(base, final(base))


def test_in_half_precision_the_cure_is_another_one(half_base: BaseModel) -> None:
    with pytest.raises(SdvqError, match="beyond the range of fp16: use --dtype bf16 or fp32"):
        final(poison(half_base, "text_encoder"))
    with pytest.raises(SdvqError, match="try --dtype bf16"):
        final(poison(half_base, "unet"))


def test_a_vae_that_should_be_upcast_is(half_base: BaseModel) -> None:
    assert half_base.pipe.vae.config.force_upcast
    assert half_base.pipe.vae.dtype == torch.float32
    vae = copy.deepcopy(half_base.pipe.vae).half()
    vae.register_to_config(force_upcast=False)
    guard_vae(vae)
    assert vae.dtype == torch.float16


class Overflows(nn.Module):
    """Leaves float16's range by far, on its way to the same number."""

    def forward(self, values: Tensor) -> Tensor:
        return values * 1e4 * 1e4 / 1e8


def test_a_vae_that_overflows_is_put_into_float32_once_with_a_notice(
    tiny_base: BaseModel, half_base: BaseModel
) -> None:
    """A config may say nothing of it: the NaN does."""
    half_base.told()
    pipe = half_base.pipe
    pipe.vae.half()  # as if its config did not say `force_upcast`
    pipe.vae.decoder.conv_norm_out = nn.Sequential(Overflows(), pipe.vae.decoder.conv_norm_out)
    latents = start_noise(half_base, [1, 2])
    first = decode(half_base, latents)
    assert half_base.told() == ["the VAE overflowed in fp16; it computes in fp32 from here on"]
    assert pipe.vae.dtype == torch.float32
    again = decode(half_base, latents)
    assert half_base.told() == []
    assert [image.tobytes() for image in again] == [image.tobytes() for image in first]
    exact = decode(tiny_base, latents)
    assert np.abs(np.asarray(first[0], int) - np.asarray(exact[0], int)).max() <= 1
