"""Quantized layers compute what float layers with the decoded weight compute, in every mode, dtype and copy."""

import copy
import pickle

import pytest
import torch
from core_cases import NAMES, gaussian, quantizer
from torch import nn
from torch.nn import functional as F

from sdvq_core.errors import ConfigError, LayerError
from sdvq_core.nn import (
    QuantizedConv2d,
    QuantizedLinear,
    SharedCodebooks,
    kind_of,
    quantized_layers,
    set_mode,
    swap_layer,
    swap_spec,
)
from sdvq_core.nn.swap import shared_codebooks
from sdvq_core.quantizers import parse

EACH = pytest.mark.parametrize("name", NAMES)


class Small(nn.Module):
    """Two layers that share codebooks where the quantizer shares, and one that stays."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(16, 24, 3, stride=2, padding=1)
            self.line = nn.Linear(24, 17, bias=False)
            self.norm = nn.LayerNorm(17)

    def forward(self, x):
        return self.norm(self.line(self.conv(x).flatten(2).transpose(1, 2)))


def small(name: str) -> tuple[Small, dict]:
    """The model with both layers swapped, and their compressed weights."""
    model = Small().eval().requires_grad_(False)
    offered = {knob.name for knob in type(quantizer(name)).knobs()}
    quick = {"code_bits": 4, "share": "model", "rounds": 1}
    found = quantizer(name, **{key: value for key, value in quick.items() if key in offered})
    weights = [model.conv.weight, model.line.weight]
    encode = found.bound_to(found.fit_shared(weights)) if found.sharing_key(weights[0].shape) else found.quantize
    coded = dict(zip(("conv", "line"), map(encode, weights), strict=True))
    for layer, weight in coded.items():
        swap_layer(model, layer, weight)
    return model, coded


IMAGE = gaussian((2, 16, 9, 9), 1, 1.0)


@EACH
@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_the_output_is_that_of_the_decoded_weight(name, mode):
    model, coded = small(name)
    set_mode(model, mode)
    conv, line = model.conv, model.line
    assert isinstance(conv, QuantizedConv2d)
    assert isinstance(line, QuantizedLinear)
    expected = F.conv2d(IMAGE, coded["conv"].dequantize(), conv.bias, stride=2, padding=1)
    assert torch.equal(conv(IMAGE), expected)
    x = gaussian((2, 5, 24), 2, 1.0)
    assert torch.equal(line(x), F.linear(x, coded["line"].dequantize()))


@EACH
def test_resident_and_streaming_agree_to_the_bit(name):
    model, _ = small(name)
    resident = model(IMAGE)
    set_mode(model, "streaming")
    assert torch.equal(model(IMAGE), resident)
    assert model.conv._decoded is None
    set_mode(model, "resident")
    assert torch.equal(model(IMAGE), resident)
    assert model.conv._decoded is not None
    with pytest.raises(ConfigError, match="resident, streaming"):
        set_mode(model, "cached")


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_arrays_keep_their_dtype(name, dtype):
    model, coded = small(name)
    before = model(IMAGE)
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    assert {value.dtype for value in buffers.values()} <= {torch.uint8, torch.float16}
    model.to(dtype)
    assert model.norm.weight.dtype == dtype
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())
    assert torch.equal(model.conv(IMAGE.to(dtype)), F.conv2d(
        IMAGE.to(dtype), coded["conv"].dequantize(dtype), model.conv.bias, stride=2, padding=1))  # fmt: skip
    reference = Small().eval().requires_grad_(False).to(torch.float32)
    model.load_state_dict({**model.state_dict(), "conv.bias": reference.conv.bias.to(dtype)})
    model.float()
    assert all(value.dtype == buffers[key].dtype for key, value in model.named_buffers())
    torch.testing.assert_close(model(IMAGE), before, rtol=0.05, atol=0.05)


def test_half_and_float_are_the_same_switch():
    model, _ = small("rvq")
    sizes = sum(value.nbytes for value in model.buffers())
    assert sum(value.nbytes for value in model.half().float().buffers()) == sizes


@EACH
def test_a_deep_copy_is_independent_and_shares_its_own_codebooks(name):
    model, _ = small(name)
    expected = model(IMAGE)
    twin = copy.deepcopy(model)
    for buffer in model.buffers():
        buffer.zero_()
    model(IMAGE)
    assert torch.equal(twin(IMAGE), expected)
    containers = {id(layer._shared[0]) for _, layer in quantized_layers(twin)}
    assert containers == {id(twin.sdvq_codebooks)}
    assert id(model.sdvq_codebooks) not in containers


def test_shared_codebooks_are_stored_once():
    model, coded = small("rvq")
    names = [key for key in model.state_dict() if key.startswith("sdvq_codebooks.")]
    assert names == [f"sdvq_codebooks.{coded['conv'].meta['shared']}"]
    assert model.conv.quantized.tensors["codebook"] is model.line.quantized.tensors["codebook"]


@EACH
def test_the_stored_value_comes_out_as_it_went_in(name):
    model, coded = small(name)
    for layer, module in quantized_layers(model):
        assert module.quantized.meta == coded[layer].meta
        assert torch.equal(module.quantized.dequantize(), coded[layer].dequantize())
        assert torch.equal(module.weight, coded[layer].dequantize())


def test_kinds():
    assert [kind_of(layer) for layer in (nn.Linear(2, 2), nn.Conv2d(2, 2, 1), nn.LayerNorm(2))] == [
        "linear", "conv2d", None]  # fmt: skip
    model, _ = small("rtn")
    assert [(name, layer.kind) for name, layer in quantized_layers(model)] == [("conv", "conv2d"), ("line", "linear")]
    assert "affine, resident" in repr(model.conv)


def test_swapping_says_what_is_wrong():
    model, weight = Small(), quantizer("rtn").quantize(gaussian((17, 24)))
    with pytest.raises(LayerError, match="layer lines: no such layer"):
        swap_layer(model, "lines", weight)
    with pytest.raises(LayerError, match="layer norm: is a LayerNorm; only Linear and Conv2d"):
        swap_layer(model, "norm", weight)
    with pytest.raises(
        LayerError, match=r"layer conv: has the shape \[24, 16, 3, 3\], the compressed weight \[17, 24\]"
    ):
        swap_layer(model, "conv", weight)
    model.conv = nn.Conv2d(16, 24, 3, padding=1, padding_mode="circular")
    with pytest.raises(LayerError, match="pads with 'circular'"):
        swap_spec(model, "conv", "affine", weight.meta, (24, 16, 3, 3))


def test_a_swap_that_fails_leaves_the_model_as_it_was():
    model, weight = Small(), quantizer("rtn").quantize(gaussian((17, 24)))
    with pytest.raises(LayerError):
        swap_layer(model, "conv", weight)
    assert isinstance(model.conv, nn.Conv2d)


def test_a_container_replaces_a_set_of_the_same_name():
    box = SharedCodebooks()
    box.put("set", torch.zeros(1, 4, 2))
    box.put("set", torch.ones(1, 4, 2))
    assert torch.equal(box.get("set"), torch.ones(1, 4, 2))
    assert len(list(box.buffers())) == 1


def test_a_prepared_decoder_sees_what_was_written_into_its_arrays():
    """Layers with a shared set keep what decoding needs; copies, pickles and writes must not see it."""
    model = nn.Sequential(nn.Linear(64, 64))
    swap_layer(model, "0", parse("rvq:bits=2,share=model").quantize(model[0].weight.detach()))
    layer, name = model[0], next(spec.shared for spec in model[0].specs.values() if spec.shared)
    set_mode(model, "streaming")
    before = layer.decoded(torch.float32)
    assert torch.equal(layer.decoded(torch.float32), before)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    layer.scale.mul_(2)
    assert torch.equal(layer.decoded(torch.float32), 2 * before)
    shared_codebooks(model).get(name).mul_(2)
    assert torch.equal(layer.decoded(torch.float32), 4 * before)
    layer.fill({**layer.stored, "scale": layer.scale / 4})
    assert torch.equal(layer.decoded(torch.float32), before)
    assert torch.equal(twin[0].decoded(torch.float32), before)


@pytest.mark.parametrize("change", ["move", "fill", "resident"])
def test_what_a_layer_kept_for_decoding_goes_when_its_arrays_go(change):
    model = nn.ModuleDict({"line": nn.Linear(24, 17)})
    swap_layer(model, "line", parse("rvq:bits=2,share=model").quantize(model.line.weight.detach()))
    set_mode(model, "streaming")
    model.line.decoded(torch.float32)
    assert model.line._decoder is not None
    if change == "move":
        model.to("meta")
    elif change == "fill":
        model.line.fill(model.line.stored)
    else:
        set_mode(model, "resident")
        model.line.decoded(torch.float32)
    assert model.line._decoder is None


def test_a_streaming_layer_keeps_no_second_copy_of_its_codes():
    model = nn.Sequential(nn.Linear(256, 128))
    swap_layer(model, "0", parse("nf4").quantize(model[0].weight.detach()))
    set_mode(model, "streaming")
    model[0].decoded(torch.float32)
    assert model[0]._decoder is None
