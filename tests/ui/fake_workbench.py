"""A workbench without a model: same signatures, small synthetic pictures, made-up but consistent numbers.

``python tests/ui/fake_workbench.py [PORT]`` opens the page on it.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fake_results import fake_results
from PIL import Image, ImageDraw, ImageFilter

from sdvq_core.errors import ConfigError
from sdvq_core.jobs import (
    ArmResult,
    CompareEvent,
    CompareJob,
    CompareResult,
    Estimate,
    Histogram,
    LayerDetail,
    ModelInfo,
    Notice,
    Preview,
    Progress,
    Scores,
    Work,
)
from sdvq_core.peers import PeerInfo
from sdvq_core.quantizers.base import QuantizerInfo, catalogue, parse
from sdvq_core.records import BaseInfo, Footprint, LayerRecord, Ledger, Report
from sdvq_core.results import Results

WEIGHTS = 12_000_000
CURVES = {"@preview": ((0, 0.02), (50, 0.012), (100, 0.013))}  # of arms that were distilled


@dataclass(frozen=True)
class FakeRecipe:
    name: str = "preview"
    label: str = "Preview, 3 bits"
    summary: str = "Attention at 3 bits, convolutions at 4."
    arm: str = "@preview"


class FakeWorkbench:
    """pause: seconds between events, so that a person can watch."""

    def __init__(self, folder: Path | None = None, pause: float = 0.0, side: int = 64) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix="sdvq-fake-"))
        self.pause, self.side = pause, side
        self.made: set[str] = set()
        self.closed: list[str] = []

    def models(self) -> list[ModelInfo]:
        nano = ModelInfo("nano", "nano (bundled)", "nano", True, "", 20, 4.0, self.side)
        return [nano, ModelInfo("sdxl-turbo", "SDXL-Turbo", "sdxl", False, "needs a GPU", 4, 0.0, 512)]

    def quantizers(self) -> list[QuantizerInfo]:
        return catalogue()

    def peers(self) -> list[PeerInfo]:
        here = PeerInfo("lib.here", "Here", "A library.", (), (4,), installed=True, needs="here")
        return [here, replace(here, name="lib.away", label="Away", installed=False)]

    def recipes(self) -> list[FakeRecipe]:
        return [FakeRecipe()]

    def prompts(self) -> list[str]:
        return ["a frog on a blue background", "a smiling cat", "a red car left of a tree on a yellow background"]

    def about(self) -> dict[str, str]:
        return {
            "sdvq": "0.1.0",
            "torch": "2.13.0",
            "device": "cpu, 2 threads",
            "tier": "nano",
            "data": str(self.folder),
        }

    def estimate(self, model: str, arm: str) -> Estimate:
        work = () if arm == "fp16" or arm in self.made else (Work("compress", 60),)
        if arm.startswith("@") and work:
            work = (Work("calibrate", 60), *work, Work("distil", 300))
        return Estimate(arm, self._label(arm), self._ledger(arm), work=work)

    asks_first = False

    def job_seconds(self, *jobs: CompareJob) -> float:
        return 10.0 * sum(len(job.arms) for job in jobs)

    def compare(self, job: CompareJob) -> Iterator[CompareEvent]:
        try:
            yield from self._compare(job)
        except GeneratorExit:
            self.closed.append(job.model)
            raise

    def report(self, model: str, arm: str) -> Report | None:
        return self._report(arm) if arm in self.made else None

    def results(self, model: str) -> Results | None:
        return fake_results(self._ledger) if model == "nano" else None

    def evaluate_command(self, model: str, arms: Sequence[str]) -> str:
        return f"python -m sdvq_core evaluate {model} {' '.join(f'--arm {arm}' for arm in arms)} --n 128"

    def layer_detail(self, model: str, arm: str, layer: str) -> LayerDetail:
        edges = tuple(-0.3 + 0.6 * step / 60 for step in range(61))
        bell = tuple(round(9000 * math.exp(-(((low + 0.005) / 0.09) ** 2))) for low in edges[:-1])
        coarse = tuple(4 * count if index % 4 == 2 else 0 for index, count in enumerate(bell))
        usage = tuple(tuple(sorted((int(900 / (rank + 2)) for rank in range(256)), reverse=True)) for _ in range(3))
        levels = edges[2::4]
        vq = not arm.startswith("rtn")
        facts = {"scale": "per row", "codes": "3 × 8 bits per 8 weights" if vq else "4 bits"}
        return LayerDetail(
            arm,
            layer,
            Histogram(edges, bell, coarse),
            levels,
            usage if vq else (),
            (221.0, 190.5, 140.2) if vq else (),
            facts,
        )

    def _compare(self, job: CompareJob) -> Iterator[CompareEvent]:
        results = []
        yield Progress("load", "", 0, 1, "nano")
        for arm in job.arms:
            if arm == "boom":
                raise ConfigError("unknown quantizer 'boom'; choose one of kmeans, nf4, rtn, rvq")
            fresh = arm != "fp16" and arm not in self.made
            for layer in range(1, 21 if fresh else 0):
                time.sleep(self.pause)
                yield Progress("compress", arm, layer, 20, f"down_blocks.1.layer.{layer}", self.pause * (20 - layer))
            self.made.add(arm)
            picture = self._picture(arm, job.sampling.seed)
            for step in range(1, job.sampling.steps + 1):
                time.sleep(self.pause)
                yield Progress("sample", arm, step, job.sampling.steps)
                blur = picture.filter(ImageFilter.GaussianBlur((job.sampling.steps - step) / 3))
                yield Preview(arm, step, job.sampling.steps, blur)
            result = self._result(job, arm, picture, fresh)
            results.append(result)
            yield result
        if len(job.sampling.prompt) > 300:
            yield Notice("The prompt is longer than the model reads; the rest was cut.")
        yield CompareResult(job, tuple(results), "cpu")

    def _result(self, job: CompareJob, arm: str, picture: Image.Image, fresh: bool) -> ArmResult:
        path = self.folder / f"{abs(hash((arm, job.sampling)))}.png"
        picture.save(path)
        first = arm == job.arms[0]
        scores = Scores(0.0, math.inf, 1.0, None, 0.31) if first else Scores(0.034, 24.31, 0.912, None, 0.3)
        report = None if arm == "fp16" else self._report(arm)
        return ArmResult(
            arm, self._label(arm), picture, path, 2.34, self._ledger(arm), scores, self._footprint(arm), report,
            cached=not fresh and report is not None,
            compress_seconds=None if report is None else 11.2 if fresh else 0.0,
        )  # fmt: skip

    def _picture(self, arm: str, seed: int) -> Image.Image:
        place, side = random.Random(seed), self.side
        image = Image.new("RGB", (4 * side, 4 * side), (70, 130, 190))
        draw = ImageDraw.Draw(image)
        x, y, size = place.randint(0, side), place.randint(0, side), place.randint(side, 2 * side)
        draw.ellipse((x, y, x + size, y + size), fill=(90, 190, 90), outline=(30, 90, 40), width=5)
        draw.ellipse((x + size // 4, y + size // 4, x + size // 3, y + size // 3), fill=(20, 20, 20))
        image = image.resize((side, side), Image.Resampling.LANCZOS)
        if arm == "fp16":
            return image
        noise = random.Random(arm)
        values = [min(255, max(0, value + noise.randint(-18, 18))) for value in image.tobytes()]
        return Image.frombytes("RGB", image.size, bytes(values))

    def _label(self, arm: str) -> str:
        return (
            "fp16 original" if arm == "fp16" else arm.removeprefix("@") if arm.startswith("@") else self._quantizer(arm)
        )

    def _quantizer(self, arm: str) -> str:
        method = parse(arm)
        return f"{method.name.upper()} {method.nominal_bits:g}-bit"

    def _bits(self, arm: str) -> float:
        return 16.0 if arm == "fp16" else 3.2 if arm.startswith("@") else parse(arm).nominal_bits + 0.25

    def _ledger(self, arm: str) -> Ledger:
        if arm == "fp16":
            return Ledger(WEIGHTS, 0, {"codes": 0, "codebooks": 0, "scales": 0, "kept": 2 * WEIGHTS}, 2 * WEIGHTS + 900)
        kept, packed = 2 * 400_000, 11_600_000
        codes = int(packed * self._bits(arm) / 8)
        parts = {"codes": codes, "codebooks": 60_000, "scales": 90_000, "kept": kept}
        return Ledger(WEIGHTS, packed, parts, codes + 950_900 + kept)

    def _footprint(self, arm: str) -> Footprint:
        stored = 2 * self._ledger(arm).parts["kept"] + self._ledger(arm).tensor_bytes - self._ledger(arm).parts["kept"]
        return Footprint("resident" if arm == "fp16" else "streaming", stored)

    def _report(self, arm: str) -> Report:
        layers = tuple(self._layers(arm))
        return Report(
            f"/cache/{arm}", BaseInfo("nano", "abc"), arm, self._ledger(arm), layers, 11.2, curve=CURVES.get(arm, ())
        )

    def _layers(self, arm: str) -> Iterator[LayerRecord]:
        bits, chance = self._bits(arm), random.Random(arm)
        for name, shape in _layer_shapes():
            kind = "conv2d" if len(shape) == 4 else "linear"
            count = math.prod(shape)
            error = 4.0**-bits * math.exp(chance.gauss(0.6, 0.5))
            yield LayerRecord(name, kind, shape, arm, bits, int(count * bits / 8), error)


def _layer_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    blocks = [
        "down_blocks.0",
        "down_blocks.1",
        "down_blocks.2",
        "mid_block",
        "up_blocks.0",
        "up_blocks.1",
        "up_blocks.2",
    ]
    for block in blocks:
        for index in range(2):
            for conv in ("conv1", "conv2"):
                yield f"{block}.resnets.{index}.{conv}", (128, 128, 3, 3)
            if block not in ("down_blocks.0", "up_blocks.2"):
                yield f"{block}.attentions.{index}.proj_in", (128, 128)
                inner = f"{block}.attentions.{index}.transformer_blocks.0"
                for attention in ("attn1", "attn2"):
                    for part in ("to_q", "to_k", "to_v", "to_out.0"):
                        yield f"{inner}.{attention}.{part}", (128, 256)
                yield f"{inner}.ff.net.0.proj", (1024, 128)
                yield f"{inner}.ff.net.2", (128, 512)
                yield f"{block}.attentions.{index}.proj_out", (128, 128)


def sampling_of(job: CompareJob, **changes: object) -> CompareJob:
    return replace(job, sampling=replace(job.sampling, **changes))  # type: ignore[arg-type]


if __name__ == "__main__":
    from sdvq_core.ui import build, launch_options

    port = int(sys.argv[1]) if len(sys.argv) > 1 else 7871
    build(FakeWorkbench(pause=0.05)).launch(server_port=port, **launch_options())
