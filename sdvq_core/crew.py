"""Who works on a list of tasks: threads of this process, each on one core, or the caller's thread alone.

A task always has one thread of torch and of our kernels to itself. So its result depends neither on the number of cores
nor on what runs beside it, and no thread waits for another in the middle of a layer.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import islice
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 12  # finished results that may wait behind one large task


class Crew(Protocol):
    """Does work and gives the results in the order of the tasks."""

    def run(self, work: Callable[[T], R], tasks: Iterable[T], landed: Callable[[T, R], None] = ...) -> Iterator[R]:
        """One result per task. Tasks are drawn when their turn comes; `landed` hears of a result as soon as it is
        there, in any order and on any thread, and of none after the iterator was closed."""
        ...


def nothing(task: object, result: object) -> None:
    """Hear of a result and do nothing."""


class Alone:
    """The caller's own thread, with all that torch gives it: for a GPU, which one task fills."""

    def run(self, work: Callable[[T], R], tasks: Iterable[T], landed: Callable[[T, R], None] = nothing) -> Iterator[R]:
        for task in tasks:
            result = work(task)
            landed(task, result)
            yield result


class Threads:
    """`count` threads of this process."""

    def __init__(self, count: int) -> None:
        self.count = max(1, count)

    def run(self, work: Callable[[T], R], tasks: Iterable[T], landed: Callable[[T, R], None] = nothing) -> Iterator[R]:
        left, waiting, closed = iter(tasks), deque[Future[R]](), threading.Event()

        def do(task: T) -> R:
            result = work(task)
            if not closed.is_set():
                landed(task, result)
            return result

        try:
            while True:
                self._draw(left, waiting, do)
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            closed.set()
            for future in waiting:
                future.cancel()

    def _draw(self, left: Iterator[T], waiting: deque[Future[R]], do: Callable[[T], R]) -> None:
        """Hand out tasks, as many as keep every thread busy."""
        room = self.count + (_AHEAD if self.count > 1 else 0) - len(waiting)
        for task in islice(left, room):
            waiting.append(_pool(self.count).submit(do, task))


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    """Threads on which torch computes on one core; they stay, and other threads keep torch's own number."""
    pool, ready, before = ThreadPoolExecutor(count, "sdvq-layer"), threading.Barrier(count + 1), torch.get_num_threads()

    def settle() -> None:
        torch.get_num_threads()  # takes the process's number first, so that it does not come back later
        torch.set_num_threads(1)
        ready.wait()

    for _ in range(count):
        pool.submit(settle)
    ready.wait()
    torch.set_num_threads(before)  # `set_num_threads` is also the number of threads that are yet to start
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive it
