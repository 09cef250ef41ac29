"""A run ends at the next of its states once its own session has asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from sdvq_core.ui.stopping import Stops


class Work:
    """Counts; `ended` tells whether it was closed or has come to its end."""

    def __init__(self) -> None:
        self.ended = False

    def states(self, upto: int) -> Iterator[list[Any]]:
        try:
            yield from ([number] for number in range(upto))
        finally:
            self.ended = True


def session(name: str) -> Any:
    return SimpleNamespace(session_hash=name)


def test_a_run_that_nobody_stops_comes_to_its_end() -> None:
    work, stops = Work(), Stops()
    stops.ask(session("a"))  # nothing runs yet: means nothing
    assert list(stops.stoppable(work.states, list)(session("a"), 3)) == [[0], [1], [2]]


def test_stop_ends_the_session_s_own_run() -> None:
    work, other, stops = Work(), Work(), Stops()
    mine = stops.stoppable(work.states, lambda state: [*state, "stopped"])(session("a"), 9)
    theirs = stops.stoppable(other.states, list)(session("b"), 9)
    assert (next(mine), next(theirs)) == ([0], [0])
    assert stops.ask(session("a"))["interactive"] is False
    assert list(mine) == [[1, "stopped"]]
    assert (work.ended, other.ended) == (True, False)
    assert next(theirs) == [1]


def test_the_next_run_is_not_stopped_by_an_old_wish() -> None:
    stops = Stops()
    run = stops.stoppable(Work().states, list)
    first = run(session("a"), 9)
    next(first)
    stops.ask(session("a"))
    list(first)
    assert len(list(run(session("a"), 4))) == 4


def test_a_page_that_goes_away_closes_the_work() -> None:
    work = Work()
    run: Any = Stops().stoppable(work.states, list)(session("a"), 9)
    next(run)
    run.close()
    assert work.ended
