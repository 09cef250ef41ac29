"""An evaluation as frozen records: its job, what it found out about each arm, its result, to results.json and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from PIL import Image

from sdvq_core.errors import ConfigError, StoreError
from sdvq_core.jobs import MAX_SEED, Sampling, whole
from sdvq_core.records import BaseInfo, Ledger

MAX_SEEDS = 64  # per prompt
RESULTS_VERSION = 1
MEASURES = ("latent_mse", "psnr", "ssim", "lpips", "alignment")  # the fields of `jobs.Scores`


@dataclass(frozen=True)
class EvaluateJob:
    """Prompts x seeds, every arm against the first; prompt i of n is sampled with seed + i, then seed + n + i, ..."""

    model: str
    arms: tuple[str, ...]
    prompts: tuple[str, ...]
    sampling: Sampling
    seeds: int = 1

    def __post_init__(self) -> None:
        if not 1 <= len(self.arms) <= 32:
            raise ConfigError(f"evaluate takes 1 to 32 arms, got {len(self.arms)}")
        if not self.prompts:
            raise ConfigError("evaluate needs at least one prompt, one per line")
        whole("seeds", self.seeds, 1, MAX_SEEDS)

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        """What is drawn with every arm: all prompts with their first seed, then with their second ..."""
        n, seed = len(self.prompts), self.sampling.seed
        return tuple(
            replace(self.sampling, prompt=self.prompts[i % n], seed=(seed + i) % (MAX_SEED + 1))
            for i in range(n * self.seeds)
        )


@dataclass(frozen=True)
class Spread:
    """A measure over prompts: mean with its 95 % bootstrap interval, and median."""

    mean: float
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class StepErrors:
    """Error at each denoising step: medians over `n` prompts. times: the scheduler's, from noise to image.

    forced: |e - e0|^2 / |e0|^2 of the guided UNet output e, both models on the reference's latents.
    free: |z - z0|^2 / |z0|^2 of the latents z after the step, each model on its own way.
    """

    n: int
    times: tuple[float, ...]
    forced: tuple[float, ...]
    free: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {"n": self.n, "times": self.times, "teacher_forced": self.forced, "free_running": self.free}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepErrors:
        """What `to_json` wrote."""
        lists = (data["times"], data["teacher_forced"], data["free_running"])
        times, forced, free = (tuple(float(value) for value in values) for values in lists)
        return cls(int(data["n"]), times, forced, free)


@dataclass(frozen=True, eq=False)
class ImagePair:
    """One prompt and seed, drawn by the reference and by an arm. rank: "worst" or "median" by PSNR (dB)."""

    rank: str
    prompt: str
    seed: int
    psnr: float
    reference: Image.Image
    image: Image.Image

    def to_json(self) -> dict[str, Any]:
        psnr = self.psnr if math.isfinite(self.psnr) else None
        return {"rank": self.rank, "prompt": self.prompt, "seed": self.seed, "psnr": psnr}


@dataclass(frozen=True, eq=False)
class ArmSummary:
    """One arm over all prompts. measures: by name of `Scores`, None where it cannot be had.

    fork_rate: share of images whose RMS distance to the reference is more than half of what another seed gives.
    latent_interval: 95 % interval of the median latent error. frechet, cmmd: distances of the arm's set of images to
    the reference's on the judge's embeddings. timesteps, pairs: empty for the reference itself. mode: how the weights
    were kept in memory while its images were drawn, which `seconds` depends on and nothing else; None if not noted.
    """

    arm: str
    label: str
    ledger: Ledger
    measures: Mapping[str, Spread | None]
    fork_rate: float | None
    seconds: float
    latent_interval: tuple[float, float] | None = None
    frechet: float | None = None
    cmmd: float | None = None
    timesteps: StepErrors | None = None
    pairs: tuple[ImagePair, ...] = ()
    mode: str | None = None

    def to_json(self) -> dict[str, Any]:
        interval = self.latent_interval
        return {
            "arm": self.arm,
            "label": self.label,
            "ledger": self.ledger.to_json(),
            **{name: None if spread is None else asdict(spread) for name, spread in self.measures.items()},
            "fork_rate": self.fork_rate,
            "seconds": self.seconds,
            "latent_mse_median": None if interval is None else dict(zip(("low", "high"), interval, strict=True)),
            "frechet": self.frechet,
            "cmmd": self.cmmd,
            "timesteps": None if self.timesteps is None else self.timesteps.to_json(),
            "pairs": [pair.to_json() for pair in self.pairs],
            "mode": self.mode,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArmSummary:
        """An arm of a results.json, without its pairs: images are not in there. Keys that came later may be missing."""
        try:
            interval, steps = data.get("latent_mse_median"), data.get("timesteps")
            ledger = Ledger.from_json(data["ledger"])
            ledger.to_json()  # sizes that cannot be told are a damaged file
            return cls(
                str(data["arm"]),
                str(data.get("label", data["arm"])),
                ledger,
                {name: _spread(data[name]) for name in MEASURES},
                _number(data["fork_rate"]),
                float(data["seconds"]),
                None if interval is None else (float(interval["low"]), float(interval["high"])),
                _number(data.get("frechet")),
                _number(data.get("cmmd")),
                None if steps is None else StepErrors.from_json(steps),
                mode=None if data.get("mode") is None else str(data["mode"]),
            )
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise StoreError(f"this is not an arm of a results.json ({error!r}); run evaluate again") from None


@dataclass(frozen=True)
class EvaluateResult:
    """The end of an evaluation.

    noise_floor: the same measures for the reference at another seed. precision_floor: for the reference in the other
    precision, None where the machine has no room for a second copy. base: whose UNet was measured; date: YYYY-MM-DD.
    """

    job: EvaluateJob
    arms: tuple[ArmSummary, ...]
    noise_floor: ArmSummary
    device: str
    precision_floor: ArmSummary | None = None
    base: BaseInfo | None = None
    date: str | None = None

    @property
    def floors(self) -> tuple[ArmSummary, ...]:
        """The noise floors that there are."""
        return (self.noise_floor,) if self.precision_floor is None else (self.noise_floor, self.precision_floor)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": RESULTS_VERSION,
            "base": None if self.base is None else asdict(self.base),
            "date": self.date,
            "n": len(self.job.prompts),
            "seeds": self.job.seeds,
            "seed": self.job.sampling.seed,
            "model": self.job.model,
            "steps": self.job.sampling.steps,
            "guidance": self.job.sampling.guidance,
            "device": self.device,
            "arms": [arm.to_json() for arm in self.arms],
            "other_seed": self.noise_floor.to_json(),
            "fp32": None if self.precision_floor is None else self.precision_floor.to_json(),
            "prompts": list(self.job.prompts),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvaluateResult:
        """What `to_json` wrote, without image pairs; StoreError for everything else."""
        try:
            if data["version"] != RESULTS_VERSION:
                raise StoreError(f"this results.json is of version {data['version']!r}, not {RESULTS_VERSION}")
            arms = tuple(ArmSummary.from_json(arm) for arm in data["arms"])
            other_seed, precision = ArmSummary.from_json(data["other_seed"]), data["fp32"]
            return cls(
                _job_of(data, arms),
                arms,
                other_seed,
                str(data["device"]),
                None if precision is None else ArmSummary.from_json(precision),
                None if data["base"] is None else BaseInfo(**data["base"]),
                None if data["date"] is None else str(data["date"]),
            )
        except (LookupError, TypeError, ValueError, ConfigError) as error:
            raise StoreError(f"this is not a results.json ({error!r}); run evaluate again") from None


def _job_of(data: Mapping[str, Any], arms: Sequence[ArmSummary]) -> EvaluateJob:
    sampling = Sampling("", data["seed"], data["steps"], data["guidance"])
    words, prompts = tuple(arm.arm for arm in arms), tuple(map(str, data["prompts"]))
    return EvaluateJob(str(data["model"]), words, prompts, sampling, data["seeds"])


def _spread(data: Mapping[str, Any] | None) -> Spread | None:
    return None if data is None else Spread(*(float(data[part]) for part in ("mean", "median", "low", "high")))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
