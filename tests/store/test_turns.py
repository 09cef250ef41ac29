"""One process at a time: the other says that it waits, and begins when the first has ended, however it ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdvq_core.jobs import WAIT, Progress
from sdvq_core.store import in_turn


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def long_work(folder: Path) -> Iterator[int]:
    (folder / "begun").touch()
    wait_for(folder / "go")
    yield 1
    (folder / "ended").touch()


def hold(folder: Path) -> None:
    list(in_turn(folder / "turns" / "x.lock", "it", long_work(folder)))


@pytest.fixture
def other(tmp_path: Path) -> Iterator[multiprocessing.Process]:
    """A process that is at work."""
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path,))
    process.start()
    try:
        wait_for(tmp_path / "begun")
        yield process
    finally:
        process.kill()
        process.join()


def test_the_second_waits_for_the_first(tmp_path, other):
    def work() -> Iterator[str]:
        yield "ended" if (tmp_path / "ended").exists() else "meanwhile"

    events = in_turn(tmp_path / "turns" / "x.lock", "the thing", work())
    assert next(events) == next(events) == Progress(WAIT, "", 0, 1, "another run is making the thing")
    (tmp_path / "go").touch()
    assert [event for event in events if not isinstance(event, Progress)] == ["ended"]


def test_a_killed_process_is_not_waited_for(tmp_path, other):
    events = in_turn(tmp_path / "turns" / "x.lock", "it", [1, 2])
    assert isinstance(next(events), Progress)
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert [event for event in events if not isinstance(event, Progress)] == [1, 2]


@pytest.mark.parametrize("end", ["closed", "failed", "over"])
def test_the_turn_ends_with_the_work(tmp_path, end):
    def work() -> Iterator[int]:
        yield 1
        if end == "failed":
            raise KeyboardInterrupt

    events = in_turn(tmp_path / "lock", "it", work())
    assert next(events) == 1
    assert isinstance(next(in_turn(tmp_path / "lock", "it", [])), Progress)
    if end == "closed":
        events.close()
    elif end == "failed":
        with pytest.raises(KeyboardInterrupt):
            next(events)
    else:
        assert list(events) == []
    assert list(in_turn(tmp_path / "lock", "it", [2])) == [2]


def test_other_things_are_made_meanwhile(tmp_path, other):
    assert list(in_turn(tmp_path / "turns" / "y.lock", "it", [1])) == [1]


def test_where_nothing_can_be_locked_the_work_starts(tmp_path):
    (tmp_path / "file").touch()
    assert list(in_turn(tmp_path / "file" / "lock", "it", [1])) == [1]
