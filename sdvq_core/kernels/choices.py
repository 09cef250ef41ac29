"""The faster of two ways of a product, decoded inside it or before it: measured once per machine, and then kept.

Which is faster depends on the GPU, the layer and the rows of x. When a `Case` is first met on a machine both ways are
timed; the faster is kept in a file (`choice_file`), because the two round differently: every process on the machine
gives the same bits. SDVQ_TUNE=0 in the environment times and reads nothing, and every weight is decoded before. So it
is where nothing can be kept, and for cases not met before while a CUDA graph is captured or torch.compile traces.
Where memory runs out, a case settles in this process on decoding inside, which needs no room for a decoded weight.
"""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from sdvq_core.folders import data_folder
from sdvq_core.kernels.choice_file import ChoiceFile
from sdvq_core.kernels.ways import reason
from sdvq_core.memory import is_out_of_memory

SWITCH = "SDVQ_TUNE"
_REPEATS = 7
_COOLER_NBYTES, _COOLINGS = 128 << 20, 4  # written before each repeat: more than an L2, longer than a launch

Work = Callable[[], Tensor]


class Case(NamedTuple):
    """What the choice depends on: GPU, rows of x, O, G, then what the fused kernel is compiled for."""

    device: str
    rows: int
    outputs: int
    groups: int
    books: int
    bits: int
    size: int
    dtype: torch.dtype

    @property
    def kernel(self) -> tuple[object, ...]:
        return self[4:]

    @property
    def words(self) -> str:
        """The case on its GPU, as it stands in the file."""
        rows, outputs, groups, books, bits, size = self[1:7]
        return f"{rows} rows, {outputs} x {groups} x {size}, {books} x {bits} bits, {str(self.dtype).split('.')[1]}"


class Choices:
    """The faster way of each case. seconds: how long each of some ways takes, measured in turns; file: what is kept."""

    def __init__(self, seconds: Callable[[Sequence[Work]], Sequence[float]], file: ChoiceFile) -> None:
        self._seconds, self._file = seconds, file
        self._fused: dict[Case, bool] = {}
        self._kept: dict[str, dict[str, bool]] = {}  # by device
        self._failed: set[tuple[object, ...]] = set()

    def run(self, case: Case, fused: Work, decoded: Work, may_time: bool) -> Tensor:
        """The answer of the faster way; of `decoded` where that is not known, or where `fused` failed."""
        if case.kernel not in self._failed and self._wants_fused(case, fused, decoded, may_time):
            found = self._tried(case, fused)
            if found is not None:
                return found
        try:
            return decoded()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or case.kernel in self._failed:
                raise
        self._fused[case] = True
        found = self._tried(case, fused)
        return decoded() if found is None else found

    def known(self) -> dict[Case, bool]:
        """Every case met so far, and whether the fused way is taken."""
        return {case: fused and case.kernel not in self._failed for case, fused in self._fused.items()}

    def _wants_fused(self, case: Case, fused: Work, decoded: Work, may_time: bool) -> bool:
        if case not in self._fused and os.environ.get(SWITCH) != "0":
            kept = self._of(case.device).get(case.words)
            if kept is None and may_time:
                kept = self._measured(case, fused, decoded)
            if kept is not None:
                self._fused[case] = kept
        return self._fused.get(case, False)

    def _of(self, device: str) -> dict[str, bool]:
        if device not in self._kept:
            self._kept[device] = self._file.read(device)
        return self._kept[device]

    def _measured(self, case: Case, fused: Work, decoded: Work) -> bool:
        """What is chosen from now on: the faster way, if it can be kept."""
        try:
            inside, apart = self._seconds((fused, decoded))
        except Exception as error:  # a compiler and a driver raise what they like
            if not is_out_of_memory(error):
                self._note(case, error)
            return is_out_of_memory(error)
        return bool(self._file.add(case.device, case.words, inside < apart, (inside, apart)))

    def _tried(self, case: Case, fused: Work) -> Tensor | None:
        """The answer of the fused kernel; None, after a warning, where it fails."""
        try:
            return fused()
        except Exception as error:
            if is_out_of_memory(error):  # the other way needs more
                raise
            self._note(case, error)
        return None

    def _note(self, case: Case, error: Exception) -> None:
        self._failed.add(case.kernel)
        _warn(reason(error))


def gpu_seconds(ways: Sequence[Work]) -> list[float]:
    """Median seconds on the current GPU of each of `ways`, in turns, from a cold L2; launching costs are hidden."""
    cooler = torch.empty(_COOLER_NBYTES, dtype=torch.uint8, device=torch.device("cuda", torch.cuda.current_device()))
    spans: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in ways]
    for turn in range(_REPEATS + 1):
        for run, found in zip(ways, spans, strict=True):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            for _ in range(_COOLINGS):
                cooler.zero_()
            start.record()
            run()
            end.record()
            if turn:
                found.append((start, end))
    torch.cuda.synchronize()
    return [statistics.median(start.elapsed_time(end) for start, end in found) / 1e3 for found in spans]


CHOICES = Choices(gpu_seconds, ChoiceFile(data_folder))


@cache
def _warn(reason: str) -> None:
    warnings.warn(f"a product decodes its weight apart from now on, the fused kernel failed: {reason}", stacklevel=6)
