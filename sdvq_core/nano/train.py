"""The recipe: `python -m sdvq_core.nano.train --minutes 120` makes assets/nano and assets/judge from nothing.

Stages: data, vae, judge, unet, export, measure. Each stage saves its state in the working folder; the same command,
given again, resumes where it stopped and skips what is finished.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel

from sdvq_core.nano.bank import World
from sdvq_core.nano.export import copy_folder, export_judge, export_pipeline, make_pipeline
from sdvq_core.nano.measure import REPOSITORY, Sampling, generate, measure
from sdvq_core.nano.models import SIZES, Size
from sdvq_core.nano.progress import Journal
from sdvq_core.nano.scenes import caption, heldout_scenes
from sdvq_core.nano.sprites import emojibase_file, fetch_packages, load_sprites, with_pictures
from sdvq_core.nano.tokens import make_tokenizer
from sdvq_core.nano.train_judge import JudgePlan, score, train_judge
from sdvq_core.nano.train_unet import TextToImage, UnetPlan, train_unet
from sdvq_core.nano.train_vae import VaePlan, train_vae
from sdvq_core.nano.vocabulary import all_objects

logger = logging.getLogger(__name__)
SHARES: Mapping[str, float] = {"vae": 0.18, "judge": 0.10, "unet": 0.68}  # of the minutes; the rest measures
STAGES = ("vae", "judge", "unet", "export", "measure")


@dataclass(frozen=True)
class Run:
    """The choices of one run."""

    minutes: float
    device: str
    data: Path
    work: Path
    out: Path
    judge_out: Path
    resolution: int
    objects: int
    seed: int
    batch: int

    @property
    def size(self) -> Size:
        """The networks' shapes."""
        return SIZES[self.resolution]


def prepare(run: Run) -> World:
    """Fetch the pictures, choose the objects, learn the tokenizer."""
    fetch_packages(run.data)
    listed = all_objects(emojibase_file(run.data), 10_000)
    objects = with_pictures(run.data, listed)[: run.objects]
    tokenizer = make_tokenizer(objects, run.work / "tokenizer")
    return World(objects, load_sprites(run.data, objects, run.resolution), tokenizer)


def run_vae(run: Run, world: World) -> None:
    """Stage 1."""
    plan = VaePlan(SHARES["vae"] * run.minutes, seed=run.seed, device=run.device)
    train_vae(plan, run.size, world.objects, world.sprites, run.work).save_pretrained(run.work / "vae")


def run_judge(run: Run, world: World) -> None:
    """Stage 2."""
    plan = JudgePlan(SHARES["judge"] * run.minutes, batch=run.batch, seed=run.seed, device=run.device)
    export_judge(train_judge(plan, run.size, world, run.work), world.tokenizer, run.work / "judge")


def run_unet(run: Run, world: World) -> None:
    """Stage 3."""
    vae = AutoencoderKL.from_pretrained(run.work / "vae").to(run.device).eval()
    lanes = 2 if run.device == "cpu" else 1
    if lanes > 1:
        torch.set_num_threads(1)
    plan = UnetPlan(SHARES["unet"] * run.minutes, batch=run.batch, seed=run.seed, device=run.device, lanes=lanes)
    look = _looker(run, world, vae)
    train_unet(plan, run.size, world, vae, run.work, look)


def _looker(run: Run, world: World, vae: AutoencoderKL) -> Callable[[TextToImage, int], None]:
    journal = Journal(run.work, "samples")
    scenes = heldout_scenes(world.objects)
    scenes = [*scenes[:-26:8], *scenes[-4:]][:32]
    prompts = [caption(s, world.objects) for s in scenes]

    def look(model: TextToImage, step: int) -> None:
        encoders = (model.text_encoder, model.text_encoder_2)
        pipeline = make_pipeline(vae, model.unet, encoders, world.tokenizer)
        pictures = generate(pipeline, prompts, Sampling(steps=15), first_seed=0)
        journal.grid(f"{step:06d}", pictures, 8)
        if (run.work / "judge" / "config.json").is_file():
            judge = CLIPModel.from_pretrained(run.work / "judge", dtype=torch.float32).to(run.device).eval()
            journal.write({"step": step, **score(judge, pictures, scenes, world)})
        export_pipeline(pipeline, world.objects, run.work / "pipeline")

    return look


def run_export(run: Run, world: World) -> None:
    """Stage 4: the last checkpoint and the judge, where the program looks for them."""
    del world
    for source, target in ((run.work / "pipeline", run.out), (run.work / "judge", run.judge_out)):
        copy_folder(source, target)


def run_measure(run: Run, world: World) -> None:
    """Stage 5."""
    del world
    table = measure(run.data, run.out, run.judge_out, Sampling(), run.work)
    (run.work / "measured.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    logger.info("%s", json.dumps(table))


RUNNERS: Mapping[str, Callable[[Run, World], None]] = {
    "vae": run_vae,
    "judge": run_judge,
    "unet": run_unet,
    "export": run_export,
    "measure": run_measure,
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sdvq_core.nano.train", description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="training time, all stages together")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--data", type=Path, help="folder with the unpacked npm packages; default: fetch into --work")
    parser.add_argument("--work", type=Path, default=Path("nano-work"), help="checkpoints, logs, sample grids")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "assets" / "nano")
    parser.add_argument("--judge-out", type=Path, default=REPOSITORY / "assets" / "judge")
    parser.add_argument("--resolution", type=int, choices=tuple(SIZES), default=64)
    parser.add_argument("--objects", type=int, default=150, help="size of the vocabulary")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64, help="pictures per step of judge and text-to-image model")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages asked for."""
    chosen = parse(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if chosen.device == "auto" else chosen.device
    work = chosen.work.resolve()
    run = Run(
        minutes=chosen.minutes,
        device=device,
        data=(chosen.data or work / "data").resolve(),
        work=work,
        out=chosen.out.resolve(),
        judge_out=chosen.judge_out.resolve(),
        resolution=chosen.resolution,
        objects=chosen.objects,
        seed=chosen.seed,
        batch=chosen.batch,
    )
    world = prepare(run)
    for stage in chosen.stages:
        logger.info("stage %s", stage)
        RUNNERS[stage](run, world)
    return 0


if __name__ == "__main__":
    sys.exit(main())
