"""Between a form (quantizer, bits, knobs) and an arm's word: ``rvq:bits=3,beam=16``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sdvq_core.errors import ConfigError
from sdvq_core.quantizers.base import Knob, QuantizerInfo, Value, make, parse

AUTO = "auto"


class ArmForm(NamedTuple):
    """The form's content: `knobs` holds only what differs from automatic."""

    quantizer: str
    bits: float
    knobs: Mapping[str, Value]


def form_knobs(info: QuantizerInfo) -> tuple[Knob, ...]:
    """The knobs that get a widget of their own: all but `bits`, which the slider covers."""
    return tuple(knob for knob in info.knobs if knob.name != "bits")


def to_word(info: QuantizerInfo, bits: float, knobs: Mapping[str, Value]) -> str:
    """The arm's word: bits where there is a choice, and each knob that is not automatic."""
    given = [f"bits={bits:g}"] if len(info.bit_widths) > 1 else []
    given += [
        f"{knob.name}={_text(knobs[knob.name])}"
        for knob in form_knobs(info)
        if not _is_default(knob, knobs.get(knob.name))
    ]
    return f"{info.name}:{','.join(given)}" if given else info.name


def from_word(word: str, catalogue: Sequence[QuantizerInfo]) -> ArmForm:
    """The form that gives `word`; ConfigError where the form cannot show it (an artifact, a width off the slider)."""
    quantizer = parse(word)
    info = next((info for info in catalogue if info.name == quantizer.name), None)
    if info is None or quantizer.nominal_bits not in info.bit_widths:
        raise ConfigError(f"{word} does not fit the form; write it under “More arms”")
    from_bits = make({"name": info.name, "bits": quantizer.nominal_bits})
    plain, wanted = from_bits.to_spec(), quantizer.to_spec()
    changed = {knob.name: wanted[knob.name] for knob in form_knobs(info) if wanted[knob.name] != plain[knob.name]}
    return ArmForm(info.name, quantizer.nominal_bits, changed)


def _is_default(knob: Knob, value: Value | None) -> bool:
    """Choices have an explicit automatic entry, since bits may steer them; a bounded knob rests at its default."""
    return value is None or value == AUTO or (not knob.choices and value == knob.default)


def _text(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
