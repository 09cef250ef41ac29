"""Error of each layer in network order: bars for one arm, coloured by what the layer does, diamonds for another."""

from __future__ import annotations

import plotly.graph_objects as go

from sdvq_core.naming import block_of, short_name
from sdvq_core.plots.style import ARM_B, FAMILIES, GREY, GRID, family_of, in_network_order, positive, styled
from sdvq_core.records import LayerRecord, Report

_HOVER = (
    "<b>%{customdata[1]}</b><br>relative error %{y:.3g}<br>"
    "%{customdata[2]:.2f} bits per weight<extra>%{fullData.name}</extra>"
)


def layer_errors(report: Report, other: Report | None = None) -> go.Figure:
    """Bars of `report`, markers of `other`; each point's customdata starts with the layer's name."""
    ordered = in_network_order(report.layers)
    place = {layer.name: index for index, layer in enumerate(ordered)}
    figure = go.Figure()
    for family, colour in FAMILIES.items():
        layers = [layer for layer in ordered if family_of(layer) == family]
        if layers:
            figure.add_bar(name=family, marker_color=colour, marker_line_width=0, width=0.86, **_points(layers, place))
    if other:
        shared = [layer for layer in other.layers if layer.name in place]
        marker = {
            "symbol": "diamond",
            "size": 6,
            "color": ARM_B,
            "line": {"width": 1, "color": "rgba(255,255,255,0.7)"},
        }
        figure.add_scatter(name=other.recipe, mode="markers", marker=marker, **_points(shared, place))
    styled(figure, 380, barmode="overlay", hovermode="closest")
    figure.update_yaxes(type="log", title="relative error of the weights", exponentformat="power")
    _name_blocks(figure, ordered)
    return figure


def _points(layers: list[LayerRecord], place: dict[str, int]) -> dict[str, object]:
    return {
        "x": [place[layer.name] for layer in layers],
        "y": [positive(layer.relative_mse) for layer in layers],
        "customdata": [[layer.name, short_name(layer.name), layer.bits_per_weight] for layer in layers],
        "hovertemplate": _HOVER,
    }


def _name_blocks(figure: go.Figure, layers: list[LayerRecord]) -> None:
    """Block names under the axis, a line where one ends."""
    blocks = [block_of(layer.name) for layer in layers]
    starts = [index for index in range(len(blocks)) if index == 0 or blocks[index] != blocks[index - 1]]
    centres = [(low + high - 1) / 2 for low, high in zip(starts, [*starts[1:], len(blocks)], strict=True)]
    for start in starts[1:]:
        figure.add_vline(x=start - 0.5, line_width=1, line_color=GRID)
    names = [blocks[start] for start in starts]
    figure.update_xaxes(
        range=[-0.8, len(blocks) - 0.2],
        tickvals=centres,
        ticktext=names,
        showgrid=False,
        tickmode="array",
        tickfont_color=GREY,
    )
