"""The samples of one subject (an arm, or the reference in another precision), drawn in batches that are kept on disk.

N images in the order of the job's samplings, the first P of them traced; S steps, B = 2 halves with guidance, else 1;
C latent channels of h x w. A killed evaluation loses at most the batch that it was drawing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sdvq_core.calibration import Trajectory
from sdvq_core.diffusion.sampling import decode, sample_batch
from sdvq_core.diffusion.sources import Source
from sdvq_core.distillation import Lessons, record_lessons
from sdvq_core.engine import Engine
from sdvq_core.evaluation.meter import Meter
from sdvq_core.jobs import Progress, Sampling
from sdvq_core.nn import mode_of
from sdvq_core.store.samples import Kept, SampleStore, content_key
from sdvq_core.summaries import EvaluateJob

log = logging.getLogger(__name__)

TRACED = {"nano": 32}  # prompts whose steps are looked at, by tier; a trace of SDXL is 15 MB
TRACED_ELSEWHERE = 8


@dataclass(frozen=True, eq=False)
class Bench:
    """What an evaluation works with. source: the model; context: what samples depend on besides UNet and sampling."""

    engine: Engine
    job: EvaluateJob
    source: Source
    context: tuple[str, ...]
    store: SampleStore
    meter: Meter

    @property
    def traced(self) -> int:
        """How many of the first prompts are looked at step by step."""
        return min(len(self.job.prompts), TRACED.get(self.source.tier, TRACED_ELSEWHERE))

    def batches(self, samplings: Sequence[Sampling]) -> Iterator[tuple[tuple[Sampling, ...], bool]]:
        """(samplings, whether they are traced) of each batch."""
        size = self.source.batch
        for traced, part in ((True, samplings[: self.traced]), (False, samplings[self.traced :])):
            for first in range(0, len(part), size):
                yield tuple(part[first : first + size]), traced


@dataclass(frozen=True, eq=False)
class Subject:
    """Something that draws. content: which weights, in which arithmetic; unet: loads it, when it is needed."""

    word: str
    content: str
    unet: Callable[[], nn.Module]

    def folder(self, bench: Bench) -> str:
        """Where its samples are kept."""
        return content_key(*bench.context, self.content)


@dataclass(frozen=True, eq=False)
class SampleSet:
    """All samples of one subject. latents [N, C, h, w]. seconds: sampling and decoding.

    steps: latents after each step [P, S, C, h, w]; outputs: of the UNet [P, S, B, C, h, w]; empty where not asked for.
    mode: how weights were kept in memory while these were drawn; None where that was not noted.
    """

    latents: Tensor
    images: list[Image.Image]
    steps: Tensor
    outputs: Tensor
    seconds: float
    mode: str | None = None


def draw(
    bench: Bench, subject: Subject, samplings: Sequence[Sampling], traces: Sequence[str] = ("steps",)
) -> Generator[Progress, None, SampleSet]:
    """Progress first and per batch; returns the set. traces: of "steps" and "outputs", what the first P images keep."""
    parts, seconds, done, modes = [], 0.0, 0, set[str | None]()
    yield bench.meter.advance(subject.word, 0, None, f"0 of {len(samplings)} images")
    for batch, traced in bench.batches(samplings):
        wanted = {"latents", "images", *(traces if traced else ())}
        found, fresh = keep_batch(bench, subject, batch, wanted)
        parts.append(found.tensors)
        modes.add(found.mode)
        seconds, done = seconds + found.seconds, done + len(batch)
        text = f"{done} of {len(samplings)} images"
        yield bench.meter.advance(subject.word, len(batch), found.seconds if fresh else None, text)
    pixels = torch.cat([part["images"] for part in parts])  # [N, H, W, 3]
    images = [Image.fromarray(picture.numpy()) for picture in pixels]
    latents, steps, outputs = (_joined(parts, name) for name in ("latents", "steps", "outputs"))
    return SampleSet(latents, images, steps, outputs, seconds, _named(modes))


def batch_name(batch: Sequence[Sampling]) -> str:
    """Name of a batch's file: a digest of its samplings."""
    return content_key([asdict(sampling) for sampling in batch])


def keep_batch(bench: Bench, subject: Subject, batch: tuple[Sampling, ...], wanted: set[str]) -> tuple[Kept, bool]:
    """(samples, whether drawn just now) of one batch, from the disk where it has all that is wanted."""
    folder, name = subject.folder(bench), batch_name(batch)
    found = bench.store.get(folder, name)
    if found is not None and wanted <= set(found.tensors):
        return found._replace(tensors={part: found.tensors[part] for part in wanted}), False
    unet = subject.unet()
    start = time.monotonic()
    tensors = _drawn(bench, unet, batch, wanted)
    for notice in bench.engine.base(bench.job.model).told():
        log.warning(notice)
    drawn = Kept(tensors, time.monotonic() - start, mode_of(unet))
    bench.store.put(folder, name, *drawn)
    return drawn, True


@torch.no_grad()
def _drawn(bench: Bench, unet: nn.Module, batch: tuple[Sampling, ...], wanted: set[str]) -> dict[str, Tensor]:
    base = bench.engine.base(bench.job.model)
    after: list[Tensor] = []

    def run() -> Iterator[object]:
        for step in sample_batch(base, unet, batch):
            after.append(step.latents.cpu())
            yield step

    found: dict[str, Tensor] = {}
    if "outputs" in wanted:
        halves = 2 if batch[0].guidance > 1 else 1
        *_, lessons = record_lessons(unet, [Trajectory(run, batch[0].steps)], halves)
        assert isinstance(lessons, Lessons)
        found["outputs"] = lessons.outputs  # [N, S, B, C, h, w]
    else:
        for _ in run():
            pass
    if "steps" in wanted:
        found["steps"] = torch.stack(after, 1)  # [N, S, C, h, w]
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in decode(base, after[-1])])  # [N, H, W, 3]
    return {**found, "latents": after[-1], "images": torch.from_numpy(pixels)}


def _named(modes: Collection[str | None]) -> str | None:
    """One word for the modes of all batches; None if one of them was not noted."""
    known = [mode for mode in modes if mode is not None]
    return " and ".join(sorted(known)) if len(known) == len(modes) else None


def _joined(parts: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    found = [part[name] for part in parts if name in part]
    return torch.cat(found) if found else torch.empty(0)
