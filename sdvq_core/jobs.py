"""Jobs in, events out: the frozen records that the Workbench speaks with the command line and the page.

A job validates itself (widgets and an API do not), an event says one thing that happened, a result is final.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdvq_core.errors import ConfigError
from sdvq_core.records import Footprint, Ledger, Report, TextReport

WAIT = "wait"  # the stage of a job whose work another process does
FETCHED = ("fetch", "download")  # work that waits for the network and computes nothing
MAX_STEPS, MAX_GUIDANCE, MAX_SEED, MAX_ARMS = 150, 30.0, 2**32 - 1, 8


@dataclass(frozen=True)
class Sampling:
    """What makes an image: the same sampling on the same weights gives the same image.

    steps: denoising steps. guidance: classifier-free guidance scale; 1 or less samples without the unconditional half.
    """

    prompt: str
    seed: int = 0
    steps: int = 20
    guidance: float = 4.0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ConfigError(f"the prompt must be text, got {self.prompt!r}")
        whole("seed", self.seed, 0, MAX_SEED)
        whole("steps", self.steps, 1, MAX_STEPS)
        if isinstance(self.guidance, bool) or not isinstance(self.guidance, int | float):
            raise ConfigError(f"guidance must be a number from 0 to {MAX_GUIDANCE:g}, got {self.guidance!r}")
        if not (math.isfinite(self.guidance) and 0 <= self.guidance <= MAX_GUIDANCE):
            raise ConfigError(f"guidance must be from 0 to {MAX_GUIDANCE:g}, got {self.guidance}")


@dataclass(frozen=True)
class CompareJob:
    """Same prompt, same seed, several arms; the first arm is the reference of every measure.

    live: whether arms of a large model that are not made yet may be compressed for it.
    """

    model: str
    arms: tuple[str, ...]
    sampling: Sampling
    live: bool = True

    def __post_init__(self) -> None:
        if not 1 <= len(self.arms) <= MAX_ARMS:
            raise ConfigError(f"compare takes 1 to {MAX_ARMS} arms, got {len(self.arms)}")


@dataclass(frozen=True)
class Progress:
    """Work done so far: `done` of `total` units; seconds_left is None until there is something to judge it by.

    stage: "load", "download", "calibrate", "compress", "allocate", "distil", "sample", "measure",
    "export" or "wait".
    text: one short line for people, such as the name of a layer.
    """

    stage: str
    arm: str
    done: int
    total: int
    text: str = ""
    seconds_left: float | None = None


@dataclass(frozen=True, eq=False)
class Preview:
    """How an arm's image looks after `step` of `steps`."""

    arm: str
    step: int
    steps: int
    image: Image.Image


@dataclass(frozen=True)
class Notice:
    """Something the user should know: a prompt that was cut, a measure that cannot be had."""

    text: str


@dataclass(frozen=True)
class Scores:
    """Against the reference arm; None where it does not apply or cannot be had.

    latent_mse: |z - z0|^2 / |z0|^2 of the final latents. psnr: dB (inf for identical images). ssim: 0..1.
    lpips: distance, needs its weights. alignment: cosine of prompt and image, by the judge.
    """

    latent_mse: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    alignment: float | None = None


@dataclass(frozen=True, eq=False)
class ArmResult:
    """One finished arm: its image as a lossless PNG file, what it cost, and how far it is from the first arm.

    arm: as the user wrote it. label: for people. seconds: sampling and decoding. compress_seconds: None for fp16;
    0 when it came from the cache. footprint: how the weights were kept in memory while the image was drawn. report: the
    compressed model's report card, None for fp16.
    """

    arm: str
    label: str
    image: Image.Image
    path: Path
    seconds: float
    ledger: Ledger
    scores: Scores
    footprint: Footprint
    report: Report | None = None
    cached: bool = False
    compress_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        scores = {name: _finite(value) for name, value in asdict(self.scores).items()}
        return {
            "arm": self.arm,
            "image": str(self.path),
            "seconds": self.seconds,
            "ledger": self.ledger.to_json(),
            **scores,
            "cached": self.cached,
            "compress_seconds": self.compress_seconds,
            "mode": self.footprint.mode,
            "memory": self.footprint.to_json(),
        }


@dataclass(frozen=True)
class Work:
    """One stage that an arm must go through before it can draw.

    stage: "fetch" (the model), "download" (the artifact), "calibrate", "allocate", "compress", "distil" or "quantize".
    count: of its layers, widths to try, layers or most updates; 0 where nobody knows. by: the library that does it, if
    it is not ours, or the repository that has it. seconds: what it will take on this machine, None where nothing of the
    kind was measured.
    """

    stage: str
    count: int
    by: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class Estimate:
    """The size of an arm before it is made. exact: False while the bits of its layers are yet to be allocated.

    work: what is left to do before it can draw; nothing for what is in the cache. device: which does it, GPU or CPU.
    """

    arm: str
    label: str
    ledger: Ledger
    exact: bool = True
    work: tuple[Work, ...] = ()
    device: str = "CPU"

    @property
    def seconds(self) -> float | None:
        """What all computing will take; None where that of a part is not known. Networks are not foretold."""
        parts = [stage.seconds for stage in self.work if stage.stage not in FETCHED]
        return None if None in parts else math.fsum(part for part in parts if part is not None)


@dataclass(frozen=True)
class ModelInfo:
    """A model that can be named. at_hand: it would load without network. tier: "nano" or "sdxl".

    licence: as its model card names it; empty where that is not known here.
    """

    name: str
    label: str
    tier: str
    at_hand: bool
    note: str
    steps: int
    guidance: float
    resolution: int
    licence: str = ""


@dataclass(frozen=True)
class Histogram:
    """Weights of one layer: `counts` of the original in bins between `edges`, and the same of the decoded weight."""

    edges: tuple[float, ...]
    original: tuple[int, ...]
    decoded: tuple[int, ...]


@dataclass(frozen=True)
class LayerDetail:
    """One layer under the magnifier.

    levels: values that a weight can take (scalar formats), or the entries' components (vector formats), sampled, in
    units of the weight. usage: per codebook, how often each entry is used, in descending order. perplexity: 2^entropy
    of it.
    """

    arm: str
    layer: str
    histogram: Histogram
    levels: tuple[float, ...]
    usage: tuple[tuple[int, ...], ...]
    perplexity: tuple[float, ...]
    facts: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class CompareResult:
    """The end of a comparison. dtype: fp16, bf16 or fp32. text: what compressing the text encoders did, if they are."""

    job: CompareJob
    arms: tuple[ArmResult, ...]
    device: str
    dtype: str = ""
    text: TextReport | None = None


CompareEvent = Progress | Preview | Notice | ArmResult | CompareResult


def whole(name: str, value: object, low: int, high: int) -> None:
    """ConfigError unless `value` is a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: the PSNR of identical images is written as null beside a latent_mse of 0."""
    return value if value is None or math.isfinite(value) else None
