"""The weights of one layer before and after, with the values that the codes can take as ticks below."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from sdvq_core.jobs import Histogram, LayerDetail
from sdvq_core.plots.style import ARM_A, ARM_B, GREY, LEVEL, styled

_LINES = ((ARM_A, "solid"), (ARM_B, "dot"))


def weight_histogram(details: Sequence[LayerDetail]) -> go.Figure:
    """One layer in one or two arms: the original as area, each decoded weight as a stepped line."""
    first = details[0].histogram
    figure = go.Figure()
    figure.add_bar(
        name="original (fp16)",
        x=_centres(first),
        y=first.original,
        width=[high - low for low, high in zip(first.edges, first.edges[1:], strict=False)],
        marker={"color": "rgba(136,136,136,0.35)", "line": {"width": 0}},
        hovertemplate="%{x:.4f}: %{y:,} weights<extra>original</extra>",
    )
    for detail, (colour, dash) in zip(details, _LINES, strict=False):
        figure.add_scatter(
            name=detail.arm,
            x=_centres(detail.histogram),
            y=detail.histogram.decoded,
            mode="lines",
            line={"shape": "hvh", "color": colour, "width": 1.8, "dash": dash},
            hovertemplate="%{x:.4f}: %{y:,} weights<extra>%{fullData.name}</extra>",
        )
    _add_levels(figure, details[0], max([*first.original, *first.decoded, 1]))
    styled(figure, 340, bargap=0, margin_t=84)
    figure.update_xaxes(title="weight")
    figure.update_yaxes(title="count")
    return figure


def _centres(histogram: Histogram) -> list[float]:
    return [(low + high) / 2 for low, high in zip(histogram.edges, histogram.edges[1:], strict=False)]


def _add_levels(figure: go.Figure, detail: LayerDetail, top: int) -> None:
    if not detail.levels:
        return
    figure.add_scatter(
        name="levels",
        x=detail.levels,
        y=[-0.04 * top] * len(detail.levels),
        mode="markers",
        marker={"symbol": "line-ns", "size": 9, "line": {"width": 1, "color": LEVEL}, "color": GREY},
        hovertemplate="level %{x:.4f}<extra></extra>",
    )
