"""Decoding all 788 layers of SDXL's UNet, random codes -> bfloat16 rows, against this run's copy bandwidth and others.

Bytes moved are the stored arrays, read once, and the decoded weights, written once. Rows are what a product takes; a
convolution's weight is then put in its own order, which is not counted here (it is in the steps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import embedding

from sdvq_core.bench.full_size import plan_for, random_codes, random_unet, skeleton, weight_of
from sdvq_core.bench.gpu_setting import SUITE, Setting
from sdvq_core.bench.timing import Row, rows
from sdvq_core.formats.trellis import circle_length
from sdvq_core.grouping import groups_per_row, row_length
from sdvq_core.kernels import code_table
from sdvq_core.qtensor import QuantizedTensor
from sdvq_core.quantizers import parse

_WORD, _OTHERS = "rvq:bits=3", ("rvq:bits=2", "rvq:bits=4", "rtn:bits=4", "tcq:bits=3")
_COPY, _IDIOM = "copy in device memory", "torch embedding + sum, unpacked int32 codes, all layers, CUDA graph"

Work = Callable[[], object]


def decode_layers(setting: Setting) -> Iterator[Row]:
    """3x8: launches in one CUDA graph and from Python; one scratch for all layers, and scratch beyond the L2."""
    layers = _layers(setting, _WORD)
    one, many = _scratch(setting, layers, reused=True), _scratch(setting, layers, reused=False)
    cases = {
        f"decode {_WORD}, all layers, one scratch, CUDA graph": setting.clock.captured(_decoding(layers, one)),
        f"decode {_WORD}, all layers, scratch beyond the L2, CUDA graph": setting.clock.captured(
            _decoding(layers, many)
        ),
        f"decode {_WORD}, all layers, one scratch, launched from Python": _decoding(layers, one),
    }
    yield from _beside_copy(setting, cases, _nbytes(layers, setting.dtype))


def other_formats(setting: Setting) -> Iterator[Row]:
    """The other widths and formats. Of trellis codes this is the first half; rotating back is a case of its own."""
    for word in _OTHERS:
        layers = _layers(setting, word)
        moved, scratch = _nbytes(layers, setting.dtype), _scratch(setting, layers, reused=True)
        name = f"decode {word}, all layers, one scratch, CUDA graph"
        cases: dict[str, Work] = {name: setting.clock.captured(_decoding(layers, scratch))}
        if layers[0].format == "trellis":
            whole = f"decode {word}, all layers, rotated back and scaled, CUDA graph"
            cases[whole] = setting.clock.captured(_as_weights(setting, layers))
        yield from _beside_copy(setting, cases, moved)


def beside_the_idiom(setting: Setting) -> Iterator[Row]:
    """3x8 beside what VQDM and AQLM do without a kernel: look entries up and add them."""
    layers = _layers(setting, _WORD)
    name = f"decode {_WORD}, all layers, one scratch, CUDA graph, beside the idiom"
    ours = setting.clock.captured(_decoding(layers, _scratch(setting, layers, reused=True)))
    idiom = setting.clock.captured(_idiom(setting, layers))
    yield from setting.timed({_IDIOM: idiom, name: ours}, _IDIOM)


def beside_peers(setting: Setting) -> Iterator[Row]:
    """3x8 and 4 bit beside bitsandbytes' NF4, its codes of the same layers decoded by its own function."""
    if find_spec("bitsandbytes") is None:
        yield Row(SUITE, "decode beside bitsandbytes NF4", note="not measured: bitsandbytes is not installed")
        return
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    unet = random_unet(setting.device, setting.dtype, setting.config)
    planned = [weight_of(unet, item.name) for item in plan_for(unet, parse(_WORD)).assignments]
    peers = [quantize_4bit(weight, blocksize=64, quant_type="nf4") for weight in planned]
    del unet, planned
    layers = _layers(setting, _WORD)

    def decode_peers() -> None:
        for codes, state in peers:
            dequantize_4bit(codes, state)

    ours = _decoding(layers, _scratch(setting, layers, reused=True))
    names = ("decode bitsandbytes NF4, all layers", f"decode {_WORD}, all layers, one scratch, beside NF4")
    for way, make in (("launched from Python", lambda run: run), ("CUDA graph", setting.clock.captured)):
        cases = {f"{name}, {way}": make(run) for name, run in zip(names, (decode_peers, ours), strict=True)}
        yield from setting.timed(cases, next(iter(cases)))


def rows_into(layer: QuantizedTensor, out: Tensor) -> None:
    """Fill out [O, G * d], [O, S * size] or [O, n] with the decoded rows of `layer` by the kernel of its format."""
    from sdvq_core.kernels import decode_triton as kernels

    stored, meta, dtype = layer.tensors, layer.meta, out.dtype
    if layer.format == "codebook":
        bits, run = int(meta["code_bits"]), int(meta["scale_group"])
        groups = groups_per_row(layer.shape, int(meta["group_size"]))
        kernels.codebook_rows(stored["codes"], bits, stored["codebook"], stored["scale"], run, groups, dtype, out)
    elif layer.format == "affine":
        bits, size = int(meta["bits"]), int(meta["group_size"])
        kernels.affine_rows(stored["codes"], bits, stored["scale"], stored["offset"], size, dtype, out)
    else:
        bits, shape = int(meta["bits"]), (layer.shape[0], row_length(layer.shape))
        table = code_table(bits, int(meta["state_bits"]), out.device)
        kernels.trellis_rows(stored["codes"], bits, table, circle_length(*shape), shape, dtype, out)


def _layers(setting: Setting, word: str) -> list[QuantizedTensor]:
    return [tensor for _, tensor in random_codes(skeleton(setting.config), parse(word), setting.device)]


def _rows_shape(layer: QuantizedTensor) -> tuple[int, int]:
    """Of the decoded rows, padding included."""
    if layer.format == "codebook":
        size = int(layer.meta["group_size"])
        return layer.shape[0], groups_per_row(layer.shape, size) * size
    if layer.format == "affine":
        runs: int = layer.tensors["scale"].shape[1]
        return layer.shape[0], runs * int(layer.meta["group_size"])
    return layer.shape[0], row_length(layer.shape)


def _scratch(setting: Setting, layers: list[QuantizedTensor], reused: bool) -> list[Tensor]:
    """For every layer a view [rows] of one buffer: all the same place, or one after another, around and around."""
    shapes = [_rows_shape(layer) for layer in layers]
    largest = max(map(prod, shapes))
    room = largest if reused else max(largest, setting.scratch_nbytes // setting.dtype.itemsize)
    buffer, start, views = torch.empty(room, dtype=setting.dtype, device=setting.device), 0, []
    for shape in shapes:
        start = 0 if reused or start + prod(shape) > room else start
        views.append(buffer[start : start + prod(shape)].view(shape))
        start += -(-prod(shape) // 64) * 64  # as torch aligns
    return views


def _decoding(layers: list[QuantizedTensor], scratch: list[Tensor]) -> Work:
    def run() -> None:
        for layer, out in zip(layers, scratch, strict=True):
            rows_into(layer, out)

    return run


def _as_weights(setting: Setting, layers: list[QuantizedTensor]) -> Work:
    def run() -> None:
        for layer in layers:
            layer.dequantize(setting.dtype)

    return run


def _idiom(setting: Setting, layers: list[QuantizedTensor]) -> Work:
    """Codes are unpacked, codebooks and scales in the dtype beforehand: only look-ups, sum and scale are timed."""
    ready = [
        (layer.codes(), layer.tensors["codebook"].to(setting.dtype), layer.tensors["scale"].to(setting.dtype))
        for layer in layers
    ]

    def run() -> None:
        for codes, books, scale in ready:
            vectors = torch.stack([embedding(code, book) for code, book in zip(codes, books, strict=True)]).sum(0)
            vectors.reshape(len(scale), -1).mul_(scale)

    return run


def _nbytes(layers: list[QuantizedTensor], dtype: torch.dtype) -> int:
    """Stored arrays of every layer, shared ones as often as they are used, and decoded rows in `dtype`."""
    stored = sum(array.nbytes for layer in layers for array in layer.tensors.values())
    return stored + sum(prod(_rows_shape(layer)) * dtype.itemsize for layer in layers)


def _beside_copy(setting: Setting, cases: dict[str, Work], moved: int) -> Iterator[Row]:
    """Rows with bytes per second, and their share of what a copy reaches in turns with them."""
    everything = {_COPY: 2 * setting.copy_nbytes, **dict.fromkeys(cases, moved)}
    copy = 0.0
    for name, times in setting.clock.in_turns({_COPY: setting.copying(), **cases}, setting.rounds).items():
        row = rows(SUITE, {name: times}, name, everything[name] / 1e9, "GB/s")[0]
        copy = copy or row.rate or 0.0
        share = "" if name == _COPY else f"{(row.rate or 0.0) / copy:.3f} of the copy's bandwidth"
        yield replace(row, note=share)
