"""Size against error and error by timestep: every arm in its place, floors beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from summary_cases import reference, result, summary

from sdvq_core.plots import rate_distortion, timestep_error
from sdvq_core.plots.rate_distortion import SIZES

ARMS = (
    reference(),
    summary("rvq:bits=4", 0.01, codes=4000),
    summary("rvq:bits=3", 0.02, codes=3000),
    summary("@best", 0.005, codes=3100),
)
FLOORS = result(*ARMS[1:]).floors


@pytest.mark.parametrize("draw", [rate_distortion, timestep_error])
def test_house_style_and_json(draw):
    figure = draw(ARMS, FLOORS)
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert figure.layout.font.color == "#888"
    assert figure.layout.title.text is None
    assert '"data"' in figure.to_json()


def test_arms_of_one_method_are_one_line_in_order_of_size():
    figure = rate_distortion(ARMS)
    assert [trace.name for trace in figure.data] == ["rvq", "@best"], "the reference has no error to show"
    rvq = figure.data[0]
    assert list(rvq.y) == [0.02, 0.01]
    assert list(rvq.x) == sorted(rvq.x)
    assert [custom[0] for custom in rvq.customdata] == ["rvq:bits=3", "rvq:bits=4"]
    assert figure.layout.yaxis.type == "log"


@pytest.mark.parametrize("size", SIZES)
def test_size_is_the_ledgers(size):
    ledger = ARMS[3].ledger
    sizes = {
        "megabytes": ledger.tensor_bytes / 1e6,
        "bits": ledger.bits_per_weight,
        "quantized_bits": ledger.bits_per_quantized_weight,
    }
    assert list(rate_distortion(ARMS, size=size).data[1].x) == [sizes[size]]


def test_bars_are_the_medians_interval():
    bars = rate_distortion(ARMS).data[1].error_y
    assert (list(bars.array), list(bars.arrayminus)) == ([0.005], [0.0025])
    unsure = replace(ARMS[3], latent_interval=None)
    assert list(rate_distortion([unsure]).data[0].error_y.array) == [0.0]


def test_chosen_arms_are_stars_that_bear_their_name():
    best, rvq = rate_distortion(ARMS, chosen={"@best"}).data
    assert set(rvq.marker.symbol) == {"circle"}
    assert (list(best.marker.symbol), list(best.text)) == (["star"], ["@best"])
    assert best.zorder > rvq.zorder, "on top of the others"


def test_chosen_arms_have_one_colour_in_both_figures():
    chosen = {"rvq:bits=3", "@best"}
    left = {trace.name: trace.line.color for trace in rate_distortion(ARMS[::-1], chosen=chosen).data}
    right = {trace.name: trace.line.color for trace in timestep_error(ARMS[::-1], chosen=chosen).data}
    assert (left["rvq"], left["@best"]) == (right["rvq:bits=3"], right["@best"])


def test_names_stand_on_the_inner_side_of_their_point():
    (rvq,) = rate_distortion(ARMS[:3], chosen={"rvq:bits=3", "rvq:bits=4"}).data
    assert list(rvq.textposition) == ["bottom right", "bottom left"]


def test_more_methods_than_colours_are_still_told_apart():
    many = [summary(f"method-{place}", 0.01, codes=3000 + place) for place in range(20)]
    looks = {(trace.marker.color, trace.marker.symbol[0]) for trace in rate_distortion(many).data}
    assert len(looks) == len(many)


def test_chosen_arms_come_forward_by_step():
    figure = timestep_error(ARMS, chosen={"@best"})
    assert [trace.name for trace in figure.data] == ["other arms"] * 4 + ["@best"] * 2
    assert [trace.showlegend for trace in figure.data] == [True, False, False, False, True, False]
    assert [trace.meta for trace in figure.data[:4:2]] == ["rvq:bits=4", "rvq:bits=3"]
    nobody = timestep_error(ARMS, chosen={"not measured"})
    assert [trace.name for trace in nobody.data] == [trace.name for trace in timestep_error(ARMS).data]


def test_a_near_floor_is_a_line_and_a_far_one_is_named():
    layout = rate_distortion(ARMS, FLOORS).layout
    assert [(shape.y0, shape.label.text) for shape in layout.shapes] == [(0.6, "another seed")]
    assert [note.text for note in layout.annotations] == ["↓ fp16 rounding of every layer: 1.0e-06"]
    low, high = layout.yaxis.range
    assert 10**low < 0.0025
    assert 10**high > 1.2


def test_nothing_to_show_is_an_empty_figure():
    assert len(rate_distortion([reference()]).data) == 0
    assert len(timestep_error([reference()]).data) == 0


def test_each_arm_has_a_line_in_both_panels():
    figure = timestep_error(ARMS, FLOORS)
    names = [trace.name for trace in figure.data]
    assert names == [name for arm in ("rvq:bits=4", "rvq:bits=3", "@best", FLOORS[1].label) for name in (arm, arm)]
    assert [trace.yaxis for trace in figure.data[:2]] == ["y", "y2"]
    assert [trace.showlegend for trace in figure.data[:2]] == [True, False]
    assert list(figure.data[0].y) == list(ARMS[1].timesteps.forced)
    assert list(figure.data[1].y) == list(ARMS[1].timesteps.free)
    assert list(figure.data[0].x) == [1, 2, 3]
    assert figure.layout.yaxis.type == figure.layout.yaxis2.type == "log"
    assert len({figure.data[place].line.color for place in (0, 2, 4, 6)}) == 4


def test_a_far_floor_waits_in_the_legend():
    arms, far = timestep_error(ARMS, FLOORS), replace(FLOORS[1], timesteps=replace(ARMS[1].timesteps, free=(1e-9,) * 3))
    assert [trace.visible for trace in arms.data[-2:]] == [True, True]
    assert [trace.visible for trace in timestep_error(ARMS, [far]).data[-2:]] == ["legendonly"] * 2
    assert [trace.visible for trace in timestep_error([], [far]).data] == [True, True]
