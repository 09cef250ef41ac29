"""An artifact: a diffusers UNet folder, config.json and one safetensors file with packed codes. No pickle anywhere.

A folder appears complete or not at all: it is written under a temporary name, flushed, and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdvq_core.errors import StoreError
from sdvq_core.ledger import SHARED_PREFIX
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.records import Curve, LayerRecord
from sdvq_core.store.manifest import (
    CONFIG_NAME,
    Manifest,
    card_metadata,
)
from sdvq_core.store.places import check_place
from sdvq_core.store.tensor_file import flush, write_tensors

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, eq=False)
class Artifact:
    """A compressed UNet. unet_config: of diffusers, without quantization_config. kept: float16 tensors.

    weights and kept may read what they are asked for from elsewhere.
    """

    unet_config: Mapping[str, Any]
    manifest: Manifest
    weights: Mapping[str, QuantizedTensor]
    kept: Mapping[str, Tensor]
    records: tuple[LayerRecord, ...]
    versions: Mapping[str, str]
    curve: Curve = ()


class StoredTensors(Mapping[str, Tensor]):
    """Every tensor of an artifact under its name in the file, a shared codebook once; made when it is asked for."""

    def __init__(self, weights: Mapping[str, QuantizedTensor], kept: Mapping[str, Tensor]) -> None:
        self._weights, self._kept = weights, kept
        self._places: dict[str, tuple[str, str]] = {}  # name in the file: layer, array
        self.specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in kept.items()}
        for layer, weight in weights.items():
            for array, spec in weight.spec.items():
                name = SHARED_PREFIX + spec.shared if spec.shared else f"{layer}.{array}"
                self._places[name], self.specs[name] = (layer, array), (spec.dtype, spec.shape)
        self._last: tuple[str, QuantizedTensor] | None = None  # its other arrays are often asked for next

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._places:
            return self._kept[name]
        layer, array = self._places[name]
        if self._last is None or self._last[0] != layer:
            self._last = layer, self._weights[layer]
        return self._last[1].tensors[array]

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


class Chosen(Mapping[str, Tensor]):
    """The tensors called `names` of `tensors`."""

    def __init__(self, names: Iterable[str], tensors: Mapping[str, Tensor]) -> None:
        self._names, self._tensors = dict.fromkeys(names), tensors

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Kept(Chosen):
    """What stays in 16 bits: the tensors called `names` of the model's, in float16 on the CPU.

    StoreError for one that is not finite, or beyond the range of float16.
    """

    def __getitem__(self, name: str) -> Tensor:
        tensor = super().__getitem__(name).half().cpu()
        if not bool(tensor.isfinite().all()):
            raise StoreError(
                f"{name} is NaN, infinite or beyond the range of 16-bit floats; compress a checkpoint that is finite"
            )
        return tensor


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, sorted by name."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def write_artifact(folder: Path, artifact: Artifact, replace: bool = True) -> None:
    """Write `artifact` to `folder`; any non-empty folder that is not an artifact is refused.

    replace: whether an artifact that is there already makes way, or stays.
    """
    with staged(folder.resolve(), replace) as stage:
        stored = StoredTensors(artifact.weights, artifact.kept)
        card = card_metadata(artifact.records, artifact.versions, artifact.curve)
        write_tensors(stage / WEIGHTS_NAME, stored.specs, stored.__getitem__, card)
        config = {**artifact.unet_config, "quantization_config": artifact.manifest.to_json()}
        (stage / CONFIG_NAME).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")
        flush(stage / CONFIG_NAME)


@contextmanager
def staged(folder: Path, replace: bool) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when all is written, and leaves nothing when something fails."""
    check_place(folder)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        flush(temporary)
        _install(temporary, folder, replace)
        flush(folder.parent)
    except OSError as error:
        raise StoreError(f"the artifact cannot be written to {folder} ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _install(temporary: Path, folder: Path, replace: bool) -> None:
    """Rename into place. Several writers may race: with `replace` the last one wins, else the first."""
    while True:
        try:
            temporary.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if not replace:
            return
        remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove `folder` in one step for everybody who looks: it is moved aside, then deleted."""
    aside = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.old"
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)
