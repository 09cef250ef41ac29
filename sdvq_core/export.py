"""An artifact back to plain weights: a UNet or pipeline folder for diffusers, or one file in the original SDXL layout.

Layers are decoded and written one after another; what appears under the name that was asked for is whole.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdvq_core.diffusion.base_model import skeleton_of
from sdvq_core.diffusion.bases import copy_small, markers, others, parts_beside
from sdvq_core.diffusion.components import STEMS, Part, write_part, write_single_file
from sdvq_core.diffusion.fingerprint import fingerprint
from sdvq_core.diffusion.hub import fetched
from sdvq_core.diffusion.sources import Source, find_source
from sdvq_core.errors import ConfigError, ModelError, StoreError
from sdvq_core.jobs import Notice, Progress
from sdvq_core.records import BaseInfo
from sdvq_core.store import Artifact, open_artifact
from sdvq_core.store.tensor_file import flush

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ExportJob:
    """An artifact, where its plain weights go (a folder, or a file *.safetensors), and in which dtype.

    base: model that gives text encoders and VAE; without one, the UNet alone is written.
    """

    artifact: Path
    out: Path
    base: str | None = None
    dtype: str = "fp16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        empty = self.out.is_dir() and not any(self.out.iterdir())
        if self.out.exists() and not (empty and not self.to_file):
            raise StoreError(f"{self.out} exists; name a new file *{SUFFIX}, or a new or empty folder")

    @property
    def to_file(self) -> bool:
        return self.out.suffix == SUFFIX


@dataclass(frozen=True)
class Exported:
    """What was written. parts: such as unet; tensors: how many; nbytes: of all files."""

    artifact: str
    base: BaseInfo
    recipe: str
    out: str
    files: tuple[str, ...]
    parts: tuple[str, ...]
    dtype: str
    tensors: int
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def export(job: ExportJob, data: Path | None = None) -> Iterator[Progress | Notice | Exported]:
    """Progress per tensor, then what was written; data: where fingerprints are remembered."""
    yield Progress("export", "", 0, 1, "reading the artifact")
    dtype = DTYPES[job.dtype]
    with ExitStack() as stack:
        artifact = stack.enter_context(open_artifact(job.artifact))
        source = None if job.base is None else fetched(find_source(job.base))  # which may be a long download
        if source is not None:
            yield from _check_base(source, artifact, data)
        parts = {"unet": unet_part(artifact, dtype)}
        parts |= {} if source is None else {name: part.to(dtype) for name, part in parts_beside(source, stack).items()}
        total = sum(len(part.specs) for part in parts.values())
        writing = _file(job, parts, source, artifact, stack) if job.to_file else _folder(job, parts, source)
        for done, name in enumerate(writing, start=1):
            yield Progress("export", "", min(done, total), total, name)
    files = sorted(job.out.rglob("*")) if job.out.is_dir() else [job.out]
    files = [path for path in files if path.is_file()]
    nbytes = sum(path.stat().st_size for path in files)
    base, recipe = artifact.manifest.base, artifact.manifest.recipe
    names = tuple(str(path) for path in files)
    yield Exported(str(job.artifact), base, recipe, str(job.out), names, tuple(parts), job.dtype, total, nbytes)


def unet_part(artifact: Artifact, dtype: torch.dtype) -> Part:
    """The UNet of `artifact`, each layer decoded when it is read; StoreError if a tensor is missing."""
    layers = {f"{name}.weight": name for name in artifact.weights}
    shapes = {f"{name}.weight": entry.shape for name, entry in artifact.manifest.layers.items()}
    shapes |= {name: tuple(tensor.shape) for name, tensor in artifact.kept.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in skeleton_of(artifact.unet_config).state_dict().items()}
    odd = sorted(name for name in wanted | shapes if wanted.get(name) != shapes.get(name))
    if odd:
        raise StoreError(f"the artifact does not fit its own config: {odd[0]} is missing or not expected")

    def read(name: str) -> Tensor:
        return artifact.weights[layers[name]].dequantize(dtype) if name in layers else artifact.kept[name].to(dtype)

    return Part(artifact.unet_config, {name: (dtype, shape) for name, shape in wanted.items()}, read)


def _check_base(source: Source, artifact: Artifact, data: Path | None) -> Iterator[Notice]:
    if source.no_image:
        raise ModelError(f"{source.name} gives no text encoders and VAE: {source.no_image}; name a whole model")
    found, made_from = fingerprint(source, data), artifact.manifest.base
    if found != made_from.fingerprint:
        yield Notice(
            f"the UNet of {source.name} ({found}) is not the one that the artifact was made from "
            f"({made_from.id}, {made_from.fingerprint}); its text encoders and VAE are used all the same"
        )


def _file(
    job: ExportJob, parts: Mapping[str, Part], source: Source | None, artifact: Artifact, stack: ExitStack
) -> Iterator[str]:
    """One file; what else a base of one file holds stays under the names there."""
    made_from = artifact.manifest.base
    about = {"sdvq": f"{artifact.manifest.recipe} of {made_from.id} ({made_from.fingerprint})"}
    if source is not None and source.kind == "file":
        rest, metadata = others(source, stack)
        parts, rest = {"unet": parts["unet"]}, rest.to(DTYPES[job.dtype])
    else:
        rest, metadata = markers(source)
    yield from write_single_file(job.out, parts, rest, {**metadata, **about})


def _folder(job: ExportJob, parts: Mapping[str, Part], source: Source | None) -> Iterator[str]:
    """A UNet folder, or a pipeline folder with what the base gives; under another name until it is whole."""
    out = job.out.absolute()
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        for name, part in parts.items():
            place = temporary if source is None else temporary / name
            yield from write_part(place, part, STEMS.get(name, "model"))
        if source is not None:
            copy_small(source, temporary)
        flush(temporary)
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
        flush(out.parent)
    except OSError as error:
        raise StoreError(f"{out} cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
