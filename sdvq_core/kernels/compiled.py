"""numba's compiler as this room uses it: without the interpreter's lock, cached on disk where possible.

Where its loops do not become vector instructions, an `intrinsic` states the vectors in LLVM's own language; `pointer`,
`spread` and `constant` are its words. Threads are Python's: numba's own pool aborts when two jobs meet in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic

intrinsic: Any = _intrinsic
FLOAT = ir.FloatType()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: machine code for `function`, made when it is first called with a set of types."""
    found: Callable[..., Any]
    try:
        found = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to cache in
        found = numba.njit(nogil=True, error_model="numpy")(function)
    return found


def in_threads(kernel: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], threads: int) -> None:
    """Call `kernel` with every tuple of `jobs`, as many at a time as there are `threads`."""
    if threads == 1 or len(jobs) == 1:
        for job in jobs:
            kernel(*job)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda job: kernel(*job), jobs))


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
