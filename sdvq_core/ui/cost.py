"""The sentences below the price list: what each arm will need before its first picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sdvq_core.errors import SdvqError
from sdvq_core.jobs import Estimate, Work

_STAGES = {
    "calibrate": "gathers statistics of {count} layers, once for all calibrated arms",
    "allocate": "measures what {count} widths do to the model's output",
    "compress": "compresses {count} layers",
    "distil": "distils for up to {count} updates",
    "quantize": "is quantized by {by}, in memory",
}


def cost_html(estimates: Sequence[Estimate | SdvqError]) -> str:
    """One line per arm that needs work; arms with the same need share it."""
    known = [item for item in estimates if isinstance(item, Estimate)]
    lines: dict[str, list[str]] = {}
    for item in known:
        if item.work:
            lines.setdefault(_sentence(item.work), []).append(item.arm)
    if not lines:
        return '<p class="cost">Every arm is at hand: only sampling is left.</p>' if known else ""
    items = "".join(f"<li>{_names(arms)} {escape(text)}</li>" for text, arms in lines.items())
    return f'<div class="cost"><p>Before the first picture</p><ul>{items}</ul></div>'


def _sentence(work: Sequence[Work]) -> str:
    parts = [_STAGES[stage.stage].format(count=stage.count, by=stage.by) for stage in work]
    return ", then ".join(parts)


def _names(arms: Sequence[str]) -> str:
    return ", ".join(f"<b>{escape(arm)}</b>" for arm in arms) + (" each:" if len(arms) > 1 else ":")
