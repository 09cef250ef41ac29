"""One layer under the magnifier: histogram of its weights, levels of its code, use of its codebook entries."""

from __future__ import annotations

import torch
from torch import Tensor

from sdvq_core.jobs import Histogram, LayerDetail
from sdvq_core.metrics.weights import relative_mse
from sdvq_core.naming import block_of, role_of
from sdvq_core.qtensor import QuantizedTensor

_BINS, _MAX_LEVELS = 81, 512


def layer_detail(arm: str, layer: str, weight: Tensor, quantized: QuantizedTensor) -> LayerDetail:
    """weight: the original. The numbers of `quantized` beside it, ready to draw."""
    decoded = quantized.dequantize()
    counts = [torch.bincount(code, minlength=int(2 ** _width(quantized))) for code in quantized.codes()]
    facts = {
        "block": block_of(layer),
        "role": role_of(layer),
        "shape": " x ".join(map(str, quantized.shape)),
        "format": quantized.format,
        "bits per weight": f"{quantized.bits_per_weight:.3f}",
        "bytes": f"{quantized.nbytes:,}",
        "relative error": f"{relative_mse(weight, decoded):.3e}",
        "largest error": f"{float((decoded - weight.float()).abs().max()):.4g}",
        "codebook": str(quantized.meta.get("shared", "")) or "of its own",
    }
    return LayerDetail(
        arm,
        layer,
        _histogram(weight.float(), decoded),
        _thin(quantized.levels()),
        tuple(tuple(int(n) for n in count.sort(descending=True).values) for count in counts),
        tuple(_perplexity(count) for count in counts),
        facts,
    )


def _width(quantized: QuantizedTensor) -> int:
    return int(quantized.meta.get("code_bits", quantized.meta.get("bits", 0)))


def _histogram(weight: Tensor, decoded: Tensor) -> Histogram:
    top = max(float(weight.abs().max()), 1e-12)
    edges = torch.linspace(-top, top, _BINS + 1)
    counts = [torch.histc(value.clamp(-top, top), _BINS, -top, top) for value in (weight, decoded)]
    original, coded = (tuple(int(n) for n in count) for count in counts)
    return Histogram(tuple(edges.tolist()), original, coded)


def _thin(levels: Tensor) -> tuple[float, ...]:
    step = -(-len(levels) // _MAX_LEVELS)
    return tuple(levels[::step].tolist())


def _perplexity(count: Tensor) -> float:
    share = count[count > 0] / count.sum()
    return float(2 ** -(share * share.log2()).sum())
