"""Parts of a pipeline as tensors that are read one at a time, and written so: as a diffusers folder or into one file.

A `Part` names its tensors as diffusers does, wherever they come from. Memory holds one tensor, or the three of a
query-key-value array.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sdvq_core.diffusion.folders import read_header, read_json, weight_files
from sdvq_core.diffusion.original_layout import Place, placed, where
from sdvq_core.errors import ModelError
from sdvq_core.store.images import write_bytes
from sdvq_core.store.tensor_file import DTYPES, Specs, tensor_nbytes, writing_tensors

Spec = tuple[torch.dtype, tuple[int, ...]]
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}  # names of weight files; elsewhere "model"
METADATA = {"format": "pt"}  # transformers refuses a file without it


@dataclass(frozen=True, eq=False)
class Part:
    """A component: its configuration, the dtype and shape of every tensor, and how one is read."""

    config: Mapping[str, Any]
    specs: Mapping[str, Spec]
    read: Callable[[str], Tensor]

    def to(self, dtype: torch.dtype) -> Part:
        """The same tensors, those in floating point cast when they are read."""
        specs = {name: (dtype if old.is_floating_point else old, shape) for name, (old, shape) in self.specs.items()}
        return Part(self.config, specs, lambda name: self.read(name).to(specs[name][0]))

    @property
    def nbytes(self) -> int:
        return sum(tensor_nbytes(*spec) for spec in self.specs.values())


def part_of_folder(folder: Path, stack: ExitStack) -> Part:
    """A component folder of a pipeline; its files stay open until `stack` closes."""
    files, specs = {}, {}
    for path in weight_files(folder)[1]:
        file = stack.enter_context(safe_open(path, "pt"))
        for name, spec in specs_of_file(path).items():
            if not name.endswith("position_ids"):  # older versions of transformers stored these numbers
                files[name], specs[name] = file, spec
    return Part(read_json(folder / "config.json"), specs, lambda name: files[name].get_tensor(name))


def specs_of_file(path: Path) -> dict[str, Spec]:
    """Dtype and shape of every tensor in a safetensors file; ModelError for a dtype that cannot be copied."""
    header = read_header(path)
    odd = next((name for name, entry in header.items() if entry["dtype"] not in DTYPES), None)
    if odd is not None:
        raise ModelError(f"{path} stores {odd} as {header[odd]['dtype']}; files of {', '.join(DTYPES)} can be read")
    return {name: (DTYPES[entry["dtype"]], tuple(entry["shape"])) for name, entry in header.items()}


def write_part(
    folder: Path, part: Part, stem: str, shard_nbytes: int | None = None, variant: str = ""
) -> Iterator[str]:
    """Write a component folder, yielding each name once it is written; in shards of at most `shard_nbytes` each."""
    shards = _shards(part.specs, shard_nbytes)
    map_of: dict[str, str] = {}
    dot, total = f".{variant}" if variant else "", len(shards)
    write_bytes(folder / "config.json", json.dumps(dict(part.config), indent=2, sort_keys=True).encode() + b"\n")
    for number, names in enumerate(shards, start=1):
        counter = f"-{number:05d}-of-{total:05d}" if total > 1 else ""
        file = f"{stem}{dot}{counter}.safetensors"
        map_of |= dict.fromkeys(names, file)
        yield from writing_tensors(folder / file, {name: part.specs[name] for name in names}, part.read, METADATA)
    if total > 1:
        index = {"metadata": {"total_size": part.nbytes}, "weight_map": map_of}
        name = f"{stem}.safetensors.index{dot}.json"
        write_bytes(folder / name, json.dumps(index, indent=2, sort_keys=True).encode() + b"\n")


def write_single_file(
    path: Path, parts: Mapping[str, Part], others: Part | None = None, metadata: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Write a checkpoint in the original SDXL layout, yielding each name once it is written.

    parts: by component, such as unet. others: tensors that are copied under the names that they have.
    """
    specs: dict[str, Spec] = dict(others.specs) if others else {}
    made: dict[str, tuple[Part, list[tuple[str, Place]]]] = {}
    for component, part in parts.items():
        for stored, pieces in placed(component, part.specs, part.config).items():
            name, place = pieces[0]
            dtype, shape = part.specs[name]
            specs[stored], made[stored] = (dtype, place.stored_shape(shape)), (part, pieces)

    def read(stored: str) -> Tensor:
        if stored not in made:
            assert others is not None
            return others.read(stored)
        part, pieces = made[stored]
        return pieces[0][1].put([part.read(name) for name, _ in pieces])

    yield from writing_tensors(path, specs, read, {**METADATA, **(metadata or {})})


def part_of_file(component: str, names: Sequence[str], config: Mapping[str, Any], path: Path, stack: ExitStack) -> Part:
    """A component of a single file in the original layout; names: diffusers' names of its tensors."""
    file, stored = stack.enter_context(safe_open(path, "pt")), specs_of_file(path)
    places = {name: where(component, name, config) for name in names}
    specs = {}
    for name, place in places.items():
        dtype, shape = stored[place.name]
        specs[name] = (dtype, tuple(place.take(torch.empty(shape, device="meta")).shape))
    return Part(config, specs, lambda name: places[name].take(file.get_tensor(places[name].name)))


def _shards(specs: Specs, limit: int | None) -> list[list[str]]:
    """The names, in groups of at most `limit` bytes."""
    groups: list[list[str]] = [[]]
    nbytes = 0
    for name, spec in specs.items():
        size = tensor_nbytes(*spec)
        if limit is not None and groups[-1] and nbytes + size > limit:
            groups.append([])
            nbytes = 0
        groups[-1].append(name)
        nbytes += size
    return groups
