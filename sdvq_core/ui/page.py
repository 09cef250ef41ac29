"""The whole page: a header, the tabs, the link that restores them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from sdvq_core.ui.about_tab import draw_about
from sdvq_core.ui.api import draw_api
from sdvq_core.ui.compare_tab import QUIET, draw_compare
from sdvq_core.ui.guard import friendly
from sdvq_core.ui.layers_tab import draw_layers
from sdvq_core.ui.results_tab import draw_results
from sdvq_core.ui.theme import theme

TITLE = "SDVQ · compress a diffusion model, compare same-seed images"
ASSETS = Path(__file__).parents[2] / "assets"
HEADER = Path(__file__).parent / "page_assets" / "header.html"


def build(workbench: Any) -> Any:
    """The page on top of `workbench`; launch it with `launch_options`."""
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=(3600, 21600)) as page:
        gr.HTML(HEADER.read_text("utf-8"), elem_id="brand", apply_default_css=False)
        with gr.Tabs():
            with gr.Tab("Compare", id="compare"):
                compare = draw_compare(workbench)
            with gr.Tab("Layers", id="layers"):
                draw_layers(workbench, compare.parts["last"])
            with gr.Tab("Results", id="results") as results:
                draw_results(workbench, compare.form, results.select)
            with gr.Tab("About", id="about") as about:
                draw_about(workbench.about, about.select)
        restored = page.load(friendly(compare.restore), None, compare.form.outputs, **QUIET)
        priced = restored.then(**compare.parts["price"]).then(**compare.parts["absolute"])
        quantizer = compare.form.widgets["quantizer"]
        restored.then(compare.describe, quantizer, quantizer, **QUIET)
        settled = [compare.parts["last"], compare.form.widgets["recipe"]]
        priced.then(compare.settled, compare.form.inputs, settled, **QUIET)
        draw_api(workbench)
    return page.queue(max_size=24)


def launch_options() -> dict[str, Any]:
    """Arguments of `launch` that belong to the page itself: its look, and what stays switched off."""
    styles = "\n".join((ASSETS / name).read_text("utf-8") for name in ("app.css", "compare.css"))
    return {
        "theme": theme(),
        "head": f"<style>{styles}</style>",
        "show_error": True,
        "enable_monitoring": False,
        "run_history": False,
        "footer_links": ["api", "settings"],
        "max_file_size": "5mb",
    }
