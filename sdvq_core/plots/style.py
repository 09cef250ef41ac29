"""The look of every figure: transparent ground, grey text, colours that colour-blind eyes keep apart (Okabe-Ito)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from sdvq_core.naming import block_of, role_of
from sdvq_core.records import LayerRecord

GREY, GRID = "#888", "rgba(136,136,136,0.22)"
FAMILIES = {
    "self-attention": "#0072B2",
    "cross-attention": "#56B4E9",
    "feed-forward": "#E69F00",
    "projection": "#CC79A7",
    "convolution": "#009E73",
    "shortcut, resample": "#8A8F98",
    "other": "#B8A13A",
}
_PREFIXES = (
    ("self-attn", "self-attention"),
    ("cross-attn", "cross-attention"),
    ("feed-forward", "feed-forward"),
    ("transformer", "projection"),
    ("conv ", "convolution"),
    ("shortcut", "shortcut, resample"),
    ("resample", "shortcut, resample"),
)
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8F98", "#B8A13A")  # of many lines
ARM_A, ARM_B, LEVEL = "#0072B2", "#D55E00", "#009E73"


def family_of(layer: LayerRecord) -> str:
    """Which colour a layer takes: one of `FAMILIES`."""
    role = role_of(layer.name)
    return next((family for prefix, family in _PREFIXES if role.startswith(prefix)), "other")


def in_network_order(layers: Sequence[LayerRecord]) -> list[LayerRecord]:
    """`layers` as data flows through them; modules list the middle block last."""
    stages = {"down": 1, "mid": 2, "up": 3, "conv_out": 4}
    return sorted(layers, key=lambda layer: stages.get(block_of(layer.name).partition(" ")[0], 0))


def positive(value: float) -> float | None:
    """A value that a logarithmic axis can show; exact layers (error 0) are left out."""
    return value if value > 0 else None


def styled(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """`figure` in the house style; titles belong into the component's label, not here."""
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "automargin": True, "title_standoff": 8}
    figure.update_layout(
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "size": 12},
        margin={"l": 8, "r": 8, "t": 64, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title_text": ""},
        hoverlabel={"font_size": 12},
        bargap=0.15,
    )
    figure.update_layout(**layout)
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure
