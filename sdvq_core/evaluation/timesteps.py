"""Error by timestep: what the UNet does wrong at each step (teacher-forced), and what that adds up to (free-running).

forced = |e - e0|^2 / |e0|^2 with the guided outputs e of the arm and e0 of the reference, both on the reference's
latents; free = |z - z0|^2 / |z0|^2 with the latents z after the step, each model on its own way from the same noise.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdvq_core.diffusion.sampling import sample_batch
from sdvq_core.evaluation.samples import Bench, SampleSet, Subject, batch_name
from sdvq_core.jobs import Progress, Sampling
from sdvq_core.store.samples import content_key
from sdvq_core.summaries import StepErrors


class Replay(nn.Module):
    """Listens to `arm` and answers with what the reference said, so that the latents stay the reference's.

    outputs: the reference's, [N, S, B, C, h, w], halves unconditional first. errors: [N] per call so far.
    """

    def __init__(self, arm: nn.Module, outputs: Tensor, guidance: float) -> None:
        super().__init__()
        self.arm, self.outputs, self.guidance = arm, outputs, guidance
        self.errors: list[Tensor] = []
        self.times: list[float] = []

    def forward(self, sample: Tensor, timestep: Any, **conditions: Any) -> tuple[Tensor]:
        heard = self.arm(sample, timestep, **conditions)[0].float().cpu()
        told = self.outputs[:, len(self.errors)]  # [N, B, C, h, w]
        halves = heard.unflatten(0, (told.shape[1], -1)).transpose(0, 1)  # [N, B, C, h, w]
        self.errors.append(relative_errors(self._guided(told), self._guided(halves)))
        self.times.append(float(timestep))
        return (told.transpose(0, 1).flatten(0, 1).to(sample),)  # [B * N, C, h, w]

    def _guided(self, halves: Tensor) -> Tensor:
        """[N, B, C, h, w] -> [N, C, h, w], as the sampler combines them."""
        if halves.shape[1] == 1:
            return halves[:, 0]
        free, told = halves.unbind(1)
        return free + self.guidance * (told - free)


def step_errors(
    bench: Bench, subject: Subject, reference: Subject, truth: SampleSet, found: SampleSet
) -> Generator[Progress, None, StepErrors]:
    """Progress per batch; returns the errors of `found` against `truth`, which has the reference's outputs."""
    rows, times, done = [], torch.empty(0), 0
    for batch, traced in bench.batches(bench.job.samplings):
        if not traced:
            break
        outputs = truth.outputs[done : done + len(batch)]
        tensors, took = _forced(bench, subject, reference, batch, outputs)
        rows.append(tensors["errors"])
        times, done = tensors["times"], done + len(batch)
        yield bench.meter.advance(subject.word, len(batch), took, f"{done} of {bench.traced} images, step by step")
    free = relative_errors(truth.steps.flatten(0, 1), found.steps.flatten(0, 1)).unflatten(0, truth.steps.shape[:2])
    return StepErrors(done, tuple(times.tolist()), _medians(torch.cat(rows)), _medians(free))


def relative_errors(reference: Tensor, value: Tensor) -> Tensor:
    """[N] relative squared errors of value [N, ...]; 0 / 0 is 0."""
    first = reference.double().flatten(1)
    error = (value.double().flatten(1) - first).square().sum(1)
    return torch.where(error == 0, error, error / first.square().sum(1))


def _forced(
    bench: Bench, subject: Subject, reference: Subject, batch: Sequence[Sampling], outputs: Tensor
) -> tuple[dict[str, Tensor], float | None]:
    """({errors [N, S], times [S]}, seconds) of one batch; None seconds where it was on disk."""
    folder, name = subject.folder(bench), content_key("forced", batch_name(batch), reference.content)
    kept = bench.store.get(folder, name)
    if kept is not None:
        return kept.tensors, None
    replay = Replay(subject.unet(), outputs, batch[0].guidance)
    start = time.monotonic()
    for _ in sample_batch(bench.engine.base(bench.job.model), replay, batch):
        pass
    tensors = {"errors": torch.stack(replay.errors, 1), "times": torch.tensor(replay.times)}
    bench.store.put(folder, name, tensors, time.monotonic() - start)
    return tensors, time.monotonic() - start


def _medians(errors: Tensor) -> tuple[float, ...]:
    """[N, S] -> S medians; of an even number of images, the mean of the middle two."""
    return tuple(errors.quantile(0.5, dim=0).tolist())
