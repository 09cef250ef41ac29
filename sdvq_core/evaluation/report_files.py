"""Prompts x one seed each, every arm against the first, with intervals and the noise floor of another seed."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdvq_core.arms import Arm, parse_arm
from sdvq_core.engine import Engine
from sdvq_core.jobs import ArmSummary, EvaluateJob, EvaluateResult, Progress, Sampling, Scores, Spread
from sdvq_core.metrics.images import lpips, psnr, ssim
from sdvq_core.metrics.intervals import bootstrap_interval
from sdvq_core.metrics.weights import relative_mse
from sdvq_core.records import Ledger
from sdvq_core.store.images import write_bytes

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_BATCH = {"nano": 16}  # images sampled together, by tier; one elsewhere
_OTHER_SEED = 1_000_003  # added to every seed for the noise floor
_HALF_WAY_DB = 20 * math.log10(2)  # half the RMS distance of another seed, in dB of PSNR


@dataclass(frozen=True, eq=False)
class _Set:
    """All samples of one arm, in the order of the prompts."""

    latents: list[Tensor]
    images: list[Image.Image]
    seconds: float


def evaluate(engine: Engine, job: EvaluateJob) -> Iterator[Progress | EvaluateResult]:
    """Sample every prompt with every arm and compare with the first arm; the last event is the result."""
    arms = [parse_arm(word) for word in job.arms]
    for arm in arms:
        for event in engine.compress(job.model, arm) if arm.rules else ():
            if isinstance(event, Progress):
                yield event
    reference = yield from _sample_all(engine, job, arms[0], 0)
    other = yield from _sample_all(engine, job, arms[0], _OTHER_SEED)
    floor = _scores(engine, job, reference, other)
    noise = _summary(
        replace(arms[0], label="another seed"), engine.ledger(job.model, arms[0]), floor, floor, other.seconds
    )
    summaries = []
    for index, arm in enumerate(arms):
        found = reference if index == 0 else (yield from _sample_all(engine, job, arm, 0))
        scores = _scores(engine, job, reference, found)
        summaries.append(_summary(arm, engine.ledger(job.model, arm), scores, floor, found.seconds))
    yield EvaluateResult(job, tuple(summaries), noise, engine.device_name)


def write_report(folder: Path, result: EvaluateResult) -> list[Path]:
    """results.json, results.csv and results.md in `folder`."""
    texts = {
        "results.json": json.dumps(result.to_json(), indent=1),
        "results.csv": _csv(result),
        "results.md": markdown(result),
    }
    return [write_bytes(folder / name, text.encode()) for name, text in texts.items()]


def markdown(result: EvaluateResult) -> str:
    """The result as a Markdown table: one row per arm, means with their intervals, and the noise floor last."""
    head = "| arm | bits | of quantized weights | ratio | PSNR dB | SSIM | latent error (median) | alignment | forks |"
    lines = [head, "|---" * 9 + "|"]
    for arm in (*result.arms, result.noise_floor):
        quantized = arm.ledger.bits_per_quantized_weight
        cells = [
            f"`{arm.arm}`" if arm is not result.noise_floor else "another seed",
            f"{arm.ledger.bits_per_weight:.3f}",
            "–" if quantized is None else f"{quantized:.3f}",
            f"{arm.ledger.ratio:.2f}",
            _cell(arm.measures["psnr"], "{:.2f}"),
            _cell(arm.measures["ssim"], "{:.3f}"),
            "–" if (spread := arm.measures["latent_mse"]) is None else f"{spread.median:.4f}",
            _cell(arm.measures["alignment"], "{:.3f}"),
            "–" if arm.fork_rate is None else f"{arm.fork_rate:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(spread: Spread | None, form: str) -> str:
    if spread is None:
        return "–"
    mean, low, high = (form.format(value) for value in (spread.mean, spread.low, spread.high))
    return f"{mean} ({low}–{high})"


def _csv(result: EvaluateResult) -> str:
    out = io.StringIO()
    names = list(result.arms[0].measures)
    writer = csv.writer(out, lineterminator="\n")
    columns = [f"{name}_{part}" for name in names for part in ("mean", "median", "low", "high")]
    writer.writerow(["arm", "bits_per_weight", "bits_per_quantized_weight", "tensor_bytes", *columns, "fork_rate"])
    for arm in (*result.arms, result.noise_floor):
        parts: list[object] = []
        for name in names:
            spread = arm.measures[name]
            parts += ["", "", "", ""] if spread is None else list(asdict(spread).values())
        name = arm.arm if arm is not result.noise_floor else "another seed"
        ledger = arm.ledger
        sizes = [ledger.bits_per_weight, ledger.bits_per_quantized_weight, ledger.tensor_bytes]
        writer.writerow([name, *sizes, *parts, arm.fork_rate])
    return out.getvalue()


def _sample_all(engine: Engine, job: EvaluateJob, arm: Arm, shift: int) -> Generator[Progress, None, _Set]:
    """Progress per batch; returns the _Set."""
    from sdvq_core.diffusion.sampling import decode, sample_batch

    base = engine.base(job.model)
    unet = engine.unet(job.model, arm)
    samplings = _samplings(job, shift)
    size = _BATCH.get(base.source.tier, 1)
    latents: list[Tensor] = []
    images: list[Image.Image] = []
    start = time.monotonic()
    for first in range(0, len(samplings), size):
        for step in sample_batch(base, unet, samplings[first : first + size]):
            last = step.latents
        latents += list(last.split(1))
        images += decode(base, last)
        spent = time.monotonic() - start
        left = spent / len(images) * (len(samplings) - len(images))
        yield Progress(
            "sample", arm.word, len(images), len(samplings), f"{len(images)} of {len(samplings)} prompts", left
        )
    return _Set(latents, images, time.monotonic() - start)


def _samplings(job: EvaluateJob, shift: int) -> list[Sampling]:
    seed = job.sampling.seed + shift
    return [replace(job.sampling, prompt=prompt, seed=(seed + i) % 2**32) for i, prompt in enumerate(job.prompts)]


def _scores(engine: Engine, job: EvaluateJob, reference: _Set, found: _Set) -> list[Scores]:
    aligner = engine.aligner(engine.base(job.model).source.tier)
    aligned: Sequence[float | None] = [None] * len(job.prompts)
    if aligner is not None:
        aligned = aligner.score(found.images, job.prompts)
    pairs = zip(reference.latents, found.latents, reference.images, found.images, aligned, strict=True)
    return [
        Scores(relative_mse(z0, z), psnr(ground, image), ssim(ground, image), lpips(ground, image), alignment)
        for z0, z, ground, image, alignment in pairs
    ]


def _summary(arm: Arm, ledger: Ledger, scores: list[Scores], floor: list[Scores], seconds: float) -> ArmSummary:
    names = list(asdict(scores[0]))
    measures = {name: _spread([getattr(score, name) for score in scores]) for name in names}
    far = [(one.psnr or 0) < (seed.psnr or 0) + _HALF_WAY_DB for one, seed in zip(scores, floor, strict=True)]
    return ArmSummary(arm.word, arm.label, ledger, measures, sum(far) / len(far), seconds)


def _spread(values: Sequence[float | None]) -> Spread | None:
    """None unless every value is a finite number: identical images have no PSNR."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if len(numbers) < len(values):
        return None
    low, high = bootstrap_interval(numbers)
    return Spread(statistics.fmean(numbers), statistics.median(numbers), low, high)
