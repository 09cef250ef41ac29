"""Numbers as people read them: bytes, bits, ratios, seconds, scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdvq_core.jobs import WAIT, ArmResult, Progress, Scores
from sdvq_core.records import Footprint, Ledger
from sdvq_core.summaries import Spread

NONE, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


def size(nbytes: float) -> str:
    """``3.21 MB``; decimal units, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000 or unit == "GB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:#.3g}".rstrip(".") + f" {unit}"
        nbytes /= 1000
    raise AssertionError("unreachable")


def shape(sides: Sequence[int]) -> str:
    return f" {TIMES} ".join(map(str, sides))


def bits(ledger: Ledger) -> str:
    return f"{ledger.bits_per_weight:.2f}"


def ratio(ledger: Ledger) -> str:
    return f"{ledger.ratio:.1f}{TIMES}"


def quantized_bits(ledger: Ledger) -> str:
    return fixed(ledger.bits_per_quantized_weight, 2)


def fixed(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """``11 %``"""
    return NONE if value is None else f"{value:.0%}".replace("%", "\N{NARROW NO-BREAK SPACE}%")


def spread(value: Spread | None, digits: int) -> str:
    """Mean and interval."""
    if value is None:
        return NONE
    mean, low, high = (fixed(part, digits) for part in (value.mean, value.low, value.high))
    return f"{mean} ({low}{NONE}{high})"


def error(value: Spread | None) -> str:
    """The median, which may be very small."""
    if value is None:
        return NONE
    return f"{value.median:.1e}" if 0 < value.median < 1e-3 else fixed(value.median, 4)


def seconds(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.2g} s" if value < 10 else f"{value:.0f} s" if value < 100 else f"{value / 60:.1f} min"


def about(value: float) -> str:
    """``about 12 seconds``, ``about 3 minutes``, ``about 2.5 hours``."""
    for limit, unit, length in ((90, "second", 1), (90 * 60, "minute", 60), (math.inf, "hour", 3600)):
        if value < limit:
            count = round(value / length, 1) if unit == "hour" else max(1, round(value / length))
            return f"about {count:g} {unit}{'' if count == 1 else 's'}"
    raise AssertionError("unreachable")


def scores(values: Scores) -> list[tuple[str, str]]:
    """Label and value of each measure that there is."""
    rows = (
        ("PSNR", None if values.psnr is None else "identical" if math.isinf(values.psnr) else f"{values.psnr:.1f} dB"),
        ("SSIM", None if values.ssim is None else f"{values.ssim:.3f}"),
        ("Latent error", None if values.latent_mse is None else f"{values.latent_mse:.3f}"),
        ("LPIPS", None if values.lpips is None else f"{values.lpips:.3f}"),
        ("Alignment", None if values.alignment is None else f"{values.alignment:.3f}"),
    )
    return [(label, value) for label, value in rows if value is not None]


def made(result: ArmResult) -> str:
    """How long the image took, and the compression before it."""
    text = f"image in {seconds(result.seconds)}"
    if result.cached:
        return f"{text} · weights from cache"
    return f"{text} · compressed in {seconds(result.compress_seconds)}" if result.compress_seconds else text


def memory(footprint: Footprint) -> str:
    """How the weights were kept in memory, and what they took there."""
    rest = f", {footprint.decoding}" if footprint.decoding else ""
    return f"{footprint.mode}: {size(footprint.nbytes)} of weights in memory{rest}"


def progress(event: Progress) -> tuple[str, str]:
    """A headline and a detail for the status line."""
    head = {
        "load": "Loading the model",
        "download": f"Fetching {event.arm}",
        "distil": f"Distilling {event.arm}",
        "calibrate": f"Gathering statistics for {event.arm}",
        "compress": f"Compressing {event.arm}",
        "sample": f"Sampling {event.arm}",
        "measure": "Measuring",
        WAIT: "Waiting",
    }.get(event.stage, event.stage)
    unit = {"calibrate": "call", "compress": "layer", "sample": "step"}.get(event.stage)
    parts = [f"{unit} {event.done} of {event.total}"] if unit and event.total else []
    parts += [event.text] if event.text and unit != "step" else []
    if event.seconds_left is not None and event.seconds_left >= 1:
        parts.append(f"about {seconds(event.seconds_left)} left")
    return head, " · ".join(parts)
