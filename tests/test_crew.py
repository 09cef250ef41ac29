"""Results come in the order of the tasks, on one thread of torch each, whoever works."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from sdvq_core.compress import crew_for, working_nbytes
from sdvq_core.crew import Alone, Threads
from sdvq_core.errors import ConfigError
from sdvq_core.plan import Assignment, CompressionPlan
from sdvq_core.quantizers import parse

CREWS = [Alone(), Threads(1), Threads(2), Threads(5)]


@pytest.mark.parametrize("crew", CREWS, ids=["alone", "one", "two", "five"])
def test_results_are_in_order_and_each_lands_once(crew):
    landed = []

    def work(task: int) -> int:
        time.sleep(0.001 * (task % 3))
        return task * task

    found = list(crew.run(work, range(20), lambda task, result: landed.append((task, result))))
    assert found == [task * task for task in range(20)]
    assert sorted(landed) == list(zip(range(20), found, strict=True))
    assert list(crew.run(work, [])) == []


def test_a_worker_has_one_thread_of_torch_and_others_keep_theirs():
    before, new = torch.get_num_threads(), []
    assert list(Threads(3).run(lambda _: torch.get_num_threads(), range(6))) == [1] * 6
    thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *new] == [before, before]


def test_threads_work_side_by_side():
    both = threading.Barrier(2, timeout=10)
    assert len(list(Threads(2).run(lambda _: both.wait(), range(4)))) == 4


def test_tasks_are_drawn_when_their_turn_comes():
    drawn = []

    def tasks():
        for number in range(100):
            drawn.append(number)
            yield number

    run = Threads(2).run(lambda task: task, tasks())
    assert next(run) == 0
    assert len(drawn) < 20
    run.close()


def test_closed_it_starts_nothing_and_tells_of_nothing():
    started, landed, first = [], [], threading.Event()

    def work(task: int) -> int:
        started.append(task)
        first.wait(10) if task else None
        return task

    run = Threads(2).run(work, range(50), lambda task, result: landed.append(task))
    assert next(run) == 0
    run.close()
    first.set()
    list(Threads(2).run(lambda task: task, range(2)))  # waits for the threads
    assert len(started) < 20
    assert landed == [0]


def test_what_goes_wrong_in_a_worker_goes_wrong_here():
    def work(task: int) -> int:
        if task == 3:
            raise KeyError("three")
        return task

    with pytest.raises(KeyError, match="three"):
        list(Threads(2).run(work, range(10)))


def plan(word: str) -> CompressionPlan:
    return CompressionPlan((Assignment("a", "linear", (1280, 1280), parse(word)),), {})


def test_memory_decides_how_many_layers_are_in_the_making():
    needed = working_nbytes(plan("rtn").assignments[0])
    cpu = torch.device("cpu")
    assert isinstance(crew_for(plan("rtn"), torch.device("cuda")), Alone)
    one, many = crew_for(plan("rtn"), cpu, needed), crew_for(plan("rtn"), cpu, 1000 * needed)
    assert isinstance(one, Threads)
    assert isinstance(many, Threads)
    assert (one.count, many.count) == (1, torch.get_num_threads())
    with pytest.raises(ConfigError, match=r"needs 0\.\d\d GB .* 0\.000000001 GB may be used; allow 0\.\d\d GB or more"):
        crew_for(plan("rtn"), cpu, 1)
    assert working_nbytes(plan("gptq").assignments[0]) > needed
