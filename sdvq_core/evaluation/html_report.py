"""The HTML report: one file that needs nothing else. Table, figures, and the worst and the median image of every arm.

Images of up to 256 pixels are shown enlarged with their pixels visible; those of more than 512 are scaled down to it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from sdvq_core.evaluation.table import table
from sdvq_core.plots import rate_distortion, timestep_error
from sdvq_core.summaries import ArmSummary, EvaluateResult, ImagePair
from sdvq_core.version import __version__

TEMPLATE = Path(__file__).with_name("report.html")
SMALL, LARGEST = 256, 512  # pixels


def html_report(result: EvaluateResult) -> str:
    """The whole page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        job=result.job,
        images=len(result.job.samplings),
        device=result.device,
        version=__version__,
        reference=result.arms[0],
        floors=result.floors,
        table=table(result),
        figures=[_drawn(figure, place) for place, figure in enumerate(_figures(result))],
        galleries=[(arm, [_shown(pair) for pair in arm.pairs]) for arm in _pictured(result)],
    )


def _figures(result: EvaluateResult) -> Iterator[tuple[str, str, Any]]:
    """(title, what to know, figure) of those that have something to show."""
    arms = result.arms[1:]
    if any((spread := arm.measures["latent_mse"]) and spread.median > 0 for arm in arms):
        chosen = [arm.arm for arm in arms if arm.arm.startswith("@")]
        note = "Down and left is better. Bars are 95 % intervals of the median; stars are recipes."
        yield "Size against error", note, rate_distortion(arms, result.floors, chosen)
    steps = next((arm.timesteps for arm in (*arms, *result.floors) if arm.timesteps), None)
    if steps is not None:
        note = (
            f"Medians over {steps.n} prompts. Teacher-forced: what the UNet does wrong on the reference’s latents. "
            "Free-running: how far its own latents have drifted. A click on a name hides or shows its line."
        )
        yield "Error by timestep", note, timestep_error(arms, result.floors)


def _drawn(found: tuple[str, str, Any], place: int) -> dict[str, str]:
    """The figure as HTML; the first one brings Plotly itself along."""
    title, note, figure = found
    config = {"responsive": True, "displaylogo": False, "displayModeBar": False}
    body = figure.to_html(config, include_plotlyjs=place == 0, full_html=False, div_id=f"figure-{place}")
    return {"title": title, "note": note, "body": body}


def _pictured(result: EvaluateResult) -> list[ArmSummary]:
    return [arm for arm in (*result.arms[1:], result.noise_floor) if arm.pairs]


def _shown(pair: ImagePair) -> dict[str, Any]:
    return {
        "pair": pair,
        "small": max(pair.image.size) <= SMALL,
        "scaled": max(pair.image.size) > LARGEST,
        "reference": _data_url(pair.reference),
        "image": _data_url(pair.image),
    }


def _data_url(image: Image.Image) -> str:
    copy = image.copy()
    copy.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    copy.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
