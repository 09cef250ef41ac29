"""What a file costs against what it loses: size across, median latent error up (logarithmic), one point per arm.

Arms of one method are joined; bars are 95 % intervals of the median; dotted lines are the noise floors; one
far below every arm is named at the lower edge. The reference, whose error is 0, has no place on a logarithmic axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import plotly.graph_objects as go

from sdvq_core.plots.style import GREY, PALETTE, positive, styled
from sdvq_core.records import Ledger
from sdvq_core.summaries import ArmSummary

SIZES: Mapping[str, tuple[str, Callable[[Ledger], float | None]]] = {
    "megabytes": ("megabytes, every tensor of the UNet", lambda ledger: ledger.tensor_bytes / 1e6),
    "bits": ("bits per weight, whole UNet", lambda ledger: ledger.bits_per_weight),
    "quantized_bits": ("bits per quantized weight", lambda ledger: ledger.bits_per_quantized_weight),
}
SYMBOLS = ("circle", "diamond", "square", "triangle-up")  # one for each round through the palette
FAR = 30  # times below the best arm: a floor there would squeeze the arms together
FEW = 3  # decades: more have no room for ticks between them
_HOVER = "<b>%{customdata[0]}</b><br>%{x:.3f}<br>latent error %{y:.3g}<br>%{customdata[1]}<extra></extra>"


def rate_distortion(
    arms: Sequence[ArmSummary],
    floors: Sequence[ArmSummary] = (),
    chosen: Collection[str] = (),
    size: str = "megabytes",
) -> go.Figure:
    """Points of `arms`, stars for the words in `chosen`, lines for `floors`; size: a key of `SIZES`."""
    title, of = SIZES[size]
    figure = go.Figure()
    shown = sorted((arm for arm in arms if _error(arm) is not None), key=lambda arm: arm.arm not in chosen)
    methods = list(dict.fromkeys(map(_method, shown)))  # chosen ones first, in the colours of `timestep_error`
    for place, method in enumerate(methods):
        found = [arm for arm in arms if _method(arm) == method and _error(arm) is not None]
        found.sort(key=lambda arm: of(arm.ledger) or 0.0)
        figure.add_scatter(name=method, **_line(found, of, chosen, place))
    _name_inwards(figure)
    styled(figure, 420 + 6 * max(0, len(methods) - 4), hovermode="closest")  # the legend needs its room
    figure.update_layout(margin_t=max(64, 30 + 19 * math.ceil(len(methods) / 4)))
    _add_floors(figure, arms, floors)
    figure.update_xaxes(title=title)
    decades = _range(arms, floors)
    figure.update_yaxes(type="log", title="median latent error", exponentformat="power", range=decades)
    if decades and decades[1] - decades[0] < FEW:
        figure.update_yaxes(dtick="D2")  # 1, 2, 5, 10 ...
    return figure


def _line(
    arms: Sequence[ArmSummary], of: Callable[[Ledger], float | None], chosen: Collection[str], place: int
) -> dict[str, object]:
    colour, symbol = PALETTE[place % len(PALETTE)], SYMBOLS[place // len(PALETTE) % len(SYMBOLS)]
    errors = [_error(arm) or 0.0 for arm in arms]
    bounds = [_bounds(arm) for arm in arms]
    marked = [arm.arm in chosen for arm in arms]
    return {
        "x": [of(arm.ledger) for arm in arms],
        "y": errors,
        "error_y": {
            "array": [high - error for (_, high), error in zip(bounds, errors, strict=True)],
            "arrayminus": [error - low for (low, _), error in zip(bounds, errors, strict=True)],
            "thickness": 1.2,
            "width": 3,
        },
        "mode": "lines+markers+text",
        "text": [arm.arm if mark else "" for arm, mark in zip(arms, marked, strict=True)],
        "line": {"color": colour, "width": 1.2},
        "marker": {
            "symbol": ["star" if mark else symbol for mark in marked],
            "size": [15 if mark else 8 for mark in marked],
            "color": colour,
        },
        "zorder": int(any(marked)),  # chosen arms lie above the others
        "textfont": {"color": colour, "weight": 600},
        "customdata": [[arm.arm, arm.label] for arm in arms],
        "hovertemplate": _HOVER,
    }


def _name_inwards(figure: go.Figure) -> None:
    """Names at the side of their point that is nearer to the middle, where the figure does not end."""
    places = [x for trace in figure.data for x in trace.x if x is not None]
    middle = (min(places) + max(places)) / 2 if places else 0.0
    for trace in figure.data:
        trace.textposition = ["bottom left" if x is not None and x > middle else "bottom right" for x in trace.x]


def _add_floors(figure: go.Figure, arms: Sequence[ArmSummary], floors: Sequence[ArmSummary]) -> None:
    near = _near(arms, floors)
    for floor in floors:
        error = _error(floor)
        if error is not None and floor in near:
            _add_line(figure, floor.label, error)
        elif error is not None:
            text = f"↓ {floor.label}: {error:.1e}"
            figure.add_annotation(text=text, xref="paper", yref="paper", x=0, y=0, yanchor="bottom", showarrow=False)


def _near(arms: Sequence[ArmSummary], floors: Sequence[ArmSummary]) -> list[ArmSummary]:
    """The floors that have a place beside the arms."""
    lowest = min((error for arm in arms if (error := _error(arm)) is not None), default=0.0)
    return [floor for floor in floors if (_error(floor) or 0.0) > lowest / FAR]


def _range(arms: Sequence[ArmSummary], floors: Sequence[ArmSummary]) -> list[float] | None:
    """Decades shown: all intervals, the near floors, and room for what is written on their lines."""
    shown = [arm for arm in (*arms, *_near(arms, floors)) if _error(arm) is not None]
    ends = [math.log10(end) for arm in shown for end in _bounds(arm) if end > 0]
    return [min(ends) - 0.3, max(ends) + 0.3] if ends else None


def _bounds(arm: ArmSummary) -> tuple[float, float]:
    error = _error(arm) or 0.0
    return arm.latent_interval or (error, error)


def _add_line(figure: go.Figure, text: str, error: float) -> None:
    label = {"text": text, "textposition": "start", "font": {"color": GREY, "size": 11}}
    line = {"dash": "dot", "width": 1.2, "color": GREY}
    figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=error, y1=error, line=line, label=label)


def _method(arm: ArmSummary) -> str:
    """`rvq` of `rvq:bits=3`; a recipe or a folder is its own method."""
    return arm.arm.partition(":")[0]


def _error(arm: ArmSummary) -> float | None:
    spread = arm.measures.get("latent_mse")
    return None if spread is None else positive(spread.median)
