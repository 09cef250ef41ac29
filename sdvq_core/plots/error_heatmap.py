"""Where the error sits: block by role, the mean relative error of the layers in each cell."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sdvq_core.naming import ROLES, block_of, role_of
from sdvq_core.plots.style import in_network_order, styled
from sdvq_core.records import Report


def error_heatmap(report: Report, other: Report | None = None) -> go.Figure:
    """One map per arm on one colour scale; colour is log10 of the mean relative error."""
    reports = [report] if other is None else [report, other]
    tables = [_means(item) for item in reports]
    blocks = list(dict.fromkeys(block_of(layer.name) for layer in in_network_order(report.layers)))
    seen = dict.fromkeys(role_of(layer.name) for item in reports for layer in item.layers)
    roles = [role for role in ROLES if role in seen] + [role for role in seen if role not in ROLES]
    figure = make_subplots(1, len(reports), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=_titles(reports))
    for column, table in enumerate(tables, 1):
        figure.add_trace(_map(table, blocks, roles), row=1, col=column)
    marks = _marks([value for table in tables for value in table.values() if value > 0])
    bar = {"title": "relative error", "thickness": 12, "outlinewidth": 0}
    bar |= {"tickvals": [math.log10(mark) for mark in marks], "ticktext": [f"{mark:g}" for mark in marks]}
    styled(figure, 430, coloraxis={"colorscale": "Cividis", "colorbar": bar})
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False, side="bottom", tickangle=-45)
    figure.update_annotations(font_size=12)
    return figure


def _titles(reports: Sequence[Report]) -> list[str] | None:
    return [item.recipe for item in reports] if len(reports) > 1 else None


def _marks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10 … between the least and the largest of `values`; only the tens where there are many."""
    if not values:
        return []
    powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    digits = (1, 2, 5) if len(powers) <= 4 else (1,)
    marks = [digit * 10.0**power for power in powers for digit in digits]
    return [mark for mark in marks if min(values) <= mark <= max(values)]


def _means(report: Report) -> dict[tuple[str, str], float]:
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for layer in report.layers:
        cells[role_of(layer.name), block_of(layer.name)].append(layer.relative_mse)
    return {place: fmean(values) for place, values in cells.items()}


def _map(table: dict[tuple[str, str], float], blocks: Sequence[str], roles: Sequence[str]) -> go.Heatmap:
    values = [[table.get((role, block)) for block in blocks] for role in roles]
    return go.Heatmap(
        x=blocks,
        y=roles,
        z=[[math.log10(value) if value else None for value in row] for row in values],
        customdata=values,
        coloraxis="coloraxis",
        xgap=2,
        ygap=2,
        hoverongaps=False,
        hovertemplate="%{x} · %{y}<br>mean relative error %{customdata:.3g}<extra></extra>",
    )
