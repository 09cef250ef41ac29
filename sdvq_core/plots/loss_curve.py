"""How a distillation went: loss on held-out images after so many updates; the ringed look is the one that was kept."""

from __future__ import annotations

import plotly.graph_objects as go

from sdvq_core.plots.style import ARM_A, ARM_B, styled
from sdvq_core.records import Report

_HOVER = "after %{x} updates<br>loss %{y:.4g}<extra>%{fullData.name}</extra>"


def loss_curve(report: Report, other: Report | None = None) -> go.Figure:
    """A line per report that has a curve."""
    figure = go.Figure()
    for item, colour in ((report, ARM_A), (other, ARM_B)):
        if item is not None and item.curve:
            _add_line(figure, item, colour)
    styled(figure, 300, margin_t=40, hovermode="closest", showlegend=len(figure.data) > 1)
    figure.update_xaxes(title="updates")
    figure.update_yaxes(title="loss on held-out images", exponentformat="power")
    return figure


def _add_line(figure: go.Figure, report: Report, colour: str) -> None:
    updates, losses = zip(*report.curve, strict=True)
    best = losses.index(min(losses))
    rings = [2.5 if place == best else 0 for place in range(len(losses))]
    figure.add_scatter(
        name=report.recipe,
        x=updates,
        y=losses,
        mode="lines+markers",
        line={"color": colour, "width": 1.8},
        marker={
            "color": colour,
            "size": [13 if ring else 7 for ring in rings],
            "symbol": ["circle-open" if ring else "circle" for ring in rings],
            "line": {"width": rings},
        },
        hovertemplate=_HOVER,
    )
