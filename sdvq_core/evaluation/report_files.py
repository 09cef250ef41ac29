"""What an evaluation leaves in a folder: JSON, CSV, a Markdown table and an HTML report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from sdvq_core.evaluation.html_report import html_report
from sdvq_core.evaluation.table import table
from sdvq_core.store.images import write_bytes
from sdvq_core.summaries import ArmSummary, EvaluateResult

PARTS = ("mean", "median", "low", "high")
SINGLE: dict[str, Callable[[ArmSummary], object]] = {
    "frechet": lambda arm: arm.frechet,
    "cmmd": lambda arm: arm.cmmd,
    "fork_rate": lambda arm: arm.fork_rate,
    "seconds": lambda arm: arm.seconds,
    "mode": lambda arm: arm.mode,
}


def write_report(folder: Path, result: EvaluateResult) -> list[Path]:
    """results.json, results.csv, results.md and report.html in `folder`."""
    texts = {
        "results.json": json.dumps(result.to_json(), indent=1, allow_nan=False),
        "results.csv": comma_separated(result),
        "results.md": markdown(result),
        "report.html": html_report(result),
    }
    return [write_bytes(folder / name, text.encode()) for name, text in texts.items()]


def markdown(result: EvaluateResult) -> str:
    """The result as a Markdown table: one row per arm, means with their intervals, the noise floors last."""
    found = table(result)
    lines = [_line(found.columns), "|---" * len(found.columns) + "|"]
    for _, (name, *cells), is_floor in found.rows:
        lines.append(_line([name if is_floor else f"`{name}`", *cells]))
    return "\n".join(lines) + "\n"


def comma_separated(result: EvaluateResult) -> str:
    """The result as CSV with every digit; the noise floors last."""
    out = io.StringIO()
    names = list(result.arms[0].measures)
    writer = csv.writer(out, lineterminator="\n")
    columns = [f"{name}_{part}" for name in names for part in PARTS]
    writer.writerow(["arm", "bits_per_weight", "bits_per_quantized_weight", "tensor_bytes", *columns, *SINGLE])
    for arm, (name, *_), _ in table(result).rows:
        ledger = arm.ledger
        sizes = [ledger.bits_per_weight, ledger.bits_per_quantized_weight, ledger.tensor_bytes]
        writer.writerow([name, *sizes, *_parts(arm, names), *(of(arm) for of in SINGLE.values())])
    return out.getvalue()


def _parts(arm: ArmSummary, names: Sequence[str]) -> list[object]:
    found: list[object] = []
    for name in names:
        spread = arm.measures[name]
        found += [""] * len(PARTS) if spread is None else [asdict(spread)[part] for part in PARTS]
    return found


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
