"""Artifacts read again: whole, tensor by tensor, or the report card alone; and copied. What is not sound is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sdvq_core.errors import StoreError
from sdvq_core.ledger import SHARED_PREFIX, build_ledger
from sdvq_core.qtensor import QuantizedTensor, TensorSpec, get_format
from sdvq_core.records import Report
from sdvq_core.store.artifact import WEIGHTS_NAME, Artifact, Chosen, digest, staged
from sdvq_core.store.checked import is_checked, remember
from sdvq_core.store.manifest import CARD_KEY, CONFIG_NAME, LayerEntry, Manifest, parse_card, read_manifest
from sdvq_core.store.tensor_file import Specs, TensorFile, flush


def read_artifact(folder: Path) -> Artifact:
    """The artifact in `folder`, checked: format, shapes, names and the digest of every tensor."""
    about = read_manifest(folder)
    with _open(folder) as file:
        found = _artifact(folder, about, file, dict)
    return replace(found, weights=dict(found.weights), kept=dict(found.kept))


@contextmanager
def open_artifact(folder: Path) -> Iterator[Artifact]:
    """`read_artifact` that reads the file once to check it, and then each tensor when it is asked for, in the block."""
    about = read_manifest(folder)
    with _open(folder) as file:
        yield _artifact(folder, about, file, lambda tensors: tensors)


def copy_artifact(source: Path, folder: Path) -> None:
    """Copy the artifact in `source` to `folder` by the rules of `write_artifact`; StoreError if it is damaged.

    One tensor after another is read: it need not fit into memory.
    """
    _, manifest = read_manifest(source)
    with _open(source) as file:
        _check_digest(source, manifest, file, file)
    with staged(folder.resolve(), replace=True) as stage:
        for name in (WEIGHTS_NAME, CONFIG_NAME):
            shutil.copyfile(source / name, stage / name)
            flush(stage / name)


def _check_digest(folder: Path, manifest: Manifest, file: TensorFile, tensors: Mapping[str, Tensor]) -> None:
    """StoreError unless `tensors`, of `file`, are what `manifest` says; content that is known is not compared again."""
    path = folder / WEIGHTS_NAME
    if is_checked(path, manifest.sha256, file.stamp):
        return
    if digest(tensors) != manifest.sha256:
        raise StoreError(f"{path} is damaged: its content does not match its SHA-256; compress the model again")
    if file.stamp == file.opened:
        remember(path, manifest.sha256, file.opened, file.opened_at)


def _artifact(
    folder: Path, about: tuple[dict[str, Any], Manifest], file: TensorFile,
    read: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> Artifact:  # fmt: skip
    """The artifact whose `file` is open. about: its `read_manifest`. read: takes its tensors, now or later."""
    config, manifest = about
    used = _check_specs(folder, manifest, file.specs)
    tensors = read(file)
    _check_digest(folder, manifest, file, tensors)
    weights = _Weights(manifest.layers, tensors)
    kept = Chosen((name for name in tensors if name not in used), tensors)
    records, versions, curve = parse_card(file.metadata.get(CARD_KEY, ""), manifest)
    return Artifact(config, manifest, weights, kept, records, versions, curve)


class _Weights(Mapping[str, QuantizedTensor]):
    """Compressed layers, each made of its arrays when it is asked for."""

    def __init__(self, layers: Mapping[str, LayerEntry], tensors: Mapping[str, Tensor]) -> None:
        self._layers, self._tensors = layers, tensors

    def __getitem__(self, name: str) -> QuantizedTensor:
        return _weight(name, self._layers[name], self._tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def read_report(folder: Path) -> Report:
    """The report card of the artifact in `folder`; tensors are not read, their shapes are."""
    _, manifest = read_manifest(folder)
    with _open(folder) as file:
        stored = file.specs
        records, versions, curve = parse_card(file.metadata.get(CARD_KEY, ""), manifest)
    specs = _check_specs(folder, manifest, stored)
    kept = {name: TensorSpec(stored[name][1], torch.float16, "kept") for name in stored if name not in specs}
    shapes = [entry.shape for entry in manifest.layers.values()]
    nbytes = (folder / WEIGHTS_NAME).stat().st_size
    ledger = build_ledger(shapes, {**kept, **specs}, nbytes, manifest.fallbacks)
    left = _left_by_the_recipe(kept, {item.layer for item in manifest.fallbacks})
    return Report(str(folder), manifest.base, manifest.recipe, ledger, records, None, versions, curve, left)


def _specs(manifest: Manifest) -> dict[str, TensorSpec]:
    """Every array of the compressed layers under its name in the file."""
    found: dict[str, TensorSpec] = {}
    for layer, entry in manifest.layers.items():
        spec = _spec(layer, entry)
        found |= {stored: spec[name] for name, stored in _stored_names(layer, spec).items()}
    return found


def _check_specs(folder: Path, manifest: Manifest, stored: Specs) -> dict[str, TensorSpec]:
    """`_specs` of `manifest`; StoreError unless they are what is stored."""
    specs = _specs(manifest)
    missing = sorted(set(specs) - set(stored))
    if missing:
        raise StoreError(f"{folder} lacks tensors that its config lists, such as {missing[0]}")
    for name, spec in specs.items():
        dtype, shape = stored[name]
        if (dtype, tuple(shape)) != (spec.dtype, spec.shape):
            raise StoreError(
                f"{folder} stores {name} as {dtype} {list(shape)}, its config says {spec.dtype} {list(spec.shape)}"
            )
    return specs


def _left_by_the_recipe(kept: Mapping[str, TensorSpec], fallbacks: Container[str]) -> tuple[str, ...]:
    """Names of the layers among what is kept: their weights are matrices or kernels, norms and biases are not."""
    weights = [name.removesuffix(".weight") for name, spec in kept.items() if len(spec.shape) > 1]
    return tuple(sorted(name for name in weights if name not in fallbacks))


def _spec(layer: str, entry: LayerEntry) -> dict[str, TensorSpec]:
    try:
        return get_format(entry.format).spec(entry.shape, entry.meta)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise StoreError(f"the artifact's entry for {layer} makes no sense ({error!r}); compress it again") from None


def _stored_names(layer: str, spec: Mapping[str, TensorSpec]) -> dict[str, str]:
    """Array -> its name in the file."""
    return {name: SHARED_PREFIX + part.shared if part.shared else f"{layer}.{name}" for name, part in spec.items()}


def _weight(layer: str, entry: LayerEntry, tensors: Mapping[str, Tensor]) -> QuantizedTensor:
    names = _stored_names(layer, _spec(layer, entry))
    return QuantizedTensor(entry.format, entry.shape, {key: tensors[name] for key, name in names.items()}, entry.meta)


def _open(folder: Path) -> TensorFile:
    try:
        return TensorFile(folder / WEIGHTS_NAME)
    except FileNotFoundError:
        if any(folder.glob("*.safetensors")):
            raise StoreError(
                f"{folder} has no {WEIGHTS_NAME}; what was saved in shards or as a variant is read by "
                "UNet2DConditionModel.from_pretrained, which also saves it as one file"
            ) from None
        raise StoreError(f"{folder} has no {WEIGHTS_NAME}; compress the model again") from None
    except (SafetensorError, OSError, KeyError) as error:
        raise StoreError(
            f"{folder / WEIGHTS_NAME} is truncated or damaged ({error}); compress the model again"
        ) from None
