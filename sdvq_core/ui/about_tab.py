"""The About tab: what is measured and how, which tier runs, versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

import gradio as gr

QUIET = {"api_visibility": "private", "show_progress": "hidden"}
_FORMULAS = [{"left": "$$", "right": "$$", "display": True}, {"left": "$", "right": "$", "display": False}]


def draw_about(facts: Callable[[], Mapping[str, str]], opened: Callable[..., object]) -> None:
    """The text of about.md beside the facts of this installation, which are asked when the tab is first `opened`."""
    text = (Path(__file__).parent / "about.md").read_text("utf-8")
    with gr.Row(elem_classes="about"):
        with gr.Column(scale=3, min_width=320):
            gr.Markdown(text, latex_delimiters=_FORMULAS, elem_classes="about-text")
        with gr.Column(scale=1, min_width=280):
            shown = gr.HTML("", elem_id="installation", apply_default_css=False)
    opened(lambda: facts_html(facts(), "This installation"), None, shown, **QUIET)


def facts_html(facts: Mapping[str, str], title: str) -> str:
    """A list of names and values."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>' for name, value in facts.items()
    )
    return f'<table class="facts"><caption>{escape(title)}</caption><tbody>{rows}</tbody></table>'
