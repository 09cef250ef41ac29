"""QuantizedTensor, a compressed weight as a value, and the registry of storage formats.

A format says how stored arrays become a weight again. It is permanent, because files exist: a key is never reused.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sdvq_core.errors import ConfigError, StoreError

Meta = Mapping[str, int | float | str]


@dataclass(frozen=True)
class TensorSpec:
    """Shape, dtype and ledger part of one stored array; `shared` names the set when many layers store it once."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    part: str
    shared: str = ""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Format(ABC):
    """How arrays are stored and decoded; stateless."""

    name: ClassVar[str]

    @abstractmethod
    def spec(self, shape: Sequence[int], meta: Meta) -> dict[str, TensorSpec]:
        """Every stored array of a weight of `shape`: sizes are exact before anything is computed."""

    def decode(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta, dtype: torch.dtype) -> Tensor:
        """The weight of `shape`, in `dtype`, on the device of the stored arrays."""
        return self.assemble(self.unpacked(tensors, shape, meta), tensors, shape, meta).to(dtype)

    @abstractmethod
    def decoding_nbytes(self, shape: Sequence[int], meta: Meta, dtype: torch.dtype, device: torch.device) -> int:
        """Bytes that exist at the most at once while a weight is decoded there, the weight itself included."""

    def linear(
        self, x: Tensor, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta, bias: Tensor | None
    ) -> Tensor:
        """x [..., I] times a weight of `shape` [O, I] -> x @ W.T + bias, [..., O]; decoded first, unless overridden."""
        return F.linear(x, self.decode(tensors, shape, meta, x.dtype), bias)

    def decoder(
        self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta
    ) -> Callable[[torch.dtype], Tensor]:
        """`decode` for every dtype, as often as it is asked while the arrays stay as they are."""
        return partial(self.decode, tensors, shape, meta)

    def is_prepared(self, meta: Meta) -> bool:
        """Whether a `decoder` saves time when it is kept, and keeps next to nothing besides the arrays."""
        return False

    def unpacked(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        """What decoding takes from the codes alone, however the other arrays change: the codes, unless overridden."""
        return self.codes(tensors, shape, meta)

    @abstractmethod
    def assemble(self, unpacked: Tensor, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        """The weight of `shape` in float32; differentiable in the arrays that are not codes."""

    @abstractmethod
    def codes(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        """The unpacked codes, int32 [M, n]: M streams of n codes each (padding included)."""

    @abstractmethod
    def levels(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        """Values that a weight can take in a row of median scale, ascending: what a histogram shows as ticks."""


_FORMATS: dict[str, Format] = {}


def register_format(cls: type[Format]) -> type[Format]:
    """Class decorator: make a format known under its name."""
    _FORMATS[cls.name] = cls()
    return cls


def get_format(name: str) -> Format:
    """The format called `name`; StoreError when this version does not know it."""
    if name not in _FORMATS:
        raise StoreError(f"unknown storage format {name!r}; this version reads {', '.join(sorted(_FORMATS))}")
    return _FORMATS[name]


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A compressed weight: exactly what is stored, and exactly what else decoding needs.

    tensors: arrays by name. meta: numbers and words. Both match the format's `spec`, or ConfigError is raised.
    """

    format: str
    shape: tuple[int, ...]
    tensors: Mapping[str, Tensor]
    meta: Meta

    def __post_init__(self) -> None:
        spec = self.spec
        if set(spec) != set(self.tensors):
            raise ConfigError(f"{self.format} stores {sorted(spec)}, got {sorted(self.tensors)}")
        for name, want in spec.items():
            got = self.tensors[name]
            if tuple(got.shape) != want.shape or got.dtype != want.dtype:
                raise ConfigError(
                    f"{self.format}.{name} must be {want.dtype} {list(want.shape)}, got {got.dtype} {list(got.shape)}"
                )

    @property
    def spec(self) -> dict[str, TensorSpec]:
        return get_format(self.format).spec(self.shape, self.meta)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The decoded weight, of `shape`."""
        return get_format(self.format).decode(self.tensors, self.shape, self.meta, dtype)

    def codes(self) -> Tensor:
        """The unpacked codes, int32 [M, n]."""
        return get_format(self.format).codes(self.tensors, self.shape, self.meta)

    def levels(self) -> Tensor:
        """Values that a weight can take in a row of median scale, ascending."""
        return get_format(self.format).levels(self.tensors, self.shape, self.meta)

    @property
    def nbytes(self) -> int:
        """Bytes stored for this layer alone; a shared codebook is counted once, in the ledger."""
        return sum(part.nbytes for part in self.spec.values() if not part.shared)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / math.prod(self.shape)
