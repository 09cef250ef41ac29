"""Each library's arithmetic, checked from outside: errors where theory puts them, bytes that are the library's own."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from sdvq_core.errors import ConfigError
from sdvq_core.metrics.weights import relative_mse
from sdvq_core.peers import EXTRA, catalogue, make_peer, parse, peer_ledger
from sdvq_core.peers.base import Peer, Stored

NAMES = [info.name for info in catalogue()]
# Relative error on a Gaussian: 15 steps over the range of 32 to 128 weights, 4.1 to 5.2 standard deviations, lose
# (range / 15)^2 / 12 = .006 to .010, and NF4 in blocks of 64 .0085; 255 steps over a whole row lose 1/200 of that.
FOUR_BITS, EIGHT_BITS = (0.004, 0.013), 2e-4


def library(word: str) -> Peer:
    """The peer of `word`, or a skip that says what is missing."""
    info = next(info for info in catalogue() if info.name == word.partition(":")[0])
    if not info.installed:
        pytest.skip(f"{info.needs} is not installed; {EXTRA}")
    return parse(word)


def widths(name: str) -> list[int]:
    return [int(bits) for info in catalogue() if info.name == name for bits in info.bit_widths]


def gaussian(kind: str) -> nn.Linear | nn.Conv2d:
    layer = nn.Linear(192, 128) if kind == "linear" else nn.Conv2d(64, 96, 3)
    nn.init.normal_(layer.weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return layer.half()


def quantized(peer: Peer, kind: str) -> tuple[torch.Tensor, Stored]:
    layer = gaussian(kind)
    weight = layer.weight.detach().clone()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the libraries' own
        return weight, peer.quantize(layer)


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("name", NAMES)
def test_error_on_a_gaussian_is_in_the_range_of_its_bits(name, kind):
    errors = []
    for bits in widths(name):
        weight, found = quantized(library(f"{name}:bits={bits}"), kind)
        assert found.weight.shape == weight.shape
        errors.append(relative_mse(weight, found.weight))
        if bits == 4:
            assert FOUR_BITS[0] < errors[-1] < FOUR_BITS[1]
        if bits == 8:
            assert errors[-1] < EIGHT_BITS
    assert errors == sorted(errors, reverse=True), "more bits are never worse"


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("name", NAMES)
def test_codes_take_their_bits_and_the_same_weights_give_the_same_codes(name, kind):
    peer = library(f"{name}:bits=4")
    (weight, found), (_, again) = quantized(peer, kind), quantized(peer, kind)
    codes = sum(spec.nbytes for spec in found.spec.values() if spec.part == "codes")
    assert 8 * codes == 4 * weight.numel()
    assert {spec.part for spec in found.spec.values()} <= {"codes", "codebooks", "scales"}
    assert torch.equal(found.weight, again.weight)


def test_bitsandbytes_is_its_own_functions_and_near_our_nf4():
    from sdvq_core.quantizers import parse as ours

    weight, found = quantized(library("lib.bitsandbytes"), "linear")
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(found.weight, dequantize_4bit(codes, state))
    nbytes = sum(part.numel() * part.element_size() for part in (codes, state.absmax, state.code))
    assert sum(spec.nbytes for spec in found.spec.values()) == nbytes
    mine = relative_mse(weight, ours("nf4").quantize(weight).dequantize())
    assert relative_mse(weight, found.weight) == pytest.approx(mine, rel=0.02)


def test_bitsandbytes_double_quantization_saves_scales_and_counts_its_tables():
    single, double = (
        quantized(library(f"lib.bitsandbytes:double_quant={word}"), "linear")[1].spec for word in ("no", "yes")
    )
    assert single["scales.0"].nbytes == 4 * double["scales.0"].nbytes
    assert double["codebooks.1"].nbytes == 256 * 4


def test_hqq_counts_what_its_layer_holds():
    _, found = quantized(library("lib.hqq"), "linear")
    groups = 192 * 128 // 64
    assert [spec.nbytes for spec in found.spec.values()] == [192 * 128 // 2, 2 * groups, 2 * groups]


def test_hqq_says_which_weights_it_refuses():
    peer = library("lib.hqq")
    assert "HQQ (library) refused it: " in str(peer.attempt(nn.Linear(24, 40).half()))


@pytest.mark.parametrize("type", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_gguf_blocks_have_the_size_of_the_standard_and_two_readers_agree(type):
    weight, found = quantized(library(f"lib.gguf:type={type}"), "linear")
    import gguf

    kind = gguf.GGMLQuantizationType[type]
    weights, nbytes = gguf.GGML_QUANT_SIZES[kind]
    assert sum(spec.nbytes for spec in found.spec.values()) == weight.numel() // weights * nbytes
    blocks = gguf.quants.quantize(weight.float().numpy(), kind)
    torch.testing.assert_close(
        found.weight.float(), torch.from_numpy(gguf.quants.dequantize(blocks, kind)), atol=2e-4, rtol=1e-3
    )


def test_sdnq_counts_every_tensor_of_its_layer_but_the_bias():
    peer = library("lib.sdnq")
    _, found = quantized(peer, "conv2d")
    from sdnq import SDNQConfig, sdnq_quantize_layer

    config = SDNQConfig(weights_dtype="uint4", quant_conv=True, minimum_allowed_numel=0, minimum_allowed_channel_size=0)
    kept = sdnq_quantize_layer(gaussian("conv2d"), config)[0].state_dict()
    nbytes = sum(part.numel() * part.element_size() for name, part in kept.items() if name != "bias")
    assert sum(spec.nbytes for spec in found.spec.values()) == nbytes


@pytest.mark.parametrize("name", NAMES)
def test_the_same_layers_as_our_arms_and_nothing_else_changes(tiny_base, name):
    peer = library(f"{name}:bits=4")
    before = {key: value.clone() for key, value in tiny_base.unet.state_dict().items()}
    made = make_peer(tiny_base.unet, peer)
    ours = {layer.name for layer in made.layers} | {item.layer for item in made.ledger.fallbacks}
    assert ours == compressed_by_ours(tiny_base.unet)
    changed = {f"{layer.name}.weight" for layer in made.layers}
    for key, value in made.unet.state_dict().items():
        assert torch.equal(value, before[key]) == (key not in changed), key
        assert torch.equal(tiny_base.unet.state_dict()[key], before[key])


@pytest.mark.parametrize("name", NAMES)
def test_the_forward_is_that_of_the_library_s_decoded_weights(tiny_base, name):
    made = make_peer(tiny_base.unet, library(f"{name}:bits=4"))
    layer = made.layers[0]
    source = tiny_base.unet.get_submodule(layer.name)
    wanted = library(f"{name}:bits=4").quantize(copied(source)).weight.float()
    torch.testing.assert_close(made.unet.get_submodule(layer.name).weight, wanted)
    assert layer.relative_mse == relative_mse(source.weight, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_size_in_advance_is_the_size_of_what_is_made(tiny_base, name):
    peer = library(f"{name}:bits=4")
    made = make_peer(tiny_base.unet, peer)
    assert peer_ledger(tiny_base.unet, peer) == made.ledger
    quantized_bytes = made.ledger.tensor_bytes - made.ledger.parts["kept"]
    assert quantized_bytes == sum(layer.nbytes for layer in made.layers)
    assert made.ledger.weights == sum(parameter.numel() for parameter in tiny_base.unet.parameters())
    assert made.ledger.weights_quantized == sum(math.prod(layer.shape) for layer in made.layers)


@pytest.mark.parametrize("name", NAMES)
def test_left_to_itself_a_library_keeps_convolutions_and_the_ledger_lists_them(tiny_base, name):
    peer = replace(library(f"{name}:bits=4"), layers="own")
    try:
        made = make_peer(tiny_base.unet, peer)
    except ConfigError as error:
        pytest.skip(f"no layer of the tiny model suits {name}: {error}")
    convolutions = {n for n, module in tiny_base.unet.named_modules() if isinstance(module, nn.Conv2d)}
    assert not convolutions & {layer.name for layer in made.layers}
    assert convolutions & compressed_by_ours(tiny_base.unet) <= {item.layer for item in made.ledger.fallbacks}
    left = sum(p.numel() for p in tiny_base.unet.parameters()) - made.ledger.weights_quantized
    assert made.ledger.parts["kept"] == 2 * left
    with pytest.raises(ConfigError, match="once it is made"):
        peer_ledger(tiny_base.unet, peer)


def compressed_by_ours(unet: nn.Module) -> set[str]:
    from sdvq_core.peers import peer_plan

    return {item.name for item in peer_plan(unet).assignments} | {item.layer for item in peer_plan(unet).fallbacks}


def copied(layer: nn.Module) -> nn.Linear | nn.Conv2d:
    import copy

    return copy.deepcopy(layer).half()
