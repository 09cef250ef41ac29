"""Which UNet is this: sha256 over its tensors sorted by name, of name, dtype, shape and bytes; 16 hex digits.

Independent of sharding, and of the original single-file naming: those names are translated to diffusers' first.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sdvq_core.diffusion.folders import read_header, weight_files
from sdvq_core.diffusion.hub import hub_folder
from sdvq_core.diffusion.sources import Source
from sdvq_core.errors import ModelError, StoreError
from sdvq_core.store.images import write_bytes

CACHE_NAME = "fingerprints.json"
_known: dict[str, str] = {}


def fingerprint(base: Source | Path | str, data: Path | None = None) -> str:
    """The fingerprint of a model or of a UNet folder; remembered below `data`, else for this process.

    A file that keeps its path, size and time of change is not read again.
    """
    paths = unet_files(base)
    key = _stamp(paths)
    if key not in _known and data is not None:
        _known.update(_read(data / CACHE_NAME))
    if key not in _known:
        _known[key] = _digest(paths)
    if data is not None:
        _remember(data / CACHE_NAME, key)
    return _known[key]


def surroundings(source: Source) -> str:
    """Changes with the files of a pipeline beside its UNet: images depend on them, the fingerprint does not.

    By path, size and time of change; the worst mistake is to draw again what was drawn already.
    """
    if source.kind == "file":
        return _stamp([Path(source.location)])
    folder = hub_folder(source) if source.kind == "hub" else Path(source.location)
    parts = [path for path in folder.glob("*/**/*") if path.is_file() and path.relative_to(folder).parts[0] != "unet"]
    return _stamp(sorted(parts))


def unet_files(base: Source | Path | str) -> list[Path]:
    """The safetensors files that hold the UNet of a model, or those in a UNet folder."""
    if not isinstance(base, Source):
        return weight_files(Path(base))[1]
    if base.kind == "file":
        return [Path(base.location)]
    if base.kind == "unet":
        return weight_files(Path(base.location))[1]
    folder = hub_folder(base) if base.kind == "hub" else Path(base.location)
    return weight_files(folder / "unet")[1]


def unet_tensors(base: Source | Path | str) -> dict[str, tuple[Path, str]]:
    """diffusers' name of every UNet tensor of a model -> (file, name in the file)."""
    return {name: (path, stored) for name, path, stored in _tensors(unet_files(base))}


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for name, path, stored in sorted(_tensors(paths)):
        try:
            with safe_open(path, framework="pt") as file:
                part = file.get_slice(stored)
                digest.update(f"{name}\0{part.get_dtype()}\0{list(part.get_shape())}\0".encode())
                digest.update(file.get_tensor(stored).reshape(-1).view(torch.uint8).numpy().data)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read ({error}); fetch it again") from None
    return digest.hexdigest()[:16]


def _tensors(paths: list[Path]) -> Iterator[tuple[str, Path, str]]:
    """(diffusers' name, file, stored name) of every UNet tensor."""
    for path in paths:
        names = list(read_header(path))
        for stored, name in translate(names).items():
            yield name, path, stored


def translate(names: list[str]) -> dict[str, str]:
    """Stored name -> diffusers' name; the identity unless the names are a single-file checkpoint's."""
    if not any(name.startswith("model.diffusion_model.") for name in names):
        return {name: name for name in names}
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = {"layers_per_block": _per_block(names) - 1, "addition_embed_type": "text_time"}
    renamed = convert_ldm_unet_checkpoint({name: name for name in names}, config)
    return {stored: name for name, stored in renamed.items()}


def _per_block(names: list[str]) -> int:
    """Input blocks up to the first that halves the picture: resnets per block, and that one."""
    found = [re.match(r"model\.diffusion_model\.input_blocks\.(\d+)\.0\.op\.", name) for name in names]
    return min((int(match[1]) for match in found if match), default=3)


def _stamp(paths: list[Path]) -> str:
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def _read(path: Path) -> dict[str, str]:
    """What is remembered on disk; a damaged file is forgotten."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in known.items()} if isinstance(known, dict) else {}


def _remember(path: Path, key: str) -> None:
    known = _read(path)
    if known.get(key) == _known[key]:
        return
    with suppress(StoreError):  # a folder that cannot be written costs reading the model again, no more
        write_bytes(path, json.dumps({**known, key: _known[key]}, indent=1).encode())
