"""Our loop is StableDiffusionXLPipeline's: equal bit for bit on the CPU."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from torch import Tensor, nn

from sdvq_core.diffusion.base_model import BaseModel
from sdvq_core.diffusion.decoding import decode, preview
from sdvq_core.diffusion.sampling import SampleStep, sample, sample_batch, start_noise
from sdvq_core.diffusion.text import prompt_notice
from sdvq_core.errors import ConfigError, SdvqError
from sdvq_core.jobs import Sampling
from sdvq_core.nn import QuantizedLinear, set_mode, swap_layer
from sdvq_core.quantizers import parse

SAMPLING = Sampling("a red frog", seed=7, steps=4, guidance=5.0)


def last(base: BaseModel, unet: nn.Module, sampling: Sampling) -> SampleStep:
    return list(sample(base, unet, sampling))[-1]


def with_scheduler(base: BaseModel, kind: Any, **changes: object) -> BaseModel:
    pipe = copy.copy(base.pipe)
    pipe.scheduler = kind.from_config(base.pipe.scheduler.config, **changes)
    return replace(base, pipe=pipe)


def pipeline(base: BaseModel, sampling: Sampling, output: str) -> Any:
    return base.pipe(
        sampling.prompt,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        generator=torch.Generator("cpu").manual_seed(sampling.seed),
        output_type=output,
    ).images


class Broken(nn.Module):
    """A UNet whose second answer is NaN."""

    calls = 0

    def forward(self, x: Tensor, *_: object, **__: object) -> tuple[Tensor]:
        self.calls += 1
        return (x * (torch.nan if self.calls == 2 else 0.0),)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (EulerDiscreteScheduler, {}),
        (EulerDiscreteScheduler, {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
        (EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}),
        (DPMSolverMultistepScheduler, {}),
    ],
    ids=["euler", "euler-v-trailing", "euler-ancestral", "dpm"],
)
@pytest.mark.parametrize("guidance", [5.0, 1.0, 0.0])
def test_it_equals_the_pipeline_bit_for_bit(
    tiny_base: BaseModel, kind: Any, changes: dict[str, object], guidance: float
) -> None:
    base = with_scheduler(tiny_base, kind, **changes)
    sampling = replace(SAMPLING, guidance=guidance)
    assert torch.equal(last(base, base.unet, sampling).latents, pipeline(base, sampling, "latent"))


@pytest.mark.parametrize("prompt", ["", "a blue frog on a blue frog on a blue frog"])
def test_empty_and_long_prompts_equal_the_pipeline_too(tiny_base: BaseModel, prompt: str) -> None:
    sampling = replace(SAMPLING, prompt=prompt)
    assert torch.equal(last(tiny_base, tiny_base.unet, sampling).latents, pipeline(tiny_base, sampling, "latent"))


def test_decoding_equals_the_pipeline_to_the_byte(tiny_base: BaseModel) -> None:
    image = decode(tiny_base, last(tiny_base, tiny_base.unet, SAMPLING).latents)[0]
    assert image.size == (32, 32)
    assert image.mode == "RGB"
    assert image.tobytes() == pipeline(tiny_base, SAMPLING, "pil")[0].tobytes()


def test_steps_are_counted_from_one(tiny_base: BaseModel) -> None:
    steps = list(sample(tiny_base, tiny_base.unet, SAMPLING))
    assert [(step.step, step.steps) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(step.latents.shape == step.denoised.shape == (1, 4, 8, 8) for step in steps)


def test_the_last_prediction_is_the_result(tiny_base: BaseModel) -> None:
    """The last sigma is 0, so Euler's last step goes all the way to the prediction."""
    step = last(tiny_base, tiny_base.unet, SAMPLING)
    torch.testing.assert_close(step.denoised, step.latents)


def test_same_seed_same_bytes_and_another_seed_others(tiny_base: BaseModel) -> None:
    first, again = (last(tiny_base, tiny_base.unet, SAMPLING).latents for _ in range(2))
    other = last(tiny_base, tiny_base.unet, replace(SAMPLING, seed=8)).latents
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_two_runs_may_interleave(tiny_base: BaseModel) -> None:
    """Each run has its own scheduler: the page previews several arms, and may abandon one half-way."""
    alone = last(tiny_base, tiny_base.unet, SAMPLING).latents
    runs = zip(*(sample(tiny_base, tiny_base.unet, SAMPLING) for _ in range(2)), strict=True)
    assert all(torch.equal(step.latents, alone) for step in list(runs)[-1])


def test_gradient_mode_does_not_leak_between_steps(tiny_base: BaseModel) -> None:
    for step in sample(tiny_base, tiny_base.unet, SAMPLING):
        assert torch.is_grad_enabled()
        assert not step.latents.requires_grad


def test_a_batch_gives_what_single_runs_give(tiny_base: BaseModel) -> None:
    samplings = [replace(SAMPLING, prompt=prompt, seed=seed) for seed, prompt in enumerate(["a frog", "", "blue"])]
    batch = list(sample_batch(tiny_base, tiny_base.unet, samplings))[-1].latents
    single = torch.cat([last(tiny_base, tiny_base.unet, sampling).latents for sampling in samplings])
    torch.testing.assert_close(batch, single, rtol=1e-3, atol=1e-3)


def test_a_batch_draws_every_steps_noise_per_seed(tiny_base: BaseModel) -> None:
    base = with_scheduler(tiny_base, EulerAncestralDiscreteScheduler, timestep_spacing="trailing")
    samplings = [replace(SAMPLING, seed=seed, guidance=0.0) for seed in (3, 4)]
    batch = list(sample_batch(base, base.unet, samplings))[-1].latents
    single = torch.cat([last(base, base.unet, sampling).latents for sampling in samplings])
    torch.testing.assert_close(batch, single, rtol=1e-3, atol=1e-3)


def test_start_noise_of_a_row_depends_on_its_seed_alone(tiny_base: BaseModel) -> None:
    batch = start_noise(tiny_base, [1, 2, 3])
    assert batch.shape == (3, 4, 8, 8)
    assert torch.equal(batch[2:], start_noise(tiny_base, [3]))
    assert torch.equal(batch[:1], torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("other", [replace(SAMPLING, steps=5), replace(SAMPLING, guidance=1.0)])
def test_a_batch_shares_steps_and_guidance(tiny_base: BaseModel, other: Sampling) -> None:
    with pytest.raises(ConfigError, match="equal steps and guidance"):
        next(sample_batch(tiny_base, tiny_base.unet, [SAMPLING, other]))


def test_an_empty_batch_is_refused(tiny_base: BaseModel) -> None:
    with pytest.raises(ConfigError, match="no image"):
        next(sample_batch(tiny_base, tiny_base.unet, []))


def test_nan_names_the_unet_and_the_step(tiny_base: BaseModel) -> None:
    with pytest.raises(SdvqError, match=r"UNet \(Broken\) gave NaN or infinity at step 2 of 4"):
        list(sample(tiny_base, Broken(), SAMPLING))


def test_nan_names_the_vae(tiny_base: BaseModel) -> None:
    with pytest.raises(SdvqError, match=r"the VAE of .* gave NaN"):
        decode(tiny_base, torch.full((1, 4, 8, 8), torch.nan))


def test_an_image_does_not_depend_on_its_batch(tiny_base: BaseModel) -> None:
    latents = start_noise(tiny_base, [1, 2])
    assert decode(tiny_base, latents)[1].tobytes() == decode(tiny_base, latents[1:])[0].tobytes()


def test_a_small_preview_is_the_decoded_prediction(tiny_base: BaseModel) -> None:
    latents = start_noise(tiny_base, [1, 2])
    assert preview(tiny_base, latents).tobytes() == decode(tiny_base, latents)[0].tobytes()


def test_a_large_preview_is_shrunk(tiny_base: BaseModel) -> None:
    image = preview(tiny_base, torch.zeros(1, 4, 128, 64))
    assert image.size == (16 * 4, 32 * 4)
    flat = decode(tiny_base, torch.zeros(1, 4, 32, 16))[0]
    assert np.array_equal(np.asarray(image), np.asarray(flat))


@pytest.mark.parametrize("prompt", ["", "a red frog", "a " * 10])
def test_no_notice_while_everything_counts(tiny_base: BaseModel, prompt: str) -> None:
    assert prompt_notice(tiny_base, prompt) is None


def test_a_notice_names_the_words_that_are_cut(tiny_base: BaseModel) -> None:
    notice = prompt_notice(tiny_base, "a red frog on a blue frog on a red frog, Blue")
    assert notice == "only the first 10 tokens of the prompt count: “frog, Blue” is ignored"


def test_a_word_cut_in_the_middle_is_named_whole(tiny_base: BaseModel) -> None:
    notice = prompt_notice(tiny_base, "a red frog on a blue frog xyzxyz on")
    assert notice is not None
    assert "“xyzxyz on” is ignored" in notice


def test_a_long_prompt_leaves_the_terminal_alone(tiny_base: BaseModel, capfd: pytest.CaptureFixture[str]) -> None:
    long = replace(SAMPLING, prompt="a red frog " * 9, steps=1)
    assert prompt_notice(tiny_base, long.prompt)
    last(tiny_base, tiny_base.unet, long)
    assert capfd.readouterr() == ("", "")


PROMPT_LAYERS = ("attn2.to_k", "attn2.to_v")


def compressed(base: BaseModel) -> nn.Module:
    """A copy of the UNet with its cross-attention rounded to 4 bits, decoded in every forward."""
    unet = copy.deepcopy(base.unet)
    for name, layer in list(unet.named_modules()):
        if name.endswith(PROMPT_LAYERS):
            swap_layer(unet, name, parse("rtn").quantize(layer.weight))
    set_mode(unet, "streaming")
    return unet


@pytest.mark.parametrize("kind", ["fp16", "streaming"])
def test_keys_and_values_of_the_prompt_are_computed_once(
    tiny_base: BaseModel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = tiny_base.unet if kind == "fp16" else compressed(tiny_base)
    layer_type: Any = nn.Linear if kind == "fp16" else QuantizedLinear
    layers = {layer for name, layer in unet.named_modules() if name.endswith(PROMPT_LAYERS)}
    calls: list[nn.Module] = []
    forward = layer_type.forward
    with monkeypatch.context() as patch:
        patch.setattr(layer_type, "forward", lambda layer, *inputs: (calls.append(layer), forward(layer, *inputs))[1])
        found = last(tiny_base, unet, SAMPLING).latents
        assert [calls.count(layer) for layer in layers] == [1] * len(layers)
        patch.setattr("sdvq_core.nn.prompt_cache._is_plain", lambda layer: False)
        calls.clear()
        without = last(tiny_base, unet, SAMPLING).latents
        assert [calls.count(layer) for layer in layers] == [SAMPLING.steps] * len(layers)
    assert torch.equal(found, without)


def test_a_hook_sees_every_step(tiny_base: BaseModel) -> None:
    seen: list[Tensor] = []
    name = next(name for name, _ in tiny_base.unet.named_modules() if name.endswith(PROMPT_LAYERS))
    hook = tiny_base.unet.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    last(tiny_base, tiny_base.unet, SAMPLING)
    hook.remove()
    assert len(seen) == SAMPLING.steps


def test_nothing_stays_on_the_model_between_steps_or_after_a_failure(tiny_base: BaseModel) -> None:
    run = sample(tiny_base, tiny_base.unet, SAMPLING)
    next(run)
    assert not own_forwards(tiny_base.unet)
    run.close()  # type: ignore[attr-defined]
    broken = copy.deepcopy(tiny_base.unet)
    broken.conv_out.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        last(tiny_base, broken, SAMPLING)
    assert not own_forwards(broken)


def own_forwards(unet: nn.Module) -> list[str]:
    return [name for name, layer in unet.named_modules() if "forward" in layer.__dict__]
