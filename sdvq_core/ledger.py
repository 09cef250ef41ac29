"""The bits ledger: where every byte of a UNet goes, before it is made (exactly) and after.

``bits_per_weight = 8 * (bytes of every tensor) / (parameters of the UNet)``; the size of the safetensors file follows
from the same specs, because a file is an 8-byte length, a JSON header padded to 8 bytes, and the tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from sdvq_core.qtensor import TensorSpec
from sdvq_core.records import PARTS, Fallback, Ledger

SHARED_PREFIX = "sdvq_codebooks."
_DTYPES = {torch.uint8: "U8", torch.float16: "F16"}  # of our formats; those of peers' tensors:
_DTYPES |= {torch.int8: "I8", torch.int32: "I32", torch.bfloat16: "BF16", torch.float32: "F32"}


def stored_specs(
    layers: Mapping[str, Mapping[str, TensorSpec]], kept: Mapping[str, Sequence[int]]
) -> dict[str, TensorSpec]:
    """Every tensor of an artifact under its name in the file: layer arrays, shared codebooks once, and what is kept.

    layers: specs by layer name. kept: shapes of what stays in float16, by parameter name.
    """
    found = {name: TensorSpec(tuple(shape), torch.float16, "kept") for name, shape in kept.items()}
    for layer, specs in layers.items():
        for name, spec in specs.items():
            found[SHARED_PREFIX + spec.shared if spec.shared else f"{layer}.{name}"] = spec
    return found


def build_ledger(
    shapes: Iterable[Sequence[int]], stored: Mapping[str, TensorSpec], file_nbytes: int, fallbacks: Sequence[Fallback]
) -> Ledger:
    """shapes: of the compressed weights; stored: every tensor of the file. The kept ones count as one weight each."""
    quantized = sum(math.prod(shape) for shape in shapes)
    kept = sum(math.prod(spec.shape) for spec in stored.values() if spec.part == "kept")
    parts = dict.fromkeys(PARTS, 0)
    for spec in stored.values():
        parts[spec.part] += spec.nbytes
    return Ledger(kept + quantized, quantized, parts, file_nbytes, tuple(fallbacks))


def file_nbytes(stored: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> int:
    """Size of the safetensors file that holds `stored` and `metadata` (ASCII), to the byte."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, spec in sorted(stored.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        end = start + spec.nbytes
        header[name] = {"dtype": _DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        start = end
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + start
