"""The one service that the command line and the page talk to: jobs in, events and records out.

Every long call is a generator; closing it stops the work. SdvqError means that the user can mend it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdvq_core import presets, recipes
from sdvq_core.arms import Arm, parse_arm
from sdvq_core.comparison import Comparer
from sdvq_core.diffusion.listing import about_model, known_models
from sdvq_core.diffusion.sources import at_hand, find_source
from sdvq_core.distillation import DistillationSettings
from sdvq_core.engine import Engine
from sdvq_core.errors import ConfigError
from sdvq_core.folders import data_folder
from sdvq_core.jobs import (
    CompareEvent,
    CompareJob,
    Estimate,
    LayerDetail,
    ModelInfo,
    Notice,
    Progress,
    Sampling,
)
from sdvq_core.needs import job_seconds, needs
from sdvq_core.nn import check_mode
from sdvq_core.peers import PeerInfo
from sdvq_core.peers import catalogue as peer_catalogue
from sdvq_core.production import DEFAULT_MEANS, Means, versions
from sdvq_core.quantizers import QuantizerInfo, catalogue, parse
from sdvq_core.recipes import Recipe
from sdvq_core.records import Report, TextReport
from sdvq_core.results import Results, find_results, first_command, keep_results, same_command
from sdvq_core.setup import PLAIN, Setup
from sdvq_core.statistics import DEFAULT, Calibration
from sdvq_core.store import copy_artifact, open_artifact, read_report, write_artifact
from sdvq_core.summaries import EvaluateJob, EvaluateResult
from sdvq_core.targets import Target
from sdvq_core.text_encoders import export
from sdvq_core.tuning import tune

if TYPE_CHECKING:
    from sdvq_core.bench import BenchResult
    from sdvq_core.export import Exported, ExportJob


class Workbench:
    """Models, quantizers, estimates, compression, comparison. data: folder of caches; device: auto, cpu or cuda.

    mode: how compressed weights are kept in memory: resident (decoded once), streaming (decoded in every step) or auto.
    setup: precision, offloading and text encoders. means: with what artifacts are made.
    """

    def __init__(
        self,
        data: Path | None = None,
        device: str = "auto",
        calibration: Calibration = DEFAULT,
        mode: str = "auto",
        setup: Setup = PLAIN,
        means: Means = DEFAULT_MEANS,
    ) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device must be auto, cpu or cuda, got {device!r}")
        self.data = data or data_folder()
        self.engine = Engine(self.data, device, calibration, check_mode(mode), setup, means)
        self._comparer = Comparer(self.engine)

    def warm_up(self) -> None:
        """Import what the first estimate needs, seconds of it, while a page is still being built."""
        self.estimate(self.models()[0].name, "fp16")

    def preload(self, model: str) -> None:
        """Load `model` before there are visitors; on a ZeroGPU Space from the main thread, before the page starts."""
        self.engine.base(model)

    def models(self) -> list[ModelInfo]:
        """What can be named, and whether it is at hand."""
        return known_models()

    def about_model(self, model: str) -> ModelInfo:
        """One model: size of the download, licence; the Hub is asked about one that is not at hand."""
        return about_model(model)

    def quantizers(self) -> list[QuantizerInfo]:
        """The catalogue: enough to draw a form."""
        return catalogue()

    def peers(self) -> list[PeerInfo]:
        """Other libraries' quantizers, and whether they are installed."""
        return peer_catalogue()

    def recipes(self) -> list[Recipe]:
        """The recipes in presets/."""
        return recipes.recipes()

    def prompts(self, tier: str = "nano") -> list[str]:
        """Suggested prompts for a tier of models."""
        return presets.prompts(tier)

    def about(self) -> dict[str, str]:
        """What runs here."""
        machine = {"python": platform.python_version(), "device": self.engine.device_name, "data": str(self.data)}
        return {**versions(), **machine}

    def estimate(self, model: str, arm: str) -> Estimate:
        """Size of an arm before it is made, and the work ahead; quick, and exact once its bits are allocated."""
        parsed = parse_arm(arm)
        exact = self.engine.shelf.rules(model, parsed) is not None
        work = needs(self.engine, model, parsed)
        return Estimate(arm, parsed.label, self.engine.ledger(model, parsed), exact, work, self.engine.device_kind)

    def job_seconds(self, *jobs: CompareJob) -> float:
        """What comparisons of the same arms will take on this machine, with a margin."""
        return job_seconds(self.engine, jobs)

    @property
    def asks_first(self) -> bool:
        """Whether large models are compressed only when asked: where finished artifacts come from the Hub."""
        return self.engine.shelf.hub is not None

    def inspect(self, artifact: str | Path) -> Report:
        """The report card of an artifact folder."""
        return read_report(Path(artifact))

    def report(self, model: str, arm: str) -> Report | None:
        """The report card of an arm that is in the cache already; None for `fp16` and for what is not made yet."""
        return self.engine.report(model, parse_arm(arm))

    def compress(
        self, model: str, arm: str, out: Path | None = None, resume: bool = True
    ) -> Iterator[Progress | Notice | Report]:
        """Progress per layer, then the report; the artifact is in the cache, and in `out` as well where given.

        resume: whether a run that was stopped goes on where it was.
        """
        parsed, start = self._compressing(arm), time.monotonic()
        if out is not None:
            self.engine.shelf.check_out(out, model, parsed)
        if self.engine.setup.compresses_text:
            yield from self.engine.prepare(model)
        for event in self.engine.compress(model, parsed, resume):
            if not isinstance(event, Path):
                yield event
                continue
            report = replace(read_report(event), seconds=time.monotonic() - start)
            if out is not None:
                self.engine.shelf.check_out(out, model, parsed)  # again: bits may have been allocated since
                copy_artifact(event, out)
                report = replace(report, artifact=str(out))
            yield report

    def partial(self, model: str, arm: str, out: Path) -> Report:
        """What is finished of a compression that was stopped, as an artifact in `out`: its other layers in 16 bits."""
        parsed = self._compressing(arm)
        self.engine.shelf.check_out(out, model, parsed, partial=True)
        write_artifact(out, self.engine.maker.partial(model, parsed))
        return read_report(out)

    def export(self, job: ExportJob) -> Iterator[Progress | Notice | Exported]:
        """Progress per tensor, then what was written: an artifact as plain weights, for diffusers or other programs."""
        from sdvq_core.export import export

        return export(job, self.data)

    def export_text_encoders(self, model: str, artifact: str | None = None) -> TextReport | None:
        """What compressing the text encoders of `model` did, if the setup asks for it; they are written into the
        folder `artifact`, where given, as `text_encoder` and `text_encoder_2`.
        """
        if not self.engine.setup.compresses_text:
            return None
        base = self.engine.base(model)
        if artifact is not None:
            export(base, self.engine.setup.text_encoders, self.data, Path(artifact))
        return self.engine.text

    def tune(
        self, model: str, words: Sequence[str], bits: float, distil: DistillationSettings | None = None
    ) -> Iterator[Progress | Notice | dict[str, Any]]:
        """Progress, then a recipe for this model alone: bits allocated among the quantizers that `words` name."""
        target, calibration = Target(tuple(map(parse, words)), bits), self.engine.calibration
        crew = self.engine.maker.statistics_crew
        yield from tune(self.engine.base(model), target, distil, self.data, calibration, crew)

    @staticmethod
    def _compressing(word: str) -> Arm:
        """The arm of `word`, if it is one that makes an artifact."""
        parsed = parse_arm(word)
        if parsed.peer is not None:
            raise ConfigError(f"{word} can be compared and evaluated, but its library's weights cannot be saved here")
        if not parsed.compresses:
            raise ConfigError(
                f"{word} is nothing to compress; name a quantizer such as rvq:bits=3, or a recipe such as @preview"
            )
        return parsed

    def generate(self, model: str, arm: str, sampling: Sampling) -> Iterator[CompareEvent]:
        """One image of one arm: a comparison with nothing to compare with."""
        return self.compare(CompareJob(model, (arm,), sampling))

    def compare(self, job: CompareJob) -> Iterator[CompareEvent]:
        """Same prompt, same seed, every arm in turn; measures are against the first."""
        return self._comparer.compare(job)

    def evaluate(self, job: EvaluateJob) -> Iterator[Progress | Notice | EvaluateResult]:
        """Prompts x seeds, every arm against the first, with intervals and noise floors; `results` gives it again."""
        from sdvq_core.evaluation import evaluate

        for event in evaluate(self.engine, job):
            yield event
            if isinstance(event, EvaluateResult):
                keep_results(self.data, event)

    def results(self, model: str) -> Results | None:
        """The newest evaluation of `model`, else the one that is bundled with the program; None without either."""
        source = find_source(model)
        found = find_results(self.data, self.engine.shelf.fingerprint(model)) if at_hand(source) else None
        if found is None:
            return None
        measured, bundled = found
        return Results(measured, bundled, same_command(model, measured.job, source, self.default_prompts(model)))

    def evaluate_command(self, model: str, arms: Sequence[str]) -> str:
        """What to type to measure `arms` on `model`."""
        return first_command(model, arms, self.default_prompts(model))

    def bench(self, suite: str = "", out: Path | None = None) -> Iterator[Progress | BenchResult]:
        """Speed on this machine beside others', one suite or all; `out` gets every row as soon as it is measured."""
        from sdvq_core.bench import bench

        return bench(suite, out)

    def default_prompts(self, model: str) -> list[str]:
        """Prompts to evaluate `model` on when the user gives none."""
        return self.engine.default_prompts(model)

    def layer_detail(self, model: str, arm: str, layer: str) -> LayerDetail:
        """One layer of a compressed arm, beside the original weight."""
        from sdvq_core.inspection import layer_detail

        parsed = parse_arm(arm)
        if parsed.peer is not None:
            raise ConfigError(f"{arm} is quantized by its own library: its layers stand in the table, without details")
        folder = self.engine.shelf.cached(model, parsed)
        if folder is None:
            raise ConfigError(f"{arm} is not compressed yet; run a comparison with it first")
        with open_artifact(folder) as artifact:
            if layer not in artifact.weights:
                raise ConfigError(f"{arm} has no compressed layer {layer!r}; choose one from the layer table")
            compressed = artifact.weights[layer]
        weight = self.engine.base(model).unet.get_submodule(layer).weight
        return layer_detail(arm, layer, weight.detach().cpu(), compressed)
