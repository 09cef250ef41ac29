"""A safetensors file written, and read, tensor after tensor: never more than one of them in memory.

The bytes are those of `safetensors.torch.save_file`: uint64 length of the header (little endian), the header as JSON
padded with spaces to a multiple of 8, then data, wide dtypes first and names in order within a dtype. Specs before
tensors: the header, and so the size of the file, stands before the first tensor is made.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch
from safetensors import safe_open
from torch import Tensor

from sdvq_core.errors import StoreError
from sdvq_core.store.checked import Stamp, stamp

Specs = Mapping[str, tuple[torch.dtype, Sequence[int]]]

WORDS = {  # how a dtype is called in a header, in the order in which the format stores them
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {word: dtype for dtype, word in WORDS.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(WORDS)}
_ALIGNMENT = 8


def stored_order(specs: Specs) -> list[str]:
    """The names in the order in which the file holds, and `write_tensors` reads, their tensors."""
    return sorted(specs, key=lambda name: (_RANK[specs[name][0]], name))


def tensor_nbytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    return math.prod(shape) * dtype.itemsize


def file_head(specs: Specs, metadata: Mapping[str, str] | None = None) -> bytes:
    """Everything before the data: length and header. With several metadata keys, in the order given."""
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    begin = 0
    for name in stored_order(specs):
        dtype, shape = specs[name]
        end = begin + tensor_nbytes(dtype, shape)
        entries[name] = {"dtype": WORDS[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    path: Path, specs: Specs, read: Callable[[str], Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a whole file or nothing; `read` is asked for each tensor once, in `stored_order`.

    StoreError: no room or no permission, or a tensor that is not what its spec says.
    """
    for _ in writing_tensors(path, specs, read, metadata):
        pass


def writing_tensors(
    path: Path, specs: Specs, read: Callable[[str], Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[str]:
    """`write_tensors` that yields each name once its tensor is written; closed before the end, it leaves nothing."""
    path = path.absolute()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    head = file_head(specs, metadata)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_room(path, len(head) + sum(tensor_nbytes(*spec) for spec in specs.values()))
        with temporary.open("wb", buffering=0) as file:
            _write(file.fileno(), memoryview(head))
            for name in stored_order(specs):
                _write(file.fileno(), _bytes_of(name, read(name), *specs[name]))
                yield name
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is asked for, until the file is closed.

    Read, not mapped: mapped pages count as memory of the process, and a file that shrinks would end it. metadata: of
    the header. opened: the stamp of the file when it was opened, at `opened_at` (nanoseconds). SafetensorError: not a
    whole safetensors file; KeyError: a dtype that is not in `DTYPES`.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as checked:
            self.metadata: Mapping[str, str] = checked.metadata() or {}
        self._file = path.open("rb", buffering=0)
        self.opened, self.opened_at = self.stamp, time.time_ns()
        with open(self._file.fileno(), "rb", closefd=False) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self.specs = {name: (DTYPES[entry["dtype"]], tuple(entry["shape"])) for name, entry in header.items()}
        self._starts = {name: 8 + length + int(entry["data_offsets"][0]) for name, entry in header.items()}

    def __getitem__(self, name: str) -> Tensor:
        dtype, shape = self.specs[name]
        nbytes = tensor_nbytes(dtype, shape)
        data = torch.empty(nbytes, dtype=torch.uint8)
        self._file.seek(self._starts[name])
        room: memoryview = data.numpy().data
        while room:  # one call reads 2 GB at most
            got = self._file.readinto(room)
            if not got:
                raise StoreError(f"{self._file.name} ends in the middle of {name}: it was changed while it was read")
            room = room[got:]
        return data.view(dtype).reshape(shape) if nbytes else torch.empty(shape, dtype=dtype)

    @property
    def stamp(self) -> Stamp:
        """What changes when the file does."""
        return stamp(os.fstat(self._file.fileno()))

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def flush(path: Path) -> None:
    """Force a file, or the entries of a folder (where the system can), to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_room(path: Path, nbytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if nbytes > free:
        raise StoreError(f"{path} needs {nbytes:,} bytes and its disk has {free:,} free; free some, or name another")


def _bytes_of(name: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> memoryview:
    if tensor.dtype != dtype or tuple(tensor.shape) != tuple(shape):
        raise StoreError(f"{name} is {tensor.dtype} {list(tensor.shape)}, the file wants {dtype} {list(shape)}")
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # [nbytes]
    data: memoryview = flat.numpy().data
    return data


def _write(descriptor: int, data: memoryview) -> None:
    """All of `data`: one call writes 2 GB at most."""
    while data:
        data = data[os.write(descriptor, data) :]
