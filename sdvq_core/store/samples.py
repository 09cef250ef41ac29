"""Finished samples on disk: one safetensors file per batch, named by what it was drawn from; whole or absent.

The metadata holds the SHA-256 of all tensors, the seconds that they took, and how the weights were kept in memory. A
file that is truncated or altered counts as absent, so that it is drawn again. Everything below the folder may be
deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdvq_core.store.artifact import digest
from sdvq_core.store.images import write_bytes

SAMPLES_VERSION = 1


def content_key(*content: object) -> str:
    """Name of a folder or file: a digest of JSON values that say everything its tensors depend on."""
    return hashlib.sha256(json.dumps([SAMPLES_VERSION, *content]).encode()).hexdigest()[:24]


class Kept(NamedTuple):
    """Tensors, the seconds that they took, and the mode of the UNet then; None where nobody noted it."""

    tensors: dict[str, Tensor]
    seconds: float
    mode: str | None = None


class SampleStore:
    """Named tensors below `root`, one file per (folder, name)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, folder: str, name: str) -> Kept | None:
        """What `put` was given, or None where there is no sound file."""
        try:
            with safe_open(self._path(folder, name), "pt") as file:
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dict
                facts = file.metadata() or {}
            kept = Kept(tensors, float(facts["seconds"]), facts.get("mode"))
            return kept if facts["sha256"] == digest(tensors) else None
        except (OSError, SafetensorError, LookupError, ValueError):
            return None

    def put(
        self, folder: str, name: str, tensors: Mapping[str, Tensor], seconds: float, mode: str | None = None
    ) -> None:
        """Write `tensors`, atomically; what is there already makes way."""
        kept = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        facts = {"sha256": digest(kept), "seconds": repr(seconds), **({"mode": mode} if mode else {})}
        write_bytes(self._path(folder, name), save(kept, facts))

    def _path(self, folder: str, name: str) -> Path:
        return self.root / folder / f"{name}.safetensors"
