"""The public endpoints: the same three questions the page asks, for programs."""

from __future__ import annotations

import base64
from typing import Any

import gradio as gr

from sdvq_core.errors import SdvqError
from sdvq_core.jobs import CompareJob, CompareResult, Sampling
from sdvq_core.ui.compare_tab import GPU
from sdvq_core.ui.guard import friendly
from sdvq_core.ui.settings import split_arms
from sdvq_core.ui.zero_gpu import on_gpu


def draw_api(workbench: Any) -> None:
    """Add `/quantizers`, `/estimate` and `/compare` to the page being built."""

    def quantizers() -> list[dict[str, Any]]:
        """Every quantizer: name, label, summary and the bit widths it offers."""
        return [
            {"name": info.name, "label": info.label, "summary": info.summary, "bit_widths": list(info.bit_widths)}
            for info in workbench.quantizers()
        ]

    def estimate(model: str, arm: str) -> dict[str, Any]:
        """The ledger of an arm before it is made."""
        return dict(workbench.estimate(model, arm).ledger.to_json())

    def compare(model: str, arms: str, prompt: str, seed: int, steps: int, guidance: float) -> list[dict[str, Any]]:
        """Same prompt and seed with every arm (commas between them), against the first; pictures as data URLs."""
        for event in workbench.compare(_job(workbench, model, arms, Sampling(prompt, seed, steps, guidance))):
            if isinstance(event, CompareResult):
                return [_answer(arm) for arm in event.arms]
        return []

    def seconds(model: str, arms: str, prompt: str, seed: int, steps: int, guidance: float) -> float:
        try:
            return float(workbench.job_seconds(_job(workbench, model, arms, Sampling(prompt, seed, steps, guidance))))
        except SdvqError:
            return 0.0

    gr.api(friendly(quantizers), api_name="quantizers")
    gr.api(friendly(estimate), api_name="estimate")
    gr.api(on_gpu(friendly(compare), seconds), api_name="compare", **GPU)


def _job(workbench: Any, model: str, arms: str, sampling: Sampling) -> CompareJob:
    """Programs cannot tick a box: where live compression is to be asked for, they get what is ready."""
    return CompareJob(model, split_arms(arms), sampling, live=not workbench.asks_first)


def _answer(result: Any) -> dict[str, Any]:
    picture = base64.b64encode(result.path.read_bytes()).decode()
    return dict(result.to_json()) | {"image": f"data:image/png;base64,{picture}"}
