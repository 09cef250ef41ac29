"""Checkpoints of SDXL's size with random weights, as real folders and files, written tensor by tensor.

The weights are those of `full_size.random_unet`: a seed of its own for every tensor. For loading, compressing and
exporting at full size where no real checkpoint can be had; never for quality.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdvq_core.bench.full_size import fill
from sdvq_core.diffusion.components import STEMS, Part, write_part, write_single_file
from sdvq_core.diffusion.folders import WEIGHTED, WORDED, read_json
from sdvq_core.diffusion.single_file import empty_component
from sdvq_core.diffusion.sources import sdxl_folder


@dataclass(frozen=True)
class RandomModel:
    """A pipeline built as `skeleton` says, with random weights.

    text_layers: layers of each text encoder, which make up 1.6 GB of SDXL; None: all. A single file is loaded again
    only with all of them, because it does not say how it is built.
    """

    skeleton: Path = field(default_factory=sdxl_folder)
    text_layers: int | None = None
    dtype: torch.dtype = torch.float16

    def parts(self) -> dict[str, Part]:
        """Every component by name; a tensor is made when it is read."""
        return {name: self._part(name) for name in WEIGHTED}

    def config(self, name: str) -> dict[str, Any]:
        """The configuration of a component."""
        config = read_json(self.skeleton / name / "config.json")
        if name.startswith("text_encoder") and self.text_layers is not None:
            config["num_hidden_layers"] = self.text_layers
        return config

    def _part(self, name: str) -> Part:
        config = self.config(name)
        shapes = {key: tuple(value.shape) for key, value in empty_component(name, config).named_parameters()}
        numbers = {key: number for number, key in enumerate(shapes)}

        def read(key: str) -> Tensor:
            made = torch.empty(shapes[key], dtype=self.dtype)
            fill(made, key, torch.Generator().manual_seed(numbers[key]))
            return made

        return Part(config, {key: (self.dtype, shape) for key, shape in shapes.items()}, read)


def write_random_folder(
    folder: Path, model: RandomModel, variant: str = "", shard_nbytes: int | None = None
) -> Iterator[str]:
    """Write a diffusers pipeline folder, yielding each name once it is written; in shards of at most `shard_nbytes`."""
    for name in (*WORDED, "scheduler"):
        shutil.copytree(model.skeleton / name, folder / name)
    shutil.copy(model.skeleton / "model_index.json", folder)
    for name, part in model.parts().items():
        yield from write_part(folder / name, part, STEMS.get(name, "model"), shard_nbytes, variant)


def write_random_file(path: Path, model: RandomModel) -> Iterator[str]:
    """Write one file in the original SDXL layout, yielding each name once it is written."""
    yield from write_single_file(path, model.parts())
