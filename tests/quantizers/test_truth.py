"""What is true of any sound method: more bits never hurt, search pays, statistics help what they target."""

import itertools

import pytest
import torch
from core_cases import NAMES, error, gaussian, heavy_tailed, quantizer, stats_for

from sdvq_core.metrics.weights import relative_mse, relative_output_mse
from sdvq_core.quantizers import catalogue, parse
from sdvq_core.quantizers.nf4 import normal_float
from sdvq_core.quantizers.rtn import _SHRINKS

SOURCES = {"gaussian": gaussian((64, 128)), "heavy-tailed": heavy_tailed((64, 128))}
SOURCE = pytest.mark.parametrize("weight", SOURCES.values(), ids=SOURCES)
SCALAR_3_BIT = 0.0345  # Lloyd-Max's error of a unit Gaussian at 3 bits (Max, 1960)
SHANNON_3_BIT = 2.0**-6


def encoder(found, training):
    """What encodes with codebooks that were fitted to `training`; a method without any encodes at once."""
    return found.bound_to(found.fit_shared(training)) if hasattr(found, "share") else found.quantize


def falls(errors) -> bool:
    return all(later <= earlier for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("draw", [gaussian, heavy_tailed])
@pytest.mark.parametrize("name", NAMES)
def test_more_bits_never_raise_the_error(name, draw):
    """On weights that the codebooks were not fitted to: on its own few groups a large codebook is exact."""
    training, fresh = draw((64, 256), 1), draw((64, 128), 2)
    widths = next(info.bit_widths for info in catalogue() if info.name == name)
    coded = (encoder(quantizer(name, bits), [training])(fresh) for bits in widths)
    assert falls(relative_mse(fresh, one.dequantize()) for one in coded)


@SOURCE
def test_more_codebooks_never_raise_the_error(weight):
    assert falls(error(weight, quantizer("rvq", codebooks=m, code_bits=5, beam=4)) for m in (1, 2, 3, 4, 5))


@SOURCE
def test_wider_codes_never_raise_the_error(weight):
    assert falls(error(weight, quantizer("rvq", codebooks=2, code_bits=b, beam=4)) for b in (4, 5, 6, 7))
    assert falls(error(weight, quantizer("kmeans", group_size=4, code_bits=b)) for b in (4, 5, 6, 8))


@SOURCE
def test_beam_search_beats_greedy_coding(weight):
    greedy, narrow, wide = (error(weight, quantizer("rvq", 3, code_bits=6, beam=b)) for b in (1, 4, 16))
    assert wide < narrow < greedy


@SOURCE
def test_vectors_beat_scalars_at_three_nominal_bits(weight):
    assert error(weight, quantizer("rvq", 3)) < error(weight, quantizer("rtn", 3))


@pytest.mark.slow
def test_three_bit_codes_lie_between_shannon_and_the_scalar_bound():
    """On a large Gaussian source, where codebooks cannot memorise it."""
    weight = gaussian((512, 512))
    assert SHANNON_3_BIT < error(weight, quantizer("rvq", 3)) < 0.9 * SCALAR_3_BIT
    assert error(weight, quantizer("kmeans", 3)) < SCALAR_3_BIT


@pytest.mark.parametrize("correlated", [False, True], ids=["diagonal", "correlated"])
@SOURCE
@pytest.mark.parametrize("name", NAMES)
def test_statistics_never_raise_the_output_error(name, weight, correlated):
    found, stats = quantizer(name, {"nf4": 4, "float": 3}.get(name, 2)), stats_for(weight, correlated)
    free, steered = (found.quantize(weight, s).dequantize() for s in (None, stats))
    before, after = (relative_output_mse(weight, decoded, stats.second_moment) for decoded in (free, steered))
    assert after <= before
    if name not in ("nf4", "hqq", "float"):  # which have nothing to steer
        assert after < 0.998 * before
    if correlated and found.calibrated:
        assert after < 0.8 * before, "feedback uses what the columns have in common"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [16, 64])
@SOURCE
def test_the_clip_search_is_never_worse_than_the_plain_range(weight, bits, group_size, monkeypatch):
    searched = error(weight, quantizer("rtn", bits, group_size=group_size))
    monkeypatch.setattr("sdvq_core.quantizers.rtn._SHRINKS", _SHRINKS[:1])
    assert searched <= error(weight, quantizer("rtn", bits, group_size=group_size))


def test_smaller_groups_and_blocks_never_raise_the_error_of_scalars():
    for weight in SOURCES.values():
        assert falls(error(weight, quantizer("rtn", 3, group_size=size)) for size in (128, 64, 32, 16))
        assert falls(error(weight, quantizer("nf4", block_size=size)) for size in (128, 64, 32))


def test_rtn_rounds_to_the_nearest_step():
    """8 bits: the error is at most half a step, plus the rounding of scale and offset to float16."""
    weight = gaussian((16, 64))
    coded = quantizer("rtn", 8).quantize(weight)
    half_step = coded.tensors["scale"].float().max() / 2
    assert (coded.dequantize() - weight).abs().max() < 8 * half_step
    assert relative_mse(weight, coded.dequantize()) < 1e-4


NF4 = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]  # Dettmers et al., arXiv 2305.14314, appendix E
NF4 += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]


def test_the_levels_of_nf4_are_the_published_ones():
    torch.testing.assert_close(normal_float(), torch.tensor(NF4), rtol=0, atol=1e-4)


def test_nf4_takes_the_nearest_level_of_the_largest_weight():
    weight = gaussian((16, 128))
    coded = quantizer("nf4").quantize(weight)
    scale = weight.reshape(16, 2, 64).abs().amax(2).half().float()
    assert torch.equal(coded.tensors["scale"].float(), scale)
    unit = weight.reshape(16, 2, 64) / scale[..., None]
    levels = normal_float().half().float()
    expected = levels[(unit[..., None] - levels).abs().argmin(3)] * scale[..., None]
    torch.testing.assert_close(coded.dequantize(), expected.reshape(16, 128), rtol=0, atol=1e-6)


def test_row_scales_are_a_least_squares_fit():
    """No other scale of a row has a smaller error than the stored one, up to its rounding to float16."""
    for weight in SOURCES.values():
        decoded = quantizer("rvq", 2, beam=2).quantize(weight).dequantize()
        slope = (decoded * weight).sum(1) / decoded.square().sum(1)
        torch.testing.assert_close(slope, torch.ones_like(slope), rtol=0, atol=2e-3)


def test_shared_codebooks_cost_little_where_rows_look_alike():
    weights = [gaussian((64, 128), seed) for seed in range(3)]
    found = quantizer("rvq", 2, share="model", beam=4)
    encode = encoder(found, weights)
    shared = [encode(weight) for weight in weights]
    assert all(torch.equal(one.tensors["codebook"], shared[0].tensors["codebook"]) for one in shared)
    private = quantizer("rvq", 2, share="layer", beam=4)
    for weight, one in zip(weights, shared, strict=True):
        assert relative_mse(weight, one.dequantize()) < 2.5 * error(weight, private)
        assert one.nbytes < private.quantize(weight).nbytes


@pytest.mark.parametrize("name", ["kmeans", "rvq"])
def test_small_layers_share_and_large_ones_do_not(name):
    assert quantizer(name).sharing_key((64, 64))
    assert not quantizer(name).sharing_key((10240, 10240))
    assert not quantizer(name, share="layer").sharing_key((64, 64))
    assert quantizer(name, share="model").sharing_key((10240, 10240))


def test_small_floats_are_those_of_the_standard():
    from sdvq_core.quantizers.low_float import float_levels

    e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]  # OCP microscaling formats, FP4
    assert (float_levels(2, 1) * 6).tolist() == [*(-value for value in reversed(e2m1)), *e2m1]
    assert (float_levels(3, 0)[8:] * 64).tolist() == [0, 1, 2, 4, 8, 16, 32, 64]


def test_the_scale_search_of_floats_pays():
    weight = heavy_tailed((64, 128))
    plain = quantizer("float")
    searched = error(weight, plain)

    class Unsearched(type(plain)):
        def shrinks(self):
            return (1.0,)

    assert searched < 0.98 * error(weight, Unsearched())


@pytest.mark.parametrize("word", ["rvq:bits=3,share=layer", "kmeans:bits=2", "aq:bits=2,share=layer,rounds=1"])
@pytest.mark.parametrize("shape", [(70, 48), (20, 12, 3, 3)])
def test_rows_are_encoded_in_blocks_that_do_not_show(word, shape, monkeypatch):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    whole = parse(word).quantize(weight)
    monkeypatch.setattr("sdvq_core.quantizers.vector._BLOCK", 7 * weight[0].numel())
    blocks = parse(word).quantize(weight)
    assert all(torch.equal(tensor, blocks.tensors[name]) for name, tensor in whole.tensors.items())
