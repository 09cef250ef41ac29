"""Time on a GPU: CUDA events around a case that starts on an idle GPU, cases in turns, CUDA graphs for many launches.

A case that is launched from Python and is over before Python is done measures Python; captured in a graph it measures
the GPU. `Clock` is what a section of the suite is given, so that it also runs where there is no GPU, in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from sdvq_core.bench.timing import in_turns

Case = Callable[[], object]
_WARM_UP = 3


@dataclass(frozen=True)
class Clock:
    """in_turns: seconds of every case, `rounds` each. captured: a case, once run, as one launch. wait: for all work."""

    in_turns: Callable[[Mapping[str, Case], int], dict[str, list[float]]]
    captured: Callable[[Case], Case]
    wait: Callable[[], object]


def gpu_in_turns(cases: Mapping[str, Case], rounds: int) -> dict[str, list[float]]:
    """Seconds on the GPU of every case, `rounds` each, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            case()
            end.record()
            torch.cuda.synchronize()
            if turn:
                seconds[name].append(start.elapsed_time(end) / 1e3)
    return seconds


def captured(case: Case) -> Case:
    """`case` as a CUDA graph: all its launches at once, always on the same tensors."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, chooses and allocates outside of the graph
        for _ in range(_WARM_UP):
            case()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = case()

    def replay() -> object:
        graph.replay()
        return held

    return replay


CUDA = Clock(gpu_in_turns, captured, torch.cuda.synchronize)
HOST = Clock(in_turns, lambda case: case, lambda: None)
