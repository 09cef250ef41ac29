"""Same prompt, same seed, several arms in turn: progress and previews as they come, then one result per arm."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdvq_core.arms import Arm, parse_arm
from sdvq_core.diffusion.sources import find_source
from sdvq_core.engine import Engine
from sdvq_core.errors import ConfigError
from sdvq_core.jobs import (
    ArmResult,
    CompareEvent,
    CompareJob,
    CompareResult,
    Notice,
    Preview,
    Progress,
    Scores,
)
from sdvq_core.judges import find_judge
from sdvq_core.production import versions
from sdvq_core.rates import drawing
from sdvq_core.records import Footprint
from sdvq_core.store.images import write_png

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_PREVIEWS = 5  # per image
_REMEMBERED = 64  # finished samples kept in memory


@dataclass(frozen=True, eq=False)
class _Sample:
    latents: Tensor
    image: Image.Image
    seconds: float
    footprint: Footprint


class Comparer:
    """Runs comparisons with the models of `engine`; finished samples are remembered."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._samples: OrderedDict[tuple[object, ...], _Sample] = OrderedDict()

    def compare(self, job: CompareJob) -> Iterator[CompareEvent]:
        """Every arm in turn; measures are against the first."""
        from sdvq_core.diffusion.precision import dtype_name
        from sdvq_core.diffusion.sampling import prompt_notice

        arms = [parse_arm(word) for word in job.arms]
        for arm in arms:
            self.engine.shelf.check(job.model, arm)
            self._check_made(job, arm)
        yield Progress("load", "", 0, 1, f"loading {job.model}")
        yield from self.engine.prepare(job.model)
        base = self.engine.base(job.model)
        cut = prompt_notice(base, job.sampling.prompt)
        yield from map(Notice, [*([cut] if cut else []), *base.told()])
        results: list[ArmResult] = []
        reference: _Sample | None = None
        for arm in arms:
            for event in self._arm(job, arm, reference):
                yield event
                if isinstance(event, ArmResult):
                    results.append(event)
            reference = reference or self._remembered(job, arms[0])
        yield CompareResult(job, tuple(results), self.engine.device_name, dtype_name(base.dtype), self.engine.text)

    def _check_made(self, job: CompareJob, arm: Arm) -> None:
        """ConfigError for work that the job does not ask for."""
        if job.live or find_source(job.model).tier == "nano" or self.engine.shelf.made(job.model, arm):
            return
        raise ConfigError(
            f"{arm.word} is not made for {job.model} yet; ask for it to be compressed now, or choose one that is ready"
        )

    def _arm(self, job: CompareJob, arm: Arm, reference: _Sample | None) -> Iterator[CompareEvent]:
        start = time.monotonic()
        cached = True
        for event in self.engine.ready(job.model, arm):
            cached = False
            yield event
        seconds = time.monotonic() - start
        yield from self._sample(job, arm)
        sample = self._remembered(job, arm)
        path = write_png(self.engine.data / "images", sample.image, self._receipt(job, arm))
        report = self.engine.report(job.model, arm)
        yield ArmResult(
            arm.word,
            arm.label,
            sample.image,
            path,
            sample.seconds,
            self.engine.ledger(job.model, arm) if report is None else report.ledger,
            _scores(job, sample, reference),
            sample.footprint,
            report,
            cached and report is not None,
            None if report is None else 0.0 if cached else seconds,
        )

    def _sample(self, job: CompareJob, arm: Arm) -> Iterator[Progress | Preview | Notice]:
        from sdvq_core.diffusion.sampling import decode, preview, sample

        if self._key(job, arm) in self._samples:
            return
        base, unet, steps = self.engine.base(job.model), self.engine.unet(job.model, arm), job.sampling.steps
        every = max(1, steps // _PREVIEWS)
        seconds, clock = 0.0, time.monotonic()
        for step in sample(base, unet, job.sampling):
            seconds += time.monotonic() - clock
            left = seconds / step.step * (steps - step.step)
            yield Progress("sample", arm.word, step.step, step.steps, f"step {step.step} of {step.steps}", left)
            if step.step % every == 0 and step.step < step.steps:
                yield Preview(arm.word, step.step, step.steps, preview(base, step.denoised))
            clock = time.monotonic()
        image = decode(base, step.latents)[0]
        seconds += time.monotonic() - clock
        yield from map(Notice, base.told())
        what = drawing(base.source, job.sampling.guidance)
        self.engine.rates.note("sample", what, steps, seconds)
        self._samples[self._key(job, arm)] = _Sample(
            step.latents, image, seconds, self.engine.footprint(job.model, arm)
        )
        while len(self._samples) > _REMEMBERED:
            self._samples.popitem(last=False)

    def _receipt(self, job: CompareJob, arm: Arm) -> dict[str, str]:
        sampling = job.sampling
        return {
            "prompt": sampling.prompt,
            "seed": str(sampling.seed),
            "steps": str(sampling.steps),
            "guidance": f"{sampling.guidance:g}",
            "model": job.model,
            "fingerprint": self.engine.shelf.fingerprint(job.model),
            "arm": arm.word,
            "device": self.engine.device_name,
            "changes": ", ".join(self._changes()),
            **versions(),
        }

    def _key(self, job: CompareJob, arm: Arm) -> tuple[object, ...]:
        """All that an image depends on: two models may share their UNet, and differ in scheduler or VAE."""
        from sdvq_core.diffusion.fingerprint import surroundings

        folder, around = self.engine.shelf.cached(job.model, arm), surroundings(find_source(job.model))
        drawn_by = str(folder or arm.peer or "fp16")
        return self.engine.shelf.fingerprint(job.model), around, drawn_by, job.sampling, self._changes()

    def _changes(self) -> tuple[str, ...]:
        from sdvq_core.diffusion.base_model import pick_device

        return self.engine.setup.changes(pick_device(self.engine.device))

    def _remembered(self, job: CompareJob, arm: Arm) -> _Sample:
        return self._samples[self._key(job, arm)]


def _scores(job: CompareJob, sample: _Sample, reference: _Sample | None) -> Scores:
    from sdvq_core.metrics.images import lpips, psnr, ssim
    from sdvq_core.metrics.weights import relative_mse

    ground, judge = reference or sample, find_judge(find_source(job.model).tier)
    return Scores(
        relative_mse(ground.latents, sample.latents),
        psnr(ground.image, sample.image),
        ssim(ground.image, sample.image),
        lpips(ground.image, sample.image),
        None if judge is None else judge.score([sample.image], [job.sampling.prompt])[0],
    )
