"""What a training run leaves behind: a JSON-lines log, sample grids, checkpoints, and a clock to plan by."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

logger = logging.getLogger(__name__)


class Clock:
    """Progress 0..1 of a stage that has so many minutes; a resumed stage goes on where it stopped."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self._seconds = max(1e-6, 60 * minutes)
        self._start = time.monotonic() - spent

    @property
    def spent(self) -> float:
        """Seconds, those of earlier runs included."""
        return time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """Which part of the time is over."""
        return min(1.0, self.spent / self._seconds)


class Journal:
    """One line of JSON per entry, in `<folder>/<stage>.jsonl` and in the program's log."""

    def __init__(self, folder: Path, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.stage = folder, stage

    def write(self, entry: Mapping[str, float]) -> None:
        """Append one entry."""
        line = json.dumps({k: round(v, 5) for k, v in entry.items()})
        with (self.folder / f"{self.stage}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        logger.info("%s %s", self.stage, line)

    def grid(self, name: str, pictures: Sequence[NDArray[np.uint8]], columns: int) -> None:
        """Save pictures [H, W, 3] as one PNG, row by row."""
        rows = [np.concatenate(pictures[i : i + columns], 1) for i in range(0, len(pictures), columns)]
        width = max(r.shape[1] for r in rows)
        padded = [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0))) for r in rows]
        image = Image.fromarray(np.concatenate(padded))
        image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(
            self.folder / f"{self.stage}-{name}.png"
        )


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and numbers, all or nothing."""
    temporary = path.with_suffix(".partial")
    torch.save(dict(state), temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The checkpoint, or None where there is none."""
    if not path.is_file():
        return None
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def to_pictures(batch: torch.Tensor) -> list[NDArray[np.uint8]]:
    """`batch [N, 3, H, W]` in -1..1 -> pictures [H, W, 3]."""
    pixels = ((batch.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(pixels.permute(0, 2, 3, 1).cpu().numpy())


def to_batch(pictures: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """Pictures [H, W, 3] -> `[N, 3, H, W]` in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
