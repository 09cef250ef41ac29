"""From samples to numbers: every image against the reference's of the same prompt and seed, then over prompts.

Values are averaged over the seeds of a prompt first; intervals resample prompts. Image i shows prompt i mod n.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from sdvq_core.evaluation.samples import SampleSet
from sdvq_core.jobs import Scores
from sdvq_core.metrics.alignment import BATCH, Aligner
from sdvq_core.metrics.distributions import cmmd, frechet
from sdvq_core.metrics.images import lpips, psnr, ssim
from sdvq_core.metrics.intervals import bootstrap_interval, median_interval
from sdvq_core.metrics.weights import relative_mse
from sdvq_core.records import Ledger
from sdvq_core.summaries import ArmSummary, EvaluateJob, ImagePair, Spread, StepErrors

HALF_WAY_DB = 20 * math.log10(2)  # half the RMS distance of another seed, in dB of PSNR


@dataclass(frozen=True, eq=False)
class Judge:
    """Scores sets against the reference's. floor: the PSNR of another seed, image by image."""

    job: EvaluateJob
    aligner: Aligner | None
    reference: SampleSet
    floor: tuple[float, ...]
    features: Tensor | None

    @classmethod
    def of(cls, job: EvaluateJob, aligner: Aligner | None, reference: SampleSet, other_seed: SampleSet) -> Judge:
        """The judge of an evaluation, ready."""
        pairs = zip(reference.images, other_seed.images, strict=True)
        floor = tuple(psnr(ground, image) for ground, image in pairs)
        return cls(job, aligner, reference, floor, _features(aligner, reference))

    def summary(
        self, word: str, label: str, ledger: Ledger, found: SampleSet, timesteps: StepErrors | None = None
    ) -> ArmSummary:
        """All that is known of one arm's set."""
        features = _features(self.aligner, found)
        scores = self._scores(found, features)
        measures = {name: self._spread([getattr(score, name) for score in scores]) for name in asdict(scores[0])}
        decibels = [score.psnr for score in scores if score.psnr is not None]
        far = [value < other + HALF_WAY_DB for value, other in zip(decibels, self.floor, strict=True)]
        return ArmSummary(
            word,
            label,
            ledger,
            measures,
            sum(far) / len(far),
            found.seconds,
            median_interval(self._by_prompt([score.latent_mse or 0.0 for score in scores])),
            None if features is None or self.features is None else frechet(self.features, features),
            None if features is None or self.features is None else cmmd(self.features, features),
            timesteps,
            self._pairs(found, decibels),
            found.mode,
        )

    def _scores(self, found: SampleSet, features: Tensor | None) -> list[Scores]:
        aligned: Sequence[float | None] = [None] * len(found.images)
        if self.aligner is not None and features is not None:
            texts = self.aligner.embed_texts(self.job.prompts).repeat(self.job.seeds, 1)  # [N, D]
            aligned = (features * texts).sum(-1).tolist()
        ground = self.reference
        pairs = zip(ground.latents, found.latents, ground.images, found.images, aligned, strict=True)
        return [
            Scores(relative_mse(z0, z), psnr(first, second), ssim(first, second), lpips(first, second), alignment)
            for z0, z, first, second, alignment in pairs
        ]

    def _by_prompt(self, values: Sequence[float]) -> list[float]:
        """Means over the seeds of each prompt."""
        n = len(self.job.prompts)
        return [statistics.fmean(values[prompt::n]) for prompt in range(n)]

    def _spread(self, values: Sequence[float | None]) -> Spread | None:
        """None unless every value is a finite number: identical images have no PSNR."""
        numbers = [value for value in values if value is not None and math.isfinite(value)]
        if len(numbers) < len(values):
            return None
        prompts = self._by_prompt(numbers)
        low, high = bootstrap_interval(prompts)
        return Spread(statistics.fmean(prompts), statistics.median(prompts), low, high)

    def _pairs(self, found: SampleSet, decibels: Sequence[float]) -> tuple[ImagePair, ...]:
        """The worst and the median image; none where all are identical, one where there is one."""
        order = sorted(range(len(decibels)), key=decibels.__getitem__)
        if math.isinf(decibels[order[0]]):
            return ()
        chosen = {order[(len(order) - 1) // 2]: "median", order[0]: "worst"}
        return tuple(self._pair(found, index, rank, decibels[index]) for index, rank in reversed(chosen.items()))

    def _pair(self, found: SampleSet, index: int, rank: str, decibels: float) -> ImagePair:
        sampling = self.job.samplings[index]
        images = self.reference.images[index], found.images[index]
        return ImagePair(rank, sampling.prompt, sampling.seed, decibels, *images)


def _features(aligner: Aligner | None, found: SampleSet) -> Tensor | None:
    """Unit embeddings of the images [N, D]; None without a judge."""
    if aligner is None:
        return None
    starts = range(0, len(found.images), BATCH)
    return torch.cat([aligner.embed_images(found.images[at : at + BATCH]) for at in starts])
