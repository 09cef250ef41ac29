"""The line above the pictures: what is being done, how far, how long yet. It never covers a picture."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sdvq_core.jobs import Progress
from sdvq_core.ui import wording

_TEMPLATE = """<div class="status" role="status" aria-live="polite"><span class="status-head"></span>
<span class="status-detail"></span></div>
<div class="status-bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"><i></i></div>"""
_SCRIPT = """const find = name => element.querySelector(name);
const draw = () => {
  const {head = '', detail = '', done = null, state = 'idle'} = props.value || {};
  element.firstElementChild.dataset.state = state;
  find('.status-head').textContent = head;
  find('.status-detail').textContent = detail;
  const bar = find('.status-bar');
  bar.dataset.state = state;
  bar.classList.toggle('unknown', done === null && state === 'busy');
  bar.firstElementChild.style.width = `${Math.round(100 * (done ?? 0))}%`;
  if (done === null) bar.removeAttribute('aria-valuenow');
  else bar.setAttribute('aria-valuenow', Math.round(100 * done));
};
watch('value', draw);
draw();"""


def status_line() -> Any:
    return gr.HTML(
        value=status("idle", "Ready", "Press Generate to make the same picture with every arm."),
        html_template=_TEMPLATE,
        js_on_load=_SCRIPT,
        apply_default_css=False,
        elem_id="status",
        label="Status",
    )


def status(state: str, head: str, detail: str = "", done: float | None = None) -> dict[str, object]:
    """state: idle, busy, done, stopped or failed; done: 0..1, None where unknown."""
    return {"state": state, "head": head, "detail": detail, "done": done}


def progress_status(event: Progress, seed: str = "") -> dict[str, object]:
    head, detail = wording.progress(event)
    return status("busy", head + seed, detail, event.done / event.total if event.total else None)
