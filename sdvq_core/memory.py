"""How much memory a device could hand out now, within its control groups, and how it says that there is none left."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

_FALLBACK_NBYTES = 4 << 30
_ROOT = Path("/")
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
    return min([_free_in_system(), *_left_in_groups(_ROOT)])


def _free_in_system() -> int:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        names = getattr(os, "sysconf_names", {})
        if "SC_AVPHYS_PAGES" in names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return _FALLBACK_NBYTES


def _left_in_groups(root: Path) -> list[int]:
    """What every control group of this process that has a limit may still use; a group's limit binds those below it.

    root: of the file system. A container sees its groups from inside or from outside: folders that are not there are
    passed over, the topmost one is always looked at.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found: list[int | None] = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") > 1):
        for groups in _GROUPS:
            if groups.controller in controllers.split(","):
                found += map(groups.left, groups.folders(root, path))
    return [nbytes for nbytes in found if nbytes is not None]


@dataclass(frozen=True)
class _Groups:
    """How a version of control groups is told in /proc, where it is mounted, and what its files are called."""

    controller: str
    mounts: tuple[str, ...]
    limit: str
    used: str
    inactive: str

    def folders(self, root: Path, path: str) -> list[Path]:
        """The group called `path` and those above it, below every mount."""
        inner = PurePosixPath("/", path).relative_to("/")
        if ".." in inner.parts:  # outside of what this process can see
            inner = PurePosixPath()
        above = [inner, *inner.parents] if inner.parts else [inner]
        return [root / mount / part for mount in self.mounts for part in above]

    def left(self, folder: Path) -> int | None:
        """Limit less use, files that it could drop not counted; None without a limit."""
        try:
            limit, used = (int((folder / name).read_text("ascii")) for name in (self.limit, self.used))
            facts = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
            return max(0, limit - used + int(facts.get(self.inactive, 0)))
        except (OSError, ValueError):  # no such files, or the limit is the word "max"
            return None


_GROUPS = (
    _Groups("", ("sys/fs/cgroup", "sys/fs/cgroup/unified"), "memory.max", "memory.current", "inactive_file"),
    _Groups(
        "memory", ("sys/fs/cgroup/memory",), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    ),
)
