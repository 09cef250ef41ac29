"""What a layer costs against what it loses: bytes stored across, relative error up, both logarithmic."""

from __future__ import annotations

import plotly.graph_objects as go

from sdvq_core.naming import short_name
from sdvq_core.plots.style import ARM_B, FAMILIES, family_of, positive, styled
from sdvq_core.records import LayerRecord, Report

_HOVER = "<b>%{customdata[1]}</b><br>%{x:,} bytes<br>relative error %{y:.3g}<extra>%{fullData.name}</extra>"


def error_size(report: Report, other: Report | None = None) -> go.Figure:
    """Dots of `report` by family, open diamonds of `other`."""
    figure = go.Figure()
    for family, colour in FAMILIES.items():
        layers = [layer for layer in report.layers if family_of(layer) == family]
        if layers:
            marker = {"color": colour, "size": 9, "opacity": 0.85, "line": {"width": 0}}
            figure.add_scatter(name=family, mode="markers", marker=marker, **_points(layers))
    if other:
        marker = {"symbol": "diamond-open", "color": ARM_B, "size": 8, "line": {"width": 1.5}}
        figure.add_scatter(name=other.recipe, mode="markers", marker=marker, **_points(list(other.layers)))
    styled(figure, 430, margin_t=84, hovermode="closest")
    figure.update_xaxes(type="log", title="bytes stored", exponentformat="SI")
    figure.update_yaxes(type="log", title="relative error of the weights", exponentformat="power")
    return figure


def _points(layers: list[LayerRecord]) -> dict[str, object]:
    return {
        "x": [layer.nbytes for layer in layers],
        "y": [positive(layer.relative_mse) for layer in layers],
        "customdata": [[layer.name, short_name(layer.name)] for layer in layers],
        "hovertemplate": _HOVER,
    }
