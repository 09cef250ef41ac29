"""The machine of a run, with its own rates measured in the same run: memory copy and matrix product."""

from __future__ import annotations

import platform
import statistics
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from sdvq_core.bench.gpu_clock import gpu_in_turns
from sdvq_core.bench.timing import in_turns
from sdvq_core.production import versions

_COPY_NBYTES = 256 << 20
_SIDE = 2048
_GPU_COPY_NBYTES, _GPU_SIDE, _GPU_ROUNDS = 2 << 30, 8192, 20


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


def gpu_machine() -> dict[str, str]:
    """The GPU, its driver, Triton's version, copy bandwidth (reads and writes counted) and bfloat16 GEMM rate."""
    device = torch.device("cuda", torch.cuda.current_device())
    source = torch.empty(_GPU_COPY_NBYTES, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    one, other = (torch.randn(_GPU_SIDE, _GPU_SIDE, device=device).bfloat16() for _ in range(2))
    cases = {"copy": lambda: target.copy_(source), "gemm": lambda: one @ other}
    seconds = gpu_in_turns(cases, _GPU_ROUNDS)
    copy, gemm = (statistics.median(seconds[name]) for name in ("copy", "gemm"))
    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
        "triton": _installed("triton"),
        "gpu copy": f"{2 * _GPU_COPY_NBYTES / copy / 1e9:.0f} GB/s",
        "gpu gemm": f"{2 * _GPU_SIDE**3 / gemm / 1e12:.0f} TFLOP/s bfloat16, {_GPU_SIDE}^3",
    }


def _driver() -> str:
    """The GPU driver's version, as its own tool says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.splitlines() or ["unknown"])[0].strip()


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's own name where the system tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
