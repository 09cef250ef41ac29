"""Decoding as one operation of torch, for torch.compile: it sees no kernel of ours, only what goes in and comes out.

The same numbers as `Format.decode`. In a graph it is decoded anew in every call, so resident layers keep the result.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from sdvq_core.qtensor import get_format


@torch.library.custom_op("sdvq::decode", mutates_args=())
def decode_op(stored: Sequence[Tensor], form: str, shape: Sequence[int], meta: str, dtype: torch.dtype) -> Tensor:
    """stored: the arrays in the order of the format's `spec`; meta: as JSON -> the weight of `shape`, contiguous."""
    settings, found = json.loads(meta), get_format(form)
    tensors = dict(zip(found.spec(shape, settings), stored, strict=True))
    return found.decode(tensors, tuple(shape), settings, dtype).contiguous()


@decode_op.register_fake
def _(stored: Sequence[Tensor], form: str, shape: Sequence[int], meta: str, dtype: torch.dtype) -> Tensor:
    return stored[0].new_empty(tuple(shape), dtype=dtype)
