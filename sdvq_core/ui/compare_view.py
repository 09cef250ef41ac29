"""The compare view: pictures of several arms with one zoom, swipe, flip and difference; its script draws a board.

The template never mentions the value, so zoom and focus survive streamed pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

_HERE = Path(__file__).parent / "page_assets"
SCRIPTS = ("view_state.js", "view_figures.js", "view_zoom.js", "view_pair.js", "view_keys.js")
EMPTY: dict[str, Any] = {"run": "", "rows": [], "footer": "", "prompt": ""}


def compare_view(elem_id: str = "compare-view") -> Any:
    """A gr.HTML that shows `Board.value()`."""
    return gr.HTML(
        value=EMPTY,
        html_template=(_HERE / "compare_view.html").read_text("utf-8"),
        js_on_load="\n".join((_HERE / name).read_text("utf-8") for name in SCRIPTS),
        apply_default_css=False,
        elem_id=elem_id,
        label="Comparison",
    )


def serve_png(view: Any, path: Path) -> str:
    """Address of a byte-identical copy of `path` in the page's own file cache, which Gradio empties by age."""
    return f"gradio_api/file={quote(str(view.move_resource_to_block_cache(str(path))))}"
