"""The results of an evaluation that never ran, for the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sdvq_core.jobs import Sampling
from sdvq_core.records import BaseInfo, Ledger
from sdvq_core.results import Results
from sdvq_core.summaries import ArmSummary, EvaluateJob, EvaluateResult, Spread, StepErrors

ARMS = {"fp16": 0.0, "rtn:bits=4": 0.04, "nf4": 0.05, "rvq:bits=3": 0.13, "tcq:bits=3": 0.03}
STEPS = 20


def fake_results(ledger_of: Callable[[str], Ledger]) -> Results:
    """Five arms and both floors, with every measure but LPIPS; errors follow from `ARMS`."""
    job = EvaluateJob("nano", tuple(ARMS), ("a frog", "a cat"), Sampling("", steps=STEPS))
    arms = tuple(_summary(arm, error, ledger_of(arm)) for arm, error in ARMS.items())
    noise = replace(_summary("fp16", 0.6, ledger_of("fp16")), label="another seed", timesteps=None)
    precision = replace(_summary("fp16", 1e-6, ledger_of("fp16")), label="fp16 rounding of every layer")
    measured = EvaluateResult(job, arms, noise, "a CPU", precision, BaseInfo("nano", "abc"), "2026-11-21")
    return Results(measured, True, "python -m sdvq_core evaluate nano --arm fp16 --arm 'a b' --n 2 --out out/results")


def _summary(arm: str, error: float, ledger: Ledger) -> ArmSummary:
    spread = Spread(error, error, error / 2, error * 2)
    quality = Spread(25.0 - 60 * error, 25.0 - 60 * error, 24.0 - 60 * error, 26.0 - 60 * error)
    measures = {
        "latent_mse": spread,
        "psnr": quality if error else None,
        "ssim": quality,
        "lpips": None,
        "alignment": Spread(0.68, 0.68, 0.67, 0.69),
    }
    growth = [error * (step + 1) / STEPS for step in range(STEPS)]
    times = tuple(float(1000 - 50 * step) for step in range(STEPS))
    steps = StepErrors(2, times, tuple(growth), tuple(value / 3 for value in growth)) if error else None
    interval = (error / 2, error * 2)
    return ArmSummary(arm, f"{arm} label", ledger, measures, min(1.0, error), 1.0, interval, error, None, steps)
