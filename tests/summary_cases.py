"""Results of evaluations that never ran, for reports."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from sdvq_core.jobs import Sampling
from sdvq_core.records import Ledger
from sdvq_core.summaries import ArmSummary, EvaluateJob, EvaluateResult, ImagePair, Spread, StepErrors

NAUGHTY = 'a <script>alert("1")</script> & a frog'
STEPS = StepErrors(2, (900.0, 500.0, 100.0), (0.01, 0.02, 0.03), (0.001, 0.01, 0.02))


def ledger(codes: int) -> Ledger:
    return Ledger(10_000, 9_000, {"codes": codes, "codebooks": 100, "scales": 50, "kept": 2000}, codes + 2300)


def summary(arm: str, error: float, size: int = 64, codes: int = 3000) -> ArmSummary:
    """An arm whose every measure follows from its error."""
    spread = Spread(error, error, error / 2, error * 2)
    measures = {"latent_mse": spread, "psnr": spread, "ssim": spread, "lpips": None, "alignment": spread}
    pictures = Image.new("RGB", (size, size), "red"), Image.new("RGB", (size, size), "blue")
    pairs = tuple(ImagePair(rank, NAUGHTY, 7, 20.0, *pictures) for rank in ("worst", "median"))
    interval = (error / 2, error * 2)
    return ArmSummary(arm, f"{arm} label", ledger(codes), measures, 0.5, 1.0, interval, 0.1, 0.2, STEPS, pairs)


def reference() -> ArmSummary:
    nothing = Spread(0.0, 0.0, 0.0, 0.0)
    measures = {**summary("fp16", 1.0).measures, "latent_mse": nothing, "psnr": None}
    return replace(summary("fp16", 1.0), measures=measures, timesteps=None, pairs=(), latent_interval=(0.0, 0.0))


def result(*arms: ArmSummary) -> EvaluateResult:
    words = ("fp16", *(arm.arm for arm in arms))
    job = EvaluateJob("nano", words, (NAUGHTY, "b"), Sampling("", steps=3))
    noise = replace(summary("fp16", 0.6), label="another seed", timesteps=None)
    precision = replace(summary("fp16", 1e-6), label="fp16 rounding of every layer")
    return EvaluateResult(job, (reference(), *arms), noise, "a CPU", precision)
