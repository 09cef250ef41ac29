"""Figures show what the records say, on a transparent ground, and name the layer behind every point."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from plot_samples import NAMES, detail, report

from sdvq_core.plots import codebook_usage, error_heatmap, error_size, layer_errors, loss_curve, weight_histogram
from sdvq_core.plots.style import FAMILIES, family_of

CURVE = ((0, 0.02), (50, 0.012), (100, 0.013))

FIGURES: dict[str, Callable[[], Any]] = {
    "bars": lambda: layer_errors(report(), report("rtn:bits=4", 0.01)),
    "map": lambda: error_heatmap(report(), report("rtn:bits=4", 0.01)),
    "scatter": lambda: error_size(report(), report("rtn:bits=4", 0.01)),
    "histogram": lambda: weight_histogram([detail(), detail("rtn:bits=4", 0)]),
    "loss": lambda: loss_curve(replace(report(), curve=CURVE), report("rtn:bits=4")),
    "usage": lambda: codebook_usage(detail()),
}


def points(figure: Any) -> Iterator[tuple[str, float, float | None]]:
    for trace in figure.data:
        for x, y, custom in zip(trace.x, trace.y, trace.customdata, strict=True):
            yield custom[0], x, y


@pytest.mark.parametrize("name", FIGURES)
def test_ground_is_transparent_and_text_grey(name: str) -> None:
    layout = FIGURES[name]().layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert layout.font.color == "#888"
    assert layout.title.text is None


@pytest.mark.parametrize("name", FIGURES)
def test_figure_survives_json(name: str) -> None:
    assert '"data"' in FIGURES[name]().to_json()


def test_bars_are_log_in_network_order_and_name_their_layer() -> None:
    figure = layer_errors(report())
    assert figure.layout.yaxis.type == "log"
    shown = [name for name, _, _ in sorted(points(figure), key=lambda point: point[1])]
    assert shown.index("mid_block.attentions.0.proj_in") < shown.index("up_blocks.0.resnets.0.conv_shortcut")
    assert sorted(shown) == sorted([*NAMES, "up_blocks.2.resnets.0.conv2"])
    errors = {name: y for name, _, y in points(figure)}
    assert errors["conv_in"] == pytest.approx(0.02)
    assert errors["up_blocks.2.resnets.0.conv2"] is None, "an exact layer has no place on a logarithmic axis"


def test_second_arm_is_overlaid_at_the_same_place() -> None:
    figure = layer_errors(report(), report("rtn:bits=4", 0.01))
    first = {name: x for trace in figure.data[:-1] for name, x, _ in points(_only(trace))}
    second = {name: x for name, x, _ in points(_only(figure.data[-1]))}
    assert figure.data[-1].name == "rtn:bits=4"
    assert first == second


def test_every_layer_has_a_colour() -> None:
    assert {family_of(layer) for layer in report().layers} <= set(FAMILIES)
    assert len(set(FAMILIES.values())) == len(FAMILIES)


def test_map_holds_mean_error_by_block_and_role() -> None:
    figure = error_heatmap(report())
    (trace,) = figure.data
    row, column = trace.y.index("conv 1"), trace.x.index("down 0")
    assert 10 ** trace.z[row][column] == pytest.approx(0.01)
    assert trace.x.index("mid") < trace.x.index("up 0")


def test_map_of_exact_layers_alone_is_empty_but_drawn() -> None:
    exact = report(error=0.0)
    (trace,) = error_heatmap(exact).data
    assert all(value is None for row in trace.z for value in row)


def test_scatter_shows_bytes_and_error() -> None:
    figure = error_size(report())
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    assert ("conv_in", 100, pytest.approx(0.02)) in list(points(figure))


def test_histogram_has_original_each_arm_and_levels() -> None:
    figure = weight_histogram([detail(), detail("rtn:bits=4")])
    assert [trace.name for trace in figure.data] == ["original (fp16)", "rvq:bits=3", "rtn:bits=4", "levels"]
    assert list(figure.data[0].x) == [-0.75, -0.25, 0.25, 0.75]
    assert list(figure.data[-1].x) == [-0.5, 0.5]


def test_usage_leaves_unused_entries_out_and_says_when_there_is_no_codebook() -> None:
    figure = codebook_usage(detail())
    assert list(figure.data[0].y) == [40, 20, 4, None]
    assert "perplexity 3 of 4" in figure.data[0].name
    assert "no codebook" in codebook_usage(detail(books=0)).layout.annotations[0].text
    assert all(math.isfinite(y) for y in figure.data[0].y if y)


def test_loss_is_drawn_for_what_was_distilled_and_the_kept_state_is_ringed() -> None:
    (line,) = loss_curve(replace(report(), curve=CURVE), report("rtn:bits=4")).data
    assert (line.name, list(line.x), list(line.y)) == ("rvq:bits=3", [0, 50, 100], [0.02, 0.012, 0.013])
    assert list(line.marker.symbol) == ["circle", "circle-open", "circle"]
    both = loss_curve(replace(report(), curve=CURVE), replace(report("@best"), curve=CURVE[:1]))
    assert [trace.name for trace in both.data] == ["rvq:bits=3", "@best"]
    assert both.layout.showlegend


def _only(trace: Any) -> Any:
    return type("Figure", (), {"data": [trace]})
