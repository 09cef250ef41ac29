"""Clicks on a Plotly point, which gr.Plot does not report: a script hooks `plotly_click` and sends what was clicked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr


def plot_click(plots: Sequence[str]) -> Any:
    """An invisible component with the event `pick` for plots with these element ids.

    Its data is {"name": the first of the point's customdata}.
    """
    script = (Path(__file__).parent / "page_assets" / "plot_click.js").read_text("utf-8")
    return gr.HTML(
        value=" ".join(plots),
        html_template="<span hidden></span>",
        js_on_load=script,
        apply_default_css=False,
        elem_classes="plot-click",
    )
