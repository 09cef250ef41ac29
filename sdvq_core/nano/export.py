"""Writing the trained parts as folders that diffusers and transformers load, in float16 and in small files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdvq_core.nano.models import make_scheduler
from sdvq_core.nano.scenes import caption, heldout_scenes
from sdvq_core.nano.vocabulary import COLOUR_NAMES, NanoObject

MAX_SHARD = "9MB"


def make_pipeline(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
) -> StableDiffusionXLPipeline:
    """diffusers' unchanged SDXL pipeline around the parts."""
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def export_pipeline(pipeline: StableDiffusionXLPipeline, objects: Sequence[NanoObject], folder: Path) -> None:
    """Write `folder` anew: float16, shards under 9 MB, the held-out prompts; keeps a README.md that is there."""
    with replacing(folder) as fresh:
        pipeline.to(torch.float16)
        pipeline.save_pretrained(fresh, max_shard_size=MAX_SHARD)
        pipeline.to(torch.float32)
        for name in ("tokenizer", "tokenizer_2"):
            write_merges(pipeline.tokenizer, fresh / name)
        write_heldout(objects, fresh)
        for name in ("text_encoder", "text_encoder_2"):
            compute_in_float32(fresh / name)
        drop_paths(fresh)


def export_judge(judge: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The judge with its tokenizer and image processor."""
    side = int(judge.config.vision_config.image_size)
    square = {"height": side, "width": side}
    half = [0.5] * 3
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square, image_mean=half, image_std=half)
    with replacing(folder) as fresh:
        judge.to(torch.float16).save_pretrained(fresh, max_shard_size=MAX_SHARD)
        judge.to(torch.float32)
        compute_in_float32(fresh)
        tokenizer.save_pretrained(fresh)
        write_merges(tokenizer, fresh)
        processor.save_pretrained(fresh)


def compute_in_float32(folder: Path) -> None:
    """Say in the config that weights stored in float16 are to be loaded in float32, as diffusers does by itself."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def drop_paths(folder: Path) -> None:
    """Take out of every config where on this machine the parts came from."""
    for file in sorted(folder.rglob("config.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_merges(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """vocab.json and merges.txt beside tokenizer.json: what transformers before version 5 reads."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def write_heldout(objects: Sequence[NanoObject], folder: Path) -> None:
    """heldout_prompts.txt, one per line, and heldout.json, which also names objects and colour."""
    scenes = heldout_scenes(objects)
    rows = [
        {"prompt": caption(s, objects), "objects": [objects[t.item].name for t in s.things], "colour": s.colour}
        for s in scenes
    ]
    (folder / "heldout_prompts.txt").write_text("".join(f"{r['prompt']}\n" for r in rows), encoding="utf-8")
    vocabulary = {"objects": [o.name for o in objects], "colours": list(COLOUR_NAMES)}
    text = json.dumps({**vocabulary, "prompts": rows}, indent=1)
    (folder / "heldout.json").write_text(text + "\n", encoding="utf-8")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when all went well; target's README.md moves in."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    old = fresh.with_name(f"{fresh.name}-old")
    try:
        yield fresh
        fresh.chmod(0o755)
        for file in fresh.rglob("*.safetensors"):
            file.chmod(0o644)
        if (target / "README.md").is_file():
            shutil.copy2(target / "README.md", fresh)
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def copy_folder(source: Path, target: Path) -> None:
    """`source` in the place of `target`."""
    with replacing(target) as fresh:
        shutil.copytree(source, fresh, dirs_exist_ok=True)
