"""Sprites: the emoji pictures, cut to their outline, at every size a scene asks for.

The pictures come from npm (`@lobehub/fluent-emoji-3d`, `emojibase-data`, both MIT) or from a folder that holds the
unpacked packages as `fluent/package` and `emojibase/package`; they are training data and never committed.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdvq_core.nano.vocabulary import NanoObject

PACKAGES = {"fluent": "@lobehub/fluent-emoji-3d@1.1.0", "emojibase": "emojibase-data@17.0.0"}
Layers = tuple[NDArray[np.float32], NDArray[np.float32]]  # colour [S, S, 3], alpha [S, S, 1] in 0..1


class Sprites:
    """Square RGBA pictures, resized and mirrored on demand and kept."""

    def __init__(self, pictures: Sequence[Image.Image], resolution: int) -> None:
        self.resolution = resolution
        self._pictures = [_square(p) for p in pictures]
        self._cache: dict[tuple[int, int, bool], Layers] = {}

    def __len__(self) -> int:
        return len(self._pictures)

    def get(self, item: int, size: int, *, mirrored: bool = False) -> Layers:
        """Colour and alpha of one object at `size` pixels."""
        key = (item, size, mirrored)
        if key not in self._cache:
            resized = self._pictures[item].resize((size, size), Image.Resampling.LANCZOS)
            pixels = np.asarray(resized, np.float32)  # [S, S, 4]
            pixels = pixels[:, ::-1] if mirrored else pixels
            self._cache[key] = (np.ascontiguousarray(pixels[..., :3]), pixels[..., 3:] / np.float32(255))
        return self._cache[key]


def fetch_packages(folder: Path) -> None:
    """`npm pack` both packages into `folder`, unless they are there."""
    for name, package in PACKAGES.items():
        if (folder / name / "package").is_dir():
            continue
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "--pack-destination", str(target), package]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        with tarfile.open(next(target.glob("*.tgz"))) as archive:
            archive.extractall(target, filter="data")


def load_sprites(folder: Path, objects: Sequence[NanoObject], resolution: int) -> Sprites:
    """The pictures of `objects`, in their order."""
    files = _files_by_label(folder)
    missing = [o.label for o in objects if o.label not in files]
    if missing:
        raise FileNotFoundError(f"no picture in {folder} for {missing}")
    return Sprites([Image.open(files[o.label]).convert("RGBA") for o in objects], resolution)


def with_pictures(folder: Path, objects: Sequence[NanoObject]) -> list[NanoObject]:
    """Those of `objects` that have a picture."""
    files = _files_by_label(folder)
    return [o for o in objects if o.label in files]


def emojibase_file(folder: Path) -> Path:
    """Where emojibase keeps the English names."""
    return folder / "emojibase" / "package" / "en" / "data.json"


def _files_by_label(folder: Path) -> Mapping[str, Path]:
    assets = folder / "fluent" / "package" / "assets"
    by_code = {f.stem.replace("-fe0f", ""): f for f in assets.glob("*.webp")}
    entries = json.loads(emojibase_file(folder).read_text(encoding="utf-8"))
    codes = {e["label"]: e["hexcode"].lower().replace("-fe0f", "") for e in entries}
    return {label: by_code[code] for label, code in codes.items() if code in by_code}


def _square(picture: Image.Image) -> Image.Image:
    """The outline of the picture, centred on a transparent square."""
    box = picture.getchannel("A").point([255 * (a > 8) for a in range(256)]).getbbox() or (0, 0, *picture.size)
    cut = picture.crop(box)
    side = max(cut.size)
    square = Image.new("RGBA", (side, side))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return square
