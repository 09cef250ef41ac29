"""How evenly a layer's codes use their codebooks: uses per entry, most used first. A flat line wastes nothing."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from sdvq_core.jobs import LayerDetail
from sdvq_core.plots.style import ARM_A, ARM_B, GREY, LEVEL, styled

_COLOURS = (ARM_A, ARM_B, LEVEL, "#CC79A7", "#E69F00", "#56B4E9", "#B8A13A", "#8A8F98")


def codebook_usage(detail: LayerDetail) -> go.Figure:
    """A stepped line per codebook, its perplexity (entries in effective use) in the legend."""
    figure = go.Figure()
    for index, counts in enumerate(detail.usage):
        perplexity = f" · perplexity {detail.perplexity[index]:.0f}" if index < len(detail.perplexity) else ""
        figure.add_scatter(
            name=f"codebook {index + 1}{perplexity} of {len(counts)}",
            x=list(range(1, len(counts) + 1)),
            y=[count or None for count in counts],
            mode="lines",
            line={"shape": "hvh", "width": 1.8, "color": _COLOURS[index % len(_COLOURS)]},
            hovertemplate="entry %{x} by rank: %{y:,} uses<extra></extra>",
        )
    styled(figure, 340, margin_t=40, legend={"orientation": "v", "x": 1, "xanchor": "right", "y": 1, "yanchor": "top"})
    figure.update_xaxes(title="entry, by rank")
    used = [count for stream in detail.usage for count in stream if count]
    decades: dict[str, Any] = {"dtick": 1} if used and max(used) >= 10 * min(used) else {}
    figure.update_yaxes(title="times used", type="log", exponentformat="power", **decades)
    if not detail.usage:
        figure.add_annotation(text="This method has no codebook.", showarrow=False, font={"color": GREY, "size": 13})
    return figure
