"""Which products may decode inside, what a choice depends on, and that modes agree whatever the rows."""

import pytest
import torch
from core_cases import gaussian

from sdvq_core.kernels.choices import Case
from sdvq_core.kernels.linear import MOST_ROWS, Packed, fits, linear
from sdvq_core.nn import set_mode
from sdvq_core.nn.layers import QuantizedLinear, SharedCodebooks
from sdvq_core.quantizers import parse


def packed(word="rvq:bits=3,share=layer,code_bits=4,codebooks=6"):
    tensor = parse(word).quantize(gaussian((24, 32)))
    arrays, meta = tensor.tensors, tensor.meta
    groups = 32 // meta["group_size"]
    stored = (arrays["codes"], meta["code_bits"], arrays["codebook"], arrays["scale"])
    return Packed(*stored, meta["scale_group"], groups), tensor


def test_a_case_names_all_that_the_choice_depends_on():
    weight, _ = packed()
    assert weight.case(torch.zeros(2, 5, 32)) == Case("cpu", 10, 24, 4, 6, 4, 8, torch.float32)
    assert weight.case(torch.zeros(10, 32)).kernel == (6, 4, 8, torch.float32)


def test_on_the_cpu_weights_are_decoded_and_nothing_is_timed():
    weight, tensor = packed()
    x = gaussian((3, 32), 1)
    assert not fits(x, weight, None)
    assert torch.equal(linear(x, weight, None, tensor.dequantize), x @ tensor.dequantize().T)


@pytest.mark.parametrize("shape", [(0, 32), (MOST_ROWS + 1, 32), (2, 0, 32), (5, 32)], ids=str)
def test_streaming_and_resident_layers_agree_whatever_the_rows(shape):
    layer = QuantizedLinear(torch.nn.Linear(32, 24), packed()[1].format, packed()[1].meta, SharedCodebooks())
    layer.fill(packed()[1].tensors)
    x, answers = gaussian(shape, 2), []
    for mode in ("resident", "streaming"):
        set_mode(layer, mode)
        answers.append(layer(x))
    assert torch.equal(*answers)
