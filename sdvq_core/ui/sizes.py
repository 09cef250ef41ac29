"""The price list: bytes and bits of every arm, known before anything is compressed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from sdvq_core.errors import SdvqError
from sdvq_core.jobs import Estimate
from sdvq_core.ui import wording
from sdvq_core.ui.guard import sentence


def sizes_table() -> Any:
    return gr.HTML("", elem_id="sizes", label="Sizes", apply_default_css=False)


def sizes_html(estimates: Sequence[Estimate | SdvqError]) -> str:
    """A small table, or the sentence that says why an arm cannot be made."""
    rows = "".join(_row(item) for item in estimates)
    head = "<th scope=col>Arm</th><th scope=col>Bits / weight</th><th scope=col>Size</th><th scope=col>Ratio</th>"
    caption = "<caption>UNet size of each arm</caption>"
    return f'<table class="sizes">{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(item: Estimate | SdvqError) -> str:
    if isinstance(item, SdvqError):
        return f'<tr class="bad"><td colspan="4">{escape(sentence(item))}</td></tr>'
    ledger = item.ledger
    cells = [wording.bits(ledger), wording.size(ledger.tensor_bytes), wording.ratio(ledger)]
    if not item.exact:
        cells = [f"≈ {cell}" for cell in cells]
    label = f'<th scope="row" title="{escape(item.label)}">{escape(item.arm)}</th>'
    return f"<tr>{label}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
