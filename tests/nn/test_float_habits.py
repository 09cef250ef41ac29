"""Compressed layers under the habits of others: asking for the class, reading and writing weights, compiling."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from core_cases import NAMES, gaussian
from test_layers import IMAGE, small
from torch import nn
from torch.nn import functional as F

from sdvq_core.errors import ConfigError, LayerError
from sdvq_core.nn import quantized_layers, set_mode, swap_layer
from sdvq_core.nn.guard import DecodedWeight

MODES = pytest.mark.parametrize("mode", ["resident", "streaming"])


def test_whoever_asks_for_the_class_gets_the_float_layer():
    model, coded = small("rtn")
    assert isinstance(model.conv, nn.Conv2d)
    assert isinstance(model.line, nn.Linear)
    assert [name for name, _ in model.named_parameters()] == ["conv.bias", "norm.weight", "norm.bias"]
    with pytest.raises(LayerError, match="is a QuantizedLinear"):
        swap_layer(model, "line", coded["line"])


def test_called_as_the_float_layer_it_makes_one():
    model, _ = small("rtn")
    conv, line = type(model.conv)(16, 4, 3, padding=1, bias=False), type(model.line)(in_features=24, out_features=4)
    assert (type(conv), conv.padding, conv.bias) == (nn.Conv2d, (1, 1), None)
    assert (type(line), line.weight.shape) == (nn.Linear, (4, 24))


@MODES
def test_a_weight_is_read_as_any_tensor(mode):
    model, coded = small("rvq")
    set_mode(model, mode)
    weight, true = model.line.weight, coded["line"].dequantize()
    assert (weight.shape, weight.dtype, weight.device.type) == (true.shape, torch.float32, "cpu")
    assert torch.equal(weight, true)
    assert type(weight + 1) is torch.Tensor
    assert type(F.linear(gaussian((2, 24)), weight)) is torch.Tensor
    assert torch.equal(weight.clone().mul_(2), 2 * true), "a copy is the caller's own"
    assert torch.equal(torch.cat([weight.data, weight.data]), torch.cat([true, true]))
    assert torch.equal(copy.deepcopy(weight.detach().clone()), true)


WRITES = {
    "data +=": lambda layer, extra: layer.weight.data.__iadd__(extra),
    "data =": lambda layer, extra: setattr(layer.weight, "data", extra),
    "copy_": lambda layer, extra: layer.weight.copy_(extra),
    "[0] =": lambda layer, extra: layer.weight.__setitem__(0, 1.0),
    "view.fill_": lambda layer, extra: layer.weight[1:].fill_(1.0),
    "out=": lambda layer, extra: torch.add(extra, 1, out=layer.weight),
    "init": lambda layer, extra: layer.reset_parameters(),
}


@MODES
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_into_a_weight_is_refused(write, mode):
    model, coded = small("rvq")
    set_mode(model, mode)
    with pytest.raises(ConfigError, match="decoded from codes and cannot be written to; keep a LoRA as an adapter"):
        write(model.line, torch.ones(17, 24))
    assert torch.equal(model.line.decoded(torch.float32), coded["line"].dequantize())


def test_the_weight_has_the_dtype_that_the_layer_computes_in():
    model, coded = small("rtn")
    assert model.half().line.weight.dtype == torch.float16
    assert model.to(torch.bfloat16).line.weight.dtype == torch.bfloat16
    assert model.to("cpu").conv.weight.dtype == torch.bfloat16
    assert torch.equal(model.float().line.weight, coded["line"].dequantize()), "nothing was lost on the way"


@pytest.mark.parametrize("name", NAMES)
def test_the_float_layer_of_a_compressed_one_computes_the_same(name):
    model, _ = small(name)
    before = model(IMAGE)
    for layer, found in dict(quantized_layers(model)).items():
        setattr(model, layer, found.float_layer())
    assert [type(model.conv), type(model.line)] == [nn.Conv2d, nn.Linear]
    assert not isinstance(model.line.weight, DecodedWeight)
    assert torch.equal(model(IMAGE), before)


@MODES
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_graph_is_compiled(name, mode):
    model, _ = small(name)
    set_mode(model, mode)
    torch.compiler.reset()
    with torch.no_grad():
        wanted = model(IMAGE)
        set_mode(model, mode)  # forgets what it has decoded
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(IMAGE), wanted, atol=1e-5)
        assert torch.allclose(compiled(IMAGE), wanted, atol=1e-5)
    assert all((layer._decoded is None) == (mode == "streaming") for _, layer in quantized_layers(model))


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("name", ["rtn", "rvq"])
def test_accelerate_offloads_layer_by_layer(name, buffers):
    model, _ = small(name)
    with torch.no_grad():
        wanted = model(IMAGE)
        cpu_offload(model, torch.device("cpu"), offload_buffers=buffers)
        assert torch.equal(model(IMAGE), wanted)
    assert all(layer._decoded is None for _, layer in quantized_layers(model)), "what is offloaded stays offloaded"
    assert model.conv.bias.is_meta
    assert model.conv.scale.is_meta == buffers
