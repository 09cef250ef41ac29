"""Jobs on threads: every one is done once, errors come back, and nobody waits for work that is not theirs."""

import os
import threading
import time

import pytest

compiled = pytest.importorskip("sdvq_core.kernels.compiled")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_job_is_done_once(threads):
    done = []
    compiled.in_threads(lambda job: done.append(job), [(number,) for number in range(20)], threads)
    assert sorted(done) == list(range(20))


def test_an_error_of_any_job_comes_back():
    def work(job):
        time.sleep(0.01)
        if job == 3:
            raise ValueError("job 3")

    with pytest.raises(ValueError, match="job 3"):
        compiled.in_threads(work, [(number,) for number in range(8)], 2)


def test_a_busy_pool_does_not_hold_up_who_has_finished():
    release = threading.Event()
    blockers = [compiled._pool().submit(release.wait, 20) for _ in range(os.cpu_count() or 2)]
    done = []
    start = time.monotonic()
    compiled.in_threads(done.append, [(1,), (2,)], 2)
    took = time.monotonic() - start
    release.set()
    for blocker in blockers:
        blocker.result()
    assert sorted(done) == [1, 2]
    assert took < 10
