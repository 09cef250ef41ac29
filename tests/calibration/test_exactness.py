"""Statistics against brute force: the energy of output errors on real inputs is what H says it is."""

from __future__ import annotations

import pytest
import torch
from calibration_runs import Siblings, gather, settings, sibling_inputs, trajectory
from core_cases import gaussian, run_unet, tiny_unet
from torch import nn

from sdvq_core.calibration import Trajectory, early_weights, shared_inputs
from sdvq_core.calibration.moments import STRIP, SecondMoment, even_sample, working_nbytes
from sdvq_core.calibration.patches import input_rows, row_count, window_of
from sdvq_core.calibration.units import MOST_UNITS, units
from sdvq_core.errors import ConfigError
from sdvq_core.grouping import to_rows
from sdvq_core.metrics.weights import relative_output_mse
from sdvq_core.store import BlockLayout

CONVOLUTIONS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "1x1": {"kernel_size": 1},
    "1x1 stride": {"kernel_size": 1, "stride": 2},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "oblong": {"kernel_size": (2, 3), "padding": (0, 2), "stride": (1, 2), "dilation": (2, 1)},
    "same": {"kernel_size": (2, 4), "padding": "same"},
    "valid": {"kernel_size": 3, "padding": "valid"},
}


def _convolution(name: str) -> nn.Conv2d:
    return nn.Conv2d(18, 20, bias=False, **CONVOLUTIONS[name])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_rows_times_weight_rows_is_the_convolution(name):
    layer, x = _convolution(name), gaussian((3, 18, 9, 11), 1, 1.0)
    rows = input_rows(x, window_of("layer", layer))
    expected = layer(x).permute(0, 2, 3, 1).reshape(-1, 20)
    assert row_count(x, window_of("layer", layer)) == len(rows) == len(expected)
    torch.testing.assert_close(rows @ to_rows(layer.weight).T, expected, atol=1e-4, rtol=1e-4)
    picks = torch.tensor([0, 5, len(rows) - 1])
    assert torch.equal(input_rows(x, window_of("layer", layer), picks), rows[picks])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", [*CONVOLUTIONS, "linear"])
def test_output_error_from_the_moment_is_that_of_the_real_outputs(name, tmp_path):
    linear = name == "linear"
    layer = nn.Linear(18, 20, bias=False) if linear else _convolution(name)
    model = nn.Sequential(layer)
    shape = (3, 7, 18) if linear else (3, 18, 9, 11)
    inputs = [[gaussian(shape, seed, 1.0 + seed)] for seed in range(4)]
    stats = gather(model, ["0"], [trajectory(model, inputs)], tmp_path)["0"]
    assert stats.second_moment.dtype == torch.float32

    decoded = layer.weight.detach() + gaussian(layer.weight.shape, 9, 0.05)
    energy = error = 0.0
    with torch.no_grad():
        kept = layer.weight.clone()
        for (x,) in inputs:
            before = layer(x).double()
            layer.weight.copy_(decoded)
            error += float((layer(x).double() - before).square().sum())
            layer.weight.copy_(kept)
            energy += float(before.square().sum())
    assert relative_output_mse(kept, decoded, stats.second_moment) == pytest.approx(error / energy, rel=1e-5)
    assert stats.rows == 4 * row_count(inputs[0][0], window_of("0", layer))


def test_the_moment_is_the_mean_over_all_forwards(tmp_path):
    model = Siblings()
    inputs = sibling_inputs(5)
    found = gather(model, ["to_v"], [trajectory(model, inputs), trajectory(model, inputs[:2])], tmp_path)["to_v"]
    rows = torch.cat([arguments[0].reshape(-1, 24) for arguments in [*inputs, *inputs[:2]]]).double()
    torch.testing.assert_close(found.second_moment.double(), rows.T @ rows / len(rows), atol=1e-6, rtol=1e-5)


def test_a_matrix_of_several_strips_is_exact_and_symmetric(tmp_path):
    model, inputs = nn.Sequential(nn.Conv2d(150, 4, 3, padding=1)), [[gaussian((2, 150, 6, 6), 0, 1.0)]]
    found = gather(model, ["0"], [trajectory(model, inputs)], tmp_path)["0"].second_moment
    rows = input_rows(inputs[0][0], window_of("0", model[0])).double()
    assert len(found) == 1350 > 2 * STRIP
    torch.testing.assert_close(found.double(), rows.T @ rows / len(rows), atol=1e-6, rtol=1e-5)
    assert torch.equal(found, found.T)


def test_siblings_share_one_matrix_by_identity_of_their_input(tmp_path):
    model = Siblings()
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    run = trajectory(model, sibling_inputs())
    groups = [source.layers for source in shared_inputs(model, names, run)]
    assert groups == [("to_q", "to_k", "to_v"), ("text_k", "text_v"), ("out",)]
    stats = gather(model, names, [run], tmp_path)
    assert len(stats) == 6
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert torch.equal(stats["to_q"].second_moment, stats["to_v"].second_moment)


def test_a_tensor_changed_in_place_is_another_input(tmp_path):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = x.clone()
            y = self.first(x)
            return self.second(x.mul_(2)) + y

    model = InPlace()
    stats = gather(model, ["first", "second"], [trajectory(model, [[gaussian((6, 8), 0, 1.0)]])], tmp_path)
    torch.testing.assert_close(stats["second"].second_moment, 4 * stats["first"].second_moment)


def test_a_unet_shares_self_attention_inputs_and_the_text_states():
    unet = tiny_unet()
    names = [name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear) and ".attn" in name]

    def run():
        yield run_unet(unet)

    sources = shared_inputs(unet, names, Trajectory(run, 1))
    text = [name for name in names if "attn2.to_k" in name or "attn2.to_v" in name]
    assert sorted(text) in [sorted(source.layers) for source in sources]
    queries = [name for name in names if name.endswith("attn1.to_q")]
    triples = [source.layers for source in sources if len(source.layers) == 3]
    assert sorted(triples) == sorted((q, q[:-1] + "k", q[:-1] + "v") for q in queries)


def test_step_weights_weigh_the_steps(tmp_path):
    model, inputs = Siblings(), sibling_inputs(3)
    run = trajectory(model, inputs)
    weights = early_weights(3, 4.0)
    assert weights == pytest.approx((4.0, 2.0, 1.0))
    found = gather(model, ["to_q"], [run, run], tmp_path, settings(step_weights=weights))["to_q"].second_moment
    moments = [x.reshape(-1, 24).T @ x.reshape(-1, 24) / 18 for x, *_ in inputs]
    expected = sum(w * moment for w, moment in zip(weights, moments, strict=True)) / sum(weights)
    torch.testing.assert_close(found, expected)


def test_a_sample_of_the_rows_is_even_seeded_and_unbiased(tmp_path):
    picks = even_sample(1000, 64, 3)
    assert torch.equal(picks, even_sample(1000, 64, 3))
    assert not torch.equal(picks, even_sample(1000, 64, 4))
    assert [int(pick) * 64 // 1000 for pick in picks] == pytest.approx(range(64), abs=1)
    assert torch.equal(even_sample(7, 7, 0), torch.arange(7))
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
    run = trajectory(model, [[gaussian((4, 8, 16, 16), seed, 1.0)] for seed in range(8)])
    whole = gather(model, ["0"], [run], tmp_path / "whole")["0"]
    some = gather(model, ["0"], [run], tmp_path / "some", settings(rows_per_forward=256))["0"]
    assert (whole.rows, some.rows) == (8192, 2048)
    difference = (some.second_moment - whole.second_moment).norm() / whole.second_moment.norm()
    assert 0 < difference < 0.3


@pytest.mark.parametrize("count", [1, 2, 8, 9, 32, 33])
def test_units_are_all_batches_in_order_and_few(count):
    found = units(count)
    assert [number for unit in found for number in unit] == [*range(count)]
    assert len(found) <= MOST_UNITS
    assert len({len(unit) for unit in found[:-1]}) <= 1


LAYOUTS = {"strips": BlockLayout.whole(2 * STRIP + 70), "blocks": BlockLayout(72, 24, 16)}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_units_are_summed_from_zero_and_added_in_order_whoever_sums_them(layout):
    """Folded in place, or taken from the vectors of others: the same bits, those of unit after unit."""

    def moment() -> SecondMoment:
        return SecondMoment(layout, None, 32, torch.device("cpu"))

    here, brought, wanted = moment(), moment(), torch.zeros(())
    for unit in range(4):
        there, alone = moment(), moment()
        for call in range(4):
            rows = gaussian((32, layout.n), 10 * unit + call, 1.0)
            for one in (here, there, alone):
                one.add(rows, 1.0, 0)
        here.fold()
        brought.take(there.packed(), there.rows, there.weight)
        wanted = wanted + alone.finish()  # divided by 128 rows, a power of two, which rounds nothing
    found = here.finish()
    assert here.rows == brought.rows == 4 * 128
    assert torch.equal(found, brought.finish())
    assert torch.equal(found, wanted / 4)


def test_several_units_take_the_diagonal_once_more(tmp_path):
    whole, model = BlockLayout.whole(4 * STRIP), Siblings()
    assert (working_nbytes(whole), working_nbytes(whole, 3)) == (whole.nbytes, whole.nbytes * 5 // 4)
    run, least = trajectory(model, sibling_inputs()), 8 * 8 * 4 * 2
    gather(model, ["out"], [run], tmp_path / "one", budget=least)
    with pytest.raises(ConfigError, match=f"must be {2 * least} bytes or more for layer out, got {least}"):
        gather(model, ["out"], [run, run], tmp_path / "two", budget=least)
