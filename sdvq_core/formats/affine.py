"""Uniform scalar codes: ``w = offset + scale * code``, one scale and offset (float16) per run of weights in a row.

Rows are in `grouping.to_rows` order, padded at the end to S runs of `group_size` weights. Codes are packed densely.
meta: bits, group_size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sdvq_core.bitpack import packed_nbytes, unpack
from sdvq_core.grouping import from_rows, row_length
from sdvq_core.kernels import Rows, affine_nbytes, affine_rows
from sdvq_core.qtensor import Format, Meta, TensorSpec, register_format


@register_format
class Affine(Format):
    """codes uint8 [packed], scale and offset float16 [O, S]."""

    name = "affine"

    def spec(self, shape: Sequence[int], meta: Meta) -> dict[str, TensorSpec]:
        size = int(meta["group_size"])
        rows = (shape[0], -(-row_length(shape) // size))  # [O, S]
        packed = packed_nbytes(rows[0] * rows[1] * size, int(meta["bits"]))
        return {
            "codes": TensorSpec((packed,), torch.uint8, "codes"),
            "scale": TensorSpec(rows, torch.float16, "scales"),
            "offset": TensorSpec(rows, torch.float16, "scales"),
        }

    def decode(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta, dtype: torch.dtype) -> Tensor:
        bits, size = int(meta["bits"]), int(meta["group_size"])
        rows = affine_rows(tensors["codes"], bits, tensors["scale"], tensors["offset"], size, dtype)  # [O, S * size]
        return from_rows(rows[:, : row_length(shape)], shape)

    def decoding_nbytes(self, shape: Sequence[int], meta: Meta, dtype: torch.dtype, device: torch.device) -> int:
        size = int(meta["group_size"])
        runs = -(-row_length(shape) // size)
        return affine_nbytes(Rows(shape[0], runs * size, dtype, device), int(meta["bits"]), runs)

    def assemble(self, unpacked: Tensor, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        scale, offset = tensors["scale"].float(), tensors["offset"].float()  # [O, S]
        runs = unpacked.reshape(*scale.shape, -1) * scale[..., None] + offset[..., None]  # [O, S, size]
        rows = runs.reshape(shape[0], -1)[:, : row_length(shape)]  # [O, T * I]
        return from_rows(rows, shape)

    def codes(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        count = tensors["scale"].numel() * int(meta["group_size"])
        return unpack(tensors["codes"], int(meta["bits"]), count)[None]  # [1, O * S * size]

    def levels(self, tensors: Mapping[str, Tensor], shape: Sequence[int], meta: Meta) -> Tensor:
        steps = torch.arange(2 ** int(meta["bits"]), device=tensors["scale"].device)
        return tensors["offset"].float().median() + tensors["scale"].float().median() * steps
