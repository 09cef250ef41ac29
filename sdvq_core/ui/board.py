"""A running comparison as the compare view shows it: a table of cells, one row per seed, one column per arm.

The value is plain JSON; between two states only the cells that changed differ, so a stream sends little.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import Image

from sdvq_core.jobs import ArmResult, CompareJob, Estimate, Preview
from sdvq_core.records import Ledger
from sdvq_core.ui import wording

PREVIEW_SIDE = 256  # a preview is a small picture in the event itself, not a file


class Board:
    """Collects events of one or more comparisons (seeds) into the view's value."""

    def __init__(
        self,
        jobs: Sequence[CompareJob],
        estimates: Sequence[Estimate],
        serve: Callable[[Path], str],
    ) -> None:
        self.jobs, self.serve = jobs, serve
        self.results: dict[str, ArmResult] = {}
        self.run = uuid4().hex[:8]
        self.rows = [[_waiting(item, job) for item in estimates] for job in jobs]
        self.footer = ""

    def preview(self, row: int, event: Preview) -> None:
        cell = self._cell(row, event.arm)
        cell["url"] = data_url(event.image)
        cell["state"], cell["note"] = "preview", f"step {event.step} of {event.steps}"

    def finish(self, row: int, result: ArmResult) -> None:
        """The arm's final picture and figures."""
        self.results[result.arm] = result
        seed = self.jobs[row].sampling.seed
        self._cell(row, result.arm).update(
            url=self.serve(result.path),
            state="done",
            label=result.label,
            alt=f"{self.jobs[row].sampling.prompt or 'no prompt'} — {result.label}, seed {seed}",
            note=wording.made(result),
            memory=wording.memory(result.footprint),
            scores=[list(pair) for pair in wording.scores(result.scores)],
            **_size(result.ledger),
        )

    def value(self) -> dict[str, Any]:
        """A copy that later events do not change."""
        rows = [
            {"seed": job.sampling.seed, "cells": [dict(cell) for cell in row]}
            for job, row in zip(self.jobs, self.rows, strict=True)
        ]
        return {"run": self.run, "rows": rows, "footer": self.footer, "prompt": self.jobs[0].sampling.prompt}

    def _cell(self, row: int, arm: str) -> dict[str, Any]:
        return next(cell for cell in self.rows[row] if cell["arm"] == arm)


def interrupted(value: dict[str, Any]) -> dict[str, Any]:
    """A board's `value` after which nothing comes: what has no final picture says so."""
    rows = [{**row, "cells": [_final(cell) for cell in row["cells"]]} for row in value["rows"]]
    return {**value, "rows": rows}


def _final(cell: dict[str, Any]) -> dict[str, Any]:
    return cell if cell["state"] == "done" else {**cell, "state": "stopped", "note": "stopped"}


def _waiting(estimate: Estimate, job: CompareJob) -> dict[str, Any]:
    return {
        "arm": estimate.arm,
        "label": estimate.label,
        "state": "waiting",
        "url": "",
        "alt": "",
        "note": "waiting",
        "memory": "",
        "scores": [],
        "file": f"{_slug(estimate.arm)}-seed{job.sampling.seed}.png",
        **_size(estimate.ledger),
    }


def _size(ledger: Ledger) -> dict[str, str]:
    return {"size": wording.size(ledger.tensor_bytes), "bits": wording.bits(ledger), "ratio": wording.ratio(ledger)}


def _slug(arm: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in arm).strip("-")[-60:] or "image"


def data_url(image: Image.Image) -> str:
    """A preview as a PNG in text; large ones are made smaller."""
    small = image
    if max(image.size) > PREVIEW_SIDE:
        small = image.copy()
        small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
