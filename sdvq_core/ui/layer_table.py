"""The layer table on screen and as CSV, and the numbers of one layer."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path

from sdvq_core.jobs import LayerDetail
from sdvq_core.naming import block_of, role_of, short_name
from sdvq_core.records import LayerRecord, Report
from sdvq_core.ui import wording

COLUMNS = {
    "layer": "str",
    "relative error": "number",
    "other arm's error": "number",
    "bits per weight": "number",
    "bytes": "number",
    "block": "str",
    "role": "str",
    "kind": "str",
    "shape": "str",
    "quantizer": "str",
}
CSV_COLUMNS = (
    "layer",
    "relative_mse",
    "other_relative_mse",
    "bits_per_weight",
    "nbytes",
    "block",
    "role",
    "kind",
    "shape",
)
Cell = str | int | float | None


def table_rows(report: Report, other: Report | None = None) -> list[list[Cell]]:
    """One row per layer under `COLUMNS`, numbers as numbers so that they sort."""
    errors = {layer.name: layer.relative_mse for layer in other.layers} if other else {}
    return [_row(layer, errors.get(layer.name)) for layer in report.layers]


def _row(layer: LayerRecord, other: float | None) -> list[Cell]:
    return [
        layer.name,
        _short(layer.relative_mse),
        None if other is None else _short(other),
        round(layer.bits_per_weight, 3),
        layer.nbytes,
        block_of(layer.name),
        role_of(layer.name),
        layer.kind,
        wording.shape(layer.shape),
        layer.quantizer,
    ]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def write_csv(report: Report, other: Report | None = None) -> str:
    """Path of a CSV with the whole table and the arms' words; Gradio copies it into its own file cache."""
    name = "".join(letter if letter.isalnum() else "-" for letter in report.recipe).strip("-")
    path = Path(tempfile.mkdtemp(prefix="sdvq-layers-")) / f"layers-{name[-60:] or 'arm'}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*CSV_COLUMNS, "quantizer", "arm", "other_arm"])
        words = [report.recipe, other.recipe if other else ""]
        writer.writerows([*row, *words] for row in table_rows(report, other))
    return str(path)


def detail_html(layer: str, details: Sequence[LayerDetail], reports: Sequence[Report | None]) -> str:
    """One layer's numbers, a column per arm."""
    records = [_record(report, layer) for report in reports if report][: len(details)]
    columns = [_facts(detail, record) for detail, record in zip(details, records, strict=True)]
    names = list(dict.fromkeys(name for column in columns for name in column))
    heads = "".join(f'<th scope="col">{escape(detail.arm)}</th>' for detail in details)
    title = f"<strong>{escape(short_name(layer))}</strong><br><code>{escape(layer)}</code>"
    body = "".join(_fact_row(name, columns) for name in names)
    head = f"<caption>{title}</caption><thead><tr><td></td>{heads}</tr></thead>"
    return f'<table class="facts">{head}<tbody>{body}</tbody></table>'


def _fact_row(name: str, columns: Sequence[dict[str, str]]) -> str:
    cells = "".join(f"<td>{escape(column.get(name, wording.NONE))}</td>" for column in columns)
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _record(report: Report, layer: str) -> LayerRecord | None:
    return next((item for item in report.layers if item.name == layer), None)


def _facts(detail: LayerDetail, record: LayerRecord | None) -> dict[str, str]:
    facts: dict[str, str] = {}
    if record:
        facts = {
            "shape": wording.shape(record.shape),
            "bits per weight": f"{record.bits_per_weight:.3f}",
            "bytes": f"{record.nbytes:,}",
            "relative error": f"{record.relative_mse:.3g}",
        }
        if record.relative_output_mse is not None:
            facts["output error"] = f"{record.relative_output_mse:.3g}"
    return facts | {name: str(value) for name, value in detail.facts.items() if name not in facts}
