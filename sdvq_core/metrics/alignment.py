"""Does the image show its prompt: cosine of image and text embedding by a CLIP model (Hessel et al. 2021).

The same code runs the small judge that ships with SDVQ and a full-size CLIP folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from sdvq_core.errors import ConfigError, ModelError

BATCH = 32
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class Aligner:
    """A CLIP model that scores image-prompt pairs."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    preprocessing: Mapping[str, Any]
    device: torch.device

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> Aligner:
        """The CLIP model in a folder of transformers' layout; safetensors only."""
        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json; pass a folder with a CLIPModel, such as assets/judge")
        try:
            with _no_progress_bar():
                model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            preprocessing = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{folder} cannot be loaded as a CLIPModel ({reason}); fetch it again") from error
        where = torch.device(device)
        return cls(model.eval().requires_grad_(False).to(where), tokenizer, preprocessing, where)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """Cosine of each image and its prompt, -1..1."""
        if len(images) != len(prompts):
            raise ConfigError(f"alignment needs one prompt per image, got {len(images)} images, {len(prompts)} prompts")
        scores: list[float] = []
        for start in range(0, len(images), BATCH):
            pictures = self.embed_images(images[start : start + BATCH])
            texts = self.embed_texts(prompts[start : start + BATCH])
            scores += (pictures * texts).sum(-1).tolist()
        return scores

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """N images -> unit vectors [N, D]."""
        pixels = torch.stack([to_pixels(image, self.preprocessing) for image in images]).to(self.device)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return torch.nn.functional.normalize(self.model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> unit vectors [N, D]; what the tokenizer has no room for is cut."""
        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        inputs = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
        pooled = self.model.text_model(**inputs).pooler_output
        return torch.nn.functional.normalize(self.model.text_projection(pooled), dim=-1)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws none meanwhile."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def to_pixels(image: Image.Image, settings: Mapping[str, Any]) -> Tensor:
    """[3, H, W] as CLIP's image processor makes it: shortest edge, centre crop, rescale, normalise."""
    rgb = image.convert("RGB")
    if settings.get("do_resize", True):
        rgb = rgb.resize(_resized(rgb.size, settings["size"]), Image.Resampling(settings.get("resample", 3)))
    if settings.get("do_center_crop", True):
        rgb = _centre_crop(rgb, settings["crop_size"])
    values = np.asarray(rgb, dtype=np.float32) * settings.get("rescale_factor", 1 / 255)  # [H, W, 3]
    mean = np.asarray(settings.get("image_mean", CLIP_MEAN), dtype=np.float32)
    std = np.asarray(settings.get("image_std", CLIP_STD), dtype=np.float32)
    return torch.from_numpy((values - mean) / std).float().permute(2, 0, 1)  # [3, H, W]


def _resized(size: tuple[int, int], wanted: Mapping[str, int] | int) -> tuple[int, int]:
    """(width, height) after resizing; wanted: {"shortest_edge"} or its number, or {"height", "width"}."""
    if not isinstance(wanted, int) and "shortest_edge" not in wanted:
        return wanted["width"], wanted["height"]
    edge = wanted if isinstance(wanted, int) else wanted["shortest_edge"]
    short, long = sorted(size)
    longer = int(edge * long / short)
    return (edge, longer) if size[0] <= size[1] else (longer, edge)


def _centre_crop(image: Image.Image, wanted: Mapping[str, int] | int) -> Image.Image:
    """The middle of the image; wanted: {"height", "width"}, or a number for both."""
    width, height = (wanted, wanted) if isinstance(wanted, int) else (wanted["width"], wanted["height"])
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
