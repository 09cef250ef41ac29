"""An artifact: a diffusers UNet folder, config.json and one safetensors file with packed codes. No pickle anywhere.

A folder appears complete or not at all: it is written under a temporary name, flushed, and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdvq_core.errors import ConfigError, StoreError
from sdvq_core.ledger import SHARED_PREFIX, build_ledger
from sdvq_core.qtensor import QuantizedTensor, TensorSpec, get_format
from sdvq_core.records import Curve, LayerRecord, Report
from sdvq_core.store.checked import is_checked, remember, stamp
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


class Kept(Mapping[str, Tensor]):
    """What stays in 16 bits: the tensors called `names` of `weights`, in float16 on the CPU.

    StoreError for one that is not finite, or beyond the range of float16.
    """

    def __init__(self, names: Iterable[str], weights: Mapping[str, Tensor]) -> None:
        self._names, self._weights = dict.fromkeys(names), weights

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor = self._weights[name].half().cpu()
        if not bool(tensor.isfinite().all()):
            raise StoreError(
                f"{name} is NaN, infinite or beyond the range of 16-bit floats; compress a checkpoint that is finite"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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
    with _staged(folder.absolute(), replace) as stage:
        stored = StoredTensors(artifact.weights, artifact.kept)
        card = card_metadata(artifact.records, artifact.versions, artifact.curve)
        write_tensors(stage / WEIGHTS_NAME, stored.specs, stored.__getitem__, card)
        config = {**artifact.unet_config, "quantization_config": artifact.manifest.to_json()}
        (stage / CONFIG_NAME).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")
        flush(stage / CONFIG_NAME)


def copy_artifact(source: Path, folder: Path) -> None:
    """Copy the artifact in `source` to `folder` by the rules of `write_artifact`; StoreError if it is damaged.

    One tensor after another is read: it need not fit into memory.
    """
    _, manifest = read_manifest(source)
    with _open(source) as file:
        if digest(_FileTensors(file)) != manifest.sha256:
            raise _damaged(source)
    with _staged(folder.absolute(), replace=True) as stage:
        for name in (WEIGHTS_NAME, CONFIG_NAME):
            shutil.copyfile(source / name, stage / name)
            flush(stage / name)


@contextmanager
def _staged(folder: Path, replace: bool) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when all is written, and leaves nothing when something fails."""
    if folder.exists() and not is_artifact(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} exists and is not an SDVQ artifact; name a new or empty folder")
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


class _FileTensors(Mapping[str, Tensor]):
    """The tensors of an open file, mapped when they are asked for."""

    def __init__(self, file: Any) -> None:
        self._file, self._names = file, list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        found: Tensor = self._file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _damaged(folder: Path) -> StoreError:
    return StoreError(
        f"{folder / WEIGHTS_NAME} is damaged: its content does not match its SHA-256; compress the model again"
    )


def read_artifact(folder: Path) -> Artifact:
    """The artifact in `folder`, checked: format, shapes, names and the digest of every tensor (see `store.checked`)."""
    config, manifest = read_manifest(folder)
    tensors, card = _read_tensors(folder, manifest.sha256)
    weights = {name: _weight(name, entry, tensors) for name, entry in manifest.layers.items()}
    used = set(StoredTensors(weights, {}))
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
    left = _left_by_the_recipe(kept, {item.layer for item in manifest.fallbacks})
    return Report(str(folder), manifest.base, manifest.recipe, ledger, records, None, versions, curve, left)


def _left_by_the_recipe(kept: Mapping[str, TensorSpec], fallbacks: Container[str]) -> tuple[str, ...]:
    """Names of the layers among what is kept: their weights are matrices or kernels, norms and biases are not."""
    weights = [name.removesuffix(".weight") for name, spec in kept.items() if len(spec.shape) > 1]
    return tuple(sorted(name for name in weights if name not in fallbacks))


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


def _read_tensors(folder: Path, sha256: str) -> tuple[dict[str, Tensor], str]:
    """(tensors, report card); copies, because a mapped file that shrinks would end the process.

    Their content is compared with `sha256` while they are copied, unless that is known; StoreError if it differs.
    """
    path = folder / WEIGHTS_NAME
    with _open(folder) as file, ThreadPoolExecutor(1) as pool:
        seen, mapped = stamp(path), dict(_FileTensors(file))
        found = None if is_checked(path, sha256) else pool.submit(digest, mapped)
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        if (found is not None and found.result() != sha256) or stamp(path) != seen:
            raise _damaged(folder)
        if found is not None:
            remember(path, sha256, seen)
        return tensors, (file.metadata() or {}).get(CARD_KEY, "")


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
