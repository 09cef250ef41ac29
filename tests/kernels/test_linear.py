"""The choice between two ways of a product: measured once per case, remembered, and never in the way of an answer.

The ways here are stand-ins that count their calls; with real kernels the choice is tested in `test_decode_triton`.
"""

import warnings

import pytest
import torch
from core_cases import gaussian

from sdvq_core.kernels.linear import MOST_ROWS, Case, Choices, Packed, fits, linear
from sdvq_core.nn import set_mode
from sdvq_core.nn.layers import QuantizedLinear, SharedCodebooks
from sdvq_core.quantizers import parse

CASE = Case("a GPU", 256, 1280, 160, 3, 8, 8, torch.float16)


class Way:
    """Answers with a number, or fails; `calls` counts."""

    def __init__(self, answer=0.0, error=None):
        self.answer, self.error, self.calls = answer, error, 0

    def __call__(self):
        self.calls += 1
        if self.error:
            raise self.error
        return torch.tensor(self.answer)


class Clock:
    """Says what it is told to say of (fused, decoded), after running both; `calls` counts."""

    def __init__(self, *seconds):
        self.seconds, self.calls = seconds, 0

    def __call__(self, ways):
        self.calls += 1
        for way in ways:
            way()
        return self.seconds


@pytest.mark.parametrize(("seconds", "answer"), [((1.0, 2.0), 1.0), ((2.0, 1.0), 0.0), ((1.0, 1.0), 0.0)])
def test_the_faster_way_is_found_once_and_kept(seconds, answer):
    clock = Clock(*seconds)
    choices, fused, decoded = Choices(clock), Way(1.0), Way(0.0)
    answers = [float(choices.run(CASE, fused, decoded, may_time=True)) for _ in range(3)]
    assert answers == [answer] * 3
    assert clock.calls == 1
    assert choices.known() == {CASE: bool(answer)}
    choices.run(CASE._replace(rows=128), fused, decoded, may_time=True)
    assert clock.calls == 2, "other rows, another case"


def test_where_nothing_may_be_timed_what_is_known_counts_and_else_decoding():
    clock = Clock(1.0, 2.0)
    choices, fused, decoded = Choices(clock), Way(1.0), Way(0.0)
    assert float(choices.run(CASE, fused, decoded, may_time=False)) == 0
    assert (clock.calls, choices.known()) == (0, {})
    assert float(choices.run(CASE, fused, decoded, may_time=True)) == 1
    assert float(choices.run(CASE, fused, decoded, may_time=False)) == 1
    assert clock.calls == 1


def test_a_kernel_that_fails_is_not_tried_again_and_warns_once():
    failing, decoded = Way(error=RuntimeError("out of resource: shared memory\nand more")), Way(0.0)
    choices, clock = Choices(Clock(1.0, 2.0)), Clock(1.0, 2.0)
    with pytest.warns(UserWarning, match=r"decodes its weight apart .* failed: out of resource: shared memory$"):
        assert float(choices.run(CASE, failing, decoded, may_time=True)) == 0
    with warnings.catch_warnings(action="error"):
        for rows in (256, 77):
            assert float(choices.run(CASE._replace(rows=rows), failing, decoded, may_time=True)) == 0
    assert failing.calls == 1, "the same kernel serves other rows"
    assert float(choices.run(CASE._replace(books=2), Way(1.0), decoded, may_time=True)) == 1
    broken = Choices(clock)
    assert float(broken.run(CASE, Way(1.0), decoded, may_time=True)) == 1
    with pytest.warns(UserWarning, match="illegal"):
        assert float(broken.run(CASE, Way(error=RuntimeError("illegal")), decoded, may_time=True)) == 0
    assert broken.known() == {CASE: False}


def test_memory_that_runs_out_says_nothing_about_the_kernel():
    choices, decoded = Choices(Clock(1.0, 2.0)), Way(0.0)
    with warnings.catch_warnings(action="error"):
        assert float(choices.run(CASE, Way(error=torch.OutOfMemoryError("full")), decoded, may_time=True)) == 0
    assert float(choices.run(CASE, Way(1.0), decoded, may_time=True)) == 1


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
