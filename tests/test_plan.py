"""Plans: the last rule wins, every rule matches, fallbacks have reasons, and VQDM's choice is the paper's."""

import functools

import pytest
import torch
from core_cases import gaussian, quantizer, tiny_unet
from torch import nn

from sdvq_core import CompressionPlan, Rule, compress
from sdvq_core.errors import ConfigError, LayerError
from sdvq_core.plan import VQDM_KEEPS, vqdm_rules
from sdvq_core.store import blank_metadata

RTN4, RTN3, NF4 = quantizer("rtn", 4), quantizer("rtn", 3), quantizer("nf4")


def model() -> nn.Module:
    layers = {
        "one": nn.Linear(32, 32),
        "two": nn.Linear(32, 16),
        "norm": nn.LayerNorm(16),
        "narrow": nn.Linear(16, 8),
        "conv": nn.Conv2d(32, 32, 3),
        "grouped": nn.Conv2d(32, 32, 3, groups=2),
        "circular": nn.Conv2d(32, 32, 3, padding_mode="circular"),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.ModuleDict(layers)


def chosen(rules) -> dict[str, str]:
    return {item.name: str(item.quantizer) for item in CompressionPlan.resolve(model(), rules).assignments}


def test_the_last_matching_rule_wins():
    rules = [Rule("*", RTN4), Rule("t*", RTN3), Rule("one", NF4), Rule("conv", None)]
    assert chosen(rules) == {"one": "nf4", "two": "rtn:bits=3"}
    assert chosen([*rules, Rule("*", RTN4)]) == {"one": "rtn", "two": "rtn", "conv": "rtn"}


def test_layers_without_a_rule_stay():
    assert chosen([Rule("one", RTN4)]) == {"one": "rtn"}
    assert chosen([]) == {}


def test_a_rule_that_matches_nothing_is_an_error_unless_optional():
    with pytest.raises(
        ConfigError, match=r"the rule 'attn\*' matches no layer; this model has layers such as one, two"
    ):
        chosen([Rule("*", RTN4), Rule("attn*", RTN3)])
    with pytest.raises(ConfigError, match="matches no layer"):
        chosen([Rule("norm", RTN4)])
    assert chosen([Rule("one", RTN4), Rule("attn*", RTN3, optional=True)]) == {"one": "rtn"}
    assert not CompressionPlan.resolve(nn.Identity(), []).assignments


def test_fallbacks_carry_their_reasons():
    plan = CompressionPlan.resolve(model(), [Rule("*", RTN4)])
    reasons = {item.layer: item.reason for item in plan.fallbacks}
    assert set(reasons) == {"narrow", "grouped", "circular"}
    assert reasons["narrow"] == "fewer than 16 input or output channels"
    assert "grouped" in reasons["grouped"]
    large = CompressionPlan.resolve(model(), [Rule("one", quantizer("kmeans", share="layer"))])
    assert "more bytes than 16-bit weights" in large.fallbacks[0].reason
    assert set(plan.kept) >= {"narrow.weight", "one.bias", "norm.weight", "grouped.weight"}
    assert "one.weight" not in plan.kept


def test_the_ledger_of_a_plan_counts_every_parameter_once():
    whole = model()
    plan = CompressionPlan.resolve(whole, [Rule("*", quantizer("rvq", 2, code_bits=4))])
    ledger = plan.ledger({})
    assert ledger.weights == sum(p.numel() for p in whole.parameters())
    assert ledger.weights_quantized == sum(whole.get_submodule(i.name).weight.numel() for i in plan.assignments)
    assert ledger.parts["kept"] == 2 * (ledger.weights - ledger.weights_quantized)
    assert ledger.parts["codebooks"] == 2 * 4 * 16 * 8, "one shared set, once"
    assert ledger.fallbacks == plan.fallbacks
    assert ledger.ratio == pytest.approx(16 / ledger.bits_per_weight)


def test_an_fp16_plan_is_sixteen_bits():
    ledger = CompressionPlan.resolve(model(), []).ledger({})
    assert (ledger.bits_per_weight, ledger.ratio, ledger.bits_per_quantized_weight) == (16, 1, None)


def test_vqdm_keeps_the_ends_and_the_time_path():
    plan = CompressionPlan.resolve(tiny_unet(), vqdm_rules(RTN4))
    names = {item.name for item in plan.assignments}
    kept = {name.removesuffix(".weight") for name, shape in plan.kept.items() if len(shape) > 1}
    assert {"conv_in", "conv_out", "time_embedding.linear_1", "add_embedding.linear_2"} <= kept
    assert "down_blocks.1.resnets.0.time_emb_proj" in kept
    assert "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k" in names
    assert {"mid_block.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv"} <= names
    assert "up_blocks.0.resnets.0.conv_shortcut" in names
    assert {item.kind for item in plan.assignments} == {"linear", "conv2d"}
    assert not plan.fallbacks


@functools.cache
def sdxl() -> nn.Module:
    from sdvq_core.diffusion.base_model import unet_skeleton
    from sdvq_core.diffusion.sources import find_source

    return unet_skeleton(find_source("sdxl"))


def test_sdxl_has_the_layers_that_the_paper_compresses():
    """arXiv 2409.00492: 722 Linear and 49 Conv2d layers, 98.97 % of 2,567,463,684 weights."""
    plan = CompressionPlan.resolve(sdxl(), vqdm_rules(quantizer("rvq", 3)))
    kinds = [item.kind for item in plan.assignments]
    assert (kinds.count("linear"), kinds.count("conv2d"), len(plan.fallbacks)) == (722, 49, 0)
    ledger = plan.ledger(blank_metadata(len(plan.assignments)))
    assert ledger.weights == 2_567_463_684
    assert ledger.weights_quantized / ledger.weights == pytest.approx(0.9897, abs=1e-4)
    assert all(any(rule.pattern == keep for rule in vqdm_rules(RTN4)) for keep in VQDM_KEEPS)


@pytest.mark.parametrize(("bits", "inner", "whole"), [(4, 4.049, 4.172), (3, 3.039, 3.173), (2, 2.029, 2.173)])
def test_sdxl_ledger_agrees_with_the_papers_formula(bits, inner, whole):
    """M * B / g + codebooks + row scales, one set per layer; 16 bits elsewhere: computed independently of this code."""
    plan = CompressionPlan.resolve(sdxl(), vqdm_rules(quantizer("rvq", bits, share="layer")))
    ledger = plan.ledger({})
    assert ledger.bits_per_quantized_weight == pytest.approx(inner, abs=6e-4)
    assert ledger.bits_per_weight == pytest.approx(whole, abs=6e-4)


def test_compress_yields_layers_in_order_and_leaves_the_model_alone():
    whole = model()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    plan = CompressionPlan.resolve(whole, [Rule("*", RTN4)])
    results = list(compress(whole, plan))
    assert [result.record.name for result in results] == [item.name for item in plan.assignments]
    assert [(r.index, r.total) for r in results] == [(i, len(results)) for i in range(len(results))]
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    record = results[0].record
    assert (record.kind, record.quantizer, record.nbytes) == ("linear", "rtn", RTN4.estimate_nbytes((32, 32)))
    assert 0 < record.relative_mse < 0.1
    assert record.relative_output_mse is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_name_their_layer_before_any_work(value):
    whole = model()
    with torch.no_grad():
        whole["conv"].weight[3, 4, 1, 1] = value
    results = compress(whole, CompressionPlan.resolve(whole, [Rule("*", RTN4)]))
    with pytest.raises(LayerError, match="layer conv: has weights that are NaN or infinite"):
        next(results)


@pytest.mark.parametrize("name", ["rtn", "nf4", "rvq"])
def test_weights_beyond_16_bits_name_their_layer(name):
    whole = model()
    with torch.no_grad():
        whole["one"].weight.copy_(gaussian((32, 32), scale=1e6))
    with pytest.raises(LayerError, match=r"layer one: has weights up to .* beyond the range of 16-bit scales"):
        list(compress(whole, CompressionPlan.resolve(whole, [Rule("one", quantizer(name))])))


def test_statistics_reach_the_layers_that_they_name():
    from core_cases import stats_for

    whole = model()
    plan = CompressionPlan.resolve(whole, [Rule("*", RTN3)])
    stats = {"one": stats_for(whole["one"].weight.detach())}
    free, steered = ({r.record.name: r.record for r in compress(whole, plan, s)} for s in (None, stats))
    assert steered["one"].relative_output_mse is not None
    assert steered["one"].relative_mse > free["one"].relative_mse, "statistics steer away from the plain error"
    assert steered["two"] == free["two"]
