"""Learned rounding: what learning and coordinate descent promise, under the whole H and against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from core_cases import gaussian, heavy_tailed, quantizer, stats_for

from sdvq_core.metrics.weights import relative_output_mse
from sdvq_core.quantizers.adaround import learn
from sdvq_core.quantizers.descent import Rounding, descend
from sdvq_core.quantizers.feedback import damped

WEIGHTS = {"gaussian": gaussian((48, 96)), "heavy-tailed": heavy_tailed((48, 96)), "conv": gaussian((24, 20, 3, 3))}
WEIGHT = pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)


def output_error(weight, word, stats, **knobs):
    decoded = quantizer(*word, **knobs).quantize(weight, stats).dequantize()
    return relative_output_mse(weight, decoded, stats.second_moment)


@pytest.mark.parametrize("bits", [2, 3, 4])
@WEIGHT
def test_learned_rounding_beats_error_feedback_and_rounding_to_nearest(weight, bits):
    stats = stats_for(weight, correlated=True)
    nearest, fed_back, learned = (output_error(weight, (name, bits), stats) for name in ("rtn", "gptq", "adaround"))
    assert learned < 0.9 * fed_back
    assert fed_back < nearest


@pytest.mark.parametrize("iterations", [0, 1, 20])
@pytest.mark.parametrize("correlated", [False, True])
@WEIGHT
def test_no_row_is_worse_than_its_start_however_short_the_learning(weight, correlated, iterations):
    stats = stats_for(weight, correlated)
    rows, moment = weight.permute(0, *range(2, weight.ndim), 1).flatten(1), damped(stats.second_moment)
    found_by = (
        quantizer("rtn", 3),
        quantizer("gptq", 3),
        quantizer("adaround", 3, damping=0.01, iterations=iterations),
    )
    *starts, found = (Rounding.of(one.quantize(weight, stats)) for one in found_by)
    starts = [start.errors(rows, moment) for start in starts]
    assert (found.errors(rows, moment) <= torch.minimum(*starts) * (1 + 1e-5)).all()


@WEIGHT
def test_more_bits_and_more_iterations_lower_the_output_error(weight):
    stats = stats_for(weight, correlated=True)
    errors = [output_error(weight, ("adaround", bits), stats, iterations=50) for bits in range(2, 9)]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    knobs = {"damping": 0.01}  # what is measured is nearly what is searched
    none, some, many = (output_error(weight, ("adaround", 3), stats, iterations=n, **knobs) for n in (0, 60, 300))
    assert many < some < none


def start_of(weight, stats, bits=2):
    return Rounding.of(quantizer("rtn", bits, group_size=16).quantize(weight, stats))


def test_learning_moves_a_code_by_one_at_most_and_stays_within_the_codes():
    weight = gaussian((32, 64))
    stats = stats_for(weight, correlated=True)
    start = start_of(weight, stats)
    found = learn(weight, start, damped(stats.second_moment), 100, 0.1)
    assert (found.codes - start.codes).abs().max() == 1
    assert set(found.codes.unique().tolist()) <= {0, 1, 2, 3}
    assert torch.equal(found.step, start.step)


def test_the_learned_rounding_of_a_short_row_is_nearly_the_best_of_all():
    """Eight weights at two bits: all 4^8 codes can be tried."""
    weight = gaussian((16, 8), 3)
    stats = stats_for(weight, correlated=True, seed=5)
    method = quantizer("adaround", 2, group_size=16)
    moment = damped(stats.second_moment, method.damping)
    found = Rounding.of(method.quantize(weight, stats))
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 8)  # [65536, 8]
    ratios = []
    for row in range(16):
        step, low = found.step[row], found.low[row]
        every = Rounding(grid, step.expand_as(grid), low.expand_as(grid), 3)
        least = every.errors(weight[row].expand_as(grid), moment).min()
        ratios.append(found.errors(weight, moment)[row] / least)
    assert sum(ratio < 1.0001 for ratio in ratios) >= 10
    assert sum(ratios) / 16 < 1.1


@pytest.mark.parametrize("shape", [(20, 40), (20, 300)])
def test_descent_never_raises_a_row_and_ends_where_no_single_code_helps(shape):
    weight = gaussian(shape)
    stats = stats_for(weight, correlated=True)
    moment, start = damped(stats.second_moment), start_of(weight, stats, 3)
    errors = [descend(weight, start, moment, sweeps).errors(weight, moment) for sweeps in (0, 1, 2, 50)]
    assert torch.equal(errors[0], start.errors(weight, moment))
    assert all((later <= earlier * (1 + 1e-5)).all() for earlier, later in itertools.pairwise(errors))
    end = descend(weight, start, moment, 50)
    for column, move in itertools.product(range(shape[1]), (-1, 1)):
        codes = end.codes.clone()
        codes[:, column] = (codes[:, column] + move).clamp(0, end.top)
        assert (end.with_codes(codes).errors(weight, moment) >= errors[-1] * (1 - 1e-4)).all()


@WEIGHT
def test_a_rounding_is_stored_as_it_was_read(weight):
    coded = quantizer("rtn", 3, group_size=16).quantize(weight)
    again = Rounding.of(coded).stored(coded)
    assert torch.equal(again.dequantize(), coded.dequantize())
    assert all(torch.equal(again.tensors[key], coded.tensors[key]) for key in ("scale", "offset"))


def test_without_statistics_it_rounds_to_nearest_within_searched_ranges():
    weight = WEIGHTS["conv"]
    assert torch.equal(
        quantizer("adaround").quantize(weight).dequantize(), quantizer("rtn").quantize(weight).dequantize()
    )
