"""A slider over exactly the bit widths that a quantizer offers, however unevenly they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gradio as gr

from sdvq_core.errors import ConfigError

_TEMPLATE = """<div class="bits"><div class="bits-head"><label for="bits-range">Bits per weight</label>
<output for="bits-range"></output></div>
<input id="bits-range" type="range" min="0" step="1" aria-label="Bits per weight">
<div class="bits-ticks" aria-hidden="true"></div></div>"""
_SCRIPT = """const range = element.querySelector('input'), out = element.querySelector('output');
const ticks = element.querySelector('.bits-ticks');
const draw = () => {
  const {bits = 0, widths = [0]} = props.value || {};
  const index = Math.max(0, widths.indexOf(bits));
  range.max = Math.max(1, widths.length - 1);
  range.disabled = widths.length < 2;
  range.value = widths.length < 2 ? 1 : index;
  range.setAttribute('aria-valuetext', `${bits} bits`);
  out.textContent = `${bits} bit${bits === 1 ? '' : 's'}`;
  const marks = widths.length < 2 ? ['', widths[0]] : widths;
  ticks.replaceChildren(...marks.map(width => Object.assign(document.createElement('span'), {textContent: width})));
};
range.addEventListener('input', () => {
  const {widths} = props.value;
  props.value = {bits: widths[Number(range.value)], widths};
  draw();
  trigger('change');
});
watch('value', draw);
draw();"""


def bit_slider(widths: Sequence[float], bits: float) -> Any:
    return gr.HTML(
        value=slider_value(widths, bits),
        html_template=_TEMPLATE,
        js_on_load=_SCRIPT,
        apply_default_css=False,
        elem_id="bits",
        label="Bits per weight",
    )


def slider_value(widths: Sequence[float], bits: float) -> dict[str, object]:
    """The slider at the offered width nearest to `bits`."""
    return {"bits": min(widths, key=lambda width: abs(width - bits)), "widths": list(widths)}


def read_bits(value: object) -> float:
    """The chosen width; whatever else a client sends is refused."""
    bits = value.get("bits") if isinstance(value, dict) else value
    if isinstance(bits, bool) or not isinstance(bits, int | float) or not math.isfinite(bits):
        raise ConfigError(f"bits must be a number, got {bits!r}")
    return float(bits)
