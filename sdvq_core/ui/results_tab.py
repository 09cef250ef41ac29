"""The Results tab: what the arms of a model cost and lose over many prompts, as an evaluation measured it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from sdvq_core.errors import SdvqError
from sdvq_core.jobs import MAX_ARMS
from sdvq_core.plots import rate_distortion, timestep_error
from sdvq_core.plots.rate_distortion import SIZES
from sdvq_core.ui.controls import Form
from sdvq_core.ui.guard import friendly, sentence
from sdvq_core.ui.plot_click import plot_click
from sdvq_core.ui.results_table import measured_html, mistake_html, nothing_html, results_html
from sdvq_core.ui.settings import REFERENCE, Settings

QUIET = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass(frozen=True)
class ResultsTab:
    """The tab's widgets, and the handlers behind them as plain functions; `values` are those of the Compare form."""

    workbench: Any
    form: Form
    parts: dict[str, Any]

    def fill(self, size: str, *values: Any) -> list[Any]:
        """[what was measured, body, size figure, step figure, table] for the model and the arms chosen now."""
        hidden = [gr.update(visible=False), None, None, ""]
        try:
            settings = self.form.read(values)
            found = self.workbench.results(settings.model)
            if found is None:
                command = self.workbench.evaluate_command(settings.model, settings.arms)
                return [nothing_html(settings.model, command), *hidden]
        except SdvqError as error:
            return [mistake_html(sentence(error)), *hidden]
        measured, chosen = found.measured, _chosen(settings)
        missing = [arm for arm in chosen if arm not in measured.job.arms]
        return [
            measured_html(found, missing),
            gr.update(visible=True),
            rate_distortion(measured.arms, measured.floors, chosen, size),
            timestep_error(measured.arms, measured.floors, chosen),
            results_html(measured, chosen),
        ]

    def draw_sizes(self, size: str, *values: Any) -> Any:
        """The size figure with another axis."""
        return self.fill(size, *values)[2]

    def pick(self, event: gr.EventData, *values: Any) -> Any:
        """The form's further arms, with the one whose point was clicked."""
        arm, settings = event._data.get("name"), self.form.read(values)
        found = self.workbench.results(settings.model)
        if found is None or arm not in found.measured.job.arms:
            return gr.skip()
        if arm in settings.arms:
            gr.Info(f"{arm} is among the arms of the Compare tab already.")
            return gr.skip()
        if len(settings.arms) >= MAX_ARMS:
            gr.Warning(f"The Compare tab takes {MAX_ARMS} arms at most; take one out there first.")
            return gr.skip()
        gr.Info(f"{arm} was added under “More arms” on the Compare tab.")
        return "\n".join(filter(None, (settings.more.strip(), arm)))


def _chosen(settings: Settings) -> list[str]:
    return [arm for arm in settings.arms if arm != REFERENCE]


def draw_results(workbench: Any, form: Form, opened: Any) -> ResultsTab:
    """Lay out the tab; it is filled when it is `opened`, and when the form's model changes."""
    parts: dict[str, Any] = {"told": gr.HTML("", elem_id="measured", apply_default_css=False)}
    with gr.Column(visible=False, elem_classes="layers") as parts["body"]:
        with gr.Row(elem_classes="plot-row"):
            with gr.Column(min_width=320):
                choices = [(title.partition(",")[0], name) for name, (title, _) in SIZES.items()]
                parts["size"] = gr.Radio(
                    choices, value=choices[0][1], label="Size in", interactive=True, elem_id="size"
                )
                parts["sizes"] = gr.Plot(
                    label="Size against error: down and left is better. Click a point to compare its arm.",
                    elem_id="rate-distortion",
                )
            with gr.Column(min_width=320):
                parts["steps"] = gr.Plot(label="Error at each denoising step", elem_id="timesteps")
        parts["table"] = gr.HTML("", elem_id="results-table", apply_default_css=False)
    parts["clicks"] = plot_click(("rate-distortion",))
    tab = ResultsTab(workbench, form, parts)
    _connect(tab, opened)
    return tab


def _connect(tab: ResultsTab, opened: Any) -> None:
    parts, form = tab.parts, tab.form
    inputs = [parts["size"], *form.inputs]
    fill = {
        "fn": friendly(tab.fill),
        "inputs": inputs,
        "outputs": [parts[name] for name in ("told", "body", "sizes", "steps", "table")],
        **QUIET,
    }
    gr.on([opened, form.widgets["model"].change], trigger_mode="always_last", **fill)
    parts["size"].change(friendly(tab.draw_sizes), inputs, parts["sizes"], trigger_mode="always_last", **QUIET)
    picked = parts["clicks"].pick(friendly(tab.pick), form.inputs, form.widgets["more"], **QUIET)
    picked.then(**fill)
