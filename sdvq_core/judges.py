"""The judge of prompt and image that a tier of models has, where it is on this machine."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import try_to_load_from_cache

from sdvq_core.errors import ModelError

if TYPE_CHECKING:
    from sdvq_core.metrics.alignment import Aligner

log = logging.getLogger(__name__)
_FULL_CLIP = "openai/clip-vit-large-patch14"


def find_judge(tier: str) -> Aligner | None:
    """assets/judge (or $SDVQ_JUDGE) for nano, a full-size CLIP from the local Hugging Face cache for SDXL, or None."""
    folder = _folder(tier)
    return None if folder is None else _load(folder, "cpu")


def _folder(tier: str) -> Path | None:
    if tier == "nano":
        folder = Path(os.environ.get("SDVQ_JUDGE") or Path(__file__).resolve().parent.parent / "assets" / "judge")
        return folder if folder.is_dir() else None
    found = try_to_load_from_cache(_FULL_CLIP, "model.safetensors")
    return Path(found).parent if isinstance(found, str) else None


@lru_cache(maxsize=2)
def _load(folder: Path, device: str) -> Aligner | None:
    from sdvq_core.metrics.alignment import Aligner

    try:
        return Aligner.load(folder, device)
    except (ModelError, OSError, ValueError) as error:
        log.warning("no alignment scores: %s", error)
        return None
