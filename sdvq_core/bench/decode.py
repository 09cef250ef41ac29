"""Suite `decode`: codes -> weights. The idiom of VQDM and AQLM is torch's embedding and sum, on unpacked codes.

Layers are SDXL's most frequent shape, 1280 x 1280, enough of them to overflow the caches between two uses of one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from sdvq_core.bench.timing import Row, in_turns, rows, threads_set_to
from sdvq_core.kernels import codebook_decoder
from sdvq_core.peers import parse as parse_peer
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers import parse

_SIDE, _LAYERS, _ROUNDS = 1280, 8, 21
_IDIOM, _HALF = "torch embedding + sum", "float16 -> float32"
_FORMATS = (
    "rvq:bits=3,beam=1,share=layer",
    "rvq:codebooks=3,code_bits=7,beam=1,share=layer",
    "rtn:bits=4",
    "nf4",
    "tcq:bits=3",
)
_PEERS = ("lib.bitsandbytes", "lib.gguf", "lib.hqq", "lib.quanto")  # SDNQ tells no way to decode a layer twice


def decode() -> Iterator[Row]:
    """Additive codes, packed, by kernel and, unpacked already, by idiom, one thread each; then all formats."""
    with threads_set_to(1):
        for books in (2, 3, 4):
            yield from _kernels(books)
    yield from _formats()


def _kernels(books: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    points = _SIDE * _SIDE // 8
    codes = [torch.randint(256, (books, points), generator=generator, dtype=torch.int32) for _ in range(_LAYERS)]
    tables = [torch.randn(books, 256, 8, generator=generator) for _ in range(_LAYERS)]
    layers = list(zip(codes, tables, strict=True))
    scale = torch.ones(_SIDE, 1)
    packed = [(codebook_decoder(code.to(torch.uint8), 8, table, scale, 0, _SIDE // 8),) for code, table in layers]
    cases = {
        _IDIOM: _in_rotation(layers, _idiom),
        "SDVQ from bytes": _in_rotation(packed, lambda decode: decode(torch.float32)),
    }
    seconds = in_turns({f"{books}x8, {name}": case for name, case in cases.items()}, _ROUNDS)
    return rows("decode", seconds, f"{books}x8, {_IDIOM}", _SIDE * _SIDE / 1e9, "10^9 weights/s, one thread")


def _idiom(codes: Tensor, books: Tensor) -> Tensor:
    return torch.stack([embedding(code, book) for code, book in zip(codes, books, strict=True)]).sum(0)


def _formats() -> list[Row]:
    """`dequantize` of packed layers as an artifact stores them, against a float16 layer made float32."""
    weight = torch.randn(_SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    halves = [(weight.half() + layer,) for layer in range(_LAYERS)]
    cases = {_HALF: _in_rotation(halves, Tensor.float)}
    for word in _FORMATS:
        stored = parse(word).quantize(weight)
        layers = [(QuantizedTensor(stored.format, stored.shape, _copy(stored), stored.meta),) for _ in range(_LAYERS)]
        cases[f"{word}, packed"] = _in_rotation(layers, QuantizedTensor.dequantize)
    for word in _PEERS:
        cases |= _peer(word, weight)
    return rows("decode", in_turns(cases, _ROUNDS), _HALF, _SIDE * _SIDE / 1e9, "10^9 weights/s")


def _peer(word: str, weight: Tensor) -> dict[str, Callable[[], object]]:
    """Layers as another library stores and decodes them; nothing where it is not installed."""
    peer = parse_peer(word)
    if peer.version() is None:
        return {}
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float16)
    layer.weight.data.copy_(weight)
    found = [peer.quantize(copy.deepcopy(layer)).decode for _ in range(_LAYERS)]
    return {f"{word}, float16": _in_rotation([(decode,) for decode in found if decode], lambda decode: decode())}


def _copy(stored: QuantizedTensor) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in stored.tensors.items()}


def _in_rotation(layers: Sequence[tuple[Any, ...]], work: Callable[..., object]) -> Callable[[], object]:
    """One layer per call, the next one each time."""
    turn = cycle(layers)
    return lambda: work(*next(turn))
