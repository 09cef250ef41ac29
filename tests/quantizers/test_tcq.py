"""What trellis coding promises: near the rate-distortion bound on Gaussians and on what is rotated, and steerable."""

import itertools
from importlib import import_module

import pytest
import torch
from core_cases import error, gaussian, heavy_tailed, quantizer, stats_for

from sdvq_core.formats.trellis import circle_length, columns_per_circle, from_circles, to_circles
from sdvq_core.metrics.weights import relative_mse, relative_output_mse
from sdvq_core.records import LayerStats

SHANNON = {1: 2.0**-2, 2: 2.0**-4, 3: 2.0**-6, 4: 2.0**-8}
BOUND = {1: 0.280, 2: 0.0725, 3: 0.0190, 4: 0.0049}  # Lloyd-Max's scalar code: 0.363, 0.117, 0.0345, 0.0095


@pytest.mark.parametrize("bits", BOUND)
def test_a_gaussian_is_coded_near_the_rate_distortion_bound(bits):
    weight = gaussian((256, 256))
    coded = quantizer("tcq", bits).quantize(weight)
    assert SHANNON[bits] < relative_mse(weight, coded.dequantize()) < BOUND[bits]
    assert coded.nbytes == 256 * 256 * bits // 8 + 2 * 256 + 2


def test_rotation_makes_heavy_tails_as_good_as_a_gaussian():
    found = quantizer("tcq", 3)
    assert error(heavy_tailed((128, 256)), found) < 1.05 * error(gaussian((128, 256)), found)


def test_more_states_never_raise_the_error():
    weight = gaussian((128, 128))
    errors = [error(weight, quantizer("tcq", 2, state_bits=width)) for width in (8, 10, 12, 14)]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("shape", [(64, 96), (16, 40), (128, 20), (33, 5, 3, 3)], ids=str)
def test_feedback_lowers_the_output_error_a_lot(shape):
    weight, found = gaussian(shape), quantizer("tcq", 3)
    stats = stats_for(weight, correlated=True)
    free, steered = (found.quantize(weight, known).dequantize() for known in (None, stats))
    before, after = (relative_output_mse(weight, decoded, stats.second_moment) for decoded in (free, steered))
    assert after < 0.75 * before


def test_a_singular_moment_is_no_obstacle():
    weight = gaussian((64, 64))
    inputs = gaussian((8, 64), 3, 1.0)
    stats = LayerStats(inputs.T @ inputs / 8, 8)
    free, steered = (quantizer("tcq", 2).quantize(weight, known).dequantize() for known in (None, stats))
    assert torch.isfinite(steered).all()
    moment = stats.second_moment
    assert relative_output_mse(weight, steered, moment) < 0.2 * relative_output_mse(weight, free, moment)


def test_row_scales_are_a_least_squares_fit():
    weight = heavy_tailed((64, 64))
    decoded = quantizer("tcq", 2).quantize(weight).dequantize()
    slope = (decoded * weight).sum(1) / decoded.square().sum(1)
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=0, atol=2e-3)


def test_a_large_mean_is_stored_apart_and_a_small_one_is_not():
    weight = gaussian((64, 64), scale=1.0)
    assert not quantizer("tcq", 2).quantize(weight).tensors["offset"].any()
    far = quantizer("tcq", 2).quantize(weight + 10)
    assert float(far.tensors["offset"]) == pytest.approx(10, abs=0.1)
    assert relative_mse(weight, far.dequantize() - 10) < 0.08


@pytest.mark.parametrize("known", [False, True], ids=["data-free", "stats"])
def test_without_numba_the_bytes_are_the_same(known, monkeypatch):
    weight = gaussian((40, 24))
    found, stats = quantizer("tcq", 3, state_bits=8), stats_for(weight) if known else None
    fast = found.quantize(weight, stats)
    monkeypatch.setattr(import_module("sdvq_core.kernels.viterbi"), "way", lambda device: "torch")
    slow = found.quantize(weight, stats)
    assert all(torch.equal(fast.tensors[key], slow.tensors[key]) for key in fast.tensors)


SHAPES = [(1, 1), (1, 7), (5, 7), (16, 40), (64, 27), (127, 6), (128, 3), (320, 8), (509, 2), (1280, 4)]


@pytest.mark.parametrize(("rows", "length"), SHAPES)
def test_circles_are_even_and_fill_columns(rows, length):
    places, together = circle_length(rows, length), columns_per_circle(rows, length)
    assert rows * length % places == 0
    assert length % together == 0
    assert rows * together % places == 0, "feedback goes by whole circles"
    assert places >= 128 or places == rows * length
    weight = gaussian((rows, length))
    assert torch.equal(from_circles(to_circles(weight, places), rows), weight)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 1), (2, 5, 3, 3)], ids=str)
def test_the_smallest_weights_have_codes_too(shape):
    weight = gaussian(shape)
    coded = quantizer("tcq", 3).quantize(weight, stats_for(weight))
    assert torch.isfinite(coded.dequantize()).all()
    assert coded.meta["state_bits"] <= 3 * weight.numel()
