"""The weights of a model's UNet, read from its safetensors files one tensor at a time, by diffusers' names.

A tensor is read, not mapped: mapped pages count as memory of the process until all of the file is in it, and a file
that shrinks would end the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdvq_core.diffusion.fingerprint import translate
from sdvq_core.diffusion.folders import read_header
from sdvq_core.errors import ModelError

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are."""

    path: Path
    start: int
    dtype: str
    shape: tuple[int, ...]


class UnetWeights(Mapping[str, Tensor]):
    """diffusers' name -> tensor on the CPU in the dtype of the file, read anew each time it is asked for.

    May be sent to other processes that see the same files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """paths: the safetensors files that hold the UNet, or all of a single-file checkpoint."""
        self._paths = tuple(paths)
        self._places = {name: place for path in paths for name, place in _places(path)}

    def __reduce__(self) -> tuple[Callable[[tuple[Path, ...]], UnetWeights], tuple[tuple[Path, ...]]]:
        return _opened, (self._paths,)  # names of files travel, not the table of thousands of tensors

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        if place.dtype not in _DTYPES:
            raise ModelError(f"{name} in {place.path} is {place.dtype}; SDVQ reads {', '.join(_DTYPES)} weights")
        dtype = _DTYPES[place.dtype]
        count = math.prod(place.shape) * dtype.itemsize
        try:
            with place.path.open("rb") as file:
                file.seek(place.start)
                raw = np.fromfile(file, np.uint8, count)
        except OSError as error:
            raise ModelError(f"{place.path} cannot be read ({error.strerror or error}); fetch it again") from None
        if len(raw) != count:
            raise ModelError(f"{place.path} ends in the middle of {name}; fetch it again")
        return (
            torch.from_numpy(raw).view(dtype).reshape(place.shape) if count else torch.empty(place.shape, dtype=dtype)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, without reading it."""
        return self._places[name].shape


@lru_cache(maxsize=4)
def _opened(paths: tuple[Path, ...]) -> UnetWeights:
    """In another process, once for all layers that it is given."""
    return UnetWeights(paths)


def _places(path: Path) -> Iterator[tuple[str, _Place]]:
    header = read_header(path)
    with path.open("rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")
    for stored, name in translate(list(header)).items():
        entry = header[stored]
        yield name, _Place(path, data + int(entry["data_offsets"][0]), str(entry["dtype"]), tuple(entry["shape"]))
