"""What a command shows: progress and notes on stderr, the answer on stdout as lines or as one JSON object."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from sdvq_core.jobs import ArmResult, Notice, Progress
from sdvq_core.peers import EXTRA
from sdvq_core.records import Footprint, Ledger, Report, TextReport

T = TypeVar("T")

_SILENCE_SECONDS = 10


def last(events: Iterator[Any], wanted: type[T]) -> T:
    """Run to the end, showing progress; the last event of the wanted type."""
    found: T | None = None
    show = _progress_line()
    for event in events:
        if isinstance(event, Progress):
            show(event)
        elif isinstance(event, Notice):
            say(f"note: {event.text}")
        elif isinstance(event, wanted):
            found = event
    show(None)
    assert found is not None
    return found


def _progress_line() -> Callable[[Progress | None], None]:
    """A function that draws progress: in place on a terminal; elsewhere a line per stage and arm, and now and then."""
    state: dict[str, object] = {"last": None}
    said = time.monotonic()

    def show(event: Progress | None) -> None:
        nonlocal said
        live = sys.stderr.isatty()
        if event is None:
            if live and state["last"]:
                sys.stderr.write("\n")
            return
        left = "" if event.seconds_left is None else f", {event.seconds_left:.0f} s left"
        text = f"{event.stage} {event.arm} {event.done}/{event.total}{left}  {event.text}"
        if live:
            sys.stderr.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
        elif _is_news(event, state["last"]) or time.monotonic() - said > _SILENCE_SECONDS:
            said = time.monotonic()
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        state["last"] = (event.stage, event.arm)

    return show


def _is_news(event: Progress, last: object) -> bool:
    return event.done == event.total or (event.stage, event.arm) != last


def print_answer(as_json: bool, data: dict[str, Any], lines: list[str]) -> None:
    sys.stdout.write((json.dumps(data, allow_nan=False) if as_json else "\n".join(lines)) + "\n")


def size(ledger: Ledger) -> str:
    quantized = ledger.bits_per_quantized_weight
    inner = "" if quantized is None else f" ({quantized:.3f} per quantized weight)"
    bits = f"{ledger.bits_per_weight:.3f} bits per weight{inner}"
    return f"{ledger.tensor_bytes:,} bytes, {bits}, {ledger.ratio:.2f}x smaller than fp16"


def memory(footprint: Footprint) -> str:
    rest = f", {footprint.decoding}" if footprint.decoding else ""
    return f"{footprint.mode}: {footprint.nbytes:,} bytes of weights in memory{rest}"


def text_line(text: TextReport | None) -> list[str]:
    """What compressing the text encoders did, if it was asked for."""
    return [] if text is None else [text.sentence]


def table(report: Report) -> list[str]:
    rows = [f"{r.name:74} {r.bits_per_weight:7.3f} {r.nbytes:10,} {r.relative_mse:.3e}" for r in report.layers]
    kept = [f"{item.layer:74} kept in 16 bits: {item.reason}" for item in report.ledger.fallbacks]
    kept += [f"{name:74} kept in 16 bits by the recipe" for name in report.kept]
    count = f"{len(report.layers)} layers compressed, {len(kept)} kept in 16 bits"
    return [count, f"{'layer':74} {'bits':>7} {'bytes':>10} relative error", *rows, *kept]


def method(info: Mapping[str, Any]) -> list[str]:
    """A quantizer or a peer: summary, bit widths, knobs, and what a missing library needs."""
    lines = [f"{info['name']:8} {info['summary']}"]
    if not info.get("installed", True):
        lines.append(f"{'':8} not installed: {EXTRA}")
    lines.append(f"{'':8} bits: {', '.join(f'{bits:g}' for bits in info['bit_widths'])}")
    for knob in info["knobs"]:
        allowed = ", ".join(map(str, knob["choices"])) or f"{knob['low']:g} to {knob['high']:g}"
        lines.append(f"{'':8} {knob['name']}={knob['default']}  ({knob['label']}: {allowed})")
    return lines


def model_line(info: Mapping[str, Any]) -> str:
    here = "at hand" if info["at_hand"] else "not here"
    licence = f"; licence: {info['licence']}" if info["licence"] else ""
    return f"{info['name']:12} {here:9} {info['label']}: {info['note']}{licence}"


def arm_line(item: ArmResult, image: str) -> str:
    scores = item.scores
    psnr = "" if scores.psnr is None else "  identical" if math.isinf(scores.psnr) else f"  {scores.psnr:.2f} dB"
    kept = f"{item.footprint.mode}, {item.footprint.nbytes / 1e6:.1f} MB in memory"
    return f"{item.arm:24} {item.ledger.bits_per_weight:7.3f} bits {item.seconds:6.2f} s{psnr}  {kept}  {image}"


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
