"""The sentences below the price list: which arms are ready, and what the others need before their first picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sdvq_core.errors import SdvqError
from sdvq_core.jobs import FETCHED, Estimate
from sdvq_core.ui import wording

LIVE = "Compress what is not ready"
_STAGES = {
    "fetch": "fetches the model from {by}, about 7 GB",
    "download": "is fetched from {by}",
    "calibrate": "gathers statistics of {count} layers, once for all calibrated arms",
    "allocate": "measures what {count} widths do to the model's output",
    "compress": "compresses {count} layers",
    "distil": "distils for up to {count} updates",
    "quantize": "is quantized by {by}, in memory",
}


def cost_html(estimates: Sequence[Estimate | SdvqError], live: bool = True) -> str:
    """One line per arm that needs work; arms with the same need share it. live: whether it is done on Generate."""
    known = [item for item in estimates if isinstance(item, Estimate)]
    lines: dict[str, list[str]] = {}
    for item in known:
        if item.work:
            lines.setdefault(_sentence(item), []).append(item.arm)
    if not lines:
        return '<p class="cost">Every arm is at hand: only sampling is left.</p>' if known else ""
    here = [item.arm for item in known if not item.work]
    head = f"<p>Ready: {_bold(here)}</p>" if here else ""
    items = "".join(f"<li>{_names(arms)} {escape(text)}</li>" for text, arms in lines.items())
    asks = not live and not all(map(ready, known))
    tail = f"<p>Tick “{LIVE}” below to have it done.</p>" if asks else ""
    return f'<div class="cost">{head}<p>Before the first picture</p><ul>{items}</ul>{tail}</div>'


def ready(item: Estimate) -> bool:
    """Whether nothing is left to be computed: it is here, or only to be fetched."""
    return all(stage.stage in FETCHED for stage in item.work)


def state(item: Estimate) -> str:
    """An arm's state in a menu: `ready`, or how long it takes."""
    if ready(item):
        return "ready"
    return "not ready" if item.seconds is None else wording.about(item.seconds)


def _sentence(item: Estimate) -> str:
    parts = [_STAGES[stage.stage].format(count=stage.count, by=stage.by) for stage in item.work]
    return ", then ".join(parts) + _time(item)


def _time(item: Estimate) -> str:
    """How long the computing takes, where there is any of ours."""
    if all(stage.stage in (*FETCHED, "quantize") for stage in item.work):
        return ""
    if item.seconds is None:
        return f" (not timed on this {item.device} yet)"
    return f" ({wording.about(item.seconds)} on this {item.device})"


def _bold(arms: Sequence[str]) -> str:
    return ", ".join(f"<b>{escape(arm)}</b>" for arm in arms)


def _names(arms: Sequence[str]) -> str:
    return _bold(arms) + (" each:" if len(arms) > 1 else ":")
