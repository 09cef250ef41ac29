"""The other precision: what is rounded, what stays as it was."""

from __future__ import annotations

import copy

import torch
from core_cases import run_unet, tiny_unet

from sdvq_core.evaluation.floors import half_rounded, in_float32
from sdvq_core.metrics.weights import relative_mse


def test_rounding_every_layer_is_a_small_error_and_leaves_the_original_alone():
    unet = tiny_unet()
    before = run_unet(unet)
    rounded = run_unet(half_rounded(unet))
    assert torch.equal(rounded, rounded.half().float())
    assert torch.equal(run_unet(unet), before)
    assert 0 < relative_mse(before, rounded) < 1e-4


def test_rounding_errs_as_much_as_true_half_precision():
    unet = tiny_unet()
    with torch.no_grad():
        half = run_unet(copy.deepcopy(unet).half(), torch.float16)
    exact = run_unet(unet)
    ratio = relative_mse(exact, run_unet(half_rounded(unet))) / relative_mse(exact, half)
    assert 0.5 < ratio < 2


def test_a_half_precision_unet_computes_in_float32():
    unet = tiny_unet().half()
    wide = copy.deepcopy(unet).float()
    inputs = [torch.zeros(2, 4, 8, 8).half(), torch.tensor(500)]
    states = torch.ones(2, 5, 24).half()
    added = {"text_embeds": torch.ones(2, 24).half(), "time_ids": torch.ones(2, 6).half()}
    with torch.no_grad():
        found = in_float32(unet)(*inputs, encoder_hidden_states=states, added_cond_kwargs=added, return_dict=False)[0]
        expected = wide(
            inputs[0].float(),
            inputs[1],
            encoder_hidden_states=states.float(),
            added_cond_kwargs={name: value.float() for name, value in added.items()},
        )[0]
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert unet.dtype == torch.float16
