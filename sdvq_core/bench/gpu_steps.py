"""One call of SDXL's UNet on the GPU: bfloat16 weights, 3-bit codes resident and streaming; and what the weights take.

Float weights are measured in both orders of memory: as torch has them, and channels last, as ours are decoded. Ratios
are to the faster of the two. Keys and values of the prompt are computed once, on every side. Each case is measured
launched from Python and as a CUDA graph, captured after a warm-up in which every layer chose its way of multiplying.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sdvq_core.bench.full_size import random_unet, with_random_codes
from sdvq_core.bench.gpu_setting import SUITE, Setting, inputs
from sdvq_core.bench.memory import memory_rows
from sdvq_core.bench.timing import Row, rows
from sdvq_core.kernels import CHOICES, device_obstacle, fp8_products
from sdvq_core.nn import PromptCache, make_ready
from sdvq_core.quantizers import parse

_WORD, _FLOAT, _LAST = "rvq:bits=3", "bf16", "bf16 channels last"
_FLOAT8 = "float8 products"
_WAYS = ("CUDA graph", "launched from Python")

Calls = dict[str, Callable[[], Tensor]]


def large_steps(setting: Setting) -> Iterator[Row]:
    """Two guidance halves of one large image (1024 px); then memory."""
    models = _models(setting)
    yield from _steps(setting, models, setting.cells[0], 2)
    given = inputs(setting, setting.cells[0], 2)
    calls = {f"memory, {name}": (unet, _call(unet, given)) for name, unet in models.items() if name != _LAST}
    yield from memory_rows(SUITE, calls, setting.device)


def small_steps(setting: Setting) -> Iterator[Row]:
    """One small image (512 px) without guidance."""
    yield from _steps(setting, _models(setting), setting.cells[1], 1)


def _models(setting: Setting) -> dict[str, nn.Module]:
    """Four UNets of their own: float weights in two orders, codes decoded once, codes decoded in every call."""
    found = {name: random_unet(setting.device, setting.dtype, setting.config) for name in (_FLOAT, _LAST)}
    found[_LAST].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for mode in ("resident", "streaming"):
        unet = with_random_codes(random_unet(setting.device, setting.dtype, setting.config), parse(_WORD))
        obstacle = make_ready(unet, mode, setting.dtype)
        if obstacle:
            raise RuntimeError(obstacle)
        found[f"{_WORD} {mode}"] = unet
    return found


def _steps(setting: Setting, models: dict[str, nn.Module], cells: int, batch: int) -> Iterator[Row]:
    given = inputs(setting, cells, batch)
    calls = {name: _call(unet, given) for name, unet in models.items()}
    calls |= _in_float8(setting, calls)
    for way in _WAYS:
        prefix = f"step {8 * cells} px batch {batch}, {way}, "
        make = setting.clock.captured if way == "CUDA graph" else _as_it_is
        cases = {prefix + name: make(call) for name, call in calls.items()}
        times = setting.clock.in_turns(cases, setting.rounds)
        faster = min((prefix + _FLOAT, prefix + _LAST), key=lambda name: statistics.median(times[name]))
        timed = {row.case: row for row in rows(SUITE, times, faster)}
        for row in timed.values():
            yield replace(row, note=_ratio(row, timed[faster], faster.removeprefix(prefix)))
    yield _float8_error(setting, calls, f"step {8 * cells} px batch {batch}")
    known = CHOICES.known()
    yield Row(SUITE, f"step {8 * cells} px batch {batch}, ways of multiplying", note=_chosen(known))


def _call(unet: nn.Module, given: dict[str, Any]) -> Callable[[], Tensor]:
    """The UNet's answer, keys and values of the prompt kept from call to call."""
    cache = PromptCache(unet)

    def call() -> Tensor:
        with torch.no_grad(), cache:
            answer: Tensor = unet(**given, return_dict=False)[0]
        return answer

    return call


def _in_float8(setting: Setting, calls: Calls) -> Calls:
    """The streaming UNet with Linear layers that multiply in float8, where the GPU can."""
    if device_obstacle(setting.device):
        return {}
    streaming = calls[f"{_WORD} streaming"]

    def call() -> Tensor:
        with fp8_products():
            return streaming()

    return {f"{_WORD} streaming, {_FLOAT8}": call}


def _float8_error(setting: Setting, calls: Calls, name: str) -> Row:
    """What float8 adds to the error of the UNet's answer, random weights and all."""
    case, obstacle = f"{name}, added output error of {_FLOAT8}", device_obstacle(setting.device)
    if obstacle:
        return Row(SUITE, case, note=f"not measured: {obstacle}")
    exact = calls[f"{_WORD} streaming"]().double()
    off = calls[f"{_WORD} streaming, {_FLOAT8}"]().double() - exact
    share = float(off.square().sum() / exact.square().sum())
    return Row(SUITE, case, rate=share, unit="of the squared answer")


def _as_it_is(call: Callable[[], object]) -> Callable[[], object]:
    call()
    return call


def _ratio(row: Row, to: Row, name: str) -> str:
    if row.case == to.case or not row.seconds or not to.seconds:
        return ""
    return f"{row.seconds / to.seconds:.3f} of the time of {name}"


def _chosen(known: dict[Any, bool]) -> str:
    """How many kinds of product decode inside, by rows of x."""
    parts = []
    for count in sorted({case.rows for case in known}):
        chosen = [fused for case, fused in known.items() if case.rows == count]
        parts.append(f"{sum(chosen)} of {len(chosen)} shapes at {count} rows")
    return "decoded inside the product: " + (", ".join(parts) or "none, no product was short enough")
