"""Error at each denoising step, logarithmic: the UNet's own at the top, what it adds up to below.

A floor far below every arm is drawn when its name is clicked: shown at once, it would squeeze the arms together. Where
arms are chosen, the others step back: thin, grey, and one entry of the legend.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sdvq_core.plots.style import GREY, PALETTE, positive, styled
from sdvq_core.summaries import ArmSummary

PANELS = ("teacher-forced: UNet output", "free-running: latents")
FAR = 30  # times below the best arm
OTHERS = "other arms"
_HOVER = "step %{x}, t = %{customdata:.0f}<br>error %{y:.3g}<extra>%{meta}</extra>"


def timestep_error(
    arms: Sequence[ArmSummary], floors: Sequence[ArmSummary] = (), chosen: Collection[str] = ()
) -> go.Figure:
    """One line per arm in both panels, dotted grey ones for `floors`; what has no `timesteps` is left out."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    traced = [arm for arm in arms if arm.timesteps]
    front = [arm for arm in traced if arm.arm in chosen] or traced
    for arm in traced:
        if arm not in front:
            _add_lines(figure, arm, OTHERS, line={"color": GREY, "width": 1}, opacity=0.5)
    for place, arm in enumerate(front):
        _add_lines(figure, arm, arm.arm, line={"color": PALETTE[place % len(PALETTE)], "width": 1.8})
    lowest = min(map(_largest, traced), default=0.0)
    for floor in floors:
        if floor.timesteps:
            shown = True if _largest(floor) > lowest / FAR else "legendonly"
            line = {"color": GREY, "width": 1.4, "dash": "dot"}
            _add_lines(figure, floor, floor.label, line=line, visible=shown)
    styled(figure, 560, hovermode="closest")
    figure.update_yaxes(type="log", exponentformat="power")
    for row, panel in enumerate(PANELS, start=1):
        figure.update_yaxes(title=panel, row=row, col=1)
    figure.update_xaxes(title="step, from noise to image", row=2, col=1)
    return figure


def _largest(arm: ArmSummary) -> float:
    assert arm.timesteps is not None
    return max(arm.timesteps.free)


def _add_lines(figure: go.Figure, arm: ArmSummary, name: str, **look: Any) -> None:
    """The arm in both panels; `name` stands in the legend once."""
    assert arm.timesteps is not None
    named = any(trace.name == name for trace in figure.data)
    for row, errors in enumerate((arm.timesteps.forced, arm.timesteps.free), start=1):
        figure.add_scatter(
            name=name,
            meta=arm.arm if name == OTHERS else name,
            legendgroup=name,
            showlegend=row == 1 and not named,
            x=list(range(1, len(errors) + 1)),
            y=[positive(error) for error in errors],
            customdata=arm.timesteps.times,
            mode="lines+markers" if len(errors) < 3 else "lines",
            hovertemplate=_HOVER,
            **look,
            row=row,
            col=1,
        )
