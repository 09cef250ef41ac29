"""An artifact: a diffusers UNet folder, config.json and one safetensors file with packed codes. No pickle anywhere.

A folder appears complete or not at all: it is written under a temporary name, flushed, and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdvq_core.errors import ConfigError, StoreError
from sdvq_core.ledger import SHARED_PREFIX, build_ledger
from sdvq_core.qtensor import QuantizedTensor, TensorSpec, get_format
from sdvq_core.records import Curve, LayerRecord, Report
from sdvq_core.store.manifest import (
    CARD_KEY,
    CONFIG_NAME,
    LayerEntry,
    Manifest,
    card_metadata,
    is_artifact,
    parse_card,
    read_manifest,
)

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, eq=False)
class Artifact:
    """A compressed UNet in memory. unet_config: of diffusers, without quantization_config. kept: float16 tensors."""

    unet_config: Mapping[str, Any]
    manifest: Manifest
    weights: Mapping[str, QuantizedTensor]
    kept: Mapping[str, Tensor]
    records: tuple[LayerRecord, ...]
    versions: Mapping[str, str]
    curve: Curve = ()


def stored_tensors(weights: Mapping[str, QuantizedTensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor under its name in the file; a shared codebook appears once."""
    found = dict(kept)
    for layer, weight in weights.items():
        for name, spec in weight.spec.items():
            found[SHARED_PREFIX + spec.shared if spec.shared else f"{layer}.{name}"] = weight.tensors[name]
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, sorted by name."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def write_artifact(folder: Path, artifact: Artifact, replace: bool = True) -> None:
    """Write `artifact` to `folder`; any non-empty folder that is not an artifact is refused.

    replace: whether an artifact that is there already makes way, or stays.
    """
    folder = folder.absolute()
    if folder.exists() and not is_artifact(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} exists and is not an SDVQ artifact; name a new or empty folder")
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.tmp"
    try:
        temporary.mkdir(parents=True)
        tensors = {
            name: tensor.contiguous() for name, tensor in stored_tensors(artifact.weights, artifact.kept).items()
        }
        save_file(tensors, temporary / WEIGHTS_NAME, card_metadata(artifact.records, artifact.versions, artifact.curve))
        config = {**artifact.unet_config, "quantization_config": artifact.manifest.to_json()}
        (temporary / CONFIG_NAME).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")
        for name in (WEIGHTS_NAME, CONFIG_NAME):
            _flush(temporary / name)
        _flush(temporary)
        _install(temporary, folder, replace)
        _flush(folder.parent)
    except OSError as error:
        raise StoreError(f"the artifact cannot be written to {folder} ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_artifact(folder: Path) -> Artifact:
    """The artifact in `folder`, checked: format, shapes, names and the digest of every tensor."""
    config, manifest = read_manifest(folder)
    tensors, card = _read_tensors(folder)
    if digest(tensors) != manifest.sha256:
        raise StoreError(
            f"{folder / WEIGHTS_NAME} is damaged: its content does not match its SHA-256; compress the model again"
        )
    weights = {name: _weight(name, entry, tensors) for name, entry in manifest.layers.items()}
    used = set(stored_tensors(weights, {}))
    kept = {name: tensor for name, tensor in tensors.items() if name not in used}
    records, versions, curve = parse_card(card, manifest)
    return Artifact(config, manifest, weights, kept, records, versions, curve)


def read_report(folder: Path) -> Report:
    """The report card of the artifact in `folder`; tensors are not read, their shapes are."""
    _, manifest = read_manifest(folder)
    with _open(folder) as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
        records, versions, curve = parse_card((file.metadata() or {}).get(CARD_KEY, ""), manifest)
    specs: dict[str, TensorSpec] = {}
    for layer, entry in manifest.layers.items():
        for name, spec in _spec(layer, entry).items():
            specs[SHARED_PREFIX + spec.shared if spec.shared else f"{layer}.{name}"] = spec
    kept = {name: TensorSpec(shape, torch.float16, "kept") for name, shape in stored.items() if name not in specs}
    if not set(specs) <= set(stored):
        raise StoreError(f"{folder} lacks tensors that its config lists, such as {min(set(specs) - set(stored))}")
    odd = next((name for name, spec in specs.items() if spec.shape != stored[name]), None)
    if odd is not None:
        raise StoreError(f"{folder} stores {odd} as {list(stored[odd])}, its config says {list(specs[odd].shape)}")
    shapes = [entry.shape for entry in manifest.layers.values()]
    nbytes = (folder / WEIGHTS_NAME).stat().st_size
    ledger = build_ledger(shapes, {**kept, **specs}, nbytes, manifest.fallbacks)
    return Report(str(folder), manifest.base, manifest.recipe, ledger, records, versions=versions, curve=curve)


def _spec(layer: str, entry: LayerEntry) -> dict[str, TensorSpec]:
    try:
        return get_format(entry.format).spec(entry.shape, entry.meta)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise StoreError(f"the artifact's entry for {layer} makes no sense ({error!r}); compress it again") from None


def _weight(layer: str, entry: LayerEntry, tensors: Mapping[str, Tensor]) -> QuantizedTensor:
    spec = _spec(layer, entry)
    names = {name: SHARED_PREFIX + part.shared if part.shared else f"{layer}.{name}" for name, part in spec.items()}
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise StoreError(f"the artifact lacks the tensor {missing[0]}")
    stored = {key: tensors[name] for key, name in names.items()}
    try:
        return QuantizedTensor(entry.format, entry.shape, stored, entry.meta)
    except ConfigError as error:
        raise StoreError(f"the artifact's tensors and its entry for {layer} differ: {error}") from None


def _open(folder: Path) -> Any:
    try:
        return safe_open(folder / WEIGHTS_NAME, "pt")
    except FileNotFoundError:
        if any(folder.glob("*.safetensors")):
            raise StoreError(
                f"{folder} has no {WEIGHTS_NAME}; what was saved in shards or as a variant is read by "
                "UNet2DConditionModel.from_pretrained, which also saves it as one file"
            ) from None
        raise StoreError(f"{folder} has no {WEIGHTS_NAME}; compress the model again") from None
    except (SafetensorError, OSError) as error:
        raise StoreError(
            f"{folder / WEIGHTS_NAME} is truncated or damaged ({error}); compress the model again"
        ) from None


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], str]:
    """(tensors, report card); copies, because a mapped file that shrinks would end the process."""
    with _open(folder) as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        return tensors, (file.metadata() or {}).get(CARD_KEY, "")


def _flush(path: Path) -> None:
    """Force a file, or the entries of a folder (where the system can), to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
