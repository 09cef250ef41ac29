"""What every registered quantizer promises; new files of sdvq_core/quantizers join by themselves."""

import json
from contextlib import suppress

import pytest
import torch
from core_cases import BITS, NAMES, error, gaussian, heavy_tailed, quantizer, stats_for
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from sdvq_core.errors import ConfigError
from sdvq_core.metrics.weights import relative_mse
from sdvq_core.quantizers import Quantizer, catalogue, make, parse
from sdvq_core.records import LayerStats


def with_zero_row(weight: torch.Tensor) -> torch.Tensor:
    weight[3] = 0
    return weight


WEIGHTS = {
    "16x16": gaussian((16, 16)),
    "17x24": gaussian((17, 24)),
    "16x40": heavy_tailed((16, 40)),
    "33x20x3x3": gaussian((33, 20, 3, 3)),
    "64x64x1x1": gaussian((64, 64, 1, 1)),
    "19x13": gaussian((19, 13)),
    "constant": torch.full((16, 24), 0.25),
    "zero": torch.zeros(16, 24),
    "zero-row": with_zero_row(gaussian((16, 32))),
    "tiny": gaussian((16, 32), scale=1e-4),
    "half": gaussian((16, 32)).half(),
    "not-contiguous": gaussian((32, 16)).T,
}
EACH = pytest.mark.parametrize("name", NAMES)


def of_one_layer(name: str) -> Quantizer:
    """The default settings, small enough to be tried often."""
    smaller = {"kmeans": {"bits": 2}, "rvq": {"bits": 2, "code_bits": 4, "beam": 4}}
    smaller["aq"] = {**smaller["rvq"], "rounds": 2, "sweeps": 1}
    return quantizer(name, **smaller.get(name, {}))


@pytest.mark.parametrize("stats", [None, "stats"], ids=["data-free", "stats"])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@EACH
def test_contract(name, weight, stats):
    found, before = of_one_layer(name), weight.clone()
    known = stats_for(weight) if stats else None
    coded = found.quantize(weight, known)
    decoded = coded.dequantize()
    assert coded.shape == tuple(weight.shape) == tuple(decoded.shape)
    assert decoded.dtype == torch.float32
    assert torch.isfinite(decoded).all()
    assert torch.equal(weight, before), "the weight itself is left alone"
    assert coded.nbytes == found.estimate_nbytes(weight.shape)
    assert sum(t.numel() * t.element_size() for t in coded.tensors.values()) == sum(
        part.nbytes for part in found.spec(weight.shape).values()
    )
    again = found.quantize(weight.clone(), known)
    assert all(torch.equal(coded.tensors[key], again.tensors[key]) for key in coded.tensors)
    if weight.abs().max() > 0:
        assert relative_mse(weight, decoded) < 0.9, "better than zero"
    else:
        assert not decoded.any(), "zero stays zero"


@EACH
def test_a_constant_weight_is_nearly_exact(name):
    assert error(WEIGHTS["constant"], of_one_layer(name)) < 1e-5


@EACH
def test_a_zero_row_stays_zero(name):
    assert not of_one_layer(name).quantize(WEIGHTS["zero-row"]).dequantize()[3].any()


@EACH
def test_inputs_that_are_always_zero_do_no_harm(name):
    weight = gaussian((16, 24))
    dead, half_dead = torch.zeros(24, 24), torch.diag((torch.arange(24) % 2).float())
    assert error(weight, of_one_layer(name), LayerStats(dead, 100)) < 0.9
    assert torch.isfinite(of_one_layer(name).quantize(weight, LayerStats(half_dead, 100)).dequantize()).all()


@EACH
def test_codes_and_levels_can_be_looked_at(name):
    weight = WEIGHTS["33x20x3x3"]
    coded = of_one_layer(name).quantize(weight)
    assert coded.codes().ndim == 2
    assert coded.codes().dtype == torch.int32
    assert coded.codes().shape[1] * int(coded.meta["group_size"] if coded.format == "codebook" else 1) >= weight.numel()
    levels = coded.levels()
    assert levels.ndim == 1
    assert torch.equal(levels, levels.sort().values)


@pytest.mark.parametrize(("name", "bits"), BITS)
def test_every_width_of_the_catalogue_constructs(name, bits):
    found = quantizer(name, bits)
    assert found.nominal_bits == bits
    assert make(json.loads(json.dumps(found.to_spec()))) == found
    assert parse(str(found)) == found
    assert parse(f"{name}:bits={bits:g}") == found
    assert hash(found) == hash(parse(str(found)))


def values_of(knob):
    if knob.choices:
        return st.sampled_from(knob.choices)
    if isinstance(knob.default, float):
        return st.floats(knob.low, knob.high)
    return st.integers(int(knob.low), int(knob.high))


@st.composite
def any_quantizer(draw):
    info = draw(st.sampled_from(catalogue()))
    spec = {"name": info.name}
    for knob in info.knobs:
        if draw(st.booleans()):
            spec[knob.name] = draw(values_of(knob))
    try:
        return make(spec)
    except ConfigError:  # each value is allowed, but not together
        reject()


@settings(max_examples=150, deadline=None)
@given(found=any_quantizer(), other=any_quantizer())
def test_settings_survive_words_and_json(found, other):
    assert make(json.loads(json.dumps(found.to_spec()))) == found
    assert parse(str(found)) == found
    assert (found.digest == other.digest) == (found == other)


@settings(max_examples=60, deadline=None)
@given(found=any_quantizer(), shape=st.sampled_from([(16, 16), (17, 24), (33, 20, 3, 3), (640, 640)]))
def test_sizes_are_known_without_a_weight(found, shape):
    parts = found.spec(shape).values()
    assert found.estimate_nbytes(shape) == sum(part.nbytes for part in parts if not part.shared)
    assert {part.part for part in parts} <= {"codes", "codebooks", "scales"}
    assert bool(found.sharing_key(shape)) == any(part.shared for part in parts)


@pytest.mark.parametrize("power", [-6, -1, 3])
@EACH
def test_a_power_of_two_scales_the_decode(name, power):
    weight, factor = gaussian((16, 32)), 2.0**power
    found = of_one_layer(name)
    scaled = found.quantize(weight * factor).dequantize()
    torch.testing.assert_close(scaled, found.quantize(weight).dequantize() * factor, rtol=2e-3, atol=1e-3 * factor)


@pytest.mark.parametrize("name", ["nf4", "rtn"])
@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(16)))
def test_methods_without_a_codebook_treat_each_row_alone(name, order):
    weight, found = gaussian((16, 40)), of_one_layer(name)
    assert torch.equal(found.quantize(weight[list(order)]).dequantize(), found.quantize(weight).dequantize()[order])


@EACH
def test_the_catalogue_is_enough_to_draw_a_form(name):
    info = next(info for info in catalogue() if info.name == name)
    assert info.label
    assert info.summary.endswith(".")
    assert info.bit_widths == tuple(sorted(info.bit_widths))
    for knob in info.knobs:
        assert knob.label
        assert knob.choices or (knob.low is not None and knob.high is not None), "a form needs choices or bounds"
        assert not knob.choices or knob.default in knob.choices
        assert knob.check(name, knob.default) == knob.default


@EACH
def test_every_choice_of_every_knob_is_allowed(name):
    for knob in next(info for info in catalogue() if info.name == name).knobs:
        for value in knob.choices or (type(knob.default)(knob.low), type(knob.default)(knob.high)):
            assert make({"name": name, knob.name: value}).to_spec()[knob.name] == value


BAD_WORDS = {
    "kmean": "unknown quantizer 'kmean'; choose one of",
    "": "unknown quantizer ''; choose one of",
    "RTN:bits=4": "unknown quantizer 'RTN'",
    "rtn:bitz=4": "rtn has no knob 'bitz'; it has bits, group_size",
    "rtn:bits=9": r"rtn.bits must be one of \(2, 3, 4, 5, 6, 7, 8\), got 9",
    "rtn:bits=4.5": "rtn.bits must be one of .*, got 4.5",
    "rtn:bits=four": "rtn.bits must be one of .*, got four",
    "rtn:bits": "write settings as",
    "rtn:bits=": "write settings as",
    "rtn:bits=4,bits=3": "given twice",
    "rtn:name=rvq": "given twice",
    "rtn:bits=nan": "got nan",
    "rtn:bits=1e999": "got inf",
    "rtn:bits=" + "9" * 5000: "rtn.bits must be one of",
    "kmeans:bits=7": "kmeans.bits must be code_bits / group_size, one of .*, got 7",
    "kmeans:bits=3,group_size=abc": "kmeans.group_size must be one of",
    "kmeans:bits=3,code_bits=x": "kmeans.code_bits must be one of",
    "rvq:bits=99": "rvq.bits must be a number from 0.5 to 16, got 99",
    "rvq:bits=0.7": "rvq.bits must be .*, got 0.7",
    "rvq:beam=0": "rvq.beam must be a whole number from 1 to 32, got 0",
    "rvq:beam=2.5": "rvq.beam must be a whole number",
    "rvq:share=everyone": "rvq.share must be one of",
    "rvq:bits=3,group_size=0": "rvq.group_size must be one of",
    "nf4:bits=3": "nf4.bits must be 4, got 3",
    "量化:bits=3": "unknown quantizer",
}


@pytest.mark.parametrize("word", BAD_WORDS, ids=lambda word: word[:24])
def test_a_bad_word_is_one_sentence(word):
    with pytest.raises(ConfigError, match=BAD_WORDS[word]) as caught:
        parse(word)
    assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=20), name=st.sampled_from([*NAMES, ""]))
def test_any_text_is_a_quantizer_or_a_config_error(text, name):
    for word in (text, f"{name}:{text}", f"{name}:bits={text}", f"{name}:bits=3,group_size={text}"):
        with suppress(ConfigError):
            assert isinstance(parse(word), Quantizer)


@pytest.mark.parametrize("value", [True, None, [4], {"bits": 4}, float("nan"), float("inf"), "4x", 10**400])
@EACH
def test_a_value_of_the_wrong_type_is_refused(name, value):
    for knob in next(info for info in catalogue() if info.name == name).knobs:
        with pytest.raises(ConfigError, match=knob.name):
            make({"name": name, knob.name: value})
    with pytest.raises(ConfigError, match="bits"):
        make({"name": name, "bits": value})
