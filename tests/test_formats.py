"""Formats against slow reference decoders that follow their docstrings weight by weight, and the value they make."""

import pytest
import torch
from core_cases import gaussian, heavy_tailed, quantizer

from sdvq_core.errors import ConfigError, StoreError
from sdvq_core.formats import Affine, Codebook, Trellis
from sdvq_core.formats.trellis import circle_length
from sdvq_core.kernels import gaussian_code, rotate
from sdvq_core.qtensor import QuantizedTensor, get_format

SHAPES = [(16, 40), (5, 7), (4, 11, 3, 3), (3, 16, 1, 1)]


def read_code(packed: torch.Tensor, width: int, index: int) -> int:
    stream = int.from_bytes(bytes(packed.tolist()), "little")
    return stream >> (index * width) & (2**width - 1)


def tap_order(shape):
    """(row, channel, tap) of every weight in row order: taps outermost."""
    count = 1 if len(shape) == 2 else shape[2] * shape[3]
    return [(tap, channel) for tap in range(count) for channel in range(shape[1])]


def slow_affine(coded: QuantizedTensor) -> torch.Tensor:
    bits, size = coded.meta["bits"], coded.meta["group_size"]
    scale, offset = coded.tensors["scale"].float(), coded.tensors["offset"].float()
    weight = torch.zeros(coded.shape).reshape(coded.shape[0], coded.shape[1], -1)
    for row in range(coded.shape[0]):
        for place, (tap, channel) in enumerate(tap_order(coded.shape)):
            run = place // size
            code = read_code(coded.tensors["codes"], bits, row * scale.shape[1] * size + place)
            weight[row, channel, tap] = offset[row, run] + scale[row, run] * code
    return weight.reshape(coded.shape)


def slow_codebook(coded: QuantizedTensor) -> torch.Tensor:
    bits, d, run = coded.meta["code_bits"], coded.meta["group_size"], coded.meta["scale_group"]
    scale, books = coded.tensors["scale"].float(), coded.tensors["codebook"].float()
    per_tap = -(-coded.shape[1] // d)
    taps = len(tap_order(coded.shape)) // coded.shape[1]
    weight = torch.zeros(coded.shape).reshape(coded.shape[0], coded.shape[1], -1)
    for row in range(coded.shape[0]):
        for tap, channel in tap_order(coded.shape):
            group = tap * per_tap + channel // d
            index = row * taps * per_tap + group
            entries = [
                books[m, read_code(coded.tensors["codes"][m], bits, index), channel % d] for m in range(len(books))
            ]
            place = (group * d + channel % d) // run if run else 0
            weight[row, channel, tap] = scale[row, place] * sum(entries)
    return weight.reshape(coded.shape)


def slow_trellis(coded: QuantizedTensor) -> torch.Tensor:
    bits, state_bits = coded.meta["bits"], coded.meta["state_bits"]
    rows, length = coded.shape[0], len(tap_order(coded.shape))
    places, table = circle_length(rows, length), gaussian_code(bits, state_bits)
    decoded = torch.zeros(rows, length)
    for index in range(rows * length):
        circle, place = divmod(index, places)
        around = (circle * places + (place - back) % places for back in range(-(-state_bits // bits)))
        state = sum(read_code(coded.tensors["codes"], bits, at) << bits * back for back, at in enumerate(around))
        decoded[index % rows, index // rows] = table[state % 2**state_bits] * coded.tensors["scale"][index % rows, 0]
    rotation = rotate(torch.eye(length), coded.meta["seed"])  # x -> x @ rotation, orthonormal
    weight = torch.zeros(rows, coded.shape[1], length // coded.shape[1])
    for place, (tap, channel) in enumerate(tap_order(coded.shape)):
        weight[:, channel, tap] = decoded @ rotation[place] + coded.tensors["offset"].float()
    return weight.reshape(coded.shape)


@pytest.mark.parametrize("shape", [*SHAPES, (130, 6), (256, 4)], ids=str)
@pytest.mark.parametrize("knobs", [{"bits": 3, "state_bits": 10}, {"bits": 4, "state_bits": 8}, {"bits": 1}], ids=str)
def test_trellis_decodes_as_its_docstring_says(knobs, shape):
    coded = quantizer("tcq", **knobs).quantize(heavy_tailed(shape) + 0.1)
    torch.testing.assert_close(coded.dequantize(), slow_trellis(coded), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("word", [("rtn", {"bits": 3, "group_size": 16}), ("rtn", {"bits": 5, "group_size": 64})])
def test_affine_decodes_as_its_docstring_says(word, shape):
    coded = quantizer(word[0], **word[1]).quantize(gaussian(shape))
    torch.testing.assert_close(coded.dequantize(), slow_affine(coded), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "word",
    [
        ("nf4", {"block_size": 32}),
        ("kmeans", {"group_size": 4, "code_bits": 5}),
        ("kmeans", {"group_size": 2, "code_bits": 4, "share": "model"}),
        ("rvq", {"codebooks": 3, "code_bits": 5, "group_size": 8, "beam": 2}),
    ],
    ids=str,
)
def test_codebook_decodes_as_its_docstring_says(word, shape):
    coded = quantizer(word[0], **word[1]).quantize(heavy_tailed(shape))
    torch.testing.assert_close(coded.dequantize(), slow_codebook(coded), rtol=1e-5, atol=1e-7)


def test_codes_and_levels_are_what_the_decoder_uses():
    coded = quantizer("rtn", bits=3, group_size=16).quantize(gaussian((4, 32)))
    scale, offset = (coded.tensors[key].float() for key in ("scale", "offset"))
    by_hand = offset[..., None] + scale[..., None] * coded.codes().reshape(4, 2, 16)
    torch.testing.assert_close(coded.dequantize(), by_hand.reshape(4, 32))
    assert len(coded.levels()) == 8
    vectors = quantizer("rvq", codebooks=2, code_bits=4, beam=2).quantize(gaussian((4, 32)))
    assert vectors.codes().shape == (2, 16)
    assert int(vectors.codes().max()) < 16
    assert len(vectors.levels()) == 16 * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dequantize_rounds_once_into_any_dtype(dtype):
    coded = quantizer("rvq", 2, beam=2, code_bits=4).quantize(gaussian((16, 16)))
    assert torch.equal(coded.dequantize(dtype), coded.dequantize().to(dtype))


def test_the_bits_of_a_layer_count_everything_of_its_own():
    coded = quantizer("rtn", 4).quantize(gaussian((64, 128)))
    assert coded.nbytes == 64 * 128 // 2 + 2 * 2 * 64 * 2
    assert coded.bits_per_weight == pytest.approx(4.5)
    shared = quantizer("rvq", 3, share="model").quantize(gaussian((64, 128)))
    assert shared.nbytes == 3 * 64 * 16 + 2 * 64
    private = quantizer("rvq", 3, share="layer").quantize(gaussian((64, 128)))
    assert private.nbytes == shared.nbytes + 2 * 3 * 256 * 8


def test_a_value_that_does_not_fit_its_format_is_refused():
    coded = quantizer("rtn").quantize(gaussian((16, 16)))
    with pytest.raises(ConfigError, match="affine stores"):
        QuantizedTensor("affine", (16, 16), {"codes": coded.tensors["codes"]}, coded.meta)
    with pytest.raises(ConfigError, match=r"affine.codes must be torch.uint8 \[136\]"):
        QuantizedTensor("affine", (17, 16), coded.tensors, coded.meta)
    wide = {**coded.tensors, "scale": coded.tensors["scale"].float()}
    with pytest.raises(ConfigError, match=r"affine.scale must be torch.float16"):
        QuantizedTensor("affine", (16, 16), wide, coded.meta)


def test_an_unknown_format_says_which_are_known():
    with pytest.raises(
        StoreError, match="unknown storage format 'lattice'; this version reads affine, codebook, trellis"
    ):
        get_format("lattice")
    assert isinstance(get_format("affine"), Affine)
    assert isinstance(get_format("codebook"), Codebook)
    assert isinstance(get_format("trellis"), Trellis)
