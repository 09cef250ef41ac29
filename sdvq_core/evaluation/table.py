"""The table of an evaluation as words, for Markdown and for HTML: one row per arm, the noise floors last."""

from __future__ import annotations

from dataclasses import dataclass

from sdvq_core.summaries import ArmSummary, EvaluateResult, Spread

_COLUMNS = (
    "arm, bits, of quantized weights, ratio, PSNR dB, SSIM, latent error (median), LPIPS, alignment, Fréchet, CMMD"
)
COLUMNS = (*_COLUMNS.split(", "), "forks", "mode")
NONE = "–"


@dataclass(frozen=True, eq=False)
class Table:
    """columns: names. rows: (arm, its cells, whether it is a noise floor)."""

    columns: tuple[str, ...]
    rows: tuple[tuple[ArmSummary, tuple[str, ...], bool], ...]


def table(result: EvaluateResult) -> Table:
    """The result in words; a floor goes by its label, a measure that nobody has gets no column."""
    named = [(arm, arm.arm, False) for arm in result.arms] + [(floor, floor.label, True) for floor in result.floors]
    cells = [_cells(arm, name) for arm, name, _ in named]
    kept = [place for place in range(len(COLUMNS)) if any(row[place] != NONE for row in cells)]
    found = [
        (arm, tuple(row[place] for place in kept), is_floor)
        for (arm, _, is_floor), row in zip(named, cells, strict=True)
    ]
    return Table(tuple(COLUMNS[place] for place in kept), tuple(found))


def _cells(arm: ArmSummary, name: str) -> list[str]:
    ledger, error = arm.ledger, arm.measures["latent_mse"]
    return [
        name,
        f"{ledger.bits_per_weight:.3f}",
        _number(ledger.bits_per_quantized_weight, "{:.3f}"),
        f"{ledger.ratio:.2f}",
        _spread(arm.measures["psnr"], "{:.2f}"),
        _spread(arm.measures["ssim"], "{:.3f}"),
        _number(None if error is None else error.median, "{:.1e}" if error and 0 < error.median < 1e-3 else "{:.4f}"),
        _spread(arm.measures["lpips"], "{:.3f}"),
        _spread(arm.measures["alignment"], "{:.3f}"),
        _number(arm.frechet, "{:.4f}"),
        _number(arm.cmmd, "{:.4f}"),
        _number(arm.fork_rate, "{:.2f}"),
        arm.mode or NONE,
    ]


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _spread(spread: Spread | None, form: str) -> str:
    if spread is None:
        return NONE
    mean, low, high = (form.format(value) for value in (spread.mean, spread.low, spread.high))
    return f"{mean} ({low}–{high})"
