"""Additive codebooks: ``w[i, g] = scale[i, run] * sum_m C_m[code[m, i, g]]`` (arXiv 2409.00492, 2401.06118).

M codebooks of 2^b entries, each d weights long (float16); groups as in `grouping.to_groups`; scale float16 [O, S]
covers runs of `scale_group` weights of a row in group order, or the whole row when `scale_group` is 0 (S = 1).
meta: codebooks (M), code_bits (b), group_size (d), scale_group, and `shared`, the name of a codebook set that many
layers store once, or "" for a set of the layer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from math import prod

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sdvq_core.bitpack import packed_nbytes, unpack
from sdvq_core.grouping import from_groups, groups_per_row, row_length
from sdvq_core.kernels import Packed, Rows, additive_decode, codebook_decoder, codebook_nbytes, linear
from sdvq_core.qtensor import Format, Meta, TensorSpec, register_format


def expand_scale(scale: Tensor, length: int, scale_group: int) -> Tensor:
    """scale [O, S] -> [O, length] (or [O, 1] when one scale covers the row): one factor per weight of the row."""
    return scale if not scale_group else scale.repeat_interleave(scale_group, 1)[:, :length]


_FLOATS: MutableMapping[Tensor, tuple[int, Tensor]] = WeakTensorKeyDictionary()


def _floats(books: Tensor) -> Tensor:
    """A shared codebook set in float32: one copy for all layers that decode with it, as long as the set lives."""
    if books.is_inference():
        return books.float()
    known = _FLOATS.get(books)
    if known is None or known[0] != books._version:
        known = (books._version, books.float())
        _FLOATS[books] = known
    return known[1]


@register_format
class Codebook(Format):
    """codes uint8 [M, packed], codebook float16 [M, 2^b, d], scale float16 [O, S]."""

    name = "codebook"

    def spec(self, shape: Sequence[int], meta: Meta) -> dict[str, TensorSpec]:
        books, bits, d = int(meta["codebooks"]), int(meta["code_bits"]), int(meta["group_size"])
        groups, run = groups_per_row(shape, d), int(meta["scale_group"])
        runs = -(-groups * d // run) if run else 1
        return {
            "codes": TensorSpec((books, packed_nbytes(shape[0] * groups, bits)), torch.uint8, "codes"),
            "codebook": TensorSpec((books, 2**bits, d), torch.float16, "codebooks", str(meta["shared"])),
            "scale": TensorSpec((shape[0], runs), torch.float16, "scales"),
        }

    def decode(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta, dtype: torch.dtype) -> Tensor:
        return self.decoder(tensors, shape, meta)(dtype)

    def decoder(
        self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta
    ) -> Callable[[torch.dtype], Tensor]:
        d, bits, run = int(meta["group_size"]), int(meta["code_bits"]), int(meta["scale_group"])
        groups = groups_per_row(shape, d)
        books = _floats(tensors["codebook"]) if meta["shared"] else tensors["codebook"]
        rows = codebook_decoder(tensors["codes"], bits, books, tensors["scale"], run, groups)
        if len(shape) == 2 and groups * d == shape[1]:
            return rows
        return lambda dtype: from_groups(rows(dtype).view(shape[0], groups, d), shape)

    def decoding_nbytes(self, shape: Sequence[int], meta: Meta, dtype: torch.dtype, device: torch.device) -> int:
        spec, length = self.spec(shape, meta), groups_per_row(shape, int(meta["group_size"])) * int(meta["group_size"])
        copied = prod(shape) if len(shape) == 4 and length != row_length(shape) else 0  # padded at every tap
        rows = Rows(shape[0], length, dtype, device, copied)
        books, entries, size = spec["codebook"].shape
        runs, run = spec["scale"].shape[1], int(meta["scale_group"])
        return codebook_nbytes(rows, (books, entries, size), int(meta["code_bits"]), runs, run)

    def is_prepared(self, meta: Meta) -> bool:
        return bool(meta["shared"]) and int(meta["code_bits"]) == 8 and int(meta["group_size"]) > 1  # no copy of codes

    def linear(
        self, x: Tensor, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta, bias: Tensor | None
    ) -> Tensor:
        groups = groups_per_row(shape, int(meta["group_size"]))
        stored = (tensors["codes"], int(meta["code_bits"]), tensors["codebook"], tensors["scale"])
        weight = Packed(*stored, int(meta["scale_group"]), groups)
        return linear(x, weight, bias, lambda: self.decode(tensors, shape, meta, x.dtype))

    def assemble(self, unpacked: Tensor, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        d = int(meta["group_size"])
        groups = groups_per_row(shape, d)
        vectors = additive_decode(unpacked, tensors["codebook"].float())  # [O * G, d]
        scale = expand_scale(tensors["scale"].float(), groups * d, int(meta["scale_group"]))
        rows = vectors.reshape(shape[0], -1) * scale  # [O, G * d]
        return from_groups(rows.reshape(shape[0], groups, d), shape)

    def codes(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        count = shape[0] * groups_per_row(shape, int(meta["group_size"]))
        return torch.stack([unpack(packed, int(meta["code_bits"]), count) for packed in tensors["codes"]])  # [M, O * G]

    def levels(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        """Components of the first codebook's entries, the coarsest of the set."""
        return (tensors["codebook"][0].float() * tensors["scale"].float().median()).flatten().sort().values
