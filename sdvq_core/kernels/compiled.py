"""numba's compiler as this room uses it: without the interpreter's lock, cached on disk where possible.

Where its loops do not become vector instructions, an `intrinsic` states the vectors in LLVM's own language; `pointer`,
`spread` and `constant` are its words. Threads are Python's: numba's own pool aborts when two jobs meet in it.

numba takes machine code from disk as long as the file of a function is the same, whatever the functions that it calls
have become. Here it must be the same for all files of this room's compiled code, numba and llvmlite (`stamp`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import ir
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.extending import intrinsic as _intrinsic

FLOAT = ir.FloatType()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: machine code for `function`, made when it is first called with a set of types."""
    found: Callable[..., Any] = numba.njit(nogil=True, error_model="numpy")(function)
    with suppress(RuntimeError, OSError):  # no folder to cache in, or no sources
        found._cache = _cache(function)  # type: ignore[attr-defined]  # what njit(cache=True) does, with a cache of ours
    return found


@cache
def stamp(folder: Path = Path(__file__).parent) -> str:
    """What compiled code depends on: `folder`'s sources of it, and who compiles them."""
    sources = [folder / "compiled.py", *sorted(folder.glob("*_numba.py"))]
    parts = [numba.__version__, llvmlite.__version__, *(f"{path.name}\n{path.read_text('utf-8')}" for path in sources)]
    return sha256("\0".join(parts).encode()).hexdigest()


def _cache(function: Callable[..., Any]) -> Any:
    """numba's cache of a function, wherever numba puts it, good for one state of this room."""
    found: Any = FunctionCache(function)
    index = found._cache_file
    index._source_stamp = (index._source_stamp, stamp())
    return found


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: `function` answers with a signature and with what writes its instructions (numba's, with a type)."""
    made: Callable[..., Any] = _intrinsic(function)
    return made


def in_threads(kernel: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], threads: int) -> None:
    """Call `kernel` with every tuple of `jobs`, as many at a time as there are `threads`, this one among them."""
    left = iter(jobs)  # under the interpreter's lock no two threads get the same job
    others = [_pool().submit(_work, kernel, left) for _ in range(min(threads, len(jobs)) - 1)]
    try:
        _work(kernel, left)
    finally:
        started = [other for other in others if not other.cancel()]  # the rest waits behind somebody else's work
        wait(started)
    for other in started:
        other.result()


def _work(kernel: Callable[..., Any], jobs: Iterator[tuple[Any, ...]]) -> None:
    for job in jobs:
        kernel(*job)


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that stay: starting some anew costs more than most kernels."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="sdvq")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive it


def vector(width: int, of: ir.Type = FLOAT) -> ir.VectorType:
    """The type of `width` numbers side by side."""
    return ir.VectorType(of, width)


def pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any, width: int, of: ir.Type = FLOAT) -> Any:
    """Pointer to the `width` numbers of a contiguous array that start at its element `at`."""
    data = cgutils.create_struct_proxy(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), vector(width, of).as_pointer())


def spread(builder: Any, number: Any, width: int) -> Any:
    """A vector of `width` times `number`."""
    empty = ir.Constant(vector(width, number.type), ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(vector(width, ir.IntType(32)), [0] * width))
