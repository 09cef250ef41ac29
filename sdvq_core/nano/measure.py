"""The quality table of the model card: `python -m sdvq_core.nano.measure --data DIR` prints it as JSON.

Everything is measured on the 256 held-out prompts: the autoencoder and the judge on real renders of them, the
text-to-image model on its own pictures (float16 weights, computed in float32), two seeds per prompt.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray
from transformers import CLIPModel

from sdvq_core.nano.bank import World
from sdvq_core.nano.progress import Journal
from sdvq_core.nano.scenes import Scene, caption, heldout_scenes, render
from sdvq_core.nano.sprites import emojibase_file, load_sprites, with_pictures
from sdvq_core.nano.train_judge import score, score_on
from sdvq_core.nano.train_vae import mean_psnr, psnr, reconstruct
from sdvq_core.nano.vocabulary import all_objects

logger = logging.getLogger(__name__)
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Sampling:
    """How pictures are made for the table."""

    steps: int = 20
    guidance: float = 4.0
    batch: int = 32


def load_pipeline(folder: Path, device: str = "cpu") -> StableDiffusionXLPipeline:
    """The bundled pipeline in float32, silent."""
    pipeline: StableDiffusionXLPipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def generate(
    pipeline: StableDiffusionXLPipeline, prompts: Sequence[str], sampling: Sampling, first_seed: int
) -> list[NDArray[np.uint8]]:
    """One picture per prompt; prompt i starts from seed `first_seed + i`."""
    found: list[NDArray[np.uint8]] = []
    for i in range(0, len(prompts), sampling.batch):
        part = list(prompts[i : i + sampling.batch])
        noise = [torch.Generator().manual_seed(first_seed + i + k) for k in range(len(part))]
        made = pipeline(
            part,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=noise,
            output_type="np",
        )
        found += list((made.images * 255).round().astype(np.uint8))
    return found


def measure_pictures(
    pipeline: StableDiffusionXLPipeline, judge: CLIPModel, scenes: Sequence[Scene], world: World, sampling: Sampling
) -> tuple[dict[str, float], list[NDArray[np.uint8]]]:
    """Judge's shares on generated pictures, the agreement of two seeds, and the pictures."""
    prompts = [caption(s, world.objects) for s in scenes]
    start = time.monotonic()
    one = generate(pipeline, prompts, sampling, first_seed=0)
    seconds = (time.monotonic() - start) / len(prompts)
    two = generate(pipeline, prompts, sampling, first_seed=100_000)
    agreement = float(np.mean([psnr(a, b) for a, b in zip(one, two, strict=True)]))
    shares = score(judge, [*one, *two], [*scenes, *scenes], world)
    return {**shares, "psnr_between_seeds": agreement, "seconds_per_picture": seconds}, one


def measure(
    data: Path, nano: Path, judge_folder: Path, sampling: Sampling, work: Path | None = None
) -> dict[str, object]:
    """The whole table."""
    pipeline = load_pipeline(nano)
    names = json.loads((nano / "heldout.json").read_text(encoding="utf-8"))["objects"]
    resolution = int(pipeline.vae.config.sample_size)
    objects = with_pictures(data, all_objects(emojibase_file(data), 10_000))[: len(names)]
    world = World(objects, load_sprites(data, objects, resolution), pipeline.tokenizer)
    judge = CLIPModel.from_pretrained(judge_folder, dtype=torch.float32).eval()
    scenes = heldout_scenes(objects)
    originals = [render(s, world.sprites) for s in scenes]
    shares, pictures = measure_pictures(pipeline, judge, scenes, world, sampling)
    if work is not None:
        Journal(work, "measure").grid("held-out", pictures, 16)
    return {
        "prompts": len(scenes),
        "pairs": sum(len(s.things) == 2 for s in scenes),
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "vae_psnr": mean_psnr(originals, reconstruct(pipeline.vae, originals)),
        "judge_on_renders": score_on(judge, scenes, world),
        "judge_on_generated": shares,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m sdvq_core.nano.measure", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the unpacked npm packages")
    parser.add_argument("--nano", type=Path, default=REPOSITORY / "assets" / "nano")
    parser.add_argument("--judge", type=Path, default=REPOSITORY / "assets" / "judge")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--work", type=Path, help="where to save the pictures as a grid")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    table = measure(chosen.data, chosen.nano, chosen.judge, Sampling(chosen.steps, chosen.guidance), chosen.work)
    sys.stdout.write(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
