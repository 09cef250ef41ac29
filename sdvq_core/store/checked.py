"""Files that were compared with their SHA-256 once, so that the next process need not read them twice.

A file counts as the same while its device, inode, size and times stay: the kernel sets the change time at every write,
and no program can set it back. Forgetting is never wrong: the content is compared again.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from sdvq_core.folders import data_folder

Stamp = tuple[int, ...]
_SETTLED_NS = 2_000_000_000  # times are coarse: what has just changed may change again without a trace


def stamp(found: os.stat_result) -> Stamp:
    """What changes when a file does."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def is_checked(file: Path, sha256: str, seen: Stamp) -> bool:
    """Whether `file`, when it had the stamp `seen`, was found to hold what `sha256` says."""
    try:
        known = json.loads(_place(file).read_text("utf-8"))
    except (OSError, ValueError, RuntimeError):  # the last where there is no home to keep anything in
        return False
    return bool(known == {"sha256": sha256, "stamp": list(seen)})


def remember(file: Path, sha256: str, seen: Stamp, when: int) -> None:
    """`file`, opened at `when` (nanoseconds), had the stamp `seen` before and after, and holds what `sha256` says."""
    if os.name == "nt" or when - max(seen[3:]) < _SETTLED_NS:  # Windows has no change time
        return
    try:
        place = _place(file)
        temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"sha256": sha256, "stamp": seen}), "utf-8")
        temporary.replace(place)
    except (OSError, RuntimeError):
        return  # a folder that cannot be written to: the content is compared every time


def forget(file: Path) -> None:
    """`file` is to be compared again."""
    _place(file).unlink(missing_ok=True)


def _place(file: Path) -> Path:
    return data_folder() / "checked" / f"{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]}.json"
