"""Suite `encode`: training and encoding one layer, against faiss' ResidualQuantizer on the same threads.

A case's name carries the relative error that it reaches, since speed at another error is no comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from sdvq_core.bench.timing import Row, in_turns, rows
from sdvq_core.metrics.weights import relative_mse
from sdvq_core.quantizers import Quantizer, parse

_SIDE, _ROUNDS = 1280, 3
_WORDS = (
    "rvq:share=layer,beam=12",  # about faiss' error
    "rvq:share=layer",
    "rvq:share=layer,beam=1",
    "aq:share=layer",
    "tcq:bits=3",
    "rtn:bits=4",
)


def encode() -> Iterator[Row]:
    """3 codebooks of 8 bits over groups of 8, and other codes, of a Gaussian 1280 x 1280 layer."""
    weight = torch.randn(_SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    makers: dict[str, Callable[[], Tensor]] = {}
    if find_spec("faiss") is not None:
        makers["faiss ResidualQuantizer 3x8"] = partial(_faiss, weight)
    for word in _WORDS:
        makers[word] = partial(_ours, parse(word), weight)
    cases = {f"{name}, error {relative_mse(weight, make()):.5f}": make for name, make in makers.items()}
    seconds = in_turns(cases, _ROUNDS, warm=True)
    yield from rows("encode", seconds, next(iter(cases)), _SIDE * _SIDE / 1e6, "10^6 weights/s")


def _ours(quantizer: Quantizer, weight: Tensor) -> Tensor:
    return quantizer.quantize(weight).dequantize()


def _faiss(weight: Tensor) -> Tensor:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    points = weight.reshape(-1, 8).numpy()
    coder = faiss.ResidualQuantizer(8, 3, 8)
    coder.train(points)
    return torch.from_numpy(coder.decode(coder.compute_codes(points))).reshape(weight.shape)
