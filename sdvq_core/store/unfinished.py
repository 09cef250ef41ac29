"""What a compression has finished so far: one file per layer, one for a state of training, in a folder per artifact.

Files appear whole or not at all, so a run that was killed loses at most the layer that it was at; what cannot be read
is made again. Every number comes back bit for bit.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdvq_core.errors import SdvqError, StoreError
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.records import LayerRecord
from sdvq_core.store.images import write_bytes

_KEY = "sdvq"
_STATE = "training.safetensors"
_STALE_SECONDS = 14 * 24 * 3600


@dataclass(frozen=True)
class Unfinished:
    """The folder of one artifact in the making. Its name must change with everything that shapes the numbers."""

    folder: Path

    def layer(self, name: str) -> tuple[QuantizedTensor, LayerRecord] | None:
        """A finished layer, or None."""
        found = _read(self.folder / f"{name}.safetensors")
        if found is None:
            return None
        tensors, about = found
        try:
            record = LayerRecord(**{**about["record"], "shape": tuple(about["record"]["shape"])})
            return QuantizedTensor(about["format"], tuple(about["shape"]), tensors, about["meta"]), record
        except (SdvqError, KeyError, TypeError):
            return None

    def layers(self, names: Sequence[str]) -> Mapping[str, QuantizedTensor]:
        """The finished layers called `names`, each read when it is asked for; StoreError for one that is not here."""
        return _Layers(self, names)

    def keep_layer(self, tensor: QuantizedTensor, record: LayerRecord) -> None:
        """Note a finished layer."""
        about = {"format": tensor.format, "shape": tensor.shape, "meta": dict(tensor.meta), "record": record.to_json()}
        _write(self.folder / f"{record.name}.safetensors", tensor.tensors, about)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last state of training, as it was given to `keep_state`."""
        return _read(self.folder / _STATE)

    def keep_state(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Replace the state of training; `about` holds what JSON can hold."""
        _write(self.folder / _STATE, tensors, about)

    def forget(self) -> None:
        """Drop what is finished: the next run starts anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self) -> None:
        """Drop it all: the artifact is finished. What others left unfinished for two weeks goes as well."""
        self.forget()
        for other in self.folder.parent.glob("*"):
            with suppress(OSError):
                if time.time() - other.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(other, ignore_errors=True)


class _Layers(Mapping[str, QuantizedTensor]):
    """The compressed weights in the folder, by layer."""

    def __init__(self, unfinished: Unfinished, names: Sequence[str]) -> None:
        self._unfinished, self._names = unfinished, dict.fromkeys(names)

    def __getitem__(self, name: str) -> QuantizedTensor:
        if name not in self._names:
            raise KeyError(name)
        found = self._unfinished.layer(name)
        if found is None:
            raise StoreError(
                f"the finished layer {name} is gone from {self._unfinished.folder}; compress again, the rest is kept"
            )
        return found[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(stored, {_KEY: json.dumps(dict(about))}))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """None for a file that is not there, or damaged."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            return {name: file.get_tensor(name).clone() for name in file.keys()}, about  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
