"""Suite `memory`: what a UNet's weights take while it runs, by mode, against 2 bytes for every parameter.

By record: every tensor that the UNet holds, and the most that decoding a weight takes (`Footprint`). Measured:
the same tensors, and by how much the peak of one call rises above that of the float UNet's call, whose rise is
activations alone; the peak is the process' resident set on the CPU, torch's allocated bytes on a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sdvq_core.bench.nano import call, nano_inputs, nano_models
from sdvq_core.bench.timing import Row
from sdvq_core.nn import footprint

_PROC, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): the peak becomes what is resident now

Models = Mapping[str, tuple[nn.Module, Callable[[], object]]]


def memory() -> Iterator[Row]:
    """The bundled model, on the CPU, in float32."""
    with nano_models() as (engine, models):
        inputs = nano_inputs(engine)
        calls = {name: (unet, partial(call, unet, inputs)) for name, unet in models.items()}
        yield from memory_rows("memory", calls, torch.device("cpu"))


def memory_rows(suite: str, models: Models, device: torch.device) -> Iterator[Row]:
    """Rows of every UNet with its call, by record and measured; the first is the float one."""
    whole = 2 * sum(value.numel() for value in next(iter(models.values()))[0].parameters())
    activations: int | None = None
    for name, (unet, run) in models.items():
        kept = footprint(unet)
        yield _row(suite, f"by record, weights + scratch, {name}", kept.nbytes + kept.scratch_nbytes, whole)
        rise = _rise(run, device)
        if rise is None:
            yield Row(suite, f"measured, {name}", note="not measured: this system does not say what is resident")
            continue
        activations = rise if activations is None else activations
        nbytes = kept.nbytes + max(0, rise - activations)
        yield _row(suite, f"measured, weights + rise above the float UNet's, {name}", nbytes, whole)


def _row(suite: str, case: str, nbytes: int, whole: int) -> Row:
    note = f"{nbytes} bytes, {nbytes / whole:.4f} of 16 bits for every parameter"
    return Row(suite, case, rate=nbytes / 1e6, unit="MB", ratio=whole / nbytes, against="16 bits", note=note)


def _rise(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes by which the peak of a call, which ran before, exceeds what was in use; None where nothing says so."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        _give_back_what_is_free()
        _CLEAR.write_text(_RESET_PEAK, "ascii")
        before = status_nbytes("VmRSS")
        run()
        return status_nbytes("VmHWM") - before
    except (OSError, StopIteration, AttributeError):
        return None


def _give_back_what_is_free() -> None:
    """glibc returns free memory to the system, so that using it again shows."""
    ctypes.CDLL(None).malloc_trim(0)


def status_nbytes(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = _PROC.read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
