"""The Layers tab: which layer lost what, for one or two arms of the last comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from sdvq_core.naming import short_name
from sdvq_core.peers import PREFIX
from sdvq_core.plots import codebook_usage, error_heatmap, error_size, layer_errors, loss_curve, weight_histogram
from sdvq_core.records import Report
from sdvq_core.ui.guard import friendly
from sdvq_core.ui.layer_table import COLUMNS, detail_html, table_rows, write_csv
from sdvq_core.ui.plot_click import plot_click
from sdvq_core.ui.zero_gpu import on_gpu

QUIET = {"api_visibility": "private", "show_progress": "hidden"}
EMPTY = "Generate a comparison first. This tab then shows where each arm loses information, layer by layer."
_GONE = "This arm is no longer in the cache; generate the comparison again to see its layers."


@dataclass(frozen=True)
class LayersTab:
    """The tab's widgets, and the handlers behind them as plain functions. `last` is (model, arms with a report)."""

    workbench: Any
    parts: dict[str, Any]

    def fill(self, last: tuple[str, tuple[str, ...]] | None) -> list[Any]:
        """[hint, body, arm A, arm B] after a comparison: the last arm against the first."""
        arms = list(last[1]) if last else []
        if not arms:
            return [gr.update(visible=True), gr.update(visible=False), gr.skip(), gr.skip()]
        other = arms[0] if len(arms) > 1 else ""
        # An arm's label is its word here: the same in menus, legends and the table.
        choices_b = [("none", ""), *((arm, arm) for arm in arms)]
        shown = arms[1] if len(arms) > 1 else arms[0]
        return [
            gr.update(visible=False),
            gr.update(visible=True),
            gr.update(choices=arms, value=shown),
            gr.update(choices=choices_b, value=other),
        ]

    def draw(self, last: Any, arm: str, other: str, layer: str | None) -> list[Any]:
        """[bars, heat map, scatter, table, csv, layer menu, loss curve] of the chosen arms."""
        report, second = self._reports(last, arm, other)
        if report is None:
            return [None, None, None, [], gr.update(value=None), gr.update(choices=[], value=None), _NO_CURVE]
        names = [item.name for item in report.layers]
        chosen = layer if layer in names else max(report.layers, key=lambda item: item.relative_mse).name
        return [
            layer_errors(report, second),
            error_heatmap(report, second),
            error_size(report, second),
            table_rows(report, second),
            gr.update(value=write_csv(report, second), interactive=True),
            gr.update(choices=[(short_name(name), name) for name in names], value=chosen),
            _curve(report, second),
        ]

    def detail(self, last: Any, arm: str, other: str, layer: str | None) -> list[Any]:
        """[facts, histogram, usage] of one layer."""
        report, second = self._reports(last, arm, other)
        if report is None or not layer or not any(item.name == layer for item in report.layers):
            return ["", None, None]
        arms = [arm] if second is None or other == arm else [arm, other]
        arms = [word for word in arms if not word.startswith(PREFIX)]  # a library shows its table only
        if not arms:
            return ["", None, None]
        details = [self.workbench.layer_detail(last[0], word, layer) for word in arms]
        return [detail_html(layer, details, [report, second]), weight_histogram(details), codebook_usage(details[0])]

    def seconds(self, last: Any, arm: str, other: str, layer: str | None) -> float:
        """How long `detail` will take."""
        return _DETAIL_SECONDS

    def pick(self, event: gr.EventData) -> Any:
        """The layer whose bar or dot was clicked."""
        return event._data.get("name")

    def pick_row(self, event: gr.SelectData) -> Any:
        """The layer of the table's row."""
        return event.row_value[0] if event.row_value else gr.skip()

    def _reports(self, last: Any, arm: str, other: str) -> tuple[Report | None, Report | None]:
        if not last or arm not in last[1]:
            return None, None
        report = self.workbench.report(last[0], arm)
        if report is None:
            gr.Warning(_GONE)
        second = self.workbench.report(last[0], other) if other in last[1] and other != arm else None
        return _named(report, arm), _named(second, other)


_DETAIL_SECONDS = 30.0  # loading the model, and one layer of it
_NO_CURVE = gr.update(value=None, visible=False)


def _curve(report: Report, second: Report | None) -> Any:
    """The loss curve where one of the arms was distilled."""
    distilled = bool(report.curve or (second and second.curve))
    return gr.update(value=loss_curve(report, second), visible=True) if distilled else _NO_CURVE


def _named(report: Report | None, arm: str) -> Report | None:
    """The report with the arm's word as its name in legends."""
    return replace(report, recipe=arm) if report else None


def draw_layers(workbench: Any, last: Any) -> LayersTab:
    """Lay out the tab and connect it to the state `last`."""
    parts: dict[str, Any] = {"hint": gr.Markdown(EMPTY, elem_classes="empty-hint")}
    with gr.Column(visible=False, elem_classes="layers") as parts["body"]:
        with gr.Row(elem_classes="arm-row"):
            parts["a"] = gr.Dropdown([], label="Arm (bars, dots)", interactive=True, elem_id="arm-a")
            parts["b"] = gr.Dropdown([], label="Compare with (diamonds)", interactive=True, elem_id="arm-b")
            parts["layer"] = gr.Dropdown([], label="Layer in detail", interactive=True, elem_id="layer-menu")
        parts["bars"] = gr.Plot(label="Error per layer, in network order. Click a bar for its layer.", elem_id="bars")
        with gr.Row(elem_classes="detail-row"):
            with gr.Column(min_width=280):
                parts["facts"] = gr.HTML("", elem_id="layer-facts", apply_default_css=False)
            with gr.Column(min_width=300):
                parts["histogram"] = gr.Plot(label="Weights of the layer", elem_id="histogram")
            with gr.Column(min_width=300):
                parts["usage"] = gr.Plot(label="Use of the codebooks", elem_id="usage")
        with gr.Row(elem_classes="plot-row"):
            with gr.Column(min_width=320):
                parts["heat"] = gr.Plot(label="Mean error by block and role", elem_id="heat")
            with gr.Column(min_width=320):
                parts["scatter"] = gr.Plot(label="Error against size", elem_id="scatter")
        parts["curve"] = gr.Plot(
            label="Distillation: loss on held-out images. The ringed state was kept.", elem_id="curve", visible=False
        )
        parts["table"] = gr.Dataframe(
            headers=list(COLUMNS), datatype=list(COLUMNS.values()), interactive=False, show_search="search",
            max_height=420, label="Every layer. Click a heading to sort, a row for its detail.", elem_id="layer-table",
        )  # fmt: skip
        parts["csv"] = gr.DownloadButton("Download table (CSV)", size="sm", elem_id="csv", interactive=False)
    parts["clicks"] = plot_click(("bars", "scatter"))
    tab = LayersTab(workbench, parts)
    _connect(tab, last)
    return tab


def _connect(tab: LayersTab, last: Any) -> None:
    parts = tab.parts
    choice = [last, parts["a"], parts["b"], parts["layer"]]
    drawn = [parts[name] for name in ("bars", "heat", "scatter", "table", "csv", "layer", "curve")]
    detail = [parts[name] for name in ("facts", "histogram", "usage")]
    filled = [parts[name] for name in ("hint", "body", "a", "b")]
    draw, show = friendly(tab.draw), on_gpu(friendly(tab.detail), tab.seconds)
    last.change(tab.fill, last, filled, **QUIET).then(draw, choice, drawn, **QUIET).then(show, choice, detail, **QUIET)
    gr.on([parts["a"].input, parts["b"].input], draw, choice, drawn, **QUIET).then(show, choice, detail, **QUIET)
    parts["layer"].change(show, choice, detail, trigger_mode="always_last", **QUIET)
    parts["clicks"].pick(tab.pick, None, parts["layer"], **QUIET)
    parts["table"].select(tab.pick_row, None, parts["layer"], **QUIET)
