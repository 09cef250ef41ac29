"""One process at a time makes a thing that several want; the others wait, and find it made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from sdvq_core.jobs import WAIT, Progress

T = TypeVar("T")
_SECONDS = 0.5  # between two looks


def in_turn(lock: Path, what: str, work: Iterable[T]) -> Iterator[T | Progress]:
    """The items of `work`, which starts when no other process holds `lock`, a file; the system frees it at a kill.

    what: is made, in words. Where files cannot be locked, such as in a folder that is only
    read, the work starts at once.
    """
    turn = FileLock(lock, thread_local=False, fallback_to_soft=False)  # a page's job may change threads
    seconds = 0.0
    while not _entered(turn, seconds):
        yield Progress(WAIT, "", 0, 1, f"another run is making {what}")
        seconds = _SECONDS
    try:
        yield from work
    finally:
        turn.release()


def _entered(turn: FileLock, seconds: float) -> bool:
    """Whether the work may start, after so many seconds at most."""
    try:
        Path(turn.lock_file).parent.mkdir(parents=True, exist_ok=True)
        turn.acquire(timeout=seconds)
    except Timeout:
        return False
    except (OSError, NotImplementedError):
        return True
    return True
