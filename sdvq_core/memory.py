"""How much memory a device could hand out now, and what it looks like when it cannot."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_FALLBACK_NBYTES = 4 << 30
_CGROUP = Path("/sys/fs/cgroup")
_SIGNS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")


def free_nbytes(device: torch.device) -> int:
    """Memory that `device` could hand out now; what torch keeps on a GPU for later counts as free."""
    if device.type != "cuda":
        return _free_on_cpu()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out; on the CPU torch says so in a RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def _free_on_cpu() -> int:
    """What the system has, within what its container may use."""
    allowed = _left_in_container(_CGROUP)
    return _free_in_system() if allowed is None else min(_free_in_system(), allowed)


def _free_in_system() -> int:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        names = getattr(os, "sysconf_names", {})
        if "SC_AVPHYS_PAGES" in names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return _FALLBACK_NBYTES


def _left_in_container(group: Path) -> int | None:
    """Limit less use of a control group (version 2), files that it could drop not counted; None without a limit."""
    try:
        limit, used = (int((group / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
        facts = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
        return max(0, limit - used + int(facts.get("inactive_file", 0)))
    except (OSError, ValueError):  # no such files, or the limit is the word "max"
        return None
