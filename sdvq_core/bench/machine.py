"""The machine of a run, with its own rates measured in the same run: memory copy and matrix product."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from sdvq_core.bench.timing import in_turns
from sdvq_core.production import versions

_COPY_NBYTES = 256 << 20
_SIDE = 2048


def machine() -> dict[str, str]:
    """Processor, threads, versions, copy bandwidth (reads and writes counted) and float32 GEMM rate."""
    source, target = torch.ones(_COPY_NBYTES // 4), torch.empty(_COPY_NBYTES // 4)
    one, other = torch.randn(_SIDE, _SIDE), torch.randn(_SIDE, _SIDE)
    seconds = in_turns({"copy": lambda: target.copy_(source), "gemm": lambda: one @ other}, 5)
    copy, gemm = (sorted(seconds[name])[2] for name in ("copy", "gemm"))
    return {
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "copy": f"{2 * _COPY_NBYTES / copy / 1e9:.1f} GB/s",
        "gemm": f"{2 * _SIDE**3 / gemm / 1e9:.0f} GFLOP/s float32",
        "python": platform.python_version(),
        **versions(),
    }


def _processor() -> str:
    """The processor's own name where the system tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
